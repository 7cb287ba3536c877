"""Lesson 17: the reward model, which turns "I like this one better" into a number.

You will see    the Bradley–Terry rule derived step by step, its loss with slope and curvature, what comparisons can never tell, and a
                GPT that recovers a hidden reward from noisy comparisons, held against the best that anybody could do with such labels.
Source          courses A, B and D, "reward model"; Bradley and Terry 1952; Ouyang et al. 2022, §3.5 and eq. 1.
Expect          1.3 minutes on one core (quick: 10 s); every check passes; 12,800 comparisons foresee 82 to 83 % of fresh labels, where 84 % is the most
                that anybody could, and r correlates with the hidden R by 0.97; fifty are learned by heart and judge fresh ones worse than a coin.
Not here        what a policy does with the reward (lesson 18), and to it (lesson 20).

Shapes: B pairs, N replies, T time.
"""
# %%
import copy
import math

import torch
from torch.nn import functional as F

from lessons.course import Lesson
from minigpt import plotting
from minigpt.alignment import replies
from minigpt.alignment.exact import Table, answer_logprobs, list_answers
from minigpt.alignment.preferences import accuracy_ceiling, compare, loss_floor, preference_probability
from minigpt.alignment.reward_model import RewardModel, ValueModel, best_of_k_loss, bradley_terry_loss, reward_accuracy, reward_loss
from minigpt.alignment.rollouts import rollout
from minigpt.training.loop import TrainingConfig, train

lesson = Lesson("17_reward_model")
torch.set_num_threads(1)                                                # small matrices: a second thread only waits
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
lesson.check("e^A/(e^A + e^B) = … = σ(A − B), every step", steps, preference_probability(A, B).expand(3, -1), atol=1e-12, source="A, B, D: Bradley–Terry")
odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]], dtype=torch.float64).log()
lesson.check("strengths 3:1, 1:1, 1:9 win 3/4, 1/2, 1/10", preference_probability(*odds.T), torch.tensor([3 / 4, 1 / 2, 1 / 10]), atol=1e-7, source="A, B, D: Bradley–Terry")

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
loss_at = torch.stack([torch.stack([bradley_terry_loss(gap + step, torch.zeros(())) for gap in gaps]) for step in (-h, 0.0, h)])     # (3, 49)
lesson.check("ℓ′(Δ) = −σ(−Δ)", (loss_at[2] - loss_at[0]) / (2 * h), -1 / (1 + gaps.exp()), atol=1e-7, source="A, D: reward loss")
lesson.check("ℓ″(Δ) = σ(Δ)σ(−Δ) > 0", (loss_at[2] - 2 * loss_at[1] + loss_at[0]) / h**2, gaps.exp() / (1 + gaps.exp()) ** 2, atol=1e-6, source="A, D: reward loss")
lesson.check("Δ = 0: log 2; Δ = −800: 800, not ∞", torch.stack([bradley_terry_loss(torch.tensor(d, dtype=torch.float64), torch.zeros(())) for d in (0.0, -800.0)]),
             torch.tensor([0.6931471805599453, 800.0]), atol=1e-6, source="A, D: reward loss")

# %% [markdown]
# The notes of course D write the same with a label i: i = 1 if the first answer is the better one, 0 if the second is,
#
#     L = −[ i·log σ(r₁ − r₂) + (1 − i)·log σ(r₂ − r₁) ]
#
# Only one of the two terms is ever there. With σ(r₂ − r₁) = 1 − σ(r₁ − r₂) this is logistic regression on Δ. And with K answers of which
# one is best, softmax in place of σ; for K = 2 it is the pair again (Luce 1959).

# %%
r1, r2 = torch.randn(2, 40, dtype=torch.float64, generator=lesson.generator) * 2
i = torch.randint(2, (40,), generator=lesson.generator)
sorted_form = bradley_terry_loss(torch.where(i == 1, r1, r2), torch.where(i == 1, r2, r1))
lesson.check("−log σ(r⁺ − r⁻) = the form with i ∈ {0, 1}", sorted_form, F.binary_cross_entropy_with_logits(r1 - r2, i.double()), atol=1e-12, source="D: reward loss")
lesson.check("best of K = 2 is the pair", best_of_k_loss(torch.stack([r1, r2], 1), 1 - i), sorted_form, atol=1e-12, source="Ouyang et al. 2022, §3.5")

# %% [markdown]
# ## 3. What comparisons cannot tell
# Only differences enter. Add to r any number that depends on the prompt alone, r(x, y) + c(x), and nobody can see it: both answers
# of a pair have the same prompt. So training leaves c(x) to chance. Whoever uses r later, with a price β in units of reward,
# wants it fixed: r is moved until its mean over reference answers is 0.
#
# The same in one small case where everything can be computed: 31 answers of up to four tokens out of three, a true reward for each,
# labels without end (so that the share of each label *is* its probability). Minimise the exact loss over all pairs:

# %%
tokens, mask = list_answers(torch.tensor([0]), vocab_size=3, max_length=4)
truth = torch.randn(len(tokens), dtype=torch.float64, generator=lesson.generator)                       # (31,)
wins = preference_probability(truth[:, None], truth[None, :])                                           # (31, 31) P(row ≻ column)
model = RewardModel(Table(3, 5).double())                               # a free number for every answer
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")


def exact_loss():
    r = model(tokens, mask)
    gap = r[:, None] - r[None, :]                                       # (31, 31)
    return -(wins * F.logsigmoid(gap) + (1 - wins) * F.logsigmoid(-gap)).mean()


def closure():
    optimizer.zero_grad()
    value = exact_loss()
    value.backward()
    return value


with torch.no_grad():
    before, c = exact_loss(), 5.0
    model.offset -= c                                                   # r + 5 for the one prompt there is
    lesson.check("r + c(x): the same loss", exact_loss(), before, atol=1e-12, source="D: reward model")
optimizer.step(closure)
model.normalise(tokens, mask)
with torch.no_grad():
    lesson.check("the fit is R, but for a constant: r = R − mean(R)", model(tokens, mask), truth - truth.mean(), atol=1e-5, source="A, B, D: reward model")
    p = wins.flatten().tolist()
    by_hand = sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p) / len(p)
    lesson.check("the loss ends at the labels' own entropy, not at 0", torch.stack([exact_loss(), torch.tensor(loss_floor(wins.flatten()))]),
                 torch.tensor([by_hand, by_hand]), atol=1e-6, source="D: reward model")

# %% [markdown]
# ## 4. A hidden rule, seen through comparisons
# Now a language model. A customer says *please* or *now*, and a waiter replies in at most five words out of six. How good a reply is
# follows a rule (`minigpt/alignment/replies.py`) that the model never sees. It sees pairs of replies, drawn from a GPT that has learned what
# waiters usually say, and a label which one a person liked better, by Bradley and Terry's rule: surely where R differs by much, and
# nearly by chance where it differs by little. So many comparisons, and how well can one know the rule?
#
# Nobody can agree with noisy labels always. A judge who knows R agrees in max(p, 1 − p) of the cases, where p is the probability
# of the label. There are 3,906 replies to each customer, so that ceiling is a finite sum: 3,906² pairs with their probabilities.

# %%
reference = replies.reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in replies.all_replies())               # (2, 3906, T)
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
print(f"    agreement with the labels: at best {ceiling:.3f}; loss: at best {floor:.3f} nats, log 2 = {math.log(2):.3f} without knowing anything")


def comparisons(n, generator, flip=0.0):
    """n labelled pairs, and the probability that each label had; `flip` of them are then turned over by a slip of the hand."""
    prompts = replies.customers(n, generator).repeat_interleave(2, 0).to(device)         # (2n, 1)
    answers = rollout(reference, prompts, replies.LONGEST, replies.STOP, generator=generator)
    rewards = replies.reward(answers.tokens, answers.mask)
    return compare(answers, rewards, generator, flip), preference_probability(rewards[0::2], rewards[1::2], flip)


fresh, fresh_chance = comparisons(lesson.pick(20_000, 4_000), torch.Generator().manual_seed(1000 + lesson.seed))
spread = (torch.maximum(fresh_chance, 1 - fresh_chance).std() / len(fresh) ** 0.5).item()
lesson.check("ceiling: 20,000 sampled pairs = listing, within 5 standard errors", accuracy_ceiling(fresh_chance), ceiling, atol=5 * spread, source="D: reward model")

# %% [markdown]
# The reward model is the language model itself, with a linear head in place of the word logits, read at the reply's last token. One
# is trained for each number of comparisons, all for the same number of steps; what they have in common is all but the data.

# %%
SIZES = lesson.pick((50, 200, 800, 3_200, 12_800), (50, 800))
STEPS = lesson.pick(400, 60)
pool, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed))


def learn_from(pairs):
    model = RewardModel(ValueModel(copy.deepcopy(reference).requires_grad_(True)))
    config = TrainingConfig(max_steps=STEPS, learning_rate=4e-3, weight_decay=0.1, optimizer="muon", evaluate_every=STEPS, seed=lesson.seed)

    def next_batch(generator):
        return pairs[torch.randint(len(pairs), (128,), generator=generator).to(device)]

    *_, row = train(model, next_batch, reward_loss, config)
    with torch.no_grad():
        model.normalise(*usual_answers)
    return model.requires_grad_(False), row["train_loss"]


usual_answers = (torch.cat([fresh.chosen, fresh.rejected]), torch.cat([fresh.chosen_mask, fresh.rejected_mask]))      # chosen or not, they are π_ref's
truth = rule - (usual.exp() * rule).sum(1, keepdim=True)                # R with mean 0 for each customer, under π_ref
weight = usual.exp() / usual.exp().sum()


def correlation(model):
    """Between r and R over all replies, weighed by how usual they are, each customer's own mean taken away: a constant per prompt is free."""
    r = torch.stack([model(t, m) for t, m in zip(everything, belongs)])
    r = r - (usual.exp() * r).sum(1, keepdim=True) / usual.exp().sum(1, keepdim=True)
    return ((weight * r * truth).sum() / ((weight * r * r).sum() * (weight * truth * truth).sum()).sqrt()).item(), r


