"""Lesson 10: pixels. An image is a sequence too, and what wrote sentences draws digits.

You will see    p(x) = Πᵢ p(xᵢ | x_<i) summed over every small image; a convolution kept from looking ahead by a mask; a recurrence
                in two directions of the plane, cut into diagonals; and which of them draws digits that one can read.
Source          course C, "PixelRNN and PixelCNN"; van den Oord, Kalchbrenner and Kavukcuoglu 2016, §3.
Expect          about 75 s on two cores; per pixel of a fresh digit PixelRNN and PixelCNN end near 0.21 bits, regression on
                neighbours at 0.37 and independent pixels at 0.49; digits that one can read.
Not here        colour, photographs, and the gated layers that removed PixelCNN's blind spot (van den Oord et al. 2016b).
"""
# %%
import itertools
import math

import torch
from matplotlib.patches import Rectangle
from torch.nn.functional import pad

from course import Lesson
from minigpt import plotting
from minigpt.models.counting import count_parameters
from minigpt.models.pixel_cnn import MaskedConvolution, NeighbourRegression, PixelCNN, pixel_mask
from minigpt.models.pixel_rnn import DiagonalLSTM, PixelRNN
from minigpt.models.pixels import IndependentPixels, complete, image_bits, sample
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy
from minigpt.worlds.digits import FONTS, draw_digits

lesson = Lesson("10_pixels")

# %% [markdown]
# ## 1. An image is a sequence
# Lesson 02 split the probability of a sentence, one word at a time. Nothing in that argument knew about words. Give the pixels
# an order, row by row from the top and each row from the left (*raster order*), and split:
#
#     p(x₁, x₂, x₃, …, x_n) = p(x₁) · p(x₂, x₃, …, x_n | x₁)
#                           = p(x₁) · p(x₂ | x₁) · p(x₃, …, x_n | x₁, x₂)
#                           = …
#                           = Πᵢ p(xᵢ | x_<i)
#
# The other way round, *any* conditionals multiply to a distribution over images. Sum over the last pixel first: only the last
# factor holds it, and Σ p(x_n | x_<n) = 1, so that factor is gone. Now x_{n−1} is the last. After n rounds all that is left is 1.
# Take the simplest conditionals, one random weight for each pair of an earlier and a later pixel, and go through all
# 2⁶ = 64 black and white images of 2 × 3:
#
#     p(xᵢ = 1 | x_<i) = σ( bᵢ + Σ_{j<i} wᵢⱼ xⱼ )

# %%
w = torch.randn(6, 6, generator=lesson.generator).double().tolist()
b = torch.randn(6, generator=lesson.generator).double().tolist()
total = 0.0
for x in itertools.product((0, 1), repeat=6):
    p = 1.0
    for i in range(6):
        black = 1 / (1 + math.exp(-b[i] - sum(w[i][j] * x[j] for j in range(i))))
        p *= black if x[i] else 1 - black
    total += p
lesson.check("random conditionals: Σ p(x) over all 64 images", total, 1.0, atol=1e-12, source="C: p(x) = Π p(xᵢ | x_<i)")


# %% [markdown]
# The two networks of this lesson, built below, are such conditionals too, computed for all pixels at once. Their weights are
# drawn large here, so that the images are far from equally likely.

# %%
def scramble(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=lesson.generator)
    return model.double()


every = torch.tensor(list(itertools.product((0, 1), repeat=6))).view(64, 2, 3)          # (64, 2, 3): each image there is
with torch.no_grad():
    for name, model in (("PixelCNN", PixelCNN(2, 2, 3, channels=8, n_blocks=2)), ("PixelRNN", PixelRNN(2, d_hidden=6))):
        p = 2.0 ** -image_bits(scramble(model), every)                                  # (64,)
        lesson.check(f"{name}: Σ p(x) over all 64 images", p.sum(), 1.0, atol=1e-12, source="C: p(x) = Π p(xᵢ | x_<i)")
        print(f"      the likeliest image has p = {p.max():.3f}, the unlikeliest {p.min():.1e}; all alike would be {1 / 64:.3f}")

# %% [markdown]
# ## 2. Digits
# The images are digits that matplotlib's own fonts draw: turned a little, resized a little, moved a little. They are cheap, so
# models are judged on fresh ones: same fonts, but other turns, sizes and places.

