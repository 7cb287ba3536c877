"""Lesson 17: the reward model: a number for each answer, learned from comparisons.

You will see    the Bradley–Terry model derived step by step; its loss, with slope and curvature;
                rankings as pairs; what comparisons cannot determine; a GPT that recovers a hidden
                reward from noisy comparisons, compared with the best result that is possible.
Source          course A, "Human in the loop" and "Reward Model (RM)"; course B, "Modelo de
                recompensa para los LLMs" to "Función de costo del modelo de recompensa"; course C,
                "ChatGPT: Reward Modeling"; course D, "FUNZIONI DI REWARD"; Bradley and Terry 1952;
                Stiennon et al. 2020, §3.4; Ouyang et al. 2022, §3.5 and eq. 1.
Expect          1.5 minutes on one core (11 s with --quick); with 12,800 comparisons the model
                predicts 82 to 83 % of fresh labels (at most 83 to 84 % are possible), and r
                correlates with the hidden R by 0.97; with 50 it predicts 64 to 74 %, but its loss
                on fresh labels is at least 3.8 times log 2 (seven seeds).
Not here        what a policy does with the reward (lesson 18), and the errors of the reward that a
                policy exploits (lesson 20).

Shapes: B pairs, N replies, T time, K ranked answers.
"""
# %%
import copy
import itertools
import math

import torch
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.alignment.exact import Table, answer_logprobs, list_answers
from minigpt.alignment.preferences import (
    Pairs,
    accuracy_ceiling,
    compare,
    loss_floor,
    preference_probability,
)
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.alignment.reward_model import (
    RewardModel,
    ValueModel,
    best_of_k_loss,
    bradley_terry_loss,
    reward_accuracy,
    reward_loss,
)
from minigpt.alignment.rollouts import roll_out
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.training.loop import TrainingConfig, train
from minigpt.worlds import replies

lesson = Lesson("17_reward_model", threads=1)
device = torch.device(lesson.device)

# %% [markdown]
# ## 1. Why a reward model, and why from comparisons
# A language model is trained on text from the web. It learns to write text that is similar, and
# such text can be false ("hallucination"). So course D adds a component that judges an output,
# given the input. Three corrections to D's paragraph: the model is trained on the *mass* of text
# on the web ("mole", printed as "morte", death); the aim is to avoid *false* statements, not "true
# or false" ones; and the component does not classify an output as good or not good: it gives a real
# number r(x, y), higher for better outputs, as D writes later. (D prints the reward with the letter
# of the expectation, 𝔼(s, a); it is r(s, a), and r_ψ(s, a) if a network with parameters ψ learns
# it.)
#
# How can r be learned? People cannot give an answer a number on which everybody agrees. But people
# are good at saying which of two answers is better (course B). This was done for summaries before
# InstructGPT (course A cites Stiennon et al. 2020). Correction to A's "initially": the first work
# of this kind was on Atari games and simulated robots (Christiano et al. 2017), and the first on
# language was Ziegler et al. 2019.
#
# Items: A15, B18, D31

# %% [markdown]
# ## 2. The Bradley–Terry model
# Bradley and Terry (1952) give every item a strength e^R > 0. Of two items, each is preferred with
# a probability in proportion to its strength. With A and B, the rewards of the items a and b:
#
#     P(a ≻ b) = e^A / (e^A + e^B)
#              = e^A / ( e^A · (e^A + e^B)/e^A )             multiply and divide by e^A
#              = 1 / ( (e^A + e^B)/e^A )                     cancel e^A
#              = 1 / ( 1 + e^B/e^A )                         divide each term by e^A
#              = 1 / ( 1 + e^(B−A) )                         e^B/e^A = e^(B−A)
#              = σ(A − B)                                    definition of σ
#
# Example: if the strengths are 3 and 1, a is preferred in 3 of 4 comparisons.

# %%
A, B = torch.randn(2, 50, dtype=torch.float64, generator=lesson.generator) * 3
a, b = A.exp(), B.exp()
steps = torch.stack([a / (a + b), a / (a * ((a + b) / a)), 1 / ((a + b) / a), 1 / (1 + b / a),
                     1 / (1 + (B - A).exp())])                          # (5, 50)
