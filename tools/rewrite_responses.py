"""Make preference pairs of graded answers: a right answer without its repetitions against a long right one.

Of each problem's correct answers the shortest is shortened and preferred to the longest: a model names the lines of its
thought that propose an answer, and says of each sub-solution whether it is right; the thought is cut behind the first
right one (fcs), one later (fcs_plus1), or behind the second right one (fcs_reflection), and the solution stays. --silc
adds pairs that reject the shortest incorrect answer for the shortest correct one longer than it. Needs the verdicts of
check_answers. A model that replies out of form is asked again, --num-samples times in all. Killed or with failed
requests, the same command asks for what is missing; it does so too when answers were added, or with more --limit,
--num-samples or --first, and --silc, --system-prompt, --target-model and --score-by may change in a finished folder.
configs/135M_dpo_cpu.yaml and configs/0.5B_dpo.yaml train on the pairs.

Writes fcs-conversations.json, fcs_plus1-conversations.json and fcs_reflection-conversations.json, rewritten.jsonl (what
was cut where), left_out.jsonl (problems without a pair, with the reason), stats.json, and the replies of the model.

Example: python tools/rewrite_responses.py --answers answers/demo --rewrite-model models/llama --silc --out pairs/demo
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from tt_reasoning import store
from tt_reasoning.aggregation import keep_open
from tt_reasoning.answer_sets import open_answers, read_settings, require_verdicts
from tt_reasoning.answer_sets.token_counts import CountTokens, load_token_counter
from tt_reasoning.checking import SETTINGS
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import STATS, Counts, begun_chunk_size
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import load_prompt
from tt_reasoning.rewriting import (
    LEFT_OUT,
    MARK_PROMPT,
    REWRITTEN,
    AnswerTexts,
    Asking,
    ScoreBy,
    Side,
    choose_items,
    cut_answers,
    find_unmarked,
    make_pairs,
    mark_answers,
    read_sides,
    score_parts,
    summarise,
    write_pairs,
)
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: Path
    """Folder of answers with their verdicts; it is only read."""
    rewrite_model: str
    """Model that marks and scores: a Hugging Face folder or Hub name (for another engine: what that takes)."""
    out: Path
    """Folder for the pairs; the same arguments again resume it."""
    target_model: str | None = None
    """Model that the pairs are to train: if it is a folder, its tokenizer counts tokens; else they are estimated."""
    system_prompt: str | None = None
    """System message of the pairs: a name, a text file, or none; unless given the one that the answers were asked with,
    or the one that asks for the thought and solution form where they have it."""
    silc: Annotated[bool, tyro.conf.arg(aliases=("--SILC",))] = False
    """Add pairs of a short incorrect and a longer correct answer to every file."""
    score_by: ScoreBy = "model"
    """What says whether a sub-solution is right: the model, or the grader, which is free and reads its last answer."""
    first: int | None = None
    """Only the first so many answers to each problem, where no more were checked (check_answers --first)."""
    limit: int | None = None
    """Only the first so many problems that have answers."""
    num_samples: int = 3
    """Most tries of a question to the model: the first is greedy, the others are not."""
    temperature: float = 0.7
    """Of the tries behind the first."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: int = 1024
    """Most tokens of a reply; numbers and one word are asked for, but some models think first."""
    seed: int = 0
    """Of the tries, and of the order of the pairs."""
    chunk_size: int | None = None
    """Questions asked at once, always the same in a folder; in a new one as many as suit the engine."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


# No reply depends on these.
_CHANGEABLE = ("silc", "system_prompt", "target_model", "score_by", "first", "limit", "num_samples")


def main(args: Arguments) -> str:
    _check_arguments(args)
    system = _find_system(args.system_prompt)
    answers = open_answers(args.answers, first=args.first)
    require_verdicts(answers)
    counted: Counter[Side] = Counter()
    sides = list(islice(read_sides(answers, counted), args.limit))
    count_tokens = _find_counter(args.target_model)
    grading = read_settings(args.answers / SETTINGS)
    chunk_size = args.chunk_size or begun_chunk_size(args.out) or args.engine.default_chunk_size(1)
    with (
        store.open_run(args.out, "rewrite_responses", _identify(args, chunk_size, grading)) as out,
        keep_open(partial(args.engine.open, args.rewrite_model)) as start_engine,
        Grader(**grading) as grader,
        Grader(**grading | {"fallback": "last_number"}) as part_grader,
    ):
        texts = AnswerTexts(args.answers, sides)
        asking = Asking(start_engine=start_engine, samplings=_samplings(args), folder=out, chunk_size=chunk_size)
        items, left_out = choose_items(sides, texts)
        marked, mark_counts = mark_answers(items, asking)
        scored, score_counts = score_parts(items, marked, texts, asking, args.score_by, part_grader)
        rewritten, failed = cut_answers(items, scored, texts, grader, out, count_tokens)
        left_out += find_unmarked(items, marked) + failed
        pairs = make_pairs(sides, rewritten, silc=args.silc, seed=args.seed)
        store.write_records(out / REWRITTEN, rewritten)
        store.write_records(out / LEFT_OUT, left_out)
        for name, of in pairs.items():
            write_pairs(out / f"{name}-conversations.json", of, texts, args.answers, system)
        stats = summarise(counted, len(sides), marked, scored, rewritten, left_out, pairs)
        stats["settings"] = {name: getattr(args, name) for name in _CHANGEABLE}
        stats["tokens_by"] = f"the tokenizer of {args.target_model}" if count_tokens else "the sampler, and words"
        store.write_json(out / STATS, stats)
    summary = _describe(stats, args.out)
    if stats["waiting"]:
        print(summary)
        raise UserError(_describe_missing(stats["waiting"], mark_counts, score_counts))
    if not any(pairs.values()):
        print(summary)
        raise UserError(f"no pair could be made; {args.out / LEFT_OUT} says why, problem by problem")
    return summary


def _check_arguments(args: Arguments) -> None:
    require_positive(args, "first", "limit", "num_samples", "max_new_tokens", "chunk_size")
    check_truncation(args.top_p, args.top_k)
    if not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number above 0; the first try is greedy anyway")
    if args.out.resolve() == args.answers.resolve():
        raise UserError(f"--out {args.out} is the folder that is read; name another")
    args.engine.check(args.rewrite_model)


def _find_system(name: str | None) -> str | None:
    """The text; "" for none at all, None where each pair has its own."""
    if name is None:
        return None
    return "" if name == "none" else load_prompt("question", name).system


def _find_counter(target_model: str | None) -> CountTokens | None:
    """By the tokenizer of a folder that is here; a mere name gives none."""
    if target_model is None or not Path(target_model).is_dir():
        return None
    return load_token_counter(target_model)


def _samplings(args: Arguments) -> tuple[Sampling, ...]:
    """One a try, of the first kind of question; the other differs in its prompt."""
    first = Sampling(
        model=args.rewrite_model, revision=args.engine.revision, prompt=MARK_PROMPT, temperature=0.0, top_p=args.top_p,
        top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed,
    )  # fmt: skip
    further = range(1, args.num_samples)
    return (first, *(replace(first, temperature=args.temperature, seed=args.seed + number) for number in further))


def _identify(args: Arguments, chunk_size: int, grading: dict[str, Any]) -> dict[str, Any]:
    """What decides the replies and verdicts of this folder. Which answers there are may change: each has its own."""
    names = ("rewrite_model", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    return {
        "answers": str(args.answers),
        **{name: getattr(args, name) for name in names},
        "chunk_size": chunk_size,
        **args.engine.identity(),
        "grading": grading,
    }


def _describe(stats: dict[str, Any], out: Path) -> str:
    """The summary: what was rewritten, what not and why, and what each file holds."""
    lines = [
        f"{stats['num_rewritten']} of {stats['num_problems']} problems rewritten; left out: "
        f"{_told(stats['left_out']) or 'none'} (see {out / LEFT_OUT})",
        f"answers: {_told(stats['answers'])}; replies out of form: {_told(stats['faults']) or 'none'}; "
        f"sub-solutions: {_told(stats['parts']) or 'none scored'}",
    ]
    for name, of in stats["files"].items():
        line = f"{out / name}-conversations.json: {of['pairs']} pairs"
        if of["silc"]:
            line += f", {of['silc']} of them SILC"
        if of["rewritten"]:
            mean = of["mean_tokens"]
            line += f"; chosen {mean['chosen']:g} tokens (uncut {mean['uncut']:g}), rejected {mean['rejected']:g}"
        lines.append(line)
    return "\n".join(lines)


def _describe_missing(waiting: int, *counts: Counts) -> str:
    """One line that counts the failures of this run."""
    told = [
        f"{number} {reason} ({count.details[reason]})" for count in counts for reason, number in count.failed.items()
    ]
    return f"{waiting} problems wait for replies; failed now: {', '.join(told)}; the same command asks again"


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
