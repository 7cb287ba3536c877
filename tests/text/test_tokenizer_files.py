"""Tokenizers in files: saved and loaded, damaged in many ways, and GPT-2's own tokenizer."""
import copy
import json
import os
import random

import pytest

from minigpt.text.pretokenize import byte_characters
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer, load_tokenizer

TEXT = "she sells sea shells by the sea shore; the shells she sells are sea-shells, I'm sure."
UNICODE = " ¿Qué día es? Perché no, là; 中文 👩‍👩‍👧 e\u0301 \0\n\r\n\x85"
KINDS = [CharTokenizer, WordTokenizer, BPETokenizer]
by_kind = pytest.mark.parametrize("kind", KINDS)


def trained(kind):
    """A tokenizer of this kind with two special tokens."""
    if kind is WordTokenizer:
        return kind.train(TEXT + UNICODE, ["<end>", "<pad>"], keep_spaces=True)
    size = {"vocab_size": 270} if kind is BPETokenizer else {}
    return kind.train(TEXT + UNICODE, special_tokens=["<end>", "<pad>"], **size)


# ---- saved and loaded

@by_kind
def test_a_saved_tokenizer_comes_back_exactly(kind, tmp_path):
    tokenizer, path = trained(kind), tmp_path / "año.json"
    tokenizer.save(path)
    assert set(json.loads(path.read_bytes().decode("utf-8"))) >= {"kind", "special_tokens"}
    for loaded in (load_tokenizer(path), load_tokenizer(str(path))):
        assert type(loaded) is kind and loaded.vocabulary == tokenizer.vocabulary
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.encode(TEXT + UNICODE) == tokenizer.encode(TEXT + UNICODE)
        loaded.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.json", "año.json"]


def test_a_saved_word_tokenizer_keeps_the_places_of_its_special_tokens(tmp_path):
    for keep_spaces in (False, True):
        tokenizer = WordTokenizer(["<X>", "b", "a", "<pad>"], ["<pad>", "<X>"], keep_spaces)
        tokenizer.save(tmp_path / "t.json")
        loaded = load_tokenizer(tmp_path / "t.json")
        assert loaded.vocabulary == ["<X>", "b", "a", "<pad>"]
        assert list(loaded.special_tokens.items()) == [("<pad>", 3), ("<X>", 0)]
        assert loaded.keep_spaces is keep_spaces
        assert loaded.decode([1, 2]) == ("ba" if keep_spaces else "b a")


def test_characters_of_all_planes_can_be_saved(tmp_path):
    planes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 997)]
    tokenizer = CharTokenizer("".join(map(chr, planes)))
    tokenizer.save(tmp_path / "t.json")
    assert "ñòó" in (tmp_path / "t.json").read_text(encoding="utf-8")       # not escaped
    assert load_tokenizer(tmp_path / "t.json").vocabulary == tokenizer.vocabulary


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


# ---- damaged and foreign

BYTES = list(range(256))


def chars(characters="ab", special_tokens=(), **more):
    return {"kind": "CharTokenizer", "characters": characters,
            "special_tokens": special_tokens} | more


def words(vocabulary=("a", "b"), special_tokens=(), keep_spaces=False):
    return {"kind": "WordTokenizer", "vocabulary": vocabulary, "special_tokens": special_tokens,
            "keep_spaces": keep_spaces}


def pairs(merges=(), special_tokens=(), byte_order=BYTES):
    return {"kind": "BPETokenizer", "merges": merges, "special_tokens": special_tokens,
            "byte_order": byte_order}


def load_content(content, path):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return load_tokenizer(path)


@pytest.mark.parametrize("content", [
    chars(), chars(""), words(), words([]), pairs(), pairs([[0, 255], [256, 256]]),
    pairs(byte_order=BYTES[::-1]), words(["a", "b"], ["a", "b"]),
])
def test_the_smallest_whole_files(content, tmp_path):
    assert type(load_content(content, tmp_path / "t.json")).__name__ == content["kind"]


