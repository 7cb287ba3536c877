"""Windows: pieces of one long text, drawn at random for training or side by side for evaluation.

Shapes: N tokens of the text, B windows in a batch, T tokens that a model reads.
"""
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from minigpt.training.losses import next_token_loss


def make_random_windows(tokens: Tensor, batch_size: int, length: int) -> Callable:
    """`next_batch(generator)` -> (B, length): windows of a text (N,) at uniformly random places."""
    if batch_size < 1 or length < 1:
        raise ValueError(f"batch_size and length must be at least 1, not {batch_size}, {length}")
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} tokens and a window needs {length}; "
                         "use a longer text or a shorter context")

    def next_batch(generator: Generator) -> Tensor:
        starts = torch.randint(len(tokens) - length + 1, (batch_size, 1), generator=generator)
        places = starts + torch.arange(length)                          # (B, length)
        return tokens[places.to(tokens.device)].long()                  # from int16, for example

    return next_batch


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, max_windows: int | None = None,
                  batch_size: int = 64, progress: bool = False) -> tuple[float, int]:
    """Mean nats per token over a text (N,), and how many tokens were predicted.

    The text is cut into windows of the model's context, side by side, so each token is predicted at
    most once. The first tokens of a window have little context, so the loss is a little too large.
    With `max_windows`, only that many windows are read, evenly spaced.
    """
    length = min(model.context_length, len(tokens) - 1)
    if length < 1:
        raise ValueError(f"the text has {len(tokens)} tokens; at least 2 are needed")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1, not {max_windows}")
    windows = tokens.unfold(0, length + 1, length)                      # ((N − 1) // T, T + 1)
    if max_windows is not None and max_windows < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, max_windows).long()]
    batches = tqdm(windows.split(batch_size), desc="evaluating", unit="batch", leave=False,
                   disable=None if progress else True)
    total = sum(next_token_loss(model, batch.long()).item() * len(batch) for batch in batches)
    return total / len(windows), len(windows) * length
