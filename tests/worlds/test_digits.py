"""Drawn digits: shape, range and determinism; that labels tell what is drawn; that the affine map turns, moves and scales as said."""
import math

import pytest
import torch

from minigpt.worlds import digits as images
from minigpt.worlds.digits import FONTS, draw_digits, drawings


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawings_are_upright_centred_and_three_quarters_high():
    sheet = drawings()
    assert sheet.shape == (len(FONTS), 10, images.LARGE, images.LARGE) and 0 <= sheet.min() and sheet.max() == 1
    for glyph in sheet.flatten(0, 1):
        rows, columns = ((glyph > 0.5).any(axis).nonzero()[:, 0] for axis in (1, 0))
        height = rows[-1] - rows[0] + 1
        assert abs(height - 0.75 * images.LARGE) <= 3                   # the line that fattens hairlines adds one or two
        assert abs(rows[0] + rows[-1] - (images.LARGE - 1)) <= 2 and abs(columns[0] + columns[-1] - (images.LARGE - 1)) <= 2
    sans = sheet[FONTS.index("DejaVuSans")] > 0.5
    assert sans[7, :images.LARGE // 2].sum() > 1.2 * sans[7, images.LARGE // 2:].sum()                       # a 7 has its bar on top
    assert sans[4, :, images.LARGE // 2:].sum() > 1.2 * sans[4, :, :images.LARGE // 2].sum()                 # a 4 its stem on the right
    assert sans[1].sum() < sans[8].sum()


def test_rows_of_the_sheet_are_the_fonts_named():
    ink = dict(zip(FONTS, drawings().mean((1, 2, 3))))
    for name in FONTS:
        if "-Bold" in name:
            lighter = name.removesuffix("-Bold").replace("BoldOblique", "Oblique").replace("BoldItalic", "Italic")
            assert ink[name] > 1.2 * ink[lighter]


def test_every_font_and_digit_is_drawn_equally_often(monkeypatch):
    """Drawings replaced by squares of one shade, a shade for each font and digit: the image's shade tells which it was."""
    shades = (torch.arange(len(FONTS) * 10) + 0.5).view(len(FONTS), 10, 1, 1) / (len(FONTS) * 10)
    monkeypatch.setattr(images, "drawings", lambda: shades.expand(-1, -1, 48, 48).contiguous())
    x, labels = draw_digits(20_000, seeded(8), 8, levels=len(FONTS) * 10)
    which = x[:, 4, 4]
    assert torch.equal(which % 10, labels)
    counts = which.bincount(minlength=len(FONTS) * 10)
    assert counts.min() > 140 and counts.max() < 270                    # 200 each, give or take five standard errors of 14


def test_no_two_drawings_are_alike():
    flat = drawings().flatten(0, 1).flatten(1)
    gaps = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
    assert gaps.min() > 1


@pytest.mark.parametrize("size, levels", [(12, 2), (14, 4), (9, 3)])
def test_shapes_and_levels(size, levels):
    x, labels = draw_digits(300, seeded(1), size, levels)
    assert x.shape == (300, size, size) and x.dtype == torch.long and x.unique().tolist() == list(range(levels))
    assert labels.shape == (300,) and labels.unique().tolist() == list(range(10))


def test_a_seed_fixes_the_images_and_another_gives_fresh_ones():
    (x, a), (again, b), (other, _) = draw_digits(50, seeded(2)), draw_digits(50, seeded(2)), draw_digits(50, seeded(3))
    assert torch.equal(x, again) and torch.equal(a, b)
    assert not (x[:, None] == other).all((2, 3)).any()                  # 50 × 50 pairs, none the same
    torch.rand(7)                                                       # the global generator has no say
    assert torch.equal(draw_digits(50, seeded(2))[0], x)


def test_levels_are_the_same_ink_in_finer_steps():
    two, four = draw_digits(20, seeded(4), 12, 2)[0], draw_digits(20, seeded(4), 12, 4)[0]
    assert torch.equal(two, four // 2)


def test_labels_say_what_is_drawn():
    """The nearest of 2000 labelled digits has the same label: chance would be 10 %."""
    (x, labels), (fresh, truth) = draw_digits(2000, seeded(5)), draw_digits(200, seeded(6))
    nearest = torch.cdist(fresh.flatten(1).float(), x.flatten(1).float()).argmin(1)
    assert (labels[nearest] == truth).float().mean() > 0.9


def test_turn_size_and_move(monkeypatch):
    """A bar instead of digits: its angle, length and centre over many draws stay within the stated bounds, and come near to them."""
    bar = torch.zeros(len(FONTS), 10, 48, 48)
    bar[:, :, 6:42, 22:26] = 1                                          # 36 high, 4 wide, upright
    monkeypatch.setattr(images, "drawings", lambda: bar)
    size = 48
    x = draw_digits(400, seeded(7), size, levels=256)[0].float()
    place = torch.arange(size) - (size - 1) / 2
    mass = x.sum((1, 2))
    down, right = (x.sum(2) @ place) / mass, (x.sum(1) @ place) / mass
    for move in (down, right):
        assert move.abs().max() < 1.15 and move.max() > 0.8 and move.min() < -0.8 and move.mean().abs() < 0.15
    dy, dx = place[:, None] - down[:, None, None], place - right[:, None, None]
    angle = torch.rad2deg(torch.atan((x * dy * dx).sum((1, 2)) / (x * dy * dy).sum((1, 2))))
    assert angle.abs().max() < 7 and angle.max() > 5 and angle.min() < -5
    length = (12 * (x * dy * dy).sum((1, 2)) / mass).sqrt() / torch.cos(torch.deg2rad(angle))                # a rod of length L has variance L²/12
    assert 36 * 0.93 < length.min() < 36 * 0.97 and 36 * 1.03 < length.max() < 36 * 1.07
    assert math.isclose(length.mean(), 36, rel_tol=0.02)


@pytest.mark.parametrize("n, size, levels", [(0, 12, 2), (1, 3, 2), (1, 12, 1)])
def test_errors_name_the_number(n, size, levels):
    with pytest.raises(ValueError, match=f"n {n}, size {size}, levels {levels}"):
        draw_digits(n, seeded(0), size, levels)


def test_a_missing_font_is_named(monkeypatch):
    monkeypatch.setattr(images, "FONTS", ("NoSuchFont",))
    drawings.cache_clear()
    with pytest.raises(FileNotFoundError, match="NoSuchFont.ttf"):
        drawings()
    drawings.cache_clear()
