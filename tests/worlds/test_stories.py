"""The stories are consistent English, and their entropy and lengths are measured right."""
import math
import re
import statistics
from pathlib import Path

from minigpt.worlds import stories
from minigpt.worlds.stories import BOY, GIRL, POOLS, STORIES

ROOT = Path(stories.__file__).parents[2]
SAMPLE = STORIES.sample_many(2000, seed=20)


def one_of(*pools):
    return "(" + "|".join(value for pool in pools for value in POOLS[pool]) + ")"


# What a story introduces, found by a regular expression that does not use the rules.
CAST = re.compile(
    rf"(?:One|On a|It was a) (?P<weather>{one_of('WEATHER')}) "
    rf".*?\b(?P<hero>{one_of('NAME')}) \w+ "
    rf"(?:a|an|some) (?P<look>{one_of('LOOK', 'LOOK_AN')}) (?P<thing>{one_of('ONE', 'MANY')}) "
    rf"to the (?P<place>\w+)\. "
    rf".*?(?P<pet>{one_of('PET')})\b(?: the|, an? \w+) (?P<animal>{one_of('ANIMAL')})\b")


def cast(story):
    return CAST.match(story)


def test_the_story_that_opens_the_file():
    paragraph = stories.__doc__.split("\n\n")[1]
    assert STORIES.why_not(" ".join(paragraph.split())) == ""


# Measures.

def test_mean_surprisal_is_the_entropy():
    bits = [STORIES.surprisal(story) for story in SAMPLE]
    error = statistics.stdev(bits) / math.sqrt(len(bits))
    assert abs(statistics.fmean(bits) - STORIES.entropy()) < 4 * error < 2


def test_mean_length_is_the_expected_length():
    lengths = [len(story) for story in SAMPLE]
    error = statistics.stdev(lengths) / math.sqrt(len(lengths))
    assert abs(statistics.fmean(lengths) - STORIES.expected_length()) < 4 * error < 4


def test_the_sizes_that_the_data_card_states():
    """data/README.md quotes these sizes; a change of the grammar changes the card."""
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rate = STORIES.entropy() / STORIES.expected_length()
    assert f"| entropy | {STORIES.entropy():.0f} bits a story |" in card
    assert f"| expected length | {STORIES.expected_length():.0f} characters |" in card
    assert f"| entropy rate | {rate:.2f} bits a character |" in card
    assert f"| distinct stories | 2^{math.log2(STORIES.count()):.0f} |" in card
    assert f"| distinct words | {len(STORIES.vocabulary()):,} |" in card


def test_stories_are_rich_enough_to_learn_from():
    assert 0.3 < STORIES.entropy() / STORIES.expected_length() < 0.9
    assert len({word.lower() for word in STORIES.vocabulary()}) > 300
    assert all(300 < len(story) < 600 for story in SAMPLE)
    at_least = {"GIRL": 16, "BOY": 16, "PET": 20, "ANIMAL": 16, "ONE": 24, "MANY": 10, "PLACE": 20,
                "LOOK": 12, "WEATHER": 16}
    for pool, least in at_least.items():
        assert len(POOLS[pool]) >= least, pool


def test_samples_are_a_function_of_the_seed():
    assert STORIES.sample_many(5, seed=20) == SAMPLE[:5] != STORIES.sample_many(5, seed=21)
    assert len(set(SAMPLE)) == len(SAMPLE)


# English.

WRONG = re.compile(r"\ba [aeio]|\ban [^aeiou]|  |\s[.,!?:]|\.\.|[a-z]\. [a-z]")
FIRST_LETTER = re.compile(r"(?<=[.!?] )[^\"]|(?<=[.!?] \")\w")


def test_articles_and_spacing_are_english():
    for story in SAMPLE:
        assert not WRONG.search(story), story
        assert story[0].isupper() and story.endswith(".")
        assert story.count('"') % 2 == 0
        assert all(letter.isupper() for letter in FIRST_LETTER.findall(story))


# Everything that is introduced returns, and the words that depend on it agree.

def test_the_child_returns_and_the_pronouns_agree():
    for story in SAMPLE:
        assert cast(story), story
        hero, rest = cast(story)["hero"], story[cast(story).end():]
        right, wrong = ("he|him|his", "she|her") if hero in BOY else ("she|her", "he|him|his")
        assert re.search(rf"\b{hero}\b", rest)
        ending = re.search(r"(\w+) \w+ were \w+, but (\w+) ", rest)
        assert re.fullmatch(right, ending[1].lower()) and re.fullmatch(right, ending[2])
        if not re.search(one_of("HELPER"), rest):
            assert not re.search(rf"\b({wrong})\b", story, re.IGNORECASE), story
        others = {*POOLS["GIRL"], *POOLS["BOY"]} - {hero}
        assert not re.search(rf"\b({'|'.join(others)})\b", story), story


MANY = {"are", "were", "they are", "They belong", "them"}
ONE = {"is", "was", "it is", "It belongs", "it"}
PRONOUN = re.compile(r"\b(it is|they are|it was|they were|It belongs|They belong|it|them)\b")


