"""Positions: attention by itself does not depend on the order of its inputs, so the order is added.

    sinusoidal   PE(t, 2i) = sin(t·ωᵢ),  PE(t, 2i + 1) = cos(t·ωᵢ)     added to the embedding
    learned      one free vector per position                          added to the embedding
    rotary       pairs (x₁, x₂) of q and k, turned by the angle t·ωᵢ    q·k depends on the distance
    relative     score(q_t, k_s) + b[bucket(s − t)]                    added to the scores

with ωᵢ = 10000^(−2i/width). The first two are added once, below the first layer; rotary and
relative positions act in every layer.

Source: Vaswani et al. 2017, §3.5; Su et al. 2021 (RoFormer), §3.2.2 and eq. 34; Raffel et al. 2020
(T5), §2.1. Learned positions, and T5's learned b (one per bucket and head), are embeddings in the
models.
Deviation: a rotary pair is dimensions i and i + D/2 here, as in Hugging Face's Llama, where the
paper pairs 2i with 2i + 1. The two agree up to the order of the dimensions.

Shapes: B batch, H heads, T positions, S keys, D width of one head (even), C = d_model (even).
"""
import math

import torch
from torch import Tensor


def angles(n_positions: int, width: int, base: float = 10_000.0) -> Tensor:
    """t·ωᵢ with ωᵢ = base^(−2i/width): (T, width/2), in radians.

    A whole turn takes the first pair 2π positions, and the last pair up to base·2π.
    """
    if width % 2:
        raise ValueError("positions turn pairs of dimensions, so the width must be even, "
                         f"not {width}")
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (width/2,)
    return torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies    # (T, width/2)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """PE (T, C): sines in even columns, cosines in odd ones (Vaswani et al. 2017, §3.5).

    >>> sinusoidal_positions(2, 4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    a = angles(n_positions, d_model)                                                # (T, C/2)
    table = torch.stack([a.sin(), a.cos()], dim=-1).flatten(1)                      # (T, C)
    return table.to(torch.get_default_dtype())


def rotary_table(n_positions: int, d_head: int) -> tuple[Tensor, Tensor]:
    """cos and sin of t·ωᵢ, (T, D/2) each, for `rotate`."""
    a = angles(n_positions, d_head)
    return a.cos().to(torch.get_default_dtype()), a.sin().to(torch.get_default_dtype())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of x (B, H, T, D) by the angle of its position; the tables are (T, D/2).

    A rotation changes no length, so the scores keep their size.
    """
    first, second = x.chunk(2, dim=-1)                                              # (B, H, T, D/2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def relative_buckets(
    n_queries: int, n_keys: int, bidirectional: bool, n_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """The number of T5's bucket for each query t and key s: (T, S), from 0 to n_buckets − 1.

    Half of the buckets hold one distance each: 0, 1, 2, … The other half divide log(distance)
    evenly up to `max_distance`; the last bucket holds all longer distances too (Raffel et al. 2020,
    §2.1, and its code).

    An encoder looks both ways (`bidirectional`): the first half of its buckets are for keys at or
    before the query, the second half for keys after it. In a decoder all buckets are for earlier
    keys; later keys, which its mask hides, get bucket 0. The queries are the last T of S positions,
    as in `causal_mask`.

    >>> relative_buckets(1, 9, False, n_buckets=6, max_distance=7)[0].tolist()  # distances 8, …, 0
    [5, 5, 5, 4, 4, 3, 2, 1, 0]
    """
    n_exact = n_buckets // (4 if bidirectional else 2)
    if not 1 <= n_exact < max_distance:
        raise ValueError(f"{n_buckets} buckets leave {n_exact} for exact distances, which must be "
                         f"at least 1 and less than max_distance {max_distance}; T5 has 32 buckets "
                         "and max_distance 128")
    queries = torch.arange(n_keys - n_queries, n_keys)[:, None]                     # (T, 1)
    offset = torch.arange(n_keys) - queries                                         # (T, S)
    if bidirectional:
        n_buckets //= 2
        first, distance = n_buckets * (offset > 0), offset.abs()
    else:
        first, distance = torch.zeros_like(offset), -offset.clamp(max=0)
    # 0 at a distance of n_exact, 1 at max_distance.
    share = torch.log(distance.clamp(min=1) / n_exact) / math.log(max_distance / n_exact)
    wide = n_exact + (share * (n_buckets - n_exact)).long().clamp(max=n_buckets - n_exact - 1)
    return first + torch.where(distance < n_exact, distance, wide)
