"""Rollouts: the policy answers prompts, and what it did is written down as it happened.

    y ~ π(·|x)        rₜ = −β ( log π(yₜ|·) − log π_ref(yₜ|·) ) + [t is the last] · score(x, y)

Source: course D, "RLHF"; Ziegler et al. 2019, §2.2, and Ouyang et al. 2022, eq. 2, for the reward with its price on leaving π_ref.
Here the mistakes of alignment code are made, so each decision is explicit:
  * the recorded log-probabilities are those of the distribution that was sampled from, temperature included;
  * an answer's tokens are known by *where* they stand, from the prompt's end to the first stop token, which counts. Padding is the
    stop token again, and does not count, so a policy that never stops and one that does are told apart;
  * padding is on the right, where a causal model cannot see it. Prompts of several lengths are answered in groups of one length.

Shapes: B answers, P prompt length, T the longest prompt with its answer. Actions: T − 1 columns, column t chooses token t + 1.
"""
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.alignment.logprobs import token_logprobs
from minigpt.generation import stream


@dataclass
class Rollout:
    """Answers and what was known while they were given. Rows can be taken with an index, as from a tensor."""

    tokens: Tensor                      # (B, T) prompt, answer, padding
    mask: Tensor                        # (B, T) True at the answer's tokens, its stop token included
    logprobs: Tensor                    # (B, T − 1) log π of each action when it was taken, 0 where none was
    ref_logprobs: Tensor | None = None  # (B, T − 1) the same under π_ref
    scores: Tensor | None = None        # (B,) what each whole answer was worth

    @property
    def actions(self) -> Tensor:
        """(B, T − 1): True where column t chose a token of the answer."""
        return self.mask[:, 1:]

    def __getitem__(self, rows) -> "Rollout":
        return Rollout(*(None if value is None else value[rows] for value in vars(self).values()))


@torch.no_grad()
def rollout(
    policy: nn.Module, prompts: Tensor | Sequence[Sequence[int]], max_new_tokens: int, stop_token: int,
    temperature: float = 1.0, generator: torch.Generator | None = None,
) -> Rollout:
    """One sampled answer to each prompt, (B, P) or a list of B lists of any lengths, of at most `max_new_tokens` tokens.

    ValueError if a prompt with its answer does not fit the policy's context.
    """
    device = next(policy.parameters()).device
    groups = defaultdict(list)                                          # prompt length -> rows
    for row, prompt in enumerate(prompts):
        groups[len(prompt)].append(row)
    longest = max(groups, default=0)
    if not groups or min(groups) < 1 or longest + max_new_tokens > policy.context_length + 1:
        raise ValueError(f"prompts of {min(groups, default=0)} to {longest} tokens with answers of up to {max_new_tokens} do not fit "
                         f"the context of {policy.context_length}; the last token need not be read, and a prompt needs at least one")
    T = longest + max_new_tokens
    tokens = torch.full((len(prompts), T), stop_token, device=device)
    mask = torch.zeros(len(prompts), T, dtype=torch.bool, device=device)
    logprobs = torch.zeros(len(prompts), T - 1, device=device)
    for length, rows in groups.items():
        given = torch.as_tensor(prompts[rows] if isinstance(prompts, Tensor) else [list(prompts[row]) for row in rows]).to(device)
        rows = torch.tensor(rows, device=device)
        tokens[rows, :length] = given
        running = torch.ones(len(rows), dtype=torch.bool, device=device)
        for t, (new, all_logprobs) in enumerate(stream(policy, given, max_new_tokens, temperature, generator=generator), start=length):
            taken = all_logprobs.gather(1, new[:, None])[:, 0]          # (n, V) -> (n,)
            logprobs = logprobs.to(taken.dtype)
            tokens[rows, t] = torch.where(running, new, stop_token)
            mask[rows, t] = running
            logprobs[rows, t - 1] = torch.where(running, taken, 0.0)
            running = running & (new != stop_token)
            if not running.any():
                break
    return Rollout(tokens, mask, logprobs)


@torch.no_grad()
def judge(done: Rollout, reference: nn.Module, score: Callable[[Tensor, Tensor], Tensor]) -> Rollout:
    """Adds what the reference thinks of each action and what `score(tokens, mask)` -> (B,) thinks of each answer."""
    done.ref_logprobs = token_logprobs(reference(done.tokens[:, :-1]), done.tokens, done.mask)
    done.scores = score(done.tokens, done.mask).to(done.logprobs.dtype)
    return done


def last_action(actions: Tensor) -> Tensor:
    """The column of each row's last counted action: (B, T) -> (B,). ValueError if a row has none."""
    if not actions.any(1).all():
        raise ValueError(f"{int((~actions.any(1)).sum())} of {len(actions)} rows have no answer at all; every answer has at least its stop token")
    return actions.size(1) - 1 - actions.flip(1).int().argmax(1)        # argmax finds the first of the largest


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, actions: Tensor, beta: float) -> Tensor:
    """Reward of each action: the price −β·log(π/π_ref) at every one, the score at the last. (B,), three (B, T) -> (B, T)."""
    rewards = (-beta * (logprobs - ref_logprobs)).masked_fill(~actions, 0.0)
    last = last_action(actions)[:, None]
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))
