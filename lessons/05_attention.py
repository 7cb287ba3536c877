"""Lesson 05: attention, from one query to many heads.

You will see    A(q, K, V) = softmax(qKᵀ/√D)·V by hand, in loops, as matrices and as a fused kernel;
                why √D; heads, masks and positions; one head that copies and one that sorts.
Source          course C, "Attention Modules" and "Attention in Transformers"; course B, "Generando
                de forma iterativa el siguiente token"; course D, "GPT" (the causal mask); Vaswani
                et al. 2017, §3.2 and §3.5.
Expect          about 25 s on one core (15 s with --quick); every check passes; one layer copies
                strings that it has never seen: 100 % of the letters are right, with 0.93 to 0.95 of
                the attention weight on the letter to copy.
Not here        norms, residual connections and the MLP around attention (lesson 06); cheaper
                attention (lesson 09); the Transformer of 2017 as a whole (lesson 08).

Shapes: B batch, H heads, T queries, S keys, D width of one head, C = d_model. V is the matrix of
the values.
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
torch.set_default_dtype(torch.float64)      # an error of 1e-12 is rounding, one of 1e-3 a mistake


def randn(*shape):
    return torch.randn(*shape, generator=lesson.generator)


# %% [markdown]
# ## 1. The idea
# In lesson 04 a decoder looks at the source sentence. Its state s is compared with each encoder
# state hᵢ by score(s, hᵢ) = vᵀtanh(W[s; hᵢ]), and the decoder receives the average
# Σᵢ softmax(score)ᵢ hᵢ. Both sides were recurrent networks, which read one word after the other.
# Attention without recurrence needs three changes:
#
# 1. **Keys and values are different vectors.** The key kᵢ decides how much weight word i gets. The
#    value vᵢ is what is averaged. In lesson 04 both were hᵢ.
# 2. **The score is a dot product**, q·kᵢ/√D: large if query and key have the same direction. All
#    T·S scores are one matrix product.
# 3. **Queries, keys and values come from one sequence.** Each word has a query and looks at all the
#    words: *self*-attention. The path between two words has one step, at any distance; in a
#    recurrent network it has one step per word between them (lesson 03).
#
# ## 2. One query, by hand
# "the black **cat** sleeps": the query of *sleeps* looks for its subject. The width is D = 4, so
# √D = 2, and the numbers are chosen so that the result is whole.
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
V = torch.tensor([[6.0, 6], [6, 0], [0, 6]])                            # (S, 2) another width
scores = q @ K.T / math.sqrt(q.size(-1))                                # (1, S)
weights = scores.softmax(dim=-1)
z = weights @ V                                                         # (1, S) · (S, 2) -> (1, 2)

lesson.check("scores q·kᵢ/√D = (0, ln 2, ln 3)", scores, [[0, math.log(2), math.log(3)]],
             atol=1e-12, source="C: Attention in Transformers", items=("C29",))
lesson.check("softmax(qKᵀ/√D) = (1/6, 2/6, 3/6)", weights, [[1 / 6, 2 / 6, 3 / 6]], atol=1e-12,
             source="B: Generando de forma iterativa el siguiente token", items=("B09",))
lesson.check("z = softmax(qKᵀ/√D)·V = (3, 4)", z, [[3, 4]], atol=1e-12,
             source="C: Attention Modules", items=("B10", "C25"))

# %% [markdown]
# Three errors of the courses' documents:
#
# - Course B writes q_t Kᵀ = softmax(q_t Kᵀ/√d_k). The left side is the raw scores, and the right
#   side is the weights. Give the weights their own name, A = softmax(q_t Kᵀ/√d_k).
# - Course B then writes Attention = V A. There A is 1×3 and V is 3×4, so V A has no matching sizes
#   (4 against 1). The output is A V: 1×3 · 3×4 → 1×4, as B's caption multiplies.
# - Course C writes z_j = Σᵢ score(q, kᵢ) vᵢ. Without the softmax the scores do not sum to 1 and may
#   be negative, so z is not an average of the values. With the numbers above, its second entry is
#   outside the range of the values, 0 to 6. Right is z_j = Σᵢ softmax(score)ᵢ vᵢ.

# %%
def shown(x):
    return "(" + ", ".join(f"{number:.2f}" for number in x[0].tolist()) + ")"


print(f"  course B: qKᵀ = {shown(q @ K.T)}, but softmax(qKᵀ/√D) = {shown(weights)}")
print(f"  course C: Σ scoreᵢ vᵢ = {shown(scores @ V)}, but Σ softmax(score)ᵢ vᵢ = {shown(z)}")

# %% [markdown]
# ## 3. Many queries: loops, then matrices
# First the definition, one number at a time. It uses no tensor operation, so it is an independent
# test of the matrix form.

# %%
def attention_by_loops(Q, K, V):
    """z_t = Σᵢ w_ti vᵢ, with w_ti = e^(q_t·kᵢ/√D) / Σⱼ e^(q_t·kⱼ/√D).

    (T, D), (S, D), (S, any) -> (T, any), as lists.
    """
    K, V, outputs = K.tolist(), V.tolist(), []
    for q in Q.tolist():
        dots = [sum(a * b for a, b in zip(q, k)) for k in K]
        exponentials = [math.exp(dot / math.sqrt(len(q))) for dot in dots]
        w = [e / sum(exponentials) for e in exponentials]
        outputs.append([sum(w_i * v[c] for w_i, v in zip(w, V)) for c in range(len(V[0]))])
    return outputs


# %% [markdown]
# Put the queries in the rows of Q (T, D), and keys and values in the rows of K (S, D) and V. Then
# entry (t, i) of QKᵀ is q_t·kᵢ: all scores at once. The softmax is taken **along each row**, over
# the keys, because the weights of one query sum to 1. Row t of weights·V is Σᵢ w_ti vᵢ. There is no
# recurrence: no position waits for another one, so all of them are computed in parallel. This is
# the reason why transformers are fast to train.
#
# Course C has one *column* per query instead. S is the softmax of KQᵀ/√D along each column, S_ij is
# the weight of key i for query j, and z_j = Σᵢ S_ij vᵢ, so Z = SᵀV. These are the same numbers,
# transposed. (In C's sum the upper limit C is the number of keys.)
#
# Items: C31

# %%
def attention(Q, K, V):
    scores = Q @ K.T / math.sqrt(Q.size(-1))                            # (T, S)
    return scores.softmax(dim=-1) @ V                                   # (T, S) · (S, any)


Q, K, V = randn(4, 3), randn(6, 3), randn(6, 5)                         # T = 4, S = 6, D = 3
looped = attention_by_loops(Q, K, V)
lesson.check("A(Q, K, V): matrices = nested loops", attention(Q, K, V), looped, atol=1e-12,
             source="Vaswani et al. 2017, eq. 1")
lesson.check("A(Q, K, V): fused kernel = nested loops", F.scaled_dot_product_attention(Q, K, V),
             looped, atol=1e-12, source="Vaswani et al. 2017, eq. 1, as PyTorch has it")
four = [m[None, None] for m in (Q, K, V)]                   # (B, H, …), as the library wants them
for fused in (False, True):
    lesson.check(f"attend(fused={fused}) = nested loops", attend(*four, fused=fused)[0, 0], looped,
                 atol=1e-12, source="Vaswani et al. 2017, eq. 1")

by_column = (K @ Q.T / math.sqrt(3)).softmax(dim=0)         # (S, T): column j belongs to query j
lesson.check("z_j = Σᵢ S_ij vᵢ, so Z = SᵀV", by_column.T @ V, looped, atol=1e-12,
             source="C: Attention in Transformers, with the softmax", items=("C30",))

# %% [markdown]
# ## 4. Why √D
# Suppose that the entries of q and k are independent, with mean 0 and variance 1. (Initial weights
# and norms are chosen so that this is roughly true.) Then, step by step (Vaswani et al. 2017,
# footnote 4, has the result):
#
#     E[qᵢkᵢ]         = E[qᵢ]·E[kᵢ] = 0                                 independent
#     Var(qᵢkᵢ)       = E[qᵢ²kᵢ²] − 0² = E[qᵢ²]·E[kᵢ²] = 1·1 = 1
#     Cov(qᵢkᵢ, qⱼkⱼ) = E[qᵢ]·E[kᵢ]·E[qⱼ]·E[kⱼ] − 0·0 = 0   for i ≠ j      so variances add
#     Var(q·k)        = Σᵢ Var(qᵢkᵢ) = D
#     Var(q·k/√D)     = D/(√D)² = 1
#
# The entries need not be normal. So we use entries ±1 and list all pairs of vectors; nothing is
# sampled. The library gives weights, not scores: log w_ti is the score minus a constant of row t.
# The mean score of a row is 0 (the sum over all keys ±1), so subtracting the mean of log w in each
# row gives the score back.

# %%
unscaled, scaled = [], []
for D in range(1, 8):
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)))    # (2^D, D) all vectors
    unscaled.append((signs @ signs.T).var(correction=0).item())
    log_weights = attention_weights(signs, signs).log()                     # (2^D, 2^D)
    centred = log_weights - log_weights.mean(-1, keepdim=True)
    scaled.append(centred.var(correction=0).item())
lesson.check("Var(q·k) = D, all pairs listed for D = 1..7", unscaled, range(1, 8), atol=1e-9,
             source="derived above")
lesson.check("Var of the library's scores = 1 for every D", scaled, [1] * 7, atol=1e-9,
             source="Vaswani et al. 2017, §3.2.1, footnote 4")

# %% [markdown]
# What does a large variance do to the softmax? Let the S scores of a query be drawn from N(0, σ²),
# with S so large that a sum is about S times a mean. Complete the square in the normal density
# times e^s:
#
#     s − s²/2σ² = σ²/2 − (s − σ²)²/2σ²
#     e^(−s²/2σ²) · e^s = e^(σ²/2) · e^(−(s − σ²)²/2σ²)
#
# So the mean of e^s is e^(σ²/2). And weighted by e^s the scores are distributed as N(σ², σ²), so
# their mean under the weights pᵢ is Σᵢ pᵢ sᵢ ≈ σ². Then
#
#     Z = Σᵢ e^(sᵢ) ≈ S·e^(σ²/2)               pᵢ = e^(sᵢ)/Z,   log pᵢ = sᵢ − log Z
#     entropy = −Σᵢ pᵢ log pᵢ = log Z − Σᵢ pᵢ sᵢ ≈ ln S + σ²/2 − σ² = ln S − σ²/2
#
# Scaled scores have σ² = 1: the entropy is ½ nat below its maximum ln S, for every D. Unscaled
# scores have σ² = D: the entropy falls by ½ nat per dimension. By the formula it would be 0 at
# D = 2 ln S, which is 17 for 4096 keys. Before that, a sum is no longer S times a mean, because a
# few large terms dominate it: a few keys have nearly all the weight. (Derrida 1981 studies the same
# sum in physics.) The heads of GPT-1 and GPT-2 have D = 64.
#
# Such a softmax has almost no gradient. With 1[i=j] = 1 if i = j and 0 otherwise, ∂pᵢ/∂sⱼ =
# pᵢ(1[i=j] − pⱼ) is 0 if each p is 0 or 1. The trace Σᵢ pᵢ(1 − pᵢ) = 1 − Σᵢ pᵢ² measures the size
# of this matrix: near 1 if the weight is spread, 0 if one key has all of it.

# %%
n_keys, widths = 4096, [2 ** i for i in range(lesson.pick(11, 9))]
entropy, traces = {True: [], False: []}, {True: [], False: []}
for D in widths:
    queries = F.normalize(randn(64, D), dim=-1) * math.sqrt(D)          # length √D, so σ² = D
    dots = queries @ randn(n_keys, D).T                                 # (64, S)
    for is_scaled, scores in ((True, dots / math.sqrt(D)), (False, dots)):
        p = scores.softmax(dim=-1)
        entropy[is_scaled].append(-(p * p.clamp_min(1e-300).log()).sum(-1).mean().item())
        traces[is_scaled].append(1 - p.square().sum(-1).mean().item())

ln_S = math.log(n_keys)                                                 # entropy of equal weights
lesson.check("scaled: entropy = ln S − ½ for every D", entropy[True], [ln_S - 1 / 2] * len(widths),
             atol=0.1, source="derived above")
lesson.check("unscaled: entropy = ln S − D/2, D = 1, 2", entropy[False][:2],
             [ln_S - 1 / 2, ln_S - 1], atol=0.15, source="derived above")

s = randn(5)
p = s.softmax(0).tolist()
by_formula = [[p[i] * ((i == j) - p[j]) for j in range(5)] for i in range(5)]
by_autograd = torch.autograd.functional.jacobian(lambda s: s.softmax(0), s)         # (5, 5)
lesson.check("∂pᵢ/∂sⱼ = pᵢ(1[i=j] − pⱼ)", by_autograd, by_formula, atol=1e-12,
             source="the quotient rule, on the softmax")

without, with_root = (math.exp(entropy[is_scaled][widths.index(64)]) for is_scaled in (False, True))
lesson.claim("at D = 64 the softmax saturates without √D, and not with it",
             without < 10 and with_root > 1000,
             f"of {n_keys} keys, the weight is spread over e^entropy = {without:.1f} without √D, "
             f"{with_root:.0f} with it")

# %%
fig, (left, right) = plotting.figure(10, 4, columns=2)
for is_scaled, name in ((True, "q·k/√D"), (False, "q·k")):
    marker = "o" if is_scaled else "s"
    left.plot(widths, entropy[is_scaled], marker=marker, label=f"measured, {name}")
    right.plot(widths, traces[is_scaled], marker=marker, label=name)
left.plot(widths, [ln_S - 1 / 2] * len(widths), label="ln S − ½")
theory = torch.linspace(1, 2 * ln_S, 50)
left.plot(theory, ln_S - theory / 2, label="ln S − D/2, to its zero at D = 2 ln S")
left.set(ylabel="entropy of the weights (nats)", title=f"Entropy of the weights, S = {n_keys} keys")
right.set(ylabel="1 − Σp²", title="Size of the softmax's derivative", ylim=(0, 1.05))
for axes in (left, right):
    axes.set(xlabel="width D of queries and keys", xscale="log")
    axes.set_xticks(widths[::2], [str(D) for D in widths[::2]])
    axes.minorticks_off()
left.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
right.legend()
lesson.figure(fig, "softmax_saturation")

# %% [markdown]
# ## 5. Self-attention, and several heads
# In self-attention, each position makes a query, a key and a value from its own vector x_t, by
# three learned matrices (W_q, W_K and W_V in course C). For all positions: Q = xW_Q, K = xW_K,
# V = xW_V.
#
# One softmax gives one average. To take something from a subject *and* something else from an
# adjective, two are needed. So the C dimensions are divided among H heads of width D = C/H. Each
# head has its own attention; the H results are put side by side and multiplied by W_O:
#
#     head_h = A(xW_Q^h, xW_K^h, xW_V^h)         MultiHead(x) = [head_1; …; head_H] W_O
#
# The library keeps the H small matrices as parts of a large one, and adds biases. We compute head
# by head first and compare.
#
# Items: C27, C28

# %%
B, T, H, C = 2, 5, 3, 12
D = C // H
layer = MultiHeadAttention(C, H)
x = randn(B, T, C)


def head_by_head(x):
    """(T, C) -> (T, C): one sequence, one head after the other, each attention by nested loops."""
    heads = []
    for h in range(H):
        part = slice(h * D, (h + 1) * D)                                # the rows of head h
        q, k, v = (x @ f.weight[part].T + f.bias[part]
                   for f in (layer.query, layer.key, layer.value))      # (T, D) each
        heads.append(torch.tensor(attention_by_loops(q, k, v)))
    return torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias   # (T, H·D) -> (T, C)


with torch.no_grad():
    one_by_one = torch.stack([head_by_head(row) for row in x])          # (B, T, C)
    lesson.check("MultiHead(x) = heads done one by one", layer(x), one_by_one, atol=1e-12,
                 source="Vaswani et al. 2017, §3.2.2")

# %% [markdown]
# PyTorch has the same layer, `nn.MultiheadAttention`. With our weights it must give our numbers: on
# x alone, and with queries from x and keys and values from a `memory` of another length. The second
# form is a decoder that looks at an encoder's output, as in lesson 04; lesson 08 uses it.

# %%
builtin = nn.MultiheadAttention(C, H, batch_first=True)
projections = (layer.query, layer.key, layer.value)
with torch.no_grad():
    builtin.in_proj_weight.copy_(torch.cat([f.weight for f in projections]))    # (3·C, C)
    builtin.in_proj_bias.copy_(torch.cat([f.bias for f in projections]))        # (3·C)
    builtin.out_proj.load_state_dict(layer.out.state_dict())
    lesson.check("MultiHead(x) = nn.MultiheadAttention", layer(x), builtin(x, x, x)[0], atol=1e-12,
                 source="PyTorch")
    memory = randn(B, 7, C)
    by_torch, _ = builtin(x, memory, memory)
    lesson.check("MultiHead(x, memory) = nn.MultiheadAttention", layer(x, memory), by_torch,
                 atol=1e-12, source="PyTorch")

# %% [markdown]
# ## 6. The causal mask
# A language model at position t predicts word t + 1. If position t could look at word t + 1, it
# would copy it and learn nothing else. So query t may look at the keys s ≤ t only (course D: GPT
# uses causal self-attention). The other scores become −∞ *before* the softmax, and e^−∞ = 0:
#
#     out_t = Σ_{s≤t} w_ts v_s        w_ts = e^(q_t·k_s/√D) / Σ_{r≤t} e^(q_t·k_r/√D)
#
# No x_s with s > t occurs here, so ∂out_t/∂x_s = 0 for s > t. We check this in two ways: by
# derivatives, and by changing one position and looking at which outputs change. Both checks also
# require that each s ≤ t has an effect. (A layer that returns 0 would be causal too.)
#
# Items: D13

# %%
allowed = [[s <= t for s in range(T)] for t in range(T)]
jacobian = torch.autograd.functional.jacobian(lambda row: layer(row[None], causal=True)[0], x[0])
depends = jacobian.norm(dim=(1, 3)) != 0                                # (T, C, T, C) -> (T, T)
lesson.check("∂out_t/∂x_s = 0 exactly where s > t (autograd)", depends, allowed, atol=0,
             source="D: GPT; Vaswani et al. 2017, §3.2.3")

with torch.no_grad():
    before = layer(x, causal=True)
    moved = torch.zeros(T, T)
    for s in range(T):
        changed = x.clone()
        changed[:, s] += randn(B, C)
        difference = layer(changed, causal=True) - before               # (B, T, C)
        moved[:, s] = difference.abs().amax(dim=(0, 2))                 # (T)
lesson.check("changing x_s changes out_t exactly where s ≤ t", moved != 0, allowed, atol=0,
             source="D: GPT; Vaswani et al. 2017, §3.2.3")

# %% [markdown]
# A mask *after* the softmax looks similar, but it is wrong. It removes the weights on later
# positions, but their scores are still in the denominator Σ_r. So the remaining weights depend on
# later words, and they do not sum to 1.

# %%
q, k = randn(T, D), randn(T, D)
k_other = torch.cat([k[:-1], randn(1, D)])                              # another last word
masked_before = attention_weights(q, k, causal_mask(T)) \
    - attention_weights(q, k_other, causal_mask(T))                     # (T, T)
masked_after = (attention_weights(q, k) - attention_weights(q, k_other)) * causal_mask(T)
change_before, change_after = (m[:-1].abs().max() for m in (masked_before, masked_after))
lesson.claim("with a mask after the softmax, weights depend on later words",
             change_before == 0 < change_after,
             f"another last word changes weights of earlier queries by up to {change_after:.2f}; "
             f"mask before: {change_before:.0f}")

# %% [markdown]
# ## 7. Attention does not see the order
# Permute the words with a permutation matrix P: x → Px. Queries, keys and values are permuted in
# the same way. The softmax acts on each row, and a permutation of a row permutes its softmax:
#
#     scores      (PQ)(PK)ᵀ = P QKᵀ Pᵀ                 rows and columns permuted
#     weights     softmax(P·scores·Pᵀ) = P W Pᵀ         W = softmax(scores)
#     output      P W Pᵀ · P V = P W V                  since PᵀP = 1
#
# So f(Px) = P f(x): the same vectors, in the new order. "dog bites man" and "man bites dog" give
# each word the same vector. The check uses all 5! = 120 permutations.
#
# With the causal mask this is no longer true. But the output of the *last* position of one causal
# layer is an average over all the words, so it does not depend on the order of the words before it.

# %%
orders = torch.tensor(list(itertools.permutations(range(T))))           # (120, T)
with torch.no_grad():
    words = x[0]                                                        # (T, C)
    shuffled = words[orders]                                            # (120, T, C)
    lesson.check("f(Px) = P f(x), all 120 permutations", layer(shuffled), layer(x[:1])[0][orders],
                 atol=1e-12, source="derived above; Vaswani et al. 2017, §3.5")
    PE = sinusoidal_positions(T, C)
    with_positions = (layer(shuffled + PE) - layer(x[:1] + PE)[0][orders]).abs().max()
    same_end = orders[:, -1] == T - 1                       # 24 orders: the last word stays last
    last = layer(shuffled[same_end], causal=True)[:, -1]                # (24, C)
    expected = layer(x[:1], causal=True)[0, -1].expand(24, C)
    lesson.check("one causal layer: the last output ignores the order before it", last, expected,
                 atol=1e-12, source="derived above")
print(f"  with positions added to x, f(Px) and P f(x) differ by up to {with_positions:.2f}")

# %% [markdown]
# So in one causal layer, query t sees the *set* of the first t words. A second layer can compare
# the sets of several positions, and so it can learn something about the order (Haviv et al. 2022).
# Part 9 uses the result for one layer.
#
# ## 8. Positions: sinusoids and rotations
# Add to the embedding of position t a vector that depends on t only. It has C/2 pairs of numbers,
# and pair i has its own angular speed ωᵢ = 10000^(−2i/C):
#
#     PE(t, 2i) = sin(ωᵢt)      PE(t, 2i+1) = cos(ωᵢt)
#
# A full turn of the first pair takes 2π ≈ 6.3 positions, and of the last pair nearly 2π·10000. Why
# both sine and cosine? Because then a shift by k positions is the same linear map for every t. By
# the addition theorems,
#
#     sin(ω(t+k)) =  cos(ωk)·sin(ωt) + sin(ωk)·cos(ωt)
#     cos(ω(t+k)) = −sin(ωk)·sin(ωt) + cos(ωk)·cos(ωt)
#
# As a matrix on the pairs (sin ωt, cos ωt), which does not contain t:
#
#     PE(t+k) = R(k) PE(t),    R(k) = block-diagonal of  [  cos ωᵢk   sin ωᵢk ]
#                                                        [ −sin ωᵢk   cos ωᵢk ]
#
# R(k) is a rotation: it keeps lengths, R(k)ᵀ = R(−k), and R(k)R(l) = R(k+l). The product
# PE(t)·PE(t+k) = Σᵢ cos(ωᵢk) depends on the distance only. So a head that needs "the word k back"
# can learn R(k) once, in W_Q W_Kᵀ, and use it at every position.

# %%
n_positions, C = 50, 16
PE = sinusoidal_positions(n_positions, C)


def sinusoid(t, c):
    """PE(t, c), as a number: sine for even c, cosine for odd c."""
    angle = t / 10000 ** ((c - c % 2) / C)
    return math.sin(angle) if c % 2 == 0 else math.cos(angle)


def R(k):
    """The rotation by k positions, (C, C), written entry by entry."""
    matrix = torch.zeros(C, C)
    for i in range(C // 2):
        angle = k * 10000 ** (-2 * i / C)
        matrix[2 * i, 2 * i], matrix[2 * i, 2 * i + 1] = math.cos(angle), math.sin(angle)
        matrix[2 * i + 1, 2 * i], matrix[2 * i + 1, 2 * i + 1] = -math.sin(angle), math.cos(angle)
    return matrix


def sum_of_cosines(distance):
    return sum(math.cos(distance * 10000 ** (-2 * i / C)) for i in range(C // 2))


by_scalars = [[sinusoid(t, c) for c in range(C)] for t in range(n_positions)]
lesson.check("PE: library = one number at a time", PE, by_scalars, atol=1e-12,
             source="Vaswani et al. 2017, §3.5")
for k in (1, 7, 30):
    lesson.check(f"PE(t+{k}) = R({k}) PE(t) for every t", PE[:-k] @ R(k).T, PE[k:], atol=1e-12,
                 source="Vaswani et al. 2017, §3.5")
lesson.check("R is a rotation: R(7)ᵀR(7) = 1", R(7).T @ R(7), torch.eye(C), atol=1e-12,
             source="cos² + sin² = 1")
by_distance = [[sum_of_cosines(s - t) for s in range(n_positions)] for t in range(n_positions)]
lesson.check("PE(t)·PE(s) = Σᵢ cos(ωᵢ(s−t))", PE @ PE.T, by_distance, atol=1e-12,
             source="cos a cos b + sin a sin b = cos(a − b)")

# %% [markdown]
# **Rotary** positions (Su et al. 2021) do not add a vector: they turn q and k themselves, with D in
# the place of C. (R(t)q)·(R(s)k) = qᵀR(t)ᵀR(s)k = qᵀR(s−t)k. So each score depends on the contents
# of the two positions and on their *distance*, and values are not changed.
#
# A pair of dimensions can be read as one complex number. Then a turn is a multiplication by
# e^(iωt), and the dot product of two pairs is the real part of q times the conjugate of k:
#
#     q e^(iωt) · (k e^(iωs))* = q k* e^(iω(t−s))
#
# This is another way to compute the scores. (The library pairs dimension i with i + D/2.)

# %%
q, k = randn(n_positions, C), randn(n_positions, C)
cos, sin = rotary_table(n_positions, C)
q_pairs, k_pairs = (torch.complex(m[:, :C // 2], m[:, C // 2:]).tolist() for m in (q, k))


def complex_score(t, s):
    """Σᵢ Re(qᵢ kᵢ* e^(iωᵢ(t−s))) for query t and key s."""
    turns = [(t - s) * 10000 ** (-2 * i / C) for i in range(C // 2)]
    return sum((a * b.conjugate() * cmath.exp(1j * turn)).real
               for a, b, turn in zip(q_pairs[t], k_pairs[s], turns))


by_complex = [[complex_score(t, s) for s in range(n_positions)] for t in range(n_positions)]
scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T                    # (T, T)
lesson.check("rotary: score(t, s) = Re Σ q k* e^(iω(t−s))", scores, by_complex, atol=1e-10,
             source="Su et al. 2021, eq. 12")

# %%
fig, (left, right) = plotting.figure(10, 4, columns=2)
plotting.heatmap(left, sinusoidal_positions(64, 32), label="PE(t, c)", low=-1, high=1)
left.set(xlabel="dimension c (sine and cosine in turn, fast to slow)", ylabel="position t",
         title="64 positions, C = 32")
for width in (16, 64, 256):
    table = sinusoidal_positions(101, width)
    right.plot(range(-50, 51), table[50] @ table.T / (width / 2), label=f"C = {width}")
right.set(xlabel="distance s − t (positions)", ylabel="PE(t)·PE(s) / (C/2)",
          title="Product of two positions' vectors, any t")
right.legend()
lesson.figure(fig, "sinusoids")

# %% [markdown]
# ## 9. What attention learns: copy and sort
# Two tasks with a known answer. A string has ten different letters out of twenty, in random order,
# then a bar, then
#
#     copy    hqbt…|hqbt…     the same letters                  found by **position**
#     sort    hqbt…|bhqt…     the letters in alphabetical order   found by **content**
#
# There are 20·19·…·11 ≈ 6.7·10¹¹ strings, so held-out strings are practically always new. The model
# is one block of lesson 06's GPT with *one* head. Its loss counts the letters after the bar. Since
# the letters differ, the next letter stands at one position before the bar, its source. So we can
# measure how much weight the head puts on the source. Equal weights would put 1/(t+1) on it.
#
# By part 7, sorting needs no positions: the next letter is a function of the current letter and of
# the set. Copying needs them. Without positions, after j copied letters, one layer knows which
# 10 − j letters are left (they have occurred once), and nothing about their order. All orders are
# equally likely, so it is right with probability 1/(10 − j) at most. The mean over j is
# (1/10 + 1/9 + … + 1/1)/10 = 0.29.

# %%
torch.set_default_dtype(torch.float32)                                  # faster for training
LETTERS, BAR, N = "abcdefghijklmnopqrst", 20, 10
SYMBOLS = LETTERS + "|"


def strings(task, batch_size, generator):
    """(B, 2·N + 1): N different letters, the bar, the N letters again, as they were or sorted."""
    keys = torch.rand(batch_size, len(LETTERS), generator=generator)    # (B, 20)
    first = keys.argsort(dim=1)[:, :N]                                  # (B, N)
    second = first if task == "copy" else first.sort(dim=1).values
    bar = torch.full((batch_size, 1), BAR)
    return torch.cat([first, bar, second], dim=1).to(lesson.device)


def loss(model, tokens):
    """The letters before the bar are random, so only those after it count."""
    return cross_entropy(model(tokens[:, :-1])[:, N:], tokens[:, N + 1:])


def learn(task, positions):
    """Trains one block on fresh strings: the model, 500 held-out strings, the accuracy there."""
    config = GPTConfig(len(SYMBOLS), 2 * N, n_layers=1, n_heads=1, d_model=64, positions=positions)
    model = GPT(config, lesson.generator).to(lesson.device)
    held_out = strings(task, 500, lesson.generator)

    def evaluate(model):
        correct = model(held_out[:, :-1])[:, N:].argmax(-1) == held_out[:, N + 1:]
        return {"accuracy": correct.double().mean().item()}

    def on_row(row):
        print(f"  {task}, positions: {positions:<8} step {row['step']:>4}   "
              f"held-out accuracy {row['accuracy']:.3f}", flush=True)

    steps = lesson.pick(300, 120)
    # With a rate of 1e-2, on one seed in five the softmax soon has nearly all its weight on a wrong
    # position, and then it has almost no gradient (part 4).
    training = TrainingConfig(max_steps=steps, learning_rate=3e-3, evaluate_every=steps // 3,
                              seed=lesson.seed)
    rows = train(model, lambda generator: strings(task, 64, generator), loss, training, evaluate,
                 on_row=on_row)
    return model, held_out, rows[-1]["accuracy"]


copier, copy_strings, copy_accuracy = learn("copy", "learned")
_, _, blind_accuracy = learn("copy", "none")
sorter, sort_strings, sort_accuracy = learn("sort", "none")

ceiling = sum(1 / (N - j) for j in range(N)) / N
lesson.claim("one layer copies strings that it has never seen", copy_accuracy > 0.99,
             f"{copy_accuracy:.1%} of held-out letters; one of ten at random: {1 / N:.0%}")
lesson.claim("without positions it cannot copy", blind_accuracy < ceiling + 0.02,
             f"{blind_accuracy:.1%} of held-out letters; {ceiling:.0%} is the most that is "
             "possible without positions")
lesson.claim("without positions it can sort", sort_accuracy > 0.95,
             f"{sort_accuracy:.1%} of held-out letters")

# %% [markdown]
# Where does the head look? We compute the weights from the queries and keys of the trained block. A
# check confirms that the model uses these weights: weights·V, times W_O, is what its attention
# returns.

# %%
@torch.no_grad()
def attention_map(task, model, tokens):
    """The weights (B, T, S) of a model with one block and one head."""
    block, layer = model.blocks[0], model.blocks[0].attention
    x = model.token_embedding(tokens)                                   # (B, T, C)
    if model.config.positions == "learned":
        x = x + model.position_embedding.weight[:tokens.size(1)]
    x = block.norm1(x)
    mask = causal_mask(tokens.size(1)).to(x.device)
    weights = attention_weights(layer.query(x), layer.key(x), mask)     # (B, T, S)
    rebuilt = layer.out(weights @ layer.value(x))                       # (B, T, C)
    lesson.check(f"{task}: W_O(weights·V) = the output of the model's attention", rebuilt,
                 layer(x, causal=True), atol=1e-4, source="part 5, with H = 1")
    return weights.cpu()


def look(task, model, tokens):
    """What the head looks at from the bar on, where it writes the N letters.

    The weights (B, N, S); the sources (B, N); the mean weight on the source (N); and the share of
    positions where the source has the largest weight.
    """
    weights = attention_map(task, model, tokens[:, :-1])[:, N:]         # (B, N, S)
    next_letter, letters = tokens[:, N + 1:, None], tokens[:, None, :N]
    source = (next_letter == letters).int().argmax(-1).cpu()            # (B, N)
    on_source = weights.gather(2, source[:, :, None])[:, :, 0]          # (B, N)
    found = (weights.argmax(-1) == source).double().mean().item()
    return weights, source, on_source.mean(0), found


uniform = torch.tensor([1 / (t + 1) for t in range(N, 2 * N)])          # (N): equal weights
views = {"copy": (copy_strings, *look("copy", copier, copy_strings)),
         "sort": (sort_strings, *look("sort", sorter, sort_strings))}
for task, least in (("copy", 0.8), ("sort", 0.4)):
    _, _, _, mass, found = views[task]
    lesson.claim(f"{task}: most weight is on the source of the next letter",
                 mass.mean() > least and found > 0.8,
                 f"{mass.mean():.2f} of the weight (equal weights: {uniform.mean():.3f}); the "
                 f"largest weight at {found:.1%} of positions")

# %%
fig, axes = plotting.figure(13, 4.2, columns=3)
for panel, (task, (tokens, weights, source, _, _)) in zip(axes, views.items()):
    text = [SYMBOLS[i] for i in tokens[0].tolist()]
    rows = [f"{now}→{after}" for now, after in zip(text[N:-1], text[N + 1:])]
    plotting.heatmap(panel, weights[0], rows, text[:-1], label="attention weight", high=1)
    panel.plot(source[0], range(N), linestyle="none", marker="s", markersize=9,
               markerfacecolor="none", color="#D55E00")
    panel.set(xlabel="token looked at", ylabel="token read → token to write",
              title=f"{task}: one string; squares: the source")
for task, marker in (("copy", "o"), ("sort", "s")):
    axes[2].plot(range(1, N + 1), views[task][3], marker=marker, label=task)
axes[2].plot(range(1, N + 1), uniform, label="equal weights, 1/(t+1)")
axes[2].set(xlabel="output position after the bar", ylabel="attention weight on the source",
            ylim=(0, 1.05))
axes[2].set_title("Mean over 500 held-out strings")
axes[2].legend(loc="lower right", bbox_to_anchor=(1, 0.12))
lesson.figure(fig, "attention_maps")

# %% [markdown]
# In the copy map the weight is on a diagonal: each row looks ten positions back, which W_Q W_Kᵀ has
# learned from the positions. In the sort map there is no diagonal: from the letter just written,
# the head looks at the next letter of the alphabet that occurs in the string. Copying is a lookup
# by position, sorting a lookup by content. The equation is the same.

# %%
lesson.end()
