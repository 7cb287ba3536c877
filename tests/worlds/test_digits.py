"""Drawn digits: their shape, range and seeds; the labels; and the bounds of the affine map."""
import math

import pytest
import torch

from minigpt.worlds import digits
from minigpt.worlds.digits import FONTS, LARGE, draw_digits, drawings


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_drawings_are_centred_and_three_quarters_high():
    sheet = drawings()
    assert sheet.shape == (len(FONTS), 10, LARGE, LARGE) and 0 <= sheet.min() and sheet.max() == 1
    for glyph in sheet.flatten(0, 1):
        rows, columns = ((glyph > 0.5).any(axis).nonzero()[:, 0] for axis in (1, 0))
        height = rows[-1] - rows[0] + 1
        assert abs(height - 0.75 * LARGE) <= 3                          # the outline adds 1 or 2
        assert abs(rows[0] + rows[-1] - (LARGE - 1)) <= 2
        assert abs(columns[0] + columns[-1] - (LARGE - 1)) <= 2


def test_drawings_are_upright_and_not_mirrored():
    sans, half = drawings()[FONTS.index("DejaVuSans")] > 0.5, LARGE // 2
    assert sans[7, :half].sum() > 1.2 * sans[7, half:].sum()            # the bar of 7 is on top
    assert sans[4, :, half:].sum() > 1.2 * sans[4, :, :half].sum()      # the stem of 4 is right
    assert sans[1].sum() < sans[8].sum()


def test_rows_of_the_sheet_are_the_named_fonts():
    ink = dict(zip(FONTS, drawings().mean((1, 2, 3))))
    for bold, light in (("DejaVuSans-Bold", "DejaVuSans"),
                        ("DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
                        ("DejaVuSerif-Bold", "DejaVuSerif"),
                        ("DejaVuSerif-BoldItalic", "DejaVuSerif-Italic")):
        assert ink[bold] > 1.2 * ink[light]


def test_no_two_drawings_are_alike():
    flat = drawings().flatten(0, 1).flatten(1)
    distances = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
    assert distances.min() > 1


def test_every_font_and_digit_is_drawn_equally_often(monkeypatch):
    """Each drawing is replaced by a square of its own shade, which tells which one was drawn."""
    n_kinds = len(FONTS) * 10
    shades = (torch.arange(n_kinds) + 0.5).view(len(FONTS), 10, 1, 1) / n_kinds
    monkeypatch.setattr(digits, "drawings", lambda: shades.expand(-1, -1, 48, 48).contiguous())
    x, labels = draw_digits(20_000, seeded(8), 8, levels=n_kinds)
    kind = x[:, 4, 4]
    assert torch.equal(kind % 10, labels)
    counts = kind.bincount(minlength=n_kinds)
    assert counts.min() > 140 and counts.max() < 270                    # 200 ± five errors of 14


@pytest.mark.parametrize("size, levels", [(12, 2), (14, 4), (9, 3)])
def test_shapes_and_levels(size, levels):
    x, labels = draw_digits(300, seeded(1), size, levels)
    assert x.shape == (300, size, size) and x.dtype == torch.long
    assert x.unique().tolist() == list(range(levels))
    assert labels.shape == (300,) and labels.unique().tolist() == list(range(10))


def test_a_seed_fixes_the_images_and_another_seed_gives_new_ones():
    (x, labels), (again, labels_again) = draw_digits(50, seeded(2)), draw_digits(50, seeded(2))
    assert torch.equal(x, again) and torch.equal(labels, labels_again)
    other, _ = draw_digits(50, seeded(3))
    assert not (x[:, None] == other).all((2, 3)).any()                  # 50 × 50 comparisons
    torch.rand(7)                                                       # another global state
    assert torch.equal(draw_digits(50, seeded(2))[0], x)


def test_more_levels_divide_the_same_ink():
    two, four = draw_digits(20, seeded(4), 12, 2)[0], draw_digits(20, seeded(4), 12, 4)[0]
    assert torch.equal(two, four // 2)


def test_labels_say_what_is_drawn():
    """The nearest of 2000 labelled digits has the same label; chance is 10 %."""
    (x, labels), (fresh, truth) = draw_digits(2000, seeded(5)), draw_digits(200, seeded(6))
    nearest = torch.cdist(fresh.flatten(1).float(), x.flatten(1).float()).argmin(1)
    assert (labels[nearest] == truth).float().mean() > 0.9


def drawn_bars(monkeypatch, width, height):
    """400 images of a bar in place of a digit, its centre (n,) twice, and offsets from it."""
    bar = torch.zeros(len(FONTS), 10, 48, 48)
    top, left = 24 - height // 2, 24 - width // 2
    bar[:, :, top:top + height, left:left + width] = 1
    monkeypatch.setattr(digits, "drawings", lambda: bar)
    x = draw_digits(400, seeded(7), size=48, levels=256)[0].float()
    place = torch.arange(48) - 23.5
    mass = x.sum((1, 2))
    down, right = (x.sum(2) @ place) / mass, (x.sum(1) @ place) / mass
    dy, dx = place[:, None] - down[:, None, None], place - right[:, None, None]
    return x, mass, down, right, dy, dx


def test_an_upright_bar_shows_rotation_height_and_shift(monkeypatch):
    """Over many draws, each stays within the stated bounds, and comes near to both of them."""
    x, mass, down, right, dy, dx = drawn_bars(monkeypatch, width=4, height=36)
    for shift in (down, right):
        assert shift.abs().max() < 1.15 and shift.max() > 0.8 and shift.min() < -0.8
        assert shift.mean().abs() < 0.15
    slope = (x * dy * dx).sum((1, 2)) / (x * dy * dy).sum((1, 2))
    angle = torch.rad2deg(slope.atan())
    assert angle.abs().max() < 7 and angle.max() > 5 and angle.min() < -5
    # The variance of a rod of length L is L²/12.
    length = (12 * (x * dy * dy).sum((1, 2)) / mass).sqrt() / torch.deg2rad(angle).cos()
    assert 36 * 0.93 < length.min() < 36 * 0.97 and 36 * 1.03 < length.max() < 36 * 1.07
    assert math.isclose(length.mean(), 36, rel_tol=0.02)


def test_a_lying_bar_shows_the_width(monkeypatch):
    x, mass, _, _, dy, dx = drawn_bars(monkeypatch, width=36, height=4)
    slope = (x * dy * dx).sum((1, 2)) / (x * dx * dx).sum((1, 2))
    length = (12 * (x * dx * dx).sum((1, 2)) / mass).sqrt() / slope.atan().cos()
    assert 36 * 0.93 < length.min() < 36 * 0.97 and 36 * 1.03 < length.max() < 36 * 1.07


@pytest.mark.parametrize("n, size, levels", [(0, 4, 2), (1, 3, 2), (1, 4, 1)])
def test_too_few_images_pixels_or_levels_are_refused(n, size, levels):
    assert draw_digits(1, seeded(0), 4, 2)[0].shape == (1, 4, 4)
    with pytest.raises(ValueError, match=f"n {n}, size {size}, levels {levels}"):
        draw_digits(n, seeded(0), size, levels)


def test_a_missing_font_is_named(monkeypatch):
    monkeypatch.setattr(digits, "FONTS", ("NoSuchFont",))
    drawings.cache_clear()
    with pytest.raises(FileNotFoundError, match="NoSuchFont.ttf"):
        drawings()
    drawings.cache_clear()
