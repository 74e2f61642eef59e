"""Sampling with the model in training: one prefill a prompt, then its samples side by side.

Randomness is a function of (seed of the sample, position), not of a generator's state, so a sample draws
the same numbers on one process or eight, in any batch, before or after a resume. What it makes of them is
the same as far as the logits are: another batch shape may round them otherwise (bf16 and GPUs above all).

Shapes: B prompts, G samples a prompt, N = B*G, P tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtune.modules import MultiHeadAttention, TransformerDecoder

from tt_reasoning.prefix_tree import unembed_as
from tt_reasoning.types import FinishReason

_CHECK_EVERY = 8  # tokens between two looks at which samples are done: each look waits for the device


class Completion(NamedTuple):
    """One sample: its tokens (the ending token included, if it came), its text, and why it ended."""

    tokens: list[int]
    text: str
    finish_reason: FinishReason


class _KVCache:
    """Keys and values of one attention layer, [N, heads, length, dim]; hands out the filled part only."""

    def __init__(self, max_len: int) -> None:
        self.max_len, self.size = max_len, 0
        self.k = self.v = None

    def update(self, k_new: Tensor, v_new: Tensor) -> tuple[Tensor, Tensor]:
        """Append along the length; the first call allocates."""
        if self.k is None:
            shape = (*k_new.shape[:2], self.max_len, k_new.shape[3])
            self.k, self.v = k_new.new_zeros(shape), v_new.new_zeros(shape)
        end = self.size + k_new.shape[2]
        assert end <= self.max_len, f"{end} tokens in a cache of {self.max_len}"
        self.k[:, :, self.size : end], self.v[:, :, self.size : end] = k_new, v_new
        self.size = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def repeat(self, times: int) -> None:
        """Every row ``times`` times in place: one prefill serves all samples of its prompt."""
        self.k, self.v = self.k.repeat_interleave(times, 0), self.v.repeat_interleave(times, 0)


@contextlib.contextmanager
def _kv_caches(model: TransformerDecoder, max_len: int) -> Iterator[list[_KVCache]]:
    """Fresh caches in every attention layer while the block runs, none afterwards."""
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    caches = [_KVCache(max_len) for _ in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.kv_cache, layer.cache_enabled = cache, True
    try:
        yield caches
    finally:
        for layer in layers:
            layer.kv_cache, layer.cache_enabled = None, False


@contextlib.contextmanager
def _gathered(model: TransformerDecoder) -> Iterator[None]:
    """Keep a sharded model's weights gathered over the many forward passes of a rollout."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014) on int64, which wraps like uint64."""

    def shift(x: Tensor, bits: int) -> Tensor:  # int64 has no logical shift right
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shift(x, 30)) * -4658895280553007687
    x = (x ^ shift(x, 27)) * -7723592293110705685
    return x ^ shift(x, 31)


def uniform(seeds_N: Tensor, position: int) -> Tensor:
    """Random numbers in [0, 1), float64, from (seed, position) alone: SplitMix64 counted by position.

    >>> uniform(torch.tensor([1, 2]), 0).tolist() == uniform(torch.tensor([2, 1]), 0).flip(0).tolist()
    True
    """
    golden = 0x9E3779B97F4A7C15
    offset = ((position + 1) * golden + 2**63) % 2**64 - 2**63
    return ((_mix(_mix(seeds_N) + offset) >> 11) & (2**53 - 1)).double() * 2.0**-53


def sample_tokens(
    logits_NV: Tensor, uniform_N: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution at ``uniform_N``; greedy at temperature 0.

    >>> sample_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6]), temperature=1.0).tolist()
    [1]
    """
    if temperature == 0:
        return logits_NV.argmax(-1)
    logits_NV = logits_NV.float() / temperature
    if 0 < top_k < logits_NV.shape[-1]:
        floor_N1 = logits_NV.topk(top_k, -1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < floor_N1, -torch.inf)
    probs_NV = logits_NV.softmax(-1)
    if top_p < 1:
        sorted_NV, order_NV = probs_NV.sort(-1, descending=True)
        beyond_NV = sorted_NV.cumsum(-1) - sorted_NV >= top_p
        probs_NV = probs_NV.masked_fill(beyond_NV.gather(-1, order_NV.argsort(-1)), 0)
    cumulative_NV = probs_NV.double().cumsum(-1)
    point_N1 = uniform_N.unsqueeze(-1).double() * cumulative_NV[:, -1:]
    return torch.searchsorted(cumulative_NV, point_N1, right=True).squeeze(-1)


def _cut(
    tokens: list[int], stop_tokens: set[int], stop: Sequence[str], decode: Callable[[list[int]], str]
) -> Completion:
    """A sample up to its end: the first stop token, or the fewest tokens whose text holds a stop string."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop_tokens), None)
    kept = tokens[:end]
    text = decode(kept)
    found = [text.index(s) + len(s) for s in stop if s in text]
    if not found:
        return Completion(kept, text, "stop" if end else "length")
    low, high = 1, len(kept)
    while low < high:
        middle = (low + high) // 2
        if any(s in decode(kept[:middle]) for s in stop):
            high = middle
        else:
            low = middle + 1
    return Completion(kept[:low], text[: min(found)], "stop")


