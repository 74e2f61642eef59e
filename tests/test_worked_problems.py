"""The study's problems: one drawn order, nested slices, and traces that are joined to them by their question."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tt_reasoning.errors import UserError
from tt_reasoning.types import problem_id
from tt_reasoning.worked_problems import draw_slice, read_traces, read_worked, replace_solutions, trace_row

DATA = Path(__file__).parent / "data"
IDS = [problem_id(str(number)) for number in range(1000)]


def draw(**size: object) -> list[str]:
    return draw_slice(IDS, str, "the ids", **size)


def test_a_slice_is_the_beginning_of_every_larger_one() -> None:
    slices = [draw(num_samples=size, held_back=100) for size in (256, 512, 900)]
    assert [len(one) for one in slices] == [256, 512, 900]
    assert slices[0] == slices[1][:256] and slices[1] == slices[2][:512]
    assert slices[2] == draw(held_back=100)


def test_the_prep_stages_slice_is_disjoint_from_all_that_leave_it_alone_and_nested_too() -> None:
    prep, full = draw(num_samples=100, from_end=True), draw(held_back=100)
    assert not set(prep) & set(full) and set(prep) | set(full) == set(IDS)
    assert draw(num_samples=30, from_end=True) == prep[-30:]


def test_the_order_is_the_seeds_and_not_the_files() -> None:
    mixed = random.Random(0).sample(IDS, len(IDS))
    assert draw_slice(mixed, str, "the ids", num_samples=50) == draw(num_samples=50) != draw(num_samples=50, seed=1)
    assert abs(sum(IDS.index(one) for one in draw(num_samples=500)) / 500 - 499.5) < 40  # of all parts of the file
    # What is added falls in between: nothing that was there changes its order.
    kept = draw_slice(IDS[:900], str, "the ids")
    assert [one for one in draw() if one in set(kept)] == kept


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"num_samples": 1001}, "num_samples=1001 is above the 1000 of the ids; lower it"),
        ({"num_samples": 901, "held_back": 100}, "num_samples=901 is above the 900 that held_back=100 leaves of"),
        ({"held_back": 1000}, "held_back=1000 leaves none of the 1000 of the ids"),
        ({"num_samples": 0}, "num_samples=0 is below 1"),
        ({"held_back": -1}, "held_back=-1 is below 0"),
        ({"num_samples": "many"}, "num_samples='many': wanted a whole number"),
        ({"num_samples": 1.5}, "num_samples=1.5: wanted a whole number"),
        ({"from_end": True, "held_back": 4}, "from_end=true takes what held_back=4 leaves alone"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_taken_is_said(size: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        draw(**size)
    assert message in str(error.value)


def test_worked_solutions_lose_calculator_marks_and_the_line_that_states_the_answer() -> None:
    ferry, stadium = read_worked("gsm8k", "train", data_files=str(DATA / "gsm8k.jsonl"))
    assert (ferry.reasoning, ferry.answer) == ("It takes 6 * 9 = 54 cars.", "54")
    assert (stadium.reasoning, stadium.answer) == ("It has 3 * 1,500 = 4,500 seats.", "4500")
    nest, rope = read_worked("asdiv", "validation", data_files=str(DATA / "asdiv.jsonl"))[:2]
    assert (nest.reasoning, rope.reasoning, rope.answer) == ("3 + 2 = 5", "1.5 / 2 = 0.75", "0.75")
    (mill,) = read_worked("mawps", "train", data_files=str(DATA / "mawps.jsonl"))
    assert (mill.reasoning, mill.answer) == ("1000 * 2 = 2000", "2000")


def test_an_answer_without_work_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "2 + 2?", "answer": "#### 4"}, {"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.reasoning for one in read_worked("gsm8k", "train", data_files=str(file))] == ["2 + 3 = 5"]
    assert "left out because their solution is the answer alone: 1" in capsys.readouterr().err
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="the solutions of all 1 problems are the answer alone"):
        read_worked("gsm8k", "train", data_files=str(file))


def test_traces_are_read_as_they_are_written_and_gsm8ks_file_is_one(tmp_path: Path) -> None:
    rows = [trace_row("2 + 1?", "First 2.\n\nThen 2 + 1 = 3.\n", "3"), trace_row("4?", "#### is no 4, but 4 is", "4")]
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(one.problem.question, one.reasoning, one.answer) for one in read_traces(str(file))] == [
        ("2 + 1?", "First 2.\n\nThen 2 + 1 = 3.", "3"),
        ("4?", "#### is no 4, but 4 is", "4"),
    ]
    assert read_traces(str(DATA / "gsm8k.jsonl"))[0].reasoning == "It takes 6 * 9 = 54 cars."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "traces.jsonl:2: not JSON"),
        ("[]", "traces.jsonl:2: not a JSON object"),
        ('{"question": "4?"}', "traces.jsonl:2: no text under 'answer'"),
        ('{"answer": "2 + 2\\n#### 4"}', "traces.jsonl:2: no text under 'question'"),
        ('{"question": "4?", "answer": 4}', "traces.jsonl:2: no text under 'answer'"),
        ('{"question": "4?", "answer": "2 + 2 = 4"}', "traces.jsonl:2: 'answer' has no '####' before the final answer"),
        ('{"question": "4?", "answer": "2 + 2\\n#### "}', "traces.jsonl:2: 'answer': the final answer is empty"),
        ('{"question": "4?", "answer": "\\n\\n#### 4"}', "traces.jsonl:2: 'answer': the reasoning is empty"),
        ('{"question": "4?", "answer": "<SOLUTION>4#### 4"}', "'answer': the reasoning holds <SOLUTION>, which marks"),
        ('{"question": "2 + 1?", "answer": "2 + 1\\n#### 3"}', "traces.jsonl:2: its question is that of"),
    ],
)
def test_a_malformed_trace_is_named_by_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(trace_row("2 + 1?", "2 + 1 = 3", "3")) + f"\n{row}\n")
    with pytest.raises(UserError) as error:
        read_traces(str(file))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_traces_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="traces_file .*none.jsonl: no such file"):
        read_traces(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl: it is empty"):
        read_traces(str(tmp_path / "empty.jsonl"))


def test_traces_replace_the_solutions_of_their_own_problems(tmp_path: Path) -> None:
    worked = read_worked("gsm8k", "train", data_files=str(DATA / "gsm8k.jsonl"))
    rows = [trace_row(one.problem.question, f"I say {one.answer}.", f"{one.answer}.0") for one in reversed(worked)]
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, trace_row("Another?", "No.", "0")]))
    traces = read_traces(str(file))
    replaced = replace_solutions(worked, traces, "t.jsonl")
    assert [one.problem for one in replaced] == [one.problem for one in worked]
    assert [(one.reasoning, one.answer) for one in replaced] == [("I say 54.", "54.0"), ("I say 4500.", "4500.0")]
    with pytest.raises(UserError, match="t.jsonl has no trace for 1 of the 2 problems of this slice, such as 'A ferry"):
        replace_solutions(worked, traces[:1], "t.jsonl")
