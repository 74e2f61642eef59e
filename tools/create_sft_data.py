"""Create SFT data for the aggregator: justifications by a strong model that sees the gold answer of every set.

The model reads a question, its proposed answers and the gold answer, and writes <think> why </think> <answer> gold
</answer> as if it had not been told. Kept is what ended by itself, has that form, is graded as the gold answer and
betrays nothing (no "the given answer"). A set without such a justification gets up to --num-samples tries, a further
one only if those before it failed. Writes sft.jsonl for configs/3B_sft.yaml, rejected.jsonl (everything else, with its
reason) and stats.json. A key is in OPENAI_API_KEY or --keys FILE. Killed or with failed requests, the same command
asks for what is missing; more --limit, --num-samples or --keep add to a finished folder.

Example: python tools/create_sft_data.py --sets sets/train --model gpt-4.1-mini --num-samples 3 --out sft/train
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from tt_reasoning import store
from tt_reasoning.answer_sets.rows import SetRow, read_set_rows
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import get_prompt
from tt_reasoning.sft_data import (
    REJECTED,
    SFT,
    STATS,
    Item,
    Try,
    choose_items,
    grade_tries,
    sort_tries,
    summarise,
    tries_of,
    write_justifications,
)
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Arguments:
    sets: str
    """folder of concat_answers; or a Parquet file or hub:NAME with the columns question (the text with the answers)
    and answer"""
    model: str
    """name of the model at the server (for another engine: what that takes)"""
    out: Path
    """folder for the rows; the same arguments again resume it"""
    split: str = "train"
    """split of a Hub dataset"""
    limit: int | None = None
    """only the first so many sets"""
    num_samples: int = 2
    """most tries of a set"""
    keep: int = 1
    """most justifications of a set that are kept"""
    prompt: str = "ssa_oracle"
    """what the model is told; a prompt of tt_reasoning/prompts.py that is shown the gold answer with the set"""
    temperature: float = 0.7
    """0 is greedy"""
    top_p: float = 1.0
    """sample from the likeliest tokens that hold this share of the probability"""
    top_k: int = 0
    """sample from this many likeliest tokens; 0 is no limit"""
    max_new_tokens: int = 1024
    """tokens of a justification; one that is cut is rejected"""
    seed: int = 0
    """of the first try; each further one adds 1"""
    chunk_size: int = 64
    """sets asked at once; justifications reach the disk after each chunk"""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: EngineOptions(name="openai")
    )


def main(args: Arguments) -> str:
    check_arguments(args)
    prompt = get_prompt(args.prompt)
    rows = list(read_set_rows(args.sets, args.split, argument="--sets"))
    samplings = [
        Sampling(
            model=args.model, revision=args.engine.revision, prompt=args.prompt, temperature=args.temperature,
            top_p=args.top_p, top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed + number,
        )
        for number in range(args.num_samples)
    ]  # fmt: skip
    with Grader(timeout_s=5.0) as grader:
        items, not_asked = choose_items(rows[: args.limit], grader, args.split)
        if not items:
            raise UserError(f"--sets {args.sets} holds no set to ask about ({_told(not_asked) or 'it is empty'})")
        with store.open_run(args.out, "create_sft_data", identify(args, rows)) as out:
            start_engine = partial(args.engine.open, args.model)
            counts = write_justifications(
                items, samplings, args.keep, start_engine, prompt, out, grader, args.chunk_size
            )
            tries = grade_tries(items, samplings, prompt, out, grader)
            by_item = [(item, tries_of(item, samplings, tries)) for item in items]
            stats = write_rows(by_item, not_asked, args, out)
    summary = describe(stats, counts, args.out)
    if stats["missing"]:
        print(summary)
        raise UserError(describe_missing(stats["missing"], counts))
    if not stats["num_kept"]:
        print(summary)
        raise UserError(f"no justification passed its checks; read {args.out / REJECTED}, or ask a stronger model")
    return summary


def write_rows(
    by_item: Sequence[tuple[Item, list[Try]]], not_asked: dict[str, int], args: Arguments, out: Path
) -> dict[str, Any]:
    """Write what is kept, what is rejected and, last, the figures; returns these."""
    all_kept, all_rejected, num_missing = [], [], 0
    for item, tries in by_item:
        kept, rejected = sort_tries(item, tries, args.keep)
        all_kept += kept
        all_rejected += rejected
        num_missing += args.num_samples - len(tries) if len(kept) < args.keep else 0
    tries = [attempt for _, tries in by_item for attempt in tries]
    stats = summarise(len(by_item), not_asked, all_kept, all_rejected, tries, num_missing)
    store.write_records(out / SFT, all_kept)
    store.write_records(out / REJECTED, all_rejected)
    store.write_json(out / STATS, stats)
    return stats


def check_arguments(args: Arguments) -> None:
    """Refuse what no engine could run, before anything is read or asked."""
    for name in ("limit", "num_samples", "keep", "max_new_tokens", "chunk_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least 1")
    if args.keep > args.num_samples:
        raise UserError(f"--keep {args.keep} is above --num-samples {args.num_samples}: so many are never written")
    if args.temperature < 0:
        raise UserError(f"--temperature {args.temperature:g} is negative; 0 is greedy")
    if args.temperature == 0 and args.num_samples > 1:
        raise UserError("--temperature 0 is greedy: every try is the same; give --num-samples 1, or raise it")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p:g} is not above 0 and at most 1")
    if args.top_k < 0:
        raise UserError(f"--top-k {args.top_k} is negative; 0 is no limit")
    args.engine.check(args.model)


def identify(args: Arguments, rows: Sequence[SetRow]) -> dict[str, Any]:
    """What decides the justifications: the arguments that matter, and the sets as they are now."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(store.dump_record(row._asdict()).encode())
    names = ("sets", "split", "model", "prompt", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    return {
        **{name: getattr(args, name) for name in (*names, "chunk_size")},
        **args.engine.identity(),
        "rows": f"{len(rows)} rows, sha256 {digest.hexdigest()[:16]}",
    }


def describe(stats: dict[str, Any], counts: Counts, out: Path) -> str:
    """The summary: what is kept, what was rejected and why, what could not be judged, what was not asked."""
    lines = [
        f"{out / SFT}: {stats['num_kept']} justifications of {stats['num_sets_kept']} sets kept, "
        f"{100 * stats['share_of_sets_kept']:.1f} % of {stats['num_sets']} sets "
        f"({stats['num_justifications']} written, {counts.written} of them now)",
        f"rejected {sum(stats['rejected'].values())}: {_told(stats['rejected']) or 'none'} (see {out / REJECTED})",
    ]
    parts = {"leaks": stats["leaks"], "could not be judged": stats["unjudged"], "not asked": stats["not_asked"]}
    return "\n".join(lines + [f"{name}: {_told(part)}" for name, part in parts.items() if _told(part)])


def describe_missing(num_missing: int, counts: Counts) -> str:
    """One line that counts the failures of this run."""
    told = [f"{number} {reason} ({counts.details[reason]})" for reason, number in counts.failed.most_common()]
    return f"{num_missing} justifications are missing; failed now: {', '.join(told)}; the same command asks again"


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