lesson.check("e^A/(e^A + e^B) = … = σ(A − B), five steps",
             preference_probability(A, B).expand(5, -1), steps, atol=1e-12,
             source="B: Función de costo del modelo de recompensa", items=("B22",))
odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]], dtype=torch.float64).log()
lesson.check("strengths 3:1, 1:1, 1:9: preferred in 3/4, 1/2, 1/10",
             preference_probability(*odds.T), torch.tensor([3 / 4, 1 / 2, 1 / 10]), atol=1e-7,
             source="B: Modelo Bradley-Terry", items=("B21",))

# %% [markdown]
# ## 3. The loss
# We choose r so that the observed labels are as probable as possible. So ∏ P(y⁺ ≻ y⁻) should be
# large, and the mean of its −log should be small:
#
#     L = −E log σ( r(x, y⁺) − r(x, y⁻) )
#
# Write Δ = r(x, y⁺) − r(x, y⁻) and ℓ(Δ) = −log σ(Δ). Since σ′ = σ(1 − σ) and 1 − σ(Δ) = σ(−Δ),
#
#     ℓ′(Δ) = −σ(Δ)σ(−Δ)/σ(Δ) = −σ(−Δ)         σ(−Δ): the probability of the opposite label under r
#     ℓ″(Δ) = σ(Δ)σ(−Δ) > 0                     convex: no local minimum other than the global one
#
# So a pair that r already explains well has a small slope. We check both by finite differences.
#
# Errata. In course A's figure of the pipeline the loss is log σ(r_j − r_k), without the minus sign;
# its minimum would be a model that is always wrong. A's own formula, under "Reward Model (RM)", has
# the minus. Course D writes L as 𝓛(x, d⁺, d⁻) ∼ 𝓝[…]; it is the expectation E over the data set.

# %%
gaps = torch.linspace(-6, 6, 49, dtype=torch.float64)
h = 1e-4
zero = torch.zeros((), dtype=torch.float64)
below, at, above = (torch.stack([bradley_terry_loss(gap + step, zero) for gap in gaps])
                    for step in (-h, 0.0, h))                           # (49,) each
by_hand = [math.log(1 + math.exp(-gap)) for gap in gaps.tolist()]
lesson.check("ℓ(Δ) = −log σ(Δ)", at, by_hand, atol=1e-12, source="D: FUNZIONI DI REWARD",
             items=("D48", "B23"))
lesson.check("ℓ′(Δ) = −σ(−Δ)", (above - below) / (2 * h), -1 / (1 + gaps.exp()), atol=1e-7,
             source="derived above")
lesson.check("ℓ″(Δ) = σ(Δ)σ(−Δ) > 0", (above - 2 * at + below) / h**2,
             gaps.exp() / (1 + gaps.exp()) ** 2, atol=1e-6, source="derived above")
extremes = torch.stack([bradley_terry_loss(zero + gap, zero) for gap in (0.0, -800.0)])
lesson.check("Δ = 0: log 2; Δ = −800: 800, not ∞", extremes,
             torch.tensor([0.6931471805599453, 800.0]), atol=1e-6, source="derived above")

# %% [markdown]
# Course A writes the loss with an index i: y_i is the preferred of two answers y₀, y₁, so
#
#     L = −E log σ( r(x, y_i) − r(x, y_{1−i}) )
#
# Since σ(r₀ − r₁) = 1 − σ(r₁ − r₀), this is logistic regression on r₁ − r₀ with the label i.
#
# If a person chooses the best of K answers, the softmax takes the place of σ (Luce 1959; Ziegler et
# al. 2019, eq. 1, with K = 4). K = 2 gives the loss of a pair.
#
# If a person **ranks** K answers from best to worst (course C; 4 to 9 answers for InstructGPT),
# every two of them are a pair, K(K−1)/2 in all. The loss of the ranking is the mean over its pairs
# (Ouyang et al. 2022, eq. 1). They keep the pairs of a ranking together in one batch, because pairs
# that share answers are not independent, and their model overfitted when the pairs were shuffled.

