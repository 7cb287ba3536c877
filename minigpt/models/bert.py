"""BERT: an encoder-only transformer. Each position sees all the others, so a masked token is
predicted from both of its sides.

    h₀ = norm(W_e[token] + W_p[position] + W_s[segment])            embeddings; W_s has two rows
    a = norm(x + attention(x)),   x ← norm(a + mlp(a))              each layer
    P(masked token) = softmax(norm(gelu(h W + b)) W_eᵀ + b_V)       from that token's position
    P(S₂ follows S₁) = softmax(tanh(h_[CLS] W_c + b_c) W_n + b_n)   class 0 is "it follows"

Source: Devlin et al. 2019, §3; course C, "Learning Objectives" (MLM and NSP); course D, "BERT".
ALBERT (Lan et al. 2020, §3.1) is BERT with two options. `d_embedding` E splits the V × C embedding
into V × E and E × C; `share_layers` uses the weights of one layer n_layers times. ALBERT's third
change, sentence-order prediction in place of NSP, is not here.
Deviations: no dropout (see gpt.py); initial weights are normal, where Google's code cuts the normal
distribution off at two standard deviations.
Not here: masking and sentence pairs (text/masking.py), the loss (training/losses.py).

Shapes: B batch, T time, C = d_model, E = d_embedding, V vocabulary.
"""
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minigpt.models.attention import MultiHeadAttention
from minigpt.models.checks import (
    TokenEmbedding,
    check_fields,
    check_heads,
    check_memory,
    check_rows,
)
from minigpt.text.padding import check_mask

NORM_EPS = 1e-12                        # Google's code; PyTorch's default is 1e-5


