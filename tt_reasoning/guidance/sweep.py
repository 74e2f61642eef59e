"""What steering is worth: policies of one reference, such as several etas, measured on the same problems and paired.

A policy is how answers were drawn: by the reference alone, or steered by a value model with some rule and eta. Each has
a report of its own (``evaluation.Report``, in its folder); ``guidance.json`` beside these folders holds them side by
side, with the paired differences of every method from the reference. A problem with a verdict of any policy that could
not be judged is left out of all. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import (
    LENGTH_WEIGHTED,
    MAJORITY,
    ORACLE,
    PASS,
    SINGLE,
    Candidates,
    Comparison,
    Estimate,
    Evaluation,
    MeanDivergence,
    Readings,
    Result,
    difference_words,
    evaluate,
    find_unjudged,
    format_table,
    interval,
    percent,
)
from tt_reasoning.selection import describe_difference, resample_means
from tt_reasoning.types import Guidance

SWEEP = "guidance.json"
FORMAT = 1  # of that file
UNGUIDED = "unguided"
_UNTOLD = (ORACLE, SINGLE, LENGTH_WEIGHTED)  # of methods: bounds, and votes that say much the same as others


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One policy of a sweep: its label, its folder below that of the sweep, and what it came to.

    ``guidance`` is None of answers that nothing steered, ``divergence`` where answers have none. ``differences`` are of
    every method: this policy's minus the reference's, the ``baseline``.
    """

    label: str
    folder: str
    guidance: Guidance | None
    results: tuple[Result, ...]
    divergence: MeanDivergence | None
    differences: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a ``guidance.json``.

    ``left_out`` counts the problems that could not be judged, by reason. ``reference`` is the label of the policy that
    the others are compared with: eta 0, or no guidance; None where there is neither.
    """

    format: int = FORMAT
    model: str
    dataset: str
    split: str
    num_problems: int
    left_out: dict
    reference: str | None
    policies: tuple[Policy, ...]


def name_policies(guidances: Sequence[Guidance | None]) -> list[str]:
    """A label for each policy: its eta and, where that is not ``bernoulli``, its rule; then what else tells some apart.

    >>> from dataclasses import replace
    >>> q = Guidance(value_model="outputs/r1/step_4", eta=5)
    >>> name_policies([None, q, replace(q, eta=0.5, rule="mean")])
    ['unguided', 'eta=5', 'eta=0.5 (mean)']
    >>> name_policies([q, replace(q, value_model="outputs/r2/step_4", top_k=0)])
    ['eta=5 (r1, top_k 20)', 'eta=5 (r2, top_k 0)']

    Raises:
        UserError: two policies are the same.
    """
    given = [guidance for guidance in guidances if guidance is not None]
    models = _shorten([guidance.value_model for guidance in given])
    several = {name for name in ("value_model", "top_k", "outside") if len({getattr(g, name) for g in given}) > 1}

    def label(guidance: Guidance | None) -> str:
        if guidance is None:
            return UNGUIDED
        more = [guidance.rule] if guidance.rule != "bernoulli" else []
        more += [models[guidance.value_model]] if "value_model" in several else []
        more += [f"top_k {guidance.top_k}"] if "top_k" in several else []
        more += [f"{guidance.outside} outside"] if "outside" in several else []
        return f"eta={guidance.told_eta}" + (f" ({', '.join(more)})" if more else "")

    labels = [label(guidance) for guidance in guidances]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise UserError(f"there are answers of {twice} in two folders; leave one out: name others, or --answers-eta")
    return labels


def _shorten(paths: Sequence[str]) -> dict[str, str]:
    """Paths by what is not common to them all, at their beginning and end; the whole path where nothing is left."""
    parts = {path: list(PurePath(path).parts) for path in paths}
    for place in (0, -1):
        while len({tuple(p[place : place + 1 or None]) for p in parts.values()}) == 1 and all(parts.values()):
            for p in parts.values():
                del p[place]
    return {path: "/".join(left) or path for path, left in parts.items()}


def folder_name(label: str) -> str:
    """The folder of a policy.

    >>> folder_name("eta=0.5 (mean)"), folder_name("unguided")
    ('eta_0.5_mean', 'unguided')
    """
    return re.sub(r"[^\w.+-]+", "_", label).strip("_")


def find_reference(policies: Mapping[str, Guidance | None]) -> str | None:
    """The label of the policy that did not steer: with eta 0, else without a value model; None where all do."""
    guided = (name for name, guidance in policies.items() if guidance is not None and guidance.eta == 0)
    alone = (name for name, guidance in policies.items() if guidance is None)
    return next(guided, None) or next(alone, None)


def align_problems(candidates: Mapping[str, Sequence[Candidates]]) -> dict[str, list[Candidates]]:
    """The problems of every policy in the order of the first. Raises UserError where they are not the same."""
    first, *_ = candidates
    order = [c.problem_id for c in candidates[first]]
    aligned = {}
    for label, found in candidates.items():
        by_id = {c.problem_id: c for c in found}
        if by_id.keys() != set(order):
            other = min(by_id.keys() ^ set(order))
            raise UserError(
                f"the answers of {first} and of {label} are to different problems, such as {other} of one alone; "
                "generate what is missing"
            )
        aligned[label] = [by_id[name] for name in order]
    return aligned


def evaluate_policies(
    candidates: Mapping[str, Sequence[Candidates]],
    num_answers: Sequence[int],
    readings: Mapping[str, Readings] | None = None,
    *,
    subsamples: int | None = None,
    subsample_seed: int = 0,
) -> dict[str, Evaluation]:
    """``evaluate`` for every policy, by label, each on the problems that can be judged in all.

    Args:
        candidates: as ``align_problems`` gives them.

    Raises:
        UserError: no problem can be judged.
        ValueError: as ``evaluate``.
    """
    readings = readings or {}
    unjudged: dict[str, str] = {}
    for label, found in candidates.items():
        unjudged = find_unjudged(found, readings.get(label)) | unjudged
    return {
        label: evaluate(
            found, num_answers, readings.get(label), subsamples=subsamples, subsample_seed=subsample_seed,
            unjudged=unjudged,
        )
        for label, found in candidates.items()
    }  # fmt: skip


def compare_policies(policy: Evaluation, reference: Evaluation, baseline: str) -> tuple[Comparison, ...]:
    """Every method's difference, ``policy`` - ``reference``, over the same problems (``evaluate_policies``)."""
    labels = [label for label in policy.values if label in reference.values]
    table_PM = np.array([np.subtract(policy.values[label], reference.values[label]) for label in labels]).T
    means_RM = resample_means(table_PM)
    return tuple(
        Comparison(
            method=label, baseline=baseline, num_problems=len(table_PM),
            **describe_difference(float(table_PM[:, column].mean()), means_RM[:, column])._asdict(),
        )
        for column, label in enumerate(labels)
    )  # fmt: skip


