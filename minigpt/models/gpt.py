"""GPT: a decoder-only transformer that predicts every token from the tokens before it.

    h₀ = U W_e + W_p        h_l = block(h_{l−1})        P(u) = softmax(h_n W_eᵀ)

A block is attention, then a feed-forward network; each is added to its input.

Source: Radford et al. 2018 (GPT-1), eq. 2; Radford et al. 2019 (GPT-2), §2.3; course A,
"Transformer decoder", for the output layer; course D, "GPT".
The default configuration is GPT-2: a norm stands before each sub-layer, and one more after the last
block. `post_norm` gives GPT-1. The other options are later changes that published models use:
rotary positions, RMS norm, ReLU², SwiGLU, normalised queries and keys, no biases, an unembedding
matrix of its own.
Deviations: no dropout, because models of this size underfit, so it would only add noise to the
comparisons; all embeddings start with standard deviation 0.02, where GPT-2's released code has 0.01
for the positions.
Not here: grouped-query attention, mixtures of experts.

Shapes: B batch, T time, P prefix, S all positions so far, D width of one head, C = d_model,
V vocabulary.
"""
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention
from minigpt.models.checks import (
    TokenEmbedding,
    check_fields,
    check_heads,
    check_memory,
    check_rows,
)
from minigpt.models.positions import rotary_table
from minigpt.text.padding import check_mask


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT and the form of its parts.

    >>> GPTConfig(vocab_size=65, context_length=64, n_layers=4, n_heads=4, d_model=128).d_head
    32
    """

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int | None = None         # None: 4·d_model, and for SwiGLU 8/3·d_model (see `width_ff`)
    positions: Literal["learned", "rotary", "none"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float | None = None   # None: 1e-5 for layer norm, the dtype's epsilon for RMS norm
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "gelu_tanh"
    qk_norm: bool = False           # an RMS norm, always with the dtype's epsilon
    bias: bool = True
    post_norm: bool = False         # GPT-1's form
    tied: bool = True               # W_e is the unembedding matrix too

    def __post_init__(self):
        check_fields(self)
        if check_heads(self.d_model, self.n_heads) % 2 and self.positions == "rotary":
            raise ValueError(f"rotary positions turn pairs of dimensions, so the width of a head "
                             f"must be even, not d_model {self.d_model} / n_heads {self.n_heads}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def width_ff(self) -> int:
        """d_ff, or its default.

        SwiGLU has three matrices where the others have two. Two thirds of their width, 8/3·d_model,
        keep the number of weights the same: 3 · 8/3 = 2 · 4 (Shazeer 2020, §2).
        """
        if self.d_ff is not None:
            return self.d_ff
        return round(8 / 3 * self.d_model) if self.activation == "swiglu" else 4 * self.d_model

    @property
    def n_weights(self) -> int:
        """Entries of all matrices and position tables. Biases and gains add little to them."""
        C, n_embeddings = self.d_model, self.vocab_size * (1 if self.tied else 2)
        per_position = {"learned": C, "rotary": self.d_head, "none": 0}[self.positions]
        per_layer = 4 * C**2 + (3 if self.activation == "swiglu" else 2) * C * self.width_ff
        return n_embeddings * C + self.context_length * per_position + self.n_layers * per_layer

    @classmethod
    def gpt1(cls) -> "GPTConfig":
        """GPT-1 as released: 116,534,784 parameters.

        Radford et al. 2018 gives the sizes (§4.1) and no count. The usual "117M", also in course D,
        is in Radford et al. 2019, table 2, for the model that their §3 calls equivalent to GPT-1.
        """
        return cls(40_478, 512, n_layers=12, n_heads=12, d_model=768, post_norm=True)

    @classmethod
    def gpt2(cls, size: str = "small") -> "GPTConfig":
        """GPT-2 as released: small (124M parameters), medium (355M), large (774M) or xl (1,558M).

        Radford et al. 2019, table 2, has 117M, 345M, 762M and 1,542M, which miscount the weights.
        """
        sizes = {"small": (12, 12, 768), "medium": (24, 16, 1024),
                 "large": (36, 20, 1280), "xl": (48, 25, 1600)}
        if size not in sizes:
            raise ValueError(f"GPT-2's sizes are {', '.join(sizes)}, not {size!r}")
        n_layers, n_heads, d_model = sizes[size]
        return cls(50_257, 1024, n_layers=n_layers, n_heads=n_heads, d_model=d_model)

    @classmethod
    def modern(
        cls, vocab_size: int, context_length: int, n_layers: int, n_heads: int, d_model: int
    ) -> "GPTConfig":
        """The same sizes with later changes: rotary, RMS norm, ReLU², QK-norm, no biases."""
        later = {"positions": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True,
                 "bias": False}
        return cls(vocab_size, context_length, n_layers, n_heads, d_model, **later)


def make_norm(config: GPTConfig) -> nn.Module:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019) over the last dimension."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps or 1e-5, bias=config.bias)


class FeedForward(nn.Module):
    """A network applied to each position by itself: C -> d_ff -> C (Vaswani et al. 2017, eq. 2).

    SwiGLU multiplies the inner layer by a gate: W_out(silu(W_gate x) · W_in x), with
    silu(x) = x·σ(x) (Shazeer 2020, eq. 6).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        C, d_ff = config.d_model, config.width_ff
        self.activation = config.activation
        self.inner = nn.Linear(C, d_ff, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = nn.Linear(C, d_ff, bias=config.bias)
        self.out = nn.Linear(d_ff, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)                                           # (B, T, d_ff)
        if self.activation == "gelu_tanh":      # GPT-1 and 2: Hendrycks and Gimpel 2016, §2
            inner = F.gelu(inner, approximate="tanh")
        elif self.activation == "gelu":         # x·Φ(x) exactly
            inner = F.gelu(inner)
        elif self.activation == "relu2":        # So et al. 2021 (Primer)
            inner = F.relu(inner).square()
        else:
            inner = F.silu(self.gate(x)) * inner
        return self.out(inner)                                          # (B, T, C)


class Block(nn.Module):
    """Attention combines positions, then the feed-forward network acts on each of them.

    Both add their output to x. GPT-2 normalises what they read; GPT-1 normalises the sum.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = MultiHeadAttention(
            config.d_model, config.n_heads, config.bias, qk_norm=config.qk_norm)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, **options) -> Tensor:
        """(B, T, C) -> (B, T, C). The options are attention's: `rotary`, `cache` and `mask`."""
        if self.post_norm:
            x = self.norm1(x + self.attention(x, causal=True, **options))
            return self.norm2(x + self.feed_forward(x))
        x = x + self.attention(self.norm1(x), causal=True, **options)
        return x + self.feed_forward(self.norm2(x))


class GPT(nn.Module):
    """tokens (B, T) -> logits (B, T, V): logits[:, t] scores token t + 1 given tokens 0 to t.

    `generator` draws the initial weights; without it, torch's global generator does.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        check_memory(config, config.n_weights)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.Identity() if config.post_norm else make_norm(config)
        if not config.tied:
            self.output_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "rotary":        # computed tables, so they are not saved
            cos, sin = rotary_table(config.context_length, config.d_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws weights from N(0, 0.02²) and sets biases to 0; the gains of norms stay at 1.

        In GPT-2 the matrices that add to the residual stream, two per layer, start smaller by
        1/√(2·n_layers) (Radford et al. 2019, §2.3). GPT-1 has 0.02 there too (Radford et al. 2018,
        §4.1).
        """
        shrink = 1.0 if self.config.post_norm else 1 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(parameter, std=0.02 * shrink, generator=generator)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def forward(
        self, tokens: Tensor, cache: list[KVCache] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, T) -> logits (B, T, V). `hidden` says what `cache` and `mask` are."""
        return self.unembed(self.hidden(tokens, cache, mask=mask))

    def hidden(
        self, tokens: Tensor, cache: list[KVCache] | None = None, prefix: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The last layer's vectors h_n: (B, T) -> (B, T, C).

        `cache`: tokens before these, from `new_cache`; the new ones are appended to it.
        `prefix` (P, C): vectors that stand before the tokens of each row, as P embedded tokens
        would; the result is (B, P + T, C).
        `mask` (B, S): False at padding, over all positions so far, prefix and cache included. No
        position looks at padding and padding is not counted as a position, so a row that is padded
        on its left gives the same vectors as it does alone. The vectors at padding have no meaning.
        """
        x = self.embed(tokens, prefix)                                  # (B, T, C)
        where = self.locate(x, cache, mask)
        x, rotary = self.add_positions(x, where), self.rotary_tables(where)
        keys = None if mask is None else mask[:, None, None]            # (B, 1, 1, S)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary=rotary, cache=cache[i] if cache else None, mask=keys)
        return self.final_norm(x)

    def embed(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """U W_e, after the prefix if there is one: (B, T) -> (B, T, C) or (B, P + T, C)."""
        x = self.token_embedding(tokens)                                # (B, T, C)
        if prefix is None:
            return x
        return torch.cat([prefix.expand(x.size(0), -1, -1), x], dim=1)  # (B, P + T, C)

    def locate(
        self, x: Tensor, cache: list[KVCache] | None, mask: Tensor | None
    ) -> slice | Tensor:
        """The position of each vector of x (B, T, C): a slice, or (B, T) if there is padding."""
        start = cache[0].length if cache else 0
        end = start + x.size(1)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens do not fit the context of "
                             f"{self.config.context_length}; shorten the input")
        if mask is None:
            return slice(start, end)
        check_mask(mask, (x.size(0), end))
        if start == 0:                          # later masks repeat this one, with more columns
            check_rows(mask)
        return (mask.cumsum(1) - 1).clamp(min=0)[:, start:]             # (B, T)

    def add_positions(self, x: Tensor, where: slice | Tensor) -> Tensor:
        """U W_e + W_p if positions are learned; x as it is otherwise."""
        if self.config.positions != "learned":
            return x
        return x + self.position_embedding.weight[where]                # (B, T, C)

    def rotary_tables(self, where: slice | Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin of the positions' angles, (T, D/2) or (B, 1, T, D/2), if they are rotary."""
        if self.config.positions != "rotary":
            return None
        cos, sin = self.cos[where], self.sin[where]                     # (T, D/2), or (B, T, D/2)
        return (cos, sin) if isinstance(where, slice) else (cos[:, None], sin[:, None])

    def unembed(self, hidden: Tensor) -> Tensor:
        """h_n W_eᵀ: (B, T, C) -> (B, T, V).

        Tied, it is the embedding matrix, whose gradient is then the sum of both uses.
        """
        output = self.token_embedding if self.config.tied else self.output_embedding
        return hidden @ output.weight.T

    def new_cache(self) -> list[KVCache]:
        """An empty cache, one entry per layer. With it, `forward` is given the new tokens only."""
        return [KVCache(self.config.context_length) for _ in self.blocks]
