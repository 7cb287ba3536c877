"""Lesson 18: RLHF: REINFORCE and PPO train a policy with a reward, close to the best policy.

You will see    the objective E[r] − β·KL and its exact optimum π*; three estimates of KL, and the
                gradient of each as a loss; importance sampling, PPO's clip and GAE, each checked
                against sums over all answers; a GPT that REINFORCE and PPO bring to π*, with the
                distance in nats; training without the KL term; a price β that adjusts itself.
Source          course A, "Proximal Policy Optimization (PPO)"; course B, "Función de costo RLHF"
                and "Política óptima"; course C, "ChatGPT: RL from Human Feedback" (the loop);
                course D, "FUNZIONI DI REWARD"; Ouyang et al. 2022, §3.5 and eq. 2; Schulman et al.
                2017, eq. 7; Schulman et al. 2016, eq. 16; Ziegler et al. 2019, §2.2.
Expect          2 minutes on one core (15 s with --quick); KL(π‖π*) falls from 1.9 to 0.007–0.015
                nats with REINFORCE (128,000 replies) and to 0.006–0.016 with PPO (102,400 replies);
                without the price, the entropy falls from 4.2 to 0.3–0.5 nats.
Not here        a learned reward with errors that a policy can exploit; DPO (lesson 19); the third
                term of Ouyang et al.'s eq. 2, γ·E[log π] on pre-training text ("PPO-ptx"), which
                helps an assistant to keep what it learned in pre-training.

Shapes: N answers, B samples, T time, V vocabulary, L longest answer.
"""
# %%
import copy
import itertools
import math
import statistics

import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as categorical_kl

from course import Lesson
from minigpt import plotting
from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    expectation,
    gradient,
    kl_divergence,
    list_answers,
    objective,
    optimal_policy,
    slopes,
)
from minigpt.alignment.logprobs import kl_estimates
from minigpt.alignment.ppo import PPOConfig, gae, ppo, ppo_policy_loss, ppo_value_loss, whiten
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.alignment.reinforce import ReinforceConfig, reinforce
from minigpt.alignment.reward_model import ValueModel
from minigpt.alignment.rollouts import roll_out, token_rewards
from minigpt.training.losses import token_logprobs
from minigpt.worlds import replies

lesson = Lesson("18_rlhf_ppo", threads=1)
device = torch.device(lesson.device)

# %% [markdown]
# ## 1. The objective and its price
# If a policy is trained for reward alone, its text can become very different from the text that it
# learned to write. The reward model has never seen such text, so its scores are no longer reliable
# there. For this reason the policy pays a price β for leaving the model it started from, π_ref.
# (Course A calls it π^SFT, course D π̃.)
#
#     R(x, y) = r(x, y) − β log( π(y|x)/π_ref(y|x) )         the return of one answer
#     J(π)    = E_π[R] = E_π[r] − β·KL(π‖π_ref)              its mean
#
# The second line holds because E_π[log(π/π_ref)] is the definition of KL(π‖π_ref).
#
# As in lesson 16, all answers are listed: 31 answers of at most four tokens, with three tokens to
# choose from. The policy π, the reference π_ref and the rewards are random. We compare with the KL
# of `torch.distributions`.
#
# Items: A22

# %%
BETA = 0.7
V, L = 3, 4
tokens, mask = list_answers(torch.tensor([0]), V, L)                    # (31, 5)
actions = mask[:, 1:]                                                   # (31, 4)
N = len(tokens)


def random_table():
    table = Table(V, L, V).double()
    with torch.no_grad():
        table.rows.normal_(generator=lesson.generator)
    return table


policy, reference = random_table(), random_table()
r = torch.randn(N, dtype=torch.float64, generator=lesson.generator) * 1.5       # (31,) rewards
with torch.no_grad():
    logp = answer_logprobs(policy, tokens, mask)                        # (31,)
    ref = answer_logprobs(reference, tokens, mask)                      # (31,)
p = logp.exp()                                                          # (31,) π(y)
pi, pi_ref = Categorical(probs=p), Categorical(probs=ref.exp())
kl = categorical_kl(pi, pi_ref)
lesson.check("E_π[ r − β log(π/π_ref) ] = E_π[r] − β·KL",
             expectation(logp, r - BETA * (logp - ref)), (p * r).sum() - BETA * kl, atol=1e-12,
             source="A: Proximal Policy Optimization (PPO); B: Función de costo RLHF",
             items=("A23", "B24"))

# %% [markdown]
# **KL ≥ 0.** This fact is used twice below. The logarithm is concave, so by Jensen's inequality the
# mean of a logarithm is at most the logarithm of the mean:
#
#     −KL(π‖q) = E_π[ log(q/π) ] ≤ log E_π[ q/π ] = log Σ_y π(y)·q(y)/π(y) = log Σ_y q(y) = 0
#
# The last sum is 1. Equality holds only if q/π is constant, that is, if q = π.
#
# **One price for each token.** log π(y|x) is a sum over tokens, so the price is a sum too: each
# action aₜ pays −β log( π(aₜ|sₜ)/π_ref(aₜ|sₜ) ), and the last action also receives r. Course D
# charges each action the KL of the two next-token distributions instead:
#
#     r(sₜ, aₜ) = r_ψ(sₜ, aₜ) − β·KL( π(·|sₜ) ‖ π̃(·|sₜ) )
#
# Given the state sₜ, the mean of the first price over aₜ is the second price. So the means over all
# answers agree. This is the chain rule of KL: KL(π‖π_ref) = Σ_s P_π(s)·KL( π(·|s) ‖ π_ref(·|s) ),
# where P_π(s) is the probability that an answer passes through the state s.
#
# Errata of course D in this formula: the reward is written as a conditional, (sₜ|aₜ), but it is a
# function of both; the KL is written with two numbers π(aₜ|sₜ), but it compares whole
# distributions; the "penalty control parameter" is β alone. The sentence before the formula
# exchanges π and π̃: π is the policy in training, and π̃ is fixed. In D's summary the reward
# model's parameters are θ; they should be ψ, as above.

