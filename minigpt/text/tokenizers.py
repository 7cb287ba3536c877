"""Tokenizers: turn a text into a list of numbers, and the numbers back into the text.

    encode: str -> list[int],    decode: list[int] -> str,    decode(encode(text)) = text

CharTokenizer   one id per character: a small vocabulary and long sequences.
WordTokenizer   one id per word: short sequences, for worlds whose words are few and known.
BPETokenizer    one id per byte and one per frequent sequence of bytes: any Unicode text has ids.

The first two refuse a character or a word that their training text did not have.

Source: byte-pair encoding (`byte_pairs.py`) of bytes, inside words (`pretokenize.py`): Radford et
al. 2019 (GPT-2), §2.2.
Not here: unigram and WordPiece vocabularies, a token for unknown words, and Unicode normalisation
(é as one code point and é as two stay different texts).
"""
import codecs
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

CACHED_WORDS, CACHED_LENGTH = 2**16, 64         # a BPETokenizer caches so many words, each so long
WORD_OR_MARK = r" ?(?:\w+|[^\w ])| "            # with the space before it; or a space alone


def refuse_lone_surrogates(text: str, start: int = 0) -> None:
    """ValueError for half of a surrogate pair, which a Python str can hold and UTF-8 cannot.

    `start` is the index of `text` in the whole text; the message counts from there.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"U+{ord(text[error.start]):04X} at index {start + error.start} is a lone "
                         "surrogate, which is no character and has no UTF-8; decode the text's "
                         "source anew, or replace it") from None


def refuse_untrainable(text: str) -> None:
    """ValueError for a text that a vocabulary cannot be learned from."""
    if not text:
        raise ValueError("the text is empty: there is nothing to learn a vocabulary from; "
                         "give one with at least a character")
    refuse_lone_surrogates(text)


def check_names(names: Sequence[str], what: str) -> None:
    """ValueError unless these are different, non-empty strings of whole characters."""
    if (isinstance(names, str) or not isinstance(names, Sequence)
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) != len(names)):
        raise ValueError(f"{what} has to be a list of different, non-empty strings, "
                         f"not {reprlib.repr(names)}")
    for name in names:
        refuse_lone_surrogates(name)


def number_special_tokens(names: Sequence[str], first_id: int) -> dict[str, int]:
    """Name -> id, from `first_id` on. ValueError for names that could not be told apart."""
    check_names(names, "special_tokens")
    return {name: first_id + i for i, name in enumerate(names)}


class Tokenizer:
    """The methods that all three kinds share.

    A kind has `vocabulary` (id -> its str or bytes) and `special_tokens` (name -> id).
    """

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text.

        The name of a special token in a text is ordinary text. So a user cannot insert the token by
        typing "<|endoftext|>". With `allow_special` the name becomes the token's id; where two
        names fit, the longer one.

        ValueError for a character that has no id; the message says which and where. A CharTokenizer
        has ids for the characters of its training text, a BPETokenizer for all characters (a lone
        surrogate is none).
        """
        if not (allow_special and self.special_tokens):
            return self._encode_ordinary(text, 0)
        ids, start = [], 0
        for found in re.finditer("|".join(self._special_patterns()), text):
            ids.extend(self._encode_ordinary(text[start:found.start()], start))
            ids.append(self.special_tokens[found[0]])
            start = found.end()
        return ids + self._encode_ordinary(text[start:], start)

    def _special_patterns(self) -> list[str]:
        return [re.escape(name) for name in sorted(self.special_tokens, key=len, reverse=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; a special token gives its name.

        ValueError for an id outside the vocabulary.
        """
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one by one, in pieces; joined, they are `decode` of all ids.

        A piece is given as soon as its characters are complete. A token of a BPETokenizer can end
        in the middle of a character; then the whole character is in a later piece.

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
        """Writes JSON in UTF-8, which `load` reads back exactly.

        If writing fails, a file that was at `path` before is unchanged.
        """
        write_json(path, {"kind": type(self).__name__} | self._content())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer that `save` wrote.

        FileNotFoundError, or ValueError in one line if the file is damaged or holds something else.
        """
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise ValueError(f"{path} holds a {type(tokenizer).__name__}, not a {cls.__name__}; "
                             "load_tokenizer reads every kind")
        return tokenizer


class CharTokenizer(Tokenizer):
    """One id for each distinct character, in the order of their code points; then special tokens.

    >>> tokenizer = CharTokenizer.train("to be or none", special_tokens=["<pad>"])
    >>> tokenizer.encode("bone"), tokenizer.decode([1, 4, 3, 2]), tokenizer.special_tokens
    ([1, 4, 3, 2], 'bone', {'<pad>': 7})
    """

    def __init__(self, characters: str, special_tokens: Sequence[str] = ()):
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise ValueError("a character vocabulary is a str without repeats, "
                             f"not {reprlib.repr(characters)}")
        refuse_lone_surrogates(characters)
        self.special_tokens = number_special_tokens(special_tokens, len(characters))
        self.vocabulary = [*characters, *self.special_tokens]                   # id -> str
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(
        cls, text: str, vocab_size: int | None = None, special_tokens: Sequence[str] = ()
    ) -> "CharTokenizer":
        """The characters of a text.

        `vocab_size` is a limit: fewer entries are fine; more (special tokens included) are a
        ValueError.
        """
        refuse_untrainable(text)
        tokenizer = cls("".join(sorted(set(text))), special_tokens)
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"{len(tokenizer._ids)} distinct characters and {len(tokenizer.special_tokens)} "
                f"special tokens are more than vocab_size {vocab_size}; raise it to "
                f"{tokenizer.vocab_size}, or train a BPETokenizer")
        return tokenizer

    def _encode_ordinary(self, text: str, start: int) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) at index "
                f"{start + text.index(character)} is not among the {len(self._ids)} that this "
                "tokenizer was trained on; train it on a text that has it, or use a BPETokenizer"
            ) from None

    def _content(self) -> dict:
        return {"characters": "".join(self._ids), "special_tokens": list(self.special_tokens)}


