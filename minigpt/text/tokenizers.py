"""Tokenizers: turn a text into a list of numbers, and the numbers back into the text.

    encode: str -> list[int],    decode: list[int] -> str,    decode(encode(text)) = text

CharTokenizer   one id per character: a small vocabulary and long sequences.
WordTokenizer   one id per word: short sequences, for worlds whose words are few and known.
BPETokenizer    one id per byte and one per frequent sequence of bytes: any Unicode text has ids.

The first two refuse a character or a word that their training text did not have. The name of a
special token in a text is ordinary text; a program adds the token by its id.

Source: byte-pair encoding of bytes, inside words: Radford et al. 2019 (GPT-2), §2.2.
Not here: unigram and WordPiece vocabularies, a token for unknown words, and Unicode normalisation
(é as one code point and é as two stay different texts).
"""
import codecs
import functools
import itertools
import operator
import re
import reprlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from minigpt.files import read_json, read_text, write_json
from minigpt.text.byte_pairs import Pair, apply_merges, learn_merges, merge_steps
from minigpt.text.pretokenize import byte_characters, split_into_words

CACHED_WORDS = 2**16                            # a BPETokenizer keeps the ids of so many words
WORD_OR_MARK = r" ?(?:\w+|[^\w ])| "            # with the space before it; or a space alone


def number_names(names: Sequence[str], what: str, first_id: int = 0) -> dict[str, int]:
    """Name -> id, from `first_id` on. ValueError unless the names are different, non-empty str."""
    if (isinstance(names, str) or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) != len(names)):
        raise ValueError(f"{what} must be a list of different, non-empty strings, "
                         f"not {reprlib.repr(names)}")
    "".join(names).encode("utf-8")              # ValueError for half of a surrogate pair
    return {name: i for i, name in enumerate(names, first_id)}


def check_trainable(text: str) -> None:
    """ValueError for an empty text, and for one that has no UTF-8: half of a surrogate pair."""
    if not text:
        raise ValueError("the text is empty; a vocabulary needs a text with at least a word")
    text.encode("utf-8")


class Tokenizer:
    """Its kinds have `vocabulary` (id -> str or bytes), `special_tokens` (name -> id), `encode`."""

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; ValueError for an id outside the vocabulary."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one by one, in pieces; joined, they are `decode` of all ids.

        A BPE token can end inside a character; then the whole character is in a later piece.

        >>> list(BPETokenizer([]).decode_stream([195, 177, 111]))
        ['ñ', 'o']
        """
        yield from self._look_up(ids)

    def _look_up(self, ids: Iterable[int]) -> Iterator:
        size = self.vocab_size
        for position, i in enumerate(map(operator.index, ids)):
            if not 0 <= i < size:
                raise ValueError(f"id {i} at index {position} is not in this vocabulary of {size}, "
                                 f"0 to {size - 1}; was it made with another tokenizer?")
            yield self.vocabulary[i]

    def save(self, path: str | Path) -> None:
        """Writes JSON, whole or not at all, which `load_tokenizer` reads back exactly."""
        write_json(path, {"kind": type(self).__name__} | self._content())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer that `save` wrote; ValueError if it is of another kind."""
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise ValueError(f"{path} holds a {type(tokenizer).__name__}, not a {cls.__name__}")
        return tokenizer


class CharTokenizer(Tokenizer):
    """One id for each distinct character, in the order of their code points; then special tokens.

    >>> tokenizer = CharTokenizer.train("to be or none", special_tokens=["<pad>"])
    >>> tokenizer.encode("bone"), tokenizer.decode([1, 4, 3, 2]), tokenizer.special_tokens
    ([1, 4, 3, 2], 'bone', {'<pad>': 7})
    """

    def __init__(self, characters: str, special_tokens: Sequence[str] = ()):
        self._ids = number_names(list(characters), "characters")
        self.special_tokens = number_names(special_tokens, "special_tokens", len(self._ids))
        self.vocabulary = [*self._ids, *self.special_tokens]                    # id -> str

    @classmethod
    def train(cls, text: str, special_tokens: Sequence[str] = ()) -> "CharTokenizer":
        check_trainable(text)
        return cls("".join(sorted(set(text))), special_tokens)

    def encode(self, text: str) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            character, = error.args
            raise ValueError(
                f"character {character!r} at index {text.index(character)} is not among the "
                f"{len(self._ids)} that this tokenizer was trained on; train it on a text that has "
                "it, or use a BPETokenizer") from None

    def _content(self) -> dict:
        return {"characters": "".join(self._ids), "special_tokens": list(self.special_tokens)}


