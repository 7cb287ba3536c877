"""BERT: an encoder-only transformer. Nothing is hidden from any position, so a hidden word is guessed from both of its sides.

    h₀ = norm(W_e[token] + W_p[position] + W_s[segment])            embeddings; W_s has two rows, S₁ and S₂
    a = norm(x + attention(x)),   x ← norm(a + mlp(a))              each of the layers
    P(hidden token) = softmax(norm(gelu(h W + b)) W_eᵀ + b_V)       from that token's own position
    P(S₂ follows S₁) = softmax(tanh(h_[CLS] W_c + b_c) W_n + b_n)   from the first position; class 0 is "it follows"

Source: course C and D, "BERT"; Devlin et al. 2019, §3; GELU, Hendrycks and Gimpel 2016, in its exact form x·Φ(x).
ALBERT (Lan et al. 2020, §3.1) is BERT with two options: `d_embedding` factorises the V × C embedding into V × E and E × C,
and `share_layers` runs one layer's weights n_layers times. Its third change, sentence-order prediction in the place of NSP, is not here.
Deviations: no dropout (see gpt.py); initial weights are normal, where Google's code cuts the normal off at two standard deviations.
Not here: masking and sentence pairs (text/corruption.py), the loss (training/losses.py), published weights.

Shapes: B batch, T time, C = d_model, E = d_embedding, V vocabulary.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import MultiHeadAttention

NORM_EPSILON = 1e-12                    # Google's code; PyTorch's default is 1e-5


@dataclass(frozen=True)
class BERTConfig:
    """What fixes a BERT's shape. `d_ff` is 4·d_model and `d_embedding` is d_model unless given."""

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int | None = None
    d_embedding: int | None = None
    share_layers: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "n_layers", "n_heads", "d_model", "d_ff", "d_embedding"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1 or value is None and name in ("d_ff", "d_embedding")):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")

    @classmethod
    def base(cls) -> "BERTConfig":
        """BERT-base, uncased: 109,482,240 parameters without its two heads; "110M" in the paper."""
        return cls(30_522, 512, n_layers=12, n_heads=12, d_model=768)

    @classmethod
    def large(cls) -> "BERTConfig":
        """BERT-large, uncased: 335,141,888 without its heads; "340M" in the paper."""
        return cls(30_522, 512, n_layers=24, n_heads=16, d_model=1024)

    @classmethod
    def albert_base(cls) -> "BERTConfig":
        """ALBERT-base: 11,683,584 without its heads; "12M" in the paper."""
        return cls(30_000, 512, n_layers=12, n_heads=12, d_model=768, d_embedding=128, share_layers=True)

    @classmethod
    def albert_large(cls) -> "BERTConfig":
        """ALBERT-large: 17,683,968 without its heads; "18M" in the paper."""
        return cls(30_000, 512, n_layers=24, n_heads=16, d_model=1024, d_embedding=128, share_layers=True)


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPSILON)


class Block(nn.Module):
    """Attention, then an MLP, each added to its input and normalised *after* the sum, as in Vaswani et al. 2017 (GPT-2 norms before)."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        d_ff = config.d_ff or 4 * config.d_model
        self.attention = MultiHeadAttention(config.d_model, config.n_heads)
        self.inner, self.out = nn.Linear(config.d_model, d_ff), nn.Linear(d_ff, config.d_model)
        self.norm1, self.norm2 = layer_norm(config.d_model), layer_norm(config.d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). `mask` (B, T), True where a token stands, hides padding from every position."""
        keys = None if mask is None else mask[:, None, None]                    # (B, 1, 1, S): the same for all heads and queries
        x = self.norm1(x + self.attention(x, mask=keys))
        return self.norm2(x + self.out(F.gelu(self.inner(x))))                  # C -> d_ff -> C


class BERT(nn.Module):
    """tokens (B, T) -> logits (B, T, V) of the masked-language model: logits[:, t] says which token stands, or stood, at t.

    `segments` (B, T) is 0 for [CLS] S₁ [SEP] and 1 for S₂ [SEP]; all 0 without it. `mask` (B, T) bool is True where a token
    stands and False where there is padding; without it nothing is padding. Its parts are there by themselves, since training asks
    the MLM head about few positions only, and the vectors, not the logits, are what later tasks use:

        hidden = model.hidden(tokens, segments, mask)                           (B, T, C)
        model.mlm_logits(hidden[chosen])                                        (N, C) -> (N, V)
        model.nsp_logits(hidden)                                                (B, T, C) -> (B, 2)

    >>> with torch.device("meta"):                                              # shapes without memory
    ...     sum(p.numel() for p in BERT(BERTConfig.base()).parameters())        # the encoder's 109,482,240 and two heads
    110106428
    """

    def __init__(self, config: BERTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        C, E = config.d_model, config.d_embedding or config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, E)
        self.position_embedding = nn.Embedding(config.context_length, E)
        self.segment_embedding = nn.Embedding(2, E)
        self.embedding_norm = layer_norm(E)
        self.widen = nn.Linear(E, C) if config.d_embedding else nn.Identity()   # ALBERT's second factor, E × C
        self.blocks = nn.ModuleList(Block(config) for _ in range(1 if config.share_layers else config.n_layers))
        self.pooler = nn.Linear(C, C)
        self.mlm_dense, self.mlm_norm = nn.Linear(C, E), layer_norm(E)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))            # its matrix is the token embedding
        self.nsp = nn.Linear(C, 2)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)                                       # the norms' gains stay at 1

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def embed(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """h₀: (B, T) -> (B, T, C). What is known of a token before it has seen any other."""
        if tokens.size(1) > self.config.context_length:
            raise ValueError(f"{tokens.size(1)} tokens do not fit the context of {self.config.context_length}; shorten the input")
        segments = torch.zeros_like(tokens) if segments is None else segments
        if segments.shape != tokens.shape:
            raise ValueError(f"segments {tuple(segments.shape)} must have the shape of tokens {tuple(tokens.shape)}")
        # Each lookup is a one-hot row times a matrix; the three products add up: (B, T, E)
        x = self.token_embedding(tokens) + self.position_embedding.weight[:tokens.size(1)] + self.segment_embedding(segments)
        return self.widen(self.embedding_norm(x))                               # (B, T, E) -> (B, T, C)

    def hidden(self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last layer's vectors, (B, T) -> (B, T, C): each token in its context. Padding gets a vector too; let no one read it."""
        if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape):
            raise ValueError(f"mask must be bool {tuple(tokens.shape)}, True where a token stands; it is {mask.dtype} {tuple(mask.shape)}")
        x = self.embed(tokens, segments)
        for i in range(self.config.n_layers):
            x = self.blocks[i % len(self.blocks)](x, mask)                      # shared layers: always blocks[0]
        return x

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V). The scoring matrix is the token embedding, so each of its rows gets gradient from both uses."""
        x = self.mlm_norm(F.gelu(self.mlm_dense(hidden)))                       # (..., E)
        return x @ self.token_embedding.weight.T + self.mlm_bias                # (..., V)

    def pool(self, hidden: Tensor) -> Tensor:
        """The pair as one vector: [CLS]'s, through a tanh layer. (B, T, C) -> (B, C)."""
        return self.pooler(hidden[:, 0]).tanh()                                 # (B, T, C) -> (B, C)

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, 2): class 0 "S₂ follows S₁", class 1 "S₂ is from elsewhere", the order of the published weights."""
        return self.nsp(self.pool(hidden))                                      # (B, C) -> (B, 2)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.mlm_logits(self.hidden(tokens, segments, mask))
