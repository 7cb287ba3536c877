"""Pixel models against enumeration of every image, Jacobians, nested loops, and the distribution that samples really have."""
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.pixels import (
    DiagonalLSTM,
    IndependentPixels,
    MaskedConvolution,
    NeighbourRegression,
    PixelCNN,
    PixelRNN,
    ResidualBlock,
    complete,
    conditionals,
    image_bits,
    pixel_mask,
    sample,
    skew,
    unskew,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scramble(model, std: float = 0.6, seed: int = 0):
    """Weights of order 1, biases and places included, in float64: nothing is nearly uniform, nothing is 0."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=seeded(seed))
    return model.double()


def models(levels: int, rows: int, columns: int) -> dict:
    return {
        "independent": IndependentPixels(torch.randint(levels, (5, rows, columns), generator=seeded(9)), levels).double(),
        "neighbours": scramble(NeighbourRegression(levels, rows, columns, kernel_size=5)),
        "cnn": scramble(PixelCNN(levels, rows, columns, channels=6, n_blocks=2)),
        "rnn": scramble(PixelRNN(levels, d_hidden=5)),
    }


NAMES = ["independent", "neighbours", "cnn", "rnn"]


# ── Probability ────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels, rows, columns", [(2, 2, 3), (2, 3, 2), (4, 1, 3), (4, 2, 2)])
def test_probabilities_of_all_images_sum_to_one(name, levels, rows, columns):
    every = torch.tensor(list(itertools.product(range(levels), repeat=rows * columns))).view(-1, rows, columns)
    model = models(levels, rows, columns)[name]
    p = 2.0 ** -image_bits(model, every)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() > 2 * p.min()                                        # a uniform model would pass without having learned to read


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_the_product_of_sequential_conditionals(name):
    """Draw order: at pixel i the later pixels are overwritten with noise before the model is asked."""
    levels, rows, columns = 3, 4, 5
    model, x = models(levels, rows, columns)[name], torch.randint(3, (2, 4, 5), generator=seeded(1))
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(rows * columns):
        noisy = x.clone().flatten(1)
        noisy[:, i:] = torch.randint(3, (2, rows * columns - i), generator=seeded(i))
        logits = model(noisy.view(2, rows, columns)).flatten(1, 2)[:, i]
        for b in range(2):
            scores = logits[b].tolist()
            total[b] -= math.log2(math.exp(scores[x[b].flatten()[i]]) / sum(map(math.exp, scores)))
    torch.testing.assert_close(image_bits(model, x), total, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_conditionals_one_by_one_equal_all_at_once(name):
    """Each pixel is written only after its conditional was read, as a sampler does; until then it holds another level."""
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(2))
    canvas, collected = (x + 1) % 3, []
    for i, logits in enumerate(conditionals(model, canvas)):
        collected.append(logits)
        canvas.view(2, -1)[:, i] = x.view(2, -1)[:, i]
    torch.testing.assert_close(torch.stack(collected, 1).unflatten(1, (4, 5)), model(x), atol=1e-12, rtol=0)


def test_independent_counts_by_hand():
    model = IndependentPixels(torch.tensor([[[0, 2], [1, 1]], [[0, 0], [1, 2]], [[2, 0], [1, 0]]]), levels=3)
    wanted = torch.tensor([[[3, 1, 2], [3, 1, 2]], [[1, 4, 1], [2, 2, 2]]]) / 6         # (count + 1) / (3 images + 3 levels)
    torch.testing.assert_close(model(torch.zeros(1, 2, 2, dtype=torch.long))[0].softmax(-1), wanted)
    assert image_bits(model, torch.tensor([[[0, 0], [1, 1]]])).item() == pytest.approx(-math.log2(3 / 6 * 3 / 6 * 4 / 6 * 2 / 6), abs=1e-5)


# ── What sees what ─────────────────────────────────────────────────────────────────────────────────────────────────────

def sees(score, rows: int, columns: int, levels: int) -> torch.Tensor:
    """(place, place) bool: output i changes with input j at all, by the Jacobian, at three random inputs."""
    seen = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for seed in range(3):
        x = torch.rand(1, rows, columns, levels, generator=seeded(seed), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(score, x)[0, :, :, :, 0]          # (Y, X, K, Y, X, K)
        seen |= (jacobian != 0).any(5).any(2).view(rows * columns, rows * columns)
    return seen


def wanted(rows: int, columns: int, looks) -> torch.Tensor:
    """(place, place): looks(y, x, v, u) says whether the guess at row y, column x may look at row v, column u."""
    return torch.tensor([[looks(y, x, v, u) for v in range(rows) for u in range(columns)] for y in range(rows) for x in range(columns)])


def test_masks_by_hand():
    assert pixel_mask(5, "A").int().tolist() == [[1] * 5, [1] * 5, [1, 1, 0, 0, 0], [0] * 5, [0] * 5]
    assert pixel_mask(5, "B").int().tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0], [0] * 5, [0] * 5]
    assert pixel_mask(1, "A").item() is False and pixel_mask(1, "B").item() is True


@pytest.mark.parametrize("kind, itself", [("A", False), ("B", True)])
def test_a_masked_layer_sees_the_earlier_half_of_its_kernel(kind, itself):
    layer = scramble(MaskedConvolution(kind, 2, 3, 3))
    score = lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def looks(y, x, v, u):
        near = abs(v - y) <= 1 and abs(u - x) <= 1
        return near and (v < y or (v == y and u < x) or (itself and (v, u) == (y, x)))
    assert torch.equal(sees(score, 4, 5, 2), wanted(4, 5, looks))


def test_pixel_rnn_sees_every_earlier_pixel_and_no_other():
    model = scramble(PixelRNN(levels=2, d_hidden=4))
    assert torch.equal(sees(model.score, 4, 6, 2), wanted(4, 6, lambda y, x, v, u: (v, u) < (y, x)))


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_pixel_cnn_sees_every_earlier_pixel_but_its_blind_spot(n_blocks):
    rows, columns = 6, 9
    model = scramble(PixelCNN(2, rows, columns, channels=6, n_blocks=n_blocks))
    for parameter in model.parameters():
        parameter.data.abs_()                                           # so that no ReLU is shut and every path counts
    reach = n_blocks + 3

    def looks(y, x, v, u):
        up, right = y - v, u - x
        return (up == 0 and -reach <= right < 0) or (0 < up <= reach and -reach <= right <= min(up + 2, reach))
    assert torch.equal(sees(model.score, rows, columns, 2), wanted(rows, columns, looks))


def test_the_first_mask_matters():
    """With mask B in front each pixel reads its own answer, and the "probabilities" no longer sum to 1: what mask A is for."""
    model = scramble(PixelCNN(2, 2, 3, channels=6, n_blocks=1))
    model.first.mask = pixel_mask(7, "B")
    every = torch.tensor(list(itertools.product(range(2), repeat=6))).view(-1, 2, 3)
    assert abs((2.0 ** -image_bits(model, every)).sum().item() - 1) > 1e-3
    assert sees(model.score, 2, 3, 2).diagonal().all()


def test_the_edge_is_not_paper():
    """Level 0 is one-hot too, so a border of zeros outside the image differs from background inside it."""
    model = scramble(NeighbourRegression(2, 4, 4, kernel_size=3))
    torch.nn.init.zeros_(model.place)
    logits = model(torch.zeros(1, 4, 4, dtype=torch.long))[0]
    assert not torch.allclose(logits[0, 0], logits[2, 2])


def test_a_place_has_its_own_weights():
    for model in (NeighbourRegression(2, 4, 4), PixelCNN(2, 4, 4, channels=4, n_blocks=1)):
        model, x = scramble(model), torch.zeros(1, 4, 4, dtype=torch.long)
        before = model(x)[0]
        with torch.no_grad():
            model.place[:, 2, 1] += torch.linspace(0.5, 1, len(model.place))
        moved = (model(x)[0] != before).any(-1)
        assert moved[2, 1] and not moved[:2].any() and not moved[2, 0]


def test_masked_weights_get_no_gradient_and_no_say():
    layer = scramble(MaskedConvolution("A", 2, 3, 5))
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    y = layer(x)
    y.square().sum().backward()
    hidden = ~pixel_mask(5, "A").expand_as(layer.weight)
    assert (layer.weight.grad[hidden] == 0).all() and (layer.weight.grad[~hidden] != 0).all()
    with torch.no_grad():
        layer.weight[hidden] = 100
    assert torch.equal(layer(x), y)


def test_convolution_equals_nested_loops():
    layer, x = scramble(MaskedConvolution("B", 2, 3, 3)), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    earlier = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]
    for c, y, u in itertools.product(range(3), range(4), range(5)):
        total = layer.bias[c].item()
        for k, (dy, dx) in itertools.product(range(2), earlier):
            if 0 <= y + dy < 4 and 0 <= u + dx < 5:
                total += (layer.weight[c, k, 1 + dy, 1 + dx] * x[0, k, y + dy, u + dx]).item()
        assert layer(x)[0, c, y, u].item() == pytest.approx(total, abs=1e-12)


def test_residual_block_by_hand():
    """x + widen(relu(look(relu(narrow(relu(x)))))), on one pixel, where a convolution is its centre weight."""
    block, x = scramble(ResidualBlock(4)), torch.randn(20, 4, generator=seeded(5), dtype=torch.float64)
    layers = ((block.narrow, 1), (block.look, 3), (block.widen, 1))
    narrow, look, widen = ((layer.weight[:, :, k // 2, k // 2], layer.bias) for layer, k in layers)
    y = x.clamp(min=0) @ narrow[0].T + narrow[1]
    y = y.clamp(min=0) @ look[0].T + look[1]
    y = y.clamp(min=0) @ widen[0].T + widen[1]
    torch.testing.assert_close(block(x.view(20, 4, 1, 1)).view(20, 4), x + y)


def test_neighbour_regression_by_hand():
    """logit_k = place + bias + Σ of one weight for each earlier neighbour and its level, over 3 × 3 windows."""
    model, x = scramble(NeighbourRegression(3, 4, 5, kernel_size=3)), torch.randint(3, (1, 4, 5), generator=seeded(6))
    weight, bias = model.convolution.weight, model.convolution.bias
    for y, u, k in itertools.product(range(4), range(5), range(3)):
        total = (model.place[k, y, u] + bias[k]).item()
        for dy, du in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
            if y + dy >= 0 and 0 <= u + du < 5:
                total += weight[k, x[0, y + dy, u + du], 1 + dy, 1 + du].item()
        assert model(x)[0, y, u, k].item() == pytest.approx(total, abs=1e-12)


def test_pixel_cnn_by_hand():
    """first + place, block, ReLU, mix, ReLU, out, with PyTorch's convolution and masks written here."""
    model, x = scramble(PixelCNN(2, 4, 5, channels=4, n_blocks=1)), torch.randint(2, (3, 4, 5), generator=seeded(7))
    mask = torch.ones(7, 7, dtype=torch.float64)
    mask[4:], mask[3, 3:] = 0, 0
    h = F.conv2d(F.one_hot(x, 2).double().permute(0, 3, 1, 2), model.first.weight * mask, model.first.bias, padding=3) + model.place
    h = model.blocks[0](h).clamp(min=0)
    h = F.conv2d(h, model.mix.weight, model.mix.bias).clamp(min=0)
    torch.testing.assert_close(model(x), F.conv2d(h, model.out.weight, model.out.bias).permute(0, 2, 3, 1))


@pytest.mark.parametrize("kind, kernel_size, n_seen", [("A", 7, 24), ("B", 3, 5), ("B", 1, 1)])
def test_initial_convolutions(kind, kernel_size, n_seen):
    """√(2 / inputs), as He et al. 2015 want before a ReLU; what the mask hides is not an input."""
    layer = MaskedConvolution(kind, 40, 60, kernel_size, seeded(0))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (40 * n_seen)), rel=0.1) and (layer.bias == 0).all()


