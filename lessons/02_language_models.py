"""Lesson 02: language models, from counts to a neural network, measured against the exact entropy.

You will see    the chain rule: the probabilities of all sequences add up to 1; counts and Bengio's
                network, both judged on held-out text; and how far each is above the entropy of
                the text, which no model can beat and which is known exactly here.
Source          course B, "Modelo de lenguaje"; course C, "What are Language Models?", "Local
                Normalisation", "Neural probabilistic LMs" and "Evaluation: Perplexity";
                Bengio et al. 2003 (the network); Witten and Bell 1991 (smoothed counts).
Expect          about 35 s on one core; every check passes. The entropy of the held-out stories is
                0.31 bits per character. With 448,000 characters to learn from, the best n-gram
                needs 0.20 bits more, the network 0.12; with 1,300,000, they need 0.14 and 0.10.
Not here        models that remember more than a few tokens (from lesson 03 on); Kneser–Ney counts.
Shapes          B batch, T tokens of a sequence, V vocabulary, N tokens of a text.
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
# ## 1. A text has a probability, and so has its next token
# A **language model** gives a probability to every sequence of tokens: p(w₁, …, w_T). It also
# answers a second question: which token comes next? For this it gives one probability to each
# token of the vocabulary. To train a model on this question is called **next-word prediction**.
# The two questions are equivalent. This section goes from the first to the second, and the next
# section goes back.
#
# The probability of a beginning w₁..wᵢ is the sum over all sequences that begin so:
#
#     p(w₁..wᵢ) = Σ p(w₁..w_T)          over all wᵢ₊₁, …, w_T
#
# The definition of a conditional probability is p(A | B) = p(A, B) / p(B). Set A = wᵢ and
# B = w₁..wᵢ₋₁:
#
#     p(wᵢ | w₁..wᵢ₋₁) = p(w₁..wᵢ) / p(w₁..wᵢ₋₁)
#
# Erratum: course C writes p(wᵢ | w₁..w_n) = p(w₁..wᵢ) / p(w₁..w_n). The numerator is a sum of
# probabilities, and the denominator is one of them. So this ratio is never below 1, and it cannot
# be a probability.
#
# The example has V = 3 tokens and sequences of length T = 4. The model is a table of 3⁴ = 81
# numbers, drawn at random.
#
# Items: B07, C06, C12

# %%
V, T = 3, 4
sequences = list(itertools.product(range(V), repeat=T))
joint = torch.rand(V**T, generator=lesson.generator, dtype=torch.float64)
joint = (joint / joint.sum()).view(V, V, V, V)                          # p(w₁, w₂, w₃, w₄)


def beginning(i):
    """p(w₁..wᵢ): the sum over all later tokens."""
    return joint.sum(dim=tuple(range(i, T))) if i < T else joint


def conditional(i):
    """p(wᵢ | w₁..wᵢ₋₁): the last axis is wᵢ."""
    return beginning(i) / beginning(i - 1).unsqueeze(-1)                # (V, …, V) / (V, …, 1)


# The same from a list of the sequences: which part of those that begin with w₁w₂ has w₃ next?
listed = torch.zeros(V, V, V, dtype=torch.float64)
for w in itertools.product(range(V), repeat=3):
    same_start = [s for s in sequences if s[:2] == w[:2]]
    same_next = [s for s in same_start if s[2] == w[2]]
    listed[w] = sum(joint[s] for s in same_next) / sum(joint[s] for s in same_start)
lesson.check("p(wᵢ | w₁..wᵢ₋₁) = p(w₁..wᵢ) / p(w₁..wᵢ₋₁)", conditional(3), listed, atol=1e-12,
             source="C: What are Language Models?, corrected", items=("C07",))
as_written = beginning(2)[:, :, None, None] / joint     # C's formula, i = 2, n = 4: (V, V, V, V)
print(f"    as course C writes it, p(w₂ | w₁..w₄) would be between {as_written.min():.1f} "
      f"and {as_written.max():.0f}: not a probability")

# %% [markdown]
# ## 2. The chain rule
# Multiply all conditionals of one sequence. Each denominator cancels the numerator before it:
#
#     p(w₁) · p(w₁,w₂)/p(w₁) · p(w₁..w₃)/p(w₁,w₂) · p(w₁..w₄)/p(w₁..w₃) = p(w₁..w₄)
#
# So the conditionals alone define a language model. If the first k tokens are given (a prompt),
# leave out the first k factors. Divide the equation above by p(w₁..w_k):
#
#     p(w_{k+1}..w_T | w₁..w_k) = Π p(wᵢ | w₁..wᵢ₋₁)          the product over i = k+1, …, T
#
# A model of this form, which predicts each token from the tokens before it, is **autoregressive**.
# In course C, k is called p.
#
# Any conditionals will do. If each of them sums to 1 over its token, their product sums to 1 over
# all sequences. To see this, sum over the last token first:
#
#     Σ_w₁ … Σ_w_T p(w₁) … p(w_T|w₁..w_T₋₁) = Σ_w₁ p(w₁) Σ_w₂ p(w₂|w₁) … Σ_w_T p(w_T|w₁..w_T₋₁)
#
# The innermost sum is 1. Then the sum before it is 1, and so on until the first.

# %%
product = torch.stack([math.prod(conditional(i)[s[:i]] for i in range(1, T + 1))
                       for s in sequences])
lesson.check("Π p(wᵢ | w₁..wᵢ₋₁) = p(w₁..w_T)", product, joint.flatten(), atol=1e-12,
             source="C: Local Normalisation", items=("C08",))
after_prompt = torch.stack([math.prod(conditional(i)[s[:i]] for i in range(2, T + 1))
                            for s in sequences])                        # the prompt is w₁: k = 1
listed = [joint[s] / sum(joint[r] for r in sequences if r[0] == s[0]) for s in sequences]
lesson.check("the same after a prompt: p(w₂..w_T | w₁)", after_prompt, torch.stack(listed),
             atol=1e-12, source="C: Local Normalisation", items=("C08",))

rows = {}                                               # a beginning -> V probabilities
for i in range(T):
    for start in itertools.product(range(V), repeat=i):
        rows[start] = torch.randn(V, generator=lesson.generator).double().softmax(0)
total = sum(math.prod(rows[s[:i]][s[i]] for i in range(T)) for s in sequences)
lesson.check("any conditionals that sum to 1: Σ over all sequences = 1", total, 1.0, atol=1e-12,
             source="derived above")

# %% [markdown]
# ## 3. Local normalisation
# Where do the conditionals come from? Take any score s(h, w) > 0 of a token w after a history h,
# and divide it by the sum of the scores of all tokens:
#
#     p(w | h) = s(h, w) / Σ_w′ s(h, w′)
#
# If the scores are counts, this is an n-gram model (section 5). If s = e^y, it is the softmax of
# y. Every network of this course ends in a softmax. The sum has V terms, one for each token.
#
# The alternative is to normalise whole sequences: Π s / Z, where Z is the sum of Π s over all
# sequences. Z has V^T terms. This is a different distribution: a sequence gets more probability
# if the scores after its histories are large. Local normalisation removes this effect.

# %%
y = torch.randn(V + 1, V, generator=lesson.generator).double()  # y[0] at the start; y[w + 1] after
score = y.exp()
local = score / score.sum(1, keepdim=True)
lesson.check("s / Σs with s = e^y is softmax(y)", local, torch.softmax(y, 1), atol=1e-12,
             source="C: Local Normalisation", items=("C09",))


def of_sequence(table, s):
    """The product of the table's entries along the sequence s."""
    return math.prod(table[0 if i == 0 else s[i - 1] + 1, s[i]] for i in range(T))


