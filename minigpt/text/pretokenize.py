r"""Pre-tokenisation: a text is split into words before merges are learned or applied.

    "It's 7 o'clock"  →  "It"  "'s"  " 7"  " o"  "'"  "clock"

So no token of byte-pair encoding contains parts of two words. GPT-2's rule (Radford et al. 2019,
§2.2, and its released code) takes the first alternative that matches, from the left:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

Python's `re` has no \p{L} and \p{N}, and its \s also includes U+001C to U+001F, which are not white
space in Unicode. So the three classes are written out below, from the character database that comes
with Python. GPT-2's own code uses the `regex` package, whose version of Unicode can differ.
Not here: later patterns. GPT-4's splits numbers after three digits.
"""
import functools
import re
import unicodedata

# Unicode's White_Space property, which has not changed since version 6.3.
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def split_into_words(text: str) -> list[str]:
    """The words of a text by GPT-2's rule; joined, they are the text again.

    >>> split_into_words("It's 7 o'clock,  ½ past\\n")
    ['It', "'s", ' 7', ' o', "'", 'clock', ',', ' ', ' ½', ' past', '\\n']
    """
    return word_pattern().findall(text)


@functools.cache
def word_pattern() -> re.Pattern:
    """The pattern above. It is compiled at its first use, because that takes about 40 ms."""
    # One character per code point: L for a letter, N for a number, … There are no letters and no
    # numbers above plane 3.
    categories = "".join([unicodedata.category(chr(point))[0] for point in range(0x40000)])
    letters, numbers = ("".join(f"{chr(run.start())}-{chr(run.end() - 1)}"
                                for run in re.finditer(f"{kind}+", categories)) for kind in "LN")
    return re.compile("|".join([
        r"'s|'t|'re|'ve|'m|'ll|'d",                     # English contractions
        rf" ?[{letters}]+",                             # letters, with the space before them
        rf" ?[{numbers}]+",                             # numbers, with the space before them
        rf" ?[^{WHITE_SPACE}{letters}{numbers}]+",      # other visible characters, likewise
        rf"[{WHITE_SPACE}]+(?![^{WHITE_SPACE}])",       # spaces, but not the one before a word
        rf"[{WHITE_SPACE}]+",                           # the rest of the white space
    ]))


@functools.cache
def byte_characters() -> str:
    """A visible character for each of the 256 bytes, as in GPT-2's files.

    The visible characters of Latin-1 stand for themselves. The others are U+0100, U+0101, …

    >>> "".join(byte_characters()[byte] for byte in " naïve\\n".encode())
    'ĠnaÃ¯veĊ'
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}     # !…~, ¡…¬, ®…ÿ
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in visible else next(others)) for byte in range(256))
