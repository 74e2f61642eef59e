"""Collect what a value model learns from (Q#, arXiv 2502.20548): answers left halfway, and what becomes of them.

For every problem and sample the current policy answers (roll-in), the answer is cut behind a token drawn uniformly, the
reference goes on from there unguided (roll-out), and the whole text is graded. In the first round the policy is the
reference itself, in later ones the reference that --value-model steers with one --eta: then engine guided rolls in, and
--engine rolls out. Roll-ins and their verdicts are an ordinary folder of answers; examples.jsonl, which recipe
qsharp_classifier trains on, is written last. After a kill the same command goes on, and ends with the same files.
--shard 2/4 takes every fourth problem: name all finished folders to the recipe. docs/qsharp_data.md says more.

Example: python tools/collect_qsharp.py --ref-model models/smollm2-135m --dataset quickstart --split train --limit 4
    --num-samples 4 --max-new-tokens 64 --rounds-file rounds/demo --out rollouts/demo
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tt_reasoning.aggregation import keep_open
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.engines.options import EngineOptions, GuideOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Draw, begun_chunk_size, keep_problems
from tt_reasoning.grading import DEFAULT_TIMEOUT_S, Fallback, Grader
from tt_reasoning.guidance import find_other_prompt
from tt_reasoning.problems import SOURCES, find_dataset, read_part
from tt_reasoning.prompts import Prompt, default_prompt, load_prompt
from tt_reasoning.qsharp import (
    EXAMPLES,
    TOOL,
    assign_sides,
    draw_roll_ins,
    grade_roll_ins,
    plan_cuts,
    read_sides,
    write_examples,
)
from tt_reasoning.shepherd import continue_prefixes, grade_rollouts
from tt_reasoning.store import open_run, remove_temporaries
from tt_reasoning.tool import check_truncation, require_positive, run_tool
from tt_reasoning.types import Sampling

if TYPE_CHECKING:
    from tt_reasoning.models.tokenizer import ChatTokenizer

GUIDED = "guided"
_MUCH = 0.1  # of the answers cut: then a warning


@dataclass(frozen=True, kw_only=True)
class Arguments:
    ref_model: str
    """The reference: Hugging Face model folder (with --tokenizer: a Hub name, or what the engine takes as a model)."""
    dataset: str
    """Benchmark in tt_reasoning/problems, such as gsm8k; quickstart ships with the package."""
    out: Path
    """Folder of the collection; the same command goes on with it."""
    split: str = "train"
    """Split of the benchmark; of a benchmark with a single one, train is that one: problems are held out here."""
    data_files: str | None = None
    """Local file with the benchmark's rows, in place of the Hub."""
    start: int = 0
    """First problem, counted from 0."""
    end: int | None = None
    """The problem behind the last one; the benchmark's end unless given."""
    limit: int | None = None
    """How many problems from --start on, in place of --end."""
    shard: str | None = None
    """i/n: of these problems the i-th of every n, so that n runs with 1/n to n/n share them."""
    rounds_file: Path | None = None
    """JSON file that remembers which problems are held out ("eval") and which are trained on ("train"), for all rounds
    and shards: made by the first run that names it; later ones read it and add their new problems. Without it problems
    are drawn likewise, by --split-seed, and nothing remembers a change of --eval-share."""
    eval_share: float = 0.1
    """Share of the problems that are held out, drawn by their ids; they are collected too."""
    split_seed: int = 0
    """Seed of that draw; the same in all rounds, whatever their --seed."""
    num_samples: int = 16
    """Roll-ins to each problem, each with one cut."""
    temperature: float = 0.8
    """Of roll-ins and roll-outs."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: int = 1024
    """Most tokens of a roll-in, and of a roll-out beside those of what it goes on from."""
    prompt: str | None = None
    """A prompt of tt_reasoning/prompts.py or a file with one; choice for multiple choice, else answer, unless given."""
    seed: int = 0
    """Seed of the run: each roll-in, cut and roll-out has its own from it. Give every round another."""
    tokenizer: Path | None = None
    """Model folder whose tokens answers are cut at; --ref-model unless given."""
    fallback: Fallback = "none"
    """What counts as the answer of a text that marks none: nothing, or its last number."""
    percent_as_fraction: bool = False
    """Whether 50% is also 0.5, if only one of the two has the sign."""
    chunk_size: int | None = None
    """Problems asked at once, with all their samples; always the same in a folder, in a new one as suits the engine."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()
    guide: Annotated[GuideOptions, tyro.conf.arg(name="")] = GuideOptions()


