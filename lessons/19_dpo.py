"""Lesson 19: DPO, or why the reward model was in the policy all along.

You will see    the step from π* to a reward that is a log-ratio, with Z gone; the loss and its gradient; log-probabilities of whole
                answers and the three ways to get them wrong; the gradient that is 0 at π* with sums and not with means; a GPT that DPO
                brings to π*; and a preferred answer whose probability falls although everything works.
Source          course B, "DPO"; Rafailov et al. 2023, eqs. 4–7 and §4.
Expect          2 minutes on one core (12 s with --quick). KL(π‖π*) falls from 1.9 to between 0.010 and 0.015 nats in 460,800 fresh pairs;
                with means in place of sums the exact optimum lies 0.43 nats away; 200 pairs read again and again take
                log π(chosen) from −3.6 to −4.3 (both: seed 0).
Not here        what many small deviations do to a learned reward; one preference set for a whole assistant.

Shapes: N answers, B pairs, T time, V vocabulary.
"""
# %%
import copy
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.alignment.dpo import (
    dpo_loss,
    dpo_metrics,
    implicit_reward,
    make_dpo_loss,
    score_pairs,
)
from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    gradient,
    kl_divergence,
    list_answers,
    make_table,
    optimal_policy,
    slopes,
)
from minigpt.alignment.preferences import accuracy_ceiling, compare, preference_probability
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.alignment.rollouts import roll_out
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import sequence_logprobs
from minigpt.worlds import replies

lesson = Lesson("19_dpo", threads=1)
device = torch.device(lesson.device)

# %% [markdown]
# ## 1. From the best policy back to the reward
# Lesson 18 ended with the best policy in closed form, π* = π_ref e^{r/β}/Z. Read it backwards. Take logarithms, and solve for r:
#
#     log π*(y|x) = log π_ref(y|x) + r(x, y)/β − log Z(x)
#     r(x, y) = β log( π*(y|x)/π_ref(y|x) ) + β log Z(x)
#
# So a policy and its reference *are* a reward, but for a number that depends on the prompt alone. And Bradley–Terry asks for
# differences at one prompt only, where β log Z(x) cancels:
#
#     P(y⁺ ≻ y⁻ | x) = σ( r(x, y⁺) − r(x, y⁻) ) = σ( β log(π*(y⁺|x)/π_ref(y⁺|x)) − β log(π*(y⁻|x)/π_ref(y⁻|x)) )
#
# Two prompts with different rewards and different Z, 31 answers to each, everything listed:

# %%
BETA, V, L = 0.7, 3, 4
lists = [list_answers(torch.tensor([prompt]), V, L) for prompt in (1, 2)]
tokens, mask = (torch.cat(parts) for parts in zip(*lists))              # (62, 5): the first 31 answer prompt 1
prompt_of = torch.arange(2).repeat_interleave(31)
reference = Table(V, L, V).double()
with torch.no_grad():
    reference.rows.normal_(generator=lesson.generator)
    ref = answer_logprobs(reference, tokens, mask)                      # (62,)
reward = torch.randn(62, dtype=torch.float64, generator=lesson.generator) * 1.5 + 2.0 * prompt_of
solved = [optimal_policy(ref[prompt_of == x], reward[prompt_of == x], BETA) for x in (0, 1)]
best, log_z = torch.cat([logp for logp, _ in solved]), torch.stack([z for _, z in solved])[prompt_of]
normaliser = torch.tensor([sum(math.exp(ref[i] + reward[i] / BETA) for i in range(62) if prompt_of[i] == x) for x in (0, 1)])
from_the_policy = implicit_reward(best, ref, BETA) + BETA * normaliser.log()[prompt_of]
lesson.check("r = β log(π*/π_ref) + β log Z, Z summed by hand", from_the_policy, reward, atol=1e-6,
             source="B: DPO; Rafailov et al. 2023, eq. 5")

same = prompt_of[:, None] == prompt_of[None, :]                         # (62, 62) pairs to the same prompt
with_z = preference_probability(reward[:, None], reward[None, :])
r_hat = implicit_reward(best, ref, BETA)
without_z = preference_probability(r_hat[:, None], r_hat[None, :])
lesson.check("Z cancels: the same preferences from log-ratios alone", without_z[same], with_z[same], atol=1e-12,
             source="B: DPO; Rafailov et al. 2023, eq. 6")
