"""Label how hard problems are, from 1 to 10, by a model: --filter-difficulty of generate_answers chooses by it.

The model reads a scale (prompt difficulty), a line about each level with an example, and ends its reply with [[level]].
A reply that states no level, two, or one outside of 1 to 10 is asked again, up to --num-samples tries. Writes
labels.jsonl, unlabelled.jsonl (problems without a level, with the reason and the last reply; no -1 among the levels)
and stats.json. A key is in OPENAI_API_KEY; the keys of --keys FILE, one a line, are used in turn. Killed or with failed
requests, the same command asks for what is missing; more --source, --end or --num-samples add to the folder.

Example: python tools/label_difficulty.py --dataset numina --source math --keys keys.txt --out labels/math
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from tt_reasoning.aggregation import keep_open
from tt_reasoning.difficulty import LABELS, UNLABELLED, Labelling, label_problems, write_labels
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import PROBLEMS, Counts, begun_chunk_size, keep_problems
from tt_reasoning.problems import find_dataset, read_part
from tt_reasoning.prompts import Prompt, load_prompt
from tt_reasoning.store import open_run, read_records, remove_temporaries
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Problem, Sampling


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path
    """folder for the labels; the same arguments again resume it"""
    dataset: str = "numina"
    """benchmark in tt_reasoning/problems"""
    source: tuple[str, ...] = ()
    """only problems of these sources, such as amc_aime, math or olympiads; all unless given"""
    model: str = "gpt-4o-mini"
    """name of the model at the server (for another engine: what that takes)"""
    split: str = "train"
    """split of the benchmark"""
    data_files: str | None = None
    """local file with the benchmark's rows, in place of the Hub"""
    start: int = 0
    """first problem of the sources, counted from 0"""
    end: int | None = None
    """the problem behind the last one; -1, and if not given, the end"""
    limit: int | None = None
    """how many problems from --start on, in place of --end"""
    shard: str | None = None
    """i/n: of these problems the i-th of every n"""
    num_samples: int = 3
    """most tries of a problem"""
    prompt: str = "difficulty"
    """a prompt of tt_reasoning/prompts.py or a file with one; it asks for a level in double square brackets"""
    temperature: float = 0.7
    """0 is greedy"""
    top_p: float = 1.0
    """sample from the likeliest tokens that hold this share of the probability"""
    top_k: int = 0
    """sample from this many likeliest tokens; 0 is no limit"""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=("--max-tokens",))] = 2048
    """tokens of a reply; one that is cut states no level"""
    seed: int = 0
    """of the first try; each further one adds 1"""
    chunk_size: int | None = None
    """problems asked at once, always the same in a folder; in a new one as many as suit the engine"""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: EngineOptions(name="openai")
    )


_IDENTITY = ("dataset", "split", "data_files", "model", "temperature", "top_p", "top_k", "max_new_tokens", "seed")


def main(args: Arguments) -> str:
    _check(args)
    prompt = load_prompt(args.prompt)
    if prompt.prefill:
        raise UserError(f"--prompt {args.prompt} begins the reply itself (prefill); name one that does not")
    args.engine.check(args.model)
    dataset = find_dataset(args.dataset)
    problems = read_part(
        dataset, args.split, data_files=args.data_files, start=args.start, end=args.end, limit=args.limit,
        shard=args.shard, sources=args.source,
    )  # fmt: skip
    first = next(problems)  # a mistake shows before a folder is made
    chunk_size = args.chunk_size or begun_chunk_size(args.out) or args.engine.default_chunk_size(1)
    identity = {name: getattr(args, name) for name in _IDENTITY} | {"dataset": dataset}
    identity |= {"prompt": prompt.name, "template": prompt.template(), "chunk_size": chunk_size}
    with open_run(args.out, "label_difficulty", identity | args.engine.identity()) as folder:
        remove_temporaries(folder)
        asked = keep_problems(folder, chain([first], problems))
        samplings = [_sampling(args, prompt, number) for number in range(args.num_samples)]
        with keep_open(partial(args.engine.open, args.model)) as start_engine:
            counts = label_problems(asked, samplings, start_engine, prompt, folder, chunk_size)
        found = write_labels(read_records(folder / PROBLEMS, Problem), folder)
    summary = _summary(found, counts, args.out)
    if found.missing or counts.failed:
        print(summary)
        raise UserError(_describe_missing(found, counts))
    if not found.levels:
        print(summary)
        raise UserError(f"no reply states a level; read {args.out / UNLABELLED}, or ask another model")
    return summary


def _check(args: Arguments) -> None:
    require_positive(args, "num_samples", "max_new_tokens", "chunk_size")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on; 0 is greedy")
    if args.temperature == 0 and args.num_samples > 1:
        raise UserError("--temperature 0 is greedy: every try is the same; give --num-samples 1, or raise it")
    check_truncation(args.top_p, args.top_k)


def _sampling(args: Arguments, prompt: Prompt, number: int) -> Sampling:
    return Sampling(
        model=args.model,
        revision=args.engine.revision,
        prompt=prompt.name,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed + number,
    )


def _summary(found: Labelling, counts: Counts, out: Path) -> str:
    stats = found.describe()
    levels = ", ".join(f"{level}: {number}" for level, number in stats["levels"].items())
    reasons = ", ".join(f"{reason} {number}" for reason, number in stats["unlabelled"].items() if number)
    left = f"; without a level {found.unlabelled.total()}: {reasons} (see {out / UNLABELLED})" if reasons else ""
    return (
        f"{out / LABELS}: {stats['num_labelled']} of {stats['num_problems']} problems labelled ({levels or 'none'}), "
        f"in {found.tries} tries, {counts.written} of them now{left}"
    )


def _describe_missing(found: Labelling, counts: Counts) -> str:
    """One line that counts the failures of this run."""
    told = [f"{number} {reason} ({counts.details[reason]})" for reason, number in counts.failed.most_common()]
    failed = f"requests failed: {', '.join(told)}; " if told else ""
    return f"{failed}{found.missing} problems have no reply yet; the same command asks again"


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