# %%
r0, r1 = torch.randn(2, 40, dtype=torch.float64, generator=lesson.generator) * 2
i = torch.randint(2, (40,), generator=lesson.generator)
with_index = bradley_terry_loss(torch.where(i == 1, r1, r0), torch.where(i == 1, r0, r1))
logistic = F.binary_cross_entropy_with_logits(r1 - r0, i.double())
lesson.check("−log σ(r_i − r_{1−i}), i ∈ {0, 1} = logistic regression", with_index, logistic,
             atol=1e-12, source="A: Reward Model (RM)", items=("A20",))
lesson.check("best of K = 2 is the pair", best_of_k_loss(torch.stack([r0, r1], 1), i), logistic,
             atol=1e-12, source="Luce 1959; Ziegler et al. 2019, eq. 1")


def pairs_of(ranking):
    """The K(K−1)/2 pairs of a ranking, best answer first: two lists (better, worse)."""
    return zip(*itertools.combinations(ranking, 2))


K = 4
scores = torch.randn(K, dtype=torch.float64, generator=lesson.generator)        # r of each answer
ranking = torch.randperm(K, generator=lesson.generator).tolist()                # best to worst
better, worse = pairs_of(ranking)
one_by_one = [math.log(1 + math.exp(scores[ranking[n]] - scores[ranking[m]]))
              for m in range(K) for n in range(m + 1, K)]               # answer m ranks above n
lesson.check("a ranking of 4 answers: 6 pairs, and the mean of their losses",
             [len(better), bradley_terry_loss(scores[list(better)], scores[list(worse)]).item()],
             [K * (K - 1) / 2, sum(one_by_one) / len(one_by_one)], atol=1e-12,
             source="C: ChatGPT: Reward Modeling; Ouyang et al. 2022, eq. 1", items=("C55",))

# %% [markdown]
# ## 4. A reward model reads text
# A reward model is a language model with one linear output in place of the word logits. It gives
# one number for an answer, read at the answer's last token, the only position that has seen the
# whole answer. Several answers to the same prompt give several numbers. (Course C shows such data:
# the same prompt with several completions, and a reward at the end of each.) Course A calls the
# reward model linear, and a regression. Correction: it is a transformer; only its head is linear,
# and it is trained on comparisons, not on given scores.
#
# Course B's three comparisons, as they stand, letter by letter. (In one of B's tables a formula has
# slipped into the cell of the answer "4"; the next table has the 4.) The head starts at 0, so at
# first both answers have the reward 0, and the loss is log 2. Then we train on the three pairs.
#
# Items: A19, C56, D47

# %%
gravity = ("Gravity is what pulls things toward each other. It's why you stay on the ground and "
           "planets orbit the sun.")
comparisons_of_b = [                                                    # question, chosen, rejected
    ("Where is Shanghai?", "Shanghai is a city in China", "Shanghai does not exist"),
    ("Explain gravity like I'm 5", gravity, "Gravity is a famous restaurant"),
    ("What is 2+2?", "4", "2+2 is a very complicated math problem..."),
]


def encode_answers(questions, texts):
    """Question, space and answer as bytes: tokens (B, T), and the answers' mask (B, T)."""
    tokens, real = pad([list(f"{q} {y}".encode()) for q, y in zip(questions, texts)], side="right",
                       value=0)
    starts = torch.tensor([len(q.encode()) + 1 for q in questions])[:, None]            # (B, 1)
    return tokens, real & (torch.arange(tokens.size(1)) >= starts)


questions, chosen, rejected = zip(*comparisons_of_b)
three = Pairs(*encode_answers(questions, chosen), *encode_answers(questions, rejected))
reader = RewardModel(ValueModel(GPT(GPTConfig(256, 160, n_layers=1, n_heads=2, d_model=16),
                                    lesson.generator)))
losses, optimizer = [], torch.optim.Adam(reader.parameters(), lr=0.003)
for _ in range(30):
    loss = reward_loss(reader, three)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
lesson.check("Shanghai, gravity, 2+2: before training the loss is log 2", losses[0],
             0.6931471805599453, atol=1e-6, source="B: Modelo de recompensa por comparación")
