"""Loss arithmetic, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tt_reasoning.errors import UserError
from tt_reasoning.losses import (
    DAPOLoss,
    DrGRPOLoss,
    GRPOLoss,
    GSPOLoss,
    JudgeSize,
    ReturnLoss,
    StepSize,
    ValueLoss,
    group_advantages,
    importance_weights,
    mean_by_sample,
    project,
)

# Two completions: tokens 0, 1 belong to the first, token 2 to the second.
SAMPLE_R = torch.tensor([0, 0, 1])
ALONE = StepSize(num_samples=2, num_tokens=3, max_new_tokens=10)


def test_one_update_a_rollout_is_the_plain_policy_gradient() -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, means = GRPOLoss(kl_coeff=0.0)(
        logprobs_R, logprobs_R.detach(), None, torch.tensor([1.0, -0.5]), SAMPLE_R, ALONE
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
    loss, means = GRPOLoss(kl_coeff=0.1)(logprobs_R, torch.zeros(3), ref_R, torch.zeros(2), SAMPLE_R, ALONE)
    # k3: 2 - ln 2 - 1 = 0.3069, 0, 0.5 + ln 2 - 1 = 0.1931
    kl = ((2 - math.log(2) - 1) / 2 + (0.5 + math.log(2) - 1)) / 2
    torch.testing.assert_close(means["kl"], torch.tensor(kl))
    torch.testing.assert_close(loss.detach(), torch.tensor(0.1 * kl))


def test_the_ratio_is_clipped_on_the_side_that_would_gain() -> None:
    old_R = torch.zeros(3)
    logprobs_R = torch.tensor([math.log(1.5), math.log(0.5), math.log(1.5)], requires_grad=True)
    loss, means = GRPOLoss(epsilon=0.2, kl_coeff=0.0)(
        logprobs_R, old_R, None, torch.tensor([1.0, -1.0]), SAMPLE_R, ALONE
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


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # A = (1, -0.5) on 2 tokens and 1: token losses -1, -1, 0.5
        (GRPOLoss(kl_coeff=0.0), (-1 + 0.5) / 2),
        (DrGRPOLoss(), (-1 - 1 + 0.5) / (2 * 10)),
        (DAPOLoss(), (-1 - 1 + 0.5) / 3),
        (GSPOLoss(), (-1 + 0.5) / 2),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else "",
)
def test_each_loss_averages_in_its_own_way(loss: GRPOLoss, expected: float) -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0])
    value, _ = loss(logprobs_R, logprobs_R, None, torch.tensor([1.0, -0.5]), SAMPLE_R, ALONE)
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss", [GRPOLoss(kl_coeff=0.0), DrGRPOLoss(), DAPOLoss(), GSPOLoss()], ids=lambda value: type(value).__name__
)
def test_a_steps_loss_is_the_sum_over_its_groups(loss: GRPOLoss) -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0, -0.5, -0.1])
    old_R = logprobs_R - torch.tensor([1e-4, -2e-4, 3e-4, 1e-4, 0.0])
    sample_R, advantages_G = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1.0, -0.5, 2.0])
    size = StepSize(num_samples=3, num_tokens=5, max_new_tokens=4)
    together, _ = loss(logprobs_R, old_R, None, advantages_G, sample_R, size)
    first, _ = loss(logprobs_R[:3], old_R[:3], None, advantages_G[:2], sample_R[:3], size)
    second, _ = loss(logprobs_R[3:], old_R[3:], None, advantages_G[2:], sample_R[3:] - 2, size)
    torch.testing.assert_close(first + second, together)


def test_clip_higher_leaves_more_room_above_than_below() -> None:
    logprobs_R, old_R = torch.tensor([math.log(1.25), math.log(1.5), math.log(0.7)]), torch.zeros(3)
    value, means = DAPOLoss()(logprobs_R, old_R, None, torch.tensor([1.0, -1.0]), SAMPLE_R, ALONE)
    # A=+1: 1.25 is inside (1 + 0.28), 1.5 is cut to 1.28; A=-1: max(0.7, 0.8) = 0.8 costs 0.8
    assert value.item() == pytest.approx(-(1.25 + 1.28 - 0.8) / 3)
    assert means["clipped_share"].item() == pytest.approx((0.5 + 1) / 2)


def test_gspo_has_one_ratio_a_completion_the_geometric_mean_of_its_tokens() -> None:
    logprobs_R = torch.tensor([0.3, -0.1, 0.2], requires_grad=True)
    value, _ = GSPOLoss(epsilon=0.5, epsilon_high=0.5)(
        logprobs_R, torch.zeros(3), None, torch.tensor([1.0, -1.0]), SAMPLE_R, ALONE
    )
    assert value.item() == pytest.approx(-(math.exp(0.1) - math.exp(0.2)) / 2)
    value.backward()
    # d exp(mean) / d logprob = exp(mean) / tokens
    torch.testing.assert_close(
        logprobs_R.grad, torch.tensor([-math.exp(0.1) / 4, -math.exp(0.1) / 4, math.exp(0.2) / 2])
    )


def test_without_the_deviation_advantages_are_differences_to_the_mean() -> None:
    rewards_G = torch.tensor([0.0, 0.0, 100.0, math.nan])
    expected = torch.tensor([-100 / 3, -100 / 3, 200 / 3, 0.0])
    torch.testing.assert_close(group_advantages(rewards_G, divide_by_std=False), expected)


def test_tokens_of_another_engine_weigh_by_the_ratio_of_the_policies_up_to_the_cap() -> None:
    old_R = torch.tensor([-1.0, -2.0, -3.0])
    sampled_R = old_R - torch.tensor([math.log(1.5), math.log(0.5), math.log(4.0)])
    weight_R, ratio_R = importance_weights(old_R, sampled_R, cap=2.0)
    torch.testing.assert_close(weight_R, torch.tensor([1.5, 0.5, 2.0]))
    torch.testing.assert_close(ratio_R, torch.tensor([1.5, 0.5, 4.0]))

    logprobs_R = old_R.clone().requires_grad_()
    loss, means = GRPOLoss(kl_coeff=0.0)(
        logprobs_R, old_R, None, torch.tensor([1.0, -1.0]), SAMPLE_R, ALONE, sampled_R=sampled_R
    )
    # -((1.5 + 0.5) / 2 * 1 + 2.0 * -1) / 2
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5))
    loss.backward()
    torch.testing.assert_close(logprobs_R.grad, torch.tensor([-1.5 / 4, -0.5 / 4, 2.0 / 2]))
    torch.testing.assert_close(means["importance_ratio"], torch.tensor(((1.5 + 0.5) / 2 + 4.0) / 2))
    torch.testing.assert_close(means["importance_error"], torch.tensor(((0.5 + 0.5) / 2 + 3.0) / 2))
    torch.testing.assert_close(means["importance_capped_share"], torch.tensor(0.5))


def test_without_a_cap_nothing_is_corrected_but_the_ratio_is_still_told() -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0])
    advantages_G = torch.tensor([1.0, -1.0])
    plain, _ = GRPOLoss(kl_coeff=0.0)(logprobs_R, logprobs_R, None, advantages_G, SAMPLE_R, ALONE)
    loss, means = GRPOLoss(kl_coeff=0.0, importance_cap=None)(
        logprobs_R, logprobs_R, None, advantages_G, SAMPLE_R, ALONE, sampled_R=logprobs_R - 1
    )
    assert loss == plain
    torch.testing.assert_close(means["importance_ratio"], torch.tensor(math.e))


def test_the_kl_term_is_not_weighed() -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0])
    losses = [
        GRPOLoss(kl_coeff=1.0)(
            logprobs_R, logprobs_R, logprobs_R + 1, torch.zeros(2), SAMPLE_R, ALONE, sampled_R=sampled_R
        )[0]
        for sampled_R in (None, logprobs_R - 1)
    ]
    assert losses[0] == losses[1] > 0


def test_means_are_over_the_completions_that_have_tokens() -> None:
    logprobs_R = torch.tensor([-1.0, -2.0, -3.0])
    sample_R = torch.tensor([0, 0, 2])  # completion 1 is masked
    _, means = GRPOLoss()(logprobs_R, logprobs_R, logprobs_R + 1, torch.zeros(3), sample_R, ALONE)
    torch.testing.assert_close(means["kl"], torch.tensor(math.e - 2))


NAN = math.nan


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_a_verifiers_loss_is_the_mean_over_the_tokens_that_have_a_target(kind: str) -> None:
    values_R = torch.tensor([0.0, math.log(3.0), 7.0, 2.0], requires_grad=True)
    target_R = torch.tensor([1.0, 0.0, NAN, NAN])
    loss, parts = ValueLoss(kind, language_model_weight=0.5)(values_R, target_R, None, JudgeSize(2, 0))
    # mse: (0 - 1)^2, (ln 3)^2; bce: -ln 0.5, -ln(1 - 3/4)
    errors = {"mse": (1.0, math.log(3.0) ** 2), "bce": (math.log(2.0), math.log(4.0))}[kind]
    torch.testing.assert_close(loss.detach(), torch.tensor(sum(errors) / 2))
    assert parts["value_loss"] == loss and parts["language_model_loss"] == 0
    loss.backward()
    gradient = {"mse": (2 * (0 - 1) / 2, 2 * math.log(3.0) / 2), "bce": ((0.5 - 1) / 2, 0.75 / 2)}[kind]
    torch.testing.assert_close(values_R.grad, torch.tensor([*gradient, 0.0, 0.0]))


def test_a_verifiers_words_are_a_mean_of_their_own() -> None:
    values_R, target_R = torch.tensor([0.5, 0.5]), torch.tensor([1.0, NAN])
    logprobs_N = torch.tensor([-1.0, -2.0, -6.0], requires_grad=True)
    loss, parts = ValueLoss("mse", language_model_weight=2.0)(values_R, target_R, logprobs_N, JudgeSize(1, 3))
    assert parts["language_model_loss"] == 3 and parts["value_loss"] == 0.25 and loss == 6.25
    loss.backward()
    torch.testing.assert_close(logprobs_N.grad, torch.full((3,), -2 / 3))


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_a_verifiers_loss_is_the_sum_over_the_rows_of_the_step(kind: str) -> None:
    values_R, target_R = torch.tensor([0.3, -1.0, 2.0, 0.7]), torch.tensor([1.0, NAN, 0.0, 1.0])
    logprobs_R, size = torch.tensor([-1.0, -2.0, -0.5, -4.0]), JudgeSize(3, 4)
    whole, _ = ValueLoss(kind)(values_R, target_R, logprobs_R, size)
    parts = [ValueLoss(kind)(values_R[s], target_R[s], logprobs_R[s], size)[0] for s in (slice(1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), whole)


def test_a_row_without_targets_and_words_has_a_gradient_of_zero() -> None:
    values_R, logprobs_N = torch.tensor([0.3], requires_grad=True), torch.zeros(0, requires_grad=True)
    loss, _ = ValueLoss()(values_R, torch.tensor([NAN]), logprobs_N, JudgeSize(5, 0))
    loss.backward()
    assert loss == 0 and values_R.grad.tolist() == [0.0] and logprobs_N.grad.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "bse"}, "value of config key loss.kind 'bse'"), ({"language_model_weight": -1}, "-1 is below 0")],
)
def test_a_verifiers_loss_that_there_is_not_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ValueLoss(**arguments)


LOG_3 = math.log(3.0)
# Three answers: two tokens of the first, which is right, one of the second, which is wrong, none of the third.
VALUES_SA = [[0.0], [LOG_3], [LOG_3]]  # sigmoids: 1/2, 3/4, 3/4


@pytest.mark.parametrize(
    ("arguments", "losses"),
    [
        ({"kind": "bce"}, [-math.log(0.5), -math.log(0.75), -math.log(0.25)]),
        ({"kind": "mse"}, [0.25, 0.0625, 0.5625]),
        # The wrong answer's target is e^-2 = y, cross-entropy -(y ln .75 + (1 - y) ln .25).
        (
            {"kind": "bce", "target": "expectation", "eta": 2.0},
            [-math.log(0.5), -math.log(0.75), -(math.exp(-2) * math.log(0.75) + (1 - math.exp(-2)) * math.log(0.25))],
        ),
        ({"kind": "mse", "target": "expectation", "eta": 2.0}, [0.25, 0.0625, (0.75 - math.exp(-2)) ** 2]),
    ],
    ids=["bce", "mse", "bce-expectation", "mse-expectation"],
)
def test_a_returns_loss_is_a_mean_over_answers_of_means_over_their_tokens(arguments: dict, losses: list) -> None:
    values_SA = torch.tensor(VALUES_SA, requires_grad=True)
    loss = ReturnLoss(**arguments)
    found = loss(values_SA, torch.tensor([1.0, 1.0, 0.0]), SAMPLE_R, num_samples=2, step_samples=4)
    assert found.item() == pytest.approx(((losses[0] + losses[1]) / 2 + losses[2]) / 4)
    found.backward()
    if loss.kind == "bce":  # (p - y) / tokens / answers
        slopes = [-0.5 / 2, -0.25 / 2, 0.75 - loss.targets(torch.tensor(0.0)).item()]
        torch.testing.assert_close(values_SA.grad, torch.tensor(slopes)[:, None] / 4)


def test_a_categorical_returns_loss_is_the_cross_entropy_to_the_atoms() -> None:
    # Atoms -1, 0, 1, probabilities 1/2, 1/4, 1/4; a return of 1/2 is half of 0 and half of 1.
    values_SA = torch.tensor([[math.log(2.0), 0.0, 0.0]] * 3)
    loss = ReturnLoss("categorical", num_atoms=3, low=-1.0, high=1.0)
    returns_S = torch.tensor([-1.0, 0.5, 0.0])
    expected = torch.tensor([math.log(2.0), math.log(4.0), math.log(4.0)])
    torch.testing.assert_close(loss.token_losses(values_SA, returns_S), expected)
    assert loss(values_SA, returns_S, SAMPLE_R, 2, 2).item() == pytest.approx((1.5 * math.log(2.0) + math.log(4.0)) / 2)
    torch.testing.assert_close(loss.mean_return(values_SA), torch.full((3,), -0.25))


def test_a_return_is_shared_between_the_atoms_beside_it_and_exact_on_one() -> None:
    returns_S = torch.linspace(-2, 3, 101)
    shares_SA, atoms_A = project(returns_S, 6, -2.0, 3.0), torch.linspace(-2, 3, 6)
    torch.testing.assert_close(shares_SA @ atoms_A, returns_S, atol=1e-5, rtol=0)
    torch.testing.assert_close(shares_SA.sum(-1), torch.ones(101))
    assert ((shares_SA > 0).sum(-1) <= 2).all()
    eleven_A = torch.arange(11) / 10  # not all of them are fp32 numbers
    assert torch.equal(project(eleven_A, 11, 0.0, 1.0), torch.eye(11))


@pytest.mark.parametrize("arguments", [{"kind": "bce"}, {"kind": "categorical", "num_atoms": 2}], ids=["bce", "atoms"])
def test_a_returns_loss_is_the_sum_over_the_rows_of_the_step(arguments: dict) -> None:
    loss, returns_S = ReturnLoss(**arguments), torch.tensor([1.0, 1.0, 0.0, 1.0])
    values_SA = torch.tensor([[0.3, 1.0], [-1.0, 0.2], [2.0, 0.1], [0.7, 0.7]])[:, : loss.num_values]
    whole = loss(values_SA, returns_S, torch.tensor([0, 0, 1, 2]), 3, 3)
    rows = [
        loss(values_SA[:2], returns_S[:2], torch.tensor([0, 0]), 1, 3),
        loss(values_SA[2:], returns_S[2:], torch.tensor([0, 1]), 2, 3),
    ]
    torch.testing.assert_close(sum(rows), whole)


def test_the_mean_return_undoes_the_target() -> None:
    loss = ReturnLoss(target="expectation", eta=3.0)
    means = 0.3 + 0.7 * math.exp(-3)  # right three times in ten
    values_A = torch.tensor([means]).logit()
    assert loss.mean_return(values_A).item() == pytest.approx(0.3)
    assert ReturnLoss("mse").mean_return(torch.tensor([LOG_3])).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ce"}, "unknown value of config key loss.kind 'ce'"),
        ({"target": "mean"}, "unknown value of config key loss.target 'mean'"),
        ({"eta": 5.0}, "config key loss.eta: 5, but with loss.target=bernoulli eta belongs to decoding"),
        ({"target": "expectation"}, "config key loss.eta: missing; loss.target=expectation"),
        ({"target": "expectation", "eta": 0.0}, "config key loss.eta: 0 is not above 0"),
        ({"kind": "categorical", "target": "expectation", "eta": 5.0}, "config key loss.target: expectation learns"),
        ({"kind": "categorical", "num_atoms": 1}, "config key loss.num_atoms: 1 is below 2"),
        ({"kind": "categorical", "low": 1.0}, "config key loss.low: 1 is not below loss.high=1"),
        ({"kind": "mse", "low": -1.0}, "mse learns returns in .0, 1."),
        ({"low": None}, "config key loss.low: found None, wanted a number"),
        ({"eta": "five"}, "config key loss.eta: found 'five', wanted a number"),
        ({"target": "expectation", "eta": NAN}, "config key loss.eta: found nan, wanted a number"),
        ({"target": "expectation", "eta": math.inf}, "config key loss.eta: found inf, wanted a number"),
        ({"kind": "categorical", "num_atoms": 2.5}, "config key loss.num_atoms: found 2.5, wanted a whole number"),
    ],
)
def test_a_returns_loss_that_there_is_not_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReturnLoss(**arguments)


@pytest.mark.parametrize("value", [1.5, -0.5, NAN])
@pytest.mark.parametrize("kind", ["bce", "mse", "categorical"])
def test_a_return_outside_the_range_is_refused(kind: str, value: float) -> None:
    loss = ReturnLoss(kind)
    with pytest.raises(UserError, match=r"a return of .* is outside \[0, 1\]"):
        loss(torch.zeros(1, loss.num_values), torch.tensor([value]), torch.tensor([0]), 1, 1)
