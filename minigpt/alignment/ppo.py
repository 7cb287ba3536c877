"""PPO: take several steps on the same answers, and clip the ratio to the policy that sampled them.

    ρₜ(θ) = π_θ(aₜ|sₜ) / π_old(aₜ|sₜ)        L = −E min( ρₜ Aₜ, clip(ρₜ, 1−ε, 1+ε) Aₜ )
    δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ)              Aₜ = δₜ + γλ Aₜ₊₁,        returns = A + V

REINFORCE uses answers for one step: afterwards they are no longer samples of the policy. The ratio
ρ corrects for that (importance sampling). The clip limits how far one batch can move an action's
probability: for A > 0 the gradient is 0 above ρ = 1+ε, for A < 0 it is 0 below ρ = 1−ε. On the
other side it is not clipped, so a step in the wrong direction can always be undone.

Source: Schulman et al. 2017, eq. 7 (the clip); Schulman et al. 2016, eq. 16 (GAE); Ziegler et al.
2019, §2.2 (β that follows a target); Ouyang et al. 2022, §3.5 (KL as a reward per token).
Not specified there: losses are means over the counted actions of a minibatch; advantages are
whitened once, over all answers of an iteration, with the biased variance; the value loss is
clipped and has weight ½; policy and value are two models whose gradients are clipped together.
Not here: the pre-training term of Ouyang et al., eq. 2; an entropy bonus, since the KL penalty
already contains one.

Shapes: B answers, T actions: column t belongs to the action that chose token t + 1.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from tqdm import trange

from minigpt.alignment.logprobs import check_reference, entropy, masked_mean
from minigpt.alignment.rollouts import RolloutConfig, roll_out, rollout_metrics, token_rewards
from minigpt.text.padding import check_mask
from minigpt.training.loop import gradient_step, schedule
from minigpt.training.losses import token_logprobs
from minigpt.training.optimizers import make_optimizers


@dataclass(frozen=True)
class PPOConfig(RolloutConfig):
    """How to run PPO: `RolloutConfig`, and what PPO adds to it."""

    n_epochs: int = 2                   # each answer is used once per epoch
    n_minibatches: int = 2              # per epoch
    clip: float = 0.2                   # ε
    value_clip: float = 0.2             # in units of the reward
    gamma: float = 1.0                  # γ
    lam: float = 0.95                   # λ
    kl_target: float | None = None      # nats per answer; β follows it, starting from `beta`
    kl_horizon: int = 10_000            # answers; see `adapt_beta`

    def __post_init__(self):
        super().__post_init__()
        n_answers = self.n_prompts * self.n_samples
        if self.n_epochs < 1 or not 1 <= self.n_minibatches <= n_answers:
            raise ValueError(f"n_epochs must be at least 1, and n_minibatches between 1 and the "
                             f"{n_answers} answers, not {self.n_epochs} and {self.n_minibatches}")
        if not (0 < self.clip < 1 and 0 < self.value_clip):
            raise ValueError(f"clip lies between 0 and 1, and value_clip is greater than 0, "
                             f"not {self.clip} and {self.value_clip}")
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"gamma and lam lie in [0, 1], not {self.gamma} and {self.lam}")
        if self.kl_target is not None:  # ValueError for settings that cannot be used
            adapt_beta(self.beta, 0.0, self.kl_target, n_answers, self.kl_horizon)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0,
        lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: rewards, values, mask (B, T) -> advantages, returns (B, T).

    values[:, t] is V of the state in which action t was chosen; after the last action V = 0. Both
    results are 0 where `mask` is False. λ = 0 gives δ, which has the errors of V; λ = 1 gives the
    sum of all later rewards minus V, which has a large variance.
    """
    check_mask(mask, rewards.shape)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])        # (B,)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        next_advantage = advantages[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the counted places: (B, T), (B, T) -> (B, T), 0 elsewhere."""
    masked_mean(values, mask)                                           # refuses a bad mask
    # Without this shift, the mean of equal values has a rounding error, which is scaled up to 1.
    shifted = values - values[mask][0]
    centred = shifted - masked_mean(shifted, mask)
    variance = masked_mean(centred.square(), mask)
    return (centred * (variance + 1e-8).rsqrt()).masked_fill(~mask, 0.0)


def ppo_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor,
                    clip: float = 0.2) -> Tensor:
    """−mean min( ρA, clip(ρ, 1−ε, 1+ε)·A ) over the counted actions: four (B, T) -> scalar.

    The minimum is A·min(ρ, 1+ε) for A ≥ 0 and A·max(ρ, 1−ε) for A < 0. The bound is applied to
    log ρ, because exp could overflow, and the gradient of a clipped ∞ is ∞ · 0 = NaN.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is ε of the range [1−ε, 1+ε] and lies between 0 and 1, not {clip}")
    check_mask(mask, logprobs.shape)
    advantages = advantages.detach().masked_fill(~mask, 0.0)
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)       # log ρ
    lowest = torch.full_like(log_ratio, -math.inf).masked_fill(advantages < 0, math.log1p(-clip))
    highest = torch.full_like(log_ratio, math.inf).masked_fill(advantages >= 0, math.log1p(clip))
    clipped_ratio = log_ratio.clamp(lowest, highest).exp()
    return -masked_mean(clipped_ratio * advantages, mask)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor,
                   clip: float = 0.2) -> Tensor:
    """½ mean max( (V − R)², (V_clipped − R)² ): four (B, T) -> scalar.

    V_clipped is V, limited to ±clip around the old value. A value that has moved farther than that
    towards the return has the gradient 0.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    return masked_mean(errors, mask) / 2


