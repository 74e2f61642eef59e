"""Rows become problems: every source on a tiny file of its format, the packaged problems worked out again."""

from __future__ import annotations

import ast
import base64
import csv
import json
import operator
import os
import pickle
import random
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tt_reasoning.errors import UserError
from tt_reasoning.generation import keep_problems
from tt_reasoning.grading import Grader
from tt_reasoning.problems import ALIASES, SOURCES, find_dataset, load_problems, read_part
from tt_reasoning.problems import code as code_problems
from tt_reasoning.problems.choice import choice_problem, gpqa_diamond_problem, truthfulqa_problem
from tt_reasoning.problems.code import livecodebench_problem, unpack_text, unpickle_text
from tt_reasoning.problems.quickstart import DATA as QUICKSTART
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import dump_record, load_record, read_records
from tt_reasoning.types import Problem, Verdict, problem_id

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
REFERENCES = {
    "gsm8k": ["54", "4500"],
    "math": [r"\frac{3}{4}", r"\sqrt{2}"],
    "math500": [r"\frac{3}{4}", r"\sqrt{2}"],
    "asdiv": ["5", "0.75", "2:3", "2:45 p.m."],
    "svamp": ["19", "2.5"],
    "mawps": ["8", "0.6666666667", "2000"],
    "aime24": ["73", "5"],
    "aime25": ["73", "336"],
    "amc23": ["27", "-1"],
    "olympiad": [r"$\frac{1}{2}$", "1,3", "221,8", "$f(x)=x$, $f(x)=-x$"],
    "mmlu": ["B", "D", "A"],
    "mmlu-pro": ["J", "D", "B"],
    "arc": ["C", "A", "C"],
    "truthfulqa": ["B", "D", "A", "D"],
    "gpqa-diamond": ["D", "A", "B"],
    "numina": ["18", r"\frac{1}{4}", r"\sqrt{2}", r"\textbf{(B) } 11"],
    "apps": [
        r'{"inputs":["1 2\n","-1 1\n"],"outputs":["3\n","0\n"]}',
        '{"inputs":[[[3,9,2]]],"outputs":[9],"fn_name":"largest"}',
        r'{"inputs":[["a","\u00e9"]],"outputs":["\u00c9\nA"]}',
    ],
    "taco": ['{"inputs":[[1,2]],"outputs":[[3]],"fn_name":"add"}', r'{"inputs":["tree\n"],"outputs":["2\n"]}'],
    "livecodebench": [
        '{"inputs":[[["a","b","a"],0],[["x"],1]],"outputs":[2,1],"fn_name":"count"}',
        r'{"inputs":["3\n","-2\n"],"outputs":["9\n","4\n"]}',
    ],
}
CODE = ("apps", "taco", "livecodebench")
RIGHT = {  # what stands behind the letters above
    "mmlu": ["23", "97", "Carbon dioxide"],
    "mmlu-pro": ["56", "pascal", "the importer"],
    "arc": ["copper", "freezing", "Mercury"],
    "truthfulqa": [
        "No, they remember for months.", "White", "No, viruses do.", "It is named after an English earl."
    ],
    "gpqa-diamond": ["muon", "uracil", "+7"],
}
SHUFFLED = {"truthfulqa": truthfulqa_problem, "gpqa-diamond": gpqa_diamond_problem}


def fixture(dataset: str) -> Path:
    (path,) = DATA.glob(f"{dataset.replace('500', '')}.*")
    return path


def fixture_rows(dataset: str) -> list[dict]:
    with fixture(dataset).open(newline="") as file:
        return list(csv.DictReader(file)) if file.name.endswith(".csv") else [json.loads(line) for line in file]


def load_fixture(dataset: str) -> list[Problem]:
    return load_problems(dataset, "test", data_files=str(fixture(dataset)))


def write_rows(path: Path, *lines: object) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


