"""Answer sets begin here: folders of answers read fast and in little memory, and a problem's first answers as a set.

Everything streams: an index says where each answer stands in ``answers.jsonl`` and what its verdict is, a few dozen
bytes an answer, however long it is. Problems come in the order of ``problems.jsonl``, whatever order (or resumed run)
the answers were written in. ``answer_sets.building`` makes training sets out of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.types import (
    Answer,
    AnswerSet,
    Divergence,
    FinishReason,
    Guidance,
    Problem,
    Reason,
    Sampling,
    Verdict,
)

VERDICTS = "verdicts.jsonl"
_REASONS: tuple[Reason, ...] = get_args(Reason)
_UNGRADED = -1
_MAX_ENDS = 50_000  # different ends of lines that are remembered; each has a number of tokens and a sampling

Group = tuple[Problem, Sequence[Answer]]
DropReason = Literal[
    "excluded", "references_differ", "too_few_answers", "none_answers", "too_long",
    "source_surplus", "all_correct_surplus", "all_wrong_surplus",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A problem that gave no answer set, and why. Filters run in the order of the reasons in ``DropReason``.

    >>> Dropped(problem_id="38d46ad3618826cf", source="gsm8k", reason="too_long", detail="4312 tokens, 4000 allowed")
    Dropped(problem_id='38d46ad3618826cf', source='gsm8k', reason='too_long', detail='4312 tokens, 4000 allowed')
    """

    problem_id: str
    source: str
    reason: DropReason
    detail: str


@dataclass(frozen=True, kw_only=True)
class AnswerFolder:
    """A folder of answers, indexed.

    ``problems`` has the byte at which each problem begins in ``problems.jsonl``, in order; ``rows`` the numbers of its
    answers in the columns, in the order of ``answers.jsonl``. The columns: ``offsets`` is the byte at which an answer
    begins, ``sample_indexes`` its own, ``ways`` its place in ``samplings``, ``verdicts`` the number of its reason.
    ``num_ungraded`` answers have no verdict; ``num_repeated`` stood there before and are left out.
    """

    path: Path
    problems: dict[str, int]
    splits: frozenset[str]
    rows: dict[str, array[int]]
    offsets: array[int]
    sample_indexes: array[int]
    ways: array[int]
    verdicts: array[int]
    samplings: tuple[Sampling, ...]
    num_ungraded: int
    num_repeated: int

    @property
    def num_samples(self) -> int:
        """The most answers that a problem has."""
        return max(map(len, self.rows.values()), default=0)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the answers indexed, rising."""
        return tuple(sorted({sampling.temperature for sampling in self.samplings}))

    @property
    def guidances(self) -> tuple[Guidance | None, ...]:
        """Of the answers indexed: none first, then by rule and eta."""
        found = {sampling.guidance for sampling in self.samplings}
        return tuple(sorted(found, key=lambda g: (g.rule, g.eta, g.value_model, g.top_k, g.outside) if g else ()))

    def guided_by(self, guidance: Guidance | None) -> AnswerFolder:
        """The same folder with the answers of one guidance alone, or with those that were not guided."""
        ways = {way for way, sampling in enumerate(self.samplings) if sampling.guidance == guidance}
        rows = {name: array("q", (row for row in of if self.ways[row] in ways)) for name, of in self.rows.items()}
        return replace(self, rows={name: found for name, found in rows.items() if found})

    def reason(self, row: int) -> Reason:
        """The verdict's reason of a graded answer."""
        return _REASONS[self.verdicts[row]]

    @property
    def is_graded(self) -> bool:
        """Whether any answer has a verdict."""
        return self.num_ungraded < len(self.offsets)


