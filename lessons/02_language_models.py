"""Lesson 02: language models, from counting to a small neural network, with the distance to perfection measured.

You will see    the chain rule sum to 1 over every sequence there is; counts and Bengio's network predict held-out text, and
                how many bits each is above the floor that no model can go under, because the text's entropy is known exactly.
Source          course B, "Language models" and "Perplexity"; course C, "N-grams" and "Neural language models"; Bengio et al. 2003.
Expect          about 35 s on two cores; every check passes. Of stories with a floor of 0.31 bits per character, the best n-gram counted on
                448,000 characters needs 0.20 more, the network 0.12 more; with three times the text, 0.14 and 0.10.
Not here        models that remember more than a few tokens (from lesson 03 on), and Kneser–Ney counts.
"""
# %%
import itertools
import math
from collections import Counter

import torch

from course import Lesson
from minigpt import plotting
from minigpt.generation import generate
from minigpt.models.neural import NeuralLM
from minigpt.models.ngram import NGram
from minigpt.text.corpora import prose
from minigpt.text.tokenizers import CharTokenizer, WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, cross_entropy, next_token_loss, perplexity
from minigpt.training.windows import make_random_windows
from minigpt.worlds.grammar import Grammar, alike
from minigpt.worlds.stories import STORIES

lesson = Lesson("02_language_models", threads=1)

# %% [markdown]
# ## 1. A text has a probability; the next token has a conditional one
# A language model is a distribution over sequences, p(w₁, …, w_T). With 3 tokens and 4 places it is a table of 3⁴ = 81
# numbers, so here is one, at random. The probability of a *beginning* is the sum over all ways to go on:
#
#     p(w₁..wᵢ) = Σ p(w₁..w_T) over wᵢ₊₁, …, w_T
#
# and the definition of a conditional, p(A | B) = p(A, B) / p(B), with A = wᵢ and B = w₁..wᵢ₋₁, gives
#
#     p(wᵢ | w₁..wᵢ₋₁) = p(w₁..wᵢ) / p(w₁..wᵢ₋₁)
#
# Erratum: course C writes p(wᵢ | w₁..w_n) = p(w₁..wᵢ) / p(w₁..w_n). Its denominator is one of the terms that the numerator
# sums up, so that ratio is never below 1, and is no probability.

# %%
V, T = 3, 4
sequences = list(itertools.product(range(V), repeat=T))
joint = torch.rand(V**T, generator=lesson.generator, dtype=torch.float64)
joint = (joint / joint.sum()).view(V, V, V, V)                          # p(w₁, w₂, w₃, w₄)


def beginning(i):
    """p(w₁..wᵢ): sum out every later place."""
    return joint.sum(dim=tuple(range(i, T))) if i < T else joint


def conditional(i):
    """p(wᵢ | w₁..wᵢ₋₁), the last axis is wᵢ."""
    return beginning(i) / beginning(i - 1).unsqueeze(-1)                # (V, …, V) / (V, …, 1)


# The same by listing: of the sequences that begin so, what part goes on with wᵢ?
listed = torch.zeros(V, V, V, dtype=torch.float64)
for w in itertools.product(range(V), repeat=3):
    among = [s for s in sequences if s[:2] == w[:2]]
    listed[w] = sum(joint[s] for s in among if s[2] == w[2]) / sum(joint[s] for s in among)
lesson.check("p(wᵢ | w₁..wᵢ₋₁) = p(w₁..wᵢ) / p(w₁..wᵢ₋₁)", conditional(3), listed, atol=1e-12, source="C: conditional, corrected")
as_written = beginning(2)[:, :, None, None] / joint                     # (V, V, 1, 1) / (V, V, V, V): C's formula for i = 2, n = 4
print(f"    as C writes it, p(w₂ | w₁..w₄) would run from {as_written.min():.1f} to {as_written.max():.0f}: no probabilities")