class WordTokenizer(Tokenizer):
    """One id for each distinct word; special tokens first, then the words in alphabetical order.

    A text is the list of its words, or a str, which is split at its spaces:

    >>> tokenizer = WordTokenizer.train("the cat saw the dog .", special_tokens=["<pad>"])
    >>> tokenizer.vocabulary, tokenizer.encode("the dog saw"), tokenizer.decode([5, 3])
    (['<pad>', '.', 'cat', 'dog', 'saw', 'the'], [5, 3, 4], 'the dog')

    With `keep_spaces` it is split into words and marks, each with the space before it:

    >>> WordTokenizer.train("Ann's cat ran, ran.", keep_spaces=True).vocabulary
    [' cat', ' ran', "'", ',', '.', 'Ann', 's']
    """

    def __init__(self, vocabulary: Sequence[str], special_tokens: Sequence[str] = (),
                 keep_spaces: bool = False):
        """`vocabulary` has all tokens in the order of their ids, `special_tokens` some of them."""
        ids = number_names(vocabulary, "vocabulary")
        number_names(special_tokens, "special_tokens")
        if missing := [name for name in special_tokens if name not in ids]:
            raise ValueError(f"the vocabulary lacks the special token {reprlib.repr(missing[0])}")
        self.vocabulary, self.keep_spaces = list(ids), keep_spaces              # id -> str
        self.special_tokens = {name: ids.pop(name) for name in special_tokens}
        self._ids = ids                         # of words only
        if unreachable := [word for word in ids if self._split(word) != [word]]:
            raise ValueError(f"{reprlib.repr(unreachable[0])} is not one word: a text would be "
                             f"split inside it into {reprlib.repr(self._split(unreachable[0]))}")

    @classmethod
    def train(cls, text: str | Sequence[str], special_tokens: Sequence[str] = (),
              keep_spaces: bool = False) -> "WordTokenizer":
        words = cls([], keep_spaces=keep_spaces)._split(text) if isinstance(text, str) else text
        words = sorted(set(words))
        check_trainable("".join(words))
        return cls([*special_tokens, *words], special_tokens, keep_spaces)

    def encode(self, text: str | Sequence[str]) -> list[int]:
        words = self._split(text) if isinstance(text, str) else text
        try:
            return [self._ids[word] for word in words]
        except KeyError as error:
            word, = error.args
            raise ValueError(f"{word!r}, word {list(words).index(word)} of the text, is not among "
                             f"the {len(self._ids)} words of this tokenizer; train it on a text "
                             "that has the word, and add special tokens by their ids") from None

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        for position, word in enumerate(self._look_up(ids)):
            yield word if self.keep_spaces or position == 0 else " " + word

    def _split(self, text: str) -> list[str]:
        if self.keep_spaces:
            return re.findall(WORD_OR_MARK, text)
        return text.split(" ") if text else []

    def _content(self) -> dict:
        return {"vocabulary": self.vocabulary, "special_tokens": list(self.special_tokens),
                "keep_spaces": self.keep_spaces}


