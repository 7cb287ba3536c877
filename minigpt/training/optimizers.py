"""Optimizers: how a gradient becomes a step.

    AdamW    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − η( m̂/(√v̂ + ε) + λθ )       (Loshchilov and Hutter 2019, alg. 2)
    Muon     m ← μm + g,         θ ← θ − η √max(1, rows/columns) · UVᵀ   where  g + μm = USVᵀ    (Jordan et al. 2024)

Adam scales every number by itself. Muon looks at the whole matrix: it keeps the directions of the update and sets all
its singular values to about 1, so rare directions are learned as fast as common ones. UVᵀ is found without an SVD.
Deviation: `torch.optim.Muon` computes in bfloat16 for GPUs; here float32, and all matrices of one shape in one batch,
which is what makes it cheap on a CPU.
"""
import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)   # Jordan et al. 2024: steepest at 0 of the quintics that settle near 1


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns) -> the same shape with every singular value moved into about [0.7, 1.2].

    X ← aX + b(XXᵀ)X + c(XXᵀ)²X acts on each singular value s as s ← as + bs³ + cs⁵ and leaves U and V alone.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)     # Frobenius norm ≥ largest singular value: all s ≤ 1
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x                                             # XXᵀ on the shorter side
    for _ in range(steps):
        gram = x @ x.mT                                                 # (N, rows, rows)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates, for the hidden matrices of a network; embeddings, gains and biases need AdamW."""

    def __init__(self, parameters, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = torch.stack([p.grad for p in parameters])   # (N, rows, columns)
                for p in parameters:
                    self.state[p].setdefault("momentum", torch.zeros_like(p))
                momenta = torch.stack([self.state[p]["momentum"] for p in parameters]) * group["momentum"] + gradients
                updates = orthogonalize(gradients + group["momentum"] * momenta)        # Nesterov: look one step ahead
                for p, m, u in zip(parameters, momenta, updates):
                    self.state[p]["momentum"].copy_(m)
                    p.add_(u, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def adamw(named_parameters, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW that shrinks matrices only: a bias or a gain pulled to 0 would lose its meaning, not its excess."""
    parameters = [p for _, p in named_parameters]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)


def build_optimizers(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """"adamw": one optimizer for everything. "muon": Muon on the matrices inside the blocks, AdamW on the rest, if there is a rest.

    Muon's steps have unit singular values whatever the gradient's size, so its learning rate means "relative change a
    step" and is 10 times AdamW's here. Its matrices are not shrunk: `weight_decay` is AdamW's. What is frozen goes to neither.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train; is it frozen, or an adapter merged?")
    if name == "adamw":
        return [adamw(named, learning_rate, weight_decay)]
    if name != "muon":
        raise ValueError(f"optimizer is adamw or muon, not {name!r}")
    hidden = {n for n, p in named if p.dim() == 2 and "embedding" not in n}
    rest = [(n, p) for n, p in named if n not in hidden]
    optimizers = [adamw(rest, learning_rate, weight_decay)] if rest else []
    return optimizers + ([Muon([p for n, p in named if n in hidden], lr=10 * learning_rate)] if hidden else [])
