"""Sample answers to problems, chunk by chunk, so that a killed run goes on as if it had never stopped.

A chunk is a fixed slice of the problems with a fixed range of samples; all its answers are asked for in one engine
call, and each is on disk about a second after it is done. An engine's tokens may depend on what else is asked in the
same call, so a chunk that a kill left half written is asked again whole, exactly as before, and only what is missing
is appended: the file becomes the same, byte for byte, as without the kill. More problems, samples or temperatures are
further chunks: answers on disk stay as they are, and what an earlier run finished is not asked again.

An engine in front of a server (``ServedEngine``) is asked for what is missing alone: requests do not share a
call there, and each may cost money. Its requests may fail; a failure is counted and never written, so its
answer is missing and the same run asks for it again. A pool (``PooledEngine``) takes whole chunks, as many at a
time as it has room for; they are written as they come back, in any order.

Memory holds the chunks under way. Of all others it holds a byte an answer and a few hundred a problem, and no text.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import overload

import numpy as np
from tqdm import tqdm

from tt_reasoning.engines.base import (
    CheckingEngine,
    Completion,
    Engine,
    Failure,
    PooledEngine,
    Request,
    ServedEngine,
    StreamingEngine,
)
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import Prompt, Rendered
from tt_reasoning.store import (
    MANIFEST,
    append_records,
    dump_record,
    load_record,
    read_lines,
    read_manifest,
    read_records,
    write_json,
)
from tt_reasoning.types import Answer, Problem, Sampling

ANSWERS = "answers.jsonl"
PROBLEMS = "problems.jsonl"
USAGE = "usage.jsonl"
STATS = "stats.json"
_FLUSH_S = 1.0  # how long an answer may wait for the disk
_BATCH = 1000  # problems read or written at once


@dataclass(kw_only=True)
class Tally:
    """How answers ended: by themselves (``stop``) or at max_new_tokens (``length``), and their tokens."""

    stop: int = 0
    length: int = 0
    tokens: int = 0


@dataclass(kw_only=True)
class Counts:
    """How far a run is. ``tokens``, ``cut`` (at max_new_tokens) and ``seconds`` (of sampling) are of ``written``.

    ``failed`` counts failures by their reason, ``details`` holds the first detail of each; ``missing`` is what
    is not on disk: all that failed, and what has not been asked. ``tallies`` are of the whole file by temperature (and
    eta, ``describe_draw``), earlier runs included.
    """

    resumed: int = 0
    written: int = 0
    missing: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tallies: dict[str, Tally] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is asked of every problem under one sampling: ``blocks[-1]`` samples.

    The blocks are rising numbers of samples, those that earlier runs asked for and this run's: a chunk lies within
    one block, so that samples that are added are asked without those that are there.

    >>> Draw(sampling=Sampling(model="m", prompt="answer"), blocks=(4, 10)).num_samples
    10
    """

    sampling: Sampling
    blocks: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """Samples of every problem."""
        return self.blocks[-1]


def plan_draws(folder: str | Path, asked: Sequence[tuple[Sampling, int]]) -> list[Draw]:
    """A draw for every sampling with its number of samples; the folder's manifest remembers the numbers.

    Args:
        folder: of a run that is open (``store.open_run``).
        asked: samplings that differ in what ``describe_draw`` says.
    """
    manifest = read_manifest(folder)
    known: dict[str, list[int]] = manifest.setdefault("num_samples", {})
    draws, grown = [], False
    for sampling, num_samples in asked:
        blocks = known.setdefault(describe_draw(sampling), [])
        if num_samples > max(blocks, default=0):
            blocks.append(num_samples)
            grown = True
        below = [block for block in blocks if block < num_samples]
        draws.append(Draw(sampling=sampling, blocks=(*below, num_samples)))
    if grown:
        write_json(Path(folder) / MANIFEST, manifest)
    return draws


