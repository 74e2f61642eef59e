"""What a judge with label tokens says at the end of every step: one forward pass over a row of solutions.

Shapes: S steps of the row, R solution tokens of the row, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerDecoder

from tt_reasoning.prefix_tree import PackedRow, run_row, token_logprobs


class LabelReading(NamedTuple):
    """Logits behind the last token of every step, fp32, with gradients."""

    good_S: Tensor
    bad_S: Tensor
    vocabulary_S: Tensor  # the log-sum-exp of all logits: what turns a logit into a log-probability
    logprobs_R: Tensor | None  # of every solution token, where asked for

    def score_S(self) -> Tensor:
        """The probability of ``good`` against ``bad``, S of them."""
        return torch.sigmoid(self.good_S - self.bad_S)


def read_labels(
    model: TransformerDecoder,
    row: PackedRow,
    place_S: Tensor,
    good: int,
    bad: int,
    *,
    language_model: bool = False,
    chunk: int = 256,
) -> LabelReading:
    """Read the label tokens' logits at places of a row; backward recomputes a chunk's logits in place of holding them.

    Args:
        place_S: where in the row the last token of every step stands.
        good: the id of the token for a right step, ``bad`` for a wrong one.
        language_model: also the log-probability of every solution token, from the same pass.
    """

    def read_step_chunk(hidden_CD: Tensor) -> Tensor:
        logits_CV = model.output(hidden_CD).float()
        return torch.stack([logits_CV[:, good], logits_CV[:, bad], logits_CV.logsumexp(-1)], -1)

    def read(hidden_1TD: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_TD = hidden_1TD[0]
        parts = model.norm(hidden_TD[place_S]).split(chunk)
        labels_S3 = torch.cat([checkpoint(read_step_chunk, part, use_reentrant=False) for part in parts])
        if not language_model:
            return labels_S3, None
        return labels_S3, token_logprobs(model, hidden_TD, row.read_R, row.target_R, chunk=chunk)

    labels_S3, logprobs_R = run_row(model, row, read)
    return LabelReading(*labels_S3.unbind(-1), logprobs_R)
