"""Losses: how improbable a text is for a model, in nats, in bits, and as perplexity.

    L = −mean log P(uᵢ | u_<i)        perplexity = e^L = 2^(L in bits)

Source: Radford et al. 2018, eq. 1, as a mean over tokens; Devlin et al. 2019, app. A.2 (BERT).

Shapes: B batch, T time, V vocabulary, N counted tokens.
"""
import math

from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.text.padding import check_mask


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean −log P(target) in nats: (..., V), (...) -> scalar. With `mask` (...), where it is True.

    A long row weighs more than a short one. ValueError if no position counts.
    """
    if mask is not None:
        check_mask(mask, targets.shape)
        logits, targets = logits[mask], targets[mask]                   # (N, V), (N)
    if targets.numel() == 0:
        raise ValueError("there is no position to average over; check the mask, the padding, "
                         "and that each text has at least 2 tokens")
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())    # (N, V), (N) -> scalar


def causal_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """L₁ in nats per token: the logits at t predict token t + 1. (B, T, V), (B, T) -> scalar.

    With `mask` (B, T), only tokens where it is True are predicted.
    """
    return cross_entropy(logits[:, :-1], tokens[:, 1:], None if mask is None else mask[:, 1:])


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of windows (B, T + 1): each of the first T tokens predicts the one after it."""
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def token_logprobs(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """log P(token t + 1 | tokens 0..t) in nats: (B, T, V), (B, T) -> (B, T − 1).

    The result is 0 where `mask` (B, T) is False for token t + 1. The logits of the last token are
    not used and may be left out: (B, T − 1, V).
    """
    B, T = tokens.shape
    if logits.shape[:-1] not in ((B, T), (B, T - 1)):
        raise ValueError(f"tokens are {tuple(tokens.shape)}, so logits are ({B}, {T}, V) or "
                         f"({B}, {T - 1}, V), not {tuple(logits.shape)}")
    logprobs = logits[:, :T - 1].log_softmax(-1)                        # (B, T − 1, V)
    logprobs = logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)     # (B, T − 1)
    if mask is None:
        return logprobs
    check_mask(mask, tokens.shape)
    return logprobs.masked_fill(~mask[:, 1:], 0.0)


def sequence_logprobs(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum of `token_logprobs` over time: (B, T, V), (B, T) -> (B,)."""
    return token_logprobs(logits, tokens, mask).sum(1)


def bert_loss(mlm_logits: Tensor, labels: Tensor, nsp_logits: Tensor, nsp_labels: Tensor,
              chosen: Tensor | None = None) -> Tensor:
    """L = L_MLM + L_NSP: the mean over the chosen tokens plus the mean over the pairs.

    mlm_logits (B, T, V), labels (B, T) and `chosen` (B, T); without `chosen`, (N, V) and (N) of the
    chosen positions. nsp_logits (B, 2), nsp_labels (B,).
    """
    return cross_entropy(mlm_logits, labels, chosen) + cross_entropy(nsp_logits, nsp_labels)


def perplexity(nats: float) -> float:
    """e^L: the number of equally probable tokens that would be as hard to predict."""
    return math.exp(nats) if nats < 700 else math.inf


def bits(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Bits per UTF-8 byte: a measure that compares models with different tokenizers."""
    return bits(nats_per_token) * n_tokens / n_bytes
