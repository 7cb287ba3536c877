"""Lesson 07: BERT, an encoder that reads in both directions and predicts masked words.

You will see    the layer, the input, the two heads and the loss of BERT, each against a second
                computation; a small BERT that predicts masked words better than counting does, and
                judges pairs of sentences; why not every chosen word becomes [MASK]; one word whose
                vectors differ between its two senses.
Source          course C, "Learning Objectives" and "Popular Transformer-based LMs"; course D,
                "BERT" to "LOSS FUNCTION of BERT"; Devlin et al. 2019, §3 and appendix A.
Expect          1.7 minutes on one core (quick: 7 s); every check passes; BERT predicts 62 to 65 %
                of the masked words (five seeds), as many as Bayes' rule, and a trigram 46 to 51 %;
                it judges 95 to 99 % of the sentence pairs correctly; trained with [MASK] alone, it
                gives back 20 to 45 % of the visible words instead of 95 %; the two senses of each
                word are separated for 96 % of its occurrences or more.
Not here        fine-tuning (lesson 12), ALBERT's smaller models (lesson 09), published weights.

Shapes: B batch, T time, C = d_model (d in course D), V vocabulary, N chosen positions.
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
# ## 1. An encoder reads in both directions
# The transformer of 2017 has an encoder and a decoder. Large language models use one of them, or
# both (course D, "LARGE LANGUAGE MODEL"; course C, "Popular Transformer-based LMs"):
#
#     decoder only        GPT     reads the start of a text, predicts the next token (lesson 06)
#     encoder only        BERT    reads a text with masked tokens, predicts those tokens
#     encoder–decoder     T5      reads a text, writes another text (lesson 08)
#
# GPT must not see the next word, because it has to predict it. But a word is easier to understand
# with the words on both sides. In "she sat on the bank and watched the trout", the word "trout"
# shows which kind of bank this is, and it comes later. BERT's attention has no causal mask, so each
# position sees the whole text. BERT means Bidirectional Encoder Representations from Transformers.
# Course D writes BERT as a function of m tokens, Φ: 𝒱^m → ℝ^{d×m}. 𝒱 is the set of tokens (V in the
# course) and d the width of a vector. Column i, φᵢ ∈ ℝ^d, is the vector of token i in its context.
# In the code a vector is a row, and d is C: (B, T) tokens become (B, T, C) vectors.
#
# A layer is that of the encoder of 2017, with its norms after the sums. Only the activation
# differs: gelu, where the encoder of 2017 has a ReLU. With x (T, C) the vectors that enter,
#
#     a = norm(x + attention(x))
#     output = norm(a + gelu(a W₁ + b₁) W₂ + b₂)              gelu(u) = u·(1 + erf(u/√2))/2
#
# PyTorch's own layer, with the same weights and three positions of padding, must give the same.
#
# Items: C34, D01, D02, D06

# %%
tiny = BERT(BERTConfig(11, 8, n_layers=2, n_heads=3, d_model=12, d_ff=20)).double()     # V = 11
for parameter in tiny.parameters():                     # large weights, so that errors are visible
    nn.init.normal_(parameter, std=0.5, generator=lesson.generator)

block = tiny.blocks[0]
twin = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
                                  batch_first=True, norm_first=False).double()
projections = block.attention.query, block.attention.key, block.attention.value
others = {"self_attn.out_proj": block.attention.out, "linear1": block.inner, "linear2": block.out,
          "norm1": block.norm1, "norm2": block.norm2}
weights = {}
for kind in ("weight", "bias"):
    weights[f"self_attn.in_proj_{kind}"] = torch.cat([getattr(p, kind) for p in projections])
    weights |= {f"{theirs}.{kind}": getattr(ours, kind) for theirs, ours in others.items()}
twin.load_state_dict(weights)

x = torch.randn(2, 7, 12, generator=lesson.generator, dtype=torch.float64)      # (B, T, C)
present = torch.arange(7) < torch.tensor([[7], [4]])                    # (B, T): row 2 has 4 tokens
with torch.no_grad():
    lesson.check("BERT's layer = nn.TransformerEncoderLayer, with padding",
                 block(x, present)[present], twin(x, src_key_padding_mask=~present)[present],
                 atol=1e-12, source="Vaswani et al. 2017, §3.1; gelu: Devlin et al. 2019, A.2")

# %% [markdown]
# "Bidirectional" means that every output depends on every input. Let x_s be the input vector at
# position s, and h_t the output vector at position t. The derivatives ∂h_t/∂x_s of all pairs (t, s)
# form a T × T table. In GPT it is lower-triangular. In BERT no entry is zero. We compute it with
# autograd, and with finite differences: change one input number by ±δ, and divide the change of the
# output by 2δ. No token may depend on padding. (The last three rows on the right of the figure are
# the outputs at the padding itself. They are never used.)

# %%
x = x[:1]


def encode(x, mask=None):
    for block in tiny.blocks:
        x = block(x, mask)
    return x


# (T, C, T, C): the derivative of h_t,i with respect to x_s,j
derivatives = torch.autograd.functional.jacobian(encode, x)[0, :, :, 0]
measured, delta = torch.zeros_like(derivatives), 1e-6
with torch.no_grad():
    for s in range(7):
        for j in range(12):
            step = torch.zeros_like(x)
            step[0, s, j] = delta
            measured[:, :, s, j] = (encode(x + step) - encode(x - step))[0] / (2 * delta)
lesson.check("∂h_t/∂x_s of all t and s = finite differences", derivatives, measured, atol=1e-7,
             source="D: BERT; Devlin et al. 2019, §3")
influence = derivatives.abs().amax((1, 3))                              # (T, T)
lesson.check("7 tokens: how many of the 7 × 7 entries are zero", (influence < 1e-3).sum(), 0,
             atol=0, source="D: BERT; Devlin et al. 2019, §3")

short = torch.arange(7)[None] < 4                       # (1, T): four tokens, three of padding
padded = torch.autograd.functional.jacobian(lambda x: encode(x, short), x)[0, :, :, 0]
padded = padded.abs().amax((1, 3))                                      # (T, T)
lesson.check("4 tokens and padding: no token depends on the padding", padded[:4, 4:].max(), 0.0,
             atol=0.0, source="definition of padding")
lesson.check("4 tokens and padding: zeros among the 4 × 4 others", (padded[:4, :4] < 1e-3).sum(),
             0, atol=0, source="D: BERT; Devlin et al. 2019, §3")

fig, (left, right) = plotting.figure(9, 3.8, 1, 2)
for panel, table, title in ((left, influence, "7 tokens"), (right, padded, "4 tokens and padding")):
    plotting.heatmap(panel, table.log10().clamp(min=-2), label="log₁₀ of the largest |∂h_t/∂x_s|",
                     low=-2.0, high=influence.max().log10().item())
    panel.set(title=title, xlabel="input s", ylabel="output t")
lesson.figure(fig, "influence")

# %% [markdown]
# ## 2. Masked language model: predict hidden tokens
# BERT sees the next word, so "predict the next word" would teach it nothing. Instead we choose 15 %
# of the tokens and corrupt the text there. BERT has to predict the chosen tokens. Let x₁ … x_m be
# the tokens, I the set of chosen positions, and x̃₁ … x̃_m the corrupted text. For i ∉ I, x̃ᵢ = xᵢ.
# For i ∈ I,
#
#     x̃ᵢ = [MASK]            with probability 0.8
#     x̃ᵢ = a random token    with probability 0.1
#     x̃ᵢ = xᵢ                with probability 0.1
#
# Section 8 shows why the last two cases exist. Why only 15 %? A prediction needs true words around
# it. If all tokens were corrupted, BERT would have nothing true to read.
#
# Errata: course D ("Algoritmo di corruzione M") writes "at least 15 %". The paper says 15 % (Devlin
# et al. 2019, §3.1). The course also gives the reason as if BERT should learn from the true words
# only. It learns to predict the corrupted ones, and the true words are what it predicts from. We
# choose round(0.15·n) of the n ordinary tokens of a row: special tokens are never chosen. Google's
# code has this rule too, but it takes 15 % of all tokens, and at most 20 per text. We check the
# frequencies of `mask_tokens`. In n draws, the share of an event of probability p has standard
# deviation σ = √(p(1 − p)/n). The tolerance is 4σ.
#
# Items: C13, D10

# %%
PAD, CLS, SEP, MASK = SPECIAL = range(4)                                # ids 0 to 3 in this lesson
V = 50
rows = torch.randint(4, V, (2_000, 42), generator=lesson.generator)     # 39 ordinary tokens per row
rows[:, [0, 20, 41]] = torch.tensor([CLS, SEP, SEP])                    # and 3 special ones
corrupted, labels, chosen = mask_tokens(rows, SPECIAL, MASK, V, lesson.generator,
                                        variant="bernoulli")

n, n_chosen = rows.numel() - 3 * len(rows), int(chosen.sum())
same_by_chance = 1 / (V - 4)                            # a random token may equal the original one
changed = corrupted != rows
for name, count, draws, p in (
    ("chosen: 15 %", n_chosen, n, 0.15),
    ("[MASK]: 80 % of the chosen", (corrupted == MASK).sum().item(), n_chosen, 0.8),
    ("another token: 10 %, less those equal by chance",
     (chosen & changed & (corrupted != MASK)).sum().item(), n_chosen, 0.1 * (1 - same_by_chance)),
    ("unchanged: 10 %, and those equal by chance",
     (chosen & ~changed).sum().item(), n_chosen, 0.1 + 0.1 * same_by_chance),
):
    lesson.check(f"{name} (4σ of the binomial)", count / draws, p,
                 atol=4 * math.sqrt(p * (1 - p) / draws),
                 source="D: Algoritmo di corruzione M; Devlin et al. 2019, §3.1 and A.1",
                 items=("D09",))
lesson.check("how many [CLS] and [SEP] are chosen or changed",
             (chosen | changed)[:, [0, 20, 41]].sum(), 0, atol=0,
             source="Google's code, create_pretraining_data.py")
exactly = mask_tokens(rows, SPECIAL, MASK, V, lesson.generator)[2].sum(1)       # the default
lesson.check("variant “exact”: round(0.15 · 39) = 6 per row", exactly, [6] * len(rows), atol=0,
             source="definition")

# %% [markdown]
# ## 3. Next-sentence prediction: two sentences in one input
# Many tasks are about two texts: a question and an answer, a claim and its evidence. So BERT reads
# two texts at once, S₁ and S₂, and a second training task asks whether S₂ followed S₁ in the
# corpus. The input is [CLS] S₁ [SEP] S₂ [SEP]. The vector of the special token [CLS] is used to
# answer, and [SEP] ends each text. With probability 0.5, S₂ is the text that follows S₁. Otherwise
# it comes from elsewhere. Course D calls the classes C = 1 (follows) and C = 2 (does not), and
# takes any sentence of the corpus for the second case. Here the classes are 0 and 1, and that
# sentence comes from another document, as in Google's code. We list by hand all pairs that two
# small documents allow.
#
# Items: C14, D03

# %%
documents = [[[10, 11], [12], [13, 14, 15]], [[20], [21, 22]]]          # of 3 and of 2 sentences
drawn = sentence_pairs(documents, 200, CLS, SEP, PAD, 16, lesson.generator)
pairs = {(*row.tolist(), *segments.tolist(), label)
         for row, segments, _, label in zip(*drawn[:3], drawn[3].tolist())}


def pair(first, second, label):
    """[CLS] S₁ [SEP] S₂ [SEP] with padding up to the longest pair, its segments, and the label."""
    tokens = [CLS, *first, SEP, *second, SEP]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    padding = drawn[0].size(1) - len(tokens)
    return (*tokens, *[PAD] * padding, *segments, *[0] * padding, label)


follow = [pair([10, 11], [12, 13, 14, 15], 0), pair([10, 11, 12], [13, 14, 15], 0),
          pair([20], [21, 22], 0)]
do_not = [pair([10, 11], [21, 22], 1), pair([10, 11, 12], [21, 22], 1),
          pair([20], [12, 13, 14, 15], 1), pair([20], [13, 14, 15], 1)]
lesson.check("[CLS] S₁ [SEP] S₂ [SEP]: all pairs that two documents allow", sorted(pairs),
             sorted(follow + do_not), atol=0, source="D: NEXT SENTENCE PREDICTION (NSP) TRAINING",
             items=("D11",))
share = drawn[3].double().mean()
lesson.check("half of the pairs follow (4σ of the binomial)", share, 0.5,
             atol=4 * math.sqrt(0.25 / 200), items=("D11",),
             source="D: NEXT SENTENCE PREDICTION (NSP) TRAINING; Devlin et al. 2019, §3.1")

# %% [markdown]
# The first layer needs one vector per position. Three tables are added: W_e (V × d) for the token,
# W_p for the position, and W_s for the segment, that is, S₁ or S₂. Write the choice of a row as a
# one-hot vector: uᵢ for token i, pᵢ for its position, Σᵢ for its segment. So Σᵢ = [1, 0] if token i
# belongs to S₁ and Σᵢ = [0, 1] if it belongs to S₂, and
#
#     Sᵢ = Σᵢ W_s                 W_s ∈ ℝ^{2×d}
#     h₀,ᵢ = norm( uᵢ W_e + pᵢ W_p + Sᵢ )
#
# Errata: course D ("PRETRAINED") writes W_s ∈ ℝ^{d×d}. There are two segments, so W_s has two rows.
# It also writes the one-hot vectors as [1, ∅] and [∅, 1]; ∅ is a zero with a stroke.

# %%
tokens = torch.tensor([[1, 5, 6, 2, 7, 2]])
segments = torch.tensor([[0, 0, 0, 0, 1, 1]])
with torch.no_grad():
    W_e, W_p, W_s = (table.weight for table in (
        tiny.token_embedding, tiny.position_embedding, tiny.segment_embedding))
    one_hot = [torch.eye(n, dtype=torch.float64)[ids] for n, ids in (
        (11, tokens[0]), (8, torch.arange(6)), (2, segments[0]))]
    total = one_hot[0] @ W_e + one_hot[1] @ W_p + one_hot[2] @ W_s      # (T, C)
    centred = total - total.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
    expected = scaled * tiny.embedding_norm.weight + tiny.embedding_norm.bias
    lesson.check("h₀,ᵢ = norm(uᵢ W_e + pᵢ W_p + Σᵢ W_s)", tiny.embed(tokens, segments)[0], expected,
                 atol=1e-12, source="D: PRETRAINED; Devlin et al. 2019, fig. 2", items=("D04",))

# %% [markdown]
# ## 4. Two heads: from a vector to probabilities
# The head for masked tokens turns φᵢ, the vector at position i, into a probability for each token.
# Course D ("Classification Network") has one matrix Σ ∈ ℝ^{d×V} (not the one-hot Σᵢ above):
#
#     P(xᵢ | x̃₁ … x̃_m) = softmax( Σᵀ φᵢ(x̃₁ … x̃_m) )
#
# Erratum: the course writes Σ·φᵢ. With Σ ∈ ℝ^{d×V} the product needs the transpose.
#
# Google's code has more. A layer with gelu and a norm comes first, the matrix is the embedding
# table W_e (so Σ = W_eᵀ), and each token has a bias. With φᵢ as a row, W_m (d × d) and b_m of the
# layer, and b_V ∈ ℝ^V the bias:
#
#     P(xᵢ | x̃₁ … x̃_m) = softmax( norm(gelu(φᵢ W_m + b_m)) W_eᵀ + b_V )
#
# The head for pairs reads the vector at [CLS] only. W_c (d × d) and W_n (d × 2) are its matrices:
#
#     P(S₂ follows or not) = softmax( tanh(φ_[CLS] W_c + b_c) W_n + b_n )
#
# We compute both one number at a time, with plain Python.

# %%
def linear(layer, vector):
    """vector W + b. PyTorch stores W transposed: one row per output."""
    rows = zip(layer.weight.tolist(), layer.bias.tolist())
    return [sum(w * v for w, v in zip(row, vector)) + b for row, b in rows]


def normalise(norm, vector):
    mean = sum(vector) / len(vector)
    variance = sum((v - mean) ** 2 for v in vector) / len(vector)
    return [gain * (v - mean) / math.sqrt(variance + 1e-12) + b
            for v, gain, b in zip(vector, norm.weight.tolist(), norm.bias.tolist())]


def softmax(scores):
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


def mlm_by_hand(phi):
    u = [u * (1 + math.erf(u / math.sqrt(2))) / 2 for u in linear(tiny.mlm_dense, phi)]     # gelu
    u = normalise(tiny.mlm_norm, u)
    return softmax([sum(a * b for a, b in zip(u, row)) + bias
                    for row, bias in zip(W_e.tolist(), tiny.mlm_bias.tolist())])


with torch.no_grad():
    hidden = tiny.hidden(tokens, segments)                              # (1, T, C)
    got = tiny.mlm_logits(hidden)[0].softmax(-1)                        # (T, V)
    lesson.check("P(xᵢ) = softmax(norm(gelu(φᵢ W_m + b_m)) W_eᵀ + b_V)", got,
                 [mlm_by_hand(phi) for phi in hidden[0].tolist()], atol=1e-12, items=("D08",),
                 source="D: Classification Network; Google's code, run_pretraining.py")
    pooled = [math.tanh(u) for u in linear(tiny.pooler, hidden[0, 0].tolist())]
    lesson.check("P(follows or not) = softmax(tanh(φ_[CLS] W_c + b_c) W_n + b_n)",
                 tiny.nsp_logits(hidden)[0].softmax(-1), softmax(linear(tiny.nsp, pooled)),
                 atol=1e-12, source="Devlin et al. 2019, §3.1; Google's code")

# %% [markdown]
# ## 5. The loss
# Both tasks are trained together. Let c be the true class of a pair. The loss is the sum of two
# means, over the chosen positions i ∈ I of the batch and over its pairs:
#
#     L = L_MLM + L_NSP
#     L_MLM = −mean over i ∈ I of log P(xᵢ | x̃₁ … x̃_m)
#     L_NSP = −mean over pairs of log P(c | x̃₁ … x̃_m)
#
# Errata: course D ("LOSS FUNCTION of BERT") writes δ for the expectation over I and x̃, calls the
# words of I "corrette" (they are the corrupted ones), and writes L_MCM for L_MLM. It sums where the
# paper takes means (Devlin et al. 2019, A.2). Only chosen positions are in the loss. We add the
# logarithms by hand. At every other position the gradient of the scores must be exactly 0.

# %%
text = torch.randint(4, 11, (2, 7), generator=lesson.generator)
shown, labels, chosen = mask_tokens(text, SPECIAL, MASK, 11, lesson.generator, rate=0.4)
follows = torch.tensor([0, 1])
hidden = tiny.hidden(shown)
word_scores, pair_scores = tiny.mlm_logits(hidden), tiny.nsp_logits(hidden)     # (B, T, V), (B, 2)
word_scores.retain_grad()
loss = bert_loss(word_scores, labels, pair_scores, follows, chosen)
loss.backward()

on_words = [-math.log(softmax(word_scores[b, t].tolist())[labels[b, t]])
            for b in range(2) for t in range(7) if chosen[b, t]]
on_pairs = [-math.log(softmax(pair_scores[b].tolist())[follows[b]]) for b in range(2)]
lesson.check("L = L_MLM + L_NSP", loss, sum(on_words) / len(on_words) + sum(on_pairs) / 2,
             atol=1e-12, source="D: LOSS FUNCTION of BERT; Devlin et al. 2019, A.2",
             items=("D12",))
lesson.check("gradient at positions that were not chosen", word_scores.grad[~chosen].abs().sum(),
             0.0, atol=0.0, source="L_MLM has no term for them")

# %% [markdown]
# ## 6. The number of parameters
# BERT has V = 30,522 tokens, 512 positions and 2 segments. Its width is C, and it has L layers. The
# matrices of a layer have 12C² numbers: four of C × C in attention, two of C × 4C in the
# feed-forward network. Its biases have 4C + (4C + C), and its two norms 4C:
#
#     (V + 512 + 2)·C + 2C      embeddings and their norm
#     L·(12C² + 13C)            layers
#     C² + C                    W_c and b_c, the layer that reads [CLS]
#
# The paper does not count the rest of the two heads. On the "meta" device tensors have shapes but
# no memory.

# %%
for name, config, C, L, published in (("base", BERTConfig.base(), 768, 12, 110e6),
                                      ("large", BERTConfig.large(), 1024, 24, 340e6)):
    with torch.device("meta"):
        model = BERT(config)
    counted = sum(p.numel() for part, p in model.named_parameters()
                  if not part.startswith(("mlm", "nsp")))
    by_hand = (30_522 + 514) * C + 2 * C + L * (12 * C * C + 13 * C) + C * C + C
    lesson.check(f"BERT-{name}: {counted:,} parameters", counted, by_hand, atol=0,
                 source="arithmetic by hand", items=("D05",))
    lesson.check(f"BERT-{name}: the published {published / 1e6:.0f}M, within 2 %",
                 counted / published, 1.0, atol=0.02, items=("D05",),
                 source="D: Parametri di BERT; Devlin et al. 2019, §3")

# %% [markdown]
# ## 7. Pre-training, compared with the best possible reader
# We train on texts from a small artificial world, because there the best possible predictions can
# be computed. A text, or scene, has two sentences. The second repeats the name and the person of
# the first, and has the pronoun of the name. Each person belongs to one of six groups and meets the
# things of that group. Three words have two senses. The person decides the sense, and the words
# next to it never do. (Here a token is a word; the real BERT reads pieces of words. `a/b/c` means
# that one of these words is drawn.)

# %%
WOMEN, MEN = "Ada Clara Ella Ivy Lea Mia Rosa Vera", "Adam Finn Jack Lars Luca Nico Oscar Tito"
NAMES = {name: "she" for name in WOMEN.split()} | {name: "he" for name in MEN.split()}
SENSES = {  # (word, sense): another word of the same sense, the people of it, what they meet
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
    ("spring", "coil"): (
        "screw", "clockmaker engineer inventor locksmith mechanic plumber tinker watchmaker",
        "clock/engine/gear/hinge/lever/lock/piston/valve")}
templates = [
    (f"{name} the {person} drew/found/left/liked/missed/saw the {word}/{own_word} "
     f"again/alone/early/late/today . Later/Soon/There/Then {pronoun} "
     f"met/noticed/painted/praised the {things} , and {name} the {person} "
     "frowned/laughed/sighed/smiled .").split()
    for name, pronoun in NAMES.items()
    for (word, _), (own_word, people, things) in SENSES.items() for person in people.split()]
all_words = [word for cells in templates for cell in cells for word in cell.split("/")]
tokenizer = WordTokenizer.train(all_words, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
V = tokenizer.vocab_size
FIRST, BOTH = 8, 20                             # words of sentence 1, and of both sentences

# (Z, 20, V): P(word at t | z). A value of z is a name with a person, so Z = 16 · 48 = 768.
world = torch.zeros(len(templates), BOTH, V, dtype=torch.float64)
for z, cells in enumerate(templates):
    for t, cell in enumerate(cells):
        choices = tokenizer.encode(cell.split("/"))
        world[z, t, choices] = 1 / len(choices)


def documents_of(n, seed):
    """n scenes: for each, the token ids of its two sentences."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(len(world), (n,), generator=generator)
    drawn = torch.multinomial(world[z].flatten(0, 1), 1, generator=generator)       # (n·20, 1)
    return [[words[:FIRST], words[FIRST:]] for words in drawn.view(n, BOTH).tolist()]


