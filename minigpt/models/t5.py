"""T5: an encoder reads the whole input, a decoder writes the answer, and every task is text to text.

    encoder    x ← x + attention(norm(x)),  x ← x + W_o relu(W_i norm(x))                    both ways, over the source
    decoder    the same, causal, and between the two:  y ← y + attention(norm(y), memory)    memory = the encoder's output
    scores     q_t·k_s + b[bucket(s − t)]                                                    no 1/√D; b is shared by a stack's layers
    P(u)       softmax(norm(y) W_eᵀ / √C)                                                    W_e embeds source and target, and scores

Source: courses C and D, "T5"; Raffel et al. 2020, §2.1; sizes §2.3 and §3.7. Nothing has a bias. norm is RMSNorm (Zhang and
Sennrich 2019), in front of each sub-layer and once after each stack. 1/√D is left out because W_q starts smaller by as much.
`gated` is version 1.1: gelu(W_g x) · W_i x in the feed-forward (Shazeer 2020), a W for the scores of its own, unscaled.
Deviation: no dropout. Not here: the corruption it is pre-trained on (`text/corruption.py`).

Shapes: B batch, S source, T target, H heads, D width of one head, C = d_model, V vocabulary.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention
from minigpt.models.positions import relative_buckets

N_BUCKETS = 32
START = 0                                   # what the decoder reads before the first token: T5 uses <pad>


@dataclass(frozen=True)
class T5Config:
    """What fixes a T5's shape. Both stacks have `n_layers`. `d_head` is free: 11B has 128 heads of 128 over d_model 1024."""

    vocab_size: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    d_head: int = 64
    gated: bool = False             # version 1.1
    context_length: int = 512       # room in the decoder's cache; relative positions themselves have no end

    def __post_init__(self):
        for name in ("vocab_size", "n_layers", "n_heads", "d_model", "d_ff", "d_head", "context_length"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")

    # The released sizes (Raffel et al. 2020, §3.7), and with `gated` those of version 1.1. 32,000 word pieces, 100 sentinels,
    # and 28 rows that nothing uses, to a multiple of 128.

    @classmethod
    def small(cls, gated: bool = False) -> "T5Config":
        """60M parameters (version 1.1: 77M)."""
        return cls(32_128, 8, 6, 512, 1024, gated=True) if gated else cls(32_128, 6, 8, 512, 2048)

    @classmethod
    def base(cls, gated: bool = False) -> "T5Config":
        """220M parameters (version 1.1: 250M)."""
        return cls(32_128, 12, 12, 768, 2048, gated=True) if gated else cls(32_128, 12, 12, 768, 3072)

    @classmethod
    def large(cls, gated: bool = False) -> "T5Config":
        """770M parameters (version 1.1: 780M)."""
        return cls(32_128, 24, 16, 1024, 2816, gated=True) if gated else cls(32_128, 24, 16, 1024, 4096)

    @classmethod
    def xl(cls, gated: bool = False) -> "T5Config":
        """3B: the paper widens heads and feed-forward only; version 1.1 widens d_model."""
        return cls(32_128, 24, 32, 2048, 5120, gated=True) if gated else cls(32_128, 24, 32, 1024, 16_384, d_head=128)

    @classmethod
    def xxl(cls, gated: bool = False) -> "T5Config":
        """11B, in either version."""
        return cls(32_128, 24, 64, 4096, 10_240, gated=True) if gated else cls(32_128, 24, 128, 1024, 65_536, d_head=128)


def decoder_inputs(target: Tensor) -> Tensor:
    """What the decoder reads while it is asked for `target`: START, then all but the last token. (B, T) -> (B, T).

    >>> decoder_inputs(torch.tensor([[7, 8, 1]])).tolist()
    [[0, 7, 8]]
    """
    return torch.cat([torch.full_like(target[:, :1], START), target[:, :-1]], dim=1)


def norm(config: T5Config) -> nn.RMSNorm:
    return nn.RMSNorm(config.d_model, eps=1e-6)


def attention(config: T5Config) -> MultiHeadAttention:
    return MultiHeadAttention(config.d_model, config.n_heads, bias=False, d_head=config.d_head, scale=1.0)


class FeedForward(nn.Module):
    """Two layers applied to each position alone: C -> d_ff -> C. `gated`: one half of the first decides how much of the other passes."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False) if config.gated else None
        self.out = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)                                           # (B, T, d_ff)
        inner = F.relu(inner) if self.gate is None else F.gelu(self.gate(x), approximate="tanh") * inner
        return self.out(inner)                                          # (B, T, C)


class EncoderBlock(nn.Module):
    """Every position looks at every other, then thinks."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask, bias=bias)
        return x + self.feed_forward(self.norm2(x))


class DecoderBlock(nn.Module):
    """Every position looks back at the answer so far, then at the source, then thinks."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norm(config), norm(config), norm(config)
        self.attention = attention(config)
        self.cross_attention = attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor, bias: Tensor, past: KVCache | None = None, read: KVCache | None = None) -> Tensor:
        y = y + self.attention(self.norm1(y), causal=True, bias=bias, cache=past)
        y = y + self.cross_attention(self.norm2(y), memory, mask=mask, cache=read)
        return y + self.feed_forward(self.norm3(y))


class Stack(nn.Module):
    """Blocks, the position bias that they share, and a last norm. The paper's shared bias is the first block's in released weights."""

    def __init__(self, config: T5Config, block: type[nn.Module]):
        super().__init__()
        self.relative_embedding = nn.Embedding(N_BUCKETS, config.n_heads)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layers))
        self.final_norm = norm(config)
        self.bidirectional = block is EncoderBlock

    def bias(self, n_queries: int, n_keys: int) -> Tensor:
        """b[bucket(s − t)] for the last T of S positions: (1, H, T, S)."""
        buckets = relative_buckets(n_queries, n_keys, self.bidirectional, N_BUCKETS).to(self.relative_embedding.weight.device)
        return self.relative_embedding(buckets).permute(2, 0, 1)[None]  # (T, S, H) -> (1, H, T, S)


@dataclass
class DecoderState:
    """What writing needs and each step would compute again: the source as the encoder left it, and keys and values, one entry a layer."""

    memory: Tensor                  # (B, S, C)
    mask: Tensor                    # (B, S) True at source tokens
    past: list[KVCache]             # of the answer so far
    read: list[KVCache]             # of the source, computed at the first step

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed: what beam search does to its survivors."""
        self.memory, self.mask = self.memory[rows], self.mask[rows]
        for cache in self.past + self.read:
            cache.select(rows)


class T5(nn.Module):
    """source (B, S), target_in (B, T) -> logits (B, T, V): logits[:, t] scores the token after target_in[:, :t + 1], given the source.

    `source_mask` (B, S) is True at tokens and False at padding; without it every position counts. `decoder_inputs` makes
    target_in of a target. `generator` fixes the initial weights.
    """

    def __init__(self, config: T5Config, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, EncoderBlock)
        self.decoder = Stack(config, DecoderBlock)
        self.output_embedding = nn.Embedding(config.vocab_size, config.d_model) if config.gated else None
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Embeddings N(0, 1); matrices N(0, 1/inputs), W_q smaller by 1/√D, so that unscaled scores start with variance 1."""
        for name, parameter in self.named_parameters():
            if name == "token_embedding.weight":
                nn.init.normal_(parameter, generator=generator)
            elif "embedding" in name:                                   # the position biases; in version 1.1 the scores' own matrix
                nn.init.normal_(parameter, std=self.config.d_model**-0.5, generator=generator)
            elif parameter.dim() == 2:
                shrink = self.config.d_head if "query" in name else 1
                nn.init.normal_(parameter, std=(parameter.size(1) * shrink) ** -0.5, generator=generator)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, S) -> the memory (B, S, C) and its mask (B, S). ValueError if a row has nothing to read."""
        mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
        if mask.dtype != torch.bool or mask.shape != source.shape or not mask.any(dim=1).all():
            raise ValueError(f"source_mask must be bool, of the source's shape {tuple(source.shape)} and True somewhere in each row; "
                             f"it is {mask.dtype} {tuple(mask.shape)}")
        x = self.token_embedding(source)                                # (B, S, C)
        bias = self.encoder.bias(source.size(1), source.size(1))        # (1, H, S, S)
        for block in self.encoder.blocks:
            x = block(x, mask[:, None, None], bias)                     # mask (B, 1, 1, S): hidden from every head and query
        return self.encoder.final_norm(x), mask

    def decode(self, target_in: Tensor, memory: Tensor, mask: Tensor, state: DecoderState | None = None) -> Tensor:
        """(B, T) -> logits (B, T, V). With a state, `target_in` holds only what comes after the tokens that it has seen."""
        T = target_in.size(1)
        S = T + (state.past[0].length if state else 0)
        if state:
            memory = memory[:, state.read[0].length:]                   # the source's keys and values enter the cache once, then nothing is new
        y = self.token_embedding(target_in)                             # (B, T, C)
        bias = self.decoder.bias(T, S)                                  # (1, H, T, S)
        for i, block in enumerate(self.decoder.blocks):
            y = block(y, memory, mask[:, None, None], bias, *((state.past[i], state.read[i]) if state else ()))
        return self.unembed(self.decoder.final_norm(y))

    def unembed(self, y: Tensor) -> Tensor:
        """(B, T, C) -> logits (B, T, V). Rows of W_e have length √C, so it is y that is scaled; version 1.1 has a matrix that starts small."""
        if self.output_embedding is not None:
            return y @ self.output_embedding.weight.T
        return y * self.config.d_model**-0.5 @ self.token_embedding.weight.T

    def forward(self, source: Tensor, target_in: Tensor, source_mask: Tensor | None = None) -> Tensor:
        return self.decode(target_in, *self.encode(source, source_mask))

    def decoder_for(self, source: Tensor, source_mask: Tensor | None = None) -> "Decoder":
        """A language model of the answers to these sources, for `generate` and `beam_search`. Its first token is START."""
        return Decoder(self, *self.encode(source, source_mask))


class Decoder:
    """P(answer | these sources) as a language model: tokens (B, T) -> logits (B, T, V), each row for its own source."""

    def __init__(self, model: T5, memory: Tensor, mask: Tensor):
        self.model, self.memory, self.mask = model, memory, mask
        self.context_length = model.config.context_length

    def new_cache(self) -> list[DecoderState]:
        layers, room = range(self.model.config.n_layers), self.memory.size(1)
        return [DecoderState(self.memory, self.mask, [KVCache(self.context_length) for _ in layers], [KVCache(room) for _ in layers])]

    def __call__(self, tokens: Tensor, cache: list[DecoderState] | None = None) -> Tensor:
        if cache is None:
            return self.model.decode(tokens, self.memory, self.mask)
        return self.model.decode(tokens, cache[0].memory, cache[0].mask, cache[0])
