"""Lesson 11: the sentiment neuron: a character model learns a sentiment that nobody labelled.

You will see    a character-level LSTM that reads film reviews without their labels; one unit of its
                memory that separates favourable from unfavourable reviews; its value along a
                review; and new reviews, for or against a film, written with this unit held fixed.
Source          course C, "GPT-0: The sentiment neuron (2017)"; Radford, Jozefowicz and Sutskever
                2017 (arXiv:1704.01444), §§3–5, figures 3 and 4.
Expect          2 minutes on one core (10 s with --quick); every check passes; the loss ends
                0.03 to 0.10 bits per review above the exact entropy, 17 bits; one unit is right for
                96 to 100 % of fresh reviews, where logistic regression on words is right for about
                50 %; held fixed, this unit decides the stance of 98 to 100 % of the written reviews
                that the grammar can parse. (Seeds 0, 5, 6 and 2000. The rule that chooses the unit
                was made with these four in view, so on another seed the unit may be less accurate.)
Not here        82 million real reviews, 4,096 units and a multiplicative LSTM, as in the paper;
                this lesson's reviews come from a grammar, and its network has 128 units.
Shapes          N reviews, T characters, H units, V different characters, F features, B batch.
"""
# %%
import copy
import math
import re
from collections import Counter

import torch

from course import Lesson
from minigpt import plotting
from minigpt.generation import generate
from minigpt.models.counting import count_parameters
from minigpt.models.recurrent import RecurrentLM
from minigpt.text.padding import pad
from minigpt.text.tokenizers import CharTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, cross_entropy, next_token_loss, sequence_logprobs
from minigpt.worlds import reviews
from minigpt.worlds.reviews import AGAINST, FOR

lesson = Lesson("11_sentiment_neuron", threads=1)

# %% [markdown]
# ## 1. Reviews whose stance is not shown by any single word
# A review is for a film or against it: this is its **stance**. A grammar
# (`minigpt/worlds/reviews.py`) writes its five sentences. A favourable opinion is stated ("was
# superb"), or the opposite is denied ("was never dull"), or both words occur ("dull at first, but
# superb by the end"). Statement and denial have the same probability. So each word has the same
# expected count in both stances: *superb*, *never*, and every other word.
#
# The grammar can also read: each review can be written under one stance only. So the label of any
# text, written by the grammar or by a network, is known without error.

# %%
fresh, stances = reviews.sample_many(lesson.pick(full=2_100, quick=600), seed=2 * lesson.seed + 1)
# The labels of the reviews for training are not kept.
training, _ = reviews.sample_many(lesson.pick(full=12_000, quick=1_500), seed=2 * lesson.seed)
for stance in (FOR, AGAINST):
    print(f"  {reviews.STANCES[stance]:<8} {fresh[stances.index(stance)]}")
by_parsing = [reviews.label(text) for text in fresh[:500]]
lesson.check("label by parsing = the stance that was drawn, 500 reviews", by_parsing, stances[:500],
             atol=0, source="the grammar")

# %% [markdown]
# How many bits does a review contain? The entropy of a sequence of choices is the sum of the
# choices' entropies (chain rule). Write H(p, q, …) for the entropy of one choice with these
# probabilities. The stance is 1 bit. An opinion has one of three forms, with probabilities ⅖, ⅖ and
# ⅕; the first two contain one word out of 4 (2 bits), the third contains two such words (4 bits).
# Together an opinion has Q bits:
#
#     an opinion        Q = H(⅖, ⅖, ⅕) + ⅖·2 + ⅖·2 + ⅕·4
#     the opening       log₂ 8 = 3                    2 verbs × 4 names
#     the first look    log₂ 4 + Q                    4 subjects (the plot, the cast, …)
#     the second look   H(⅔, ⅓) + ⅔ (1 + Q) + ⅓·1     with probability ⅓: "It lasted two hours" or
#                                                     "three hours", without an opinion
#     the feeling       2                             2 forms × 2 words
#     the advice        1                             2 forms
#
# The library computes the same number from the rules of the grammar. A third way is to average
# −log₂ P(review) over 500 drawn reviews: this mean is within a few standard errors of the entropy.

# %%
def H(*p):
    """The entropy in bits of a choice with these probabilities."""
    return -sum(q * math.log2(q) for q in p)


Q = H(0.4, 0.4, 0.2) + 0.4 * 2 + 0.4 * 2 + 0.2 * 4
by_parts = 1 + 3 + (2 + Q) + (H(2 / 3, 1 / 3) + 2 / 3 * (1 + Q) + 1 / 3) + 2 + 1
costs = torch.tensor([reviews.surprisal(text) for text in fresh[:500]])
lesson.check("entropy of a review, from the rules = by parts", reviews.entropy(), by_parts,
             atol=1e-9, source="chain rule of entropy")
