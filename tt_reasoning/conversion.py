"""Answers rewritten as a thought and a solution, the form that a model learns to answer in, and kept only if faithful.

A model copies an answer's reasoning into ``<|begin_of_thought|>`` ... ``<|end_of_thought|>`` and writes a clean
``<|begin_of_solution|>`` ... ``<|end_of_solution|>`` behind it (Sky-T1, after STILL-2, arXiv 2412.09413). What it wrote
is used if it ended by itself, has the four tags once each and in order with nothing outside, and has the answer's own
words: ``measure_overlap`` falls when words are left out of the text and when others are put into it.

Unlike the reference, which stores whatever came back, error messages included, and checks nothing: what fails a check
is counted and kept apart, another try can follow, an answer keeps its id, problem and sampling, and nothing that was
asked for is asked again. Texts stay on disk: memory holds the place of each answer, and the chunk under way.
"""

from __future__ import annotations

import hashlib
import re
import typing
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, overload

from tt_reasoning.answer_sets import AnswerReader
from tt_reasoning.checking import whole_text
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, Counts, draw_tries
from tt_reasoning.prompts import Prompt
from tt_reasoning.store import read_lines, read_records
from tt_reasoning.types import Answer, Problem, Sampling, problem_id

TRIES = "tries.jsonl"
REJECTED = "rejected.jsonl"
BEGIN_THOUGHT, END_THOUGHT = "<|begin_of_thought|>", "<|end_of_thought|>"
BEGIN_SOLUTION, END_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"
TAGS = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION)
# A fifth of the words lost or replaced brings answers of a model below it; other answers to the same question have
# 0.1 to 0.6 (docs/conversion.md).
MIN_OVERLAP = 0.8

Rejection = Literal["truncated", "tags", "fidelity", "surplus"]
LeftOut = Literal["not_correct", "no_verdict", "cut", "empty"]

_SPECIAL = re.compile(r"<\|\w+\|>")  # a tokenizer would read it as what it names
# Words and numbers, whatever the script: Chinese, Japanese and Korean are written without blanks, a sign is a word.
_SIGN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_SIGN}]|[^\\W_{_SIGN}]+")


class Sections(NamedTuple):
    """A text of the thought/solution form, taken apart; both without blanks at their ends."""

    thought: str
    solution: str


def find_fault(text: str) -> str | None:
    """What keeps a text from being one thought and one solution and nothing else; None if it is that.

    >>> find_fault(" <|begin_of_thought|>2, 4?<|end_of_thought|>\\n<|begin_of_solution|>4<|end_of_solution|>")
    >>> find_fault("<|begin_of_thought|>2, 4?<|end_of_thought|> So: <|begin_of_solution|>4<|end_of_solution|>")
    'text outside of the sections: So:'
    >>> find_fault("It is 4.")
    'there are no tags'
    """
    there = _SPECIAL.findall(text)
    if not there:
        return "there are no tags"
    if tuple(there) != TAGS:
        other = next((tag for tag in there if tag not in TAGS), None)
        return f"another tag: {other[:60]}" if other else f"the tags are {' '.join(there)[:200]}"
    before, thought, between, solution, after = _cut(text)
    outside = " ".join((before + between + after).split())
    if outside:
        return f"text outside of the sections: {outside[:100]}"
    if not thought.strip() or not solution.strip():
        return f"nothing in the {'solution' if thought.strip() else 'thought'}"
    return None


def split_sections(text: str) -> Sections:
    """The two sections of a text without a fault.

    >>> split_sections("<|begin_of_thought|>\\n2, 4?\\n<|end_of_thought|><|begin_of_solution|>4<|end_of_solution|>")
    Sections(thought='2, 4?', solution='4')

    Raises:
        ValueError: it has one.
    """
    if fault := find_fault(text):
        raise ValueError(f"no text of the thought/solution form: {fault}")
    _, thought, _, solution, _ = _cut(text)
    return Sections(thought.strip(), solution.strip())


def _cut(text: str) -> list[str]:
    """What stands before, between and behind the four tags."""
    return re.split("|".join(map(re.escape, TAGS)), text)


def measure_overlap(original: str, sections: Sections) -> float:
    """How much of a text is in its two sections and how little else, from 0 to 1; 0 where it has no word.

    The smaller one of two shares of words (with their multiplicity, whatever their case, order or punctuation): of
    the original's those that are in the sections, and of the sections' those that are the original's. The solution
    may say again what the thought has said, and so may use a word of the original any number of times.

    >>> measure_overlap("Try 3: no. Try 4: yes.", Sections("Try 3: no. Try 4: yes.", "4"))
    1.0
    >>> measure_overlap("Try 3: no. Try 4: yes.", Sections("Try 4: yes.", "4"))  # 3 of 6 words are there
    0.5
    >>> measure_overlap("Try 4: yes.", Sections("Try 4: yes.", "Because 4 is even"))  # 4 of 7 words
    0.5714285714285714
    """
    words, thought, solution = map(_count_words, (original, *sections))
    if not words:
        return 0.0
    kept = (words & (thought + solution)).total()
    own = (words & thought).total() + sum(number for word, number in solution.items() if word in words)
    return min(kept / words.total(), own / max(1, thought.total() + solution.total()))


