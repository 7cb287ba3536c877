"""A grammar that writes text and knows, exactly, how probable each text is: a floor under every language model's loss.

    P(text) = Π P(choice)              H(rule) = Σᵢ pᵢ·(−log₂ pᵢ + Σ H(parts of alternative i))   bits

The product is right only if a text has one derivation, and here it does by construction: the alternatives of a rule never
begin with the same token, so the next token of a text always tells which choice was made (an LL(1) grammar). This is
checked when a Grammar is built, and an ambiguous one is refused. H of the first rule is then the entropy of a text.

Source: LL(1), Lewis and Stearns 1968; the chain rule of entropy, Shannon 1948, §6.
Not here: recursion (texts are finitely many, so they can be counted), and choices that look at earlier ones: a later word
may *repeat* an earlier value or one of its features, which costs 0 bits and is what a model must learn to remember.

How to write one: a dict, rule -> an alternative, or a list of alternatives, each a string or (string, weight); the first rule
is where a text starts. In a string:
    <rule>          a text of that rule                 [ran|walked]    a choice made on the spot
    {hero=NAME}     draw a value from pool NAME         {hero}          the same value again
    {hero.he}       a feature of that value             {hero.He}       the feature, capitalised
A pool is a dict, value -> {feature: text}; its values are equally likely. `alike` writes pools whose values share features.

A token is a word or a mark, with the space before it: "Ann's cat ran." is `Ann` `'` `s` ` cat` ` ran` `.`, and the tokens of
a text, joined, are the text.
"""
import re
from bisect import bisect
from functools import cache
from itertools import accumulate
from math import inf, log2
from typing import NamedTuple

import torch

TOKEN = re.compile(r" ?(?:\w+|[^\w ])")
PART = re.compile(r"( ?)(?:<(?P<rule>[^<>]+)>|\[(?P<choice>[^][]+)\]|(?P<token>\w+|[^\w <>{}|\[\]])"
                  r"|\{(?P<slot>\w+)(?:=(?P<pool>\w+)|\.(?P<feature>\w+))?\})")


class Part(NamedTuple):
    kind: str               # "token", "rule", "draw" (bind a slot and write it) or "mention" (write a bound slot)
    space: str              # " " or "": written before the part's first token
    name: str               # of the token, the rule or the slot
    detail: str = ""        # of a draw its pool, of a mention its feature ("" is the value itself)


class Sums(NamedTuple):
    first: set[str]         # the tokens (without their space) with which a part can begin
    bits: float             # its entropy
    length: float           # its expected length in characters
    texts: int              # how many different texts it can write
    choices: int            # the most choices that one text takes


def tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text; ValueError if a space stands before another, or last, and so before no token.

    >>> tokens('The cat said, "Hi."')
    ('The', ' cat', ' said', ',', ' "', 'Hi', '.', '"')
    """
    if stray := re.search(r" (?= |\Z)", text):
        raise ValueError(f"at character {stray.start()}, after {text[max(0, stray.start() - 20):stray.start()]!r}: "
                         "a space belongs to the word or mark after it, and there is none")
    return tuple(TOKEN.findall(text))


def alike(values, **features: str) -> dict[str, dict[str, str]]:
    """A pool whose values share their features: a list of strings, or words in one string.

    >>> alike("Ann Eve", he="she")
    {'Ann': {'he': 'she'}, 'Eve': {'he': 'she'}}
    """
    values = values.split() if isinstance(values, str) else list(values)
    if twice := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"a pool's values are distinct, but {min(twice)!r} comes twice")
    return {value: features for value in values}


class Grammar:
    """Rules and pools, checked, measured, and ready to write and to read.

    >>> pools = {"NAME": alike("Ann Eve", he="she") | alike("Tom", he="he")}
    >>> grammar = Grammar({"text": "{who=NAME} ran until {who.he} [fell|slept]."}, pools)
    >>> grammar.count(), round(grammar.entropy(), 3)
    (6, 2.585)
    >>> grammar.next_token_probabilities("Eve ran until")
    {' she': 1.0}
    >>> grammar.why_not("Eve ran until he fell.")
    "at character 13, after 'Eve ran until': ' he' cannot come here, but ' she' can"
    """

    def __init__(self, rules: dict, pools: dict[str, dict[str, dict[str, str]]] | None = None):
        """ValueError if the grammar could be ambiguous, recurses, uses a slot before it is bound, or names what is not there."""
        self.pools = {name: _pool(name, values) for name, values in (pools or {}).items()}
        self.rules, self._reached, self._words = {}, set(), set()
        if not rules:
            raise ValueError("a grammar needs at least one rule; the first is where a text starts")
        for name, alternatives in rules.items():
            self._add(name, [alternatives] if isinstance(alternatives, str) else alternatives)
        self._start = Part("rule", "", next(iter(rules)))
        self._sums = self._measure(self._start, {}, path=())
        if unused := set(rules) - self._reached:
            raise ValueError(f"rule <{min(unused)}> is never used; refer to it or take it out")
        self._thresholds = {name: list(accumulate(p for p, _ in rule))[:-1] for name, rule in self.rules.items()}

    # Building: strings become parts, and every reachable part is checked and measured in one walk.

    def _add(self, name: str, alternatives: list) -> None:
        weighted = [(alternative, 1) if isinstance(alternative, str) else alternative for alternative in alternatives]
        if not weighted or min(weight for _, weight in weighted) <= 0:
            raise ValueError(f"rule <{name}> needs at least one alternative, each with a weight above 0; got {alternatives}")
        total = sum(weight for _, weight in weighted)
        self.rules[name] = [(weight / total, self._parts(name, text)) for text, weight in weighted]

    def _parts(self, rule: str, text: str) -> list[Part]:
        parts, at = [], 0
        while at < len(text) or not parts:
            match = PART.match(text, at)
            if match is None or (at == 0 and match[1]):
                raise ValueError(f"rule <{rule}>: cannot read {text[at:]!r} in {text!r}; write words, marks, <rule>, {{slot=POOL}}, "
                                 "{slot}, {slot.feature} and [this|that], with single spaces between and none at the ends")
            space, at = match[1], match.end()
            if match["choice"]:
                self._add(f"[{match['choice']}]", match["choice"].split("|"))
                parts.append(Part("rule", space, f"[{match['choice']}]"))
            elif match["slot"]:
                kind, detail = ("draw", match["pool"]) if match["pool"] else ("mention", match["feature"] or "")
                parts.append(Part(kind, space, match["slot"], detail))
            else:
                parts.append(Part(match.lastgroup, space, match["rule"] or match["token"]))
        return parts

    def _measure(self, part: Part, known: dict[str, dict[str, float]], path: tuple[str, ...]) -> Sums:
        """Check a part and all below it, and sum it up; binds in `known` the slots that it is sure to bind.

        known: slot -> {pool: the probability that the slot's value was drawn from it}. Choices do not look at earlier values,
        and lengths add up, so these marginals are all that an expected length depends on.
        """
        if part.kind == "rule":
            return self._measure_rule(part.name, known, path)
        choices, texts, here, slot, detail = 0, 1, f"rule <{path[-1]}>", part.name, part.detail
        if part.kind == "token":
            forms = [(1.0, part.name)]
        elif part.kind == "draw":
            if detail not in self.pools:
                raise ValueError(f"{here}: {{{slot}={detail}}} asks for a pool that is not there; have {sorted(self.pools)}")
            known[slot] = {detail: 1.0}
            choices, texts = 1, len(self.pools[detail])
            forms = [(1 / texts, value[""]) for value in self.pools[detail]]
        else:
            if slot not in known:
                raise ValueError(f"{here}: {{{slot}}} may be used before it is bound; put {{{slot}=POOL}} before it")
            forms = []
            for pool, p in known[slot].items():
                for value in self.pools[pool]:
                    if detail not in value:
                        raise ValueError(f"{here}: {{{slot}.{detail}}}, but {value['']!r} of pool {pool} has no such feature")
                    forms.append((p / len(self.pools[pool]), value[detail]))
        self._words.update(token.strip(" ") for _, form in forms for token in tokens(form))
        return Sums({tokens(form)[0] for _, form in forms}, log2(texts), sum(p * len(form) for p, form in forms), texts, choices)

    def _measure_rule(self, name: str, known: dict[str, dict[str, float]], path: tuple[str, ...]) -> Sums:
        if name not in self.rules:
            raise ValueError(f"rule <{path[-1]}> refers to <{name}>, which is not there")
        if name in path:
            raise ValueError(f"rule <{name}> comes back to itself: {' -> '.join((*path, name))}; recursion is not supported")
        self._reached.add(name)
        starts, bits, length, texts, choices, ends = set(), 0.0, 0.0, 0, 0, []
        for p, parts in self.rules[name]:
            slots, product, depth, before = dict(known), 1, 0, None
            bits -= p * log2(p)
            for part in parts:
                sums = self._measure(part, slots, (*path, name))
                if before is None:
                    if shared := sums.first & starts:
                        raise ValueError(f"rule <{name}> is ambiguous: two alternatives can begin with {min(shared)!r}; "
                                         "let one hold it, and choose after it")
                    starts |= sums.first
                # Two words without a space between would be read as one; a mark on either side keeps them apart.
                elif not part.space and (before.kind != "token" or _is_word(before.name)) and any(map(_is_word, sums.first)):
                    raise ValueError(f"rule <{name}>: put a space between {before.name!r} and {part.name!r}, "
                                     "or they may read as one word")
                bits, length = bits + p * sums.bits, length + p * (len(part.space) + sums.length)
                product, depth, before = product * sums.texts, depth + sums.choices, part
            texts, choices = texts + product, max(choices, depth)
            ends.append((p, slots))
        for slot in set.intersection(*(set(slots) for _, slots in ends)):
            known[slot] = {pool: sum(p * slots[slot].get(pool, 0) for p, slots in ends) for _, end in ends for pool in end[slot]}
        return Sums(starts, bits, length, texts, choices + 1)

    # What the walk found, exactly.

    def entropy(self) -> float:
        """H, bits a text: what a perfect model still has to be told."""
        return self._sums.bits

    def expected_length(self) -> float:
        """E[characters of a text]; entropy() / expected_length() is the floor in bits per character."""
        return self._sums.length

    def count(self) -> int:
        """How many different texts there are."""
        return self._sums.texts

    def vocabulary(self) -> list[str]:
        """Every word that a text can hold, as spelled there, sorted."""
        return sorted(filter(_is_word, self._words))

    # Writing.

    def sample(self, generator: torch.Generator) -> str:
        """One text, drawn from P."""
        # One call for all the uniforms that a text can need: a call for each would cost more than the text.
        uniforms = iter(torch.rand(self._sums.choices, dtype=torch.float64, generator=generator).tolist())
        written, bound = [], {}

        def write(rule):
            for kind, space, name, detail in self.rules[rule][bisect(self._thresholds[rule], next(uniforms))][1]:
                written.append(space)
                if kind == "token":
                    written.append(name)
                elif kind == "rule":
                    write(name)
                elif kind == "draw":
                    pool = self.pools[detail]
                    bound[name] = pool[int(next(uniforms) * len(pool))]
                    written.append(bound[name][""])
                else:
                    written.append(bound[name][detail])

        write(self._start.name)
        return "".join(written)

    def sample_many(self, n: int, seed: int) -> list[str]:
        """n texts; the same seed gives the same texts, and a larger n the same ones first."""
        generator = torch.Generator().manual_seed(seed)
        return [self.sample(generator) for _ in range(n)]

    # Reading: `todo` is what is still to be written, a linked list (part, rest), so that branches share their rest.

    def _next(self, todo, bound: dict, p: float = 1.0, only: str | None = None):
        """Yield each token that can come next, as (token, (probability, todo after it, bound after it)); "" is the end.

        With `only`, words that are not this token are left out early, which makes reading several times faster.
        """
        if todo is None:
            yield "", (p, None, bound)
            return
        (kind, space, name, detail), rest = todo
        if kind == "token":
            yield space + name, (p, rest, bound)
        elif kind == "rule":
            for q, parts in self.rules[name]:
                if only is None or parts[0].kind != "token" or space + parts[0].name == only:
                    yield from self._next(_push(parts, space, rest), bound, p * q, only)
        elif kind == "draw":
            for value in self.pools[detail]:
                parts = _literal(value[""])
                if only is None or space + parts[0].name == only:
                    yield from self._next(_push(parts, space, rest), {**bound, name: value}, p / len(self.pools[detail]))
        else:
            yield from self._next(_push(_literal(bound[name][detail]), space, rest), bound, p)

    def _read(self, given: tuple[str, ...]):
        """Read tokens one by one: their surprisals in bits, and what can come next; ValueError at the first that cannot come."""
        bits, todo, bound = [], (self._start, None), {}
        for i, token in enumerate(given):
            options = dict(self._next(todo, bound, only=token))
            if token not in options:
                before = "".join(given[:i])
                came, *can = [repr(option) if option else "the end" for option in (token, *dict(self._next(todo, bound)))]
                raise ValueError(f"at character {len(before)}, after {before[-20:]!r}: {came} cannot come here, "
                                 f"but {', '.join(can[:6])}{f' or {len(can) - 6} others' if len(can) > 6 else ''} can")
            p, todo, bound = options[token]
            bits.append(-log2(p) + 0.0)                                 # + 0.0 turns −0.0 to 0.0
        return bits, dict(self._next(todo, bound))

    def surprisals(self, text: str) -> list[tuple[str, float]]:
        """(token, −log₂ P(token | tokens before it)) for each token, and for "", the end; ValueError if not of this grammar."""
        given = (*tokens(text), "")
        return list(zip(given, self._read(given)[0]))

    def surprisal(self, text: str) -> float:
        """−log₂ P(text), bits: inf if the grammar cannot write it."""
        try:
            return sum(bits for _, bits in self.surprisals(text))
        except ValueError:
            return inf

    def is_grammatical(self, text: str) -> bool:
        """Whether the grammar can write this text."""
        return self.surprisal(text) < inf

    def why_not(self, text: str) -> str:
        """What is the first thing wrong with a text, in one line; "" if nothing is."""
        try:
            self.surprisals(text)
            return ""
        except ValueError as reason:
            return str(reason)

    def next_token_probabilities(self, prefix: str) -> dict[str, float]:
        """{token: P(token | prefix)} after a prefix that ends where a token ends; "" is the end of the text."""
        return {token: p for token, (p, _, _) in self._read(tokens(prefix))[1].items()}


def _is_word(token: str) -> bool:
    return re.match(r"\w", token) is not None


def _pool(name: str, values: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Each value with its features as {"": value, feature: text, Feature: Text}; checked to be told apart by a first token."""
    starts = set()
    for value, features in values.items():
        for feature, text in {"": value, **features}.items():
            if not text or text[0] == " " or tokens(text)[0] in starts and feature == "":
                raise ValueError(f"pool {name}: {text!r}{feature and ' (' + feature + ')'} is empty, starts with a space, "
                                 "or begins with the same word as another value")
        starts.add(tokens(value)[0])
    if not starts:
        raise ValueError(f"pool {name} is empty")
    return [{"": value, **features, **{feature.capitalize(): text[0].upper() + text[1:] for feature, text in features.items()}}
            for value, features in values.items()]


@cache
def _literal(text: str) -> list[Part]:
    return [Part("token", " " * (token[0] == " "), token.strip(" ")) for token in tokens(text)]


def _push(parts: list[Part], space: str, rest):
    for part in reversed(parts[1:]):
        rest = (part, rest)
    kind, _, name, detail = parts[0]
    return Part(kind, space, name, detail), rest
