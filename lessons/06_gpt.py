"""Lesson 06: GPT, from the sum of logarithms to a model that knows its grammar to the last bit that is worth knowing.

You will see    L₁(U) = Σᵢ log P(uᵢ | u_{i−k} … u_{i−1}) turned into a network, trained, and compared with the exact entropy
                of the text it reads; sampling and beam search against every sentence listed; a cache that changes nothing.
Source          courses A, B and D, "GPT"; Radford et al. 2018, eqs. 1 and 2; Radford et al. 2019, §2.3.
Expect          about 3 min on two cores (quick: about 10 s); every check passes; the model ends within 0.01 bits per character of the
                exact entropy, 0.31, and nine in ten of its stories from the nucleus are grammatical from first to last word.
Not here        the instructions, tasks and preferences that make a GPT useful (lessons 12 to 19).
"""
# %%
import itertools
import math

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
# Lesson 02 wrote a text's probability as a product of conditionals, P(u₁ … u_T) = Πᵢ P(uᵢ | u_<i). The logarithm makes it a
# sum, and a model that sees k tokens back cuts the condition short (Radford et al. 2018, eq. 1):
#
#     L₁(U) = Σᵢ log P(uᵢ | u_{i−k} … u_{i−1}; Θ)                    to be maximised; the loss is −L₁ / T, to be minimised
#
# A causal transformer computes all T terms at once: position t sees tokens 0..t, so its output can be judged by token t + 1,
# and no answer is visible to the one who guesses. To check that, take a model small enough to list everything: three
# tokens, sentences of four. The weights are drawn large so that nothing is nearly uniform.

