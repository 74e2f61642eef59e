"""Answer sets as what a model reads and what grades it: one row a set, from a folder, a table or the Hub. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tt_reasoning.answer_sets.building import SETS
from tt_reasoning.answer_sets.tables import is_table, read_rows
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
    """The rows of a folder of ``concat_answers``, of a table of sets, or of a Hub dataset, in their order.

    Args:
        source: a folder of ``concat_answers``; a table (a Parquet file, a folder with some, or one that ``datasets``
            saved); or ``hub:NAME``. Tables and datasets have the columns ``question``, which is the whole text with
            the proposed answers, and ``answer``, such as ``hub:user074/concat_cleaned_gsm8k_math_5``; and
            ``problem_id`` and ``kind`` where ``concat_answers`` wrote them (else the kind is ``math``).
        split: of a table or a Hub dataset.
        argument: the name under which the user gave the source, for messages.

    Raises:
        UserError: no such folder, file or dataset, a column or split that is missing, or a malformed line.

    A real row of ``sets.jsonl`` (shortened): ``{"id": "a1b2...", "problem": {"question": "Tom has 3 apples ...",
    "reference": "7", ...}, "answers": [{"text": "3 + 4 = 7. The Answer is: 7", ...}, ...], "order_seed": 0}``
    """
    given, file = f"{argument}={source}", Path(source) / SETS
    if source.startswith("hub:"):
        table = load_hub_dataset(source.removeprefix("hub:"), split=split)
        return (_table_row(row, given) for row in table)
    if file.exists():
        return map(_set_row, read_records(file, AnswerSet))
    if is_table(source):
        return (_table_row(row, given) for row in read_rows(source, split))
    raise UserError(f"{given} is no folder of answer sets; make one with tools/concat_answers.py")


def _set_row(answer_set: AnswerSet) -> SetRow:
    problem = answer_set.problem
    text = answer_set_text(problem.question, [answer.text for answer in answer_set.answers])
    return SetRow(problem.id, text, problem.reference, problem.kind)


def _table_row(row: dict[str, Any], given: str) -> SetRow:
    for column in ("question", "answer"):
        if column not in row:
            raise UserError(f"{given} has no column '{column}', only {list(row)}")
    text = row["question"]
    return SetRow(row.get("problem_id") or problem_id(text), text, str(row["answer"]), row.get("kind") or "math")
