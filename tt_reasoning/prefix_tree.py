"""All completions of a prompt in one row, so that a long prompt is computed once instead of G times.

The row is ``prompt, completion 1, ..., completion G``, and then perhaps another prompt with its own. Positions
of every completion start at P; token i sees token j when j <= i and j lies in its prompt or in the same
completion; the last prompt position predicts the first token of every completion. That is the same computation
as G separate rows, not an approximation: P + G*C tokens instead of G*(P + C). No padding: prompts and completions
keep their own lengths.

Shapes: P prompt tokens, G completions of a prompt, R completion tokens of the whole row one after another,
T tokens of the row, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerDecoder

from tt_reasoning.attention import AttentionKind, RowMask, Span, accept_layer_masks


class PackedRow(NamedTuple):
    """One or more prompts with their completions, laid out as one row."""

    tokens_1T: Tensor
    positions_1T: Tensor
    mask: RowMask
    read_R: Tensor  # the position of the row whose logits predict each completion token
    place_R: Tensor  # the position of the row where each completion token itself stands
    target_R: Tensor  # the completion tokens
    sample_R: Tensor  # which completion of the row each belongs to


def pack_groups(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    device: torch.device | str,
    attention: AttentionKind = "auto",
) -> PackedRow:
    """Lay prompts, each with its completions, out as one row; completions are numbered through the row.

    >>> row = pack_groups([([7, 8], [[1, 2], [3]]), ([9], [[4]])], "cpu")
    >>> row.tokens_1T.tolist(), row.positions_1T.tolist()
    ([[7, 8, 1, 2, 3, 9, 4]], [[0, 1, 2, 3, 2, 0, 1]])
    >>> row.read_R.tolist(), row.place_R.tolist(), row.sample_R.tolist()
    ([1, 2, 1, 5], [2, 3, 4, 6], [0, 0, 1, 2])
    """
    tokens: list[int] = []
    positions, read, place, target, sample, spans = [], [], [], [], [], []
    count = 0
    for prompt, completions in groups:
        start, middle, ends = len(tokens), len(tokens) + len(prompt), []
        tokens += prompt
        positions += range(len(prompt))
        for completion in completions:
            first = len(tokens)
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
            read += [middle - 1, *range(first, len(tokens) - 1)][: len(completion)]
            place += range(first, len(tokens))
            target += completion
            sample += [count] * len(completion)
            ends.append(len(tokens))
            count += 1
        spans.append(Span(start, middle, tuple(ends)))
    return PackedRow(
        tokens_1T=torch.tensor([tokens], device=device),
        positions_1T=torch.tensor([positions], device=device),
        mask=RowMask(spans, torch.device(device), attention),
        read_R=torch.tensor(read, dtype=torch.long, device=device),
        place_R=torch.tensor(place, dtype=torch.long, device=device),
        target_R=torch.tensor(target, dtype=torch.long, device=device),
        sample_R=torch.tensor(sample, dtype=torch.long, device=device),
    )


def pack_group(prompt: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device | str) -> PackedRow:
    """The row of one prompt and its completions (``pack_groups``)."""
    return pack_groups([(prompt, completions)], device)


def fill_rows(lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Which groups share a row: first fit, in order, at most ``budget`` tokens a row; None is one group a row.

    A group longer than the budget has a row of its own.

    >>> fill_rows([300, 800, 600], 1000)
    [[0, 2], [1]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for group, length in enumerate(lengths):
        fitting = next((i for i, left in enumerate(room) if length <= left), None)
        if fitting is None:
            rows.append([group])
            room.append(0 if budget is None else budget - length)
        else:
            rows[fitting].append(group)
            room[fitting] -= length
    return rows


@contextlib.contextmanager
def unembed_as(model: TransformerDecoder, read: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let the model's forward end in ``read(hidden)`` in place of logits over the whole row.

    It stays inside the forward pass, where a sharded model has its output weights gathered.
    """
    model.unembed = read
    try:
        yield
    finally:
        del model.unembed


@contextlib.contextmanager
def any_row_length(model: TransformerDecoder) -> Iterator[None]:
    """Lift the model's check of the row's length: positions restart in the row, and only they are limited."""
    limit, model.max_seq_len = model.max_seq_len, sys.maxsize
    try:
        yield
    finally:
        model.max_seq_len = limit


def run_row(model: TransformerDecoder, row: PackedRow, read: Callable[[Tensor], Any]) -> Any:
    """One forward pass over a row that ends in ``read(hidden_1TD)``, hidden states before the final norm."""
    accept_layer_masks(model)
    with unembed_as(model, read), any_row_length(model):
        return model(row.tokens_1T, mask=row.mask, input_pos=row.positions_1T)


def completion_logprobs(
    model: TransformerDecoder, row: PackedRow, *, temperature: float = 1.0, chunk: int = 256
) -> Tensor:
    """Log-probability of every completion token, R of them, in fp32, with gradients.

    Logits exist for ``chunk`` tokens at a time and only where a completion token is predicted; backward
    recomputes them, so no [T x V] tensor is ever held.

    Args:
        temperature: the sampling temperature, which divides the logits.
        chunk: completion tokens whose logits are held at a time.
    """

    def read(hidden_1TD: Tensor) -> Tensor:
        return token_logprobs(model, hidden_1TD[0], row.read_R, row.target_R, temperature=temperature, chunk=chunk)

    return run_row(model, row, read)


def token_logprobs(
    model: TransformerDecoder,
    hidden_TD: Tensor,
    read_N: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Tensor:
    """Log-probabilities of N tokens at N places of a row, from its hidden states before the final norm.

    For what ``run_row`` reads. Logits exist for ``chunk`` tokens at a time; backward recomputes them.
    """

    def read_chunk(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        logits_CV = model.output(hidden_CD).float() / (temperature or 1.0)
        return -F.cross_entropy(logits_CV, target_C, reduction="none")

    parts = zip(model.norm(hidden_TD[read_N]).split(chunk), target_N.split(chunk), strict=True)
    return torch.cat([checkpoint(read_chunk, *part, use_reentrant=False) for part in parts])
