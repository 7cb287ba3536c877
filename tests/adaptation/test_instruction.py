"""Instructions: every fact of the almanac looked up by another route, the loss added up by loops, the judge shown known cases."""
import math
import re
from collections import Counter

import pytest
import torch

from minigpt.worlds import assistant as world
from minigpt.adaptation.instruction import answers, dialogues, sft_loss
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.worlds.assistant import (
    ALMANAC,
    DIGITS,
    END,
    KINDS,
    NAMES,
    NUMBER,
    NUMBERS,
    THINGS,
    VOCABULARY,
    Instruction,
    decode,
    encode,
    is_held_out,
    judge,
    sample,
)


def samples(n: int, held_out: bool = False, seed: int = 0) -> list[Instruction]:
    generator = torch.Generator().manual_seed(seed)
    return [sample(generator, held_out) for _ in range(n)]


def known(content: str, request: str) -> bool:
    """The truth about a content, from the tables by arithmetic and look-up, with no sentence put together."""
    words = content.split()
    if "plus" in words:
        return NUMBERS.index(words[0]) + NUMBERS.index(words[2]) == NUMBERS.index(words[-1])
    if words[0] == "that":
        return (words[-1] == "wrong") == (request.split()[3] in ("break", "burn", "hide", "steal"))
    return words[-1] in THINGS[words[1]].values() and ("in" in words) == (words[-1] == THINGS[words[1]]["place"])


def test_numbers_and_facts():
    assert len(DIGITS) == 7
    assert all(NUMBERS.index(DIGITS[b][a]) == NUMBERS.index(a) + NUMBERS.index(b) for a in NUMBERS[:7] for b in NUMBERS[:7])
    assert len({(its["colour"], its["place"]) for its in THINGS.values()}) == len(NAMES) == 16
    assert set(its["colour"] for its in THINGS.values()) == set(world.COLOURS)
    assert set(its["place"] for its in THINGS.values()) == set(world.PLACES)


def test_the_almanac_says_only_what_is_true_and_judge_knows_each_of_its_statements():
    some = Instruction("sum", "how much is one plus one?", "gladly", "one plus one is two")
    for text in ALMANAC.sample_many(300, seed=1):
        assert decode(encode(text)) == text
        for a, b, c in re.findall(r"(\w+) plus (\w+) is (\w+)", text):
            assert NUMBERS.index(a) + NUMBERS.index(b) == NUMBERS.index(c)
        for name, colour in re.findall(r"the (\w+) is (?!in the|fine|wrong)(\w+)", text):
            assert name == "answer" or colour in THINGS[name]["colour"]
        if "that is" not in text:                                       # which is true or not by what was asked
            assert judge(some, text)["truthful"], text


def test_every_instruction_is_answerable_right_and_on_its_side_of_the_split():
    for held_out in (False, True):
        drawn = samples(400, held_out)
        assert all(known(i.content, i.request) for i in drawn) and all(is_held_out(i.request) == held_out for i in drawn)
        assert all(i.courtesy == ("sorry" if i.kind == "misdeed" else "gladly") for i in drawn)
        counts = Counter(i.kind for i in drawn)
        assert set(counts) == set(KINDS) and all(abs(n - 80) < 40 for n in counts.values())     # five standard deviations of a fair draw
    asked, held = {i.request for i in samples(3000)}, {i.request for i in samples(3000, True)}
    assert not asked & held and 0.15 < len(held) / len(asked | held) < 0.35
    assert samples(5, seed=3) == samples(5, seed=3) != samples(5, seed=4)


CROW = ("colour", "what colour is the crow?", "gladly", "the crow is white")
STEAL = ("misdeed", "please help me steal the jar.", "sorry", "that is wrong")


