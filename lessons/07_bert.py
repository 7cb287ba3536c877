"""Lesson 07: BERT, which reads to both sides, and is taught by hiding words from it.

You will see    hidden words guessed better than by counting, sentence pairs told apart, what goes wrong when every hidden
                word is a [MASK], and one word drift apart into its two senses.
Source          courses C and D, "BERT"; Devlin et al. 2019, §3 and appendix A.
Expect          1.7 minutes on one core (quick: 7 s); every check passes; BERT guesses 62 to 65 % of the hidden words (five seeds), as
                many as Bayes' rule, where a trigram guesses 46 to 51 %; it judges 95 to 99 % of the sentence pairs rightly; taught by
                [MASK] alone it gives back 20 to 45 % of the words in plain sight instead of 95 %; the senses of each word are told
                apart, 96 % and more.
Not here        fine-tuning (lesson 12), ALBERT's savings (lesson 09), published weights.

Shapes: B batch, T time, C = d_model, V vocabulary, N chosen positions.
"""
# %%
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.models.bert import BERT, BERTConfig
from minigpt.models.counting import count_parameters
from minigpt.models.ngram import NGram
from minigpt.text.masking import mask_tokens, sentence_pairs
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bert_loss

lesson = Lesson("07_bert", threads=1)

# %% [markdown]
# ## 1. Reading to both sides
# A GPT (lesson 06) may not look ahead, because the next word is its exercise. Who only wants to *understand* a sentence has no
# reason to close one eye: in "she sat on the bank and watched the trout", the trout says which bank. BERT's layer is the
# transformer's encoder of 2017 as it was printed, but for gelu, where 2017 had a ReLU: no causal mask, and the norms after the sums.
#
#     a = norm(x + attention(x))            x ← norm(a + W₂ gelu(W₁ a))                              gelu(x) = x·Φ(x)
#
# PyTorch has that layer. With the same weights, and three places of the second row hidden as padding, ours is the same.

# %%
tiny = BERT(BERTConfig(vocab_size=11, context_length=8, n_layers=2, n_heads=3, d_model=12, d_ff=20)).double()
for parameter in tiny.parameters():
    nn.init.normal_(parameter, std=0.5, generator=lesson.generator)                     # large, so that no mistake hides in the tolerance

block = tiny.blocks[0]
twin = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=False)
queries_keys_values = block.attention.query, block.attention.key, block.attention.value
others = {"self_attn.out_proj": block.attention.out, "linear1": block.inner, "linear2": block.out,
          "norm1": block.norm1, "norm2": block.norm2}
twin.double().load_state_dict({
    **{f"self_attn.in_proj_{kind}": torch.cat([getattr(part, kind) for part in queries_keys_values]) for kind in ("weight", "bias")},
    **{f"{theirs}.{kind}": getattr(part, kind) for theirs, part in others.items() for kind in ("weight", "bias")},
})
x = torch.randn(2, 7, 12, generator=lesson.generator, dtype=torch.float64)              # (B, T, C)
present = torch.arange(7) < torch.tensor([[7], [4]])                                    # (B, T): the second row has 4 tokens
with torch.no_grad():
    lesson.check("BERT's layer = nn.TransformerEncoderLayer, padding hidden", block(x, present)[present],
                 twin(x, src_key_padding_mask=~present)[present], atol=1e-12, source="D: BERT; Vaswani et al. 2017, §3.1")

# %% [markdown]
# Bidirectional means: every output depends on every input. The slopes ∂h_t/∂x_s fill a T × T table of sizes. A GPT's table is
# lower-triangular; this one has no zero. Finite differences, which know nothing of masks, say so too. Only padding is
# invisible: it fills a row, and no token may learn from it. (The last three rows of the figure's right half are what the padding
# itself computes; no one reads it.)

# %%
x = x[:1]


def encode(x, mask=None):
    for block in tiny.blocks:
        x = block(x, mask)
    return x


slopes = torch.autograd.functional.jacobian(encode, x)[0, :, :, 0]                      # (T, C, T, C): ∂h_t,i/∂x_s,j
measured, h = torch.zeros_like(slopes), 1e-6
with torch.no_grad():
    for s in range(7):
        for j in range(12):
            step = torch.zeros_like(x)
            step[0, s, j] = h
            measured[:, :, s, j] = (encode(x + step) - encode(x - step))[0] / (2 * h)
lesson.check("∂h_t/∂x_s for all t and s, against finite differences", slopes, measured, atol=1e-7, source="C: bidirectional")
influence = slopes.abs().amax((1, 3))                                                   # (T, T)
lesson.check("how many of the 7 × 7 are zero", (influence < 1e-3).sum(), 0, atol=0, source="C: bidirectional")

short = torch.arange(7)[None] < 4                                                       # (1, T): four tokens, and three of padding
padded = torch.autograd.functional.jacobian(lambda x: encode(x, short), x)[0, :, :, 0].abs().amax((1, 3))          # (T, T)
lesson.check("with three of them padding: no token feels it", padded[:4, 4:].max(), 0.0, atol=0.0, source="C: bidirectional")
lesson.check("and how many of the 4 × 4 others are zero", (padded[:4, :4] < 1e-3).sum(), 0, atol=0, source="C: bidirectional")