with torch.no_grad():
    r_chosen = reader(three.chosen, three.chosen_mask)                  # (3,)
    r_rejected = reader(three.rejected, three.rejected_mask)            # (3,)
for question, good, bad in zip(questions, r_chosen.tolist(), r_rejected.tolist()):
    print(f"    {question:<28} r(chosen) {good:5.2f}, r(rejected) {bad:5.2f}, "
          f"P(chosen ≻ rejected) {1 / (1 + math.exp(bad - good)):.2f}")
lesson.claim("trained on the three pairs, r is higher for the chosen answer of each",
             bool((r_chosen > r_rejected).all()) and losses[-1] < 0.2,
             f"loss {losses[0]:.3f} → {losses[-1]:.3f}", items=("B19", "B20", "D37"))

# %% [markdown]
# The three pairs are explained equally well: one direction of the model's output separates the
# chosen answers from the rejected ones. But three pairs do not teach what a good answer is. Section
# 6 measures how many are needed. First, what no number of comparisons can determine.
#
# ## 5. What comparisons cannot determine
# Only differences enter the loss. Add to r any number that depends on the prompt alone:
# r(x, y) + c(x). The loss is the same, because both answers of a pair have the same prompt. So
# training does not determine c(x). Later r is used with a price β in units of reward. For this use,
# r is shifted by one number, so that its mean over reference answers is 0 (course A; Stiennon et
# al. 2020, §3.4).
#
# A small case where everything can be computed: two prompts, and for each of them 31 answers of at
# most four tokens, with three tokens to choose from. Each answer has a true reward. We use the
# exact loss, over all pairs of answers to the same prompt, with the exact probability of each
# label. We add 5 for one prompt and subtract 3 for the other, and compare the losses. Then we
# minimise the loss.

# %%
lists = [list_answers(torch.tensor([prompt]), vocab_size=3, max_length=4) for prompt in (1, 2)]
tokens, mask = (torch.cat(parts) for parts in zip(*lists))              # (62, 5)
prompt_of = torch.arange(2).repeat_interleave(31)                       # the first 31: prompt 1
truth = torch.randn(62, dtype=torch.float64, generator=lesson.generator)
wins = preference_probability(truth[:, None], truth[None, :])           # (62, 62) P(row ≻ column)
within = prompt_of[:, None] == prompt_of[None, :]                       # (62, 62) same prompt
model = RewardModel(Table(3, 5).double())                               # a free number per answer
with torch.no_grad():
    model.values.rows.normal_(generator=lesson.generator)


def exact_loss(r, admitted):
    """The mean loss over the admitted pairs, both labels of each weighted by their probability.

    r (62,), admitted (62, 62) -> scalar.
    """
    gap = r[:, None] - r[None, :]                                       # (62, 62)
    both = wins * F.logsigmoid(gap) + (1 - wins) * F.logsigmoid(-gap)
    return -both[admitted].mean()


def loss_by_loops(r, true_r):
    """The same over pairs with the same prompt, with strengths e^r and two loops: lists of 62."""
    terms = []
    for first in (0, 31):
        for a, b in itertools.product(range(first, first + 31), repeat=2):
            p = math.exp(true_r[a]) / (math.exp(true_r[a]) + math.exp(true_r[b]))
            q = math.exp(r[a]) / (math.exp(r[a]) + math.exp(r[b]))
            terms.append(-p * math.log(q) - (1 - p) * math.log(1 - q))
    return sum(terms) / len(terms)


def centred(r):
    """r minus its mean over the answers to each prompt: (62,) -> (2, 31)."""
    return r.view(2, 31) - r.view(2, 31).mean(1, keepdim=True)


with torch.no_grad():
    r = model(tokens, mask)
    shifted = r + torch.tensor([5.0, -3.0])[prompt_of]                  # r + c(x)
    lesson.check("the loss of r + c(x) = the loss of r, by two loops",
                 exact_loss(shifted, within), loss_by_loops(r.tolist(), truth.tolist()),
                 atol=1e-12, source="Rafailov et al. 2023, lemma 1")
    start = r.view(2, 31).mean(1)                                       # (2,)
    print(f"    pairs of answers to different prompts would show it: "
          f"{exact_loss(r, ~within):.3f} → {exact_loss(shifted, ~within):.3f} nats")
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12,
                              tolerance_change=1e-16, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    value = exact_loss(model(tokens, mask), within)
    value.backward()
    return value


