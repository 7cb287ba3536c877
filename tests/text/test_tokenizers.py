"""The three tokenizers: ids found by hand, texts that come back, and text decoded in pieces."""
import functools
import random
import re

import pytest
import torch

from minigpt.text import tokenizers
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer
from minigpt.worlds.grammar import tokens as grammar_tokens
from minigpt.worlds.stories import STORIES

TEXT = ("she sells sea shells by the sea shore; the shells she sells are sea-shells, "
        "I'm sure. " * 3).rstrip()
UNICODE = " ¿Qué día es? Perché no, là; 中文 👩‍👩‍👧 e\u0301 \0\n\r\n\x85"
SPECIAL = ["<end>", "<end>s"]                           # one name is the beginning of the other
KINDS = [CharTokenizer, WordTokenizer, BPETokenizer]
SIZE = {CharTokenizer: {}, WordTokenizer: {}, BPETokenizer: {"vocab_size": 300}}
by_kind = pytest.mark.parametrize("kind", KINDS)


SMALL = SIZE | {BPETokenizer: {"vocab_size": 259}}


def trained(kind):
    """A tokenizer of this kind, with two special tokens."""
    if kind is WordTokenizer:
        return kind.train(TEXT, SPECIAL, keep_spaces=True)
    return kind.train(TEXT + UNICODE, special_tokens=SPECIAL, **SIZE[kind])


# ---- characters

def test_characters_are_numbered_in_order_and_special_tokens_follow():
    tokenizer = CharTokenizer.train("banana\n", special_tokens=["<pad>", "<end>"])
    assert tokenizer.vocabulary == ["\n", "a", "b", "n", "<pad>", "<end>"]
    assert tokenizer.special_tokens == {"<pad>": 4, "<end>": 5} and tokenizer.vocab_size == 6
    assert tokenizer.encode("nab\n") == [3, 1, 2, 0] and tokenizer.decode([2, 1, 5]) == "ba<end>"


