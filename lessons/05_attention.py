"""Lesson 05: attention, from one question to many heads.

You will see    A(q, K, V) = softmax(qKᵀ/√D)·V by hand, in loops, as matrices and fused; why √D; heads, masks, positions.
Source          course C, "Attention in Transformers"; course B; Vaswani et al. 2017, §3.2 and §3.5.
Expect          about 11 s on two cores; every check passes; one layer copies strings it has never seen, looking where it should.
Not here        norms, residuals and the MLP around attention (lesson 06); cheaper attention (lesson 09); dropout on the weights.

Shapes: B batch, H heads, T queries, S keys, D width of one head, C = d_model, V vocabulary.
"""
# %%
import cmath
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.models.attention import MultiHeadAttention, attend, attention_weights, causal_mask
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.positions import rotary_table, rotate, sinusoidal_positions
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy

lesson = Lesson("05_attention", threads=1)
torch.set_default_dtype(torch.float64)                                  # equations first: 1e-12 is rounding, 1e-3 a mistake


def randn(*shape):
    return torch.randn(*shape, generator=lesson.generator)


# %% [markdown]
# ## 1. The idea
# Lesson 04 let a decoder look back: its state s asked, every encoder state h answered with score(s, h) = vᵀtanh(W[s; h]),
# and the decoder took home A = Σᵢ softmax(score)ᵢ hᵢ. The RNN underneath still read one word after the other.
# Three changes, and the RNN can go:
# 1. **Keys and values part ways.** What a word is *found by* (its key kᵢ) need not be what it *hands over* (its value vᵢ).
# 2. **The score is a dot product**, q·kᵢ/√D: large where question and key point the same way. All T·S scores are one matrix product.
# 3. **The sequence asks itself.** Every word has a query of its own and looks at every word: *self*-attention.
#    Two words are one step apart however far apart they stand; in an RNN that was one step a word (lesson 03).
#
# ## 2. One question, by hand
# "the black **cat** sleeps": *sleeps* asks who its subject is. Width D = 4, so √D = 2; the numbers are chosen to come out whole.
#
#     q = (2 ln 2, 2 ln 3, 0, 0)
#     word     key kᵢ           q·kᵢ      /√D     e^      weight      value vᵢ
#     the      (0, 0, 1, 0)     0         0       1       1/6         (6, 6)
#     black    (1, 0, 0, 0)     2 ln 2    ln 2    2       2/6         (6, 0)
#     cat      (0, 1, 0, 0)     2 ln 3    ln 3    3       3/6         (0, 6)
#                                                 Σ = 6   Σ = 1
#     z = 1/6·(6, 6) + 2/6·(6, 0) + 3/6·(0, 6) = (1 + 2 + 0, 1 + 0 + 3) = (3, 4)

# %%
q = torch.tensor([[2 * math.log(2), 2 * math.log(3), 0, 0]])            # (1, D) one query
K = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]])          # (S, D) the, black, cat
V = torch.tensor([[6.0, 6], [6, 0], [0, 6]])                            # (S, 2) values may have a width of their own
scores = q @ K.T / math.sqrt(q.size(-1))                                # (1, S)
weights = scores.softmax(dim=-1)
z = weights @ V                                                         # (1, S) · (S, 2) -> (1, 2)

lesson.check("softmax(qKᵀ/√D) = (1/6, 2/6, 3/6)", weights, [[1 / 6, 2 / 6, 3 / 6]], atol=1e-12, source="by hand")
lesson.check("z = softmax(qKᵀ/√D)·V = (3, 4)", z, [[3, 4]], atol=1e-12, source="C: A(q, K, V)")

# %% [markdown]
# Two slips of the notes, seen with these numbers:
# - course B writes q_t Kᵀ = softmax(q_t Kᵀ/√d). The left side is the raw scores, the right side the weights; the output is weights·V.
# - course C writes z_j = Σᵢ score(q, kᵢ) vᵢ. Without the softmax the "weights" do not sum to 1 (and may be negative), so z is no
#   average of the values: here its second number leaves the range of the values, 0 to 6. In truth z_j = Σᵢ softmax(score)ᵢ vᵢ.

