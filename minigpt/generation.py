"""Generation: a model gives P(next token); this file decides which token to take.

    greedy        argmax P                          temperature τ     P ∝ softmax(logits / τ)
    top-k         P kept on the k likeliest         top-p (nucleus)   P kept on the smallest set whose mass reaches p
    beam          the n sequences with the greatest log P(u₁..u_T) found by keeping n at every step

Source: course B, "Decoding"; Fan et al. 2018 (top-k), Holtzman et al. 2019 (top-p).
A model here is anything that maps tokens (B, T) to logits (B, T, V) and says its `context_length`. If it has a
`new_cache()` too, each new token costs one position instead of all of them, and gives the same logits (a test holds that).
When text outgrows the context, the newest half is kept and read again; with or without a cache, so the two agree.

Shapes: B batch, T time, V vocabulary.
"""
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def sampling_logprobs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """log P of exactly the distribution that is sampled from: (..., V) -> (..., V), −inf where a token was cut.

    First temperature, then top-k, then top-p, each on what the one before left. Temperature 0 puts everything on the argmax.

    >>> sampling_logprobs(torch.tensor([3.0, 1.0, 3.0]), top_k=2).exp().tolist()
    [0.5, 0.0, 0.5]
    """
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], not {top_p}")
    if temperature == 0:
        top_k, temperature = 1, 1.0
    logits = logits / temperature
    if top_k is not None and top_k < logits.size(-1):
        kept = logits.topk(top_k, dim=-1).indices                       # (..., k)
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept, logits.gather(-1, kept))
    if top_p is not None and top_p < 1:
        probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # A token stays if the mass *before* it has not reached p: so the one that crosses p is in, and never none.
        cut = probabilities.cumsum(-1) - probabilities >= top_p         # (..., V), in sorted order
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), float("-inf"))
    return logits.log_softmax(-1)


