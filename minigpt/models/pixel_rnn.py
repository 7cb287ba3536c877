"""PixelRNN: a recurrent network whose state at a pixel depends on the states to the left and above.

    h(x,y) = f( h(x−1,y), h(x,y−1), v(x,y) )        v(x,y) is the pixel read at this step

f is an LSTM. The pixels of a diagonal x + y = const do not depend on each other, so when the image
is known, Y + X − 1 steps compute all states. Drawing an image takes one step for each pixel. One
network misses the pixels to the right in the rows above, so a second reads the mirrored image.

Source: course C, "PixelRNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §3.2 (the diagonal
BiLSTM) and eq. 3.
Deviations: one channel of K levels, and one layer. The layer reads the image itself, and a pixel is
predicted from three states of earlier pixels; in the paper a convolution with mask A comes before,
and two maps are added.
Not here: the row LSTM, the multi-scale network.

Shapes: B batch, Y rows, X columns, K levels, C input channels, D hidden units.
"""
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_sizes
from minigpt.models.pixels import check_levels


def skew(x: Tensor) -> Tensor:
    """(B, Y, X, C) -> (B, Y, X + Y − 1, C): moves row y by y places, so diagonals become columns.

    >>> skew(torch.tensor([[1, 2, 3], [4, 5, 6]])[None, ..., None])[0, ..., 0].tolist()
    [[1, 2, 3, 0], [0, 4, 5, 6]]
    """
    Y, X = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, Y)).flatten(1, 2)                # (B, Y·(X + Y), C): rows with Y zeros
    # Cut into rows that are one shorter, each row begins one place later than the one above.
    return x[:, :Y * (X + Y - 1)].unflatten(1, (Y, X + Y - 1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of `skew`: (B, Y, X + Y − 1, C) -> (B, Y, X, C)."""
    Y, steps = x.shape[1:3]
    x = F.pad(x.flatten(1, 2), (0, 0, 0, Y)).unflatten(1, (Y, steps + 1))       # (B, Y, X + Y, C)
    return x[:, :, :steps + 1 - Y]


class DiagonalLSTM(nn.Module):
    """The states of a whole image: inputs (B, Y, X, C) -> (B, Y, X, D).

        i, f, o = σ( W v(x,y) + U [h(x−1,y) ; h(x,y−1)] + b )       input, forget, output gate
        g       = tanh( W v(x,y) + U [h(x−1,y) ; h(x,y−1)] + b )    each has its own W, U and b
        c(x,y)  = f ⊙ c(x−1,y) + i ⊙ g                              passed along the row only
        h(x,y)  = o ⊙ tanh( c(x,y) )                                                  (eq. 3)
    """

    def __init__(self, d_in: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(d_in=d_in, d_hidden=d_hidden)
        self.W = nn.Parameter(torch.empty(4 * d_hidden, d_in))      # of i, f, o, g, in this order
        self.U = nn.Parameter(torch.empty(4 * d_hidden, 2 * d_hidden))
        self.b = nn.Parameter(torch.zeros(4 * d_hidden))
        nn.init.normal_(self.W, std=1.0, generator=generator)       # a one-hot v selects one column
        nn.init.normal_(self.U, std=(2 * d_hidden) ** -0.5, generator=generator)
        nn.init.ones_(self.b.detach()[d_hidden:2 * d_hidden])       # the forget gate, as in LSTM

    def project(self, inputs: Tensor) -> Tensor:
        """W v + b, which depends on no state: (..., C) -> (..., 4D)."""
        return F.linear(inputs, self.W, self.b)

    def step(self, projected: Tensor, h_left: Tensor, h_above: Tensor,
             c_left: Tensor) -> tuple[Tensor, Tensor]:
        """h and c at pixels, from `projected` (..., 4D) and the neighbours' states (..., D)."""
        gates = projected + torch.cat([h_left, h_above], dim=-1) @ self.U.T     # (..., 4D)
        i, f, o, g = gates.chunk(4, dim=-1)                                     # 4 times (..., D)
        c = torch.sigmoid(f) * c_left + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, inputs: Tensor) -> Tensor:
        B, Y = inputs.shape[:2]
        projected = skew(self.project(inputs))                          # (B, Y, X + Y − 1, 4D)
        # `skew` puts zeros to the left of the image, where h and c stay 0, and to its right, where
        # no pixel reads them.
        h = c = projected.new_zeros(B, Y, self.U.size(1) // 2)          # (B, Y, D): one diagonal
        states = []
        for now in projected.unbind(2):                                 # X + Y − 1 times (B, Y, 4D)
            above = F.pad(h[:, :-1], (0, 0, 1, 0))          # h(x,y−1): the last diagonal, one down
            h, c = self.step(now, h, above, c)
            states.append(h)
        return unskew(torch.stack(states, dim=2))                       # (B, Y, X, D)


class PixelRNN(nn.Module):
    """Two diagonal LSTMs: images (B, Y, X) -> logits (B, Y, X, K). Three states predict a pixel:

        →h(x−1,y)    which depends on this row up to x − 1, and on the rows above up to x − 1
        →h(x,y−1)    which depends on the rows above, up to column x
        ←h(x,y−1)    which depends on the rows above, from column x on

    Together they depend on every earlier pixel and on no other: ←h is not read in its own row.
    """

    def __init__(self, levels: int, d_hidden: int = 32, generator: torch.Generator | None = None):
        super().__init__()
        check_levels(levels)
        self.levels, self.d_hidden = levels, d_hidden
        self.rightwards = DiagonalLSTM(levels, d_hidden, generator)     # →h
        self.leftwards = DiagonalLSTM(levels, d_hidden, generator)      # ←h
        self.mix = nn.Linear(3 * d_hidden, 2 * d_hidden)
        self.out = nn.Linear(2 * d_hidden, levels)
        for layer in (self.mix, self.out):
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def guess(self, left: Tensor, above: Tensor, above_back: Tensor) -> Tensor:
        """→h(x−1,y), →h(x,y−1) and ←h(x,y−1), each (..., D) -> logits of pixel (x,y) (..., K)."""
        return self.out(F.relu(self.mix(torch.cat([left, above, above_back], dim=-1))))

    def score(self, x: Tensor) -> Tensor:
        """Logits from one-hot pixels: (B, Y, X, K) -> (B, Y, X, K)."""
        h = self.rightwards(x)                                          # (B, Y, X, D)
        h_back = self.leftwards(x.flip(2)).flip(2)                      # the image is mirrored
        left = F.pad(h[:, :, :-1], (0, 0, 1, 0))                        # zeros outside the image
        above, above_back = (F.pad(s[:, :-1], (0, 0, 0, 0, 1, 0)) for s in (h, h_back))
        return self.guess(left, above, above_back)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(F.one_hot(images, self.levels).to(self.out.weight))

    def conditionals(self, images: Tensor) -> Iterator[Tensor]:
        """As `conditionals` in pixels.py, but with the states kept: no state is computed twice."""
        B, Y, X = images.shape
        zero = self.out.weight.new_zeros(B, self.d_hidden)              # (B, D), outside the image
        above = above_back = [zero] * X                                 # X times (B, D)

        def read(lstm: DiagonalLSTM, pixel: Tensor, h: Tensor, above: Tensor, c: Tensor):
            v = F.one_hot(pixel, self.levels).to(h)                     # (B, K)
            return lstm.step(lstm.project(v), h, above, c)

        for y in range(Y):
            row, h, c = [], zero, zero
            for x in range(X):
                yield self.guess(h, above[x], above_back[x])
                # →h reads a pixel when it is known, and ←h when the row is known.
                h, c = read(self.rightwards, images[:, y, x], h, above[x], c)
                row.append(h)
            row_back, h, c = [], zero, zero
            for x in reversed(range(X)):
                h, c = read(self.leftwards, images[:, y, x], h, above_back[x], c)
                row_back.insert(0, h)
            above, above_back = row, row_back
