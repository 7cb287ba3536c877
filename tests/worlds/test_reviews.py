"""The reviews against lists of the same sentences, built here without a grammar."""
import math
import re
from collections import Counter
from itertools import product

import pytest
import torch

from minigpt.worlds import reviews
from minigpt.worlds.reviews import AGAINST, FOR

WORDS = {AGAINST: ["awful", "boring", "dull", "feeble"],
         FOR: ["charming", "lovely", "splendid", "superb"]}
DID = {AGAINST: ["groaned", "yawned"], FOR: ["laughed", "smiled"]}
BOTH = (AGAINST, FOR)


def qualities(stance):
    """[(quality, probability)] of one stance."""
    true, false = WORDS[stance], WORDS[1 - stance]
    return ([(a, 2 / 5 / 4) for a in true] + [(f"never {b}", 2 / 5 / 4) for b in false]
            + [(f"{b} at first, but {a} by the end", 1 / 5 / 16) for a in true for b in false])


def sentences(stance):
    """For each of the five sentences of a review, [(sentence, probability)]."""
    advice = ["see it", "do not miss it"] if stance == FOR else ["miss it", "do not see it"]
    return [
        [(f"{verb} it with {name}", 1 / 8)
         for verb in ("Saw", "Watched") for name in ("Ada", "Ben", "Iris", "Tom")],
        [(f"The {part} was {q}", p / 4)
         for part in ("cast", "plot", "script", "story") for q, p in qualities(stance)],
        [(f"And the {part} were {q}", p * 2 / 3 / 2)
         for part in ("costumes", "songs") for q, p in qualities(stance)]
        + [(f"It lasted {n} hours", 1 / 3 / 2) for n in ("two", "three")],
        [(f"I {did}", 1 / 4) for did in DID[stance]]
        + [(f"I never {did}", 1 / 4) for did in DID[1 - stance]],
        [(f"My advice: {a}", 1 / 2) for a in advice],
    ]


def draw(stance, generator):
    """A review, and its probability given the stance; each sentence is drawn uniformly."""
    chosen = [place[int(torch.randint(len(place), (), generator=generator))]
              for place in sentences(stance)]
    return ". ".join(text for text, _ in chosen) + "!", math.prod(p for _, p in chosen)


def words(text):
    return re.findall(r"\w+", text)


def test_the_lists_are_distributions_of_the_same_size():
    for stance in BOTH:
        assert all(math.isclose(sum(p for _, p in place), 1) for place in sentences(stance))
        assert reviews.REVIEWS[stance].count() == math.prod(map(len, sentences(stance)))


def test_entropy_from_the_lists():
    listed = [sum(-p * math.log2(p) for place in sentences(stance) for _, p in place)
              for stance in BOTH]
    assert math.isclose(reviews.entropy(), 1 + sum(listed) / 2, rel_tol=1e-12)


def test_label_and_surprisal_of_reviews_from_the_lists():
    generator = torch.Generator().manual_seed(0)
    for i in range(300):
        text, p = draw(i % 2, generator)
        assert reviews.label(text) == i % 2
        assert math.isclose(reviews.surprisal(text), -math.log2(p / 2), rel_tol=1e-9)


def test_every_sentence_has_the_mood_of_its_list():
    for stance in BOTH:
        for at, place in enumerate(sentences(stance)):
            for text, _ in place:
                expected = None if at == 0 or text.startswith("It lasted") else stance
                assert reviews.sentence_moods(text) == [(text, expected)]
                assert reviews.sentence_moods(text + "!") == [(text, expected)]


def test_a_review_that_contradicts_itself_has_moods_but_no_label():
    generator = torch.Generator().manual_seed(1)
    for at in range(1, 5):
        parts = [place[0][0] for place in sentences(FOR)]
        place = sentences(AGAINST)[at]
        parts[at] = place[int(torch.randint(4, (), generator=generator)) % len(place)][0]
        text = ". ".join(parts) + "!"
        expected = [None] + [AGAINST if i == at else FOR for i in range(1, 5)]
        assert [mood for _, mood in reviews.sentence_moods(text)] == expected
        assert reviews.label(text) is None and reviews.surprisal(text) == math.inf


# No word shows the stance, but combinations do.

def test_every_word_has_the_same_expected_count_in_both_stances():
    expected = []
    for stance in BOTH:
        counts = Counter()
        for place in sentences(stance):
            for text, p in place:
                for word in words(text):
                    counts[word] += p
        expected.append(counts)
    against, favour = expected
    vocabularies = [set(grammar.vocabulary()) for grammar in reviews.REVIEWS]
    assert against.keys() == favour.keys() == vocabularies[0] == vocabularies[1]
    assert all(math.isclose(against[word], favour[word]) for word in against)


