"""Translation: a grammar that writes an English sentence, its Spanish or Italian translation, and which word came from which.

    the  tired  Italian  nurse  does  not  see  the  boy          alignment: (target word, source word)
    la enfermera italiana cansada       no  ve   al  chico         (0, 0) (1, 3) (2, 2) (3, 1) (4, 5) (5, 4) (5, 6) (6, 7) (7, 8)

What the translator must get right is what English does not say: gender and number in the article, the adjectives, the
verb and the participle; adjectives after their noun, in reverse order; «está» or «es» by what follows; «ha» or «è» by the verb.
The English sentence decides its translation, so a translation is right or wrong, and the words to blame are known.

The alignment holds by construction. Words are written in small pieces, and within a piece each target word goes with each
source word: «ha visto» with "saw" both, «nel» with "in" and "the", «ve» with "does" and "see". A word that the target
inserts without a counterpart, the «a» of «ve a la chica», goes with none.

Source: course C, "Machine translation"; the kind of alignment, Brown et al. 1993, §2. Grammar and word lists: this project's own.
Not here: persons other than the third, punctuation, capitals that English does not ask for; and meaning: squirrels may sell hats.

Shapes: B batch, T the longest sentence.
"""
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LANGUAGES = ("spanish", "italian")
SHORTEST, LONGEST = 4, 25                   # English words
PAD, START, END = 0, 1, 2
SPECIAL = ["<pad>", "<start>", "<end>"]


def table(text: str) -> list[list[list[str]]]:
    """Lines of cells of words: "a b | c" -> [["a", "b"], ["c"]]."""
    return [[cell.split() for cell in line.split("|")] for line in text.strip().splitlines()]


# English singular plural | Spanish gender singular plural | Italian gender singular plural
NOUNS = {
    "person": table("""
        man men | m hombre hombres | m uomo uomini
        woman women | f mujer mujeres | f donna donne
        boy boys | m chico chicos | m ragazzo ragazzi
        girl girls | f chica chicas | f ragazza ragazze
        uncle uncles | m tío tíos | m zio zii
        aunt aunts | f tía tías | f zia zie
        actor actors | m actor actores | m attore attori
        actress actresses | f actriz actrices | f attrice attrici
        student students | m estudiante estudiantes | m studente studenti
        nurse nurses | f enfermera enfermeras | f infermiera infermiere
        doctor doctors | m médico médicos | m medico medici
        grandmother grandmothers | f abuela abuelas | f nonna nonne"""),
    "animal": table("""
        cat cats | m gato gatos | m gatto gatti
        dog dogs | m perro perros | m cane cani
        cow cows | f vaca vacas | f mucca mucche
        bird birds | m pájaro pájaros | m uccello uccelli
        bee bees | f abeja abejas | f ape api
        squirrel squirrels | f ardilla ardillas | m scoiattolo scoiattoli
        monkey monkeys | m mono monos | f scimmia scimmie
        turtle turtles | f tortuga tortugas | f tartaruga tartarughe
        mouse mice | m ratón ratones | m topo topi
        goat goats | f cabra cabras | f capra capre"""),
    "thing": table("""
        book books | m libro libros | m libro libri
        car cars | m coche coches | f macchina macchine
        table tables | f mesa mesas | m tavolo tavoli
        flower flowers | f flor flores | m fiore fiori
        key keys | f llave llaves | f chiave chiavi
        mirror mirrors | m espejo espejos | m specchio specchi
        backpack backpacks | f mochila mochilas | m zaino zaini
        hat hats | m sombrero sombreros | m cappello cappelli
        shirt shirts | f camisa camisas | f camicia camicie
        shoe shoes | m zapato zapatos | f scarpa scarpe
        pencil pencils | m lápiz lápices | f matita matite
        box boxes | f caja cajas | f scatola scatole"""),
    "place": table("""
        garden gardens | m jardín jardines | m giardino giardini
        house houses | f casa casas | f casa case
        school schools | f escuela escuelas | f scuola scuole
        hotel hotels | m hotel hoteles | m albergo alberghi
        church churches | f iglesia iglesias | f chiesa chiese
        city cities | f ciudad ciudades | f città città
        forest forests | m bosque bosques | m bosco boschi
        stadium stadiums | m estadio estadios | m stadio stadi"""),
}

