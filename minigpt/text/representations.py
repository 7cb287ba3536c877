"""One-hot vectors and bags of words: a word and a text as vectors with one entry per word.

    one_hot(w)ᵢ = 1 if i = w, else 0
    bag(w₁ … w_T) = Σₜ one_hot(wₜ)          how often each word occurs
    occurrence = min(1, bag)                whether it occurs

Source: course C, "Representation of text"; bags of words: Harris 1954, "Distributional structure".
Not here: tf-idf weights; and dense vectors, the rows of a learned matrix E: one_hot(w)·E = E[w].

Shapes: B batch, T time, V vocabulary.
"""
import torch
from torch import Tensor


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """(...) -> (..., V) float: 1 at the token's id, 0 elsewhere.

    >>> one_hot(torch.tensor([2, 0]), vocab_size=3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    check_ids(tokens, vocab_size)
    ids = torch.arange(vocab_size, device=tokens.device)                # (V,)
    return (tokens.unsqueeze(-1) == ids).float()                        # (..., 1), (V,) -> (..., V)


def bag_of_words(tokens: Tensor, vocab_size: int, binary: bool = False) -> Tensor:
    """(B, T) -> (B, V) float: how often each id occurs in a text; with `binary`, whether it occurs.

    >>> bag_of_words(torch.tensor([[2, 0, 2, 2]]), vocab_size=4).tolist()
    [[1.0, 0.0, 3.0, 0.0]]
    """
    check_ids(tokens, vocab_size)
    ones = torch.ones(tokens.shape, device=tokens.device)
    counts = torch.zeros(tokens.size(0), vocab_size, device=tokens.device)      # (B, V)
    counts.scatter_add_(1, tokens.long(), ones)             # the sum, without the one-hot vectors
    return counts.clamp(max=1) if binary else counts


def check_ids(tokens: Tensor, vocab_size: int) -> None:
    """ValueError unless the tokens are integers from 0 to vocab_size − 1."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens are ids, not {tokens.dtype}; give an integer tensor")
    unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if unknown.numel():
        raise ValueError(f"id {unknown[0].item()} is outside a vocabulary of {vocab_size} "
                         f"(0 to {vocab_size - 1}); was the text encoded with another tokenizer?")
