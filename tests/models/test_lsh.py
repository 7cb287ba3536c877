"""LSH attention against sorted Python lists, full attention, and the probability of a collision."""
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.lsh import lsh_attention, lsh_buckets, random_rotations, shared_attention

B, H, T, D = 2, 3, 11, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def queries_and_values(width: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * randn(B, H, T, D, seed=0), 2 * randn(B, H, T, width, seed=2)


def random_buckets(n_buckets: int, rounds: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(n_buckets, (B, H, rounds, T), generator=seeded(seed))


def by_loops(q, v, may_look):
    """softmax(q·k) with k = q/‖q‖, over the keys where may_look(b, h, t, s), in plain numbers."""
    lengths = q.square().sum(-1).sqrt()
    out = torch.zeros_like(v)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in (B, H, T))).tolist():
        weights = {
            s: math.exp(q[b, h, t].dot(q[b, h, s]).item() / lengths[b, h, s].item())
            for s in range(T) if may_look(b, h, t, s)
        }
        for s, weight in weights.items():
            out[b, h, t] += weight / sum(weights.values()) * v[b, h, s]
    return out


def everything_before(b, h, t, s):
    """The first token has no other key, so it looks at itself."""
    return s < t or s == t == 0


# ── Full attention with queries as keys ─────────────────────────────────────────────────────────

def test_shared_attention_by_loops():
    q, v = queries_and_values()
    assert torch.allclose(shared_attention(q, v), by_loops(q, v, everything_before), atol=1e-12)


@pytest.mark.parametrize("rounds, chunk", [(1, T), (1, 20), (3, T), (1, 6)])
def test_one_bucket_gives_shared_attention(rounds, chunk):
    """In one chunk, or in two, since the second reads the first as well."""
    q, v = queries_and_values()
    buckets = torch.zeros(B, H, rounds, T, dtype=torch.long)
    expected = by_loops(q, v, everything_before)
    assert torch.allclose(lsh_attention(q, v, buckets, chunk), expected, atol=1e-12)


def test_one_bucket_gives_the_gradient_of_shared_attention():
    q, v = (x.requires_grad_() for x in queries_and_values())
    upstream = randn(B, H, T, D, seed=9)
    buckets = torch.zeros(B, H, 2, T, dtype=torch.long)
    ours = torch.autograd.grad((lsh_attention(q, v, buckets, 6) * upstream).sum(), (q, v))
    theirs = torch.autograd.grad((shared_attention(q, v) * upstream).sum(), (q, v))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs))


# ── The hash ────────────────────────────────────────────────────────────────────────────────────

def test_the_hash_is_the_nearest_of_the_directions_and_their_opposites():
    x, rotations = randn(B, H, T, D, seed=0), random_rotations(5, D, 6, seeded(0)).double()
    buckets = lsh_buckets(x, rotations)
    assert buckets.shape == (B, H, 5, T)
    for b, h, r, t in ((0, 0, 0, 0), (1, 2, 4, 10), (0, 1, 3, 7), (1, 0, 2, 5)):
        scores = [sum(x[b, h, t, d] * rotations[r, d, i] for d in range(D)) for i in range(3)]
        scores = [s.item() for s in scores] + [-s.item() for s in scores]
        assert buckets[b, h, r, t] == scores.index(max(scores))
    assert torch.equal(lsh_buckets(3.7 * x, rotations), buckets)        # only the direction counts


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8])
def test_two_buckets_are_shared_with_probability_1_minus_angle_over_pi(share):
    angle = share * math.pi
    pair = torch.tensor([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]])
    n = 20_000
    buckets = lsh_buckets(pair[None, None], random_rotations(n, 3, 2, seeded(0)))[0, 0]     # (n, 2)
    frequency = (buckets[:, 0] == buckets[:, 1]).float().mean().item()
    assert abs(frequency - (1 - share)) < 5 * math.sqrt(share * (1 - share) / n)


def test_rotations_are_standard_normal_numbers():
    rotations = random_rotations(7, 40, 60, seeded(0))
    assert rotations.shape == (7, 40, 30)
    assert abs(rotations.mean()) < 0.05 and rotations.std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(rotations, random_rotations(7, 40, 60, seeded(0)))


# ── Several buckets, rounds and chunks ──────────────────────────────────────────────────────────