optimizer.step(closure)
with torch.no_grad():
    r = model(tokens, mask)
    lesson.check("the fit is R, except for a constant per prompt", centred(r), centred(truth),
                 atol=1e-5, source="derived above")
    lesson.check("the mean of r for each prompt is that of the start", r.view(2, 31).mean(1), start,
                 atol=1e-6, source="derived above")
    entropy = loss_by_loops(truth.tolist(), truth.tolist())             # of the labels
    ends = torch.stack([exact_loss(r, within), torch.tensor(loss_floor(wins[within]))])
    lesson.check("the loss ends at the entropy of the labels, not at 0", ends,
                 torch.tensor([entropy, entropy]), atol=1e-6, source="derived above")

# %% [markdown]
# ## 6. A hidden reward, seen through comparisons
# Now a language model. A customer says *please* or *now*, and a waiter replies with at most five
# of six words. A rule R says how good a reply is (`minigpt/worlds/replies.py`). The reward model
# never sees R. It sees pairs of replies and labels.
#
# The data are made as in the first two steps of course A ("Collect human feedback", "Train reward
# model"): take a prompt, sample two answers, let a judge say which is better, and train r with the
# loss of section 3. There, a person judges summaries of Reddit posts, written by various policies.
# Here, one GPT that has learned the usual replies (π_ref) writes both, and the judge follows the
# Bradley–Terry model with the rewards R: a label is nearly certain if the two R differ by much, and
# nearly random if they differ by little.
#
# No model can agree with noisy labels every time. A judge who knows R agrees with a label of
# probability p in max(p, 1 − p) of the cases. Its mean is the *ceiling*. There are 3,906 replies to
# each customer, so the ceiling is a finite sum over 3,906² pairs for each.

# %%
reference = train_reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in all_replies())       # (2, 3906, T)
with torch.no_grad():
    usual = torch.stack([answer_logprobs(reference, t, m) for t, m in zip(everything, belongs)])
    rule = torch.stack([replies.reward(t, m) for t, m in zip(everything, belongs)])
lesson.check("the probabilities of all replies to a customer add up to 1", usual.exp().sum(1),
             torch.ones(2), atol=1e-4, source="by listing")             # usual, rule: (2, 3906)


def exact_over_pairs(values):
    """E[value of a pair] for two replies of π_ref to one customer: (2, 3906, 3906) -> a number."""
    weight = usual.exp()                                                # (2, 3906)
    total = (weight[:, None] @ values @ weight[:, :, None]).mean()
    return (total / weight.sum(1).square().mean()).item()


chance = preference_probability(rule[:, :, None], rule[:, None, :])     # (2, 3906, 3906)
ceiling = exact_over_pairs(torch.maximum(chance, 1 - chance))
floor = exact_over_pairs(torch.special.entr(chance) + torch.special.entr(1 - chance))
print(f"    the best possible agreement with the labels is {ceiling:.3f}; the lowest possible loss "
      f"is {floor:.3f} nats\n    (without any knowledge: 0.5 and log 2 = {math.log(2):.3f})")


def comparisons(n, generator, flip=0.0):
    """n labelled pairs, and the probability of each label; a share `flip` has the wrong label."""
    prompts = replies.customers(n, generator).repeat_interleave(2, 0).to(device)        # (2n, 1)
    answers = roll_out(reference, prompts, replies.LONGEST, replies.STOP, generator=generator)
    rewards = replies.reward(answers.tokens, answers.mask)              # (2n,)
    probability = preference_probability(rewards[0::2], rewards[1::2], flip)            # (n,)
    return compare(answers, rewards, generator, flip), probability


fresh, fresh_chance = comparisons(lesson.pick(20_000, 4_000),
                                  torch.Generator().manual_seed(1000 + lesson.seed))
