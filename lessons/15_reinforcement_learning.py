"""Lesson 15: reinforcement learning. A cat learns the way to the meat in a small grid.

You will see    P(τ), R(τ) and J = E[R(τ)] by listing all trajectories, by going backwards in time,
                and by sampling; value iteration compared with every policy that exists; a cat that
                learns the best route without a map; a language model as such an agent.
Source          course B, "Introducción a aprendizaje por refuerzo" and "Configuración de RL";
                course D, "REINFORCEMENT LEARNING FROM HUMAN FEEDBACK (RLHF)" to "Objective Function
                J(θ)"; Sutton and Barto 2018, ch. 3, 4 and 13.
Expect          about 25 s on one core (7 s with --quick); every check passes. With seed 0, J of
                5 cats on a dry floor ends within 0.2 of J* = 100; on a wet floor, where J* = 55.9,
                J of 3 cats ends within 1 %.
Not here        why REINFORCE's update follows the gradient of J (lesson 16); rewards that come from
                people (lesson 17).

Shapes: S states, A = 4 actions, N episodes, T steps at most.
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
# ## 1. Agent, environment, reward
# So far every model had a right answer to compare with: the next token. In *reinforcement learning*
# there is none. An *agent* acts in an *environment*, and the environment answers each action with a
# *reward*. The agent is not told which action would have been better, and a good action may be
# rewarded much later, as in chess. The aim is to act so that the sum of the rewards is as large as
# possible. At each time t there are
#
#     a state sₜ          where the agent is
#     an action aₜ        what it does
#     a reward rₜ         a number, the answer of the environment to aₜ
#
# A system of this kind is a *Markov decision process* (MDP). Two probabilities describe it:
#
#     π(aₜ|sₜ)            the *policy*: how the agent chooses, aₜ ∼ π(·|sₜ)
#     P(sₜ₊₁|sₜ, aₜ)      the *transition*: where the environment leads (course D writes T)
#
# "Markov" says that the transition depends on sₜ and aₜ only, and not on what was before.
#
# Items: B13, D32, D33, D34

# %% [markdown]
# In course B the agent is a cat in a grid. The state is its cell. The action is a step in one of
# the four directions ↑ → ↓ ←. If there is a wall (#) or the edge, the cat stays in its cell.
# (Erratum: course B says that the *cell* stays.) The cell where a step ends gives the reward:
#
#     .  empty, 0        b  broom, −1        ~  bathtub, −10, the episode ends        M  meat, +100
#
# After the bathtub the cat is put back at the start S, and the next episode begins. The course does
# not say whether the meat ends the episode; here it does. The rewards are the course's. The maps
# are ours, since the course shows its map only as a picture. The first map is small, and its floor
# is wet, which is our addition: with probability 0.2 a step slips to one of its two sides.

# %%
small = Grid("""
    S.~
    .bM
