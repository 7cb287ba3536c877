"""Lesson 13: prompting: the input changes what a model does, and no weight changes.

You will see    candidates and pronouns decided by the probability of a text; a small GPT that
                learns a new language from its prompt; one layer of linear attention that equals a
                step of gradient descent; soft prompts: vectors in front of a frozen model, trained
                alone or through a small network.
Source          course C, "GPT-2: Prompt era unlocked (2018)", "GPT-2: Fake it till you make it
                (2018)", "GPT-2: Scalability payoffs (2018)"; course D, "FINE-TUNING LLM" and
                "PROMPT ENGINEERING"; Brown et al. 2020 (GPT-3), fig. 2.1 and §2; Trinh and Le 2018;
                Lester et al. 2021; Liu et al. 2021 (P-tuning); von Oswald et al. 2023, Prop. 1.
Expect          2 minutes on one core (quick: about 12 s); every check passes. With seed 0: pronouns
                50 % right before training, 100 % after; a new language from 0, 1, 2, 4, 8 examples:
                11, 35, 53, 72, 88 % right (best possible: 12, 36, 53, 74, 92); the trained layer of
                attention takes steps of 0.63 (best: 0.625); 2 soft vectors reach 98 %, 8 vectors
                and fine-tuning 100 %, 9 tokens of prompt 60 %.
Not here        fine-tuning (lesson 12), instructions and low-rank adaptation (lesson 14).

Shapes: B batch, T time, P prompt vectors, C = d_model, V vocabulary.
"""
# %%
import copy
import itertools
import math
from statistics import mean

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.adaptation.prompting import (
    SoftPrompt,
    few_shot_prompt,
    resolve_pronoun,
    score_candidates,
    substitute,
)
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss, cross_entropy, token_logprobs
from minigpt.worlds.grammar import Grammar, alike, tokens

lesson = Lesson("13_prompting", threads=1)

# %% [markdown]
# ## 1. The task is in the input
# Fine-tuning (lesson 12) changes the weights for every task. A *prompt* is a text that describes
# the task. The model continues it as it would continue any document, and no weight changes. GPT-2
# (of 2019, not 2018 as course C writes) was used in this way, and GPT-3 (2020) with more examples:
#
# - **zero-shot**: an instruction and the question;
# - **one-shot**, **few-shot**: an instruction, one or a few worked examples, and the question.
#
# This is *in-context learning*. (Course D lists it under fine-tuning, but no weight changes: Brown
# et al. 2020, §2.) A prompt can tell the task by an instruction, by examples, or by the start of
# the wanted output ("There was once a …").
#
# Why can a language model translate at all? Web pages contain translations in passing. Course C
# shows sentences from GPT-2's training text, such as one that gives "perfume" and then "parfum". To
# predict the next word of such a page is to translate. Part 3 builds a small case of this.
#
# Course D's examples (it has "Cionta" for *lontra marina* and "flesh" for *plush giraffe*):
#
# Items: C43, C49, D24, D26

# %%
shots = [("sea otter", "lontra marina"), ("peppermint", "menta piperita"),
         ("plush giraffe", "giraffa di peluche")]
for k in (0, 1, 3):
    prompt = few_shot_prompt("cheese", shots[:k], "Translate English to Italian:")
    print(f"\n  {k} examples\n    " + prompt.replace("\n", "\n    "))
lesson.check("the few-shot prompt, character by character", prompt,
             "Translate English to Italian:\nsea otter => lontra marina\n"
             "peppermint => menta piperita\nplush giraffe => giraffa di peluche\ncheese =>",
             atol=0, source='D: "FINE-TUNING LLM"; Brown et al. 2020, fig. 2.1', items=("D26",))

# %% [markdown]
# Often the possible answers are a given list, the *candidates*. Then the model need not write; it
# scores. By the chain rule, with c₁ … c_n the tokens of candidate c,
#
#     log P(c | prompt) = Σᵢ log P(cᵢ | prompt, c₁ … c_{i−1})           answer = argmax_c
#
# This sum favours short candidates, because each token makes it smaller. GPT-3 also used the mean
# over the tokens, (1/n) Σᵢ. The mean is not a log-probability. It can favour long candidates: the
# last tokens of a long word are easy to predict. The library computes all candidates in one padded
# batch. By hand: one prefix at a time, without a batch and without padding.

