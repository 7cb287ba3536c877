"""Reward model: a language model with one number as output, trained on comparisons.

    L = −E log σ( r(x, y⁺) − r(x, y⁻) )                                    Ouyang et al. 2022, eq. 1
    P(a ≻ b) = e^{r_a} / (e^{r_a} + e^{r_b}) = 1 / (1 + e^{−(r_a − r_b)}) = σ(r_a − r_b)

r is read at the last token of the answer, the only position that has seen all of it. The loss
depends on differences only, so any constant per prompt can be added to r. After training, r is
shifted to have mean 0 on reference answers, so that β has the same meaning for every reward model.

Source: Ouyang et al. 2022, §3.5; course A, "Reward Model (RM)"; course B, "Función de costo del
modelo de recompensa"; course D, "Loss for reward model training". A figure of A lacks the minus; B
calls this the expression of the reward model "en DPO", but DPO has no reward model (lesson 19).
Deviation: here a pair is one term of the mean. Ouyang et al. rank K answers to a prompt, and take
their K(K−1)/2 pairs as one batch element.

Shapes: B batch, T time, K answers to one prompt, C = d_model.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.alignment.preferences import Pairs, check_margins, pair_accuracy
from minigpt.alignment.rollouts import last_action
from minigpt.text.padding import check_mask


class ValueModel(nn.Module):
    """One number per position: tokens (B, T) -> (B, T).

    `body` is a model with `hidden`, such as a GPT. The head starts at 0, and so do all values.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        weight = body.token_embedding.weight                            # (V, C)
        self.head = nn.Linear(weight.size(1), 1).to(weight)             # same dtype and device
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body.hidden(tokens))[..., 0]              # (B, T, C) -> (B, T)


class RewardModel(nn.Module):
    """r(x, y), one number per answer: tokens (B, T), the answers' mask (B, T) -> (B,).

    `values` maps tokens (B, T) to one number per position (B, T): a ValueModel or a Table.
    """

    def __init__(self, values: nn.Module):
        super().__init__()
        self.values = values
        dtype = next(values.parameters()).dtype
        self.register_buffer("offset", torch.zeros((), dtype=dtype))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        check_mask(mask, tokens.shape)
        last = last_action(mask)[:, None]                               # (B, 1)
        return self.values(tokens).gather(1, last)[:, 0] - self.offset  # (B, T) -> (B,)

    @torch.no_grad()
    def normalise(self, tokens: Tensor, mask: Tensor) -> None:
        """Shifts r to have mean 0 on these answers (Ouyang et al. 2022, §3.5)."""
        if not len(tokens):
            raise ValueError("there is no answer to average over; normalise on at least one")
        self.offset += self(tokens, mask).mean()


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−mean log σ(r⁺ − r⁻) in nats: (B,), (B,) -> scalar. It is log 2 where r⁺ = r⁻."""
    if chosen.shape != rejected.shape or not chosen.numel():
        raise ValueError("the loss needs one reward for each answer of at least one pair, not "
                         f"{tuple(chosen.shape)} and {tuple(rejected.shape)}")
    check_margins(chosen - rejected, chosen, rejected)
    return -F.logsigmoid(chosen - rejected).mean()      # log(sigmoid(x)) would be −∞ at x = −200


def best_of_k_loss(rewards: Tensor, best: Tensor) -> Tensor:
    """−mean log softmax(r)[best] for K answers per prompt: (B, K), (B,) -> scalar in nats.

    K = 2 gives the loss of pairs (Luce 1959).
    """
    if rewards.dim() != 2 or not len(rewards) or rewards.size(1) < 2:
        raise ValueError("the loss needs rewards (B, K) of at least 1 prompt with at least 2 "
                         f"answers, not {tuple(rewards.shape)}")
    if not rewards.amax(1).isfinite().all():
        raise ValueError("the highest reward of each prompt must be finite")
    return F.cross_entropy(rewards, best)


def reward_loss(model: RewardModel, pairs: Pairs) -> Tensor:
    """The Bradley–Terry loss of a batch of pairs, for `train` in training/loop.py."""
    chosen = model(pairs.chosen, pairs.chosen_mask)
    rejected = model(pairs.rejected, pairs.rejected_mask)
    return bradley_terry_loss(chosen, rejected)


@torch.no_grad()
def reward_accuracy(model: RewardModel, pairs: Pairs) -> float:
    """The share of pairs whose chosen answer has the higher reward; a tie counts half."""
    chosen = model(pairs.chosen, pairs.chosen_mask)
    rejected = model(pairs.rejected, pairs.rejected_mask)
    return pair_accuracy(chosen - rejected)
