"""N-gram: count what followed the last n − 1 tokens; where the counts are thin, lean on the counts of a shorter context.

    P_n(w | h) = ( c(hw) + κ d(h) P_{n−1}(w | h′) ) / ( c(h) + κ d(h) )                P_0(w) = 1/V

h is the context of n − 1 tokens and h′ the same without its oldest; c(hw) is how often w followed h, c(h) = Σ_w c(hw), and
d(h) how many different tokens followed h. A context that was followed by many different tokens is one to expect news
from, so it hands more of its probability down. Summed over w the numerator is c(h) + κ d(h): P sums to 1 by construction.

Source: course C, "N-grams"; Witten and Bell 1991, method C, written as a recursion by Chen and Goodman 1998, §2 (κ = 1).
κ → 0 gives the plain ratio c(hw) / c(h), the maximum-likelihood estimate: it holds all that was not counted to be
impossible, so one new pair in a held-out text makes its loss infinite. A context never seen (c = d = 0) is P_{n−1} for any κ.
Deviation: the first tokens of an input have fewer than n − 1 before them, and are predicted from those there are; no
token for "beginning" is added.
Not here: Kneser–Ney, whose lower orders count in how many contexts a token appeared; it is the better one, and longer.

Shapes: B batch, T time, V vocabulary, U different contexts, N tokens of training text.
"""
import math

import torch
from torch import Tensor

from minigpt.text.representations import refuse_unknown_ids