weights = torch.stack([of_sequence(score, s) for s in sequences])       # (81,) Π s
locally = torch.stack([of_sequence(local, s) for s in sequences])       # (81,)
globally = weights / weights.sum()                                      # (81,) Π s / Z
lesson.check("local normalisation: Σ over all sequences = 1 without Z", locally.sum(), 1.0,
             atol=1e-12, source="C: Local Normalisation", items=("C09",))
print(f"    the two distributions differ by up to {(locally - globally).abs().max():.3f}\n"
      f"    for {T} tokens of a vocabulary of 50,000, Z has {50_000**T:.0e} terms; "
      f"the {T} local sums have {T * 50_000:.0e}")

# %% [markdown]
# ## 4. Perplexity
# How good is a model on a text that it was not trained on? Let p₁, …, p_N be the probabilities
# that it gave to the N tokens of the text. The mean of −ln pᵢ is the **cross-entropy** L, in nats.
# The mean of −log₂ pᵢ is the same in bits, L / ln 2, since log₂ p = ln p / ln 2. The **perplexity**
# is
#
#     PPL = 2^(−(1/N) Σ log₂ pᵢ) = 2^(L / ln 2) = e^L          since 2 = e^(ln 2)
#         = e^(−(1/N) Σ ln pᵢ) = (Π 1/pᵢ)^(1/N)
#
# The last form is the geometric mean of 1/p. A model that gives the same probability 1/V to every
# token has 1/p = V, so its perplexity is V. In this sense a perplexity of 20 is as uncertain as a
# choice among 20 equally likely tokens.
#
# Perplexity judges a language model. When a model is trained for another task, such as
# translation, it is often trained on another objective and judged by a metric of that task
# (course C, the same section; lesson 04 counts the right words).
#
# Items: C16

