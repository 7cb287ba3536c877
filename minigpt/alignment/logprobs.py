"""KL estimates, means and entropy over the actions of sampled answers.

With u = π_ref(y)/π(y) and y drawn from π:

    k1 = −log u        k2 = ½ (log u)²        k3 = u − 1 − log u        E[k1] = E[k3] = KL(π‖π_ref)

k1 can be negative. k3 cannot, because u ≥ 1 + log u, and it usually has a smaller variance. k2 is
biased, but only a little when the two policies are close. As *losses* they have other gradients: on
average, that of k1 is 0, that of k2 is ∇KL(π‖π_ref), and that of k3 is ∇KL(π_ref‖π), the KL in the
other direction (derived in lesson 18).

Source: Schulman 2020, "Approximating KL divergence".

Shapes: B batch, T time, V vocabulary. Actions have T − 1 columns: column t chooses token t + 1.
"""
import torch
from torch import Tensor, nn

from minigpt.text.padding import check_mask


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of each sample of π, in nats: (…), (…) -> three of that shape.

    A sample is a token or a whole answer.

    >>> [round(k.item(), 4) for k in kl_estimates(torch.tensor(-1.0), torch.tensor(-1.5))]
    [0.5, 0.125, 0.1065]
    """
    log_u = ref_logprobs - logprobs
    return -log_u, log_u.square() / 2, torch.expm1(log_u) - log_u


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over all places where `mask` is True, (…), (…) -> scalar. ValueError if none is."""
    check_mask(mask, values.shape)
    if not mask.any():
        raise ValueError("the mask counts no place, so there is nothing to average")
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of π(·|prefix) over the counted actions, in nats.

    logits (B, T, V) or (B, T − 1, V), mask (B, T) -> scalar.
    """
    logprobs = logits[:, :mask.size(1) - 1].log_softmax(-1)             # (B, T − 1, V)
    finite = logprobs.masked_fill(logprobs == -torch.inf, 0.0)          # 0 · log 0 counts as 0
    return masked_mean(-(logprobs.exp() * finite).sum(-1), mask[:, 1:])


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """ValueError if policy and reference share a parameter: training would change both."""
    trained = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) in trained for parameter in reference.parameters()):
        raise ValueError("the policy and its reference share parameters; give a frozen copy "
                         "(copy.deepcopy) as the reference")