# %%
tiny = GPT(GPTConfig(vocab_size=7, context_length=16, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in tiny.parameters():
    nn.init.normal_(parameter, std=0.7, generator=lesson.generator)


def logprob_by_hand(model, prompt, answer):
    """log P of each of the answer's tokens, one prefix at a time, the softmax written out."""
    each, device = [], next(model.parameters()).device
    for i, token in enumerate(answer):
        scores = model(torch.tensor([prompt + answer[:i]], device=device))[0, -1].tolist()
        each.append(scores[token] - math.log(sum(map(math.exp, scores))))
    return each


prompt, candidates = [3, 0, 6], [[2], [5, 5], [1, 4, 2]]
by_hand = [logprob_by_hand(tiny, prompt, c) for c in candidates]
lesson.check("log P(c | prompt) = Σ log P(cᵢ | …)", score_candidates(tiny, prompt, candidates),
             [sum(e) for e in by_hand], atol=1e-12, source="chain rule")
per_token = score_candidates(tiny, prompt, candidates, per_token=True)
lesson.check("per token: the mean of the same terms", per_token, [mean(e) for e in by_hand],
             atol=1e-12, source="Brown et al. 2020, §2.4")

# %% [markdown]
# *Prompt engineering* is the design of prompts that work. A prompt is a *template*: a sequence of
# fixed words P₀, P₁, … with places for the input x and for the answer y:
#
#     P₀ … P_i  x  P_{i+1} … P_m  y  P_{m+1} …        "In Italian, <x> is called <y>, they say."
#
# (Course D says that x and y specify the task. It is the other way round: x is the input and y the
# answer; the words P₀, P₁, … say what the task is.) Here y stands in the *middle*. Each candidate
# for y changes the probability of itself and of the words after it. So we score y P_{m+1} …, given
# all that comes before y. The words before y are the same for all candidates, and cancel.
#
# Items: D27, D28

# %%
def fill(template, x, y):
    """The template with x and y in their places: all are lists of tokens, "x" and "y" are marks."""
    parts = {"x": x, "y": y}
    return [token for part in template for token in parts.get(part, [part])]


template, x, ys = [3, "x", 0, "y", 6, 1], [5, 2], [[2], [4, 4], [1]]    # words are numbers here
before_y = fill(template[:3], x, [])
score = score_candidates(tiny, before_y, [fill(template[3:], x, y) for y in ys])
whole = [sum(logprob_by_hand(tiny, [3], fill(template, x, y)[1:])) for y in ys]
lesson.check("y in the middle: differences of log P(whole text)", score - score[0],
             [one - whole[0] for one in whole], atol=1e-12, source="derived above")

# %% [markdown]
# ## 2. What is "it"?
# *The cat did not fit into the hat because it was too big.* (Course D's example.) If the word is
# *big*, "it" is the cat; if it is *small*, "it" is the hat. To find out what a pronoun means is the
# task of *coreference resolution*. A language model can do it without training for it. Write the
# sentence once with each candidate in place of the pronoun, and take the more probable one (course
# D, "FINE-TUNING LLM"; Trinh and Le 2018):
#
#     it = argmax_c P(the sentence with c in place of "it")
#
# A grammar writes our training text, and it never uses "it". Things do not fit into boxes, or get
# lost in them, and either of the two can be named first. So the position alone, the adjective alone
# or the noun alone does not give the answer: "the cat was too big" and "the cat was too small" are
# equally frequent. One in five pairs of thing and box never occurs in training; cat and hat is such
# a pair.

# %%
THINGS = "trophy robot statue piano lamp kettle guitar globe puppet cat".split()
BOXES = "suitcase box bag drawer crate basket cupboard car trunk hat".split()
FITTING = Grammar({
    "text": "The <scene>",
    "scene": ["{thing=THING} <stays>", "{box=BOX} <takes>"],
    "stays": ["did not fit into the {box=BOX} because the <tight>",
              "got lost in the {box=BOX} because the <loose>"],
    "takes": ["could not hold the {thing=THING} because the <tight>",
              "hid the {thing=THING} because the <loose>"],
    "tight": ["{thing} was too <big>.", "{box} was too <small>."],
    "loose": ["{thing} was too <small>.", "{box} was too <big>."],
    "big": ["big", "large", "wide"],
    "small": ["small", "little", "narrow"],
}, {"THING": alike(THINGS), "BOX": alike(BOXES)})


def nouns(text):
    """The first noun, the second, and the one after "because"."""
    return [word.strip() for word in tokens(text) if word.strip() in THINGS + BOXES]


def is_held_out(text):
    thing, box = sorted(nouns(text)[:2], key=BOXES.__contains__)
    return (THINGS.index(thing) - BOXES.index(box)) % 5 == 0


written = FITTING.sample_many(lesson.pick(full=3_000, quick=1_000), seed=lesson.seed)
training = [text for text in written if not is_held_out(text)]
held_out = sorted({text for text in written if is_held_out(text)})
words = [word for text in (*written, " it") for word in tokens(text)]
tokenizer = WordTokenizer.train(words, special_tokens=["<end>"], keep_spaces=True)
encode, END = tokenizer.encode, tokenizer.special_tokens["<end>"]
sentences, present = pad([[END, *encode(text), END] for text in training],
                         side="right", value=END)                   # (sentences, longest) each
print(f"  {len(training)} sentences to train on, such as\n    " + "\n    ".join(training[:3]))


def sentence_loss(model, batch):
    rows, present = (x.to(lesson.device) for x in batch)            # (B, T) each
    return causal_loss(model(rows), rows, present)


def next_sentences(generator):
    drawn = torch.randint(len(sentences), (32,), generator=generator)
    return sentences[drawn], present[drawn]


def questions(texts):
    """For each text: the sentence with "it", its two candidates, the index of the right one."""
    for text in texts:
        first, second, meant = nouns(text)
        yield (text.replace(f"because the {meant}", "because it"),
               [f"the {first}", f"the {second}"], int(meant == second))


def coreference(model):
    """The share of held-out sentences whose more probable reading is the right one."""
    hits = [resolve_pronoun(model, encode, text, pair, END).argmax().item() == right
            for text, pair, right in questions(held_out)]
    return {"accuracy": sum(hits) / len(hits)}


architecture = GPTConfig(tokenizer.vocab_size, sentences.size(1), n_layers=2, n_heads=4, d_model=32,
                         positions="rotary", norm="rms", bias=False)
reader = GPT(architecture, lesson.generator).to(lesson.device)
config = TrainingConfig(max_steps=lesson.pick(full=600, quick=50), learning_rate=2e-3,
                        weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=600, quick=50), seed=lesson.seed)
history = train(reader, next_sentences, sentence_loss, config, coreference)

SCENE = "The cat did not fit into the hat because"
text, pair, _ = next(questions([f"{SCENE} the cat was too big."]))
by_hand = [sum(logprob_by_hand(reader, [END], [*encode(f"{SCENE} {noun} was too big."), END]))
           for noun in ("the cat", "the hat")]
at_once = resolve_pronoun(reader, encode, text, pair, END)
lesson.check("log P(sentence): all candidates at once = word by word", at_once, by_hand,
             atol=1e-4, source='D: "FINE-TUNING LLM"; Trinh and Le 2018', items=("D25",))
untrained, trained = history[0]["accuracy"], history[-1]["accuracy"]
lesson.claim("pronouns: about half right before training, at least 90 % after it",
             0.4 < untrained < 0.6 and trained >= 0.9,
             f"{untrained:.0%} before, {trained:.0%} after, on {len(held_out)} sentences whose "
             "two nouns never occur together in training", full_run=True, items=("D25",))

# %% [markdown]
# At which word do the two readings differ? Subtract their log-probabilities word by word. Up to
# "because the" they are the same sentence, so the difference is 0. At the noun it shows which noun
# the model prefers before it has read the reason. In the grammar both are equally likely, so a
# difference at the noun is an error of the model. The adjective then decides. (For this reason
# Trinh and Le also score only the words after the pronoun.)

# %%
fig, axes = plotting.figure(9, 3.6)
for i, adjective in enumerate(("big", "small")):
    readings = substitute(f"{SCENE} it was too {adjective}.", pair)
    both = torch.tensor([[END, *encode(s)] for s in readings], device=lesson.device)    # (2, T)
    with torch.no_grad():
        cat, hat = token_logprobs(reader(both), both)                                   # (T − 1)
    places = torch.arange(len(cat)) + (i - 0.5) * 0.36
    axes.bar(places, (cat - hat).cpu(), 0.36, color=plotting.COLOURS[3 * i], edgecolor="black",
             hatch="//" * i, label=f"… too {adjective}")
names = [word.strip() for word in tokens(readings[0])]
names[names.index("cat", 2)], names[-2] = "“it”", "big / small"
axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
axes.axhline(0, color="black", linewidth=0.8)
axes.set(ylabel="log P with the cat\n− log P with the hat (nats)",
         title="The adjective decides what “it” is")
axes.legend(title="… because it was")
lesson.figure(fig, "coreference")

# %% [markdown]
# ## 3. A language learned from the prompt
# Few-shot prompting can do more: a task that is not in the weights can be learned from the examples
# in the prompt. To observe this, we need tasks that *cannot* be in the weights. So each text below
# is in a language made for this text alone. Eight English words are assigned to eight invented ones
# at random, anew for each text. A text uses m of the words, m = 1 … 8, and repeats them. To predict
# a translation well, a model must find it earlier in the same text.

# %%
ENGLISH = "sea sun fire tree bird stone milk road".split()
INVENTED = "lof miv ruk tas dop gin wel zan".split()
n_words, SHOTS = len(ENGLISH), 12
dictionary = WordTokenizer([f"{word}=" for word in ENGLISH] + INVENTED + ["Translate:"])
START, = dictionary.encode("Translate:")


def languages(n, generator):
    """Permutations: word i is translated by token language[i]. (n, 8)."""
    return torch.rand(n, n_words, generator=generator).argsort(1) + n_words


def lessons_in(languages, n_used, generator):
    """A text in each language (B, 8), with about n_used (B, 1) of its words: (B, 1 + 2·SHOTS).

    A text is the instruction, then word, translation, word, translation, …
    """
    vocabulary = torch.rand(len(languages), n_words, generator=generator).argsort(1)
    drawn = (torch.rand(len(languages), SHOTS, generator=generator) * n_used).long()
    asked = vocabulary.gather(1, drawn)                             # (B, SHOTS)
    answers = languages.gather(1, asked)
    texts = torch.stack([asked, answers], 2).flatten(1)             # (B, SHOTS, 2) -> (B, 2·SHOTS)
    return torch.cat([torch.full((len(texts), 1), START), texts], 1).to(lesson.device)


def next_texts(generator):
    n_used = torch.randint(1, n_words + 1, (32, 1), generator=generator)
    return lessons_in(languages(32, generator), n_used, generator)


def answer_loss(model, texts):
    """The loss of the translations only: the word asked next is random, and cannot be learned."""
    return cross_entropy(model(texts)[:, 1::2], texts[:, 2::2])


for text in lessons_in(languages(3, lesson.generator), torch.tensor([[1], [4], [8]]),
                       lesson.generator):
    print(f"  {dictionary.decode(text[:17])} …")

# %% [markdown]
# What is the best possible accuracy? Let a text use 4 of the words, and let k examples have shown D
# different ones. The word asked next is among them with probability D/4; then the answer is
# certain. If not, it is one of the 8 − D translations not yet shown, all equally likely:
#
#     best accuracy after k examples = E[ D/4 + (1 − D/4) / (8 − D) ]
#
# At k = 0, D = 0. A further example is new with probability 1 − D/4; this gives the distribution of
# D step by step. The check lists all 4^k sequences of examples instead. (This is the best on
# average. On one exam some guesses may be lucky, so a measured share can be a point higher.)

# %%
USED = 4


def best_accuracy(k):
    chances = {0: 1.0}                                              # P(D = d)
    for _ in range(k):
        old = {d: p * d / USED for d, p in chances.items()}
        new = {d + 1: p * (1 - d / USED) for d, p in chances.items()}
        chances = {d: old.get(d, 0) + new.get(d, 0) for d in range(USED + 1)}
    return sum(p * (d / USED + (1 - d / USED) / (n_words - d)) for d, p in chances.items())


def best_accuracy_by_listing(k):
    hits = []
    for shown in itertools.product(range(USED), repeat=k):
        hits += [1 if asked in shown else 1 / (n_words - len(set(shown))) for asked in range(USED)]
    return sum(hits) / len(hits)


lesson.check("the best accuracy, k = 0 … 6: step by step = all cases listed",
             [best_accuracy(k) for k in range(7)], [best_accuracy_by_listing(k) for k in range(7)],
             atol=1e-12, source="derived above")

# %% [markdown]
# Four models read the same number of texts, all with two heads per layer. Three have two layers and
# width C = 8, 16 or 32. The fourth has one layer and C = 32. So we compare widths at one depth, and
# depths at one width.
#
# Should depth matter? To translate "sea", a model must find the earlier "sea" *and* read the token
# after it. One layer can give each token information on its left neighbour. The next layer can then
# find the token whose left neighbour is "sea", and copy it. Such pairs of heads are called
# *induction heads* (Olsson et al. 2022), and they need two layers.

# %%
generator = torch.Generator().manual_seed(1_000_000 + lesson.seed)
exam = lessons_in(languages(lesson.pick(full=2000, quick=200), generator), torch.tensor([[USED]]),
                  generator)


def accuracy_by_shots(model):
    right = model(exam)[:, 1::2].argmax(-1) == exam[:, 2::2]        # (texts, SHOTS)
    return {"accuracy": right.float().mean(0).tolist()}


SHAPES = (2, 8), (2, 16), (2, 32), (1, 32)                          # (layers, width)
LARGE = (2, 32)
models, curves, labels = {}, {}, {}
for shape in SHAPES:
    config = TrainingConfig(max_steps=lesson.pick(full=1_800, quick=60), learning_rate=2e-3,
                            weight_decay=0.0, optimizer="muon",
                            evaluate_every=lesson.pick(full=1_800, quick=60), seed=lesson.seed)
    n_layers, width = shape
    architecture = GPTConfig(dictionary.vocab_size, 40, positions="rotary", norm="rms", bias=False,
                             n_layers=n_layers, n_heads=2, d_model=width)
    models[shape] = GPT(architecture, lesson.generator).to(lesson.device)
    curves[shape] = train(models[shape], next_texts, answer_loss, config, accuracy_by_shots)
    labels[shape] = f"{n_layers} layer{'s' * (n_layers > 1)}, C = {width}"

COUNTS = (0, 1, 2, 4, 8)
reached = {shape: [curve[-1]["accuracy"][k] for k in COUNTS] for shape, curve in curves.items()}
best = [best_accuracy(k) for k in COUNTS]
print(f"    {'examples':<18}" + "".join(f"{k:>8}" for k in COUNTS))
for name, row in [*zip(labels.values(), reached.values()), ("best possible", best)]:
    print(f"    {name:<18}" + "".join(f"{x:>8.0%}" for x in row), flush=True)
large = reached[LARGE]
climbs = all(fewer + 0.05 < more for fewer, more in zip(large, large[1:]))
lesson.claim("the large model improves with the examples, to within 10 points of the best possible",
             climbs and all(b - a < 0.1 for a, b in zip(large, best)), "with 0, 1, 2, 4, 8 "
             "examples: " + ", ".join(f"{x:.0%}" for x in large), full_run=True)
narrow = reached[2, 8]
lesson.claim("width: with C = 8 the model stays near ¼; C = 32 is at least 40 points better",
             narrow[-1] < 0.4 and large[-1] > narrow[-1] + 0.4, "with 8 examples: "
             + "; ".join(f"{labels[shape]} {reached[shape][-1]:.0%}" for shape in SHAPES),
             full_run=True)

# %% [markdown]
# *Width.* With C = 8 the model learns which translations occur in a text, but not which of them
# belongs to the word. So it chooses among the four that it has read, and is right in ¼ of cases.
# Wider models of the same depth go far beyond. An ability that is absent up to some size and
# present above it is called *emergent* (in course C's figure: at chance up to a size, then above).
# GPT-2's zero-shot results also grow with its size, from 124M to 1,558M parameters (its paper and
# course C have 117M to 1,542M: a wrong count).
#
# *Depth.* At C = 32, one layer is about as accurate as two (with seed 0: 89 and 88 %). So one layer
# must have another way, which we have not analysed. A comparison of a narrow model of one layer
# with a wide one of two would mix the two causes.
#
# Items: C44, C46

# %%
fig, axes = plotting.figure(7.5, 4)
axes.plot(range(SHOTS), [best_accuracy(k) for k in range(SHOTS)], color="black", linestyle=":",
          label="best possible on average")
for shape, marker in zip(SHAPES, "^soD"):
    axes.plot(range(SHOTS), curves[shape][-1]["accuracy"], marker=marker, markersize=4,
              label=labels[shape])
axes.axhline(1 / n_words, color="grey", linewidth=0.8, label="guessing at random")
axes.set(xlabel="examples in the prompt", ylabel="accuracy", ylim=(0, 1), xlim=(-0.3, 17),
         title="A new language, from its examples")
axes.legend(loc="center right")
lesson.figure(fig, "few_shot")

# %% [markdown]
# Now the question of part 1: does a page with translations in passing teach translation? Compare
# two groups of answers in the exam. In one, the same pair stands earlier in the text; in the other,
# it does not. A pair that was shown should lower the loss of its translation.

# %%
with torch.no_grad():
    costs = -models[LARGE](exam)[:, 1::2].log_softmax(-1).gather(-1, exam[:, 2::2, None])[..., 0]
answers = exam[:, 2::2]                                             # (texts, SHOTS)
earlier = torch.ones(SHOTS, SHOTS, dtype=torch.bool, device=exam.device).tril(-1)
shown = ((answers[:, :, None] == answers[:, None]) & earlier).any(-1)       # (texts, SHOTS)
with_pair, without = costs[shown].mean().item(), costs[~shown].mean().item()
lesson.claim("a pair that stands earlier in the text lowers the loss of its translation by a nat",
             without - with_pair > 1, f"{with_pair:.2f} nats if the pair was shown, {without:.2f} "
             f"if not; guessing at random costs log 8 = {math.log(8):.2f}", full_run=True,
             items=("C42",))

# %% [markdown]
# ## 4. Attention that takes a step of gradient descent
# No weight changes, but the model behaves as if it had been trained on the examples. A prompt may
# act like a gradient step on the parameters. For one kind of attention this holds exactly (von
# Oswald et al. 2023). Take regression: examples (xᵢ, yᵢ), i = 1 … N, and a linear model W. Its loss
# and one step of gradient descent with step size η are:
#
#     L(W) = 1/(2N) Σᵢ ‖W xᵢ − yᵢ‖²            ΔW = −η ∇L = −(η/N) Σᵢ (W xᵢ − yᵢ) xᵢᵀ
#
# After the step each prediction W xⱼ has changed by ΔW xⱼ. The residual W xⱼ − yⱼ changes in the
# same way if we keep W and move the target instead:
#
#     yⱼ ← yⱼ − ΔW xⱼ = yⱼ + (η/N) Σᵢ (W xᵢ − yᵢ) (xᵢ·xⱼ)
#
# This *is* attention without a softmax, eⱼ ← eⱼ + M Σᵢ vᵢ (kᵢ·qⱼ), on tokens eⱼ = (xⱼ, yⱼ). Query
# and key are x, the value is the residual, and M is the output matrix (P in the paper):
#
#     W_Q = W_K = [I 0; 0 0]        W_V = [0 0; W −I]        M = η/N · I           (their Prop. 1)
#
# The question enters as (x, −W x) and comes out with y = −(W + ΔW) x. This is minus the prediction
# of the model after the step. We build the layer from these matrices, and let autograd take the
# same steps on W. A second layer with the same weights is a second step, and so on.
#
# Items: C45

# %%
torch.set_default_dtype(torch.float64)
N, d, d_y, η = 10, 5, 2, 0.3


def randn(*shape):
    return torch.randn(*shape, generator=lesson.generator)


def linear_attention(e, W_Q, W_K, W_V, M):
    """eⱼ + M Σᵢ vᵢ(kᵢ·qⱼ) on tokens (N + 1, d + d_y). The last one is the question: no key."""
    q, k, v = e @ W_Q.T, e[:-1] @ W_K.T, e[:-1] @ W_V.T             # (N + 1, …), (N, …), (N, …)
    return e + q @ k.T @ v @ M.T


x, x_question, W = randn(N, d), randn(d), randn(d_y, d)
y = x @ randn(d_y, d).T + 0.1 * randn(N, d_y)
W_QK = torch.block_diag(torch.eye(d), torch.zeros(d_y, d_y))
W_V = torch.zeros(d + d_y, d + d_y)
W_V[d:, :d], W_V[d:, d:] = W, -torch.eye(d_y)
question = torch.cat([x_question, -W @ x_question])                 # (d + d_y)
e = torch.cat([torch.cat([x, y], 1), question[None]])               # (N + 1, d + d_y)

descended = W.clone().requires_grad_()
for step in range(1, 6):
    e = linear_attention(e, W_QK, W_QK, W_V, η / N * torch.eye(d + d_y))
    (slope,) = torch.autograd.grad(((x @ descended.T - y) ** 2).sum() / (2 * N), descended)
    descended = (descended - η * slope).detach().requires_grad_()
    if step in (1, 5):
        lesson.check(f"linear attention, layers: {step} = gradient descent, steps: {step}",
                     -e[-1, d:], descended @ x_question, atol=1e-10,
                     source="von Oswald et al. 2023, Prop. 1")

# %% [markdown]
# Attention *can* do this. Does training *find* it? First, what is the best step? Let every task
# have a new w ~ N(0, I) and x ~ N(0, I), with y = w·x, and start from W = 0. With S = Σᵢ xᵢxᵢᵀ, one
# step predicts ŷ = η wᵀ(S/N) x. Its error is y − ŷ = wᵀ(I − ηS/N) x. The mean of its square over w
# and x is the sum of the squared entries of the matrix I − ηS/N, which is symmetric:
#
#     E(ŷ − y)² = E tr (I − ηS/N)² = d − 2η/N · E tr S + η²/N² · E tr S²
#
# E tr S = Σᵢ E‖xᵢ‖² = N d. And tr S² = Σᵢⱼ (xᵢ·xⱼ)². There are N terms with i = j, each with mean
# E‖x‖⁴ = d(d + 2), and N(N − 1) others, each with mean d. So E tr S² = N d (N + d + 1), and
#
#     E(ŷ − y)² = d − 2ηd + η² d (N + d + 1)/N
#
# The derivative is −2d + 2ηd (N + d + 1)/N. It is 0 at η* = N/(N + d + 1), where the error is
# d − η*d = d (d + 1)/(N + d + 1). With few examples in many dimensions, the best step is small.
# (Ahn et al. 2023, Thm. 1, show that no other weights of this layer are better.) By sampling:

# %%
def regression_tasks(n, generator):
    """n tasks: tokens (n, N + 1, d + 1), the last with its y set to 0; and that y (n,)."""
    x, w = torch.randn(n, N + 1, d, generator=generator), torch.randn(n, d, 1, generator=generator)
    e = torch.cat([x, x @ w], 2)
    answer = e[:, -1, -1].clone()
    e[:, -1, -1] = 0
    return e, answer


def one_step(e):
    """ŷ of one step of size 1 from W = 0, task by task: (Σᵢ yᵢ xᵢ / N) · x."""
    return torch.einsum("bn,bnd,bd->b", e[:, :-1, -1], e[:, :-1, :-1], e[:, -1, :-1]) / N


def risk(η):
    return d - 2 * η * d + η**2 * d * (N + d + 1) / N


best_η, best_risk = N / (N + d + 1), d * (d + 1) / (N + d + 1)
e, answer = regression_tasks(400_000, lesson.generator)
unit = one_step(e)
lesson.check("η* = N/(N + d + 1) = 0.625", best_η, (unit * answer).mean() / unit.square().mean(),
             atol=0.01, source="derived above; sampling")
lesson.check("its error d(d + 1)/(N + d + 1) = 1.875", best_risk,
             (best_η * unit - answer).square().mean(), atol=0.05, source="derived above; sampling")


# %% [markdown]
# Now train: W_Q, W_K and W_V start at random, 108 free numbers, and read regression tasks. On fresh
# tasks we compare the trained layer with the constructed one, as in their fig. 2: the distance of
# the predictions, and the cosine between the sensitivities ∂ŷ/∂x.

# %%
class LinearAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(M) for M in 0.2 * randn(3, d + 1, d + 1))

    def forward(self, e):
        """The y that the layer writes at the question: (B, N + 1, d + 1) -> (B,)."""
        question, examples = e[:, -1:], e[:, :-1]
        q, k = question @ self.query.T, examples @ self.key.T       # (B, 1, d + 1), (B, N, d + 1)
        v = examples @ self.value.T                                 # (B, N, d + 1)
        return (q @ k.mT @ v)[:, 0, -1] / N                         # (B, 1, d + 1) -> (B,)