error = costs.std().item() / 500**0.5                                   # standard error of the mean
lesson.check("entropy = mean of −log₂ P(review), within 4 standard errors", costs.mean(), by_parts,
             atol=4 * error, source="Shannon 1948")
print(f"      {reviews.entropy():.2f} bits per review, "
      f"{reviews.REVIEWS[FOR].expected_length():.0f} characters on average")

# %% [markdown]
# What can a classifier of word counts learn, *with* labels? Take logistic regression. Let x be the
# F counts of a review, y = 1 for a favourable review and 0 for the others, w the weights and b a
# number:
#
#     P(for | x) = σ(w·x + b)            loss = mean of −log P(y | x)  +  λ Σⱼ |wⱼ|
#
# The second term is the L1 penalty that the paper uses: it sets useless weights to exactly 0.
# Each step below goes down the gradient of the first term, then moves every weight towards 0 by the
# same amount, and stops it there.
#
# On these reviews it cannot learn anything from words. Take w = 0 and b = 0, so P(for | x) = ½.
# The gradient of the first term, over infinitely many reviews, is
#
#     ∂/∂wⱼ = E[(σ(0) − y) xⱼ] = E[(½ − y) xⱼ] = ¼ (E[xⱼ | against] − E[xⱼ | for]) = 0
#
# since half of the reviews have y = 1 and the expected counts are equal. The loss is convex, so a
# point with gradient 0 is the minimum: the best logistic regression on words predicts ½ always.
#
# This is a statement about logistic regression, not about every linear rule. Equal means do not
# imply equal distributions. A rule that we choose by hand, with the grammar in view, does better:
# count the words of praise, *laughed*, *smiled*, *never*, *not*, *see* and *hours*. A favourable
# review has exactly one in each of its last four sentences, so its score is always 4. An
# unfavourable one has the mean 4, but its score varies, and in 40 % of the cases it is below 4. So
# the rule "for if the score is at least 4" is right for ½·100 % + ½·40 % = 70 % of the reviews.
#
# As features we take words (the bag of lesson 01) and also pairs of neighbouring words, in which
# "never dull" is one feature. Each classifier reads the first three sentences of a review, as the
# unit in part 3 will.

# %%
def logistic(x, y, penalty=0.01, steps=1_000):
    """The w (F,) and b that minimise the loss above, for x (N, F) and y (N,) of zeros and ones."""
    w, b = x.new_zeros(x.size(1)), x.new_zeros(())
    # 1 / the largest possible curvature of the loss: a step of this size cannot increase the loss.
    rate = 4 / (torch.linalg.matrix_norm(x, 2) ** 2 / len(x) + 1)
    for _ in range(steps):
        error = torch.sigmoid(x @ w + b) - y                            # (N,)
        w = w - rate * x.T @ error / len(x)                             # (F, N) @ (N) -> (F)
        w = w.sign() * (w.abs() - rate * penalty).clamp(min=0)
        b = b - rate * error.mean()
    return w, b


def accuracy(guess, truth):
    return (guess == truth).float().mean().item()


def third_stop(text):
    """The number of characters in the first three sentences, with their full stops."""
    return [at for at, character in enumerate(text, 1) if character in ".!"][2]


def bag(counters, names):
    return torch.tensor([[float(counts[name]) for name in names] for counts in counters])   # (N, F)


LABELLED = 100                          # the number of labels for the unit and its comparisons
truth = torch.tensor(stances)                                           # (N,)
half = len(fresh) // 2
read_so_far = [re.findall(r"\w+", text[:third_stop(text)]) for text in fresh]
baseline = {}
for kind, width in (("words", 1), ("pairs of words", 2)):
    counted = [Counter(zip(*(words[i:] for i in range(width)))) for words in read_so_far]
    features = bag(counted, sorted(set().union(*counted)))
    for shown in (LABELLED, half):
        w, b = logistic(features[:shown], truth[:shown])
        baseline[kind, shown] = accuracy(features[half:] @ w + b > 0, truth[half:] == FOR)
        print(f"    logistic regression on {kind:<15}{shown:5d} labels: "
              f"{baseline[kind, shown]:6.1%} of the other half right")
chance = 4 * 0.5 / half**0.5                        # four standard deviations of a random guess
lesson.claim("logistic regression on words is no better than chance, with all the labels",
             abs(baseline["words", half] - 0.5) < chance,
             f"{baseline['words', half]:.1%} with {half:,} labels; random guesses are right for "
             f"50 ± {100 * chance:.1f} %; pairs of words reach "
             f"{baseline['pairs of words', half]:.1%}")