def meetings(buckets: torch.Tensor, chunk: int) -> set[tuple]:
    """(b, h, t, s) for every query t and key s that meet in any round, by sorted lists."""
    met = set()
    rounds = torch.cartesian_prod(*(torch.arange(n) for n in buckets.shape[:3])).tolist()
    for b, h, r in rounds:
        bucket = buckets[b, h, r].tolist()
        order = sorted(range(T), key=lambda t: (bucket[t], t))          # noqa: B023
        place = {t: i // chunk for i, t in enumerate(order)}
        met |= {
            (b, h, t, s) for t in range(T) for s in range(t)
            if bucket[t] == bucket[s] and place[t] - place[s] in (0, 1)
        }
    return met


@pytest.mark.parametrize("rounds, n_buckets, chunk", [
    (1, 4, 3), (2, 4, 3), (5, 4, 4), (4, 2, 2), (6, 8, 1), (2, 4, T),
])
def test_all_rounds_are_one_softmax_over_all_keys_met(rounds, n_buckets, chunk):
    q, v = queries_and_values()
    buckets = random_buckets(n_buckets, rounds)
    met = meetings(buckets, chunk)
    queries = {(b, h, t) for b in range(B) for h in range(H) for t in range(T)}
    alone = queries - {m[:3] for m in met}

    def may_look(b, h, t, s):
        return (b, h, t, s) in met or s == t and (b, h, t) in alone

    expected = by_loops(q, v, may_look)
    assert 0 < len(alone) < B * H * T
    assert torch.allclose(lsh_attention(q, v, buckets, chunk), expected, atol=1e-12)
    identity = torch.eye(T, dtype=q.dtype).expand(B, H, T, T)           # A(q, K, I): the weights
    weights = lsh_attention(q, identity, buckets, chunk)
    assert torch.allclose(weights @ v, expected, atol=1e-12)
    assert torch.allclose(weights.sum(-1), torch.ones(B, H, T, dtype=q.dtype), atol=1e-12)


def test_a_later_token_decides_where_chunks_are_cut_and_nothing_else():
    q, v = queries_and_values()
    buckets = random_buckets(2, 1, seed=0)
    moved = buckets.clone()
    moved[..., -1] = 1 - moved[..., -1]                                 # the last token's bucket
    cut, cut_elsewhere = (lsh_attention(q, v, b, 2)[:, :, :-1] for b in (buckets, moved))
    assert not torch.allclose(cut, cut_elsewhere, atol=1e-3)
    whole, still_whole = (lsh_attention(q, v, b, T)[:, :, :-1] for b in (buckets, moved))
    assert torch.allclose(whole, still_whole, atol=1e-12)               # one chunk has no cut


def test_half_precision_can_hold_the_score_of_a_token_with_itself():
    generator = seeded(0)
    q, v = torch.randn(2, 1, 2, 24, 4, generator=generator)
    buckets = lsh_buckets(q, random_rotations(3, 4, 4, generator))
    wanted = lsh_attention(q, v, buckets, 8)
    half = lsh_attention(q.half(), v.half(), buckets, 8).float()
    torch.testing.assert_close(half, wanted, atol=0.02, rtol=0)


def test_a_zero_vector_gives_no_nan():
    q, v = queries_and_values()
    q[:, :, 4] = 0
    assert lsh_attention(q, v, random_buckets(2, 2), 4).isfinite().all()
    assert F.normalize(q, dim=-1).isfinite().all() and shared_attention(q, v).isfinite().all()


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("n_rounds, n_buckets", [(2, 5), (2, 1), (2, 0), (2, -2), (0, 2)])
def test_rotations_are_refused(n_rounds, n_buckets):
    assert random_rotations(1, 4, 2).shape == (1, 4, 1)
    with pytest.raises(ValueError, match=f"1 or more, not {n_buckets} and {n_rounds}"):
        random_rotations(n_rounds, 4, n_buckets)


def test_chunks_are_refused():
    q, v = queries_and_values()
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, not 0"):
        lsh_attention(q, v, random_buckets(2, 1), 0)


def test_shapes_are_refused():
    q, v = queries_and_values()
    buckets = random_buckets(2, 1)
    for wrong in (buckets[..., 1:], buckets[:, 1:], buckets[:1], buckets[:, :, 0]):
        with pytest.raises(ValueError, match="buckets is"):
            lsh_attention(q, v, wrong, 3)
    with pytest.raises(ValueError, match="n_rounds must be a whole number of at least 1, not 0"):
        lsh_attention(q, v, buckets[:, :, :0], 3)
    with pytest.raises(ValueError, match="n_tokens must be a whole number of at least 1, not 0"):
        lsh_attention(q[:, :, :0], v[:, :, :0], buckets[..., :0], 3)
