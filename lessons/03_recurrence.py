"""Lesson 03: recurrence, a memory of fixed size, and what it takes to learn something a hundred steps ago.

You will see    RNN, LSTM and BiLSTM written out and equal to PyTorch's; the product of Jacobians that makes an RNN's gradient
                vanish, and its bound; the same gradient measured in both networks; a word recalled after 100 distractors.
Source          course C, "Recurrent networks"; Elman 1990; Hochreiter and Schmidhuber 1997; Pascanu et al. 2013.
Expect          2 minutes on one core (10 s with --quick). At lag 100 the LSTM whose gate starts open recalls 1.00 of the words
                after 150 to 200 steps; RNNs 0.03 to 0.25 after 300 (five seeds); guessing 0.03. 50 steps back 1e-10 of the gradient is
                left in an RNN, 0.2 in the LSTM.
Not here        GRU, peepholes, dropout; sentences in and sentences out (lesson 04); attention, which needs no path through time (05).
"""
# %%
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.models.counting import count_parameters
from minigpt.models.recurrent import LSTM, RNN, BiLSTM, RecurrentLM
from minigpt.text.padding import pad
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy

lesson = Lesson("03_recurrence", threads=1)

# %% [markdown]
# ## 1. From a window to a state
# Lesson 02's network saw a window of a few tokens; what left the window was gone. Elman (1990) keeps a vector h instead, the
# *state*, and rewrites it at every step from the token's vector xₜ and from what it was:
#
#     hₜ = tanh(W xₜ + U hₜ₋₁ + b)                     xₜ (D), hₜ (H), W (H, D), U (H, H), b (H)
#
# The same W, U, b at every step, so text of any length will do, and all that is known of it has to fit into H numbers. As code
# it is one line in a loop. The library's `RNN` does the same for a whole batch, and computes all W xₜ at once, since they need
# not wait for each other; both must agree with PyTorch's own.

# %%
D, H, T = 5, 4, 7
x = torch.randn(1, T, D, dtype=torch.float64, generator=lesson.generator)               # (B = 1, T, D): one sentence of vectors


def randomised(layer):
    """Float64 weights of order 1, so that no mistake hides behind a zero."""
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
    return layer


def give_weights(reference, layer, suffix="l0"):
    """PyTorch's names for W, U and b. It has two biases that are only ever added; the second stays 0."""
    with torch.no_grad():
        for name, value in (("weight_ih", layer.W), ("weight_hh", layer.U), ("bias_ih", layer.b), ("bias_hh", torch.zeros_like(layer.b))):
            getattr(reference, f"{name}_{suffix}").copy_(value)
    return reference


def rnn_by_hand(W, U, b, xs):
    """(T, D) -> (T, H)."""
    h, states = torch.zeros(len(U), dtype=xs.dtype), []
    for x_t in xs:
        h = torch.tanh(W @ x_t + U @ h + b)
        states.append(h)
    return torch.stack(states)                                          # (T, H)


rnn = randomised(RNN(D, H))
reference = give_weights(nn.RNN(D, H, batch_first=True).double(), rnn)(x)[0]             # (1, T, H)
lesson.check("RNN, one step at a time = torch.nn.RNN", rnn_by_hand(rnn.W, rnn.U, rnn.b, x[0]), reference[0], atol=1e-12, source="C: RNN")
lesson.check("RNN of the library = torch.nn.RNN", rnn(x)[0], reference, atol=1e-12, source="C: RNN")

# %% [markdown]
# The state is *all* that is carried over: whoever holds it may forget the text. So reading a sentence in two pieces, with only
# the state handed from the first to the second, has to give what reading it at once gives. That is how a recurrent language
# model writes: one token in, one guess out, at the same cost for the thousandth token as for the first.

# %%
first = rnn(x[:, :3])                                                   # (1, B, 3, H); the leading 1: an RNN carries one vector
second = rnn(x[:, 3:], first[:, :, -1])
lesson.check("two pieces and a state = the whole", torch.cat([first, second], dim=2)[0], reference, atol=1e-12, source="C: RNN")

