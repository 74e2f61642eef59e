"""Pictures for reading results. matplotlib is imported when one is drawn, and never opens a window."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import (
    AGGREGATOR,
    BEST_OF_N,
    LENGTH_WEIGHTED,
    MAJORITY,
    ORACLE,
    PASS,
    SCORE_WEIGHTED,
    SINGLE,
    Estimate,
    Report,
    Result,
    base_method,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# Colour, marker and line of each method, in the order drawn: apart for colour-blind readers (Okabe and Ito's palette,
# and the wine red of Tol's) and in grey. What only a perfect judge would reach is pale: a bound, not a method.
_STYLES = {
    MAJORITY: ("#e69f00", "o", "-"),
    LENGTH_WEIGHTED: ("#56b4e9", "s", "-"),
    SCORE_WEIGHTED: ("#0072b2", "P", "-"),
    BEST_OF_N: ("#882255", "*", "-"),
    "usc": ("#cc79a7", "v", "-"),
    "usc_majority": ("#d55e00", "^", "-"),
    AGGREGATOR: ("#009e73", "D", "-"),
    SINGLE: ("#5a5a5a", ".", ":"),
    ORACLE: ("#b0b0b0", ".", ":"),
    PASS: ("#8c8c8c", ".", "--"),
}
_SERIES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#882255", "D", ":"))  # over eta
_JUDGE_LINES = ("-", "--", "-.", ":")  # of one method by several judges
_PASS_1 = "pass@1"
_DIFFICULTY_COLORS = {"all_wrong": "#e69f00", "mixed": "#56b4e9", "all_correct": "#009e73", "unjudged": "#d5d5d5"}


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


def plot_answer_sets(stats: Mapping[str, Any], path: str | Path, title: str) -> None:
    """Draw what a run of answer sets came to: their lengths, how many of their answers are correct, and each source.

    The box holds the middle half of the lengths, its whiskers reach the last within 1.5 boxes, circles lie beyond.

    Args:
        stats: ``stats.json`` of tools/concat_answers.py.
    """
    from matplotlib.figure import Figure

    sources = len(stats["sources"])
    figure = Figure(figsize=(12, 5.5 + 0.25 * max(0, sources - 4)), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, width_ratios=[6, 5])
    box, histogram = left.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 5]})
    _draw_lengths(box, histogram, {int(length): count for length, count in stats["sets_by_num_tokens"].items()})
    correct, difficulty = right.subplots(2, 1, gridspec_kw={"height_ratios": [3, 0.8 + 0.35 * sources]})
    _draw_correct(correct, stats["sets_by_correct"])
    _draw_difficulty(difficulty, stats["sources"])
    save_figure(figure, path)


def _draw_lengths(box: Axes, histogram: Axes, sets_by_length: Mapping[int, int]) -> None:
    import numpy as np

    values = np.repeat(list(sets_by_length), list(sets_by_length.values()))
    box.boxplot(values, orientation="horizontal", widths=0.6, medianprops={"color": "tab:red", "linewidth": 2})
    box.set_yticks([])
    histogram.hist(values, bins=min(50, max(10, len(values) // 10)), color="tab:blue", edgecolor="white")
    for name, value, style in (("median", np.median(values), "-"), ("mean", values.mean(), "--")):
        histogram.axvline(value, color="tab:red", linestyle=style, label=f"{name} {value:,.0f}")
    histogram.set_xlabel("length of an answer set [tokens]")
    histogram.set_ylabel("answer sets")
    _count_in_integers(histogram)
    histogram.legend()


def _draw_correct(axes: Axes, sets_by_correct: Mapping[str, Mapping[str, int]]) -> None:
    """Bars over the number of correct answers, one above the other for sets of several sizes."""
    import numpy as np
    from matplotlib import colormaps

    most = max(map(int, sets_by_correct))
    below = np.zeros(most + 1)
    for number, (num_answers, counts) in enumerate(sets_by_correct.items()):
        heights = np.array([counts.get(str(correct), 0) for correct in range(most + 1)])
        color = colormaps["viridis"](0.25 + 0.6 * number / max(1, len(sets_by_correct) - 1))
        axes.bar(range(most + 1), heights, 0.8, bottom=below, color=color, label=f"of {num_answers}")
        below += heights
    axes.set_xlabel("correct answers in a set")
    axes.set_ylabel("answer sets")
    axes.set_xticks(range(most + 1) if most <= 20 else range(0, most + 1, 1 + most // 10))
    _count_in_integers(axes)
    if len(sets_by_correct) > 1:
        axes.legend()


def _draw_difficulty(axes: Axes, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """A bar a source: the shares of sets whose answers are all wrong, some right, all right."""
    filled = {source: part for source, part in sources.items() if part["num_sets"]}
    left = dict.fromkeys(filled, 0.0)
    for difficulty, color in _DIFFICULTY_COLORS.items():
        shares = [100 * part["difficulty"][difficulty] / part["num_sets"] for part in filled.values()]
        if not any(shares) and difficulty == "unjudged":
            continue
        name = difficulty.replace("_", " ")
        bars = axes.barh(list(filled), shares, 0.7, left=list(left.values()), color=color, label=name)
        labels = [f"{share:.0f}" if share >= 6 else "" for share in shares]
        axes.bar_label(bars, labels, label_type="center", fontsize=8)
        left = {source: start + share for (source, start), share in zip(left.items(), shares, strict=True)}
    axes.set_yticks(range(len(filled)), [f"{source} ({part['num_sets']:,})" for source, part in filled.items()])
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.set_xlabel("share of the sets by their answers [%]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_DIFFICULTY_COLORS), frameon=False, fontsize=8)


def _count_in_integers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def plot_accuracy(reports: Mapping[str, Report], path: str | Path, *, against: Literal["k", "tokens"] = "k") -> None:
    """Draw the accuracy of every method with its 95 % interval.

    Where each report has one k: a bar a method, a group of bars a run. Else a panel a run: a line a method against
    the number of answers, or against the tokens that a problem took, with the interval as a band. ``oracle`` and
    ``single`` are left out beside ``pass``, which says the same with less noise.

    Args:
        reports: by the name that stands at the group or over the panel.
    """
    if against == "k" and all(len({r.k for r in _drawn(report)} - {1}) <= 1 for report in reports.values()):
        _plot_bars(reports, path)
    else:
        _plot_lines(reports, path, against)


def _drawn(report: Report) -> list[Result]:
    methods = {result.method for result in report.results}
    return [result for result in report.results if result.method not in (ORACLE, SINGLE) or PASS not in methods]


def _style(method: str, methods: Sequence[str]) -> dict[str, str]:
    """Colour, marker and line of one of the methods drawn, in their order; one that is not known is black.

    Those of several judges have the colour of their kind, each paler than the one before, and lines of their own.

    >>> methods = ["majority", "best_of_n[prm:min]", "best_of_n[prm:prod]"]
    >>> [_style(method, methods)["color"] for method in methods]
    ['#e69f00', '#882255', '#ad678a']
    """
    if method.startswith(f"{AGGREGATOR}_cut"):
        return {"color": "#7fcdb0", "marker": "D", "linestyle": "--"}
    kind = base_method(method)
    color, marker, line = _STYLES.get(kind, ("#000000", "x", "-"))
    if kind != method:
        judges = [other for other in methods if base_method(other) == kind]
        number = judges.index(method)
        color, line = _mix_white(color, 0.62 * number / max(2, len(judges) - 1)), _JUDGE_LINES[number % 4]
    return {"color": color, "marker": marker, "linestyle": line}


def _mix_white(color: str, share: float) -> str:
    """A colour #rrggbb with a share of white in it."""
    channels = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(channel + share * (255 - channel)):02x}" for channel in channels)


