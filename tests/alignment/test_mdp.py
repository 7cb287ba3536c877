"""The cat's grid against a walker written with dictionaries: one cell at a time, no tensors, every way to slip followed by hand."""
import itertools
import re

import pytest
import torch

from minigpt import plotting
from minigpt.alignment.mdp import (
    action_values,
    best_actions,
    evaluate,
    list_episodes,
    sample,
    value_iteration,
)
from minigpt.worlds.gridworld import MDP, Grid

MAP = """
    .bS.
    .#~#
    M.b.
"""
WORTH = {"S": 0, ".": 0, "b": -1, "~": -10, "M": 100}
STEPS = [(-1, 0), (0, 1), (1, 0), (0, -1)]                              # ↑ → ↓ ←, rows count downwards
SLIP = 0.3


def cells(text):
    return {(y, x): c for y, row in enumerate(text.split()) for x, c in enumerate(row)}


def walk(text, cell, action, slip):
    """{(cell arrived in, reward): probability} of one step."""
    board, result = cells(text), {}
    for turn, probability in ((0, 1 - slip), (1, slip / 2), (3, slip / 2)):
        dy, dx = STEPS[(action + turn) % 4]
        there = (cell[0] + dy, cell[1] + dx)
        if board.get(there, "#") == "#":
            there = cell
        if probability:
            key = there, WORTH[board[there]]
            result[key] = result.get(key, 0) + probability
    return result


def value(text, cell, policy, steps, slip, gamma):
    """V_k(s) by recursion; `policy` maps a cell to four probabilities, or is None for the best action."""
    if steps == 0 or cells(text)[cell] in "~M":
        return 0.0
    q = [sum(p * (r + gamma * value(text, there, policy, steps - 1, slip, gamma)) for (there, r), p in walk(text, cell, a, slip).items()) for a in range(4)]
    return max(q) if policy is None else sum(p * x for p, x in zip(policy[cell], q))


def random_policy(grid, seed=0):
    return torch.randn(len(grid.rewards), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double).softmax(-1)