fig, axes = plotting.figure(9, 3.8, 1, 2)
for panel, table, title in ((axes[0], influence, "seven tokens"), (axes[1], padded, "four tokens, three of padding")):
    plotting.heatmap(panel, table.log10().clamp(min=-2), label="log₁₀ of the largest |∂h_t/∂x_s|", low=-2.0,
                     high=influence.max().log10().item())
    panel.set(title=title, xlabel="input s", ylabel="output t")
lesson.figure(fig, "influence")

# %% [markdown]
# ## 2. Hiding words
# But then "predict the next word" is no exercise: the next word is in sight. So hide some. Of the ordinary tokens 15 % are
# chosen, and asked for; a chosen token's place shows
#
#     [MASK]             80 % of the time
#     a random token     10 %
#     itself             10 %
#
# Section 7 shows what the last two are for. (Some notes hide "at least 15 %". It is 15 %, Devlin et al. 2019, §3.1: of a row's n
# ordinary tokens, round(0.15·n).) Whether `mask_tokens` does this is a question about frequencies: n draws of a thing of
# probability p have a share with standard deviation σ = √(p(1 − p)/n), and four of those is the tolerance.

# %%
PAD, CLS, SEP, MASK = SPECIAL = range(4)                                                # ids 0 to 3, in all of this lesson
V = 50
rows = torch.randint(4, V, (2_000, 42), generator=lesson.generator)                     # 39 of them ordinary, and 3 that are not:
rows[:, [0, 20, 41]] = torch.tensor([CLS, SEP, SEP])
corrupted, labels, chosen = mask_tokens(rows, SPECIAL, MASK, V, lesson.generator, variant="bernoulli")

n, asked = rows.numel() - 3 * len(rows), int(chosen.sum())
lucky = 1 / (V - 4)                                                                     # a random token may be the very token it replaces
changed = corrupted != rows
for name, count, draws, p in (
    ("chosen: 15 %", asked, n, 0.15),
    ("[MASK]: 80 % of these", (corrupted == MASK).sum().item(), asked, 0.8),
    ("another token: 10 %, less the lucky ones", (chosen & changed & (corrupted != MASK)).sum().item(), asked, 0.1 * (1 - lucky)),
    ("as it was: 10 %, and the lucky ones", (chosen & ~changed).sum().item(), asked, 0.1 + 0.1 * lucky),
):
    lesson.check(f"{name} (4σ of the binomial)", count / draws, p, atol=4 * math.sqrt(p * (1 - p) / draws),
                 source="D: BERT; Devlin et al. 2019, A.1")
lesson.check("[CLS] and [SEP] chosen or changed", (chosen | changed)[:, [0, 20, 41]].sum(), 0, atol=0, source="Devlin et al. 2019, A.2")
lesson.check("labels are the tokens before", labels, rows, atol=0, source="Devlin et al. 2019, A.2")
exactly = mask_tokens(rows, SPECIAL, MASK, V, lesson.generator)[2].sum(1)               # the default, as in Google's code
lesson.check("variant “exact”: round(0.15 · 39) = 6 in each row", exactly, [6] * len(rows), atol=0, source="Devlin et al. 2019, A.2")

# %% [markdown]
# ## 3. Two sentences
# Many tasks are about a pair: a question and an answer, a claim and its evidence. So BERT reads two stretches of text at
# once, and is asked at [CLS] whether the second followed the first. Half of the time it did; else it is from another document.
# On documents whose tokens can be told apart, the layout by hand:

# %%
documents = [[[10, 11], [12], [13, 14, 15]], [[20], [21, 22]]]                          # two documents, of three sentences and of two
drawn = sentence_pairs(documents, 200, CLS, SEP, PAD, 16, lesson.generator)
pairs = {(*row.tolist(), *segments.tolist(), label) for row, segments, _, label in zip(*drawn[:3], drawn[3].tolist())}


def pair(first, second, label):
    """[CLS] S₁ [SEP] S₂ [SEP], its segments, and the label; as wide as the longest of them."""
    tokens, segments = [CLS, *first, SEP, *second, SEP], [0] * (len(first) + 2) + [1] * (len(second) + 1)
    width = drawn[0].size(1)
    return (*tokens, *[PAD] * (width - len(tokens)), *segments, *[0] * (width - len(tokens)), label)


follow = [pair([10, 11], [12, 13, 14, 15], 0), pair([10, 11, 12], [13, 14, 15], 0), pair([20], [21, 22], 0)]
do_not = [pair([10, 11], [21, 22], 1), pair([10, 11, 12], [21, 22], 1), pair([20], [12, 13, 14, 15], 1), pair([20], [13, 14, 15], 1)]
lesson.check("[CLS] S₁ [SEP] S₂ [SEP]: every pair that two documents allow", sorted(pairs), sorted(follow + do_not), atol=0,
             source="D: input representation")
