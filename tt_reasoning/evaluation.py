"""What a set of graded answers is worth: accuracy by method and number of answers k, with intervals and differences.

Every method is measured on the same problems and, for one k, on the same first k answers of each, so that the
methods differ and nothing else: a problem with any verdict that could not be judged is left out for all of them,
and counted by reason. ``pass@k`` alone is estimated from all n answers there are, which tells more; where n > k
it is therefore not paired with the others. With ``subsamples`` the other methods are measured on all n as well, on so
many random k of them. No torch here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.grading import count_reasons
from tt_reasoning.selection import (
    Choices,
    Equal,
    best_in_draws,
    describe_difference,
    draw_orders,
    pass_at_k,
    percentile_interval,
    resample_means,
    same_answer,
    vote_classes,
    vote_in_draws,
)
from tt_reasoning.types import Answer, Divergence, Guidance, Verdict, seed_of

RESULTS = "results.json"
FORMAT = 2  # of a report; 1 had one k and no such field
PASS, ORACLE, SINGLE, MAJORITY = "pass", "oracle", "single", "majority"
LENGTH_WEIGHTED = "length_weighted"
BEST_OF_N, SCORE_WEIGHTED = "best_of_n", "score_weighted"  # one of each a judge
AGGREGATOR = "aggregator"
NO_CATEGORY = "(none)"
# What the problems in which a method has nothing to choose are counted as; methods that choose nothing are not here.
_WITHOUT_WINNER = {
    MAJORITY: "no_votes", LENGTH_WEIGHTED: "no_votes", SCORE_WEIGHTED: "no_votes", BEST_OF_N: "no_choice",
}  # fmt: skip

# What a model that reads proposed answers (an aggregator, USC) wrote: by method and k, then by problem id.
Readings = Mapping[tuple[str, int], Mapping[str, tuple[Answer, Verdict]]]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A problem's n answers in sample order: their verdicts, their lengths in tokens and the scores of judges, if any.

    ``scores`` has by the name of a judge what it says of each answer, at least 0, or in a word why it says nothing;
    only the first are needed, as many as the largest k, unless subsets are drawn of all. ``divergences`` are those of
    the answers from the model that was steered, where one was.
    """

    problem_id: str
    category: str | None = None
    verdicts: tuple[Verdict, ...]
    num_tokens: tuple[int, ...]
    scores: Mapping[str, Sequence[float | str]] = field(default_factory=dict)
    divergences: tuple[Divergence | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The accuracy of one method with k answers, in [0, 1], with its 95 % bootstrap interval over problems.

    ``answer_tokens`` and ``reader_tokens`` are what it took to generate, a problem on average: the proposed answers,
    and the final one of a model that reads them. ``detail`` holds what not every method has: ``ties`` and, in which
    there was nothing to choose, ``no_votes`` or ``no_choice`` (in problems, on average over subsets), ``spread`` over
    subsets, a reader's shares (see ``evaluate``).

    >>> Result(method="majority", k=4, value=0.25, low=0.1, high=0.4, num_problems=20, answer_tokens=80.0).label
    'majority@4'
    """

    method: str
    k: int
    value: float
    low: float
    high: float
    num_problems: int
    answer_tokens: float
    reader_tokens: float = 0.0
    detail: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Method and k in one word."""
        return f"{self.method}@{self.k}"


@dataclass(frozen=True, kw_only=True)
class CategoryResult:
    """The accuracy of one method with k answers on the problems of one category."""

    category: str
    method: str
    k: int
    value: float
    low: float
    high: float
    num_problems: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference ``method`` - ``baseline`` (labels such as majority@4), its 95 % interval and two-sided
    p-value."""

    method: str
    baseline: str
    difference: float
    low: float
    high: float
    p_value: float
    num_problems: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MeanDivergence:
    """KL(policy, reference) of an answer in nats: the mean over problems of the mean over their answers.

    ``whole`` and ``sampled`` are those of ``types.Divergence``: before and after the sampler's top-k and top-p.
    """

    whole: Estimate
    sampled: Estimate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results and differences of one evaluation, and its counts (see ``evaluate``).

    ``divergence`` is there where every answer has one. ``values`` has by label what every method gets on each of
    ``problem_ids``, the judged ones in order.
    """

    results: tuple[Result, ...]
    differences: tuple[Comparison, ...]
    categories: tuple[CategoryResult, ...]
    counts: dict
    divergence: MeanDivergence | None = None
    problem_ids: tuple[str, ...] = ()
    values: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a ``results.json``: an evaluation and all that it was made from.

    ``num_samples`` is n, the answers a problem has (``most_samples`` where some have more). ``aggregator``,
    ``prompt`` and ``usc_model`` are None where there was none; so is ``guidance``, by which a value model steered all
    answers, and ``divergence``, how far. ``settings`` are the arguments of the run, of its readers and of the answers.
    """

    format: int = FORMAT
    answers: str
    model: str
    dataset: str
    split: str
    num_problems: int
    num_samples: int
    most_samples: int
    num_answers: tuple[int, ...]
    aggregator: str | None
    prompt: str | None
    usc_model: str | None
    results: tuple[Result, ...]
    differences: tuple[Comparison, ...]
    categories: tuple[CategoryResult, ...]
    counts: dict
    settings: dict
    versions: dict
    guidance: Guidance | None = None
    divergence: MeanDivergence | None = None

    @property
    def eta(self) -> float:
        """How hard a value model steered the answers; 0 where none did."""
        return 0.0 if self.guidance is None else self.guidance.eta


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One method at one k, before the bootstrap: ``values`` has one number a judged problem."""

    method: str
    k: int
    values: list[float]
    answer_tokens: float
    reader_tokens: float = 0.0
    detail: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.method}@{self.k}"


