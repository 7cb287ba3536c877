"""Representations: a word as a vector of zeros with a single one, a text as the sum of such vectors.

    one_hot(w)ᵢ = 1 if i = w, else 0            bag(w₁ … w_T) = Σₜ one_hot(wₜ),    occurrence = min(1, bag)

Source: course C, on representations; the bag of words: Harris 1954, "Distributional structure".
Not here: tf-idf weights, and dense vectors, which are rows of a matrix E that is learnt: one_hot(w)·E = E[w].

Shapes: B batch, T time, V vocabulary.
"""
import torch
from torch import Tensor


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """(...) -> (..., V) float: 1 at the token's id, 0 elsewhere. ValueError for an id outside the vocabulary.

    >>> one_hot(torch.tensor([2, 0]), vocab_size=3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    refuse_unknown_ids(tokens, vocab_size)
    return (tokens.unsqueeze(-1) == torch.arange(vocab_size, device=tokens.device)).float()     # (..., 1) == (V,) -> (..., V)


def bag_of_words(tokens: Tensor, vocab_size: int, binary: bool = False, mask: Tensor | None = None) -> Tensor:
    """(B, T) -> (B, V) float: how often each id occurs in each text; with `binary` whether it does. The order is forgotten.

    `mask` (B, T) is True where a token counts. ValueError for an id outside the vocabulary, at masked positions too.

    >>> bag_of_words(torch.tensor([[2, 0, 2, 2]]), vocab_size=4).tolist()
    [[1.0, 0.0, 3.0, 0.0]]
    """
    refuse_unknown_ids(tokens, vocab_size)
    if tokens.dim() != 2:
        raise ValueError(f"tokens are {tuple(tokens.shape)} where (B, T) is wanted; give a single text as tokens[None]")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)} and the tokens are {tuple(tokens.shape)}; give one mask entry a token")
    ones = torch.ones(tokens.shape, device=tokens.device) if mask is None else mask.float()
    counts = torch.zeros(tokens.size(0), vocab_size, device=tokens.device)                      # (B, V)
    counts.scatter_add_(1, tokens.long(), ones)             # Σ of one-hots, without writing B·T·V numbers
    return counts.clamp(max=1) if binary else counts


def refuse_unknown_ids(tokens: Tensor, vocab_size: int) -> None:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens are ids, whole numbers, but these are {tokens.dtype}; give an integer tensor")
    unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]                                     # (...) -> (how many,)
    if unknown.numel():
        raise ValueError(f"id {unknown[0].item()} is outside a vocabulary of {vocab_size} (0 to {vocab_size - 1}); "
                         "was the text encoded with another tokenizer?")