def test_characters_round_trip(random_text):
    rng = random.Random(1)
    for _ in range(100):
        text = random_text(rng, 40)
        tokenizer = CharTokenizer.train(text)
        assert tokenizer.vocab_size == len(set(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = CharTokenizer.train("abc", special_tokens=["<é>"])
    with pytest.raises(ValueError, match="'é' at index 4 is not among the 3 .* train"):
        tokenizer.encode("abcaéz")
    for character, shown in (("<", "'<'"), ("\n", r"'\\n'"), ("\ud83d", r"'\\ud83d'")):
        with pytest.raises(ValueError, match=f"character {shown} at index 1 "):
            tokenizer.encode(f"a{character}é>")             # the name of a special token is text


# ---- words

def test_special_tokens_are_first_and_words_follow_in_order():
    tokenizer = WordTokenizer.train("the cat saw the dog .", ["<pad>", "<end>"])
    assert tokenizer.vocabulary == ["<pad>", "<end>", ".", "cat", "dog", "saw", "the"]
    assert tokenizer.special_tokens == {"<pad>": 0, "<end>": 1} and tokenizer.vocab_size == 7
    assert tokenizer.encode("the dog .") == tokenizer.encode(["the", "dog", "."]) == [6, 4, 2]
    assert tokenizer.encode("") == tokenizer.encode([]) == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode([0, 6, 4, 1]) == "<pad> the dog <end>"


def test_a_text_and_the_list_of_its_words_train_the_same_tokenizer():
    words = ["la", "gata", "ve", "la", "casa"]
    from_list, from_text = WordTokenizer.train(words), WordTokenizer.train(" ".join(words))
    assert from_list.vocabulary == from_text.vocabulary == ["casa", "gata", "la", "ve"]
    assert WordTokenizer.train(words[::-1]).vocabulary == from_list.vocabulary
    assert WordTokenizer.train({"b": 1, "a": 2}).vocabulary == ["a", "b"]       # any collection


def test_special_tokens_can_have_any_ids():
    names = ["<pad>", "b", "a", "<Y>", "<X>"]
    tokenizer = WordTokenizer(names, special_tokens=["<pad>", "<Y>", "<X>"])
    assert tokenizer.vocabulary == names and tokenizer.encode("a b") == [2, 1]
    assert tokenizer.special_tokens == {"<pad>": 0, "<Y>": 3, "<X>": 4}


def test_words_that_keep_their_spaces_by_hand():
    tokenizer = WordTokenizer.train("Ann's cat ran.\nCat?", keep_spaces=True)
    words = ["\n", " cat", " ran", "'", ".", "?", "Ann", "Cat", "s"]
    assert tokenizer.vocabulary == words
    assert tokenizer.encode("Cat ran?") == [7, 2, 5] and tokenizer.decode([7, 2, 5]) == "Cat ran?"
    spaced = WordTokenizer.train("a  b ", keep_spaces=True)         # a space without a word
    assert spaced.vocabulary == [" ", " b", "a"] and spaced.encode("a  b ") == [2, 0, 1, 0]
    quoted = WordTokenizer.train('a "_x1_", ñandú', keep_spaces=True)
    assert quoted.vocabulary == sorted(["a", ' "', "_x1_", '"', ",", " ñandú"])


@pytest.mark.parametrize("keep_spaces", [False, True])
def test_words_round_trip(keep_spaces, random_text):
    rng = random.Random(1)
    for _ in range(200):
        text = random_text(rng, rng.randint(1, 40))
        if not keep_spaces:
            text = " ".join(word for word in text.split(" ") if word) or "a"
        tokenizer = WordTokenizer.train(text, keep_spaces=keep_spaces)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_that_keep_their_spaces_are_the_tokens_of_a_grammar(random_text):
    """A grammar's entropy is known token by token, so the lessons need the very same tokens."""
    rng = random.Random(2)
    for text in [*STORIES.sample_many(50, seed=1), *(random_text(rng, 30) for _ in range(200))]:
        text = re.sub(" +", " ", text).strip(" ") or "a"
        tokenizer = WordTokenizer.train(text, keep_spaces=True)
        ids = tokenizer.encode(text)
        assert [tokenizer.vocabulary[i] for i in ids] == list(grammar_tokens(text))


def test_an_unknown_word_is_named_with_its_place():
    tokenizer = WordTokenizer.train("a cat", special_tokens=["<end>"])
    with pytest.raises(ValueError, match="'dog', word 2 of the text, is not among the 2 words of "
                                         "this tokenizer; train it on a text that has the word"):
        tokenizer.encode("a cat dog dog")
    with pytest.raises(ValueError, match="'', word 1 of the text"):
        tokenizer.encode("a  cat")
    for text in ("cat <end>", ["cat", "<end>"]):
        with pytest.raises(ValueError, match="'<end>', word 1 .* add special tokens by their ids"):
            tokenizer.encode(text)
    with pytest.raises(ValueError, match="' dog', word 1 .* train it on a text that has the word"):
        WordTokenizer.train("a cat", keep_spaces=True).encode("a dog")


@pytest.mark.parametrize("vocabulary, special, keep_spaces, complaint", [
    ("abc", [], False, "vocabulary must be a list of different"),
    (["a", "a"], [], False, "vocabulary must be a list of different"),
    (["a", ""], [], False, "vocabulary must be a list of different"),
    (["a", ["b"]], [], False, "vocabulary must be a list of different"),
    (["a", "b\ud800"], [], False, r"'\\ud800' in position 2: surrogates not allowed"),
    (["a"], ["<end>"], False, "the vocabulary lacks the special token '<end>'"),
    (["a"], ["a", "a"], False, "special_tokens must be a list of different"),
    (["a b"], [], False, r"'a b' is not one word: .* split inside it into \['a', 'b'\]"),
    (["a b"], [], True, r"'a b' is not one word: .* split inside it into \['a', ' b'\]"),
    (["l'"], [], True, "is not one word"), (["  a"], [], True, "is not one word"),
])
def test_vocabularies_that_cannot_work_are_refused(vocabulary, special, keep_spaces, complaint):
    with pytest.raises(ValueError, match=complaint):
        WordTokenizer(vocabulary, special, keep_spaces)


def test_special_tokens_need_not_be_words():
    tokenizer = WordTokenizer([" <end>", "a b", "c"], [" <end>", "a b"], keep_spaces=True)
    assert tokenizer.encode("c") == [2] and tokenizer.decode([1, 0, 2]) == "a b <end>c"
    assert WordTokenizer(["l'", "ape"]).encode("l' ape") == [0, 1]


# ---- byte pairs

def test_bytes_then_merges_then_special_tokens():
    # "ab" once, " ab" three times: the pair a b occurs four times, then the space with it three.
    tokenizer = BPETokenizer.train("ab ab ab ab", 259, ["<end>"])
    assert tokenizer.merges == [(97, 98), (32, 256)]
    assert tokenizer.vocabulary == [bytes([b]) for b in range(256)] + [b"ab", b" ab", b"<end>"]
    assert tokenizer.special_tokens == {"<end>": 258} and tokenizer.vocab_size == 259
    assert tokenizer.encode("ab abé") == [256, 257, 0xC3, 0xA9]


def test_byte_pairs_round_trip_any_unicode(random_text):
    rng, tokenizer = random.Random(2), trained(BPETokenizer)
    for _ in range(1000):
        text = random_text(rng, rng.randrange(40))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.vocabulary[i] for i in ids) == text.encode()
        assert tokenizer.encode(text) == ids                # the second time from the cache


def test_training_asks_for_exactly_what_the_text_can_give():
    assert BPETokenizer.train("low low", 256).merges == []
    assert BPETokenizer.train("low low", 259).vocabulary[256:] == [b"lo", b"low", b" low"]
    assert BPETokenizer.train("low low", 258, ["<a>", "<b>"]).merges == []
    assert len(BPETokenizer.train("low low", 261, ["<a>", "<b>"]).merges) == 3
    for size, nearest, merges in ((262, 261, 3), (257, 258, 0), (0, 258, 0)):
        with pytest.raises(ValueError, match=f"{size} does not fit this text; .* {nearest}: 256 "
                                             f"bytes, 2 special tokens and {merges} merges"):
            BPETokenizer.train("low low", size, ["<a>", "<b>"])


def test_lone_surrogates_are_refused_with_their_place():
    tokenizer = trained(BPETokenizer)
    train_bytes = functools.partial(BPETokenizer.train, vocab_size=256)
    for refusing in (tokenizer.encode, train_bytes, CharTokenizer.train, WordTokenizer.train):
        with pytest.raises(ValueError, match=r"'\\udc9f' in position 3: surrogates not allowed"):
            refusing("abc\udc9f😀")
    with pytest.raises(ValueError, match="in position 8"):          # of the text, not of the word
        tokenizer.encode("abc def \ud800")


def test_decoding_part_of_a_character_gives_the_replacement_character():
    tokenizer = BPETokenizer([])
    ids = tokenizer.encode("é👍")
    assert tokenizer.decode(ids) == "é👍"
    assert tokenizer.decode(ids[1:]) == "\ufffd👍" and tokenizer.decode(ids[:-1]) == "é\ufffd"


def test_the_cache_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(tokenizers, "CACHED_WORDS", 3)
    tokenizer, without_cache = trained(BPETokenizer), trained(BPETokenizer)
    for word in TEXT.split(" ") * 2:
        without_cache._ids_of_word.cache_clear()
        ids = tokenizer.encode(word)
        assert ids == without_cache.encode(word)
        ids.append(0)                                       # the caller may change the list
        assert 0 < tokenizer._ids_of_word.cache_info().currsize <= 3
    assert without_cache.encode("shells") and tokenizer.encode("she") == without_cache.encode("she")


def test_every_stage_of_the_work():
    tokenizer = BPETokenizer([(98, 99), (97, 98), (257, 256), (32, 257)])   # bc, ab, abbc, " ab"
    work = tokenizer.encode_and_show_work("abbc ab\n")
    assert work == {
        "text": "abbc ab\n",
        "words": [
            {"word": "abbc", "bytes": ["a", "b", "b", "c"], "ids": [258], "merges": [
                {"rank": 0, "pair": ("b", "c"), "result": ["a", "b", "bc"]},
                {"rank": 1, "pair": ("a", "b"), "result": ["ab", "bc"]},
                {"rank": 2, "pair": ("ab", "bc"), "result": ["abbc"]}]},
            {"word": " ab", "bytes": ["Ġ", "a", "b"], "ids": [259], "merges": [
                {"rank": 1, "pair": ("a", "b"), "result": ["Ġ", "ab"]},
                {"rank": 3, "pair": ("Ġ", "ab"), "result": ["Ġab"]}]},
            {"word": "\n", "bytes": ["Ċ"], "ids": [10], "merges": []}],
        "ids": [258, 259, 10]}


def test_the_work_shown_ends_in_the_ids_of_encode(random_text):
    rng, tokenizer = random.Random(3), trained(BPETokenizer)
    for _ in range(300):
        text = random_text(rng, rng.randrange(20)) + "sea shells she sells"[:rng.randrange(20)]
        work = tokenizer.encode_and_show_work(text)
        assert work["ids"] == tokenizer.encode(text)
        assert "".join(word["word"] for word in work["words"]) == text


# ---- text that is decoded in pieces

def test_bytes_decoded_one_by_one_equal_bytes_decoded_at_once():
    """Random bytes: mostly no UTF-8, with continuation bytes alone and characters cut off."""
    rng, tokenizer = random.Random(6), BPETokenizer([])
    some = [0x20, 0x41, 0x80, 0xBF, 0xC2, 0xC3, 0xA9, 0xE0, 0xA0, 0xED, 0xE4, 0xB8, 0xAD, 0xEF,
            0xBB, 0xF0, 0x9F, 0x91, 0x8D, 0xF4, 0x8F, 0xF5, 0xFF]
    for trial in range(5000):
        data = bytes(rng.choice(some if trial % 3 else range(256)) for _ in range(rng.randrange(9)))
        pieces = list(tokenizer.decode_stream(iter(data)))
        assert "".join(pieces) == tokenizer.decode(data) == data.decode("utf-8", errors="replace")
        assert all(pieces)                                  # no piece is empty


@by_kind
def test_ids_decoded_one_by_one_equal_ids_decoded_at_once(kind):
    rng, tokenizer = random.Random(7), trained(kind)
    for _ in range(500):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(12))]
        assert "".join(tokenizer.decode_stream(iter(ids))) == tokenizer.decode(ids)
        whole = [tokenizer.vocabulary[i] for i in ids]
        if kind is BPETokenizer:
            assert tokenizer.decode(ids) == b"".join(whole).decode("utf-8", errors="replace")
        else:
            assert tokenizer.decode(ids) == "".join(whole)


