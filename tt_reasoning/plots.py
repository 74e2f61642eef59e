"""Pictures for reading results. matplotlib is imported when one is drawn, and never opens a window."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import Report, column_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# Apart for colour-blind readers (Okabe and Ito's palette) and in grey; pass@k is pale: a bound, not a method.
_METHOD_COLORS = {"pass@1": "#0072b2", "majority@k": "#e69f00", "aggregator": "#009e73", "pass@k": "#d5d5d5"}


def check_plot_path(path: str | Path) -> None:
    """Raise UserError unless a picture can be saved there; call it before long work.

    >>> check_plot_path("lengths.txt")
    Traceback (most recent call last):
    ...
    tt_reasoning.errors.UserError: --plot lengths.txt: name a file that ends in .png, .pdf, .svg
    """
    if Path(path).suffix not in FORMATS:
        raise UserError(f"--plot {path}: name a file that ends in {', '.join(FORMATS)}")
    if Path(path).is_dir():
        raise UserError(f"--plot {path} is a folder; name a file")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Save a picture whole or not at all; its folder is made."""
    path = Path(path)
    check_plot_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    os.replace(temporary, path)


def plot_token_lengths(lengths: Sequence[int], path: str | Path, title: str) -> None:
    """Draw how long answer sets are, in tokens: a histogram with median and mean under a box plot.

    The box holds the middle half, its whiskers reach the last length within 1.5 boxes, circles lie beyond.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(lengths)
    figure = Figure(figsize=(8, 5), layout="constrained")
    box, histogram = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 5]})
    box.boxplot(values, orientation="horizontal", widths=0.6, medianprops={"color": "tab:red", "linewidth": 2})
    box.set_yticks([])
    box.set_title(title)
    histogram.hist(values, bins=min(50, max(10, len(values) // 10)), color="tab:blue", edgecolor="white")
    for name, value, style in (("median", np.median(values), "-"), ("mean", values.mean(), "--")):
        histogram.axvline(value, color="tab:red", linestyle=style, label=f"{name} {value:,.0f}")
    histogram.set_xlabel("length of an answer set [tokens]")
    histogram.set_ylabel("answer sets")
    histogram.yaxis.set_major_locator(MaxNLocator(integer=True))
    histogram.legend()
    save_figure(figure, path)


def plot_accuracy(reports: Mapping[str, Report], path: str | Path) -> None:
    """Draw the accuracy of every method with its 95 % interval: a bar a method, a group of bars a run.

    Args:
        reports: by the name that stands under the group.
    """
    from matplotlib.figure import Figure

    found = {column_name(result.method) for report in reports.values() for result in report.results}
    methods = [method for method in _METHOD_COLORS if method in found] + sorted(found - _METHOD_COLORS.keys())
    width = 0.84 / len(methods)
    figure = Figure(figsize=(max(7.0, 1.5 + 0.55 * len(methods) * len(reports)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for position, method in enumerate(methods):
        bars = [
            (group + (position - (len(methods) - 1) / 2) * width, result)
            for group, report in enumerate(reports.values())
            for result in report.results
            if column_name(result.method) == method
        ]
        errors = [[100 * (r.value - r.low) for _, r in bars], [100 * (r.high - r.value) for _, r in bars]]
        axes.bar(
            [place for place, _ in bars], [100 * result.value for _, result in bars], 0.92 * width, yerr=errors,
            capsize=3, color=_METHOD_COLORS.get(method), label=method, error_kw={"ecolor": "#444444", "elinewidth": 1},
        )  # fmt: skip
        for place, result in bars:
            axes.annotate(
                f"{100 * result.value:.1f}", (place, 100 * result.high), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8,
            )  # fmt: skip
    labels = [f"{name}\n{Path(r.model).name}\n{r.dataset}, k = {r.num_answers}" for name, r in reports.items()]
    axes.set_xticks(range(len(reports)), labels, fontsize=10 if len(reports) <= 3 else 8)
    top = max(100 * result.high for report in reports.values() for result in report.results)
    axes.set_ylim(0, max(5.0, 1.12 * top))  # room for the numbers above the bars
    axes.set_ylabel("accuracy (%)")
    axes.set_title("Accuracy by method, with 95 % intervals over problems", pad=30)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(methods), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e8e8e8")
    save_figure(figure, path)