spread = (torch.maximum(fresh_chance, 1 - fresh_chance).std() / len(fresh) ** 0.5).item()
lesson.check(f"ceiling: {len(fresh):,} sampled pairs = listing, within 5 standard errors",
             accuracy_ceiling(fresh_chance), ceiling, atol=5 * spread, source="by listing")

# %% [markdown]
# The reward model starts as a copy of π_ref, with a linear head. We train one model for each number
# of comparisons, with the same number of steps. Each is then normalised to mean 0 on usual replies.

# %%
SIZES = lesson.pick((50, 200, 800, 3_200, 12_800), (50, 800))
STEPS = lesson.pick(400, 60)
pool, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed))
usual_answers = (torch.cat([fresh.chosen, fresh.rejected]),
                 torch.cat([fresh.chosen_mask, fresh.rejected_mask]))   # replies of π_ref


def learn_from(pairs):
    """A reward model trained on these pairs."""
    model = RewardModel(ValueModel(copy.deepcopy(reference).requires_grad_(True)))
    config = TrainingConfig(max_steps=STEPS, learning_rate=4e-3, weight_decay=0.1, seed=lesson.seed,
                            optimizer="muon", evaluate_every=STEPS)

    def next_batch(generator):
        return pairs[torch.randint(len(pairs), (128,), generator=generator).to(device)]

    train(model, next_batch, reward_loss, config)
    model.normalise(*usual_answers)
    return model.requires_grad_(False)


truth = rule - (usual.exp() * rule).sum(1, keepdim=True)                # R, mean 0 per customer
weight = usual.exp() / usual.exp().sum()                                # (2, 3906)


def correlation(model):
    """The correlation of r with R over all replies, weighted by π_ref, and r.

    Each customer's mean is subtracted from r first, because the loss does not determine it.
    """
    r = torch.stack([model(t, m) for t, m in zip(everything, belongs)])
    r = r - (usual.exp() * r).sum(1, keepdim=True) / usual.exp().sum(1, keepdim=True)
    covariance = (weight * r * truth).sum()
    return (covariance / ((weight * r * r).sum() * (weight * truth * truth).sum()).sqrt()).item(), r


results = {}
for size in SIZES:
    model = learn_from(pool[:size])
    agreement, held_out = reward_accuracy(model, fresh), reward_loss(model, fresh).item()
    own = reward_loss(model, pool[:size]).item()
    corr, r = correlation(model)
    results[size] = (agreement, corr, held_out, own, r)
    print(f"    {size:6,} comparisons: agreement with fresh labels {agreement:.3f} (ceiling "
          f"{ceiling:.3f}), correlation with R {corr:.3f},\n{'':24}loss {own:.3f} on its own pairs,"
          f" {held_out:.3f} on fresh pairs (lowest possible {floor:.3f})")
mean_reward = math.fsum(model(*usual_answers).tolist()) / len(usual_answers[0])
lesson.check("after normalisation the mean of r over usual replies is 0", mean_reward, 0.0,
             atol=1e-4, source="A: Reward Model (RM); Stiennon et al. 2020, §3.4", items=("A21",))

# %%
sizes = list(results)
fig, axes = plotting.figure(13, 4, columns=3)
axes[0].axhline(ceiling, color="black", linestyle=":", label=f"ceiling, {ceiling:.3f}")
axes[0].plot(sizes, [results[size][0] for size in sizes], marker="o", label="reward model")
axes[0].axhline(0.5, color="grey", linestyle="-", linewidth=0.8, label="guessing, 0.5")
axes[0].set(xscale="log", xlabel="comparisons used for training",
            ylabel="share of fresh labels predicted", title="Agreement with fresh labels")
axes[0].legend(loc="center right")
axes[1].plot(sizes, [results[size][1] for size in sizes], marker="o")
axes[1].set(xscale="log", xlabel="comparisons used for training",
            ylabel="correlation with the true R", ylim=(0, 1.02))
axes[1].set_title("Agreement with the hidden reward")
for panel in axes[:2]:
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.minorticks_off()
learned, hidden, how_usual = (values.flatten().cpu()
                              for values in (results[sizes[-1]][4], truth, weight))