# %% [markdown]
# ## 2. What the last state knows of the first
# To learn that a word at the start matters at the end, training has to see how the end changes when the start does: ∂h_T/∂h₀,
# a matrix (H, H). Take it step by step.
#
# One step. Write aₜ = W xₜ + U hₜ₋₁ + b, so hₜ = tanh(aₜ), each entry by itself. Since d tanh(a)/da = 1 − tanh²(a),
#
#     ∂hₜ/∂aₜ = diag(1 − hₜ²)          ∂aₜ/∂hₜ₋₁ = U          so    ∂hₜ/∂hₜ₋₁ = diag(1 − hₜ²) U
#
# T steps. hₜ depends on h₀ only through hₜ₋₁ (W xₜ and b do not depend on it at all), so the chain rule multiplies:
#
#     ∂h_T/∂h₀ = diag(1 − h_T²) U · diag(1 − h_{T−1}²) U · … · diag(1 − h₁²) U
#
# Its size. Let ‖A‖ be the *operator norm*: how much A stretches the vector that it stretches most, ‖A‖ = max ‖Av‖/‖v‖. Doing B and
# then A stretches at most by both, ‖AB‖ ≤ ‖A‖‖B‖, and a diagonal matrix stretches by its largest entry. Hence
#
#     ‖∂h_T/∂h₀‖ ≤ Πₜ ‖diag(1 − hₜ²)‖ ‖U‖ ≤ ( ‖U‖ · max tanh′ )^T         max tanh′: the largest 1 − h² met on the way, never above 1
#
# (Pascanu et al. 2013, §2.1). The bound is a power of T. If ‖U‖·max tanh′ is 0.9, a hundred steps leave at most 0.9¹⁰⁰ = 0.000027.
# First the product, against PyTorch's automatic differentiation, which knows nothing of this formula.

# %%
WIDTH, LONG = 16, 60
scaled = {}                                                             # how far U stretches -> an RNN; orthogonal: every direction alike
for scale in (0.8, 1.0, 1.25):
    layer = RNN(D, WIDTH, lesson.generator).double()
    nn.init.orthogonal_(layer.U, gain=scale, generator=lesson.generator)
    scaled[scale] = layer
long_x = torch.randn(1, LONG, D, dtype=torch.float64, generator=lesson.generator)


def jacobian(layer, xs, steps):
    """∂h_T/∂h₀ (H, H) after so many steps, from autograd: one backward pass for each row."""
    h0 = torch.zeros(1, 1, layer.d_hidden, dtype=xs.dtype, requires_grad=True)
    last = layer(xs[:, :steps], h0)[0, 0, -1]                           # (H,)
    return torch.stack([torch.autograd.grad(value, h0, retain_graph=True)[0][0, 0] for value in last])


def product(layer, xs, steps):
    """The same from the closed form: ∏ diag(1 − hₜ²) U, the latest factor on the left."""
    total = torch.eye(layer.d_hidden, dtype=xs.dtype)
    for h in layer(xs[:, :steps])[0, 0]:
        total = torch.diag(1 - h**2) @ layer.U @ total
    return total


with torch.no_grad():
    closed = torch.stack([product(layer, long_x, 10) for layer in scaled.values()])                     # (3, H, H)
automatic = torch.stack([jacobian(layer, long_x, 10) for layer in scaled.values()])
lesson.check("∂h_T/∂h₀ = ∏ diag(1 − hₜ²) U", closed, automatic, atol=1e-12, source="C: backpropagation through time")

# %% [markdown]
# Then the bound, at every T up to 60 and for three sizes of U. The check measures by how much the norm *exceeds* the bound: 0.
# A bound can hold by being lazy, so the second check asks for a case in which nothing is lost: with inputs of 0 the state
# stays at 0, where tanh′ = 1, and an orthogonal U times s stretches every vector by s, exactly. There the two are equal.

# %%
norms, bounds = {}, {}                                                  # scale -> (LONG,), one number for each T
for scale, layer in scaled.items():
    steepest = (1 - layer(long_x)[0, 0] ** 2).amax(-1).cummax(0).values.detach()                        # (LONG,) max tanh′ up to T
    bounds[scale] = (torch.linalg.matrix_norm(layer.U.detach(), 2) * steepest) ** torch.arange(1, LONG + 1)
    norms[scale] = torch.stack([torch.linalg.matrix_norm(jacobian(layer, long_x, t), 2) for t in range(1, LONG + 1)])
excess = torch.stack([(norms[s] / bounds[s] - 1).clamp(min=0) for s in scaled])                         # (3, LONG)
lesson.check("‖∂h_T/∂h₀‖ ≤ (‖U‖ max tanh′)^T: excess over the bound", excess, torch.zeros(3, LONG), atol=1e-12,
             source="C: vanishing gradient")
still = torch.stack([torch.linalg.matrix_norm(jacobian(layer, torch.zeros_like(long_x), 20), 2) for layer in scaled.values()])
powers = torch.tensor([0.8**20, 1.0, 1.25**20], dtype=torch.float64)
lesson.check("the bound is reached: h = 0, U = s·orthogonal, T = 20", still, powers, atol=1e-9, source="C: vanishing gradient")