# %%
N, GIVEN = 12, 6                                                                        # rows = columns; rows given when completing
n_train = lesson.pick(full=8_000, quick=800)
images, labels = draw_digits(n_train, torch.Generator().manual_seed(2 * lesson.seed), N)
fresh, truth = draw_digits(lesson.pick(full=600, quick=100), torch.Generator().manual_seed(2 * lesson.seed + 1), N)
images, fresh = images.to(lesson.device), fresh.to(lesson.device)


def sheet(rows, levels=2, line=None, title=""):
    """A figure: each label with a row of images (n, N, N), ink black; a dashed line under row `line` of every image."""
    fig, axes = plotting.figure(11, 0.35 + 0.71 * len(rows))
    framed = [pad(x.float().cpu(), (1, 1, 1, 1)) for x in rows.values()]                # (n, N, N) -> (n, N + 2, N + 2)
    strips = [x.transpose(0, 1).flatten(1) for x in framed]                             # (N + 2, n·(N + 2))
    axes.imshow(torch.cat(strips), cmap="Greys", vmin=0, vmax=levels - 1, interpolation="nearest")
    axes.set_yticks([(N + 1) / 2 + (N + 2) * i for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    if line is not None:
        for i in range(len(rows)):
            axes.axhline((N + 2) * i + 0.5 + line, color=plotting.COLOURS[1], linestyle="--", linewidth=1)
    return fig


print(f"  {n_train:,} digits of {N} × {N} from {len(FONTS)} fonts; {images.float().mean():.0%} of the pixels are black")

# %% [markdown]
# Before any network, two baselines. *Independent pixels* count how often each place is black (plus one, so that nothing is
# impossible). *Regression on neighbours* is a logistic regression on the pixels of a 7 × 7 window that come before, and on the place.
# The unit is bits per pixel, −log₂ p(x) / 144: what it costs to send a digit to somebody who has the same model.
#
# ## 3. PixelCNN: do not look ahead
# A convolution applies the same weights to the window around every pixel, and half of that window is the future. PixelCNN sets the
# weights there to 0:
#
#     mask A (first layer)        mask B (all others)
#       1 1 1                       1 1 1
#       1 · ·                       1 1 ·
#       · · ·                       · · ·
#
# Why two? The first layer reads pixels, and at its centre is the very pixel that it should guess: mask A leaves it out. Its
# output at (x, y) knows only what came before (x, y), and the next layer may well read that at its own centre: mask B.
# PixelCNN is regression on neighbours with hidden layers in between: 7 × 7 with mask A, then eight residual blocks (lesson 06: x + f(x))
# that each look one pixel further through a 3 × 3 with mask B, then two layers at each pixel alone. As in GPT, a learned vector
# says at which place one is.
#
# The Jacobian ∂ output / ∂ input tells who sees whom. For images of 5 × 6 it has 30 rows, the places asked, and 30 columns, the
# places looked at. Both are in raster order, so "later" is the part above the diagonal.

# %%
def influence(score, rows, columns, levels):
    """(place asked, place looked at): the sum of |∂ score / ∂ input|."""
    x = torch.randn(1, rows, columns, levels, generator=lesson.generator).double()
    jacobian = torch.autograd.functional.jacobian(score, x)[0, :, :, :, 0]              # (Y, X, K, Y, X, K)
    return jacobian.abs().sum((2, 5)).view(rows * columns, rows * columns)


def channels_last(layer):
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


zero = torch.zeros(30, 30)
for kind in "AB":
    print(f"      mask {kind}: {pixel_mask(3, kind).int().tolist()}")
    seen = influence(channels_last(scramble(MaskedConvolution(kind, 2, 3, 3))), 5, 6, 2)
    lesson.check(f"mask {kind}: Jacobian is zero on every later pixel", seen.triu(1), zero, atol=0, source="C: masks A and B")
    print(f"      on the pixel itself: {seen.diagonal().min():.2f} to {seen.diagonal().max():.2f}")
    if kind == "A":
        lesson.check("mask A: and on the pixel itself", seen.diagonal(), zero[0], atol=0, source="C: masks A and B")

cnn = scramble(PixelCNN(2, 5, 6, channels=8, n_blocks=2))
seen = influence(cnn.score, 5, 6, 2)
lesson.check("PixelCNN, A then B B …: zero on the pixel and all later ones", seen.triu(), zero, atol=0, source="C: masks A and B")

# %% [markdown]
# And if one confuses the masks? With B in front each pixel sees its own answer. Its "conditionals" are then no conditionals, and
# the sum over all images says so:

# %%
leaky = scramble(PixelCNN(2, 2, 3, channels=8, n_blocks=2))
leaky.first.mask = pixel_mask(7, "B")
with torch.no_grad():
    print(f"  mask B in the first layer: Σ p(x) over all 64 images = {(2.0 ** -image_bits(leaky, every)).sum():.3f}, and not 1")

# %% [markdown]
# ## 4. PixelRNN: a memory that comes from two sides
# A convolution forgets what lies outside its window. A recurrence does not, and in the plane it has two pasts, left and above:
#
#     h(x,y) = f( h(x−1,y), h(x,y−1), W )
#
# f is the LSTM of lesson 03, with both states in the gates; the memory cell c runs along the row (van den Oord et al. 2016, §3.2):
#
#     i, f, o = σ( W v + U h(x−1,y) + U′ h(x,y−1) + b )           each with its own W, U, U′, b; v is the pixel at (x, y)
#     g       = tanh( W v + U h(x−1,y) + U′ h(x,y−1) + b )
#     c(x,y)  = f ⊙ c(x−1,y) + i ⊙ g
#     h(x,y)  = o ⊙ tanh( c(x,y) )
#
# Written as it stands this is a loop over N² pixels, each waiting for the one before. But who really waits for whom? (x, y) waits for
# (x−1, y) and (x, y−1), and both lie on the *diagonal* before, x + y − 1. So the pixels of one diagonal x + y = t do not wait for each
# other, and there are only 2N − 1 diagonals. Move row y by y places to the right, and a diagonal becomes a column:
#
#     a b c          a b c · ·            five steps for nine pixels
#     d e f    →     · d e f ·
#     g h i          · · g h i
#
# Both ways must give the same states. The loop below goes to each pixel by itself, N² steps; of the library's, count the calls.

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
    h, c = {}, {}
    nothing = torch.zeros(D, dtype=v.dtype)
    for y in range(rows):
        for x in range(columns):
            z = lstm.W @ v[y, x] + lstm.U[:, :D] @ h.get((x - 1, y), nothing) + lstm.U[:, D:] @ h.get((x, y - 1), nothing) + lstm.b
            i, f, o = (1 / (1 + torch.exp(-z[k * D:(k + 1) * D])) for k in range(3))
            c[x, y] = f * c.get((x - 1, y), nothing) + i * torch.tanh(z[3 * D:])
            h[x, y] = o * torch.tanh(c[x, y])
    return torch.stack([torch.stack([h[x, y] for x in range(columns)]) for y in range(rows)])


with torch.no_grad():
    lstm = scramble(DiagonalLSTM(d_in=2, d_hidden=4))
    v = torch.randn(5, 7, 2, generator=lesson.generator).double()
    lesson.check("h(x,y) = f(h(x−1,y), h(x,y−1), W): diagonals = nested loop, 5 × 7", lstm(v[None])[0], by_pixel(lstm, v),
                 atol=1e-12, source="C: PixelRNN")

    sizes, diagonals = (4, 8, 12), []
    for n in sizes:
        calls, v = count_calls(lstm, "step"), torch.randn(n, n, 2, generator=lesson.generator).double()
        lstm(v[None])
        diagonals.append(calls[0])
lesson.check("steps to train, image known, N = 4, 8, 12: 2N − 1", diagonals, [7, 15, 23], atol=0, source="C: PixelRNN")

# %% [markdown]
# One such recurrence has read the rectangle to the left and above, but nothing to the right. So PixelRNN runs a second one, ←h,
# over the mirrored image, and guesses pixel (x, y) from three states:
#
#     →h(x−1,y)      this row so far, and the rows above it, up to column x − 1
#     →h(x,y−1)      the rows above, up to column x
#     ←h(x,y−1)      the rows above, from column x on: one row up, because in its own row ←h has seen the future
#
# Together that is every earlier pixel. The Jacobian has to be zero on later ones *and* nowhere else.

# %%
rnn = scramble(PixelRNN(2, d_hidden=6))
seen = influence(rnn.score, 5, 6, 2)
lesson.check("PixelRNN: zero on the pixel and all later ones", seen.triu(), zero, atol=0, source="C: PixelRNN")
lesson.check("PixelRNN: every earlier pixel is seen", (seen != 0).int().tril(-1), torch.ones(30, 30).tril(-1), atol=0, source="C: PixelRNN")

# %% [markdown]
# Drawing a new image is another matter. A pixel can be read only after it was drawn, and drawn only after all before it were: the
# diagonals are of no use, and it takes N² steps whatever the model. PixelRNN keeps its states and makes one step of →h a pixel.
# (←h too makes N², a row at a time when the row is finished.) PixelCNN, which trains on all pixels in a single pass, has
# to be run N² times. Counted:

# %%
counts = {"→h": [], "←h": [], "PixelCNN": []}
for n in sizes:
    rnn, cnn = PixelRNN(2, d_hidden=2), PixelCNN(2, n, n, channels=2, n_blocks=0)
    watched = [count_calls(rnn.rightwards, "step"), count_calls(rnn.leftwards, "step"), count_calls(cnn, "score")]
    sample(rnn, 1, n, n, lesson.generator)
    sample(cnn, 1, n, n, lesson.generator)
    for name, calls in zip(counts, watched):
        counts[name].append(calls[0])
for name, counted in counts.items():
    lesson.check(f"steps to sample, {name}, N = 4, 8, 12: N²", counted, [16, 64, 144], atol=0, source="C: PixelRNN, PixelCNN")

# %% [markdown]
# ## 5. Training
# The loss is that of every language model so far, the mean of −log p(xᵢ | x_<i). Only the sequence has changed.

# %%
def image_loss(model, batch):
    return cross_entropy(model(batch), batch)


def bits_per_pixel(model, judged):
    """(images,) bits per pixel of each image."""
    return torch.cat([image_bits(model, part) for part in judged.split(200)]).cpu() / N**2


def fit(name, model, data, judged, steps, batch_size, learning_rate):
    """Trains, printing as it goes; returns pairs (digits seen, bits per pixel)."""
    config = TrainingConfig(max_steps=steps, learning_rate=learning_rate, weight_decay=0.01,
                            evaluate_every=math.ceil(steps / 6), seed=lesson.seed)

    def next_batch(generator):
        return data[torch.randint(len(data), (batch_size,), generator=generator)]

    def evaluate(model):
        return {"val_loss": bits_per_pixel(model, judged).mean().item()}

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
curves = {
    "regression": fit("regression", models["regression"], images, fresh, lesson.pick(full=400, quick=60), 32, 3e-2),
    "PixelRNN": fit("PixelRNN", models["PixelRNN"], images, fresh, lesson.pick(full=600, quick=15), 32, 1e-2),
    "PixelCNN": fit("PixelCNN", models["PixelCNN"], images, fresh, lesson.pick(full=2_200, quick=60), 16, 5e-3),
}

# %%
def judge(models, judged):
    """{name: bits per pixel of each image (images,)}, and prints the table."""
    with torch.no_grad():
        bits = {name: bits_per_pixel(model, judged) for name, model in models.items()}
    print("\n  fresh digits     bits per pixel (± standard error)     bits a digit")
    for name, each in bits.items():
        print(f"    {name:<14} {each.mean():.3f} ± {each.std() / len(each)**0.5:.3f} {each.mean() * N**2:31.1f}")
    return bits


def below(name, other):
    """How much lower `name` is, with the standard error of the difference, digit by digit."""
    gap = bits[other] - bits[name]
    return gap.mean().item(), f"{gap.mean():.3f} ± {gap.std() / len(gap)**0.5:.3f}"


bits = judge(models, fresh)
for name in ("PixelRNN", "PixelCNN"):
    (independent, first), (regression, second) = below(name, "independent"), below(name, "regression")
    lesson.claim(f"{name} is 0.2 bits per pixel below independent pixels and 0.1 below regression", independent > 0.2 and regression > 0.1,
                 f"below independent by {first}, below regression by {second}", full_run=True)

# %%
fig, axes = plotting.figure()
axes.axhline(bits["independent"].mean(), color="black", linestyle="-", linewidth=1, label="independent pixels")
for name, curve in curves.items():
    axes.plot(*zip(*curve), marker="o", markersize=3, label={"regression": "regression on neighbours"}.get(name, name))
axes.set(xlabel="digits read in training", ylabel="bits per pixel on fresh digits", ylim=(0.15, 0.65))
axes.set_title("What a pixel costs, given those before it")
axes.legend()
lesson.figure(fig, "bits")

# %% [markdown]
# One layer of PixelRNN and eight blocks of PixelCNN end within 0.01 bits of each other, and PixelRNN has read fewer digits by then. (In
# the paper, with many layers and on photographs, PixelRNN is ahead: 3.00 against 3.14 bits a colour value on CIFAR-10.)
#
# ## 6. Where they look
# The trained networks, asked for one pixel (the cross): how much does the log-odds of black there change with each earlier pixel, on
# average over fresh digits? Hatched pixels have no influence at all. The later ones must not have any. Of the earlier ones,
# regression misses all outside its window, and PixelCNN those far to the right: a 3 × 3 layer climbs one row for each column it moves
# right. This *blind spot* is in the paper's own PixelCNN. PixelRNN has none.

# %%
asked_y, asked_x = 8, 4


def looks_at(model):
    """(N, N): mean over digits of the influence of each pixel on the guess at the cross."""
    x = torch.nn.functional.one_hot(fresh[:100], 2).float().requires_grad_()
    score = model.score(x)[:, asked_y, asked_x]                                         # (100, 2)
    (slope,) = torch.autograd.grad((score[:, 1] - score[:, 0]).sum(), x)                # (100, N, N, 2)
    return (slope[..., 1] - slope[..., 0]).abs().mean(0).cpu()                          # what turning a pixel from paper to ink would do


fig, axes = plotting.figure(11, 3.7, 1, 3)
for panel, name in zip(axes, ("regression", "PixelCNN", "PixelRNN")):
    strength = looks_at(models[name])
    if name == "PixelCNN":
        blind = torch.tensor([[y < asked_y and x - asked_x > asked_y - y + 2 for x in range(N)] for y in range(N)])
        later = torch.arange(N * N).view(N, N) >= asked_y * N + asked_x
        lesson.check("PixelCNN's blind spot: r rows up, from r + 3 columns right on", (strength == 0).int(), (blind | later).int(),
                     atol=0, source="C: PixelCNN")
    plotting.heatmap(panel, strength / strength.max(), label="influence, 1 = the strongest" if name == "PixelRNN" else None, high=1)
    for y, x in (strength == 0).nonzero().tolist():
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", linewidth=0, edgecolor="0.65"))
    panel.plot(asked_x, asked_y, marker="x", color="black", markersize=9)
    panel.set(title={"regression": "regression on neighbours"}.get(name, name), xlabel="column", ylabel="row", aspect="equal")
lesson.figure(fig, "sees")

# %% [markdown]
# ## 7. Samples
# Draw from p(x), pixel by pixel. The eye is the judge, but it can be helped by a ruler: how many pixels differ from the nearest of the
# training digits? Fresh digits set the scale: 95 % of them lie within some distance, and a sample within it is called digit-like.

# %%
n = lesson.pick(full=200, quick=14)
samples = {name: sample(model, n, N, N, lesson.generator) for name, model in models.items()}


def nearest(drawn):
    """The training digit that differs from each drawn image in the fewest pixels: how many (n,), and which (n,)."""
    a, b = drawn.flatten(1).float(), images.flatten(1).float()                          # (n, N²), (digits, N²)
    differ = a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T                                 # (n, digits): |a| + |b| − 2 (both)
    return differ.min(1)


usual = nearest(fresh)[0].quantile(0.95)
print(f"  fresh digits: median {nearest(fresh)[0].median():.0f} pixels from the nearest training digit, 95 % within {usual:.0f}")
alike = {}
for name, drawn in samples.items():
    gap = nearest(drawn)[0]
    alike[name] = (gap <= usual).float().mean().item()
    copies = (gap == 0).float().mean()
    print(f"  {name:<14} median {gap.median():4.0f}, digit-like {alike[name]:4.0%}, copies of a training digit {copies:.0%}")


def networks_beat_baselines(share, at_least, at_most):
    return min(share["PixelRNN"], share["PixelCNN"]) >= at_least and max(share["regression"], share["independent"]) <= at_most


lesson.claim("of PixelRNN's and PixelCNN's samples at least 30 % are digit-like, of the baselines' at most 5 %",
             networks_beat_baselines(alike, 0.3, 0.05), ", ".join(f"{name} {share:.0%}" for name, share in alike.items()), full_run=True)
rows = {"real": fresh[:14]} | {name: drawn[:14] for name, drawn in samples.items()}
lesson.figure(sheet(rows, title="Drawn pixel by pixel (first row: fresh digits from the fonts)"), "samples")

# %% [markdown]
# ## 8. Completions
# Give the upper half of a fresh digit and let the model draw the rest. The upper half comes first in raster order, so this is an exact
# draw from p(lower half | upper half). Now recognising can be measured, because one knows what the digit was: a completion counts
# if it is digit-like *and* the nearest training digit has the right label. Nobody can reach 100 %: many upper halves have two
# good endings.

# %%
half, n = GIVEN * N, lesson.pick(full=300, quick=14)
given, answer = fresh[:n], truth[:n]
completed = {name: complete(model, given, half, lesson.generator) for name, model in models.items()}


def read(drawn):
    """(n,) bool twice: the nearest training digit has the right label; and it is near."""
    gap, which = nearest(drawn)
    return labels[which.cpu()] == answer, gap.cpu() <= usual.cpu()


print("\n                    right label     and digit-like")
right = {}
for name, drawn in ({"the real digits": given} | completed).items():
    label, near = read(drawn)
    right[name] = (label & near).float().mean().item()
    print(f"    {name:<15} {label.float().mean():10.0%} {right[name]:16.0%}")
lesson.claim("of PixelRNN's and PixelCNN's completions at least 40 % are digit-like and right, of the baselines' at most 15 %",
             networks_beat_baselines(right, 0.4, 0.15), ", ".join(f"{name} {share:.0%}" for name, share in right.items()), full_run=True)
different = [int((truth == digit).nonzero()[0]) for digit in range(10)] + [int((truth == digit).nonzero()[1]) for digit in (2, 3, 5, 8)]
shown = fresh[different]                                                                # a digit of each kind, and four more
rows = {"real": shown} | {name: complete(model, shown, half, lesson.generator) for name, model in models.items()}
lesson.figure(sheet(rows, line=GIVEN, title="Given above the line, drawn below"), "completions")

# %% [markdown]
# ## 9. Four shades
# Nothing so far depended on two levels. With K = 4 the softmax is over four shades, as it would be over a vocabulary; uniform
# guessing costs log₂ 4 = 2 bits a pixel. (A softmax does not even know that shade 2 lies between 1 and 3; it has to learn that.)

# %%
grey, _ = draw_digits(n_train, torch.Generator().manual_seed(2 * lesson.seed), N, levels=4)
fresh_grey, _ = draw_digits(len(fresh), torch.Generator().manual_seed(2 * lesson.seed + 1), N, levels=4)
grey, fresh_grey = grey.to(lesson.device), fresh_grey.to(lesson.device)
shades = {"independent": IndependentPixels(grey, levels=4), "regression": NeighbourRegression(4, N, N, generator=g),
          "PixelCNN": PixelCNN(4, N, N, channels=32, n_blocks=8, generator=g)}
fit("regression", shades["regression"], grey, fresh_grey, lesson.pick(full=400, quick=60), 32, 3e-2)
fit("PixelCNN", shades["PixelCNN"], grey, fresh_grey, lesson.pick(full=2_000, quick=40), 16, 5e-3)
bits = judge(shades, fresh_grey)
(independent, first), (regression, second) = below("PixelCNN", "independent"), below("PixelCNN", "regression")
lesson.claim("four shades: PixelCNN is 0.2 bits per pixel below independent pixels and 0.1 below regression",
             independent > 0.2 and regression > 0.1, f"below independent by {first}, below regression by {second}", full_run=True)
rows = {"real": fresh_grey[:14]} | {name: sample(model, 14, N, N, lesson.generator) for name, model in shades.items()}
rows |= {"half given": complete(shades["PixelCNN"], fresh_grey[:14], half, lesson.generator)}
four = sheet(rows, levels=4, title="Four shades: fresh digits, samples, and PixelCNN's completions of the first row's upper halves")
lesson.figure(four, "shades")

# %%
lesson.end()
