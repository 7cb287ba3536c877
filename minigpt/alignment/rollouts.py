"""Rollouts: the policy answers prompts, and what it did is written down as it happened.

    y ~ π(·|x)        rₜ = −β ( log π(yₜ|·) − log π_ref(yₜ|·) ) + [t is the last] · score(x, y)

Source: course D, "RLHF"; Ziegler et al. 2019, §2.2, and Ouyang et al. 2022, eq. 2, for the reward with its price on leaving π_ref.
Here the mistakes of alignment code are made, so each decision is explicit:
  * the recorded log-probabilities are those of the distribution that was sampled from, temperature included;
  * an answer's tokens are known by *where* they stand, from the prompt's end to the first stop token, which counts. Padding is the
    stop token again, and does not count, so a policy that never stops and one that does are told apart;
  * prompts of several lengths are padded on the left while they are answered, so that all answers begin in one column, and what comes
    back is padded on the right, where a causal model cannot see it: whoever scores it later needs no mask to be blind to padding.

Shapes: B answers, P prompt length, T the longest prompt with its answer. Actions: T − 1 columns, column t chooses token t + 1.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.alignment.logprobs import token_logprobs
from minigpt.generation import left_pad, stream


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
    """One sampled answer to each prompt, (B, P) or a list of B lists, of at most `max_new_tokens` tokens.

    The lists may differ in length if the policy takes a `mask`, as GPT does. ValueError if it takes none, or if a prompt with its answer
    does not fit the policy's context.
    """
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths, default=0)
    if min(lengths, default=0) < 1 or longest + max_new_tokens > policy.context_length + 1:
        raise ValueError(f"prompts of {min(lengths, default=0)} to {longest} tokens with answers of up to {max_new_tokens} do not fit "
                         f"the context of {policy.context_length}; the last token need not be read, and a prompt needs at least one")
    device = next(policy.parameters()).device
    given, real = (x.to(device) for x in left_pad(prompts.tolist() if isinstance(prompts, Tensor) else prompts, stop_token))
    B, T = len(lengths), longest + max_new_tokens
    tokens = torch.cat([given, torch.full((B, max_new_tokens), stop_token, device=device)], dim=1)      # (B, P) -> (B, T)
    mask, logprobs = torch.zeros(B, T, dtype=torch.bool, device=device), torch.zeros(B, T, device=device)
    running = torch.ones(B, dtype=torch.bool, device=device)
    steps = stream(policy, given, max_new_tokens, temperature, generator=generator, mask=real)
    for t, (new, all_logprobs) in enumerate(steps, start=longest):
        taken = all_logprobs.gather(1, new[:, None])[:, 0]              # (B, V) -> (B,)
        logprobs = logprobs.to(taken.dtype)
        tokens[:, t] = torch.where(running, new, stop_token)
        mask[:, t] = running
        logprobs[:, t] = torch.where(running, taken, 0.0)
        running = running & (new != stop_token)
        if not running.any():
            break
    padding = longest - torch.tensor(lengths, device=device)            # goes from the left to the right, which is a rotation
    columns = (torch.arange(T, device=device) + padding[:, None]) % T   # (B, T)
    tokens, mask, logprobs = (x.gather(1, columns) for x in (tokens, mask, logprobs))
    return Rollout(tokens, mask, logprobs[:, 1:])                       # column t of the log-probabilities chose token t + 1


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