fig, axes = plotting.figure(7.5, 4)
for scale in scaled:
    line, = axes.semilogy(range(1, LONG + 1), norms[scale], label=f"measured, ‖U‖ = {scale}")
    axes.semilogy(range(1, LONG + 1), bounds[scale], color=line.get_color(), linestyle="-", linewidth=0.8)
    axes.text(LONG + 0.7, bounds[scale][-1], f"bound for {scale}", va="center", fontsize=9)
axes.set(xlabel="steps T", ylabel="‖∂h_T/∂h₀‖", xlim=(0, LONG * 1.2),
         title="An RNN's last state hardly feels its first (thin lines: the bounds)")
axes.legend(loc="lower left")
lesson.figure(fig, "jacobian")
lesson.claim("U that stretches by 1.25 does not save the gradient: tanh flattens", norms[1.25][-1] < 1e-2,
             f"after {LONG} steps the norm is {norms[1.25][-1]:.1e}, under a bound of {bounds[1.25][-1]:.1e}; "
             f"with ‖U‖ = 0.8 it is {norms[0.8][-1]:.1e}")

# %% [markdown]
# ## 3. LSTM: a sum instead of a product
# Hochreiter and Schmidhuber (1997) put a second vector beside h: the *cell* c, which no tanh squashes from step to step. Three
# *gates*, numbers between 0 and 1, decide for each unit what to write (i), what to keep (f; Gers et al. 2000), what to show (o):
#
#     i = σ(Wᵢ xₜ + Uᵢ hₜ₋₁ + bᵢ)     f, o likewise with their own weights      g = tanh(W_g xₜ + U_g hₜ₋₁ + b_g)
#     cₜ = f⊙cₜ₋₁ + i⊙g
#     hₜ = o⊙tanh(cₜ)

# %%
def lstm_by_hand(W, U, b, xs):
    """(T, D) -> h and c, each (T, H). The four gates' weights lie above one another in the order i, f, g, o."""
    H = len(U) // 4
    (Wi, Wf, Wg, Wo), (Ui, Uf, Ug, Uo), (bi, bf, bg, bo) = W.split(H), U.split(H), b.split(H)
    h, c, hs, cs = torch.zeros(H, dtype=xs.dtype), torch.zeros(H, dtype=xs.dtype), [], []
    for x_t in xs:
        i = 1 / (1 + torch.exp(-(Wi @ x_t + Ui @ h + bi)))
        f = 1 / (1 + torch.exp(-(Wf @ x_t + Uf @ h + bf)))
        o = 1 / (1 + torch.exp(-(Wo @ x_t + Uo @ h + bo)))
        g = torch.tanh(Wg @ x_t + Ug @ h + bg)
        c = f * c + i * g
        h = o * torch.tanh(c)
        hs.append(h)
        cs.append(c)
    return torch.stack(hs), torch.stack(cs)                             # (T, H) each


lstm = randomised(LSTM(D, H))
reference, (_, last_c) = give_weights(nn.LSTM(D, H, batch_first=True).double(), lstm)(x)
by_hand_h, by_hand_c = lstm_by_hand(lstm.W, lstm.U, lstm.b, x[0])
lesson.check("LSTM, one step at a time = torch.nn.LSTM", by_hand_h, reference[0], atol=1e-12, source="C: LSTM")
lesson.check("LSTM's last cell = torch.nn.LSTM's", by_hand_c[-1], last_c[0, 0], atol=1e-12, source="C: LSTM")
lesson.check("LSTM of the library = torch.nn.LSTM", lstm(x)[0], reference, atol=1e-12, source="C: LSTM")