@pytest.mark.parametrize("slip", [0.0, SLIP, 1.0])
def test_transitions_and_rewards_are_the_walkers(slip):
    grid = Grid(MAP, slip)
    board = cells(MAP)
    assert grid.cells == [cell for cell, c in board.items() if c != "#"] and grid.cells[grid.start] == (0, 2)
    assert grid.transitions.shape == (10, 4, 10) and grid.ended.tolist() == [board[c] in "~M" for c in grid.cells]
    assert grid.rewards.tolist() == [WORTH[board[c]] for c in grid.cells]
    for s, a in itertools.product(range(10), range(4)):
        expected = torch.zeros(10, dtype=torch.double)
        for (there, _), p in (walk(MAP, grid.cells[s], a, slip) if not grid.ended[s] else {(grid.cells[s], 0): 1}).items():
            expected[grid.cells.index(there)] += p
        torch.testing.assert_close(grid.transitions[s, a], expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("slip, gamma", [(0.0, 1.0), (SLIP, 1.0), (SLIP, 0.6)])
def test_evaluation_and_value_iteration_are_the_recursions(slip, gamma):
    grid = Grid(MAP, slip)
    policy = random_policy(grid)
    as_dict = dict(zip(grid.cells, policy.tolist()))
    values, best = evaluate(grid, policy, 3, gamma), value_iteration(grid, 3, gamma)
    assert values.shape == best.shape == (4, 10)
    for k, (s, cell) in itertools.product(range(4), enumerate(grid.cells)):
        assert values[k, s].item() == pytest.approx(value(MAP, cell, as_dict, k, slip, gamma), abs=1e-12)
        assert best[k, s].item() == pytest.approx(value(MAP, cell, None, k, slip, gamma), abs=1e-12)
    q = action_values(grid, best[:3], gamma)                            # (3, S, A), a row of values at a time
    torch.testing.assert_close(q[2].amax(-1), best[3])
    torch.testing.assert_close(q[1], action_values(grid, best[1], gamma))


def test_a_long_horizon_solves_the_linear_system():
    """V = Π(r + γPV), as (I − γΠP)V = ΠPr, where an ended state has nothing more to expect."""
    grid, gamma = Grid(MAP, SLIP), 0.8
    policy = random_policy(grid, 1)
    step = torch.einsum("sa,sat->st", policy, grid.transitions)
    step[grid.ended] = 0
    solved = torch.linalg.solve(torch.eye(10, dtype=torch.double) - gamma * step, step @ grid.rewards)
    torch.testing.assert_close(evaluate(grid, policy, 200, gamma)[-1], solved, atol=1e-12, rtol=0)


def test_no_deterministic_policy_beats_value_iteration():
    grid, gamma = Grid("Sb~\n.#M\n...", 0.2), 0.9
    best = value_iteration(grid, 300, gamma)
    found = best_actions(action_values(grid, best[-1], gamma))
    free = (~grid.ended).nonzero()[:, 0]
    tried = []
    for actions in itertools.product(range(4), repeat=len(free)):
        policy = torch.full((len(grid.rewards), 4), 0.25, dtype=torch.double)
        policy[free] = torch.eye(4, dtype=torch.double)[list(actions)]
        step = torch.einsum("sa,sat->st", policy, grid.transitions)
        step[grid.ended] = 0
        tried.append(torch.linalg.solve(torch.eye(len(step), dtype=torch.double) - gamma * step, step @ grid.rewards))
    assert len(tried) == 4**6
    torch.testing.assert_close(torch.stack(tried).amax(0), best[-1], atol=1e-9, rtol=0)
    torch.testing.assert_close(evaluate(grid, found, 300, gamma)[-1], best[-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("slip", [0.0, SLIP])
def test_listed_episodes_are_all_there_are(slip):
    """Against a recursion over cells; their probabilities sum to 1, and J by listing is J by sweeps."""
    grid, horizon = Grid(MAP, slip), 3

    def continuations(cell, steps):
        if steps == 0 or cells(MAP)[cell] in "~M":
            yield (), 1.0
            return
        for a in range(4):
            for (there, r), p in walk(MAP, cell, a, slip).items():
                for rest, chance in continuations(there, steps - 1):
                    yield ((cell, a, r), *rest), p * chance

    expected = sorted(continuations((0, 2), horizon))
    e = list_episodes(grid, horizon)
    got = sorted((tuple((grid.cells[s], a, r) for s, a, r, m in zip(*row) if m), c)
                 for *row, c in zip(e.states.tolist(), e.actions.tolist(), e.rewards.tolist(), e.mask.tolist(), e.chance.tolist()))
    assert [g[0] for g in got] == [x[0] for x in expected] and [g[1] for g in got] == pytest.approx([x[1] for x in expected], abs=1e-15)
    assert (e.rewards[~e.mask] == 0).all() and not e.mask.all()

    policy = random_policy(grid, 2)
    probability = e.chance * torch.where(e.mask, policy[e.states, e.actions], 1).prod(1)
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    for gamma in (1.0, 0.7):
        assert (probability @ e.returns(gamma)[:, 0]).item() == pytest.approx(evaluate(grid, policy, horizon, gamma)[-1, grid.start].item(), abs=1e-12)


def test_reward_to_go_by_loops():
    e = list_episodes(Grid(MAP), 4)
    got, rewards = e.returns(0.5), e.rewards.tolist()
    assert got.shape == (len(rewards), 4)
    for n, t in itertools.product(range(len(rewards)), range(4)):
        assert got[n, t].item() == pytest.approx(sum(0.5 ** (k - t) * rewards[n][k] for k in range(t, 4)), abs=1e-12)


def test_sampled_episodes_have_the_listed_frequencies():
    grid, horizon, n = Grid(MAP, SLIP), 2, 40_000
    policy = random_policy(grid, 3)
    drawn = sample(grid, policy, n, horizon, torch.Generator().manual_seed(4))
    listed = list_episodes(grid, horizon)

    def key(e, i):
        return tuple((s, a, r) for s, a, r, m in zip(*(x[i].tolist() for x in (e.states, e.actions, e.rewards, e.mask))) if m)

    probability, chance = {}, {}                                        # episodes that differ in the last state alone share rewards at times
    for i in range(len(listed.states)):
        p = (listed.chance[i] * torch.where(listed.mask[i], policy[listed.states[i], listed.actions[i]], 1).prod()).item()
        probability[key(listed, i)] = probability.get(key(listed, i), 0) + p
        chance.setdefault(key(listed, i), set()).add(round(listed.chance[i].item(), 12))
    counts = {}
    for i in range(n):
        counts[key(drawn, i)] = counts.get(key(drawn, i), 0) + 1
        assert round(drawn.chance[i].item(), 12) in chance[key(drawn, i)]
    assert set(counts) <= set(probability)
    for k, p in probability.items():
        assert abs(counts.get(k, 0) / n - p) <= 5 * (p * (1 - p) / n) ** 0.5 + 1 / n
    returns = drawn.returns()[:, 0]
    assert abs(returns.mean() - evaluate(grid, policy, horizon)[-1, grid.start]) <= 5 * returns.std() / n**0.5


def test_gradients_reach_the_policy():
    grid = Grid(MAP, SLIP)
    theta = random_policy(grid, 5).log().requires_grad_()

    def J(theta):
        return evaluate(grid, theta.softmax(-1), 3)[-1, grid.start]

    assert torch.autograd.gradcheck(J, theta, eps=1e-5, atol=1e-6)


def test_best_actions_share_ties():
    pi = best_actions(torch.tensor([[1.0, 3.0, 3.0 + 1e-12], [0.0, -1.0, -2.0]], dtype=torch.double))
    assert pi.tolist() == [[0, 0.5, 0.5], [1, 0, 0]]


def test_any_mdp_will_do():
    """A coin: state 0 tosses, action 1 wins (state 2, worth 5) with probability 0.25 and otherwise pays 1 in state 1."""
    coin = MDP(torch.tensor([[[1.0, 0, 0], [0, 0.75, 0.25]], [[0, 1.0, 0]] * 2, [[0, 0, 1.0]] * 2]), torch.tensor([0.0, -1, 5]), torch.tensor([False, True, True]), 0)
    assert value_iteration(coin, 4)[:, 0].tolist() == [0, 0.5, 0.5, 0.5, 0.5]
    assert evaluate(coin, torch.full((3, 2), 0.5), 2)[-1].tolist() == [0.375, 0, 0]             # ½·½ now, ½·½·½ one step later


def test_the_policy_as_arrows():
    grid = Grid(MAP)
    q = action_values(grid, value_iteration(grid, 50, 0.9)[-1], 0.9)
    assert grid.arrows(best_actions(q)).split() == ["↓←←←", "↓#~#", "M←←←"]
    fig, axes = plotting.figure()
    policy = best_actions(q)
    policy[0] = torch.tensor([0.5, 0.5, 0, 0])                          # two arrows in the corner
    grid.draw(axes, policy, value_iteration(grid, 50, 0.9)[-1])
    fig.draw_without_rendering()
    arrows = [t for t in axes.texts if getattr(t, "arrow_patch", None) is not None]
    assert len(arrows) == 8 + 1                                         # one for each of the 8 cells with something to do, one more
    right = [t for t in arrows if t.xy[0] > t.xyann[0]]
    up = [t for t in arrows if t.xy[1] < t.xyann[1]]                    # the vertical axis counts rows downwards
    assert len(right) == len(up) == 1 and axes.yaxis_inverted()
    assert right[0].xy == pytest.approx((0.34 * 0.5**0.5, 0)) and up[0].xy == pytest.approx((0, -0.34 * 0.5**0.5))         # both in the corner
    words = " ".join(t.get_text() for t in axes.texts)
    assert "meat" in words and "bathtub" in words and "90.0" in words   # two steps from the meat, 100·0.9


@pytest.mark.parametrize("text, words", [
    ("", "map is empty"), (" \n ", "map is empty"), ("S.\n.M.", "row 2 of the map has 3 cells and row 1 has 2"), ("S.\n\n.M", "row 2 of the map has 0 cells"),
    ("S.x", "row 1 of the map has 'x'"), ("..M", "0 starts"), ("S.\nS.", "2 starts"),
])
def test_bad_maps_are_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as refused:
        Grid(text)
    assert "\n" not in str(refused.value)


def test_other_refusals():
    grid = Grid(MAP)
    even = torch.full((10, 4), 0.25)
    for call, words in (
        (lambda: Grid("SM", slip=1.5), "between 0 and 1, not 1.5"), (lambda: evaluate(grid, even[:, :3], 2), r"(10, 4) and rows that sum to 1, not (10, 3)"),
        (lambda: evaluate(grid, even * 2, 2), "sum to 1"), (lambda: evaluate(grid, even, 0), "at least 1 step, not 0"),
        (lambda: sample(grid, torch.tensor([[1.5, -0.5, 0, 0]]).expand(10, 4), 2, 3, torch.Generator()), "sum to 1"),
        (lambda: list_episodes(grid, 30), "take a shorter horizon"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


@pytest.mark.parametrize("text", ["S", "S#M", "M\n.\nS", "SM"])
def test_odd_but_good_maps(text):
    grid = Grid(text)
    assert value_iteration(grid, 5)[-1, grid.start].item() == (0 if text in ("S", "S#M") else 100)
    assert list_episodes(grid, 2).chance.sum() > 0
