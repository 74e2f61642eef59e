"""Choosing among many answers, and how sure the resulting numbers are: pure functions, no torch.

Everything works on one problem's answers (``elect``, ``majority_vote``, ``pass_at_k``), on many subsets of them at
once (``draw_orders``, ``vote_in_draws``, ``best_in_draws``) or on numbers of problems (``bootstrap_interval``,
``paired_bootstrap``): problems are the unit that is drawn anew, because samples of one problem are not independent of
each other.

Shapes: T draws, K answers in each, C candidates of a vote; P problems, M measures, R resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tt_reasoning.grading import normalize

Equal = Callable[[str, str], bool]
_ROUNDING = 1e-9  # relative: sums of weights closer than this tie
_CELLS_AT_ONCE = 1_000_000  # of the resamples-by-problems table: 8 MB of indices, of counts and of floats each


@functools.lru_cache(maxsize=4096)
def _spell(answer: str) -> str:
    """One spelling for equal answers. A program ends with a newline, as no other answer does, and is its own."""
    return answer if answer.endswith("\n") else normalize(answer)


def same_answer(a: str, b: str) -> bool:
    """Whether two extracted answers are one candidate of a vote: the grader spells them alike.

    An equivalence: numbers by value, words without case, programs letter by letter. Mathematics is compared as text,
    since a vote over k answers asks this up to k² / 2 times; pass another ``equal`` to the vote for more.

    >>> same_answer("1,200.0", "$1200"), same_answer("0.5", "\\\\frac12"), same_answer("2", "3")
    (True, True, False)
    >>> same_answer("print(a)\\n", "print(A)\\n"), same_answer("print(a)\\n", "print(a)\\n")
    (False, True)
    """
    return _spell(a) == _spell(b)


def vote_classes(extracted: Sequence[str | None], equal: Equal = same_answer) -> list[list[int]]:
    """The candidates of a vote: for each, the indices of the answers that vote for it, rising.

    Candidates stand in order of their first vote. An answer joins the first candidate whose first
    vote it equals, so an ``equal`` that is not transitive still gives one well-defined result, and the
    first k answers alone give the same candidates, cut to the indices below k. None (nothing could be
    extracted) never votes.

    >>> vote_classes(["4", None, "5", "4.0"])
    [[0, 3], [2]]
    """
    if equal is same_answer:  # one spelling a candidate: no need to compare each with each
        spelled: dict[str, list[int]] = {}
        for index, answer in enumerate(extracted):
            if answer is not None:
                spelled.setdefault(_spell(answer), []).append(index)
        return list(spelled.values())
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


def elect(classes: Sequence[Sequence[int]]) -> list[int]:
    """The winners of a vote, each by the index of its first vote: several when they tie, none when nobody votes.

    >>> elect([[0], [1, 3], [2]]), elect([[0, 2], [1, 3]]), elect([])
    ([1], [0, 1], [])
    """
    most = max(map(len, classes), default=0)
    return [members[0] for members in classes if len(members) == most]


def majority_vote(extracted: Sequence[str | None], equal: Equal = same_answer) -> str | None:
    """The answer most samples agree on, as its first voter wrote it; None when nobody votes.

    A tie goes to the answer that came first: where one answer must be named, that is a fair draw which repeats
    exactly, since samples are exchangeable. To measure a vote, take the mean over its winners (``vote_in_draws``).

    >>> majority_vote(["7", None, "4", "4.0"]), majority_vote(["7", "4"]), majority_vote([None])
    ('4', '7', None)
    """
    winners = elect(vote_classes(extracted, equal))
    return extracted[winners[0]] if winners else None


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


def draw_orders(num_answers: int, num_draws: int, seed: int) -> np.ndarray:
    """Random orders of a problem's answers, (T, num_answers): the first K of each are a random subset of K, drawn
    without replacement, for every K at once.

    >>> np.sort(draw_orders(3, 2, seed=0)).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return np.random.default_rng(seed).permuted(np.tile(np.arange(num_answers), (num_draws, 1)), axis=1)


class Choices(NamedTuple):
    """What a method chose in each of T draws: the share of its winners that is right, 0 where there is none, and how
    many winners there are (more than one of a tie)."""

    values_T: np.ndarray
    num_winners_T: np.ndarray


def vote_in_draws(class_TK: np.ndarray, right_C: np.ndarray, weight_TK: np.ndarray | None = None) -> Choices:
    """A vote over the K answers of each draw. Sums of weights that differ by rounding alone tie; where all are 0, all
    candidates with a vote do.

    Args:
        class_TK: which candidate each answer votes for, C for none.
        right_C: whether each candidate is right.
        weight_TK: what each vote counts, at least 0; 1 each unless given.

    >>> vote_in_draws(np.array([[0, 1, 1], [0, 1, 2]]), np.array([True, False])).values_T.tolist()
    [0.0, 0.5]
    """
    num_draws, slots = len(class_TK), len(right_C) + 1
    cells = (class_TK + slots * np.arange(num_draws)[:, None]).ravel()
    totals_TC = np.bincount(cells, minlength=num_draws * slots).reshape(num_draws, slots)[:, :-1]
    there_TC = totals_TC > 0
    if weight_TK is not None:
        totals_TC = np.bincount(cells, weight_TK.ravel(), num_draws * slots).reshape(num_draws, slots)[:, :-1]
    won_TC = there_TC & (totals_TC >= _as_much(totals_TC.max(axis=1, initial=0))[:, None])
    return _share(won_TC.sum(axis=1), won_TC @ right_C.astype(np.float64))


