"""How a judge or a value model in training does on held-out problems: measured, kept, told, and the best one found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tt_reasoning.judges.metrics import Judged, Valued, measure_judge, measure_values
from tt_reasoning.store import append_records, read_rows, write_records

EVALUATIONS, HELD_OUT = "evaluations.jsonl", "held_out.jsonl"
_OF_STEPS = ("solutions_wrong", "solutions_right", "found_first_error", "found_no_error", "first_error_f1")


def score_loss(score: float, target: float, *, squared: bool = False) -> float:
    """Cross-entropy of a score in [0, 1] that is to be ``target``, or the squared difference.

    >>> round(score_loss(0.25, 0.0), 3), score_loss(0.25, 0.0, squared=True)
    (0.288, 0.0625)
    """
    if squared:
        return (score - target) ** 2
    return -(target * math.log(max(score, 1e-12)) + (1 - target) * math.log(max(1 - score, 1e-12)))


def record_evaluation(
    output: Path, step: int, rows: Sequence[dict[str, Any]], *, squared: bool = False
) -> dict[str, Any]:
    """What the judge's scores come to, written to ``evaluations.jsonl``; ``held_out.jsonl`` has the latest scores.

    Args:
        rows: a solution each: ``place`` (its order), ``problem_id``, ``answer_id``, and by step ``scores``,
            ``targets``, ``labels``.
        squared: measure ``loss`` as squared error, as the judge was trained.
    """
    rows = sorted(rows, key=lambda row: row["place"])
    losses = [
        score_loss(score, target, squared=squared)
        for row in rows
        for score, target in zip(row["scores"], row["targets"], strict=True)
        if target is not None
    ]
    measured = measure_judge(
        [Judged(problem_id=row["problem_id"], scores=row["scores"], labels=row["labels"]) for row in rows]
    )
    if all(len(row["scores"]) == 1 for row in rows):  # whole answers have no first wrong step
        measured = {name: value for name, value in measured.items() if name not in _OF_STEPS}
    return _keep(output, step, rows, {"loss": sum(losses) / max(len(losses), 1), **measured})


def record_values(output: Path, step: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same of a value model (``measure_values``).

    Args:
        rows: an answer each: ``place`` (its order), ``problem_id``, ``answer_id``, ``label`` (its return), and by
            supervised token ``scores`` and ``losses``.
    """
    rows = sorted(rows, key=lambda row: row["place"])
    names = ("problem_id", "scores", "losses", "label")
    return _keep(output, step, rows, measure_values([Valued(**{name: row[name] for name in names}) for row in rows]))


def _keep(output: Path, step: int, rows: Sequence[dict[str, Any]], measured: dict[str, Any]) -> dict[str, Any]:
    result = {"step": step, "problems": len({row["problem_id"] for row in rows}), **measured}
    append_records(output / EVALUATIONS, [result])
    write_records(output / HELD_OUT, ({"step": step, **row} for row in rows))
    return result


def best_evaluation(output: Path) -> dict[str, Any] | None:
    """The first of the evaluations with the lowest loss; None where there is none."""
    if not (output / EVALUATIONS).exists():
        return None
    return min(read_rows(output / EVALUATIONS), key=lambda row: row["loss"], default=None)


def describe_evaluation(result: dict[str, Any]) -> str:
    """An evaluation in one line.

    >>> describe_evaluation({"loss": 0.5, "auc": 0.75, "auc_low": 0.6, "auc_high": 0.9, "accuracy": 0.7, "steps": 40})
    'held-out loss 0.500, AUC 0.750 [0.600, 0.900], accuracy 70.0% on 40 labels'
    >>> describe_evaluation({"loss": 0.5, "explained_variance": 0.2, "auc": None, "tokens": 40, "sequences": 8})
    'held-out loss 0.500, explained variance 0.200, AUC unknown (one class) on 40 tokens of 8 answers'

    Of a value model also the AUC at last tokens between answers to one problem, where there are right and wrong ones.
    """
    auc = "AUC unknown (one class)"
    if result.get("auc") is not None:
        auc = f"AUC {result['auc']:.3f} [{result['auc_low']:.3f}, {result['auc_high']:.3f}]"
    accuracy = "" if result.get("accuracy") is None else f", accuracy {result['accuracy']:.1%}"
    f1 = "" if result.get("first_error_f1") is None else f", first error F1 {result['first_error_f1']:.3f}"
    variance = result.get("explained_variance")
    explained = "" if variance is None else f"explained variance {variance:.3f}, "
    judged = f"{result['steps']} labels" if "steps" in result else (
        f"{result['tokens']} tokens of {result['sequences']} answers"
    )
    within = result.get("last_within_auc")
    inside = "" if within is None else f", {within:.3f} within problems"
    return f"held-out loss {result['loss']:.3f}, {explained}{auc}{inside}{accuracy}{f1} on {judged}"


def tell_best(output: Path) -> None:
    """Print which checkpoint did best on the held-out problems, if any were."""
    best = best_evaluation(output)
    if best:
        where = f"step {best['step']} -> {output / 'best'}" if best["step"] else "the start model"
        print(f"best on the held-out problems: {describe_evaluation(best)}; {where}")
