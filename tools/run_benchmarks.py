"""Measure a model on several benchmarks: one command, one JSON with an accuracy and its interval for each.

The model is loaded once; each benchmark gets a folder of answers below --out, so a run that was killed goes on, and
check_answers, evaluate and show_results read what it left. One that fails is reported and the others go on; then the
status is 2. Of several samples (--num-samples) the accuracy is the mean, and pass@k and the majority vote stand beside
it. benchmarks.json holds every number with its interval and all that made it; the summary is {"AIME": 0.43, ...}.

Example: python tools/run_benchmarks.py --model Qwen/QwQ-32B-Preview --evals AIME,MATH500,GPQADiamond --out runs/qwq
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.aggregation import keep_open
from tt_reasoning.benchmark_runs import (
    GRADING,
    RESULTS,
    Benchmark,
    Measurement,
    Setup,
    describe_results,
    find_benchmarks,
    run_benchmark,
)
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import load_prompt
from tt_reasoning.tool import check_truncation, require_positive, run_tool


@dataclass(frozen=True, kw_only=True)
class Arguments:
    model: str
    """Hugging Face model folder or Hub name (the name at the server for openai, a JSON file for scripted)."""
    evals: str
    """Benchmarks, with commas between them: AIME,MATH500,GPQADiamond,MMLU or any of `tt-reasoning ls --problems`."""
    out: Path
    """Folder of the run; a folder of answers for each benchmark is made in it."""
    output_file: Path | None = None
    """File for the JSON; benchmarks.json in --out unless given."""
    data_files: list[str] | None = None
    """NAME=FILE: a local file with the rows of that benchmark, in place of the Hub; one or several."""
    limit: int | None = None
    """Only the first so many problems of each; then a number is no published one."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=("--n",))] = 1
    """Answers to each problem; one at temperature 0."""
    temperature: Annotated[float, tyro.conf.arg(aliases=("--temperatures",))] = 0.0
    """0 is greedy."""
    prompt: str | None = None
    """A prompt of tt_reasoning/prompts.py or a file with one, for all; as suits the problems unless given."""
    system_prompt: str | None = None
    """System message in place of the prompt's own: a name or a text file."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=("--max-tokens",))] = 32_768
    """Most tokens of an answer."""
    seed: int = 0
    """Seed of the run; each answer has its own from it."""
    grading_workers: int = 2
    """Comparisons, or programs, that are graded at a time."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


def main(args: Arguments) -> str:
    benchmarks = check(args)
    setup = Setup(
        revision=args.engine.revision,
        **{name: getattr(args, name) for name in Setup.__dataclass_fields__ if name != "revision"},
    )
    chunk_size = args.engine.default_chunk_size(args.num_samples)
    measured: dict[str, Measurement] = {}
    failed: dict[str, str] = {}
    # A folder without its manifest would be refused: this one belongs to the run as a whole.
    with (
        store.open_run(args.out, "run_benchmarks", {"model": args.model}),
        keep_open(lambda: args.engine.open(args.model)) as start_engine,
        Grader(num_workers=args.grading_workers, **GRADING) as grader,
    ):
        for benchmark in benchmarks:
            try:
                with tqdm(desc=benchmark.name, unit="answer") as bar:
                    measured[benchmark.name] = run_benchmark(
                        benchmark, setup, args.out / benchmark.name, start_engine, grader, chunk_size,
                        args.engine.identity(), lambda total, counts, bar=bar: _show(bar, total, counts),
                    )  # fmt: skip
                print(_describe(benchmark, measured[benchmark.name]))
            except UserError as error:
                failed[benchmark.name] = str(error)
                print(f"{benchmark.name} failed: {error}", file=sys.stderr)
        path = args.output_file or args.out / RESULTS
        store.write_json(path, describe_results(measured, failed))
    summary = json.dumps({name: round(found.accuracy, 4) for name, found in measured.items()})
    if failed:
        print(summary)
        told = f"{len(failed)} of {len(benchmarks)} benchmarks failed"
        raise UserError(f"{told}: {', '.join(failed)} (the reasons are in {path})")
    return summary


def check(args: Arguments) -> list[Benchmark]:
    """The benchmarks asked for; raises the UserErrors that show before a model is loaded."""
    require_positive(args, "num_samples", "max_new_tokens", "limit", "grading_workers")
    check_truncation(args.top_p, args.top_k)
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on; 0 is greedy")
    if args.temperature == 0 and args.num_samples > 1:
        raise UserError(f"--num-samples {args.num_samples} at temperature 0 are all the same; give --temperature 0.7")
    if args.output_file and not args.output_file.absolute().parent.is_dir():
        raise UserError(f"--output-file {args.output_file}: there is no folder {args.output_file.parent}")
    if args.prompt is not None:
        load_prompt(args.prompt, args.system_prompt)
    names = [name.strip() for name in args.evals.split(",") if name.strip()]
    if not names:
        raise UserError("--evals names none; give one or several, such as AIME,MATH500")
    benchmarks = find_benchmarks(names, args.data_files or [])
    args.engine.check(args.model)
    return benchmarks


def _show(bar: tqdm, total: int, counts: Counts) -> None:
    bar.total, bar.initial, bar.n = total, counts.resumed, counts.resumed + counts.written
    bar.refresh()


def _describe(benchmark: Benchmark, found: Measurement) -> str:
    """One line: the accuracy, what it is of, and what should make one doubt it."""
    low, high = found.interval
    answers = "1 answer" if found.num_samples == 1 else f"{found.num_samples} answers"
    line = (
        f"{benchmark.name}: {100 * found.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {found.problems} "
        f"problems ({benchmark.dataset}, {benchmark.split}), {answers} each"
    )
    if found.num_samples > 1:
        k = str(found.num_samples)
        line += f", pass@{k} {100 * found.pass_at[k][0]:.1f} %, majority {100 * found.majority_at[k][0]:.1f} %"
    if found.cut:
        line += f"; cut at the token limit: {found.cut}"
    if found.left_out:
        told = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        line += f"; problems left out: {told}"
    return line


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