counts_for = {"charming", "lovely", "splendid", "superb", "laughed", "smiled",
              "never", "not", "see", "hours"}
scores = torch.tensor([sum(word in counts_for for word in re.findall(r"\w+", text))
                       for text in fresh])                              # (N,)
lesson.check("by hand: the score of every favourable review is 4", scores[truth == FOR],
             torch.full((int((truth == FOR).sum()),), 4), atol=0, source="derived above")
chosen_by_hand = accuracy(scores >= 4, truth == FOR)
lesson.claim("a linear rule on words, chosen by hand, is right for more than 60 %",
             chosen_by_hand > 0.6, f"{chosen_by_hand:.1%} of {len(fresh):,} whole reviews")

# %% [markdown]
# ## 2. Read many reviews, and predict the next character
# The network sees characters only. Its loss is the one of lesson 02, −Σ log P(uᵢ | u_<i). Nothing
# tells it where words end, what they mean, or that reviews have a stance. But a model that uses the
# stance needs fewer bits:
#
# - After "And the songs were never …" a favourable review continues with *awful*, *boring*, *dull*
#   or *feeble*. A model without the stance has to allow eight words instead of four: 1 bit more.
# - "I laughed" or "I groaned": 1 bit more. "See it" or "miss it": 1 bit more.
#
# To save these bits, a model must find the stance, keep it for dozens of characters, and not mix it
# with other things. So a unit for the sentiment can result from the prediction of characters.
# Training on prediction gives a representation of a whole text, and course C names this as the use
# of language models in practice ("What are Language Models?").
#
# The network is lesson 03's LSTM, with a linear layer on h. Its probability of a text must be the
# same whether it reads the text at once, or one character at a time and hands on its state. The
# second way below multiplies the conditional probabilities (course C, "Local Normalisation").
#
# Items: C05

# %%
tokenizer = CharTokenizer.train("\n" + "".join(training))
END, = tokenizer.encode("\n")                       # stands before each review and after it
probe = RecurrentLM(tokenizer.vocab_size, d_embedding=5, d_hidden=7, generator=lesson.generator)
probe.double()
for parameter in probe.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
line = torch.tensor([[END, *tokenizer.encode(fresh[0]), END]])          # (1, T)
with torch.no_grad():
    at_once = -next_token_loss(probe, line).item() * (line.size(1) - 1)
    cache, one_by_one = probe.new_cache(), 1.0
    for t in range(line.size(1) - 1):
        scores = probe(line[:, t:t + 1], cache)[0, -1].exp()            # (V,)
        one_by_one *= (scores[line[0, t + 1]] / scores.sum()).item()
lesson.check("log P(review), read at once = product of conditionals", at_once,
             math.log(one_by_one), atol=1e-9, source="C: Local Normalisation")

# %% [markdown]
# One detail of lesson 03 matters here: how long a unit keeps its memory at the start of training.
# If the forget gate is f, a value is multiplied by f at each step, and f^n ≈ e^(−n(1−f)). So the
# memory lasts about τ = 1/(1 − f) steps: its **span**. The usual forget bias of 1 gives f = 0.73
# and τ = 3.7. With so short a span, almost no gradient reaches a word fifty characters back.
#
# So each unit gets its own span, from 2 to 160 characters, evenly spaced on a logarithmic scale:
#
#     f = σ(b_f) = 1 − 1/τ          →    b_f = ln(f/(1 − f)) = ln(τ − 1)
#     i = σ(b_i) ≈ 1/√τ             ←    b_i = −½ ln τ
#
# The reason for the second line: a memory that adds an input i·g with variance i² Var(g) at each
# step, and multiplies by f, has the variance i² Var(g)/(1 − f²) ≈ i² Var(g) τ/2. With i ≈ 1/√τ all
# units have memories of about the same size.
#
# A window for training begins where a review begins, and continues into the next reviews.

# %%
judged, present = pad([[END, *tokenizer.encode(text), END] for text in fresh],
                      side="right", value=END)                          # (N, longest) each
exact_bits = sum(map(reviews.surprisal, fresh[:300])) / 300     # the least that these can cost

encoded = [tokenizer.encode("\n" + text) for text in training]
corpus = torch.tensor([token for review in encoded for token in review])        # (all characters,)
starts = torch.tensor([0] + [len(review) for review in encoded]).cumsum(0)
LENGTH, BATCH, WIDTH = 128, 128, 128
starts = starts[starts + LENGTH < len(corpus)]


def next_batch(generator):
    first = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
    return corpus[first[:, None] + torch.arange(LENGTH + 1)].to(lesson.device)  # (B, T + 1)


