"""What a value head says of the tokens of solutions: one forward pass over a row of ``prefix_tree``.

Shapes: R solution tokens of the row, S places that are read, A values of the head, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.prefix_tree import PackedRow, run_row, token_logprobs


class ValueReading(NamedTuple):
    """The values of every solution token, fp32, with gradients, and what the language model says of some of them."""

    values_RA: Tensor
    logprobs_N: Tensor | None


def read_values(
    model: TransformerDecoder, row: PackedRow, learn_R: Tensor | None = None, *, chunk: int = 256
) -> ValueReading:
    """The head's values where each solution token stands: of the text up to that token and with it.

    Args:
        learn_R: True for the tokens whose log-probabilities are wanted, from the same pass; None for none.
        chunk: tokens whose logits are held at a time.
    """

    def read(hidden_1TD: Tensor) -> ValueReading:
        hidden_TD = hidden_1TD[0]
        values_RA = model.value_head(model.norm(hidden_TD[row.place_R]))
        if learn_R is None:
            return ValueReading(values_RA, None)
        learned = (row.read_R[learn_R], row.target_R[learn_R])
        return ValueReading(values_RA, token_logprobs(model, hidden_TD, *learned, chunk=chunk))

    return run_row(model, row, read)


@torch.no_grad()
def value_scores(
    model: TransformerDecoder, row: PackedRow, place_S: Tensor | None = None, *, squash: bool
) -> Tensor:
    """Scores in [0, 1] at places of a row, from one forward pass: S of them, fp32.

    Args:
        model: with a value head of one value, in ``eval`` mode.
        place_S: where to read, in positions of the row, such as the last token of every solution
            (``datasets.prm.JudgeRow.place_S``); ``row.place_R``, every solution token, unless given.
        squash: ``JudgeCard.squash``.
    """
    place_S = row.place_R if place_S is None else place_S

    def read(hidden_1TD: Tensor) -> Tensor:
        return model.value_head(model.norm(hidden_1TD[0, place_S])).squeeze(-1)

    return as_scores(run_row(model, row, read), squash=squash)


def as_scores(values: Tensor, *, squash: bool) -> Tensor:
    """Values as scores in [0, 1]: the sigmoid of a logit; one that was learned by squared error is cut to the range.

    >>> as_scores(torch.tensor([0.0]), squash=True), as_scores(torch.tensor([0.25, 1.5]), squash=False)
    (tensor([0.5000]), tensor([0.2500, 1.0000]))
    """
    return values.sigmoid() if squash else values.clamp(0, 1)
