"""Lesson 16: the policy gradient, derived step by step and measured by listing all answers.

You will see    ∇J(θ) = E_τ[ Σₜ ∇ log π_θ(aₜ|sₜ) · R(τ) ], with a check after every step; why a mean
                of ∇P·R over samples is wrong; why a return that depends on θ needs no second
                term; which changes of the return keep the gradient; its noise; REINFORCE.
Source          course D, "Objective Function J(θ)", "Log-derivative trick" and "SUMMARY"; Williams
                1992; Sutton and Barto 2018, ch. 13.
Expect          about 15 s on one core (8 s with --quick); every check passes. With seed 0 the
                shortcut of section 3 has cosine 0.88 to ∇J, the error falls as N to the power
                −0.50, the exact V(s) leaves 3.4 times less noise than no baseline, and REINFORCE
                ends 1.2e-4 nats from the best policy.
Not here        a learned reward (lesson 17); several steps with the same samples (lesson 18).

Shapes: 81 answers, T = 4 steps, V = 3 tokens, θ with 40 · 3 = 120 numbers; G answers in a group.
"""
# %%
import itertools
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.alignment import exact
from minigpt.alignment.mdp import evaluate, list_episodes
from minigpt.alignment.reinforce import ReinforceConfig, reinforce, subtract_baseline
from minigpt.worlds.gridworld import Grid

