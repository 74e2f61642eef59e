"""Answer sets for training: from folders of graded answers, one set a problem, k answers in a recorded random order.

What goes into a set is decided on the index of the folders; only then are its texts read, measured and written on, so
memory stays flat. Several folders are one pool: a problem that several have is one, with the answers of all.

Where this departs from the SSA reference (arXiv 2506.09014): the none-filter is one limit (``max_none``) and so
never lets a set of nothing through; the order of the answers is shuffled; a random k and every other choice follow from
one recorded seed; easy and hard sets can be balanced, which AggLM (arXiv 2509.06870) found decisive.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from tt_reasoning import store
from tt_reasoning.answer_sets import (
    AnswerFolder,
    AnswerReader,
    Dropped,
    drop,
    load_line,
    open_answers,
    require_enough,
    require_problems,
    seed_of_set,
    shuffled,
    too_few,
)
from tt_reasoning.answer_sets.token_counts import CountTokens, load_token_counter
from tt_reasoning.cluster import map_chunks
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.processes import map_in_processes
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import Answer, AnswerSet, Problem, Reason, Sampling, seed_of

SETS = "sets.jsonl"
_CHUNK = 64  # problems whose sets are built together
_MANY = 1000  # problems from which on several processes are worth their start
_JUDGED: frozenset[Reason] = frozenset({"match", "mismatch", "no_answer"})

Difficulty = Literal["all_correct", "mixed", "all_wrong", "unjudged"]


@dataclass(frozen=True, kw_only=True)
class AnswerPool:
    """The problems of several folders, each once, with all their answers.

    ``samplings`` are all ways in which the answers were sampled, in a fixed order; ``ways`` gives each folder's own
    numbers in it. Problem ``number`` begins at byte ``places[number]`` of the ``problems.jsonl`` of folder
    ``owners[number]``, the first that has it. ``num_shared`` problems have answers in several folders.
    """

    folders: tuple[AnswerFolder, ...]
    samplings: tuple[Sampling, ...]
    ways: tuple[tuple[int, ...], ...]
    owners: array[int]
    places: array[int]
    num_shared: int

    def __len__(self) -> int:
        return len(self.owners)


def pool_answers(folders: Sequence[AnswerFolder], *, mix_splits: bool = False) -> AnswerPool:
    """Make one of several folders. A problem that several have is one, and its answers come from all of them.

    Raises:
        UserError: the same folder twice; answers to unknown problems; a question that is of one split in one folder and
            of another in another; folders of different splits, unless ``mix_splits``.
    """
    for number, folder in enumerate(folders):
        require_problems(folder)
        if folder.path.resolve() in [other.path.resolve() for other in folders[:number]]:
            raise UserError(f"{folder.path} is given twice")
    _require_one_split(folders, mix_splits)
    samplings = sorted({s for folder in folders for s in folder.samplings}, key=store.dump_record)
    owners, places = array("H"), array("q")
    num_shared = 0
    for number, folder in enumerate(folders):
        for name, place in folder.problems.items():
            if any(name in earlier.problems for earlier in folders[:number]):
                continue
            owners.append(number)
            places.append(place)
            num_shared += sum(name in other.rows for other in folders) > 1
    return AnswerPool(
        folders=tuple(folders), samplings=tuple(samplings), owners=owners, places=places, num_shared=num_shared,
        ways=tuple(tuple(map(samplings.index, folder.samplings)) for folder in folders),
    )  # fmt: skip


def _require_one_split(folders: Sequence[AnswerFolder], mix_splits: bool) -> None:
    splits = {split: folder for folder in folders for split in folder.splits}
    if len(splits) < 2:
        return
    for number, folder in enumerate(folders):
        for other in folders[:number]:
            for name in folder.problems.keys() & other.problems.keys():
                one, two = (_problem_at(f, f.problems[name])[0] for f in (other, folder))
                if one.split != two.split:
                    raise UserError(
                        f"question {name} is of split {one.split} in {other.path} and of split {two.split} in "
                        f"{folder.path}: sets of both would leak it; leave one of the folders out"
                    )
    if not mix_splits:
        where = ", ".join(f"{split} ({folder.path})" for split, folder in sorted(splits.items()))
        raise UserError(
            f"the answers are of different splits: {where}; make sets of each by itself, or pass --mix-splits"
        )


def _problem_at(folder: AnswerFolder, place: int) -> tuple[Problem, bytes]:
    path = folder.path / PROBLEMS
    with path.open("rb") as file:
        return _read_problem(path, file, place)


def _read_problem(path: Path, file: BinaryIO, place: int) -> tuple[Problem, bytes]:
    file.seek(place)
    line = file.readline()
    return load_line(Problem, path, place, line), line


def read_problem_ids(path: str | Path) -> set[str]:
    """The ids of the problems in a folder of answers or of answer sets, or in a file of such records.

    Raises:
        UserError: there is no such file or folder, or it holds other rows or none.
    """
    path = Path(path)
    files = [path / PROBLEMS, path / SETS] if path.is_dir() else [path]
    found: set[str] = set()
    for file in files:
        for row in store.read_rows(file):
            problem = row.get("problem", row)  # a set has its problem, a problem is one
            if not isinstance(problem, dict) or not {"id", "question", "reference"} <= problem.keys():
                raise UserError(f"{file} holds rows that are neither problems nor answer sets of this project")
            found.add(problem["id"])
    if not found:
        raise UserError(f"{path} holds no problems: name a folder of answers or of sets, or a problems.jsonl")
    return found


def refuse_excluded(names: Collection[str], excluded: Mapping[Path, set[str]]) -> None:
    """Raise UserError when problems that are to be used are among held-out ones.

    Args:
        names: the ids of the problems that are to be used.
        excluded: of each file or folder of ``--exclude``, the ids in it.
    """
    for path, ids in excluded.items():
        if shared := ids.intersection(names):
            raise UserError(
                f"{len(shared)} of the problems with answers are in {path} too, such as {min(shared)}; "
                "pass --drop-excluded to leave them out"
            )


class Candidate(NamedTuple):
    """An answer that a set may take: how it was sampled, its number there, its verdict, and where it stands."""

    way: int
    sample_index: int
    reason: Reason
    folder: int
    row: int


def draw_candidates(
    candidates: Iterable[Candidate], num_answers: tuple[int, int], set_seed: int
) -> list[Candidate]:
    """The answers of a set in their order; fewer than asked when there are too few.

    The ways of sampling take turns, in an order that the seed decides, and each gives its answers by ``sample_index``:
    no model and no temperature is favoured, and of a single one the first answers are taken, as ``first_answers`` does.

    Args:
        num_answers: fewest and most. Where they differ, the seed decides, among as many as there are.

    Example:
        >>> pool = [Candidate(way, index, "match", 0, 0) for way in (0, 1) for index in range(4)]
        >>> [(c.way, c.sample_index) for c in draw_candidates(pool, (5, 5), set_seed=7)]
        [(0, 2), (0, 0), (1, 1), (1, 0), (0, 1)]
    """
    by_way: dict[int, dict[int, Candidate]] = {}
    for candidate in candidates:  # an answer that two folders have is one
        by_way.setdefault(candidate.way, {}).setdefault(candidate.sample_index, candidate)
    queues = [[same[index] for index in sorted(same)] for _, same in sorted(by_way.items())]
    if len(queues) > 1:
        random.Random(seed_of(set_seed, "turns")).shuffle(queues)
    in_turn = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return shuffled(in_turn[: _draw_number(num_answers, len(in_turn), set_seed)], set_seed)


def _draw_number(num_answers: tuple[int, int], available: int, set_seed: int) -> int:
    fewest, most = num_answers[0], min(num_answers[1], available)
    return most if most <= fewest else fewest + seed_of(set_seed, "num_answers") % (most - fewest + 1)


@dataclass(frozen=True, kw_only=True)
class SetRules:
    """What makes a set.

    ``num_answers``: fewest and most answers in one. ``order_seed`` decides every choice. ``max_none``: a set may have
    this many answers without an extractable result. ``max_length``: its text (``answer_set_text``) may have this many
    tokens. ``excluded``: ids of problems to leave out.
    """

    num_answers: tuple[int, int]
    order_seed: int = 0
    max_none: int = 1
    max_length: int = 4000
    excluded: frozenset[str] = frozenset()


class Kept(NamedTuple):
    """An answer set: its line for ``sets.jsonl``, its length in the aggregator's tokens, and what is counted of it."""

    line: bytes
    problem_id: str
    source: str
    num_tokens: int
    num_correct: int
    difficulty: Difficulty
    ways: tuple[int, ...]


