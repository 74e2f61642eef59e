"""tools/collect_qsharp.py: kills at every write, shards, mistakes, and a first round by the native engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_byte_tokenizer, write_tiny_model
from tiny_values import write_value_model

from tools.collect_qsharp import Arguments, _choose_split, main
from tt_reasoning.answer_sets import open_answers, require_verdicts
from tt_reasoning.datasets import qsharp_dataset
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.options import EngineOptions, GuideOptions
from tt_reasoning.engines.tune import TuneEngine
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import get_prompt
from tt_reasoning.qsharp import Example, assign_sides, read_sides
from tt_reasoning.store import read_manifest, read_records, read_rows, write_records
from tt_reasoning.types import Answer, Guidance, Problem, Verdict

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "collect_qsharp.py"
NUM_PROBLEMS, NUM_SAMPLES = 5, 3
LAST = ("cuts.jsonl", "stats.json", "examples.jsonl")
LINES = ("answers.jsonl", "verdicts.jsonl", "rollouts.jsonl", "rollout_verdicts.jsonl")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """A scripted reference that is sometimes right, with one token a byte."""
    (tmp_path / "tokenizer").mkdir()
    write_byte_tokenizer(tmp_path / "tokenizer")
    problems = load_problems("quickstart", "train", limit=NUM_PROBLEMS)
    texts = [f"It costs 5 €.\nThe Answer is: {problem.reference}" for problem in problems]
    (tmp_path / "script.json").write_text(json.dumps({"fallback": [*texts, "I do not know."]}))
    return Arguments(
        ref_model="script.json", tokenizer=Path("tokenizer"), dataset="quickstart", limit=NUM_PROBLEMS,
        num_samples=NUM_SAMPLES, chunk_size=2, rounds_file=Path("rounds/1"), eval_share=0.4, out=Path("r1"),
        engine=EngineOptions(name="scripted"),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def examples_of(folder: Path) -> list[Example]:
    return list(read_records(folder / "examples.jsonl", Example))


def test_a_run_leaves_a_folder_of_graded_answers_and_an_example_of_each(arguments: Arguments) -> None:
    said = main(arguments)
    problems = list(read_records(arguments.out / "problems.jsonl", Problem))
    assert problems == load_problems("quickstart", "train", limit=NUM_PROBLEMS)
    require_verdicts(open_answers(arguments.out))
    settings = json.loads((arguments.out / "verdicts.json").read_text())
    assert settings["arguments"] == {"timeout_s": 5.0, "fallback": "none", "percent_as_fraction": False}
    answers = {answer.id: answer for answer in read_records(arguments.out / "answers.jsonl", Answer)}
    rollouts = {answer.problem_id: answer for answer in read_records(arguments.out / "rollouts.jsonl", Answer)}
    examples, cuts = examples_of(arguments.out), list(read_rows(arguments.out / "cuts.jsonl"))
    assert len(answers) == len(examples) == NUM_PROBLEMS * NUM_SAMPLES == len({example.id for example in examples})
    with Grader() as grader:
        for example, cut in zip(examples, cuts, strict=True):
            roll_in = answers[cut["answer_id"]]
            reference = next(problem.reference for problem in problems if problem.id == example.problem_id)
            assert example.begun == roll_in.text[: cut["end"]] and example.whole == cut["whole"]
            assert cut["num_tokens"] == len(example.begun.encode()) + example.whole
            assert cut["total"] == len(roll_in.text.encode()) + 1
            assert example.text == (rollouts[cut["id"]].text if not example.whole else "")
            assert example.correct == grader.grade(example.begun + example.text, reference).correct
    stats = json.loads((arguments.out / "stats.json").read_text())
    shares = [
        [example.correct for example in examples if example.split == side] for side in ("train", "eval")
    ]
    assert [stats[side]["correct"] for side in ("train", "eval")] == [round(sum(s) / len(s), 4) for s in shares]
    assert [stats[side]["examples"] for side in ("train", "eval")] == [len(share) for share in shares]
    whole = sum(example.whole for example in examples)
    assert (stats["whole"], stats["rollouts"]) == (whole, len(examples) - whole)
    assert said.endswith(f"({15 + 15 - whole} answers new): r1")


def test_a_complete_run_says_so_changes_nothing_and_refuses_another(arguments: Arguments) -> None:
    main(arguments)
    before = contents(arguments.out)
    assert main(arguments).startswith("already complete: ")
    for changes, message in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"num_samples": 4}, "num_samples was 3, now 4"),
        ({"rounds_file": None}, "rounds_file was 'rounds/1', now None"),
    ):
        with pytest.raises(UserError, match=message):
            main(replace(arguments, **changes))
    assert contents(arguments.out) == before


def run_killed(number: int, arguments: Arguments) -> bool:
    """Run in a process that is killed when it would sync a file for the ``number``-th time; whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            left, sync = [number], os.fsync

            def count_down(descriptor: int) -> None:
                left[0] -= 1
                os.kill(os.getpid(), signal.SIGKILL) if left[0] == 0 else sync(descriptor)

            os.fsync = count_down
            main(arguments)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_write_the_same_command_ends_with_the_same_bytes(arguments: Arguments, tmp_path: Path) -> None:
    main(arguments)
    whole, sides = contents(arguments.out), Path("rounds/1").read_bytes()
    for number in range(1, 100):
        shutil.rmtree(arguments.out)
        shutil.rmtree("rounds")
        if not run_killed(number, arguments):
            break
        assert not (arguments.out / "examples.jsonl").exists()
        main(arguments)
        assert contents(arguments.out) == whole and Path("rounds/1").read_bytes() == sides
    assert 12 < number < 99  # every file, and every chunk of those that grow


