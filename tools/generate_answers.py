"""Sample several answers to each problem of a benchmark: the raw material of votes, answer sets and judges.

The run is repeatable from its seed and can be killed at any moment: the same command goes on with what is
missing, and ends with the same file. A higher --num-samples or --limit adds to a finished folder. Writes
problems.jsonl, answers.jsonl and manifest.json; tools/check_answers.py grades them. With --engine openai a server
samples (a key in OPENAI_API_KEY or --keys FILE); a request that fails is counted, never written, and asked again by
the same command.

Example: python tools/generate_answers.py --model models/smollm2-135m --dataset gsm8k --limit 8 --out answers/demo
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import tyro
from tqdm import tqdm

from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts, check_complete, generate_answers, keep_problems
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import open_run
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Sampling


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
    limit: int | None = None
    """How many problems; all unless given."""
    start: int = 0
    """First problem."""
    num_samples: int = 4
    """Answers to each problem."""
    prompt: str = "answer"
    """Name of a prompt in tt_reasoning/prompts.py."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is no limit."""
    max_new_tokens: int = 1024
    """Most tokens of an answer."""
    seed: int = 0
    """Seed of the run; each answer has its own from it."""
    chunk_size: int = 64
    """Problems asked at once; answers reach the disk after each chunk."""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


# May change when the command is given again: how many answers, and what no answer depends on.
_NOT_IDENTITY = ("limit", "num_samples", "out", "engine")


def main(args: Arguments) -> str:
    _check_numbers(args)
    prompt = get_prompt(args.prompt)
    args.engine.check(args.model)
    problems = load_problems(
        args.dataset, args.split, data_files=args.data_files, limit=args.limit, start=args.start
    )
    sampling = Sampling(
        model=args.model,
        revision=args.engine.revision,
        prompt=args.prompt,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )

    identity = {name: value for name, value in asdict(args).items() if name not in _NOT_IDENTITY}
    identity |= args.engine.identity()
    with open_run(args.out, "generate_answers", identity) as folder:
        keep_problems(folder, problems)
        with tqdm(total=len(problems) * args.num_samples, unit="answer") as bar:

            def show(counts: Counts) -> None:
                bar.initial = counts.resumed
                bar.n = counts.resumed + counts.written
                bar.set_postfix_str(f"{counts.resumed} resumed")

            start_engine = partial(args.engine.open, args.model)
            counts = generate_answers(
                problems, sampling, args.num_samples, start_engine, prompt, folder, args.chunk_size, show
            )
    if counts.missing and counts.written:
        print(_summary(counts, args.out))
    check_complete(counts)
    return _summary(counts, args.out)


def _check_numbers(args: Arguments) -> None:
    for name in ("num_samples", "max_new_tokens", "chunk_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if args.temperature < 0:
        raise UserError(f"--temperature {args.temperature} is negative; 0 is greedy")
    if args.temperature == 0 and args.num_samples > 1:
        raise UserError(
            f"--temperature 0 is greedy and gives --num-samples {args.num_samples} equal answers; "
            "ask for one, or raise the temperature"
        )
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p} is not above 0 and at most 1")
    if args.top_k < 0:
        raise UserError(f"--top-k {args.top_k} is negative; 0 is no limit")


def _summary(counts: Counts, out: str) -> str:
    if not counts.written:
        return f"already complete: {counts.resumed} answers in {out}"
    resumed = f" ({counts.resumed} were there)" if counts.resumed else ""
    return (
        f"{counts.written} answers written{resumed}, {counts.cut / counts.written:.1%} cut at the token limit, "
        f"{counts.tokens} tokens, {counts.tokens / counts.seconds:.0f} tokens/s: {out}"
    )


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
