"""The neural probabilistic language model: predict a token from the vectors of the last ones.

    x = (C(w_{t−1}), C(w_{t−2}), …, C(w_{t−n+1}))                  the vectors of the last tokens
    y = b + W x + U tanh(d + H x)                                  the logits of w_t

An n-gram model knows nothing about an n-gram that it has not counted. This model gives similar
vectors to words that are used alike, so it learns about all of them from a text with one of them.

Source: course C, "Neural probabilistic LMs"; Bengio et al. 2003, eq. 1, with the paper's letters.
Deviation: a learned vector pads the beginning of a text; the paper does not say what stands there.
Not here: the paper's weight decay and learning-rate schedule.

Shapes: B batch, T time, V vocabulary, n order, m = d_embedding, h = d_hidden.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.models.checks import check_sizes
from minigpt.text.representations import check_ids


class NeuralLM(nn.Module):
    """tokens (B, T) -> logits (B, T, V), where [:, t] scores token t + 1 given the last n − 1."""

    context_length = 512                # tokens to read at once; only the last n − 1 are looked at

    def __init__(self, order: int, vocab_size: int, d_embedding: int, d_hidden: int,
                 generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(order=order, vocab_size=vocab_size, d_embedding=d_embedding, d_hidden=d_hidden)
        if order == 1:
            raise ValueError("order must be at least 2, so that there is a token of context, not 1")
        self.order, self.vocab_size = order, vocab_size
        self.C = nn.Embedding(vocab_size + 1, d_embedding)  # row V stands for "before the text"
        self.H = nn.Linear((order - 1) * d_embedding, d_hidden)         # its bias is d
        self.U = nn.Linear(d_hidden, vocab_size)                        # its bias is b
        self.W = nn.Linear((order - 1) * d_embedding, vocab_size, bias=False)
        # The vectors start small, so that training soon decides most of them. H has larger weights
        # in return, so that the inputs of tanh have a standard deviation near 1.
        nn.init.normal_(self.C.weight, std=0.1, generator=generator)
        for layer, std in ((self.H, 10), (self.U, 1), (self.W, 1)):
            nn.init.normal_(layer.weight, std=std * layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.H.bias)
        nn.init.zeros_(self.U.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        check_ids(tokens, self.vocab_size)                  # id V is a row of C, but not a token
        # The first prediction has one token before it, so n − 2 places are missing.
        padded = F.pad(tokens, (self.order - 2, 0), value=self.vocab_size)  # (B, T + n − 2)
        contexts = padded.unfold(1, self.order - 1, 1)                  # (B, T, n − 1)
        x = self.C(contexts.flip(-1)).flatten(2)            # newest token first: (B, T, (n − 1)·m)
        return self.U(torch.tanh(self.H(x))) + self.W(x)                # (B, T, V)
