"""Lesson 10: pixels: an image is a sequence of pixels, and a language model can draw digits.

You will see    p(x) = Πᵢ p(xᵢ | x_<i) summed over all images of a small size; a convolution with a
                mask, so that no later pixel is read; a recurrence from the left and from above,
                computed one diagonal at a time; and which models draw digits that one can read.
Source          course C, "PixelRNN (Van den Oord et al. 2016)" and "PixelCNN (Van den Oord et al.
                2016)"; van den Oord, Kalchbrenner and Kavukcuoglu 2016 ("the paper"), §3.
Expect          about 75 s on two cores; on fresh digits PixelRNN and PixelCNN end near 0.21 bits
                per pixel, regression on neighbours at 0.37, independent pixels at 0.49.
Not here        training on colour images or photographs; the gated layers that remove the blind
                spot of PixelCNN (van den Oord et al. 2016b).

Shapes: B images, Y rows, X columns, K levels of a pixel, C inputs and D hidden units of an LSTM.
"""
# %%
import itertools
import math
import time

import torch
from matplotlib.patches import Rectangle
from torch.nn.functional import pad

from course import Lesson
from minigpt import plotting
from minigpt.models.counting import count_parameters
from minigpt.models.pixel_cnn import (
    MaskedConvolution,
    NeighbourRegression,
    PixelCNN,
    pixel_mask,
)
from minigpt.models.pixel_rnn import DiagonalLSTM, PixelRNN
from minigpt.models.pixels import IndependentPixels, complete, image_bits, sample
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy
from minigpt.worlds.digits import FONTS, draw_digits

lesson = Lesson("10_pixels")

# %% [markdown]
# ## 1. An image is a sequence
# Lesson 02 wrote the probability of a sentence as a product with one factor for each word. The
# same argument holds for any sequence. Give the n pixels of an image an order: row by row from the
# top, and each row from the left (*raster order*). Let x_<i be the pixels before pixel i. Then
#
#     p(x₁, x₂, x₃, …, x_n) = p(x₁) · p(x₂, x₃, …, x_n | x₁)
#                           = p(x₁) · p(x₂ | x₁) · p(x₃, …, x_n | x₁, x₂)
#                           = …
#                           = Πᵢ p(xᵢ | x_<i)
#
# The converse is true too: the product of *any* conditional distributions is a distribution over
# images. To see this, sum the product over the last pixel first. Only the last factor depends on
# it, and Σ p(x_n | x_<n) = 1, so this factor disappears. Now x_{n−1} is the last pixel. Repeat
# this n times: the result is 1.
#
# We test this with simple conditionals. A pixel is black (1) or white (0). Each pair of an earlier
# and a later pixel has one random weight wᵢⱼ, and each pixel has a random bias bᵢ. We list all
# 2⁶ = 64 images of 2 × 3 pixels:
#
#     p(xᵢ = 1 | x_<i) = σ( bᵢ + Σ_{j<i} wᵢⱼ xⱼ )

# %%
CHAIN_RULE = "van den Oord et al. 2016, §2.1"
w = torch.randn(6, 6, generator=lesson.generator).double().tolist()
b = torch.randn(6, generator=lesson.generator).double().tolist()
total = 0.0
for x in itertools.product((0, 1), repeat=6):
    p = 1.0
    for i in range(6):
        black = 1 / (1 + math.exp(-b[i] - sum(w[i][j] * x[j] for j in range(i))))
        p *= black if x[i] else 1 - black
    total += p
lesson.check("random conditionals: Σ p(x) over all 64 images", total, 1.0, atol=1e-12,
             source=CHAIN_RULE)


# %% [markdown]
# The two networks of this lesson, PixelCNN and PixelRNN, compute such conditionals for all pixels
# at once. They are explained below. Here their weights are random and large, so that some images
# are much more likely than others.