def describe_sweep(sweep: Sweep) -> str:
    """A sweep for reading: how far every policy is from the reference, and what it reaches at the largest k."""
    rows = [["policy", "KL", "95 % interval", "KL as sampled", "95 % interval", "tokens"]]
    for policy in sweep.policies:
        found = policy.divergence
        cells = ["-"] * 4 if found is None else [*_nats(found.whole), *_nats(found.sampled)]
        rows.append([policy.label, *cells, f"{_result(policy, PASS, 1).answer_tokens:.0f}"])
    k = max(result.k for result in sweep.policies[0].results if result.method == MAJORITY)
    others = [(r.method, k) for r in sweep.policies[0].results if r.k == k and r.method not in _UNTOLD]
    methods = dict.fromkeys([(PASS, 1), (MAJORITY, k), (PASS, k), *others])
    parts = [f"{format_table(rows)}\nKL to the reference in nats, tokens: an answer on average"]
    parts += [_describe_method(sweep, method, of_k) for method, of_k in methods]
    if sweep.reference is None:
        parts.append("no answers of eta 0 or without guidance: nothing to compare with")
    if sweep.left_out:
        words = ", ".join(f"{name} {count}" for name, count in sweep.left_out.items())
        parts.append(f"left out of all, because not every answer can be judged: {words}")
    return "\n\n".join(parts)


def _describe_method(sweep: Sweep, method: str, k: int) -> str:
    """One method's table: accuracy of every policy and its difference from the reference."""
    header = [f"{method}@{k}", "accuracy %", "95 % interval"]
    rows = [header if sweep.reference is None else [*header, f"- {sweep.reference}", "p"]]
    for policy in sweep.policies:
        result = _result(policy, method, k)
        rows.append([policy.label, percent(result.value), interval(result)])
        found = next((found for found in policy.differences if found.method == result.label), None)
        if sweep.reference is not None:
            rows[-1] += ["", ""] if found is None else [difference_words(found), f"{found.p_value:.2g}"]
    return format_table(rows)


def _result(policy: Policy, method: str, k: int) -> Result:
    return next(result for result in policy.results if (result.method, result.k) == (method, k))


def _nats(found: Estimate) -> tuple[str, str]:
    return f"{found.value:.2f}", f"[{found.low:.2f}, {found.high:.2f}]"


def read_sweep(path: str | Path) -> Sweep:
    """The sweep of a ``guidance.json``. Raises UserError naming the file when it is none, or of another format."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise ValueError(f"no object of format {FORMAT}")
        return store.load_record(Sweep, row)
    except ValueError as error:
        raise UserError(f"{path}: not a sweep of tools/evaluate.py: {error}; evaluate again, or move it away") from None
