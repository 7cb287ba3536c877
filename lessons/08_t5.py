"""Lesson 08: T5, which fills holes in a text, and then does any task whose question and answer are both text.

You will see    spans dropped from a text and put back; an encoder–decoder whose loss is GPT's, given what the encoder read; sizes
                from 60M to 11B counted; one small model that restores spans, translates twice, summarises and classifies.
Source          courses C and D, "T5"; Raffel et al. 2020, fig. 2, §2.1, §2.4, §3.1, §3.3.4; where the paper is silent, its code.
Expect          about 130 s of one core (quick: 8 s); every check passes; 70 to 77 % of held-out spans restored (three seeds), where a
                guess restores 17 to 20 %, and 89 to 95 % of those that the rest of the text decides; then all tasks at once: 95 to
                100 % of the translations exactly right, and 100 % of the summaries and moods.
Not here        a by-hand version 1.1; what pre-training saves a task that has few examples (lesson 12).
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
# ## 1. Drop spans, and ask for them
# BERT hides single tokens and asks, at each place, which one stood there. T5 drops whole spans, leaves one sentinel in place of
# each, and has the answer *written*: every dropped span after its sentinel, then one more sentinel to close. The paper's own
# example (Raffel et al. 2020, fig. 2); <X>, <Y> and <Z> are the vocabulary's top ids, counted downwards:

# %%
sentence = "Thank you for inviting me to your party last week .".split()
first, last = ["<pad>", "</s>"], ["<Z>", "<Y>", "<X>"]
words = WordTokenizer([*first, *sentence, *last], special_tokens=[*first, *last])
dropped = [word in ("for", "inviting", "last") for word in sentence]
pair = corrupt_spans(words.encode(sentence), dropped, words.vocab_size, END)
source, target = (words.decode(side) for side in pair)
print(f"  input    {source}\n  target   {target}")
figure_2 = ["Thank you <X> me to your party <Y> week . </s>", "<X> for inviting <Y> last <Z> </s>"]
lesson.check("input and target are those of fig. 2", [source, target], figure_2, atol=0, source="C, D: span corruption")

# %% [markdown]
# Erratum: course D's example of a target holds words that its sentence lacks, and no closing sentinel. In truth
# the target is the dropped spans, each after its sentinel, then one more sentinel, as above. (The released code writes no closing
# sentinel either, for another reason: it puts one wherever a run was *kept*, and its noise always ends the text.) Together, input and
# target lose nothing, whatever the text and whatever is dropped. Here are 3,000: some are one token long, some all padding and </s>,
# some corrupted by tossing coins.

# %%
restored = 0
for n in torch.randint(1, 90, (3000,), generator=lesson.generator).tolist():
    n = n if n > 20 else 1 + n // 5
    text = torch.randint(2 if n % 7 == 0 else 900, (n,), generator=lesson.generator).tolist()
    mask = span_mask(n, lesson.generator) if n % 2 else (torch.rand(n, generator=lesson.generator) < 0.4).tolist()
    restored += restore(*corrupt_spans(text, mask, 1000, END), 1000, END) == text
lesson.check("input + target, put back together = the text", restored, 3000, atol=0, source="C, D: span corruption")

# %% [markdown]
# ## 2. How much, and where
# How many tokens go, and in how many spans, is not left to chance: round(0.15·n) tokens in round(of those / 3) spans, at least 1
# of each. Where they go is: cut the dropped tokens into that many pieces, and the kept ones too, each way to cut equally likely,
# and take the pieces in turn, a kept one first. Below, the counts by exact fractions (halves go to the even neighbour, as in the code).

# %%
def runs(mask):
    return [(dropped, len(list(run))) for dropped, run in itertools.groupby(mask)]


SIZES = range(2, 700)
noise = [min(max(round(Fraction(15, 100) * n), 1), n - 1) for n in SIZES]
by_fractions = [(k, max(1, round(Fraction(k, 3)))) for k in noise]
lesson.check("noise tokens and spans of every n < 700", [span_counts(n) for n in SIZES], by_fractions, atol=0, source="C, D: 15 %, mean 3")
spans = [length for _ in range(40) for dropped, length in runs(span_mask(568, lesson.generator)) if dropped]
lesson.check("noise density = 15 %, up to rounding 568 tokens", sum(spans) / (40 * 568), 0.15, atol=0.5 / 568, source="C, D: 15 %")
lesson.check("mean span length = 3", sum(spans) / len(spans), 3, atol=0.05, source="C, D: mean 3")
print(f"      the spans themselves have from {min(spans)} to {max(spans)} tokens")

made = [corrupt_spans([7] * n, span_mask(n, lesson.generator), 1000, END) for n in SIZES]
counted = [(len(source), len(target)) for source, target in made]
lesson.check("expected lengths of input and target", [expected_lengths(n) for n in SIZES], counted, atol=0, source="random_spans_helper")
fits = max(n for n in SIZES if expected_lengths(n)[0] <= 512)
published = [568, 512, 114 + 1]                                                         # with the closing sentinel
lesson.check("568 tokens fill an input of 512", [fits, *expected_lengths(fits)], published, atol=0, source="random_spans_helper")

# %% [markdown]
# Are all masks equally likely? A text of 35 tokens loses 5, in 2 spans. A mask is then four lengths, kept, dropped, kept, dropped, with
# 30 kept and 5 dropped in all: 29 · 4 masks, which can be listed, and counted. The paper does not mention a consequence: the first
# token always stays, and the last one always goes. Up to 30 tokens there is one span, so it is always the end of the text: short texts
# are not corrupted at random. The tales of this lesson have 35.

# %%
listed = sorted((a, b, 30 - a, 5 - b) for a in range(1, 30) for b in range(1, 5))
drawn = [span_mask(35, lesson.generator) for _ in range(11_600)]
seen = Counter(tuple(length for _, length in runs(mask)) for mask in drawn)
lesson.check("the masks drawn are the masks there are", sorted(seen), listed, atol=0, source="random_spans_noise_mask")
frequencies, error = [seen[mask] / 11_600 for mask in listed], math.sqrt(1 / 116 / 11_600)          # a frequency's standard error
lesson.check("each as often as any other, of 11,600 draws", frequencies, [1 / 116] * 116, atol=5 * error, source="random_spans_noise_mask")
kinds = [len({tuple(span_mask(n, lesson.generator)) for _ in range(20)}) for n in range(2, 31)]
lesson.check("up to 30 tokens, only the end is ever dropped", kinds, [1] * 29, atol=0, source="random_spans_noise_mask")

fig, (top, bottom) = plotting.figure(8, 4.6, rows=2, sharex=True, height_ratios=[1, 1.2])
top.imshow(torch.tensor(drawn[:12]), cmap="Greys", aspect="auto", interpolation="nearest", vmin=0, vmax=1.2)
top.hlines([i + 0.5 for i in range(11)], -0.5, 34.5, color="white", linestyle="-", linewidth=3)
top.grid(False)
top.set(ylabel="twelve masks", yticks=[], title="Span corruption of 35 tokens drops 5, in 2 spans")
bottom.bar(range(35), torch.tensor(drawn).double().mean(0), color=plotting.COLOURS[4], label="11,600 masks")
exact = [sum(a <= i < a + b or i >= 35 - last for a, b, _, last in listed) / 116 for i in range(35)]
bottom.plot(range(35), exact, "k.", label="the 116 masks, listed")
bottom.set(xlabel="position in the text (tokens)", ylabel="share that drop it")
bottom.legend(loc="upper center")
lesson.figure(fig, "masks")

# %% [markdown]
# ## 3. The network, by hand
# The encoder looks both ways. The decoder looks back at what it has written and, in its cross-attention, at all that the encoder
# read. Three things differ from the transformers before it, and each makes something simpler:
#
#     norm        x / √(mean(x²) + ε) · g         no mean is subtracted; nowhere in the model is there a bias
#     position    q_t·k_s + b[bucket(s − t)]      nothing is added to the embeddings; one table b serves all layers of a stack
#     scale       none                            attention's 1/√D is in W_q from the start; the last product has 1/√C instead
#
# On bare matrices, one head at a time, it is this. `minigpt/models/t5.py` is the same with names.

# %%
def normalise(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def attend(layer, x, memory, bias, future_hidden=False):
    """x (T, C), memory (S, C), a function bias(head) -> (T, S); returns (T, C)."""
    heads, D = [], 5
    for h in range(2):
        rows = slice(h * D, (h + 1) * D)
        q, k, v = x @ layer.query.weight[rows].T, memory @ layer.key.weight[rows].T, memory @ layer.value.weight[rows].T
        scores = q @ k.T + bias(h)                                                      # (T, S)
        if future_hidden:
            for t in range(len(scores)):
                scores[t, t + 1:] = -torch.inf
        heads.append(scores.softmax(-1) @ v)                                            # (T, D)
    return torch.cat(heads, -1) @ layer.out.weight.T


def think(layer, x):
    return (x @ layer.inner.weight.T).clamp(min=0) @ layer.out.weight.T


def t5_by_hand(model, source, target):
    """(S,), (T,) -> (T, V) logits, for texts of up to 8 tokens, where a bucket is a distance, or 16 + one after the query."""
    def bias(stack, n):
        buckets = torch.tensor([[t - s if s <= t else 16 + s - t for s in range(n)] for t in range(n)])
        return lambda h: stack.relative_embedding.weight[buckets, h]                    # (T, S)

    E = model.token_embedding.weight
    x, y = E[source], E[target]                                                         # (S, C), (T, C)
    for block in model.encoder.blocks:
        n = normalise(x, block.norm1)
        x = x + attend(block.attention, n, n, bias(model.encoder, len(x)))
        x = x + think(block.feed_forward, normalise(x, block.norm2))
    memory = normalise(x, model.encoder.final_norm)
    for block in model.decoder.blocks:
        n = normalise(y, block.norm1)
        y = y + attend(block.attention, n, n, bias(model.decoder, len(y)), future_hidden=True)
        y = y + attend(block.cross_attention, normalise(y, block.norm2), memory, lambda h: 0)
        y = y + think(block.feed_forward, normalise(y, block.norm3))
    return normalise(y, model.decoder.final_norm) @ E.T / math.sqrt(E.size(1))


tiny = T5(T5Config(vocab_size=3, n_layers=2, n_heads=2, d_model=8, d_ff=10, d_head=5)).double()
for parameter in tiny.parameters():
    torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() == 2 else 1.0, std=0.6, generator=lesson.generator)
source, answer = (torch.randint(3, (1, n), generator=lesson.generator) for n in (8, 4))
with torch.no_grad():
    by_hand = t5_by_hand(tiny, source[0], answer[0])
    lesson.check("T5 = its equations on bare matrices", tiny(source, answer)[0], by_hand, atol=1e-12, source="C, D: T5; §2.1")

# %% [markdown]
# **Buckets.** Half of them hold one distance each; the others share out log(distance), up to 128. An encoder gives half of its 32 to
# either side. The published rule takes logarithms, w·log(n/e) / log(128/e) ≥ k; in whole numbers, where nothing is rounded, that is
# nʷ·eᵏ ≥ eʷ·128ᵏ.

# %%
def bucket(offset, both_ways):
    first, n, exact = (16 * (offset > 0), abs(offset), 8) if both_ways else (0, max(-offset, 0), 16)
    wide = exact                                                                        # as many of them as of the exact ones
    return first + (n if n < exact else exact + max(k for k in range(wide) if n**wide * exact**k >= exact**wide * 128**k))


for both_ways, stack in ((True, "encoder"), (False, "decoder")):
    table, queries = relative_buckets(200, 200, both_ways), [0, 60, 199]
    by_rule = [[bucket(s - t, both_ways) for s in range(200)] for t in queries]
    lesson.check(f"{stack}'s buckets, by the published rule", table[queries], by_rule, atol=0, source="§2.1: relative positions")
print("      encoder, keys before the query: " + ", ".join(f"{n} → {bucket(-n, True)}" for n in (0, 1, 7, 8, 11, 12, 16, 32, 64, 127, 500)))

# %% [markdown]
# **Scale.** For inputs of variance 1, W_q is drawn with variance 1/(C·D) and W_k with 1/C, so q·k sums D terms of variance 1/D.

# %%
layer = T5(T5Config(10, n_layers=1, n_heads=8, d_model=128, d_ff=8, d_head=32), lesson.generator).encoder.blocks[0].attention
with torch.no_grad():
    x = torch.randn(300, 128, generator=lesson.generator)
    q, k = (f(x).unflatten(-1, (8, 32)).transpose(0, 1) for f in (layer.query, layer.key))          # (300, 256) -> (8, 300, 32)
lesson.check("Var(q·k) = 1 at the start, unscaled", (q @ k.mT).var(), 1.0, atol=0.15, source="§2.1; initialisation of its code")

# %% [markdown]
# **Sizes.** An attention has four matrices of C × H·D, a feed-forward layer two of C × d_ff, a sub-layer one gain of C. A block of the
# encoder has one attention, one of the decoder two. With C, d_ff, H, D and the blocks of a stack from the paper's §3.1.1 and §3.7 (its
# "770M" counts 738M):

# %%
for name, told, C, d_ff, H, D, L in (
    ("small", "60M", 512, 2048, 8, 64, 6), ("base", "220M", 768, 3072, 12, 64, 12), ("large", "770M", 1024, 4096, 16, 64, 24),
    ("xl", "3B", 1024, 16_384, 32, 128, 24), ("xxl", "11B", 1024, 65_536, 128, 128, 24),
):
    by_arithmetic = 32_128 * C + L * (3 * 4 * C * H * D + 2 * 2 * C * d_ff + 5 * C) + 2 * (32 * H + C)
    with torch.device("meta"):                                                          # shapes without memory
        counted = count_parameters(T5(getattr(T5Config, name)()))
    lesson.check(f"T5 {told} has {counted:,} parameters", counted, by_arithmetic, atol=0, source="C, D: sizes; §3.1.1, §3.7")

# %% [markdown]
# ## 4. The loss is GPT's
# The decoder reads START, then the answer one step late, and is asked for the answer (teacher forcing):
#
#     L = −1/T Σ_t log P(y_t | y_<t, x)
#
# That is a language model's loss with one thing more to look at, the source x. `decoder_for(x)` *is* a language model: it goes into
# GPT's loss, and into `generate`, as it stands.

# %%
with torch.no_grad():
    teacher_forced = cross_entropy(tiny(source, decoder_inputs(answer)), answer)
    decoder, begun = tiny.decoder_for(source), torch.cat([torch.full((1, 1), START), answer], dim=1)
    gpt_loss = next_token_loss(decoder, begun)
    lesson.check("teacher forcing = GPT's loss, given the encoder", teacher_forced, gpt_loss, atol=1e-12, source="D: T5; A: eq. 1")
    one_by_one = 0.0
    for t in range(4):                                                                  # the future cut off by hand
        scores = tiny(source, begun[:, :t + 1])[0, -1].tolist()
        one_by_one -= math.log(math.exp(scores[answer[0, t]]) / sum(map(math.exp, scores))) / 4
    lesson.check("… = prefix by prefix", teacher_forced, one_by_one, atol=1e-12, source="D: T5")

# %% [markdown]
# ## 5. Texts whose answers are known
# Tales of 35 tokens, from a small grammar. Place and animal come back, the weather decides what becomes of the knees, the animal how it
# runs. Behind each tale the grammar writes a summary and a mood. The tale decides them, and the grammar says so itself: they hold 0
# bits. Sentences of up to 6 words come from the grammar of lesson 04, where the English decides the Spanish and the Italian.

# %%
SHE, HE = {"he": "she", "his": "her"}, {"he": "he", "his": "his"}
POOLS = {
    "NAME": alike("Ada Clara Emma Flora Iris Lucy Nora Rosa", **SHE) | alike("Adam Bruno Diego Felix Hugo Leo Oscar Tom", **HE),
    "LOOK": alike("big black blue green new red shiny tiny"),
    "THING": alike("ball book drum hat kite lamp ring scarf"),
    "PLACE": alike("beach castle forest garden lake market park river"),
    "ANIMAL": {animal: {"ran": ran} for animal, ran in map(str.split, (
        "cat crept, dog bounded, duck waddled, fox trotted, frog hopped, hen fluttered, mouse scurried, pony galloped".split(", ")))},
    "WEATHER": {weather: {"wet": wet} for weather, wet in map(str.split, (
        "cold frozen, dusty grey, foggy damp, hot sweaty, muddy brown, rainy soaked, snowy white".split(", ")))},
}
TALES = Grammar({
    "line": "One {weather=WEATHER} [morning|evening|Monday|Friday] {hero=NAME} lost a {look=LOOK} {thing=THING} near the {place=PLACE}. "
            "A [brave|clever|lazy|shy] {animal=ANIMAL} {animal.ran} through the {place} and <end>",
    "end": ["found it. <after> <found>", "got lost. <after> <lost>"],
    "after": "{hero.His} [hands|feet|knees] were {weather.wet}, and {hero.he}",
    "found": ["<glad> at the {animal}. <good> = happy", "<sorry> at the {animal}. <good> = sad"],
    "lost": ["<glad> at the {animal}. <bad> = happy", "<sorry> at the {animal}. <bad> = sad"],
    "good": "= The {animal} found {hero}'s {look} {thing}.",
    "bad": "= {hero} lost a {thing} and the {animal}.",
    "glad": "[smiled|danced|sang]",
    "sorry": "[frowned|moaned|sobbed]",
}, POOLS)
WIDTH = 35


def short_pairs(language, n):
    """[(English, translation)] of n sentences of 4 to 6 words. One seed gives the same English for either language."""
    generator, pairs = torch.Generator().manual_seed(lesson.seed), {}
    while len(pairs) < n:
        pair = sample_pair(language, generator)
        if len(pair.source) <= 6:
            pairs[written(pair.source)] = written(pair.target)
    return list(pairs.items())


stories, fresh = ([line.split(" = ") for line in TALES.sample_many(n, seed)]
                  for n, seed in ((lesson.pick(full=5000, quick=400), 2 * lesson.seed), (400, 2 * lesson.seed + 1)))
fresh = [line for line in fresh if line not in stories]
spanish, italian = (short_pairs(language, lesson.pick(full=4200, quick=500)) for language in ("spanish", "italian"))
print("\n  " + "\n  ".join([*fresh[0], *spanish[0], italian[0][1]]))
print(f"\n  {TALES.count():.1g} tales of {TALES.entropy():.1f} bits on average")
after = [sum(bits for _, bits in TALES.surprisals(" = ".join(line))[WIDTH:]) for line in fresh[:50]]
lesson.check("summary and mood hold 0 bits, given the tale", after, [0.0] * 50, atol=1e-12, source="lesson 02: exact entropy")

# %% [markdown]
# Every task is a pair of texts, and a prefix says which task it is (§2.4; how it is worded had little effect, says the paper). A
# token here is a word or a mark with the space before it, where T5 has 32,000 word pieces. Four sentinels stand at the top.

# %%
tasks = {                                                                               # name: (to learn from, to judge by)
    "translate English to Spanish": (spanish[200:], spanish[:200]),
    "translate English to Italian": (italian[200:], italian[:200]),
    "summarise": tuple([(tale, summary) for tale, summary, _ in lines] for lines in (stories, fresh[:200])),
    "sentiment": tuple([(tale, mood) for tale, _, mood in lines] for lines in (stories, fresh[:200])),
}
texts = [text for name, both in tasks.items() for pairs in both for question, answer in pairs for text in (f"{name}: {question}", answer)]
words = sorted({word for text in texts for word in tokens(" " + text)})
first, last = [" <pad>", " </s>"], [f" <extra_id_{i}>" for i in (3, 2, 1, 0)]
tokenizer = WordTokenizer([*first, *words, *last], special_tokens=[*first, *last], keep_spaces=True)
V = tokenizer.vocab_size


def encode(text):
    return tokenizer.encode(" " + text)


def decode(row):
    return tokenizer.decode(row).strip()


to_learn, to_judge = ({name: [(encode(f"{name}: {question}") + [END], encode(answer) + [END]) for question, answer in both[side]]
                       for name, both in tasks.items()} for side in (0, 1))
tales_to_learn, tales_to_judge = ([encode(tale) for tale, _, _ in lines] for lines in (stories, fresh))
print(f"  {V} tokens; " + ", ".join(f"{len(pairs):,} × “{name}: …”" for name, pairs in to_learn.items()))

# %% [markdown]
# A batch is a list of groups, each padded for itself, because tales are long and sentences short. The loss is the mean over all
# target tokens that are not padding.

# %%
def draw(items, n, generator):
    return [items[i] for i in torch.randint(len(items), (n,), generator=generator).tolist()]


def drop_spans(tales, generator):
    """[(input, target)], with fresh holes at every visit; the one task without a prefix."""
    return [corrupt_spans(tale, span_mask(len(tale), generator), V, END) for tale in tales]


def padded(pairs):
    """[(source, target)] -> (B, S), (B, T)"""
    return [pad(rows, side="right", value=PAD)[0].to(lesson.device) for rows in zip(*pairs)]


def loss(model, groups):
    total, count = 0.0, 0
    for source, target in groups:
        mask = target != PAD
        total = total + cross_entropy(model(source, decoder_inputs(target), source != PAD), target, mask) * mask.sum()
        count = count + mask.sum()
    return total / count


def answers(model, pairs):
    """What the model writes for each source, the likeliest token at every step, up to </s>."""
    source, target = padded(pairs)
    start = torch.full((len(source), 1), START, device=source.device)
    rows = generate(model.decoder_for(source, source != PAD), start, target.size(1) + 2, temperature=0, stop_token=END)[:, 1:].tolist()
    return [row[:row.index(END)] if END in row else row for row in rows]


def share(flags):
    return sum(flags) / max(1, len(flags))


# %% [markdown]
# ## 6. Pre-training: holes only
# A span counts as recovered if all of it is right, and nothing else stands between its sentinels. The network is T5's version 1.1: half
# of the feed-forward decides how much of the other half passes, and the scores have a matrix of their own. In version 1.0 the scores
# share the embeddings, which start so large (variance 1) that a short training can hardly move them.
#
# T5's own optimizer, Adafactor, makes its steps proportional to the size of what they move (§3.1.2; Shazeer and Stern 2018). Muon does
# not, so the step of W_q is made √D smaller, as W_q is, and AdamW's step for the embeddings larger than the course's usual.

# %%
generator = torch.Generator().manual_seed(lesson.seed + 1)
masks = [span_mask(WIDTH, generator) for _ in tales_to_judge]
judged = [corrupt_spans(tale, mask, V, END) for tale, mask in zip(tales_to_judge, masks)]
spans = [span for _, target in judged for span in split_at_sentinels(target[:-1], V)[1:-1]]        # two of each tale


def recovered(model):
    """A flag for each span of the held-out tales, in order."""
    written = [split_at_sentinels(row, V)[1:] + [None, None] for row in answers(model, judged)]
    return [got == span for got, span in zip([got for row in written for got in row[:2]], spans)]


form = T5Config(V, n_layers=2, n_heads=4, d_model=64, d_ff=128, d_head=16, gated=True, context_length=64)
t5 = T5(form, lesson.generator).to(lesson.device)
for stack in (t5.encoder, t5.decoder):                                                  # heads that look elsewhere, each, from the start
    torch.nn.init.normal_(stack.relative_embedding.weight, generator=lesson.generator)
print(f"  {count_parameters(t5):,} parameters")
BATCH = lesson.pick(full=32, quick=8)


def fit(next_batch, steps, evaluate):
    """The course's `train`, with three step sizes: for embeddings and gains, for matrices, and a smaller one for W_q."""
    named = list(t5.named_parameters())
    query = [parameter for name, parameter in named if "query" in name]
    matrix = [parameter for name, parameter in named if parameter.dim() == 2 and "query" not in name and "embedding" not in name]
    rest = [(name, parameter) for name, parameter in named if parameter.dim() == 1 or "embedding" in name]
    optimizers = [make_adamw([p for _, p in rest], 1e-2, weight_decay=0), Muon(matrix, 2e-2), Muon(query, 2e-2 / math.sqrt(t5.config.d_head))]
    config = TrainingConfig(max_steps=steps, evaluate_every=math.ceil(steps / lesson.pick(full=5, quick=1)), seed=lesson.seed)
    return train(t5, next_batch, loss, config, evaluate, optimizers=optimizers)[1:]


