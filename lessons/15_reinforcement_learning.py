"""Lesson 15: reinforcement learning. A cat learns its way to the meat, and since its world is small, the best way is known.

You will see    P(τ), R(τ) and J = E[R(τ)] by listing every trajectory, by going backwards in time, and by trying; value iteration
                judged by every policy there is; a cat that is told nothing and finds the best route; a GPT as just such a cat.
Source          courses B and D, "Reinforcement learning"; Sutton and Barto 2018, ch. 3, 4 and 13.
Expect          about 10 s on two cores (quick: about 5 s); every check passes; on a dry floor 5 of 5 cats find the best route and end
                within 0.2 of J* = 100; on a wet floor, where J* = 55.9, within 1 %.
Not here        why REINFORCE's update is the gradient of J (lesson 16), and rewards that come from people (lesson 17).
"""
# %%
import itertools

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.alignment.exact import Table, answer_logprobs, expectation, list_answers
from minigpt.alignment.mdp import (
    action_values,
    evaluate,
    greedy_policy,
    list_episodes,
    sample_episodes,
    value_iteration,
)
from minigpt.alignment.reinforce import reinforce_loss
from minigpt.training.loop import gradient_step, schedule
from minigpt.training.optimizers import make_optimizers
from minigpt.worlds.gridworld import MDP, MOVES, Grid

