"""Worlds to act in: a Markov decision process small enough to list, and a cat in a grid to look at.

    P(τ) = Πₜ π(aₜ|sₜ) P(sₜ₊₁|sₜ, aₜ)              R(τ) = Σₜ γᵗ rₜ              J(π) = E_τ[R(τ)]
    V_k(s) = Σ_a π(a|s) Q_k(s, a)                   Q_k(s, a) = Σ_s′ P(s′|s, a) ( r(s′) + γ V_{k−1}(s′) )          V₀ = 0
    V*_k(s) = max_a Q*_k(s, a)

V_k is what k more steps are worth. An episode has at most T steps, so T sweeps give the exact answer, also without a discount
(γ = 1, the courses' R(τ) = Σ rₜ). If T is long, V_T hardly depends on T any more and its best actions are *the* policy.

Source: courses B and D, the cat in its grid; Sutton and Barto 2018, eq. 4.5 (evaluation) and 4.10 (value iteration). The floor that
slips sideways is Russell and Norvig's (2010, §17.1). The courses leave three things open, decided here: meat ends the episode as the
bathtub does; a reward is for the cell where a step *ends*, so who stands on the broom and bumps into a wall pays again; whether one slips.
Not here: a world whose transitions are unknown. `sample` alone never shows them, and learning (reinforce.py) asks for no more.

Shapes: S states, A actions, N episodes, T steps at most.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

MOVES = {"↑": (-1, 0), "→": (0, 1), "↓": (1, 0), "←": (0, -1)}         # the four actions: rows down, columns right
REWARDS = {"S": 0.0, ".": 0.0, "b": -1.0, "~": -10.0, "M": 100.0}      # start, empty, broom, bathtub, meat; a wall is "#"
ENDS = "~M"


@dataclass
class MDP:
    """Who can go where, and what it is worth. Where `ended` is True nothing more happens: no steps, no rewards."""

    transitions: Tensor                 # (S, A, S) P(s′|s, a)
    rewards: Tensor                     # (S,) r(s′), for arriving
    ended: Tensor                       # (S,) bool
    start: int


@dataclass
class Episodes:
    """N episodes, one a row, sampled or listed. After the end a row stands still, and `mask` is False."""

    states: Tensor                      # (N, T) sₜ
    actions: Tensor                     # (N, T) aₜ
    rewards: Tensor                     # (N, T) what action t earned at once, 0 after the end
    mask: Tensor                        # (N, T) True where an action was taken
    chance: Tensor                      # (N,) Πₜ P(sₜ₊₁|sₜ, aₜ): the world's share in P(τ)

    def returns(self, gamma: float = 1.0) -> Tensor:
        """The reward to go, Gₜ = rₜ + γGₜ₊₁: (N, T). Its first column is R(τ)."""
        to_go, columns = torch.zeros_like(self.rewards[:, 0]), []
        for now in self.rewards.flip(1).unbind(1):
            to_go = now + gamma * to_go
            columns.append(to_go)
        return torch.stack(columns[::-1], dim=1)                        # (N, T)


class Grid(MDP):
    """The cat's map as an MDP: actions ↑ → ↓ ←; walls and the edge of the map mean staying put.

    One symbol a cell: S start, . empty (0), b broom (−1), ~ bathtub (−10, the end), M meat (+100, the end), # wall. With probability
    `slip` a step goes to one of the two sides instead, each as likely. States are the cells without walls in reading order.

    >>> grid = Grid("S#M\\n.b.")
    >>> grid.symbols, grid.transitions[0, 2].tolist()                   # ↓ from the start leads to the cell below, state 2
    ('SM.b.', [0.0, 0.0, 1.0, 0.0, 0.0])
    """

    def __init__(self, text: str, slip: float = 0.0):
        rows = [line.strip() for line in text.strip().splitlines()]
        if not rows:
            raise ValueError("the map is empty; draw one cell a character, such as 'S.M'")
        for i, row in enumerate(rows, start=1):
            if len(row) != len(rows[0]):
                raise ValueError(f"row {i} of the map has {len(row)} cells and row 1 has {len(rows[0])}; fill short rows with # for walls")
            if unknown := set(row) - {*REWARDS, "#"}:
                raise ValueError(f"row {i} of the map has {min(unknown)!r}; a cell is one of {' '.join(REWARDS)} or # for a wall")
        if (n_starts := "".join(rows).count("S")) != 1:
            raise ValueError(f"the map has {n_starts} starts; mark exactly one cell with S")
        if not 0 <= slip <= 1:
            raise ValueError(f"slip is a probability between 0 and 1, not {slip}")
        free = [(y, x) for y, row in enumerate(rows) for x, symbol in enumerate(row) if symbol != "#"]
        state = {cell: s for s, cell in enumerate(free)}
        symbols = "".join(rows[y][x] for y, x in free)
        moves = list(MOVES.values())
        transitions = torch.zeros(len(free), 4, len(free), dtype=torch.double)          # (S, A, S)
        for s, (y, x) in enumerate(free):
            for a in range(4):
                for side, probability in ((0, 1 - slip), (1, slip / 2), (-1, slip / 2)):        # the moves stand in clockwise order
                    dy, dx = moves[(a + side) % 4]
                    arrived = s if symbols[s] in ENDS else state.get((y + dy, x + dx), s)
                    transitions[s, a, arrived] += probability
        super().__init__(transitions, torch.tensor([REWARDS[c] for c in symbols], dtype=torch.double),
                         torch.tensor([c in ENDS for c in symbols]), symbols.index("S"))
        self.rows, self.cells, self.symbols = rows, free, symbols       # the text; (row, column) and symbol of each state

    def arrows(self, policy: Tensor) -> str:
        """The map with the likeliest action in every cell where there is one to take; policy (S, A).

        >>> grid = Grid("S#M\\n.b.")
        >>> print(grid.arrows(best_actions(action_values(grid, value_iteration(grid, horizon=9, gamma=0.9)[-1], gamma=0.9))))
        ↓#M
        →→↑
        """
        best = policy.argmax(-1).tolist()
        marks = {cell: self.symbols[s] if self.ended[s] else list(MOVES)[best[s]] for s, cell in enumerate(self.cells)}
        return "\n".join("".join(marks.get((y, x), "#") for x in range(len(row))) for y, row in enumerate(self.rows))

    def draw(self, axes, policy: Tensor | None = None, values: Tensor | None = None) -> None:
        """The map on matplotlib axes; policy (S, A) as arrows, the longer the likelier; values (S,) as numbers and shades."""
        shades = torch.full((len(self.rows), len(self.rows[0])), torch.nan, dtype=torch.double)
        for s, (y, x) in enumerate(self.cells):
            ended = bool(self.ended[s])
            shades[y, x] = 0.0 if values is None else (self.rewards if ended else values)[s]
            name = {"S": "start", "b": "broom −1", "~": "bathtub\n−10", "M": "meat\n+100"}.get(self.symbols[s], "")
            if ended:
                axes.text(x, y, name, ha="center", va="center", fontsize=8)
                continue
            axes.text(x + 0.46, y - 0.45, name, ha="right", va="top", fontsize=7)
            if values is not None:
                axes.text(x - 0.46, y + 0.46, f"{values[s]:.1f}", ha="left", va="bottom", fontsize=7)
            for (dy, dx), probability in zip(MOVES.values(), [] if policy is None else policy[s].tolist()):
                if probability > 0.02:                                  # shorter ones would be dots
                    tip, tail = 0.34 * probability**0.5, 0.04
                    axes.annotate("", (x + tip * dx, y + tip * dy), (x + tail * dx, y + tail * dy),
                                  arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0,
                                              "mutation_scale": 4 + 8 * probability})
        known = shades[~shades.isnan()]
        low, high = min(0.0, known.min().item()), known.max().item()
        axes.set_facecolor("0.25")                                      # walls: cells without a shade
        axes.imshow(shades.numpy(), cmap="Blues", vmin=low, vmax=low + 1.8 * max(high - low, 1.0))      # never so dark that arrows drown
        axes.set(xticks=[i - 0.5 for i in range(shades.size(1))], yticks=[i - 0.5 for i in range(shades.size(0))], xticklabels=[], yticklabels=[])
        axes.tick_params(length=0)


def refuse_bad_policy(mdp: MDP, policy: Tensor, horizon: int) -> None:
    wanted = mdp.transitions.shape[:2]
    if policy.shape != wanted or (policy < 0).any() or not torch.allclose(policy.sum(-1), torch.ones_like(policy[:, 0])):
        raise ValueError(f"a policy is π(a|s) with the shape (states, actions) = {tuple(wanted)} and rows that sum to 1, "
                         f"not {tuple(policy.shape)}")
    if horizon < 1:
        raise ValueError(f"an episode has at least 1 step, not {horizon}")


def action_values(mdp: MDP, values: Tensor, gamma: float = 1.0) -> Tensor:
    """Q(s, a) = Σ_s′ P(s′|s, a) ( r(s′) + γ V(s′) ), and 0 where the episode is over: (…, S) -> (…, S, A)."""
    worth = (mdp.rewards + gamma * values)[..., None, :, None]          # (…, 1, S, 1)
    return (mdp.transitions @ worth)[..., 0].masked_fill(mdp.ended[:, None], 0.0)       # (…, S, A)


def evaluate(mdp: MDP, policy: Tensor, horizon: int, gamma: float = 1.0) -> Tensor:
    """What a policy (S, A) is worth: (T + 1, S), row k with k steps to go. J is [-1, start]. Gradients flow to the policy."""
    refuse_bad_policy(mdp, policy, horizon)
    values = [torch.zeros_like(mdp.rewards)]
    for _ in range(horizon):
        values.append((policy * action_values(mdp, values[-1], gamma)).sum(-1))
    return torch.stack(values)                                          # (T + 1, S)


def value_iteration(mdp: MDP, horizon: int, gamma: float = 1.0) -> Tensor:
    """What the best actions are worth, whatever it takes: (T + 1, S), row k with k steps to go. J* is [-1, start]."""
    values = [torch.zeros_like(mdp.rewards)]
    for _ in range(horizon):
        values.append(action_values(mdp, values[-1], gamma).amax(-1))
    return torch.stack(values)                                          # (T + 1, S)


def best_actions(action_values: Tensor, tolerance: float = 1e-9) -> Tensor:
    """The policy that takes the best action, or any of the best alike: Q (S, A) -> π (S, A)."""
    best = action_values >= action_values.amax(-1, keepdim=True) - tolerance
    return best / best.sum(-1, keepdim=True).double()


@torch.no_grad()
def sample(mdp: MDP, policy: Tensor, n_episodes: int, horizon: int, generator: torch.Generator) -> Episodes:
    """N episodes of a policy (S, A), side by side."""
    refuse_bad_policy(mdp, policy, horizon)
    state = torch.full((n_episodes,), mdp.start)
    chance, columns = torch.ones(n_episodes, dtype=mdp.transitions.dtype), []
    for _ in range(horizon):
        action = torch.multinomial(policy[state], 1, generator=generator)[:, 0]         # (N,)
        odds = mdp.transitions[state, action]                           # (N, S)
        arrived = torch.multinomial(odds, 1, generator=generator)       # (N, 1)
        chance = chance * odds.gather(1, arrived)[:, 0]
        columns.append((state, action))
        state = arrived[:, 0]
    return finish(mdp, *(torch.stack(c, 1) for c in zip(*columns)), state, chance)


def list_episodes(mdp: MDP, horizon: int) -> Episodes:
    """Every episode that can happen, whatever the policy. With it, E_τ[…] is a finite sum. ValueError if there are over two million.

    >>> episodes = list_episodes(Grid("S.M"), horizon=2)
    >>> len(episodes.states), episodes.returns()[:, 0].sum().item()     # 4 · 4 action pairs; → → is the one that earns
    (16, 100.0)
    """
    possible = mdp.transitions > 0                                      # (S, A, S)
    possible[mdp.ended] = False
    possible[mdp.ended, 0, mdp.ended] = True                            # one way to stand still
    states, actions = torch.tensor([[mdp.start]]), torch.empty(1, 0, dtype=torch.long)         # (N, t + 1), (N, t)
    chance = torch.ones(1, dtype=mdp.transitions.dtype)
    for t in range(horizon):
        if (n := int(possible[states[:, -1]].sum())) > 2_000_000:
            raise ValueError(f"after {t + 1} of {horizon} steps there are {n:,} episodes already; take a shorter horizon, or sample")
        row, action, arrived = possible[states[:, -1]].nonzero(as_tuple=True)                   # (N′,) each
        chance = chance[row] * mdp.transitions[states[row, -1], action, arrived]
        states, actions = torch.cat([states[row], arrived[:, None]], 1), torch.cat([actions[row], action[:, None]], 1)
    return finish(mdp, states[:, :-1], actions, states[:, -1], chance)


def finish(mdp: MDP, states: Tensor, actions: Tensor, last: Tensor, chance: Tensor) -> Episodes:
    """What follows from who was where: states (N, T), actions (N, T), the state after the last action (N,), chance (N,)."""
    mask = ~mdp.ended[states]
    arrived = torch.cat([states[:, 1:], last[:, None]], 1)              # (N, T)
    return Episodes(states, actions, mdp.rewards[arrived] * mask, mask, chance)
