"""Masking: BERT's 80/10/10 and sentence pairs.

Source: Devlin et al. 2019, §3.1 and appendices A.1, A.2.
"""
from collections.abc import Sequence

import torch
from torch import Tensor


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
