"""Lesson 16: the policy gradient, derived step by step, and then measured where every trajectory can be listed.

You will see    ∇J(θ) = E_τ[ Σₜ ∇ log π_θ(aₜ|sₜ) · R(τ) ] hold to 1e-9; the shortcut that looks right and is not, and by how much;
                which changes to R leave the gradient alone and which do not; the noise that is left; REINFORCE, down to the optimum.
Source          course D, "RL and LLMs", from J(θ) to the REINFORCE box; Williams 1992; Sutton and Barto 2018, ch. 13.
Expect          about 8 s on two cores (quick: about 5 s); every check passes. With seed 0 the shortcut's cosine to ∇J is 0.88; the error
                falls as N to the power −0.50; the exact V(s) leaves 3.4 times less noise than no baseline; REINFORCE ends
                2e-4 nats from the best policy.
Not here        a reward learned from people (lesson 17); using samples more than once (PPO, lesson 18).
"""
# %%
import itertools
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    kl_divergence,
    list_answers,
    optimal_policy,
)
from minigpt.alignment.mdp import evaluate, list_episodes
from minigpt.alignment.reinforce import ReinforceConfig, reinforce, subtract_baseline
from minigpt.worlds.gridworld import Grid

lesson = Lesson("16_policy_gradient", threads=1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. A language model small enough to list
# Three tokens, answers of length four: 81 trajectories τ. The policy π_θ(aₜ | sₜ) is a table of logits, one row
# for each prefix, so nothing hides the algebra. A token is rewarded at once if it is greater than the one before, so R(τ) counts ascents.

# %%
V, T = 3, 4
answers = torch.tensor(list(itertools.product(range(V), repeat=T)))     # (81, T) every τ
state = torch.zeros_like(answers)                                       # (81, T) sₜ: which prefix, numbered from 0
for t in range(1, T):
    state[:, t] = state[:, t - 1] * V + answers[:, t - 1] + 1           # children of row s: 3s+1, 3s+2, 3s+3
theta = torch.randn(int(state.max()) + 1, V, generator=lesson.generator, requires_grad=True)            # (40, V) logits
r = torch.zeros(len(answers), T)                                        # (81, T) rₜ
r[:, 1:] = (answers[:, 1:] > answers[:, :-1]).double()
R = r.sum(1)                                                            # (81,) R(τ)


def step_logprobs(theta):
    """log π_θ(aₜ|sₜ) of every step of every τ: (81, T)."""
    return theta.log_softmax(-1)[state, answers]


def log_prob(theta):
    """log P_θ(τ): (81,). To append a token is certain, so the transitions' logs are 0."""
    return step_logprobs(theta).sum(1)


def J(theta, R=R):
    """J(θ) = E[R(τ)] = Σ_τ P_θ(τ) R(τ), with nothing left out."""
    return (log_prob(theta).exp() * R).sum()


def slopes(f, theta, h=1e-5):
    """∂f/∂θᵢ by walking a step to each side: no autograd, so it can contradict a formula. f scalar or (N,) -> (40·V,) or (N, 40·V)."""
    columns = []
    with torch.no_grad():
        for i in range(theta.numel()):
            step = torch.zeros(theta.numel())
            step[i] = h
            columns.append((f(theta + step.view_as(theta)) - f(theta - step.view_as(theta))) / (2 * h))
    return torch.stack(columns, -1)


true_gradient = slopes(J, theta)                                        # (120,) ∇J, by finite differences
print(f"  81 trajectories, θ has {theta.numel()} numbers; J = {J(theta):.3f}; the best answers have R = {R.max():.0f}; "
      f"|∇J| = {true_gradient.norm():.3f}")

# %% [markdown]
# ## 2. The world drops out
# Lesson 15's trajectory has two writers, the policy and the world: P(τ) = Πₜ π_θ(aₜ|sₜ) P(sₜ₊₁|sₜ,aₜ). The logarithm makes it a sum,
#
#     log P_θ(τ) = Σₜ log π_θ(aₜ|sₜ) + Σₜ log P(sₜ₊₁|sₜ,aₜ)              ∇ log P_θ(τ) = Σₜ ∇ log π_θ(aₜ|sₜ)
#
# and θ is in the first part only. That is why a cat can learn on a floor it knows nothing about. Put it to the test on the wet floor.
# For the softmax, ∂ log π(a|s)/∂θ_{s,b} = [a = b] − π(b|s), so the right side can be counted by hand; the left side is log P_θ(τ), floor
# included, by finite differences.

# %%
grid = Grid("""
    S.~
    .bM
""", slip=0.2)
lives = list_episodes(grid, 3)
cat = torch.randn(6, 4, generator=lesson.generator)                     # the cat's θ


def life_logprob(cat):
    """log P_θ(τ) of every life on the wet floor: (N,)."""
    return (cat.log_softmax(-1)[lives.states, lives.actions] * lives.mask).sum(1) + lives.transition_probability.log()


counted, pi = torch.zeros(len(lives.states), 6, 4), cat.softmax(-1).tolist()
for n, (states, actions, mask) in enumerate(zip(lives.states.tolist(), lives.actions.tolist(), lives.mask.tolist())):
    for s, a, acts in zip(states, actions, mask):
        for b in range(4):
            counted[n, s, b] += acts * ((a == b) - pi[s][b])
counted = counted.flatten(1)                                            # (N, 24)
lesson.check("∇ log P(τ) = Σ ∇ log π: the floor drops out", counted, slopes(life_logprob, cat), atol=1e-8, source="D: log P(τ)")
from_lives = (life_logprob(cat).exp() * lives.returns()[:, 0]) @ counted        # Σ P(τ) R(τ) Σ ∇ log π
by_sweeps = slopes(lambda cat: evaluate(grid, cat.softmax(-1), 3)[-1, grid.start], cat)
lesson.check("and E[Σ ∇ log π · R] is ∇J, with J by sweeps", from_lives, by_sweeps, atol=1e-7, source="D: ∇J(θ)")
print(f"      {len(lives.states):,} lives of at most 3 steps, 24 slopes each; |∇J| = {by_sweeps.norm():.2f}")

# %% [markdown]
# ## 3. The log-derivative trick
#     ∇J = ∇ Σ_τ P_θ(τ) R(τ) = Σ_τ ∇P_θ(τ) R(τ)
#
# is a sum over all trajectories, and not an expectation: ∇P is no distribution to sample from. But the chain rule, ∇ log f = ∇f / f,
# read backwards is ∇f = f ∇ log f, and so
#
#     ∇J = Σ_τ P_θ(τ) ∇ log P_θ(τ) R(τ) = E_τ[ ∇ log P_θ(τ) R(τ) ] = E_τ[ Σₜ ∇ log π_θ(aₜ|sₜ) R(τ) ]
#
# which *can* be sampled: live, look at R, average.

# %%
P = log_prob(theta).exp().detach()                                      # (81,) from here on a weight: ∇ passes it by
score = torch.stack([torch.autograd.grad(l, theta, retain_graph=True)[0].flatten() for l in log_prob(theta)])        # (81, 120) ∇ log P(τ)
grad_P = slopes(lambda theta: log_prob(theta).exp(), theta)             # (81, 120) ∇P(τ)
lesson.check("∇f = f ∇ log f, for f = P(τ), every τ and θᵢ", P[:, None] * score, grad_P, atol=1e-9, source="D: log-derivative trick")
lesson.check("∇J = E[∇ log P(τ) · R(τ)]", (P * R) @ score, true_gradient, atol=1e-9, source="D: ∇J(θ)")

# %% [markdown]
# ## 4. The shortcut that is wrong
# Why not sample τ and average ∇P(τ)·R(τ)? It is tempting: ∇J *is* a sum of such terms. But who samples from P has weighed each
# term with P already, once too often:
#
#     (1/N) Σᵢ ∇P(τᵢ) R(τᵢ)  →  Σ_τ P(τ) ∇P(τ) R(τ) = ∇ ½ Σ_τ P(τ)² R(τ)              since ∇P² = 2 P ∇P
#
# It converges to a gradient, but of something else. With all answers equally likely, P = 1/81, it is ∇J/81: just too short. Away
# from there it also points elsewhere, because answers that are likely already are counted even more. Sharpen θ until a few answers
# hold nearly all of P, and with R as it is both directions may come together again. That is luck, of where the reward's zero lies:
# R + 5 has the same ∇J, and there the shortcut makes likelier whatever is likely, for every answer is worth something.

# %%
wrong = (P * R) @ grad_P
lesson.check("the sample mean of ∇P·R tends to ½ ∇ΣP²R", wrong, slopes(lambda theta: (2 * log_prob(theta)).exp() @ R / 2, theta), atol=1e-9,
             source="D: why not sample ∇P")
drawn = P.multinomial(100_000, replacement=True, generator=lesson.generator)
terms = (grad_P * R[:, None])[drawn]                                    # (N, 120)
typical = ((P @ (grad_P * R[:, None]).square().sum(1) - wrong.square().sum()) / len(drawn)).sqrt()       # √(variance / N), exactly
off = (terms.mean(0) - wrong).norm() / typical
lesson.check("and so does it in 100,000 draws (in typical errors)", off, 0.0, atol=3, source="D: why not sample ∇P")
even = torch.zeros_like(theta)
at_even = (slopes(lambda theta: log_prob(theta).exp(), even) * R[:, None]).mean(0)
lesson.check("at P = 1/81 it is ∇J/81", at_even, slopes(J, even) / 81, atol=1e-9, source="D: why not sample ∇P")


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


print(f"      ∇J is {(true_gradient - wrong).norm() / typical:,.0f} typical errors away: "
      f"the limit is {true_gradient.norm() / wrong.norm():.0f} times too short, with cosine {cosine(wrong, true_gradient):.2f} to ∇J")
sharpness = torch.linspace(0, 4, 17)
direction = {shift: [] for shift in (0, 5)}                             # a constant added to R
for scale in sharpness:
    sharp = (theta * scale).detach().requires_grad_()
    right = torch.autograd.grad(J(sharp), sharp)[0].flatten()
    for shift, cosines in direction.items():
        cosines.append(cosine(torch.autograd.grad(((2 * log_prob(sharp)).exp() * (R + shift)).sum(), sharp)[0].flatten(), right))
moved = (P * (R + 5)) @ score
lesson.check("R + 5 leaves ∇J alone", moved, true_gradient, atol=1e-9, source="part 5")
lesson.claim("the shortcut's direction is wrong, more so when R is shifted", direction[0][4] < 0.98 and direction[5][4] < direction[0][4],
             f"cosine {direction[0][4]:.2f} to ∇J at this θ, {direction[5][4]:.2f} with R + 5; "
             f"{direction[0][16]:.2f} at 4θ, {direction[5][16]:.2f} with R + 5")

# %% [markdown]
# ## 5. What may be subtracted
# Probabilities sum to 1, whatever θ. So Σ_a ∇π(a|s) = 0, and by the trick
#
#     E_a[∇ log π(a|s)] = Σ_a π(a|s) ∇ log π(a|s) = Σ_a ∇π(a|s) = ∇1 = 0                        in every state s
#
# Hence a *baseline* b(sₜ) that does not look at aₜ may be subtracted from R at no cost: E[∇ log π(aₜ|sₜ) b(sₜ)] = E[b(sₜ) · 0] = 0.
# And what was earned before step t is known in sₜ, so it is such a baseline too: each action may answer for the *reward to go* alone,
# Gₜ = Σ_{k≥t} rₖ. A baseline that looks at aₜ is not free. Try the most tempting, the exact Q(s, a) = E[Gₜ | sₜ, aₜ]:

# %%
def expected_gradient(weights):
    """E_τ[ Σₜ weightₜ ∇ log π(aₜ|sₜ) ] by listing: weights (81, T) -> (120,)."""
    return torch.autograd.grad((P[:, None] * weights * step_logprobs(theta)).sum(), theta)[0].flatten()


def mean_in(group, values):
    """E[values | group] by listing, back at every place: (81, T), (81, T) -> (81, T)."""
    size = int(group.max()) + 1
    weight = P[:, None].expand_as(values).flatten()
    total = torch.zeros(2, size).index_add_(1, group.flatten(), torch.stack([weight, weight * values.flatten()]))
    return (total[1] / total[0])[group]


to_go = r.flip(1).cumsum(1).flip(1)                                     # (81, T) Gₜ
value = mean_in(state, to_go)                                           # (81, T) V(sₜ)
q_value = mean_in(state * V + answers, to_go)                           # (81, T) Q(sₜ, aₜ)
whole = R[:, None].expand_as(r)                                         # (81, T) R(τ) at every step
some_b = torch.randn(len(theta), generator=lesson.generator)[state]     # (81, T) any number for each state

lesson.check("E[∇ log π] = 0", expected_gradient(torch.ones_like(r)), torch.zeros(120), atol=1e-12, source="D: baseline")
for name, weights in (("any b(s)", whole - some_b), ("reward to go", to_go), ("reward to go − V(s)", to_go - value)):
    lesson.check(f"{name}: the gradient stays ∇J", expected_gradient(weights), true_gradient, atol=1e-9, source="D: baseline")
nothing = expected_gradient(to_go - q_value)
lesson.check("b = Q(s, a) takes the whole gradient away", nothing, torch.zeros(120), atol=1e-12, source="D: baseline")
half = expected_gradient(to_go - q_value / 2)
print(f"      with b = Q/2 half of it: |E| = {half.norm():.3f} of {true_gradient.norm():.3f}. A baseline must not know the action")

# %% [markdown]
# With several answers to the same prompt, the others make a baseline. Draw G and give each the mean of *the others* (leave one out):
# it knows nothing of the answer's own action, so it is free. The mean of all G holds the answer's own R with weight 1/G, so it is
# a baseline that looks at the action, and takes away 1/G of the gradient: what is left is (G − 1)/G of it, a shorter step in the right
# direction. Dividing by the group's standard deviation, as GRPO does (Shao et al. 2024), weighs each group differently: one that
# holds a rare, very good answer counts no more than others. That turns the direction. For G = 3 all 81³ = 531,441 groups can be listed:

# %%
G = 3
groups = torch.cartesian_prod(*[torch.arange(81)] * G)                  # (81³, G)
P_groups = P[groups].prod(1)                                            # (81³,)


def group_gradient(advantages):
    """E[ (1/G) Σᵢ Aᵢ ∇ log P(τᵢ) ] over all groups: advantages (81³, G) -> (120,)."""
    weights = torch.zeros(81)
    for i in range(G):
        weights.index_add_(0, groups[:, i], P_groups * advantages[:, i] / G)
    return weights @ score


leave_one_out = subtract_baseline(R[groups], "leave_one_out")             # (81³, G)
group_mean = subtract_baseline(R[groups], "mean")
lesson.check("leave-one-out: the gradient stays ∇J", group_gradient(leave_one_out), true_gradient, atol=1e-9, source="Kool et al. 2019")
lesson.check("group mean: exactly (G−1)/G of it", group_gradient(group_mean), true_gradient * 2 / 3, atol=1e-9, source="Kool et al. 2019")
turned, chosen = {}, P.argsort()[60]
for name, rewards in (("R", R), (f"R and 10 more for one answer of probability {P[chosen]:.1%}", R + 10 * (torch.arange(81) == chosen))):
    spread = rewards[groups].std(1, keepdim=True).clamp(min=1e-9)       # where it is 0, so is the advantage
    turned[name] = cosine(group_gradient(subtract_baseline(rewards[groups], "mean") / spread), (P * rewards) @ score)
lesson.claim("dividing by the group's standard deviation turns it", min(turned.values()) < 0.95,
             "cosine to ∇J: " + "; ".join(f"{value:.4f} for {name}" for name, value in turned.items()))

# %% [markdown]
# ## 6. The noise
# One answer says little about ∇J; the mean of N says more. Its variance is 1/N of that of one, so its error falls as 1/√N: a line of slope
# −½ on two logarithmic axes. Nothing in this depends on how many numbers θ has.

# %%
sizes, repetitions = [10, 32, 100, 316, 1000, 3162, 10_000], lesson.pick(full=400, quick=60)
one_answer = R[:, None] * score                                         # (81, 120) what one answer says
variance = (P @ one_answer.square().sum(1) - true_gradient.square().sum()).item()         # its trace, exactly
errors = []
for n in sizes:
    draws = [P.multinomial(n, replacement=True, generator=lesson.generator) for _ in range(repetitions)]
    counts = torch.stack([drawn.bincount(minlength=81) for drawn in draws]).double()                     # (repetitions, 81)
    estimates = counts @ one_answer / n                                 # (repetitions, 120)
    errors.append((estimates - true_gradient).square().sum(1).mean().sqrt().item())
x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).log()
slope = ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()
lesson.claim("error ∝ N^−½: the fitted exponent is −0.5 ± 0.05", abs(slope + 0.5) <= 0.05, f"−{-slope:.3f} over N = 10 to 10,000")

