"""Sample several answers to each problem of a benchmark: the raw material of votes, answer sets and judges.

The run is repeatable from its seed and can be killed at any moment: the same command goes on with what is
missing, and ends with the same file. Further samples (--num-samples), temperatures or problems (--source, --start,
--end, --limit) add to the same folder. --shard 2/4 takes every fourth problem: finished shards are merged by cat.
--source chooses by the benchmark's own source or difficulty, --filter-difficulty by levels of label_difficulty. Writes
problems.jsonl, answers.jsonl, stats.json and manifest.json; tools/check_answers.py grades the answers. With --engine
openai a server samples (a key in OPENAI_API_KEY or --keys FILE); a request that fails is counted, never written, and
asked again by the same command. With --engine guided a value model steers (Q#, docs/qsharp.md), as hard as every --eta.

Example: python tools/generate_answers.py --model models/smollm2-135m --dataset gsm8k --limit 8 --out answers/demo
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from tt_reasoning.difficulty import NUMINA_LABELS, keep_levels, read_levels
from tt_reasoning.engines.options import EngineOptions, GuideOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import (
    STATS,
    Counts,
    begun_chunk_size,
    check_complete,
    describe_ends,
    draw_answers,
    keep_problems,
    plan_draws,
)
from tt_reasoning.guidance import find_other_prompt
from tt_reasoning.problems import SOURCES, find_dataset, read_part
from tt_reasoning.prompts import Prompt, default_prompt, load_prompt
from tt_reasoning.qsharp import read_sides
from tt_reasoning.store import open_run, write_json
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Guidance, Problem, Sampling

_MUCH = 0.1  # of the answers cut: then a warning


@dataclass(frozen=True, kw_only=True)
class Arguments:
    model: str
    """Hugging Face model folder or Hub name (the name at the server for openai, a JSON file for scripted)."""
    dataset: str
    """Benchmark in tt_reasoning/problems, such as gsm8k; quickstart ships with the package."""
    out: str
    """Folder of the run."""
    split: str = "test"
    """Split of the benchmark."""
    data_files: str | None = None
    """Local file with the benchmark's rows, in place of the Hub."""
    source: tuple[str, ...] = ()
    """Only problems of these sources (numina), difficulties (apps, taco, livecodebench) or subjects; all unless given.
    The next four count these alone."""
    start: int = 0
    """First problem, counted from 0."""
    end: int | None = None
    """The problem behind the last one; the benchmark's end if -1, or not given."""
    limit: int | None = None
    """How many problems from --start on, in place of --end."""
    shard: str | None = None
    """i/n: of these problems the i-th of every n, so that n runs with 1/n to n/n share them."""
    filter_difficulty: bool = False
    """Of these problems those alone whose level in --difficulty-labels is within the bounds."""
    difficulty_lower: Annotated[float | None, tyro.conf.arg(aliases=("--math-difficulty-lower-bound",))] = None
    """Lowest level, from 1 to 10."""
    difficulty_upper: Annotated[float | None, tyro.conf.arg(aliases=("--math-difficulty-upper-bound",))] = None
    """Highest level."""
    difficulty_labels: str | None = None
    """Folder of label_difficulty, file or hub:NAME with the levels; for numina those published with Sky-T1 unless
    given."""
    held_out: Path | None = None
    """Of these problems those alone that a --rounds-file of collect_qsharp holds out."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=("--n",))] = 4
    """Answers to each problem at each temperature; one at temperature 0."""
    temperatures: Annotated[tuple[float, ...], tyro.conf.arg(aliases=("--temperature",))] = (0.7,)
    """One or several; 0 is greedy."""
    prompt: str | None = None
    """A prompt of tt_reasoning/prompts.py or a file with one; choice for multiple choice, code for programs,
    else answer, unless given."""
    system_prompt: str | None = None
    """System message in place of the prompt's own: answer, boxed, or a text file."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=("--max-tokens",))] = 1024
    """Most tokens of an answer."""
    seed: int = 0
    """Seed of the run; each answer has its own from it."""
    chunk_size: int | None = None
    """Problems asked at once, always the same in a folder; in a new one as many as suit the engine."""
    resume: Literal["exact", "fast"] = "exact"
    """After a kill: exact samples the chunk that was cut off again, and ends with the bytes of a run that was never
    killed; fast samples only what is missing."""
    guide: Annotated[GuideOptions, tyro.conf.arg(name="")] = GuideOptions()
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


