"""Rollouts with caches draw what the model without caches says, whatever is sampled beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torchtune.modules import TransformerDecoder

from tt_reasoning.models import ChatTokenizer
from tt_reasoning.rollout import Completion, generate, sample_tokens, uniform

PROMPTS = [[10, 20, 30], [40] * 17, [50, 60, 70, 80, 90]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformerDecoder:
    return tiny_decoder(folder)


def draw(
    model: TransformerDecoder, folder: Path, prompts: list[list[int]], **options: object
) -> list[list[Completion]]:
    tokenizer = ChatTokenizer(folder)
    defaults = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "stop_tokens": tokenizer.stop_tokens,
        "decode": tokenizer.decode,
        "seeds": [[100 * i + g for g in range(3)] for i in range(len(prompts))],
    }
    return generate(model, prompts, **(defaults | options))


def draw_slowly(model: TransformerDecoder, prompt: list[int], seed: int, stop_token: int) -> list[int]:
    """The peer: one sample, the whole row through the model again for every token."""
    tokens: list[int] = []
    for step in range(12):
        logits_V = model(torch.tensor([prompt + tokens]))[0, -1]
        tokens.append(sample_tokens(logits_V[None], uniform(torch.tensor([seed]), step), 1.0).item())
        if tokens[-1] == stop_token:
            break
    return tokens


def test_cached_batched_rollouts_equal_one_sample_at_a_time_without_a_cache(
    model: TransformerDecoder, folder: Path
) -> None:
    together = draw(model, folder, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for g in range(3):
            assert together[i][g].tokens == draw_slowly(model, prompt, 100 * i + g, stop_token=258)


def test_a_sample_does_not_depend_on_its_batch(model: TransformerDecoder, folder: Path) -> None:
    together = draw(model, folder, PROMPTS)
    alone = draw(model, folder, PROMPTS[1:2], seeds=[[100, 101, 102]])
    assert alone[0] == together[1]
    assert len({tuple(c.tokens) for c in together[1]}) == 3


def test_a_stop_token_ends_a_completion_and_is_kept(model: TransformerDecoder, folder: Path) -> None:
    first = draw(model, folder, PROMPTS[:1])[0][0]
    assert first.finish_reason == "length" and len(first.tokens) == 12
    stopped = draw(model, folder, PROMPTS[:1], stop_tokens=[first.tokens[4]])[0][0]
    end = first.tokens.index(first.tokens[4]) + 1
    assert stopped.tokens == first.tokens[:end] and stopped.finish_reason == "stop"


def test_a_stop_string_ends_a_completion_at_its_first_token_that_completes_it(
    model: TransformerDecoder, folder: Path
) -> None:
    first = draw(model, folder, [list(b"count: ")], max_new_tokens=40)[0][0]
    readable = next(c for c in first.text if c.isascii() and c.isprintable())
    stopped = draw(model, folder, [list(b"count: ")], max_new_tokens=40, stop=[readable])[0][0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == first.text[: first.text.index(readable) + 1]
    assert stopped.tokens == first.tokens[: len(stopped.tokens)]


def test_the_model_is_left_as_it_was(model: TransformerDecoder, folder: Path) -> None:
    before = model(torch.tensor([PROMPTS[0]]))
    model.train()
    draw(model, folder, PROMPTS)
    assert model.training and not model.caches_are_enabled()
    torch.testing.assert_close(model(torch.tensor([PROMPTS[0]])), before)


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    values = torch.stack([uniform(torch.arange(2000), position) for position in range(50)])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(values.var() - 1 / 12) < 0.002
    assert values.unique().numel() == values.numel()
    correlation = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.02


def test_samples_follow_the_distribution() -> None:
    logits_NV = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    counts = torch.bincount(sample_tokens(logits_NV, uniform(torch.arange(20_000), 0), 1.0), minlength=3)
    torch.testing.assert_close(counts / 20_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("options", "kept"), [({"top_k": 2}, {0, 1}), ({"top_p": 0.5}, {0}), ({"top_p": 0.51}, {0, 1})], ids=str
)
def test_top_k_and_top_p_keep_the_likeliest(options: dict[str, float], kept: set[int]) -> None:
    logits_NV = torch.tensor([0.5, 0.3, 0.2]).log().expand(2000, 3)
    assert set(sample_tokens(logits_NV, uniform(torch.arange(2000), 0), 1.0, **options).tolist()) == kept


def test_temperature_zero_is_greedy() -> None:
    assert sample_tokens(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([0.99]), 0).tolist() == [1]