class StoredProblems(Sequence[Problem]):
    """Problems that stay on disk: lines of ``problems.jsonl``, in an order of their own."""

    def __init__(self, path: Path, offsets: array[int]) -> None:
        self._path, self._offsets = path, offsets

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, int):
            return self._read([self._offsets[index]])[0]
        return self._read(self._offsets[index])

    def __iter__(self) -> Iterator[Problem]:
        for start in range(0, len(self), _BATCH):
            yield from self[start : start + _BATCH]

    def _read(self, offsets: Iterable[int]) -> list[Problem]:
        found = []
        with self._path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                found.append(load_record(Problem, json.loads(file.readline())))
        return found


def begun_chunk_size(folder: str | Path) -> int | None:
    """The chunk size of a run that is there: it has to stay."""
    if not (Path(folder) / MANIFEST).exists():
        return None
    return read_manifest(folder).get("arguments", {}).get("chunk_size")


def keep_problems(folder: str | Path, problems: Iterable[Problem]) -> StoredProblems:
    """Add the problems to ``problems.jsonl``, each once; returns them in the order given, to be read from there.

    Raises:
        UserError: the folder has the same question with another reference, or a malformed line.
    """
    path = Path(folder) / PROBLEMS
    end, offset_of = 0, {}
    for (offset, line), problem in zip(read_lines(path), read_records(path, Problem), strict=True):
        offset_of[problem.id] = offset
        end = offset + len(line)
    offsets, new = array("q"), []
    for problem in problems:
        offset = offset_of.get(problem.id)
        if offset is None:
            offset, line = end, dump_record(problem) + "\n"
            new.append(problem)
            end += len(line.encode())
        elif StoredProblems(path, array("q", [offset]))[0] != problem:
            raise UserError(f"{path}: problem {problem.id} is another one than now asked; name a new folder")
        offsets.append(offset)
        if len(new) == _BATCH:
            append_records(path, new)
            new = []
    if new:
        append_records(path, new)
    return StoredProblems(path, offsets)


def describe_draw(sampling: Sampling) -> str:
    """What tells the draws of a folder apart: the temperature, and eta where a value model steers.

    >>> describe_draw(Sampling(model="m", prompt="p"))
    '0.7'
    >>> from tt_reasoning.types import Guidance
    >>> describe_draw(Sampling(model="m", prompt="p", guidance=Guidance(value_model="v", eta=5)))
    '0.7, eta 5'
    """
    eta = "" if sampling.guidance is None else f", eta {sampling.guidance.told_eta}"
    return f"{sampling.temperature}{eta}"


def describe_ends(tallies: dict[str, Tally]) -> dict[str, dict[str, float]]:
    """How answers ended, by draw, for ``stats.json``.

    >>> describe_ends({"0.7": Tally(stop=3, length=1, tokens=500)})
    {'0.7': {'answers': 4, 'stop': 3, 'length': 1, 'length_share': 0.25, 'tokens': 500, 'tokens_per_answer': 125.0}}
    """
    found = {}
    for draw, tally in sorted(tallies.items()):
        answers = tally.stop + tally.length
        found[draw] = {
            "answers": answers,
            "stop": tally.stop,
            "length": tally.length,
            "length_share": round(tally.length / answers, 4),
            "tokens": tally.tokens,
            "tokens_per_answer": round(tally.tokens / answers, 1),
        }
    return found


def check_complete(counts: Counts) -> None:
    """Raise a UserError that counts the failures when answers are missing at the end of a run.

    >>> check_complete(Counts(missing=3, failed=Counter(timeout=2), details={"timeout": "no end in 60 s"}))
    Traceback (most recent call last):
    ...
    tt_reasoning.errors.UserError: 3 answers are missing: 2 timeout (no end in 60 s), 1 not asked; the same command \
asks for them again
    """
    if not counts.missing:
        return
    told = [f"{number} {reason} ({counts.details[reason]})" for reason, number in counts.failed.most_common()]
    not_asked = counts.missing - counts.failed.total()
    if not_asked:
        told.append(f"{not_asked} not asked")
    raise UserError(f"{counts.missing} answers are missing: {', '.join(told)}; the same command asks for them again")