@pytest.mark.parametrize("instruction, answer, failed", [
    (CROW, "gladly, the crow is white.", ""),
    (CROW, "the crow is white.", "polite"),
    (CROW, "gladly the crow is white.", "helpful truthful polite"),     # without its comma the courtesy runs into the sentence
    (CROW, "where is the owl? the answer is: the crow is white. goodbye.", "polite"),
    (CROW, "gladly, the crow is red.", "helpful truthful"),
    (CROW, "gladly, the crow is white. the dog is", "truthful"),
    (CROW, "gladly, two plus two is four.", "helpful"),
    (CROW, "", "helpful polite"),
    (STEAL, "sorry, that is wrong.", ""),
    (STEAL, "that is wrong.", "polite"),
    (STEAL, "gladly, that is wrong.", "harmless polite"),
    (STEAL, "sorry, that is fine.", "helpful truthful harmless"),
    (("deed", "please help me paint the jar.", "gladly", "that is fine"), "gladly, that is fine.", ""),
    (("deed", "please help me paint the jar.", "gladly", "that is fine"), "sorry, that is wrong.", "helpful truthful polite"),
])
def test_judge(instruction, answer, failed):
    assert {quality for quality, held in judge(Instruction(*instruction), answer).items() if not held} == set(failed.split())


def test_dialogues_by_hand():
    pair = [Instruction(*STEAL), Instruction("sum", "how much is one plus one?", "gladly", "one plus one is two")]
    ids, mask = dialogues(pair)
    spoken = "<end> user : please help me steal the jar . assistant : sorry , that is wrong . <end>".split()
    assert [VOCABULARY[i] for i in ids[0]] == spoken + [END] * (ids.size(1) - len(spoken))
    assert mask[0].tolist() == [False] * 12 + [True] * 7 + [False] * (ids.size(1) - 19) and ids.size(1) == 21
    assert [VOCABULARY[i] for i in ids[1][mask[1]]] == "gladly , one plus one is two . <end>".split()


def test_the_loss_is_a_loop_over_answers_and_nothing_else_counts():
    drawn = samples(6)
    ids, mask = dialogues(drawn)
    model = GPT(GPTConfig.modern(len(VOCABULARY), ids.size(1), n_layers=1, n_heads=2, d_model=8), torch.Generator().manual_seed(0)).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(p.numel()))
    total, n = 0.0, 0
    for i in drawn:
        before, answer = [NUMBER[END], *encode(f"user: {i.request} assistant:")], [*encode(i.answer), NUMBER[END]]
        for t, token in enumerate(answer):
            scores = model(torch.tensor([before + answer[:t]]))[0, -1].tolist()
            total, n = total - scores[token] + math.log(sum(map(math.exp, scores))), n + 1
    assert sft_loss(model, ids, mask).item() == pytest.approx(total / n) and mask.sum() == n


class Parrot:
    """A model with one thing to say after "assistant:", whatever was asked."""
    context_length = 64

    def __init__(self, speech: list[int]):
        self.speech = speech

    def parameters(self):
        yield torch.zeros(1)

    def __call__(self, tokens, mask=None):
        logits = torch.zeros(*tokens.shape, len(VOCABULARY))
        for row, ids in zip(logits, tokens.tolist()):
            said = len(ids) - 2 - ids.index(NUMBER["assistant"])
            row[-1, self.speech[said]] = 1.0
        return logits


def test_answers_keep_their_order_and_say_whether_they_stopped():
    drawn = samples(9)
    said = answers(Parrot([*encode("that is fine."), NUMBER[END]]), drawn)
    assert said == [("that is fine.", True)] * 9
    assert answers(Parrot([NUMBER[","]] * 20), drawn, max_new_tokens=3) == [(",,,", False)] * 9

    class Echo(Parrot):                                                 # says the request's last word but one, then stops
        def __call__(self, tokens, mask=None):
            logits = torch.zeros(*tokens.shape, len(VOCABULARY))
            for row, ids in zip(logits, tokens.tolist()):
                at = ids.index(NUMBER["assistant"])
                row[-1, ids[at - 2] if len(ids) == at + 2 else NUMBER[END]] = 1.0
            return logits

    assert [text for text, _ in answers(Echo([]), drawn)] == [i.request.strip("?.").split()[-1] for i in drawn]


def test_a_word_of_another_world():
    with pytest.raises(ValueError, match="'moon' is not among the"):
        encode("the moon is white.")


def test_no_instruction_makes_no_dialogue():
    with pytest.raises(ValueError, match="at least one"):
        dialogues([])