def _count_words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def reject(original: str, attempt: Answer, min_overlap: float) -> tuple[Rejection, str] | None:
    """Why a conversion is not used, with a detail in words; None if it is sound.

    The first of these that holds: ``truncated`` (cut at the token limit), ``tags`` and ``fidelity``.
    """
    if attempt.finish_reason == "length":
        return "truncated", f"{attempt.num_tokens} tokens"
    if fault := find_fault(attempt.text):
        return "tags", fault
    overlap = measure_overlap(original, split_sections(attempt.text))
    return ("fidelity", f"overlap {overlap:.2f}") if overlap < min_overlap else None


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """One line of ``rejected.jsonl``: a try that is not used, for the first answer whose text it converts."""

    answer_id: str
    problem_id: str
    try_number: int
    reason: Rejection
    detail: str
    text: str
    num_tokens: int


class StoredAnswers:
    """Answers of a file, read from the bytes where they begin."""

    def __init__(self, path: Path) -> None:
        self._path, self._reader = path, AnswerReader(path)

    def read(self, offsets: Iterable[int]) -> Iterator[Answer]:
        """The answers that begin there, one at a time."""
        with self._path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield self._reader.read(offset, file.readline())

    def scan(self) -> Iterator[tuple[int, Answer]]:
        """All of them, each with its place; none of no file."""
        for offset, line in read_lines(self._path):
            yield offset, self._reader.read(offset, line)


class SourceAnswers(Sequence[Problem]):
    """Answers of a folder that stay on disk, as what the converter is asked: the question is the answer's whole text.

    ``ids`` are those of the texts: answers with the same words are asked about once. ``read`` gives the answer itself.
    """

    def __init__(self, folder: Path, offsets: array[int], ids: Sequence[str]) -> None:
        self.folder, self.offsets, self.ids = folder, offsets, ids
        self._stored = StoredAnswers(folder / ANSWERS)

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, int):
            return next(self._ask([self.offsets[index]]))
        return list(self._ask(self.offsets[index]))

    def __iter__(self) -> Iterator[Problem]:
        return self._ask(self.offsets)

    def read(self, index: int) -> Answer:
        """The answer as it is on disk."""
        return next(self._stored.read([self.offsets[index]]))

    def keep(self, rows: Sequence[int]) -> SourceAnswers:
        """Some of them."""
        return SourceAnswers(self.folder, array("q", (self.offsets[row] for row in rows)), [self.ids[r] for r in rows])

    def _ask(self, offsets: Iterable[int]) -> Iterator[Problem]:
        for answer in self._stored.read(offsets):
            yield Problem(source="conversion", split="", question=whole_text(self.folder, answer), reference="")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What there is to convert.

    ``answers`` are all that are to have a conversion, in the order of the file; ``first`` is each text's first row.
    ``done`` are rows that have the form already. ``left_out`` counts the other answers.
    """

    answers: SourceAnswers
    first: dict[str, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()
    left_out: Counter[LeftOut] = field(default_factory=Counter)


def find_answers(folder: Path, verdicts: dict[str, bool | None] | None, limit: int | None = None) -> Source:
    """The answers of a folder that can be converted: ended by themselves, not empty, correct where that is asked.

    Args:
        verdicts: whether an answer is correct, by id; None takes answers whatever their verdict.
        limit: only the first so many.

    Raises:
        UserError: a malformed line, or an answer whose prompt is not known.
    """
    offsets, ids, first, done, seen = array("q"), [], {}, set(), set()
    left_out: Counter[LeftOut] = Counter()
    for offset, answer in StoredAnswers(folder / ANSWERS).scan():
        if limit is not None and len(offsets) == limit:
            break
        if answer.id in seen:  # shards that overlap, put together
            continue
        seen.add(answer.id)
        text = whole_text(folder, answer)
        if verdicts is not None and answer.id not in verdicts:
            left_out["no_verdict"] += 1
        elif verdicts is not None and not verdicts[answer.id]:
            left_out["not_correct"] += 1
        elif answer.finish_reason == "length":
            left_out["cut"] += 1
        elif not text.strip():
            left_out["empty"] += 1
        else:
            identity, row = problem_id(text), len(offsets)
            if find_fault(text) is None:
                done.add(row)
            first.setdefault(identity, row)
            offsets.append(offset)
            ids.append(identity)
    return Source(answers=SourceAnswers(folder, offsets, ids), first=first, done=frozenset(done), left_out=left_out)


def convert_answers(
    source: Source,
    samplings: Sequence[Sampling],
    min_overlap: float,
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: Path,
    chunk_size: int,
) -> tuple[Counts, dict[str, bool]]:
    """Ask and check, try by try, until every text has a sound conversion or no try is left.

    Args:
        samplings: one a try, with different seeds.
        folder: for ``tries.jsonl``.
        chunk_size: texts in one engine call; the same on resume.

    Returns:
        ``written`` and ``resumed`` of all tries, and what ``failed``; and which tries on disk are sound, by id. The
        tries end early when the engine does.
    """
    sound: dict[str, bool] = {}

    def find_short(others: Sequence[Sampling]) -> SourceAnswers:
        check_tries(source, samplings, min_overlap, folder, sound)
        short = [
            row for identity, row in source.first.items()
            if row not in source.done and not any(sound.get(other.answer_id(identity, 0)) for other in others)
        ]  # fmt: skip
        return source.answers.keep(short)

    counts = draw_tries(samplings, find_short, start_engine, prompt, folder, chunk_size, TRIES, unit="answer")
    check_tries(source, samplings, min_overlap, folder, sound)
    return counts, sound


def check_tries(
    source: Source, samplings: Sequence[Sampling], min_overlap: float, folder: Path, sound: dict[str, bool]
) -> None:
    """Add to ``sound`` whether each try on disk is: those that it does not hold yet."""
    known = set(samplings)
    for attempt in read_records(folder / TRIES, Answer):
        row = source.first.get(attempt.problem_id)
        if row is not None and attempt.sampling in known and attempt.id not in sound:
            sound[attempt.id] = reject(source.answers[row].question, attempt, min_overlap) is None


def choose_tries(
    source: Source, samplings: Sequence[Sampling], sound: dict[str, bool], folder: Path
) -> dict[str, int]:
    """Where the first sound try of each text begins in ``tries.jsonl``, by the text's id."""
    order = {sampling: number for number, sampling in enumerate(samplings)}
    best: dict[str, tuple[int, int]] = {}
    for offset, attempt in StoredAnswers(folder / TRIES).scan():
        if sound.get(attempt.id) and attempt.problem_id in source.first:
            found = order[attempt.sampling], offset
            best[attempt.problem_id] = min(found, best.get(attempt.problem_id, found))
    return {identity: offset for identity, (_, offset) in best.items()}