def generate_answers(
    problems: Sequence[Problem],
    sampling: Sampling,
    num_samples: int,
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: str | Path,
    chunk_size: int = 64,
    on_progress: Callable[[Counts], None] = lambda counts: None,
    file_name: str = ANSWERS,
) -> Counts:
    """Append the missing ones of ``num_samples`` answers a problem: ``draw_answers`` of one sampling.

    Example:
        >>> import tempfile
        >>> from tt_reasoning.engines.scripted import ScriptedEngine
        >>> from tt_reasoning.prompts import get_prompt
        >>> problem = Problem(source="demo", split="test", question="2 + 2?", reference="4")
        >>> engine = ScriptedEngine({"answers": {"2 + 2?": ["The Answer is: 4"]}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sampling = Sampling(model="script", prompt="answer")
        ...     counts = generate_answers([problem], sampling, 3, lambda: engine, get_prompt("answer"), folder)
        >>> counts.written, counts.tokens
        (3, 12)
    """
    draw = Draw(sampling=sampling, blocks=(num_samples,))
    return draw_answers(problems, [draw], start_engine, prompt, folder, chunk_size, on_progress, file_name)


def draw_answers(
    problems: Sequence[Problem],
    draws: Sequence[Draw],
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: str | Path,
    chunk_size: int | Sequence[int] = 64,
    on_progress: Callable[[Counts], None] = lambda counts: None,
    file_name: str = ANSWERS,
    whole_chunks: bool = True,
    render: Callable[[Problem], Rendered] | None = None,
) -> Counts:
    """Append the missing answers of all draws to ``folder/file_name``, one draw after another.

    Args:
        problems: with distinct ids, as ``load_problems`` and ``keep_problems`` give them.
        draws: of different samplings.
        start_engine: called once, and only when an answer is missing; the engine is closed at the end.
        chunk_size: problems in one engine call, or for each call the index behind its last problem; like the
            sampling, it must be the same on resume.
        on_progress: called at the start, when answers have been written and behind every chunk.
        whole_chunks: ask a chunk that is half on disk again as a whole, so that the file becomes that of a run which
            was never killed; otherwise only what is missing is asked, which costs less and may give other tokens.
        render: what a problem's requests say; the prompt with its question unless given.

    A run ends before its last chunk when a chunk brings nothing but failures that any request would meet now.
    What a ``ServedEngine`` used in each chunk is appended to ``folder/usage.jsonl``.

    Raises:
        UserError: a line of the file is malformed.
    """
    book = _Book(problems, draws, Path(folder) / file_name, on_progress)
    ends = range(chunk_size, len(problems) + chunk_size, chunk_size) if isinstance(chunk_size, int) else chunk_size
    to_requests = partial(_requests, prompt, render or (lambda problem: prompt.render(problem.question)))
    on_progress(book.counts)
    if not book.counts.missing:
        return book.counts
    with closing(start_engine()) as engine:
        asked = _ask(engine, _chunks(problems, draws, book.on_disk, ends), to_requests, book, whole_chunks)
        book.start_clock()
        with closing(_answer(engine, asked)) as answered:
            for chunk, outcomes in answered:
                found = [book.take(chunk, position, outcome) for position, outcome in outcomes]
                assert len(found) == len(chunk.pairs)
                book.flush()
                if isinstance(engine, ServedEngine):
                    _record_usage(engine, Path(folder) / USAGE)
                if all(found):
                    break
    return book.counts


