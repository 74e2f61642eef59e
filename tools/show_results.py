"""Show every evaluation under a folder in one table, and draw it.

Each run of tools/evaluate.py leaves a results.json; this collects them all, however deep they lie, so that
models, data sets and numbers of answers stand side by side, each with its 95 % interval.

Example: python tools/show_results.py --results results --plot results/accuracy.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import RESULTS, Report, column_name, format_table, interval, percent, read_report
from tt_reasoning.plots import check_plot_path, plot_accuracy
from tt_reasoning.tool import run_tool


@dataclass(kw_only=True)
class Arguments:
    results: Path
    """folder with results of tools/evaluate.py in it, at any depth"""
    plot: Path | None = None
    """picture of the accuracies to draw (.png, .pdf, .svg)"""
    format: Literal["table", "markdown"] = "table"
    """how the table is printed"""


def main(args: Arguments) -> str:
    if args.plot:
        check_plot_path(args.plot)
    reports = find_reports(args.results)
    if args.plot:
        plot_accuracy(reports, args.plot)
    print(format_table(list_rows(reports), markdown=args.format == "markdown"))
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


def list_rows(reports: dict[str, Report]) -> list[list[str]]:
    """One row a run: what was measured, then a column a method, filled where the run has it."""
    methods = list(dict.fromkeys(column_name(r.method) for report in reports.values() for r in report.results))
    rows = [["run", "model", "dataset", "k", "problems", *methods]]
    for name, report in reports.items():
        found = {column_name(r.method): f"{percent(r.value)} {interval(r)}" for r in report.results}
        rows.append([
            name, Path(report.model).name, f"{report.dataset}/{report.split}", str(report.num_answers),
            str(report.results[0].num_problems), *(found.get(method, "-") for method in methods),
        ])  # fmt: skip
    return rows


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