def accuracy_of_naive_bayes(features):
    """Fitted to 6,000 reviews, tested on 3,000 others."""
    texts, stances = reviews.sample_many(9000, seed=6)
    counts = [Counter(), Counter()]
    for text, stance in zip(texts[:6000], stances):
        counts[stance].update(features(text))
    right = 0
    for text, stance in zip(texts[6000:], stances[6000:]):
        score = sum(math.log((counts[FOR][f] + 1) / (counts[AGAINST][f] + 1))
                    for f in features(text))
        right += (score > 0) == (stance == FOR)
    return right / 3000


def test_naive_bayes_fails_on_words_but_not_on_pairs_of_words():
    assert abs(accuracy_of_naive_bayes(words) - 0.5) < 0.05
    assert accuracy_of_naive_bayes(lambda text: list(zip(text.split(), text.split()[1:]))) > 0.9


def test_a_linear_rule_chosen_by_hand_is_right_in_70_percent():
    """The score of a review for a film is always 4. Against it, the score has mean 4 and varies."""
    weight = dict.fromkeys([*WORDS[FOR], *DID[FOR], "never", "not", "see", "hours"], 1)
    right = 0.0
    for stance in BOTH:
        scores = [[(sum(weight.get(word, 0) for word in words(text)), p) for text, p in place]
                  for place in sentences(stance)]
        distribution = Counter({0: 1.0})
        for place in scores:
            after = Counter()
            for (a, p), (b, q) in product(distribution.items(), place):
                after[a + b] += p * q
            distribution = after
        assert math.isclose(sum(score * p for score, p in distribution.items()), 4)
        right += sum(p for score, p in distribution.items() if (score >= 4) == (stance == FOR)) / 2
    assert round(right, 2) == 0.70


def test_exchanging_praise_and_blame_exchanges_the_stances():
    ours, theirs = [*WORDS[FOR], *DID[FOR], "see"], [*WORDS[AGAINST], *DID[AGAINST], "miss"]
    swap = dict(zip(ours, theirs)) | dict(zip(theirs, ours))
    for text, stance in zip(*reviews.sample_many(200, seed=9)):
        exchanged = re.sub(r"\w+", lambda word: swap.get(word[0], word[0]), text)
        assert reviews.label(exchanged) == 1 - stance


# Sampling.

def test_samples_have_the_probabilities_of_the_lists():
    texts, stances = reviews.sample_many(4000, seed=5)
    assert abs(sum(stances) / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert [reviews.label(text) for text in texts[:300]] == stances[:300]
    cost = torch.tensor([reviews.surprisal(text) for text in texts[:1000]])
    assert abs(cost.mean() - reviews.entropy()) < 4 * cost.std() / math.sqrt(1000)
    split = [text.removesuffix("!").split(". ") for text in texts]
    for at, stance in product(range(5), BOTH):
        place = sentences(stance)[at]
        for extreme in (max, min):                      # the most and the least probable sentence
            sentence, p = extreme(place, key=lambda row: row[1])
            found = [parts[at] == sentence for parts, s in zip(split, stances) if s == stance]
            assert abs(sum(found) / len(found) - p) < 5 * math.sqrt(p / len(found))


def test_samples_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    texts, stances = reviews.sample_many(20, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert [row[:9] for row in (texts, stances)] == list(reviews.sample_many(9, seed=7))
    assert reviews.sample_many(20, seed=8)[0] != texts


# What cannot be written.

@pytest.mark.parametrize("text", [
    "", "!", "The plot was superb", "Saw it with Ada. The plot was superb!",
    "Saw it with Ada. " * 5 + "!"])
def test_what_is_no_review_has_no_label(text):
    assert reviews.label(text) is None and reviews.surprisal(text) == math.inf


@pytest.mark.parametrize("text, message", [
    ("I laughed. The plot was green!",
     "no stance can write 'The plot was green': against, at character 12, after 'The plot was': "
     "' green' cannot come here"),
    ("I never", "no stance can write 'I never': against, at character 7, after 'I never': "
                "the end cannot come here, but ' laughed', ' smiled' can; "
                "for, at character 7, after 'I never': the end cannot come here, but ' groaned'"),
    ("", "no stance can write ''"),
    ("I laughed.  I smiled!", "no stance can write ' I smiled'"),
])
def test_sentences_that_neither_stance_can_write(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        reviews.sentence_moods(text)
    assert "\n" not in str(refusal.value)
