"""Preferences: two answers to one prompt, and which of them somebody liked better.

    P(a ≻ b) = e^{R(a)} / (e^{R(a)} + e^{R(b)}) = σ( R(a) − R(b) )          Bradley and Terry 1952

A labeller here has a true reward R, known to nobody else, and chooses by that rule; with probability `flip` the label is then
turned over, as by a slip of the hand. So P(label says a) = flip + (1 − 2·flip)·σ(ΔR): what the best possible learner can reach is known.

Source: courses A, B and D, "reward model"; Ouyang et al. 2022, §3.5.
Shapes: B pairs, T time.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.alignment.rollouts import Rollout


@dataclass
class Pairs:
    """B comparisons: the answer that was preferred and the one that was not, each with its prompt in front."""

    chosen: Tensor                      # (B, T)
    chosen_mask: Tensor                 # (B, T) True at the answer's own tokens
    rejected: Tensor
    rejected_mask: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows) -> "Pairs":
        return Pairs(*(value[rows] for value in vars(self).values()))


def preference_probability(reward_a: Tensor, reward_b: Tensor, flip: float = 0.0) -> Tensor:
    """P(the label says a): (B,), (B,) -> (B,).

    >>> preference_probability(torch.tensor([0.0, 9.0]), torch.tensor([0.0, 0.0]), flip=0.25).tolist()[0]
    0.5
    """
    if not 0 <= flip <= 0.5:
        raise ValueError(f"flip is the probability of a wrong label and lies in [0, 0.5], not {flip}")
    return flip + (1 - 2 * flip) * torch.sigmoid(reward_a - reward_b)


def compare(answers: Rollout, rewards: Tensor, generator: torch.Generator, flip: float = 0.0) -> Pairs:
    """Labels 2B answers as B pairs, row 2i against row 2i + 1, which must answer the same prompt; rewards (2B,) are the true ones."""
    if len(answers.tokens) % 2:
        raise ValueError(f"answers come two by two, not {len(answers.tokens)}")
    a, b = answers[0::2], answers[1::2]
    before = (a.mask.cumsum(1) == 0) | (b.mask.cumsum(1) == 0)          # (B, T) the prompts, and where one answer has begun and the other not
    if len(rewards) != len(answers.tokens) or (before & ((a.tokens != b.tokens) | a.mask | b.mask)).any():
        raise ValueError("row 2i and row 2i + 1 must answer the same prompt, and have one reward each; "
                         f"{len(rewards)} rewards came for {len(answers.tokens)} rows")
    probability = preference_probability(rewards[0::2], rewards[1::2], flip)
    first = (torch.rand(len(probability), generator=generator).to(probability) < probability)[:, None]              # (B, 1)
    return Pairs(torch.where(first, a.tokens, b.tokens), torch.where(first, a.mask, b.mask),
                 torch.where(first, b.tokens, a.tokens), torch.where(first, b.mask, a.mask))


def accuracy_ceiling(probability: Tensor) -> float:
    """How often the best judge, who knows R, agrees with the labels: mean max(p, 1 − p)."""
    return torch.maximum(probability, 1 - probability).mean().item()


def loss_floor(probability: Tensor) -> float:
    """The Bradley–Terry loss of that judge in nats: the mean entropy of the labels, H(p) = −p log p − (1 − p) log(1 − p)."""
    return torch.special.entr(torch.stack([probability, 1 - probability])).sum(0).mean().item()