# English | Spanish and Italian: masculine singular, feminine singular, masculine plural, feminine plural
NATIONS = table("""
    Italian | italiano italiana italianos italianas | italiano italiana italiani italiane
    Spanish | español española españoles españolas | spagnolo spagnola spagnoli spagnole
    French | francés francesa franceses francesas | francese francese francesi francesi
    German | alemán alemana alemanes alemanas | tedesco tedesca tedeschi tedesche""")
COLOURS = table("""
    black | negro negra negros negras | nero nera neri nere
    white | blanco blanca blancos blancas | bianco bianca bianchi bianche
    red | rojo roja rojos rojas | rosso rossa rossi rosse
    green | verde verde verdes verdes | verde verde verdi verdi
    blue | azul azul azules azules | blu blu blu blu
    yellow | amarillo amarilla amarillos amarillas | giallo gialla gialli gialle""")
MOODS = table("""
    tired | cansado cansada cansados cansadas | stanco stanca stanchi stanche
    hungry | hambriento hambrienta hambrientos hambrientas | affamato affamata affamati affamate
    happy | contento contenta contentos contentas | contento contenta contenti contente
    sick | enfermo enferma enfermos enfermas | malato malata malati malate
    sad | triste triste tristes tristes | triste triste tristi tristi
    nervous | nervioso nerviosa nerviosos nerviosas | nervoso nervosa nervosi nervose""")
CONDITIONS = table("""
    dirty | sucio sucia sucios sucias | sporco sporca sporchi sporche
    clean | limpio limpia limpios limpias | pulito pulita puliti pulite
    wet | mojado mojada mojados mojadas | bagnato bagnata bagnati bagnate
    empty | vacío vacía vacíos vacías | vuoto vuota vuoti vuote
    open | abierto abierta abiertos abiertas | aperto aperta aperti aperte""")

# English: he, they, past | Spanish present and past: singular plural singular plural | Italian present: singular plural, and the
# participle: one form with «ha», four that agree like adjectives with «è»
ACTIONS = table("""
    sleeps sleep slept | duerme duermen durmió durmieron | dorme dormono dormito
    runs run ran | corre corren corrió corrieron | corre corrono corso
    plays play played | juega juegan jugó jugaron | gioca giocano giocato
    sings sing sang | canta cantan cantó cantaron | canta cantano cantato
    dances dance danced | baila bailan bailó bailaron | balla ballano ballato
    arrives arrive arrived | llega llegan llegó llegaron | arriva arrivano arrivato arrivata arrivati arrivate
    falls fall fell | cae caen cayó cayeron | cade cadono caduto caduta caduti cadute""")
ON_THE_LIVING = table("""
    sees see saw | ve ven vio vieron | vede vedono visto
    finds find found | encuentra encuentran encontró encontraron | trova trovano trovato
    follows follow followed | sigue siguen siguió siguieron | segue seguono seguito
    watches watch watched | mira miran miró miraron | guarda guardano guardato""")
ON_THINGS = ON_THE_LIVING + table("""
    buys buy bought | compra compran compró compraron | compra comprano comprato
    sells sell sold | vende venden vendió vendieron | vende vendono venduto
    loses lose lost | pierde pierden perdió perdieron | perde perdono perso
    hides hide hid | esconde esconden escondió escondieron | nasconde nascondono nascosto""")
SAYING = table("""
    says say said | dice dicen dijo dijeron | dice dicono detto
    writes write wrote | escribe escriben escribió escribieron | scrive scrivono scritto""")
# Present: singular plural, past: singular plural. A passing state is «estar» in Spanish, a lasting quality «ser»; Italian has one verb.
BEING_NOW = table("is are was were | está están estaba estaban | è sono era erano")[0]
BEING_ALWAYS = table("is are was were | es son era eran | è sono era erano")[0]

