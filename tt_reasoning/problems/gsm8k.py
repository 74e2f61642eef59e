"""GSM8K: grade-school problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from typing import Any

from tt_reasoning.problems.rows import number_field, text_field
from tt_reasoning.types import Problem

_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # the authors' mark that asks their calculator


def gsm8k_problem(row: dict[str, Any], split: str) -> Problem:
    """The gold answer stands behind ``####`` at the end of the worked solution, with thousands separators.

    >>> row = {
    ...     "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  "
    ...     "How many bolts in total does it take?",
    ...     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\\n"
    ...     "So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\\n#### 3",
    ... }
    >>> gsm8k_problem(row, "test").reference
    '3'
    """
    _, mark, gold = text_field(row, "answer").rpartition("####")
    if not mark:
        raise ValueError("answer has no '####' before the gold answer")
    return Problem(
        source="gsm8k",
        split=split,
        question=text_field(row, "question"),
        reference=number_field({"answer": gold}, "answer"),
    )


def gsm8k_solution(row: dict[str, Any]) -> str:
    """The worked solution, a line a step, without calculator marks; the last line states the gold answer.

    >>> print(gsm8k_solution({"answer": "White takes 2/2=<<2/2=1>>1 bolt\\nIn all 2+1=<<2+1=3>>3 bolts\\n#### 3"}))
    White takes 2/2=1 bolt
    In all 2+1=3 bolts
    The answer is: 3
    """
    worked, _, gold = text_field(row, "answer").rpartition("####")
    lines = [" ".join(line.split()) for line in drop_calculator_marks(worked).splitlines()]
    return "\n".join([*filter(None, lines), f"The answer is: {number_field({'answer': gold}, 'answer')}"])


def drop_calculator_marks(text: str) -> str:
    """A worked solution without the marks that ask the authors' calculator.

    >>> drop_calculator_marks("White takes 2/2=<<2/2=1>>1 bolt")
    'White takes 2/2=1 bolt'
    """
    return _CALCULATION.sub("", text)
