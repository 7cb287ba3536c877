"""The grammar against an enumerator that shares nothing with it: it rewrites strings, leftmost bracket first, and lists all."""
import math
import re
from collections import defaultdict

import pytest
import torch

from minigpt.worlds.grammar import Grammar, alike, tokens


def every_text(rules, pools):
    """(text, probability) of every derivation, by replacing the leftmost <rule>, [choice] or {slot} until none is left."""
    def rewrite(text, bound, p):
        bracket = re.search(r"<(\w+)>|\[([^]]*)\]|\{(\w+)=(\w+)\}|\{(\w+)\}|\{(\w+)\.(\w+)\}", text)
        if bracket is None:
            yield text, p
            return
        rule, choice, slot, pool, repeated, featured, feature = bracket.groups()
        replacements = []
        if rule or choice:
            alternatives = choice.split("|") if choice else rules[rule]
            alternatives = [alternatives] if isinstance(alternatives, str) else alternatives
            weighted = [a if isinstance(a, tuple) else (a, 1) for a in alternatives]
            total = sum(w for _, w in weighted)
            replacements = [(a, w / total, bound) for a, w in weighted]
        elif pool:
            replacements = [(v, 1 / len(pools[pool]), {**bound, slot: (pool, v)}) for v in pools[pool]]
        elif repeated:
            replacements = [(bound[repeated][1], 1, bound)]
        else:
            pool, value = bound[featured]
            found = pools[pool][value][feature.lower()]
            replacements = [(found if feature.islower() else found[0].upper() + found[1:], 1, bound)]
        for replacement, q, after in replacements:
            yield from rewrite(text[:bracket.start()] + replacement + text[bracket.end():], after, p * q)
    first = next(iter(rules))
    yield from rewrite(f"<{first}>", {}, 1.0)


def cut(text):
    """Tokens by walking over characters: a word, or one mark, with the space before it."""
    found = []
    for i, character in enumerate(text):
        inside = i > 0 and text[i - 1].isalnum() and character.isalnum()
        after_space = i > 0 and text[i - 1] == " "
        if inside or after_space:
            found[-1] += character
        else:
            found.append(character)
    return found


DICE = ({"roll": [("one", 4), ("two", 3), ("three or <more>", 1)], "more": [("four", 2), "five"]}, {})
# Slots drawn from pools of unlike sizes on unlike branches, features of unlike lengths, a value drawn anew, a value of two words,
# marks without a space, and a choice inside the line.
TALE = ({
    "tale": [("<who> ran, and <then>.", 5), ("It <rained><mark>", 2)],
    "who": [("A girl, {hero=GIRL}", 3), ("That [old|sly] boy {hero=BOY}", 2), ("{hero=BOY}", 1)],
    "then": ["{hero.he} fell [on|over] a {thing=THING}: {thing.it}'s {thing.state}",
             ("{hero}'s {pet=PET} sang; {hero.His} {pet}, {hero}! <again>", 3)],
    "again": [("So {hero=BOY} told {hero.his} {thing=THING}", 1), ("No", 7)],
    "rained": "rained",
    "mark": ["!", (".", 2), "?"],
}, {
    "GIRL": {"Ann": {"he": "she", "his": "her"}, "Beatrice": {"he": "she herself", "his": "her very own"},
             "Eve": {"he": "she", "his": "her (Eve's)"}},
    "BOY": {"Tom": {"he": "he", "his": "his"}, "Maximilian": {"he": "he", "his": "his"}},
    "PET": {"polar bear": {}, "owl": {}, "guinea pig": {}, "cat": {}},
    "THING": {"log": {"it": "it", "state": "wet"}, "spoon": {"it": "it", "state": "bent, and badly"}},
})
GRAMMARS = {"dice": DICE, "tale": TALE}


@pytest.fixture(params=GRAMMARS)
def listed(request):
    rules, pools = GRAMMARS[request.param]
    derivations = list(every_text(rules, pools))
    return Grammar(rules, pools), derivations


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
    assert math.isclose(grammar.entropy(), sum(-p * math.log2(p) for _, p in derivations), rel_tol=1e-12)
    assert math.isclose(grammar.expected_length(), sum(p * len(text) for text, p in derivations), rel_tol=1e-12)


