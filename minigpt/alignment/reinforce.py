"""REINFORCE: make answers with a return above a baseline more probable.

    ∇J(θ) = E_{y ~ π_θ}[ (R(y) − b) ∇ log π_θ(y) ]        for any b that does not depend on y
    R(y) = r(x, y) − β log( π_θ(y|x)/π_ref(y|x) )         so that J = E[r] − β·KL(π_θ‖π_ref)

The baseline does not change the expectation, since E[∇ log π] = 0, but it reduces the variance:

    "none"           b = 0
    "mean"           the mean over the G answers to the prompt. It contains R(y) itself, so the
                     gradient is too short by the factor (G − 1)/G
    "leave_one_out"  the mean over the other G − 1 answers: unbiased

The policy with the largest J is π* ∝ π_ref e^{r/β} (`exact.py`). Under π* all answers to a prompt
have the same R, so with a baseline the gradient has no variance at the optimum. R depends on θ
through its price too; lesson 16 shows why the gradient needs no second term.

Source: Williams 1992, theorem 1; course D, from "Objective Function J(θ)" to "SUMMARY"; the return
with its price: course A, "Proximal Policy Optimization (PPO)". Leave-one-out: Kool et al. 2019;
Ahmadian et al. 2024. Not here: dividing by the standard deviation of the group, as GRPO does; it
changes the direction of the gradient (lesson 16).

Shapes: B = n_prompts · n_samples answers, G = n_samples, T actions (as in ppo.py).
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from tqdm import trange

from minigpt.alignment.logprobs import check_reference
from minigpt.alignment.rollouts import RolloutConfig, roll_out, rollout_metrics
from minigpt.text.padding import check_mask
from minigpt.training.loop import gradient_step, schedule
from minigpt.training.losses import token_logprobs
from minigpt.training.optimizers import make_optimizers

BASELINES = ("none", "mean", "leave_one_out")


@dataclass(frozen=True)
class ReinforceConfig(RolloutConfig):
    """How to run REINFORCE: `RolloutConfig`, and the baseline."""

    baseline: str = "leave_one_out"

    def __post_init__(self):
        super().__post_init__()
        subtract_baseline(torch.zeros(1, self.n_samples), self.baseline)    # refuses wrong settings


def subtract_baseline(returns: Tensor, baseline: str) -> Tensor:
    """R − b of each of the G answers to each of n prompts: (n, G) -> (n, G).

    >>> subtract_baseline(torch.tensor([[1.0, 2.0, 6.0]]), "leave_one_out").tolist()
    [[-3.0, -1.5, 4.5]]
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline is one of {', '.join(BASELINES)}, not {baseline!r}")
    if baseline == "none":
        return returns
    G = returns.size(1)
    if G < 2:
        raise ValueError(f"the baseline {baseline!r} needs at least 2 answers to each prompt; with "
                         f"{G} there is nothing to compare")
    centred = returns - returns.mean(1, keepdim=True)                   # (n, G)
    # Rᵢ − mean of the others = (Rᵢ − mean of all) · G/(G − 1)
    return centred if baseline == "mean" else centred * G / (G - 1)


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """−mean over answers of Σₜ A · log π(aₜ|sₜ): (B, T), (B,) or (B, T), (B, T) -> scalar.

    Its gradient estimates −∇J. No gradient passes through the advantages. The sum over time is not
    divided by the length, because that would be the gradient of another objective.
    """
    check_mask(mask, logprobs.shape)
    if len(logprobs) == 0:
        raise ValueError("there is no answer to average over")
    if advantages.dim() == 1:
        advantages = advantages[:, None]                                # (B, 1)
    terms = logprobs.masked_fill(~mask, 0.0) * advantages.detach().masked_fill(~mask, 0.0)
    return -terms.sum(1).mean()


def reinforce(policy: nn.Module, reference: nn.Module, prompts: Callable, reward: Callable,
              config: ReinforceConfig, on_row: Callable | None = None) -> list[dict]:
    """Trains `policy` in place and returns one row of metrics per iteration.

    `reference` is π_ref, frozen. `prompts(n, generator)` -> (n, P) draws prompts.
    `reward(tokens, mask)` -> (B,) is r(x, y) of whole answers. `on_row(row)` is called after each
    iteration; it may add to the row, and stops the training by returning True.
    """
    check_reference(policy, reference)
    optimizers = make_optimizers(policy, config.optimizer, config.learning_rate, weight_decay=0.0)
    generator = Generator().manual_seed(config.seed)
    rows = []
    for iteration in trange(config.n_iterations, leave=False, disable=None):
        # 1. Sample G answers to each prompt from the current policy.
        x = prompts(config.n_prompts, generator).repeat_interleave(config.n_samples, dim=0)
        rollout = roll_out(policy, x, config.max_new_tokens, config.stop_token, generator=generator)
        # 2. The return of an answer: its reward, minus the price of leaving the reference.
        scores = reward(rollout.tokens, rollout.mask).to(rollout.logprobs)          # (B,)
        with torch.no_grad():
            ref_logprobs = token_logprobs(reference(rollout.inputs), rollout.tokens, rollout.mask)
        price = config.beta * (rollout.logprobs - ref_logprobs).sum(1)              # (B,)
        returns = scores - price                                                    # (B,)
        # 3. Subtract a baseline.
        groups = returns.view(config.n_prompts, config.n_samples)                   # (n, G)
        advantages = subtract_baseline(groups, config.baseline).flatten()           # (B,)
        # 4. Weight each answer's log-probability with its advantage.
        logprobs = token_logprobs(policy(rollout.inputs), rollout.tokens, rollout.mask)
        loss = reinforce_loss(logprobs, advantages, rollout.actions)
        # 5. One step that increases J.
        scale = schedule(iteration, config.n_iterations)
        gradient_step(policy, loss, optimizers, scale, config.gradient_clip)
        rows.append({"iteration": iteration, **rollout_metrics(rollout, scores, ref_logprobs)})
        if on_row is not None and on_row(rows[-1]):
            break
    return rows
