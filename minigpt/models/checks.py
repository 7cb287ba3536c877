"""Checks that GPT, BERT and T5 share: sizes, memory, rows of a mask, token ids.

Each check raises a ValueError that says what came and what was wanted. Sizes and memory are checked
once, when a model is made. The check of token ids only rewords an error that PyTorch has found, so
a training step does not become slower.
"""
from dataclasses import fields
from types import NoneType
from typing import Any, get_args

import torch
from torch import Tensor, nn


def check_sizes(**sizes: int) -> None:
    """ValueError unless each of these is a whole number of at least 1."""
    for name, size in sizes.items():
        if type(size) is not int or size < 1:   # `type` and not `isinstance`: True is no size
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")


def check_heads(d_model: int, n_heads: int) -> int:
    """The width of one head, d_model / n_heads. ValueError unless it is a whole number.

    >>> check_heads(128, 4)
    32
    """
    check_sizes(d_model=d_model, n_heads=n_heads)
    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}; "
                         f"try d_model {(d_model // n_heads + 1) * n_heads}")
    return d_model // n_heads


def check_fields(config: Any) -> None:
    """ValueError unless each field of this dataclass holds a value that its annotation allows.

    A field annotated `int` is a size, so it must be at least 1. A `float` must be positive, and a
    `Literal` lists its values.

    >>> from minigpt.models.gpt import GPTConfig
    >>> GPTConfig(vocab_size=65, context_length=64, n_layers=0, n_heads=4, d_model=128)
    Traceback (most recent call last):
    ValueError: n_layers must be a whole number of at least 1, not 0
    """
    for field in fields(config):
        value, kinds = getattr(config, field.name), get_args(field.type) or (field.type,)
        if value is None and NoneType in kinds:
            continue
        if int in kinds:
            check_sizes(**{field.name: value})
            continue
        if float in kinds:
            legal, wanted = type(value) in (int, float) and value > 0, "a positive number"
        elif bool in kinds:
            legal, wanted = isinstance(value, bool), "True or False"
        else:
            legal, wanted = value in kinds, f"one of {', '.join(kinds)}"
        if not legal:
            raise ValueError(f"{field.name} must be {wanted}, not {value!r}")


def check_memory(config: Any, n_weights: int) -> None:
    """ValueError, naming the sizes in `config`, unless `n_weights` numbers can be allocated.

    The numbers are asked for and given back at once; the "meta" device always has room for them.
    """
    try:
        torch.empty(n_weights)
    except (RuntimeError, TypeError):           # TypeError: more than 2^63 weights
        gigabytes = n_weights * torch.get_default_dtype().itemsize / 1e9
        raise ValueError(f"{config} has {n_weights:,} weights; their {gigabytes:,.0f} GB cannot "
                         "be allocated here, so choose smaller sizes") from None


def check_rows(mask: Tensor) -> None:
    """ValueError if a row of `mask` (B, T) is False everywhere: attention would average nothing.

    >>> check_rows(torch.tensor([[True, False], [False, False]]))
    Traceback (most recent call last):
    ValueError: row 1 of the mask is False everywhere, so it has no token; leave the row out
    """
    has_token = mask.any(dim=1)                                         # (B,)
    if not has_token.all():
        raise ValueError(f"row {int(has_token.int().argmin())} of the mask is False everywhere, "
                         "so it has no token; leave the row out")


class TokenEmbedding(nn.Embedding):
    """tokens (B, T) -> vectors (B, T, C): row i of the weight for token id i.

    On a CPU, an id outside the vocabulary gives a ValueError. On a GPU it gives PyTorch's own
    error, and later: a check at every step would make the CPU wait for the GPU.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        try:
            return super().forward(tokens)                              # (B, T) -> (B, T, C)
        except IndexError:
            raise ValueError(
                f"this model's token ids lie between 0 and {self.num_embeddings - 1}, and these "
                f"between {tokens.min()} and {tokens.max()}; encode the text with the tokenizer "
                "that the model was trained with") from None
