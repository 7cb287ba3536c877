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

from minigpt.worlds.gridworld import MDP


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

    >>> from minigpt.worlds.gridworld import Grid
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
