import itertools
import random
import re
import sys
import unicodedata

from minigpt.text.pretokenize import byte_characters, split_into_words


def test_every_code_point_of_unicode_is_classed_as_its_category_says(kind_of):
    seen = 0
    for kind, run in itertools.groupby(map(chr, range(sys.maxunicode + 1)), key=kind_of):
        run = "".join(run)
        expected = {"letter": ["a" + run, "1", "."], "number": ["a", run + "1", "."],
                    "other": ["a", run, "1", "."]}
        if kind == "space":                     # before a word, the last space would be separate
            assert split_into_words("a" + run) == ["a", run]
        else:
            where = f"{kind}: U+{ord(run[0]):04X} to U+{ord(run[-1]):04X}"
            assert split_into_words("a" + run + "1.") == expected[kind], where
        seen += len(run)
    assert seen == 0x110000


def test_characters_that_python_s_own_classes_would_split_differently():
    assert split_into_words("a²b") == ["a", "²", "b"]                   # \w, not \d: No
    assert split_into_words("aⅧb") == ["a", "Ⅷ", "b"]                  # Nl
    assert split_into_words("a_b") == ["a", "_", "b"]                   # \w, and no letter
    assert split_into_words("ie\u0301") == ["ie", "\u0301"]         # a combining mark is no letter
    assert split_into_words("a\x1c\x1fb") == ["a", "\x1c\x1f", "b"]     # \s, only in Python
    assert split_into_words("a \x1cb") == ["a", " \x1c", "b"]
    assert split_into_words("a\x85\x85b") == ["a", "\x85", "\x85", "b"]
    assert split_into_words("a\u180eb") == ["a", "\u180e", "b"]
    assert re.fullmatch(r"\s", "\x1c") and re.fullmatch(r"\w", "_")    # Python's own classes differ


def test_contractions_and_spaces_by_hand():
    words = ["we", "'ll", " I", "'m", " '", "tis", " DON", "'", "T", " it", "'d"]
    assert split_into_words("we'll I'm 'tis DON'T it'd") == words
    assert split_into_words("x   y \n z  ") == ["x", "  ", " y", " \n", " z", "  "]
    assert split_into_words("x\n\ny") == ["x", "\n", "\n", "y"]
    assert split_into_words("") == []


def test_random_text_is_split_like_the_slow_splitter_and_loses_nothing(split_slowly, random_text):
    rng = random.Random(1)
    for _ in range(2000):
        text = random_text(rng, rng.randrange(30))
        words = split_into_words(text)
        assert words == split_slowly(text)
        assert "".join(words) == text


def test_byte_characters_are_256_visible_ones_and_keep_ascii_and_latin():
    characters = byte_characters()
    assert len(set(characters)) == len(characters) == 256
    assert not any(unicodedata.category(c)[0] in "CZ" or c == " " for c in characters)
    assert "".join(characters[b] for b in (0x21, 0x7E, 0xA1, 0xAC, 0xAE, 0xFF)) == "!~¡¬®ÿ"
    others = (0x00, 0x0A, 0x20, 0x7F, 0x80, 0xA0, 0xAD)
    assert "".join(characters[b] for b in others) == "ĀĊĠġĢłŃ"
