"""Competition mathematics beyond MATH: AIME 2024 and 2025, AMC 2023 and OlympiadBench."""

from __future__ import annotations

from typing import Any

from tt_reasoning.problems.rows import number_field, optional_text_field, text_field, texts_field
from tt_reasoning.types import Problem


def aime24_problem(row: dict[str, Any], split: str) -> Problem:
    r"""AIME 2024, both papers, 30 problems. The answer is an integer from 0 to 999; ``025`` becomes ``25``.

    Columns: ``Problem`` and ``Answer`` on the Hub (Maxwell-Jia/AIME_2024); ``problem`` (or ``question``) and
    ``answer`` in other copies, such as this row of the evaluation data of Qwen2.5-Math:

    >>> row = {
    ...     "id": 67,
    ...     "problem": "There exist real numbers $x$ and $y$, both greater than 1, such that "
    ...     "$\\log_x\\left(y^x\\right)=\\log_y\\left(x^{4y}\\right)=10$. Find $xy$.",
    ...     "answer": "025",
    ...     "url": "https://artofproblemsolving.com/wiki/index.php/2024_AIME_I_Problems/Problem_2",
    ... }
    >>> aime24_problem(row, "train").reference
    '25'
    """
    return _aime_problem(row, split, "aime24")


def aime25_problem(row: dict[str, Any], split: str) -> Problem:
    r"""AIME 2025, both papers, 30 problems, in the columns of ``aime24_problem`` (on the Hub: ``problem``, ``answer``).

    One copy (opencompass/AIME2025) writes the degrees of an arc behind an answer; they go.

    >>> row = {"problem": "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b$.",
    ...        "answer": "70"}
    >>> aime25_problem(row, "train").reference, aime25_problem(row | {"answer": r"336^\circ"}, "train").reference
    ('70', '336')
    """
    return _aime_problem(row, split, "aime25")


def _aime_problem(row: dict[str, Any], split: str, source: str) -> Problem:
    name = "answer" if "answer" in row else "Answer"
    given = row.get(name)
    bare = row | {name: given.removesuffix(r"^\circ")} if isinstance(given, str) else row
    answer = number_field(bare, "answer", "Answer")
    if not answer.isdecimal() or int(answer) > 999:
        raise ValueError(f"{name}={given!r} should be an integer from 0 to 999")
    return Problem(
        source=source,
        split=split,
        question=text_field(row, "problem", "question", "Problem"),
        reference=str(int(answer)),
    )


def amc23_problem(row: dict[str, Any], split: str) -> Problem:
    """AMC 12 of 2023, A and B, asked without options: 40 problems with a number for an answer, 36 written ``36.0``.

    Columns: ``question`` and ``answer`` on the Hub (zwhe99/amc23); ``problem`` goes as well.

    >>> row = {
    ...     "id": 1,
    ...     "problem": "Positive real numbers $x$ and $y$ satisfy $y^3=x^2$ and $(y-x)^2=4y^2$. What is $x+y$?",
    ...     "answer": 36.0,
    ...     "url": "https://artofproblemsolving.com/wiki/index.php/2023_AMC_12A_Problems/Problem_10",
    ... }
    >>> amc23_problem(row, "test").reference
    '36'
    """
    return Problem(
        source="amc23",
        split=split,
        question=text_field(row, "problem", "question"),
        reference=number_field(row, "answer"),
    )


def olympiad_problem(row: dict[str, Any], split: str) -> Problem:
    r"""OlympiadBench (He et al. 2024, arXiv 2402.14008): its open-ended, text-only, English mathematics.

    That is the part OE_TO_maths_en_COMP, on the Hub a configuration, in the authors' archive a file. A row that
    shows a figure or has no final answer is of another part, and an error.

    >>> row = {
    ...     "id": 2323,
    ...     "subfield": "Number Theory",
    ...     "context": None,
    ...     "question": "Suppose that $n$ is a positive integer and that the value of $\\frac{n^{2}+n+15}{n}$ is an "
    ...     "integer. Determine all possible values of $n$.",
    ...     "final_answer": ["1, 3, 5, 15"],
    ...     "is_multiple_answer": True,
    ...     "unit": None,
    ...     "answer_type": "Numerical",
    ...     "error": None,
    ... }
    >>> olympiad_problem(row, "train").reference
    '1, 3, 5, 15'

    Several answers, in one row of seven, are one reference: a list with commas. The grader takes it for a set, so
    all of them must be given, no other, in any order; how often one repeats does not count.

    >>> olympiad_problem(row | {"final_answer": ["$2$", "$\\frac{1}{2}$"]}, "train").reference
    '$2$, $\\frac{1}{2}$'

    ``unit`` stands beside the answer and is left out, as the grader takes numbers with or without one. ``error``
    (a tolerance, in 1 row of 675) is not used: the answer that the row writes is the only right one.
    Three references of those 675 the grader cannot read (docs/grading.md); answers to them that are written otherwise
    are counted as ``bad_reference``.
    """
    answer = ", ".join(texts_field(row, "final_answer"))
    if answer.count("$") % 2:  # "$221,$8$": a slip of the source
        answer = answer.replace("$", "")
    if not answer:
        raise ValueError(f"final_answer={row['final_answer']!r} is empty")
    context = optional_text_field(row, "context")
    question = (f"{context}\n\n" if context else "") + text_field(row, "question")
    if "<img_" in question or "<image_" in question:
        raise ValueError("question shows a figure; take the text-only part, OE_TO_maths_en_COMP")
    return Problem(
        source="olympiad",
        split=split,
        question=question,
        reference=answer,
        category=optional_text_field(row, "subfield"),
    )
