"""Short arithmetic word problems: ASDiv, SVAMP and MAWPS."""

from __future__ import annotations

import re
from typing import Any

from tt_reasoning.problems.rows import number_field, text_field
from tt_reasoning.types import Problem

_WITH_UNIT = re.compile(r"(-?[\d.,/]+)\s*\([^()]*\)")


def asdiv_problem(row: dict[str, Any], split: str) -> Problem | None:
    """ASDiv (Miao et al. 2020, arXiv 2106.15772): body and question join with one space.

    >>> row = {
    ...     "body": "Seven red apples and two green apples are in the basket.",
    ...     "question": "How many apples are in the basket?",
    ...     "solution_type": "Addition",
    ...     "answer": "9 (apples)",
    ...     "formula": "7+2=9",
    ... }
    >>> asdiv_problem(row, "validation").reference
    '9'

    About one answer in twelve is something else than a number with its unit. A bare number, a fraction, a
    ratio ("5:6"), a time ("3:30 p.m."), a name or a yes/no stays as it is written:

    >>> asdiv_problem(row | {"answer": "3:30 p.m."}, "validation").reference
    '3:30 p.m.'

    The Hub's copy also has 90 rows that ask for several things at once ("3 (boys); 5 (girls)"). Those have
    no single gold answer, so they are no problem here (None), as is customary for this benchmark:

    >>> asdiv_problem(row | {"answer": "3 (boys); 5 (girls)"}, "validation")
    """
    answer = text_field(row, "answer")
    if ";" in answer:
        return None
    number = _WITH_UNIT.fullmatch(answer)
    return Problem(
        source="asdiv",
        split=split,
        question=f"{text_field(row, 'body')} {text_field(row, 'question')}",
        reference=number_field({"answer": number[1]}, "answer") if number else answer,
    )


def svamp_problem(row: dict[str, Any], split: str) -> Problem:
    """SVAMP (Patel et al. 2021, arXiv 2103.07191): body and question join with one space.

    The Hub's file has the answer as text, the authors' as a number; ``145.0`` becomes ``145`` in both.

    >>> row = {
    ...     "ID": "chal-777",
    ...     "Body": "There are 87 oranges and 290 bananas in Philip's collection. If the bananas are organized "
    ...     "into 2 groups and oranges are organized into 93 groups",
    ...     "Question": "How big is each group of bananas?",
    ...     "Equation": "( 290.0 / 2.0 )",
    ...     "Answer": 145.0,
    ...     "Type": "Common-Division",
    ... }
    >>> svamp_problem(row, "test").reference
    '145'
    """
    return Problem(
        source="svamp",
        split=split,
        question=f"{text_field(row, 'Body')} {text_field(row, 'Question')}",
        reference=number_field(row, "Answer"),
    )


def mawps_problem(row: dict[str, Any], split: str) -> Problem:
    """MAWPS (Koncel-Kedziorski et al. 2016): ``question`` and ``result`` on the Hub (Calc-MAWPS, arXiv 2305.15017),
    ``input`` and ``target`` in the files by operation (singleop, addsub, singleeq, multiarith).

    >>> row = {"input": "Bridget has 4 Skittles. Henry has 4 Skittles. If Henry gives all of his Skittles to "
    ...                 "Bridget, how many Skittles will Bridget have?", "target": 8.0}
    >>> mawps_problem(row, "test").reference
    '8'
    """
    return Problem(
        source="mawps",
        split=split,
        question=text_field(row, "question", "input"),
        reference=number_field(row, "result", "target"),
    )
