"""Positions: attention sees a set, so order has to be written into the vectors themselves.

    sinusoidal   PE(t, 2i) = sin(t / 10000^(2i/C)),  PE(t, 2i+1) = cos(the same)      added to the embedding, once
    learned      one free vector a position                                           added to the embedding, once
    rotary       pairs (x₁, x₂) of q and k turned by the angle t·ωᵢ                    so q·k depends on the distance only

Source: Vaswani et al. 2017, §3.5; Su et al. 2021 (RoFormer), eq. 34. A learned position is an `nn.Embedding` in the model.
Deviation: rotary pairs dimension i with i + D/2 rather than 2i with 2i + 1, as most code does: the same up to a
renaming of dimensions, and two slices instead of a stride.

Shapes: B batch, H heads, T positions, D width of one head (even), C = d_model (even).
"""
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
