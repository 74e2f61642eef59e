"""Steps of a solution: where they lie in its text, and what their ratings mean to a judge that learns from them.

A folder of steps is a folder of answers (``problems.jsonl``, ``answers.jsonl``, ``manifest.json``) with
``steps.jsonl`` beside them: the steps of an answer stand together, in order, and cover its text up to blanks. A
step without a label has rating None; it is still read, as the steps behind it build on it. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers, read_groups
from tt_reasoning.errors import UserError
from tt_reasoning.types import Answer, Problem, Step

STEPS = "steps.jsonl"
SplitStyle = Literal["auto", "marks", "paragraphs", "lines"]
Estimate = Literal["hard", "soft"]
Neutral = Literal["positive", "negative", "drop"]
Span = tuple[int, int]

_MARK = re.compile(r"^[ \t>*#]*step[ \t]+\d+[ \t*]*[:.)]", re.IGNORECASE | re.MULTILINE)
_LINE = re.compile(r"[^\n]+")
_PARAGRAPH = re.compile(r"\S(?:(?!\n[ \t]*\n).)*", re.DOTALL)
_STATED = re.compile(
    r"[ \t>*]*(?:####|(?:#\s*)?(?:final\s+)?answer\s*(?::|$)|(?:so,?\s+|therefore,?\s+|thus,?\s+|hence,?\s+)?"
    r"the\s+(?:final\s+)?answer\s+is\b|\$?\\boxed\{)",
    re.IGNORECASE,
)


def split_steps(text: str, style: SplitStyle = "auto") -> list[Span]:
    """The character offsets of a solution's steps: without blanks at their ends, together all of the text but blanks.

    A last line or paragraph that only states the result ("#### 7", "The answer is: 7", "\\\\boxed{7}") belongs to
    the step before it: it claims nothing that the step did not. A text of blanks has no steps.

    Args:
        style: ``marks`` begins a step at every "Step 1:" that begins a line, ``paragraphs`` at every blank line,
            ``lines`` at every line; ``auto`` takes the first of these that gives two steps or more, before the
            result is joined.

    >>> text = "3 + 4 = 7\\n7 * 2 = 14\\n#### 14"
    >>> [text[start:end] for start, end in split_steps(text)]
    ['3 + 4 = 7', '7 * 2 = 14\\n#### 14']
    >>> split_steps("Step 1: add\\nthem.\\nStep 2: double"), split_steps(" \\n")
    ([(0, 17), (18, 32)], [])
    """
    styles: Sequence[SplitStyle] = ("marks", "paragraphs", "lines") if style == "auto" else (style,)
    spans: list[Span] = []
    for wanted in styles:
        spans = _split(text, wanted)
        if len(spans) > 1:
            break
    if len(spans) > 1 and _STATED.match(text, spans[-1][0]):
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    return spans


def states_result(text: str) -> bool:
    """Whether the last line begins by stating the result, as ``split_steps`` reads it.

    >>> states_result("3 + 4 = 7\\nThe answer is: 7"), states_result("3 + 4 = 7"), states_result("")
    (True, False, False)
    """
    return _STATED.match(text.rstrip().rpartition("\n")[2]) is not None


def whole_span(text: str) -> list[Span]:
    """The whole text but the blanks at its ends as its only step; none of a blank text.

    >>> whole_span(" 3 + 4\\n= 7\\n"), whole_span(" \\n")
    ([(1, 10)], [])
    """
    start, end = _trim(text, 0, len(text))
    return [(start, end)] if start < end else []


def _split(text: str, style: SplitStyle) -> list[Span]:
    if style == "marks":
        starts = [match.start() for match in _MARK.finditer(text)]
        if not starts or text[: starts[0]].strip():
            starts.insert(0, 0)
        found = list(zip(starts, [*starts[1:], len(text)], strict=True))
    else:
        found = [match.span() for match in (_PARAGRAPH if style == "paragraphs" else _LINE).finditer(text)]
    return [span for span in (_trim(text, *span) for span in found) if span[0] < span[1]]


def _trim(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def make_steps(answer: Answer, style: SplitStyle = "auto") -> list[Step]:
    """An answer's steps without labels; none of a blank answer."""
    spans = split_steps(answer.text, style)
    return [Step(answer_id=answer.id, index=i, start=start, end=end) for i, (start, end) in enumerate(spans)]