# %%
with torch.no_grad():
    step_logp = token_logprobs(policy(tokens[:, :-1]), tokens, mask)            # (31, 4)
    step_ref = token_logprobs(reference(tokens[:, :-1]), tokens, mask)          # (31, 4)
per_token = token_rewards(r, step_logp, step_ref, actions, BETA)                # (31, 4)
lesson.check("the prices of all tokens add up to the price of the answer",
             (p * per_token.sum(1)).sum(), (p * r).sum() - BETA * kl, atol=1e-12,
             source="Ouyang et al. 2022, §3.5")


@torch.no_grad()
def kl_state_by_state():
    """Σ_s P_π(s)·KL( π(·|s) ‖ π_ref(·|s) ): one state at a time."""
    total = 0.0
    for length in range(L):
        for words in itertools.product(range(1, V), repeat=length):     # 0 would end the answer
            state = torch.tensor([[0, *words]])                         # (1, length + 1)
            steps = policy(state)[0].log_softmax(-1)                    # (length + 1, V)
            reached = math.exp(sum(steps[t, word] for t, word in enumerate(words)))
            here, there = policy(state)[0, -1], reference(state)[0, -1]                 # (V,)
            total += reached * categorical_kl(Categorical(logits=here), Categorical(logits=there))
    return total


lesson.check("chain rule: the KL of answers = the KL of each state, added up",
             kl_divergence(logp, ref), kl_state_by_state(), atol=1e-12,
             source="D: FUNZIONI DI REWARD", items=("D49",))

# %% [markdown]
# Is the policy gradient with these rewards the gradient of J? The rewards contain π, so they depend
# on θ too. But ∇E_π[log π] has no extra term, since E_π[∇ log π] = 0 (lesson 16). So we treat the
# rewards as fixed numbers, give each action the sum of its reward and all later rewards ("reward to
# go"), and compare with finite differences of J.

# %%
to_go = per_token.flip(1).cumsum(1).flip(1)                             # (31, 4)


def step_logprobs(table):
    """log π(aₜ|sₜ) of each action of each answer, with gradients: (31, 4)."""
    return token_logprobs(table(tokens[:, :-1]), tokens, mask)


def J(table):
    lp = answer_logprobs(table, tokens, mask)
    return (lp.exp() * (r - BETA * (lp - ref))).sum()


true_gradient = slopes(J, policy)
lesson.check("the rewards per token have the policy gradient of E[r] − β·KL",
             gradient(policy, (p[:, None] * to_go * step_logprobs(policy)).sum()), true_gradient,
             atol=1e-8, source="derived above")

# %% [markdown]
# ## 2. Estimates of the KL
# A real model has too many answers to list, so its KL is estimated from samples of π. Let
# u = π_ref(y)/π(y). Three estimates are in use (Schulman 2020):
#
#     k1 = −log u          k2 = ½ (log u)²          k3 = u − 1 − log u
#
# - k1 has the right mean, by definition. It can be negative.
# - k3 has the right mean, since E_π[u] = Σ π·π_ref/π = 1. It is never negative, since
#   log u ≤ u − 1. It varies less than k1 if the two policies are close, and possibly more if not.
# - k2 is biased, but only a little if the two policies are close.
# - If k3 is computed with 1/u in place of u, a common error, the mean is not the KL but χ² − KL,
#   where χ² = Σ_y π(y)²/π_ref(y) − 1.
#
# Now suppose that an estimate is used as a *loss*: samples are held fixed and the estimate is
# differentiated. Then the three differ. Since ∇u = −u ∇ log π,
#
#     E[∇k1] = E[∇ log π] = 0                                       no gradient, only noise
#     E[∇k2] = E[log(π/π_ref) ∇ log π] = ∇KL(π‖π_ref)
#     E[∇k3] = E[(1 − u) ∇ log π] = −Σ π_ref ∇ log π = ∇KL(π_ref‖π)       the other direction
#
# We compare with finite differences of both KLs.

# %%
k1, k2, k3 = kl_estimates(logp, ref)
lesson.check("E[k1] = E[k3] = KL", torch.stack([(p * k1).sum(), (p * k3).sum()]),
             torch.stack([kl, kl]), atol=1e-12, source="Schulman 2020")
lesson.check("k3 ≥ 0 for every answer: the part below 0", k3.clamp(max=0.0), torch.zeros(N),
             atol=1e-12, source="Schulman 2020")
_, _, inverted = kl_estimates(ref, logp)                                # with 1/u in place of u
chi_squared = sum(math.exp(2 * a - b) for a, b in zip(logp.tolist(), ref.tolist())) - 1
lesson.check("k3 with the ratio inverted: χ² − KL", (p * inverted).sum(), chi_squared - kl,
             atol=1e-9, source="derived above")

nearby = copy.deepcopy(reference)
with torch.no_grad():
    nearby.rows.lerp_(policy.rows, 0.1)
    near = answer_logprobs(nearby, tokens, mask)                        # (31,)
print("    one sample's estimate:    mean      standard deviation")
for name, lp in (("π", logp), ("a tenth of the way from π_ref to π", near)):
    print(f"    {name}: KL {kl_divergence(lp, ref):.4f} nats")
    for estimate, k in zip(("k1", "k2", "k3"), kl_estimates(lp, ref)):
        mean = expectation(lp, k)
        deviation = expectation(lp, (k - mean) ** 2) ** 0.5
        print(f"      {estimate:<22}{mean:10.4f}{deviation:15.4f}")


