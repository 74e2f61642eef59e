"""Build answer sets for the aggregator: each question with k of its sampled answers, filtered and shuffled.

An aggregator is trained on what it will read: a question and several proposed answers, some right and some
wrong. A set is dropped when more than --max-none of its answers give no result, or when its text is longer
than --max-length tokens. What was dropped and why stands in dropped.jsonl, the lengths in stats.json.

Example: python tools/concat_answers.py --answers answers/demo --num-answers 4 --max-length 4000
--tokenizer models/smollm2-135m --out sets/demo --plot sets/demo/lengths.png
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import (
    VERDICTS,
    Dropped,
    Kept,
    build_answer_sets,
    describe_records,
    load_token_counter,
    open_answers,
    read_groups,
    require_samples,
    require_verdicts,
)
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.plots import check_plot_path, plot_token_lengths
from tt_reasoning.tool import run_tool
from tt_reasoning.types import AnswerSet

SETS = "sets.jsonl"
DROPPED = "dropped.jsonl"
STATS = "stats.json"  # written last: where it is, the run is finished


@dataclass(kw_only=True)
class Arguments:
    answers: Path
    """folder of generate_answers, graded by check_answers"""
    num_answers: int
    """answers in a set: the first so many of each problem"""
    tokenizer: Path
    """the aggregator's folder: its tokenizer.json measures the sets"""
    out: Path
    """folder for the sets; a finished one with the same arguments is left as it is"""
    max_length: int = 4000
    """tokens that a set's text may have"""
    max_none: int = 1
    """answers of a set that may have no extractable result"""
    order_seed: int = 0
    """decides the order of the answers inside each set"""
    plot: Path | None = None
    """picture of the sets' lengths to draw (.png, .pdf, .svg)"""


def main(args: Arguments) -> str:
    if args.plot:
        check_plot_path(args.plot)
    identity = _identify(args)
    finished = (args.out / STATS).exists()
    results = iter(()) if finished else _build(args)
    dropped: list[Dropped] = []
    kept = _keep(results, dropped)
    first = next(kept, None)
    if first is None and not finished:
        raise UserError(
            f"no answer set is left of {len(dropped)} problems: {_count_reasons(dropped)}; "
            "raise --max-length or --max-none, lower --num-answers, or generate longer answers"
        )
    with store.open_run(args.out, "concat_answers", identity) as out:
        if not finished:
            lengths: Counter[int] = Counter()
            store.write_records(out / SETS, _count_lengths(itertools.chain([first], kept), lengths))
            store.write_records(out / DROPPED, dropped)
            store.write_json(out / STATS, _summarise(lengths, dropped))
        stats = json.loads((out / STATS).read_text(encoding="utf-8"))
    if args.plot:
        lengths = [int(length) for length, count in stats["sets_by_num_tokens"].items() for _ in range(count)]
        title = f"{len(lengths):,} answer sets of {args.num_answers} answers, {args.out}"
        plot_token_lengths(lengths, args.plot, title)
    return _describe(stats, args, finished)


def _identify(args: Arguments) -> dict[str, Any]:
    """What decides the sets: the arguments, and the inputs as they are now."""
    store.read_manifest(args.answers)
    return {
        "answers": str(args.answers),
        "num_answers": args.num_answers,
        "max_length": args.max_length,
        "max_none": args.max_none,
        "order_seed": args.order_seed,
        "tokenizer": str(args.tokenizer),
        **{name: describe_records(args.answers / name) for name in (PROBLEMS, ANSWERS, VERDICTS)},
    }


def _build(args: Arguments) -> Iterator[Kept | Dropped]:
    answers = open_answers(args.answers)
    require_verdicts(answers)
    require_samples(answers, args.num_answers)
    count_tokens = load_token_counter(args.tokenizer)
    groups = tqdm(read_groups(answers), total=len(answers.offsets), unit="problem", desc="answer sets", disable=None)
    return build_answer_sets(
        groups,
        num_answers=args.num_answers,
        order_seed=args.order_seed,
        max_none=args.max_none,
        is_extractable=lambda answer: answers.reasons[answer.id] != "no_answer",
        max_length=args.max_length,
        count_tokens=count_tokens,
    )


def _keep(results: Iterable[Kept | Dropped], dropped: list[Dropped]) -> Iterator[Kept]:
    """The kept sets; what is dropped on the way goes to the list."""
    for result in results:
        if isinstance(result, Dropped):
            dropped.append(result)
        else:
            yield result


def _count_lengths(kept: Iterable[Kept], lengths: Counter[int]) -> Iterator[AnswerSet]:
    """The sets alone; their lengths are counted on the way."""
    for answer_set, num_tokens in kept:
        lengths[num_tokens] += 1
        yield answer_set


def _count_reasons(dropped: Iterable[Dropped]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in Counter(d.reason for d in dropped).items())


def _summarise(lengths: Counter[int], dropped: list[Dropped]) -> dict[str, Any]:
    """What stats.json holds; lengths in tokens, ``std`` of the population."""
    tokens = sorted(lengths.elements())
    return {
        "num_problems": len(tokens) + len(dropped),
        "num_sets": len(tokens),
        "share_kept": len(tokens) / (len(tokens) + len(dropped)),
        "dropped": dict(Counter(d.reason for d in dropped)),
        "num_tokens": {
            "mean": statistics.fmean(tokens),
            "median": statistics.median(tokens),
            "min": tokens[0],
            "max": tokens[-1],
            "std": statistics.pstdev(tokens),
        },
        "sets_by_num_tokens": {str(length): lengths[length] for length in sorted(lengths)},
    }


def _describe(stats: dict[str, Any], args: Arguments, finished: bool) -> str:
    tokens = stats["num_tokens"]
    drops = ", ".join(f"{reason} {count}" for reason, count in stats["dropped"].items()) or "none"
    state = "was finished before, nothing done" if finished else "is finished"
    lines = [
        f"{args.out} {state}: {stats['num_sets']} answer sets of {args.num_answers} answers, "
        f"{100 * stats['share_kept']:.1f} % of {stats['num_problems']} problems",
        f"tokens a set: mean {tokens['mean']:.1f}, median {tokens['median']:g}, min {tokens['min']}, "
        f"max {tokens['max']}, std {tokens['std']:.1f}",
        f"dropped: {drops}" + ("" if drops == "none" else f" (see {args.out / DROPPED})"),
    ]
    return "\n".join(lines + ([f"plot: {args.plot}"] if args.plot else []))


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