# %% [markdown]
# Now differentiate the memory. From cₜ = f⊙cₜ₋₁ + i⊙g, along the direct path (the gates held as they are),
#
#     ∂cₜ/∂cₜ₋₁ = diag(f)          so          ∂c_T/∂c₀ = diag(f_T ⊙ … ⊙ f₁)
#
# No U is multiplied in and no tanh′. (The other paths, from c to h to the next gates, do pass through U; the check switches
# them off by U = 0, so that the formula has to be exact.) An RNN's factor is whatever U and the data make of it; an LSTM's is
# a gate, which a bias can hold open. How wide? If f = 1 − 1/τ, then after τ steps (1 − 1/τ)^τ ≈ 1/e = 0.37 is left: the cell
# remembers for about τ steps. Solve σ(b) = 1 − 1/τ for b:
#
#     1/(1 + e^(−b)) = (τ − 1)/τ    ⟺    e^(−b) = τ/(τ − 1) − 1 = 1/(τ − 1)    ⟺    b_f = ln(τ − 1)
#
# (Tallec and Ollivier 2018, §2). The usual b_f = 1 (Jozefowicz et al. 2015) means τ = 3.7 steps, b_f = 0 means 2.
# Who keeps everything also keeps the noise: τ random writes of size i add up like a random walk, to about i·√τ. So that the sum
# stays near 1, start at i = 1/√τ, and since σ(b) ≈ e^b for such small values, b_i = −½ ln τ. (Here we leave the paper: it sets
# b_i = −b_f, which is i ≈ 1/τ, and draws a τ for each unit at random, up to the longest span expected. Ours is one τ for all units.)

# %%
unlinked = randomised(LSTM(D, H))
unlinked.U.data.zero_()
c0 = torch.randn(H, dtype=torch.float64, generator=lesson.generator).requires_grad_()
c_last = unlinked(x, torch.stack([torch.zeros_like(c0), c0])[:, None])[1][0, -1]         # (H,)
automatic = torch.stack([torch.autograd.grad(value, c0, retain_graph=True)[0] for value in c_last])
gates = torch.sigmoid(x[0] @ unlinked.W.split(H)[1].T + unlinked.b.split(H)[1])         # (T, H) every f
lesson.check("∂c_T/∂c₀ = diag(∏ fₜ) where the gates do not see h", automatic, torch.diag(gates.prod(0)), atol=1e-12, source="C: LSTM")
spans = torch.tensor([4.0, 20.0, 100.0])
lesson.check("σ(ln(τ − 1)) = 1 − 1/τ", torch.sigmoid((spans - 1).log()), torch.tensor([3 / 4, 19 / 20, 99 / 100]), atol=1e-6,
             source="Tallec and Ollivier 2018")

# %% [markdown]
# ## 4. The gradient, measured
# A task to measure on: remember the first word. A sequence is a word, `lag` more words of the same kind that mean nothing, and
# a "?". The answer is the first word. With 32 words, drawn alike, guessing is right 1 time in 32: 0.031. Nothing marks the first
# word but its place, so the network has to take it in, and then refuse all that follow.
#
# Six starting points, all of `minigpt.models.recurrent.RecurrentLM` (a table of word vectors, one recurrent layer, a linear
# layer on h):
# - an RNN as PyTorch starts it, every weight uniform within ±1/√H;
# - an RNN with an orthogonal U, the most even-handed start (Saxe et al. 2014), ‖U‖ = 1;
# - an RNN with U = 1, the identity, and W shrunk by 1/√lag for the random-walk reason: it begins as a plain sum
#   of its inputs (Le et al. 2015 start so, with ReLU units);
# - an LSTM with b_f = 0, one with the usual b_f = 1, and one with its gate held open for τ = lag steps as in section 3.
#
# The RNNs get 96 units and the LSTMs 48, which makes the same number of parameters. Let L = v·h_T with a random direction
# v of length 1, run back, and see how much of ∂L/∂(state) is left k steps before the end, relative to the end itself.

# %%
WORDS = 32
QUESTION = WORDS
LAG = 100
device = torch.device(lesson.device)


def recall_batch(lag, batch_size):
    """A `next_batch` of (B, lag + 2) tokens: the word, `lag` distractors, the question."""
    def next_batch(generator):
        words = torch.randint(WORDS, (batch_size, lag + 1), generator=generator)
        return torch.cat([words, torch.full((batch_size, 1), QUESTION)], dim=1).to(device)
    return next_batch


def recaller(start, lag):
    """A model with one of the six starts, the same for the same seed."""
    generator = torch.Generator().manual_seed(lesson.seed)
    cell, width = (RNN, 96) if start.startswith("RNN") else (LSTM, 48)
    model = RecurrentLM(WORDS + 1, d_embedding=16, d_hidden=width, cell=cell, generator=generator)
    layer = model.layers[0]
    if start == "RNN, uniform":
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
    if start == "RNN, identity":
        nn.init.eye_(layer.U)
        layer.W.data /= math.sqrt(lag)
    if start == "LSTM, b_f = 0":
        layer.forget_bias.zero_()
    if start == "LSTM, gate open":
        layer.forget_bias.fill_(math.log(lag - 1))
        layer.b.data[:width] = -0.5 * math.log(lag)                     # the input gate comes first
    return model.to(device)