""", slip=0.2)
right, down = 1, 2                                      # actions are numbered as in ↑ → ↓ ←
print("  → from the start leads to " + ", ".join(
    f"row {y} column {x} with probability {p:.1f}"
    for (y, x), p in zip(small.cells, small.transitions[small.start, right].tolist()) if p))
edges = Grid("S#\n.M")                                  # up and left is the edge, right is a wall
arrivals = [edges.transitions[0, a].argmax().item() for a in range(4)]
lesson.check("a step into the edge or a wall leaves the cat in its cell (↑ → ↓ ←)", arrivals,
             [0, 0, 1, 0], atol=0, source="B: Configuración de RL", items=("B14",))
line = Grid("S.b~M")                                    # all four kinds of cells
lesson.check("rewards of an empty cell, a broom, a bathtub and the meat", line.rewards[1:],
             [0, -1, -10, 100], atol=0, source="B: Configuración de RL", items=("B15",))
lesson.check("bathtub and meat end the episode", line.terminal, [False, False, False, True, True],
             atol=0, source="B: Configuración de RL; the meat: our choice", items=("B15",))

# %% [markdown]
# ## 2. Trajectories
# A *trajectory* (or episode) is what happens from the start to the end:
#
#     τ = (s₀, a₀, s₁, a₁, …, s_T, a_T)           R(τ) = Σ_{t=0}^{T} rₜ
#
# R(τ) is its *return*, the sum of the rewards. T is the number of steps. In the last state s_T the
# agent does nothing any more: course D calls a_T the *null action*. It has no probability and its
# reward is r_T = 0. So in fact there are T actions and T rewards, t = 0 … T − 1.
#
# The start s₀ is drawn from P(s₀). Then policy and environment alternate, so by the chain rule of
# lesson 02 the probability of τ is a product:
#
#     P(τ) = P(s₀) · Π_{t=0}^{T−1} π(aₜ|sₜ) P(sₜ₊₁|sₜ, aₜ)
#
# (Erratum: course D starts at s₁, ends at s_{T+1} and writes T(sₜ₊₁|sₜ, θₜ). Its own τ starts at
# s₀ and ends at s_T, and the transition depends on the action aₜ.) The value of a policy is its
# expected return, and the aim is the policy with the greatest one:
#
#     J(π) = E_τ[R(τ)] = Σ_τ P(τ) R(τ)
#
# One trajectory by hand. The cat starts in S, so P(s₀) = 1. Its policy is uniform, ¼ for each
# action. It steps → to the empty cell, ↓ onto the broom and → to the meat, and it never slips.
#
# Items: B16

# %%
T = 4                                                   # steps at most, then the episode ends
uniform = torch.full((6, 4), 0.25)                      # (S, A) π(a|s)
episodes = list_episodes(small, T)
chosen = torch.where(episodes.mask, uniform[episodes.states, episodes.actions], 1.0)    # (N, T)
P = episodes.transition_probability * chosen.prod(1)                    # (N,) P(τ)
R = episodes.returns()[:, 0]                                            # (N,) R(τ)

path, actions = torch.tensor([0, 1, 4, 5]), torch.tensor([right, down, right])  # in reading order
same = (episodes.states == path).all(1) & (episodes.actions[:, :3] == actions).all(1)
lesson.check("P(→ ↓ →) = (¼ · 0.8)³", P[same], [0.25**3 * 0.8**3], atol=1e-12,
             source="D: Log-derivative trick, P(τ)", items=("D44",))
lesson.check("its rewards are 0, −1, 100, and 0 for the null action", episodes.rewards[same],
             [[0.0, -1.0, 100.0, 0.0]], atol=0, source="D: Traiettoria τ; the numbers: B",
             items=("D35",))
lesson.check("R(→ ↓ →) = 0 − 1 + 100 + 0", R[same], [99.0], atol=1e-12, source="D: TOTAL REWARD",
             items=("D35",))

# %% [markdown]
# With at most four steps the number of trajectories is finite. We list them a second time, by a
# recursion over the cells that uses no tensor. Both lists must have the same length, probabilities
# that sum to 1, and the same J.

# %%
board = {(0, 0): 0, (0, 1): 0, (0, 2): -10, (1, 0): 0, (1, 1): -1, (1, 2): 100}
directions = list(MOVES.values())                       # (rows down, columns right)


def land(cell, a):
    """The cells where the step a can end, with their probabilities."""
    landings = {}
    for turn, p in ((0, 0.8), (1, 0.1), (3, 0.1)):      # straight, to the right, to the left
        dy, dx = directions[(a + turn) % 4]
        there = (cell[0] + dy, cell[1] + dx)
        there = there if there in board else cell
        landings[there] = landings.get(there, 0) + p
    return landings


def walk(cell, steps_left, probability, total):
    """(P(τ), R(τ)) of every trajectory that continues from a cell."""
    if steps_left == 0 or cell in ((0, 2), (1, 2)):
        yield probability, total
        return
    for a in range(4):
        for there, p in land(cell, a).items():
            yield from walk(there, steps_left - 1, probability * 0.25 * p, total + board[there])


walked = list(walk((0, 0), T, 1.0, 0))
lesson.check("both lists have as many trajectories", len(P), len(walked), atol=0,
             source="by listing")
lesson.check("Σ P(τ) = 1", P.sum(), 1.0, atol=1e-12, source="D: Log-derivative trick, P(τ)",
             items=("D44",))
lesson.check("J = Σ P(τ) R(τ), from both lists", P @ R, sum(p * r for p, r in walked), atol=1e-12,
             source="D: Objective Function J(θ)", items=("D38",))
J = (P @ R).item()
print(f"      {len(P):,} trajectories of at most {T} steps; J = {J:.2f}; "
      f"{P[R > 50].sum():.1%} end at the meat, {P[R < -9].sum():.1%} in the bathtub")

# %% [markdown]
# ## 3. The same number, backwards in time
# Each step multiplies the length of a list. But the *value* V_k(s), the return to expect from s
# with k steps to go, does not depend on how the agent came to s. Separate the first of the k steps
# from the others:
#
#     V_k(s) = E[ r₀ + (r₁ + … + r_{k−1}) | s₀ = s ]             definition
#            = E[ r₀ + V_{k−1}(s₁) | s₀ = s ]                    the mean of the rest, given s₁
#            = Σ_a π(a|s) Σ_s′ P(s′|s,a) ( r(s′) + V_{k−1}(s′) )       V₀ = 0
#
# Here r(s′) is the reward of the cell s′ (Sutton and Barto 2018, eqs. 3.14 and 4.5). So T sweeps
# over the states give what a list of all trajectories gives: J = V_T(S), or with a random start
#
#     J = Σ_{s₀} P(s₀) V_T(s₀)
#
# If the transitions are unknown, we can still *sample*. The mean return of N sampled trajectories
# is J up to a standard error of σ/√N, with σ² = E[(R − J)²], the variance of the return.

# %%
values = evaluate(small, uniform, T)[-1]                                # (S,) V_T(s)
lesson.check("J backwards in time = J by listing", values[small.start], J, atol=1e-12,
             source="Sutton and Barto 2018, eq. 4.5")
starts = [cell for cell in board if board[cell] not in (-10, 100)]      # P(s₀) = ¼ for each
J_random_start = sum(p * r for cell in starts for p, r in walk(cell, T, 1 / len(starts), 0))
lesson.check("random start: J = Σ P(s₀) V_T(s₀)", values[~small.terminal].mean(), J_random_start,
             atol=1e-10, source="D: Log-derivative trick, P(τ)", items=("D44",))
sigma = (P @ (R - J).square()).sqrt().item()
for n in (1_000, 10_000, 100_000):
    sampled = sample_episodes(small, uniform, n, T, lesson.generator).returns()[:, 0]
    lesson.check(f"J from {n:,} samples, within 5 standard errors", sampled.mean(), J,
                 atol=5 * sigma / n**0.5, source="the standard error σ/√N")

# %% [markdown]
# ## 4. The best policy
# If the agent may choose its action, the mean over the actions becomes a maximum. This is *value
# iteration* (Sutton and Barto 2018, eqs. 3.19 and 4.10):
#
#     V*_k(s) = max_a Q_k(s, a)     Q_k(s, a) = Σ_s′ P(s′|s,a) ( r(s′) + γ V*_{k−1}(s′) )    V*₀ = 0
#
# γ ≤ 1 is a *discount*. The return becomes R(τ) = Σₜ γᵗ rₜ, so the same meat is worth less if it
# comes later. After many sweeps V* does not change any more, and the best action of each cell is a
# policy.
#
# Is this policy the best of all? In the small map there are four cells with a choice of four
# actions: 4⁴ = 256 deterministic policies. We compute the values of each of them without sweeps.
# With unlimited time V_k and V_{k−1} are the same V, so V = r_π + γ P_π V. This is a linear system.
# P_π are the transitions under the policy, and r_π(s) is the mean reward of the step from s.

# %%
gamma = 0.9
V_best = value_iteration(small, 300, gamma)[-1]                         # (S,)
free = (~small.terminal).nonzero()[:, 0].tolist()                       # the cells with a choice
all_values = []
for choice in itertools.product(range(4), repeat=len(free)):
    P_pi, r_pi = torch.zeros(6, 6), torch.zeros(6)
    for s, a in zip(free, choice):
        P_pi[s] = small.transitions[s, a]
        r_pi[s] = small.transitions[s, a] @ small.rewards
    all_values.append(torch.linalg.solve(torch.eye(6) - gamma * P_pi, r_pi))
all_values = torch.stack(all_values)                                    # (256, S)
lesson.check("V* = the best of all 256 policies, in every cell", V_best, all_values.amax(0),
             atol=1e-9, source="Sutton and Barto 2018, §4.4")
best = greedy_policy(action_values(small, V_best, gamma))
lesson.check("and value iteration's policy has these values", evaluate(small, best, 300, gamma)[-1],
             all_values.amax(0), atol=1e-9, source="Sutton and Barto 2018, §4.4")
at_start = all_values[:, small.start]
print(f"      J of the 256 policies: best {at_start.max():.1f}, median {at_start.median():.1f}, "
      f"worst {at_start.min():.1f}")
print("\n".join("      " + row for row in small.arrows(best).split()))

# %% [markdown]
# The best first step is ↓, although → ↓ → has as many steps as ↓ → →. The reason is the wet floor:
# a step ↓ from the cell to the right of the start slips into the bathtub with probability 0.1.
#
# Now a larger map, and three settings.
#
# 1. *Dry floor, γ = 1.* V* = 100 in every cell, because later is as good as now. *Every*
#    step that touches neither broom nor bathtub is a best action: also a step back, and a step into
#    a wall. The values are right, but a policy that picks evenly among these actions is useless. (A
#    step onto a broom is not a best action: −1 now and 100 later are 99.)
# 2. *Dry floor, γ = 0.95.* Time matters. A detour around a broom pays only if it is short.
# 3. *Wet floor, γ = 0.95.*

# %%
MAP = """
    S.b..
    .##.~
    ....~
    ~.b.M
