"""Fine-tuning: a language model that has read a lot learns a task from a few labels, by one new matrix and three new tokens.

    P(y | x¹ … x^m) = softmax(h_l^m W_y)          L₂ = Σ log P(y | x¹ … x^m)          L₃ = L₂ + λ L₁

h_l^m is the last layer's vector at the last token, *extract*; L₁ is the language model's own objective, on the same texts.
Every task becomes sequences of tokens (each example one or several of them), so that nothing in the model has to change:

    classification     start text extract
    entailment         start premise delimiter hypothesis extract
    similarity         start A delimiter B extract,  start B delimiter A extract         their two h_l^m are added
    multiple choice    start context delimiter answerₖ extract, for each answer k        softmax over k of one number h_l^m W_y each

Source: course A, "GPT-1"; Radford et al. 2018, §§3.2 and 3.3, eqs. 3–5, fig. 1. λ = 0.5 there (§4.1).
Deviations: the losses are means to be made small (L₂ of the examples, L₁ of all tokens of a batch) where the paper writes sums
to be made large; W_y has no bias, as in eq. 3, though the paper's code gives it one; no dropout (see gpt.py).

Shapes: B examples, K sequences of an example, T time, C = d_model, V vocabulary with the new tokens, Y classes.
"""
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minigpt.models.gpt import GPT
from minigpt.training.losses import causal_loss, cross_entropy


class SpecialTokens(NamedTuple):
    """The ids of the three tokens that no text holds."""

    start: int
    delimiter: int
    extract: int


def add_tokens(gpt: GPT, n: int = 3, generator: torch.Generator | None = None) -> GPT:
    """A copy of `gpt` that knows n more tokens, numbered V, V + 1, …: n new rows of W_e, drawn from N(0, 0.02). `gpt` stays as it is."""
    wider = GPT(replace(gpt.config, vocab_size=gpt.config.vocab_size + n), generator)
    state = dict(gpt.state_dict())
    new_rows = wider.token_embedding.weight[-n:].detach()               # (n, C)
    state["token_embedding.weight"] = torch.cat([state["token_embedding.weight"].cpu(), new_rows])      # (V + n, C)
    wider.load_state_dict(state)
    return wider.to(next(gpt.parameters()))                             # the same device and precision


# Input transformations (fig. 1): token ids in, and a list of an example's sequences out.

def classification(text: Sequence[int], special: SpecialTokens) -> list[list[int]]:
    """One sequence: start text extract.

    >>> classification([5, 6], SpecialTokens(start=90, delimiter=91, extract=92))
    [[90, 5, 6, 92]]
    """
    return [[special.start, *text, special.extract]]


def entailment(premise: Sequence[int], hypothesis: Sequence[int], special: SpecialTokens) -> list[list[int]]:
    """One sequence: start premise delimiter hypothesis extract.

    >>> entailment([5, 6], [7], SpecialTokens(start=90, delimiter=91, extract=92))
    [[90, 5, 6, 91, 7, 92]]
    """
    return [[special.start, *premise, special.delimiter, *hypothesis, special.extract]]


def similarity(first: Sequence[int], second: Sequence[int], special: SpecialTokens) -> list[list[int]]:
    """Two sequences, one in each order, because neither text comes first.

    >>> similarity([5, 6], [7], SpecialTokens(start=90, delimiter=91, extract=92))
    [[90, 5, 6, 91, 7, 92], [90, 7, 91, 5, 6, 92]]
    """
    return entailment(first, second, special) + entailment(second, first, special)


def multiple_choice(context: Sequence[int], answers: Sequence[Sequence[int]], special: SpecialTokens) -> list[list[int]]:
    """A sequence for each answer; `context` is the document and the question, one after the other (or a story to be ended).

    >>> multiple_choice([5], [[6], [7, 8]], SpecialTokens(start=90, delimiter=91, extract=92))
    [[90, 5, 91, 6, 92], [90, 5, 91, 7, 8, 92]]
    """
    return [sequence for answer in answers for sequence in entailment(context, answer, special)]


