"""Programming problems with tests: APPS, TACO and LiveCodeBench.

``question`` is all that is asked: the statement, and whether the tests feed standard input or call a function
(``prompts.code_text``). ``reference`` holds the tests as JSON in the form of APPS, whatever form they came in:
``{"inputs": [...], "outputs": [...]}``, with ``fn_name`` where a function is called; an input is then the list of its
arguments. ``category`` is the difficulty.

LiveCodeBench packs its private tests as a pickle. Python's pickle runs what it reads, so it is never loaded here:
``unpickle_text`` takes a pickled string and nothing else.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from typing import Any

from tt_reasoning.code_checks import read_tests
from tt_reasoning.problems.rows import optional_text_field, text_field
from tt_reasoning.prompts import code_text
from tt_reasoning.types import Problem

_MOST_BYTES = 1 << 29  # of a problem's private tests, unpacked
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_AROUND = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}  # what a pickled string has besides


def apps_problem(row: dict[str, Any], split: str) -> Problem | None:
    """APPS (Hendrycks et al. 2021, arXiv 2105.09938): difficulty introductory, interview or competition.

    >>> row = {
    ...     "problem_id": 3,
    ...     "question": "Read two integers from one line and print their sum.",
    ...     "solutions": "[...]",
    ...     "input_output": '{"inputs": ["1 2\\\\n"], "outputs": ["3\\\\n"]}',
    ...     "difficulty": "introductory",
    ...     "url": "https://example.org/sum",
    ...     "starter_code": "",
    ... }
    >>> problem = apps_problem(row, "test")
    >>> problem.category, problem.reference
    ('introductory', '{"inputs":["1 2\\\\n"],"outputs":["3\\\\n"]}')

    None for a row without tests, or with tests that are not of this form.

    >>> apps_problem(row | {"input_output": ""}, "test")
    """
    return _tested_problem(row, split, "apps")


def taco_problem(row: dict[str, Any], split: str) -> Problem | None:
    """TACO (Li et al. 2023, arXiv 2312.14852), in the columns of APPS: difficulty EASY to VERY_HARD.

    >>> row = {
    ...     "question": "Write a function that adds two numbers.",
    ...     "input_output": '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}',
    ...     "starter_code": "def add(a, b):\\n\\t",
    ...     "difficulty": "EASY",
    ...     "source": "codewars",
    ... }
    >>> problem = taco_problem(row, "train")
    >>> problem.category, problem.reference
    ('EASY', '{"inputs":[[1,2]],"outputs":[[3]],"fn_name":"add"}')
    """
    return _tested_problem(row, split, "taco")


def livecodebench_problem(row: dict[str, Any], split: str) -> Problem:
    r"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974): difficulty easy, medium or hard; public and private tests.

    A test is ``{"input", "output", "testtype"}``. A functional one holds a JSON value a line for the arguments and
    one for the result; ``metadata`` then names the function.

    >>> row = {
    ...     "question_title": "Add",
    ...     "question_content": "Return the sum of a and b.",
    ...     "platform": "leetcode",
    ...     "difficulty": "easy",
    ...     "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    ...     "public_test_cases": '[{"input": "1\\n2", "output": "3", "testtype": "functional"}]',
    ...     "private_test_cases": "[]",
    ...     "metadata": '{"func_name": "add"}',
    ... }
    >>> livecodebench_problem(row, "test").reference
    '{"inputs":[[1,2]],"outputs":[3],"fn_name":"add"}'

    Raises:
        ValueError: a malformed row, private tests that are not a packed text, or above the limit on their size.
    """
    tests = _read_cases(row, "public_test_cases") + _read_cases(row, "private_test_cases")
    types = {str(test.get("testtype")) for test in tests}
    if types not in ({"stdin"}, {"functional"}):
        raise ValueError(f"the tests are of types {sorted(types)}: wanted stdin alone or functional alone")
    fn_name = None
    if types == {"functional"}:
        fn_name = text_field(_read_json(row, "metadata", dict), "func_name")
    inputs = [_read_lines(test["input"]) if fn_name else test["input"] for test in tests]
    outputs = [_parse(test["output"], "an output") if fn_name else test["output"] for test in tests]
    return Problem(
        source="livecodebench",
        split=split,
        question=code_text(text_field(row, "question_content"), optional_text_field(row, "starter_code"), fn_name),
        reference=_write_tests(inputs, outputs, fn_name),
        kind="code",
        category=text_field(row, "difficulty"),
    )