def text_of(numbers):
    return tokenizer.decode(numbers).replace(" .", ".").replace(" ,", ",")


documents = documents_of(lesson.pick(full=8_000, quick=2_000), seed=2 * lesson.seed)
fresh = documents_of(3_000, seed=2 * lesson.seed + 1)   # test scenes: an odd seed
for first, second in fresh[:4]:
    print(f"      {text_of(first)} {text_of(second)}")
print(f"      {len(world)} values of z (name and person), {V} tokens; "
      f"{sum(d in documents for d in fresh[:200])} of 200 test scenes also occur in training")

# %% [markdown]
# What are the best possible predictions? Let z be the name and the person of a scene. There are Z =
# 16 · 48 = 768 values, all equally likely. Given z, all words are independent. In this test each
# token is chosen with probability 0.15, independently of the others. So it stays the true word with
# probability 0.85 + 0.15·0.1 = 0.865, and becomes a random one of the V − 4 ordinary tokens with
# probability 0.15·0.1 = 0.015. The probability of a visible word y is
#
#     P(y | z) = 0.865·P(true word = y | z) + 0.015/(V − 4)
#
# [MASK] has the same probability for each z, so it gives no information about z. Call the product
# of these probabilities over S₁ ℓ₁(z), that over S₂ ℓ₂(z), and the mean over the values of z ⟨·⟩.
# If S₂ follows S₁, both have the same z. If not, each has its own z, and the two are independent:
#
#     P(shown | S₂ follows) = ⟨ℓ₁ ℓ₂⟩             P(shown | S₂ does not) = ⟨ℓ₁⟩⟨ℓ₂⟩
#
# Both cases have probability ½. For the z of S₁ we add them, each with P(z) = 1/Z:
#
#     P(z of S₁, shown) = ½·(1/Z)·ℓ₁(z) ℓ₂(z) + ½·(1/Z)·ℓ₁(z) ⟨ℓ₂⟩
#     P(z of S₁ | shown) ∝ ℓ₁(z)·( ℓ₂(z) + ⟨ℓ₂⟩ )
#     P(z of S₂ | shown) ∝ ℓ₂(z)·( ℓ₁(z) + ⟨ℓ₁⟩ )         in the same way
#
# A masked word of S₁ then has the distribution Σ_z P(z of S₁ | shown)·P(word | z), and likewise in
# S₂. A reader that takes its most probable word has the highest possible expected accuracy. We call
# this reader Bayes. For the pair that is hardest to judge, we also list all Z × Z combinations,
# without these formulas. And over many words, the share that Bayes gets right must equal the mean
# probability that it gives to its answers.

