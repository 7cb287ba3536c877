"""Local and compressed attention against loops over pairs, and all layers against Jacobians."""
import itertools
import math

import pytest
import torch
from torch import nn

from minigpt.generation import generate
from minigpt.models.attention import MultiHeadAttention
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.long_attention import (
    CompressedAttention,
    LocalAttention,
    LSHAttention,
    compressed_attention,
    local_attention,
    make_long_gpt,
    score_entries,
)

B, H, T, D, C = 2, 3, 11, 4, 12
V = 17


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def heads(n: int, seed: int) -> torch.Tensor:
    return 2 * randn(B, H, n, D, seed=seed)


def by_loops(q, k, v, may_look):
    """softmax(q·k/√D) over the keys where may_look(t, s), one query at a time in plain numbers."""
    out = torch.zeros_like(q)
    for b, h, t in itertools.product(range(B), range(H), range(q.size(2))):
        weights = {
            s: math.exp(q[b, h, t].dot(k[b, h, s]).item() / math.sqrt(D))
            for s in range(k.size(2)) if may_look(t, s)
        }
        for s, weight in weights.items():
            out[b, h, t] += weight / sum(weights.values()) * v[b, h, s]
    return out


def scramble(module: nn.Module) -> nn.Module:
    """Weights of order 1 in float64, so that no mistake is too small to see."""
    for i, p in enumerate(module.parameters()):
        p.data = randn(*p.shape, seed=i) * (0.5 if p.dim() > 1 else 1.0)
    return module.double()