def holes_only(generator):
    return [padded(drop_spans(draw(tales_to_learn, BATCH, generator), generator))]


for row in fit(holes_only, lesson.pick(full=800, quick=15), lambda model: {"holes": share(recovered(model))}):
    print(f"  step {row['step']:5d}   loss {row['train_loss']:.3f}   spans recovered {row['holes']:.0%}", flush=True)

# %% [markdown]
# What would be a fair guess? A reader without a network, told how long the span is, which the model is not, answers with the commonest
# span of that length in the training tales that follows the word before the hole. And what can be known at all?
# Nothing else in a tale says on which day it was. So call a token *decided* if some visible place fixes it: if in all training tales
# what stands there tells what stands here ("grey" by "dusty", "the" by anything). A span is decided if all its tokens are.

# %%
columns = list(zip(*tales_to_learn))                                                    # place -> its token in each tale
fixes = [[len(set(zip(columns[j], columns[i]))) == len(set(columns[j])) for j in range(WIDTH)] for i in range(WIDTH)]      # does j fix i?
after_word = defaultdict(Counter)
for tale in tales_to_learn:
    for n in range(1, 5):
        for i in range(1, WIDTH - n + 1):
            after_word[n, tale[i - 1]][tuple(tale[i:i + n])] += 1

holes = [(tale, mask, list(run)) for tale, mask in zip(tales_to_judge, masks)
         for gone, run in itertools.groupby(range(WIDTH), key=mask.__getitem__) if gone]