results = {}
for size in SIZES:
    model, train_loss = learn_from(pool[:size])
    agreement, held_out = reward_accuracy(model, fresh), reward_loss(model, fresh).item()
    corr, r = correlation(model)
    results[size] = (agreement, corr, held_out, r)
    print(f"    {size:6,} comparisons: agrees with fresh labels {agreement:.3f} (ceiling {ceiling:.3f}), correlation with R {corr:.3f}, "
          f"loss {train_loss:.3f} on its own pairs, {held_out:.3f} on fresh ones (floor {floor:.3f})")

# %%
sizes = list(results)
fig, axes = plotting.figure(13, 4, columns=3)
axes[0].axhline(ceiling, color="black", linestyle=":", label=f"the best possible, {ceiling:.3f}")
axes[0].plot(sizes, [results[size][0] for size in sizes], marker="o", label="reward model")
axes[0].axhline(0.5, color="grey", linestyle="-", linewidth=0.8, label="a coin")
axes[0].set(xscale="log", xlabel="comparisons learned from", ylabel="share of fresh labels foreseen", title="Agreement with new labels")
axes[0].legend(loc="center right")
axes[1].plot(sizes, [results[size][1] for size in sizes], marker="o")
axes[1].set(xscale="log", xlabel="comparisons learned from", ylabel="correlation with the true R", ylim=(0, 1.02), title="Agreement with the hidden rule")
most = results[sizes[-1]][3].flatten().cpu()
common = weight.flatten().cpu() > 1e-4                                  # replies that are not too rare to have been judged often
axes[2].scatter(truth.flatten().cpu()[common], most[common], s=(3e3 * weight.flatten().cpu()[common]).clamp(4, 200), alpha=0.5)
span = [truth.flatten().cpu()[common].min(), truth.flatten().cpu()[common].max()]
axes[2].plot(span, span, color="black", linestyle=":", label="r = R")
axes[2].set(xlabel="true R (mean 0)", ylabel="learned r (mean 0)", title=f"After {sizes[-1]:,} comparisons (area: how usual)")
axes[2].legend(loc="upper left")
lesson.figure(fig, "recovery")

# %% [markdown]
# What to see. Fifty comparisons are learned by heart: the loss on them falls towards 0, and on fresh ones it rises above log 2, which is worse
# than knowing nothing. With more, the model foresees labels nearly as often as a judge who knows the rule, and its r is R, even in scale, nearly.
# The scale is not to be taken for granted. Let one label in ten be turned over by a slip of the hand: every preference looks less
# certain, and a model that is not told of slips explains that with smaller differences. Lesson 18's β is measured in this scale.

# %%
few, many = results[sizes[0]], results[sizes[-1]]
lesson.claim("more comparisons, more agreement, up to the ceiling", many[0] > ceiling - 0.02 and many[0] > few[0] + 0.03,
             f"{', '.join(f'{size:,}: {results[size][0]:.3f}' for size in sizes)}; ceiling {ceiling:.3f}", full_run=True)
lesson.claim("the hidden rule is recovered, but for a constant per customer", many[1] > 0.95 and many[1] > few[1],
             f"correlation with R {', '.join(f'{size:,}: {results[size][1]:.3f}' for size in sizes)}", full_run=True)
lesson.claim("fifty comparisons are learned by heart: on fresh ones the loss is worse than a coin's", few[2] > math.log(2),
             f"{few[2]:.3f} nats against log 2 = {math.log(2):.3f}", full_run=True)


def scale(r):
    """By how much r grows where R grows by 1: the slope of the best line through the third panel."""
    return ((weight * r * truth).sum() / (weight * truth * truth).sum()).item()


slipped, _ = comparisons(SIZES[-1], torch.Generator().manual_seed(2000 + lesson.seed), flip=0.1)
_, r_slipped = correlation(learn_from(slipped)[0])
lesson.claim("wrong labels shrink the scale", scale(r_slipped) < 0.8 * scale(many[3]),
             f"r grows by {scale(many[3]):.2f} where R grows by 1; with one label in ten turned over, by {scale(r_slipped):.2f}", full_run=True)

# %% [markdown]
# ## 5. What remains
# - **InstructGPT** ranks 4 to 9 answers of a prompt at a time, and takes all their pairs as one batch element, since pairs that share answers
#   are not independent and would be overfitted (Ouyang et al. 2022, §3.5).
# - **The reward model is trusted where it was trained**: on replies that are usual. A policy that is paid by it will look for unusual
#   ones (lesson 20), so lesson 18 puts a price on leaving π_ref.
# - Course B calls −E log σ(r_w − r_l) "the reward model's expression in DPO". It is the loss above, of RLHF's reward model. DPO
#   has no reward model: it puts a policy's own log-probabilities in r's place (lesson 19).

# %%
lesson.end()