# %%
logits = torch.randn(1, 9, 7, generator=lesson.generator).double()  # (B, T, V): 9 tokens out of 7
targets = torch.randint(7, (1, 9), generator=lesson.generator)
library = perplexity(cross_entropy(logits, targets).item())
p = []                                                  # of the right token, one for each place
for t in range(9):
    e = [math.exp(a) for a in logits[0, t]]
    p.append(e[targets[0, t]] / sum(e))
lesson.check("PPL = 2^(−mean log₂ p)", library, 2 ** (-sum(math.log2(a) for a in p) / 9),
             atol=1e-9, source="C: Evaluation: Perplexity", items=("C15",))
lesson.check("PPL = e^cross-entropy = (Π 1/p)^(1/N)", library,
             math.prod(1 / a for a in p) ** (1 / 9), atol=1e-9,
             source="C: Evaluation: Perplexity", items=("C15",))
uniform = perplexity(cross_entropy(torch.zeros(1, 9, 7), targets).item())
lesson.check("a uniform model has PPL = V", uniform, 7, atol=1e-5, source="derived above")

# %% [markdown]
# ## 5. Counting
# An **n-gram model** looks at the last n − 1 tokens only: the context h. It counts in a training
# text how often the token w followed h: c(hw) times. (The courses have no n-grams; the sources
# are Witten and Bell 1991, and Chen and Goodman 1998, §2.)
#
# Which p(w|h) makes the training text most probable? The probability of the text is
# Π p(w|h)^c(hw), so we maximise Σ c(hw) ln p(w|h), under the condition Σ_w p(w|h) = 1 for each h.
# With one Lagrange multiplier λ_h for each condition, set the derivative with respect to p(w|h)
# of Σ c(hw) ln p(w|h) − Σ_h λ_h (Σ_w p(w|h) − 1) to 0:
#
#     c(hw) / p(w|h) − λ_h = 0          so          p(w|h) = c(hw) / λ_h
#
# The sum over w is 1, so λ_h = Σ_w c(hw) = c(h), and p(w|h) = c(hw) / c(h): a ratio of counts. The
# logarithm is concave, so this point is the maximum.
#
# This is best for the *training* text. In any other text, a token that never followed h has
# probability 0, and one such token gives the whole text probability 0. So `NGram` mixes in the
# estimate from a shorter context (Witten and Bell 1991):
#
#     P_n(w|h) = ( c(hw) + κ d(h) P_{n−1}(w|h′) ) / ( c(h) + κ d(h) )          P_0(w) = 1/V
#
# Here d(h) is the number of different tokens that followed h, and h′ is h without its oldest
# token. The method has κ = 1. With κ = 0, the formula is the ratio of counts.

# %%
def by_counting(text, V, context, w, κ):
    """P_n(w | context) of a list of tokens: it reads through the text, without tensors."""
    n = len(context)
    starts = [i for i in range(len(text) - n) if text[i:i + n] == context]
    followers = Counter(text[i + n] for i in starts)
    shorter = by_counting(text, V, context[1:], w, κ) if n else 1 / V
    if not followers:
        return shorter
    d = len(followers)
    return (followers[w] + κ * d * shorter) / (followers.total() + κ * d)


words = "the cat sat on the mat and the dog sat on the log and the cat ran".split()
kinds = sorted(set(words))
text = torch.tensor([kinds.index(w) for w in words])
for κ in (0, 1):
    model = NGram(3, len(kinds), κ).fit(text)
    got = model(text[None]).exp()[0, 1:]                # (N − 1, V) after each pair of words
    expected = [[by_counting(words, len(kinds), words[t - 1:t + 1], w, κ) for w in kinds]
                for t in range(1, len(words))]
    lesson.check(f"NGram of order 3, κ = {κ}, equals counts by hand", got, expected, atol=1e-6,
                 source="Witten and Bell 1991; Chen and Goodman 1998, §2")

model = NGram(2, len(kinds), smoothing=0).fit(text)
ratio = model(torch.arange(len(kinds))[None])[0].exp()                  # (V, V) c(hw) / c(h)
θ = (ratio + 1e-30).log().requires_grad_()              # logits: softmax(θ) is the ratio of counts
likelihood = θ.log_softmax(1)[text[:-1], text[1:]].sum()
(slope,) = torch.autograd.grad(likelihood, θ)
lesson.check("at the ratio of counts, ∂ log-likelihood / ∂θ = 0", slope,
             torch.zeros(len(kinds), len(kinds)), atol=1e-5, source="derived above")

