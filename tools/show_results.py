"""Show every evaluation under a folder in one table, and draw it.

Each run of tools/evaluate.py leaves a results.json; this collects them all, however deep they lie: a row a method,
a column a number of answers k, every accuracy with its 95 % interval. A star marks what differs from the majority of
as many answers with p < 0.05.

With --against kl it is about answers that a value model steered: a row an eta, with the divergence from the reference.
A star then marks what differs from the answers that were not steered, where both were evaluated at once.

Example: python tools/show_results.py --results results --plot results/accuracy.png
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.evaluation import (
    LENGTH_WEIGHTED,
    MAJORITY,
    ORACLE,
    PASS,
    RESULTS,
    SINGLE,
    Estimate,
    Report,
    Result,
    base_method,
    format_table,
    interval,
    nats,
    percent,
    read_report,
)
from tt_reasoning.guidance.sweep import SWEEP, name_policies, read_sweep
from tt_reasoning.plots import SteeredPoint, check_plot_path, plot_accuracy, plot_steering
from tt_reasoning.tool import run_tool

_SIGNIFICANT = 0.05
_NOT_STEERED = "the answers that were not steered"


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
    against: Literal["k", "tokens", "kl"] = "k"
    """what the lines of the picture are drawn against: answers, generated tokens a problem, or the KL to the reference
    over eta (kl: the table is by eta too)"""


def main(args: Arguments) -> str:
    if args.plot:
        check_plot_path(args.plot)
    if args.against == "kl" and args.categories:
        raise UserError("--categories is about methods, --against kl about etas: give one of them")
    reports = choose(find_reports(args.results), args)
    if args.against == "kl":
        rows = show_steered(reports, args)
    else:
        rows = list_categories(reports) if args.categories else list_rows(reports)
        if args.plot:
            plot_accuracy(reports, args.plot, against=args.against)
    print(format_table(rows, markdown=args.format == "markdown"))
    if any(cell.endswith("*") for row in rows for cell in row):
        mark = "\n\\*" if args.format == "markdown" else "*"
        print(f"{mark} p < {_SIGNIFICANT} against {_NOT_STEERED if args.against == 'kl' else f'{MAJORITY}@k'}")
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


Series = dict[str, dict[str, Report]]  # by the name of a line, then of a run


def group_by_policy(reports: Mapping[str, Report]) -> Series:
    """The runs whose answers a value model steered, rising by eta: a series a folder, model, benchmark and kind of
    guidance, each with the run of its folder that did not steer.

    Raises:
        UserError: there are none.
    """
    guided = {name: report for name, report in reports.items() if report.guidance}
    if not guided:
        raise UserError("no run is of answers that a value model steered (--engine guided); leave --against kl away")
    homes = {name: (str(Path(name).parent), Path(r.model).name, r.dataset, r.split) for name, r in reports.items()}
    kinds = {name: replace(report.guidance, eta=0) for name, report in guided.items()}
    distinct = list(dict.fromkeys(kinds.values()))
    labels = dict(zip(distinct, name_policies(distinct), strict=True))
    found: dict[tuple, dict[str, Report]] = {}
    for name, report in guided.items():
        found.setdefault((*homes[name], kinds[name]), {})[name] = report
    series = {}
    for (*home, kind), runs in found.items():
        if all(report.eta for report in runs.values()):
            still = [name for name in reports if homes[name] == tuple(home) and not reports[name].eta]
            still = [name for name in still if name in guided] or still
            runs |= {still[0]: reports[still[0]]} if len(still) == 1 else {}
        label = labels[kind].removeprefix("eta=0").strip(" ()") or kind.rule
        several = [part for place, part in enumerate(home) if len({key[place] for key in found}) > 1]
        series[": ".join(["/".join(several), label] if several else [label])] = dict(
            sorted(runs.items(), key=lambda item: item[1].eta)
        )
    return series


def show_steered(reports: Mapping[str, Report], args: Arguments) -> list[list[str]]:
    """The rows of the table by eta; draws the picture where one is wanted."""
    series = group_by_policy(reports)
    shown = {name: report for runs in series.values() for name, report in runs.items()}
    labels = columns_of(shown, args)
    rows = list_steered(shown, labels, args)
    if args.plot:
        points = {name: points_of(runs) for name, runs in series.items()}
        plot_steering(points, args.plot, labels if args.methods else labels[:2])
    return rows


def list_steered(shown: Mapping[str, Report], labels: Sequence[str], args: Arguments) -> list[list[str]]:
    """One row a run: how far it is from the reference, and what it reaches by each of the methods ``labels``."""
    rows = [["run", "policy", "problems", "KL", "KL as sampled", "tokens", *labels]]
    for name, report in shown.items():
        found = report.divergence
        far = ["-", "-"] if found is None else [nats(found.whole), nats(found.sampled)]
        first = report.results[0]
        tokens = f"{first.answer_tokens / (1 if first.method == SINGLE else first.k):.0f}"
        stars = steered_stars(args.results, name)
        cells = {r.label: accuracy_cell(r) + (" *" if r.label in stars else "") for r in report.results}
        policy = name_policies([report.guidance])[0]
        rows.append([name, policy, str(first.num_problems), *far, tokens, *(cells.get(label, "-") for label in labels)])
    starred = any(cell.endswith("*") for row in rows for cell in row)
    return [row[:6] + [pad(cell) if starred else cell for cell in row[6:]] for row in rows]


def columns_of(reports: Mapping[str, Report], args: Arguments) -> list[str]:
    """The methods shown by eta, at the largest k that all runs have; ``pass@1`` too."""
    common = set.intersection(*({r.k for r in report.results} for report in reports.values()))
    if not common:
        raise UserError("the runs have no k in common; evaluate them with the same --num-answers")
    bounds = () if args.methods else (ORACLE, SINGLE, LENGTH_WEIGHTED)
    methods = dict.fromkeys(r.method for report in reports.values() for r in report.results)
    labels = [f"{PASS}@1"] if PASS in methods and 1 in common else []
    labels += [f"{MAJORITY}@{max(common)}"] if MAJORITY in methods else []
    labels += [f"{method}@{max(common)}" for method in methods if method not in bounds]
    return list(dict.fromkeys(labels))


def steered_stars(results: Path, name: str) -> set[str]:
    """The methods in which a run differs from the one of its sweep that did not steer."""
    folder = results if results.resolve().name == name and (results / RESULTS).exists() else results / name
    path = folder.resolve().parent / SWEEP
    policies = read_sweep(path).policies if path.exists() else ()
    compared = [found for policy in policies if policy.folder == folder.resolve().name for found in policy.differences]
    return {found.method for found in compared if found.p_value < _SIGNIFICANT}


def points_of(runs: Mapping[str, Report]) -> list[SteeredPoint]:
    """The runs of a series that a picture can place: that which nothing steered at 0."""
    nowhere = Estimate(value=0.0, low=0.0, high=0.0)
    placed = [(r, r.divergence.whole if r.divergence else None if r.eta else nowhere) for r in runs.values()]
    return [SteeredPoint(report, whole) for report, whole in placed if whole is not None]


def _spaced(numbers: tuple[int, ...] | list[int]) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