def converted_answers(source: Source, chosen: dict[str, int], folder: Path) -> Iterator[Answer]:
    """The answers with what they were converted to, in the order of the source; those without a conversion left out.

    Ids, problems, sample indexes and samplings stay those of the original, whose divergence says nothing of this text.
    """
    tries = StoredAnswers(folder / TRIES)
    for row, identity in enumerate(source.answers.ids):
        if row not in source.done and identity not in chosen:
            continue
        answer = source.answers.read(row)
        if row in source.done:
            yield replace(answer, text=whole_text(source.answers.folder, answer).strip(), divergence=None)
        else:
            attempt = next(tries.read([chosen[identity]]))
            yield replace(
                answer, text=attempt.text.strip(), num_tokens=attempt.num_tokens,
                finish_reason=attempt.finish_reason, divergence=None,
            )  # fmt: skip


def rejected_tries(
    source: Source,
    samplings: Sequence[Sampling],
    chosen: dict[str, int],
    min_overlap: float,
    folder: Path,
) -> Iterator[RejectedRow]:
    """Every try on disk that is not used, with the reason; ``surplus`` ones are sound, but came later."""
    number_of = {sampling: number for number, sampling in enumerate(samplings, 1)}
    for offset, attempt in StoredAnswers(folder / TRIES).scan():
        row = source.first.get(attempt.problem_id)
        if row is None or attempt.sampling not in number_of:
            continue
        if chosen.get(attempt.problem_id) == offset:
            continue
        original = source.answers.read(row)
        found = reject(whole_text(source.answers.folder, original), attempt, min_overlap)
        reason, detail = found or ("surplus", "an earlier try is used")
        yield RejectedRow(
            answer_id=original.id, problem_id=original.problem_id, try_number=number_of[attempt.sampling],
            reason=reason, detail=detail, text=attempt.text, num_tokens=attempt.num_tokens,
        )  # fmt: skip


def check_standing_verdicts(folder: Path, converted: Iterable[Answer]) -> None:
    """Raise UserError when a folder has verdicts of conversions that are about to be others, or to go."""
    old = {answer.id: _digest(answer.text) for answer in read_records(folder / ANSWERS, Answer)}
    new = {answer.id: _digest(answer.text) for answer in converted}
    changed = sum(new.get(identity) != digest for identity, digest in old.items())
    if changed:
        raise UserError(
            f"{folder} has verdicts, and {changed} of its {len(old)} conversions would change or go; name a new --out, "
            "or delete verdicts.jsonl and verdicts.json there and check anew"
        )


def summarise(
    source: Source,
    rejected: Counter[str],
    num_converted: int,
    num_tries: int,
    missing: int,
    num_samples: int,
    min_overlap: float,
) -> dict[str, object]:
    """What ``stats.json`` holds. ``missing`` are requests that failed or were not made."""
    return {
        "num_answers": len(source.answers),
        "num_texts": len(source.first),
        "left_out": {name: source.left_out[name] for name in typing.get_args(LeftOut)},
        "in_the_form_already": len(source.done),
        "num_converted": num_converted,
        "num_tries": num_tries,
        "rejected": {name: rejected[name] for name in typing.get_args(Rejection)},
        "missing": missing,
        "num_samples": num_samples,
        "min_overlap": min_overlap,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
