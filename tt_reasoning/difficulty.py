"""How hard problems are, on a scale from 1 to 10: a model's labels, and problems chosen by them.

A model reads the scale (prompt ``difficulty``) and a problem, and ends with the level in double brackets. Only that is
a level: one number from 1 to 10 in ``[[ ]]``, in a reply that was not cut. A problem whose reply states none gets
further tries; one that never gets a level is kept apart with its reason.

The reference (Sky-T1) takes the first bracketed number, single brackets too, whatever its size, and writes -1 among the
levels where it finds none.
"""

from __future__ import annotations

import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts, draw_tries
from tt_reasoning.hub import load_hub_dataset
from tt_reasoning.problems import read_file
from tt_reasoning.prompts import Prompt
from tt_reasoning.store import read_records, write_json, write_records
from tt_reasoning.types import Answer, Problem, Sampling, problem_id

REPLIES = "replies.jsonl"
LABELS = "labels.jsonl"
UNLABELLED = "unlabelled.jsonl"
STATS = "stats.json"
NUMINA_LABELS = "hub:NovaSky-AI/labeled_numina_difficulty_859K"

NoLevel = Literal["truncated", "no_level", "out_of_range", "ambiguous"]

_BRACKETS = re.compile(r"\[\[\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\]\]")
_LEAST, _MOST = 1.0, 10.0
_COLUMNS = ("level", "gpt_difficulty_parsed")


@dataclass(frozen=True, kw_only=True)
class Label:
    """One line of ``labels.jsonl``: a problem with its level from 1 to 10, and the reply that states it."""

    problem_id: str
    problem: str
    level: float
    source: str
    split: str
    category: str | None
    answer_id: str
    tries: int


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """One line of ``unlabelled.jsonl``: a problem without a level, why its last reply states none, and that reply."""

    problem_id: str
    problem: str
    reason: NoLevel
    source: str
    split: str
    category: str | None
    answer_id: str
    tries: int
    reply: str


@dataclass(kw_only=True)
class Labelling:
    """The figures of a folder: problems by level and by what kept them from one, and those without a reply yet."""

    levels: Counter[float] = field(default_factory=Counter)
    unlabelled: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    tries: int = 0
    tokens: int = 0

    def describe(self) -> dict[str, Any]:
        """What ``stats.json`` holds."""
        return {
            "num_problems": self.levels.total() + self.unlabelled.total() + self.missing,
            "num_labelled": self.levels.total(),
            "levels": {f"{level:g}": number for level, number in sorted(self.levels.items())},
            "unlabelled": {reason: self.unlabelled[reason] for reason in typing.get_args(NoLevel)},
            "missing": self.missing,
            "tries": self.tries,
            "num_tokens": self.tokens,
        }


def read_level(text: str) -> float | NoLevel:
    """The level that a reply states, or what keeps it from stating one.

    Everything up to the last ``</think>`` is thinking. The same level twice is one level, two different ones are none.

    >>> read_level("One equation. [[2]]"), read_level("Hard: [[6.5]], so [[6.5]]")
    (2.0, 6.5)
    >>> read_level("[[11]]"), read_level("[[level 5]]"), read_level("[5]"), read_level("[[4]] or [[5]]")
    ('out_of_range', 'no_level', 'no_level', 'ambiguous')
    """
    stated = {float(number) for number in _BRACKETS.findall(text.rpartition("</think>")[2])}
    if not stated:
        return "no_level"
    if len(stated) > 1:
        return "ambiguous"
    (level,) = stated
    return level if _LEAST <= level <= _MOST else "out_of_range"


def read_reply(answer: Answer) -> float | NoLevel:
    """``read_level`` of a model's reply; one that was cut at the token limit has no level."""
    return "truncated" if answer.finish_reason == "length" else read_level(answer.text)


def label_problems(
    problems: Sequence[Problem],
    samplings: Sequence[Sampling],
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: Path,
    chunk_size: int,
) -> Counts:
    """Ask for the level of every problem, try by try, until each has one or no try is left.

    Args:
        samplings: one a try, with different seeds; a further try is made only where those before state no level.
        chunk_size: problems in one engine call; the same on resume.

    Raises:
        UserError: a malformed line in ``folder/replies.jsonl``.

    >>> import tempfile
    >>> from tt_reasoning.engines.scripted import ScriptedEngine
    >>> from tt_reasoning.prompts import get_prompt
    >>> problem = Problem(source="demo", split="test", question="2 + 2?", reference="4")
    >>> tries = [Sampling(model="script", prompt="difficulty", seed=seed) for seed in range(3)]
    >>> engine = ScriptedEngine({"answers": {"2 + 2?": ["One step: [[1]]"]}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counts = label_problems([problem], tries, lambda: engine, get_prompt("difficulty"), Path(folder), 64)
    ...     found = write_labels([problem], Path(folder))
    >>> counts.written, found.describe()["levels"]
    (1, {'1': 1})
    """

    def find_short(others: Sequence[Sampling]) -> list[Problem]:
        replies = (reply for reply in read_records(folder / REPLIES, Answer) if reply.sampling in others)
        labelled = {reply.problem_id for reply in replies if isinstance(read_reply(reply), float)}
        return [problem for problem in problems if problem.id not in labelled]

    return draw_tries(samplings, find_short, start_engine, prompt, folder, chunk_size, REPLIES)


