"""Byte-pair encoding: merge the two neighbours that occur together most often, and repeat.

    (a, b)* = argmax Σ_words times(word) · count((a, b) in word);    then a b → ab everywhere

The list of merges, in the order in which they were learned, is the tokenizer. A new text is encoded
by the same merges in the same order. If two pairs are equally frequent, the smaller pair of ids is
merged. Encoding is written twice: first the definition, then a fast version with the same result.

Source: Sennrich et al. 2016, §3.2 and algorithm 1; on bytes: Radford et al. 2019 (GPT-2), §2.2.
Deviation: Sennrich et al. mark the end of a word; here, as in GPT-2, the space before a word
belongs to it (`pretokenize.py`).
Not here: dropout of merges, Provilkov et al. 2020.
"""
import heapq
from collections import defaultdict
from collections.abc import Iterator

Pair = tuple[int, int]


def merge(word: list[int], pair: Pair, new_id: int) -> list[tuple[Pair, Pair]]:
    """Merges `pair` in place, from left to right; returns (old, new) of each pair that changes.

    >>> word = [99, 97, 97, 97]
    >>> merge(word, (97, 97), 256), word
    ([((99, 97), (99, 256)), ((97, 97), (256, 97))], [99, 256, 97])
    """
    (first, second), i, last, changes = pair, 0, len(word) - 1, []
    while i < last:
        if word[i] == first and word[i + 1] == second:
            word[i:i + 2] = [new_id]
            last -= 1
            if i > 0:
                changes.append(((word[i - 1], first), (word[i - 1], new_id)))
            if i < last:
                changes.append(((second, word[i + 1]), (new_id, word[i + 1])))
        i += 1
    return changes


def learn_merges(word_counts: dict[str, int], n_merges: int) -> list[Pair]:
    """`n_merges` pairs, in the order learned; fewer if no pair is left. Pair i becomes id 256 + i.

    Each step merges the most frequent pair everywhere. That changes the counts of its neighbours
    only, so the counts are kept and corrected, and only the words that hold the pair are visited.

    >>> learn_merges({"low": 5, "lot": 2, "now": 4}, 2)                     # o w: 5 + 4; l o: 5 + 2
    [(111, 119), (108, 256)]
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
            for old, new in merge(word, pair, new_id):
                count[old] -= times
                count[new] += times
                words_with[new].add(index)
                new_pairs.add(new)
        for new in new_pairs:
            if count[new]:              # in "aaaa" a new pair can be merged away at once
                heapq.heappush(queue, (-count[new], new))
    return merges


def merge_steps(ids: list[int], merged: dict[Pair, int]) -> Iterator[tuple[Pair, list[int]]]:
    """The definition of encoding: merge the pair that was learned first, until no pair is left.

    `merged` gives the id of each pair. Yields each pair that is merged, and the ids after it:

    >>> list(merge_steps([97, 98, 99], {(98, 99): 256, (97, 98): 257, (97, 256): 258}))
    [((98, 99), [97, 256]), ((97, 256), [258])]
    """
    while candidates := [pair for pair in zip(ids, ids[1:]) if pair in merged]:
        pair = min(candidates, key=merged.get)
        ids = list(ids)
        merge(ids, pair, merged[pair])
        yield pair, ids


def apply_merges(ids: list[int], merged: dict[Pair, int]) -> list[int]:
    """The ids after the last of the `merge_steps`, in O(n log n) steps instead of O(n²).

    The pairs are in a heap, and the ids in a linked list: `before` and `after` are the links.
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