def kl_forwards(table):
    lp = answer_logprobs(table, tokens, mask)
    return (lp.exp() * (lp - ref)).sum()


def kl_backwards(table):
    return (ref.exp() * (ref - answer_logprobs(table, tokens, mask))).sum()


forwards, backwards = slopes(kl_forwards, policy), slopes(kl_backwards, policy)
with_gradients = kl_estimates(answer_logprobs(policy, tokens, mask), ref)       # p stays fixed
as_loss = [gradient(policy, (p * k).sum()) for k in with_gradients]
lesson.check("as a loss, k1: the mean gradient is 0", as_loss[0], torch.zeros_like(forwards),
             atol=1e-12, source="derived above")
lesson.check("as a loss, k2: ∇KL(π‖π_ref)", as_loss[1], forwards, atol=1e-8, source="derived above")
lesson.check("as a loss, k3: ∇KL(π_ref‖π), the other direction", as_loss[2], backwards, atol=1e-8,
             source="derived above")

# %% [markdown]
# All estimates need log-probabilities of the distribution that was sampled. A test for this: the
# mean of 1/π(y) over samples y of π is Σ π(y)/π(y), the number of answers, here 31. If sampling
# uses a temperature τ and scoring does not, the mean is another number.

# %%
mild = Table(V, L, V).double()                                          # no answer is very rare
with torch.no_grad():
    mild.rows.normal_(generator=lesson.generator).mul_(0.5)
    exactly = answer_logprobs(mild, tokens, mask).exp()                 # (31,)
means = {}
for temperature in (1.0, 0.5):
    sample = roll_out(mild, torch.zeros(20_000, 1, dtype=torch.long), L, 0, temperature,
                      generator=lesson.generator)
    with torch.no_grad():
        scored = answer_logprobs(mild, sample.tokens, sample.mask)      # (20000,)
    means[temperature] = scored.neg().exp().mean().item()
error = math.sqrt((exactly.reciprocal().sum().item() - N**2) / 20_000)  # the standard error
lesson.check("mean of 1/π(y) over samples = number of answers (standard errors)",
             (means[1.0] - N) / error, 0.0, atol=6.0, source="derived above")
print(f"    mean of 1/π(y): {means[1.0]:.1f} of {N} answers; "
      f"if the samples have temperature 0.5: {means[0.5]:.1f}")

# %% [markdown]
# ## 3. The best policy in closed form
# Let Z = Σ_y π_ref(y) e^{r(y)/β} and π*(y) = π_ref(y) e^{r(y)/β}/Z. Then
#
#     J(π) = Σ π(y) [ r(y) − β log(π(y)/π_ref(y)) ]
#          = β Σ π(y) [ log( π_ref(y) e^{r(y)/β} ) − log π(y) ]       since r = β log e^{r/β}
#          = β Σ π(y) [ log Z + log π*(y) − log π(y) ]                definition of π*
#          = β log Z − β·KL(π‖π*)                                     since Σ π(y) = 1
#
# KL ≥ 0, and KL = 0 only for equal distributions (section 1). So **π* is the only best policy,
# J(π*) = β log Z, and any other policy loses β·KL(π‖π*).** For a policy in training, KL(π‖π*) is
# the distance from the goal, in nats.
#
# For a real model, Z cannot be computed: it is a sum over every possible answer to the prompt
# (course B). Here it is a sum of 31 terms. Lesson 19 starts from this problem.
#
# We compare π* with the end of a climb that does not know the formula: gradient ascent on J from a
# uniform start, with one free logit for each answer. Each slope ∂J/∂logit is divided by the
# answer's probability (the natural gradient, Kakade 2002), so that rare answers move as fast as
# common ones. Then each step multiplies the error of log π by 1 − β/2, for any rewards.
#
# Items: B26

# %%
best, log_z = optimal_policy(ref, r, BETA)
free = torch.zeros(N, dtype=torch.float64, requires_grad=True)
for _ in range(200):
    log_free = free.log_softmax(0)
    climbed = (log_free.exp() * (r - BETA * (log_free - ref))).sum()    # J
    (slope,) = torch.autograd.grad(climbed, free)
    with torch.no_grad():
        free += 0.5 * slope / log_free.exp()
lesson.check("π* = π_ref e^{r/β}/Z is where the climb on J ends", best.exp(),
             free.detach().softmax(0), atol=1e-6, source="B: Política óptima", items=("B25",))
lesson.check("J(π*) = β log Z", climbed.detach(), BETA * log_z, atol=1e-10,
             source="Rafailov et al. 2023, app. A.1")
lost = BETA * log_z - objective(logp, ref, r, BETA)                     # J(π*) − J(π)
lesson.check("J(π*) − J(π) = β·KL(π‖π*)", lost,
             BETA * categorical_kl(pi, Categorical(probs=best.exp())), atol=1e-12,
             source="Rafailov et al. 2023, app. A.1")
ends = torch.stack([optimal_policy(ref, r, beta)[0].exp() for beta in (1e6, 1e-3)])
lesson.check("β → ∞ gives π_ref; β → 0 gives the best answer only", ends,
             torch.stack([ref.exp(), (r == r.max()).double()]), atol=1e-5, source="limits of π*")

# %% [markdown]
# Three more facts about π*, each from its definition:
#
# - KL(π*‖π_ref) = E*[ log(π*/π_ref) ] = E*[ r/β − log Z ] = E*[r]/β − log Z.
# - dE*[r]/d(1/β) = Var*(r) ≥ 0: a lower price always buys more reward. (With b = 1/β,
#   d log π*/db = r − E*[r], so dE*[r]/db = Σ π*·(r − E*[r])·r = Var*(r).)
# - π* can be computed token by token. Let Q*(s, a) be r if the action a ends the answer, and
#   V*(next state) otherwise. Then V*(s) = β log Σ_a π_ref(a|s) e^{Q*(s, a)/β}, a "soft" maximum
#   over the actions, and V* of the prompt is β log Z.

