"""Padding: rows of different lengths become one batch, with a mask that is False at the padding.

    right   [5]     →   5 0      mask  1 0        for training
            [6 7]       6 7            1 1
    left    [5]     →   0 5      mask  0 1        for prompts: all answers begin in the same column
            [6 7]       6 7            1 1

A mask is always bool: True where a token counts, or where a query may look. Another dtype is
refused, because PyTorch would use its zeros and ones as indices and silently give a wrong result.

Shapes: B rows, T tokens of the longest row.
"""
from collections.abc import Sequence

import torch
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], side: str, value: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (B, T), from B rows; `value` is added on the left or right.

    >>> tokens, mask = pad([[5], [6, 7]], side="left", value=0)
    >>> tokens.tolist(), mask.int().tolist()
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is left or right, not {side!r}")
    if not rows:
        raise ValueError("there is no row to pad; give at least one")
    lengths = torch.tensor([len(row) for row in rows])                  # (B,)
    if not lengths.all():
        raise ValueError(f"row {lengths.tolist().index(0)} of {len(rows)} has no token; "
                         "leave it out, or give it a start token")
    columns = torch.arange(int(lengths.max()))                          # (T,)
    mask = columns < lengths[:, None]                                   # (B, T)
    if side == "left":
        mask = mask.flip(1)
    tokens = torch.full(mask.shape, value)                              # (B, T)
    tokens[mask] = torch.tensor([token for row in rows for token in row])
    return tokens, mask


def check_mask(mask: Tensor, shape: Sequence[int]) -> None:
    """ValueError unless `mask` is bool and has this shape."""
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is bool, True where a place counts, not {mask.dtype}; "
                         "use mask.bool()")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"the mask is {tuple(mask.shape)} where {tuple(shape)} is needed")
