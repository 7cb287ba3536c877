"""Lesson 04: sequence to sequence: two recurrent networks translate, with and without attention.

You will see    the encoder, the decoder and attention as loops, equal to the library's; the score
                vᵀ tanh(W[s; h]) and its softmax; four translators, into Spanish and Italian, with
                and without attention, compared on long sentences; and which source words attention
                looks at, next to the true alignment, which was never shown in training.
Source          course C, "RNNs: a Machine Translation example", "Attention", "Attention Modules";
                Sutskever et al. 2014; Cho et al. 2014; Bahdanau et al. 2015.
Expect          about 2 min on one core; every check passes. On sentences of 20 words and more,
                96 % of the words are right and in place with attention, and 14 % without.
Not here        attention without recurrence (lesson 05), subwords (lesson 01), BLEU.

Shapes: B batch, S source words, T target words, H hidden units, U units in the score, N sentences,
V target vocabulary (in the formula A(q, K, V), V is the matrix of the values).
"""
# %%
import math

import torch
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.generation import beam_search, generate
from minigpt.models.attention import AdditiveAttention
from minigpt.models.counting import count_parameters
from minigpt.models.seq2seq import Seq2Seq, Seq2SeqConfig
from minigpt.text.padding import pad
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import cross_entropy
from minigpt.worlds.translation import sample_pair, written

lesson = Lesson("04_seq2seq_attention", threads=1)


def randn(*shape):
    return torch.randn(*shape, generator=lesson.generator, dtype=torch.float64)


# %% [markdown]
# ## 1. A translation with a known answer
# A real sentence has many good translations, and the alignment (which word translates which) is
# not given. So this lesson's sentences come from a grammar (`minigpt/worlds/translation.py`) that
# writes both languages at once. Each English sentence has exactly one translation, so every other
# answer is wrong. The grammar also records the alignment.
#
# English does not show the gender of "nurse" or the number of an adjective. Spanish and Italian
# show them in the article, the adjective and the verb. Their adjectives follow the noun, in reverse
# order. And sometimes two words become one («del»), or one word becomes two («ha visto»).

# %%
LANGUAGES = {"spanish": "EN→ES", "italian": "EN→IT"}
N_TRAINING, N_HELD_OUT = lesson.pick(full=12_000, quick=500), lesson.pick(full=1000, quick=150)


