"""Sinusoids and rotary positions against one scalar at a time, complex numbers, and what a rotation must keep."""
import cmath
import math

import pytest
import torch

from minigpt.models.positions import angles, rotary_table, rotate, sinusoidal_positions


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(torch.float32)


def test_angles_by_scalars():
    by_scalars = [[t / 10_000 ** (2 * i / 6) for i in range(3)] for t in range(5)]
    torch.testing.assert_close(angles(5, 6), torch.tensor(by_scalars), atol=1e-12, rtol=0)
    assert angles(5, 6, base=100.0)[4, 2].item() == pytest.approx(4 / 100 ** (4 / 6))


def test_sinusoids_by_scalars():
    n, C = 11, 6
    table = sinusoidal_positions(n, C)
    assert table.shape == (n, C)
    for t in range(n):
        for i in range(C // 2):
            angle = t / 10_000 ** (2 * i / C)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_later_position_is_a_fixed_rotation_of_an_earlier_one(k):
    C, table = 8, sinusoidal_positions(20, 8)
    R = torch.zeros(C, C)
    for i in range(C // 2):
        c, s = math.cos(k * 10_000 ** (-2 * i / C)), math.sin(k * 10_000 ** (-2 * i / C))
        R[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, s], [-s, c]])
    for t in range(20 - k):
        torch.testing.assert_close(table[t + k], R @ table[t], atol=1e-12, rtol=0)


def test_far_positions_are_exact_in_float32():
    """Angles are computed in double: in float32, t·ω with a rounded ω drifts as t grows."""
    torch.set_default_dtype(torch.float32)
    table, (cos, sin) = sinusoidal_positions(100_001, 4), rotary_table(100_001, 4)
    assert table.dtype == cos.dtype == sin.dtype == torch.float32
    t = 99_999
    assert table[t, 0].item() == pytest.approx(math.sin(t), abs=1e-6)
    assert table[t, 3].item() == pytest.approx(math.cos(t / 100), abs=1e-6)
    assert cos[t, 0].item() == pytest.approx(math.cos(t), abs=1e-6)
    assert sin[t, 1].item() == pytest.approx(math.sin(t / 100), abs=1e-6)


def test_rotate_is_multiplication_by_a_complex_number():
    B, H, T, D = 2, 3, 5, 8
    x, (cos, sin) = torch.randn(B, H, T, D), rotary_table(T, D)
    y = rotate(x, cos, sin)
    for t in range(T):
        for i in range(D // 2):
            turned = complex(x[1, 2, t, i], x[1, 2, t, i + D // 2]) * cmath.exp(1j * t * 10_000 ** (-2 * i / D))
            assert y[1, 2, t, i].item() == pytest.approx(turned.real, abs=1e-12)
            assert y[1, 2, t, i + D // 2].item() == pytest.approx(turned.imag, abs=1e-12)


def test_rotary_scores_depend_on_the_distance_only():
    """One query and one key, put at every pair of positions: the table of scores is constant along its diagonals only."""
    T, D = 9, 8
    q, k = torch.randn(D).expand(1, 1, T, D), torch.randn(D).expand(1, 1, T, D)
    table = rotary_table(T, D)
    scores = (rotate(q, *table) @ rotate(k, *table).mT)[0, 0]           # (T, T)
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], atol=1e-12, rtol=0)
    assert (scores[0, 1:] - scores[0, :-1]).abs().min() > 1e-6
    assert (scores[0, 1:] - scores[1:, 0]).abs().min() > 1e-6           # before is not after
    torch.testing.assert_close(scores.diagonal(), (q * k).sum(-1)[0, 0], atol=1e-12, rtol=0)        # distance 0: as if not turned


def test_rotate_keeps_every_length():
    x, table = torch.randn(2, 3, 7, 4), rotary_table(7, 4)
    y = rotate(x, *table)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(y[:, :, 0], x[:, :, 0])                  # position 0 is not turned
    assert (y[:, :, 1:] - x[:, :, 1:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("make", [angles, sinusoidal_positions, rotary_table])
def test_an_odd_width_is_refused(make):
    with pytest.raises(ValueError, match="the width must be even, not 5"):
        make(3, 5)
