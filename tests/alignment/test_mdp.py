"""Values and episodes of an MDP against recursions over lists: one state at a time, no tensors."""
import itertools
import re

import pytest
import torch

from minigpt.alignment import mdp as module
from minigpt.alignment.mdp import (
    action_values,
    evaluate,
    greedy_policy,
    list_episodes,
    sample_episodes,
    value_iteration,
)
from minigpt.worlds.gridworld import MDP, Grid

MAP = """
    .bS.
    .#~#
    M.b.
"""
SLIP = 0.3


def outcomes(mdp, state, action):
    """[(next state, reward, probability)] of one step, without impossible ones."""
    row = mdp.transitions[state, action].tolist()
    return [(s, mdp.rewards[s].item(), p) for s, p in enumerate(row) if p]


def value(mdp, state, policy, steps, gamma):
    """V_k(s) by recursion; `policy` is a list of rows, or None for the best action."""
    if steps == 0 or mdp.terminal[state]:
        return 0.0
    q = [
        sum(p * (r + gamma * value(mdp, s, policy, steps - 1, gamma)) for s, r, p in step)
        for step in (outcomes(mdp, state, a) for a in range(4))
    ]
    return max(q) if policy is None else sum(p * x for p, x in zip(policy[state], q))


def random_policy(mdp, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(mdp.rewards), 4, generator=generator, dtype=torch.double)
    return logits.softmax(-1)


# ---- values ----

@pytest.mark.parametrize("slip, gamma", [(0.0, 1.0), (SLIP, 1.0), (SLIP, 0.6)])
def test_evaluation_and_value_iteration_are_the_recursions(slip, gamma):
    grid = Grid(MAP, slip)
    policy = random_policy(grid)
    values, best = evaluate(grid, policy, 3, gamma), value_iteration(grid, 3, gamma)
    assert values.shape == best.shape == (4, 10)
    for k, s in itertools.product(range(4), range(10)):
        by_recursion = value(grid, s, policy.tolist(), k, gamma)
        assert values[k, s].item() == pytest.approx(by_recursion, abs=1e-12)
        assert best[k, s].item() == pytest.approx(value(grid, s, None, k, gamma), abs=1e-12)
    q = action_values(grid, best[:3], gamma)                            # (3, S, A), three at a time
    torch.testing.assert_close(q[2].amax(-1), best[3])
    torch.testing.assert_close(q[1], action_values(grid, best[1], gamma))


def linear_values(mdp, policy, gamma):
    """V = Π(r + γPV) solved as (I − γΠP)V = ΠPr; a terminal state has nothing more to come."""
    step = torch.einsum("sa,sat->st", policy, mdp.transitions)
    step[mdp.terminal] = 0
    return torch.linalg.solve(torch.eye(len(step)).double() - gamma * step, step @ mdp.rewards)


def test_a_long_horizon_solves_the_linear_system():
    grid = Grid(MAP, SLIP)
    policy = random_policy(grid, 1)
    solved = linear_values(grid, policy, 0.8)
    torch.testing.assert_close(evaluate(grid, policy, 200, 0.8)[-1], solved, atol=1e-12, rtol=0)


def test_no_deterministic_policy_beats_value_iteration():
    grid, gamma = Grid("Sb~\n.#M\n...", 0.2), 0.9
    best = value_iteration(grid, 300, gamma)[-1]
    found = greedy_policy(action_values(grid, best, gamma))
    free = (~grid.terminal).nonzero()[:, 0]
    tried = []
    for actions in itertools.product(range(4), repeat=len(free)):
        policy = torch.full((len(grid.rewards), 4), 0.25, dtype=torch.double)
        policy[free] = torch.eye(4, dtype=torch.double)[list(actions)]
        tried.append(linear_values(grid, policy, gamma))
    assert len(tried) == 4**6
    torch.testing.assert_close(torch.stack(tried).amax(0), best, atol=1e-9, rtol=0)
    torch.testing.assert_close(evaluate(grid, found, 300, gamma)[-1], best, atol=1e-9, rtol=0)


