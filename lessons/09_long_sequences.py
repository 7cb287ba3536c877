"""Lesson 09: long sequences: attention that computes fewer scores than one for each pair of tokens.

You will see    a source and its summary as one sequence; attention in blocks, over compressed keys
                and over keys with the same hash, each equal to full attention where it should be;
                layers that keep no activations for the backward pass; the cost of all of them up to
                8,192 tokens; summaries of long documents, with and without the whole document.
Source          course A, "Transformer decoder"; course B, "Transformadores para una mejor
                eficiencia"; Liu et al. 2018 (memory-compressed attention); Kitaev et al. 2020
                (Reformer); Gomez et al. 2017 (reversible layers); Lan et al. 2020 (ALBERT).
Expect          1.6 minutes on one core (quick: 7 s); every check passes. Of the decisions that full
                attention has no room for, compressed attention reports 85 to 100 % (five seeds),
                full attention 4 to 6 %. 8 rounds of hashing come within 20 % of full attention.
Not here        mixture of experts (Liu et al.); caches; the inside of the fused kernel.

Shapes: B batch, H heads, T tokens, S keys, D width of one head, C = d_model, R rounds of hashing,
V vocabulary, L layers, N documents.
"""
# %%
import functools
import itertools
import math
import random
import textwrap
import time

import torch
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.models.attention import attend
from minigpt.models.bert import BERT, BERTConfig
from minigpt.models.counting import count_parameters, saved_bytes
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.models.long_attention import (
    CompressedAttention,
    compressed_attention,
    local_attention,
    make_long_gpt,
    score_entries,
)
from minigpt.models.lsh import lsh_attention, lsh_buckets, random_rotations
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy
from minigpt.worlds.grammar import Grammar, tokens
from minigpt.worlds.stories import POOLS

lesson = Lesson("09_long_sequences", threads=1)


def randn(*shape):
    return torch.randn(*shape, generator=lesson.generator, dtype=torch.float64)


# %% [markdown]
# ## 1. Two sequences as one
# Lesson 04 had two networks, an encoder and a decoder. Liu et al. (2018, §4.2.3) remove the
# encoder. They put a separator token δ between the source m and the target y. A decoder alone, a
# GPT, reads and writes the one sequence w = (m, δ, y). The model needs no new part, because the
# chain rule can be cut at any place:
#
#     log p(w) = Σᵢ log p(wᵢ | w_<i) = log p(m, δ) + log p(y | m, δ)
#
# Erratum: if m has n tokens and y has η tokens, then w has n + η + 1 tokens, as course A says
# first. In its formula for p(w) the product ends at n + η, so the last token of y is missing.
# (Liu et al., §4.2.3, have the same slip.)
#
# We check the cut on a model that is small enough to list. It has three tokens; δ is the last one.
# The expected values do not use the cut: p(m, δ) is the sum of p over all nine y, and p(y | m, δ)
# is a ratio. The other side comes from the logits of the model in one pass, cut at δ.
# Items: A01, A02, A08