e, answer = regression_tasks(20_000, torch.Generator().manual_seed(2_000_000 + lesson.seed))
e.requires_grad_()


def sensitivity(predictions):
    return torch.autograd.grad(predictions.sum(), e)[0][:, -1, :-1]     # (B, d): ∂ŷ/∂x


constructed = best_η * one_step(e)
expected = sensitivity(constructed)


def compare(layer):
    with torch.enable_grad():
        predictions = layer(e)
        cosines = nn.functional.cosine_similarity(sensitivity(predictions), expected, dim=1)
    distance = (predictions - constructed).square().mean() / constructed.square().mean()
    return {"error": (predictions - answer).square().mean().item(),
            "cosine": cosines.mean().item(), "difference": distance.sqrt().item()}


layer = LinearAttention()
config = TrainingConfig(max_steps=lesson.pick(full=2_000, quick=200), learning_rate=1e-2,
                        weight_decay=0.0, evaluate_every=lesson.pick(full=1_000, quick=100),
                        seed=lesson.seed)


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


history = train(layer, lambda g: regression_tasks(256, g), squared_error, config, compare)
last = history[-1]

# The part that acts on y (the value's last entry): in the construction, η* times the identity.
product = (layer.value[-1, -1] * (layer.key.T @ layer.query)[:d, :d]).detach()
weights_cosine = (product.trace() / (product.norm() * d**0.5)).item()
learned_η = (product.trace() / d).item()
print(f"  error on 20,000 fresh tasks: {last['error']:.3f} (derived: {best_risk:.3f})")
lesson.claim("training finds the constructed layer: predictions within 10 %, cosines above 0.99",
             last["difference"] < 0.1 and min(last["cosine"], weights_cosine) > 0.99,
             f"predictions differ by {last['difference']:.1%}; cosine of sensitivities "
             f"{last['cosine']:.4f}, of weights and identity {weights_cosine:.4f}", full_run=True)
