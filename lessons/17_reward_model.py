"""Lesson 17: the reward model, which turns "I like this one better" into a number.

You will see    the Bradley–Terry rule derived step by step, its loss with slope and curvature, what comparisons can never tell, and a
                GPT that recovers a hidden reward from noisy comparisons, held against the best that anybody could do with such labels.
Source          courses A, B and D, "reward model"; Bradley and Terry 1952; Ouyang et al. 2022, §3.5 and eq. 1.
Expect          1.4 minutes on one core (quick: 10 s); every check passes; 12,800 comparisons foresee 82 to 83 % of fresh labels, where
                83 to 84 % is the most that anybody could, and r correlates with the hidden R by 0.97; fifty are learned by heart: they
                still foresee 64 to 72 %, but so surely that the loss on fresh labels is 7 times a coin's and more (five seeds).
Not here        what a policy does with the reward (lesson 18), and to it.

Shapes: B pairs, N replies, T time.
"""
# %%
import copy
import math

import torch
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.alignment.exact import Table, answer_logprobs, list_answers
from minigpt.alignment.preferences import (
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
from minigpt.training.loop import TrainingConfig, train
from minigpt.worlds import replies

lesson = Lesson("17_reward_model", threads=1)
device = torch.device(lesson.device)

# %% [markdown]
# ## 1. From strengths to a probability
# Nobody can say how good a reply is on a scale of numbers, and say the same tomorrow. But of two replies people can say which
# is better. Bradley and Terry (1952) give every item a strength e^R > 0, and let it win in proportion:
#
#     P(a ≻ b) = e^A / (e^A + e^B)                          A, B: the rewards of a and b
#              = 1 / (1 + e^B/e^A)                          divide above and below by e^A
#              = 1 / (1 + e^(−(A−B)))                       e^B/e^A = e^(B−A)
#              = σ(A − B)                                   the definition of σ
#
# Rewards as logarithms of 3 and 1: a wins 3 times out of 4. Three steps, three numbers, and the library's:

# %%
A, B = torch.randn(2, 50, dtype=torch.float64, generator=lesson.generator) * 3
steps = torch.stack([A.exp() / (A.exp() + B.exp()), 1 / (1 + B.exp() / A.exp()), 1 / (1 + (-(A - B)).exp())])
lesson.check("e^A/(e^A + e^B) = … = σ(A − B), every step", steps, preference_probability(A, B).expand(3, -1), atol=1e-12,
             source="A, B, D: Bradley–Terry")
odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]], dtype=torch.float64).log()
lesson.check("strengths 3:1, 1:1, 1:9 win 3/4, 1/2, 1/10", preference_probability(*odds.T), torch.tensor([3 / 4, 1 / 2, 1 / 10]), atol=1e-7,
             source="A, B, D: Bradley–Terry")

# %% [markdown]
# ## 2. The loss
# Given labels, the most likely r makes ∏ P(y⁺ ≻ y⁻) large, so −log of it small:
#
#     L = −E log σ( r(x, y⁺) − r(x, y⁻) )
#
# Write Δ = r(x, y⁺) − r(x, y⁻) and ℓ(Δ) = −log σ(Δ). Since σ′ = σ(1 − σ) and 1 − σ(Δ) = σ(−Δ),
#
#     ℓ′(Δ) = −σ(Δ)σ(−Δ)/σ(Δ) = −σ(−Δ)                     the push is the probability that r still gives to the wrong answer
#     ℓ″(Δ) = σ(Δ)σ(−Δ) > 0                                convex: one valley, and no way to get lost
#
# The minus matters: in course A's figure of the pipeline the loss is written log σ(r_j − r_k), whose minimum is a model that is always
# wrong; A's own formula two slides on has the minus. The slope and the curvature, by walking a step to each side:

# %%
gaps = torch.linspace(-6, 6, 49, dtype=torch.float64)
h = 1e-4
nought = torch.zeros((), dtype=torch.float64)
below, at, above = (torch.stack([bradley_terry_loss(gap + step, nought) for gap in gaps]) for step in (-h, 0.0, h))        # (49,) each
curvature = gaps.exp() / (1 + gaps.exp()) ** 2
lesson.check("ℓ′(Δ) = −σ(−Δ)", (above - below) / (2 * h), -1 / (1 + gaps.exp()), atol=1e-7, source="A, D: reward loss")
lesson.check("ℓ″(Δ) = σ(Δ)σ(−Δ) > 0", (above - 2 * at + below) / h**2, curvature, atol=1e-6, source="A, D: reward loss")
extremes = torch.stack([bradley_terry_loss(nought + d, nought) for d in (0.0, -800.0)])
expected = torch.tensor([0.6931471805599453, 800.0])
lesson.check("Δ = 0: log 2; Δ = −800: 800, not ∞", extremes, expected, atol=1e-6, source="A, D: reward loss")

# %% [markdown]
# The notes of course D write the same with a label i: i = 1 if the first answer is the better one, 0 if the second is,
#
#     L = −[ i·log σ(r₁ − r₂) + (1 − i)·log σ(r₂ − r₁) ]
#
# Only one of the two terms is ever there. With σ(r₂ − r₁) = 1 − σ(r₁ − r₂) this is logistic regression on Δ. And with K answers of which
# one is best, softmax in place of σ (Luce 1959; Ziegler et al. 2019, eq. 1, with K = 4); for K = 2 it is the pair again.

# %%
r1, r2 = torch.randn(2, 40, dtype=torch.float64, generator=lesson.generator) * 2
i = torch.randint(2, (40,), generator=lesson.generator)
sorted_form = bradley_terry_loss(torch.where(i == 1, r1, r2), torch.where(i == 1, r2, r1))
logistic = F.binary_cross_entropy_with_logits(r1 - r2, i.double())
lesson.check("−log σ(r⁺ − r⁻) = the form with i ∈ {0, 1}", sorted_form, logistic, atol=1e-12, source="D: reward loss")
lesson.check("best of K = 2 is the pair", best_of_k_loss(torch.stack([r1, r2], 1), 1 - i), sorted_form, atol=1e-12,
             source="Luce 1959; Ziegler et al. 2019, eq. 1")

# %% [markdown]
# ## 3. What comparisons cannot tell
# Only differences enter. Add to r any number that depends on the prompt alone, r(x, y) + c(x), and nobody can see it: both answers
# of a pair have the same prompt. So training leaves c(x) to chance. Whoever uses r later, with a price β in units of reward, wants
# it fixed as far as one number can: r is moved until its mean over reference answers to all prompts is 0.
#
# The same in one small case where everything can be computed: two prompts, 31 answers to each of up to four tokens out of three, a true
# reward for each, labels without end (so that the share of each label *is* its probability). Add 5 for one prompt, take 3 away for
# the other; then minimise the exact loss over all pairs with one prompt:

# %%
lists = [list_answers(torch.tensor([prompt]), vocab_size=3, max_length=4) for prompt in (1, 2)]
tokens, mask = (torch.cat(parts) for parts in zip(*lists))              # (62, 5): the first 31 answer prompt 1
prompt_of = torch.arange(2).repeat_interleave(31)
truth = torch.randn(62, dtype=torch.float64, generator=lesson.generator)
wins = preference_probability(truth[:, None], truth[None, :])           # (62, 62) P(row ≻ column)
within = prompt_of[:, None] == prompt_of[None, :]                       # (62, 62) pairs that answer one prompt
model = RewardModel(Table(3, 5).double())                               # a free number for every answer
with torch.no_grad():
    model.values.rows.normal_(generator=lesson.generator)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")


def exact_loss(r, admitted):
    """The loss over the pairs that are admitted, each with both of its labels, weighed by their probability: (62,), (62, 62) -> scalar."""
    gap = r[:, None] - r[None, :]                                       # (62, 62)
    return -(wins * F.logsigmoid(gap) + (1 - wins) * F.logsigmoid(-gap))[admitted].mean()


def closure():
    optimizer.zero_grad()
    value = exact_loss(model(tokens, mask), within)
    value.backward()
    return value