# %%
def scramble(model):
    """Gives the model large random weights, in double precision."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=lesson.generator)
    return model.double()


every = torch.tensor(list(itertools.product((0, 1), repeat=6))).view(64, 2, 3)  # (64, 2, 3)
small = {"PixelCNN": PixelCNN(2, 2, 3, channels=8, n_blocks=2), "PixelRNN": PixelRNN(2, d_hidden=6)}
for name, model in small.items():
    with torch.no_grad():
        p = 2.0 ** -image_bits(scramble(model), every)                          # (64,)
    lesson.check(f"{name}: Σ p(x) over all 64 images", p.sum(), 1.0, atol=1e-12, source=CHAIN_RULE)
    print(f"      the most likely image has p = {p.max():.3f}, the least likely {p.min():.1e}; "
          f"equal probabilities would be {1 / 64:.3f}")

# %% [markdown]
# ## 2. Digits
# The images are digits drawn with the fonts of matplotlib. Each digit is rotated, resized and moved
# a little, at random. The models are evaluated on *fresh* digits, which are not in the training
# data: the fonts are the same, but the rotations, sizes and positions are new.

# %%
N, GIVEN = 12, 6                        # N rows and N columns; GIVEN: the rows given in part 8
n_train = lesson.pick(full=8_000, quick=800)
n_fresh = lesson.pick(full=600, quick=100)
images, labels = draw_digits(n_train, torch.Generator().manual_seed(2 * lesson.seed), N)
fresh, truth = draw_digits(n_fresh, torch.Generator().manual_seed(2 * lesson.seed + 1), N)
images, fresh = images.to(lesson.device), fresh.to(lesson.device)


def sheet(rows, levels=2, line=None, title=""):
    """A figure with one row of images (n, N, N) per label.

    A dashed line is drawn under row `line` of every image.
    """
    fig, axes = plotting.figure(11, 0.35 + 0.71 * len(rows))
    framed = [pad(x.float().cpu(), (1, 1, 1, 1)) for x in rows.values()]        # (n, N + 2, N + 2)
    strips = [x.transpose(0, 1).flatten(1) for x in framed]                     # (N + 2, n·(N + 2))
    axes.imshow(torch.cat(strips), cmap="Greys", vmin=0, vmax=levels - 1, interpolation="nearest")
    axes.set_yticks([(N + 1) / 2 + (N + 2) * i for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    if line is not None:
        for i in range(len(rows)):
            height = (N + 2) * i + 0.5 + line
            axes.axhline(height, color=plotting.COLOURS[1], linestyle="--", linewidth=1)
    return fig


print(f"  {n_train:,} digits of {N} × {N} from {len(FONTS)} fonts; "
      f"{images.float().mean():.0%} of the pixels are black")

# %% [markdown]
# We compare the networks with two baselines. *Independent pixels* counts how often each place is
# black, and adds one to each count so that no level has probability 0. *Regression on
# neighbours* is a logistic regression. Its inputs are the earlier pixels in a window of 7 × 7,
# and the place. The unit is bits per pixel, −log₂ p(x) / 144. It is the cost, per pixel, to send
# a digit to a receiver that has the same model.
#
# ## 3. PixelCNN: a convolution that does not read later pixels
# A convolution multiplies the window around each pixel by the same weights. About half of the
# window is later in raster order. PixelCNN sets the weights of these later pixels to 0. The
# paper (§3.4) has two masks; a dot is a weight that is 0:
#
#     mask A (first layer)        mask B (all others)
#       1 1 1                       1 1 1
#       1 · ·                       1 1 ·
#       · · ·                       · · ·
#
# Why are there two? The first layer reads pixels, and the pixel at the centre is the one to
# predict, so mask A leaves it out. The output of this layer at (x, y) depends only on pixels
# before (x, y). The next layer may therefore read this output at its own centre, so it has mask
# B.
#
# PixelCNN is regression on neighbours with hidden layers. A 7 × 7 convolution with mask A comes
# first. Eight residual blocks follow (lesson 06: x + f(x)). Each has a 3 × 3 convolution with mask
# B, so each reads one pixel further. At the end, two layers work on each pixel alone. A convolution
# does not know where in the image it is, so a learned vector for each place is added, as in GPT.
#
# The Jacobian ∂ output / ∂ input shows which pixels an output depends on. For images of 5 × 6 it
# has 30 rows, one per predicted pixel, and 30 columns, one per input pixel. Both are in raster
# order, so the later pixels are above the diagonal.

# %%
MASKS = "van den Oord et al. 2016, §3.4"


def influence(score, rows, columns, levels):
    """(predicted pixel, input pixel): the sum of |∂ score / ∂ input|."""
    x = torch.randn(1, rows, columns, levels, generator=lesson.generator).double()
    jacobian = torch.autograd.functional.jacobian(score, x)
    jacobian = jacobian[0, :, :, :, 0]                                          # (Y, X, K, Y, X, K)
    return jacobian.abs().sum((2, 5)).view(rows * columns, rows * columns)


def channels_last(layer):
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


zero = torch.zeros(30, 30)
for kind in "AB":
    print(f"      mask {kind}: {pixel_mask(3, kind).int().tolist()}")
    layer = scramble(MaskedConvolution(kind, 2, 3, 3))
    seen = influence(channels_last(layer), 5, 6, 2)
    lesson.check(f"mask {kind}: the Jacobian is zero on every later pixel", seen.triu(1), zero,
                 atol=0, source=MASKS, items=("C67",))
    own = seen.diagonal()
    print(f"      on the pixel itself: {own.min():.2f} to {own.max():.2f}")
    if kind == "A":
        lesson.check("mask A: and on the pixel itself", own, zero[0], atol=0, source=MASKS)

cnn = scramble(PixelCNN(2, 5, 6, channels=8, n_blocks=2))
seen = influence(cnn.score, 5, 6, 2)
lesson.check("PixelCNN, mask A and then B: zero on the pixel and on later ones", seen.triu(), zero,
             atol=0, source=MASKS, items=("C67",))

# %% [markdown]
# What happens with mask B in the first layer? Each prediction can read the pixel that it predicts.
# The outputs are then no conditionals, and the sum over all images is not 1:

# %%
leaky = scramble(PixelCNN(2, 2, 3, channels=8, n_blocks=2))
leaky.first.mask = pixel_mask(7, "B")
with torch.no_grad():
    total = (2.0 ** -image_bits(leaky, every)).sum()
print(f"  mask B in the first layer: Σ p(x) over all 64 images = {total:.3f}, and not 1")

# %% [markdown]
# ## 4. PixelRNN: a state from the left and a state from above
# A convolution does not read pixels outside its window. A recurrence has no window. In an image a
# state can come from two neighbours, the one on the left and the one above. Course C writes
#
#     h(x,y) = f( h(x−1,y), h(x,y−1), W )
#
# Erratum: the pixel is missing in this formula. Without it no state depends on the image. The
# sentence above it in the course is right: the hidden state depends on "RGB values" too. So the
# recurrence is h(x,y) = f( h(x−1,y), h(x,y−1), v(x,y); W ), where v(x,y) is the pixel.
#
# f is the LSTM of lesson 03, with both states in its gates. The memory cell c is passed along the
# row (the paper, §3.2). i, f, o are the gates, and each of i, f, o, g has its own W, U, U′ and b:
#
#     i, f, o = σ( W v(x,y) + U h(x−1,y) + U′ h(x,y−1) + b )
#     g       = tanh( W v(x,y) + U h(x−1,y) + U′ h(x,y−1) + b )
#     c(x,y)  = f ⊙ c(x−1,y) + i ⊙ g
#     h(x,y)  = o ⊙ tanh( c(x,y) )
#
# These equations can be computed by a loop over N² pixels in raster order. But pixel (x, y)
# needs only the states at (x−1, y) and (x, y−1). Both are on the *diagonal* before, x + y − 1.
# So the states on one diagonal x + y = t do not depend on each other, and one step computes them
# all. There are only 2N − 1 diagonals. Move row y by y places to the right: each diagonal is now
# a column.
#
#     a b c          a b c · ·            five steps for nine pixels
#     d e f    →     · d e f ·
#     g h i          · · g h i
#
# Both ways must give the same states. The loop below computes one pixel at a time. Then we count
# how many steps the library makes.

# %%
def count_calls(module, method):
    """Makes module.method count its calls, in the list returned."""
    original, calls = getattr(module, method), [0]

    def counted(*arguments):
        calls[0] += 1
        return original(*arguments)
    setattr(module, method, counted)
    return calls


def by_pixel(lstm, v):
    """h(x, y) for an image of inputs v (Y, X, C), one pixel after another: (Y, X, D)."""
    (rows, columns, _), D = v.shape, lstm.U.size(1) // 2
    U_left, U_above = lstm.U[:, :D], lstm.U[:, D:]                              # (4D, D) each
    h, c = {}, {}
    nothing = torch.zeros(D, dtype=v.dtype)
    for y, x in itertools.product(range(rows), range(columns)):
        z = lstm.W @ v[y, x] + lstm.b                                           # (4D,)
        z = z + U_left @ h.get((x - 1, y), nothing) + U_above @ h.get((x, y - 1), nothing)
        i, f, o = (1 / (1 + torch.exp(-z[k * D:(k + 1) * D])) for k in range(3))
        c[x, y] = f * c.get((x - 1, y), nothing) + i * torch.tanh(z[3 * D:])
        h[x, y] = o * torch.tanh(c[x, y])
    return torch.stack([torch.stack([h[x, y] for x in range(columns)]) for y in range(rows)])


RECURRENCE = "C: PixelRNN; van den Oord et al. 2016, §3.2"
with torch.no_grad():
    lstm = scramble(DiagonalLSTM(d_in=2, d_hidden=4))
    v = torch.randn(5, 7, 2, generator=lesson.generator).double()
    lesson.check("h(x,y) = f(h(x−1,y), h(x,y−1), v(x,y)): diagonals = loop, 5 × 7",
                 lstm(v[None])[0], by_pixel(lstm, v), atol=1e-12, source=RECURRENCE, items=("C64",))

    sizes, diagonals = (4, 8, 12), []
    for n in sizes:
        calls = count_calls(lstm, "step")
        lstm(torch.randn(n, n, 2, generator=lesson.generator).double()[None])
        diagonals.append(calls[0])
lesson.check("training, where the image is known: 2N − 1 steps for N = 4, 8, 12", diagonals,
             [7, 15, 23], atol=0, source=RECURRENCE, items=("C65",))

# %% [markdown]
# One such recurrence has read the rectangle to the left and above. It has not read the pixels above
# and to the right. So PixelRNN has a second recurrence, ←h, which reads the mirrored image. The
# prediction of pixel (x, y) uses three states:
#
#     →h(x−1,y)      this row up to column x − 1, and the rows above up to column x − 1
#     →h(x,y−1)      the rows above, up to column x
#     ←h(x,y−1)      the rows above, from column x on
#
# ←h is taken from the row above, because in its own row ←h has read later pixels. Together the
# three states depend on every earlier pixel. (Erratum: the figure's text in course C says that a
# pixel depends on the pixels to the left and above. In PixelRNN the pixels above and to the
# right are included.) So the Jacobian must be zero on later pixels *and* nonzero on all earlier
# ones.

# %%
rnn = scramble(PixelRNN(2, d_hidden=6))
seen = influence(rnn.score, 5, 6, 2)
lesson.check("PixelRNN: zero on the pixel and all later ones", seen.triu(), zero, atol=0,
             source="van den Oord et al. 2016, §3.2")
lesson.check("PixelRNN: not zero on any earlier pixel", (seen != 0).int().tril(-1),
             torch.ones(30, 30).tril(-1), atol=0, source="van den Oord et al. 2016, §3.2")

# %% [markdown]
# To draw a new image is slower. A model can read a pixel only after this pixel is drawn, and each
# pixel is drawn after all earlier ones. So the diagonals do not help: every model needs N² steps.
# PixelRNN keeps its states and makes one step of →h for each pixel. When a row is finished, ←h
# makes its steps for this row. PixelCNN reads all pixels in a single pass in training, but to draw
# an image it is run N² times.
#
# (Erratum: course C says 2N − 1 steps for "training and testing". That is right in training only.)

# %%
counts = {"→h": [], "←h": [], "PixelCNN": []}
for n in sizes:
    rnn, cnn = PixelRNN(2, d_hidden=2), PixelCNN(2, n, n, channels=2, n_blocks=0)
    watched = [count_calls(rnn.rightwards, "step"), count_calls(rnn.leftwards, "step"),
               count_calls(cnn, "score")]
    sample(rnn, 1, n, n, lesson.generator)
    sample(cnn, 1, n, n, lesson.generator)
    for name, calls in zip(counts, watched):
        counts[name].append(calls[0])
for name, counted in counts.items():
    lesson.check(f"drawing, {name}: N² steps for N = 4, 8, 12", counted, [16, 64, 144], atol=0,
                 source="C: PixelCNN (Generation is still slow)", items=("C65", "C68"))

# %% [markdown]
# In training PixelCNN is faster. Its eleven layers are computed one after another, but each layer
# treats all pixels in parallel, and the number of layers does not grow with N. We time one training
# step (loss and gradients) for both networks, with the sizes of part 5, on one core.

# %%
def seconds_of_a_step(model, batch):
    """The shortest CPU time of four training steps."""
    times = []
    for _ in range(4):
        start = time.process_time()
        cross_entropy(model(batch), batch).backward()
        times.append(time.process_time() - start)
    return min(times)


for n in lesson.pick(full=(12, 24, 48), quick=(12, 24)):
    batch = torch.randint(2, (4, n, n), generator=torch.Generator().manual_seed(lesson.seed))
    rnn_time = seconds_of_a_step(PixelRNN(2, d_hidden=32), batch)
    cnn_time = seconds_of_a_step(PixelCNN(2, n, n, channels=32, n_blocks=8), batch)
    print(f"      CPU time of a training step, 4 images of {n} × {n}: "
          f"PixelRNN {1000 * rnn_time:.0f} ms, PixelCNN {1000 * cnn_time:.0f} ms")
lesson.claim("a training step takes PixelRNN more than 1.5 times as long as PixelCNN",
             rnn_time > 1.5 * cnn_time, f"{rnn_time / cnn_time:.1f} times, {n} × {n} pixels",
             full_run=True, items=("C68",))

# %% [markdown]
# ### Colour
# A pixel in colour has three values: red, green and blue. The chain rule holds inside a pixel too.
# Let s be what the model knows of the earlier pixels. The paper (eq. 2) takes the order R, G, B:
#
#     p(pixel | earlier pixels) = p(R | s) · p(G | R, s) · p(B | R, G, s)
#
# So red, green and blue are predicted in turn, and each reads the values before it in the same
# pixel. We list all 2⁹ = 512 images of one row, with three pixels of three binary values. The
# state of the pixel to the left, h(x−1, y), takes the place of s. If red also reads blue, then
# the product is no distribution.

# %%
own = torch.Generator().manual_seed(lesson.seed + 10)
colour_lstm = DiagonalLSTM(d_in=3, d_hidden=4, generator=own).double()
A = torch.randn(3, 4, generator=own).double()           # from the state to three log-odds
M = torch.randn(3, 3, generator=own).double()           # from the values of a pixel to log-odds
every_colour = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).double()     # (512, 9)
every_colour = every_colour.view(512, 1, 3, 3)                                          # B, Y, X, C


def sum_over_colours(M):
    """Σ p(x) over all 512 images, if the log-odds of a pixel's values v are A s + M v."""
    with torch.no_grad():
        h = colour_lstm(every_colour)                                           # (512, 1, 3, 4)
        s = pad(h[:, :, :-1], (0, 0, 1, 0))                                     # h(x−1, y)
        p_one = torch.sigmoid(s @ A.T + every_colour @ M.T)                     # (512, 1, 3, 3)
        p = torch.where(every_colour == 1, p_one, 1 - p_one)
        return p.flatten(1).prod(1).sum()