def review_bits(model):
    """Bits per review, its end included, on the first 300 fresh ones."""
    tokens, real = judged[:300].to(lesson.device), present[:300, 1:]
    nats = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], real.to(lesson.device)).item()
    return {"val_loss": bits(nats) * real.sum().item() / 300}


model = RecurrentLM(tokenizer.vocab_size, d_embedding=32, d_hidden=WIDTH,
                    generator=lesson.generator)
lstm = model.layers[0]
spans = torch.logspace(math.log10(2), math.log10(160), WIDTH)           # (H,) τ
lstm.forget_bias.copy_((spans - 1).log())
lstm.b.data[:WIDTH] = -0.5 * spans.log()                                # the input gate comes first
model.to(lesson.device)
config = TrainingConfig(max_steps=lesson.pick(full=500, quick=10), learning_rate=2e-3,
                        weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=100, quick=20), seed=lesson.seed)
print(f"  {count_parameters(model):,} parameters, "
      f"{config.max_steps} steps of {BATCH} × {LENGTH} characters")


def on_row(row):
    print(f"  step {row['step']:5d}   {row['val_loss']:7.2f} bits per review, "
          f"{row['val_loss'] - exact_bits:7.2f} above the entropy", flush=True)


history = train(model, next_batch, next_token_loss, config, review_bits, on_row=on_row)
gap = history[-1]["val_loss"] - exact_bits
lesson.claim("within half a bit per review of the exact value, on fresh reviews", gap < 0.5,
             f"{gap:.2f} bits above the {exact_bits:.2f} of these reviews", full_run=True)

# %% [markdown]
# Half a bit above the entropy is possible only with the stance. A model with perfect sentences that
# forgets the stance after each of them pays 1 bit more for the feeling, 1 for the advice, and 1 for
# the second look if it has an opinion, ⅔ of a bit on average: 2⅔ bits, the dotted line. Where the
# curve is below this line, the network carries the stance from sentence to sentence.

# %%
fig, axes = plotting.figure(7, 3.6)
above = [row["val_loss"] - exact_bits for row in history]
axes.semilogy([row["step"] for row in history], above, marker="o", markersize=4,
              label="LSTM, on fresh reviews")
axes.axhline(2 + 2 / 3, color="black", linestyle=":",
             label="2⅔ bits: the stance is forgotten after each sentence")
axes.set(xlabel="optimizer steps", ylabel="bits per review above the entropy",
         title="The loss, measured from the entropy")
axes.legend()
lesson.figure(fig, "loss")

# %% [markdown]
# ## 3. One unit
# From here on the network does not change. Its memory c has 128 numbers after each character. Where
# should we read it? Not at the end: after "My advice: miss it!" the stance is of no further use. We
# read at the **third full stop**. The feeling and the advice are still to come, so the network
# needs the stance. And in a third of the reviews, the sentence just read was "It lasted two hours"
# or "three hours", which says nothing about the stance.
#
# A hundred labelled reviews choose the unit and its threshold. No other labels are used. The
# **threshold** of a unit is the value that puts most of the hundred on the right side. (The middle
# between the two stances' means would be a poor threshold. A unit also holds other things, such as
# the form of the second look, so its values form several groups, and the means depend on how many
# reviews each group has.)
#
# Several units separate the stances, but the network does not use all of them: it may store a copy
# that it does not read. So take the five units with most of the hundred right, and measure what the
# network loses if the unit is wrong. Hold the unit at one value from the first character to the
# last (part 5 says how): once far on the right side, once far on the wrong side.
#
#     price = mean of  log₂ P(review | held on the right side) − log₂ P(review | on the wrong side)
#
# in bits per review. A unit that the network does not read has the price 0. Units with less than
# half of the highest price are left out. Of the others we take the one with most of the hundred
# right, and judge it on other reviews. (The price alone is not enough: with seed 2000, one unit has
# the price 10.2 bits and 82 % right, another 9.0 bits and 99 %.)
#
# "Far" means three times as far from the middle as the stance's mean. Let m_for and m_against be
# the two means, and m̄ = (m_for + m_against)/2 the middle. The value on the favourable side is
# m̄ + 3 (m_for − m̄) = 2 m_for − m_against; on the other side it is 2 m_against − m_for.

# %%
@torch.no_grad()
def memory(tokens):
    """c after every character: (N, T) -> (N, T, H)."""
    return model.states(tokens.to(lesson.device))[-1][1].cpu()


# (N, 6) where sentences end, then (N, H) the memory at the third full stop; 300 rows at a time,
# because the memory of all rows at all characters is large.
stops = torch.tensor([[0] + [at for at, character in enumerate(text, 1) if character in ".!"]
                      for text in fresh])
