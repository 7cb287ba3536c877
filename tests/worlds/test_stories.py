"""The stories hold together, and their entropy and lengths are measured right."""
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


# The cast of a story, read with a regular expression, which knows nothing of the grammar.
CAST = re.compile(rf"(?:One|On a|It was a) (?P<weather>{one_of('WEATHER')}) .*?\b(?P<hero>{one_of('NAME')}) \w+ "
                  rf"(?:a|an|some) (?P<look>{one_of('LOOK', 'LOOK_AN')}) (?P<thing>{one_of('ONE', 'MANY')}) to the (?P<place>\w+)\. "
                  rf".*?(?P<pet>{one_of('PET')})\b(?: the|, an? \w+) (?P<animal>{one_of('ANIMAL')})\b")


def cast(story):
    return CAST.match(story)


def test_mean_surprisal_is_the_entropy():
    bits = [STORIES.surprisal(story) for story in SAMPLE]
    error = statistics.stdev(bits) / math.sqrt(len(bits))
    assert abs(statistics.fmean(bits) - STORIES.entropy()) < 4 * error < 2


def test_mean_length_is_the_expected_length():
    lengths = [len(story) for story in SAMPLE]
    error = statistics.stdev(lengths) / math.sqrt(len(lengths))
    assert abs(statistics.fmean(lengths) - STORIES.expected_length()) < 4 * error < 4


def test_the_sizes_that_the_data_card_states():
    """data/README.md quotes these; whoever changes the grammar changes the card."""
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert f"| entropy | {STORIES.entropy():.0f} bits a story |" in card
    assert f"| expected length | {STORIES.expected_length():.0f} characters |" in card
    assert f"| entropy rate | {STORIES.entropy() / STORIES.expected_length():.2f} bits a character |" in card
    assert f"| distinct stories | 2^{math.log2(STORIES.count()):.0f} |" in card
    assert f"| distinct words | {len(STORIES.vocabulary()):,} |" in card


def test_stories_are_rich_enough_to_learn_from():
    assert 0.3 < STORIES.entropy() / STORIES.expected_length() < 0.9
    assert len({word.lower() for word in STORIES.vocabulary()}) > 300
    assert all(300 < len(story) < 600 for story in SAMPLE)
    at_least = {"GIRL": 16, "BOY": 16, "PET": 20, "ANIMAL": 16, "ONE": 24, "MANY": 10, "PLACE": 20, "LOOK": 12, "WEATHER": 16}
    for pool, least in at_least.items():
        assert len(POOLS[pool]) >= least, pool


def test_samples_are_a_function_of_the_seed():
    assert STORIES.sample_many(5, seed=20) == SAMPLE[:5] != STORIES.sample_many(5, seed=21)
    assert len(set(SAMPLE)) == len(SAMPLE)


def test_articles_and_spacing_are_english():
    for story in SAMPLE:
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]|  |\s[.,!?:]|\.\.|[a-z]\. [a-z]", story), story
        assert story[0].isupper() and story.endswith(".")
        assert story.count('"') % 2 == 0
        assert all(sentence[0].isupper() for sentence in re.findall(r"(?<=[.!?] )[^\"]|(?<=[.!?] \")\w", story))


HELPING_WOMEN = {"actress", "aunt", "gardener", "lady", "nurse", "princess", "queen", "woman"}