# %%
print(f"  course B: qKᵀ = {(q @ K.T)[0].numpy().round(2)}, but softmax(qKᵀ/√D) = {weights[0].numpy().round(2)}")
print(f"  course C: Σ scoreᵢ vᵢ = {(scores @ V)[0].numpy().round(2)}, but Σ softmax(score)ᵢ vᵢ = {z[0].numpy().round(2)}")

# %% [markdown]
# ## 3. Many questions: loops, then matrices
# The definition, one number at a time; nothing in it is a tensor operation, so it can contradict the lines that are.

# %%
def attention_by_loops(Q, K, V):
    """z_t = Σᵢ w_ti vᵢ with w_ti = e^(q_t·kᵢ/√D) / Σⱼ e^(q_t·kⱼ/√D): (T, D), (S, D), (S, any) -> (T, any), as lists."""
    outputs = []
    for q in Q.tolist():
        exponentials = [math.exp(sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q))) for k in K.tolist()]
        w = [e / sum(exponentials) for e in exponentials]
        outputs.append([sum(w_i * v[c] for w_i, v in zip(w, V.tolist())) for c in range(V.size(1))])
    return outputs


# %% [markdown]
# Stack the queries as rows of Q (T, D), keys and values as rows of K (S, D) and V. Then entry (t, i) of QKᵀ is q_t·kᵢ: all scores
# at once. Softmax runs **along each row**, over the keys, since each query shares out a weight of 1. Row t of weights·V is
# Σᵢ w_ti vᵢ. Three lines, and no line waits for another position: this is what made transformers fast to train.
#
# Course C draws one *column* per query instead: S = softmax of KQᵀ/√D down each column, S_ij the weight of key i for query j,
# and z_j = Σᵢ S_ij vᵢ, so Z = SᵀV. The same numbers, transposed.

# %%
def attention(Q, K, V):
    scores = Q @ K.T / math.sqrt(Q.size(-1))                            # (T, S)
    return scores.softmax(dim=-1) @ V                                   # (T, S) · (S, any) -> (T, any)


Q, K, V = randn(4, 3), randn(6, 3), randn(6, 5)                         # T = 4 queries, S = 6 keys, D = 3; values of width 5
looped = attention_by_loops(Q, K, V)
lesson.check("A(Q, K, V): matrices = nested loops", attention(Q, K, V), looped, atol=1e-12, source="Vaswani et al. 2017, eq. 1")
lesson.check("A(Q, K, V): fused kernel = nested loops", F.scaled_dot_product_attention(Q, K, V), looped,
             atol=1e-12, source="eq. 1, PyTorch")
four = [m[None, None] for m in (Q, K, V)]                               # (B, H, …): the library counts batches and heads too
for fused in (False, True):
    lesson.check(f"attend(fused={fused}) = nested loops", attend(*four, fused=fused)[0, 0], looped,
                 atol=1e-12, source="models/attention.py")

S = (K @ Q.T / math.sqrt(3)).softmax(dim=0)                             # (S, T): column j belongs to query j
lesson.check("z_j = Σᵢ S_ij vᵢ, so Z = SᵀV", S.T @ V, looped, atol=1e-12, source="C: attention as SᵀV")

# %% [markdown]
# ## 4. Why √D
# Say the entries of q and k are independent, with mean 0 and variance 1 (what initialisation and norms aim for). Step by step:
#
#     E[qᵢkᵢ]        = E[qᵢ]·E[kᵢ] = 0                                   independent
#     Var(qᵢkᵢ)      = E[qᵢ²kᵢ²] − 0² = E[qᵢ²]·E[kᵢ²] = 1·1 = 1
#     Cov(qᵢkᵢ, qⱼkⱼ) = E[qᵢ]·E[kᵢ]·E[qⱼ]·E[kⱼ] = 0   for i ≠ j            so variances add
#     Var(q·k)       = Σᵢ Var(qᵢkᵢ) = D
#     Var(q·k/√D)    = D/(√D)² = 1
#
# No bell curve was needed. So take entries ±1, where every pair of vectors can be listed and nothing is sampled.

