"""Figures: written whole, the same look whatever the machine's matplotlib settings are."""
import os
import subprocess
import sys

import numpy as np
import pytest

from minigpt import plotting

ROWS = [{"step": 0, "train_loss": float("nan"), "val_loss": 3.0},
        {"step": 5, "train_loss": 2.5, "val_loss": 2.0},
        {"step": 9, "train_loss": 2, "val_loss": 1}]


def test_the_first_four_colours_differ_in_brightness_and_all_lines_in_dash():
    def grey(colour):
        red, green, blue = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    greys = sorted(grey(colour) for colour in plotting.COLOURS[:4])
    assert all(b - a > 10 for a, b in zip(greys, greys[1:]))
    assert len(set(map(str, plotting.DASHES))) == len(plotting.DASHES) == len(plotting.COLOURS)


def test_loss_curve_draws_both_losses():
    axes = plotting.loss_curve(ROWS).axes[0]
    training, held_out = axes.lines
    assert list(training.get_xdata()) == [5, 9] and list(training.get_ydata()) == [2.5, 2]
    assert list(held_out.get_xdata()) == [0, 5, 9] and list(held_out.get_ydata()) == [3, 2, 1]
    assert axes.get_ylabel() == "loss (nats per token)"


def test_heatmap_shows_the_matrix_with_its_labels():
    fig, axes = plotting.figure()
    matrix = np.array([[0.0, 0.5, 1.0], [1.0, 0.25, 0.0]])
    image = plotting.heatmap(axes, matrix, ["a", "b"], ["x", "y", "zzz"], label="weight", high=1.0)
    assert np.array_equal(np.asarray(image.get_array()), matrix)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "zzz"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert fig.axes[1].get_ylabel() == "weight"


def test_save_makes_folders_and_leaves_no_rubbish(tmp_path):
    path = plotting.save(plotting.figure()[0], tmp_path / "new" / "a.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and os.listdir(tmp_path / "new") == ["a.png"]


PROGRAM = """
import sys
from minigpt import plotting
plotting.save(plotting.loss_curve([{"step": 0, "train_loss": 1.0, "val_loss": 2.0}]), sys.argv[1])
"""


@pytest.mark.parametrize("setting", [
    {"MPLBACKEND": "nonsense"}, {"MPLBACKEND": "module://none"},
    {"MPLCONFIGDIR": os.path.join(os.devnull, "x")}, {"MATPLOTLIBRC": "{rc}"},
])
def test_unusual_settings_of_matplotlib_do_not_matter(tmp_path, setting):
    rc = tmp_path / "matplotlibrc"
    rc.write_text("backend: nonsense\ntext.usetex: True\nfont.size: 0.1\n", encoding="utf-8")
    setting = {name: value.format(rc=rc) for name, value in setting.items()}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "a.png")],
                          env={**os.environ, **setting}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    rows = [{"step": 0, "train_loss": 1.0, "val_loss": 2.0}]
    here = plotting.save(plotting.loss_curve(rows), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == here.read_bytes()
