"""Show every evaluation under a folder in one table, and draw it.

Each run of tools/evaluate.py leaves a results.json; this collects them all, however deep they lie: a row a method,
a column a number of answers k, every accuracy with its 95 % interval. A star marks what differs from the majority of
as many answers with p < 0.05.

Example: python tools/show_results.py --results results --plot results/accuracy.png
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.evaluation import (
    MAJORITY,
    ORACLE,
    PASS,
    RESULTS,
    Report,
    Result,
    base_method,
    format_table,
    interval,
    percent,
    read_report,
)
from tt_reasoning.plots import check_plot_path, plot_accuracy
from tt_reasoning.tool import run_tool

_SIGNIFICANT = 0.05


@dataclass(kw_only=True)
class Arguments:
    results: Path
    """folder with results of tools/evaluate.py in it, at any depth"""
    methods: tuple[str, ...] = ()
    """only these methods, such as majority aggregator; best_of_n stands for those of every judge"""
    num_answers: tuple[int, ...] = ()
    """only these k"""
    categories: bool = False
    """a table by category, where problems have one: a row a category, a column a method, the largest k of each run"""
    format: Literal["table", "markdown"] = "table"
    """how the table is printed"""
    plot: Path | None = None
    """picture of the accuracies to draw (.png, .pdf, .svg): bars, or lines where runs have several k"""
    against: Literal["k", "tokens"] = "k"
    """what the lines of the picture are drawn against: answers, or generated tokens a problem"""


def main(args: Arguments) -> str:
    if args.plot:
        check_plot_path(args.plot)
    reports = choose(find_reports(args.results), args)
    rows = list_categories(reports) if args.categories else list_rows(reports)
    if args.plot:
        plot_accuracy(reports, args.plot, against=args.against)
    print(format_table(rows, markdown=args.format == "markdown"))
    if any(cell.endswith("*") for row in rows for cell in row):
        mark = "\n\\*" if args.format == "markdown" else "*"
        print(f"{mark} p < {_SIGNIFICANT} against {MAJORITY}@k")
    for name, report in reports.items():
        if subsets := report.settings.get("evaluate", {}).get("subsamples"):
            print(f"{name}: means over {subsets} random subsets of k of its {report.most_samples} answers a problem")
    runs = "1 run" if len(reports) == 1 else f"{len(reports)} runs"
    return f"{runs} under {args.results}" + (f"; plot: {args.plot}" if args.plot else "")


def find_reports(folder: Path) -> dict[str, Report]:
    """Every report under the folder, by its path there, in order. Raises UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; tools/evaluate.py --out makes one")
    paths = sorted(folder.rglob(RESULTS))
    if not paths:
        raise UserError(f"{folder} holds no {RESULTS}; run tools/evaluate.py --out {folder}/NAME first")
    return {run_name(path, folder): read_report(path) for path in paths}


def run_name(path: Path, folder: Path) -> str:
    """What a run is called: its folder seen from ``folder``, or the folder's own name when it is that."""
    name = path.parent.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name


def choose(reports: Mapping[str, Report], args: Arguments) -> dict[str, Report]:
    """The reports with the methods and numbers of answers asked for; without those that have none of them."""
    known = {name for r in reports.values() for result in r.results for name in names_of(result.method)}
    for method in args.methods:
        if method not in known:
            raise unknown_name("method", method, known)

    def wanted(row: Result) -> bool:
        named = not args.methods or any(name in args.methods for name in names_of(row.method))
        return named and (not args.num_answers or row.k in args.num_answers)

    chosen = {
        name: replace(
            report, results=tuple(filter(wanted, report.results)), categories=tuple(filter(wanted, report.categories))
        )
        for name, report in reports.items()
    }
    left = {name: report for name, report in chosen.items() if report.results}
    if not left:
        ks = sorted({result.k for report in reports.values() for result in report.results})
        raise UserError(f"no run has these methods with --num-answers {_spaced(args.num_answers)}; k is {_spaced(ks)}")
    return left


def names_of(method: str) -> tuple[str, str]:
    """What a method may be called: as it stands in the table, or without its judge."""
    return method, base_method(method)


def list_rows(reports: Mapping[str, Report]) -> list[list[str]]:
    """One row a method of each run, one column a k; what a run is stands in its first row."""
    ks = sorted({result.k for report in reports.values() for result in report.results})
    rows = [["run", "model", "dataset", "problems", "method", *(f"k = {k}" for k in ks)]]
    for name, report in reports.items():
        cells = {(r.method, r.k): accuracy_cell(r) + star(report, r) for r in report.results}
        first = [name, Path(report.model).name, f"{report.dataset}/{report.split}", str(report.results[0].num_problems)]
        for method in dict.fromkeys(result.method for result in report.results):
            rows.append([*first, method, *(cells.get((method, k), "-") for k in ks)])
            first = [""] * len(first)
    starred = any(cell.endswith("*") for row in rows for cell in row)
    return [row[:5] + [pad(cell) if starred else cell for cell in row[5:]] for row in rows]


def pad(cell: str) -> str:
    """A cell that lines up with starred ones."""
    return cell if cell.endswith("*") else f"{cell}  "


def accuracy_cell(result: Result) -> str:
    return f"{percent(result.value)} {interval(result)}"


def star(report: Report, result: Result) -> str:
    """The mark of a method that differs from the majority; bounds are no methods."""
    label, baseline = result.label, f"{MAJORITY}@{result.k}"
    differs = any(
        found.p_value < _SIGNIFICANT and (found.method, found.baseline) == (label, baseline)
        for found in report.differences
    )
    return " *" if differs and result.method not in (PASS, ORACLE) else ""


def list_categories(reports: Mapping[str, Report]) -> list[list[str]]:
    """One row a category of each run, at its largest k, one column a method."""
    rows = list(_category_rows(reports))
    if not rows:
        raise UserError("no run has problems with a category, as those of mmlu-pro have; leave --categories away")
    methods = list(dict.fromkeys(method for _, cells in rows for method in cells))
    header = ["run", "dataset", "k", "category", "problems", *methods]
    return [header, *([*first, *(cells.get(method, "-") for method in methods)] for first, cells in rows)]


def _category_rows(reports: Mapping[str, Report]) -> Iterator[tuple[list[str], dict[str, str]]]:
    for name, report in reports.items():
        k = max((row.k for row in report.categories), default=0)
        of_k = [row for row in report.categories if row.k == k]
        run = [name, f"{report.dataset}/{report.split}", str(k)]
        for category in dict.fromkeys(row.category for row in of_k):
            found = [row for row in of_k if row.category == category]
            yield [*run, category, str(found[0].num_problems)], {row.method: accuracy_cell(row) for row in found}
            run = [""] * len(run)


def _spaced(numbers: tuple[int, ...] | list[int]) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