# English singular plural | Spanish and Italian: masculine singular, feminine singular, masculine plural, feminine plural
THE, A, THIS = table("""
    the the | el la los las | il la i le
    a some | un una unos unas | un una dei delle
    this these | este esta estos estas | questo questa questi queste""")
# One form each
PREPOSITIONS = table("""
    in | en | in
    near | cerca de | vicino a
    behind | detrás de | dietro
    in front of | delante de | davanti a""")
CONJUNCTIONS = table("""
    and | y | e
    but | pero | ma
    because | porque | perché
    although | aunque | anche se""")
WHO, THAT, NOT, VERY = table("""
    who | que | che
    that | que | che
    not | no | non
    very | muy | molto""")
NOTHING, PERSONAL = [[], [], []], [[], ["a"], []]       # Spanish marks a living object: «ve a la chica»

# Italian articles look at the sound they stand before: lo zaino, lo studente, l'uomo, un'ape.
BEFORE_VOWEL = {"il": "l'", "la": "l'", "i": "gli", "una": "un'", "dei": "degli"}
BEFORE_Z_OR_S = {"il": "lo", "i": "gli", "un": "uno", "dei": "degli"}
# A preposition and the article after it become one word.
CONTRACTIONS = {"spanish": {("a", "el"): "al", ("de", "el"): "del"}, "italian": {
    (preposition, article): stem + ending for preposition, stem in (("in", "ne"), ("a", "a"))
    for article, ending in {"il": "l", "lo": "llo", "l'": "ll'", "la": "lla", "i": "i", "gli": "gli", "le": "lle"}.items()}}


class Pair(NamedTuple):
    """A sentence or a piece of one, in both languages."""

    source: list[str]
    target: list[str]
    alignment: list[tuple[int, int]]        # (target index, source index), by target; a word may be in several links or none


class Noun(NamedTuple):
    """What other words must agree with, and what it can do."""

    kind: str               # a key of NOUNS
    feminine: bool
    plural: bool


def piece(source: str, target: str) -> Pair:
    """Words that belong together: each target word is linked to each source word.

    >>> piece("saw", "ha visto")
    Pair(source=['saw'], target=['ha', 'visto'], alignment=[(0, 0), (1, 0)])
    """
    source, target = source.split(), target.split()
    return Pair(source, target, [(t, s) for t in range(len(target)) for s in range(len(source))])


def join(*parts: Pair, order: list[int] | None = None) -> Pair:
    """Parts in the source's order; in the target they stand in `order`, or in the same.

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
    """The form for the noun's gender and number, of the four in the order of the tables."""
    return forms[2 * noun.plural + noun.feminine]


def article(language: str, form: str, noun: str) -> str:
    """An Italian article as it sounds before its noun; every other word as it is.

    >>> [article("italian", "il", noun) for noun in ("gatto", "zaino", "specchio", "uomo")]
    ['il', 'lo', 'lo', "l'"]
    """
    if language == "spanish":
        return form
    if noun[0] in "aeiou":
        return BEFORE_VOWEL.get(form, form)
    return BEFORE_Z_OR_S.get(form, form) if noun[0] == "z" or (noun[0] == "s" and noun[1] not in "aeiou") else form


def chances(generator: torch.Generator | None) -> Iterator[float]:
    """Numbers in [0, 1) without end, drawn 64 at once because a call costs more than the numbers."""
    while True:
        yield from torch.rand(64, generator=generator).tolist()


