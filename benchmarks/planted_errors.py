"""Arithmetic chains with one planted wrong step: a world in which a step judge can be held against the truth.

A problem is a sum such as ``7 + 5 - 3 = ?``; a solution works it out from left to right, a line a step. In about half
of the solutions one line has a wrong result, and the lines behind it go on from there, right in themselves. As in
PRM800K, lines up to the wrong one are labelled and those behind it are not.

The judge is a small Llama with random weights that reads bytes, or starts from ``--checkpoint``. It is trained by
``tune run prm_nexttok`` as a user would, with the loss of words beside that of labels (``--word-weight``), and measured
on a tenth of the problems, which it never saw. The bar (docs/results.md): the first wrong line found in 90 % of the
wrong solutions.

    python benchmarks/planted_errors.py --out outputs/planted_errors --json planted_errors.json
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tt_reasoning import store
from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.models import build_from_hf
from tt_reasoning.models.weights import save_weights
from tt_reasoning.steps import STEPS
from tt_reasoning.types import Answer, Problem, Sampling, Step

ROOT = Path(__file__).parent.parent
BAR = 0.9
END = "<|end|>"

_SAMPLING = Sampling(model="planted errors", prompt="steps")
_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)

Term = tuple[str, int]


@dataclass(kw_only=True)
class Arguments:
    out: Path
    """Folder of the run; a run that was killed goes on."""
    checkpoint: Path | None = None
    """What the judge starts from, in place of random weights."""
    layers: int = 3
    """Of the Llama with random weights."""
    width: int = 128
    """Of its hidden states."""
    word_weight: float = 1.0
    """Weight of the language-model loss on right solutions."""
    problems: int = 4000
    """Different sums, two solutions each; a tenth is held out."""
    largest_operand: int = 9
    """Largest number that is added or subtracted."""
    largest_result: int = 30
    """Largest result of a line."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 24
    """Problems a step."""
    lr: float = 1e-3
    """Learning rate."""
    dtype: Literal["fp32", "bf16_mixed"] = "fp32"
    """Arithmetic of the training."""
    threads: int = 2
    """Torch threads."""
    seed: int = 0
    """Of the sums, the weights and the order."""
    json: Path | None = None
    """File for the figures."""


