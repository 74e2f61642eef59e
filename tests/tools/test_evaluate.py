"""tools/evaluate.py on a folder of three problems with three answers each, by a scripted aggregator."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tt_reasoning import store
from tt_reasoning.answer_sets import first_answers
from tt_reasoning.evaluation import read_report
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.scores import Skipped
from tt_reasoning.types import Answer, Problem, Sampling, Score, Step, Verdict

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


def all_answers() -> list[Answer]:
    return [answer for p, results in zip(PROBLEMS, RESULTS, strict=True) for answer, _ in make_answers(p, results)]


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


def evaluate(
    world: Path, *more: str, out: str = "out", num_answers: int | tuple[int, ...] | None = 3
) -> subprocess.CompletedProcess[str]:
    ks = ["--num-answers", *map(str, num_answers if isinstance(num_answers, tuple) else (num_answers,))]
    command = [sys.executable, TOOL, "--answers", "answers", *(ks if num_answers else ()), "--out", out, *more]
    return subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=120, check=False)


def evaluate_scripted(world: Path, *more: str, **options) -> subprocess.CompletedProcess[str]:
    return evaluate(world, "--aggregator", "script.json", "--engine", "scripted", *more, **options)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def values(world: Path, out: str = "out") -> dict[str, float]:
    return {result.label: result.value for result in read_report(world / out / "results.json").results}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_votes_alone_need_no_engine(world: Path) -> None:
    done = evaluate(world)
    assert done.returncode == 0, done.stderr
    assert values(world) == {
        "pass@1": pytest.approx(4 / 9), "pass@3": pytest.approx(2 / 3), "oracle@3": pytest.approx(2 / 3),
        "single@3": pytest.approx(4 / 9), "majority@3": pytest.approx(2 / 3),
        "length_weighted@3": pytest.approx(2 / 3),  # all answers have 5 tokens
    }  # fmt: skip
    assert done.stdout.splitlines()[0] == "demo/test: 3 problems, 3 answers each by models/tiny"
    assert done.stdout.splitlines()[-1] == "3 of 3 problems evaluated; results: out/results.json"
    assert "majority@3: 1 ties, 0 without a vote" in done.stdout
    assert sorted(path.name for path in (world / "out").iterdir()) == [".lock", "manifest.json", "results.json"]


def test_votes_are_of_the_first_answers_by_sample_index_and_pass_of_all(world: Path) -> None:
    assert evaluate(world, num_answers=1).returncode == 0
    found = values(world)
    assert (found["pass@1"], found["majority@1"]) == (pytest.approx(4 / 9), pytest.approx(1 / 3))


def test_unless_given_k_is_each_power_of_two_and_all_answers(world: Path) -> None:
    assert evaluate(world, num_answers=None).returncode == 0
    assert read_report(world / "out" / "results.json").num_answers == (1, 2, 3)


def test_the_aggregator_is_asked_graded_and_reported(world: Path) -> None:
    done = evaluate_scripted(world)
    assert done.returncode == 0, done.stderr
    report = read_report(world / "out" / "results.json")
    assert (report.model, report.dataset, report.split, report.prompt) == ("models/tiny", "demo", "test", "ssa")
    final = report.results[-1]
    assert (final.label, final.value, final.answer_tokens) == ("aggregator@3", 1.0, 15)
    assert final.detail["selected"] == {"num_problems": 2, "accuracy": 1.0}
    assert final.detail["synthesised"] == {"num_problems": 1, "accuracy": 1.0}  # 6 was never offered
    answers = list(store.read_records(world / "out" / "aggregator_k3" / "answers.jsonl", Answer))
    assert [answer.problem_id for answer in answers] == [problem.id for problem in PROBLEMS]
    assert answers[0].text.endswith("<answer>2</answer>")  # the stop string ends it and stays
    assert answers[0].sampling == Sampling(
        model="script.json", prompt="ssa", temperature=0.1, top_k=40, max_new_tokens=512, seed=0
    )
    assert final.reader_tokens == sum(answer.num_tokens for answer in answers) / 3
    assert report.settings["evaluate"]["engine"] == "scripted" and report.versions["python"]
    verdicts = list(store.read_records(world / "out" / "aggregator_k3" / "verdicts.jsonl", Verdict))
    assert [verdict.answer_id for verdict in verdicts] == [answer.id for answer in answers]


def test_cut_answers_are_a_method_of_their_own(world: Path) -> None:
    """Without their last 30 % no answer shows its result: of "Sample 0. The Answer is: 2" 18 of 26 characters stay."""
    order = first_answers(PROBLEMS[0], [answer for answer, _ in make_answers(PROBLEMS[0], RESULTS[0])], 3, 0).answers
    texts = [answer.text for answer in order]
    cut = get_prompt("ssa").render(answer_set_text(PROBLEMS[0].question, [text[:18] for text in texts]))
    assert cut.count("The Answ\n") == 3 and "####" not in cut
    script = {"answers": {cut: ["<answer>2</answer>"]}, "fallback": ["<answer>9</answer>"]}
    (world / "script.json").write_text(json.dumps(script))
    assert evaluate_scripted(world, "--cut-share", "0.3").returncode == 0
    found = values(world)
    assert (found["aggregator@3"], found["aggregator_cut0.3@3"]) == (0, pytest.approx(1 / 3))


def test_usc_asks_its_own_model_neutrally_and_for_the_majority(world: Path) -> None:
    chats = {}
    for name, final in (("usc", "2"), ("usc_majority", "5")):
        rendered = render(PROBLEMS[0], RESULTS[0], prompt=name)
        chats[rendered[-1]["content"]] = [f"The Answer is: {final}"]
    (world / "usc.json").write_text(json.dumps({"answers": chats, "fallback": ["I select none."]}))
    done = evaluate(world, "--usc-model", "usc.json", "--engine", "scripted")
    assert done.returncode == 0, done.stderr
    report = read_report(world / "out" / "results.json")
    assert [(r.label, r.value) for r in report.results[-2:]] == [("usc@3", pytest.approx(1 / 3)), ("usc_majority@3", 0)]
    assert report.results[-2].detail["no_answer"]["num_problems"] == 2
    assert (report.aggregator, report.usc_model) == (None, "usc.json")


def test_more_k_and_more_methods_come_to_the_same_folder(world: Path) -> None:
    (world / "script.json").write_text(json.dumps({"fallback": ["<answer>4</answer>"]}))
    assert evaluate(world, num_answers=3).returncode == 0
    assert evaluate_scripted(world, num_answers=3).returncode == 0
    first = files(world / "out" / "aggregator_k3")
    done = evaluate_scripted(world, "--cut-share", "0.5", "--usc-model", "script.json", num_answers=(3, 1, 2))
    assert done.returncode == 0, done.stderr
    assert "aggregator@3: 0 answers written, 3 were there" in done.stdout
    assert files(world / "out" / "aggregator_k3") == first
    methods = ("aggregator", "aggregator_cut0.5", "usc", "usc_majority")
    assert {f"{m}@{k}" for m in methods for k in (1, 2, 3)} <= values(world).keys()
    answers = list(store.read_records(world / "out" / "usc_k1" / "answers.jsonl", Answer))
    assert len(answers) == 3


def test_new_samples_in_the_folder_leave_what_was_read_as_it_is(world: Path) -> None:
    (world / "script.json").write_text(json.dumps({"fallback": ["<answer>4</answer>"]}))
    assert evaluate_scripted(world, num_answers=2).returncode == 0
    for problem in PROBLEMS:
        answer, verdict = make_answers(problem, ["4"] * 4)[3]
        store.append_records(world / "answers" / "answers.jsonl", [answer])
        store.append_records(world / "answers" / "verdicts.jsonl", [verdict])
    done = evaluate_scripted(world, num_answers=(2, 4))
    assert done.returncode == 0, done.stderr
    assert "aggregator@2: 0 answers written, 3 were there" in done.stdout
    assert values(world)["pass@1"] == pytest.approx((2 + 3 + 0) / 12)


def test_scores_of_a_judge_weigh_the_votes(world: Path) -> None:
    scores = [1, 1, 3, 2.5, 1, 1, 0, 0, 0]  # 5 beats 2 and 2; 3 beats 4 and 4; 7 and 8 tie
    rows = [{"answer_id": answer.id, "score": score} for answer, score in zip(all_answers(), scores, strict=True)]
    path = world / "scores.jsonl"
    store.write_records(path, rows)
    assert evaluate(world, "--scores", "scores.jsonl").returncode == 0
    found = values(world)
    assert found["score_weighted@3"] == 0
    assert found["best_of_n@3"] == 0  # 3 for the 5, 2.5 for the 3, and nothing between 7 and 8
    store.write_records(path, rows[1:])
    assert_refused(
        evaluate(world, "--scores", "scores.jsonl"), "1 of the 9 answers have no score", rows[0]["answer_id"]
    )
    store.write_records(path, [{**rows[0], "score": -0.5}, *rows[1:]])
    assert_refused(evaluate(world, "--scores", "scores.jsonl"), "has the score -0.5", "at least 0")
    assert_refused(evaluate(world, "--scores", "gone.jsonl"), "no such file or folder of scores: gone.jsonl")
    store.write_records(path, rows)
    assert_refused(evaluate(world, "--scores", "scores.jsonl", "--aggregate", "min"), "name a folder of rank_answers")


def make_judge(world: Path, scores: list[tuple[float, ...]], name: str = "prm", aggregate: str = "min") -> Path:
    """A folder of scores: of every answer, in order, the scores of its steps; an empty row is one that is too long."""
    steps, skipped = [], []
    for answer, row in zip(all_answers(), scores, strict=True):
        ends = [*range(1, len(row)), len(answer.text)]
        steps += [
            Step(answer_id=answer.id, index=i, start=end - 1, end=end, score=score)
            for i, (end, score) in enumerate(zip(ends, row, strict=False))
        ]
        skipped += [] if row else [Skipped(answer_id=answer.id, reason="too_long")]
    with store.open_run(world / name, "rank_answers", {"judge": "tiny", "aggregate": aggregate}) as folder:
        store.write_records(folder / "steps.jsonl", steps)
        store.write_records(folder / "skipped.jsonl", skipped)
    return folder


# By problem, for results 2 2 5, 3 4 4.0 and 7 - 8, of which the first two and the 4s are right.
STEP_SCORES = [(0.6, 0.6), (0.5,), (0.9, 0.4), (), (0.2,), (0.3, 0.9), (), (1.0,), ()]


def test_best_of_n_and_weighted_votes_come_from_a_folder_of_step_scores(world: Path) -> None:
    folder = make_judge(world, STEP_SCORES)
    before = files(folder)
    done = evaluate(world, "--scores", "prm", num_answers=(2, 3))
    assert done.returncode == 0, done.stderr
    found = values(world)
    # by the minimum the first answers win with 0.6 and 0.3; who has no result is not chosen, and the rest are skipped
    assert found["best_of_n@3"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["score_weighted@3"] == pytest.approx((1 + 1 + 0) / 3)
    report = read_report(world / "out" / "results.json")
    assert report.counts["scores"] == {"prm:min": {"scored": 6, "too_long": 3}}
    assert next(r for r in report.results if r.label == "best_of_n@3").detail == {"ties": 0, "no_choice": 1}
    assert "prm:min: answers without a score are never chosen and have no vote: too_long 3 of 9" in done.stdout
    assert ("best_of_n@2", "majority@2") in {(d.method, d.baseline) for d in report.differences}
    assert files(folder) == before


def test_several_judges_and_aggregates_stand_beside_each_other(world: Path) -> None:
    make_judge(world, STEP_SCORES)
    make_judge(world, [(0.1,)] * 8 + [(0.2,)], "orm", "last")
    store.write_records(world / "same.jsonl", [Score(answer_id=answer.id, score=7.0) for answer in all_answers()])
    done = evaluate(world, "--scores", "prm", "orm", "same.jsonl", "--aggregate", "last", "prod", "mean")
    assert done.returncode == 0, done.stderr
    found = values(world)
    # by the last step 0.6, 0.5, 0.4 and 0.2, 0.9; by the product 0.36, 0.5, 0.36: the second answer is right as well;
    # by the mean 0.6, 0.5, 0.65: the wrong one
    best = {name: found[f"best_of_n[{name}]@3"] for name in ("prm:last", "prm:prod", "prm:mean", "orm:last", "same")}
    ties = (2 / 3 + 2 / 3) / 3  # all scored alike, but the last 8 of orm, which is wrong too
    assert best == pytest.approx(
        {"prm:last": 2 / 3, "prm:prod": 2 / 3, "prm:mean": 1 / 3, "orm:last": ties, "same": ties}
    )
    assert "best_of_n@3" not in found and "score_weighted[orm:mean]@3" in found


def test_scores_that_do_not_fit_are_refused_before_anything_is_made(world: Path) -> None:
    make_judge(world, STEP_SCORES)
    steps = list(store.read_records(world / "prm" / "steps.jsonl", Step))
    make_judge(world / "deep", STEP_SCORES)
    assert_refused(evaluate(world, "--scores", "prm", "deep/prm"), "prm and deep/prm would both be called prm:min")
    assert_refused(evaluate(world, "--aggregate", "min"), "name a folder of rank_answers with --scores")
    assert_refused(evaluate(world, "--scores", "answers"), "answers/manifest.json names no aggregate")
    store.write_records(world / "prm" / "steps.jsonl", steps[:-2])  # the last of 0.3, 0.9 is gone as well
    assert_refused(evaluate(world, "--scores", "prm"), "prm/steps.jsonl", steps[-3].answer_id, "end at 1 of its 28")
    store.write_records(world / "prm" / "steps.jsonl", steps[:-3])
    done = evaluate(world, "--scores", "prm")
    assert_refused(done, "prm: 2 of the 9 answers have no score, such as", "rank_answers.py --out prm goes on")
    assert not (world / "out").exists()


def test_random_subsets_of_all_answers_take_the_place_of_the_first(world: Path) -> None:
    make_judge(world, STEP_SCORES)
    subsets = ("--scores", "prm", "--subsamples", "300")
    done = evaluate(world, *subsets, num_answers=(2, 3))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("3 answers each by models/tiny, 300 random subsets of k")
    found, report = values(world), read_report(world / "out" / "results.json")
    assert (report.settings["evaluate"]["subsamples"], report.settings["evaluate"]["subsample_seed"]) == (300, 0)
    # of the pairs of 2 2 5 one is right and two tie; of 3 4 4 likewise; of 7 - 8 none
    assert found["majority@2"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3, abs=0.03)
    # the first or, without it, the second of 0.6, 0.5, 0.4; a 4 is in every pair of 3 4 4 and the 3 has no score
    assert found["best_of_n@2"] == pytest.approx((1 + 1 + 0) / 3)
    majority = next(r for r in report.results if r.label == "majority@2")
    assert 0 < majority.detail["spread"] < 0.5
    assert evaluate(world, "--scores", "prm", out="plain").returncode == 0
    assert values(world, "plain").items() <= found.items()  # n of n
    assert evaluate(world, *subsets, "--subsample-seed", "1", num_answers=(2, 3), out="other").returncode == 0
    assert values(world, "other") != found
    assert_refused(evaluate(world, "--scores", "prm"), "subsamples was 300, now None")
    assert_refused(evaluate(world, *subsets, num_answers=4), "num_answers=4 is above the 3 samples")
    assert_refused(evaluate(world, "--subsamples", "0"), "subsamples=0 should be at least 1")
    assert_refused(evaluate(world, "--subsample-seed", "1"), "say with --subsamples how many")
    assert_refused(evaluate_scripted(world, *subsets), "an aggregator and USC would have to read every subset")


def test_subsets_are_of_as_many_answers_as_any_problem_has(world: Path) -> None:
    rows = list(store.read_records(world / "answers" / "answers.jsonl", Answer))
    store.write_records(world / "answers" / "answers.jsonl", rows[1:])  # the last of the third problem, a wrong one
    done = evaluate(world, "--subsamples", "10", num_answers=None)
    assert done.returncode == 0, done.stderr
    report = read_report(world / "out" / "results.json")
    assert (report.num_answers, report.counts["padded"]) == ((1, 2, 3), 1)
    assert values(world)["majority@3"] == pytest.approx(2 / 3)
    assert "1 answers that problems lack of the most that one has: as without a result" in done.stdout
    assert_refused(evaluate(world, out="plain"), "has only 2 answers, 3 needed")


def test_several_temperatures_want_one_named(world: Path) -> None:
    warmer = replace(SAMPLING, temperature=1.0)
    for problem in PROBLEMS:
        name = warmer.answer_id(problem.id, 0)
        answer = replace(make_answers(problem, ["2"])[0][0], id=name, sampling=warmer)
        store.append_records(world / "answers" / "answers.jsonl", [answer])
        verdict = Verdict(answer_id=name, extracted="2", correct=problem.reference == "2", reason="mismatch")
        store.append_records(world / "answers" / "verdicts.jsonl", [verdict])
    assert_refused(evaluate(world), "several temperatures (0.7, 1)", "--answers-temperature")
    assert evaluate(world, "--answers-temperature", "1", num_answers=1).returncode == 0
    assert values(world)["majority@1"] == pytest.approx(1 / 3)
    assert_refused(evaluate(world, "--answers-temperature", "0.7"), "answers_temperature was 1.0, now 0.7")


def test_categories_of_problems_reach_the_report(world: Path) -> None:
    named = [replace(p, category=name) for p, name in zip(PROBLEMS, ("law", "law", "art"), strict=True)]
    store.write_records(world / "answers" / "problems.jsonl", named)
    assert evaluate(world).returncode == 0
    found = {
        (c.category, c.method): (c.value, c.num_problems) for c in read_report(world / "out/results.json").categories
    }
    assert found["law", "majority"] == (1.0, 2) and found["art", "oracle"] == (0.0, 1)


def test_final_answers_are_graded_by_the_rule_of_the_folder(world: Path) -> None:
    (world / "script.json").write_text(json.dumps({"fallback": ["I would say 2, for it is the sum"]}))
    assert evaluate_scripted(world).returncode == 0
    assert values(world)["aggregator@3"] == 0
    store.write_json(world / "answers" / "verdicts.json", {"arguments": {"fallback": "last_number"}})
    assert_refused(evaluate_scripted(world), "fallback was 'none', now 'last_number'")
    assert evaluate_scripted(world, out="other").returncode == 0
    assert values(world, "other")["aggregator@3"] == pytest.approx(1 / 3)


def test_grading_begins_at_the_prefill(world: Path) -> None:
    script = {"fallback": ["4</answer>"]}  # of no use without the <answer> that the prompt gives
    (world / "script.json").write_text(json.dumps(script))
    assert evaluate_scripted(world, "--prompt", "ssa_no_think").returncode == 0
    assert values(world)["aggregator@3"] == pytest.approx(1 / 3)


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
    assert store.read_manifest(world / "out" / "aggregator_k3")["arguments"]["prompt"] == "ssa_no_think"
    (folder / "aggregator.json").write_text("{}")
    assert_refused(evaluate(world, "--aggregator", "checkpoint", out="other"), "aggregator.json", "--prompt ssa")


def test_a_rerun_does_nothing_again_and_says_the_same(world: Path) -> None:
    first = evaluate_scripted(world)
    before = files(world / "out")
    stamp = (world / "out" / "aggregator_k3" / "answers.jsonl").stat().st_mtime_ns
    second = evaluate_scripted(world)
    done, again = "3 answers written, 0 were there", "0 answers written, 3 were there"
    assert done in first.stdout and second.returncode == 0
    assert second.stdout == first.stdout.replace(done, again)
    assert files(world / "out") == before
    assert (world / "out" / "aggregator_k3" / "answers.jsonl").stat().st_mtime_ns == stamp


def test_a_torn_run_goes_on_to_the_same_results(world: Path) -> None:
    assert evaluate_scripted(world).returncode == 0
    whole = files(world / "out")
    for name, cut in (("answers.jsonl", 40), ("verdicts.jsonl", 5)):
        path = world / "out" / "aggregator_k3" / name
        path.write_bytes(path.read_bytes()[:-cut])
    (world / "out" / "results.json").unlink()
    assert evaluate_scripted(world).returncode == 0
    assert files(world / "out") == whole


def test_a_run_that_was_killed_loses_no_answer_it_had(world: Path) -> None:
    """Killed while USC reads, 20 seconds an answer: what the aggregator wrote is not asked again."""
    script = {"fallback": ["<answer>4</answer>"]}
    (world / "script.json").write_text(json.dumps(script))
    (world / "slow.json").write_text(json.dumps({**script, "delay_s": 20}))
    more = ("--aggregator", "script.json", "--usc-model", "slow.json", "--engine", "scripted")
    command = [sys.executable, TOOL, "--answers", "answers", "--num-answers", "1", "3", "--out", "out", *more]
    process = subprocess.Popen(command, cwd=world, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (world / "out" / "usc_k1").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not (world / "out" / "results.json").exists()
    (world / "slow.json").write_text(json.dumps(script))
    done = evaluate(world, *more, num_answers=(1, 3))
    assert done.returncode == 0, done.stderr
    for k in (1, 3):
        assert f"aggregator@{k}: 0 answers written, 3 were there" in done.stdout
        assert f"usc@{k}: 3 answers written, 0 were there" in done.stdout


def test_limit_takes_the_first_problems(world: Path) -> None:
    assert evaluate(world, "--limit", "2").returncode == 0
    assert read_report(world / "out" / "results.json").num_problems == 2


def test_other_arguments_into_the_same_folder_are_refused(world: Path) -> None:
    assert evaluate_scripted(world).returncode == 0
    before = files(world / "out")
    assert_refused(evaluate_scripted(world, "--seed", "1"), "seed was 0, now 1", "new folder")
    script = (world / "script.json").read_text()
    (world / "script.json").write_text(script.replace("I see", "I say"))
    assert_refused(evaluate_scripted(world), "weights was 'sha256")
    (world / "script.json").write_text(script)
    assert_refused(evaluate_scripted(world, "--order-seed", "1"), "order_seed was 0, now 1")
    assert_refused(evaluate_scripted(world, "--limit", "2"), "limit was None, now 2")
    assert files(world / "out") == before


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
    assert_refused(evaluate(world, num_answers=(2, 0)), "num_answers=0 should be at least 1")
    assert_refused(evaluate(world, "--cut-share", "0.3"), "--aggregator")
    assert_refused(evaluate_scripted(world, "--cut-share", "30"), "--cut-share 30 is not between 0 and 1")
    usc = ("--usc-model", "script.json", "--usc-prompt", "usc_majorty")
    assert_refused(evaluate_scripted(world, *usc), "did you mean 'usc_majority'?")
    assert not (world / "out").exists()
