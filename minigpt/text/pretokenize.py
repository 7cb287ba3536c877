r"""Pre-tokenisation: a text is split into words before merges are learned or applied.

    "It's 7 o'clock"  →  "It"  "'s"  " 7"  " o"  "'"  "clock"

So no token of byte-pair encoding contains parts of two words. GPT-2's rule (Radford et al. 2019,
§2.2, and the pattern in its released code) takes the first of these that matches, from the left:

    's|'t|'re|'ve|'m|'ll|'d    English contractions
    | ?\p{L}+                  letters, with the space before them
    | ?\p{N}+                  numbers, with the space before them
    | ?[^\s\p{L}\p{N}]+        other visible characters, with the space before them
    |\s+(?!\S)                 white space, without its last character if a word follows
    |\s+                       the rest of the white space

Python's `re` has no \p{L} and \p{N}, and its \s also includes U+001C to U+001F, which are not white
space in Unicode. So the three classes are written out below, from the character database that comes
with Python: version `unicodedata.unidata_version` of Unicode, which is 14.0 in Python 3.11. GPT-2's
own code uses the version of the `regex` package. The two split a text differently only at
characters that the two versions do not put into the same class.

Not here: later patterns. GPT-4's splits numbers after three digits and ignores the case of
contractions.
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
    letters, numbers = characters_of_category("L"), characters_of_category("N")
    return re.compile("|".join([
        r"'s|'t|'re|'ve|'m|'ll|'d",
        rf" ?[{letters}]+",
        rf" ?[{numbers}]+",
        rf" ?[^{WHITE_SPACE}{letters}{numbers}]+",
        rf"[{WHITE_SPACE}]+(?![^{WHITE_SPACE}])",
        rf"[{WHITE_SPACE}]+",
    ]))


def characters_of_category(major: str) -> str:
    """All characters whose general category starts with `major`, as ranges for a [...] of `re`.

    Those of "L" begin with "A-Za-zª-ªµ-µ".
    """
    runs = re.finditer(f"{major}+", major_categories())
    return "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in runs)


@functools.cache
def major_categories() -> str:
    """One letter for each code point: L for a letter, N for a number, …

    It ends with plane 3, because there are no letters or numbers above (a test checks all of
    Unicode).
    """
    return "".join([unicodedata.category(chr(code_point))[0] for code_point in range(0x40000)])


@functools.cache
def byte_characters() -> str:
    """A visible character for each of the 256 bytes, as in GPT-2's files.

    The bytes that are visible characters of Latin-1 stand for themselves. The others, in order, are
    U+0100, U+0101, …: a space is Ġ, a newline is Ċ.

    >>> "".join(byte_characters()[byte] for byte in " naïve\\n".encode())
    'ĠnaÃ¯veĊ'
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}     # !…~, ¡…¬, ®…ÿ
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in visible else next(others)) for byte in range(256))
