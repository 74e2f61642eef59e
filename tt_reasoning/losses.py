"""Losses as pure tensors, for YAML's ``loss``.

Shapes: G completions of a prompt, R their tokens one after another, ``sample_R`` the completion of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_by_sample(values_R: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
    """The mean over each completion's tokens, G of them; 0 for an empty completion.

    >>> mean_by_sample(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [2.0, 0.0, 5.0]
    """
    totals_G = values_R.new_zeros(num_samples).index_add(0, sample_R, values_R)
    counts_G = torch.bincount(sample_R, minlength=num_samples).clamp(min=1)
    return totals_G / counts_G


def group_advantages(rewards_G: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) within a group (GRPO, arXiv 2402.03300; the constant of SSA, arXiv 2506.09014).

    NaN marks a completion that could not be judged: it is left out of the mean and gets advantage 0.

    >>> group_advantages(torch.tensor([0.0, 100.0, float("nan")]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    judged_G = ~rewards_G.isnan()
    if judged_G.sum() < 2:
        return torch.zeros_like(rewards_G)
    judged = rewards_G[judged_G]
    return torch.nan_to_num((rewards_G - judged.mean()) / (judged.std() + 1e-4))


class GRPOLoss:
    """Clipped policy gradient with a KL penalty to the start model (arXiv 2402.03300, eq. 3 and 4).

    A token's loss is ``-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) + kl_coeff * kl`` with
    ``ratio = exp(logprob - old)`` and the k3 estimator ``kl = exp(ref - logprob) - (ref - logprob) - 1``;
    tokens are averaged within a completion, completions within the group.

    Args:
        epsilon: clip range of the ratio; idle while there is one update a rollout (ratio 1).
        kl_coeff: weight of the KL term; 0 needs no start model.
    """

    def __init__(self, epsilon: float = 0.2, kl_coeff: float = 0.01) -> None:
        self.epsilon, self.kl_coeff = epsilon, kl_coeff

    def __call__(
        self, logprobs_R: Tensor, old_R: Tensor, ref_R: Tensor | None, advantages_G: Tensor, sample_R: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one group, and the means worth logging (``kl``, ``clipped_share``; detached).

        ``ref_R`` may be None when ``kl_coeff`` is 0.
        """
        num_samples = len(advantages_G)
        advantages_R = advantages_G[sample_R]
        ratio_R = (logprobs_R - old_R).exp()
        clipped_R = ratio_R.clamp(1 - self.epsilon, 1 + self.epsilon)
        loss_R = -torch.minimum(ratio_R * advantages_R, clipped_R * advantages_R)
        outside_R = (ratio_R != clipped_R).float()
        kl_R = torch.zeros_like(logprobs_R)
        if ref_R is not None:
            kl_R = (ref_R - logprobs_R).exp() - (ref_R - logprobs_R) - 1
            loss_R = loss_R + self.kl_coeff * kl_R
        means = {"kl": kl_R, "clipped_share": outside_R}
        return mean_by_sample(loss_R, sample_R, num_samples).mean(), {
            name: mean_by_sample(value.detach(), sample_R, num_samples).mean() for name, value in means.items()
        }
