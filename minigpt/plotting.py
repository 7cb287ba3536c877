"""Plotting: the look that all figures share.

Lines differ in colour and dash, so they can be told apart in a grey print. Figures are made without
pyplot, so no figure needs a display or has to be closed.
"""
import io
import os
from pathlib import Path

import numpy as np

from minigpt.files import write_atomic

# MPLBACKEND says how matplotlib opens windows. No window is opened here, but matplotlib cannot be
# imported if the value is unknown, so it is put aside meanwhile.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

# The colour-blind safe set of Okabe and Ito. The first four also differ in brightness.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
DASHES = ["-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)), (0, (1, 3))]
matplotlib.rcdefaults()                 # a matplotlibrc on this machine changes nothing
matplotlib.rcParams.update({
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "lines.linewidth": 1.8, "figure.dpi": 100, "savefig.dpi": 120})


def figure(width: float = 7.0, height: float = 4.0, rows: int = 1, columns: int = 1,
           **options) -> tuple[Figure, object]:
    """A figure, its size in inches, and its axes: one Axes, or a numpy array of them."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **options)


def heatmap(axes, matrix, row_labels=None, column_labels=None, label: str | None = None,
            low: float | None = 0.0, high: float | None = None):
    """A matrix as shades of blue, dark = large; `label` adds a colour bar with the values."""
    image = axes.imshow(np.asarray(matrix), cmap="Blues", vmin=low, vmax=high, aspect="auto",
                        interpolation="nearest")
    axes.grid(False)
    if column_labels is not None:
        longest = max(map(len, column_labels), default=0)
        axes.set_xticks(range(len(column_labels)), column_labels, rotation=90 if longest > 2 else 0)
    if row_labels is not None:
        axes.set_yticks(range(len(row_labels)), row_labels)
    if label is not None:
        axes.figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    return image


def loss_curve(rows: list[dict]) -> Figure:
    """Training and held-out loss against steps, from the rows that `train` returns."""
    fig, axes = figure()
    steps = [row["step"] for row in rows]
    axes.plot(steps[1:], [row["train_loss"] for row in rows[1:]],
              label="training, mean since the point before")
    axes.plot(steps, [row["val_loss"] for row in rows], label="held-out", marker="o", markersize=3)
    axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
    axes.legend()
    return fig


def save(fig: Figure, path: str | Path) -> Path:
    """Writes a PNG, whole or not at all."""
    path, buffer = Path(path), io.BytesIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return path
