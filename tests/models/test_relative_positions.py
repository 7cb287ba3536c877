"""T5's buckets against the published rule in whole numbers, one distance at a time, and against transformers where it is installed."""
import pytest
import torch

from minigpt.models.positions import relative_buckets


def bucket_by_the_rule(offset: int, bidirectional: bool, n_buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, §2.1 and its code, for one key − query, without logarithms.

    log(n/e) / log(m/e) · w ≥ k  is  (n/e)^w ≥ (m/e)^k  is  n^w · e^k ≥ e^w · m^k, in integers of any size: no rounding.
    """
    bucket = 0
    if bidirectional:
        n_buckets //= 2
        if offset > 0:
            bucket, n = n_buckets, offset
        else:
            n = -offset
    else:
        n = -offset if offset < 0 else 0
    exact = n_buckets // 2
    if n < exact:
        return bucket + n
    wide, k = n_buckets - exact, 0
    while k < wide - 1 and n**wide * exact ** (k + 1) >= exact**wide * max_distance ** (k + 1):
        k += 1
    return bucket + exact + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("n_buckets, max_distance", [(32, 128), (12, 50), (6, 7)])
def test_every_distance_by_the_rule(bidirectional, n_buckets, max_distance):
    table = relative_buckets(300, 300, bidirectional, n_buckets, max_distance)
    assert table.shape == (300, 300) and table.dtype == torch.int64
    for offset in range(-299, 300):
        expected = bucket_by_the_rule(offset, bidirectional, n_buckets, max_distance)
        assert (table.diagonal(offset) == expected).all(), (offset, expected)


def test_some_buckets_by_hand():
    both = relative_buckets(201, 201, bidirectional=True)
    assert [both[100, 100 + k].item() for k in (0, -1, -7, -8, -16, -32, -64, -91, -100)] == [0, 1, 7, 8, 10, 12, 14, 15, 15]
    assert [both[100, 100 + k].item() for k in (1, 7, 8, 16, 91)] == [17, 23, 24, 26, 31]
    past = relative_buckets(201, 201, bidirectional=False)
    assert [past[200, 200 - k].item() for k in (0, 1, 15, 16, 32, 64, 113, 128, 200)] == [0, 1, 15, 16, 21, 26, 31, 31, 31]
    assert (past.triu() == 0).all()                                     # the future shares bucket 0 with the present


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_bucket_is_used(bidirectional):
    buckets = relative_buckets(150, 150, bidirectional).unique().tolist()
    assert buckets == [b for b in range(32) if not (bidirectional and b == 16)]       # a key after the query is never 0 away


def test_the_queries_are_the_last_positions():
    whole = relative_buckets(9, 9, bidirectional=False)
    assert torch.equal(relative_buckets(4, 9, bidirectional=False), whole[5:])
    assert relative_buckets(1, 7, bidirectional=False).tolist() == [[6, 5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize("n_buckets, max_distance, bidirectional", [(3, 128, True), (1, 128, False), (32, 16, False), (32, 8, True)])
def test_impossible_buckets_are_refused(n_buckets, max_distance, bidirectional):
    with pytest.raises(ValueError, match="leave .* for exact distances"):
        relative_buckets(3, 3, bidirectional, n_buckets, max_distance)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_same_as_transformers(bidirectional):
    T5Attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    offset = torch.arange(1000) - torch.arange(1000)[:, None]
    theirs = T5Attention._relative_position_bucket(offset, bidirectional, num_buckets=32, max_distance=128)
    assert torch.equal(relative_buckets(1000, 1000, bidirectional), theirs)
