"""Pixels: an image is a sequence once its pixels have an order, so the language models' product of conditionals applies.

    p(x) = Πᵢ p(xᵢ | x_<i)          row by row from the top, each row from the left: "raster order"

    PixelRNN    h(x,y) = f( h(x−1,y), h(x,y−1), W )             a memory that arrives from the left and from above
    PixelCNN    mask A, then mask B, B, …                       convolutions whose weights on what comes later are 0

Both give every pixel's distribution at once when the image is known, and both draw a new image pixel by pixel.

Source: course C, "PixelRNN and PixelCNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §3.2 (diagonal BiLSTM), §3.3 (residual
blocks), §3.4 (masks A and B), §3.5 (PixelCNN).
Deviations: one channel of K levels instead of three of 256, so no order among colours; a learned vector for each place in
PixelCNN, as GPT has one for each position (small digits sit in the middle, and a convolution alone would have to find out where it is);
one layer of PixelRNN, so without residual connections, with no convolution in front of it (a shift by one takes mask A's place), and
with one layer that reads three states where theirs adds two maps. PixelCNN keeps the paper's blind spot: it misses pixels far to the
right in the rows above. PixelRNN misses none. Not here: row LSTM, multi-scale, and the gates and two stacks that cured the
blind spot (van den Oord et al. 2016b).

A model maps images (B, Y, X) of whole numbers 0..K−1 to logits (B, Y, X, K): [:, y, x] scores pixel (x, y) given those before it.

Shapes: B batch, Y rows, X columns, K levels, C channels, D hidden units.
"""
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def one_hot(images: Tensor, levels: int, like: Tensor) -> Tensor:
    """(B, Y, X) levels -> (B, Y, X, K) zeros and ones in the dtype of `like`. Outside an image all K are 0, so its edge can be told from paper."""
    if images.dim() != 3 or images.dtype != torch.long:
        raise ValueError("images are whole numbers (torch.long) of shape (batch, rows, columns), "
                         f"not {images.dtype} of shape {tuple(images.shape)}")
    if images.numel() and not (0 <= images.min() and images.max() < levels):
        raise ValueError(f"this model knows the levels 0 to {levels - 1}, and the images hold {images.min()} to {images.max()}")
    return F.one_hot(images, levels).to(like.dtype)


# ── Baselines ──────────────────────────────────────────────────────────────────────────────────────────────────────────

def at_place(values: Tensor, images: Tensor) -> Tensor:
    """Values of each place (..., rows, columns), cut to the places that `images` (B, Y, X, …) have: its first rows are enough to sample."""
    rows, columns = values.shape[-2:]
    if images.size(1) > rows or images.size(2) != columns:
        raise ValueError(f"this model was made for images of {rows} × {columns} (or their first rows), not {images.size(1)} × {images.size(2)}")
    return values[..., :images.size(1), :]


class IndependentPixels(nn.Module):
    """p(x) = Πᵢ p(xᵢ): each place has its own counts, and no pixel hears of another. Nothing to train.

    One is added to each count, so a level never seen at some place is rare there and not impossible.

    >>> model = IndependentPixels(torch.tensor([[[0, 1]], [[0, 0]]]), levels=2)     # two images of 1 × 2
    >>> model(torch.tensor([[[1, 1]]])).exp()                                       # (2+1)/(2+2), (0+1)/(2+2); (1+1)/(2+2) twice
    tensor([[[[0.7500, 0.2500],
              [0.5000, 0.5000]]]])
    """

    def __init__(self, images: Tensor, levels: int):
        super().__init__()
        counts = one_hot(images, levels, torch.tensor(1.0)).sum(0) + 1                  # (B, Y, X, K) -> (Y, X, K)
        self.register_buffer("logits", (counts / counts.sum(-1, keepdim=True)).log().permute(2, 0, 1))      # (K, Y, X)

    def forward(self, images: Tensor) -> Tensor:
        return at_place(self.logits, images).permute(1, 2, 0).expand(len(images), -1, -1, -1)               # (B, Y, X, K)


def pixel_mask(kernel_size: int, kind: str) -> Tensor:
    """(k, k) bool, True on the weights that look at earlier pixels; kind "B" keeps the centre, "A" does not.

    >>> pixel_mask(3, "A").int().tolist()
    [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    """
    if kind not in ("A", "B"):
        raise ValueError(f"a mask is of kind A (without the centre) or B (with it), not {kind!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that there is a centre, not {kernel_size}")
    order = torch.arange(kernel_size**2).view(kernel_size, kernel_size)                 # raster order inside the kernel
    centre = kernel_size**2 // 2
    return order < centre if kind == "A" else order <= centre


