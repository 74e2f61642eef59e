"""Math-Shepherd labels: every outcome worked by hand, and kills that change no byte."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tools.build_step_labels import Shepherd, run_shepherd
from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.engines.base import Completion, Failure, Request, check_room
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import get_prompt, load_prompt
from tt_reasoning.shepherd import Plan, draw_rollouts, plan_prefixes, write_labels
from tt_reasoning.steps import Estimate, read_step_groups, read_steps
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

ROOT = Path(__file__).parent.parent
SAMPLING = Sampling(model="script", prompt="answer", max_new_tokens=10)
HANGS = "The Answer is: $9^{9^{9}} \\mod 7$"  # no comparison of it ends in time
FILES = ("problems.jsonl", "answers.jsonl", "verdicts.jsonl", "prefixes.jsonl", "steps.jsonl", "stats.json")

FIRST = Problem(source="tiny", split="train", question="What is 2 + 3, doubled?", reference="10")
SECOND = Problem(source="tiny", split="train", question="What is 9 + 1?", reference="10")
THIRD = Problem(source="tiny", split="train", question="What is the moon?", reference="$")

RIGHT = "2 + 3 = 5\n5 * 2 = 10\nThe Answer is: 10"
WRONG = "2 + 3 = 5\n5 + 2 = 7\nSo 7.\nThe Answer is: 7"
SLIP = "2 + 3 = 6\n6 * 2 = 12\nThe Answer is: 12"
UNJUDGED = f"9 + 1 is hard\nso is this\n{HANGS}"
ANSWERS: list[tuple[Problem, str, str]] = [
    (FIRST, RIGHT, "match"),
    (FIRST, WRONG, "mismatch"),
    (FIRST, f" {RIGHT}\n", "match"),
    (FIRST, " \n", "no_answer"),
    (FIRST, SLIP, "mismatch"),
    (SECOND, UNJUDGED, "timeout"),
    (SECOND, "The Answer is: 10", "match"),
    (THIRD, "It is far.\nIt is round.\nThe Answer is: 3", "bad_reference"),
]

TEN, SEVEN, TWELVE = (f"The Answer is: {n}" for n in (10, 7, 12))
SHARED, BEHIND, SLIPPED, HARD = "2 + 3 = 5\n", "2 + 3 = 5\n5 + 2 = 7\n", "2 + 3 = 6\n", "9 + 1 is hard\n"
OUTCOMES = {
    SHARED: ["5 * 2 = 11\nThe Answer is: 11", TEN, SEVEN, TEN],
    BEHIND: [SEVEN, SEVEN, "and so on and on and on and on and on", SEVEN],  # the third is cut, and states nothing
    SLIPPED: [HANGS, TWELVE, f"{TEN}\nand so on and on and on and on", TWELVE],  # the third is cut, but states it
    HARD: [HANGS] * 4,
}
JUDGED = {prefix: ["I pass" if text == HANGS else text for text in texts] for prefix, texts in OUTCOMES.items()}


def write_answers(folder: Path, answers: Sequence[tuple[Problem, str, str]] = ANSWERS, prompt: str = "answer") -> Path:
    """A folder of graded answers."""
    sampling = Sampling(model="m", prompt=prompt)
    with store.open_run(folder, "generate_answers", {"template": get_prompt(prompt).template()}):
        store.append_records(folder / "problems.jsonl", dict.fromkeys(problem for problem, _, _ in answers))
        for index, (problem, text, reason) in enumerate(answers):
            answer = Answer(
                id=sampling.answer_id(problem.id, index), problem_id=problem.id, sample_index=index, text=text,
                num_tokens=9, finish_reason="stop", sampling=sampling,
            )  # fmt: skip
            correct = {"match": True, "mismatch": False, "no_answer": False}.get(reason)
            verdict = Verdict(answer_id=answer.id, extracted=None, correct=correct, reason=reason)
            store.append_records(folder / "answers.jsonl", [answer])
            store.append_records(folder / "verdicts.jsonl", [verdict])
    return folder


class Script(ScriptedEngine):
    """Continues a prefix with the text of its rollout; notes the prefixes of each call."""

    def __init__(self, plan: Plan, outcomes: Mapping[str, Sequence[str]]) -> None:
        self.calls: list[list[str]] = []
        index_of = {SAMPLING.request_seed(prefix, index): index for prefix in plan.prefixes for index in range(8)}
        prompt = get_prompt("answer")
        questions = [prompt.render(problem.question) for problem, _ in plan.groups]

        def text(request: Request) -> str:
            *chat, begun = request.prompt
            assert chat in questions and begun["role"] == "assistant"
            return outcomes[begun["content"]][index_of[request.seed]]

        super().__init__(text)

    def stream(self, requests: Sequence[Request]):
        self.calls.append([request.prompt[-1]["content"] for request in requests])
        yield from super().stream(requests)


def label(
    answers: Path, out: Path, estimate: Estimate, outcomes: Mapping[str, Sequence[str]] = JUDGED, chunk_size: int = 9
) -> tuple[Script, dict]:
    """Label with four rollouts; the engine, and what stats.json says."""
    plan = plan_prefixes(open_answers(answers))
    engine = Script(plan, outcomes)
    with store.open_run(out, "shepherd", {}) as folder, Grader(timeout_s=1) as grader:
        draw_rollouts(plan, SAMPLING, 4, estimate, get_prompt("answer"), lambda: engine, grader, folder, chunk_size)
        return engine, write_labels(plan, folder, estimate)


def labels(folder: Path) -> dict[str, list[tuple[int | None, float | None]]]:
    """Rating and score of every step, by the text of its answer."""
    return {
        answer.text: [(step.rating, step.score) for step in steps]
        for _, group in read_step_groups(folder)
        for answer, steps in group
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_answers(tmp_path_factory.mktemp("answers") / "demo")


@pytest.fixture(scope="module")
def soft(answers: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Script, dict]:
    out = tmp_path_factory.mktemp("soft") / "steps"
    return out, *label(answers, out, "soft", OUTCOMES)


def test_both_estimates_come_from_the_rollouts_and_the_last_step_has_its_answers_verdict(
    soft: tuple[Path, Script, dict],
) -> None:
    assert labels(soft[0]) == {
        RIGHT: [(1, 2 / 4), (1, 1.0)],
        WRONG: [(1, 2 / 4), (-1, 0 / 4), (-1, 0.0)],
        SLIP: [(1, 1 / 3), (-1, 0.0)],  # one of four could not be judged
        UNJUDGED: [(None, None), (None, None)],
        TEN: [(1, 1.0)],
    }


def test_what_was_found_and_left_out_is_counted(soft: tuple[Path, Script, dict]) -> None:
    out, _, stats = soft
    assert stats == json.loads((out / "stats.json").read_text()) == {
        "problems": 2,
        "answers": 5,
        "left_out": {"repeated": 1, "blank": 1, "bad_reference": 1},
        "prefixes": 4,
        "too_long": 0,
        "rollouts": 16,
        "unfinished": 2,
        "unfinished_share": 0.125,
        "not_judged": 5,
        "correct": 3,
        "steps": {"steps": 10, "good": 5, "bad": 3, "unlabelled": 2, "mean_score": 0.4167},  # (4/3 + 0 + 2) / 8
        "by_position": [
            {"steps": 4, "good": 3, "bad": 0, "unlabelled": 1, "mean_score": 0.4444},
            {"steps": 1, "good": 0, "bad": 1, "unlabelled": 0, "mean_score": 0.0},
        ],
        "last": {"steps": 5, "good": 2, "bad": 2, "unlabelled": 1, "mean_score": 0.5},
    }
    counted = ("rollouts", "finished", "judged", "correct")
    rows = list(store.read_rows(out / "prefixes.jsonl"))
    assert [[row[name] for name in counted] for row in rows] == [[4, 4, 4, 2], [4, 3, 4, 0], [4, 3, 3, 1], [4, 4, 0, 0]]
    assert [[index for _, index in row["steps"]] for row in rows] == [[0, 0], [1], [0], [0]]


def test_a_prefix_is_rolled_out_once_and_those_of_a_problem_in_one_call(
    answers: Path, soft: tuple[Path, Script, dict], tmp_path: Path
) -> None:
    of_first = [prefix for prefix in (SHARED, BEHIND, SLIPPED) for _ in range(4)]
    assert soft[1].calls == [of_first + [HARD] * 4]
    assert label(answers, tmp_path / "small", "soft", chunk_size=1)[0].calls == [of_first, [HARD] * 4]


def test_the_hard_estimate_asks_no_more_behind_a_right_rollout_and_rates_alike(answers: Path, tmp_path: Path) -> None:
    engine, stats = label(answers, tmp_path / "steps", "hard")
    assert engine.calls == [
        [SHARED, BEHIND, SLIPPED, HARD],
        [SHARED, BEHIND, SLIPPED, HARD],
        [BEHIND, BEHIND, SLIPPED, SLIPPED, HARD, HARD],
    ]
    assert stats["rollouts"] == 14
    label(answers, tmp_path / "soft", "soft")
    ratings = {text: [(rating, None) for rating, _ in found] for text, found in labels(tmp_path / "soft").items()}
    assert labels(tmp_path / "steps") == ratings


@pytest.mark.parametrize("estimate", ["hard", "soft"])
def test_a_run_cut_anywhere_ends_with_the_same_bytes(answers: Path, tmp_path: Path, estimate: Estimate) -> None:
    label(answers, tmp_path / "whole", estimate)
    whole = contents(tmp_path / "whole")
    rollouts = whole["rollouts.jsonl"].splitlines(keepends=True)
    verdicts = whole["rollout_verdicts.jsonl"].splitlines(keepends=True)
    for kept in range(len(rollouts)):
        for graded in {0, kept // 2, kept}:
            cut = tmp_path / f"cut{kept}_{graded}"
            shutil.copytree(tmp_path / "whole", cut)
            for name in FILES:
                (cut / name).unlink()
            (cut / "rollouts.jsonl").write_bytes(b"".join(rollouts[:kept]) + rollouts[kept][:40])
            (cut / "rollout_verdicts.jsonl").write_bytes(b"".join(verdicts[:graded]) + verdicts[graded][:9])
            label(answers, cut, estimate)
            assert contents(cut) == whole


def test_more_problems_are_added_to_what_is_there(answers: Path, tmp_path: Path) -> None:
    first = plan_prefixes(open_answers(answers), limit=1)
    both = plan_prefixes(open_answers(answers))
    assert [p.question for p, _ in first.groups] == [FIRST.question] and len(both.groups) == 2
    asked = []
    with store.open_run(tmp_path / "steps", "shepherd", {}) as folder, Grader(timeout_s=1) as grader:
        for plan in (first, both, first):
            engine = Script(plan, JUDGED)
            written = draw_rollouts(
                plan, SAMPLING, 4, "soft", get_prompt("answer"), lambda engine=engine: engine, grader, folder, 1
            )
            write_labels(plan, folder, "soft")
            asked.append((written, len(read_steps(folder / "steps.jsonl"))))
    assert asked == [(12, 3), (4, 5), (0, 3)]


class Narrow(Script):
    """Has room for nothing longer than ``limit`` characters of an answer."""

    limit = len(SHARED)

    def stream(self, requests: Sequence[Request]):
        fitting = [i for i, request in enumerate(requests) if self.refuse(request) is None]
        found: dict[int, Completion | Failure] = {
            fitting[i]: completion for i, completion in super().stream([requests[i] for i in fitting])
        }
        yield from ((i, found.get(i) or self.refuse(request)) for i, request in enumerate(requests))

    def refuse(self, request: Request) -> Failure | None:
        return check_room(len(request.prompt[-1]["content"]), 1, self.limit + 1)


def test_a_prefix_too_long_for_the_engine_has_no_label_and_is_counted(answers: Path, tmp_path: Path) -> None:
    plan = plan_prefixes(open_answers(answers), limit=1)
    for estimate in ("hard", "soft"):
        with store.open_run(tmp_path / estimate, "shepherd", {}) as folder, Grader() as grader:
            engine = Narrow(plan, JUDGED)
            draw_rollouts(plan, SAMPLING, 4, estimate, get_prompt("answer"), lambda: engine, grader, folder, 1)  # noqa: B023
            stats = write_labels(plan, folder, estimate)
        assert stats["too_long"] == 1
        assert [rating for rating, _ in labels(folder)[WRONG]] == [1, None, -1]
    engine.limit = 0
    with store.open_run(tmp_path / "none", "shepherd", {}) as folder, Grader() as grader:
        with pytest.raises(UserError, match="12 answers are missing: 12 too_long"):
            draw_rollouts(plan, SAMPLING, 4, "soft", get_prompt("answer"), lambda: engine, grader, folder, 1)
        assert not (folder / "steps.jsonl").exists()


# --- the tool --------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(answers: Path, tmp_path: Path) -> Shepherd:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"answers": {BEHIND: [SEVEN]}, "fallback": [TEN, SEVEN]}))
    return Shepherd(
        answers=answers, model=str(script), out=tmp_path / "steps", rollouts=4, estimate="soft", limit=1,
        engine=EngineOptions(name="scripted"),
    )  # fmt: skip


def test_a_run_of_the_tool_makes_a_folder_of_steps_and_says_when_it_is_complete(
    arguments: Shepherd, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_shepherd(arguments)
    assert said.startswith("3 answers of 1 problems, 7 steps, ")
    assert "left out: 1 repeated 1 blank; 12 rollouts, 0.0% unfinished (12 of them new)" in said
    assert "warning" not in capsys.readouterr().err
    found = labels(arguments.out)
    assert list(found) == [RIGHT, WRONG, SLIP] and found[WRONG][1:] == [(-1, 0.0), (-1, 0.0)]
    before = contents(arguments.out)
    assert run_shepherd(arguments).startswith("already complete: 3 answers of 1 problems, 7 steps, ")
    assert contents(arguments.out) == before
    with pytest.raises(UserError, match="estimate was 'soft', now 'hard'"):
        run_shepherd(replace(arguments, estimate="hard"))
    assert contents(arguments.out) == before


def test_labels_of_one_class_and_many_cut_rollouts_are_warned_of(
    arguments: Shepherd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_answers(tmp_path / "wrong", [(FIRST, SLIP, "mismatch")])
    assert "0.0% good" in run_shepherd(replace(arguments, answers=folder, max_new_tokens=3))
    said = capsys.readouterr().err
    assert "warning: all 2 steps are bad: nothing to learn from" in said
    assert "warning: 100.0% of 4 rollouts were cut at --max-new-tokens 3" in said


def test_answers_to_a_prompt_from_a_file_go_on_under_it_and_stay_readable(arguments: Shepherd, tmp_path: Path) -> None:
    file = tmp_path / "prompt.yaml"
    file.write_text("user: 'Q: {question}\n\n  A:'\nchat: false\nprefill: ' Well,'\nstop: [';']\n")
    prompt = load_prompt(str(file))
    folder = write_answers(tmp_path / "plain", [(FIRST, f"\n{SLIP}", "mismatch")])
    sampling = Sampling(model="m", prompt=prompt.name)
    answer = Answer(
        id="a", problem_id=FIRST.id, sample_index=0, text=f"\n{SLIP}", num_tokens=9, finish_reason="stop",
        sampling=sampling,
    )  # fmt: skip
    store.write_json(folder / "manifest.json", {"tool": "t", "arguments": {"template": prompt.template()}})
    store.write_records(folder / "answers.jsonl", [answer])
    verdict = Verdict(answer_id="a", extracted=None, correct=False, reason="mismatch")
    store.write_records(folder / "verdicts.jsonl", [verdict])
    asked = f"{prompt.user.replace('{question}', FIRST.question)} Well,\n2 + 3 = 6\n"
    Path(arguments.model).write_text(json.dumps({"answers": {asked: ["The Answer is: 10; and more."]}}))
    run_shepherd(replace(arguments, answers=folder))
    assert labels(arguments.out)[answer.text] == [(1, 1.0), (-1, 0.0)]
    (rollout, *_) = store.read_records(arguments.out / "rollouts.jsonl", Answer)
    assert rollout.text == "The Answer is: 10;"
    assert get_prompt(prompt.name, arguments.out) == prompt


def test_a_rollout_ends_at_a_stop_string_that_its_prefix_begins(arguments: Shepherd, tmp_path: Path) -> None:
    """The engine looks for "\\n\\n" in the rollout alone; the prefix ends with the first of the two."""
    file = tmp_path / "prompt.yaml"
    file.write_text('user: "{question}\\n"\nchat: false\nstop: ["\\n\\n"]\n')
    folder = write_answers(tmp_path / "plain", [(FIRST, SLIP, "mismatch")])
    for text, rating in ((f"\n{TEN}", -1), (TEN, 1)):
        Path(arguments.model).write_text(json.dumps({"fallback": [text]}))
        run_shepherd(replace(arguments, answers=folder, prompt=str(file), out=tmp_path / f"{rating}"))
        assert labels(tmp_path / f"{rating}")[SLIP][0][0] == rating


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": 0}, "--rollouts 0: give at least 1"),
        ({"temperature": 0.0}, "--temperature 0 gives 4 times the same rollout"),
        ({"top_p": 1.5}, "--top-p 1.5 is not above 0"),
        ({"prompt": "answr"}, "did you mean 'answer'"),
        ({"model": "nowhere.json"}, "no such file: nowhere.json"),
        ({"answers": Path("nowhere")}, "no such folder: nowhere"),
    ],
)
def test_a_mistake_is_told_before_a_folder_is_made(arguments: Shepherd, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_shepherd(replace(arguments, **changes))
    assert not arguments.out.exists()


def test_answers_that_cannot_be_labelled_are_refused(arguments: Shepherd, tmp_path: Path) -> None:
    blank = write_answers(tmp_path / "blank", [(FIRST, " ", "no_answer")])
    with pytest.raises(UserError, match="no answer to label: 1 blank"):
        run_shepherd(replace(arguments, answers=blank))
    code = write_answers(tmp_path / "code", [(replace(FIRST, kind="code"), RIGHT, "match")])
    with pytest.raises(UserError, match="asks for code"):
        run_shepherd(replace(arguments, answers=code))
    with (blank / "verdicts.jsonl").open("w"), pytest.raises(UserError, match="has no verdicts"):
        run_shepherd(replace(arguments, answers=blank))


def test_a_killed_run_of_the_tool_goes_on_to_the_same_folder(arguments: Shepherd, tmp_path: Path) -> None:
    script = json.loads(Path(arguments.model).read_text()) | {"delay_s": 0.3}
    slow = replace(arguments, model=str(tmp_path / "slow.json"), chunk_size=1)
    Path(slow.model).write_text(json.dumps(script))
    command = [
        sys.executable, str(ROOT / "tools" / "build_step_labels.py"), "shepherd", "--engine", "scripted",
        "--answers", str(slow.answers), "--model", slow.model, "--out", str(slow.out), "--rollouts", "4",
        "--estimate", "soft", "--limit", "1", "--chunk-size", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    path = slow.out / "rollouts.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(list(store.read_records(path, Answer))) < 12 and not (slow.out / "steps.jsonl").exists()
    Path(slow.model).write_text(json.dumps(script | {"delay_s": 0}))
    assert "12 rollouts" in run_shepherd(slow)
    run_shepherd(replace(slow, out=tmp_path / "whole"))
    assert contents(slow.out) == contents(tmp_path / "whole")
