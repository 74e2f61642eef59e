"""The verdicts of a whole folder of answers: graded in chunks, kept beside the settings that made them, counted.

``verdicts.jsonl`` holds the verdicts, ``verdicts.json`` the settings and what the verdicts come to. Only answers
without a verdict are graded, so a kill loses the chunk under way and nothing else. No torch here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from pathlib import Path

from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS
from tt_reasoning.grading import accuracy, count_reasons
from tt_reasoning.prompts import get_prompt
from tt_reasoning.sandbox import Limits
from tt_reasoning.selection import bootstrap_interval
from tt_reasoning.store import append_records, read_records, versions, write_json
from tt_reasoning.types import Answer, Kind, Problem, Verdict

SETTINGS = "verdicts.json"
CHUNK = 100  # answers graded between two writes

# What was graded by before it was a setting; those of programs stand in folders that hold some.
_DEFAULTS = {"percent_as_fraction": False, "unsafe_no_sandbox": False} | {
    name: getattr(Limits, name) for name in ("test_timeout_s", "total_timeout_s", "memory_mb")
}

Item = tuple[str, str, str, Kind]  # what Grader.grade_many takes


def grade_missing(
    folder: Path,
    settings: Mapping[str, object],
    problems: Mapping[str, Problem],
    graded: Set[str],
    grade: Callable[[Iterator[list[Item]]], Iterable[list[Verdict]]],
    chunk_size: int = CHUNK,
) -> None:
    """Append the verdicts of the answers that are not ``graded``.

    Args:
        settings: of the ``Grader`` behind ``grade``; they stand in ``verdicts.json`` before the first verdict does.
        problems: by id.
        grade: makes of chunks of items their verdicts.
        chunk_size: answers graded between two writes.
    """
    write_json(folder / SETTINGS, describe_settings(settings))
    for chunk in grade(read_items(folder, problems, graded, chunk_size)):
        append_records(folder / VERDICTS, chunk)


def read_items(
    folder: Path, problems: Mapping[str, Problem], graded: Set[str] = frozenset(), chunk_size: int = CHUNK
) -> Iterator[list[Item]]:
    """What ``Grader.grade_many`` takes for the answers that are not ``graded``, a chunk at a time."""
    todo = (answer for answer in read_records(folder / ANSWERS, Answer) if answer.id not in graded)
    while chunk := list(islice(todo, chunk_size)):
        asked = [problems[answer.problem_id] for answer in chunk]
        yield [
            (answer.id, whole_text(folder, answer), problem.reference, problem.kind)
            for answer, problem in zip(chunk, asked, strict=True)
        ]


def whole_text(folder: Path, answer: Answer) -> str:
    """What is read of an answer: a completion begins with its prompt's prefill."""
    return get_prompt(answer.sampling.prompt, folder).prefill + answer.text


def describe_settings(settings: Mapping[str, object]) -> dict:
    """The settings as ``verdicts.json`` holds them."""
    return {"tool": "check_answers", "arguments": dict(settings), "versions": versions()}


def check_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Raise UserError when the folder has verdicts of other settings, or of unknown ones."""
    path = folder / SETTINGS
    try:
        old = json.loads(path.read_text(encoding="utf-8"))["arguments"] if path.exists() else None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read; pass --regrade to grade anew") from None
    if old is None and (folder / VERDICTS).exists():
        raise UserError(f"{folder} has verdicts without their settings; pass --regrade to grade anew")
    if old is not None and _DEFAULTS | old != _DEFAULTS | dict(settings):
        raise UserError(
            f"{folder} was graded with {_show(old)}, now {_show(settings)}; "
            "repeat the old settings, or pass --regrade to grade anew"
        )


def _show(settings: Mapping[str, object]) -> str:
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    flags = {True: "--{}", False: "--no-{}"}
    return " ".join(flags[v].format(n) if isinstance(v, bool) else f"--{n} {v}" for n, v in names.items())


def write_report(folder: Path, settings: Mapping[str, object], problem_of: Mapping[str, str]) -> dict:
    """Write ``verdicts.json`` with what the verdicts come to, and return that.

    Args:
        problem_of: the problem's id by the answer's.
    """
    report = _report(folder / VERDICTS, problem_of)
    write_json(folder / SETTINGS, {**describe_settings(settings), "report": report})
    return report


def _report(path: Path, problem_of: Mapping[str, str]) -> dict:
    """How the verdicts count, and the accuracy of the judged ones with its interval; the rest is no part of it.

    The interval is bootstrapped over problems. The accuracy p = sum c_i / sum m_i, of problems with m_i judged and
    c_i correct answers, is a ratio; the values whose mean is p to first order, and exactly, are
    p + (c_i - p m_i) / mean(m) (Cochran 1977, ch. 6).
    """
    counts = count_reasons(read_records(path, Verdict))
    share = accuracy(read_records(path, Verdict))
    judged, correct = Counter(), Counter()
    for verdict in read_records(path, Verdict):
        if verdict.correct is not None:
            problem = problem_of.get(verdict.answer_id, verdict.answer_id)
            judged[problem] += 1
            correct[problem] += verdict.correct
    interval = None
    if len(judged) > 1:
        mean = judged.total() / len(judged)
        low, high = bootstrap_interval([share + (correct[p] - share * judged[p]) / mean for p in judged])
        interval = [max(0.0, low), min(1.0, high)]
    num_judged = judged.total()
    return {
        "counts": counts, "judged": num_judged, "not_judged": sum(counts.values()) - num_judged,
        "problems": len(judged), "accuracy": share, "interval": interval,
    }  # fmt: skip