def base_method(method: str) -> str:
    """A method without the judge that its name tells apart from others.

    >>> base_method("best_of_n[prm:min]"), base_method("majority")
    ('best_of_n', 'majority')
    """
    return method.partition("[")[0]


def evaluate(
    candidates: Sequence[Candidates],
    num_answers: Sequence[int],
    readings: Readings | None = None,
    *,
    equal: Equal = same_answer,
    subsamples: int | None = None,
    subsample_seed: int = 0,
    unjudged: Mapping[str, str] | None = None,
) -> Evaluation:
    """Measure votes, and models that read the answers where there are any, on the problems that can be judged.

    Methods, for every k of ``num_answers``, with the n answers that a problem has:

    - ``pass@k``: the probability that k of the n answers hold a correct one (``pass_at_k``, unbiased); ``pass@1``,
      the share of the n that is correct, is always there
    - ``oracle@k``: any of the first k is correct: what a perfect judge of these would reach
    - ``single@k``: the share of the first k that is correct: what one of these, drawn blindly, reaches
    - ``majority@k``: of the first k, the answer with the most votes; one vote class an answer of the same
      ``equal``, worth the verdict of its first vote. Of several that tie the mean counts, the expected accuracy
      of a fair draw; where nobody votes, 0
    - ``length_weighted@k``: the same, a vote of an answer of t tokens counting 1/t
    - ``best_of_n@k``, where there are scores: of the first k, the answer with the highest one that has a result; of
      several that tie the mean counts; where none has a result and a score, 0
    - ``score_weighted@k``: as ``majority@k``, a vote counting the score of its answer; who has no score has no vote.
      Of several judges each has both methods, named ``best_of_n[JUDGE]@k``
    - a reader's own name: its verdict. Its detail: ``cut`` (the share that ended at the token limit),
      ``mean_tokens``, and ``selected`` (its answer equals one of the k), ``synthesised`` (it equals none)
      and ``no_answer``, each with the number of problems and the accuracy on them (None of none)

    With ``subsamples`` every method but ``pass`` is measured not on the first k answers but on so many random subsets
    of k of all n, the same for all methods; a problem counts with its mean over them. n is then the most answers that a
    problem has, and answers that others lack are as one without a result (the protocol of PRM800K, Lightman et al.
    2023). ``pass@k`` and ``pass@1`` are what ``oracle@k`` and ``single@k`` come to with ever more subsets. The detail
    has the ``spread``: the standard deviation of the accuracy over the subsets.

    Differences: every method that has the same k answers minus ``majority@k``, paired by problem; so ``pass@k``
    and ``pass@1`` only with ``subsamples`` or where each problem has k answers, being ``oracle@k`` and ``single@k``
    there.
    Categories: every method on the problems of each category, where problems have one.

    Counts: ``problems``, ``judged``, ``left_out`` (problems by the reason of the first verdict, of the
    answers in order and then of the readers, that could not be judged), and the reasons of all verdicts:
    ``answer_reasons``, ``reader_reasons`` (by label), ``scores`` (by judge: how many answers are ``scored``, and how
    many are not, by the word for it), and ``padded``, the answers that some problems lack of n.

    Args:
        candidates: at least ``max(num_answers)`` answers each; with ``subsamples`` it is enough that one has them.
        num_answers: every k.
        readings: by method and k; each has an answer to every problem.
        equal: whether two extracted answers are the same candidate.
        subsamples: how many subsets to draw of every problem's answers.
        subsample_seed: the same gives the same subsets of a problem, whichever others there are.
        unjudged: problems to leave out as well, with the reason: those that another evaluation, which this one is to
            be paired with, cannot judge (``find_unjudged``).

    Raises:
        UserError: no problem can be judged.
        ValueError: no problems, one with too few answers or scores, or readings of the first k beside subsamples.
    """
    readings = readings or {}
    ks = sorted(set(num_answers))
    sizes = [len(c.verdicts) for c in candidates] or [0]
    most = min(sizes) if subsamples is None else max(sizes)
    if not ks or not 1 <= ks[0] <= ks[-1] <= most:
        raise ValueError(f"num_answers={list(num_answers)} does not fit problems with {most} answers or more")
    if subsamples is not None and (subsamples < 1 or readings):
        raise ValueError(f"subsamples={subsamples} with {len(readings)} readings: at least 1, with none")
    _check_scores(candidates, None if subsamples is not None else ks[-1])
    unjudged = find_unjudged(candidates, readings) | dict(unjudged or {})
    judged = [c for c in candidates if c.problem_id not in unjudged]
    left_out = Counter(unjudged[c.problem_id] for c in candidates if c.problem_id in unjudged)
    if not judged:
        raise UserError(f"none of the {len(candidates)} problems can be judged ({_count_words(left_out)})")
    drifts_PD = _measure_drifts(judged)
    if subsamples is not None:
        judged = [_pad(c, most) for c in judged]
    measured = [
        _measure_pass(judged, 1),
        *_measure_all(judged, ks, readings, equal, subsamples, subsample_seed),
    ]
    paired_with_pass = ks if subsamples is not None else [max(len(c.verdicts) for c in judged)]
    table_PM = np.array([m.values for m in measured], dtype=np.float64).T
    means_RM = resample_means(np.hstack([table_PM, drifts_PD]))
    return Evaluation(
        results=tuple(
            Result(
                method=m.method, k=m.k, value=float(table_PM[:, column].mean()), num_problems=len(judged),
                **_bounds(means_RM[:, column]), answer_tokens=m.answer_tokens, reader_tokens=m.reader_tokens,
                detail=m.detail,
            )
            for column, m in enumerate(measured)
        ),
        differences=tuple(_compare_all(measured, table_PM, means_RM, ks, paired_with_pass)),
        categories=tuple(_measure_categories(judged, measured, table_PM)),
        counts={
            "problems": len(candidates),
            "judged": len(judged),
            "left_out": dict(left_out),
            "answer_reasons": count_reasons(verdict for c in candidates for verdict in c.verdicts),
            "reader_reasons": {
                f"{method}@{k}": count_reasons(found[c.problem_id][1] for c in candidates)
                for (method, k), found in readings.items()
            },
            "scores": _count_scores(candidates),
            "padded": sum(most - size for size in sizes) if subsamples is not None else 0,
        },
        divergence=_mean_divergence(drifts_PD, means_RM[:, len(measured) :]),
        problem_ids=tuple(c.problem_id for c in judged),
        values={m.label: m.values for m in measured},
    )  # fmt: skip


