"""Models of images against all images listed, Jacobians, and the frequencies of their samples."""
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.pixel_cnn import MaskedConvolution, NeighbourRegression, PixelCNN, pixel_mask
from minigpt.models.pixel_rnn import PixelRNN
from minigpt.models.pixels import IndependentPixels, complete, conditionals, image_bits, sample

NAMES = ["independent", "neighbours", "cnn", "rnn"]
TRAINED = NAMES[1:]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scramble(model):
    """Weights of order 1 in float64, biases and places included: no prediction is uniform."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=seeded(0))
    return model.double()


def models(levels: int, rows: int, columns: int) -> dict:
    images = torch.randint(levels, (5, rows, columns), generator=seeded(9))
    return {
        "independent": IndependentPixels(images, levels).double(),
        "neighbours": scramble(NeighbourRegression(levels, rows, columns, kernel_size=5)),
        "cnn": scramble(PixelCNN(levels, rows, columns, channels=6, n_blocks=2)),
        "rnn": scramble(PixelRNN(levels, d_hidden=5)),
    }


def every_image(levels: int, rows: int, columns: int) -> torch.Tensor:
    """(K^(Y·X), Y, X)"""
    pixels = list(itertools.product(range(levels), repeat=rows * columns))
    return torch.tensor(pixels).view(-1, rows, columns)


# ── Probability ─────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels, rows, columns", [(2, 2, 3), (2, 3, 2), (4, 1, 3), (4, 2, 2)])
def test_probabilities_of_all_images_sum_to_one(name, levels, rows, columns):
    model = models(levels, rows, columns)[name]
    p = 2.0 ** -image_bits(model, every_image(levels, rows, columns))
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() > 2 * p.min()                    # the sum is 1 for a uniform model too


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_product_of_conditionals(name):
    """At pixel i, that pixel and the later ones are noise when the model is called."""
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(1))
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(20):
        noisy = x.clone().flatten(1)
        noisy[:, i:] = torch.randint(3, (2, 20 - i), generator=seeded(i))
        logits = model(noisy.view(2, 4, 5)).flatten(1, 2)[:, i]
        for b in range(2):
            e = [math.exp(score) for score in logits[b].tolist()]
            total[b] -= math.log2(e[x[b].flatten()[i]] / sum(e))
    torch.testing.assert_close(image_bits(model, x), total, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_conditionals_one_by_one_equal_all_at_once(name):
    """Each pixel is written only after its conditional was read; before, it has another level."""
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(2))
    canvas, collected = (x + 1) % 3, []
    for i, logits in enumerate(conditionals(model, canvas)):
        collected.append(logits)
        canvas.view(2, -1)[:, i] = x.view(2, -1)[:, i]
    stacked = torch.stack(collected, 1).unflatten(1, (4, 5))
    torch.testing.assert_close(stacked, model(x), atol=1e-12, rtol=0)


def test_independent_counts_by_hand():
    images = torch.tensor([[[0, 2], [1, 1]], [[0, 0], [1, 2]], [[2, 0], [1, 0]]])
    model = IndependentPixels(images, levels=3)
    # (count + 1) / (3 images + 3 levels)
    wanted = torch.tensor([[[3, 1, 2], [3, 1, 2]], [[1, 4, 1], [2, 2, 2]]]) / 6
    got = model(torch.zeros(1, 2, 2, dtype=torch.long))[0].softmax(-1)
    torch.testing.assert_close(got, wanted)
    bits = image_bits(model, torch.tensor([[[0, 0], [1, 1]]])).item()
    assert bits == pytest.approx(-math.log2(3 / 6 * 3 / 6 * 4 / 6 * 2 / 6), abs=1e-5)


# ── Which pixels a prediction depends on ────────────────────────────────────────────────────────

def reads(score, rows: int, columns: int, levels: int) -> torch.Tensor:
    """(place, place) bool: the Jacobian of output i to input j is not 0, at one of three inputs."""
    seen = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for seed in range(3):
        x = torch.rand(1, rows, columns, levels, generator=seeded(seed), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(score, x)[0, :, :, :, 0]  # (Y, X, K, Y, X, K)
        seen |= (jacobian != 0).any(5).any(2).view(rows * columns, rows * columns)
    return seen


def table(rows: int, columns: int, may_read) -> torch.Tensor:
    """(place, place) bool: may_read(y, x, v, u) is for pixel (x, y) and its source (u, v)."""
    places = list(itertools.product(range(rows), range(columns)))
    return torch.tensor([[may_read(y, x, v, u) for v, u in places] for y, x in places])


@pytest.mark.parametrize("kind, itself", [("A", False), ("B", True)])
def test_a_masked_layer_reads_the_earlier_half_of_its_kernel(kind, itself):
    layer = scramble(MaskedConvolution(kind, 2, 3, 3))

    def score(x):
        return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def may_read(y, x, v, u):
        near = abs(v - y) <= 1 and abs(u - x) <= 1
        return near and ((v, u) < (y, x) or itself and (v, u) == (y, x))

    assert torch.equal(reads(score, 4, 5, 2), table(4, 5, may_read))


def test_pixel_rnn_reads_every_earlier_pixel_and_no_other():
    model = scramble(PixelRNN(levels=2, d_hidden=4))
    earlier = table(4, 6, lambda y, x, v, u: (v, u) < (y, x))
    assert torch.equal(reads(model.score, 4, 6, 2), earlier)


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_pixel_cnn_reads_the_earlier_pixels_outside_its_blind_spot(n_blocks):
    rows, columns = 6, 9
    model = scramble(PixelCNN(2, rows, columns, channels=6, n_blocks=n_blocks))
    for parameter in model.parameters():
        parameter.data.abs_()                       # so that no ReLU is 0
    reach = n_blocks + 3

    def may_read(y, x, v, u):
        up, right = y - v, u - x
        if up == 0:
            return -reach <= right < 0
        return 0 < up <= reach and -reach <= right <= min(up + 2, reach)

    assert torch.equal(reads(model.score, rows, columns, 2), table(rows, columns, may_read))


def test_with_mask_b_in_the_first_layer_probabilities_do_not_sum_to_one():
    """Each pixel then reads its own level. Mask A prevents it."""
    model = scramble(PixelCNN(2, 2, 3, channels=6, n_blocks=1))
    model.first.mask = pixel_mask(7, "B")
    total = (2.0 ** -image_bits(model, every_image(2, 2, 3))).sum().item()
    assert abs(total - 1) > 1e-3
    assert reads(model.score, 2, 3, 2).diagonal().all()


def test_level_0_differs_from_the_outside_of_the_image():
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


# ── Drawing and completing images ───────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_distribution_of_the_model(name):
    """20,000 images of 2 × 2 and 16 exact probabilities; a standard error is at most 0.0036."""
    model = models(2, 2, 2)[name]
    drawn = sample(model, 20_000, 2, 2, seeded(5)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    frequencies = drawn.bincount(minlength=16) / 20_000
    p = 2.0 ** -image_bits(model, every_image(2, 2, 2))
    torch.testing.assert_close(frequencies, p.float(), atol=0.016, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_completion_keeps_what_is_given_and_draws_the_rest_given_it(name):
    model, given = models(2, 2, 3)[name], torch.tensor([[[1, 0, 1], [1, 0, 0]]])
    copy = given.clone()
    done = complete(model, given.expand(20_000, -1, -1), 4, seeded(6)).flatten(1)
    assert torch.equal(given, copy)                 # the caller's image is unchanged
    assert (done[:, :4] == torch.tensor([1, 0, 1, 1])).all()
    every = torch.tensor([[[1, 0, 1], [1, a, b]] for a in range(2) for b in range(2)])
    joint = 2.0 ** -image_bits(model, every)
    frequencies = (done[:, 4:] @ torch.tensor([2, 1])).bincount(minlength=4) / 20_000
    wanted = (joint / joint.sum()).float()
    torch.testing.assert_close(frequencies, wanted, atol=0.016, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_completion_with_all_or_nothing_given(name):
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(7))
    assert torch.equal(complete(model, x, 20, seeded(0)), x)
    blank = complete(model, x, 0, seeded(0))
    assert torch.equal(blank, complete(model, 2 - x, 0, seeded(0)))
    assert torch.equal(blank, sample(model, 2, 4, 5, seeded(0)))


@pytest.mark.parametrize("name", NAMES)
def test_completion_of_an_image_that_is_not_contiguous(name):
    model = models(3, 4, 5)[name]
    x = torch.randint(3, (2, 5, 4), generator=seeded(8)).transpose(1, 2)
    done = complete(model, x, 7, seeded(0))
    assert torch.equal(done, complete(model, x.contiguous(), 7, seeded(0)))


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_the_other_pixels_are_ignored(name):
    model, x = models(3, 4, 5)[name], torch.randint(3, (2, 4, 5), generator=seeded(7))
    marked = x.clone()
    marked.flatten(1)[:, 7:] = -1
    assert torch.equal(complete(model, marked, 7, seeded(0)), complete(model, x, 7, seeded(0)))


@pytest.mark.parametrize("make", [
    lambda g: PixelCNN(2, 3, 4, 4, 1, g), lambda g: PixelRNN(2, 3, g),
    lambda g: NeighbourRegression(2, 3, 4, 3, g),
])
def test_a_generator_fixes_weights_and_samples(make):
    one, two, other = make(seeded(0)), make(seeded(0)), make(seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert torch.equal(sample(one, 6, 3, 4, seeded(2)), sample(two, 6, 3, 4, seeded(2)))


@pytest.mark.parametrize("make", [
    lambda: NeighbourRegression(2, 6, 6), lambda: PixelCNN(2, 6, 6, 8, 3), lambda: PixelRNN(2, 8),
])
def test_training_learns_what_the_earlier_pixels_tell(make):
    """Columns alternate, and the first pixel decides which are 1.

    So the first pixel costs 1 bit and the others 0. Independent pixels cost 1 bit each.
    """
    model = make()
    stripes = (torch.arange(6) + torch.arange(2)[:, None]).remainder(2)         # (2, 6)
    stripes = stripes[:, None].expand(2, 6, 6).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(stripes).flatten(0, 2), stripes.flatten()).backward()
        optimizer.step()
    independent = IndependentPixels(stripes, 2)
    assert image_bits(independent, stripes).mean().item() == pytest.approx(36)
    assert 0.99 < image_bits(model, stripes).mean() < 3


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────

ZEROS = torch.zeros(1, 2, 3, dtype=torch.long)


@pytest.mark.parametrize("call, message", [
    (lambda: IndependentPixels(ZEROS, 1), "levels must be at least 2.*not 1"),
    (lambda: IndependentPixels(ZEROS, 0), "levels must be a whole number of at least 1"),
    (lambda: IndependentPixels(ZEROS[:0], 2), r"nothing to count in images of shape \(0, 2, 3\)"),
    (lambda: PixelCNN(2, 1, 3)(ZEROS), "1 × 3.*not 2 × 3"),
    (lambda: NeighbourRegression(2, 2, 4)(ZEROS), "2 × 4.*not 2 × 3"),
    (lambda: IndependentPixels(ZEROS, 2)(ZEROS[:, :, 1:]), "2 × 3.*not 2 × 2"),
    (lambda: complete(PixelRNN(2), ZEROS, 7), "between 0 and the 6"),
    (lambda: complete(PixelRNN(2), ZEROS, -1), "not -1"),
    (lambda: sample(PixelRNN(2), 0, 3, 3), "n must be a whole number of at least 1"),
    (lambda: sample(PixelRNN(2), 1, 0, 3), "rows must be a whole number of at least 1"),
    (lambda: sample(PixelRNN(2), 1, 3, 0), "columns must be a whole number of at least 1"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [2, -1])
@pytest.mark.parametrize("name", NAMES)
def test_unknown_levels_give_an_error_of_pytorch(name, wrong):
    with pytest.raises(RuntimeError, match="Class values|out of bounds"):
        image_bits(models(2, 2, 3)[name], torch.full_like(ZEROS, wrong))


def test_the_first_rows_of_an_image_are_legal():
    for model in models(2, 2, 3).values():
        torch.testing.assert_close(model(ZEROS[:, :1]), model(ZEROS)[:, :1])
    assert sample(PixelRNN(2), 1, 1, 1).shape == (1, 1, 1)