class Writer:
    """One sentence in the making: its language, its stream of chances, and how much it likes to elaborate.

    No choice looks at the language, so one seed writes the same English for both.
    """

    def __init__(self, language: str, generator: torch.Generator | None):
        self.language = language
        self.chances = chances(generator)
        self.richness = next(self.chances)

    def maybe(self, probability: float) -> bool:
        return next(self.chances) < probability

    def draw(self, options):
        return options[int(next(self.chances) * len(options))]

    def cell(self, row: list[list[str]]) -> list[str]:
        return row[1 + LANGUAGES.index(self.language)]

    def fixed(self, row: list[list[str]]) -> Pair:
        """A row whose cells are one form each."""
        return piece(" ".join(row[0]), " ".join(self.cell(row)))

    def noun_phrase(self, kind: str, preposition: list[list[str]] = NOTHING, definite: bool = False, elaborate: bool = False) -> tuple[Pair, Noun]:
        """"in the dirty white house": its words, and its noun. `elaborate` allows a relative clause or a place after it."""
        row, plural = self.draw(NOUNS[kind]), self.maybe(0.5)
        gender, *numbers = self.cell(row)
        noun = Noun(kind, gender == "f", plural)
        determiner = self.draw((THE, THE, THIS) if definite else (THE, THE, A, THIS))
        the, el = determiner[0][plural], article(self.language, agree(self.cell(determiner), noun), numbers[plural])
        states, qualities = self.adjectives(kind)
        adjectives = [piece(a[0][0], agree(self.cell(a), noun))
                      for a in (self.draw(states), self.draw(qualities)) if self.maybe(0.1 + 0.4 * self.richness)]
        if the == "a" and (adjectives[0].source[0] if adjectives else row[0][0])[0] in "aeiouAEIOU":
            the = "an"
        parts = [self.determiner(preposition, the, el), *adjectives, piece(row[0][plural], numbers[plural])]
        phrase = join(*parts, order=[0, *range(len(parts) - 1, 0, -1)])         # adjectives mirrored, after the noun
        if elaborate and self.maybe(0.7 * self.richness):
            phrase = join(phrase, self.relative(noun) if self.maybe(0.6) else self.place())
        return phrase, noun

    def determiner(self, preposition: list[list[str]], the: str, el: str) -> Pair:
        """"near the": «cerca de» + «el» = «cerca» + «del», where «del» is linked to "near" and "the"."""
        words = self.cell(preposition)
        melted = CONTRACTIONS[self.language].get((words[-1], el)) if words else None
        if melted is None:
            return join(self.fixed(preposition), piece(the, el))
        before = piece(" ".join(preposition[0]), " ".join(words[:-1]))
        source = [*before.source, the]
        return Pair(source, [*before.target, melted], before.alignment + [(len(words) - 1, s) for s in range(len(source))])

    @staticmethod
    def adjectives(kind: str) -> tuple[list, list]:
        """(passing states, lasting qualities) that such a noun may have."""
        return CONDITIONS if kind in ("thing", "place") else MOODS, NATIONS if kind == "person" else COLOURS

    def place(self) -> Pair:
        """"near the white house"."""
        return self.noun_phrase("place", self.draw(PREPOSITIONS), definite=True)[0]

    def relative(self, noun: Noun) -> Pair:
        """"who sees the cat"."""
        return join(self.fixed(WHO if noun.kind == "person" else THAT), self.predicate(noun, inside=True))

    def verb(self, row: list[list[str]], noun: Noun, denied: bool = False) -> Pair:
        """"does not see": present or past."""
        (he, they, past), forms, was = row[0], self.cell(row), self.maybe(0.4)
        if self.language == "spanish":
            target = forms[2 * was + noun.plural]
        elif was and len(forms) == 3:
            target = ("hanno " if noun.plural else "ha ") + forms[2]
        else:
            target = ("sono " if noun.plural else "è ") + agree(forms[2:], noun) if was else forms[noun.plural]
        if not denied:
            return piece(past if was else they if noun.plural else he, target)
        do, words = "did" if was else "do" if noun.plural else "does", target.split()
        return Pair([do, "not", they], self.cell(NOT) + words, [(0, 1), *((t, s) for t in range(1, len(words) + 1) for s in (0, 2))])

    def being(self, noun: Noun) -> Pair:
        """"was not very tired"."""
        passing, was, denied = self.maybe(0.7), self.maybe(0.4), self.maybe(0.2)
        states, qualities = self.adjectives(noun.kind)
        be, row = BEING_NOW if passing else BEING_ALWAYS, self.draw(states if passing else qualities)
        parts = [piece(be[0][2 * was + noun.plural], self.cell(be)[2 * was + noun.plural])]
        if denied:
            parts = [join(*parts, self.fixed(NOT), order=[1, 0])]
        if passing and self.maybe(0.3):
            parts.append(self.fixed(VERY))
        return join(*parts, piece(row[0][0], agree(self.cell(row), noun)))

    def predicate(self, noun: Noun, inside: bool = False) -> Pair:
        """What a clause says of its subject. `inside` another one it stays short."""
        deed = self.draw(("be", "act", "on a thing", "on the living")) if noun.kind in ("person", "animal") else "be"
        if deed == "be":
            return self.being(noun)
        denied = self.maybe(0.2)
        clause = self.verb(self.draw({"act": ACTIONS, "on a thing": ON_THINGS, "on the living": ON_THE_LIVING}[deed]), noun, denied)
        if deed == "on a thing":                # "does not see a hat" could deny any hat or a certain one: so "the hat"
            clause = join(clause, self.noun_phrase("thing", definite=denied, elaborate=not inside)[0])
        if deed == "on the living":             # definite, because there the personal «a» is beyond dispute
            clause = join(clause, self.noun_phrase(self.draw(("person", "animal")), PERSONAL, definite=True, elaborate=not inside)[0])
        return join(clause, self.place()) if not inside and self.maybe(0.5 * self.richness) else clause

    def clause(self) -> Pair:
        """"the nurse says that the boy sleeps"."""
        subject, noun = self.noun_phrase(self.draw(("person", "person", "animal", "thing")), elaborate=True)
        if noun.kind == "person" and self.maybe(0.25 * self.richness):
            return join(subject, self.verb(self.draw(SAYING), noun), self.fixed(THAT), self.clause())
        return join(subject, self.predicate(noun))

    def sentence(self) -> Pair:
        """One to three clauses."""
        text = self.clause()
        for _ in range(int(3 * self.richness)):
            text = join(text, self.fixed(self.draw(CONJUNCTIONS)), self.clause())
        return text