# %%
unscaled, scaled = [], []
for D in range(1, 8):
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)))           # (2^D, D) every vector of ±1
    unscaled.append((signs @ signs.T).var(correction=0).item())
    log_weights = attention_weights(signs, signs).log()                            # (2^D, 2^D): the score less a constant a row
    scaled.append((log_weights - log_weights.mean(-1, keepdim=True)).var(correction=0).item())
lesson.check("Var(q·k) = D, all pairs listed for D = 1..7", unscaled, range(1, 8), atol=1e-9, source="B, C: why √d")
lesson.check("Var of the library's scores = 1 for every D", scaled, [1] * 7, atol=1e-9, source="B, C: why √d")

# %% [markdown]
# What does a large variance do to the softmax? Let S scores be draws of N(0, σ²), S large, so that sums are S times a mean.
# The mean of e^s is e^(σ²/2). Weighting a bell curve by e^s moves it by σ², so the mean score under the weights p is σ². Then
#
#     Z = Σ e^s ≈ S·e^(σ²/2)           log pᵢ = sᵢ − log Z
#     entropy = −Σ pᵢ log pᵢ = log Z − Σ pᵢ sᵢ ≈ ln S + σ²/2 − σ² = ln S − σ²/2
#
# Scaled scores have σ² = 1: ½ nat below uniform, whatever D. Unscaled scores have σ² = D: the entropy falls by ½ nat a dimension
# and would be 0 at D = 2 ln S, which is 17 for 4096 keys. On the way there sums stop being S times a mean, and a few keys come to hold
# nearly everything. (Derrida 1981 met the same sum as a model of freezing.) GPT-1's and GPT-2's heads have D = 64.
#
# And a softmax that is sure cannot learn: ∂pᵢ/∂sⱼ = pᵢ(1[i=j] − pⱼ) is 0 wherever p is 0 or 1. The trace
# Σ pᵢ(1 − pᵢ) = 1 − Σ pᵢ² says how much gets through: near 1 when weight is spread, 0 when one key has it all.

# %%
n_keys, widths = 4096, [2 ** i for i in range(lesson.pick(11, 9))]
entropy, passes = {True: [], False: []}, {True: [], False: []}
for D in widths:
    queries = F.normalize(randn(64, D), dim=-1) * math.sqrt(D)                     # of length √D exactly, so that σ² is D exactly
    dots = queries @ randn(n_keys, D).T                                            # (64, S)
    for is_scaled, scores in ((True, dots / math.sqrt(D)), (False, dots)):
        p = scores.softmax(dim=-1)
        entropy[is_scaled].append(-(p * p.clamp_min(1e-300).log()).sum(-1).mean().item())
        passes[is_scaled].append(1 - p.square().sum(-1).mean().item())

ln_S = math.log(n_keys)                                                            # the entropy of equal weights
lesson.check("scaled: entropy = ln S − ½ for every D", entropy[True], [ln_S - 1 / 2] * len(widths), atol=0.1, source="derived above")
lesson.check("unscaled: entropy = ln S − D/2, D = 1, 2", entropy[False][:2], [ln_S - 1 / 2, ln_S - 1], atol=0.15, source="derived above")

s = randn(5)
p = s.softmax(0).tolist()
by_formula = [[p[i] * ((i == j) - p[j]) for j in range(5)] for i in range(5)]
by_autograd = torch.autograd.functional.jacobian(lambda s: s.softmax(0), s)         # (5, 5)
lesson.check("∂pᵢ/∂sⱼ = pᵢ(1[i=j] − pⱼ)", by_autograd, by_formula, atol=1e-12, source="softmax, differentiated")

without, with_root = (math.exp(entropy[is_scaled][widths.index(64)]) for is_scaled in (False, True))
lesson.claim(
    "without √D the softmax of a usual head saturates; with it, it does not", without < 10 and with_root > 1000,
    f"at D = 64 and {n_keys} keys, the weight spreads over e^entropy = {without:.1f} keys unscaled, {with_root:.0f} scaled",
)

# %%
fig, (left, right) = plotting.figure(10, 4, columns=2)
for is_scaled, name in ((True, "q·k/√D"), (False, "q·k")):
    marker = "o" if is_scaled else "s"
    left.plot(widths, entropy[is_scaled], marker=marker, label=f"measured, {name}")
    right.plot(widths, passes[is_scaled], marker=marker, label=name)
