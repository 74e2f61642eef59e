"""Sampling with the model in training: one prefill a prompt, then its samples side by side.

Randomness is a function of (seed of the sample, position), not of a generator's state, so a sample draws
the same numbers on one process or eight, in any batch, before or after a resume. What it makes of them is
the same as far as the logits are: another batch shape may round them otherwise (bf16 and GPUs above all).

Samples that are done leave the batch: their rows of the key-value caches and of everything else go.

Shapes: B prompts, N samples of all of them, M rows still in the batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtune.modules import TransformerDecoder

from tt_reasoning.decoding import open_decoder
from tt_reasoning.errors import UserError
from tt_reasoning.guidance.rules import token_divergence
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.training import Process
from tt_reasoning.types import Divergence, FinishReason

_CHECK_EVERY = 8  # tokens between two looks at which samples are done: each look waits for the device
# Rows are dropped once at most this share of the batch is still needed. Copying the others' caches costs about a
# sixth of a decoding step (SmolLM2-135M, CPU), so an eighth of the rows pays for it well before the next look.
_KEPT_SHARE = 7 / 8


class Completion(NamedTuple):
    """One sample: its tokens (the ending token included, if it came), its text, and why it ended.

    ``logprobs`` are the log-probabilities that another engine drew the tokens with; None from this one. ``divergence``
    is that of a sample with a guide.
    """

    tokens: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    divergence: Divergence | None = None


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


def token_probs(logits_NV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What a token is drawn from, up to a factor: softmax(logits / temperature), 0 beyond top-k and top-p, fp32.

    All on the largest logit at temperature 0.

    >>> token_probs(torch.tensor([[0.0, 0.0, -100.0]]), temperature=1.0, top_k=2).tolist()
    [[0.5, 0.5, 0.0]]
    """
    if temperature == 0:
        return torch.zeros_like(logits_NV, dtype=torch.float32).scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    logits_NV = logits_NV.float() / temperature
    if 0 < top_k < logits_NV.shape[-1]:
        floor_N1 = logits_NV.topk(top_k, -1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < floor_N1, -torch.inf)
    probs_NV = logits_NV.softmax(-1)
    if top_p < 1:
        sorted_NV, order_NV = probs_NV.sort(-1, descending=True)
        beyond_NV = sorted_NV.cumsum(-1) - sorted_NV >= top_p
        probs_NV = torch.empty_like(probs_NV).scatter_(-1, order_NV, sorted_NV.masked_fill(beyond_NV, 0))
    return probs_NV