every = torch.tensor(list(itertools.product(range(len(kinds)), repeat=4)))              # (V⁴, 4)
trigram = NGram(3, len(kinds)).fit(text)
first_token = trigram.next_token_probabilities(every[:, :0]).log()                      # (V⁴, V)
later_tokens = trigram(every[:, :-1])                                                   # (V⁴, 3, V)
logprob = (first_token.gather(1, every[:, :1])[:, 0]
           + later_tokens.gather(2, every[:, 1:, None]).sum((1, 2)))                    # (V⁴,)
lesson.check(f"NGram: Σ over all {len(every):,} sequences of four words = 1",
             logprob.double().exp().sum(), 1.0, atol=1e-4, source="derived in section 2")

# %% [markdown]
# ## 6. A network in which similar words share what is learned
# A count says nothing about a context that the training text does not have. If "the cat sat on"
# is in the text and "the dog lay on" is not, the first does not help with the second. Course C
# quotes the three ideas of Bengio et al. (2003):
#
# 1. each word has a vector of real numbers, the row C(w) of a matrix C (lesson 01);
# 2. the probability of a sequence is a function of the vectors of its words;
# 3. the vectors and the parameters of this function are learned at the same time.
#
# The simplest such function is a multi-layer perceptron. (Course C adds that it is not the best
# choice for language: it goes on to recurrent networks and transformers, our lessons 03 and 05.)
# The paper's network reads the vectors of the last n − 1 tokens, the newest first (eq. 1):
#
#     x = (C(w_{t−1}), …, C(w_{t−n+1}))    y = b + W x + U tanh(d + H x)    P(w_t | …) = softmax(y)
#
# W, U, H are matrices, and b, d are vectors. If "cat" and "dog" have similar vectors, then x is
# similar, and so is y: what the network learns about one word holds for the other.
#
# Two errata: course C calls this the first neural language model, but the paper itself cites
# earlier ones (§1.2: Miikkulainen and Dyer 1991). And the paper is in volume 3 of the Journal of
# Machine Learning Research, not 19.
#
# `NeuralLM` is this network. The check computes it again, one number at a time.
#
# Items: C11

# %%
small = NeuralLM(order=4, vocab_size=6, d_embedding=3, d_hidden=5,
                 generator=lesson.generator).double()
for bias in (small.U.bias, small.H.bias):               # they start at 0, which would hide errors
    torch.nn.init.normal_(bias, generator=lesson.generator)
tokens = torch.randint(6, (1, 5), generator=lesson.generator)
C, W, U, H = (layer.weight.tolist() for layer in (small.C, small.W, small.U, small.H))
b, d = small.U.bias.tolist(), small.H.bias.tolist()


def dot(row, vector):
    return sum(a * c for a, c in zip(row, vector))


def logits_by_hand(history):
    """y for the token after `history`. C[6], one row more than V, fills the missing places."""
    newest_first = (history[::-1] + [6, 6])[:3]
    x = [C[w][i] for w in newest_first for i in range(3)]
    hidden = [math.tanh(d[j] + dot(H[j], x)) for j in range(5)]
    return [b[w] + dot(W[w], x) + dot(U[w], hidden) for w in range(6)]


lesson.check("y = b + Wx + U·tanh(d + Hx)", small(tokens)[0],
             [logits_by_hand(tokens[0, :t + 1].tolist()) for t in range(5)], atol=1e-12,
             source="Bengio et al. 2003, eq. 1; C: Neural probabilistic LMs", items=("C10",))

# %% [markdown]
# ## 7. The entropy is a lower limit
# Let p be the true distribution of the texts, and q a model. The mean number of bits that the
# model needs for a text has two parts. Add and subtract log₂ p:
#
#     E_p[−log₂ q] = E_p[−log₂ p] + E_p[log₂ p − log₂ q] = H(p) + KL(p‖q)
#
# H is the **entropy** of the texts: it does not depend on the model. KL, the **Kullback–Leibler
# divergence**, is never negative. This follows from ln u ≤ u − 1, with u = q/p:
#
#     −KL = E_p[log₂ (q/p)] ≤ E_p[q/p − 1] / ln 2 = (Σ p·q/p − 1) / ln 2 ≤ (1 − 1) / ln 2 = 0
#
# The last step holds because the sum runs over texts with p > 0, and there q sums to 1 at most. So
# no model can need fewer than H bits on average, and KL is the number of bits that it needs beyond
# H. For natural text, nobody knows H. Our stories are written by a grammar, and its H
# can be calculated exactly. The first example is a grammar with eight texts: four names with the
# same probability, and two endings with probabilities 3/4 and 1/4.

