"""Reversible layers: activations computed back from outputs, so that none are kept.

    y₁ = x₁ + F(x₂),  y₂ = x₂ + G(y₁)     x₂ = y₂ − G(y₁),  x₁ = y₁ − F(x₂)

Source: Gomez et al. 2017; Kitaev, Kaiser and Levskaya 2020 (Reformer), §3.
"""
import torch
from torch import Tensor, nn

from minigpt.models.attention import KVCache

# Reversible layers. A block x + attention, x + mlp becomes F and G on two streams; what a layer was given is computed
# back from what it returned, so of all layers only the last one's output is kept.

class _Reversible(torch.autograd.Function):
    """Runs (F, G) pairs without a graph, and backwards builds one pair's graph at a time."""

    @staticmethod
    def forward(ctx, x1: Tensor, x2: Tensor, pairs: list, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        for f, g in pairs:                                              # no graph: a Function's forward runs without one
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        ctx.pairs, ctx.parameters = pairs, parameters
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx, d1: Tensor, d2: Tensor):
        y1, y2 = ctx.saved_tensors
        gradients = [None] * len(ctx.parameters)

        def through(function, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
            """function(x), and upstream · ∂function/∂x; the parameters' shares are added to `gradients`."""
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                value = function(x)
                dx, *rest = torch.autograd.grad(value, (x, *ctx.parameters), upstream, allow_unused=True)
            for i, gradient in enumerate(rest):
                if gradient is not None:
                    gradients[i] = gradient if gradients[i] is None else gradients[i] + gradient
            return value.detach(), dx

        for f, g in reversed(ctx.pairs):
            value, dx = through(g, y1, d2)                              # y₂ = x₂ + G(y₁)
            y2, d1 = y2 - value, d1 + dx
            value, dx = through(f, y2, d1)                              # y₁ = x₁ + F(x₂), and y2 now holds x₂
            y1, d2 = y1 - value, d2 + dx
        return d1, d2, None, *gradients


class Reversible(nn.Module):
    """GPT's blocks on two streams: (B, T, C) -> (B, T, C). Both streams start as x, and their mean is what comes out.

    `store` keeps every activation instead, as autograd does: the same numbers, for comparison.
    """

    def __init__(self, blocks: nn.ModuleList, store: bool = False):
        super().__init__()
        if any(block.post_norm for block in blocks):
            raise ValueError("a post-norm block replaces its input and cannot be reversed; use post_norm=False")
        self.blocks, self.store = blocks, store

    def forward(self, x: Tensor, cache: KVCache | None = None, **options) -> Tensor:
        if cache is not None:
            raise ValueError("reversible layers are for training and keep no cache; call them with cache=None")
        pairs = [(lambda x, b=block: b.attention(b.norm1(x), causal=True, **options), lambda x, b=block: b.feed_forward(b.norm2(x)))
                 for block in self.blocks]
        if self.store:
            x1, x2 = x, x
            for f, g in pairs:
                x1 = x1 + f(x2)
                x2 = x2 + g(x1)
        else:
            x1, x2 = _Reversible.apply(x, x, pairs, *(p for p in self.blocks.parameters() if p.requires_grad))
        return (x1 + x2) / 2