lesson = Lesson("15_reinforcement_learning", threads=1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. Nobody says what was right
# So far every model had an answer to compare with: the next token. Now there is none. An agent sees a *state* s, takes an
# *action* a, lands in a new state and gets a *reward* r; it is never told which action would have been better, and a good
# move may pay only much later. How it acts is its *policy* π(a|s), a probability for each action.
#
# The courses' agent is a cat (S) in a grid. It steps ↑ → ↓ ←; walls (#) and the edge mean staying put. The cell where a step ends
# pays: empty 0, the broom (b) −1, the bathtub (~) −10 and the episode is over, the meat (M) +100. (The courses do not say whether the
# meat ends the episode; here it does.) A small map first, with a wet floor: with probability 0.2 a step slips to one of its two sides.

# %%
small = Grid("""
    S.~
    .bM
""", slip=0.2)
wet_step = {small.cells[s]: p for s, p in enumerate(small.transitions[small.start, 1].tolist()) if p}
print("  → from the start leads to " + ", ".join(f"row {y} column {x} with {p:.1f}" for (y, x), p in wet_step.items()))

# %% [markdown]
# A *trajectory* τ = s₀ a₀ r₀ s₁ a₁ r₁ … is one life of the cat. The policy chooses, the floor answers, so its probability is a product
# of both; its *return* is the sum of its rewards; and a policy is as good as the return that it expects:
#
#     P(τ) = Πₜ π(aₜ|sₜ) P(sₜ₊₁|sₜ,aₜ)        R(τ) = Σₜ rₜ        J(π) = E_τ[R(τ)] = Σ_τ P(τ) R(τ)
#
# It is the chain rule of lesson 02 with two writers that take turns. One trajectory by hand, for a cat that has no idea (each action
# 1/4): → to the cell on the right, ↓ onto the broom, → to the meat, never slipping.

# %%
T = 4                                                                   # steps at most; then the day is over
no_idea = torch.full((6, 4), 0.25)
lives = list_episodes(small, T)
P = lives.transition_probability * torch.where(lives.mask, no_idea[lives.states, lives.actions], 1.0).prod(1)            # (N,)
R = lives.returns()[:, 0]                                               # (N,)

right, down = 1, 2
steps = torch.tensor([[0, right], [1, down], [4, right]])               # (3, 2) states are numbered in reading order, actions as in ↑ → ↓ ←
same = (lives.states[:, :3] == steps[:, 0]).all(1) & (lives.actions[:, :3] == steps[:, 1]).all(1) & (lives.states[:, 3] == 5)
lesson.check("P(→ ↓ →) = (¼ · 0.8)³", P[same], [0.25**3 * 0.8**3], atol=1e-12, source="D: P(τ)")
lesson.check("R(→ ↓ →) = 0 − 1 + 100", R[same], [99.0], atol=1e-12, source="D: R(τ)")

# %% [markdown]
# Within four steps the number of lives is finite. Here they are listed a second time, by a recursion that walks the cells with
# dictionaries: same number, probabilities that sum to 1, same J.

# %%
board = {(0, 0): 0, (0, 1): 0, (0, 2): -10, (1, 0): 0, (1, 1): -1, (1, 2): 100}
deltas = list(MOVES.values())


def go_on(cell, steps, probability, total):
    """(P, R) of every life that goes on from a cell."""
    if steps == 0 or cell in ((0, 2), (1, 2)):
        yield probability, total
        return
    for a in range(4):
        landings = {}
        for turn, p in ((0, 0.8), (1, 0.1), (3, 0.1)):                  # straight, a quarter to the right, a quarter to the left
            dy, dx = deltas[(a + turn) % 4]
            there = (cell[0] + dy, cell[1] + dx)
            there = there if there in board else cell
            landings[there] = landings.get(there, 0) + p
        for there, p in landings.items():
            yield from go_on(there, steps - 1, probability * 0.25 * p, total + board[there])


walked = list(go_on((0, 0), T, 1.0, 0))
lesson.check("as many trajectories, walked cell by cell", len(P), len(walked), atol=0, source="D: P(τ)")
lesson.check("Σ P(τ) = 1", P.sum(), 1.0, atol=1e-12, source="D: P(τ)")
lesson.check("J = Σ P(τ) R(τ), by two listings", P @ R, sum(p * r for p, r in walked), atol=1e-12, source="D: J(θ)")
J = (P @ R).item()
print(f"      {len(P):,} lives of at most {T} steps; J = {J:.2f}; {P[R > 50].sum():.1%} end at the meat, "
      f"{P[R < -9].sum():.1%} in the bathtub")

# %% [markdown]
# ## 2. The same number from the end backwards
# A list grows by a factor with each step. But what a state is worth with k steps to go, V_k(s), does not depend on how one came to it.
# Split off the first of the k steps:
#
#     V_k(s) = E[r₀ + r₁ + … ] = E[r₀ + V_{k−1}(s₁)] = Σ_a π(a|s) Σ_s′ P(s′|s,a) ( r(s′) + V_{k−1}(s′) ),     V₀ = 0
#
# (Bellman; Sutton and Barto 2018, eqs. 3.14 and 4.5.) T sweeps over S states instead of a list of everything, and J = V_T(s₀). And who
# knows neither P nor how to list can *try*: the mean return of N tries is J up to a standard error σ/√N, with σ² = E[(R − J)²].

# %%
lesson.check("J backwards in time = J by listing", evaluate(small, no_idea, T)[-1, small.start], J, atol=1e-12, source="D: J(θ)")
sigma = (P @ (R - J).square()).sqrt().item()
for n in (1_000, 10_000, 100_000):
    tried = sample_episodes(small, no_idea, n, T, lesson.generator).returns()[:, 0]
    lesson.check(f"J from {n:,} tries, within 5 standard errors", tried.mean(), J, atol=5 * sigma / n**0.5, source="D: J(θ) by Monte Carlo")

# %% [markdown]
# ## 3. The best there is
# If the cat may choose, the mean over its actions becomes a maximum (value iteration; Sutton and Barto 2018, eqs. 3.19 and 4.10):
#
#     V*_k(s) = max_a Q_k(s, a),     Q_k(s, a) = Σ_s′ P(s′|s,a) ( r(s′) + γ V*_{k−1}(s′) )
#
# γ ≤ 1 is a *discount*: R(τ) = Σₜ γᵗ rₜ, so that the same meat is worth less later. After many sweeps V* stands still, and the best action
# in each cell is a policy. Is it the best of all? The small map has four cells where something can be decided: 4⁴ = 256 deterministic
# policies. Each is judged without sweeps, by solving V = r_π + γ P_π V, a linear system:

# %%
gamma = 0.9
V_best = value_iteration(small, 300, gamma)[-1]                         # (S,)
undecided = (~small.terminal).nonzero()[:, 0].tolist()
judged = []
for choice in itertools.product(range(4), repeat=len(undecided)):
    P_pi, r_pi = torch.zeros(6, 6), torch.zeros(6)
    for s, a in zip(undecided, choice):
        P_pi[s] = small.transitions[s, a]
        r_pi[s] = small.transitions[s, a] @ small.rewards
    judged.append(torch.linalg.solve(torch.eye(6) - gamma * P_pi, r_pi))
judged = torch.stack(judged)                                            # (256, S)
lesson.check("V* = the best of all 256 policies, in every cell", V_best, judged.amax(0), atol=1e-9, source="B: optimal policy")
chosen = greedy_policy(action_values(small, V_best, gamma))
lesson.check("and value iteration's policy attains it", evaluate(small, chosen, 300, gamma)[-1], judged.amax(0),
             atol=1e-9, source="B: optimal policy")
at_start = judged[:, small.start]
print(f"      J of the 256: best {at_start.max():.1f}, median {at_start.median():.1f}, worst {at_start.min():.1f}; attained by one: "
      f"{(at_start > at_start.max() - 1e-9).sum() == 1}")
print("\n".join("      " + row for row in small.arrows(chosen).split()))

# %% [markdown]
# Down first, although → ↓ → is just as short: who stands right of the start and steps down slips into the bathtub one time in ten.
#
# A larger map, and three cats. The first has all the time in the world (γ = 1) and a dry floor. V* = 100 everywhere, and *every* step that
# touches neither broom nor bathtub is a best action, back and forth and into the wall included: values that are right, and a policy that is
# useless. (A step onto the broom is not: −1 now and 100 to come are 99.) The second is in a hurry (γ = 0.95): brooms are worth a detour
# only if the detour is short. The third is in a hurry on a wet floor.

# %%
MAP = """
    S.b..
    .##.~
    ....~
    ~.b.M
"""
cats = {"dry floor, γ = 1": (0.0, 1.0), "dry floor, γ = 0.95": (0.0, 0.95), "wet floor, γ = 0.95": (0.2, 0.95)}
fig, panels = plotting.figure(13, 4, columns=3)
for axes, (name, (slip, gamma)) in zip(panels, cats.items()):
    grid = Grid(MAP, slip)
    V = value_iteration(grid, 200, gamma)[-1]
    best = greedy_policy(action_values(grid, V, gamma))
    grid.draw(axes, best, V)
    axes.set_title(f"{name}: V* and the best actions")
    if name == "dry floor, γ = 1":
        clean = grid.rewards[grid.transitions.argmax(-1)] >= 0          # (S, A) the step lands on neither broom nor bathtub
        lesson.check("γ = 1: the best actions are all that touch neither broom nor bathtub", best[~grid.terminal] > 0, clean[~grid.terminal],
                     atol=0, source="definition of Q")
        wandering = evaluate(grid, best, 20)[-1, grid.start].item()
lesson.figure(fig, "optimal_policies")
lesson.claim("without a hurry the best actions lead nowhere", wandering < 10,
             f"V* = 100 at the start, but picking evenly among the best actions earns {wandering:.1f} in 20 steps")

# %% [markdown]
# Follow the third cat. Near the end of the middle row it goes down over the broom, which costs 1, and the second cat does not: the cell
# ahead lies beside a bathtub, and a step down from there would cost 10 one time in ten, and the meat. For the same reason it turns back
# where the second cat takes the upper way.
#
# ## 4. A cat that is told nothing
# Value iteration knows the map. The cat does not: it only lives, again and again, and sees what it got. REINFORCE (Williams 1992) makes the
# actions of good lives more likely and those of bad lives less, good and bad compared with the mean of the batch:
#
#     θ ← θ + η · mean over lives of ( R(τ) − mean R ) · Σₜ ∇ log π_θ(aₜ|sₜ)
#
# Why this climbs J is lesson 16; here it is used. The policy is a softmax over a table of numbers θ, one row a cell, all 0 at first. The
# loss is `reinforce_loss`; the step is the one that trained every model so far. The transitions P appear nowhere in it.

# %%
class TabularPolicy(nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(grid.rewards), 4))

    def forward(self):
        return self.theta.log_softmax(-1)                               # (S, A) log π(a|s)