# %%
tiny = GPT(GPTConfig(vocab_size=3, context_length=4, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in tiny.parameters():
    torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
sentences = torch.tensor(list(itertools.product(range(3), repeat=4)))                   # (81, 4): all there are, T = 4

with torch.no_grad():
    one_pass = causal_loss(tiny(sentences[50:51]), sentences[50:51]).item()             # every position at once
    prefix_by_prefix = 0.0
    for i in range(1, 4):                                                               # one prefix at a time, the future cut off by hand
        scores = tiny(sentences[50:51, :i])[0, -1].tolist()
        prefix_by_prefix += math.log(math.exp(scores[sentences[50, i]]) / sum(math.exp(s) for s in scores))
lesson.check("L₁ = Σ log P(uᵢ | u_<i), one pass = prefix by prefix", -3 * one_pass, prefix_by_prefix, atol=1e-12, source="A: eq. 1")

# %% [markdown]
# The chain rule runs both ways. Let the model's conditionals define the joint P(u₂u₃u₄ | u₁), by listing. Then take the joint
# as given and recover a conditional as a ratio of sums of it, P(u₃ | u₁u₂) = P(u₁u₂u₃) / P(u₁u₂), with no transformer involved:
# it has to be what the transformer said.

# %%
with torch.no_grad():
    logprobs = tiny(sentences).log_softmax(-1)                                          # (81, 4, 3)
    joint = logprobs[:, :-1].gather(-1, sentences[:, 1:, None])[..., 0].sum(1).exp()    # (81,) P(u₂u₃u₄ | u₁)
lesson.check("Σ P(sentence) = 1 for each first token", joint.view(3, 27).sum(1), torch.ones(3), atol=1e-12, source="B: chain rule")
tree = joint.view(3, 3, 3, 3)                                                           # one axis a token
ratio = tree[1, 2].sum(-1) / tree[1, 2].sum()                                           # P(u₃ | u₁=1, u₂=2), from the joint alone
lesson.check("conditional = ratio of joints", tiny(torch.tensor([[1, 2]]))[0, -1].softmax(-1), ratio, atol=1e-12, source="C: chain rule")
lesson.check("corpus loss = −log P(sentence), by the chain rule", 3 * one_pass, -joint[50].log(), atol=1e-12, source="D: cross-entropy")

# %% [markdown]
# ## 2. The network, by hand
#     h₀ = U W_e + W_p        h_l = block(h_{l−1})        P(u) = softmax(h_n W_eᵀ)                (Radford et al. 2018, eq. 2)
#
# GPT-2's block is two lines: x ← x + attention(norm(x)), then x ← x + mlp(norm(x)). Here they are on bare matrices, one head at
# a time, with the weights of `tiny`; `minigpt/models/gpt.py` is the same with names. (On paper GPT-1 puts the norms after
# the sum; GPT-2 moved them in front, and everyone stayed.)

# %%
def normalise(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def gpt_by_hand(model, tokens, read, score):
    """(T,) tokens -> (T, V) logits. `read` and `score` (V, C) are the two uses of W_e."""
    T, D = len(tokens), model.config.d_model // model.config.n_heads
    x = read[tokens] + model.position_embedding.weight[:T]                              # (T, C)  h₀ = U W_e + W_p
    for block in model.blocks:
        a, n, heads = block.attention, normalise(x, block.norm1), []
        for h in range(model.config.n_heads):
            rows = slice(h * D, (h + 1) * D)
            q, k, v = (n @ f.weight[rows].T + f.bias[rows] for f in (a.query, a.key, a.value))      # (T, D) each
            scores = q @ k.T / D**0.5                                                               # (T, T)
            scores = torch.stack([torch.cat([scores[t, :t + 1], scores.new_full((T - t - 1,), -torch.inf)]) for t in range(T)])
            heads.append(scores.softmax(-1) @ v)                                                    # (T, D)
        x = x + torch.cat(heads, -1) @ a.out.weight.T + a.out.bias                                  # (T, C)
        inner = normalise(x, block.norm2) @ block.feed_forward.inner.weight.T + block.feed_forward.inner.bias
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))      # GELU
        x = x + inner @ block.feed_forward.out.weight.T + block.feed_forward.out.bias
    return normalise(x, model.final_norm) @ score.T                                                 # (T, V)  h_n W_eᵀ


W_e = tiny.token_embedding.weight
lesson.check("GPT = eq. 2 on bare matrices", tiny(sentences[50:51])[0], gpt_by_hand(tiny, sentences[50], W_e, W_e),
             atol=1e-12, source="A: eq. 2")

# %% [markdown]
# W_e is used twice: to read tokens in and to score tokens out. Its gradient is the sum of both uses. Give the two uses a matrix
# each, take both gradients, add: that is the claim. Finite differences on the tied matrix are the referee.

# %%
read, score = (W_e.detach().clone().requires_grad_() for _ in range(2))                 # untied: one matrix each
untied_loss = cross_entropy(gpt_by_hand(tiny, sentences[50], read, score)[:-1], sentences[50, 1:])
by_use = torch.autograd.grad(untied_loss, (read, score))

measured, h = torch.zeros_like(W_e), 1e-6                                               # tied: walk a step along each of the 24 numbers
with torch.no_grad():
    for i, j in itertools.product(range(3), range(8)):
        ends = []
        for step in (h, -h):
            W_e[i, j] += step
            ends.append(causal_loss(tiny(sentences[50:51]), sentences[50:51]))
            W_e[i, j] -= step
        measured[i, j] = (ends[0] - ends[1]) / (2 * h)
lesson.check("tied gradient = reading use + scoring use", by_use[0] + by_use[1], measured, atol=1e-8, source="A: P(u) = softmax(h_n W_eᵀ)")
print(f"      sizes: reading {by_use[0].norm():.2f}, scoring {by_use[1].norm():.2f}: neither use may be forgotten")

# %% [markdown]
# The GPTs that everybody knows are this network with larger numbers, which fit in one formula: W_e and W_p, then in each layer
# 4C² + 4C for attention, 8C² + 5C for the MLP and 4C for two norms, then one more norm. PyTorch counts without taking memory, on its
# "meta" device. (Course C dates GPT-2 to 2018; it appeared in February 2019. Course D gives GPT-2 and GPT-3 12 heads, as only the
# smallest GPT-2 has: the 1.5 billion of GPT-2 have 25 a layer, GPT-3's 175 billion have 96, Brown et al. 2020, table 2.1.)

# %%
for size in ("small", "medium", "large", "xl"):
    c = GPTConfig.gpt2(size)
    with torch.device("meta"):
        counted = count_parameters(GPT(c))
    by_formula = (c.vocab_size + c.context_length) * c.d_model + c.n_layers * (12 * c.d_model**2 + 13 * c.d_model) + 2 * c.d_model
    lesson.check(f"GPT-2 {size}: {c.n_layers} layers, {c.n_heads} heads, C = {c.d_model}: {counted:,} parameters", counted, by_formula,
                 atol=0,
                 source="Radford et al. 2019, table 2")

# %% [markdown]
# ## 3. One token at a time
# While a model writes, the past does not change, so neither do its keys and values: compute them once and keep them. A step
# then costs one query instead of T. Nothing else may change, and nothing does: every logit is compared.

# %%
text = torch.randint(50, (2, 40), generator=lesson.generator)
writer = GPT(GPTConfig.modern(vocab_size=50, context_length=40, n_layers=3, n_heads=4, d_model=32)).double()
with torch.no_grad():
    cache = writer.new_cache()
    stepwise = torch.cat([writer(text[:, t:t + 1], cache) for t in range(40)], dim=1)   # 40 calls with one token each
    lesson.check("cached step = full recompute, logit for logit", stepwise, writer(text), atol=1e-12, source="B: generation")

# %% [markdown]
# ## 4. Which token to take
# The model gives P; a decoding rule picks from it. With logits z: temperature τ samples softmax(z/τ), sharper below 1 and
# flatter above; top-k keeps the k likeliest tokens and top-p (the nucleus) the fewest that together reach p, each rescaled to
# sum to 1. Below, the exact distributions by hand from sorted lists, and the frequencies of 40,000 draws. A frequency of n
# draws has standard error √(p(1 − p)/n), at most 0.0025 here.

# %%
z = [2.0, 0.5, 1.0, -1.0, 1.5]
by_size = sorted(range(5), key=lambda i: -z[i])                                         # tokens, likeliest first


def rescaled(weights):
    return [w / sum(weights) for w in weights]


def only(kept, weights):
    return rescaled([w if i in kept else 0.0 for i, w in enumerate(weights)])


P = rescaled([math.exp(x) for x in z])
nucleus = next(by_size[:n] for n in range(1, 6) if sum(P[i] for i in by_size[:n]) >= 0.7)
exact = {
    "temperature 0.5": (dict(temperature=0.5), rescaled([math.exp(x / 0.5) for x in z])),
    "top-k, k = 3": (dict(top_k=3), only(by_size[:3], P)),
    "top-p, p = 0.7": (dict(top_p=0.7), only(nucleus, P)),
}


class Fixed:
    """A model with the same opinion whatever it reads, so that only the decoding rule is at work."""
    context_length = 2

    def __call__(self, tokens):
        return torch.tensor(z).expand(*tokens.shape, 5)


for name, (options, expected) in exact.items():
    lesson.check(f"{name}: probabilities", sampling_logprobs(torch.tensor(z), **options).exp(), expected, atol=1e-6, source="B: decoding")
    drawn = generate(Fixed(), torch.zeros(40_000, 1, dtype=torch.long), 1, generator=lesson.generator, **options)[:, 1]
    lesson.check(f"{name}: frequencies of 40,000 draws", drawn.bincount(minlength=5) / 40_000, expected, atol=0.012, source="B: decoding")

# %% [markdown]
# Greedy decoding takes the likeliest token each time, and can walk past the likeliest *sentence*: a modest first step may
# lead to certainty. Beam search keeps n candidates. In a tree of 3⁴ continuations every sentence can be listed and the
# search judged. Of 40 random models, how often does each find the best?

# %%
found = {1: 0, 2: 0, 4: 0, 27: 0}
shortfall = 0.0                                                                         # how far any beam falls below greedy; should be 0
for seed in range(40):
    model = GPT(GPTConfig(vocab_size=3, context_length=5, n_layers=1, n_heads=2, d_model=8)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
    with torch.no_grad():
        tails = torch.cat([torch.zeros(81, 1, dtype=torch.long), sentences], 1)         # (81, 5): all answers to the prompt "0"
        listed = model(tails).log_softmax(-1)[:, :-1].gather(-1, sentences[..., None])[..., 0].sum(1)
        greedy = generate(model, torch.zeros(1, 1, dtype=torch.long), 4, temperature=0)[0, 1:]
        greedy_logprob = listed[(sentences == greedy).all(1)].item()
    for n in found:
        best = beam_search(model, torch.zeros(1, 1, dtype=torch.long), 4, n_beams=n)[1][0].item()
        found[n] += best > listed.max().item() - 1e-9
        if n > 1:
            shortfall = max(shortfall, greedy_logprob - best)
    if seed == 0:
        lesson.check("a beam that holds every prefix finds the best of all 81", best, listed.max(), atol=1e-9, source="B: beam search")
        lesson.check("a beam of 1 is greedy", beam_search(model, torch.zeros(1, 1, dtype=torch.long), 4, 1)[1][0], greedy_logprob,
                     atol=1e-9, source="B: beam search")
lesson.check("no beam found less than greedy, in 40 trees", max(shortfall, 0.0), 0.0, atol=1e-9, source="B: beam search")
print("      found the likeliest of 81, of 40 trees: " + ", ".join(f"beam {n}: {k}" for n, k in found.items()))

# %% [markdown]
# ## 5. Pre-training, down to the floor
# The text is stories from a grammar (`minigpt/worlds/stories.py`). A story names a child, an animal, a thing and a place, and
# brings them back; whoever remembers pays nothing for the second mention. Because the grammar is unambiguous, each story's
# probability is known, and with it the exact entropy: the loss of a perfect reader, below which no model can stay.

# %%
print("\n" + STORIES.sample_many(1, seed=lesson.seed)[0] + "\n")
floor = STORIES.entropy() / STORIES.expected_length()
print(f"  entropy {STORIES.entropy():.1f} bits a story, {STORIES.expected_length():.0f} characters a story: {floor:.4f} bits per character; "
      f"{len(STORIES.vocabulary())} words")

# Fresh stories are tested on, so no story counts twice: seeds of the two sets never meet.
stories = STORIES.sample_many(lesson.pick(full=20_000, quick=1_500), seed=2 * lesson.seed)
fresh = STORIES.sample_many(lesson.pick(full=400, quick=60), seed=2 * lesson.seed + 1)
END = "<|endoftext|>"
tokenizer = BPETokenizer.train("".join(stories), lesson.pick(full=1_900, quick=1_000), special_tokens=(END,))
end = tokenizer.special_tokens[END]
encoded = [tokenizer.encode(story) for story in stories]
print(f"  {tokenizer.vocab_size} tokens, {sum(map(len, encoded)) / len(encoded):.0f} a story")

# %% [markdown]
# A window for training begins where a story begins, as a reader does. Its end is wherever the window ends: usually some
# way into the next story, after the end-of-text token has told the model to forget.

# %%
corpus = torch.tensor([token for story in encoded for token in [end, *story]])          # (N,)
starts = torch.tensor([0] + [len(story) + 1 for story in encoded]).cumsum(0)[:-1]
LENGTH = 128
starts = starts[starts + LENGTH < len(corpus)]


def next_batch(generator):
    first = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
    return corpus[first[:, None] + torch.arange(LENGTH + 1)]                            # (B, T + 1)


rows = [[end, *tokenizer.encode(story), end] for story in fresh]
judged, present = pad(rows, side="right", value=end)                     # (stories, longest) each
characters = sum(map(len, fresh))
exact_bits = sum(STORIES.surprisal(story) for story in fresh) / characters              # what these very stories cost, exactly


def story_bits(model):
    """Bits per character on the fresh stories, each read from its beginning, its end included."""
    total = 0.0
    for tokens, mask in zip(judged.split(32), present[:, 1:].split(32)):
        total += cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], mask).item() * mask.sum().item()
    return {"val_loss": bits(total) / characters}