lesson.check("red, then green, then blue: Σ p(x) over all 512 images", sum_over_colours(M.tril(-1)),
             1.0, atol=1e-12, source="C: PixelRNN, figure; van den Oord et al. 2016, eq. 2",
             items=("C66",))
with_blue = M.tril(-1) + torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
print(f"  if red reads blue too, Σ p(x) = {sum_over_colours(with_blue):.3f}, and not 1")

# %% [markdown]
# ## 5. Training
# The loss is the same as for every language model so far, the mean of −log p(xᵢ | x_<i). Only the
# sequence is different.

# %%
def image_loss(model, batch):
    return cross_entropy(model(batch), batch)


def bits_per_pixel(model, digits):
    """(images,) bits per pixel of each image."""
    return torch.cat([image_bits(model, part) for part in digits.split(200)]).cpu() / N**2


def fit(name, model, data, unseen, steps, batch_size, learning_rate):
    """Trains, and prints the progress; returns pairs (digits read, bits per pixel on `unseen`)."""
    config = TrainingConfig(max_steps=steps, learning_rate=learning_rate, weight_decay=0.01,
                            evaluate_every=math.ceil(steps / 6), seed=lesson.seed)

    def next_batch(generator):
        return data[torch.randint(len(data), (batch_size,), generator=generator)]

    def evaluate(model):
        return {"val_loss": bits_per_pixel(model, unseen).mean().item()}

    rows = train(model.to(lesson.device), next_batch, image_loss, config, evaluate)
    curve = [(row["step"] * batch_size, row["val_loss"]) for row in rows]
    print(f"  {name:<11}{count_parameters(model):6,} parameters, {steps:4} steps of {batch_size}: "
          + " → ".join(f"{b:.3f}" for _, b in curve), flush=True)
    return curve


