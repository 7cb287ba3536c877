"""REINFORCE: try, look how it went, and make what went better than expected more likely.

    ∇J(θ) = E_{y~π_θ}[ (R(y) − b) ∇ log π_θ(y) ]          for any b that does not depend on y

In five steps: sample answers, score them, subtract a baseline, weigh each log-probability with what is left, step uphill.
The baseline changes no expectation, since E[∇ log π] = ∇ Σ π = 0, and takes away most of the noise:
    "none"           b = 0
    "mean"           the mean over the G answers to the same prompt. It holds y's own reward, so the gradient shrinks by (G−1)/G
    "leave_one_out"  the mean of the G − 1 others (Kool et al. 2019; RLOO, Ahmadian et al. 2024): no shrinking
    "learned"        V(prefix) from a value network that learns along, and each action answers for the rewards after it only

Here R(y) = score − β log( π(y)/π_ref(y) ), so J = E[score] − β·KL(π‖π_ref), whose best policy π* is known (exact.py). At π* this
R is the same for every answer, so with a baseline the noise ends where the learning ends.

Source: course D, "REINFORCE" (the notes write "REINFORCEMENT algorithm"); Williams 1992, eq. 4 and theorem 1.
Not here: dividing by the group's standard deviation, as GRPO does: it turns the gradient's direction (lesson 16 shows it).
The loop is `minigpt.training.loop.train`, which asks `Reinforce` for batches and for their loss.

Shapes: B answers = n_prompts · n_samples, T time; actions have T − 1 columns.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minigpt.alignment.logprobs import kl_estimates, masked_mean, token_logprobs
from minigpt.alignment.rollouts import Rollout, judge, rollout, token_rewards

BASELINES = ("none", "mean", "leave_one_out", "learned")


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """−mean over answers of Σₜ A·log π: (B, T), (B,) or (B, T), (B, T) -> scalar. Its gradient is −∇J's estimate.

    Advantages are numbers here, not functions of θ: no gradient passes through them. The sum over time is not divided by the length:
    that would be another objective, one that likes long answers less the better they are.
    """
    if advantages.dim() == 1:
        advantages = advantages[:, None]                                # (B, 1): the same for every action of an answer
    return -(logprobs * advantages.detach() * mask).sum(1).mean()


def advantages_over(returns: Tensor, baseline: str) -> Tensor:
    """R − b of each answer among those to its own prompt: (n_prompts, G) -> the same shape.

    >>> advantages_over(torch.tensor([[1.0, 2.0, 6.0]]), "leave_one_out").tolist()
    [[-3.0, -1.5, 4.5]]
    """
    if baseline == "none":
        return returns
    centred = returns - returns.mean(1, keepdim=True)
    if baseline == "mean":
        return centred
    G = returns.size(1)
    if baseline == "leave_one_out" and G > 1:                           # Rᵢ − mean of the others = (Rᵢ − mean of all)·G/(G−1)
        return centred * G / (G - 1)
    raise ValueError(f"a baseline over {G} answers is none, mean or, for 2 answers and more, leave_one_out; not {baseline!r}")


class ActorCritic(nn.Module):
    """A policy, and a value model that judges how well things stand, so that one optimizer trains both."""

    def __init__(self, policy: nn.Module, value: nn.Module):
        super().__init__()
        self.policy, self.value = policy, value


@dataclass
class Task:
    """What is wanted: which prompts, what answers may look like, how they are scored, and the price β of leaving the reference."""

    prompts: Callable                   # (n, generator) -> (n, P)
    score: Callable                     # (tokens (B, T), mask (B, T)) -> (B,)
    reference: nn.Module                # π_ref: never trained
    max_new_tokens: int
    stop_token: int
    beta: float                         # in units of the score, a nat

    def attempt(self, policy: nn.Module, n_prompts: int, n_samples: int, generator: torch.Generator) -> Rollout:
        """`n_samples` scored answers to each of `n_prompts` prompts, those to one prompt next to each other."""
        prompts = self.prompts(n_prompts, generator).repeat_interleave(n_samples, 0)                # (B, P)
        return judge(rollout(policy, prompts, self.max_new_tokens, self.stop_token, generator=generator), self.reference, self.score)


def watch(done: Rollout) -> dict:
    """Numbers to look at while a policy learns: score (should rise), kl from the reference (nats an answer; should rise and settle), length."""
    k1, *_ = kl_estimates(done.logprobs.sum(1), done.ref_logprobs.sum(1))
    return {"score": done.scores.mean().item(), "kl": k1.mean().item(), "length": done.actions.sum(1).float().mean().item()}


@dataclass
class Reinforce:
    """REINFORCE as two functions for the training loop: `next_batch` acts and scores, `loss` turns that into a gradient.

    `policy` is trained; with baseline "learned" it is an ActorCritic. `seen` holds the newest batch's numbers.
    """

    policy: nn.Module
    task: Task
    n_prompts: int = 64
    n_samples: int = 4
    baseline: str = "leave_one_out"
    seen: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline is one of {', '.join(BASELINES)}, not {self.baseline!r}")
        if (self.baseline == "learned") != isinstance(self.policy, ActorCritic):
            raise ValueError("the baseline “learned” goes with an ActorCritic, and the others with a policy alone")

    def next_batch(self, generator: torch.Generator) -> tuple[Rollout, Tensor]:
        actor = self.policy.policy if self.baseline == "learned" else self.policy
        done = self.task.attempt(actor, self.n_prompts, self.n_samples, generator)                  # 1. sample  2. score
        self.seen = watch(done)
        rewards = token_rewards(done.scores, done.logprobs, done.ref_logprobs, done.actions, self.task.beta)        # (B, T − 1)
        if self.baseline == "learned":
            return done, rewards.flip(1).cumsum(1).flip(1)              # (B, T − 1): the rewards still to come, V is subtracted below
        returns = rewards.sum(1).view(self.n_prompts, self.n_samples)
        return done, advantages_over(returns, self.baseline).flatten()  # 3. subtract a baseline: (B,)

    def loss(self, policy: nn.Module, batch: tuple[Rollout, Tensor]) -> Tensor:
        done, advantages = batch
        inputs = done.tokens[:, :-1]
        if self.baseline != "learned":
            logprobs = token_logprobs(policy(inputs), done.tokens, done.mask)
            return reinforce_loss(logprobs, advantages, done.actions)   # 4. weigh the log-probabilities; 5. the loop steps
        values = policy.value(inputs)                                   # (B, T − 1)
        logprobs = token_logprobs(policy.policy(inputs), done.tokens, done.mask)
        wrong_by = masked_mean((values - advantages).square(), done.actions)
        return reinforce_loss(logprobs, advantages - values, done.actions) + wrong_by / 2
