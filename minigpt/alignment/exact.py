"""Exact: where every answer can be listed, every expectation is a finite sum, and nothing has to be believed.

    J(π) = Σ_y π(y) R(y)        KL(π‖q) = Σ_y π(y) log( π(y)/q(y) )        π*(y) = π_ref(y) e^{R(y)/β} / Z,  Z = Σ_y π_ref(y) e^{R(y)/β}

This file is the referee of all sampled methods. An *answer* is a string of tokens that ends with `stop_token` or, at the
latest, after `max_length` tokens. So answers are the leaves of a tree: each node has one child a token, and no answer is
the beginning of another. With V tokens and length L there are (V−1)⁰ + … + (V−1)^{L−2} + V·(V−1)^{L−1} of them.

Source: course D, "RLHF"; Rafailov et al. 2023, eq. 4 (π*) and A.1; best-of-n by order statistics, Gao et al. 2022.
A model here is anything that maps tokens (B, T) to logits (B, T, V): a table or a GPT, the functions do not care.

Shapes: N answers, B batch, P prompt length, L longest answer, T = P + L, V vocabulary.
"""
import torch
from torch import Tensor, nn

from minigpt.training.losses import sequence_logprobs


def list_answers(prompt: Tensor, vocab_size: int, max_length: int, stop_token: int = 0) -> tuple[Tensor, Tensor]:
    """All answers to one prompt (P,): tokens (N, P + L) with the prompt in front and `stop_token` after the end, and which tokens
    are the answer's own (N, P + L): True from the prompt's end to the first stop token, that one included.

    >>> tokens, mask = list_answers(torch.tensor([0]), vocab_size=2, max_length=2)
    >>> tokens.tolist(), mask.int().tolist()
    ([[0, 0, 0], [0, 1, 0], [0, 1, 1]], [[0, 1, 0], [0, 1, 1], [0, 1, 1]])
    """
    if not (0 <= stop_token < vocab_size and max_length >= 1 and prompt.dim() == 1):
        raise ValueError(f"needs a prompt (P,), a length of at least 1 and a stop token among the {vocab_size} tokens, "
                         f"not {tuple(prompt.shape)}, {max_length} and {stop_token}")
    if sum((vocab_size - 1) ** t for t in range(max_length)) > 2_000_000:
        raise ValueError(f"{vocab_size} tokens and {max_length} places make more than 2,000,000 answers; take fewer, and sample the rest")
    growing, finished = torch.empty(1, 0, dtype=torch.long), []         # (n, t): answers that have not stopped
    for t in range(max_length):
        new = torch.arange(vocab_size).repeat(len(growing))[:, None]                    # (n·V, 1)
        children = torch.cat([growing.repeat_interleave(vocab_size, 0), new], dim=1)    # (n·V, t + 1)
        over = (children[:, -1] == stop_token) | (t == max_length - 1)
        finished.append((children[over], t + 1))
        growing = children[~over]
    rows, mask = [], []
    for answers, length in finished:
        rows.append(nn.functional.pad(answers, (0, max_length - length), value=stop_token))          # (n, L)
        mask.append((torch.arange(max_length) < length).expand(len(answers), -1))
    tokens, mask = torch.cat(rows), torch.cat(mask)                     # (N, L)
    front = prompt.cpu().expand(len(tokens), -1)
    return torch.cat([front, tokens], 1).to(prompt.device), torch.cat([torch.zeros_like(front, dtype=torch.bool), mask], 1).to(prompt.device)


class Table(nn.Module):
    """A policy (or, with n_outputs None, a value function) that holds one row of free numbers for every prefix: nothing shared.

    tokens (B, T) -> (B, T, n_outputs), or (B, T). It starts at zero: every token equally likely.
    The row of a prefix is its number: read a token, go from row s to its child s·V + token.
    """

    def __init__(self, vocab_size: int, context_length: int, n_outputs: int | None = None):
        super().__init__()
        rows = sum(vocab_size**t for t in range(1, context_length + 1))
        if rows > 2_000_000:
            raise ValueError(f"a table for {vocab_size} tokens and {context_length} positions needs {rows:,} rows; take fewer, or a GPT")
        self.vocab_size, self.context_length = vocab_size, context_length
        self.rows = nn.Parameter(torch.zeros(rows) if n_outputs is None else torch.zeros(rows, n_outputs))

    def numbers(self, tokens: Tensor) -> Tensor:
        """Which row each prefix tokens[:, :t + 1] has: (B, T) -> (B, T)."""
        if tokens.size(1) > self.context_length:
            raise ValueError(f"{tokens.size(1)} tokens do not fit the table's context of {self.context_length}")
        numbers, row = [], torch.full_like(tokens[:, 0], -1)
        for t in range(tokens.size(1)):
            row = (row + 1) * self.vocab_size + tokens[:, t]            # −1 is the empty prefix, whose children are 0 .. V − 1
            numbers.append(row)
        return torch.stack(numbers, dim=1)                              # (B, T)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[self.numbers(tokens)]


