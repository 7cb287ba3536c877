"""Lesson 08: T5, an encoder–decoder that treats every task as text in, text out.

You will see    span corruption, which removes spans of a text and asks for them; T5 written out on
                bare matrices; its loss, which is GPT's loss given a source; its sizes, 60M to 11B;
                one small model that restores spans, translates into two languages, summarises and
                classifies.
Source          course C, "Popular Transformer-based LMs"; course D, "T5" and "TRAINING"; Raffel et
                al. 2020, fig. 2, §2.1, §2.4, §3.1, §3.3.3, §3.3.4; T5's code for the details.
Expect          about 130 s of one core (quick: 8 s); every check passes; 70 to 77 % of the held-out
                spans restored (three seeds), where a guess restores 17 to 20 %, and 89 to 95 % of
                those that the rest of the text determines; then, with all tasks together, 95 to 100
                % of the translations exactly right, and 100 % of the summaries and moods.
Not here        version 1.1 by hand; the benefit of pre-training for a task with few examples
                (lesson 12).

Shapes: B batch, S source, T target, C = d_model, H heads, D width of one head, V vocabulary.
"""
# %%
import itertools
import math
from collections import Counter, defaultdict
from fractions import Fraction

import torch

from course import Lesson
from minigpt import plotting
from minigpt.generation import generate
from minigpt.models.counting import count_parameters
from minigpt.models.positions import relative_buckets
from minigpt.models.t5 import START, T5, T5Config, decoder_inputs
from minigpt.text.padding import pad
from minigpt.text.spans import (
    corrupt_spans,
    expected_lengths,
    restore,
    span_counts,
    span_mask,
    split_at_sentinels,
)
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy, next_token_loss
from minigpt.training.optimizers import Muon, make_adamw
from minigpt.worlds.grammar import Grammar, alike, tokens
from minigpt.worlds.translation import sample_pair, written

lesson = Lesson("08_t5", threads=1)
PAD, END = 0, 1

# %% [markdown]
# ## 1. Span corruption: remove spans, and ask for them
# GPT (lesson 06) is a decoder, BERT (lesson 07) an encoder. T5 (Text-to-Text Transfer Transformer)
# has both: the encoder reads a text, the decoder writes another. It is the third family of language
# models in courses C and D.
#
# BERT masks single tokens and predicts each at its own position. T5 removes whole spans of tokens.
# In the input, each span is replaced by one special token, a *sentinel*: [x] for the first span,
# [y] for the second, [z] for the third. The target, which the decoder has to write, has each
# removed span after its sentinel. One more sentinel closes it. The end token </s> follows in both.
# First the example of the paper (Raffel et al. 2020, fig. 2). Sentinels have the last ids of the
# vocabulary: [x] is V − 1, [y] is V − 2, [z] is V − 3.
#
# Items: C34, D01

# %%
def corrupt_words(sentence, removed):
    """A sentence -> its input and target as text; the words in `removed` are removed."""
    words = sentence.split()
    first, last = ["<pad>", "</s>"], ["[z]", "[y]", "[x]"]
    words_and_marks = WordTokenizer([*first, *words, *last], special_tokens=[*first, *last])
    mask = [word in removed.split() for word in words]
    pair = corrupt_spans(words_and_marks.encode(words), mask, words_and_marks.vocab_size, END)
    return [words_and_marks.decode(side) for side in pair]


got = corrupt_words("Thank you for inviting me to your party last week .", "for inviting last")
print(f"  input    {got[0]}\n  target   {got[1]}")
figure_2 = ["Thank you [x] me to your party [y] week . </s>", "[x] for inviting [y] last [z] </s>"]
lesson.check("input and target are those of the paper's figure 2", got, figure_2, atol=0,
             source="D: TRAINING; Raffel et al. 2020, fig. 2", items=("D21",))

# %% [markdown]
# Course D ("TRAINING") has an example of its own, with the sentence "One ring to bring all in the
# darkness bind them". Its input is
#
#     One ring to [x] in the [y] bind them
#
# Erratum: the course writes the target as "[x] rule them [y] darkness". "rule them" is not in the
# sentence, and the closing sentinel is missing. The removed words are "bring all" and "darkness":
#
#     [x] bring all [y] darkness [z]
#
# More errata: the task is called span *corruption* (the course has "Span creation task") and is a
# variant of MLM ("MLP"). The input is what the encoder reads, and the target is what the decoder
# has to predict (in the course, both are given to the model and the sentence is predicted).

# %%
got = corrupt_words("One ring to bring all in the darkness bind them", "bring all darkness")
print(f"  input    {got[0]}\n  target   {got[1]}")
by_hand = ["One ring to [x] in the [y] bind them </s>", "[x] bring all [y] darkness [z] </s>"]
lesson.check("course D's sentence, with the corrected target", got, by_hand, atol=0,
             source="D: TRAINING", items=("D22",))

