"""Scoring with a step judge: all answers to a question in one row against a row for each.

The same scorer (tt_reasoning.judges.native), weights, tokens, places read, dtype and threads on every side:

- ``shared``: the answers to a question behind the question computed once, in rows of ``--batch-tokens``;
- ``row_each``: a row and a forward pass an answer, each with its own copy of the question;
- ``unshared``: rows of ``--batch-tokens`` in which every answer has its own copy of the question, for information.

Scores have to be equal up to rounding: the largest difference is printed. Time is the median of interleaved repeats.
The bar (docs/performance.md): time_ratio (row_each / shared) 2.

    python benchmarks/prm_scoring.py --json prm_scoring.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from grpo_update import MODELS, seconds_of
from tqdm import tqdm

from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.judges.formats import Layout
from tt_reasoning.judges.native import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, LabelReadout, Scores, score_layouts
from tt_reasoning.store import write_json
from tt_reasoning.training import pick_dtype

SIDES = ("shared", "row_each", "unshared")


@dataclass(kw_only=True)
class Arguments:
    model: Literal["smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b"] = "smollm2-135m"
    """Shape of the judge; the weights are random, which costs the same."""
    prompt: int = 300
    """Tokens of a question as the judge is shown it."""
    answers: int = 8
    """Answers to each question."""
    completion: int = 128
    """Tokens of each."""
    steps: int = 8
    """Steps of each, evenly long: a score for each."""
    questions: int = 3
    """Questions scored in one call."""
    batch_tokens: int | None = None
    """Tokens of a row, as for rank_answers: 4096 on a CPU and 16384 on a GPU unless given."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and arithmetic."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where."""
    repeats: int = 3
    """Timed calls of each side, in turn, after one that is not counted."""
    threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    json: Path | None = None
    """Write the figures here too."""


def draw_questions(args: Arguments) -> list[list[Layout]]:
    """Random tokens; the last token of every step is read."""
    reads = [args.prompt + args.completion * (step + 1) // args.steps - 1 for step in range(args.steps)]
    questions = []
    for _ in range(args.questions):
        prompt = torch.randint(0, 40_000, (args.prompt,)).tolist()
        tails = torch.randint(0, 40_000, (args.answers, args.completion)).tolist()
        questions.append([Layout(prompt + tail, args.prompt, reads) for tail in tails])
    return questions


def flatten(scores: Scores) -> list[float]:
    """All scores in order, however they were asked for."""
    return [score for question in scores for answer in question for score in answer]


def measure(args: Arguments) -> dict[str, Any]:
    """The figures of all sides."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    with device:
        model = MODELS[args.model]().to(pick_dtype(args.dtype)).eval()
    batch_tokens = args.batch_tokens or (GPU_BATCH_TOKENS if args.device == "cuda" else CPU_BATCH_TOKENS)
    questions, read = draw_questions(args), LabelReadout(good=10, bad=12)
    alone = [[layout] for of_question in questions for layout in of_question]

    def score(asked: Sequence[Sequence[Layout]], row: int) -> Callable[[], Scores]:
        return lambda: score_layouts(model, read, asked, device, row)

    runs = {"shared": score(questions, batch_tokens), "row_each": score(alone, 1)}
    runs["unshared"] = score(alone, batch_tokens)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, list[float]] = {}
    for repeat in tqdm(range(args.repeats + 1), desc="calls of each side"):
        for side in SIDES:
            taken, scores = seconds_of(runs[side], device)
            found[side] = flatten(scores)
            if repeat:
                seconds[side].append(taken)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    count = args.questions * args.answers
    tokens = {"shared": args.questions * (args.prompt + args.answers * args.completion)}
    tokens["row_each"] = tokens["unshared"] = count * (args.prompt + args.completion)
    differences = [abs(a - b) for a, b in zip(found["shared"], found["row_each"], strict=True)]
    return {
        "model": args.model,
        "shape": {name: getattr(args, name) for name in ("questions", "answers", "prompt", "completion", "steps")},
        "batch_tokens": batch_tokens,
        "tokens": tokens,
        "seconds": seconds,
        "median_seconds": medians,
        "answers_per_s": {side: count / median for side, median in medians.items()},
        "scores": {"count": len(differences), "spread": statistics.pstdev(found["shared"])},
        "max_difference": max(differences),
        "token_ratio": tokens["row_each"] / tokens["shared"],
        "time_ratio": medians["row_each"] / medians["shared"],
        "time_ratio_unshared": medians["unshared"] / medians["shared"],
    }


def main(args: Arguments) -> None:
    if not 1 <= args.steps <= args.completion:
        raise UserError(f"--steps {args.steps} is not between 1 and --completion {args.completion}")
    if args.threads:
        torch.set_num_threads(args.threads)
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    figures = {"dtype": args.dtype, "device": place, **measure(args)}
    for side in SIDES:
        print(
            f"{side:9} {figures['median_seconds'][side]:8.2f} s {figures['answers_per_s'][side]:8.1f} answers/s "
            f"{figures['tokens'][side]:8} tokens"
        )
    print(
        f"row each / shared: {figures['time_ratio']:.2f}x (tokens {figures['token_ratio']:.2f}x); unshared / shared: "
        f"{figures['time_ratio_unshared']:.2f}x; largest difference of {figures['scores']['count']} scores "
        f"{figures['max_difference']:.1e} (their spread {figures['scores']['spread']:.1e})"
    )
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