def _tested_problem(row: dict[str, Any], split: str, source: str) -> Problem | None:
    question, category = text_field(row, "question"), text_field(row, "difficulty")
    text = row.get("input_output")
    try:
        tests = _parse(text, "input_output") if isinstance(text, str) else None
        if not isinstance(tests, dict):
            return None
        fn_name = tests.get("fn_name") or None
        reference = _write_tests(tests.get("inputs"), tests.get("outputs"), fn_name)
    except ValueError:  # also for an integer of more digits than Python reads, as a few rows hold
        return None
    return Problem(
        source=source,
        split=split,
        question=code_text(question, optional_text_field(row, "starter_code"), fn_name),
        reference=reference,
        kind="code",
        category=category,
    )


def _write_tests(inputs: object, outputs: object, fn_name: str | None) -> str:
    """The tests as JSON. Raises ValueError for what ``code_checks`` could not run."""
    tests = {"inputs": inputs, "outputs": outputs} | ({} if fn_name is None else {"fn_name": fn_name})
    read_tests(tests)
    return json.dumps(tests, separators=(",", ":"))


def _parse(text: str, what: str) -> Any:
    """The value of a JSON text. Raises ValueError that says what it was to be."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


def _read_lines(text: str) -> list[Any]:
    """The arguments of a functional test, one JSON value a line."""
    return [_parse(line, "an argument") for line in text.split("\n") if line.strip()]


def _read_json(row: dict[str, Any], name: str, wanted: type) -> Any:
    """A field of JSON, as text or read already."""
    value = row[name] if isinstance(row.get(name), wanted) else _parse(text_field(row, name), name)
    if not isinstance(value, wanted):
        raise ValueError(f"{name} should hold a JSON {'list' if wanted is list else 'object'}")
    return value


def _read_cases(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The tests of one column: JSON or, packed, base64 of zlib of a pickled text of JSON."""
    value = row.get(name)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        row = {name: unpack_text(value)}
    cases = _read_json(row, name, list)
    for case in cases:
        if not isinstance(case, dict) or not all(isinstance(case.get(key), str) for key in ("input", "output")):
            raise ValueError(f"{name}: a test should have the texts input and output")
    return cases


def unpack_text(packed: str) -> str:
    """The text in base64 of zlib of a pickle, as LiveCodeBench packs its private tests. Nothing of it is run.

    >>> import pickle
    >>> unpack_text(base64.b64encode(zlib.compress(pickle.dumps("[]"))).decode())
    '[]'

    Raises:
        ValueError: it is not packed so, holds anything but one text, or is above 512 MiB unpacked.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the private tests are not packed as base64 of zlib: {error}") from None
    if len(data) > _MOST_BYTES:
        raise ValueError(f"the private tests are above {_MOST_BYTES >> 20} MiB unpacked")
    if not stream.eof:
        raise ValueError("the private tests break off")
    return unpickle_text(data)


def unpickle_text(data: bytes) -> str:
    """The string that a pickle holds, read without running the pickle.

    >>> import pickle
    >>> unpickle_text(pickle.dumps("tests", protocol=2))
    'tests'
    >>> unpickle_text(pickle.dumps(print))
    Traceback (most recent call last):
    ...
    ValueError: the pickle holds more than a text: STACK_GLOBAL

    Raises:
        ValueError: it is no pickle, or one of anything but a string.
    """
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _TEXTS:
            texts.append(argument)
        elif opcode.name not in _AROUND:
            raise ValueError(f"the pickle holds more than a text: {opcode.name}")
    if len(texts) != 1:
        raise ValueError(f"the pickle holds {len(texts)} texts: wanted one")
    texts[0].encode()  # a text that no file can hold raises a ValueError too
    return texts[0]
