"""Attention against nested loops and PyTorch's own layer; masks, caches and causality against doing without."""
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minigpt.models.attention import (
    KVCache,
    MultiHeadAttention,
    attend,
    attention_weights,
    causal_mask,
)
from minigpt.models.positions import rotary_table

B, H, D = 2, 3, 5                                                       # T and S differ from these and from each other below


@pytest.fixture(autouse=True)
def double_precision():
    """Exact enough that only a mistake shows; the weights of layers are the same in every run."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(torch.float32)


def by_loops(q, k, v, may_look, bias=None, scale=None):
    """A(q, K, V) a number at a time; may_look(b, h, t, s) decides. Returns outputs and weights as tensors."""
    (n_batch, n_heads, T, width), S = q.shape, k.size(2)
    out, weights = torch.zeros(n_batch, n_heads, T, v.size(3)), torch.zeros(n_batch, n_heads, T, S)
    for b, h, t in itertools.product(range(n_batch), range(n_heads), range(T)):
        exponentials = {}
        for s in range(S):
            if may_look(b, h, t, s):
                score = sum(q[b, h, t, d].item() * k[b, h, s, d].item() for d in range(width))
                score *= width ** -0.5 if scale is None else scale
                exponentials[s] = math.exp(score + (0.0 if bias is None else bias[h, t, s].item()))
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
    lengths = [S, S - 2]                                                # the second row ends in two pads, unless causality hides them
    if T > 1:
        lengths[1] -= T - 3                                             # so that padding bites where causality does not
    mask = torch.arange(S)[None, None, None, :] < torch.tensor(lengths)[:, None, None, None] if masked else None
    bias = torch.randn(H, T, S) if biased else None

    def may_look(b, h, t, s):
        return (not masked or s < lengths[b]) and (not causal or s <= t + S - T)

    expected, _ = by_loops(q, k, v, may_look, bias, scale)
    for fused in (False, True):
        torch.testing.assert_close(attend(q, k, v, mask, causal, bias, scale, fused=fused), expected, atol=1e-12, rtol=0)


def test_weights_are_the_definition_and_rows_sum_to_one():
    q, k = torch.randn(B, H, 4, D), torch.randn(B, H, 7, D)
    mask, bias = torch.rand(4, 7) < 0.6, torch.randn(H, 4, 7)
    mask[:, 2] = True                                                   # nobody is left with nothing to look at
    _, expected = by_loops(q, k, k, lambda b, h, t, s: mask[t, s], bias, scale=0.3)
    weights = attention_weights(q, k, mask, bias, scale=0.3)
    torch.testing.assert_close(weights, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, 4))
    assert (weights[:, :, ~mask] == 0).all()


def test_gradients_of_both_branches_agree():
    inputs = [torch.randn(B, H, n, D, requires_grad=True) for n in (4, 7, 7)]
    bias = torch.randn(H, 4, 7, requires_grad=True)
    definition, kernel = (attend(*inputs, causal=True, bias=bias, fused=fused).square().sum() for fused in (False, True))
    for a, b in zip(torch.autograd.grad(definition, [*inputs, bias]), torch.autograd.grad(kernel, [*inputs, bias])):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_causal_mask_lines_up_the_last_query_with_the_last_key():
    for T, S in [(4, 4), (3, 7), (1, 5)]:
        assert causal_mask(T, S).tolist() == [[s <= S - T + t for s in range(S)] for t in range(T)]


def same_weights(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Copies our projections into PyTorch's layer, which stacks the three."""
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        if ours.out.bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            theirs.out_proj.bias.copy_(ours.out.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_is_torchs(bias):
    T, S, C = 4, 7, 15
    ours, theirs = MultiHeadAttention(C, H, bias=bias), nn.MultiheadAttention(C, H, bias=bias, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)                                      # PyTorch starts biases at 0, where they would show nothing
    same_weights(ours, theirs)
    x, memory = torch.randn(B, T, C), torch.randn(B, S, C)
    pads = torch.tensor([[False] * S, [False] * 4 + [True] * 3])        # theirs: True is padding; ours: True counts
    keep = ~pads[:, None, None, :]                                      # (B, 1, 1, S)
    future = ~causal_mask(T)
    for ours_out, theirs_out in [
        (ours(x), theirs(x, x, x)[0]),
        (ours(x, memory), theirs(x, memory, memory)[0]),
        (ours(x, memory, mask=keep), theirs(x, memory, memory, key_padding_mask=pads)[0]),
        (ours(x, causal=True), theirs(x, x, x, attn_mask=future)[0]),
        (ours(x, mask=keep[..., 2 : 2 + T], causal=True), theirs(x, x, x, key_padding_mask=pads[:, 2 : 2 + T], attn_mask=future)[0]),
    ]:
        torch.testing.assert_close(ours_out, theirs_out, atol=1e-12, rtol=0)


def test_a_head_may_have_any_width_and_scale():
    """Three heads of 4 over d_model 10, unscaled as in T5, one head at a time."""
    layer, x, memory = MultiHeadAttention(10, 3, bias=False, d_head=4, scale=1.0), torch.randn(B, 6, 10), torch.randn(B, 7, 10)
    heads = []
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        q, k, v = x @ layer.query.weight[rows].T, memory @ layer.key.weight[rows].T, memory @ layer.value.weight[rows].T
        heads.append((q @ k.mT).softmax(-1) @ v)
    torch.testing.assert_close(layer(x, memory), torch.cat(heads, -1) @ layer.out.weight.T, atol=1e-12, rtol=0)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 10 * 12


def test_d_model_must_divide_into_heads():
    with pytest.raises(ValueError, match=r"d_model 10 is not a multiple of n_heads 3; try d_model 12"):
        MultiHeadAttention(10, 3)


def test_cache_returns_everything_so_far_without_copying():
    cache, k, v = KVCache(6), torch.randn(B, H, 5, D), torch.randn(B, H, 5, D)
    first, _ = cache.append(k[:, :, :2], v[:, :, :2])
    torch.testing.assert_close(first, k[:, :, :2])
    keys, values = cache.append(k[:, :, 2:], v[:, :, 2:])
    torch.testing.assert_close(keys, k)
    torch.testing.assert_close(values, v)
    assert cache.length == 5 and keys.data_ptr() == first.data_ptr()    # views of one block of memory
    with pytest.raises(ValueError, match="holds 6 positions and was asked to hold 7"):
        cache.append(k[:, :, :2], v[:, :, :2])
    keys, _ = cache.append(k[:, :, :1], v[:, :, :1])                    # what was refused left no trace; the last place can be used
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
    """Queries that arrive in chunks see the keys before them exactly as if all had come at once."""
    T, C = 7, 4 * H
    layer, x = MultiHeadAttention(C, H), torch.randn(B, T, C)
    cos, sin = rotary_table(T, C // H)
    full = layer(x, causal=True, rotary=(cos, sin) if turned else None)
    cache, parts, start = KVCache(T), [], 0
    with torch.no_grad():
        for n in chunks:
            now = slice(start, start + n)
            parts.append(layer(x[:, now], causal=True, rotary=(cos[now], sin[now]) if turned else None, cache=cache))
            start += n
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-12, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_causal_outputs_move_with_the_past_and_only_with_it(padded):
    """By autograd and by perturbation; with padding, a padded key moves nobody through attention."""
    T, C = 6, 4 * H
    layer, x = MultiHeadAttention(C, H, qk_norm=True), torch.randn(1, T, C)
    keep = torch.tensor([True] * 4 + [False, True]) if padded else torch.ones(T, dtype=torch.bool)
    mask = keep if padded else None
    # Row 4 still depends on x_4 through its query, though nobody sees x_4 as a key.
    depends = torch.tensor([[s <= t and (bool(keep[s]) or s == t) for s in range(T)] for t in range(T)])
    jacobian = torch.autograd.functional.jacobian(lambda row: layer(row[None], mask=mask, causal=True)[0], x[0])    # (T, C, T, C)
    assert torch.equal(jacobian.norm(dim=(1, 3)) != 0, depends)
    with torch.no_grad():
        before = layer(x, mask=mask, causal=True)
        for s in range(T):
            changed = x.clone()
            changed[:, s] += torch.randn(C)
            moved = (layer(changed, mask=mask, causal=True) - before).abs().amax(dim=(0, 2))
            assert torch.equal(moved != 0, depends[:, s])


def test_unmasked_attention_depends_on_everything():
    layer = MultiHeadAttention(12, H)
    jacobian = torch.autograd.functional.jacobian(lambda row: layer(row[None])[0], torch.randn(4, 12))
    assert (jacobian.norm(dim=(1, 3)) > 0).all()


def test_without_positions_shuffling_words_shuffles_outputs():
    layer, x = MultiHeadAttention(12, H), torch.randn(1, 4, 12)
    orders = torch.tensor(list(itertools.permutations(range(4))))       # (24, 4)
    torch.testing.assert_close(layer(x[0][orders]), layer(x)[0][orders], atol=1e-12, rtol=0)


def test_qk_norm_bounds_the_scores_and_forgets_lengths(monkeypatch):
    """|q|² = |k|² = D after the norm, so |q·k|/√D ≤ √D, reached when k points where q does."""
    T, C = 4, 5 * H
    seen = {}
    monkeypatch.setattr("minigpt.models.attention.attend", lambda q, k, v, *rest: seen.update(q=q, k=k) or v)
    layer = MultiHeadAttention(C, H, qk_norm=True)
    layer.key.load_state_dict(layer.query.state_dict())                 # every key equals its own query
    layer(100 * torch.randn(B, T, C))
    scores = seen["q"] @ seen["k"].mT / math.sqrt(5)
    torch.testing.assert_close(seen["q"].square().sum(-1), torch.full((B, H, T), 5.0), atol=1e-6, rtol=0)
    assert scores.abs().max() <= math.sqrt(5) + 1e-6
    torch.testing.assert_close(scores.diagonal(dim1=-2, dim2=-1), torch.full((B, H, T), math.sqrt(5)), atol=1e-6, rtol=0)
    monkeypatch.undo()
    x = 100 * torch.randn(B, T, C)
    plain = MultiHeadAttention(C, H, bias=False, qk_norm=True)
    torch.testing.assert_close(plain(3 * x), 3 * plain(x), atol=1e-6, rtol=1e-6)    # scaled words: same weights, scaled values


def test_rotary_and_qk_norm_in_a_layer():
    """Queries and keys divided by their root mean square, times their gains, then turned as complex numbers, one head and one position at a time."""
    T, C, half = 4, 6 * H, 3
    layer, x = MultiHeadAttention(C, H, qk_norm=True), torch.randn(B, T, C)
    nn.init.normal_(layer.query_norm.weight), nn.init.normal_(layer.key_norm.weight)

    def ready(projected, gain):
        """One head's row of T vectors (T, 6) -> (T, 3) complex."""
        vectors = projected / (projected.square().sum(-1, keepdim=True) / 6).sqrt() * gain
        turns = torch.tensor([[t * 10_000 ** (-i / half) for i in range(half)] for t in range(T)])
        return torch.complex(vectors[:, :half], vectors[:, half:]) * torch.polar(torch.ones(T, half), turns)

    expected = torch.zeros(B, T, C)
    for b, h in itertools.product(range(B), range(H)):
        part = slice(6 * h, 6 * h + 6)
        q, k = ready(layer.query(x[b])[:, part], layer.query_norm.weight), ready(layer.key(x[b])[:, part], layer.key_norm.weight)
        scores = (q @ k.conj().T).real / math.sqrt(6)
        expected[b, :, part] = scores.softmax(-1) @ layer.value(x[b])[:, part]
    torch.testing.assert_close(layer(x, rotary=rotary_table(T, 6)), layer.out(expected), atol=1e-12, rtol=0)


def test_a_query_that_may_look_nowhere_gets_zeros_from_the_kernel_and_no_number_from_the_definition():
    q, k, v = torch.randn(1, 1, 2, D), torch.randn(1, 1, 3, D), torch.randn(1, 1, 3, D)
    mask = torch.tensor([[False] * 3, [True] * 3])
    assert (attend(q, k, v, mask)[0, 0, 0] == 0).all()
    assert attend(q, k, v, mask, fused=False)[0, 0, 0].isnan().all()


def test_variance_of_scores_is_one_at_every_width():
    """All pairs of ±1 vectors: the library's scores, read back from the logs of its weights."""
    for width in range(1, 7):
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=width)))
        scores = attention_weights(signs, signs).log()
        assert (scores - scores.mean(-1, keepdim=True)).var(correction=0).item() == pytest.approx(1, abs=1e-9)


def test_the_default_scale_of_a_layer_is_that_of_a_head_not_of_the_model():
    layer, x = MultiHeadAttention(12, H), torch.randn(B, 5, 12)
    q, k, v = (f(x).view(B, 5, H, 4).permute(0, 2, 1, 3) for f in (layer.query, layer.key, layer.value))
    expected = F.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) / 2, -1) @ v         # √4
    torch.testing.assert_close(layer(x), layer.out(expected.permute(0, 2, 1, 3).reshape(B, 5, 12)), atol=1e-12, rtol=0)


def test_no_head_is_refused():
    with pytest.raises(ValueError, match="n_heads must be a whole number of at least 1, not 0"):
        MultiHeadAttention(8, 0)
