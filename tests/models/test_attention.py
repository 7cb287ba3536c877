"""Attention against nested loops and PyTorch's own layer; masks, caches and causality against the
same computation without them. The additive score's own tests are in test_seq2seq.py."""
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minigpt.models.attention import (
    AdditiveAttention,
    KVCache,
    MultiHeadAttention,
    attend,
    attention_weights,
    causal_mask,
)
from minigpt.models.positions import rotary_table

B, H, D = 2, 3, 5               # below, T and S differ from these and from each other


@pytest.fixture(autouse=True)
def double_precision():
    """Exact enough that only a mistake shows; the weights of layers are the same in every run."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(torch.float32)


def equal(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


# The definition.

def by_loops(q, k, v, may_look, bias=None, scale=None):
    """A(q, K, V), one number at a time; may_look(b, h, t, s) decides. Outputs and weights."""
    (n_batch, n_heads, T, width), S = q.shape, k.size(2)
    scale = width ** -0.5 if scale is None else scale
    out, weights = torch.zeros(*q.shape[:3], v.size(3)), torch.zeros(n_batch, n_heads, T, S)
    for b, h, t in itertools.product(range(n_batch), range(n_heads), range(T)):
        exponentials = {}
        for s in range(S):
            if may_look(b, h, t, s):
                products = [(q[b, h, t, d] * k[b, h, s, d]).item() for d in range(width)]
                added = 0.0 if bias is None else bias[h, t, s].item()
                exponentials[s] = math.exp(scale * sum(products) + added)
        for s, e in exponentials.items():
            weights[b, h, t, s] = e / sum(exponentials.values())
            out[b, h, t] += weights[b, h, t, s] * v[b, h, s]
    return out, weights


@pytest.mark.parametrize("T, S", [(4, 7), (6, 6), (1, 7)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_both_branches_are_the_definition(T, S, causal, masked, biased, scale):
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, H, S, D), torch.randn(B, H, S, 2)
    # The second row ends in padding, some of which causality does not hide.
    lengths = [S, S - 2 if T == 1 else S - T + 1]
    padding = torch.arange(S) < torch.tensor(lengths)[:, None, None, None]
    bias = torch.randn(H, T, S) if biased else None

    def may_look(b, h, t, s):
        return (not masked or s < lengths[b]) and (not causal or s <= t + S - T)

    expected, _ = by_loops(q, k, v, may_look, bias, scale)
    for fused in (False, True):
        mask = padding if masked else None
        equal(attend(q, k, v, mask, causal, bias, scale, fused=fused), expected)


def test_weights_are_the_definition_and_rows_sum_to_one():
    q, k = torch.randn(B, H, 4, D), torch.randn(B, H, 7, D)
    mask, bias = torch.rand(4, 7) < 0.6, torch.randn(H, 4, 7)
    mask[:, 2] = True                           # each query may look somewhere
    _, expected = by_loops(q, k, k, lambda b, h, t, s: mask[t, s], bias, scale=0.3)
    weights = attention_weights(q, k, mask, bias, scale=0.3)
    equal(weights, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, 4))
    assert (weights[:, :, ~mask] == 0).all()


def test_gradients_of_both_branches_agree():
    inputs = [torch.randn(B, H, n, D, requires_grad=True) for n in (4, 7, 7)]
    bias = torch.randn(H, 4, 7, requires_grad=True)
    gradients = []
    for fused in (False, True):
        loss = attend(*inputs, causal=True, bias=bias, fused=fused).square().sum()
        gradients.append(torch.autograd.grad(loss, [*inputs, bias]))
    for by_definition, by_kernel in zip(*gradients):
        equal(by_kernel, by_definition)


def test_variance_of_scores_is_one_at_every_width():
    """All pairs of ±1 vectors: the scores are read back from the logarithms of the weights."""
    for width in range(1, 7):
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=width)))
        scores = attention_weights(signs, signs).log()
        centred = scores - scores.mean(-1, keepdim=True)
        assert centred.var(correction=0).item() == pytest.approx(1, abs=1e-9)


# Masks.

def test_causal_mask_lines_up_the_last_query_with_the_last_key():
    for T, S in [(4, 4), (3, 7), (1, 5)]:
        expected = [[s <= S - T + t for s in range(S)] for t in range(T)]
        assert causal_mask(T, S).tolist() == expected


def test_more_queries_than_positions_are_refused():
    assert causal_mask(3, 3).shape == (3, 3)
    with pytest.raises(ValueError, match="4 queries cannot be the last ones of 3 positions"):
        causal_mask(4, 3)
    q, k = torch.randn(B, H, 4, D), torch.randn(B, H, 3, D)
    with pytest.raises(ValueError, match="4 queries cannot be the last ones of 3 positions"):
        attend(q, k, k, causal=True)


def test_a_query_that_may_look_nowhere():
    """0 from the kernel and NaN by the definition; the other queries are not disturbed."""
    q, k, v = torch.randn(1, 1, 2, D), torch.randn(1, 1, 3, D), torch.randn(1, 1, 3, D)
    mask = torch.tensor([[False] * 3, [True] * 3])
    kernel, definition = attend(q, k, v, mask), attend(q, k, v, mask, fused=False)
    assert (kernel[0, 0, 0] == 0).all() and definition[0, 0, 0].isnan().all()
    equal(kernel[0, 0, 1], definition[0, 0, 1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_mask_of_numbers_is_refused(fused, dtype):
    """The kernel would add a mask of floats to the scores."""
    q, mask = torch.randn(1, 1, 3, D), torch.ones(3, 3, dtype=dtype)
    with pytest.raises(ValueError, match="a mask is bool"):
        attend(q, q, q, mask, fused=fused)
    with pytest.raises(ValueError, match="a mask is bool"):
        attention_weights(q, q, mask)


# The cache.

def test_cache_returns_everything_so_far_without_copying():
    cache, k, v = KVCache(6), torch.randn(B, H, 5, D), torch.randn(B, H, 5, D)
    first, _ = cache.append(k[:, :, :2], v[:, :, :2])
    torch.testing.assert_close(first, k[:, :, :2])
    keys, values = cache.append(k[:, :, 2:], v[:, :, 2:])
    torch.testing.assert_close(keys, k)
    torch.testing.assert_close(values, v)
    assert cache.length == 5 and keys.data_ptr() == first.data_ptr()    # views of the same memory
    with pytest.raises(ValueError, match="holds 6 positions and was asked to hold 7"):
        cache.append(k[:, :, :2], v[:, :, :2])
    keys, _ = cache.append(k[:, :, :1], v[:, :, :1])    # the refusal changed nothing: one fits
    torch.testing.assert_close(keys, torch.cat([k, k[:, :, :1]], 2))


def test_cache_select_keeps_these_rows_in_this_order():
    cache, k, v = KVCache(4), torch.randn(3, H, 2, D), torch.randn(3, H, 2, D)
    cache.append(k, v)
    cache.select(torch.tensor([2, 0, 2, 1]))
    new_k, new_v = torch.randn(4, H, 1, D), torch.randn(4, H, 1, D)
    keys, values = cache.append(new_k, new_v)
    for row, old in enumerate([2, 0, 2, 1]):
        torch.testing.assert_close(keys[row], torch.cat([k[old], new_k[row]], 1))
        torch.testing.assert_close(values[row], torch.cat([v[old], new_v[row]], 1))


@pytest.mark.parametrize("chunks", [(7,), (1,) * 7, (4, 1, 2), (2, 3, 2)])
@pytest.mark.parametrize("turned", [False, True])
def test_cached_steps_are_the_full_pass(chunks, turned):
    """Queries that arrive in chunks give what they give when they arrive at once."""
    T, C = 7, 4 * H
    layer, x = MultiHeadAttention(C, H), torch.randn(B, T, C)
    cos, sin = rotary_table(T, C // H)
    full = layer(x, causal=True, rotary=(cos, sin) if turned else None)
    cache, parts, start = KVCache(T), [], 0
    with torch.no_grad():
        for n in chunks:
            now = slice(start, start + n)
            rotary = (cos[now], sin[now]) if turned else None
            parts.append(layer(x[:, now], causal=True, rotary=rotary, cache=cache))
            start += n
    equal(torch.cat(parts, 1), full)


# The layer.

def same_weights(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Copies our projections into PyTorch's layer, which stacks the first three."""
    qkv = ours.query, ours.key, ours.value
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        if ours.out.bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
            theirs.out_proj.bias.copy_(ours.out.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_is_pytorchs(bias):
    T, S, C = 4, 7, 15
    ours = MultiHeadAttention(C, H, bias=bias)
    theirs = nn.MultiheadAttention(C, H, bias=bias, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)              # PyTorch's biases start at 0 and would show nothing
    same_weights(ours, theirs)
    x, memory = torch.randn(B, T, C), torch.randn(B, S, C)
    pads = torch.tensor([[False] * S, [False] * 4 + [True] * 3])        # theirs: True is padding
    keep, pads_x = ~pads[:, None, None, :], pads[:, 2:2 + T]            # (B, 1, 1, S); (B, T)
    future = ~causal_mask(T)
    equal(ours(x), theirs(x, x, x)[0])
    equal(ours(x, memory), theirs(x, memory, memory)[0])
    equal(ours(x, memory, mask=keep), theirs(x, memory, memory, key_padding_mask=pads)[0])
    equal(ours(x, causal=True), theirs(x, x, x, attn_mask=future)[0])
    equal(ours(x, mask=keep[..., 2:2 + T], causal=True),
          theirs(x, x, x, key_padding_mask=pads_x, attn_mask=future)[0])


def test_the_default_scale_is_that_of_a_head_not_of_the_model():
    layer, x = MultiHeadAttention(12, H), torch.randn(B, 5, 12)
    q, k, v = (f(x).view(B, 5, H, 4).permute(0, 2, 1, 3)
               for f in (layer.query, layer.key, layer.value))
    weights = F.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) / 2, -1)              # √4
    equal(layer(x), layer.out((weights @ v).permute(0, 2, 1, 3).reshape(B, 5, 12)))


