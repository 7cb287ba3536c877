"""The notation of a grammar's rules: strings that are cut into parts (used by grammar.py).

    <rule>          a text of that rule
    [ran|walked]    one of these, each with the same probability
    {hero=NAME}     a value drawn from the pool NAME; `hero` is called a slot
    {hero}          the same value again
    {hero.he}       a feature of that value
    {hero.He}       the feature with a capital

Anything else in a string is a word or a mark that stands for itself. Single spaces stand between
the parts, and none at the ends. A token is a word or a mark with the space before it, so the tokens
of a text, joined, are the text.

Not here: a way to write the characters < > [ ] { } | in a text, and choices inside choices.
"""
import re
from functools import cache
from typing import NamedTuple

from minigpt.text.tokenizers import WORD_OR_MARK

PART = re.compile(r"( ?)(?:<(?P<rule>[^<>]+)>|\[(?P<choice>[^][]+)\]"
                  r"|\{(?P<slot>\w+)(?:=(?P<pool>\w+)|\.(?P<feature>\w+))?\}"
                  r"|(?P<token>\w+|[^\w <>{}|\[\]]))")


class Part(NamedTuple):
    """What an alternative is made of."""
    kind: str               # "token", "rule", "draw" (fill a slot) or "mention" (repeat a slot)
    space: str              # " " or "", written before the part
    name: str               # of the token, the rule or the slot
    detail: str = ""        # the pool of a draw; the feature of a mention, "" for the value itself


def tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text; ValueError for a space that does not stand before a word or a mark.

    >>> tokens("Ann's cat ran.")
    ('Ann', "'", 's', ' cat', ' ran', '.')
    """
    if stray := re.search(r" (?= |\Z)", text):
        at = stray.start()
        raise ValueError(f"at character {at}, after {text[max(0, at - 20):at]!r}: a space must "
                         "stand before a word or a mark; take it out")
    return tuple(re.findall(WORD_OR_MARK, text))


def is_word(token: str) -> bool:
    """Whether a token is a word and not a mark."""
    return re.match(r"\w", token) is not None


def parse(rule: str, text: str) -> list[Part]:
    """The parts of a rule's alternative; [a|b] is a rule of that name, which Grammar adds."""
    parts, at = [], 0
    while at < len(text) or not parts:
        match = PART.match(text, at)
        if match is None or (at == 0 and match[1]):
            raise ValueError(
                f"rule <{rule}>: cannot read {text[at:]!r} in {text!r}; write words, marks, "
                "<rule>, {slot=POOL}, {slot}, {slot.feature} and [this|that], with single spaces "
                "between them and none at the ends")
        space, at = match[1], match.end()
        if match["choice"]:
            parts.append(Part("rule", space, f"[{match['choice']}]"))
        elif match["pool"]:
            parts.append(Part("draw", space, match["slot"], match["pool"]))
        elif match["slot"]:
            parts.append(Part("mention", space, match["slot"], match["feature"] or ""))
        else:
            parts.append(Part(match.lastgroup, space, match["rule"] or match["token"]))
    return parts


@cache
def literal(text: str) -> list[Part]:
    """The parts of a text in which every character stands for itself."""
    return [Part("token", " " * (token[0] == " "), token.strip(" ")) for token in tokens(text)]
