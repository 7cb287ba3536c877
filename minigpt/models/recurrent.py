"""Recurrence: read one token at a time, and carry everything worth remembering in a vector of fixed size.

    RNN      hₜ = tanh(W xₜ + U hₜ₋₁ + b)

    LSTM     i, f, o = σ(W xₜ + U hₜ₋₁ + b), each with its own W, U, b          what to write, to keep, to show
             g = tanh(W xₜ + U hₜ₋₁ + b), with its own too                      what would be written
             cₜ = f⊙cₜ₋₁ + i⊙g                                                  the memory: a sum, not a squashed product
             hₜ = o⊙tanh(cₜ)

    BiLSTM   [→hₜ ; ←hₜ]: one LSTM reads forwards, another backwards

Source: course C, "Recurrent networks"; Elman 1990; Hochreiter and Schmidhuber 1997; Gers et al. 2000 (the forget gate f);
Schuster and Paliwal 1997 (both directions). The four gates lie in one matrix in the order i, f, g, o, as torch.nn has them.
Deviation: one bias where torch.nn keeps two that are only ever added. Not here: peepholes, GRU, dropout.

All W xₜ are one matrix product, done before the loop over time; only U hₜ₋₁ has to wait its turn.

Shapes: B batch, T time, D input width, H hidden units, V vocabulary, S states a layer carries: 1 in an RNN (h), 2 in an LSTM (h, c).
"""
import math
import sys

import torch
from torch import Tensor, nn


def rnn_step(projected: Tensor, h: Tensor, U: Tensor) -> Tensor:
    """hₜ from W xₜ + b (B, H), hₜ₋₁ (B, H) and U (H, H): (B, H)."""
    return torch.tanh(torch.addmm(projected, h, U.T))                   # addmm: projected + h Uᵀ in one call


def lstm_step(projected: Tensor, h: Tensor, c: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """hₜ and cₜ, each (B, H), from W xₜ + b (B, 4H), hₜ₋₁ and cₜ₋₁ (B, H) and U (4H, H)."""
    i, f, g, o = torch.addmm(projected, h, U.T).chunk(4, dim=-1)        # (B, 4H) -> four times (B, H)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class Recurrence(nn.Module):
    """What RNN and LSTM share: weights W (n·H, D), U (n·H, H), b (n·H) for n gates, and the loop over time."""

    n_gates: int
    n_states: int

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        if d_in < 1 or d_hidden < 1:
            raise ValueError(f"d_in and d_hidden must be at least 1, not {d_in} and {d_hidden}")
        self.d_in, self.d_hidden = d_in, d_hidden
        self.W = nn.Parameter(torch.empty(self.n_gates * d_hidden, d_in))
        self.U = nn.Parameter(torch.empty(self.n_gates * d_hidden, d_hidden))
        self.b = nn.Parameter(torch.zeros(self.n_gates * d_hidden))
        nn.init.normal_(self.W, std=1 / math.sqrt(d_in), generator=generator)           # W x varies as much as x does
        for gate in self.U.detach().chunk(self.n_gates):                # an orthogonal U turns h and never shrinks it (Saxe et al. 2014)
            nn.init.orthogonal_(gate, generator=generator)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The states at every time: x (B, T, D) -> (S, B, T, H). The first is h, so `h = rnn(x)[0]` and `h, c = lstm(x)`.

        `state` (S, B, H) is where to start, zeros if not given; the last column, [:, :, -1], is where to go on from.
        Where `mask` (B, T) is False the state is handed on untouched: a padded row, left or right, ends as the row alone does.
        """
        if x.dim() != 3 or x.size(1) == 0 or x.size(2) != self.d_in:
            raise ValueError(f"x must be (batch, time ≥ 1, {self.d_in}), not {tuple(x.shape)}; this layer was made with d_in {self.d_in}")
        B, T, _ = x.shape
        if mask is not None and (mask.shape != (B, T) or mask.dtype != torch.bool):
            raise ValueError(f"mask must be bool of shape {(B, T)}, True at real tokens, not {mask.dtype} of shape {tuple(mask.shape)}")
        if state is None:
            state = x.new_zeros(self.n_states, B, self.d_hidden)        # (S, B, H)
        elif state.shape != (self.n_states, B, self.d_hidden):
            raise ValueError(f"state must be (states, batch, hidden) = {(self.n_states, B, self.d_hidden)}, not {tuple(state.shape)}")
        now, states = tuple(state), []                                  # S times (B, H)
        for t, projected in enumerate((x @ self.W.T + self.b).unbind(1)):               # T times (B, n·H)
            new = self.step(projected, *now)
            if mask is not None:
                new = tuple(torch.where(mask[:, t, None], n, old) for n, old in zip(new, now))
            now = new
            states.append(now)
        return torch.stack([torch.stack(s, dim=1) for s in zip(*states)])               # T times S times (B, H) -> (S, B, T, H)


class RNN(Recurrence):
    """hₜ = tanh(W xₜ + U hₜ₋₁ + b) (Elman 1990)."""

    n_gates, n_states = 1, 1

    def step(self, projected: Tensor, h: Tensor) -> tuple[Tensor]:
        return (rnn_step(projected, h, self.U),)


class LSTM(Recurrence):
    """Long short-term memory: c is kept by a gate instead of being rewritten at every step.

    The forget gate's bias starts at 1, since at 0 it would halve the memory at every step (Gers et al. 2000; Jozefowicz et
    al. 2015). `clamp` {unit: value} overwrites what these units remember, c, on entering every step (lesson 11).
    """

    n_gates, n_states = 4, 2

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__(d_in, d_hidden, generator)
        nn.init.ones_(self.forget_bias)
        self.clamp: dict[int, float] = {}

    @property
    def forget_bias(self) -> Tensor:
        """b of the gate f, (H,): a view without gradient, so writing into it changes the layer."""
        return self.b.detach()[self.d_hidden:2 * self.d_hidden]

    def step(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if self.clamp:
            c = c.clone()
            for unit, value in self.clamp.items():
                c[:, unit] = value
        return lstm_step(projected, h, c, self.U)


class BiLSTM(nn.Module):
    """Two LSTMs, one reading to the right and one to the left: x (B, T, D) -> [→h ; ←h] (B, T, 2H).

    →hₜ knows x₁..xₜ and ←hₜ knows xₜ..x_T, so together they know the whole sentence: good for reading it, not for
    predicting its next word. With a `mask` (B, T), False at pads, the way back starts at the last real token.
    """

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        self.rightwards = LSTM(d_in, d_hidden, generator)
        self.leftwards = LSTM(d_in, d_hidden, generator)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        right = self.rightwards(x, mask=mask)[0]                        # (B, T, H)
        left = self.leftwards(x.flip(1), mask=None if mask is None else mask.flip(1))[0].flip(1)        # (B, T, H)
        return torch.cat([right, left], dim=-1)                         # (B, T, 2H)


class RecurrentCache:
    """What one layer carries from token to token: its last state (S, B, H), however long the text. None before the first."""

    def __init__(self):
        self.state: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed: what beam search does to its survivors."""
        self.state = self.state[:, rows]