def test_gradients_reach_the_policy():
    grid = Grid(MAP, SLIP)
    theta = random_policy(grid, 5).log().requires_grad_()

    def J(theta):
        return evaluate(grid, theta.softmax(-1), 3)[-1, grid.start]

    assert torch.autograd.gradcheck(J, theta, eps=1e-5, atol=1e-6)


def test_actions_of_equal_value_share_the_probability():
    q = torch.tensor([[1.0, 3.0, 3.0 + 1e-12], [0.0, -1.0, -2.0]], dtype=torch.double)
    assert greedy_policy(q).tolist() == [[0, 0.5, 0.5], [1, 0, 0]]
    assert greedy_policy(q[:1], tolerance=1e-13).tolist() == [[0, 0, 1]]


def test_an_mdp_need_not_be_a_grid():
    """State 0 bets or waits. A bet (action 1) wins 5 with probability ¼, and loses 1 otherwise."""
    transitions = torch.tensor([
        [[1.0, 0, 0], [0, 0.75, 0.25]],
        [[0, 1.0, 0], [0, 1.0, 0]],
        [[0, 0, 1.0], [0, 0, 1.0]],
    ])
    bet = MDP(transitions, torch.tensor([0.0, -1, 5]), torch.tensor([False, True, True]), start=0)
    assert value_iteration(bet, 4)[:, 0].tolist() == [0, 0.5, 0.5, 0.5, 0.5]
    # Betting with probability ½: ½·½ in the first step and ½·½·½ in the second.
    assert evaluate(bet, torch.full((3, 2), 0.5), 2)[-1].tolist() == [0.375, 0, 0]


# ---- episodes ----

def steps_of(episodes, i):
    """((state, action, reward), …) of episode i, up to its end."""
    columns = (episodes.states, episodes.actions, episodes.rewards, episodes.mask)
    rows = zip(*(column[i].tolist() for column in columns))
    return tuple((s, a, r) for s, a, r, taken in rows if taken)


def probabilities(episodes, policy):
    """P(τ) of each episode."""
    taken = policy[episodes.states, episodes.actions]                   # (N, T)
    return episodes.transition_probability * torch.where(episodes.mask, taken, 1).prod(1)


@pytest.mark.parametrize("slip", [0.0, SLIP])
def test_listed_episodes_are_those_of_a_recursion(slip):
    grid, horizon = Grid(MAP, slip), 3

    def continuations(state, steps):
        if steps == 0 or grid.terminal[state]:
            yield (), 1.0
            return
        for a in range(4):
            for there, r, p in outcomes(grid, state, a):
                for rest, probability in continuations(there, steps - 1):
                    yield ((state, a, r), *rest), p * probability

    expected = sorted(continuations(grid.start, horizon))
    e = list_episodes(grid, horizon)
    transition_probability = e.transition_probability.tolist()
    got = sorted((steps_of(e, i), p) for i, p in enumerate(transition_probability))
    assert [g[0] for g in got] == [x[0] for x in expected]
    assert [g[1] for g in got] == pytest.approx([x[1] for x in expected], abs=1e-15)
    assert (e.rewards[~e.mask] == 0).all() and not e.mask.all()


@pytest.mark.parametrize("slip", [0.0, SLIP])
def test_listed_probabilities_sum_to_one_and_j_by_listing_is_j_by_evaluation(slip):
    grid = Grid(MAP, slip)
    e, policy = list_episodes(grid, 3), random_policy(grid, 2)
    p = probabilities(e, policy)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    for gamma in (1.0, 0.7):
        J = evaluate(grid, policy, 3, gamma)[-1, grid.start].item()
        assert (p @ e.returns(gamma)[:, 0]).item() == pytest.approx(J, abs=1e-12)


def test_reward_to_go_is_a_sum_over_later_steps():
    e = list_episodes(Grid(MAP), 4)
    got, rewards = e.returns(0.5), e.rewards.tolist()
    assert got.shape == (len(rewards), 4)
    for n, t in itertools.product(range(len(rewards)), range(4)):
        expected = sum(0.5 ** (k - t) * rewards[n][k] for k in range(t, 4))
        assert got[n, t].item() == pytest.approx(expected, abs=1e-12)