lesson.claim("its step size is the one derived", abs(learned_η - best_η) < 0.03,
             f"learned {learned_η:.3f}, derived {best_η:.3f}", full_run=True)

# %%
fig, (left, right) = plotting.figure(9, 3.8, columns=2, width_ratios=(1.2, 1))
grid = torch.linspace(0, 1.2, 60)
left.plot(grid, risk(grid), label="one step, derived")
left.plot([learned_η], [last["error"]], "*", color=plotting.COLOURS[1], markersize=14,
          label="trained attention")
left.set(xlabel="step size η", ylabel="mean squared error", ylim=(0, None),
         title="Training finds the best step")
left.legend()
plotting.heatmap(right, product, [f"x{i}" for i in "₁₂₃₄₅"], [f"x{i}" for i in "₁₂₃₄₅"],
                 label="weight", high=0.7)
right.set(title=f"Learned: v·W_KᵀW_Q ≈ {learned_η:.3f}·I")
lesson.figure(fig, "linear_attention")
torch.set_default_dtype(torch.float32)

# %% [markdown]
# Real transformers have a softmax, many layers and text; whether they take gradient steps there is
# an open question. Here, attention can learn by gradient descent, and training finds exactly that.
#
# ## 5. Prompts that are not words
# The embeddings e(P₀), e(P₁), … of a prompt made by hand are a *hard prompt*: each is a row of the
# embedding matrix. A *soft prompt* puts P other vectors of ℝ^C in front of the text. They are
# trained, and all the weights of the model are frozen. There are two ways to make them:
#
# - the vectors themselves are the parameters (Lester et al. 2021);
# - a small network h_θ computes them, and its weights θ are the parameters: h_θ(P₀), …, h_θ(P_m)
#   (course D, "PROMPT ENGINEERING"; P-tuning, Liu et al. 2021). Course D writes h(P_θ), but θ
#   belongs to the network.
#
# If the vectors are word embeddings, a soft prompt *is* a hard prompt:

