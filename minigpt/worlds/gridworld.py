"""Grid world: a cat in a grid, as a Markov decision process (MDP) with few states.

    S . b       S start    . empty, 0    b broom, −1    # wall
    . # ~       ~ bathtub, −10, ends the episode
    . . M       M meat, +100, ends the episode

An action is a step in one of four directions. A step into a wall or over the edge of the map leaves
the cat in its cell.

Source: course B, "Configuración de RL" (the cat, its steps and rewards); Russell and Norvig 2010,
§17.1 (the slippery floor). Course B leaves two questions open. Here the meat ends the episode, as
the bathtub does. The reward belongs to the cell where a step ends: a step from the broom into a
wall costs 1 again.

Shapes: S states, A actions.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

MOVES = {"↑": (-1, 0), "→": (0, 1), "↓": (1, 0), "←": (0, -1)}          # (rows down, columns right)
REWARDS = {"S": 0.0, ".": 0.0, "b": -1.0, "~": -10.0, "M": 100.0}
TERMINAL = "~M"
LABELS = {"S": "start", ".": "", "b": "broom −1", "~": "bathtub\n−10", "M": "meat\n+100"}


@dataclass
class MDP:
    """A Markov decision process. In a terminal state there are no more actions and no rewards."""
    transitions: Tensor                 # (S, A, S) P(s′|s, a)
    rewards: Tensor                     # (S,) r(s′), for a step that ends in s′
    terminal: Tensor                    # (S,) bool
    start: int                          # s₀


def read_map(text: str) -> list[str]:
    """The rows of a map, without the spaces around them; ValueError if it is not a map."""
    if not (rows := [line.strip() for line in text.strip().splitlines()]):
        raise ValueError("the map is empty; draw one cell per character, such as 'S.M'")
    for i, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {i} of the map has {len(row)} cells and row 1 has "
                             f"{len(rows[0])}; fill short rows with # for walls")
        if unknown := set(row) - {*REWARDS, "#"}:
            raise ValueError(f"row {i} of the map has {min(unknown)!r}; a cell is one of "
                             f"{' '.join(REWARDS)} or # for a wall")
    if (n_starts := "".join(rows).count("S")) != 1:
        raise ValueError(f"the map has {n_starts} starts; mark exactly one cell with S")
    return rows


def step_probabilities(cells: list[tuple[int, int]], symbols: str, slip: float) -> Tensor:
    """P(s′|s, a) for the cells of a map: (S, A, S). A terminal state leads to itself."""
    state = {cell: s for s, cell in enumerate(cells)}
    directions = list(MOVES.values())                                   # in clockwise order
    outcomes = ((0, 1 - slip), (1, slip / 2), (-1, slip / 2))           # (turn, its probability)
    transitions = torch.zeros(len(cells), 4, len(cells), dtype=torch.double)            # (S, A, S)
    for s, (y, x) in enumerate(cells):
        if symbols[s] in TERMINAL:
            transitions[s, :, s] = 1.0
            continue
        for a in range(4):
            for turn, probability in outcomes:
                dy, dx = directions[(a + turn) % 4]
                transitions[s, a, state.get((y + dy, x + dx), s)] += probability
    return transitions


def draw_arrows(axes, y: int, x: int, probabilities: list[float]) -> None:
    """Draws one arrow for each action with a probability above 2 %."""
    for (dy, dx), p in zip(MOVES.values(), probabilities):
        if p > 0.02:
            tip, tail = 0.34 * p**0.5, 0.04
            axes.annotate("", (x + tip * dx, y + tip * dy), (x + tail * dx, y + tail * dy),
                          arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkA": 0,
                                      "shrinkB": 0, "mutation_scale": 4 + 8 * p})


class Grid(MDP):
    """The map of a cat as an MDP with the actions ↑ → ↓ ←.

    `text` has one line per row of the map and one symbol per cell. With probability `slip` a step
    goes to the left or to the right of its direction instead, each with probability slip / 2.
    The states are the cells without a wall, in reading order. ValueError for a text that is no map
    with one start, and for a `slip` that is no probability.

    In this map, the action ↓ (number 2) leads from the start to the cell below, which is state 2:

    >>> grid = Grid("S#M\\n.b.")
    >>> grid.symbols, grid.transitions[0, 2].tolist()
    ('SM.b.', [0.0, 0.0, 1.0, 0.0, 0.0])
    """

    def __init__(self, text: str, slip: float = 0.0):
        self.rows = read_map(text)
        if not 0 <= slip <= 1:
            raise ValueError(f"slip is a probability between 0 and 1, not {slip}")
        cells = [(y, x) for y, row in enumerate(self.rows) for x, c in enumerate(row) if c != "#"]
        self.cells = cells                                              # (row, column) per state
        self.symbols = "".join(self.rows[y][x] for y, x in cells)       # one symbol per state
        rewards = torch.tensor([REWARDS[c] for c in self.symbols], dtype=torch.double)  # (S,)
        terminal = torch.tensor([c in TERMINAL for c in self.symbols])                  # (S,)
        transitions = step_probabilities(cells, self.symbols, slip)                     # (S, A, S)
        super().__init__(transitions, rewards, terminal, start=self.symbols.index("S"))

    def arrows(self, policy: Tensor) -> str:
        """The map as text, with an arrow for the most likely action of each cell; policy (S, A)."""
        picture = [list(row) for row in self.rows]
        for s, (y, x) in enumerate(self.cells):
            if not self.terminal[s]:
                picture[y][x] = list(MOVES)[int(policy[s].argmax())]
        return "\n".join("".join(row) for row in picture)

    def draw(self, axes, policy: Tensor | None = None, values: Tensor | None = None) -> None:
        """Draws the map on matplotlib axes; the shade of a terminal state is its reward.

        The policy (S, A) becomes arrows, longer for a likelier action. The values (S,) become
        numbers and shades.
        """
        shown = torch.zeros_like(self.rewards)
        if values is not None:
            shown = torch.where(self.terminal, self.rewards, values)                    # (S,)
        shades = torch.full((len(self.rows), len(self.rows[0])), torch.nan, dtype=torch.double)
        for s, (y, x) in enumerate(self.cells):
            shades[y, x] = shown[s]
            label = LABELS[self.symbols[s]]
            if self.terminal[s]:
                axes.text(x, y, label, ha="center", va="center", fontsize=8)
                continue
            axes.text(x + 0.46, y - 0.45, label, ha="right", va="top", fontsize=7)
            if values is not None:
                number = f"{values[s]:.1f}"
                axes.text(x - 0.46, y + 0.46, number, ha="left", va="bottom", fontsize=7)
            if policy is not None:
                draw_arrows(axes, y, x, policy[s].tolist())
        low, high = min(0.0, shown.min().item()), shown.max().item()
        darkest = low + 1.8 * max(high - low, 1.0)      # shades light enough for arrows to be seen
        axes.set_facecolor("0.25")                                      # seen where a wall is
        axes.imshow(shades.numpy(), cmap="Blues", vmin=low, vmax=darkest)
        axes.set(xticks=[x - 0.5 for x in range(shades.size(1))], xticklabels=[],
                 yticks=[y - 0.5 for y in range(shades.size(0))], yticklabels=[])
        axes.tick_params(length=0)