# %% [markdown]
# ## 2. The chain rule
# Multiply the conditionals, and each denominator cancels the numerator before it:
#
#     p(w₁) · p(w₁,w₂)/p(w₁) · p(w₁..w₃)/p(w₁,w₂) · p(w₁..w₄)/p(w₁..w₃) = p(w₁..w₄)
#
# So a model may be built from its conditionals alone. And *any* conditionals will do: if each sums to 1 over the next token,
# their product sums to 1 over all sequences, since the last sum is 1, then the one before it, and so on to the first:
#
#     Σ_w₁ p(w₁) Σ_w₂ p(w₂|w₁) … Σ_w_T p(w_T|w₁..w_T₋₁) = 1

# %%
product = torch.stack([math.prod(conditional(i)[s[:i]] for i in range(1, T + 1)) for s in sequences])
lesson.check("Π p(wᵢ | w₁..wᵢ₋₁) = p(w₁..w_T)", product, joint.flatten(), atol=1e-12, source="B, C: chain rule")

rows = {s: torch.randn(V, generator=lesson.generator).double().softmax(0) for i in range(T) for s in itertools.product(range(V), repeat=i)}
total = sum(math.prod(rows[s[:i]][s[i]] for i in range(T)) for s in sequences)
lesson.check("any normalised conditionals: Σ over all sequences = 1", total, 1.0, atol=1e-12, source="B, C: chain rule")

# %% [markdown]
# ## 3. Local normalisation
# Where do conditionals come from? From any score s(h, w) > 0 of a token w after a history h, divided by its sum:
#
#     p(w | h) = s(h, w) / Σ_w′ s(h, w′)
#
# With counts as scores this is an n-gram model; with s = e^y it is the softmax of y, which is what every network of this
# course ends in. The sum has V terms, one for each token. Normalising whole sequences instead, Π s / Z, needs Z over V^T of
# them, and is another distribution: a history whose scores are all large then draws probability to itself.

# %%
y = torch.randn(V + 1, V, generator=lesson.generator).double()          # y[h]: h = 0 is the beginning, else the token before, plus 1
score = y.exp()
local = score / score.sum(1, keepdim=True)
lesson.check("s / Σs with s = e^y is softmax(y)", local, torch.softmax(y, 1), atol=1e-12, source="C: local normalisation")


def of_sequence(table, s):
    return math.prod(table[0 if i == 0 else s[i - 1] + 1, s[i]] for i in range(T))


weights = torch.stack([of_sequence(score, s) for s in sequences])       # (81,) Π s
locally, globally = torch.stack([of_sequence(local, s) for s in sequences]), weights / weights.sum()
lesson.check("locally normalised: Σ over all sequences = 1, and no Z was needed", locally.sum(), 1.0,
             atol=1e-12, source="C: local normalisation")
print(f"    the two ways differ: the sequences' probabilities by up to {(locally - globally).abs().max():.3f}; "
      f"for {T} tokens of a vocabulary of 50,000, Z has {50_000**T:.0e} terms and the local sums {T * 50_000:.0e}")

# %% [markdown]
# ## 4. Perplexity
# How good is a model on a text it has not seen? It gave N tokens the probabilities p₁, …, p_N. The mean surprise is the
# cross-entropy L = −(1/N) Σ ln pᵢ in nats, or −(1/N) Σ log₂ pᵢ = L / ln 2 in bits. Taken out of the logarithm,
#
#     PPL = 2^(−mean log₂ p) = e^L = (Π 1/pᵢ)^(1/N)
#
# the (geometric) mean of 1/p: as hard as guessing among PPL equally likely tokens. Hence a uniform model has PPL = V.