fig, panels = plotting.figure(12, 4.2, columns=2)
for shift, cosines in direction.items():
    panels[0].plot(sharpness, cosines, marker="o" if shift else "s", markersize=4, label=f"reward R + {shift}" if shift else "reward R")
panels[0].set(xlabel="θ multiplied by (0: all answers alike)", ylabel="cosine to ∇J", ylim=(-1.05, 1.05))
panels[0].set_title("The mean of ∇P·R points elsewhere")
panels[0].axhline(0, color="black", linewidth=0.8, linestyle="-")
panels[0].legend(loc="lower right")
panels[1].loglog(sizes, [(variance / n) ** 0.5 for n in sizes], color="black", linestyle=":", label="√(variance / N), exactly")
panels[1].loglog(sizes, errors, "o", color=plotting.COLOURS[0], label=f"measured; fitted slope −{-slope:.3f}")
panels[1].axhline(true_gradient.norm(), color=plotting.COLOURS[1], linestyle="--", label="|∇J| itself")
panels[1].set(xlabel="N, trajectories averaged", ylabel="error of the estimate (root mean square)", title="Error of the policy gradient")
panels[1].legend()
lesson.figure(fig, "wrong_and_noisy")

# %% [markdown]
# A baseline is free in the mean; what it does to the noise is its point. Which constant is best? With g = ∇ log P(τ), the second moment is
# E|g (R − b)|² = E[|g|² R²] − 2b E[|g|² R] + b² E[|g|²], and the mean does not depend on b. So the derivative in b is 0 at
#
#     b* = E[|g|² R] / E[|g|²]            (Greensmith et al. 2004): near E[R] = J, but weighed, since a noisy g should meet a small R − b
#
# Below, gradients from three answers each, by the variance that is left, relative to the squared length of the gradient (so that
# a shorter step counts as no gain). Bars: by listing all triples. Dots: from triples drawn. Leave-one-out lies between none and b*: it
# asks for no expectation, but its baseline is the mean of two answers only, and brings their noise with it. More answers bring less.

