"""Answer sets: a question with its first k sampled answers in a recorded random order, for the aggregator to read.

Everything streams: answers are found by where they stand in ``answers.jsonl``, so memory holds a few hundred
bytes an answer, however long it is, and the sets come in the order of ``problems.jsonl``, whatever order (or resumed
run) the answers were written in.

Where this departs from the SSA reference (arXiv 2506.09014): the none-filter is one limit (``max_none``) and so
never lets a set of nothing through; the order of the answers is shuffled; every text is tokenized once, in batches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import Answer, AnswerSet, Problem, Reason, Verdict

VERDICTS = "verdicts.jsonl"
_BATCH_SIZE = 128

CountTokens = Callable[[list[str]], list[int]]
Group = tuple[Problem, Sequence[Answer]]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A problem that gave no answer set, and why. Filters run in this order: too few, none, too long.

    >>> Dropped(problem_id="38d46ad3618826cf", reason="too_long", detail="4312 tokens, 4000 allowed").reason
    'too_long'
    """

    problem_id: str
    reason: Literal["too_few_answers", "none_answers", "too_long"]
    detail: str


class Kept(NamedTuple):
    """An answer set and the length of its text in the aggregator's tokens."""

    answer_set: AnswerSet
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class AnswerFolder:
    """A folder of answers, indexed: where each problem's answers begin in ``answers.jsonl``, in bytes, and the
    reason of each verdict by answer id. ``num_ungraded`` answers have no verdict. ``temperatures`` are those of the
    answers indexed, rising."""

    path: Path
    offsets: dict[str, array[int]]
    reasons: dict[str, Reason]
    num_ungraded: int
    temperatures: tuple[float, ...]

    @property
    def num_samples(self) -> int:
        """The most answers that a problem has."""
        return max(map(len, self.offsets.values()), default=0)


def open_answers(folder: str | Path, *, temperature: float | None = None) -> AnswerFolder:
    """Index a folder of ``generate_answers``: all its answers, or those of one temperature.

    Raises:
        UserError: no such folder, no answers (of that temperature), or a malformed line.
    """
    folder = Path(folder)
    store.read_manifest(folder)
    reasons: dict[str, Reason] = {}
    for verdict in store.read_records(folder / VERDICTS, Verdict):
        reasons[verdict.answer_id] = sys.intern(verdict.reason)
    offsets: dict[str, array[int]] = {}
    num_ungraded = 0
    temperatures: set[float] = set()
    for offset, line in _whole_lines(folder / ANSWERS):
        answer = _load_answer(folder / ANSWERS, offset, line)
        temperatures.add(answer.sampling.temperature)
        if temperature not in (None, answer.sampling.temperature):
            continue
        offsets.setdefault(answer.problem_id, array("q")).append(offset)
        num_ungraded += answer.id not in reasons
    if not temperatures:
        raise UserError(f"{folder} has no answers yet; run: python tools/generate_answers.py ... --out {folder}")
    if not offsets:
        there = ", ".join(f"{value:g}" for value in sorted(temperatures))
        raise UserError(f"{folder} has no answers of temperature {temperature:g}; there are: {there}")
    return AnswerFolder(
        path=folder, offsets=offsets, reasons=reasons, num_ungraded=num_ungraded,
        temperatures=tuple(sorted(temperatures if temperature is None else {temperature})),
    )  # fmt: skip


def require_verdicts(answers: AnswerFolder) -> None:
    """Raise UserError unless every answer has been graded."""
    command = f"run: python tools/check_answers.py --answers {answers.path}"
    if not answers.reasons:
        raise UserError(f"{answers.path} has no {VERDICTS}; {command}")
    if answers.num_ungraded:
        raise UserError(f"{answers.path}: {answers.num_ungraded} answers have no verdict yet; {command}")


def require_samples(answers: AnswerFolder, num_answers: int) -> None:
    """Raise UserError when ``num_answers`` is no number of answers that some problem of the folder has."""
    if num_answers < 1:
        raise UserError(f"num_answers={num_answers} should be at least 1")
    if num_answers > answers.num_samples:
        raise UserError(
            f"num_answers={num_answers} is above the {answers.num_samples} samples a problem has in {answers.path}; "
            "generate more or lower it"
        )


def read_groups(answers: AnswerFolder) -> Iterator[Group]:
    """Every problem with all its answers by temperature and ``sample_index``, in the order of ``problems.jsonl``.

    Raises:
        UserError: a malformed line, or answers to a problem that ``problems.jsonl`` lacks.
    """
    unknown = set(answers.offsets)
    path = answers.path / ANSWERS
    with path.open("rb") as file:
        for problem in store.read_records(answers.path / PROBLEMS, Problem):
            group = []
            for offset in answers.offsets.get(problem.id, ()):
                file.seek(offset)
                group.append(_load_answer(path, offset, file.readline()))
            unknown.discard(problem.id)
            yield problem, sorted(group, key=lambda a: (a.sampling.temperature, a.sample_index))
    if unknown:
        raise UserError(f"{path} has answers to problem {min(unknown)}, which {PROBLEMS} lacks; use a new folder")


