"""A grammar that writes texts and computes the exact probability of each of them.

    P(text) = Π P(choice)              H(rule) = Σᵢ pᵢ·(−log₂ pᵢ + Σ H(part))  bits

The product runs over the choices that write the text; pᵢ is the probability of alternative i, and
the inner sum runs over its parts. H of the first rule is the entropy of a text: no language model
can have a lower expected loss on these texts. The product is P(text) only if there is one way to
write the text. Therefore the alternatives of a rule must begin with different tokens. The next
token then shows which alternative was chosen (an LL(1) grammar).

Source: Lewis and Stearns 1968 (LL(1)); Shannon 1948, §6 (the entropy of a sequence of choices).
Not here: recursion, so there are finitely many texts; and choices that depend on earlier choices. A
later part can only repeat an earlier value or one of its features. Such a part costs 0 bits, but a
model must remember the value to predict it.

How to write a grammar. The rules are a dict: name -> an alternative, or a list of alternatives. An
alternative is a string, or (string, weight); grammar_notation.py explains the strings. A text
starts at the first rule. A pool is a dict, value -> {feature: text}, whose values are equally
likely. A slot is a name for a value that was drawn from a pool.
"""
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from math import inf, log2, prod
from typing import NamedTuple

import torch

from minigpt.worlds.grammar_notation import Part, is_word, literal, parse, tokens


class Measures(NamedTuple):
    """Exact properties of the texts that a part can write."""
    first: set[str]         # the tokens, without their space, with which it can begin
    entropy: float          # bits
    length: float           # expected length in characters
    count: int              # number of different texts
    n_choices: int          # the largest number of choices that one text takes


def alike(values: str | list[str], **features: str) -> dict[str, dict[str, str]]:
    """A pool whose values have the same features. `values` is a list, or words in one string.

    >>> alike("Ann Eve", he="she")
    {'Ann': {'he': 'she'}, 'Eve': {'he': 'she'}}
    """
    values = values.split() if isinstance(values, str) else list(values)
    if twice := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"the value {min(twice)!r} comes twice; the values of a pool must differ")
    return {value: features for value in values}


