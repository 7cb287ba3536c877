"""T5: an encoder reads the source, a decoder writes the target, and every task is text to text.

    encoder    x ← x + attention(norm(x)),  x ← x + W_o relu(W_i norm(x))    no position is hidden
    decoder    the same, causal, and between the two:
               y ← y + attention(norm(y), memory)                      memory: the encoder's output
    scores     q_t·k_s + b[bucket(s − t)]         no 1/√D; the layers of a stack share one b
    P(u)       softmax(norm(y) W_eᵀ / √C)         W_e embeds source and target, and unembeds

The norm is RMS norm (Zhang and Sennrich 2019), before each sub-layer and once after each stack.
Nothing has a bias. 1/√D is left out because W_q starts smaller by as much.

Source: Raffel et al. 2020, §2.1; course D, "T5". `gated` is version 1.1, which came after the paper
(Google's list of released checkpoints): gelu(W_g x) · W_i x in the feed-forward network (Shazeer
2020, GEGLU), and an unembedding matrix of its own, without 1/√C.
Deviation: no dropout (see gpt.py).
Not here: the corruption that it is pre-trained on (text/spans.py).

Shapes: B batch, S source, T target, H heads, D width of one head, C = d_model, V vocabulary.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention
from minigpt.models.checks import TokenEmbedding, check_fields, check_memory, check_rows
from minigpt.models.positions import relative_buckets
from minigpt.text.padding import check_mask

N_BUCKETS = 32
START = 0                           # what the decoder reads before the first token: T5 has <pad>
VOCABULARY = 32_128                 # 32,000 word pieces, 100 sentinels, 28 unused: 251 · 128


@dataclass(frozen=True)
class T5Config:
    """The sizes of a T5. Both stacks have `n_layers`. `d_head` is free: H·D need not be C."""

    vocab_size: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    d_head: int = 64
    gated: bool = False             # version 1.1
    context_length: int = 512       # room in the decoder's cache; relative positions have no limit

    def __post_init__(self):
        check_fields(self)

    # The released sizes: base in Raffel et al. 2020, §3.1.1, the others in §3.7. Their counts are
    # the paper's; with `gated` they are those of version 1.1.

    @classmethod
    def small(cls, gated: bool = False) -> "T5Config":
        """60M parameters (version 1.1: 77M)."""
        if gated:
            return cls(VOCABULARY, 8, 6, 512, 1024, gated=True)
        return cls(VOCABULARY, 6, 8, 512, 2048)

    @classmethod
    def base(cls, gated: bool = False) -> "T5Config":
        """220M parameters (version 1.1: 250M)."""
        if gated:
            return cls(VOCABULARY, 12, 12, 768, 2048, gated=True)
        return cls(VOCABULARY, 12, 12, 768, 3072)

    @classmethod
    def large(cls, gated: bool = False) -> "T5Config":
        """770M parameters (version 1.1: 800M); they count 738M (783M)."""
        if gated:
            return cls(VOCABULARY, 24, 16, 1024, 2816, gated=True)
        return cls(VOCABULARY, 24, 16, 1024, 4096)

    @classmethod
    def xl(cls, gated: bool = False) -> "T5Config":
        """3B. The paper widens heads and feed-forward layers only; version 1.1 widens d_model."""
        if gated:
            return cls(VOCABULARY, 24, 32, 2048, 5120, gated=True)
        return cls(VOCABULARY, 24, 32, 1024, 16_384, d_head=128)

    @classmethod
    def xxl(cls, gated: bool = False) -> "T5Config":
        """11B, in either version."""
        if gated:
            return cls(VOCABULARY, 24, 64, 4096, 10_240, gated=True)
        return cls(VOCABULARY, 24, 128, 1024, 65_536, d_head=128)

    @property
    def n_weights(self) -> int:
        """Entries of all matrices; the gains and the position biases add little to them."""
        C, attention = self.d_model, 4 * self.d_model * self.n_heads * self.d_head
        feed_forward = (3 if self.gated else 2) * C * self.d_ff
        embeddings = (2 if self.gated else 1) * self.vocab_size * C
        return embeddings + self.n_layers * (3 * attention + 2 * feed_forward)


def decoder_inputs(target: Tensor) -> Tensor:
    """The decoder's input for `target`: START, then all tokens but the last. (B, T) -> (B, T).

    >>> decoder_inputs(torch.tensor([[7, 8, 1]])).tolist()
    [[0, 7, 8]]
    """
    return torch.cat([torch.full_like(target[:, :1], START), target[:, :-1]], dim=1)


def make_norm(config: T5Config) -> nn.RMSNorm:
    return nn.RMSNorm(config.d_model, eps=1e-6)


def make_attention(config: T5Config) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.d_model, config.n_heads, bias=False, d_head=config.d_head, scale=1.0)


class FeedForward(nn.Module):
    """A network applied to each position by itself: C -> d_ff -> C.

    `gated` multiplies the inner layer by a gate, gelu(W_g x).
    """

    def __init__(self, config: T5Config):
        super().__init__()
        C, d_ff = config.d_model, config.d_ff
        self.inner = nn.Linear(C, d_ff, bias=False)
        self.gate = nn.Linear(C, d_ff, bias=False) if config.gated else None
        self.out = nn.Linear(d_ff, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)                                           # (B, T, d_ff)
        if self.gate is None:
            inner = F.relu(inner)
        else:
            inner = F.gelu(self.gate(x), approximate="tanh") * inner
        return self.out(inner)                                          # (B, T, C)


class EncoderBlock(nn.Module):
    """Attention over the whole source, then the feed-forward network."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = make_attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        """x (B, S, C), mask (B, 1, 1, S), bias (1, H, S, S) -> (B, S, C)."""
        x = x + self.attention(self.norm1(x), mask=mask, bias=bias)
        return x + self.feed_forward(self.norm2(x))


class DecoderBlock(nn.Module):
    """Attention to the target so far, then to the source, then the feed-forward network."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (make_norm(config) for _ in range(3))
        self.attention = make_attention(config)
        self.cross_attention = make_attention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, y: Tensor, memory: Tensor, mask: Tensor, bias: Tensor,
        target_cache: KVCache | None = None, source_cache: KVCache | None = None,
    ) -> Tensor:
        """y (B, T, C), memory (B, S, C), mask (B, 1, 1, S), bias (1, H, T, T) -> (B, T, C)."""
        y = y + self.attention(self.norm1(y), causal=True, bias=bias, cache=target_cache)
        y = y + self.cross_attention(self.norm2(y), memory, mask=mask, cache=source_cache)
        return y + self.feed_forward(self.norm3(y))


