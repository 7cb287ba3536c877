"""The token file: a text's tokens on the disk, as small whole numbers, read without loading them.

    tokens.bin = 512 bytes of header (JSON, padded with spaces) + a number of 1 to 4 bytes per token

A Python list of N ids takes about 36 N bytes of memory. Here the text is encoded piece by piece,
and the file is then mapped into memory: the operating system reads a part of it when it is used.
Not here: texts larger than the memory. The text itself is read whole, at 1 to 4 bytes a character.
"""
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minigpt.text.tokenizers import Tokenizer

HEADER = 512                            # bytes
PIECE = 2**18                           # characters that are encoded at a time
WORD_END = re.compile(r"(?<=\S)[ \n]")  # no tokenizer's word crosses the place before this space


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of about `size` characters. No word is cut, so no token changes.

    >>> list(pieces("one two three four", size=5))
    ['one two', ' three', ' four']
    """
    start = 0
    while start < len(text):
        found = WORD_END.search(text, start + size)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def checksum_of(text: str) -> tuple[str, int]:
    """The SHA-256 of a text's UTF-8, and its length in bytes."""
    digest, n_bytes = hashlib.sha256(), 0
    for start in range(0, len(text), PIECE):            # a whole copy would double the memory
        part = text[start:start + PIECE].encode("utf-8")
        digest.update(part)
        n_bytes += len(part)
    return digest.hexdigest(), n_bytes


def narrowest(vocab_size: int) -> np.dtype:
    """The smallest type that holds the ids 0 … vocab_size − 1 and that PyTorch can index with."""
    name = "uint8" if vocab_size <= 2**8 else "int16" if vocab_size <= 2**15 else "int32"
    return np.dtype(name).newbyteorder("<")


def encode_pieces(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """The tokens of a text, piece by piece, with a progress bar for a long one."""
    dtype, start = narrowest(tokenizer.vocab_size), 0
    with tqdm(total=len(text), desc="encoding", unit="char", unit_scale=True, leave=False,
              disable=None if len(text) > PIECE else True) as bar:
        for piece in pieces(text, PIECE):
            try:
                ids = tokenizer.encode(piece)
            except ValueError as error:                 # its index counts from the piece's start
                raise ValueError(f"{error} (the index counts from character {start})") from None
            yield np.array(ids, dtype=dtype)
            start += len(piece)
            bar.update(len(piece))


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """The tokens of a text in memory, in the narrowest type: (N,)."""
    return torch.from_numpy(np.concatenate(list(encode_pieces(tokenizer, text))))


def write_tokens(path: Path, tokenizer: Tokenizer, text: str, origin: dict) -> None:
    """Encodes a text into a file, whole or not at all. `origin`: the checksums of its sources."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(b" " * HEADER)
            for ids in encode_pieces(tokenizer, text):
                file.write(ids.tobytes())
            dtype = narrowest(tokenizer.vocab_size)
            count = (file.tell() - HEADER) // dtype.itemsize
            header = json.dumps({**origin, "dtype": dtype.str, "count": count}).encode("ascii")
            file.seek(0)
            file.write(header.ljust(HEADER - 1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def open_tokens(path: Path, tokenizer: Tokenizer, origin: dict) -> Tensor | None:
    """The tokens (N,), mapped from the file; None unless the file is whole and of this origin."""
    dtype = narrowest(tokenizer.vocab_size)
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(HEADER))
        count = header.pop("count")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if (header != {**origin, "dtype": dtype.str} or type(count) is not int or count < 1
            or path.stat().st_size != HEADER + count * dtype.itemsize):
        return None
    # Mode "c": PyTorch wants writable memory; what is written there never reaches the file.
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="c", offset=HEADER, shape=(count,)))