def checked_pool(name: str, pool: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """The values of a pool, checked, each as {feature: text}; feature "" is the value itself."""
    if not pool:
        raise ValueError(f"pool {name} is empty; give it at least one value")
    firsts, values = set(), []
    for value, features in pool.items():
        for feature, text in {"": value, **features}.items():
            if not text or text[0] == " ":
                what = f"feature {feature!r} of {value!r}" if feature else "a value"
                raise ValueError(f"pool {name}: {what} is {text!r}; it must begin with a word or "
                                 "a mark")
            tokens(text)                                        # refuses a space that stands alone
        first = tokens(value)[0]
        if first in firsts:
            raise ValueError(f"pool {name}: {value!r} and another value begin with {first!r}; the "
                             "first token must tell the values apart")
        firsts.add(first)
        capitals = {f.capitalize(): text[0].upper() + text[1:] for f, text in features.items()}
        values.append({"": value, **features, **capitals})
    return values


def merged(ends: list[tuple[float, dict]]) -> dict[str, dict[str, float]]:
    """The slots that every alternative fills, with the probabilities of their pools.

    >>> merged([(0.75, {"x": {"P": 1.0}}), (0.25, {"x": {"Q": 1.0}, "y": {"P": 1.0}})])
    {'x': {'P': 0.75, 'Q': 0.25}}
    """
    always = set.intersection(*(set(slots) for _, slots in ends))
    return {slot: {pool: sum(p * slots[slot].get(pool, 0) for p, slots in ends)
                   for _, end in ends for pool in end[slot]} for slot in always}


def push(parts: list[Part], space: str, stack):
    """The stack with these parts on top; `space` stands before the first of them."""
    for part in reversed(parts[1:]):
        stack = (part, stack)
    kind, _, name, detail = parts[0]
    return Part(kind, space, name, detail), stack


class Grammar:
    """Rules and pools, checked and measured, that write texts and read them.

    ValueError if two alternatives begin alike, if a rule contains itself, if a slot is used before
    it is filled, or if a rule, pool or feature is not there.

    >>> pools = {"NAME": alike("Ann Eve", he="she") | alike("Tom", he="he")}
    >>> grammar = Grammar({"text": "{who=NAME} ran until {who.he} [fell|slept]."}, pools)
    >>> grammar.count(), round(grammar.entropy(), 3)
    (6, 2.585)
    >>> grammar.why_not("Eve ran until he fell.")
    "at character 13, after 'Eve ran until': ' he' cannot come here, but ' she' can"
    """

    def __init__(self, rules: dict, pools: dict[str, dict[str, dict[str, str]]] | None = None):
        if not rules:
            raise ValueError("a grammar needs at least one rule; a text starts at the first")
        self.pools = {name: checked_pool(name, pool) for name, pool in (pools or {}).items()}
        self.rules, self._reached, self._words = {}, set(), set()
        for name, alternatives in rules.items():
            self._add(name, [alternatives] if isinstance(alternatives, str) else alternatives)
        self._start = Part("rule", "", next(iter(rules)))
        self._measures = self._measure(self._start, {}, path=())
        if unused := set(rules) - self._reached:
            raise ValueError(f"rule <{min(unused)}> is never used; refer to it or take it out")
        # Cumulative probabilities of each rule's alternatives, by which `sample` chooses.
        self._thresholds = {name: list(accumulate(p for p, _ in alternatives))[:-1]
                            for name, alternatives in self.rules.items()}

    def _add(self, name: str, alternatives: list) -> None:
        """Stores a rule as [(probability, parts)], and its choices [a|b] as rules of their own."""
        weighted = [(a, 1) if isinstance(a, str) else a for a in alternatives]
        if not weighted or min(weight for _, weight in weighted) <= 0:
            raise ValueError(f"rule <{name}> needs at least one alternative, each with a weight "
                             f"above 0; it has {alternatives}")
        total = sum(weight for _, weight in weighted)
        self.rules[name] = [(weight / total, parse(name, text)) for text, weight in weighted]
        for _, parts in self.rules[name]:
            for part in parts:
                if part.kind == "rule" and part.name[0] == "[":
                    self._add(part.name, part.name[1:-1].split("|"))

    def _measure(self, part: Part, known: dict[str, dict[str, float]], path: tuple) -> Measures:
        """Checks and measures a part and all parts below it. `path`: the rules that lead to it.

        known: slot -> {pool: probability that the slot's value was drawn from it}, for the slots
        that are certainly filled. A draw, and a rule that always draws, add to it.
        """
        if part.kind == "rule":
            return self._measure_rule(part.name, known, path)
        if part.kind == "token":
            forms = [(1.0, part.name)]
        elif part.kind == "draw":
            if part.detail not in self.pools:
                raise ValueError(f"rule <{path[-1]}>: {{{part.name}={part.detail}}} asks for a "
                                 f"pool that is not there; the pools are {sorted(self.pools)}")
            pool = self.pools[part.detail]
            forms = [(1 / len(pool), value[""]) for value in pool]
            known[part.name] = {part.detail: 1.0}
        else:
            forms = self._mentioned(part, known, path[-1])
        for _, form in forms:
            self._words.update(token.strip(" ") for token in tokens(form))
        first = {tokens(form)[0] for _, form in forms}
        length = sum(p * len(form) for p, form in forms)
        count = len(forms) if part.kind == "draw" else 1        # a mention is no choice
        return Measures(first, log2(count), length, count, n_choices=int(part.kind == "draw"))

    def _mentioned(self, part: Part, known: dict, rule: str) -> list[tuple[float, str]]:
        """(probability, text) of each value or feature that a mention can write."""
        if part.name not in known:
            raise ValueError(f"rule <{rule}>: {{{part.name}}} may be used before it is filled; put "
                             f"{{{part.name}=POOL}} before it")
        forms = []
        for pool, p in known[part.name].items():
            values = self.pools[pool]
            if lacking := [value[""] for value in values if part.detail not in value]:
                raise ValueError(f"rule <{rule}>: {{{part.name}.{part.detail}}} asks for a feature "
                                 f"that {lacking[0]!r} of pool {pool} does not have")
            forms += [(p / len(values), value[part.detail]) for value in values]
        return forms

    def _measure_rule(self, name: str, known: dict, path: tuple) -> Measures:
        """Checks a rule and averages the measures of its alternatives."""
        if name not in self.rules:
            raise ValueError(f"rule <{path[-1]}> refers to <{name}>, which is not there; add it")
        if name in path:
            raise ValueError(f"rule <{name}> comes back to itself: {' -> '.join((*path, name))}; "
                             "recursion is not supported")
        self._reached.add(name)
        first, entropy, length, count, n_choices, ends = set(), 0.0, 0.0, 0, 0, []
        for p, parts in self.rules[name]:
            slots = dict(known)
            measured = self._measure_parts(name, parts, slots, (*path, name))
            if shared := first & measured[0].first:
                raise ValueError(f"rule <{name}> is ambiguous: two alternatives can begin with "
                                 f"{min(shared)!r}; write it once, and choose after it")
            first |= measured[0].first
            entropy -= p * log2(p)
            for part, its in zip(parts, measured):
                entropy += p * its.entropy
                length += p * (len(part.space) + its.length)
            count += prod(its.count for its in measured)
            n_choices = max(n_choices, sum(its.n_choices for its in measured))
            ends.append((p, slots))
        known.update(merged(ends))
        return Measures(first, entropy, length, count, n_choices + 1)

    def _measure_parts(self, rule: str, parts: list[Part], known: dict, path: tuple) -> list:
        """The measures of the parts of one alternative, in order."""
        measured = [self._measure(part, known, path) for part in parts]
        # Two words without a space between them would be read as one. A mark keeps them apart.
        for before, part, its in zip(parts, parts[1:], measured[1:]):
            is_mark = before.kind == "token" and not is_word(before.name)
            if not part.space and not is_mark and any(map(is_word, its.first)):
                raise ValueError(f"rule <{rule}>: put a space between {before.name!r} and "
                                 f"{part.name!r}, or they may read as one word")
        return measured

    def entropy(self) -> float:
        """H in bits per text, the loss of a perfect model; summed up in `_measure_rule`."""
        return self._measures.entropy

    def expected_length(self) -> float:
        """E[characters of a text]. entropy() / expected_length() is in bits per character."""
        return self._measures.length

    def count(self) -> int:
        """The number of different texts."""
        return self._measures.count

    def vocabulary(self) -> list[str]:
        """All words that a text can have, as they are spelled there, sorted."""
        return sorted(filter(is_word, self._words))

    def sample(self, generator: torch.Generator) -> str:
        """One text, drawn from P."""
        # One call draws all the uniforms that a text can need: a call for each would be slower.
        n = self._measures.n_choices
        uniforms = iter(torch.rand(n, dtype=torch.float64, generator=generator).tolist())
        written, slots = [], {}

        def write(rule):
            alternative = bisect(self._thresholds[rule], next(uniforms))
            for kind, space, name, detail in self.rules[rule][alternative][1]:
                written.append(space)
                if kind == "token":
                    written.append(name)
                elif kind == "rule":
                    write(name)
                elif kind == "draw":
                    pool = self.pools[detail]
                    slots[name] = pool[int(next(uniforms) * len(pool))]
                    written.append(slots[name][""])
                else:
                    written.append(slots[name][detail])

        write(self._start.name)
        return "".join(written)

    def sample_many(self, n: int, seed: int) -> list[str]:
        """n texts. The same seed gives the same texts; a larger n adds texts at the end."""
        generator = torch.Generator().manual_seed(seed)
        return [self.sample(generator) for _ in range(n)]

    # Reading. The stack holds the parts that are still to be read, as a linked list (part, rest).

    def _next(self, stack, slots: dict, p: float = 1.0, only: str | None = None) -> Iterator[tuple]:
        """Yields (token, (its probability, stack and slots after it)) for each possible token.

        The token "" is the end of the text. With `only`, parts that begin with a different token
        are skipped early; this makes reading several times faster.
        """
        if stack is None:
            yield "", (p, None, slots)
            return
        (kind, space, name, detail), rest = stack
        if kind == "token":
            yield space + name, (p, rest, slots)
        elif kind == "rule":
            for q, parts in self.rules[name]:
                if only is None or parts[0].kind != "token" or space + parts[0].name == only:
                    yield from self._next(push(parts, space, rest), slots, p * q, only)
        elif kind == "draw":
            q = p / len(self.pools[detail])
            for value in self.pools[detail]:
                parts = literal(value[""])
                if only is None or space + parts[0].name == only:
                    yield from self._next(push(parts, space, rest), {**slots, name: value}, q)
        else:
            yield from self._next(push(literal(slots[name][detail]), space, rest), slots, p)

    def surprisals(self, text: str) -> list[tuple[str, float]]:
        """(token, −log₂ P(token | tokens before it)) for each token and for the end, written "".

        ValueError at the first token that cannot come, with up to six that can.
        """
        read, stack, slots = [], (self._start, None), {}
        for token in (*tokens(text), ""):
            possible = dict(self._next(stack, slots, only=token))
            if token not in possible:
                before, can = "".join(t for t, _ in read), dict(self._next(stack, slots))
                came, *others = [repr(option) if option else "the end" for option in (token, *can)]
                more = f" or {len(others) - 6} others" if len(others) > 6 else ""
                raise ValueError(f"at character {len(before)}, after {before[-20:]!r}: {came} "
                                 f"cannot come here, but {', '.join(others[:6])}{more} can")
            p, stack, slots = possible[token]
            read.append((token, -log2(p) + 0.0))                # + 0.0 turns −0.0 into 0.0
        return read

    def surprisal(self, text: str) -> float:
        """−log₂ P(text), in bits: inf if the grammar cannot write the text."""
        try:
            return sum(bits for _, bits in self.surprisals(text))
        except ValueError:
            return inf

    def is_grammatical(self, text: str) -> bool:
        """Whether the grammar can write this text."""
        return self.surprisal(text) < inf

    def why_not(self, text: str) -> str:
        """The first mistake of a text, in one line; "" if the grammar can write it."""
        try:
            self.surprisals(text)
            return ""
        except ValueError as reason:
            return str(reason)
