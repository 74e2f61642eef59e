"""Building answer sets, tokenizer included: tools/concat_answers.py against the SSA reference's algorithm.

Both sides get the same questions with the same answers (100 to 300 tokens each, made here from a seed), the same
tokenizer.json and every core of the machine, each in a process of its own, from start to exit:

- ``ours``: the tool itself, from the folder that generate_answers and check_answers leave to sets.jsonl;
- ``reference``: the algorithm of the SSA reference's constructTrainData.py, written anew from its description: every
  file of answers in memory, results read out of the texts for the none-filter, one tokenizer call a text, membership
  tested in the list of the indices kept (once for the texts, once for their lengths), ``datasets`` to write. Its second
  pass of the tokenizer is timed apart, so that both ratios are there. It has the fast tokenizer; the published script
  asks for the slow one, written in Python.

Both keep the same questions, which is checked, and so are the lengths. The bar (docs/performance.md): ratio 20 at 20,000
questions with 5 answers, memory flat in the number of questions.

    python benchmarks/answer_sets.py --tokenizer models/smollm2-135m --json answer_sets.json
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.errors import exit_on_mistake
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 4000
SAMPLING = Sampling(model="made-up", prompt="answer", temperature=0.5, top_k=40)

SYLLABLES = "ba cor del fen gra hol in jas kel lu mar nor os pel qui ros sto tan ul ver win yor zan thi ach ment".split()
OPENINGS = (
    "To determine how many {thing} {name} has, we need to go through the problem step by step.",
    "Let's break this down step by step.",
    "First, let's find out what is given: {name} has {a} {thing} and {b} more {other} arrive at the {place}.",
    "We are told that {name} {verb} {a} {thing} every day, and that each of them costs ${money}.",
    "Let ${letter}$ be the number of {thing}. The condition says that ${formula} = {sum}$.",
)
STEPS = (
    "Calculate the total number of {thing}:\n   \\[\n   {a} \\times {b} = {product}\n   \\]",
    "{name} {verb} {a} {thing} at the {place}, so there are {a} + {b} = {sum} {other} altogether.",
    "The cost is ${money} for each of the {a} {thing}, which makes {a} * {money} = ${total} in the end.",
    "Subtract what was {verb}: ${sum} - {b} = {a}$ {thing} remain with {name}.",
    "This can be written as ${formula} \\approx {quotient}$, so about {percent}% of the {thing} are left.",
    "**Half of the {thing}** go to the {place}: ${product}/2={half}$. Therefore, {name} keeps the {other}.",
    "Since ${formula} = ({letter} - {a})({letter} - {b})$, the solutions are ${letter}={a}$ and ${letter}={b}$.",
    "Next, we multiply by the number of weeks, because {name} {verb} {thing} for {b} weeks: {a}x{b}={product}.",
    "**{Thing}**: we simplify $${formula}={formula2}$$ and get ${formula3}$, which {verb} the {other}.",
)
ENDINGS = (
    "\n\nTherefore, the number of {thing} is $\\boxed{{{result}}}$.\n\nThe Answer is: {result}",
    "\n\nSo {name} has {result} {thing} at the end.\nThe Answer is: {result}",
    "\nThe Answer is: {result}",
)


@dataclass(kw_only=True)
class Arguments:
    tokenizer: Path = Path("models/smollm2-135m")
    """Folder with a tokenizer.json, for both sides."""
    questions: int = 20_000
    """How many."""
    answers: int = 5
    """Answers to each, all of them in its set."""
    repeats: int = 1
    """Runs of each side, in turn; the median counts."""
    json: Path | None = None
    """Write the figures here too."""
    folder: Path | None = None
    """Where the data goes; a temporary folder unless given."""
    reference_side: bool = False
    """Internal: be the reference's side, on the data in the folder."""


def draw_word(rng: random.Random) -> str:
    """A made-up word of one to four syllables; short ones come often, as in real texts."""
    return "".join(rng.choices(SYLLABLES, k=1 + int(4 * rng.random() ** 3)))


def draw_formula(rng: random.Random) -> str:
    letter, a, b = rng.choice("xyzabnkt"), rng.randint(2, 40), rng.randint(2, 9)
    parts = (
        f"{a}{letter}", f"{letter}^{b}", f"\\frac{{{a}}}{{{b}{letter}}}", f"\\sqrt{{{letter}+{a}}}", f"({letter}-{a})^{b}", str(a),
    )  # fmt: skip
    return rng.choice("+-").join(rng.choices(parts, k=rng.choice((1, 1, 2, 2, 3))))


def draw_words(rng: random.Random) -> dict[str, Any]:
    """What fills the templates: small numbers often, large ones seldom, as in word problems."""
    a, b = (int(10 ** rng.uniform(0.3, 3.3)) for _ in range(2))
    thing = draw_word(rng)
    return {
        "name": draw_word(rng).title(), "thing": thing, "Thing": thing.title(), "other": draw_word(rng),
        "place": draw_word(rng), "verb": draw_word(rng) + "s", "letter": rng.choice("xyzabnkt"),
        "formula": draw_formula(rng), "formula2": draw_formula(rng), "formula3": draw_formula(rng),
        "a": a, "b": b, "sum": a + b, "product": a * b, "half": a * b / 2, "quotient": round(a / b, 2),
        "percent": round(100 * rng.random(), 1), "money": f"{rng.uniform(0.5, 90):.2f}",
        "total": f"{a * rng.uniform(0.5, 90):,.2f}", "result": rng.choice((a, b, a + b, a * b)),
    }  # fmt: skip


def draw_question(rng: random.Random) -> str:
    parts = [rng.choice(STEPS[1:3] + STEPS[7:]).format(**draw_words(rng)) for _ in range(rng.randint(1, 3))]
    return " ".join(parts) + " How many {thing} does {name} have at the {place}?".format(**draw_words(rng))


def draw_answer(rng: random.Random) -> str:
    """A solution of 2 to 6 steps in the manner of an instruct model; 4 in 100 end without a result."""
    words = draw_words(rng)
    text = rng.choice(OPENINGS).format(**words)
    for number in range(1, rng.randint(3, 6)):
        text += f"\n\n{number}. " + rng.choice(STEPS).format(**draw_words(rng) | {"name": words["name"]})
    return text + (rng.choice(ENDINGS).format(**words) if rng.random() < 0.96 else "")


def draw_problems(count: int, num_answers: int) -> Iterator[tuple[Problem, list[str]]]:
    for number in range(count):
        rng = random.Random(number)
        problem = Problem(source="made-up", split="train", question=draw_question(rng), reference=str(number))
        yield problem, [draw_answer(rng) for _ in range(num_answers)]
