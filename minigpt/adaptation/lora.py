"""LoRA: fine-tuning with few parameters adds a trainable low-rank matrix to each frozen one.

    h = W x + (α/r) B A x      W (k, d) frozen,  A (r, d) random,  B (k, r) zero at the start,
                               r ≪ min(d, k)

At the start BA = 0, so the adapted model equals the base. r(d + k) numbers are trained and stored
for each matrix, instead of dk. The pair A, B is called an adapter. `merge` adds its product to W;
the model is then as fast as the base. W is kept, because W + ΔW − ΔW has a rounding error.

Source: course C, "Constraints + Community = Innovations"; Hu et al. 2021, eq. 3 and §4.1.
Deviations: the paper adapts mostly the query and value matrices of attention; here any nn.Linear
can be adapted. The paper says only that A is Gaussian; here its entries have variance 1/d, so that
the entries of Ax are about as large as those of x. Not here: dropout on x, adapters of embeddings.

Shapes: d inputs and k outputs of a linear layer, r rank.
"""
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from minigpt.training.checkpoints import load_checkpoint, save_checkpoint


class LoRALinear(nn.Module):
    """A frozen linear layer (..., d) -> (..., k) with adapters by name; at most one is active."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.alpha: dict[str, float] = {}
        self.active: str | None = None
        self.original: Tensor | None = None         # W, while base.weight holds the merged matrix

    def add(self, name: str, A: Tensor, B: Tensor, alpha: float) -> None:
        """Stores copies of A (r, d) and B (k, r), in the base's precision and on its device."""
        for matrices, matrix in ((self.A, A), (self.B, B)):
            matrices[name] = nn.Parameter(matrix.detach().clone().to(self.base.weight))
        self.alpha[name] = alpha

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        """A (r, d), B (k, r) and α/r of the active adapter."""
        A = self.A[self.active]
        return A, self.B[self.active], self.alpha[self.active] / len(A)

    def update(self) -> Tensor:
        """ΔW = (α/r) B A of the active adapter: (k, d)."""
        A, B, scale = self.matrices()
        return scale * B @ A

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)                                    # (..., d) -> (..., k)
        if self.active is None or self.original is not None:
            return y
        A, B, scale = self.matrices()
        return y + scale * (x @ A.T @ B.T)                  # (..., d) -> (..., r) -> (..., k)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of a model by their dotted names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers by name, in the model's order. An adapted layer keeps its own name."""
    inside = {f"{name}.base" for name in lora_layers(model)}
    return {name: getattr(m, "base", m) for name, m in model.named_modules()
            if isinstance(m, (nn.Linear, LoRALinear)) and name not in inside}


def find_linears(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the linear layers that match a target, in the model's order.

    A target is a whole name, the end of a name ("query" matches every …attention.query), or a
    pattern ("blocks.0.*"). ValueError for a target without a match.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets is a list of names, such as ['query', 'value'], not {targets!r}")
    names = list(linear_layers(model))
    found = set()
    for target in targets:
        matches = [n for n in names if f".{n}".endswith(f".{target}") or fnmatchcase(n, target)]
        if not matches:
            ends = sorted({n.rpartition(".")[2] for n in names})
            raise ValueError(f"no linear layer is called {target!r}; the model has "
                             f"{', '.join(ends) or 'none'}")
        found.update(matches)
    return [n for n in names if n in found]


def check_adapter(model: nn.Module, name: str, alpha: float) -> None:
    """ValueError for a name that PyTorch cannot store or that is taken, and for an impossible α."""
    # An adapter is an attribute of an nn.ParameterDict, which has attributes of its own.
    if not (isinstance(name, str) and name.isidentifier()) or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"an adapter cannot be called {name!r}; choose a Python identifier, such "
                         "as 'my_task', that is not an attribute of nn.ParameterDict")
    if any(name in layer.A for layer in lora_layers(model).values()):
        raise ValueError(f"this model has an adapter {name!r} already; choose another name")
    if not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
        raise ValueError(f"alpha is a finite number above 0, not {alpha!r}")


def attach(model: nn.Module, matrices: dict, alpha: float, name: str) -> None:
    """Freezes the model, gives each named layer its A and B, and makes the adapter active."""
    model.requires_grad_(False)
    for path, (A, B) in matrices.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, LoRALinear):
            parent, _, child = path.rpartition(".")
            layer = LoRALinear(layer)
            setattr(model.get_submodule(parent), child, layer)
        layer.add(name, A, B, alpha)
    use_lora(model, name)


