"""Tokenizers: a text becomes a list of numbers, and the numbers become the text again.

    encode: str -> list[int],    decode: list[int] -> str,    decode(encode(text)) = text

CharTokenizer   one id a character: a small vocabulary, long sequences, and nothing to say about a character it never saw.
BPETokenizer    bytes, and the merges of bytes that its training text repeats most: any Unicode text has ids.

Source: Radford et al. 2019 (GPT-2), §2.2: byte-pair encoding (`byte_pairs.py`) of bytes, inside words (`pretokenize.py`).
Not here: unigram and WordPiece vocabularies, and normalisation (é as one code point or as two stays as it was written).
"""
import operator
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from minigpt.files import read_json, read_text, write_json
from minigpt.text.byte_pairs import Pair, apply_merges, learn_merges, merge
from minigpt.text.pretokenize import byte_characters, split_into_words

CACHED_WORDS, CACHED_LENGTH = 2**16, 64         # bounds on what a BPETokenizer remembers: so many words, each so long


def refuse_lone_surrogates(text: str, start: int = 0) -> None:
    """ValueError for half of a surrogate pair: Python's str can hold one, UTF-8 cannot. `start` is where `text` began."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"U+{ord(text[error.start]):04X} at index {start + error.start} is a lone surrogate, which is no character "
                         "and has no UTF-8; decode the text's source anew, or replace it") from None


def refuse_untrainable(text: str) -> None:
    if not text:
        raise ValueError("the text is empty: there is nothing to learn a vocabulary from; give one with at least a character")
    refuse_lone_surrogates(text)


def number_special_tokens(names: Sequence[str], first_id: int) -> dict[str, int]:
    """Name -> id, from `first_id` on. ValueError for names that could not be told apart."""
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise ValueError(f"special_tokens has to be a list of different, non-empty strings, not {reprlib.repr(names)}")
    for name in names:
        refuse_lone_surrogates(name)
    return {name: first_id + i for i, name in enumerate(names)}


class Tokenizer:
    """What both kinds share. A kind has `vocabulary` (id -> its str or bytes) and `special_tokens` (name -> id)."""

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text. Names of special tokens in it are ordinary text, so that nobody can slip one in by typing
        "<|endoftext|>"; with `allow_special` they become their ids (where two fit, the longer one).

        Raises ValueError for a character that has no ids, and says which and where: for CharTokenizer, one that its training
        text did not have; for BPETokenizer, only half of a surrogate pair, which is no character.
        """
        if not (allow_special and self.special_tokens):
            return self._encode_ordinary(text, 0)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        ids, start = [], 0
        for found in re.finditer("|".join(map(re.escape, longest_first)), text):
            ids.extend(self._encode_ordinary(text[start:found.start()], start))
            ids.append(self.special_tokens[found[0]])
            start = found.end()
        return ids + self._encode_ordinary(text[start:], start)

    def _look_up(self, ids: Iterable[int]) -> list:
        ids = list(map(operator.index, ids))
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            position = next(position for position, i in enumerate(ids) if not 0 <= i < self.vocab_size)
            raise ValueError(f"id {ids[position]} at index {position} is not in this vocabulary of {self.vocab_size}, "
                             f"0 to {self.vocab_size - 1}; was it made with another tokenizer?")
        return [self.vocabulary[i] for i in ids]

    def save(self, path: str | Path) -> None:
        """Writes JSON in UTF-8 that `load` reads back exactly. A failure leaves what stood at `path` as it was."""
        write_json(path, {"kind": type(self).__name__} | self._content())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """What `save` wrote. FileNotFoundError, or ValueError in one line if the file is damaged or holds something else."""
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise ValueError(f"{path} holds a {type(tokenizer).__name__}, not a {cls.__name__}; load_tokenizer reads either")
        return tokenizer


