"""Attention for long sequences against loops over pairs, full attention under the same mask, and Jacobians; reversible layers against autograd."""
import math

import pytest
import torch
from torch import nn

from minigpt.generation import generate
from minigpt.models.attention import MultiHeadAttention
from minigpt.models.counting import count_parameters, saved_bytes
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.long_attention import (
    CompressedAttention,
    LocalAttention,
    LSHAttention,
    compressed_attention,
    local_attention,
    long_gpt,
    lsh_attention,
    lsh_buckets,
    random_rotations,
    score_entries,
    shared_attention,
)
from minigpt.models.reversible import Reversible

B, H, T, D, C = 2, 3, 11, 4, 12


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(seed=0, n=T):
    return tuple(2 * randn(B, H, n, D, seed=seed + i) for i in range(3))


def by_loops(q, k, v, may_look, scale):
    """softmax over the keys that may be looked at, one query at a time, in plain numbers."""
    out = torch.zeros_like(q)
    for b in range(q.size(0)):
        for h in range(q.size(1)):
            for t in range(q.size(2)):
                e = {s: math.exp(scale * sum(q[b, h, t, d].item() * k[b, h, s, d].item() for d in range(q.size(3))))
                     for s in range(k.size(2)) if may_look(b, h, t, s)}
                for s, weight in e.items():
                    out[b, h, t] += weight / sum(e.values()) * v[b, h, s]
    return out


def make(layer, seed=0):
    """Weights of order 1, so that no mistake hides."""
    for i, p in enumerate(layer.parameters()):
        p.data = randn(*p.shape, seed=100 * seed + i) * (0.5 if p.dim() > 1 else 1.0)
    return layer.double()


def reach(layer, x):
    """(T, T) bool: does input s change output t? By Jacobian, position by position."""
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x)          # (T, C, T, C)
    return jacobian.abs().amax(dim=(1, 3)) > 1e-12


# Local

