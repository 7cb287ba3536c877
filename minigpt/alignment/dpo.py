"""DPO: the reward model is the policy itself, so preferences train it directly.

    π* = π_ref e^{R/β}/Z   ⟺   R(x, y) = β log( π*(y|x)/π_ref(y|x) ) + β log Z(x)                      Rafailov et al. 2023, eq. 5
    Z(x) is the same for both answers of a pair and cancels in R(y⁺) − R(y⁻); put into Bradley–Terry's loss:
    L = −E log σ( β log(π(y⁺|x)/π_ref(y⁺|x)) − β log(π(y⁻|x)/π_ref(y⁻|x)) )                            eq. 7

log π(y|x) is a *sum* over the answer's tokens. A mean over them, as some teaching codes take, belongs to another R whose Z does not
cancel; at π* its gradient is not 0 (lesson 19).

Source: course B, "DPO"; Rafailov et al. 2023. IPO: Azar et al. 2024, eq. 17. Label smoothing: Mitchell 2023, "cDPO".
Two things that look like mistakes and are none: L = log 2 at the start, with a gradient that is not 0; and log π(y⁺) may fall, for only
the margin is in the loss.

Shapes: B pairs, T time.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.alignment.logprobs import sequence_logprobs
from minigpt.alignment.preferences import Pairs


def dpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float,
             label_smoothing: float = 0.0, kind: str = "dpo") -> Tensor:
    """From four summed log-probabilities (B,) to a scalar; β in units of the reward.

    label_smoothing ε: the labels are taken to be wrong with probability ε, and the best margin is log((1−ε)/ε) instead of ∞.
    kind "ipo": ( log-ratio margin − 1/(2β) )², which has a best margin even where all labels agree.
    """
    if not beta > 0:
        raise ValueError(f"β must be greater than 0, not {beta}: it is the price on leaving the reference")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is the share of wrong labels and lies in [0, 0.5), not {label_smoothing}")
    if kind == "ipo" and label_smoothing:
        raise ValueError("label_smoothing belongs to kind dpo: IPO has a best margin without it")
    difference = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)).square().mean()
    if kind != "dpo":
        raise ValueError(f"kind is dpo or ipo, not {kind!r}")
    margin = beta * difference
    return -((1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)).mean()


def implicit_reward(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """β log(π/π_ref): the reward that this policy would be best for, but for a constant per prompt. (B,), (B,) -> (B,)."""
    return beta * (logprobs - ref_logprobs)


@dataclass
class DPO:
    """DPO as a loss for the training loop, whose `next_batch` returns Pairs.

    `seen` holds the newest batch's numbers: accuracy (the share of pairs with a margin above 0, ties half; compare with the labels' ceiling),
    margin (of the implicit rewards; should rise), chosen and rejected (mean log π in nats an answer; both may fall).
    """

    reference: nn.Module
    beta: float
    label_smoothing: float = 0.0
    kind: str = "dpo"
    seen: dict = field(default_factory=dict)

    def loss(self, policy: nn.Module, pairs: Pairs) -> Tensor:
        chosen, rejected = score_pairs(policy, pairs)
        with torch.no_grad():
            ref_chosen, ref_rejected = score_pairs(self.reference, pairs)
            margin = implicit_reward(chosen, ref_chosen, self.beta) - implicit_reward(rejected, ref_rejected, self.beta)
            self.seen = {"accuracy": ((margin > 0).float() + (margin == 0) / 2).mean().item(), "margin": margin.mean().item(),
                         "chosen": chosen.mean().item(), "rejected": rejected.mean().item()}
        return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, self.beta, self.label_smoothing, self.kind)


def score_pairs(model: nn.Module, pairs: Pairs, sequence: Callable = sequence_logprobs) -> tuple[Tensor, Tensor]:
    """log π(y⁺|x) and log π(y⁻|x), each (B,), both answers in one pass through the model."""
    if pairs.chosen.size(1) != pairs.rejected.size(1):
        raise ValueError(f"chosen and rejected answers are padded to {pairs.chosen.size(1)} and {pairs.rejected.size(1)} tokens; "
                         "pad both to the longer")
    tokens, mask = torch.cat([pairs.chosen, pairs.rejected]), torch.cat([pairs.chosen_mask, pairs.rejected_mask])   # (2B, T)
    return sequence(model(tokens[:, :-1]), tokens, mask).chunk(2)
