"""DPO, direct preference optimization: trains a policy on preferences without a reward model.

    r(x, y) = β log( π*(y|x) / π_ref(y|x) ) + β log Z(x)                Rafailov et al. 2023, eq. 5

This is π* = π_ref e^{r/β} / Z, solved for r. Z(x) is the same for both answers of a pair, so it
cancels in r(x, y⁺) − r(x, y⁻). With that difference, Bradley–Terry's loss becomes

    L = −E log σ( β log(π(y⁺|x)/π_ref(y⁺|x)) − β log(π(y⁻|x)/π_ref(y⁻|x)) )                   eq. 7

log π(y|x) is a sum over the answer's tokens (`sequence_logprobs`). With a mean, Z does not cancel,
and the gradient at π* is not 0 (lesson 19). Two properties look like errors and are not: at the
start π = π_ref and L = log 2, but the gradient is not 0; and log π(y⁺) may fall, since L contains
only the margin.

Source: Rafailov et al. 2023; course B, from "Política óptima" to "¿Cómo calculamos las log-probs?".
IPO: Azar et al. 2024, eq. 17. Label smoothing: Mitchell 2023, "cDPO".

Shapes: B pairs, T time.
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.alignment.logprobs import check_reference
from minigpt.alignment.preferences import Pairs, check_margins, pair_accuracy
from minigpt.training.losses import sequence_logprobs


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor,
    beta: float, label_smoothing: float = 0.0, kind: str = "dpo",
) -> Tensor:
    """The loss from each answer's log-probability under each model: four of (B,) -> scalar.

    β has the unit of the reward. With `label_smoothing` ε, labels are taken to be wrong with
    probability ε, and the best margin is log((1−ε)/ε) instead of ∞. The `kind` "ipo" is the loss
    (difference of the log-ratios − 1/(2β))², which has a best difference even if all labels agree.

    An infinite margin gives the limit of the loss, 0 or ∞. ValueError where there is no limit
    (∞ − ∞), for no pair, for different shapes, and for settings outside their range.
    """
    check_settings(beta, label_smoothing, kind)
    logprobs = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    if len({x.shape for x in logprobs}) > 1 or not policy_chosen.numel():
        raise ValueError("the loss needs four log-probabilities for each of at least one pair, not "
                         f"the shapes {[tuple(x.shape) for x in logprobs]}")
    difference = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    check_margins(difference, *logprobs)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)).square().mean()
    margin = beta * difference
    if label_smoothing == 0:
        return -F.logsigmoid(margin).mean()                 # without 0·log σ(−∞), which is NaN
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).mean()


def check_settings(beta: float, label_smoothing: float, kind: str) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"β must be greater than 0 and finite, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError("label_smoothing is the share of wrong labels and lies in [0, 0.5), "
                         f"not {label_smoothing}")
    if kind not in ("dpo", "ipo"):
        raise ValueError(f"kind is dpo or ipo, not {kind!r}")
    if kind == "ipo" and label_smoothing:
        raise ValueError("label_smoothing belongs to kind dpo; IPO has a best margin without it")


def implicit_reward(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """β log(π/π_ref), (B,): π is optimal for this reward, up to a constant per prompt."""
    return beta * (logprobs - ref_logprobs)


def score_pairs(model: nn.Module, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """log π(y⁺|x) and log π(y⁻|x) in nats, (B,) each, from one pass through the model."""
    if pairs.chosen.size(1) != pairs.rejected.size(1):
        raise ValueError(f"chosen and rejected answers are padded to {pairs.chosen.size(1)} and "
                         f"{pairs.rejected.size(1)} tokens; pad both to the longer")
    tokens = torch.cat([pairs.chosen, pairs.rejected])                  # (2B, T)
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])          # (2B, T)
    empty = ~mask[:, 1:].any(1)                                         # (2B,)
    if empty.any():
        raise ValueError(f"{int(empty.sum())} of {len(mask)} answers have no token, so they have "
                         "no log-probability; an answer has at least its stop token")
    return sequence_logprobs(model(tokens[:, :-1]), tokens, mask).chunk(2)


def make_dpo_loss(
    reference: nn.Module, beta: float, label_smoothing: float = 0.0, kind: str = "dpo"
) -> Callable[[nn.Module, Pairs], Tensor]:
    """DPO's loss(policy, pairs) -> scalar, for `train`. The settings are those of `dpo_loss`."""
    check_settings(beta, label_smoothing, kind)

    def loss(policy: nn.Module, pairs: Pairs) -> Tensor:
        check_reference(policy, reference)
        with torch.no_grad():
            ref_chosen, ref_rejected = score_pairs(reference, pairs)
        chosen, rejected = score_pairs(policy, pairs)
        return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing, kind)

    return loss


@torch.no_grad()
def dpo_metrics(policy: nn.Module, reference: nn.Module, pairs: Pairs, beta: float) -> dict:
    """What to watch during training, as means over the pairs.

    accuracy    the share of pairs with a margin above 0; compare it with `accuracy_ceiling`
    margin      of the implicit rewards, in the unit of β; it should rise from 0
    chosen      log π(y⁺|x) in nats per answer; it may fall
    rejected    log π(y⁻|x) in nats per answer; it may fall
    """
    check_reference(policy, reference)
    chosen, rejected = score_pairs(policy, pairs)
    ref_chosen, ref_rejected = score_pairs(reference, pairs)
    margins = (implicit_reward(chosen, ref_chosen, beta)
               - implicit_reward(rejected, ref_rejected, beta))         # (B,)
    return {"accuracy": pair_accuracy(margins), "margin": margins.mean().item(),
            "chosen": chosen.mean().item(), "rejected": rejected.mean().item()}