# %%
class NetworkPrompt(nn.Module):
    """A frozen GPT after vectors h_θ(e(P₀)) …, with h_θ a network of one hidden layer."""

    def __init__(self, model, tokens, generator):
        super().__init__()
        C = model.config.d_model
        self.model = model.requires_grad_(False)
        self.words = model.token_embedding.weight[tokens].detach()      # (P, C): constants
        self.network = nn.Sequential(nn.Linear(C, 2 * C), nn.Tanh(), nn.Linear(2 * C, C))
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=C**-0.5, generator=generator)
        self.network.to(self.words)

    def forward(self, text):
        vectors = self.network(self.words)                              # (P, C)
        hidden = self.model.hidden(text, None, vectors, None)           # (B, P + T, C)
        return self.model.unembed(hidden[:, -text.size(1):])            # (B, T, V)


small = GPT(GPTConfig(vocab_size=11, context_length=12, n_layers=2, n_heads=2, d_model=8)).double()
for parameter in small.parameters():
    nn.init.normal_(parameter, std=0.7, generator=lesson.generator)
prompt, text = torch.tensor([4, 9, 1]), torch.randint(11, (2, 6), generator=lesson.generator)
soft = SoftPrompt.from_words(small, prompt)
with torch.no_grad():
    hard = small(torch.cat([prompt.expand(2, -1), text], 1))[:, 3:]     # (2, 9, V) -> (2, 6, V)
    lesson.check("a soft prompt of word embeddings = the hard prompt", soft(text), hard, atol=1e-12,
                 source='D: "PROMPT ENGINEERING"; Lester et al. 2021', items=("D29",))



