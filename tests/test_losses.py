"""Loss arithmetic, worked by hand."""

from __future__ import annotations

import math

import torch

from tt_reasoning.losses import GRPOLoss, group_advantages, mean_by_sample

# Two completions: tokens 0, 1 belong to the first, token 2 to the second.
SAMPLE_R = torch.tensor([0, 0, 1])


def test_one_update_a_rollout_is_the_plain_policy_gradient() -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, means = GRPOLoss(kl_coeff=0.0)(
        logprobs_R, logprobs_R.detach(), None, torch.tensor([1.0, -0.5]), SAMPLE_R
    )
    # ratio 1 everywhere: -(mean(1, 1) + mean(-0.5)) / 2
    assert loss.item() == -0.25
    loss.backward()
    # d loss / d logprob = -A / (tokens of the completion * 2 completions)
    torch.testing.assert_close(logprobs_R.grad, torch.tensor([-0.25, -0.25, 0.25]))
    assert means["clipped_share"].item() == 0 and means["kl"].item() == 0


def test_kl_is_the_k3_estimator_and_is_averaged_by_completion() -> None:
    logprobs_R = torch.zeros(3, requires_grad=True)
    ref_R = torch.tensor([math.log(2.0), 0.0, math.log(0.5)])
    loss, means = GRPOLoss(kl_coeff=0.1)(logprobs_R, torch.zeros(3), ref_R, torch.zeros(2), SAMPLE_R)
    # k3: 2 - ln 2 - 1 = 0.3069, 0, 0.5 + ln 2 - 1 = 0.1931
    kl = ((2 - math.log(2) - 1) / 2 + (0.5 + math.log(2) - 1)) / 2
    torch.testing.assert_close(means["kl"], torch.tensor(kl))
    torch.testing.assert_close(loss.detach(), torch.tensor(0.1 * kl))


def test_the_ratio_is_clipped_on_the_side_that_would_gain() -> None:
    old_R = torch.zeros(3)
    logprobs_R = torch.tensor([math.log(1.5), math.log(0.5), math.log(1.5)], requires_grad=True)
    loss, means = GRPOLoss(epsilon=0.2, kl_coeff=0.0)(
        logprobs_R, old_R, None, torch.tensor([1.0, -1.0]), SAMPLE_R
    )
    # A=+1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5; A=-1: min(-1.5, -1.2) = -1.5
    torch.testing.assert_close(loss.detach(), torch.tensor(-((1.2 + 0.5) / 2 - 1.5) / 2))
    loss.backward()
    # the clipped token has no gradient; d(ratio)/d(logprob) = ratio
    torch.testing.assert_close(logprobs_R.grad, torch.tensor([0.0, -0.5 / 4, 1.5 / 2]))
    torch.testing.assert_close(means["clipped_share"], torch.tensor(1.0))


def test_advantages_are_standardised_within_the_group() -> None:
    # mean 50, unbiased deviation of (0, 0, 100, 100) is 57.735
    expected = 50 / (57.73502691896258 + 1e-4)
    torch.testing.assert_close(
        group_advantages(torch.tensor([0.0, 0.0, 100.0, 100.0])),
        torch.tensor([-expected, -expected, expected, expected]),
    )


def test_equal_rewards_give_no_advantage() -> None:
    assert group_advantages(torch.tensor([5.0, 5.0, 5.0])).tolist() == [0.0, 0.0, 0.0]


def test_what_cannot_be_judged_takes_no_part_in_its_group() -> None:
    nan = math.nan
    with_gap = group_advantages(torch.tensor([0.0, nan, 100.0]))
    assert with_gap[1] == 0
    torch.testing.assert_close(with_gap[[0, 2]], group_advantages(torch.tensor([0.0, 100.0])))
    assert group_advantages(torch.tensor([nan, 100.0, nan])).tolist() == [0.0, 0.0, 0.0]


def test_a_long_completion_weighs_as_much_as_a_short_one() -> None:
    values_R = torch.tensor([1.0, 1.0, 1.0, 4.0])
    assert mean_by_sample(values_R, torch.tensor([0, 0, 0, 1]), 2).tolist() == [1.0, 4.0]