lesson = Lesson("16_policy_gradient", threads=1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. A language model small enough to list
# There are three tokens, 0, 1 and 2, and answers of four tokens: 3⁴ = 81 answers. We use the words
# of lesson 15:
#
#     state sₜ            the prefix: the tokens that are already written
#     action aₜ           the next token
#     trajectory τ        s₀ a₀ s₁ a₁ … : here, one whole answer
#     policy π_θ(aₜ|sₜ)   the probability of the next token
#     P_θ(τ)              the probability of the trajectory: here Πₜ π_θ(aₜ|sₜ)
#     R(τ)                the return: the sum of the rewards rₜ of the trajectory
#     J(θ) = E_τ[R(τ)] = Σ_τ P_θ(τ) R(τ)          the expected return
#
# The policy is a table of logits θ, with one row per prefix and one column per token; the softmax
# of a row is π_θ(·|s). There are 1 + 3 + 9 + 27 = 40 prefixes, so θ has 120 numbers. A token has
# reward 1 if it is greater than the token before it, and 0 otherwise. So R(τ) counts the ascents:
# the answer 0 1 0 2 has R = 2.
#
# We compute J in two ways that share no code: as the sum over the list of 81 answers, and by a
# recursion over the prefixes, which lists no answer. (Course D writes z for τ at first.)

# %%
V, T = 3, 4
answers = torch.tensor(list(itertools.product(range(V), repeat=T)))     # (81, T) every τ
# The prefixes are numbered from 0: prefix s followed by token a is prefix 3s + 1 + a.
state = torch.zeros_like(answers)                                       # (81, T) sₜ
for t in range(1, T):
    state[:, t] = state[:, t - 1] * V + 1 + answers[:, t - 1]
theta = torch.randn(40, V, generator=lesson.generator, requires_grad=True)          # (40, V)
r = nn.functional.pad((answers[:, 1:] > answers[:, :-1]).double(), (1, 0))          # (81, T) rₜ
R = r.sum(1)                                                            # (81,) R(τ)


def step_logprobs(theta):
    """log π_θ(aₜ|sₜ) of every step of every answer: (81, T)."""
    return theta.log_softmax(-1)[state, answers]


def log_prob(theta):
    """log P_θ(τ) of every answer: (81,)."""
    return step_logprobs(theta).sum(1)


def J(theta):
    """J(θ) = Σ_τ P_θ(τ) R(τ), over the list of all answers."""
    return (log_prob(theta).exp() * R).sum()


def J_by_recursion(theta):
    """J(θ) without a list: the return still to come, prefix by prefix, in plain Python."""
    weights = theta.exp().tolist()

    def to_come(s, last, steps_left):
        if steps_left == 0:
            return 0.0
        total = 0.0
        for a in range(V):
            later = to_come(V * s + 1 + a, a, steps_left - 1)
            total += weights[s][a] / sum(weights[s]) * ((a > last) + later)
        return total

    return torch.tensor(to_come(0, V, T))           # no token is greater than V: no ascent at first


lesson.check("J over the list = J by recursion", J(theta), J_by_recursion(theta), atol=1e-12,
             source="D: Objective Function J(θ)", items=("D38",))

# %% [markdown]
# ## 2. Gradient ascent, and the gradient as a sum
# We look for θ* = argmax J(θ), by gradient ascent with a learning rate α:
#
#     θ_{t+1} = θ_t + α ∇J(θ_t)                   to first order, J rises by α |∇J|²
#
# (Erratum: course D says "scelta", choice, for "salita", ascent.) The true ∇J is measured once, by
# finite differences of the recursion: add h to one number of θ, subtract h, and divide the
# difference of the two values of J by 2h. This measurement can contradict every formula below.
#
# The first derivation of course D, with the reason for each step:
#
#     ∇J(θ) = ∇ E_τ[R(τ)]
#           = ∇ Σ_τ P_θ(τ) R(τ)                   definition of the expectation
#           = Σ_τ ∇( P_θ(τ) R(τ) )                the derivative of a finite sum
#           = Σ_τ ∇P_θ(τ) R(τ)                    R(τ) does not depend on θ: it is a constant here
#
# Errata: course D writes Σ_{z∼π_θ}. The sum runs over *all* trajectories; z∼π_θ would mean that
# they are sampled. And it names "linearity of the expectation" as the reason for the second step.
# The reason is the linearity of the derivative: the law of the expectation depends on θ, so ∇ may
# not be moved into the expectation. (Section 8 treats an R that depends on θ.)

# %%
def slopes(f, theta, h=1e-5):
    """∂f/∂θᵢ by finite differences, without autograd: f scalar or (N,) -> (120,) or (N, 120)."""
    columns = []
    with torch.no_grad():
        for i in range(theta.numel()):
            step = torch.zeros(theta.numel())
            step[i] = h
            step = step.view_as(theta)
            columns.append((f(theta + step) - f(theta - step)) / (2 * h))
    return torch.stack(columns, -1)


true_gradient = slopes(J_by_recursion, theta)                           # (120,) ∇J
print(f"  J = {J(theta):.3f}, |∇J| = {true_gradient.norm():.3f}; the best answers have R = 2")
risen = (J(theta + 1e-5 * true_gradient.view_as(theta)) - J(theta)) / 1e-5          # α = 1e-5
lesson.check("a small step of ascent raises J by α |∇J|²", risen, true_gradient.square().sum(),
             atol=1e-6, source="D: Objective Function J(θ)", items=("D39",))
grad_P = slopes(lambda theta: log_prob(theta).exp(), theta)             # (81, 120) ∇P(τ)
as_a_sum = sum(R[n] * grad_P[n] for n in range(len(answers)))           # (120,)
lesson.check("∇J = Σ ∇P(τ) R(τ)", as_a_sum, true_gradient, atol=1e-9,
             source="D: Objective Function J(θ)", items=("D40",))

# %% [markdown]
# ## 3. The shortcut that is wrong
# A real model has too many answers for a sum. We sample N answers τ₁ … τ_N and take a mean. By the
# law of large numbers, the mean of any function f tends to its expectation:
#
#     (1/N) Σᵢ f(τᵢ)  →  E_τ[f(τ)] = Σ_τ P_θ(τ) f(τ)
#
# The shortcut is to take the mean of the terms of the sum, f = ∇P·R. Course D warns against it: ∇P
# is not a probability distribution. What is the limit of this mean? Put f = ∇P·R into the law:
#
#     (1/N) Σᵢ ∇P(τᵢ) R(τᵢ)  →  Σ_τ P(τ) ∇P(τ) R(τ) = ½ Σ_τ ∇( P(τ)² ) R(τ) = ∇ ½ Σ_τ P(τ)² R(τ)
#
# because ∇(P²) = 2 P ∇P. Sampling has weighted each term by P; the sum that we want has no such
# weight. The limit is the gradient of another function. If all answers are equally likely,
# P = 1/81, the limit is ∇J/81: only the length is wrong. Otherwise the direction changes too.
#
# Add a constant c to R. Then J becomes J + c, because the probabilities sum to 1, and ∇J stays the
# same. But the limit of the shortcut gets the additional term c ∇ ½ Σ P². For c > 0 this term makes
# likely answers even more likely.
#
# *The typical error of a mean.* Let g be one term, μ = E[g], and ḡ the mean of N independent terms.
#
#     E|ḡ − μ|² = (1/N²) Σᵢ Σⱼ E[(gᵢ − μ)·(gⱼ − μ)]      write the square of the sum as a double sum
#               = (1/N²) Σᵢ E|gᵢ − μ|²                   for i ≠ j: independent, so E[…] = 0 · 0 = 0
#               = (1/N) E|g − μ|² = (1/N) ( E|g|² − |μ|² )
#
# We call E|g − μ|² (the sum of the variances of the 120 entries) the *variance* of g, and
# √(variance/N) the *typical error* of the mean.

# %%
P = log_prob(theta).exp().detach()                                      # (81,) P(τ), constants


def cosine(a, b):
    """The cosine of the angle between two vectors: 1 if they have the same direction."""
    return (a @ b / (a.norm() * b.norm())).item()


def typical_error(terms, n):
    """√(variance/n), by listing: terms (81, 120)."""
    mean = P @ terms
    return ((P @ terms.square().sum(1) - mean.square().sum()) / n).sqrt().item()


terms = grad_P * R[:, None]                                             # (81, 120) ∇P(τ) R(τ)
shortcut = P @ terms                                                    # (120,) its limit
half_square = slopes(lambda theta: ((2 * log_prob(theta)).exp() * R).sum() / 2, theta)
lesson.check("the mean of ∇P·R tends to ∇ ½ Σ P²R", shortcut, half_square, atol=1e-9,
             source="derived above", items=("D41",))
drawn = P.multinomial(100_000, replacement=True, generator=lesson.generator)        # (N,)
miss = (terms[drawn].mean(0) - shortcut).norm() / typical_error(terms, len(drawn))
lesson.check("and so does the mean of 100,000 samples (in typical errors)", miss, 0.0, atol=3,
             source="derived above", items=("D41",))
uniform = torch.zeros_like(theta)                       # then P(τ) = 1/81, and P @ … is a mean
limit = (slopes(lambda theta: log_prob(theta).exp(), uniform) * R[:, None]).mean(0)
lesson.check("with P = 1/81 the limit is ∇J/81", limit, slopes(J_by_recursion, uniform) / 81,
             atol=1e-9, source="derived above")
print(f"      the limit is {true_gradient.norm() / shortcut.norm():.0f} times shorter than ∇J, "
      f"and its cosine to ∇J is {cosine(shortcut, true_gradient):.2f}")

sharpness = torch.linspace(0, 4, 17)                    # θ times this; 0 makes all answers alike
direction = {c: [] for c in (-5, 0, 5)}                 # the constant added to R
for scale in sharpness:
    sharp = (theta * scale).detach().requires_grad_()
    right = torch.autograd.grad(J(sharp), sharp)[0].flatten()
    for c, cosines in direction.items():
        other = ((2 * log_prob(sharp)).exp() * (R + c)).sum() / 2
        cosines.append(cosine(torch.autograd.grad(other, sharp)[0].flatten(), right))
here = {c: cosines[4] for c, cosines in direction.items()}              # at θ itself
lesson.claim("the shortcut's direction is wrong, and a constant added to R turns it further",
             here[0] < 0.98 and min(here[-5], here[5]) < 0.5,
             f"cosine to ∇J: {here[0]:.2f} with R, {here[5]:.2f} with R + 5, "
             f"{here[-5]:.2f} with R − 5")

# %% [markdown]
# ## 4. The log-derivative trick
# We want a sum with the weight P in each term, because such a sum is an expectation. So we multiply
# and divide by P, which is never 0 for a softmax. The quotient is the derivative of a logarithm:
#
#     ∇ log f = ∇f / f            and therefore            ∇f = f ∇ log f            (chain rule)
#
#     ∇J = Σ_τ ∇P(τ) R(τ)
#        = Σ_τ P(τ) · ( ∇P(τ)/P(τ) ) · R(τ)
#        = Σ_τ P(τ) ∇ log P(τ) R(τ) = E_τ[ ∇ log P_θ(τ) · R(τ) ]                     f = P_θ(τ)
#
# (Erratum: course D writes ≈ in place of the last =. Both sides are equal. Only a mean over samples
# is an approximation.) ∇ log P_θ(τ) is called the *score* of τ. The score tells how θ must change
# to make τ more likely; R(τ) is the weight of this change.

# %%
steps = torch.autograd.functional.jacobian(step_logprobs, theta).flatten(2)     # (81, T, 120)
scores = steps.sum(1)                                                   # (81, 120) ∇ log P(τ)
lesson.check("∇f = f ∇ log f, for f = P(τ), every τ and every θᵢ", P[:, None] * scores, grad_P,
             atol=1e-9, source="D: Log-derivative trick", items=("D42",))
lesson.check("∇J = E[∇ log P(τ) · R(τ)]", (P * R) @ scores, true_gradient, atol=1e-9,
             source="D: Log-derivative trick", items=("D43",))

# %% [markdown]
# ## 5. The transitions drop out
# What is ∇ log P_θ(τ)? In lesson 15 the cat walks on a wet floor. A trajectory starts in s₀, and
# policy and floor alternate: the policy chooses aₜ, and the floor decides where the step ends. So
#
#     P_θ(τ) = P(s₀) · Πₜ π_θ(aₜ|sₜ) P(sₜ₊₁|sₜ, aₜ)                               t = 0 … T − 1
#     log P_θ(τ) = log P(s₀) + Σₜ log π_θ(aₜ|sₜ) + Σₜ log P(sₜ₊₁|sₜ, aₜ)           log of a product
#     ∇ log P_θ(τ) =              Σₜ ∇ log π_θ(aₜ|sₜ)                             the rest has no θ
#
# The last factor is the transition. Errata: course D writes T(sₜ₊₁|sₜ, θₜ). But it depends on aₜ,
# and if it depended on θ, it could not be dropped. The course's product goes from s₁ to s_{T+1},
# but its trajectory from s₀ to s_T. In its second line the left side lacks the log.
#
# So the gradient can be estimated without knowing the floor. We check this on a small map. The
# left side is log P_θ(τ) with the floor, by finite differences. The right side is counted in loops,
# with the derivative of a softmax over a row of logits:
#
#     log π(a|s) = θ_{s,a} − log Σ_c e^{θ_{s,c}}
#     ∂ log π(a|s) / ∂θ_{s,b} = [a = b] − e^{θ_{s,b}} / Σ_c e^{θ_{s,c}} = [a = b] − π(b|s)
#
# where [a = b] is 1 if a = b and 0 otherwise. The derivative by a logit of another state is 0.
#
# For a language model the next state is the prefix with the new token, with probability 1. So the
# transition's log is 0, and log P_θ(τ) = Σₜ log π_θ(aₜ|sₜ), as in section 1.

# %%
grid = Grid("""
    Sb~
    ..M
""", slip=0.2)
H = 3                                                                   # steps at most
episodes = list_episodes(grid, H)                                       # all that can happen
cat = torch.randn(6, 4, generator=lesson.generator)                     # the cat's θ: 6 cells


def episode_logprobs(cat):
    """log P_θ(τ) of every episode, with the transitions: (N,)."""
    chosen = cat.log_softmax(-1)[episodes.states, episodes.actions] * episodes.mask
    return chosen.sum(1) + episodes.transition_probability.log()


pi = cat.softmax(-1).tolist()
counted = torch.zeros(len(episodes.states), H, 6, 4)                    # ∇ log π(aₜ|sₜ), each step
for n, (states, actions, mask) in enumerate(
        zip(episodes.states.tolist(), episodes.actions.tolist(), episodes.mask.tolist())):
    for t in range(sum(mask)):
        for b in range(4):
            counted[n, t, states[t], b] = (actions[t] == b) - pi[states[t]][b]
counted = counted.flatten(2)                                            # (N, H, 24)
lesson.check("∇ log P(τ) = Σ ∇ log π: the transitions drop out", counted.sum(1),
             slopes(episode_logprobs, cat), atol=1e-8, source="D: Log-derivative trick",
             items=("D45",))

# %% [markdown]
# ## 6. The policy gradient
# Put section 5 into section 4. The result is the box of course D:
#
#     ∇J(θ) = E_τ[ Σₜ ∇ log π_θ(aₜ|sₜ) · R(τ) ]
#           ≈ (1/|D|) Σ_{τ∈D} Σₜ ∇ log π_θ(aₜ|sₜ) · R(τ)            D: a set of sampled trajectories
#
# The first line is exact (erratum: course D writes ≈ there too). We check it on the map, with J
# from lesson 15's sweeps, which use no trajectory. The second line is a sample mean. We check it
# with the 100,000 answers of section 3.

# %%
P_cat = episode_logprobs(cat).exp()                                     # (N,)
cat_returns = episodes.returns()                                        # (N, H) from step t on
cat_gradient = slopes(lambda cat: evaluate(grid, cat.softmax(-1), H)[-1, grid.start], cat)
lesson.check("the box on the map: E[Σ ∇ log π · R] = ∇J by sweeps",
             (P_cat * cat_returns[:, 0]) @ counted.sum(1), cat_gradient, atol=1e-7,
             source="D: Log-derivative trick", items=("D46",))
one_answer = R[:, None] * scores                        # (81, 120) the estimate from one answer
estimate = one_answer[drawn].mean(0)                                    # (120,)
miss = (estimate - true_gradient).norm() / typical_error(one_answer, len(drawn))
lesson.check("the mean over 100,000 answers tends to ∇J (in typical errors)", miss, 0.0, atol=3,
             source="D: Log-derivative trick", items=("D46",))
for name, mean in (("R ∇ log P", estimate), ("R ∇P", terms[drawn].mean(0))):
    distance = (mean - true_gradient).norm() / true_gradient.norm()
    print(f"      the mean of {name} lies {distance:.1%} of |∇J| away from ∇J")

# %% [markdown]
# ## 7. The mean of ∇ log π is 0
# Probabilities sum to 1 for every θ, and the derivative of the constant 1 is 0. In a state s:
#
#     E_a[ ∇ log π(a|s) ] = Σ_a π(a|s) ∇ log π(a|s) = Σ_a ∇π(a|s) = ∇ Σ_a π(a|s) = ∇1 = 0
#
# The second step is the trick of section 4, with f = π(a|s). The same steps with f = P_θ(τ) and the
# sum over all trajectories give E_τ[ ∇ log P_θ(τ) ] = 0. Multiply by a constant b:
#
#     E_τ[ ∇ log P_θ(τ) (R(τ) − b) ] = ∇J − b · 0 = ∇J
#
# So a constant, a *baseline* (Williams 1992), may be subtracted from R. For R + 5 it is b = −5.

# %%
means = [[sum(row[a] * ((a == b) - row[b]) for a in range(V)) for b in range(V)]
         for row in theta.softmax(-1).tolist()]                         # 40 states, 3 logits each
lesson.check("E[∇ log π(a|s)] = 0 in each of the 40 states", means, torch.zeros(40, V), atol=1e-12,
             source="Williams 1992, §4")
lesson.check("E[∇ log P(τ)] = 0", P @ scores, torch.zeros(120), atol=1e-12, source="section 7")
lesson.check("R + 5 has the same gradient", (P * (R + 5)) @ scores, true_gradient, atol=1e-9,
             source="Williams 1992, §4")

# %% [markdown]
# ## 8. A return that depends on θ
# In alignment the policy pays a price for leaving a fixed reference policy (course D, "FUNZIONI DI
# REWARD"; lesson 18):
#
#     R_θ(τ) = R(τ) − β k_θ(τ)         k_θ(τ) = log( P_θ(τ) / P_ref(τ) )         β > 0
#
# The mean of k_θ is the Kullback–Leibler divergence, E_τ[k_θ(τ)] = KL(P_θ‖P_ref). Now the return
# depends on θ, and the last step of section 2 does not hold any more. By the product rule there is
# a second term:
#
#     ∇J = Σ_τ ∇( P_θ(τ) R_θ(τ) ) = Σ_τ ∇P_θ(τ) R_θ(τ)    +  Σ_τ P_θ(τ) ∇R_θ(τ)
#                                 = E_τ[ ∇ log P_θ · R_θ ]  +  E_τ[ ∇R_θ ]
#
# But this second term is 0. R(τ) and P_ref(τ) are constants, so ∇R_θ = −β ∇k_θ = −β ∇ log P_θ, and
# by section 7
#
#     E_τ[ ∇R_θ(τ) ] = −β E_τ[ ∇ log P_θ(τ) ] = 0      and therefore    ∇J = E_τ[ ∇ log P_θ · R_θ ]
#
# For a single τ, ∇R_θ(τ) is not 0. Only its mean is. Code leaves the term out, since it would only
# add noise: it computes R_θ without gradients (`torch.no_grad`).
#
# This does not hold for every price. Take ½ k_θ² as the price. Its gradient is k_θ ∇k_θ =
# k_θ ∇ log P_θ, and the mean of this is not 0. It is the gradient of the divergence:
#
#     ∇KL = Σ_τ ∇P_θ k_θ + Σ_τ P_θ ∇k_θ = E_τ[ ∇ log P_θ · k_θ ] + 0 = E_τ[ k_θ ∇ log P_θ ]
#
# With the price ½ k_θ² the second term is −β ∇KL, and must not be left out.

# %%
BETA = 0.5
ref = log_prob(torch.randn(40, V, generator=lesson.generator))          # (81,) log P_ref(τ)


def with_price(price):
    """θ ↦ E[R_θ] by listing, for a price that is a function of k_θ."""
    return lambda theta: (log_prob(theta).exp() * (R - BETA * price(log_prob(theta) - ref))).sum()


k = log_prob(theta).detach() - ref                                      # (81,) k_θ(τ)
lesson.check("price k: the first term alone is ∇J", (P * (R - BETA * k)) @ scores,
             slopes(with_price(lambda k: k), theta), atol=1e-9, source="derived above")
first, second = (P * (R - BETA * k.square() / 2)) @ scores, -BETA * (P * k) @ scores
lesson.check("price ½k²: both terms together are ∇J", first + second,
             slopes(with_price(lambda k: k.square() / 2), theta), atol=1e-9, source="derived above")
divergence = slopes(lambda theta: (log_prob(theta).exp() * (log_prob(theta) - ref)).sum(), theta)
lesson.check("price ½k²: the second term is −β ∇KL", second, -BETA * divergence, atol=1e-9,
             source="derived above")
print(f"      price ½k²: the first term alone has cosine {cosine(first, first + second):.2f} to ∇J")

# %% [markdown]
# ## 9. What else may be subtracted, and what may not
# Let hₜ = (s₀, a₀, …, sₜ) be the *history*: all that has happened before the action aₜ. Take any
# function b(hₜ) of it. Group the trajectories by their history. Within a group, sₜ and b are fixed,
# and aₜ is drawn from π(·|sₜ). So by section 7
#
#     E_τ[ ∇ log π(aₜ|sₜ) b(hₜ) ] = Σ_h P(hₜ = h) b(h) · Σ_a π(a|sₜ) ∇ log π(a|sₜ)
#                                 = Σ_h P(hₜ = h) b(h) · 0 = 0
#
# *Past rewards.* A reward rₖ with k < t came before aₜ, so it is a function of hₜ. Its product with
# ∇ log π(aₜ|sₜ) has mean 0 and may be left out. Each action needs only the rewards from its own
# step on, the *reward to go* (Sutton and Barto 2018, §13.3, write Gₜ):
#
#     ∇J = E_τ[ Σₜ ∇ log π(aₜ|sₜ) R_{≥t} ]            R_{≥t} = rₜ + rₜ₊₁ + … + r_{T−1}
#
# The argument needs the history and not only the state sₜ. On the map two episodes can reach the
# same cell with different past rewards, so the past rewards are not a function of the cell. (For a
# language model the state is the whole prefix, so hₜ and sₜ hold the same information.)
#
# *Baselines.* A baseline may depend on the state (Sutton and Barto 2018, §13.4), for example the
# *value* V(s). With it and the *action value* Q(s, a) we define the *advantage* A(s, a):
#
#     V(s) = E[R_{≥t} | sₜ = s]    Q(s, a) = E[R_{≥t} | sₜ = s, aₜ = a]    A(s, a) = Q(s, a) − V(s)
#
# Given sₜ and aₜ, the factor ∇ log π(aₜ|sₜ) is fixed. So R_{≥t} may be replaced by its mean given
# sₜ and aₜ, which is Q. Then subtract the baseline V:
#
#     ∇J = E_τ[ Σₜ ∇ log π(aₜ|sₜ) Q(sₜ, aₜ) ] = E_τ[ Σₜ ∇ log π(aₜ|sₜ) A(sₜ, aₜ) ]
#
# A(s, a) says how much better the action a is than the average action in s.
#
# A baseline that depends on aₜ itself is not allowed. The extreme case is b = Q(sₜ, aₜ). By the
# same replacement, E[ ∇ log π (R_{≥t} − Q) ] = E[ ∇ log π (Q − Q) ] = 0: no gradient is left.

# %%
def expected(P, weights, steps):
    """E_τ[ Σₜ ∇ log π(aₜ|sₜ) weightₜ ]: P (N,), weights (N, T), steps (N, T, p) -> (p,)."""
    return torch.einsum("n,nt,ntp->p", P, weights, steps)


past = torch.stack([(P_cat * episodes.rewards[:, i]) @ counted[:, t]
                    for t in range(H) for i in range(t)])               # (3, 24) i < t
lesson.check("on the map: E[∇ log π(aₜ|sₜ) rₖ] = 0 for the pairs k < t", past, torch.zeros(3, 24),
             atol=1e-12, source="derived above")
lesson.check("on the map: reward to go keeps ∇J", expected(P_cat, cat_returns, counted),
             cat_gradient, atol=1e-7, source="Sutton and Barto 2018, §13.3")


def conditional_mean(group, values):
    """E[values | group] by listing, written back to each place: (81, T), (81, T) -> (81, T)."""
    means = torch.zeros_like(values)
    for g in group.unique():
        inside = (group == g)                                           # (81, T)
        weight = P[:, None] * inside
        means[inside] = (weight * values).sum() / weight.sum()
    return means


to_go = torch.stack([r[:, t:].sum(1) for t in range(T)], 1)             # (81, T) R_{≥t}
value = conditional_mean(state, to_go)                                  # (81, T) V(sₜ)
action_value = conditional_mean(state * V + answers, to_go)             # (81, T) Q(sₜ, aₜ)
some_b = torch.randn(40, generator=lesson.generator)[state]             # (81, T) any b(sₜ)
weights = {"R≥t": to_go, "R(τ) − any b(s)": R[:, None] - some_b, "R≥t − V(s)": to_go - value,
           "Q(s, a)": action_value, "A(s, a)": action_value - value}
for name, weight in weights.items():
    lesson.check(f"weight {name}: the gradient stays ∇J", expected(P, weight, steps), true_gradient,
                 atol=1e-9, source="Sutton and Barto 2018, §13.3 and §13.4")
lesson.check("b = Q(s, a): no gradient is left", expected(P, to_go - action_value, steps),
             torch.zeros(120), atol=1e-12, source="derived above")

# %% [markdown]
# ## 10. Several answers to one prompt
# Draw G answers to the same prompt, independently, with the returns R₁ … R_G. Then the other
# answers give a baseline. *Leave-one-out* (Kool et al. 2019) subtracts from Rᵢ the mean of the
# others, bᵢ = (1/(G−1)) Σ_{j≠i} Rⱼ. The answers are independent, and bᵢ does not depend on answer
# i. So the expectation of the product is the product of the expectations, and ∇J stays the same:
#
#     E[ ∇ log P(τᵢ) bᵢ ] = E[ ∇ log P(τᵢ) ] · E[bᵢ] = 0 · E[bᵢ] = 0
#
# The mean m of *all* G answers contains Rᵢ itself, with weight 1/G:
#
#     m = (1/G) Rᵢ + ((G−1)/G) bᵢ                    Rᵢ − m = ((G−1)/G) (Rᵢ − bᵢ)
#
# So with m the gradient is exactly (G−1)/G · ∇J: its direction is right, and it is a little short.
#
# GRPO also divides Rᵢ − m by the standard deviation of the group's returns (Shao et al. 2024). This
# number differs from group to group. In a group with one rare, very good answer it is large, so
# this group counts less than it should. The sum over all groups then has another *direction*. (With
# several prompts, each prompt's part of ∇J is divided by another number, with the same effect.) For
# G = 3 all 81³ = 531,441 groups can be listed.

# %%
G = 3
groups = torch.cartesian_prod(*[torch.arange(81)] * G)                  # (81³, G)
P_groups = P[groups].prod(1)                                            # (81³,)


def group_gradient(advantages):
    """E[ (1/G) Σᵢ Aᵢ ∇ log P(τᵢ) ] over all groups: Aᵢ (81³, G) -> (120,)."""
    weights = torch.zeros(81)
    for i in range(G):
        weights.index_add_(0, groups[:, i], P_groups * advantages[:, i] / G)
    return weights @ scores


without_others = group_gradient(subtract_baseline(R[groups], "leave_one_out"))      # Rᵢ − bᵢ
without_mean = group_gradient(subtract_baseline(R[groups], "mean"))                 # Rᵢ − m
lesson.check("leave-one-out: the gradient stays ∇J", without_others, true_gradient, atol=1e-9,
             source="Kool et al. 2019")
lesson.check("group mean: the gradient is (G−1)/G · ∇J", without_mean, true_gradient * 2 / 3,
             atol=1e-9, source="derived above")
rare = P.argsort()[60]
turned = {}
for name, rewards in (("R", R), (f"R and 30 more for one answer of probability {P[rare]:.1%}",
                                 R + 30 * (torch.arange(81) == rare))):
    deviation = rewards[groups].std(1, keepdim=True).clamp(min=1e-9)    # if it is 0, Rᵢ − m is too
    divided = subtract_baseline(rewards[groups], "mean") / deviation
    turned[name] = cosine(group_gradient(divided), (P * rewards) @ scores)
lesson.claim("dividing by the group's standard deviation changes the direction",
             min(turned.values()) < 0.95,
             "cosine to ∇J: " + "; ".join(f"{c:.4f} for {name}" for name, c in turned.items()))

# %% [markdown]
# ## 11. Dividing by the length
# Let token 0 now be a stop token: nothing after it counts, and an answer y has |y| tokens, 1 to 4.
# Some implementations divide the sum over the tokens by |y|. The length of a given answer does not
# depend on θ, so R(y)/|y| is one more return, and sections 2 to 5 apply to it:
#
#     E_y[ (1/|y|) Σₜ ∇ log π(aₜ|sₜ) R(y) ] = E_y[ ∇ log P(y) · R(y)/|y| ] = ∇ E_y[ R(y)/|y| ]
#
# This is the gradient of another objective, the *return per token*. In the extreme case every token
# has reward 1, so R(y) = |y|. Then ∇E[R] makes answers longer, but the divided gradient is that of
# E[1] = 1, which is 0. And a constant baseline b is not free any more:
#
#     E_y[ ∇ log P(y) (R(y) − b)/|y| ] = ∇ E_y[ R(y)/|y| ] − b ∇ E_y[ 1/|y| ]
#
# So the library sums over the tokens (`reinforce_loss`). Liu et al. 2025 describe both effects, of
# the deviation and of the length, for GRPO.

# %%
lengths = torch.tensor([(answer + [0]).index(0) + 1 for answer in answers.tolist()]).clamp(max=T)
counts = torch.arange(T) < lengths[:, None]                             # (81, T) bool
stopped = (steps * counts[..., None]).sum(1)                            # (81, 120) ∇ log P(y)
R_stopped = (r * counts).sum(1)                                         # (81,) R(y)


def slopes_of_mean(values):
    """∇E[values] by finite differences; rows with the same beginning are one answer."""
    return slopes(lambda theta: (log_prob(theta).exp() * values).sum(), theta)


per_token, b = R_stopped / lengths, (P @ R_stopped).item()              # b: the mean return
with_b = (P * (R_stopped - b) / lengths) @ stopped
lesson.check("divided by the length: ∇E[R/|y|]", (P * per_token) @ stopped,
             slopes_of_mean(per_token), atol=1e-9, source="derived above")
lesson.check("divided, with a baseline: − b ∇E[1/|y|] more", with_b,
             slopes_of_mean(per_token) - b * slopes_of_mean(1 / lengths), atol=1e-9,
             source="derived above")
lesson.check("divided, with R = |y|: no gradient is left", (P * lengths / lengths) @ stopped,
             torch.zeros(120), atol=1e-12, source="derived above")
print(f"      with R = |y|, |∇E[R]| = {slopes_of_mean(lengths).norm():.2f}; with ascents and "
      f"b = E[R], the cosine to ∇E[R] is {cosine(with_b, slopes_of_mean(R_stopped)):.2f}")

# %% [markdown]
# ## 12. The noise
# By section 3 the estimate from N answers has the typical error √(variance/N). Its logarithm is
# ½ log(variance) − ½ log N: on two logarithmic axes a line of slope −½, for any number of
# parameters. We draw many estimates for each N, measure their distance from ∇J (root mean square),
# and fit a line.

# %%
sizes = [10, 32, 100, 316, 1000, 3162, 10_000]
repetitions = lesson.pick(full=400, quick=60)
errors = []
for n in sizes:
    squares = []                                                        # squared distances to ∇J
    for _ in range(repetitions):
        sample = P.multinomial(n, replacement=True, generator=lesson.generator)
        often = sample.bincount(minlength=81).double()                  # (81,) drawn how often
        squares.append((often @ one_answer / n - true_gradient).square().sum())
    errors.append(torch.stack(squares).mean().sqrt().item())
x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).log()
slope = ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()
lesson.claim("the error falls as N to the power −0.5 ± 0.05", abs(slope + 0.5) <= 0.05,
             f"−{-slope:.3f}, fitted over N = 10 to 10,000")