def test_a_head_may_have_any_width_and_scale():
    """Three heads of 4 over d_model 10, unscaled as in T5, one head at a time."""
    layer = MultiHeadAttention(10, 3, bias=False, d_head=4, scale=1.0)
    x, memory, heads = torch.randn(B, 6, 10), torch.randn(B, 7, 10), []
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        q = x @ layer.query.weight[rows].T
        k, v = (memory @ linear.weight[rows].T for linear in (layer.key, layer.value))
        heads.append((q @ k.mT).softmax(-1) @ v)
    equal(layer(x, memory), torch.cat(heads, -1) @ layer.out.weight.T)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 10 * 12


@pytest.mark.parametrize("padded", [False, True])
def test_causal_outputs_depend_on_earlier_positions_and_only_on_them(padded):
    """By autograd and by perturbation; no other position depends on a padded key."""
    T, C = 6, 4 * H
    layer, x = MultiHeadAttention(C, H, qk_norm=True), torch.randn(1, T, C)
    keep = torch.ones(T, dtype=torch.bool)
    keep[4] = not padded
    mask = keep if padded else None
    # Row 4 depends on x_4 through its query, although x_4 is hidden as a key.
    depends = torch.tensor(
        [[s <= t and (bool(keep[s]) or s == t) for s in range(T)] for t in range(T)])

    def attended(row):
        return layer(row[None], mask=mask, causal=True)[0]

    jacobian = torch.autograd.functional.jacobian(attended, x[0])       # (T, C, T, C)
    assert torch.equal(jacobian.norm(dim=(1, 3)) != 0, depends)
    with torch.no_grad():
        before = attended(x[0])
        for s in range(T):
            changed = x[0].clone()
            changed[s] += torch.randn(C)
            moved = (attended(changed) - before).abs().amax(dim=1)
            assert torch.equal(moved != 0, depends[:, s])


