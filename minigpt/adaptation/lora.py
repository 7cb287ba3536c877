"""LoRA: fine-tuning writes a low-rank note beside each frozen matrix, instead of rewriting the matrix.

    h = W x + (α/r) B A x          W (k, d) frozen,   A (r, d) random,   B (k, r) zero at the start,   r ≪ min(d, k)

Source: course B, "Fine-tuning with fewer parameters"; Hu et al. 2021, eq. 3 and §4.1.
At the start BA = 0: the adapted model is the base. What is trained and stored is r(d + k) numbers a matrix instead of dk. Added into
W (`merge`) the note costs nothing at run time; W itself is kept aside, because W + ΔW − ΔW is not W in floating point.
Deviations: the paper mostly adapts attention's query and value alone, and says of A only that it is Gaussian; here any nn.Linear can
be named, and A has variance 1/d, so that Ax is as large as x.
Not here: dropout on x, and embeddings.

Shapes: d inputs and k outputs of a linear layer, r rank.
"""
import math
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from minigpt.training.checkpoints import load_checkpoint, save_checkpoint


class LoRALinear(nn.Module):
    """A linear layer (..., d) -> (..., k), frozen, with adapters by name, one of them in use, or none."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.alpha: dict[str, float] = {}
        self.active: str | None = None
        self.original: Tensor | None = None                             # W, while base.weight holds the merged matrix

    def add(self, name: str, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        k, d = self.base.weight.shape
        A = torch.randn(rank, d, generator=generator) / math.sqrt(d)    # drawn on the CPU: the same on every device
        self.A[name] = nn.Parameter(A.to(self.base.weight))
        self.B[name] = nn.Parameter(self.base.weight.new_zeros(k, rank))
        self.alpha[name] = alpha

    def in_use(self) -> tuple[Tensor, Tensor, float]:
        """A (r, d), B (k, r) and α/r of the adapter in use."""
        A = self.A[self.active]
        return A, self.B[self.active], self.alpha[self.active] / len(A)

    def update(self) -> Tensor:
        """ΔW = (α/r) B A of the adapter in use: (k, d)."""
        A, B, scale = self.in_use()
        return scale * B @ A

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)                                                # (..., d) -> (..., k)
        if self.active is None or self.original is not None:
            return y
        A, B, scale = self.in_use()
        return y + scale * (x @ A.T @ B.T)                              # (..., d) -> (..., r) -> (..., k)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of a model by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def find_linears(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that the targets mean: a whole name, its end ("query" is every …attention.query), or a pattern ("blocks.0.*").

    ValueError for a target that means none, with the nearest names.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets is a list of names, such as ['query', 'value'], not {targets!r}")
    adapted = lora_layers(model)                                        # found by their own name, not as "….base"
    names = [*adapted] + [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.removesuffix(".base") not in adapted]
    found = {target: [n for n in names if f".{n}".endswith(f".{target}") or fnmatchcase(n, target)] for target in targets}
    for target, matches in found.items():
        if not matches:
            ends = sorted({n.rpartition(".")[2] for n in names})
            near = get_close_matches(target, [*ends, *names], n=3) or ends
            raise ValueError(f"no linear layer is called {target!r}; nearest: {', '.join(near)}")
    return [n for n in names if any(n in matches for matches in found.values())]


def add_lora(
    model: nn.Module, targets: Sequence[str], rank: int, alpha: float, generator: torch.Generator | None = None, name: str = "default",
) -> list[str]:
    """Freezes the whole model, gives each target a new adapter of that name, and puts it in use; returns the layers' names.

    What then requires gradients is A and B of this adapter alone. Adapters of other names, if there are any, stay for `use_lora`.
    """
    if not (isinstance(rank, int) and rank >= 1):
        raise ValueError(f"a rank is a whole number of at least 1, not {rank!r}")
    if not name or "." in name or any(name in layer.A for layer in lora_layers(model).values()):
        raise ValueError(f"an adapter cannot be called {name!r}: a name is not empty, has no dot, and is not taken already; choose another")
    names = find_linears(model, targets)
    model.requires_grad_(False)
    for path in names:
        layer = model.get_submodule(path)
        if not isinstance(layer, LoRALinear):
            parent, _, child = path.rpartition(".")
            layer = LoRALinear(layer)
            setattr(model.get_submodule(parent), child, layer)
        layer.add(name, rank, alpha, generator)
    use_lora(model, name)
    return names


def use_lora(model: nn.Module, name: str | None) -> None:
    """Puts the adapter of that name in use, and makes it the one that trains; None: the base as it was."""
    layers = lora_layers(model).values()
    known = {n for layer in layers for n in layer.A}
    if name is not None and name not in known:
        raise ValueError(f"no adapter is called {name!r}; this model has {', '.join(sorted(known)) or 'none'}")
    unmerge(model)
    for layer in layers:
        layer.active = name if name in layer.A else None
        for matrices in (layer.A, layer.B):
            for own, matrix in matrices.items():
                matrix.requires_grad_(own == name)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W ← W + (α/r)BA in each layer whose adapter is in use: from now on the adapter costs nothing, and does not learn.

    `unmerge` before saving the model: nothing in its state_dict says that W holds the adapter already.
    """
    for layer in lora_layers(model).values():
        if layer.active is not None and layer.original is None:
            layer.original = layer.base.weight.detach().clone()
            layer.base.weight += layer.update()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """The base's own W back in each merged layer, bit for bit."""
    for layer in lora_layers(model).values():
        if layer.original is not None:
            layer.base.weight.copy_(layer.original)
            layer.original = None