g = lesson.generator
models = {
    "independent": IndependentPixels(images, levels=2),
    "regression": NeighbourRegression(2, N, N, generator=g),
    "PixelRNN": PixelRNN(2, d_hidden=32, generator=g),
    "PixelCNN": PixelCNN(2, N, N, channels=32, n_blocks=8, generator=g),
}
PLANS = {                               # steps, digits per step, learning rate
    "regression": (lesson.pick(full=400, quick=60), 32, 3e-2),
    "PixelRNN": (lesson.pick(full=600, quick=15), 32, 1e-2),
    "PixelCNN": (lesson.pick(full=2_200, quick=60), 16, 5e-3),
}
curves = {name: fit(name, models[name], images, fresh, *plan) for name, plan in PLANS.items()}

# %%
def judge(models, digits):
    """Prints the table; returns {name: bits per pixel of each image (images,)}."""
    with torch.no_grad():
        bits = {name: bits_per_pixel(model, digits) for name, model in models.items()}
    print("\n  fresh digits     bits per pixel (± standard error)     bits per digit")
    for name, each in bits.items():
        print(f"    {name:<14} {each.mean():.3f} ± {each.std() / len(each)**0.5:.3f} "
              f"{each.mean() * N**2:31.1f}")
    return bits


def below(name, other):
    """By how much `name` is lower than `other`, with the standard error of the difference."""
    gap = bits[other] - bits[name]
    return gap.mean().item(), f"{gap.mean():.3f} ± {gap.std() / len(gap)**0.5:.3f}"