class CharTokenizer(Tokenizer):
    """One id for each distinct character, in the order of their code points; special tokens after them.

    >>> tokenizer = CharTokenizer.train("to be or none", special_tokens=["<pad>"])
    >>> tokenizer.encode("bone"), tokenizer.decode([1, 4, 3, 2]), tokenizer.special_tokens
    ([1, 4, 3, 2], 'bone', {'<pad>': 7})
    """

    def __init__(self, characters: str, special_tokens: Sequence[str] = ()):
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise ValueError(f"a character vocabulary is a str without repeats, not {reprlib.repr(characters)}")
        refuse_lone_surrogates(characters)
        self.special_tokens = number_special_tokens(special_tokens, len(characters))
        self.vocabulary = [*characters, *self.special_tokens]                   # id -> str
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str, vocab_size: int | None = None, special_tokens: Sequence[str] = ()) -> "CharTokenizer":
        """The characters of a text. `vocab_size` is a limit: fewer are fine, more (special tokens included) a ValueError."""
        refuse_untrainable(text)
        tokenizer = cls("".join(sorted(set(text))), special_tokens)
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            raise ValueError(f"{len(tokenizer._ids)} distinct characters and {len(tokenizer.special_tokens)} special tokens are more "
                             f"than vocab_size {vocab_size}; raise it to {tokenizer.vocab_size}, or train a BPETokenizer")
        return tokenizer

    def _encode_ordinary(self, text: str, start: int) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            character = error.args[0]
            raise ValueError(f"character {character!r} (U+{ord(character):04X}) at index {start + text.index(character)} is not among "
                             f"the {len(self._ids)} that this tokenizer was trained on; train it on a text that has it, or use a "
                             "BPETokenizer") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; a special token gives its name. ValueError for an id outside the vocabulary."""
        return "".join(self._look_up(ids))

    def _content(self) -> dict:
        return {"characters": "".join(self._ids), "special_tokens": list(self.special_tokens)}


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding: ids 0 to 255 are bytes, then the merges in the order learnt, then special tokens.

    >>> tokenizer = BPETokenizer.train("low lower lowest, slow slower slowest", vocab_size=258)
    >>> tokenizer.merges, tokenizer.vocabulary[256:]
    ([(108, 111), (256, 119)], [b'lo', b'low'])
    >>> tokenizer.encode("low ñ"), tokenizer.decode([257, 32, 195, 177])
    ([257, 32, 195, 177], 'low ñ')
    """

    def __init__(self, merges: Sequence[Pair], special_tokens: Sequence[str] = (), byte_order: Sequence[int] = tuple(range(256))):
        """`byte_order[i]` is the byte of id i: GPT-2 has its own order, all others 0, 1, 2, …"""
        if not all(isinstance(byte, int) for byte in byte_order) or sorted(byte_order) != list(range(256)):
            raise ValueError("byte_order has to hold each of the bytes 0 to 255 once")
        self.byte_order = list(byte_order)
        self.vocabulary = [bytes([byte]) for byte in byte_order]                # id -> bytes
        self.merges = []
        for pair in map(tuple, merges):
            if len(pair) != 2 or not all(isinstance(i, int) and 0 <= i < len(self.vocabulary) for i in pair):
                raise ValueError(f"merge {len(self.merges)} is {reprlib.repr(pair)}; it has to be two ids that exist by then, "
                                 f"0 to {len(self.vocabulary) - 1}")
            self.merges.append(pair)
            self.vocabulary.append(self.vocabulary[pair[0]] + self.vocabulary[pair[1]])
        self.special_tokens = number_special_tokens(special_tokens, len(self.vocabulary))
        self.vocabulary += [name.encode("utf-8") for name in self.special_tokens]
        self._merged = {pair: 256 + rank for rank, pair in enumerate(self.merges)}
        if len(self._merged) != len(self.merges):
            raise ValueError("a pair stands twice among the merges")
        self._byte_ids = {byte: i for i, byte in enumerate(byte_order)}
        self._cache = {}                                                        # word -> ids: most of a text is words seen before

    @classmethod
    def train(cls, text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> "BPETokenizer":
        """Learns vocab_size - 256 - len(special_tokens) merges, so that the vocabulary has exactly `vocab_size` entries.

        Raises ValueError if vocab_size leaves no room for the bytes, or if the text runs out of pairs before (every word
        of it is one token by then): the message says how large a vocabulary the text can fill.
        """
        refuse_untrainable(text)
        smallest = 256 + len(number_special_tokens(special_tokens, 0))
        if vocab_size < smallest:
            raise ValueError(f"vocab_size {vocab_size} is less than 256 bytes and {smallest - 256} special tokens; "
                             f"take at least {smallest}")
        merges = learn_merges(Counter(split_into_words(text)), vocab_size - smallest)
        if smallest + len(merges) < vocab_size:
            raise ValueError(f"vocab_size {vocab_size} is more than this text can fill: after {len(merges)} merges each of its "
                             f"words is one token; ask for at most {smallest + len(merges)}, or give a longer text")
        return cls(merges, special_tokens)

    @classmethod
    def from_gpt2(cls, encoder_json: str | Path, vocab_bpe: str | Path) -> "BPETokenizer":
        """GPT-2's tokenizer, id for id, from its two published files: a name for each id, and the merges.

        Names are written in `byte_characters`. GPT-2 numbers single bytes in an order of its own: "!" is 0, a space 220.
        """
        ids = read_json(encoder_json)
        if not all(isinstance(i, int) for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"{encoder_json} does not number its {len(ids)} entries 0, 1, 2, …; it is not GPT-2's encoder.json")
        names = sorted(ids, key=ids.get)
        merges = []
        for line in read_text(vocab_bpe).split("\n"):
            if line and not line.startswith("#version"):
                left, _, right = line.partition(" ")
                merges.append((ids.get(left), ids.get(right)))
                if None in merges[-1] or ids.get(left + right) != 255 + len(merges):
                    raise ValueError(f"{vocab_bpe}: merge {len(merges) - 1}, {reprlib.repr(line)}, does not lead to id "
                                     f"{255 + len(merges)} of {encoder_json}; the two files have to be GPT-2's, of the same model")
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        if len(names) < 256 + len(merges) or not all(name in byte_of for name in names[:256]):
            raise ValueError(f"the first 256 ids of {encoder_json} are not the single bytes; it is not GPT-2's encoder.json")
        return cls(merges, names[256 + len(merges):], [byte_of[name] for name in names[:256]])

    def _encode_ordinary(self, text: str, start: int) -> list[int]:
        refuse_lone_surrogates(text, start)
        ids = []
        for word in split_into_words(text):
            known = self._cache.get(word)
            ids.extend(self._encode_word(word) if known is None else known)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids = apply_merges([self._byte_ids[byte] for byte in word.encode("utf-8")], self._merged)
        if len(word) <= CACHED_LENGTH:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; a special token gives its name. ValueError for an id outside the vocabulary.

        A token may end in the middle of a character. Bytes that are no UTF-8 become "�", so decode all ids at once:

        >>> BPETokenizer([]).decode([195, 177]), BPETokenizer([]).decode([195])
        ('ñ', '�')
        """
        return b"".join(self._look_up(ids)).decode("utf-8", errors="replace")

    def encode_and_show_work(self, text: str) -> dict:
        """Every stage of `encode(text)`, bytes written as `byte_characters`: a space is Ġ.

        "words" has one entry a word: the word, its bytes, its merges (each with its rank, the pair, and the word after it), and
        its ids. Here merges are found pair by pair, with `merge`, which is the definition that `encode` makes fast.

        >>> work = BPETokenizer.train("low lower lowest", 258).encode_and_show_work("a low")
        >>> work["ids"], work["words"][0]
        ([97, 32, 257], {'word': 'a', 'bytes': ['a'], 'merges': [], 'ids': [97]})
        >>> for step in work["words"][1]["merges"]:
        ...     print(step)
        {'rank': 0, 'pair': ('l', 'o'), 'result': ['Ġ', 'lo', 'w']}
        {'rank': 1, 'pair': ('lo', 'w'), 'result': ['Ġ', 'low']}
        """
        refuse_lone_surrogates(text)
        words = []
        for word in split_into_words(text):
            ids, steps = [self._byte_ids[byte] for byte in word.encode("utf-8")], []
            as_bytes = self._printable(ids)
            while candidates := [pair for pair in zip(ids, ids[1:]) if pair in self._merged]:
                pair = min(candidates, key=self._merged.get)
                ids = merge(ids, pair, self._merged[pair])
                steps.append({"rank": self._merged[pair] - 256, "pair": tuple(self._printable(pair)), "result": self._printable(ids)})
            words.append({"word": word, "bytes": as_bytes, "merges": steps, "ids": ids})
        return {"text": text, "words": words, "ids": [i for word in words for i in word["ids"]]}

    def _printable(self, ids: Iterable[int]) -> list[str]:
        return ["".join(byte_characters()[byte] for byte in self.vocabulary[i]) for i in ids]

    def _content(self) -> dict:
        return {"byte_order": self.byte_order, "merges": self.merges, "special_tokens": list(self.special_tokens)}


def load_tokenizer(path: str | Path) -> CharTokenizer | BPETokenizer:
    """The tokenizer that a file holds, of whichever kind. FileNotFoundError, or ValueError if it holds none."""
    content = read_json(path)
    kinds = {"CharTokenizer": CharTokenizer, "BPETokenizer": BPETokenizer}
    kind = str(content.pop("kind", None))
    if kind not in kinds:
        raise ValueError(f"{path} says kind {reprlib.repr(kind)}, where a tokenizer's file says one of {', '.join(kinds)}")
    try:
        return kinds[kind](**content)
    except (TypeError, ValueError) as error:                                    # TypeError: an entry missing, or of a wrong type
        raise ValueError(f"{path} is not a whole {kind} ({error}); save it again") from None