def open_answers(
    folder: str | Path, *, temperature: float | None = None, etas: Collection[float] = (), first: int | None = None
) -> AnswerFolder:
    """Index a folder of ``generate_answers``: all its answers, or those of one temperature, of some etas.

    Args:
        etas: of guidance by a value model; answers without guidance have eta 0. All unless given.
        first: only so many answers to each problem, as of ``check_answers --first``.

    Raises:
        UserError: no such folder, no answers (of that temperature, of one of the etas), or a malformed line. Texts are
            not looked at here but when they are read.
    """
    folder = Path(folder)
    store.read_manifest(folder)
    problems, splits = _index_problems(folder / PROBLEMS)
    rows: dict[str, array[int]] = {}
    offsets, sample_indexes, ways, verdicts = array("q"), array("q"), array("H"), array("b")
    numbers: dict[Sampling, int] = {}
    others: set[float] = set()
    etas_there: set[float] = set()
    ungraded: dict[str, int] = {}
    num_repeated, way, before = 0, 0, None
    reader, graded = AnswerReader(folder / ANSWERS), _VerdictQueue(folder / VERDICTS)
    for offset, line in store.read_lines(folder / ANSWERS):
        identity, problem_id, sample_index, sampling = reader.locate(offset, line)
        verdict = graded.take(identity)
        if temperature not in (None, sampling.temperature):
            others.add(sampling.temperature)
            continue
        etas_there.add(sampling.eta)
        if (etas and sampling.eta not in etas) or (first is not None and sample_index >= first):
            continue
        if sampling is not before:
            way, before = numbers.setdefault(sampling, len(numbers)), sampling
        of_problem = rows.get(problem_id)
        if of_problem is None:
            of_problem = rows[problem_id] = array("q")
        for row in of_problem:
            if sample_indexes[row] == sample_index and ways[row] == way:
                num_repeated += 1
                break
        else:
            if verdict == _UNGRADED:
                ungraded[identity] = len(offsets)
            of_problem.append(len(offsets))
            offsets.append(offset)
            sample_indexes.append(sample_index)
            ways.append(way)
            verdicts.append(verdict)
    for identity, verdict in graded.rest():
        row = ungraded.pop(identity, None)
        if row is not None:
            verdicts[row] = verdict
    if missing := etas_there and set(etas) - etas_there:
        there = ", ".join(f"{value:g}" for value in sorted(etas_there))
        raise UserError(f"{folder} has no answers of eta {min(missing):g}; there are: {there}")
    if not offsets and not others:
        raise UserError(f"{folder} has no answers yet; run: python tools/generate_answers.py ... --out {folder}")
    if not offsets:
        there = ", ".join(f"{value:g}" for value in sorted(others))
        raise UserError(f"{folder} has no answers of temperature {temperature:g}; there are: {there}")
    return AnswerFolder(
        path=folder, problems=problems, splits=splits, rows=rows, offsets=offsets, sample_indexes=sample_indexes,
        ways=ways, verdicts=verdicts, samplings=tuple(numbers), num_ungraded=len(ungraded), num_repeated=num_repeated,
    )  # fmt: skip


def _index_problems(path: Path) -> tuple[dict[str, int], frozenset[str]]:
    """Where each problem begins, in bytes, and the splits that there are."""
    places: dict[str, int] = {}
    splits = set()
    for offset, line in store.read_lines(path):
        problem = load_line(Problem, path, offset, line)
        places[problem.id] = offset
        splits.add(problem.split)
    return places, frozenset(splits)


class AnswerReader:
    """Reads lines of ``answers.jsonl``. What repeats from line to line is parsed once: all but ids, text, divergence.

    A line is taken apart only as the project itself writes it; any other goes through the whole of ``load_record``,
    which also says what is wrong with a malformed one.

    >>> import tempfile
    >>> sampling = Sampling(model="m", prompt="answer")
    >>> answer = Answer(id="a", problem_id="p", sample_index=0, text="It is 4.", num_tokens=4, finish_reason="stop",
    ...                 sampling=sampling)
    >>> line = store.dump_record(answer).encode() + b"\\n"
    >>> AnswerReader("answers.jsonl").read(0, line) == answer
    True
    """

    _HEAD = re.compile(rb'\{"id":"([^"\\]+)","problem_id":"([^"\\]+)","sample_index":(\d+),"text":"')
    _END = b'","num_tokens":'  # unescaped quotes: this can stand in no text
    _LAST = b',"divergence":'  # behind it a number for every answer

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._decode = json.JSONDecoder().raw_decode
        self._ends: dict[bytes, tuple[int, FinishReason, Sampling]] = {}
        self._samplings: dict[Sampling, Sampling] = {}

    def locate(self, offset: int, line: bytes) -> tuple[str, str, int, Sampling]:
        """Id, problem, sample index and sampling of the answer that stands at a byte of the file."""
        head = self._HEAD.match(line)
        known = self._ends.get(self._split_end(line)[0]) if head else None
        if known is None:
            answer = self._read_whole(offset, line)
            return answer.id, answer.problem_id, answer.sample_index, answer.sampling
        return head[1].decode(), head[2].decode(), int(head[3]), known[2]

    def read(self, offset: int, line: bytes) -> Answer:
        """The whole answer. Raises UserError when the line holds none."""
        head, end = self._HEAD.match(line), line.rfind(self._END)
        repeated, last = self._split_end(line)
        known = self._ends.get(repeated) if head else None
        if known is None:
            return self._read_whole(offset, line)
        try:
            quoted = line[head.end() - 1 : end + 1].decode()
            text, length = self._decode(quoted)
            row = json.loads(last or b"null")
            divergence = None if row is None else store.load_record(Divergence, row)
        except (ValueError, AttributeError):
            return self._read_whole(offset, line)
        if length < len(quoted):
            return self._read_whole(offset, line)
        num_tokens, finish_reason, sampling = known
        return Answer(
            id=head[1].decode(), problem_id=head[2].decode(), sample_index=int(head[3]), text=text,
            num_tokens=num_tokens, finish_reason=finish_reason, sampling=sampling, divergence=divergence,
        )  # fmt: skip

    def _split_end(self, line: bytes) -> tuple[bytes, bytes]:
        """What stands behind the text, without the divergence; and that alone, empty where there is none."""
        end = line.rfind(self._END)
        last = line.rfind(self._LAST, end)
        return (line[end:], b"") if last < 0 else (line[end:last], line[last + len(self._LAST) : line.rfind(b"}")])

    def _read_whole(self, offset: int, line: bytes) -> Answer:
        answer = load_line(Answer, self._path, offset, line)
        if self._END in line and len(self._ends) < _MAX_ENDS:
            sampling = self._samplings.setdefault(answer.sampling, answer.sampling)
            self._ends[self._split_end(line)[0]] = answer.num_tokens, answer.finish_reason, sampling
        return answer


