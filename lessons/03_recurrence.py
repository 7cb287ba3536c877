"""Lesson 03: recurrence: a state of fixed size, and how to learn from a word 100 steps ago.

You will see    RNN, LSTM and BiLSTM, written as loops and equal to PyTorch's; the product of
                Jacobians that makes an RNN's gradient vanish, and its bound; the gradient
                measured in both networks; and a word recalled after 100 other words.
Source          course C, "Recurrent Neural Networks" and "Bi-directional LSTM"; Elman 1990;
                Hochreiter and Schmidhuber 1997; Gers et al. 2000; Pascanu et al. 2013.
Expect          about 2 min on one core; every check passes. With 100 words in between, the LSTM
                whose forget gate starts open recalls 1.00 of the words after 150 to 200 steps; the
                RNNs recall 0.03 to 0.25 after 300 (five seeds); guessing gives 0.03. 50 steps back,
                the RNN has 1e-10 of its gradient left, and this LSTM 0.2.
Not here        GRU, peepholes, dropout; translation (lesson 04); attention, which connects any two
                positions in one step (lesson 05).
Shapes          B batch, T time, D input width, H hidden units, S states (h, or h and c).
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
# Lesson 02's network sees the last few tokens only. A **recurrent neural network** (RNN) keeps a
# vector h, the **state**. At every step it computes the new state from the token's vector xₜ and
# the state before (Elman 1990):
#
#     hₜ = tanh(W xₜ + U hₜ₋₁ + b)          xₜ (D), hₜ (H), W (H, D), U (H, H), b (H)
#
# W, U and b are the same at every step, so the network can read a text of any length. At each
# step it gives an output and a state; in Elman's network the output is a function of hₜ. All that
# the network keeps of the text is in the H numbers of the state. In code, the equation is one line
# in a loop. The library's `RNN` does the same for a batch. It computes all W xₜ before the loop,
# because they do not depend on the state. Both must agree with PyTorch's `nn.RNN`.
#
# Items: C17

# %%
D, H, T = 5, 4, 7
x = torch.randn(1, T, D, dtype=torch.float64, generator=lesson.generator)               # (1, T, D)


def randomised(layer):
    """Float64 weights of size 1, and no zeros: a zero bias could hide an error."""
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
    return layer


def give_weights(reference, layer, suffix="l0"):
    """Copies W, U and b to PyTorch's layer, which adds two biases. The second one is 0."""
    values = {"weight_ih": layer.W, "weight_hh": layer.U, "bias_ih": layer.b,
              "bias_hh": torch.zeros_like(layer.b)}
    with torch.no_grad():
        for name, value in values.items():
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
reference = give_weights(nn.RNN(D, H, batch_first=True).double(), rnn)(x)[0]            # (1, T, H)
lesson.check("RNN, one step at a time = torch.nn.RNN", rnn_by_hand(rnn.W, rnn.U, rnn.b, x[0]),
             reference[0], atol=1e-12, source="Elman 1990; C: Recurrent Neural Networks",
             items=("C17",))
lesson.check("RNN of the library = torch.nn.RNN", rnn(x)[0], reference, atol=1e-12,
             source="Elman 1990; C: Recurrent Neural Networks", items=("C17",))

# %% [markdown]
# The next states depend on the earlier text only through the present state. So we can read a
# sentence in two pieces, if the second piece starts from the last state of the first. The result
# must be the same as for the whole sentence. A recurrent language model writes in this way: one
# token in, one prediction out. The thousandth token costs the same as the first.

# %%
first = rnn(x[:, :3])                                                   # (S = 1, B, 3, H)
second = rnn(x[:, 3:], first[:, :, -1])                                 # (1, B, T − 3, H)
lesson.check("two pieces and a state = torch.nn.RNN on the whole",
             torch.cat([first, second], dim=2)[0], reference, atol=1e-12,
             source="the definition of the state")

