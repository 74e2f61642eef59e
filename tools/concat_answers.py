"""Build answer sets for the aggregator: each question with k of its sampled answers, filtered and shuffled.

An aggregator is trained on what it will read: a question and several proposed answers, some right and some
wrong. A set is dropped when more than --max-none of its answers give no result, or when its text is longer
than --max-length tokens. What was dropped and why stands in dropped.jsonl, what is left in stats.json.

Several folders of answers make one run, with one set a problem: a problem that two of them have draws its answers
from both, each model and temperature in turn. --max-share-all-correct leaves out easy sets, of which most models'
answers have too many. Train and test questions never meet: see --exclude.

Example: python tools/concat_answers.py --answers answers/gsm8k answers/math --num-answers 3 5 --max-length 4000
--max-share-all-correct 0.5 --tokenizer models/smollm2-135m --out sets/mixed --format parquet --plot sets/mixed.png
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, Dropped, describe_records, open_answers, require_verdicts
from tt_reasoning.answer_sets.building import (
    SETS,
    AnswerPool,
    Kept,
    SetRules,
    build_answer_sets,
    build_on_cluster,
    pool_answers,
    read_problem_ids,
    refuse_excluded,
    require_pool_samples,
)
from tt_reasoning.answer_sets.statistics import Limits, choose_surplus, summarise
from tt_reasoning.answer_sets.tables import write_dataset, write_parquet
from tt_reasoning.answer_sets.token_counts import load_token_counter
from tt_reasoning.cluster import check_ray
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.plots import check_plot_path, plot_answer_sets
from tt_reasoning.processes import count_cores
from tt_reasoning.tool import run_tool
from tt_reasoning.types import AnswerSet

DROPPED = "dropped.jsonl"
STATS = "stats.json"  # written last: where it is, the run is finished
_BUILT = ".built.jsonl"  # all sets, before surplus ones are left out


@dataclass(kw_only=True)
class Arguments:
    answers: tuple[Path, ...]
    """folders of generate_answers, graded by check_answers"""
    num_answers: tuple[int, ...]
    """answers in a set; two numbers: drawn for each set, from the first to the second"""
    tokenizer: Path
    """the aggregator's folder: its tokenizer.json measures the sets"""
    out: Path
    """folder for the sets; a finished one with the same arguments is left as it is"""
    max_length: int = 4000
    """tokens that a set's text may have"""
    max_none: int = 1
    """answers of a set that may have no extractable result"""
    max_share_all_correct: float = 1.0
    """share of the sets kept whose answers may all be correct; the surplus, drawn by --order-seed, is dropped"""
    max_share_all_wrong: float = 1.0
    """the same of those whose answers are all wrong"""
    max_per_source: int | None = None
    """sets kept of each benchmark; the surplus, drawn by --order-seed, is dropped"""
    temperature: float | None = None
    """only answers of this temperature; all unless given, each temperature in turn"""
    exclude: tuple[Path, ...] = ()
    """folders of answers or sets, or problems.jsonl files: problems that must not be among the sets"""
    drop_excluded: bool = False
    """leave the problems of --exclude out, rather than refuse the run"""
    mix_splits: bool = False
    """allow folders of different splits; a question that is in both is refused still"""
    order_seed: int = 0
    """decides every choice: which answers, how many, their order inside each set, which surplus sets stay"""
    format: Literal["jsonl", "parquet", "datasets"] = "jsonl"
    """beside sets.jsonl: data/, which datasets.load_dataset reads, or dataset/, which load_from_disk reads"""
    plot: Path | None = None
    """picture of the sets to draw: lengths, correct answers, sources (.png, .pdf, .svg)"""
    num_workers: int | None = None
    """processes that build sets; one a core unless given"""
    ray_address: str | None = None
    """build on a Ray cluster whose machines share the folders: HOST:PORT of its head, or auto, that of this machine"""


def main(args: Arguments) -> str:
    check_arguments(args)
    excluded = {path: read_problem_ids(path) for path in args.exclude}
    identity = identify(args, excluded)
    finished = is_finished(args.out)
    results: Iterator[Kept | Dropped] = iter(())
    if not finished:
        pool = open_pool(args, excluded)
        results = build(args, pool, excluded)
    dropped: list[Dropped] = []
    built = take_kept(results, dropped)
    first = next(built, None)
    if first is None and not finished:
        raise nothing_left(dropped)
    with store.open_run(args.out, "concat_answers", identity) as out:
        if not finished:
            remove_remains(out)
            kept = write_sets(args, itertools.chain([first], built), dropped)
            store.write_records(out / DROPPED, dropped)
            store.write_json(out / STATS, summarise(kept, dropped, pool))
        stats = json.loads((out / STATS).read_text(encoding="utf-8"))
        table = write_table(args)
    if args.plot:
        title = f"{stats['num_sets']:,} answer sets of {spell_range(args)} answers, {args.out}"
        plot_answer_sets(stats, args.plot, title)
    return describe(stats, args, finished, table)