parts = zip(judged.split(300), stops[:, 3].split(300))
at_third = torch.cat([memory(part)[torch.arange(len(part)), places] for part, places in parts])
shown, held_out = slice(0, LABELLED), slice(LABELLED, None)

sample, is_for = at_third[shown], truth[shown] == FOR                   # (100, H), (100,)
means = torch.stack([sample[~is_for].mean(0), sample[is_for].mean(0)])  # (2, H) AGAINST, FOR
direction = (means[FOR] - means[AGAINST]).sign()                        # (H,)
ordered = sample.sort(0).values
cuts = (ordered[1:] + ordered[:-1]) / 2                                 # (99, H) between neighbours
told = ((sample[:, None] - cuts) * direction > 0) == is_for[:, None, None]      # (100, 99, H)
threshold = cuts.gather(0, told.float().mean(0).argmax(0)[None])[0]     # (H,)
right = (((at_third - threshold) * direction > 0) == (truth == FOR)[:, None]).float()   # (N, H)
far = 2 * means - means.flip(0)                     # (2, H) three times as far apart as the means


@torch.no_grad()
def price(unit):
    """Mean bits per labelled review that the wrong side costs more than the right side."""
    tokens, real = judged[shown].to(lesson.device), present[shown].to(lesson.device)
    logprobs = []
    for stance in (AGAINST, FOR):
        lstm.clamp = {unit: far[stance, unit].item()}
        logprobs.append(sequence_logprobs(model(tokens), tokens, real).cpu())
    lstm.clamp = {}
    logprobs, own = torch.stack(logprobs), truth[None, shown]           # (2, 100), (1, 100)
    return bits((logprobs.gather(0, own) - logprobs.gather(0, 1 - own)).mean().item())


best_five = right[shown].mean(0).topk(5)
prices = {u: price(u) for u in best_five.indices.tolist()}
highest = max(prices.values())                      # `prices` begins with the most often right
unit = ([u for u, lost in prices.items() if lost >= highest / 2] or list(prices))[0]
found = right[held_out, unit].mean().item()
print(f"  on the {LABELLED} labelled reviews:\n    "
      + "\n    ".join(f"unit {u:3d}: {share:4.0%} right, price {prices[u]:5.1f} bits"
                      for u, share in zip(prices, best_five.values.tolist())))

# (N, H) each unit with mean 0 and variance 1 on the labelled reviews
standard = (at_third - sample.mean(0)) / sample.std(0)
w, b = logistic(standard[shown], truth[shown].float())
everything = accuracy(standard[held_out] @ w + b > 0, truth[held_out] == FOR)
others = standard * (torch.arange(WIDTH) != unit)
w_others, b_others = logistic(others[shown], truth[shown].float())
without = accuracy(others[held_out] @ w_others + b_others > 0, truth[held_out] == FOR)
print(f"  on the {len(fresh) - LABELLED:,} other reviews:\n"
      f"    unit {unit} alone: {found:.1%} right\n"
      f"    logistic regression on all {WIDTH} units, with the same {LABELLED} labels: "
      f"{everything:.1%};\n"
      f"        {int((w != 0).sum())} weights are not 0; the largest is that of unit "
      f"{int(w.abs().argmax())}\n"
      f"    the same without unit {unit}: {without:.1%}")
lesson.claim("one unit, chosen with 100 labels, separates ≥ 85 % of fresh reviews", found >= 0.85,
             f"unit {unit}: {found:.1%}; the median unit {right[held_out].mean(0).median():.1%}; "
             f"with the same labels, logistic regression on words "
             f"{baseline['words', LABELLED]:.1%}, on pairs "
             f"{baseline['pairs of words', LABELLED]:.1%}", full_run=True, items=("C40",))

# %% [markdown]
# In the paper, one unit of 4,096 was right for 92.3 % of the IMDB reviews. But compare the last
# number printed above: the other units separate the stances too. So do not speak of *the* neuron.
# The same holds for the paper's network: Donnelly and Roegiest (2019) removed its neuron and lost
# little. Nothing in the loss asks the network to keep one bit in one unit only.
#
# What does the unit say at other places? We use the same unit and the same threshold everywhere.
# Each sentence is cut into eighths, so that reviews of different lengths can be averaged; 1 on the
# axis is the first full stop. Before the first look, the text does not contain the stance, and no
# classifier can be right for more than 50 %.

# %%
def oriented(values):
    """The unit's c: above 0 is for, below 0 against; the means of the two stances are 2 apart."""
    return (values - threshold[unit]) * 2 / (means[FOR, unit] - means[AGAINST, unit])


