"""Byte-pair encoding, the algorithm: merge what stands side by side most often, and remember in which order.

    (a, b)* = argmax_{(a, b)} Σ_words times(word) · count((a, b) in word),      then a b -> ab everywhere, and again

Ties go to the smallest pair of ids, so one text gives one table, whatever the machine.

Source: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units", §3.2 and algorithm 1;
on bytes instead of characters: Radford et al. 2019 (GPT-2), §2.2.
Deviations: Sennrich et al. mark where a word ends; here, as in GPT-2, the space in front belongs to the word.
Not here: where words end (`pretokenize.py`), dropout of merges, and speed on a text that is one long word: training walks
along every word that a merge changes.
"""
import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence

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


def learn_merges(word_counts: dict[str, int], n_merges: int) -> list[Pair]:
    """The most frequent pair, again and again; the i-th pair merged becomes id 256 + i. Fewer if nothing is left to merge.

    Each distinct word is held once, with its count. A merge changes the counts of its neighbours alone, so only words
    that hold the pair are revisited, and the counts of all other pairs stand.

    >>> learn_merges({"low": 5, "lot": 2, "now": 4}, 2)                         # o w: 5 + 4; l o: 5 + 2
    [(111, 119), (108, 256)]
    """
    words, times = [list(word.encode("utf-8")) for word in word_counts], list(word_counts.values())
    count, words_with = Counter(), defaultdict(set)
    for index, word in enumerate(words):
        for pair in zip(word, word[1:]):
            count[pair] += times[index]
            words_with[pair].add(index)
    queue = [(-total, pair) for pair, total in count.items()]                   # smallest first: highest count, then smallest ids
    heapq.heapify(queue)
    merges = []
    while queue and len(merges) < n_merges:
        total, pair = heapq.heappop(queue)
        if -total != count[pair]:                                               # out of date: counts of old pairs only fall,
            if count[pair]:                                                     # so it goes back further down
                heapq.heappush(queue, (-count[pair], pair))
            continue
        (first, second), new_id = pair, 256 + len(merges)
        merges.append(pair)
        born = set()
        for index in words_with.pop(pair):
            word, i = words[index], 0
            while i < len(word) - 1:
                if word[i] == first and word[i + 1] == second:
                    word[i:i + 2] = [new_id]
                    neighbours = [((word[i - 1], first), (word[i - 1], new_id))] if i > 0 else []
                    neighbours += [((second, word[i + 1]), (new_id, word[i + 1]))] if i + 1 < len(word) else []
                    for old, new in neighbours:
                        count[old] -= times[index]
                        count[new] += times[index]
                        words_with[new].add(index)
                        born.add(new)
                i += 1
        for new in born:
            if count[new]:                                                      # in "aaaa" a pair is born and merged away at once
                heapq.heappush(queue, (-count[new], new))
    return merges


def apply_merges(ids: list[int], merged: dict[Pair, int]) -> list[int]:
    """Merge the pair that was learnt first, then the next, until none is left: what `merge` does pair by pair.

    The pairs wait in a heap and the ids in a linked list, so n ids take O(n log n) steps instead of O(n²).

    >>> apply_merges([97, 98, 99], {(98, 99): 256, (97, 98): 257, (97, 256): 258})      # b c first, though a b stands left of it
    [258]
    """
    end = len(ids)
    ids, before, after = list(ids), list(range(-1, end - 1)), list(range(1, end + 1))
    queue = [(merged[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in merged]
    heapq.heapify(queue)
    while queue:
        new_id, i = heapq.heappop(queue)
        j = after[i]
        if j == end or merged.get((ids[i], ids[j])) != new_id:                  # one of the two has been merged meanwhile
            continue
        ids[i], ids[j] = new_id, None
        after[i] = following = after[j]
        if following < end:
            before[following] = i
        for left, right in ((before[i], i), (i, following)):
            if left >= 0 and right < end and (ids[left], ids[right]) in merged:
                heapq.heappush(queue, (merged[ids[left], ids[right]], left))
    return [token for token in ids if token is not None]
