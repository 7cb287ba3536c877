"""Preferences: pairs of answers to one prompt, with a label that says which answer is preferred.

    P(a ≻ b) = e^{r(a)} / (e^{r(a)} + e^{r(b)}) = σ( r(a) − r(b) )        Bradley and Terry 1952

The labels here are simulated. The labeller has a true reward r, which no learner sees, and chooses
by this rule. With probability `flip` the label is then exchanged, as by mistake: the probability of
the label is flip + (1 − 2·flip)·σ(r(a) − r(b)). So the best possible accuracy and loss are known.

Source: course B, "Modelo Bradley-Terry". Christiano et al. 2017, §2.2.3, assume labels with a
similar error.

Shapes: B pairs, T time.
"""
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minigpt.alignment.rollouts import Rollout
from minigpt.text.padding import check_mask


@dataclass
class Pairs:
    """B comparisons: the preferred answer and the other one, each after the same prompt."""

    chosen: Tensor                      # (B, T) tokens of prompt, answer, padding
    chosen_mask: Tensor                 # (B, T) True at the answer's tokens
    rejected: Tensor                    # (B, T)
    rejected_mask: Tensor               # (B, T)

    def __post_init__(self):
        check_mask(self.chosen_mask, self.chosen.shape)
        check_mask(self.rejected_mask, self.rejected.shape)
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{len(self.chosen)} chosen answers came with {len(self.rejected)} "
                             "rejected answers; each pair has one of both")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: int | slice | Tensor) -> "Pairs":
        """Some of the pairs, as from a tensor; a single number gives a batch of one pair."""
        rows = [rows] if isinstance(rows, int) else rows
        return Pairs(self.chosen[rows], self.chosen_mask[rows],
                     self.rejected[rows], self.rejected_mask[rows])


def preference_probability(reward_a: Tensor, reward_b: Tensor, flip: float = 0.0) -> Tensor:
    """P(label prefers a) from two rewards whose shapes broadcast: (…), (…) -> (…)."""
    if not 0 <= flip < 0.5:
        raise ValueError("flip is the probability of a wrong label and lies in [0, 0.5), not "
                         f"{flip}; labels with a flip of 0.5 say nothing")
    difference = reward_a - reward_b
    if difference.isnan().any():
        raise ValueError("the difference of two rewards is not a number; at most one reward of a "
                         "pair may be infinite")
    return flip + (1 - 2 * flip) * torch.sigmoid(difference)


def compare(answers: Rollout, rewards: Tensor, generator: Generator, flip: float = 0.0) -> Pairs:
    """Samples a label for row 2i against row 2i + 1 of 2B answers: B pairs.

    `rewards` (2B,) are the true ones. ValueError unless the two rows answer the same prompt.
    """
    if len(answers.tokens) < 2 or len(answers.tokens) % 2:
        raise ValueError("compare needs answers in pairs, an even number of at least 2, not "
                         f"{len(answers.tokens)}")
    if rewards.shape != answers.tokens.shape[:1]:
        raise ValueError(f"each of {len(answers.tokens)} answers needs one reward, and the rewards "
                         f"are {tuple(rewards.shape)}")
    a, b = answers[0::2], answers[1::2]
    check_same_prompts(a, b)
    probability = preference_probability(rewards[0::2], rewards[1::2], flip)            # (B,)
    draws = torch.rand(len(probability), generator=generator).to(probability)
    prefers_a = (draws < probability)[:, None]                                          # (B, 1)
    return Pairs(
        chosen=torch.where(prefers_a, a.tokens, b.tokens),
        chosen_mask=torch.where(prefers_a, a.mask, b.mask),
        rejected=torch.where(prefers_a, b.tokens, a.tokens),
        rejected_mask=torch.where(prefers_a, b.mask, a.mask),
    )


def check_same_prompts(a: Rollout, b: Rollout) -> None:
    """ValueError unless row i of both has the same prompt, and an answer after it."""
    prompt = (a.mask | b.mask).cumsum(1) == 0               # (B, T) True before both answers
    same = ~(prompt & (a.tokens != b.tokens)).any(1)        # (B,)
    first_a, first_b = a.mask.int().argmax(1), b.mask.int().argmax(1)
    answered = a.mask.any(1) & b.mask.any(1) & (first_a == first_b)
    if not (same & answered).all():
        row = int((same & answered).int().argmin())
        raise ValueError(f"rows {2 * row} and {2 * row + 1} do not answer the same prompt; give "
                         "row 2i and row 2i + 1 the same prompt, and an answer each")


def check_probability(probability: Tensor) -> None:
    if not probability.numel():
        raise ValueError("there is no pair to average over; give at least one probability")
    if not ((0 <= probability) & (probability <= 1)).all():
        raise ValueError("a probability lies in [0, 1]; these go from "
                         f"{probability.min().item()} to {probability.max().item()}")


def accuracy_ceiling(probability: Tensor) -> float:
    """The mean of max(p, 1 − p), p (B,): how often a judge that knows r agrees with the labels."""
    check_probability(probability)
    return torch.maximum(probability, 1 - probability).mean().item()


def loss_floor(probability: Tensor) -> float:
    """The least expected Bradley–Terry loss in nats: the mean entropy of the labels, p (B,)."""
    check_probability(probability)
    return torch.special.entr(torch.stack([probability, 1 - probability])).sum(0).mean().item()


def pair_accuracy(margins: Tensor, tie: float = 1e-5) -> float:
    """The share of margins (B,) above 0; a margin smaller than `tie` either way counts half.

    The margin of a pair is the score of the chosen answer minus that of the rejected answer.

    >>> pair_accuracy(torch.tensor([2.0, 0.1, 0.0, -3.0]))
    0.625
    """
    if not len(margins):
        raise ValueError("there is no pair to average over; give at least one margin")
    if n_bad := int(margins.isnan().sum()):
        raise ValueError(f"{n_bad} of {len(margins)} margins are not a number; "
                         "check the scores of the two answers")
    return torch.where(margins.abs() < tie, 0.5, (margins > 0).float()).mean().item()


def check_margins(margins: Tensor, *scores: Tensor) -> None:
    """ValueError for a margin of ∞ − ∞. A NaN score passes: the training loop reports it."""
    undefined = margins.isnan()
    for score in scores:
        undefined = undefined & ~score.isnan()
    if undefined.any():
        raise ValueError(f"the margin of {int(undefined.sum())} of {margins.numel()} pairs is "
                         "∞ − ∞, which has no limit; check the scores of these answers")