def best_in_draws(score_TK: np.ndarray, right_TK: np.ndarray) -> Choices:
    """The answer with the highest score of each draw; scores are at least 0, and one of -inf is never chosen.

    Scores that differ by rounding alone tie, as sums of votes do.

    >>> best_in_draws(np.array([[0.5, 0.9, -np.inf]]), np.array([[True, False, True]])).values_T.tolist()
    [0.0]
    """
    best_T = score_TK.max(axis=1)
    won_TK = score_TK >= np.where(np.isfinite(best_T), _as_much(best_T), np.inf)[:, None]
    return _share(won_TK.sum(axis=1), (won_TK & right_TK).sum(axis=1))


def _as_much(most: np.ndarray) -> np.ndarray:
    """From where on a number of at least 0 is the same as ``most`` but for rounding."""
    return most * (1 - _ROUNDING)


def _share(num_winners_T: np.ndarray, num_right_T: np.ndarray) -> Choices:
    return Choices(num_right_T / np.maximum(num_winners_T, 1), num_winners_T)


def resample_means(values_PM: np.ndarray, *, num_resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """The means of M measures on P problems, each over P problems drawn with replacement: (num_resamples, M).

    A resample draws the same problems for every measure, so the difference of two columns is a paired
    bootstrap, and one draw serves all of them. Memory beside the result does not grow with P or the resamples.

    Raises:
        ValueError: not a table of at least one problem, or fewer than one resample.

    >>> resample_means(np.array([[1.0, 0.0], [1.0, 1.0]]), num_resamples=1000).mean(axis=0).round(1).tolist()
    [1.0, 0.5]
    """
    if values_PM.ndim != 2 or not len(values_PM):
        raise ValueError("values must be a list of at least one number")
    counted = resample_counts(len(values_PM), num_resamples=num_resamples, seed=seed)
    return np.concatenate([counts_RP @ values_PM / len(values_PM) for counts_RP in counted])


def resample_counts(num_problems: int, *, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each resample draws each problem, some resamples at a time. Shape: [R, P], each row sums to P.

    Raises:
        ValueError: fewer than one resample.

    >>> [counts.sum(axis=1).tolist() for counts in resample_counts(4, num_resamples=3)]
    [[4.0, 4.0, 4.0]]
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1")
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _CELLS_AT_ONCE // num_problems)
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        drawn = generator.integers(0, num_problems, (rows, num_problems))
        drawn += np.arange(rows)[:, None] * num_problems
        counts = np.bincount(drawn.ravel(), minlength=rows * num_problems).reshape(rows, num_problems)
        yield counts.astype(np.float64)


def percentile_interval(means: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The (1 ± confidence)/2 quantiles of resampled means. Raises ValueError for a confidence outside (0, 1).

    >>> percentile_interval(np.arange(101.0), confidence=0.5)
    (25.0, 75.0)
    """
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
    means = resample_means(_column(values), num_resamples=num_resamples, seed=seed)
    return percentile_interval(means, confidence)


def _column(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError("values must be a list of at least one number")
    return array[:, None]


class Difference(NamedTuple):
    """A paired difference of means, its interval, and how often chance alone gives one as large."""

    difference: float
    low: float
    high: float
    p_value: float


def describe_difference(observed: float, means: np.ndarray, confidence: float = 0.95) -> Difference:
    """A paired difference from its resamples, with interval and two-sided p-value.

    With d the observed difference and d*_r that of resample r, the interval is the percentile interval of
    d*, and p = (1 + #{r: |d*_r - d| >= |d|}) / (1 + R) over R resamples: centred on the null hypothesis d = 0
    (Davison & Hinkley 1997, ch. 4), never exactly 0.

    >>> describe_difference(0.5, np.array([0.0, 0.5, 0.5, 1.0]), confidence=0.5)
    Difference(difference=0.5, low=0.375, high=0.625, p_value=0.6)
    """
    # Rounding must not turn |d* - d| = |d| into less: every such tie counts as extreme.
    as_extreme = int(np.count_nonzero(np.abs(means - observed) >= abs(observed) - 1e-12))
    return Difference(observed, *percentile_interval(means, confidence), (1 + as_extreme) / (1 + len(means)))


def paired_bootstrap(
    values_a: Sequence[float],
    values_b: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """mean(a) - mean(b) over the same problems in the same order, as ``describe_difference`` has it.

    Raises:
        ValueError: lists of different length, or as ``bootstrap_interval``.

    >>> paired_bootstrap([1, 0, 1], [1, 0, 1])
    Difference(difference=0.0, low=0.0, high=0.0, p_value=1.0)
    """
    if len(values_a) != len(values_b):
        raise ValueError(f"values of {len(values_a)} problems cannot be paired with values of {len(values_b)}")
    differences = _column(values_a) - _column(values_b)
    means = resample_means(differences, num_resamples=num_resamples, seed=seed)
    return describe_difference(float(differences.mean()), means[:, 0], confidence)