# %%
tiny = Grammar({"text": "{who=NAME} ran until {who.he} <end>.", "end": [("fell", 3), "slept"]},
               {"NAME": alike("Ann Eve Ida", he="she") | alike("Tom", he="he")})
texts = {}                                                              # text -> p(text)
for name, he in (("Ann", "she"), ("Eve", "she"), ("Ida", "she"), ("Tom", "he")):
    texts[f"{name} ran until {he} fell."] = 1 / 4 * 3 / 4
    texts[f"{name} ran until {he} slept."] = 1 / 4 * 1 / 4
entropy = sum(-p * math.log2(p) for p in texts.values())
lesson.check("the grammar's entropy H = −Σ p log₂ p over all its texts", tiny.entropy(), entropy,
             atol=1e-12, source="Shannon 1948, §6")

sample = "".join("\n" + text for text in tiny.sample_many(50, lesson.seed))
tokenizer = WordTokenizer.train(sample + "".join(texts), keep_spaces=True)
sample_ids = tokenizer.encode(sample)
bigram = NGram(2, tokenizer.vocab_size).fit(torch.tensor(sample_ids))


def log2_q(text):
    """log₂ q of a text and its end, after a line break, under the bigram."""
    ids = torch.tensor([tokenizer.encode(f"\n{text}\n")])               # (1, T)
    return bits(bigram(ids[:, :-1]).gather(2, ids[:, 1:, None]).sum().item())


def log2_q_by_counting(text):
    ids = tokenizer.encode(f"\n{text}\n")
    q = [by_counting(sample_ids, tokenizer.vocab_size, [h], w, 1) for h, w in zip(ids, ids[1:])]
    return math.log2(math.prod(q))


mean_bits = sum(p * -log2_q(t) for t, p in texts.items())
KL = sum(p * (math.log2(p) - log2_q_by_counting(t)) for t, p in texts.items())
lesson.check("mean bits of a text = H + KL(p‖q)", mean_bits, entropy + KL, atol=1e-4,
             source="derived above")
print(f"    H = {entropy:.2f} bits per text; a bigram counted on 50 texts needs {mean_bits:.2f}. "
      "It sees one\n    word, so after “until” it does not know the name: “she” or “he”?")

# %% [markdown]
# ## 8. Counts against the network, with the entropy known
# The stories have some 440 characters each. No story is repeated, but they all follow one grammar.
# The tokens are the grammar's own: words and punctuation marks, with the space before them. The
# grammar makes its choices between these tokens, so −log₂ p is known for each token. The
# vocabulary is that of all stories drawn here, so every token has a number. The loss is in bits
# per *character*: then it does not depend on how a text is cut into tokens.
#
# The mean of −log₂ p over the held-out text is called the **floor** below: the loss of the true
# distribution. The **gap** of a model is its loss minus the floor.

# %%
sizes = lesson.pick(full=[100, 300, 1000, 3000], quick=[60, 150])       # stories to learn from
middle = lesson.pick(1000, 150)                         # with so many stories, all orders are tried
largest = sizes[-1]
ORDERS = (1, 2, 3, 4, 5)
stories = STORIES.sample_many(100 + largest, lesson.seed)
held_out, corpus = stories[:100], stories[100:]


def text_of(stories):
    """A line break stands before each story and after the last."""
    return "".join("\n" + story for story in stories) + "\n"


tokenizer = WordTokenizer.train(text_of(stories), keep_spaces=True)
V = tokenizer.vocab_size
target = torch.tensor(tokenizer.encode(text_of(held_out)))              # (N,)
characters = len(text_of(held_out)) - 1                 # the first line break is not predicted
floor = torch.tensor([b for story in held_out for _, b in STORIES.surprisals(story)])   # (N − 1,)
training = {n: torch.tensor(tokenizer.encode(text_of(corpus[:n]))) for n in sizes}
length = {n: sum(len(story) + 1 for story in corpus[:n]) for n in sizes}    # in characters


@torch.no_grad()
def bits_of(model, text):
    """−log₂ q of each token of a text (N,) after the first: (N − 1,)."""
    logprobs = model(text[None, :-1])[0].log_softmax(-1)                # (N − 1, V)
    return -logprobs.gather(1, text[1:, None])[:, 0] / math.log(2)


def train_network(text, order, vocab_size, steps, d_embedding=16, d_hidden=64):
    """Bengio's network after `steps` batches of 8 windows of 64 predictions."""
    generator = torch.Generator().manual_seed(lesson.seed)
    network = NeuralLM(order, vocab_size, d_embedding, d_hidden, generator)
    settings = TrainingConfig(max_steps=steps, learning_rate=1e-2, evaluate_every=steps,
                              seed=lesson.seed)
    train(network, make_random_windows(text, 8, 65), next_token_loss, settings)
    return network


