"""What GRPO trains on: prompts with the reference that grades their completions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from tt_reasoning.errors import UserError
from tt_reasoning.hub import load_hub_dataset
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import Prompt, answer_set_text, get_prompt
from tt_reasoning.store import read_records
from tt_reasoning.types import AnswerSet, Kind, problem_id

Row = tuple[str, str, str, Kind]  # problem id, question, reference, kind


@dataclass(frozen=True, kw_only=True)
class RLExample:
    """One prompt, tokenized, with what grades its completions."""

    problem_id: str
    prompt_tokens: list[int]
    reference: str
    kind: Kind


class RLDataset(Dataset):
    """Examples in order, the prompt they were rendered with, and how many were too long.

    Raises:
        UserError: nothing is left to train on.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        tokenizer: ChatTokenizer,
        prompt: Prompt,
        max_prompt_tokens: int,
        source: str,
    ) -> None:
        self.prompt, self.num_too_long = prompt, 0
        self.examples: list[RLExample] = []
        for identity, question, reference, kind in rows:
            tokens = tokenizer.encode_prompt(prompt.render(question))
            if len(tokens) > max_prompt_tokens:
                self.num_too_long += 1
                continue
            self.examples.append(
                RLExample(problem_id=identity, prompt_tokens=tokens, reference=reference, kind=kind)
            )
        if not self.examples:
            raise UserError(
                f"{source} gives nothing to train on: it is empty, or all of it "
                f"({self.num_too_long} prompts) is above max_prompt_tokens={max_prompt_tokens}"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> RLExample:
        return self.examples[index]


def ssa_dataset(
    tokenizer: ChatTokenizer, source: str, prompt: str = "ssa", max_prompt_tokens: int = 4096, split: str = "train"
) -> RLDataset:
    """Answer sets for the aggregator.

    Args:
        source: a folder of ``concat_answers``, or ``hub:NAME`` for a Hub dataset with the columns
            ``question`` (the text the aggregator reads) and ``answer``, such as
            ``hub:user074/concat_cleaned_gsm8k_math_5``.
        prompt: a name of ``tt_reasoning.prompts``.
        max_prompt_tokens: longer prompts are left out and counted (``num_too_long``).
        split: of a Hub dataset.

    Raises:
        UserError: no such folder or dataset, or nothing to train on.

    A real row (``sets.jsonl``, shortened): ``{"id": "a1b2...", "problem": {"question": "Tom has 3 apples ...",
    "reference": "7", ...}, "answers": [{"text": "3 + 4 = 7. The Answer is: 7", ...}, ...], "order_seed": 0}``
    """
    template = get_prompt(prompt)
    if source.startswith("hub:"):
        rows = _hub_rows(source.removeprefix("hub:"), split)
    else:
        file = Path(source) / "sets.jsonl"
        if not file.exists():
            raise UserError(
                f"dataset.source={source} is no folder of answer sets; make one with tools/concat_answers.py"
            )
        rows = (_set_row(answer_set) for answer_set in read_records(file, AnswerSet))
    return RLDataset(rows, tokenizer, template, max_prompt_tokens, f"dataset.source={source}")


def _set_row(answer_set: AnswerSet) -> Row:
    problem = answer_set.problem
    text = answer_set_text(problem.question, [answer.text for answer in answer_set.answers])
    return problem.id, text, problem.reference, problem.kind


def _hub_rows(name: str, split: str) -> Iterable[Row]:
    table = load_hub_dataset(name, split=split)
    missing = {"question", "answer"} - set(table.column_names)
    if missing:
        raise UserError(f"dataset.source=hub:{name} has no column '{missing.pop()}', only {table.column_names}")
    return ((problem_id(row["question"]), row["question"], str(row["answer"]), "math") for row in table)


def problem_dataset(
    tokenizer: ChatTokenizer,
    source: str,
    split: str = "train",
    data_files: str | None = None,
    limit: int | None = None,
    prompt: str = "answer",
    max_prompt_tokens: int = 2048,
) -> RLDataset:
    """Plain problems: GRPO on single answers instead of answer sets.

    Args:
        source: a name of ``tt_reasoning.problems.SOURCES``, such as ``gsm8k``.
        data_files: a local file in place of the Hub.
    """
    rows = (
        (p.id, p.question, p.reference, p.kind)
        for p in load_problems(source, split, data_files=data_files, limit=limit)
    )
    return RLDataset(rows, tokenizer, get_prompt(prompt), max_prompt_tokens, f"dataset.source={source}")