def check_arguments(args: Arguments) -> None:
    """Refuse what no run could do, before anything is read."""
    if not args.answers:
        raise UserError("--answers: name a folder of generate_answers, or several")
    if len(args.num_answers) not in (1, 2):
        raise UserError(f"--num-answers {spell(args.num_answers)}: give one number, or the fewest and the most")
    for name in ("max_share_all_correct", "max_share_all_wrong"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: give a share between 0 and 1")
    for name, least in (("max_length", 1), ("max_none", 0), ("max_per_source", 1), ("num_workers", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    if args.drop_excluded and not args.exclude:
        raise UserError("--drop-excluded without --exclude: name what to leave out")
    if args.plot:
        check_plot_path(args.plot)
    if args.ray_address is not None:
        check_ray(args.ray_address)


def is_finished(out: Path) -> bool:
    """Whether a run ended there, with statistics that have all that is reported now."""
    try:
        return "sets_by_correct" in json.loads((out / STATS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def remove_remains(out: Path) -> None:
    """Delete the half-written files of a run that was killed."""
    store.remove_temporaries(out)
    (out / _BUILT).unlink(missing_ok=True)


def identify(args: Arguments, excluded: dict[Path, set[str]]) -> dict[str, Any]:
    """What decides the sets: the arguments, and the inputs as they are now."""
    identity: dict[str, Any] = {
        "answers": unpack([str(folder) for folder in args.answers]),
        "num_answers": unpack(args.num_answers),
        "max_length": args.max_length,
        "max_none": args.max_none,
        "order_seed": args.order_seed,
        "tokenizer": str(args.tokenizer),
    }
    for name, without in (
        ("max_share_all_correct", 1), ("max_share_all_wrong", 1), ("max_per_source", None), ("temperature", None),
        ("drop_excluded", False), ("mix_splits", False),
    ):  # fmt: skip
        if getattr(args, name) != without:
            identity[name] = getattr(args, name)
    for path, ids in excluded.items():
        identity[f"exclude {path}"] = f"sha256 {hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()[:16]}"
    for folder in args.answers:
        store.read_manifest(folder)
        for name in (PROBLEMS, ANSWERS, VERDICTS):
            identity[name if len(args.answers) == 1 else str(folder / name)] = describe_records(folder / name)
    return identity


def open_pool(args: Arguments, excluded: dict[Path, set[str]]) -> AnswerPool:
    """The graded answers of all folders. Raises UserError when they cannot be made sets of."""
    folders = [open_answers(folder, temperature=args.temperature) for folder in args.answers]
    for folder in folders:
        require_verdicts(folder)
        if len(folder.guidances) > 1:
            raise UserError(f"{folder.path} holds answers of several etas, a set is of one: draw it into a new folder")
    pool = pool_answers(folders, mix_splits=args.mix_splits)
    require_pool_samples(pool, least_and_most(args))
    if not args.drop_excluded:
        refuse_excluded({name for folder in folders for name in folder.rows}, excluded)
    return pool


def build(args: Arguments, pool: AnswerPool, excluded: dict[Path, set[str]]) -> Iterator[Kept | Dropped]:
    rules = SetRules(
        num_answers=least_and_most(args),
        order_seed=args.order_seed,
        max_none=args.max_none,
        max_length=args.max_length,
        excluded=frozenset().union(*excluded.values()),
    )
    count_tokens = load_token_counter(args.tokenizer)
    if args.ray_address is None:
        results = build_answer_sets(pool, rules, count_tokens, num_workers=args.num_workers or count_cores())
    else:
        results = build_on_cluster(
            pool, rules, args.tokenizer, temperature=args.temperature, mix_splits=args.mix_splits,
            ray_address=args.ray_address, num_workers=args.num_workers,
        )  # fmt: skip
    return tqdm(results, total=len(pool), unit="problem", desc="answer sets", disable=None)


def take_kept(results: Iterable[Kept | Dropped], dropped: list[Dropped]) -> Iterator[Kept]:
    """The kept sets; what is dropped on the way goes to the list."""
    for result in results:
        if isinstance(result, Dropped):
            dropped.append(result)
        else:
            yield result


def write_sets(args: Arguments, built: Iterable[Kept], dropped: list[Dropped]) -> list[Kept]:
    """Write the sets that stay, and return what is counted of them; surplus ones go to the list."""
    counted: list[Kept] = []

    def lines() -> Iterator[bytes]:
        for kept in built:
            counted.append(kept._replace(line=b""))
            yield kept.line

    store.write_lines(args.out / _BUILT, lines())
    limits = Limits(
        max_per_source=args.max_per_source,
        max_share_all_correct=args.max_share_all_correct,
        max_share_all_wrong=args.max_share_all_wrong,
    )
    surplus = choose_surplus(counted, limits, args.order_seed)
    if not surplus:
        os.replace(args.out / _BUILT, args.out / SETS)
        return counted
    dropped.extend(surplus[number] for number in sorted(surplus))
    if len(surplus) == len(counted):
        (args.out / _BUILT).unlink()
        raise nothing_left(dropped)
    with (args.out / _BUILT).open("rb") as file:
        numbered = enumerate(file)
        store.write_lines(args.out / SETS, (line.rstrip(b"\n") for number, line in numbered if number not in surplus))
    (args.out / _BUILT).unlink()
    return [one for number, one in enumerate(counted) if number not in surplus]


def nothing_left(dropped: Sequence[Dropped]) -> UserError:
    reasons = spell_counts(Counter(one.reason for one in dropped))
    return UserError(
        f"no answer set is left of {len(dropped)} problems: {reasons}; "
        "raise --max-length, --max-none or the shares, lower --num-answers, or generate longer answers"
    )


def write_table(args: Arguments) -> Path | None:
    """The sets in the format asked for beside sets.jsonl, unless they are there."""
    if args.format == "jsonl":
        return None
    sets = store.read_records(args.out / SETS, AnswerSet)
    return (write_parquet if args.format == "parquet" else write_dataset)(sets, args.out)


def describe(stats: dict[str, Any], args: Arguments, finished: bool, table: Path | None) -> str:
    tokens, state = stats["num_tokens"], "was finished before, nothing done" if finished else "is finished"
    drops = spell_counts(stats["dropped"])
    lines = [
        f"{args.out} {state}: {stats['num_sets']} answer sets of {spell_range(args)} answers, "
        f"{100 * stats['share_kept']:.1f} % of {stats['num_problems']} problems",
        f"tokens a set: mean {tokens['mean']:.1f}, median {tokens['median']:g}, min {tokens['min']}, "
        f"max {tokens['max']}, std {tokens['std']:.1f}",
        f"answers of a set: {spell_shares(stats)}",
    ]
    if len(stats["sources"]) > 1:
        for source, part in stats["sources"].items():
            of_them = f": {spell_shares(part)}" if part["num_sets"] else ""
            lines.append(f"{source}: {part['num_sets']} sets of {part['num_problems']} problems{of_them}")
    if len(stats["answers"]) > 1:
        ways = [f"{way['num_answers']} of {way['model']} at {way['temperature']:g}" for way in stats["answers"]]
        lines.append(f"answers drawn: {', '.join(ways)}")
    if stats["num_problems_of_several_folders"]:
        lines.append(
            f"{stats['num_problems_of_several_folders']} problems have answers in several folders and draw from all"
        )
    if stats["num_repeated_answers"]:
        lines.append(f"{stats['num_repeated_answers']} answers stood in a folder twice and count once")
    lines.append(f"dropped: {drops} (see {args.out / DROPPED})" if drops else "dropped: none")
    lines += [f"table: {table}"] if table else []
    return "\n".join(lines + ([f"plot: {args.plot}"] if args.plot else []))


def spell_shares(counts: dict[str, Any]) -> str:
    """``all correct 20.0 %, mixed 50.0 %, all wrong 30.0 %``; what cannot be judged only where there is any."""
    named = {name: count for name, count in counts["difficulty"].items() if count or name != "unjudged"}
    return ", ".join(
        f"{name.replace('_', ' ')} {100 * count / counts['num_sets']:.1f} %" for name, count in named.items()
    )


def spell_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def spell_range(args: Arguments) -> str:
    return " to ".join(map(str, args.num_answers))


def spell(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def least_and_most(args: Arguments) -> tuple[int, int]:
    return args.num_answers[0], args.num_answers[-1]


def unpack(values: Sequence[Any]) -> Any:
    """The only one, or all: a manifest of one folder says what it always said."""
    return values[0] if len(values) == 1 else list(values)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
