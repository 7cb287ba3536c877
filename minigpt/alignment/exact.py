"""Exact expectations: where all answers can be listed, E_π[…] is a finite sum, with no sampling.

    J(π) = E_π[r] − β·KL(π‖π_ref)            KL(π‖q) = Σ_y π(y) log( π(y)/q(y) )
    π*(y) = π_ref(y) e^{r(y)/β} / Z          Z = Σ_y π_ref(y) e^{r(y)/β}

The results of every sampled method are compared with these sums. An answer is a string of tokens
that ends with `stop_token`, or after `max_length` tokens at the latest. So the answers are the
leaves of a tree, and no answer is the beginning of another. With V tokens and length L there are
(V−1)⁰ + … + (V−1)^{L−2} + V·(V−1)^{L−1} answers.

A model here is any function from tokens (B, T) to logits (B, T, V): a table or a GPT.

Source: Rafailov et al. 2023, eq. 3 (J), eq. 4 (π*) and appendix A.1; course B, "Política óptima".
Best of n: Beirami et al. 2024.

Shapes: N answers, B batch, P prompt length, L longest answer, T = P + L, V vocabulary.
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minigpt.text.padding import check_mask
from minigpt.training.losses import sequence_logprobs

MOST_ROWS = 2_000_000


def list_answers(
    prompt: Tensor, vocab_size: int, max_length: int, stop_token: int = 0
) -> tuple[Tensor, Tensor]:
    """All answers to one prompt (P,): tokens (N, P + L), and the answers' mask (N, P + L).

    Each row is the prompt, the answer, and `stop_token` as padding. The mask is True from the end
    of the prompt to the first stop token, which belongs to the answer.

    >>> tokens, mask = list_answers(torch.tensor([0]), vocab_size=2, max_length=2)
    >>> tokens.tolist(), mask.int().tolist()
    ([[0, 0, 0], [0, 1, 0], [0, 1, 1]], [[0, 1, 0], [0, 1, 1], [0, 1, 1]])
    """
    if prompt.dim() != 1 or max_length < 1 or not 0 <= stop_token < vocab_size:
        raise ValueError("list_answers needs a prompt (P,), a length of at least 1 and a stop "
                         f"token among the {vocab_size} tokens, not a prompt "
                         f"{tuple(prompt.shape)}, length {max_length}, stop token {stop_token}")
    if sum((vocab_size - 1) ** t for t in range(max_length)) > MOST_ROWS:
        raise ValueError(f"{vocab_size} tokens and length {max_length} make more than "
                         f"{MOST_ROWS:,} answers; take fewer tokens or a smaller length, or sample")
    growing = torch.empty(1, 0, dtype=torch.long)           # (n, t) answers that have not ended
    tokens, mask = [], []
    for t in range(max_length):
        new = torch.arange(vocab_size).repeat(len(growing))[:, None]            # (n·V, 1)
        parents = growing.repeat_interleave(vocab_size, dim=0)                  # (n·V, t)
        children = torch.cat([parents, new], dim=1)                             # (n·V, t + 1)
        ended = (children[:, -1] == stop_token) | (t == max_length - 1)         # (n·V,)
        answers, growing = children[ended], children[~ended]
        padding = (0, max_length - t - 1)
        tokens.append(nn.functional.pad(answers, padding, value=stop_token))    # (n′, L)
        mask.append(nn.functional.pad(torch.ones_like(answers, dtype=torch.bool), padding))
    tokens = torch.cat(tokens).to(prompt.device)                                # (N, L)
    mask = torch.cat(mask).to(prompt.device)                                    # (N, L)
    prompts = prompt.expand(len(tokens), -1)                                    # (N, P)
    no_answer = torch.zeros_like(prompts, dtype=torch.bool)
    return torch.cat([prompts, tokens], dim=1), torch.cat([no_answer, mask], dim=1)     # (N, P + L)


class Table(nn.Module):
    """A policy or a value function with separate parameters for each prefix.

    tokens (B, T) -> (B, T, n_outputs), or (B, T) if n_outputs is None. All numbers start at 0, so a
    policy gives every token the same probability.

    Each prefix has a row. Row number `token` is the prefix of that one token; appending a token to
    the prefix of row s leads to row (s + 1)·V + token.
    """

    def __init__(self, vocab_size: int, context_length: int, n_outputs: int | None = None):
        super().__init__()
        n_rows = sum(vocab_size**t for t in range(1, context_length + 1))
        if n_rows > MOST_ROWS:
            raise ValueError(f"a table for {vocab_size} tokens and {context_length} positions "
                             f"needs {n_rows:,} rows; take fewer of either, or a GPT")
        self.vocab_size, self.context_length = vocab_size, context_length
        shape = (n_rows,) if n_outputs is None else (n_rows, n_outputs)
        self.rows = nn.Parameter(torch.zeros(shape))

    def numbers(self, tokens: Tensor) -> Tensor:
        """The number of the row of each prefix tokens[:, :t + 1]: (B, T) -> (B, T)."""
        if tokens.size(1) > self.context_length:
            raise ValueError(f"{tokens.size(1)} tokens do not fit the table's context of "
                             f"{self.context_length}")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise ValueError(f"the table knows the tokens 0 to {self.vocab_size - 1}, not "
                             f"{int(tokens.min())} to {int(tokens.max())}")
        numbers, number = [], torch.full_like(tokens[:, 0], -1)         # −1: the empty prefix
        for token in tokens.unbind(1):
            number = (number + 1) * self.vocab_size + token
            numbers.append(number)
        return torch.stack(numbers, dim=1)                              # (B, T)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[self.numbers(tokens)]


def make_table(tokens: Tensor, mask: Tensor, logprobs: Tensor, vocab_size: int) -> Table:
    """The table that gives all answers (N, T) of a list these log-probabilities (N,).

    π(token | prefix) is the probability of all answers that begin with prefix and token, divided by
    that of all answers that begin with the prefix. Rows that no answer uses stay uniform.
    """
    check_mask(mask, tokens.shape)
    table = Table(vocab_size, tokens.size(1) - 1, vocab_size).to(logprobs.dtype)
    prefixes, counted = table.numbers(tokens[:, :-1]), mask[:, 1:]      # (N, T − 1)
    probabilities = logprobs.detach().exp()[:, None].expand_as(prefixes)
    mass = torch.zeros_like(table.rows.detach())                        # (rows, V)
    used = (prefixes[counted], tokens[:, 1:][counted])
    mass.index_put_(used, probabilities[counted], accumulate=True)
    with torch.no_grad():
        table.rows.copy_(mass.log().masked_fill(mass.sum(-1, keepdim=True) == 0, 0.0))
    return table


def answer_logprobs(
    model: Callable, tokens: Tensor, mask: Tensor, batch_size: int = 8192
) -> Tensor:
    """log π(y|x) in nats of each answer: tokens (N, T), mask (N, T) -> (N,)."""
    check_mask(mask, tokens.shape)
    batches = zip(tokens.split(batch_size), mask.split(batch_size))
    return torch.cat([sequence_logprobs(model(t[:, :-1]), t, m) for t, m in batches])


def expectation(logprobs: Tensor, values: Tensor) -> Tensor:
    """E_π[values] = Σ_y π(y)·values(y): log π (N,), values (N,) -> scalar.

    An answer of probability 0 adds 0 to the sum and to the gradient, even if its value is ∞.
    """
    # They are left out before the product: 0·∞ is NaN, and its gradient would stay NaN.
    possible = logprobs != -torch.inf
    if not possible.any():
        raise ValueError(f"no answer of {len(logprobs)} has a positive probability, so there is "
                         "nothing to average")
    return (logprobs[possible].exp() * values[possible]).sum()


def kl_divergence(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL(π‖q) in nats: log π (N,), log q (N,) -> scalar; ∞ if π has an answer that q never has."""
    possible = logprobs != -torch.inf
    return expectation(logprobs[possible], logprobs[possible] - other[possible])