bits = judge(models, fresh)
for name in ("PixelRNN", "PixelCNN"):
    independent, first = below(name, "independent")
    regression, second = below(name, "regression")
    lesson.claim(
        f"{name} is 0.2 bits per pixel below independent pixels and 0.1 below regression",
        independent > 0.2 and regression > 0.1,
        f"below independent by {first}, below regression by {second}", full_run=True)

# %%
fig, axes = plotting.figure()
axes.axhline(bits["independent"].mean(), color="black", linestyle="-", linewidth=1,
             label="independent pixels")
LONG_NAMES = {"regression": "regression on neighbours"}
for name, curve in curves.items():
    axes.plot(*zip(*curve), marker="o", markersize=3, label=LONG_NAMES.get(name, name))
axes.set(xlabel="digits read in training", ylabel="bits per pixel on fresh digits",
         ylim=(0.15, 0.65))
axes.set_title("The cost of a pixel, given the pixels before it")
axes.legend()
lesson.figure(fig, "bits")

# %% [markdown]
# One layer of PixelRNN and eight blocks of PixelCNN end within 0.01 bits of each other, and
# PixelRNN has read fewer digits at that point. In the paper the networks have many layers, the
# images are photographs, and PixelRNN is better: 3.00 against 3.14 bits per colour value on
# CIFAR-10.
#
# ## 6. Which pixels the predictions depend on
# Take one pixel, marked with a cross. How much does the predicted log-odds of black at the cross
# change with each earlier pixel? The figure shows the mean over fresh digits. A hatched pixel has
# no influence at all. Every later pixel must be hatched.
#
# Some earlier pixels are hatched too. Regression does not read the pixels outside its window.
# PixelCNN does not read the pixels above that are far to the right: a 3 × 3 layer reaches one
# column further to the right only in the row above. This *blind spot* is in the PixelCNN of the
# paper too (van den Oord et al. 2016b describe it). PixelRNN has no blind spot.