# %% [markdown]
# ## 2. How much does the last state depend on the first?
# Suppose that a word at the start matters at the end. To learn this, training needs the derivative
# of the last state with respect to the first one: ∂h_T/∂h₀, a matrix (H, H).
#
# One step. Write aₜ = W xₜ + U hₜ₋₁ + b, so hₜ = tanh(aₜ), entry by entry. The derivative of
# tanh(a) is tanh′(a) = 1 − tanh²(a). Therefore
#
#     ∂hₜ/∂aₜ = diag(1 − hₜ²)          ∂aₜ/∂hₜ₋₁ = U          so    ∂hₜ/∂hₜ₋₁ = diag(1 − hₜ²) U
#
# diag(u) is the matrix with u on its diagonal and 0 elsewhere.
#
# T steps. hₜ depends on h₀ only through hₜ₋₁, since W xₜ and b do not depend on h₀. So the chain
# rule gives a product:
#
#     ∂h_T/∂h₀ = diag(1 − h_T²) U · diag(1 − h_{T−1}²) U · … · diag(1 − h₁²) U
#
# Its size. The **operator norm** ‖A‖ = max ‖Av‖/‖v‖ is the largest factor by which A stretches a
# vector. It follows that ‖ABv‖ ≤ ‖A‖ ‖Bv‖ ≤ ‖A‖ ‖B‖ ‖v‖, so ‖AB‖ ≤ ‖A‖ ‖B‖. The norm of a diagonal
# matrix is its largest entry, in absolute value. Hence
#
#     ‖∂h_T/∂h₀‖ ≤ Πₜ ‖diag(1 − hₜ²)‖ ‖U‖ ≤ (m ‖U‖)^T          m = the largest 1 − h² of all steps
#
# (Pascanu et al. 2013, §2.1). m is the largest tanh′ that occurs, and it is never above 1. The
# bound is a power of T: if m ‖U‖ = 0.9, then after 100 steps at most 0.9¹⁰⁰ = 0.000027 of the
# gradient is left. This is the **vanishing gradient problem**: training loses information about the
# start of a long sequence.
#
# The first check compares the product with PyTorch's automatic differentiation, which does not use
# this formula.
#
# Items: C18

# %%
WIDTH, LONG = 16, 60
scaled = {}                                             # s -> an RNN with U = s · (orthogonal)
for scale in (0.8, 1.0, 1.25):                          # such a U stretches every vector by s
    layer = RNN(D, WIDTH, lesson.generator).double()
    nn.init.orthogonal_(layer.U, gain=scale, generator=lesson.generator)
    scaled[scale] = layer
long_x = torch.randn(1, LONG, D, dtype=torch.float64, generator=lesson.generator)


def jacobian(layer, xs, steps):
    """∂h_T/∂h₀ (H, H) after `steps` steps, from autograd: row i is the gradient of entry i."""
    h0 = torch.zeros(1, 1, layer.d_hidden, dtype=xs.dtype, requires_grad=True)
    last = layer(xs[:, :steps], h0)[0, 0, -1]                           # (H,)
    each = torch.eye(len(last), dtype=xs.dtype)                         # one entry at a time
    return torch.autograd.grad(last, h0, each, is_grads_batched=True)[0][:, 0, 0]


def product(layer, xs, steps):
    """The same from the formula: Π diag(1 − hₜ²) U, with the latest factor on the left."""
    total = torch.eye(layer.d_hidden, dtype=xs.dtype)
    for h in layer(xs[:, :steps])[0, 0]:
        total = torch.diag(1 - h**2) @ layer.U @ total
    return total


with torch.no_grad():
    formula = torch.stack([product(layer, long_x, 10) for layer in scaled.values()])    # (3, H, H)
automatic = torch.stack([jacobian(layer, long_x, 10) for layer in scaled.values()])
lesson.check("∂h_T/∂h₀ = Π diag(1 − hₜ²) U", formula, automatic, atol=1e-12,
             source="derived above")

# %% [markdown]
# Then the bound, for every T up to 60 and for three sizes of U. The check measures how far the norm
# is above the bound, so 0 is expected. But a bound can be true and far too large. So the next
# check uses a case in which the two are equal. With inputs of 0 the state stays at 0, where
# tanh′ = 1, and U = s · (orthogonal) stretches every vector by s. After T steps the factor is s^T.

# %%
norms, bounds = {}, {}                                                  # scale -> (LONG,)
for scale, layer in scaled.items():
    largest = (1 - layer(long_x)[0, 0].detach() ** 2).amax(-1)          # (LONG,) at each step
    m = largest.cummax(0).values                                        # (LONG,) up to each T
    size_of_U = torch.linalg.matrix_norm(layer.U.detach(), 2)           # operator norm
    bounds[scale] = (size_of_U * m) ** torch.arange(1, LONG + 1)
    norms[scale] = torch.stack([torch.linalg.matrix_norm(jacobian(layer, long_x, t), 2)
                                for t in range(1, LONG + 1)])
excess = torch.stack([(norms[s] / bounds[s] - 1).clamp(min=0) for s in scaled])         # (3, LONG)
lesson.check("‖∂h_T/∂h₀‖ ≤ (m ‖U‖)^T: how far above the bound", excess, torch.zeros(3, LONG),
             atol=1e-12, source="derived above; Pascanu et al. 2013, §2.1", items=("C18",))
