"""Prompting: the input describes the task, and the model's weights do not change.

    zero-, one-, few-shot    P(answer | instruction, k worked examples, question),  k = 0, 1, a few
    candidate scoring        answer = argmax_c log P(c | prompt),  or of its mean over c's tokens
    coreference              what "it" means = argmax_c P(sentence with c in place of "it")
    soft prompt              P(answer | e₁ … e_P, question),  where e₁ … e_P in ℝ^C are learned

Source: course C, "GPT-2: Prompt era unlocked"; course D, "Fine-tuning LLM" and "Prompt
engineering"; Brown et al. 2020 (GPT-3), fig. 2.1 and §2.4; Trinh and Le 2018 (coreference); Lester
et al. 2021 (soft prompts: the vectors are parameters; in course D a small network computes them).
Not here: the choice and order of examples; GPT-3's third score, P(c | prompt) / P(c | "answer:");
prefix-tuning, which learns vectors for every layer (Li and Liang 2021).

Shapes: B batch, T time, P prompt vectors, N candidates, C = d_model, V vocabulary.
"""
import re
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from minigpt.models.attention import KVCache
from minigpt.models.gpt import GPT
from minigpt.text.padding import check_mask, pad
from minigpt.training.losses import sequence_logprobs


def few_shot_prompt(query: str, examples: Sequence[tuple[str, str]] = (), instruction: str = "",
                    between: str = " =>", separator: str = "\n") -> str:
    """The text that a model continues: an instruction, worked examples (if any), and a question.

    It has no space at its end, because tokenizers join a space with the word after it. The answer
    therefore begins with a space.

    >>> pairs = [("sea otter", "loutre de mer"), ("mint", "menthe")]
    >>> print(few_shot_prompt("cheese", pairs, "Translate English to French:"))
    Translate English to French:
    sea otter => loutre de mer
    mint => menthe
    cheese =>
    """
    worked = [f"{question}{between} {answer}" for question, answer in examples]
    return separator.join([instruction] * bool(instruction) + worked + [query + between])


def score_candidates(model, prompt: Sequence[int], candidates: Sequence[Sequence[int]],
                     per_token: bool = False) -> Tensor:
    """log P(candidate | prompt) in nats for each of N candidates, all given as token ids: (N,).

    The candidate with the largest score is the answer. Each further token lowers the score, so it
    favours short candidates. `per_token` divides it by the number of the candidate's tokens.
    """
    n_tokens = [len(c) for c in candidates]
    if not len(prompt) or not n_tokens or not all(n_tokens):
        raise ValueError("give a prompt and candidates of at least one token each, not a prompt of "
                         f"{len(prompt)} tokens and candidates of {n_tokens} tokens")
    if len(prompt) + max(n_tokens) > model.context_length:
        raise ValueError(f"a prompt of {len(prompt)} tokens and a candidate of {max(n_tokens)} do "
                         f"not fit the context of {model.context_length}")
    tokens, mask = pad([[*prompt, *c] for c in candidates], side="right", value=0)      # (N, T)
    mask[:, :len(prompt)] = False                   # the prompt's own probability does not count
    device = next(model.parameters()).device
    tokens, mask = tokens.to(device), mask.to(device)
    with torch.no_grad():
        scores = sequence_logprobs(model(tokens), tokens, mask).cpu()   # (N,)
    return scores / torch.tensor(n_tokens) if per_token else scores


def substitute(sentence: str, candidates: Sequence[str], pronoun: str = "it") -> list[str]:
    """The sentence with each candidate in place of the pronoun, which it must contain once.

    >>> substitute("It fell in because it was deep.", ["the pit", "the ball"])
    ['It fell in because the pit was deep.', 'It fell in because the ball was deep.']
    """
    parts = re.split(rf"\b{re.escape(pronoun)}\b", sentence)
    if len(parts) != 2:
        raise ValueError(f"the sentence must contain {pronoun!r} once as a word, not "
                         f"{len(parts) - 1} times: {sentence!r}")
    return [candidate.join(parts) for candidate in candidates]


def resolve_pronoun(model, encode: Callable[[str], list[int]], sentence: str,
                    candidates: Sequence[str], start_token: int, pronoun: str = "it") -> Tensor:
    """log P(sentence) with each candidate in place of the pronoun: (N,).

    The whole sentence counts, because a candidate changes the probability of the words after it.
    As in training, `start_token` stands before and after the sentence.
    """
    sentences = [[*encode(text), start_token] for text in substitute(sentence, candidates, pronoun)]
    return score_candidates(model, [start_token], sentences)


class SoftPrompt(nn.Module):
    """A frozen GPT with P learned vectors before every text: tokens (B, T) -> logits (B, T, V).

    The constructor freezes the model, so `embeddings` (P, C) is the only parameter that trains.
    logits[:, t] predict token t + 1 as in GPT, so losses and `generate` need no change.
    """

    def __init__(self, model: GPT, embeddings: Tensor):
        super().__init__()
        shape, C, longest = tuple(embeddings.shape), model.config.d_model, model.context_length
        if len(shape) != 2 or shape[1] != C or not 0 < shape[0] < longest:
            raise ValueError(f"a soft prompt is (vectors, {C}), with at least one vector and fewer "
                             f"than the context of {longest}, not {shape}")
        self.model = model.requires_grad_(False)
        self.embeddings = nn.Parameter(embeddings.detach().clone())

    @classmethod
    def from_words(cls, model: GPT, tokens: Tensor) -> "SoftPrompt":
        """A soft prompt that starts as a hard prompt: the embeddings of `tokens` (P,)."""
        return cls(model, model.token_embedding.weight[tokens])

    @classmethod
    def random(cls, model: GPT, length: int, generator: Generator | None = None) -> "SoftPrompt":
        """A soft prompt that starts at random, as large as the model's embeddings."""
        words = model.token_embedding.weight                            # (V, C)
        noise = torch.randn(length, words.size(1), generator=generator)
        return cls(model, noise.to(words) * words.std())

    @property
    def context_length(self) -> int:
        """How many tokens fit after the prompt vectors."""
        return self.model.context_length - len(self.embeddings)

    def new_cache(self) -> list[KVCache]:
        return self.model.new_cache()

    def forward(self, tokens: Tensor, cache: list[KVCache] | None = None,
                mask: Tensor | None = None) -> Tensor:
        """As in GPT; `mask` (B, S) is for the S tokens so far, without the prompt vectors."""
        B, T = tokens.shape
        P = len(self.embeddings)
        cached = cache[0].length if cache else 0
        prefix = None if cached else self.embeddings        # a filled cache contains the prompt
        if mask is not None:
            check_mask(mask, (B, T + (cached - P if cached else 0)))
            mask = torch.cat([mask.new_ones(B, P), mask], dim=1)        # (B, S) -> (B, P + S)
        hidden = self.model.hidden(tokens, cache, prefix, mask)     # (B, P + T, C) or (B, T, C)
        return self.model.unembed(hidden[:, -T:])                       # (B, T, V)