# %%
mean_best, h = expectation(best, r), 1e-5
lesson.check("KL(π*‖π_ref) = E*[r]/β − log Z", mean_best / BETA - log_z,
             categorical_kl(Categorical(probs=best.exp()), pi_ref), atol=1e-10,
             source="derived above")
around = [expectation(optimal_policy(ref, r, 1 / (1 / BETA + step))[0], r) for step in (h, -h)]
lesson.check("dE*[r]/d(1/β) = Var*(r)", (best.exp() * (r - mean_best) ** 2).sum(),
             (around[0] - around[1]) / (2 * h), atol=1e-6, source="derived above")
reward_of = {tuple(row[:1 + int(count.sum())].tolist()): reward.item()
             for row, count, reward in zip(tokens, actions, r)}


@torch.no_grad()
def soft_value(state, n_left):
    """V* of a state, a tuple of tokens, with at most `n_left` tokens to come."""
    log_refs = reference(torch.tensor([state]))[0, -1].log_softmax(0).tolist()          # V numbers
    total = 0.0
    for token, log_ref in enumerate(log_refs):
        after = (*state, token)
        ended = token == 0 or n_left == 1
        q = reward_of[after] if ended else soft_value(after, n_left - 1)                # Q*(s, a)
        total += math.exp(log_ref + q / BETA)
    return BETA * math.log(total)


lesson.check("token by token: V* of the prompt = β log Z", BETA * log_z, soft_value((0,), L),
             atol=1e-10, source="derived above")

# %% [markdown]
# ## 4. PPO: use each answer several times
# REINFORCE takes one step with its answers. After the step they are no longer samples of the
# policy. PPO (Schulman et al. 2017) takes several steps. Let π_old be the policy that sampled the
# answers. It stays fixed while π_θ is trained. For any function f,
#
#     E_π[f] = Σ_y π(y) f(y) = Σ_y π_old(y) · π(y)/π_old(y) · f(y) = E_old[ρ f],     ρ = π/π_old
#
# This is importance sampling: samples of π_old, with the weight ρ, estimate a mean under π. The
# mean is right for any π and π_old, and f = 1 gives E_old[ρ] = 1. But the farther π is from π_old,
# the more the weights vary, and then a few samples decide the estimate.

# %%
n_drawn = 20_000
drawn = ref.exp().multinomial(n_drawn, replacement=True, generator=lesson.generator)   # from π_old
print(f"    {n_drawn:,} samples of π_old estimate the mean reward under another policy π:")
misses = []
for name, lp in (("a tenth of the way from π_old to π", near), ("π", logp)):
    rho = (lp - ref).exp()                                              # (31,) here π_old is π_ref
    weighted = (rho * r)[drawn]                                         # (20000,)
    exact_mean = (lp.exp() * r).sum()
    spread = ((ref.exp() * (rho * r) ** 2).sum() - exact_mean**2).sqrt()
    misses.append((weighted.mean() - exact_mean) / (spread / n_drawn**0.5))
    print(f"      {name:<36} {weighted.mean():7.3f}, exact {exact_mean:7.3f}; "
          f"one weighted sample varies by {spread:.2f}")
lesson.check("importance sampling: E_old[ρ r] = E_π[r] (standard errors)", torch.stack(misses),
             torch.zeros(2), atol=6.0, source="derived above")

# %% [markdown]
# PPO applies this to each action: ρₜ(θ) = π_θ(aₜ|sₜ)/π_old(aₜ|sₜ). The factor f is the *advantage*
# Aₜ: the return that followed the action, minus what was expected in its state. Section 5 computes
# it. A > 0 says that the action was better than expected, so it should become more likely. While
# the steps are taken, Aₜ is a fixed number.
#
# At θ = θ_old all ratios are 1, and ∇ρ = ρ ∇ log π = ∇ log π. So the first step of PPO is a step of
# REINFORCE with advantages. Later, when ratios move away from 1, PPO clips them (eq. 7):
#
#     L = −E min( ρA, clip(ρ, 1−ε, 1+ε)·A )
#
# The slope of L in ρ, with ε = 0.2:
#
#     A = +1 (should become more likely):   −1 for ρ < 1.2;   0 above 1.2
#     A = −1 (should become less likely):   0 for ρ < 0.8;   +1 above 0.8, also at ρ = 1.5
#
# A slope of 0 means that the action has moved far enough in the right direction, so this batch
# moves it no further. The min makes the rule one-sided: an action that has moved in the *wrong*
# direction always keeps its slope, so the error can be corrected.

# %%
A = torch.randn(N, L, dtype=torch.float64, generator=lesson.generator)
first_step = gradient(policy, ppo_policy_loss(step_logprobs(policy), step_logp, A, actions))
lesson.check("at θ = θ_old: ∇L = −mean A ∇ log π, as in REINFORCE", first_step,
             slopes(lambda table: -(A * step_logprobs(table))[actions].mean(), policy), atol=1e-8,
             source="Schulman et al. 2017, §2.1 and §3")
ratios = torch.tensor([0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5], dtype=torch.float64)
one = torch.ones(1, 1, dtype=torch.bool)


def clip_slope(ratio, advantage, h=1e-6):
    """The slope of one action's loss in its ratio, by a central difference."""
    old, A = torch.zeros(1, 1).double(), torch.full((1, 1), advantage).double()
    above, below = (ppo_policy_loss(torch.log(ratio + step)[None, None], old, A, one)
                    for step in (h, -h))
    return (above - below) / (2 * h)