off = (without_z - with_z)[~same].abs().max()
print(f"    log Z: {log_z[0]:.3f} and {log_z[-1]:.3f}; between answers to *different* prompts it would not cancel, "
      f"and preferences would be off by up to {off:.2f}")

# %% [markdown]
# ## 2. The loss and its gradient
# Put any policy in π*'s place, and choose it so that the labels are likely (eq. 7). With the margin
# m = β log(π(y⁺)/π_ref(y⁺)) − β log(π(y⁻)/π_ref(y⁻)):
#
#     L = −E log σ(m)          ∇L = −β E[ σ(−m) · ( ∇ log π(y⁺) − ∇ log π(y⁻) ) ]
#
# σ(−m) is the probability that the policy's own reward gives to the wrong answer: pairs that it has understood push less. At the start π =
# π_ref, so m = 0 and L = log 2 = 0.693 whatever the labels are. That looks like a coin, but the gradient is not 0: σ(0) = ½.

# %%
policy = copy.deepcopy(reference)
with torch.no_grad():
    policy.rows.add_(torch.randn(policy.rows.shape, dtype=torch.float64, generator=lesson.generator) * 0.5)
w, l = torch.tensor([3, 40, 17]), torch.tensor([9, 55, 2])              # three pairs, two to prompt 1 and one to prompt 2


def pair_loss(table):
    now = answer_logprobs(table, tokens, mask)
    return dpo_loss(now[w], now[l], ref[w], ref[l], BETA)


now = answer_logprobs(policy, tokens, mask)
m = (BETA * ((now[w] - ref[w]) - (now[l] - ref[l]))).detach()
formula = -(BETA / (1 + m.exp()) / 3)[:, None] * torch.stack([gradient(policy, now[a] - now[b]) for a, b in zip(w, l)])
lesson.check("∇L = −β σ(−m) (∇log π(y⁺) − ∇log π(y⁻))", formula.sum(0), slopes(pair_loss, policy), atol=1e-8,
             source="B: DPO; Rafailov et al. 2023, §4")
at_start = slopes(pair_loss, copy.deepcopy(reference))
lesson.check("at π = π_ref: L = log 2", pair_loss(reference), torch.tensor(0.6931471805599453), atol=1e-7, source="B: DPO")
lesson.claim("… and the gradient there is not 0", at_start.norm() > 0.1, f"its length is {at_start.norm():.3f}")
as_labelled, swapped = (torch.stack([dpo_loss(now[a], now[b], ref[a], ref[b], BETA) for a, b in zip(*order)]).detach()
                        for order in ((w, l), (l, w)))                  # (3,) each
lesson.check("swapping the labels: L(y⁺, y⁻) − L(y⁻, y⁺) = −m", as_labelled - swapped, -m, atol=1e-12, source="B: DPO")

# %% [markdown]
# ## 3. log π(y|x) of a whole answer: gather, mask, shift, sum
# In four steps on a batch of padded answers: **shift**, for the logits at t judge token t + 1; **gather** the log-probability of the token
# that came; **mask** out the prompt and what comes after the stop token, which itself counts; **sum** over time. The referee
# asks the model one prefix at a time and multiplies.

# %%
gpt = GPT(GPTConfig(V, 8, n_layers=2, n_heads=3, d_model=12), lesson.generator).double()
with torch.no_grad():
    for parameter in gpt.parameters():
        parameter.mul_(8)                                               # far from even, so that a mistake shows
    rows, counts = tokens[[0, 2, 5, 61]], mask[[0, 2, 5, 61]]           # (4, 5): answers of one, two, three and four tokens
    logits = gpt(rows)                                                  # (4, 5, V)
    shifted, targets, counted = logits[:, :-1].log_softmax(-1), rows[:, 1:], counts[:, 1:]
    gathered = shifted.gather(2, targets[..., None])[..., 0]            # (4, 4)
    by_steps = (gathered * counted).sum(1)                              # (4,)
    one_by_one = torch.stack([sum(gpt(row[None, :t])[0, -1].log_softmax(0)[row[t]] for t in range(1, 5) if count[t])
                              for row, count in zip(rows, counts)])     # (4,)
lesson.check("shift, gather, mask, sum = one prefix at a time", by_steps, one_by_one, atol=1e-10, source="B: DPO in code")
lesson.check("the library's sequence_logprobs", sequence_logprobs(logits, rows, counts), one_by_one, atol=1e-10, source="B: DPO in code")
unshifted = logits.log_softmax(-1).gather(2, rows[..., None])[..., 0]   # (4, 5)
wrong = {"right": by_steps, "without the shift": (unshifted * counts).sum(1),
         "without the mask": gathered.sum(1), "mean for sum": by_steps / counted.sum(1)}