def tabulate(tokens: Tensor, mask: Tensor, logprobs: Tensor, vocab_size: int) -> Table:
    """The table whose answers have these log-probabilities (N,): π(token | prefix) = mass of the answers beyond both / beyond the prefix."""
    table = Table(vocab_size, tokens.size(1) - 1, vocab_size).to(logprobs.dtype)
    mass = torch.zeros(table.rows.shape, dtype=logprobs.dtype)
    numbers, counted = table.numbers(tokens[:, :-1]), mask[:, 1:]       # (N, T − 1): a prefix, and whether an answer's token follows
    weight = logprobs.detach().exp()[:, None].expand_as(numbers)
    mass.index_put_((numbers[counted], tokens[:, 1:][counted]), weight[counted], accumulate=True)
    with torch.no_grad():                                               # rows that no answer visits stay even
        table.rows.copy_(torch.where(mass.sum(-1, keepdim=True) > 0, mass.log(), torch.zeros_like(mass)))
    return table


def answer_logprobs(model, tokens: Tensor, mask: Tensor, batch_size: int = 8192) -> Tensor:
    """log π(y | x) of every answer: (N, T), (N, T) -> (N,). Gradients flow, if they are on."""
    return torch.cat([sequence_logprobs(model(t[:, :-1]), t, m) for t, m in zip(tokens.split(batch_size), mask.split(batch_size))])


def expectation(logprobs: Tensor, values: Tensor) -> Tensor:
    """E_π[values] = Σ_y π(y)·values(y): (N,), (N,) -> scalar. An answer of probability 0 adds nothing, and nothing to the gradient."""
    possible = logprobs > -torch.inf                                    # picked before they are multiplied: 0·∞ would be NaN,
    return (logprobs[possible].exp() * values[possible]).sum()          # and in the gradient even where it is masked afterwards


def kl_divergence(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL(π‖q) in nats: (N,), (N,) -> scalar ≥ 0, infinite if π does what q never does."""
    possible = logprobs > -torch.inf
    return expectation(logprobs[possible], logprobs[possible] - other[possible])


def optimal_policy(ref_logprobs: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The policy that maximises E[R] − β·KL(π‖π_ref): log π* (N,) and log Z (Rafailov et al. 2023, eq. 4). β > 0, in the reward's unit."""
    if not beta > 0:
        raise ValueError(f"β must be greater than 0, not {beta}: without a price on leaving the reference, the best policy is one answer")
    tilted = ref_logprobs + rewards / beta
    log_z = tilted.logsumexp(0)
    return tilted - log_z, log_z


def objective(logprobs: Tensor, ref_logprobs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(π) = E_π[R] − β·KL(π‖π_ref): scalar. Its maximum is β log Z, and β log Z − J(π) = β·KL(π‖π*)."""
    return expectation(logprobs, rewards) - beta * kl_divergence(logprobs, ref_logprobs)


def gradient(model: nn.Module, scalar: Tensor) -> Tensor:
    """∇ of a scalar with respect to all parameters, as one long vector."""
    trained = [p for p in model.parameters() if p.requires_grad]
    pieces = torch.autograd.grad(scalar, trained, allow_unused=True, materialize_grads=True, retain_graph=True)
    return torch.cat([piece.flatten() for piece in pieces])


def slopes(function, model: nn.Module, step: float = 1e-5) -> Tensor:
    """∂function(model)/∂θᵢ for each parameter, by walking a step to each side: as long as `gradient`'s, and it knows nothing of autograd.

    For float64 and models of a few hundred numbers: every slope costs two calls.
    """
    out = []
    with torch.no_grad():
        for parameter in model.parameters():
            for i in range(parameter.numel()):
                flat, values = parameter.view(-1), []
                before = flat[i].item()
                for move in (step, -step):
                    flat[i] = before + move
                    values.append(function(model))
                flat[i] = before
                out.append((values[0] - values[1]) / (2 * step))
    return torch.stack(out)


def best_of_n(logprobs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The policy "draw n answers, keep the one with the highest reward": log-probabilities (N,), exactly.

    With the answers ranked by reward, F(y) the probability of a draw no better than y: the best of n is y with F(y)ⁿ − (F(y) − π(y))ⁿ.
    Answers with equal reward share their rank's mass in proportion to π: which of the best is kept is a coin's choice.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    levels, rank = rewards.unique(return_inverse=True)                  # ascending
    mass = torch.zeros(len(levels), dtype=logprobs.dtype).index_add(0, rank, logprobs.exp())         # π of each level of reward
    below = mass.cumsum(0) - mass
    kept = ((below + mass) ** n - below**n) / mass                      # how much likelier than in one draw
    chosen = torch.where(mass > 0, kept, 1.0)                           # 0/0: what is never drawn is never kept
    return logprobs + chosen.log()[rank]