common = how_usual > 1e-4                                               # replies seen often enough
axes[2].scatter(hidden[common], learned[common], alpha=0.5,
                s=(3e3 * how_usual[common]).clamp(4, 200))
span = [hidden[common].min(), hidden[common].max()]
axes[2].plot(span, span, color="black", linestyle=":", label="r = R")
axes[2].set(xlabel="true R (mean 0)", ylabel="learned r (mean 0)",
            title=f"{sizes[-1]:,} comparisons (area: probability)")
axes[2].legend(loc="upper left")
lesson.figure(fig, "recovery")

# %% [markdown]
# What to see:
#
# - **Few comparisons are memorised.** With 50, the loss on the training pairs is as low as it can
#   be. (It is not 0: two equal replies cost log 2, and so does a pair that came twice with opposite
#   labels.) On fresh pairs the loss is far above log 2, although more than half of the labels are
#   predicted. The wrong predictions have large margins, and the loss counts the size of a margin.
# - **Many comparisons recover R.** The agreement comes close to the ceiling, the two losses come
#   close to each other, and r is close to R.
# - **The scale of r depends on the labels.** If one label in ten is wrong, every preference looks
#   less certain. A model that does not know about wrong labels then learns smaller differences.
#   Lesson 18's β is measured in this scale.

# %%
few, many = results[sizes[0]], results[sizes[-1]]
lesson.claim("more comparisons, more agreement, up to the ceiling",
             many[0] > ceiling - 0.02 and many[0] > few[0] + 0.03,
             f"{', '.join(f'{size:,}: {results[size][0]:.3f}' for size in sizes)}; "
             f"ceiling {ceiling:.3f}", full_run=True, items=("A16", "A17"))
lesson.claim("the hidden reward is recovered, except for a constant per customer",
             many[1] > 0.95 and many[1] > few[1],
             "correlation with R " + ", ".join(f"{size:,}: {results[size][1]:.3f}"
                                               for size in sizes), full_run=True)
chosen, rejected = pool[:sizes[0]].chosen, pool[:sizes[0]].rejected     # (50, T) each


def equal(a, b):
    """Which rows of a are which rows of b: (M, T), (N, T) -> (M, N)."""
    return (a[:, None] == b[None, :]).all(-1)


# How often the two replies of a pair came with this label, and how often with either: (50,) each.
this_way = (equal(chosen, chosen) & equal(rejected, rejected)).sum(1)
either_way = this_way + (equal(chosen, rejected) & equal(rejected, chosen)).sum(1)
lowest = (either_way / this_way).log().mean().item()                    # nats, for any r
lesson.claim("50 comparisons are memorised: on fresh pairs r predicts more than half of the "
             "labels, at a loss above twice log 2",
             few[3] < lowest + 0.005 and few[0] > 0.55 and few[2] > 2 * math.log(2),
             f"loss {few[3]:.4f} on its own pairs (lowest possible {lowest:.4f}), {few[2]:.2f} on "
             f"fresh pairs (log 2 = {math.log(2):.2f}), with {few[0]:.0%} of them predicted",
             full_run=True)


def scale(r):
    """How much r grows if R grows by 1: the slope of the regression line in the third panel."""
    return ((weight * r * truth).sum() / (weight * truth * truth).sum()).item()


slipped, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed), flip=0.1)
_, r_slipped = correlation(learn_from(slipped))
lesson.claim("wrong labels make the scale of r smaller", scale(r_slipped) < 0.8 * scale(many[4]),
             f"r grows by {scale(many[4]):.2f} if R grows by 1; with one wrong label in ten, by "
             f"{scale(r_slipped):.2f}", full_run=True)

# %% [markdown]
# ## 7. What remains
# - **The reward model is reliable only on replies like those it was trained on.** A policy that is
#   trained with it can move to other replies. So lesson 18 adds a price for leaving π_ref, which
#   keeps the policy near the replies that the reward model has seen (course A).
# - Course B calls −E log σ(r_w − r_l) the reward model's expression "en DPO". Correction: it is
#   the loss above, of RLHF's reward model. DPO has no reward model: it puts the policy's own
#   log-probabilities in the place of r (lesson 19).
#
# Items: A22

# %%
lesson.end()
