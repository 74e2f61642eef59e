"""Prompts with the response to learn, for torchtune's stock ``full_finetune`` and ``lora_finetune`` recipes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prompts import Prompt, get_prompt
from tt_reasoning.worked_problems import draw_slice, read_traces, read_worked, replace_solutions
from tt_reasoning.working_out import write_response

logger = logging.getLogger(__name__)


class SFTDataset(Dataset):
    """Rows to ``{"tokens", "labels"}``; only the response and the token that ends it are labelled.

    The prompt's prefill belongs to the prompt: a response that repeats it does not get it twice. A row longer
    than the tokenizer's ``max_seq_len`` is left out and counted (``num_too_long``): a response cut at its end
    would teach never to end. ``questions`` has the question of every row that is there.

    Raises:
        UserError: nothing is left to train on.
    """

    def __init__(self, rows: list[tuple[str, str]], tokenizer: ChatTokenizer, prompt: Prompt, source: str) -> None:
        self.samples: list[dict[str, list[int]]] = []
        self.questions: list[str] = []
        for question, response in rows:
            start = tokenizer.encode_prompt(prompt.render(question))
            end = tokenizer.encode(response.removeprefix(prompt.prefill), add_eos=True)
            if tokenizer.max_seq_len is None or len(start) + len(end) <= tokenizer.max_seq_len:
                labels = [CROSS_ENTROPY_IGNORE_IDX] * len(start) + end
                self.samples.append({"tokens": start + end, "labels": labels})
                self.questions.append(question)
        self.num_too_long = len(rows) - len(self.samples)
        if self.num_too_long:
            logger.warning(f"{source}: {self.num_too_long} of {len(rows)} rows are above max_seq_len and left out")
        if not self.samples:
            raise UserError(f"{source} gives nothing to train on: of {len(rows)} rows all are above max_seq_len")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.samples[index]


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
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            row = _parse_row(file, number, line, (question_column, response_column)) if line.strip() else {}
            if row and row.get("is_correct", True):
                rows.append((row[question_column], row[response_column]))
    return SFTDataset(rows, tokenizer, get_prompt(prompt), str(file))


def working_out_dataset(
    tokenizer: ChatTokenizer,
    source: str | None,
    split: str = "train",
    data_files: str | None = None,
    num_samples: int | None = None,
    held_back: int = 0,
    from_end: bool = False,
    seed: int = 0,
    traces_file: str | None = None,
    prompt: str = "working_out",
) -> SFTDataset:
    """A benchmark's problems with their worked solutions in the form of ``working_out``: the study's SFT stages.

    One order of the problems is drawn by ``seed`` (``worked_problems.draw_slice``), so slices are nested, and
    ``problem_dataset`` with the same arguments and ``worked_only`` has the same problems for GRPO.

    Args:
        source: a benchmark that has worked solutions: ``gsm8k``, ``asdiv`` or ``mawps``; null trains on ``traces_file``
            as it is.
        data_files: a local file in place of the Hub.
        num_samples: the first so many of the order; null is all.
        held_back: so many at the order's end are another stage's (the prep stage's).
        from_end: the last ``num_samples`` instead of the first (the prep stage).
        traces_file: solutions that a model wrote for these problems, instead of the benchmark's own.
        prompt: a name of ``tt_reasoning.prompts``; the same as in the GRPO stage that follows.

    Raises:
        UserError: no such benchmark or file, a size above the data, a malformed row (file and line named), or a
            problem that has no trace.

    A row of ``traces_file``: ``{"question": "...", "answer": "<reasoning>\n\n#### 42"}``; what is learned of it:
    ``<start_working_out>\n<reasoning>\n<end_working_out>\n<SOLUTION>42</SOLUTION>``

    Example (YAML):
        ``dataset: {_component_: tt_reasoning.datasets.working_out_dataset, source: gsm8k, num_samples: 512}``
    """
    if source is None and traces_file is None:
        raise UserError("dataset.source is null and there is no dataset.traces_file; give one of them")
    size = {"num_samples": num_samples, "held_back": held_back, "from_end": from_end, "seed": seed}
    traces = read_traces(traces_file) if traces_file is not None else []
    worked = read_worked(source, split, data_files=data_files) if source is not None else traces
    place = f"the problems of {source} ({split})" if source is not None else f"the rows of {traces_file}"
    chosen = draw_slice(worked, lambda one: one.problem.id, place, **size)
    if source is not None and traces_file is not None:
        chosen = replace_solutions(chosen, traces, traces_file)
    rows = [(one.problem.question, write_response(one.reasoning, one.answer)) for one in chosen]
    return SFTDataset(rows, tokenizer, get_prompt(prompt), traces_file or f"dataset.source={source}")


def _parse_row(file: Path, number: int, line: str, columns: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}:{number}: not JSON: {error}") from None
    for column in columns:
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise UserError(f"{file}:{number}: no text under '{column}'")
    return row
