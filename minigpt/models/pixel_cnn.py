"""PixelCNN: a convolutional network that predicts each pixel of an image from the pixels before it.

    first layer      convolution with mask A        no weight on the pixel itself or on later ones
    other layers     convolutions with mask B       no weight on later pixels

    mask A  1 1 1    mask B  1 1 1
            1 0 0            1 1 0
            0 0 0            0 0 0

The first layer reads the image. At the centre of its kernel is the pixel to predict, so mask A
leaves the centre out. After that layer, the output at a pixel depends only on earlier pixels, and
the next layer may read it at its own centre: mask B. When the image is known, one pass gives all
conditionals. To draw an image, the network runs once for each pixel.

Source: course C, "PixelCNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §3.3 (residual
blocks), §3.4 (masks A and B), §3.5 and table 1 (PixelCNN).
Deviations: one channel of K levels, so no order among colours. A learned vector for each place is
added after the first layer, as GPT adds one for each position: the digits of lesson 10 stand in the
middle of the image, and a convolution does not know where it is.
Not here: the gates and the two stacks of van den Oord et al. 2016b, which removed the blind spot
that is described at `PixelCNN`.

Shapes: B batch, Y rows, X columns, K levels, C channels.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_sizes
from minigpt.models.pixels import at_place, check_levels, one_hot


def pixel_mask(kernel_size: int, kind: str) -> Tensor:
    """(k, k) bool, True on the weights of earlier pixels; kind "B" includes the centre.

    >>> pixel_mask(3, "A").int().tolist()
    [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    """
    if kind not in ("A", "B"):
        raise ValueError(f"a mask is of kind A (without the centre) or B (with it), not {kind!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that there is a centre, not {kernel_size}")
    order = torch.arange(kernel_size**2).view(kernel_size, kernel_size)         # raster order
    centre = kernel_size**2 // 2
    return order < centre if kind == "A" else order <= centre


class MaskedConvolution(nn.Conv2d):
    """(B, C, Y, X) -> (B, C′, Y, X): a convolution that reads earlier pixels only.

    With mask B it reads the pixel itself too.
    """

    def __init__(
        self, kind: str, c_in: int, c_out: int, kernel_size: int,
        generator: torch.Generator | None = None,
    ):
        mask = pixel_mask(kernel_size, kind)
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2)
        self.register_buffer("mask", mask, persistent=False)
        n_inputs = c_in * max(1, int(mask.sum()))
        std = (2 / n_inputs) ** 0.5                         # before a ReLU (He et al. 2015)
        nn.init.normal_(self.weight, std=std, generator=generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class NeighbourRegression(nn.Module):
    """The second baseline: logistic regression on the earlier neighbours and on the place.

    It is one convolution with mask A, and a bias for each place.
    """

    def __init__(
        self, levels: int, rows: int, columns: int, kernel_size: int = 7,
        generator: torch.Generator | None = None,
    ):
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
        return self.score(one_hot(images, self.levels, self.convolution.weight))


class ResidualBlock(nn.Module):
    """x + f(x), where f is three convolutions with mask B and a ReLU before each (figure 5, left).

    The first takes C channels to C/2 at each pixel, the second reads a 3 × 3 window, and the third
    takes C/2 channels to C at each pixel.
    """

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even, 2 or more, not {channels}")
        self.narrow = MaskedConvolution("B", channels, channels // 2, 1, generator)
        self.look = MaskedConvolution("B", channels // 2, channels // 2, 3, generator)
        self.widen = MaskedConvolution("B", channels // 2, channels, 1, generator)
        # With these weights at 0 a new block is the identity, so a deep network starts as a
        # shallow one.
        nn.init.zeros_(self.widen.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.look(F.relu(self.narrow(F.relu(x))))                   # (B, C/2, Y, X)
        return x + self.widen(F.relu(y))                                # (B, C, Y, X)


class PixelCNN(nn.Module):
    """NeighbourRegression with hidden layers (table 1): images (B, Y, X) -> logits (B, Y, X, K).

    The layers: 7 × 7 with mask A, residual blocks with mask B, two layers at each pixel.
    The prediction of a pixel reads n_blocks + 3 rows up and n_blocks + 3 columns to the left. To
    the right it reads 3 columns in the row above, 4 in the next row up, and so on: r + 2 columns r
    rows up, but at most n_blocks + 3. The pixels further to the right are the blind spot.
    """

    def __init__(
        self, levels: int, rows: int, columns: int, channels: int = 32, n_blocks: int = 8,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_levels(levels)
        check_sizes(rows=rows, columns=columns, channels=channels)
        if n_blocks < 0:
            raise ValueError(f"n_blocks must be 0 or more, not {n_blocks}")
        self.levels = levels
        self.first = MaskedConvolution("A", levels, channels, 7, generator)
        self.place = nn.Parameter(torch.zeros(channels, rows, columns))
        self.blocks = nn.ModuleList(ResidualBlock(channels, generator) for _ in range(n_blocks))
        self.mix = MaskedConvolution("B", channels, channels, 1, generator)
        self.out = MaskedConvolution("B", channels, levels, 1, generator)

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        h = self.first(x.permute(0, 3, 1, 2)) + at_place(self.place, x)         # (B, C, Y, X)
        for block in self.blocks:
            h = block(h)
        h = self.mix(F.relu(h))
        return self.out(F.relu(h)).permute(0, 2, 3, 1)                          # (B, Y, X, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(one_hot(images, self.levels, self.first.weight))