zeros = torch.zeros_like(long_x)
at_zero = torch.stack([torch.linalg.matrix_norm(jacobian(layer, zeros, 20), 2)
                       for layer in scaled.values()])
powers = torch.tensor([0.8**20, 1.0, 1.25**20], dtype=torch.float64)
lesson.check("norm = bound if h = 0 and U = s·orthogonal, T = 20", at_zero, powers, atol=1e-9,
             source="derived above")

fig, axes = plotting.figure(7.5, 4)
for scale in scaled:
    (line,) = axes.semilogy(range(1, LONG + 1), norms[scale], label=f"measured, ‖U‖ = {scale}")
    axes.semilogy(range(1, LONG + 1), bounds[scale], color=line.get_color(), linestyle="-",
                  linewidth=0.8)
    axes.text(LONG + 0.7, bounds[scale][-1], f"bound for {scale}", va="center", fontsize=9)
axes.set(xlabel="steps T", ylabel="‖∂h_T/∂h₀‖", xlim=(0, LONG * 1.2),
         title="How much an RNN's last state depends on its first (thin lines: bounds)")
axes.legend(loc="lower left")
lesson.figure(fig, "jacobian")
lesson.claim("‖U‖ = 1.25 does not save the gradient: tanh′ is too small", norms[1.25][-1] < 1e-2,
             f"after {LONG} steps the norm is {norms[1.25][-1]:.1e}, and the bound "
             f"{bounds[1.25][-1]:.1e}; with ‖U‖ = 0.8 the norm is {norms[0.8][-1]:.1e}")

# %% [markdown]
# ## 3. LSTM: a sum instead of a product
# The **long short-term memory** (LSTM; Hochreiter and Schmidhuber 1997) has a second vector, the
# **cell** c. Between two steps, no tanh and no matrix is applied to c. Three **gates**, with values
# between 0 and 1, decide for each unit how much to write (i), to keep (f; added by Gers et al.
# 2000) and to show (o). σ(a) = 1/(1 + e^(−a)), and ⊙ multiplies entry by entry:
#
#     i = σ(Wᵢ xₜ + Uᵢ hₜ₋₁ + bᵢ)     f and o in the same way, each with its own weights
#     g = tanh(W_g xₜ + U_g hₜ₋₁ + b_g)
#     cₜ = f⊙cₜ₋₁ + i⊙g
#     hₜ = o⊙tanh(cₜ)
#
# Items: C20

# %%
def lstm_by_hand(W, U, b, xs):
    """(T, D) -> h and c, each (T, H). W, U and b hold those of i, f, g and o, in this order."""
    H = len(U) // 4
    (Wi, Wf, Wg, Wo), (Ui, Uf, Ug, Uo), (bi, bf, bg, bo) = W.split(H), U.split(H), b.split(H)
    h, c = torch.zeros(H, dtype=xs.dtype), torch.zeros(H, dtype=xs.dtype)
    hs, cs = [], []
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
ORIGIN = "Hochreiter and Schmidhuber 1997; Gers et al. 2000; C: Bi-directional LSTM"
lesson.check("LSTM, one step at a time = torch.nn.LSTM", by_hand_h, reference[0], atol=1e-12,
             source=ORIGIN, items=("C20",))
lesson.check("LSTM's last cell = torch.nn.LSTM's", by_hand_c[-1], last_c[0, 0], atol=1e-12,
             source=ORIGIN)
lesson.check("LSTM of the library = torch.nn.LSTM", lstm(x)[0], reference, atol=1e-12,
             source=ORIGIN, items=("C20",))

# %% [markdown]
# Now the derivative of the cell. From cₜ = f⊙cₜ₋₁ + i⊙g, if the gates are held constant,
#
#     ∂cₜ/∂cₜ₋₁ = diag(f)          so          ∂c_T/∂c₀ = diag(f_T ⊙ … ⊙ f₁)
#
# This product has no U and no tanh′. (There are other paths: from c to h, and through U to the next
# gates. The check removes them with U = 0, so that the formula is exact.) The factor of an RNN
# depends on U and the data. The factor of an LSTM is a gate, and its bias can hold the gate near 1.
#
# How near? Let f = 1 − 1/τ for a number of steps τ. After τ steps (1 − 1/τ)^τ is left, which is
# about 1/e = 0.37 for large τ. So the cell remembers for about τ steps. If the inputs of the gate
# are 0, then f = σ(b_f). Solve σ(b_f) = 1 − 1/τ:
#
#     1/(1 + e^(−b_f)) = (τ − 1)/τ   ⟺   e^(−b_f) = τ/(τ − 1) − 1 = 1/(τ − 1)   ⟺   b_f = ln(τ − 1)
#
# (Tallec and Ollivier 2018, §2). For the usual b_f = 1 (Jozefowicz et al. 2015), τ = e + 1 = 3.7
# steps. For b_f = 0, τ = 2.
#
# A cell that keeps everything also keeps the noise. The sum of τ independent random numbers of
# variance i² has variance τ i², so its size is i√τ. To keep it near 1, start with i = 1/√τ. For
# small values σ(b) ≈ e^b, so b_i = ln(1/√τ) = −½ ln τ. (This differs from the paper. There b_i =
# −b_f, which means i = 1/τ, and each unit has its own τ, drawn at random up to the longest expected
# distance. Here all units have the same τ.)

