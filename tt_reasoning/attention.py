"""Attention over a row of prompts and their completions, without a dense [T, T] mask where the device can do without.

A row holds one or more groups: a prompt, then its completions. A token sees the earlier tokens of its own
completion and of its prompt, nothing else. Three ways to compute that, the same up to rounding:

- ``split`` (CPUs): the causal kernel over each prompt, every completion against the prompt and against itself, and
  the two halves joined by their log-sum-exp. What is hidden is never computed.
- ``flex`` (GPUs): ``flex_attention`` with a block mask, compiled once for all lengths.
- ``dense``: a boolean [T, T] mask and PyTorch's scaled_dot_product_attention, which works everywhere.

Shapes: T tokens of the row, H heads, E their dimension; a row is a batch of one.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torchtune.modules import MultiHeadAttention, TransformerDecoder

AttentionKind = Literal["auto", "split", "flex", "dense"]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Span(NamedTuple):
    """Where a group lies in its row: the prompt in [start, middle), completion i in [ends[i - 1], ends[i])."""

    start: int
    middle: int
    ends: tuple[int, ...]

    def completions(self) -> list[slice]:
        """The slice of every completion that is not empty."""
        return [slice(a, b) for a, b in pairwise((self.middle, *self.ends)) if a < b]


class LayerMask:
    """What stands where a torchtune decoder takes its ``mask`` and computes a layer's attention itself."""

    def attend(self, layer: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The layer's attention. Shapes: all [N, H, T, E], as is what it returns."""
        raise NotImplementedError


class RowMask(LayerMask):
    """Which token of a row sees which.

    Args:
        spans: the groups, one after another from 0 to T.
        kind: how attention is computed; ``auto`` is ``split`` on a CPU, elsewhere ``flex`` if it works, else ``dense``.
    """

    def __init__(self, spans: list[Span], device: torch.device, kind: AttentionKind = "auto") -> None:
        self.spans, self.device, self.kind = spans, device, kind
        self._block: BlockMask | None = None
        self._dense: Tensor | None = None

    def attend(self, layer: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same in every layer."""
        return self(q, k, v)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the row. Shapes: all [1, H, T, E]."""
        if not any(span.completions() for span in self.spans):  # prompts alone are plain causal attention
            parts = [[x[:, :, span.start : span.middle] for x in (q, k, v)] for span in self.spans]
            return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 2)
        kind = self.kind
        if kind == "auto":
            kind = "split" if q.device.type == "cpu" else "flex" if _flex_works(q.device, q.dtype) else "dense"
        if kind == "split":
            # The joined halves would be rounded twice in bf16, and CPUs are no faster with it here.
            return _SplitAttention.apply(q.float(), k.float(), v.float(), self.spans).to(q.dtype)
        if kind == "flex":
            return _flex(q.device.type)(q, k, v, block_mask=self.block())
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.dense())

    def owners(self) -> tuple[Tensor, Tensor]:
        """For each token of the row its group, and its completion: a number of the row, -1 in a prompt."""
        group, sample, count = [], [], 0
        for number, span in enumerate(self.spans):
            group += [number] * (max(span.middle, *span.ends) - span.start)
            sample += [-1] * (span.middle - span.start)
            for part in span.completions():
                sample += [count] * (part.stop - part.start)
                count += 1
        return torch.tensor(group, device=self.device), torch.tensor(sample, device=self.device)

    def dense(self) -> Tensor:
        """True where the row's token may see the column's, [T, T]."""
        if self._dense is None:
            group_T, sample_T = self.owners()
            slots_T = torch.arange(len(group_T), device=self.device)
            near_TT = (group_T[:, None] == group_T) & ((sample_T == -1) | (sample_T[:, None] == sample_T))
            self._dense = near_TT & (slots_T[:, None] >= slots_T)
        return self._dense

    def block(self) -> BlockMask:
        """The same for ``flex_attention``: the blocks that hold anything to see."""
        if self._block is None:
            group_T, sample_T = self.owners()

            def sees(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                near = (sample_T[kv] == -1) | (sample_T[kv] == sample_T[q])
                return (q >= kv) & (group_T[q] == group_T[kv]) & near

            length = len(group_T)
            self._block = create_block_mask(sees, None, None, length, length, device=str(self.device))
        return self._block


@cache
def _flex(device_type: str) -> Any:
    """``flex_attention``; compiled on a GPU, where only its compiled form skips blocks."""
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@cache
def _flex_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Try it forward and backward on a small row: an old GPU or a missing compiler shows here, not in training."""
    q, k, v = (torch.randn(1, 2, 300, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = RowMask([Span(0, 200, (250, 300))], device, "flex")
    try:
        mask(q, k, v).sum().backward()
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever compiling and launching a kernel may raise
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"flex_attention does not run here ({type(error).__name__}: {reason}); using a dense mask", stacklevel=2
        )
        return False
    return True


class _SplitAttention(torch.autograd.Function):
    """Causal attention inside a prompt; a completion's over [prompt, itself] as two parts.

    With s the scores, o1 and o2 the parts' outputs and l1, l2 their log-sum-exps of s, the whole is
    ``o = o1 * exp(l1 - l) + o2 * exp(l2 - l)`` with ``l = log(exp(l1) + exp(l2))`` (the online softmax of Milakov
    and Gimelshein 2018, arXiv 1805.02867). Backward needs of the softmax only ``p = exp(s - l)`` and
    ``sum(o * do)``, so each part runs the kernel's own backward with the joint o and l.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: list[Span]) -> Tensor:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        for span in spans:
            prompt, rest = slice(span.start, span.middle), slice(span.middle, max(span.middle, *span.ends))
            out[:, :, prompt], lse[:, :, prompt] = _part(q, k, v, prompt, prompt, causal=True)
            if rest.start == rest.stop:
                continue
            out[:, :, rest], lse[:, :, rest] = _part(q, k, v, rest, prompt, causal=False)
            for own in span.completions():
                own_out, own_lse = _part(q, k, v, own, own, causal=True)
                joint = torch.logaddexp(lse[:, :, own], own_lse)
                to_prompt = (lse[:, :, own] - joint).exp().unsqueeze(-1)
                to_own = (own_lse - joint).exp().unsqueeze(-1)
                out[:, :, own] = out[:, :, own] * to_prompt + own_out * to_own
                lse[:, :, own] = joint
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (q, k, v)]

        def add(rows: slice, columns: slice, causal: bool) -> None:
            at = (rows, columns, columns)
            parts = [x[:, :, where] for x, where in zip((q, k, v), at, strict=True)]
            found = _flash_backward(grad_out[:, :, rows], *parts, out[:, :, rows], lse[:, :, rows], 0.0, causal)
            for grad, where, part in zip(grads, at, found, strict=True):
                grad[:, :, where] += part

        for span in ctx.spans:
            prompt, rest = slice(span.start, span.middle), slice(span.middle, max(span.middle, *span.ends))
            add(prompt, prompt, True)
            if rest.start < rest.stop:
                add(rest, prompt, False)
            for own in span.completions():
                add(own, own, True)
        return *grads, None


def _part(q: Tensor, k: Tensor, v: Tensor, rows: slice, columns: slice, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of some tokens over some others: its output and the log-sum-exp of its scores."""
    return _flash(q[:, :, rows], k[:, :, columns], v[:, :, columns], 0.0, causal)


class _WithLayerMasks:
    """A layer's attention that knows ``LayerMask`` beside what it knew before."""

    def __init__(self, layer: MultiHeadAttention) -> None:
        self.layer, self.inner = layer, layer._attention_call

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Any, dropout_p: float, is_causal: bool) -> Tensor:
        if isinstance(mask, LayerMask):
            return mask.attend(self.layer, q, k, v)
        return self.inner(q, k, v, mask=mask, dropout_p=dropout_p, is_causal=is_causal)


def accept_layer_masks(model: TransformerDecoder) -> None:
    """Let every attention layer of a torchtune decoder take a ``LayerMask`` as its mask.

    It stays for good: activation checkpointing calls the layers again in backward.
    """
    for module in model.modules():
        if isinstance(module, MultiHeadAttention) and not isinstance(module._attention_call, _WithLayerMasks):
            module._attention_call = _WithLayerMasks(module)