# What answers depend on, beside the prompt, the size of a chunk and the engine's own; anything else may change when
# the folder is continued.
_IDENTITY = ("model", "dataset", "split", "data_files", "top_p", "top_k", "max_new_tokens", "seed")


def main(args: Arguments) -> str:
    args = replace(args, dataset=find_dataset(args.dataset))
    _check_numbers(args)
    labels = _choose_labels(args)
    if args.prompt is not None:
        load_prompt(args.prompt, args.system_prompt)
    guidances = args.guide.guidances(args.engine)
    args.engine.check(args.model)
    problems = read_part(
        args.dataset, args.split, data_files=args.data_files, start=args.start, end=args.end, limit=args.limit,
        shard=args.shard, sources=args.source,
    )  # fmt: skip
    if labels is not None:
        problems = keep_levels(problems, read_levels(labels), args.difficulty_lower, args.difficulty_upper)
    if args.held_out is not None:
        problems = _take_held_out(problems, args.held_out)
    first = next(problems)  # a mistake shows before a folder is made
    prompt = load_prompt(args.prompt or default_prompt(first.kind), args.system_prompt)
    chunk_size = args.chunk_size or begun_chunk_size(args.out) or args.engine.default_chunk_size(args.num_samples)
    if 0 in args.temperatures and args.num_samples > 1:
        print(f"temperature 0 is greedy: one answer to each problem there, not {args.num_samples}", file=sys.stderr)
    if args.engine.value_model and (said := find_other_prompt(args.engine.value_model, prompt.name)):
        print(f"warning: {said}: of answers behind this one it may know little", file=sys.stderr)
    identity = {name: getattr(args, name) for name in _IDENTITY}
    identity |= {"prompt": prompt.name, "template": prompt.template(), "chunk_size": chunk_size}
    identity |= args.engine.identity()
    if args.engine.value_model is not None:
        identity |= {name: getattr(args.guide, name) for name in ("guide_top_k", "guide_rule", "guide_outside")}
    with open_run(args.out, "generate_answers", identity) as folder:
        kept = keep_problems(folder, chain([first], problems))
        asked = [
            (_sampling(args, prompt, temperature, guidance), _num_samples(args, temperature))
            for temperature in args.temperatures
            for guidance in guidances
        ]
        draws = plan_draws(folder, asked)
        _tell_of_idle(args.engine.data_parallel_size or 1, len(kept), chunk_size, len(draws))
        with tqdm(total=len(kept) * sum(draw.num_samples for draw in draws), unit="answer") as bar:
            start_engine = partial(args.engine.open, args.model)
            counts = draw_answers(
                kept, draws, start_engine, prompt, folder, chunk_size, partial(_show, bar, set()),
                whole_chunks=args.resume == "exact",
            )  # fmt: skip
        if counts.tallies:
            write_json(folder / STATS, describe_ends(counts.tallies))
    if counts.written and counts.cut / counts.written >= _MUCH:
        print(
            f"warning: {counts.cut / counts.written:.1%} of {counts.written} answers were cut at --max-new-tokens "
            f"{args.max_new_tokens}, most of them before their result; raise it, with a new --out",
            file=sys.stderr,
        )
    if counts.missing and counts.written:
        print(_summary(counts, args.out))
    check_complete(counts)
    return _summary(counts, args.out)