def pad(examples: Sequence[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Examples of K sequences each -> tokens (B, K, T), and a mask (B, K, T) that is True on what is not padding.

    Padding stands on the right, where a causal model's tokens never look; its id is 0 because some id must stand there.
    """
    counts = {len(sequences) for sequences in examples}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"a batch holds examples of one task, each with as many sequences as the others, not {sorted(counts)}; "
                         "give multiple-choice examples the same number of answers")
    if not all(len(sequence) for sequences in examples for sequence in sequences):
        raise ValueError("a sequence is empty: it has nothing to read a class from; put it through an input transformation first")
    T = max(len(sequence) for sequences in examples for sequence in sequences)
    tokens = torch.tensor([[[*sequence, *[0] * (T - len(sequence))] for sequence in sequences] for sequences in examples])
    lengths = torch.tensor([[len(sequence) for sequence in sequences] for sequences in examples])       # (B, K)
    return tokens, torch.arange(T) < lengths[..., None]


class FineTuned(nn.Module):
    """A GPT and W_y (C, Y): tokens (B, K, T), mask (B, K, T) -> logits (B, Y), or with one class (B, K).

    An example's K vectors h_l^m are added, which only matters for similarity. With `n_classes` = 1 there would be nothing to
    choose: then the K sequences are the choices (multiple choice), and each one's single number is its logit.
    `gpt` is trained along; it must know the special tokens (`add_tokens`).
    """

    def __init__(self, gpt: GPT, n_classes: int, generator: torch.Generator | None = None):
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"n_classes is the number of classes, or 1 for multiple choice, not {n_classes}")
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, n_classes, bias=False, device="cpu")      # its weight is W_yᵀ
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        self.head.to(next(gpt.parameters()))

    def classify(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """softmax's argument in eq. 3: hidden (B, K, T, C), mask (B, K, T) -> (B, Y) or (B, K)."""
        extract = mask.sum(-1) - 1                                      # (B, K) where the last real token stands
        at_extract = hidden.take_along_dim(extract[..., None, None], dim=2)[:, :, 0]            # (B, K, 1, C) -> (B, K, C)
        if self.head.out_features == 1:
            return self.head(at_extract)[..., 0]                        # (B, K, 1) -> (B, K)
        return self.head(at_extract.sum(1))                             # (B, C) -> (B, Y)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last layer at every position: (B, K, T) -> (B, K, T, C)."""
        if int(tokens.max()) >= self.gpt.config.vocab_size:
            raise ValueError(f"token {int(tokens.max())} is outside the model's vocabulary of {self.gpt.config.vocab_size}; "
                             "make room for the special tokens with add_tokens")
        return self.gpt.hidden(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])             # (B·K, T, C) -> (B, K, T, C)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.hidden(tokens), mask)


def finetuning_loss(model: FineTuned, tokens: Tensor, mask: Tensor, labels: Tensor, language_weight: float = 0.5) -> Tensor:
    """L₃ = L₂ + λ L₁ in nats: L₂ the mean −log P(y|x) of an example, L₁ the mean −log P(token) of one that is not padding, λ `language_weight`.

    tokens (B, K, T), mask (B, K, T), labels (B): the class, or which of the K is right. L₁ counts every token after start,
    delimiter and extract among them, as in the paper's code; with λ = 0 it is not computed.
    """
    hidden = model.hidden(tokens)                                       # (B, K, T, C): read once, used twice
    loss = cross_entropy(model.classify(hidden, mask), labels)
    if language_weight:
        logits = model.gpt.unembed(hidden.flatten(0, 1))                # (B·K, T, V)
        loss = loss + language_weight * causal_loss(logits, tokens.flatten(0, 1), mask.flatten(0, 1))
    return loss