def mean_taken(r):
    """r less its mean over the answers to each prompt: (62,) -> (2, 31)."""
    return r.view(2, 31) - r.view(2, 31).mean(1, keepdim=True)


with torch.no_grad():
    r = model(tokens, mask)
    moved = r + torch.tensor([5.0, -3.0])[prompt_of]                    # r + c(x)
    lesson.check("r + c(x): the same loss", exact_loss(moved, within), exact_loss(r, within), atol=1e-12, source="D: reward model")
    began = r.view(2, 31).mean(1)                                       # (2,) which no label can move
    print(f"    with pairs across prompts it would be seen: {exact_loss(r, ~within):.3f} → {exact_loss(moved, ~within):.3f} nats on those")
optimizer.step(closure)
with torch.no_grad():
    r = model(tokens, mask)
    lesson.check("the fit is R, but for a constant per prompt", mean_taken(r), mean_taken(truth), atol=1e-5, source="A, B, D: reward model")
    lesson.check("and r's mean for each prompt is what it began with", r.view(2, 31).mean(1), began, atol=1e-6, source="D: reward model")
    p = wins[within].tolist()
    by_hand = sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p) / len(p)
    ends = torch.stack([exact_loss(r, within), torch.tensor(loss_floor(wins[within]))])
    lesson.check("the loss ends at the labels' own entropy, not at 0", ends, torch.tensor([by_hand, by_hand]), atol=1e-6,
                 source="D: reward model")

# %% [markdown]
# ## 4. A hidden rule, seen through comparisons
# Now a language model. A customer says *please* or *now*, and a waiter replies in at most five words out of six. How good a reply is
# follows a rule (`minigpt/worlds/replies.py`) that the model never sees. It sees pairs of replies, drawn from a GPT that has learned
# what waiters usually say, and a label which one a person liked better, by Bradley and Terry's rule: surely where R differs by much,
# and nearly by chance where it differs by little. So many comparisons, and how well can one know the rule?
#
# Nobody can agree with noisy labels always. A judge who knows R agrees in max(p, 1 − p) of the cases, where p is the probability
# of the label. There are 3,906 replies to each customer, so that ceiling is a finite sum: 3,906² pairs with their probabilities.

# %%
reference = train_reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in all_replies())               # (2, 3906, T)
with torch.no_grad():
    usual = torch.stack([answer_logprobs(reference, t, m) for t, m in zip(everything, belongs)])         # (2, 3906) log π_ref
    rule = torch.stack([replies.reward(t, m) for t, m in zip(everything, belongs)])                      # (2, 3906) R
lesson.check("the replies to each customer have probability 1 in all", usual.exp().sum(1), torch.ones(2), atol=1e-4, source="B: chain rule")


def exact_over_pairs(values):
    """E[value of a pair] for two replies to the same customer, each drawn from π_ref: (2, 3906, 3906) -> a number."""
    weight = usual.exp()
    return ((weight[:, None] @ values @ weight[:, :, None]).mean() / weight.sum(1).square().mean()).item()


chance = preference_probability(rule[:, :, None], rule[:, None, :])               # (2, 3906, 3906)
ceiling = exact_over_pairs(torch.maximum(chance, 1 - chance))
floor = exact_over_pairs(torch.special.entr(chance) + torch.special.entr(1 - chance))
print(f"    agreement with the labels: at best {ceiling:.3f}; loss: at best {floor:.3f} nats, "
      f"log 2 = {math.log(2):.3f} without knowing anything")


def comparisons(n, generator, flip=0.0):
    """n labelled pairs, and the probability that each label had; `flip` of them are then turned over by a slip of the hand."""
    prompts = replies.customers(n, generator).repeat_interleave(2, 0).to(device)         # (2n, 1)
    answers = roll_out(reference, prompts, replies.LONGEST, replies.STOP, generator=generator)
    rewards = replies.reward(answers.tokens, answers.mask)
    return compare(answers, rewards, generator, flip), preference_probability(rewards[0::2], rewards[1::2], flip)


