"""Rows become problems: every source on a tiny file of its format, the packaged problems worked out again."""

from __future__ import annotations

import ast
import json
import operator
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tt_reasoning.errors import UserError
from tt_reasoning.problems import SOURCES, load_problems
from tt_reasoning.problems.quickstart import DATA as QUICKSTART
from tt_reasoning.types import problem_id

DATA = Path(__file__).parent / "data"
REFERENCES = {
    "gsm8k": ["54", "4500"],
    "math": [r"\frac{3}{4}", r"\sqrt{2}"],
    "math500": [r"\frac{3}{4}", r"\sqrt{2}"],
    "asdiv": ["5", "0.75", "2:3", "2:45 p.m."],
    "svamp": ["19", "2.5"],
    "mawps": ["8", "0.6666666667", "2000"],
}


def fixture(dataset: str) -> Path:
    return DATA / f"{dataset.replace('500', '')}.jsonl"


def write_rows(path: Path, *lines: object) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


@pytest.mark.parametrize("dataset", REFERENCES)
def test_a_local_file_gives_the_gold_answers_in_one_spelling(dataset):
    problems = load_problems(dataset, "test", data_files=str(fixture(dataset)))
    assert [problem.reference for problem in problems] == REFERENCES[dataset]
    assert {(problem.source, problem.split, problem.kind) for problem in problems} == {(dataset, "test", "math")}
    assert [problem.id for problem in problems] == [problem_id(problem.question) for problem in problems]


def test_every_source_is_tested_here():
    assert {*REFERENCES, "quickstart"} == SOURCES.keys()
    assert all(name == source.name for name, source in SOURCES.items())


@pytest.mark.parametrize(
    ("dataset", "question"),
    [
        ("asdiv", "A nest has three eggs, and a second nest has two. How many eggs are there?"),
        ("svamp", "Ida had 30 beads and 12 buttons. She used 11 beads How many beads are left?"),
    ],
)
def test_body_and_question_join_with_one_space(dataset, question):
    assert load_problems(dataset, "test", data_files=str(fixture(dataset)))[0].question == question


def test_repeated_and_many_answer_rows_are_left_out_and_counted(capsys):
    load_problems("asdiv", "validation", data_files=str(fixture("asdiv")))
    said = capsys.readouterr().err
    assert "they repeat an earlier question: 1\n" in said
    assert "they have several answers: 1\n" in said


@pytest.mark.parametrize("dataset", REFERENCES)
def test_json_and_parquet_give_the_same_problems_as_jsonl(dataset, tmp_path):
    expected = load_problems(dataset, "test", data_files=str(fixture(dataset)))
    rows = [json.loads(line) for line in fixture(dataset).read_text().splitlines()]
    if dataset in ("svamp", "mawps"):  # their fixtures hold two column layouts; a table has one
        rows, expected = rows[:1], expected[:1]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.parquet"):
        assert load_problems(dataset, "test", data_files=str(tmp_path / name)) == expected


def test_start_and_limit_cut_a_window_of_the_distinct_problems():
    everything = load_problems("quickstart", "train")
    assert load_problems("quickstart", "train", start=3, limit=5) == everything[3:8]
    assert load_problems("quickstart", "train", start=60, limit=50) == everything[60:]


def test_rows_with_a_split_of_their_own_are_chosen_by_it(tmp_path):
    splits = ("train", "test", "train")
    rows = [{"problem": f"question {i}", "answer": str(i), "split": split} for i, split in enumerate(splits)]
    problems = load_problems("math", "train", data_files=write_rows(tmp_path / "rows.jsonl", *rows))
    assert [problem.reference for problem in problems] == ["0", "2"]


@pytest.mark.parametrize(
    ("dataset", "row", "why"),
    [
        ("gsm8k", {"question": "How many?"}, "no field 'answer'"),
        ("gsm8k", {"question": "How many?", "answer": "seven"}, "no '####' before"),
        ("gsm8k", {"question": "How many?", "answer": "#### seven"}, "' seven' should be a number"),
        ("math", {"problem": " ", "answer": "1"}, "problem=' ' should be a text"),
        ("svamp", {"Body": "b", "Question": "q", "Answer": float("nan")}, "Answer=nan should be a number"),
        ("mawps", {"input": "q", "target": True}, "target=True should be a number"),
        ("mawps", {"target": 1}, "no field 'question' or 'input'"),
        ("math", ["a list"], "not a JSON object"),
        ("math", "{torn", "not JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(dataset, row, why, tmp_path):
    good = fixture(dataset).read_text().splitlines()[0]
    path = write_rows(tmp_path / "rows.jsonl", good, "", row)
    with pytest.raises(UserError) as error:
        load_problems(dataset, "test", data_files=path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"dataset": "gsm9k", "split": "test"}, "unknown dataset 'gsm9k': did you mean 'gsm8k'?"),
        ({"dataset": "gsm8k", "split": "tset"}, "split of gsm8k 'tset': did you mean 'test'? Known: test, train"),
        ({"dataset": "quickstart", "split": "test", "limit": 0}, "limit=0 leaves no problem"),
        ({"dataset": "quickstart", "split": "test", "start": -1}, "start=-1 is negative"),
        ({"dataset": "quickstart", "split": "test", "start": 36}, "36 problems of split test, none from start=36 on"),
        ({"dataset": "gsm8k", "split": "test", "data_files": "absent.jsonl"}, "absent.jsonl: no such file"),
        ({"dataset": "gsm8k", "split": "test", "data_files": __file__}, "ends in .jsonl, .json, .parquet"),
    ],
)
def test_a_mistake_is_one_line_that_says_how_to_mend_it(arguments, why):
    with pytest.raises(UserError) as error:
        load_problems(**arguments)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="rows.parquet: "):
        load_problems("gsm8k", "test", data_files=str(tmp_path / "rows.parquet"))



def test_local_problems_need_neither_torch_nor_datasets():
    code = (
        "import sys; from tt_reasoning.problems import load_problems; load_problems('quickstart', 'test'); "
        "print([name for name in ('torch', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def work_out(expression: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / and brackets; anything else is refused."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return Fraction(ast.get_source_segment(expression, node))

    return value(ast.parse(expression, mode="eval").body)


def quickstart_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in QUICKSTART.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", quickstart_rows(), ids=lambda row: row["expression"])
def test_every_quickstart_reference_is_the_value_of_its_expression(row):
    assert Fraction(row["reference"]) == work_out(row["expression"])
    assert 1 <= sum(row["expression"].count(sign) for sign in "+-*/") <= 5
    assert Fraction(row["reference"]) > 0


def test_quickstart_has_64_train_and_36_test_problems_and_no_leak():
    train, test = load_problems("quickstart", "train"), load_problems("quickstart", "test")
    assert (len(train), len(test)) == (64, 36)
    assert not {problem.id for problem in train} & {problem.id for problem in test}


def test_any_six_quickstart_problems_in_a_row_have_easy_and_harder_ones():
    for split in ("train", "test"):
        steps = [sum(row["expression"].count(s) for s in "+-*/") for row in quickstart_rows() if row["split"] == split]
        windows = [steps[at : at + 6] for at in range(len(steps) - 5)]
        assert all(min(window) == 1 < max(window) for window in windows)
