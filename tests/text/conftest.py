"""An independent splitter (GPT-2's rule as a loop over characters), and random Unicode text."""
import unicodedata

import pytest

# PropList.txt, White_Space: 25 code points.
WHITE_SPACE = {0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003,
               0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A, 0x2028, 0x2029, 0x202F,
               0x205F, 0x3000}
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def kind(character: str) -> str:
    if ord(character) in WHITE_SPACE:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def words_of(text: str) -> list[str]:
    kinds, words, start = [kind(character) for character in text], [], 0

    def end_of_run(i: int) -> int:
        end = i
        while end < len(text) and kinds[end] == kinds[i]:
            end += 1
        return end

    while start < len(text):
        contraction = next((c for c in CONTRACTIONS if text[start:start + len(c)] == c), None)
        after_space = start + 1 if text[start] == " " and start + 1 < len(text) else start
        if contraction:
            end = start + len(contraction)
        elif kinds[after_space] != "space":
            end = end_of_run(after_space)
        else:
            end = end_of_run(start)
            if end < len(text) and end - start > 1:
                end -= 1                # the last space belongs to the next word, or stands alone
        words.append(text[start:end])
        start = end
    return words


@pytest.fixture(scope="session")
def kind_of():
    return kind


@pytest.fixture(scope="session")
def split_slowly():
    return words_of


def any_text(rng, length: int) -> str:
    """Characters of all planes, and awkward ones: marks, controls, contractions, spaces."""
    awkward = [
        "'s", "'ll", "'RE", "'", " ", "  ", "\n", "\r\n", "\t", "\0", "\x1c", "\x1f", "\x85",
        "\xa0", "\u180e", "\u200b", "\u2028", "\u3000", "_", "²", "½", "Ⅷ", "٣", "ª", "e\u0301",
        "é", "ﬁ", "中文", "नि", "👩‍👩‍👧", "🇨🇱", "\ufeff", "\U0010ffff", "low", "lower", "<|end|>",
    ]

    def character() -> str:
        if rng.random() < 0.5:
            return rng.choice(awkward)
        code_point = rng.randrange(rng.choice([0x80, 0x800, 0x10000, 0x20000, 0x40000, 0x110000]))
        return "?" if 0xD800 <= code_point < 0xE000 else chr(code_point)
    return "".join(character() for _ in range(length))


@pytest.fixture(scope="session")
def random_text():
    return any_text