def add_lora(model: nn.Module, targets: Sequence[str], rank: int, alpha: float,
             generator: Generator | None = None, name: str = "default") -> list[str]:
    """Freezes the whole model and gives each target a new adapter; returns the layers' names.

    `find_linears` finds the targets. The new adapter is active, and only its A and B require
    gradients. Adapters with other names stay in the model; `use_lora` makes them active. ValueError
    for a rank, an α or a name that cannot be used; the model is then unchanged.
    """
    check_adapter(model, name, alpha)
    layers, matrices = linear_layers(model), {}
    for n in find_linears(model, targets):
        k, d = layers[n].weight.shape
        if not (isinstance(rank, int) and 1 <= rank <= min(k, d)):
            raise ValueError(f"the matrix of {n!r} is ({k}, {d}), so the rank is a whole number "
                             f"from 1 to {min(k, d)}, not {rank!r}")
        A = torch.randn(rank, d, generator=generator) / math.sqrt(d)    # on the CPU: reproducible
        matrices[n] = A, torch.zeros(k, rank)
    attach(model, matrices, alpha, name)
    return list(matrices)


def use_lora(model: nn.Module, name: str | None) -> None:
    """Makes one adapter active and trainable. With None, the model is the base without adapters."""
    layers = lora_layers(model).values()
    known = {n for layer in layers for n in layer.A}
    if name is not None and name not in known:
        raise ValueError(f"no adapter is called {name!r}; this model has "
                         f"{', '.join(sorted(known)) or 'none'}")
    unmerge(model)
    for layer in layers:
        layer.active = name if name in layer.A else None
        for matrices in (layer.A, layer.B):
            for own, matrix in matrices.items():
                matrix.requires_grad_(own == name)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W ← W + (α/r)BA in each layer with an active adapter. Merging twice changes nothing more.

    A merged adapter does not learn. Call `unmerge` before you save the model: its state_dict does
    not say that W contains the adapter.
    """
    for layer in lora_layers(model).values():
        if layer.active is not None and layer.original is None:
            layer.original = layer.base.weight.detach().clone()
            layer.base.weight += layer.update()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Puts the exact W of the base back into each merged layer."""
    for layer in lora_layers(model).values():
        if layer.original is not None:
            layer.base.weight.copy_(layer.original)
            layer.original = None


def save_lora(model: nn.Module, path: str | Path, name: str = "default") -> None:
    """Writes A, B and α of one adapter. The file holds nothing of the base."""
    layers = {n: layer for n, layer in lora_layers(model).items() if name in layer.A}
    if not layers:
        raise ValueError(f"no adapter is called {name!r}, so there is nothing to save; "
                         "add_lora makes one")
    matrices = {f"{n}.{kind}": getattr(layer, kind)[name].detach().clone()
                for n, layer in layers.items() for kind in "AB"}
    save_checkpoint(path, {"model": matrices, "alpha": next(iter(layers.values())).alpha[name]})


def load_lora(model: nn.Module, path: str | Path, name: str = "default") -> list[str]:
    """Adds the adapter that `save_lora` wrote, makes it active, and returns its layers' names.

    `name` is any name that is free in this model. ValueError for a name that cannot be used, a file
    without an adapter, and an adapter of another model; the model is then unchanged.
    """
    state = load_checkpoint(path)
    stored, alpha, matrices = state["model"], state.get("alpha"), {}
    names = sorted({key.rpartition(".")[0] for key in stored})
    if alpha is None or not names or set(stored) != {f"{n}.{kind}" for n in names for kind in "AB"}:
        raise ValueError(f"{path} is a checkpoint but holds no LoRA adapter; save_lora writes one")
    check_adapter(model, name, alpha)
    layers = linear_layers(model)
    for n in names:
        A, B = matrices[n] = stored[f"{n}.A"], stored[f"{n}.B"]
        there = (len(B), A.size(1))
        here = tuple(layers[n].weight.shape) if n in layers else "missing"
        if there != here:
            raise ValueError(f"{path} was made for another model: BA of {n!r} is {there} there, "
                             f"and W is {here} here")
    attach(model, matrices, alpha, name)
    return names