fresh, fresh_chance = comparisons(lesson.pick(20_000, 4_000), torch.Generator().manual_seed(1000 + lesson.seed))
spread = (torch.maximum(fresh_chance, 1 - fresh_chance).std() / len(fresh) ** 0.5).item()
lesson.check(f"ceiling: {len(fresh):,} sampled pairs = listing, within 5 standard errors", accuracy_ceiling(fresh_chance), ceiling,
             atol=5 * spread, source="D: reward model")

# %% [markdown]
# The reward model is the language model itself, with a linear head in place of the word logits, read at the reply's last token. One
# is trained for each number of comparisons, all for the same number of steps; what they have in common is all but the data.

# %%
SIZES = lesson.pick((50, 200, 800, 3_200, 12_800), (50, 800))
STEPS = lesson.pick(400, 60)
pool, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed))


def learn_from(pairs):
    """A reward model that has learned from these pairs."""
    model = RewardModel(ValueModel(copy.deepcopy(reference).requires_grad_(True)))
    config = TrainingConfig(max_steps=STEPS, learning_rate=4e-3, weight_decay=0.1, optimizer="muon", evaluate_every=STEPS,
                            seed=lesson.seed)

    def next_batch(generator):
        return pairs[torch.randint(len(pairs), (128,), generator=generator).to(device)]

    train(model, next_batch, reward_loss, config)
    model.normalise(*usual_answers)
    return model.requires_grad_(False)


usual_answers = torch.cat([fresh.chosen, fresh.rejected]), torch.cat([fresh.chosen_mask, fresh.rejected_mask])        # π_ref's, all of them
truth = rule - (usual.exp() * rule).sum(1, keepdim=True)                # R with mean 0 for each customer, under π_ref
weight = usual.exp() / usual.exp().sum()


def correlation(model):
    """Between r and R over all replies, weighed by how usual they are, each customer's own mean taken away (it is free); and that r."""
    r = torch.stack([model(t, m) for t, m in zip(everything, belongs)])
    r = r - (usual.exp() * r).sum(1, keepdim=True) / usual.exp().sum(1, keepdim=True)
    return ((weight * r * truth).sum() / ((weight * r * r).sum() * (weight * truth * truth).sum()).sqrt()).item(), r


results = {}
for size in SIZES:
    model = learn_from(pool[:size])
    agreement, held_out, own = reward_accuracy(model, fresh), reward_loss(model, fresh).item(), reward_loss(model, pool[:size]).item()
    corr, r = correlation(model)
    results[size] = (agreement, corr, held_out, own, r)
    print(f"    {size:6,} comparisons: agrees with fresh labels {agreement:.3f} (ceiling {ceiling:.3f}), correlation with R {corr:.3f}, "
          f"loss {own:.3f} on its own pairs, {held_out:.3f} on fresh ones (floor {floor:.3f})")

# %%
sizes = list(results)
fig, axes = plotting.figure(13, 4, columns=3)
axes[0].axhline(ceiling, color="black", linestyle=":", label=f"the best possible, {ceiling:.3f}")
axes[0].plot(sizes, [results[size][0] for size in sizes], marker="o", label="reward model")
axes[0].axhline(0.5, color="grey", linestyle="-", linewidth=0.8, label="a coin")
axes[0].set(xscale="log", xlabel="comparisons learned from", ylabel="share of fresh labels foreseen", title="Agreement with new labels")
axes[0].legend(loc="center right")
axes[1].plot(sizes, [results[size][1] for size in sizes], marker="o")
axes[1].set(xscale="log", xlabel="comparisons learned from", ylabel="correlation with the true R", ylim=(0, 1.02))
axes[1].set_title("Agreement with the hidden rule")
learned, hidden, how_usual = (values.flatten().cpu() for values in (results[sizes[-1]][4], truth, weight))
common = how_usual > 1e-4                                               # replies that are not too rare to have been judged often
axes[2].scatter(hidden[common], learned[common], s=(3e3 * how_usual[common]).clamp(4, 200), alpha=0.5)
span = [hidden[common].min(), hidden[common].max()]
axes[2].plot(span, span, color="black", linestyle=":", label="r = R")
axes[2].set(xlabel="true R (mean 0)", ylabel="learned r (mean 0)", title=f"After {sizes[-1]:,} comparisons (area: how usual)")
axes[2].legend(loc="upper left")
lesson.figure(fig, "recovery")