def first_answers(
    problem: Problem, answers: Sequence[Answer], num_answers: int, order_seed: int
) -> AnswerSet | Dropped:
    """The set of a problem's first ``num_answers`` answers, shuffled; no filter but having that many.

    Args:
        answers: by ``sample_index``.
        order_seed: the run's; the set records its own, from this one and the problem's id, so that
            ``random.Random(answer_set.order_seed).shuffle`` of the first answers gives its order again.

    Example:
        >>> from tt_reasoning.types import Sampling
        >>> problem = Problem(source="demo", split="test", question="What is 2 + 2?", reference="4")
        >>> answers = [
        ...     Answer(id=str(i), problem_id=problem.id, sample_index=i, text="4", num_tokens=1, finish_reason="stop",
        ...            sampling=Sampling(model="m", prompt="answer")) for i in range(6)]
        >>> [answer.id for answer in first_answers(problem, answers, 4, order_seed=0).answers]
        ['3', '0', '2', '1']
    """
    if len(answers) < num_answers:
        return Dropped(
            problem_id=problem.id, reason="too_few_answers", detail=f"{len(answers)} answers, {num_answers} needed"
        )
    order_seed = int(hashlib.sha256(f"{order_seed} {problem.id}".encode()).hexdigest()[:8], 16)
    order = list(answers[:num_answers])
    random.Random(order_seed).shuffle(order)
    chosen = tuple(order)
    identity = AnswerSet.make_id(problem, chosen, order_seed)
    return AnswerSet(id=identity, problem=problem, answers=chosen, order_seed=order_seed)


def build_answer_sets(
    groups: Iterable[Group],
    *,
    num_answers: int,
    order_seed: int,
    max_none: int,
    is_extractable: Callable[[Answer], bool],
    max_length: int,
    count_tokens: CountTokens,
) -> Iterator[Kept | Dropped]:
    """One result a group, in order, in flat memory.

    Args:
        groups: problems with their answers by ``sample_index``, as ``read_groups`` gives them.
        num_answers: answers in a set: the first so many.
        order_seed: see ``first_answers``.
        max_none: a set may have this many answers without an extractable result.
        is_extractable: whether an answer has an extractable result.
        max_length: a set's text (``answer_set_text``) may have this many tokens.
        count_tokens: the lengths of a batch of texts.
    """
    made = (first_answers(problem, answers, num_answers, order_seed) for problem, answers in groups)
    checked = (_check_none(found, max_none, is_extractable) for found in made)
    for batch in _batched(checked, _BATCH_SIZE):
        sets = [found for found in batch if isinstance(found, AnswerSet)]
        texts = [answer_set_text(s.problem.question, [answer.text for answer in s.answers]) for s in sets]
        lengths = iter(count_tokens(texts))
        for found in batch:
            yield found if isinstance(found, Dropped) else _check_length(found, next(lengths), max_length)


def _check_none(
    found: AnswerSet | Dropped, max_none: int, is_extractable: Callable[[Answer], bool]
) -> AnswerSet | Dropped:
    if isinstance(found, Dropped):
        return found
    none = sum(not is_extractable(answer) for answer in found.answers)
    if none <= max_none:
        return found
    detail = f"{none} of {len(found.answers)} answers have no extractable result, {max_none} allowed"
    return Dropped(problem_id=found.problem.id, reason="none_answers", detail=detail)


def _check_length(found: AnswerSet, num_tokens: int, max_length: int) -> Kept | Dropped:
    if num_tokens <= max_length:
        return Kept(found, num_tokens)
    detail = f"{num_tokens} tokens, {max_length} allowed"
    return Dropped(problem_id=found.problem.id, reason="too_long", detail=detail)


def _batched(items: Iterable[AnswerSet | Dropped], size: int) -> Iterator[list[AnswerSet | Dropped]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def load_token_counter(tokenizer: str | Path) -> CountTokens:
    """Counts tokens by the ``tokenizer.json`` of a model's folder, without special tokens, truncation or padding.

    Raises UserError when there is no such file.
    """
    from tokenizers import Tokenizer

    path = Path(tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}; name a model's folder, such as one of tools/get_model.py")
    loaded = Tokenizer.from_file(str(path))
    loaded.no_truncation()
    loaded.no_padding()
    return lambda texts: [len(e) for e in loaded.encode_batch_fast(texts, add_special_tokens=False)]


def describe_records(path: str | Path) -> str:
    """How many records a file has and their digest, to tell a grown or regraded file from the one used before.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w+") as file:
    ...     _ = file.write('{"a": 1}\\n{"a": 2}\\n{"a"'), file.flush()
    ...     describe_records(file.name)
    '2 records, sha256 5b8f82d3cc665330'
    """
    digest, count = hashlib.sha256(), 0
    for _, line in _whole_lines(Path(path)):
        digest.update(line)
        count += 1
    return f"{count} records, sha256 {digest.hexdigest()[:16]}"


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with the byte each begins at; none of no file; a torn last line is left out."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _load_answer(path: Path, offset: int, line: bytes) -> Answer:
    try:
        return store.load_record(Answer, json.loads(line))
    except (ValueError, AttributeError) as error:
        number = 1 + path.read_bytes()[:offset].count(b"\n")
        raise UserError(f"{path}:{number}: not an Answer record: {error}") from None