# %%
no_U = randomised(LSTM(D, H))
no_U.U.data.zero_()
c0 = torch.randn(H, dtype=torch.float64, generator=lesson.generator).requires_grad_()
c_last = no_U(x, torch.stack([torch.zeros_like(c0), c0])[:, None])[1][0, -1]            # (H,)
automatic = torch.stack([torch.autograd.grad(value, c0, retain_graph=True)[0] for value in c_last])
W_f, b_f = no_U.W.split(H)[1], no_U.b.split(H)[1]
gates = torch.sigmoid(x[0] @ W_f.T + b_f)                               # (T, H) f at each step
lesson.check("∂c_T/∂c₀ = diag(Π fₜ) if U = 0", automatic, torch.diag(gates.prod(0)), atol=1e-12,
             source="derived above")
spans = torch.tensor([4.0, 20.0, 100.0])
lesson.check("σ(ln(τ − 1)) = 1 − 1/τ", torch.sigmoid((spans - 1).log()),
             torch.tensor([3 / 4, 19 / 20, 99 / 100]), atol=1e-6,
             source="derived above; Tallec and Ollivier 2018, §2")

# %% [markdown]
# ## 4. The gradient, measured
# The task: remember the first word. A sequence is a word, then `lag` random words, then a "?". The
# answer is the first word. There are 32 words with equal probabilities, so guessing is right 1 time
# in 32: 0.031. Only its place distinguishes the first word. So the network has to store it and then
# keep it, while it reads all the others.
#
# There are six models. All are `minigpt.models.recurrent.RecurrentLM`: a table of word vectors, one
# recurrent layer, and a linear layer on h. They differ in the layer and in how it starts:
# - an RNN as PyTorch starts it, every weight uniform between −1/√H and 1/√H;
# - an RNN with an orthogonal U, ‖U‖ = 1 (Saxe et al. 2014);
# - an RNN with U = the identity matrix, and W divided by √lag for the same reason as i = 1/√τ
#   above. At first it almost adds up its inputs (Le et al. 2015 do this with ReLU units);
# - an LSTM with b_f = 0, one with the usual b_f = 1, and one whose forget gate starts open, for
#   τ = lag steps as in section 3.
#
# The RNNs have 96 units and the LSTMs 48, so all have about the same number of parameters. Let
# L = v·h_T with a random vector v of length 1. How large is ∂L/∂(state) k steps before the end,
# divided by its size at the end?

# %%
WORDS = 32
QUESTION = WORDS
LAG = 100
device = torch.device(lesson.device)


def recall_batch(lag, batch_size):
    """A function that draws (B, lag + 2) tokens: the word, `lag` random words, the question."""
    def next_batch(generator):
        words = torch.randint(WORDS, (batch_size, lag + 1), generator=generator)
        return torch.cat([words, torch.full((batch_size, 1), QUESTION)], dim=1).to(device)
    return next_batch


def recaller(start, lag):
    """A model with one of the six starts. The same seed gives the same model."""
    generator = torch.Generator().manual_seed(lesson.seed)
    cell, width = (RNN, 96) if start.startswith("RNN") else (LSTM, 48)
    model = RecurrentLM(WORDS + 1, d_embedding=16, d_hidden=width, cell=cell, generator=generator)
    layer = model.layers[0]
    if start == "RNN, uniform":
        limit = 1 / math.sqrt(width)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -limit, limit, generator=generator)
    if start == "RNN, identity":
        nn.init.eye_(layer.U)
        layer.W.data /= math.sqrt(lag)
    if start == "LSTM, b_f = 0":
        layer.forget_bias.zero_()
    if start == "LSTM, gate open":
        layer.forget_bias.fill_(math.log(lag - 1))
        layer.b.data[:width] = -0.5 * math.log(lag)     # the first part of b belongs to i
    return model.to(device)


