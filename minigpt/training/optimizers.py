"""Optimizers: how a gradient becomes a step.

    AdamW    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − η( m̂/(√v̂ + ε) + λθ )
    Muon     m ← μm + g,  UΣVᵀ = g + μm,  θ ← θ − η √max(1, rows/columns) · UVᵀ

Adam scales each number of a gradient separately. Muon scales a matrix as a whole: it keeps the
singular vectors of the update and sets all singular values to about 1, so that directions with a
small gradient are learned as fast as the others.

Source: Loshchilov and Hutter 2019, algorithm 2 (AdamW); Jordan et al. 2024 (Muon).
Deviation: `torch.optim.Muon` computes in bfloat16, for GPUs. Here Muon computes in float32, and all
matrices of one shape in one batch, which is faster on a CPU.
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OPTIMIZERS = ("adamw", "muon")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)       # a, b, c (Jordan et al. 2024)
MUON_RATE = 10                                  # Muon's learning rate, in units of AdamW's


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """UVᵀ of each matrix UΣVᵀ, approximately: (N, rows, columns) -> the same shape.

    X ← aX + b(XXᵀ)X + c(XXᵀ)²X turns each singular value s into as + bs³ + cs⁵ and keeps U and V.
    After five such steps all singular values are between about 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    # The Frobenius norm is at least the largest singular value, so all s are at most 1.
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x                                             # XXᵀ has the shorter side
    for _ in range(steps):
        gram = x @ x.mT                                                 # (N, rows, rows)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum with orthogonalized updates, for the matrices inside a network."""

    def __init__(self, parameters: Iterable, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for parameters in by_shape.values():
                self.step_one_shape(parameters, group["lr"], group["momentum"])

    def step_one_shape(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        """The step of N matrices (rows, columns) of one shape."""
        gradients = torch.stack([p.grad for p in parameters])           # (N, rows, columns)
        for p in parameters:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        momenta = torch.stack([self.state[p]["momentum"] for p in parameters])
        momenta = momenta * momentum + gradients
        updates = orthogonalize(gradients + momentum * momenta)         # Nesterov's form
        rows, columns = parameters[0].shape
        for p, m, update in zip(parameters, momenta, updates):
            self.state[p]["momentum"].copy_(m)
            p.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)


def make_adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float,
               betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: biases and gains are not decayed."""
    parameters = list(parameters)
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def make_optimizers(model: nn.Module, name: str, learning_rate: float,
                    weight_decay: float) -> list[Optimizer]:
    """The optimizers of a model's trainable parameters.

    "adamw": AdamW for all of them. "muon": Muon for the matrices inside the network, without weight
    decay and with 10 times the learning rate, and AdamW for embeddings, biases and gains.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter of the model requires a gradient, so nothing can be "
                         "trained; is it frozen, or its adapter merged?")
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {' or '.join(OPTIMIZERS)}, not {name!r}")
    inside = [p for n, p in named if p.dim() == 2 and "embedding" not in n and name == "muon"]
    inside_ids = {id(p) for p in inside}
    rest = [p for _, p in named if id(p) not in inside_ids]
    optimizers = [make_adamw(rest, learning_rate, weight_decay)] if rest else []
    if inside:
        optimizers.append(Muon(inside, lr=MUON_RATE * learning_rate))
    return optimizers
