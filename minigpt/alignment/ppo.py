"""PPO: learn several times from the same answers, and stop each action's push where it would go too far.

    rₜ(θ) = π_θ(aₜ|sₜ) / π_old(aₜ|sₜ)          L = −E min( rₜ Aₜ, clip(rₜ, 1−ε, 1+ε) Aₜ )                    Schulman et al. 2017, eq. 7
    δₜ = Rₜ + γV(sₜ₊₁) − V(sₜ)                  Aₜ = δₜ + γλ Aₜ₊₁,   returns = A + V                           Schulman et al. 2016, eq. 16

REINFORCE uses answers once, because after a step they are no longer samples of the policy. The ratio r corrects for that. The clip
takes away the reason to move an action's probability by more than ε: with A > 0 the gradient ends at r = 1+ε, with A < 0 at
r = 1−ε. On the other side it never ends: what has gone the wrong way may always be pushed back.

Source: courses A, B and D, "RLHF"; Schulman et al. 2017; Ziegler et al. 2019, §2.2 (KL as a reward per token, adaptive β);
Ouyang et al. 2022, §3.5. Where they are silent: the losses are means over the counted actions of a minibatch; whitening is over the whole
collection, once, with the biased variance; V starts at 0 or from a reward model; no entropy bonus, since the price β already has one.
Not here: the pre-training term γ of Ouyang et al.'s eq. 2 ("PPO-ptx"); exact resume, as the collected answers are in no checkpoint.

Shapes: B answers, T time. Every (B, T) below is over actions and has the column of the action that it belongs to.
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.alignment.logprobs import entropy, masked_mean, token_logprobs
from minigpt.alignment.reinforce import ActorCritic, Task, watch
from minigpt.alignment.rollouts import Rollout, token_rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: rewards, values, mask (B, T) -> advantages, returns (B, T), both 0 where `mask` is False.

    values[:, t] is V of the state in which action t was chosen. After a row's last action there is nothing: V = 0.
    λ = 0 is the one-step error δ; λ = 1 is the sum of all rewards to come, minus V. λ trades V's errors against noise.
    """
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])        # (B,)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value, next_advantage = torch.where(mask[:, t], values[:, t], 0.0), advantages[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scaled to variance 1 over the counted places, and moved to mean 0 (or back to the old mean): (B, T), (B, T) -> (B, T), 0 elsewhere."""
    mean = masked_mean(values, mask)
    scaled = (values - mean) * (masked_mean((values - mean).square(), mask) + 1e-8).rsqrt()
    return (scaled if shift_mean else scaled + mean).masked_fill(~mask, 0.0)