# %%
# the positions of the words in [CLS] S₁ [SEP] S₂ [SEP]
WORDS = torch.tensor([*range(1, 1 + FIRST), *range(2 + FIRST, 2 + BOTH)])


def best_reader(shown):
    """shown (B, T) -> P(word | shown) at WORDS (B, 20, V), P(S₂ follows S₁ | shown) (B)."""
    shown = shown[:, WORDS]                                             # (B, 20)
    true = world[:, torch.arange(BOTH), shown].transpose(0, 1)          # (Z, B, 20) -> (B, Z, 20)
    fit = true * 0.865 + 0.015 / (V - 4)                                # constant at a [MASK]
    l1, l2 = fit[..., :FIRST].prod(-1), fit[..., FIRST:].prod(-1)       # (B, Z) each
    mean1, mean2 = l1.mean(1, keepdim=True), l2.mean(1, keepdim=True)   # (B, 1)
    z1, z2 = l1 * (l2 + mean2), l2 * (l1 + mean1)                       # (B, Z)
    z1, z2 = z1 / z1.sum(1, keepdim=True), z2 / z2.sum(1, keepdim=True)
    of_first = torch.einsum("bz,ztv->btv", z1, world[:, :FIRST])        # (B, 8, V)
    of_second = torch.einsum("bz,ztv->btv", z2, world[:, FIRST:])       # (B, 12, V)
    follows = (l1 * l2).mean(1)
    return torch.cat([of_first, of_second], 1), follows / (follows + (mean1 * mean2)[:, 0])