def left_pad(prompts: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as one batch that ends in one column, where their answers can begin: tokens (B, T) and the mask (B, T).

    >>> tokens, mask = left_pad([[5], [6, 7]], pad_token=0)
    >>> tokens.tolist(), mask.int().tolist()
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    length = max(map(len, prompts), default=0)
    if min(map(len, prompts), default=0) < 1:
        raise ValueError("a prompt needs at least one token, and a batch at least one prompt")
    tokens = torch.tensor([[pad_token] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
    return tokens, mask


@torch.no_grad()
def stream(
    model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    generator: torch.Generator | None = None, use_cache: bool = True, mask: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, token by token, (the new token (B,), the log-probs it was drawn from (B, V)). The prompt is tokens (B, T), T ≥ 1.

    `mask` (B, T) is False where `left_pad` has padded shorter prompts; the model is then handed a mask of all it can see, as GPT takes it.
    """
    if tokens.dim() != 2 or tokens.size(1) == 0:
        raise ValueError(f"a prompt is (batch, time) with at least one token, not {tuple(tokens.shape)}")
    if tokens.size(1) > model.context_length:
        raise ValueError(f"the prompt has {tokens.size(1)} tokens and the context holds {model.context_length}; shorten the prompt")
    if mask is not None and not (mask.shape == tokens.shape and mask[:, -1].all() and (mask[:, 1:] >= mask[:, :-1]).all()):
        raise ValueError("the mask of a batch of prompts has their shape and is False only at padding on the left: left_pad makes both")
    mask = None if mask is None or mask.all() else mask                 # nothing is padded: any model will do
    if mask is not None and "mask" not in inspect.signature(getattr(model, "forward", model)).parameters:
        raise ValueError(f"{type(model).__name__} takes no mask, so it cannot be blind to padding; give it prompts of one length at a time")
    use_cache = use_cache and hasattr(model, "new_cache")
    window, cache = tokens, None                                        # the window is what the model can see
    for _ in range(max_new_tokens):
        if window.size(1) > model.context_length:
            kept = max(1, model.context_length // 2)
            window, mask, cache = window[:, -kept:], None if mask is None else mask[:, -kept:], None
        padding = {} if mask is None else {"mask": mask}
        if not use_cache:
            logits = model(window, **padding)
        elif cache is None:
            cache = model.new_cache()
            logits = model(window, cache, **padding)
        else:
            logits = model(window[:, -1:], cache, **padding)
        logprobs = sampling_logprobs(logits[:, -1], temperature, top_k, top_p)          # (B, T, V) -> (B, V)
        chances = logprobs.exp() if generator is None else logprobs.exp().to(generator.device)         # drawn where the generator lives
        new = torch.multinomial(chances, 1, generator=generator).to(tokens.device)      # (B, 1)
        window = torch.cat([window, new], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(new, dtype=torch.bool)], dim=1)
        yield new[:, 0], logprobs


def generate(
    model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    generator: torch.Generator | None = None, stop_token: int | None = None, use_cache: bool = True, mask: Tensor | None = None,
) -> Tensor:
    """Continues a prompt: (B, T) -> (B, T + n), n ≤ max_new_tokens.

    A row that has drawn `stop_token` is filled up with it, and generation ends once every row has. `temperature` 0 is greedy.
    Prompts of several lengths come with the `mask` that `left_pad` makes; it is for models that take one, as GPT does.
    """
    pieces, stopped = [tokens], torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)
    for new, _ in stream(model, tokens, max_new_tokens, temperature, top_k, top_p, generator, use_cache, mask):
        if stop_token is not None:
            new = new.masked_fill(stopped, stop_token)
            stopped |= new == stop_token
        pieces.append(new[:, None])                                     # (B, 1)
        if stopped.all():
            break
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def beam_search(model, tokens: Tensor, max_new_tokens: int, n_beams: int, stop_token: int | None = None) -> tuple[Tensor, Tensor]:
    """The n likeliest continuations that a beam finds of one prompt (1, T): sequences (n, T + m), likeliest first, and their log P (n,).

    A finished sequence keeps its place in the beam with `stop_token` repeated at no cost. Log P is a plain sum: no length bonus,
    so short answers are favoured just as the model favours them.
    """
    if tokens.dim() != 2 or tokens.size(0) != 1:
        raise ValueError(f"beam search continues one prompt of shape (1, time), not {tuple(tokens.shape)}")
    if n_beams < 1:
        raise ValueError(f"n_beams must be at least 1, not {n_beams}")
    if tokens.size(1) + max_new_tokens > model.context_length + 1:
        raise ValueError(f"{tokens.size(1)} prompt tokens and {max_new_tokens} new ones do not fit the context of {model.context_length}")
    cache = model.new_cache() if hasattr(model, "new_cache") else None
    scores, new = torch.zeros(1, device=tokens.device), tokens          # (n,) log P of each beam; what the cache has not seen
    over = torch.zeros(1, dtype=torch.bool, device=tokens.device)       # (n,) which beams have ended; a prompt never has
    for _ in range(max_new_tokens):
        logits = model(tokens) if cache is None else model(new, cache)
        logprobs = logits[:, -1].log_softmax(-1)                        # (n, V)
        if stop_token is not None:                                      # after the end, only the end, for free
            logprobs[over] = float("-inf")
            logprobs[over, stop_token] = 0.0
        total = (scores.to(logprobs)[:, None] + logprobs).flatten()     # (n·V): every beam with every token
        scores, best = total.topk(min(n_beams, int(total.isfinite().sum())))
        rows, new = best // logprobs.size(-1), (best % logprobs.size(-1))[:, None]
        tokens = torch.cat([tokens[rows], new], dim=1)                  # (n, T + 1)
        if cache is not None:
            for layer in cache:
                layer.select(rows)
        over = over[rows] if stop_token is None else over[rows] | (new[:, 0] == stop_token)
        if over.all():
            break
    return tokens, scores
