"""Reversible layers: the inputs of a layer are computed from its outputs, so they are not stored.

    y₁ = x₁ + F(x₂)            y₂ = x₂ + G(y₁)                  forward
    x₂ = y₂ − G(y₁)            x₁ = y₁ − F(x₂)                  inverse

There are two streams x₁ and x₂, F is the attention and G is the feed-forward network of a block of
GPT. The backward pass starts from the outputs of the last layer and computes one layer's inputs and
gradients at a time:

    ∂L/∂y₁ ← ∂L/∂y₁ + ∂L/∂y₂ · ∂G/∂y₁,  then  ∂L/∂x₁ = ∂L/∂y₁,  ∂L/∂x₂ = ∂L/∂y₂ + ∂L/∂y₁ · ∂F/∂x₂

The memory does not grow with the number of layers. In return F and G are computed twice, with
rounding errors.

Source: Gomez et al. 2017, §3.1 and algorithm 1; Kitaev, Kaiser and Levskaya 2020 (Reformer), §3.
Deviation: the two streams end in their mean, where Reformer concatenates them.
Not here: dropout, because F and G must return the same when they are computed again.

Shapes: B batch, T time, C = d_model.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minigpt.models.attention import KVCache

Function = Callable[[Tensor], Tensor]       # F or G: (B, T, C) -> (B, T, C)


def run(pairs: list[tuple[Function, Function]], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass of layers that are pairs (F, G): two streams (B, T, C) -> the same."""
    for f, g in pairs:
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    return x1, x2


def value_and_gradients(function: Function, x: Tensor, upstream: Tensor,
                        parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """function(x), and upstream · its derivatives by x and by each parameter, None if unused."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        dx, *dp = torch.autograd.grad(value, (x, *parameters), upstream, allow_unused=True)
    return value.detach(), dx, dp


class ReversibleLayers(torch.autograd.Function):
    """`run` without a graph. Its backward pass builds the graph of one layer at a time."""

    @staticmethod
    def forward(ctx, x1: Tensor, x2: Tensor, pairs: list[tuple[Function, Function]],
                *parameters: Tensor) -> tuple[Tensor, Tensor]:
        y1, y2 = run(pairs, x1, x2)                         # autograd records nothing in here
        ctx.pairs, ctx.parameters = pairs, parameters
        ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    def backward(ctx, d1: Tensor, d2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2 = ctx.saved_tensors
        gradients = {}
        for f, g in reversed(ctx.pairs):
            # y₂ = x₂ + G(y₁) gives x₂, and y₁'s second gradient.
            value, dy1, from_g = value_and_gradients(g, y1, d2, ctx.parameters)
            y2, d1 = y2 - value, d1 + dy1                   # y2 now holds x₂
            # y₁ = x₁ + F(x₂) gives x₁, and x₂'s second gradient.
            value, dx2, from_f = value_and_gradients(f, y2, d1, ctx.parameters)
            y1, d2 = y1 - value, d2 + dx2                   # y1 now holds x₁
            for p, gradient in zip(ctx.parameters * 2, from_g + from_f):
                if gradient is not None:
                    gradients[p] = gradients[p] + gradient if p in gradients else gradient
        return d1, d2, None, *(gradients.get(p) for p in ctx.parameters)


def attention_and_feed_forward(block: nn.Module, options: dict) -> tuple[Function, Function]:
    """F and G of a block of GPT. `options` are those of its attention: rotary, mask."""
    return (lambda x: block.attention(block.norm1(x), causal=True, **options),
            lambda x: block.feed_forward(block.norm2(x)))


class Reversible(nn.Module):
    """GPT's blocks as reversible layers: (B, T, C) -> (B, T, C). Both streams start as x.

    With `store` set to True, autograd stores all activations as usual, for comparison.
    """

    def __init__(self, blocks: nn.ModuleList):
        super().__init__()
        if any(block.post_norm for block in blocks):
            raise ValueError("a post-norm block cannot be reversed; use post_norm=False")
        self.blocks, self.store = blocks, False

    def forward(self, x: Tensor, cache: KVCache | None = None, **options) -> Tensor:
        if cache is not None:
            raise ValueError("reversible layers keep no cache; call them with cache=None")
        pairs = [attention_and_feed_forward(block, options) for block in self.blocks]
        if self.store:
            y1, y2 = run(pairs, x, x)
        else:
            parameters = [p for p in self.blocks.parameters() if p.requires_grad]
            y1, y2 = ReversibleLayers.apply(x, x, pairs, *parameters)
        return (y1 + y2) / 2