def live_and_learn(grid, horizon, gamma, n_iterations, seed):
    """The trained policy, and rows of metrics: J is exact, the shares are of the newest episodes."""
    policy = TabularPolicy(grid)
    optimizers = make_optimizers(policy, "adamw", learning_rate=0.1, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)

    def value_of(policy):
        with torch.no_grad():
            return evaluate(grid, policy().exp(), horizon, gamma)[-1, grid.start].item()

    rows = [{"step": 0, "J": value_of(policy)}]
    for iteration in range(n_iterations):
        episodes = sample_episodes(grid, policy().detach().exp(), 64, horizon, generator)
        returns = episodes.returns(gamma)[:, 0]                         # (N,) R(τ)
        advantages = returns - returns.mean()                           # (N,)
        logprobs = policy()[episodes.states, episodes.actions]          # (N, T)
        loss = reinforce_loss(logprobs, advantages, episodes.mask)
        gradient_step(policy, loss, optimizers, schedule(iteration, n_iterations))
        if (iteration + 1) % 5 == 0:
            at_end = episodes.rewards.sum(1)                            # (N,) without the discount
            in_bathtub = (episodes.rewards == -10).any(1)
            rows.append({"step": iteration + 1, "J": value_of(policy), "meat": (at_end > 50).double().mean().item(),
                         "bathtub": in_bathtub.double().mean().item()})
    return policy().detach().exp(), rows