@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("block", [1, 3, 4, 11, 50])
def test_local_attention_looks_back_within_its_block_only(block, fused):
    q, k, v = qkv()
    expected = by_loops(q, k, v, lambda b, h, t, s: s <= t and s // block == t // block, D**-0.5)
    assert torch.allclose(local_attention(q, k, v, block, fused), expected, atol=1e-12)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_block_that_spans_all_is_full_attention(rotary):
    local, full = LocalAttention(C, H, block=T, qk_norm=True), MultiHeadAttention(C, H, qk_norm=True).double()
    full.load_state_dict(make(local).state_dict())
    x, angles = randn(B, T, C), randn(T, D // 2)
    tables = (angles.cos(), angles.sin()) if rotary else None
    assert torch.allclose(local(x, rotary=tables), full(x, causal=True, rotary=tables), atol=1e-12)


# Memory-compressed

def test_compression_is_kernel_3_stride_3_with_two_zeros_in_front():
    layer = make(CompressedAttention(C, H))
    for S in (1, 2, 3, 4, 6, 7, 11):
        x, w = randn(B, S, C), layer.compress_key.weight
        slots = layer.compress(x, layer.compress_key)
        assert slots.shape == (B, math.ceil(S / 3), C)
        for j in range(slots.size(1)):
            expected = sum(x[:, 3 * j - 2 + i] @ w[:, :, i].T for i in range(3) if 3 * j - 2 + i >= 0)
            assert torch.allclose(slots[:, j], expected, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("n", [1, 4, 11])
def test_compressed_attention_sees_a_slot_once_its_last_input_is_there(n, fused):
    q, _, _ = qkv(n=n)
    _, k, v = qkv(n=math.ceil(n / 3))
    expected = by_loops(q, k, v, lambda b, h, t, j: max(3 * j - 2, 3 * j - 1, 3 * j) <= t, D**-0.5)
    assert torch.allclose(compressed_attention(q, k, v, fused), expected, atol=1e-12)


def test_compressed_layer_is_projection_convolution_norm_rotation_attention():
    layer = make(CompressedAttention(C, H, qk_norm=True))
    x, angles = randn(B, T, C), randn(T, D // 2, seed=5)

    def heads(y):
        return y.view(B, -1, H, D).transpose(1, 2)

    def normed(y, gain):
        return y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt() * gain.weight

    def turned(y, at):
        first, second = y[..., :D // 2], y[..., D // 2:]
        pairs = torch.complex(first, second) * torch.polar(torch.ones_like(angles[at]), angles[at])
        return torch.cat([pairs.real, pairs.imag], -1)

    def convolved(y, convolution):
        return nn.functional.conv1d(torch.cat([torch.zeros(B, 2, C, dtype=y.dtype), y], 1).transpose(1, 2), convolution.weight, stride=3).transpose(1, 2)

    q = turned(normed(heads(layer.query(x)), layer.query_norm), torch.arange(T))
    k = turned(normed(heads(convolved(layer.key(x), layer.compress_key)), layer.key_norm), torch.tensor([0, 3, 6, 9]))
    v = heads(convolved(layer.value(x), layer.compress_value))
    y = by_loops(q, k, v, lambda b, h, t, j: 3 * j <= t, D**-0.5)
    assert torch.allclose(layer(x, rotary=(angles.cos(), angles.sin())), layer.out(y.transpose(1, 2).reshape(B, T, C)), atol=1e-10)


def test_the_convolution_starts_as_the_mean_of_three():
    layer, x = CompressedAttention(C, H).double(), randn(B, 7, C)
    assert torch.allclose(layer.compress(x, layer.compress_value)[:, 2], x[:, 4:7].mean(1), atol=1e-6)


def test_what_each_layer_can_reach():
    x = randn(T, C)
    t, s = torch.arange(T)[:, None], torch.arange(T)[None]
    assert torch.equal(reach(make(LocalAttention(C, H, block=4)), x), (s <= t) & (s // 4 == t // 4))
    # Keys up to the last multiple of 3, and t itself as the query, which decides nothing while there is one slot only.
    assert torch.equal(reach(make(CompressedAttention(C, H)), x), (s <= t // 3 * 3) | (s == t) & (t >= 3))
    lsh = make(LSHAttention(C, H, n_buckets=4, n_rounds=3, chunk=3, generator=torch.Generator().manual_seed(1)))
    seen = reach(lsh, x)
    assert not (seen & (s > t)).any() and seen.sum() > T                                     # causal, and not everything is dark


# LSH

def test_one_bucket_and_one_chunk_is_full_shared_attention():
    q, _, v = qkv()
    k = q / q.square().sum(-1, keepdim=True).sqrt()
    expected = by_loops(q, k, v, lambda b, h, t, s: s < t or s == t == 0, 1.0)               # the first has none but itself
    assert torch.allclose(shared_attention(q, v), expected, atol=1e-12)
    for rounds, chunk in ((1, T), (1, 20), (3, T), (1, 6)):                                  # two chunks: the second sees both
        buckets = torch.zeros(B, H, rounds, T, dtype=torch.long)
        assert torch.allclose(lsh_attention(q, v, buckets, chunk), expected, atol=1e-12), (rounds, chunk)


@pytest.mark.parametrize("rounds, n_buckets, chunk", [(1, 4, 3), (2, 4, 3), (5, 4, 4), (4, 2, 2), (6, 8, 1), (2, 4, T)])
def test_rounds_together_are_one_softmax_over_all_keys_met(rounds, n_buckets, chunk):
    """Sorted, chunked, weighted and un-sorted; or: every key met in any round, once. Found here by sorting Python lists."""
    q, _, v = qkv()
    buckets = torch.randint(n_buckets, (B, H, rounds, T), generator=torch.Generator().manual_seed(3))
    met = set()
    for b in range(B):
        for h in range(H):
            for r in range(rounds):
                order = sorted(range(T), key=lambda t: (buckets[b, h, r, t].item(), t))
                for i, t in enumerate(order):
                    for j, s in enumerate(order):
                        if s < t and buckets[b, h, r, t] == buckets[b, h, r, s] and i // chunk - j // chunk in (0, 1):
                            met.add((b, h, t, s))
    lonely = {(b, h, t) for b in range(B) for h in range(H) for t in range(T)} - {m[:3] for m in met}
    k = q / q.square().sum(-1, keepdim=True).sqrt()
    expected = by_loops(q, k, v, lambda b, h, t, s: (b, h, t, s) in met or s == t and (b, h, t) in lonely, 1.0)
    assert 0 < len(lonely) < B * H * T and torch.allclose(lsh_attention(q, v, buckets, chunk), expected, atol=1e-12)
    weights = lsh_attention(q, torch.eye(T, dtype=q.dtype).expand(B, H, T, T), buckets, chunk)      # A(q, K, I): values wider than queries
    assert torch.allclose(weights @ v, expected, atol=1e-12) and torch.allclose(weights.sum(-1), torch.ones(B, H, T, dtype=q.dtype), atol=1e-12)


def test_lsh_gradient_is_that_of_full_attention_when_everything_meets():
    q, _, v = (x.requires_grad_() for x in qkv())
    upstream = randn(B, H, T, D, seed=9)
    buckets = torch.zeros(B, H, 2, T, dtype=torch.long)
    ours = torch.autograd.grad((lsh_attention(q, v, buckets, 6) * upstream).sum(), (q, v))
    theirs = torch.autograd.grad((shared_attention(q, v, fused=False) * upstream).sum(), (q, v))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs))


def test_hash_is_the_nearest_of_the_directions_and_their_opposites():
    x, rotations = randn(B, H, T, D), random_rotations(5, D, 6, torch.Generator().manual_seed(0)).double()
    buckets = lsh_buckets(x, rotations)
    assert buckets.shape == (B, H, 5, T)
    for b, h, r, t in ((0, 0, 0, 0), (1, 2, 4, 10), (0, 1, 3, 7), (1, 0, 2, 5)):
        scores = [sum(x[b, h, t, d] * rotations[r, d, i] for d in range(D)) for i in range(3)]
        scores = [s.item() for s in scores] + [-s.item() for s in scores]
        assert buckets[b, h, r, t] == scores.index(max(scores))
    assert torch.equal(lsh_buckets(3.7 * x, rotations), buckets)                             # only the direction counts


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8])
def test_one_hyperplane_is_shared_with_probability_1_minus_angle_over_pi(share):
    pair = torch.tensor([[1.0, 0.0, 0.0], [math.cos(share * math.pi), math.sin(share * math.pi), 0.0]])
    n = 20_000
    buckets = lsh_buckets(pair[None, None], random_rotations(n, 3, 2, torch.Generator().manual_seed(0)))[0, 0]     # (n, 2)
    assert abs((buckets[:, 0] == buckets[:, 1]).float().mean().item() - (1 - share)) < 5 * math.sqrt(share * (1 - share) / n)


def test_odd_buckets_are_refused():
    with pytest.raises(ValueError, match="must be 2, 4, 6, …, and n_rounds 1 or more, not 5"):
        random_rotations(2, 4, 5)
    for wrong in (dict(n_buckets=0), dict(n_buckets=-2), dict(n_rounds=0)):
        with pytest.raises(ValueError, match="1 or more, not"):
            long_gpt(GPTConfig(17, 24, 1, 2, 8), "H", **wrong)
    for block in (0, -1):
        with pytest.raises(ValueError, match="at least 1 token"):
            long_gpt(GPTConfig(17, 24, 1, 2, 8), "L", block=block)


def test_half_precision_holds_the_score_of_looking_at_oneself():
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, 1, 2, 24, 4, generator=generator)
    buckets = lsh_buckets(q, random_rotations(3, 4, 4, generator))
    wanted = lsh_attention(q, v, buckets, 8)
    torch.testing.assert_close(lsh_attention(q.half(), v.half(), buckets, 8).float(), wanted, atol=0.02, rtol=0)


def test_lsh_layer_full_and_hashed_part_only_in_what_they_meet():
    layer = make(LSHAttention(C, H, n_buckets=2, n_rounds=40, chunk=T, qk_norm=True, generator=torch.Generator().manual_seed(0)))
    x, angles = randn(B, T, C), randn(T, D // 2)
    hashed = layer(x, rotary=(angles.cos(), angles.sin()))
    layer.full = True
    full = layer(x, rotary=(angles.cos(), angles.sin()))
    assert torch.allclose(hashed[:, :2], full[:, :2], atol=1e-12) and 0 < (hashed - full).norm() / full.norm() < 0.2
    assert (layer(x) - full).norm() / full.norm() > 0.01                                     # the rotation is used


# Reversible

def reversible_pair(layers="FLM", n_layers=3, **options):
    config = GPTConfig(17, 24, n_layers=n_layers, n_heads=2, d_model=8, **options)
    models = []
    for store in (False, True):
        model = make(long_gpt(config, layers, block=5, n_buckets=4, n_rounds=2, reversible=True, generator=torch.Generator().manual_seed(0)))
        model.blocks[0].store = store
        models.append(model)
    return models, torch.randint(17, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layers, options", [("FLM", {}), ("HMH", dict(positions="rotary", norm="rms", activation="relu2", qk_norm=True, bias=False))])
def test_reversible_gradients_are_autograds(layers, options):
    (ours, theirs), tokens = reversible_pair(layers, **options)
    upstream = randn(3, 24, 17, seed=4)
    for model in (ours, theirs):
        (model(tokens) * upstream).sum().backward()
    assert torch.allclose(ours(tokens), theirs(tokens), atol=1e-12)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-7, atol=1e-9), name
        assert a.grad.abs().max() > 0, name


def test_reversible_is_the_two_streams_written_out_and_differentiates_by_finite_differences():
    config = GPTConfig(5, 4, n_layers=2, n_heads=2, d_model=4)
    blocks = [make(b, seed=i) for i, b in enumerate(GPT(config).blocks)]
    stack, x = Reversible(nn.ModuleList(blocks)), randn(1, 4, 4)
    x1, x2 = x, x
    for block in blocks:
        x1 = x1 + block.attention(block.norm1(x2), causal=True)
        x2 = x2 + block.feed_forward(block.norm2(x1))
    assert torch.allclose(stack(x), (x1 + x2) / 2, atol=1e-12)
    assert torch.autograd.gradcheck(stack, (x.clone().requires_grad_(),))
    weight = blocks[0].attention.value.weight                                                # and a parameter's, two entries of it
    (gradient,) = torch.autograd.grad(stack(x).square().sum(), weight)
    for i, j in ((0, 1), (3, 2)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[i, j] += step
                ends.append(stack(x).square().sum().item())
                weight[i, j] -= step
        assert gradient[i, j].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_a_block_that_is_run_twice_gets_both_gradients():
    config = GPTConfig(5, 4, n_layers=1, n_heads=2, d_model=4)
    block = make(GPT(config).blocks[0])
    gradients = []
    for store in (False, True):
        stack = Reversible(nn.ModuleList([block, block]), store)
        gradients.append(torch.autograd.grad((stack(randn(3, 4, 4)) * randn(3, 4, 4, seed=1)).sum(), list(stack.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(*gradients))


def test_a_frozen_parameter_stays_without_gradient():
    (model, _), tokens = reversible_pair()
    frozen = model.blocks[0].blocks[1].feed_forward.inner.weight.requires_grad_(False)
    model(tokens).sum().backward()
    assert frozen.grad is None and model.blocks[0].blocks[0].feed_forward.inner.weight.grad is not None


def test_reversible_keeps_the_same_however_many_layers_there_are():
    kept = {}
    for n_layers in (2, 6):
        models, tokens = reversible_pair("F" * n_layers, n_layers)
        kept[n_layers] = [saved_bytes(lambda: model(tokens), model.parameters()) for model in models]
    (ours_2, theirs_2), (ours_6, theirs_6) = kept[2], kept[6]
    per_layer = (theirs_6 - theirs_2) / 4
    assert per_layer > 10 * 3 * 24 * 8 * 8                                                   # more than ten (B, T, C) a layer …
    assert 0 < ours_6 == ours_2 < theirs_2


# The model

def test_each_letter_is_a_layer_and_other_letters_are_refused():
    config = GPTConfig(17, 24, n_layers=4, n_heads=2, d_model=8)
    model = long_gpt(config, "FLMH", block=5, n_buckets=4, n_rounds=2)
    assert [type(b.attention).__name__ for b in model.blocks] == ["MultiHeadAttention", "LocalAttention", "CompressedAttention", "LSHAttention"]
    assert model.blocks[1].attention.block == 5 and model.blocks[3].attention.chunk == 12 and model.blocks[3].attention.rotations.shape == (2, 4, 2)
    assert count_parameters(model) == count_parameters(GPT(config)) + 2 * 3 * 8 * 8 - (8 * 8 + 8)      # two convolutions more, one key less
    for letters in ("FLM", "FLMX", "flmh"):
        with pytest.raises(ValueError, match="one letter of F, L, M, H for each of 4 layers, not '" + letters):
            long_gpt(config, letters)
    with pytest.raises(ValueError, match="post-norm"):
        long_gpt(GPTConfig(17, 24, 1, 2, 8, post_norm=True), "L", reversible=True)


def test_all_f_is_gpt_and_the_generator_fixes_the_weights():
    config, tokens = GPTConfig(17, 24, n_layers=2, n_heads=2, d_model=8), torch.randint(17, (3, 24))
    ours, theirs = long_gpt(config, "FF", generator=torch.Generator().manual_seed(5)), GPT(config, torch.Generator().manual_seed(5))
    assert torch.equal(ours(tokens), theirs(tokens))
    for letters in ("LM", "MH"):
        one, two = (long_gpt(config, letters, block=5, n_buckets=4, n_rounds=2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one(tokens), two(tokens))


def last_changed(tokens, t):
    """The same up to t, and other tokens after it."""
    return torch.cat([tokens[:, :t + 1], (tokens[:, t + 1:] + 1 + torch.arange(tokens.size(1) - 1 - t)) % 17], dim=1)


@pytest.mark.parametrize("letters, n_buckets", [("LMLML", 4), ("HH", 2)])                    # 2 buckets: one chunk holds everything
@pytest.mark.parametrize("reversible", [False, True])
def test_a_long_gpt_is_causal(letters, n_buckets, reversible):
    config = GPTConfig.modern(17, 24, len(letters), n_heads=2, d_model=8)
    model = make(long_gpt(config, letters, block=5, n_buckets=n_buckets, n_rounds=3, reversible=reversible))
    tokens = torch.randint(17, (1, 24), generator=torch.Generator().manual_seed(0))
    for t in (0, 4, 5, 11, 22):
        before, after = model(tokens), model(last_changed(tokens, t))
        assert torch.allclose(before[:, :t + 1], after[:, :t + 1], atol=1e-10) and not torch.allclose(before[:, t + 1:], after[:, t + 1:], atol=0.1)


def test_lsh_lets_the_future_decide_who_meets_and_nothing_else():
    """Reformer's own leak: where chunks are cut depends on all tokens. No value of the future is averaged (the Jacobian above is 0)."""
    q, _, v = qkv()
    buckets = torch.randint(2, (B, H, 1, T), generator=torch.Generator().manual_seed(0))
    moved = buckets.clone()
    moved[..., -1] = 1 - moved[..., -1]                                                      # the last token in another bucket
    before, after = lsh_attention(q, v, buckets, 2)[:, :, :-1], lsh_attention(q, v, moved, 2)[:, :, :-1]
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(lsh_attention(q, v, buckets, T)[:, :, :-1], lsh_attention(q, v, moved, T)[:, :, :-1], atol=1e-12)     # one chunk: none to cut


def test_a_cache_is_refused_and_generate_works_without():
    model = long_gpt(GPTConfig(17, 24, 2, 2, 8), "LM")
    with pytest.raises(ValueError, match="no cache"):
        model(torch.zeros(1, 1, dtype=torch.long), model.new_cache())
    with pytest.raises(ValueError, match="causal"):
        model.blocks[0].attention(torch.zeros(1, 3, 8), causal=False)
    reversible = long_gpt(GPTConfig(17, 24, 2, 2, 8), "LM", reversible=True)
    with pytest.raises(ValueError, match="no cache"):
        reversible(torch.zeros(1, 1, dtype=torch.long), reversible.new_cache())
    with pytest.raises(ValueError, match="no padding on the left"):
        model(torch.zeros(1, 2, dtype=torch.long), mask=torch.tensor([[False, True]]))
    assert generate(model, torch.zeros(1, 2, dtype=torch.long), 3, use_cache=False).shape == (1, 5)


def test_score_entries_count_what_is_computed():
    n, block = 20, 6
    q = torch.zeros(1, 1, n, 4)
    assert score_entries("F", n) == n * n and score_entries("M", n) == (q @ torch.zeros(1, 1, 4, 7)).numel()
    assert score_entries("L", n, block) == n * block and score_entries("L", n, 99) == n * n
    assert score_entries("LMF", n, block) == n * (block + 7 + n)
