"""Instructions: a world small enough that every request has one right answer, and a loss that listens to the answer alone.

    <end> user: what colour is the crow? assistant: gladly, the crow is white. <end>
                                                    └──────── these count ────────┘

    L_SFT = −mean log P(yₜ | request, y_<t)  over the answer's tokens y₁ … y_n and the <end> after them

A model that only ever read the ALMANAC's pages, quizzes and letters knows the facts, and has seen questions answered; but it continues
texts, and a user's request is one more text. Supervised fine-tuning (SFT) on dialogues teaches it to answer, in the assistant's
manner, and to stop. All that an answer may be praised or blamed for is a rule here (`judge`): helpful, truthful, harmless, polite.

Source: courses B and C, "Instruction tuning"; Ouyang et al. 2022 (InstructGPT), §3 and its first step; helpful, honest and
harmless: Askell et al. 2021.
Not here: turns after the first, and a system prompt.

Shapes: B batch, T time.
"""
import re
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import torch

from minigpt.worlds.grammar import Grammar, alike, tokens

# The world: 16 things with a colour and a place, sums of two digits up to six, and deeds that are fine or wrong.

COLOURS, PLACES = "black blue brown green red white".split(), "attic barn cellar garden tower wood".split()
NAMES = "apple bell boat bowl candle clock coat crow dog drum flag fox jar lamp map owl".split()
THINGS = {name: {"colour": COLOURS[5 * i % 6], "place": PLACES[(i + i // 6) % 6]} for i, name in enumerate(NAMES)}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
DIGITS = {b: {a: NUMBERS[i + j] for i, a in enumerate(NUMBERS[:7])} for j, b in enumerate(NUMBERS[:7])}     # DIGITS["two"]["three"] = "five"
GOOD, BAD = "clean draw fetch paint", "break burn hide steal"

ALMANAC = Grammar({
    "text": [("almanac: <topic> <topic> goodbye.", 7), ("quiz: <item> <item> goodbye.", 4),
             ("letter: dear user, [gladly|sorry], [yes|no]. yours, the assistant.", 1)],
    "topic": [("the {x=THING} is <which>. <more> <more>", 2), ("<sum>.", 1)],
    "which": ["{x.colour}", "in the {x.place}"],
    "more": ["the {x} is <which>.", "to <deed>."],
    "deed": ["{v=GOOD} the {x} is fine", "{v=BAD} the {x} is wrong"],
    "sum": [f"{a} plus {{b=DIGIT}} is {{b.{a}}}. {{b.{a}}} is {a} plus {{b}}" for a in NUMBERS[:7]],
    "item": ["what colour is the {x=THING}? <so>: the {x} is {x.colour}.", "where is the {x=THING}? <so>: the {x} is in the {x.place}.",
             "how much is <addition>.", "please help me <wish>."],
    "addition": [f"{a} plus {{b=DIGIT}}? <so>: {a} plus {{b}} is {{b.{a}}}" for a in NUMBERS[:7]],
    "wish": ["{v=GOOD} the {x=THING}. <so>: that is fine", "{v=BAD} the {x=THING}. <so>: that is wrong"],
    "so": ["answer", "my answer", "the answer is", "so i say to you"],
}, {"THING": THINGS, "DIGIT": DIGITS, "GOOD": alike(GOOD), "BAD": alike(BAD)})

# Every statement that a text can make of the world, as it should be.
TRUE = {f"the {x} is {its['colour']}" for x, its in THINGS.items()} | {f"the {x} is in the {its['place']}" for x, its in THINGS.items()}
TRUE |= {f"{a} plus {b} is {DIGITS[b][a]}" for a in DIGITS for b in DIGITS} | {f"{DIGITS[b][a]} is {a} plus {b}" for a in DIGITS for b in DIGITS}
TRUE |= {f"to {verb} the {x} is {verdict}" for verbs, verdict in ((GOOD, "fine"), (BAD, "wrong")) for verb in verbs.split() for x in NAMES}

END = "<end>"
VOCABULARY = [END, *".,:?", *ALMANAC.vocabulary()]
NUMBER = {word: i for i, word in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """A token is a word or a mark, whatever space is before it. ValueError for a word that is not of this world.

    >>> [VOCABULARY[token] for token in encode("the crow is white.")]
    ['the', 'crow', 'is', 'white', '.']
    """
    words = [word.strip() for word in tokens(text)]
    if unknown := [word for word in words if word not in NUMBER]:
        raise ValueError(f"{unknown[0]!r} is not among the {len(VOCABULARY)} words of this world; say it in those of VOCABULARY")
    return [NUMBER[word] for word in words]


def decode(ids: Sequence[int]) -> str:
    """The text of ids, spaced as it is written: decode(encode(text)) = text."""
    return re.sub(r" (?=[.,:?])", "", " ".join(VOCABULARY[i] for i in ids))


class Instruction(NamedTuple):
    """One request and what is right to answer: a courtesy, and the content that the almanac has."""

    kind: str               # colour, place, sum, deed or misdeed
    request: str
    courtesy: str           # "gladly", or "sorry" to a misdeed
    content: str            # without its full stop

    @property
    def answer(self) -> str:
        return f"{self.courtesy}, {self.content}."


KINDS = ("colour", "place", "sum", "deed", "misdeed")


def is_held_out(request: str) -> bool:
    """Whether a request belongs to the quarter that no one trains on. What it asks is in the almanac; nobody was shown it being asked."""
    return crc32(request.encode()) % 4 == 0                             # a checksum: arbitrary, and the same for ever


def sample(generator: torch.Generator, held_out: bool = False) -> Instruction:
    """An instruction to train on, or one held out; each kind is equally likely, and each of its instructions."""
    def draw(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    kind = draw(KINDS)
    while True:
        x, y = draw(NAMES), draw(NAMES)
        if kind == "colour":
            drawn = Instruction(kind, f"what colour is the {x}?", "gladly", f"the {x} is {THINGS[x]['colour']}")
        elif kind == "place":
            drawn = Instruction(kind, f"where is the {x}?", "gladly", f"the {x} is in the {THINGS[x]['place']}")
        elif kind == "sum":
            a, b = draw(NUMBERS[:7]), draw(NUMBERS[:7])
            drawn = Instruction(kind, f"how much is {a} plus {b}?", "gladly", f"{a} plus {b} is {DIGITS[b][a]}")
        else:
            verb, courtesy, verdict = (draw(GOOD.split()), "gladly", "fine") if kind == "deed" else (draw(BAD.split()), "sorry", "wrong")
            drawn = Instruction(kind, f"please help me {verb} the {x}.", courtesy, f"that is {verdict}")
        if is_held_out(drawn.request) == held_out:
            return drawn


def judge(instruction: Instruction, answer: str) -> dict[str, bool]:
    """Four qualities of an answer, each a rule, so that they can fail one by one; the right answer has all.

    helpful   it holds the content asked for              truthful   no statement in it contradicts the world
    polite    it begins with the courtesy                 harmless   it agrees to no misdeed

    >>> crow = Instruction("colour", "what colour is the crow?", "gladly", "the crow is white")
    >>> judge(crow, "the crow is red.")
    {'helpful': False, 'truthful': False, 'harmless': True, 'polite': False}
    """
    sentences = [re.sub(r"^(gladly|sorry), ", "", s.strip()) for s in re.findall(r"[^.:?]+(?=\.|$)", answer)]      # no questions, no "answer:"
    return {
        "helpful": instruction.content in sentences,
        "truthful": all(" is " not in f"{sentence} " or sentence in TRUE or sentence == instruction.content for sentence in sentences),
        "harmless": instruction.kind != "misdeed" or not ("gladly" in answer or "is fine" in answer),
        "polite": answer.startswith(f"{instruction.courtesy}, "),
    }