# %%
logits = torch.randn(1, 9, 7, generator=lesson.generator).double()      # (B, T, V): 9 predictions among 7 tokens
targets = torch.randint(7, (1, 9), generator=lesson.generator)
library = perplexity(cross_entropy(logits, targets).item())
p = [math.exp(logits[0, t, targets[0, t]]) / sum(math.exp(a) for a in logits[0, t]) for t in range(9)]
lesson.check("PPL = 2^(−mean log₂ p)", library, 2 ** (-sum(math.log2(a) for a in p) / 9), atol=1e-9, source="B: perplexity")
lesson.check("PPL = e^cross-entropy = (Π 1/p)^(1/N)", library, math.prod(1 / a for a in p) ** (1 / 9), atol=1e-9, source="B: perplexity")
lesson.check("a uniform model has PPL = V", perplexity(cross_entropy(torch.zeros(1, 9, 7), targets).item()), 7,
             atol=1e-5, source="B: perplexity")

# %% [markdown]
# ## 5. Counting
# An n-gram model looks at the last n − 1 tokens only, h, and asks what followed them in a training text, c(hw) times w.
# The likelihood of that text is Π p(w|h)^c(hw). To make Σ c(hw) ln p(w|h) largest while Σ_w p(w|h) = 1, set the
# derivative of Σ c(hw) ln p(w|h) − λ_h (Σ_w p(w|h) − 1) to 0:
#
#     c(hw) / p(w|h) = λ_h    so    p(w|h) = c(hw) / λ_h,    and they sum to 1 if λ_h = Σ_w c(hw) = c(h)
#
# The best fit is the ratio of counts. Best for the *training* text: all it has not seen it calls impossible, and one such
# token makes a whole held-out text impossible. So `NGram` leans on shorter contexts (Witten and Bell 1991):
#
#     P_n(w|h) = ( c(hw) + κ d(h) P_{n−1}(w|h′) ) / ( c(h) + κ d(h) )
#
# with d(h) the number of different tokens seen after h, h′ the context without its oldest token, and κ = 1; κ → 0 is the ratio.

# %%
words = "the cat sat on the mat and the dog sat on the log and the cat ran".split()
kinds = sorted(set(words))
text = torch.tensor([kinds.index(w) for w in words])


def by_counting(context, w, κ):
    """P_n(w | context), by reading through the text: no tensors."""
    n = len(context)
    followers = Counter(words[i + n] for i in range(len(words) - n) if words[i:i + n] == context)
    shorter = by_counting(context[1:], w, κ) if n else 1 / len(kinds)
    if not followers:
        return shorter
    return (followers[w] + κ * len(followers) * shorter) / (followers.total() + κ * len(followers))


for κ in (0, 1):
    got = NGram(3, len(kinds), κ).fit(text)(text[None]).exp()[0, 1:]    # (N − 1, V) after each pair of words
    lesson.check(f"NGram of order 3, κ = {κ}, equals counts by hand", got,
                 [[by_counting(words[t - 1:t + 1], w, κ) for w in kinds] for t in range(1, len(words))], atol=1e-6, source="C: n-grams")

ratio = NGram(2, len(kinds), smoothing=0).fit(text)(torch.arange(len(kinds))[None])[0].exp()         # (V, V)
θ = (ratio + 1e-30).log().requires_grad_()                              # logits that softmax turns into the ratio
likelihood = θ.log_softmax(1)[text[:-1], text[1:]].sum()
(slope,) = torch.autograd.grad(likelihood, θ)
lesson.check("at the ratio of counts the likelihood is flat: ∂/∂θ = 0", slope, torch.zeros(len(kinds), len(kinds)),
             atol=1e-5, source="C: n-grams")

every = torch.tensor(list(itertools.product(range(len(kinds)), repeat=4)))                          # (V⁴, 4)
trigram = NGram(3, len(kinds)).fit(text)
logprob = trigram.next_token_probabilities(every[:, :0]).log().gather(1, every[:, :1])[:, 0] \
    + trigram(every[:, :-1]).gather(2, every[:, 1:, None]).sum((1, 2))
lesson.check(f"NGram: Σ over all {len(every):,} sequences of four words = 1", logprob.double().exp().sum(), 1.0,
             atol=1e-4, source="C: chain rule")

