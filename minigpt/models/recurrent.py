"""Recurrence: a network reads one token at a time and updates a state vector of fixed size.

    RNN      hₜ = tanh(W xₜ + U hₜ₋₁ + b)

    LSTM     i, f, o = σ(W xₜ + U hₜ₋₁ + b)          input, forget and output gate
             g = tanh(W xₜ + U hₜ₋₁ + b)             the candidate for the memory
             cₜ = f⊙cₜ₋₁ + i⊙g                       the memory cell
             hₜ = o⊙tanh(cₜ)                         the hidden state

    BiLSTM   [→hₜ ; ←hₜ]                             one LSTM reads forwards, another backwards

Each of i, f, g and o has its own W, U and b, in one matrix in this order, as in torch.nn. The
products W xₜ do not depend on the state, so they are computed before the loop over time.

Source: course C, "Recurrent Neural Networks" and "Bi-directional LSTM"; Elman 1990; Hochreiter and
Schmidhuber 1997; Gers et al. 2000 (the forget gate f); Schuster and Paliwal 1997 (both directions).
Deviation: one bias b, where torch.nn adds two. Not here: peepholes, GRU, dropout.

Shapes: B batch, T time, D input width, H hidden units, V vocabulary, S states: h, or h and c.
"""
import math
import sys

import torch
from torch import Tensor, nn

from minigpt.models.checks import TokenEmbedding, check_sizes
from minigpt.text.padding import check_mask


class Recurrence(nn.Module):
    """The part that RNN and LSTM share: the weights of n gates and the loop over time.

    A subclass defines `step`, `n_gates` and `n_states`.
    """

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(d_in=d_in, d_hidden=d_hidden)
        self.d_in, self.d_hidden = d_in, d_hidden
        self.W = nn.Parameter(torch.empty(self.n_gates * d_hidden, d_in))       # (n·H, D)
        self.U = nn.Parameter(torch.empty(self.n_gates * d_hidden, d_hidden))   # (n·H, H)
        self.b = nn.Parameter(torch.zeros(self.n_gates * d_hidden))             # (n·H,)
        # With std 1/√D, the entries of W x have the variance of those of x.
        nn.init.normal_(self.W, std=1 / math.sqrt(d_in), generator=generator)
        for gate in self.U.detach().chunk(self.n_gates):    # orthogonal (Saxe et al. 2014)
            nn.init.orthogonal_(gate, generator=generator)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The states at every time: x (B, T, D) -> (S, B, T, H), so h = rnn(x)[0], h, c = lstm(x).

        `state` (S, B, H) is the state before x, zeros by default; states[:, :, -1] is the one after
        x. Where `mask` (B, T) is False, it does not change: a padded row ends as the row alone.
        """
        B, T, _ = x.shape
        if mask is not None:
            check_mask(mask, (B, T))
        state = x.new_zeros(self.n_states, B, self.d_hidden) if state is None else state
        now, states = tuple(state), []                                  # S times (B, H)
        for t, projected in enumerate((x @ self.W.T + self.b).unbind(1)):       # T times (B, n·H)
            new = self.step(projected, *now)
            if mask is not None:
                new = tuple(torch.where(mask[:, t, None], n, old) for n, old in zip(new, now))
            now = new
            states.append(now)
        return torch.stack([torch.stack(s, dim=1) for s in zip(*states)])       # (S, B, T, H)


class RNN(Recurrence):
    """hₜ = tanh(W xₜ + U hₜ₋₁ + b) (Elman 1990)."""

    n_gates, n_states = 1, 1

    def step(self, projected: Tensor, h: Tensor) -> tuple[Tensor]:
        return (torch.tanh(torch.addmm(projected, h, self.U.T)),)       # projected + h Uᵀ


class LSTM(Recurrence):
    """Long short-term memory: a gate decides how much of the memory c to keep at each step.

    `clamp` {unit: value} overwrites c of these units before every step (lesson 11).
    """

    n_gates, n_states = 4, 2

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__(d_in, d_hidden, generator)
        nn.init.ones_(self.forget_bias)     # with 0, f ≈ 1/2, so the memory would halve every step
        self.clamp: dict[int, float] = {}

    @property
    def forget_bias(self) -> Tensor:
        """The bias of gate f, (H,): a view of `b` without gradient, so writing to it sets `b`."""
        return self.b.detach()[self.d_hidden:2 * self.d_hidden]

    def step(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """hₜ and cₜ (B, H) from W xₜ + b (B, 4H), hₜ₋₁ and cₜ₋₁ (B, H)."""
        c = c.clone() if self.clamp else c
        for unit, value in self.clamp.items():
            c[:, unit] = value
        i, f, g, o = torch.addmm(projected, h, self.U.T).chunk(4, dim=-1)       # 4 times (B, H)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class BiLSTM(nn.Module):
    """Two LSTMs, one for each reading direction: x (B, T, D) -> [→h ; ←h] (B, T, 2H).

    They can encode a sentence but not predict its next word, because ←hₜ has read it. `mask` (B, T)
    is False at padding.
    """

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        self.rightwards, self.leftwards = (LSTM(d_in, d_hidden, generator) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mask_back = None if mask is None else mask.flip(1)
        right = self.rightwards(x, mask=mask)[0]                        # (B, T, H)
        left = self.leftwards(x.flip(1), mask=mask_back)[0].flip(1)     # (B, T, H)
        return torch.cat([right, left], dim=-1)                         # (B, T, 2H)


class RecurrentCache:
    """The last state (S, B, H) of one layer, to go on from; None before the first token."""

    state: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed; for beam search."""
        self.state = self.state[:, rows]


class RecurrentLM(nn.Module):
    """tokens (B, T) -> logits (B, T, V), from layers that each read the h of the layer below."""

    context_length = sys.maxsize        # the state has a fixed size, so a text may have any length

    def __init__(self, vocab_size: int, d_embedding: int, d_hidden: int, n_layers: int = 1,
                 cell: type[Recurrence] = LSTM, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(vocab_size=vocab_size, d_embedding=d_embedding, n_layers=n_layers)
        self.token_embedding = TokenEmbedding(vocab_size, d_embedding)
        widths = [d_embedding] + (n_layers - 1) * [d_hidden]
        self.layers = nn.ModuleList(cell(d_in, d_hidden, generator) for d_in in widths)
        self.out = nn.Linear(d_hidden, vocab_size)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        # Small output weights give logits near 0, so the first predictions are nearly uniform.
        nn.init.normal_(self.out.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.out.bias)

    def new_cache(self) -> list[RecurrentCache]:
        """An empty cache for `forward`. With it, each call takes only the new tokens."""
        return [RecurrentCache() for _ in self.layers]

    def states(self, tokens: Tensor, cache: list[RecurrentCache] | None = None) -> list[Tensor]:
        """The states of every layer at every time: (B, T) -> n_layers times (S, B, T, H)."""
        x, states = self.token_embedding(tokens), []                    # (B, T, D)
        for i, layer in enumerate(self.layers):
            states.append(layer(x, cache[i].state if cache else None))
            if cache:
                cache[i].state = states[-1][:, :, -1]
            x = states[-1][0]                                           # (B, T, H)
        return states

    def forward(self, tokens: Tensor, cache: list[RecurrentCache] | None = None) -> Tensor:
        return self.out(self.states(tokens, cache)[-1][0])              # (B, T, V)