share = drawn[3].double().mean()
lesson.check("half of them follow (4σ of the binomial)", share, 0.5, atol=4 * math.sqrt(0.25 / 200),
             source="D: NSP; Devlin et al. 2019, §3.1")

# %% [markdown]
# Three tables turn this into vectors: which token, where, and in which sentence. With one-hot rows u, p and s,
#
#     h₀ = norm( u W_e + p W_p + s W_s )              s W_s = Σᵢ sᵢ (W_s)ᵢ,   W_s ∈ ℝ^{2×d}
#
# Where notes write W_s ∈ ℝ^{d×d}, read ℝ^{2×d}: there are two sentences, so there are two rows.

# %%
tokens, segments = torch.tensor([[1, 5, 6, 2, 7, 2]]), torch.tensor([[0, 0, 0, 0, 1, 1]])
with torch.no_grad():
    one_hot = [torch.eye(n, dtype=torch.float64)[ids] for n, ids in ((11, tokens[0]), (8, torch.arange(6)), (2, segments[0]))]
    tables = tiny.token_embedding, tiny.position_embedding, tiny.segment_embedding
    total = sum(u @ W.weight for u, W in zip(one_hot, tables))                          # (T, C)
    centred = total - total.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
    expected = scaled * tiny.embedding_norm.weight + tiny.embedding_norm.bias
    lesson.check("h₀ = norm(u W_e + p W_p + Σᵢ sᵢ (W_s)ᵢ)", tiny.embed(tokens, segments)[0], expected, atol=1e-12,
                 source="D: segment embeddings")
    lesson.check("W_s has a row for each sentence: 2 × d", list(tiny.segment_embedding.weight.shape), [2, 12], atol=0,
                 source="Devlin et al. 2019, fig. 2")

# %% [markdown]
# ## 4. The loss
#     L = L_MLM + L_NSP        L_MLM = −mean over chosen i of log P(tokenᵢ | corrupted text)        L_NSP = −mean log P(follows or not)
#
# Only chosen positions count. By hand, a logarithm at a time; and the gradient at every other position is exactly 0.

# %%
text = torch.randint(4, 11, (2, 7), generator=lesson.generator)
shown, labels, chosen = mask_tokens(text, SPECIAL, MASK, 11, lesson.generator, rate=0.4)
follows = torch.tensor([0, 1])
hidden = tiny.hidden(shown)
word_scores, pair_scores = tiny.mlm_logits(hidden), tiny.nsp_logits(hidden)
word_scores.retain_grad()
loss = bert_loss(word_scores, labels, pair_scores, follows, chosen)
loss.backward()


def surprise(scores, answer):
    return -math.log(math.exp(scores[answer]) / sum(math.exp(score) for score in scores))


on_words = [surprise(word_scores[b, t].tolist(), labels[b, t]) for b in range(2) for t in range(7) if chosen[b, t]]
on_pairs = [surprise(pair_scores[b].tolist(), follows[b]) for b in range(2)]
lesson.check("L = L_MLM + L_NSP", loss, sum(on_words) / len(on_words) + sum(on_pairs) / 2, atol=1e-12, source="D: loss of BERT")
lesson.check("gradient at positions not chosen", word_scores.grad[~chosen].abs().sum(), 0.0, atol=0.0, source="D: MLM")

# %% [markdown]
# ## 5. How large
# Counted by hand for V words, 512 positions, width C and L layers. A layer has four C × C matrices of attention and two of C × 4C,
# 12C² in all, and 13C numbers in biases and norms:
#
#     (V + 512 + 2)·C + 2C      embeddings and their norm
#     L·(12C² + 13C)            layers
#     C² + C                    the layer above [CLS]
#
# The model is built on the "meta" device: shapes without memory. Its two heads are left out, as the paper leaves them out.

# %%
for name, config, C, L, published in (("base", BERTConfig.base(), 768, 12, 110e6), ("large", BERTConfig.large(), 1024, 24, 340e6)):
    with torch.device("meta"):
        model = BERT(config)
    heads = sum(p.numel() for part, p in model.named_parameters() if part.startswith(("mlm", "nsp")))
    counted = count_parameters(model) - heads
    by_hand = (30_522 + 514) * C + 2 * C + L * (12 * C * C + 13 * C) + C * C + C
    lesson.check(f"BERT-{name}: {counted:,} parameters", counted, by_hand, atol=0, source="by hand")
    lesson.check(f"BERT-{name} is the paper's {published / 1e6:.0f}M, to 2 %", counted / published, 1.0, atol=0.02,
                 source="D: sizes; Devlin et al. 2019, §3")

# %% [markdown]
# ## 6. Pre-training, as far as Bayes
# A world small enough to know everything about it: somebody does something somewhere, then something else. The name and the
# person come back in the second sentence, and so does the name's pronoun. Each person belongs to one of six worlds and meets
# what is found there; and three words have two senses, which the person decides, and never the words next to it. (The real BERT
# reads pieces of words; here a token is a word, so that what is hidden is a word. `a/b/c` is a free choice.)