def test_next_token_probabilities_after_every_prefix(listed):
    grammar, derivations = listed
    mass, following = defaultdict(float), defaultdict(lambda: defaultdict(float))
    for text, p in derivations:
        pieces = cut(text) + [""]
        for i, piece in enumerate(pieces):
            mass["".join(pieces[:i]), i == len(pieces)] += p
            following["".join(pieces[:i])][piece] += p
    for prefix, branches in following.items():
        given = grammar.next_token_probabilities(prefix)
        assert given.keys() == branches.keys()
        for token, p in branches.items():
            assert math.isclose(given[token], p / mass[prefix, False], rel_tol=1e-9)


def test_surprisals_lie_where_the_choices_are():
    grammar = Grammar(*TALE)
    text = "A girl, Beatrice ran, and Beatrice's polar bear sang; Her very own polar bear, Beatrice! No."
    given = grammar.surprisals(text)
    assert [token for token, _ in given] == cut(text) + [""]
    paid = [(i, token, bits) for i, (token, bits) in enumerate(given) if bits]
    by_hand = [(0, "A", 5 / 7 * 3 / 6),             # <who> ran, and that who is a girl
               (3, " Beatrice", 1 / 3),             # which girl
               (7, " Beatrice", 3 / 4),             # her name again is free: this is the choice of what happens then
               (10, " polar", 1 / 4),               # the whole of "polar bear"
               (22, " No", 7 / 8)]
    assert [row[:2] for row in paid] == [row[:2] for row in by_hand]
    assert all(math.isclose(bits, -math.log2(p)) for (_, _, bits), (_, _, p) in zip(paid, by_hand))


def test_sampled_frequencies_are_the_probabilities():
    rules, pools = TALE
    grammar, n = Grammar(rules, pools), 20_000
    seen = defaultdict(int)
    for text in grammar.sample_many(n, seed=3):
        seen[text] += 1
    derivations = dict(every_text(rules, pools))
    assert seen.keys() <= derivations.keys()
    # Pearson's χ² over all texts: its mean is k − 1 and its variance about 2(k − 1).
    statistic = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in derivations.items())
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


def test_vocabulary_is_what_the_texts_hold():
    rules, pools = TALE
    words = {word for text, _ in every_text(rules, pools) for word in re.findall(r"[A-Za-z]+", text)}
    assert Grammar(rules, pools).vocabulary() == sorted(words)