fig, panels = plotting.figure(12, 4.2, columns=2)
for c, cosines in direction.items():
    name = f"{'+' if c > 0 else '−'} {abs(c)}" if c else ""
    panels[0].plot(sharpness, cosines, marker="o", markersize=4, label=f"reward R {name}")
panels[0].set(xlabel="factor on θ (0: all answers alike)", ylabel="cosine to ∇J",
              ylim=(-1.05, 1.05), title="Direction of the mean of ∇P·R")
panels[0].axhline(0, color="black", linewidth=0.8, linestyle="-")
panels[0].legend(loc="lower left")
panels[1].loglog(sizes, [typical_error(one_answer, n) for n in sizes], color="black",
                 linestyle=":", label="√(variance/N), by listing")
panels[1].loglog(sizes, errors, "o", color=plotting.COLOURS[0],
                 label=f"measured; fitted slope −{-slope:.3f}")
panels[1].axhline(true_gradient.norm(), color=plotting.COLOURS[1], linestyle="--",
                  label="length of ∇J")
panels[1].set(xlabel="N, number of answers", ylabel="error (root mean square)",
              title="Error of the policy gradient's estimate")
panels[1].legend()
lesson.figure(fig, "shortcut_and_error")

# %% [markdown]
# A baseline does not change the mean of the estimate. It changes the variance, and this is its
# purpose. Which constant b is the best? Write g for the score ∇ log P(τ). The mean of g (R − b) is
# ∇J for every b, so the variance is smallest where the second moment is smallest:
#
#     E|g (R − b)|² = E[|g|² R²] − 2b E[|g|² R] + b² E[|g|²]
#     derivative by b:   −2 E[|g|² R] + 2b E[|g|²] = 0     ⇒     b* = E[|g|² R] / E[|g|²]
#
# (Greensmith et al. 2004). b* is a mean of R with the weights |g|², so it lies near E[R] = J.
#
# We compare gradients that are each estimated from G = 3 answers. Their *noise* is the variance
# divided by |∇J|². Leave-one-out needs no expectation, but its baseline is the mean of two returns
# only, which adds noise. V(s) is exact here; in lesson 18 a network has to learn it.

