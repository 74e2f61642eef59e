"""What a set of graded answers is worth: accuracy by method with intervals, paired differences, counts.

Every method is measured on the same problems, so that the methods differ and not their problems: a
problem with any verdict that could not be judged is left out for all of them, and counted by reason.
No torch here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.selection import Equal, bootstrap_interval, count_votes, oracle, paired_bootstrap, same_answer
from tt_reasoning.types import Answer, Problem, Verdict

RESULTS = "results.json"
AGGREGATOR = "aggregator"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The accuracy of one method, in [0, 1], with its 95 % bootstrap interval over problems.

    ``detail`` holds what only this method has: a majority's ``ties`` and ``no_votes`` (in problems), an
    aggregator's tokens and shares (see ``evaluate``).

    >>> Result(method="majority@4", value=0.25, low=0.1, high=0.4, num_problems=20, detail={"ties": 3}).detail
    {'ties': 3}
    """

    method: str
    value: float
    low: float
    high: float
    num_problems: int
    detail: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference ``method`` - ``baseline``, its 95 % interval and two-sided p-value."""

    method: str
    baseline: str
    difference: float
    low: float
    high: float
    p_value: float
    num_problems: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results and differences of one evaluation, and its counts (see ``evaluate``)."""

    results: tuple[Result, ...]
    differences: tuple[Comparison, ...]
    counts: dict


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a ``results.json``: an evaluation and all that it was made from.

    ``tokens`` are generated tokens over all problems: of the proposed ``answers`` and of the ``aggregator``.
    ``aggregator`` and ``prompt`` are None where only the votes were evaluated.
    """

    answers: str
    model: str
    dataset: str
    split: str
    num_problems: int
    num_answers: int
    aggregator: str | None
    prompt: str | None
    results: tuple[Result, ...]
    differences: tuple[Comparison, ...]
    counts: dict
    tokens: dict
    versions: dict


def evaluate(
    problems: Sequence[Problem],
    verdicts: Mapping[str, Sequence[Verdict]],
    aggregated: Mapping[str, tuple[Answer, Verdict]] | None = None,
    *,
    equal: Equal = same_answer,
) -> Evaluation:
    """Measure votes, and an aggregator where there is one, on the problems that can be judged.

    Methods, with k answers a problem:
    - ``pass@1``: the share of the k that is correct, which is the unbiased estimate from k samples
    - ``majority@k``: the verdict of the winner's first vote; a tie goes to the earliest (``count_votes``)
    - ``pass@k``: any of the k is correct: what a perfect judge would reach
    - ``aggregator``: its verdict. Its detail: ``cut`` (the share that ended at the token limit),
      ``mean_tokens``, and ``selected`` (its answer equals one of the k), ``synthesised`` (it equals none)
      and ``no_answer``, each with the number of problems and the accuracy on them (None of none)

    Differences: ``majority@k`` - ``pass@1`` and ``aggregator`` - ``majority@k``, paired by problem.

    Counts: ``problems``, ``judged``, ``left_out`` (problems by the reason of the first verdict, of the
    answers in order and then of the aggregator, that could not be judged), and the reasons of all
    verdicts: ``answer_reasons``, ``aggregator_reasons``.

    Args:
        problems: what was asked.
        verdicts: for every problem id, the verdicts of its k answers in sample order; the same k for all.
        aggregated: for every problem id, the aggregator's answer and its verdict.
        equal: whether two extracted answers are the same candidate.

    Raises:
        UserError: no problem can be judged.
        ValueError: no problems, or not the same number of verdicts for each.
    """
    sizes = {len(verdicts[problem.id]) for problem in problems}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"every problem needs the same number of verdicts, at least one; found {sorted(sizes)}")
    k = sizes.pop()
    judged, left_out = [], Counter()
    for problem in problems:
        both = [*verdicts[problem.id], *([aggregated[problem.id][1]] if aggregated else [])]
        reason = next((verdict.reason for verdict in both if verdict.correct is None), None)
        if reason is None:
            judged.append(problem.id)
        else:
            left_out[reason] += 1
    if not judged:
        raise UserError(f"none of the {len(problems)} problems can be judged ({_count_words(left_out)})")

    correct = [[bool(verdict.correct) for verdict in verdicts[name]] for name in judged]
    extracted = [[verdict.extracted for verdict in verdicts[name]] for name in judged]
    votes = [count_votes(row, equal) for row in extracted]
    values = {
        "pass@1": [sum(row) / k for row in correct],
        f"majority@{k}": [bool(vote and row[vote.index]) for vote, row in zip(votes, correct, strict=True)],
    }
    if k > 1:
        values[f"pass@{k}"] = [oracle(row) for row in correct]
    details = {f"majority@{k}": {"ties": sum(bool(v and v.tied) for v in votes), "no_votes": votes.count(None)}}
    pairs = [(f"majority@{k}", "pass@1")]
    counts = {
        "problems": len(problems),
        "judged": len(judged),
        "left_out": dict(left_out),
        "answer_reasons": dict(Counter(verdict.reason for problem in problems for verdict in verdicts[problem.id])),
    }
    if aggregated:
        finals = [aggregated[name] for name in judged]
        values[AGGREGATOR] = [bool(verdict.correct) for _, verdict in finals]
        details[AGGREGATOR] = _aggregator_detail(finals, extracted, equal)
        pairs.append((AGGREGATOR, f"majority@{k}"))
        counts["aggregator_reasons"] = dict(Counter(aggregated[problem.id][1].reason for problem in problems))
    return Evaluation(
        results=tuple(_measure(method, of, details.get(method, {})) for method, of in values.items()),
        differences=tuple(_compare(method, baseline, values[method], values[baseline]) for method, baseline in pairs),
        counts=counts,
    )


def _measure(method: str, values: Sequence[float], detail: dict) -> Result:
    low, high = bootstrap_interval(values)
    value = sum(values) / len(values)
    return Result(method=method, value=value, low=low, high=high, num_problems=len(values), detail=detail)


def _compare(method: str, baseline: str, values: Sequence[float], base_values: Sequence[float]) -> Comparison:
    found = paired_bootstrap(values, base_values)
    return Comparison(method=method, baseline=baseline, num_problems=len(values), **found._asdict())


def _aggregator_detail(
    finals: Sequence[tuple[Answer, Verdict]], offered: Sequence[Sequence[str | None]], equal: Equal
) -> dict:
    """How the aggregator came to its answers: see ``evaluate``."""
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
        "cut": sum(answer.finish_reason == "length" for answer, _ in finals) / len(finals),
        "mean_tokens": sum(answer.num_tokens for answer, _ in finals) / len(finals),
        **{
            name: {"num_problems": len(group), "accuracy": sum(group) / len(group) if group else None}
            for name, group in groups.items()
        },
    }


def _count_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def describe(evaluation: Evaluation | Report) -> str:
    """An evaluation for reading: a table of methods, the differences, and what was left out or notable."""
    rows = [["method", "accuracy %", "95 % interval", "problems"]]
    for result in evaluation.results:
        rows.append([result.method, percent(result.value), interval(result), str(result.num_problems)])
    lines = [format_table(rows), ""]
    points = [result.method for result in evaluation.results if result.low == result.high]
    if points:
        lines.append(f"{', '.join(points)}: the same on every problem, so the interval is a point and says too little")
    for found in evaluation.differences:
        lines.append(
            f"{found.method} - {found.baseline}: {100 * found.difference:+.1f} points "
            f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}], p = {found.p_value:.2g}"
        )
    for result in evaluation.results:
        if "ties" in result.detail:
            lines.append(f"{result.method}: {result.detail['ties']} ties, {result.detail['no_votes']} without a vote")
        if "cut" in result.detail:
            lines.append(
                f"{result.method}: {_group_words(result.detail)}; "
                f"{result.detail['mean_tokens']:.0f} tokens on average, {percent(result.detail['cut'])} % cut"
            )
    left_out = evaluation.counts["left_out"]
    if left_out:
        lines.append(f"left out, because not every answer can be judged: {_count_words(left_out)}")
    return "\n".join(lines)


def _group_words(detail: dict) -> str:
    words = []
    for name in ("selected", "synthesised", "no_answer"):
        group = detail[name]
        right = "" if group["accuracy"] is None else f" ({percent(group['accuracy'])} % correct)"
        words.append(f"{group['num_problems']} {name.replace('_', ' ')}{right}")
    return ", ".join(words)


def percent(value: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.257)
    '25.7'
    """
    return f"{100 * value:.1f}"


def interval(result: Result) -> str:
    """A result's interval in per cent.

    >>> interval(Result(method="pass@1", value=0.25, low=0.1, high=0.4, num_problems=20))
    '[10.0, 40.0]'
    """
    return f"[{percent(result.low)}, {percent(result.high)}]"


def column_name(method: str) -> str:
    """A method's column beside runs with another number of answers.

    >>> column_name("majority@4"), column_name("pass@1"), column_name("aggregator")
    ('majority@k', 'pass@1', 'aggregator')
    """
    return method if method == "pass@1" else re.sub(r"@\d+$", "@k", method)


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
    right = [bool(body) and all(row[column][:1] in "0123456789-[" for row in body) for column in range(len(header))]

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
    """The report of a ``results.json``. Raises UserError naming the file when it is none."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        return store.load_record(Report, row)
    except ValueError as error:
        raise UserError(f"{path}: not a report of tools/evaluate.py: {error}; evaluate again or move it away") from None