@dataclass(frozen=True)
class BERTConfig:
    """The sizes of a BERT and its form.

    GELU is x·Φ(x) in the paper that Devlin et al. cite (Hendrycks and Gimpel 2016): "gelu", as in
    Hugging Face's BERT and in Google's first release. Google's code has had its tanh approximation,
    "gelu_tanh", since February 2019, and so has ALBERT's. The two differ by less than 0.001.
    """

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int | None = None             # None: 4·d_model
    d_embedding: int | None = None      # None: d_model, without a second factor
    share_layers: bool = False
    activation: Literal["gelu", "gelu_tanh"] = "gelu"

    def __post_init__(self):
        check_fields(self)
        check_heads(self.d_model, self.n_heads)

    # The published sizes. Parameters are counted without the two heads, which only pre-training
    # needs.

    @classmethod
    def base(cls) -> "BERTConfig":
        """BERT-base, uncased: 109,482,240 parameters; "110M" in the paper."""
        return cls(30_522, 512, n_layers=12, n_heads=12, d_model=768)

    @classmethod
    def large(cls) -> "BERTConfig":
        """BERT-large, uncased: 335,141,888 parameters; "340M" in the paper."""
        return cls(30_522, 512, n_layers=24, n_heads=16, d_model=1024)

    @classmethod
    def albert_base(cls) -> "BERTConfig":
        """ALBERT-base: 11,683,584 parameters; "12M" in the paper."""
        return cls(30_000, 512, n_layers=12, n_heads=12, d_model=768, d_embedding=128,
                   share_layers=True, activation="gelu_tanh")

    @classmethod
    def albert_large(cls) -> "BERTConfig":
        """ALBERT-large: 17,683,968 parameters; "18M" in the paper."""
        return cls(30_000, 512, n_layers=24, n_heads=16, d_model=1024, d_embedding=128,
                   share_layers=True, activation="gelu_tanh")

    @property
    def width_ff(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def n_weights(self) -> int:
        """How many entries the encoder's matrices and W_e have. The other parameters are few."""
        C, E = self.d_model, self.d_embedding or self.d_model
        n_layers = 1 if self.share_layers else self.n_layers
        embeddings = (self.vocab_size + self.context_length) * E
        return embeddings + n_layers * (4 * C**2 + 2 * C * self.width_ff)


def make_norm(width: int) -> nn.LayerNorm:
    """Layer norm (Ba et al. 2016) with the ε of Google's code."""
    return nn.LayerNorm(width, eps=NORM_EPS)


def make_gelu(config: BERTConfig) -> nn.GELU:
    """x·Φ(x), exactly or by its tanh approximation, as the configuration says."""
    return nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """Attention, then a feed-forward network; each sum with the input is normalised.

    This is the order of Vaswani et al. 2017. GPT-2 normalises before attention instead.
    """

    def __init__(self, config: BERTConfig):
        super().__init__()
        C, d_ff = config.d_model, config.width_ff
        self.attention = MultiHeadAttention(C, config.n_heads)
        self.inner, self.out = nn.Linear(C, d_ff), nn.Linear(d_ff, C)
        self.norm1, self.norm2 = make_norm(C), make_norm(C)
        self.gelu = make_gelu(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `mask` (B, T) is False at padding, which no position sees."""
        keys = None if mask is None else mask[:, None, None]            # (B, 1, 1, S)
        x = self.norm1(x + self.attention(x, mask=keys))
        return self.norm2(x + self.out(self.gelu(self.inner(x))))       # C -> d_ff -> C


class BERT(nn.Module):
    """tokens (B, T) -> logits (B, T, V): logits[:, t] scores which token stands at t.

    `segments` (B, T) is 0 for [CLS] S₁ [SEP] and 1 for S₂ [SEP]; without it all are 0. `mask`
    (B, T) is False at padding; without it there is none. The parts may be called one by one:
    training needs the logits of few positions only, and later tasks need the vectors.

        hidden = model.hidden(tokens, segments, mask)                   (B, T, C)
        model.mlm_logits(hidden[chosen])                                (N, C) -> (N, V)
        model.nsp_logits(hidden)                                        (B, T, C) -> (B, 2)

    >>> with torch.device("meta"):                                      # shapes without memory
    ...     model = BERT(BERTConfig.base())
    >>> sum(p.numel() for p in model.parameters())      # the encoder's 109,482,240 and two heads
    110106428
    """

    def __init__(self, config: BERTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        check_memory(config, config.n_weights)
        C, E = config.d_model, config.d_embedding or config.d_model
        self.token_embedding = TokenEmbedding(config.vocab_size, E)
        self.position_embedding = nn.Embedding(config.context_length, E)
        self.segment_embedding = nn.Embedding(2, E)
        self.embedding_norm = make_norm(E)
        # ALBERT's second factor, E × C.
        self.widen = nn.Linear(E, C) if config.d_embedding else nn.Identity()
        n_blocks = 1 if config.share_layers else config.n_layers
        self.blocks = nn.ModuleList(Block(config) for _ in range(n_blocks))
        self.pooler = nn.Linear(C, C)
        self.mlm_dense, self.mlm_norm = nn.Linear(C, E), make_norm(E)
        self.gelu = make_gelu(config)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))    # b_V; its matrix is W_e
        self.nsp = nn.Linear(C, 2)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws weights from N(0, 0.02²) and sets biases to 0; the gains of norms stay at 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return self.mlm_logits(self.hidden(tokens, segments, mask))

    def hidden(
        self, tokens: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The last layer's vectors: (B, T) -> (B, T, C), each token in its context.

        Padding gets a vector too, which has no meaning.
        """
        x = self.embed(tokens, segments)                                # (B, T, C)
        if mask is not None:
            check_mask(mask, tokens.shape)
            check_rows(mask)
        for i in range(self.config.n_layers):
            x = self.blocks[i % len(self.blocks)](x, mask)              # shared: always blocks[0]
        return x

    def embed(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """h₀: (B, T) -> (B, T, C). It depends on the token, its position and its segment alone."""
        # Each look-up is a one-hot row times a matrix, and the three products are added.
        x = self.token_embedding(tokens)                                # (B, T, E)
        if tokens.size(1) > self.config.context_length:
            raise ValueError(f"{tokens.size(1)} tokens do not fit the context of "
                             f"{self.config.context_length}; shorten the input")
        segments = torch.zeros_like(tokens) if segments is None else segments
        if segments.shape != tokens.shape:
            raise ValueError(f"segments {tuple(segments.shape)} must have the shape of tokens "
                             f"{tuple(tokens.shape)}")
        x = x + self.position_embedding.weight[:tokens.size(1)] + self.segment_embedding(segments)
        return self.widen(self.embedding_norm(x))                       # (B, T, E) -> (B, T, C)

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Masked-language-model logits: (..., C) -> (..., V).

        The last matrix is W_e, whose gradient is then the sum of both uses.
        """
        x = self.mlm_norm(self.gelu(self.mlm_dense(hidden)))            # (..., E)
        return x @ self.token_embedding.weight.T + self.mlm_bias        # (..., V)

    def pool(self, hidden: Tensor) -> Tensor:
        """The pair as one vector, from the vector at [CLS]: (B, T, C) -> (B, C)."""
        return self.pooler(hidden[:, 0]).tanh()

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, 2): class 0 "S₂ follows S₁", class 1 "S₂ is from elsewhere".

        The published weights have this order.
        """
        return self.nsp(self.pool(hidden))                              # (B, C) -> (B, 2)