def test_the_thing_returns_and_its_verbs_and_pronouns_agree():
    agreed = set()
    for story in SAMPLE:
        thing, rest = cast(story)["thing"], story[cast(story).end():]
        assert thing in rest
        found = {
            *re.findall(rf"\b{thing} (is|are)\b", rest),
            *re.findall(rf"\b(is|are|was|were) \w+(?: \w+)? {thing}\b", rest),
            *PRONOUN.findall(rest)}
        assert found <= (MANY if thing in POOLS["MANY"] else ONE), story
        agreed |= found
    assert agreed == MANY | ONE


def test_place_pet_and_weather_return():
    for story in SAMPLE:
        introduced, rest = cast(story), story[cast(story).end():]
        place, weather = introduced["place"], introduced["weather"]
        assert re.search(rf"\b{place}\b", rest)
        assert re.search(rf"\b({introduced['pet']}|{introduced['animal']})\b", rest)
        assert f" were {POOLS['WEATHER'][weather]['wet']}, but " in rest
        if at := re.search(rf"(\w+) the {place}\.\"", rest):
            if at[1] in stories.PLACES:
                assert place in stories.PLACES[at[1]].split(), story


HELPING_WOMEN = {"actress", "aunt", "gardener", "lady", "nurse", "princess", "queen", "woman"}


def test_a_helper_is_he_or_she():
    counts = {"her": 0, "him": 0}
    for story in SAMPLE:
        if helper := re.search(rf"a \w+ {one_of('HELPER')} h(?:ad|eld) .* told (\w+)\.", story):
            assert helper[2] == ("her" if helper[1] in HELPING_WOMEN else "him")
            counts[helper[2]] += 1
    assert min(counts.values()) > 20


def test_a_return_costs_no_bits():
    for story in SAMPLE[:50]:
        hero = cast(story)["hero"]
        bits = [b for token, b in STORIES.surprisals(story) if token.strip() == hero]
        # The first mention chooses one of 32 names. A later one may at most choose who acts.
        assert bits[0] > 3.9 and max(bits[1:]) < 4 and bits[1] == 0


# Stories that were changed are refused.

def swap(story, old, new, which=-1):
    """The story with one occurrence of a word replaced: the last, or the one of this number."""
    places = list(re.finditer(rf"\b{re.escape(old)}\b", story))
    if not places:
        return None
    at = places[which]
    return story[:at.start()] + new + story[at.end():]


def other(pool, word):
    names = sorted(POOLS[pool])
    return names[(names.index(word) + 1) % len(names)]


def other_values(story):
    """(what is wrong, story) with one returning value replaced by another one."""
    names = cast(story)
    hero, thing, animal, weather = (names[it] for it in ("hero", "thing", "animal", "weather"))
    girl_or_boy = "GIRL" if hero in GIRL else "BOY"
    one_or_many = "MANY" if thing in POOLS["MANY"] else "ONE"
    yield "another name halfway", swap(story, hero, other(girl_or_boy, hero), which=1)
    yield "another thing came back", swap(story, thing, other(one_or_many, thing), which=1)
    yield "another place", swap(story, names["place"], other("PLACE", names["place"]))
    yield "another weather", swap(story, weather, other("WEATHER", weather), which=0)
    # An animal that is mentioned once may be replaced by any that runs and speaks like it.
    twice = story.count(f" {animal} ") > 1
    yield "another animal", swap(story, animal, other("ANIMAL", animal)) if twice else None


def other_words(story):
    """(what is wrong, story) with one word that no longer agrees."""
    yield "wrong pronoun", swap(story, "but he", "but she") or swap(story, "but she", "but he")
    for old, new in (("was", "were"), ("were", "was"), ("is", "are"), ("are", "is"),
                     ("them", "it"), ("it", "them"), ("a", "an")):
        yield f"{new} for {old}", swap(story, old, new)
    yield "a word that is not there", story.replace("back, and", "back, and suddenly")


def other_forms(story):
    """(what is wrong, story) with words moved, or marks, spaces or capitals changed."""
    words = story.split(" ")
    at = next(i for i in range(20, len(words)) if words[i] != words[i + 1])
    words[at], words[at + 1] = words[at + 1], words[at]
    yield "two words in the other order", " ".join(words)
    yield "no full stop", story[:-1]
    yield "a full stop inside is missing", story.replace(". ", " ", 1)
    yield "a quotation mark is missing", story.replace('"', "", 1)
    yield "two spaces", story.replace(" ", "  ", 1)
    yield "a space at the end", story + " "
    yield "a small letter", story[0].lower() + story[1:]
    yield "half a story", story[:len(story) // 2]
    yield "two stories", f"{story} {story}"


def test_a_story_with_a_mistake_is_refused():
    def mistakes(story):
        return [*other_values(story), *other_words(story), *other_forms(story)]

    made = set()
    for story in SAMPLE[:60]:
        for kind, broken in mistakes(story):
            if broken is not None and broken != story:
                made.add(kind)
                assert not STORIES.is_grammatical(broken), (kind, broken)
    assert made == {kind for kind, _ in mistakes(SAMPLE[0])}