def _check_scores(candidates: Sequence[Candidates], needed: int | None) -> None:
    """Refuse problems of other judges, or with fewer scores than are needed (as many as answers unless given)."""
    for c in candidates:
        if c.scores.keys() != candidates[0].scores.keys():
            raise ValueError(f"problem {c.problem_id} has scores of {list(c.scores)}, not {list(candidates[0].scores)}")
        for name, scores in c.scores.items():
            if len(scores) < (needed or len(c.verdicts)):
                raise ValueError(f"problem {c.problem_id} has only {len(scores)} scores of {name}")


def _count_scores(candidates: Sequence[Candidates]) -> dict[str, dict[str, int]]:
    """By judge, how many answers have a score and how many have none, by reason."""
    words: dict[str, Counter[str]] = {name: Counter(scored=0) for name in candidates[0].scores}
    for c in candidates:
        for name, scores in c.scores.items():
            words[name].update(score if isinstance(score, str) else "scored" for score in scores)
    return {name: dict(found) for name, found in words.items()}


def find_unjudged(candidates: Sequence[Candidates], readings: Readings | None = None) -> dict[str, str]:
    """The problems with a verdict that could not be judged, of an answer or a reader, and the reason of the first."""
    found = {}
    for c in candidates:
        verdicts = [*c.verdicts, *(of_reader[c.problem_id][1] for of_reader in (readings or {}).values())]
        reason = next((verdict.reason for verdict in verdicts if verdict.correct is None), None)
        if reason is not None:
            found[c.problem_id] = reason
    return found