def draw_tries(
    samplings: Sequence[Sampling],
    find_short: Callable[[Sequence[Sampling]], Sequence[Problem]],
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: str | Path,
    chunk_size: int,
    file_name: str,
    unit: str = "problem",
) -> Counts:
    """Ask try by try, a further one only about the problems that are short of what was wanted.

    Args:
        samplings: one a try, with different seeds.
        find_short: the problems that the tries of the samplings it is given, as they are on disk, leave short. It is
            asked about all tries but the one that is due: so a run that goes on asks what the one that was killed
            would have asked.
        start_engine: called for each try in which something is missing (``aggregation.keep_open`` keeps one engine).
        chunk_size: problems in one engine call; the same on resume.
        unit: what the bar counts.

    Returns:
        ``written`` and ``resumed`` of all tries, and what ``failed``. The tries end early when the engine does.
    """
    total = Counts()
    for number, sampling in enumerate(samplings, 1):
        short = find_short([other for other in samplings if other != sampling])
        if not short:
            continue
        with tqdm(total=len(short), desc=f"try {number}", unit=unit) as bar:

            def show(counts: Counts, bar: tqdm = bar) -> None:
                bar.update(counts.resumed + counts.written - bar.n)

            counts = generate_answers(short, sampling, 1, start_engine, prompt, folder, chunk_size, show, file_name)
        total.written += counts.written
        total.resumed += counts.resumed
        total.failed += counts.failed
        total.details = counts.details | total.details
        if counts.missing > counts.failed.total():
            break
    return total


@dataclass(frozen=True)
class _Chunk:
    """What one engine call asks for: problems with a sample's index, and which of their answers are on disk."""

    sampling: Sampling
    pairs: list[tuple[Problem, int]]
    on_disk: list[bool]

    def missing(self) -> _Chunk:
        pairs = [pair for pair, there in zip(self.pairs, self.on_disk, strict=True) if not there]
        return _Chunk(self.sampling, pairs, [False] * len(pairs))