def greedy_route(grid, policy, horizon):
    """Where the likeliest actions lead on a dry floor: the cells, and what was earned on the way."""
    s, cells, earned = grid.start, [grid.cells[grid.start]], 0.0
    while not grid.terminal[s] and len(cells) <= horizon:
        s = grid.transitions[s, policy[s].argmax()].argmax().item()
        cells.append(grid.cells[s])
        earned += grid.rewards[s].item()
    return cells, earned


floors = {                                                              # slip, γ, T, optimizer steps, cats
    "dry": (0.0, 1, 20, lesson.pick(full=200, quick=120), lesson.pick(full=5, quick=1)),
    "wet": (0.2, 0.95, 30, lesson.pick(full=300, quick=60), lesson.pick(full=3, quick=1)),
}
runs = {}
for floor, (slip, gamma, horizon, max_steps, n_cats) in floors.items():
    grid = Grid(MAP, slip)
    best = value_iteration(grid, horizon, gamma)[-1, grid.start].item()
    cats = [live_and_learn(grid, horizon, gamma, max_steps, 5 * lesson.seed + i) for i in range(n_cats)]
    runs[floor] = grid, best, cats
    print(f"  {floor} floor, γ = {gamma}: J of a cat with no idea {cats[0][1][0]['J']:.1f}, the optimum {best:.2f}, "
          f"after {max_steps} steps " + ", ".join(f"{rows[-1]['J']:.2f}" for _, rows in cats))

# %%
grid, best, cats = runs["dry"]
routes = [greedy_route(grid, policy, 20) for policy, _ in cats]
ends = [rows[-1]["J"] for _, rows in cats]
n_best = sum(earned == best for _, earned in routes)
lesson.claim("dry floor: every cat's greedy route earns what value iteration's does", n_best == len(cats),
             f"{n_best} of {len(cats)} earn {best:.0f}, in at most {max(len(cells) - 1 for cells, _ in routes)} steps")
lesson.claim("dry floor: and the policy itself is within 0.5 of J*", min(ends) > best - 0.5, f"J at least {min(ends):.2f}, J* = {best:.2f}")
wet_grid, wet_best, wet_cats = runs["wet"]
wet_ends = [rows[-1]["J"] for _, rows in wet_cats]
lesson.claim("wet floor: within 2 % of J*, though nobody told it that the floor slips", min(wet_ends) > 0.98 * wet_best,
             f"J at least {min(wet_ends):.2f}, J* = {wet_best:.2f}", full_run=True)

# %%
fig, panels = plotting.figure(13, 4, columns=3)
for axes, (floor, (grid, best, cats)) in zip(panels, runs.items()):
    for i, (_, rows) in enumerate(cats):
        axes.plot([r["step"] for r in rows], [r["J"] for r in rows], color=plotting.COLOURS[0], linestyle="-", linewidth=1,
                  label="J exactly, one line a cat" if i == 0 else None)
    axes.axhline(best, color="black", linestyle=":", label=f"J* = {best:.1f}, by value iteration")
    axes.set(xlabel="optimizer steps of 64 lives", ylabel="J(π), return expected from the start", title=f"{floor} floor")
    axes.legend(loc="lower right")