BATCH = lesson.pick(full=16, quick=4)
config = TrainingConfig(max_steps=lesson.pick(full=1_400, quick=60), learning_rate=8e-3, weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=200, quick=20), seed=lesson.seed)
form = GPTConfig.modern(tokenizer.vocab_size, context_length=max(LENGTH, judged.size(1)), n_layers=2, n_heads=8, d_model=128)
gpt = GPT(form, lesson.generator).to(lesson.device)
print(f"  {count_parameters(gpt):,} parameters, {config.max_steps} steps of {BATCH} × {LENGTH} tokens")


def on_row(row):
    print(f"  step {row['step']:5d}   {row['val_loss']:.4f} bits per character, "
          f"{row['val_loss'] - exact_bits:.4f} above the floor", flush=True)


history = train(gpt, next_batch, next_token_loss, config, story_bits, on_row=on_row)
gap = history[-1]["val_loss"] - exact_bits
lesson.claim("within 0.05 bits per character of the exact entropy, on fresh stories", 0 < gap < 0.05,
             f"gap {gap:.4f} bits per character above the {exact_bits:.4f} that these stories hold", full_run=True)

# %%
fig, (whole, near) = plotting.figure(10, 4, columns=2)
steps, losses = [r["step"] for r in history], [r["val_loss"] for r in history]
whole.plot(steps, losses, marker="o", markersize=3, label="GPT on fresh stories")
whole.axhline(floor, color="black", linestyle=":", label=f"exact entropy, {floor:.3f}")
whole.set(xlabel="optimizer steps", ylabel="bits per character", ylim=(0, None), title="The loss comes down to the entropy")
near.semilogy(steps, [loss - exact_bits for loss in losses], marker="o", markersize=3)
near.set(xlabel="optimizer steps", ylabel="bits per character above the floor", title="The same, seen from the floor")
whole.legend()
lesson.figure(fig, "loss")