def main(args: Arguments) -> str:
    """Write the world, train the judge, read what it found."""
    world = World(largest_operand=args.largest_operand, largest_result=args.largest_result)
    write_chains(args.out / "chains", args.problems, args.seed, world)
    start = args.checkpoint or args.out / "start"
    if args.checkpoint is None:
        write_start(start, args)
    command = [
        sys.executable, "-m", "torchtune._cli.tune", "run", "prm_nexttok", "--config",
        str(ROOT / "configs" / "135M_prm_cpu.yaml"), f"output_dir={args.out / 'judge'}", f"checkpoint={start}",
        "model._component_=tt_reasoning.models.build_from_hf", f"model.path={start}",
        f"dataset.source={args.out / 'chains'}", f"max_steps={args.steps}", f"batch_size={args.batch_size}",
        f"optimizer.lr={args.lr}", "balance_classes=true",
        f"loss.language_model_weight={args.word_weight}", "optimizer.weight_decay=0.01", f"dtype={args.dtype}",
        f"lr_scheduler.num_warmup_steps={args.steps // 10}",
        "evaluation.share=0.1", f"evaluation.every_n_steps={max(1, args.steps // 5)}", "save_every_n_steps=500",
        "keep_checkpoints=1", f"seed={args.seed}",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise UserError(f"the recipe ended with status {status}; its output stands above")
    *_, found = store.read_rows(args.out / "judge" / "evaluations.jsonl")
    if args.json:
        arguments = json.loads(json.dumps(vars(args), default=str))
        store.write_json(args.json, {"arguments": arguments, "bar": BAR, "found": found})
    return (
        f"first wrong line found in {found['found_first_error']:.1%} of {found['solutions_wrong']} wrong solutions "
        f"(bar {BAR:.0%}), none found in {found['found_no_error']:.1%} of {found['solutions_right']} right ones; "
        f"F1 {found['first_error_f1']:.3f}, AUC {found['auc']:.3f}"
    )


def write_start(folder: Path, args: Arguments) -> None:
    """A Hugging Face folder of a small Llama with random weights, whose tokens are bytes."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    store.write_json(folder / "tokenizer_config.json", {"eos_token": END})
    width, heads = args.width, args.width // 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
        "num_hidden_layers": args.layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "hidden_size": width, "intermediate_size": 3 * width,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    store.write_json(folder / "config.json", config)
    torch.manual_seed(args.seed)
    model = build_from_hf(str(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    save_weights(model.state_dict(), folder, folder)


@dataclass(frozen=True, kw_only=True)
class World:
    """What chains look like: how many lines, up to which number all operands and all results go from 0 on.

    ``solutions`` is how many of each problem, ``share_wrong`` how likely each is to have a wrong line.
    """

    num_lines: tuple[int, int] = (3, 6)
    largest_operand: int = 9
    largest_result: int = 30
    solutions: int = 2
    share_wrong: float = 0.5


def write_chains(folder: Path, num: int, seed: int = 0, world: World = World()) -> None:
    """Write ``num`` different problems as a folder of steps; the same arguments write the same records.

    The world must have so many different sums (the default one has millions). Raises UserError when the folder holds
    another run.
    """
    draw = random.Random(seed)
    sums: dict[tuple[int, tuple[Term, ...]], None] = {}
    while len(sums) < num:
        sums[make_sum(draw, world)] = None
    identity = {"num": num, "seed": seed, "world": str(world)}
    with store.open_run(folder, "planted_errors", identity) as out:
        problems, answers, steps = [], [], []
        for start, terms in sums:
            reference = start + sum(_signed(term) for term in terms)
            question = f"{start} {' '.join(f'{sign} {number}' for sign, number in terms)} = ?"
            problem = Problem(source="planted errors", split="train", question=question, reference=str(reference))
            problems.append(problem)
            for index in range(world.solutions):
                lines, wrong = work_out(start, terms, draw, world)
                answer = Answer(
                    id=_SAMPLING.answer_id(problem.id, index), problem_id=problem.id, sample_index=index,
                    text="\n".join(lines), num_tokens=0, finish_reason="stop", sampling=_SAMPLING,
                )  # fmt: skip
                answers.append(answer)
                steps += label(answer, lines, wrong)
        store.write_records(out / PROBLEMS, problems)
        store.write_records(out / ANSWERS, answers)
        store.write_records(out / STEPS, steps)


def make_sum(draw: random.Random, world: World) -> tuple[int, tuple[Term, ...]]:
    """A first number and what is added and subtracted, so that every result lies within the world."""
    value = start = draw.randint(1, world.largest_operand)
    terms: list[Term] = []
    for _ in range(draw.randint(*world.num_lines)):
        number = draw.randint(1, world.largest_operand)
        signs = [sign for sign in "+-" if 0 <= value + _signed((sign, number)) <= world.largest_result]
        terms.append((draw.choice(signs), number))
        value += _signed(terms[-1])
    return start, tuple(terms)


def work_out(start: int, terms: Sequence[Term], draw: random.Random, world: World) -> tuple[list[str], int | None]:
    """The lines of a solution, and which of them is wrong.

    >>> work_out(7, [("+", 5), ("-", 3)], random.Random(2), World(share_wrong=1.0))
    (['7 + 5 = 9', '9 - 3 = 6'], 0)
    """
    if draw.random() < world.share_wrong:
        places = [(number, slip) for number in range(len(terms)) for slip in _SLIPS]
        for wrong, slip in draw.sample(places, len(places)):
            lines, results = _write_lines(start, terms, wrong, slip)
            if min(results) >= 0 and max(results) <= world.largest_result:
                return lines, wrong
    return _write_lines(start, terms)[0], None


def _write_lines(
    start: int, terms: Sequence[Term], wrong: int | None = None, slip: int = 0
) -> tuple[list[str], list[int]]:
    lines, results, value = [], [], start
    for number, term in enumerate(terms):
        result = value + _signed(term) + (slip if number == wrong else 0)
        lines.append(f"{value} {term[0]} {term[1]} = {result}")
        results.append(result)
        value = result
    return lines, results


def label(answer: Answer, lines: Sequence[str], wrong: int | None) -> list[Step]:
    """Right up to the wrong line, wrong there, and nothing behind it."""
    steps, at = [], 0
    for number, line in enumerate(lines):
        rating = 1 if wrong is None or number < wrong else -1 if number == wrong else None
        steps.append(Step(answer_id=answer.id, index=number, start=at, end=at + len(line), rating=rating))
        at += len(line) + 1
    return steps


def _signed(term: Term) -> int:
    sign, number = term
    return number if sign == "+" else -number


if __name__ == "__main__":
    with exit_on_mistake():
        print(main(tyro.cli(Arguments, description=__doc__)))
