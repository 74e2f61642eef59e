"""One row for a whole group is the same computation as one row a completion."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.prefix_tree import completion_logprobs, pack_group


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


@pytest.mark.parametrize("lengths", [[5], [1, 1], [3, 9, 0, 7], [12, 12, 12, 12]], ids=str)
@pytest.mark.parametrize("prompt_length", [1, 40])
def test_shared_prompt_gives_the_logprobs_and_gradients_of_separate_rows(
    model: TransformerDecoder, lengths: list[int], prompt_length: int
) -> None:
    chance = random.Random(sum(lengths) + prompt_length)
    prompt = [chance.randrange(300) for _ in range(prompt_length)]
    completions = [[chance.randrange(300) for _ in range(length)] for length in lengths]
    weights_R = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(1))
    results = []
    for logprobs_R in (
        separate_logprobs(model, prompt, completions),
        completion_logprobs(model, pack_group(prompt, completions, "cpu"), chunk=4),
    ):
        model.zero_grad()
        (logprobs_R * weights_R).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((logprobs_R.detach(), gradient))
    (separate, separate_gradient), (shared, shared_gradient) = results
    assert separate_gradient.norm() > 0.1
    torch.testing.assert_close(shared, separate, atol=1e-4, rtol=0)
    assert (shared_gradient - separate_gradient).norm() <= 1e-5 * separate_gradient.norm()


def test_the_first_token_of_every_completion_is_predicted_from_the_end_of_the_prompt() -> None:
    group = pack_group([5, 6, 7], [[1, 2], [1], [3, 4, 9]], "cpu")
    assert group.read_R.tolist() == [2, 3, 2, 2, 6, 7]
    assert group.positions_1T.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5]]


def test_a_completion_sees_the_prompt_and_itself_alone() -> None:
    mask_TT = pack_group([5, 6], [[1, 2], [3]], "cpu").mask_1TT[0]
    assert mask_TT.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
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