@pytest.mark.parametrize("content, complaint", [
    (b"", "is empty"), (b'{"kind": "CharTok', "is not JSON"), (b"\xff\xfe{}", "is not UTF-8"),
    (b"[" * 100_000, "is not JSON"), ([1, 2], "holds a JSON list"), ({}, "says kind 'None'"),
    ({"kind": "WordPiece"}, "kind 'WordPiece'"), ({"kind": [1]}, "says kind"),
    ({"kind": "Tokenizer"}, "says kind"),
    ({"kind": "CharTokenizer"}, "is not a whole CharTokenizer"),
    (chars("aba"), "characters must be a list of different"), (chars(3), "whole CharTokenizer"),
    (chars("ab\ud800"), "surrogates"), (chars("ab", ["x", "x"]), "different, non-empty"),
    (chars("ab", 3), "is not a whole CharTokenizer"), (chars(merges=[]), "merges"),
    (chars("ab", "x"), "different, non-empty strings"), (chars("ab", None), "whole CharTokenizer"),
    (chars(**{"a\nb": 1}), "is not a whole CharTokenizer"), (chars(**{"x" * 9999: 1}), "whole"),
    ({"kind": "WordTokenizer", "vocabulary": ["a"], "merges": []}, "whole WordTokenizer"),
    (words("ab"), "vocabulary must be a list"), (words(["a", "a"]), "different, non-empty"),
    (words(["a b"]), "not one word"), (words(3), "is not a whole WordTokenizer"),
    (words(special_tokens=["c"]), "the vocabulary lacks the special token 'c'"),
    (pairs(7), "is not a whole BPETokenizer"), (pairs([7]), "is not a whole BPETokenizer"),
    (pairs("ab"), "whole"), (pairs([[1, 2, 3]]), "whole"), (pairs([[]]), "whole"),
    (pairs([[97, 98], [257, 3]]), r"merge 1 is \(257, 3\); .* 0 to 256"),
    (pairs([[-1, 3]]), "merge 0"), (pairs([[1, 256]]), "merge 0"), (pairs([[1, 3.0]]), "whole"),
    (pairs([[1, 2], [1, 2]]), "merge 1 is .* a new pair"),
    (pairs(byte_order=BYTES[:-1]), "each of the bytes 0 to 255 once"),
    (pairs(byte_order=[1, *BYTES[1:]]), "each of the bytes 0 to 255 once"),
    (pairs(byte_order=["0", *BYTES[1:]]), "whole"), (pairs(byte_order=None), "whole"),
], ids=lambda value: value[:30] if isinstance(value, str) else "file")
def test_damaged_and_foreign_files_are_refused_in_one_line(content, complaint, tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(ValueError, match=complaint) as caught:
        load_content(content, path)
    check_message(caught.value, path)


def check_message(error, path):
    """One line of a readable length that names the file."""
    message = str(error)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 400


JUNK = [None, True, False, 0, -1, 3, 10**12, 1.5, float("nan"), float("inf"), "", "a", "ab", "é\n",
        "\ud800", [], [0], ["a"], ["a", "a"], [[]], [[1, 2]], {}, {"a": 1}, [None], "x" * 5000]


def places(value, place=()):
    """The place of each value inside nested lists and dicts; of long lists only the first ten."""
    yield place
    inside = list(value.items()) if isinstance(value, dict) else []
    inside += enumerate(value[:10]) if isinstance(value, list) else []
    for key, part in inside:
        yield from places(part, (*place, key))


def mutated(content, rng):
    """One value replaced, removed or doubled, or an entry added, anywhere in the content."""
    content = copy.deepcopy(content)
    *way, last = rng.choice([place for place in places(content) if place])
    holder = content
    for key in way:
        holder = holder[key]
    change = rng.choice(["replace", "replace", "remove", "add", "double"])
    if change == "replace":
        holder[last] = copy.deepcopy(rng.choice(JUNK))
    elif change == "remove":
        del holder[last]
    elif isinstance(holder, dict):
        holder[rng.choice(["extra", "", "a\nb", "self", "\ud800"])] = rng.choice(JUNK)
    else:
        holder.insert(rng.randrange(len(holder) + 1), holder[last])
    return content


def load_or_refuse(path):
    """A file loads as a tokenizer that works and can be saved, or ValueError says why in a line."""
    try:
        tokenizer = load_tokenizer(path)
    except ValueError as error:
        check_message(error, path)
        return None
    ids = list(range(tokenizer.vocab_size))
    assert isinstance(tokenizer.decode(ids), str)
    tokenizer.save(path)
    assert load_tokenizer(path).vocabulary == tokenizer.vocabulary
    return tokenizer


@by_kind
def test_mutated_values_are_refused_in_one_line_or_load_whole(kind, tmp_path):
    rng, path = random.Random(8), tmp_path / "t.json"
    trained(kind).save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    loaded = 0
    for _ in range(300):
        changed = content
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            changed = mutated(changed, rng) if changed else changed
        path.write_text(json.dumps(changed), encoding="utf-8")
        loaded += load_or_refuse(path) is not None
    assert loaded < 200                                    # most are refused


@by_kind
def test_mutated_bytes_are_refused_in_one_line_or_load_whole(kind, tmp_path):
    rng, path = random.Random(9), tmp_path / "t.json"
    trained(kind).save(path)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([0, 1, 1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = len(data) if rng.random() < 0.7 else rng.randrange(len(data))
        path.write_bytes(bytes(data[:cut]))
        load_or_refuse(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere.json"):
        load_tokenizer(tmp_path / "nowhere.json")


# ---- GPT-2

@pytest.fixture(scope="module")
def gpt2(shared_file):
    """GPT-2's tokenizer from its two published files: the ids of names, and the merges in order."""
    files = shared_file("gpt2/encoder.json"), shared_file("gpt2/vocab.bpe")
    tokenizer = BPETokenizer.from_gpt2(*files)
    ids = json.loads(files[0].read_text(encoding="utf-8"))
    written = ["".join(byte_characters()[b] for b in token) for token in tokenizer.vocabulary]
    assert {name: i for i, name in enumerate(written)} == ids
    return tokenizer


@pytest.fixture(scope="module")
def gpt2_slowly(shared_file, split_slowly):
    """From the published files alone: merge the pair that is first in vocab.bpe, and start again.

    Names become ids at the end.
    """
    ids = json.loads(shared_file("gpt2/encoder.json").read_text(encoding="utf-8"))
    lines = shared_file("gpt2/vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    rank = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
    plain = [ord(name) for name in ids if len(name) == 1 and ord(name) < 256]
    stand_ins = sorted(name for name in ids if len(name) == 1 and ord(name) >= 256)
    name_of = {byte: chr(byte) for byte in plain}
    name_of |= dict(zip(sorted(set(range(256)) - set(plain)), stand_ins))

    def encode(text):
        out = []
        for word in split_slowly(text):
            parts = [name_of[byte] for byte in word.encode()]
            while len(parts) > 1:
                ranks = [rank.get(pair, 10**9) for pair in zip(parts, parts[1:])]
                best = ranks.index(min(ranks))
                if ranks[best] == 10**9:
                    break
                parts[best:best + 2] = [parts[best] + parts[best + 1]]
            out += [ids[part] for part in parts]
        return out
    return encode


def test_gpt2_known_ids(gpt2):
    assert gpt2.vocab_size == 50257 and len(gpt2.merges) == 50000
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" \n!") == [220, 198, 0]
    assert 50256 not in gpt2.encode("Hello<|endoftext|>")
    assert gpt2.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"


def test_gpt2_ids_equal_a_slow_reading_of_its_files(gpt2, gpt2_slowly, random_text, shared_file):
    rng = random.Random(4)
    play = shared_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    excerpts = [play[start:start + 3000] for start in (0, 400_000, 1_100_000)]
    for text in [random_text(rng, rng.randrange(60)) for _ in range(500)] + excerpts:
        ids = gpt2.encode(text)
        assert ids == gpt2_slowly(text)
        assert gpt2.decode(ids) == "".join(gpt2.decode_stream(iter(ids))) == text


def test_gpt2_comes_back_from_our_own_file(gpt2, tmp_path):
    gpt2.save(tmp_path / "gpt2.json")
    loaded = load_tokenizer(tmp_path / "gpt2.json")
    assert loaded.vocabulary == gpt2.vocabulary and loaded.merges == gpt2.merges
    assert loaded.special_tokens == gpt2.special_tokens
    assert loaded.encode(TEXT + UNICODE) == gpt2.encode(TEXT + UNICODE)


def small_gpt2(folder, ids, lines):
    paths = folder / "encoder.json", folder / "vocab.bpe"
    paths[0].write_text(json.dumps(ids), encoding="utf-8")
    paths[1].write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return paths


def test_files_of_gpt2s_form_are_read_and_others_are_refused(tmp_path):
    names = [*sorted(byte_characters()), "lo", "Ġlo", "<|endoftext|>"]
    ids, lines = {name: i for i, name in enumerate(names)}, ["l o", "Ġ lo"]
    tokenizer = BPETokenizer.from_gpt2(*small_gpt2(tmp_path, ids, lines))
    assert tokenizer.encode("o lo") == [ids["o"], ids["Ġlo"]]
    assert tokenizer.special_tokens == {"<|endoftext|>": 258}
    wrong = [(ids, ["l o", "Ġ x lo"]), (ids, ["l o", "Ġ no"]), (ids, ["Ġ lo", "l o"]),
             (ids, ["l o", "l o"]), (ids | {"lo": 257, "Ġlo": 256}, lines),
             (ids | {"lo": "256"}, lines), ({"a": 0, "b": 1}, []), (ids, ["l o", "o l"]),
             ({name: i for name, i in ids.items() if name != "a"}, lines)]
    for ids, lines in wrong:
        with pytest.raises(ValueError, match="GPT-2's tokenizer|same model") as error:
            BPETokenizer.from_gpt2(*small_gpt2(tmp_path, ids, lines))
        assert "\n" not in str(error.value)


def test_load_refuses_another_kind(tmp_path):
    CharTokenizer.train("abc").save(tmp_path / "t.json")
    assert CharTokenizer.load(tmp_path / "t.json").encode("cab") == [2, 0, 1]
    with pytest.raises(ValueError, match="holds a CharTokenizer, not a BPETokenizer"):
        BPETokenizer.load(tmp_path / "t.json")
