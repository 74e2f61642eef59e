"""Answer sets as what a model reads and what grades it: one row a set, from a folder or from the Hub. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tt_reasoning.errors import UserError
from tt_reasoning.hub import load_hub_dataset
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.store import read_records
from tt_reasoning.types import AnswerSet, Kind, problem_id


class SetRow(NamedTuple):
    """A set: ``text`` is the question with its proposed answers (``answer_set_text``), ``reference`` the gold."""

    problem_id: str
    text: str
    reference: str
    kind: Kind


def read_set_rows(source: str, split: str = "train", *, argument: str) -> Iterator[SetRow]:
    """The rows of a folder of ``concat_answers`` or, as ``hub:NAME``, of a Hub dataset, in their order.

    Args:
        source: a Hub dataset (or a local folder of its Parquet files) has the columns ``question``, which is the
            whole text with the proposed answers, and ``answer``, such as
            ``hub:user074/concat_cleaned_gsm8k_math_5``; its rows are all taken to be of kind ``math``.
        split: of a Hub dataset.
        argument: the name under which the user gave the source, for messages.

    Raises:
        UserError: no such folder or dataset, a column that is missing, or a malformed line.

    A real row of ``sets.jsonl`` (shortened): ``{"id": "a1b2...", "problem": {"question": "Tom has 3 apples ...",
    "reference": "7", ...}, "answers": [{"text": "3 + 4 = 7. The Answer is: 7", ...}, ...], "order_seed": 0}``
    """
    if source.startswith("hub:"):
        return _read_hub(source.removeprefix("hub:"), split, f"{argument}={source}")
    file = Path(source) / "sets.jsonl"
    if not file.exists():
        raise UserError(f"{argument}={source} is no folder of answer sets; make one with tools/concat_answers.py")
    return map(_set_row, read_records(file, AnswerSet))


def _set_row(answer_set: AnswerSet) -> SetRow:
    problem = answer_set.problem
    text = answer_set_text(problem.question, [answer.text for answer in answer_set.answers])
    return SetRow(problem.id, text, problem.reference, problem.kind)


def _read_hub(name: str, split: str, given: str) -> Iterator[SetRow]:
    table = load_hub_dataset(name, split=split)
    missing = {"question", "answer"} - set(table.column_names)
    if missing:
        raise UserError(f"{given} has no column '{min(missing)}', only {table.column_names}")
    return (SetRow(problem_id(row["question"]), row["question"], str(row["answer"]), "math") for row in table)