def draw_tokens(probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """One token a row, by inverting the cumulative distribution at ``uniform_N``; factors do not matter."""
    cumulative_NV = probs_NV.double().cumsum(-1)
    point_N1 = uniform_N.unsqueeze(-1).double() * cumulative_NV[:, -1:]
    return torch.searchsorted(cumulative_NV, point_N1, right=True).squeeze(-1)


def sample_tokens(
    logits_NV: Tensor, uniform_N: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw one token a row from ``token_probs`` at ``uniform_N``; greedy at temperature 0.

    >>> sample_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6]), temperature=1.0).tolist()
    [1]
    """
    if temperature == 0:
        return logits_NV.argmax(-1)
    return draw_tokens(token_probs(logits_NV, temperature, top_k, top_p), uniform_N)


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


class Steering(Protocol):
    """What changes the logits of a batch before tokens are drawn (``guidance.decode``)."""

    def steer(self, logits_MV: Tensor, newest_M: Tensor | None) -> Tensor:
        """The logits to draw from; ``newest_M`` are the tokens drawn last, None behind the prompts."""
        ...

    def keep(self, kept: Sequence[int]) -> None:
        """Let all rows but these go."""
        ...


class Guide(Protocol):
    """Steers samples as they are drawn."""

    def open(
        self, prompts: Sequence[Sequence[int]], counts: Sequence[int], max_new_tokens: int
    ) -> AbstractContextManager[Steering]:
        """Get ready for some prompts with so many samples of each."""
        ...


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
    guide: Guide | None = None,
) -> list[list[Completion]]:
    """Sample completions of B prompts, as many of each as it has seeds.

    A completion ends at a stop token, at the first stop string (kept in the text), or at the limit. Every
    ``_CHECK_EVERY`` tokens the samples that are done leave the batch, if they are at least an eighth of it.
    Under FSDP every process must call it with the same ``max_new_tokens``, and all go on until the slowest is
    done; one that has nothing left keeps a single row.

    Args:
        prompts: B lists of token ids.
        seeds: B lists of seeds, each in [0, 2**63).
        guide: steers what is drawn; temperature, top-k and top-p come behind it. Completions have a ``divergence``.

    Returns:
        B lists of completions, one a seed.
    """
    device = next(model.parameters()).device
    counts = [len(of_prompt) for of_prompt in seeds]
    stops = set(stop_tokens)
    was_training = model.training
    model.eval()
    with ExitStack() as opened:
        opened.enter_context(_gathered(model))
        decoder = opened.enter_context(open_decoder(model, prompts, counts, max_new_tokens))
        steering = opened.enter_context(guide.open(prompts, counts, max_new_tokens)) if guide else None
        logits_BV = decoder.read_prompts(model.unembed)[0]
        logits_MV = logits_BV.repeat_interleave(torch.tensor(counts, device=device), 0)
        seeds_M = torch.tensor([seed for of_prompt in seeds for seed in of_prompt], device=device)
        rows = list(range(len(seeds_M)))  # which sample each row of the batch draws
        found: list[list[int]] = [[] for _ in rows]
        steered: list[list[list[float]]] = [[] for _ in rows]
        done: set[int] = set()
        unread: list[Tensor] = []
        unread_steered: list[Tensor] = []
        token_M: Tensor | None = None
        for step in range(max_new_tokens):
            if steering is None:
                token_M = sample_tokens(logits_MV, uniform(seeds_M, step), temperature, top_k, top_p)
            else:
                steered_MV = steering.steer(logits_MV, token_M)
                probs_MV = token_probs(steered_MV, temperature, top_k, top_p)
                unread_steered.append(token_divergence(logits_MV, steered_MV, probs_MV, temperature))
                token_M = draw_tokens(probs_MV, uniform(seeds_M, step))
            unread.append(token_M)
            last = step + 1 == max_new_tokens
            if last or (step + 1) % _CHECK_EVERY == 0:
                for sample, new in zip(rows, torch.stack(unread, 1).tolist(), strict=True):
                    if sample not in done:
                        found[sample] += new
                        if not stops.isdisjoint(new) or _holds(stop, found[sample], decode):
                            done.add(sample)
                unread.clear()
                if unread_steered:
                    for sample, new in zip(rows, torch.stack(unread_steered, 1).tolist(), strict=True):
                        steered[sample] += new
                    unread_steered.clear()
                left = [row for row, sample in enumerate(rows) if sample not in done]
                if last or _none_left(len(left), device):
                    break
                # A process that is done keeps a row: the others' forward passes need it.
                kept = left or [0]
                if len(kept) <= _KEPT_SHARE * len(rows):
                    rows, kept_K = [rows[row] for row in kept], torch.tensor(kept, device=device)
                    token_M, seeds_M = token_M[kept_K], seeds_M[kept_K]
                    decoder.keep(kept)
                    if steering is not None:
                        steering.keep(kept)
            logits_MV = decoder.step(token_M[:, None])[:, -1]
    model.train(was_training)
    cut = [cut_completion(tokens, stops, stop, decode) for tokens in found]
    if guide:
        cut = [c._replace(divergence=_sum_up(steps, len(c.tokens))) for c, steps in zip(cut, steered, strict=True)]
    completions = iter(cut)
    return [list(islice(completions, count)) for count in counts]


def _sum_up(steps: Sequence[Sequence[float]], num_tokens: int) -> Divergence:
    """The divergence of a completion of so many tokens, from that of each; further digits depend on the batch."""
    whole, sampled = zip(*steps[:num_tokens], strict=True)
    return Divergence(whole=round(math.fsum(whole), 4), sampled=round(math.fsum(sampled), 4))


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