def gradient_reaching_back(model, tokens):
    """‖∂L/∂(state k steps before the end)‖ / ‖∂L/∂(state at the end)‖, k = 0, 1, …: (T,).

    Both norms are means over the batch.
    """
    layer, x = model.layers[0], model.token_embedding(tokens)           # (B, T, D)
    state, states = None, []
    for t in range(tokens.size(1)):
        state = layer(x[:, t:t + 1], state)[:, :, -1]                   # (S, B, H)
        state.retain_grad()
        states.append(state)
    generator = torch.Generator().manual_seed(lesson.seed)
    v = torch.randn(state[0].shape, generator=generator).to(device)     # (B, H)
    (state[0] * v / v.norm(dim=-1, keepdim=True)).sum().backward()
    sizes = [s.grad.square().sum((0, 2)).sqrt().mean() for s in reversed(states)]
    model.zero_grad()
    return (torch.stack(sizes) / sizes[0]).cpu()                        # (T,)


STARTS = ("RNN, uniform", "RNN, orthogonal", "RNN, identity", "LSTM, b_f = 0", "LSTM, b_f = 1",
          "LSTM, gate open")
LOOKS = {name: {"color": colour, "linestyle": dash}
         for name, colour, dash in zip(STARTS, plotting.COLOURS, plotting.DASHES)}
probe = recall_batch(LAG, 64)(torch.Generator().manual_seed(1000 + lesson.seed))
at_start = {start: gradient_reaching_back(recaller(start, LAG), probe) for start in STARTS}
half = LAG // 2
for start, curve in at_start.items():
    print(f"    {start:<16} {count_parameters(recaller(start, LAG)):6,} parameters; "
          f"gradient left after {half} steps: {curve[half]:.1e}, after {LAG}: {curve[LAG]:.1e}")

# %% [markdown]
# The gradient of the uniform and the orthogonal RNN gets smaller by about the same factor at every
# step. **The same is true for the LSTMs with b_f = 0 and b_f = 1.** So an LSTM alone does not solve
# the problem. The forget gate must be open: then the gradient gets only a little smaller. The RNN
# that starts with the identity also keeps its gradient, at least before training. (0.0e+00 stands
# for a number below 1e-45, the smallest in float32.)

# %%
lesson.claim("at the start: an RNN's gradient vanishes, that of an open LSTM does not",
             at_start["RNN, orthogonal"][half] < 1e-3 < 3e-2 < at_start["LSTM, gate open"][half],
             f"left after {half} steps: RNN {at_start['RNN, orthogonal'][half]:.1e}, "
             f"LSTM with an open gate {at_start['LSTM, gate open'][half]:.1e}", items=("C18",))
lesson.claim("at the start: with b_f = 1, the LSTM's gradient vanishes too, but more slowly",
             at_start["RNN, orthogonal"][half] < at_start["LSTM, b_f = 1"][half] < 1e-2,
             f"left after {half} steps: {at_start['LSTM, b_f = 1'][half]:.1e}")

# %% [markdown]
# ## 5. Recall
# A gradient that reaches the first word is necessary for learning, but not sufficient. So we train,
# with lags of 4, 20 and 100, for at most 300 steps of 256 sequences. Each start has its own
# learning rate, the best of some trials at lag 100.

# %%
STEPS, LAGS = lesson.pick(300, 25), lesson.pick((4, 20, 100), (4, 20))
RATES = {"RNN, uniform": 1e-2, "RNN, orthogonal": 1e-2, "RNN, identity": 1e-3,
         "LSTM, b_f = 1": 2e-2, "LSTM, gate open": 2e-2}


def recall_loss(model, tokens):
    return cross_entropy(model(tokens)[:, -1], tokens[:, 0])            # at the question only


def learn_to_recall(start, lag):
    """The trained model, and (step, accuracy on 1,000 new sequences) every 50 steps.

    Training stops early when 99 % are right.
    """
    model = recaller(start, lag)
    test = recall_batch(lag, 1000)(torch.Generator().manual_seed(2000 + lesson.seed))
    config = TrainingConfig(max_steps=STEPS, learning_rate=RATES[start], weight_decay=0.0,
                            evaluate_every=50, seed=lesson.seed)

    def evaluate(model):
        return {"accuracy": (model(test)[:, -1].argmax(-1) == test[:, 0]).float().mean().item()}

    rows = train(model, recall_batch(lag, 256), recall_loss, config, evaluate,
                 on_row=lambda row: row["accuracy"] > 0.99)             # True stops the training
    return model, [(row["step"], row["accuracy"]) for row in rows]


