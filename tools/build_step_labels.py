"""Label the steps of solutions for step judges: by PRM800K's human ratings, or by rollouts from each (Math-Shepherd).

docs/step_labels.md says how every label is made (arXiv 2312.08935 for rollouts). Writes a folder of steps:
problems.jsonl, answers.jsonl, steps.jsonl (offsets into an answer's text, a rating or none) and stats.json, which
counts what was left out. After a kill the same command ends with the same files.

Example: python tools/build_step_labels.py prm800k --data-files data/phase1_train.jsonl data/phase2_train.jsonl
    --mode candidates --out steps/prm800k

Example: python tools/build_step_labels.py shepherd --answers answers/demo --model models/smollm2-135m --out steps/demo
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from tt_reasoning.aggregation import keep_open
from tt_reasoning.answer_sets import (
    VERDICTS,
    AnswerFolder,
    describe_records,
    open_answers,
    read_settings,
    require_verdicts,
)
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, begun_chunk_size
from tt_reasoning.grading import Grader
from tt_reasoning.prm800k import Mode, Rules, Split, build_labels
from tt_reasoning.prompts import Prompt, get_prompt, load_prompt
from tt_reasoning.shepherd import draw_rollouts, plan_prefixes, write_labels
from tt_reasoning.steps import STEPS, Estimate, SplitStyle
from tt_reasoning.store import open_run, read_manifest
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Sampling

_MUCH = 0.1  # of the rollouts cut: then a warning


@dataclass(frozen=True, kw_only=True)
class Prm800k:
    """Labels by humans: the files of PRM800K as they are published."""

    data_files: tuple[Path, ...]
    """phase1_train.jsonl, phase2_train.jsonl or both; .jsonl.gz too"""
    out: Path
    """folder for the steps"""
    mode: Mode = "candidates"
    """candidates: the path of a solution, and each other candidate behind the path so far, every label once;
    single-path: the path up to its first -1; product: all combinations of candidates, each up to its first -1"""
    split: Split = "train"
    """what the problems are called; test for the published test files, whose problems are not to be trained on"""
    max_generation: int | None = None
    """only what phase 2 collected up to this generation; phase 1 has none and stays"""
    max_paths: int = 256
    """most paths of one solution in a product; of more, so many are taken, evenly spaced"""


@dataclass(frozen=True, kw_only=True)
class Shepherd:
    """Labels by rollouts: Math-Shepherd."""

    answers: Path
    """Folder of generate_answers, graded by check_answers."""
    model: str
    """The completer: Hugging Face folder or Hub name (name at the server for openai, JSON file for scripted)."""
    out: Path
    """Folder of steps; the same command goes on with it."""
    rollouts: int = 8
    """Rollouts from each step but the last."""
    estimate: Estimate = "hard"
    """hard: is any rollout right? No more are asked for behind the first. soft: the share of them too, of them all."""
    prompt: str = "auto"
    """A prompt's name or file; auto is the one that the answers were drawn with."""
    temperature: float = 0.7
    """Of the rollouts."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: int = 1024
    """Most tokens of a rollout, beside those of what it goes on from."""
    seed: int = 0
    """Seed of the run; each rollout has its own from it."""
    limit: int | None = None
    """Only the first so many problems."""
    split_style: SplitStyle = "auto"
    """Where steps begin: at "Step 1:" marks, paragraphs or lines; auto takes the first of these that gives two."""
    chunk_size: int | None = None
    """Problems asked at once, with all their answers; always the same in a folder, in a new one as suits the engine."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


@dataclass(frozen=True, kw_only=True)
class Arguments:
    labels: Annotated[
        Annotated[Prm800k, tyro.conf.subcommand("prm800k")] | Annotated[Shepherd, tyro.conf.subcommand("shepherd")],
        tyro.conf.arg(name=""),
    ]


def main(args: Arguments) -> str:
    return run_prm800k(args.labels) if isinstance(args.labels, Prm800k) else run_shepherd(args.labels)


def run_prm800k(args: Prm800k) -> str:
    if not args.data_files:
        raise UserError("--data-files: name at least one file of PRM800K, such as phase2_train.jsonl")
    if args.max_paths < 1:
        raise UserError(f"--max-paths {args.max_paths}: give at least 1")
    rules = Rules(
        mode=args.mode, split=args.split, max_generation=args.max_generation, max_paths=args.max_paths
    )
    stats, was_finished = build_labels(args.data_files, rules, args.out)
    return _summarise_ratings(stats, args.out, was_finished)


def _summarise_ratings(stats: Mapping[str, Any], out: Path, was_finished: bool) -> str:
    """What was written, and every count of what was not."""
    state = "was finished before, nothing done" if was_finished else "is finished"
    lines = [
        f"{out} {state}: {stats['num_answers']:,} answers to {stats['num_problems']:,} problems, from "
        f"{stats['num_rows_used']:,} of {stats['num_rows']:,} rows; {stats['num_steps']:,} steps, labelled "
        f"{_spell(stats['labels'])}",
        f"rows left out: {_spell(stats['left_out'])}",
        f"ratings read: {stats['ratings_read']:,}, of them repeated {stats['ratings_repeated']:,}, behind a step "
        f"rated -1 {stats['ratings_behind_error']:,}; without a rating: {_spell(stats['without_rating'])}",
    ]
    for name, meaning in (
        ("ratings_disputed", "candidates rated differently in several rows, of which the lower rating holds"),
        ("ratings_lost", "further ratings, of blank texts or behind a step without text"),
        ("references_differ", "problems with another reference answer in a later row; the first holds"),
        ("paths_repeated", "paths left out that an earlier one repeats"),
        ("paths_unrated", "paths left out without a rating"),
        ("paths_over_limit", "paths left out beyond --max-paths of their row"),
    ):
        if stats[name]:
            lines.append(f"{meaning}: {stats[name]:,}")
    return "\n".join(lines)


