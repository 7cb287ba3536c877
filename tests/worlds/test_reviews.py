"""Reviews against a second writing of the same sentences: plain lists with their probabilities, built here without a grammar."""
import math
import re
from collections import Counter

import pytest
import torch

from minigpt.worlds import reviews
from minigpt.worlds.reviews import AGAINST, FOR

WORDS = {AGAINST: ["awful", "boring", "dull", "feeble"], FOR: ["charming", "lovely", "splendid", "superb"]}
DID = {AGAINST: ["groaned", "yawned"], FOR: ["laughed", "smiled"]}


def said(stance):
    """[(quality, probability)] of one stance."""
    true, false = WORDS[stance], WORDS[1 - stance]
    return ([(a, 2 / 5 / 4) for a in true] + [(f"never {b}", 2 / 5 / 4) for b in false]
            + [(f"{b} at first, but {a} by the end", 1 / 5 / 16) for a in true for b in false])


def sentences(stance):
    """The five places of a review, each [(sentence, probability)]."""
    advice = ["see it", "do not miss it"] if stance == FOR else ["miss it", "do not see it"]
    return [
        [(f"{verb} it with {name}", 1 / 8) for verb in ("Saw", "Watched") for name in ("Ada", "Ben", "Iris", "Tom")],
        [(f"The {part} was {q}", p / 4) for part in ("cast", "plot", "script", "story") for q, p in said(stance)],
        [(f"And the {part} were {q}", p * 2 / 3 / 2) for part in ("costumes", "songs") for q, p in said(stance)]
        + [(f"It lasted {n} hours", 1 / 3 / 2) for n in ("two", "three")],
        [(f"I {d}", 1 / 4) for d in DID[stance]] + [(f"I never {d}", 1 / 4) for d in DID[1 - stance]],
        [(f"My advice: {a}", 1 / 2) for a in advice],
    ]


def draw(stance, generator):
    """A review and its probability given the stance, each sentence drawn uniformly: every form comes up, likely or not."""
    chosen = [place[int(torch.randint(len(place), (), generator=generator))] for place in sentences(stance)]
    return ". ".join(text for text, _ in chosen) + "!", math.prod(p for _, p in chosen)


def test_the_second_writing_is_a_distribution():
    for stance in (AGAINST, FOR):
        assert all(math.isclose(sum(p for _, p in place), 1) for place in sentences(stance))
        assert reviews.REVIEWS[stance].count() == math.prod(map(len, sentences(stance)))


def test_entropy_from_the_lists():
    listed = [sum(-p * math.log2(p) for place in sentences(stance) for _, p in place) for stance in (AGAINST, FOR)]
    assert math.isclose(reviews.entropy(), 1 + sum(listed) / 2, rel_tol=1e-12)


def test_label_and_surprisal_of_reviews_put_together_by_hand():
    generator = torch.Generator().manual_seed(0)
    for i in range(300):
        text, p = draw(i % 2, generator)
        assert reviews.label(text) == i % 2
        assert math.isclose(reviews.surprisal(text), -math.log2(p / 2), rel_tol=1e-9)


def test_every_sentence_has_the_mood_that_it_was_built_with():
    for stance in (AGAINST, FOR):
        for place, neutral in zip(sentences(stance), (True, False, False, False, False)):
            for text, _ in place:
                expected = None if neutral or text.startswith("It lasted") else stance
                assert reviews.sentence_moods(text) == reviews.sentence_moods(text + "!") == [(text, expected)]


def test_a_review_that_contradicts_itself_has_moods_but_no_label():
    generator = torch.Generator().manual_seed(1)
    for at in range(1, 5):
        parts = [place[0][0] for place in sentences(FOR)]
        parts[at] = sentences(AGAINST)[at][int(torch.randint(4, (), generator=generator)) % len(sentences(AGAINST)[at])][0]
        text = ". ".join(parts) + "!"
        assert [mood for _, mood in reviews.sentence_moods(text)] == [None] + [AGAINST if i == at else FOR for i in range(1, 5)]
        assert reviews.label(text) is None and reviews.surprisal(text) == math.inf


