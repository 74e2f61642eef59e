"""The grader that reward, check, vote and evaluation share: extract → normalize → compare → Verdict.

    grade(text, reference, kind)     one verdict, anywhere, over workers that the whole process shares
    Grader(...)                      the same with settings of its own: time limit, workers, what counts

Equal spellings and plain numbers are compared in the caller, exactly (``grading.values``). Everything else goes to
math-verify in a worker process that is killed and replaced when one comparison passes its limit
(``grading.pool``), so no answer can hang or crash the caller, from whichever thread, event loop, Ray actor or
forked process it calls. No signal is used. A program (kind ``code``) is run by the tests of its task, in a sandbox
(``code_checks``). A decimal is the number it writes: ``0.333333`` is not 1/3, and
``1.414214`` is not √2. docs/grading.md says what is equal, and how well that agrees with labels.

Fixed bounds: of a completion the last 1,000,000 characters are read (in linear time); an extracted answer
above 1,000 characters is a ``mismatch`` (no reference is that long, and "cannot judge" would let a model
escape by rambling); a reference above 1,000 characters is a ``bad_reference``; a worker may use 2 GiB.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import typing
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from tt_reasoning.code_checks import check_program, extract_code
from tt_reasoning.grading.extract import MAX_TEXT, Fallback, extract_answer, read_letter, read_option
from tt_reasoning.grading.pool import WorkerPool
from tt_reasoning.grading.values import MAX_ANSWER, compare_fast, compare_numbers, normalize, plain, strip
from tt_reasoning.sandbox import Limits
from tt_reasoning.types import Kind, Reason, Verdict

__all__ = [
    "MAX_ANSWER", "MAX_TEXT", "Fallback", "Grader", "accuracy", "compare_fast", "compare_numbers", "count_reasons",
    "extract_answer", "grade", "normalize",
]  # fmt: skip

DEFAULT_TIMEOUT_S = 5.0


def grade(
    text: str,
    reference: str,
    kind: Kind = "math",
    *,
    fallback: Fallback = "none",
    percent_as_fraction: bool = False,
    answer_id: str = "",
) -> Verdict:
    """The verdict on a whole solution or a bare answer; see ``Grader.grade`` for what it says.

    Workers (at most four, or as many as there are cores) start when first needed, serve the whole process and end
    with it; a comparison may take five seconds.

    >>> grade("So the sum is \\\\boxed{2(k+1)}.", "2k+2")
    Verdict(answer_id='', extracted='2(k+1)', correct=True, reason='match')
    >>> grade("\\\\boxed{B}. This is a solid choice.", "B", "choice").reason
    'match'
    >>> grade("That leaves her 18.", "18").reason, grade("That leaves her 18.", "18", "numeric").reason
    ('no_answer', 'match')
    """
    return _shared_grader(fallback, percent_as_fraction).grade(text, reference, kind, answer_id=answer_id)


class Grader:
    """Grades completions; safe to share between threads. Close it, or use it in a ``with`` block.

    A forked or unpickled Grader (a DataLoader's, a Ray task's) works as well, with workers of its own.

    Args:
        timeout_s: limit of one comparison, without the start of the worker (about a second, once).
        num_workers: worker processes, started when first needed.
        fallback: see ``extract_answer``.
        percent_as_fraction: whether "50%" is also 0.5, if only one of the two has the sign.
        test_timeout_s: limit of one test of a program.
        total_timeout_s: limit of all tests of a program.
        memory_mb: what a program may use.
        unsafe_no_sandbox: run programs with the rights of the user; see ``sandbox``.

    Example:
        >>> with Grader() as grader:
        ...     grader.grade("So the sum is \\\\boxed{2(k+1)}.", "2k+2")
        ...     grader.grade("I do not know.", "18").reason
        Verdict(answer_id='', extracted='2(k+1)', correct=True, reason='match')
        'no_answer'
    """

    def __init__(
        self,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        num_workers: int = 1,
        fallback: Fallback = "none",
        percent_as_fraction: bool = False,
        test_timeout_s: float = Limits.test_timeout_s,
        total_timeout_s: float = Limits.total_timeout_s,
        memory_mb: int = Limits.memory_mb,
        unsafe_no_sandbox: bool = False,
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s={timeout_s} is not positive")
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} is below 1")
        if fallback not in typing.get_args(Fallback):
            raise ValueError(f"fallback={fallback!r} is none of {', '.join(typing.get_args(Fallback))}")
        self.fallback = fallback
        self.percent_as_fraction = percent_as_fraction
        self.limits = Limits(test_timeout_s=test_timeout_s, total_timeout_s=total_timeout_s, memory_mb=memory_mb)
        self.unsafe_no_sandbox = unsafe_no_sandbox
        self.pool = WorkerPool(num_workers, timeout_s)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, once running comparisons have ended. Grading again starts new ones."""
        self.pool.close()

    def grade(self, text: str, reference: str, kind: Kind = "math", *, answer_id: str = "") -> Verdict:
        """The verdict on one completion. ``correct`` is None for everything that cannot be judged.

        Reasons: ``match``; ``mismatch``; ``no_answer`` (wrong: nothing is stated); ``bad_reference`` (it is
        empty, too long, no letter of a choice, no number for kind ``numeric``, or mathematics that cannot be
        read); ``timeout``; ``error`` (the comparison raised or killed its worker). Only the first three are judged.
        Of kind ``code`` they are those of ``check_program``: a program that is too slow or crashes is wrong.

        Raises:
            UserError: kind ``code`` where there is no sandbox.
        """
        if kind == "code":
            return self._check(extract_code(text), reference, answer_id=answer_id)
        extracted, reason = self._judge_fast(text, reference, kind)
        if reason is None:
            reason = self.pool.compare(strip(extracted), _value(reference))
        return _verdict(answer_id, extracted, reason)

    def grade_many(self, items: Iterable[tuple[str, str, str, Kind]]) -> list[Verdict]:
        """The verdicts on ``(answer_id, text, reference, kind)`` items, in their order.

        The workers compare while this thread goes on reading; the same comparison is made once. As many programs run
        at a time as there are workers.
        """
        begun: dict[tuple, Future[Reason] | Future[Verdict]] = {}
        graded: list[tuple[str, str | None, Reason | Future[Reason] | Future[Verdict]]] = []
        threads, stop = ThreadPoolExecutor(self.pool.num_workers), threading.Event()
        try:
            for answer_id, text, reference, kind in items:
                if kind == "code":
                    extracted, reason = extract_code(text), None
                    task = self._check, extracted, reference, stop
                else:
                    extracted, reason = self._judge_fast(text, reference, kind)
                    task = (self.pool.compare, strip(extracted), _value(reference)) if reason is None else None
                if task is not None:
                    if task not in begun:
                        begun[task] = threads.submit(*task)
                    reason = begun[task]
                graded.append((answer_id, extracted, reason))
            return [
                _verdict(answer_id, extracted, reason.result() if isinstance(reason, Future) else reason)
                for answer_id, extracted, reason in graded
            ]
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for the rest

    def _check(self, code: str | None, tests: str, stop: threading.Event | None = None, answer_id: str = "") -> Verdict:
        isolated = not self.unsafe_no_sandbox
        return check_program(code, tests, limits=self.limits, isolated=isolated, stop=stop, answer_id=answer_id)

    def _judge_fast(self, text: str, reference: str, kind: Kind) -> tuple[str | None, Reason | None]:
        """What the text states, and the reason of the verdict unless mathematics must find it."""
        if kind not in ("math", "choice", "numeric"):
            raise ValueError(f"kind {kind!r} is not graded")
        extracted = extract_answer(text, kind, fallback=self.fallback)
        gold = read_letter(reference) if kind == "choice" else reference.strip()
        if not gold or len(reference) > MAX_ANSWER:
            return extracted, "bad_reference"
        options = {"percent_as_fraction": self.percent_as_fraction}
        if kind == "numeric" and compare_numbers("", gold) == "bad_reference":
            return extracted, "bad_reference"
        if extracted is None:
            return None, "no_answer"
        if len(extracted) > MAX_ANSWER:
            return extracted, "mismatch"
        if kind == "choice":
            return extracted, "match" if extracted == gold else "mismatch"
        if kind == "numeric":
            return extracted, compare_numbers(extracted, gold, **options)
        option = read_option(gold)
        if option is None:
            return extracted, compare_fast(extracted, gold, **options)
        stated = read_option(extracted)
        letter = stated.letter if stated else plain(extracted)
        if stated or letter == option.letter or not option.value:
            return extracted, "match" if letter == option.letter else "mismatch"
        return extracted, compare_fast(extracted, option.value, **options)


