import functools
import json
import os
import random

import pytest
import torch

from minigpt.text import tokenizers
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer, load_tokenizer

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea-shells, I'm sure. " * 3
UNICODE = "¿Qué día es? Perché no, là; 中文 👩‍👩‍👧 e\u0301 \0\n\r\n\x85"


def trained(kind):
    """A tokenizer of either kind with two special tokens, one the beginning of the other."""
    return kind.train(TEXT + UNICODE, 300, ["<end>", "<end>s"])


@pytest.fixture(scope="module")
def gpt2(shared_file):
    return BPETokenizer.from_gpt2(shared_file("gpt2/encoder.json"), shared_file("gpt2/vocab.bpe"))


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
        assert tokenizer.vocab_size == len(set(text)) and tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = CharTokenizer.train("abc", special_tokens=["<é>"])
    with pytest.raises(ValueError, match=r"character 'é' \(U\+00E9\) at index 4 is not among the 3 .* train it on a text"):
        tokenizer.encode("abcaéz")
    with pytest.raises(ValueError, match=r"character '\\n' \(U\+000A\) at index 5 "):
        tokenizer.encode("a<é>b\nc", allow_special=True)                # the index counts from the text's beginning
    with pytest.raises(ValueError, match=r"character 'é' \(U\+00E9\) at index 5 "):
        tokenizer.encode("a<é>bé<é>c", allow_special=True)
    with pytest.raises(ValueError, match=r"character '\\ud83d' \(U\+D83D\) at index 1 "):
        tokenizer.encode("a\ud83d")


def test_vocab_size_limits_the_characters():
    assert CharTokenizer.train("abcab", vocab_size=5, special_tokens=["<pad>"]).vocab_size == 4
    assert CharTokenizer.train("abcab", vocab_size=4, special_tokens=["<pad>"]).vocab_size == 4
    with pytest.raises(ValueError, match="3 distinct characters and 1 special tokens are more than vocab_size 3; raise it to 4"):
        CharTokenizer.train("abcab", vocab_size=3, special_tokens=["<pad>"])


# ---- byte pairs

def test_bytes_then_merges_then_special_tokens():
    # "ab" once, " ab" three times: a b stands there four times, then the space with it three times.
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
        assert tokenizer.encode(text) == ids                            # the second time from what it remembers


def test_training_asks_for_exactly_what_the_text_can_give():
    assert BPETokenizer.train("low low", 256).merges == []
    assert BPETokenizer.train("low low", 259).vocabulary[256:] == [b"lo", b"low", b" low"]
    with pytest.raises(ValueError, match="after 3 merges each of its words is one token; ask for at most 259"):
        BPETokenizer.train("low low", 260)
    with pytest.raises(ValueError, match="after 3 merges .* ask for at most 261"):
        BPETokenizer.train("low low", 262, ["<a>", "<b>"])
    with pytest.raises(ValueError, match="vocab_size 257 is less than 256 bytes and 2 special tokens; take at least 258"):
        BPETokenizer.train("low low", 257, ["<a>", "<b>"])


def test_lone_surrogates_are_refused_with_their_place():
    tokenizer = trained(BPETokenizer)
    for refusing in (tokenizer.encode, tokenizer.encode_and_show_work, functools.partial(BPETokenizer.train, vocab_size=256),
                     CharTokenizer.train):
        with pytest.raises(ValueError, match=r"U\+DC9F at index 3 is a lone surrogate"):
            refusing("abc\udc9f😀")
    with pytest.raises(ValueError, match=r"U\+D800 at index 8 is a lone surrogate"):
        tokenizer.encode("ab<end>c\ud800", allow_special=True)


