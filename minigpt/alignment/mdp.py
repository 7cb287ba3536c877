"""Exact values in a Markov decision process (MDP): value iteration, and a listing of all episodes.

    P(τ) = Πₜ π(aₜ|sₜ) P(sₜ₊₁|sₜ, aₜ)        R(τ) = Σₜ γᵗ rₜ        J(π) = E_τ[R(τ)]
    Q_k(s, a) = Σ_s′ P(s′|s, a) ( r(s′) + γ V_{k−1}(s′) )
    V_k(s) = Σ_a π(a|s) Q_k(s, a)            V*_k(s) = max_a Q*_k(s, a)            V₀ = 0

V_k(s) is the expected return of k more steps from s. An episode has at most T steps, so V_T at the
start is exactly J, without a discount too (γ = 1). For large T, V*_T and the policy that is greedy
for it hardly depend on T.

Source: course D for P(τ), R(τ) and J(π), without a discount; Sutton and Barto 2018, eq. 4.5
(evaluation) and 4.10 (value iteration).
Not here: learning in an MDP whose transitions are unknown (reinforce.py). It needs only sampled
episodes.

Shapes: S states, A actions, N episodes, T steps at most.
"""
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minigpt.worlds.gridworld import MDP

MOST_EPISODES = 2_000_000


@dataclass
class Episodes:
    """N episodes, sampled or listed. After its end an episode stays in its terminal state."""

    states: Tensor                      # (N, T) sₜ
    actions: Tensor                     # (N, T) aₜ
    rewards: Tensor                     # (N, T) rₜ, for the step that aₜ made; 0 after the end
    mask: Tensor                        # (N, T) True where an action was taken
    transition_probability: Tensor      # (N,) Πₜ P(sₜ₊₁|sₜ, aₜ): the part of P(τ) without π

    def returns(self, gamma: float = 1.0) -> Tensor:
        """The reward-to-go Gₜ = rₜ + γ Gₜ₊₁ of each step: (N, T). Its first column is R(τ)."""
        to_go, columns = torch.zeros_like(self.rewards[:, 0]), []
        for rewards in self.rewards.flip(1).unbind(1):
            to_go = rewards + gamma * to_go
            columns.append(to_go)
        return torch.stack(columns[::-1], dim=1)                        # (N, T)


def check_horizon(horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"an episode has at least 1 step, not {horizon}")


def check_policy(mdp: MDP, policy: Tensor) -> None:
    """ValueError unless the policy is (S, A) and each row is a probability distribution."""
    shape = mdp.transitions.shape[:2]
    sums = policy.sum(-1)
    if policy.shape != shape or (policy < 0).any() or not sums.allclose(torch.ones_like(sums)):
        raise ValueError("a policy is π(a|s) with the shape (states, actions) = "
                         f"{tuple(shape)} and rows that sum to 1, not {tuple(policy.shape)}")


def action_values(mdp: MDP, values: Tensor, gamma: float = 1.0) -> Tensor:
    """Q(s, a) = Σ_s′ P(s′|s, a) ( r(s′) + γ V(s′) ), 0 in terminal states: (…, S) -> (…, S, A)."""
    targets = (mdp.rewards + gamma * values)[..., None, :, None]        # (…, 1, S, 1)
    q = (mdp.transitions @ targets)[..., 0]                             # (…, S, A)
    return q.masked_fill(mdp.terminal[:, None], 0.0)


def evaluate(mdp: MDP, policy: Tensor, horizon: int, gamma: float = 1.0) -> Tensor:
    """The values V_k of a policy (S, A) for k = 0 … T steps to go: (T + 1, S).

    J(π) is [-1, mdp.start]. Gradients reach the policy.
    """
    check_policy(mdp, policy)
    check_horizon(horizon)
    values = [torch.zeros_like(mdp.rewards)]
    for _ in range(horizon):
        values.append((policy * action_values(mdp, values[-1], gamma)).sum(-1))
    return torch.stack(values)                                          # (T + 1, S)


