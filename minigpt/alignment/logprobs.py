"""Log-probabilities of what a policy did, and three estimates of how far it has left its reference.

    log π(y|x) = Σₜ log π(yₜ | x, y_<t)          logits at t judge token t + 1; only the answer's own tokens count

    with ρ = π_ref(y)/π(y) and y drawn from π:      k1 = −log ρ        k2 = ½ (log ρ)²        k3 = ρ − 1 − log ρ

E[k1] = E[k3] = KL(π‖π_ref). k1 can be negative, k3 cannot (e^u ≥ 1 + u) and scatters less. k2 is biased, but little when the two
are close. As a *loss* they are something else again: the gradient of a sampled k1 is 0 on average, of k2 it is ∇KL(π‖π_ref), and
of k3 it is ∇KL(π_ref‖π), the other way around (lesson 18).

Source: course B, "DPO", for the sums; Schulman 2020, "Approximating KL divergence", for k1, k2, k3.
`token_logprobs` and `sequence_logprobs` live in training/losses.py, where everything above can reach them; this is their other name.

Shapes: B batch, T time, V vocabulary. An array over actions has T − 1 columns: column t is the choice of token t + 1.
"""
import torch
from torch import Tensor

from minigpt.training.losses import sequence_logprobs, token_logprobs

__all__ = ["token_logprobs", "sequence_logprobs", "kl_estimates", "masked_mean", "entropy"]


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 for each sample of π, in nats: (…), (…) -> three of the same shape. Works token by token and for whole answers.

    >>> [round(k.item(), 4) for k in kl_estimates(torch.tensor(-1.0), torch.tensor(-1.5))]
    [0.5, 0.125, 0.1065]
    """
    log_ratio = ref_logprobs - logprobs
    return -log_ratio, log_ratio.square() / 2, torch.expm1(log_ratio) - log_ratio


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the places where `mask` is True, all rows together. ValueError if there are none."""
    if not mask.any():
        raise ValueError("the mask counts no position, so there is nothing to average; check padding and lengths")
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """How undecided the policy is: mean of H(π(·|prefix)) in nats over the counted actions. (B, T or T − 1, V), (B, T) -> scalar."""
    logp = logits[:, :mask.size(1) - 1].log_softmax(-1)                 # (B, T − 1, V)
    finite = logp.masked_fill(logp == -torch.inf, 0.0)                  # 0 log 0 = 0, and its slope is not NaN
    return masked_mean(-(logp.exp() * finite).sum(-1), mask[:, 1:])