counters = {(n, k): NGram(k, V).fit(training[n]) for n in sizes for k in ORDERS}
networks = {}
for n in sizes:
    for k in lesson.pick((2, 3, 5, 8), (5,)) if n == middle else (5,):
        networks[n, k] = train_network(training[n], k, V, steps=int(16 * n**0.5))
token_bits = {"count": {key: bits_of(model, target) for key, model in counters.items()},
              "network": {key: bits_of(model, target) for key, model in networks.items()}}
loss = {kind: {key: (b.sum() / characters).item() for key, b in table.items()}
        for kind, table in token_bits.items()}
lowest = floor.sum().item() / characters
mean_entropy = STORIES.entropy() / (STORIES.expected_length() + 1)

print(f"    {V:,} different tokens; the held-out text has {characters:,} characters\n"
      f"    its −log₂ p under the grammar is {lowest:.3f} bits per character; "
      f"the mean over all stories, H, is {mean_entropy:.3f}\n"
      "    gap to the floor, in bits per character:\n    stories  characters "
      + "".join(f"  {k}-gram" for k in ORDERS) + "  network (its order)")
for n in sizes:
    gaps = "".join(f"{loss['count'][n, k] - lowest:8.3f}" for k in ORDERS)
    network_gaps = ", ".join(f"{value - lowest:.3f} ({k})"
                             for (m, k), value in loss["network"].items() if m == n)
    print(f"    {n:7,} {length[n]:11,} {gaps}  {network_gaps}")

# %%
every_loss = [*loss["count"].values(), *loss["network"].values()]
lesson.claim("no model gets below the floor", min(every_loss) > lowest,
             f"the best of {len(every_loss)} models needs {min(every_loss):.3f} bits per "
             f"character, the floor is {lowest:.3f}")
best = {n: min(loss["count"][n, k] for k in ORDERS) for n in sizes}
gaps = "; ".join(f"{n:,} stories: {loss['network'][n, 5] - lowest:.2f} against "
                 f"{best[n] - lowest:.2f}" for n in sizes)
lesson.claim("with every amount of text tried, the network's gap is smaller",
             all(loss["network"][n, 5] < best[n] for n in sizes),
             f"gap of the network and of the best n-gram. {gaps}", items=("C10",))

# %% [markdown]
# ## 9. Why the n-gram loses: contexts that were never counted
# A longer context tells more about the next token, if it was counted. But there are V^(n−1)
# contexts of n − 1 tokens, far more than any text has. So the share of held-out contexts that were
# never counted grows with n. After such a context, an n-gram model uses a shorter one. For each
# amount of text there is a best order. Without smoothing (κ = 0), every token that never followed
# its context has probability 0.

# %%
held_out_tokens = target[None, :-1]                                     # (1, N − 1)
unseen = {key: 1 - model.seen(held_out_tokens).float().mean().item()
          for key, model in counters.items()}
impossible = {}                                                         # order -> share of tokens
for k in ORDERS:
    unsmoothed = NGram(k, V, smoothing=0).fit(training[middle])
    impossible[k] = bits_of(unsmoothed, target).isinf().float().mean().item()
print(f"    {f'after {middle:,} stories, order':<36}" + "".join(f"{k:8}" for k in ORDERS))
for name, shares in (("held-out contexts never counted", [unseen[middle, k] for k in ORDERS]),
                     ("tokens with probability 0 if κ = 0", impossible.values())):
    print(f"    {name:<36}" + "".join(f"{x:8.1%}" for x in shares))
order = {n: min(ORDERS, key=lambda k: loss["count"][n, k]) for n in sizes}
lesson.claim("the longest context is not the best one for counts",
             all(order[n] < 5 for n in sizes),
             f"best order: {'; '.join(f'{order[n]} with {n:,} stories' for n in sizes)}. With "
             f"{middle:,}, {unseen[middle, 5]:.0%} of the contexts of order 5 were never counted")

# %%
fig, (left, centre, right) = plotting.figure(13, 4.2, columns=3)
left.plot(ORDERS[1:], [loss["count"][middle, k] for k in ORDERS[1:]], marker="o", label="n-gram")
network_orders = [k for m, k in networks if m == middle]
left.plot(network_orders, [loss["network"][middle, k] for k in network_orders], marker="s",
          label="network")
left.set(xlabel="order n (n − 1 tokens of context)", ylabel="held-out bits per character",
         title=f"{length[middle]:,} characters to learn from")
for n in sizes:
    centre.plot(ORDERS, [100 * unseen[n, k] for k in ORDERS], marker="o",
                label=f"{length[n]:,} characters")