decided = [all(any(fixes[i][j] for j in range(WIDTH) if not mask[j]) for i in run) for _, mask, run in holes]
guesses = [after_word[len(run), tale[run[0] - 1]].most_common(1) for tale, _, run in holes]
by_word = [[tuple(span)] == [guess for guess, _ in best] for span, best in zip(spans, guesses)]
by_model = recovered(t5)
lesson.claim("held-out spans are recovered 25 points more often than guessed", share(by_model) > share(by_word) + 0.25,
             f"{share(by_model):.0%} of {len(spans)}; the commonest after the word before {share(by_word):.0%}", full_run=True)


def of_class(flags, known, length=None):
    """Those flags whose span is decided, or is not; if a length is given, of that length only."""
    return [flag for flag, span, d in zip(flags, spans, decided) if d == known and length in (None, len(span))]


model_decided, guess_decided, model_open, guess_open = (share(of_class(flags, known)) for known in (True, False)
                                                        for flags in (by_model, by_word))
lesson.claim("what the rest of the tale decides, the model recovers four times in five", model_decided > 0.8,
             f"{model_decided:.0%} of {sum(decided)} decided spans (guess {guess_decided:.0%}); "
             f"of the other {len(spans) - sum(decided)} {model_open:.0%} (guess {guess_open:.0%})", full_run=True)