left.plot(widths, [ln_S - 1 / 2] * len(widths), label="ln S − ½")
theory = torch.linspace(1, 2 * ln_S, 50)
left.plot(theory, ln_S - theory / 2, label="ln S − D/2, to its zero at D = 2 ln S")
left.set(ylabel="entropy of the weights (nats)", title=f"How widely a query looks, S = {n_keys} keys")
right.set(ylabel="1 − Σp²", title="How much gradient the softmax lets through", ylim=(0, 1.05))
for axes in (left, right):
    axes.set(xlabel="width D of queries and keys", xscale="log")
    axes.set_xticks(widths[::2], [str(D) for D in widths[::2]])
    axes.minorticks_off()
left.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
right.legend()
lesson.figure(fig, "softmax_saturation")

# %% [markdown]
# ## 5. Self-attention, and several heads
# The sequence asks itself: from one vector x_t a position makes its query, key and value, by three learned matrices,
# Q = xW_Q, K = xW_K, V = xW_V. One softmax takes one average; to look at a subject *and* at an adjective takes two. So C
# dimensions are cut into H heads of D = C/H, each with its own attention, and W_O mixes what they bring home:
#
#     head_h = A(xW_Q^h, xW_K^h, xW_V^h)         MultiHead(x) = [head_1; …; head_H] W_O
#
# In code the H small matrices are rows of one large one. First head by head, then the library, which does all in one go.

# %%
B, T, H, C = 2, 5, 3, 12
D = C // H
layer = MultiHeadAttention(C, H)
x = randn(B, T, C)


def head_by_head(x):
    """(T, C) -> (T, C), one sequence, one head after the other, each attention by nested loops."""
    heads = []
    for h in range(H):
        rows = slice(h * D, (h + 1) * D)                                           # this head's share of each projection
        q, k, v = (x @ f.weight[rows].T + f.bias[rows] for f in (layer.query, layer.key, layer.value))      # (T, D) each
        heads.append(torch.tensor(attention_by_loops(q, k, v)))
    return torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias          # H times (T, D) -> (T, C)


with torch.no_grad():
    one_by_one = torch.stack([head_by_head(row) for row in x])                     # (B, T, C)
    lesson.check("MultiHead(x) = heads done one by one", layer(x), one_by_one, atol=1e-12, source="Vaswani et al. 2017, §3.2.2")

# %% [markdown]
# PyTorch has the same layer as `nn.MultiheadAttention`. Given our weights it must give our numbers: attending to itself, and to a
# `memory` of another length (a decoder reading an encoder, as in lesson 04; lesson 08 uses that).

# %%
builtin = nn.MultiheadAttention(C, H, batch_first=True)
with torch.no_grad():
    builtin.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))    # (3·C, C)
    builtin.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))            # (3·C)
    builtin.out_proj.load_state_dict(layer.out.state_dict())
    lesson.check("MultiHead(x) = nn.MultiheadAttention", layer(x), builtin(x, x, x)[0], atol=1e-12, source="PyTorch")
    memory = randn(B, 7, C)
    by_torch, _ = builtin(x, memory, memory)
    lesson.check("MultiHead(x, memory) = nn.MultiheadAttention", layer(x, memory), by_torch, atol=1e-12, source="PyTorch")

# %% [markdown]
# ## 6. The mask: no looking ahead
# A language model at position t predicts word t + 1; if t could look at t + 1 it would copy and learn nothing. So query t may look at
# keys s ≤ t only: the other scores become −∞ *before* the softmax, and e^−∞ = 0. Then
#
#     out_t = Σ_{s≤t} w_ts v_s,   w_ts = e^(q_t·k_s/√D) / Σ_{r≤t} e^(q_t·k_r/√D)       contains no x_s with s > t: ∂out_t/∂x_s = 0
#
# Checked twice, once by differentiating, once by changing one position and watching which outputs move. Both say also that
# every s ≤ t *does* matter: a layer that returned nothing would be causal too.