def test_whoever_and_whatever_is_introduced_comes_back():
    agreed = set()
    for story in SAMPLE:
        who = cast(story)
        assert who, story
        rest = story[who.end():]
        hero, wrong = ("he|him|his", "she|her") if who["hero"] in BOY else ("she|her", "he|him|his")
        assert re.search(rf"\b({who['hero']})\b", rest)
        ending = re.search(r"(\w+) \w+ were \w+, but (\w+) ", rest)
        assert re.fullmatch(hero, ending[1].lower()) and re.fullmatch(hero, ending[2])
        if not re.search(one_of("HELPER"), rest):
            assert not re.search(rf"\b({wrong})\b", story, re.IGNORECASE), story
        assert who["thing"] in rest and rest.count(who["place"]) >= 1
        assert re.search(rf"\b({who['pet']}|{who['animal']})\b", rest)
        said = set(re.findall(rf"\b{who['thing']} (is|are)\b", rest)
                   + re.findall(rf"\b(is|are|was|were) \w+(?: \w+)? {who['thing']}\b", rest)
                   + re.findall(r"\b(it is|they are|it was|they were|It belongs|They belong|it|them)\b", rest))
        many, one = {"are", "were", "they are", "They belong", "them"}, {"is", "was", "it is", "It belongs", "it"}
        assert said <= (many if who["thing"] in POOLS["MANY"] else one), story
        agreed |= said
        if helper := re.search(rf"a \w+ {one_of('HELPER')} h(?:ad|eld) .* told (\w+)\.", rest):
            assert helper[2] == ("her" if helper[1] in HELPING_WOMEN else "him")
        others = {name for pool in ("GIRL", "BOY") for name in POOLS[pool]} - {who["hero"]}
        assert not re.search(rf"\b({'|'.join(others)})\b", story), story
    assert agreed == many | one


def swap(story, old, new, which=-1):
    """The story with one occurrence of a word replaced: the last, or the numbered one."""
    places = list(re.finditer(rf"\b{re.escape(old)}\b", story))
    if not places:
        return None
    at = places[which]
    return story[:at.start()] + new + story[at.end():]


def other(pool, word):
    names = sorted(POOLS[pool])
    return names[(names.index(word) + 1) % len(names)]


def corruptions(story):
    who = cast(story)
    pool = "GIRL" if who["hero"] in GIRL else "BOY"
    things = "MANY" if who["thing"] in POOLS["MANY"] else "ONE"
    words = story.split(" ")
    middle = next(i for i in range(20, len(words)) if words[i] != words[i + 1])
    yield "two words in the other order", " ".join([*words[:middle], words[middle + 1], words[middle], *words[middle + 2:]])
    yield "wrong pronoun", swap(story, "but he", "but she") or swap(story, "but she", "but he")
    yield "another name halfway", swap(story, who["hero"], other(pool, who["hero"]), which=1)
    yield "another thing came back", swap(story, who["thing"], other(things, who["thing"]), which=1)
    yield "another place", swap(story, who["place"], other("PLACE", who["place"]))
    yield "another weather", swap(story, who["weather"], other("WEATHER", who["weather"]), which=0)
    twice = story.count(f" {who['animal']} ") > 1                       # said once, it may be any animal whose ways fit
    yield "another kind of animal", swap(story, who["animal"], other("ANIMAL", who["animal"])) if twice else None
    yield "were for was", swap(story, "was", "were")
    yield "was for were", swap(story, "were", "was")
    yield "is for are", swap(story, "are", "is")
    yield "are for is", swap(story, "is", "are")
    yield "it for them", swap(story, "them", "it")
    yield "them for it", swap(story, "it", "them")
    yield "an for a", swap(story, "a", "an")
    yield "no full stop", story[:-1]
    yield "a full stop inside is missing", story.replace(". ", " ", 1)
    yield "a quotation mark is missing", story.replace('"', "", 1)
    yield "two spaces", story.replace(" ", "  ", 1)
    yield "a space at the end", story + " "
    yield "a small letter", story[0].lower() + story[1:]
    yield "a word that is not there", story.replace("back, and", "back, and suddenly")
    yield "half a story", story[:len(story) // 2]
    yield "two stories", f"{story} {story}"


def test_what_is_no_longer_a_story_is_told_apart():
    seen = set()
    for story in SAMPLE[:60]:
        for kind, broken in corruptions(story):
            if broken is None or broken == story:
                continue
            seen.add(kind)
            assert not STORIES.is_grammatical(broken), (kind, broken)
    assert seen == {kind for kind, _ in corruptions(SAMPLE[0])}


def test_what_is_remembered_costs_nothing():
    for story in SAMPLE[:50]:
        hero = cast(story)["hero"]
        bits = [b for token, b in STORIES.surprisals(story) if token.strip() == hero]
        # At most one later mention is a choice of who does something; which of the 32 names it is costs 0 from then on.
        assert bits[0] > 3.9 and max(bits[1:]) < 4 and bits[1] == 0
