"""Lesson 04: sequence to sequence, and the attention that lets a translator look back.

You will see    score(s, h) = vᵀ tanh(W[s; h]) and what a softmax makes of it, in loops and in the library; then four translators,
                English into Spanish and into Italian, with and without attention, trained alike and told apart by long sentences;
                and an alignment of words that nobody taught, next to the true one.
Source          course C, "Machine translation" and "Attention in RNNs"; Sutskever et al. 2014; Cho et al. 2014; Bahdanau et al. 2015.
Expect          about 2 min on two cores; every check passes; on sentences of 20 words and more, 96 % of words in place with
                attention and 14 % without.
Not here        attention without recurrence (lesson 05), subwords (lesson 01), real translations and BLEU.

Shapes: B batch, S source words, T target words, H hidden units, A units in the score, V target vocabulary.
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
# Real translations are many for each sentence, and nobody knows which word came from which. So this lesson's sentences are
# written by a grammar (`minigpt/worlds/translation.py`) that writes both languages at once. The English sentence decides its
# translation, so one is right and all others are wrong; and the grammar notes the alignment while it writes.
#
# English does not say the gender of a nurse, nor the number of a colour. Spanish and Italian do, in the article, the
# adjective, and the verb; they put adjectives after the noun, in reverse order; and words melt («del») or split («ha visto»).

# %%
LANGUAGES = {"spanish": "EN→ES", "italian": "EN→IT"}
N_TRAINING, N_HELD_OUT = lesson.pick(full=12_000, quick=800), lesson.pick(full=1000, quick=150)


def sample(language, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [sample_pair(language, generator) for _ in range(n)]


held_out = {language: sample(language, N_HELD_OUT, seed=1_000_000 + lesson.seed) for language in LANGUAGES}
unseen = {tuple(pair.source) for pair in held_out["spanish"]}           # one seed writes the same English for both languages
training = {language: [pair for pair in sample(language, N_TRAINING, lesson.seed) if tuple(pair.source) not in unseen]
            for language in LANGUAGES}
for language, name in LANGUAGES.items():
    learned_from, judged_on = ({" ".join(pair.source) for pair in pairs[language]} for pairs in (training, held_out))
    lesson.check(f"{name}: no held-out sentence is in the training set", len(learned_from & judged_on), 0, atol=0, source="counted")

for language, pairs in held_out.items():
    source, target, alignment = next(pair for pair in pairs if len(pair.source) == 10 and {"not", "the"} <= set(pair.source))
    print(f"\n    {' '.join(source)}\n    {written(target)}")
    print("    " + "  ".join(f"{target[t]}←{source[s]}" for t, s in alignment))

# %% [markdown]
# ## 2. Encoder, vector, decoder
# The chain rule of lesson 02 does not mind a condition. With x the source and y the translation,
#
#     P(y₁..y_T | x) = P(y₁ | x) · P(y₂ | y₁, x) · … · P(y_T | y₁..y_T₋₁, x)
#
# so a translator is a language model of the target language with something of x at hand. Cho et al. and Sutskever et al. (2014)
# put x into one vector: an LSTM reads x, and its last state c is given to a second LSTM, the decoder, which writes y:
#
#     c = last state of LSTM(x₁, …, x_S)        sₜ = LSTM(sₜ₋₁, [yₜ₋₁; c])        P(yₜ | y_<ₜ, x) = softmax(f(sₜ, c))
#
# Ours reads in both directions (lesson 03), so c = [→h_S ; ←h₁]. While training, y is known: yₜ₋₁ is the *true* word before
# (teacher forcing), and one pass gives the loss −Σ log P(yₜ | y_<ₜ, x) for all t. While translating, yₜ₋₁ is the word that the
# decoder itself wrote. The two must be the same function, called at once or step by step.

# %%
def random_batch(model, lengths, n_target):
    config = model.config
    source = torch.randint(3, config.source_vocab_size, (len(lengths), max(lengths)), generator=lesson.generator)
    target = torch.randint(3, config.target_vocab_size, (len(lengths), n_target), generator=lesson.generator)
    return source, torch.tensor(lengths), target


for attention in (False, True):
    words = "with" if attention else "without"
    small = Seq2Seq(Seq2SeqConfig(11, 13, d_embedding=5, d_hidden=6, attention=attention), lesson.generator).double()
    source, lengths, target = random_batch(small, [7, 4, 2], n_target=5)
    with torch.no_grad():
        forced = small(source, lengths, target)                                         # (B, T, V)
        decoder = small.decoder_for(source, lengths)
        cache = decoder.new_cache()
        stepwise = torch.cat([decoder(target[:, t:t + 1], cache) for t in range(5)], dim=1)             # T times (B, 1, V)
        alone = torch.cat([small(source[i:i + 1, :n], lengths[i:i + 1], target[i:i + 1]) for i, n in enumerate(lengths)])
    lesson.check(f"teacher forcing = step by step, {words} attention", stepwise, forced, atol=1e-12, source="C: encoder–decoder")
    lesson.check(f"a padded row = the row alone, {words} attention", forced, alone, atol=1e-12, source="padding is no word")

# %% [markdown]
# ## 3. Attention: ask every word
# c has a fixed size, the sentence has not. Bahdanau et al. (2015) keep *all* states of the encoder, h₁ … h_S, one for each source
# word, and give the decoder a new mixture of them for every word it writes. What it needs is a number that says how well the
# decoder's state s fits the annotation h. A small network with one hidden layer gives it:
#
#     score(s, h) = vᵀ tanh(W[s; h])
#
# [s; h] is one long vector. Cut W where s ends, W = [W_s  W_h], and the product falls into two,
#
#     W[s; h] = W_s s + W_h h
#
# which is the same number for less work: W_h h does not depend on t, so it is computed once for the sentence and not for each of
# the T·S pairs. That is how the library writes it. Here it is as the notes write it, number by number.

# %%
B, T, S, H, A = 2, 3, 5, 4, 6
additive = AdditiveAttention(d_query=H, d_key=2 * H, d_attention=A, generator=lesson.generator).double()
s, h = randn(B, T, H), randn(B, S, 2 * H)
W = torch.cat([additive.query.weight, additive.key.weight], dim=1).tolist()           # (A, H + 2H)
v = additive.v.tolist()


def score(s, h):
    """vᵀ tanh(W[s; h]) of two lists of numbers."""
    both = s + h                                                                        # lists: this is [s; h]
    return sum(v[a] * math.tanh(sum(W[a][i] * both[i] for i in range(len(both)))) for a in range(A))


by_hand = [[[score(s[b, t].tolist(), h[b, i].tolist()) for i in range(S)] for t in range(T)] for b in range(B)]
with torch.no_grad():
    scores = additive.score(s, additive.project(h))                                   # (B, T, S)
lesson.check("score(s, h) = vᵀ tanh(W[s; h])", scores, by_hand, atol=1e-12, source="C: additive attention; Bahdanau et al. 2015, §A.1.2")

# %% [markdown]
# ## 4. From scores to an average
# The softmax of lesson 02 turns the scores of one query into weights, positive and with sum 1, and the weights into an average:
#
#     αᵢ = e^scoreᵢ / Σⱼ e^scoreⱼ        A(q, K, V) = softmax(score(q, K)) V = Σᵢ αᵢ vᵢ
#
# Here the query q is the decoder's state sₜ₋₁, and keys and values are the same vectors, K = V = (h₁, …, h_S). The average is the
# context cₜ that takes the place of the one vector c. Padding is no word: its score is set to −∞, and e^−∞ = 0.
#
# Erratum: course C writes z_j = Σ score(q, Kᵢ) vᵢ, with no softmax. Scores are no weights: they may be negative, and their sum is
# anything. Add 1 to each, so that every word fits better and none better than another: the average must not move. It does not,
# since e^(score+1) = e·e^score and e cancels; the sum as written moves by Σ vᵢ.

# %%
mask = torch.tensor([[True] * 5, [True, True, True, False, False]])                     # the second sentence has three words
with torch.no_grad():
    z, weights = additive(s, h, mask)                                                  # (B, T, 2H), (B, T, S)
n_words = mask.sum(1).tolist()
by_hand = torch.zeros(B, T, 2 * H, dtype=torch.float64)
for b in range(B):
    for t in range(T):
        e = [math.exp(scores[b, t, i]) for i in range(n_words[b])]
        for i in range(n_words[b]):
            by_hand[b, t] += e[i] / sum(e) * h[b, i]
lesson.check("A(q, K, V) = softmax(score) V, over the words only", z, by_hand, atol=1e-12, source="C: A(q, K, V)")
lesson.check("the weights of a query sum to 1", weights.sum(-1), torch.ones(B, T), atol=1e-12, source="C: softmax")
lesson.check("padding gets no weight at all", weights[1, :, 3:], torch.zeros(T, 2), atol=0, source="e^−∞ = 0")
average = scores.softmax(-1) @ h                                                        # (B, T, 2H)
lesson.check("the same number on every score changes nothing", (scores + 1).softmax(-1) @ h, average, atol=1e-12,
             source="C: z_j, corrected")
moved = ((scores + 1) @ h - scores @ h).norm(dim=-1).mean() / average.norm(dim=-1).mean()
sums = scores.sum(-1)
print(f"    as C writes it, z would move by {moved:.1f} times its right length; its \"weights\" sum to {sums.min():.1f} … {sums.max():.1f}")

# %% [markdown]
# ## 5. How it learns where to look
# Nobody tells the decoder where to look; only the loss of the words it writes comes back. What does the gradient say to a score? The
# derivative of a softmax is ∂αⱼ/∂scoreᵢ = αⱼ([i = j] − αᵢ), so
#
#     ∂z/∂scoreᵢ = Σⱼ αⱼ([i = j] − αᵢ) vⱼ = αᵢvᵢ − αᵢ Σⱼ αⱼvⱼ = αᵢ(vᵢ − z)
#
# and with g = −∂L/∂z, the way z should go, −∂L/∂scoreᵢ = αᵢ·g·(vᵢ − z): the score of a word rises if its annotation lies further that
# way than the average does. And there is a second gift: through αᵢ and vᵢ the loss of word t reaches the annotation of word i in one
# step. Without attention it reaches only c = [→h_S ; ←h₁] in one step, and to word i it must go on through S − i states of the encoder
# that reads forwards, or i − 1 of the one that reads backwards (lesson 03 measured what is left then).

# %%
step = 1e-6
slopes = torch.stack([((scores + step * nudge).softmax(-1) @ h - (scores - step * nudge).softmax(-1) @ h) / (2 * step)
                      for nudge in torch.eye(S, dtype=torch.float64)], dim=2)           # S times (B, T, 2H) -> (B, T, S, 2H)
alpha = scores.softmax(-1)
formula = alpha[..., None] * (h[:, None] - (alpha @ h)[:, :, None])                     # (B, T, S, 1) · ((B, 1, S, 2H) − (B, T, 1, 2H))
lesson.check("∂z/∂scoreᵢ = αᵢ(vᵢ − z)", formula, slopes, atol=1e-8, source="derivative of the softmax")

# %% [markdown]
# ## 6. Four translators
# Two languages, with and without attention; all else is equal: sizes, steps, batches, seeds. Without attention the decoder gets
# [→h_S ; ←h₁] at every step, as in Cho et al. (2014). Sentences of like length share a batch, so that few positions are padding.
#
# New in the configuration: the optimizer Muon (`minigpt/training/optimizers.py`). The default, AdamW, trained lessons 02 and 03: it
# divides the gradient of each single number by its usual size, so that all of them move about equally fast. Muon looks at a matrix
# as a whole and sets all singular values of its step to about 1, so that directions in which the gradient is weak are learned as
# fast as strong ones. Embeddings, biases and the score's v stay with AdamW. Neither is best everywhere: for Spanish with attention,
# Muon ends at 0.021 nats, AdamW with the same learning rate at 0.057, and AdamW with 0.01 at 0.007.

# %%
D_EMBEDDING, D_HIDDEN, BATCH_SIZE = 64, 64, 64
config = TrainingConfig(max_steps=lesson.pick(full=700, quick=20), learning_rate=3e-3, optimizer="muon",
                        evaluate_every=lesson.pick(full=175, quick=10), seed=lesson.seed)


SPECIAL = ["<pad>", "<start>", "<end>"]
PAD, START, END = range(3)


class Data:
    """One language: its tokenizers, training batches, and held-out sentences as one batch."""

    def __init__(self, language):
        everything = training[language] + held_out[language]
        self.english = WordTokenizer.train([word for p in everything for word in p.source], SPECIAL)
        self.foreign = WordTokenizer.train([word for p in everything for word in p.target], SPECIAL)
        pairs = sorted(training[language], key=lambda pair: len(pair.source))
        self.batches = [self.batch(pairs[i:i + BATCH_SIZE]) for i in range(0, len(pairs), BATCH_SIZE)]
        self.held_out = self.batch(held_out[language])

    def batch(self, pairs):
        """(source (B, S), lengths (B,), target (B, T + 2) between <start> and <end>)."""
        source, present = pad([self.english.encode(p.source) for p in pairs], "right", PAD)
        target, _ = pad([[START, *self.foreign.encode(p.target), END] for p in pairs], "right", PAD)
        return source.to(lesson.device), present.sum(1).to(lesson.device), target.to(lesson.device)

    def next_batch(self, generator):
        return self.batches[int(torch.randint(len(self.batches), (1,), generator=generator))]


def translation_loss(model, batch):
    """−mean log P(yₜ | y_<ₜ, x), nats a word: reads <start> y₁ …, is asked for y₁ … <end>."""
    source, lengths, target = batch
    return cross_entropy(model(source, lengths, target[:, :-1]), target[:, 1:], target[:, 1:] != PAD)


data, translators = {language: Data(language) for language in LANGUAGES}, {}
for language, name in LANGUAGES.items():
    for attention in (False, True):
        vocab_sizes = data[language].english.vocab_size, data[language].foreign.vocab_size
        sizes = Seq2SeqConfig(*vocab_sizes, D_EMBEDDING, D_HIDDEN, attention)
        model = Seq2Seq(sizes, torch.Generator().manual_seed(lesson.seed)).to(lesson.device)
        losses = [row["train_loss"] for row in train(model, data[language].next_batch, translation_loss, config)]
        translators[language, attention] = model
        print(f"    {name} {'with   ' if attention else 'without'} attention, {count_parameters(model):,} parameters: loss "
              + " → ".join(f"{loss:.2f}" for loss in losses[1:]) + " nats a word")

# %% [markdown]
# ## 7. The longer the sentence
# Each translator now writes the held-out sentences, greedily: always the likeliest word, until <end>. A word is right if it is *the*
# word of *the* translation, in its place; so a word left out early spoils the rest, as it would for a reader who points along.
# The column "told the beginning" forgives that: each word is judged with the true words before it in hand.
#
# One caution: look at the losses above. Those without attention still fall when the 700 steps end, and those with it have little left
# to learn. So part of the gap that follows is time, and not room: with attention a translator also learns sooner.

# %%
BINS = [(low, low + 1) for low in range(4, 26, 2)]                      # English words: 4–5, 6–7, …, 24–25


@torch.no_grad()
def judge(model, data):
    """What was right: words in place (N, T), words when told the beginning (N, T), whole sentences (N,).

    Then which words count (N, T), and the weights (N, T, S) or None.
    """
    source, lengths, target = data.held_out
    truth = target[:, 1:]                                                               # (N, T) y₁ … <end>
    logits, weights = model.decode(target[:, :-1], model.encode(source, lengths))
    start = torch.full((len(source), 1), START, device=source.device)
    answer = generate(model.decoder_for(source, lengths), start, truth.size(1), temperature=0, stop_token=END)[:, 1:]
    answer = F.pad(answer, (0, truth.size(1) - answer.size(1)), value=END)         # (N, ≤ T) -> (N, T)
    in_place = answer == truth
    found = in_place, logits.argmax(-1) == truth, (in_place | (truth == PAD)).all(1), truth > END, weights
    return [None if tensor is None else tensor.cpu() for tensor in found]


def share(right, counts, rows):
    """Of the words that count in these rows, the share that is right."""
    return (right & counts)[rows].sum().item() / counts[rows].sum().item()


results, curves = {}, {}
everyone = torch.ones(N_HELD_OUT, dtype=torch.bool)
print("                     words in place        20+ words       told the beginning, 20+    whole sentences")
for (language, attention), model in translators.items():
    in_place, told, whole, counts, weights = judge(model, data[language])
    lengths = data[language].held_out[1].cpu()
    long = lengths >= 20
    all_lengths, long_only = share(in_place, counts, everyone), share(in_place, counts, long)
    results[language, attention] = all_lengths, long_only, weights
    curves[language, attention] = [share(in_place, counts, (lengths >= low) & (lengths <= high)) for low, high in BINS]
    print(f"    {LANGUAGES[language]} {'with   ' if attention else 'without'}         {all_lengths:6.1%}           "
          f"{long_only:6.1%}               {share(told, counts, long):6.1%}               {whole.float().mean():6.1%}")

fig, panels = plotting.figure(11, 3.8, columns=2, sharey=True)
for axes, (language, name) in zip(panels, LANGUAGES.items()):
    for attention, marker in ((True, "o"), (False, "s")):
        axes.plot([100 * y for y in curves[language, attention]], marker=marker, markersize=4,
                  label=f"{'with' if attention else 'without'} attention")
    axes.set_xticks(range(len(BINS)), [f"{low}–{high}" for low, high in BINS], fontsize=8)
    axes.set(title=name, xlabel="length of the sentence (English words)", ylim=(0, 103))
panels[0].set_ylabel("words right, in place (%)")
panels[0].legend(loc="lower left")
lesson.figure(fig, "accuracy_by_length")

for language, name in LANGUAGES.items():
    (words, long, _), (_, long_without, _) = results[language, True], results[language, False]
    lesson.claim(f"{name}: attention gets ≥ 95 % of held-out words right", words >= 0.95, f"{words:.1%} of words in place", full_run=True)
    lesson.claim(f"{name}: and is ≥ 20 points above no attention on 20+ words", long - long_without >= 0.20,
                 f"{long:.1%} against {long_without:.1%}", full_run=True)

# %% [markdown]
# ## 8. The alignment that nobody taught
# αₜᵢ says how much word t took from source word i. Give the translators with attention the true translations, take for each word the
# i with the greatest αₜᵢ, and compare with the grammar's alignment. A word with several links («ha» of «ha visto», «del») is right with any
# of them; the personal «a» of Spanish has none, and is not asked. For comparison: always pointing to the word in the same place.
# One thing to know when you look: for an article the decoder must find the noun's gender, so there it may well look at the noun
# (Bahdanau et al. 2015, §5.2.1, see the same). The true alignment says "the", and the claim counts the noun as an error.

# %%
def alignment_accuracy(pairs, pointers):
    """Of the target words with links, the share whose pointer (N, T) hits one."""
    hits = []
    for pair, pointer in zip(pairs, pointers):
        linked = sorted({t for t, _ in pair.alignment})
        hits += [any(pointer[t] == s for u, s in pair.alignment if u == t) for t in linked]
    return sum(hits) / len(hits)


def crossings(pair):
    """How many pairs of links cross: the reordering in a sentence."""
    return sum(t < u and s > r for t, s in pair.alignment for u, r in pair.alignment)


for language, name in LANGUAGES.items():
    weights = results[language, True][2]
    found = alignment_accuracy(held_out[language], weights.argmax(-1).tolist())
    straight = alignment_accuracy(held_out[language], [range(weights.size(1))] * N_HELD_OUT)
    lesson.claim(f"{name}: argmax α is the true alignment for ≥ 90 % of words", found >= 0.90,
                 f"{found:.1%}; the word in the same place {straight:.1%}", full_run=True)

fig, panels = plotting.figure(12, 5.4, columns=2)
for axes, (language, name) in zip(panels, LANGUAGES.items()):
    n, pair = max(((n, pair) for n, pair in enumerate(held_out[language]) if len(pair.source) <= 14), key=lambda item: crossings(item[1]))
    plotting.heatmap(axes, results[language, True][2][n, :len(pair.target), :len(pair.source)], pair.target, pair.source,
                     label="weight α" if language == "italian" else None, high=1.0)
    for t, i in pair.alignment:
        axes.add_patch(Rectangle((i - 0.42, t - 0.42), 0.84, 0.84, fill=False, edgecolor=plotting.COLOURS[1], linewidth=1.6))
    axes.set(title=f"{name}: shades are α, boxes the true alignment", xlabel="English word", ylabel="word being written")
lesson.figure(fig, "alignment")

# %% [markdown]
# ## 9. Beams
# Greedy decoding cannot take back a word. A beam keeps the n likeliest beginnings at every step, so it may find a translation whose
# P(y | x) is greater; for the model that is a better one, for us only if the model is right. Long sentences, Spanish, with attention:

# %%
model, (source, lengths, target) = translators["spanish", True], data["spanish"].held_out
long = (lengths >= 20).nonzero()[:lesson.pick(full=40, quick=3), 0].tolist()
exact, better = {1: 0, 4: 0}, 0
for n in long:
    found, right = {}, target[n][target[n] != PAD].tolist()             # <start> y₁ … <end>
    for n_beams in exact:
        decoder = model.decoder_for(source[n:n + 1, :lengths[n]], lengths[n:n + 1])
        tokens, logprobs = beam_search(decoder, torch.full((1, 1), START, device=source.device), target.size(1), n_beams, stop_token=END)
        found[n_beams] = logprobs[0].item()
        exact[n_beams] += tokens[0, :len(right)].tolist() == right
    better += found[4] > found[1] + 1e-4
print(f"    whole sentences right, of {len(long)} with 20+ words: greedy {exact[1]}, beam of 4 {exact[4]}; "
      f"the beam found a likelier one for {better}")

lesson.end()