def batches(documents, size, **options):
    """A `next_batch` function: each call draws new pairs and corrupts them anew."""
    def next_batch(generator):
        tokens, segments, mask, follows = sentence_pairs(documents, size, CLS, SEP, PAD, BOTH + 3,
                                                         generator)
        corrupted = mask_tokens(tokens, SPECIAL, MASK, V, generator, **options)
        return *corrupted, segments, mask, follows

    return next_batch


draw = batches(fresh, lesson.pick(full=768, quick=256), variant="bernoulli")
generator = torch.Generator().manual_seed(lesson.seed)
shown, labels, chosen, segments, present, follows = draw(generator)
asked = shown == MASK                                                   # (B, T)
answers = labels[asked]                                                 # (N)
parts = [best_reader(part) for part in shown.split(256)]
readings = torch.cat([words for words, _ in parts])                     # (B, 20, V)
posterior = readings[asked[:, WORDS]]                                   # (N, V)
p_follows = torch.cat([p for _, p in parts])                            # (B): P(S₂ follows | shown)
hardest = (p_follows - 0.5).abs().argmin()


def likelihood(z, places):
    """P(what the hardest pair shows at these places | z), word by word."""
    product = 1.0
    for t in places:
        y = shown[hardest, WORDS[t]].item()
        cell = tokenizer.encode(templates[z][t].split("/"))
        product *= sum(0.85 * (y == true) + 0.15 * (
            0.8 * (y == MASK) + 0.1 * (y > MASK) / (V - 4) + 0.1 * (y == true)
        ) for true in cell) / len(cell)
    return product


