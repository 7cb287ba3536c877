"""Positions: attention sees a set, so order has to be written into the vectors themselves.

    sinusoidal   PE(t, 2i) = sin(t / 10000^(2i/C)),  PE(t, 2i+1) = cos(the same)      added to the embedding, once
    learned      one free vector a position                                           added to the embedding, once
    rotary       pairs (x₁, x₂) of q and k turned by the angle t·ωᵢ                    so q·k depends on the distance only
    relative     score(q_t, k_s) + b[bucket(s − t)], one learned b a bucket and head   added to the scores, in every layer

Source: Vaswani et al. 2017, §3.5; Su et al. 2021 (RoFormer), eq. 34; Raffel et al. 2020 (T5), §2.1. A learned position, and
T5's learned b, is an `nn.Embedding` in the model.
Deviation: rotary pairs dimension i with i + D/2 rather than 2i with 2i + 1, as most code does: the same up to a
renaming of dimensions, and two slices instead of a stride.

Shapes: B batch, H heads, T positions, S keys, D width of one head (even), C = d_model (even).
"""
import math

import torch
from torch import Tensor


def angles(n_positions: int, width: int, base: float = 10_000.0) -> Tensor:
    """t·ωᵢ with ωᵢ = base^(−2i/width): (T, width/2) radians. The first pair turns once in 6.28 positions, the last hardly at all."""
    if width % 2:
        raise ValueError(f"positions turn pairs of dimensions, so the width must be even, not {width}")
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies        # (T, 1) · (width/2) -> (T, width/2)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """PE (T, C): sines in even columns, cosines in odd ones (Vaswani et al. 2017, §3.5).

    >>> sinusoidal_positions(2, 4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    a = angles(n_positions, d_model)
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).to(torch.get_default_dtype())     # (T, C/2, 2) -> (T, C)


def rotary_table(n_positions: int, d_head: int) -> tuple[Tensor, Tensor]:
    """cos and sin of t·ωᵢ, (T, D/2) each, for `rotate`."""
    a = angles(n_positions, d_head)
    return a.cos().to(torch.get_default_dtype()), a.sin().to(torch.get_default_dtype())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of x (B, H, T, D) by its position's angle; (T, D/2) tables. Lengths stay, so scores stay bounded."""
    first, second = x.chunk(2, dim=-1)                                                  # (B, H, T, D/2) each
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)  # (B, H, T, D)


def relative_buckets(n_queries: int, n_keys: int, bidirectional: bool, n_buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Which of T5's buckets each (query t, key s) falls into: (T, S), from 0 to n_buckets − 1 (Raffel et al. 2020, §2.1, and its code).

    Half of the buckets hold one distance each, 0, 1, 2, …; the others divide log(distance) evenly up to `max_distance`, and the last
    takes all beyond it too. An encoder looks both ways (`bidirectional`): it has half of them for keys at or before the query,
    half for keys after it. A decoder has them all for the past; the future, which its mask hides, shares bucket 0 with the present.
    The queries are the last T of S positions, as in `causal_mask`.

    >>> relative_buckets(1, 9, bidirectional=False, n_buckets=6, max_distance=7)[0].tolist()        # distances 8, 7, … 0
    [5, 5, 5, 4, 4, 3, 2, 1, 0]
    """
    exact = n_buckets // (4 if bidirectional else 2)
    if not 1 <= exact < max_distance:
        raise ValueError(f"{n_buckets} buckets leave {exact} for exact distances, which must be at least 1 and less than "
                         f"max_distance {max_distance}; T5 has 32 buckets and max_distance 128")
    offset = torch.arange(n_keys) - torch.arange(n_keys - n_queries, n_keys)[:, None]   # (S) − (T, 1) -> (T, S)
    buckets, distance = torch.zeros_like(offset), -offset.clamp(max=0)
    if bidirectional:
        n_buckets //= 2
        buckets, distance = n_buckets * (offset > 0), offset.abs()
    share = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact)     # 0 at `exact`, 1 at max_distance
    wide = exact + (share * (n_buckets - exact)).long()
    return buckets + torch.where(distance < exact, distance, wide.clamp(max=n_buckets - 1))