def _measure_drifts(judged: Sequence[Candidates]) -> np.ndarray:
    """The mean divergence of every problem's answers, ``whole`` and ``sampled``: (P, 2); (P, 0) where one has none."""
    if any(not c.divergences or None in c.divergences for c in judged):
        return np.zeros((len(judged), 0))
    return np.array([
        [_mean([d.whole for d in c.divergences if d]), _mean([d.sampled for d in c.divergences if d])] for c in judged
    ])  # fmt: skip


def _mean_divergence(drifts_PD: np.ndarray, means_RD: np.ndarray) -> MeanDivergence | None:
    columns = zip(drifts_PD.T, means_RD.T, strict=True)
    found = [Estimate(value=float(values.mean()), **_bounds(means)) for values, means in columns]
    return MeanDivergence(whole=found[0], sampled=found[1]) if found else None


def _pad(c: Candidates, num_answers: int) -> Candidates:
    """The problem with that many answers: those it lacks have no result and no length."""
    lacks = num_answers - len(c.verdicts)
    none = Verdict(answer_id="", extracted=None, correct=False, reason="no_answer")
    scores = {name: (*found, *["missing"] * lacks) for name, found in c.scores.items()}
    return replace(c, verdicts=(*c.verdicts, *[none] * lacks), num_tokens=(*c.num_tokens, *[0] * lacks), scores=scores)


