"""Instruction tuning: dialogues by hand, the loss by loops, and models with known answers."""
import math

import pytest
import torch

from minigpt.adaptation.instruction import answers, dialogues, prompt, sft_loss
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.worlds.assistant import END, TOKENIZER, Instruction, encode, sample_instruction

VOCABULARY = TOKENIZER.vocabulary
ASSISTANT, COMMA = (VOCABULARY.index(word) for word in ("assistant", ","))
STEAL = Instruction("misdeed", "please help me steal the jar.", "sorry", "that is wrong")
SUM = Instruction("sum", "how much is one plus one?", "gladly", "one plus one is two")


def draw_many(n: int, seed: int = 0) -> list[Instruction]:
    generator = torch.Generator().manual_seed(seed)
    return [sample_instruction(generator) for _ in range(n)]


def make_model(context_length: int) -> GPT:
    """Weights of order 1 in double precision."""
    model = GPT(GPTConfig.modern(TOKENIZER.vocab_size, context_length, 1, 2, 8)).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model


# Dialogues and their loss

def test_dialogues_by_hand():
    tokens, mask = dialogues([STEAL, SUM])
    spoken = ("<end> user : please help me steal the jar . assistant : "
              "sorry , that is wrong . <end>").split()
    assert tokens.shape == mask.shape == (2, 21) and mask.dtype == torch.bool
    assert [VOCABULARY[i] for i in tokens[0]] == spoken + ["<end>"] * 2
    assert mask[0].tolist() == [False] * 12 + [True] * 7 + [False] * 2
    counted = [VOCABULARY[i] for i in tokens[1][mask[1]]]
    assert counted == "gladly , one plus one is two . <end>".split()
    assert prompt(STEAL) == tokens[0, :12].tolist()


def test_the_loss_is_a_loop_over_answers_and_nothing_else_counts():
    drawn = draw_many(6)
    tokens, mask = dialogues(drawn)
    model = make_model(tokens.size(1))
    total, n = 0.0, 0
    for i in drawn:
        before = [END, *encode(f"user: {i.request} assistant:")]
        answer = [*encode(i.answer), END]
        for t, token in enumerate(answer):
            scores = model(torch.tensor([before + answer[:t]]))[0, -1].tolist()
            total += math.log(sum(map(math.exp, scores))) - scores[token]
            n += 1
    assert sft_loss(model, tokens, mask).item() == pytest.approx(total / n) and mask.sum() == n


def test_a_loss_over_nothing_or_with_a_mask_of_numbers_is_refused():
    tokens, mask = dialogues([STEAL])
    model = make_model(tokens.size(1))
    one = torch.zeros_like(mask)
    with pytest.raises(ValueError, match="average"):
        sft_loss(model, tokens, one)
    one[0, -1] = True                               # one counted token is the least
    assert sft_loss(model, tokens, one).isfinite()
    with pytest.raises(ValueError, match="bool"):
        sft_loss(model, tokens, mask.long())


# Answers

class Parrot:
    """A model that says the same after every "assistant:". It records the masks that it gets."""

    context_length = 64

    def __init__(self, speech: list[int]):
        self.speech, self.masks = speech, []

    def parameters(self):
        yield torch.zeros(1)

    def next_token(self, ids: list[int]) -> int:
        return self.speech[len(ids) - 2 - ids.index(ASSISTANT)]

    def __call__(self, tokens, mask=None):
        self.masks.append(mask)
        logits = torch.zeros(*tokens.shape, len(VOCABULARY))
        for row, ids in zip(logits, tokens.tolist()):
            row[-1, self.next_token(ids)] = 1.0
        return logits


class Echo(Parrot):
    """Says the last word of the request, then stops."""

    def next_token(self, ids):
        at = ids.index(ASSISTANT)
        return ids[at - 2] if len(ids) == at + 2 else END


def test_answers_say_whether_they_stopped():
    drawn = draw_many(9)
    parrot = Parrot([*encode("that is fine."), END])
    assert answers(parrot, drawn) == [("that is fine.", True)] * 9
    assert answers(parrot, drawn, max_new_tokens=5) == [("that is fine.", True)] * 9
    assert answers(parrot, drawn, max_new_tokens=4) == [("that is fine.", False)] * 9
    assert answers(Parrot([COMMA] * 20), drawn, max_new_tokens=3) == [(",,,", False)] * 9


def test_answers_keep_their_order_and_the_models_are_told_of_padding():
    drawn = draw_many(9)
    echo = Echo([])
    assert [text for text, _ in answers(echo, drawn)] == \
        [i.request.strip("?.").split()[-1] for i in drawn]
    lengths = [len(prompt(i)) for i in drawn]
    assert echo.masks[0].sum(1).tolist() == lengths and echo.masks[0][:, -1].all()


def test_answers_of_a_batch_are_those_of_each_instruction_alone():
    drawn, model = draw_many(6), make_model(64)
    assert answers(model, drawn) == [answers(model, [i])[0] for i in drawn]


def test_no_instruction_is_refused():
    for act in (lambda: dialogues([]), lambda: answers(make_model(64), [])):
        with pytest.raises(ValueError, match="at least one"):
            act()