class RecurrentLM(nn.Module):
    """A language model: tokens (B, T) -> logits (B, T, V), where logits[:, t] scores token t + 1 given tokens 0..t.

    `cell` is LSTM or RNN; layers are stacked, each reading the h of the one below. Nothing limits how far it reads:
    `context_length` only tells `held_out_loss` how much text to read at a stretch, and is without limit unless set.
    """

    def __init__(
        self, vocab_size: int, d_embedding: int, d_hidden: int, n_layers: int = 1, cell: type[Recurrence] = LSTM,
        context_length: int = sys.maxsize, generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(vocab_size, d_embedding, n_layers, context_length) < 1:
            raise ValueError("vocab_size, d_embedding, n_layers and context_length must be at least 1, "
                             f"not {vocab_size}, {d_embedding}, {n_layers}, {context_length}")
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, d_embedding)
        self.layers = nn.ModuleList(cell(d_embedding if i == 0 else d_hidden, d_hidden, generator) for i in range(n_layers))
        self.out = nn.Linear(d_hidden, vocab_size)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        nn.init.normal_(self.out.weight, std=0.02, generator=generator)                 # logits near 0: the first guess is nearly uniform
        nn.init.zeros_(self.out.bias)

    def new_cache(self) -> list[RecurrentCache]:
        """An empty cache, one entry a layer, to hand to `forward` again and again with only the new tokens."""
        return [RecurrentCache() for _ in self.layers]

    def states(self, tokens: Tensor, cache: list[RecurrentCache] | None = None) -> list[Tensor]:
        """Every layer's states at every time: (B, T) -> for each layer (S, B, T, H); in an LSTM, `h, c = model.states(tokens)[-1]`."""
        x, states = self.token_embedding(tokens), []                    # (B, T, D)
        for i, layer in enumerate(self.layers):
            states.append(layer(x, cache[i].state if cache else None))
            if cache:
                cache[i].state = states[-1][:, :, -1]
            x = states[-1][0]                                           # (B, T, H)
        return states

    def forward(self, tokens: Tensor, cache: list[RecurrentCache] | None = None) -> Tensor:
        return self.out(self.states(tokens, cache)[-1][0])              # (B, T, V)