# What a collection depends on, beside the prompt, the size of a chunk and the engine's own. It holds what one command
# asks for, no more: further problems, samples or rounds are further folders.
_IDENTITY = (
    "ref_model", "dataset", "split", "data_files", "start", "end", "limit", "shard", "eval_share", "split_seed",
    "num_samples", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "fallback", "percent_as_fraction",
)  # fmt: skip


def main(args: Arguments) -> str:
    args = replace(args, dataset=find_dataset(args.dataset))
    _check_numbers(args)
    (guidance,) = _check_one_eta(args).guidances(args.engine)
    roll_in, roll_out = _choose_engines(args.engine)
    for engine in {roll_in, roll_out}:
        engine.check(args.ref_model)
    tokenizer = _load_tokenizer(args)
    if args.prompt is not None:
        load_prompt(args.prompt)
    if args.rounds_file is not None:
        read_sides(args.rounds_file)
    problems = read_part(
        args.dataset, _choose_split(args), data_files=args.data_files, start=args.start, end=args.end,
        limit=args.limit, shard=args.shard,
    )  # fmt: skip
    first = next(problems)  # a mistake shows before a folder is made
    if first.kind == "code":
        raise UserError(f"--dataset {args.dataset} asks for code: a roll-out is graded by its result")
    prompt = load_prompt(args.prompt or default_prompt(first.kind))
    if guidance is not None and (said := find_other_prompt(guidance.value_model, prompt.name)):
        raise UserError(f"{said}; name that one")
    chunk_size = args.chunk_size or begun_chunk_size(args.out) or args.engine.default_chunk_size(args.num_samples)
    sampling = Sampling(
        model=args.ref_model, revision=args.engine.revision, prompt=prompt.name, temperature=args.temperature,
        top_p=args.top_p, top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed,
    )  # fmt: skip
    grading = {"timeout_s": DEFAULT_TIMEOUT_S, "fallback": args.fallback}
    grading |= {"percent_as_fraction": args.percent_as_fraction}
    with open_run(args.out, TOOL, _identify(args, prompt, chunk_size)) as folder:
        remove_temporaries(folder)
        complete = (folder / EXAMPLES).exists()
        kept = keep_problems(folder, chain([first], problems))
        sides = assign_sides((problem.id for problem in kept), args.eval_share, args.split_seed, args.rounds_file)
        with keep_open(partial(roll_out.open, args.ref_model)) as start_engine, Grader(**grading) as grader:
            start_guided = start_engine if roll_in == roll_out else partial(roll_in.open, args.ref_model)
            guided = replace(sampling, guidance=guidance)
            written = draw_roll_ins(kept, guided, args.num_samples, start_guided, prompt, folder, chunk_size)
            grade_roll_ins(kept, grading, grader, folder)
            plan = plan_cuts(open_answers(folder), tokenizer, prompt.stop, args.seed)
            draw = Draw(sampling=sampling, blocks=(1,))
            written += continue_prefixes(plan.asked, draw, start_engine, prompt, folder, chunk_size, "roll out")
            grade_rollouts(plan.cuts, prompt, grader, folder)
        stats = write_examples(plan, sides, prompt.stop, folder)
    _warn(stats, args)
    return _summary(stats, written, complete, args.out)


def _choose_split(args: Arguments) -> str:
    source = SOURCES.get(args.dataset)
    if args.split != "train" or args.data_files or source is None or len(source.splits) != 1:
        return args.split
    return source.splits[0]


def _identify(args: Arguments, prompt: Prompt, chunk_size: int) -> dict[str, object]:
    """What the collection depends on, for its manifest."""
    identity = {name: getattr(args, name) for name in _IDENTITY}
    identity["rounds_file"] = args.rounds_file and str(args.rounds_file)
    identity["tokenizer"] = args.tokenizer and str(args.tokenizer)
    identity |= {"prompt": prompt.name, "template": prompt.template(), "chunk_size": chunk_size}
    identity |= args.engine.identity()
    if args.engine.value_model is not None:
        identity |= asdict(args.guide)
    return identity