@torch.no_grad()
def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int],
    decode: Callable[[list[int]], str],
) -> list[list[Completion]]:
    """Sample completions of B prompts, as many of each as it has seeds (G, the same for all).

    A completion ends at a stop token, at the first stop string (kept in the text), or at the limit. Under
    FSDP every process must call it, and all go on until the slowest is done.

    Args:
        prompts: B lists of token ids.
        seeds: B lists of G seeds, each in [0, 2**63).

    Returns:
        B lists of G completions.
    """
    device = next(model.parameters()).device
    num_samples = len(seeds[0])
    longest = max(len(prompt) for prompt in prompts)
    total = longest + max_new_tokens
    ends, stops = torch.tensor(stop_tokens, device=device), set(stop_tokens)
    seeds_N = torch.tensor(seeds, device=device).flatten()

    # Prompts are padded on the left, so that every row writes the same cache slot.
    padding_B = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    tokens_BP = torch.tensor([[stop_tokens[0]] * (longest - len(p)) + list(p) for p in prompts], device=device)
    slots_T = torch.arange(total, device=device)
    filled_BT = slots_T >= padding_B[:, None]
    # A pad row looks at itself: a row that sees nothing would be NaN and spread through the values.
    diagonal_PP = torch.eye(longest, dtype=torch.bool, device=device)
    mask_BPP = slots_T[:longest, None] >= slots_T[None, :longest]
    mask_BPP = (mask_BPP & filled_BT[:, None, :longest]) | diagonal_PP
    positions_BP = (slots_T[:longest] - padding_B[:, None]).clamp(min=0)

    was_training = model.training
    model.eval()
    whole_logits = model.unembed

    def last_logits(hidden_BTD: Tensor) -> Tensor:  # the other rows over the vocabulary are never needed
        return whole_logits(hidden_BTD[:, -1:])

    with _gathered(model), _kv_caches(model, total) as caches, unembed_as(model, last_logits):
        logits_BV = model(tokens_BP, mask=mask_BPP, input_pos=positions_BP)[:, -1]
        for cache in caches:
            cache.repeat(num_samples)
        logits_NV = logits_BV.repeat_interleave(num_samples, 0)
        padding_N, filled_NT = (x.repeat_interleave(num_samples, 0) for x in (padding_B, filled_BT))
        out_NC = torch.full((len(seeds_N), max_new_tokens), stop_tokens[0], device=device)
        done_N = torch.zeros(len(seeds_N), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            token_N = sample_tokens(logits_NV, uniform(seeds_N, step), temperature, top_k, top_p)
            out_NC[:, step] = torch.where(done_N, out_NC[:, step], token_N)
            done_N |= torch.isin(token_N, ends)
            if step + 1 == max_new_tokens:
                break
            if (step + 1) % _CHECK_EVERY == 0:
                if stop:
                    texts = [decode(row) for row in out_NC[:, : step + 1].tolist()]
                    done_N |= torch.tensor([any(s in text for s in stop) for text in texts], device=device)
                if _all_done(done_N):
                    break
            slot = longest + step
            logits_NV = model(
                token_N[:, None], mask=filled_NT[:, None, : slot + 1], input_pos=(slot - padding_N)[:, None]
            )[:, -1]
    model.train(was_training)
    rows = out_NC[:, : step + 1].tolist()
    completions = [_cut(row, stops, stop, decode) for row in rows]
    return [completions[i : i + num_samples] for i in range(0, len(completions), num_samples)]


def _all_done(done_N: Tensor) -> bool:
    """Whether every sample of every process is done."""
    left = (~done_N).sum()
    if dist.is_initialized():
        dist.all_reduce(left)
    return left.item() == 0