of_first, of_second = torch.tensor([
    [likelihood(z, places) for z in range(len(world))]
    for places in (range(FIRST), range(FIRST, BOTH))], dtype=torch.float64)             # (Z) each
table = torch.outer(of_first, of_second) / len(world)                   # (Z, Z): two scenes
together = (of_first * of_second).diag()                                # (Z, Z): one scene, one z
total = table.sum() + together.sum()
by_listing = torch.einsum("yz,ztv->tv", (table + together) / total, world[:, FIRST:])   # (12, V)
lesson.check("Bayes, words of S₂ = listing all Z × Z", readings[hardest, FIRST:], by_listing,
             atol=1e-12, source="Bayes' rule")
lesson.check("Bayes, S₂ follows = listing all Z × Z", p_follows[hardest], together.sum() / total,
             atol=1e-12, source="Bayes' rule")
sure = posterior.max(-1).values
best = {"words": (posterior.argmax(-1) == answers).double().mean().item(),
        "bits": -posterior.gather(-1, answers[:, None]).log2().mean().item(),
        "pairs": ((p_follows < 0.5) == (follows == 1)).double().mean().item()}
lesson.check("Bayes, masked words: share right = expected share (4σ)", best["words"], sure.mean(),
             atol=4 * (sure * (1 - sure)).mean().sqrt().item() / len(answers)**0.5,
             source="Bayes' rule")
