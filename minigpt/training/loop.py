"""The training loop: draw a batch, compute the loss, take a step against its gradient.

    θ ← θ − η(t) · step(∇L)        η(t): warm-up, constant, then linearly down to 0

One loop trains every supervised model of the course: language models, translators, reward models,
DPO. REINFORCE and PPO have loops of their own (`alignment/`), with the same `gradient_step`.

A run that is killed and resumed ends with the same weights as a run that was never stopped, because
last.pt holds the whole state, and every batch comes from one generator. Not here: gradient
accumulation, mixed precision, several processes.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from minigpt.training.checkpoints import open_run, save_best, save_run, write_metrics
from minigpt.training.interrupts import finish_step_first
from minigpt.training.optimizers import make_optimizers


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Steps are optimizer steps."""

    max_steps: int = 1000
    learning_rate: float = 1e-3     # the highest one
    warmup_steps: int = 20
    weight_decay: float = 0.1
    gradient_clip: float = 1.0      # longer gradients are scaled down to this length
    optimizer: str = "adamw"        # or "muon"
    evaluate_every: int = 100       # in steps
    seed: int = 0

    def __post_init__(self):
        for name in ("max_steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")


def schedule(step: int, n_steps: int, warmup_steps: int = 20) -> float:
    """η(step) / peak for step 0, 1, …: warm-up, then 1, then a line to 0 over the second half.

    >>> [schedule(step, n_steps=100, warmup_steps=4) for step in (0, 3, 49, 75, 99)]
    [0.25, 1.0, 1.0, 0.5, 0.02]
    """
    return min(1.0, (step + 1) / max(1, warmup_steps), (n_steps - step) / (n_steps / 2))


def gradient_step(model: nn.Module, loss: Tensor, optimizers: list[Optimizer], scale: float = 1.0,
                  gradient_clip: float = 1.0) -> float:
    """One optimizer step against the gradient of `loss`; returns the gradient's length.

    `scale` is the value of `schedule`: it multiplies the learning rates of the optimizers. A longer
    gradient than `gradient_clip` is scaled down to that length. FloatingPointError if the loss or
    its gradient is not finite; the weights are then unchanged.
    """
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on any trainable parameter; is the model "
                         "frozen, or its adapter merged?")
    model.zero_grad()               # of all parameters: also of those that no optimizer has
    loss.backward()
    length = nn.utils.clip_grad_norm_(model.parameters(), gradient_clip).item()
    if not (math.isfinite(loss.item()) and math.isfinite(length)):
        raise FloatingPointError(f"the loss is {loss.item()} and the length of its gradient "
                                 f"{length}; try a smaller learning rate")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group.setdefault("initial_lr", group["lr"])
        optimizer.step()
    return length


def train(model: nn.Module, next_batch: Callable, loss: Callable, config: TrainingConfig,
          evaluate: Callable | None = None, folder: str | Path | None = None, resume: bool = False,
          progress: bool = True, optimizers: list[Optimizer] | None = None,
          on_row: Callable | None = None) -> list[dict]:
    """Trains `model` in place and returns its rows of metrics.

    `next_batch(generator)` draws a batch, and `loss(model, batch)` returns a scalar. At step 0,
    every `evaluate_every` steps and at the end, a row is made: "step", "train_loss" (the mean since
    the row before) and the numbers of `evaluate(model)`. `on_row(row)` is called with each new row
    and stops the training by returning True. `optimizers` replaces those of the configuration.

    With a `folder`, metrics.csv, last.pt and best.pt are written there (`checkpoints.py`), and
    `resume` continues from last.pt if it exists. After Ctrl-C the step ends, the state is saved,
    and KeyboardInterrupt is raised. FloatingPointError if a loss or gradient is not finite.
    """
    if optimizers is None:
        optimizers = make_optimizers(model, config.optimizer, config.learning_rate,
                                     config.weight_decay)
    generator = Generator().manual_seed(config.seed)
    step, losses, rows = open_run(folder, resume, model, optimizers, generator)
    model.train()
    in_step = False
    bar = tqdm(total=config.max_steps, initial=step, unit="step", leave=False,
               disable=None if progress else True)
    try:
        while True:
            due = step % config.evaluate_every == 0 or step >= config.max_steps
            if due and not (rows and rows[-1]["step"] == step):
                rows.append(measure(model, evaluate, step, losses))
                losses = []
                if folder is not None:
                    save_best(folder, model, rows)
                    write_metrics(folder, rows)
                    save_run(folder, model, optimizers, generator, step, losses, rows)
                if on_row is not None and on_row(rows[-1]):
                    break
            if step >= config.max_steps:
                break
            in_step = True
            with finish_step_first():
                batch = next_batch(generator)
                value = loss(model, batch)
                scale = schedule(step, config.max_steps, config.warmup_steps)
                gradient_step(model, value, optimizers, scale, config.gradient_clip)
                step += 1
                losses.append(value.item())
                in_step = False
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
    except FloatingPointError as error:
        raise FloatingPointError(f"at step {step}, {error}") from None
    except KeyboardInterrupt:
        if folder is not None and not in_step:          # half a step is not saved
            save_run(folder, model, optimizers, generator, step, losses, rows)
        raise
    finally:
        bar.close()
    model.eval()
    return rows


def measure(model: nn.Module, evaluate: Callable | None, step: int, losses: list[float]) -> dict:
    """A row of metrics, with the model in evaluation mode and without gradients."""
    row = {"step": step, "train_loss": sum(losses) / len(losses) if losses else math.nan}
    if evaluate is not None:
        model.eval()
        with torch.no_grad():
            row |= evaluate(model)
        model.train()
    return row