class WordTokenizer(Tokenizer):
    """One id for each distinct word; special tokens first, then the words in alphabetical order.

    A text is a str, or the list of its words. A str is split at its spaces:

    >>> tokenizer = WordTokenizer.train("the cat saw the dog .", special_tokens=["<pad>"])
    >>> tokenizer.vocabulary
    ['<pad>', '.', 'cat', 'dog', 'saw', 'the']
    >>> tokenizer.encode("the dog saw"), tokenizer.encode(["the", "dog"]), tokenizer.decode([5, 3])
    ([5, 3, 4], [5, 3], 'the dog')

    With `keep_spaces` it is split into words and marks, each with the space before it, so that
    ordinary prose needs no spaces around its marks:

    >>> tokenizer = WordTokenizer.train("Ann's cat ran, ran.", keep_spaces=True)
    >>> tokenizer.vocabulary
    [' cat', ' ran', "'", ',', '.', 'Ann', 's']
    >>> tokenizer.decode(tokenizer.encode("Ann ran."))
    'Ann ran.'
    """

    def __init__(
        self, vocabulary: Sequence[str], special_tokens: Sequence[str] = (),
        keep_spaces: bool = False,
    ):
        """`vocabulary` has all tokens in the order of their ids; `special_tokens` are some of them.

        `train` puts special tokens first. A vocabulary that needs them elsewhere, as T5's needs
        its sentinels at the end, is given here.
        """
        check_names(vocabulary, "vocabulary")
        check_names(special_tokens, "special_tokens")
        if not isinstance(keep_spaces, bool):
            raise ValueError(f"keep_spaces is True or False, not {reprlib.repr(keep_spaces)}")
        ids = {token: i for i, token in enumerate(vocabulary)}
        if missing := [name for name in special_tokens if name not in ids]:
            raise ValueError(f"special token {reprlib.repr(missing[0])} is not in the vocabulary; "
                             "give it its place there")
        self.vocabulary, self.keep_spaces = list(vocabulary), keep_spaces       # id -> str
        self.special_tokens = {name: ids.pop(name) for name in special_tokens}
        self._ids = ids                                                         # of words only
        if unreachable := [word for word in ids if self._split(word) != [word]]:
            raise ValueError(f"{reprlib.repr(unreachable[0])} is not one word: a text would be "
                             f"split inside it into {reprlib.repr(self._split(unreachable[0]))}")

    @classmethod
    def train(
        cls, text: str | Sequence[str], special_tokens: Sequence[str] = (),
        keep_spaces: bool = False,
    ) -> "WordTokenizer":
        """The special tokens, then the words of a text, sorted."""
        if not text:
            raise ValueError("the text is empty: there is nothing to learn a vocabulary from; "
                             "give one with at least a word")
        check_names(special_tokens, "special_tokens")
        words = cls([], keep_spaces=keep_spaces)._split(text) if isinstance(text, str) else text
        return cls([*special_tokens, *sorted(set(words))], special_tokens, keep_spaces)

    def encode(self, text: str | Sequence[str], allow_special: bool = False) -> list[int]:
        """The ids of a text, given as a str or as the list of its words.

        With `allow_special` the name of a special token becomes its id, unless it begins inside a
        word. ValueError for a word that the vocabulary does not have.
        """
        words = self._split(text, allow_special) if isinstance(text, str) else text
        known = self._ids | self.special_tokens if allow_special else self._ids
        try:
            return [known[word] for word in words]
        except KeyError as error:
            word, = error.args
            advice = ("it is a special token, which needs allow_special"
                      if word in self.special_tokens else "train it on a text that has the word")
            raise ValueError(f"{word!r}, word {list(words).index(word)} of the text, is not among "
                             f"the {len(self._ids)} words of this tokenizer; {advice}") from None

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        for position, word in enumerate(self._look_up(ids)):
            yield word if self.keep_spaces or position == 0 else " " + word

    def _split(self, text: str, allow_special: bool = False) -> list[str]:
        if not self.keep_spaces:
            return text.split(" ") if text else []
        special = self._special_patterns() if allow_special else []
        return re.findall("|".join([*special, WORD_OR_MARK]), text)

    def _content(self) -> dict:
        return {"vocabulary": self.vocabulary, "special_tokens": list(self.special_tokens),
                "keep_spaces": self.keep_spaces}


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding.

    Ids 0 to 255 are the bytes, then the merges follow in the order learned, then special tokens.

    >>> tokenizer = BPETokenizer.train("low lower lowest, slow slower slowest", vocab_size=258)
    >>> tokenizer.merges, tokenizer.vocabulary[256:]
    ([(108, 111), (256, 119)], [b'lo', b'low'])
    >>> tokenizer.encode("low ñ"), tokenizer.decode([257, 32, 195, 177])
    ([257, 32, 195, 177], 'low ñ')

    Bytes that are no UTF-8 are decoded as "�":

    >>> tokenizer.decode([257, 195])
    'low�'
    """

    def __init__(
        self, merges: Sequence[Pair], special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] = tuple(range(256)),
    ):
        """`byte_order[i]` is the byte of id i: 0, 1, 2, … except in GPT-2's own vocabulary."""
        if (not isinstance(byte_order, Sequence) or not all(type(i) is int for i in byte_order)
                or sorted(byte_order) != list(range(256))):
            raise ValueError("byte_order has to hold each of the bytes 0 to 255 once")
        self.byte_order = list(byte_order)
        self.vocabulary = [bytes([byte]) for byte in byte_order]                # id -> bytes
        if not isinstance(merges, Sequence):
            raise ValueError(f"merges are a list of pairs, not {reprlib.repr(merges)}")
        self.merges = []
        for pair in map(tuple, merges):
            if len(pair) != 2 or not all(type(i) is int and 0 <= i < len(self.vocabulary)
                                         for i in pair):
                raise ValueError(
                    f"merge {len(self.merges)} is {reprlib.repr(pair)}; it has to be two ids that "
                    f"exist by then, 0 to {len(self.vocabulary) - 1}")
            self.merges.append(pair)
            self.vocabulary.append(self.vocabulary[pair[0]] + self.vocabulary[pair[1]])
        self.special_tokens = number_special_tokens(special_tokens, len(self.vocabulary))
        self.vocabulary += [name.encode("utf-8") for name in self.special_tokens]
        self._merged = {pair: 256 + rank for rank, pair in enumerate(self.merges)}
        if len(self._merged) != len(self.merges):
            raise ValueError("a pair is listed twice among the merges")
        self._byte_ids = {byte: i for i, byte in enumerate(byte_order)}
        self._cache = {}                # word -> ids: most words of a text have been seen before

    @classmethod
    def train(
        cls, text: str, vocab_size: int, special_tokens: Sequence[str] = ()
    ) -> "BPETokenizer":
        """Learns vocab_size − 256 − len(special_tokens) merges: exactly `vocab_size` entries.

        ValueError if vocab_size leaves no room for the bytes, or if the text runs out of pairs
        first (each of its words is one token by then); the message says how large a vocabulary
        the text can fill.
        """
        refuse_untrainable(text)
        smallest = 256 + len(number_special_tokens(special_tokens, 0))
        if vocab_size < smallest:
            raise ValueError(f"vocab_size {vocab_size} is less than 256 bytes and {smallest - 256} "
                             f"special tokens; take at least {smallest}")
        merges = learn_merges(Counter(split_into_words(text)), vocab_size - smallest)
        if smallest + len(merges) < vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size} is more than this text can fill: after {len(merges)} "
                "merges each of its words is one token; ask for at most "
                f"{smallest + len(merges)}, or give a longer text")
        return cls(merges, special_tokens)

    @classmethod
    def from_gpt2(cls, encoder_json: str | Path, vocab_bpe: str | Path) -> "BPETokenizer":
        """GPT-2's tokenizer, id for id, from its two published files: names of ids, and merges.

        Names are written in `byte_characters`. GPT-2 numbers single bytes in an order of its own:
        "!" is 0, a space is 220.
        """
        ids = read_json(encoder_json)
        if (not all(type(i) is int for i in ids.values())
                or sorted(ids.values()) != list(range(len(ids)))):
            raise ValueError(f"{encoder_json} does not number its {len(ids)} entries 0, 1, 2, …; "
                             "it is not GPT-2's encoder.json")
        names = sorted(ids, key=ids.get)
        merges = []
        for line in read_text(vocab_bpe).split("\n"):
            if line and not line.startswith("#version"):
                left, _, right = line.partition(" ")
                merges.append((ids.get(left), ids.get(right)))
                if None in merges[-1] or ids.get(left + right) != 255 + len(merges):
                    raise ValueError(
                        f"{vocab_bpe}: merge {len(merges) - 1}, {reprlib.repr(line)}, does not "
                        f"lead to id {255 + len(merges)} of {encoder_json}; the two files have to "
                        "be GPT-2's, of the same model")
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        if len(names) < 256 + len(merges) or not all(name in byte_of for name in names[:256]):
            raise ValueError(f"the first 256 ids of {encoder_json} are not the single bytes; "
                             "it is not GPT-2's encoder.json")
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

        "words" has one entry per word: the word, its bytes, its merges (each with its rank, the
        pair, and the word after it), and its ids. The merges are found by `merge_steps`, the
        definition that `encode` makes fast.

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
            start = [self._byte_ids[byte] for byte in word.encode("utf-8")]
            steps = list(merge_steps(start, self._merged))
            words.append({
                "word": word,
                "bytes": self._printable(start),
                "merges": [{"rank": self._merged[pair] - 256, "pair": tuple(self._printable(pair)),
                            "result": self._printable(ids)} for pair, ids in steps],
                "ids": steps[-1][1] if steps else start,
            })
        return {"text": text, "words": words, "ids": [i for word in words for i in word["ids"]]}

    def _printable(self, ids: Iterable[int]) -> list[str]:
        return ["".join(byte_characters()[byte] for byte in self.vocabulary[i]) for i in ids]

    def _content(self) -> dict:
        return {"byte_order": self.byte_order, "merges": self.merges,
                "special_tokens": list(self.special_tokens)}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, of whichever kind. FileNotFoundError, or ValueError for no such."""
    content = read_json(path)
    kinds = {kind.__name__: kind for kind in (CharTokenizer, WordTokenizer, BPETokenizer)}
    name = str(content.pop("kind", None))
    if name not in kinds:
        raise ValueError(f"{path} says kind {reprlib.repr(name)}, where a tokenizer's file says "
                         f"one of {', '.join(kinds)}")
    try:
        return kinds[name](**content)
    except (TypeError, ValueError) as error:    # TypeError: an entry is missing or of a wrong type
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{path} is not a whole {name} ({reason}); save it again") from None
