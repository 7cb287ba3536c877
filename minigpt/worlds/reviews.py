"""Film reviews, for or against, whose sentiment is known exactly and cannot be told from the words.

A stance is drawn, then a review from that stance's grammar. The two grammars are one, with praise and blame exchanged:

    for       The plot was superb.    The cast was never dull.      The script was dull at first, but superb by the end.
    against   The plot was dull.      The cast was never superb.    The script was superb at first, but dull by the end.

Each word is as frequent in one stance as in the other (exactly: a test lists all sentences), so no word is for or against, and
no linear classifier of word counts beats a coin. What tells is what was done to a word: nothing, never, or at first.
A sentence with an opinion can be written by one stance only, and every review has some. Hence `label` is no estimate: it
parses. And hence the stance can be read off the text, and the entropy is exact:

    H = H(stance) + H(review | stance) = 1 + mean of the two grammars' entropies           bits a review

Source: course C, "The sentiment neuron"; the reviews stand in for those of Radford, Jozefowicz and Sutskever 2017.
Not here: sarcasm, lukewarm reviewers, and reviewers who contradict themselves.
"""
import torch

from minigpt.worlds.grammar import Grammar

AGAINST, FOR = 0, 1
STANCES = "against", "for"
QUALITIES = "awful boring dull feeble", "charming lovely splendid superb"               # what each stance finds true
REACTIONS = "[groaned|yawned]", "[laughed|smiled]"
ADVICE = ["miss it", "do not see it"], ["see it", "do not miss it"]
SENTENCES = "<opening>", "<look>", "<second look>", "<feeling>", "<verdict>"


def rules(start: str | list[str], stance: int) -> dict:
    """The rules of one stance. Said and denied are equally likely, which is what makes every word as frequent in both."""
    other = 1 - stance
    return {
        "start": start,
        "opening": "[Saw|Watched] it with [Ada|Ben|Iris|Tom]",
        "look": "The [cast|plot|script|story] was <quality>",
        "quality": [("<right>", 2), ("never <wrong>", 2), ("<wrong> at first, but <right> by the end", 1)],
        "right": QUALITIES[stance].split(), "wrong": QUALITIES[other].split(),
        "second look": [("And the [costumes|songs] were <quality>", 2), "It lasted [two|three] hours"],
        "feeling": "I <felt>",
        "felt": [REACTIONS[stance], f"never {REACTIONS[other]}"],
        "verdict": "My advice: <advice>", "advice": ADVICE[stance],
    }


REVIEWS = tuple(Grammar(rules(". ".join(SENTENCES) + "!", stance)) for stance in (AGAINST, FOR))
MOODS = tuple(Grammar(rules(list(SENTENCES), stance)) for stance in (AGAINST, FOR))


def sample(generator: torch.Generator) -> tuple[str, int]:
    """One review and its stance, AGAINST or FOR, each with probability ½."""
    stance = int(torch.randint(2, (), generator=generator))
    return REVIEWS[stance].sample(generator), stance


def sample_many(n: int, seed: int) -> tuple[list[str], list[int]]:
    """n reviews and their stances; the same seed gives the same ones, and a larger n the same ones first."""
    generator = torch.Generator().manual_seed(seed)
    reviews = [sample(generator) for _ in range(n)]
    return [review for review, _ in reviews], [stance for _, stance in reviews]


def entropy() -> float:
    """H, bits a review, the stance's own bit included."""
    return 1 + sum(grammar.entropy() for grammar in REVIEWS) / 2


def surprisal(review: str) -> float:
    """−log₂ P(review), bits: inf if neither stance can write it."""
    return 1 + min(grammar.surprisal(review) for grammar in REVIEWS)


def label(review: str) -> int | None:
    """AGAINST or FOR, whichever can write the whole review; None if neither can.

    >>> STANCES[label("Saw it with Ada. The plot was dull at first, but superb by the end. It lasted two hours. "
    ...               "I never yawned. My advice: do not miss it!")]
    'for'
    """
    stances = [stance for stance in (AGAINST, FOR) if REVIEWS[stance].is_grammatical(review)]
    return stances[0] if stances else None


def sentence_moods(review: str) -> list[tuple[str, int | None]]:
    """Each sentence with the one stance that can write it, or None for both; ValueError if neither can, saying where.

    >>> sentence_moods("I never yawned. It lasted two hours. The plot was superb at first, but dull by the end!")
    [('I never yawned', 1), ('It lasted two hours', None), ('The plot was superb at first, but dull by the end', 0)]
    """
    moods = []
    for sentence in review.removesuffix("!").split(". "):
        stances = [stance for stance in (AGAINST, FOR) if MOODS[stance].is_grammatical(sentence)]
        if not stances:
            against, in_favour = (MOODS[mood].why_not(sentence) for mood in (AGAINST, FOR))
            raise ValueError(f"no stance can write {sentence!r}: against, {against}; for, {in_favour}")
        moods.append((sentence, stances[0] if len(stances) == 1 else None))
    return moods
