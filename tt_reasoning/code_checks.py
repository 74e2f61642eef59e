"""Check a model-written program by the tests of its task: run it in the sandbox, compare outside, one Verdict.

    check_program(code, tests)     right only if there is at least one test and it passes them all
    extract_code(text)             the program of an answer: its last fenced block

Tests have the form of APPS: ``{"inputs": [...], "outputs": [...]}``, what a program reads and has to write; with
``fn_name`` the arguments and the result of each call. The first failure decides and ends the check.

Unlike the checkers of APPS, TACO and LiveCodeBench as they are commonly used: a crash, a missing function, a late end
or no test at all is never right; a status other than 0 is a failure; the order of what is written counts; numbers are
equal within a tolerance only where a task asks for one (``float_tolerance`` in its tests); of a list of several
expected results the first alone is not enough. docs/program_checking.md has the whole rule.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tt_reasoning.sandbox import Limits, Run, SandboxError, run_tests
from tt_reasoning.types import Reason, Verdict

MAX_TEXT = 1_000_000  # characters of an answer, counted from its end

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_SLACK = 1 << 20  # bytes that a result may be longer than expected before it is not read


@dataclass(frozen=True, kw_only=True)
class TaskTests:
    """The tests of a task as they are run: ``given`` goes in, ``expected`` never does."""

    given: list[bytes] | list[list[Any]]
    expected: list[Any]
    function: str | None
    float_tolerance: float | None


class Judgement(NamedTuple):
    """What came of a check: as in a Verdict, how many tests were passed, and in words what stopped it."""

    correct: bool | None
    reason: Reason
    num_passed: int
    detail: str


def check_program(
    code: str | None,
    tests: Mapping[str, Any] | str,
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    isolated: bool = True,
    stop: threading.Event | None = None,
    answer_id: str = "",
) -> Verdict:
    """The verdict on a program.

    Reasons: ``match``: every test is passed, and there is one. ``mismatch``: a wrong output. ``no_answer``: there is
    no program. ``timeout``: it was too slow, and so is wrong. ``error``: it crashed, does not compile, has no such
    function or went beyond its memory or output, and is wrong; with ``correct`` None the sandbox itself failed.
    ``bad_reference`` (``correct`` None): the tests are missing or malformed.

    Args:
        code: what ``extract_code`` found.
        tests: an object, or that as JSON: what ``Problem.reference`` holds.
        isolated: False runs the program with the rights of the user; see ``sandbox``.
        stop: once it is set the check ends early, and says nothing (``error``, ``correct`` None).

    Raises:
        UserError: no sandbox is to be had here.

    Example:
        >>> tests = {"inputs": ["1 2\\n", "3 4\\n"], "outputs": ["3\\n", "7\\n"]}
        >>> check_program("print(sum(map(int, input().split())))", tests).reason
        'match'
        >>> check_program("print(3)", tests).reason, check_program("exit(0)", tests).reason
        ('mismatch', 'mismatch')
        >>> check_program("def f(a): return a[0]", {"fn_name": "f", "inputs": [[[5, 6]]], "outputs": [5]}).correct
        True
        >>> check_program("print(3)", {"inputs": [], "outputs": []}).reason
        'bad_reference'
    """
    judgement = judge_program(code, tests, limits=limits, isolated=isolated, stop=stop)
    return Verdict(answer_id=answer_id, extracted=code, correct=judgement.correct, reason=judgement.reason)


def judge_program(
    code: str | None,
    tests: Mapping[str, Any] | str,
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    isolated: bool = True,
    stop: threading.Event | None = None,
) -> Judgement:
    """The same with its detail.

    >>> judge_program("print(1 / int(input()))", {"inputs": ["1", "0"], "outputs": ["1.0", ""]})
    Judgement(correct=False, reason='error', num_passed=1, detail='test 2 of 2: ZeroDivisionError: division by zero')
    """
    try:
        wanted = read_tests(tests)
    except ValueError as error:
        return Judgement(None, "bad_reference", 0, str(error))
    if code is None or not code.strip():
        return Judgement(False, "no_answer", 0, "no program")
    runs = run_tests(code, wanted.given, function=wanted.function, limits=limits, isolated=isolated, stop=stop)
    number = 0
    try:
        for number, (run, expected) in enumerate(zip(runs, wanted.expected, strict=True)):
            reason, detail = _judge_run(run, expected, wanted)
            if reason != "match":
                return Judgement(False, reason, number, f"test {number + 1} of {len(wanted.expected)}: {detail}")
    except SandboxError as error:
        return Judgement(None, "error", number, f"the sandbox failed: {error}")
    except ValueError as error:  # marshal: arguments in more than 2000 lists
        return Judgement(None, "bad_reference", 0, str(error))
    finally:
        runs.close()
    return Judgement(True, "match", len(wanted.expected), f"{len(wanted.expected)} tests passed")


def _judge_run(run: Run, expected: Any, tests: TaskTests) -> tuple[Reason, str]:
    if run.outcome == "timeout":
        return "timeout", "too slow"
    if run.outcome == "failed":
        lines = run.complaint.strip().splitlines()
        return "error", lines[-1][:200] if lines else "it ended with a status other than 0"
    if tests.function is None:
        same = same_output(run.output.decode(errors="replace"), expected, tests.float_tolerance)
        return ("match", "") if same else ("mismatch", "another output")
    if not run.output:
        return "error", "it ended before the function returned"
    length, value = expected
    if len(run.output) > 2 * length + _SLACK:
        return "mismatch", "a much longer result"
    try:
        same = same_result(_read_json(run.output.decode(errors="replace")), value, tests.float_tolerance)
    except (ValueError, RecursionError):  # what is no result, and so cannot be the right one
        same = False
    return ("match", "") if same else ("mismatch", "another result")


# --- the tests of a task ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)  # an answer's neighbours are to the same problem
def _read_text(text: str) -> TaskTests:
    try:
        tests = _read_json(text)
    except ValueError as error:
        raise ValueError(f"the tests are no JSON: {error}") from None
    return _build_tests(tests)


def read_tests(tests: Mapping[str, Any] | str) -> TaskTests:
    """The tests of a task as they are run.

    What a program reads or writes may be one text or a list of lines. Arguments are a list; dictionaries whose keys
    are all integers as text get integers for keys, since JSON has no other way to write them.

    Raises:
        ValueError: they are no JSON, none at all, of unequal number, or not of this form.

    >>> read_tests('{"inputs": [["1", "2"]], "outputs": ["3"]}').given
    [b'1\\n2']
    >>> read_tests('{"inputs": [], "outputs": []}')
    Traceback (most recent call last):
    ValueError: there is no test
    """
    try:
        return _read_text(tests) if isinstance(tests, str) else _build_tests(tests)
    except RecursionError:
        raise ValueError("the tests are nested too deeply") from None


def _build_tests(tests: Any) -> TaskTests:
    if not isinstance(tests, Mapping):
        raise ValueError("the tests are no object with inputs and outputs")
    unknown = set(tests) - {"inputs", "outputs", "fn_name", "float_tolerance"}
    if unknown:
        raise ValueError(f"the tests have a field {min(unknown)!r} that is not known")
    inputs, outputs, function = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name") or None
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or {type(inputs), type(outputs)} & {str}:
        raise ValueError("inputs and outputs are not both lists")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    if not inputs:
        raise ValueError("there is no test")
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise ValueError(f"fn_name={function!r} is no name of a function")
    tolerance = tests.get("float_tolerance")
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise ValueError(f"float_tolerance={tolerance!r} is no number between 0 and 1")
    if function is None:
        given = [_join_lines(text).encode(errors="replace") for text in inputs]
        expected = [_join_lines(text) for text in outputs]
        return TaskTests(given=given, expected=expected, function=None, float_tolerance=tolerance)
    if not all(isinstance(arguments, list | tuple) for arguments in inputs):
        raise ValueError("the arguments of a call are no list")
    expected = [(_length(value), value) for value in outputs]
    given = [_restore_keys(list(arguments)) for arguments in inputs]
    return TaskTests(given=given, expected=expected, function=function, float_tolerance=tolerance)


def _join_lines(text: Any) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, list | tuple) and all(isinstance(line, str | int | float) for line in text):
        return "\n".join(map(str, text))
    if isinstance(text, int | float):
        return str(text)
    raise ValueError("what a program reads or writes is neither a text nor a list of lines")


def _length(value: Any) -> int:
    """How many bytes a result takes in JSON, at most and roughly."""
    if isinstance(value, list | tuple):
        return 2 + sum(1 + _length(part) for part in value)
    if isinstance(value, Mapping):
        return 2 + sum(2 + _length(key) + _length(part) for key, part in value.items())
    if isinstance(value, str):
        return 2 + 6 * len(value)
    return 24 + value.bit_length() // 3 if isinstance(value, int) else 32


def _restore_keys(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_restore_keys(part) for part in value]
    if isinstance(value, Mapping):
        whole = bool(value) and all(isinstance(key, str) and re.fullmatch(r"-?\d{1,18}", key) for key in value)
        return {int(key) if whole else key: _restore_keys(part) for key, part in value.items()}
    return value


def _read_json(text: str) -> Any:
    return json.loads(text, parse_int=_read_integer)


def _read_integer(text: str) -> int:
    """An integer of any length: Python alone refuses more than 4300 digits."""
    if len(text) <= 4000:
        return int(text)
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text)
    value = 0
    for start in range(0, len(digits), 4000):
        part = digits[start : start + 4000]
        value = value * 10 ** len(part) + int(part)
    return sign * value


# --- equality --------------------------------------------------------------------------------------------


def same_output(output: str, expected: str, float_tolerance: float | None = None) -> bool:
    """Whether a program wrote what was expected: line by line the same words, blank lines and the space around aside.

    >>> same_output("1  2 \\n\\n3", "1 2\\n3\\n"), same_output("3\\n1 2", "1 2\\n3"), same_output("1.0", "1")
    (True, False, False)
    >>> same_output("0.3333", "0.33333", 1e-3), same_output("yes 1", "no 1", 1e-3), same_output("nan", "1", 1e-3)
    (True, False, False)
    """
    lines, wanted = _words(output), _words(expected)
    if float_tolerance is None or lines == wanted:
        return lines == wanted
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = zip(itertools.chain.from_iterable(lines), itertools.chain.from_iterable(wanted), strict=True)
    return all(_same_word(word, other, float_tolerance) for word, other in pairs)


def _words(text: str) -> list[list[str]]:
    return [words for line in text.split("\n") if (words := line.split())]


def _same_word(word: str, expected: str, float_tolerance: float) -> bool:
    if word == expected:
        return True
    if not _NUMBER.fullmatch(word) or not _NUMBER.fullmatch(expected):
        return False
    return _close(float(word), float(expected), float_tolerance)


def _close(value: float, expected: float, float_tolerance: float) -> bool:
    return math.isfinite(value) and abs(value - expected) <= float_tolerance * max(1.0, abs(expected))


def same_result(result: Any, expected: Any, float_tolerance: float | None = None) -> bool:
    """Whether a function returned what was expected, or the one thing in it: APPS wraps many results in a list.

    Both are plain data as JSON has it, so nothing a program defines takes part.

    >>> same_result([1, 2], [1, 2]), same_result(5, [5]), same_result(5, [5, 6]), same_result([2, 1], [1, 2])
    (True, True, False, False)
    >>> same_result(0.1 + 0.2, 0.3), same_result(0.1 + 0.2, 0.3, 1e-9), same_result({"1": 2}, {"1": 2.0})
    (False, True, True)
    """
    if _same_data(result, expected, float_tolerance):
        return True
    wrapped = isinstance(expected, list | tuple) and len(expected) == 1
    return wrapped and _same_data(result, expected[0], float_tolerance)


def _same_data(value: Any, expected: Any, float_tolerance: float | None) -> bool:
    if isinstance(expected, list | tuple):
        same_length = isinstance(value, list | tuple) and len(value) == len(expected)
        return same_length and all(map(_same_data, value, expected, itertools.repeat(float_tolerance)))
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping) or len(value) != len(expected):
            return False
        named = {str(key): part for key, part in value.items()}
        return all(
            str(key) in named and _same_data(named[str(key)], part, float_tolerance) for key, part in expected.items()
        )
    if float_tolerance is not None and _is_number(value) and _is_number(expected):
        return value == expected or _close(value, expected, float_tolerance)
    return type(value) in (int, float, bool, str, type(None)) and value == expected


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (type(value) is int or math.isfinite(value)) and abs(value) < 1e300


# --- the program of an answer ----------------------------------------------------------------------------


def extract_code(text: str) -> str | None:
    """The program of an answer: what its last complete fenced block holds; None where there is no block.

    A fence is a line of at least three backticks or tildes, with or without a language behind them, indented or not;
    the same or more of them alone close it. A block that is never closed counts only if it is the only one (an answer
    that was cut, or whose closing fence ended it). Blank blocks do not count. Linear in the length of the text.

    >>> extract_code("First:\\n```\\nx = 1\\n```\\nBetter:\\n```Python 3\\nprint(1)\\n```\\nDone.")
    'print(1)\\n'
    >>> extract_code("1. So:\\n   ```py\\n   if x:\\n       y()\\n   ```")
    'if x:\\n    y()\\n'
    >>> extract_code("```python3\\nprint(1)"), extract_code("It is 3.")
    ('print(1)\\n', None)
    """
    found = None
    opened, fence, indent, lines = False, "", 0, []
    for line in _SURROGATE.sub("\ufffd", text[-MAX_TEXT:]).replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if not opened and mark:
            opened, fence, lines = True, mark[1], []
            indent = len(line) - len(line.lstrip(" \t"))
        elif opened and mark and mark[1].startswith(fence) and not mark[2].strip():
            opened = False
            found = _join_block(lines, indent) or found
        elif opened:
            lines.append(line)
    return _join_block(lines, indent) if opened and found is None else found


def _join_block(lines: Sequence[str], indent: int) -> str | None:
    """The lines of a block, less the indentation of its fence; None of a blank one."""
    if not any(line.strip() for line in lines):
        return None
    taken = [line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines]
    return "\n".join(taken).rstrip("\n") + "\n"
