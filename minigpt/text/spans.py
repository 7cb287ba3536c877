"""T5's training data: spans of tokens are removed from a text, and the model has to write them.

    text        Thank you for inviting me to your party last week .
    input       Thank you <X> me to your party <Y> week . </s>
    target      <X> for inviting <Y> last <Z> </s>

Each span leaves a sentinel of its own in the input: <X>, <Y>, <Z>, … are the ids V − 1, V − 2, …
of a vocabulary of V. The target has each span after its sentinel, and one more sentinel at its end.
15 % of the tokens (the noise) are removed, in spans of 3 tokens on average:

    noise tokens n = round(0.15 · T),     spans = round(n / 3)

Source: Raffel et al. 2020, fig. 2 (input and target), §3.1.4 (15 %) and §3.3.4 (spans of 3 tokens);
course D, "T5". The spans are drawn as in the released code (`random_spans_noise_mask`): kept and
removed runs alternate, a kept one first, and every such division is equally likely.
Deviation: the released code writes no closing sentinel; fig. 2 has one.
"""
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from torch import Generator, randperm


def span_counts(n_tokens: int, noise_density: float = 0.15,
                mean_span_length: float = 3.0) -> tuple[int, int]:
    """(noise tokens, noise spans) of a text; a text of a single token has none.

    >>> span_counts(512), span_counts(20), span_counts(1)
    ((77, 26), (3, 1), (0, 0))
    """
    if n_tokens < 1 or not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError("spans need n_tokens ≥ 1, 0 < noise_density < 1, mean_span_length ≥ 1, "
                         f"not {n_tokens}, {noise_density} and {mean_span_length}")
    if n_tokens == 1:
        return 0, 0
    noise = min(max(round(n_tokens * noise_density), 1), n_tokens - 1)
    spans = min(round(noise / mean_span_length), noise, n_tokens - noise)
    return noise, max(1, spans)


def random_segments(n_items: int, n_segments: int, generator: Generator) -> list[int]:
    """The lengths of non-empty segments that add up to `n_items`; each way is equally likely."""
    cuts = sorted((randperm(n_items - 1, generator=generator)[:n_segments - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, n_items])]


def span_mask(n_tokens: int, generator: Generator, noise_density: float = 0.15,
              mean_span_length: float = 3.0) -> list[bool]:
    """For each token, whether it is noise. The end of a text of 2 to 30 tokens is the only span.

    >>> "".join("x" if noise else "." for noise in span_mask(20, Generator()))
    '.................xxx'
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    if n_tokens == 1:
        return [False]
    removed = random_segments(noise, spans, generator)
    kept = random_segments(n_tokens - noise, spans, generator)
    return [flag for k, r in zip(kept, removed) for flag in [False] * k + [True] * r]


def corrupt_spans(tokens: Sequence[int], mask: Sequence[bool], vocab_size: int,
                  end_id: int) -> tuple[list[int], list[int]]:
    """(input, target) of a text; `mask` is True at the tokens to remove, and `end_id` is </s>.

    >>> corrupt_spans([5, 6, 7, 8, 9], [False, True, True, False, True], vocab_size=32, end_id=1)
    ([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1])
    """
    kept, removed, sentinel = [], [], vocab_size - 1
    for noise, run in groupby(zip(mask, tokens, strict=True), key=itemgetter(0)):
        run = [token for _, token in run]
        if noise:
            kept.append(sentinel)
            removed += [sentinel, *run]
            sentinel -= 1
        else:
            kept += run
    if max(tokens) >= sentinel:
        raise ValueError(f"the text holds id {max(tokens)}, but {sentinel} to {vocab_size - 1} are "
                         "its sentinels; raise vocab_size, and use its last ids for them only")
    return kept + [end_id], removed + [sentinel, end_id]


def split_at_sentinels(tokens: Sequence[int], vocab_size: int) -> list[list[int]]:
    """The runs before, between and after the sentinels; one out of their order is a token.

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
    """The text from which `corrupt_spans` made this input and target.

    >>> restore([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1], vocab_size=32, end_id=1)
    [5, 6, 7, 8, 9]
    """
    kept = split_at_sentinels(input[:-1], vocab_size)
    removed = split_at_sentinels(target[:-1], vocab_size)               # [], spans, []
    if ([*input[-1:], *target[-1:]] != [end_id, end_id] or len(removed) != len(kept) + 1
            or removed[0] or removed[-1]):
        raise ValueError(f"input and target must both end with </s>, which is {end_id}; the target "
                         "must have the input's sentinels, each before its span, and one more")
    return [token for k, r in zip(kept, removed[1:]) for token in k + r]


def expected_lengths(n_tokens: int, noise_density: float = 0.15,
                     mean_span_length: float = 3.0) -> tuple[int, int]:
    """Tokens of the input and of the target that a text of `n_tokens` becomes, </s> included.

    >>> expected_lengths(568)
    (512, 115)
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    return n_tokens - noise + spans + 1, noise + spans + 2