measured = torch.stack([torch.stack([clip_slope(ratio, advantage) for ratio in ratios])
                        for advantage in (1.0, -1.0)])                  # (2, 7)
the_table = torch.tensor([[-1.0] * 5 + [0.0] * 2, [0.0] * 2 + [1.0] * 5])
lesson.check("slope of the clipped loss in ρ, for A = +1 and A = −1", measured, the_table,
             atol=1e-6, source="Schulman et al. 2017, eq. 7 and fig. 1")

fig, axes = plotting.figure(8, 3.3, columns=2, sharey=True)
grid = torch.linspace(0.4, 1.7, 200, dtype=torch.float64)
for panel, advantage in zip(axes, (1.0, -1.0)):
    clipped = torch.minimum(grid * advantage, grid.clamp(0.8, 1.2) * advantage)
    panel.plot(grid, grid * advantage, color="grey", linestyle="--", linewidth=1, label="ρA")
    panel.plot(grid, clipped, label="min( ρA, clip(ρ)·A )")
    panel.set(xlabel="ρ = π_θ / π_old", title=f"A = {advantage:+.0f}")
    panel.legend(loc="lower right" if advantage > 0 else "lower left")
axes[0].set_ylabel("what PPO maximises")
lesson.figure(fig, "clip")

# %% [markdown]
# ## 5. Advantages: the value model and GAE
# The reward comes at the end, and the price at each action. A **value model** V(s) estimates the
# sum of the rewards still to come. It reads the same tokens as the policy and gives one number for
# each state. It is trained in the same loop: PPO adds the squared error ½(V(sₜ) − returnₜ)² to its
# loss. The mean of the returns from a state minimises it, and this mean is the true V(s).
#
# Each action changes the estimate by δₜ = rₜ + γV(sₜ₊₁) − V(sₜ), the one-step error. γ ≤ 1 makes
# later rewards count less. GAE (Schulman et al. 2016, eq. 16) adds up this error and all later
# ones. Each step multiplies the weight by γλ (PPO below has γ = 1 and λ = 0.95):
#
#     Aₜ = δₜ + (γλ) δₜ₊₁ + (γλ)² δₜ₊₂ + …          as a recursion: Aₜ = δₜ + γλ Aₜ₊₁
#
# - λ = 1: the V in the middle cancel, and Aₜ = (rewards to go) − V(sₜ). V is only a baseline, so
#   the gradient is right whatever V is. It is noisy.
# - λ = 0: Aₜ = δₜ. It is less noisy, but biased if V is wrong.
# - With the exact V, E[δₜ₊₁ | sₜ, aₜ] = 0, so every λ gives the right gradient.

# %%
B, T = 3, 6
rewards, values = torch.randn(2, B, T, dtype=torch.float64, generator=lesson.generator)
lengths = [6, 3, 1]
counted = torch.arange(T) < torch.tensor(lengths)[:, None]              # (3, 6)
GAMMA, LAM = 0.9, 0.8
by_sums, discounted = torch.zeros(2, B, T, dtype=torch.float64)
for row, length in enumerate(lengths):
    following = [*values[row, 1:length], 0.0]                           # V(sₜ₊₁), 0 at the end
    delta = [rewards[row, t] + GAMMA * following[t] - values[row, t] for t in range(length)]
    for t in range(length):
        by_sums[row, t] = sum((GAMMA * LAM) ** (k - t) * delta[k] for k in range(t, length))
        discounted[row, t] = sum(GAMMA ** (k - t) * rewards[row, k] for k in range(t, length))
lesson.check("GAE: the recursion = the sum, three lengths",
             gae(rewards, values, counted, GAMMA, LAM)[0], by_sums, atol=1e-12,
             source="Schulman et al. 2016, eq. 16")
lesson.check("λ = 1: A = rewards to go − V, and the returns do not contain V",
             torch.stack(gae(rewards, values, counted, GAMMA, 1.0)),
             torch.stack([(discounted - values) * counted, discounted]), atol=1e-12,
             source="Schulman et al. 2016, eq. 18")
one_step = rewards[0] + GAMMA * torch.cat([values[0, 1:], torch.zeros(1)]) - values[0]
lesson.check("λ = 0: A = δ", gae(rewards, values, counted, GAMMA, 0.0)[0][0], one_step, atol=1e-12,
             source="Schulman et al. 2016, eq. 17")

# %% [markdown]
# Now the bias, on the 31 answers. The exact V(s) is the mean of the rewards to go over all answers
# that pass through s. The wrong V is the exact one plus random numbers. For each λ the policy
# gradient with GAE's advantages is a sum over all answers, and we compare it with ∇J by finite
# differences.

# %%
exact_V = torch.zeros(N, L, dtype=torch.float64)
for i in range(N):
    for t in range(int(actions[i].sum())):
        through = (tokens[:, :t + 1] == tokens[i, :t + 1]).all(1) & actions[:, t]       # (31,)
        exact_V[i, t] = (p[through] * to_go[through, t]).sum() / p[through].sum()
noise = torch.randn(len(policy.rows), dtype=torch.float64, generator=lesson.generator)
wrong_V = exact_V + noise[policy.numbers(tokens[:, :-1])]               # one number for each state


def gae_gradient(V, lam):
    """Σ_y π(y) Σₜ Aₜ ∇ log π(aₜ|sₜ), with GAE's advantages for this V and λ."""
    advantages, _ = gae(per_token, V, actions, 1.0, lam)                # (31, 4)
    return gradient(policy, (p[:, None] * advantages * step_logprobs(policy)).sum())


LAMBDAS = (0.0, 0.5, 0.95, 1.0)
lesson.check("with the exact V, every λ gives ∇J",
             torch.stack([gae_gradient(exact_V, lam) for lam in LAMBDAS]),
             true_gradient.expand(len(LAMBDAS), -1), atol=1e-8, source="derived above")
