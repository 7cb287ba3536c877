"""The grammar against an enumerator that shares no code with it.

The enumerator rewrites the leftmost bracket of a string until none is left, and so lists all texts.
"""
import math
import re
from collections import defaultdict

import pytest
import torch

from minigpt.worlds.grammar import Grammar, alike, tokens


def choices(alternatives):
    """[(text, probability)] of a rule or of the words between [ and ]."""
    alternatives = [alternatives] if isinstance(alternatives, str) else alternatives
    weighted = [a if isinstance(a, tuple) else (a, 1) for a in alternatives]
    total = sum(weight for _, weight in weighted)
    return [(text, weight / total) for text, weight in weighted]


def feature_of(pools, drawn, feature):
    pool, value = drawn
    found = pools[pool][value][feature.lower()]
    return found if feature.islower() else found[0].upper() + found[1:]


BRACKET = re.compile(r"<(\w+)>|\[([^]]*)\]|\{(\w+)=(\w+)\}|\{(\w+)\}|\{(\w+)\.(\w+)\}")


def every_text(rules, pools):
    """(text, probability) of every derivation."""
    def rewrite(text, drawn, p):
        bracket = BRACKET.search(text)
        if bracket is None:
            yield text, p
            return
        rule, choice, slot, pool, repeated, featured, feature = bracket.groups()
        if rule or choice:
            alternatives = choice.split("|") if choice else rules[rule]
            options = [(a, q, drawn) for a, q in choices(alternatives)]
        elif pool:
            q = 1 / len(pools[pool])
            options = [(value, q, {**drawn, slot: (pool, value)}) for value in pools[pool]]
        elif repeated:
            options = [(drawn[repeated][1], 1, drawn)]
        else:
            options = [(feature_of(pools, drawn[featured], feature), 1, drawn)]
        for option, q, after in options:
            changed = text[:bracket.start()] + option + text[bracket.end():]
            yield from rewrite(changed, after, p * q)
    first = next(iter(rules))
    yield from rewrite(f"<{first}>", {}, 1.0)


DICE = (
    {"roll": [("one", 4), ("two", 3), ("three or <more>", 1)], "more": [("four", 2), "five"]}, {})
# One slot drawn from two pools of unequal size, features of unequal length, a slot that is filled
# again, a value of two words, marks without a space before them, and a choice inside a string.
TALE = ({
    "tale": [("<who> ran, and <then>.", 5), ("It <rained><mark>", 2)],
    "who": [("A girl, {hero=GIRL}", 3), ("That [old|sly] boy {hero=BOY}", 2), ("{hero=BOY}", 1)],
    "then": ["{hero.he} fell [on|over] a {thing=THING}: {thing.it}'s {thing.state}",
             ("{hero}'s {pet=PET} sang; {hero.His} {pet}, {hero}! <again>", 3)],
    "again": [("So {hero=BOY} told {hero.his} {thing=THING}", 1), ("No", 7)],
    "rained": "rained",
    "mark": ["!", (".", 2), "?"],
}, {
    "GIRL": {"Ann": {"he": "she", "his": "her"},
             "Beatrice": {"he": "she herself", "his": "her very own"},
             "Eve": {"he": "she", "his": "her (Eve's)"}},
    "BOY": {"Tom": {"he": "he", "his": "his"}, "Maximilian": {"he": "he", "his": "his"}},
    "PET": {"polar bear": {}, "owl": {}, "guinea pig": {}, "cat": {}},
    "THING": {"log": {"it": "it", "state": "wet"},
              "spoon": {"it": "it", "state": "bent, and badly"}},
})
GRAMMARS = {"dice": DICE, "tale": TALE}


@pytest.fixture(params=GRAMMARS)
def listed(request):
    rules, pools = GRAMMARS[request.param]
    return Grammar(rules, pools), list(every_text(rules, pools))


def test_every_derivation_has_a_text_of_its_own(listed):
    grammar, derivations = listed
    assert math.isclose(sum(p for _, p in derivations), 1, rel_tol=1e-12)
    assert len({text for text, _ in derivations}) == len(derivations) == grammar.count()


