"""The training loop: draw a batch, measure the loss, walk downhill, and now and then look up.

    θ ← θ − η(t) · step(∇L)          η(t): up over the warm-up, flat to the middle, then straight down to 0

One loop trains every model of the course. What differs is handed in: `next_batch(generator)` draws a batch, `loss(model,
batch)` returns a scalar, `evaluate(model)` returns numbers worth a row. The loop is a generator: it yields each row, so the
caller prints, draws or stops as it likes.

Exact resume: everything that decides the future (weights, optimizer, generators, step, unfinished averages) is in
`last.pt`, and every batch comes from one `torch.Generator`. A run that is killed and resumed ends with the same bytes.
"""
import csv
import io
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minigpt.files import write_atomic
from minigpt.training.checkpoints import load_checkpoint, load_weights, save_checkpoint
from minigpt.training.losses import cross_entropy
from minigpt.training.optimizers import build_optimizers


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Steps are optimizer updates; the learning rate is its peak."""

    max_steps: int = 1000
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    optimizer: str = "adamw"        # or "muon"
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("max_steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is adamw or muon, not {self.optimizer!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, not {self.learning_rate}")


def schedule(step: int, config: TrainingConfig) -> float:
    """η(step) / peak for step 0, 1, …: warm-up, then 1, then a straight line to 0 over the second half.

    >>> config = TrainingConfig(max_steps=100, warmup_steps=4)
    >>> [schedule(step, config) for step in (0, 3, 49, 75, 99)]
    [0.25, 1.0, 1.0, 0.5, 0.02]
    """
    return min(1.0, (step + 1) / max(1, config.warmup_steps), (config.max_steps - step) / (config.max_steps / 2))


def train(
    model: nn.Module, next_batch: Callable, loss: Callable, config: TrainingConfig, evaluate: Callable | None = None,
    folder: str | Path | None = None, resume: bool = False, progress: bool = True, optimizers: list[torch.optim.Optimizer] | None = None,
) -> Iterator[dict]:
    """Trains `model` in place; yields a row {"step", "train_loss", …what evaluate returned} at step 0, at every evaluation and at the end.

    train_loss is the mean since the row before, in the loss's own unit. With a `folder`, rows go to metrics.csv and state to
    last.pt; weights whose row has the lowest "val_loss" so far go to best.pt. `resume` goes on from last.pt if there is
    one. FloatingPointError if a loss or gradient stops being finite: the last checkpoint, made before, is good.
    KeyboardInterrupt (Ctrl-C) waits for the step to end and saves first. `optimizers` replaces those that the configuration names;
    the schedule scales whatever learning rates they come with.
    """
    optimizers = optimizers or build_optimizers(model, config.optimizer, config.learning_rate, config.weight_decay)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    generator = torch.Generator().manual_seed(config.seed)
    step, losses, rows = 0, [], []
    last = None if folder is None else Path(folder) / "last.pt"
    if last is not None:
        last.parent.mkdir(parents=True, exist_ok=True)
        for beside in last.parent.glob(".*.tmp"):                       # half-written files of a run that was killed
            beside.unlink()
    if last is not None and last.exists():
        if not resume:
            raise ValueError(f"{folder} already holds a run; resume it or choose another folder")
        state = load_checkpoint(last)
        load_weights(model, state["model"], last)
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        step, losses, rows = state["step"], state["losses"], state["rows"]
        write_metrics(folder, rows)

    def save() -> None:
        save_checkpoint(last, {
            "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step, "losses": losses, "rows": rows,
            "generator": generator.get_state(), "global_generator": torch.get_rng_state(),
        })

    def row() -> dict:
        new = {"step": step, "train_loss": sum(losses) / len(losses) if losses else math.nan}
        if evaluate is not None:
            model.eval()
            with torch.no_grad():
                new |= evaluate(model)
            model.train()
        losses.clear()
        rows.append(new)
        if folder is not None:
            if "val_loss" in new and new["val_loss"] <= min((r["val_loss"] for r in rows if not math.isnan(r["val_loss"])), default=math.nan):
                save_checkpoint(Path(folder) / "best.pt", {"model": model.state_dict(), "step": step})
            write_metrics(folder, rows)
            save()
        return new

    model.train()
    model.zero_grad()                                                   # whatever was measured before is not part of the first step
    bar = tqdm(total=config.max_steps, initial=step, disable=None if progress else True, leave=False, unit="step")
    try:
        with ctrl_c() as pressed:
            if not rows:
                yield row()
            while step < config.max_steps:
                value = loss(model, next_batch(generator))
                if not value.requires_grad:
                    raise ValueError("the loss depends on nothing that can be trained; is the model frozen, or its adapter merged?")
                value.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
                if not (math.isfinite(value.item()) and math.isfinite(norm.item())):
                    raise FloatingPointError(f"the loss is {value.item()} and its gradient {norm.item()} at step {step}; "
                                             "try a smaller learning rate")
                for optimizer, peak in zip(optimizers, peaks):
                    for group, lr in zip(optimizer.param_groups, peak):
                        group["lr"] = lr * schedule(step, config)
                    optimizer.step()
                model.zero_grad()                                       # all of it: what no optimizer owns would pile up in the norm
                step += 1
                losses.append(value.item())
                bar.update()
                bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
                if step % config.evaluate_every == 0 or step == config.max_steps:
                    yield row()
                if pressed():
                    if folder is not None:
                        save()
                    raise KeyboardInterrupt
    finally:
        bar.close()
    model.eval()


@contextmanager
def ctrl_c():
    """Turns Ctrl-C into a question, `pressed()`, so that a step is never cut in half. A second Ctrl-C acts at once."""
    count = 0

    def note(number, frame):
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():       # signals reach the main thread only
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


def write_metrics(folder: str | Path, rows: list[dict]) -> None:
    """metrics.csv, whole and atomically: a crash leaves the table of the evaluation before."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    write_atomic(Path(folder) / "metrics.csv", text.getvalue().encode("utf-8"))


def random_windows(tokens: Tensor, batch_size: int, length: int) -> Callable:
    """A `next_batch` that cuts windows of `length` tokens (B, length) out of one long text (N,), each start equally likely."""
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} tokens and a window needs {length}; use a longer text or a shorter context")

    def next_batch(generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(tokens) - length + 1, (batch_size,), generator=generator).to(tokens.device)
        return tokens[starts[:, None] + torch.arange(length, device=tokens.device)]     # (B, 1) + (length) -> (B, length)

    return next_batch


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of windows (B, T + 1): the first T are read, each is asked for the one after it."""
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, max_windows: int | None = None, batch_size: int = 64) -> tuple[float, int]:
    """Mean nats a token over a text (N,), read in windows side by side of the model's context; and how many tokens that judged.

    A window's first tokens have little to look back on, so this is a little pessimistic. `max_windows` takes that many, evenly spaced.
    """
    length = min(model.context_length, len(tokens) - 1)
    if length < 1:
        raise ValueError(f"the text has {len(tokens)} tokens; at least 2 are needed to predict one from another")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1, not {max_windows}")
    windows = tokens.unfold(0, length + 1, length)                      # (N − 1)//length windows; each target appears once
    if max_windows is not None and max_windows < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, max_windows).long()]
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in windows.split(batch_size)]
    return sum(losses) / len(windows), windows.size(0) * length
