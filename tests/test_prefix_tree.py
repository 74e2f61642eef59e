"""One row for a whole group is the same computation as one row a completion."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torch import Tensor
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from tt_reasoning.attention import AttentionKind
from tt_reasoning.prefix_tree import completion_logprobs, fill_rows, pack_group, pack_groups


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformerDecoder:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), model_type=request.param)
    return tiny_decoder(folder)


def separate_logprobs(model: TransformerDecoder, prompt: list[int], completions: list[list[int]]) -> Tensor:
    """The peer: every completion in a row of its own behind its own copy of the prompt, full logits."""
    rows = []
    for completion in completions:
        logits_TV = model(torch.tensor([prompt + completion]))[0].log_softmax(-1)
        predicting = logits_TV[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
        rows.append(predicting[torch.arange(len(completion)), completion])
    return torch.cat(rows)


Group = tuple[list[int], list[list[int]]]


def random_groups(prompt_lengths: list[int], lengths: list[list[int]], seed: int = 0) -> list[Group]:
    chance = random.Random(seed)
    return [
        ([chance.randrange(300) for _ in range(p)], [[chance.randrange(300) for _ in range(c)] for c in group])
        for p, group in zip(prompt_lengths, lengths, strict=True)
    ]


def gradient_of(model: TransformerDecoder, logprobs_R: Tensor) -> Tensor:
    """The gradient of a sum in which every token has its own weight."""
    weights_R = torch.randn(len(logprobs_R), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (logprobs_R * weights_R).sum().backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters()])


ROWS = {
    "one": ([40], [[5]]),
    "one_token_each": ([1], [[1, 1]]),
    "an_empty_one": ([40], [[3, 9, 0, 7]]),
    "all_full": ([7], [[12, 12, 12, 12]]),
    "three_groups": ([40, 3, 17], [[3, 9, 0, 7], [1], [0, 6, 6]]),
    "random": ([random.Random(s).randrange(1, 60) for s in range(5)], [[s, 2 * s, 11 - s] for s in range(5)]),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("attention", ["split", "dense"])
@pytest.mark.parametrize("name", ROWS)
def test_one_row_gives_the_logprobs_and_gradients_of_separate_rows(
    model: TransformerDecoder, name: str, attention: AttentionKind, checkpointing: bool
) -> None:
    groups = random_groups(*ROWS[name])
    separate = torch.cat([separate_logprobs(model, *group) for group in groups])
    separate_gradient = gradient_of(model, separate)
    assert separate_gradient.norm() > 0.1
    if checkpointing:
        model = copy.deepcopy(model)
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    shared = completion_logprobs(model, pack_groups(groups, "cpu", attention), chunk=4)
    torch.testing.assert_close(shared, separate, atol=1e-4, rtol=0)
    assert (gradient_of(model, shared) - separate_gradient).norm() <= 1e-5 * separate_gradient.norm()


@pytest.mark.parametrize("attention", ["split", "dense"])
def test_in_bf16_one_row_is_no_further_from_fp32_than_separate_rows_are(
    model: TransformerDecoder, attention: AttentionKind
) -> None:
    small = copy.deepcopy(model).bfloat16()
    rounded = copy.deepcopy(small).float()  # the same weights, exact arithmetic
    errors: dict[str, list[float]] = {"separate": [], "shared": []}
    gradient_errors: dict[str, list[float]] = {"separate": [], "shared": []}
    for seed in range(8):
        groups = random_groups([40, 20], [[16, 5, 16], [8, 16]], seed)
        exact = torch.cat([separate_logprobs(rounded, *group) for group in groups])
        exact_gradient = gradient_of(rounded, exact)
        ways = {
            "separate": torch.cat([separate_logprobs(small, *group) for group in groups]).float(),
            "shared": completion_logprobs(small, pack_groups(groups, "cpu", attention)),
        }
        for way, logprobs_R in ways.items():
            errors[way].append((logprobs_R - exact).pow(2).mean().item())
            gradient_errors[way].append((gradient_of(small, logprobs_R) - exact_gradient).norm().item())
    for measured in (errors, gradient_errors):
        assert 0 < sum(measured["shared"]) <= 1.1 * sum(measured["separate"]), measured


def test_flex_attention_sees_what_the_dense_mask_shows(model: TransformerDecoder) -> None:
    groups = random_groups(*ROWS["three_groups"])
    with torch.no_grad():  # it has no backward on a CPU
        flex, dense = (completion_logprobs(model, pack_groups(groups, "cpu", kind)) for kind in ("flex", "dense"))
    torch.testing.assert_close(flex, dense, atol=1e-5, rtol=0)


def test_attention_in_parts_computes_what_a_long_row_needs_in_any_head_dimension() -> None:
    torch.manual_seed(0)
    row = pack_groups(random_groups([700, 130], [[90, 300, 0], [64, 1]]), "cpu")
    length = row.tokens_1T.shape[1]
    for dim in (8, 64, 80):
        inputs = [torch.randn(1, 3, length, dim, requires_grad=True) for _ in range(3)]
        weight = torch.randn(1, 3, length, dim)
        found = []
        for kind in ("split", "dense"):
            row.mask.kind = kind
            out = row.mask(*inputs)
            found.append((out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)))
        for split, dense in zip(*found, strict=True):
            torch.testing.assert_close(split, dense, atol=2e-5, rtol=1e-4)


def test_a_row_of_completions_without_a_token_has_no_logprobs_and_no_gradient(model: TransformerDecoder) -> None:
    logprobs_R = completion_logprobs(model, pack_group([1, 2, 3], [[], []], "cpu"))
    assert logprobs_R.shape == (0,)
    model.zero_grad()
    logprobs_R.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_groups_share_a_row_up_to_the_budget_and_a_longer_one_is_alone() -> None:
    rows = fill_rows([500, 400, 1200, 100, 300], 1000)
    assert rows == [[0, 1, 3], [2], [4]]
    assert fill_rows([5, 5], None) == [[0], [1]]


def test_the_first_token_of_every_completion_is_predicted_from_the_end_of_the_prompt() -> None:
    group = pack_group([5, 6, 7], [[1, 2], [1], [3, 4, 9]], "cpu")
    assert group.read_R.tolist() == [2, 3, 2, 2, 6, 7]
    assert group.positions_1T.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5]]


def test_a_completion_sees_the_prompt_and_itself_alone() -> None:
    mask_TT = pack_groups([([5, 6], [[1, 2], [3]]), ([7], [[4]])], "cpu").mask.dense()
    assert mask_TT.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_a_row_may_be_longer_than_the_model_while_its_positions_are_not(model: TransformerDecoder) -> None:
    prompt, completions = [1] * 10, [[2, 3, 4]] * 4
    limit, model.max_seq_len = model.max_seq_len, 13
    try:
        logprobs_R = completion_logprobs(model, pack_group(prompt, completions, "cpu"))
        assert model.max_seq_len == 13
    finally:
        model.max_seq_len = limit
    torch.testing.assert_close(logprobs_R, separate_logprobs(model, prompt, completions), atol=1e-5, rtol=0)


def test_temperature_divides_the_logits(model: TransformerDecoder) -> None:
    prompt, completion = [1, 2, 3], [4, 5]
    logits_TV = model(torch.tensor([prompt + completion]))[0]
    expected = (logits_TV / 2.0).log_softmax(-1)[[2, 3], completion]
    torch.testing.assert_close(
        completion_logprobs(model, pack_group(prompt, [completion], "cpu"), temperature=2.0), expected
    )
