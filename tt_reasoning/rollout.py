"""Sampling with the model in training: one prefill a prompt, then its samples side by side.

Randomness is a function of (seed of the sample, position), not of a generator's state, so a sample draws
the same numbers on one process or eight, in any batch, before or after a resume. What it makes of them is
the same as far as the logits are: another batch shape may round them otherwise (bf16 and GPUs above all).

Samples that are done leave the batch: their rows of the key-value caches and of everything else go.

Shapes: B prompts, G samples a prompt, N = B*G, M rows still in the batch, P tokens of the longest prompt,
V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtune.modules import MultiHeadAttention, TransformerDecoder

from tt_reasoning.attention import accept_layer_masks
from tt_reasoning.decoding import DecodingMask, LayerCache
from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prefix_tree import any_row_length, pack_groups, unembed_as
from tt_reasoning.training import Process
from tt_reasoning.types import FinishReason

_CHECK_EVERY = 8  # tokens between two looks at which samples are done: each look waits for the device
# Rows are dropped once at most this share of the batch is still needed. Copying the others' caches costs about a
# sixth of a decoding step (SmolLM2-135M, CPU), so an eighth of the rows pays for it well before the next look.
_KEPT_SHARE = 7 / 8


class Completion(NamedTuple):
    """One sample: its tokens (the ending token included, if it came), its text, and why it ended.

    ``logprobs`` are the log-probabilities that another engine drew the tokens with; None from this one.
    """

    tokens: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float] | None = None


class Rollout(Protocol):
    """Where a recipe's completions come from. Every process makes one and calls all of it at the same steps."""

    def start(
        self,
        policy: TransformerDecoder,
        process: Process,
        tokenizer: ChatTokenizer,
        *,
        checkpoint: str,
        stop: Sequence[str],
        max_len: int,
    ) -> None:
        """Get ready to sample from ``policy``, whose Hugging Face folder is ``checkpoint``.

        Args:
            stop: strings that end a completion and stay in its text.
            max_len: most tokens of a prompt with its completion.
        """
        ...

    def sync(self) -> dict[str, float]:
        """Take the policy's weights as they are now; returns what is worth logging."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """As many completions of every prompt as it has seeds; greedy at temperature 0."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class NativeRollout:
    """Sampling by the model in training itself (``generate``): nothing to hand over, ``batch_size`` prompts at a time.

    Args:
        batch_size: prompts that decode together, each with all its samples.

    Example (YAML):
        ``rollout: {_component_: tt_reasoning.rollout.NativeRollout, batch_size: 4}``
    """

    def __init__(self, batch_size: int = 4) -> None:
        if batch_size < 1:
            raise UserError(f"config key rollout.batch_size: {batch_size} is below 1")
        self.batch_size = batch_size

    def start(
        self,
        policy: TransformerDecoder,
        process: Process,
        tokenizer: ChatTokenizer,
        *,
        checkpoint: str,
        stop: Sequence[str],
        max_len: int,
    ) -> None:
        """Remember whom to sample from."""
        self.policy, self.tokenizer, self.stop = policy, tokenizer, stop

    def sync(self) -> dict[str, float]:
        """Nothing: the policy samples itself."""
        return {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """As many completions of every prompt as it has seeds; greedy at temperature 0."""
        found: list[list[Completion]] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = slice(start, start + self.batch_size)
            found += generate(
                self.policy,
                prompts[batch],
                seeds[batch],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                stop=self.stop,
                stop_tokens=self.tokenizer.stop_tokens,
                decode=self.tokenizer.decode,
            )
        return found

    def close(self) -> None:
        """Nothing to free."""


@contextlib.contextmanager
def _layer_caches(model: TransformerDecoder, max_new_tokens: int) -> Iterator[list[LayerCache]]:
    """Fresh caches in every attention layer while the block runs, none afterwards."""
    accept_layer_masks(model)
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    caches = [LayerCache(max_new_tokens) for _ in layers]
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
        probs_NV = torch.empty_like(probs_NV).scatter_(-1, order_NV, sorted_NV.masked_fill(beyond_NV, 0))
    cumulative_NV = probs_NV.double().cumsum(-1)
    point_N1 = uniform_N.unsqueeze(-1).double() * cumulative_NV[:, -1:]
    return torch.searchsorted(cumulative_NV, point_N1, right=True).squeeze(-1)


def cut_completion(
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

    A completion ends at a stop token, at the first stop string (kept in the text), or at the limit. Every
    ``_CHECK_EVERY`` tokens the samples that are done leave the batch, if they are at least an eighth of it.
    Under FSDP every process must call it with the same ``max_new_tokens``, and all go on until the slowest is
    done; one that has nothing left keeps a single row.

    Args:
        prompts: B lists of token ids.
        seeds: B lists of G seeds, each in [0, 2**63).

    Returns:
        B lists of G completions.
    """
    device = next(model.parameters()).device
    num_samples = len(seeds[0])
    lengths, counts = [len(prompt) for prompt in prompts], [num_samples] * len(prompts)
    stops = set(stop_tokens)
    row = pack_groups([(prompt, []) for prompt in prompts], device)
    ends_B = torch.tensor(lengths, device=device).cumsum(0) - 1
    was_training = model.training
    model.eval()
    whole_logits = model.unembed

    def last_logits(hidden_1TD: Tensor) -> Tensor:  # the other rows over the vocabulary are never needed
        return whole_logits(hidden_1TD[:, ends_B])

    with _gathered(model), _layer_caches(model, max_new_tokens) as caches:
        with unembed_as(model, last_logits), any_row_length(model):
            logits_BV = model(row.tokens_1T, mask=row.mask, input_pos=row.positions_1T)[0]
        for cache in caches:
            cache.split(lengths, len(prompts) * num_samples)
        logits_MV = logits_BV.repeat_interleave(num_samples, 0)
        seeds_M = torch.tensor(seeds, device=device).flatten()
        position_M = torch.tensor(lengths, device=device).repeat_interleave(num_samples)
        mask = DecodingMask(lengths, counts, device)
        rows = list(range(len(prompts) * num_samples))  # which sample each row of the batch draws
        found: list[list[int]] = [[] for _ in rows]
        done: set[int] = set()
        unread: list[Tensor] = []
        for step in range(max_new_tokens):
            token_M = sample_tokens(logits_MV, uniform(seeds_M, step), temperature, top_k, top_p)
            unread.append(token_M)
            last = step + 1 == max_new_tokens
            if last or (step + 1) % _CHECK_EVERY == 0:
                for sample, new in zip(rows, torch.stack(unread, 1).tolist(), strict=True):
                    if sample not in done:
                        found[sample] += new
                        if not stops.isdisjoint(new) or _holds(stop, found[sample], decode):
                            done.add(sample)
                unread.clear()
                left = [row for row, sample in enumerate(rows) if sample not in done]
                if last or _none_left(len(left), device):
                    break
                # A process that is done keeps a row: the others' forward passes need it.
                kept = left or [0]
                if len(kept) <= _KEPT_SHARE * len(rows):
                    before = sorted({sample // num_samples for sample in rows})
                    rows, kept_K = [rows[row] for row in kept], torch.tensor(kept, device=device)
                    per_prompt = Counter(sample // num_samples for sample in rows)
                    stay = torch.tensor([i for i, prompt in enumerate(before) if prompt in per_prompt], device=device)
                    lengths_left = [lengths[prompt] for prompt in per_prompt]
                    for cache in caches:
                        cache.keep(stay, kept_K, max(lengths_left))
                    mask = DecodingMask(lengths_left, [*per_prompt.values()], device)
                    token_M, seeds_M, position_M = (x[kept_K] for x in (token_M, seeds_M, position_M))
            logits_MV = model(token_M[:, None], mask=mask, input_pos=(position_M + step)[:, None])[:, -1]
    model.train(was_training)
    completions = [cut_completion(tokens, stops, stop, decode) for tokens in found]
    return [completions[i : i + num_samples] for i in range(0, len(completions), num_samples)]


def _holds(stop: Sequence[str], tokens: list[int], decode: Callable[[list[int]], str]) -> bool:
    """Whether the text of these tokens has a stop string."""
    text = decode(tokens) if stop else ""
    return any(s in text for s in stop)


def _none_left(left: int, device: torch.device) -> bool:
    """Whether every sample of every process is done; ``left`` are those of this process that are not."""
    if not dist.is_initialized():
        return left == 0
    left_everywhere = torch.tensor(left, device=device)
    dist.all_reduce(left_everywhere)
    return left_everywhere.item() == 0