# %% [markdown]
# ## 6. A network that shares what it learns
# After "the cat sat on the" a count knows what came; after "a dog lay on the", if that was never seen, it knows nothing. Bengio
# et al. 2003 give each token a vector C(w), a row of a matrix (lesson 01), and let a small network read the vectors of the
# last n − 1 tokens side by side, the newest first:
#
#     x = (C(w_{t−1}), …, C(w_{t−n+1}))        y = b + W x + U tanh(d + H x)        P(w_t | …) = softmax(y)
#
# If "cat" and "dog" have similar vectors, x is similar, and what was learnt after one holds after the other. `NeuralLM` is this;
# here it is again, one number at a time.

# %%
network = NeuralLM(order=4, vocab_size=6, d_embedding=3, d_hidden=5, generator=lesson.generator).double()
torch.nn.init.normal_(network.U.bias, generator=lesson.generator)       # b and d start at 0, where a mistake in them would not show
torch.nn.init.normal_(network.H.bias, generator=lesson.generator)
tokens = torch.randint(6, (1, 5), generator=lesson.generator)
C, W, U, H = (layer.weight.tolist() for layer in (network.C, network.W, network.U, network.H))
b, d = network.U.bias.tolist(), network.H.bias.tolist()


def one_by_one(history):
    """y for the token after `history`; before its beginning stands the vector C[V]."""
    newest_first = (history[::-1] + [6, 6])[:3]
    x = [C[w][i] for w in newest_first for i in range(3)]
    hidden = [math.tanh(d[j] + sum(H[j][i] * x[i] for i in range(9))) for j in range(5)]
    return [b[w] + sum(W[w][i] * x[i] for i in range(9)) + sum(U[w][j] * hidden[j] for j in range(5)) for w in range(6)]


lesson.check("y = b + Wx + U·tanh(d + Hx)", network(tokens)[0], [one_by_one(tokens[0, :t + 1].tolist()) for t in range(5)],
             atol=1e-12, source="B, C: Bengio et al. 2003, eq. 1")

# %% [markdown]
# ## 7. The floor
# A model q meets text whose true distribution is p. Its mean surprise falls apart in two:
#
#     E_p[−log₂ q(text)] = E_p[−log₂ p(text)] + E_p[log₂ p(text)/q(text)] = H(p) + KL(p‖q)
#
# The entropy H is a property of the text: no model gets below it, since KL ≥ 0. The gap KL is the model's own failing.
# For natural text nobody knows H. Our stories are written by a grammar, and a grammar's H can be added up exactly. First one
# small enough to list: four names, and girls fall more often than they sleep.

# %%
tiny = Grammar({"text": "{who=NAME} ran until {who.he} <end>.", "end": [("fell", 3), "slept"]},
               {"NAME": alike("Ann Eve Ida", he="she") | alike("Tom", he="he")})
texts = {f"{name} ran until {he} {end}.": q / 4 for name, he in (("Ann", "she"), ("Eve", "she"), ("Ida", "she"), ("Tom", "he"))
         for end, q in (("fell", 3 / 4), ("slept", 1 / 4))}             # text -> p(text)
H = sum(-p * math.log2(p) for p in texts.values())
lesson.check("the grammar's entropy H = −Σ p log₂ p over all its texts", tiny.entropy(), H, atol=1e-12, source="Shannon 1948, §6")

sample = "".join("\n" + text for text in tiny.sample_many(50, lesson.seed))
words = WordTokenizer.train(sample + "".join(texts), keep_spaces=True)
small_model = NGram(2, words.vocab_size).fit(torch.tensor(words.encode(sample)))


def log2_q(text):
    """log₂ q(text, end | beginning) under the bigram."""
    ids = torch.tensor([words.encode(f"\n{text}\n")])
    return bits(small_model(ids[:, :-1]).gather(2, ids[:, 1:, None]).sum().item())