lesson.check("with a wrong V, λ = 1 gives ∇J", gae_gradient(wrong_V, 1.0), true_gradient, atol=1e-8,
             source="derived above")
bias = [((gae_gradient(wrong_V, lam) - true_gradient).norm() / true_gradient.norm()).item()
        for lam in LAMBDAS]
lesson.claim("with a wrong V the gradient is biased for λ < 1, most at λ = 0",
             bias[0] > bias[1] > bias[2] > 1e-3,
             "error relative to ∇J: " + ", ".join(f"{b:.1e} at λ = {lam}"
                                                  for lam, b in zip(LAMBDAS, bias)))

# %% [markdown]
# Two details of most PPO programs, which are not in the papers' equations:
#
# - **Whitening.** The advantages of one iteration are shifted to mean 0 and divided by their
#   standard deviation (the biased one), over the actions that count. So the size of a step does not
#   depend on the unit of the reward. Padding must not change the result.
# - **Value clip.** The squared error is the larger of two: that of V, and that of V limited to
#   ±0.2 around its old value. So it is never below the plain error, it equals the plain error
#   within the range, and a value that has moved beyond the range toward its return has slope 0.

# %%
flat = values[counted].tolist()
centre, width = statistics.fmean(flat), statistics.pstdev(flat)
by_hand = torch.zeros(B, T, dtype=torch.float64)
by_hand[counted] = torch.tensor([(v - centre) / width for v in flat], dtype=torch.float64)
lesson.check("whitening: (A − mean)/sd, and 10⁶ in the padding changes nothing",
             whiten(values.masked_fill(~counted, 1e6), counted), by_hand, atol=1e-6,
             source="arithmetic with Python's statistics")
moved = torch.tensor([-0.5, 0.1, 0.2, 0.5], dtype=torch.float64)        # V; its old value was 0
losses = torch.stack([ppo_value_loss(v[None, None], torch.zeros(1, 1), torch.ones(1, 1), one)
                      for v in moved])
lesson.check("value clip, return 1: ½·1.5², ½·0.9², ½·0.8², ½·0.8² (not ½·0.5²)", losses,
             torch.tensor([1.125, 0.405, 0.32, 0.32]), atol=1e-7, source="by hand")

# %% [markdown]
# ## 6. REINFORCE and PPO against π*
# We now run the loop of InstructGPT's third step (course A, "Train policy with PPO"; course C, "RL
# from Human Feedback"): sample a prompt, let the policy write an answer, let the reward score it,
# and update the policy, in courses A and C by PPO. Course D's summary has the same three parts: a
# pre-trained model, a reward function, and policy gradient, which trains the first with the second.
# The one difference: in the courses the reward is a learned model (as in lesson 17). Here the true
# rule stands in its place, so that π* is known and the algorithms can be tested alone.
#
# The world is lesson 17's waiter: a GPT that has learned the usual replies, a rule r for how good a
# reply is, and 3,906 possible replies to each of two customers. β = 1. KL(π‖π*) is computed by
# listing all replies.

# %%
BETA = 1.0
ITERATIONS = lesson.pick({"REINFORCE": 500, "PPO": 400}, {"REINFORCE": 40, "PPO": 10})
waiter = train_reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in all_replies())       # (2, 3906, T)
with torch.no_grad():
    usual = [answer_logprobs(waiter, t, m) for t, m in zip(everything, belongs)]        # 2 (3906,)
rule = [replies.reward(t, m) for t, m in zip(everything, belongs)]
goal = [optimal_policy(lp, reward, BETA)[0] for lp, reward in zip(usual, rule)]         # log π*
tied = [reward > reward.max() - 1e-4 for reward in rule]                # the replies of best reward


def summary(now):
    """From log-probabilities, 2 of (3906,): exact means over both customers, in nats."""
    each = [(kl_divergence(lp, g), kl_divergence(lp, u), expectation(lp, reward),
             -expectation(lp, lp), lp[at_best].exp().sum())
            for lp, g, u, reward, at_best in zip(now, goal, usual, rule, tied)]
    names = ("to_goal", "from_ref", "reward", "reply_entropy", "best_replies")
    return {name: (first + second).item() / 2 for name, first, second in zip(names, *each)}


@torch.no_grad()
def measure(policy):
    """The summary of a model."""
    return summary([answer_logprobs(policy, t, m) for t, m in zip(everything, belongs)])


at_goal = summary(goal)


def prompts(n, generator):
    return replies.customers(n, generator).to(device)


def learn(method, n_iterations, beta=BETA, **more):
    """The trained policy, and a row of metrics for the start and for every few iterations.

    Each iteration samples 256 replies. REINFORCE takes one step with them, PPO four.
    """
    policy = copy.deepcopy(waiter).requires_grad_(True)
    settings = {"n_iterations": n_iterations, "n_prompts": 4, "n_samples": 64,
                "max_new_tokens": replies.LONGEST, "stop_token": replies.STOP, "beta": beta,
                "learning_rate": 5e-3, "optimizer": "muon", "seed": lesson.seed} | more
    every = 20 if method == "REINFORCE" else 5              # iterations between two measurements
    rows = [{"replies": 0, "beta": beta} | measure(policy)]

    def on_row(row):
        n_done = row["iteration"] + 1
        if n_done % every == 0 or n_done == n_iterations:
            rows.append(row | {"replies": 256 * n_done} | measure(policy))

    if method == "REINFORCE":
        reinforce(policy, waiter, prompts, replies.reward, ReinforceConfig(**settings), on_row)
    else:
        value = ValueModel(copy.deepcopy(waiter).requires_grad_(True))
        ppo(policy, value, waiter, prompts, replies.reward, PPOConfig(**settings), on_row)
    return policy, rows