def test_unmasked_attention_depends_on_everything():
    layer = MultiHeadAttention(12, H)
    jacobian = torch.autograd.functional.jacobian(
        lambda row: layer(row[None])[0], torch.randn(4, 12))
    assert (jacobian.norm(dim=(1, 3)) > 0).all()


def test_without_positions_permuted_inputs_give_permuted_outputs():
    layer, x = MultiHeadAttention(12, H), torch.randn(1, 4, 12)
    orders = torch.tensor(list(itertools.permutations(range(4))))       # (24, 4)
    equal(layer(x[0][orders]), layer(x)[0][orders])


def test_qk_norm_bounds_the_scores_and_removes_lengths(monkeypatch):
    """|q|² = |k|² = D after the norm, so |q·k|/√D ≤ √D, with equality where k is parallel to q."""
    T, C = 4, 5 * H
    seen = {}
    monkeypatch.setattr("minigpt.models.attention.attend",
                        lambda q, k, v, *rest: seen.update(q=q, k=k) or v)
    layer = MultiHeadAttention(C, H, qk_norm=True)
    layer.key.load_state_dict(layer.query.state_dict())         # each key equals its own query
    layer(100 * torch.randn(B, T, C))
    scores = seen["q"] @ seen["k"].mT / math.sqrt(5)
    equal(seen["q"].square().sum(-1), torch.full((B, H, T), 5.0), atol=1e-6)
    assert scores.abs().max() <= math.sqrt(5) + 1e-6
    equal(scores.diagonal(dim1=-2, dim2=-1), torch.full((B, H, T), math.sqrt(5)), atol=1e-6)
    monkeypatch.undo()
    x = 100 * torch.randn(B, T, C)
    plain = MultiHeadAttention(C, H, bias=False, qk_norm=True)
    # Longer inputs give the same weights, and values that are longer by as much.
    torch.testing.assert_close(plain(3 * x), 3 * plain(x), atol=1e-6, rtol=1e-6)


