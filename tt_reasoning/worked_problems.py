"""Problems with a solution worked out, in a drawn order: what the stages of the GSM8K study train on.

Prep, full SFT and GRPO have to see comparable questions, so one order is drawn for all of them, from the seed and the
problems' ids alone: neither the file's order nor what else is in it matters. A stage takes a slice:

- the first ``num_samples``, so that the 256 problems of one run are among the 512 of the next;
- or, for the prep stage, the last ones (``from_end``); the others leave those alone (``held_back``).

A solution is the benchmark's own (``read_worked``), or one that a trained model wrote (``read_traces``): one JSON
object a line, ``{"question": "...", "answer": "<reasoning>\\n\\n#### 42"}``, the form of GSM8K's own file.

    tune run lora_finetune_single_device --config configs/135M_asdiv_full_sft_cpu.yaml dataset.num_samples=256

No torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tt_reasoning.errors import UserError
from tt_reasoning.problems import read_file, read_solutions
from tt_reasoning.problems.gsm8k import drop_calculator_marks
from tt_reasoning.types import Problem, seed_of
from tt_reasoning.working_out import write_response

Item = TypeVar("Item")


class WorkedProblem(NamedTuple):
    """A problem with a solution to learn: the lines that lead to the answer, and the answer as it is written there."""

    problem: Problem
    reasoning: str
    answer: str


def read_worked(dataset: str, split: str, *, data_files: str | None = None) -> list[WorkedProblem]:
    """The problems that have a worked solution of the benchmark's own, in its order, without calculator marks.

    How many have none, or state the answer and nothing else, is printed.

    Raises:
        UserError: as ``problems.read_solutions``.
    """
    worked, bare = [], 0
    for problem, solution in read_solutions(dataset, split, data_files=data_files):
        reasoning, _, _ = solution.rpartition("\n")  # the last line states the answer
        if reasoning:
            worked.append(WorkedProblem(problem, reasoning, problem.reference))
        else:
            bare += 1
    if bare:
        print(f"{dataset}: problems left out because their solution is the answer alone: {bare}", file=sys.stderr)
    if not worked:
        raise UserError(f"{dataset}: the solutions of all {bare} problems are the answer alone")
    return worked


def trace_row(question: str, reasoning: str, answer: str) -> dict[str, str]:
    """A line of a traces file.

    >>> trace_row("2 + 1?", "2 + 1 = 3", "3")
    {'question': '2 + 1?', 'answer': '2 + 1 = 3\\n\\n#### 3'}
    """
    return {"question": question, "answer": f"{reasoning.strip()}\n\n#### {answer.strip()}"}


def read_traces(file: str) -> list[WorkedProblem]:
    """The rows of a traces file, in its order; GSM8K's own file is one, and its calculator marks go.

    Raises:
        UserError: no such file, no rows, or a row without its fields, without ``####``, with nothing before or behind
            it, with a tag of the response's form in it, or with an earlier row's question; file and line are named.
    """
    traces: list[WorkedProblem] = []
    found: dict[str, str] = {}
    for where, row in read_file(Path(file), "traces_file"):
        for field in ("question", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"{where}: no text under '{field}'")
        reasoning, mark, answer = drop_calculator_marks(row["answer"]).rpartition("####")
        if not mark:
            raise UserError(f"{where}: 'answer' has no '####' before the final answer")
        try:
            write_response(reasoning, answer)
        except ValueError as error:
            raise UserError(f"{where}: 'answer': {str(error).replace('solution', 'final answer')}") from None
        problem = Problem(source="traces", split="train", question=row["question"].strip(), reference=answer.strip())
        if problem.id in found:
            raise UserError(f"{where}: its question is that of {found[problem.id]}; keep one of the two")
        found[problem.id] = where
        traces.append(WorkedProblem(problem, reasoning.strip(), answer.strip()))
    if not traces:
        raise UserError(f"traces_file {file}: it is empty")
    return traces


def replace_solutions(
    worked: Sequence[WorkedProblem], traces: Sequence[WorkedProblem], file: str
) -> list[WorkedProblem]:
    """The same problems, each with the solution of its trace; they are joined by the question.

    Args:
        file: where the traces come from, for an error.

    Raises:
        UserError: a problem without a trace.
    """
    by_id: Mapping[str, WorkedProblem] = {trace.problem.id: trace for trace in traces}
    missing = [one.problem.question for one in worked if one.problem.id not in by_id]
    if missing:
        raise UserError(
            f"{file} has no trace for {len(missing)} of the {len(worked)} problems of this slice, such as "
            f"{missing[0][:60]!r}; lower num_samples, or set source=null to train on the file as it is"
        )
    return [by_id[one.problem.id]._replace(problem=one.problem) for one in worked]


def draw_slice(
    items: Sequence[Item],
    id_of: Callable[[Item], str],
    where: str,
    *,
    num_samples: int | None = None,
    held_back: int = 0,
    from_end: bool = False,
    seed: int = 0,
) -> list[Item]:
    """A stage's part of the order that the seed draws.

    Args:
        id_of: the problem's id: with the seed it decides the place.
        where: what the items are, for an error.
        num_samples: how many; None is all that there are.
        held_back: so many at the end of the order are another stage's.
        from_end: the last ``num_samples`` instead of the first.

    Raises:
        UserError: a size that is no whole number, below 1 or above what there is, or ``from_end`` with ``held_back``.

    >>> names = ["a", "b", "c", "d", "e"]
    >>> draw_slice(names, str, "names", num_samples=3), draw_slice(names[::-1], str, "names", num_samples=2)
    (['e', 'd', 'b'], ['e', 'd'])
    >>> draw_slice(names, str, "names", num_samples=2, from_end=True), draw_slice(names, str, "names", held_back=2)
    (['c', 'a'], ['e', 'd', 'b'])
    """
    for name, value, least in (("num_samples", num_samples, 1), ("held_back", held_back, 0)):
        if value is not None and type(value) is not int:
            raise UserError(f"{name}={value!r}: wanted a whole number")
        if value is not None and value < least:
            raise UserError(f"{name}={value} is below {least}")
    if from_end and held_back:
        raise UserError(f"from_end=true takes what held_back={held_back} leaves alone; give one of the two")
    order = sorted(items, key=lambda item: (seed_of(seed, id_of(item)), id_of(item)))
    count = len(order) - held_back
    if count < 1:
        raise UserError(f"held_back={held_back} leaves none of the {len(order)} of {where}; lower it")
    if num_samples is not None and num_samples > count:
        left = f"the {count} that held_back={held_back} leaves of {where}" if held_back else f"the {count} of {where}"
        raise UserError(f"num_samples={num_samples} is above {left}; lower it")
    size = count if num_samples is None else num_samples
    return order[-size:] if from_end else order[:size]
