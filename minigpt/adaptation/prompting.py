"""Prompting: the task goes into the input, and no weight moves.

    zero-, one-, few-shot     P(answer | instruction, k worked examples, question),  k = 0, 1, a few
    candidate scoring         answer = argmax_c log P(c | prompt),  or of its mean over c's tokens
    coreference               what "it" is = argmax_c P(the sentence with c in the place of "it")
    soft prompt               P(answer | e₁ … e_P, question),  eᵢ free vectors in ℝ^C: the only parameters that are learned

Source: courses C and D, "Prompting"; Brown et al. 2020 (GPT-3), fig. 2.1 and §2.4; Trinh and Le 2018 (substitute and score);
Lester et al. 2021 (soft prompts at the input, initialised from words or at random).
Not here: choosing or ordering the examples, GPT-3's third score P(c | prompt) / P(c | "answer:"), and prefix-tuning, which
learns vectors for every layer (Li and Liang 2021).

Shapes: B batch, T time, P prompt vectors, N candidates, C = d_model, V vocabulary.
"""
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minigpt.models.attention import KVCache
from minigpt.models.gpt import GPT
from minigpt.training.losses import sequence_logprobs


def few_shot_prompt(
    query: str, examples: Sequence[tuple[str, str]] = (), instruction: str = "", between: str = " =>", separator: str = "\n",
) -> str:
    """Instruction, worked examples, question: the text that a model is asked to continue. No example is zero-shot, one is one-shot.

    It ends where the answer's own space begins, because tokenizers keep a space with the word after it: continue it with " " + answer.

    >>> print(few_shot_prompt("cheese", [("sea otter", "loutre de mer"), ("mint", "menthe")], "Translate English to French:"))
    Translate English to French:
    sea otter => loutre de mer
    mint => menthe
    cheese =>
    """
    worked = [f"{question}{between} {answer}" for question, answer in examples]
    return separator.join([instruction] * bool(instruction) + worked + [query + between])


def score_candidates(model, prompt: Sequence[int], candidates: Sequence[Sequence[int]], per_token: bool = False) -> Tensor:
    """log P(candidate | prompt) in nats for each candidate, (N,): token ids in, the prompt with at least one of them.

    Without `per_token` this is the probability itself, and the right one to compare if exactly the candidates are possible; but
    each further token costs, so it favours short answers. `per_token` divides by the candidate's length (Brown et al. 2020, §2.4).
    """
    if not len(prompt) or not candidates or not all(map(len, candidates)):
        raise ValueError(f"scoring needs a prompt and candidates of at least one token each, not a prompt of {len(prompt)} "
                         f"and candidates of {[len(c) for c in candidates]} tokens")
    lengths = torch.tensor([len(c) for c in candidates])
    start, end = len(prompt), len(prompt) + int(lengths.max())
    tokens = torch.tensor([[*prompt, *c, *[0] * (end - start - len(c))] for c in candidates])       # (N, T), padded where no one looks
    time = torch.arange(end)
    mask = (time >= start) & (time < start + lengths[:, None])          # (N, T)
    device = next(model.parameters()).device
    with torch.no_grad():
        scores = sequence_logprobs(model(tokens.to(device)), tokens.to(device), mask.to(device)).cpu()
    return scores / lengths if per_token else scores


def substitute(sentence: str, candidates: Sequence[str], pronoun: str = "it") -> list[str]:
    """The sentence with each candidate in the pronoun's place; ValueError unless the pronoun stands in it once, as a word.

    >>> substitute("It fell into the pit because it was deep.", ["the pit", "the ball"])
    ['It fell into the pit because the pit was deep.', 'It fell into the pit because the ball was deep.']
    """
    place = rf"\b{re.escape(pronoun)}\b"
    if (times := len(re.findall(place, sentence))) != 1:
        raise ValueError(f"{pronoun!r} must stand once in the sentence, and stands {times} times in {sentence!r}")
    return [re.sub(place, lambda _: candidate, sentence) for candidate in candidates]


def resolve_pronoun(
    model, encode: Callable[[str], list[int]], sentence: str, candidates: Sequence[str], start_token: int, pronoun: str = "it",
) -> Tensor:
    """log P(sentence) with each candidate in the pronoun's place, (N,): its argmax is what the model takes the pronoun for.

    `encode` turns text into token ids; `start_token` stands before the first, and closes the sentence, as the end of a text does
    in training. The whole sentence is scored, so a candidate is judged by all that it makes more or less likely after it.
    """
    sentences = [[*encode(text), start_token] for text in substitute(sentence, candidates, pronoun)]
    return score_candidates(model, [start_token], sentences)


class SoftPrompt(nn.Module):
    """A frozen GPT that reads P learned vectors before every text: tokens (B, T) -> logits (B, T, V), as the GPT itself.

    Freezing is done here, on the model that is handed in: its parameters stop requiring gradients, and `embeddings` (P, C) is
    all that an optimizer moves. logits[:, t] still scores token t + 1, so every loss and `generate` work unchanged.
    """

    def __init__(self, model: GPT, embeddings: Tensor):
        super().__init__()
        if embeddings.dim() != 2 or embeddings.size(1) != model.config.d_model or not 0 < len(embeddings) < model.context_length:
            raise ValueError(f"a soft prompt is (vectors, {model.config.d_model}), with fewer vectors than the context of {model.context_length}, "
                             f"not {tuple(embeddings.shape)}")
        self.model = model.requires_grad_(False)
        self.embeddings = nn.Parameter(embeddings.detach().clone())

    @classmethod
    def from_words(cls, model: GPT, tokens: Tensor) -> "SoftPrompt":
        """Starts as a hard prompt: the embeddings of the tokens (P,)."""
        return cls(model, model.token_embedding.weight[tokens])

    @classmethod
    def random(cls, model: GPT, length: int, generator: torch.Generator | None = None) -> "SoftPrompt":
        """Starts as noise, as large as the model's own embeddings are."""
        words = model.token_embedding.weight
        return cls(model, torch.randn(length, words.size(1), generator=generator).to(words) * words.std())

    @property
    def context_length(self) -> int:
        """What is left for tokens."""
        return self.model.context_length - len(self.embeddings)

    def new_cache(self) -> list[KVCache]:
        return self.model.new_cache()

    def forward(self, tokens: Tensor, cache: list[KVCache] | None = None, mask: Tensor | None = None) -> Tensor:
        first = not cache or cache[0].length == 0                       # a cache that is not empty holds the prompt already
        if mask is not None:                                            # (B, S) -> (B, P + S): the prompt is not padding
            mask = torch.cat([mask.new_ones(len(mask), len(self.embeddings)), mask], dim=1)
        hidden = self.model.hidden(tokens, cache, self.embeddings if first else None, mask)             # (B, P + T, C), or (B, T, C)
        return self.model.unembed(hidden[:, -tokens.size(1):])          # (B, T, V)
