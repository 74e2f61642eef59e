"""Sample answers to problems, chunk by chunk, so that a killed run goes on as if it had never stopped.

A chunk is a fixed slice of the problems; all its answers are asked for in one engine call and appended in
one write. An engine's tokens may depend on what else is asked in the same call, so a chunk that a kill
left half written is asked again whole, exactly as before, and only what is missing is appended: the file
becomes the same, byte for byte, as without the kill. Asking later for more problems or more samples goes
the same way: a chunk with anything missing is asked whole, and answers on disk stay as they are.

An engine in front of a server (``ServedEngine``) is asked for what is missing alone: requests do not share a
call there, and each may cost money. Its requests may fail; a failure is counted and never written, so its
answer is missing and the same run asks for it again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tt_reasoning.engines.base import Completion, Engine, Failure, Request, ServedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import Prompt
from tt_reasoning.store import append_records, read_records, write_records
from tt_reasoning.types import Answer, Problem, Sampling

ANSWERS = "answers.jsonl"
PROBLEMS = "problems.jsonl"
USAGE = "usage.jsonl"


@dataclass(kw_only=True)
class Counts:
    """How far a run is. ``tokens``, ``cut`` (at max_new_tokens) and ``seconds`` (in the engine) are of ``written``.

    ``failed`` counts failures by their reason, ``details`` holds the first detail of each; ``missing`` is what
    is not on disk: all that failed, and what has not been asked.
    """

    resumed: int = 0
    written: int = 0
    missing: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0


def keep_problems(folder: str | Path, problems: Sequence[Problem]) -> None:
    """Store the problems as ``problems.jsonl``.

    The file may hold their beginning already (then it grows) or more than them (then it stays).

    Raises:
        UserError: the folder holds other problems.
    """
    path = Path(folder) / PROBLEMS
    kept = list(read_records(path, Problem))
    for number, (old, new) in enumerate(zip(kept, problems, strict=False), 1):
        if old != new:
            raise UserError(f"{path}:{number}: another problem than the one asked now; name a new folder")
    if len(problems) > len(kept):
        write_records(path, problems)


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
    """Append the missing ones of ``num_samples`` answers a problem to ``folder/file_name``.

    Args:
        problems: with distinct ids, as ``load_problems`` gives them.
        start_engine: called once, and only when an answer is missing; the engine is closed at the end.
        chunk_size: problems in one engine call; like the sampling, it must be the same on resume.
        on_progress: called at the start and behind every chunk.

    A run ends before its last chunk when a chunk brings nothing but failures that any request would meet now.
    What a ``ServedEngine`` used in each chunk is appended to ``folder/usage.jsonl``.

    Raises:
        UserError: a line of the file is malformed.

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
    path = Path(folder) / file_name
    on_disk = {answer.id for answer in read_records(path, Answer)}
    chunks = []
    counts = Counts()
    for start in range(0, len(problems), chunk_size):
        chunk = [(problem, index) for problem in problems[start : start + chunk_size] for index in range(num_samples)]
        missing = sum(sampling.answer_id(problem.id, index) not in on_disk for problem, index in chunk)
        counts.resumed += len(chunk) - missing
        counts.missing += missing
        if missing:
            chunks.append(chunk)
    on_progress(counts)
    if not chunks:
        return counts
    with closing(start_engine()) as engine:
        served = isinstance(engine, ServedEngine)
        for chunk in chunks:
            if served:
                chunk = [(p, index) for p, index in chunk if sampling.answer_id(p.id, index) not in on_disk]
            began = time.perf_counter()
            outcomes = engine.generate([_request(problem, index, sampling, prompt) for problem, index in chunk])
            counts.seconds += time.perf_counter() - began
            answers = []
            for (problem, index), outcome in zip(chunk, outcomes, strict=True):
                if sampling.answer_id(problem.id, index) in on_disk:
                    continue
                if isinstance(outcome, Failure):
                    counts.failed[outcome.reason] += 1
                    counts.details.setdefault(outcome.reason, outcome.detail)
                else:
                    answers.append(_answer(problem, index, sampling, outcome))
            if answers:
                counts.written += append_records(path, answers)
            if served:
                _record_usage(engine, Path(folder) / USAGE)
            counts.missing -= len(answers)
            counts.cut += sum(answer.finish_reason == "length" for answer in answers)
            counts.tokens += sum(answer.num_tokens for answer in answers)
            on_progress(counts)
            if all(isinstance(outcome, Failure) and outcome.general for outcome in outcomes):
                break
    return counts


def _record_usage(engine: ServedEngine, path: Path) -> None:
    """Append what a call took, unless it took nothing: a folder without a record is nobody's yet."""
    usage = engine.last_usage()
    if usage.prompt_tokens or usage.completion_tokens:
        append_records(path, [usage])


def _request(problem: Problem, index: int, sampling: Sampling, prompt: Prompt) -> Request:
    return Request(
        prompt=prompt.render(problem.question),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        seed=sampling.request_seed(problem.id, index),
        stop=prompt.stop,
    )


def _answer(problem: Problem, index: int, sampling: Sampling, completion: Completion) -> Answer:
    return Answer(
        id=sampling.answer_id(problem.id, index),
        problem_id=problem.id,
        sample_index=index,
        text=completion.text,
        num_tokens=completion.num_tokens,
        finish_reason=completion.finish_reason,
        sampling=sampling,
    )
