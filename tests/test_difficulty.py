"""Levels of problems: what is one, whose reply decides, what is read from where, and what the bounds keep."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from tt_reasoning import difficulty
from tt_reasoning.difficulty import (
    REPLIES,
    Label,
    Unlabelled,
    keep_levels,
    label_problems,
    read_level,
    read_levels,
    read_reply,
    write_labels,
)
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import PROMPTS, get_prompt
from tt_reasoning.store import read_records, write_records
from tt_reasoning.types import Answer, Problem, Sampling

SAMPLINGS = [Sampling(model="script", prompt="difficulty", seed=seed) for seed in range(3)]


def make_problems(*questions: str) -> list[Problem]:
    return [Problem(source="s", split="train", question=text, reference="1", category="c") for text in questions]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("One equation.\n[[2]]", 2.0),
        ("[[10]]", 10.0),
        ("[[1]]", 1.0),
        ("[[ 6.5 ]] is it", 6.5),
        ("[[.5]]", "out_of_range"),
        ("[[0]]", "out_of_range"),
        ("[[11]]", "out_of_range"),
        ("[[-4]]", "out_of_range"),
        ("[[10.5]]", "out_of_range"),
        ("[[4]], as said: [[4.0]]", 4.0),
        ("[[4]] or [[5]]", "ambiguous"),
        ("[[5]], not [[11]]", "ambiguous"),
        ("<think>[[3]]? Rather [[7]].</think> [[8]]", 8.0),
        ("<think>[[3]]</think> hard", "no_level"),
        ("[[level 5]]", "no_level"),
        ("[[5/10]]", "no_level"),
        ("[[1e1]]", "no_level"),
        ("[[five]]", "no_level"),
        ("[5]", "no_level"),
        ("5", "no_level"),
        ("[[5]", "no_level"),
        ("[[٥]", "no_level"),
        ("", "no_level"),
        ("[[" + "9" * 400 + "]]", "out_of_range"),
    ],
)
def test_only_one_number_from_1_to_10_in_double_brackets_is_a_level(text: str, level: float | str) -> None:
    assert read_level(text) == level


def test_a_reply_that_was_cut_has_no_level() -> None:
    answer = Answer(
        id="a", problem_id="p", sample_index=0, text="[[5]] or", num_tokens=2, finish_reason="length",
        sampling=SAMPLINGS[0],
    )  # fmt: skip
    assert read_reply(answer) == "truncated"


def test_the_scale_names_every_level_with_a_problem_and_asks_in_the_form_that_is_read() -> None:
    prompt = PROMPTS["difficulty"]
    lines = prompt.system.splitlines()
    starts = [line.partition(":")[0] for line in lines if line.partition(":")[0].isdecimal()]
    assert starts == [str(level) for level in range(1, 11)]
    assert all(lines[lines.index(line) + 1].startswith("   ") for line in lines if line.partition(":")[0].isdecimal())
    system, user = prompt.render("What is 2 + 2?")
    assert system["role"] == "system" and user["content"].startswith("What is 2 + 2?\n")
    assert read_level("such as [[4]]") == 4 and "such as [[4]] or [[6.5]]" in user["content"]


def test_only_problems_without_a_level_are_asked_again_and_the_first_level_counts(tmp_path: Path) -> None:
    problems = make_problems("easy", "late", "never")
    asked: list[tuple[str, int]] = []

    def reply(request: Request) -> str:
        question = request.prompt[-1]["content"].split("\n")[0]
        number = sum(question == other for other, _ in asked)
        asked.append((question, request.seed))
        return script[question][number]

    script = {"easy": ["[[2]]"], "late": ["[[3]] or [[4]]", "[[4.5]]"], "never": ["no", "[[0]]", "[[12]]"]}
    prompt = get_prompt("difficulty")
    counts = label_problems(problems, SAMPLINGS, lambda: ScriptedEngine(reply), prompt, tmp_path, 2)
    assert [question for question, _ in asked] == ["easy", "late", "never", "late", "never", "never"]
    assert len({seed for _, seed in asked}) == 6 and counts.written == 6 and not counts.failed

    found = write_labels(problems, tmp_path)
    labels = list(read_records(tmp_path / "labels.jsonl", Label))
    assert [(row.problem, row.level, row.tries) for row in labels] == [("easy", 2.0, 1), ("late", 4.5, 2)]
    (row,) = read_records(tmp_path / "unlabelled.jsonl", Unlabelled)
    assert (row.problem, row.reason, row.tries, row.reply) == ("never", "out_of_range", 3, "[[12]]")
    replies = {answer.id: answer.text for answer in read_records(tmp_path / REPLIES, Answer)}
    assert replies[labels[1].answer_id] == "[[4.5]]" and replies[row.answer_id] == "[[12]]"
    assert found.describe() == json.loads((tmp_path / "stats.json").read_text()) == {
        "num_problems": 3, "num_labelled": 2, "levels": {"2": 1, "4.5": 1},
        "unlabelled": {"truncated": 0, "no_level": 0, "out_of_range": 1, "ambiguous": 0},
        "missing": 0, "tries": 6, "num_tokens": 8,
    }  # fmt: skip


def test_a_problem_without_a_reply_is_missing_and_in_neither_file(tmp_path: Path) -> None:
    problems = make_problems("asked", "new")
    label_problems(problems[:1], SAMPLINGS, lambda: ScriptedEngine({"fallback": ["[[3]]"]}), get_prompt("difficulty"),
                   tmp_path, 2)  # fmt: skip
    assert write_labels(problems, tmp_path).missing == 1
    assert [row.problem for row in read_records(tmp_path / "labels.jsonl", Label)] == ["asked"]
    assert not list(read_records(tmp_path / "unlabelled.jsonl", Unlabelled))


def test_levels_are_read_by_id_or_by_question_and_what_is_none_is_left_out(tmp_path: Path, capsys) -> None:
    easy, hard, odd = make_problems("easy", "hard", "odd")
    published = [
        {"problem": " easy\n", "gpt_difficulty_parsed": 2},
        {"problem": "hard", "gpt_difficulty_parsed": "8.5"},
        {"problem": "odd", "gpt_difficulty_parsed": "-1"},
        {"problem": "hard", "gpt_difficulty_parsed": "3"},
    ]
    (tmp_path / "published.json").write_text(json.dumps(published))
    assert read_levels(str(tmp_path / "published.json")) == {easy.id: 2.0, hard.id: 8.5}
    assert capsys.readouterr().err.endswith("published.json: rows without a level from 1 to 10: 1\n")

    table = pyarrow.Table.from_pylist([{"problem": "odd", "level": 11.0}, {"problem": "hard", "level": 9.0}])
    pyarrow.parquet.write_table(table, tmp_path / "levels.parquet")
    assert read_levels(str(tmp_path / "levels.parquet")) == {hard.id: 9.0}

    (tmp_path / "own").mkdir()
    row = {"problem_id": odd.id, "problem": "odd", "level": 7.0, "source": "s", "category": None}
    write_records(tmp_path / "own" / "labels.jsonl", [row])
    assert read_levels(str(tmp_path / "own")) == {odd.id: 7.0}


def test_levels_of_a_hub_dataset_are_read_from_two_columns_of_its_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, *, split: str) -> object:
        asked.append((name, split))
        rows = [{"problem": "easy", "gpt_difficulty_parsed": 2.0}]
        columns = SimpleNamespace(column_names=["source", "problem", "solution", "gpt_difficulty_parsed"])
        columns.select_columns = lambda names: rows if names == ["problem", "gpt_difficulty_parsed"] else []
        return columns

    monkeypatch.setattr(difficulty, "load_hub_dataset", load)
    assert read_levels("hub:user/levels") == {make_problems("easy")[0].id: 2.0}
    assert asked == [("user/levels", "train")]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("nowhere", None, "--difficulty-labels {path}: no such file"),
        ("levels.txt", "", "levels.txt: name a file that ends in .jsonl, .json, .parquet, .csv"),
        ("levels.jsonl", '{"problem": "a", "difficulty": 3}', ":1: has the columns problem, difficulty; wanted"),
        ("levels.jsonl", '{"level": 3}', "jsonl:1: has the columns level; wanted problem_id or problem, and level"),
        ("levels.jsonl", '{"problem": "a", "level": -1}', "--difficulty-labels {path} holds no level from 1 to 10"),
        ("levels.jsonl", "{torn", "levels.jsonl:1: not JSON"),
    ],
)
def test_labels_that_cannot_be_read_are_named(tmp_path: Path, name: str, text: str | None, why: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        read_levels(str(path))
    assert why.format(path=path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_labels_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no labels.jsonl; make it with tools/label_difficulty.py"):
        read_levels(str(tmp_path))


@pytest.mark.parametrize(
    ("lower", "upper", "kept"),
    [(None, None, "abcd"), (4, None, "bcd"), (None, 6.5, "abc"), (4, 6.5, "bc"), (9, 9, "d")],
)
def test_bounds_include_their_ends_and_a_missing_bound_is_none(lower, upper, kept, capsys) -> None:
    problems = make_problems(*"abcd", "new")
    levels = {problem.id: level for problem, level in zip(problems, (1.0, 4.0, 6.5, 9.0), strict=False)}
    assert "".join(problem.question for problem in keep_levels(problems, levels, lower, upper)) == kept
    told = f"1 have no level, {4 - len(kept)} are outside of {lower or 1} to {upper or 10}\n"
    assert capsys.readouterr().err == f"problems left out by --filter-difficulty: {told}"


def test_bounds_that_leave_nothing_are_an_error() -> None:
    problems = make_problems("a", "new")
    with pytest.raises(UserError, match="leaves no problem: 1 have no level, 1 are outside of 5 to 10"):
        list(keep_levels(problems, {problems[0].id: 2.0}, 5))