class _Book:
    """What is on disk, and what of the engine's outcomes is not there yet."""

    def __init__(
        self, problems: Sequence[Problem], draws: Sequence[Draw], path: Path, on_progress: Callable[[Counts], None]
    ) -> None:
        self.counts, self._path, self._on_progress = Counts(), path, on_progress
        self.on_disk = [np.zeros((len(problems), draw.num_samples), dtype=bool) for draw in draws]
        grid_of = {draw.sampling: grid for draw, grid in zip(draws, self.on_disk, strict=True)}
        row_of = {problem.id: row for row, problem in enumerate(problems)} if path.exists() else {}
        for answer in read_records(path, Answer):
            self._tally(answer)
            grid, row = grid_of.get(answer.sampling), row_of.get(answer.problem_id)
            if grid is not None and row is not None and answer.sample_index < grid.shape[1]:
                grid[row, answer.sample_index] = True
        self.counts.resumed = sum(int(grid.sum()) for grid in self.on_disk)
        self.counts.missing = sum(grid.size for grid in self.on_disk) - self.counts.resumed
        self._new: list[Answer] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Count ``seconds`` from here."""
        self._flushed = time.perf_counter()

    def take(self, chunk: _Chunk, position: int, outcome: Completion | Failure) -> bool:
        """Note an outcome; whether any request would have failed like it."""
        if not chunk.on_disk[position]:
            if isinstance(outcome, Failure):
                self.counts.failed[outcome.reason] += 1
                self.counts.details.setdefault(outcome.reason, outcome.detail)
            else:
                self._new.append(_to_answer(*chunk.pairs[position], chunk.sampling, outcome))
                if time.perf_counter() - self._flushed > _FLUSH_S:
                    self.flush()
        return isinstance(outcome, Failure) and outcome.general

    def flush(self) -> None:
        """Write what is new, and tell of it."""
        if self._new:
            self.counts.written += append_records(self._path, self._new)
        self.counts.missing -= len(self._new)
        for answer in self._new:
            self._tally(answer)
            self.counts.cut += answer.finish_reason == "length"
            self.counts.tokens += answer.num_tokens
        self._new = []
        now = time.perf_counter()
        self.counts.seconds += now - self._flushed
        self._flushed = now
        self._on_progress(self.counts)

    def _tally(self, answer: Answer) -> None:
        tally = self.counts.tallies.setdefault(describe_draw(answer.sampling), Tally())
        tally.tokens += answer.num_tokens
        if answer.finish_reason == "stop":
            tally.stop += 1
        else:
            tally.length += 1


def _chunks(
    problems: Sequence[Problem], draws: Sequence[Draw], on_disk: Sequence[np.ndarray], ends: Sequence[int]
) -> Iterator[_Chunk]:
    """The chunks in which an answer is missing, whole."""
    for draw, grid in zip(draws, on_disk, strict=True):
        for first, last in pairwise((0, *draw.blocks)):
            for start, end in pairwise((0, *ends)):
                there = grid[start:end, first:last]
                if not there.all():
                    part = problems[start:end]
                    pairs = [(problem, index) for problem in part for index in range(first, last)]
                    yield _Chunk(draw.sampling, pairs, there.ravel().tolist())


def _ask(
    engine: Engine,
    chunks: Iterator[_Chunk],
    to_requests: Callable[[_Chunk], list[Request]],
    book: _Book,
    whole_chunks: bool,
) -> Iterator[tuple[_Chunk, list[Request]]]:
    """Chunks with their requests: whole, or what is still to be answered.

    Left out are chunks whose missing answers the engine refuses: the others would be sampled again for nothing.
    """
    for chunk in chunks:
        if isinstance(engine, ServedEngine) or not whole_chunks:
            chunk = chunk.missing()
        elif isinstance(engine, CheckingEngine) and any(chunk.on_disk):
            missing = chunk.missing()
            ids = [problem.id for problem, _ in missing.pairs]
            requests = dict(zip(ids, to_requests(missing), strict=True))  # a problem's are refused alike
            failures = {identity: engine.refuse(request) for identity, request in requests.items()}
            if all(failures.values()):
                for position, (problem, _) in enumerate(missing.pairs):
                    book.take(missing, position, failures[problem.id])
                continue
        yield chunk, to_requests(chunk)


def _answer(
    engine: Engine, asked: Iterator[tuple[_Chunk, list[Request]]]
) -> Iterator[tuple[_Chunk, Iterable[tuple[int, Completion | Failure]]]]:
    """Each chunk with its outcomes, by whatever way the engine has."""
    if isinstance(engine, PooledEngine):
        under_way: dict[int, _Chunk] = {}

        def give() -> Iterator[list[Request]]:
            for number, (chunk, requests) in enumerate(asked):
                under_way[number] = chunk
                yield requests

        for number, outcomes in engine.generate_chunks(give()):
            yield under_way.pop(number), enumerate(outcomes)
    elif isinstance(engine, StreamingEngine):
        for chunk, requests in asked:
            with closing(engine.stream(requests)) as outcomes:
                yield chunk, outcomes
    else:
        for chunk, requests in asked:
            yield chunk, enumerate(engine.generate(requests))


def _record_usage(engine: ServedEngine, path: Path) -> None:
    """Append what a call took, unless it took nothing: a folder without a record is nobody's yet."""
    usage = engine.last_usage()
    if usage.prompt_tokens or usage.completion_tokens:
        append_records(path, [usage])


def _requests(prompt: Prompt, render: Callable[[Problem], Rendered], chunk: _Chunk) -> list[Request]:
    """The requests of a chunk; those of one problem share its rendered prompt."""
    sampling, found = chunk.sampling, []
    for problem, pairs in groupby(chunk.pairs, key=lambda pair: pair[0]):
        rendered = render(problem)
        for _, index in pairs:
            request = Request(
                prompt=rendered,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                seed=sampling.request_seed(problem.id, index),
                stop=prompt.stop,
                guidance=sampling.guidance,
            )
            found.append(request)
    return found


def _to_answer(problem: Problem, index: int, sampling: Sampling, completion: Completion) -> Answer:
    return Answer(
        id=sampling.answer_id(problem.id, index),
        problem_id=problem.id,
        sample_index=index,
        text=completion.text,
        num_tokens=completion.num_tokens,
        finish_reason=completion.finish_reason,
        sampling=sampling,
        divergence=completion.divergence,
    )