def test_sampled_episodes_have_the_listed_frequencies():
    grid, horizon, n = Grid(MAP, SLIP), 2, 40_000
    policy = random_policy(grid, 3)
    drawn = sample_episodes(grid, policy, n, horizon, torch.Generator().manual_seed(4))
    listed = list_episodes(grid, horizon)
    # Episodes that differ in their last state only may have the same steps: add them up.
    expected, products = {}, {}
    for i, p in enumerate(probabilities(listed, policy).tolist()):
        steps = steps_of(listed, i)
        expected[steps] = expected.get(steps, 0) + p
        products.setdefault(steps, set()).add(round(listed.transition_probability[i].item(), 12))
    counts = {}
    for i in range(n):
        steps = steps_of(drawn, i)
        counts[steps] = counts.get(steps, 0) + 1
        assert round(drawn.transition_probability[i].item(), 12) in products[steps]
    assert set(counts) <= set(expected)
    for steps, p in expected.items():
        five_errors = 5 * (p * (1 - p) / n) ** 0.5
        assert abs(counts.get(steps, 0) / n - p) <= five_errors + 1 / n
    returns = drawn.returns()[:, 0]
    J = evaluate(grid, policy, horizon)[-1, grid.start]
    assert abs(returns.mean() - J) <= 5 * returns.std() / n**0.5


def test_a_generator_fixes_the_sampled_episodes():
    grid = Grid(MAP, SLIP)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample_episodes(grid, random_policy(grid), 50, 4, generator).states

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


# ---- refusals ----

GRID = Grid(MAP)
UNIFORM = torch.full((10, 4), 0.25)
NEGATIVE = torch.tensor([[1.5, -0.5, 0, 0]]).expand(10, 4)


@pytest.mark.parametrize("policy, words", [
    (UNIFORM[:, :3], "(10, 4) and rows that sum to 1, not (10, 3)"),
    (UNIFORM[:9], "not (9, 4)"),
    (UNIFORM * 2, "sum to 1"),
    (NEGATIVE, "sum to 1"),
    (UNIFORM * torch.nan, "sum to 1"),
])
def test_what_is_no_policy_is_refused(policy, words):
    for call in (lambda: evaluate(GRID, policy, 2),
                 lambda: sample_episodes(GRID, policy, 2, 3, torch.Generator())):
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


def test_an_episode_has_at_least_one_step():
    def calls(horizon):
        return (lambda: evaluate(GRID, UNIFORM, horizon),
                lambda: value_iteration(GRID, horizon),
                lambda: sample_episodes(GRID, UNIFORM, 2, horizon, torch.Generator()),
                lambda: list_episodes(GRID, horizon))

    for good, bad in zip(calls(1), calls(0)):
        good()
        with pytest.raises(ValueError, match="at least 1 step, not 0"):
            bad()


def test_at_least_one_episode_is_sampled():
    generator = torch.Generator().manual_seed(0)
    assert sample_episodes(GRID, UNIFORM, 1, 3, generator).states.shape == (1, 3)
    with pytest.raises(ValueError, match="at least 1 episode, not 0"):
        sample_episodes(GRID, UNIFORM, 0, 3, generator)


def test_too_many_episodes_to_list_are_refused_before_they_fill_the_memory(monkeypatch):
    with pytest.raises(ValueError, match="after .* of 30 steps; take a shorter horizon"):
        list_episodes(GRID, 30)
    n = len(list_episodes(GRID, 3).states)
    monkeypatch.setattr(module, "MOST_EPISODES", n)
    assert len(list_episodes(GRID, 3).states) == n
    monkeypatch.setattr(module, "MOST_EPISODES", n - 1)
    with pytest.raises(ValueError, match=f"there are {n:,} episodes after 3 of 3 steps"):
        list_episodes(GRID, 3)
