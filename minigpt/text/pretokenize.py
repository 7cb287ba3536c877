r"""Pre-tokenisation: a text falls into words before any merge is learnt, so that no token straddles two of them.

    "It's 7 o'clock"  ->  "It"  "'s"  " 7"  " o"  "'"  "clock"

GPT-2's rule (Radford et al. 2019, §2.2, and the pattern published with it), first match from the left:

    's|'t|'re|'ve|'m|'ll|'d    English contractions
    | ?\p{L}+                  letters, with the space before them
    | ?\p{N}+                  numbers
    | ?[^\s\p{L}\p{N}]+        anything else that is visible
    |\s+(?!\S)|\s+             white space, less its last one if a word follows

Python's `re` has no \p{L} and \p{N}, and its \s also takes U+001C to U+001F, which Unicode does not. So the three classes
are spelled out below, from the character database that comes with Python: Unicode `unicodedata.unidata_version`
(14.0 in Python 3.11). GPT-2's own code follows the version of the `regex` package: a letter that one of the two versions
does not have yet is cut differently, and nothing else is.

Not here: later patterns (GPT-4 cuts numbers after three digits and ignores the case of contractions).
"""
import functools
import re
import unicodedata

# Unicode's White_Space property, which has not changed since version 6.3.
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def split_into_words(text: str) -> list[str]:
    """Cut a text at GPT-2's word boundaries; joined, the words are the text again.

    >>> split_into_words("It's 7 o'clock,  ½ past\\n")
    ['It', "'s", ' 7', ' o', "'", 'clock', ',', ' ', ' ½', ' past', '\\n']
    """
    return word_pattern().findall(text)


@functools.cache
def word_pattern() -> re.Pattern:
    """The pattern above, compiled on first use (it takes about 40 ms, nearly all of it to read 262,144 categories)."""
    letters, numbers = characters_of_category("L"), characters_of_category("N")
    return re.compile(rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^{WHITE_SPACE}{letters}{numbers}]+"
                      rf"|[{WHITE_SPACE}]+(?![^{WHITE_SPACE}])|[{WHITE_SPACE}]+")


def characters_of_category(major: str) -> str:
    """The ranges "a-zµ-µ…" of all characters whose general category starts with `major`, to stand between [ and ]."""
    return "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in re.finditer(f"{major}+", major_categories()))


@functools.cache
def major_categories() -> str:
    """One letter for each code point: L letter, N number, … It stops after plane 3: there are no letters or numbers above
    (a test looks at all of Unicode)."""
    return "".join([unicodedata.category(chr(code_point))[0] for code_point in range(0x40000)])


@functools.cache
def byte_characters() -> str:
    """A visible character for each of the 256 bytes, as GPT-2 writes them: those that print stand for themselves,
    the others, in order, are U+0100, U+0101, …: a space is Ġ, a newline Ċ.

    >>> "".join(byte_characters()[byte] for byte in " naïve\\n".encode())
    'ĠnaÃ¯veĊ'
    """
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = iter(range(256, 512))
    return "".join(chr(byte if byte in prints else next(stand_ins)) for byte in range(256))
