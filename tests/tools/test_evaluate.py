"""tools/evaluate.py on a folder of three problems with three answers each, by a scripted aggregator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tt_reasoning import store
from tt_reasoning.answer_sets import first_answers
from tt_reasoning.evaluation import read_report
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

TOOL = Path(__file__).parents[2] / "tools" / "evaluate.py"
SAMPLING = Sampling(model="models/tiny", prompt="answer")
PROBLEMS = [
    Problem(source="demo", split="test", question=f"What is {n} + {n}?", reference=str(2 * n)) for n in (1, 2, 3)
]
RESULTS = [["2", "2", "5"], ["3", "4", "4.0"], ["7", None, "8"]]  # correct: 2, 2 and 0 of 3


def make_answers(problem: Problem, results: list[str | None]) -> list[tuple[Answer, Verdict]]:
    made = []
    for index, result in enumerate(results):
        text = "I cannot say." if result is None else f"Sample {index}. The Answer is: {result}"
        name = SAMPLING.answer_id(problem.id, index)
        answer = Answer(
            id=name, problem_id=problem.id, sample_index=index, text=text, num_tokens=5, finish_reason="stop",
            sampling=SAMPLING,
        )  # fmt: skip
        correct = result is not None and float(result) == float(problem.reference)
        reason = "no_answer" if result is None else "match" if correct else "mismatch"
        made.append((answer, Verdict(answer_id=name, extracted=result, correct=correct, reason=reason)))
    return made


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with ``answers`` and a scripted aggregator ``script.json``; answers lie in another order than asked."""
    made = [pair for p, results in zip(PROBLEMS, RESULTS, strict=True) for pair in make_answers(p, results)]
    with store.open_run(tmp_path / "answers", "generate_answers", {"seed": 0}) as folder:
        store.write_records(folder / "problems.jsonl", PROBLEMS)
        store.write_records(folder / "answers.jsonl", [answer for answer, _ in reversed(made)])
        store.write_records(folder / "verdicts.jsonl", [verdict for _, verdict in made])
    finals = ["I see.</think> <answer>2</answer> and more", "Both.</think> <answer>4</answer>", "So <answer>6</answer>"]
    prompts = [render(problem, results) for problem, results in zip(PROBLEMS, RESULTS, strict=True)]
    script = {"answers": {prompt: [final] for prompt, final in zip(prompts, finals, strict=True)}}
    (tmp_path / "script.json").write_text(json.dumps(script))
    return tmp_path


def render(problem: Problem, results: list[str | None], prompt: str = "ssa", order_seed: int = 0) -> str:
    """What the aggregator reads when it is offered all the answers."""
    answers = [answer for answer, _ in make_answers(problem, results)]
    chosen = first_answers(problem, answers, len(answers), order_seed).answers
    return get_prompt(prompt).render(answer_set_text(problem.question, [answer.text for answer in chosen]))


