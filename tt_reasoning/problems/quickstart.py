"""The hundred problems that ship with the package: one to three steps of arithmetic, written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tt_reasoning.problems.rows import number_field, text_field
from tt_reasoning.types import Problem

DATA = Path(__file__).parent / "data" / "quickstart.jsonl"


def quickstart_problem(row: dict[str, Any], split: str) -> Problem:
    """``expression`` is there for the reader and for the test that works every reference out again.

    >>> row = {
    ...     "question": "A bakery had 40 rolls and sold 33 of them. How many rolls are left?",
    ...     "reference": "7",
    ...     "expression": "40 - 33",
    ...     "split": "test",
    ... }
    >>> quickstart_problem(row, "test").reference
    '7'
    """
    return Problem(
        source="quickstart",
        split=split,
        question=text_field(row, "question"),
        reference=number_field(row, "reference"),
    )
