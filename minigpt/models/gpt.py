"""GPT: a decoder-only transformer. Every token is predicted from those before it, by one stack of attention and MLPs.

    h₀ = U W_e + W_p        h_l = block(h_{l−1})        P(u) = softmax(h_n W_eᵀ)

Source: course A and D, "GPT"; Radford et al. 2018 (GPT-1), eq. 2; Radford et al. 2019 (GPT-2): norms moved in front
of each sub-layer, one more at the end, residual projections initialised smaller by 1/√(2·n_layers).
The default configuration is GPT-2's form. Four options carry what changed since: rotary positions, RMS norm, ReLU², normalised
queries and keys; `post_norm` carries GPT-1's.
Deviations: all embeddings are drawn with 0.02, where GPT-2's released code takes 0.01 for positions; and no dropout: at the size of
this course a model sees fresh or few data and underfits, and regularising it would only blur numbers.

Shapes: B batch, T time, C = d_model, V vocabulary.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention
from minigpt.models.positions import rotary_table


@dataclass(frozen=True)
class GPTConfig:
    """What fixes a GPT's shape. `d_ff` is 4·d_model unless given."""

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int | None = None
    positions: str = "learned"      # or "rotary", or "none" (lesson 05 shows what that loses)
    norm: str = "layer"             # or "rms"
    activation: str = "gelu"        # or "relu2"
    qk_norm: bool = False
    bias: bool = True
    post_norm: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "n_layers", "n_heads", "d_model", "d_ff"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1 or name == "d_ff" and value is None):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name, allowed in (("positions", ("learned", "rotary", "none")), ("norm", ("layer", "rms")), ("activation", ("gelu", "relu2"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    @classmethod
    def gpt1(cls) -> "GPTConfig":
        """GPT-1 as released: 117M (Radford et al. 2018, §4.1)."""
        return cls(40_478, 512, n_layers=12, n_heads=12, d_model=768, post_norm=True)

    @classmethod
    def gpt2(cls, size: str = "small") -> "GPTConfig":
        """GPT-2 as released: small (124M), medium, large or xl (1.5B). The paper counts 117M for small; the weights hold 124M."""
        sizes = {"small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}
        if size not in sizes:
            raise ValueError(f"GPT-2 comes as {', '.join(sizes)}, not {size!r}")
        layers, heads, width = sizes[size]
        return cls(50_257, 1024, n_layers=layers, n_heads=heads, d_model=width)

    @classmethod
    def modern(cls, vocab_size: int, context_length: int, n_layers: int, n_heads: int, d_model: int) -> "GPTConfig":
        """The same model with what has proved better since 2019: rotary, RMS norm, ReLU², QK-norm, no biases."""
        since = {"positions": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "bias": False}
        return cls(vocab_size, context_length, n_layers, n_heads, d_model, **since)


class FeedForward(nn.Module):
    """Two layers applied to each position alone: C -> d_ff -> C (Vaswani et al. 2017, eq. 2, with another non-linearity)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        d_ff = config.d_ff or 4 * config.d_model
        self.inner = nn.Linear(config.d_model, d_ff, bias=config.bias)
        self.out = nn.Linear(d_ff, config.d_model, bias=config.bias)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)                                               # (B, T, d_ff)
        # GPT-1 and 2 use the tanh form of GELU (Hendrycks and Gimpel 2016, §2); ReLU² is So et al. 2021 (Primer).
        x = F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x).square()
        return self.out(x)                                              # (B, T, C)


def norm(config: GPTConfig) -> nn.Module:
    return nn.LayerNorm(config.d_model, bias=config.bias) if config.norm == "layer" else nn.RMSNorm(config.d_model)


class Block(nn.Module):
    """Communicate (attention), then think (MLP); each adds to the residual stream x rather than replacing it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = MultiHeadAttention(config.d_model, config.n_heads, config.bias, qk_norm=config.qk_norm)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, **options) -> Tensor:                  # the attention's options: rotary, cache, mask
        if self.post_norm:                                              # GPT-1: the norm sits on the residual stream itself
            x = self.norm1(x + self.attention(x, causal=True, **options))
            return self.norm2(x + self.feed_forward(x))
        x = x + self.attention(self.norm1(x), causal=True, **options)
        return x + self.feed_forward(self.norm2(x))


class GPT(nn.Module):
    """tokens (B, T) -> logits (B, T, V): logits[:, t] scores token t + 1 given tokens 0..t.

    `generator` fixes the initial weights; without it they come from torch's global generator.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.Identity() if config.post_norm else norm(config)
        if config.positions == "rotary":                                # tables, not parameters: computed, so not saved
            cos, sin = rotary_table(config.context_length, config.d_model // config.n_heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Weights N(0, 0.02), biases 0; what writes to the residual stream is smaller by 1/√(2·n_layers) (Radford et al. 2019, §2.3)."""
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layers), generator=generator)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)                               # the norms' gains stay at 1

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def new_cache(self) -> list[KVCache]:
        """An empty cache, one entry a layer, to hand to `forward` again and again with only the new tokens."""
        return [KVCache(self.config.context_length) for _ in self.blocks]

    def hidden(
        self, tokens: Tensor, cache: list[KVCache] | None = None, prefix: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:
        """The last layer's vectors h_n, (B, T) -> (B, T, C). With a cache, `tokens` are only those after the cached ones.

        A `prefix` (P, C) stands before the tokens of every row as if it were P more embedded tokens: the result is (B, P + T, C).
        `mask` (B, S) is False at padding, over all S positions so far (prefix and cache too). Nobody looks at padding, and positions count
        what is not padding, so a row padded on its left reads as it would alone. What comes out *at* padding means nothing.
        """
        x = self.token_embedding(tokens)                                # (B, T, C)
        if prefix is not None:
            x = torch.cat([prefix.expand(x.size(0), -1, -1), x], dim=1)     # (P, C) -> (B, P, C) -> (B, P + T, C)
        start = cache[0].length if cache else 0
        end = start + x.size(1)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens do not fit the context of {self.config.context_length}; shorten the input")
        where = slice(start, end)                                       # each token's position
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != (x.size(0), end):
                raise ValueError(f"a mask for {x.size(0)} rows and {end} positions so far is bool and has that shape, "
                                 f"not {mask.dtype} and {tuple(mask.shape)}")
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]        # (B, T)
            mask = mask[:, None, None]                                  # (B, S) -> (B, 1, 1, S): for every head and query
        if self.config.positions == "learned":
            x = x + self.position_embedding.weight[where]
        rotary = None
        if self.config.positions == "rotary":
            rotary = self.cos[where], self.sin[where]                   # (T, D/2) each, or (B, T, D/2)
            if mask is not None:
                rotary = rotary[0][:, None], rotary[1][:, None]         # (B, 1, T, D/2): for every head
        for i, block in enumerate(self.blocks):
            x = block(x, rotary=rotary, cache=cache[i] if cache else None, mask=mask)
        return self.final_norm(x)

    def unembed(self, hidden: Tensor) -> Tensor:
        """h_n W_eᵀ: (B, T, C) -> (B, T, V). The same matrix as the embedding, so each row gets gradient from both its uses."""
        return hidden @ self.token_embedding.weight.T

    def forward(self, tokens: Tensor, cache: list[KVCache] | None = None, mask: Tensor | None = None) -> Tensor:
        return self.unembed(self.hidden(tokens, cache, mask=mask))
