"""Generation: the ways to choose the next token from a model's P(next token).

    greedy            argmax P
    temperature τ     P ∝ softmax(logits / τ)
    top-k             P kept on the k likeliest tokens
    top-p (nucleus)   P kept on the smallest set of likeliest tokens whose probability reaches p
    beam              the n sequences with the highest log P(u₁ … u_T), keeping n at every step

Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Sutskever et al. 2014, §3.2 (beam).
Not here: length penalties for beams, and penalties for repetition.

A model here maps tokens (B, T) to logits (B, T, V) and has a `context_length`. If it also has
`new_cache()`, it computes one position per new token instead of all; the logits are the same. When
the text is longer than the context, the newest half of the context is kept and read again, with or
without a cache.

Shapes: B batch, T time, V vocabulary, n beams.
"""
import inspect
import math
from collections.abc import Iterator
from numbers import Real

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from minigpt.text.padding import check_mask


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None,
                      top_p: float | None = None) -> Tensor:
    """log P of the distribution that is sampled from: (..., V) -> (..., V), −inf for a cut token.

    The temperature is applied first, then top-k, then top-p, each to the result of the step before.
    Temperature 0 puts all probability on the argmax.

    >>> sampling_logprobs(torch.tensor([3.0, 1.0, 3.0]), top_k=2).exp().tolist()
    [0.5, 0.0, 0.5]
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        top_k, temperature = 1, 1.0
    logits = logits / temperature
    if top_k is not None and top_k < logits.size(-1):
        kept = logits.topk(top_k, dim=-1).indices                       # (..., k)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept, logits.gather(-1, kept))
    if top_p is not None and top_p < 1:
        probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # A token is cut if the more probable tokens have a sum of at least p. The token with which
        # the sum reaches p is kept. The 4 eps allow for rounding, where the sum is exactly p.
        before = F.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))      # (..., V), in sorted order
        cut = before >= top_p - 4 * torch.finfo(before.dtype).eps
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)
    return logits.log_softmax(-1)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError, in one line, for an option of `sampling_logprobs` that has no meaning."""
    def is_finite(value) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

    if not is_finite(temperature) or temperature < 0:
        raise ValueError(f"temperature must be finite, 0 (greedy) or more, not {temperature!r}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"top_k must be a whole number of at least 1, not {top_k!r}")
    if top_p is not None and (not is_finite(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"top_p must lie in (0, 1], not {top_p!r}")


@torch.no_grad()
def stream(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, generator: Generator | None = None,
           use_cache: bool = True, mask: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, for each step, the new tokens (B,) and the log-probs (B, V) they were drawn from.

    Prompts (B, T) of several lengths are padded on the left by `text.padding.pad`, which also
    returns `mask` (B, T).
    """
    check_prompt(model, tokens, max_new_tokens, mask)
    if mask is not None and mask.all():                                 # nothing is padded
        mask = None
    use_cache = use_cache and hasattr(model, "new_cache")
    device = tokens.device if generator is None else generator.device
    window, cache = tokens, None                                        # what the model reads
    for _ in range(max_new_tokens):
        if window.size(1) > model.context_length:
            kept = max(1, model.context_length // 2)
            window, cache = window[:, -kept:], None
            mask = None if mask is None else mask[:, -kept:]
        padding = {} if mask is None else {"mask": mask}
        unread = window if cache is None else window[:, -1:]            # (B, T) or (B, 1)
        if use_cache and cache is None:
            cache = model.new_cache()
        logits = model(unread, cache, **padding) if use_cache else model(unread, **padding)
        logprobs = sampling_logprobs(logits[:, -1], temperature, top_k, top_p)          # (B, V)
        chances = logprobs.exp().to(device)                 # a generator draws on its own device
        new = torch.multinomial(chances, 1, generator=generator).to(tokens.device)      # (B, 1)
        window = torch.cat([window, new], dim=1)                        # (B, T + 1)
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=True)                      # (B, T + 1)
        yield new[:, 0], logprobs


def check_prompt(model, tokens: Tensor, max_new_tokens: int, mask: Tensor | None) -> None:
    """ValueError, in one line, for a prompt that `stream` cannot continue."""
    if tokens.dim() != 2 or tokens.size(1) == 0:
        raise ValueError("a prompt has the shape (batch, time) and at least one token, "
                         f"not {tuple(tokens.shape)}")
    if tokens.size(1) > model.context_length:
        raise ValueError(f"the prompt has {tokens.size(1)} tokens and the context holds "
                         f"{model.context_length}; shorten the prompt")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")
    if mask is None:
        return
    check_mask(mask, tokens.shape)
    if not (mask[:, -1].all() and (mask[:, 1:] >= mask[:, :-1]).all()):
        raise ValueError("the mask of a batch of prompts is False only for padding on the left; "
                         'pad(prompts, side="left", …) makes the tokens and the mask')
    takes_mask = "mask" in inspect.signature(getattr(model, "forward", model)).parameters
    if not (takes_mask or mask.all()):
        raise ValueError(f"{type(model).__name__} takes no mask, so it would read the padding as "
                         "text; give it prompts of one length at a time")


def generate(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None,
             generator: Generator | None = None, stop_token: int | None = None,
             **options) -> Tensor:
    """Continues prompts: (B, T) -> (B, T + m), where m ≤ max_new_tokens.

    After its first `stop_token`, a row is filled with stop tokens; generation ends when every row
    has one. The options `use_cache` and `mask` are those of `stream`.
    """
    pieces = [tokens]
    stopped = torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)       # (B,)
    steps = stream(model, tokens, max_new_tokens, temperature, top_k, top_p, generator, **options)
    for new, _ in steps:
        if stop_token is not None:
            new = new.masked_fill(stopped, stop_token)
            stopped |= new == stop_token
        pieces.append(new[:, None])                                     # (B, 1)
        if stopped.all():
            break
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def beam_search(model, tokens: Tensor, max_new_tokens: int, n_beams: int,
                stop_token: int | None = None) -> tuple[Tensor, Tensor]:
    """The n likeliest continuations of one prompt (1, T) that a beam finds, likeliest first.

    Returns the sequences (n, T + m) and their log P (n,). A finished sequence stays in the beam: it
    is continued with `stop_token` at probability 1. Log P is a sum without a correction for length.
    """
    if tokens.dim() != 2 or tokens.size(0) != 1:
        raise ValueError("beam search continues one prompt of shape (1, time), "
                         f"not {tuple(tokens.shape)}")
    if n_beams < 1:
        raise ValueError(f"n_beams must be at least 1, not {n_beams}")
    if tokens.size(1) + max_new_tokens > model.context_length + 1:
        raise ValueError(f"{tokens.size(1)} prompt tokens and {max_new_tokens} new ones do not fit "
                         f"the context of {model.context_length}")
    cache = model.new_cache() if hasattr(model, "new_cache") else None
    new = tokens                                                        # not in the cache yet
    scores = torch.zeros(1, device=tokens.device)                       # (n,) log P of each beam
    ended = torch.zeros(1, dtype=torch.bool, device=tokens.device)      # (n,)
    for _ in range(max_new_tokens):
        logits = model(tokens) if cache is None else model(new, cache)  # (n, T, V)
        logprobs = logits[:, -1].log_softmax(-1)                        # (n, V)
        if stop_token is not None:
            logprobs[ended] = -math.inf
            logprobs[ended, stop_token] = 0.0
        total = (scores.to(logprobs)[:, None] + logprobs).flatten()     # (n·V,) beams × tokens
        scores, best = total.topk(min(n_beams, int(total.isfinite().sum())))
        rows, new = best // logprobs.size(-1), (best % logprobs.size(-1))[:, None]
        tokens = torch.cat([tokens[rows], new], dim=1)                  # (n, T + 1)
        for layer in cache or ():
            layer.select(rows)
        if stop_token is not None:
            ended = ended[rows] | (new[:, 0] == stop_token)
        if ended.all():
            break
    return tokens, scores