print(f"    {'tokens':<18} " + "  ".join(f"{length:7}" for length in counted.sum(1).tolist()))
for name, values in wrong.items():
    print(f"    {name:<18} " + "  ".join(f"{value:7.2f}" for value in values.tolist()))

# %% [markdown]
# ## 4. Sums, not means
# The last of these lines is found in published teaching codes, under an equation that sums. A mean is not wrong as a habit; it is
# the loss of another problem. Test: labels without end, by a person with reward r. Then the loss is a finite sum over all pairs, and
# **π* must be a point of rest**, since section 1 says that π* explains these very labels. It is one with sums. With means it is
# not: there the implicit reward is β·log-ratio/length, which no longer equals r + constant.

# %%
lengths = mask.sum(1)                                                   # (62,)
pair_weight = same.double() / same.sum()


def population_loss(table, mean):
    """DPO's loss over all pairs of answers to the same prompt, each with both of its labels, weighed by their probability."""
    ratio = (answer_logprobs(table, tokens, mask) - ref) / (lengths if mean else 1)
    margin = BETA * (ratio[:, None] - ratio[None, :])                   # (62, 62)
    return -(pair_weight * (with_z * nn.functional.logsigmoid(margin) + (1 - with_z) * nn.functional.logsigmoid(-margin))).sum()


optimum = make_table(tokens, mask, best, V)
lesson.check("the table that holds π*", answer_logprobs(optimum, tokens, mask).detach(), best, atol=1e-10, source="B: π*")
at_rest = gradient(optimum, population_loss(optimum, mean=False))
lesson.check("at π*, with sums: the gradient is 0", at_rest, torch.zeros_like(at_rest), atol=1e-12, source="B: DPO")
astray = gradient(optimum, population_loss(optimum, mean=True)).norm().item()


def settle(mean):
    """Where the loss over all pairs comes to rest: KL(π‖π*) in nats, the mean over both prompts."""
    table = copy.deepcopy(reference)
    optimizer = torch.optim.LBFGS(table.parameters(), max_iter=3000, max_eval=4000, tolerance_grad=1e-11, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = population_loss(table, mean)
        loss.backward()
        return loss

    optimizer.step(closure)
    end = answer_logprobs(table, tokens, mask).detach()
    return sum(kl_divergence(end[prompt_of == x], best[prompt_of == x]).item() for x in (0, 1)) / 2


start = sum(kl_divergence(ref[prompt_of == x], best[prompt_of == x]).item() for x in (0, 1)) / 2
with_sums, with_means = settle(False), settle(True)
lesson.check("minimised over all pairs, with sums: KL(π‖π*) = 0", with_sums, 0.0, atol=1e-6, source="B: DPO")
lesson.claim("with means the gradient at π* is not 0, and training ends elsewhere", astray > 1e-3 and with_means > 0.05,
             f"its length is {astray:.4f}; minimised over all pairs, KL(π‖π*) ends at {with_means:.3f} nats (π_ref: {start:.3f})")

# %% [markdown]
# ## 5. A GPT, taught by pairs
# The waiter of lessons 17 and 18 again, and the same π*. It depends on r/β only, so r may be doubled with β: customers who judge by 2R
# are surer of themselves, and their labels say more; with β = 2 the goal has not moved. Each step: fresh prompts, two replies of the
# present policy to each, one label a pair by the true reward's Bradley–Terry rule, one step of DPO. No reward model and no value model;
# the loop is the one that trained the GPT of lesson 06. (The replies may come from anywhere: section 4's argument never asked. The
# present policy's are about the replies that matter.)
#
# No reward model, but not for nothing. 900 steps of 512 pairs are 921,600 replies, 7 times REINFORCE's 128,000 and 9 times PPO's
# 102,400 in lesson 18, and customers as sure of themselves as ours have been made help. A label is one bit at most: which of two.
# REINFORCE and PPO were told R itself.
#
# What to look for in a log of DPO, where no π* is known:
# - `accuracy`, the share of pairs whose margin has the label's sign: not against 1, but against the labels' own ceiling (lesson 17).
# - `margin`, chosen less rejected in implicit rewards: it must rise from 0. Here, on the policy's own replies, it then settles.
# - `chosen` and `rejected`, mean log π in nats a reply: nothing in the loss asks `chosen` to rise, and section 6 sees it fall.

# %%
BETA = 2.0
waiter = train_reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in all_replies())               # (2, 3906, T)


