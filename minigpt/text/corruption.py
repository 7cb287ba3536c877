"""Corruption: damage a text on purpose, and ask for what stood there. The labels are free, so any text is a lesson.

BERT   hide single tokens:     the cat sat on the mat   ->   the [MASK] sat on the mat        asked at that place: cat
       pair two stretches:     [CLS] S₁ [SEP] S₂ [SEP]                                        asked at [CLS]: did S₂ follow S₁?
T5     drop whole spans:       Thank you <X> me to your party <Y> week . </s>                 asked: <X> for inviting <Y> last <Z> </s>

Source: Devlin et al. 2019, §3.1 and appendices A.1, A.2; course C and D, "BERT". One mask a visit and not one for all visits
is RoBERTa's "dynamic masking" (Liu et al. 2019, §4.1). Some notes say "at least 15 %" of the tokens; it is 15 %.
Deviations: a random token is an ordinary one, where Google's code may draw [SEP] too; a stretch is taken whole up to context_length,
where Google's code shortens one pair in ten on purpose; what is too long loses S₁'s beginning and S₂'s end, there front or back at
random; and a random S₂ begins behind a cut, there anywhere.
T5: Raffel et al. 2020, fig. 2 and §3.3.4; how spans are drawn, its code's `random_spans_noise_mask`: kept and dropped runs in turn,
15 % dropped in spans of 3 on average. Each span leaves a sentinel of its own behind, and the target says what was there.
The closing sentinel <Z> is the figure's. The released code writes a sentinel for each run that is *kept*; as its noise always
ends the text, none is left to close with. Both append </s> to input and target.

Shapes: B batch, T time, N pairs.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

# BERT: masked tokens


def mask_tokens(
    tokens: Tensor, special: Sequence[int], mask_id: int, vocab_size: int, generator: torch.Generator,
    rate: float = 0.15, variant: str = "exact", shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses 15 % of the ordinary tokens; of these 80 % become [MASK], 10 % a random token, and 10 % stay as they are.

    tokens (B, T) -> corrupted (B, T), labels (B, T): the tokens as they were, chosen (B, T) bool: where a label counts.
    The tokens themselves are not changed, and each call draws afresh from `generator`.

    `special` are ids never chosen and never drawn ([CLS], [SEP], [PAD], …; [MASK] is one of them, named or not).
    `variant`: "exact" chooses round(rate·n), at least 1, of a row's n ordinary tokens (Google's code takes the share of all tokens,
    [CLS] and [SEP] counted, and no more than 20); "bernoulli" lets each token decide for itself, so the count is binomial, and may be 0.
    `shares` is how the chosen ones divide into masked, random and kept.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is the share of tokens to choose, above 0 and up to 1, not {rate}")
    if variant not in ("exact", "bernoulli"):
        raise ValueError(f"variant is exact or bernoulli, not {variant!r}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares (masked, random, kept) must be 0 or more and add up to 1, not {shares}")
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"tokens run from 0 to {vocab_size - 1} here, and these from {tokens.min()} to {tokens.max()}")
    special = sorted({*special, mask_id})
    if not 0 <= special[0] <= special[-1] < vocab_size:
        raise ValueError(f"special tokens must be ids from 0 to {vocab_size - 1}, not {special}")
    is_special = torch.zeros(vocab_size, dtype=torch.bool)
    is_special[special] = True
    if is_special.all():
        raise ValueError("every token is special, so none could be chosen or drawn; name only [CLS], [SEP] and their like")

    def uniform() -> Tensor:
        return torch.rand(tokens.shape, generator=generator).to(tokens.device)

    may_choose = ~is_special.to(tokens.device)[tokens]                          # (B, T)
    if variant == "bernoulli":
        chosen = may_choose & (uniform() < rate)
    else:
        n = may_choose.sum(1, keepdim=True)                                     # (B, 1)
        count = (rate * n.double()).round().clamp(min=1)                        # (B, 1)
        lots = uniform().masked_fill(~may_choose, 2.0)                          # who may not be chosen draws last
        rank = lots.argsort(1).argsort(1)                                       # (B, T): 0 for a row's smallest lot, 1 for the next, …
        chosen = may_choose & (rank < count)

    ordinary = (~is_special).nonzero()[:, 0]                                    # (V - specials)
    drawn = ordinary[torch.randint(len(ordinary), tokens.shape, generator=generator)].to(tokens.device)     # (B, T)
    fate = uniform()
    corrupted = tokens.masked_fill(chosen & (fate < shares[0]), mask_id)
    corrupted = torch.where(chosen & (fate >= shares[0]) & (fate < shares[0] + shares[1]), drawn, corrupted)
    return corrupted, tokens.clone(), chosen


# BERT: sentence pairs


def sentence_pairs(
    documents: Sequence[Sequence[Sequence[int]]], n: int, cls_id: int, sep_id: int, pad_id: int, context_length: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """n fresh pairs for next-sentence prediction, out of documents -> sentences -> ids.

    A document is cut between two of its sentences: S₁ is all before the cut. S₂ is all after it, or, for half of the pairs,
    what follows a cut through *another* document. A "sentence" is thus a stretch of text, as in the paper.

        tokens      [CLS] S₁ [SEP] S₂ [SEP] [PAD] …         (N, T), T the longest pair's length
        segments      0   0    0   1    1     0             (N, T)
        mask          ✓   ✓    ✓   ✓    ✓                   (N, T) bool: False at padding
        labels      0 where S₂ follows S₁, 1 where not      (N)

    Where a pair is too long, the longer of the two gives way: S₁ at its beginning, S₂ at its end, so the joint stays.
    """
    if len(documents) < 2 or any(len(document) < 2 for document in documents):
        shortest = min((len(document) for document in documents), default=0)
        raise ValueError(f"pairs need at least 2 documents of at least 2 sentences; got {len(documents)}, the shortest with {shortest}")
    if n < 1 or any(not sentence for document in documents for sentence in document):
        raise ValueError(f"pairs need sentences of at least one token, and a number of them from 1 on, not {n}")
    if context_length < 5:
        raise ValueError(f"[CLS] S₁ [SEP] S₂ [SEP] takes 5 tokens at least, and context_length is {context_length}")
    rows, first_lengths, labels = [], [], []
    for which, cut, coin, elsewhere, cut_elsewhere in torch.rand(n, 5, dtype=torch.float64, generator=generator).tolist():
        home = int(which * len(documents))
        source, before = documents[home], 1 + int(cut * (len(documents[home]) - 1))             # sentences before the cut: 1 … all but one
        first = [token for sentence in source[:before] for token in sentence]
        labels.append(int(coin < 0.5))
        if labels[-1]:
            source = documents[(home + 1 + int(elsewhere * (len(documents) - 1))) % len(documents)]         # any but this one
            before = 1 + int(cut_elsewhere * (len(source) - 1))
        second = [token for sentence in source[before:] for token in sentence]
        excess = len(first) + len(second) + 3 - context_length
        if excess > 0:
            # The longer loses until both are equal, then each in turn: what is left of S₁ is as much as S₂ leaves, or half.
            keep = max(context_length - 3 - len(second), min(len(first), (context_length - 3) // 2))
            first, second = first[len(first) - keep:], second[:context_length - 3 - keep]
        rows.append([cls_id, *first, sep_id, *second, sep_id])
        first_lengths.append(len(first) + 2)
    lengths = torch.tensor([len(row) for row in rows])                                          # (N)
    place = torch.arange(int(lengths.max()))                                                    # (T)
    mask = place < lengths[:, None]                                                             # (N, T)
    tokens = torch.full(mask.shape, pad_id)
    tokens[mask] = torch.tensor([token for row in rows for token in row])
    segments = ((place >= torch.tensor(first_lengths)[:, None]) & mask).long()                  # (N, T)
    return tokens, segments, mask, torch.tensor(labels)


# T5: spans


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