def test_a_new_block_changes_nothing():
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(ResidualBlock(6)(x), x)


# ── The diagonal recurrence ────────────────────────────────────────────────────────────────────────────────────────────

def by_pixel(lstm: DiagonalLSTM, inputs: torch.Tensor) -> torch.Tensor:
    """h(x,y) one pixel, one unit and one gate at a time: (Y, X, C) -> (Y, X, D)."""
    W, U, b = (p.tolist() for p in (lstm.W, lstm.U, lstm.b))
    D, (rows, columns, width) = len(b) // 4, inputs.shape
    sigmoid = lambda z: 1 / (1 + math.exp(-z))
    h, c = {}, {}
    for y in range(rows):
        for x in range(columns):
            left, above, memory = (states.get(place, [0.0] * D) for states, place in ((h, (y, x - 1)), (h, (y - 1, x)), (c, (y, x - 1))))
            z = []
            for row in range(4 * D):
                total = b[row] + sum(W[row][k] * inputs[y, x, k].item() for k in range(width))
                total += sum(U[row][d] * left[d] for d in range(D)) + sum(U[row][D + d] * above[d] for d in range(D))
                z.append(total)
            c[y, x] = [sigmoid(z[D + d]) * memory[d] + sigmoid(z[d]) * math.tanh(z[3 * D + d]) for d in range(D)]
            h[y, x] = [sigmoid(z[2 * D + d]) * math.tanh(c[y, x][d]) for d in range(D)]
    return torch.tensor([[h[y, x] for x in range(columns)] for y in range(rows)], dtype=torch.float64)