def _check_numbers(args: Arguments) -> None:
    require_positive(args, "num_samples", "max_new_tokens", "chunk_size")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on")
    if args.temperature == 0 and args.num_samples > 1:
        told = f"{args.num_samples} times the same roll-in"
        raise UserError(f"--temperature 0 gives {told}; raise it, or set --num-samples 1")
    check_truncation(args.top_p, args.top_k)
    if not 0 <= args.eval_share < 1:
        raise UserError(f"--eval-share {args.eval_share:g} is not from 0 to below 1")


def _check_one_eta(args: Arguments) -> GuideOptions:
    if len(args.guide.eta) > 1:
        raise UserError(f"--eta {' '.join(f'{eta:g}' for eta in args.guide.eta)}: a round is steered by one; give one")
    return args.guide


def _choose_engines(engine: EngineOptions) -> tuple[EngineOptions, EngineOptions]:
    """What rolls in and what rolls out: the same, unless a value model steers and --engine is another than guided."""
    if engine.value_model is None or engine.name == GUIDED:
        return engine, engine
    guided = EngineOptions(
        name=GUIDED, value_model=engine.value_model, dtype=engine.dtype, max_model_len=engine.max_model_len
    )
    return guided, replace(engine, value_model=None)


def _load_tokenizer(args: Arguments) -> ChatTokenizer:
    folder = args.tokenizer or Path(args.ref_model)
    if args.tokenizer is None and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"--ref-model {args.ref_model} is no folder with a tokenizer.json, at whose tokens answers are cut: fetch "
            "the model with tools/get_model.py, or name a folder of its tokenizer with --tokenizer"
        )
    from tt_reasoning.models.tokenizer import ChatTokenizer  # torch is not loaded before a mistake shows

    return ChatTokenizer(folder)


def _warn(stats: dict, args: Arguments) -> None:
    for name, count, total in (
        ("roll-ins", stats["roll_ins_unfinished"], stats["roll_ins"]),
        ("roll-outs", stats["unfinished"], stats["rollouts"]),
    ):
        if total and count / total >= _MUCH:
            _say(
                f"{count / total:.1%} of {total} {name} were cut at --max-new-tokens {args.max_new_tokens}, most of "
                "them before their result, and count as wrong; raise it, with a new --out"
            )
    train = stats["train"]
    if train["correct"] in (0, 1):
        _say(
            f"all {train['examples']} examples to train on are {'right' if train['correct'] else 'wrong'}: nothing to "
            "learn from; take other problems or another reference"
        )
    for side, use in (("train", "to train on"), ("eval", "to hold out")):
        if not stats[side]["problems"]:
            _say(f"the draw left no problem {use}; take more problems, or another --eval-share with a new --out")


def _say(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr)


def _summary(stats: dict, written: int, complete: bool, out: Path) -> str:
    train, held = stats["train"], stats["eval"]
    left = stats["left_out"] | {"not judged": stats["not_judged"], "too long": stats["too_long"]}
    told = [
        f"{train['examples']} examples to train on, {_percent(train['correct'])}, of {train['problems']} problems",
        *([f"{train['no_variation']} of them without variation"] if train["no_variation"] else []),
        f"{held['examples']} held out of {held['problems']}",
        *([f"left out: {' '.join(f'{n} {name}' for name, n in left.items() if n)}"] if any(left.values()) else []),
    ]
    unfinished = f", {stats['unfinished_share']:.1%} unfinished" if stats["rollouts"] else ""
    drawn = f"{stats['roll_ins']} roll-ins ({stats['whole']} kept whole), {stats['rollouts']} roll-outs{unfinished}"
    if complete and not written:
        return f"already complete: {', '.join(told)}; {drawn}: {out}"
    return f"{', '.join(told)}; {drawn} ({written} answers new): {out}"


def _percent(share: float | None) -> str:
    return "none judged" if share is None else f"{share:.1%} right"


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
