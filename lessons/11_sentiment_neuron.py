"""Lesson 11: the sentiment neuron, or what a network finds out because it helps to guess the next letter.

You will see    a character-level LSTM that reads film reviews and is never told which are favourable; one number of its memory
                that says so all the same; a review as that unit hears it; and new reviews, for or against, by holding the unit.
Source          course C, "The sentiment neuron"; Radford, Jozefowicz and Sutskever 2017 (arXiv:1704.01444), §§3–5, figs. 3 and 4.
Expect          2 minutes on one core (quick: about 10 s); every check passes; the network ends within 0.5 bits of the exact entropy of
                a review, 17; one unit tells 87 to 100 % of fresh reviews apart (five seeds), where counted words tell 50 %; held, it
                decides their mood.
Not here        82 million real reviews, 4,096 units and a multiplicative LSTM, as in the paper; ours are small and from a grammar.
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
from minigpt.training.losses import bits, cross_entropy, next_token_loss
from minigpt.worlds import reviews
from minigpt.worlds.reviews import AGAINST, FOR

lesson = Lesson("11_sentiment_neuron", threads=1)

# %% [markdown]
# ## 1. Reviews whose mood no word gives away
# A reviewer is for a film or against it, and writes five sentences from a grammar (`minigpt/worlds/reviews.py`). Who is for it may
# praise ("was superb"), deny the opposite ("was never dull"), or do both ("dull at first, but superb by the end"). Praise and
# denial are equally likely, so *superb* is as frequent in one stance as in the other, and so is *never*, and every other word.
#
# The grammar can also read: a review parses under one stance only. So the true label of any text, written by the grammar or
# by a network, is a fact and not an opinion.

# %%
fresh, stances = reviews.sample_many(lesson.pick(full=2_100, quick=600), seed=2 * lesson.seed + 1)
training, _ = reviews.sample_many(lesson.pick(full=12_000, quick=1_500), seed=2 * lesson.seed)          # the labels stay here, for good
for stance in (FOR, AGAINST):
    print(f"  {reviews.STANCES[stance]:<8} {fresh[stances.index(stance)]}")
by_parsing = [reviews.label(text) for text in fresh[:500]]
lesson.check("label by parsing = the stance that was drawn, 500 reviews", by_parsing, stances[:500], atol=0, source="grammar")

# %% [markdown]
# How many bits does a review hold? The stance is one. Then, sentence by sentence, with H(p, q, …) the entropy of a choice and Q that
# of a quality, which has three forms, of probability ⅖, ⅖, ⅕; the first two name one word out of 4, the last two words:
#
#     who and how       log₂ 8                                   = 3
#     the first look    log₂ 4 + Q            Q = H(⅖, ⅖, ⅕) + ⅖·2 + ⅖·2 + ⅕·4
#     the second        H(⅔, ⅓) + ⅔ (1 + Q) + ⅓·1                            "It lasted two hours" is the ⅓
#     feeling, advice   2, 1
#
# The library adds this up by walking over the rules. A third way knows neither: draw reviews, and average what each one
# costs, −log₂ P(review). That is right within a few standard errors of the mean.

# %%
def H(*p):
    return -sum(q * math.log2(q) for q in p)


Q = H(0.4, 0.4, 0.2) + 0.4 * 2 + 0.4 * 2 + 0.2 * 4
by_parts = 1 + 3 + (2 + Q) + (H(2 / 3, 1 / 3) + 2 / 3 * (1 + Q) + 1 / 3) + 2 + 1
costs = torch.tensor([reviews.surprisal(text) for text in fresh[:500]])
lesson.check("entropy of a review, by the rules = by parts", reviews.entropy(), by_parts, atol=1e-9, source="chain rule of entropy")
error = costs.std().item() / 500**0.5                                   # the standard error of the mean
lesson.check("entropy = mean of −log₂ P(review), 500 drawn, within 4 errors", costs.mean(), by_parts, atol=4 * error, source="Shannon 1948")
print(f"      {reviews.entropy():.2f} bits a review, {reviews.REVIEWS[FOR].expected_length():.0f} characters on average")

# %% [markdown]
# What could a classifier of words do, if it *were* shown labels? Logistic regression on counts, P(for | x) = σ(w·x + b), with the
# L1 penalty that the paper uses, λ Σ|wⱼ|: it sets useless weights to exactly 0. (Each step walks down the slope, then moves
# every weight by the same amount towards 0, and stops there.) Two kinds of features: the words of lesson 01's bag, and pairs of
# neighbouring words, in which "never dull" is one feature. Each classifier reads the review's first three sentences, of which more below.

# %%
def logistic(x, y, penalty=0.01, steps=1_000):
    """Weights w (F,) and b that make σ(x w + b) likely for labels y (N,) ∈ {0, 1}, less penalty·Σ|w|; x (N, F)."""
    w, b = x.new_zeros(x.size(1)), x.new_zeros(())
    rate = 4 / (torch.linalg.matrix_norm(x, 2) ** 2 / len(x) + 1)       # 1 / the greatest curvature that the loss can have
    for _ in range(steps):
        error = torch.sigmoid(x @ w + b) - y                            # (N,)
        w = w - rate * x.T @ error / len(x)                             # (F, N) @ (N) -> (F)
        w = w.sign() * (w.abs() - rate * penalty).clamp(min=0)
        b = b - rate * error.mean()
    return w, b


def accuracy(guess, truth):
    return (guess == truth).float().mean().item()


def third_stop(text):
    """How many characters the first three sentences have, with their full stops."""
    return [at for at, character in enumerate(text, 1) if character in ".!"][2]


def bag(texts, names):
    return torch.tensor([[counts[name] for name in names] for counts in texts], dtype=torch.float32)        # (N, F)


LABELLED = 100                                                          # all the labels to learn from, unless it is said otherwise
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
        print(f"    counts of {kind:<15} {shown:5d} labels: {baseline[kind, shown]:6.1%} of the other half right")
coin = 4 * 0.5 / half**0.5
lesson.claim("counting words is no better than a coin, however many labels", abs(baseline["words", half] - 0.5) < coin,
             f"{baseline['words', half]:.1%} with {half:,} labels; a coin lands within 50 ± {coin:.1%}; "
             f"pairs of words reach {baseline['pairs of words', half]:.1%}")

# %% [markdown]
# ## 2. Read a lot, and guess the next letter
# Now the network. It sees characters only, and its loss is the one of lesson 02, −Σ log P(uᵢ | u_<i). Nobody tells it where words
# end, what they mean, or that reviewers have a stance. But: once a reviewer is known to be *for*, "And the songs were never …" must
# go on with *awful, boring, dull* or *feeble*; without the stance it could be eight words instead of four. One bit lost. "I laughed"
# or "I groaned", another; and "see it" or "miss it". Whoever wants those bits has to work the stance out, carry it over dozens of
# characters, and keep it apart from all else. *That* is why a sentiment neuron can come out of guessing letters.
#
# It is lesson 03's LSTM, with a linear layer on h. As there, the probability of a text is the same whether it is read at once or
# a character at a time with the state handed on, and it can be multiplied up from the single conditionals.

# %%
tokenizer = CharTokenizer.train("\n" + "".join(training))
END, = tokenizer.encode("\n")                                           # stands before each review and after it
probe = RecurrentLM(tokenizer.vocab_size, d_embedding=5, d_hidden=7, generator=lesson.generator).double()
for parameter in probe.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
line = torch.tensor([[END, *tokenizer.encode(fresh[0]), END]])          # (1, T)
with torch.no_grad():
    at_once = -next_token_loss(probe, line).item() * (line.size(1) - 1)
    cache, one_by_one = probe.new_cache(), 1.0
    for t in range(line.size(1) - 1):
        scores = probe(line[:, t:t + 1], cache)[0, -1].exp()            # (V,)
        one_by_one *= (scores[line[0, t + 1]] / scores.sum()).item()
lesson.check("log P(review), in one pass = product of conditionals", at_once, math.log(one_by_one), atol=1e-9, source="C: chain rule")

# %% [markdown]
# One thing of lesson 03 matters here. With the usual forget bias of 1 a unit starts out forgetting within 3.7 steps, and little gradient
# tells the network that a word fifty characters back would have helped. So each unit gets a memory span τ of its own, b_f = ln(τ − 1)
# and b_i = −½ ln τ, spread evenly on a logarithmic scale from 2 characters to 160: most for spelling, a few for the review as a whole.
#
# A window for training begins where a review begins, and runs on into the next.

# %%
judged, present = pad([[END, *tokenizer.encode(text), END] for text in fresh],
                      side="right", value=END)                          # (N, longest) each
exact_bits = sum(map(reviews.surprisal, fresh[:300])) / 300                             # what these very reviews cost, exactly

encoded = [tokenizer.encode("\n" + text) for text in training]
corpus = torch.tensor([token for review in encoded for token in review])                # (all characters,)
starts = torch.tensor([0] + [len(review) for review in encoded]).cumsum(0)
LENGTH, BATCH, WIDTH = 128, 128, 128
starts = starts[starts + LENGTH < len(corpus)]


def next_batch(generator):
    first = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
    return corpus[first[:, None] + torch.arange(LENGTH + 1)].to(lesson.device)          # (B, T + 1)


def review_bits(model):
    """Bits a review, its end included, on the first 300 fresh ones."""
    tokens, real = judged[:300].to(lesson.device), present[:300, 1:]
    return {"val_loss": bits(cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], real.to(lesson.device)).item()) * real.sum().item() / 300}


model = RecurrentLM(tokenizer.vocab_size, d_embedding=32, d_hidden=WIDTH, generator=lesson.generator)
lstm = model.layers[0]
spans = torch.logspace(math.log10(2), math.log10(160), WIDTH)           # (H,) τ
lstm.forget_bias.copy_((spans - 1).log())
lstm.b.data[:WIDTH] = -0.5 * spans.log()                                # the input gate comes first
model.to(lesson.device)
config = TrainingConfig(max_steps=lesson.pick(full=500, quick=10), learning_rate=2e-3, weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=100, quick=20), seed=lesson.seed)
print(f"  {count_parameters(model):,} parameters, {config.max_steps} steps of {BATCH} × {LENGTH} characters")


def on_row(row):
    above = row["val_loss"] - exact_bits
    print(f"  step {row['step']:5d}   {row['val_loss']:7.2f} bits a review, {above:7.2f} above the floor", flush=True)


history = train(model, next_batch, next_token_loss, config, review_bits, on_row=on_row)
gap = history[-1]["val_loss"] - exact_bits
lesson.claim("within half a bit a review of the exact entropy, on fresh reviews", gap < 0.5,
             f"{gap:.2f} bits above the {exact_bits:.2f} that these reviews hold", full_run=True)

# %% [markdown]
# Half a bit above the floor is only possible with the stance. Who writes perfect sentences but forgets the stance after each pays one bit
# more for the feeling, one for the advice, and one for the second look if it holds an opinion, ⅔ on average: the dotted line. Where the
# curve falls below it, the network has begun to carry the stance.

# %%
fig, axes = plotting.figure(7, 3.6)
above = [row["val_loss"] - exact_bits for row in history]
axes.semilogy([row["step"] for row in history], above, marker="o", markersize=4, label="LSTM, on fresh reviews")
axes.axhline(2 + 2 / 3, color="black", linestyle=":", label="what forgetting the stance after each sentence costs: 2⅔ bits")
axes.set(xlabel="optimizer steps", ylabel="bits a review above the entropy", title="The loss, seen from its floor")
axes.legend()
lesson.figure(fig, "loss")

# %% [markdown]
# ## 3. One unit
# The network is trained and stays as it is. Its memory is c, 128 numbers a character. Where to read it? Not at the very end:
# after "My advice: miss it!" nothing more has to be guessed, and the network may forget. Nor at one place only: units that prepare the
# next word show the stance for a moment too, and holding one of those changes nothing. A memory knows as soon as it can be known, and
# still knows a sentence later. The first look is always an opinion, so the label is in the text at the **second full stop**; at the
# **third**, feeling and advice are still to come, and in a third of reviews the sentence before was "It lasted two hours" or "three".
#
# A hundred labelled reviews choose the unit and its threshold, and nothing else: for each unit, the threshold is half way between its
# mean over the favourable and its mean over the unfavourable, at both stops; the unit that is right most often, there and there, is taken.
# It is judged on other reviews at the third full stop. Below you will see all other places too.

# %%
@torch.no_grad()
def memory(tokens):
    """c after every character: (N, T) -> (N, T, H)."""
    return model.states(tokens.to(lesson.device))[-1][1].cpu()


# (N, 6) where sentences end, then (N, 2, H) the memory at the second and at the third full stop; a few hundred rows at a time,
# for the whole memory is large.
stops = torch.tensor([[0] + [at for at, character in enumerate(text, 1) if character in ".!"] for text in fresh])
parts = zip(judged.split(300), stops[:, 2:4].split(300))
at_stops = torch.cat([memory(part)[torch.arange(len(part))[:, None], places] for part, places in parts])
shown, held_out = slice(0, LABELLED), slice(LABELLED, None)

means = torch.stack([at_stops[shown][truth[shown] == stance].mean((0, 1)) for stance in (AGAINST, FOR)])                # (2, H)
threshold, direction = means.mean(0), (means[FOR] - means[AGAINST]).sign()                              # (H,) each
right = ((at_stops - threshold) * direction > 0) == (truth == FOR)[:, None, None]       # (N, 2, H) True where that unit alone is right
unit = int(right[shown].float().mean((0, 1)).argmax())
at_third, right = at_stops[:, 1], right[:, 1].float()                                   # (N, H) each
found = right[held_out, unit].mean().item()
best_five = right[shown].mean(0).topk(5)
print(f"  on the {LABELLED} labelled reviews: "
      + ", ".join(f"unit {u} {share:.0%}" for u, share in zip(best_five.indices.tolist(), best_five.values.tolist())))

standard = (at_third - at_third[shown].mean(0)) / at_third[shown].std(0)                   # (N, H) each unit with mean 0 and variance 1
w, b = logistic(standard[shown], truth[shown].float())
everything = accuracy(standard[held_out] @ w + b > 0, truth[held_out] == FOR)
others = standard * (torch.arange(WIDTH) != unit)
w_others, b_others = logistic(others[shown], truth[shown].float())
without = accuracy(others[held_out] @ w_others + b_others > 0, truth[held_out] == FOR)
print(f"  on {len(fresh) - LABELLED:,} others: unit {unit} alone {found:.1%}; "
      f"all {WIDTH} units, L1-logistic on the same {LABELLED}: {everything:.1%}, {int((w != 0).sum())} weights are not 0, "
      f"the largest is unit {int(w.abs().argmax())}'s; all but unit {unit}: {without:.1%}")
lesson.claim("one unit, chosen on 100 labels, tells ≥ 85 % of fresh reviews apart", found >= 0.85,
             f"unit {unit}: {found:.1%}; counts of words with the same labels {baseline['words', LABELLED]:.1%}, "
             f"pairs of words {baseline['pairs of words', LABELLED]:.1%}; "
             f"the median unit {right[held_out].mean(0).median():.1%}", full_run=True)

# %% [markdown]
# In the paper one unit of 4,096 got 92.3 % of IMDB's reviews right. What "all but" that unit get right is a warning not to say *the*
# neuron: the others know the stance too, and so they do in the paper's network (Donnelly and Roegiest 2019 took its neuron out and
# lost little). A network that has to carry one bit has no reason to put it in one place only.
#
# Is it a fluke of the place? Take the same unit and the same threshold to every other place. Each sentence is cut into eighths, so that
# reviews of different lengths can be averaged; 1 on the axis is the first full stop. Before the first look has been given, the label is
# not in the text, and nobody can do better than 50 %.

# %%
def oriented(values):
    """A unit's c as a vote: above 0 is for, below is against, ±1 is the labelled reviews' mean."""
    return (values - threshold[unit]) * 2 / (means[FOR, unit] - means[AGAINST, unit])


trace = oriented(torch.cat([memory(part)[..., unit] for part in judged.split(300)]))                    # (N, longest)
EIGHTHS = torch.arange(1, 41) / 8
before, after = stops[:, (EIGHTHS.ceil() - 1).long()], stops[:, EIGHTHS.ceil().long()]                  # (N, 40) the stops on either side
places = (before + (after - before) * (EIGHTHS - EIGHTHS.ceil() + 1)).round().long()                    # (N, 40)
right_at = ((trace.gather(1, places) > 0) == (truth == FOR)[:, None])[held_out].float()                 # (N − 100, 40)
by_place = right_at.mean(0)                                             # (40,)


def form(sentence):
    """How a sentence gives its opinion, if it has one."""
    return "none" if "It lasted" in sentence else "contrast" if "at first" in sentence else "denial" if "never" in sentence else "plain"


first_look, second_look = ([form(text.split(". ")[k]) for text in fresh[LABELLED:]] for k in (1, 2))


def by_form(values, forms):
    """The mean of values (N − 100,) over the reviews of each form."""
    return {kind: values[torch.tensor([f == kind for f in forms])].mean().item() for kind in sorted(set(forms))}


over_neutral = by_form(right[held_out, unit], second_look)["none"]
at_last_stop = trace.gather(1, stops[:, 3:4])[held_out, 0]              # (N − 100,) the votes at the third full stop

fig, (curve, histogram) = plotting.figure(11, 4, columns=2)
curve.plot(EIGHTHS, 100 * by_place, marker="o", markersize=3, label=f"unit {unit}, one threshold for all places")
curve.axhline(50, color="black", linestyle=":", label="a coin")
for place in (2, 3):
    curve.axvline(place, color="black", linewidth=0.8)
curve.text(3.05, 30, "where it was chosen", rotation=90, va="bottom", fontsize=9)
curve.set(xlabel="sentences read", ylabel="reviews told apart (%)", ylim=(0, 103), title="By place in the review")
curve.legend(loc="lower right")
bins = torch.linspace(at_last_stop.min(), at_last_stop.max(), 41).tolist()
for stance, style in ((AGAINST, dict(color=plotting.COLOURS[1], hatch="//")), (FOR, dict(color=plotting.COLOURS[0]))):
    votes = at_last_stop[truth[held_out] == stance]
    histogram.hist(votes.tolist(), bins=bins, alpha=0.6, label=f"reviews {reviews.STANCES[stance]}", edgecolor="white", **style)
histogram.axvline(0, color="black", linewidth=0.8)
histogram.set(xlabel=f"unit {unit} at the third full stop (0: the threshold)", ylabel="fresh reviews",
              title="Two sides, from no label (cf. the paper's fig. 3)")
histogram.legend()
lesson.figure(fig, "unit")
print("  right, by sentences read: " + ", ".join(f"{k}: {by_place[8 * k - 1]:.1%}" for k in range(1, 6))
      + f"; at 3, where the third was neutral: {over_neutral:.1%}")
print("  right at 1¾, by the first look's form: "
      + ", ".join(f"{kind} {share:.0%}" for kind, share in by_form(right_at[:, EIGHTHS.tolist().index(1.75)], first_look).items()))
for stance in (FOR, AGAINST):
    chosen = truth[held_out] == stance
    forms = [kind for kind, keep in zip(second_look, chosen.tolist()) if keep]
    votes = at_last_stop[chosen]
    nearest = votes[votes.abs().argmin()]
    print(f"  reviews {reviews.STANCES[stance]:<8} nearest to the threshold {nearest:+.2f}; mean by the second look's form: "
          + ", ".join(f"{kind} {vote:+.2f}" for kind, vote in by_form(votes, forms).items()))
lesson.claim("at the full stop after a sentence without any opinion, the unit still tells", over_neutral >= 0.85,
             f"{over_neutral:.1%} of the reviews that have one", full_run=True)

# %% [markdown]
# ## 4. A review as the unit hears it
# First, what the two pictures above show. On the left: the unit tells the reviews apart where it was chosen, at the full stops. In between
# the value may fall, even across the threshold: other units carry the stance meanwhile (at 2¾, seed 0, this one is right for 71 %, and a
# logistic regression on the other 127 for all), and at the full stop, where it is needed, it is back. In the first look, at 1¾, the curve
# even dips *below* a coin. A word is just being spelt there, "The plot was supe", and until the full stop "at first, but dull" may
# follow. What the unit holds meanwhile happens to point the other way: of the plain first looks it has 11 % right (seed 0). A threshold
# made for full stops means little between them.
#
# On the right: the stances lie on two sides, but not in two humps, as in the paper's fig. 3. Each side has several clumps, for the unit
# also holds how the second look was put, and a clump may come close to 0: after a plain one ("And the songs were superb.") the favourable
# reviews stand at +0.12, a hair above the threshold (seed 0), and the 100 % hang by that hair.
#
# Now four reviews, character by character; bars upwards are for, downwards against, and ±1 is the mean of the labelled reviews. Look at
# what "dull at first" does and "but superb by the end" takes back, at "never dull" against "never superb", and at "It lasted two
# hours": on its way the value may come to nothing, or change sign; what counts is where it stands at the full stop. In the opening,
# where nothing is known yet, the bars mean nothing; and after the feeling they need not: "I laughed" has just been read, so the advice
# can do without a memory.

# %%
SHOWN = {
    "contrast": "The plot was dull at first, but superb by the end. It lasted two hours. I laughed. My advice: see it!",
    "contrast, the other way": "The plot was superb at first, but dull by the end. It lasted two hours. I groaned. My advice: miss it!",
    "denial": "The plot was never dull. It lasted two hours. I never groaned. My advice: do not miss it!",
    "denial, the other way": "The plot was never superb. It lasted two hours. I never laughed. My advice: do not see it!",
}
fig, panels = plotting.figure(13, 9, rows=4, sharey=True)
for axes, (name, tail) in zip(panels, SHOWN.items()):
    text = "Saw it with Ada. " + tail
    votes = oriented(memory(torch.tensor([[END, *tokenizer.encode(text)]]))[0, 1:, unit]).tolist()      # T numbers
    axes.bar(range(len(text)), votes, width=1, color=[plotting.COLOURS[0] if vote > 0 else plotting.COLOURS[1] for vote in votes])
    for at, character in enumerate(text):
        axes.text(at, 0.06, character, ha="center", family="monospace", fontsize=9, transform=axes.get_xaxis_transform())
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlim=(-1, 120), xticks=[], title=f"{name}: the grammar's judge says {reviews.STANCES[reviews.label(text)]}")
    axes.set_yticks([-1, 1], ["against", "for"])
low, high = panels[0].get_ylim()
panels[0].set_ylim(low - 0.25 * (high - low), high)                     # room for the text below the longest bar
lesson.figure(fig, "heard")

# %% [markdown]
# ## 5. Hold it, and the reviews change
# That the unit *knows* might be idle: the network could guess from elsewhere. To see whether it *uses* it, take the unit in
# hand: overwrite cₜ₋₁ of that unit with one value v on entering every step, and let the rest run on,
#
#     cₜ₋₁[unit] ← v          then          cₜ = f⊙cₜ₋₁ + i⊙g,    hₜ = o⊙tanh(cₜ)        as ever.
#
# `LSTM.clamp` does that. First by hand, so that nothing else is done:

# %%
exact = copy.deepcopy(model).cpu().double()                             # float64, so that the two agree far beyond rounding
value = means[FOR, unit].double().item()
exact.layers[0].clamp = {unit: value}
with torch.no_grad():
    W, U, bias = (p.double() for p in (exact.layers[0].W, exact.layers[0].U, exact.layers[0].b))
    h, c, by_hand = torch.zeros(WIDTH).double(), torch.zeros(WIDTH).double(), []
    for token in line[0]:
        c[unit] = value
        i, f, g, o = (W @ exact.token_embedding.weight[token] + U @ h + bias).split(WIDTH)              # (4H,) -> four times (H,)
        c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        by_hand.append(exact.out.weight @ h + exact.out.bias)
    lesson.check("clamped LSTM = by hand, with c overwritten at every step", exact(line)[0], torch.stack(by_hand), atol=1e-9,
                 source="C: the sentiment neuron")

# %% [markdown]
# Then let the network write, from nothing, with the unit held beyond the mean of the favourable or of the unfavourable reviews among the
# hundred, three times as far from the threshold, or free; and let the grammar judge twice. Does the review parse, from the first letter
# to the last, and under which stance? And if each of its sentences can be read, what is the mood of each?

# %%
n = lesson.pick(full=400, quick=20)
PLACES = ("first look", "second look", "feeling", "advice")


def write(value):
    """n reviews with the unit held at this value (None: free)."""
    lstm.clamp = {} if value is None else {unit: value}
    start = torch.full((n, 1), END, device=lesson.device)
    written = generate(model, start, lesson.pick(200, 30), generator=lesson.generator, stop_token=END)[:, 1:]
    lstm.clamp = {}
    return [tokenizer.decode(row).split("\n")[0] for row in written.tolist()]


def moods_by_place(texts):
    """Of the reviews whose five sentences can all be read: for each place the share for, among those with an opinion there."""
    moods = []
    for text in texts:
        try:
            moods.append([mood for _, mood in reviews.sentence_moods(text)][1:])
        except ValueError:                                              # some sentence is not of the grammar
            continue
    columns = [[mood for mood in column if mood is not None] for column in zip(*(row for row in moods if len(row) == len(PLACES)))]
    return [sum(column) / max(1, len(column)) for column in columns] or [math.nan] * len(PLACES)


parsed, favourable, by_sentence = {}, {}, {}
far = (3 * means - 2 * threshold)[:, unit].tolist()                     # three times as far from the threshold as the means are
for name, value in (("held against", far[AGAINST]), ("free", None), ("held for", far[FOR])):
    texts = write(value)
    labels = [label for label in map(reviews.label, texts) if label is not None]
    parsed[name], favourable[name], by_sentence[name] = len(labels) / n, sum(labels) / max(1, len(labels)), moods_by_place(texts)
    print(f"  {name:<13} {parsed[name]:4.0%} parse, and {favourable[name]:4.0%} of those are for;  sentences for: "
          + ", ".join(f"{place} {share:.0%}" for place, share in zip(PLACES, by_sentence[name])))
    print("      " + "\n      ".join([text for text in texts if reviews.label(text) is not None][:2]))

fig, (whole, places) = plotting.figure(10, 3.8, columns=2, width_ratios=[2, 3])
grey, striped = dict(color="#BBBBBB"), dict(color=plotting.COLOURS[0], hatch="//")
for shift, shares, label, style in ((-0.2, parsed, "parse", grey), (0.2, favourable, "of those, are for", striped)):
    heights = [100 * share for share in shares.values()]
    bars = whole.bar([i + shift for i in range(3)], heights, 0.4, edgecolor="white", label=label, **style)
    whole.bar_label(bars, fmt="%.0f")
whole.set_xticks(range(3), list(parsed))
whole.set(ylabel=f"of {n} reviews written (%)", ylim=(0, 125), title=f"Unit {unit} held, or free")
whole.legend(loc="upper left", ncols=2)
for name, marker in (("held for", "o"), ("free", "s"), ("held against", "v")):
    places.plot(range(4), [100 * share for share in by_sentence[name]], marker=marker, label=name)
places.set_xticks(range(4), PLACES)
places.set(ylabel="sentences for, of those with an opinion (%)", ylim=(-3, 103), title="Sentence by sentence")
places.legend(loc=(0.62, 0.64))
lesson.figure(fig, "clamp")
lesson.claim("the unit, held, decides the mood: at least 50 points between held for and held against; free, either",
             favourable["held for"] - favourable["held against"] > 0.5 and 0.35 < favourable["free"] < 0.65,
             ", ".join(f"{name} {favourable[name]:.0%} for (of the {parsed[name]:.0%} that parse)" for name in parsed), full_run=True)

# %% [markdown]
# ## 6. What to take home
# - **The held unit rules from the second look on** (in three of five seeds; in the other two from the feeling on); in the first look it
#   has a weak say, or none. That is why fewer held reviews parse: where the first look goes one way and the unit the other, the review
#   contradicts itself. In training nothing was known yet at the first look, so the network had no reason to ask its memory there. A
#   memory is asked where asking once saved a bit.
# - **The stance was learned because it pays**, one bit a sentence. The words gave nothing away, no label was shown; the loss did it.
#   What saves no bits is not learned, however interesting it may be to us.
# - **To predict and to represent are one thing.** The paper's authors trained a writer of reviews and got a reader of them. The next
#   year the same first author put a transformer in the LSTM's place and fine-tuned all of it: GPT (lessons 06 and 12).

# %%
lesson.end()