# %%
allowed = [[s <= t for s in range(T)] for t in range(T)]
jacobian = torch.autograd.functional.jacobian(lambda row: layer(row[None], causal=True)[0], x[0])          # (T, C, T, C)
depends = jacobian.norm(dim=(1, 3)) != 0                                           # (T, T)
lesson.check("∂out_t/∂x_s = 0 exactly where s > t (autograd)", depends, allowed, atol=0, source="B, C: masked self-attention")

with torch.no_grad():
    before = layer(x, causal=True)
    moved = torch.zeros(T, T)
    for s in range(T):
        changed = x.clone()
        changed[:, s] += randn(B, C)
        moved[:, s] = (layer(changed, causal=True) - before).abs().amax(dim=(0, 2))                        # (B, T, C) -> (T)
lesson.check("changing x_s moves out_t exactly where s ≤ t", moved != 0, allowed, atol=0, source="B, C: masked self-attention")

# %% [markdown]
# Hiding the future *after* the softmax looks alike and is wrong: the weights on the future are gone, but the future still sits in the
# denominator Σ_r, and rows no longer sum to 1.

# %%
q, k = randn(T, D), randn(T, D)
k_other = torch.cat([k[:-1], randn(1, D)])                                         # (T, D): another last word
before_softmax = (attention_weights(q, k, causal_mask(T)) - attention_weights(q, k_other, causal_mask(T)))[:-1].abs().max()
after_softmax = ((attention_weights(q, k) - attention_weights(q, k_other)) * causal_mask(T))[:-1].abs().max()
lesson.claim(
    "a mask after the softmax leaks the future", before_softmax == 0 < after_softmax,
    f"another last word changes the weights of earlier queries by up to {after_softmax:.2f}; masked before it, by {before_softmax:.0f}",
)

# %% [markdown]
# ## 7. Attention sees a set
# Shuffle the words with a permutation matrix P, x → Px. Queries, keys and values shuffle alike, and with the softmax taken row by row
#
#     scores      (PQ)(PK)ᵀ = P QKᵀ Pᵀ                rows and columns shuffled
#     weights     softmax(P·scores·Pᵀ) = P·W·Pᵀ        a row's softmax does not care about the order of its entries
#     output      P W Pᵀ · P V = P · W V               since PᵀP = 1
#
# f(Px) = P f(x): the same vectors, in the new order. "dog bites man" and "man bites dog" give each word the same vector. All
# 5! = 120 orders are listed.

# %%
orders = torch.tensor(list(itertools.permutations(range(T))))                      # (120, T)
with torch.no_grad():
    words = x[0]                                                                   # (T, C)
    shuffled = words[orders]                                                       # (120, T, C)
    lesson.check("f(Px) = P f(x), all 120 permutations", layer(shuffled), layer(x[:1])[0][orders], atol=1e-12, source="C: why positions")
    PE = sinusoidal_positions(T, C)
    with_positions = (layer(shuffled + PE) - layer(x[:1] + PE)[0][orders]).abs().max()
    same_end = orders[:, -1] == T - 1                                              # the 24 orders that leave the last word in place
    last, expected = layer(shuffled[same_end], causal=True)[:, -1], layer(x[:1], causal=True)[0, -1]           # (24, C), (C)
    lesson.check("one causal layer: the last output ignores the order before it", last, expected.expand(24, C),
                 atol=1e-12, source="as above")
print(f"  with positions added, f(Px) and P f(x) differ by up to {with_positions:.2f}")