lesson.check("Bayes, pairs: share right = expected share (4σ)", best["pairs"],
             p_follows.maximum(1 - p_follows).mean(),
             atol=4 * (p_follows * (1 - p_follows)).mean().sqrt().item() / len(p_follows)**0.5,
             source="Bayes' rule")

# %% [markdown]
# BERT should also do better than counting. Three counters learn from the same scenes. They see the
# true neighbours of a masked word, while BERT may see these masked or replaced. They predict
# - the most frequent token;
# - the most frequent token after the two before it: a trigram (lesson 02);
# - the most frequent token between its two neighbours. The trigram class counts these too, if we
#   write the tokens in the order left, right, middle, and add 0, V and 2V to their ids.

# %%
text = torch.tensor([token for first, second in documents
                     for token in (CLS, *first, SEP, *second, SEP)])    # tokens of all scenes
left, middle, right = text[:-2], text[1:-1], text[2:]
trigram = NGram(3, V).fit(text)
neighbours = NGram(3, 3 * V).fit(torch.stack([left, right + V, middle + 2 * V], 1).flatten())
row, place = asked.nonzero(as_tuple=True)                               # (N) each
before, after = labels[row, place - 1], labels[row, place + 1]
two_before = torch.stack([labels[row, (place - 2).clamp(min=0)], before], 1)            # (N, 2)
both_sides = torch.stack([before, after + V], 1)                                        # (N, 2)
guesses = {
    "most frequent token": text[text > MASK].bincount().argmax().expand(len(answers)),
    "trigram": trigram.next_token_probabilities(two_before).argmax(-1),
    "both neighbours": neighbours.next_token_probabilities(both_sides)[:, 2 * V:].argmax(-1),
}
counted = {name: (guess == answers).double().mean().item() for name, guess in guesses.items()}
of_counters = ", ".join(f"{name} {share:.3f}" for name, share in counted.items())
print(f"      of {len(answers):,} masked words: {of_counters}, Bayes {best['words']:.3f}")

# %% [markdown]
# We train two BERTs with the same initial weights: one with the shares 80/10/10, one for which
# every chosen token becomes [MASK] (section 8 compares the two).

# %%
def pretraining_loss(model, batch):
    """L_MLM + L_NSP. Scores are computed at the chosen positions only."""
    shown, labels, chosen, segments, mask, follows = batch
    hidden = model.hidden(shown, segments, mask)                        # (B, T, C)
    words, pairs = model.mlm_logits(hidden[chosen]), model.nsp_logits(hidden)   # (N, V), (B, 2)
    return bert_loss(words, labels[chosen], pairs, follows)


def examine(model):
    """On test scenes: share of [MASK]s predicted, bits per [MASK], share of pairs correct."""
    hidden = model.hidden(shown, segments, present)
    logprobs = model.mlm_logits(hidden[asked]).log_softmax(-1)          # (N, V)
    return {"words": (logprobs.argmax(-1) == answers).double().mean().item(),
            "bits": -logprobs.gather(-1, answers[:, None]).mean().item() / math.log(2),
            "pairs": (model.nsp_logits(hidden).argmax(-1) == follows).double().mean().item()}


models, histories = {}, {}
config = TrainingConfig(
    max_steps=lesson.pick(full=2_600, quick=40), learning_rate=1e-3, weight_decay=0.0,
    optimizer="muon", evaluate_every=lesson.pick(full=200, quick=20), seed=lesson.seed)


def on_row(row):
    print(f"  step {row['step']:5d}   masked words {row['words']:.3f}, {row['bits']:.3f} bits each "
          f"(Bayes {best['bits']:.3f})   pairs {row['pairs']:.3f}", flush=True)


for name, shares in (("80/10/10", (0.8, 0.1, 0.1)), ("[MASK] alone", (1, 0, 0))):
    model = BERT(BERTConfig(V, BOTH + 3, n_layers=2, n_heads=4, d_model=64),
                 torch.Generator().manual_seed(lesson.seed))
    print(f"  {name}: {count_parameters(model):,} parameters, {config.max_steps} steps of 32 pairs")
    models[name] = model
    histories[name] = train(model, batches(documents, 32, shares=shares), pretraining_loss, config,
                            examine, on_row=on_row)