class _VerdictQueue:
    """The verdicts of a file, asked for in the order of the answers, which is mostly theirs: few wait in memory."""

    _HEAD = re.compile(rb'\{"answer_id":"([^"\\]+)","extracted":')
    _END = b',"correct":'  # an unescaped quote in front of a colon: this can stand in no extracted result

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = store.read_lines(path)
        self._ends: dict[bytes, int] = {}
        self._waiting: dict[str, int] = {}

    def take(self, answer_id: str) -> int:
        """The number of the answer's reason, or _UNGRADED where it is not known yet."""
        if self._waiting:
            found = self._waiting.pop(answer_id, None)
            if found is not None:
                return found
        for offset, line in self._lines:
            identity, verdict = self._parse(offset, line)
            if identity == answer_id:
                return verdict
            self._waiting[identity] = verdict
            break
        return _UNGRADED

    def rest(self) -> Iterator[tuple[str, int]]:
        """What nobody has taken."""
        yield from self._waiting.items()
        for offset, line in self._lines:
            yield self._parse(offset, line)

    def _parse(self, offset: int, line: bytes) -> tuple[str, int]:
        head = self._HEAD.match(line)
        end = line[line.rfind(self._END) :]
        known = self._ends.get(end) if head else None
        if known is not None:
            return head[1].decode(), known
        verdict = load_line(Verdict, self._path, offset, line)
        number = _REASONS.index(verdict.reason)
        if head and len(end) < 100:
            self._ends[end] = number
        return verdict.answer_id, number


def require_verdicts(answers: AnswerFolder) -> None:
    """Raise UserError unless every answer has been graded."""
    command = f"run: python tools/check_answers.py --answers {answers.path}"
    if not answers.is_graded:
        raise UserError(f"{answers.path} has no {VERDICTS}; {command}")
    if answers.num_ungraded:
        raise UserError(f"{answers.path}: {answers.num_ungraded} answers have no verdict yet; {command}")