learned = {}                                            # (start, lag) -> (accuracy, curve, model)
for lag in LAGS:
    for start in RATES:
        model, curve = learn_to_recall(start, lag)
        learned[start, lag] = (curve[-1][1], curve, model)
        print(f"    lag {lag:3d}  {start:<16} {curve[-1][1]:.2f} right after {curve[-1][0]} steps",
              flush=True)

# %%
longest = LAGS[-1]
fig, (left, right) = plotting.figure(10, 4, columns=2)
for start in RATES:
    left.plot(LAGS, [learned[start, lag][0] for lag in LAGS], marker="o", label=start,
              **LOOKS[start])
    right.plot(*zip(*learned[start, longest][1]), marker="o", markersize=3, label=start,
               **LOOKS[start])
for axes in (left, right):
    axes.axhline(1 / WORDS, color="black", linestyle=":", linewidth=1.2,
                 label=f"guessing, {1 / WORDS:.3f}")
    axes.set_ylim(-0.03, 1.05)
left.set(xscale="log", xlabel="lag: random words before the question",
         ylabel="share of first words recalled", title=f"After at most {STEPS} steps")
left.set_xticks(LAGS, [str(lag) for lag in LAGS], minor=False)
left.minorticks_off()
right.set(xlabel="optimizer steps", title=f"During training at lag {longest}")
right.legend(loc="best")
lesson.figure(fig, "recall")

RNNS, OPEN = [start for start in RATES if start.startswith("RNN")], "LSTM, gate open"
recalled = {start: learned[start, longest][0] for start in RATES}
at_4 = {start: learned[start, LAGS[0]][0] for start in RATES}


def listed(shares):
    return ", ".join(f"{start} {share:.2f}" for start, share in shares.items())


lesson.claim(f"lag {LAGS[0]}: all models recall", min(at_4.values()) > 0.8, listed(at_4),
             full_run=True)
lesson.claim(f"lag {longest}: the LSTM that starts with an open gate recalls",
             recalled[OPEN] >= 0.95, f"{recalled[OPEN]:.2f} after "
             f"{learned[OPEN, longest][1][-1][0]} steps; guessing {1 / WORDS:.2f}", full_run=True)
lesson.claim(f"lag {longest}: no RNN recalls more than half of the words",
             max(recalled[start] for start in RNNS) <= 0.5,
             f"after {STEPS} steps: {listed({start: recalled[start] for start in RNNS})}",
             full_run=True)
lesson.claim(f"lag {longest}: the LSTM that starts with b_f = 1 does not recall",
             recalled["LSTM, b_f = 1"] < 0.1,
             f"the same LSTM with b_f = 1 and b_i = 0: {recalled['LSTM, b_f = 1']:.2f}",
             full_run=True)

# %% [markdown]
# At lag 100, the gradient of the RNN with the identity did reach the first word, but this RNN
# learned almost nothing. It adds W xₜ to its state at every step, whatever the state is, so the
# first word is one of a hundred terms. The other two RNNs received almost no gradient from the
# first word (section 4). They can still succeed by chance: with large steps, training can bring an
# RNN to weights with a larger gradient, and then it begins to recall. Over five seeds, the uniform
# RNN reached 0.03 to 0.25 of the words in 300 steps, and the orthogonal one 0.03 to 0.24. At lag 20
# the three RNNs reached 0.05 to 0.89. The LSTM with an open gate does not depend on this chance.
#
# How does the LSTM store the word? One would expect that its input gate closes after the first
# word. It does not. The gates open for the first word, to 0.4 or more, but later they stay at about
# 0.2, which is more than before training. And ‖c‖ grows at every step, up to about 200. So the LSTM
# writes at every step. But *what* it writes depends on h, and so on the first word. To see this,
# take what it writes in the last fifty steps, minus the mean over all sequences. For two sequences
# with the same first word, the results point in nearly the same direction. For different first
# words, they do not. So the LSTM does not only keep the word: it writes it again at every step. The
# last figure shows the gradients after training.

# %%
@torch.no_grad()
def what_is_written(model, tokens):
    """In an LSTM: the mean input gate at every step (T,), and the cell after it (B, T, H)."""
    layer, x = model.layers[0], model.token_embedding(tokens)           # (B, T, D)
    h, c = layer(x)                                                     # (B, T, H) each
    before = nn.functional.pad(h[:, :-1], (0, 0, 1, 0))                 # hₜ₋₁, zeros at the start
    all_gates = x @ layer.W.T + before @ layer.U.T + layer.b            # (B, T, 4H)
    return torch.sigmoid(all_gates.chunk(4, dim=-1)[0]).mean((0, 2)), c


