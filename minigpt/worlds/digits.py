"""Digits: small images of the digits 0 to 9, drawn with the fonts that come with matplotlib.

    outline of a digit  →  random rotation, scale and shift  →  ink per pixel, 0 to 1  →  K levels

Each digit is drawn once in each font, at a large size. An image is one of these drawings under a
random affine map. No download is needed, and a set can have any size.

Source: the DejaVu and Computer Modern fonts in matplotlib's data folder.
Not here: colour, and handwriting.

Shapes: n images of N by N pixels, K levels of grey, F fonts, L = LARGE.
"""
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, IdentityTransform
from torch import Generator, Tensor
from torch.nn import functional as F

# DejaVu Sans Mono is left out: its zero has a dot, and looks like an eight in 12 pixels.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
         "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
         "cmss10", "cmtt10")
LARGE = 48          # width and height in pixels of the drawing that an image is taken from


def outline(font: Path, digit: int, centre: tuple[float, float]) -> PathPatch:
    """A digit as a filled shape, three quarters of LARGE high, around `centre` in pixels."""
    path = TextPath((0, 0), str(digit), size=100, prop=FontProperties(fname=str(font)))
    box = path.get_extents()
    place = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
    place = place.scale(0.75 * LARGE / box.height).translate(*centre)
    # The line around the shape makes it a little bolder: thin strokes stay visible in 12 pixels.
    return PathPatch(place.transform_path(path), color="black", linewidth=1.5,
                     transform=IdentityTransform())


@lru_cache(maxsize=1)
def drawings() -> Tensor:
    """Each digit of each font, upright and centred: (F, 10, L, L) ink from 0 to 1."""
    sheet = Figure(figsize=(10, len(FONTS)), dpi=LARGE)     # one row per font, one column per digit
    canvas = FigureCanvasAgg(sheet)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for row, name in enumerate(FONTS):
        font = folder / f"{name}.ttf"
        if not font.is_file():
            raise FileNotFoundError(f"matplotlib's font {font.name} is not in {folder}; "
                                    "reinstall matplotlib")
        y = LARGE * (len(FONTS) - row - 0.5)                # matplotlib counts from the bottom
        for digit in range(10):
            sheet.add_artist(outline(font, digit, (LARGE * (digit + 0.5), y)))
    canvas.draw()
    red = np.asarray(canvas.buffer_rgba())[..., 0].copy()   # the sheet is grey: one channel will do
    ink = 1 - torch.from_numpy(red).float() / 255           # (F·LARGE, 10·LARGE)
    squares = ink.unflatten(0, (-1, LARGE)).unflatten(2, (-1, LARGE))           # (F, L, 10, L)
    return squares.transpose(1, 2).contiguous()             # (F, 10, L, L)


def draw_digits(n: int, generator: Generator, size: int = 12,
                levels: int = 2) -> tuple[Tensor, Tensor]:
    """Images (n, N, N) with N = `size`, and the digit that each shows (n,).

    A pixel is a whole number from 0 (paper) to levels − 1 (ink). Digit and font are drawn
    uniformly; so are a rotation within ±6°, a scale within ±5 % per axis, and a shift within
    ±1 pixel. ValueError for no image, for fewer than 4 pixels, and for fewer than 2 levels.
    """
    if n < 1 or size < 4 or levels < 2:
        raise ValueError("draw at least 1 image of size at least 4 in at least 2 levels, "
                         f"not n {n}, size {size}, levels {levels}")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    labels = torch.randint(10, (n,), generator=generator)
    fonts = torch.randint(len(FONTS), (n,), generator=generator)
    angle = torch.deg2rad(uniform(-6, 6))
    width, height = uniform(0.95, 1.05), uniform(0.95, 1.05)
    pixel = 2 / size                                        # affine_grid's square is 2 wide
    right, down = uniform(-pixel, pixel), uniform(-pixel, pixel)
    # The map goes from the image to the drawing: for each point of the image, where to read.
    x = torch.stack([angle.cos() / width, -angle.sin() / width, -right], dim=1)     # (n, 3)
    y = torch.stack([angle.sin() / height, angle.cos() / height, -down], dim=1)     # (n, 3)
    affine = torch.stack([x, y], dim=1)                                             # (n, 2, 3)
    fine = 3 * size                                         # 3 × 3 points per pixel, averaged
    grid = F.affine_grid(affine, [n, 1, fine, fine], align_corners=False)           # (n, 3N, 3N, 2)
    drawn = drawings()[fonts, labels][:, None]                                      # (n, 1, L, L)
    ink = F.grid_sample(drawn, grid, align_corners=False)                           # (n, 1, 3N, 3N)
    ink = F.avg_pool2d(ink, 3)[:, 0]                                                # (n, N, N)
    return (ink * levels).long().clamp(max=levels - 1), labels