# %%
WOMEN, MEN = "Ada Clara Ella Ivy Lea Mia Rosa Vera", "Adam Finn Jack Lars Luca Nico Oscar Tito"
NAMES = {name: "she" for name in WOMEN.split()} | {name: "he" for name in MEN.split()}
SENSES = {  # (word, sense): a word of that sense's own, who is met there, what is met there
    ("bank", "water"): ("shore", "angler boatman diver ferryman heron otter rower swimmer",
                        "current/fish/island/mud/reed/ripple/tide/trout"),
    ("bank", "money"): ("vault", "banker cashier clerk investor lender robber teller trader",
                        "account/cash/cheque/coin/debt/interest/loan/safe"),
    ("bat", "animal"): ("moth", "caver ghost naturalist owl ranger spider vampire witch",
                        "attic/belfry/cave/cobweb/darkness/midnight/ruin/shadow"),
    ("bat", "sport"): ("racket", "batter bowler captain catcher coach pitcher runner umpire",
                       "ball/glove/inning/pitch/score/stadium/team/wicket"),
    ("spring", "season"): ("autumn", "beekeeper farmer florist gardener lamb poet shepherd swallow",
                           "blossom/bud/daffodil/leaf/meadow/rain/sunshine/tulip"),
    ("spring", "coil"): ("screw", "clockmaker engineer inventor locksmith mechanic plumber tinker watchmaker",
                         "clock/engine/gear/hinge/lever/lock/piston/valve"),
}
templates = [
    f"{name} the {person} drew/found/left/liked/missed/saw the {word}/{own_word} again/alone/early/late/today . "
    f"Later/Soon/There/Then {he} met/noticed/painted/praised the {what} , and {name} the {person} frowned/laughed/sighed/smiled .".split()
    for name, he in NAMES.items() for (word, _), (own_word, people, what) in SENSES.items() for person in people.split()
]
all_words = [word for template in templates for cell in template for word in cell.split("/")]
tokenizer = WordTokenizer.train(all_words, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
V = tokenizer.vocab_size
FIRST, BOTH = 8, 20                             # words of sentence 1, and of both sentences

world = torch.zeros(len(templates), BOTH, V, dtype=torch.float64)                       # (Z, 20, V): P(word at t | who it is about)
for z, template in enumerate(templates):
    for t, cell in enumerate(template):
        choices = tokenizer.encode(cell.split("/"))
        world[z, t, choices] = 1 / len(choices)


def documents_of(n, seed):
    """n scenes -> for each its two sentences -> for each its words' numbers."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(len(world), (n,), generator=generator)
    drawn = torch.multinomial(world[z].flatten(0, 1), 1, generator=generator).view(n, BOTH).tolist()        # (n·20, V) -> (n, 20)
    return [[words[:FIRST], words[FIRST:]] for words in drawn]


def text_of(numbers):
    return tokenizer.decode(numbers).replace(" .", ".").replace(" ,", ",")


documents = documents_of(lesson.pick(full=8_000, quick=2_000), seed=2 * lesson.seed)
fresh = documents_of(3_000, seed=2 * lesson.seed + 1)                                   # the two seeds never meet
for first, second in fresh[:4]:
    print(f"      {text_of(first)} {text_of(second)}")
print(f"      {len(world)} times who it is about, {V} tokens; "
      f"{sum(d in documents for d in fresh[:200])} of 200 fresh scenes were read in training")

# %% [markdown]
# What is the best that anyone could do? Let z say who a scene is about: 16 names times 48 people. Given z all words are
# independent, so Bayes' rule is a product and a sum. A shown word y is the true word x with probability 0.85 + 0.15·0.1, or else
# a random one: in all P(y | z) = 0.865·P(x = y | z) + 0.015/(V − 4). A [MASK] is equally likely whatever z, and says nothing. Call
# the product over S₁ ℓ₁(z) and over S₂ ℓ₂(z), and write ⟨·⟩ for the mean over z. If S₂ follows, both are about the same z; if not,
# each has its own:
#
#     P(shown | follows) = ⟨ℓ₁ ℓ₂⟩                P(shown | not) = ⟨ℓ₁⟩⟨ℓ₂⟩
#     P(z of S₁ | shown) ∝ ℓ₁(z)·( ℓ₂(z) + ⟨ℓ₂⟩ )       P(z of S₂ | shown) ∝ ℓ₂(z)·( ℓ₁(z) + ⟨ℓ₁⟩ )
#
# A hidden word's distribution is then Σ_z P(z | shown)·P(word | z). No reader can guess more of the hidden words than the one who
# takes the likeliest by this. Two checks: the plain listing of all z × z for the most doubtful pair; and honesty, that of many
# words the share it gets right is the share it expects to.

# %%
WORDS = torch.tensor([*range(1, 1 + FIRST), *range(2 + FIRST, 2 + BOTH)])               # where they stand in [CLS] S₁ [SEP] S₂ [SEP]


def best_reader(shown):
    """shown (B, T) -> P(word | shown) at WORDS (B, 20, V), P(S₂ follows S₁ | shown) (B)."""
    shown = shown[:, WORDS]                                                             # (B, 20)
    likely = world[:, torch.arange(BOTH), shown].transpose(0, 1)                        # (Z, B, 20) -> (B, Z, 20)
    fit = likely * 0.865 + 0.015 / (V - 4)                                              # at a [MASK] the same for all z
    l1, l2 = fit[..., :FIRST].prod(-1), fit[..., FIRST:].prod(-1)                       # (B, Z) each
    mean1, mean2 = l1.mean(1, keepdim=True), l2.mean(1, keepdim=True)                   # (B, 1)
    z1, z2 = l1 * (l2 + mean2), l2 * (l1 + mean1)
    z1, z2 = z1 / z1.sum(1, keepdim=True), z2 / z2.sum(1, keepdim=True)
    of_first, of_second = torch.einsum("bz,ztv->btv", z1, world[:, :FIRST]), torch.einsum("bz,ztv->btv", z2, world[:, FIRST:])
    follows = (l1 * l2).mean(1)
    return torch.cat([of_first, of_second], 1), follows / (follows + (mean1 * mean2)[:, 0])


def batches(documents, size, **options):
    """A `next_batch`: fresh pairs, freshly corrupted, each time."""
    def next_batch(generator):
        tokens, segments, mask, follows = sentence_pairs(documents, size, CLS, SEP, PAD, BOTH + 3, generator)
        return *mask_tokens(tokens, SPECIAL, MASK, V, generator, **options), segments, mask, follows

    return next_batch


draw = batches(fresh, lesson.pick(full=768, quick=256), variant="bernoulli")
shown, labels, chosen, segments, present, follows = draw(torch.Generator().manual_seed(lesson.seed))
asked = shown == MASK                                                                   # (B, T)
answers = labels[asked]                                                                 # (N)
parts = [best_reader(part) for part in shown.split(256)]
readings = torch.cat([words for words, _ in parts])                                     # (B, 20, V)
posterior = readings[asked[:, WORDS]]                                                   # (N, V)
doubt = torch.cat([p for _, p in parts])                                                # (B): P(S₂ follows S₁ | shown)

# The most doubtful pair again without any algebra: a table of all z × z, each cell the product of what happened to each word.
hardest = (doubt - 0.5).abs().argmin()


def likelihood(z, places):
    product = 1.0
    for t in places:
        y, cell = shown[hardest, WORDS[t]].item(), tokenizer.encode(templates[z][t].split("/"))
        product *= sum(0.85 * (y == x) + 0.15 * (0.8 * (y == MASK) + 0.1 * (y > MASK) / (V - 4) + 0.1 * (y == x)) for x in cell) / len(cell)
    return product


of_first, of_second = (torch.tensor([likelihood(z, places) for z in range(len(world))], dtype=torch.float64)
                       for places in (range(FIRST), range(FIRST, BOTH)))
table = torch.outer(of_first, of_second) / len(world)                                   # (Z, Z): S₂ from elsewhere, any z with any z
together = (of_first * of_second).diag()                                                # (Z, Z): S₂ follows, the same z
total = table.sum() + together.sum()
by_listing = torch.einsum("yz,ztv->tv", (table + together) / total, world[:, FIRST:])   # (12, V): the words of S₂
lesson.check("Bayes: words of S₂ = listing all z × z", readings[hardest, FIRST:], by_listing, atol=1e-12, source="Bayes' rule")
lesson.check("Bayes: S₂ follows = listing all z × z", doubt[hardest], together.sum() / total, atol=1e-12, source="Bayes' rule")
sure = posterior.max(-1).values
best = {"words": (posterior.argmax(-1) == answers).double().mean().item(),
        "bits": -posterior.gather(-1, answers[:, None]).log2().mean().item(),
        "pairs": ((doubt < 0.5) == (follows == 1)).double().mean().item()}
lesson.check("Bayes: share of hidden words right = share expected (4σ)", best["words"], sure.mean(),
             atol=4 * (sure * (1 - sure)).mean().sqrt().item() / len(answers)**0.5, source="Bayes' rule")
lesson.check("Bayes: share of pairs right = share expected (4σ)", best["pairs"], doubt.maximum(1 - doubt).mean(),
             atol=4 * (doubt * (1 - doubt)).mean().sqrt().item() / len(doubt)**0.5, source="Bayes' rule")

# %% [markdown]
# And whom must BERT beat? Three who only count, on the same scenes. They are shown the true neighbours of a hidden word, where
# BERT may find those hidden or replaced as well:
# - the commonest token, always;
# - a trigram (lesson 02): P(word | the two before it);
# - both neighbours: P(word | the one before, the one after). The same class counts it, if left, right and middle are
#   given numbers of their own (w, w + V, w + 2V) and handed over in that order.

# %%
text = torch.tensor([token for first, second in documents for token in (CLS, *first, SEP, *second, SEP)])       # (tokens of all scenes)
left, middle, right = text[:-2], text[1:-1], text[2:]
trigram = NGram(3, V).fit(text)
neighbours = NGram(3, 3 * V).fit(torch.stack([left, right + V, middle + 2 * V], 1).flatten())
row, place = asked.nonzero(as_tuple=True)
before, after = labels[row, place - 1], labels[row, place + 1]
guesses = {
    "commonest token": text[text > MASK].bincount().argmax().expand(len(answers)),
    "trigram": trigram.next_token_probabilities(torch.stack([labels[row, (place - 2).clamp(min=0)], before], 1)).argmax(-1),
    "both neighbours": neighbours.next_token_probabilities(torch.stack([before, after + V], 1))[:, 2 * V:].argmax(-1),
}
counted = {name: (guess == answers).double().mean().item() for name, guess in guesses.items()}
print(f"      of {len(answers):,} hidden words guessed: " + ", ".join(f"{name} {share:.3f}" for name, share in counted.items())
      + f", Bayes {best['words']:.3f};   pairs: Bayes {best['pairs']:.3f}")

# %% [markdown]
# Two BERTs are trained, with the same weights at the start: one as it should be, and one that sees a [MASK] wherever a word was
# chosen, which section 7 will need.

# %%
def pretraining_loss(model, batch):
    """L_MLM + L_NSP. Only chosen positions are asked, so only they are scored."""
    shown, labels, chosen, segments, mask, follows = batch
    hidden = model.hidden(shown, segments, mask)
    words, pairs = model.mlm_logits(hidden[chosen]), model.nsp_logits(hidden)           # (N, V), (B, 2)
    return bert_loss(words, labels[chosen], pairs, follows)


def examine(model):
    """On fresh scenes: share of [MASK]s guessed, bits they cost, and share of pairs judged rightly."""
    hidden = model.hidden(shown, segments, present)
    logprobs = model.mlm_logits(hidden[asked]).log_softmax(-1)                          # (N, V)
    return {"words": (logprobs.argmax(-1) == answers).double().mean().item(),
            "bits": -logprobs.gather(-1, answers[:, None]).mean().item() / math.log(2),
            "pairs": (model.nsp_logits(hidden).argmax(-1) == follows).double().mean().item()}


models, histories = {}, {}
config = TrainingConfig(max_steps=lesson.pick(full=2_600, quick=40), learning_rate=1e-3, weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=200, quick=20), seed=lesson.seed)


def on_row(row):
    print(f"  step {row['step']:5d}   hidden words {row['words']:.3f}, {row['bits']:.3f} bits each (Bayes {best['bits']:.3f})   "
          f"pairs {row['pairs']:.3f}", flush=True)


for name, shares in (("80/10/10", (0.8, 0.1, 0.1)), ("[MASK] alone", (1, 0, 0))):
    model = BERT(BERTConfig(V, BOTH + 3, n_layers=2, n_heads=4, d_model=64), torch.Generator().manual_seed(lesson.seed))
    print(f"  {name}: {count_parameters(model):,} parameters, {config.max_steps} steps of 32 pairs")
    models[name] = model
    histories[name] = train(model, batches(documents, 32, shares=shares), pretraining_loss, config, examine, on_row=on_row)

# %% [markdown]
# The counters are left behind by what only the rest of the scene can tell: the name, the person, the pronoun, which world it is.
# At the end BERT guesses almost as many as Bayes, and what is missing shows best in bits: it knows what is likeliest, but not
# quite *how* likely. Pairs wait longer at chance than words do: a pair is one yes or no a row, and there is nothing to be right
# about before names and people can be compared. (Here an S₂ from elsewhere is mostly about another world, and topic alone gives
# it away. That is ALBERT's objection to NSP, Lan et al. 2020, §3.1: it asks instead in which order two halves stood. RoBERTa, Liu et
# al. 2019, §4.2, leaves NSP out and loses nothing.)

# %%
final = histories["80/10/10"][-1]
lesson.claim("hidden words: 0.1 above a trigram, 0.05 above both neighbours, and within 0.03 of the best possible",
             final["words"] > max(counted["trigram"] + 0.1, counted["both neighbours"] + 0.05, best["words"] - 0.03),
             f"BERT {final['words']:.3f}, Bayes {best['words']:.3f}; " + ", ".join(f"{name} {share:.3f}" for name, share in counted.items())
             + f"; BERT pays {final['bits'] - best['bits']:.3f} bits a word more than Bayes", full_run=True)
lesson.claim("does S₂ follow S₁: at least 90 % right on fresh pairs", final["pairs"] >= 0.9,
             f"BERT {final['pairs']:.3f}, Bayes {best['pairs']:.3f}, chance 0.5", full_run=True)

# %%
fig, (of_words, of_pairs) = plotting.figure(10.5, 4, 1, 2)
steps = [r["step"] for r in histories["80/10/10"]]
for axes, key in ((of_words, "words"), (of_pairs, "pairs")):
    axes.plot(steps, [r[key] for r in histories["80/10/10"]], marker="o", markersize=3, label="BERT")
    axes.axhline(best[key], color="black", linestyle=":", label=f"Bayes, {best[key]:.2f}")
for (name, share), colour, dash in zip(reversed(counted.items()), plotting.COLOURS[1:], (plotting.DASHES[i] for i in (1, 3, 4))):
    of_words.axhline(share, color=colour, linestyle=dash, label=f"{name}, {share:.2f}")
of_pairs.axhline(0.5, color=plotting.COLOURS[1], linestyle=plotting.DASHES[1], label="chance")
of_words.set(xlabel="optimizer steps", ylabel="share of hidden words guessed", ylim=(0, 1.05), title="Hidden words, fresh scenes")
of_pairs.set(xlabel="optimizer steps", ylabel="share of pairs judged rightly", ylim=(0, 1.05), title="Does S₂ follow S₁?")
of_words.legend(loc="upper left")
of_pairs.legend(loc="lower right")
lesson.figure(fig, "pretraining")

# %% [markdown]
# Fill in the blanks, three offers each with their probabilities, and what Bayes gives the same word.

# %%
model = models["80/10/10"]
tokens = torch.tensor([[CLS, *fresh[0][0], SEP, *fresh[0][1], SEP]])                    # (1, T)
hidden_at = torch.tensor([3, 6, 11, 14])                                                # the person, the place, she or he, what is met
blanks = tokens.index_fill(1, hidden_at, MASK)
print("      " + text_of(blanks[0, WORDS].tolist()))
with torch.no_grad():
    offers = model(blanks, segments[:1])[0, hidden_at].softmax(-1).topk(3)              # (4, V) -> (4, 3)
by_bayes = torch.zeros(BOTH + 3, V, dtype=torch.float64).index_copy(0, WORDS, best_reader(blanks)[0][0])        # (T, V)
for place, scores, words in zip(hidden_at.tolist(), offers.values.tolist(), offers.indices.tolist()):
    print(f"      {tokenizer.vocabulary[tokens[0, place]]:<11}"
          + ", ".join(f"{tokenizer.vocabulary[word]} {p:.2f} (Bayes {by_bayes[place, word]:.2f})"
                      for p, word in zip(scores, words)))

# %% [markdown]
# ## 7. Why not [MASK] every time?
# Whoever uses a BERT later gives it whole sentences, with no [MASK] in them. A model that was only ever asked at a [MASK] has
# never been asked about a word it can see, and owes nothing for what its vector says there. With 10 % random words and 10 %
# unchanged, any word may be the one asked about: is it right, and what would be? (Devlin et al. 2019, A.1.)
#
# So show both models whole text, and ask at every word. Do they give back the word that stands there? Then plant one wrong word a
# scene. Which word of the scene does the model find least likely where it stands, and what would it put in its place?

# %%
tokens, segments, present, _ = sentence_pairs(fresh, 1_000, CLS, SEP, PAD, BOTH + 3, torch.Generator().manual_seed(lesson.seed))
planted = mask_tokens(tokens, SPECIAL, MASK, V, lesson.generator, rate=1 / BOTH, shares=(0, 1, 0))[0]
changed = (planted != tokens).any(1)                                                    # the rare lucky ones are left out
tokens, segments, present, planted = (x[changed] for x in (tokens, segments, present, planted))
wrong = planted != tokens                                                               # (B, T): one place a row


def at_test_time(model):
    with torch.no_grad():
        plain, disturbed = (model(x, segments, present).log_softmax(-1) for x in (tokens, planted))         # (B, T, V) each
    of_shown = disturbed.gather(-1, planted[..., None])[..., 0].masked_fill(planted < 4, 0.0)   # (B, T): log P(the word that is shown)
    return {"words of whole text\ngiven back": (plain.argmax(-1) == tokens)[:, WORDS].double().mean().item(),
            "planted word\nfound": wrong.gather(1, of_shown.argmin(1, keepdim=True)).double().mean().item(),
            "planted word\nput right": (disturbed.argmax(-1) == tokens)[wrong].double().mean().item()}


measured = {name: {"[MASK]s\nguessed": histories[name][-1]["words"]} | at_test_time(model) for name, model in models.items()}
for name, values in measured.items():
    print(f"      {name:<13}" + ", ".join(f"{what.replace(chr(10), ' ')} {value:.3f}" for what, value in values.items()))

# %% [markdown]
# At a [MASK] the two are equals. Without one, the second model seldom says what stands before its eyes: its head has only ever
# spoken from the vector of a [MASK], and nothing in its loss asked for more. So it is also worse at finding a wrong word, and at
# putting it right. (A wrong word that is found cannot always be put right: many words are free choices.)

# %%
mixed, alone = measured.values()
masked, whole, *_ = mixed
side_by_side = "; ".join(f"{what.replace(chr(10), ' ')} {mixed[what]:.3f}, {alone[what]:.3f}" for what in mixed)
lesson.claim("taught by [MASK] alone it guesses [MASK]s as well, but does not know the words in plain sight",
             abs(mixed[masked] - alone[masked]) < 0.05 and mixed[whole] > alone[whole] + 0.2,
             f"80/10/10, [MASK] alone: {side_by_side}", full_run=True)

fig, axes = plotting.figure(9, 4)
for i, (name, values) in enumerate(measured.items()):
    bars = axes.bar([x + 0.4 * i for x in range(4)], values.values(), 0.38, label=name,
                    color=plotting.COLOURS[i], hatch=("", "//")[i], edgecolor="white")
    axes.bar_label(bars, fmt="%.2f", fontsize=9)
axes.set_xticks([x + 0.2 for x in range(4)], mixed)
axes.set(ylabel="share", ylim=(0, 1.2), title="What the 10 % random and 10 % unchanged are for")
axes.legend(loc="upper right", ncols=2)
axes.grid(axis="x", visible=False)
lesson.figure(fig, "ablation")

# %% [markdown]
# ## 8. One word, two senses
# The embedding table has one row for "bank". Layer by layer the row takes in its sentence. Nobody told the model that there are
# senses, so look for them from outside: average the vectors of "bank" in sentences of each sense, and give a new one to
# the nearer average. The averages come from half of the people (angler, diver, …), the test from the other half (boatman, ferryman, …),
# so it will not do to remember who goes where: anglers and boatmen must have become alike. Both models are asked: what a vector
# says through the head, section 7, need not be all that it holds. (By the embedding one can only toss a coin: the word always stands
# at place 6, in sentence 1, so what enters the first layer is the same vector in both senses.)

# %%
AMBIGUOUS = sorted({word for word, _ in SENSES})
separation, clouds, spread = {}, {}, 0.0
for name, model in models.items():
    for word in AMBIGUOUS:
        sides = [sense for (w, sense) in SENSES if w == word]
        home = {person: (side, i % 2) for side, sense in enumerate(sides)
                for i, person in enumerate(tokenizer.encode(SENSES[word, sense][1]))}
        word_id, = tokenizer.encode(word)
        found = [(first, second, *home[first[2]])               # word 2 is who, word 5 where
                 for first, second in fresh if first[5] == word_id]
        tokens = torch.tensor([[CLS, *first, SEP, *second, SEP] for first, second, _, _ in found])          # (B, T)
        side, half = (torch.tensor(column) for column in list(zip(*found))[2:])                             # (B) each
        with torch.no_grad():
            x = model.embed(tokens, segments[:1].expand_as(tokens))
            spread = max(spread, (x[:, 6] - x[0, 6]).abs().max().item())                # [CLS] moved word 5 to place 6
            vectors = [(x := block(x))[:, 6] for block in model.blocks]                 # each (B, C)
        separation[name, word] = []
        for layer in vectors:
            centres = torch.stack([layer[(side == s) & (half == 0)].mean(0) for s in (0, 1)])               # (2, C)
            nearer = torch.cdist(layer[half == 1], centres).argmin(1)
            separation[name, word].append((nearer == side[half == 1]).double().mean().item())
        clouds[name, word] = (vectors[-1], side, sides)
        by_layer = ", ".join(f"layer {i} {share:.3f}" for i, share in enumerate(separation[name, word], 1))
        print(f"      {name:<13}{word:<8} the right sense: embedding 0.5 (all vectors equal), {by_layer}")
lesson.check("the embedding of a word is the same in both senses", spread, 0.0, atol=1e-6, source="one token, one place, one segment")
lowest = {name: min(separation[name, word][-1] for word in AMBIGUOUS) for name in models}
lesson.claim("the last layer tells the two senses of each word apart, for people it has no average of", lowest["80/10/10"] >= 0.9,
             f"at least {lowest['80/10/10']:.3f} of each word's occurrences; in the model of [MASK] alone "
             f"at least {lowest['[MASK] alone']:.3f}; by the embedding, where all vectors are equal, 0.5", full_run=True)

# %%
fig, axes = plotting.figure(11, 3.8, 1, 3)
for panel, word in zip(axes, AMBIGUOUS):
    vectors, side, sides = clouds["80/10/10", word]
    centred = vectors - vectors.mean(0)
    plane = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T           # (B, C) -> (B, 2): the directions of most variance
    for s, marker, colour in ((0, "o", plotting.COLOURS[0]), (1, "x", plotting.COLOURS[1])):
        panel.scatter(*plane[side == s].T, s=14, marker=marker, color=colour, alpha=0.6, label=sides[s])
    panel.set(title=f"“{word}”: {separation['80/10/10', word][-1]:.0%}", xlabel="1st principal component", ylabel="2nd")
    panel.legend()
fig.suptitle("The last layer's vectors of a word, and the share that they give the right sense (the embedding: one half)")
lesson.figure(fig, "senses")

# %%
lesson.end()
