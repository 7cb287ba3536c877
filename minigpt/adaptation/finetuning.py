"""Fine-tuning: a pre-trained GPT learns a task from labels, with a new matrix and three new tokens.

    P(y | x¹ … x^m) = softmax(h_l^m W_y)      L₂ = Σ log P(y | x¹ … x^m)      L₃ = L₂ + λ L₁

h_l^m is the last layer's vector at the last token, *extract*. L₁ is the language model's objective
on the same texts. Each example becomes one or several sequences of tokens, and the model itself
does not change.

Source: course A, "GPT 1"; Radford et al. 2018, §§3.2 and 3.3, eqs. 3–5, fig. 1; λ = 0.5, §4.1.
Deviations: the paper maximises sums of log-probabilities; here the losses are means of −log P, to
be minimised (L₂ over the examples, L₁ over all tokens of a batch). W_y has no bias, as in eq. 3,
although the paper's code has one. There is no dropout (see gpt.py).

Shapes: B examples, K sequences per example, T time, C = d_model, V vocabulary, Y classes.
"""
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from minigpt.models.gpt import GPT
from minigpt.text.padding import check_mask, pad
from minigpt.training.losses import causal_loss, cross_entropy

Tokens = Sequence[int]


class SpecialTokens(NamedTuple):
    """The ids of three tokens that occur in no text."""

    start: int
    delimiter: int
    extract: int


def add_tokens(gpt: GPT, n: int = 3, generator: Generator | None = None) -> GPT:
    """A copy of `gpt` with tokens V … V + n − 1, whose rows of W_e are drawn from N(0, 0.02²)."""
    if n < 1:
        raise ValueError(f"the number of new tokens must be at least 1, not {n}")
    wider = GPT(replace(gpt.config, vocab_size=gpt.config.vocab_size + n), generator)
    state = dict(gpt.state_dict())
    for name in ("token_embedding.weight", "output_embedding.weight"):  # the second if untied
        if name in state:
            new_rows = wider.state_dict()[name][-n:]                    # (n, C)
            state[name] = torch.cat([state[name].cpu(), new_rows])      # (V, C) -> (V + n, C)
    wider.load_state_dict(state)
    return wider.to(next(gpt.parameters()))         # the same device and precision


# The input transformations of fig. 1: each makes the sequences of one example.

def classification(text: Tokens, special: SpecialTokens) -> list[list[int]]:
    """One sequence: start text extract."""
    return [[special.start, *text, special.extract]]


def entailment(premise: Tokens, hypothesis: Tokens, special: SpecialTokens) -> list[list[int]]:
    """One sequence: start premise delimiter hypothesis extract."""
    return [[special.start, *premise, special.delimiter, *hypothesis, special.extract]]


def similarity(first: Tokens, second: Tokens, special: SpecialTokens) -> list[list[int]]:
    """Two sequences: start first delimiter second extract, and the same in the other order.

    >>> similarity([5, 6], [7], SpecialTokens(start=90, delimiter=91, extract=92))
    [[90, 5, 6, 91, 7, 92], [90, 7, 91, 5, 6, 92]]
    """
    return entailment(first, second, special) + entailment(second, first, special)


def multiple_choice(context: Tokens, answers: Sequence[Tokens],
                    special: SpecialTokens) -> list[list[int]]:
    """One sequence per answer: start context (document, question) delimiter answer extract."""
    return [sequence for answer in answers for sequence in entailment(context, answer, special)]