runs = {}
for method in ITERATIONS:
    runs[method] = learn(method, ITERATIONS[method])
    rows = runs[method][1]
    way = " → ".join(f"{row['to_goal']:.3f}" for row in rows[::max(1, len(rows) // 6)])
    print(f"    {method}: KL(π‖π*) {way}, after {rows[-1]['replies']:,} replies")

# %% [markdown]
# What to look for in a log of PPO:
# - `score` should rise. `kl` should rise too, and then stay near the KL of π*, which is known here.
#   If `kl` keeps rising, the price is 0 (section 7) or too low. (One iteration has 64 replies to
#   each of four customers, so both numbers also depend on which customers were drawn.)
# - `ratio_first` must be 1. Otherwise the two log-probabilities of one action do not come from the
#   same model (dropout, a temperature, a wrong shift).
# - `clip_fraction` is the share of actions with a clipped ratio. Values from 0.05 to 0.3 are
#   healthy while there is much to learn. It falls to 0 with the learning rate.
# - `entropy`, in nats per token, must stay well above 0. Near 0 the policy samples nothing new.
# - `explained_variance` of the value model: 1 is perfect; below 0 is worse than a constant.

# %%
rows = runs["PPO"][1]
names = ("score", "kl", "ratio_first", "clip_fraction", "entropy", "explained_variance")
print(f"    {'replies':>8}" + "".join(f"{name:>{len(name) + 4}}" for name in names))
for row in (*rows[1:-1:16], rows[-1]):
    values_of = "".join(f"{row[name]:{len(name) + 4}.3f}" for name in names)
    print(f"    {row['replies']:8,}{values_of}")
print(f"    π*: score {at_goal['reward']:.3f}, kl {at_goal['from_ref']:.3f} "
      "(exact, mean of both customers)")
lesson.check("PPO's first ratio in each iteration is 1", [row["ratio_first"] for row in rows[1:]],
             [1.0] * len(rows[1:]), atol=1e-4, source="Schulman et al. 2017, §3")


def reached(method):
    """Whether the last KL(π‖π*) is at most 0.02 nats, and the numbers."""
    first, *_, last = runs[method][1]
    return last["to_goal"] <= 0.02, (f"KL(π‖π*) = {last['to_goal']:.4f} nats after "
                                     f"{last['replies']:,} replies; at the start "
                                     f"{first['to_goal']:.2f}")


lesson.claim("REINFORCE reaches π*", *reached("REINFORCE"), full_run=True, items=("D50",))
lesson.claim("PPO reaches π*", *reached("PPO"), full_run=True, items=("A18", "C57"))

# %% [markdown]
# ## 7. Without the price
# Now β = 0, so only the reward counts. Several replies share the highest reward. A policy that
# always gives one of them has the same J as a policy that gives all of them. Nothing in J keeps
# the variety of the replies, or their probabilities under π_ref.

# %%
runs["REINFORCE, β = 0"] = learn("REINFORCE", lesson.pick(250, 30), beta=0.0)
generator = torch.Generator().manual_seed(lesson.seed)
asked = torch.tensor([[replies.PLEASE]] * 4 + [[replies.NOW]] * 4, device=device)
for name, speaker in (("π_ref", waiter), ("REINFORCE, β = 1", runs["REINFORCE"][0]),
                      ("REINFORCE, β = 0", runs["REINFORCE, β = 0"][0])):
    said = roll_out(speaker, asked, replies.LONGEST, replies.STOP, generator=generator).tokens.cpu()
    print(f"    {name}:\n        " + ";  ".join(map(replies.written, said[:4]))
          + "\n        " + ";  ".join(map(replies.written, said[4:])))

# %% [markdown]
# The next figure shows each policy as a point: its KL from π_ref and its mean reward. The curve is
# π* for every β, from ∞ (left end) to 0 (right end). It is the *frontier*: no policy has more
# reward at the same KL. (Proof: such a policy would have a J above J(π*) for the β of that point.)
# The curve ends where π* has only the replies of the highest reward.
#
# Both methods with β = 1 move below the curve and end at its point for β = 1. The run without a
# price ends below the curve and to the right of the curve's end: it is farther from π_ref than
# the highest reward requires, and its reward is lower, because only a part of its replies are the
# best ones.

# %%
BETAS = torch.logspace(2, -1.5, 60).tolist()
frontier = []
for beta in BETAS:
    point = summary([optimal_policy(u, reward, beta)[0] for u, reward in zip(usual, rule)])
    frontier.append((point["from_ref"], point["reward"]))


def highest_objective(beta):
    """β log Z, the mean over both customers: the maximum of E[r] − β·KL."""
    return sum(beta * optimal_policy(u, reward, beta)[1].item()
               for u, reward in zip(usual, rule)) / 2


fig, (left, right) = plotting.figure(11, 4.2, columns=2)
for method in ("REINFORCE", "PPO"):
    left.plot([row["replies"] for row in runs[method][1]],
              [row["to_goal"] for row in runs[method][1]], label=method)
left.axhline(0.02, color="black", linestyle=":", linewidth=1.2, label="0.02 nats")
left.set(yscale="log", xlabel="replies sampled", ylabel="KL(π‖π*), nats per reply (exact)",
         title="Distance from the best policy, β = 1")
left.xaxis.set_major_formatter("{x:,.0f}")
left.legend()
right.plot(*zip(*frontier), color="black", linestyle="-", linewidth=1,
           label="frontier: π* for every β")
for method, (_, rows) in runs.items():
    name = method if "β" in method else f"{method}, β = 1"
    right.plot([row["from_ref"] for row in rows], [row["reward"] for row in rows], marker="o",
               markersize=2.5, label=name)
right.plot(at_goal["from_ref"], at_goal["reward"], marker="*", markersize=13, color="black",
           linestyle="none", label="π* at β = 1")
right.set(xlabel="KL(π‖π_ref), nats per reply", ylabel="mean reward",
          title="Reward and distance from π_ref")
right.legend(loc="lower right")
lesson.figure(fig, "to_the_optimum")

first, *_, last = runs["REINFORCE, β = 0"][1]
end_kl = sum(-u[at_best].logsumexp(0).item() for u, at_best in zip(usual, tied)) / 2
end_reward = sum(reward.max().item() for reward in rule) / 2
lesson.claim("without the price: less than half of the entropy, and 1.5 times π*'s KL from π_ref",
             last["reply_entropy"] < 0.5 * first["reply_entropy"]
             and last["from_ref"] > 1.5 * at_goal["from_ref"],
             f"entropy of the replies {first['reply_entropy']:.2f} → {last['reply_entropy']:.2f} "
             f"nats (π*: {at_goal['reply_entropy']:.2f}); KL from π_ref {last['from_ref']:.2f} "
             f"(π*: {at_goal['from_ref']:.2f}); reward {last['reward']:.2f} "
             f"(π*: {at_goal['reward']:.2f})", full_run=True)
print(f"    {int(tied[0].sum())} and {int(tied[1].sum())} replies share the highest reward. "
      f"The frontier ends with them, at KL {end_kl:.2f} and reward {end_reward:.2f}.\n"
      f"    Without the price, {last['best_replies']:.0%} of the replies are among them.")
limits = {beta: highest_objective(beta) for beta in BETAS}
excess = max(row["reward"] - beta * row["from_ref"] - limit for _, rows in runs.values()
             for row in rows for beta, limit in limits.items())
lesson.check("no policy of these runs is above the frontier: excess over β log Z",
             max(0.0, excess), 0.0, atol=1e-4, source="derived above")

# %% [markdown]
# ## 8. A price that adjusts itself
# Which β is right depends on the unit of the reward, and a learned reward has no natural unit. It
# is easier to choose how far the policy may move, in nats. Ziegler et al. (2019, §2.2) fix a target
# for the KL and adjust β: it rises if the last answers had a KL above the target, and falls if they
# had a KL below it.
#
#     β ← β · ( 1 + K_β · clip(KL/target − 1, −0.2, 0.2) )
#
# The paper has the constant K_β = 0.1. Their released code, and ours, has n/horizon in its place,
# where n is the number of answers of the iteration.
#
# Let the target be 0.6 nats, half of the KL of π* at β = 1. The β whose π* has exactly this KL is
# found by bisection on the list of all replies. PPO does not receive this β. It starts once with a
# price that is much too low, and once with one that is much too high.

# %%
TARGET = 0.6
low, high = 0.01, 100.0
for _ in range(50):
    fair = math.sqrt(low * high)
    point = summary([optimal_policy(u, reward, fair)[0] for u, reward in zip(usual, rule)])
    low, high = (fair, high) if point["from_ref"] > TARGET else (low, fair)

steered = {}
for start in (0.2, 5.0):
    steered[start] = learn("PPO", lesson.pick(125, 5), beta=start, kl_target=TARGET,
                           kl_horizon=1000)[1]

fig, (left, right) = plotting.figure(11, 3.8, columns=2)
for (start, rows), style in zip(steered.items(), ("-", "--")):
    left.plot([row["replies"] for row in rows], [row["from_ref"] for row in rows], linestyle=style,
              label=f"β starts at {start}")
    right.plot([row["replies"] for row in rows[1:]], [row["beta"] for row in rows[1:]],
               linestyle=style, label=f"β starts at {start}")
left.axhline(TARGET, color="black", linestyle=":", linewidth=1.2, label=f"target, {TARGET} nats")
right.axhline(fair, color="black", linestyle=":", linewidth=1.2,
              label=f"the β whose π* has a KL of {TARGET}: {fair:.2f}")
left.set(xlabel="replies sampled", ylabel="KL(π‖π_ref), nats per reply (exact)",
         title="The KL settles at its target")
right.set(yscale="log", xlabel="replies sampled", ylabel="β, reward per nat",
          title="The price β adjusts itself")
right.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
right.minorticks_off()
left.legend()
right.legend()
lesson.figure(fig, "adaptive_price")

settled = {start: rows[-max(1, len(rows) // 3):] for start, rows in steered.items()}
distance = {start: statistics.fmean(row["from_ref"] for row in rows)
            for start, rows in settled.items()}
price = {start: statistics.geometric_mean(row["beta"] for row in rows)
         for start, rows in settled.items()}
lesson.claim("from both starts, β settles where the KL is on target",
             all(abs(distance[start] / TARGET - 1) < 0.15 and abs(price[start] / fair - 1) < 0.15
                 for start in steered),
             f"last third of training, from β = 0.2 and from 5: KL {distance[0.2]:.2f} and "
             f"{distance[5.0]:.2f} nats (target {TARGET}), β {price[0.2]:.2f} and {price[5.0]:.2f} "
             f"(by bisection {fair:.2f})", full_run=True)

# %% [markdown]
# ## 9. What remains
# - **The reward was the true one here.** A learned reward is wrong somewhere, most of all on
#   replies that π_ref rarely gives. Lesson 20 measures this.
# - **PPO needs four models** (policy, value, reference, reward), and it samples during training.
#   But section 3 gives the result in advance: π*. Lesson 19 fits π* directly.
# - **At π* the noise of REINFORCE vanishes.** There r − β log(π*/π_ref) = β log Z for every reply,
#   so all advantages are 0 with a baseline. Whitening divides by their standard deviation, which
#   becomes very small, so PPO's steps stay noisy until the learning rate has fallen.

# %%
lesson.end()
