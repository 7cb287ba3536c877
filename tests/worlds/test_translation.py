"""The translation grammar against what a grammar book says: rules of inflection, a little dictionary and translations by hand."""
import re
from collections import defaultdict

import pytest
import torch

from minigpt.worlds import translation
from minigpt.worlds.translation import (
    END,
    LANGUAGES,
    PAD,
    START,
    Noun,
    Pair,
    Writer,
    article,
    decode,
    encode,
    join,
    piece,
    sample_pair,
    vocabulary,
    written,
)


def sample(language, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [sample_pair(language, generator) for _ in range(n)]


@pytest.fixture(scope="module")
def pairs():
    return {language: sample(language, 4000) for language in LANGUAGES}


# ── Forms: the tables against rules that do not know them ──────────────────────────────────────────────────────────────

def without_accent(word):
    return word.translate(str.maketrans("áéíóú", "aeiou"))


def spanish_plural(word):
    if word[-1] in "aeiou" or word[-2:] == "ía":
        return word + "s"
    if word[-1] == "z":
        return word[:-1] + "ces"
    return (without_accent(word) if word[-1] in "ns" and word[-2] in "áéíóú" else word) + "es"      # jardín, jardines


def spanish_adjective(word):
    if word[-1] == "o":
        feminine = word[:-1] + "a"
    elif word in ("español", "francés", "alemán"):                      # nations take -a after a consonant too
        feminine = without_accent(word).replace("espanol", "español") + "a"
    else:
        feminine = word
    return [word, feminine, spanish_plural(word), spanish_plural(feminine)]


def italian_plural(word, feminine):
    irregular = {"uomo": "uomini", "città": "città", "medico": "medici", "albergo": "alberghi", "tedesco": "tedeschi"}
    if word in irregular:
        return irregular[word]
    stem, last = word[:-1], word[-1]
    if feminine and last == "a":
        return stem + ("he" if stem[-1] in "cg" else "e")               # mucca, mucche
    if word[-2:] == "io":
        return stem if word != "zio" else "zii"                         # specchio, specchi; a stressed i stays
    return stem + ("hi" if stem[-1] in "cg" and last == "o" else "i")   # bosco, boschi


def italian_adjective(word):
    if word == "blu":
        return ["blu"] * 4
    feminine = word[:-1] + "a" if word[-1] == "o" else word
    return [word, feminine, italian_plural(word, False), italian_plural(feminine, True)]


def test_adjectives_are_inflected_by_rule():
    for _, spanish, italian in translation.NATIONS + translation.COLOURS + translation.MOODS + translation.CONDITIONS:
        assert spanish == spanish_adjective(spanish[0])
        assert italian == italian_adjective(italian[0])


def test_nouns_have_the_gender_of_their_ending_or_are_known_exceptions():
    feminine = {"spanish": "mujer actriz flor llave ciudad".split(), "italian": "ape attrice chiave città".split()}
    masculine_e = "hombre actor estudiante coche hotel jardín ratón lápiz bosque attore studente cane fiore".split()
    for rows in translation.NOUNS.values():
        for _, (es_gender, es, es_many), (it_gender, it, it_many) in rows:
            assert es_many == spanish_plural(es)
            assert it_many == italian_plural(it, it_gender == "f")
            for gender, word, language in ((es_gender, es, "spanish"), (it_gender, it, "italian")):
                expected = "f" if word in feminine[language] else "m" if word in masculine_e else {"o": "m", "a": "f"}[word[-1]]
                assert gender == expected, word


def test_regular_verbs_follow_their_conjugation():
    ar, er, ir = "aba jugó cantó bailó llegó encontró miró compró", "corrió cayó vendió perdió escondió vio", "durmió siguió"
    for _, (sings, sing, sang, they_sang), italian in translation.ACTIONS + translation.ON_THINGS + translation.SAYING:
        assert sing == sings + "n"
        if sang in ar.split():
            assert they_sang == sang[:-1] + "aron" and sings[-1] == "a"
        elif sang not in ("dijo",):
            assert they_sang == {"vio": "vieron", "cayó": "cayeron"}.get(sang, sang[:-1] + "eron"), sang
            assert sang in (er + " " + ir + " escribió").split() and sings[-1] == "e"
        sleeps, sleep, slept, *agreeing = italian
        assert sleep == (sleeps[:-1] + "ano" if sleeps[-1] == "a" else sleeps[:-1] + ("cono" if sleeps == "dice" else "ono")).replace("diccono", "dicono")
        assert (sleeps in ("arriva", "cade")) == bool(agreeing)         # verbs of motion and change take «essere»
        assert not agreeing or [slept, *agreeing] == italian_adjective(slept)
        assert slept[-1] == "o"


# ── Phrases by hand ────────────────────────────────────────────────────────────────────────────────────────────────────

class Scripted(Writer):
    """A Writer whose choices are said and not drawn: `draw` takes the option with this English in it, `maybe` the next yes or no."""

    def __init__(self, language, choices, answers):
        super().__init__(language, None)
        self.choices, self.answers = iter(choices), iter(answers)

    def draw(self, options):
        choice = next(self.choices)
        found = [o for o in options if o == choice or (isinstance(o, list) and choice in (o[0][0], " ".join(o[0])))]
        assert found, f"{choice} is not among {options}"
        return found[0]

    def maybe(self, probability):
        return bool(next(self.answers))


def phrase(language, kind, noun, plural, determiner, mood="", quality="", preposition=translation.NOTHING):
    states, qualities = Writer.adjectives(kind)
    writer = Scripted(language, [noun, determiner, mood or states[0][0][0], quality or qualities[0][0][0]], [plural, mood != "", quality != ""])
    return writer.noun_phrase(kind, preposition)[0]


NEAR, IN, FRONT = translation.PREPOSITIONS[1], translation.PREPOSITIONS[0], translation.PREPOSITIONS[3]


@pytest.mark.parametrize("kind, noun, plural, determiner, mood, quality, preposition, english, spanish, italian", [
    ("person", "man", 0, "the", "", "", None, "the man", "el hombre", "l'uomo"),
    ("person", "man", 1, "the", "tired", "Spanish", None, "the tired Spanish men", "los hombres españoles cansados", "gli uomini spagnoli stanchi"),
    ("person", "student", 0, "a", "", "German", None, "a German student", "un estudiante alemán", "uno studente tedesco"),
    ("person", "actress", 0, "a", "", "", None, "an actress", "una actriz", "un'attrice"),
    ("person", "actress", 0, "a", "sick", "", None, "a sick actress", "una actriz enferma", "un'attrice malata"),
    ("person", "uncle", 1, "a", "", "Italian", None, "some Italian uncles", "unos tíos italianos", "degli zii italiani"),
    ("animal", "squirrel", 1, "this", "", "black", None, "these black squirrels", "estas ardillas negras", "questi scoiattoli neri"),
    ("thing", "mirror", 0, "the", "clean", "blue", None, "the clean blue mirror", "el espejo azul limpio", "lo specchio blu pulito"),
    ("thing", "key", 0, "a", "open", "", None, "an open key", "una llave abierta", "una chiave aperta"),
    ("thing", "backpack", 1, "the", "dirty", "yellow", None, "the dirty yellow backpacks", "las mochilas amarillas sucias", "gli zaini gialli sporchi"),
    ("place", "hotel", 0, "the", "", "", IN, "in the hotel", "en el hotel", "nell'albergo"),
    ("place", "stadium", 1, "the", "", "", IN, "in the stadiums", "en los estadios", "negli stadi"),
    ("place", "garden", 0, "the", "", "", NEAR, "near the garden", "cerca del jardín", "vicino al giardino"),
    ("place", "city", 1, "the", "", "white", FRONT, "in front of the white cities", "delante de las ciudades blancas", "davanti alle città bianche"),
    ("place", "stadium", 0, "the", "", "", FRONT, "in front of the stadium", "delante del estadio", "davanti allo stadio"),
    ("place", "house", 0, "this", "", "", NEAR, "near this house", "cerca de esta casa", "vicino a questa casa"),
])
def test_noun_phrases_by_hand(kind, noun, plural, determiner, mood, quality, preposition, english, spanish, italian):
    for language, expected in (("spanish", spanish), ("italian", italian)):
        got = phrase(language, kind, noun, plural, determiner, mood, quality, preposition or translation.NOTHING)
        assert " ".join(got.source) == english
        assert written(got.target) == expected


@pytest.mark.parametrize("kind, feminine, plural, verb, was, denied, english, spanish, italian", [
    ("person", True, False, "sees", 0, 0, "sees", "ve", "vede"),
    ("person", True, True, "sees", 0, 1, "do not see", "no ven", "non vedono"),
    ("animal", False, True, "sees", 1, 0, "saw", "vieron", "hanno visto"),
    ("animal", False, False, "sees", 1, 1, "did not see", "no vio", "non ha visto"),
    ("person", True, False, "arrives", 1, 0, "arrived", "llegó", "è arrivata"),
    ("person", True, True, "arrives", 1, 1, "did not arrive", "no llegaron", "non sono arrivate"),
    ("person", False, True, "falls", 1, 0, "fell", "cayeron", "sono caduti"),
])
def test_verbs_by_hand(kind, feminine, plural, verb, was, denied, english, spanish, italian):
    row = next(r for r in translation.ACTIONS + translation.ON_THE_LIVING if r[0][0] == verb)
    for language, expected in (("spanish", spanish), ("italian", italian)):
        got = Scripted(language, [], [was]).verb(row, Noun(kind, feminine, plural), bool(denied))
        assert (" ".join(got.source), " ".join(got.target)) == (english, expected)


@pytest.mark.parametrize("noun, il, i, un", [("sole", "il", "i", "un"), ("sbaglio", "lo", "gli", "uno"), ("zucchero", "lo", "gli", "uno"), ("anno", "l'", "gli", "un")])
def test_italian_articles_before_words_the_grammar_has_not(noun, il, i, un):
    assert [article("italian", form, noun) for form in ("il", "i", "un")] == [il, i, un]
    assert [article("italian", form, "isola") for form in ("la", "le", "una", "questa")] == ["l'", "le", "un'", "questa"]


def test_alignments_by_hand():
    assert phrase("spanish", "person", "nurse", 0, "the", "tired", "Italian").alignment == [(0, 0), (1, 3), (2, 2), (3, 1)]
    assert phrase("italian", "place", "city", 0, "the", "", "white", FRONT).alignment == [
        (0, 0), (0, 1), (0, 2),                                         # davanti: in front of
        (1, 0), (1, 1), (1, 2), (1, 3),                                 # alla: in front of the
        (2, 5), (3, 4)]
    assert phrase("spanish", "person", "girl", 0, "the", preposition=translation.PERSONAL) == Pair(["the", "girl"], ["a", "la", "chica"], [(1, 0), (2, 1)])
    assert phrase("spanish", "person", "boy", 0, "the", preposition=translation.PERSONAL) == Pair(["the", "boy"], ["al", "chico"], [(0, 0), (1, 1)])
    row = translation.ON_THE_LIVING[0]
    assert Scripted("italian", [], [1]).verb(row, Noun("animal", False, True), True).alignment == [(0, 1), (1, 0), (1, 2), (2, 0), (2, 2)]
    being = Scripted("spanish", ["tired"], [1, 0, 1, 1]).being(Noun("person", True, False))
    assert being == Pair("is not very tired".split(), "no está muy cansada".split(), [(0, 1), (1, 0), (2, 2), (3, 3)])
    being = Scripted("spanish", ["French"], [0, 1, 0]).being(Noun("person", False, True))
    assert being == Pair("were French".split(), "eran franceses".split(), [(0, 0), (1, 1)])
    assert join(piece("a b", "x"), piece("c", ""), piece("d", "y z"), order=[2, 1, 0]).alignment == [(0, 3), (1, 3), (2, 0), (2, 1)]


# ── Whole sentences against a little dictionary ────────────────────────────────────────────────────────────────────────

DICTIONARY = {
    "spanish": {
        "the": "el la los las al del", "a": "un una", "an": "un una", "some": "unos unas", "this": "este esta", "these": "estos estas",
        "cat": "gato", "cats": "gatos", "girls": "chicas", "car": "coche", "cities": "ciudades", "red": "rojo roja rojos rojas",
        "tired": "cansado cansada cansados cansadas", "not": "no", "very": "muy", "saw": "vio vieron", "see": "ve ven vio vieron", "sees": "ve",
        "is": "es está", "were": "eran estaban", "who": "que", "although": "aunque", "near": "cerca de del", "front": "delante de del",
        "arrived": "llegó llegaron", "and": "y", "does": "duerme corre juega canta baila llega cae ve encuentra sigue mira compra vende pierde esconde"},
    "italian": {
        "the": "il lo l' la i gli le al allo all' alla ai agli alle nel nello nell' nella nei negli nelle", "a": "un uno una un'", "an": "un uno una un'",
        "some": "dei degli delle", "this": "questo questa", "these": "questi queste", "cat": "gatto", "cats": "gatti", "girls": "ragazze",
        "car": "macchina", "cities": "città", "red": "rosso rossa rossi rosse", "tired": "stanco stanca stanchi stanche", "not": "non",
        "very": "molto", "saw": "ha hanno visto", "see": "vede vedono ha hanno visto", "sees": "vede", "is": "è", "were": "erano", "who": "che",
        "although": "anche se", "near": "vicino a al allo all' alla ai agli alle", "front": "davanti a al allo all' alla ai agli alle",
        "arrived": "è sono arrivato arrivata arrivati arrivate", "and": "e", "does": "dorme corre gioca canta balla arriva cade vede trova segue guarda compra vende perde nasconde"},
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_join_words_that_translate_each_other(pairs, language):
    seen = defaultdict(set)
    for source, target, alignment in pairs[language]:
        for t, s in alignment:
            seen[source[s]].add(target[t])
    for english, expected in DICTIONARY[language].items():
        assert seen[english] == set(expected.split()), english


@pytest.mark.parametrize("language", LANGUAGES)
def test_alignments_are_valid_and_leave_out_only_the_personal_a(pairs, language):
    for source, target, alignment in pairs[language]:
        assert alignment == sorted(set(alignment))
        assert all(0 <= t < len(target) and 0 <= s < len(source) for t, s in alignment)
        assert {s for _, s in alignment} == set(range(len(source)))     # every English word is translated
        unlinked = {target[t] for t in range(len(target))} - {target[t] for t, _ in alignment}
        assert unlinked <= ({"a"} if language == "spanish" else set())
        assert all(target[t] == "a" for t in set(range(len(target))) - {t for t, _ in alignment})


def fits(language, article, noun):
    """Whether an article may stand before a noun, by sound; ignorant of gender and number."""
    if language == "spanish":
        return True
    if re.match("[aeiou]", noun):
        return article in "l' un un' gli degli all' agli nell' negli le delle alle nelle".split() or article.startswith("quest")
    if re.match("z|s[^aeiou]", noun):
        return article in "lo uno gli degli allo agli nello negli la una le delle alla alle nella nelle".split() or article.startswith("quest")
    return article in "il un i dei al ai nel nei la una le delle alla alle nella nelle".split() or article.startswith("quest")


FEATURES = {                                                            # gender and number, told by hand
    "spanish": {"ms": "el un este al del gato coche jardín hombre lápiz | rojo cansado sucio español", "fs": "la una esta chica flor llave actriz ciudad | roja cansada sucia española",
                "mp": "los unos estos gatos coches jardines hombres lápices | rojos cansados sucios españoles", "fp": "las unas estas chicas flores llaves actrices ciudades | rojas cansadas sucias españolas"},
    "italian": {"ms": "il lo un uno questo al allo nel nello gatto uomo fiore zaino specchio scoiattolo albergo | rosso stanco sporco spagnolo",
                "fs": "la una un' questa alla nella ragazza macchina chiave ape attrice scarpa | rossa stanca sporca spagnola",
                "mp": "i gli dei degli questi ai agli nei negli gatti uomini fiori zaini specchi scoiattoli alberghi | rossi stanchi sporchi spagnoli",
                "fp": "le delle queste alle nelle ragazze macchine chiavi api attrici scarpe | rosse stanche sporche spagnole"},
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_articles_and_adjectives_agree_with_their_noun(pairs, language):
    feature = {word: f for f, words in FEATURES[language].items() for word in words.replace("|", "").split()}
    adjectives = {word for words in FEATURES[language].values() for word in words.split("|")[1].split()}
    nouns = {word for rows in translation.NOUNS.values() for row in rows for word in row[1 + LANGUAGES.index(language)][1:]}
    checked = defaultdict(int)
    for _, target, _ in pairs[language]:
        for before, word in zip(target, target[1:]):
            if word in nouns:
                assert fits(language, before, word), (before, word)
            if before in feature and word in feature and (before in nouns) == (word in adjectives) and (word in nouns or word in adjectives):
                assert feature[before] == feature[word], (before, word)
                checked[feature[word], word in adjectives] += 1
    assert len(checked) == 8 and min(checked.values()) > 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_predicates_agree_with_a_subject_far_away(pairs, language):
    """In a sentence of one subject (no relative clause, no conjunction) the verb's number, and a predicate's gender, are the first noun's."""
    singular = {"spanish": "está es estaba era ve vio llega llegó duerme durmió".split(), "italian": "è era vede ha dorme arriva".split()}[language]
    plural = {"spanish": "están son estaban eran ven vieron llegan llegaron duermen durmieron".split(), "italian": "sono erano vedono hanno dormono arrivano".split()}[language]
    more_than_one = {"spanish": "que y pero porque aunque", "italian": "che e ma perché anche"}[language].split()
    nouns = {word: gender + "sp"[i] for rows in translation.NOUNS.values() for row in rows
             for gender, *forms in [row[1 + LANGUAGES.index(language)]] for i, word in enumerate(forms)}
    seen = defaultdict(int)
    for source, target, _ in pairs[language]:
        if set(target) & set(more_than_one) or len(source) > 12:
            continue
        gender_number = nouns[next(word for word in target if word in nouns)]
        for word in target:
            if word in singular or word in plural:
                if {"città"} & set(target[:3]):                         # says its number only through its article
                    continue
                assert (word in plural) == (gender_number[1] == "p"), (source, target)
                seen[gender_number] += 1
        last = target[-1]
        if source[-2] in ("is", "are", "was", "were", "very", "not") or source[-1] == "arrived":
            ends = {"ms": "o", "fs": "a", "mp": {"spanish": "os", "italian": "i"}[language], "fp": {"spanish": "as", "italian": "e"}[language]}
            if source[-1] in ("tired", "dirty", "red", "yellow", "open") or (source[-1] == "arrived" and language == "italian"):
                assert last.endswith(ends[gender_number]), (source, target)
                seen["predicate " + gender_number] += 1
    assert len(seen) == 8 and min(seen.values()) > 5, seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_who_speaks_agrees_with_the_verb(pairs, language):
    says = {"spanish": {"s": "dice dijo escribe escribió", "p": "dicen dijeron escriben escribieron"},
            "italian": {"s": "dice ha scrive", "p": "dicono hanno scrivono"}}[language]
    plural_nouns = {row[1 + LANGUAGES.index(language)][2] for row in translation.NOUNS["person"]}
    seen = defaultdict(int)
    for source, target, _ in pairs[language]:
        at = next((i for i, word in enumerate(source) if word in ("says", "say", "said", "writes", "write", "wrote")), None)
        if at is not None and at <= 4 and "who" not in source[:at]:     # only the subject, with its adjectives, stands before it
            number = "p" if plural_nouns & set(target[:at]) else "s"
            assert target[at] in says[number].split(), (source, target)
            seen[number] += 1
    assert len(seen) == 2 and min(seen.values()) > 20


def test_objects_are_definite_where_an_article_would_be_in_doubt(pairs):
    """Nothing indefinite after the personal «a», nor after a denied verb."""
    denied = 0
    for source, target, alignment in pairs["spanish"]:
        for t in set(range(len(target))) - {t for t, _ in alignment}:
            assert target[t + 1] not in ("un", "una", "unos", "unas")
        for i, word in enumerate(source[:-3]):
            if word == "not" and source[i - 1] in ("do", "does", "did"):
                assert source[i + 2] not in ("a", "an", "some")
                denied += 1
    assert denied > 100


def test_a_relative_clause_holds_no_other():
    writer = Writer("italian", torch.Generator().manual_seed(0))
    for _ in range(500):
        writer.richness = 0.99
        relative = writer.relative(Noun("person", True, False))
        assert relative.source[0] == "who" and not {"who", "that"} & set(relative.source[1:])
        assert len(relative.source) <= 8                                # who did not see the tired Italian nurse


def test_english_agrees_too(pairs):
    for source, _, _ in pairs["italian"]:
        for word, after in zip(source, source[1:]):
            if word in ("a", "an"):
                assert (word == "an") == (after[0].lower() in "aeiou")
            assert not (word in ("do", "does", "did") and after != "not")


# ── Sampling ───────────────────────────────────────────────────────────────────────────────────────────────────────────

def test_a_sentence_has_one_translation(pairs):
    for language in LANGUAGES:
        translations = {}
        for source, target, alignment in pairs[language] + sample(language, 3000, seed=1):
            before = translations.setdefault(tuple(source), (target, alignment))
            assert before == (target, alignment)
        assert len(translations) < 6990                                 # some sentences did come twice


def test_lengths_cover_their_range(pairs):
    assert {len(source) for source, _, _ in pairs["spanish"]} == set(range(4, 26))


def test_one_seed_writes_one_english_for_both_languages():
    spanish, italian = sample("spanish", 50, seed=3), sample("italian", 50, seed=3)
    assert [p.source for p in spanish] == [p.source for p in italian]
    assert spanish == sample("spanish", 50, seed=3)
    assert [p.source for p in spanish] != [p.source for p in sample("spanish", 50, seed=4)]


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match="into spanish or italian, not 'latin'"):
        sample_pair("latin")


# ── Words and ids ──────────────────────────────────────────────────────────────────────────────────────────────────────

def test_words_become_padded_ids_and_come_back():
    sentences = [["la", "gata"], ["el", "gato", "ve"], ["ve"]]
    ids = vocabulary(sentences)
    assert ids == {"<pad>": 0, "<start>": 1, "<end>": 2, "el": 3, "gata": 4, "gato": 5, "la": 6, "ve": 7}
    tokens, lengths = encode(sentences, ids)
    assert tokens.tolist() == [[6, 4, 0], [3, 5, 7], [7, 0, 0]] and lengths.tolist() == [2, 3, 1]
    assert [decode(row, ids) for row in tokens.tolist()] == sentences
    assert decode([START, 6, 4, END, 7, PAD], ids) == ["la", "gata"]
    with pytest.raises(ValueError, match="'perro' is not in the vocabulary of 8 words"):
        encode([["el", "perro"]], ids)


def test_no_sentence_cannot_be_encoded():
    with pytest.raises(ValueError, match="at least one"):
        encode([], {"<pad>": 0})
