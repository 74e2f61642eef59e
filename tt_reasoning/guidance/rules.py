"""From what a value model says to guided logits: pure tensors (Q#, arXiv 2502.20548, eq. 4 and section 2).

The optimal policy of KL-regularised reinforcement learning with a return at the end is
``pi(y | x) ~ ref(y | x) * E[exp(eta Z(x, y))]``, Z being the return when the *reference* goes on. The bonus of a token
is the logarithm of that expectation, added to the reference's logit before temperature and top-p; a constant for all
tokens changes nothing. ``mean`` is the controlled decoding (CD, arXiv 2310.17022) that it is compared with: eta times
the *mean* of Z, which for a large eta prefers a small sure return to a large rare one.

Shapes: N rows, K candidates of each, A outputs of the value model a token, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tt_reasoning.types import Outside, Rule


def atoms(num_atoms: int, low: float, high: float, device: torch.device | str = "cpu") -> Tensor:
    """The returns that a categorical head tells apart.

    >>> atoms(3, 0.0, 1.0).tolist()
    [0.0, 0.5, 1.0]
    """
    return torch.linspace(low, high, num_atoms, device=device)


def mean_return(values_A: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The mean return that outputs say: of one output its sigmoid, of several that of the distribution over atoms.

    Shapes: [..., A] to [...].

    >>> mean_return(torch.tensor([0.0])).item(), mean_return(torch.tensor([0.0, 0.0, 0.0])).item()
    (0.5, 0.5)
    """
    if values_A.shape[-1] == 1:
        return values_A.squeeze(-1).float().sigmoid()
    return values_A.float().softmax(-1) @ atoms(values_A.shape[-1], low, high, values_A.device)


def token_bonus(values_A: Tensor, eta: float, rule: Rule, low: float = 0.0, high: float = 1.0) -> Tensor:
    """What is added to a token's logit. Shapes: [..., A] to [...], fp32.

    - ``bernoulli``: ln(1 - p + p e^eta) = softplus(l + eta) - softplus(l), p = sigmoid(l) the chance of return 1
    - ``expectation``: ln p, where p was trained to be the mean of exp(eta (R - 1)): the same less eta
    - ``categorical``: ln sum_i p_i e^(eta z_i) over the atoms z
    - ``mean``: eta times the mean return (CD)

    On returns of 0 and 1 the first three agree, up to a constant:

    >>> logit = torch.tensor([[0.0]])
    >>> round(token_bonus(logit, 2.0, "bernoulli").item(), 4)
    1.4338
    >>> round(token_bonus(torch.tensor([[0.0, 0.0]]), 2.0, "categorical").item(), 4)
    1.4338
    >>> learned = torch.tensor([[(1 + 2.718281828**-2) / 2]]).logit()
    >>> round(token_bonus(learned, 2.0, "expectation").item() + 2, 4)
    1.4338
    """
    values_A = values_A.float()
    if rule == "bernoulli":
        return (F.softplus(values_A + eta) - F.softplus(values_A)).squeeze(-1)
    if rule == "expectation":
        return F.logsigmoid(values_A).squeeze(-1)
    if rule == "categorical":
        z_A = atoms(values_A.shape[-1], low, high, values_A.device)
        return (values_A.log_softmax(-1) + eta * z_A).logsumexp(-1)
    return eta * mean_return(values_A, low, high)


def steer(logits_NV: Tensor, candidates_NK: Tensor | None, bonus_NK: Tensor, outside: Outside = "exclude") -> Tensor:
    """Logits with the bonus of each candidate added.

    Guidance never raises a token that was not asked about: by ``exclude`` it cannot be drawn, by ``keep`` it has the
    smallest bonus of the row's candidates.

    Args:
        candidates_NK: the tokens that the value model was asked about; None for all, with bonuses [N, V].

    >>> logits = torch.tensor([[1.0, 0.0, 3.0]])
    >>> steer(logits, torch.tensor([[2, 0]]), torch.tensor([[0.5, 2.0]])).tolist()
    [[3.0, -inf, 3.5]]
    >>> steer(logits, torch.tensor([[2, 0]]), torch.tensor([[0.5, 2.0]]), "keep").tolist()
    [[3.0, 0.5, 3.5]]
    """
    logits_NV = logits_NV.float()
    if candidates_NK is None:
        return logits_NV + bonus_NK
    if outside == "exclude":
        others_NV = torch.full_like(logits_NV, -torch.inf)
    else:
        others_NV = logits_NV + bonus_NK.min(-1, keepdim=True).values
    return others_NV.scatter(-1, candidates_NK, logits_NV.gather(-1, candidates_NK) + bonus_NK)


def token_divergence(logits_NV: Tensor, steered_NV: Tensor, probs_NV: Tensor, temperature: float) -> Tensor:
    """What the next token adds to the two numbers of ``Divergence``: [N, 2], in nats.

    KL(p, q) = sum p (ln p - ln q) with q = softmax(logits / temperature), and p the whole of
    softmax(steered / temperature), then what is drawn from. At temperature 0 both p are all on one token, and q is
    softmax(logits).

    Args:
        logits_NV: of the reference.
        steered_NV: the guided ones.
        probs_NV: what the token is drawn from, up to a factor (``rollout.token_probs``).

    >>> logits, probs = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> [round(value, 4) for value in token_divergence(logits, logits, probs, 1.0)[0].tolist()]
    [0.0, 0.6931]
    """
    log_q_NV = (logits_NV.float() / (temperature or 1.0)).log_softmax(-1)
    log_drawn_NV = probs_NV.log() - probs_NV.sum(-1, keepdim=True).log()
    log_whole_NV = (steered_NV.float() / temperature).log_softmax(-1) if temperature else log_drawn_NV
    both = [log_p.exp() * (log_p - log_q_NV) for log_p in (log_whole_NV, log_drawn_NV)]
    return torch.stack([kl_NV.nan_to_num(nan=0.0).sum(-1) for kl_NV in both], -1)  # 0 * (-inf) where p is 0