def _spell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


# What labels depend on, beside the answers, the prompt, the grading, the size of a chunk and the engine's own.
_IDENTITY = (
    "model", "rollouts", "estimate", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "split_style"
)  # fmt: skip


def run_shepherd(args: Shepherd) -> str:
    _check_numbers(args)
    args.engine.check(args.model)
    answers = open_answers(args.answers)
    require_verdicts(answers)
    prompt = _choose_prompt(args, answers)
    grading = {"fallback": "none"} | read_settings(args.answers / "verdicts.json")
    plan = plan_prefixes(answers, args.split_style, args.limit)
    per_problem = -(-len(plan.prefixes) // len(plan.groups)) * args.rollouts
    chunk_size = args.chunk_size or begun_chunk_size(args.out) or args.engine.default_chunk_size(max(1, per_problem))
    identity = {name: getattr(args, name) for name in _IDENTITY}
    identity |= {"answers": str(args.answers), "chunk_size": chunk_size, "prompt": prompt.name}
    identity |= {name: describe_records(args.answers / name) for name in (ANSWERS, VERDICTS)}
    # Under "template" get_prompt finds the prompt of the answers, which stand in this folder too.
    identity["template"] = read_manifest(args.answers).get("arguments", {}).get("template")
    identity["rollout_template"] = prompt.template()
    identity |= {name: value for name, value in grading.items() if name != "timeout_s"} | args.engine.identity()
    sampling = Sampling(
        model=args.model, revision=args.engine.revision, prompt=prompt.name, temperature=args.temperature,
        top_p=args.top_p, top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed,
    )  # fmt: skip
    with open_run(args.out, "build_step_labels shepherd", identity) as folder:
        complete = (folder / STEPS).exists()
        with keep_open(partial(args.engine.open, args.model)) as start_engine, Grader(**grading) as grader:
            written = draw_rollouts(
                plan, sampling, args.rollouts, args.estimate, prompt, start_engine, grader, folder, chunk_size
            )
        stats = write_labels(plan, folder, args.estimate)
    _warn(stats, args.max_new_tokens)
    return _summary(stats, written, complete, args.out)


def _check_numbers(args: Shepherd) -> None:
    require_positive(args, "rollouts", "max_new_tokens", "limit", "chunk_size")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on")
    if args.temperature == 0 and args.rollouts > 1:
        raise UserError(f"--temperature 0 gives {args.rollouts} times the same rollout; raise it, or set --rollouts 1")
    check_truncation(args.top_p, args.top_k)


def _choose_prompt(args: Shepherd, answers: AnswerFolder) -> Prompt:
    if args.prompt != "auto":
        return load_prompt(args.prompt)
    names = sorted({sampling.prompt for sampling in answers.samplings})
    if len(names) > 1:
        raise UserError(f"{args.answers} holds answers to several prompts ({', '.join(names)}); name one with --prompt")
    return get_prompt(names[0], args.answers)


def _warn(stats: dict, max_new_tokens: int) -> None:
    if stats["rollouts"] and stats["unfinished"] / stats["rollouts"] >= _MUCH:
        print(
            f"warning: {stats['unfinished_share']:.1%} of {stats['rollouts']} rollouts were cut at --max-new-tokens "
            f"{max_new_tokens}, most of them before their result, and count as wrong; raise it, with a new --out",
            file=sys.stderr,
        )
    steps = stats["steps"]
    if not steps["good"] or not steps["bad"]:
        which = "good" if steps["good"] else "bad" if steps["bad"] else "without a label"
        print(
            f"warning: all {steps['good'] + steps['bad'] or steps['steps']} steps are {which}: nothing to learn from; "
            "take other answers, another completer or another number of --rollouts",
            file=sys.stderr,
        )


def _summary(stats: dict, written: int, complete: bool, out: Path) -> str:
    steps, left = stats["steps"], stats["left_out"]
    judged = steps["good"] + steps["bad"]
    told = [
        f"{stats['answers']} answers of {stats['problems']} problems, {steps['steps']} steps",
        f"{steps['good'] / judged:.1%} good" if judged else "none labelled",
        *([f"{steps['unlabelled']} without a label"] if steps["unlabelled"] and judged else []),
        *([f"{stats['too_long']} prefixes too long"] if stats["too_long"] else []),
        *([f"left out: {' '.join(f'{n} {name}' for name, n in left.items() if n)}"] if any(left.values()) else []),
    ]
    unfinished = f", {stats['unfinished_share']:.1%} unfinished" if stats["rollouts"] else ""
    asked = f"{stats['rollouts']} rollouts{unfinished}"
    if complete and not written:
        return f"already complete: {', '.join(told)}; {asked}: {out}"
    return f"{', '.join(told)}; {asked} ({written} of them new): {out}"


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
