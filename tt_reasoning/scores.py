"""Scores of answers by judges: one number an answer, made of its steps' scores and read from where a judge left them.

A folder of scores (tools/rank_answers.py) holds ``steps.jsonl``: the steps of every answer that was scored, each with
the probability that it is right (a judge of whole answers has one step an answer); ``skipped.jsonl``: the answers
without a score, and why; ``scores.jsonl``: one number an answer for whoever wants no more. The steps are the truth:
another aggregate is read from them at no cost. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from tt_reasoning import store
from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.steps import STEPS, check_order, iterate_steps
from tt_reasoning.types import Answer, Score

SCORES = "scores.jsonl"
SKIPPED = "skipped.jsonl"
Aggregate = Literal["min", "prod", "last", "mean"]
SkipReason = Literal["no_steps", "too_long"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
_AGGREGATE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min, "prod": math.prod, "last": itemgetter(-1), "mean": fmean,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An answer that a judge gave no score: it has no steps, or does not fit the judge's context."""

    answer_id: str
    reason: SkipReason


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one judge said of answers, by answer id.

    ``name`` is that of the folder or, without its ending, of the file. ``aggregate`` made the scores of steps, and
    ``ends`` is where the last step of an answer ends in its text; None and empty for a file of scores.
    """

    name: str
    path: Path
    aggregate: Aggregate | None = None
    by_answer: Mapping[str, float]
    skipped: Mapping[str, SkipReason] = field(default_factory=dict)
    ends: Mapping[str, int] = field(default_factory=dict)

    def of(self, answer_id: str) -> float | SkipReason:
        """The score of an answer, or why it has none. Raises KeyError when it is neither scored nor skipped."""
        return self.skipped[answer_id] if answer_id in self.skipped else self.by_answer[answer_id]

    def require(self, answer_ids: Sequence[str]) -> None:
        """Raise UserError unless every answer is scored or skipped."""
        missing = [name for name in answer_ids if name not in self.by_answer and name not in self.skipped]
        if missing:
            end = "" if self.aggregate is None else f"; tools/rank_answers.py --out {self.path} goes on where it was"
            raise UserError(
                f"{self.path}: {len(missing)} of the {len(answer_ids)} answers have no score, such as {missing[0]}{end}"
            )

    def check_ends(self, answers: Iterable[Answer]) -> None:
        """Raise UserError unless the steps scored reach the end of their answer: a kill may have cut the last."""
        for answer in answers:
            end = self.ends.get(answer.id)
            if end is not None and not len(answer.text.rstrip()) <= end <= len(answer.text):
                raise UserError(
                    f"{self.path / STEPS}: the steps of answer {answer.id} end at {end} of its {len(answer.text)} "
                    "characters; run tools/rank_answers.py again"
                )


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """The score of an answer from the scores of its steps, each the probability that the step is right.

    ``prod`` is the probability that all are right, as if they erred independently (Lightman et al. 2023, arXiv
    2305.20050); ``min`` that of the weakest step (Math-Shepherd, arXiv 2312.08935); ``last`` is what is said of the
    last step, when the judge has seen the whole answer; ``mean`` weighs all steps alike.

    Raises:
        ValueError: no scores, or no such aggregate.

    >>> [aggregate([0.5, 1.0, 0.75], how) for how in ("min", "prod", "last", "mean")]
    [0.5, 0.375, 0.75, 0.75]
    """
    if how not in _AGGREGATE:
        raise ValueError(f"aggregate={how!r} is none of {', '.join(AGGREGATES)}")
    if not scores:
        raise ValueError("an answer without steps has no score")
    return float(_AGGREGATE[how](scores))


def read_scores(path: str | Path, how: Aggregate | None = None) -> Scores:
    """The scores of a folder of scores under one aggregate, or of a file of Score records.

    Args:
        how: the folder's own unless given, as its manifest has it; a file has none.

    Raises:
        UserError: no such path, a malformed line, an answer with steps that lack a score or stand in disorder, with two
            scores, or both scored and skipped, a score outside [0, 1] (of a file: negative or not finite); an aggregate
            of a file. Names file and answer.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, how)
    if not path.is_file():
        raise UserError(f"no such file or folder of scores: {path}; tools/rank_answers.py --out makes a folder")
    if how is not None:
        raise UserError(f"{path} holds one score an answer: nothing to aggregate by {how}; name a folder of scores")
    return _read_file(path)


def _read_folder(folder: Path, how: Aggregate | None) -> Scores:
    how = how or _default_aggregate(folder)
    path, by_answer, ends = folder / STEPS, {}, {}
    for answer_id, steps in iterate_steps(path):
        try:
            check_order(steps)
            given = [step.score for step in steps if step.score is not None]
            if len(given) < len(steps):
                raise ValueError(f"step {[step.score for step in steps].index(None)} has no score")
        except ValueError as error:
            raise UserError(f"{path}: answer {answer_id}: {error}; score anew with tools/rank_answers.py") from None
        by_answer[answer_id] = aggregate(given, how)
        ends[answer_id] = steps[-1].end
    skipped = _read_skipped(folder / SKIPPED, by_answer)
    if not by_answer and not skipped:
        raise UserError(f"{folder} holds no scores of steps yet; tools/rank_answers.py --out {folder} makes them")
    return Scores(
        name=folder.resolve().name, path=folder, aggregate=how, by_answer=by_answer, skipped=skipped, ends=ends
    )


def _default_aggregate(folder: Path) -> Aggregate:
    """The aggregate that the folder was made with."""
    arguments = store.read_manifest(folder).get("arguments")
    how = arguments.get("aggregate") if isinstance(arguments, dict) else None
    if how is None:
        raise UserError(
            f"{folder / store.MANIFEST} names no aggregate: not a folder of tools/rank_answers.py? Name an --aggregate"
        )
    if how not in AGGREGATES:
        raise unknown_name("aggregate", str(how), AGGREGATES)
    return how


def _read_skipped(path: Path, scored: Mapping[str, float]) -> dict[str, SkipReason]:
    skipped: dict[str, SkipReason] = {}
    for row in store.read_records(path, Skipped):
        if row.answer_id in scored:
            raise UserError(f"{path}: answer {row.answer_id} is skipped here and scored in {STEPS}; score anew")
        skipped[row.answer_id] = row.reason
    return skipped


def _read_file(path: Path) -> Scores:
    by_answer: dict[str, float] = {}
    for row in store.read_records(path, Score):
        if not 0 <= row.score < math.inf:
            raise UserError(
                f"{path}: answer {row.answer_id} has the score {row.score}; a score is finite and at least 0: "
                "exponentiate log-probabilities, which changes no order"
            )
        if row.answer_id in by_answer:
            raise UserError(f"{path}: answer {row.answer_id} has two scores; keep one")
        by_answer[row.answer_id] = row.score
    return Scores(name=path.stem, path=path, by_answer=by_answer)