def slopes(model, parameter, h=1e-5):
    """∂(loss)/∂(each entry of a parameter), by central differences."""
    measured, entries = [], parameter.data.view(-1)
    with torch.no_grad():
        for i in range(len(entries)):
            ends = []
            for step in (h, -h):
                entries[i] += step
                ends.append(causal_loss(model(text), text).item())
                entries[i] -= step
            measured.append((ends[0] - ends[1]) / (2 * h))
    return torch.tensor(measured, dtype=torch.float64).view_as(parameter)


for prompted, part, source in ((soft, "embeddings", "Lester et al. 2021"),
                               (NetworkPrompt(small, prompt, lesson.generator), "network",
                                'D: "PROMPT ENGINEERING"; Liu et al. 2021')):
    causal_loss(prompted(text), text).backward()
    trained = {name: p for name, p in prompted.named_parameters() if p.grad is not None}
    lesson.check(f"only the {part} can learn", sorted({name.split(".")[0] for name in trained}),
                 [part], atol=0, source=source)
    last = list(trained.values())[-1]
    lesson.check("   and its gradient is the slope of the loss", last.grad, slopes(prompted, last),
                 atol=1e-8, source="finite differences", items=("D30",))

# %% [markdown]
# Now the large model of part 3 gets *one* language for good. Four ways, for each of several
# languages:
#
# - **hard prompt**: k of the eight pairs in front, in random order: 1 + 2k tokens. Another word can
#   only be guessed among 8 − k. On average over languages the best accuracy is therefore
#   (k + (8 − k)/(8 − k))/8 = (k + 1)/8 for k < 8 (on 60 prompts, it can be a point higher by luck);
# - **soft prompt**: P = 1, 2, 4 or 8 vectors, which start as the first P tokens of the hard prompt;
# - **soft prompt by a network**: 8 vectors h_θ(P₀) … h_θ(P₇) from the same tokens;
# - **fine-tuning**: all the weights of the model, and no prompt.
#
# The same eight pairs serve for training and for the exam: a dictionary does not generalise.

