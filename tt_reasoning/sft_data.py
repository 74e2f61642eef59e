"""SFT rows for the aggregator: justifications by a model that saw the gold answer, kept only if they pass four checks.

A strong model reads a set with its gold answer and writes what the aggregator should have written (SSA, arXiv
2506.09014). It is kept if it ended by itself, has the form that the aggregator is trained to write, ends in the gold
answer (by the grader of every other stage) and does not betray that its writer knew the answer (``leaks``). What is
rejected is kept too, with its reason.

Unlike the reference, which compares strings once: mathematics is graded, form and leaks are checked, several tries
can be made, and what cannot be judged is counted apart.
"""

from __future__ import annotations

import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.answer_sets.rows import SetRow
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts, draw_tries
from tt_reasoning.grading import Grader, count_reasons
from tt_reasoning.leaks import KINDS, find_leak
from tt_reasoning.prompts import Prompt, oracle_text
from tt_reasoning.store import append_records, read_records
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

JUSTIFICATIONS = "justifications.jsonl"
SFT = "sft.jsonl"
REJECTED = "rejected.jsonl"
STATS = "stats.json"
_GRADED_AT_ONCE = 64

Rejection = Literal["truncated", "form", "unjudged", "wrong", "leak", "repeated", "surplus"]

_TAG = re.compile(r"</?(?:think|answer)>")
_FORM = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)
_SPECIAL = re.compile(r"<\|[a-z_]{3,}\|>")  # a tokenizer would read it as what it names


class Item(NamedTuple):
    """A set to justify: its place in the source, its row, and what the model is asked (its id covers set and gold)."""

    index: int
    row: SetRow
    asked: Problem


class Try(NamedTuple):
    """One justification: the record, the whole response (prefill included) and the verdict on it."""

    answer: Answer
    response: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class SFTRow:
    """One line of ``sft.jsonl``: the columns of the SSA reference, and two to join on.

    ``question`` is what the aggregator reads, without the gold; ``model_response`` what it should write.
    """

    index: int
    question: str
    expected_answer: str
    model_response: str
    extracted_answer: str | None
    is_correct: bool | None
    problem_id: str
    answer_id: str


@dataclass(frozen=True, kw_only=True)
class RejectedRow(SFTRow):
    """One line of ``rejected.jsonl``: the same columns, why it is there, and the detail in words."""

    reason: Rejection
    detail: str


def choose_items(rows: Iterable[SetRow], grader: Grader, split: str) -> tuple[list[Item], dict[str, int]]:
    """What to ask, and how many rows are not asked: the same set once more, or a gold that no answer could match.

    Raises:
        UserError: a row of kind ``code``, which is not graded by comparing texts.
    """
    items: dict[str, Item] = {}
    not_asked = {"duplicate": 0, "bad_reference": 0}
    for index, row in enumerate(rows):
        if row.kind == "code":
            raise UserError(f"problem {row.problem_id} asks for code, which cannot be graded here; leave such sets out")
        asked = Problem(
            source="answer sets", split=split, question=oracle_text(row.text, row.reference),
            reference=row.reference, kind=row.kind,
        )  # fmt: skip
        if asked.id in items:
            not_asked["duplicate"] += 1
        elif grader.grade(f"<answer>{row.reference}</answer>", row.reference, row.kind).correct is not True:
            not_asked["bad_reference"] += 1
        else:
            items[asked.id] = Item(index, row, asked)
    return list(items.values()), not_asked


def find_fault(response: str) -> str | None:
    """What keeps a response from being one thought and one answer and nothing else; None if it is that.

    >>> find_fault("<think> 2 < 3, so 2. </think> <answer>2</answer>")
    >>> find_fault("Sure! <think>2</think> <answer>2</answer>")
    'text outside of the tags'
    >>> find_fault("<answer>2</answer> <think>2</think>")
    'the tags are <answer></answer><think></think>'
    """
    tags = "".join(_TAG.findall(response))
    if tags != "<think></think><answer></answer>":
        return f"the tags are {tags[:100]}" if tags else "there are no tags"
    form = _FORM.fullmatch(response)
    if form is None:
        return "text outside of the tags"
    if not form[1].strip() or not form[2].strip():
        return f"nothing inside of {'<think>' if not form[1].strip() else '<answer>'}"
    special = _SPECIAL.search(response)
    return f"a special token: {special[0]}" if special else None


def reject(attempt: Try) -> tuple[Rejection, str] | None:
    """Why a justification is not to be learned, with a detail in words; None if it is sound.

    The first of these that holds: ``truncated`` (cut at the token limit), ``form``, ``unjudged`` (the grader could
    not tell), ``wrong`` (another answer than the gold, or none) and ``leak``.
    """
    if attempt.answer.finish_reason == "length":
        return "truncated", f"{attempt.answer.num_tokens} tokens"
    if fault := find_fault(attempt.response):
        return "form", fault
    if attempt.verdict.correct is None:
        return "unjudged", attempt.verdict.reason
    if not attempt.verdict.correct:
        return "wrong", attempt.verdict.reason
    if leak := find_leak(attempt.response):
        return "leak", f"{leak.kind}: {leak.phrase}"
    return None