# %%
norms = score.square().sum(1)                                           # (81,) |g|²
b_star = ((P * norms) @ R / (P @ norms)).item()


def noise_with(b):
    """trace Var( g (R − b) ) of one answer, by listing."""
    g = score * (R - b)[:, None]
    return (P @ g.square().sum(1) - (P @ g).square().sum()).item()


left, middle, right = (noise_with(b) for b in (-1.0, 0.0, 1.0))         # noise is a parabola in b, and these three points fix it
lowest = (left - right) / (2 * (left + right - 2 * middle))
lesson.check("b* = E[|g|²R] / E[|g|²] is the parabola's lowest point", b_star, lowest, atol=1e-9, source="Greensmith et al. 2004")
print(f"      b* = {b_star:.3f}, J = {J(theta):.3f}")

steps = torch.autograd.functional.jacobian(step_logprobs, theta).flatten(2)                         # (81, T, 120) ∇ log π, step by step
says = {                                                                # (81, 120) each: what one answer says
    "no baseline": one_answer, "best constant b*": score * (R - b_star)[:, None],
    "reward to go": (steps * to_go[..., None]).sum(1), "reward to go − V(s)": (steps * (to_go - value)[..., None]).sum(1),
}
triples = P.multinomial(G * lesson.pick(full=20_000, quick=4_000), replacement=True, generator=lesson.generator).view(-1, G)       # (n, G)
gram = score @ score.T                                                  # (81, 81) gᵢ·gⱼ


