"""How good a judge is on held-out problems: pure functions over scores and labels, no torch.

Problems, not steps, are drawn anew for the interval: the steps of one problem are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tt_reasoning.selection import percentile_interval, resample_counts

_THRESHOLD = 0.5  # a step with this score or more is called right
_BINS = 10
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One solution's steps: the judge's score and the hard label (1 right, 0 wrong, None without a label) of each."""

    problem_id: str
    scores: Sequence[float]
    labels: Sequence[float | None]


def measure_judge(judged: Sequence[Judged]) -> dict[str, float | int | None]:
    """Everything that is measured of a judge; None where the data cannot tell, such as an AUC of one class.

    - ``steps``, ``good_share``: labelled steps, and the share of them that is right
    - ``accuracy``: of calling a step right from score 0.5 on; ``accuracy_good`` and ``accuracy_bad`` of each class
    - ``auc``, ``auc_low``, ``auc_high``: area under the ROC curve with its 95 % interval over problems
    - ``first_error_f1``, with ``solutions_wrong``, ``found_first_error``, ``solutions_right``, ``found_no_error``
      (``first_error_scores``)
    - ``calibration_error``: of ten bins of equal width, the mean distance of score and truth, by their steps
      (expected calibration error, Guo et al. 2017, arXiv 1706.04599)

    >>> found = measure_judge([Judged(problem_id="a", scores=[0.9, 0.2], labels=[1.0, 0.0])])
    >>> found["accuracy"], found["auc"], found["first_error_f1"], round(found["calibration_error"], 2)
    (1.0, 1.0, None, 0.15)
    """
    numbers: dict[str, int] = {}
    rows = [
        (score, label, numbers.setdefault(solution.problem_id, len(numbers)))
        for solution in judged
        for score, label in zip(solution.scores, solution.labels, strict=True)
        if label is not None
    ]
    found: dict[str, float | int | None] = {"steps": len(rows)}
    if not rows:
        return found
    scores_S, labels_S, problems_S = (np.array(column) for column in zip(*rows, strict=True))
    called_S, right_S = scores_S >= _THRESHOLD, labels_S >= _THRESHOLD
    found["good_share"] = float(right_S.mean())
    found["accuracy"] = float((called_S == right_S).mean())
    found["accuracy_good"] = float(called_S[right_S].mean()) if right_S.any() else None
    found["accuracy_bad"] = float(1 - called_S[~right_S].mean()) if not right_S.all() else None
    found |= _auc_with_interval(scores_S, right_S, problems_S, len(numbers))
    found |= first_error_scores(judged)
    found["calibration_error"] = calibration_error(scores_S, right_S)
    return found


@dataclass(frozen=True, kw_only=True)
class Valued:
    """One answer's supervised tokens: the mean return said at each, its loss there, and the return that it had."""

    problem_id: str
    scores: Sequence[float]
    losses: Sequence[float]
    label: float


def measure_values(valued: Sequence[Valued]) -> dict[str, float | int | None]:
    """Everything that is measured of a value model; None where the data cannot tell, such as an AUC of one class.

    - ``sequences``, ``tokens``: answers and their supervised tokens; ``good_share``: the answers that are right
    - ``loss``: as trained, the mean over answers of the mean over their tokens
    - ``explained_variance``: 1 - Var(score - return) / Var(return); 0 says no more than a constant
    - ``accuracy``: of calling an answer right from 0.5 on
    - ``auc``, ``auc_low``, ``auc_high``: area under the ROC curve with its 95 % interval over problems

    The last three are over all tokens, and again over the first of every answer (``switch_``, where the reference took
    over) and over the last (``last_``), with the loss there: how early does the model know? At these two there is also
    ``within_auc`` (``within_problem_auc``): a model that only knows easy problems from hard ones steers nothing.

    >>> right = Valued(problem_id="a", scores=[0.4, 0.9], losses=[0.9, 0.1], label=1.0)
    >>> wrong = Valued(problem_id="b", scores=[0.6, 0.1], losses=[0.9, 0.1], label=0.0)
    >>> found = measure_values([right, wrong])
    >>> [found[name] for name in ("loss", "accuracy", "switch_auc", "last_auc", "last_loss")]
    [0.5, 0.5, 0.0, 1.0, 0.1]
    >>> round(found["last_explained_variance"], 2)
    0.96
    """
    found: dict[str, float | int | None] = {
        "sequences": len(valued),
        "tokens": sum(len(answer.scores) for answer in valued),
        "good_share": float(np.mean([answer.label >= _THRESHOLD for answer in valued])),
    }
    numbers = {problem: number for number, problem in enumerate(dict.fromkeys(v.problem_id for v in valued))}
    for name, part in (("", slice(None)), ("switch_", slice(0, 1)), ("last_", slice(-1, None))):
        rows = [(score, v.label, numbers[v.problem_id]) for v in valued for score in v.scores[part]]
        scores_S, labels_S, problems_S = (np.array(column) for column in zip(*rows, strict=True))
        right_S, spread = labels_S >= _THRESHOLD, float(labels_S.var())
        here = {
            "loss": float(np.mean([np.mean(v.losses[part]) for v in valued])),
            "explained_variance": 1 - float((scores_S - labels_S).var()) / spread if spread else None,
            "accuracy": float(((scores_S >= _THRESHOLD) == right_S).mean()),
            **_auc_with_interval(scores_S, right_S, problems_S, len(numbers)),
        }
        if name:
            here["within_auc"] = within_problem_auc(scores_S, right_S, problems_S)
        found |= {name + key: value for key, value in here.items()}
    return found