class MaskedConvolution(nn.Conv2d):
    """(B, C, Y, X) -> (B, C', Y, X): a convolution that sees earlier pixels only, and with mask B its own place too.

    Where the input is the image itself, the own place holds the answer: mask A. Where the input is the output of a masked
    layer, the own place holds what is known so far: mask B.
    """

    def __init__(self, kind: str, c_in: int, c_out: int, kernel_size: int, generator: torch.Generator | None = None):
        mask = pixel_mask(kernel_size, kind)
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.normal_(self.weight, std=(2 / (c_in * max(1, int(mask.sum())))) ** 0.5, generator=generator)    # He et al. 2015, for ReLU
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class NeighbourRegression(nn.Module):
    """Logistic regression on the neighbours already seen and on the place: one convolution with mask A, and a bias for each place."""

    def __init__(self, levels: int, rows: int, columns: int, kernel_size: int = 7, generator: torch.Generator | None = None):
        super().__init__()
        self.levels = levels
        self.convolution = MaskedConvolution("A", levels, levels, kernel_size, generator)
        self.place = nn.Parameter(torch.zeros(levels, rows, columns))

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        return (self.convolution(x.permute(0, 3, 1, 2)) + at_place(self.place, x)).permute(0, 2, 3, 1)      # to (B, K, Y, X) and back

    def forward(self, images: Tensor) -> Tensor:
        return self.score(one_hot(images, self.levels, self.convolution.weight))


# ── PixelCNN ───────────────────────────────────────────────────────────────────────────────────────────────────────────

