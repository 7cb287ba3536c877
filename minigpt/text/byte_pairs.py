"""Byte-pair encoding: merge the two neighbours that occur together most often, and repeat.

    (a, b)* = argmax Σ_words times(word) · count((a, b) in word);    then a b → ab everywhere

The list of merges, in the order in which they were learned, is the tokenizer. A new text is encoded
by the same merges in the same order. If two pairs are equally frequent, the smaller pair of ids is
merged, so that one text gives one list on every machine.

Learning and encoding are each written twice: first the definition, then a fast version with the
same result (a test compares them).

Source: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword
units", §3.2 and algorithm 1; on bytes instead of characters: Radford et al. 2019 (GPT-2), §2.2.
Deviation: Sennrich et al. mark the end of a word; here, as in GPT-2, the space before a word
belongs to it.
Not here: where a word ends (`pretokenize.py`); and dropout of merges, Provilkov et al. 2020.
"""
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

Pair = tuple[int, int]


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Every `pair` becomes `new_id`, from left to right; of overlapping pairs the left one wins.

    >>> merge([97, 97, 97, 98, 97], (97, 97), 256)
    [256, 97, 98, 97]
    """
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i:i + 2]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges_by_recounting(word_counts: dict[str, int], n_merges: int) -> list[Pair]:
    """The definition of learning: count all pairs, merge the most frequent everywhere, repeat.

    The i-th pair merged becomes id 256 + i. The list is shorter if no pair is left to merge.

    >>> learn_merges_by_recounting({"low": 5, "lot": 2, "now": 4}, 2)       # o w: 5 + 4; l o: 5 + 2
    [(111, 119), (108, 256)]
    """
    words = [(list(word.encode("utf-8")), times) for word, times in word_counts.items()]
    merges = []
    while len(merges) < n_merges:
        count = Counter()
        for word, times in words:
            for pair in zip(word, word[1:]):
                count[pair] += times
        if not count:
            break
        best = min(count, key=lambda pair: (-count[pair], pair))    # most frequent, then smallest
        words = [(merge(word, best, 256 + len(merges)), times) for word, times in words]
        merges.append(best)
    return merges


def learn_merges(word_counts: dict[str, int], n_merges: int) -> list[Pair]:
    """What `learn_merges_by_recounting` learns, in much less time.

    A merge changes the counts of its neighbours only. So the counts are kept and corrected, and
    only the words that hold the pair are visited. A heap gives the most frequent pair.
    """
    words = [(list(word.encode("utf-8")), times) for word, times in word_counts.items()]
    count, words_with = defaultdict(int), defaultdict(set)  # of each pair: number, indices
    for index, (word, times) in enumerate(words):
        for pair in zip(word, word[1:]):
            count[pair] += times
            words_with[pair].add(index)
    queue = [(-total, pair) for pair, total in count.items()]       # highest count, then smallest
    heapq.heapify(queue)
    merges = []
    while queue and len(merges) < n_merges:
        total, pair = heapq.heappop(queue)
        if -total != count[pair]:       # out of date: the count of an old pair can only have fallen
            if count[pair]:
                heapq.heappush(queue, (-count[pair], pair))
            continue
        new_id, new_pairs = 256 + len(merges), set()
        merges.append(pair)
        for index in words_with.pop(pair):
            word, times = words[index]
            for old, new in merge_in_place(word, pair, new_id):
                count[old] -= times
                count[new] += times
                words_with[new].add(index)
                new_pairs.add(new)
        for new in new_pairs:
            if count[new]:              # in "aaaa" a new pair can be merged away at once
                heapq.heappush(queue, (-count[new], new))
    return merges


def merge_in_place(word: list[int], pair: Pair, new_id: int) -> Iterator[tuple[Pair, Pair]]:
    """Merges `pair` in one word, and yields (old, new) for each neighbouring pair that changes."""
    (first, second), i, last = pair, 0, len(word) - 1
    while i < last:
        if word[i] == first and word[i + 1] == second:
            word[i:i + 2] = [new_id]
            last -= 1
            if i > 0:
                yield (word[i - 1], first), (word[i - 1], new_id)
            if i < last:
                yield (second, word[i + 1]), (new_id, word[i + 1])
        i += 1


def merge_steps(ids: list[int], merged: dict[Pair, int]) -> Iterator[tuple[Pair, list[int]]]:
    """The definition of encoding: merge the pair that was learned first, until no pair is left.

    `merged` gives the id of each pair. Yields each pair that is merged, and all ids after that
    merge. Here b c was learned first, so it is merged although a b is to the left of it:

    >>> list(merge_steps([97, 98, 99], {(98, 99): 256, (97, 98): 257, (97, 256): 258}))
    [((98, 99), [97, 256]), ((97, 256), [258])]
    """
    while candidates := [pair for pair in zip(ids, ids[1:]) if pair in merged]:
        pair = min(candidates, key=merged.get)
        ids = merge(ids, pair, merged[pair])
        yield pair, ids


def apply_merges(ids: list[int], merged: dict[Pair, int]) -> list[int]:
    """The ids after the last of the `merge_steps`, in O(n log n) steps instead of O(n²).

    The pairs wait in a heap, and the ids are a linked list: `before` and `after` give the index of
    the neighbours that are left.

    >>> apply_merges([97, 98, 99], {(98, 99): 256, (97, 98): 257, (97, 256): 258})
    [258]
    """
    end = len(ids)
    ids, before, after = list(ids), list(range(-1, end - 1)), list(range(1, end + 1))
    queue = [(merged[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in merged]
    heapq.heapify(queue)
    while queue:
        new_id, i = heapq.heappop(queue)
        j = after[i]
        if j == end or merged.get((ids[i], ids[j])) != new_id:      # one of them is merged already
            continue
        ids[i], ids[j] = new_id, None
        after[i] = following = after[j]
        if following < end:
            before[following] = i
        for left, right in ((before[i], i), (i, following)):
            if left >= 0 and right < end and (ids[left], ids[right]) in merged:
                heapq.heappush(queue, (merged[ids[left], ids[right]], left))
    return [token for token in ids if token is not None]