trace = oriented(torch.cat([memory(part)[..., unit] for part in judged.split(300)]))    # (N, T)
EIGHTHS = torch.arange(1, 41) / 8                                       # (40,)
before = stops[:, (EIGHTHS.ceil() - 1).long()]                          # (N, 40) the stop before
after = stops[:, EIGHTHS.ceil().long()]                                 # (N, 40) the stop after
places = (before + (after - before) * (EIGHTHS - EIGHTHS.ceil() + 1)).round().long()    # (N, 40)
right_at = ((trace.gather(1, places) > 0) == (truth == FOR)[:, None])[held_out].float()
by_place = right_at.mean(0)                                             # (40,)


def form(sentence):
    """How a sentence gives its opinion, if it has one."""
    for sign, name in (("It lasted", "none"), ("at first", "contrast"), ("never", "denial")):
        if sign in sentence:
            return name
    return "plain"


first_look, second_look = ([form(text.split(". ")[k]) for text in fresh[LABELLED:]]
                           for k in (1, 2))


def by_form(values, forms):
    """The mean of `values` (one per review) over the reviews of each form."""
    return {kind: values[torch.tensor([f == kind for f in forms])].mean().item()
            for kind in sorted(set(forms))}


after_neutral = by_form(right[held_out, unit], second_look)["none"]
at_last_stop = trace.gather(1, stops[:, 3:4])[held_out, 0]              # (N − 100,) third full stop

fig, (curve, histogram) = plotting.figure(11, 4, columns=2)
curve.plot(EIGHTHS, 100 * by_place, marker="o", markersize=3,
           label=f"unit {unit}, the same threshold everywhere")
curve.axhline(50, color="black", linestyle=":", label="chance")
curve.axvline(3, ymin=0.2, color="black", linewidth=0.8)
curve.text(3.05, 22, "chosen here", rotation=90, va="bottom", fontsize=9)
curve.set(xlabel="sentences read", ylabel="reviews on the right side (%)", ylim=(0, 103),
          title="By place in the review")
curve.legend(loc="lower right")
bins = torch.linspace(at_last_stop.min(), at_last_stop.max(), 41).tolist()
for stance, style in ((AGAINST, dict(color=plotting.COLOURS[1], hatch="//")),
                      (FOR, dict(color=plotting.COLOURS[0]))):
    votes = at_last_stop[truth[held_out] == stance]
    histogram.hist(votes.tolist(), bins=bins, alpha=0.6, edgecolor="white",
                   label=f"reviews {reviews.STANCES[stance]}", **style)
histogram.axvline(0, color="black", linewidth=0.8)
histogram.set(xlabel=f"unit {unit} at the third full stop (0: the threshold)",
              ylabel="fresh reviews", title="Both stances (compare the paper's figure 3)")
histogram.legend()
lesson.figure(fig, "unit")
print("  right, by sentences read: "
      + ", ".join(f"{k}: {by_place[8 * k - 1]:.1%}" for k in range(1, 6)))
lowest = 16 + int(by_place[16:24].argmin())
print(f"  lowest between 2 and 3: {by_place[lowest]:.0%}, at {EIGHTHS[lowest]:.3f}")
print("  right at 1¾, by the first look's form: "
      + ", ".join(f"{kind} {share:.0%}"
                  for kind, share in by_form(right_at[:, 13], first_look).items()))
for stance in (FOR, AGAINST):
    chosen = truth[held_out] == stance
    forms = [kind for kind, keep in zip(second_look, chosen.tolist()) if keep]
    votes = at_last_stop[chosen]
    print(f"  reviews {reviews.STANCES[stance]:<8} closest to the threshold "
          f"{votes[votes.abs().argmin()]:+.2f}; means by the second look's form: "
          + ", ".join(f"{kind} {vote:+.2f}" for kind, vote in by_form(votes, forms).items()))
lesson.claim("after a sentence without an opinion, the unit is right for ≥ 85 % of the reviews",
             after_neutral >= 0.85, f"{after_neutral:.1%} of the reviews that have one",
             full_run=True, items=("C40",))

