"""N-gram: predict a token from counts of what followed the last n − 1 tokens in a training text.

    P_n(w | h) = ( c(hw) + κ d(h) P_{n−1}(w | h′) ) / ( c(h) + κ d(h) )            P_0(w) = 1/V

h is the context of n − 1 tokens, and h′ is h without its oldest token. c(hw) counts how often token
w followed h, c(h) = Σ_w c(hw), and d(h) is the number of different tokens that followed h. If many
different tokens followed h, a new token is likely to follow it too, so h′ gets more weight. The
numerator sums to c(h) + κ d(h) over all w, so P sums to 1.

Source: Witten and Bell 1991, method C, written as a recursion by Chen and Goodman 1998, §2.
Deviations: the method has κ = 1. With κ = 0 the formula is c(hw) / c(h), the maximum-likelihood
estimate: an n-gram that was never counted has probability 0, and one such n-gram in a held-out text
makes its loss infinite. A context that was never counted has c = d = 0; then P_n = P_{n−1} for
any κ. The first tokens of an input have fewer than n − 1 tokens before them, and are predicted
from those; no token for the beginning of a text is added.
Not here: Kneser–Ney smoothing. It predicts better and takes more code: its lower orders count in
how many contexts a token appeared.

Shapes: B batch, T time, V vocabulary, N tokens of training text, U different contexts, G different
n-grams.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.models.checks import check_sizes
from minigpt.text.representations import check_ids

LARGEST_SMOOTHING = 1e9                 # above it κ d(h) could overflow float32


class NGramTable(NamedTuple):
    """The n-grams of one length, sorted, so that those with the same context come together."""

    contexts: Tensor                    # (U,) the code of each context, increasing
    first: Tensor                       # (U,) where the context's n-grams begin in `tokens`
    followers: Tensor                   # (U,) d(h)
    tokens: Tensor                      # (G,) w, the last token of each n-gram
    counts: Tensor                      # (G,) c(hw)


class NGram:
    """tokens (B, T) -> logits (B, T, V), which are log-probabilities.

    logits[:, t] scores token t + 1 given the last n − 1 tokens, those from t − n + 2 to t.

    >>> text = torch.tensor([0, 1, 0, 1, 0, 2])         # 1 followed 0 twice, and 2 followed 0 once
    >>> NGram(order=2, vocab_size=3, smoothing=0.0).fit(text)(torch.tensor([[0]])).exp()
    tensor([[[0.0000, 0.6667, 0.3333]]])
    """

    context_length = 512                # tokens to read at once; only the last n − 1 are looked at

    def __init__(self, order: int, vocab_size: int, smoothing: float = 1.0):
        """`order` is n: 1 ignores the context, 2 looks at one token. `smoothing` is κ."""
        check_sizes(order=order, vocab_size=vocab_size)
        if not 0 <= smoothing <= LARGEST_SMOOTHING:
            raise ValueError(f"smoothing must be a number from 0 to {LARGEST_SMOOTHING:g}, not "
                             f"{smoothing}")
        if vocab_size**order > 2**63:
            largest = next(n for n in range(order, 0, -1) if vocab_size**n <= 2**63)
            raise ValueError(f"order {order} over {vocab_size} tokens has {vocab_size}^{order} "
                             f"n-grams, more than int64 can number; take order {largest} or less, "
                             "or a smaller vocabulary")
        self.order, self.vocab_size, self.smoothing = order, vocab_size, smoothing
        self.tables: list[NGramTable] = []                  # tables[k] has contexts of k tokens

    def fit(self, tokens: Tensor) -> "NGram":
        """Counts the n-grams of lengths 1 to `order` in one text (N,), and returns the model."""
        if tokens.dim() != 1 or len(tokens) < self.order:
            raise ValueError(f"fit counts one text of shape (N,) with N at least {self.order}, "
                             f"the order; this one has shape {tuple(tokens.shape)}")
        tables = []
        for n in range(1, self.order + 1):
            codes = self.codes(tokens.unfold(0, n, 1))      # (N − n + 1, n) -> (N − n + 1,)
            ngrams, counts = codes.unique(return_counts=True)                       # (G,), sorted
            contexts, followers = (ngrams // self.vocab_size).unique_consecutive(
                return_counts=True
            )                                                                       # (U,), (U,)
            first = followers.cumsum(0) - followers
            last_tokens = ngrams % self.vocab_size
            tables.append(NGramTable(contexts, first, followers, last_tokens, counts))
        self.tables = tables
        return self

    def codes(self, grams: Tensor) -> Tensor:
        """One number for each sequence of n tokens: (..., n) -> (...).

        Its digits in base V are the tokens, the oldest first.
        """
        check_ids(grams, self.vocab_size)
        code = grams.new_zeros(grams.shape[:-1], dtype=torch.int64)
        for i in range(grams.size(-1)):
            code = code * self.vocab_size + grams[..., i]
        return code

    def find(self, contexts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Looks up the codes of contexts of `length` tokens: (...) -> (...), (...) bool.

        Returns the row of each context in the table of its length, and whether it was counted.
        """
        if not self.tables:
            raise ValueError("nothing has been counted yet; call fit(tokens) first")
        known = self.tables[length].contexts
        row = torch.searchsorted(known, contexts).clamp(max=len(known) - 1)
        return row, known[row] == contexts

    def ngrams_after(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The counted n-grams after some contexts, given by their rows (U,) in the table.

        Returns for each n-gram which of the U contexts it belongs to, its last token w and its
        count c(hw): (Σd,) three times, where d is the number of n-grams after a context.
        """
        table = self.tables[length]
        d = table.followers[rows]                                                   # (U,)
        owner = torch.arange(len(d), device=d.device).repeat_interleave(d)          # (Σd,)
        begin = d.cumsum(0) - d                             # (U,) where an owner's n-grams begin
        within = torch.arange(len(owner), device=d.device) - begin[owner]           # 0 … d − 1
        ngram = table.first[rows][owner] + within
        return owner, table.tokens[ngram], table.counts[ngram]

    def probabilities(self, contexts: Tensor, length: int) -> Tensor:
        """P(w | h) for the codes of different contexts of `length` tokens: (U,) -> (U, V)."""
        # 1. P_{n−1}(w | h′). The oldest token is the leading digit of the code.
        if length == 0:
            uniform = 1 / self.vocab_size
            p = torch.full((len(contexts), self.vocab_size), uniform, device=contexts.device)
        else:
            codes = contexts % self.vocab_size ** (length - 1)
            shorter, back = codes.unique(return_inverse=True)
            p = self.probabilities(shorter, length - 1)[back]                       # (U, V)
        # 2. P_n(w | h), where h was counted. Elsewhere P_n = P_{n−1}.
        row, counted = self.find(contexts, length)
        seen, row = counted.nonzero()[:, 0], row[counted]                           # (U_seen,)
        owner, tokens, counts = self.ngrams_after(row, length)
        weight = self.smoothing * self.tables[length].followers[row]                # κ d(h)
        counts = counts.to(p)
        total = p.new_zeros(len(row)).index_add(0, owner, counts) + weight          # c(h) + κ d(h)
        p[seen] *= (weight / total)[:, None]                                        # (U_seen, V)
        p[seen[owner], tokens] += counts / total[owner]
        return p

    def next_token_probabilities(self, contexts: Tensor) -> Tensor:
        """P(w | h) for contexts of k ≤ n − 1 tokens, the newest last: (..., k) -> (..., V).

        Contexts of k = 0 tokens give P_1, the distribution of a token without context.
        """
        length = contexts.size(-1)
        if length >= self.order:
            raise ValueError(f"an n-gram of order {self.order} looks at {self.order - 1} tokens "
                             f"at most, not {length}; give the last {self.order - 1}")
        different, back = self.codes(contexts).unique(return_inverse=True)
        return self.probabilities(different, length)[back]

    def contexts(self, tokens: Tensor) -> list[Tensor]:
        """The context of each position of tokens (B, T), grouped by length.

        The first n − 2 positions have shorter contexts: (B, 1, 1), (B, 1, 2), …, (B, 1, n − 2).
        The other positions come together, (B, T − n + 2, n − 1).
        """
        if tokens.dim() != 2 or tokens.size(1) == 0:
            raise ValueError("tokens are (batch, time) with at least one token, not "
                             f"{tuple(tokens.shape)}")
        length = min(self.order - 1, tokens.size(1))
        shorter = [tokens[:, None, :t] for t in range(1, length)]
        ends = torch.arange(max(length, 1), tokens.size(1) + 1, device=tokens.device)
        back = torch.arange(-length, 0, device=tokens.device)                       # (n − 1,)
        columns = ends[:, None] + back                                  # (T − n + 2, n − 1)
        return [*shorter, tokens[:, columns]]

    def __call__(self, tokens: Tensor) -> Tensor:
        pieces = [self.next_token_probabilities(c) for c in self.contexts(tokens)]  # (B, t, V) each
        return torch.cat(pieces, dim=1).log()

    def seen(self, tokens: Tensor) -> Tensor:
        """Whether the context of each position was counted: (B, T) -> (B, T) bool."""
        pieces = [self.find(self.codes(c), c.size(-1))[1] for c in self.contexts(tokens)]
        return torch.cat(pieces, dim=1)