def test_decoding_part_of_a_character_gives_the_replacement_character():
    tokenizer = BPETokenizer([])
    ids = tokenizer.encode("é👍")
    assert tokenizer.decode(ids) == "é👍"
    assert tokenizer.decode(ids[1:]) == "\ufffd👍" and tokenizer.decode(ids[:-1]) == "é\ufffd"


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(tokenizers, "CACHED_WORDS", 3)
    monkeypatch.setattr(tokenizers, "CACHED_LENGTH", 5)
    tokenizer, forgetful = trained(BPETokenizer), trained(BPETokenizer)
    for word in TEXT.split(" ") * 2:
        forgetful._cache.clear()
        ids = tokenizer.encode(word)
        assert ids == forgetful.encode(word)
        ids.append(0)                                                   # the caller's list is the caller's
        assert 0 < len(tokenizer._cache) <= 3 and all(len(known) <= 5 for known in tokenizer._cache)
    assert forgetful.encode("shells") and tokenizer.encode("she") == forgetful.encode("she")


def test_every_stage_of_the_work():
    tokenizer = BPETokenizer([(98, 99), (97, 98), (257, 256), (32, 257)])       # bc, ab, abbc, " ab"
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


# ---- both kinds

@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_special_tokens_in_a_text_are_ordinary_unless_allowed(kind):
    tokenizer = trained(kind)
    end, ends = tokenizer.special_tokens["<end>"], tokenizer.special_tokens["<end>s"]
    text = "she<end>sea<end> s<en" if kind is BPETokenizer else "she<end>sea<end> s"
    if kind is CharTokenizer:
        with pytest.raises(ValueError, match="character '<'"):
            tokenizer.encode(text)
    else:
        assert end not in tokenizer.encode(text) and ends not in tokenizer.encode(text)
    parts = [tokenizer.encode("she"), [ends], tokenizer.encode("ea"), [end], tokenizer.encode(text[16:])]     # the longer one wins
    assert tokenizer.encode(text, allow_special=True) == sum(parts, [])
    assert tokenizer.decode(sum(parts, [])) == text
    assert tokenizer.encode("<end>", allow_special=True) == [end] and tokenizer.encode("", allow_special=True) == []


def test_special_tokens_are_taken_literally_and_a_tokenizer_without_any_takes_none():
    tokenizer = BPETokenizer([], ["a.c", "|"])
    assert tokenizer.encode("abc|", allow_special=True) == [97, 98, 99, 257]
    assert BPETokenizer([]).encode("a|", allow_special=True) == [97, 124]


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
@pytest.mark.parametrize("names", ["<pad>", ["<a>", "<a>"], [""], [3]])
def test_special_tokens_have_to_be_different_strings(kind, names):
    with pytest.raises(ValueError, match="has to be a list of different, non-empty strings"):
        kind.train("some text", 256 + 3, names)
    with pytest.raises(ValueError, match="lone surrogate"):
        kind.train("some text", 256 + 3, ["<\ud800>"])


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_an_empty_text_teaches_nothing(kind):
    with pytest.raises(ValueError, match="the text is empty"):
        kind.train("", 256)


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_ids_outside_the_vocabulary_are_refused(kind):
    tokenizer = trained(kind)
    size = tokenizer.vocab_size
    assert tokenizer.decode([size - 1]) == "<end>s" and tokenizer.decode([]) == ""
    for bad in (size, -1):
        with pytest.raises(ValueError, match=f"id {bad} at index 2 is not in this vocabulary of {size}, 0 to {size - 1}"):
            tokenizer.decode([0, 1, bad, -7])
    with pytest.raises(TypeError):
        tokenizer.decode([1.0])


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_decode_takes_a_tensor(kind):
    tokenizer = trained(kind)
    assert tokenizer.decode(torch.tensor(tokenizer.encode("sea shore"))) == "sea shore"


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
def test_a_saved_tokenizer_comes_back_exactly(kind, tmp_path, random_text):
    tokenizer, path = trained(kind), tmp_path / "año.json"
    tokenizer.save(path)
    assert set(json.loads(path.read_bytes().decode("utf-8"))) >= {"kind", "special_tokens"}
    for copy in (kind.load(path), load_tokenizer(str(path))):
        assert type(copy) is kind and copy.vocabulary == tokenizer.vocabulary and copy.special_tokens == tokenizer.special_tokens
        assert copy.encode(TEXT + UNICODE) == tokenizer.encode(TEXT + UNICODE)
        copy.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.json", "año.json"]