# %%
frozen = models[LARGE]
before = {name: p.detach().clone() for name, p in frozen.named_parameters()}
asked = torch.arange(n_words, device=lesson.device)[:, None]            # (8, 1): each word alone
some_languages = languages(lesson.pick(full=6, quick=1), lesson.generator).to(lesson.device)


def accuracy(model, language, front=None):
    """Over the eight words, after the tokens `front` if given."""
    text = asked if front is None else torch.cat([front.expand(n_words, -1), asked], 1)
    with torch.no_grad():
        return (model(text)[:, -1].argmax(-1) == language).float().mean().item()


def learn(model, language, learning_rate):
    """Train all that requires a gradient; the accuracy in this language after it."""
    config = TrainingConfig(max_steps=lesson.pick(full=200, quick=20), learning_rate=learning_rate,
                            weight_decay=0.0, evaluate_every=1000, seed=lesson.seed)

    def loss(model, language):
        return cross_entropy(model(asked)[:, -1], language)

    train(model, lambda generator: language, loss, config, progress=False)
    return accuracy(model, language)


hard = {k: [] for k in range(n_words + 1)}
soft = {P: [] for P in (1, 2, 4, 8)}
from_network, tuned = [], []
for language in some_languages:
    tuned.append(learn(copy.deepcopy(frozen).requires_grad_(True), language, 2e-3))
    for _ in range(10):
        order = torch.randperm(n_words, generator=lesson.generator).to(lesson.device)
        pairs = torch.stack([order, language[order]], 1).flatten()      # (8, 2) -> (16)
        words_in_front = torch.cat([torch.tensor([START], device=lesson.device), pairs])    # (17)
        for k in hard:
            hard[k].append(accuracy(frozen, language, words_in_front[:1 + 2 * k]))
    for P in soft:
        soft[P].append(learn(SoftPrompt.from_words(frozen, words_in_front[:P]), language, 0.1))
    prompt = NetworkPrompt(frozen, words_in_front[:8], lesson.generator)
    from_network.append(learn(prompt, language, 1e-2))
