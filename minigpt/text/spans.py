"""T5's training data: spans of tokens are removed from a text, and the model has to write them.

    text        Thank you for inviting me to your party last week .
    input       Thank you <X> me to your party <Y> week . </s>
    target      <X> for inviting <Y> last <Z> </s>

Each span leaves a sentinel of its own in the input: <X>, <Y>, <Z>, … are the last ids of the
vocabulary, counted downwards. The target has each span after its sentinel, and one more sentinel to
close. 15 % of the tokens are removed, in spans of 3 tokens on average:

    noise tokens n = round(0.15 · T),     spans = round(n / 3)

Source: Raffel et al. 2020, fig. 2 (input and target), §3.1.4 (15 %) and §3.3.4 (spans of 3 tokens);
course D, "T5". How the spans are drawn is in the released code (`random_spans_noise_mask`): kept
and removed runs alternate, a kept one first, and every such division is equally likely.
Deviation: the closing sentinel is that of fig. 2. The released code writes a sentinel for each kept
run; its texts always end with a removed run, so it writes no sentinel after the last.
"""
from collections.abc import Sequence

from torch import Generator, randperm


def span_counts(
    n_tokens: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> tuple[int, int]:
    """(noise tokens, noise spans) of a text. Both depend on its length only; nothing is random.

    At least one token is kept and one removed; but a text of a single token is kept.

    >>> span_counts(512), span_counts(20), span_counts(1)
    ((77, 26), (3, 1), (0, 0))
    """
    if n_tokens < 1 or not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError(
            "span corruption needs at least 1 token, a noise density above 0 and below 1, and "
            f"spans of at least 1 token, not {n_tokens}, {noise_density} and {mean_span_length}")
    if n_tokens == 1:
        return 0, 0
    noise = min(max(round(n_tokens * noise_density), 1), n_tokens - 1)
    spans = min(round(noise / mean_span_length), noise, n_tokens - noise)
    return noise, max(1, spans)


def random_segments(n_items: int, n_segments: int, generator: Generator) -> list[int]:
    """The lengths of `n_segments` segments that add up to `n_items`.

    None is empty. Each way to cut the items is equally likely.
    """
    cuts = sorted((randperm(n_items - 1, generator=generator)[:n_segments - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, n_items])]


def span_mask(
    n_tokens: int, generator: Generator, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> list[bool]:
    """For each token, whether it is noise: kept and removed runs alternate, a kept one first.

    A text of fewer than 31 tokens has a single span, and then nothing is random: the span is the
    end of the text.

    >>> "".join("x" if noise else "." for noise in span_mask(20, Generator()))
    '.................xxx'
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    if spans == 0:
        return [False] * n_tokens
    removed = random_segments(noise, spans, generator)
    kept = random_segments(n_tokens - noise, spans, generator)
    return [flag for k, r in zip(kept, removed) for flag in [False] * k + [True] * r]


def corrupt_spans(
    tokens: Sequence[int], mask: Sequence[bool], vocab_size: int, end_id: int
) -> tuple[list[int], list[int]]:
    """(input, target) of a text; `mask` is True at the tokens to remove, and `end_id` is </s>.

    The sentinels are vocab_size − 1, vocab_size − 2, … The text may hold any other id, </s> and
    padding included. ValueError if it holds one of the sentinels that it needs.

    >>> corrupt_spans([5, 6, 7, 8, 9], [False, True, True, False, True], vocab_size=32, end_id=1)
    ([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1])
    """
    if len(tokens) != len(mask) or not tokens:
        raise ValueError("a text has at least one token, and its mask one entry for each; "
                         f"got {len(tokens)} tokens and {len(mask)} entries")
    kept, removed, sentinel = [], [], vocab_size - 1
    for i, (token, noise) in enumerate(zip(tokens, mask)):
        if not noise:
            kept.append(token)
            continue
        if i == 0 or not mask[i - 1]:                           # a new span begins
            kept.append(sentinel)
            removed.append(sentinel)
            sentinel -= 1
        removed.append(token)
    if max(tokens) >= sentinel:
        raise ValueError(f"the text holds id {max(tokens)}, but {sentinel} to {vocab_size - 1} are "
                         "its sentinels; raise vocab_size, and use its last ids for them only")
    return kept + [end_id], removed + [sentinel, end_id]


def split_at_sentinels(tokens: Sequence[int], vocab_size: int) -> list[list[int]]:
    """The runs before, between and after the sentinels vocab_size − 1, vocab_size − 2, …

    A sentinel that is not the next one in this order is treated as an ordinary token.

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


def restore(
    input: Sequence[int], target: Sequence[int], vocab_size: int, end_id: int
) -> list[int]:
    """The text of which `corrupt_spans` made this input and target.

    ValueError if input and target do not belong together.

    >>> restore([5, 31, 8, 30, 1], [31, 6, 7, 30, 9, 29, 1], vocab_size=32, end_id=1)
    [5, 6, 7, 8, 9]
    """
    kept = split_at_sentinels(input[:-1], vocab_size)
    removed = split_at_sentinels(target[:-1], vocab_size)               # [], spans, []
    if list(input[-1:]) != [end_id] or list(target[-1:]) != [end_id]:
        raise ValueError(f"input and target both end with </s>, which is {end_id}; "
                         f"got {list(input[-1:])} and {list(target[-1:])} at their ends")
    if len(removed) != len(kept) + 1 or removed[0] or removed[-1]:
        raise ValueError(
            f"an input with {len(kept) - 1} sentinels needs a target with the same sentinels, each "
            "followed by its span, and one more sentinel at the end; this target has "
            f"{len(removed) - 1} sentinels")
    return [token for k, r in zip(kept, removed[1:]) for token in k + r]


def expected_lengths(
    n_tokens: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> tuple[int, int]:
    """Tokens of the input and of the target that a text of `n_tokens` becomes, </s> included.

    They are exact, not averages. The released code takes 568 tokens to fill an input of 512, and
    gets a target of 114, because it has no closing sentinel:

    >>> expected_lengths(568)
    (512, 115)
    """
    noise, spans = span_counts(n_tokens, noise_density, mean_span_length)
    return n_tokens - noise + spans + 1, noise + spans + 2
