"""Lesson 06: GPT, from the sum of logarithms to a model near the entropy of its text.

You will see    L₁(U) = Σᵢ log P(uᵢ | u_{i−k} … u_{i−1}) computed by a network that is written out
                by hand; decoding rules and beam search, compared with lists of all sentences;
                training that comes near the exact entropy of the text.
Source          course A, "Transformer decoder" and "GPT 1"; course B, "Pre-entrenamiento" and
                "Generando de forma iterativa el siguiente token"; course C, "Local Normalisation";
                course D, "GPT", "CAUSAL LM (CLM)" and "LOSS FUNCTION of GPT"; Radford et al. 2018,
                eqs. 1 and 2; Radford et al. 2019, §2.3.
Expect          about 3 min on two cores (6 min on one, 17 s with --quick); every check passes; on
                seed 0 the loss ends within 0.01 bits per character of the exact entropy, 0.31, and
                at least 90 % of the stories sampled with top-p 0.8 are grammatical. On some seeds
                one link of the grammar is not learned in time (part 6): the claim of 90 % fails.
Not here        how a GPT is adapted to tasks, instructions and preferences (lessons 12 to 19).

Shapes: B batch, T time, D width of one head, C = d_model, V vocabulary.
"""
# %%
import itertools
import math
import textwrap

import torch

from course import Lesson
from minigpt import plotting
from minigpt.generation import beam_search, generate, sampling_logprobs, stream
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.text.tokenizers import BPETokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, causal_loss, cross_entropy, next_token_loss
from minigpt.worlds.stories import STORIES

lesson = Lesson("06_gpt")

# %% [markdown]
# ## 1. What is maximised
# A language model reads a text and gives a probability to each token of its vocabulary: the
# probability that this token is the next one. Course D names three families of large models, each
# built from parts of the Transformer of 2017: encoder only (BERT, lesson 07), decoder only (GPT)
# and encoder–decoder (T5, lesson 08). GPT keeps the decoder and drops the encoder, and with it the
# attention to the encoder. Its attention is causal: position t sees the tokens 0 to t. (D expands
# the name as "Generative Pretraining Transformer"; it is Generative Pre-trained Transformer.)
#
# GPT is trained to predict the next word. Lesson 02 wrote the probability of a text as a product of
# conditionals, P(u₁ … u_T) = Πᵢ P(uᵢ | u₁ … u_{i−1}). The logarithm turns the product into a sum. A
# model that sees only k tokens shortens the condition (Radford et al. 2018, eq. 1):
#
#     L₁(U) = Σᵢ log P(uᵢ | u_{i−k} … u_{i−1}; Θ)
#
# Training maximises L₁; in practice it minimises the loss −L₁ / T, the mean over the tokens. Course
# D writes the same sum as the loss of a corpus, Σ −log P[w₁ … w_n]. There the word "cross-entropy"
# is struck out in the document, but it is right: Σ −log P is a cross-entropy.
#
# A causal transformer computes all T terms in one pass. The output at position t depends on tokens
# 0 to t alone, so it can be compared with token t + 1, which it has not seen. We check this with a
# model that is small enough to list everything: three tokens, sentences of four tokens. The first
# token is given, so P(sentence) below means the probability of the other three. The weights are
# drawn large, so that the probabilities are far from uniform.
#
# Items: A01, B07, C12, C34, D01, D13

