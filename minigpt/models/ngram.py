"""N-gram: predict a token from counts of what followed the last n − 1 tokens in a training text.

    P_n(w | h) = ( c(hw) + κ d(h) P_{n−1}(w | h′) ) / ( c(h) + κ d(h) )            P_0(w) = 1/V

h is the context of n − 1 tokens, and h′ is h without its oldest token. c(hw) counts how often token
w followed h, c(h) = Σ_w c(hw), and d(h) is the number of different tokens that followed h. If many
different tokens followed h, a new token is likely to follow it too, so h′ gets more weight.

Source: Witten and Bell 1991, method C, written as a recursion by Chen and Goodman 1998, §2.
Deviations: the method has κ = 1. With κ = 0 the formula is c(hw) / c(h), the maximum-likelihood
estimate: the loss is infinite if a text has an n-gram that was never counted. After a context that
was never counted, P_n = P_{n−1} for any κ. No token for the beginning of a text is added.
Not here: Kneser–Ney smoothing, which predicts better and takes more code.

Shapes: B batch, T time, V vocabulary, N tokens of text, U different contexts, G different n-grams.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.models.checks import check_sizes
from minigpt.text.representations import check_ids


class NGramTable(NamedTuple):
    """The n-grams of one length, sorted, so that those with the same context come together."""

    contexts: Tensor                    # (U,) the code of each context, increasing
    first: Tensor                       # (U,) where the context's n-grams begin in `tokens`
    followers: Tensor                   # (U,) d(h)
    tokens: Tensor                      # (G,) w, the last token of each n-gram
    counts: Tensor                      # (G,) c(hw)


class NGram:
    """tokens (B, T) -> log-probabilities (B, T, V): [:, t] scores token t + 1 given the last n − 1.

    >>> text = torch.tensor([0, 1, 0, 1, 0, 2])         # 1 followed 0 twice, and 2 followed 0 once
    >>> NGram(order=2, vocab_size=3, smoothing=0.0).fit(text)(torch.tensor([[0]])).exp()
    tensor([[[0.0000, 0.6667, 0.3333]]])
    """

    context_length = 512                # tokens to read at once; only the last n − 1 are looked at

    def __init__(self, order: int, vocab_size: int, smoothing: float = 1.0):
        """`order` is n: 1 ignores the context, 2 looks at one token. `smoothing` is κ."""
        check_sizes(order=order, vocab_size=vocab_size)
        if not 0 <= smoothing <= 1e9:                       # above it κ d(h) could overflow float32
            raise ValueError(f"smoothing must be a number from 0 to 1e9, not {smoothing}")
        if vocab_size**order > 2**63:
            raise ValueError(f"int64 cannot number {vocab_size}^{order} n-grams; take a smaller "
                             "order or vocabulary")
        self.order, self.vocab_size, self.smoothing = order, vocab_size, smoothing
        self.tables: list[NGramTable] = []                  # tables[k] has contexts of k tokens

    def fit(self, tokens: Tensor) -> "NGram":
        """Counts the n-grams of lengths 1 to `order` in one text (N,), and returns the model."""
        if tokens.dim() != 1 or len(tokens) < self.order:
            raise ValueError(f"fit counts one text of shape (N,) with N at least {self.order}, "
                             f"the order; this one has shape {tuple(tokens.shape)}")
        V, tables = self.vocab_size, []
        for n in range(1, self.order + 1):
            codes = self.codes(tokens.unfold(0, n, 1))      # (N − n + 1, n) -> (N − n + 1,)
            ngrams, counts = codes.unique(return_counts=True)                       # (G,), sorted
            contexts, d = (ngrams // V).unique_consecutive(return_counts=True)      # (U,), (U,)
            tables.append(NGramTable(contexts, d.cumsum(0) - d, d, ngrams % V, counts))
        self.tables = tables
        return self

    def codes(self, grams: Tensor) -> Tensor:
        """The number whose digits in base V are n tokens, the oldest first: (..., n) -> (...)."""
        check_ids(grams, self.vocab_size)
        code = grams.new_zeros(grams.shape[:-1], dtype=torch.int64)
        for i in range(grams.size(-1)):
            code = code * self.vocab_size + grams[..., i]
        return code

    def find(self, contexts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The table's row of each context, given as a code, and whether it was counted: (...)."""
        if not self.tables:
            raise ValueError("nothing has been counted yet; call fit(tokens) first")
        known = self.tables[length].contexts
        row = torch.searchsorted(known, contexts).clamp(max=len(known) - 1)
        return row, known[row] == contexts

    def probabilities(self, contexts: Tensor, length: int) -> Tensor:
        """P(w | h) for the codes of different contexts of `length` tokens: (U,) -> (U, V)."""
        # 1. P_{n−1}(w | h′). The oldest token is the leading digit of the code.
        V, device = self.vocab_size, contexts.device
        p = torch.full((len(contexts), V), 1 / V, device=device)
        if length:
            shorter, back = (contexts % V ** (length - 1)).unique(return_inverse=True)
            p = self.probabilities(shorter, length - 1)[back]                       # (U, V)
        # 2. The n-grams after each context h that was counted, and the number `owner` of their h.
        row, counted = self.find(contexts, length)
        table, seen, row = self.tables[length], counted.nonzero()[:, 0], row[counted]   # (U_seen,)
        d = table.followers[row]                                                    # (U_seen,)
        owner = torch.arange(len(d), device=device).repeat_interleave(d)            # (Σd,)
        within = torch.arange(len(owner), device=device) - (d.cumsum(0) - d)[owner]     # 0 … d − 1
        ngram = table.first[row][owner] + within                                    # (Σd,)
        # 3. P_n(w | h), where h was counted. Elsewhere P_n = P_{n−1}.
        counts, weight = table.counts[ngram].to(p), self.smoothing * d              # weight: κ d(h)
        total = p.new_zeros(len(d)).index_add(0, owner, counts) + weight            # c(h) + κ d(h)
        p[seen] *= (weight / total)[:, None]                                        # (U_seen, V)
        p[seen[owner], table.tokens[ngram]] += counts / total[owner]
        return p

    def next_token_probabilities(self, contexts: Tensor) -> Tensor:
        """P(w | h) for contexts h of k < n tokens, the newest last: (..., k) -> (..., V)."""
        length = contexts.size(-1)
        if length >= self.order:
            raise ValueError(f"an n-gram of order {self.order} looks at {self.order - 1} tokens "
                             f"at most, not {length}; give the last {self.order - 1}")
        different, back = self.codes(contexts).unique(return_inverse=True)
        return self.probabilities(different, length)[back]

    def contexts(self, tokens: Tensor) -> list[Tensor]:
        """The contexts of all positions of tokens (B, T), in order and grouped by length.

        The first ones are shorter: (B, 1, 1), …, (B, 1, n − 2), then (B, T − n + 2, n − 1).
        """
        T = tokens.size(1)
        length = min(self.order - 1, T)
        windows = tokens.unfold(1, length, 1)[:, :T]        # for length 0, T + 1 windows: drop one
        return [*(tokens[:, None, :t] for t in range(1, length)), windows]

    def __call__(self, tokens: Tensor) -> Tensor:
        pieces = [self.next_token_probabilities(c) for c in self.contexts(tokens)]  # (B, t, V) each
        return torch.cat(pieces, dim=1).log()

    def seen(self, tokens: Tensor) -> Tensor:
        """Whether the context of each position was counted: (B, T) -> (B, T) bool."""
        contexts = self.contexts(tokens)
        return torch.cat([self.find(self.codes(c), c.size(-1))[1] for c in contexts], dim=1)