# %%
asked_y, asked_x = 8, 4


def strength_of(model):
    """(N, N): the influence of each pixel on the prediction at the cross, mean over digits."""
    x = torch.nn.functional.one_hot(fresh[:100], 2).float().requires_grad_()
    score = model.score(x)[:, asked_y, asked_x]                                 # (100, 2)
    (slope,) = torch.autograd.grad((score[:, 1] - score[:, 0]).sum(), x)        # (100, N, N, 2)
    # The difference of the two slopes is the effect of a change from white to black.
    return (slope[..., 1] - slope[..., 0]).abs().mean(0).cpu()


place = torch.arange(N * N).view(N, N)                  # the place of each pixel in raster order
later = place >= asked_y * N + asked_x
rows_up, columns_right = asked_y - place // N, place % N - asked_x
blind = (rows_up > 0) & (columns_right >= rows_up + 3)
fig, axes = plotting.figure(11, 3.7, 1, 3)
for panel, name in zip(axes, ("regression", "PixelCNN", "PixelRNN")):
    strength = strength_of(models[name])
    if name == "PixelCNN":
        lesson.check("PixelCNN's blind spot: r rows up, all columns from r + 3 to the right",
                     (strength == 0).int(), (blind | later).int(), atol=0,
                     source="van den Oord et al. 2016b, §2.2")
    label = "influence (1 = the strongest)" if name == "PixelRNN" else None
    plotting.heatmap(panel, strength / strength.max(), label=label, high=1)
    for y, x in (strength == 0).nonzero().tolist():
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", linewidth=0,
                                  edgecolor="0.65"))
    panel.plot(asked_x, asked_y, marker="x", color="black", markersize=9)
    panel.set(title=LONG_NAMES.get(name, name), xlabel="column", ylabel="row", aspect="equal")
