"""Multiple choice: MMLU, MMLU-Pro, ARC-Challenge, TruthfulQA and GPQA-Diamond.

A problem of kind ``choice`` carries its options in the question, as lettered lines, and a letter as reference.
Where the rows say which option is right by its place (TruthfulQA, GPQA), the options are shuffled; each problem
records the seed that did it, made from the loader's and from the question, so that it depends on no other row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tt_reasoning.problems.rows import optional_text_field, position_field, text_field, texts_field
from tt_reasoning.prompts import LETTERS, choice_text
from tt_reasoning.types import Problem, seed_of


def choice_problem(
    *,
    source: str,
    split: str,
    question: str,
    choices: Sequence[str],
    correct: int,
    category: str | None = None,
    shuffle_seed: int | None = None,
) -> Problem:
    """A problem from its options and the place of the right one, from 0.

    Args:
        shuffle_seed: shuffle the options by a seed made from this one, the question and the options, and
            record it as ``order_seed``; None keeps the order given.

    Raises:
        ValueError: fewer than 2 options or more than 26.

    >>> problem = choice_problem(source="demo", split="test", question="2 + 2?", choices=["3", "4"], correct=1)
    >>> problem.reference, problem.choices, problem.order_seed
    ('B', ('3', '4'), None)
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} options; a question has 2 to {len(LETTERS)}")
    order = list(range(len(choices)))
    order_seed = None if shuffle_seed is None else seed_of(shuffle_seed, question, *choices)
    if order_seed is not None:
        random.Random(order_seed).shuffle(order)
    shown = tuple(choices[place] for place in order)
    return Problem(
        source=source,
        split=split,
        question=choice_text(question, shown),
        reference=LETTERS[order.index(correct)],
        kind="choice",
        choices=shown,
        order_seed=order_seed,
        category=category,
    )


def mmlu_problem(row: dict[str, Any], split: str) -> Problem:
    """MMLU (Hendrycks et al. 2021, arXiv 2009.03300), all 57 subjects; ``answer`` is the option's place from 0.

    A letter in its place, as in the authors' files, goes as well.

    >>> row = {
    ...     "question": "What is the embryological origin of the hyoid bone?",
    ...     "subject": "anatomy",
    ...     "choices": [
    ...         "The first pharyngeal arch",
    ...         "The first and second pharyngeal arches",
    ...         "The second pharyngeal arch",
    ...         "The second and third pharyngeal arches",
    ...     ],
    ...     "answer": 3,
    ... }
    >>> mmlu_problem(row, "dev").reference, mmlu_problem(row, "dev").category
    ('D', 'anatomy')
    """
    choices = texts_field(row, "choices")
    return choice_problem(
        source="mmlu",
        split=split,
        question=text_field(row, "question"),
        choices=choices,
        correct=position_field(row, "answer", LETTERS[: len(choices)]),
        category=text_field(row, "subject"),
    )


def mmlu_pro_problem(row: dict[str, Any], split: str) -> Problem:
    """MMLU-Pro (Wang et al. 2024, arXiv 2406.01574): up to ten options, the letter of the right one, 14 categories.

    Options "N/A", with which some copies fill up to ten, are left out, and the others lettered anew.

    >>> row = {
    ...     "question_id": 0,
    ...     "question": "The symmetric group $S_n$ has $\\\\factorial{n}$ elements, hence it is not true that "
    ...     "$S_{10}$ has 10 elements.\\nFind the characteristic of the ring 2Z.",
    ...     "options": ["0", "30", "3", "10", "12", "50", "2", "100", "20", "5"],
    ...     "answer": "A",
    ...     "answer_index": 0,
    ...     "category": "math",
    ... }
    >>> mmlu_pro_problem(row, "validation").reference, mmlu_pro_problem(row, "validation").category
    ('A', 'math')
    >>> mmlu_pro_problem(row | {"options": ["N/A", "4", "5"], "answer": "C"}, "validation").reference
    'B'
    """
    options = texts_field(row, "options")
    correct = position_field(row, "answer", LETTERS[: len(options)])
    kept = [place for place, option in enumerate(options) if option != "N/A" or place == correct]
    return choice_problem(
        source="mmlu-pro",
        split=split,
        question=text_field(row, "question"),
        choices=[options[place] for place in kept],
        correct=kept.index(correct),
        category=text_field(row, "category"),
    )


