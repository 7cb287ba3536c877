"""Counting: the parameters of a model, and the bytes that autograd keeps during a training step.

    memory of a step ≈ parameters · bytes(weight, gradient, optimizer state) + saved activations

`count_parameters` gives the first factor, and `saved_bytes` the last term: the tensors that
autograd keeps between the forward and the backward pass. They grow with the batch and with the
length of the text; the parameters do not.

Source: PyTorch's hooks on saved tensors (torch.autograd.graph).
Not here: memory used within an operation and freed again, and the allocator's own overhead.
"""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """The number of entries of all parameters, frozen ones included. A tied matrix counts once.

    >>> from minigpt.models.gpt import GPT, GPTConfig
    >>> with torch.device("meta"):              # shapes without memory
    ...     count_parameters(GPT(GPTConfig.gpt2()))
    124439808
    """
    return sum(p.numel() for p in model.parameters())


def saved_bytes(function: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """The bytes that autograd keeps for the backward pass of what `function()` computes.

    A tensor that is kept twice counts once. `parameters` and views of them do not count, because
    the model has them anyway.

    >>> x = torch.ones(10, 3, requires_grad=True)
    >>> saved_bytes(lambda: x.exp())            # the derivative is exp(x) again: 30 · 4 bytes
    120
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x    # held, so that no other tensor gets its address
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    del result
    return sum(x.untyped_storage().nbytes() for address, x in kept.items()
               if address not in weights)