def sample(language, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [sample_pair(language, generator) for _ in range(n)]


held_out = {language: sample(language, N_HELD_OUT, seed=1_000_000 + lesson.seed)
            for language in LANGUAGES}
# One seed writes the same English sentences for both languages.
unseen = {tuple(pair.source) for pair in held_out["spanish"]}
training = {}
for language, name in LANGUAGES.items():
    training[language] = [pair for pair in sample(language, N_TRAINING, lesson.seed)
                          if tuple(pair.source) not in unseen]
    in_training = {" ".join(pair.source) for pair in training[language]}
    in_both = in_training & {" ".join(pair.source) for pair in held_out[language]}
    lesson.check(f"{name}: no held-out sentence is in the training set", len(in_both), 0, atol=0,
                 source="counted")

for pairs in held_out.values():                         # the longest of ≤ 10 words, with "not"
    source, target, alignment = max(pairs, key=lambda pair: (
        len(pair.source) <= 10, "not" in pair.source, len(pair.source)))
    print(f"\n    {' '.join(source)}\n    {written(target)}")
    print("    " + "  ".join(f"{target[t]}←{source[s]}" for t, s in alignment))

# %% [markdown]
# ## 2. Encoder, one vector, decoder
# Let x₁..x_S be the source sentence and y₁..y_T its translation. The chain rule of lesson 02 also
# holds if every factor has the condition x:
#
#     P(y₁..y_T | x) = P(y₁ | x) · P(y₂ | y₁, x) · … · P(y_T | y₁..y_T₋₁, x)
#
# So a translator is a language model of the target language that also receives x. Cho et al. and
# Sutskever et al. (2014) use two recurrent networks. The **encoder** reads x, and its last state c
# is one vector for the whole sentence. The **decoder** writes y, one word at a time. Our encoder
# reads in both directions (lesson 03), and hᵢ is its state at word i, called **annotation**:
#
#     hᵢ = [→hᵢ ; ←hᵢ]                                  two LSTMs read x; [a ; b] is one long vector
#     c  = [→h_S ; ←h₁]                                 the last state of each direction
#     s₀ = tanh(W₀ c + b₀)                              the decoder's first state
#     sₜ = LSTM(sₜ₋₁, [yₜ₋₁ ; c])                       yₜ₋₁ stands for the vector of the word
#     P(yₜ | y_<ₜ, x) = softmax(W_o tanh(W_h [sₜ ; c] + b_h) + b_o)
#
# In training, y is known, and yₜ₋₁ is the *true* previous word. This is called **teacher forcing**:
# one call gives the loss −Σ log P(yₜ | y_<ₜ, x) for all t. In translation, yₜ₋₁ is the word that
# the decoder wrote itself, so there is one call for each word.
#
# The check below computes these equations for one sentence, one word at a time. The library must
# give the same logits for a padded batch in one call, and for one call per word.
#
# Items: C21

# %%
def lstm_step(lstm, x, h, c):
    """One step of lesson 03's LSTM for one vector x: the new h and c, each (H,)."""
    i, f, g, o = (lstm.W @ x + lstm.U @ h + lstm.b).chunk(4)            # 4 times (H,)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def read(lstm, vectors):
    """(S, E) -> the state after each vector, (S, H)."""
    h = c = vectors.new_zeros(lstm.d_hidden)
    states = []
    for x in vectors:
        h, c = lstm_step(lstm, x, h, c)
        states.append(h)
    return torch.stack(states)


def logits_by_hand(model, source, target, context_of=None):
    """One sentence: ids (S,) and (T,) -> logits (T, V). `context_of` comes in section 4."""
    x = model.source_embedding.weight[source]                           # (S, E)
    right = read(model.encoder.rightwards, x)                           # (S, H)
    left = read(model.encoder.leftwards, x.flip(0)).flip(0)             # (S, H)
    annotations = torch.cat([right, left], dim=1)                       # (S, 2H)
    context = torch.cat([right[-1], left[0]])                           # (2H,) c
    s, cell = model.start(context).tanh(), x.new_zeros(right.size(1))   # (H,) each
    logits = []
    for y in model.target_embedding.weight[target]:
        if context_of:
            context = context_of(model, s, annotations)
        s, cell = lstm_step(model.decoder, torch.cat([y, context]), s, cell)
        logits.append(model.out_embedding(model.hidden(torch.cat([s, context])).tanh()))
    return torch.stack(logits)                                          # (T, V)


@torch.no_grad()
def check_translator(attention, context_of=None):
    config = Seq2SeqConfig(11, 13, d_embedding=5, d_hidden=6, attention=attention)
    small = Seq2Seq(config, lesson.generator).double()
    lengths = torch.tensor([7, 4, 2])                                   # the rest is padding
    source = torch.randint(3, 11, (3, 7), generator=lesson.generator)
    target = torch.randint(3, 13, (3, 5), generator=lesson.generator)
    by_hand = torch.stack([logits_by_hand(small, source[b, :n], target[b], context_of)
                           for b, n in enumerate(lengths)])             # (B, T, V)
    decoder = small.decoder_for(source, lengths)
    cache = decoder.new_cache()
    stepwise = [decoder(target[:, t:t + 1], cache) for t in range(5)]   # T times (B, 1, V)
    words = "with" if attention else "without"
    paper = "Bahdanau et al. 2015, §3" if attention else "Cho et al. 2014, §2.2"
    origin = f"C: RNNs: a Machine Translation example; {paper}"
    lesson.check(f"a padded batch, {words} attention = by hand", small(source, lengths, target),
                 by_hand, atol=1e-12, source=origin)
    lesson.check(f"one call per word, {words} attention = by hand", torch.cat(stepwise, dim=1),
                 by_hand, atol=1e-12, source=origin)


check_translator(attention=False)

# %% [markdown]
# ## 3. Attention: a score for every source word
# c has a fixed size, but a sentence can be long. And c is the same for every target word, so the
# decoder is not pushed to use the important words. Course C's example is “we were on a break” and
# the French “on avait rompu”: to write “on”, only “we” matters. (Erratum: in the figure of course
# C, “avait” is written “await”.)
#
# Bahdanau et al. (2015) keep *all* annotations h₁ … h_S, and give the decoder a new weighted
# average of them for each target word. Each weight starts from a **score**: a number that says how
# well the decoder's state s and the annotation h fit together. A network with one hidden layer
# computes it:
#
#     score(s, h) = vᵀ tanh(W[s; h])
#
# W is a matrix and v a vector, both learned. Cut W into the columns for s and those for h,
# W = [W_s  W_h]. Then
#
#     W[s; h] = W_s s + W_h h
#
# W_h h does not depend on t, so it is computed once for each source word, and not for each of the
# T·S pairs. The library does this. The check computes W[s; h] as course C writes it.
#
# Which state asks? Course C writes s_t. In the paper (eq. 6), and here, the score for word t uses
# sₜ₋₁, because sₜ is computed from the average.
#
# Items: C22

# %%
B, T, S, H, U = 2, 3, 5, 4, 6
additive = AdditiveAttention(d_query=H, d_key=2 * H, d_attention=U, generator=lesson.generator)
additive = additive.double()
s, h = randn(B, T, H), randn(B, S, 2 * H)
W = torch.cat([additive.query.weight, additive.key.weight], dim=1).tolist()             # (U, 3H)
v = additive.v.tolist()


def score(s, h):
    """vᵀ tanh(W[s; h]) of two lists of numbers."""
    both = s + h                                                        # lists: this is [s; h]
    hidden = [math.tanh(sum(w * x for w, x in zip(row, both))) for row in W]
    return sum(v_u * x for v_u, x in zip(v, hidden))


by_hand = [[[score(s[b, t].tolist(), h[b, i].tolist()) for i in range(S)] for t in range(T)]
           for b in range(B)]
with torch.no_grad():
    scores = additive.score(s, additive.project(h))                     # (B, T, S)
lesson.check("score(s, h) = vᵀ tanh(W[s; h])", scores, by_hand, atol=1e-12,
             source="C: Attention Modules; Bahdanau et al. 2015, §A.1.2", items=("C26",))

# %% [markdown]
# ## 4. From scores to an average
# The softmax turns the scores of one query into weights αᵢ, which are positive and sum to 1. The
# result is the weighted average of the annotations:
#
#     αᵢ = e^scoreᵢ / Σⱼ e^scoreⱼ          z = A(q, K, V) = softmax(score(q, K)) V = Σᵢ αᵢ hᵢ
#
# In course C's words: the **query** q is the decoder's state. The **keys** K (used for the score)
# and the **values** V (used for the average) are the same here: the annotations h₁ … h_S. In the
# decoder, z takes the place of c and is called the **context** cₜ. The scores of padding are set
# to −∞, and e^−∞ = 0, so padding has weight 0.
#
# Errata: course C speaks of an average of "the previous RNN layers"; it is an average of *states*
# of one layer. And in "Attention in Transformers" it writes z_j = Σ score(q, Kᵢ) vᵢ, without a
# softmax. But scores are not weights: they may be negative, and their sum is arbitrary. To see the
# difference, add 1 to every score. All words now fit better, and none better than another. With the
# softmax nothing changes: e^(score+1) = e · e^score, and e cancels. The sum as written changes by
# Σ hᵢ.
#
# Items: C23

# %%
mask = torch.tensor([[True] * 5, [True, True, True, False, False]])     # 5 words and 3 words
with torch.no_grad():
    z, weights = additive(s, h, mask)                                   # (B, T, 2H), (B, T, S)
n_words = [5, 3]
by_hand = torch.zeros(B, T, 2 * H, dtype=torch.float64)
for b in range(B):
    for t in range(T):
        e = [math.exp(scores[b, t, i]) for i in range(n_words[b])]
        for i in range(n_words[b]):
            by_hand[b, t] += e[i] / sum(e) * h[b, i]
lesson.check("A(q, K, V) = softmax(score) V, over the words only", z, by_hand, atol=1e-12,
             source="C: Attention Modules", items=("C25",))
lesson.check("the weights of a query sum to 1", weights.sum(-1), torch.ones(B, T), atol=1e-12,
             source="definition of the softmax")
lesson.check("padding has weight 0", weights[1, :, 3:], torch.zeros(T, 2), atol=0,
             source="e^−∞ = 0")
average = scores.softmax(-1) @ h                                        # (B, T, 2H)
lesson.check("1 more on every score changes nothing", (scores + 1).softmax(-1) @ h, average,
             atol=1e-12, source="C: Attention in Transformers, corrected")
moved = ((scores + 1) @ h - scores @ h).norm(dim=-1).mean() / average.norm(dim=-1).mean()
sums = scores.sum(-1)
print(f"    as course C writes it, z would move by {moved:.1f} times the length of the average; "
      f"its \"weights\"\n    have sums from {sums.min():.1f} to {sums.max():.1f}")


def context_by_hand(model, s, annotations):
    """The context of one target word: s (H,), annotations (S, 2H) -> (2H,)."""
    W = torch.cat([model.attention.query.weight, model.attention.key.weight], dim=1)    # (U, 3H)
    e = [(model.attention.v @ torch.tanh(W @ torch.cat([s, h]))).exp() for h in annotations]
    return sum(e_i / sum(e) * h for e_i, h in zip(e, annotations))


check_translator(attention=True, context_of=context_by_hand)

# %% [markdown]
# ## 5. How the scores are learned
# The training data do not say which source words to look at. The only signal is the loss L of the
# target words. What is its derivative with respect to a score? Write [i = j] for 1 if i = j and 0
# otherwise. For αⱼ = e^scoreⱼ / Σ, where Σ is the sum of all e^score, the quotient rule gives
#
#     ∂αⱼ/∂scoreᵢ = [i = j] e^scoreⱼ / Σ − e^scoreⱼ e^scoreᵢ / Σ² = αⱼ([i = j] − αᵢ)
#
# so for z = Σⱼ αⱼ hⱼ
#
#     ∂z/∂scoreᵢ = Σⱼ αⱼ([i = j] − αᵢ) hⱼ = αᵢhᵢ − αᵢ Σⱼ αⱼhⱼ = αᵢ(hᵢ − z)
#
# Let g = −∂L/∂z be the direction in which z should move. By the chain rule,
# −∂L/∂scoreᵢ = αᵢ · g·(hᵢ − z). So a gradient step raises the score of a word if its annotation is
# further in the direction g than the average is.
#
# Attention also shortens the path of the gradient. Through z, the loss of word t reaches the
# annotation of every source word i in one step. Without attention, it reaches only
# c = [→h_S ; ←h₁] in one step. To reach word i from there, it passes S − i states of the forward
# encoder or i − 1 states of the backward encoder. Lesson 03 measured how much is left after many
# states.

# %%
step = 1e-6
slopes = []
for nudge in torch.eye(S, dtype=torch.float64):                         # one score moves at a time
    above = (scores + step * nudge).softmax(-1) @ h                     # (B, T, 2H)
    below = (scores - step * nudge).softmax(-1) @ h
    slopes.append((above - below) / (2 * step))
slopes = torch.stack(slopes, dim=2)                                     # (B, T, S, 2H)
alpha = scores.softmax(-1)
formula = alpha[..., None] * (h[:, None] - average[:, :, None])         # (B, T, S, 2H)
lesson.check("∂z/∂scoreᵢ = αᵢ(hᵢ − z)", formula, slopes, atol=1e-8, source="derived above")

# %% [markdown]
# ## 6. Four translators
# Two languages, with and without attention. Everything else is equal: sizes, steps, batches, seeds.
# Without attention the decoder receives c at every step, as in Cho et al. (2014). A batch holds
# sentences of similar length, so it has little padding.
#
# One thing is new in the configuration: the optimizer **Muon** (`minigpt/training/optimizers.py`).
# Lessons 02 and 03 used AdamW, the default. AdamW divides the gradient of each number by its usual
# size, so all numbers move at about the same speed. Muon treats a weight matrix as a whole. It sets
# all singular values of the step to about 1, so the directions with a weak gradient are learned as
# fast as those with a strong one. AdamW still trains the embeddings, the biases and v. Neither
# optimizer is always better. For Spanish with attention, the loss ends at 0.021 nats with Muon, at
# 0.057 with AdamW and the same learning rate, and at 0.007 with AdamW and a learning rate of 0.01.

# %%
D_EMBEDDING, D_HIDDEN, BATCH_SIZE = 64, 64, 64
config = TrainingConfig(max_steps=lesson.pick(full=700, quick=10), learning_rate=3e-3,
                        optimizer="muon", evaluate_every=lesson.pick(full=175, quick=5),
                        seed=lesson.seed)
SPECIAL = ["<pad>", "<start>", "<end>"]
PAD, START, END = range(3)


class Data:
    """One language: its tokenizers, training batches, and held-out sentences as one batch."""

    def __init__(self, language):
        every = training[language] + held_out[language]
        self.english = WordTokenizer.train([word for p in every for word in p.source], SPECIAL)
        self.foreign = WordTokenizer.train([word for p in every for word in p.target], SPECIAL)
        pairs = sorted(training[language], key=lambda pair: len(pair.source))
        self.batches = [self.batch(pairs[i:i + BATCH_SIZE])
                        for i in range(0, len(pairs), BATCH_SIZE)]
        self.held_out = self.batch(held_out[language])

    def batch(self, pairs):
        """(source (B, S), lengths (B,), target (B, T + 2) between <start> and <end>)."""
        source, present = pad([self.english.encode(p.source) for p in pairs], "right", PAD)
        target, _ = pad([[START, *self.foreign.encode(p.target), END] for p in pairs], "right", PAD)
        return tuple(x.to(lesson.device) for x in (source, present.sum(1), target))

    def next_batch(self, generator):
        return self.batches[int(torch.randint(len(self.batches), (1,), generator=generator))]


def translation_loss(model, batch):
    """−mean log P(yₜ | y_<ₜ, x), in nats per word: reads <start> y₁ …, predicts y₁ … <end>."""
    source, lengths, target = batch
    logits = model(source, lengths, target[:, :-1])
    return cross_entropy(logits, target[:, 1:], target[:, 1:] != PAD)


data, translators = {language: Data(language) for language in LANGUAGES}, {}
for language, name in LANGUAGES.items():
    for attention in (False, True):
        vocab_sizes = data[language].english.vocab_size, data[language].foreign.vocab_size
        sizes = Seq2SeqConfig(*vocab_sizes, D_EMBEDDING, D_HIDDEN, attention)
        model = Seq2Seq(sizes, torch.Generator().manual_seed(lesson.seed)).to(lesson.device)
        table = train(model, data[language].next_batch, translation_loss, config)
        translators[language, attention] = model
        print(f"    {name} {'with   ' if attention else 'without'} attention, "
              f"{count_parameters(model):,} parameters: loss "
              + " → ".join(f"{row['train_loss']:.2f}" for row in list(table)[1:])
              + " nats per word")

# %% [markdown]
# ## 7. Long sentences
# Each translator now writes the held-out sentences. It decodes greedily: at each step it takes the
# most probable word, until <end>. The metric is that of the task, not perplexity (lesson 02,
# section 4): a word counts as right if the true translation has the same word at the same place. So
# one missing word makes all later words wrong. The column "true start given" avoids this: there the
# decoder receives the true previous words.
#
# One caution: look at the losses above. Without attention, the loss still falls after 700 steps;
# with attention, it is almost 0. So a part of the difference below comes from the short training:
# a translator with attention also learns faster.
#
# Items: C16

# %%
BINS = [(low, low + 1) for low in range(4, 26, 2)]      # English words: 4–5, 6–7, …, 24–25


@torch.no_grad()
def judge(model, data):
    """Which words are right: in place (N, T); with the true start given (N, T).

    Then which sentences are right (N,), which words count (N, T), the weights (N, T, S) or None.
    """
    source, lengths, target = data.held_out
    truth = target[:, 1:]                                               # (N, T) y₁ … <end>
    logits, weights = model.decode(target[:, :-1], model.encode(source, lengths))
    start = torch.full((len(source), 1), START, device=source.device)
    answer = generate(model.decoder_for(source, lengths), start, truth.size(1), temperature=0,
                      stop_token=END)[:, 1:]                            # (N, ≤ T)
    answer = F.pad(answer, (0, truth.size(1) - answer.size(1)), value=END)              # (N, T)
    in_place = answer == truth
    whole = (in_place | (truth == PAD)).all(1)
    found = in_place, logits.argmax(-1) == truth, whole, truth > END, weights
    return [None if tensor is None else tensor.cpu() for tensor in found]


def share(right, counts, rows):
    """Of the words that count in these rows, the share that is right."""
    return (right & counts)[rows].sum().item() / counts[rows].sum().item()


results, curves = {}, {}
everyone = torch.ones(N_HELD_OUT, dtype=torch.bool)
print("                  words in place   in place, 20+ words   true start given, 20+   "
      "whole sentences")
for (language, attention), model in translators.items():
    in_place, given_start, whole, counts, weights = judge(model, data[language])
    lengths = data[language].held_out[1].cpu()
    long = lengths >= 20
    all_lengths, long_only = share(in_place, counts, everyone), share(in_place, counts, long)
    results[language, attention] = all_lengths, long_only, weights
    curves[language, attention] = [share(in_place, counts, (lengths >= low) & (lengths <= high))
                                   for low, high in BINS]
    print(f"    {LANGUAGES[language]} {'with   ' if attention else 'without'} {all_lengths:14.1%} "
          f"{long_only:21.1%} {share(given_start, counts, long):23.1%} "
          f"{whole.float().mean():17.1%}")

fig, panels = plotting.figure(11, 3.8, columns=2, sharey=True)
for axes, (language, name) in zip(panels, LANGUAGES.items()):
    for attention, marker in ((True, "o"), (False, "s")):
        axes.plot([100 * y for y in curves[language, attention]], marker=marker, markersize=4,
                  label=f"{'with' if attention else 'without'} attention")
    axes.set_xticks(range(len(BINS)), [f"{low}–{high}" for low, high in BINS], fontsize=8)
    axes.set(title=name, xlabel="length of the sentence (English words)", ylim=(0, 103))
panels[0].set_ylabel("words right and in place (%)")
panels[0].legend(loc="lower left")
lesson.figure(fig, "accuracy_by_length")

for language, name in LANGUAGES.items():
    (words, long, _), (_, long_without, _) = results[language, True], results[language, False]
    lesson.claim(f"{name}: with attention, ≥ 95 % of the held-out words are right", words >= 0.95,
                 f"{words:.1%} of the words are right and in place", full_run=True)
    lesson.claim(f"{name}: on 20+ words, attention gains ≥ 20 points",
                 long - long_without >= 0.20, f"{long:.1%} with, {long_without:.1%} without",
                 full_run=True, items=("C22",))

# %% [markdown]
# ## 8. The weights as a matrix
# αₜᵢ says how much target word t uses source word i. So the weights of one translation are a
# matrix, with a row for each target word and a column for each source word. Does it show the
# alignment, which was never in the training data? Give the translators with attention the true
# translations. For each target word, take the i with the largest αₜᵢ, and compare it with the
# grammar's alignment. Some words have several links («ha» of «ha visto», «del»): each of the linked
# words is right. The Spanish personal «a» has no link and does not count. For comparison: always
# take the source word at the same place, i = t.
#
# The accuracy cannot be 100 %. To write an article, the decoder needs the noun's gender, so it may
# look at the noun (Bahdanau et al. 2015, §5.2.1, see the same). The true alignment is "the", so the
# noun counts as an error.

# %%
def alignment_accuracy(pairs, pointers):
    """Of the target words with links, the share whose pointer (N, T) is one of the links."""
    hits = []
    for pair, pointer in zip(pairs, pointers):
        linked = sorted({t for t, _ in pair.alignment})
        hits += [(t, pointer[t]) in pair.alignment for t in linked]
    return sum(hits) / len(hits)


def crossings(pair):
    """How many pairs of links cross: a measure of the reordering in a sentence."""
    return sum(t < u and s > r for t, s in pair.alignment for u, r in pair.alignment)


for language, name in LANGUAGES.items():
    weights = results[language, True][2]                                # (N, T, S)
    found = alignment_accuracy(held_out[language], weights.argmax(-1).tolist())
    straight = alignment_accuracy(held_out[language], [range(weights.size(1))] * N_HELD_OUT)
    lesson.claim(f"{name}: argmax α is the true alignment for ≥ 90 % of words", found >= 0.90,
                 f"{found:.1%}; the word at the same place: {straight:.1%}", full_run=True,
                 items=("C24",))

fig, panels = plotting.figure(12, 5.4, columns=2)
for axes, (language, name) in zip(panels, LANGUAGES.items()):
    short = [n for n, pair in enumerate(held_out[language]) if len(pair.source) <= 14]
    n = max(short, key=lambda n: crossings(held_out[language][n]))
    source, target, alignment = held_out[language][n]
    plotting.heatmap(axes, results[language, True][2][n, :len(target), :len(source)], target,
                     source, label="weight α" if language == "italian" else None, high=1.0)
    for t, i in alignment:
        axes.add_patch(Rectangle((i - 0.42, t - 0.42), 0.84, 0.84, fill=False, linewidth=1.6,
                                 edgecolor=plotting.COLOURS[1]))
    axes.set(title=f"{name}: shades are α, boxes are the true alignment", xlabel="English word",
             ylabel="target word")
lesson.figure(fig, "alignment")

# %% [markdown]
# ## 9. Beam search
# Greedy decoding cannot change an earlier word. **Beam search** keeps the n most probable
# beginnings at every step (Sutskever et al. 2014, §3.2). So it may find a translation with a larger
# P(y | x). This helps only if the model gives the right translation the largest probability. Here
# are long Spanish sentences, with attention:

# %%
model, (source, lengths, target) = translators["spanish", True], data["spanish"].held_out
long = (lengths >= 20).nonzero()[:lesson.pick(full=40, quick=2), 0].tolist()
exact, better = {1: 0, 4: 0}, 0                         # number of beams -> sentences right
for n in long:
    found, right = {}, target[n][target[n] != PAD].tolist()             # <start> y₁ … <end>
    for n_beams in exact:
        decoder = model.decoder_for(source[n:n + 1, :lengths[n]], lengths[n:n + 1])
        start = torch.full((1, 1), START, device=source.device)
        tokens, logprobs = beam_search(decoder, start, target.size(1), n_beams, stop_token=END)
        found[n_beams] = logprobs[0].item()
        exact[n_beams] += tokens[0, :len(right)].tolist() == right
    better += found[4] > found[1] + 1e-4
print(f"    whole sentences right, of {len(long)} with 20+ words: greedy {exact[1]}, beam of 4 "
      f"{exact[4]};\n    the beam found a more probable translation for {better}")

lesson.end()