# %%
ONE_SEQUENCE = "A: Transformer decoder; Liu et al. 2018, §4.2.3"
tiny = GPT(GPTConfig(vocab_size=3, context_length=6, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in tiny.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
answers = torch.tensor(list(itertools.product(range(3), repeat=2)))             # (9, 2): every y
w = torch.cat([torch.tensor([[1, 0, 0, 2]]).expand(9, 4), answers], 1)          # (9, 6): (m, δ, y)
with torch.no_grad():
    logprobs = tiny(w)[:, :-1].log_softmax(-1)                                  # (9, 5, 3)
terms = logprobs.gather(-1, w[:, 1:, None])[..., 0]     # (9, 5) log p(wᵢ | w_<i), i = 2 … 6
joint = terms.sum(1).exp()                              # (9,) p(w), given the first token
lesson.check("log p(m, δ) = log Σ_y p(m, δ, y)", terms[0, :3].sum(), joint.sum().log(), atol=1e-12,
             source=ONE_SEQUENCE, items=("A03",))
lesson.check("log p(y | m, δ) = log p(m, δ, y) − log p(m, δ), for all y", terms[:, 3:].sum(1),
             (joint / joint.sum()).log(), atol=1e-12, source=ONE_SEQUENCE, items=("A03",))

# %% [markdown]
# There is a cost. Source and target share one attention, and its matrix of scores has T² entries.
# Sources are long: Liu et al. summarise the references of an article, which have ten thousand words
# and more. That is 10⁸ scores per head and layer. The rest of this lesson avoids most of them.
#
# ## 2. Local attention: each token attends within its block
# Cut the sequence into blocks of b tokens (Liu et al.: 256). Each token attends to the earlier
# tokens of its own block only. T/b blocks with b² scores each are T·b scores, which is linear in T.
#
# Erratum: course A says that the sentence is divided into "batches". A batch is a set of sequences.
# What is divided is the one joined sequence, and its parts are blocks.
#
# If one block holds everything, local attention is full attention. If not, it is full attention in
# which all pairs from two different blocks are masked. We compute both with loops.

# %%
B, H, T, D = 2, 3, 20, 4
q, k, v = randn(B, H, T, D), randn(B, H, T, D), randn(B, H, T, D)


def by_loops(q, k, v, may_look, scale=D**-0.5):
    """Attention, one query at a time; query t may attend to key s if may_look(t, s)."""
    out = torch.zeros(B, H, q.size(2), v.size(3), dtype=torch.float64)
    for b, h, t in itertools.product(range(B), range(H), range(q.size(2))):
        keys = [s for s in range(k.size(2)) if may_look(t, s)]
        e = {s: math.exp(scale * sum((q[b, h, t] * k[b, h, s]).tolist())) for s in keys}
        for s, weight in e.items():
            out[b, h, t] += weight / sum(e.values()) * v[b, h, s]
    return out


lesson.check("local = full when one block holds everything", local_attention(q, k, v, 256),
             by_loops(q, k, v, lambda t, s: s <= t), atol=1e-12,
             source="Liu et al. 2018, §4.2.4")
lesson.check("blocks of 6 = full without pairs of different blocks", local_attention(q, k, v, 6),
             by_loops(q, k, v, lambda t, s: s <= t and s // 6 == t // 6), atol=1e-12,
             source="A: Transformer decoder; Liu et al. 2018, §4.2.4", items=("A06",))

# %% [markdown]
# ## 3. Memory-compressed attention: three keys become one
# This attention keeps all queries, but it has fewer keys and values. A convolution over time with
# kernel 3 and stride 3 makes one key of each three keys, and one value of each three values. There
# are T·⌈T/3⌉ scores. This is still quadratic, but a third of full attention, and a token can attend
# to the whole past.
#
# Erratum: course A says "kernels de 3x3". A 3×3 kernel is for images: it moves in two directions.
# Keys have one direction, time. The other axis holds the C features. Features have no neighbours,
# so the convolution sums over all of them. Liu et al. (§4.2.4) have a 1-D convolution with kernel 3
# and stride 3. Its weight has C × C × 3 numbers, one C × C matrix Wᵢ for each of three inputs. The
# result is called a slot:
#
#     slot_j = Σᵢ Wᵢ x_{3j−2+i},  i = 0, 1, 2        inputs 3j − 2, 3j − 1 and 3j
#
# Inputs before the first are zeros. The attention must be causal, so a query may attend to a
# slot only if the last input of the slot is not later than the query: query t may attend to slot
# j if 3j ≤ t. With the two zeros in front, slot 0 holds the first token alone. So every query
# has at least one slot, and S inputs make ⌈S/3⌉ slots.

# %%
C = H * D
layer = CompressedAttention(C, H).double()
for parameter in layer.parameters():
    parameter.data = randn(*parameter.shape) * 0.5
x = randn(B, T, C)
with torch.no_grad():
    slots = layer.compress(x, layer.compress_key)                               # (B, ⌈T/3⌉, C)
W = layer.compress_key.weight
by_hand = torch.zeros(B, 7, C, dtype=torch.float64)
for b, j, i, a, c in itertools.product(range(B), range(7), range(3), range(C), range(C)):
    if 3 * j - 2 + i >= 0:
        by_hand[b, j, a] += W[a, c, i].item() * x[b, 3 * j - 2 + i, c].item()
lesson.check("kernel 3, stride 3, one number at a time", slots, by_hand, atol=1e-12,
             source="A: Transformer decoder, corrected; Liu et al. 2018, §4.2.4", items=("A05",))
lengths = [layer.compress(torch.zeros(1, S, C, dtype=torch.float64), layer.compress_key).size(1)
           for S in range(1, 31)]
by_counting = [S // 3 + (S % 3 > 0) for S in range(1, 31)]
lesson.check("S inputs → ⌈S/3⌉ slots, for S = 1 … 30", lengths, by_counting, atol=0,
             source="Liu et al. 2018, §4.2.4", items=("A05",))
jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x[0])    # (T, C, T, C)
jacobian = jacobian.abs().amax(dim=(1, 3))                                          # (T, T)
lesson.check("causal: ∂out_t/∂x_s = 0 for every s > t", jacobian.triu(1), torch.zeros(T, T), atol=0,
             source="derived above")
unseen = [(t, s) for t in range(T) for s in range(t) if jacobian[t, s] == 0]
unfinished = [(t, s) for t in range(T) for s in range(t) if s > t // 3 * 3]
lesson.check("the unseen past is exactly the part in no finished slot", sorted(unseen), unfinished,
             atol=0, source="counted by hand")

# %% [markdown]
# So Liu et al. alternate two kinds of layers. A local layer (L)
# reads the last tokens exactly. A memory-compressed layer (M) reads the whole past, but
# averaged. Their model has five layers, L M L M L: `make_long_gpt(config, "LMLML")` is GPT with
# these attentions. Is it causal? We change the tokens after t. No logit up to t may change.

# %%
form = GPTConfig.modern(vocab_size=19, context_length=40, n_layers=5, n_heads=2, d_model=16)
model = make_long_gpt(form, "LMLML", block=8, generator=lesson.generator).double()
text = torch.randint(19, (1, 40), generator=lesson.generator)
moved = 0.0
with torch.no_grad():
    for t in range(39):
        other = torch.cat([text[:, :t + 1], (text[:, t + 1:] + 1) % 19], dim=1)
        moved = max(moved, (model(other) - model(text))[:, :t + 1].abs().max().item())
lesson.check("LMLML: no later token changes an earlier logit", moved, 0.0, atol=1e-12,
             source="Liu et al. 2018, §4.2.4")

# %% [markdown]
# ## 4. Hashing: attend only to similar keys
# In a softmax only the large scores matter, and for vectors of equal length a large score means a
# small angle between query and key. So we want the keys near a query, without computing all scores.
# Reformer (Kitaev et al. 2020, §2) uses locality-sensitive hashing (LSH): a hash puts each vector
# into a *bucket*, so that near vectors often share a bucket.
#
# Draw a random hyperplane through the origin. Its two sides are two buckets. Two vectors at angle θ
# are on different sides if the hyperplane passes between them, which has probability θ/π:
#
#     P(same bucket) = 1 − θ/π                       one hyperplane, two buckets
#
# For n buckets, draw n/2 random directions, the columns of a matrix Ω. The bucket of x is the
# nearest among these directions and their opposites: h(x) = argmax [xΩ; −xΩ]. For n = 4 there is a
# formula too. Let u₁ and u₂ be the projections of x on the two directions. Direction 1 wins if
# both u₁ − u₂ and u₁ + u₂ are positive. In the same way, the signs of these two numbers decide
# each of the four buckets. Two independent normal variables of equal variance have an independent
# difference and sum. So these are two independent hyperplanes, and both must agree: (1 − θ/π)².

# %%
n_draws = lesson.pick(full=40_000, quick=4_000)
shares = torch.linspace(0.0, 1.0, 11)                                           # θ/π
pairs = torch.tensor([[[1.0, 0, 0, 0], [math.cos(math.pi * a), math.sin(math.pi * a), 0, 0]]
                      for a in shares.tolist()])                                # (11, 2, 4)
met = {}                                # n buckets: the share of draws with one bucket, per angle
for n in (2, 4, 16):
    rotations = random_rotations(n_draws, 4, n, lesson.generator)
    buckets = lsh_buckets(pairs[None], rotations)[0]                            # (11, R, 2)
    met[n] = (buckets[..., 0] == buckets[..., 1]).float().mean(1)               # (11,)
error = 5 * 0.5 / math.sqrt(n_draws)    # five standard errors; one is at most 0.5/√n_draws
lesson.check("P(same bucket) = 1 − θ/π, two buckets", met[2], 1 - shares, atol=error,
             source="Goemans and Williamson 1995", items=("B34",))
lesson.check("P(same bucket) = (1 − θ/π)², four buckets", met[4], (1 - shares) ** 2, atol=error,
             source="derived above")
falls = [bool((share.diff() < 0.01).all()) for share in met.values()]
lesson.check("P decreases with the angle", falls, [True] * 3, atol=0, source="by sampling")

fig, (left, right) = plotting.figure(10, 3.8, columns=2, sharey=True)
fine = torch.linspace(0, 1, 101)
left.plot(180 * fine, 1 - fine, label="2 buckets: 1 − θ/π")
left.plot(180 * fine, (1 - fine) ** 2, label="4 buckets: (1 − θ/π)²")
for n, marker in zip(met, "osD"):
    left.plot(180 * shares, met[n], marker, color="black", markersize=4, markerfacecolor="white",
              linestyle="none", label=f"{n} buckets, drawn")
for rounds in (1, 2, 4, 8):
    missed = (1 - met[16]) ** rounds
    right.plot(180 * shares, 1 - missed, marker="o", markersize=3, label=f"R = {rounds}")
left.set(xlabel="angle θ (degrees)", ylabel="probability of a shared bucket",
         title="One round: near vectors share a bucket")
right.set(xlabel="angle θ (degrees)", title="16 buckets, at least once in R rounds: 1 − (1 − P)ᴿ")
left.legend()
right.legend()
lesson.figure(fig, "collisions")

# %% [markdown]
# A query must find keys, so both need the same hash. Reformer makes them the same vector, apart
# from its length: kᵢ = qᵢ/‖qᵢ‖ (*shared QK*). Each token is then nearest to itself, so it may
# attend to itself only if it has no other key. One round of LSH attention has four steps:
#
# 1. sort the tokens by bucket, and within a bucket by position;
# 2. cut the sorted tokens into chunks of m tokens (equal sizes make one batch of matrices);
# 3. let each token attend to the tokens of its own bucket that are in its chunk or the one before;
# 4. mask those that are later in the text.
#
# A near key is missed if a hyperplane passes between it and the query. So we make R rounds with
# different random directions, and combine them. In round r a query found the set of keys Pʳ, and
# its output is oʳ. The log of the denominator of its softmax is zʳ = log Σ_{j ∈ Pʳ} e^score. Then
#
#     o = Σᵣ e^{zʳ} oʳ / Σᵣ e^{zʳ}
#
# A key j that was found in N_j rounds would be counted N_j times. So log N_j is subtracted from
# its score in each round, and the N_j terms e^{score − log N_j} = e^score / N_j sum to e^score.
# The result is one softmax over the union of the Pʳ. To check this, we find the union with
# sorted Python lists, and compute attention over it by loops.
#
# (LSH attention is not perfectly causal, in Reformer too: all tokens together decide where the
# chunks are cut. So a later token can decide whether two earlier tokens are in neighbouring
# chunks. With a single chunk this cannot happen.)

# %%
R, m = 4, 5
buckets = lsh_buckets(q, random_rotations(R, D, 4, lesson.generator).double())  # (B, H, R, T)


def pairs_found(buckets):
    """The pairs (query, earlier key) of one head and one round: buckets is a list of T numbers."""
    order = sorted(range(T), key=lambda t: (buckets[t], t))
    return {(t, s) for (i, t), (j, s) in itertools.product(enumerate(order), repeat=2)
            if s < t and buckets[t] == buckets[s] and i // m - j // m in (0, 1)}


worst = 0.0
for b, h in itertools.product(range(B), range(H)):
    union = set().union(*(pairs_found(buckets[b, h, r].tolist()) for r in range(R)))
    alone = {(t, t) for t in set(range(T)) - {t for t, _ in union}}
    expected = by_loops(q, F.normalize(q, dim=-1), v, scale=1.0,
                        may_look=lambda t, s, found=union | alone: (t, s) in found)
    worst = max(worst, (lsh_attention(q, v, buckets, m) - expected)[b, h].abs().max().item())
lesson.check("R rounds = one softmax over the union of the keys found", worst, 0.0, atol=1e-12,
             source="Kitaev et al. 2020, §2 and appendix A", items=("B34",))
full = by_loops(q, F.normalize(q, dim=-1), v, lambda t, s: s < t or s == t == 0, scale=1.0)
lesson.check("one bucket and one chunk = full shared-QK attention",
             lsh_attention(q, v, torch.zeros_like(buckets), T), full, atol=1e-12,
             source="Kitaev et al. 2020, §2", items=("B34",))

# %% [markdown]
# With more rounds the union grows. A key at angle θ is missed with probability (1 − P)ᴿ. This
# goes to 0 for every key except the exact opposite of the query, which has the smallest weight
# of all. So LSH attention converges to full attention. Here with two buckets and one chunk:

# %%
for R in (1, 4, 16, 64, 128):
    rotations = random_rotations(R, D, 2, lesson.generator).double()
    approximate = lsh_attention(q, v, lsh_buckets(q, rotations), T)
    print(f"    {R:3d} rounds: largest error {(approximate - full).abs().max():.4f}")
lesson.check("LSH → full attention as rounds grow: 128 rounds", approximate, full, atol=0.02,
             source="Kitaev et al. 2020, §2")

# %% [markdown]
# Course B gives the cost O(n log n) for n tokens, against O(n²) for full attention.
# The log n comes from the sort in step 1: a sort by comparisons makes about n log₂ n of them.
# Steps 2 to 4 are linear: with fixed chunks of m tokens there are 2m scores per token, whatever n
# is. We count the comparisons of Python's sort. When n doubles, log₂ n grows by 1, so the
# comparisons per token must grow by 1 too.

# %%
def comparisons(n, m=64):
    """How many comparisons sort n tokens with random buckets by bucket and position."""
    generator, pairs = random.Random(lesson.seed), []
    keys = [(generator.randrange(2 * n // m), t) for t in range(n)]

    def compare(a, b):
        pairs.append((a, b))
        return -1 if a < b else 1

    sorted(keys, key=functools.cmp_to_key(compare))
    return len(pairs)


per_token = [comparisons(n) / n for n in (256, 512, 1024, 2048, 4096)]
print("    comparisons per token, n = 256 to 4,096: " + ", ".join(f"{c:.2f}" for c in per_token))
growth = [b - a for a, b in itertools.pairwise(per_token)]
lesson.check("sorting, n log n: +1 comparison per token when n doubles", growth, [1] * 4, atol=0.35,
             source="B: Reformer", items=("B35",))

# %% [markdown]
# The figure shows which keys each of the four attentions uses, for 36 tokens. If v is the
# identity matrix I, then the output A(q, K, I) *is* the matrix of weights. The weight of a
# compressed slot is drawn over its three inputs.

# %%
n = 36
q36, k36, eye = randn(1, 1, n, 8), randn(1, 1, n, 8), torch.eye(n, dtype=torch.float64)[None, None]
slot_inputs = ((torch.arange(n) + 2) // 3 == torch.arange(n // 3)[:, None]).double()[None, None]
hashes = lsh_buckets(q36, random_rotations(2, 8, 4, lesson.generator).double())
looks = {
    "full: T·T": attend(q36, k36, eye, causal=True),
    "local, b = 9: T·b": local_attention(q36, k36, eye, 9),
    "compressed: T·⌈T/3⌉": compressed_attention(q36, k36[:, :, ::3], slot_inputs),
    "LSH, 4 buckets, 2 rounds": lsh_attention(q36, eye, hashes, 18),
}
fig, panels = plotting.figure(12, 3.4, columns=4)
for axes, (name, weights) in zip(panels, looks.items()):
    plotting.heatmap(axes, (weights[0, 0] > 0).double() * 0.8, high=1.0)
    axes.set(title=name, xlabel="key", ylabel="query" if axes is panels[0] else None,
             aspect="equal")
lesson.figure(fig, "who_looks_where")

# %% [markdown]
# ## 5. Reversible layers keep no activations
# Attention is not the only use of memory. For the backward pass each layer keeps its
# activations, so L layers keep L times as much. Reversible layers (Gomez et al. 2017; Reformer
# uses them) compute these activations again. The residual stream is split in two, x₁ and x₂;
# both start as the embedding. Attention is the function F, and the feed-forward network is G:
#
#     y₁ = x₁ + F(x₂)        y₂ = x₂ + G(y₁)                 forward
#     x₂ = y₂ − G(y₁)        x₁ = y₁ − F(x₂)                 backward: the input from the output
#
# The second line follows from the first: solve y₂ = x₂ + G(y₁) for x₂, then y₁ = x₁ + F(x₂) for x₁.
# So only the output of the last layer is kept. The price is that F and G are computed twice. The
# gradients must equal those of autograd with all activations kept. A hook on every saved tensor
# counts the bytes. The weights are not counted.

# %%
def megabytes_of(model, text):
    return saved_bytes(lambda: model(text[:, :-1]), model.parameters()) / 1e6


kept = {}
for n_layers in (2, 4, 8):
    form = GPTConfig.modern(19, context_length=96, n_layers=n_layers, n_heads=2, d_model=16)
    weights = torch.Generator().manual_seed(lesson.seed)
    model = make_long_gpt(form, "LM" * (n_layers // 2), block=16, reversible=True,
                          generator=weights).double()
    text = torch.randint(19, (4, 96), generator=lesson.generator)
    gradients = {}
    for store in (False, True):
        model.blocks[0].store = store
        loss = cross_entropy(model(text[:, :-1]), text[:, 1:])
        gradients[store] = torch.autograd.grad(loss, list(model.parameters()))
        kept[n_layers, store] = megabytes_of(model, text)
    gap = max((a - b).abs().max().item() for a, b in zip(gradients[False], gradients[True]))
    lesson.check(f"reversible gradients = autograd's, {n_layers} layers", gap, 0.0, atol=1e-12,
                 source="Gomez et al. 2017; Kitaev et al. 2020, §3")
    print(f"    {n_layers} layers: {kept[n_layers, True]:.2f} MB of activations kept by autograd, "
          f"{kept[n_layers, False]:.2f} MB by reversible layers")
lesson.claim("8 layers against 2: autograd keeps over 3 times as much, reversible layers the same",
             kept[8, True] > 3 * kept[2, True] and kept[8, False] == kept[2, False],
             f"from 2 to 8 layers: {kept[2, True]:.2f} → {kept[8, True]:.2f} MB against "
             f"{kept[2, False]:.2f} → {kept[8, False]:.2f} MB")

# %% [markdown]
# ## 6. ALBERT: fewer weights, but not fewer activations
# ALBERT (Lan et al. 2020, §3.1) is BERT with two changes. First, the embedding matrix V × C becomes
# the product of V × E and E × C, with E = 128. Second, all layers share their weights: one layer is
# applied L times. With P = 512 positions and L layers the numbers of weights are
#
#     BERT      (V + P + 2)·C + 2C             + L·(12C² + 13C) + C² + C
#     ALBERT    (V + P + 2)·E + 2E + E·C + C   +    12C² + 13C  + C² + C
#
# A layer has 4(C² + C) weights of attention, 8C² + 5C of feed-forward and 4C of norms. The pooler
# has C² + C. The 2 stands for two segments, and 2C or 2E for the norm of the embeddings.
#
# Erratum: course B says that ALBERT is smaller "mediante poda", by pruning. Pruning removes weights
# from a trained network. In ALBERT nothing is removed: it is small before training, because the
# embedding is factorised and the layers are shared. Sharing saves weights only. All L layers are
# still computed, so time and activations are those of BERT.
#
# Course B also says "5 veces más pequeño", 5 times smaller. ALBERT-base is 9 times smaller than
# BERT-base, but its scores are lower. ALBERT-xlarge (C = 2048) against BERT-large fits: 60M against
# 334M weights, with about equal scores (Lan et al. 2020, table 2).

# %%
XLARGE = BERTConfig(30_000, 512, n_layers=24, n_heads=16, d_model=2048, d_embedding=128,
                    share_layers=True)
MODELS = {"BERT base": BERTConfig.base(), "ALBERT base": BERTConfig.albert_base(),
          "BERT large": BERTConfig.large(), "ALBERT xlarge": XLARGE}
PARTS = {"embeddings": ("token", "position", "segment", "embedding", "widen"),
         "layers": ("blocks",), "pooler": ("pooler",)}
counts = {}
for name, config in MODELS.items():
    with torch.device("meta"):                                  # shapes without memory
        named = list(BERT(config).named_parameters())
    parts = {part: sum(p.numel() for key, p in named if key.startswith(words))
             for part, words in PARTS.items()}
    counts[name] = sum(parts.values())
    print(f"    {name:<14}" + " ".join(f"{part} {number:>11,}  " for part, number in parts.items())
          + f"all {counts[name]:>11,}")


def bert_size(V, C, L):
    return (V + 514) * C + 2 * C + L * (12 * C * C + 13 * C) + C * C + C


def albert_size(V, C, E=128):
    return (V + 514) * E + 2 * E + E * C + C + 12 * C * C + 13 * C + C * C + C


by_formula = [bert_size(30_522, 768, 12), albert_size(30_000, 768),
              bert_size(30_522, 1024, 24), albert_size(30_000, 2048)]
lesson.check("weights of the four models (table: 108M, 12M, 334M, 60M)", list(counts.values()),
             by_formula, atol=0, source="Lan et al. 2020, §3.1 and table 2", items=("B36",))
ratio = counts["BERT large"] / counts["ALBERT xlarge"]
lesson.claim("ALBERT-xlarge is more than 5 times smaller than BERT-large", ratio > 5,
             f"{ratio:.1f} times", items=("B36",))

# %% [markdown]
# ## 7. The cost, measured
# We take one sequence and one head of width 32, forward only. We measure the CPU seconds of one
# thread, and the bytes that autograd keeps for the backward pass. "Full" writes its T × T weights
# to memory, as programs did in 2018 and 2020. The fused kernel of `attend` (Dao et al. 2022) does
# not write them. On log-log axes a power of n is a straight line, and its slope is the exponent,
# fitted over the upper half of the sizes. (Time can grow faster than n² when a large matrix does
# not fit into the processor's cache. With chunks of m tokens, hashing has 2n/m buckets. So each of
# n tokens is compared with n/m directions, and this small part of the time grows as n².)

# %%
sizes = [2**i for i in lesson.pick(full=range(8, 14), quick=range(7, 11))]
convolution = torch.nn.Conv1d(32, 32, 3, 3, bias=False)


def compress(x):                        # (1, 1, n, 32) -> (1, 1, ⌈n/3⌉, 32)
    return convolution(F.pad(x[0].mT, (2, 0))).mT[None]


def hashed(q, k, v, chunk=64):
    # A generator of its own, because the clock decides how often this function runs.
    generator = torch.Generator().manual_seed(lesson.seed)
    n_buckets = max(2, 2 * q.size(2) // chunk)
    return lsh_attention(q, v, lsh_buckets(q, random_rotations(4, 32, n_buckets, generator)), chunk)


attentions = {
    "full": lambda q, k, v: attend(q, k, v, causal=True, fused=False),
    "full, fused kernel": lambda q, k, v: attend(q, k, v, causal=True),
    "compressed": lambda q, k, v: compressed_attention(q, compress(k), compress(v), fused=False),
    "local, b = 256": lambda q, k, v: local_attention(q, k, v, 256, fused=False),
    "LSH, 4 rounds": hashed,
}


@torch.no_grad()
def cpu_seconds(attention, *inputs):
    """The shortest of several calls. The first call is not timed: it allocates memory."""
    attention(*inputs)
    times = []
    while len(times) < 3 or sum(times) < 0.02:
        start = time.process_time()
        attention(*inputs)
        times.append(time.process_time() - start)
    return min(times)


def kept_megabytes(attention, *inputs):
    tracked = [x.clone().requires_grad_() for x in inputs]
    return saved_bytes(lambda: attention(*tracked)) / 1e6


def exponent(values):
    """The slope of log(values) against log(n), by least squares over the upper half of sizes."""
    upper = slice(len(sizes) // 2 - 1, None)
    x, y = (torch.tensor(numbers).double().log()[upper] for numbers in (sizes, values))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


seconds, megabytes = ({name: [] for name in attentions} for _ in range(2))
for n in sizes:
    q, k, v = (torch.randn(1, 1, n, 32, generator=lesson.generator) for _ in range(3))
    for name, attention in attentions.items():
        seconds[name].append(cpu_seconds(attention, q, k, v))
        megabytes[name].append(kept_megabytes(attention, q, k, v))
time_power = {name: exponent(seconds[name]) for name in attentions}
memory_power = {name: exponent(megabytes[name]) for name in attentions}
print(f"    at n = {sizes[-1]:,}          time    grows as    memory    grows as")
for name in attentions:
    print(f"    {name:<20} {1000 * seconds[name][-1]:6.0f} ms    n^{time_power[name]:.2f}   "
          f"{megabytes[name][-1]:6.1f} MB    n^{memory_power[name]:.2f}")
quadratic, linear = ("full", "compressed"), ("local, b = 256", "LSH, 4 rounds")
third = megabytes["compressed"][-1] / megabytes["full"][-1]
lesson.claim(
    "memory: full and compressed grow as n², compressed a third of full; local and LSH as n",
    min(memory_power[name] for name in quadratic) > 1.85
    and max(memory_power[name] for name in linear) < 1.1 and 0.28 < third < 0.40,
    f"exponents in the table; compressed/full {third:.2f} at {sizes[-1]:,}", full_run=True,
    items=("B35",))
ratio = seconds["full"][-1] / seconds["local, b = 256"][-1]
lesson.claim(
    "time: full's exponent is 0.5 above local's and LSH's; local is 20 times faster at 8,192",
    time_power["full"] > 0.5 + max(time_power[name] for name in linear) and ratio > 20,
    f"exponents in the table; full/local {ratio:.0f}", full_run=True)
fused = megabytes["full, fused kernel"][-1]
least = min(megabytes[name][-1] for name in (*quadratic, *linear))
lesson.claim("full attention with the fused kernel keeps less than half of any other's memory",
             fused < 0.5 * least, f"{fused:.1f} MB against {least:.1f} MB and more", full_run=True)

fig, panels = plotting.figure(11, 4.4, columns=2)
labels = ("Time: CPU seconds, forward", "Memory: MB kept for the backward pass")
for axes, values, label in zip(panels, (seconds, megabytes), labels):
    for (name, line), marker in zip(values.items(), "osD^v"):
        axes.loglog(sizes, line, marker=marker, markersize=4,
                    label=f"{name}: n^{exponent(line):.2f}")
    axes.set(xlabel="tokens n", title=label)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.legend()
lesson.figure(fig, "costs")

# %% [markdown]
# At 8,192 tokens the fused kernel is exact, keeps less memory than all others, and takes less time
# than hashing. Only local attention is faster. The other methods were made in 2018 and 2020 to save
# memory. Today a kernel saves it and leaves nothing out. But its time still grows as n².
#
# ## 8. Summaries of documents that do not fit
# The documents are minutes of meetings, written by a grammar. They have much small talk, and six
# decisions at random places. The summary lists the decisions, always in the same order.
#
# Liu et al. call such a model *abstractive*: it writes the summary as new text, token by token. An
# *extractive* model copies whole sentences of the source. Here the summary "pet Waffle" is not a
# sentence of the minutes, so the task is abstractive, but a very simple one.
#
# For a model that reads everything, a summary costs 0 bits. For a model that reads nothing, each
# value costs log₂ of the number of possible values.
# Items: A04

# %%
DECISIONS = {"hero": "NAME", "pet": "PET", "animal": "ANIMAL", "thing": "ONE", "place": "PLACE",
             "weather": "WEATHER"}
TALK = Grammar({"talk": [
    "They [laughed|quarrelled|talked] about "
    "[birds|bread|dinner|football|ghosts|letters|money|music] again.",
    "Nobody [heard|liked|saw] the [band|choir|mayor|sailor|teacher].",
    "Somebody [called|fed|left] [early|first|late|twice].",
    "The [clock|door|kettle|lamp|window] was [broken|loud|old|open].",
]})
VALUES = {kind: list(POOLS[pool]) for kind, pool in DECISIONS.items()}
talk = [[word.strip() for word in tokens(sentence)]
        for sentence in TALK.sample_many(2000, seed=lesson.seed)]
decided = [*DECISIONS, *itertools.chain(*VALUES.values()), "Decided", ":", ".", "δ"]
tokenizer = WordTokenizer.train([*itertools.chain(*talk), *decided])
ASKED = 2 * len(DECISIONS)              # words of a summary: a kind and its value, six times
unread = sum(math.log2(len(values)) for values in VALUES.values())
chance = sum(1 / len(values) for values in VALUES.values()) / len(VALUES)


def document(length, generator):
    """(m, δ, y) of `length` words, and the six places of the decided values in m."""
    def draw(n):
        return int(torch.randint(n, (), generator=generator))

    value = {kind: values[draw(len(values))] for kind, values in VALUES.items()}
    room = length - 1 - ASKED - 5 * len(value)
    lines, used = [], 0
    for i in torch.randint(len(talk), (room // 3,), generator=generator).tolist():
        if used + len(talk[i]) <= room:
            lines.append((None, talk[i]))
            used += len(talk[i])
    for kind in value:                  # each decision is inserted at a random place
        lines.insert(draw(len(lines) + 1), (kind, ["Decided", ":", kind, value[kind], "."]))
    words, places = ["."] * (room - used), {}                   # full stops fill the length
    for kind, line in lines:
        if kind:
            places[kind] = len(words) + 3
        words += line
    summary = [word for pair in value.items() for word in pair]
    return words + ["δ"] + summary, [places[kind] for kind in value]


def documents(n, length, seed):
    """(n, length) word numbers and (n, 6) places."""
    generator = torch.Generator().manual_seed(seed)
    written = [document(length, generator) for _ in range(n)]
    tokens = torch.tensor([tokenizer.encode(words) for words, _ in written])
    return tokens, torch.tensor([places for _, places in written])


shown = " ".join(document(96, torch.Generator().manual_seed(lesson.seed))[0])
shown = shown.replace(" .", ".").replace(" :", ":").replace("Decided", "DECIDED")
print(textwrap.fill(shown, 96, initial_indent="    ", subsequent_indent="    "))
print(f"    {tokenizer.vocab_size} words; a summary costs {unread:.1f} bits unread, 0 read; "
      f"a random guess is right in {chance:.1%}")

# %% [markdown]
# All models get the same budget: the number of score entries, summed over the layers, for one
# head. With the fused kernel this is a budget of time. Two compressed layers over LENGTH tokens
# set the budget. A compressed and a local layer (two of the five layers of Liu et al.) need about
# half. Two full layers have a shorter context: only the newest `window` tokens, because δ and the
# summary are at the end. The decisions are at random places, so those before the window are lost.

# %%
LENGTH, BLOCK = lesson.pick(full=1024, quick=128), 16
window = math.isqrt(score_entries("MM", LENGTH) // 2)
contexts = {"MM": LENGTH, "ML": LENGTH, "FF": window}
names = {"MM": "compressed", "ML": "compressed + local", "FF": f"full, newest {window}"}
entries = {layers: score_entries(layers, n, BLOCK) for layers, n in contexts.items()}
for layers, n in contexts.items():
    print(f"    {names[layers]:<20} {entries[layers]:>8,} score entries over {n} tokens")

# %% [markdown]
# All models are trained in the same way: first on short documents, then on longer ones. A model
# that starts with long documents must find each decision among hundreds of words, and a few
# minutes of training are not enough to learn this. Rotary positions depend on distances only, so
# the skill learned on short documents also works on long ones.

# %%
stages = lesson.pick(                                           # length, steps, documents per step
    full=[(48, 180, 32), (144, 60, 16), (432, 60, 6), (LENGTH, 70, 3)],
    quick=[(48, 4, 8), (64, 2, 4), (96, 2, 4), (LENGTH, 2, 4)])
training = [documents(steps * batch, length, seed=1_000 * lesson.seed + length)[0]
            for length, steps, batch in stages]
test, places = documents(lesson.pick(full=150, quick=20), LENGTH, 1_000 * lesson.seed + 999)


def summary_loss(model, batch):
    """Nats per word of the summary: −mean log p(y | m, δ)."""
    hidden = model.hidden(batch[:, -model.window:-1])                           # (B, T, C)
    return cross_entropy(model.unembed(hidden[:, -ASKED:]), batch[:, -ASKED:])


@torch.no_grad()
def judge(model, test):
    """(N, 6) which values are right, and (N, 6) the bits of each decision in the summary."""
    hidden = model.hidden(test[:, -model.window:-1])[:, -ASKED:]
    logprobs = model.unembed(hidden).log_softmax(-1)                            # (N, 12, V)
    bits = -logprobs.gather(-1, test[:, -ASKED:, None])[..., 0] / math.log(2)   # (N, 12)
    right = (logprobs.argmax(-1) == test[:, -ASKED:])[:, 1::2]                  # the values only
    return right, bits.unflatten(1, (-1, 2)).sum(-1)


def train_on_documents(layers, window, n_stages=4, **options):
    """A GPT with these layers that reads the newest `window` tokens, trained on these stages."""
    config = GPTConfig.modern(tokenizer.vocab_size, stages[n_stages - 1][0],
                              n_layers=len(layers), n_heads=2, d_model=64)
    weights = torch.Generator().manual_seed(lesson.seed)
    model = make_long_gpt(config, layers, BLOCK, generator=weights, **options).to(lesson.device)
    model.window = window
    for block in model.blocks if "H" in layers else []:         # part 9: trained without hashing
        block.attention.full = True
    plan = iter([stage for stage in range(n_stages) for _ in range(stages[stage][1])])

    def next_batch(generator):
        stage = next(plan)
        rows = torch.randint(len(training[stage]), (stages[stage][2],), generator=generator)
        return training[stage][rows].to(lesson.device)

    n_steps = sum(steps for _, steps, _ in stages[:n_stages])
    config = TrainingConfig(max_steps=n_steps, learning_rate=4e-3, weight_decay=0.0,
                            optimizer="muon", evaluate_every=max(1, n_steps // 6), seed=lesson.seed)
    rows = list(train(model, next_batch, summary_loss, config))[1:]
    losses = " → ".join(f"{row['train_loss']:.2f}" for row in rows)
    print(f"    {layers}, {count_parameters(model):,} parameters: loss {losses} nats per word",
          flush=True)
    return model


results = {}
for layers, context in contexts.items():
    model = train_on_documents(layers, context)
    results[layers] = tuple(table.cpu() for table in judge(model, test.to(lesson.device)))

inside = places >= LENGTH - window      # the decisions that the full model reads
print(f"\n    {inside.float().mean():.0%} of the decisions are in the newest {window} words\n")
print(f"    {'':<22}{'bits per summary':>18}{'right, in the newest':>22}{'before them':>14}")
right = {}
for layers, (correct, bits) in results.items():
    newest, before = (correct[part].float().mean().item() for part in (inside, ~inside))
    right[layers] = newest, before
    print(f"    {names[layers]:<22}{bits.sum(1).mean():>18.1f}{newest:>22.1%}{before:>14.1%}")
for layers in ("MM", "ML"):
    lesson.claim(
        f"{names[layers]}: right on ≥ 80 % of the decisions before the newest {window} words",
        right[layers][1] >= 0.8,
        f"{right[layers][1]:.1%}, with {entries[layers]:,} score entries", full_run=True)
lesson.claim("full, same budget: right on < 15 % of the decisions before its window, ≥ 80 % in it",
             right["FF"][1] < 0.15 and right["FF"][0] >= 0.8,
             f"{right['FF'][1]:.1%} before (a random guess {chance:.1%}), {right['FF'][0]:.1%} in "
             f"the window, with {entries['FF']:,} score entries", full_run=True)

fig, axes = plotting.figure(8, 4)
edges = torch.linspace(0, LENGTH - 1 - ASKED, 9)
for (layers, (correct, _)), marker in zip(results.items(), "osD"):
    share = [correct[(places >= low) & (places < high)].float().mean().item()
             for low, high in itertools.pairwise(edges)]
    axes.plot((edges[1:] + edges[:-1]) / 2, share, marker=marker, markersize=4,
              label=f"{names[layers]}: {entries[layers]:,} scores")
axes.axhline(chance, color="black", linestyle=":", label=f"a random guess, {chance:.1%}")
axes.axvspan(0, LENGTH - window, color="black", alpha=0.07)
axes.text((LENGTH - window) / 2, 0.5, "not read by\nfull attention", ha="center", va="center")
axes.set(xlabel="place of the decision in the document (word)", ylabel="share reported right",
         ylim=(-0.03, 1.05), title=f"Summaries of {LENGTH}-word documents")
axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1))
lesson.figure(fig, "summaries")

# %% [markdown]
# ## 9. How many rounds does a trained model need?
# In part 4 the queries were random. The queries of a trained model are not. So we train a model
# with full shared-QK attention (letter H, without hashing) on the same documents. Then we switch
# the hashing on, and change nothing else.

# %%
n_buckets = lesson.pick(full=14, quick=6)       # full: chunks of 2·432/14 → 62 tokens
model = train_on_documents("HH", stages[2][0], n_stages=3, n_buckets=n_buckets, n_rounds=1)
test, _ = documents(lesson.pick(full=24, quick=10), stages[2][0], 1_000 * lesson.seed + 998)
test = test.to(lesson.device)
activations = []                        # of each attention: the layer, its inputs, its output
hooks = [block.attention.register_forward_hook(lambda *record: activations.append(record))
         for block in model.blocks]
correct, bits = judge(model, test)
full_share, full_bits = correct.float().mean().item(), bits.sum(1).mean().item()
for hook in hooks:
    hook.remove()
tables = (model.cos[:test.size(1) - 1], model.sin[:test.size(1) - 1])

ROUNDS, errors, shares_right = [1, 2, 4, 8], [], []
for R in ROUNDS:
    for block in model.blocks:
        rotations = random_rotations(R, 32, n_buckets, lesson.generator)
        block.attention.full, block.attention.rotations = False, rotations.to(lesson.device)
    with torch.no_grad():
        errors.append([((layer(*inputs, rotary=tables) - y).norm() / y.norm()).item()
                       for layer, inputs, y in activations])
    correct, bits = judge(model, test)
    shares_right.append(correct.float().mean().item())
    print(f"    R = {R}: error of the output of attention {errors[-1][0]:.1%} (layer 1), "
          f"{errors[-1][1]:.1%} (layer 2);\n           {shares_right[-1]:.1%} reported right, "
          f"{bits.sum(1).mean():.1f} bits per summary")
print(f"    full:  {full_share:.1%} reported right, {full_bits:.1f} bits per summary")
one, eight = (sum(errors[ROUNDS.index(R)]) / 2 for R in (1, 8))
lesson.claim("8 rounds: error of attention below 20 %, and less than half of the error of 1 round",
             eight < 0.2 and eight < one / 2,
             f"‖LSH − full‖/‖full‖, mean of two layers: {eight:.1%} with 8 rounds, {one:.1%} with 1"
             f"; reported right {shares_right[-1]:.1%} and {shares_right[0]:.1%}, "
             f"full {full_share:.1%}", full_run=True)

fig, axes = plotting.figure(6, 3.8)
for i, marker in enumerate("os"):
    axes.semilogx(ROUNDS, [error[i] for error in errors], marker=marker, markersize=4,
                  label=f"layer {i + 1}")
axes.set(xlabel="rounds of hashing R", ylabel="‖LSH − full‖ / ‖full‖", ylim=(0, None),
         title="Error of the output of attention, trained model")
axes.legend()
axes.set_xticks(ROUNDS, ROUNDS)
axes.minorticks_off()
lesson.figure(fig, "rounds")

# %%
lesson.end()