# %% [markdown]
# BERT is better than the counters where the answer depends on distant words: name, person, pronoun
# and group. At the end it predicts almost as many words as Bayes. The difference that remains is
# visible in bits: BERT finds the most probable word, but its probabilities are less exact. The
# accuracy on pairs stays at ½ for longer, because a row has several masked words but one pair. Here
# an S₂ from elsewhere is mostly about another group, so the topic alone often gives the class.
# ALBERT's authors criticise NSP for this reason, and ask for the order of two texts instead (Lan et
# al. 2020, §3.1). RoBERTa is trained without NSP and is as good (Liu et al. 2019, §4.2).

# %%
final = histories["80/10/10"][-1]
lesson.claim("masked words: 0.1 above a trigram, 0.05 above both neighbours, within 0.03 of Bayes",
             final["words"] > max(counted["trigram"] + 0.1, counted["both neighbours"] + 0.05,
                                  best["words"] - 0.03),
             f"BERT {final['words']:.3f}, Bayes {best['words']:.3f}; {of_counters}; BERT needs "
             f"{final['bits'] - best['bits']:.3f} bits per word more than Bayes", full_run=True,
             items=("D07",))
lesson.claim("does S₂ follow S₁: at least 90 % correct on test pairs", final["pairs"] >= 0.9,
             f"BERT {final['pairs']:.3f}, Bayes {best['pairs']:.3f}, chance 0.5", full_run=True)

fig, (of_words, of_pairs) = plotting.figure(10.5, 4, 1, 2)
steps = [r["step"] for r in histories["80/10/10"]]
for axes, key in ((of_words, "words"), (of_pairs, "pairs")):
    axes.plot(steps, [r[key] for r in histories["80/10/10"]], marker="o", markersize=3,
              label="BERT")
    axes.axhline(best[key], color="black", linestyle=":", label=f"Bayes, {best[key]:.2f}")
for colour, dash, (name, share) in zip((1, 2, 3), (1, 3, 4), reversed(counted.items())):
    of_words.axhline(share, color=plotting.COLOURS[colour], linestyle=plotting.DASHES[dash],
                     label=f"{name}, {share:.2f}")
of_pairs.axhline(0.5, color=plotting.COLOURS[1], linestyle=plotting.DASHES[1], label="chance")
of_words.set(xlabel="optimizer steps", ylabel="share of masked words predicted", ylim=(0, 1.05),
             title="Masked words of test scenes")
of_pairs.set(xlabel="optimizer steps", ylabel="share of pairs judged correctly", ylim=(0, 1.05),
             title="Does S₂ follow S₁?")
of_words.legend(loc="upper left")
of_pairs.legend(loc="lower right")
lesson.figure(fig, "pretraining")

# %% [markdown]
# An example with four masked words. For each we print the true word, then the three most probable
# words of BERT with their probabilities, and the probability that Bayes gives to each of the three.

# %%
model = models["80/10/10"]
tokens = torch.tensor([[CLS, *fresh[0][0], SEP, *fresh[0][1], SEP]])    # (1, T)
hidden_at = torch.tensor([3, 6, 11, 14])                # person, place, pronoun, what is met
blanks = tokens.index_fill(1, hidden_at, MASK)
print("      " + text_of(blanks[0, WORDS].tolist()))
with torch.no_grad():
    offers = model(blanks, segments[:1])[0, hidden_at].softmax(-1).topk(3)      # (4, V) -> (4, 3)
by_bayes = torch.zeros(BOTH + 3, V, dtype=torch.float64)                # (T, V)
by_bayes[WORDS] = best_reader(blanks)[0][0]
for place, scores, words in zip(hidden_at.tolist(), offers.values.tolist(),
                                offers.indices.tolist()):
    print(f"      {tokenizer.vocabulary[tokens[0, place]]:<11}"
          + ", ".join(f"{tokenizer.vocabulary[word]} {p:.2f} (Bayes {by_bayes[place, word]:.2f})"
                      for p, word in zip(scores, words)))

# %% [markdown]
# ## 8. Why not every chosen token becomes [MASK]
# Later tasks give BERT whole texts, without [MASK]. If only [MASK]s are in the loss, the loss never
# depends on the head's scores at a visible word, so these scores can be anything. With 10 % random
# and 10 % unchanged tokens, any visible word may be in the loss: is it the true word, and if not,
# which word is (Devlin et al. 2019, A.1)? We give both models whole texts and look at every
# position. Does the most probable word equal the visible one? Then we replace one word per scene by
# a random one. Is it the word to which the model gives the lowest probability in the scene? And
# does the model predict the original word there?

# %%
tokens, segments, present, _ = sentence_pairs(fresh, 1_000, CLS, SEP, PAD, BOTH + 3,
                                              torch.Generator().manual_seed(lesson.seed))
planted = mask_tokens(tokens, SPECIAL, MASK, V, lesson.generator, rate=1 / BOTH,
                      shares=(0, 1, 0))[0]                              # (B, T)
changed = (planted != tokens).any(1)        # leave out rows whose random word equals the original
tokens, segments, present, planted = (x[changed] for x in (tokens, segments, present, planted))
wrong = planted != tokens                                               # (B, T): one per row


def on_whole_texts(model):
    with torch.no_grad():                                               # (B, T, V) each
        plain, disturbed = (model(x, segments, present).log_softmax(-1) for x in (tokens, planted))
    of_shown = disturbed.gather(-1, planted[..., None])[..., 0]         # (B, T): log P(shown word)
    of_shown = of_shown.masked_fill(planted < 4, 0.0)                   # not the special tokens
    found = wrong.gather(1, of_shown.argmin(1, keepdim=True))
    corrected = (disturbed.argmax(-1) == tokens)[wrong]
    given_back = (plain.argmax(-1) == tokens)[:, WORDS]
    return {"visible words\ngiven back": given_back.double().mean().item(),
            "wrong word\nfound": found.double().mean().item(),
            "wrong word\ncorrected": corrected.double().mean().item()}


