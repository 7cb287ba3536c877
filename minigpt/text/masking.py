"""BERT's training data: hidden tokens to guess, and pairs of texts that may follow each other.

    masked language model       the cat sat on the mat   →   the [MASK] sat on the mat
                                asked at that place: cat
    next-sentence prediction    [CLS] S₁ [SEP] S₂ [SEP]
                                asked at [CLS]: does S₂ follow S₁?

The model is asked for 15 % of the tokens, chosen at random. A chosen token x becomes

    [MASK] with probability 0.8,    a random token with 0.1,    x itself with 0.1

Source: Devlin et al. 2019, §3.1 (both tasks) and appendices A.1 and A.2; course D, "MLM training"
and "Next sentence prediction (NSP) training". The course says "at least 15 %"; the paper says 15 %.
That special tokens are never chosen is a rule of Google's code (create_pretraining_data.py). Tokens
are chosen anew each time a text is seen, as in RoBERTa (Liu et al. 2019, §4.1, dynamic masking).
Deviations from Google's code:
- 15 % of the ordinary tokens are chosen; the code chooses 15 % of all tokens, and at most 20.
- A random token is never a special one; the code may draw any entry of the vocabulary.
- A pair is as long as its document and the context allow; the code shortens one pair in ten.
- A pair that is too long loses the beginning of S₁ and the end of S₂; the code removes tokens from
  the front or the back at random.
- A random S₂ follows a cut of its document; in the code it begins with any sentence.

Shapes: B batch, N pairs, T time, V vocabulary.
"""
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from minigpt.text.padding import pad


def mask_tokens(tokens: Tensor, special: Sequence[int], mask_id: int, vocab_size: int,
                generator: Generator, rate: float = 0.15, variant: str = "exact",
                shares: Sequence[float] = (0.8, 0.1, 0.1)) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (B, T) -> corrupted, labels (the original tokens), chosen (bool), each (B, T).

    `special` has the ids that are never chosen and never drawn ([CLS], [SEP], [PAD], …; [MASK] is
    always one of them). `shares` divides the chosen tokens into masked, random and kept.
    `variant` is "exact", which chooses round(rate · n), at least 1, of the n ordinary tokens of
    each row; or "bernoulli", which chooses each token with probability `rate`, independently.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is the share of tokens to choose, above 0 and up to 1, not {rate}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError("shares (masked, random, kept) must be 0 or more and add up to 1, "
                         f"not {shares}")
    ids = sorted({*special, mask_id})
    if not 0 <= ids[0] <= ids[-1] < vocab_size or len(ids) == vocab_size:
        raise ValueError(f"special must be ids from 0 to {vocab_size - 1}, and not all; got {ids}")
    is_special = torch.zeros(vocab_size, dtype=torch.bool)                          # (V,)
    is_special[ids] = True
    may_choose = ~is_special.to(tokens.device)[tokens]                              # (B, T)
    chosen = choose(may_choose, rate, variant, generator)                           # (B, T)

    ordinary = (~is_special).nonzero()[:, 0]                                        # (V − special,)
    index = torch.randint(len(ordinary), tokens.shape, generator=generator)         # (B, T)
    random = ordinary[index].to(tokens.device)                                      # (B, T)
    u = torch.rand(tokens.shape, generator=generator).to(tokens.device)             # (B, T)
    becomes_mask = chosen & (u < shares[0])
    becomes_random = chosen & (u >= shares[0]) & (u < shares[0] + shares[1])
    corrupted = tokens.masked_fill(becomes_mask, mask_id).where(~becomes_random, random)
    return corrupted, tokens.clone(), chosen


def choose(may_choose: Tensor, rate: float, variant: str, generator: Generator) -> Tensor:
    """Which tokens to ask for, among those where `may_choose` is True: (B, T) -> (B, T), bool."""
    u = torch.rand(may_choose.shape, generator=generator).to(may_choose.device)     # (B, T)
    if variant == "bernoulli":
        return may_choose & (u < rate)
    if variant != "exact":
        raise ValueError(f"variant is exact or bernoulli, not {variant!r}")
    n = may_choose.sum(1, keepdim=True)                                             # (B, 1)
    count = (rate * n.double()).round().clamp(min=1)                                # (B, 1)
    u = u.masked_fill(~may_choose, 2.0)             # ranked last, because all others are below 1
    rank = u.argsort(1).argsort(1)                  # (B, T): 0 for the smallest u of a row
    return may_choose & (rank < count)


def sentence_pairs(documents: Sequence[Sequence[Sequence[int]]], n: int, cls_id: int, sep_id: int,
                   pad_id: int, context_length: int, generator: Generator) -> tuple[Tensor, ...]:
    """n new pairs for next-sentence prediction, from documents -> sentences -> ids.

    A document is cut between two of its sentences, and S₁ is everything before the cut. S₂ is
    everything after it; for half of the pairs it is what follows a cut of *another* document.

        tokens      [CLS] S₁ [SEP] S₂ [SEP] [PAD] …         (N, T), T the length of the longest
        segments      0   0    0   1    1     0             (N, T)
        mask          ✓   ✓    ✓   ✓    ✓                   (N, T) bool: False at padding
        labels      0 if S₂ follows S₁, 1 if not            (N,)
    """
    if len(documents) < 2 or any(len(document) < 2 or not all(document) for document in documents):
        raise ValueError("pairs need at least 2 documents, each of at least 2 sentences and none "
                         f"of these empty; got {len(documents)} documents")
    if context_length < 5:
        raise ValueError("[CLS] S₁ [SEP] S₂ [SEP] takes at least 5 tokens, "
                         f"and context_length is {context_length}")
    rows, first_lengths, labels = [], [], []
    # Five uniforms per pair: which document, where to cut it, which label, and the same of S₂.
    uniforms = torch.rand(n, 5, dtype=torch.float64, generator=generator).tolist()
    for which, cut, label, which_other, cut_other in uniforms:
        home = int(which * len(documents))
        first, second = cut_in_two(documents[home], cut)
        labels.append(int(label < 0.5))
        if labels[-1]:
            step = 1 + int(which_other * (len(documents) - 1))          # any document but this one
            _, second = cut_in_two(documents[(home + step) % len(documents)], cut_other)
        first, second = shorten(first, second, context_length - 3)
        rows.append([cls_id, *first, sep_id, *second, sep_id])
        first_lengths.append(len(first) + 2)
    tokens, mask = pad(rows, side="right", value=pad_id)                            # (N, T) each
    columns = torch.arange(tokens.size(1))                                          # (T,)
    segments = (columns >= torch.tensor(first_lengths)[:, None]) & mask             # (N, T)
    return tokens, segments.long(), mask, torch.tensor(labels)


def cut_in_two(document: Sequence[Sequence[int]], u: float) -> tuple[list[int], list[int]]:
    """The tokens before and after a cut between two sentences, which u in [0, 1) chooses."""
    n = 1 + int(u * (len(document) - 1))                                # sentences before the cut
    before, after = document[:n], document[n:]
    return [i for sentence in before for i in sentence], [i for sentence in after for i in sentence]


def shorten(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Shortens the longer of two texts, around the cut, until both together have `room` tokens.

    >>> shorten([1, 2, 3, 4, 5], [6, 7], room=5)
    ([3, 4, 5], [6, 7])
    """
    if len(first) + len(second) <= room:
        return first, second
    keep = max(room - len(second), min(len(first), room // 2))          # of S₁
    return first[len(first) - keep:], second[:room - keep]