def judged(tokens, mask):
    """How good a reply is to these customers: (B, T), (B, T) -> (B,)."""
    return 2 * replies.reward(tokens, mask)


with torch.no_grad():
    usual = [answer_logprobs(waiter, t, m) for t, m in zip(everything, belongs)]         # 2 of (3906,)
goal = [optimal_policy(u, judged(t, m), BETA)[0] for u, t, m in zip(usual, everything, belongs)]
PAIRS = 512


def to_goal(policy):
    with torch.no_grad():
        return {"to_goal": sum(kl_divergence(answer_logprobs(policy, t, m), g).item() for t, m, g in zip(everything, belongs, goal)) / 2}


labels = {}                                                             # of the newest pairs: how often R itself would foresee them


def fresh_pairs(source, n):
    def next_batch(generator):
        prompts = replies.customers(n, generator).repeat_interleave(2, 0).to(device)     # (2n, 1)
        said = roll_out(source, prompts, replies.LONGEST, replies.STOP, generator=generator)
        worth = judged(said.tokens, said.mask)                          # (2n,)
        labels["ceiling"] = accuracy_ceiling(preference_probability(worth[0::2], worth[1::2]))
        return compare(said, worth, generator)
    return next_batch


policy = copy.deepcopy(waiter).requires_grad_(True)
watched = torch.Generator().manual_seed(2000 + lesson.seed)


def watch(policy):
    """KL(π‖π*) by listing, and DPO's metrics on new pairs that no step uses."""
    pairs = fresh_pairs(policy, PAIRS)(watched)
    return to_goal(policy) | dpo_metrics(policy, waiter, pairs, BETA) | labels


config = TrainingConfig(max_steps=lesson.pick(900, 40), learning_rate=7e-3, weight_decay=0.0, optimizer="muon", evaluate_every=20,
                        seed=lesson.seed)