n_theta = count_parameters(prompt.network)
hard, soft = ({k: mean(values) for k, values in results.items()} for results in (hard, soft))
from_network, tuned = mean(from_network), mean(tuned)

moved = max((p - before[name]).abs().max().item() for name, p in frozen.named_parameters())
lesson.check("after all that the model is the same, bit for bit", moved, 0.0, atol=0,
             source="Lester et al. 2021: frozen")
print("  hard, by tokens: " + ", ".join(f"{1 + 2 * k}: {x:.0%}" for k, x in hard.items()))
print("  soft, by vectors: " + ", ".join(f"{P}: {x:.0%}" for P, x in soft.items()))
print(f"  soft, 8 vectors from a network of {n_theta:,} weights: {from_network:.0%}")
print(f"  fine-tuning all {count_parameters(frozen):,} weights: {tuned:.0%}")
lesson.claim("a soft prompt of 8 vectors: at least 90 % of fine-tuning's accuracy, model frozen",
             soft[8] >= 0.9 * tuned, f"{soft[8]:.0%} with {8 * frozen.config.d_model} numbers; "
             f"fine-tuning {tuned:.0%} with {count_parameters(frozen):,}", full_run=True)
lesson.claim("8 vectors from a small network: at least 90 % of fine-tuning's accuracy too",
             from_network >= 0.9 * tuned, f"{from_network:.0%} with {n_theta:,} weights θ",
             full_run=True, items=("D30",))
lesson.claim("8 vectors: 20 points or more above a prompt of 9 tokens", soft[8] > hard[4] + 0.2,
             f"hard: {hard[4]:.0%} with 9 tokens, {hard[8]:.0%} with all 17", full_run=True)

# %%
fig, axes = plotting.figure(7.5, 4)
axes.axhline(tuned, color="black", linestyle=":",
             label=f"fine-tuning, {count_parameters(frozen):,} weights")
axes.plot(soft.keys(), soft.values(), marker="o", label="soft prompt, model frozen")
axes.plot([8], [from_network], "*", markersize=12, color=plotting.COLOURS[2],
          label="soft prompt by a network, model frozen")
lengths = [1 + 2 * k for k in hard]
axes.plot(lengths, hard.values(), marker="s", color=plotting.COLOURS[1],
          label="hard prompt, model frozen: 1 + 2k tokens")
axes.plot(lengths, [min((k + 1) / n_words, 1) for k in hard], color="grey", linewidth=1,
          label="best possible on average with those tokens")
axes.set(xlabel="positions that the prompt takes (vectors or tokens)", ylabel="accuracy",
         ylim=(0, 1.05), title="One language: hard prompts against soft prompts")
axes.legend(loc="lower right")
lesson.figure(fig, "soft_prompt")

# %% [markdown]
# Why do soft prompts need fewer positions? One language is one of 8! permutations: log₂ 8! = 15.3
# bits. A hard prompt needs 15 tokens for it (the eighth word follows from the other seven), and
# texts with so many words are rare in training. A vector of 32 real numbers has room for this.

# %%
lesson.end()