def optimal_policy(ref_logprobs: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The policy that maximises J(π): log π* (N,) and log Z. β has the unit of the reward."""
    if not 0 < beta < math.inf:
        raise ValueError(f"β must be greater than 0 and finite, not {beta}; with β = 0 the best "
                         "policy gives only the answer of highest reward")
    log_weights = ref_logprobs + rewards / beta                         # (N,)
    log_z = log_weights.logsumexp(0)
    if not log_z.isfinite():
        raise ValueError(f"log Z is {log_z.item()}, so there is no π*; check the rewards (from "
                         f"{rewards.min().item()} to {rewards.max().item()}) and β = {beta}")
    return log_weights - log_z, log_z


def objective(logprobs: Tensor, ref_logprobs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(π) = E_π[r] − β·KL(π‖π_ref), a scalar: β log Z − J(π) = β·KL(π‖π*)."""
    return expectation(logprobs, rewards) - beta * kl_divergence(logprobs, ref_logprobs)


def gradient(model: nn.Module, scalar: Tensor) -> Tensor:
    """∇ of a scalar with respect to all trainable parameters, as one vector."""
    trained = [p for p in model.parameters() if p.requires_grad]
    pieces = torch.autograd.grad(scalar, trained, retain_graph=True, allow_unused=True,
                                 materialize_grads=True)
    return torch.cat([piece.flatten() for piece in pieces])


@torch.no_grad()
def slopes(function: Callable, model: nn.Module, step: float = 1e-5) -> Tensor:
    """∂function(model)/∂θᵢ of every parameter by central differences, as one vector.

    It has the order of `gradient`, and does not use autograd, so it can contradict it. Use float64
    and a small model: each parameter costs two calls of `function`.
    """
    results = []
    for values in (parameter.view(-1) for parameter in model.parameters()):
        for i, before in enumerate(values.tolist()):
            values[i] = before + step
            above = function(model)
            values[i] = before - step
            below = function(model)
            values[i] = before
            results.append((above - below) / (2 * step))
    return torch.stack(results)


def best_of_n(logprobs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The policy "sample n answers, keep the one of highest reward", exactly: log π (N,) -> (N,).

    Let F(y) be the probability that one sample has at most the reward of y. Then y is kept with
    probability F(y)ⁿ − (F(y) − π(y))ⁿ (Beirami et al. 2024). If several answers
    have the same reward, one of them is chosen at random, in proportion to π.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    levels, rank = rewards.unique(return_inverse=True)                  # rewards in ascending order
    empty = torch.zeros(len(levels), dtype=logprobs.dtype)
    mass = empty.index_add(0, rank, logprobs.exp())                     # π of each level of reward
    below = mass.cumsum(0) - mass
    ratio = ((below + mass) ** n - below**n) / mass                     # kept by n samples / by one
    ratio = torch.where(mass > 0, ratio, 1.0)                           # 0/0: it stays at 0
    return logprobs + ratio.log()[rank]