"""
settings = {"dry floor, γ = 1": (0.0, 1.0), "dry floor, γ = 0.95": (0.0, 0.95),
            "wet floor, γ = 0.95": (0.2, 0.95)}
fig, panels = plotting.figure(13, 4, columns=3)
for axes, (name, (slip, gamma)) in zip(panels, settings.items()):
    grid = Grid(MAP, slip)
    V = value_iteration(grid, 200, gamma)[-1]                           # (S,)
    best = greedy_policy(action_values(grid, V, gamma))                 # (S, A)
    grid.draw(axes, best, V)
    axes.set_title(f"{name}: V* and the best actions")
    if name == "dry floor, γ = 1":
        clean = grid.rewards[grid.transitions.argmax(-1)] >= 0          # (S, A) neither of the two
        lesson.check("γ = 1: the best actions are all that touch neither broom nor bathtub",
                     best[~grid.terminal] > 0, clean[~grid.terminal], atol=0,
                     source="definition of Q")
        wandering = evaluate(grid, best, 20)[-1, grid.start].item()
lesson.figure(fig, "optimal_policies")
lesson.claim("γ = 1: picking evenly among the best actions leads nowhere", wandering < 10,
             f"V* = 100 at the start, but this policy earns {wandering:.1f} in 20 steps")

# %% [markdown]
# Compare the second and the third map, in the third row. On the dry floor the route goes → once
# more, around the broom. On the wet floor it goes ↓ over the broom, which costs 1: the cell to the
# right lies beside a bathtub, and there a step ↓ slips into it with probability 0.1, which costs 10
# and the meat.
#
# ## 5. Learning without a map
# Value iteration uses the transitions P. A cat does not know them. It can only try many episodes
# and look at the returns. REINFORCE (Williams 1992) makes the actions of episodes with a high
# return more likely, and those of episodes with a low return less likely. High and low are relative
# to the mean return of the batch of episodes:
#
#     θ ← θ + α · mean over episodes of ( R(τ) − mean R ) · Σₜ ∇ log π_θ(aₜ|sₜ)
#
# Lesson 16 derives this rule; here it is used. The policy is a softmax over a table of numbers θ,
# with one row per cell, all 0 at first. The loss is `reinforce_loss`. The optimizer step is the one
# that trained every model so far. The transitions do not appear in it.

# %%
class TabularPolicy(nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(grid.rewards), 4))

    def forward(self):
        return self.theta.log_softmax(-1)                               # (S, A) log π(a|s)


def exact_J(grid, policy, horizon, gamma):
    with torch.no_grad():
        return evaluate(grid, policy().exp(), horizon, gamma)[-1, grid.start].item()


def learn(grid, horizon, gamma, n_iterations, seed):
    """The trained policy (S, A), and rows of metrics: J exactly, and how the episodes ended."""
    policy = TabularPolicy(grid)
    optimizers = make_optimizers(policy, "adamw", learning_rate=0.1, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    rows = [{"step": 0, "J": exact_J(grid, policy, horizon, gamma)}]
    for iteration in range(n_iterations):
        episodes = sample_episodes(grid, policy().detach().exp(), 64, horizon, generator)
        returns = episodes.returns(gamma)[:, 0]                         # (N,) R(τ)
        advantages = returns - returns.mean()                           # (N,)
        logprobs = policy()[episodes.states, episodes.actions]          # (N, T)
        loss = reinforce_loss(logprobs, advantages, episodes.mask)
        gradient_step(policy, loss, optimizers, schedule(iteration, n_iterations))
        if (iteration + 1) % 5 == 0:
            rows.append({"step": iteration + 1, "J": exact_J(grid, policy, horizon, gamma),
                         "meat": (episodes.rewards == 100).any(1).double().mean().item(),
                         "bathtub": (episodes.rewards == -10).any(1).double().mean().item()})
    return policy().detach().exp(), rows


floors = {                                              # slip, γ, T, optimizer steps, cats
    "dry": (0.0, 1, 20, lesson.pick(full=200, quick=120), lesson.pick(full=5, quick=1)),
    "wet": (0.2, 0.95, 30, lesson.pick(full=300, quick=60), lesson.pick(full=3, quick=1)),
}
runs = {}
for floor, (slip, gamma, horizon, max_steps, n_cats) in floors.items():
    grid = Grid(MAP, slip)
    best = value_iteration(grid, horizon, gamma)[-1, grid.start].item()
    cats = [learn(grid, horizon, gamma, max_steps, 5 * lesson.seed + i) for i in range(n_cats)]
    runs[floor] = grid, best, cats
    print(f"  {floor} floor, γ = {gamma}: J is {cats[0][1][0]['J']:.1f} with uniform actions and "
          f"{best:.2f} at best;\n      after {max_steps} steps "
          + ", ".join(f"{rows[-1]['J']:.2f}" for _, rows in cats))

# %%
grid, best, cats = runs["dry"]
ends = [rows[-1]["J"] for _, rows in cats]
lesson.claim("dry floor: J of every cat's policy is within 0.5 of J*", min(ends) > best - 0.5,
             f"J at least {min(ends):.2f}, J* = {best:.2f}")
shares = []                                             # of the episodes that collect 100
for policy, _ in cats:
    returns = sample_episodes(grid, policy, 2_000, 20, lesson.generator).returns()[:, 0]
    shares.append((returns == best).double().mean().item())
lesson.claim("dry floor: 90 % of every cat's episodes reach the meat without broom or bathtub",
             min(shares) >= 0.9, "share of its episodes, cat by cat: "
             + ", ".join(f"{share:.1%}" for share in shares), full_run=True)
wet_grid, wet_best, wet_cats = runs["wet"]
wet_ends = [rows[-1]["J"] for _, rows in wet_cats]
lesson.claim("wet floor: J of every cat's policy is within 2 % of J*",
             min(wet_ends) > 0.98 * wet_best,
             f"J at least {min(wet_ends):.2f}, J* = {wet_best:.2f}", full_run=True)

# %%
fig, panels = plotting.figure(13, 4, columns=3)
for axes, (floor, (_, best, cats)) in zip(panels, runs.items()):
    for i, (_, rows) in enumerate(cats):
        axes.plot([r["step"] for r in rows], [r["J"] for r in rows], color=plotting.COLOURS[0],
                  linestyle="-", linewidth=1, label="J, one line per cat" if i == 0 else None)
    axes.axhline(best, color="black", linestyle=":", label=f"J* = {best:.1f}, by value iteration")
    axes.set(xlabel="optimizer steps, 64 episodes each", ylabel="J(π), expected return",
             title=f"{floor} floor")
    axes.legend(loc="lower right")
rows = runs["dry"][2][0][1][1:]
for kind in ("meat", "bathtub"):
    panels[2].plot([r["step"] for r in rows], [r[kind] for r in rows], label=f"end at the {kind}")
panels[2].plot([r["step"] for r in rows], [1 - r["meat"] - r["bathtub"] for r in rows],
               label="no end in 20 steps")
panels[2].set(xlabel="optimizer steps, 64 episodes each", ylabel="share of the episodes",
              title="dry floor, one cat: how its episodes end")
panels[2].legend(loc="center right")
lesson.figure(fig, "learning")

fig, panels = plotting.figure(11, 4.3, columns=2)
for axes, (floor, (_, gamma, horizon, _, _)) in zip(panels, floors.items()):
    grid, _, cats = runs[floor]
    grid.draw(axes, cats[0][0], evaluate(grid, cats[0][0], horizon, gamma)[-1])
    axes.set_title(f"{floor} floor, γ = {gamma}: the policy of one cat and its values")
lesson.figure(fig, "learned_policy")

# %% [markdown]
# The curves: first the cat learns what to avoid. Fewer episodes end in the bathtub, and more do not
# end in 20 steps. Once enough episodes reach the meat, learning is quick. The maps: a longer arrow
# is a likelier action. In cells that the cat does not visit any more, several actions stay likely
# and the values stay lower. REINFORCE learns from episodes, so it learns little about such cells.
# Value iteration finds the best action of every cell.
#
# ## 6. A language model as an agent
# Courses B and D carry the words over to a language model:
#
#     agent                the language model
#     state sₜ             the prompt x and the tokens of the answer so far: the prefix
#     action aₜ            the next token
#     policy π(aₜ|sₜ)      the probability of the next token; for a whole answer y, P(y|x)
#     transition           append the token: certain
#     end of the episode   the stop token
#     reward               r(x, y) for a whole answer, given at its last token; 0 before
#
# (Course D writes rₜ = r(sₜ, aₜ) = r(x, y): there the whole answer is one action. Both views give
# the same J, as the check below shows.) A real model has too many prompts and answers to list. We
# take a case that is small enough: 3 tokens, answers of at most 3 tokens, a random reward for each
# answer, and a random table of logits as the language model.
#
# Items: B17, D36

# %%
V, L, STOP = 3, 3, 0
prompt = torch.tensor([1])
tokens, mask = list_answers(prompt, V, L, STOP)                         # (15, 1 + L)
rewards = torch.randn(len(tokens), generator=lesson.generator)          # (15,) r(x, y)
model = Table(V, 1 + L, V)
nn.init.normal_(model.rows, generator=lesson.generator)

answers = [tuple(row[1:][m[1:]].tolist()) for row, m in zip(tokens, mask)]      # without padding
prefixes = sorted({answer[:k] for answer in answers for k in range(L + 1)})
state = {prefix: s for s, prefix in enumerate(prefixes)}
writing = MDP(transitions=torch.zeros(len(state), V, len(state)), rewards=torch.zeros(len(state)),
              terminal=torch.tensor([prefix in answers for prefix in prefixes]), start=state[()])
policy = torch.full((len(state), V), 1 / V)                             # (S, V) π(token|prefix)
for prefix, s in state.items():
    if prefix in answers:
        writing.transitions[s, :, s] = 1
        writing.rewards[s] = rewards[answers.index(prefix)]
        continue
    for token in range(V):
        writing.transitions[s, token, state[(*prefix, token)]] = 1
    policy[s] = model(torch.tensor([[1, *prefix]]))[0, -1].softmax(-1).detach()

with torch.no_grad():
    by_answers = expectation(answer_logprobs(model, tokens, mask), rewards)     # Σ_y P(y|x) r(x, y)
by_states = evaluate(writing, policy, L)[-1, writing.start]
at_best = value_iteration(writing, L)[-1, writing.start]
lesson.check("J of a language model: over answers = over states", by_states, by_answers, atol=1e-12,
             source="D: RL NSI LLM; B: Configuración de RL: Conexión con LLMs", items=("D37",))
lesson.check("the best policy writes the best answer", at_best, rewards.max(), atol=1e-12,
             source="derived: one path leads to each answer")
print(f"      {len(state)} prefixes, {len(answers)} of them answers; J = {by_answers:.3f}; "
      f"the best answer {answers[rewards.argmax()]} has reward {rewards.max():.3f}")

# %% [markdown]
# With 50,000 tokens and answers of 100 tokens, lists and sweeps are impossible. Only sampling is
# left, as in section 3. Lesson 16 shows how samples give a gradient.

# %%
lesson.end()
