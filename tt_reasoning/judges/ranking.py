"""Scores of a folder of answers, step by step, on disk as they are made.

``steps.jsonl`` gets the scored steps of a few problems at a time, ``skipped.jsonl`` the answers that have no score.
What is there is not done again. A kill leaves at most the last problems incomplete; they are cut off and scored
anew together, as it was meant to be: what is scored side by side decides how it is rounded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import AnswerFolder, Group, read_groups
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import Layout
from tt_reasoning.judges.forms import JudgeForm
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.scores import SCORES, SKIPPED, Aggregate, Scores, Skipped, read_scores
from tt_reasoning.steps import STEPS, Span, SplitStyle, check_steps, iterate_steps
from tt_reasoning.types import Answer, Score, Step

PROBLEMS_AT_ONCE = 8


class Judge(Protocol):
    """Scores solutions; see ``judges.native`` and ``judges.vllm``."""

    def score(self, questions: Sequence[Sequence[Layout]]) -> list[list[list[float]]]:
        """A score in [0, 1] for every step of every solution of some questions."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How answers become what a judge reads: its form, how steps are split, and the most tokens it takes."""

    form: JudgeForm
    tokenizer: ChatTokenizer
    style: SplitStyle
    max_length: int

    def prepare(self, question: str, answer: Answer) -> Prepared | Skipped:
        """An answer as its judge sees it, or why it has no score."""
        spans = self.form.spans(answer.text, self.style)
        if not spans:
            return Skipped(answer_id=answer.id, reason="no_steps")
        layout = self.form.format.lay_out(self.tokenizer, question, answer.text, spans)
        if layout.read[-1] >= self.max_length:
            return Skipped(answer_id=answer.id, reason="too_long")
        return Prepared(answer, spans, layout)


class Prepared(NamedTuple):
    """An answer, its steps and how its judge sees them."""

    answer: Answer
    spans: list[Span]
    layout: Layout

    def steps(self, scores: Sequence[float]) -> list[Step]:
        """The steps with their scores. Raises UserError for a score that is no number."""
        for score in scores:
            if not math.isfinite(score):
                raise UserError(f"the judge's score of answer {self.answer.id} is {score}; try --dtype fp32")
        return [
            Step(answer_id=self.answer.id, index=i, start=start, end=end, score=score)
            for i, ((start, end), score) in enumerate(zip(self.spans, scores, strict=True))
        ]


def score_answers(
    answers: AnswerFolder, folder: Path, reader: Reader, start_judge: Callable[[], Judge], *, limit: int | None = None
) -> None:
    """Score all answers of the first ``limit`` problems that are not scored yet; the judge starts if there are any.

    Raises:
        UserError: the folder has steps of other answers, or the judge gives what is no number.
    """
    stored = _Stored.read(folder)
    total = sum(map(len, islice((answers.rows.get(name, ()) for name in answers.problems), limit)))
    judge: Judge | None = None
    try:
        with tqdm(total=total, desc="score", unit="answer") as bar:
            for chunk in _chunks(islice(read_groups(answers), limit)):
                missing = stored.missing(chunk)
                if missing:
                    judge = judge or start_judge()
                    _score_chunk(folder, reader, judge, missing)
                bar.update(sum(len(group) for _, group in chunk))
    finally:
        if judge is not None:
            judge.close()


def _chunks(groups: Iterator[Group]) -> Iterator[list[Group]]:
    while chunk := list(islice(groups, PROBLEMS_AT_ONCE)):
        yield chunk


def _score_chunk(folder: Path, reader: Reader, judge: Judge, chunk: Sequence[Group]) -> None:
    """Score some answers and append what there is to say of them."""
    prepared = [[reader.prepare(problem.question, answer) for answer in group] for problem, group in chunk]
    skipped = [found for group in prepared for found in group if isinstance(found, Skipped)]
    asked = [[found for found in group if isinstance(found, Prepared)] for group in prepared]
    scores = judge.score([[found.layout for found in group] for group in asked])
    steps = [
        step
        for group, of_group in zip(asked, scores, strict=True)
        for found, of_answer in zip(group, of_group, strict=True)
        for step in found.steps(of_answer)
    ]
    store.append_records(folder / SKIPPED, skipped)
    store.append_records(folder / STEPS, steps)


class _Stored:
    """What a folder of scores holds: ids of answers, and the steps of the last, which a kill may have torn."""

    def __init__(self, folder: Path, ids: set[str], last: list[Step]) -> None:
        self.folder, self.ids, self.last = folder, ids, last

    @classmethod
    def read(cls, folder: Path) -> _Stored:
        last: list[Step] = []
        ids = {record.answer_id for record in store.read_records(folder / SKIPPED, Skipped)}
        for answer_id, steps in iterate_steps(folder / STEPS):
            ids.add(answer_id)
            last = steps
        return cls(folder, ids, last)

    def missing(self, chunk: Sequence[Group]) -> list[Group]:
        """The answers that are to be scored.

        Some being missing, those of the same problems at the end of the files are cut off and scored with them.
        """
        asked = {answer.id: answer for _, group in chunk for answer in group}
        if asked.keys() <= self.ids and not self._is_torn(asked):
            return []
        here = asked.keys() & self.ids
        if here:
            for name in (SKIPPED, STEPS):
                self.ids -= _cut_tail(self.folder / name, here)
        return [(problem, todo) for problem, group in chunk if (todo := [a for a in group if a.id not in self.ids])]

    def _is_torn(self, asked: dict[str, Answer]) -> bool:
        if not self.last or self.last[0].answer_id not in asked:
            return False
        try:
            check_steps(self.last, asked[self.last[0].answer_id].text)
        except ValueError:
            return True
        return False


def _cut_tail(path: Path, ids: set[str]) -> set[str]:
    """Cut off the records of some answers at the end of a file; whose they were."""
    begin, cut = None, set()
    for offset, line in store.read_lines(path):
        answer_id = json.loads(line)["answer_id"]
        if answer_id not in ids:
            begin, cut = None, set()
            continue
        begin = offset if begin is None else begin
        cut.add(answer_id)
    if begin is not None:
        os.truncate(path, begin)
    return cut


def write_scores(folder: Path, how: Aggregate) -> Scores:
    """Write the scores of all answers whose steps are stored, atomically, and return them; no model is needed.

    Raises:
        UserError: as ``read_scores``.
    """
    scores = read_scores(folder, how)
    records = (Score(answer_id=answer_id, score=score) for answer_id, score in scores.by_answer.items())
    store.write_records(folder / SCORES, records)
    return scores