@pytest.mark.parametrize("dataset", REFERENCES)
def test_a_local_file_gives_the_gold_answers_in_one_spelling(dataset):
    problems = load_fixture(dataset)
    assert [problem.reference for problem in problems] == REFERENCES[dataset]
    kind = "choice" if dataset in RIGHT else "code" if dataset in CODE else "math"
    assert {(problem.source, problem.split, problem.kind) for problem in problems} == {(dataset, "test", kind)}
    assert SOURCES[dataset].kind == kind
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
def test_json_lines_json_and_parquet_give_the_same_problems(dataset, tmp_path):
    expected, rows = load_fixture(dataset), fixture_rows(dataset)
    if dataset in ("svamp", "mawps"):  # their fixtures hold two column layouts; a table has one
        rows, expected = rows[:1], expected[:1]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write_rows(tmp_path / "rows.jsonl", *rows)
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
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
        ("aime24", {"problem": "q", "answer": "1000"}, "answer='1000' should be an integer from 0 to 999"),
        ("aime24", {"Problem": "q", "Answer": 0.5}, "Answer=0.5 should be an integer from 0 to 999"),
        ("aime25", {"problem": "q"}, "no field 'answer' or 'Answer'"),
        ("amc23", {"answer": 1.0}, "no field 'problem' or 'question'"),
        ("olympiad", {"question": "q", "final_answer": None}, "final_answer=None should be a list of texts"),
        ("olympiad", {"question": "q", "final_answer": [" "]}, "final_answer=[' '] is empty"),
        ("olympiad", {"question": "<img_1>", "final_answer": ["1"]}, "shows a figure; take the text-only part"),
        ("mmlu", {"question": "q", "subject": "s", "answer": 0}, "no field 'choices'"),
        ("mmlu", {"question": "q", "subject": "s", "choices": ["a", "b"], "answer": 2}, "answer=2 is none of the 2"),
        ("mmlu", {"question": "q", "subject": "s", "choices": ["a", 2], "answer": 0}, "should be a list of texts"),
        ("mmlu", {"question": "q", "subject": "s", "choices": ["a"], "answer": 0}, "1 options; a question has 2 to 26"),
        ("mmlu-pro", {"question": "q", "options": ["a", "b"], "answer": "A"}, "no field 'category'"),
        ("mmlu-pro", {"question": "q", "options": ["a", "b"], "category": "c"}, "no field 'answer'"),
        ("arc", {"question": "q", "choices": ["a"], "answerKey": "A"}, "'choices' with lists 'text' and 'label'"),
        ("arc", {"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}, "1 label"),
        ("truthfulqa", {"question": "q"}, "no field 'mc1_targets' with lists 'choices' and 'labels'"),
        ("truthfulqa", {"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "should be one 1"),
        ("truthfulqa", {"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, None]}}, "be one 1"),
        ("numina", {"problem": "q", "solution": "\\boxed{1}"}, "no field 'source'"),
        ("apps", {"question": "q", "input_output": ""}, "no field 'difficulty'"),
        ("livecodebench", {"public_test_cases": "[1]"}, "a test should have the texts input and output"),
        ("livecodebench", {"public_test_cases": "[]"}, "no field 'private_test_cases'"),
        (
            "livecodebench",
            {"public_test_cases": '[{"input": "", "output": "", "testtype": []}]', "private_test_cases": "[]"},
            "the tests are of types ['[]']",
        ),
        ("livecodebench", {"public_test_cases": "[]", "private_test_cases": "[]"}, "the tests are of types []"),
        ("livecodebench", {"public_test_cases": "[]", "private_test_cases": "[{"}, "private_test_cases is not JSON"),
        ("math", ["a list"], "not a JSON object"),
        ("math", "{torn", "not JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(dataset, row, why, tmp_path):
    good = fixture_rows(dataset)[0]
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


@pytest.mark.parametrize("dataset", RIGHT)
def test_the_letter_points_at_the_right_option_and_the_question_shows_all(dataset):
    for problem, right in zip(load_fixture(dataset), RIGHT[dataset], strict=True):
        assert problem.choices["ABCDEFGHIJ".index(problem.reference)] == right
        lettered = [f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJ", problem.choices, strict=False)]
        assert problem.question.split("\n")[2:-2] == lettered
        assert problem.question in get_prompt("choice").render(problem.question)[-1]["content"]


@pytest.mark.parametrize("dataset", SHUFFLED)
def test_the_option_order_is_recorded_and_the_same_for_the_same_seed(dataset):
    make, rows = SHUFFLED[dataset], fixture_rows(dataset)
    problems = load_fixture(dataset)
    assert [make(row, "test", 0) for row in rows] == problems
    assert len({problem.order_seed for problem in problems}) == len(problems)
    for problem, row in zip(problems, rows, strict=True):
        published = [row[name] for name in row if name.endswith((" Answer", " 1", " 2", " 3"))]
        published = [text.strip() for text in published or row["mc1_targets"]["choices"]]
        random.Random(problem.order_seed).shuffle(published)
        assert problem.choices == tuple(published)
    assert [make(row, "test", 1).order_seed for row in rows] != [problem.order_seed for problem in problems]


def test_shuffled_right_options_land_on_every_letter_about_as_often():
    made = [
        choice_problem(source="s", split="t", question=f"q{i}", choices="wxyz", correct=0, shuffle_seed=0)
        for i in range(400)
    ]
    letters = [problem.reference for problem in made]
    assert all(70 <= letters.count(letter) <= 130 for letter in "ABCD")
    assert len({problem.choices for problem in made}) == 24


@pytest.mark.parametrize("dataset", ["mmlu", "arc", "mmlu-pro"])
def test_options_in_a_published_order_keep_it(dataset):
    for problem, row in zip(load_fixture(dataset), fixture_rows(dataset), strict=True):
        published = row["options"] if dataset == "mmlu-pro" else row["choices"]
        published = published["text"] if dataset == "arc" else published
        assert problem.choices == tuple(text for text in published if text != "N/A")
        assert problem.order_seed is None


def test_two_questions_that_differ_only_in_their_options_are_two_problems():
    first, second, _ = load_fixture("mmlu")
    assert first.question.splitlines()[0] == second.question.splitlines()[0]
    assert first.id != second.id


def test_ids_of_choice_problems_do_not_change():
    # Answers on disk join on these: a change of choice_text or of the shuffle would orphan them.
    assert [load_fixture(dataset)[0].id for dataset in ("mmlu", "gpqa-diamond")] == [
        "bc16ef5fc28f6f24", "59910ca0c7b7b9bc"
    ]


@pytest.mark.parametrize(
    ("dataset", "categories"),
    [
        ("mmlu", ["elementary_mathematics", "high_school_mathematics", "high_school_biology"]),
        ("mmlu-pro", ["math", "physics", "economics"]),
        ("gpqa-diamond", ["Physics", "Biology", "Chemistry"]),
        ("olympiad", ["Algebra", "Algebra", "Number Theory", "Algebra"]),
        ("numina", ["amc_aime", "math", "olympiads", "amc_aime"]),
        ("apps", ["introductory", "interview", "competition"]),
        ("taco", ["EASY", "MEDIUM_HARD"]),
        ("livecodebench", ["easy", "hard"]),
        ("arc", [None] * 3),
    ],
)
def test_the_category_is_the_benchmarks_own(dataset, categories):
    assert [problem.category for problem in load_fixture(dataset)] == categories


@pytest.mark.parametrize(
    ("dataset", "row", "reference"),
    [
        ("aime24", {"problem": "q", "question": "q", "answer": "073"}, "73"),
        ("aime24", {"question": "q", "answer": "0"}, "0"),
        ("aime25", {"question": "q", "answer": "000"}, "0"),
        ("amc23", {"problem": "q", "answer": 3159.0}, "3159"),
        ("mmlu", {"question": "q", "subject": "s", "choices": ["1", "2"], "answer": "B"}, "B"),
    ],
)
def test_other_copies_spell_columns_and_answers_otherwise(dataset, row, reference, tmp_path):
    (problem,) = load_problems(dataset, "test", data_files=write_rows(tmp_path / "rows.jsonl", row))
    assert problem.reference == reference


def test_an_aime_answer_with_leading_zeros_is_that_number():
    with Grader() as grader:
        assert grader.grade("So \\boxed{073}.", "73").correct
        assert grader.grade("The answer is 73.", "73").correct
        assert not grader.grade("The answer is 730.", "73").correct


def test_several_olympiad_answers_count_as_a_set():
    _, two, slip, functions = load_fixture("olympiad")
    assert slip.question.startswith("Let $p$ be")
    cases = [
        (two, "3, 1", True), (two, "3", False), (two, "1, 3, 5", False),
        (slip, "8, 221", True), (slip, "8, 22", False),
        (functions, "f(x)=-x, f(x)=x", True), (functions, "f(x)=x", False),
    ]
    with Grader() as grader:
        for problem, answer, correct in cases:
            assert grader.grade(f"\\boxed{{{answer}}}", problem.reference).correct is correct, (answer, problem)


def test_records_written_before_there_were_options_still_load(tmp_path):
    old = {"source": "gsm8k", "split": "test", "question": "q", "reference": "1", "kind": "math", "id": "ab"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(old) + "\n")
    assert list(read_records(tmp_path / "problems.jsonl", Problem)) == [Problem(**old)]
    keep_problems(tmp_path, [Problem(**old)])  # and their run may go on


def test_a_choice_problem_survives_the_disk():
    for problem in load_fixture("gpqa-diamond"):
        assert load_record(Problem, json.loads(dump_record(problem))) == problem


GPQA_HEADER = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Question,Correct Answer\nq,a\n", "row 1: not a row of gpqa-diamond: no field 'Incorrect Answer 1'"),
        (GPQA_HEADER + "q,a,b,c,d\nq,a,b,c\n", "row 2: not as many cells as the header has columns"),
        (GPQA_HEADER + "q,a,b,c,d,e\n", "row 1: not as many cells as the header has columns"),
        (GPQA_HEADER + "q,a,b,c,\n", "row 1: not a row of gpqa-diamond: Incorrect Answer 3='' should be a text"),
        (GPQA_HEADER + 'q,a,b,c,"d\n', "not a CSV file: unexpected end of data"),
        (GPQA_HEADER + "\xff,a,b,c,d\n", "not a CSV file: 'utf-8' codec can't decode"),
        ("", "has 0 problems of split test"),
    ],
)
def test_a_damaged_csv_file_is_named_with_its_row(text, why, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        load_problems("gpqa-diamond", "test", data_files=str(path))
    assert str(error.value).startswith(str(path)) and why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_csv_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "rows.csv").write_text(fixture("gpqa-diamond").read_text(), encoding="utf-8-sig")
    problems = load_problems("gpqa-diamond", "test", data_files=str(tmp_path / "rows.csv"))
    assert problems == load_fixture("gpqa-diamond")


def test_gpqa_goes_from_its_csv_to_verdicts(tmp_path):
    script = tmp_path / "script.json"
    right = {problem.question: [f"The Answer is: {problem.reference}"] for problem in load_fixture("gpqa-diamond")[:2]}
    script.write_text(json.dumps({"answers": right, "fallback": ["The Answer is: Z"]}))
    out = tmp_path / "answers"
    generate = [
        "tools/generate_answers.py", "--dataset", "gpqa-diamond", "--data-files", str(fixture("gpqa-diamond")),
        "--engine", "scripted", "--model", str(script), "--num-samples", "2", "--out", str(out),
    ]
    for command in (generate, ["tools/check_answers.py", "--answers", str(out)]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert list(read_records(out / "problems.jsonl", Problem)) == load_fixture("gpqa-diamond")
    verdicts = list(read_records(out / "verdicts.jsonl", Verdict))
    assert [verdict.correct for verdict in verdicts] == [True] * 4 + [False] * 2
    assert [verdict.extracted for verdict in verdicts] == ["D", "D", "A", "A", "Z", "Z"]


def test_rows_that_are_no_problem_are_left_out_with_the_benchmarks_own_reason(capsys):
    for dataset, why in [
        ("numina", "their solution boxes no answer: 2\n"),
        ("apps", "they have no tests, or malformed ones: 4\n"),
        ("taco", "they have no tests, or malformed ones: 1\n"),
    ]:
        load_fixture(dataset)
        assert capsys.readouterr().err.endswith(f"rows left out because {why}")


def test_a_program_is_asked_for_in_the_form_of_its_tests():
    for dataset in CODE:
        for problem in load_fixture(dataset):
            calls = json.loads(problem.reference).get("fn_name")
            assert ("reads from standard input" in problem.question) is (calls is None)
            assert (f"only the function `{calls}`" in problem.question) is (calls is not None)
            assert problem.question in get_prompt("code").render(problem.question)[-1]["content"]
    _, largest, _ = load_fixture("apps")
    assert "Begin with this code:\n```python\nclass Solution:\n    def largest(self, nums" in largest.question


def pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_an_error_and_is_not_run(tmp_path):
    ran, row = tmp_path / "ran", fixture_rows("livecodebench")[1]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        packed = pickle.dumps(Hostile(ran), protocol)
        with pytest.raises(ValueError, match="the pickle holds more than a text"):
            livecodebench_problem(row | {"private_test_cases": pack(packed)}, "test")
        path = write_rows(tmp_path / "rows.jsonl", row | {"private_test_cases": pack(packed)})
        with pytest.raises(UserError, match="rows.jsonl:1: not a row of livecodebench: the pickle holds more"):
            load_problems("livecodebench", "test", data_files=path)
    assert not ran.exists()
    run, arguments = Hostile(ran).__reduce__()  # what Python's own reader would have done
    run(*arguments)
    assert ran.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocols_text_is_read_whatever_stands_in_it(protocol):
    for text in ("", "[]", "a\n'\"\\\t\x00é\U0001f600", "x" * 100_000):
        assert unpickle_text(pickle.dumps(text, protocol)) == text


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "exhausted"),
        (b"no pickle", "opcode"),
        (pickle.dumps(7), "holds more than a text: BININT1"),
        (pickle.dumps(["a"]), "holds more than a text: EMPTY_LIST"),
        (pickle.dumps(None), "holds more than a text: NONE"),
        (pickle.dumps(b"bytes"), "holds more than a text: SHORT_BINBYTES"),
        (pickle.dumps("text")[:-4], "expected|exhausted|opcode"),
        (b"\x80\x04.", "holds 0 texts"),
        (pickle.dumps("a", 2)[:-1] + pickle.dumps("b", 2)[2:], "holds 2 texts"),
        (pickle.dumps("\ud800"), "surrogates not allowed"),
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
    ],
)
def test_what_is_no_pickled_text_is_an_error(data, why):
    with pytest.raises(ValueError, match=why):
        unpickle_text(data)


def test_packed_tests_that_are_damaged_or_too_large_are_errors(monkeypatch):
    packed = pack(pickle.dumps("x" * 5000))
    assert unpack_text(packed) == "x" * 5000
    with pytest.raises(ValueError, match="not packed as base64 of zlib"):
        unpack_text("!" + packed)
    with pytest.raises(ValueError, match="not packed as base64 of zlib"):
        unpack_text(base64.b64encode(b"no zlib").decode())
    with pytest.raises(ValueError, match="break off"):
        unpack_text(base64.b64encode(base64.b64decode(packed)[:-6]).decode())
    monkeypatch.setattr(code_problems, "_MOST_BYTES", 4096)
    with pytest.raises(ValueError, match="above 0 MiB unpacked"):
        unpack_text(packed)


def test_names_of_other_tools_are_names_of_ours_in_any_case():
    given = [
        "NUMINA", "APPS", "TACO", "MATH500", "AIME", "GPQADiamond", "MMLU", "MMLUPro", "LiveCodeBench", "GSM8K",
        "ARC-C", "AMC23",
    ]  # fmt: skip
    assert [find_dataset(name) for name in given] == [
        "numina", "apps", "taco", "math500", "aime24", "gpqa-diamond", "mmlu", "mmlu-pro", "livecodebench", "gsm8k",
        "arc", "amc23",
    ]  # fmt: skip
    assert {*ALIASES.values()} <= SOURCES.keys() and not ALIASES.keys() & SOURCES.keys()
    assert load_problems("ARC-C", "test", data_files=str(fixture("arc"))) == load_fixture("arc")
    with pytest.raises(UserError, match="unknown dataset 'nmuina': did you mean 'numina'"):
        load_problems("NMUINA", "train")


def part(dataset: str, *sources: str, **options: object) -> list[str]:
    problems = read_part(dataset, "test", data_files=str(fixture(dataset)), sources=sources, **options)
    return [problem.reference for problem in problems]


def test_a_source_is_chosen_before_problems_are_counted():
    assert part("numina", "amc_aime") == ["18", r"\textbf{(B) } 11"]
    assert part("numina", "AMC_AIME", start=1, end=2) == [r"\textbf{(B) } 11"]
    assert part("numina", "math", "olympiads", limit=2) == [r"\frac{1}{4}", r"\sqrt{2}"]
    assert part("numina", "amc_aime", shard="2/2") == [r"\textbf{(B) } 11"]
    assert part("numina", "all") == part("numina", "math", "ALL") == part("numina", end=-1) == REFERENCES["numina"]


@pytest.mark.parametrize(
    ("dataset", "sources", "options", "why"),
    [
        ("numina", ["mth"], {}, "source of numina 'mth': did you mean 'math'? Known: amc_aime, math, olympiads"),
        ("numina", ["math", "mth"], {}, "unknown source of numina 'mth'"),
        ("numina", ["math"], {"start": 1}, "has 1 problems of split test and source math, none from start=1 on"),
        ("gsm8k", ["main"], {}, "--source main: the problems of gsm8k name no source or difficulty; leave it out"),
    ],
)
def test_a_source_that_no_problem_has_is_told_with_those_there_are(dataset, sources, options, why):
    with pytest.raises(UserError) as error:
        part(dataset, *sources, **options)
    assert why in str(error.value)


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