def within_problem_auc(scores_S: np.ndarray, right_S: np.ndarray, problems_S: np.ndarray) -> float | None:
    """The AUC over the pairs of a right and a wrong answer to the same problem; None where there is no such pair.

    >>> scores, right = np.array([0.9, 0.8, 0.2, 0.3]), np.array([True, False, False, True])
    >>> within_problem_auc(scores, right, np.array([0, 0, 1, 1])), within_problem_auc(scores, right, np.arange(4))
    (1.0, None)
    """
    above = pairs = 0.0
    for problem in np.unique(problems_S):
        here_S = problems_S == problem
        of_both = float(right_S[here_S].sum()) * float((~right_S[here_S]).sum())
        if of_both:
            above += of_both * float(roc_auc(scores_S[here_S], right_S[here_S])[0])
            pairs += of_both
    return above / pairs if pairs else None


def roc_auc(scores_S: np.ndarray, right_S: np.ndarray, weights_RS: np.ndarray | None = None) -> np.ndarray:
    """The probability that a right step scores above a wrong one, a tie counting half. Shape: one a row of weights.

    Args:
        weights_RS: how often each step counts; once each unless given. NaN where a class has no weight.

    >>> roc_auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])).tolist()
    [0.875]
    """
    weights_RS = np.ones((1, len(scores_S))) if weights_RS is None else weights_RS
    order = np.argsort(scores_S, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores_S[order]) > 0])
    good_RU = np.add.reduceat((weights_RS * right_S)[:, order], starts, axis=1)  # U different scores, rising
    bad_RU = np.add.reduceat((weights_RS * ~right_S)[:, order], starts, axis=1)
    below_RU = np.cumsum(bad_RU, axis=1) - bad_RU
    with np.errstate(invalid="ignore", divide="ignore"):
        return (good_RU * (below_RU + bad_RU / 2)).sum(axis=1) / (good_RU.sum(axis=1) * bad_RU.sum(axis=1))


def _auc_with_interval(
    scores_S: np.ndarray, right_S: np.ndarray, problems_S: np.ndarray, num_problems: int
) -> dict[str, float | None]:
    if right_S.all() or not right_S.any():
        return {"auc": None, "auc_low": None, "auc_high": None}
    resampled = []
    for counts_RP in resample_counts(num_problems, num_resamples=_RESAMPLES):
        for part_RP in np.array_split(counts_RP, max(1, len(counts_RP) * len(scores_S) // 4_000_000)):
            resampled.append(roc_auc(scores_S, right_S, part_RP[:, problems_S.astype(int)]))
    all_R = np.concatenate(resampled)
    drawn = all_R[~np.isnan(all_R)]  # a resample of few problems may hold one class alone
    low, high = percentile_interval(drawn) if len(drawn) else (0.0, 1.0)
    return {"auc": float(roc_auc(scores_S, right_S)[0]), "auc_low": low, "auc_high": high}


def first_error(values: Sequence[float]) -> int | None:
    """The first step below 0.5; None where there is none.

    >>> first_error([0.9, 0.3, 0.2]), first_error([0.9])
    (1, None)
    """
    return next((index for index, value in enumerate(values) if value < _THRESHOLD), None)


def first_error_scores(judged: Sequence[Judged]) -> dict[str, float | int | None]:
    """How often the first wrong step is found (ProcessBench, arXiv 2412.06559, section 4.1).

    ``found_first_error`` is the share of wrong solutions whose first wrong step is the first that the judge calls
    wrong, ``found_no_error`` the share of right solutions of which it calls none wrong, and ``first_error_f1`` their
    harmonic mean: None without both kinds. Solutions with a step without label before their first wrong one are
    left out: nobody knows theirs.

    >>> wrong = Judged(problem_id="a", scores=[0.9, 0.3], labels=[1.0, 0.0])
    >>> right = Judged(problem_id="b", scores=[0.9, 0.3], labels=[1.0, 1.0])
    >>> [first_error_scores([wrong, right])[name] for name in ("found_first_error", "found_no_error")]
    [1.0, 0.0]
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for solution in judged:
        known = [label for label in solution.labels if label is not None]
        truth = first_error(known)
        if None in solution.labels[: None if truth is None else truth + 1] or not known:
            continue
        hits[truth is None].append(first_error(solution.scores) == truth)
    right, wrong = [float(np.mean(hits[kind])) if hits[kind] else None for kind in (True, False)]
    f1 = None
    if right is not None and wrong is not None:
        f1 = 2 * right * wrong / (right + wrong) if right + wrong else 0.0
    return {
        "solutions_wrong": len(hits[False]),
        "solutions_right": len(hits[True]),
        "found_first_error": wrong,
        "found_no_error": right,
        "first_error_f1": f1,
    }


def calibration_error(scores_S: np.ndarray, right_S: np.ndarray) -> float:
    """The mean over steps of |mean score - share right| of the step's bin, ten bins of equal width in [0, 1]."""
    bins_S = np.minimum((np.clip(scores_S, 0, 1) * _BINS).astype(int), _BINS - 1)
    distances = [abs(scores_S[bins_S == b].sum() - right_S[bins_S == b].sum()) for b in range(_BINS)]
    return float(math.fsum(distances) / len(scores_S))
