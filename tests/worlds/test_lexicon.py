"""The lexicon against the rules of Spanish and Italian inflection, written here without it."""
import pytest

from minigpt.worlds import lexicon

ADJECTIVES = lexicon.NATIONALITIES + lexicon.COLOURS + lexicon.MOODS + lexicon.CONDITIONS
VERBS = lexicon.INTRANSITIVE + lexicon.THING_OBJECT + lexicon.CLAUSE_OBJECT
NOUNS = [entry for entries in lexicon.NOUNS.values() for entry in entries]


def without_accent(word):
    return word.translate(str.maketrans("áéíóú", "aeiou"))


def spanish_plural(word):
    if word[-1] in "aeiou" or word[-2:] == "ía":
        return word + "s"
    if word[-1] == "z":
        return word[:-1] + "ces"
    # A stress on the last syllable needs no accent in the plural: jardín, jardines.
    stressed = word[-1] in "ns" and word[-2] in "áéíóú"
    return (without_accent(word) if stressed else word) + "es"


def spanish_adjective(word):
    if word[-1] == "o":
        feminine = word[:-1] + "a"
    elif word in ("español", "francés", "alemán"):
        # An adjective of nationality takes -a after a consonant too.
        feminine = without_accent(word).replace("espanol", "español") + "a"
    else:
        feminine = word
    return [word, feminine, spanish_plural(word), spanish_plural(feminine)]


IRREGULAR = {"uomo": "uomini", "città": "città", "medico": "medici", "albergo": "alberghi",
             "tedesco": "tedeschi"}


def italian_plural(word, feminine):
    if word in IRREGULAR:
        return IRREGULAR[word]
    stem, last = word[:-1], word[-1]
    if feminine and last == "a":
        return stem + ("he" if stem[-1] in "cg" else "e")               # mucca, mucche
    if word[-2:] == "io":
        return stem if word != "zio" else "zii"                         # a stressed i stays
    return stem + ("hi" if stem[-1] in "cg" and last == "o" else "i")   # bosco, boschi


def italian_adjective(word):
    if word == "blu":
        return ["blu"] * 4
    feminine = word[:-1] + "a" if word[-1] == "o" else word
    return [word, feminine, italian_plural(word, False), italian_plural(feminine, True)]


def test_adjectives_are_inflected_by_rule():
    for _, spanish, italian in ADJECTIVES:
        assert spanish == spanish_adjective(spanish[0])
        assert italian == italian_adjective(italian[0])


FEMININE = {"spanish": "mujer actriz flor llave ciudad".split(),
            "italian": "ape attrice chiave città".split()}
MASCULINE = {"spanish": "hombre actor estudiante coche hotel jardín ratón lápiz bosque".split(),
             "italian": "attore studente cane fiore".split()}


@pytest.mark.parametrize("language, plural", [
    ("spanish", lambda word, feminine: spanish_plural(word)), ("italian", italian_plural)])
def test_nouns_have_the_gender_of_their_ending_or_are_known_exceptions(language, plural):
    for entry in NOUNS:
        gender, one, many = getattr(entry, language)
        by_ending = {"o": "m", "a": "f"}
        known = dict.fromkeys(FEMININE[language], "f") | dict.fromkeys(MASCULINE[language], "m")
        assert gender == known.get(one, by_ending.get(one[-1])), one
        assert many == plural(one, gender == "f")


AR = "jugó cantó bailó llegó encontró miró compró".split()
ER_IR = "corrió cayó vendió perdió escondió vio durmió siguió escribió".split()


def test_spanish_verbs_follow_their_conjugation():
    for _, (present, presents, past, pasts), _ in VERBS:
        assert presents == present + "n"
        if past in AR:
            assert pasts == past[:-1] + "aron" and present[-1] == "a"
        elif past == "dijo":
            assert pasts == "dijeron"
        else:
            short = {"vio": "vieron", "cayó": "cayeron"}
            assert past in ER_IR and pasts == short.get(past, past[:-1] + "eron"), past
            assert present[-1] == "e"


def test_italian_verbs_follow_their_conjugation():
    for _, _, (present, presents, auxiliary, participle) in VERBS:
        stem = present[:-1]
        if present == "dice":
            assert presents == "dicono"
        else:
            assert presents == stem + ("ano" if present[-1] == "a" else "ono")
        # Verbs of motion to a place, and of a change of state, take «essere».
        assert auxiliary == ("è" if present in ("arriva", "cade") else "ha")
        assert participle[-1] == "o"


ENGLISH_PAST = {"sleep": "slept", "run": "ran", "sing": "sang", "fall": "fell", "see": "saw",
                "find": "found", "buy": "bought", "sell": "sold", "lose": "lost", "hide": "hid",
                "say": "said", "write": "wrote", "dance": "danced", "arrive": "arrived"}


def test_english_inflects():
    for (he, they, past), _, _ in VERBS:
        assert he == they + ("es" if they[-2:] == "ch" else "s")
        assert past == ENGLISH_PAST.get(they, they + "ed")
    irregular = {"man": "men", "woman": "women", "mouse": "mice", "city": "cities"}
    for (one, many), _, _ in NOUNS:
        ending = "es" if one[-1] in "sxh" and one[-2:] != "th" else "s"
        assert many == irregular.get(one, one + ending)


def test_a_word_stands_in_one_table():
    """Otherwise "is tired" could be «está cansado» or «es cansado»."""
    english = [" ".join(entry.english) for entry in NOUNS + ADJECTIVES + VERBS]
    assert len(set(english)) == len(english)
    for kind in lexicon.NOUNS:
        assert not {entry.english[0] for entry in lexicon.STATES[kind]} & {
            entry.english[0] for entry in lexicon.QUALITIES[kind]}
