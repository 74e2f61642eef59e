"""Keys and values while samples are drawn: of every prompt once, of every sample its own tokens.

The samples of a prompt look at the same keys, so these are not copied for each of them, nor for each query head that
shares a key head: a token of G samples reads the prompt's keys once in place of G times and more.

Shapes: B prompts, P tokens of the longest, N samples of all of them, C own tokens of each so far, K key heads,
Q query heads of one key head, E the dimension of a head, S samples of the prompt with the most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchtune.modules import MultiHeadAttention

from tt_reasoning.attention import LayerMask


class LayerCache:
    """The keys and values of one attention layer; stands where a torchtune layer has its ``kv_cache``.

    The first ``update`` is the prompts' row; ``split`` makes it one row a prompt; then every update is one more token
    of each sample. On a CPU they are held in fp32, as is what they are multiplied with.
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
    """One new token of every sample over its prompt and its own tokens, out of each layer's ``LayerCache``.

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
        """Attention of the newest tokens. Shapes: q and what is returned [N, K * Q, 1, E]; k and v are in the cache."""
        cache: LayerCache = layer.kv_cache
        assert cache.prompt is not None and cache.own is not None
        (k_BKPE, v_BKPE), (k_NKCE, v_NKCE) = cache.prompt, (x[:, :, : cache.size] for x in cache.own)
        with torch.autocast(q.device.type, enabled=False):  # scores stay in fp32
            q_NKQE = q.to(k_BKPE.dtype).unflatten(1, (k_BKPE.shape[1], -1)).squeeze(3)
            to_prompt = _scores(self._by_prompt(q_NKQE), k_BKPE) + self.bias_B11P
            to_own = _scores(q_NKQE, k_NKCE)
            to_prompt_NKQP = self._by_sample(to_prompt, q_NKQE.shape[2])
            scores = torch.cat([to_prompt_NKQP, to_own], -1) * q.shape[-1] ** -0.5
            p_prompt, p_own = scores.softmax(-1).to(v_BKPE.dtype).split([k_BKPE.shape[2], cache.size], -1)
            from_prompt = self._by_sample(self._by_prompt(p_prompt) @ v_BKPE, q_NKQE.shape[2])
            out_NKQE = from_prompt + p_own @ v_NKCE
        return out_NKQE.flatten(1, 2).unsqueeze(2).to(q.dtype)

    def _by_prompt(self, x_NKQX: Tensor) -> Tensor:
        """The rows of a prompt's samples side by side: [B, K, S * Q, ...]."""
        return x_NKQX[self.slots_BS].transpose(1, 2).flatten(2, 3)

    def _by_sample(self, x_BKRX: Tensor, queries: int) -> Tensor:
        """The way back from ``_by_prompt``."""
        return x_BKRX.unflatten(2, (-1, queries)).transpose(1, 2).flatten(0, 1)[self.back_N]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T in fp32, whatever they are held in."""
    if q.dtype == torch.float32:
        return q @ k.transpose(-1, -2)
    flat = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
    return flat.unflatten(0, q.shape[:2])