def save_lora(model: nn.Module, path: str | Path, name: str = "default") -> None:
    """Writes A and B of one adapter, and nothing of the base."""
    layers = {n: layer for n, layer in lora_layers(model).items() if name in layer.A}
    if not layers:
        raise ValueError(f"no adapter is called {name!r}, so there is nothing to save; add_lora makes one")
    matrices = {f"{n}.{kind}": getattr(layer, kind)[name].detach().clone() for n, layer in layers.items() for kind in "AB"}
    save_checkpoint(path, {"model": matrices, "alpha": next(iter(layers.values())).alpha[name]})


def load_lora(model: nn.Module, path: str | Path, name: str = "default") -> list[str]:
    """Gives the base the adapter that `save_lora` wrote, under any name that is free, and puts it in use; returns its layers' names.

    ValueError, and the model as it was, if the file holds no adapter, or one for other layers.
    """
    state = load_checkpoint(path)
    matrices, alpha = state["model"], state.get("alpha")
    layers = sorted({n.rpartition(".")[0] for n in matrices})
    if not layers or not isinstance(alpha, (int, float)) or set(matrices) != {f"{n}.{kind}" for n in layers for kind in "AB"}:
        raise ValueError(f"{path} is a checkpoint but holds no LoRA adapter; save_lora writes one")
    rank = len(matrices[f"{layers[0]}.A"])
    missing = set(layers) - set(find_linears(model, ["*"]))
    if missing:
        raise ValueError(f"{path} was made for another model: this one has no linear layer {min(missing)!r}")
    for n in layers:
        base = getattr(model.get_submodule(n), "base", model.get_submodule(n))
        here, there = [(rank, base.in_features), (base.out_features, rank)], [tuple(matrices[f"{n}.{kind}"].shape) for kind in "AB"]
        if here != there:
            raise ValueError(f"{path} was made for another model: A and B of {n!r} are {there[0]} and {there[1]} there, "
                             f"{here[0]} and {here[1]} here")
    add_lora(model, layers, rank, alpha, torch.Generator(), name)
    with torch.no_grad():
        for n in layers:
            layer = model.get_submodule(n)
            layer.A[name].copy_(matrices[f"{n}.A"])
            layer.B[name].copy_(matrices[f"{n}.B"])
    return layers
