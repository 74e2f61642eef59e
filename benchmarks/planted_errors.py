"""Arithmetic chains with one planted wrong step: a world in which a step judge can be held against the truth.

A problem is a sum such as ``7 + 5 - 3 = ?``; a solution works it out from left to right, a line a step. In about half
of the solutions one line has a wrong result, and the lines behind it go on from there, right in themselves. As in
PRM800K, lines up to the wrong one are labelled and those behind it are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tt_reasoning import store
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.steps import STEPS
from tt_reasoning.types import Answer, Problem, Sampling, Step

TRAIN, HELD_OUT = "train", "held_out"  # folders of steps without a common problem
_SAMPLING = Sampling(model="planted errors", prompt="steps")
_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)

Term = tuple[str, int]


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


def write_chains(folder: Path, num: int, seed: int = 0, held_out: int = 200, world: World = World()) -> None:
    """Write ``folder/train`` with ``num`` problems and ``folder/held_out`` with others, as folders of steps.

    The same arguments write the same records. The world must have so many different sums (the default one has
    millions). Raises UserError when a folder holds another run.
    """
    draw = random.Random(seed)
    sums: dict[tuple[int, tuple[Term, ...]], None] = {}
    while len(sums) < num + held_out:
        sums[make_sum(draw, world)] = None
    for name, chosen in ((TRAIN, list(sums)[:num]), (HELD_OUT, list(sums)[num:])):
        identity = {"num": num, "seed": seed, "held_out": held_out, "world": str(world)}
        with store.open_run(folder / name, "planted_errors", identity) as out:
            problems, answers, steps = [], [], []
            for start, terms in chosen:
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


def work_out(
    start: int, terms: Sequence[Term], draw: random.Random, world: World
) -> tuple[list[str], int | None]:
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
