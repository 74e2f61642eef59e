"""Prompts with the response to learn, for torchtune's stock ``full_finetune`` recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prompts import Prompt, get_prompt


class SFTDataset(Dataset):
    """Rows to ``{"tokens", "labels"}``; only the response and the token that ends it are labelled.

    The prompt's prefill belongs to the prompt: a response that repeats it does not get it twice.
    """

    def __init__(self, rows: list[tuple[str, str]], tokenizer: ChatTokenizer, prompt: Prompt) -> None:
        self.rows, self.tokenizer, self.prompt = rows, tokenizer, prompt

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        question, response = self.rows[index]
        start = self.tokenizer.encode_prompt(self.prompt.render(question))
        response = response.removeprefix(self.prompt.prefill)
        end = self.tokenizer.encode(response, add_eos=True)
        labels = [CROSS_ENTROPY_IGNORE_IDX] * len(start) + end
        limit = self.tokenizer.max_seq_len
        return {"tokens": [*start, *end][:limit], "labels": labels[:limit]}


def sft_dataset(
    tokenizer: ChatTokenizer,
    source: str,
    prompt: str = "ssa",
    question_column: str = "question",
    response_column: str = "model_response",
) -> SFTDataset:
    """Rows of a JSON-lines file.

    Rows with ``is_correct`` false are left out: a wrong justification is not to be learned.

    Args:
        source: a ``.jsonl`` file, or a folder with one ``sft.jsonl``.
        prompt: a name of ``tt_reasoning.prompts``; the same as in the GRPO stage that follows.

    Raises:
        UserError: no such file, a malformed row (file and line named), or nothing to train on.

    A row: ``{"question": "Question: ... Below are the proposed answers: ...", "expected_answer": "7",
    "model_response": "<think>...</think> <answer>7</answer>", "is_correct": true}``
    """
    file = Path(source) / "sft.jsonl" if Path(source).is_dir() else Path(source)
    if not file.exists():
        raise UserError(f"dataset.source={source}: no such file")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        row = _parse_row(file, number, line, (question_column, response_column))
        if row.get("is_correct", True):
            rows.append((row[question_column], row[response_column]))
    if not rows:
        raise UserError(f"{file} has no row to train on")
    return SFTDataset(rows, tokenizer, get_prompt(prompt))


def _parse_row(file: Path, number: int, line: str, columns: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}:{number}: not JSON: {error}") from None
    for column in columns:
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise UserError(f"{file}:{number}: no text under '{column}'")
    return row
