"""Collect solutions in steps for the SFT of a generator: verified answers of a model, or worked ones of a benchmark.

Of --answers, kept is what is graded correct, ended by itself, has --min-steps steps and a last line that states the
answer ("The answer is: 7"); the words of an earlier answer to the same problem are left out, and so is what is beyond
--per-problem. Of --dataset, each row's own worked solution is put into the same form (gsm8k: a line a step, without
calculator marks; asdiv: an operation a line) and graded too. Writes sft.jsonl for
configs/135M_generator_sft_cpu.yaml, rejected.jsonl (everything else, with its reason) and stats.json. Killed, the same
command does it again, in seconds.

Examples: python tools/collect_solutions.py --answers answers/few_shot --exclude answers/test --out sft/generator
python tools/collect_solutions.py --dataset gsm8k --split train --limit 2000 --out sft/references
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.answer_sets.building import pool_answers, read_problem_ids, refuse_excluded
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.problems import find_dataset, read_solutions
from tt_reasoning.sft_data import REJECTED, SFT, STATS
from tt_reasoning.solutions import (
    Choice,
    Solution,
    SolutionRules,
    grade_references,
    read_answer_solutions,
    sort_solutions,
    summarise,
)
from tt_reasoning.tool import run_tool


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path
    """folder for the rows; the same arguments and inputs again give the same rows"""
    answers: tuple[Path, ...] = ()
    """folders of generate_answers, graded by check_answers"""
    dataset: str | None = None
    """instead of --answers: a benchmark with worked solutions (gsm8k, asdiv)"""
    data_files: str | None = None
    """its file (.jsonl, .json, .parquet, .csv), instead of the Hub"""
    split: str = "train"
    """of --dataset"""
    start: int = 0
    """first problem of --dataset"""
    limit: int | None = None
    """problems of --dataset; all unless given"""
    min_steps: int = 2
    """steps that a solution has at least; its last line, which only states the answer, is none by itself"""
    per_problem: int = 4
    """most solutions of a problem that are kept"""
    choice: Choice = "random"
    """which these are: drawn by --seed, or the shortest"""
    seed: int = 0
    """of that draw"""
    exclude: tuple[Path, ...] = ()
    """folders of answers or sets, or problems.jsonl files: held-out problems that must not be learned"""
    drop_excluded: bool = False
    """leave the problems of --exclude out, rather than refuse the run"""
    mix_splits: bool = False
    """allow folders of answers of different splits; a question that is in both is refused still"""


def main(args: Arguments) -> str:
    check_arguments(args)
    if args.dataset is not None:
        args = replace(args, dataset=find_dataset(args.dataset))
    excluded = {path: read_problem_ids(path) for path in args.exclude}
    problems = read_references(args) if args.dataset else read_answers(args)
    if not args.drop_excluded:
        refuse_excluded({solutions[0].problem.id for solutions in problems}, excluded)
    rules = SolutionRules(
        min_steps=args.min_steps, per_problem=args.per_problem, choice=args.choice, seed=args.seed,
        excluded=frozenset().union(*excluded.values()),
    )  # fmt: skip
    kept, rejected = [], []
    for index, solutions in enumerate(tqdm(problems, desc="collect", unit="problem", disable=None)):
        of_problem = sort_solutions(args.start + index, solutions, rules)
        kept += of_problem[0]
        rejected += of_problem[1]
    stats = summarise(len(problems), kept, rejected)
    if not kept:
        raise UserError(
            f"nothing to learn is left of {stats['num_solutions']} solutions ({_told(stats['rejected'])}); "
            "lower --min-steps, or generate more and longer answers"
        )
    with store.open_run(args.out, "collect_solutions", identify(args, problems, excluded)) as out:
        store.write_records(out / REJECTED, rejected)
        store.write_records(out / SFT, kept)
        store.write_json(out / STATS, stats)
    return describe(stats, args.out)


def check_arguments(args: Arguments) -> None:
    """Refuse what no run could do, before anything is read."""
    if bool(args.answers) == bool(args.dataset):
        raise UserError("name what to collect from: either --answers FOLDER ... or --dataset NAME")
    if args.answers:
        for name, unset in (("data_files", None), ("start", 0), ("limit", None)):
            if getattr(args, name) != unset:
                raise UserError(f"--{name.replace('_', '-')} is of --dataset; of --answers all problems are read")
    for name, least in (("min_steps", 1), ("per_problem", 1), ("limit", 1), ("start", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    if args.drop_excluded and not args.exclude:
        raise UserError("--drop-excluded without --exclude: name what to leave out")


def read_answers(args: Arguments) -> list[list[Solution]]:
    """The answers of all folders, by problem."""
    return list(read_answer_solutions(pool_answers(list(map(open_answers, args.answers)), mix_splits=args.mix_splits)))


def read_references(args: Arguments) -> list[list[Solution]]:
    """The worked solutions of the benchmark, one a problem."""
    references = read_solutions(
        args.dataset, args.split, data_files=args.data_files, limit=args.limit, start=args.start
    )
    with Grader() as grader:
        return grade_references(tqdm(references, desc="read", unit="problem", disable=None), grader)


def identify(
    args: Arguments, problems: Sequence[Sequence[Solution]], excluded: dict[Path, Collection[str]]
) -> dict[str, Any]:
    """What decides the rows: the arguments that matter, and the solutions as they are now."""
    digest = hashlib.sha256()
    for solutions in problems:
        for solution in solutions:
            parts = [solution.problem.id, solution.text, solution.finish_reason, solution.verdict.reason]
            digest.update(repr(parts).encode())
    names = ("dataset", "data_files", "split", "start", "limit", "min_steps", "per_problem", "choice", "seed")
    return {
        "answers": [str(folder) for folder in args.answers],
        **{name: getattr(args, name) for name in (*names, "drop_excluded", "mix_splits")},
        "solutions": f"{sum(map(len, problems))} solutions, sha256 {digest.hexdigest()[:16]}",
        "exclude": {
            str(path): f"{len(ids)} problems, sha256 {hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()[:16]}"
            for path, ids in excluded.items()
        },
    }


def describe(stats: dict[str, Any], out: Path) -> str:
    """The summary: what is kept of how much, how many steps it has, and why the rest is not."""
    steps = ", ".join(f"{number} in {steps}" for steps, number in stats["num_steps"].items())
    return (
        f"{out / SFT}: {stats['num_kept']} of {stats['num_solutions']} solutions kept, of {stats['num_problems_kept']} "
        f"of {stats['num_problems']} problems ({100 * stats['share_of_problems_kept']:.1f} %)\n"
        f"steps: {steps}\n"
        f"rejected {sum(stats['rejected'].values())}: {_told(stats['rejected']) or 'none'} (see {out / REJECTED})"
    )


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
