"""The token file: the same tokens as encoding at once, and no file of another origin is used."""
import hashlib
import json
import random
import re

import numpy as np
import pytest
import torch

from minigpt.text import token_file
from minigpt.text.token_file import (
    HEADER,
    checksum_of,
    encode,
    encode_pieces,
    narrowest,
    open_tokens,
    pieces,
    write_tokens,
)
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer

PARTS = ["word", " ", "  ", "\n", "\n\n", "\t", "'s", "don't", "12", "ñandú", "日本語", "🙂", "!?",
         "\u00a0", "\u2003", "\r", "x" * 30]
ORIGIN = {"text_sha256": "a" * 64, "tokenizer_sha256": "b" * 64}


def random_text(seed):
    chance = random.Random(seed)
    return "".join(chance.choice(PARTS) for _ in range(chance.randrange(1, 300)))


@pytest.mark.parametrize("size", [1, 3, 10, 50, 10**6])
def test_pieces_give_the_same_tokens_as_the_whole_text(monkeypatch, size):
    monkeypatch.setattr(token_file, "PIECE", size)
    cut = 0
    for seed in range(40):
        text = random_text(seed)
        found = list(pieces(text, size))
        assert "".join(found) == text and all(found)
        cut += len(found) > 1
        tokenizers = [CharTokenizer.train(text), BPETokenizer.train(random_text(99) * 9, 300)]
        for tokenizer in tokenizers:
            assert encode(tokenizer, text).tolist() == tokenizer.encode(text)
    assert cut > 20 or size == 10**6                    # or nothing was shown


@pytest.mark.parametrize("vocab_size, name", [
    (1, "uint8"), (256, "uint8"), (257, "int16"), (2**15, "int16"), (2**15 + 1, "int32"),
    (50_257, "int32"), (2**31, "int32"),
])
def test_narrowest(vocab_size, name):
    dtype = narrowest(vocab_size)
    assert dtype == np.dtype(name)
    assert np.array([vocab_size - 1]).astype(dtype)[0] == vocab_size - 1        # the largest id


def test_the_checksum_is_that_of_the_bytes():
    text = "日本語 and 🙂 " * 99
    raw = text.encode("utf-8")
    assert checksum_of(text) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert checksum_of("") == (hashlib.sha256().hexdigest(), 0)


TEXT = "to be or not to be, that is the question\n" * 50


@pytest.fixture
def tokenizer():
    return CharTokenizer.train(TEXT)


def test_what_is_written_is_read_back(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(token_file, "PIECE", 100)
    path = tmp_path / "tokens.bin"
    write_tokens(path, tokenizer, TEXT, ORIGIN)
    tokens = open_tokens(path, tokenizer, ORIGIN)
    assert tokens.tolist() == tokenizer.encode(TEXT) and tokens.dtype == torch.uint8
    assert path.stat().st_size == HEADER + len(TEXT) and [path] == list(tmp_path.iterdir())
    header = json.loads(path.read_bytes()[:HEADER])
    assert header == ORIGIN | {"dtype": "|u1", "count": len(TEXT)}
    tokens[:] = 0                                       # a private copy: the file is not changed
    assert open_tokens(path, tokenizer, ORIGIN).tolist() == tokenizer.encode(TEXT)


def test_a_file_that_is_not_whole_or_of_another_origin_is_not_used(tmp_path, tokenizer):
    path = tmp_path / "tokens.bin"
    assert open_tokens(path, tokenizer, ORIGIN) is None
    write_tokens(path, tokenizer, TEXT, ORIGIN)
    good = path.read_bytes()
    assert open_tokens(path, tokenizer, ORIGIN) is not None
    assert open_tokens(path, tokenizer, ORIGIN | {"text_sha256": "c"}) is None
    assert open_tokens(path, tokenizer, ORIGIN | {"tokenizer_sha256": "c"}) is None
    assert open_tokens(path, BPETokenizer([(1, 2)]), ORIGIN) is None    # it needs a wider type
    head = json.loads(good[:HEADER])
    for bad in (b"", good[:100], good[:-1], good + b"x", b"[1]".ljust(HEADER), b"\xff" * 600,
                json.dumps(head | {"count": "9"}).encode().ljust(HEADER) + good[HEADER:],
                json.dumps(head | {"count": -1}).encode().ljust(HEADER) + good[HEADER:]):
        path.write_bytes(bad)
        assert open_tokens(path, tokenizer, ORIGIN) is None, bad[:50]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path, tokenizer):
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="'Ж'"):
        write_tokens(path, tokenizer, TEXT + "Ж", ORIGIN)
    assert path.read_bytes() == b"old" and [path] == list(tmp_path.iterdir())


def test_an_unknown_character_is_found_in_any_piece(tokenizer, monkeypatch):
    monkeypatch.setattr(token_file, "PIECE", 100)
    text = TEXT + "Ж"
    with pytest.raises(ValueError, match="'Ж'") as refusal:
        list(encode_pieces(tokenizer, text))
    index, start = (int(number) for number in
                    re.findall(r"(?:index|character) (\d+)", str(refusal.value)))
    assert index + start == text.index("Ж")