def write_labels(problems: Iterable[Problem], folder: Path) -> Labelling:
    """Write what is labelled, what is not and, last, the figures, from the replies on disk; returns these.

    A problem's first reply with a level decides. A problem without a reply is in neither file.
    """
    replies: dict[str, list[tuple[str, float | NoLevel]]] = {}
    found = Labelling()
    for answer in read_records(folder / REPLIES, Answer):
        replies.setdefault(answer.problem_id, []).append((answer.id, read_reply(answer)))
        found.tries += 1
        found.tokens += answer.num_tokens
    unlabelled: dict[str, tuple[Problem, NoLevel, int]] = {}

    def sort() -> Iterator[Label]:
        for problem in problems:
            tries = replies.get(problem.id)
            if not tries:
                found.missing += 1
                continue
            answer_id, level = next((reply for reply in tries if isinstance(reply[1], float)), tries[-1])
            if isinstance(level, float):
                found.levels[level] += 1
                yield Label(level=level, **_columns(problem), answer_id=answer_id, tries=len(tries))
            else:
                found.unlabelled[level] += 1
                unlabelled[answer_id] = problem, level, len(tries)

    write_records(folder / LABELS, sort())
    texts = {a.id: a.text for a in read_records(folder / REPLIES, Answer) if a.id in unlabelled}
    rows = (
        Unlabelled(reason=reason, **_columns(problem), answer_id=answer_id, tries=tries, reply=texts[answer_id])
        for answer_id, (problem, reason, tries) in unlabelled.items()
    )
    write_records(folder / UNLABELLED, rows)
    write_json(folder / STATS, found.describe())
    return found


def _columns(problem: Problem) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "problem": problem.question,
        "source": problem.source,
        "split": problem.split,
        "category": problem.category,
    }


def read_levels(place: str) -> dict[str, float]:
    """Levels by problem id, from a folder of label_difficulty, a file or a Hub dataset.

    A file (.jsonl, .json, .parquet, .csv) or dataset has the columns ``problem_id`` or ``problem``, and ``level`` or
    ``gpt_difficulty_parsed``. What is no number from 1 to 10 there (the reference writes -1) is no level and left out;
    how many is said on standard error. Of two levels of one problem the first counts.

    Args:
        place: a folder, a file, or ``hub:NAME``.

    Raises:
        UserError: no such place, a column is missing, or it holds no level.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(f"{folder}/levels.csv").write_text("problem_id,level\\n38d46ad3618826cf,1.5\\n")
    ...     read_levels(f"{folder}/levels.csv")
    {'38d46ad3618826cf': 1.5}
    """
    levels: dict[str, float] = {}
    without = 0
    for where, row in _read_rows(place):
        column = next((name for name in _COLUMNS if name in row), None)
        question = row.get("problem")
        identity = row.get("problem_id") or (problem_id(question.strip()) if isinstance(question, str) else None)
        if column is None or not isinstance(identity, str):
            wanted = "problem_id or problem, and level or gpt_difficulty_parsed"
            raise UserError(f"{where}: has the columns {', '.join(row)}; wanted {wanted}")
        level = _to_level(row[column])
        if level is None:
            without += 1
        else:
            levels.setdefault(identity, level)
    if without:
        print(f"--difficulty-labels {place}: rows without a level from 1 to 10: {without}", file=sys.stderr)
    if not levels:
        raise UserError(f"--difficulty-labels {place} holds no level from 1 to 10")
    return levels


def _read_rows(place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if place.startswith("hub:"):
        name = place.removeprefix("hub:")
        table = load_hub_dataset(name, split="train")
        known = [column for column in ("problem_id", "problem", *_COLUMNS) if column in table.column_names]
        for number, row in enumerate(table.select_columns(known) if known else table, 1):
            yield f"{name}: row {number}", row
        return
    path = Path(place)
    if path.is_dir() and not (path / LABELS).exists():
        raise UserError(f"--difficulty-labels {place} has no {LABELS}; make it with tools/label_difficulty.py")
    yield from read_file(path / LABELS if path.is_dir() else path, "--difficulty-labels")


def _to_level(value: object) -> float | None:
    """A number from 1 to 10, also as text; None for anything else.

    >>> _to_level(4), _to_level("6.5"), _to_level(-1), _to_level("[[5]]"), _to_level(None)
    (4.0, 6.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        level = float(value)
    except ValueError:
        return None
    return level if _LEAST <= level <= _MOST else None


def keep_levels(
    problems: Iterable[Problem], levels: Mapping[str, float], lower: float | None = None, upper: float | None = None
) -> Iterator[Problem]:
    """The problems with a level from ``lower`` to ``upper``, both included; None is no bound.

    How many have no level, or another one, is said on standard error.

    >>> easy, hard, new = (
    ...     Problem(source="s", split="t", question=text, reference="1") for text in ("easy", "hard", "new")
    ... )
    >>> [p.question for p in keep_levels([easy, hard], {easy.id: 2.0, hard.id: 8.5}, 4, 9)]
    ['hard']

    Raises:
        UserError: none is left.
    """
    kept = unlabelled = outside = 0
    for problem in problems:
        level = levels.get(problem.id)
        if level is None:
            unlabelled += 1
        elif (lower is not None and level < lower) or (upper is not None and level > upper):
            outside += 1
        else:
            kept += 1
            yield problem
    told = f"{unlabelled} have no level, {outside} are outside of {_describe_bounds(lower, upper)}"
    if not kept:
        raise UserError(f"--filter-difficulty leaves no problem: {told}")
    if unlabelled or outside:
        print(f"problems left out by --filter-difficulty: {told}", file=sys.stderr)


def _describe_bounds(lower: float | None, upper: float | None) -> str:
    """
    >>> _describe_bounds(4, None), _describe_bounds(None, None)
    ('4 to 10', '1 to 10')
    """
    return f"{_LEAST if lower is None else lower:g} to {_MOST if upper is None else upper:g}"