# %% [markdown]
# (T5's released code writes no closing sentinel. In its target, each kept run becomes a sentinel,
# and its masks always remove the end of a text, so no kept run comes last. The figure has one, as
# here.)
#
# Input and target together contain the whole text. So the text can be restored from them, whatever
# the text is and whatever is removed. We try 3,000 texts. Some have one token, some contain padding
# and </s> only, and for some each token is removed with probability 0.4.

# %%
restored = 0
for n in torch.randint(1, 90, (3000,), generator=lesson.generator).tolist():
    n = n if n > 20 else 1 + n // 5
    text = torch.randint(2 if n % 7 == 0 else 900, (n,), generator=lesson.generator).tolist()
    if n % 2:
        mask = span_mask(n, lesson.generator)
    else:
        mask = (torch.rand(n, generator=lesson.generator) < 0.4).tolist()
    restored += restore(*corrupt_spans(text, mask, 1000, END), 1000, END) == text
lesson.check("input and target, put together = the text, 3,000 times", restored, 3000, atol=0,
             source="D: TRAINING; Raffel et al. 2020, fig. 2", items=("D21",))

# %% [markdown]
# ## 2. How many tokens are removed, and which
# Of n tokens, 15 % are removed, in spans of 3 tokens on average. Both numbers are fixed by n:
#
#     removed tokens k = round(0.15·n)            spans = round(k/3)              at least 1 of each
#
# Raffel et al. also tried 10, 25 and 50 % (§3.3.3, table 6), and found little difference except
# that 50 % was worse. They kept 15 %. (Course D says the same; its "coerenza del 15%" is
# *corruzione*.) They tried mean lengths from 2 to 10, and took 3 (§3.3.4).
#
# Which tokens? Divide the k removed tokens into as many pieces as there are spans, and the kept
# tokens into the same number of pieces. Each way to divide is equally likely. Then alternate: a
# kept piece, a removed piece, and so on. Below we count with exact fractions. (A half is rounded to
# the even neighbour, as in T5's code.)
#
# Items: D23

# %%
def runs(mask):
    """[(removed or not, length)] of the runs of a mask."""
    return [(removed, len(list(run))) for removed, run in itertools.groupby(mask)]


SIZES = range(2, 700)
noise = [min(max(round(Fraction(15, 100) * n), 1), n - 1) for n in SIZES]
by_fractions = [(k, max(1, round(Fraction(k, 3)))) for k in noise]
lesson.check("removed tokens and spans, for every n from 2 to 699", [span_counts(n) for n in SIZES],
             by_fractions, atol=0, source="D: TRAINING (15 %); Raffel et al. 2020, §3.3.3, §3.3.4",
             items=("D21",))
spans = [length for _ in range(40)
         for removed, length in runs(span_mask(568, lesson.generator)) if removed]
lesson.check("removed share = 15 %, up to rounding 568 tokens", sum(spans) / (40 * 568), 0.15,
             atol=0.5 / 568, source="D: TRAINING; Raffel et al. 2020, §3.3.3", items=("D21",))
lesson.check("mean length of a span = 3", sum(spans) / len(spans), 3, atol=0.05,
             source="Raffel et al. 2020, §3.3.4")
print(f"      one span has from {min(spans)} to {max(spans)} tokens")

made = [corrupt_spans([7] * n, span_mask(n, lesson.generator), 1000, END) for n in SIZES]
counted = [(len(source), len(target)) for source, target in made]
lesson.check("lengths of input and target, from n alone", [expected_lengths(n) for n in SIZES],
             counted, atol=0, source="T5's code, random_spans_helper")
fits = max(n for n in SIZES if expected_lengths(n)[0] <= 512)
published = [568, 512, 114 + 1]                         # + 1: the closing sentinel
lesson.check("568 tokens fill an input of 512", [fits, *expected_lengths(fits)], published, atol=0,
             source="T5's code, random_spans_helper")

# %% [markdown]
# Are all masks equally likely? Take a text of 35 tokens. It loses 5 tokens in 2 spans. A mask is
# then four lengths: a kept, b removed, 30 − a kept, 5 − b removed, with a from 1 to 29 and b from 1
# to 4. These are 29 · 4 = 116 masks. We list them and compare with the frequencies of `span_mask`.
#
# The paper does not mention one consequence. The first token is never removed, and the last one
# always is. A text of up to 30 tokens has one span, so it is always its end. Short texts are
# therefore not corrupted at random. The texts of this lesson have 35 tokens.

# %%
listed = sorted((a, b, 30 - a, 5 - b) for a in range(1, 30) for b in range(1, 5))
drawn = [span_mask(35, lesson.generator) for _ in range(11_600)]
seen = Counter(tuple(length for _, length in runs(mask)) for mask in drawn)
lesson.check("the masks drawn = the list of all masks", sorted(seen), listed, atol=0,
             source="T5's code, random_spans_noise_mask")
frequencies = [seen[mask] / 11_600 for mask in listed]
error = math.sqrt(1 / 116 / 11_600)                     # the standard error of a frequency
lesson.check("each of the 116 masks has frequency 1/116 (5 standard errors)", frequencies,
             [1 / 116] * 116, atol=5 * error, source="T5's code, random_spans_noise_mask")