def test_characters_of_all_planes_survive_saving(tmp_path):
    tokenizer = CharTokenizer("".join(chr(c) for c in [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 997)]))
    tokenizer.save(tmp_path / "t.json")
    assert "ñòó" in (tmp_path / "t.json").read_text(encoding="utf-8")   # a person can read it
    assert CharTokenizer.load(tmp_path / "t.json").vocabulary == tokenizer.vocabulary


def test_the_other_kind_s_file_is_refused(tmp_path):
    trained(CharTokenizer).save(tmp_path / "t.json")
    with pytest.raises(ValueError, match="holds a CharTokenizer, not a BPETokenizer; load_tokenizer reads every kind"):
        BPETokenizer.load(tmp_path / "t.json")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    trained(CharTokenizer).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trained(BPETokenizer).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.json"]


BYTES = list(range(256))


@pytest.mark.parametrize("content, complaint", [
    (b"", "is empty"), (b'{"kind": "CharTok', "is not JSON"), (b"\xff\xfe{}", "is not UTF-8"), (b"[" * 100_000, "is not JSON"),
    ([1, 2], "holds a JSON list"), ({}, "says kind 'None'"), ({"kind": "WordPiece"}, "kind 'WordPiece'"), ({"kind": [1]}, "says kind"),
    ({"kind": "CharTokenizer"}, "is not a whole CharTokenizer"),
    ({"kind": "CharTokenizer", "characters": "aba", "special_tokens": []}, "without repeats, not 'aba'"),
    ({"kind": "CharTokenizer", "characters": ["a", "b"], "special_tokens": []}, "without repeats"),
    ({"kind": "CharTokenizer", "characters": "ab\ud800", "special_tokens": []}, "lone surrogate"),
    ({"kind": "CharTokenizer", "characters": "ab", "special_tokens": ["x", "x"]}, "different, non-empty strings"),
    ({"kind": "CharTokenizer", "characters": "ab", "special_tokens": 3}, "is not a whole"),
    ({"kind": "CharTokenizer", "characters": "ab", "special_tokens": [], "merges": []}, "merges"),
    ({"kind": "BPETokenizer", "merges": 7, "special_tokens": []}, "is not a whole BPETokenizer"),
    ({"kind": "BPETokenizer", "merges": [7], "special_tokens": []}, "is not a whole BPETokenizer"),
    ({"kind": "BPETokenizer", "merges": [[97, 98], [257, 3]], "special_tokens": []}, r"merge 1 is \(257, 3\); .* 0 to 256"),
    ({"kind": "BPETokenizer", "merges": [[-1, 3]], "special_tokens": []}, "merge 0"),
    ({"kind": "BPETokenizer", "merges": [[1, 3.0]], "special_tokens": []}, "merge 0"),
    ({"kind": "BPETokenizer", "merges": [[1, 2, 3]], "special_tokens": []}, "merge 0"),
    ({"kind": "BPETokenizer", "merges": [[1, 2], [1, 2]], "special_tokens": []}, "twice among the merges"),
    ({"kind": "BPETokenizer", "merges": [], "special_tokens": [], "byte_order": BYTES[:-1]}, "each of the bytes 0 to 255 once"),
    ({"kind": "BPETokenizer", "merges": [], "special_tokens": [], "byte_order": [1, *BYTES[1:]]}, "each of the bytes 0 to 255 once"),
    ({"kind": "BPETokenizer", "merges": [], "special_tokens": [], "byte_order": ["0", *BYTES[1:]]}, "each of the bytes 0 to 255 once"),
], ids=lambda value: value if isinstance(value, str) else "file")
def test_damaged_and_foreign_files_are_refused_in_one_line(content, complaint, tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=complaint) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 200


def test_a_file_that_is_not_there(tmp_path):
    for load in (CharTokenizer.load, BPETokenizer.load, load_tokenizer, lambda path: BPETokenizer.from_gpt2(path, path)):
        with pytest.raises(FileNotFoundError, match="no file .*nowhere.json"):
            load(tmp_path / "nowhere.json")


# ---- GPT-2