centre.set(xlabel="order n", ylabel="held-out contexts never counted (%)",
           title="Longer contexts are rarer")
left.set_xticks(sorted({*ORDERS[1:], *network_orders}))
for k in ORDERS[1:]:
    right.plot(length.values(), [loss["count"][n, k] for n in sizes], marker="o",
               label=f"{k}-gram")
right.plot(length.values(), [loss["network"][n, 5] for n in sizes], marker="s", color="black",
           linestyle="-", label="network, order 5")
right.set(xlabel="characters to learn from", ylabel="held-out bits per character", xscale="log",
          title="More text helps both")
for axes in (left, right):
    axes.axhline(lowest, color="grey", linestyle=":", label="floor: exact −log₂ p")
    axes.set_ylim(bottom=0)
for axes in (left, centre, right):
    axes.legend()
lesson.figure(fig, "floor")

# %% [markdown]
# ## 10. Why the network wins: similar vectors
# The network has not seen these contexts either. But it has seen contexts of similar tokens.
# One-hot vectors all have the same distance from each other (lesson 01). The network's vectors are
# learned. For each token, take the token whose vector has the largest cosine with it. Most often
# it is of the same kind: names are near names, and places near places. The training text has no
# labels for names or places, but similar tokens come before similar tokens.

# %%
kinds = {}                                              # token -> the grammar's lists that have it
for pool, values in STORIES.pools.items():
    for value in values:
        kinds.setdefault(" " + value[""], set()).add(pool)