mean_surprise = sum(p * -log2_q(t) for t, p in texts.items())
KL = sum(p * (math.log2(p) - log2_q(t)) for t, p in texts.items())
lesson.check("mean surprise = H + KL(p‖q)", mean_surprise, tiny.entropy() + KL, atol=1e-9, source="C: cross-entropy")
print(f"    here H = {H:.2f} bits a text; a bigram counted on 50 texts needs {mean_surprise:.2f}: it forgets who ran, "
      "so it cannot know whether “she” or “he” comes")

# %% [markdown]
# ## 8. Counting against the network, with the floor drawn
# The stories, some 440 characters each, are new every time; only the ways of the language repeat. Tokens are the grammar's
# own, words and marks with the space before them: its choices fall exactly there, so the floor is known token by token. The
# vocabulary is that of all stories drawn here, so no model meets a word without a number. Losses are in bits per *character*,
# which does not depend on how a text was cut into tokens.

# %%
sizes = lesson.pick(full=[100, 300, 1000, 3000], quick=[60, 150])       # stories to learn from
middle = lesson.pick(1000, 150)                                         # at this size every order is tried
ORDERS = (1, 2, 3, 4, 5)
stories = STORIES.sample_many(100 + sizes[-1], lesson.seed)
held_out, corpus = stories[:100], stories[100:]


def text_of(stories):
    """A line break stands before each story and after the last."""
    return "".join("\n" + story for story in stories) + "\n"


tokenizer = WordTokenizer.train(text_of(stories), keep_spaces=True)
V = tokenizer.vocab_size
target = torch.tensor(tokenizer.encode(text_of(held_out)))              # (N,)
characters = len(text_of(held_out)) - 1                                 # all but the first line break is predicted
floor = torch.tensor([b for story in held_out for _, b in STORIES.surprisals(story)])               # (N − 1,) exact
training = {n: torch.tensor(tokenizer.encode(text_of(corpus[:n]))) for n in sizes}
length = {n: sum(len(story) + 1 for story in corpus[:n]) for n in sizes}                            # in characters


@torch.no_grad()
def surprise_of(model, text):
    """Bits for each token of a text (N,) after the first: (N − 1,)."""
    logprobs = model(text[None, :-1])[0].log_softmax(-1)                # (N − 1, V)
    return -logprobs.gather(1, text[1:, None])[:, 0] / math.log(2)


def train_network(text, order, vocab_size, steps, d_embedding=16, d_hidden=64):
    """Bengio's network after `steps` batches of 8 windows of 64 predictions."""
    network = NeuralLM(order, vocab_size, d_embedding, d_hidden, torch.Generator().manual_seed(lesson.seed))
    settings = TrainingConfig(max_steps=steps, learning_rate=1e-2, evaluate_every=steps, seed=lesson.seed)
    train(network, make_random_windows(text, 8, 65), next_token_loss, settings)
    return network


counters = {(n, k): NGram(k, V).fit(training[n]) for n in sizes for k in ORDERS}
networks = {(n, k): train_network(training[n], k, V, steps=int(16 * n**0.5))    # more text: more steps
            for n in sizes for k in (lesson.pick((2, 3, 5, 8), (5,)) if n == middle else (5,))}
surprise = {"count": {key: surprise_of(model, target) for key, model in counters.items()},
            "network": {key: surprise_of(model, target) for key, model in networks.items()}}
loss = {kind: {key: (b.sum() / characters).item() for key, b in table.items()} for kind, table in surprise.items()}
lowest = floor.sum().item() / characters

print(f"    {V:,} kinds of token; the held-out text has {characters:,} characters. "
      f"Its exact −log₂ p is {lowest:.3f} bits per character; over all stories H is {STORIES.entropy() / (STORIES.expected_length() + 1):.3f}")
print("    gap to the floor, in bits per character:\n    stories  characters " + "".join(f"  {k}-gram" for k in ORDERS) + "  network (order)")
for n in sizes:
    print(f"    {n:7,} {length[n]:11,} " + "".join(f"{loss['count'][n, k] - lowest:8.3f}" for k in ORDERS)
          + "  " + ", ".join(f"{value - lowest:.3f} ({k})" for (m, k), value in loss["network"].items() if m == n))

