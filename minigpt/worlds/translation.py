"""Translation: a grammar that writes an English sentence, its translation and their alignment.

    source     the tired Italian nurse does not see the boy
    target     la enfermera italiana cansada no ve al chico
    alignment  (0, 0) (1, 3) (2, 2) (3, 1) (4, 5) (5, 4) (5, 6) (6, 7) (7, 8)

The alignment is a list of links (target word, source word), counted from 0: the link (1, 3) says
that «enfermera» translates "nurse". Each English sentence has exactly one translation into Spanish
and one into Italian. So a model's translation is right or wrong, and its wrong words can be found.

The translation shows what the English words do not show. Articles, adjectives, verbs and
participles agree with the noun in gender and number. Adjectives follow their noun, in the reverse
order. Spanish has «está» before a state and «es» before a quality. In the Italian past, some verbs
take «ha» and others «è».

The alignment is known because a sentence is built from small pieces. Within a piece, each target
word is linked to each source word: «ha» and «visto» to "saw", «nel» to "in" and "the", «ve» to
"does" and "see". The «a» of «ve a la chica» has no counterpart in English, so it has no link.

Source: course C, "RNNs: a Machine Translation example" (the task); Brown et al. 1993, "Alignments"
(links between words). The grammar and its words (lexicon.py) were made for this project.
Not here: the first and second person, punctuation, capitals, and sense: a squirrel may sell a hat.
"""
from collections.abc import Iterator
from typing import NamedTuple

import torch

from minigpt.worlds import lexicon
from minigpt.worlds.lexicon import LANGUAGES, NOTHING, Entry

SHORTEST, LONGEST = 4, 25                   # English words in a sentence


class Pair(NamedTuple):
    """A sentence, or a piece of one, in both languages."""
    source: list[str]
    target: list[str]
    alignment: list[tuple[int, int]]        # links (target word, source word), sorted


class Noun(NamedTuple):
    """The features of a noun that other words depend on."""
    kind: str               # a key of lexicon.NOUNS
    feminine: bool
    plural: bool


def piece(source: str, target: str) -> Pair:
    """Words that translate each other as a group: each target word is linked to each source word.

    >>> piece("saw", "ha visto")
    Pair(source=['saw'], target=['ha', 'visto'], alignment=[(0, 0), (1, 0)])
    """
    source, target = source.split(), target.split()
    return Pair(source, target, [(t, s) for t in range(len(target)) for s in range(len(source))])


def join(*parts: Pair, order: list[int] | None = None) -> Pair:
    """One piece from several: source words in the order of the parts, target words in `order`.

    >>> join(piece("black", "negro"), piece("cat", "gato"), order=[1, 0])
    Pair(source=['black', 'cat'], target=['gato', 'negro'], alignment=[(0, 1), (1, 0)])
    """
    starts = [sum(len(part.source) for part in parts[:i]) for i in range(len(parts))]
    target, alignment = [], []
    for i in range(len(parts)) if order is None else order:
        alignment += [(t + len(target), s + starts[i]) for t, s in parts[i].alignment]
        target += parts[i].target
    return Pair([word for part in parts for word in part.source], target, alignment)


def agree(forms: list[str], noun: Noun) -> str:
    """The one of four forms, in the order of the tables, with the noun's gender and number."""
    return forms[2 * noun.plural + noun.feminine]


def article(language: str, form: str, noun: str) -> str:
    """The form of an Italian article before this noun; other determiners stay as they are.

    >>> [article("italian", "il", noun) for noun in ("gatto", "zaino", "specchio", "uomo")]
    ['il', 'lo', 'lo', "l'"]
    """
    if language == "spanish":
        return form
    if noun[0] in "aeiou":
        return lexicon.BEFORE_VOWEL.get(form, form)
    if noun[0] == "z" or (noun[0] == "s" and noun[1] not in "aeiou"):
        return lexicon.BEFORE_Z_OR_S.get(form, form)
    return form


def conjugate(language: str, forms: list[str], subject: Noun, past: bool) -> str:
    """The present or past of a verb in the target language, third person.

    >>> nurses = Noun("person", feminine=True, plural=True)
    >>> conjugate("italian", ["cade", "cadono", "è", "caduto"], nurses, past=True)
    'sono cadute'
    """
    if language == "spanish":
        return forms[2 * past + subject.plural]
    *present, auxiliary, participle = forms
    if not past:
        return present[subject.plural]
    if auxiliary == "ha":
        return f"{'hanno' if subject.plural else 'ha'} {participle}"
    participles = [participle[:-1] + ending for ending in "oaie"]
    return f"{'sono' if subject.plural else 'è'} {agree(participles, subject)}"