def test_cut_off_within_any_line_the_same_command_ends_with_the_same_bytes(arguments: Arguments) -> None:
    main(arguments)
    whole = contents(arguments.out)
    for position, name in enumerate(LINES):
        lines = whole[name].splitlines(keepends=True)
        for kept in (0, len(lines) // 2, len(lines) - 1):
            for later in (*LINES[position + 1 :], *LAST):
                (arguments.out / later).unlink()
            (arguments.out / name).write_bytes(b"".join(lines[:kept]) + lines[kept][:25])
            main(arguments)
            assert contents(arguments.out) == whole


def test_shards_and_rounds_hold_out_the_same_problems_and_train_together(arguments: Arguments) -> None:
    main(arguments)
    sides = read_sides(Path("rounds/1"))
    assert sorted(sides.values()) == sorted(assign_sides(sides, 0.4, 0).values()) and len(set(sides.values())) == 2
    shards = [replace(arguments, shard=f"{rank}/2", out=Path(f"s{rank}"), rounds_file=None) for rank in (1, 2)]
    for shard in shards:
        main(shard)
    in_shards = [example for shard in shards for example in examples_of(shard.out)]
    whole = examples_of(arguments.out)
    assert sorted(in_shards, key=lambda e: e.id) == sorted(whole, key=lambda e: e.id)
    second = replace(arguments, out=Path("r2"), seed=1, eval_share=0.0, split_seed=9, limit=NUM_PROBLEMS + 1)
    main(second)
    assert read_sides(Path("rounds/1")).items() > sides.items()
    assert all(sides.get(example.problem_id, "train") == example.split for example in examples_of(second.out))
    tokenizer = ChatTokenizer("tokenizer")
    data = qsharp_dataset(tokenizer, ["r1", "r2"], drop_no_variation=False)
    held = {group.problem_id for group in data.held_out}
    assert held == {name for name, side in sides.items() if side == "eval"}
    assert not held & {group.problem_id for group in data.train}
    main(replace(second, out=Path("r3"), rounds_file=None))
    with pytest.raises(UserError, match="is eval in r1, train in r3"):
        qsharp_dataset(tokenizer, ["r1", "r3"])


def test_labels_of_one_class_and_answers_cut_at_their_limit_are_warned_of(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    main(replace(arguments, max_new_tokens=2, eval_share=0.0, rounds_file=None))
    said = capsys.readouterr().err
    assert "warning: 100.0% of 15 roll-ins were cut at --max-new-tokens 2" in said
    assert "roll-outs were cut at --max-new-tokens 2" in said
    assert "warning: all 15 examples to train on are wrong: nothing to learn from" in said
    assert "warning: the draw left no problem to hold out" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"temperature": 0.0}, "--temperature 0 gives 3 times the same roll-in"),
        ({"top_p": 0.0}, "--top-p 0.0 is not above 0"),
        ({"eval_share": 1.0}, "--eval-share 1 is not from 0 to below 1"),
        ({"tokenizer": None}, "--ref-model script.json is no folder with a tokenizer.json"),
        ({"tokenizer": Path("nowhere")}, "nowhere holds no tokenizer.json"),
        ({"ref_model": "nowhere.json"}, "no such file: nowhere.json"),
        ({"prompt": "answr"}, "did you mean 'answer'"),
        ({"dataset": "quickstrt"}, "did you mean 'quickstart'"),
        ({"end": 3}, "--end 3 and --limit 5 both say where to stop"),
        ({"shard": "3/2"}, "--shard 3/2: give i/n"),
        ({"shard": "9/9"}, "--shard 9/9 leaves no problem"),
        ({"rounds_file": Path("script.json")}, "--rounds-file script.json: wanted"),
    ],
)
def test_a_mistake_is_told_before_a_folder_is_made(arguments: Arguments, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(replace(arguments, **changes))
    assert not arguments.out.exists() and not Path("rounds").exists()


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(arguments: Arguments) -> None:
    words = ["--ref-model", "script.json", "--dataset", "quickstart", "--engine", "scripted", "--out", "r1"]
    done = subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: --ref-model script.json is no folder")


def test_the_first_round_by_the_native_engine_goes_on_as_the_reference_does(tmp_path: Path) -> None:
    """A random model: what it says is noise, but of the reference's own tokens, and nothing is lost on the way."""
    model = write_tiny_model(tmp_path / "model")
    arguments = Arguments(
        ref_model=str(model), dataset="quickstart", limit=3, num_samples=4, max_new_tokens=12, temperature=1.0,
        prompt="steps", eval_share=0.3, out=Path("r1"), engine=EngineOptions(name="tune"),
    )  # fmt: skip
    main(arguments)
    prompt, tokenizer = get_prompt("steps"), ChatTokenizer(model)
    problems = {problem.id: problem for problem in read_records(arguments.out / "problems.jsonl", Problem)}
    examples = examples_of(arguments.out)
    (sampling,) = open_answers(arguments.out).samplings
    rolled = [example for example in examples if not example.whole]
    assert len(examples) == 12 and len(rolled) > 6
    engine = TuneEngine(str(model))
    alone = engine.generate(
        [
            Request(
                prompt=prompt.render(problems[example.problem_id].question, example.begun), temperature=1.0, top_p=0.9,
                max_new_tokens=12, seed=sampling.request_seed(example.id, 0),
            )
            for example in rolled
        ]
    )  # fmt: skip
    assert [completion.text for completion in alone] == [example.text for example in rolled]
    assert read_manifest("r1")["arguments"]["template"] == prompt.template()
    with pytest.raises(UserError, match="no_variation"):  # a random model is never right
        qsharp_dataset(tokenizer, ["r1"])
    changed = [replace(example, correct=index % 2 == 0) for index, example in enumerate(examples)]
    write_records(arguments.out / "examples.jsonl", changed)
    data = qsharp_dataset(tokenizer, ["r1"], max_tokens=4096)
    groups = [*data.train, *data.held_out]
    assert sum(len(group.solutions) for group in groups) + data.left_out.no_variation == 12
    by_id = {example.id: example for example in changed}
    for group in groups:
        asked = tokenizer.encode_prompt(prompt.render(problems[group.problem_id].question))
        assert group.prompt_tokens == asked
        for solution in group.solutions:
            example = by_id[solution.answer_id]
            behind = tokenizer.decode(solution.tokens[solution.begin + 1 :])
            assert behind == example.text and solution.targets == [float(example.correct)] * len(solution.reads)


def test_a_later_round_is_guided_in_its_roll_ins_alone(tmp_path: Path) -> None:
    model, value = write_tiny_model(tmp_path / "model"), write_value_model(tmp_path / "value")
    first = Arguments(
        ref_model=str(model), dataset="quickstart", limit=2, num_samples=2, max_new_tokens=8, prompt="steps",
        eval_share=0.3, out=Path("r1"), engine=EngineOptions(name="tune"),
    )  # fmt: skip
    engine = EngineOptions(name="tune", value_model=str(value))
    steered = replace(first, engine=engine, guide=GuideOptions(eta=(50.0,)), out=Path("r2"))
    still = replace(steered, guide=GuideOptions(eta=(0.0,)), out=Path("still"))
    texts = {}
    for arguments in (first, steered, still):
        main(arguments)
        texts[arguments.out.name] = [a.text for a in read_records(arguments.out / "answers.jsonl", Answer)]
    assert texts["still"] == texts["r1"] != texts["r2"]
    wanted = Guidance(value_model=str(value), eta=50.0, top_k=20, rule="bernoulli", outside="exclude")
    roll_ins = list(read_records(steered.out / "answers.jsonl", Answer))
    assert {answer.sampling.guidance for answer in roll_ins} == {wanted}
    assert all(answer.divergence.whole > 0 for answer in roll_ins)
    rollouts = list(read_records(steered.out / "rollouts.jsonl", Answer))
    assert {(answer.sampling.guidance, answer.divergence) for answer in rollouts} == {(None, None)}
    whole = contents(steered.out)
    for name in ("answers.jsonl", "rollouts.jsonl"):
        for later in (*LINES[LINES.index(name) + 1 :], *LAST):
            (steered.out / later).unlink()
        (steered.out / name).write_bytes(whole[name][: len(whole[name]) // 2])
        main(steered)
        assert contents(steered.out) == whole
    alone = replace(steered, engine=EngineOptions(name="guided", value_model=str(value)), out=Path("alone"))
    main(alone)  # the guided engine rolls out too: the same, as it does so unguided
    assert contents(alone.out)["examples.jsonl"] == whole["examples.jsonl"]
    for changes, message in (
        ({"guide": GuideOptions(eta=(1.0, 5.0))}, "--eta 1 5: a round is steered by one"),
        ({"guide": GuideOptions()}, "--value-model steers with some strength; say which"),
        ({"engine": EngineOptions(name="tune"), "guide": steered.guide}, "--eta is about a value model that steers"),
        ({"prompt": "few_shot"}, "learned behind prompt steps, not few_shot"),
        ({"engine": EngineOptions(name="tune", value_model="model")}, "model has no value.json: not a value model"),
    ):
        with pytest.raises(UserError, match=message):
            main(replace(steered, **{"out": Path("never")} | changes))
        assert not Path("never").exists()


def test_every_roll_out_has_its_verdict(arguments: Arguments) -> None:
    main(arguments)
    rollouts = [answer.id for answer in read_records(arguments.out / "rollouts.jsonl", Answer)]
    verdicts = read_records(arguments.out / "rollout_verdicts.jsonl", Verdict)
    assert [verdict.answer_id for verdict in verdicts] == rollouts


def test_train_is_the_only_split_that_a_benchmark_has(arguments: Arguments) -> None:
    """ASDiv is published as a single split, validation; GSM8K has a train."""
    wanted = (("asdiv", "train", "validation"), ("asdiv", "test", "test"), ("gsm8k", "train", "train"))
    for dataset, asked, taken in wanted:
        assert _choose_split(replace(arguments, dataset=dataset, split=asked, data_files=None)) == taken
    assert _choose_split(replace(arguments, dataset="asdiv", split="train", data_files="rows.jsonl")) == "train"
