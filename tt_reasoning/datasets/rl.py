"""What GRPO trains on: prompts with the reference that grades their completions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch.utils.data import Dataset

from tt_reasoning.answer_sets.rows import read_set_rows
from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import Prompt, get_prompt
from tt_reasoning.types import Kind, Problem
from tt_reasoning.worked_problems import draw_slice, read_worked

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
        source: a folder of ``concat_answers``, a table of sets, or a Hub dataset such as
            ``hub:user074/concat_cleaned_gsm8k_math_5``; see ``read_set_rows``.
        prompt: a name of ``tt_reasoning.prompts``.
        max_prompt_tokens: longer prompts are left out and counted (``num_too_long``).
        split: of a table or a Hub dataset.

    Raises:
        UserError: no such folder or dataset, or nothing to train on.
    """
    rows = read_set_rows(source, split, argument="dataset.source")
    return RLDataset(rows, tokenizer, get_prompt(prompt), max_prompt_tokens, f"dataset.source={source}")


def problem_dataset(
    tokenizer: ChatTokenizer,
    source: str,
    split: str = "train",
    data_files: str | None = None,
    limit: int | None = None,
    prompt: str = "answer",
    max_prompt_tokens: int = 2048,
    num_samples: int | None = None,
    held_back: int = 0,
    from_end: bool = False,
    seed: int = 0,
    worked_only: bool = False,
) -> RLDataset:
    """Plain problems: GRPO on single answers instead of answer sets.

    Args:
        source: a name of ``tt_reasoning.problems.SOURCES``, such as ``gsm8k``.
        data_files: a local file in place of the Hub.
        limit: only the first so many of the file are there to be drawn from.
        num_samples: as many of the order that ``seed`` draws, as ``working_out_dataset`` draws them; with
            ``held_back`` and ``from_end`` as there. Without any of the three the file's order is kept.
        worked_only: only problems with a worked solution of the benchmark's own, those that SFT can learn.

    Raises:
        UserError: no such benchmark or file, a size above the data, or nothing to train on.
    """
    problems: list[Problem]
    if worked_only and limit is not None:
        raise UserError(f"dataset.limit={limit} with dataset.worked_only: give dataset.num_samples in its place")
    if worked_only:
        problems = [one.problem for one in read_worked(source, split, data_files=data_files)]
    else:
        problems = load_problems(source, split, data_files=data_files, limit=limit)
    if num_samples is not None or held_back or from_end:
        place = f"the problems of {source} ({split})"
        problems = draw_slice(
            problems, lambda problem: problem.id, place,
            num_samples=num_samples, held_back=held_back, from_end=from_end, seed=seed,
        )  # fmt: skip
    rows = ((problem.id, problem.question, problem.reference, problem.kind) for problem in problems)
    return RLDataset(rows, tokenizer, get_prompt(prompt), max_prompt_tokens, f"dataset.source={source}")