kinds = [len({tuple(span_mask(n, lesson.generator)) for _ in range(20)}) for n in range(2, 31)]
lesson.check("up to 30 tokens there is only one mask", kinds, [1] * 29, atol=0,
             source="T5's code, random_spans_noise_mask")

fig, (top, bottom) = plotting.figure(8, 4.6, rows=2, sharex=True, height_ratios=[1, 1.2])
top.imshow(torch.tensor(drawn[:12]), cmap="Greys", aspect="auto", interpolation="nearest", vmin=0,
           vmax=1.2)
top.hlines([i + 0.5 for i in range(11)], -0.5, 34.5, color="white", linestyle="-", linewidth=3)
top.grid(False)
top.set(ylabel="twelve masks", yticks=[], title="Span corruption of 35 tokens: 5 removed, 2 spans")
bottom.bar(range(35), torch.tensor(drawn).double().mean(0), color=plotting.COLOURS[4],
           label="11,600 masks drawn")
exact = [sum(a <= i < a + b or i >= 35 - last for a, b, _, last in listed) / 116 for i in range(35)]
bottom.plot(range(35), exact, "k.", label="the 116 masks listed")
bottom.set(xlabel="position in the text (tokens)", ylabel="share of masks\nthat remove it")
bottom.legend(loc="upper center")
lesson.figure(fig, "masks")

# %% [markdown]
# ## 3. The network, by hand
# T5 is the transformer of 2017 as a whole (lesson 05): an encoder with self-attention in both
# directions; a decoder with causal self-attention; cross-attention from the decoder to the
# encoder's output; a feed-forward network with a ReLU in each block. Three things are different:
#
#     2017                                        T5 (Raffel et al. 2020, §2.1)
#     layer norm, after each sum                  x / √(mean(x²) + ε) · g, before each sub-layer
#     positions added to the embeddings           q_t·k_s + b[bucket(s − t)] in self-attention
#     scores divided by √D                        not divided; logits divided by √C
#
# In the norm, g is a vector of gains, and ε = 10⁻⁶. No mean is subtracted, and no layer has a bias.
# q_t is the query of position t, k_s the key of position s, and b a table with one number per
# bucket and head; all layers of a stack share it. Buckets and scale are explained below. Here is
# the network on bare matrices, one head at a time. `minigpt/models/t5.py` must give the same.
#
# Items: C33

