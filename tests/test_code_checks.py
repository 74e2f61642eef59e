"""Verdicts on programs: 25 tasks with four solutions each, judged by hand before, and every rule alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from tt_reasoning.code_checks import (
    check_program,
    extract_code,
    judge_program,
    read_tests,
    same_output,
    same_result,
)
from tt_reasoning.sandbox import Limits
from tt_reasoning.types import Verdict

TASKS = yaml.safe_load((Path(__file__).parent / "data" / "program_tasks.yaml").read_text())
LIMITS = Limits(test_timeout_s=2)


@pytest.mark.parametrize("task", TASKS, ids=[task["name"] for task in TASKS])
def test_every_solution_gets_the_verdict_that_was_worked_out(task: dict[str, Any]) -> None:
    tests = json.dumps(task["tests"])
    for solution in task["solutions"]:
        verdict = check_program(solution["code"], tests, limits=LIMITS, answer_id="a")
        correct = {"match": True, "bad_reference": None}.get(solution["reason"], False)
        assert verdict == Verdict(
            answer_id="a", extracted=solution["code"], correct=correct, reason=solution["reason"]
        ), solution


def test_there_are_25_tasks_with_four_solutions_each() -> None:
    assert [len(task["solutions"]) for task in TASKS] == [4] * 25


def test_the_first_failure_ends_the_check() -> None:
    tests = {"inputs": ["1", "2", "3"], "outputs": ["1", "1", "3"]}
    code = "import time\nn = int(input())\ntime.sleep(1000 * (n == 3))\nprint(n)"
    assert judge_program(code, tests, limits=Limits(test_timeout_s=60)) == (
        False, "mismatch", 1, "test 2 of 3: another output"
    )  # fmt: skip


def test_all_tests_together_have_a_limit_too() -> None:
    tests = {"inputs": [""] * 20, "outputs": ["1"] * 20}
    judgement = judge_program(
        "import time\ntime.sleep(0.4)\nprint(1)", tests, limits=Limits(test_timeout_s=5, total_timeout_s=1)
    )
    assert (judgement.correct, judgement.reason) == (False, "timeout")
    assert judgement.num_passed < 5


def test_a_check_that_is_stopped_says_nothing() -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    tests = {"inputs": [""], "outputs": ["1"]}
    verdict = check_program("import time\ntime.sleep(60)", tests, limits=Limits(test_timeout_s=60), stop=stop)
    assert (verdict.correct, verdict.reason) == (None, "error")


def test_no_program_is_no_answer() -> None:
    tests = {"inputs": [""], "outputs": [""]}
    assert check_program(None, tests) == Verdict(answer_id="", extracted=None, correct=False, reason="no_answer")
    assert check_program(" \n", tests).reason == "no_answer"
    assert check_program("pass", tests).reason == "match"  # to write nothing is the task


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("", "the tests are no JSON"),
        ("[1]", "no object with inputs and outputs"),
        ("{}", "inputs and outputs are not both lists"),
        ({"inputs": "1", "outputs": ["1"]}, "not both lists"),
        ({"inputs": [], "outputs": []}, "there is no test"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [{"a": 1}], "outputs": ["1"]}, "neither a text nor a list of lines"),
        ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "the arguments of a call are no list"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "f(x)"}, "no name of a function"),
        ({"inputs": ["1"], "outputs": ["1"], "float_tolerance": 2}, "no number between 0 and 1"),
        ({"inputs": ["1"], "outputs": ["1"], "float_tolerence": 1e-6}, "'float_tolerence' that is not known"),
        ('{"inputs": [[' + "[" * 100_000 + "]" * 100_000 + ']], "outputs": [1], "fn_name": "f"}', "too deeply"),
    ],
)
def test_tests_that_are_none_are_a_bad_reference(tests: object, message: str) -> None:
    judgement = judge_program("print(1)", tests)
    assert (judgement.correct, judgement.reason) == (None, "bad_reference")
    assert message in judgement.detail


def test_arguments_and_results_may_be_nested() -> None:
    deep: list = []
    for _ in range(100):
        deep = [deep]
    tests = {"inputs": [[deep]], "outputs": [deep], "fn_name": "f"}
    assert check_program("def f(x): return x", tests).reason == "match"
    assert check_program("def f(x): return x[0][0]", tests).reason == "mismatch"


def test_an_empty_function_name_is_none() -> None:
    assert read_tests({"inputs": ["1"], "outputs": ["1"], "fn_name": ""}).function is None
    assert read_tests({"inputs": ["1"], "outputs": ["1"], "fn_name": None}).function is None


def test_keys_become_integers_only_where_all_are() -> None:
    tests = {"inputs": [[{"1": {"2": 3}}, {"1": 0, "a": 0}]], "outputs": [0], "fn_name": "f"}
    assert read_tests(tests).given == [[{1: {2: 3}}, {"1": 0, "a": 0}]]


def test_integers_of_any_length_are_compared_exactly() -> None:
    number = "1" + "0" * 9_999
    for last, correct in (("0", True), ("1", False)):
        tests = f'{{"inputs": [[10000]], "outputs": [-{number}{last}], "fn_name": "f"}}'
        assert check_program("def f(n): return -10 ** n", tests).correct is correct
    assert check_program("print(10 ** int(input()))", {"inputs": ["10000"], "outputs": [number + "0"]}).correct is True


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1   2  \n\n\n", "\n1 2\n", True),
        ("1 2\r\n3\r\n", "1 2\n3\n", True),
        ("1\n\n2", "1\n2", True),
        ("1 2", "1\n2", False),
        ("2 1", "1 2", False),
        ("3\n1 2", "1 2\n3", False),
        ("1 1 2", "1 2", False),
        ("11", "1", False),
        ("1.0", "1", False),
        ("", "1", False),
        ("1", "", False),
        ("Yes", "YES", False),
    ],
)
def test_what_is_written_is_compared_word_by_word_in_order(output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected) is same


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("0.3333333", "0.33333", True),
        ("1", "1.0000001", True),
        ("1000.001", "1000", True),  # relative above 1
        ("0.001", "0", False),
        ("1e-7", "0", True),
        ("x 1.0", "x 1", True),
        ("y 1.0", "x 1", False),
        ("nan", "1", False),
        ("inf", "1", False),
        ("1_0", "10", False),
        ("1.0 2.0", "1.0", False),
        ("1e999", "1", False),
        ("0x1", "1", False),
    ],
)
def test_a_tolerance_is_for_numbers_alone(output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected, 1e-5) is same


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [
        (1, 1.0, True),
        (True, 1, True),
        ("1", 1, False),
        (1, "1", False),
        (None, None, True),
        (None, [], False),
        ([1, [2]], [1, [2]], True),
        ([1], [[1]], True),
        ([[1]], [1], False),
        (1, [1, 2], False),
        ([1, 2], [1], False),
        ({"1": 2}, {"1": 2}, True),
        ({"1": 2, "3": 4}, {"1": 2}, False),
        ({"1": 2}, [["1", 2]], False),
        (float("nan"), float("nan"), False),
        ([], [[]], True),
        ("", [""], True),
    ],
)
def test_results_are_compared_as_data(result: object, expected: object, same: bool) -> None:
    assert same_result(result, expected) is same


def test_a_large_result_is_not_even_read() -> None:
    tests = {"inputs": [[0]], "outputs": [1], "fn_name": "f"}
    judgement = judge_program("def f(x): return [[]] * 2_000_000", tests)
    assert (judgement.correct, judgement.detail) == (False, "test 1 of 1: a much longer result")
    deep = "def f(x):\n    r = []\n    for _ in range(900):\n        r = [r]\n    return r"
    assert judge_program(deep, tests).correct is False


# --- the program of an answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```python3\na\n```", "a\n"),
        ("```Python\na\n```", "a\n"),
        ("``` py\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````\n```\na\n```\n````", "```\na\n```\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ("```python\na\n```\ntext\n```python\nb\n```\nThat is it.", "b\n"),
        ("```python\na\n```\n```python\nb", "a\n"),  # the last one is not closed
        ("```python\nb", "b\n"),  # nothing else is there
        ("```python\na\n```\n```\n\n```", "a\n"),  # a blank one is none
        ("```\n\n\n  a\n\n```", "\n\n  a\n"),
        ("- so:\n  ```python\n  if a:\n    b\n\n  c\n  ```", "if a:\n  b\n\nc\n"),
        ("The answer is `a`, or ```b``` in a line.", None),
        ("```python print(1)```", None),
        ("No program.", None),
        ("", None),
        ("```python\ntext = '''\n```python'''\n```", "text = '''\n```python'''\n"),
        (
            "<|begin_of_thought|>\n```\nx\n```\n<|end_of_thought|>\n<|begin_of_solution|>\n```python\ny\n```\n"
            "<|end_of_solution|>",
            "y\n",
        ),
        ("```\na\ud800\n```", "a\ufffd\n"),
    ],
)
def test_the_program_is_what_the_last_complete_block_holds(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def test_blocks_are_found_in_linear_time() -> None:
    for text in ("```" * 300_000, "``` " + " " * 900_000 + "`", "```\n" * 200_000, " " * 1_000_000, "`" * 1_000_000):
        extract_code(text)
