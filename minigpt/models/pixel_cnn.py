"""PixelCNN: a convolutional network that predicts each pixel of an image from the pixels before it.

    mask A  1 1 1    mask B  1 1 1      1: the convolution reads this pixel
            1 0 0            1 1 0      first layer: mask A, without the pixel itself (the centre)
            0 0 0            0 0 0      other layers: mask B, with it

The first layer reads the image, and the pixel to predict is at the centre of its kernel. After that
layer, the output at a pixel depends only on earlier pixels, so the next layer may read it at its
own centre. When the image is known, one pass gives all conditionals. To draw an image, the network
runs once for each pixel. A pixel is K numbers, one of which is 1. Convolutions pad an image with
zeros, so the padding differs from a pixel of level 0.

Source: course C, "PixelCNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §3.3–3.5 and table 1.
Deviations: one channel of K levels, so no order among colours. A convolution does not know where it
is, so a learned vector for each place is added after the first layer, as GPT adds positions.
Not here: the gates and the two stacks of van den Oord et al. 2016b, which remove the blind spot.

Shapes: B batch, Y rows, X columns, K levels, C channels.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_sizes
from minigpt.models.pixels import at_place, check_levels


def pixel_mask(kernel_size: int, kind: str) -> Tensor:
    """(k, k) bool, True on the weights of earlier pixels; kind "B" includes the centre."""
    if kind not in ("A", "B"):
        raise ValueError(f"a mask is of kind A (without the centre) or B (with it), not {kind!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that there is a centre, not {kernel_size}")
    order = torch.arange(kernel_size**2).view(kernel_size, kernel_size)         # raster order
    centre = kernel_size**2 // 2
    return order < centre if kind == "A" else order <= centre


class MaskedConvolution(nn.Conv2d):
    """(B, C, Y, X) -> (B, C′, Y, X): reads earlier pixels, and with mask B the pixel itself."""

    def __init__(self, kind: str, c_in: int, c_out: int, kernel_size: int,
                 generator: torch.Generator | None = None):
        mask = pixel_mask(kernel_size, kind)
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2)
        self.register_buffer("mask", mask, persistent=False)
        std = (2 / (c_in * max(1, int(mask.sum())))) ** 0.5     # before a ReLU (He et al. 2015)
        nn.init.normal_(self.weight, std=std, generator=generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class NeighbourRegression(nn.Module):
    """The second baseline, logistic regression: a mask-A convolution and a bias for each place."""

    def __init__(self, levels: int, rows: int, columns: int, kernel_size: int = 7,
                 generator: torch.Generator | None = None):
        super().__init__()
        check_levels(levels)
        check_sizes(rows=rows, columns=columns)
        if kernel_size == 1:
            raise ValueError("with kernel_size 1, mask A hides the only pixel; take 3 or more")
        self.levels = levels
        self.convolution = MaskedConvolution("A", levels, levels, kernel_size, generator)
        self.place = nn.Parameter(torch.zeros(levels, rows, columns))

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        logits = self.convolution(x.permute(0, 3, 1, 2)) + at_place(self.place, x)
        return logits.permute(0, 2, 3, 1)                               # (B, Y, X, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(F.one_hot(images, self.levels).to(self.place))


class ResidualBlock(nn.Module):
    """x + f(x), where f is three convolutions with mask B, each after a ReLU (figure 5, left)."""

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        super().__init__()
        self.narrow = MaskedConvolution("B", channels, channels // 2, 1, generator)
        self.look = MaskedConvolution("B", channels // 2, channels // 2, 3, generator)
        self.widen = MaskedConvolution("B", channels // 2, channels, 1, generator)
        nn.init.zeros_(self.widen.weight)       # so a new block is the identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.look(F.relu(self.narrow(F.relu(x))))                   # (B, C/2, Y, X)
        return x + self.widen(F.relu(y))                                # (B, C, Y, X)


class PixelCNN(nn.Module):
    """NeighbourRegression with hidden layers (table 1): images (B, Y, X) -> logits (B, Y, X, K).

    The prediction of a pixel reads n_blocks + 3 rows up and n_blocks + 3 columns to the left. To
    the right it reads r + 2 columns in the row that is r rows up, but at most n_blocks + 3. The
    pixels further to the right are the blind spot.
    """

    def __init__(self, levels: int, rows: int, columns: int, channels: int = 32, n_blocks: int = 8,
                 generator: torch.Generator | None = None):
        super().__init__()
        check_levels(levels)
        check_sizes(rows=rows, columns=columns, channels=channels)
        if n_blocks < 0:
            raise ValueError(f"n_blocks must be 0 or more, not {n_blocks}")
        self.levels = levels
        self.first = MaskedConvolution("A", levels, channels, 7, generator)
        self.place = nn.Parameter(torch.zeros(channels, rows, columns))
        self.blocks = nn.Sequential(*(ResidualBlock(channels, generator) for _ in range(n_blocks)))
        self.mix = MaskedConvolution("B", channels, channels, 1, generator)
        self.out = MaskedConvolution("B", channels, levels, 1, generator)

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        h = self.first(x.permute(0, 3, 1, 2)) + at_place(self.place, x)         # (B, C, Y, X)
        h = self.mix(F.relu(self.blocks(h)))
        return self.out(F.relu(h)).permute(0, 2, 3, 1)                          # (B, Y, X, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(F.one_hot(images, self.levels).to(self.place))