def test_every_word_is_as_frequent_in_both_stances():
    """The reason why no linear classifier of word counts can beat a coin: the means of all counts agree."""
    expected = []
    for stance in (AGAINST, FOR):
        counts = Counter()
        for place in sentences(stance):
            for text, p in place:
                for word in re.findall(r"\w+", text):
                    counts[word] += p
        expected.append(counts)
    assert expected[0].keys() == expected[1].keys() == set(reviews.REVIEWS[0].vocabulary()) == set(reviews.REVIEWS[1].vocabulary())
    assert all(math.isclose(expected[0][word], expected[1][word]) for word in expected[0])


def test_samples_are_drawn_as_said():
    texts, stances = reviews.sample_many(4000, seed=5)
    assert abs(sum(stances) / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert [reviews.label(text) for text in texts[:300]] == stances[:300]
    cost = torch.tensor([reviews.surprisal(text) for text in texts[:1000]])
    assert abs(cost.mean() - reviews.entropy()) < 4 * cost.std() / math.sqrt(1000)
    # Each place's most and least likely sentence, by frequency.
    split = [text.removesuffix("!").split(". ") for text in texts]
    for at, (ours, theirs) in enumerate(zip(sentences(AGAINST), sentences(FOR))):
        for place, stance in ((ours, AGAINST), (theirs, FOR)):
            for sentence, p in (max(place, key=lambda row: row[1]), min(place, key=lambda row: row[1])):
                seen = [parts[at] == sentence for parts, s in zip(split, stances) if s == stance]
                assert abs(sum(seen) / len(seen) - p) < 5 * math.sqrt(p / len(seen))


def test_naive_bayes_on_words_is_a_coin():
    """Learned from 6,000 reviews, judged on 3,000 others; pairs of neighbouring words, as a control, do much better."""
    def accuracy(features):
        texts, stances = reviews.sample_many(9000, seed=6)
        seen = [Counter(), Counter()]
        for text, stance in zip(texts[:6000], stances):
            seen[stance].update(features(text))
        right = 0
        for text, stance in zip(texts[6000:], stances[6000:]):
            score = sum(math.log((seen[FOR][f] + 1) / (seen[AGAINST][f] + 1)) for f in features(text))
            right += (score > 0) == (stance == FOR)
        return right / 3000

    assert abs(accuracy(lambda text: re.findall(r"\w+", text)) - 0.5) < 0.05
    assert accuracy(lambda text: list(zip(text.split(), text.split()[1:]))) > 0.9


def test_samples_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    texts, stances = reviews.sample_many(20, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert [row[:9] for row in (texts, stances)] == list(reviews.sample_many(9, seed=7))
    generator = torch.Generator().manual_seed(7)
    assert [reviews.sample(generator) for _ in range(20)] == list(zip(texts, stances))
    assert reviews.sample_many(20, seed=8)[0] != texts


@pytest.mark.parametrize("text", ["", "!", "The plot was superb", "Saw it with Ada. The plot was superb!", "Saw it with Ada. " * 5 + "!"])
def test_what_is_no_review_has_no_label(text):
    assert reviews.label(text) is None and reviews.surprisal(text) == math.inf


@pytest.mark.parametrize("text, words", [
    ("I laughed. The plot was green!", "no stance can write 'The plot was green': against, at character 12, after 'The plot was': ' green' cannot come here"),
    ("I never", "no stance can write 'I never': against, at character 7, after 'I never': the end cannot come here"),
    ("", "no stance can write ''"),
    ("I laughed.  I smiled!", "no stance can write ' I smiled'"),
])
def test_sentences_that_none_can_write(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        reviews.sentence_moods(text)
    assert "\n" not in str(refusal.value)


def test_exchanging_praise_and_blame_exchanges_the_stances():
    swap = dict(zip(WORDS[FOR] + DID[FOR], WORDS[AGAINST] + DID[AGAINST])) | dict(zip(WORDS[AGAINST] + DID[AGAINST], WORDS[FOR] + DID[FOR]))
    swap |= {"see": "miss", "miss": "see"}
    texts, stances = reviews.sample_many(200, seed=9)
    for text, stance in zip(texts, stances):
        assert reviews.label(re.sub(r"\w+", lambda word: swap.get(word[0], word[0]), text)) == 1 - stance