class NGram:
    """tokens (B, T) -> logits (B, T, V), which are log-probabilities: logits[:, t] scores token t + 1 given the last n − 1 tokens.

    >>> tokens = torch.tensor([0, 1, 0, 1, 0, 2])
    >>> NGram(order=2, vocab_size=3, smoothing=0.0).fit(tokens)(torch.tensor([[0]])).exp()      # 1 followed 0 twice, 2 once
    tensor([[[0.0000, 0.6667, 0.3333]]])
    """

    context_length = 512                    # how much it is handed at once; it looks at the last order − 1 tokens only

    def __init__(self, order: int, vocab_size: int, smoothing: float = 1.0):
        """`order` is n: 1 ignores the context, 2 looks one token back. `smoothing` is κ ≥ 0."""
        if order < 1 or vocab_size < 1:
            raise ValueError(f"order and vocab_size must be at least 1, not {order} and {vocab_size}")
        if not 0 <= smoothing < math.inf:
            raise ValueError(f"smoothing must be a number, 0 or more, not {smoothing}")
        if vocab_size**order > 2**63:
            largest = next(n for n in range(order, 0, -1) if vocab_size**n <= 2**63)
            raise ValueError(f"order {order} over {vocab_size} tokens has {vocab_size}^{order} n-grams, and an int64 numbers 2^63; "
                             f"take order {largest} or less, or a smaller vocabulary")
        self.order, self.vocab_size, self.smoothing = order, vocab_size, smoothing
        self.tables: list[tuple[Tensor, ...]] = []          # for each length of context, what `fit` counted

    def fit(self, tokens: Tensor) -> "NGram":
        """Counts every 1-, 2-, …, n-gram of a text (N,)."""
        if tokens.dim() != 1 or len(tokens) < self.order:
            raise ValueError(f"fit counts one text of shape (N,) with N at least {self.order}, the order; this one is {tuple(tokens.shape)}")
        self.tables = []
        for n in range(1, self.order + 1):
            ngrams, counts = self.codes(tokens.unfold(0, n, 1)).unique(return_counts=True)      # sorted, so one context's lie together
            contexts, followers = (ngrams // self.vocab_size).unique_consecutive(return_counts=True)        # (U,), (U,): d(h)
            start = followers.cumsum(0) - followers                                             # where each context's n-grams begin
            self.tables.append((contexts, start, followers, ngrams % self.vocab_size, counts))
        return self

    def codes(self, grams: Tensor) -> Tensor:
        """One whole number for each run of tokens, its digits in base V, the oldest first: (..., n) -> (...)."""
        refuse_unknown_ids(grams, self.vocab_size)
        code = grams.new_zeros(grams.shape[:-1], dtype=torch.int64)
        for i in range(grams.size(-1)):
            code = code * self.vocab_size + grams[..., i]
        return code

    def find(self, contexts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Where each context code stands among those counted, and whether it is there: (...) -> (...), (...)."""
        if not self.tables:
            raise ValueError("nothing has been counted yet; call fit(tokens) first")
        known = self.tables[length][0]
        place = torch.searchsorted(known, contexts).clamp(max=len(known) - 1)
        return place, known[place] == contexts

    def probabilities(self, contexts: Tensor, length: int) -> Tensor:
        """P(w | h) for codes of different contexts of one length: (U,) -> (U, V)."""
        if length:                                          # h′: the oldest token is the leading digit
            shorter, back = (contexts % self.vocab_size ** (length - 1)).unique(return_inverse=True)
            p = self.probabilities(shorter, length - 1)[back]                                   # (U′, V) -> (U, V)
        else:
            p = torch.full((len(contexts), self.vocab_size), 1 / self.vocab_size, device=contexts.device)
        place, seen = self.find(contexts, length)
        rows, place = seen.nonzero()[:, 0], place[seen]                                         # only these have anything to add
        _, start, followers, tokens, counts = self.tables[length]
        start, d = start[place], followers[place]
        # Each context has its own number of n-grams, lying side by side: list them all, and in `owner` whose they are.
        owner = torch.arange(len(d), device=d.device).repeat_interleave(d)                      # (Σ d)
        listed = start[owner] + torch.arange(len(owner), device=d.device) - (d.cumsum(0) - d)[owner]
        c = counts[listed].to(p)
        total = p.new_zeros(len(d)).index_add(0, owner, c) + self.smoothing * d                 # c(h) + κ d(h)
        p[rows] *= (self.smoothing * d / total)[:, None]                                        # (U_seen, V)
        p[rows[owner], tokens[listed]] += c / total[owner]
        return p

    def next_token_probabilities(self, contexts: Tensor) -> Tensor:
        """P(w | h) for contexts of k ≤ n − 1 tokens, the newest last: (..., k) -> (..., V). k = 0 asks for P_1."""
        length = contexts.size(-1)
        if length >= self.order:
            raise ValueError(f"an n-gram of order {self.order} looks at {self.order - 1} tokens at most, not {length}; "
                             f"give the last {self.order - 1}")
        different, back = self.codes(contexts).unique(return_inverse=True)
        return self.probabilities(different, length)[back]

    def contexts(self, tokens: Tensor) -> list[Tensor]:
        """What each position looks at: each of the first few by itself (B, 1, t), the rest together (B, T − n + 2, n − 1)."""
        if tokens.dim() != 2 or tokens.size(1) == 0:
            raise ValueError(f"tokens are (batch, time) with at least one token, not {tuple(tokens.shape)}")
        length = min(self.order - 1, tokens.size(1))
        pieces = [tokens[:, None, :t] for t in range(1, length)]
        ends = torch.arange(max(length, 1), tokens.size(1) + 1, device=tokens.device)
        columns = ends[:, None] - length + torch.arange(length, device=tokens.device)           # (T − n + 2, n − 1)
        return pieces + [tokens[:, columns]]

    def __call__(self, tokens: Tensor) -> Tensor:
        pieces = [self.next_token_probabilities(c) for c in self.contexts(tokens)]              # (B, t, V) each
        return torch.cat(pieces, dim=1).log()

    def seen(self, tokens: Tensor) -> Tensor:
        """Whether the context that each position predicts from was ever counted: (B, T) -> (B, T) bool."""
        return torch.cat([self.find(self.codes(c), c.size(-1))[1] for c in self.contexts(tokens)], dim=1)