def test_surprisal_of_every_text(listed):
    grammar, derivations = listed
    for text, p in derivations:
        assert math.isclose(grammar.surprisal(text), -math.log2(p), rel_tol=1e-12)
        assert grammar.is_grammatical(text) and grammar.why_not(text) == ""


def test_entropy_and_expected_length(listed):
    grammar, derivations = listed
    entropy = sum(-p * math.log2(p) for _, p in derivations)
    length = sum(p * len(text) for text, p in derivations)
    assert math.isclose(grammar.entropy(), entropy, rel_tol=1e-12)
    assert math.isclose(grammar.expected_length(), length, rel_tol=1e-12)


def test_surprisal_of_every_token_after_every_prefix(listed):
    """P(token | prefix) is the mass of the texts that go on with it over the mass of the prefix."""
    grammar, derivations = listed
    mass = defaultdict(float)
    for text, p in derivations:
        pieces = [*tokens(text), ""]
        for i in range(len(pieces) + 1):
            mass[tuple(pieces[:i])] += p
    for text, _ in derivations:
        pieces, given = [*tokens(text), ""], grammar.surprisals(text)
        assert [token for token, _ in given] == pieces
        for i, (_, bits) in enumerate(given):
            expected = mass[tuple(pieces[:i + 1])] / mass[tuple(pieces[:i])]
            assert math.isclose(2 ** -bits, expected, rel_tol=1e-9)


def test_only_choices_cost_bits():
    grammar = Grammar(*TALE)
    text = ("A girl, Beatrice ran, and Beatrice's polar bear sang; "
            "Her very own polar bear, Beatrice! No.")
    given = grammar.surprisals(text)
    assert [token for token, _ in given] == [*tokens(text), ""]
    paid = [(i, token, bits) for i, (token, bits) in enumerate(given) if bits]
    by_hand = [(0, "A", 5 / 7 * 3 / 6),             # the first alternative, and a girl
               (3, " Beatrice", 1 / 3),             # one girl of three
               (7, " Beatrice", 3 / 4),             # the second alternative; the name costs nothing
               (10, " polar", 1 / 4),               # the first token of "polar bear" pays for both
               (22, " No", 7 / 8)]
    assert [row[:2] for row in paid] == [row[:2] for row in by_hand]
    for (_, _, bits), (_, _, p) in zip(paid, by_hand):
        assert math.isclose(bits, -math.log2(p))