fig, axes = plotting.figure(8, 4)
for i, (label, flags, known, colour, hatch) in enumerate((
    ("T5, spans that the rest decides", by_model, True, 0, None),
    ("these, guessed: commonest after the word before", by_word, True, 5, "//"),
    ("T5, the other spans", by_model, False, 4, None),
    ("these, guessed likewise", by_word, False, 3, "xx"),
)):
    heights = [share(of_class(flags, known, n)) for n in range(1, 5)]
    left_to_right = [n + 0.2 * i - 0.3 for n in range(1, 5)]
    axes.bar(left_to_right, heights, 0.2, label=label, color=plotting.COLOURS[colour], hatch=hatch, edgecolor="white")
axes.set(xlabel="length of the span (tokens)", ylabel="share recovered exactly", title="Holes in tales that training never saw",
         ylim=(0, 1.3), xticks=range(1, 5), yticks=[0, 0.25, 0.5, 0.75, 1])
axes.legend(loc="upper center", ncols=2)
lesson.figure(fig, "spans")
print(f"  input    {decode(judged[0][0])}\n  written  {decode(answers(t5, judged[:1])[0])}\n  target   {decode(judged[0][1])}")

# %% [markdown]
# ## 7. One model, several tasks
# Training goes on with all tasks in every batch, and holes among them so that they are not forgotten. One vocabulary, one output layer:
# only the prefix tells the model what is asked. It is judged on sentences and tales that it never trained on, and an answer counts if
# all of it is right. The reader to beat looks up the training question that shares most words with this one, and answers as that was
# answered.

