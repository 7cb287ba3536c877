"""Reversible layers against autograd on the same two streams, and against finite differences."""
import pytest
import torch
from torch import nn

from minigpt.models.counting import saved_bytes
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.long_attention import make_long_gpt
from minigpt.models.reversible import Reversible

MODERN = {"positions": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True,
          "bias": False}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of order 1 in float64, so that no mistake is too small to see."""
    for i, p in enumerate(module.parameters()):
        p.data = randn(*p.shape, seed=100 * seed + i) * (0.5 if p.dim() > 1 else 1.0)
    return module.double()


def reversible_and_stored(layers: str = "FLM", **options) -> list[nn.Module]:
    """The same model twice: the second lets autograd store all activations."""
    config = GPTConfig(17, 24, n_layers=len(layers), n_heads=2, d_model=8, **options)
    sizes = {"block": 5, "n_buckets": 4, "n_rounds": 2}
    models = []
    for store in (False, True):
        model = make_long_gpt(config, layers, **sizes, reversible=True, generator=seeded(0))
        model.blocks[0].store = store
        models.append(scramble(model))
    return models


def some_tokens() -> torch.Tensor:
    return torch.randint(17, (3, 24), generator=seeded(1))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, **inputs) -> None:
    tokens, upstream = some_tokens(), randn(3, 24, 17, seed=4)
    for model in (ours, theirs):
        (model(tokens, **inputs) * upstream).sum().backward()
    assert torch.allclose(ours(tokens, **inputs), theirs(tokens, **inputs), atol=1e-12)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-7, atol=1e-9), name
        assert a.grad.abs().max() > 0, name


@pytest.mark.parametrize("layers, options", [("FLM", {}), ("HMH", MODERN)])
def test_gradients_are_those_of_autograd(layers, options):
    assert_same_gradients(*reversible_and_stored(layers, **options))


def test_padding_is_not_read():
    mask = torch.arange(24) >= torch.tensor([0, 5, 11])[:, None]
    models, tokens = reversible_and_stored("FF"), some_tokens()
    assert_same_gradients(*models, mask=mask)
    other = torch.where(mask, tokens, (tokens + 1) % 17)
    before, after = (models[0](t, mask=mask)[mask] for t in (tokens, other))
    assert torch.allclose(before, after, atol=1e-12)


@pytest.fixture
def small():
    """Two blocks of GPT, and an input (1, 4, 4)."""
    blocks = GPT(GPTConfig(5, 4, n_layers=2, n_heads=2, d_model=4)).blocks
    return nn.ModuleList(scramble(block, i) for i, block in enumerate(blocks)), randn(1, 4, 4)


def test_the_result_is_the_mean_of_the_two_streams(small):
    blocks, x = small
    angles = randn(4, 1, seed=7)
    tables = (angles.cos(), angles.sin())
    x1, x2 = x, x
    for block in blocks:
        x1 = x1 + block.attention(block.norm1(x2), causal=True, rotary=tables)
        x2 = x2 + block.feed_forward(block.norm2(x1))
    assert torch.allclose(Reversible(blocks)(x, rotary=tables), (x1 + x2) / 2, atol=1e-12)


def test_the_gradient_is_the_finite_difference(small):
    blocks, x = small
    stack = Reversible(blocks)
    assert torch.autograd.gradcheck(stack, (x.clone().requires_grad_(),))
    weight = blocks[0].attention.value.weight                           # and of a parameter
    (gradient,) = torch.autograd.grad(stack(x).square().sum(), weight)
    for i, j in ((0, 1), (3, 2)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[i, j] += step
                ends.append(stack(x).square().sum().item())
                weight[i, j] -= step
        slope = (ends[0] - ends[1]) / 2e-6
        assert gradient[i, j].item() == pytest.approx(slope, rel=1e-6)


def test_a_block_that_is_used_twice_gets_both_gradients(small):
    block, x, upstream = small[0][0], randn(3, 4, 4), randn(3, 4, 4, seed=1)
    stack, gradients = Reversible(nn.ModuleList([block, block])), []
    for stack.store in (False, True):
        loss = (stack(x) * upstream).sum()
        gradients.append(torch.autograd.grad(loss, list(stack.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(*gradients))


def test_a_frozen_parameter_gets_no_gradient():
    model, _ = reversible_and_stored()
    first, second, _ = model.blocks[0].blocks
    second.feed_forward.inner.weight.requires_grad_(False)
    model(some_tokens()).sum().backward()
    assert second.feed_forward.inner.weight.grad is None
    assert first.feed_forward.inner.weight.grad is not None


def test_memory_does_not_grow_with_the_number_of_layers():
    tokens, kept = some_tokens(), {}
    for n_layers in (2, 6):
        for store, model in zip((False, True), reversible_and_stored("F" * n_layers)):
            kept[n_layers, store] = saved_bytes(lambda m=model: m(tokens), model.parameters())
    per_layer = (kept[6, True] - kept[2, True]) / 4
    assert per_layer > 10 * 3 * 24 * 8 * 8                              # ten tensors (B, T, C)
    assert 0 < kept[6, False] == kept[2, False] < kept[2, True]


def test_refusals():
    with pytest.raises(ValueError, match="post-norm"):
        Reversible(GPT(GPTConfig(17, 24, 1, 2, 8, post_norm=True)).blocks)
    model, _ = reversible_and_stored()
    with pytest.raises(ValueError, match="keep no cache"):
        model(torch.zeros(1, 1, dtype=torch.long), model.new_cache())
