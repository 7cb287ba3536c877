"""Both learners and both encoders against str.replace, which knows nothing of pairs and ids."""
import random
from collections import Counter

import pytest

from minigpt.text.byte_pairs import (
    apply_merges,
    learn_merges,
    learn_merges_by_recounting,
    merge,
    merge_steps,
)

both_learners = pytest.mark.parametrize("learn", [learn_merges, learn_merges_by_recounting])


def as_characters(ids):
    return "".join(map(chr, ids))


def learn_with_replace(word_counts, n_merges):
    """Counts every pair again for each merge. Words are str of ids, so str.replace merges."""
    words = {as_characters(word.encode()): times for word, times in word_counts.items()}
    merges = []
    while len(merges) < n_merges:
        count = Counter()
        for word, times in words.items():
            for i in range(len(word) - 1):
                count[ord(word[i]), ord(word[i + 1])] += times
        if not count:
            break
        most = max(count.values())
        pair = min(pair for pair in count if count[pair] == most)
        new = chr(256 + len(merges))
        words = {word.replace(as_characters(pair), new): times for word, times in words.items()}
        merges.append(pair)
    return merges


@both_learners
def test_the_example_of_the_paper_by_hand(learn):
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    e, s, t, l, o, w = b"estlow"        # noqa: E741
    # es 9, st 9: the tie goes to e < s. Then es·t 9. Then lo 7, ow 7: l < o. Then lo·w 7.
    assert learn(words, 4) == [(e, s), (256, t), (l, o), (258, w)]


@both_learners
def test_counts_weigh_words_and_every_position_in_them(learn):
    assert learn({"ab": 2, "cd": 3}, 1) == [(99, 100)]
    assert learn({"abxab": 2, "cd": 3}, 1) == [(97, 98)]


@both_learners
@pytest.mark.parametrize("alphabet", ["a", "ab", "abc", "añ", "中文字", "abcdefghij"])
def test_merges_equal_those_found_with_replace_until_nothing_is_left(learn, alphabet):
    rng = random.Random(len(alphabet))
    for _ in range(40):
        words = {"".join(rng.choices(alphabet, k=rng.randint(1, 12))): rng.randint(1, 9)
                 for _ in range(rng.randint(1, 15))}
        for n_merges in (0, 3, 1000):
            assert learn(words, n_merges) == learn_with_replace(words, n_merges)


@both_learners
def test_merges_equal_those_found_with_replace_on_overlapping_runs(learn):
    for length in range(1, 20):
        words = {"a" * length: 1, "ba" + "a" * length + "b": 2}
        assert learn(words, 1000) == learn_with_replace(words, 1000)


def test_ties_go_to_the_smallest_pair():
    # Every pair occurs once, at every step.
    assert learn_merges({"dcba": 1}, 9) == learn_merges_by_recounting({"dcba": 1}, 9) == [
        (98, 97), (99, 256), (100, 257)]


def test_both_learners_agree_on_random_unicode(random_text):
    rng = random.Random(4)
    for _ in range(60):
        words = {random_text(rng, rng.randint(1, 9)): rng.randint(1, 3) for _ in range(12)}
        assert learn_merges(words, 200) == learn_merges_by_recounting(words, 200)


def test_merges_do_not_depend_on_the_order_of_the_words():
    rng = random.Random(5)
    words = [("".join(rng.choices("abcd", k=6)), 1) for _ in range(40)]
    assert learn_merges(dict(words), 50) == learn_merges(dict(reversed(words)), 50)


def test_nothing_to_merge():
    for words in ({}, {"a": 3}, {"": 1}):
        assert learn_merges(words, 5) == learn_merges_by_recounting(words, 5) == []


def test_merge_equals_str_replace():
    rng = random.Random(2)
    for _ in range(500):
        ids = rng.choices((97, 98, 99), k=rng.randrange(9))
        pair = tuple(rng.choices((97, 98), k=2))
        replaced = as_characters(ids).replace(as_characters(pair), chr(256))
        assert as_characters(merge(ids, pair, 256)) == replaced


def test_both_encoders_equal_replacing_pair_after_pair_in_the_order_learned():
    rng = random.Random(3)
    for _ in range(400):
        merged = {}
        for _ in range(rng.randint(1, 30)):             # any table whose pairs exist by then
            pair = tuple(rng.choice([97, 98, *merged.values()]) for _ in range(2))
            merged.setdefault(pair, 256 + len(merged))
        ids = rng.choices((97, 98), k=rng.randrange(40))
        slow = as_characters(ids)
        for pair, new_id in merged.items():
            slow = slow.replace(as_characters(pair), chr(new_id))
        before = list(ids)
        steps = [ids, *(after for _, after in merge_steps(ids, merged))]
        assert as_characters(apply_merges(ids, merged)) == as_characters(steps[-1]) == slow
        assert ids == before                                        # the argument is not changed


def test_the_pair_learned_first_is_merged_first_wherever_it_is():
    ab, bc = (97, 98), (98, 99)
    assert apply_merges([97, 98, 99], {ab: 256, bc: 257}) == [256, 99]
    assert apply_merges([97, 98, 99], {bc: 256, ab: 257}) == [97, 256]