def require_pool_samples(pool: AnswerPool, num_answers: tuple[int, int]) -> None:
    """Raise UserError when no problem of the pool has the answers for a set of the most that is asked."""
    fewest, most = num_answers
    if most < fewest:
        raise UserError(f"num_answers={fewest} {most}: the fewest come first")
    ids = set().union(*(folder.rows for folder in pool.folders)) if len(pool.folders) > 1 else pool.folders[0].rows
    most_there = max(sum(len(folder.rows.get(name, ())) for folder in pool.folders) for name in ids)
    where = " and ".join(str(folder.path) for folder in pool.folders)
    for number in (fewest, most):
        require_enough(number, most_there, where)


def build_answer_sets(
    pool: AnswerPool, rules: SetRules, count_tokens: CountTokens, *, num_workers: int = 1
) -> Iterator[Kept | Dropped]:
    """One result a problem, in order, in flat memory.

    Args:
        pool: of folders whose answers are all graded.
        count_tokens: the lengths of a batch of texts.
        num_workers: processes that share the work.

    Raises:
        UserError: a malformed line.
    """

    def start() -> Callable[[int], list[Kept | Dropped]]:
        return _Builder(pool, rules, count_tokens).build

    for chunk in map_in_processes(start, _num_chunks(pool), num_workers if len(pool) >= _MANY else 1):
        yield from chunk


