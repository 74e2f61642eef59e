"""NuminaMath-CoT: 860 thousand competition and school problems from nine collections, with worked solutions.

The gold answer is what the solution boxes last. Many rows ask for a proof or box nothing; they are left out.
"""

from __future__ import annotations

from typing import Any

from tt_reasoning.grading.extract import extract_box
from tt_reasoning.problems.rows import text_field
from tt_reasoning.types import Problem


def numina_problem(row: dict[str, Any], split: str) -> Problem | None:
    r"""A row of AI-MO/NuminaMath-CoT; its ``source`` (amc_aime, math, olympiads, cn_k12, ...) is the category.

    >>> row = {
    ...     "source": "amc_aime",
    ...     "problem": "The product of three consecutive integers is 210. What is their sum?",
    ...     "solution": "As $5 \\cdot 6 \\cdot 7 = 210$, the sum is $5 + 6 + 7 = \\boxed{18}$.",
    ...     "messages": [{"role": "user", "content": "The product ..."}, {"role": "assistant", "content": "As ..."}],
    ... }
    >>> problem = numina_problem(row, "train")
    >>> problem.reference, problem.category
    ('18', 'amc_aime')

    None for a solution without a box that closes; of several boxes the last counts, of nested ones the innermost. An
    option with its value in one box (``\textbf{(B) } 11``) stays as it is: for the grader "B" and "11" are right.

    >>> numina_problem(row | {"solution": "Hence the claim follows."}, "train")
    """
    question, category = text_field(row, "problem"), text_field(row, "source")
    reference = extract_box(text_field(row, "solution"))
    if reference is None:
        return None
    return Problem(source="numina", split=split, question=question, reference=reference, category=category)
