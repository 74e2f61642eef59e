"""Keys and values while samples are drawn: of every prompt once, of every sample its own tokens.

The samples of a prompt look at the same keys, so these are not copied for each of them, nor for each query head that
shares a key head: a token of G samples reads the prompt's keys once in place of G times and more.

Beside the newest token of a sample a pass may hold candidates for the one behind it. All of them stand at that place;
each sees what the newest token sees, that token and itself, and is forgotten when the pass is over: there is nothing to
roll back.

Shapes: B prompts, P tokens of the longest, N samples of all of them, T tokens of each in a pass (the newest and the
candidates), C own tokens of each so far, K key heads, Q query heads of one key head, R = Q * T, E the dimension of a
head, S samples of the prompt with the most.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchtune.modules import MultiHeadAttention, TransformerDecoder

from tt_reasoning.attention import LayerMask, accept_layer_masks
from tt_reasoning.prefix_tree import any_row_length, pack_groups, unembed_as


class LayerCache:
    """The keys and values of one attention layer; stands where a torchtune layer has its ``kv_cache``.

    The first ``update`` is the prompts' row; ``split`` makes it one row a prompt; then every update is one more token
    of each sample, kept, with its candidates, which are not. On a CPU they are held in fp32, as is what they are
    multiplied with.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self.max_new_tokens, self.size = max_new_tokens, 0
        self.prompt: tuple[Tensor, Tensor] | None = None  # [1, K, T, E], then [B, K, P, E]
        self.own: tuple[Tensor, Tensor] | None = None  # [N, K, max_new_tokens, E]

    def update(self, k_new: Tensor, v_new: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; returns them alone, for a mask that looks into the cache itself."""
        if self.own is None:
            self.prompt = (k_new, v_new)
        else:
            assert self.size < self.max_new_tokens, f"more than {self.max_new_tokens} tokens a sample"
            for held, new in zip(self.own, (k_new, v_new), strict=True):
                held[:, :, self.size] = new[:, :, 0]
            self.size += 1
        return k_new, v_new

    def split(self, lengths: Sequence[int], num_samples: int) -> None:
        """One row a prompt, padded at the end with zeros, and room for the own tokens of ``num_samples`` samples."""
        assert self.prompt is not None
        k_1KTE, _ = self.prompt
        dtype = torch.float32 if k_1KTE.device.type == "cpu" else k_1KTE.dtype
        shape = (len(lengths), k_1KTE.shape[1], max(lengths), k_1KTE.shape[3])
        padded = []
        for row in self.prompt:
            rows_BKPE, start = row.new_zeros(shape, dtype=dtype), 0
            for number, length in enumerate(lengths):
                rows_BKPE[number, :, :length] = row[0, :, start : start + length]
                start += length
            padded.append(rows_BKPE)
        self.prompt = (padded[0], padded[1])
        own = (num_samples, shape[1], self.max_new_tokens, shape[3])
        self.own = (k_1KTE.new_zeros(own, dtype=dtype), k_1KTE.new_zeros(own, dtype=dtype))

    def keep(self, prompts: Tensor, samples: Tensor, longest: int) -> None:
        """Only these prompts, the longest of so many tokens, and samples; the others' memory is free afterwards."""
        assert self.prompt is not None and self.own is not None
        if len(prompts) < len(self.prompt[0]):
            self.prompt = (self.prompt[0][:, :, :longest][prompts], self.prompt[1][:, :, :longest][prompts])
        self.own = (self.own[0][samples], self.own[1][samples])


class DecodingMask(LayerMask):
    """The newest token of every sample, and candidates behind it, over its prompt and its own tokens (``LayerCache``).

    Args:
        lengths: tokens of each prompt.
        counts: samples of each prompt; the samples of a prompt follow one another.
    """

    def __init__(self, lengths: Sequence[int], counts: Sequence[int], device: torch.device) -> None:
        widest = max(counts)
        slots, back = [], []  # which sample each of B x S places holds (any where there is none), and the way back
        for number, count in enumerate(counts):
            first = len(back)
            slots.append([first + min(i, count - 1) for i in range(widest)])
            back += range(number * widest, number * widest + count)
        self.slots_BS, self.back_N = torch.tensor(slots, device=device), torch.tensor(back, device=device)
        beyond_BP = torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]
        self.bias_B11P = torch.zeros(beyond_BP.shape, device=device).masked_fill(beyond_BP, -torch.inf)[:, None, None]

    def attend(self, layer: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the pass. Shapes: all [N, K * Q, T, E]; what was kept before is in the cache."""
        cache: LayerCache = layer.kv_cache
        assert cache.prompt is not None and cache.own is not None
        (k_BKPE, v_BKPE), (k_NKCE, v_NKCE) = cache.prompt, (x[:, :, : cache.size] for x in cache.own)
        with torch.autocast(q.device.type, enabled=False):  # scores stay in fp32
            q_NKRE = q.to(k_BKPE.dtype).unflatten(1, (k_BKPE.shape[1], -1)).flatten(2, 3)
            rows = q_NKRE.shape[2]
            to_prompt = _scores(self._by_prompt(q_NKRE), k_BKPE) + self.bias_B11P
            found = [self._by_sample(to_prompt, rows), _scores(q_NKRE, k_NKCE)]
            if q.shape[2] > 1:
                to_self_NHT = (q.float() * k.float()).sum(-1)
                to_self_NHT[:, :, 0] = -torch.inf  # the newest token is in the cache
                found.append(to_self_NHT.unflatten(1, (k_BKPE.shape[1], -1)).flatten(2, 3)[..., None])
            weights = (torch.cat(found, -1) * q.shape[-1] ** -0.5).softmax(-1).to(v_BKPE.dtype)
            p_prompt, p_own, *p_self = weights.split([x.shape[-1] for x in found], -1)
            out_NKRE = self._by_sample(self._by_prompt(p_prompt) @ v_BKPE, rows) + p_own @ v_NKCE
            if p_self:
                v_NKRE = v.to(v_BKPE.dtype).unflatten(1, (k_BKPE.shape[1], -1)).flatten(2, 3)
                out_NKRE = out_NKRE + p_self[0] * v_NKRE
        return out_NKRE.unflatten(2, (-1, q.shape[2])).flatten(1, 2).to(q.dtype)

    def _by_prompt(self, x_NKRX: Tensor) -> Tensor:
        """The rows of a prompt's samples side by side: [B, K, S * R, ...]."""
        return x_NKRX[self.slots_BS].transpose(1, 2).flatten(2, 3)

    def _by_sample(self, x_BKYX: Tensor, rows: int) -> Tensor:
        """The way back from ``_by_prompt``."""
        return x_BKYX.unflatten(2, (-1, rows)).transpose(1, 2).flatten(0, 1)[self.back_N]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T in fp32, whatever they are held in."""
    if q.dtype == torch.float32:
        return q @ k.transpose(-1, -2)
    flat = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
    return flat.unflatten(0, q.shape[:2])


class Decoder:
    """A model at work on prompts with samples of each: the prompts once, then one pass a token of all samples.

    ``open_decoder`` makes one. A row is a sample that is still drawn; ``keep`` lets the others go.

    Args:
        counts: samples of each prompt.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        caches: Sequence[LayerCache],
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        device: torch.device,
    ) -> None:
        self.model, self._caches, self._prompts, self._device = model, caches, prompts, device
        self._size = 0  # own tokens of every sample
        self._owners = [number for number, count in enumerate(counts) for _ in range(count)]
        self._mask = DecodingMask([len(prompt) for prompt in prompts], counts, device)
        self._length_M = torch.tensor([len(prompts[number]) for number in self._owners], device=device)

    def read_prompts(self, read: Callable[[Tensor], Any]) -> Any:
        """One pass over all prompts that ends in ``read(hidden_1BD)``: the states of their last tokens."""
        row = pack_groups([(prompt, []) for prompt in self._prompts], self._device)
        lengths = [len(prompt) for prompt in self._prompts]
        ends_B = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        with unembed_as(self.model, lambda hidden_1TD: read(hidden_1TD[:, ends_B])), any_row_length(self.model):
            found = self.model(row.tokens_1T, mask=row.mask, input_pos=row.positions_1T)
        for cache in self._caches:
            cache.split(lengths, len(self._owners))
        return found

    def step(self, tokens_MT: Tensor, read: Callable[[Tensor], Any] | None = None) -> Any:
        """One pass over the newest token of every row and candidates behind it, which are not kept.

        Returns the logits [M, T, V], or what ``read(hidden_MTD)`` makes of the states before the final norm.
        """
        after_MT = (torch.arange(tokens_MT.shape[1], device=self._device) > 0).expand_as(tokens_MT)
        positions_MT = (self._length_M + self._size)[:, None] + after_MT
        self._size += 1
        with unembed_as(self.model, read or self.model.unembed):
            return self.model(tokens_MT, mask=self._mask, input_pos=positions_MT)

    def keep(self, kept: Sequence[int]) -> None:
        """Let all rows but these go."""
        before = sorted(set(self._owners))
        self._owners = [self._owners[row] for row in kept]
        counts = Counter(self._owners)
        lengths = [len(self._prompts[number]) for number in counts]
        kept_M = torch.tensor(kept, device=self._device)
        stay_B = torch.tensor([before.index(number) for number in counts], device=self._device)
        for cache in self._caches:
            cache.keep(stay_B, kept_M, max(lengths))
        self._mask = DecodingMask(lengths, [*counts.values()], self._device)
        self._length_M = self._length_M[kept_M]


@contextlib.contextmanager
def open_decoder(
    model: TransformerDecoder, prompts: Sequence[Sequence[int]], counts: Sequence[int], max_new_tokens: int
) -> Iterator[Decoder]:
    """A decoder with fresh caches in every attention layer while the block runs; the model has none afterwards."""
    accept_layer_masks(model)
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    caches = [LayerCache(max_new_tokens) for _ in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.kv_cache, layer.cache_enabled = cache, True
    try:
        yield Decoder(model, caches, prompts, counts, next(model.parameters()).device)
    finally:
        for layer in layers:
            layer.kv_cache, layer.cache_enabled = None, False