def alike(vectors, first):
    """Mean cosine of two rows of (B, H), minus the mean row: same first word, different ones."""
    unit = nn.functional.normalize(vectors - vectors.mean(0), dim=-1)
    cosine = unit @ unit.T                                              # (B, B)
    same = first[:, None] == first                                      # (B, B)
    oneself = torch.eye(len(first), dtype=torch.bool, device=device)
    return cosine[same & ~oneself].mean().item(), cosine[~same].mean().item()


sequences = recall_batch(longest, 512)(torch.Generator().manual_seed(4000 + lesson.seed))
cosines = {}
for when, model in (("before", recaller(OPEN, longest)), ("trained", learned[OPEN, longest][2])):
    gate, c = what_is_written(model, sequences)
    size = c.norm(dim=-1).mean(0)                                       # (T,) ‖c‖
    written = c[:, longest] - c[:, longest // 2]                        # (B, H) in the later half
    cosines[when] = alike(written, sequences[:, 0])
    print(f"    {when:<8} i = {gate[0]:.2f} at the first word, {gate[2:longest + 1].mean():.2f} on "
          f"average from the third on; ‖c‖ {size[0]:.1f} → {size[longest // 2]:.0f} → "
          f"{size[longest]:.0f}")
lesson.claim("trained: what the LSTM writes in the later half depends on the first word",
             cosines["trained"][0] > 0.8 and cosines["trained"][1] < 0.1,
             "mean cosine with the same first word {:.2f}, with another {:.2f}; ".format(
                 *cosines["trained"])
             + "before training {:.2f} and {:.2f}".format(*cosines["before"]), full_run=True)

# %%
probe = recall_batch(longest, 64)(torch.Generator().manual_seed(1000 + lesson.seed))
after = {start: gradient_reaching_back(learned[start, longest][2], probe) for start in RATES}
fig, (left, right) = plotting.figure(10, 4, columns=2, sharey=True)
for axes, curves, title in ((left, at_start, "Before training"),
                            (right, after, f"After training at lag {longest}")):
    for name, curve in curves.items():
        axes.semilogy(range(len(curve)), curve.clamp(min=1e-30), label=name, **LOOKS[name])
    axes.set(xlabel="k, steps before the end", ylim=(1e-18, 30), title=title)
left.set_ylabel("gradient left, relative to the end")
left.legend(loc="lower left")
lesson.figure(fig, "gradient")
left_after = {start: curve[longest].item() for start, curve in after.items()}
lesson.claim("trained: the LSTM's gradient still reaches the first word", left_after[OPEN] > 1e-2,
             f"left after {longest} steps: LSTM that started with an open gate "
             f"{left_after[OPEN]:.1e}, with b_f = 1 {left_after['LSTM, b_f = 1']:.1e}, orthogonal "
             f"RNN {left_after['RNN, orthogonal']:.1e}", full_run=True)

# %% [markdown]
# ## 6. BiLSTM: read in both directions
# In Italian and Spanish, the article comes before the noun that decides its gender: *il grande
# ponte* (masculine), *la grande casa* (feminine). *grande* is the same for both. Hide the article,
# "▁ grande dolce casa", and train a network to fill it in. A network that reads forwards has not
# read the noun yet. Both genders have probability 1/2, so it is right half of the time, however
# long it trains. The remedy is a second network that reads backwards. At each word, put the two
# states together (Schuster and Paliwal 1997). With two LSTMs this is a BiLSTM (Graves and
# Schmidhuber 2005):
#
#     hₜ = [→hₜ ; ←hₜ]          →hₜ from x₁..xₜ          ←hₜ from x_T..xₜ
#
# Sentences have different lengths, so a batch is padded. The backward network must start at the
# last real word. `mask` is True at real words; where it is False, the state does not change. The
# check compares with PyTorch's packed sequences.
#
# Items: C19

# %%
lengths = [7, 2, 5]
mask = torch.arange(T) < torch.tensor(lengths)[:, None]                 # (3, T)
x = torch.randn(3, T, D, dtype=torch.float64, generator=lesson.generator)
both = randomised(BiLSTM(D, H))
theirs = nn.LSTM(D, H, batch_first=True, bidirectional=True).double()
give_weights(theirs, both.rightwards)
give_weights(theirs, both.leftwards, "l0_reverse")
packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True,
                                           enforce_sorted=False)
reference, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)    # (3, T, 2H)
lesson.check("BiLSTM = torch.nn.LSTM(bidirectional), with padding", both(x, mask)[mask],
             reference[mask], atol=1e-12,
             source="Graves and Schmidhuber 2005; C: Bi-directional LSTM", items=("C19",))