lesson.figure(fig, "sees")

# %% [markdown]
# ## 7. Samples
# We draw images from p(x), pixel by pixel. You can judge them by eye, but a number helps: in how
# many pixels does a sample differ from the nearest training digit? The fresh digits give the scale.
# 95 % of them are within some distance. A sample within this distance is called digit-like.

# %%
n = lesson.pick(full=200, quick=14)
samples = {name: sample(model, n, N, N, lesson.generator) for name, model in models.items()}


def nearest(drawn):
    """The training digit that differs from each drawn image in the fewest pixels.

    Returns the number of pixels (n,) and the index of the digit (n,).
    """
    a, b = drawn.flatten(1).float(), images.flatten(1).float()                  # (n or digits, N²)
    differ = a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T         # (n, digits): |a| + |b| − 2 (both)
    return differ.min(1)


typical = nearest(fresh)[0]
usual = typical.quantile(0.95)
print(f"  fresh digits: median {typical.median():.0f} pixels from the nearest training digit, "
      f"95 % within {usual:.0f}")
alike = {}
for name, drawn in samples.items():
    gap = nearest(drawn)[0]
    alike[name] = (gap <= usual).float().mean().item()
    copies = (gap == 0).float().mean()
    print(f"  {name:<14} median {gap.median():4.0f}, digit-like {alike[name]:4.0%}, "
          f"copies of a training digit {copies:.0%}")


def networks_beat_baselines(share, at_least, at_most):
    networks, baselines = ("PixelRNN", "PixelCNN"), ("regression", "independent")
    return (min(share[name] for name in networks) >= at_least
            and max(share[name] for name in baselines) <= at_most)


def percentages(share):
    return ", ".join(f"{name} {part:.0%}" for name, part in share.items())


