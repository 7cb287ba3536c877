"""Pixels: an image is a sequence of pixels, and the chain rule gives its probability.

    p(x) = Πᵢ p(xᵢ | x_<i)

The pixels are in raster order: row by row from the top, each row from the left. A model maps images
(B, Y, X) of whole numbers 0 to K − 1 to logits (B, Y, X, K), where [:, y, x] scores pixel (x, y)
given the pixels before it. This file has what pixel_cnn.py and pixel_rnn.py share, and a baseline.

Source: course C, "PixelRNN" and "PixelCNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §2.1.
Deviation: a pixel has one channel of K levels; in the paper it has three colours of 256 levels.

Shapes: B batch, Y rows, X columns, K levels.
"""
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_sizes


def check_levels(levels: int) -> None:
    """ValueError unless a pixel has at least two levels: with one there is nothing to predict."""
    check_sizes(levels=levels)
    if levels == 1:
        raise ValueError("levels must be at least 2, so that there is something to predict, not 1")


def at_place(values: Tensor, images: Tensor) -> Tensor:
    """The first Y rows of values (..., rows, X), for images (B, Y, X, …) of which Y are drawn."""
    rows, columns = values.shape[-2:]
    if images.size(1) > rows or images.size(2) != columns:
        raise ValueError(f"this model was made for images of {rows} × {columns} (or their first "
                         f"rows), not {images.size(1)} × {images.size(2)}")
    return values[..., :images.size(1), :]


class IndependentPixels(nn.Module):
    """p(x) = Πᵢ p(xᵢ): the baseline that counts levels at each place and ignores other pixels.

    One is added to each count, so that no level has probability 0.
    """

    def __init__(self, images: Tensor, levels: int):
        super().__init__()
        check_levels(levels)
        if images.numel() == 0:
            raise ValueError(f"there is nothing to count in images of shape {tuple(images.shape)}")
        counts = F.one_hot(images, levels).float().sum(0) + 1                   # (Y, X, K)
        logits = (counts / counts.sum(-1, keepdim=True)).log()
        self.register_buffer("logits", logits.permute(2, 0, 1))                 # (K, Y, X)

    def forward(self, images: Tensor) -> Tensor:
        logits = at_place(self.logits, images).permute(1, 2, 0)                 # (Y, X, K)
        return logits.expand(len(images), -1, -1, -1)                           # (B, Y, X, K)


def image_bits(model: nn.Module, images: Tensor) -> Tensor:
    """−log₂ p(x) = −Σᵢ log₂ p(xᵢ | x_<i) of each image: (B, Y, X) -> (B,)."""
    logprobs = model(images).log_softmax(-1).gather(-1, images[..., None])      # (B, Y, X, 1)
    return -logprobs.flatten(1).sum(1) / math.log(2)


def conditionals(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yields logits (B, K) of p(xᵢ | x_<i) for i = 0, 1, … in raster order.

    Each reads `images` (B, Y, X) at that moment, so write pixel i before asking for pixel i + 1.
    """
    if hasattr(model, "conditionals"):                      # PixelRNN keeps its states
        yield from model.conditionals(images)
    else:
        for y, x in itertools.product(range(images.size(1)), range(images.size(2))):
            yield model(images[:, :y + 1])[:, y, x]         # no pixel depends on the rows below


@torch.no_grad()
def complete(model: nn.Module, images: Tensor, n_known: int,
             generator: torch.Generator | None = None) -> Tensor:
    """Keeps the first `n_known` pixels of each image (B, Y, X) and draws the others from the model.

    What is drawn is an exact sample of p(rest | first pixels). Given other pixels, say the lower
    half, one would have to sum over all images that have them.
    """
    n_pixels = images.size(1) * images.size(2)
    if not 0 <= n_known <= n_pixels:
        raise ValueError(f"n_known must be between 0 and the {n_pixels} pixels, not {n_known}")
    images = images.clone(memory_format=torch.contiguous_format)
    pixels = images.flatten(1)                              # (B, Y·X), a view of the copy
    pixels[:, n_known:] = 0
    for i, logits in enumerate(conditionals(model, images)):
        if i >= n_known:
            probabilities = logits.softmax(-1).cpu()        # the generator is on the CPU
            drawn = torch.multinomial(probabilities, 1, generator=generator)    # (B, 1)
            pixels[:, i] = drawn[:, 0].to(images.device)
    return images


def sample(model: nn.Module, n: int, rows: int, columns: int,
           generator: torch.Generator | None = None) -> Tensor:
    """Draws n images (n, rows, columns) from p(x), pixel by pixel."""
    check_sizes(n=n, rows=rows, columns=columns)
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    blank = torch.zeros(n, rows, columns, dtype=torch.long, device=device)
    return complete(model, blank, 0, generator)