# %%
tiny = GPT(GPTConfig(vocab_size=3, context_length=4, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in tiny.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
sentences = torch.tensor(list(itertools.product(range(3), repeat=4)))   # (81, 4) all sentences


@torch.no_grad()
def next_probability(context, token):
    """P(token | context) of `tiny`, for one context (T,); the softmax is written with math.exp."""
    scores = tiny(context[None])[0, -1].tolist()                        # (V,)
    return math.exp(scores[token]) / sum(math.exp(score) for score in scores)


def by_prefixes(text, k):
    """The list of P(uᵢ | u_{i−k} … u_{i−1}), i = 1, 2, …: one call of the model for each."""
    return [next_probability(text[max(0, i - k):i], text[i].item()) for i in range(1, len(text))]


corpus = sentences[[50, 7, 33]]                                         # (3, 4)
with torch.no_grad():
    one_pass = causal_loss(tiny(corpus[:1]), corpus[:1]).item()         # all positions at once
    corpus_loss = causal_loss(tiny(corpus), corpus).item()
    logprobs = tiny(sentences).log_softmax(-1)                          # (81, 4, 3)
lesson.check("L₁ = Σ log P(uᵢ | u_<i): one pass = prefix by prefix", -3 * one_pass,
             sum(math.log(p) for p in by_prefixes(corpus[0], k=4)), atol=1e-12,
             source="A: GPT 1; Radford et al. 2018, eq. 1", items=("A10",))
of_sentences = [math.prod(by_prefixes(sentence, k=4)) for sentence in corpus]
lesson.check("the loss of a corpus = Σ −log P(sentence)", 9 * corpus_loss,
             -sum(math.log(p) for p in of_sentences), atol=1e-12,
             source="D: LOSS FUNCTION of GPT", items=("D16",))

# %% [markdown]
# Now a text longer than the context: the three sentences in one row, 12 tokens, with k = 3. Eq. 1
# gives every token its own window of the k tokens before it. So the model reads one window for each
# token. Training cannot afford this. It cuts the text into blocks instead and predicts all tokens
# of a block in one pass; then the conditions have different lengths. In blocks of 4, the three
# predicted tokens see 1, 2 and 3 tokens.

# %%
text, k = corpus.flatten(), 3                                           # (12,)
windows = text.unfold(0, k + 1, 1)                                      # (9, 4) k tokens, and uᵢ
with torch.no_grad():
    full = tiny(windows[:, :-1])[:, -1].log_softmax(-1)                 # (9, 3): i = 3 … 11
    first_terms = tiny(text[None, :k]).log_softmax(-1)[0, :-1]          # (2, 3): i = 1, 2
L1 = (full.gather(-1, windows[:, -1:]).sum() + first_terms.gather(-1, text[1:k, None]).sum()).item()
lesson.check("L₁ of 12 tokens with k = 3: windows = token by token", L1,
             sum(math.log(p) for p in by_prefixes(text, k)), atol=1e-12,
             source="Radford et al. 2018, eq. 1")
print(f"      loss per predicted token: {-L1 / 11:.3f} with windows, {corpus_loss:.3f} in blocks")

# %% [markdown]
# The chain rule works in both directions. From conditionals to the joint: multiply, as course C
# does ("Local Normalisation"). Each conditional sums to 1, so the joint P(u₂u₃u₄ | u₁) sums to 1
# too. From the joint to conditionals: divide,
#
#     P(u₃ | u₁u₂) = P(u₁u₂u₃) / P(u₁u₂)             both are sums of the joint over what follows
#
# (Course C prints p(wᵢ | w₁ … w_n) = p(w₁ … wᵢ) / p(w₁ … w_n). The condition and the denominator
# must end with the word before wᵢ.) In the last check below both sides come from the model, so it
# is a check of consistency: the answer for a short prefix agrees with the probabilities of the full
# sentences.

# %%
joint = logprobs[:, :-1].gather(-1, sentences[:, 1:, None])[..., 0].sum(1).exp()    # (81,)
listed = [math.prod(by_prefixes(sentence, k=4)) for sentence in sentences]
lesson.check("P(u₂u₃u₄ | u₁) = product of conditionals, 81 sentences", joint, listed, atol=1e-12,
             source="C: Local Normalisation", items=("C08",))
lesson.check("Σ P(sentence) = 1 for each first token", joint.view(3, 27).sum(1), [1.0, 1.0, 1.0],
             atol=1e-12, source="C: Local Normalisation")
tree = joint.view(3, 3, 3, 3)                                           # one axis per token
ratio = tree[1, 2].sum(-1) / tree[1, 2].sum()                           # P(u₃ | u₁ = 1, u₂ = 2)
lesson.check("consistency: conditional = ratio of joints",
             [next_probability(torch.tensor([1, 2]), token) for token in range(3)], ratio,
             atol=1e-12, source="C: What are Language Models?, corrected")

# %% [markdown]
# ## 2. The network, by hand
#     h₀ = U W_e + W_p        h_l = block(h_{l−1})        P(u) = softmax(h_n W_eᵀ)
#
# (Radford et al. 2018, eq. 2; courses A and D have the last part.) U are the one-hot rows of the
# tokens, W_e (V, C) is the matrix of embeddings, W_p holds a vector for each position, and n is the
# number of blocks. A block of GPT-2 has two lines:
#
#     x ← x + attention(norm(x))             norm(x) = (x − mean) / √(variance + ε) · gain + bias
#     x ← x + mlp(norm(x))                   mlp(x) = GELU(x W_1 + b_1) W_2 + b_2
#
# The sum x + … is called a residual connection. GELU(x) = x·Φ(x), with Φ the distribution function
# of N(0, 1); GPT-2 uses an approximation with tanh. In GPT-1 the norm comes after the sum; GPT-2
# moved it in front, and later models kept this order.
#
# (Course D writes softmax(β·φᵢ) and says B ∈ ℝ^{d×V}. β and B are one matrix, and the sizes need
# its transpose: softmax(Bᵀφᵢ). With φᵢ as a row, and B = W_eᵀ, this is h_n W_eᵀ.)
#
# Below is the network with bare matrices, one head and one query at a time, with the weights of
# `tiny`. No mask is needed: query t is given the keys 0 to t and no others.

# %%
def causal_average(q, k, v):
    """(T, D) each -> (T, D): row t is the average of v₀ … v_t with attention's weights."""
    rows = []
    for t in range(len(q)):
        weights = (q[t] @ k[:t + 1].T / math.sqrt(q.size(-1))).softmax(-1)      # (t + 1,)
        rows.append(weights @ v[:t + 1])
    return torch.stack(rows)


def layer_norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gpt_by_hand(model, tokens, read, score):
    """(T,) tokens -> (T, V) logits. `read` and `score` (V, C) are the two uses of W_e."""
    D = model.config.d_model // model.config.n_heads
    x = read[tokens] + model.position_embedding.weight[:len(tokens)]    # (T, C)  U W_e + W_p
    for block in model.blocks:
        a, mlp, heads = block.attention, block.feed_forward, []
        n = layer_norm(x, block.norm1)                                  # (T, C)
        for h in range(model.config.n_heads):
            part = slice(h * D, (h + 1) * D)                            # the rows of head h
            q, k, v = (n @ f.weight[part].T + f.bias[part] for f in (a.query, a.key, a.value))
            heads.append(causal_average(q, k, v))                       # (T, D)
        x = x + torch.cat(heads, -1) @ a.out.weight.T + a.out.bias      # (T, C)
        inner = layer_norm(x, block.norm2) @ mlp.inner.weight.T + mlp.inner.bias    # (T, 4C)
        x = x + gelu(inner) @ mlp.out.weight.T + mlp.out.bias           # (T, C)
    return layer_norm(x, model.final_norm) @ score.T                    # (T, V)  h_n W_eᵀ


W_e = tiny.token_embedding.weight
lesson.check("GPT = eq. 2 with bare matrices", tiny(sentences[50:51])[0],
             gpt_by_hand(tiny, sentences[50], W_e, W_e), atol=1e-12,
             source="A: Transformer decoder; D: CAUSAL LM; Radford et al. 2018, eq. 2",
             items=("A07", "D15"))

# %% [markdown]
# W_e has two uses: it gives each token its vector (reading), and it gives each next token its score
# (scoring). The matrix is "tied". So the loss is a function f(W, W) of the same matrix twice, and
# its derivative is the sum of the two partial derivatives. To check this, we give each use its own
# copy of the matrix, take both gradients and add them. The sum is compared with finite differences
# on the tied matrix.

# %%
read, score = (W_e.detach().clone().requires_grad_() for _ in range(2))  # one matrix for each use
untied_logits = gpt_by_hand(tiny, sentences[50], read, score)
untied_loss = cross_entropy(untied_logits[:-1], sentences[50, 1:])
by_use = torch.autograd.grad(untied_loss, (read, score))

measured, step = torch.zeros_like(W_e), 1e-6
with torch.no_grad():
    for i, j in itertools.product(range(3), range(8)):                  # each of the 24 numbers
        ends = []
        for change in (step, -step):
            W_e[i, j] += change
            ends.append(causal_loss(tiny(corpus[:1]), corpus[:1]))
            W_e[i, j] -= change
        measured[i, j] = (ends[0] - ends[1]) / (2 * step)
lesson.check("tied gradient = gradient of reading + gradient of scoring", by_use[0] + by_use[1],
             measured, atol=1e-8, source="the chain rule, on P(u) = softmax(h_n W_eᵀ)")
print(f"      norms of the two gradients: reading {by_use[0].norm():.2f}, "
      f"scoring {by_use[1].norm():.2f}; both count")

# %% [markdown]
# The published GPTs are this network with larger sizes. Their parameters, without the final norm:
#
#     W_e and W_p                (V + T)·C                       T is the length of the context
#     attention, per layer       4C² + 4C                        W_Q, W_K, W_V, W_O and their biases
#     MLP, per layer             8C² + 5C                        C → 4C → C: 2·4C² + 4C + C
#     two norms, per layer       4C                              a gain and a bias each
#
# so (V + T)·C + n·(12C² + 13C). GPT-2 and GPT-3 have a final norm with 2C more; GPT-1 has none.
# PyTorch counts without using memory, on its "meta" device. GPT-3 is counted by the formula alone.
#
# The usual totals are 117M, 1.5B and 175B, in course D too. The 117M is in Radford et al. 2019,
# table 2. That table says 117M, 345M, 762M and 1,542M for the four sizes of GPT-2, and course C
# repeats it; the counts are wrong, as the authors said later, and the right ones are below. Course
# D gives 12 heads to all three models. This is right for GPT-1 and for the smallest GPT-2; the
# GPT-2 of 1.5 billion parameters has 25 heads per layer, and GPT-3 has 96 (Brown et al. 2020, table
# 2.1). D's 570 GB for GPT-3's corpus are the filtered Common Crawl alone. Course C dates GPT-2 to
# 2018; it appeared in February 2019.

# %%
def by_formula(vocabulary, context, layers, C, final_norm=True):
    return (vocabulary + context) * C + layers * (12 * C**2 + 13 * C) + 2 * C * final_norm


def counted(config):
    with torch.device("meta"):
        return count_parameters(GPT(config))


layers_and_width = {"small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "xl": (48, 1600)}
for size, (layers, width) in layers_and_width.items():
    total = counted(GPTConfig.gpt2(size))
    lesson.check(f"GPT-2 {size}: {layers} layers, C = {width}: {total:,} parameters", total,
                 by_formula(50_257, 1024, layers, width), atol=0,
                 source="Radford et al. 2019, table 2 (layers, C); heads: the released code")
lesson.check("GPT-1: 12 layers, C = 768: 116,534,784 parameters", counted(GPTConfig.gpt1()),
             by_formula(40_478, 512, 12, 768, final_norm=False), atol=0,
             source="Radford et al. 2018, §4.1 (layers, C); vocabulary: the released code")
millions = [counted(GPTConfig.gpt1()) / 1e6, counted(GPTConfig.gpt2("xl")) / 1e6,
            by_formula(50_257, 2048, 96, 12_288) / 1e6]
lesson.check("GPT-1, GPT-2, GPT-3: 117M, 1.5B, 175B (rounded; GPT-2: 1.56B)",
             [round(millions[0]), round(millions[1], -1), round(millions[2], -3)],
             [117, 1560, 175_000], atol=0, source="D: GPT; Brown et al. 2020, table 2.1",
             items=("D14",))

# %% [markdown]
# ### The form that part 5 trains
# `GPTConfig.modern` changes five parts. Each change has the same place in the block as the part
# that it replaces. Lesson 23 measures what each of them gives.
#
#     part            GPT-2                         modern
#     norm            (x − mean)/std·gain + bias    RMS norm: x/rms(x)·gain,  rms(x) = √(mean x²)
#     positions       + W_p, below the blocks       rotary: q and k are turned (lesson 05, part 8)
#     scores          q·k/√D                        QK-norm: RMS norm of q and of k comes first
#     activation      GELU(x)                       ReLU²: max(0, x)²
#     biases          in every layer                none
#
# - RMS norm (Zhang and Sennrich 2019) does not subtract the mean. The result has root mean square
#   1: mean (xᵢ/rms)² = (mean xᵢ²)/rms² = 1. So a vector of D numbers has then the length √D.
# - QK-norm (Henry et al. 2020): q and k have the length √D, before their gains. By Cauchy–Schwarz
#   |q·k| ≤ √D·√D = D, so each score |q·k|/√D is at most √D, whatever the weights are.
# - Rotary positions (Su et al. 2021): pair i of the dimensions is one complex number, and position
#   t multiplies it by e^{iωᵢt}, with ωᵢ = 10000^(−2i/D). Lengths do not change, and the score of
#   positions t and s depends on t − s. The library pairs dimension i with i + D/2.
# - ReLU² (So et al. 2021) has the derivative 2·max(0, x), which is continuous at 0.

# %%
def rms_norm(x, gain):
    epsilon = torch.finfo(x.dtype).eps                                  # avoids 0/0
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gain


def turned(x):
    """(T, D): row t is turned by the angles ωᵢt, as D/2 complex numbers."""
    T, half = x.size(0), x.size(1) // 2
    omega = torch.tensor([10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)   # (D/2,)
    angle = torch.arange(T)[:, None] * omega                            # (T, D/2)
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)                              # (T, D)


def modern_by_hand(model, tokens):
    """(T,) tokens -> (T, V) logits of a GPT with `GPTConfig.modern`."""
    W_e, D = model.token_embedding.weight, model.config.d_model // model.config.n_heads
    x = W_e[tokens]                                                     # (T, C)
    for block in model.blocks:
        a, mlp, heads = block.attention, block.feed_forward, []
        n = rms_norm(x, block.norm1.weight)                             # (T, C)
        for h in range(model.config.n_heads):
            part = slice(h * D, (h + 1) * D)
            q, k, v = (n @ f.weight[part].T for f in (a.query, a.key, a.value))     # (T, D) each
            q, k = rms_norm(q, a.query_norm.weight), rms_norm(k, a.key_norm.weight)
            heads.append(causal_average(turned(q), turned(k), v))       # (T, D)
        x = x + torch.cat(heads, -1) @ a.out.weight.T                   # (T, C)
        inner = rms_norm(x, block.norm2.weight) @ mlp.inner.weight.T    # (T, 4C)
        x = x + inner.clamp(min=0).square() @ mlp.out.weight.T          # (T, C)
    return rms_norm(x, model.final_norm.weight) @ W_e.T                 # (T, V)


text = torch.randint(50, (2, 40), generator=lesson.generator)
torch.set_default_dtype(torch.float64)                                  # for the rotary table too
writer = GPT(GPTConfig.modern(50, context_length=40, n_layers=3, n_heads=4, d_model=32))
torch.set_default_dtype(torch.float32)
large = torch.Generator().manual_seed(lesson.seed)
for parameter in writer.parameters():
    torch.nn.init.normal_(parameter, std=0.4, generator=large)
with torch.no_grad():
    written_out = torch.stack([modern_by_hand(writer, row) for row in text])    # (2, 40, 50)
    lesson.check("modern GPT = its parts with bare matrices", writer(text), written_out,
                 atol=1e-10, source="the papers above")

# %% [markdown]
# ## 3. One token at a time
# To generate: predict a token, append it, predict again. The earlier tokens stay the same, and so
# do their keys and values in every layer (no position sees a later one). So compute keys and values
# once and keep them in a cache. A step then computes the one new query and compares it with all the
# keys (course B shows this step, q_t Kᵀ; it does not name a cache). The result must be the same
# logits as from the full text, computed above without a cache.

# %%
with torch.no_grad():
    cache = writer.new_cache()
    stepwise = torch.cat([writer(text[:, t:t + 1], cache) for t in range(40)], dim=1)   # 40 calls
    lesson.check("cached steps = the network by hand, each logit", stepwise, written_out,
                 atol=1e-10, source="B: Generando de forma iterativa el siguiente token")
grown = text[:1, :1]                                                    # (1, 1)
for _ in range(6):
    following = modern_by_hand(writer, grown[0])[-1].argmax()           # predict
    grown = torch.cat([grown, following.view(1, 1)], dim=1)             # append, and again
lesson.check("generate (greedy) = predict, append, predict again",
             generate(writer, text[:1, :1], 6, temperature=0), grown, atol=0,
             source="B: Generando de forma iterativa el siguiente token", items=("B08",))

# %% [markdown]
# ## 4. Which token to take
# The model gives P; a decoding rule chooses a token. With logits z:
#
# - temperature τ (Ackley et al. 1985): sample from softmax(z/τ). Below 1 the distribution is
#   sharper, above 1 flatter. τ → 0 gives the likeliest token, "greedy" decoding.
# - top-k (Fan et al. 2018): keep the k likeliest tokens, and rescale them to sum to 1.
# - top-p, or nucleus (Holtzman et al. 2020): keep the fewest tokens, the likeliest first, that
#   together reach p, and rescale.
#
# Below, the exact distributions come from sorted lists. The frequencies of 40,000 draws follow. A
# frequency of n draws has the standard error √(p(1 − p)/n), at most 0.0025 here.

# %%
z = [2.0, 0.5, 1.0, -1.0, 1.5]
by_size = sorted(range(5), key=lambda i: -z[i])                         # tokens, likeliest first


def rescaled(weights):
    return [weight / sum(weights) for weight in weights]


def only(kept, weights):
    return rescaled([weight if i in kept else 0.0 for i, weight in enumerate(weights)])


P = rescaled([math.exp(x) for x in z])
nucleus = next(by_size[:n] for n in range(1, 6) if sum(P[i] for i in by_size[:n]) >= 0.7)
exact = {
    "temperature 0.5": ({"temperature": 0.5}, rescaled([math.exp(x / 0.5) for x in z])),
    "top-k, k = 3": ({"top_k": 3}, only(by_size[:3], P)),
    "top-p, p = 0.7": ({"top_p": 0.7}, only(nucleus, P)),
}


class Fixed:
    """A model that gives the logits z after every text, so that only the rule matters."""
    context_length = 2

    def __call__(self, tokens):
        return torch.tensor(z).expand(*tokens.shape, 5)


for name, (options, expected) in exact.items():
    lesson.check(f"{name}: probabilities", sampling_logprobs(torch.tensor(z), **options).exp(),
                 expected, atol=1e-6, source="by sorted lists")
    prompts = torch.zeros(40_000, 1, dtype=torch.long)
    drawn = generate(Fixed(), prompts, 1, generator=lesson.generator, **options)[:, 1]
    lesson.check(f"{name}: frequencies of 40,000 draws", drawn.bincount(minlength=5) / 40_000,
                 expected, atol=0.012, source="by sorted lists")

# %% [markdown]
# ### Beam search
# Greedy decoding takes the likeliest token at each step. It can miss the likeliest *sentence*: a
# first token of medium probability may be followed by tokens that are almost certain. Beam search
# (Sutskever et al. 2014, §3.2) keeps the n likeliest prefixes. At each step it extends each of them
# by every token, and keeps the n likeliest of the results.
#
# With 3⁴ = 81 continuations we can list all of them and compare, for 40 random models. A beam of 1
# is greedy decoding. A beam of 27 holds every prefix of length 3, so it must find the best. Between
# them nothing is certain.

# %%
prompt = torch.zeros(1, 1, dtype=torch.long)
found, below_greedy = {1: 0, 2: 0, 4: 0, 27: 0}, 0
best_listed, greedy_listed, of_beam = [], [], {n: [] for n in found}
for _ in range(40):
    model = GPT(GPTConfig(vocab_size=3, context_length=5, n_layers=1, n_heads=2, d_model=8))
    model = model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
    with torch.no_grad():
        tails = torch.cat([prompt.expand(81, 1), sentences], 1)         # (81, 5) after token 0
        logprobs = model(tails).log_softmax(-1)[:, :-1]                 # (81, 4, 3)
    listed = logprobs.gather(-1, sentences[..., None])[..., 0].sum(1)   # (81,) log P
    best_listed.append(listed.max())
    left = listed.exp().view(3, 3, 3, 3)                                # P, one axis per token
    for _ in range(4):                      # P(token) is the sum over all sentences with it
        left = left[left.reshape(3, -1).sum(1).argmax()]
    greedy_listed.append(left.log())
    for n in found:
        of_beam[n].append(beam_search(model, prompt, 4, n_beams=n)[1][0])
        found[n] += bool(of_beam[n][-1] > best_listed[-1] - 1e-9)
        below_greedy += bool(of_beam[n][-1] < greedy_listed[-1] - 1e-9)
lesson.check("a beam that holds every prefix finds the best of 81, 40 models",
             torch.stack(of_beam[27]), torch.stack(best_listed), atol=1e-9, source="by listing")
lesson.check("a beam of 1 is greedy, 40 models", torch.stack(of_beam[1]),
             torch.stack(greedy_listed), atol=1e-9, source="by listing")
print("      models, of 40, for which the likeliest of 81 is found: "
      + ", ".join(f"beam {n}: {count}" for n, count in found.items()))
print(f"      searches with a wider beam that ended below greedy: {below_greedy} of {3 * 40}")

# %% [markdown]
# A wider beam usually finds a better sentence, but this is no theorem. The greedy prefix can be
# dropped in favour of prefixes that look better at that step and become unlikely later. An example
# with three tokens a, b, c and sentences of three:
#
#     first token     P(a) = 0.40   P(b) = 0.35   P(c) = 0.25
#     after a         0.35, 0.33, 0.32            aa 0.1400   ab 0.1320   ac 0.1280
#     after b         0.50, 0.45, 0.05            ba 0.1750   bb 0.1575   bc 0.0175
#     after aa        0.98, 0.01, 0.01            aaa 0.1372
#     elsewhere       1/3 each                    baa = bab = bac 0.0583
#
# Greedy goes a, aa, aaa: 0.1372. A beam of 2 keeps a and b, then ba and bb, and loses aa.

# %%
AFTER = {(): [0.40, 0.35, 0.25], (0,): [0.35, 0.33, 0.32], (1,): [0.50, 0.45, 0.05],
         (0, 0): [0.98, 0.01, 0.01]}


class Table:
    """A model that looks its probabilities up in AFTER. The first token read is the prompt."""
    context_length = 4

    def __call__(self, tokens):
        last = [AFTER.get(tuple(row[1:]), [1 / 3] * 3) for row in tokens.tolist()]
        return torch.tensor(last).log()[:, None]                        # (B, 1, 3)


lesson.check("a beam of 2 can be worse than greedy: 0.0583 against 0.1372",
             [beam_search(Table(), prompt, 3, n_beams=n)[1][0].exp() for n in (1, 2)],
             [0.40 * 0.35 * 0.98, 0.35 * 0.50 / 3], atol=1e-6, source="the table above")

# %% [markdown]
# ## 5. Pre-training, down to the entropy
# Course B gives the recipe: model p(w_t | w_{1:t−1}), train a network on much text, save its
# parameters (`minigpt/training/checkpoints.py` does this). Our text is stories from a grammar
# (`minigpt/worlds/stories.py`). A story names a child, an animal, a thing and a place, and mentions
# them again later. A reader that remembers the first mention can predict the second one.
#
# Each story has one derivation in the grammar, so its probability is known exactly. The mean of
# −log₂ P is the entropy of the text, and no model has a smaller expected loss (lesson 02, part 7).
# We call it the floor. As in lesson 02, losses are in bits per character, and the end of a story
# counts as one character, because it is predicted as well.

# %%
print("\n" + textwrap.fill(STORIES.sample_many(1, seed=lesson.seed)[0], 98) + "\n")
length = STORIES.expected_length() + 1                                  # with the end
floor = STORIES.entropy() / length
print(f"  entropy {STORIES.entropy():.1f} bits per story, {length:.0f} characters per story: "
      f"{floor:.4f} bits per character; {len(STORIES.vocabulary())} words")

# Training and test stories have different seeds, and most stories occur only once.
stories = STORIES.sample_many(lesson.pick(full=20_000, quick=800), seed=2 * lesson.seed)
fresh = STORIES.sample_many(lesson.pick(full=400, quick=60), seed=2 * lesson.seed + 1)
END = "<|endoftext|>"
n_tokens = lesson.pick(full=1_900, quick=1_000)
tokenizer = BPETokenizer.train("".join(stories), n_tokens, special_tokens=(END,))
end = tokenizer.special_tokens[END]
encoded = [tokenizer.encode(story) for story in stories]
print(f"  {tokenizer.vocab_size} tokens, {sum(map(len, encoded)) / len(encoded):.0f} per story")

# %% [markdown]
# Training reads blocks of 128 tokens (part 1). Each block begins where a story begins, after an
# end-of-text token. It usually ends inside the next story; the end-of-text token tells the model
# that what stands before it does not matter. The test reads each fresh story from its beginning to
# its end, in one block, so no condition is shortened.

# %%
corpus = torch.tensor([token for story in encoded for token in [end, *story]])          # (N,)
starts = torch.tensor([0] + [len(story) + 1 for story in encoded]).cumsum(0)[:-1]
LENGTH, BATCH = 128, lesson.pick(full=16, quick=4)
starts = starts[starts + LENGTH < len(corpus)]


def next_batch(generator):
    first = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
    return corpus[first[:, None] + torch.arange(LENGTH + 1)]            # (B, T + 1)


rows = [[end, *tokenizer.encode(story), end] for story in fresh]
tested, present = pad(rows, side="right", value=end)                    # (stories, longest) each
characters = sum(len(story) + 1 for story in fresh)
exact_bits = sum(STORIES.surprisal(story) for story in fresh) / characters  # of these very stories


def story_bits(model):
    """Bits per character on the fresh stories, each read from its beginning, its end included."""
    total = 0.0
    for tokens, mask in zip(tested.split(32), present[:, 1:].split(32)):
        mean = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], mask).item()
        total += mean * mask.sum().item()
    return {"val_loss": bits(total) / characters}


config = TrainingConfig(
    max_steps=lesson.pick(full=1_400, quick=60), learning_rate=8e-3, weight_decay=0.0,
    optimizer="muon", evaluate_every=lesson.pick(full=200, quick=20), seed=lesson.seed)
form = GPTConfig.modern(tokenizer.vocab_size, context_length=max(LENGTH, tested.size(1)),
                        n_layers=2, n_heads=8, d_model=128)
gpt = GPT(form, lesson.generator).to(lesson.device)
print(f"  {count_parameters(gpt):,} parameters, "
      f"{config.max_steps} steps of {BATCH} × {LENGTH} tokens")


def on_row(row):
    print(f"  step {row['step']:5d}   {row['val_loss']:.4f} bits per character, "
          f"{row['val_loss'] - exact_bits:.4f} above the floor", flush=True)


history = train(gpt, next_batch, next_token_loss, config, story_bits, on_row=on_row)
gap = history[-1]["val_loss"] - exact_bits
lesson.claim("within 0.05 bits per character of the exact entropy, on fresh stories",
             0 < gap < 0.05,
             f"{gap:.4f} above the {exact_bits:.4f} of these stories",
             full_run=True, items=("B01",))

# %%
fig, (whole, near) = plotting.figure(10, 4, columns=2)
steps, losses = [r["step"] for r in history], [r["val_loss"] for r in history]
whole.plot(steps, losses, marker="o", markersize=3, label="GPT on fresh stories")
whole.axhline(exact_bits, color="black", linestyle=":", label=f"exact, {exact_bits:.3f}")
whole.set(xlabel="optimizer steps", ylabel="bits per character", ylim=(0, None),
          title="Loss and its floor")
near.semilogy(steps, [loss - exact_bits for loss in losses], marker="o", markersize=3)
near.set(xlabel="optimizer steps", ylabel="bits per character above the floor",
         title="Gap to the floor (log scale)")
whole.legend()
lesson.figure(fig, "loss")

# %% [markdown]
# ## 6. What it writes
# The gap measures how well the model predicts. Does it also write well? The parser of the grammar
# decides: one wrong pronoun, or a lost robot that is found as a fan, and the story does not parse.
# A story has about 95 tokens. If each token were wrong with probability 1/1000, independently,
# 1 − 0.999⁹⁵ = 9 % of the stories would be wrong.
#
# A small gap does not exclude this. Suppose that a model puts a share ε of its probability on
# stories that do not parse, and is right otherwise: q(x) = (1 − ε)·p(x) for true stories. Its loss
# on them is −log₂ q = −log₂ p − log₂(1 − ε). With ε = 10 % this is only 0.15 bits per story more.
#
# Most of this probability is in the tail: many tokens, each of them unlikely. Top-p removes the
# tail (part 4).

# %%
n = lesson.pick(full=200, quick=8)
share = {}
for p in (1.0, 0.95, 0.9, 0.8):
    start = torch.full((n, 1), end, device=lesson.device)
    written = generate(gpt, start, tested.size(1) - 1, top_p=p, generator=lesson.generator,
                       stop_token=end)[:, 1:].tolist()
    texts = [tokenizer.decode(row[:row.index(end)] if end in row else row) for row in written]
    wrong = [text for text in texts if not STORIES.is_grammatical(text)]
    share[p] = 1 - len(wrong) / n
    print(f"  top-p {p}: {share[p]:.0%} of {n} stories parse")
    print(f"      first error: {STORIES.why_not(wrong[0])[:75] if wrong else 'none'}")
print("\n" + "\n\n".join(textwrap.fill(text, 98) for text in texts[:2]) + "\n")
novel = len(set(texts) - set(stories)) / len(set(texts))
# A link is a token that an earlier one decides, such as an animal and its food. The model learns
# each link suddenly, and on some seeds one comes too late. Known full runs: the claim held on seeds
# 0 and 1 (99.5 % on 1) and not on seed 7 (51 %), where the food of the animal was not learned in
# 1,400 steps. The gap on seed 7 was 0.0084 bits per character, so the claim of part 5 held.
lesson.claim("at least 90 % of the stories sampled with top-p 0.8 are grammatical",
             share[0.8] >= 0.9,
             f"{share[0.8]:.0%} parse; {share[0.9]:.0%} with top-p 0.9, "
             f"{share[1.0]:.0%} without top-p", full_run=True)
lesson.claim("and they are new stories, not copies of training stories", novel > 0.99,
             f"{novel:.0%} of them are not among the {len(stories):,} of the training",
             full_run=True)

# %% [markdown]
# ## 7. Token by token
# One fresh story, word by word: the surprisal −log₂ P(word | story so far) of the model and the
# exact one of the grammar. High bars are real choices (a name, an animal). Where the exact bar is
# 0, the story so far decides the word. The sum of the exact bars is the information in the story.
#
# The grammar's words and the tokenizer's tokens divide the story at different places. So the bits
# of both are added up between the ends that they share.

# %%
story = fresh[0]
with torch.no_grad():
    tokens = tested[:1, :len(rows[0])]                                  # (1, T)
    logprobs = gpt(tokens[:, :-1]).log_softmax(-1)                      # (1, T − 1, V)
    token_bits = [bits(-x) for x in logprobs.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist()]


def ends_of(pieces):
    """Where each piece ends, in characters; the last piece is the end of the story."""
    return [*itertools.accumulate(map(len, pieces)), len(story) + 1]


def between(ends, values, shared):
    """The sum of the values whose ends lie in each stretch between shared ends."""
    return [sum(value for at, value in zip(ends, values) if low < at <= high)
            for low, high in zip([0, *shared], shared)]


exact_words = STORIES.surprisals(story)
word_ends = ends_of([word for word, _ in exact_words[:-1]])
token_ends = ends_of([tokenizer.decode([token]) for token in rows[0][1:-1]])
shared = sorted(set(word_ends) & set(token_ends))
names = [(story + "∎")[a:b].strip() for a, b in zip([0, *shared], shared)]
exact_at = between(word_ends, [b for _, b in exact_words], shared)
model_at = between(token_ends, token_bits, shared)
lesson.check("consistency: the bars add up to −log₂ P(story)", sum(exact_at),
             STORIES.surprisal(story), atol=1e-9, source="the chain rule")

shown = range(min(48, len(shared)))
fig, axes = plotting.figure(11, 4)
axes.bar([i - 0.2 for i in shown], exact_at[:len(shown)], 0.4, color=plotting.COLOURS[0],
         label="exact: −log₂ P(word | story so far)")
axes.bar([i + 0.2 for i in shown], model_at[:len(shown)], 0.4, color=plotting.COLOURS[5],
         label="the model's")
axes.set_xticks(list(shown), names[:len(shown)], rotation=90)
axes.set(ylabel="surprisal (bits)", title="Surprisal of each word of one story",
         xlim=(-1, len(shown)))
axes.legend()
lesson.figure(fig, "surprisal")
print(f"  exact: {sum(exact_at):.1f} bits for this story; the model: {sum(model_at):.1f} bits")

# %% [markdown]
# The last lines show generation one token at a time, with top-p 0.8: the token that was drawn, its
# probability, and the three likeliest tokens. The probabilities are those after top-p has removed
# the tail.

# %%
print()
prompt = torch.tensor([[end]], device=lesson.device)
for token, logprobs in stream(gpt, prompt, 16, top_p=0.8, generator=lesson.generator):
    top = logprobs[0].exp().topk(3)
    choices = ", ".join(f"{tokenizer.decode([t])!r} {p:.2f}"
                        for p, t in zip(top.values.tolist(), top.indices.tolist()) if p > 0)
    print(f"    {tokenizer.decode(token.tolist())!r:<14} "
          f"P = {logprobs[0, token].exp().item():.3f}    likeliest: {choices}")

# %%
lesson.end()