# %%
TRANSLATIONS = list(tasks)[:2]


def mixture(generator):
    of_tales = drop_spans(draw(tales_to_learn, BATCH // 2, generator), generator)
    of_tales += draw(to_learn["summarise"], BATCH // 2, generator) + draw(to_learn["sentiment"], BATCH // 2, generator)
    of_sentences = [pair for name in TRANSLATIONS for pair in draw(to_learn[name], BATCH, generator)]
    return [padded(of_tales), padded(of_sentences)]


def correct(model, pairs):
    return [row == answer[:-1] for row, (_, answer) in zip(answers(model, pairs), pairs)]


def scores(model):
    return {"holes": share(recovered(model))} | {name: share(correct(model, pairs)) for name, pairs in to_judge.items()}


history = []
for row in fit(mixture, lesson.pick(full=1000, quick=15), scores):
    history.append(row)
    so_far = "   ".join(f"{name.split()[-1]} {row[name]:.0%}" for name in ("holes", *tasks))
    print(f"  step {row['step']:5d}   loss {row['train_loss']:.3f}   {so_far}", flush=True)

# %%
final = history[-1]
for (name, pairs), least in zip(to_judge.items(), (0.8, 0.8, 0.9, 0.95)):
    known = [(set(question), answer) for question, answer in to_learn[name]]
    by_likeness = share([max(known, key=lambda pair: len(pair[0] & set(question)))[1] == answer for question, answer in pairs])
    for (question, answer), row in zip(pairs[:2], answers(t5, pairs[:2])):
        correction = "" if row == answer[:-1] else f"      (right: {decode(answer[:-1])})"
        print(f"    {decode(question[:-1])}\n      → {decode(row)}{correction}")
    lesson.claim(f"“{name}: …”, at least {least:.0%} of held-out questions", final[name] >= least > by_likeness + 0.1,
                 f"{final[name]:.0%} of {len(pairs)} answers exactly right, as the likest question was answered {by_likeness:.0%}",
                 full_run=True)
lesson.claim("and it still fills holes", final["holes"] > share(by_model) - 0.05,
             f"{final['holes']:.0%} of spans, {share(by_model):.0%} before", full_run=True)

# %% [markdown]
# The same sentence, asked twice, with nothing but the prefix changed: does a word of one language ever stray into the other? Words that
# both have, names among them, tell nothing. So look in every answer, right or wrong, for words that only one language has.

# %%
spoken = {name: {word for pairs in (to_learn[name], to_judge[name]) for _, answer in pairs for word in answer} for name in TRANSLATIONS}
n_answers = n_own = 0
strayed = []                                                                            # answers with a word that only the other has
for name, other in (TRANSLATIONS, TRANSLATIONS[::-1]):
    own_only, other_only = spoken[name] - spoken[other], spoken[other] - spoken[name]
    for row in answers(t5, to_judge[name]):
        n_answers += 1
        n_own += not own_only.isdisjoint(row)
        if not other_only.isdisjoint(row):
            strayed.append(f"{name}: {decode(row)}")
for line in strayed[:3]:
    print(f"    {line}")
lesson.claim("the prefix is obeyed: at most 1 answer in 50 holds a word that only the other language has", len(strayed) <= n_answers / 50,
             f"{len(strayed)} of {n_answers}; {n_own} hold a word that only their own language has", full_run=True)

fig, axes = plotting.figure(8, 4)
for name in ("holes", *tasks):
    axes.plot([row["step"] for row in history], [row[name] for row in history], marker="o", markersize=3, label=name)
axes.set(xlabel="optimizer steps after pre-training on holes", ylabel="share of held-out answers exactly right", ylim=(-0.02, 1.05),
         title="One model, five tasks")
axes.legend(loc="lower right")
lesson.figure(fig, "tasks")

lesson.end()