every_loss = [*loss["count"].values(), *loss["network"].values()]
lesson.claim("no model gets under the floor", min(every_loss) > lowest,
             f"the best of {len(every_loss)} models {min(every_loss):.3f} bits per character, the floor {lowest:.3f}")
best = {n: min(loss["count"][n, k] for k in ORDERS) for n in sizes}
lesson.claim("with every amount of text tried, the network is nearer to the floor", all(loss["network"][n, 5] < best[n] for n in sizes),
             "; ".join(f"{n:,} stories: gap {loss['network'][n, 5] - lowest:.2f} against {best[n] - lowest:.2f}" for n in sizes))

# %% [markdown]
# ## 9. Why: contexts that were never seen
# A longer context says more, when it was seen. There are V^(n−1) contexts, and a text of a million characters is soon used up:
# the share of held-out contexts never counted grows with n, and there an n-gram is left with its shorter self. So each amount
# of text has a best order. And where nothing was smoothed, a token that never followed its context was held to be impossible.

# %%
tokens_held_out = target[None, :-1]                                     # (1, N − 1)
unseen = {key: 1 - model.seen(tokens_held_out).float().mean().item() for key, model in counters.items()}
unsmoothed = {k: NGram(k, V, smoothing=0).fit(training[middle]) for k in ORDERS}
impossible = {k: surprise_of(model, target).isinf().float().mean().item()
              for k, model in unsmoothed.items()}
for name, row in ((f"after {middle:,} stories, order", map(str, ORDERS)),
                  ("held-out contexts never seen", (f"{unseen[middle, k]:.1%}" for k in ORDERS)),
                  ("tokens that κ = 0 calls impossible", (f"{impossible[k]:.1%}" for k in ORDERS))):
    print(f"    {name:<36}" + "".join(f"{cell:>8}" for cell in row))
order = {n: min(ORDERS, key=lambda k: loss["count"][n, k]) for n in sizes}
lesson.claim("too long a context makes counting worse", all(order[n] < 5 for n in sizes),
             f"best order {'; '.join(f'{order[n]} with {n:,} stories' for n in sizes)}; "
             f"at {middle:,}, {unseen[middle, 5]:.0%} of the contexts of order 5 are new")

fig, (left, centre, right) = plotting.figure(13, 4.2, columns=3)
left.plot(ORDERS[1:], [loss["count"][middle, k] for k in ORDERS[1:]], marker="o", label="n-gram")
network_orders = [k for m, k in networks if m == middle]
left.plot(network_orders, [loss["network"][middle, k] for k in network_orders], marker="s", label="network")
left.set(xlabel="order n (looks at n − 1 tokens)", ylabel="held-out bits per character", title=f"{length[middle]:,} characters to learn from")
for n in sizes:
    centre.plot(ORDERS, [100 * unseen[n, k] for k in ORDERS], marker="o", label=f"{length[n]:,} characters")
centre.set(xlabel="order n", ylabel="held-out contexts never seen (%)", title="The context runs into the unknown")
for k in ORDERS[1:]:
    right.plot(length.values(), [loss["count"][n, k] for n in sizes], marker="o", label=f"{k}-gram")
right.plot(length.values(), [loss["network"][n, 5] for n in sizes], marker="s", color="black", linestyle="-", label="network, order 5")
right.set(xlabel="characters to learn from", ylabel="held-out bits per character", xscale="log", title="More text")
for axes in (left, right):
    axes.axhline(lowest, color="grey", linestyle=":", label="floor: exact entropy")
    axes.set_ylim(bottom=0)
for axes in (left, centre, right):
    axes.legend()
lesson.figure(fig, "floor")

# %% [markdown]
# ## 10. Why: vectors that are alike
# The network never saw those contexts either, but it saw their *kind*. One-hot vectors are all equally far apart
# (lesson 01); these were learnt. Each token's nearest neighbour, by the cosine of their vectors, is mostly one of its own
# kind: a name among names, a place among places. Nobody told the network what a place is; places are followed alike.