def adapt_beta(beta: float, kl: float, target: float, n_answers: int, horizon: int) -> float:
    """β ← β · ( 1 + clip(KL/target − 1, −0.2, 0.2) · n_answers/horizon )

    β increases if the KL is above the target. Ziegler et al. 2019 have n_answers/horizon in their
    code, and a constant 0.1 in §2.2.
    """
    if not (0 < beta < math.inf and 0 < target < math.inf):
        raise ValueError(f"beta and the KL target must be positive numbers, not {beta}, {target}")
    if not 0 < n_answers <= horizon:
        raise ValueError(f"the horizon must be at least the {n_answers} answers of an iteration, "
                         f"not {horizon}")
    error = min(0.2, max(-0.2, kl / target - 1))
    return beta * (1 + error * n_answers / horizon)


@torch.no_grad()
def ppo_metrics(logits: Tensor, logprobs: Tensor, rollout, clip: float) -> dict:
    """Metrics of one minibatch, which is a `Rollout`.

    ratio          the ρ farthest from 1. In the first minibatch of an iteration θ = θ_old, so a ρ
                   other than 1 means wrong log-probabilities (dropout, temperature, shift). The
                   mean of ρ would not show this: E_old[ρ] = 1 for any two policies.
    clip_fraction  the share of actions with a ratio outside [1−ε, 1+ε]; healthy: 0.05 to 0.3.
                   Near 0, the steps are very small; above 0.3, they are too large.
    entropy        of π, in nats per action. Near 0, the policy samples nothing new.
    """
    ratios = (logprobs - rollout.logprobs)[rollout.actions].exp()       # (number of actions,)
    return {"ratio": ratios[(ratios - 1).abs().argmax()].item(),
            "clip_fraction": ((ratios - 1).abs() > clip).float().mean().item(),
            "entropy": entropy(logits, rollout.mask).item()}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(returns − values)/Var(returns): 1 for perfect values, 0 for a constant value."""
    spread = returns[mask].var(correction=0).clamp(min=1e-12)
    return 1 - ((returns - values)[mask].var(correction=0) / spread).item()


def ppo(policy: nn.Module, value: nn.Module, reference: nn.Module, prompts: Callable,
        reward: Callable, config: PPOConfig, on_row: Callable | None = None) -> list[dict]:
    """Trains `policy` and `value` in place and returns one row of metrics per iteration.

    `value(tokens)` (B, T) -> (B, T) is V of each prefix. The other arguments are those of
    `reinforce`. `rollout_metrics`, `ppo_metrics` and `explained_variance` explain the metrics.
    """
    check_reference(policy, reference)
    models = nn.ModuleList([policy, value])
    optimizers = make_optimizers(models, config.optimizer, config.learning_rate, weight_decay=0.0)
    generator = Generator().manual_seed(config.seed)
    n_steps = config.n_iterations * config.n_epochs * config.n_minibatches
    step, beta, rows = 0, config.beta, []
    for iteration in trange(config.n_iterations, leave=False, disable=None):
        # 1. Sample answers from the current policy, which is π_old from here on. Score them.
        x = prompts(config.n_prompts, generator).repeat_interleave(config.n_samples, dim=0)
        rollout = roll_out(policy, x, config.max_new_tokens, config.stop_token, generator=generator)
        scores = reward(rollout.tokens, rollout.mask).to(rollout.logprobs)          # (B,)
        with torch.no_grad():
            ref_logprobs = token_logprobs(reference(rollout.inputs), rollout.tokens, rollout.mask)
            old_values = value(rollout.inputs)                                      # (B, T)
        # 2. Rewards per token, and from them the advantages.
        rewards = token_rewards(scores, rollout.logprobs, ref_logprobs, rollout.actions, beta)
        advantages, returns = gae(rewards, old_values, rollout.actions, config.gamma, config.lam)
        explained = explained_variance(old_values, returns, rollout.actions)
        advantages = whiten(advantages, rollout.actions)
        row = {"iteration": iteration, **rollout_metrics(rollout, scores, ref_logprobs),
               "beta": beta, "explained_variance": explained}
        for _ in range(config.n_epochs):
            # 3. In each epoch, every answer is in one minibatch.
            order = torch.randperm(len(rollout), generator=generator).to(rollout.tokens.device)
            for chosen in order.chunk(config.n_minibatches):
                part = rollout[chosen]
                logits = policy(part.inputs)                                        # (b, T, V)
                logprobs = token_logprobs(logits, part.tokens, part.mask)           # (b, T)
                policy_loss = ppo_policy_loss(logprobs, part.logprobs, advantages[chosen],
                                              part.actions, config.clip)
                value_loss = ppo_value_loss(value(part.inputs), old_values[chosen],
                                            returns[chosen], part.actions, config.value_clip)
                gradient_step(models, policy_loss + value_loss, optimizers,
                              schedule(step, n_steps), config.gradient_clip)
                metrics = ppo_metrics(logits, logprobs, part, config.clip)
                row.setdefault("ratio_first", metrics.pop("ratio"))
                row |= metrics
                step += 1
        # 4. The KL of these answers decides the β of the next ones.
        if config.kl_target is not None:
            beta = adapt_beta(beta, row["kl"], config.kl_target, len(rollout), config.kl_horizon)
        rows.append(row)
        if on_row is not None and on_row(row):
            break
    return rows
