"""All completions of a prompt in one row, so that a long prompt is computed once instead of G times.

The row is ``prompt, completion 1, ..., completion G``. Positions of every completion start at P; token i
sees token j when j <= i and j lies in the prompt or in the same completion; the last prompt position
predicts the first token of every completion. That is the same computation as G separate rows, not an
approximation: P + G*C tokens instead of G*(P + C). No padding: completions keep their own lengths.

Shapes: P prompt tokens, G completions, R completion tokens of all of them one after another,
T = P + R tokens of the row, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerDecoder


class PackedGroup(NamedTuple):
    """One prompt with its completions, laid out as one row."""

    tokens_1T: Tensor
    positions_1T: Tensor
    mask_1TT: Tensor  # True: may attend
    read_R: Tensor  # the position of the row whose logits predict each completion token
    target_R: Tensor  # the completion tokens
    sample_R: Tensor  # which completion each belongs to, 0..G-1


def pack_group(prompt: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device | str) -> PackedGroup:
    """Lay a prompt and its completions out as one row.

    >>> group = pack_group([7, 8], [[1, 2], [3]], "cpu")
    >>> group.tokens_1T.tolist(), group.positions_1T.tolist()
    ([[7, 8, 1, 2, 3]], [[0, 1, 2, 3, 2]])
    >>> group.read_R.tolist(), group.sample_R.tolist()
    ([1, 2, 1], [0, 0, 1])
    """
    start, lengths = len(prompt), [len(completion) for completion in completions]
    target = [token for completion in completions for token in completion]
    sample_R = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    within_R = torch.cat([torch.arange(length) for length in lengths])
    row_R = torch.arange(start, start + len(target))
    owner_T = torch.cat([torch.full((start,), -1), sample_R])
    slots_T = torch.arange(len(owner_T))
    mask_TT = (slots_T[:, None] >= slots_T) & ((owner_T == -1) | (owner_T[:, None] == owner_T))
    return PackedGroup(
        tokens_1T=torch.tensor([[*prompt, *target]], device=device),
        positions_1T=torch.cat([torch.arange(start), start + within_R])[None].to(device),
        mask_1TT=mask_TT[None].to(device),
        read_R=torch.where(within_R == 0, start - 1, row_R - 1).to(device),
        target_R=torch.tensor(target, device=device),
        sample_R=sample_R.to(device),
    )


@contextlib.contextmanager
def unembed_as(model: TransformerDecoder, read: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the model's forward end in ``read(hidden)`` in place of logits over the whole row.

    It stays inside the forward pass, where a sharded model has its output weights gathered.
    """
    model.unembed = read
    try:
        yield
    finally:
        del model.unembed


@contextlib.contextmanager
def _any_row_length(model: TransformerDecoder) -> Iterator[None]:
    """Lift the model's check of the row's length: positions restart in the row, and only they are limited."""
    limit, model.max_seq_len = model.max_seq_len, sys.maxsize
    try:
        yield
    finally:
        model.max_seq_len = limit


def completion_logprobs(
    model: TransformerDecoder, group: PackedGroup, *, temperature: float = 1.0, chunk: int = 256
) -> Tensor:
    """Log-probability of every completion token, R of them, in fp32, with gradients.

    Logits exist for ``chunk`` tokens at a time and only where a completion token is predicted; backward
    recomputes them, so no [T x V] tensor is ever held.

    Args:
        temperature: the sampling temperature, which divides the logits.
        chunk: completion tokens whose logits are held at a time.
    """

    def read_chunk(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        logits_CV = model.output(hidden_CD).float() / (temperature or 1.0)
        return -F.cross_entropy(logits_CV, target_C, reduction="none")

    def read(hidden_1TD: Tensor) -> Tensor:
        hidden_RD = model.norm(hidden_1TD[0, group.read_R])
        parts = zip(hidden_RD.split(chunk), group.target_R.split(chunk), strict=True)
        return torch.cat([checkpoint(read_chunk, *part, use_reentrant=False) for part in parts])

    with unembed_as(model, read), _any_row_length(model):
        return model(group.tokens_1T, mask=group.mask_1TT, input_pos=group.positions_1T)