# %% [markdown]
# What to see. Fifty comparisons are learned by heart: the loss on them falls as low as it can (two equal replies cost log 2, and so does
# a pair that was labelled once one way and once the other), and on fresh ones it rises far above log 2. Not that nothing has been
# learned: more fresh labels are foreseen than by a coin. But where the model is wrong it is wrong with certainty, and the loss, unlike
# the share, counts that. With more, the model foresees labels nearly as often as a judge who knows the rule, the two losses come
# together, and r is R, nearly even in scale. The scale is not to be taken for granted. Let one label in ten be turned over by a slip
# of the hand: every preference looks less certain, and a model that is not told of slips explains that with smaller differences.
# Lesson 18's β is measured in this scale.

# %%
few, many = results[sizes[0]], results[sizes[-1]]
lesson.claim("more comparisons, more agreement, up to the ceiling", many[0] > ceiling - 0.02 and many[0] > few[0] + 0.03,
             f"{', '.join(f'{size:,}: {results[size][0]:.3f}' for size in sizes)}; ceiling {ceiling:.3f}", full_run=True)
lesson.claim("the hidden rule is recovered, but for a constant per customer", many[1] > 0.95 and many[1] > few[1],
             f"correlation with R {', '.join(f'{size:,}: {results[size][1]:.3f}' for size in sizes)}", full_run=True)
chosen, rejected = pool[:sizes[0]].chosen, pool[:sizes[0]].rejected     # (50, T) each


def equal(a, b):
    """Which rows of a are which rows of b: (M, T), (N, T) -> (M, N)."""
    return (a[:, None] == b[None, :]).all(-1)


this_way = (equal(chosen, chosen) & equal(rejected, rejected)).sum(1)   # (50,) how often the same two replies have the same label,
either_way = this_way + (equal(chosen, rejected) & equal(rejected, chosen)).sum(1)      # (50,) and how often they come at all
at_best = (either_way / this_way).log().mean().item()                   # nats: even if r may be anything
lesson.claim("fifty comparisons are learned by heart: on fresh ones right more often than a coin, at a loss far worse than its",
             few[3] < at_best + 0.005 and few[0] > 0.55 and few[2] > 4 * math.log(2),
             f"loss {few[3]:.4f} on its own pairs, where {at_best:.4f} cannot be avoided; {few[2]:.2f} on fresh ones against "
             f"log 2 = {math.log(2):.2f}, although {few[0]:.0%} of them are foreseen", full_run=True)


def scale(r):
    """By how much r grows where R grows by 1: the slope of the best line through the third panel."""
    return ((weight * r * truth).sum() / (weight * truth * truth).sum()).item()


slipped, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed), flip=0.1)
_, r_slipped = correlation(learn_from(slipped))
lesson.claim("wrong labels shrink the scale", scale(r_slipped) < 0.8 * scale(many[4]),
             f"r grows by {scale(many[4]):.2f} where R grows by 1; with one label in ten turned over, by {scale(r_slipped):.2f}",
             full_run=True)

# %% [markdown]
# ## 5. What remains
# - **InstructGPT** ranks 4 to 9 answers of a prompt at a time, and takes all their pairs as one batch element, since pairs that share
#   answers are not independent and would be overfitted (Ouyang et al. 2022, §3.5).
# - **The reward model is trusted where it was trained**: on replies that are usual. A policy that is paid by it will look for unusual
#   ones, so lesson 18 puts a price on leaving π_ref.
# - Course B calls −E log σ(r_w − r_l) "the reward model's expression in DPO". It is the loss above, of RLHF's reward model. DPO
#   has no reward model: it puts a policy's own log-probabilities in r's place (lesson 19).

# %%
lesson.end()