lesson.claim("digit-like samples: at least 30 % for both networks, at most 5 % for the baselines",
             networks_beat_baselines(alike, 0.3, 0.05), percentages(alike), full_run=True)
rows = {"real": fresh[:14]} | {name: drawn[:14] for name, drawn in samples.items()}
lesson.figure(sheet(rows, title="Drawn pixel by pixel (first row: fresh digits from the fonts)"),
              "samples")

# %% [markdown]
# ## 8. Completions
# Give the upper half of a fresh digit, and let the model draw the rest. The upper half comes
# first in raster order, so the result is an exact sample of p(lower half | upper half). Now we
# know which digit it was. A completion is counted as right if it is digit-like *and* the nearest
# training digit has the right label. No model can reach 100 %, because many upper halves have
# two good endings.

# %%
half, n = GIVEN * N, lesson.pick(full=300, quick=14)
given, answer = fresh[:n], truth[:n]
completed = {name: complete(model, given, half, lesson.generator) for name, model in models.items()}


def read(drawn):
    """Two bool tensors (n,): the nearest training digit has the right label; and it is near."""
    gap, which = nearest(drawn)
    return labels[which.cpu()] == answer, gap.cpu() <= usual.cpu()


print("\n                    right label     and digit-like")
right = {}
for name, drawn in ({"the real digits": given} | completed).items():
    label, near = read(drawn)
    right[name] = (label & near).float().mean().item()
    print(f"    {name:<15} {label.float().mean():10.0%} {right[name]:16.0%}")
lesson.claim("right completions: at least 40 % for both networks, at most 15 % for the baselines",
             networks_beat_baselines(right, 0.4, 0.15), percentages(right), full_run=True)

# One digit of each kind, and a second 2, 3, 5 and 8.
chosen = [int((truth == digit).nonzero()[0]) for digit in range(10)]
chosen += [int((truth == digit).nonzero()[1]) for digit in (2, 3, 5, 8)]
shown = fresh[chosen]
rows = {"real": shown}
rows |= {name: complete(model, shown, half, lesson.generator) for name, model in models.items()}
lesson.figure(sheet(rows, line=GIVEN, title="Given above the line, drawn below"), "completions")

# %% [markdown]
# ## 9. Four shades
# Nothing so far needed exactly two levels. With K = 4 levels the softmax is over four shades, as
# it is over a vocabulary in a language model. Four equal probabilities cost log₂ 4 = 2 bits per
# pixel. The softmax does not contain the order of the shades (shade 2 lies between 1 and 3): the
# model must learn it from the data.

# %%
grey, _ = draw_digits(n_train, torch.Generator().manual_seed(2 * lesson.seed), N, levels=4)
fresh_grey, _ = draw_digits(len(fresh), torch.Generator().manual_seed(2 * lesson.seed + 1), N,
                            levels=4)
grey, fresh_grey = grey.to(lesson.device), fresh_grey.to(lesson.device)
shades = {
    "independent": IndependentPixels(grey, levels=4),
    "regression": NeighbourRegression(4, N, N, generator=g),
    "PixelCNN": PixelCNN(4, N, N, channels=32, n_blocks=8, generator=g),
}
PLANS["PixelCNN"] = (lesson.pick(full=2_000, quick=40), 16, 5e-3)
for name in ("regression", "PixelCNN"):
    fit(name, shades[name], grey, fresh_grey, *PLANS[name])
bits = judge(shades, fresh_grey)
independent, first = below("PixelCNN", "independent")
regression, second = below("PixelCNN", "regression")
lesson.claim("four shades: PixelCNN is 0.2 bits per pixel below independent, 0.1 below regression",
             independent > 0.2 and regression > 0.1,
             f"below independent by {first}, below regression by {second}", full_run=True)
rows = {"real": fresh_grey[:14]}
rows |= {name: sample(model, 14, N, N, lesson.generator) for name, model in shades.items()}
rows |= {"half given": complete(shades["PixelCNN"], fresh_grey[:14], half, lesson.generator)}
title = "Four shades: fresh digits, samples, and PixelCNN's completions of the upper halves above"
lesson.figure(sheet(rows, levels=4, title=title), "shades")

# %%
lesson.end()