# %%
kinds = {}
for pool, values in STORIES.pools.items():
    for value in values:
        kinds.setdefault(" " + value[""], set()).add(pool)
known = [token for token in kinds if token in tokenizer.vocabulary]     # values of one token
vectors = networks[sizes[-1], 5].C.weight.detach()[:V]                  # (V, 16)
direction = vectors / vectors.norm(dim=1, keepdim=True)
cosine = direction[tokenizer.encode(known)] @ direction.T               # (known, V)
cosine[range(len(known)), tokenizer.encode(known)] = -1                 # oneself does not count
nearest = {token: tokenizer.vocabulary[i] for token, i in zip(known, cosine.argmax(1).tolist())}
alike_share = sum(bool(kinds[a] & kinds.get(b, set())) for a, b in nearest.items()) / len(known)
chance = sum(sum(bool(kinds[a] & kinds[b]) for b in known) - 1 for a in known) / len(known) / (V - 1)
print("    nearest neighbours:", ", ".join(f"{a.strip()} → {nearest[a].strip()}" for a in known[::len(known) // 9]))
shown = {name: [token for token in known if pool in kinds[token]] for name, pool in
         {"names": "NAME", "animals": "ANIMAL", "places": "PLACE", "weather": "WEATHER", "things": "ONE"}.items()}
points = direction[tokenizer.encode([token for here in shown.values() for token in here])]  # (n, 16)
points = points - points.mean(0)
points = points @ torch.linalg.svd(points, full_matrices=False)[2][:2].T      # (n, 16) @ (16, 2): the two directions of most spread
fig, axes = plotting.figure(8, 5.5)
for (name, here), xy, marker in zip(shown.items(), points.split([len(here) for here in shown.values()]), "o^sDv"):
    axes.scatter(*xy.T, marker=marker, s=25, alpha=0.7, label=name)
    for i in range(0, len(here), len(here) // 4):
        axes.annotate(here[i].strip(), xy[i].tolist(), fontsize=8, xytext=(3, 3), textcoords="offset points")
axes.set(xlabel="first principal direction", ylabel="second principal direction", title="Learned vectors, 2 of their 16 dimensions")
axes.legend()
lesson.figure(fig, "vectors")
lesson.claim("tokens of one kind have learned vectors that are near", alike_share > 5 * chance,
             f"nearest of all {V:,} tokens of the same kind: {alike_share:.0%} of {len(known)}; by chance {chance:.0%}")

# %% [markdown]
# ## 11. What both lack: memory
# Token by token, the grammar says what was news and what was settled. A token with a floor of 0 bits is certain to whoever
# has read the story so far: the girl is "she", the kite that was lost is a kite. A model with four tokens of context has
# long forgotten. Add up its excess bits over the two kinds of token:

# %%
settled = floor == 0                                                    # (N − 1,)
largest = sizes[-1]
rivals = {f"{order[largest]}-gram": surprise["count"][largest, order[largest]], "network": surprise["network"][largest, 5]}
for name, spent in rivals.items():
    print(f"    {name}, {largest:,} stories: of its gap {((spent - floor).sum() / characters):.3f}, "
          f"{spent[settled].sum() / characters:.3f} bits per character lie on the {settled.float().mean():.0%} of tokens that were settled")
excess = rivals["network"] - floor
share = (excess[settled].sum() / excess.sum()).item()
lesson.claim("most of what the network lacks is what it forgot", share > 0.5,
             f"{share:.0%} of its gap is on tokens that cost 0 bits to a reader who remembers", full_run=True)

first = len(tokenizer.encode(held_out[0])) + 1              # the first story and its line break
fig, rows_of = plotting.figure(13, 5.2, rows=2, sharey=True)
for axes, part in zip(rows_of, torch.arange(first).tensor_split(2)):
    axes.bar(part, rivals["network"][part], width=0.8, color="#9ecae1", edgecolor="#0072B2", label="network of order 5")
    axes.bar(part, floor[part], width=0.4, color="black", label="exact: what was news")
    names = [tokenizer.vocabulary[i].strip(" ").replace("\n", "(end)") for i in target[1:][part]]
    axes.set_xticks(part, names, rotation=90, fontsize=8)
    axes.set(ylabel="bits", xlim=(part[0] - 1, part[-1] + 1))
    axes.grid(visible=False, axis="x")
rows_of[0].set_title("One held-out story, word by word: light bars without black are what the network forgot")
rows_of[0].set_ylim(top=1.2 * rows_of[0].get_ylim()[1])                 # room for the legend
rows_of[0].legend(loc="upper right", ncols=2)
lesson.figure(fig, "one_story")

# %% [markdown]
# What they write shows the same. Each sample is read by the grammar, which says where it first goes wrong.

# %%
for name, model in (("2-gram", counters[largest, 2]), (f"{order[largest]}-gram", counters[largest, order[largest]]),
                    ("network", networks[largest, 5])):
    line_break, = tokenizer.encode("\n")
    drawn = generate(model, target[None, -5:], 150, generator=torch.Generator().manual_seed(lesson.seed), stop_token=line_break)
    story = tokenizer.decode(drawn[0, 5:]).strip("\n")      # after the last held-out story
    print(f"    {name}: {story}\n      {STORIES.why_not(story)}")

# %% [markdown]
# ## 12. Real prose, and no floor
# This project's own prose is too short for words: most would be new. So its tokens are characters, and the picture changes.
# Most contexts of four characters have been seen, and letters are not "alike" as names are: a network finds little to share,
# and its lead over counting shrinks to almost nothing, for a few hundred times the work. How far is either from the floor?
# Nobody knows the entropy of prose.

# %%
text = prose()
characters_of = CharTokenizer.train(text)
ids = torch.tensor(characters_of.encode(text))
learn, judge = ids.split([len(ids) * 9 // 10, len(ids) - len(ids) * 9 // 10])
judge = torch.cat([learn[-1:], judge])                                  # the first held-out character is predicted too
counted = {k: NGram(k, characters_of.vocab_size).fit(learn) for k in (1, 2, 3, 4, 5, 6, 7)}
prose_loss = {k: surprise_of(model, judge).mean().item() for k, model in counted.items()}
network = train_network(learn, 5, characters_of.vocab_size, lesson.pick(1600, 60), d_embedding=32, d_hidden=lesson.pick(400, 64))
network_loss = surprise_of(network, judge).mean().item()
best_order = min(prose_loss, key=prose_loss.get)
print(f"    {len(learn):,} characters of prose; held-out bits per character: "
      + ", ".join(f"{k}-gram {v:.2f}" for k, v in prose_loss.items()) + f"; network {network_loss:.2f}")
similar = sizes[1]                                                      # so many stories are about as much text
lead = {"words of stories": 1 - loss["network"][similar, 5] / best[similar],
        "characters of prose": 1 - network_loss / prose_loss[best_order]}
never = {"words of stories": unseen[similar, 5], "characters of prose": 1 - counted[5].seen(judge[None, :-1]).float().mean().item()}
lesson.claim("on characters, most of the network's lead is gone", lead["characters of prose"] < lead["words of stories"] / 4,
             "; ".join(f"{name}: loss {lead[name]:.1%} below the best n-gram's, {never[name]:.0%} of contexts of order 5 new" for name in lead),
             full_run=True)
for name, model in (("2-gram", counted[2]), (f"{best_order}-gram", counted[best_order]), ("network", network)):
    drawn = generate(model, torch.tensor([characters_of.encode("\n")]), 160, generator=torch.Generator().manual_seed(lesson.seed))
    print(f"    {name}: {' '.join(characters_of.decode(drawn[0].tolist()).split())}")

lesson.end()
