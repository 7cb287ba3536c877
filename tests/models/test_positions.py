"""Sinusoids and rotary positions against plain Python and complex numbers; T5's buckets against the
published rule and, where it is installed, the transformers library."""
import cmath
import math

import pytest
import torch

from minigpt.models.positions import (
    angles,
    relative_buckets,
    rotary_table,
    rotate,
    sinusoidal_positions,
)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(torch.float32)


# Sinusoids.

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
        angle = k * 10_000 ** (-2 * i / C)
        c, s = math.cos(angle), math.sin(angle)
        R[2 * i:2 * i + 2, 2 * i:2 * i + 2] = torch.tensor([[c, s], [-s, c]])
    for t in range(20 - k):
        torch.testing.assert_close(table[t + k], R @ table[t], atol=1e-12, rtol=0)


def test_far_positions_are_exact_in_float32():
    """Angles are computed in float64: with ω rounded to float32, t·ω would drift as t grows."""
    torch.set_default_dtype(torch.float32)
    table, (cos, sin) = sinusoidal_positions(100_001, 4), rotary_table(100_001, 4)
    assert table.dtype == cos.dtype == sin.dtype == torch.float32
    t = 99_999
    assert table[t, 0].item() == pytest.approx(math.sin(t), abs=1e-6)
    assert table[t, 3].item() == pytest.approx(math.cos(t / 100), abs=1e-6)
    assert cos[t, 0].item() == pytest.approx(math.cos(t), abs=1e-6)
    assert sin[t, 1].item() == pytest.approx(math.sin(t / 100), abs=1e-6)


# Rotary positions.

def test_rotate_is_multiplication_by_a_complex_number():
    B, H, T, D = 2, 3, 5, 8
    x, (cos, sin) = torch.randn(B, H, T, D), rotary_table(T, D)
    y = rotate(x, cos, sin)[1, 2]
    for t in range(T):
        for i in range(D // 2):
            point = complex(x[1, 2, t, i], x[1, 2, t, i + D // 2])
            turned = point * cmath.exp(1j * t * 10_000 ** (-2 * i / D))
            assert y[t, i].item() == pytest.approx(turned.real, abs=1e-12)
            assert y[t, i + D // 2].item() == pytest.approx(turned.imag, abs=1e-12)


def test_rotary_scores_depend_on_the_distance_only():
    """One query and one key at every pair of positions: scores are constant along diagonals."""
    T, D = 9, 8
    q, k = torch.randn(D).expand(1, 1, T, D), torch.randn(D).expand(1, 1, T, D)
    table = rotary_table(T, D)
    scores = (rotate(q, *table) @ rotate(k, *table).mT)[0, 0]           # (T, T)
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], atol=1e-12, rtol=0)
    assert (scores[0, 1:] - scores[0, :-1]).abs().min() > 1e-6
    assert (scores[0, 1:] - scores[1:, 0]).abs().min() > 1e-6           # before is not after
    unturned = (q * k).sum(-1)[0, 0]
    torch.testing.assert_close(scores.diagonal(), unturned, atol=1e-12, rtol=0)     # distance 0


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
    make(3, 2)


# T5's buckets.

def bucket_by_the_rule(offset: int, bidirectional: bool, n_buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, §2.1 and its code, for one offset key − query, without logarithms.

    With n the distance, e the number of exact buckets, m the maximum and w the number of others,
    log(n/e) / log(m/e) · w ≥ k  is  (n/e)^w ≥ (m/e)^k  is  n^w · e^k ≥ e^w · m^k. Python's integers
    have any size, so nothing is rounded.
    """
    bucket, n = 0, max(-offset, 0)
    if bidirectional:
        n_buckets //= 2
        bucket, n = (n_buckets, offset) if offset > 0 else (0, -offset)
    exact = n_buckets // 2
    if n < exact:
        return bucket + n
    wide, k = n_buckets - exact, 0
    while k < wide - 1 and n**wide * exact ** (k + 1) >= exact**wide * max_distance ** (k + 1):
        k += 1
    return bucket + exact + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("n_buckets, max_distance", [(32, 128), (12, 50), (6, 7)])
def test_every_bucket_by_the_rule(bidirectional, n_buckets, max_distance):
    table = relative_buckets(300, 300, bidirectional, n_buckets, max_distance)
    assert table.shape == (300, 300) and table.dtype == torch.int64
    for offset in range(-299, 300):
        expected = bucket_by_the_rule(offset, bidirectional, n_buckets, max_distance)
        assert (table.diagonal(offset) == expected).all(), (offset, expected)


def test_some_buckets_by_hand():
    both = relative_buckets(201, 201, bidirectional=True)
    earlier = {0: 0, -1: 1, -7: 7, -8: 8, -16: 10, -32: 12, -64: 14, -91: 15, -100: 15}
    later = {1: 17, 7: 23, 8: 24, 16: 26, 91: 31}
    for offset, bucket in (earlier | later).items():
        assert both[100, 100 + offset] == bucket
    past = relative_buckets(201, 201, bidirectional=False)
    distances = {0: 0, 1: 1, 15: 15, 16: 16, 32: 21, 64: 26, 113: 31, 128: 31, 200: 31}
    for distance, bucket in distances.items():
        assert past[200, 200 - distance] == bucket
    assert (past.triu() == 0).all()             # later keys share bucket 0 with the query itself


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_bucket_is_used(bidirectional):
    """But for the encoder's bucket 16: a key after the query is never at distance 0."""
    buckets = relative_buckets(150, 150, bidirectional).unique().tolist()
    assert buckets == [b for b in range(32) if not (bidirectional and b == 16)]


def test_the_queries_are_the_last_positions():
    whole = relative_buckets(9, 9, bidirectional=False)
    assert torch.equal(relative_buckets(4, 9, bidirectional=False), whole[5:])
    assert relative_buckets(1, 7, bidirectional=False).tolist() == [[6, 5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize("n_buckets, max_distance, bidirectional", [
    (3, 128, True), (1, 128, False), (32, 16, False), (32, 8, True)])
def test_impossible_buckets_are_refused(n_buckets, max_distance, bidirectional):
    with pytest.raises(ValueError, match="leave .* for exact distances"):
        relative_buckets(3, 3, bidirectional, n_buckets, max_distance)


@pytest.mark.parametrize("n_buckets, max_distance, bidirectional", [
    (4, 128, True), (2, 128, False), (32, 17, False), (32, 9, True)])
def test_the_last_legal_buckets(n_buckets, max_distance, bidirectional):
    table = relative_buckets(30, 30, bidirectional, n_buckets, max_distance)
    assert table.min() == 0 and table.max() == n_buckets - 1


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_same_buckets_as_transformers(bidirectional):
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    offset = torch.arange(1000) - torch.arange(1000)[:, None]
    theirs = modeling.T5Attention._relative_position_bucket(
        offset, bidirectional, num_buckets=32, max_distance=128)
    assert torch.equal(relative_buckets(1000, 1000, bidirectional), theirs)
