"""Masked convolutions and PixelCNN against nested loops and PyTorch's convolution."""
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.pixel_cnn import (
    MaskedConvolution,
    NeighbourRegression,
    PixelCNN,
    ResidualBlock,
    pixel_mask,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scramble(model):
    """Weights of order 1 in float64, biases and places included."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=seeded(0))
    return model.double()


def test_masks_by_hand():
    before, after = [[1] * 5] * 2, [[0] * 5] * 2
    assert pixel_mask(5, "A").int().tolist() == [*before, [1, 1, 0, 0, 0], *after]
    assert pixel_mask(5, "B").int().tolist() == [*before, [1, 1, 1, 0, 0], *after]
    assert pixel_mask(1, "A").tolist() == [[False]] and pixel_mask(1, "B").tolist() == [[True]]


def test_masked_weights_have_no_gradient_and_no_effect():
    layer = scramble(MaskedConvolution("A", 2, 3, 5))
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    y = layer(x)
    y.square().sum().backward()
    hidden = ~pixel_mask(5, "A").expand_as(layer.weight)
    assert (layer.weight.grad[hidden] == 0).all() and (layer.weight.grad[~hidden] != 0).all()
    with torch.no_grad():
        layer.weight[hidden] = 100
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("kind, centre", [("A", []), ("B", [(0, 0)])])
def test_convolution_equals_nested_loops(kind, centre):
    layer = scramble(MaskedConvolution(kind, 2, 3, 3))
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    earlier = [(-1, -1), (-1, 0), (-1, 1), (0, -1), *centre]
    for c, y, u in itertools.product(range(3), range(4), range(5)):
        total = layer.bias[c].item()
        for k, (dy, du) in itertools.product(range(2), earlier):
            if 0 <= y + dy < 4 and 0 <= u + du < 5:
                total += (layer.weight[c, k, 1 + dy, 1 + du] * x[0, k, y + dy, u + du]).item()
        assert layer(x)[0, c, y, u].item() == pytest.approx(total, abs=1e-12)


def test_residual_block_by_hand():
    """x + widen(relu(look(relu(narrow(relu(x)))))) on one pixel, which meets the centre weights."""
    block, x = scramble(ResidualBlock(4)), torch.randn(20, 4, generator=seeded(5)).double()
    y = x
    for layer, centre in ((block.narrow, 0), (block.look, 1), (block.widen, 0)):
        y = y.clamp(min=0) @ layer.weight[:, :, centre, centre].T + layer.bias
    torch.testing.assert_close(block(x.view(20, 4, 1, 1)).view(20, 4), x + y)


def test_neighbour_regression_by_hand():
    """logit_k = place + bias + the weight of each earlier neighbour's level, for a 3 × 3 window."""
    model = scramble(NeighbourRegression(3, 4, 5, kernel_size=3))
    x = torch.randint(3, (1, 4, 5), generator=seeded(6))
    weight, bias = model.convolution.weight, model.convolution.bias
    for y, u, k in itertools.product(range(4), range(5), range(3)):
        total = (model.place[k, y, u] + bias[k]).item()
        for dy, du in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
            if y + dy >= 0 and 0 <= u + du < 5:
                total += weight[k, x[0, y + dy, u + du], 1 + dy, 1 + du].item()
        assert model(x)[0, y, u, k].item() == pytest.approx(total, abs=1e-12)


def test_pixel_cnn_by_hand():
    """first + place, block, ReLU, mix, ReLU, out, with PyTorch's convolution and our own mask."""
    model = scramble(PixelCNN(2, 4, 5, channels=4, n_blocks=1))
    x = torch.randint(2, (3, 4, 5), generator=seeded(7))
    mask = torch.ones(7, 7, dtype=torch.float64)
    mask[4:], mask[3, 3:] = 0, 0
    v = F.one_hot(x, 2).double().permute(0, 3, 1, 2)
    h = F.conv2d(v, model.first.weight * mask, model.first.bias, padding=3) + model.place
    h = model.blocks[0](h).clamp(min=0)
    h = F.conv2d(h, model.mix.weight, model.mix.bias).clamp(min=0)
    logits = F.conv2d(h, model.out.weight, model.out.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(model(x), logits)


@pytest.mark.parametrize("kind, kernel_size, n_seen", [("A", 7, 24), ("B", 3, 5), ("B", 1, 1)])
def test_initial_convolutions(kind, kernel_size, n_seen):
    """√(2 / inputs), for a ReLU (He et al. 2015). Masked weights have no input."""
    layer = MaskedConvolution(kind, 40, 60, kernel_size, seeded(0))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (40 * n_seen)), rel=0.1)
    assert (layer.bias == 0).all()


def test_a_new_block_is_the_identity():
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(ResidualBlock(6)(x), x)


def test_a_new_model_has_no_preference_for_a_place():
    assert (NeighbourRegression(2, 4, 5).place == 0).all() and (PixelCNN(2, 4, 5).place == 0).all()


@pytest.mark.parametrize("call, message", [
    (lambda: pixel_mask(3, "C"), "kind A"),
    (lambda: pixel_mask(4, "A"), "odd"),
    (lambda: pixel_mask(0, "A"), "odd"),
    (lambda: pixel_mask(-1, "A"), "odd"),
    (lambda: PixelCNN(2, 4, 4, channels=0), "channels must be a whole number of at least 1"),
    (lambda: PixelCNN(1, 4, 4), "levels must be at least 2"),
    (lambda: PixelCNN(2, 0, 4), "rows must be a whole number of at least 1"),
    (lambda: PixelCNN(2, 4, 0), "columns must be a whole number of at least 1"),
    (lambda: PixelCNN(2, 4, 4, n_blocks=-1), "n_blocks must be 0 or more, not -1"),
    (lambda: NeighbourRegression(1, 4, 4), "levels must be at least 2"),
    (lambda: NeighbourRegression(2, 0, 4), "rows must be a whole number of at least 1"),
    (lambda: NeighbourRegression(2, 4, 0), "columns must be a whole number of at least 1"),
    (lambda: NeighbourRegression(2, 4, 4, kernel_size=1), "hides the only pixel"),
    (lambda: NeighbourRegression(2, 4, 4, kernel_size=2), "odd"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_sizes_are_legal():
    zeros = torch.zeros(1, 1, 1, dtype=torch.long)
    assert PixelCNN(2, 1, 1, channels=2, n_blocks=1)(zeros).shape == (1, 1, 1, 2)
    assert PixelCNN(2, 1, 1, channels=1, n_blocks=0)(zeros).shape == (1, 1, 1, 2)
    assert NeighbourRegression(2, 1, 1, kernel_size=3)(zeros).shape == (1, 1, 1, 2)
