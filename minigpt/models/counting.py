"""Counting: how many numbers a model holds, and how many bytes a training step keeps.
"""
import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; a tied matrix counts once.

    >>> from minigpt.models.gpt import GPT, GPTConfig
    >>> with torch.device("meta"):              # shapes without memory
    ...     count_parameters(GPT(GPTConfig.gpt2()))
    124439808
    """
    return sum(p.numel() for p in model.parameters())


def saved_bytes(function, parameters=()) -> int:
    """Bytes that autograd keeps, between forward and backward, for what `function()` computes. A tensor kept twice counts once.

    `parameters` are not counted, nor are views of them: a model has them anyway.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x                        # holding x keeps its address from being used again
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    del result
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)