rows = runs["dry"][2][0][1][1:]
for kind in ("meat", "bathtub"):
    panels[2].plot([r["step"] for r in rows], [r[kind] for r in rows], label=f"ended at the {kind}")
panels[2].plot([r["step"] for r in rows], [1 - r["meat"] - r["bathtub"] for r in rows], label="ran out of time")
panels[2].set(xlabel="optimizer steps of 64 lives", ylabel="share of the lives just lived", title="dry floor, one cat: how its lives end")
panels[2].legend(loc="center right")
lesson.figure(fig, "learning")

fig, panels = plotting.figure(11, 4.3, columns=2)
for axes, (floor, (_, gamma, horizon, _, _)) in zip(panels, floors.items()):
    grid, _, cats = runs[floor]
    grid.draw(axes, cats[0][0], evaluate(grid, cats[0][0], horizon, gamma)[-1])
    axes.set_title(f"{floor} floor, γ = {gamma}: what one cat learned")
lesson.figure(fig, "learned_policy")

# %% [markdown]
# The curves: first the cat learns what to avoid. Fewer lives end in the bathtub and more run out of time, until one stumbles on the meat
# often enough; from then on it is quick. The maps: the longer an arrow, the likelier. Where the cat no longer goes, the arrows stay
# undecided and the values low: REINFORCE learns from lives, so it learns little about places that it has stopped visiting. Value iteration
# filled every cell.
#
# ## 5. A language model is such a cat
# The state is the prefix, the action the next token, the policy π(token | prefix) a softmax, as above. The transition is certain (append
# the token), the episode ends with the stop token, and the reward comes at the very end, for the whole answer. Nothing else is new. Here
# is that MDP for 3 tokens and answers of at most 3, with a random reward for each answer, and a random table as the language model:

# %%
V, L, STOP = 3, 3, 0
prompt = torch.tensor([1])
tokens, mask = list_answers(prompt, V, L, STOP)                         # (15, 1 + L)
rewards = torch.randn(len(tokens), generator=lesson.generator)
model = Table(V, 1 + L, V)
nn.init.normal_(model.rows, generator=lesson.generator)

answers = [tuple(row[1:][m[1:]].tolist()) for row, m in zip(tokens, mask)]                       # each answer's own tokens
prefixes = sorted({answer[:k] for answer in answers for k in range(L + 1)})
state = {prefix: s for s, prefix in enumerate(prefixes)}
writing = MDP(torch.zeros(len(state), V, len(state)), torch.zeros(len(state)), torch.tensor([p in answers for p in prefixes]), state[()])
policy = torch.full((len(state), V), 1 / V)
for prefix, s in state.items():
    if prefix in answers:
        writing.transitions[s, :, s] = 1
        writing.rewards[s] = rewards[answers.index(prefix)]
        continue
    for token in range(V):
        writing.transitions[s, token, state[(*prefix, token)]] = 1
    policy[s] = model(torch.tensor([[1, *prefix]]))[0, -1].softmax(-1).detach()

with torch.no_grad():
    by_answers = expectation(answer_logprobs(model, tokens, mask), rewards)             # Σ_y π(y|x) R(y)
by_states, at_best = evaluate(writing, policy, L)[-1, writing.start], value_iteration(writing, L)[-1, writing.start]
lesson.check("J of a language model: over answers = over states", by_states, by_answers, atol=1e-12, source="B: RL of LMs")
lesson.check("the best policy writes the best answer", at_best, rewards.max(), atol=1e-12, source="B: RL of LMs")
print(f"      {len(state)} prefixes, {len(answers)} of them answers; J = {by_answers:.3f}; the best answer, {answers[rewards.argmax()]}, "
      f"is worth {rewards.max():.3f}")

# %% [markdown]
# For 50,000 tokens and answers of 100 there is no listing and no sweep. What is left is the third way of part 2: try. How to turn tries
# into a gradient is next.

# %%
lesson.end()
