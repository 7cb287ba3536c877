"""Long sequences: attention that does not compare everything with everything, and layers that keep nothing for the way back.

    full          A(Q, K, V)                            T·T scores a head, half of them hidden from the future
    local         A in blocks of b tokens               T·b
    compressed    A(Q, conv K, conv V)                  T·⌈T/3⌉: a convolution of kernel 3 and stride 3 makes 3 keys one
    LSH           A over those with the same hash       rounds·T·2m: sorted by hash, cut into chunks of m
    reversible    y₁ = x₁ + F(x₂),  y₂ = x₂ + G(y₁)     x₂ = y₂ − G(y₁),  x₁ = y₁ − F(x₂): activations come back from outputs

Sources: course A, memory-compressed attention; Liu et al. 2018 ("Generating Wikipedia by summarizing long sequences"), §4.2.4, for local
and memory-compressed attention and their alternation LMLML; course B, "Reformer"; Kitaev, Kaiser and Levskaya 2020 (Reformer),
§2 (LSH) and §3 (reversible layers, after Gomez et al. 2017). ALBERT's sharing is two options of BERT (bert.py).

Compressed and causal: slot j is the convolution of inputs 3j − 2, 3j − 1, 3j, where inputs before the first are zeros; a query at t
sees slot j only if 3j ≤ t, so only if all three are in its past or it itself. Every query then has slot 0, the first input alone,
and there are ⌈S/3⌉ slots. Up to two inputs, t's own among them, are in no visible slot: the residual stream carries t itself, and a
local layer sees both. Deviation: the paper does not say how it keeps the order; the authors' tensor2tensor has slots 3j … 3j + 2, seen by
t > 3j + 2, drops an unfinished last one, and puts the first input, uncompressed, in front for those who would see nothing. It also
convolves the layer's input and projects to K and V after; here, as in the paper, K and V are projected, then convolved. The
convolution mixes all heads' dimensions and starts as the mean of its three inputs.

Deviations from Reformer: the random rotations are drawn once and kept, not at each step, so that a layer is a function and can be run
again; all heads share them; the first chunk looks back at nothing where theirs looks at the last (which no mask would let through);
the two reversible streams end in their mean, where theirs are concatenated.
What LSH averages is causal. *Whom* a token meets is not quite: where chunks are cut depends on all tokens, later ones too, in Reformer as here.
Not here: Liu et al.'s mixture of experts; Reformer's feed-forward in chunks, and its two-part hash for very many buckets; caches.
The fused kernel of `attend` came later (Dao et al. 2022): it too avoids T·T memory, though not T·T time. Local and LSH attention avoid both.

Shapes: B batch, H heads, T tokens, S keys, D width of one head, C = d_model, R rounds, N chunks, m tokens in a chunk, b in a block.
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.attention import KVCache, MultiHeadAttention, attend, causal_mask
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.positions import rotate
from minigpt.models.reversible import Reversible

STRIDE = 3                              # kernel and stride of the compression (Liu et al. 2018, §4.2.4)
ALONE = -1e5                            # a token's score for itself under LSH: it counts only where there is no other (Reformer, §2)


def local_attention(q: Tensor, k: Tensor, v: Tensor, block: int, fused: bool = True) -> Tensor:
    """Causal attention within blocks of `block` tokens and none between them (Liu et al. 2018, §4.2.4): (B, H, T, D) three times -> (B, H, T, D)."""
    T, block = q.size(2), min(block, q.size(2))
    # Padding fills the last block. It comes after every token, so causality hides it.
    q, k, v = (F.pad(x, (0, 0, 0, -T % block)).unflatten(2, (-1, block)) for x in (q, k, v))        # (B, H, T/b, b, D)
    return attend(q, k, v, causal=True, fused=fused).flatten(2, 3)[:, :, :T]                        # (B, H, T, D)


def compressed_mask(n_queries: int) -> Tensor:
    """(T, ⌈T/3⌉) bool: query t may look at slot j if 3j ≤ t, which is when the last of its inputs is not in t's future.

    >>> compressed_mask(5).int().tolist()
    [[1, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    """
    return causal_mask(n_queries)[:, ::STRIDE]


def compressed_attention(q: Tensor, k: Tensor, v: Tensor, fused: bool = True) -> Tensor:
    """Causal attention to compressed keys and values: (B, H, T, D), twice (B, H, ⌈T/3⌉, D) -> (B, H, T, D)."""
    return attend(q, k, v, compressed_mask(q.size(2)).to(q.device), fused=fused)


def shared_attention(q: Tensor, v: Tensor, fused: bool = True) -> Tensor:
    """Full causal attention with queries as keys, k = q/‖q‖: (B, H, T, D) twice -> (B, H, T, D). What LSH attention approximates.

    A query is always most like itself, so looking at itself is forbidden unless there is no other (Reformer, §2).
    Scores are ‖q‖ cos θ: lengths are already divided out once, so there is no 1/√D.
    """
    T = q.size(2)
    others = causal_mask(T).to(q.device).tril(-1)                       # (T, T) the strict past
    alone = torch.eye(T, dtype=torch.bool, device=q.device) & ~others.any(-1, keepdim=True)
    return attend(q, F.normalize(q, dim=-1), v, others | alone, scale=1.0, fused=fused)


def random_rotations(n_rounds: int, width: int, n_buckets: int, generator: torch.Generator | None = None) -> Tensor:
    """(R, D, n_buckets/2) normal numbers: n_buckets/2 random directions a round. ValueError if n_buckets is odd."""
    if n_buckets % 2 or n_buckets < 2 or n_rounds < 1:
        raise ValueError("buckets come in pairs, a direction and its opposite, and hash in rounds: n_buckets must be 2, 4, 6, …, "
                         f"and n_rounds 1 or more, not {n_buckets} and {n_rounds}")
    return torch.randn(n_rounds, width, n_buckets // 2, generator=generator)


def lsh_buckets(x: Tensor, rotations: Tensor) -> Tensor:
    """h(x) = argmax [xR; −xR]: which of n_buckets directions is nearest, in each round. (B, H, T, D) -> (B, H, R, T) (Andoni et al. 2015).

    Vectors at a small angle likely share a bucket. With n_buckets = 2, one hyperplane, they do with probability exactly 1 − θ/π.
    """
    projected = x[:, :, None] @ rotations                               # (B, H, 1, T, D) @ (R, D, n/2) -> (B, H, R, T, n/2)
    return torch.cat([projected, -projected], dim=-1).argmax(-1)        # (B, H, R, T, n) -> (B, H, R, T)


def lsh_attention(q: Tensor, v: Tensor, buckets: Tensor, chunk: int) -> Tensor:
    """Shared-QK attention within buckets: q and v (B, H, T, D), buckets (B, H, R, T) -> (B, H, T, D) (Reformer, §2 and appendix A).

    Each round sorts tokens by bucket, in a bucket by position, and cuts the order into chunks. A token looks at those of its own
    bucket, in its chunk or the one before, that are in its past. A key met in N rounds gets score − log N in each, and
    a round weighs e^z / Σ e^z with z its log-sum-exp: together, one softmax over all keys met, each counted once.
    """
    T, R = buckets.size(-1), buckets.size(2)
    padding = -T % chunk
    q, v = F.pad(q, (0, 0, 0, padding)), F.pad(v, (0, 0, 0, padding))   # (B, H, T + padding, D), T from here on
    buckets = F.pad(buckets, (0, padding), value=int(buckets.max()))    # later than every token: sorted last, hidden by causality
    order = buckets.sort(dim=-1, stable=True).indices                   # (B, H, R, T) positions, sorted
    rank = order.argsort(dim=-1)                                        # (B, H, R, T) where each position went
    nowhere = q.size(2)                                                 # the position of what the first chunk sees behind it: the future

    def with_previous(x: Tensor, fill: float = 0) -> Tensor:
        """(B, H, R, N, m, …) -> (B, H, R, N, 2m, …): each chunk with the one before it."""
        return torch.cat([torch.cat([torch.full_like(x[:, :, :, :1], fill), x[:, :, :, :-1]], dim=3), x], dim=4)

    def chunks(x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, R, N, m, D), each round in its own order."""
        index = order.flatten(2)[..., None].expand(-1, -1, -1, x.size(-1))      # (B, H, R·T, D)
        return x.gather(2, index).unflatten(2, (R, -1, chunk))

    asking = order.unflatten(-1, (-1, chunk))                           # (B, H, R, N, m) positions
    asked = with_previous(asking, nowhere)                              # (B, H, R, N, 2m)
    asking, asked = asking[..., None], asked[..., None, :]              # (…, m, 1), (…, 1, 2m): pairs are (…, m, 2m)
    # In each round a token has a number, made of its bucket and its chunk. Two meet if the numbers are equal, or the query's is next.
    numbers = buckets * (nowhere + 1) + rank // chunk                   # (B, H, R, T)

    def numbers_at(positions: Tensor, r: int) -> Tensor:
        return numbers[:, :, r].gather(-1, positions.clamp(max=nowhere - 1).flatten(2)).view_as(positions)

    times = torch.zeros(torch.broadcast_shapes(asking.shape, asked.shape), dtype=torch.int32, device=q.device)     # (B, H, R, N, m, 2m)
    here = torch.zeros_like(times, dtype=torch.bool)                    # who meets in a row's own round
    for r in range(R):
        query, key = numbers_at(asking, r), numbers_at(asked, r)
        meet = (query == key) | (query == key + 1)
        times += meet                                                   # N of the docstring
        here[:, :, r] = meet[:, :, r]
    here &= asked <= asking                                             # the past
    alone = max(ALONE, torch.finfo(q.dtype).min / 2)                    # −1e5 is more than float16 holds
    scores = chunks(q) @ with_previous(chunks(F.normalize(q, dim=-1))).mT - times.clamp(min=1).to(q.dtype).log()
    scores = scores.masked_fill(~here, float("-inf")).masked_fill(asking == asked, alone)           # (B, H, R, N, m, 2m)
    z = scores.logsumexp(-1, keepdim=True)                              # (B, H, R, N, m, 1)
    y = (scores - z).exp() @ with_previous(chunks(v))                   # (B, H, R, N, m, D)
    y = y.flatten(3, 4).gather(3, rank[..., None].expand(-1, -1, -1, -1, v.size(-1)))               # (B, H, R, T, D) in reading order
    z = z.flatten(3).gather(3, rank)                                    # (B, H, R, T)
    return (z.softmax(dim=2)[..., None] * y).sum(2)[:, :, :T]           # (B, H, R, T, D) -> (B, H, T, D), padding gone


class LongAttention(MultiHeadAttention):
    """What the three below share: they stand where GPT's block has its attention, and are always causal."""

    def merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, H, T, D) -> (B, T, C)

    def forward(
        self, x: Tensor, causal: bool = True, rotary: tuple[Tensor, Tensor] | None = None, cache: KVCache | None = None, mask: Tensor | None = None,
    ) -> Tensor:
        if cache is not None or mask is not None or not causal:
            raise ValueError("long-sequence attention here is causal, keeps no cache and knows no padding on the left: "
                             "call it with causal=True, cache=None and mask=None")
        return self.merge(self.looked_up(x, rotary))


class LocalAttention(LongAttention):
    """L: (B, T, C) -> (B, T, C), in blocks."""

    def __init__(self, d_model: int, n_heads: int, block: int, bias: bool = True, qk_norm: bool = False):
        super().__init__(d_model, n_heads, bias, qk_norm=qk_norm)
        self.block = block

    def looked_up(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = (self.split_heads(f(x)) for f in (self.query, self.key, self.value))              # (B, H, T, D)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return local_attention(q, k, v, self.block)


class CompressedAttention(LongAttention):
    """M: (B, T, C) -> (B, T, C), with three keys made one, and three values."""

    def __init__(self, d_model: int, n_heads: int, bias: bool = True, qk_norm: bool = False):
        super().__init__(d_model, n_heads, bias, qk_norm=qk_norm)
        self.compress_key, self.compress_value = (nn.Conv1d(d_model, d_model, STRIDE, STRIDE, bias=False) for _ in range(2))
        for convolution in (self.compress_key, self.compress_value):    # the mean of three; training finds what is worth keeping
            nn.init.zeros_(convolution.weight)
            convolution.weight.data += torch.eye(d_model)[..., None] / STRIDE

    def compress(self, x: Tensor, convolution: nn.Conv1d) -> Tensor:
        """(B, S, C) -> (B, ⌈S/3⌉, C): two zeros in front, so that slot j ends with input 3j."""
        return convolution(F.pad(x.mT, (STRIDE - 1, 0))).mT

    def looked_up(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        q = self.query_norm(self.split_heads(self.query(x)))            # (B, H, T, D)
        k = self.key_norm(self.split_heads(self.compress(self.key(x), self.compress_key)))          # (B, H, ⌈T/3⌉, D)
        v = self.split_heads(self.compress(self.value(x), self.compress_value))
        if rotary is not None:                                          # a slot stands where its last input stood
            q, k = rotate(q, *rotary), rotate(k, *(table[::STRIDE] for table in rotary))
        return compressed_attention(q, k, v)


class LSHAttention(LongAttention):
    """H: (B, T, C) -> (B, T, C), queries as keys, over those whose hash agrees. `full` leaves the hash out, to see what it costs."""

    def __init__(self, d_model: int, n_heads: int, n_buckets: int, n_rounds: int, chunk: int, bias: bool = True,
                 qk_norm: bool = False, generator: torch.Generator | None = None):
        super().__init__(d_model, n_heads, bias, qk_norm=qk_norm)
        del self.key, self.key_norm                                     # the query is the key
        self.chunk, self.full = chunk, False
        self.register_buffer("rotations", random_rotations(n_rounds, d_model // n_heads, n_buckets, generator))

    def looked_up(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        q = self.query_norm(self.split_heads(self.query(x)))            # (B, H, T, D)
        v = self.split_heads(self.value(x))
        q = q if rotary is None else rotate(q, *rotary)
        return shared_attention(q, v) if self.full else lsh_attention(q, v, lsh_buckets(q.detach(), self.rotations), self.chunk)


def long_gpt(
    config: GPTConfig, layers: str, block: int = 256, n_buckets: int = 32, n_rounds: int = 8, reversible: bool = False,
    generator: torch.Generator | None = None,
) -> GPT:
    """A GPT with a letter for each layer's attention: F full, L local, M memory-compressed, H hashed. Liu et al. have "LMLML".

    `block` is L's; `n_buckets` and `n_rounds` are H's, whose chunks hold 2·context_length/n_buckets tokens (Reformer, §2).
    ValueError for another letter, or another number of them. It has no cache: give `generate` use_cache=False.
    """
    if len(layers) != config.n_layers or set(layers) - set("FLMH"):
        raise ValueError(f"layers is one letter of F, L, M, H for each of {config.n_layers} layers, not {layers!r}")
    if block < 1:
        raise ValueError(f"a block holds at least 1 token, not {block}")
    model = GPT(config)
    common = {"bias": config.bias, "qk_norm": config.qk_norm}
    for letter, gpt_block in zip(layers, model.blocks):
        if letter == "L":
            gpt_block.attention = LocalAttention(config.d_model, config.n_heads, block, **common)
        elif letter == "M":
            gpt_block.attention = CompressedAttention(config.d_model, config.n_heads, **common)
        elif letter == "H":
            chunk = math.ceil(2 * config.context_length / max(1, n_buckets))        # random_rotations refuses bad numbers
            gpt_block.attention = LSHAttention(config.d_model, config.n_heads, n_buckets, n_rounds, chunk, generator=generator, **common)
    model.initialise(generator)
    if reversible:
        model.blocks = nn.ModuleList([Reversible(model.blocks)])
    return model


def score_entries(layers: str, n: int, block: int = 256) -> int:
    """Entries of the score matrices of one head over n tokens, all layers summed; what is masked counts too, since it is computed.

    >>> score_entries("F", 300), score_entries("M", 300), score_entries("L", 300, block=100), score_entries("LM", 300, block=100)
    (90000, 30000, 30000, 60000)
    """
    return sum({"F": n, "L": min(block, n), "M": math.ceil(n / STRIDE)}[letter] * n for letter in layers)