def build_on_cluster(
    pool: AnswerPool,
    rules: SetRules,
    tokenizer: str | Path,
    *,
    temperature: float | None = None,
    mix_splits: bool = False,
    ray_address: str | None = None,
    num_workers: int | None = None,
) -> Iterator[Kept | Dropped]:
    """``build_answer_sets`` by the workers of a Ray cluster, one a CPU unless ``num_workers`` says otherwise.

    Every machine must find the folders of answers and the tokenizer under the same paths, as on a shared file system:
    each worker reads what it needs, and only sets travel.

    Args:
        pool: made from the same folders with this ``temperature`` and ``mix_splits``.

    Raises:
        UserError: as ``build_answer_sets`` and ``cluster.map_chunks``.
    """
    folders = [str(folder.path.resolve()) for folder in pool.folders]
    opener = partial(_open_builder, folders, temperature, mix_splits, rules, str(Path(tokenizer).resolve()))
    chunks = map_chunks(opener, range(_num_chunks(pool)), ray_address=ray_address, num_workers=num_workers)
    return itertools.chain.from_iterable(chunks)


def _open_builder(
    folders: list[str], temperature: float | None, mix_splits: bool, rules: SetRules, tokenizer: str
) -> Callable[[int], list[Kept | Dropped]]:
    """In a worker of a cluster: the builder over the same pool, read there."""
    pool = pool_answers([open_answers(folder, temperature=temperature) for folder in folders], mix_splits=mix_splits)
    return _Builder(pool, rules, load_token_counter(tokenizer)).build


