"""Long sequences: attention that computes fewer scores than one for each pair of tokens.

    full          A(Q, K, V)                    T·T scores per head, half of them masked
    local         A in blocks of b tokens       T·b
    compressed    A(Q, conv K, conv V)          T·⌈T/3⌉: a convolution makes one key of three
    LSH           A over keys with one hash     R·T·2m: R rounds, chunks of m tokens (lsh.py)

Compressed attention is causal. The convolution has kernel 3 and stride 3, and slot j holds inputs
3j − 2, 3j − 1 and 3j; the inputs before the first are zeros. Query t may look at slot j if 3j ≤ t,
so that none of the slot's inputs is later than t. The newest inputs up to t, two at most, are in no
slot that query t may look at; a local layer can read them.

Source: course A, "Transformer decoder"; Liu et al. 2018, §4.2.4 (local and memory-compressed
attention, in alternating layers LMLML); course B, "Reformer", for LSH.
Deviations: the paper does not say how the order of time is kept. In the authors' code
(tensor2tensor), slot j holds inputs 3j to 3j + 2, and the first input has a slot of its own. The
convolution mixes the dimensions of all heads, and starts as the mean of three inputs.
Not here: Liu et al.'s mixture of experts, caches for generation.

Shapes: B batch, H heads, T tokens, S keys, D width of one head, C = d_model, b tokens in a block.
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention, attend, causal_mask
from minigpt.models.checks import check_sizes
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.lsh import lsh_attention, lsh_buckets, random_rotations, shared_attention
from minigpt.models.positions import rotate
from minigpt.models.reversible import Reversible

STRIDE = 3                              # kernel and stride of the compression (Liu et al., §4.2.4)

Rotary = tuple[Tensor, Tensor]          # cos and sin of the positions, (T, D/2) each


def local_attention(q: Tensor, k: Tensor, v: Tensor, block: int, fused: bool = True) -> Tensor:
    """Causal attention within blocks of b tokens: (B, H, T, D) three times -> (B, H, T, D)."""
    T = q.size(2)
    check_sizes(block=block, n_tokens=T)
    block = min(block, T)
    # The padding fills the last block. It comes after every token, so causality hides it.
    q, k, v = (F.pad(x, (0, 0, 0, -T % block)).unflatten(2, (-1, block)) for x in (q, k, v))
    y = attend(q, k, v, causal=True, fused=fused)                       # (B, H, ⌈T/b⌉, b, D)
    return y.flatten(2, 3)[:, :, :T]                                    # (B, H, T, D)


def compressed_attention(q: Tensor, k: Tensor, v: Tensor, fused: bool = True) -> Tensor:
    """Causal attention to slots: (B, H, T, D), (B, H, ⌈T/3⌉, D) twice -> (B, H, T, D)."""
    mask = causal_mask(q.size(2))[:, ::STRIDE]                          # (T, ⌈T/3⌉): 3j ≤ t
    return attend(q, k, v, mask.to(q.device), fused=fused)


class LongAttention(MultiHeadAttention):
    """The part that the layers below share. Their `options` are MultiHeadAttention's."""

    def forward(self, x: Tensor, causal: bool = True, rotary: Rotary | None = None,
                cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        if cache is not None or mask is not None or not causal:
            raise ValueError("this layer is causal, keeps no cache and knows no padding: call it "
                             "with causal=True, cache=None and mask=None")
        q = self.query_norm(self.split_heads(self.query(x)))            # (B, H, T, D)
        q = q if rotary is None else rotate(q, *rotary)
        y = self.attend_heads(q, x, rotary)                             # (B, H, T, D)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, C)


class LocalAttention(LongAttention):
    """Letter L: attention within blocks."""

    def __init__(self, d_model: int, n_heads: int, block: int, **options):
        check_sizes(block=block)
        super().__init__(d_model, n_heads, **options)
        self.block = block

    def attend_heads(self, q: Tensor, x: Tensor, rotary: Rotary | None) -> Tensor:
        k = self.key_norm(self.split_heads(self.key(x)))                # (B, H, T, D)
        k = k if rotary is None else rotate(k, *rotary)
        return local_attention(q, k, self.split_heads(self.value(x)), self.block)


class CompressedAttention(LongAttention):
    """Letter M: attention to one key and one value for each three inputs."""

    def __init__(self, d_model: int, n_heads: int, **options):
        super().__init__(d_model, n_heads, **options)
        self.compress_key = nn.Conv1d(d_model, d_model, STRIDE, STRIDE, bias=False)
        self.compress_value = nn.Conv1d(d_model, d_model, STRIDE, STRIDE, bias=False)
        for convolution in (self.compress_key, self.compress_value):    # the mean of three inputs
            nn.init.zeros_(convolution.weight)
            convolution.weight.data += torch.eye(d_model)[..., None] / STRIDE

    def compress(self, x: Tensor, convolution: nn.Conv1d) -> Tensor:
        """(B, S, C) -> (B, ⌈S/3⌉, C). The two zeros in front make slot j end with input 3j."""
        return convolution(F.pad(x.mT, (STRIDE - 1, 0))).mT

    def attend_heads(self, q: Tensor, x: Tensor, rotary: Rotary | None) -> Tensor:
        k = self.split_heads(self.compress(self.key(x), self.compress_key))     # (B, H, ⌈T/3⌉, D)
        v = self.split_heads(self.compress(self.value(x), self.compress_value))
        k = self.key_norm(k)
        if rotary is not None:
            k = rotate(k, *(table[::STRIDE] for table in rotary))       # the position of input 3j
        return compressed_attention(q, k, v)


class LSHAttention(LongAttention):
    """Letter H: attention to the keys with the same hash, where the queries are the keys.

    With `full` set to True it attends to all keys, for comparison.
    """

    def __init__(self, d_model: int, n_heads: int, n_buckets: int, n_rounds: int, chunk: int,
                 generator: torch.Generator | None = None, **options):
        super().__init__(d_model, n_heads, **options)
        del self.key, self.key_norm                                     # the query is the key
        self.chunk, self.full = chunk, False
        rotations = random_rotations(n_rounds, d_model // n_heads, n_buckets, generator)
        self.register_buffer("rotations", rotations)                    # (R, D, n_buckets/2)

    def attend_heads(self, q: Tensor, x: Tensor, rotary: Rotary | None) -> Tensor:
        v = self.split_heads(self.value(x))                             # (B, H, T, D)
        if self.full:
            return shared_attention(q, v)
        return lsh_attention(q, v, lsh_buckets(q.detach(), self.rotations), self.chunk)


def make_long_gpt(config: GPTConfig, layers: str, block: int = 256, n_buckets: int = 32,
                  n_rounds: int = 8, reversible: bool = False,
                  generator: torch.Generator | None = None) -> GPT:
    """A GPT with one letter in `layers` for the attention of each layer.

    F is full, L local (with `block`), M memory-compressed and H hashed attention, whose chunks hold
    2·context_length/n_buckets tokens (Reformer, §2). Give `generate` use_cache=False.
    """
    if len(layers) != config.n_layers or set(layers) - set("FLMH"):
        raise ValueError(f"layers is one letter of F, L, M, H for each of {config.n_layers} "
                         f"layers, not {layers!r}")
    model, sizes = GPT(config), (config.d_model, config.n_heads)
    options = {"bias": config.bias, "qk_norm": config.qk_norm}
    for letter, gpt_block in zip(layers, model.blocks):
        if letter == "L":
            gpt_block.attention = LocalAttention(*sizes, block, **options)
        elif letter == "M":
            gpt_block.attention = CompressedAttention(*sizes, **options)
        elif letter == "H":
            chunk = math.ceil(2 * config.context_length / max(1, n_buckets))    # 0 is refused
            gpt_block.attention = LSHAttention(*sizes, n_buckets, n_rounds, chunk,
                                               generator=generator, **options)
    model.initialise(generator)
    if reversible:
        model.blocks = nn.ModuleList([Reversible(model.blocks)])
    return model


def score_entries(layers: str, n: int, block: int = 256) -> int:
    """How many scores, masked or not, one head computes over n tokens in `layers` of F, L and M."""
    keys = {"F": n, "L": min(block, n), "M": math.ceil(n / STRIDE)}
    return sum(keys[letter] * n for letter in layers)