def read_settings(path: Path) -> dict:
    """The arguments that check_answers graded the folder by, which a ``Grader`` takes; none of no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["arguments"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read; grade anew: tools/check_answers.py --regrade") from None


def require_samples(answers: AnswerFolder, num_answers: int) -> None:
    """Raise UserError when ``num_answers`` is no number of answers that some problem of the folder has."""
    require_enough(num_answers, answers.num_samples, str(answers.path))


def require_enough(num_answers: int, num_samples: int, where: str) -> None:
    """The same for ``num_samples`` that are known."""
    if num_answers < 1:
        raise UserError(f"num_answers={num_answers} should be at least 1")
    if num_answers > num_samples:
        raise UserError(
            f"num_answers={num_answers} is above the {num_samples} samples a problem has in {where}; "
            "generate more or lower it"
        )


def read_groups(answers: AnswerFolder) -> Iterator[Group]:
    """Every problem with all its answers by temperature, eta and ``sample_index``, in the order of ``problems.jsonl``.

    Raises:
        UserError: a malformed line, or answers to a problem that ``problems.jsonl`` lacks.
    """
    require_problems(answers)
    path = answers.path / ANSWERS
    reader = AnswerReader(path)
    with path.open("rb") as file:
        for problem in store.read_records(answers.path / PROBLEMS, Problem):
            group = []
            for row in answers.rows.get(problem.id, ()):
                offset = answers.offsets[row]
                file.seek(offset)
                group.append(reader.read(offset, file.readline()))
            yield problem, sorted(group, key=lambda a: (a.sampling.temperature, a.sampling.eta, a.sample_index))


def require_problems(answers: AnswerFolder) -> None:
    """Raise UserError when there are answers to a problem that ``problems.jsonl`` lacks."""
    unknown = answers.rows.keys() - answers.problems.keys()
    if unknown:
        raise UserError(
            f"{answers.path / ANSWERS} has answers to problem {min(unknown)}, which {PROBLEMS} lacks; use a new folder"
        )


def first_answers(
    problem: Problem, answers: Sequence[Answer], num_answers: int, order_seed: int
) -> AnswerSet | Dropped:
    """The set of a problem's first ``num_answers`` answers, shuffled; no filter but having that many.

    Args:
        answers: by ``sample_index``.
        order_seed: the run's; the set records its own, from this one and the problem's id, so that
            ``random.Random(answer_set.order_seed).shuffle`` of the first answers gives its order again.

    Example:
        >>> problem = Problem(source="demo", split="test", question="What is 2 + 2?", reference="4")
        >>> answers = [
        ...     Answer(id=str(i), problem_id=problem.id, sample_index=i, text="4", num_tokens=1, finish_reason="stop",
        ...            sampling=Sampling(model="m", prompt="answer")) for i in range(6)]
        >>> [answer.id for answer in first_answers(problem, answers, 4, order_seed=0).answers]
        ['3', '0', '2', '1']
    """
    if len(answers) < num_answers:
        return too_few(problem, len(answers), num_answers)
    seed = seed_of_set(order_seed, problem.id)
    chosen = tuple(shuffled(answers[:num_answers], seed))
    return AnswerSet(
        id=AnswerSet.make_id(problem, chosen, seed), problem=problem, answers=chosen, order_seed=seed
    )



def seed_of_set(order_seed: int, problem_id: str) -> int:
    """The seed that a set records, from the run's and its problem."""
    return int(hashlib.sha256(f"{order_seed} {problem_id}".encode()).hexdigest()[:8], 16)


def shuffled(items: Sequence[store.T], seed: int) -> list[store.T]:
    """The items in the order that ``random.Random(seed).shuffle`` gives."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def too_few(problem: Problem, available: int, needed: int) -> Dropped:
    """What becomes of a problem with fewer answers than a set needs."""
    return drop(problem, "too_few_answers", f"{available} answers, {needed} needed")


def drop(problem: Problem, reason: DropReason, detail: str) -> Dropped:
    """A problem as one that gave no set."""
    return Dropped(problem_id=problem.id, source=problem.source, reason=reason, detail=detail)


def describe_records(path: str | Path) -> str:
    """How many records a file has and their digest, to tell a grown or regraded file from the one used before.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w+") as file:
    ...     _ = file.write('{"a": 1}\\n{"a": 2}\\n{"a"'), file.flush()
    ...     describe_records(file.name)
    '2 records, sha256 5b8f82d3cc665330'
    """
    digest, count, torn = hashlib.sha256(), 0, b""
    if Path(path).exists():
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                whole, newline, torn = (torn + block).rpartition(b"\n")
                digest.update(whole + newline)
                count += whole.count(b"\n") + len(newline)
    return f"{count} records, sha256 {digest.hexdigest()[:16]}"


def load_line(cls: type[store.T], path: Path, offset: int, line: bytes) -> store.T:
    """The record of a line. Raises UserError, with the line's number, when it holds none."""
    try:
        return store.load_record(cls, json.loads(line))
    except (ValueError, AttributeError) as error:
        number = 1 + sum(begin < offset for begin, _ in store.read_lines(path))
        article = "an" if cls.__name__[0] == "A" else "a"
        raise UserError(f"{path}:{number}: not {article} {cls.__name__} record: {error}") from None