# %% [markdown]
# ## 6. What it writes
# The floor says how well it reads. Does it write? The grammar's own parser is the judge: a single wrong pronoun, a lost robot
# that turns up as a fan, and the story is out. A story is some 95 tokens, so a model that errs once in a thousand tokens
# spoils one story in eleven. And a small gap does not forbid that: whoever puts a share ε of its probability on nonsense
# loses only −log₂(1 − ε) bits a story on true ones, 0.15 bits for ε = 10 %.
#
# Most of that nonsense is in the tail, each word of it unlikely, all of it together not: the case for the nucleus of part 4.

# %%
n = lesson.pick(full=200, quick=20)
share = {}
for p in (1.0, 0.95, 0.9, 0.8):
    start = torch.full((n, 1), end, device=lesson.device)
    written = generate(gpt, start, judged.size(1) - 1, top_p=p, generator=lesson.generator, stop_token=end)[:, 1:]
    texts = [tokenizer.decode(row[:row.index(end)] if end in row else row) for row in written.tolist()]
    share[p] = sum(map(STORIES.is_grammatical, texts)) / n
    print(f"  top-p {p}: {share[p]:.0%} of {n} stories parse; first fault: "
          + next((STORIES.why_not(text)[:100] for text in texts if not STORIES.is_grammatical(text)), "none"))