# %%
def normalise(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def attend(layer, x, memory, bias, causal=False):
    """x (T, C), memory (S, C), a function bias(head) -> (T, S); returns (T, C)."""
    heads, D = [], 5
    for h in range(2):
        rows = slice(h * D, (h + 1) * D)
        q = x @ layer.query.weight[rows].T                              # (T, D)
        k, v = (memory @ W.weight[rows].T for W in (layer.key, layer.value))            # (S, D)
        scores = q @ k.T + bias(h)                                      # (T, S)
        for t in range(len(scores) if causal else 0):
            scores[t, t + 1:] = -torch.inf
        heads.append(scores.softmax(-1) @ v)                            # (T, D)
    return torch.cat(heads, -1) @ layer.out.weight.T


def feed_forward(layer, x):
    return (x @ layer.inner.weight.T).clamp(min=0) @ layer.out.weight.T


def t5_by_hand(model, source, target):
    """(S,), (T,) -> logits (T, V). For up to 8 tokens a bucket is a distance (16 + it if s > t)."""
    def bias(stack, n):
        buckets = [[t - s if s <= t else 16 + s - t for s in range(n)] for t in range(n)]
        return lambda h: stack.relative_embedding.weight[torch.tensor(buckets), h]      # (T, S)

    W_e = model.token_embedding.weight
    x, y = W_e[source], W_e[target]                                     # (S, C), (T, C)
    for block in model.encoder.blocks:
        n = normalise(x, block.norm1)
        x = x + attend(block.attention, n, n, bias(model.encoder, len(x)))
        x = x + feed_forward(block.feed_forward, normalise(x, block.norm2))
    memory = normalise(x, model.encoder.final_norm)
    for block in model.decoder.blocks:
        n = normalise(y, block.norm1)
        y = y + attend(block.attention, n, n, bias(model.decoder, len(y)), causal=True)
        y = y + attend(block.cross_attention, normalise(y, block.norm2), memory, lambda h: 0)
        y = y + feed_forward(block.feed_forward, normalise(y, block.norm3))
    return normalise(y, model.decoder.final_norm) @ W_e.T / math.sqrt(W_e.size(1))


tiny = T5(T5Config(vocab_size=3, n_layers=2, n_heads=2, d_model=8, d_ff=10, d_head=5)).double()
for parameter in tiny.parameters():
    mean = 0.0 if parameter.dim() == 2 else 1.0
    torch.nn.init.normal_(parameter, mean=mean, std=0.6, generator=lesson.generator)
source, answer = (torch.randint(3, (1, n), generator=lesson.generator) for n in (8, 4))
with torch.no_grad():
    by_hand = t5_by_hand(tiny, source[0], answer[0])
    lesson.check("T5 = its equations on bare matrices", tiny(source, answer)[0], by_hand,
                 atol=1e-12, source="Raffel et al. 2020, §2.1")

# %% [markdown]
# **Buckets.** The table b would need one entry per distance, so far distances share entries. Let n
# be the distance between query and key, m the number of buckets that hold one distance each, and w
# the number of buckets that hold several. 128 is the distance from which all share the last bucket:
#
#     bucket(n) = n                                               if n < m
#     bucket(n) = m + min( w − 1, ⌊ w·log(n/m) / log(128/m) ⌋ )   if n ≥ m
#
# So buckets m, m + 1, … divide log(n) between m and 128 into w equal parts. A decoder looks back
# only: it has m = w = 16, which makes 32 buckets. An encoder looks both ways. It has m = w = 8 for
# keys at or before the query, and the same, plus 16, for keys after it.
#
# Logarithms are rounded, so our second computation uses integers. For an integer j ≥ 0,
#
#     ⌊ w·log(n/m) / log(128/m) ⌋ ≥ j     ⇔     w·log(n/m) ≥ j·log(128/m)
#                                         ⇔     (n/m)^w ≥ (128/m)^j
#                                         ⇔     n^w·m^j ≥ m^w·128^j

# %%
def bucket(offset, both_ways):
    """The bucket of offset = s − t, by integers."""
    if both_ways:
        first, n, m = 16 * (offset > 0), abs(offset), 8
    else:
        first, n, m = 0, max(-offset, 0), 16
    w = m
    if n < m:
        return first + n
    return first + m + max(j for j in range(w) if n**w * m**j >= m**w * 128**j)


for both_ways, stack in ((True, "encoder"), (False, "decoder")):
    table, queries = relative_buckets(200, 200, both_ways), [0, 60, 199]
    by_rule = [[bucket(s - t, both_ways) for s in range(200)] for t in queries]
    lesson.check(f"{stack}'s buckets = the published rule in integers", table[queries], by_rule,
                 atol=0, source="Raffel et al. 2020, §2.1; T5's code, _relative_position_bucket")
print("      encoder, distance of an earlier key → bucket: " + ", ".join(
    f"{n} → {bucket(-n, True)}" for n in (0, 1, 7, 8, 11, 12, 16, 32, 64, 127, 500)))

# %% [markdown]
# **Scale.** A score is q·k = Σⱼ qⱼkⱼ, with D terms. Let the inputs x have variance 1. If W_k is
# drawn with variance 1/C, then kⱼ, a sum of C terms x_c W_k[c, j], has variance C·(1/C) = 1. T5
# draws W_q with variance 1/(C·D), so qⱼ has variance 1/D. The D terms of the score then have
# variance 1/D each, and the score has variance 1. No division by √D is needed.

# %%
config = T5Config(10, n_layers=1, n_heads=8, d_model=128, d_ff=8, d_head=32)
layer = T5(config, lesson.generator).encoder.blocks[0].attention
with torch.no_grad():
    x = torch.randn(300, 128, generator=lesson.generator)
    q, k = (f(x).unflatten(-1, (8, 32)).transpose(0, 1)                 # (300, 256) -> (8, 300, 32)
            for f in (layer.query, layer.key))
lesson.check("Var(q·k) = 1 at the start, without 1/√D", (q @ k.mT).var(), 1.0, atol=0.15,
             source="the sum above; T5's code (initial weights)")

# %% [markdown]
# **Sizes.** An attention has four matrices of C × H·D, a feed-forward network two of C × d_ff, and
# each sub-layer C gains. Let L be the number of blocks of each stack. A block of the encoder has
# one attention and two sub-layers, a block of the decoder two attentions and three sub-layers:
#
#     V·C + L·( 3·4·C·H·D + 2·2·C·d_ff + 5·C ) + 2·( 32·H + C )
#
# The last term has the two tables b and the two last norms. The sizes C, d_ff, H, D and L are those
# of Raffel et al. 2020, §3.1.1 (base) and §3.7 (the others). V = 32,128 is from the code. The
# published "770M" of the large model is rounded: we count 738M.

# %%
for name, published, C, d_ff, H, D, L in (
    ("small", "60M", 512, 2048, 8, 64, 6), ("base", "220M", 768, 3072, 12, 64, 12),
    ("large", "770M", 1024, 4096, 16, 64, 24), ("xl", "3B", 1024, 16_384, 32, 128, 24),
    ("xxl", "11B", 1024, 65_536, 128, 128, 24),
):
    per_block = 3 * 4 * C * H * D + 2 * 2 * C * d_ff + 5 * C
    by_arithmetic = 32_128 * C + L * per_block + 2 * (32 * H + C)
    with torch.device("meta"):                          # shapes without memory
        counted = count_parameters(T5(getattr(T5Config, name)()))
    lesson.check(f"T5 {published} has {counted:,} parameters", counted, by_arithmetic, atol=0,
                 source="D: Parametri T5 per l'inglese; Raffel et al. 2020, §3.1.1, §3.7",
                 items=("D17",))

# %% [markdown]
# ## 4. The loss is GPT's
# Let x be the source and y₁ … y_T the target. The decoder reads START, y₁, …, y_{T−1}, and at each
# position it has to predict the next target token. It reads the true tokens, and not its own
# predictions: this is called teacher forcing.
#
#     L = −(1/T) Σ_t log P(y_t | y_<t, x)
#
# This is GPT's loss (lesson 06), with the source x as an additional condition, as course D says. So
# `decoder_for(x)` is a language model, which the library's GPT loss and `generate` accept. The
# oracle is the network by hand: it gets each prefix separately, so it cannot use later tokens.
#
# Items: D19

# %%
with torch.no_grad():
    teacher_forced = cross_entropy(tiny(source, decoder_inputs(answer)), answer)
    begun = torch.cat([torch.full((1, 1), START), answer], dim=1)       # (1, T + 1)
    by_prefixes = 0.0
    for t in range(4):
        scores = t5_by_hand(tiny, source[0], begun[0, :t + 1])[-1].tolist()     # (V,)
        p = math.exp(scores[answer[0, t]]) / sum(map(math.exp, scores))
        by_prefixes -= math.log(p) / 4
    lesson.check("teacher forcing = the network by hand, prefix by prefix", teacher_forced,
                 by_prefixes, atol=1e-12, source="D: TRAINING; Raffel et al. 2020, §2.1")
    gpt_loss = next_token_loss(tiny.decoder_for(source), begun)
    lesson.check("consistency: teacher forcing = the library's GPT loss", teacher_forced, gpt_loss,
                 atol=1e-12, source="D: TRAINING; A: GPT 1")

# %% [markdown]
# ## 5. Texts whose answers are known
# A small grammar writes tales of 35 tokens. The place and the animal of a tale are named twice. The
# weather determines the word for the knees, the hands or the feet, and the animal determines the
# verb of its movement. After each tale the grammar writes a summary and a mood (happy or sad). The
# tale determines both, so their conditional entropy is 0 bits, which the grammar itself computes.
# For translation, sentences of up to 6 words come from the grammar of lesson 04, where the English
# determines the Spanish and the Italian.

# %%
SHE, HE = {"he": "she", "his": "her"}, {"he": "he", "his": "his"}
MOVES = ("cat crept, dog bounded, duck waddled, fox trotted, frog hopped, hen fluttered, "
         "mouse scurried, pony galloped")
WET = ("cold frozen, dusty grey, foggy damp, hot sweaty, muddy brown, rainy soaked, snowy white")
POOLS = {
    "NAME": (alike("Ada Clara Emma Flora Iris Lucy Nora Rosa", **SHE)
             | alike("Adam Bruno Diego Felix Hugo Leo Oscar Tom", **HE)),
    "LOOK": alike("big black blue green new red shiny tiny"),
    "THING": alike("ball book drum hat kite lamp ring scarf"),
    "PLACE": alike("beach castle forest garden lake market park river"),
    "ANIMAL": {animal: {"ran": ran} for animal, ran in map(str.split, MOVES.split(", "))},
    "WEATHER": {weather: {"wet": wet} for weather, wet in map(str.split, WET.split(", "))},
}
TALES = Grammar({
    "line": "One {weather=WEATHER} [morning|evening|Monday|Friday] {hero=NAME} lost a {look=LOOK} "
            "{thing=THING} near the {place=PLACE}. A [brave|clever|lazy|shy] {animal=ANIMAL} "
            "{animal.ran} through the {place} and <end>",
    "end": ["found it. <after> <found>", "got lost. <after> <lost>"],
    "after": "{hero.His} [hands|feet|knees] were {weather.wet}, and {hero.he}",
    "found": ["<glad> at the {animal}. <good> = happy", "<sorry> at the {animal}. <good> = sad"],
    "lost": ["<glad> at the {animal}. <bad> = happy", "<sorry> at the {animal}. <bad> = sad"],
    "good": "= The {animal} found {hero}'s {look} {thing}.",
    "bad": "= {hero} lost a {thing} and the {animal}.",
    "glad": "[smiled|danced|sang]",
    "sorry": "[frowned|moaned|sobbed]",
}, POOLS)
WIDTH = 35                                              # tokens of a tale


def short_pairs(language, n):
    """[(English, translation)], n sentences of 4 to 6 words; the same English for any language."""
    generator, pairs = torch.Generator().manual_seed(lesson.seed), {}
    while len(pairs) < n:
        pair = sample_pair(language, generator)
        if len(pair.source) <= 6:
            pairs[written(pair.source)] = written(pair.target)
    return list(pairs.items())


stories, fresh = ([line.split(" = ") for line in TALES.sample_many(n, seed)] for n, seed in (
    (lesson.pick(full=5000, quick=400), 2 * lesson.seed), (400, 2 * lesson.seed + 1)))
fresh = [line for line in fresh if line not in stories]
spanish, italian = (short_pairs(language, lesson.pick(full=4200, quick=500))
                    for language in ("spanish", "italian"))
print("\n  " + "\n  ".join([*fresh[0], *spanish[0], italian[0][1]]))
print(f"\n  {TALES.count():.1g} different tales; entropy {TALES.entropy():.1f} bits")
after = [sum(bits for _, bits in TALES.surprisals(" = ".join(line))[WIDTH:]) for line in fresh[:50]]
lesson.check("summary and mood have 0 bits, given the tale", after, [0.0] * 50, atol=1e-12,
             source="lesson 02: exact entropy")

# %% [markdown]
# Every task is a pair of texts. A prefix in ordinary words says which task it is; its exact wording
# had little effect (Raffel et al. 2020, §2.4). Course C shows three such inputs: "Translate EN-DE:
# This is good.", "Summarize: …" and "Is this toxic: …". Our tasks are of the same three kinds.
# (Erratum: course D says that the prefix is a special token.) A token here is a word or a mark with
# the space before it, where T5 has 32,000 word pieces. Four sentinels have the last ids.

# %%
tasks = {                                               # name: (to learn from, to judge by)
    "translate English to Spanish": (spanish[200:], spanish[:200]),
    "translate English to Italian": (italian[200:], italian[:200]),
    "summarise": tuple([line[:2] for line in lines] for lines in (stories, fresh[:200])),
    "sentiment": tuple([line[::2] for line in lines] for lines in (stories, fresh[:200])),
}
texts = [text for name, both in tasks.items() for pairs in both for question, answer in pairs
         for text in (f"{name}: {question}", answer)]
words = sorted({word for text in texts for word in tokens(" " + text)})
first, last = [" <pad>", " </s>"], [f" <extra_id_{i}>" for i in (3, 2, 1, 0)]
tokenizer = WordTokenizer([*first, *words, *last], special_tokens=[*first, *last], keep_spaces=True)
V = tokenizer.vocab_size


def encode(text):
    return tokenizer.encode(" " + text)


def decode(row):
    return tokenizer.decode(row).strip()


to_learn, to_judge = (
    {name: [(encode(f"{name}: {question}") + [END], encode(answer) + [END])
            for question, answer in both[side]] for name, both in tasks.items()}
    for side in (0, 1))
tales_to_learn, tales_to_judge = ([encode(tale) for tale, _, _ in lines]
                                  for lines in (stories, fresh))
print(f"  {V} tokens; " + ", ".join(f"“{name}: …” {len(pairs):,} pairs"
                                    for name, pairs in to_learn.items()))

# %% [markdown]
# Tales are long and sentences are short. So a batch is a list of groups, and each group has its own
# padding. The loss is the mean over all target tokens that are not padding.

# %%
def draw(items, n, generator):
    return [items[i] for i in torch.randint(len(items), (n,), generator=generator).tolist()]


def remove_spans(tales, generator):
    """[(input, target)] with new masks at each call; this is the only task without a prefix."""
    return [corrupt_spans(tale, span_mask(len(tale), generator), V, END) for tale in tales]


def padded(pairs):
    """[(source, target)] -> (B, S), (B, T)"""
    return [pad(rows, side="right", value=PAD)[0].to(lesson.device) for rows in zip(*pairs)]


def loss(model, groups):
    total, count = 0.0, 0
    for source, target in groups:
        mask = target != PAD                                            # (B, T)
        logits = model(source, decoder_inputs(target), source != PAD)   # (B, T, V)
        total = total + cross_entropy(logits, target, mask) * mask.sum()
        count = count + mask.sum()
    return total / count


def answers(model, pairs):
    """What the model writes for each source: the most probable token at each step, until </s>."""
    source, target = padded(pairs)
    decoder = model.decoder_for(source, source != PAD)
    start = torch.full((len(source), 1), START, device=source.device)
    rows = generate(decoder, start, target.size(1) + 2, temperature=0, stop_token=END)
    rows = rows[:, 1:].tolist()
    return [row[:row.index(END)] if END in row else row for row in rows]


def share(flags):
    return sum(flags) / max(1, len(flags))


# %% [markdown]
# ## 6. Pre-training: span corruption only
# A span counts as recovered if all its tokens are right, and if no other token stands between its
# two sentinels. The network is version 1.1 of T5, which differs in two ways. Its feed-forward
# network multiplies two products element by element, gelu(x W_g) · (x W_i). And the logits have a
# matrix of their own. In version 1.0 they share the embeddings, which start with variance 1; a
# short training hardly changes numbers of this size.
#
# T5's optimizer, Adafactor, makes each step proportional to the size of the weights (§3.1.2;
# Shazeer and Stern 2018). Muon does not. So we give W_q, which starts smaller by √D, a step that is
# smaller by √D. AdamW moves the embeddings, with a larger step than in the other lessons.

# %%
generator = torch.Generator().manual_seed(lesson.seed + 1)
masks = [span_mask(WIDTH, generator) for _ in tales_to_judge]
judged = [corrupt_spans(tale, mask, V, END) for tale, mask in zip(tales_to_judge, masks)]
spans = [span for _, target in judged
         for span in split_at_sentinels(target[:-1], V)[1:-1]]          # two of each tale


def recovered(model):
    """For each span of the held-out tales, in order: is it recovered?"""
    written = [split_at_sentinels(row, V)[1:] + [None, None] for row in answers(model, judged)]
    return [got == span for got, span in zip([got for row in written for got in row[:2]], spans)]


form = T5Config(V, n_layers=2, n_heads=4, d_model=64, d_ff=128, d_head=16, gated=True,
                context_length=64)
t5 = T5(form, lesson.generator).to(lesson.device)
for stack in (t5.encoder, t5.decoder):                  # heads start with different biases
    torch.nn.init.normal_(stack.relative_embedding.weight, generator=lesson.generator)
print(f"  {count_parameters(t5):,} parameters")
BATCH = lesson.pick(full=32, quick=8)


def fit(next_batch, steps, evaluate):
    """`train` with three step sizes: embeddings and gains; matrices; W_q."""
    query, matrix, rest = [], [], []
    for name, parameter in t5.named_parameters():
        if parameter.dim() == 1 or "embedding" in name:
            rest.append(parameter)
        else:
            (query if "query" in name else matrix).append(parameter)
    optimizers = [make_adamw(rest, 1e-2, weight_decay=0), Muon(matrix, 2e-2),
                  Muon(query, 2e-2 / math.sqrt(t5.config.d_head))]
    every = math.ceil(steps / lesson.pick(full=5, quick=1))
    config = TrainingConfig(max_steps=steps, evaluate_every=every, seed=lesson.seed)
    return train(t5, next_batch, loss, config, evaluate, optimizers=optimizers)[1:]


def spans_only(generator):
    return [padded(remove_spans(draw(tales_to_learn, BATCH, generator), generator))]


for row in fit(spans_only, lesson.pick(full=800, quick=15),
               lambda model: {"spans": share(recovered(model))}):
    print(f"  step {row['step']:5d}   loss {row['train_loss']:.3f}   spans recovered "
          f"{row['spans']:.0%}", flush=True)

# %% [markdown]
# What would a guess without a network recover? The guess gets the length of the span, which the
# model does not get. It answers with the most frequent span of this length, in the training tales,
# after the word before the gap.
#
# And how much can be known at all? Nothing in the rest of a tale determines its day. So we call a
# token *determined* if some visible position determines it: in all training tales, the token at
# that position decides which token is here (for example, "dusty" decides "grey"; and "the" is the
# same in every tale). A span is determined if all its tokens are.

# %%
columns = list(zip(*tales_to_learn))                    # position -> its token in each tale
# determines[i][j]: does the token at j determine the token at i?
determines = [[len(set(zip(columns[j], columns[i]))) == len(set(columns[j])) for j in range(WIDTH)]
              for i in range(WIDTH)]
after_word = defaultdict(Counter)
for tale in tales_to_learn:
    for n in range(1, 5):
        for i in range(1, WIDTH - n + 1):
            after_word[n, tale[i - 1]][tuple(tale[i:i + n])] += 1

gaps = [(tale, mask, list(run)) for tale, mask in zip(tales_to_judge, masks)
        for removed, run in itertools.groupby(range(WIDTH), key=mask.__getitem__) if removed]
determined = [all(any(determines[i][j] for j in range(WIDTH) if not mask[j]) for i in run)
              for _, mask, run in gaps]
guesses = [after_word[len(run), tale[run[0] - 1]].most_common(1) for tale, _, run in gaps]
by_word = [[tuple(span)] == [guess for guess, _ in best] for span, best in zip(spans, guesses)]
by_model = recovered(t5)
lesson.claim("held-out spans are recovered 25 points more often than guessed",
             share(by_model) > share(by_word) + 0.25,
             f"{share(by_model):.0%} of {len(spans)}; the most frequent after the word before "
             f"{share(by_word):.0%}", full_run=True, items=("D21",))


def of_kind(flags, known, length=None):
    """The flags of the spans that are determined (or not), of all lengths or of one."""
    return [flag for flag, span, d in zip(flags, spans, determined)
            if d == known and length in (None, len(span))]


model_known, guess_known, model_open, guess_open = (
    share(of_kind(flags, known)) for known in (True, False) for flags in (by_model, by_word))
lesson.claim("of the determined spans the model recovers more than 80 %", model_known > 0.8,
             f"{model_known:.0%} of {sum(determined)} determined spans (guess {guess_known:.0%}); "
             f"of the other {len(spans) - sum(determined)} {model_open:.0%} (guess "
             f"{guess_open:.0%})", full_run=True)

fig, axes = plotting.figure(8, 4)
for i, (label, flags, known, colour, hatch) in enumerate((
    ("T5, determined spans", by_model, True, 0, None),
    ("guess, determined spans", by_word, True, 5, "//"),
    ("T5, other spans", by_model, False, 4, None),
    ("guess, other spans", by_word, False, 3, "xx"),
)):
    heights = [share(of_kind(flags, known, n)) for n in range(1, 5)]
    left_to_right = [n + 0.2 * i - 0.3 for n in range(1, 5)]
    axes.bar(left_to_right, heights, 0.2, label=label, color=plotting.COLOURS[colour], hatch=hatch,
             edgecolor="white")
axes.set(xlabel="length of the span (tokens)", ylabel="share recovered exactly",
         title="Spans of tales that were not in the training", ylim=(0, 1.3), xticks=range(1, 5),
         yticks=[0, 0.25, 0.5, 0.75, 1])
axes.legend(loc="upper center", ncols=2)
lesson.figure(fig, "spans")
print(f"  input    {decode(judged[0][0])}\n  written  {decode(answers(t5, judged[:1])[0])}\n"
      f"  target   {decode(judged[0][1])}")

# %% [markdown]
# ## 7. One model, several tasks
# The training continues with all tasks in every batch. Span corruption stays among them, so that
# the model does not forget it. There is one vocabulary and one output layer. Only the prefix tells
# the model which task is asked. We judge on sentences and tales that were not in the training, and
# an answer counts if all of it is right. For comparison, a look-up takes the training question that
# shares most words with the given one, and gives its answer.

# %%
TRANSLATIONS = list(tasks)[:2]


def mixture(generator):
    of_tales = remove_spans(draw(tales_to_learn, BATCH // 2, generator), generator)
    of_tales += draw(to_learn["summarise"], BATCH // 2, generator)
    of_tales += draw(to_learn["sentiment"], BATCH // 2, generator)
    of_sentences = [pair for name in TRANSLATIONS
                    for pair in draw(to_learn[name], BATCH, generator)]
    return [padded(of_tales), padded(of_sentences)]


def correct(model, pairs):
    return [row == answer[:-1] for row, (_, answer) in zip(answers(model, pairs), pairs)]


def scores(model):
    of_tasks = {name: share(correct(model, pairs)) for name, pairs in to_judge.items()}
    return {"spans": share(recovered(model))} | of_tasks


history = []
for row in fit(mixture, lesson.pick(full=1000, quick=15), scores):
    history.append(row)
    so_far = "   ".join(f"{name.split()[-1]} {row[name]:.0%}" for name in ("spans", *tasks))
    print(f"  step {row['step']:5d}   loss {row['train_loss']:.3f}   {so_far}", flush=True)

# %%
final = history[-1]
for (name, pairs), least in zip(to_judge.items(), (0.8, 0.8, 0.9, 0.95)):
    known = [(set(question), answer) for question, answer in to_learn[name]]
    by_look_up = share([
        max(known, key=lambda pair: len(pair[0] & set(question)))[1] == answer
        for question, answer in pairs])
    for (question, answer), row in zip(pairs[:2], answers(t5, pairs[:2])):
        correction = "" if row == answer[:-1] else f"      (right: {decode(answer[:-1])})"
        print(f"    {decode(question[:-1])}\n      → {decode(row)}{correction}")
    lesson.claim(f"“{name}: …”, at least {least:.0%} of held-out questions",
                 final[name] >= least > by_look_up + 0.1,
                 f"{final[name]:.0%} of {len(pairs)} answers exactly right; by look-up "
                 f"{by_look_up:.0%}", full_run=True, items=("C35", "D20"))
lesson.claim("span corruption is not forgotten", final["spans"] > share(by_model) - 0.05,
             f"{final['spans']:.0%} of spans, {share(by_model):.0%} before", full_run=True)

# %% [markdown]
# The same English sentences are translated into both languages, and only the prefix differs. Does
# an answer contain words of the wrong language? Some words belong to both languages, for example
# names. So we look, in every answer, for words that only one of the two languages has.

# %%
spoken = {name: {word for pairs in (to_learn[name], to_judge[name]) for _, answer in pairs
                 for word in answer} for name in TRANSLATIONS}
n_answers = n_own = 0
strayed = []                                            # answers with a word of the other language
for name, other in (TRANSLATIONS, TRANSLATIONS[::-1]):
    own_only, other_only = spoken[name] - spoken[other], spoken[other] - spoken[name]
    for row in answers(t5, to_judge[name]):
        n_answers += 1
        n_own += not own_only.isdisjoint(row)
        if not other_only.isdisjoint(row):
            strayed.append(f"{name}: {decode(row)}")
for line in strayed[:3]:
    print(f"    {line}")
lesson.claim("the prefix decides: at most 1 answer in 50 has a word of the other language only",
             len(strayed) <= n_answers / 50, f"{len(strayed)} of {n_answers}; {n_own} have a word "
             "that only the right language has", full_run=True, items=("D20",))

fig, axes = plotting.figure(8, 4)
for name in ("spans", *tasks):
    axes.plot([row["step"] for row in history], [row[name] for row in history], marker="o",
              markersize=3, label=name)
axes.set(xlabel="optimizer steps after pre-training", ylabel="share exactly right, held out",
         ylim=(-0.02, 1.05), title="One model, five tasks")
axes.legend(loc="lower right")
lesson.figure(fig, "tasks")

lesson.end()
