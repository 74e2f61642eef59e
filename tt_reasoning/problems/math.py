"""MATH: competition problems in LaTeX (Hendrycks et al. 2021, arXiv 2103.03874), in two cuts.

``math`` is the split of "Let's Verify Step by Step" (arXiv 2305.20050): 12,000 to train on, 500 to test.
``math500`` is that test part alone.
"""

from __future__ import annotations

from typing import Any

from tt_reasoning.problems.rows import text_field
from tt_reasoning.types import Problem


def math_problem(row: dict[str, Any], split: str, source: str = "math") -> Problem:
    r"""The gold answer is LaTeX and stays as it is: the grader reads it.

    >>> row = {
    ...     "problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.",
    ...     "solution": "We have that $r = \\sqrt{0^2 + 3^2} = 3.$ ...",
    ...     "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    ...     "subject": "Precalculus",
    ...     "level": 2,
    ...     "unique_id": "test/precalculus/807.json",
    ... }
    >>> print(math_problem(row, "test").reference)
    \left( 3, \frac{\pi}{2} \right)
    """
    return Problem(
        source=source, split=split, question=text_field(row, "problem"), reference=text_field(row, "answer")
    )


def math500_problem(row: dict[str, Any], split: str) -> Problem:
    """A row of MATH-500, of the same form.

    >>> math500_problem({"problem": "What is $1+1$?", "answer": "2"}, "test").source
    'math500'
    """
    return math_problem(row, split, source="math500")