known = [token for token in kinds if token in tokenizer.vocabulary]     # values of one token
vectors = networks[largest, 5].C.weight.detach()[:V]                    # (V, 16)
direction = vectors / vectors.norm(dim=1, keepdim=True)
cosine = direction[tokenizer.encode(known)] @ direction.T               # (known, V)
cosine[range(len(known)), tokenizer.encode(known)] = -1                 # not the token itself
nearest = {token: tokenizer.vocabulary[i] for token, i in zip(known, cosine.argmax(1).tolist())}
same_kind = sum(bool(kinds[a] & kinds.get(b, set())) for a, b in nearest.items()) / len(known)
pairs = sum(bool(kinds[a] & kinds[b]) for a in known for b in known) - len(known)
chance = pairs / len(known) / (V - 1)
print("    nearest tokens:", ", ".join(f"{a.strip()} → {nearest[a].strip()}"
                                       for a in known[::len(known) // 7]))
lesson.claim("tokens of one kind have similar learned vectors", same_kind > 5 * chance,
             f"for {same_kind:.0%} of {len(known)} tokens, the nearest of all {V:,} tokens is of "
             f"the same kind; by chance {chance:.0%}")

POOLS = {"names": "NAME", "animals": "ANIMAL", "places": "PLACE", "weather": "WEATHER",
         "things": "ONE"}
shown = {name: [token for token in known if pool in kinds[token]] for name, pool in POOLS.items()}
points = direction[tokenizer.encode([token for group in shown.values() for token in group])]
points = points - points.mean(0)                                        # (n, 16)
principal = torch.linalg.svd(points, full_matrices=False)[2][:2]        # (2, 16) largest variance
points = (points @ principal.T).split([len(group) for group in shown.values()])     # (n, 2) in all
fig, axes = plotting.figure(8, 5.5)
for (name, group), xy, marker in zip(shown.items(), points, "o^sDv"):
    axes.scatter(*xy.T, marker=marker, s=25, alpha=0.7, label=name)
    for i in range(0, len(group), len(group) // 4):
        axes.annotate(group[i].strip(), xy[i].tolist(), fontsize=8, xytext=(3, 3),
                      textcoords="offset points")
axes.set(xlabel="first principal direction", ylabel="second principal direction",
         title="Learned vectors, 2 of their 16 dimensions")
axes.legend()
lesson.figure(fig, "vectors")

# %% [markdown]
# ## 11. What both lack: memory
# The grammar gives −log₂ p for each token. Some tokens have 0 bits: they follow with certainty
# from the story so far. For example, after "Ann" the pronoun is "she", and a lost kite is called
# "kite" again. A model with four tokens of context no longer sees the name. How many bits does
# each model spend on the tokens of 0 bits?

# %%
certain = floor == 0                                                    # (N − 1,)
rivals = {f"{order[largest]}-gram": token_bits["count"][largest, order[largest]],
          "network": token_bits["network"][largest, 5]}
print(f"    {certain.float().mean():.0%} of the held-out tokens have 0 bits; "
      f"after {largest:,} stories, in bits per character:")
for name, spent in rivals.items():
    print(f"    {name}: gap {(spent - floor).sum() / characters:.3f}, "
          f"of which {spent[certain].sum() / characters:.3f} on tokens of 0 bits")
excess = rivals["network"] - floor
share = (excess[certain].sum() / excess.sum()).item()
lesson.claim("most of the network's gap is on tokens that follow from the story so far",
             share > 0.5, f"{share:.0%} of its gap is on tokens of 0 bits", full_run=True)

first = len(tokenizer.encode(held_out[0])) + 1          # the first story and its line break
fig, panels = plotting.figure(13, 5.2, rows=2, sharey=True)
for axes, part in zip(panels, torch.arange(first).tensor_split(2)):
    axes.bar(part, rivals["network"][part], width=0.8, color="#9ecae1", edgecolor="#0072B2",
             label="network of order 5")
    axes.bar(part, floor[part], width=0.4, color="black", label="exact −log₂ p")
    names = [tokenizer.vocabulary[i].strip(" ").replace("\n", "(end)") for i in target[1:][part]]
    axes.set_xticks(part, names, rotation=90, fontsize=8)
    axes.set(ylabel="bits", xlim=(part[0] - 1, part[-1] + 1))
    axes.grid(visible=False, axis="x")
panels[0].set_title("Bits of each token of one held-out story. A light bar without a black one: "
                    "the story so far decides this token")
panels[0].set_ylim(top=1.2 * panels[0].get_ylim()[1])   # room for the legend
panels[0].legend(loc="upper right", ncols=2)
lesson.figure(fig, "one_story")

# %% [markdown]
# The stories that the models write show the same. The grammar reads each story, and says where the
# first error is.

# %%
(line_break,) = tokenizer.encode("\n")
for name, model in (("2-gram", counters[largest, 2]),
                    (f"{order[largest]}-gram", counters[largest, order[largest]]),
                    ("network", networks[largest, 5])):
    generator = torch.Generator().manual_seed(lesson.seed)
    drawn = generate(model, target[None, -5:], 150, generator=generator, stop_token=line_break)
    story = tokenizer.decode(drawn[0, 5:]).strip("\n")  # what comes after the last held-out story
    print(f"    {name}: {story}\n      {STORIES.why_not(story)}")

# %% [markdown]
# ## 12. Real prose, with an unknown entropy
# This project's own prose is too short to count words: most held-out words would be new. So the
# tokens here are characters, and the result is different. Most contexts of four characters were
# counted. And characters have less in common with each other than names do, so the network can
# share less of what it learns. Its advantage almost disappears, although it takes a few hundred
# times as long. How far are both from the lowest possible loss? Nobody knows the entropy of prose.

# %%
text = prose()
characters_of = CharTokenizer.train(text)
ids = torch.tensor(characters_of.encode(text))
cut = len(ids) * 9 // 10
learn, judge = ids[:cut], ids[cut - 1:]                 # the first held-out character is predicted
counted = {k: NGram(k, characters_of.vocab_size).fit(learn) for k in range(1, 8)}
prose_loss = {k: bits_of(model, judge).mean().item() for k, model in counted.items()}
network = train_network(learn, 5, characters_of.vocab_size, lesson.pick(1600, 60),
                        d_embedding=32, d_hidden=lesson.pick(400, 64))
network_loss = bits_of(network, judge).mean().item()
best_order = min(prose_loss, key=prose_loss.get)
print(f"    {len(learn):,} characters of prose; held-out bits per character:\n    "
      + ", ".join(f"{k}-gram {v:.2f}" for k, v in prose_loss.items())
      + f"; network {network_loss:.2f}")
similar = sizes[1]                                      # so many stories are about as much text
lead = {"words of stories": 1 - loss["network"][similar, 5] / best[similar],
        "characters of prose": 1 - network_loss / prose_loss[best_order]}
never = {"words of stories": unseen[similar, 5],
         "characters of prose": 1 - counted[5].seen(judge[None, :-1]).float().mean().item()}
lesson.claim("on characters, most of the network's advantage is gone",
             lead["characters of prose"] < lead["words of stories"] / 4,
             "; ".join(f"{name}: loss {lead[name]:.1%} below the best n-gram's, {never[name]:.0%} "
                       "of the contexts of order 5 never counted" for name in lead),
             full_run=True)
for name, model in (("2-gram", counted[2]), (f"{best_order}-gram", counted[best_order]),
                    ("network", network)):
    drawn = generate(model, torch.tensor([characters_of.encode("\n")]), 160,
                     generator=torch.Generator().manual_seed(lesson.seed))
    print(f"    {name}: {' '.join(characters_of.decode(drawn[0].tolist()).split())}")

lesson.end()