def arc_problem(row: dict[str, Any], split: str) -> Problem:
    """ARC-Challenge (Clark et al. 2018, arXiv 1803.05457): three to five options, labelled A to E or 1 to 5.

    ``answerKey`` is a label; the options are lettered from A in every case.

    >>> row = {
    ...     "id": "Mercury_SC_405487",
    ...     "question": "One year, the oak trees in a park began producing more acorns than usual. The next year, "
    ...     "the population of chipmunks in the park also increased. Which best explains why there were more "
    ...     "chipmunks the next year?",
    ...     "choices": {
    ...         "text": ["Shady areas increased.", "Food sources increased.", "Oxygen levels increased.",
    ...                  "Available water increased."],
    ...         "label": ["A", "B", "C", "D"],
    ...     },
    ...     "answerKey": "B",
    ... }
    >>> arc_problem(row, "train").reference
    'B'
    """
    texts, labels = _columns(row, "choices", "text", "label")
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"choices.label={labels!r} should be a list of texts")
    return choice_problem(
        source="arc",
        split=split,
        question=text_field(row, "question"),
        choices=texts,
        correct=position_field(row, "answerKey", labels),
    )


def truthfulqa_problem(row: dict[str, Any], split: str, shuffle_seed: int = 0) -> Problem:
    """TruthfulQA (Lin et al. 2022, arXiv 2109.07958), one right answer (MC1): labels are 1 for it and 0 for others.

    In the published rows the right option is always the first, so the order must not stay.

    >>> row = {
    ...     "question": "What is the smallest country in the world that is at least one square mile in area?",
    ...     "mc1_targets": {
    ...         "choices": [
    ...             "Nauru is the smallest country in the world that is at least one square mile in area.",
    ...             "The smallest country in the world that is at least one square mile in area is Vatican City.",
    ...             "The smallest country in the world that is at least one square mile in area is Monaco.",
    ...             "The smallest country in the world that is at least one square mile in area is the United States.",
    ...         ],
    ...         "labels": [1, 0, 0, 0],
    ...     },
    ... }
    >>> problem = truthfulqa_problem(row, "validation")
    >>> problem.reference, problem.choices[3][:5], problem.order_seed
    ('D', 'Nauru', 148036139)
    """
    choices, labels = _columns(row, "mc1_targets", "choices", "labels")
    if (labels.count(1), labels.count(0)) != (1, len(labels) - 1):
        raise ValueError(f"mc1_targets.labels={labels!r} should be one 1 and otherwise 0")
    return choice_problem(
        source="truthfulqa",
        split=split,
        question=text_field(row, "question"),
        choices=choices,
        correct=labels.index(1),
        shuffle_seed=shuffle_seed,
    )


def gpqa_diamond_problem(row: dict[str, Any], split: str, shuffle_seed: int = 0) -> Problem:
    """GPQA-Diamond (Rein et al. 2023, arXiv 2311.12022): 198 questions for experts, a column for each option.

    The set is gated, and whoever gets it agrees to show none of it in public: this row is made up in its columns.

    >>> row = {
    ...     "Question": "Which of these particles is a lepton?\\n",
    ...     "Correct Answer": "the muon",
    ...     "Incorrect Answer 1": "the proton",
    ...     "Incorrect Answer 2": "the pion",
    ...     "Incorrect Answer 3": "the gluon",
    ...     "High-level domain": "Physics",
    ... }
    >>> problem = gpqa_diamond_problem(row, "train")
    >>> problem.reference, problem.choices, problem.category
    ('D', ('the proton', 'the pion', 'the gluon', 'the muon'), 'Physics')
    """
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return choice_problem(
        source="gpqa-diamond",
        split=split,
        question=text_field(row, "Question"),
        choices=[text_field(row, name) for name in names],
        correct=0,
        category=optional_text_field(row, "High-level domain"),
        shuffle_seed=shuffle_seed,
    )


def _columns(row: dict[str, Any], name: str, texts: str, labels: str) -> tuple[list[str], list[Any]]:
    """The texts of a nested field and their labels, as many."""
    field = row.get(name)
    if not isinstance(field, dict) or not isinstance(field.get(labels), list):
        raise ValueError(f"no field {name!r} with lists {texts!r} and {labels!r}")
    found = texts_field(field, texts)
    if len(found) != len(field[labels]):
        raise ValueError(f"{name} has {len(found)} {texts} but {len(field[labels])} {labels}")
    return found, field[labels]
