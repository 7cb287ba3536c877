"""Checkpoints: files that are either the old ones or the new ones, never half of either.

Files are written as `files.py` says: beside, then renamed. Tensors travel as `torch.save` writes them and are read
with `weights_only=True`, so a checkpoint can hold numbers and not code.

A run's folder:  config.json   the model's shape, the training's settings, the text's checksum
                 tokenizer.json
                 last.pt       everything that resuming exactly needs
                 best.pt       {"model": the weights with the lowest held-out loss so far, "step": …}
                 metrics.csv   one row an evaluation
"""
import io
from pathlib import Path

import torch
from torch import nn

from minigpt.files import write_atomic


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Tensors and plain values, atomically. The same state gives the same bytes, wherever it is written."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: str | Path, device: str = "cpu") -> dict:
    """Reads what `save_checkpoint` wrote. ValueError if the file is truncated, corrupt, or not a checkpoint with a `model`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:                                          # torch raises five kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: truncated, corrupt, or no checkpoint at all ({reason})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ValueError(f"{path} is a torch file but not a checkpoint of this library: it has no 'model' entry")
    return state


def load_weights(model: nn.Module, weights: dict, source: str | Path) -> None:
    """Puts weights into a model whose shape they must fit; ValueError names the first that does not."""
    own = model.state_dict()
    for name in own:
        if name not in weights:
            raise ValueError(f"{source} was made for another model: it lacks {name!r}")
        if weights[name].shape != own[name].shape:
            raise ValueError(f"{source} was made for another model: {name!r} is {tuple(weights[name].shape)} there "
                             f"and {tuple(own[name].shape)} here")
    for name in weights:
        if name not in own:
            raise ValueError(f"{source} was made for another model: {name!r} is unknown here")
    model.load_state_dict(weights)
