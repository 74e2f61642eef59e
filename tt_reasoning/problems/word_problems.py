"""Short arithmetic word problems: ASDiv, SVAMP and MAWPS."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tt_reasoning.problems.rows import number_field, optional_text_field, text_field
from tt_reasoning.types import Problem

_OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
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


def asdiv_solution(row: dict[str, Any]) -> str | None:
    """The formula worked out, an operation a line; the last line states the gold answer.

    None where there is no formula, or one that is not plain arithmetic which ends in the gold answer: a remainder, a
    ratio, an unknown, a result that is not written out in a few decimals.

    >>> row = {"body": "Ten bags hold 8 rolls each; 4 bags are sold.", "question": "How many rolls are left?"}
    >>> print(asdiv_solution(row | {"answer": "48 (rolls)", "formula": "(10-4)*8=48"}))
    10 - 4 = 6
    6 * 8 = 48
    The answer is: 48
    >>> asdiv_solution(row | {"answer": "5 (rolls)", "formula": "47/6=7 r5"})
    """
    problem = asdiv_problem(row, "")
    formula, _, result = (optional_text_field(row, "formula") or "").partition("=")
    return _solve(formula, problem.reference, result) if problem else None


def _solve(formula: str, *golds: str) -> str | None:
    """The formula worked out, if that ends in every one of the gold answers."""
    lines: list[str] = []
    try:
        value = _work_out(ast.parse(formula.strip(), mode="eval").body, lines)
        if not lines or any(value != Fraction(gold.strip()) for gold in golds):
            return None
        return "\n".join([*lines, f"The answer is: {_write(value)}"])
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _work_out(node: ast.expr, lines: list[str]) -> Fraction:
    """The value of an expression; appends a line for every operation. Raises ValueError for anything but arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
        raise ValueError("not plain arithmetic")
    left, right = _work_out(node.left, lines), _work_out(node.right, lines)
    sign, operation = _OPERATIONS[type(node.op)]
    value = operation(left, right)
    lines.append(f"{_write(left)} {sign} {_write(right)} = {_write(value)}")
    return value


def _write(value: Fraction) -> str:
    """A number as a pupil writes it. Raises ValueError for one that four decimals do not hold."""
    if (value * 10_000).denominator != 1:
        raise ValueError("more than four decimals")
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.4f}".rstrip("0")


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


def mawps_solution(row: dict[str, Any]) -> str | None:
    """The Hub's ``expression`` worked out, an operation a line; the last line states the gold answer.

    None where there is none (the files by operation have none), or one that does not end in the gold answer.

    >>> row = {"question": "Ten bags hold 8 rolls each; 4 bags are sold. How many rolls are left?", "result": "48"}
    >>> print(mawps_solution(row | {"expression": "((10.0-4.0)*8.0)"}))
    10 - 4 = 6
    6 * 8 = 48
    The answer is: 48
    >>> mawps_solution(row)
    """
    return _solve(optional_text_field(row, "expression") or "", mawps_problem(row, "").reference)