measured = {name: {"[MASK]s\npredicted": histories[name][-1]["words"]} | on_whole_texts(model)
            for name, model in models.items()}

# %% [markdown]
# Both models predict [MASK]s equally well. On whole texts the second model often fails to give back
# a visible word, because its head was trained on the vectors of [MASK] alone. It also finds and
# corrects fewer wrong words. (Nobody can correct them all: many words of a scene are drawn freely.)

# %%
mixed, alone = measured.values()
masked, whole, *_ = mixed
side_by_side = "; ".join(f"{what.replace(chr(10), ' ')} {mixed[what]:.3f}, {alone[what]:.3f}"
                         for what in mixed)
lesson.claim("[MASK] alone: equal at [MASK]s (0.05), visible words given back 0.2 less often",
             abs(mixed[masked] - alone[masked]) < 0.05 and mixed[whole] > alone[whole] + 0.2,
             f"80/10/10, [MASK] alone: {side_by_side}", full_run=True)

fig, axes = plotting.figure(9, 4)
for i, (name, values) in enumerate(measured.items()):
    bars = axes.bar([x + 0.4 * i for x in range(4)], values.values(), 0.38, label=name,
                    color=plotting.COLOURS[i], hatch=("", "//")[i], edgecolor="white")
    axes.bar_label(bars, fmt="%.2f", fontsize=9)
axes.set_xticks([x + 0.2 for x in range(4)], mixed)
axes.set(ylabel="share of words", ylim=(0, 1.2),
         title="The effect of 10 % random and 10 % unchanged tokens")
axes.legend(loc="upper right", ncols=2)
axes.grid(axis="x", visible=False)
lesson.figure(fig, "ablation")

# %% [markdown]
# ## 9. One word, two senses
# The embedding table has one row for "bank", whatever its sense. The word is always at position 6,
# in S₁, so the vector that enters the first layer is the same in both senses. Each layer then adds
# information from the rest of the text. No label in the training tells the sense. Do the vectors of
# "bank" differ between its senses? We compute the mean vector of "bank" in scenes of each sense,
# and give a new vector to the nearer mean. The means come from half of the people (angler, diver,
# …), the test from the other half (boatman, ferryman, …). So the vectors near anglers and near
# boatmen must be similar. We test both models: section 8 tested their scores, and the vectors may
# contain more than the scores show.

# %%
AMBIGUOUS = sorted({word for word, _ in SENSES})


def occurrences(word):
    """Test scenes with the word: tokens (B, T), sense 0 or 1 (B), half of the people (B)."""
    senses = [sense for (w, sense) in SENSES if w == word]
    belongs = {person: (sense, i % 2) for sense, name in enumerate(senses)
               for i, person in enumerate(tokenizer.encode(SENSES[word, name][1]))}
    word_id, = tokenizer.encode(word)
    scenes = [(first, second) for first, second in fresh if first[5] == word_id]
    tokens = torch.tensor([[CLS, *first, SEP, *second, SEP] for first, second in scenes])
    sense, half = torch.tensor([belongs[first[2]] for first, _ in scenes]).T
    return tokens, sense, half


separation, clouds, spread = {}, {}, 0.0
for name, model in models.items():
    for word in AMBIGUOUS:
        tokens, sense, half = occurrences(word)
        with torch.no_grad():
            x = model.embed(tokens, segments[:1].expand_as(tokens))     # (B, T, C)
            spread = max(spread, (x[:, 6] - x[0, 6]).abs().max().item())
            vectors = [(x := block(x))[:, 6] for block in model.blocks]         # each (B, C)
        separation[name, word] = []
        for layer in vectors:
            means = torch.stack([layer[(sense == s) & (half == 0)].mean(0) for s in (0, 1)])
            nearer = torch.cdist(layer[half == 1], means).argmin(1)
            right = (nearer == sense[half == 1]).double().mean().item()
            separation[name, word].append(right)
        clouds[name, word] = (vectors[-1], sense)
        by_layer = "layers 1 and 2: {:.3f} and {:.3f}".format(*separation[name, word])
        print(f"      {name:<13}{word:<7} right sense: input 0.5 (equal vectors), {by_layer}")
lesson.check("the input vector of a word is the same in both senses", spread, 0.0, atol=1e-6,
             source="same token, position and segment")
lowest = {name: min(separation[name, word][-1] for word in AMBIGUOUS) for name in models}
lesson.claim("the last layer separates the two senses of each word, for people not in the means",
             lowest["80/10/10"] >= 0.9,
             f"right for at least {lowest['80/10/10']:.3f} of each word's occurrences; with [MASK] "
             f"alone at least {lowest['[MASK] alone']:.3f}; from the embedding 0.5", full_run=True)

fig, axes = plotting.figure(11, 3.8, 1, 3)
for panel, word in zip(axes, AMBIGUOUS):
    vectors, sense = clouds["80/10/10", word]
    centred = vectors - vectors.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:2]  # (2, C): most variance
    plane = centred @ directions.T                                      # (B, 2)
    names = [name for (w, name) in SENSES if w == word]
    for s, marker, colour in ((0, "o", plotting.COLOURS[0]), (1, "x", plotting.COLOURS[1])):
        panel.scatter(*plane[sense == s].T, s=14, marker=marker, color=colour, alpha=0.6,
                      label=names[s])
    panel.set(title=f"“{word}”: {separation['80/10/10', word][-1]:.0%} right",
              xlabel="1st principal component", ylabel="2nd principal component")
    panel.legend()
fig.suptitle("Last-layer vectors of a word with two senses (from the embedding: 50 % right)")
lesson.figure(fig, "senses")
lesson.end()
