"""Convert answers to the thought/solution form: a model rewrites each, and what it wrote is checked before it is used.

Every answer of a folder becomes one thought (its reasoning, nearly word for word) and one solution (clean, with the
final answer once) in the four tags that Sky-T1 is trained on. A conversion is used if it was not cut, has each tag once
with nothing outside, and has the answer's own words, no less and no more, to a share of --min-overlap; an answer
without such a conversion gets up to --num-samples tries, a further one only if those before it failed. --only-correct
converts what check_answers found correct alone, which costs less. A key is in OPENAI_API_KEY or --keys FILE; any other
--engine can write too. Killed or with failed requests, the same command asks for what is missing; more answers in the
folder, --limit or --num-samples add to --out.

Writes a folder of answers like the one that it read (problems.jsonl, answers.jsonl: the same ids with the converted
text), for check_answers and to_sharegpt, and rejected.jsonl (every other try, with its reason) and stats.json.

Example: python tools/convert_format.py --answers answers/apps --model gpt-4o-mini --keys keys.txt --out converted/apps
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.conversion import (
    MIN_OVERLAP,
    REJECTED,
    RejectedRow,
    Source,
    check_standing_verdicts,
    choose_tries,
    convert_answers,
    converted_answers,
    find_answers,
    rejected_tries,
    summarise,
)
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS, STATS, Counts, check_complete, keep_problems
from tt_reasoning.prompts import Prompt, load_prompt
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Problem, Sampling, Verdict


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: Path
    """Folder of answers to convert; it is only read."""
    model: str
    """Name of the model at the server (for another engine: what that takes)."""
    out: Path
    """Folder for the converted answers; the same arguments again resume it."""
    only_correct: bool = False
    """Convert only answers that check_answers found correct."""
    limit: int | None = None
    """Only the first so many answers."""
    num_samples: int = 2
    """Most tries of an answer."""
    min_overlap: float = MIN_OVERLAP
    """Share of the answer's words that a conversion has to keep, and of its own that have to be the answer's."""
    prompt: str = "convert"
    """What the model is told: a prompt of tt_reasoning/prompts.py, or a file with one."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: int = 16384
    """Most tokens of a conversion; one that is cut is rejected."""
    seed: int = 0
    """Of the first try; each further one adds 1."""
    chunk_size: int = 64
    """Answers asked at once; conversions reach the disk after each chunk, or sooner."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: EngineOptions(name="openai")
    )


def main(args: Arguments) -> str:
    _check_arguments(args)
    prompt = load_prompt(args.prompt)
    template = store.read_manifest(args.answers).get("arguments", {}).get("template")
    source = find_answers(args.answers, _read_verdicts(args.answers) if args.only_correct else None, args.limit)
    if not len(source.answers):
        raise UserError(f"{args.answers} has no answer to convert ({_told(source.left_out) or 'it has none at all'})")
    samplings = [
        Sampling(
            model=args.model, revision=args.engine.revision, prompt=prompt.name, temperature=args.temperature,
            top_p=args.top_p, top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed + number,
        )
        for number in range(args.num_samples)
    ]  # fmt: skip
    with store.open_run(args.out, "convert_format", _identify(args, prompt, template)) as out:
        keep_problems(out, store.read_records(args.answers / PROBLEMS, Problem))
        start_engine = partial(args.engine.open, args.model)
        counts, sound = convert_answers(
            source, samplings, args.min_overlap, start_engine, prompt, out, args.chunk_size
        )
        chosen = choose_tries(source, samplings, sound, out)
        if (out / VERDICTS).exists():
            check_standing_verdicts(out, converted_answers(source, chosen, out))
        reasons: Counter[str] = Counter()
        rejected = _count(rejected_tries(source, samplings, chosen, args.min_overlap, out), reasons)
        store.write_records(out / REJECTED, rejected)
        num_converted = store.write_records(out / ANSWERS, converted_answers(source, chosen, out))
        missing = sum(
            sampling.answer_id(identity, 0) not in sound
            for identity, row in source.first.items()
            if row not in source.done and identity not in chosen
            for sampling in samplings
        )
        stats = summarise(source, reasons, num_converted, len(sound), missing, args.num_samples, args.min_overlap)
        store.write_json(out / STATS, stats)
    summary = _describe(source, stats, counts, args.out)
    if missing:
        print(summary)
        check_complete(replace(counts, missing=missing))
    if not num_converted:
        print(summary)
        raise UserError(f"no conversion passed its checks; read {args.out / REJECTED}, or ask a stronger model")
    return summary


def _check_arguments(args: Arguments) -> None:
    require_positive(args, "limit", "num_samples", "max_new_tokens", "chunk_size")
    check_truncation(args.top_p, args.top_k)
    if not 0 <= args.min_overlap <= 1:
        raise UserError(f"--min-overlap {args.min_overlap:g} is no share: give a number from 0 to 1")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on; 0 is greedy")
    if args.temperature == 0 and args.num_samples > 1:
        raise UserError("--temperature 0 is greedy: every try is the same; give --num-samples 1, or raise it")
    if args.out.resolve() == args.answers.resolve():
        raise UserError(f"--out {args.out} is the folder that is read; name another")
    args.engine.check(args.model)


def _read_verdicts(folder: Path) -> dict[str, bool | None]:
    """Whether each answer is correct, by id."""
    found = {verdict.answer_id: verdict.correct for verdict in store.read_records(folder / VERDICTS, Verdict)}
    if not found:
        raise UserError(
            f"--only-correct: {folder} has no {VERDICTS}; run: python tools/check_answers.py --answers {folder}"
        )
    return found


def _identify(args: Arguments, prompt: Prompt, template: dict[str, Any] | None) -> dict[str, Any]:
    """What decides the tries. ``template`` is that of the answers' own prompt, if a file gave it."""
    names = ("model", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "chunk_size")
    return {
        "answers": str(args.answers),
        "converter": prompt.name,
        "converter_template": prompt.template(),
        **{name: getattr(args, name) for name in names},
        **args.engine.identity(),
        "template": template,
        "whole_texts": True,  # prompts.get_prompt: no prefill belongs before them
    }


def _count(rows: Iterator[RejectedRow], reasons: Counter[str]) -> Iterator[RejectedRow]:
    for row in rows:
        reasons[row.reason] += 1
        yield row


def _describe(source: Source, stats: dict[str, Any], counts: Counts, out: Path) -> str:
    """The summary: what was converted, what was rejected and why, what was not asked."""
    num_answers, num_converted = stats["num_answers"], stats["num_converted"]
    lines = [
        f"{out / ANSWERS}: {num_converted} of {num_answers} answers converted, {num_converted / num_answers:.1%} "
        f"({stats['num_tries']} tries, {counts.written} of them now)",
        f"rejected {sum(stats['rejected'].values())} tries: {_told(stats['rejected']) or 'none'} "
        f"(see {out / REJECTED})",
    ]
    if source.left_out:
        lines.append(f"not asked: {_told(source.left_out)}")
    if source.done:
        lines.append(f"in the form already, taken as they are: {len(source.done)}")
    return "\n".join(lines)


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