def gradient_reaching_back(model, tokens):
    """‖∂L/∂(state k steps before the end)‖ / ‖∂L/∂(state at the end)‖ for k = 0, 1, …: (T,), averaged over the batch."""
    layer, x = model.layers[0], model.token_embedding(tokens)           # (B, T, D)
    state, states = None, []
    for t in range(tokens.size(1)):
        state = layer(x[:, t:t + 1], state)[:, :, -1]                   # (S, B, H): S = 1 in an RNN (h), 2 in an LSTM (h and c)
        state.retain_grad()
        states.append(state)
    v = torch.randn(state[0].shape, generator=torch.Generator().manual_seed(lesson.seed)).to(device)    # (B, H)
    (state[0] * v / v.norm(dim=-1, keepdim=True)).sum().backward()
    sizes = torch.stack([s.grad.square().sum((0, 2)).sqrt().mean() for s in reversed(states)])          # (T,)
    model.zero_grad()
    return (sizes / sizes[0]).cpu()


STARTS = ("RNN, uniform", "RNN, orthogonal", "RNN, identity", "LSTM, b_f = 0", "LSTM, b_f = 1", "LSTM, gate open")
LOOKS = {name: {"color": colour, "linestyle": dash} for name, colour, dash in zip(STARTS, plotting.COLOURS, plotting.DASHES)}
probe = recall_batch(LAG, 64)(torch.Generator().manual_seed(1000 + lesson.seed))
at_start = {start: gradient_reaching_back(recaller(start, LAG), probe) for start in STARTS}
for start, curve in at_start.items():
    print(f"    {start:<16} {count_parameters(recaller(start, LAG)):6,} parameters; "
          f"gradient left after {LAG // 2} steps: {curve[LAG // 2]:.1e}, after {LAG}: {curve[LAG]:.1e}")

# %% [markdown]
# What to see: the orthogonal RNN loses a constant factor at every step, as the bound says it may. **So do the LSTMs with b_f = 0
# and 1.** An LSTM is no cure by itself; it has a *dial*, and at τ = 3.7 the dial is set to "soon". With the gate open the gradient
# hardly fades. The identity RNN keeps its gradient as well, at least before it has learned anything. (Where 0.0e+00 is printed, the
# number is not zero but below 1e-45, the smallest that float32 can hold.)

# %%
half = LAG // 2
lesson.claim("at the start: the RNN's gradient vanishes, the LSTM's does not if its gate is open",
             at_start["RNN, orthogonal"][half] < 1e-3 < 3e-2 < at_start["LSTM, gate open"][half],
             f"left after {half} steps: RNN {at_start['RNN, orthogonal'][half]:.1e}, "
             f"LSTM with its gate open {at_start['LSTM, gate open'][half]:.1e}")
lesson.claim("at the start: with the usual bias of 1 the LSTM's gradient vanishes too, later",
             at_start["RNN, orthogonal"][half] < at_start["LSTM, b_f = 1"][half] < 1e-2,
             f"left after {half} steps: {at_start['LSTM, b_f = 1'][half]:.1e}")

# %% [markdown]
# ## 5. Recall
# A gradient that arrives is necessary, not sufficient. So train: lags of 4, 20 and 100, at most 300 steps of 256 sequences
# each, with one learning rate for each start, from trials at lag 100.

# %%
STEPS, LAGS = lesson.pick(300, 40), lesson.pick((4, 20, 100), (4, 20))
RATES = {"RNN, uniform": 1e-2, "RNN, orthogonal": 1e-2, "RNN, identity": 1e-3, "LSTM, b_f = 1": 2e-2, "LSTM, gate open": 2e-2}


def recall_loss(model, tokens):
    return cross_entropy(model(tokens)[:, -1], tokens[:, 0])            # judged at the question only


def learn_to_recall(start, lag):
    """The trained model, and its accuracy on 1,000 fresh sequences every 50 steps; stops early once 99 % are right."""
    model = recaller(start, lag)
    test = recall_batch(lag, 1000)(torch.Generator().manual_seed(2000 + lesson.seed))
    config = TrainingConfig(max_steps=STEPS, learning_rate=RATES[start], weight_decay=0.0, evaluate_every=50, seed=lesson.seed)

    def evaluate(model):
        return {"accuracy": (model(test)[:, -1].argmax(-1) == test[:, 0]).float().mean().item()}

    rows = train(model, recall_batch(lag, 256), recall_loss, config, evaluate,
                 on_row=lambda row: row["accuracy"] > 0.99)             # True stops the training
    return model, [(row["step"], row["accuracy"]) for row in rows]