# %%
norms = scores.square().sum(1)                                          # (81,) |g|²
b_star = ((P * norms) @ R / (P @ norms)).item()
# The variance is a parabola in b, so it is symmetric about its lowest point.
left, right = (typical_error(scores * (R - b_star - shift)[:, None], 1) ** 2 for shift in (-1, 1))
lesson.check("b* is the lowest point: the variance at b* − 1 = at b* + 1", left, right, atol=1e-9,
             source="Greensmith et al. 2004")
estimates = {                                           # (81, 120): the estimate from one answer
    "no baseline": one_answer,
    "best constant b*": scores * (R - b_star)[:, None],
    "reward to go": (steps * to_go[..., None]).sum(1),
    "reward to go − V(s)": (steps * (to_go - value)[..., None]).sum(1),
}
length2 = true_gradient.square().sum().item()                           # |∇J|²
noise = {name: typical_error(g, G) ** 2 / length2 for name, g in estimates.items()}
# Leave-one-out: the three terms of a group depend on each other, so whole groups are sampled.
sample = P.multinomial(G * lesson.pick(full=50_000, quick=10_000), replacement=True,
                       generator=lesson.generator).view(-1, G)          # (n, G)
weighted = subtract_baseline(R[sample], "leave_one_out")[..., None] * scores[sample]
noise["leave-one-out"] = weighted.mean(1).square().sum(1).mean().item() / length2 - 1
order = ["no baseline", "reward to go", "leave-one-out", "best constant b*", "reward to go − V(s)"]
lesson.claim("each of the four has less noise than no baseline",
             all(noise[name] < noise["no baseline"] for name in order[1:]),
             ", ".join(f"{name} {noise[name]:.1f}" for name in order))