class ResidualBlock(nn.Module):
    """x + (C → C/2 at each pixel, 3 × 3 with mask B, C/2 → C at each pixel), a ReLU before each (paper, figure 5, left)."""

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        super().__init__()
        self.narrow = MaskedConvolution("B", channels, channels // 2, 1, generator)
        self.look = MaskedConvolution("B", channels // 2, channels // 2, 3, generator)
        self.widen = MaskedConvolution("B", channels // 2, channels, 1, generator)
        nn.init.zeros_(self.widen.weight)                               # a block begins by changing nothing: depth costs no start-up

    def forward(self, x: Tensor) -> Tensor:
        y = self.look(F.relu(self.narrow(F.relu(x))))                   # (B, C/2, Y, X)
        return x + self.widen(F.relu(y))                                # (B, C, Y, X)


class PixelCNN(nn.Module):
    """NeighbourRegression with hidden layers: 7 × 7 with mask A, residual blocks with mask B, two layers at each pixel (paper, table 1).

    It sees n_blocks + 3 rows up and as many columns to the left; to the right 3 columns in the row above, 4 in the one above that, …:
    r + 2 in row −r, no more than n_blocks + 3. What lies further to the right is the blind spot.
    """

    def __init__(self, levels: int, rows: int, columns: int, channels: int = 32, n_blocks: int = 8, generator: torch.Generator | None = None):
        super().__init__()
        if levels < 2 or channels < 2 or channels % 2 or n_blocks < 0:
            raise ValueError(f"levels must be at least 2, channels even and n_blocks at least 0, not {levels}, {channels} and {n_blocks}")
        self.levels = levels
        self.first = MaskedConvolution("A", levels, channels, 7, generator)
        self.place = nn.Parameter(torch.zeros(channels, rows, columns))
        self.blocks = nn.ModuleList(ResidualBlock(channels, generator) for _ in range(n_blocks))
        self.mix = MaskedConvolution("B", channels, channels, 1, generator)
        self.out = MaskedConvolution("B", channels, levels, 1, generator)

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        h = self.first(x.permute(0, 3, 1, 2)) + at_place(self.place, x)        # (B, C, Y, X)
        for block in self.blocks:
            h = block(h)
        h = self.mix(F.relu(h))
        return self.out(F.relu(h)).permute(0, 2, 3, 1)                  # (B, K, Y, X) -> (B, Y, X, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(one_hot(images, self.levels, self.first.weight))


# ── PixelRNN ───────────────────────────────────────────────────────────────────────────────────────────────────────────

def skew(x: Tensor) -> Tensor:
    """(B, Y, X, C) -> (B, Y, X + Y − 1, C): row y moves y places to the right, so that a diagonal becomes a column.

    >>> skew(torch.tensor([[1, 2, 3], [4, 5, 6]])[None, ..., None])[0, ..., 0].tolist()
    [[1, 2, 3, 0], [0, 4, 5, 6]]
    """
    B, Y, X, C = x.shape
    x = F.pad(x, (0, 0, 0, Y)).flatten(1, 2)                            # (B, Y·(X + Y), C)
    return x[:, :Y * (X + Y - 1)].unflatten(1, (Y, X + Y - 1))          # rows one shorter: each begins one place later than the one above


def unskew(x: Tensor) -> Tensor:
    """The way back: (B, Y, X + Y − 1, C) -> (B, Y, X, C)."""
    B, Y, steps, C = x.shape
    x = F.pad(x.flatten(1, 2), (0, 0, 0, Y)).unflatten(1, (Y, steps + 1))               # (B, Y, X + Y, C)
    return x[:, :, :steps + 1 - Y]


class DiagonalLSTM(nn.Module):
    """h(x,y) = f( h(x−1,y), h(x,y−1), W ) for a whole image: inputs (B, Y, X, C) -> states (B, Y, X, D).

        i, f, o = σ( W v(x,y) + U [h(x−1,y) ; h(x,y−1)] + b )       each with its own W, U, b        (paper, eq. 3)
        g       = tanh( … )                                         with its own too
        c(x,y)  = f ⊙ c(x−1,y) + i ⊙ g                              the memory cell runs along the row
        h(x,y)  = o ⊙ tanh( c(x,y) )                                the state runs along the row and down the column

    Pixels of one diagonal, x + y = const, do not wait for each other: Y + X − 1 steps, and not Y · X.
    """

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        self.W = nn.Parameter(torch.empty(4 * d_hidden, d_in))
        self.U = nn.Parameter(torch.empty(4 * d_hidden, 2 * d_hidden))
        self.b = nn.Parameter(torch.zeros(4 * d_hidden))
        nn.init.normal_(self.W, std=1.0, generator=generator)           # a one-hot input picks one column: order 1
        nn.init.normal_(self.U, std=(2 * d_hidden) ** -0.5, generator=generator)
        nn.init.ones_(self.b.detach()[d_hidden:2 * d_hidden])           # f near 1: remember, until there is reason not to

    def project(self, inputs: Tensor) -> Tensor:
        """W v + b, which waits for nothing: (..., C) -> (..., 4D)."""
        return F.linear(inputs, self.W, self.b)

    def step(self, projected: Tensor, h_left: Tensor, h_above: Tensor, c_left: Tensor) -> tuple[Tensor, Tensor]:
        """h and c of pixels whose left and upper neighbours are done: (..., 4D), three times (..., D) -> twice (..., D)."""
        gates = projected + torch.cat([h_left, h_above], dim=-1) @ self.U.T             # (..., 4D)
        i, f, o, g = gates.chunk(4, dim=-1)                             # (..., D) each
        c = torch.sigmoid(f) * c_left + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, inputs: Tensor) -> Tensor:
        B, Y = inputs.shape[:2]
        projected = skew(self.project(inputs))                          # (B, Y, X + Y − 1, 4D)
        # Left of the image W v + b is 0 after skewing, bias included, so g = 0 and h and c stay 0, as a beginning should.
        # Right of it h and c are not 0, but no pixel of the image comes after them.
        h = c = projected.new_zeros(B, Y, self.U.size(1) // 2)          # (B, Y, D): one diagonal, a pixel a row
        states = []
        for now in projected.unbind(2):                                 # (B, Y, 4D)
            above = F.pad(h[:, :-1], (0, 0, 1, 0))                      # the diagonal before, moved down a row: h(x, y−1)
            h, c = self.step(now, h, above, c)
            states.append(h)
        return unskew(torch.stack(states, dim=2))                       # (B, Y, X + Y − 1, D) -> (B, Y, X, D)


class PixelRNN(nn.Module):
    """Two diagonal LSTMs, →h from the left and above and ←h from the right and above; pixel (x,y) is guessed from three states:

        →h(x−1,y): this row so far, and above it        →h(x,y−1), ←h(x,y−1): the rows above, up to x and from x on

    Together they have read every earlier pixel and no other. ←h is only read one row up: in its own row it has seen the future.
    """

    def __init__(self, levels: int, d_hidden: int = 32, generator: torch.Generator | None = None):
        super().__init__()
        if levels < 2 or d_hidden < 1:
            raise ValueError(f"levels must be at least 2 and d_hidden at least 1, not {levels} and {d_hidden}")
        self.levels, self.d_hidden = levels, d_hidden
        self.rightwards = DiagonalLSTM(levels, d_hidden, generator)
        self.leftwards = DiagonalLSTM(levels, d_hidden, generator)
        self.mix = nn.Linear(3 * d_hidden, 2 * d_hidden)
        self.out = nn.Linear(2 * d_hidden, levels)
        for layer in (self.mix, self.out):
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def guess(self, left: Tensor, above: Tensor, above_back: Tensor) -> Tensor:
        """Three states (..., D) -> logits (..., K)."""
        return self.out(F.relu(self.mix(torch.cat([left, above, above_back], dim=-1))))

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        h = self.rightwards(x)                                          # (B, Y, X, D)
        h_back = self.leftwards(x.flip(2)).flip(2)                      # the mirrored image, and mirrored back
        return self.guess(F.pad(h[:, :, :-1], (0, 0, 1, 0)), *(F.pad(s[:, :-1], (0, 0, 0, 0, 1, 0)) for s in (h, h_back)))

    def forward(self, images: Tensor) -> Tensor:
        return self.score(one_hot(images, self.levels, self.out.weight))

    def conditionals(self, images: Tensor) -> Iterator[Tensor]:
        """As the function `conditionals` below, with the states kept: one step of →h a pixel, and for each finished row one of ←h a pixel."""
        B, Y, X = images.shape
        nothing = self.out.weight.new_zeros(B, self.d_hidden)           # (B, D)
        above = above_back = [nothing] * X                              # states of the row above, a column each
        for y in range(Y):
            row, h, c = [], nothing, nothing
            for x in range(X):
                yield self.guess(h, above[x], above_back[x])
                pixel = one_hot(images[:, y:y + 1, x:x + 1], self.levels, nothing)[:, 0, 0]         # (B, 1, 1, K) -> (B, K)
                h, c = self.rightwards.step(self.rightwards.project(pixel), h, above[x], c)
                row.append(h)
            row_back, h, c = [], nothing, nothing
            for x in reversed(range(X)):
                pixel = one_hot(images[:, y:y + 1, x:x + 1], self.levels, nothing)[:, 0, 0]
                h, c = self.leftwards.step(self.leftwards.project(pixel), h, above_back[x], c)
                row_back.insert(0, h)
            above, above_back = row, row_back


# ── What is asked of any of them ───────────────────────────────────────────────────────────────────────────────────────

def image_bits(model: nn.Module, images: Tensor) -> Tensor:
    """−log₂ p(x) = −Σᵢ log₂ p(xᵢ | x_<i) of each image: (B, Y, X) -> (B,). Divide by Y·X for bits per pixel."""
    logprobs = model(images).log_softmax(-1).gather(-1, images[..., None])[..., 0]      # (B, Y, X, K) -> (B, Y, X)
    return -logprobs.flatten(1).sum(1) / math.log(2)


def conditionals(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yields the logits (B, K) of one pixel after another. `images` is read as it then stands: write a pixel before asking for the next."""
    if hasattr(model, "conditionals"):
        yield from model.conditionals(images)
    else:
        for y in range(images.size(1)):
            for x in range(images.size(2)):
                yield model(images[:, :y + 1])[:, y, x]                 # the rows below are not needed


@torch.no_grad()
def complete(model: nn.Module, images: Tensor, n_known: int, generator: torch.Generator | None = None) -> Tensor:
    """Keeps the first n_known pixels of each image (B, Y, X), in raster order, and draws the others, each from p(xᵢ | x_<i).

    What stood in the others is ignored.
    A beginning in raster order is what these models can complete *exactly*: a draw from p(rest | beginning). With the right
    half given, or the lower, they would have to sum over all that could stand before.
    """
    n_pixels = images.size(1) * images.size(2)
    if not 0 <= n_known <= n_pixels:
        raise ValueError(f"n_known must be between 0 and the {n_pixels} pixels of an image, not {n_known}")
    images = images.clone(memory_format=torch.contiguous_format)        # so that flatten(1) is a view, and writing to it writes here
    images.flatten(1)[:, n_known:] = 0
    for i, logits in enumerate(conditionals(model, images)):
        if i >= n_known:                                                # drawn on the CPU, where the generator is
            images.flatten(1)[:, i] = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(images.device)
    return images


def sample(model: nn.Module, n: int, rows: int, columns: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws n images (n, rows, columns) from p(x), pixel by pixel."""
    if min(n, rows, columns) < 1:
        raise ValueError(f"draw at least one image of at least one pixel, not {n} of {rows} × {columns}")
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    return complete(model, torch.zeros(n, rows, columns, dtype=torch.long, device=device), 0, generator)