learned = {}                                                            # (start, lag) -> (accuracy, learning curve, model)
for lag in LAGS:
    for start in RATES:
        model, curve = learn_to_recall(start, lag)
        learned[start, lag] = (curve[-1][1], curve, model)
        print(f"    lag {lag:3d}  {start:<16} {curve[-1][1]:.2f} right after {curve[-1][0]} steps", flush=True)

longest = LAGS[-1]
fig, (left, right) = plotting.figure(10, 4, columns=2)
for start in RATES:
    left.plot(LAGS, [learned[start, lag][0] for lag in LAGS], marker="o", label=start, **LOOKS[start])
    right.plot(*zip(*learned[start, longest][1]), marker="o", markersize=3, label=start, **LOOKS[start])
for axes in (left, right):
    axes.axhline(1 / WORDS, color="black", linestyle=":", linewidth=1.2, label=f"guessing, {1 / WORDS:.3f}")
    axes.set_ylim(-0.03, 1.05)
left.set(xscale="log", xlabel="lag: distractors between word and question", ylabel="share of first words recalled",
         title=f"After at most {STEPS} steps")
left.set_xticks(LAGS, [str(lag) for lag in LAGS], minor=False)
left.minorticks_off()
right.set(xlabel="optimizer steps", title=f"Learning at lag {longest}")
right.legend(loc="center right")
lesson.figure(fig, "recall")

RNNS, OPEN = [start for start in RATES if start.startswith("RNN")], "LSTM, gate open"
recalled = {start: learned[start, longest][0] for start in RATES}


def listed(shares):
    return ", ".join(f"{start} {share:.2f}" for start, share in shares.items())


lesson.claim(f"lag {LAGS[0]}: all recall", min(learned[start, LAGS[0]][0] for start in RATES) > 0.8,
             listed({start: learned[start, LAGS[0]][0] for start in RATES}), full_run=True)
lesson.claim(f"lag {longest}: the LSTM with its gate open recalls", recalled[OPEN] >= 0.95,
             f"{recalled[OPEN]:.2f} after {learned[OPEN, longest][1][-1][0]} steps; guessing {1 / WORDS:.2f}", full_run=True)
lesson.claim(f"lag {longest}: no RNN gets half of the way, however it starts", max(recalled[start] for start in RNNS) <= 0.5,
             f"after {STEPS} steps: {listed({start: recalled[start] for start in RNNS})}", full_run=True)
lesson.claim(f"lag {longest}: without the open gate the LSTM does not recall either", recalled["LSTM, b_f = 1"] < 0.1,
             f"the same LSTM with the usual b_f = 1 and b_i = 0: {recalled['LSTM, b_f = 1']:.2f}", full_run=True)

# %% [markdown]
# The identity RNN's gradient did reach the first word, and it learned next to nothing from it at lag 100: an RNN adds W xₜ to its state
# at every step, whatever the state says, so the first word is one voice of a hundred. The uniform and the orthogonal one were told next
# to nothing about the first word (section 4). They are not doomed, though: with large steps training can carry an RNN to a place where
# its gradient does survive, and then it begins to recall. Over five seeds the uniform one got to between 0.03 and 0.25 of the words in
# 300 steps, the orthogonal one to between 0.03 and 0.24, and at lag 20 the three to anything from 0.05 to 0.89. What the gate gives
# is that no luck is needed.
#
# How does the LSTM do it? One would think: it learns to shut its input gate after the first word. Look at the gates, and it does not.
# They open wide for the first word, to 0.4 or more, but to the end they stay at about 0.2, more open than before training, and the
# cell's length ‖c‖ grows step by step to about 200: the LSTM writes and writes. But *what* it writes depends on what h already
# says, and so on the first word. Take away what all sentences have in common, and two sentences with the same first word write nearly
# the same for the last fifty steps, whatever their distractors; with different first words they write different things. It does not
# guard the word, it keeps repeating it. The figure then shows what training left of each gradient.

# %%
@torch.no_grad()
def what_is_written(model, tokens):
    """In an LSTM: the mean input gate at every step (T,), and the cell after it (B, T, H)."""
    layer, x = model.layers[0], model.token_embedding(tokens)           # (B, T, D)
    h, c = layer(x)                                                     # (B, T, H) each
    before = nn.functional.pad(h[:, :-1], (0, 0, 1, 0))                 # hₜ₋₁, zeros at the first word
    i = torch.sigmoid((x @ layer.W.T + before @ layer.U.T + layer.b).chunk(4, dim=-1)[0])               # (B, T, 4H) -> (B, T, H)
    return i.mean((0, 2)), c