# %% [markdown]
# The mask alone breaks the symmetry a little: query t sees the *set* of the first t words, and a second layer can compare such sets
# (Haviv et al. 2022). For one layer the last check stands: it cannot tell one order of its past from another. Keep that for part 9.
#
# ## 8. Writing order into vectors: sinusoids
# Add to the embedding of position t a vector that only t decides: C/2 pairs, pair i turning at its own speed ωᵢ = 10000^(−2i/C),
#
#     PE(t, 2i) = sin(ωᵢt)      PE(t, 2i+1) = cos(ωᵢt)
#
# like the hands of C/2 clocks, the first going round in 2π ≈ 6.3 positions, the last in nearly 2π·10000. Why both sine and
# cosine? Because then "k positions later" is one and the same linear map at every t. From the addition theorems
#
#     sin(ω(t+k)) =  cos(ωk)·sin(ωt) + sin(ωk)·cos(ωt)
#     cos(ω(t+k)) = −sin(ωk)·sin(ωt) + cos(ωk)·cos(ωt)
#
# or, as a matrix on the pair (sin ωt, cos ωt), in which t does not occur:
#
#     PE(t+k) = R(k) PE(t),    R(k) = block-diagonal of  [  cos ωᵢk   sin ωᵢk ]
#                                                        [ −sin ωᵢk   cos ωᵢk ]
#
# A rotation: it keeps lengths, R(k)R(l) = R(k+l), and PE(t)·PE(t+k) = Σᵢ cos(ωᵢk) depends on the distance only. A head
# that wants "the word k back" can learn R(k) once, inside W_Q W_Kᵀ, and use it everywhere.

# %%
n_positions, C = 50, 16
PE = sinusoidal_positions(n_positions, C)
by_scalars = [[(math.sin if c % 2 == 0 else math.cos)(t / 10000 ** ((c - c % 2) / C)) for c in range(C)] for t in range(n_positions)]
lesson.check("PE(t, 2i), PE(t, 2i+1): library = one scalar at a time", PE, by_scalars, atol=1e-12, source="Vaswani et al. 2017, §3.5")