@pytest.fixture(scope="module")
def gpt2_slowly(shared_file, split_slowly):
    """From the published files alone: merge the pair that stands first in vocab.bpe, start over; names become ids at the end."""
    ids = json.loads(shared_file("gpt2/encoder.json").read_text(encoding="utf-8"))
    lines = shared_file("gpt2/vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    rank = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
    plain = [ord(name) for name in ids if len(name) == 1 and ord(name) < 256]
    stand_ins = sorted(name for name in ids if len(name) == 1 and ord(name) >= 256)
    name_of = {byte: chr(byte) for byte in plain} | dict(zip(sorted(set(range(256)) - set(plain)), stand_ins))

    def encode(text):
        out = []
        for word in split_slowly(text):
            parts = [name_of[byte] for byte in word.encode()]
            while len(parts) > 1:
                best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), 10**9))
                if (parts[best], parts[best + 1]) not in rank:
                    break
                parts[best:best + 2] = [parts[best] + parts[best + 1]]
            out += [ids[part] for part in parts]
        return out
    return encode


def test_gpt2_known_ids(gpt2):
    assert gpt2.vocab_size == 50257 and len(gpt2.merges) == 50000 and gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" \n!") == [220, 198, 0]
    assert gpt2.encode("Hello<|endoftext|>", allow_special=True) == [15496, 50256]
    assert 50256 not in gpt2.encode("Hello<|endoftext|>") and gpt2.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"


def test_gpt2_ids_equal_a_slow_reading_of_its_files(gpt2, gpt2_slowly, random_text, shared_file):
    rng = random.Random(4)
    play = shared_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    excerpts = [play[start:start + 3000] for start in (0, 400_000, 1_100_000)]
    for text in [random_text(rng, rng.randrange(60)) for _ in range(500)] + excerpts:
        assert gpt2.encode(text) == gpt2_slowly(text)
        assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2_comes_back_from_our_own_file(gpt2, tmp_path):
    gpt2.save(tmp_path / "gpt2.json")
    copy = BPETokenizer.load(tmp_path / "gpt2.json")
    assert copy.vocabulary == gpt2.vocabulary and copy.merges == gpt2.merges and copy.special_tokens == gpt2.special_tokens
    assert copy.encode(TEXT + UNICODE) == gpt2.encode(TEXT + UNICODE)


def gpt2_files(folder, ids, merges):
    (folder / "encoder.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    return folder / "encoder.json", folder / "vocab.bpe"


def test_files_in_gpt2_s_form_and_those_that_are_not(tmp_path):
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in visible] + [chr(256 + i) for i in range(68)]
    ids = {name: i for i, name in enumerate([*letters, "lo", "Ġlo", "<|endoftext|>"])}
    tokenizer = BPETokenizer.from_gpt2(*gpt2_files(tmp_path, ids, ["l o", "Ġ lo"]))
    assert tokenizer.encode("lo lo\n") == [256, 257, ids["Ċ"]] and tokenizer.byte_order[:2] == [0x21, 0x22]
    assert tokenizer.special_tokens == {"<|endoftext|>": 258}
    tokenizer.save(tmp_path / "ours.json")
    assert load_tokenizer(tmp_path / "ours.json").encode("lo lo\n") == [256, 257, ids["Ċ"]]
    for bad_ids, merges, complaint in [
            (ids, ["l o", "Ġ o"], "merge 1, 'Ġ o', does not lead to id 257"),
            (ids, ["Ġ lo", "l o"], "merge 0, 'Ġ lo', does not lead to id 256"), (ids, ["l o", "Ġlo"], "merge 1, 'Ġlo'"),
            (ids | {"x": 300}, ["l o"], "does not number its 259 entries"),
            (ids | {"x": "y"}, ["l o"], "does not number"), ({"a": 0, "b": 1}, [], "first 256 ids .* are not the single bytes"),
            ({name: i for i, name in enumerate(["<pad>", *ids])}, [], "first 256 ids .* are not the single bytes")]:
        with pytest.raises(ValueError, match=complaint):
            BPETokenizer.from_gpt2(*gpt2_files(tmp_path, bad_ids, merges))
