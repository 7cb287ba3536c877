"""Checkpoints: what `training.loop.train` writes. Each file is written whole or not at all.

    last.pt          everything that an exact resume needs                          save_run
    best.pt          the weights with the lowest held-out loss so far, and the step   save_best
    metrics.csv      one row per evaluation                                         write_metrics

`run_folder.py` lists the other files of a run. Tensors are read with `weights_only=True`, so a
checkpoint that contains code is refused.
"""
import csv
import io
import math
from pathlib import Path

import torch
from torch import Generator, nn
from torch.optim import Optimizer

from minigpt.files import write_atomic


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Writes tensors and plain values. Equal states give equal files."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: str | Path, device: str = "cpu") -> dict:
    """Reads what `save_checkpoint` wrote. ValueError if the file is damaged or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:          # a damaged file raises one of five kinds of error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise ValueError(f"{path} is not a readable checkpoint: it is truncated, damaged, "
                         f"or another kind of file ({reason})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ValueError(f"{path} is not a checkpoint of this library: it has no 'model' entry")
    return state


def load_weights(model: nn.Module, weights: dict, source: str | Path) -> None:
    """Puts weights into a model. ValueError names the first tensor that does not fit."""
    own = model.state_dict()
    for name in [*own, *weights]:
        there, here = (tuple(w[name].shape) if name in w else "missing" for w in (weights, own))
        if there != here:
            raise ValueError(f"{source} was made for another model: {name!r} is {there} there and "
                             f"{here} here")
    model.load_state_dict(weights)


def open_run(folder: str | Path | None, resume: bool, model: nn.Module, optimizers: list[Optimizer],
             generator: Generator) -> tuple[int, list[float], list[dict]]:
    """The step, the losses since the last row, and the rows; 0 and empty for a new run.

    With `resume`, they, the model, the optimizers and both generators are read from last.pt.
    ValueError if the folder holds a run and `resume` is False.
    """
    if folder is None:
        return 0, [], []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".*.tmp"):            # written by a run that was killed
        unfinished.unlink()
    last = folder / "last.pt"
    if not last.exists():
        return 0, [], []
    if not resume:
        raise ValueError(f"{folder} already holds a run; resume it or choose another folder")
    state = load_checkpoint(last)
    load_weights(model, state["model"], last)
    try:
        step, losses, rows = state["step"], state["losses"], state["rows"]
        if type(step) is not int or not all(isinstance(x, list) for x in (losses, rows)):
            raise TypeError("step, losses or rows of another type")
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
    except Exception as error:                          # of many kinds, as the damage is
        raise ValueError(f"{last} cannot be resumed: it is damaged, or was written with another "
                         f"optimizer or version ({error!r})") from None
    if rows:
        write_metrics(folder, rows)
    return step, losses, rows


def save_run(folder: str | Path, model: nn.Module, optimizers: list[Optimizer],
             generator: Generator, step: int, losses: list[float], rows: list[dict]) -> None:
    """Writes last.pt: everything that an exact resume needs."""
    save_checkpoint(Path(folder) / "last.pt", {
        "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
        "step": step, "losses": losses, "rows": rows,
        "generator": generator.get_state(), "global_generator": torch.get_rng_state(),
    })


def save_best(folder: str | Path, model: nn.Module, rows: list[dict]) -> None:
    """Writes best.pt if the newest row has the lowest "val_loss" of all rows."""
    losses = [row.get("val_loss", math.nan) for row in rows]
    if losses[-1] <= min([loss for loss in losses if not math.isnan(loss)], default=math.nan):
        best = {"model": model.state_dict(), "step": rows[-1]["step"]}
        save_checkpoint(Path(folder) / "best.pt", best)


def write_metrics(folder: str | Path, rows: list[dict]) -> None:
    """Writes the rows to metrics.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(Path(folder) / "metrics.csv", text.getvalue().encode("utf-8"))
