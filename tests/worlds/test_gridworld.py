"""The cat's grid against a walker of dictionaries: one cell at a time, slips followed by hand."""
import itertools
import math

import pytest
import torch

from minigpt import plotting
from minigpt.worlds.gridworld import Grid

MAP = """
    .bS.
    .#~#
    M.b.
"""
REWARD = {"S": 0, ".": 0, "b": -1, "~": -10, "M": 100}
STEPS = [(-1, 0), (0, 1), (1, 0), (0, -1)]                              # ↑ → ↓ ←, rows count down
UP, RIGHT, DOWN, LEFT = range(4)


def board_of(text):
    return {(y, x): c for y, row in enumerate(text.split()) for x, c in enumerate(row)}


def outcomes(cell, action, slip):
    """{cell where the step ends: probability}."""
    board, result = board_of(MAP), {}
    if board[cell] in "~M":
        return {cell: 1.0}
    for turn, probability in ((0, 1 - slip), (1, slip / 2), (3, slip / 2)):
        dy, dx = STEPS[(action + turn) % 4]
        there = (cell[0] + dy, cell[1] + dx)
        if board.get(there, "#") == "#":
            there = cell
        result[there] = result.get(there, 0) + probability
    return result


@pytest.mark.parametrize("slip", [0.0, 0.3, 1.0])
def test_transitions_and_rewards_are_those_of_the_walker(slip):
    grid, board = Grid(MAP, slip), board_of(MAP)
    assert grid.cells == [cell for cell, c in board.items() if c != "#"]
    assert grid.cells[grid.start] == (0, 2) and grid.symbols == ".bS..~M.b."
    assert grid.transitions.shape == (10, 4, 10)
    assert grid.terminal.tolist() == [board[c] in "~M" for c in grid.cells]
    assert grid.rewards.tolist() == [REWARD[board[c]] for c in grid.cells]
    for s, a in itertools.product(range(10), range(4)):
        expected = torch.zeros(10, dtype=torch.double)
        for there, probability in outcomes(grid.cells[s], a, slip).items():
            expected[grid.cells.index(there)] += probability
        torch.testing.assert_close(grid.transitions[s, a], expected, atol=1e-15, rtol=0)


def test_a_slip_turns_to_both_sides_and_never_back():
    """From the middle of an empty map: ↑ with slip 0.2 arrives above, left and right."""
    grid = Grid("S..\n...\n...", slip=0.2)
    middle = grid.cells.index((1, 1))
    arrived = {grid.cells[s]: p for s, p in enumerate(grid.transitions[middle, UP].tolist()) if p}
    assert arrived == {(0, 1): 0.8, (1, 2): 0.1, (1, 0): 0.1}


def one_action_per_state(*actions):
    return torch.eye(4, dtype=torch.double)[list(actions)]


def test_arrows_show_the_most_likely_action_and_keep_walls_and_terminal_states():
    grid = Grid(MAP)
    policy = one_action_per_state(DOWN, LEFT, LEFT, LEFT, DOWN, UP, UP, LEFT, LEFT, LEFT)
    assert grid.arrows(policy).split() == ["↓←←←", "↓#~#", "M←←←"]
    policy[2] = torch.tensor([0.3, 0.4, 0.2, 0.1])
    assert grid.arrows(policy).split()[0] == "↓←→←"


def drawing(policy=None, values=None):
    fig, axes = plotting.figure()
    Grid(MAP).draw(axes, policy, values)
    fig.draw_without_rendering()
    arrows = [t for t in axes.texts if getattr(t, "arrow_patch", None) is not None]
    return axes, arrows, [t for t in axes.texts if t.get_text()]


def test_a_drawing_has_an_arrow_for_each_likely_action():
    policy = one_action_per_state(DOWN, LEFT, LEFT, LEFT, DOWN, UP, UP, LEFT, LEFT, LEFT)
    policy[0] = torch.tensor([0.5, 0.5, 0, 0])                          # two arrows in the corner
    policy[1] = torch.tensor([0.021, 0, 0, 0.979])                      # two: 2.1 % is drawn
    policy[3] = torch.tensor([0.02, 0, 0, 0.98], dtype=torch.double)    # one: 2 % is not
    axes, arrows, _ = drawing(policy)
    assert len(arrows) == 8 + 2                                         # 8 cells are not terminal
    assert axes.yaxis_inverted()                                        # rows count down
    corner = [t for t in arrows if t.xyann[0] < 0.5 and t.xyann[1] < 0.5]
    up, right = sorted(corner, key=lambda t: t.xy[0])
    assert up.xy == pytest.approx((0, -0.34 * math.sqrt(0.5)))
    assert right.xy == pytest.approx((0.34 * math.sqrt(0.5), 0))


def test_a_drawing_names_cells_and_writes_the_values_of_states_that_are_not_terminal():
    values = torch.tensor([81.0, 7, 6, 5, 90, 77, 78, 4, 3, 2], dtype=torch.double)
    axes, arrows, texts = drawing(values=values)
    words = [t.get_text() for t in texts]
    assert not arrows
    assert sorted(w for w in words if w[0].isalpha()) == [
        "bathtub\n−10", "broom −1", "broom −1", "meat\n+100", "start"]
    assert sorted(w for w in words if not w[0].isalpha()) == sorted(
        f"{v:.1f}" for v in values.tolist() if v not in (77, 78))
    shades = axes.images[0].get_array()
    assert shades[0, 0] == 81 and shades[2, 0] == 100 and shades[1, 2] == -10
    assert shades.mask.sum() == 2 and shades.mask[1, 1] and shades.mask[1, 3]           # the walls


def test_a_drawing_needs_neither_policy_nor_values():
    axes, arrows, texts = drawing()
    assert not arrows and len(texts) == 5 and (axes.images[0].get_array() == 0).sum() == 10


@pytest.mark.parametrize("text, words", [
    ("", "map is empty"),
    (" \n ", "map is empty"),
    ("S.\n.M.", "row 2 of the map has 3 cells and row 1 has 2"),
    ("S.\n\n.M", "row 2 of the map has 0 cells"),
    ("S.x", "row 1 of the map has 'x'"),
    ("..M", "0 starts"),
    ("S.\nS.", "2 starts"),
])
def test_text_that_is_not_a_map_is_refused(text, words):
    with pytest.raises(ValueError, match=words) as refused:
        Grid(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("slip", [-0.01, 1.01, math.nan])
def test_a_slip_that_is_no_probability_is_refused(slip):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {slip}"):
        Grid("SM", slip)


@pytest.mark.parametrize("text", ["S", "S#M", "M\n.\nS", "SM"])
def test_small_maps_are_maps(text):
    grid = Grid(text)
    assert grid.symbols == text.replace("#", "").replace("\n", "")
    assert (grid.transitions.sum(-1) == 1).all() and grid.symbols[grid.start] == "S"