lesson.claim("reward to go with the exact V(s) has the least noise",
             min(noise, key=noise.get) == "reward to go − V(s)",
             f"{noise['no baseline'] / noise[order[-1]]:.1f} times less than with no baseline")

fig, axes = plotting.figure(8, 4)
axes.bar(order, [noise[name] for name in order], color=plotting.COLOURS[4])
axes.set(ylabel="variance / |∇J|²", title="Noise of a gradient from three answers")
lesson.figure(fig, "noise")

# %% [markdown]
# ## 13. REINFORCE
# The algorithm is what has been derived. Course D ("SUMMARY") lists five steps:
#
#     1. collect trajectories with the policy as it is, π_old
#     2. compute R(τ) of each trajectory
#     3. compute ∇J(θ), by the estimate of section 6
#     4. update θ ← θ + α ∇J(θ)
#     5. start again at 1
#
# Errata: the course's step 4 adds the gradient to the policy, π_new = π_old + α∇J. In truth the
# parameters are updated, θ_new = θ_old + α∇J(θ_old). And the "REINFORCEMENT algorithm" is called
# REINFORCE, an acronym: "REward Increment = Nonnegative Factor × Offset Reinforcement ×
# Characteristic Eligibility" (Williams 1992): the step is α · (R − b) · ∇ log π. Here are the five
# steps without an optimizer and without autograd, with section 5's derivative.