class _Tally:
    """What one method chose at one k: the value of every problem, and over all problems the sums of each draw."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.totals_T: np.ndarray | float = 0.0
        self.ties = self.nothing = 0.0

    def add(self, chosen: Choices) -> None:
        self.values.append(float(chosen.values_T.mean()))
        self.totals_T = self.totals_T + chosen.values_T
        self.ties += float((chosen.num_winners_T > 1).mean())
        self.nothing += float((chosen.num_winners_T == 0).mean())

    def detail(self, method: str, subsampled: bool) -> dict:
        """Counts of ties and of problems without a winner where a method has any, and the spread over subsets."""
        word = _WITHOUT_WINNER.get(base_method(method))
        ties, nothing = (self.ties, self.nothing) if subsampled else (int(self.ties), int(self.nothing))
        counts = {"ties": ties, word: nothing} if word else {}
        return counts | ({"spread": float(np.std(self.totals_T) / len(self.values))} if subsampled else {})


def _measure_all(
    judged: Sequence[Candidates],
    ks: Sequence[int],
    readings: Readings,
    equal: Equal,
    subsamples: int | None,
    seed: int,
) -> Iterator[_Measured]:
    """All methods, k by k, but ``pass@1``."""
    tallies: dict[tuple[str, int], _Tally] = defaultdict(_Tally)
    subsampled = subsamples is not None
    for c in tqdm(judged, unit="problem", desc="subsets", disable=None if subsampled else True):
        num_answers = len(c.verdicts)
        if subsampled:
            orders_TN = draw_orders(num_answers, subsamples, seed_of(seed, c.problem_id))
        else:
            orders_TN = np.arange(num_answers)[None]
        for method, k, chosen in _choose_all(c, ks, orders_TN, equal):
            tallies[method, k].add(chosen)
    for k in ks:
        if k > 1:
            yield _measure_pass(judged, k)
        tokens = _mean([k * _mean(c.num_tokens) if subsampled else sum(c.num_tokens[:k]) for c in judged])
        for (method, of_k), tally in tallies.items():
            if of_k == k:
                yield _Measured(
                    method=method, k=k, values=tally.values, detail=tally.detail(method, subsampled),
                    answer_tokens=tokens / k if method == SINGLE else tokens,
                )  # fmt: skip
        for (method, read_k), found in readings.items():
            if read_k == k:
                yield _measure_reader(method, k, judged, [found[c.problem_id] for c in judged], tokens, equal)


def _choose_all(
    c: Candidates, ks: Sequence[int], orders_TN: np.ndarray, equal: Equal
) -> Iterator[tuple[str, int, Choices]]:
    """What every method that needs no model chooses, k by k, of the first k answers of each order."""
    classes = vote_classes([verdict.extracted for verdict in c.verdicts], equal)
    class_N = np.full(len(c.verdicts), len(classes))  # who has no result votes for none
    for number, members in enumerate(classes):
        class_N[members] = number
    right_N = np.array([bool(verdict.correct) for verdict in c.verdicts])
    right_C = right_N[[members[0] for members in classes]]
    right_TN, class_TN = right_N[orders_TN], class_N[orders_TN]
    length_TN = (1 / np.maximum(1, c.num_tokens))[orders_TN]
    judges = [(name, *_place_scores(scores, class_N, len(classes))) for name, scores in c.scores.items()]
    judges_TN = [(name, *(values_N[orders_TN] for values_N in of_judge)) for name, *of_judge in judges]
    for k in ks:
        drawn = np.s_[: 1 if k == len(class_N) else None, :k]  # of all answers there is one subset
        right_TK = right_TN[drawn]
        one_T = np.ones(len(right_TK), int)
        yield ORACLE, k, Choices(right_TK.any(axis=1).astype(float), one_T)
        yield SINGLE, k, Choices(right_TK.mean(axis=1), one_T)
        yield MAJORITY, k, vote_in_draws(class_TN[drawn], right_C)
        yield LENGTH_WEIGHTED, k, vote_in_draws(class_TN[drawn], right_C, length_TN[drawn])
        for name, best_TN, vote_TN, weight_TN in judges_TN:
            judge = f"[{name}]" if len(judges) > 1 else ""
            yield BEST_OF_N + judge, k, best_in_draws(best_TN[drawn], right_TK)
            yield SCORE_WEIGHTED + judge, k, vote_in_draws(vote_TN[drawn], right_C, weight_TN[drawn])


def _place_scores(
    scores: Sequence[float | str], class_N: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A judge's scores as ``best_in_draws`` takes them, and the votes and weights that they give to N answers."""
    weight_N, scored_N = np.zeros(len(class_N)), np.zeros(len(class_N), bool)
    for index, score in enumerate(scores):
        if not isinstance(score, str):
            weight_N[index], scored_N[index] = score, True
    vote_N = np.where(scored_N, class_N, num_classes)
    return np.where(vote_N < num_classes, weight_N, -np.inf), vote_N, weight_N