def alike(vectors, first):
    """Mean cosine of two rows of (B, H), less the mean row: of rows with the same first word, and of rows with different ones."""
    unit = nn.functional.normalize(vectors - vectors.mean(0), dim=-1)
    cosine = unit @ unit.T                                              # (B, B)
    same, oneself = first[:, None] == first, torch.eye(len(first), dtype=torch.bool, device=device)
    return cosine[same & ~oneself].mean().item(), cosine[~same].mean().item()


sentences, repeats = recall_batch(longest, 512)(torch.Generator().manual_seed(4000 + lesson.seed)), {}
for when, model in (("before", recaller(OPEN, longest)), ("trained", learned[OPEN, longest][2])):
    gate, c = what_is_written(model, sentences)
    length = c.norm(dim=-1).mean(0)                                     # (T,) ‖c‖
    written = c[:, longest] - c[:, longest // 2]                        # (B, H) what the later half of the distractors added
    repeats[when] = alike(written, sentences[:, 0])
    print(f"    {when:<8} i = {gate[0]:.2f} at the first word, {gate[2:longest + 1].mean():.2f} on average from the third on; "
          f"‖c‖ {length[0]:.1f} → {length[longest // 2]:.0f} → {length[longest]:.0f}; "
          f"late writes, cosine: same first word {repeats[when][0]:.2f}, another {repeats[when][1]:.2f}")
same, other = repeats["trained"]
lesson.claim("trained: what the LSTM writes in the later half depends on the first word", same > 0.8 and other < 0.1,
             f"cosine of two sentences: same first word {same:.2f}, another {other:.2f}; "
             "before training {:.2f} and {:.2f}".format(*repeats["before"]), full_run=True)

# %%
probe = recall_batch(longest, 64)(torch.Generator().manual_seed(1000 + lesson.seed))
after = {start: gradient_reaching_back(learned[start, longest][2], probe) for start in RATES}
fig, (left, right) = plotting.figure(10, 4, columns=2, sharey=True)
for axes, curves, title in ((left, at_start, "Before training"), (right, after, f"After training on recall at lag {longest}")):
    for name, curve in curves.items():
        axes.semilogy(range(len(curve)), curve.clamp(min=1e-30), label=name, **LOOKS[name])
    axes.set(xlabel="k, steps before the end", ylim=(1e-18, 30), title=title)
left.set_ylabel("gradient left, relative to the end")
left.legend(loc="lower left")
lesson.figure(fig, "gradient")
lesson.claim("trained: the LSTM's gradient still reaches the first word", after["LSTM, gate open"][longest] > 1e-2,
             f"left after {longest} steps: LSTM with its gate open {after['LSTM, gate open'][longest]:.1e}, "
             f"with b_f = 1 {after['LSTM, b_f = 1'][longest]:.1e}, orthogonal RNN {after['RNN, orthogonal'][longest]:.1e}", full_run=True)

# %% [markdown]
# ## 6. BiLSTM: when the answer comes later
# In Italian and Spanish the article comes before the noun that decides it: *il grande ponte* (masculine), *la grande casa*
# (feminine), and *grande* tells nothing. Hide the article, "▁ grande dolce casa", and let a network fill it in. One that reads
# forwards has not seen the noun yet; here both genders are equally likely, so it is right half the time however long it trains.
# Schuster and Paliwal (1997) let a second recurrence read backwards and put both states side by side; with LSTMs on both sides
# (Graves and Schmidhuber 2005) that is a BiLSTM:
#
#     hₜ = [→hₜ ; ←hₜ]          →hₜ from x₁..xₜ          ←hₜ from x_T..xₜ
#
# Sentences differ in length, so a batch is padded. The way back must start at the last real word, not in the padding: `mask` is
# True at real words, and where it is False the state is handed on untouched. PyTorch's packed sequences are the referee.

# %%
lengths = [7, 2, 5]
mask = torch.arange(T) < torch.tensor(lengths)[:, None]                 # (3, T)
x = torch.randn(3, T, D, dtype=torch.float64, generator=lesson.generator)
both = randomised(BiLSTM(D, H))
theirs = nn.LSTM(D, H, batch_first=True, bidirectional=True).double()
give_weights(theirs, both.rightwards)
give_weights(theirs, both.leftwards, "l0_reverse")
packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
reference, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)    # (3, T, 2H)
lesson.check("BiLSTM = torch.nn.LSTM(bidirectional), padding and all", both(x, mask)[mask], reference[mask], atol=1e-12, source="C: BiLSTM")