# %%
state_lists, answer_lists = state.tolist(), answers.tolist()


def collect(theta, n):
    """n answers, token by token from π_θ: their numbers in the list of answers, (n,)."""
    pi = theta.softmax(-1)
    s, number = torch.zeros(2, n, dtype=torch.long)
    for t in range(T):
        a = pi[s].multinomial(1, generator=lesson.generator)[:, 0]      # (n,)
        number = V * number + a                                         # in dictionary order
        if t < T - 1:
            s = V * s + 1 + a
    return number


def estimate_gradient(theta, collected, returns):
    """(1/|D|) Σ_τ Σₜ ∇ log π(aₜ|sₜ) R(τ), in plain loops: (40, V)."""
    pi, total = theta.softmax(-1).tolist(), torch.zeros(40, V).tolist()
    for number, weight in zip(collected.tolist(), returns.tolist()):
        for s, a in zip(state_lists[number], answer_lists[number]):
            for b in range(V):
                total[s][b] += weight * ((a == b) - pi[s][b])
    return torch.tensor(total) / len(collected)


some, in_loops = drawn[:1000], estimate_gradient(theta, drawn[:1000], R[drawn[:1000]])
lesson.check("step 3 in loops = the mean of R ∇ log P by autograd", in_loops.flatten(),
             one_answer[some].mean(0), atol=1e-12, source="D: SUMMARY", items=("D51",))