def R(k):
    """The rotation by k positions, (C, C), written entry by entry."""
    matrix = torch.zeros(C, C)
    for i in range(C // 2):
        angle = k * 10000 ** (-2 * i / C)
        matrix[2 * i, 2 * i], matrix[2 * i, 2 * i + 1] = math.cos(angle), math.sin(angle)
        matrix[2 * i + 1, 2 * i], matrix[2 * i + 1, 2 * i + 1] = -math.sin(angle), math.cos(angle)
    return matrix


for k in (1, 7, 30):
    lesson.check(f"PE(t+{k}) = R({k}) PE(t) for every t", PE[:-k] @ R(k).T, PE[k:], atol=1e-12, source="Vaswani et al. 2017, §3.5")
lesson.check("R is a rotation: R(7)ᵀR(7) = 1", R(7).T @ R(7), torch.eye(C), atol=1e-12, source="cos² + sin² = 1")
by_distance = [[sum(math.cos((s - t) * 10000 ** (-2 * i / C)) for i in range(C // 2)) for s in range(n_positions)]
               for t in range(n_positions)]
lesson.check("PE(t)·PE(s) = Σᵢ cos(ωᵢ(s−t))", PE @ PE.T, by_distance, atol=1e-12, source="R(t)ᵀR(s) = R(s−t)")

# %% [markdown]
# **Rotary** positions (Su et al. 2021) take the hint: why add a vector that turns, if one can turn q and k themselves?
# (R(t)q)·(R(s)k) = qᵀR(t)ᵀR(s)k = qᵀR(s−t)k. Every score then depends on contents and *distance*, and values are left alone.
# Read each pair as a complex number and turning is multiplying by e^(iωt), which gives another way to compute the score.

# %%
q, k = randn(n_positions, C), randn(n_positions, C)
cos, sin = rotary_table(n_positions, C)
pairs = [torch.complex(m[:, : C // 2], m[:, C // 2 :]).tolist() for m in (q, k)]    # (T, C/2): the library pairs i with i + C/2


def complex_score(t, s):
    turns = [(t - s) * 10000 ** (-2 * i / C) for i in range(C // 2)]
    return sum((a * b.conjugate() * cmath.exp(1j * turn)).real for a, b, turn in zip(pairs[0][t], pairs[1][s], turns))


by_complex = [[complex_score(t, s) for s in range(n_positions)] for t in range(n_positions)]
scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T                               # (T, T)
lesson.check("rotary: score(t, s) = Re Σ q k̄ e^(iω(t−s))", scores, by_complex, atol=1e-10, source="Su et al. 2021, eq. 12")

# %%
fig, (left, right) = plotting.figure(10, 4, columns=2)
plotting.heatmap(left, sinusoidal_positions(64, 32), label="PE(t, c)", low=-1, high=1)
left.set(xlabel="dimension c (pairs of sine and cosine, fast to slow)", ylabel="position t", title="64 positions, C = 32")
for width in (16, 64, 256):
    table = sinusoidal_positions(101, width)
    right.plot(range(-50, 51), table[50] @ table.T / (width / 2), label=f"C = {width}")
right.set(xlabel="distance s − t (positions)", ylabel="PE(t)·PE(s) / (C/2)", title="Near positions are alike, whatever t")
right.legend()
lesson.figure(fig, "sinusoids")

# %% [markdown]
# ## 9. What attention learns: copy, and sort
# Two tasks with a known answer. Ten different letters out of twenty in random order, a bar, then
#
#     copy    hqbt…|hqbt…      the same again           the source of the next letter is known by its **position**
#     sort    hqbt…|bhqt…      in alphabetical order     the source of the next letter is known by its **content**
#
# There are 20·19·…·11 ≈ 6.7·10¹¹ such strings, so held-out strings are new ones. The model is one block of lesson 06's GPT with *one*
# head, trained on the letters after the bar. Since letters differ, the source is a single position, and we can
# ask how much weight the head puts on it, over hundreds of strings, against 1/(t+1) for a head that looks everywhere.
#
# By part 7, sorting needs no positions: its answer is a function of a set. Copying does, and there part 7 gives a ceiling:
# after j copied letters, a layer without positions sees which 10 − j are still to come and nothing of their order, so it is right at
# best 1/(10 − j) of the time: on average (1/10 + 1/9 + … + 1/1)/10 = 0.29.

# %%
torch.set_default_dtype(torch.float32)                                             # training wants speed
LETTERS, BAR, N = "abcdefghijklmnopqrst", 20, 10
SYMBOLS = LETTERS + "|"


def strings(task, batch_size, generator):
    """(B, 2·N + 1): N different letters, the bar, the N letters again, as they were or sorted."""
    first = torch.rand(batch_size, len(LETTERS), generator=generator).argsort(dim=1)[:, :N]    # (B, 20) -> (B, N)
    second = first if task == "copy" else first.sort(dim=1).values
    return torch.cat([first, torch.full((batch_size, 1), BAR), second], dim=1).to(lesson.device)


def loss(model, tokens):
    return cross_entropy(model(tokens[:, :-1])[:, N:], tokens[:, N + 1 :])         # only what stands after the bar can be known


def learn(task, positions):
    """Trains one block on fresh strings; returns the model and its accuracy on 500 others."""
    config = GPTConfig(len(SYMBOLS), 2 * N, n_layers=1, n_heads=1, d_model=64, positions=positions)
    model = GPT(config, lesson.generator).to(lesson.device)
    held_out = strings(task, 500, lesson.generator)

    def evaluate(model):
        return {"accuracy": (model(held_out[:, :-1])[:, N:].argmax(-1) == held_out[:, N + 1 :]).double().mean().item()}

    steps = lesson.pick(300, 120)
    # At 1e-2 one seed in five is soon sure of a wrong place, and part 4 says what a sure softmax learns.
    training = TrainingConfig(max_steps=steps, learning_rate=3e-3, evaluate_every=steps // 3, seed=lesson.seed)
    def on_row(row):
        print(f"  {task}, positions {positions:<8} step {row['step']:>4}   "
              f"held-out accuracy {row['accuracy']:.3f}", flush=True)

    rows = train(model, lambda generator: strings(task, 64, generator), loss, training, evaluate, on_row=on_row)
    return model, held_out, rows[-1]["accuracy"]


copier, copy_strings, copy_accuracy = learn("copy", "learned")
_, _, blind_accuracy = learn("copy", "none")
sorter, sort_strings, sort_accuracy = learn("sort", "none")

ceiling = sum(1 / (N - j) for j in range(N)) / N
lesson.claim("one layer copies strings it has never seen", copy_accuracy > 0.99,
             f"{copy_accuracy:.1%} of held-out letters; guessing one of ten, {1 / N:.0%}")
lesson.claim("without positions it cannot copy", blind_accuracy < ceiling + 0.02,
             f"{blind_accuracy:.1%} right, below {ceiling:.0%}, the ceiling of a reader of sets")
lesson.claim("without positions it can sort", sort_accuracy > 0.95, f"{sort_accuracy:.1%} of held-out letters")

# %% [markdown]
# Now look inside. The weights are computed from the trained block's own queries and keys; a check confirms that they are what
# the model used: weights·V, put through W_O, is what its attention returns.

# %%
@torch.no_grad()
def attention_map(task, model, tokens):
    """The weights (B, T, S) of a one-block, one-head model; checked against the layer's own output."""
    block, layer = model.blocks[0], model.blocks[0].attention
    x = model.token_embedding(tokens)                                              # (B, T, C)
    if model.config.positions == "learned":
        x = x + model.position_embedding.weight[: tokens.size(1)]
    x = block.norm1(x)
    weights = attention_weights(layer.query(x), layer.key(x), causal_mask(tokens.size(1)).to(x.device))    # (B, T, S)
    rebuilt = layer.out(weights @ layer.value(x))                                  # (B, T, C)
    lesson.check(f"the {task} map is what the model used: W_O(weights·V)", rebuilt, layer(x, causal=True), atol=1e-4, source="part 3")
    return weights.cpu()


def look(task, model, tokens):
    """Weights of the N writing positions, and the weight each puts on its source, averaged over strings: (B, N, S), (N)."""
    weights = attention_map(task, model, tokens[:, :-1])[:, N:]                          # (B, T, S) -> (B, N, S): from the bar on
    source = (tokens[:, N + 1 :, None] == tokens[:, None, :N]).int().argmax(-1).cpu()      # (B, N): where the next letter stands
    on_source = weights.gather(2, source[:, :, None])[:, :, 0]                     # (B, N)
    found = (weights.argmax(-1) == source).double().mean().item()
    return weights, source, on_source.mean(0), found


uniform = torch.tensor([1 / (t + 1) for t in range(N, 2 * N)])                     # (N): query t may look at t + 1 keys
views = {"copy": (copy_strings, *look("copy", copier, copy_strings)), "sort": (sort_strings, *look("sort", sorter, sort_strings))}
for task, least in (("copy", 0.9), ("sort", 0.4)):
    _, _, _, mass, found = views[task]
    lesson.claim(f"{task}: the weight is on the source of the next letter", mass.mean() > least and found > 0.8,
                 f"{mass.mean():.2f} of the weight, uniform {uniform.mean():.3f}; it is the largest weight at {found:.1%} of positions")

# %%
fig, axes = plotting.figure(13, 4.2, columns=3)
for panel, (task, (tokens, weights, source, _, _)) in zip(axes, views.items()):
    text = [SYMBOLS[i] for i in tokens[0].tolist()]
    rows = [f"{now}→{after}" for now, after in zip(text[N:-1], text[N + 1 :])]
    plotting.heatmap(panel, weights[0], rows, text[:-1], label="attention weight", high=1)
    panel.plot(source[0], range(N), linestyle="none", marker="s", markersize=9, markerfacecolor="none", color="#D55E00")
    panel.set(xlabel="token looked at", ylabel="token read → token to write", title=f"{task}: one held-out string; squares: the source")
for task, marker in (("copy", "o"), ("sort", "s")):
    axes[2].plot(range(1, N + 1), views[task][3], marker=marker, label=task)
axes[2].plot(range(1, N + 1), uniform, label="uniform, 1/(t+1)")
axes[2].set(xlabel="output position after the bar", ylabel="attention weight on the source", ylim=(0, 1.05))
axes[2].set_title("Mean over 500 held-out strings")
axes[2].legend(loc="lower right", bbox_to_anchor=(1, 0.12))
lesson.figure(fig, "attention_maps")

# %% [markdown]
# Read the copy map by rows: at every step the weight stands ten places back, a diagonal that W_Q W_Kᵀ learned from positions
# alone. Read the sort map: no diagonal; from the letter just written the head looks for the next one in the alphabet that is there.
# One is looked up by *where*, the other by *what*; the equation is the same.

# %%
lesson.end()
