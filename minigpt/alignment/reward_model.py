"""Reward model: a language model's body with one number on top, taught by comparisons which answer people like.

    L = −E log σ( r(x, y⁺) − r(x, y⁻) )                                      Ouyang et al. 2022, eq. 1
    P(a ≻ b) = e^{r_a}/(e^{r_a} + e^{r_b}) = 1/(1 + e^{−(r_a − r_b)}) = σ(r_a − r_b)

The number is read at the answer's last real token, the only place that has seen it all. The loss knows differences only: any constant
per prompt can be added to r. So after training r is moved to have mean 0 on reference answers, which keeps the meaning of β.

Source: courses A, B and D. A's figure writes the loss as log σ(…), without the minus of A's own formula. B calls this expression the
reward model's "in DPO": it is RLHF's; DPO has no reward model (lesson 19).
Deviation: a pair is one term here; Ouyang et al. rank K answers and take all K(K−1)/2 pairs of a prompt as one batch element.

Shapes: B batch, T time, C = d_model.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.alignment.preferences import Pairs
from minigpt.alignment.rollouts import last_action


class ValueModel(nn.Module):
    """One number for every position: tokens (B, T) -> (B, T), from a body with `hidden` (a GPT). The head starts at 0."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        weight = body.token_embedding.weight                            # the head is of its width, kind and place
        self.head = nn.Linear(weight.size(1), 1).to(weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body.hidden(tokens))[..., 0]              # (B, T, C) -> (B, T)


class RewardModel(nn.Module):
    """r(x, y): tokens (B, T) and which of them count (B, T) -> (B,). `values` gives a number at every position (a Table will do, too)."""

    def __init__(self, values: nn.Module):
        super().__init__()
        self.values = values
        self.register_buffer("offset", torch.zeros((), dtype=next(values.parameters()).dtype))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.values(tokens).gather(1, last_action(mask)[:, None])[:, 0] - self.offset        # (B, T) -> (B,)

    @torch.no_grad()
    def normalise(self, tokens: Tensor, mask: Tensor) -> None:
        """Moves r so that its mean over these answers is 0 (Ouyang et al. 2022, §3.5)."""
        self.offset += self(tokens, mask).mean()


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−mean log σ(r⁺ − r⁻): (B,), (B,) -> scalar in nats. log 2 when nothing is known."""
    return -F.logsigmoid(chosen - rejected).mean()                      # logsigmoid: log(sigmoid(x)) would be −∞ at x = −200


def best_of_k_loss(rewards: Tensor, best: Tensor) -> Tensor:
    """−mean log softmax(r)[best], for K answers a prompt: (B, K), (B,) -> scalar. K = 2 is the pair loss (Luce 1959)."""
    return F.cross_entropy(rewards, best)


def reward_loss(model: RewardModel, pairs: Pairs) -> Tensor:
    """The loss of one batch, as `minigpt.training.loop.train` wants it."""
    return bradley_terry_loss(model(pairs.chosen, pairs.chosen_mask), model(pairs.rejected, pairs.rejected_mask))


@torch.no_grad()
def reward_accuracy(model: RewardModel, pairs: Pairs) -> float:
    """How often the model prefers what was preferred; a tie, as between two equal answers, counts half. Compare with `accuracy_ceiling`."""
    gap = model(pairs.chosen, pairs.chosen_mask) - model(pairs.rejected, pairs.rejected_mask)
    tie = gap.abs() < 1e-5                                              # equal answers, but for rounding in different batches
    return torch.where(tie, 0.5, (gap > 0).float()).mean().item()