learned, curve, alpha = torch.zeros(40, V), [1.0], 2.0  # at first each of the 3 pairs rises with ⅓
for _ in range(lesson.pick(full=300, quick=100)):
    collected = collect(learned, 100)                                   # 1.
    returns = R[collected]                                              # 2.
    gradient = estimate_gradient(learned, collected, returns)           # 3.
    learned = learned + alpha * gradient                                # 4.
    curve.append(J(learned).item())                                     # 5. the next iteration
lesson.claim("the five steps reach the best answers", curve[-1] > 1.9,
             f"J = 1 at first, {curve[10]:.2f} after 10 steps, {curve[-1]:.3f} at the end; "
             "the best answers have R = 2", items=("D51",))

# %% [markdown]
# ## 14. With a price: how near to the best policy?
# Now the library's `reinforce`, with what alignment adds: answers y that end with a stop token, and
# the return with a price of section 8, here with a score r(y) for each whole answer:
#
#     R_θ(y) = r(y) − β log( π(y)/π_ref(y) )         J(π) = E_π[R_θ(y)]
#
# For this J the best policy is known (course B, "Política óptima"; lesson 18). To see that it is
# the best, take the logarithm, solve for r, and put the result into J:
#
#     π*(y) = π_ref(y) e^{r(y)/β} / Z                Z = Σ_y π_ref(y) e^{r(y)/β}
#     r(y) = β log( π*(y)/π_ref(y) ) + β log Z
#     J(π) = E_π[ β log(π*/π_ref) + β log Z − β log(π/π_ref) ]
#          = β log Z − β E_π[ log(π/π*) ] = β log Z − β KL(π‖π*)
#
# The logarithm is concave, so Jensen's inequality says E[log X] ≤ log E[X]. With X = π*(y)/π(y):
#
#     −KL(π‖π*) = E_π[ log( π*(y)/π(y) ) ] ≤ log E_π[ π*(y)/π(y) ] = log Σ_y π*(y) = log 1 = 0
#
# So KL(π‖π*) ≥ 0, and J(π) is at most β log Z. π* reaches this value. KL(π‖π*), in nats, therefore
# measures how far a policy is from the best one. `minigpt.alignment.exact` computes it by listing
# the 31 answers; `reinforce` only samples.
#
# For π = π*, the formula for r gives R(y) = r(y) − β log(π*/π_ref) = β log Z: the *same* return for
# every answer. Then leave-one-out gives Rᵢ − bᵢ = 0, and at the optimum the estimate has no noise.
# Without a baseline every answer has the weight β log Z. The noise stays, and moves θ away from the
# optimum. (The scores below have mean about 1. A constant in r changes β log Z, but not π*.)

