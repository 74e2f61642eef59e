"""What a value head says of the tokens of solutions: one forward pass over a row of ``prefix_tree``.

Shapes: R solution tokens of the row, S of them that are read, A values of the head, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.losses import ReturnLoss
from tt_reasoning.prefix_tree import PackedRow, run_row, token_logprobs


class ValueReading(NamedTuple):
    """The values of the tokens asked for, fp32, with gradients, and what the language model says of some of them."""

    values_SA: Tensor
    logprobs_N: Tensor | None


def read_values(
    model: TransformerDecoder,
    row: PackedRow,
    learn_R: Tensor | None = None,
    *,
    tokens_S: Tensor | None = None,
    chunk: int = 256,
) -> ValueReading:
    """The head's values of solution tokens: of the text up to a token and with it.

    They are read in the state behind the token, or of a head with a column for every token (``num_columns``) in the
    token's column of the state before it.

    Args:
        learn_R: True for the tokens whose log-probabilities are wanted, from the same pass; None for none.
        tokens_S: which of the row's R tokens are read; all of them unless given.
        chunk: tokens whose logits are held at a time.
    """
    place_S, read_S, target_S = (
        x if tokens_S is None else x[tokens_S] for x in (row.place_R, row.read_R, row.target_R)
    )

    def read(hidden_1TD: Tensor) -> ValueReading:
        hidden_TD = hidden_1TD[0]
        if model.value_head.num_columns is None:
            values_SA = model.value_head(model.norm(hidden_TD[place_S]))
        else:
            values_SA = model.value_head(model.norm(hidden_TD[read_S]), target_S[:, None]).squeeze(1)
        if learn_R is None:
            return ValueReading(values_SA, None)
        learned = (row.read_R[learn_R], row.target_R[learn_R])
        return ValueReading(values_SA, token_logprobs(model, hidden_TD, *learned, chunk=chunk))

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


@torch.no_grad()
def return_scores(model: TransformerDecoder, row: PackedRow, place_S: Tensor, loss: ReturnLoss) -> Tensor:
    """The mean returns that a value model expects behind solution tokens, cut to [0, 1]: S of them, fp32.

    Args:
        place_S: where the tokens stand, in positions of the row.
        loss: by which it was trained.
    """
    tokens_S = torch.searchsorted(row.place_R, place_S)
    return loss.mean_return(read_values(model, row, tokens_S=tokens_S).values_SA).clamp(0, 1)


def as_scores(values: Tensor, *, squash: bool) -> Tensor:
    """Values as scores in [0, 1]: the sigmoid of a logit; one that was learned by squared error is cut to the range.

    >>> as_scores(torch.tensor([0.0]), squash=True), as_scores(torch.tensor([0.25, 1.5]), squash=False)
    (tensor([0.5000]), tensor([0.2500, 1.0000]))
    """
    return values.sigmoid() if squash else values.clamp(0, 1)
