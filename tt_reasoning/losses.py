"""Losses as pure tensors, for YAML's ``loss``: policy gradients (GRPO, Dr. GRPO, DAPO, GSPO), judges' labels, values.

A loss is called once a row (one or more groups) and returns the row's share of the step's loss, so that a step's
loss is the sum over its rows. What it needs to know of the others is in ``StepSize`` (``JudgeSize``). A policy loss
of your own subclasses ``GRPOLoss``: the recipe reads its ``kl_coeff`` (0: no start model) and ``divide_by_std``.

Shapes: G completions of the row, R their tokens one after another, ``sample_R`` the completion of each; S judged
steps of the row; A values a token.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.guidance import LossKind, Target
from tt_reasoning.guidance.rules import mean_return

Means = dict[str, Tensor]


class StepSize(NamedTuple):
    """What a step averages over: all groups of a process, where sharding averages gradients over processes.

    ``num_samples`` completions with ``num_tokens`` tokens (a mean over the processes, so not always whole).
    """

    num_samples: int
    num_tokens: float
    max_new_tokens: int


def sum_by_sample(values_R: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
    """The sum over each completion's tokens, G of them.

    >>> sum_by_sample(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [4.0, 0.0, 5.0]
    """
    return values_R.new_zeros(num_samples).index_add(0, sample_R, values_R)


def mean_by_sample(values_R: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
    """The mean over each completion's tokens, G of them; 0 for an empty completion.

    >>> mean_by_sample(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [2.0, 0.0, 5.0]
    """
    counts_G = torch.bincount(sample_R, minlength=num_samples).clamp(min=1)
    return sum_by_sample(values_R, sample_R, num_samples) / counts_G


def group_advantages(rewards_G: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """(r - mean) / (std + 1e-4) within a group (GRPO, arXiv 2402.03300; the constant of SSA, arXiv 2506.09014).

    NaN marks a completion that could not be judged: it is left out of the mean and gets advantage 0.

    Args:
        divide_by_std: False leaves the difference to the mean (Dr. GRPO, arXiv 2503.20783): dividing favours
            groups that are nearly all right or all wrong.

    >>> group_advantages(torch.tensor([0.0, 100.0, float("nan")]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    judged_G = ~rewards_G.isnan()
    if judged_G.sum() < 2:
        return torch.zeros_like(rewards_G)
    judged = rewards_G[judged_G]
    centred_G = torch.nan_to_num(rewards_G - judged.mean())
    return centred_G / (judged.std() + 1e-4) if divide_by_std else centred_G


def importance_weights(old_R: Tensor, sampled_R: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """min(exp(old - sampled), cap) a token, and the ratio before the cap, for tokens that another engine drew.

    An engine with other kernels or another dtype draws from a slightly other policy than the one that is trained;
    the ratio of the two corrects that on average, and the cap bounds its variance (truncated importance sampling,
    Ionides 2008; for policy gradients IMPALA, arXiv 1802.01561).

    Args:
        old_R: the trainer's log-probabilities of the tokens under the policy that sampled.
        sampled_R: the engine's.

    >>> importance_weights(torch.tensor([0.0, -1.0]), torch.tensor([-2.0, -1.0]), cap=2.0)[0].tolist()
    [2.0, 1.0]
    """
    ratio_R = (old_R - sampled_R).exp()
    return ratio_R.clamp(max=cap), ratio_R


def _kl(logprobs_R: Tensor, ref_R: Tensor | None) -> Tensor:
    """The k3 estimate of KL(policy, reference) a token: exp(d) - d - 1 with d = ref - logprob; 0 without one."""
    if ref_R is None:
        return torch.zeros_like(logprobs_R)
    difference_R = ref_R - logprobs_R
    return difference_R.exp() - difference_R - 1


class GRPOLoss:
    """Clipped policy gradient with a KL penalty to the start model (arXiv 2402.03300, eq. 3 and 4).

    A token's loss is ``-w * min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + kl_coeff * kl`` with
    ``ratio = exp(logprob - old)`` and the k3 estimator ``kl = exp(ref - logprob) - (ref - logprob) - 1``;
    tokens are averaged within a completion, completions over the step. ``w`` is 1 unless another engine sampled
    (``importance_weights``).

    Args:
        epsilon: clip range of the ratio; idle while there is one update a rollout (ratio 1).
        epsilon_high: its upper side, ``epsilon`` unless given (clip-higher, DAPO, arXiv 2503.14476).
        kl_coeff: weight of the KL term; 0 needs no start model.
        divide_by_std: whether advantages are divided by the group's deviation (``group_advantages``).
        importance_cap: most that a token sampled by another engine may weigh; None does not correct at all.

    Example (YAML):
        ``loss: {_component_: tt_reasoning.losses.GRPOLoss, kl_coeff: 0.01}``
    """

    def __init__(
        self,
        epsilon: float = 0.2,
        kl_coeff: float = 0.01,
        epsilon_high: float | None = None,
        divide_by_std: bool = True,
        importance_cap: float | None = 2.0,
    ) -> None:
        self.epsilon, self.kl_coeff, self.divide_by_std = epsilon, kl_coeff, divide_by_std
        self.epsilon_high = epsilon if epsilon_high is None else epsilon_high
        self.importance_cap = importance_cap

    def __call__(
        self,
        logprobs_R: Tensor,
        old_R: Tensor,
        ref_R: Tensor | None,
        advantages_G: Tensor,
        sample_R: Tensor,
        step: StepSize,
        sampled_R: Tensor | None = None,
    ) -> tuple[Tensor, Means]:
        """A row's share of the step's loss, and its means over completions worth logging, detached.

        These are ``kl`` and ``clipped_share``, and with ``sampled_R`` the ``importance_ratio`` before the cap, its
        distance from 1 (``importance_error``) and the share of tokens that it cuts (``importance_capped_share``).

        Args:
            ref_R: the start model's log-probabilities; may be None when ``kl_coeff`` is 0.
            sampled_R: those that another engine drew the tokens with; None where the policy itself sampled.
        """
        ratio_R = self.ratios(logprobs_R, old_R, sample_R, len(advantages_G))
        clipped_R = ratio_R.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        advantages_R = advantages_G[sample_R]
        kl_R = _kl(logprobs_R, ref_R)
        gain_R = torch.minimum(ratio_R * advantages_R, clipped_R * advantages_R)
        means = {"kl": kl_R, "clipped_share": (ratio_R != clipped_R).float()}
        if sampled_R is not None:
            cap = float("inf") if self.importance_cap is None else self.importance_cap
            weight_R, importance_R = importance_weights(old_R, sampled_R, cap)
            if self.importance_cap is not None:
                gain_R = gain_R * weight_R
            means["importance_ratio"] = importance_R
            means["importance_error"] = (importance_R - 1).abs()
            means["importance_capped_share"] = (importance_R > cap).float()
        loss_R = self.kl_coeff * kl_R - gain_R
        loss = self.average(loss_R, sample_R, len(advantages_G), step)
        with_tokens = sample_R.unique().numel()  # a masked completion has none and is no part of a mean
        return loss, {
            name: mean_by_sample(value.detach(), sample_R, len(advantages_G)).sum() / max(with_tokens, 1)
            for name, value in means.items()
        }

    def ratios(self, logprobs_R: Tensor, old_R: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """The importance ratio of each token."""
        return (logprobs_R - old_R).exp()

    def average(self, loss_R: Tensor, sample_R: Tensor, num_samples: int, step: StepSize) -> Tensor:
        """Tokens within their completion, completions over the step."""
        return mean_by_sample(loss_R, sample_R, num_samples).sum() / step.num_samples


class DrGRPOLoss(GRPOLoss):
    """GRPO without its two biases (arXiv 2503.20783, "Understanding R1-Zero-Like Training").

    Tokens are added up and divided by the constant ``num_samples * max_new_tokens``, so that a long wrong answer
    is not punished less than a short one; advantages are not divided by the group's deviation.
    """

    def __init__(
        self,
        epsilon: float = 0.2,
        kl_coeff: float = 0.0,
        epsilon_high: float | None = None,
        divide_by_std: bool = False,
        importance_cap: float | None = 2.0,
    ) -> None:
        super().__init__(epsilon, kl_coeff, epsilon_high, divide_by_std, importance_cap)

    def average(self, loss_R: Tensor, sample_R: Tensor, num_samples: int, step: StepSize) -> Tensor:
        """All tokens over a constant."""
        return loss_R.sum() / (step.num_samples * step.max_new_tokens)


class DAPOLoss(GRPOLoss):
    """Every token of the step weighs the same, and the ratio is clipped higher above (arXiv 2503.14476, eq. 8).

    The paper's values are the defaults: epsilon 0.2, epsilon_high 0.28, no KL term.
    """

    def __init__(
        self,
        epsilon: float = 0.2,
        kl_coeff: float = 0.0,
        epsilon_high: float | None = 0.28,
        divide_by_std: bool = True,
        importance_cap: float | None = 2.0,
    ) -> None:
        super().__init__(epsilon, kl_coeff, epsilon_high, divide_by_std, importance_cap)

    def average(self, loss_R: Tensor, sample_R: Tensor, num_samples: int, step: StepSize) -> Tensor:
        """All tokens over the step's tokens."""
        return loss_R.sum() / step.num_tokens


class GSPOLoss(GRPOLoss):
    """One ratio a completion: the geometric mean of its tokens' ratios (arXiv 2507.18071, eq. 7).

    The ratio is far closer to 1 than a token's, hence the small clip range of the paper.
    """

    def __init__(
        self,
        epsilon: float = 3e-4,
        kl_coeff: float = 0.0,
        epsilon_high: float | None = 4e-4,
        divide_by_std: bool = True,
        importance_cap: float | None = 2.0,
    ) -> None:
        super().__init__(epsilon, kl_coeff, epsilon_high, divide_by_std, importance_cap)

    def ratios(self, logprobs_R: Tensor, old_R: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """The completion's ratio at each of its tokens."""
        return mean_by_sample(logprobs_R - old_R, sample_R, num_samples).exp()[sample_R]


class JudgeSize(NamedTuple):
    """What a step averages over: the weights of its labelled steps, and the tokens of its language-model loss.

    Both are means over the processes, where sharding averages gradients over them.
    """

    weight: float
    num_tokens: float


class StepLabelLoss:
    """Cross-entropy of the label tokens at the step ends: ``-(t * log p(good) + (1 - t) * log p(bad))``.

    ``t`` is 1 or 0 for hard labels, a share of rollouts for soft ones (Math-Shepherd, arXiv 2312.08935, eq. 1).
    Inference divides the probability between the two labels alone, so ``over="labels"`` trains exactly what is
    read; ``over="vocabulary"`` (Let's Verify Step by Step, arXiv 2305.20050) also teaches that one of them comes next.

    Args:
        over: what the probability is shared among.
        language_model_weight: weight of the mean loss of the tokens of right solutions; 0 leaves it out.

    Example (YAML):
        ``loss: {_component_: tt_reasoning.losses.StepLabelLoss, over: labels}``
    """

    def __init__(self, over: str = "labels", language_model_weight: float = 0.0) -> None:
        if over not in ("labels", "vocabulary"):
            raise UserError(f"config key loss.over: '{over}', wanted 'labels' or 'vocabulary'")
        if language_model_weight < 0:
            raise UserError(f"config key loss.language_model_weight: {language_model_weight} is below 0")
        self.over, self.language_model_weight = over, language_model_weight

    def __call__(
        self,
        good_S: Tensor,
        bad_S: Tensor,
        vocabulary_S: Tensor,
        target_S: Tensor,
        weight_S: Tensor,
        logprobs_R: Tensor | None,
        trained_R: Tensor,
        size: JudgeSize,
    ) -> tuple[Tensor, Means]:
        """The row's share of the loss, and of its parts (``label_loss``, ``language_model_loss``).

        Args:
            good_S: the logit of the token for a right step, ``bad_S`` for a wrong one.
            vocabulary_S: the log-sum-exp of all logits there.
            target_S: in [0, 1]; NaN where there is no label.
            weight_S: how much each step counts; that of a step without label does not.
            logprobs_R: of the solutions' tokens; None without a language-model loss.
            trained_R: True for the tokens of that loss.
        """
        labelled_S = ~target_S.isnan()
        t_S = target_S.nan_to_num()
        among_S = torch.logaddexp(good_S, bad_S) if self.over == "labels" else vocabulary_S
        nll_S = -(t_S * (good_S - among_S) + (1 - t_S) * (bad_S - among_S))
        label = (nll_S * weight_S * labelled_S).sum() / size.weight
        language = label.new_zeros(())
        if logprobs_R is not None and size.num_tokens:
            language = -(logprobs_R * trained_R).sum() / size.num_tokens
        means = {"label_loss": label.detach(), "language_model_loss": language.detach()}
        return label + self.language_model_weight * language, means


class ValueLoss:
    """A token-level verifier's (Cobbe et al., arXiv 2110.14168, section 4.2 and appendix E): values, and language.

    The mean over all value tokens of the step of ``(v - y)**2`` (``mse``) or of the cross-entropy of ``sigmoid(v)``
    (``bce``), and ``language_model_weight`` times the mean of ``-logprob`` over the step's learned tokens. Each mean is
    over the tokens of the whole step, so a long answer weighs more than a short one, as it does in the paper, and
    neither rows nor processes change anything.

    Args:
        kind: ``bce`` makes values logits (``squash``); the paper trained with ``mse`` and found both alike.
        language_model_weight: 0 leaves the language model out, and its logits uncomputed.

    Example (YAML):
        ``loss: {_component_: tt_reasoning.losses.ValueLoss, kind: bce}``

    >>> target_R = torch.tensor([1.0, float("nan")])
    >>> ValueLoss("mse")(torch.tensor([0.5, 3.0]), target_R, None, JudgeSize(1, 0))[0].item()
    0.25
    """

    def __init__(self, kind: Literal["mse", "bce"] = "bce", language_model_weight: float = 1.0) -> None:
        if kind not in ("mse", "bce"):
            raise unknown_name("value of config key loss.kind", kind, ("mse", "bce"))
        if language_model_weight < 0:
            raise UserError(f"config key loss.language_model_weight: {language_model_weight} is below 0")
        self.kind, self.language_model_weight = kind, language_model_weight

    @property
    def squash(self) -> bool:
        """Whether a value is a logit, and its sigmoid the score."""
        return self.kind == "bce"

    @property
    def meaning(self) -> str:
        """What a value says, for the checkpoint."""
        return f"{'logit of: ' if self.squash else ''}the answer is correct"

    def __call__(
        self, values_R: Tensor, target_R: Tensor, logprobs_N: Tensor | None, size: JudgeSize
    ) -> tuple[Tensor, Means]:
        """A row's share of the step's loss, and of its two parts, detached.

        Args:
            target_R: in [0, 1]; NaN where the value is not trained.
            logprobs_N: of the tokens that the language model learns; None with ``language_model_weight=0``.
            size: its weight is the number of tokens with a target.
        """
        known_R = ~target_R.isnan()
        error = F.binary_cross_entropy_with_logits if self.squash else F.mse_loss
        value = error(values_R[known_R], target_R[known_R], reduction="sum") / max(size.weight, 1)
        language = values_R.new_zeros(()) if logprobs_N is None else -logprobs_N.sum() / max(size.num_tokens, 1)
        parts = {"value_loss": value.detach(), "language_model_loss": language.detach()}
        return value + self.language_model_weight * language, parts


class ReturnLoss:
    """A value model's that is to steer decoding (Q#, arXiv 2502.20548, eq. 3): what return an answer will have.

    Every supervised token is to say the target of its answer; tokens are averaged within an answer and answers over the
    whole step, so that each counts the same whatever its length, and neither rows nor processes change anything. The
    target does not depend on later values of the model (no bootstrapping): it is a classifier's.

    - ``bce``: cross-entropy of ``sigmoid(v)``; ``mse``: ``(sigmoid(v) - y)**2``, both on one value a token
    - ``categorical``: cross-entropy of ``softmax(v)`` over ``num_atoms`` returns evenly spaced from ``low`` to
      ``high``; a return between two of them is shared out so that its mean is kept (``project``)

    Args:
        target: ``bernoulli`` learns the return R itself, in [0, 1], and serves every eta at decoding;
            ``expectation`` learns exp(eta (R - 1)), for one eta alone.
        eta: the inverse of the paper's temperature, the larger the harder it steers; with ``expectation``.

    Example (YAML):
        ``loss: {_component_: tt_reasoning.losses.ReturnLoss, kind: bce}``

    >>> two_answers_S, returns_S = torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 0.0])
    >>> values_SA = torch.tensor([[0.0], [0.0], [50.0]])  # half, half, surely 1
    >>> ReturnLoss("mse")(values_SA, returns_S, two_answers_S, num_samples=2, step_samples=2).item()
    0.625
    """

    def __init__(
        self,
        kind: LossKind = "bce",
        num_atoms: int = 11,
        low: float = 0.0,
        high: float = 1.0,
        target: Target = "bernoulli",
        eta: float | None = None,
    ) -> None:
        for name, value, known in (("kind", kind, get_args(LossKind)), ("target", target, get_args(Target))):
            if value not in known:
                raise unknown_name(f"value of config key loss.{name}", str(value), known)
        for name, value in (("num_atoms", num_atoms), ("low", low), ("high", high), ("eta", eta)):
            _check_number(name, value, whole=name == "num_atoms", optional=name == "eta")
        if kind == "categorical":
            _check_atoms(num_atoms, low, high)
        elif (low, high) != (0, 1):
            raise UserError(
                f"config key loss.low, loss.high: [{low:g}, {high:g}] is for the atoms of loss.kind=categorical; "
                f"{kind} learns returns in [0, 1]"
            )
        _check_target(kind, target, eta)
        self.kind, self.num_atoms, self.low, self.high = kind, num_atoms, float(low), float(high)
        self.target, self.eta = target, eta

    @property
    def num_values(self) -> int:
        """Values a token."""
        return self.num_atoms if self.kind == "categorical" else 1

    @property
    def meaning(self) -> str:
        """What the values say, for the checkpoint.

        >>> ReturnLoss().meaning, ReturnLoss(target="expectation", eta=5).meaning
        ('logit of: the return', 'logit of: exp(5 (the return - 1))')
        """
        if self.kind == "categorical":
            return f"logits of: the returns from {self.low:g} to {self.high:g}"
        learned = f"exp({self.eta:g} (the return - 1))" if self.target == "expectation" else "the return"
        return f"logit of: {learned}"

    def check_returns(self, returns_S: Tensor) -> None:
        """Raise UserError for a return that no target says."""
        outside = returns_S[~((returns_S >= self.low) & (returns_S <= self.high))]
        if len(outside):
            raise UserError(
                f"a return of {outside[0].item():g} is outside [{self.low:g}, {self.high:g}], the range of "
                f"loss.kind={self.kind}" + ("; set loss.low and loss.high" if self.kind == "categorical" else "")
            )

    def __call__(
        self, values_SA: Tensor, returns_S: Tensor, sample_S: Tensor, num_samples: int, step_samples: float
    ) -> Tensor:
        """A row's share of the step's loss.

        Args:
            values_SA: of the S supervised tokens.
            returns_S: each token's answer's.
            sample_S: which of the row's ``num_samples`` answers each token is of.
            step_samples: answers of the whole step (a mean over the processes, where sharding averages gradients).
        """
        losses_S = self.token_losses(values_SA, returns_S)
        return mean_by_sample(losses_S, sample_S, num_samples).sum() / step_samples

    def token_losses(self, values_SA: Tensor, returns_S: Tensor) -> Tensor:
        """The loss of every token, S of them.

        >>> ReturnLoss("categorical", num_atoms=3).token_losses(torch.zeros(1, 3), torch.tensor([0.25])).item() / (
        ...     torch.tensor(3.0).log().item())
        1.0
        """
        self.check_returns(returns_S)
        if self.kind == "categorical":
            shares_SA = project(returns_S, self.num_atoms, self.low, self.high)
            return -(shares_SA * values_SA.float().log_softmax(-1)).sum(-1)
        y_S, values_S = self.targets(returns_S), values_SA.float().squeeze(-1)
        if self.kind == "mse":
            return (values_S.sigmoid() - y_S) ** 2
        return F.binary_cross_entropy_with_logits(values_S, y_S, reduction="none")

    def targets(self, returns: Tensor) -> Tensor:
        """What the values of answers with these returns are to say on the mean.

        >>> ReturnLoss(target="expectation", eta=2.0).targets(torch.tensor([1.0, 0.0]))
        tensor([1.0000, 0.1353])
        """
        return (self.eta * (returns - 1)).exp() if self.target == "expectation" else returns

    def mean_return(self, values: Tensor) -> Tensor:
        """The mean return that values say, in the units of the return. Shapes: [..., A] to [...].

        With ``expectation`` on returns of 0 and 1 the mean m of the target says it, as (m - e^-eta) / (1 - e^-eta),
        which is below 0 where m is less than any target.
        """
        mean = mean_return(values, self.low, self.high)
        if self.target == "bernoulli":
            return mean
        least = self.targets(torch.zeros((), device=mean.device))
        return (mean - least) / (1 - least)


def project(returns_S: Tensor, num_atoms: int, low: float, high: float) -> Tensor:
    """Each return as shares of the two atoms beside it, with its mean; one on an atom is that atom's. Shape: [S, A].

    >>> project(torch.tensor([0.25, 1.0]), 3, 0.0, 1.0).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    place_S = (returns_S.double() - low) / (high - low) * (num_atoms - 1)
    nearest_S = place_S.round()
    place_S = torch.where((place_S - nearest_S).abs() < 1e-5, nearest_S, place_S)  # 0.3 in fp32 is the atom 0.3
    atoms_A = torch.arange(num_atoms, device=returns_S.device)
    return (1 - (place_S[:, None] - atoms_A).abs()).clamp(min=0).float()


def _check_number(name: str, value: object, *, whole: bool, optional: bool) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise UserError(f"config key loss.{name}: found {value!r}, wanted a {'whole ' if whole else ''}number")


def _check_atoms(num_atoms: int, low: float, high: float) -> None:
    if num_atoms < 2:
        raise UserError(f"config key loss.num_atoms: {num_atoms} is below 2")
    if not low < high:
        raise UserError(f"config key loss.low: {low:g} is not below loss.high={high:g}")


def _check_target(kind: str, target: str, eta: float | None) -> None:
    if target == "bernoulli" and eta is not None:
        raise UserError(
            f"config key loss.eta: {eta:g}, but with loss.target=bernoulli eta belongs to decoding, where one model "
            "serves every eta; leave it null, or set loss.target=expectation"
        )
    if target == "expectation" and kind == "categorical":
        raise UserError(
            "config key loss.target: expectation learns one number, and loss.kind=categorical a distribution of "
            "returns, of which decoding takes the expectation for any eta; set loss.target=bernoulli"
        )
    if target == "expectation" and (eta is None or eta <= 0):
        raise UserError(
            "config key loss.eta: "
            + ("missing" if eta is None else f"{eta:g} is not above 0")
            + "; loss.target=expectation learns exp(eta (R - 1)) for one eta, the inverse of the paper's temperature"
        )