def relative(second_moment, mean):
    return (second_moment / mean.square().sum() - 1).item()


def from_triples(estimates, mean):
    """The noise of sampled gradients (n, 120), and how far such a number typically is from the exact one: its standard error."""
    squares = estimates.square().sum(1)                                 # (n,)
    return relative(squares.mean(), mean), (squares.std() / len(squares) ** 0.5 / mean.square().sum()).item()


exact, sampled, typical_error = {}, {}, {}
for name, g in says.items():
    mean = P @ g
    exact[name] = relative(mean.square().sum() + (P @ g.square().sum(1) - mean.square().sum()) / G, mean)
    sampled[name], typical_error[name] = from_triples(g[triples].mean(1), mean)
squares = sum(leave_one_out[:, i] * leave_one_out[:, j] * gram[groups[:, i], groups[:, j]]
              for i in range(G) for j in range(G)) / G**2               # (81³,) |ĝ|²
exact["leave-one-out"] = relative(P_groups @ squares, true_gradient)
of_triples = (subtract_baseline(R[triples], "leave_one_out")[..., None] * score[triples]).mean(1)          # (n, 120)
sampled["leave-one-out"], typical_error["leave-one-out"] = from_triples(of_triples, true_gradient)
order = ["no baseline", "leave-one-out", "best constant b*", "reward to go", "reward to go − V(s)"]
for name in order:
    print(f"      {name:<20} noise {exact[name]:6.2f} exact, {sampled[name]:6.2f} ± {typical_error[name]:.2f} sampled")