def _measure_pass(judged: Sequence[Candidates], k: int) -> _Measured:
    right = [sum(bool(verdict.correct) for verdict in c.verdicts) for c in judged]
    values = [pass_at_k(len(c.verdicts), correct, k) for c, correct in zip(judged, right, strict=True)]
    return _Measured(method=PASS, k=k, values=values, answer_tokens=k * _mean([_mean(c.num_tokens) for c in judged]))


def _measure_reader(
    method: str,
    k: int,
    judged: Sequence[Candidates],
    finals: Sequence[tuple[Answer, Verdict]],
    tokens: float,
    equal: Equal,
) -> _Measured:
    offered = [[verdict.extracted for verdict in c.verdicts[:k]] for c in judged]
    detail = _reader_detail(finals, offered, equal)
    values = [float(bool(verdict.correct)) for _, verdict in finals]
    return _Measured(
        method=method, k=k, values=values, answer_tokens=tokens, reader_tokens=detail["mean_tokens"], detail=detail
    )


def _reader_detail(
    finals: Sequence[tuple[Answer, Verdict]], offered: Sequence[Sequence[str | None]], equal: Equal
) -> dict:
    """How a reader came to its answers: see ``evaluate``."""
    groups: dict[str, list[bool]] = {"selected": [], "synthesised": [], "no_answer": []}
    for (_, verdict), answers in zip(finals, offered, strict=True):
        if verdict.extracted is None:
            group = "no_answer"
        elif any(answer is not None and equal(answer, verdict.extracted) for answer in answers):
            group = "selected"
        else:
            group = "synthesised"
        groups[group].append(bool(verdict.correct))
    return {
        "cut": _mean([answer.finish_reason == "length" for answer, _ in finals]),
        "mean_tokens": _mean([answer.num_tokens for answer, _ in finals]),
        **{
            name: {"num_problems": len(group), "accuracy": _mean(group) if group else None}
            for name, group in groups.items()
        },
    }


def _compare_all(
    measured: Sequence[_Measured],
    table_PM: np.ndarray,
    means_RM: np.ndarray,
    ks: Sequence[int],
    paired_with_pass: Sequence[int],
) -> Iterator[Comparison]:
    """Every method that has the same k answers minus ``majority@k``, ``pass`` at some k."""
    for k in ks:
        base = next(column for column, m in enumerate(measured) if (m.method, m.k) == (MAJORITY, k))
        for column, m in enumerate(measured):
            same_answers = m.k in (1, k) and k in paired_with_pass if m.method == PASS else m.k == k
            if column != base and same_answers:
                observed = float((table_PM[:, column] - table_PM[:, base]).mean())
                found = describe_difference(observed, means_RM[:, column] - means_RM[:, base])
                yield Comparison(
                    method=m.label, baseline=measured[base].label, num_problems=len(table_PM), **found._asdict()
                )


