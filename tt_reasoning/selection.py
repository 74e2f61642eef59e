"""Choosing among many answers, and how sure the resulting numbers are: pure functions, no torch.

Everything works on one problem's answers (``majority_vote``, ``oracle``, ``pass_at_k``) or on one
number a problem (``bootstrap_interval``, ``paired_bootstrap``): problems are the unit that is drawn
anew, because samples of one problem are not independent of each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tt_reasoning.grading import normalize

Equal = Callable[[str, str], bool]
_spell = functools.lru_cache(maxsize=4096)(normalize)
_CELLS_AT_ONCE = 2_000_000  # of the resamples-by-problems table: 16 MB of indices, 16 MB of values


def same_answer(a: str, b: str) -> bool:
    """Whether two extracted answers are one candidate of a vote: the grader spells them alike.

    An equivalence: numbers by value, words without case. Mathematics is compared as text, since a vote
    over k answers asks this up to k² / 2 times; pass another ``equal`` to the vote for more.

    >>> same_answer("1,200.0", "$1200"), same_answer("0.5", "\\\\frac12"), same_answer("2", "3")
    (True, True, False)
    """
    return _spell(a) == _spell(b)


def vote_classes(extracted: Sequence[str | None], equal: Equal = same_answer) -> list[list[int]]:
    """The candidates of a vote: for each, the indices of the answers that vote for it.

    Candidates stand in order of their first vote. An answer joins the first candidate whose first
    vote it equals, so an ``equal`` that is not transitive still gives one well-defined result. None
    (nothing could be extracted) never votes.

    >>> vote_classes(["4", None, "5", "4.0"])
    [[0, 3], [2]]
    """
    classes: list[list[int]] = []
    for index, answer in enumerate(extracted):
        if answer is None:
            continue
        for members in classes:
            if equal(extracted[members[0]], answer):
                members.append(index)
                break
        else:
            classes.append([index])
    return classes


class Vote(NamedTuple):
    """A vote's outcome: the index of the winner's first vote, how many votes it got, whether others got as many."""

    index: int
    votes: int
    tied: bool


def count_votes(extracted: Sequence[str | None], equal: Equal = same_answer) -> Vote | None:
    """The winner of a majority vote, or None when nobody votes. A tie goes to the earliest first vote.

    The samples of a problem are exchangeable, so the earliest among equals is a fair draw that
    repeats exactly.

    >>> count_votes(["7", "4", "4.0"]), count_votes(["7", "4"])
    (Vote(index=1, votes=2, tied=False), Vote(index=0, votes=1, tied=True))
    """
    classes = vote_classes(extracted, equal)
    if not classes:
        return None
    winner = max(classes, key=len)  # the first of the longest
    return Vote(winner[0], len(winner), sum(len(members) == len(winner) for members in classes) > 1)


def majority_vote(extracted: Sequence[str | None], equal: Equal = same_answer) -> str | None:
    """The answer most samples agree on, as its first voter wrote it; None when nobody votes.

    A tie goes to the answer that came first (see ``count_votes``).

    >>> majority_vote(["7", None, "4", "4.0"]), majority_vote(["7", "4"]), majority_vote([None])
    ('4', '7', None)
    """
    vote = count_votes(extracted, equal)
    return None if vote is None else extracted[vote.index]


def oracle(correct: Sequence[bool]) -> bool:
    """Whether a perfect judge could pick a correct answer: any is. None given, none is.

    >>> oracle([False, True]), oracle([])
    (True, False)
    """
    return any(correct)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The probability that k of ``num_samples`` answers, drawn without replacement, hold a correct one.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, eq. 1), 1 - C(n-c, k) / C(n, k), as the
    product 1 - prod over i in n-c+1..n of (1 - k/i): no large binomials.

    Raises:
        ValueError: not 1 <= k <= num_samples, or not 0 <= num_correct <= num_samples.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.5, 1.0)
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} is not in 1..num_samples={num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct} is not in 0..num_samples={num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """The means of ``num_resamples`` draws of len(values) with replacement; memory does not grow with either."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1")

    def blocks() -> Iterator[np.ndarray]:
        generator = np.random.default_rng(seed)
        rows = max(1, _CELLS_AT_ONCE // len(values))
        for start in range(0, num_resamples, rows):
            shape = (min(rows, num_resamples - start), len(values))
            yield values[generator.integers(0, len(values), shape)].mean(axis=1)

    return np.concatenate(list(blocks()))


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is not between 0 and 1")
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile-bootstrap interval (low, high) of the mean of ``values``, one value a problem.

    Problems are drawn with replacement ``num_resamples`` times; low and high are the (1 ± confidence)/2
    quantiles of the means (Efron & Tibshirani 1993, ch. 13). With one value, or all equal, the
    interval is a point: too narrow, as with any percentile bootstrap of few problems.

    Raises:
        ValueError: no values, a confidence outside (0, 1), fewer than one resample.

    >>> bootstrap_interval([1, 1, 1])
    (1.0, 1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError("values must be a list of at least one number")
    return _percentiles(_resampled_means(array, num_resamples, seed), confidence)


class Difference(NamedTuple):
    """A paired difference of means, its interval, and how often chance alone gives one as large."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    values_a: Sequence[float],
    values_b: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """mean(a) - mean(b) over the same problems in the same order, with interval and two-sided p-value.

    With d the observed mean of a_i - b_i and d*_r that of resample r, the interval is the percentile
    interval of d*, and p = (1 + #{r: |d*_r - d| >= |d|}) / (1 + num_resamples): resamples centred on the
    null hypothesis d = 0 (Davison & Hinkley 1997, ch. 4), never exactly 0.

    Raises:
        ValueError: lists of different length, or as ``bootstrap_interval``.

    >>> paired_bootstrap([1, 0, 1], [1, 0, 1])
    Difference(difference=0.0, low=0.0, high=0.0, p_value=1.0)
    """
    if len(values_a) != len(values_b):
        raise ValueError(f"values of {len(values_a)} problems cannot be paired with values of {len(values_b)}")
    differences = np.asarray(values_a, dtype=np.float64) - np.asarray(values_b, dtype=np.float64)
    if differences.ndim != 1 or not len(differences):
        raise ValueError("values must be lists of at least one number")
    observed = float(differences.mean())
    means = _resampled_means(differences, num_resamples, seed)
    # Rounding must not turn |d* - d| = |d| into less: every such tie counts as extreme.
    as_extreme = int(np.count_nonzero(np.abs(means - observed) >= abs(observed) - 1e-12))
    return Difference(observed, *_percentiles(means, confidence), (1 + as_extreme) / (1 + num_resamples))
