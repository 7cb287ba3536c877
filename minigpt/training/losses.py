"""Losses: how surprised a model is, in nats, bits, and as a number of equally likely choices.

    L = −mean log P(uᵢ | u_<i)          perplexity = e^L = 2^(L in bits)          log P(u) = Σᵢ log P(uᵢ | u_<i)

Source: course B, "Perplexity"; course A, eq. L₁ of GPT-1 (Radford et al. 2018, eq. 1), averaged instead of summed.

Shapes: B batch, T time, V vocabulary.
"""
import math

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean −log P(target) in nats: (..., V), (...) -> scalar. Only where `mask` (...) is True, if given.

    The mean runs over the counted positions of the whole batch, not row by row: a long row weighs more than a short one.
    """
    if mask is not None:
        if not mask.any():
            raise ValueError("the mask counts no position, so there is nothing to average; check padding and lengths")
        logits, targets = logits[mask], targets[mask]                   # (N, V), (N)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())    # (N, V), (N)


def causal_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """L₁: logits at t are judged by token t + 1. (B, T, V), (B, T) -> scalar in nats a token; `mask` (B, T), True where a token counts."""
    return cross_entropy(logits[:, :-1], tokens[:, 1:], None if mask is None else mask[:, 1:])


def token_logprobs(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """log P(token t + 1 | tokens 0..t) for t = 0 … T−2: (B, T, V), (B, T) -> (B, T−1) nats; 0 where `mask` (B, T) does not count token t + 1.

    The first token has nothing before it, and the last logits nothing after them: neither is used, and the last logits may be
    left out, (B, T−1, V), by a caller who did not compute them. A model that gives each of
    two tokens half the probability, and a row whose third token is padding:

    >>> import torch
    >>> token_logprobs(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 0]]), torch.tensor([[True, True, False]])).exp().tolist()
    [[0.5, 1.0]]
    """
    B, T = tokens.shape
    if logits.shape[:-1] not in ((B, T), (B, T - 1)) or (mask is not None and mask.shape != tokens.shape):
        raise ValueError(f"logits (B, T, V), tokens (B, T) and mask (B, T) go together, not {tuple(logits.shape)}, {tuple(tokens.shape)}"
                         + ("" if mask is None else f" and {tuple(mask.shape)}"))
    logprobs = logits[:, :T - 1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]    # (B, T−1, 1) -> (B, T−1)
    return logprobs if mask is None else logprobs.masked_fill(~mask[:, 1:], 0.0)


def sequence_logprobs(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """log P(sequence | its first token), or of its counted tokens given all before them: the sum of `token_logprobs` over time, (B,)."""
    return token_logprobs(logits, tokens, mask).sum(1)


def bert_loss(mlm_logits: Tensor, labels: Tensor, nsp_logits: Tensor, nsp_labels: Tensor, chosen: Tensor | None = None) -> Tensor:
    """L = L_MLM + L_NSP (Devlin et al. 2019, A.2), each a mean: over the chosen tokens, and over the pairs.

    mlm_logits (B, T, V), labels (B, T) with `chosen` (B, T); or only the chosen positions' (N, V), (N), and no `chosen`.
    nsp_logits (B, 2), nsp_labels (B).
    """
    return cross_entropy(mlm_logits, labels, chosen) + cross_entropy(nsp_logits, nsp_labels)


def perplexity(nats: float) -> float:
    """e^L: the number of equally likely tokens that would be as hard to guess.

    >>> round(perplexity(math.log(50)))
    50
    """
    return math.exp(nats) if nats < 700 else math.inf


def bits(nats: float) -> float:
    """Nats to bits: divide by ln 2."""
    return nats / math.log(2)


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Bits spent on each UTF-8 byte: the one measure that compares models with different tokenizers.

    >>> round(bits_per_byte(math.log(256), n_tokens=10, n_bytes=10), 6)
    8.0
    """
    return bits(nats_per_token) * n_tokens / n_bytes