def ppo_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """−mean min( rA, clip(r)A ) over the counted actions: four (B, T) -> scalar."""
    ratio = (logprobs - old_logprobs).exp()
    advantages = advantages.detach()
    return -masked_mean(torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """½ mean max( (V − R)², (V_clipped − R)² ), V_clipped within ±clip of the old value: four (B, T) -> scalar.

    The larger of the two: a value that has moved far gets no gradient for moving on, and is never rewarded for it.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return masked_mean(torch.maximum((values - returns).square(), (clipped - returns).square()), mask) / 2


class AdaptiveKL:
    """A β that steers KL to a target: up when there is too much of it, down when too little (Ziegler et al. 2019, §2.2).

    The paper's step is K_β = 0.1 a batch; n_answers/horizon is its released code's, and does not depend on the batch size.

    >>> beta = AdaptiveKL(0.1, target=2.0, horizon=100)
    >>> round(beta.update(kl=9.0, n_answers=50), 6)         # far above the target counts as 0.2 above
    0.11
    """

    def __init__(self, beta: float, target: float, horizon: int = 10_000):
        if not (beta > 0 and target > 0 and horizon > 0):
            raise ValueError(f"β, the target and the horizon must be greater than 0, not {beta}, {target} and {horizon}")
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, n_answers: int) -> float:
        """β after `n_answers` answers whose KL was `kl` nats: it changes by at most 20 % · n_answers/horizon."""
        if n_answers > self.horizon:                                    # from five horizons on, β could pass 0 and reward the distance
            raise ValueError(f"{n_answers} answers at once are more than the horizon of {self.horizon}; take a longer horizon")
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.beta *= 1 + error * n_answers / self.horizon
        return self.beta


@dataclass
class Minibatch:
    """Answers, and what the old policy and the old value model made of them, all (B, T − 1)."""

    done: Rollout
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass
class PPO:
    """PPO as two functions for the training loop: `next_batch` hands out minibatches and collects anew when they are used up.

    `seen` holds numbers to look at: score and kl (see `watch`), ratio_first (the ratio farthest from 1 in the first minibatch of a
    collection: 1, or the log-probabilities are wrong), clip_fraction (healthy 0.05 to 0.3; 0: steps too timid, more: too bold),
    entropy (nats a token; 0: nothing new is tried any more), explained_variance of the value model (1 is perfect, below 0 worse
    than a constant).
    """

    model: ActorCritic
    task: Task
    n_prompts: int = 64
    n_samples: int = 4
    n_epochs: int = 2
    n_minibatches: int = 2
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True
    adaptive: AdaptiveKL | None = None
    seen: dict = field(default_factory=dict)
    queue: list = field(default_factory=list)

    def __post_init__(self):
        for name in ("n_prompts", "n_samples", "n_epochs", "n_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @torch.no_grad()
    def collect(self, generator: torch.Generator) -> Minibatch:
        """New answers of the present policy, with their advantages."""
        done = self.task.attempt(self.model.policy, self.n_prompts, self.n_samples, generator)
        self.seen = watch(done)
        self.seen["beta"] = beta = self.task.beta if self.adaptive is None else self.adaptive.beta
        if self.adaptive is not None:                                   # what these answers cost decides the price of the next ones
            self.adaptive.update(self.seen["kl"], len(done.tokens))
        rewards = token_rewards(done.scores, done.logprobs, done.ref_logprobs, done.actions, beta)
        values = self.model.value(done.tokens[:, :-1])                  # (B, T − 1)
        advantages, returns = gae(rewards, values, done.actions, self.gamma, self.lam)
        spread = returns[done.actions].var(correction=0)
        self.seen["explained_variance"] = 1 - ((returns - values)[done.actions].var(correction=0) / spread.clamp(min=1e-12)).item()
        return Minibatch(done, values, whiten(advantages, done.actions) if self.whitened else advantages, returns)

    def next_batch(self, generator: torch.Generator) -> Minibatch:
        if not self.queue:
            full = self.collect(generator)
            for _ in range(self.n_epochs):
                order = torch.randperm(len(full.values), generator=generator).to(full.values.device)
                self.queue += [Minibatch(*(value[rows] for value in vars(full).values())) for rows in order.chunk(self.n_minibatches)]
        return self.queue.pop(0)

    def loss(self, model: ActorCritic, batch: Minibatch) -> Tensor:
        done, inputs = batch.done, batch.done.tokens[:, :-1]
        logits = model.policy(inputs)
        logprobs = token_logprobs(logits, done.tokens, done.mask)
        with torch.no_grad():
            ratio = (logprobs - done.logprobs).exp()[done.actions]
            if "ratio_first" not in self.seen:                          # the first loss after a collection
                # Not the mean: Σ π_old · π/π_old = 1 for any two policies, so a mean of ratios is near 1 whatever is wrong.
                self.seen["ratio_first"] = ratio[(ratio - 1).abs().argmax()].item()
            self.seen["clip_fraction"] = ((ratio - 1).abs() > self.clip).float().mean().item()
            self.seen["entropy"] = entropy(logits, done.mask).item()
        return (ppo_policy_loss(logprobs, done.logprobs, batch.advantages, done.actions, self.clip)
                + ppo_value_loss(model.value(inputs), batch.values, batch.returns, done.actions, self.value_clip))
