"""Attention: each position asks a question, and takes home a weighted average of the answers.

    A(q, K, V) = softmax(score(q, K)) V            score(q, kᵢ) = q·kᵢ / √D

Source: course C, "Attention in Transformers"; Vaswani et al. 2017, eq. 1 and §3.2.2.
Not here: dropout on the weights (GPT-2 has it; at course scale it only blurs the numbers).

Shapes: B batch, H heads, T queries, S keys, D width of one head, C = d_model.
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.positions import rotate


def causal_mask(n_queries: int, n_keys: int | None = None) -> Tensor:
    """(T, S) bool, True where query t may look: at itself and at the past.

    >>> causal_mask(3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]

    While generating, the queries are the last T of S positions:

    >>> causal_mask(1, 3).int().tolist()
    [[1, 1, 1]]
    """
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(diagonal=n_keys - n_queries)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """How much each query takes from each key: (B, H, T, D), (B, H, S, D) -> (B, H, T, S), rows sum to 1.

    `mask` is True where a query may look, `bias` is added to the scores, `scale` replaces 1/√D
    (T5 has a bias and scale 1). Both broadcast to (B, H, T, S).
    """
    # A dot product of D unit-variance terms has variance D; unscaled, softmax would saturate as D grows.
    scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.size(-1)) if scale is None else scale)     # (B, H, T, S)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))               # e^-inf = 0: no weight at all
    return scores.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False,
    bias: Tensor | None = None, scale: float | None = None, fused: bool = True,
) -> Tensor:
    """A(q, K, V): (B, H, T, D), (B, H, S, D), (B, H, S, D) -> (B, H, T, D).

    `causal` hides the future as `causal_mask` does, and may be combined with `mask` (padding, say).
    `fused` calls PyTorch's kernel, which never writes the (T, S) weights to memory;
    the other branch is the definition. A test holds them equal. They part only where a query may look nowhere: the mean of
    nothing is 0 for the kernel and NaN for the definition; let no one read such a position.
    """
    T, S = q.size(-2), k.size(-2)
    if causal and T == 1:
        causal = False                                                  # the newest query may see every key there is
    if causal and not (fused and mask is None and bias is None and T == S):
        past = causal_mask(T, S).to(q.device)
        mask, causal = past if mask is None else mask & past, False
    if not fused:
        return attention_weights(q, k, mask, bias, scale) @ v
    if bias is not None:                                                # the kernel takes one additive mask
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


class KVCache:
    """Keys and values that one layer has computed so far, so that generating a token costs one query and not T.

    Room for `capacity` positions is taken once; appending writes in place and returns views, so nothing is copied.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.keys = self.values = None                                  # (B, H, capacity, D), made at the first append

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, H, T, D) twice; returns all keys and values so far, (B, H, S, D) twice."""
        end = self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions and was asked to hold {end}; start a new one with fewer tokens")
        if self.keys is None:
            self.keys = k.new_empty(k.size(0), k.size(1), self.capacity, k.size(3))
            self.values = torch.empty_like(self.keys)
        self.keys[:, :, self.length:end] = k
        self.values[:, :, self.length:end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed: what beam search does to its survivors."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each in its own D = d_model / H dimensions (Vaswani et al. 2017, §3.2.2).

    `d_head` sets D freely (T5 11B: 128 heads of 128 over d_model 1024). `qk_norm` divides each query and key by its
    root mean square and learns a gain for each of the D dimensions: scores start out within ±√D whatever the weights do,
    and the gains alone decide how sharp attention may become (Henry et al. 2020, there with one gain for all).
    """

    def __init__(
        self, d_model: int, n_heads: int, bias: bool = True, d_head: int | None = None, qk_norm: bool = False, scale: float | None = None,
    ):
        super().__init__()
        if n_heads < 1:
            raise ValueError(f"attention needs at least 1 head, not {n_heads}")
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model {d_model} does not divide into {n_heads} heads; try d_model {(d_model // n_heads + 1) * n_heads}")
        width = d_model if d_head is None else n_heads * d_head
        self.n_heads, self.scale = n_heads, scale
        self.query = nn.Linear(d_model, width, bias=bias)
        self.key = nn.Linear(d_model, width, bias=bias)
        self.value = nn.Linear(d_model, width, bias=bias)
        self.out = nn.Linear(width, d_model, bias=bias)
        self.query_norm, self.key_norm = (nn.RMSNorm(width // n_heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, causal: bool = False,
        bias: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None, cache: KVCache | None = None,
    ) -> Tensor:
        """x (B, T, C) asks; memory (B, S, C) answers, x itself if there is none. Returns (B, T, C).

        `rotary` is (cos, sin) for x's positions; `cache` holds earlier keys and values and takes the new ones in.
        """
        memory = x if memory is None else memory
        q, k, v = self.split_heads(self.query(x)), self.split_heads(self.key(memory)), self.split_heads(self.value(memory))
        q, k = self.query_norm(q), self.key_norm(k)                     # the same, unless qk_norm
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(k, v)                                   # (B, H, S, D): the past comes back with the new
        y = attend(q, k, v, mask, causal, bias, self.scale)             # (B, H, T, D)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, H·D) -> (B, T, C)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H·D) -> (B, H, T, D). `view` alone would mix positions into heads: the transpose is what keeps them apart."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class AdditiveAttention(nn.Module):
    """score(s, h) = vᵀ tanh(W[s; h]): a small network judges how well a state s and an annotation h fit (Bahdanau et al. 2015, §A.1.2).

    W is kept as its two halves, W[s; h] = W_s s + W_h h, because W_h h is the same for every query: `project` computes it
    once, and a decoder that asks about the same annotations at every step passes it in.
    """

    def __init__(self, d_query: int, d_key: int, d_attention: int, generator: torch.Generator | None = None):
        super().__init__()
        self.query = nn.Linear(d_query, d_attention, bias=False)        # W_s
        self.key = nn.Linear(d_key, d_attention, bias=False)            # W_h
        self.v = nn.Parameter(torch.empty(d_attention))
        for weight in (self.query.weight, self.key.weight, self.v):     # each product varies as much as what comes in
            nn.init.normal_(weight, std=1 / math.sqrt(weight.size(-1)), generator=generator)

    def project(self, h: Tensor) -> Tensor:
        """W_h h: (B, S, d_key) -> (B, S, d_attention)."""
        return self.key(h)

    def score(self, s: Tensor, projected: Tensor) -> Tensor:
        """(B, T, d_query), (B, S, d_attention) -> (B, T, S)."""
        return (self.query(s)[:, :, None] + projected[:, None]).tanh() @ self.v     # (B, T, S, d_attention) -> (B, T, S)

    def forward(self, s: Tensor, h: Tensor, mask: Tensor | None = None, projected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """softmax(score) h: s (B, T, d_query) asks, h (B, S, d_key) answers. Returns what it takes home (B, T, d_key) and the weights (B, T, S).

        `mask` (B, S) is True where there is an annotation and False where there is padding.
        """
        scores = self.score(s, self.project(h) if projected is None else projected)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = scores.softmax(dim=-1)
        return weights @ h, weights
