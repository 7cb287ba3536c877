"""Lesson 09: long sequences, or how to look back a long way without comparing everything with everything.

You will see    source and summary as one sequence; attention in blocks, over compressed keys, and over keys whose hash agrees, each
                equal to full attention where it should be; layers that keep nothing for the way back; what all of it costs up to
                8,192 tokens; and long documents summarised by models that can hold them, and by one that cannot.
Source          courses A and B; Liu et al. 2018 (memory-compressed attention); Kitaev et al. 2020 (Reformer); Lan et al. 2020 (ALBERT).
Expect          1.6 minutes on one core (quick: 7 s); every check passes; of the decisions that full attention has no room for, compressed
                attention reports 85 to 100 % (five seeds), full attention 4 to 6 %; 8 rounds of hashing come within 20 % of full attention.
Not here        mixture of experts (Liu et al.), caches for these attentions, FlashAttention's insides (`attend` calls it).

Shapes: B batch, H heads, T tokens, S keys, D width of one head, C = d_model, R rounds of hashing.
"""
# %%
import itertools
import math
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
# Lesson 04 had two networks, one to read and one to write. Liu et al. (2018, §4.2.3) drop the first: put a delimiter δ between the source
# m and the target y, and a decoder alone, a GPT, reads and writes the one sequence w = (m, δ, y). Nothing new is needed, for the
# chain rule does not care where it is cut:
#
#     log p(w) = Σᵢ log p(wᵢ | w_<i) = log p(m, δ) + log p(y | m, δ)
#
# A model small enough to list shows it. Three tokens, δ is the last one. p(m, δ) as a marginal, the sum of p over all nine y; p(y | m, δ)
# as a ratio; neither uses the cut. The right-hand sides come from the model's logits in one pass, cut at δ.