# %% [markdown]
# ## 4. The unit's value along a review
# First, what the two panels above show (all numbers are those of seed 0).
#
# **Left.** At the second and third full stops the unit is right for all reviews. Between them its
# value may cross the threshold: at 2¾ the unit is right for 68 %. The network has not lost the
# stance there. A logistic regression on the other 127 units, trained at this place, is right for
# 100 %. At 1¾ the curve is even below 50 %: the unit is right for only 8 % of the plain first
# looks. A word is incomplete there ("The plot was supe"), and "at first, but dull" can still
# follow. At the fourth full stop the unit is above the threshold for all reviews. So a threshold
# chosen at one full stop has a meaning there, and little meaning elsewhere.
#
# **Right.** The two stances are on two sides of the threshold, but each has several groups, not one
# as in the paper's figure 3. The unit also holds the form of the second look. One group is close to
# the threshold: favourable reviews with a plain second look ("And the songs were superb.") have the
# mean +0.28, on an axis on which the two stances' means are 2 apart.
#
# Now four reviews, character by character. A bar upwards means for, a bar downwards against. In the
# opening the text does not contain the stance yet, and the bars mean nothing. Then compare:
#
# - "dull at first, but superb" has the value +0.5 at the second full stop, "superb at first, but
#   dull" −1.1. The same two words, in the other order, change the sign.
# - "never dull" has +1.7, "never superb" −0.5: the unit has combined the two words.
# - At the full stop of "It lasted two hours", all four values still have the right sign. Before
#   this full stop the value may come close to 0, or change its sign.
# - After the feeling ("I laughed", "I groaned") all bars point upwards. The feeling has just been
#   read, and it shows the stance, so the network can write the advice without this unit.
#
# Items: C39

# %%
SHOWN = {
    "contrast": "The plot was dull at first, but superb by the end. It lasted two hours. "
                "I laughed. My advice: see it!",
    "contrast, other stance": "The plot was superb at first, but dull by the end. "
                              "It lasted two hours. I groaned. My advice: miss it!",
    "denial": "The plot was never dull. It lasted two hours. I never groaned. "
              "My advice: do not miss it!",
    "denial, other stance": "The plot was never superb. It lasted two hours. I never laughed. "
                            "My advice: do not see it!",
}
fig, panels = plotting.figure(13, 9, rows=4, sharey=True)
for axes, (name, tail) in zip(panels, SHOWN.items()):
    text = "Saw it with Ada. " + tail
    tokens = torch.tensor([[END, *tokenizer.encode(text)]])             # (1, T + 1)
    votes = oriented(memory(tokens)[0, 1:, unit]).tolist()              # T numbers
    colours = [plotting.COLOURS[0] if vote > 0 else plotting.COLOURS[1] for vote in votes]
    axes.bar(range(len(text)), votes, width=1, color=colours)
    for at, character in enumerate(text):
        axes.text(at, 0.06, character, ha="center", family="monospace", fontsize=9,
                  transform=axes.get_xaxis_transform())
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlim=(-1, 120), xticks=[],
             title=f"{name}: by the grammar, this review is {reviews.STANCES[reviews.label(text)]}")
    axes.set_yticks([-1, 1], ["against", "for"])
low, high = panels[0].get_ylim()
panels[0].set_ylim(low - 0.25 * (high - low), high)     # room for the text below the longest bar
lesson.figure(fig, "heard")

# %% [markdown]
# ## 5. Hold the unit, and the written reviews change
# A unit that separates the stances need not matter for what the network writes. To see whether the
# network *uses* it, overwrite this unit of cₜ₋₁ with one value v at the start of each step, and
# compute the rest as usual:
#
#     cₜ₋₁[unit] ← v          then          cₜ = f⊙cₜ₋₁ + i⊙g,    hₜ = o⊙tanh(cₜ)
#
# `LSTM.clamp` does this. Radford et al. (2017, §4, "Generative analysis") do the same with their
# unit, and course C gives the result: one unit "may control the sentiment of the generated text".
# First the equations by hand, in float64, so that rounding does not hide a difference:

# %%
exact = copy.deepcopy(model).cpu().double()
value = means[FOR, unit].double().item()
exact.layers[0].clamp = {unit: value}
with torch.no_grad():
    W, U, bias = exact.layers[0].W, exact.layers[0].U, exact.layers[0].b
    h, c, by_hand = torch.zeros(WIDTH).double(), torch.zeros(WIDTH).double(), []
    for token in line[0]:
        c[unit] = value
        sums = W @ exact.token_embedding.weight[token] + U @ h + bias   # (4H,)
        i, f, g, o = sums.split(WIDTH)                                  # (H,) each
        c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        by_hand.append(exact.out.weight @ h + exact.out.bias)
    lesson.check("clamped LSTM = by hand, with c overwritten at every step", exact(line)[0],
                 torch.stack(by_hand), atol=1e-9, source="derived above")

# %% [markdown]
# Now the network writes reviews, from END alone: with the unit held far on the unfavourable side,
# free, and held far on the favourable side (the values of part 3). The grammar judges them twice.
# Can the whole review be parsed, and under which stance? And if each of its sentences can be
# parsed, what is the stance of each one?

