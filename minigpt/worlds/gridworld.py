"""The cat's grid: a Markov decision process small enough to list.
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
        >>> policy = torch.eye(4)[torch.tensor([2, 0, 1, 1, 0])]        # one action for each state
        >>> print(grid.arrows(policy))
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