online = train(policy, fresh_pairs(policy, PAIRS), make_dpo_loss(waiter, BETA), config, watch)
pairs_judged = online[-1]["step"] * PAIRS
way = " → ".join(f"{row['to_goal']:.3f}" for row in online[::max(1, len(online) // 8)])
print(f"    KL(π‖π*): {way}, after {pairs_judged:,} pairs, which are {2 * pairs_judged:,} replies")
lesson.claim("DPO reaches the π* of REINFORCE and PPO", online[-1]["to_goal"] <= 0.02,
             f"KL(π‖π*) = {online[-1]['to_goal']:.4f} nats; it began at {online[0]['to_goal']:.2f}", full_run=True)
names = ("accuracy", "ceiling", "margin", "chosen", "rejected")
print("    " + f"{'replies':>9}" + "".join(f"{name:>10}" for name in names))
for row in (*online[1:-1:9], online[-1]):
    print("    " + f"{2 * row['step'] * PAIRS:9,}" + "".join(f"{row[name]:10.3f}" for name in names))

# %% [markdown]
# ## 6. "The preferred answer must become likelier." No.
# The loss holds only the margin. Three answers, each described by one number φ, and a policy π(y) ∝ e^{θφ(y)}: *good* has φ = 1,
# *bad* 0, and *superb*, of which no pair speaks, 2. One pair: good ≻ bad. The only way to raise the margin is θ up, and then
#
#     d log π(good)/dθ = φ(good) − E[φ] = 1 − E[φ]
#
# which is negative as soon as E[φ] > 1: the mass flows past *good* to *superb*. A table with a free number for each answer does not
# show this. A network, whose answers share parameters, does. First the three answers, exactly; every step is gradient descent on L.

# %%
features = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)           # good, bad, superb
theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
even = torch.full((3,), -math.log(3), dtype=torch.float64)
walk = []
for _ in range(40):
    logp = (theta * features).log_softmax(0)
    walk.append((theta.item(), (logp[0] - logp[1]).item(), *logp.tolist()))
    (slope,) = torch.autograd.grad(dpo_loss(logp[:1], logp[1:2], even[:1], even[1:2], 1.0), theta)
    theta.data -= slope
walk = torch.tensor(walk, dtype=torch.float64)                          # (40, 5): θ, margin, three log-probabilities
p = [[math.exp(t * f) / sum(math.exp(t * g) for g in (1, 0, 2)) for f in (1, 0, 2)] for t in walk[:, 0].tolist()]
expected_slope = torch.tensor([1 - (a + 2 * c) for a, _, c in p], dtype=torch.float64)
step = 1e-5


def log_good(t):
    """log π(good) at θ = t."""
    return math.log(math.exp(t) / (math.exp(t) + 1 + math.exp(2 * t)))


finite = torch.tensor([(log_good(t + step) - log_good(t - step)) / (2 * step) for t in walk[:, 0].tolist()], dtype=torch.float64)
lesson.check("d log π(good)/dθ = 1 − E[φ]", expected_slope, finite, atol=1e-8, source="B: DPO")
margins, good = walk[:, 1], walk[:, 2]
begin, end = walk[0, 2:].exp().tolist(), walk[-1, 2:].exp().tolist()
lesson.claim("three answers: the margin rises at every step, and the preferred answer's probability falls",
             bool((margins[1:] > margins[:-1]).all() and (good[2:] < good[1:-1]).all()),
             f"margin {margins[0]:.2f} → {margins[-1]:.2f}; π(good) {begin[0]:.2f} → {end[0]:.2f}, π(bad) {begin[1]:.2f} → {end[1]:.3f}, "
             f"π(superb) {begin[2]:.2f} → {end[2]:.2f}")

# %% [markdown]
# Then the waiter, on a fixed set of pairs as one would buy it: 200 pairs of π_ref's replies, gone through again and again.

# %%
bought = fresh_pairs(waiter, 200)(torch.Generator().manual_seed(1000 + lesson.seed))
offline_policy = copy.deepcopy(waiter).requires_grad_(True)
config = TrainingConfig(max_steps=lesson.pick(200, 40), learning_rate=1e-3, weight_decay=0.0, evaluate_every=5, seed=lesson.seed)


def on_the_set(model):
    chosen, rejected = score_pairs(model, bought)
    return {"chosen": chosen.mean().item(), "rejected": rejected.mean().item()} | to_goal(model)


offline = train(offline_policy, lambda generator: bought, make_dpo_loss(waiter, BETA), config, on_the_set)
fig, (left, right) = plotting.figure(11, 4.2, columns=2)
left.plot([2 * row["step"] * PAIRS for row in online], [row["to_goal"] for row in online], label="DPO, fresh pairs")
left.axhline(0.02, color="black", linestyle=":", linewidth=1.2, label="0.02 nats")
left.xaxis.set_major_formatter("{x:,.0f}")
left.set(yscale="log", xlabel="replies sampled (two a label)", ylabel="KL(π‖π*), nats a reply (exact)", title="Towards the best policy")
left.legend()
for name in ("chosen", "rejected"):
    right.plot([row["step"] for row in offline], [row[name] for row in offline], label=f"{name} replies")
right.set(xlabel="optimizer steps on the same 200 pairs", ylabel="mean log π(y|x), nats a reply")
right.set_title("Both fall; only the gap is in the loss")
right.legend()
lesson.figure(fig, "dpo")
first, final = offline[0], offline[-1]
lesson.claim("200 pairs, read again and again: the margin grows while the preferred replies become rarer",
             final["chosen"] < first["chosen"] and final["chosen"] - final["rejected"] > first["chosen"] - first["rejected"] + 1,
             f"log π(chosen) {first['chosen']:.2f} → {final['chosen']:.2f}, "
             f"log π(rejected) {first['rejected']:.2f} → {final['rejected']:.2f}; "
             f"KL(π‖π*) {first['to_goal']:.2f} → {min(row['to_goal'] for row in offline):.2f} at best → {final['to_goal']:.2f}",
             full_run=True)

# %% [markdown]
# ## 7. What remains
# - **Where did RLHF's reward model go?** Course B writes −E log σ(r_w − r_l) as "the reward model's expression in DPO". It is
#   Bradley–Terry's loss, of lesson 17's reward model. In DPO r has been replaced, and nothing is left to be called a reward model but
#   the policy.
# - **A fixed set of pairs ends.** When all labels of the set are explained, the margins of these pairs can still grow, at the cost of
#   whatever shares parameters with them: KL(π‖π*) falls, then rises again. IPO (Azar et al. 2024) and label smoothing give the margin a
#   best value instead of ∞; both are options of `dpo_loss`.
# - **Means or sums** is not taste: with means it is another optimum, as section 4 measured. Some later methods take means on purpose
#   (SimPO, Meng et al. 2024), and then derive another objective for them.

# %%
lesson.end()