def _in_order(methods: Iterable[str]) -> list[str]:
    order = list(_STYLES)
    unknown = order.index(AGGREGATOR) + 0.5

    def place(method: str) -> tuple[float, str]:
        kind = base_method(method)
        return (order.index(kind) if kind in order else unknown, method)

    return sorted(set(methods), key=place)


def _plot_bars(reports: Mapping[str, Report], path: str | Path) -> None:
    from matplotlib.figure import Figure

    found = {_bar_name(result) for report in reports.values() for result in _drawn(report)}
    methods = [_PASS_1] * (_PASS_1 in found) + _in_order(found - {_PASS_1})
    width = 0.84 / len(methods)
    figure = Figure(figsize=(max(7.0, 1.5 + 0.55 * len(methods) * len(reports)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for position, method in enumerate(methods):
        bars = [
            (group + (position - (len(methods) - 1) / 2) * width, result)
            for group, report in enumerate(reports.values())
            for result in _drawn(report)
            if _bar_name(result) == method
        ]
        errors = [[100 * (r.value - r.low) for _, r in bars], [100 * (r.high - r.value) for _, r in bars]]
        axes.bar(
            [place for place, _ in bars], [100 * result.value for _, result in bars], 0.92 * width, yerr=errors,
            capsize=3, color=_bar_color(method, methods), label=method if method == _PASS_1 else f"{method}@k",
            error_kw={"ecolor": "#444444", "elinewidth": 1},
        )  # fmt: skip
        for place, result in bars:
            axes.annotate(
                f"{100 * result.value:.1f}", (place, 100 * result.high), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8,
            )  # fmt: skip
    labels = [
        f"{name}\n{Path(r.model).name}\n{r.dataset}, k = {max(result.k for result in _drawn(r))}"
        for name, r in reports.items()
    ]
    axes.set_xticks(range(len(reports)), labels, fontsize=10 if len(reports) <= 3 else 8)
    top = max(100 * result.high for report in reports.values() for result in _drawn(report))
    axes.set_ylim(0, max(5.0, 1.12 * top))  # room for the numbers above the bars
    axes.set_ylabel("accuracy (%)")
    figure.suptitle("Accuracy by method, with 95 % intervals over problems")
    figure.legend(loc="outside lower center", ncols=min(4, len(methods)), frameon=False)
    _tidy(axes)
    save_figure(figure, path)


def _bar_name(result: Result) -> str:
    return _PASS_1 if (result.method, result.k) == (PASS, 1) else result.method


def _bar_color(method: str, methods: Sequence[str]) -> str:
    return {_PASS_1: "#5a5a5a", PASS: "#d5d5d5"}.get(method) or _style(method, methods)["color"]


def _plot_lines(reports: Mapping[str, Report], path: str | Path, against: Literal["k", "tokens"]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    methods = _in_order(result.method for report in reports.values() for result in _drawn(report))
    columns = min(3, len(reports))
    rows = -(-len(reports) // columns)
    figure = Figure(figsize=(2.0 + 4.4 * columns, 1.4 + 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, report) in zip(panels.flat, reports.items(), strict=False):
        for position, method in enumerate(methods):
            line = sorted((r for r in _drawn(report) if r.method == method), key=lambda r: r.k)
            if line:
                shift = 1.04 ** (position - (len(methods) - 1) / 2)
                _draw_line(axes, method, line, against, shift, _style(method, methods))
        axes.set_title(f"{name}: {Path(report.model).name}\n{report.dataset}, {report.num_problems} problems", size=10)
        axes.set_xscale("log", base=2 if against == "k" else 10)
        if against == "k":
            ks = sorted({result.k for result in report.results})
            axes.set_xticks(ks, map(str, ks))
        else:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("answers a problem (k)" if against == "k" else "generated tokens a problem")
        _tidy(axes)
    for axes in panels.flat[len(reports) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    handles = {label: h for axes in panels.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [f"{method}@k" for method in methods]
    figure.legend(
        [handles[label] for label in shown], shown, loc="outside lower center", ncols=2 + columns, frameon=False
    )
    figure.suptitle("Accuracy by method, with 95 % bands over problems")
    save_figure(figure, path)


def _draw_line(
    axes: Axes,
    method: str,
    line: Sequence[Result],
    against: Literal["k", "tokens"],
    shift: float,
    style: Mapping[str, str],
) -> None:
    """A method's line in its band; a single point has an interval and stands apart from others by ``shift``."""
    places = [r.k if against == "k" else r.answer_tokens + r.reader_tokens for r in line]
    values, lows, highs = ([100 * getattr(r, name) for r in line] for name in ("value", "low", "high"))
    if len(line) > 1:
        axes.fill_between(places, lows, highs, color=style["color"], alpha=0.13, linewidth=0)
    else:
        places = [places[0] * shift]
        axes.errorbar(places, values, [[values[0] - lows[0]], [highs[0] - values[0]]], color=style["color"], capsize=3)
    axes.plot(places, values, **style, markersize=5, linewidth=1.8, label=f"{method}@k")


class SteeredPoint(NamedTuple):
    """One policy in a picture of accuracy against divergence: its report, and its KL to the reference."""

    report: Report
    whole: Estimate


def plot_steering(series: Mapping[str, Sequence[SteeredPoint]], path: str | Path, methods: Sequence[str]) -> None:
    """Draw accuracy against the KL to the reference, a panel a method, a line a series, a point an eta.

    Bars both ways are the 95 % intervals; the number at a point is its eta. The dotted line is what the policy that did
    not steer reaches.

    Args:
        series: by its name, rising by eta; a single one has no legend.
        methods: labels such as ``pass@1``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.6 * len(methods), 4.6), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        for number, (name, points) in enumerate(series.items()):
            _draw_steering(axes, name, points, method, number)
        axes.set_title(method, size=11)
        axes.set_xlabel("KL to the reference (nats an answer)")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        _tidy(axes)
    panels[0].set_ylabel("accuracy (%)")
    if len(series) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(series)), frameon=False)
    reports = [point.report for points in series.values() for point in points]
    measured = dict.fromkeys(f"{r.dataset}/{r.split}, {r.results[0].num_problems} problems" for r in reports)
    told = f"{'; '.join(measured)}, 95 % intervals; the number at a point is eta"
    figure.suptitle(f"Accuracy against divergence from the reference\n{told}", size=11)
    save_figure(figure, path)


def _draw_steering(axes: Axes, name: str, points: Sequence[SteeredPoint], method: str, number: int) -> None:
    color, marker, line = _SERIES[number % len(_SERIES)]
    found = [(p, r) for p in points for r in p.report.results if r.label == method]
    places, values = [p.whole.value for p, _ in found], [100 * r.value for _, r in found]
    sideways = [[p.whole.value - p.whole.low for p, _ in found], [p.whole.high - p.whole.value for p, _ in found]]
    upright = [[100 * (r.value - r.low) for _, r in found], [100 * (r.high - r.value) for _, r in found]]
    axes.errorbar(places, values, upright, sideways, fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.55)
    axes.plot(places, values, color=color, marker=marker, linestyle=line, markersize=6, linewidth=1.8, label=name)
    for (point, _), x, y in zip(found, places, values, strict=True):
        text = axes.annotate(f"{point.report.eta:g}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8})
        if not point.report.eta:
            axes.axhline(y, color="#8c8c8c", linestyle=":", linewidth=1, zorder=0)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e8e8e8")
