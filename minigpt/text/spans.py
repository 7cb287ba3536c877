"""Spans: T5's span corruption.

Source: Raffel et al. 2020, fig. 2 and §3.3.4.
"""
from collections.abc import Sequence

import torch


def span_counts(n_tokens: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(noise tokens, noise spans) of a text: fixed by its length, with no chance in it.

    A text of one token keeps it: nothing is dropped, in no span.

    >>> span_counts(512), span_counts(20), span_counts(1)
    ((77, 26), (3, 1), (0, 0))
    """
    if n_tokens < 1 or not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError(f"span corruption needs at least 1 token, a noise density in (0, 1) and spans of at least 1 token, "
                         f"not {n_tokens}, {noise_density} and {mean_span_length}")
    if n_tokens == 1:
        return 0, 0
    noise = min(max(round(n_tokens * noise_density), 1), n_tokens - 1)
    return noise, max(1, min(round(noise / mean_span_length), noise, n_tokens - noise))


def random_segments(n_items: int, n_segments: int, generator: torch.Generator) -> list[int]:
    """The lengths of `n_segments` segments, none empty, that add up to n_items; each way to cut is equally likely."""
    cuts = sorted((torch.randperm(n_items - 1, generator=generator)[:n_segments - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, n_items])]


def span_mask(n_tokens: int, generator: torch.Generator, noise_density: float = 0.15, mean_span_length: float = 3.0) -> list[bool]:
    """Which tokens are noise: kept and dropped runs in turn, a kept one first, so a dropped one last.

    A text of fewer than 31 tokens has one span, and one span leaves nothing to chance: it is the end of the text.

    >>> "".join("x" if noise else "." for noise in span_mask(20, torch.Generator()))
    '.................xxx'
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    if spans == 0:
        return [False] * n_tokens
    dropped, kept = random_segments(noise, spans, generator), random_segments(n_tokens - noise, spans, generator)
    return [flag for stay, go in zip(kept, dropped) for flag in [False] * stay + [True] * go]


def corrupt_spans(tokens: Sequence[int], mask: Sequence[bool], vocab_size: int, end_id: int) -> tuple[list[int], list[int]]:
    """(input, target) of a text and its noise mask, with vocab_size − 1, vocab_size − 2, … for <X>, <Y>, … and `end_id` for </s>.

    A text may hold any other id, </s> and padding included; ValueError if it holds one of the sentinels that it needs.

    >>> corrupt_spans([5, 6, 7, 8, 9], [False, True, True, False, True], vocab_size=32, end_id=1)
    ([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1])
    """
    if len(tokens) != len(mask) or not tokens:
        raise ValueError(f"a mask has one entry for each token, and a text at least one token; got {len(mask)} for {len(tokens)}")
    kept, dropped, sentinel = [], [], vocab_size - 1
    for i, (token, noise) in enumerate(zip(tokens, mask)):
        if not noise:
            kept.append(token)
            continue
        if i == 0 or not mask[i - 1]:
            kept.append(sentinel)
            dropped.append(sentinel)
            sentinel -= 1
        dropped.append(token)
    if max(tokens) >= sentinel:
        raise ValueError(f"the text holds id {max(tokens)}, but its sentinels are {sentinel} to {vocab_size - 1}; "
                         "raise vocab_size, and keep its top free for them")
    return kept + [end_id], dropped + [sentinel, end_id]


def split_at_sentinels(tokens: Sequence[int], vocab_size: int) -> list[list[int]]:
    """The runs before, between and after vocab_size − 1, vocab_size − 2, … A sentinel out of turn is a token like others.

    >>> split_at_sentinels([31, 6, 7, 30, 9, 29, 1], vocab_size=32)
    [[], [6, 7], [9], [1]]
    """
    runs = [[]]
    for token in tokens:
        if token == vocab_size - len(runs):
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def restore(input: Sequence[int], target: Sequence[int], vocab_size: int, end_id: int) -> list[int]:
    """The text that `corrupt_spans` took apart. ValueError if input and target do not belong together.

    >>> restore([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1], vocab_size=32, end_id=1)
    [5, 6, 7, 8, 9]
    """
    kept, dropped = split_at_sentinels(input[:-1], vocab_size), split_at_sentinels(target[:-1], vocab_size)
    if len(dropped) != len(kept) + 1 or dropped[0] or dropped[-1] or not input[-1] == target[-1] == end_id:
        raise ValueError(f"an input with {len(kept) - 1} sentinels goes with a target of as many spans, each after its sentinel, then one sentinel "
                         f"more, both with {end_id} last; the target has {len(dropped) - 1} sentinels")
    return [token for stay, go in zip(kept, dropped[1:]) for token in stay + go]        # the closing sentinel's run is empty


def expected_lengths(n_tokens: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """Tokens of the input and of the target that a text of n tokens becomes: always, not only on average.

    The paper's code takes 568 tokens to fill an input of 512; its targets have 114, without the closing sentinel.

    >>> expected_lengths(568)
    (512, 115)
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    return n_tokens - noise + spans + 1, noise + spans + 2