class BPETokenizer(Tokenizer):
    """Byte-pair encoding. Ids are the 256 bytes, then the merges as learned, then special tokens.

    >>> tokenizer = BPETokenizer.train("low lower lowest, slow slower slowest", vocab_size=258)
    >>> tokenizer.merges, tokenizer.vocabulary[256:]
    ([(108, 111), (256, 119)], [b'lo', b'low'])
    >>> tokenizer.encode("low ñ"), tokenizer.decode([257, 32, 195, 177])
    ([257, 32, 195, 177], 'low ñ')
    >>> tokenizer.decode([257, 195])            # "�" for bytes that are no UTF-8
    'low�'
    """

    def __init__(self, merges: Sequence[Pair], special_tokens: Sequence[str] = (),
                 byte_order: Sequence[int] = tuple(range(256))):
        """`byte_order[i]` is the byte of id i; GPT-2's own vocabulary has another order."""
        if sorted(byte_order) != list(range(256)):
            raise ValueError("byte_order has to hold each of the bytes 0 to 255 once")
        self.byte_order = list(byte_order)
        self.vocabulary = [bytes([byte]) for byte in byte_order]                # id -> bytes
        self._merged = {}                                                       # pair -> id
        for left, right in merges:
            new = len(self.vocabulary)
            if min(left, right) < 0 or max(left, right) >= new or (left, right) in self._merged:
                raise ValueError(f"merge {new - 256} is {(left, right)}; it must be a new pair of "
                                 f"ids that exist by then, 0 to {new - 1}")
            self._merged[left, right] = new
            self.vocabulary.append(self.vocabulary[left] + self.vocabulary[right])
        self.merges = list(self._merged)
        self.special_tokens = number_names(special_tokens, "special_tokens", len(self.vocabulary))
        self.vocabulary += [name.encode("utf-8") for name in self.special_tokens]
        self._byte_ids = {byte: i for i, byte in enumerate(byte_order)}
        self._ids_of_word = functools.lru_cache(CACHED_WORDS)(self._encode_word)

    @classmethod
    def train(cls, text: str, vocab_size: int,
              special_tokens: Sequence[str] = ()) -> "BPETokenizer":
        """Learns vocab_size − 256 − len(special_tokens) merges, if the text has so many."""
        check_trainable(text)
        smallest = 256 + len(number_names(special_tokens, "special_tokens"))
        merges = learn_merges(Counter(split_into_words(text)), vocab_size - smallest)
        if vocab_size != smallest + len(merges):
            raise ValueError(
                f"vocab_size {vocab_size} does not fit this text; the nearest that fits is "
                f"{smallest + len(merges)}: 256 bytes, {smallest - 256} special tokens and "
                f"{len(merges)} merges")
        return cls(merges, special_tokens)

    @classmethod
    def from_gpt2(cls, encoder_json: str | Path, vocab_bpe: str | Path) -> "BPETokenizer":
        """GPT-2's tokenizer, id for id, from its two published files: names of ids, and merges.

        Names are written in `byte_characters`. The id of a single byte is not its value: "!" is 0.
        """
        ids, lines = read_json(encoder_json), read_text(vocab_bpe).split("\n")
        try:
            names = sorted(ids, key=ids.get)
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            merges = [(ids[left], ids[right]) for left, right in pairs]
            byte_order = [byte_characters().index(name) for name in names[:256]]
            tokenizer = cls(merges, names[256 + len(merges):], byte_order)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{encoder_json} and {vocab_bpe} are not the two files of GPT-2's "
                             f"tokenizer ({textwrap.shorten(str(error), 200)})") from None
        written = ["".join(tokenizer._printable([i])) for i in range(256 + len(merges))]
        if [ids.get(name) for name in written] != list(range(len(written))):
            raise ValueError(f"the merges of {vocab_bpe} do not lead to the ids of {encoder_json}; "
                             "the two files must be of the same model")
        return tokenizer

    def encode(self, text: str) -> list[int]:
        text.encode("utf-8")                    # ValueError for half of a surrogate pair
        return list(itertools.chain.from_iterable(map(self._ids_of_word, split_into_words(text))))

    def _encode_word(self, word: str) -> list[int]:
        return apply_merges([self._byte_ids[byte] for byte in word.encode("utf-8")], self._merged)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self._look_up(ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in self._look_up(ids):
            if piece := decoder.decode(token):
                yield piece
        if rest := decoder.decode(b"", final=True):         # a character that was never completed
            yield rest

    def encode_and_show_work(self, text: str) -> dict:
        """Every stage of `encode(text)`, bytes written as `byte_characters`: a space is Ġ.

        >>> work = BPETokenizer.train("low lower lowest", 258).encode_and_show_work("a low")
        >>> work["ids"], work["words"][0]
        ([97, 32, 257], {'word': 'a', 'bytes': ['a'], 'merges': [], 'ids': [97]})
        >>> work["words"][1]["merges"][0]
        {'rank': 0, 'pair': ('l', 'o'), 'result': ['Ġ', 'lo', 'w']}
        """
        words = []
        for word in split_into_words(text):
            start = [self._byte_ids[byte] for byte in word.encode("utf-8")]
            steps = list(merge_steps(start, self._merged))
            merges = [{"rank": self._merged[pair] - 256, "pair": tuple(self._printable(pair)),
                       "result": self._printable(ids)} for pair, ids in steps]
            words.append({"word": word, "bytes": self._printable(start), "merges": merges,
                          "ids": steps[-1][1] if steps else start})
        return {"text": text, "words": words, "ids": [i for word in words for i in word["ids"]]}

    def _printable(self, ids: Iterable[int]) -> list[str]:
        return ["".join(byte_characters()[byte] for byte in self.vocabulary[i]) for i in ids]

    def _content(self) -> dict:
        return {"byte_order": self.byte_order, "merges": self.merges,
                "special_tokens": list(self.special_tokens)}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a tokenizer of any kind from a file; ValueError if the file holds none."""
    content = read_json(path)
    kinds = {kind.__name__: kind for kind in (CharTokenizer, WordTokenizer, BPETokenizer)}
    name = str(content.pop("kind", None))
    if name not in kinds:
        raise ValueError(f"{path} says kind {reprlib.repr(name)}, not one of {', '.join(kinds)}")
    try:
        return kinds[name](**content)
    except (TypeError, ValueError) as error:    # TypeError: an entry is missing or of a wrong type
        raise ValueError(f"{path} is not a whole {name} ({textwrap.shorten(str(error), 300)}); "
                         "save it again") from None