# %%
prompt, STOP = torch.tensor([0]), 0
tokens, mask = exact.list_answers(prompt, V, T, STOP)                   # (31, 1 + T)
worth = 1 + torch.randn(len(tokens), generator=lesson.generator)        # (31,) r(y)
reference = exact.Table(V, 1 + T, V)
nn.init.normal_(reference.rows, std=0.5, generator=lesson.generator)
with torch.no_grad():
    ref_logprobs = exact.answer_logprobs(reference, tokens, mask)       # (31,)
    best, _ = exact.optimal_policy(ref_logprobs, worth, BETA)           # (31,) log π*
constant = BETA * math.log(sum(math.exp(logprob + w / BETA) for logprob, w
                               in zip(ref_logprobs.tolist(), worth.tolist())))      # β log Z
R_best = worth - BETA * (best - ref_logprobs)                           # (31,) R(y) under π*
lesson.check("under π* every answer has the return β log Z", R_best,
             torch.full_like(worth, constant), atol=1e-9, source="B: Política óptima")
J_ref = sum(math.exp(logprob) * w for logprob, w in zip(ref_logprobs.tolist(), worth.tolist()))
below = constant - BETA * exact.kl_divergence(ref_logprobs, best)
lesson.check("J(π_ref) = β log Z − β KL(π_ref‖π*)", J_ref, below, atol=1e-9, source="derived above")
worth_of = dict(zip(map(tuple, tokens.tolist()), worth))


def prompts(n, generator):
    return prompt.expand(n, 1)


def reward(tokens, mask):
    return torch.stack([worth_of[tuple(row)] for row in tokens.tolist()])


def learn(baseline):
    """The distance from π* after every tenth iteration: (answers sampled, nats) pairs."""
    policy = exact.Table(V, 1 + T, V)
    policy.load_state_dict(reference.state_dict())
    config = ReinforceConfig(
        n_iterations=lesson.pick(full=600, quick=100), n_prompts=32, n_samples=4, max_new_tokens=T,
        stop_token=STOP, beta=BETA, baseline=baseline, learning_rate=0.1, seed=lesson.seed)
    distances = [(0, exact.kl_divergence(ref_logprobs, best).item())]

    def measure(row):
        if (row["iteration"] + 1) % 10 == 0:
            distance = exact.kl_divergence(exact.answer_logprobs(policy, tokens, mask), best).item()
            distances.append(((row["iteration"] + 1) * 32 * 4, distance))

    reinforce(policy, reference, prompts, reward, config, on_row=measure)
    print(f"  {baseline}: KL(π‖π*) falls from {distances[0][1]:.2f} to {distances[-1][1]:.1e} nats "
          f"in {distances[-1][0]:,} answers")
    return distances


distance = {baseline: learn(baseline) for baseline in ("none", "leave_one_out")}
far, near = (curve_of[-1][1] for curve_of in distance.values())
lesson.claim("REINFORCE with leave-one-out ends within 1e-3 nats of π*", near <= 1e-3,
             f"KL(π‖π*) = {near:.1e}", full_run=True)
lesson.claim("without a baseline it ends at least three times as far from π*", far > 3 * near,
             f"KL(π‖π*) = {far:.1e}, {far / near:.0f} times as far", full_run=True)

fig, panels = plotting.figure(12, 4, columns=2)
panels[0].plot(curve, label="100 answers in each step")
panels[0].axhline(2, color="black", linestyle=":", label="the best answers")
panels[0].set(xlabel="steps", ylabel="J(θ), ascents per answer",
              title="REINFORCE in five steps, without a price")
panels[0].legend(loc="lower right")
for baseline, name in (("none", "no baseline"), ("leave_one_out", "leave-one-out")):
    panels[1].semilogy(*zip(*distance[baseline]), label=name)
panels[1].axhline(1e-3, color="black", linestyle=":", label="1e-3 nats")
panels[1].set(xlabel="answers sampled", ylabel="KL(π‖π*) in nats",
              title="The library's REINFORCE with a price: distance from the best policy")
panels[1].legend()
lesson.figure(fig, "reinforce")

# %%
lesson.end()
