"""Tokens and the parts of rules, against a second way to cut a text."""
import re

import pytest

from minigpt.worlds.grammar_notation import Part, literal, parse, tokens


def cut(text):
    """Tokens, found one character at a time: a word or one mark, with the space before it."""
    found = []
    for i, character in enumerate(text):
        inside = i > 0 and text[i - 1].isalnum() and character.isalnum()
        after_space = i > 0 and text[i - 1] == " "
        if inside or after_space:
            found[-1] += character
        else:
            found.append(character)
    return found


TEXTS = ["", "Ann's cat ran.", '"Oh!" she said,\nand fell', "naïve", "1 2;3", "¿Qué? — sí."]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_text(text):
    assert list(tokens(text)) == cut(text)
    assert "".join(tokens(text)) == text


@pytest.mark.parametrize("text, at, before", [
    (" ", 0, ""), ("one ", 3, "one"), ("one  two", 3, "one"), ("a b  c", 3, "a b"),
    ("abcdefghijklmnopqrstuvwxyz ", 26, "ghijklmnopqrstuvwxyz")])
def test_a_space_that_belongs_to_no_token_is_refused(text, at, before):
    expected = f"at character {at}, after {before!r}: a space must stand before a word or a mark"
    with pytest.raises(ValueError, match=re.escape(expected)):
        tokens(text)


def test_every_kind_of_part():
    assert parse("r", 'Oh, <who> [ran|is {hero.his}]: {hero=NAME}{hero} {hero.He}!') == [
        Part("token", "", "Oh"), Part("token", "", ","), Part("rule", " ", "who"),
        Part("rule", " ", "[ran|is {hero.his}]"), Part("token", "", ":"),
        Part("draw", " ", "hero", "NAME"), Part("mention", "", "hero", ""),
        Part("mention", " ", "hero", "He"), Part("token", "", "!")]


@pytest.mark.parametrize("text", TEXTS[1:2] + TEXTS[4:])
def test_words_and_marks_are_parsed_as_literal_tokens(text):
    assert parse("r", text) == literal(text)


@pytest.mark.parametrize("text, rest", [
    ("", ""), (" x", " x"), ("x ", " "), ("x  y", "  y"), ("x {y", " {y"), ("x | y", " | y"),
    ("x [y", " [y"), ("<>", "<>"), ("[]", "[]"), ("[a[b]]", "[a[b]]"), ("{x=}", "{x=}"),
    ("{x.he.she}", "{x.he.she}")])
def test_what_cannot_be_read(text, rest):
    expected = f"rule <r>: cannot read {rest!r} in {text!r}; write words, marks, <rule>, {{slot="
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse("r", text)