misses = [(sampled[name] - exact[name]) / typical_error[name] for name in order]
lesson.check("noise: triples drawn = triples listed (in standard errors)", misses, [0.0] * 5, atol=4, source="D: baseline")
lesson.claim("every improvement is quieter than none", all(exact[name] < exact["no baseline"] for name in order[1:]),
             ", ".join(f"{name} {exact[name]:.1f}" for name in order))
lesson.claim("and the exact V(s) with reward to go is the quietest", min(exact, key=exact.get) == order[-1],
             f"{exact['no baseline'] / exact[order[-1]]:.1f} times less than with no baseline")

fig, panels = plotting.figure(12, 4, columns=2, width_ratios=[3, 2])
panels[0].bar(range(len(order)), [exact[name] for name in order], color=plotting.COLOURS[4], label="all triples listed")
panels[0].plot(range(len(order)), [sampled[name] for name in order], "o", color="black", label=f"{len(triples):,} triples drawn")
panels[0].set_xticks(range(len(order)), ["no\nbaseline", "leave-\none-out", "best\nconstant b*", "reward\nto go", "reward to go\n− V(s)"])
panels[0].set(ylabel="trace of the variance / |∇J|²", title="Noise of a gradient from three answers")
panels[0].legend()
axis = torch.linspace(-0.5, 2.5, 61)
panels[1].plot(axis, [noise_with(b) / G / true_gradient.square().sum() for b in axis])
for b, name, marker in ((0.0, "none", "o"), (J(theta).item(), "J = E[R]", "s"), (b_star, "b*", "^")):
    panels[1].plot(b, noise_with(b) / G / true_gradient.square().sum(), marker, color="black", label=f"{name}: b = {b:.2f}")