@pytest.mark.parametrize("rules, pools, complaint", [
    ({"a": ["the cat", "the dog"]}, {}, "rule <a> is ambiguous: two alternatives can begin with 'the'"),
    ({"a": ["<b> x", "<c> y"], "b": "[one|two]", "c": ["two", "three"]}, {}, "<a> is ambiguous: two alternatives can begin with 'two'"),
    ({"a": "I [saw|saw it]."}, {}, "rule <[saw|saw it]> is ambiguous"),
    ({"a": ["{x=P} fell", "Tom rose"]}, {"P": alike("Ann Tom")}, "<a> is ambiguous: two alternatives can begin with 'Tom'"),
    ({"a": ["{x=P} and <b>"], "b": ["{x}", "Tom"]}, {"P": alike("Ann Tom")}, "<b> is ambiguous: two alternatives can begin with 'Tom'"),
    ({"a": ["{x=P} and <b>"], "b": ["{x.he} fell", "she fell"]}, {"P": alike("Ann", he="she")}, "<b> is ambiguous"),
    ({"a": "{x=P}"}, {"P": alike(["polar bear", "polar fox"])}, "pool P: 'polar fox'"),
    ({"a": "{x=P}"}, {"P": {}}, "pool P is empty"),
    ({"a": "{x=P} {x.he}"}, {"P": {"Ann": {"he": ""}}}, "pool P: '' (he) is empty"),
    ({"a": "{x=P}"}, {"P": alike([" Ann"])}, "starts with a space"),
    ({"a": "{x=P}"}, {"P": alike(["Ann "])}, "a space belongs to the word or mark after it"),
    ({"a": "<b>s", "b": "cat"}, {}, "put a space between 'b' and 's'"),
    ({"a": "un<b>", "b": ["!", "done"]}, {}, "put a space between 'un' and 'b'"),
    ({"a": "{x=P}{y=P}"}, {"P": alike("Ann Tom")}, "put a space between 'x' and 'y'"),
    ({"a": "[un|re]<b>", "b": "done"}, {}, "put a space between '[un|re]' and 'b'"),
    ({"a": "{x} ran"}, {"P": alike("Ann")}, "{x} may be used before it is bound"),
    ({"a": "<b> {x}", "b": ["A {x=P}", "nobody"]}, {"P": alike("Ann")}, "{x} may be used before it is bound"),
    ({"a": "{x=P} {x.he}"}, {"P": {"Ann": {"he": "she"}, "It": {}}}, "'It' of pool P has no such feature"),
    ({"a": "{x=Q}"}, {"P": alike("Ann")}, "{x=Q} asks for a pool that is not there; have ['P']"),
    ({"a": "run <b>"}, {}, "rule <a> refers to <b>, which is not there"),
    ({"a": "run", "b": "walk"}, {}, "rule <b> is never used"),
    ({"a": ["<a> again", "once"]}, {}, "rule <a> comes back to itself: a -> a"),
    ({"a": "x <b>", "b": ["y <a>", "z"]}, {}, "rule <a> comes back to itself: a -> b -> a"),
    ({"a": ["", "x"]}, {}, "cannot read ''"),
    ({"a": "[x|]"}, {}, "cannot read ''"),
    ({"a": " x"}, {}, "cannot read ' x'"),
    ({"a": "x "}, {}, "cannot read ' '"),
    ({"a": "x  y"}, {}, "cannot read '  y'"),
    ({"a": "x {y"}, {}, "cannot read ' {y'"),
    ({"a": "x | y"}, {}, "cannot read ' | y'"),
    ({"a": []}, {}, "rule <a> needs at least one alternative"),
    ({"a": [("x", 1), ("y", 0)]}, {}, "each with a weight above 0"),
])
def test_what_a_grammar_may_not_be(rules, pools, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as refusal:
        Grammar(rules, pools)
    assert "\n" not in str(refusal.value)


def test_the_same_first_word_on_branches_that_never_meet_is_fine():
    grammar = Grammar({"a": ["one <b>", "two <c>"], "b": ["cat", "dog"], "c": ["dog", "cow"]})
    assert grammar.count() == 4 and grammar.entropy() == 2


@pytest.mark.parametrize("text, reason", [
    ("three or six", "at character 8, after 'three or': ' six' cannot come here, but ' four', ' five' can"),
    ("three or", "at character 8, after 'three or': the end cannot come here, but ' four', ' five' can"),
    ("one two", "at character 3, after 'one': ' two' cannot come here, but the end can"),
    (" one", "at character 0, after '': ' one' cannot come here, but 'one', 'two', 'three' can"),
    ("", "at character 0, after '': the end cannot come here, but 'one', 'two', 'three' can"),
    ("three  or four", "at character 5, after 'three': a space belongs to the word or mark after it, and there is none"),
    ("one ", "at character 3, after 'one': a space belongs to the word or mark after it, and there is none"),
])
def test_why_not(text, reason):
    grammar = Grammar(*DICE)
    assert grammar.why_not(text) == reason
    assert not grammar.is_grammatical(text) and grammar.surprisal(text) == math.inf


def test_why_not_lists_a_few_of_many():
    reason = Grammar({"a": "[a|b|c|d|e|f|g|h]"}).why_not("z")
    assert reason.endswith("but 'a', 'b', 'c', 'd', 'e', 'f' or 2 others can")


def test_why_not_shows_the_last_of_what_came_before():
    reason = Grammar({"a": "the quick brown fox jumps over the lazy dog"}).why_not("the quick brown fox jumps over the lazy cat")
    assert reason == "at character 39, after ' jumps over the lazy': ' cat' cannot come here, but ' dog' can"


def test_a_prefix_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="' six' cannot come here"):
        Grammar(*DICE).next_token_probabilities("three or six")


@pytest.mark.parametrize("text", ["", "Ann's cat ran.", '"Oh!" she said,\nand fell', "naïve  ".strip(), "1 2;3", "¿Qué? — sí."])
def test_tokens_are_the_text(text):
    assert list(tokens(text)) == cut(text)
    assert "".join(tokens(text)) == text


def test_values_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="'Ann' comes twice"):
        alike("Ann Tom Ann")


def test_a_grammar_without_rules_is_refused():
    with pytest.raises(ValueError, match="at least one rule"):
        Grammar({})