print("\n" + "\n\n".join(texts[:2]) + "\n")
novel = len(set(texts) - set(stories)) / len(set(texts))
lesson.claim("at least 90 % of stories sampled from the nucleus, p = 0.8, are grammatical from first to last word", share[0.8] >= 0.9,
             f"{share[0.8]:.0%} parse; {share[0.9]:.0%} with p = 0.9, {share[1.0]:.0%} when sampled from the whole distribution", full_run=True)
lesson.claim("and they are new, not remembered", novel > 0.99, f"{novel:.0%} of them are not among the {len(stories):,} read in training",
             full_run=True)

# %% [markdown]
# ## 7. Token by token
# One story, as the model hears it: at each token, how surprised was it, and how surprised does one have to be? The grammar
# answers exactly. High bars are real choices (a name, an animal); where a bar is 0 the story so far decides. The sum of the
# dark bars is that story's share of the floor.

# %%
story = fresh[0]
with torch.no_grad():
    tokens = judged[:1, :len(rows[0])]
    token_bits = [bits(x) for x in -gpt(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[0, :, 0]]
# The grammar's words and the tokenizer's tokens part the story at different places; both bits are added up between shared ends.
truth = STORIES.surprisals(story)
word_ends = list(itertools.accumulate(len(word) for word, _ in truth[:-1])) + [len(story) + 1]      # the end of the story counts as a character
pieces = [tokenizer.decode([token]) for token in rows[0][1:-1]]
token_ends = list(itertools.accumulate(map(len, pieces))) + [len(story) + 1]
shared = sorted(set(word_ends) & set(token_ends))
names = [(story + "∎")[a:b].strip() for a, b in zip([0, *shared], shared)]
exact_at = [sum(b for end_, (_, b) in zip(word_ends, truth) if a < end_ <= z_) for a, z_ in zip([0, *shared], shared)]
model_at = [sum(b for end_, b in zip(token_ends, token_bits) if a < end_ <= z_) for a, z_ in zip([0, *shared], shared)]

shown = range(min(48, len(shared)))
fig, axes = plotting.figure(11, 4)
axes.bar([i - 0.2 for i in shown], exact_at[:len(shown)], 0.4, color=plotting.COLOURS[0], label="exact: −log₂ P(word | story so far)")
axes.bar([i + 0.2 for i in shown], model_at[:len(shown)], 0.4, color=plotting.COLOURS[5], label="the model's")
axes.set_xticks(list(shown), names[:len(shown)], rotation=90)
axes.set(ylabel="surprisal (bits)", title="Where a story's information is", xlim=(-1, len(shown)))
axes.legend()
lesson.figure(fig, "surprisal")
print(f"  this story holds {sum(exact_at):.1f} bits; the model paid {sum(model_at):.1f}")

# %%
print("\n  generate, one token at a time, from the nucleus p = 0.8, with what it was drawn from:")
for i, (token, logprobs) in enumerate(stream(gpt, torch.tensor([[end]], device=lesson.device), 16, top_p=0.8, generator=lesson.generator)):
    top = logprobs[0].exp().topk(3)
    choices = ", ".join(f"{tokenizer.decode([t])!r} {p:.2f}" for p, t in zip(top.values.tolist(), top.indices.tolist()))
    print(f"    {tokenizer.decode(token.tolist())!r:<14} P = {logprobs[0, token].exp().item():.3f}    likeliest: {choices}")

# %%
lesson.end()