panels[1].set(xlabel="constant baseline b", ylabel="trace of the variance / |∇J|²", title="Any b is free in the mean, not in the noise")
panels[1].legend()
lesson.figure(fig, "noise")

# %% [markdown]
# ## 7. REINFORCE
# The algorithm is what has been derived, in five steps; Williams published it in 1992. Erratum: course D calls it the "REINFORCEMENT
# algorithm"; the name is REINFORCE, an acronym ("REward Increment = Nonnegative Factor × Offset Reinforcement × Characteristic
# Eligibility": step = η · (R − b) · ∇ log π). With the bare table, no optimizer, no autograd even, since the softmax's gradient is known:

# %%
learned, curve = torch.zeros_like(theta), []
for step in range(lesson.pick(full=300, quick=100)):
    now = log_prob(learned).exp()
    lived = now.multinomial(100, replacement=True, generator=lesson.generator)          # 1. sample trajectories τᵢ from π_θ
    returns = R[lived]                                                                  # 2. their returns R(τᵢ)
    grad_log_pi = nn.functional.one_hot(answers, V) - learned.softmax(-1)[state]        # 3. ∇ log π(aₜ|sₜ) = [a = b] − π(b|s): (81, T, V)
    estimate = torch.zeros_like(learned)
    for t in range(T):                                                                  # 4. ∇J ≈ (1/N) Σᵢ R(τᵢ) Σₜ ∇ log π(aₜ|sₜ)
        estimate.index_add_(0, state[lived, t], grad_log_pi[lived, t] * returns[:, None] / 100)
    learned = learned + 2.0 * estimate                                                  # 5. θ ← θ + η ∇J
    curve.append(J(learned).item())
climb = [f"{curve[i - 1]:.3f} after {i} steps" for i in (10, 30, 100, 300) if i <= len(curve)]
print(f"  J: {J(torch.zeros_like(theta)):.3f} at first, " + ", ".join(climb))
lesson.claim("the five steps climb to the best answers", curve[-1] > 1.9,
             f"J = {curve[-1]:.3f}; R of the best is {R.max():.0f}", full_run=True)

