"""Rollouts: the policy answers prompts, and the log-probability of each action is recorded.

    y ~ π(·|x)        rₜ = −β ( log π(yₜ|·) − log π_ref(yₜ|·) ) + [t is the last action] · r(x, y)

Source: Ziegler et al. 2019, eq. 2, and Ouyang et al. 2022, §3.5, for the reward with its price for
leaving π_ref. Alignment code often goes wrong here, so each decision is stated:

  * The recorded log-probabilities are those of the sampled distribution, with its temperature.
  * A mask says where an answer is: from the end of the prompt to the first stop token, which
    counts. Padding is the stop token too, but does not count.
  * Prompts of several lengths are padded on the left during sampling, so that all answers begin in
    one column. The result is padded on the right, where a causal model cannot look: a model that
    scores it later needs no mask.

Shapes: B answers, P prompt length, T longest prompt with its answer. Actions have T − 1 columns:
column t chooses token t + 1.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from minigpt.alignment.logprobs import kl_estimates
from minigpt.generation import stream
from minigpt.text.padding import check_mask, pad


@dataclass
class Rollout:
    """Sampled answers. An index selects rows, as in a tensor."""

    tokens: Tensor                      # (B, T) prompt, answer, padding
    mask: Tensor                        # (B, T) True at the answer's tokens, with its stop token
    logprobs: Tensor                    # (B, T − 1) log π of each action when sampled, 0 elsewhere

    @property
    def inputs(self) -> Tensor:
        """(B, T − 1): the tokens that a model reads to score the actions."""
        return self.tokens[:, :-1]

    @property
    def actions(self) -> Tensor:
        """(B, T − 1): True where action t is a token of the answer."""
        return self.mask[:, 1:]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows) -> "Rollout":
        return Rollout(self.tokens[rows], self.mask[rows], self.logprobs[rows])


@dataclass(frozen=True)
class RolloutConfig:
    """The settings that REINFORCE and PPO have in common."""

    n_iterations: int
    max_new_tokens: int                 # the longest answer
    stop_token: int
    n_prompts: int = 64                 # per iteration
    n_samples: int = 4                  # G, answers to each prompt
    beta: float = 0.1                   # in units of the reward per nat
    learning_rate: float = 1e-3         # the highest one; see `training.loop.schedule`
    optimizer: str = "adamw"            # or "muon"; without weight decay
    gradient_clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("n_iterations", "max_new_tokens", "n_prompts", "n_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be 0 or more, not {self.beta}")


@torch.no_grad()
def roll_out(policy: nn.Module, prompts: Tensor | Sequence[Sequence[int]], max_new_tokens: int,
             stop_token: int, temperature: float = 1.0,
             generator: Generator | None = None) -> Rollout:
    """One sampled answer of at most `max_new_tokens` tokens to each of B prompts.

    The prompts are a tensor (B, P), or B lists, which may differ in length if the policy takes a
    `mask`, as GPT does. ValueError if a prompt with its answer does not fit the context.
    """
    rows = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    left, left_mask = pad(rows, side="left", value=stop_token)          # (B, P)
    B, P = left.shape
    if max_new_tokens < 1 or P + max_new_tokens > policy.context_length + 1:
        raise ValueError(f"prompts of up to {P} tokens and answers of up to {max_new_tokens} (at "
                         f"least 1) do not fit the context of {policy.context_length}")
    device = next(policy.parameters()).device
    left, left_mask = left.to(device), left_mask.to(device)
    answer = torch.full((B, max_new_tokens), stop_token, device=device)
    mask = torch.zeros(B, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = []
    running = torch.ones(B, dtype=torch.bool, device=device)            # not stopped yet
    steps = stream(policy, left, max_new_tokens, temperature, generator=generator, mask=left_mask)
    for t, (token, all_logprobs) in enumerate(steps):
        logprob = all_logprobs.gather(1, token[:, None])[:, 0]          # (B, V) -> (B,)
        answer[:, t] = torch.where(running, token, stop_token)
        mask[:, t] = running
        logprobs.append(torch.where(running, logprob, 0.0))
        running = running & (token != stop_token)
        if not running.any():
            break
    tokens = torch.cat([left, answer], dim=1)                           # (B, T)
    mask = F.pad(mask, (P, 0))                                          # prompts have no actions
    logprobs = F.pad(torch.stack(logprobs, dim=1), (P, max_new_tokens - len(logprobs)))
    # Rotate each row, so that its padding moves from the left to the right.
    n_padding = P - left_mask.sum(1, keepdim=True)                      # (B, 1)
    columns = (torch.arange(tokens.size(1), device=device) + n_padding) % tokens.size(1)
    tokens, mask, logprobs = (x.gather(1, columns) for x in (tokens, mask, logprobs))
    return Rollout(tokens, mask, logprobs[:, 1:])                       # column t: token t + 1


def last_action(actions: Tensor) -> Tensor:
    """The column of each row's last action: (B, T) bool -> (B,). ValueError if a row has none."""
    check_mask(actions, actions.shape)
    n_empty = int((~actions.any(1)).sum())
    if n_empty:
        raise ValueError(f"{n_empty} of {len(actions)} rows have no answer, not even a stop token")
    return actions.size(1) - 1 - actions.flip(1).int().argmax(1)        # argmax: the first True


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, actions: Tensor,
                  beta: float) -> Tensor:
    """rₜ of each action: the price −β log(π/π_ref), plus the answer's score at its last action.

    scores (B,), logprobs, ref_logprobs and actions (B, T) -> (B, T), 0 where `actions` is False.
    """
    check_mask(actions, logprobs.shape)
    price = beta * (logprobs - ref_logprobs)                            # (B, T)
    rewards = (-price).masked_fill(~actions, 0.0)
    last = last_action(actions)[:, None]                                # (B, 1)
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def rollout_metrics(rollout: Rollout, scores: Tensor, ref_logprobs: Tensor) -> dict:
    """Metrics of an iteration, all of them means over its answers.

    score   the reward; it should rise
    kl      k1, in nats per answer; it should rise and then stay constant
    length  the number of tokens
    """
    kl, _, _ = kl_estimates(rollout.logprobs.sum(1), ref_logprobs.sum(1))           # (B,)
    lengths = rollout.actions.sum(1).float()                                        # (B,)
    return {"score": scores.mean().item(), "kl": kl.mean().item(), "length": lengths.mean().item()}