def test_words_decoded_one_by_one_have_their_spaces():
    tokenizer = WordTokenizer.train("the cat saw", special_tokens=["<end>"])
    assert list(tokenizer.decode_stream([3, 1, 0])) == ["the", " cat", " <end>"]


def test_a_piece_is_given_as_soon_as_its_characters_are_complete():
    tokenizer = BPETokenizer([(0xF0, 0x9F), (256, 0x91)])   # the first 2 and 3 of the 4 bytes of 👍
    given = []

    def ids():
        for i in (97, 256, 0x91, 0x8D, 257, 97, 257):
            given.append(i)
            yield i

    seen = [(piece, len(given)) for piece in tokenizer.decode_stream(ids())]
    # 257 without its last byte is replaced when the next character shows it, or at the end.
    assert seen == [("a", 1), ("👍", 4), ("\ufffda", 6), ("\ufffd", 7)]


def test_the_stream_ends_with_an_error_where_an_id_is_wrong():
    pieces = trained(CharTokenizer).decode_stream([5, 6, 7000])
    assert next(pieces) and next(pieces)
    with pytest.raises(ValueError, match="id 7000 at index 2 is not in this vocabulary"):
        next(pieces)


# ---- all kinds

@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_the_names_of_special_tokens_in_a_text_are_ordinary(kind):
    text = "she<end>sea"
    tokenizer = kind.train(text + "<", special_tokens=SPECIAL, **SMALL[kind])
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values()) and tokenizer.decode(ids) == text
    end = tokenizer.special_tokens["<end>"]
    assert tokenizer.decode([*ids, end]) == text + "<end>"


