"""The diagonal LSTM and PixelRNN against one pixel, one unit and one gate at a time."""
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.pixel_rnn import DiagonalLSTM, PixelRNN, skew, unskew
from minigpt.models.pixels import sample

EXACT = {"atol": 1e-12, "rtol": 0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scramble(model):
    """Weights of order 1 in float64, biases included."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=seeded(0))
    return model.double()


def inputs(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def by_pixel(lstm: DiagonalLSTM, v: torch.Tensor) -> torch.Tensor:
    """The states (Y, X, D) of one image of inputs (Y, X, C), in raster order."""
    W, U, b = (p.tolist() for p in (lstm.W, lstm.U, lstm.b))
    D, (rows, columns, _) = len(b) // 4, v.shape
    zeros, h, c = [0.0] * D, {}, {}
    for y, x in itertools.product(range(rows), range(columns)):
        left, above = h.get((y, x - 1), zeros), h.get((y - 1, x), zeros)
        memory = c.get((y, x - 1), zeros)
        z = [b[k] + dot(W[k], v[y, x].tolist()) + dot(U[k], left + above) for k in range(4 * D)]
        i, f, o = ([sigmoid(z[k * D + d]) for d in range(D)] for k in range(3))
        g = [math.tanh(z[3 * D + d]) for d in range(D)]
        c[y, x] = [f[d] * memory[d] + i[d] * g[d] for d in range(D)]
        h[y, x] = [o[d] * math.tanh(c[y, x][d]) for d in range(D)]
    states = [[h[y, x] for x in range(columns)] for y in range(rows)]
    return torch.tensor(states, dtype=torch.float64)


@pytest.mark.parametrize("rows, columns", [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
def test_diagonals_equal_nested_loops(rows, columns):
    lstm, x = scramble(DiagonalLSTM(2, 3)), inputs(2, rows, columns, 2, seed=3)
    expected = torch.stack([by_pixel(lstm, image) for image in x])
    torch.testing.assert_close(lstm(x), expected, **EXACT)


def test_pixel_rnn_by_hand():
    """Each prediction is made from its three states. Outside the image they are 0."""
    model = scramble(PixelRNN(2, d_hidden=3))
    x = torch.randint(2, (1, 3, 4), generator=seeded(8))
    v = F.one_hot(x[0], 2).double()
    h, h_back = by_pixel(model.rightwards, v), by_pixel(model.leftwards, v.flip(1)).flip(1)
    zeros = torch.zeros(3, dtype=torch.float64)
    for y, u in itertools.product(range(3), range(4)):
        left = h[y, u - 1] if u else zeros
        above, above_back = (h[y - 1, u], h_back[y - 1, u]) if y else (zeros, zeros)
        hidden = model.mix.weight @ torch.cat([left, above, above_back]) + model.mix.bias
        logits = model.out.weight @ hidden.clamp(min=0) + model.out.bias
        torch.testing.assert_close(model(x)[0, y, u], logits)


def test_a_new_lstm_has_an_open_forget_gate():
    """σ(1) = 0.73 of the memory is kept. The other gates start at σ(0) = 0.5."""
    assert DiagonalLSTM(2, 3).b.tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_initial_weights():
    """W has std 1, since a one-hot input selects one column; U has 1/√(2D), for two states.

    The layers around the ReLU have √(2 / inputs).
    """
    model = PixelRNN(40, d_hidden=50, generator=seeded(0))
    for lstm in (model.rightwards, model.leftwards):
        assert lstm.W.std().item() == pytest.approx(1, rel=0.1)
        assert lstm.U.std().item() == pytest.approx(0.1, rel=0.1)
    for layer, n_inputs in ((model.mix, 150), (model.out, 100)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / n_inputs), rel=0.1)
        assert (layer.bias == 0).all()


def test_one_row_is_an_ordinary_lstm():
    """torch.nn.LSTM has the gates in the order i, f, g, o, and two biases."""
    lstm, x = scramble(DiagonalLSTM(2, 3)), inputs(2, 1, 7, 2, seed=4)
    reference = torch.nn.LSTM(2, 3, batch_first=True).double()
    weights = {"weight_ih_l0": lstm.W, "weight_hh_l0": lstm.U[:, :3],
               "bias_ih_l0": lstm.b, "bias_hh_l0": 0 * lstm.b}
    with torch.no_grad():
        for name, value in weights.items():
            i, f, o, g = value.chunk(4)
            getattr(reference, name).copy_(torch.cat([i, f, g, o]))
    torch.testing.assert_close(lstm(x)[:, 0], reference(x[:, 0])[0], **EXACT)


@pytest.mark.parametrize("rows, columns", [(2, 3), (5, 2), (1, 4), (4, 1)])
def test_skewing(rows, columns):
    x = torch.randn(2, rows, columns, 3)
    skewed = skew(x)
    assert skewed.shape == (2, rows, rows + columns - 1, 3)
    for y, step in itertools.product(range(rows), range(rows + columns - 1)):
        place = step - y
        wanted = x[:, y, place] if 0 <= place < columns else torch.zeros(2, 3)
        assert torch.equal(skewed[:, y, step], wanted)
    assert torch.equal(unskew(skewed), x)


@pytest.mark.parametrize("rows, columns", [(3, 5), (6, 6)])
def test_sequential_steps(rows, columns):
    """One step for each diagonal in training, and one for each pixel in sampling."""
    model, calls = PixelRNN(2, 3), {"rightwards": 0, "leftwards": 0}
    for name in calls:
        lstm = getattr(model, name)

        def counted(*arguments, step=lstm.step, name=name):
            calls[name] += 1
            return step(*arguments)

        lstm.step = counted
    model(torch.zeros(4, rows, columns, dtype=torch.long))
    assert calls == dict.fromkeys(calls, rows + columns - 1)
    calls.update(rightwards=0, leftwards=0)
    sample(model, 4, rows, columns, seeded(0))
    assert calls == dict.fromkeys(calls, rows * columns)


@pytest.mark.parametrize("call, message", [
    (lambda: PixelRNN(1), "levels must be at least 2"),
    (lambda: PixelRNN(2, 0), "d_hidden must be a whole number of at least 1"),
    (lambda: DiagonalLSTM(0, 3), "d_in must be a whole number of at least 1"),
    (lambda: DiagonalLSTM(2, 0), "d_hidden must be a whole number of at least 1"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_sizes_are_legal():
    assert PixelRNN(2, 1)(torch.zeros(1, 1, 1, dtype=torch.long)).shape == (1, 1, 1, 2)
    assert DiagonalLSTM(1, 1)(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 1, 1)