def test_rotary_and_qk_norm_in_a_layer():
    """Queries and keys over their root mean square, times their gains, then turned as complex
    numbers, one head and one position at a time."""
    T, C, half = 4, 6 * H, 3
    layer, x = MultiHeadAttention(C, H, qk_norm=True), torch.randn(B, T, C)
    nn.init.normal_(layer.query_norm.weight)
    nn.init.normal_(layer.key_norm.weight)
    turns = torch.tensor([[t * 10_000 ** (-i / half) for i in range(half)] for t in range(T)])

    def ready(projected, gain):
        """The T vectors of one head, (T, 6) -> (T, 3) complex."""
        vectors = projected / (projected.square().sum(-1, keepdim=True) / 6).sqrt() * gain
        points = torch.complex(vectors[:, :half], vectors[:, half:])
        return points * torch.polar(torch.ones(T, half), turns)

    expected = torch.zeros(B, T, C)
    for b, h in itertools.product(range(B), range(H)):
        part = slice(6 * h, 6 * h + 6)
        q = ready(layer.query(x[b])[:, part], layer.query_norm.weight)
        k = ready(layer.key(x[b])[:, part], layer.key_norm.weight)
        weights = ((q @ k.conj().T).real / math.sqrt(6)).softmax(-1)
        expected[b, :, part] = weights @ layer.value(x[b])[:, part]
    equal(layer(x, rotary=rotary_table(T, 6)), layer.out(expected))


@pytest.mark.parametrize("sizes, message", [
    (dict(d_model=10, n_heads=3), "d_model 10 is not a multiple of n_heads 3; try d_model 12"),
    (dict(d_model=8, n_heads=0), "n_heads must be a whole number of at least 1, not 0"),
    (dict(d_model=0, n_heads=2), "d_model must be a whole number of at least 1, not 0"),
    (dict(d_model=8, n_heads=2, d_head=0), "d_head must be a whole number of at least 1, not 0"),
    (dict(d_model=8.0, n_heads=2), "d_model must be a whole number of at least 1, not 8.0"),
])
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**sizes)


def test_the_last_legal_sizes():
    for sizes in (dict(d_model=1, n_heads=1), dict(d_model=4, n_heads=4),
                  dict(d_model=10, n_heads=3, d_head=1)):
        x = torch.randn(B, 4, sizes["d_model"])
        assert MultiHeadAttention(**sizes)(x).shape == x.shape


# Additive attention: what it refuses.

def test_additive_attention_refuses_masks_that_cannot_be_right():
    layer, s, h = AdditiveAttention(4, 6, 5), torch.randn(B, 3, 4), torch.randn(B, 7, 6)
    mask = torch.zeros(B, 7, dtype=torch.bool)
    mask[0, 2] = mask[1, 6] = True              # one annotation in each row: all weight is on it
    average, weights = layer(s, h, mask)
    equal(average, h[torch.arange(B), [2, 6]][:, None].expand(B, 3, 6))
    equal(weights, mask[:, None].expand(B, 3, 7).double())
    with pytest.raises(ValueError, match="row 0 of the mask is False everywhere"):
        layer(s, h, mask & (torch.arange(7) > 2))
    with pytest.raises(ValueError, match="a mask is bool"):
        layer(s, h, mask.long())
    with pytest.raises(ValueError, match=r"the mask is \(2, 6\) where \(2, 7\) is needed"):
        layer(s, h, mask[:, :6])


def test_additive_attention_refuses_sizes_below_one():
    AdditiveAttention(1, 1, 1)
    for name in ("d_query", "d_key", "d_attention"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, not 0"):
            AdditiveAttention(**dict(d_query=1, d_key=1, d_attention=1) | {name: 0})