def _num_chunks(pool: AnswerPool) -> int:
    return -(-len(pool) // _CHUNK)


class _Builder:
    """Builds the sets of a chunk of problems, with files of its own to read from."""

    def __init__(self, pool: AnswerPool, rules: SetRules, count_tokens: CountTokens) -> None:
        self._pool = pool
        self._rules = rules
        self._count_tokens = count_tokens
        paths = [folder.path for folder in pool.folders]
        self._problems = [(path / PROBLEMS).open("rb") for path in paths]
        self._answers = [(path / ANSWERS).open("rb") for path in paths]
        self._readers = [AnswerReader(path / ANSWERS) for path in paths]

    def build(self, chunk: int) -> list[Kept | Dropped]:
        numbers = range(chunk * _CHUNK, min(len(self._pool), (chunk + 1) * _CHUNK))
        texts: list[str] = []
        found = [self._draw(number, texts) for number in numbers]
        lengths = iter(self._count_tokens(texts))
        return [one if isinstance(one, Dropped) else self._check_length(one, next(lengths)) for one in found]

    def _draw(self, number: int, texts: list[str]) -> Kept | Dropped:
        """The set of a problem, of a length that is not known yet; its text goes to the list."""
        owner, rules = self._pool.owners[number], self._rules
        path = self._pool.folders[owner].path / PROBLEMS
        problem, line = _read_problem(path, self._problems[owner], self._pool.places[number])
        if problem.id in rules.excluded:
            return drop(problem, "excluded", "among the problems of --exclude")
        if other := self._find_other_reference(problem, owner):
            return drop(problem, "references_differ", f"{problem.reference!r} in {path}, {other}")
        seed = seed_of_set(rules.order_seed, problem.id)
        drawn = draw_candidates(self._candidates(problem.id), rules.num_answers, seed)
        if len(drawn) < rules.num_answers[0]:
            return too_few(problem, len(drawn), rules.num_answers[0])
        reasons = [candidate.reason for candidate in drawn]
        none = reasons.count("no_answer")
        if none > rules.max_none:
            detail = f"{none} of {len(drawn)} answers have no extractable result, {rules.max_none} allowed"
            return drop(problem, "none_answers", detail)
        answers, lines = zip(*map(self._read_answer, drawn), strict=True)
        texts.append(answer_set_text(problem.question, [answer.text for answer in answers]))
        parts = (
            b'{"id":"', AnswerSet.make_id(problem, answers, seed).encode(), b'","problem":', line.rstrip(),
            b',"answers":[', b",".join(lines), b'],"order_seed":', str(seed).encode(), b"}",
        )  # fmt: skip
        return Kept(
            line=b"".join(parts), problem_id=problem.id, source=problem.source, num_tokens=0,
            num_correct=reasons.count("match"), difficulty=_difficulty(reasons),
            ways=tuple(candidate.way for candidate in drawn),
        )  # fmt: skip

    def _find_other_reference(self, problem: Problem, owner: int) -> str | None:
        """What grades the problem's answers in another folder, when it is not what grades them here."""
        for number, folder in enumerate(self._pool.folders):
            if number == owner or problem.id not in folder.rows:
                continue
            path = folder.path / PROBLEMS
            other, _ = _read_problem(path, self._problems[number], folder.problems[problem.id])
            if (other.reference, other.kind) != (problem.reference, problem.kind):
                return f"{other.reference!r} in {path}"
        return None

    def _candidates(self, name: str) -> Iterator[Candidate]:
        for number, (folder, ways) in enumerate(zip(self._pool.folders, self._pool.ways, strict=True)):
            for row in folder.rows.get(name, ()):
                yield Candidate(
                    ways[folder.ways[row]], folder.sample_indexes[row], folder.reason(row), number, row
                )

    def _read_answer(self, candidate: Candidate) -> tuple[Answer, bytes]:
        """The answer and its record as JSON."""
        file = self._answers[candidate.folder]
        offset = self._pool.folders[candidate.folder].offsets[candidate.row]
        file.seek(offset)
        line = file.readline()
        return self._readers[candidate.folder].read(offset, line), line.rstrip()

    def _check_length(self, kept: Kept, num_tokens: int) -> Kept | Dropped:
        if num_tokens <= self._rules.max_length:
            return kept._replace(num_tokens=num_tokens)
        detail = f"{num_tokens} tokens, {self._rules.max_length} allowed"
        return Dropped(problem_id=kept.problem_id, source=kept.source, reason="too_long", detail=detail)


def _difficulty(reasons: Sequence[Reason]) -> Difficulty:
    """How hard a set is: by how many of its answers are right. Without a right one, all must have been judged.

    >>> [_difficulty(["mismatch", other]) for other in ("match", "no_answer", "timeout")]
    ['mixed', 'all_wrong', 'unjudged']
    """
    num_correct = reasons.count("match")
    if num_correct:
        return "all_correct" if num_correct == len(reasons) else "mixed"
    return "all_wrong" if _JUDGED.issuperset(reasons) else "unjudged"