# %%
tiny = GPT(GPTConfig(vocab_size=3, context_length=6, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in tiny.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
source, delta = [1, 0, 0], 2
answers = torch.tensor(list(itertools.product(range(3), repeat=2)))                     # (9, 2): every y
w = torch.cat([torch.tensor([source + [delta]]).expand(9, 4), answers], 1)              # (9, 6): (m, δ, y)
with torch.no_grad():
    terms = tiny(w)[:, :-1].log_softmax(-1).gather(-1, w[:, 1:, None])[..., 0]          # (9, 5) log p(wᵢ | w_<i), i = 2 … 6
joint = terms.sum(1).exp()                                                              # (9,) p(w), given the first token
lesson.check("log p(m, δ) = log Σ_y p(m, δ, y)", terms[0, :3].sum(), joint.sum().log(), atol=1e-12,
             source="A: (m, δ, y); Liu et al. 2018")
lesson.check("log p(y | m, δ) = log p(m, δ, y) − log p(m, δ), for all y", terms[:, 3:].sum(1), (joint / joint.sum()).log(), atol=1e-12,
             source="A: (m, δ, y)")

# %% [markdown]
# The price: source and target share one attention, whose matrix of scores has T² entries, and sources are long. An article's
# references, which is what Liu et al. summarise, run to ten thousand words and more: 10⁸ scores a head and layer. The rest of this
# lesson is about not computing them.
#
# ## 2. Local attention: stay in your block
# Cut the sequence in blocks of b tokens (Liu et al.: 256) and let each token look back within its own block only. T/b blocks of b² scores
# are T·b: linear in T. If the block spans everything, it is full attention, here done by loops; if not, it is full attention
# with every pair across a border forbidden.

# %%
B, H, T, D = 2, 3, 20, 4
q, k, v = randn(B, H, T, D), randn(B, H, T, D), randn(B, H, T, D)


def by_loops(q, k, v, may_look, scale=1 / math.sqrt(D)):
    """Attention one query at a time; may_look(t, s) says whether query t may look at key s."""
    out = torch.zeros(B, H, q.size(2), v.size(3), dtype=torch.float64)
    for b, h, t in itertools.product(range(B), range(H), range(q.size(2))):
        e = {s: math.exp(scale * sum((q[b, h, t] * k[b, h, s]).tolist())) for s in range(k.size(2)) if may_look(t, s)}
        for s, weight in e.items():
            out[b, h, t] += weight / sum(e.values()) * v[b, h, s]
    return out


lesson.check("local = full when the block spans all", local_attention(q, k, v, 256), by_loops(q, k, v, lambda t, s: s <= t), atol=1e-12,
             source="A: local attention")
lesson.check("blocks of 6 = full without pairs across borders", local_attention(q, k, v, 6),
             by_loops(q, k, v, lambda t, s: s <= t and s // 6 == t // 6), atol=1e-12, source="Liu et al. 2018, §4.2.4")

# %% [markdown]
# ## 3. Memory-compressed attention: three keys become one
# Keep all queries, but make keys and values fewer: a convolution over time with kernel 3 and stride 3 turns each three keys into one, and
# likewise values. T·⌈T/3⌉ scores: still quadratic, a third of it, and every token can look all the way back.
#
# Erratum: course A says "3×3 kernels". A 3×3 kernel is for images: it slides over two directions. Keys have one direction
# to slide over, time; the other, the C features, has no neighbours and is summed over whole. Liu et al. have a 1-D convolution with
# kernel size 3 and stride 3. Its weight is C × C × 3:
#
#     slot_j = Σᵢ W_i x_{3j−2+i},  i = 0, 1, 2               inputs 3j − 2, 3j − 1 and 3j; those before the first are zeros
#
# Causal means that no slot may be seen before its last input is there: query t sees slot j if 3j ≤ t. The two zeros in front make
# slot 0 the first token alone, so that every query has something to look at, and the number of slots ⌈S/3⌉.

# %%
C = H * D
layer = CompressedAttention(C, H).double()
for parameter in layer.parameters():
    parameter.data = randn(*parameter.shape) * 0.5
x = randn(B, T, C)
with torch.no_grad():
    slots = layer.compress(x, layer.compress_key)                                       # (B, ⌈T/3⌉, C)
W = layer.compress_key.weight
by_hand = torch.zeros(B, 7, C, dtype=torch.float64)
for b, j, i, a, c in itertools.product(range(B), range(7), range(3), range(C), range(C)):
    if 3 * j - 2 + i >= 0:
        by_hand[b, j, a] += W[a, c, i].item() * x[b, 3 * j - 2 + i, c].item()
lesson.check("kernel 3, stride 3, number by number", slots, by_hand, atol=1e-12, source="A: memory-compressed attention, corrected")
lengths = [layer.compress(torch.zeros(1, S, C, dtype=torch.float64), layer.compress_key).size(1) for S in range(1, 31)]
by_counting = [S // 3 + (S % 3 > 0) for S in range(1, 31)]
lesson.check("S → ⌈S/3⌉ for S = 1 … 30", lengths, by_counting, atol=0, source="A: memory-compressed attention")
jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x[0]).abs().amax(dim=(1, 3))         # (T, C, T, C) -> (T, T)
lesson.check("still causal: ∂out_t/∂x_s = 0 for every s > t", jacobian.triu(1), torch.zeros(T, T), atol=0,
             source="A: memory-compressed attention")
dark = [(t, s) for t in range(T) for s in range(t) if jacobian[t, s] == 0]
print(f"    and 0 for some of the past: token 5 cannot see {[s for t, s in dark if t == 5]} (its next slot is not full yet)")
unfinished = [(t, s) for t in range(T) for s in range(t) if s > t // 3 * 3]
lesson.check("dark in the past: what no finished slot holds, and only that", sorted(dark), unfinished, atol=0, source="counted by hand")

# %% [markdown]
# That gap is why Liu et al. alternate: a local layer sees the last tokens exactly, a compressed one sees everything coarsely. Their
# model has five layers, L M L M L: `make_long_gpt(config, "LMLML")` is GPT with those in the place of its attention. Is it causal? Change the
# tokens after t, and nothing may change up to t.
#
# (The paper does not say what the first tokens see. Its authors' code has slots of inputs 3j to 3j + 2, and puts the first input in front
# of them uncompressed, for those before whom no slot is full; ours starts the convolution two zeros early, to the same end.)

# %%
form = GPTConfig.modern(vocab_size=19, context_length=40, n_layers=5, n_heads=2, d_model=16)
model = make_long_gpt(form, "LMLML", block=8, generator=lesson.generator).double()
text = torch.randint(19, (1, 40), generator=lesson.generator)
moved = 0.0
with torch.no_grad():
    for t in range(39):
        other = torch.cat([text[:, :t + 1], (text[:, t + 1:] + 1) % 19], dim=1)
        moved = max(moved, (model(other) - model(text))[:, :t + 1].abs().max().item())
lesson.check("LMLML: no later token moves an earlier logit", moved, 0.0, atol=1e-12, source="Liu et al. 2018, §4.2.4")

# %% [markdown]
# ## 4. Hashing: compare only with what is alike
# Softmax cares for large scores only, and a large score means a small angle between query and key. So: find, without comparing, the
# keys that lie near the query. Reformer (Kitaev et al. 2020) hashes. Draw a random hyperplane; its sign says on which side a vector
# lies. Two vectors at angle θ fall on different sides if the hyperplane passes between them, that is with probability θ/π:
#
#     P(same bucket) = 1 − θ/π                       one hyperplane, two buckets
#
# More buckets: draw n/2 random directions, and take the nearest among them and their opposites, h(x) = argmax [xR; −xR]. For n = 4
# there is a formula too. Direction 1 wins over ±direction 2 if u₁ − u₂ > 0 and u₁ + u₂ > 0, where u are the two projections; difference
# and sum of independent normals are independent, so these are two hyperplanes of their own, and both must agree: P = (1 − θ/π)².

# %%
n_draws = lesson.pick(full=40_000, quick=4_000)
shares = torch.linspace(0.0, 1.0, 11)                                                   # θ/π
pairs = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [math.cos(math.pi * a), math.sin(math.pi * a), 0.0, 0.0]] for a in shares.tolist()])
met = {}                                                                                # (11, 2, 4): pairs; n -> how often they met
for n in (2, 4, 16):
    buckets = lsh_buckets(pairs[None], random_rotations(n_draws, 4, n, lesson.generator))[0]    # (11, R, 2)
    met[n] = (buckets[..., 0] == buckets[..., 1]).float().mean(1)                       # (11,)
error = 5 * 0.5 / math.sqrt(n_draws)                                                    # five standard errors, at their largest
lesson.check("P(same bucket) = 1 − θ/π, two buckets", met[2], 1 - shares, atol=error, source="B: LSH; Goemans and Williamson 1995")
lesson.check("P(same bucket) = (1 − θ/π)², four buckets", met[4], (1 - shares) ** 2, atol=error, source="derived above")
falls = [bool((met[n].diff() < 0.01).all()) for n in met]
lesson.check("and falls with the angle, for 2, 4 and 16 buckets", falls, [True] * 3, atol=0, source="B: LSH")

fig, (left, right) = plotting.figure(10, 3.8, columns=2, sharey=True)
fine = torch.linspace(0, 1, 101)
left.plot(180 * fine, 1 - fine, label="2 buckets: 1 − θ/π")
left.plot(180 * fine, (1 - fine) ** 2, label="4 buckets: (1 − θ/π)²")
for n, marker in zip(met, "osD"):
    left.plot(180 * shares, met[n], marker, color="black", markersize=4, markerfacecolor="white", linestyle="none",
              label=f"{n} buckets, drawn")
for rounds in (1, 2, 4, 8):
    right.plot(180 * shares, 1 - (1 - met[16]) ** rounds, marker="o", markersize=3, label=f"{rounds} round" + "s" * (rounds > 1))
left.set(xlabel="angle θ (degrees)", ylabel="probability of sharing a bucket", title="The wider the angle, the rarer the meeting")
right.set(xlabel="angle θ (degrees)", title="16 buckets, at least once in R rounds: 1 − (1 − P)ᴿ")
left.legend()
right.legend()
lesson.figure(fig, "collisions")

# %% [markdown]
# Attention needs a query to find keys, so both must be hashed alike; Reformer makes them the same: kᵢ = qᵢ/‖qᵢ‖. A token is then
# nearest to itself, so it may look at itself only if it has no other. One round of LSH attention sorts the tokens by bucket, and within
# a bucket by position; cuts the order into chunks of m; and lets each token look at those of its own bucket, in its chunk or the one
# before, that lie in its past. Chunks all have the same size, whatever the buckets have, so it is one batch of small matrices.
#
# A near key may be missed, if a hyperplane passes between. So do R rounds, with other directions each, and put them together: round r
# found the set Pʳ, gave output oʳ, and had zʳ = log Σ_{j ∈ Pʳ} e^score as the log of its denominator. Then
#
#     o = Σᵣ e^{zʳ} oʳ / Σᵣ e^{zʳ}                   score − log N_j for a key met in N_j rounds, so that it counts once
#
# is one softmax over the union of the Pʳ. To check that, find the union with sorted Python lists, and attend to it by loops.
#
# (A caveat that Reformer shares: what is averaged lies in the past, but *where the chunks are cut* depends on all tokens, later ones too.
# A later token can so decide whether two earlier ones meet; with one chunk it cannot.)

# %%
R, m = 4, 5
buckets = lsh_buckets(q, random_rotations(R, D, 4, lesson.generator).double())          # (B, H, R, T)
worst = 0.0
for b, h in itertools.product(range(B), range(H)):
    union = set()
    for r in range(R):
        order = sorted(range(T), key=lambda t: (buckets[b, h, r, t].item(), t))
        union |= {(t, s) for i, t in enumerate(order) for j, s in enumerate(order)
                  if s < t and buckets[b, h, r, t] == buckets[b, h, r, s] and i // m - j // m in (0, 1)}
    lonely = set(range(T)) - {t for t, _ in union}
    expected = by_loops(q, F.normalize(q, dim=-1), v, lambda t, s: (t, s) in union or (s == t and t in lonely), scale=1.0)
    worst = max(worst, (lsh_attention(q, v, buckets, m) - expected)[b, h].abs().max().item())
lesson.check("R rounds = one softmax over the union of the keys met", worst, 0.0, atol=1e-12, source="Reformer, appendix A")
full = by_loops(q, F.normalize(q, dim=-1), v, lambda t, s: s < t or s == t == 0, scale=1.0)
lesson.check("all in one bucket and one chunk = full shared-QK attention", lsh_attention(q, v, torch.zeros_like(buckets), T), full,
             atol=1e-12, source="B: Reformer")

# %% [markdown]
# With rounds the union grows, and a key at angle θ is missed with probability (1 − P)ᴿ, which goes to 0 for all but the exact opposite,
# whose weight is the least of all. So LSH attention goes to full attention, here with two buckets and one chunk:

# %%
print("    rounds   error, largest entry")
for R in (1, 4, 16, 64, 128):
    approximate = lsh_attention(q, v, lsh_buckets(q, random_rotations(R, D, 2, lesson.generator).double()), T)
    print(f"    {R:6d}   {(approximate - full).abs().max():.4f}")
lesson.check("LSH → full attention as rounds grow: 128 of them", approximate, full, atol=0.02, source="B: Reformer")

# %% [markdown]
# What the four attentions look at, for 36 tokens. With v = the identity, A(q, K, I) *is* the matrix of weights; a compressed slot's
# weight is drawn over its three inputs.

# %%
n = 36
q36, k36, eye = randn(1, 1, n, 8), randn(1, 1, n, 8), torch.eye(n, dtype=torch.float64)[None, None]
slot_inputs = ((torch.arange(n)[None] + 2) // 3 == torch.arange(n // 3)[:, None]).double()[None, None]          # (1, 1, ⌈n/3⌉, n)
looks = {
    "full: T·T": attend(q36, k36, eye, causal=True),
    "local, b = 9: T·b": local_attention(q36, k36, eye, 9),
    "compressed: T·⌈T/3⌉": compressed_attention(q36, k36[:, :, ::3], slot_inputs),
    "LSH, 4 buckets, 2 rounds": lsh_attention(q36, eye, lsh_buckets(q36, random_rotations(2, 8, 4, lesson.generator).double()), 18),
}
fig, panels = plotting.figure(12, 3.4, columns=4)
for axes, (name, weights) in zip(panels, looks.items()):
    plotting.heatmap(axes, (weights[0, 0] > 0).double() * 0.8, high=1.0)
    axes.set(title=name, xlabel="key", ylabel="query" if axes is panels[0] else None, aspect="equal")
lesson.figure(fig, "who_looks_where")

# %% [markdown]
# ## 5. Layers that keep nothing
# Attention is not all that fills the memory: to go backwards, each layer keeps its activations, L times as much for L layers.
# Reformer's second idea makes them come back. Split the stream in two, x₁ and x₂ (both start as the embedding), and give attention F
# and feed-forward G to one each:
#
#     y₁ = x₁ + F(x₂)        y₂ = x₂ + G(y₁)                 forwards
#     x₂ = y₂ − G(y₁)        x₁ = y₁ − F(x₂)                 backwards: the input from the output
#
# So only the last layer's output is kept; the price is that F and G are computed twice. The gradients must be those that autograd finds
# when it keeps everything, and the bytes that it keeps are counted by a hook on every tensor saved. Weights are left out: they stay in
# any case.

# %%
kept = {}
for n_layers in (2, 4, 8):
    form = GPTConfig.modern(vocab_size=19, context_length=96, n_layers=n_layers, n_heads=2, d_model=16)
    model = make_long_gpt(form, "LM" * (n_layers // 2), block=16, reversible=True, generator=torch.Generator().manual_seed(lesson.seed)).double()
    text = torch.randint(19, (4, 96), generator=lesson.generator)
    gradients = {}
    for store in (False, True):
        model.blocks[0].store = store
        gradients[store] = torch.autograd.grad(cross_entropy(model(text[:, :-1]), text[:, 1:]), list(model.parameters()))
        kept[n_layers, store] = saved_bytes(lambda: model(text[:, :-1]), model.parameters()) / 1e6
    gap = max((a - b).abs().max().item() for a, b in zip(gradients[False], gradients[True]))
    lesson.check(f"reversible gradients = autograd's, {n_layers} layers", gap, 0.0, atol=1e-12, source="B: Reformer, reversible layers")
    print(f"    {n_layers} layers: {kept[n_layers, True]:.2f} MB of activations kept by autograd, "
          f"{kept[n_layers, False]:.2f} MB by reversible layers (weights not counted)")
lesson.claim("four times as many layers: autograd keeps more than three times the memory, reversible layers not a byte more",
             kept[8, True] > 3 * kept[2, True] and kept[8, False] == kept[2, False],
             f"from 2 to 8 layers: {kept[2, True]:.2f} → {kept[8, True]:.2f} MB against {kept[2, False]:.2f} → {kept[8, False]:.2f} MB")

# %% [markdown]
# ## 6. ALBERT: fewer weights, not fewer activations
# Another way to be small. ALBERT (Lan et al. 2020) is BERT with two changes. The embedding V × C, most of which is a look-up, becomes
# V × E times E × C, with E = 128. And all twelve layers are one, run twelve times. So, with P = 512 positions,
#
#     BERT      (V + P + 2)·C + 2C             + 12·(12C² + 13C) + C² + C
#     ALBERT    (V + P + 2)·E + 2E + E·C + C   +     12C² + 13C  + C² + C
#
# where a layer is 4(C² + C) of attention, 8C² + 5C of feed-forward and 4C of norms, and C² + C is the pooler.
#
# Erratum: course B says ALBERT is smaller "through pruning". Pruning takes weights out of a trained network; nothing is taken out here.
# ALBERT is made small before training, by factorising the embedding and sharing the layers. And sharing saves weights only:
# twelve layers are still computed, so time and activations stay BERT's.

# %%
PARTS = {"embeddings": ("token", "position", "segment", "embedding", "widen"), "layers": ("blocks",), "pooler": ("pooler",)}
counts = {}
for name, config in (("BERT base", BERTConfig.base()), ("ALBERT base", BERTConfig.albert_base())):
    with torch.device("meta"):                                                          # shapes without memory
        model = BERT(config)
    counts[name] = {part: sum(p.numel() for key, p in model.named_parameters() if key.startswith(words)) for part, words in PARTS.items()}
    in_parts = "".join(f"{part} {number:>12,}   " for part, number in counts[name].items())
    print(f"    {name:<12}{in_parts}together {sum(counts[name].values()):>12,}")
C, E, P = 768, 128, 512
one_layer, pooler = 12 * C * C + 13 * C, C * C + C
bert = (30_522 + P + 2) * C + 2 * C + 12 * one_layer + pooler
albert = (30_000 + P + 2) * E + 2 * E + E * C + C + one_layer + pooler
lesson.check("BERT base: 109,482,240", sum(counts["BERT base"].values()), bert, atol=0, source="B: 108M in Lan et al. 2020")
lesson.check("ALBERT base: 11,683,584", sum(counts["ALBERT base"].values()), albert, atol=0, source="B: 12M in Lan et al. 2020")

# %% [markdown]
# ## 7. What it costs
# One head of width 32, one sequence, forwards: CPU seconds of one thread, and the bytes that autograd keeps for the way back. "Full"
# writes its T × T weights to memory, as the equation does and as all did in 2018 and 2020. `attend`'s fused kernel (Dao et al. 2022)
# computes the same without writing them, which is also here: the one thing that these papers did not know. Straight lines on log-log
# axes are powers of n, and the slope is the exponent, fitted over the upper half. (In time it may pass 2, where the matrix outgrows the
# processor's cache.)

# %%
sizes = [2**i for i in lesson.pick(full=range(8, 14), quick=range(7, 11))]
convolution = torch.nn.Conv1d(32, 32, 3, 3, bias=False)


def compress(x):
    return convolution(F.pad(x[0].mT, (2, 0))).mT[None]                                 # (1, 1, n, 32) -> (1, 1, ⌈n/3⌉, 32)


def hashed(q, k, v, chunk=64):
    generator = torch.Generator().manual_seed(lesson.seed)                              # its own: how often this runs is up to the clock
    rotations = random_rotations(4, 32, max(2, 2 * q.size(2) // chunk), generator)      # Reformer: chunks of 2n/n_buckets
    return lsh_attention(q, v, lsh_buckets(q, rotations), chunk)


attentions = {
    "full": lambda q, k, v: attend(q, k, v, causal=True, fused=False),
    "full, fused kernel": lambda q, k, v: attend(q, k, v, causal=True),
    "compressed": lambda q, k, v: compressed_attention(q, compress(k), compress(v), fused=False),
    "local, b = 256": lambda q, k, v: local_attention(q, k, v, 256, fused=False),
    "LSH, 4 rounds": hashed,
}
seconds, megabytes = {name: [] for name in attentions}, {name: [] for name in attentions}
for n in sizes:
    q, k, v = (torch.randn(1, 1, n, 32, generator=lesson.generator) for _ in range(3))
    for name, attention in attentions.items():
        times = []
        with torch.no_grad():
            attention(q, k, v)                                                          # the first call is slower: memory is taken
            while len(times) < 3 or sum(times) < 0.02:
                start = time.process_time()
                attention(q, k, v)
                times.append(time.process_time() - start)
        seconds[name].append(min(times))
        tracked = [x.clone().requires_grad_() for x in (q, k, v)]
        megabytes[name].append(saved_bytes(lambda: attention(*tracked)) / 1e6)


def exponent(values):
    """The slope of log(values) against log(n), least squares over the upper half of the sizes."""
    x, y = torch.tensor(sizes).double().log()[len(sizes) // 2 - 1:], torch.tensor(values).double().log()[len(sizes) // 2 - 1:]
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


print(f"    at n = {sizes[-1]:,}          time    grows as    memory    grows as")
for name in attentions:
    print(f"    {name:<20} {1000 * seconds[name][-1]:6.0f} ms    n^{exponent(seconds[name]):.2f}   "
          f"{megabytes[name][-1]:6.1f} MB    n^{exponent(megabytes[name]):.2f}")
memory_power = {name: exponent(megabytes[name]) for name in attentions}
quadratic, linear = ("full", "compressed"), ("local, b = 256", "LSH, 4 rounds")
third = megabytes["compressed"][-1] / megabytes["full"][-1]
lesson.claim("memory: full and compressed grow as n², compressed a third of full; local and LSH grow as n",
             min(memory_power[name] for name in quadratic) > 1.85 and max(memory_power[name] for name in linear) < 1.1
             and 0.28 < third < 0.40,
             ", ".join(f"{name} n^{power:.2f}" for name, power in memory_power.items())
             + f"; compressed/full {third:.2f} at {sizes[-1]:,}", full_run=True)
time_power = {name: exponent(seconds[name]) for name in attentions}
ratio = seconds["full"][-1] / seconds["local, b = 256"][-1]
lesson.claim("time: full's exponent is more than 0.5 above local's and LSH's; at 8,192 local is more than 20 times faster than full",
             time_power["full"] > 0.5 + max(time_power[name] for name in linear) and ratio > 20,
             ", ".join(f"{name} n^{power:.2f}" for name, power in time_power.items()) + f"; full/local {ratio:.0f}", full_run=True)
fused, others = megabytes["full, fused kernel"][-1], [megabytes[name][-1] for name in attentions if name != "full, fused kernel"]
lesson.claim("full attention in the fused kernel keeps less than half of what any other row keeps", fused < 0.5 * min(others),
             f"{fused:.1f} MB against {min(others):.1f} MB and more", full_run=True)

fig, panels = plotting.figure(11, 4.4, columns=2)
for axes, values, unit, title in (
    (panels[0], seconds, "CPU seconds, forward", "Time"), (panels[1], megabytes, "MB kept for the way back", "Memory"),
):
    for (name, line), marker in zip(values.items(), "osD^v"):
        axes.loglog(sizes, line, marker=marker, markersize=4, label=f"{name}: n^{exponent(line):.2f}")
    axes.set(xlabel="tokens n", ylabel=unit, title=title)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.legend()
lesson.figure(fig, "costs")

# %% [markdown]
# At 8,192 tokens the fused kernel, though exact, keeps less than any other row and takes less time than hashing; only local attention is
# faster. What the three others were made to save, in 2018 and 2020, was memory, and today a kernel saves it without leaving anything out.
# What no kernel saves is the n² of its time.
#
# ## 8. Summarising what does not fit
# The documents are minutes of meetings, written by a grammar: much talk, and six decisions, each at a random place. The summary
# lists them, always in the same order. With everything read a summary costs 0 bits; with nothing read, each value costs log₂ of the
# number of values that there are.

# %%
DECISIONS = {"hero": "NAME", "pet": "PET", "animal": "ANIMAL", "thing": "ONE", "place": "PLACE", "weather": "WEATHER"}
TALK = Grammar({"talk": ["They [laughed|quarrelled|talked] about [birds|bread|dinner|football|ghosts|letters|money|music] again.",
                         "Nobody [heard|liked|saw] the [band|choir|mayor|sailor|teacher].",
                         "Somebody [called|fed|left] [early|first|late|twice].",
                         "The [clock|door|kettle|lamp|window] was [broken|loud|old|open]."]})
VALUES = {kind: list(POOLS[pool]) for kind, pool in DECISIONS.items()}
talk = [[word.strip() for word in tokens(sentence)] for sentence in TALK.sample_many(2000, seed=lesson.seed)]
decided = [*DECISIONS, *itertools.chain(*VALUES.values()), "Decided", ":", ".", "δ"]
tokenizer = WordTokenizer.train([*itertools.chain(*talk), *decided])
ASKED = 2 * len(DECISIONS)                                                              # the summary: a kind and its value, six times
unread = sum(math.log2(len(values)) for values in VALUES.values())
chance = sum(1 / len(values) for values in VALUES.values()) / len(VALUES)


def document(length, generator):
    """(m, δ, y) of `length` words, and the six places at which m decides."""
    value = {kind: values[int(torch.randint(len(values), (), generator=generator))] for kind, values in VALUES.items()}
    room = length - 1 - ASKED - 5 * len(value)
    lines, used = [], 0
    for i in torch.randint(len(talk), (room // 3,), generator=generator).tolist():
        if used + len(talk[i]) <= room:
            lines.append((None, talk[i]))
            used += len(talk[i])
    for kind in value:                                                                  # each decision goes in at a random place
        lines.insert(int(torch.randint(len(lines) + 1, (), generator=generator)), (kind, ["Decided", ":", kind, value[kind], "."]))
    words, places = ["."] * (room - used), {}                                           # a few full stops fill it up
    for kind, line in lines:
        if kind:
            places[kind] = len(words) + 3
        words += line
    return words + ["δ"] + [word for pair in value.items() for word in pair], [places[kind] for kind in value]


def documents(n, length, seed):
    """(n, length) word numbers and (n, 6) places."""
    generator = torch.Generator().manual_seed(seed)
    written = [document(length, generator) for _ in range(n)]
    tokens = torch.tensor([tokenizer.encode(words) for words, _ in written])
    return tokens, torch.tensor([places for _, places in written])


shown = document(96, torch.Generator().manual_seed(lesson.seed))[0]
minutes, summary = " ".join(shown).replace(" .", ".").replace(" :", ":").replace("Decided", "DECIDED").split(" δ")
print(textwrap.fill(minutes, 140, initial_indent="    ", subsequent_indent="    ") + "\n    δ" + summary)
print(f"    {tokenizer.vocab_size} words; a summary costs {unread:.1f} bits unread, 0 read; "
      f"a guess is right in {chance:.1%}")

# %% [markdown]
# A budget: the entries of the score matrices, all layers summed, for one head. For those papers it was a budget of memory; for full
# attention in the fused kernel it is one of time. Two compressed layers over LENGTH tokens set it. A compressed and a local one, two
# layers of Liu et al.'s five, need half. Two full layers must do with a context that has as many: the newest `window` tokens, since δ
# and the summary stand at the end. Decisions are anywhere, so whichever part is cut, its share of them is lost.

# %%
LENGTH, BLOCK = lesson.pick(full=1024, quick=128), 16
window = math.isqrt(score_entries("MM", LENGTH) // 2)
contexts = {"MM": LENGTH, "ML": LENGTH, "FF": window}
names = {"MM": "compressed", "ML": "compressed + local", "FF": f"full, newest {window}"}
for layers in contexts:
    print(f"    {names[layers]:<20} {score_entries(layers, contexts[layers], BLOCK):>8,} score entries over {contexts[layers]} tokens")

# %% [markdown]
# All learn alike: first short documents, where there is little to search, then longer ones. That is not for elegance: a model that starts
# on long ones sees each decision as one of hundreds of words, and does not find out within our minutes that it may be looked up.
# Rotary positions say how far, not where, so what is learned on short documents holds for long ones. (M stands before L here. In the other
# order, these two layers are still guessing when the short documents are over.)

# %%
stages = lesson.pick(full=[(48, 180, 32), (144, 60, 16), (432, 60, 6), (LENGTH, 70, 3)],        # length, steps, documents a step
                     quick=[(48, 4, 8), (64, 2, 4), (96, 2, 4), (LENGTH, 2, 4)])
training = [documents(steps * batch, length, seed=1_000 * lesson.seed + length)[0] for length, steps, batch in stages]
test, places = documents(lesson.pick(full=150, quick=20), LENGTH, seed=1_000 * lesson.seed + 999)


def summary_loss(model, batch):
    """Nats a word of the summary: −mean log p(y | m, δ)."""
    hidden = model.hidden(batch[:, -model.window:-1])                                   # (B, T, C)
    return cross_entropy(model.unembed(hidden[:, -ASKED:]), batch[:, -ASKED:])


@torch.no_grad()
def judge(model, test):
    """(N, 6) which values are right, and (N, 6) the bits that each decision costs in the summary."""
    logprobs = model.unembed(model.hidden(test[:, -model.window:-1])[:, -ASKED:]).log_softmax(-1)       # (N, 12, V)
    bits = -logprobs.gather(-1, test[:, -ASKED:, None])[..., 0] / math.log(2)                           # (N, 12)
    return (logprobs.argmax(-1) == test[:, -ASKED:])[:, 1::2], bits.unflatten(1, (-1, 2)).sum(-1)       # a kind and its value, six times


def train_on_documents(layers, window, n_stages=4, **options):
    """A GPT with these layers that reads the newest `window` tokens, trained on the first stages."""
    config = GPTConfig.modern(tokenizer.vocab_size, stages[n_stages - 1][0],
                              n_layers=len(layers), n_heads=2, d_model=64)
    model = make_long_gpt(config, layers, BLOCK, generator=torch.Generator().manual_seed(lesson.seed), **options).to(lesson.device)
    model.window = window
    if "H" in layers:                                                                   # part 9: trained without hashing
        for block in model.blocks:
            block.attention.full = True
    plan = iter([stage for stage in range(n_stages) for _ in range(stages[stage][1])])

    def next_batch(generator):
        stage = next(plan)
        rows = torch.randint(len(training[stage]), (stages[stage][2],), generator=generator)
        return training[stage][rows].to(lesson.device)

    n_steps = sum(steps for _, steps, _ in stages[:n_stages])
    config = TrainingConfig(max_steps=n_steps, learning_rate=4e-3, weight_decay=0.0, optimizer="muon",
                            evaluate_every=max(1, n_steps // 6), seed=lesson.seed)
    losses = [f"{row['train_loss']:.2f}" for row in train(model, next_batch, summary_loss, config)[1:]]
    print(f"    {layers}, {count_parameters(model):,} parameters: loss {' → '.join(losses)} nats a word", flush=True)
    return model


results = {}
for layers, context in contexts.items():
    model = train_on_documents(layers, context)
    results[layers] = tuple(table.cpu() for table in judge(model, test.to(lesson.device)))

# %%
inside = places >= LENGTH - window                                                      # what the full model still holds
print(f"\n    of the decisions, {inside.float().mean():.0%} lie in the newest {window} words\n")
print(f"    {'':<22}{'bits a summary':>16}{'in the newest':>16}{'before them':>14}")
right = {}
for layers, (correct, bits) in results.items():
    right[layers] = correct[inside].float().mean().item(), correct[~inside].float().mean().item()
    print(f"    {names[layers]:<22}{bits.sum(1).mean():>16.1f}{right[layers][0]:>16.1%}{right[layers][1]:>14.1%}")
of_cut = results["FF"][1][~inside].sum().item() / len(test)
honest = (~inside).float().mean(0) @ torch.tensor([math.log2(len(values)) for values in VALUES.values()])
print(f"    of its bits, full attention pays {of_cut:.1f} for what it cannot see; honest guessing would pay {honest:.1f}")
for layers in ("MM", "ML"):
    lesson.claim(f"{names[layers]} attention reports ≥ 80 % of the decisions that lie before the newest {window} words",
                 right[layers][1] >= 0.8, f"{right[layers][1]:.1%}, with {score_entries(layers, LENGTH, BLOCK):,} score entries",
                 full_run=True)
lesson.claim("full attention with as many score entries cannot hold them, and guesses: below 15 %, though ≥ 80 % of what it holds",
             right["FF"][1] < 0.15 and right["FF"][0] >= 0.8,
             f"{right['FF'][1]:.1%} (a blind guess {chance:.1%}), {right['FF'][0]:.1%} of what it holds, "
             f"with {score_entries('FF', window):,} score entries", full_run=True)

fig, axes = plotting.figure(8, 4)
edges = torch.linspace(0, LENGTH - 1 - ASKED, 9)
middle = (edges[1:] + edges[:-1]) / 2
for (layers, (correct, _)), marker in zip(results.items(), "osD"):
    share = [correct[(places >= low) & (places < high)].float().mean().item() for low, high in zip(edges, edges[1:])]
    entries = score_entries(layers, contexts[layers], BLOCK)
    axes.plot(middle, share, marker=marker, markersize=4, label=f"{names[layers]}: {entries:,} scores")
axes.axhline(chance, color="black", linestyle=":", linewidth=1, label=f"a blind guess, {chance:.1%}")
axes.axvspan(0, LENGTH - window, color="black", alpha=0.07)
axes.text((LENGTH - window) / 2, 0.5, "cut off for\nfull attention", ha="center", va="center")
axes.set(xlabel="where in the document it was decided (word)", ylabel="share reported right", ylim=(-0.03, 1.05),
         title=f"Summaries of {LENGTH}-word documents")
axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1))
lesson.figure(fig, "summaries")

# %% [markdown]
# Nearly all the bits that the full model pays are for decisions that it cannot see, and they are more than an honest guess would cost,
# log₂ of the number of values each: where it finds nothing, it still favours some values. (In the first three stages of its training
# everything was in sight, and nothing had to be guessed.)
#
# ## 9. How many rounds does a real model need?
# In part 4 queries were random. Real ones are not: a trained model asks for something. So train one with full shared-QK attention
# (letter H, hashing switched off) on the same documents, then switch the hashing on, nothing else changed.

# %%
n_buckets = lesson.pick(full=14, quick=6)                                               # chunks of 2·432/14 → 62 tokens
model = train_on_documents("HH", stages[2][0], n_stages=3, n_buckets=n_buckets, n_rounds=1)
test, places = documents(lesson.pick(full=24, quick=10), stages[2][0], seed=1_000 * lesson.seed + 998)
test = test.to(lesson.device)
activations = []                                                                        # of each attention: itself, its input, its output


def record(layer, given, output):
    activations.append((layer, given[0], output))


hooks = [block.attention.register_forward_hook(record) for block in model.blocks]
correct, bits = judge(model, test)
full_share, full_bits = correct.float().mean().item(), bits.sum(1).mean().item()
for hook in hooks:
    hook.remove()
tables = (model.cos[:test.size(1) - 1], model.sin[:test.size(1) - 1])

ROUNDS = [1, 2, 4, 8]
errors, shares_right = [], []
for R in ROUNDS:
    for block in model.blocks:
        block.attention.full = False
        block.attention.rotations = random_rotations(R, 32, n_buckets, lesson.generator).to(lesson.device)
    with torch.no_grad():
        errors.append([((layer(x, rotary=tables) - y).norm() / y.norm()).item() for layer, x, y in activations])
    correct, bits = judge(model, test)
    shares_right.append(correct.float().mean().item())
    print(f"    {R:2d} rounds: error of the attention's output {errors[-1][0]:.1%} (layer 1), {errors[-1][1]:.1%} (layer 2); "
          f"{shares_right[-1]:.1%} reported right, {bits.sum(1).mean():.1f} bits a summary")
print(f"    full:      {full_share:.1%} reported right, {full_bits:.1f} bits a summary")
one, eight = (sum(errors[ROUNDS.index(R)]) / 2 for R in (1, 8))
lesson.claim("8 rounds bring a trained model's attention to an error below 20 %, and less than half as far off as 1 round",
             eight < 0.2 and eight < one / 2, f"‖LSH − full‖/‖full‖, mean of two layers: {eight:.1%} with 8 rounds, {one:.1%} with 1; "
             f"reported right {shares_right[-1]:.1%} and {shares_right[0]:.1%}, full {full_share:.1%}", full_run=True)

fig, (left, right) = plotting.figure(10, 3.8, columns=2)
for i, marker in enumerate("os"):
    left.semilogx(ROUNDS, [error[i] for error in errors], marker=marker, markersize=4, label=f"layer {i + 1}")
left.set(xlabel="rounds of hashing R", ylabel="‖LSH − full‖ / ‖full‖", ylim=(0, None), title="The output of attention, real activations")
left.legend()
right.semilogx(ROUNDS, shares_right, marker="o", markersize=4, label="hashed")
right.axhline(full_share, color="black", linestyle=":", label="full shared-QK attention, as trained")
right.set(xlabel="rounds of hashing R", ylabel="share of decisions reported right", ylim=(-0.03, 1.05),
          title="What it means for the summaries")
right.legend(loc="lower right")
for axes in (left, right):
    axes.set_xticks(ROUNDS, ROUNDS)
    axes.minorticks_off()
lesson.figure(fig, "rounds")

# %%
lesson.end()