def sort_tries(item: Item, tries: Sequence[Try], keep: int) -> tuple[list[SFTRow], list[RejectedRow]]:
    """The first ``keep`` sound justifications of a set, and all others: each try is in one of the two lists.

    Sound ones are left out as ``repeated`` (the words of one that is kept) or ``surplus`` (more than ``keep``).
    """
    kept: list[SFTRow] = []
    rejected: list[RejectedRow] = []
    for attempt in tries:
        row = SFTRow(
            index=item.index, question=item.row.text, expected_answer=item.row.reference,
            model_response=attempt.response, extracted_answer=attempt.verdict.extracted,
            is_correct=attempt.verdict.correct, problem_id=item.row.problem_id, answer_id=attempt.answer.id,
        )  # fmt: skip
        found = reject(attempt)
        if found is None and any(row.model_response == other.model_response for other in kept):
            found = "repeated", "the words of one that is kept"
        elif found is None and len(kept) == keep:
            found = "surplus", f"{keep} are kept"
        if found is None:
            kept.append(row)
        else:
            rejected.append(RejectedRow(**asdict(row), reason=found[0], detail=found[1]))
    return kept, rejected


def write_justifications(
    items: Sequence[Item],
    samplings: Sequence[Sampling],
    keep: int,
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: Path,
    grader: Grader,
    chunk_size: int,
) -> Counts:
    """Ask and grade, try by try, until every set has ``keep`` sound justifications or no try is left.

    Args:
        samplings: one a try, with different seeds.
        chunk_size: sets in one engine call; the same on resume.

    Returns:
        ``written`` and ``resumed`` of all tries, and what ``failed``. The tries end early when the engine does.
    """

    def find_short(others: Sequence[Sampling]) -> list[Problem]:
        found = grade_tries(items, samplings, prompt, folder, grader)
        return [item.asked for item in items if len(sort_tries(item, tries_of(item, others, found), keep)[0]) < keep]

    return draw_tries(samplings, find_short, start_engine, prompt, folder, chunk_size, JUSTIFICATIONS, unit="set")


def grade_tries(
    items: Sequence[Item], samplings: Sequence[Sampling], prompt: Prompt, folder: Path, grader: Grader
) -> dict[str, Try]:
    """The tries on disk by answer id; verdicts that are missing are made and appended to ``verdicts.jsonl``."""
    wanted = {sampling.answer_id(item.asked.id, 0): item for item in items for sampling in samplings}
    answers = [answer for answer in read_records(folder / JUSTIFICATIONS, Answer) if answer.id in wanted]
    responses = {answer.id: (prompt.prefill + answer.text).strip() for answer in answers}
    verdicts = {verdict.answer_id: verdict for verdict in read_records(folder / VERDICTS, Verdict)}
    missing = [answer.id for answer in answers if answer.id not in verdicts]
    with tqdm(total=len(missing), desc="grade", unit="justification", disable=not missing) as bar:
        for start in range(0, len(missing), _GRADED_AT_ONCE):
            chunk = missing[start : start + _GRADED_AT_ONCE]
            graded = grader.grade_many(
                (name, responses[name], wanted[name].row.reference, wanted[name].row.kind) for name in chunk
            )
            append_records(folder / VERDICTS, graded)
            verdicts.update((verdict.answer_id, verdict) for verdict in graded)
            bar.update(len(chunk))
    return {answer.id: Try(answer, responses[answer.id], verdicts[answer.id]) for answer in answers}


def tries_of(item: Item, samplings: Sequence[Sampling], tries: Mapping[str, Try]) -> list[Try]:
    """The tries of one set that there are, in the order of ``samplings``."""
    names = [sampling.answer_id(item.asked.id, 0) for sampling in samplings]
    return [tries[name] for name in names if name in tries]


def summarise(
    num_items: int,
    not_asked: dict[str, int],
    kept: Sequence[SFTRow],
    rejected: Sequence[RejectedRow],
    tries: Sequence[Try],
    num_missing: int,
) -> dict[str, Any]:
    """What ``stats.json`` holds.

    ``unjudged`` stands apart from ``rejected``; ``leaks`` are the rejected leaks by kind; ``missing`` are requests
    that failed or were not made.
    """
    reasons = Counter(row.reason for row in rejected)
    leaks = Counter(row.detail.partition(":")[0] for row in rejected if row.reason == "leak")
    unjudged = Counter(row.detail for row in rejected if row.reason == "unjudged")
    num_kept = len({row.index for row in kept})
    return {
        "num_sets": num_items,
        "not_asked": not_asked,
        "num_justifications": len(kept) + len(rejected),
        "num_kept": len(kept),
        "num_sets_kept": num_kept,
        "share_of_sets_kept": num_kept / num_items,
        "rejected": {name: reasons[name] for name in typing.get_args(Rejection) if name != "unjudged"},
        "leaks": {kind: leaks[kind] for kind in KINDS},
        "unjudged": dict(unjudged),
        "verdicts": count_reasons(attempt.verdict for attempt in tries),
        "missing": num_missing,
        "num_tokens": sum(attempt.answer.num_tokens for attempt in tries),
    }