# %%
NOUNS = {"il": ("ponte", "libro", "gatto", "fiume"), "la": ("casa", "luna", "strada", "stella")}
ADJECTIVES = ("grande", "dolce", "celebre", "semplice", "felice")       # the same for both genders
PAD, BLANK = 0, 1
words = ["·", "▁", *ADJECTIVES, *NOUNS["il"], *NOUNS["la"]]
MASCULINE = len(ADJECTIVES) + 2                         # the first masculine noun
FEMININE = MASCULINE + len(NOUNS["il"])                 # the first feminine noun


def phrases(batch_size, generator):
    """Tokens (B, T), padded, and genders (B, T), which are −1 except at the blanks.

    A row has three phrases: each is a blank, 0 to 4 adjectives, and a noun.
    """
    rows, genders = [], []
    for _ in range(batch_size):
        row, gender = [], []
        for _ in range(3):
            feminine, n, noun = (int(torch.randint(k, (), generator=generator)) for k in (2, 5, 4))
            adjectives = 2 + torch.randint(len(ADJECTIVES), (n,), generator=generator)
            row += [BLANK, *adjectives.tolist(), (FEMININE if feminine else MASCULINE) + noun]
            gender += [feminine] + [-1] * (n + 1)
        rows.append(row)
        genders.append(gender)
    tokens, _ = pad(rows, side="right", value=PAD)
    gender, _ = pad(genders, side="right", value=-1)
    return tokens.to(device), gender.to(device)


class Reader(nn.Module):
    """Tokens (B, T) -> a score for each gender (B, T, 2), with an LSTM or a BiLSTM."""

    def __init__(self, layer, width):
        super().__init__()
        self.embedding = nn.Embedding(len(words), 12)
        self.layer, self.out = layer, nn.Linear(width, 2)

    def forward(self, tokens):
        states = self.layer(self.embedding(tokens), mask=tokens != PAD)
        h = states if isinstance(self.layer, BiLSTM) else states[0]     # (B, T, width)
        return self.out(h)                                              # (B, T, 2)


def article_loss(model, batch):
    tokens, gender = batch
    return cross_entropy(model(tokens), gender, gender >= 0)


def article_accuracy(model):
    tokens, gender = judged
    right = model(tokens).argmax(-1) == gender
    return {"accuracy": right[gender >= 0].float().mean().item()}


judged = phrases(500, torch.Generator().manual_seed(3000 + lesson.seed))
mixed = next(row for row, gender in enumerate(judged[1]) if {0, 1} <= set(gender.tolist()))
sentence = judged[0][mixed].tolist()                    # a sentence with both genders
readers = {"LSTM": Reader(LSTM(12, 40, lesson.generator), 40),
           "BiLSTM": Reader(BiLSTM(12, 20, lesson.generator), 40)}
right = {}
for name, model in readers.items():
    config = TrainingConfig(max_steps=lesson.pick(150, 100), learning_rate=1e-2, evaluate_every=50,
                            seed=lesson.seed)
    rows = train(model.to(device), lambda generator: phrases(32, generator), article_loss, config,
                 article_accuracy)
    right[name] = rows[-1]["accuracy"]
    guess = model(judged[0][mixed:mixed + 1]).argmax(-1)[0].tolist()
    filled = [("il", "la")[g] if w == BLANK else words[w]
              for w, g in zip(sentence, guess) if w != PAD]
    print(f"    {name:<7}", " ".join(filled))
lesson.claim("the article needs the noun that follows: the BiLSTM reads it, the LSTM has to guess",
             right["BiLSTM"] > 0.95 and abs(right["LSTM"] - 0.5) < 0.06,
             f"articles right: BiLSTM {right['BiLSTM']:.2f}, LSTM {right['LSTM']:.2f}; "
             "guessing gives 0.50",
             items=("C19",))

# %% [markdown]
# ## 7. Three limits
# - **The state has a fixed size.** A sentence of any length must fit into H numbers. Lesson 04
#   translates with such a state, and the translations get worse for long sentences. Then its
#   decoder may look at all the encoder's states: attention.
# - **The steps cannot run in parallel.** hₜ needs hₜ₋₁, so T steps run one after the other, however
#   many processors there are. Lesson 05 removes the recurrence. Then no product of Jacobians over
#   time is left, because any two positions are connected in one step.
# - **A model that reads in both directions cannot predict the next word**, because it has read it.
#   BERT (lesson 07) reads in both directions, to understand text. GPT (lesson 06) reads in one
#   direction, and can write.

# %%
lesson.end()