def value_iteration(mdp: MDP, horizon: int, gamma: float = 1.0) -> Tensor:
    """The values V*_k of the best actions for k = 0 … T steps to go: (T + 1, S)."""
    check_horizon(horizon)
    values = [torch.zeros_like(mdp.rewards)]
    for _ in range(horizon):
        values.append(action_values(mdp, values[-1], gamma).amax(-1))
    return torch.stack(values)                                          # (T + 1, S)


def greedy_policy(q: Tensor, tolerance: float = 1e-9) -> Tensor:
    """The policy that takes the action with the greatest Q: (S, A) -> (S, A).

    Actions within `tolerance` of the greatest Q share the probability equally.
    """
    best = q >= q.amax(-1, keepdim=True) - tolerance
    return best / best.sum(-1, keepdim=True).double()


@torch.no_grad()
def sample_episodes(
    mdp: MDP, policy: Tensor, n_episodes: int, horizon: int, generator: Generator
) -> Episodes:
    """Samples N episodes of at most T steps with a policy (S, A)."""
    check_policy(mdp, policy)
    check_horizon(horizon)
    if n_episodes < 1:
        raise ValueError(f"sample at least 1 episode, not {n_episodes}")
    state = torch.full((n_episodes,), mdp.start)
    probability, steps = torch.ones(n_episodes, dtype=mdp.transitions.dtype), []
    for _ in range(horizon):
        action = torch.multinomial(policy[state], 1, generator=generator)[:, 0]         # (N,)
        next_states = mdp.transitions[state, action]                    # (N, S)
        arrived = torch.multinomial(next_states, 1, generator=generator)                # (N, 1)
        probability = probability * next_states.gather(1, arrived)[:, 0]
        steps.append((state, action))
        state = arrived[:, 0]
    states, actions = (torch.stack(columns, dim=1) for columns in zip(*steps))          # (N, T)
    return make_episodes(mdp, states, actions, state, probability)


def list_episodes(mdp: MDP, horizon: int) -> Episodes:
    """Lists every episode of at most T steps that can happen: E_τ[…] becomes a finite sum.

    Here there are 4 · 4 pairs of actions, and only → → reaches the meat:

    >>> from minigpt.worlds.gridworld import Grid
    >>> episodes = list_episodes(Grid("S.M"), horizon=2)
    >>> len(episodes.states), episodes.returns()[:, 0].sum().item()
    (16, 100.0)
    """
    check_horizon(horizon)
    possible = mdp.transitions > 0                                      # (S, A, S)
    possible[mdp.terminal] = False
    possible[mdp.terminal, 0, mdp.terminal] = True                      # one way to stay there
    states = torch.tensor([[mdp.start]])                                # (N, t + 1)
    actions = torch.empty(1, 0, dtype=torch.long)                       # (N, t)
    probability = torch.ones(1, dtype=mdp.transitions.dtype)            # (N,)
    for t in range(horizon):
        steps = possible[states[:, -1]]                                 # (N, A, S)
        if (n := int(steps.sum())) > MOST_EPISODES:
            raise ValueError(f"there are {n:,} episodes after {t + 1} of {horizon} steps; "
                             "take a shorter horizon, or sample")
        before, action, arrived = steps.nonzero(as_tuple=True)          # (N′,) each
        step_probability = mdp.transitions[states[before, -1], action, arrived]
        probability = probability[before] * step_probability            # (N′,)
        states = torch.cat([states[before], arrived[:, None]], dim=1)   # (N′, t + 2)
        actions = torch.cat([actions[before], action[:, None]], dim=1)  # (N′, t + 1)
    return make_episodes(mdp, states[:, :-1], actions, states[:, -1], probability)


def make_episodes(
    mdp: MDP, states: Tensor, actions: Tensor, last: Tensor, probability: Tensor
) -> Episodes:
    """Adds rewards and mask to states (N, T), actions (N, T) and the last states (N,)."""
    mask = ~mdp.terminal[states]                                        # (N, T)
    arrived = torch.cat([states[:, 1:], last[:, None]], dim=1)          # (N, T) sₜ₊₁
    return Episodes(states, actions, mdp.rewards[arrived] * mask, mask, probability)