def pad_examples(examples: Sequence[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """B examples of K sequences each -> tokens and mask, (B, K, T), padded on the right."""
    counts = {len(sequences) for sequences in examples}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("all examples of a batch have the same number of sequences (or answers), "
                         f"at least one, not {sorted(counts)}")
    rows = [sequence for sequences in examples for sequence in sequences]
    tokens, mask = pad(rows, side="right", value=0)                     # (B·K, T) both
    shape = (len(examples), counts.pop())
    return tokens.unflatten(0, shape), mask.unflatten(0, shape)         # (B, K, T) both


class FineTuned(nn.Module):
    """A GPT with W_y (C, Y): tokens (B, K, T), mask (B, K, T) -> logits (B, Y).

    The K vectors h_l^m of an example are added; only similarity has more than one. `n_classes` = 1
    means multiple choice: each of the K sequences has one logit, and the logits are (B, K). `gpt`
    is trained too; its vocabulary must have the special tokens (`add_tokens`).
    """

    def __init__(self, gpt: GPT, n_classes: int, generator: Generator | None = None):
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"n_classes must be at least 1 (multiple choice), not {n_classes}")
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, n_classes, bias=False, device="cpu")      # W_yᵀ
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        self.head.to(next(gpt.parameters()))

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last layer at every position: (B, K, T) -> (B, K, T, C)."""
        if tokens.dim() != 3 or tokens.numel() == 0:
            raise ValueError("tokens are (examples, sequences, time) with at least one of each, "
                             f"not {tuple(tokens.shape)}; pad_examples makes them")
        if int(tokens.max()) >= self.gpt.config.vocab_size:
            raise ValueError(f"token {int(tokens.max())} is outside the model's vocabulary of "
                             f"{self.gpt.config.vocab_size}; add_tokens adds the special tokens")
        hidden = self.gpt.hidden(tokens.flatten(0, 1))                  # (B·K, T, C)
        return hidden.unflatten(0, tokens.shape[:2])                    # (B, K, T, C)

    def classify(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """h_l^m W_y of eq. 3: hidden (B, K, T, C), mask (B, K, T) -> (B, Y) or (B, K)."""
        check_mask(mask, hidden.shape[:-1])
        if not mask[..., 0].all() or (mask[..., 1:] > mask[..., :-1]).any():
            raise ValueError("a sequence has at least one token, and its padding is on the right; "
                             "pad_examples makes such a mask")
        extract = mask.sum(-1) - 1                                      # (B, K) index of extract
        h = hidden.take_along_dim(extract[..., None, None], dim=2).squeeze(2)       # (B, K, C)
        if self.head.out_features > 1:
            return self.head(h.sum(1))                                  # (B, C) -> (B, Y)
        if h.size(1) == 1:
            raise ValueError("with one class and one sequence there is nothing to choose; set "
                             "n_classes, or give each example several answers")
        return self.head(h).squeeze(-1)                                 # (B, K, 1) -> (B, K)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.hidden(tokens), mask)


def finetuning_loss(model: FineTuned, tokens: Tensor, mask: Tensor, labels: Tensor,
                    language_weight: float = 0.5) -> Tensor:
    """L₃ = L₂ + λ L₁ in nats, with λ = `language_weight`. If λ = 0, L₁ is not computed.

    L₂ is the mean −log P(y | x) of an example. L₁ is the mean −log P of a token that is neither
    padding nor the first of its sequence; delimiter and extract count, as in the paper's code.
    tokens (B, K, T), mask (B, K, T), labels (B,): the class, or the index of the right answer.
    """
    if not 0 <= language_weight < math.inf:
        raise ValueError(f"language_weight must be 0 or a positive number, not {language_weight}")
    hidden = model.hidden(tokens)                                       # (B, K, T, C)
    logits = model.classify(hidden, mask)                               # (B, Y) or (B, K)
    n_labels = logits.size(1)
    if labels.shape != logits.shape[:1] or not ((labels >= 0) & (labels < n_labels)).all():
        raise ValueError(f"labels are {len(logits)} numbers, one per example, from 0 to "
                         f"{n_labels - 1}, not {labels.tolist()}")
    loss = cross_entropy(logits, labels)
    if language_weight:
        next_tokens = model.gpt.unembed(hidden.flatten(0, 1))           # (B·K, T, V)
        l1 = causal_loss(next_tokens, tokens.flatten(0, 1), mask.flatten(0, 1))
        loss = loss + language_weight * l1
    return loss
