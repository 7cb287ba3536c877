"""Film reviews, for or against, whose stance is known exactly but is not shown by any single word.

    for        The plot was superb.    The cast was never dull.
    against    The plot was dull.      The cast was never superb.

A stance is drawn, then a review from the grammar of that stance. The two grammars differ only in
that words of praise and words of blame are exchanged. An opinion is stated ("superb"), or the
opposite opinion is denied ("never dull"), with the same probability. So each word has the same
expected count in both stances, and the covariance of its count with the stance is 0. Fitted to many
reviews, naive Bayes, least squares and logistic regression on word counts therefore predict ½. (A
linear rule chosen by hand is right for 70 % of the reviews.) A model must learn which words stand
together.

Each sentence with an opinion can be written by one stance only, and each review has some. So
`label` reads the stance from the text without error, and the entropy in bits per review is exact:

    H = H(stance) + H(review | stance) = 1 + mean of the two grammars' entropies

Source: course C, "GPT-0: The sentiment neuron"; Radford, Jozefowicz and Sutskever 2017, whose
reviews of real products are replaced by these.
Not here: sarcasm, moderate opinions, and reviews that contradict themselves.
"""
import torch

from minigpt.worlds.grammar import Grammar

AGAINST, FOR = 0, 1
STANCES = "against", "for"
QUALITIES = "awful boring dull feeble", "charming lovely splendid superb"     # what each finds true
REACTIONS = "[groaned|yawned]", "[laughed|smiled]"
ADVICE = ["miss it", "do not see it"], ["see it", "do not miss it"]
SENTENCES = "<opening>", "<look>", "<second look>", "<feeling>", "<verdict>"


def rules(start: str | list[str], stance: int) -> dict:
    """The rules of the grammar of one stance, whose first rule is `start`."""
    other = 1 - stance
    # Equal weights of "<right>" and "never <wrong>" make each word as frequent in both stances.
    return {
        "start": start,
        "opening": "[Saw|Watched] it with [Ada|Ben|Iris|Tom]",
        "look": "The [cast|plot|script|story] was <quality>",
        "quality": [("<right>", 2), ("never <wrong>", 2),
                    ("<wrong> at first, but <right> by the end", 1)],
        "right": QUALITIES[stance].split(), "wrong": QUALITIES[other].split(),
        "second look": [("And the [costumes|songs] were <quality>", 2),
                        "It lasted [two|three] hours"],
        "feeling": "I <felt>", "felt": [REACTIONS[stance], f"never {REACTIONS[other]}"],
        "verdict": "My advice: <advice>", "advice": ADVICE[stance],
    }


# For each stance, the grammar of a whole review and the grammar of a single sentence.
REVIEWS = tuple(Grammar(rules(". ".join(SENTENCES) + "!", stance)) for stance in (AGAINST, FOR))
MOODS = tuple(Grammar(rules(list(SENTENCES), stance)) for stance in (AGAINST, FOR))


def sample_many(n: int, seed: int) -> tuple[list[str], list[int]]:
    """n reviews and their stances, each with probability ½; a larger n adds reviews at the end."""
    generator = torch.Generator().manual_seed(seed)
    reviews, stances = [], []
    for _ in range(n):
        stances.append(int(torch.randint(2, (), generator=generator)))
        reviews.append(REVIEWS[stances[-1]].sample(generator))
    return reviews, stances


def entropy() -> float:
    """H, in bits per review; the stance is 1 of them."""
    return 1 + sum(grammar.entropy() for grammar in REVIEWS) / 2


def surprisal(review: str) -> float:
    """−log₂ P(review), in bits: inf if neither stance can write it."""
    return 1 + min(grammar.surprisal(review) for grammar in REVIEWS)


def label(review: str) -> int | None:
    """The stance that can write the whole review, AGAINST or FOR; None if neither can."""
    return next((s for s in (AGAINST, FOR) if REVIEWS[s].is_grammatical(review)), None)


def sentence_moods(review: str) -> list[tuple[str, int | None]]:
    """Each sentence with the stance that can write it, or None if both can; ValueError if neither.

    >>> sentence_moods("I never yawned. It lasted two hours. The plot was dull!")
    [('I never yawned', 1), ('It lasted two hours', None), ('The plot was dull', 0)]
    """
    moods = []
    for sentence in review.removesuffix("!").split(". "):
        stances = [stance for stance in (AGAINST, FOR) if MOODS[stance].is_grammatical(sentence)]
        if not stances:
            against, in_favour = (grammar.why_not(sentence) for grammar in MOODS)
            raise ValueError(f"no stance can write {sentence!r}: against, {against}; "
                             f"for, {in_favour}")
        moods.append((sentence, stances[0] if len(stances) == 1 else None))
    return moods