def check_steps(steps: Sequence[Step], text: str) -> None:
    """Refuse steps that are not an answer's: numbered from 0, in order, with nothing but blanks outside them.

    Raises:
        ValueError: says what lies where.

    >>> check_steps([Step(answer_id="a", index=0, start=0, end=3)], "one two")
    Traceback (most recent call last):
    ...
    ValueError: the steps do not cover the answer: ' two' lies in none
    """
    check_order(steps)
    if steps and steps[-1].end > len(text):
        raise ValueError(f"step {len(steps) - 1} ends at {steps[-1].end}, behind the answer's {len(text)} characters")
    at = 0
    for start, end in [*((step.start, step.end) for step in steps), (len(text), len(text))]:
        if text[at:start].strip():
            raise ValueError(f"the steps do not cover the answer: {text[at:start][:40]!r} lies in none")
        at = end


def check_order(steps: Sequence[Step]) -> None:
    """Refuse steps that are no answer's, whatever its text: not numbered from 0, not one behind the other, or with a
    score that is none.

    Raises:
        ValueError: says what lies where.
    """
    at = 0
    for number, step in enumerate(steps):
        if step.index != number:
            raise ValueError(f"step {number} is numbered {step.index}")
        if not at <= step.start < step.end:
            raise ValueError(f"step {number} lies at {step.start} to {step.end}, not behind {at}")
        if step.score is not None and not 0 <= step.score <= 1:
            raise ValueError(f"step {number} has score {step.score}, outside 0 to 1")
        at = step.end


def read_steps(path: str | Path) -> dict[str, list[Step]]:
    """The steps of a file by answer. Raises UserError on a malformed line or an answer's steps in two places."""
    return dict(iterate_steps(path))


def iterate_steps(path: str | Path) -> Iterator[tuple[str, list[Step]]]:
    """The same, an answer with its steps at a time."""
    seen = set()
    for answer_id, steps in groupby(store.read_records(path, Step), key=lambda step: step.answer_id):
        if answer_id in seen:
            raise UserError(f"{path}: the steps of answer {answer_id} stand in two places; build them anew")
        seen.add(answer_id)
        yield answer_id, list(steps)


def read_step_groups(folder: str | Path) -> Iterator[tuple[Problem, list[tuple[Answer, list[Step]]]]]:
    """Every problem of a folder of steps with its answers and their steps: none of an answer that was not labelled.

    Raises:
        UserError: no such folder, no steps in it, a malformed line, steps of an answer that is not there, or steps
            that do not cover their answer.
    """
    path = Path(folder) / STEPS
    store.read_manifest(folder)
    if not path.exists():
        raise UserError(f"{folder} has no {STEPS}; make it with: python tools/build_step_labels.py ... --out {folder}")
    answers = open_answers(folder)
    by_answer = read_steps(path)
    if not by_answer:
        raise UserError(f"{path} holds no steps yet; the command that makes it goes on with the same arguments")
    for problem, group in read_groups(answers):
        found = [(answer, by_answer.pop(answer.id, [])) for answer in group]
        for answer, steps in found:
            try:
                if steps:
                    check_steps(steps, answer.text)
            except ValueError as error:
                raise UserError(f"{path}: answer {answer.id}: {error}") from None
        yield problem, found
    if by_answer:
        raise UserError(f"{path} has steps of {len(by_answer)} answers that are not there, such as {min(by_answer)}")


def target_of(step: Step, estimate: Estimate = "hard", neutral: Neutral = "positive") -> float | None:
    """What a judge is to say of a step, in [0, 1]; None where there is no label.

    Args:
        estimate: ``hard`` goes by the rating, ``soft`` by the score that the step was labelled with: the share of
            rollouts from it that ended correct (Math-Shepherd, arXiv 2312.08935, eq. 3 and 4).
        neutral: what rating 0 counts as; Lightman et al. (arXiv 2305.20050) count it positive and take the product.

    >>> target_of(Step(answer_id="a", index=0, start=0, end=3, rating=0)), target_of(
    ...     Step(answer_id="a", index=0, start=0, end=3, rating=1, score=0.25), "soft")
    (1.0, 0.25)
    """
    if estimate == "soft":
        return step.score
    if step.rating == 0:
        return {"positive": 1.0, "negative": 0.0, "drop": None}[neutral]
    return None if step.rating is None else float(step.rating == 1)