# %%
NOUNS = {"il": ("ponte", "libro", "gatto", "fiume"), "la": ("casa", "luna", "strada", "stella")}
ADJECTIVES = ("grande", "dolce", "celebre", "semplice", "felice")       # the same for both genders
PAD, BLANK = 0, 1
words = ["·", "▁", *ADJECTIVES, *NOUNS["il"], *NOUNS["la"]]
MASCULINE, FEMININE = len(ADJECTIVES) + 2, len(ADJECTIVES) + 2 + len(NOUNS["il"])       # where each gender's nouns start


def phrases(batch_size, generator):
    """Three phrases a row, each a blank, 0 to 4 adjectives and a noun: tokens (B, T) padded, and gender (B, T), −1 but at blanks."""
    rows, genders = [], []
    for _ in range(batch_size):
        row, gender = [], []
        for _ in range(3):
            feminine, n_adjectives, noun = (int(torch.randint(n, (), generator=generator)) for n in (2, 5, 4))
            adjectives = (2 + torch.randint(len(ADJECTIVES), (n_adjectives,), generator=generator)).tolist()
            row += [BLANK, *adjectives, (FEMININE if feminine else MASCULINE) + noun]
            gender += [feminine] + [-1] * (n_adjectives + 1)
        rows.append(row)
        genders.append(gender)
    tokens, gender = pad(rows, side="right", value=PAD)[0], pad(genders, side="right", value=-1)[0]
    return tokens.to(device), gender.to(device)


class Reader(nn.Module):
    """Tokens (B, T) -> a score for each gender (B, T, 2), through an LSTM or a BiLSTM."""

    def __init__(self, layer, width):
        super().__init__()
        self.embedding = nn.Embedding(len(words), 12)
        self.layer, self.out = layer, nn.Linear(width, 2)

    def forward(self, tokens):
        states = self.layer(self.embedding(tokens), mask=tokens != PAD)
        return self.out(states if isinstance(self.layer, BiLSTM) else states[0])        # (B, T, width) -> (B, T, 2)


def article_loss(model, batch):
    tokens, gender = batch
    return cross_entropy(model(tokens), gender, gender >= 0)


def article_accuracy(model):
    return {"accuracy": (model(judged[0]).argmax(-1) == judged[1])[judged[1] >= 0].float().mean().item()}


judged = phrases(500, torch.Generator().manual_seed(3000 + lesson.seed))
readers = {"LSTM": Reader(LSTM(12, 40, lesson.generator), 40), "BiLSTM": Reader(BiLSTM(12, 20, lesson.generator), 40)}
right = {}
for name, model in readers.items():
    config = TrainingConfig(max_steps=lesson.pick(150, 100), learning_rate=1e-2, evaluate_every=50, seed=lesson.seed)
    rows = train(model.to(device), lambda generator: phrases(32, generator), article_loss, config, article_accuracy)
    right[name] = rows[-1]["accuracy"]
    mixed = next(row for row, gender in enumerate(judged[1]) if {0, 1} <= set(gender.tolist()))          # a row with both genders to show
    sentence, guess = judged[0][mixed].tolist(), model(judged[0][mixed:mixed + 1]).argmax(-1)[0].tolist()
    print(f"    {name:<7}", " ".join(("il", "la")[g] if w == BLANK else words[w] for w, g in zip(sentence, guess) if w != PAD))
lesson.claim("the article needs the noun that follows: BiLSTM knows, LSTM guesses",
             right["BiLSTM"] > 0.95 and abs(right["LSTM"] - 0.5) < 0.06,
             f"articles right: BiLSTM {right['BiLSTM']:.2f}, LSTM {right['LSTM']:.2f}, guessing 0.50")

# %% [markdown]
# ## 7. What remains
# - **The state is a bottleneck.** A sentence of any length has to fit into H numbers. Lesson 04 translates with one, sees it fail as
#   sentences grow, and lets the decoder look back at every state instead: attention.
# - **Time cannot be done in parallel.** hₜ waits for hₜ₋₁, so T steps take T turns however many processors there are. Lesson 05 removes
#   the recurrence, and with it the product of Jacobians: any two positions are one step apart.
# - **Reading both ways is for understanding.** A model that has seen the next word cannot be trained to predict it. BERT (lesson 07)
#   reads both ways; GPT (lesson 06) one way, because it writes.

# %%
lesson.end()