# %% [markdown]
# The same in the library's words, and with what alignment adds (course D; lesson 18): answers that end with a stop token, a reference
# policy and a price β on leaving it, R(y) = score(y) − β log(π(y)/π_ref(y)). Then the best policy is no longer a single answer but
# π* ∝ π_ref e^{score/β}, and lesson 18 shows why. Here it is a target: how far from π* does REINFORCE end, in nats?
# `minigpt.alignment.exact` lists all 31 answers for the judgment, `reinforce` samples and knows nothing of the list. At π* the R above
# is the same for every answer, β log Z. So with a baseline the noise ends where the learning ends; without one, it does not.

# %%
prompt, STOP, beta = torch.tensor([0]), 0, 0.5
tokens, mask = list_answers(prompt, V, T, STOP)                         # (31, 1 + T)
worth = torch.randn(len(tokens), generator=lesson.generator)
reference = Table(V, 1 + T, V)
nn.init.normal_(reference.rows, generator=lesson.generator)
with torch.no_grad():
    ref_logprobs = answer_logprobs(reference, tokens, mask)
    best, _ = optimal_policy(ref_logprobs, worth, beta)
constant = beta * math.log(sum(math.exp(l + w / beta) for l, w in zip(ref_logprobs.tolist(), worth.tolist())))       # β log Z
R_best = worth - beta * (best - ref_logprobs)                           # (31,) R under π*
lesson.check("at π* every answer's R is β log Z", R_best, torch.full_like(worth, constant), atol=1e-9, source="D: RLHF")
worth_of = dict(zip(map(tuple, tokens.tolist()), worth))


def prompts(n, generator):
    return prompt.expand(n, 1)


def reward(tokens, mask):
    return torch.stack([worth_of[tuple(row)] for row in tokens.tolist()])


distance = {}
for baseline in ("none", "leave_one_out"):
    policy = Table(V, 1 + T, V)
    policy.load_state_dict(reference.state_dict())
    config = ReinforceConfig(n_iterations=lesson.pick(full=600, quick=100), n_prompts=32, n_samples=4, max_new_tokens=T, stop_token=STOP,
                             beta=beta, baseline=baseline, learning_rate=0.05, seed=lesson.seed)

    def measure(row):
        """KL(π‖π*) by listing, before the first and after every tenth iteration."""
        row["answers"] = (row["iteration"] + 1) * config.n_prompts * config.n_samples
        if (row["iteration"] + 1) % 10 == 0:
            row["to_goal"] = kl_divergence(answer_logprobs(policy, tokens, mask), best).item()

    start = kl_divergence(answer_logprobs(policy, tokens, mask), best).item()
    rows = reinforce(policy, reference, prompts, reward, config, on_row=measure)
    rows = [{"answers": 0, "to_goal": start}] + rows
    distance[baseline] = [(row["answers"], row["to_goal"]) for row in rows if "to_goal" in row]
    print(f"  {baseline:<14} KL(π‖π*) from {start:.2f} to {rows[-1]['to_goal']:.1e} nats in {rows[-1]['answers']:,} answers; "
          f"the last batch: score {rows[-1]['score']:.2f}, kl {rows[-1]['kl']:.2f}, length {rows[-1]['length']:.2f}")
lesson.claim("REINFORCE with leave-one-out ends within 1e-3 nats of π*", distance["leave_one_out"][-1][1] <= 1e-3,
             f"KL(π‖π*) = {distance['leave_one_out'][-1][1]:.1e}", full_run=True)
far, near = (distance[baseline][-1][1] for baseline in ("none", "leave_one_out"))
lesson.claim("without a baseline it stays farther away, at least three times", far > 3 * near,
             f"KL(π‖π*) = {far:.1e}, {far / near:.0f} times as far", full_run=True)

fig, panels = plotting.figure(12, 4, columns=2)
panels[0].plot(range(1, len(curve) + 1), curve, label="the five steps, with 100 answers each time")
panels[0].axhline(R.max(), color="black", linestyle=":", label="the best answers")
panels[0].set(xlabel="steps", ylabel="J(θ), ascents an answer", title="REINFORCE by hand, no price")
panels[0].legend(loc="lower right")
for baseline, name in (("none", "no baseline"), ("leave_one_out", "leave-one-out")):
    panels[1].semilogy(*zip(*distance[baseline]), label=name)
panels[1].axhline(1e-3, color="black", linestyle=":", label="1e-3 nats")
panels[1].set(xlabel="answers sampled", ylabel="KL(π‖π*) in nats", title="The library's, with a price: distance from the best policy")
panels[1].legend()
lesson.figure(fig, "reinforce")

# %%
lesson.end()
