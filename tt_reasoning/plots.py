"""Pictures for reading results. matplotlib is imported when one is drawn, and never opens a window."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tt_reasoning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


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