@pytest.mark.parametrize("rows, columns", [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
def test_diagonals_equal_nested_loops(rows, columns):
    lstm, x = scramble(DiagonalLSTM(2, 3)), torch.randn(2, rows, columns, 2, generator=seeded(3), dtype=torch.float64)
    torch.testing.assert_close(lstm(x), torch.stack([by_pixel(lstm, image) for image in x]), atol=1e-12, rtol=0)


def test_pixel_rnn_by_hand():
    """Each guess from its three states, which are found pixel by pixel; outside the image they are 0."""
    model, x = scramble(PixelRNN(2, d_hidden=3)), torch.randint(2, (1, 3, 4), generator=seeded(8))
    v = F.one_hot(x[0], 2).double()
    h, h_back = by_pixel(model.rightwards, v), by_pixel(model.leftwards, v.flip(1)).flip(1)
    nothing = torch.zeros(3, dtype=torch.float64)
    for y, u in itertools.product(range(3), range(4)):
        read = torch.cat([h[y, u - 1] if u else nothing, h[y - 1, u] if y else nothing, h_back[y - 1, u] if y else nothing])
        hidden = (model.mix.weight @ read + model.mix.bias).clamp(min=0)
        torch.testing.assert_close(model(x)[0, y, u], model.out.weight @ hidden + model.out.bias)


def test_a_new_lstm_remembers():
    """σ(1) = 0.73 of the cell is kept at the start, the other gates stand at σ(0) = 0.5."""
    assert DiagonalLSTM(2, 3).b.tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_initial_states_are_of_order_one():
    """W 1, since a one-hot input picks one column; U 1/√(2D), its inputs being two states; then √(2 / inputs) around the ReLU."""
    model = PixelRNN(40, d_hidden=50, generator=seeded(0))
    for lstm in (model.rightwards, model.leftwards):
        assert lstm.W.std().item() == pytest.approx(1, rel=0.1) and lstm.U.std().item() == pytest.approx(0.1, rel=0.1)
    for layer, inputs in ((model.mix, 150), (model.out, 100)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.1) and (layer.bias == 0).all()


def test_one_row_is_an_ordinary_lstm():
    """torch.nn.LSTM has the gates in the order i, f, g, o, and two biases."""
    lstm, x = scramble(DiagonalLSTM(2, 3)), torch.randn(2, 1, 7, 2, generator=seeded(4), dtype=torch.float64)
    reference = torch.nn.LSTM(2, 3, batch_first=True).double()
    reorder = lambda p: torch.cat([p.chunk(4)[k] for k in (0, 1, 3, 2)])
    with torch.no_grad():
        for name, value in (("weight_ih_l0", lstm.W), ("weight_hh_l0", lstm.U[:, :3]), ("bias_ih_l0", lstm.b), ("bias_hh_l0", 0 * lstm.b)):
            getattr(reference, name).copy_(reorder(value))
    torch.testing.assert_close(lstm(x)[:, 0], reference(x[:, 0])[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows, columns", [(2, 3), (5, 2), (1, 4), (4, 1)])
def test_skewing(rows, columns):
    x = torch.randn(2, rows, columns, 3)
    skewed = skew(x)
    assert skewed.shape == (2, rows, rows + columns - 1, 3)
    for y, step in itertools.product(range(rows), range(rows + columns - 1)):
        place = step - y
        assert torch.equal(skewed[:, y, step], x[:, y, place] if 0 <= place < columns else torch.zeros(2, 3))
    assert torch.equal(unskew(skewed), x)


def test_sequential_steps():
    """Training: one step a diagonal. Sampling: each direction one step a pixel."""
    for rows, columns in ((3, 5), (6, 6)):
        model, calls = PixelRNN(2, 3), {"rightwards": 0, "leftwards": 0}
        for name in calls:
            lstm = getattr(model, name)

            def counted(*arguments, step=lstm.step, name=name):
                calls[name] += 1
                return step(*arguments)
            lstm.step = counted
        model(torch.zeros(4, rows, columns, dtype=torch.long))
        assert calls == {"rightwards": rows + columns - 1, "leftwards": rows + columns - 1}
        calls.update(rightwards=0, leftwards=0)
        sample(model, 4, rows, columns, seeded(0))
        assert calls == {"rightwards": rows * columns, "leftwards": rows * columns}


# ── Sampling and completing ────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_model_s_distribution(name):
    """20,000 images of 2 × 2 against the 16 exact probabilities; a frequency's standard error is at most 0.0036."""
    model = models(2, 2, 2)[name]
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    drawn = sample(model, 20_000, 2, 2, seeded(5)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    torch.testing.assert_close(drawn.bincount(minlength=16) / 20_000, (2.0 ** -image_bits(model, every)).float(), atol=0.016, rtol=0)


@pytest.mark.parametrize("name", ["neighbours", "cnn", "rnn"])
def test_completion_keeps_what_is_given_and_draws_the_rest_given_it(name):
    model, given = models(2, 2, 3)[name], torch.tensor([[[1, 0, 1], [1, 0, 0]]])
    kept = given.clone()
    done = complete(model, given.expand(20_000, -1, -1), 4, seeded(6))
    assert torch.equal(given, kept)                                     # the caller's image is not written to
    assert (done.flatten(1)[:, :4] == torch.tensor([1, 0, 1, 1])).all()
    every = torch.tensor([[[1, 0, 1], [1, a, b]] for a in range(2) for b in range(2)])
    joint = 2.0 ** -image_bits(model, every)
    drawn = done.flatten(1)[:, 4:] @ torch.tensor([2, 1])
    torch.testing.assert_close(drawn.bincount(minlength=4) / 20_000, (joint / joint.sum()).float(), atol=0.016, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_completion_at_its_ends(name):
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(7))
    assert torch.equal(complete(model, x, 20, seeded(0)), x)
    assert torch.equal(complete(model, x, 0, seeded(0)), complete(model, 2 - x, 0, seeded(0)))              # nothing given, nothing used
    transposed = torch.randint(3, (2, 5, 4), generator=seeded(8)).transpose(1, 2)                           # not contiguous in memory
    assert torch.equal(complete(model, transposed, 7, seeded(0)), complete(model, transposed.contiguous(), 7, seeded(0)))


def test_what_is_not_given_may_be_anything():
    x = torch.randint(3, (2, 4, 5), generator=seeded(7))
    marked = x.clone()
    marked.flatten(1)[:, 7:] = -1
    for model in models(3, 4, 5).values():
        assert torch.equal(complete(model, marked, 7, seeded(0)), complete(model, x, 7, seeded(0)))


def test_a_generator_fixes_weights_and_samples():
    for make in (lambda g: PixelCNN(2, 3, 4, 4, 1, g), lambda g: PixelRNN(2, 3, g), lambda g: NeighbourRegression(2, 3, 4, 3, g)):
        one, two, other = make(seeded(0)), make(seeded(0)), make(seeded(1))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
        assert torch.equal(sample(one, 6, 3, 4, seeded(2)), sample(two, 6, 3, 4, seeded(2)))


@pytest.mark.parametrize("name, make", [
    ("neighbours", lambda: NeighbourRegression(2, 6, 6)), ("cnn", lambda: PixelCNN(2, 6, 6, 8, 3)), ("rnn", lambda: PixelRNN(2, 8)),
])
def test_learns_what_only_the_earlier_pixels_tell(name, make):
    """Stripes: columns alternate and the first pixel decides which. Independent pixels cost 1 bit each; one bit an image is enough."""
    model = make()
    stripes = (torch.arange(6) + torch.arange(2)[:, None]).remainder(2)[:, None].expand(2, 6, 6).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(stripes).flatten(0, 2), stripes.flatten()).backward()
        optimizer.step()
    assert image_bits(IndependentPixels(stripes, 2), stripes).mean().item() == pytest.approx(36)
    assert 0.99 < image_bits(model, stripes).mean() < 3


# ── Errors ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("call, message", [
    (lambda: pixel_mask(3, "C"), "kind A"),
    (lambda: pixel_mask(4, "A"), "odd"),
    (lambda: pixel_mask(0, "A"), "odd"),
    (lambda: PixelCNN(2, 4, 4, channels=5), "even"),
    (lambda: PixelCNN(1, 4, 4), "levels"),
    (lambda: PixelRNN(1), "levels"),
    (lambda: PixelRNN(2, 0), "d_hidden"),
    (lambda: PixelRNN(2)(torch.full((1, 2, 2), 3)), "levels 0 to 1.*hold 3 to 3"),
    (lambda: PixelRNN(2)(torch.full((1, 2, 2), -1)), "hold -1"),
    (lambda: PixelRNN(2)(torch.zeros(1, 2, 2)), "torch.long"),
    (lambda: PixelRNN(2)(torch.zeros(2, 2, dtype=torch.long)), r"\(2, 2\)"),
    (lambda: PixelCNN(2, 4, 4)(torch.zeros(1, 5, 4, dtype=torch.long)), "4 × 4.*not 5 × 4"),
    (lambda: NeighbourRegression(2, 4, 4)(torch.zeros(1, 4, 3, dtype=torch.long)), "4 × 4.*not 4 × 3"),
    (lambda: complete(PixelRNN(2), torch.zeros(1, 2, 3, dtype=torch.long), 7), "between 0 and the 6"),
    (lambda: complete(PixelRNN(2), torch.zeros(1, 2, 3, dtype=torch.long), -1), "not -1"),
    (lambda: sample(PixelRNN(2), 0, 3, 3), "at least one"),
])
def test_errors_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