def _value(reference: str) -> str:
    """What an answer is held against by mathematics: of an option its value."""
    option = read_option(reference)
    return strip(option.value if option else reference)


@functools.cache
def _shared_grader(fallback: Fallback, percent_as_fraction: bool) -> Grader:
    grader = Grader(fallback=fallback, percent_as_fraction=percent_as_fraction)
    grader.pool = _shared_pool()
    return grader


@functools.cache
def _shared_pool() -> WorkerPool:
    pool = WorkerPool(min(4, os.cpu_count() or 1), DEFAULT_TIMEOUT_S)
    atexit.register(pool.close)
    return pool


def _verdict(answer_id: str, extracted: str | None, reason: Reason | Verdict) -> Verdict:
    if isinstance(reason, Verdict):  # of the same program, asked once
        return replace(reason, answer_id=answer_id)
    correct = {"match": True, "mismatch": False, "no_answer": False}.get(reason)
    return Verdict(answer_id=answer_id, extracted=extracted, correct=correct, reason=reason)


# --- summarize -------------------------------------------------------------------------------------------


def count_reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts have each reason, in the order of ``types.Reason``; zeros are there too.

    >>> count_reasons([Verdict(answer_id="a", extracted=None, correct=False, reason="no_answer")])
    {'match': 0, 'mismatch': 0, 'no_answer': 1, 'bad_reference': 0, 'timeout': 0, 'error': 0}
    """
    counts = dict.fromkeys(typing.get_args(Reason), 0)
    for verdict in verdicts:
        counts[verdict.reason] += 1
    return counts


def accuracy(verdicts: Iterable[Verdict]) -> float | None:
    """The share of correct verdicts among the judged ones (``correct`` is not None), in [0, 1]; None if none is.

    >>> from functools import partial; verdict = partial(Verdict, answer_id="a", extracted="4")
    >>> accuracy([verdict(correct=True, reason="match"), verdict(correct=False, reason="mismatch"),
    ...           verdict(correct=None, reason="timeout")])
    0.5
    """
    judged = [verdict.correct for verdict in verdicts if verdict.correct is not None]
    return sum(judged) / len(judged) if judged else None
