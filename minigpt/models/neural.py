"""The neural probabilistic language model: tokens become vectors, and similar vectors share what was learnt about them.

    x = (C(w_{t−1}), C(w_{t−2}), …, C(w_{t−n+1}))        y = b + W x + U tanh(d + H x)        P(w_t | …) = softmax(y)

An n-gram that was never counted tells an n-gram model nothing. Here its words have vectors, and sentences of similar
words have been seen: what follows "the cat is walking" is expected after "a dog was running" too.

Source: course B and C, "Neural language models"; Bengio et al. 2003, eq. 1 and figure 1, letters as there.
Deviations: the beginning of a text is padded with a learned vector of its own; the paper does not say what it did there.
The paper's weight decay and step sizes are the training loop's business.

Shapes: B batch, T time, V vocabulary, n order, m = d_embedding, h = d_hidden.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NeuralLM(nn.Module):
    """tokens (B, T) -> logits (B, T, V): logits[:, t] scores token t + 1 given the last n − 1 tokens, t included.

    `generator` fixes the initial weights; without it they come from torch's global generator.
    """

    context_length = 512                    # how much it is handed at once; it looks at the last order − 1 tokens only

    def __init__(self, order: int, vocab_size: int, d_embedding: int, d_hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        if order < 2 or min(vocab_size, d_embedding, d_hidden) < 1:
            raise ValueError(f"order must be at least 2 (one token of context) and the sizes at least 1; got order {order}, "
                             f"vocab_size {vocab_size}, d_embedding {d_embedding}, d_hidden {d_hidden}")
        self.order, self.vocab_size = order, vocab_size
        self.C = nn.Embedding(vocab_size + 1, d_embedding)                              # the last row stands for "before the beginning"
        self.H = nn.Linear((order - 1) * d_embedding, d_hidden)                         # its bias is d
        self.U = nn.Linear(d_hidden, vocab_size)                                        # its bias is b
        self.W = nn.Linear((order - 1) * d_embedding, vocab_size, bias=False)           # the straight way past the hidden layer
        # Vectors start small, so that what training adds is soon most of them, and tokens used alike get vectors alike;
        # H makes up for it: its sums have order 1, where tanh starts to bend.
        nn.init.normal_(self.C.weight, std=0.1, generator=generator)
        for layer, std in ((self.H, 10), (self.U, 1), (self.W, 1)):
            nn.init.normal_(layer.weight, std=std * layer.in_features**-0.5, generator=generator)
        for layer in (self.H, self.U):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        before = self.order - 2                                                         # a text's first prediction has one token to read
        padded = F.pad(tokens, (before, 0), value=self.vocab_size)                      # (B, T + n − 2)
        contexts = padded.unfold(1, self.order - 1, 1).flip(-1)                         # (B, T, n − 1), the newest first
        x = self.C(contexts).flatten(2)                                                 # (B, T, n − 1, m) -> (B, T, (n − 1)·m)
        return self.U(torch.tanh(self.H(x))) + self.W(x)                                # (B, T, V)