def reach(layer, x):
    """(T, T) bool: whether output t depends on input s, by the Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x)   # (T, C, T, C)
    return jacobian.abs().amax(dim=(1, 3)) > 1e-12


# ── Local ───────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("block", [1, 3, 4, 11, 50])
def test_local_attention_looks_back_within_its_block_only(block, fused):
    q, k, v = heads(T, 0), heads(T, 1), heads(T, 2)
    expected = by_loops(q, k, v, lambda t, s: s <= t and s // block == t // block)
    assert torch.allclose(local_attention(q, k, v, block, fused), expected, atol=1e-12)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_block_that_holds_all_tokens_gives_full_attention(rotary):
    local = scramble(LocalAttention(C, H, block=T, qk_norm=True))
    full = MultiHeadAttention(C, H, qk_norm=True).double()
    full.load_state_dict(local.state_dict())
    x, angles = randn(B, T, C), randn(T, D // 2)
    tables = (angles.cos(), angles.sin()) if rotary else None
    expected = full(x, causal=True, rotary=tables)
    assert torch.allclose(local(x, rotary=tables), expected, atol=1e-12)


# ── Memory-compressed ───────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 11])
def test_compression_has_kernel_3_stride_3_and_two_zeros_in_front(n):
    layer = scramble(CompressedAttention(C, H))
    x, w = randn(B, n, C), layer.compress_key.weight
    slots = layer.compress(x, layer.compress_key)
    assert slots.shape == (B, math.ceil(n / 3), C)
    for j in range(slots.size(1)):
        inputs = [(i, 3 * j - 2 + i) for i in range(3) if 3 * j - 2 + i >= 0]
        expected = sum(x[:, at] @ w[:, :, i].T for i, at in inputs)
        assert torch.allclose(slots[:, j], expected, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("n", [1, 4, 11])
def test_a_query_looks_at_a_slot_whose_inputs_are_not_later(n, fused):
    q, k, v = heads(n, 0), heads(math.ceil(n / 3), 1), heads(math.ceil(n / 3), 2)
    expected = by_loops(q, k, v, lambda t, j: max(3 * j - 2, 3 * j - 1, 3 * j) <= t)
    assert torch.allclose(compressed_attention(q, k, v, fused), expected, atol=1e-12)


def split(y):
    return y.view(B, -1, H, D).transpose(1, 2)


def normed(y, norm):
    mean_square = y.square().mean(-1, keepdim=True)
    return y / (mean_square + torch.finfo(torch.float64).eps).sqrt() * norm.weight


def turned(y, angles):
    """Rotary positions, by complex numbers."""
    pairs = torch.complex(y[..., :D // 2], y[..., D // 2:])
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def convolved(y, convolution):
    padded = torch.cat([torch.zeros(B, 2, C, dtype=y.dtype), y], 1).transpose(1, 2)
    return nn.functional.conv1d(padded, convolution.weight, stride=3).transpose(1, 2)


def test_compressed_layer_projects_convolves_normalises_and_rotates():
    layer = scramble(CompressedAttention(C, H, qk_norm=True))
    x, angles = randn(B, T, C), randn(T, D // 2, seed=5)
    q = turned(normed(split(layer.query(x)), layer.query_norm), angles)
    keys = convolved(layer.key(x), layer.compress_key)
    k = turned(normed(split(keys), layer.key_norm), angles[[0, 3, 6, 9]])
    v = split(convolved(layer.value(x), layer.compress_value))
    y = by_loops(q, k, v, lambda t, j: 3 * j <= t)
    expected = layer.out(y.transpose(1, 2).reshape(B, T, C))
    assert torch.allclose(layer(x, rotary=(angles.cos(), angles.sin())), expected, atol=1e-10)


def test_the_convolution_starts_as_the_mean_of_three():
    layer, x = CompressedAttention(C, H).double(), randn(B, 7, C)
    for convolution in (layer.compress_key, layer.compress_value):
        slots = layer.compress(x, convolution)
        assert torch.allclose(slots[:, 2], x[:, 4:7].mean(1), atol=1e-6)


# ── All three layers ────────────────────────────────────────────────────────────────────────────

def test_what_each_layer_reads():
    x = randn(T, C)
    t, s = torch.arange(T)[:, None], torch.arange(T)[None]
    local = scramble(LocalAttention(C, H, block=4))
    assert torch.equal(reach(local, x), (s <= t) & (s // 4 == t // 4))
    # Keys up to the last multiple of 3, and t itself as the query. While there is one slot only,
    # the query has no effect.
    compressed = scramble(CompressedAttention(C, H))
    assert torch.equal(reach(compressed, x), (s <= t // 3 * 3) | (s == t) & (t >= 3))
    lsh = scramble(LSHAttention(C, H, n_buckets=4, n_rounds=3, chunk=3, generator=seeded(1)))
    seen = reach(lsh, x)
    assert not (seen & (s > t)).any() and seen.sum() > T                # causal, and not only s = t


def test_hashed_and_full_layer_differ_only_in_the_keys_met():
    layer = scramble(LSHAttention(
        C, H, n_buckets=2, n_rounds=40, chunk=T, qk_norm=True, generator=seeded(0)
    ))
    x, angles = randn(B, T, C), randn(T, D // 2)
    tables = (angles.cos(), angles.sin())
    hashed = layer(x, rotary=tables)
    layer.full = True
    full = layer(x, rotary=tables)
    assert torch.allclose(hashed[:, :2], full[:, :2], atol=1e-12)       # there is no other key
    assert 0 < (hashed - full).norm() / full.norm() < 0.2
    assert (layer(x) - full).norm() / full.norm() > 0.01                # the rotation has an effect


@pytest.mark.parametrize("layer", [
    LocalAttention(C, H, block=4), CompressedAttention(C, H),
    LSHAttention(C, H, n_buckets=2, n_rounds=1, chunk=4),
])
def test_layers_refuse_what_they_cannot_do(layer):
    x = torch.zeros(B, 1, C)
    assert layer(x).shape == (B, 1, C)
    for options in ({"causal": False}, {"mask": torch.ones(B, 1, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="causal, keeps no cache and knows no padding"):
            layer(x, **options)


def test_sizes_are_refused():
    q = torch.zeros(B, H, T, D)
    for make in (lambda n: local_attention(q, q, q, n), lambda n: LocalAttention(C, H, block=n)):
        make(1)
        for block in (0, -1):
            with pytest.raises(ValueError, match="block must be a whole number of at least 1"):
                make(block)
    with pytest.raises(ValueError, match="n_tokens must be a whole number of at least 1, not 0"):
        local_attention(*(q[:, :, :0],) * 3, 4)


# ── The model ───────────────────────────────────────────────────────────────────────────────────

SMALL = {"block": 5, "n_buckets": 4, "n_rounds": 2}


def test_each_letter_is_a_layer():
    config = GPTConfig(V, 24, n_layers=4, n_heads=2, d_model=8)
    model = make_long_gpt(config, "FLMH", **SMALL)
    full, local, compressed, hashed = (block.attention for block in model.blocks)
    assert type(full) is MultiHeadAttention and type(compressed) is CompressedAttention
    assert type(local) is LocalAttention and local.block == 5
    assert type(hashed) is LSHAttention and hashed.chunk == 12          # 2 · 24 / 4
    assert hashed.rotations.shape == (2, 4, 2)
    convolutions, key = 2 * 3 * 8 * 8, 8 * 8 + 8                        # M has more, H has less
    assert count_parameters(model) == count_parameters(GPT(config)) + convolutions - key


def test_layers_take_bias_and_qk_norm_from_the_configuration():
    config = GPTConfig(V, 24, n_layers=3, n_heads=2, d_model=8, bias=False, qk_norm=True)
    for block in make_long_gpt(config, "LMH", **SMALL).blocks:
        assert block.attention.query.bias is None
        assert isinstance(block.attention.query_norm, nn.RMSNorm)


def test_letters_are_refused():
    config = GPTConfig(V, 24, n_layers=4, n_heads=2, d_model=8)
    for letters in ("FLM", "FLMX", "flmh", "FLMHF", ""):
        with pytest.raises(ValueError, match=f"each of 4 layers, not '{letters}'"):
            make_long_gpt(config, letters)


@pytest.mark.parametrize("letter, wrong, words", [
    ("H", dict(n_buckets=0), "n_buckets must be 2, 4, 6"),
    ("H", dict(n_buckets=-2), "n_buckets must be 2, 4, 6"),
    ("H", dict(n_buckets=3), "n_buckets must be 2, 4, 6"),
    ("H", dict(n_rounds=0), "n_rounds 1 or more, not 32 and 0"),
    ("L", dict(block=0), "block must be a whole number of at least 1"),
])
def test_sizes_of_a_layer_are_refused(letter, wrong, words):
    with pytest.raises(ValueError, match=words):
        make_long_gpt(GPTConfig(V, 24, 1, 2, 8), letter, **wrong)


def test_a_post_norm_model_cannot_be_reversible():
    with pytest.raises(ValueError, match="post-norm"):
        make_long_gpt(GPTConfig(V, 24, 1, 2, 8, post_norm=True), "L", reversible=True)


def test_all_f_is_gpt():
    config, tokens = GPTConfig(V, 24, n_layers=2, n_heads=2, d_model=8), torch.arange(V)[None]
    ours, theirs = make_long_gpt(config, "FF", generator=seeded(5)), GPT(config, seeded(5))
    assert torch.equal(ours(tokens), theirs(tokens))


@pytest.mark.parametrize("letters", ["LM", "MH"])
def test_a_generator_fixes_the_weights(letters):
    config, tokens = GPTConfig(V, 24, n_layers=2, n_heads=2, d_model=8), torch.arange(V)[None]
    one, two = (make_long_gpt(config, letters, **SMALL, generator=seeded(5)) for _ in range(2))
    assert torch.equal(one(tokens), two(tokens))


def change_after(tokens, t):
    """The same tokens up to t, and others after it."""
    later = torch.arange(tokens.size(1) - 1 - t)
    return torch.cat([tokens[:, :t + 1], (tokens[:, t + 1:] + 1 + later) % V], dim=1)


@pytest.mark.parametrize("letters, n_buckets", [("LMLML", 4), ("HH", 2)])       # 2: a single chunk
@pytest.mark.parametrize("reversible", [False, True])
def test_a_long_gpt_is_causal(letters, n_buckets, reversible):
    config = GPTConfig.modern(V, 24, len(letters), n_heads=2, d_model=8)
    sizes = {"block": 5, "n_buckets": n_buckets, "n_rounds": 3}
    model = scramble(make_long_gpt(config, letters, **sizes, reversible=reversible))
    tokens = torch.randint(V, (1, 24), generator=seeded(0))
    before = model(tokens)
    for t in (0, 4, 5, 11, 22):
        after = model(change_after(tokens, t))
        assert torch.allclose(before[:, :t + 1], after[:, :t + 1], atol=1e-10)
        assert not torch.allclose(before[:, t + 1:], after[:, t + 1:], atol=0.1)


def test_a_cache_is_refused_and_generate_works_without():
    model, token = make_long_gpt(GPTConfig(V, 24, 2, 2, 8), "LM"), torch.zeros(1, 2).long()
    with pytest.raises(ValueError, match="no cache"):
        model(token, model.new_cache())
    with pytest.raises(ValueError, match="no padding"):
        model(token, mask=torch.tensor([[False, True]]))
    assert generate(model, token, 3, use_cache=False).shape == (1, 5)


# ── Costs ───────────────────────────────────────────────────────────────────────────────────────

def test_score_entries_counts_what_is_computed():
    n, block = 20, 6
    q, slots = torch.zeros(1, 1, n, 4), torch.zeros(1, 1, 4, 7)
    assert score_entries("F", n) == n * n
    assert score_entries("M", n) == (q @ slots).numel()
    assert score_entries("L", n, block) == n * block and score_entries("L", n, 99) == n * n
    assert score_entries("LMF", n, block) == n * (block + 7 + n)