# %%
n = lesson.pick(full=400, quick=20)
PLACES = ("first look", "second look", "feeling", "advice")


def write(value):
    """n reviews with the unit held at this value (None: free)."""
    lstm.clamp = {} if value is None else {unit: value}
    start = torch.full((n, 1), END, device=lesson.device)
    written = generate(model, start, lesson.pick(200, 30), generator=lesson.generator,
                       stop_token=END)[:, 1:]
    lstm.clamp = {}
    return [tokenizer.decode(row).split("\n")[0] for row in written.tolist()]


def moods_by_place(texts):
    """For each place, the share of the opinions there that are favourable.

    Only reviews whose five sentences can all be parsed are counted.
    """
    moods = []
    for text in texts:
        try:
            moods.append([mood for _, mood in reviews.sentence_moods(text)][1:])
        except ValueError:                          # a sentence that the grammar cannot write
            continue
    complete = [row for row in moods if len(row) == len(PLACES)]
    columns = [[mood for mood in column if mood is not None] for column in zip(*complete)]
    return ([sum(column) / max(1, len(column)) for column in columns]
            or [math.nan] * len(PLACES))


parsed, favourable, by_sentence = {}, {}, {}
held_at = far[:, unit].tolist()
for name, value in (("held against", held_at[AGAINST]), ("free", None),
                    ("held for", held_at[FOR])):
    texts = write(value)
    labels = [label for label in map(reviews.label, texts) if label is not None]
    parsed[name], favourable[name] = len(labels) / n, sum(labels) / max(1, len(labels))
    by_sentence[name] = moods_by_place(texts)
    print(f"  {name}: {parsed[name]:.0%} can be parsed, {favourable[name]:.0%} of these are for")
    print("      sentences for: " + ", ".join(f"{place} {share:.0%}" for place, share
                                              in zip(PLACES, by_sentence[name])))
    for text in [text for text in texts if reviews.label(text) is not None][:2]:
        print(f"      {text}")

fig, (whole, places) = plotting.figure(10, 3.8, columns=2, width_ratios=[2, 3])
grey, striped = dict(color="#BBBBBB"), dict(color=plotting.COLOURS[0], hatch="//")
for shift, shares, label, style in ((-0.2, parsed, "can be parsed", grey),
                                    (0.2, favourable, "of these, for", striped)):
    heights = [100 * share for share in shares.values()]
    bars = whole.bar([i + shift for i in range(3)], heights, 0.4, edgecolor="white", label=label,
                     **style)
    whole.bar_label(bars, fmt="%.0f")
whole.set_xticks(range(3), list(parsed))
whole.set(ylabel=f"of {n} written reviews (%)", ylim=(0, 125), title=f"Unit {unit} held, or free")
whole.legend(loc="upper left", ncols=2)
for name, marker in (("held for", "o"), ("free", "s"), ("held against", "v")):
    places.plot(range(4), [100 * share for share in by_sentence[name]], marker=marker, label=name)
places.set_xticks(range(4), PLACES)
places.set(ylabel="sentences for, of those with an opinion (%)", ylim=(-3, 103),
           title="Sentence by sentence")
places.legend(loc=(0.62, 0.64))
lesson.figure(fig, "clamp")
lesson.claim("the held unit decides the stance: ≥ 50 points between held for and held against",
             favourable["held for"] - favourable["held against"] > 0.5
             and 0.35 < favourable["free"] < 0.65,
             ", ".join(f"{name} {favourable[name]:.0%} for (of the {parsed[name]:.0%} that parse)"
                       for name in parsed) + "; free must be between 35 and 65 %",
             full_run=True, items=("C40",))

# %% [markdown]
# ## 6. Summary
# - **One unit holds the stance when it is needed**, and the network uses it. With the unit held,
#   the second look and the feeling follow it almost always (97 and 99 % are favourable when it is
#   held for, 1 and 0 % when it is held against; seed 0). The first look follows it much less (47
#   and 17 %), and so does the advice when the unit is held against (39 %).
# - **So fewer held reviews can be parsed** (45 %; free 99 %). If the first look has one stance and
#   the unit the other, the review contradicts itself. A probable reason: in training, the stance
#   is never known before the first look, so nothing teaches the network to read its memory there.
# - **The network learned the stance because it lowers the loss**, by one bit per sentence. No word
#   shows it and no label was given. What does not lower the loss is not learned, even if it is
#   interesting to us.
# - **Training on prediction gave a representation.** The authors trained a model to predict
#   reviews, and could then classify them. A year later Radford et al. (2018) replaced the LSTM by a
#   transformer and trained all its weights further on each task: GPT (lessons 06 and 12).

# %%
lesson.end()