def make_checkpoint(folder: Path, vocab_size: int = 5) -> Path:
    """A folder that looks like a model of 5 tokens and width 4; ``vocab_size`` is what its config claims."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "none", "vocab_size": vocab_size, "hidden_size": 4}))
    save_file({"model.embed_tokens.weight": np.zeros((5, 4), np.float32)}, folder / "model.safetensors")
    return folder


def evaluate(world: Path, *more: str, out: str = "out", num_answers: int = 3) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--answers", "answers", "--num-answers", str(num_answers), "--out", out, *more]
    return subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=120, check=False)


def evaluate_scripted(world: Path, *more: str, out: str = "out") -> subprocess.CompletedProcess[str]:
    return evaluate(world, "--aggregator", "script.json", "--engine", "scripted", *more, out=out)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def values(world: Path, out: str = "out") -> dict[str, float]:
    return {result.method: result.value for result in read_report(world / out / "results.json").results}


def test_votes_alone_need_no_engine(world: Path) -> None:
    done = evaluate(world)
    assert done.returncode == 0, done.stderr
    assert values(world) == {
        "pass@1": pytest.approx(4 / 9), "majority@3": pytest.approx(2 / 3), "pass@3": pytest.approx(2 / 3),
    }  # fmt: skip
    assert done.stdout.splitlines()[-1] == "3 of 3 problems evaluated; results: out/results.json"
    assert "majority@3: 1 ties, 0 without a vote" in done.stdout
    assert sorted(path.name for path in (world / "out").iterdir()) == [".lock", "manifest.json", "results.json"]


def test_only_the_first_answers_by_sample_index_are_taken(world: Path) -> None:
    assert evaluate(world, num_answers=1).returncode == 0
    assert values(world) == {"pass@1": pytest.approx(1 / 3), "majority@1": pytest.approx(1 / 3)}


def test_the_aggregator_is_asked_graded_and_reported(world: Path) -> None:
    done = evaluate_scripted(world)
    assert done.returncode == 0, done.stderr
    report = read_report(world / "out" / "results.json")
    assert (report.model, report.dataset, report.split, report.prompt) == ("models/tiny", "demo", "test", "ssa")
    assert report.tokens["answers"] == 45
    final = report.results[-1]
    assert (final.method, final.value) == ("aggregator", 1.0)
    assert final.detail["selected"] == {"num_problems": 2, "accuracy": 1.0}
    assert final.detail["synthesised"] == {"num_problems": 1, "accuracy": 1.0}  # 6 was never offered
    answers = list(store.read_records(world / "out" / "aggregated.jsonl", Answer))
    assert [answer.problem_id for answer in answers] == [problem.id for problem in PROBLEMS]
    assert answers[0].text.endswith("<answer>2</answer>")  # the stop string ends it and stays
    assert answers[0].sampling == Sampling(
        model="script.json", prompt="ssa", temperature=0.1, top_k=40, max_new_tokens=512, seed=0
    )
    assert report.tokens["aggregator"] == sum(answer.num_tokens for answer in answers)


def test_grading_begins_at_the_prefill(world: Path) -> None:
    script = {"fallback": ["4</answer>"]}  # of no use without the <answer> that the prompt gives
    (world / "script.json").write_text(json.dumps(script))
    assert evaluate_scripted(world, "--prompt", "ssa_no_think").returncode == 0
    assert values(world)["aggregator"] == pytest.approx(1 / 3)


def test_the_order_seed_decides_the_order_that_the_aggregator_reads(world: Path) -> None:
    shown = [render(problem, results, order_seed=1) for problem, results in zip(PROBLEMS, RESULTS, strict=True)]
    (world / "script.json").write_text(json.dumps({"answers": {prompt: ["<answer>2</answer>"] for prompt in shown}}))
    assert evaluate_scripted(world, "--order-seed", "1").returncode == 0
    other = evaluate_scripted(world, out="other")
    assert other.returncode == 2 and "the script has no answer" in other.stderr.splitlines()[-1]


def test_auto_takes_the_prompt_that_the_checkpoint_names(world: Path) -> None:
    """Run as far as a model without layers gets: the tune engine refuses it after the manifest is written."""
    folder = make_checkpoint(world / "checkpoint")
    (folder / "aggregator.json").write_text('{"prompt": "ssa_no_think"}')
    evaluate(world, "--aggregator", "checkpoint", "--engine", "tune")
    assert store.read_manifest(world / "out")["arguments"]["prompt"] == "ssa_no_think"
    (folder / "aggregator.json").write_text("{}")
    assert_refused(evaluate(world, "--aggregator", "checkpoint", out="other"), "aggregator.json", "--prompt ssa")


def test_a_rerun_does_nothing_again_and_says_the_same(world: Path) -> None:
    first = evaluate_scripted(world)
    before = {path.name: path.read_bytes() for path in (world / "out").iterdir()}
    stamp = (world / "out" / "aggregated.jsonl").stat().st_mtime_ns
    second = evaluate_scripted(world)
    done, again = "3 answers written, 0 were there", "0 answers written, 3 were there"
    assert done in first.stdout and second.returncode == 0
    assert second.stdout == first.stdout.replace(done, again)
    assert {path.name: path.read_bytes() for path in (world / "out").iterdir()} == before
    assert (world / "out" / "aggregated.jsonl").stat().st_mtime_ns == stamp


def test_a_torn_run_goes_on_to_the_same_results(world: Path) -> None:
    assert evaluate_scripted(world).returncode == 0
    whole = {path.name: path.read_bytes() for path in (world / "out").iterdir()}
    (world / "out" / "aggregated.jsonl").write_bytes(whole["aggregated.jsonl"][:-40])
    (world / "out" / "aggregated_verdicts.jsonl").write_bytes(whole["aggregated_verdicts.jsonl"][:-5])
    (world / "out" / "results.json").unlink()
    assert evaluate_scripted(world).returncode == 0
    assert {path.name: path.read_bytes() for path in (world / "out").iterdir()} == whole


def test_limit_takes_the_first_problems(world: Path) -> None:
    assert evaluate(world, "--limit", "2").returncode == 0
    assert read_report(world / "out" / "results.json").num_problems == 2


def test_other_arguments_into_the_same_folder_are_refused(world: Path) -> None:
    assert evaluate_scripted(world).returncode == 0
    before = {path.name: path.read_bytes() for path in (world / "out").iterdir()}
    assert_refused(evaluate_scripted(world, "--seed", "1"), "seed was 0, now 1", "new folder")
    script = (world / "script.json").read_text()
    (world / "script.json").write_text(script.replace("I see", "I say"))
    assert_refused(evaluate_scripted(world), "weights was 'sha256")
    assert {path.name: path.read_bytes() for path in (world / "out").iterdir()} == before


def test_answers_without_verdicts_are_refused(world: Path) -> None:
    verdicts = world / "answers" / "verdicts.jsonl"
    lines = verdicts.read_text().splitlines(keepends=True)
    verdicts.write_text("".join(lines[:-1]))
    assert_refused(evaluate(world), "1 answers have no verdict", "python tools/check_answers.py --answers answers")
    verdicts.unlink()
    assert_refused(evaluate(world), "has no verdicts.jsonl", "python tools/check_answers.py --answers answers")
    assert not (world / "out").exists()


def test_more_answers_than_there_are_is_refused_naming_both(world: Path) -> None:
    assert_refused(evaluate(world, num_answers=4), "num_answers=4", "3 samples")


def test_one_problem_with_too_few_answers_is_named(world: Path) -> None:
    path = world / "answers" / "answers.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert_refused(evaluate(world), PROBLEMS[2].id, "2 answers, 3 needed")
    assert evaluate(world, "--limit", "2").returncode == 0


def test_damaged_weights_and_those_of_another_size_are_refused(world: Path) -> None:
    folder = make_checkpoint(world / "checkpoint", vocab_size=6)
    done = evaluate(world, "--aggregator", "checkpoint")
    assert_refused(done, "checkpoint/model.safetensors does not fit config.json", "[5, 4]", "[6, 4]")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert_refused(evaluate(world, "--aggregator", "checkpoint"), "checkpoint/model.safetensors: damaged")
    assert not (world / "out").exists()


def test_what_is_no_checkpoint_is_refused_before_anything_is_made(world: Path) -> None:
    (world / "empty").mkdir()
    (world / "bare").mkdir()
    (world / "bare" / "config.json").write_text("{}")
    for name, words in (("gone", "no such model folder"), ("empty", "no config.json"), ("bare", "no *.safetensors")):
        assert_refused(evaluate(world, "--aggregator", name), name, words)
    assert not (world / "out").exists()


def test_wrong_names_and_numbers_are_refused(world: Path) -> None:
    assert_refused(evaluate_scripted(world, "--engine", "vlm"), "did you mean 'vllm'?")
    assert_refused(evaluate_scripted(world, "--prompt", "ssa_nothink"), "did you mean 'ssa_no_think'?")
    assert_refused(evaluate_scripted(world, "--temperature", "-1"), "temperature=-1.0 should be at least 0")
    assert_refused(evaluate(world, "--answers", "gone"), "no such folder: gone")
    assert not (world / "out").exists()
