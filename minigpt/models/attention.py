"""Attention: scaled dot-product, multi-head and additive.

    A(q, K, V) = softmax(score(q, K)) V

    score(q, kᵢ) = q·kᵢ / √D                scaled dot product, in transformers
    score(s, hᵢ) = vᵀ tanh(W[s; hᵢ])        additive, in recurrent networks

Each position (a query) receives a weighted average of the values of the positions that it may look
at. The weights are the softmax of how well the query matches their keys.

Source: Vaswani et al. 2017, eq. 1 and §3.2.2; Bahdanau et al. 2015, §A.1.2, for the additive score;
course C, "Attention Modules" and "Attention in Transformers".
Not here: dropout on the weights. GPT-1 has it; models of this size underfit, so it would only add
noise to the comparisons.

Shapes: B batch, H heads, T queries, S keys, D width of one head, C = d_model.
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_heads, check_rows, check_sizes
from minigpt.models.positions import rotate
from minigpt.text.padding import check_mask


def causal_mask(n_queries: int, n_keys: int | None = None) -> Tensor:
    """(T, S) bool, True where query t may look: at itself and at earlier positions.

    >>> causal_mask(3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]

    During generation the queries are the last T of S positions:

    >>> causal_mask(1, 3).int().tolist()
    [[1, 1, 1]]
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_queries > n_keys:
        raise ValueError(f"{n_queries} queries cannot be the last ones of {n_keys} positions")
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(diagonal=n_keys - n_queries)


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q Kᵀ / √D): (B, H, T, D), (B, H, S, D) -> (B, H, T, S). Each row sums to 1.

    `mask` is True where a query may look. `bias` is added to the scores and `scale` replaces 1/√D:
    T5 has a bias, and scale 1. Both may broadcast to (B, H, T, S).
    """
    # q·k is a sum of D products. If their terms have variance 1, the sum has variance D, and its
    # softmax saturates as D grows. Dividing by √D keeps the variance at 1 (Vaswani et al. 2017,
    # footnote 4).
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale                        # (B, H, T, S)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        check_mask(mask, mask.shape)                                # the dtype; it may broadcast
        scores = scores.masked_fill(~mask, float("-inf"))           # exp(−∞) = 0: no weight
    return scores.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False,
    bias: Tensor | None = None, scale: float | None = None, fused: bool = True,
) -> Tensor:
    """A(q, K, V): (B, H, T, D), (B, H, S, D), (B, H, S, D) -> (B, H, T, D).

    `causal` hides later positions, as `causal_mask` does. A `mask`, of padding for example, may be
    given as well. With `fused`, PyTorch's kernel computes the same without storing the (T, S)
    weights; a test compares the two.

    They differ only for a query that may look nowhere, such as padding on the left: the average of
    no values is 0 with the kernel and NaN by the definition. Do not use such an output.
    """
    T, S = q.size(-2), k.size(-2)
    if mask is not None:
        check_mask(mask, mask.shape)                    # the kernel would add a mask of floats
    if T == 1:
        causal = False                                  # a single query is the newest position
    if causal and not (fused and mask is None and bias is None and T == S):
        earlier = causal_mask(T, S).to(q.device)        # is_causal below would not do
        mask, causal = earlier if mask is None else mask & earlier, False
    if not fused:
        return attention_weights(q, k, mask, bias, scale) @ v
    if bias is not None:                                # the kernel takes one additive mask
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)


class KVCache:
    """The keys and values that one layer has computed so far.

    With them, generating a token needs one query instead of T. Memory for `capacity` positions is
    taken once: `append` writes into it and returns views, so nothing is copied.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.keys = self.values = None              # (B, H, capacity, D), made at the first append

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, H, T, D) twice; returns all keys and all values so far, (B, H, S, D) twice."""
        end = self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions and was asked to hold "
                             f"{end}; start a new one with fewer tokens")
        if self.keys is None:
            self.keys = k.new_empty(k.size(0), k.size(1), self.capacity, k.size(3))
            self.values = torch.empty_like(self.keys)
        self.keys[:, :, self.length:end] = k
        self.values[:, :, self.length:end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order and with repeats: beam search needs it."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class MultiHeadAttention(nn.Module):
    """H attentions in parallel, each of width D = C / H (Vaswani et al. 2017, §3.2.2).

    `d_head` sets another D: T5 11B has 128 heads of width 128 and d_model 1024. `qk_norm` divides
    each query and key by its root mean square, then multiplies its D numbers by learned gains
    (Henry et al. 2020, who learn one gain for all). Scores then start within ±√D whatever the
    weights are, and only the gains can make attention sharper.
    """

    def __init__(
        self, d_model: int, n_heads: int, bias: bool = True, d_head: int | None = None,
        qk_norm: bool = False, scale: float | None = None,
    ):
        super().__init__()
        d_head = check_heads(d_model, n_heads) if d_head is None else d_head
        check_sizes(d_model=d_model, n_heads=n_heads, d_head=d_head)
        width = n_heads * d_head
        self.n_heads, self.scale = n_heads, scale
        self.query = nn.Linear(d_model, width, bias=bias)
        self.key = nn.Linear(d_model, width, bias=bias)
        self.value = nn.Linear(d_model, width, bias=bias)
        self.out = nn.Linear(width, d_model, bias=bias)
        self.query_norm = nn.RMSNorm(d_head) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(d_head) if qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None,
        causal: bool = False, bias: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None, cache: KVCache | None = None,
    ) -> Tensor:
        """Queries from x (B, T, C); keys and values from memory (B, S, C), or from x itself.

        `rotary` is (cos, sin) for the positions of x. `cache` holds the keys and values of earlier
        positions; the new ones are appended to it. `mask` and `bias` broadcast to (B, H, T, S).
        """
        memory = x if memory is None else memory
        # First the three products, then the norms: in turn they took 4 % longer to decode a token.
        q = self.split_heads(self.query(x))                             # (B, H, T, D)
        k = self.split_heads(self.key(memory))                          # (B, H, S, D)
        v = self.split_heads(self.value(memory))                        # (B, H, S, D)
        q, k = self.query_norm(q), self.key_norm(k)                     # identities unless qk_norm
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(k, v)                           # (B, H, S, D), with earlier ones
        y = attend(q, k, v, mask, causal, bias, self.scale)             # (B, H, T, D)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, H·D) -> (B, T, C)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H·D) -> (B, H, T, D)."""
        # The transpose is needed: a view as (B, H, T, D) would mix the positions into the heads.
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class AdditiveAttention(nn.Module):
    """score(s, h) = vᵀ tanh(W[s; h]), a small network (Bahdanau et al. 2015, §A.1.2).

    It scores how well a decoder state s (the query) and an annotation h (key and value) match. W is
    stored as two halves, W[s; h] = W_s s + W_h h, because W_h h is the same for every query: a
    decoder computes it once with `project` and passes it in at each step.
    """

    def __init__(self, d_query: int, d_key: int, d_attention: int,
                 generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(d_query=d_query, d_key=d_key, d_attention=d_attention)
        self.query = nn.Linear(d_query, d_attention, bias=False)        # W_s
        self.key = nn.Linear(d_key, d_attention, bias=False)            # W_h
        self.v = nn.Parameter(torch.empty(d_attention))
        # With standard deviation 1/√inputs, a product has the variance of its input.
        for weight in (self.query.weight, self.key.weight, self.v):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.size(-1)), generator=generator)

    def project(self, h: Tensor) -> Tensor:
        """W_h h: (B, S, d_key) -> (B, S, d_attention)."""
        return self.key(h)

    def score(self, s: Tensor, projected: Tensor) -> Tensor:
        """(B, T, d_query), (B, S, d_attention) -> (B, T, S)."""
        sums = self.query(s)[:, :, None] + projected[:, None]           # (B, T, S, d_attention)
        return sums.tanh() @ self.v                                     # (B, T, S)

    def forward(
        self, s: Tensor, h: Tensor, mask: Tensor | None = None, projected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """softmax(score) h: the average (B, T, d_key) and the weights (B, T, S).

        The queries are s (B, T, d_query); h (B, S, d_key) gives keys and values. `mask` (B, S) is
        False at padding. ValueError if a row of it has no True: there would be nothing to average.
        """
        scores = self.score(s, self.project(h) if projected is None else projected)     # (B, T, S)
        if mask is not None:
            check_mask(mask, h.shape[:2])
            check_rows(mask)
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = scores.softmax(dim=-1)
        return weights @ h, weights                                     # (B, T, d_key), (B, T, S)