def sample_pair(language: str, generator: torch.Generator | None = None) -> Pair:
    """(source words, target words, alignment) of one sentence, 4 to 25 English words. ValueError for a language not in LANGUAGES.

    One state of the generator gives one English sentence, in whichever language it is translated.
    """
    if language not in LANGUAGES:
        raise ValueError(f"translations are into {' or '.join(LANGUAGES)}, not {language!r}")
    while True:
        pair = Writer(language, generator).sentence()
        if SHORTEST <= len(pair.source) <= LONGEST:
            return pair


def written(words: list[str]) -> str:
    """Words as one writes them: an elided article touches its noun.

    >>> written(["l'", "ape", "dorme"])
    "l'ape dorme"
    """
    return " ".join(words).replace("' ", "'")


def vocabulary(sentences: list[list[str]]) -> dict[str, int]:
    """word -> id for every word that occurs, after <pad> 0, <start> 1 and <end> 2; in alphabetical order."""
    return {word: i for i, word in enumerate(SPECIAL + sorted({word for sentence in sentences for word in sentence}))}


def encode(sentences: list[list[str]], vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Ids (B, T), filled up with <pad>, and lengths (B,). ValueError for a word that the vocabulary lacks, or if nothing came."""
    if not sentences:
        raise ValueError("there is no sentence to encode; give at least one")
    for sentence in sentences:
        if unknown := [word for word in sentence if word not in vocabulary]:
            raise ValueError(f"{unknown[0]!r} is not in the vocabulary of {len(vocabulary)} words; build it from all sentences")
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    ids = torch.full((len(sentences), int(lengths.max())), PAD)
    for row, sentence in zip(ids, sentences):
        row[:len(sentence)] = torch.tensor([vocabulary[word] for word in sentence])
    return ids, lengths


def decode(ids: list[int], vocabulary: dict[str, int]) -> list[str]:
    """The words before the first <end>, without <start> and <pad>."""
    words = list(vocabulary)
    ids = ids[:ids.index(END)] if END in ids else ids
    return [words[i] for i in ids if i not in (PAD, START)]
