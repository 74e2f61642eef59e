"""What Q# promises, from the loss that values are trained with to the logits that they steer (arXiv 2502.20548)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tt_reasoning.guidance.rules import steer, token_bonus
from tt_reasoning.losses import ReturnLoss

ETAS = [1.0, 2.0, 5.0, 10.0]


def fit(loss: ReturnLoss, returns: list[float]) -> Tensor:
    """The values that a token learns whose answers have these returns: the minimum of the loss, found by training."""
    values_A = torch.zeros(loss.num_values, requires_grad=True)
    optimizer = torch.optim.LBFGS([values_A], max_iter=100, tolerance_grad=1e-9, tolerance_change=0)
    returns_S, sample_S = torch.tensor(returns), torch.arange(len(returns))

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(values_A.expand(len(returns), -1), returns_S, sample_S, len(returns), len(returns))
        found.backward()
        return found

    optimizer.step(closure)
    return values_A.detach()


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_bernoulli_expectation_and_categorical_agree_on_returns_of_0_and_1(kind: str, eta: float) -> None:
    """Up to a constant, which changes no distribution: two tokens, right three times in ten and nine in ten."""
    tokens = [[1.0] * count + [0.0] * (10 - count) for count in (3, 9)]
    losses = {
        "bernoulli": ReturnLoss(kind),
        "expectation": ReturnLoss(kind, target="expectation", eta=eta),
        "categorical": ReturnLoss("categorical", num_atoms=5),
    }
    exact = [math.log(1 - p + p * math.exp(eta)) for p in (0.3, 0.9)]
    for rule, loss in losses.items():
        low, high = (token_bonus(fit(loss, returns), eta, rule).item() for returns in tokens)
        assert high - low == pytest.approx(exact[1] - exact[0], abs=2e-3), rule
    low = token_bonus(fit(losses["bernoulli"], tokens[0]), eta, "bernoulli").item()
    assert low == pytest.approx(exact[0], abs=2e-3)
    low = token_bonus(fit(losses["expectation"], tokens[0]), eta, "expectation").item()
    assert low == pytest.approx(exact[0] - eta, abs=2e-3)


def tree() -> Tensor:
    """What is learned of the paper's tree: left a return of .1 surely, right 1 with chance .05; a row each.

    The logits of the shares are the minimum: the loss is convex and its gradient there is zero.
    """
    loss, samples = ReturnLoss("categorical", num_atoms=11), ([0.1] * 20, [1.0] + [0.0] * 19)
    shares_NA = torch.zeros(2, 11)
    shares_NA[0, 1], shares_NA[1, 10], shares_NA[1, 0] = 1.0, 0.05, 0.95
    values_NA = torch.where(shares_NA > 0, shares_NA.log(), -1e4).requires_grad_()
    for values_A, returns in zip(values_NA, samples, strict=True):
        loss(values_A.expand(20, -1), torch.tensor(returns), torch.arange(20), 20, 20.0).backward()
    torch.testing.assert_close(values_NA.grad, torch.zeros(2, 11), atol=1e-7, rtol=0)
    return values_NA.detach()


def odds_of_right(eta: float, rule: str, prior: float) -> float:
    """pi(right) / pi(left) of the steered policy, by its logarithm, over the reference's."""
    logits_NV = torch.tensor([[1 - prior, prior]]).log()
    bonus_NK = token_bonus(tree(), eta, rule)[None]
    steered = steer(logits_NV, torch.tensor([[0, 1]]), bonus_NK)[0].double()
    return (steered[1] - steered[0]).item() - math.log(prior / (1 - prior))


@pytest.mark.parametrize("prior", [0.5, 0.01, 0.9])
@pytest.mark.parametrize("eta", ETAS)
def test_the_tree_is_weighed_exactly_by_q_sharp_and_by_the_mean(eta: float, prior: float) -> None:
    q_sharp = math.log(0.05 * math.exp(eta) + 0.95) - 0.1 * eta
    assert odds_of_right(eta, "categorical", prior) == pytest.approx(q_sharp, abs=1e-5)
    assert odds_of_right(eta, "mean", prior) == pytest.approx((0.05 - 0.1) * eta, abs=1e-5)


def test_a_large_eta_sends_q_sharp_to_the_best_return_and_the_mean_the_wrong_way() -> None:
    # ln(.05 e^eta + .95) - .1 eta is below 0 at eta 1 (1.086 against 1.105) and above at eta 2 (1.319 against 1.221).
    assert odds_of_right(1.0, "categorical", 0.5) < 0 < odds_of_right(2.0, "categorical", 0.5)
    for eta in (100.0, 1000.0):
        # Towards (1 - .1) eta + ln .05, and -(.1 - .05) eta.
        assert odds_of_right(eta, "categorical", 0.5) == pytest.approx(0.9 * eta + math.log(0.05), rel=1e-5)
        assert odds_of_right(eta, "mean", 0.5) == pytest.approx(-0.05 * eta, rel=1e-5)


def test_a_bernoulli_model_takes_a_sure_tenth_for_a_rare_one() -> None:
    """Why returns between 0 and 1 need the atoms: of .1 surely it keeps the mean alone."""
    assert token_bonus(fit(ReturnLoss(), [0.1]), 5.0, "bernoulli").item() == pytest.approx(
        math.log(0.9 + 0.1 * math.exp(5)), abs=1e-4
    )
    learned = fit(ReturnLoss("categorical", num_atoms=11), [0.1])
    assert token_bonus(learned, 5.0, "categorical").item() == pytest.approx(0.5, abs=0.01)