def _measure_categories(
    judged: Sequence[Candidates], measured: Sequence[_Measured], table_PM: np.ndarray
) -> Iterator[CategoryResult]:
    """Every method on each category, categories by name; nothing where no problem has one."""
    if all(c.category is None for c in judged):
        return
    names = np.array([c.category or NO_CATEGORY for c in judged])
    for category in sorted(set(names.tolist())):
        rows_PM = table_PM[names == category]
        means_RM = resample_means(rows_PM)
        for column, m in enumerate(measured):
            yield CategoryResult(
                category=category, method=m.method, k=m.k, value=float(rows_PM[:, column].mean()),
                **_bounds(means_RM[:, column]), num_problems=len(rows_PM),
            )  # fmt: skip


def _bounds(means: np.ndarray) -> dict[str, float]:
    return dict(zip(("low", "high"), percentile_interval(means), strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _count_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def describe(evaluation: Evaluation | Report) -> str:
    """An evaluation for reading: a table of methods for every k, and what was left out or notable."""
    ks = [result.k for result in evaluation.results if result.method == MAJORITY]
    shown = {k: _shown(evaluation, k) for k in ks}
    parts = ["\n".join(_describe_k(evaluation, k, results)) for k, results in shown.items()]
    notes = []
    fixed = dict.fromkeys(r.label for results in shown.values() for r in results if r.high - r.low < 1e-9)
    if fixed:
        notes.append(f"{', '.join(fixed)}: the same on every problem, so the interval is a point and says too little")
    counts = evaluation.counts
    if evaluation.divergence:
        whole, sampled = (nats(found) for found in (evaluation.divergence.whole, evaluation.divergence.sampled))
        notes.append(f"KL to the reference, nats an answer: {whole}; as sampled, behind top-k and top-p: {sampled}")
    if counts["left_out"]:
        notes.append(f"left out, because not every answer can be judged: {_count_words(counts['left_out'])}")
    for words, judges in _group_skipped(counts["scores"]).items():
        notes.append(f"{', '.join(judges)}: answers without a score are never chosen and have no vote: {words}")
    if counts["padded"]:
        notes.append(f"{counts['padded']} answers that problems lack of the most that one has: as without a result")
    readers = _reader_rows(evaluation)
    if len(readers) > 1:
        parts.append(format_table(readers))
    parts.append(format_table(_outcome_rows(counts)))
    return "\n\n".join([*parts, *notes])


def nats(found: Estimate) -> str:
    """A divergence with its interval.

    >>> nats(Estimate(value=3.5, low=2.0, high=5.0))
    '3.50 [2.00, 5.00]'
    """
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _group_skipped(scores: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """The judges, several under one aggregate each, by what they skipped."""
    groups = defaultdict(list)
    for judge, found in scores.items():
        skipped = {word: count for word, count in found.items() if word != "scored"}
        if skipped:
            groups[f"{_count_words(skipped)} of {sum(found.values())}"].append(judge)
    return groups


def _shown(evaluation: Evaluation | Report, k: int) -> list[Result]:
    """The results of one k, and ``pass@1``, without those that say the same as another of them."""
    hidden: set[str] = set()
    if k == 1:
        hidden = {ORACLE, SINGLE, LENGTH_WEIGHTED}  # there is but the one answer
        if not _group_skipped(evaluation.counts["scores"]):
            hidden |= {BEST_OF_N, SCORE_WEIGHTED}
    elif any((d.method, d.baseline) == (f"{PASS}@1", f"{MAJORITY}@{k}") for d in evaluation.differences):
        hidden = {ORACLE, SINGLE}  # no problem has more than k answers, or all were drawn from
    found = [r for r in evaluation.results if r.k == k or (r.method, r.k) == (PASS, 1)]
    return [r for r in found if base_method(r.method) not in hidden]


def _describe_k(evaluation: Evaluation | Report, k: int, results: Sequence[Result]) -> list[str]:
    """The table of one k: accuracy, difference to the majority, generated tokens a problem and, of subsets, the spread
    over them; then its details."""
    baseline = f"{MAJORITY}@{k}"
    compared = {found.method: found for found in evaluation.differences if found.baseline == baseline}
    subsampled = any("spread" in result.detail for result in results)
    rows = [["method", "accuracy %", "95 % interval", f"- {baseline}", "p", "tokens", *(["spread"] * subsampled)]]
    for result in results:
        found = compared.get(result.label)
        compared_cells = ["", ""] if found is None else [difference_words(found), f"{found.p_value:.2g}"]
        tokens = f"{result.answer_tokens + result.reader_tokens:.0f}"
        rows.append([result.label, percent(result.value), interval(result), *compared_cells, tokens])
        if subsampled:
            rows[-1].append(percent(result.detail["spread"]) if "spread" in result.detail else "")
    lines = [format_table(rows)]
    for result in results:
        word = _WITHOUT_WINNER.get(base_method(result.method))
        ties, nothing = result.detail.get("ties", 0), result.detail.get(word, 0)
        if ties or nothing:
            what = "a vote" if word == "no_votes" else "a scored result"
            lines.append(f"{result.label}: {ties:.4g} ties, {nothing:.4g} without {what}")
    return lines


def difference_words(found: Comparison) -> str:
    """A difference in per cent with its interval."""
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _reader_rows(evaluation: Evaluation | Report) -> list[list[str]]:
    """How each reader came to its answers: problems, and how many of a hundred are right among them."""
    rows = [["reader", "selected", "% right", "synthesised", "% right", "no answer", "tokens", "% cut"]]
    for result in evaluation.results:
        if "selected" in result.detail:
            detail = result.detail
            cells = [result.label]
            for name in ("selected", "synthesised"):
                right = detail[name]["accuracy"]
                cells += [str(detail[name]["num_problems"]), "-" if right is None else percent(right)]
            no_answer = str(detail["no_answer"]["num_problems"])
            rows.append([*cells, no_answer, f"{detail['mean_tokens']:.0f}", percent(detail["cut"])])
    return rows


def _outcome_rows(counts: Mapping) -> list[list[str]]:
    """How many verdicts had each reason, of the proposed answers and of every reader; reasons that are there."""
    table = {"answers": counts["answer_reasons"], **counts["reader_reasons"]}
    reasons = [reason for reason in counts["answer_reasons"] if any(found[reason] for found in table.values())]
    return [["outcomes", *reasons], *([name, *(str(found[r]) for r in reasons)] for name, found in table.items())]


def percent(value: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.257)
    '25.7'
    """
    return f"{100 * value:.1f}"


def interval(result: Result | CategoryResult) -> str:
    """A result's interval in per cent.

    >>> interval(Result(method="pass", k=1, value=0.25, low=0.1, high=0.4, num_problems=20, answer_tokens=9.0))
    '[10.0, 40.0]'
    """
    return f"[{percent(result.low)}, {percent(result.high)}]"


def format_table(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Rows of cells, the header first, as aligned text or Markdown: cells that begin like a number stand right.

    >>> print(format_table([["method", "%"], ["pass@1", "9.5"], ["pass@4", "29.0"]]))
    method     %
    ------  ----
    pass@1   9.5
    pass@4  29.0
    """
    header, *body = rows
    widths = [max(2, *(len(row[column]) for row in rows)) for column in range(len(header))]
    right = [bool(body) and all(row[column][:1] in "0123456789+-[" for row in body) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        rules = ["-" * (width - 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)]
    else:
        rules = ["-" * width for width in widths]
    return "\n".join([line(header), line(rules), *map(line, body)])


def read_report(path: str | Path) -> Report:
    """The report of a ``results.json``. Raises UserError naming the file when it is none, or an older one."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        if "results" in row and row.get("format") != FORMAT:
            raise ValueError(f"its format is {row.get('format', 1)}, this version reads {FORMAT}")
        return store.load_record(Report, row)
    except ValueError as error:
        raise UserError(
            f"{path}: not a report of tools/evaluate.py: {error}; evaluate again into a new folder, or move it away"
        ) from None