def test_sampled_frequencies_are_the_probabilities():
    rules, pools = TALE
    grammar, n = Grammar(rules, pools), 20_000
    counts = defaultdict(int)
    for text in grammar.sample_many(n, seed=3):
        counts[text] += 1
    derivations = dict(every_text(rules, pools))
    assert counts.keys() <= derivations.keys()
    # Pearson's χ² over all texts: its mean is k − 1 and its variance about 2(k − 1).
    statistic = sum((counts[text] - n * p) ** 2 / (n * p) for text, p in derivations.items())
    freedom = len(derivations) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_samples_depend_on_the_generator_alone():
    grammar = Grammar(*TALE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = grammar.sample_many(40, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert grammar.sample_many(60, seed=7)[:40] == first != grammar.sample_many(40, seed=8)
    generator = torch.Generator().manual_seed(7)
    assert [grammar.sample(generator) for _ in range(40)] == first


@pytest.mark.parametrize("name, most_choices", [("dice", 2), ("tale", 9)])
def test_a_sample_draws_as_many_uniforms_as_the_most_choices_of_a_text(name, most_choices):
    generator, other = (torch.Generator().manual_seed(0) for _ in range(2))
    Grammar(*GRAMMARS[name]).sample(generator)
    torch.rand(most_choices, dtype=torch.float64, generator=other)
    assert torch.equal(generator.get_state(), other.get_state())


def test_vocabulary_is_what_the_texts_hold():
    rules, pools = TALE
    texts = [text for text, _ in every_text(rules, pools)]
    words = set(re.findall(r"[A-Za-z]+", " ".join(texts)))
    assert Grammar(rules, pools).vocabulary() == sorted(words)


ANN, ANN_TOM = {"P": alike("Ann")}, {"P": alike("Ann Tom")}


@pytest.mark.parametrize("rules, pools, complaint", [
    # Two alternatives that begin with the same token.
    ({"a": ["the cat", "the dog"]}, {}, "<a> is ambiguous: two alternatives can begin with 'the'"),
    ({"a": ["<b> x", "<c> y"], "b": "[one|two]", "c": ["two", "three"]}, {},
     "<a> is ambiguous: two alternatives can begin with 'two'"),
    ({"a": "I [saw|saw it]."}, {}, "rule <[saw|saw it]> is ambiguous"),
    ({"a": ["{x=P} fell", "Tom rose"]}, ANN_TOM,
     "<a> is ambiguous: two alternatives can begin with 'Tom'"),
    ({"a": ["{x=P} and <b>"], "b": ["{x}", "Tom"]}, ANN_TOM,
     "<b> is ambiguous: two alternatives can begin with 'Tom'"),
    ({"a": ["{x=P} and <b>"], "b": ["{x.he} fell", "she fell"]}, {"P": alike("Ann", he="she")},
     "<b> is ambiguous"),
    # Pools.
    ({"a": "{x=P}"}, {"P": alike(["polar bear", "polar fox"])},
     "pool P: 'polar fox' and another value begin with 'polar'"),
    ({"a": "{x=P}"}, {"P": {}}, "pool P is empty; give it at least one value"),
    ({"a": "{x=P}"}, {"P": alike([""])}, "pool P: a value is ''; it must begin with a word"),
    ({"a": "{x=P} {x.he}"}, {"P": {"Ann": {"he": ""}}}, "pool P: feature 'he' of 'Ann' is ''"),
    ({"a": "{x=P}"}, {"P": alike([" Ann"])}, "a value is ' Ann'; it must begin with a word"),
    ({"a": "{x=P}"}, {"P": alike(["Ann "])}, "a space must stand before a word or a mark"),
    ({"a": "{x=P}"}, {"P": alike("Ann", he="she ")}, "a space must stand before a word or a mark"),
    # Two words without a space between them.
    ({"a": "<b>s", "b": "cat"}, {}, "put a space between 'b' and 's'"),
    ({"a": "un<b>", "b": ["!", "done"]}, {}, "put a space between 'un' and 'b'"),
    ({"a": "{x=P}{y=P}"}, ANN_TOM, "put a space between 'x' and 'y'"),
    ({"a": "[un|re]<b>", "b": "done"}, {}, "put a space between '[un|re]' and 'b'"),
    # Slots.
    ({"a": "{x} ran"}, ANN, "rule <a>: {x} may be used before it is filled; put {x=POOL} before"),
    ({"a": "<b> {x}", "b": ["A {x=P}", "nobody"]}, ANN, "{x} may be used before it is filled"),
    ({"a": "{x=P} {x.he}"}, {"P": {"Ann": {"he": "she"}, "It": {}}},
     "{x.he} asks for a feature that 'It' of pool P does not have"),
    ({"a": "{x=Q}"}, ANN, "{x=Q} asks for a pool that is not there; the pools are ['P']"),
    # Rules.
    ({"a": "run <b>"}, {}, "rule <a> refers to <b>, which is not there"),
    ({"a": "run", "b": "walk"}, {}, "rule <b> is never used"),
    ({"a": ["<a> again", "once"]}, {}, "rule <a> comes back to itself: a -> a"),
    ({"a": "x <b>", "b": ["y <a>", "z"]}, {}, "rule <a> comes back to itself: a -> b -> a"),
    ({"a": ["", "x"]}, {}, "rule <a>: cannot read ''"),
    ({"a": "[x|]"}, {}, "rule <[x|]>: cannot read ''"),
    ({"a": []}, {}, "rule <a> needs at least one alternative"),
    ({"a": [("x", 1), ("y", 0)]}, {}, "each with a weight above 0"),
    ({"a": [("x", 1), ("y", -1)]}, {}, "each with a weight above 0"),
    ({}, {}, "a grammar needs at least one rule"),
])
def test_what_a_grammar_may_not_be(rules, pools, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as refusal:
        Grammar(rules, pools)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("rules, pools, text", [
    ({"a": "<b> s", "b": "cat"}, {}, "cat s"),
    ({"a": "<b>'s", "b": "cat"}, {}, "cat's"),
    ({"a": '"<b>', "b": ["!", "done"]}, {}, '"done'),
    ({"a": "<b> {x}", "b": ["A {x=P}", "no {x=P}"]}, ANN, "no Ann Ann"),
    ({"a": [("x", 1), ("y", 1e-9)]}, {}, "y"),
    ({"a": "x <b> <b>", "b": ["y", "z"]}, {}, "x z y"),
    ({"a": "{x=P}"}, {"P": alike(["polar bear", "fox polar"])}, "fox polar"),
])
def test_what_a_grammar_may_just_be(rules, pools, text):
    assert Grammar(rules, pools).is_grammatical(text)


def test_two_rules_that_never_meet_may_begin_alike():
    rules = {"a": ["one <b>", "two <c>"], "b": ["cat", "dog"], "c": ["dog", "cow"]}
    grammar = Grammar(rules)
    assert grammar.count() == 4 and grammar.entropy() == 2


def test_a_slot_may_be_filled_from_one_of_two_pools():
    rules = {"a": "<b> {x.he}", "b": [("A {x=P}", 3), ("B {x=Q}", 1)]}
    pools = {"P": alike("Ann Eve", he="she"), "Q": alike("Maximilian", he="he himself")}
    grammar, longer = Grammar(rules, pools), "B Maximilian he himself"
    assert grammar.expected_length() == 3 / 4 * len("A Ann she") + 1 / 4 * len(longer)
    with pytest.raises(ValueError, match="'Maximilian' of pool Q does not have"):
        Grammar(rules, pools | {"Q": alike("Maximilian")})


SPACE = "a space must stand before a word or a mark; take it out"


@pytest.mark.parametrize("text, reason", [
    ("three or six",
     "at character 8, after 'three or': ' six' cannot come here, but ' four', ' five' can"),
    ("three or",
     "at character 8, after 'three or': the end cannot come here, but ' four', ' five' can"),
    ("one two", "at character 3, after 'one': ' two' cannot come here, but the end can"),
    (" one", "at character 0, after '': ' one' cannot come here, but 'one', 'two', 'three' can"),
    ("", "at character 0, after '': the end cannot come here, but 'one', 'two', 'three' can"),
    ("three  or four", f"at character 5, after 'three': {SPACE}"),
    ("one ", f"at character 3, after 'one': {SPACE}"),
])
def test_why_not(text, reason):
    grammar = Grammar(*DICE)
    assert grammar.why_not(text) == reason
    assert not grammar.is_grammatical(text) and grammar.surprisal(text) == math.inf


def test_why_not_lists_six_of_many():
    reason = Grammar({"a": "[a|b|c|d|e|f]"}).why_not("z")
    assert reason.endswith("but 'a', 'b', 'c', 'd', 'e', 'f' can")
    reason = Grammar({"a": "[a|b|c|d|e|f|g|h]"}).why_not("z")
    assert reason.endswith("but 'a', 'b', 'c', 'd', 'e', 'f' or 2 others can")


def test_why_not_shows_the_last_of_what_came_before():
    fox = "the quick brown fox jumps over the lazy"
    reason = Grammar({"a": fox + " dog"}).why_not(fox + " cat")
    assert reason == ("at character 39, after ' jumps over the lazy': "
                      "' cat' cannot come here, but ' dog' can")


def test_values_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="'Ann' comes twice"):
        alike("Ann Tom Ann")
    assert alike(["Ann", "Tom"], he="x") == {"Ann": {"he": "x"}, "Tom": {"he": "x"}}