class Stack(nn.Module):
    """Blocks, the position bias that they share, and a last norm.

    In the released weights the shared bias belongs to the first block.
    """

    def __init__(self, config: T5Config, block: type[nn.Module]):
        super().__init__()
        self.relative_embedding = nn.Embedding(N_BUCKETS, config.n_heads)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layers))
        self.final_norm = make_norm(config)
        self.bidirectional = block is EncoderBlock

    def bias(self, n_queries: int, n_keys: int) -> Tensor:
        """b[bucket(s − t)], where the queries are the last T of S positions: (1, H, T, S)."""
        buckets = relative_buckets(n_queries, n_keys, self.bidirectional, N_BUCKETS)    # (T, S)
        per_head = self.relative_embedding(buckets.to(self.relative_embedding.weight.device))
        return per_head.permute(2, 0, 1)[None]                          # (T, S, H) -> (1, H, T, S)


@dataclass
class DecoderState:
    """What generation would otherwise compute again at each step.

    The source as the encoder returned it, and keys and values, one cache per layer.
    """

    memory: Tensor                  # (B, S, C)
    mask: Tensor                    # (B, S), True at source tokens
    target: list[KVCache]           # of the target so far
    source: list[KVCache]           # of the source, computed at the first step

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order and with repeats: beam search needs it."""
        self.memory, self.mask = self.memory[rows], self.mask[rows]
        for cache in self.target + self.source:
            cache.select(rows)


class T5(nn.Module):
    """source (B, S), target_in (B, T) -> logits (B, T, V).

    logits[:, t] scores the token after target_in[:, :t + 1], given the source. `decoder_inputs`
    makes target_in from a target. `source_mask` (B, S) is False at padding; without it there is
    none. `generator` draws the initial weights.
    """

    def __init__(self, config: T5Config, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        check_memory(config, config.n_weights)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, EncoderBlock)
        self.decoder = Stack(config, DecoderBlock)
        if config.gated:
            self.output_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws W_e from N(0, 1) and a matrix from N(0, 1/inputs); gains stay at 1.

        W_q has N(0, 1/(inputs·D)), so that the scores start with variance 1 without 1/√D. The
        position biases, and version 1.1's unembedding matrix, have N(0, 1/C).
        """
        for name, parameter in self.named_parameters():
            if name == "token_embedding.weight":
                nn.init.normal_(parameter, generator=generator)
            elif "embedding" in name:
                nn.init.normal_(parameter, std=self.config.d_model**-0.5, generator=generator)
            elif parameter.dim() == 2:
                shrink = self.config.d_head if "query" in name else 1
                std = (parameter.size(1) * shrink) ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(
        self, source: Tensor, target_in: Tensor, source_mask: Tensor | None = None
    ) -> Tensor:
        memory, mask = self.encode(source, source_mask)
        return self.decode(target_in, memory, mask)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, S) -> the memory (B, S, C) and its mask (B, S).

        ValueError if a row of the mask has no True: the decoder would have nothing to read.
        """
        x = self.token_embedding(source)                                # (B, S, C)
        mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
        check_mask(mask, source.shape)
        check_rows(mask)
        bias = self.encoder.bias(source.size(1), source.size(1))        # (1, H, S, S)
        for block in self.encoder.blocks:
            x = block(x, mask[:, None, None], bias)                     # mask (B, 1, 1, S)
        return self.encoder.final_norm(x), mask

    def decode(
        self, target_in: Tensor, memory: Tensor, mask: Tensor, state: DecoderState | None = None
    ) -> Tensor:
        """(B, T) -> logits (B, T, V). With a state, `target_in` holds the new tokens only."""
        y = self.token_embedding(target_in)                             # (B, T, C)
        n_earlier = state.target[0].length if state else 0
        if state:       # from the second step on, the source's keys and values are in its cache
            memory = memory[:, state.source[0].length:]                 # (B, S, C), then (B, 0, C)
        bias = self.decoder.bias(y.size(1), n_earlier + y.size(1))      # (1, H, T, earlier + T)
        for i, block in enumerate(self.decoder.blocks):
            caches = (state.target[i], state.source[i]) if state else (None, None)
            y = block(y, memory, mask[:, None, None], bias, *caches)
        return self.unembed(self.decoder.final_norm(y))

    def unembed(self, y: Tensor) -> Tensor:
        """norm(y) W_eᵀ / √C: (B, T, C) -> logits (B, T, V).

        W_e starts with variance 1, so its rows have length √C; version 1.1's own matrix starts with
        rows of length 1.
        """
        if self.config.gated:
            return y @ self.output_embedding.weight.T
        return y * self.config.d_model**-0.5 @ self.token_embedding.weight.T

    def decoder_for(self, source: Tensor, source_mask: Tensor | None = None) -> "Decoder":
        """A language model of the targets of these sources, for `generate` and `beam_search`.

        Its first token is START.
        """
        return Decoder(self, *self.encode(source, source_mask))


class Decoder:
    """P(target | these sources) as a language model: tokens (B, T) -> logits (B, T, V).

    Row b reads source b.
    """

    def __init__(self, model: T5, memory: Tensor, mask: Tensor):
        self.model, self.memory, self.mask = model, memory, mask
        self.context_length = model.config.context_length

    def new_cache(self) -> list[DecoderState]:
        """An empty cache: one state, which holds a cache per layer."""
        n_layers, n_source = self.model.config.n_layers, self.memory.size(1)
        target = [KVCache(self.context_length) for _ in range(n_layers)]
        source = [KVCache(n_source) for _ in range(n_layers)]
        return [DecoderState(self.memory, self.mask, target, source)]

    def __call__(self, tokens: Tensor, cache: list[DecoderState] | None = None) -> Tensor:
        if cache is None:
            return self.model.decode(tokens, self.memory, self.mask)
        state = cache[0]
        return self.model.decode(tokens, state.memory, state.mask, state)