def test_special_tokens_among_words_are_ordinary():
    tokenizer = WordTokenizer.train("she sea < end > ea s", SPECIAL, keep_spaces=True)
    with pytest.raises(ValueError, match="'<', word 1 of the text"):        # only " <" is a word
        tokenizer.encode("she<end>sea<end>s")
    names = [*SPECIAL, "she", "<", "end", ">", "ea", "sea"]
    assert WordTokenizer(names, SPECIAL, keep_spaces=True).encode("she<end>sea") == [2, 3, 4, 5, 7]


@by_kind
@pytest.mark.parametrize("names", ["<pad>", ["<a>", "<a>"], [""], [3], [["<a>"]]])
def test_special_tokens_have_to_be_different_strings(kind, names):
    with pytest.raises(ValueError, match="must be a list of different, non-empty strings"):
        kind.train("some text", special_tokens=names, **SMALL[kind])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        kind.train("some text", special_tokens=["<\ud800>"], **SMALL[kind])


@by_kind
def test_an_empty_text_teaches_nothing(kind):
    with pytest.raises(ValueError, match="the text is empty"):
        kind.train("", **SIZE[kind])


@by_kind
def test_ids_outside_the_vocabulary_are_refused(kind):
    tokenizer = trained(kind)
    size, last = tokenizer.vocab_size, tokenizer.vocabulary[-1]
    assert tokenizer.decode([size - 1]) == (last.decode() if kind is BPETokenizer else last)
    assert tokenizer.decode([]) == ""
    for bad in (size, -1):
        with pytest.raises(ValueError, match=f"id {bad} at index 2 is not in this vocabulary of "
                                             f"{size}, 0 to {size - 1}"):
            tokenizer.decode([0, 1, bad, -7])
    with pytest.raises(TypeError):
        tokenizer.decode([1.0])


@by_kind
def test_decode_takes_a_tensor(kind):
    tokenizer = trained(kind)
    assert tokenizer.decode(torch.tensor(tokenizer.encode("she sells"))) == "she sells"
