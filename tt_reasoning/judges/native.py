"""Judges run by torchtune: all answers to a question in one row that computes the question once.

Logits exist only where a step is judged. The scores are those of one row an answer, up to rounding.

Shapes: S steps of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.guidance.decode import check_head
from tt_reasoning.judges.formats import Layout, share_prompt
from tt_reasoning.judges.forms import JudgeForm
from tt_reasoning.judges.reading import read_labels
from tt_reasoning.judges.values import return_scores, value_scores
from tt_reasoning.losses import ReturnLoss
from tt_reasoning.models.value_head import saved_head
from tt_reasoning.prefix_tree import PackedRow, fill_rows, pack_groups
from tt_reasoning.training import build_model, pick_dtype, start_process

CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 16384

Scores = list[list[list[float]]]  # by question, solution and step


class Readout(Protocol):
    """What a judge says at some places of a row."""

    def __call__(self, model: TransformerDecoder, row: PackedRow, place_S: Tensor) -> Tensor:
        """Scores in [0, 1], from one forward pass. Shapes: S positions of the row to S scores, fp32."""
        ...


class LabelReadout(NamedTuple):
    """The probability of one output of the model against another: label tokens, or classes."""

    good: int
    bad: int

    def __call__(self, model: TransformerDecoder, row: PackedRow, place_S: Tensor) -> Tensor:
        """What training reads, so that a judge is asked as it was trained."""
        return read_labels(model, row, place_S, self.good, self.bad).score_S()


class ValueReadout(NamedTuple):
    """What a value head says."""

    squash: bool

    def __call__(self, model: TransformerDecoder, row: PackedRow, place_S: Tensor) -> Tensor:
        """The values as scores: a logit's sigmoid, any other cut to [0, 1]."""
        return value_scores(model, row, place_S, squash=self.squash)


class ReturnReadout(NamedTuple):
    """What a value model expects."""

    loss: ReturnLoss

    def __call__(self, model: TransformerDecoder, row: PackedRow, place_S: Tensor) -> Tensor:
        """The mean return, as training measures it."""
        return return_scores(model, row, place_S, self.loss)


def open_readout(form: JudgeForm) -> Readout:
    """What is read of a judge."""
    if form.value is not None:
        card = form.value
        return ReturnReadout(ReturnLoss(
            kind=card.loss, num_atoms=card.num_atoms, low=card.low, high=card.high, target=card.target, eta=card.eta
        ))  # fmt: skip
    return ValueReadout(form.squash) if form.head == "value" else LabelReadout(form.good, form.bad)


class _Part(NamedTuple):
    """Solutions of one question that stand in one row: ``members`` are their numbers among all of that question."""

    question: int
    members: list[int]
    shared: int  # tokens


class NativeJudge:
    """A judge's Hugging Face folder (Llama, Mistral or Qwen2) run by torchtune.

    Args:
        dtype: ``fp32`` or ``bf16``; by default bf16 on a GPU and fp32 on a CPU.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_tokens: tokens of a row, which holds as many questions as there is room for; a question with more is
            split over several. Unless given, 4096 on a CPU and 16384 on a GPU.

    Raises:
        UserError: weights that do not fit the config, no value head where the form has one, or no GPU where one is
            asked for.
    """

    def __init__(
        self,
        folder: str,
        form: JudgeForm,
        *,
        dtype: str | None = None,
        device: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        self.read = open_readout(form)
        process = start_process(device)
        on_gpu = process.device.type == "cuda"
        builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": folder})
        precision = pick_dtype(dtype or ("bf16" if on_gpu else "fp32"))
        head = saved_head(folder) if form.head == "value" else None
        self.model = build_model(builder, folder, process, precision, trainable=False, value_head=head)
        if form.value is not None:
            check_head(folder, form.value, self.model.value_head)
        self.device = process.device
        self.batch_tokens = batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)

    def score(self, questions: Sequence[Sequence[Layout]]) -> Scores:
        """A score for every step of every solution of some questions."""
        return score_layouts(self.model, self.read, questions, self.device, self.batch_tokens)

    def close(self) -> None:
        """Free the model."""
        del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def score_layouts(
    model: TransformerDecoder,
    read: Readout,
    questions: Sequence[Sequence[Layout]],
    device: torch.device,
    batch_tokens: int,
) -> Scores:
    """A score for every step of every solution of some questions, in rows of about ``batch_tokens``."""
    parts = [part for number, layouts in enumerate(questions) for part in _split(number, layouts, batch_tokens)]
    sizes = [_size(questions, part) for part in parts]
    found: Scores = [[[] for _ in layouts] for layouts in questions]
    for row in fill_rows(sizes, batch_tokens):
        here = [parts[i] for i in row]
        scores = iter(_score_row(model, read, questions, here, device))
        for part in here:
            for member in part.members:
                found[part.question][member] = [next(scores) for _ in questions[part.question][member].read]
    return found


def _tail(layout: Layout, shared: int) -> list[int]:
    """The tokens behind the shared ones, up to the last that is read."""
    return layout.tokens[shared : layout.read[-1] + 1]


def _split(question: int, layouts: Sequence[Layout], batch_tokens: int) -> list[_Part]:
    """A question's solutions as parts that fit a row, or hold a single solution."""
    if not layouts:
        return []
    shared = share_prompt(layouts)
    lengths = [len(_tail(layout, shared)) for layout in layouts]
    return [_Part(question, members, shared) for members in fill_rows(lengths, max(1, batch_tokens - shared))]


def _size(questions: Sequence[Sequence[Layout]], part: _Part) -> int:
    return part.shared + sum(len(_tail(questions[part.question][i], part.shared)) for i in part.members)


@torch.inference_mode()
def _score_row(
    model: TransformerDecoder,
    read: Readout,
    questions: Sequence[Sequence[Layout]],
    parts: Sequence[_Part],
    device: torch.device,
) -> list[float]:
    """The scores of all places of a row that are read, in order."""
    groups, places, lengths = [], [], []
    for part in parts:
        layouts = [questions[part.question][i] for i in part.members]
        tails = [_tail(layout, part.shared) for layout in layouts]
        groups.append((layouts[0].tokens[: part.shared], tails))
        places += [[token - part.shared for token in layout.read] for layout in layouts]
        lengths += map(len, tails)
    row = pack_groups(groups, device)
    starts = accumulate(lengths[:-1], initial=0)
    read_S = [start + place for start, own in zip(starts, places, strict=True) for place in own]
    return read(model, row, row.place_R[torch.tensor(read_S, device=device)]).tolist()