def uniforms(generator: torch.Generator | None) -> Iterator[float]:
    """An endless stream of uniform numbers in [0, 1), drawn 64 at a time, which is faster."""
    while True:
        yield from torch.rand(64, generator=generator).tolist()


class Writer:
    """Writes one sentence by random choices.

    No choice depends on the language, so one state of the generator gives one English sentence for
    both. `richness`, uniform in [0, 1), raises the probability of everything that makes a sentence
    longer. Because it varies, short and long sentences are both frequent.
    """

    def __init__(self, language: str, generator: torch.Generator | None):
        self.language = language
        self.uniforms = uniforms(generator)
        self.richness = next(self.uniforms)

    def maybe(self, probability: float) -> bool:
        """True with this probability."""
        return next(self.uniforms) < probability

    def draw(self, options):
        """One of the options, each with the same probability."""
        return options[int(next(self.uniforms) * len(options))]

    def forms(self, entry: Entry) -> list[str]:
        """The forms of a word in the target language."""
        return getattr(entry, self.language)

    def fixed(self, entry: Entry) -> Pair:
        """A word or expression that has one form."""
        return piece(" ".join(entry.english), " ".join(self.forms(entry)))

    def noun_phrase(self, kind: str, preposition: Entry = NOTHING, definite: bool = False,
                    long: bool = False) -> tuple[Pair, Noun]:
        """A noun phrase, such as "in the dirty white house", and its noun.

        With `definite`, the determiner is not "a" or "some". With `long`, a relative clause or a
        place may follow the noun.
        """
        entry, plural = self.draw(lexicon.NOUNS[kind]), self.maybe(0.5)
        gender, *by_number = self.forms(entry)
        noun = Noun(kind, gender == "f", plural)
        the, this, a = lexicon.THE, lexicon.THIS, lexicon.A
        determiner = self.draw((the, the, this) if definite else (the, the, a, this))
        words = [*self.adjectives(noun), piece(entry.english[plural], by_number[plural])]
        english = determiner.english[plural]
        if english == "a" and words[0].source[0][0] in "aeiouAEIOU":
            english = "an"
        target = article(self.language, agree(self.forms(determiner), noun), by_number[plural])
        parts = [self.determiner(preposition, english, target), *words]
        # In the target the noun follows its determiner, and the adjectives follow it in reverse.
        phrase = join(*parts, order=[0, *range(len(parts) - 1, 0, -1)])
        if long and self.maybe(0.7 * self.richness):
            phrase = join(phrase, self.relative(noun) if self.maybe(0.6) else self.place())
        return phrase, noun

    def determiner(self, preposition: Entry, english: str, target: str) -> Pair:
        """A preposition and a determiner, such as "near the" and «cerca del».

        A contraction, such as «del», is linked to the words of the preposition and to "the".
        """
        words = self.forms(preposition)
        contractions = lexicon.CONTRACTIONS[self.language]
        if not words or (words[-1], target) not in contractions:
            return join(self.fixed(preposition), piece(english, target))
        before = piece(" ".join(preposition.english), " ".join(words[:-1]))
        source = [*before.source, english]
        links = [(len(words) - 1, s) for s in range(len(source))]
        target = [*before.target, contractions[words[-1], target]]
        return Pair(source, target, before.alignment + links)

    def adjectives(self, noun: Noun) -> list[Pair]:
        """At most one state and one quality, such as "dirty white"."""
        entries = self.draw(lexicon.STATES[noun.kind]), self.draw(lexicon.QUALITIES[noun.kind])
        return [piece(entry.english[0], agree(self.forms(entry), noun)) for entry in entries
                if self.maybe(0.1 + 0.4 * self.richness)]

    def place(self) -> Pair:
        """A place, such as "near the white house"."""
        return self.noun_phrase("place", self.draw(lexicon.PREPOSITIONS), definite=True)[0]

    def relative(self, noun: Noun) -> Pair:
        """A relative clause, such as "who sees the cat"."""
        pronoun = lexicon.WHO if noun.kind == "person" else lexicon.THAT
        return join(self.fixed(pronoun), self.predicate(noun, short=True))

    def verb(self, entry: Entry, subject: Noun, negated: bool = False) -> Pair:
        """A verb in the present or in the past, such as "does not see"."""
        he, they, past_form = entry.english
        past = self.maybe(0.4)
        target = conjugate(self.language, self.forms(entry), subject, past)
        if not negated:
            return piece(past_form if past else they if subject.plural else he, target)
        auxiliary = "did" if past else "do" if subject.plural else "does"
        words = [*self.forms(lexicon.NOT), *target.split()]
        # «no» is linked to "not", and every other word to the auxiliary and to the verb.
        links = [(0, 1), *((t, s) for t in range(1, len(words)) for s in (0, 2))]
        return Pair([auxiliary, "not", they], words, links)

    def being(self, subject: Noun) -> Pair:
        """The verb "to be" and an adjective, such as "was not very tired"."""
        is_state, past, negated = self.maybe(0.7), self.maybe(0.4), self.maybe(0.2)
        adjectives, be = ((lexicon.STATES, lexicon.BE_STATE) if is_state
                          else (lexicon.QUALITIES, lexicon.BE_QUALITY))
        adjective = self.draw(adjectives[subject.kind])
        form = 2 * past + subject.plural
        parts = [piece(be.english[form], self.forms(be)[form])]
        if negated:
            parts = [join(*parts, self.fixed(lexicon.NOT), order=[1, 0])]
        if is_state and self.maybe(0.3):
            parts.append(self.fixed(lexicon.VERY))
        return join(*parts, piece(adjective.english[0], agree(self.forms(adjective), subject)))

    def predicate(self, subject: Noun, short: bool = False) -> Pair:
        """A predicate, such as "does not see the cat near the house".

        With `short`, it has no relative clause and no place.
        """
        alive = subject.kind in ("person", "animal")
        pattern = self.draw(("be", "intransitive", "thing", "living")) if alive else "be"
        if pattern == "be":
            return self.being(subject)
        verbs = {"intransitive": lexicon.INTRANSITIVE, "thing": lexicon.THING_OBJECT,
                 "living": lexicon.LIVING_OBJECT}[pattern]
        negated = self.maybe(0.2)
        clause = self.verb(self.draw(verbs), subject, negated)
        # An object is definite after a negated verb, because "does not see a hat" has two meanings,
        # and after the personal «a», which is optional before an indefinite object.
        if pattern == "thing":
            clause = join(clause, self.noun_phrase("thing", definite=negated, long=not short)[0])
        if pattern == "living":
            kind, a = self.draw(("person", "animal")), lexicon.PERSONAL_A
            clause = join(clause, self.noun_phrase(kind, a, definite=True, long=not short)[0])
        if not short and self.maybe(0.5 * self.richness):
            clause = join(clause, self.place())
        return clause

    def clause(self) -> Pair:
        """A subject and its predicate, such as "the nurse says that the boy sleeps"."""
        kind = self.draw(("person", "person", "animal", "thing"))
        subject, noun = self.noun_phrase(kind, long=True)
        if kind == "person" and self.maybe(0.25 * self.richness):
            verb = self.verb(self.draw(lexicon.CLAUSE_OBJECT), noun)
            return join(subject, verb, self.fixed(lexicon.THAT), self.clause())
        return join(subject, self.predicate(noun))

    def sentence(self) -> Pair:
        """One to three clauses with conjunctions between them."""
        sentence = self.clause()
        for _ in range(int(3 * self.richness)):
            sentence = join(sentence, self.fixed(self.draw(lexicon.CONJUNCTIONS)), self.clause())
        return sentence


def sample_pair(language: str, generator: torch.Generator | None = None) -> Pair:
    """A random sentence of 4 to 25 English words, with its translation into one of LANGUAGES."""
    if language not in LANGUAGES:
        raise ValueError(f"translations are into {' or '.join(LANGUAGES)}, not {language!r}")
    while True:
        pair = Writer(language, generator).sentence()
        if SHORTEST <= len(pair.source) <= LONGEST:
            return pair


def written(words: list[str]) -> str:
    """The words as a text; ["l'", "ape", "dorme"] becomes "l'ape dorme"."""
    return " ".join(words).replace("' ", "'")
