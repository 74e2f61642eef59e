"""How many trivial programs a second are checked in the sandbox, and what shutting them in costs.

Each program is checked by three tests in one sandbox, as ``check_answers`` does it: one that reads numbers and prints
their sum, and one with the same as a function. Beside it the same without a sandbox (Python and its limits alone), and
the seconds of processor time that one check takes, which a busy machine disturbs less than the clock. The bar
(docs/program_checking.md): 20 programs a second on two cores, by the median of the runs.

    python benchmarks/program_checks.py --json program_checks.json
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from tt_reasoning.code_checks import check_program
from tt_reasoning.errors import exit_on_mistake
from tt_reasoning.sandbox import check_isolation, find_bwrap
from tt_reasoning.store import write_json
from tt_reasoning.tool import require_positive

BAR = 20.0  # programs a second

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "reads and prints": (
        "print(sum(map(int, input().split())))",
        {"inputs": ["1 2", "3 4", "5 6"], "outputs": ["3", "7", "11"]},
    ),
    "a function": (
        "class Solution:\n    def add(self, numbers: List[int]) -> int:\n        return sum(numbers)",
        {"fn_name": "add", "inputs": [[[1, 2]], [[3, 4]], [[5, 6]]], "outputs": [3, 7, 11]},
    ),
}


@dataclass(kw_only=True)
class Arguments:
    programs: int = 100
    """Checked in each run."""
    num_workers: int = 2
    """Checks at a time; one a core."""
    repeats: int = 5
    """Runs of each side, in turn."""
    json: Path | None = None
    """Write the figures here."""


def measure(task: str, isolated: bool, args: Arguments) -> tuple[float, float]:
    """Programs a second, and seconds of processor time a program."""
    code, tests = TASKS[task]
    check = partial(check_program, code, tests, isolated=isolated)
    began = os.times()
    with ThreadPoolExecutor(args.num_workers) as threads:
        verdicts = list(threads.map(lambda _: check(), range(args.programs)))
    ended = os.times()
    assert all(verdict.correct for verdict in verdicts)
    spent = sum(ended[:4]) - sum(began[:4])
    return args.programs / (ended.elapsed - began.elapsed), spent / args.programs


def main(args: Arguments) -> None:
    require_positive(args, "programs", "num_workers", "repeats")
    check_isolation()
    sides = [(task, isolated) for task in TASKS for isolated in (True, False)]
    runs: dict[tuple[str, bool], list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in tqdm(range(args.repeats), unit="round"):
        for side in sides:
            runs[side].append(measure(*side, args))
    figures = []
    print(f"{args.programs} programs of three tests, {args.num_workers} at a time, {args.repeats} runs; {find_bwrap()}")
    for (task, isolated), found in runs.items():
        rates, spent = zip(*found, strict=True)
        rate = statistics.median(rates)
        each = ", ".join(f"{one:.1f}" for one in rates)
        milliseconds = 1000 * statistics.median(spent)
        where = "in the sandbox" if isolated else "without"
        print(f"  {task}, {where}: {rate:.1f} a second ({each}), {milliseconds:.0f} ms of processor time each")
        figures.append({
            "task": task, "isolated": isolated, "programs_per_s": rate, "runs": rates, "processor_ms": milliseconds,
        })  # fmt: skip
    least = min(figure["programs_per_s"] for figure in figures if figure["isolated"])
    print(f"  bar: {BAR:g} a second; the slower task in the sandbox: {least:.1f}")
    if args.json is not None:
        loads = dict(zip(("1 min", "5 min", "15 min"), os.getloadavg(), strict=True))
        write_json(args.json, {"bar": BAR, "num_workers": args.num_workers, "load": loads, "figures": figures,
                               "when": time.strftime("%Y-%m-%d")})  # fmt: skip


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
