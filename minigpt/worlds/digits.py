"""Digits to learn from, drawn with the fonts that matplotlib carries: no download, and as many as one likes.

    outline of a digit  →  turned, stretched and moved a little  →  ink in each pixel, 0..1  →  one of K levels

Every font draws each digit once, large. An image is then one of these drawings seen through a random affine map, so the same
generator state gives the same images, and a set drawn with another seed is fresh: same fonts, other turns, sizes and places.

Source: the DejaVu and Computer Modern fonts in matplotlib's own data folder.
Not here: colour, and anything that looks like handwriting.

Shapes: n images, N rows = columns of one, K levels of grey.
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
from torch import Tensor
from torch.nn import functional as F

# Not DejaVu Sans Mono: a dotted zero twelve pixels high is an eight.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "cmss10", "cmtt10",
)
LARGE = 48          # pixels a side of the drawing that an image is taken from


@lru_cache(maxsize=1)
def drawings() -> Tensor:
    """(fonts, 10, LARGE, LARGE) ink in 0..1: each digit of each font, upright, centred, three quarters of the square high."""
    fig = Figure(figsize=(10, len(FONTS)), dpi=LARGE)                   # one sheet of 1-inch squares: a row a font, a column a digit
    canvas = FigureCanvasAgg(fig)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for row, font in enumerate(FONTS):
        if not (folder / f"{font}.ttf").is_file():
            raise FileNotFoundError(f"matplotlib's font {font}.ttf is not in {folder}; reinstall matplotlib")
        for digit in range(10):
            outline = TextPath((0, 0), str(digit), size=100, prop=FontProperties(fname=str(folder / f"{font}.ttf")))
            box = outline.get_extents()
            place = (Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2).scale(0.75 * LARGE / box.height)
                     .translate(LARGE * (digit + 0.5), LARGE * (len(FONTS) - row - 0.5)))      # matplotlib counts from the bottom
            # The line around the outline makes it a little bolder, so that hairlines survive at 12 pixels.
            fig.add_artist(PathPatch(place.transform_path(outline), color="black", linewidth=1.5, transform=IdentityTransform()))
    canvas.draw()
    paper = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., 0].copy())           # (fonts·LARGE, 10·LARGE), 255 = white
    ink = 1 - paper.float() / 255
    return ink.unflatten(0, (-1, LARGE)).unflatten(2, (-1, LARGE)).transpose(1, 2).contiguous()      # (fonts, 10, LARGE, LARGE)


def draw_digits(n: int, generator: torch.Generator, size: int = 12, levels: int = 2) -> tuple[Tensor, Tensor]:
    """n digits: images (n, N, N) of whole numbers 0 (paper) to levels − 1 (ink), N = size, and what they show (n,), 0 to 9.

    Digit and font are drawn uniformly; then a turn within ±6°, a size within ±5 % for each axis and a move within ±1 pixel.

    >>> images, labels = draw_digits(5, torch.Generator().manual_seed(0), size=12, levels=4)
    >>> images.shape, labels.shape, sorted(images.unique().tolist())
    (torch.Size([5, 12, 12]), torch.Size([5]), [0, 1, 2, 3])
    """
    if n < 1 or size < 4 or levels < 2:
        raise ValueError(f"draw at least 1 image of at least 4 pixels a side in at least 2 levels, not n {n}, size {size}, levels {levels}")

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    large = drawings()
    labels = torch.randint(10, (n,), generator=generator)
    fonts = torch.randint(len(FONTS), (n,), generator=generator)
    turn = torch.deg2rad(between(-6, 6))
    wide, high = between(0.95, 1.05), between(0.95, 1.05)
    right, down = between(-2 / size, 2 / size), between(-2 / size, 2 / size)            # the square is 2 wide, so this is one pixel
    # A grid says for each pixel of the image where on the drawing it looks: this is the map from image to drawing.
    across = torch.stack([turn.cos() / wide, -turn.sin() / wide, -right], dim=1)
    along = torch.stack([turn.sin() / high, turn.cos() / high, -down], dim=1)
    fine = 3 * size                                                     # three looks a side in each pixel, averaged
    grid = F.affine_grid(torch.stack([across, along], dim=1), [n, 1, fine, fine], align_corners=False)      # (n, 3N, 3N, 2)
    ink = F.grid_sample(large[fonts, labels][:, None], grid, align_corners=False)       # (n, 1, 3N, 3N)
    ink = F.avg_pool2d(ink, 3)[:, 0]                                    # (n, N, N)
    return (ink * levels).long().clamp(max=levels - 1), labels