def _choose_labels(args: Arguments) -> str | None:
    """Where the levels are by which problems are chosen; None where they are not."""
    bounds = {"lower": args.difficulty_lower, "upper": args.difficulty_upper}
    if not args.filter_difficulty:
        given = [f"difficulty-{name}" for name, value in bounds.items() if value is not None]
        given += ["difficulty-labels"] if args.difficulty_labels is not None else []
        if given:
            raise UserError(f"--{given[0]} is of --filter-difficulty; give that too, or leave it out")
        return None
    for name, value in bounds.items():
        if value is not None and not 1 <= value <= 10:
            raise UserError(f"--difficulty-{name} {value:g}: levels go from 1 to 10")
    if None not in bounds.values() and args.difficulty_lower > args.difficulty_upper:
        raise UserError(f"--difficulty-lower {args.difficulty_lower:g} is above --difficulty-upper "
                        f"{args.difficulty_upper:g}")  # fmt: skip
    if args.difficulty_labels is not None:
        return args.difficulty_labels
    if args.dataset == "numina":
        return NUMINA_LABELS
    if args.dataset in SOURCES and SOURCES[args.dataset].kind == "code":
        if any(value is not None for value in bounds.values()):
            raise UserError(f"--difficulty-lower and --difficulty-upper are levels of labels; the difficulty of "
                            f"{args.dataset} is its --source, unless you give --difficulty-labels")  # fmt: skip
        print(f"--filter-difficulty does nothing here: --source is the difficulty of {args.dataset}", file=sys.stderr)
        return None
    raise UserError(f"--filter-difficulty: {args.dataset} has no published levels; give --difficulty-labels, made by "
                    "tools/label_difficulty.py")  # fmt: skip


def _take_held_out(problems: Iterable[Problem], path: Path) -> Iterator[Problem]:
    if not path.is_file():
        raise UserError(f"--held-out {path}: no such file; name a --rounds-file of tools/collect_qsharp.py")
    sides, found = read_sides(path), False
    for problem in problems:
        if sides.get(problem.id) == "eval":
            found = True
            yield problem
    if not found:
        raise UserError(f"--held-out {path} holds out none of these problems")


def _check_numbers(args: Arguments) -> None:
    require_positive(args, "num_samples", "max_new_tokens", "chunk_size")
    if not args.temperatures:
        raise UserError("--temperatures names none; give one or several, such as 0.5 1.0")
    for temperature in args.temperatures:
        if not 0 <= temperature < float("inf"):
            raise UserError(f"--temperatures {temperature:g}: give numbers from 0 on; 0 is greedy")
        if args.temperatures.count(temperature) > 1:
            raise UserError(f"--temperatures names {temperature:g} twice; for more answers raise --num-samples")
    check_truncation(args.top_p, args.top_k)


def _sampling(args: Arguments, prompt: Prompt, temperature: float, guidance: Guidance | None) -> Sampling:
    return Sampling(
        model=args.model,
        revision=args.engine.revision,
        prompt=prompt.name,
        temperature=temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        guidance=guidance,
    )


def _num_samples(args: Arguments, temperature: float) -> int:
    return args.num_samples if temperature else 1


def _tell_of_idle(num_engines: int, num_problems: int, chunk_size: int, num_draws: int) -> None:
    """Say so when there are fewer chunks than engines."""
    num_chunks = -(-num_problems // chunk_size) * num_draws
    if num_chunks < num_engines:
        least = max(1, num_problems * num_draws // num_engines)
        print(
            f"{num_chunks} chunks of {chunk_size} problems leave {num_engines - num_chunks} of {num_engines} engines "
            f"idle; --chunk-size {least} in a new --out would not",
            file=sys.stderr,
        )


def _show(bar: tqdm, told: set[str], counts: Counts) -> None:
    """Move the bar, and tell of the first failure of each reason when it comes."""
    bar.initial = counts.resumed
    bar.n = counts.resumed + counts.written
    failed = f", {counts.failed.total()} failed" if counts.failed else ""
    bar.set_postfix_str(f"{counts.resumed} resumed{failed}")
    for reason in counts.failed.keys() - told:
        told.add(reason)
        bar.write(f"a request failed and is left out: {reason} ({counts.details[reason]})", file=sys.stderr)


def _summary(counts: Counts, out: str) -> str:
    if not counts.written:
        return f"already complete: {counts.resumed} answers in {out}"
    resumed = f" ({counts.resumed} were there)" if counts.resumed else ""
    return (
        f"{counts.written} answers written{resumed}: {counts.written - counts.cut} stop, {counts.cut} length "
        f"({counts.cut / counts.written:.1%} cut at the token limit), "
        f"{counts.tokens} tokens, {counts.tokens / counts.seconds:.0f} tokens/s: {out}"
    )


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
