"""Span corruption against the paper's figure, exact fractions, and a list of all possible masks."""
import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from minigpt.text.spans import (
    corrupt_spans,
    expected_lengths,
    random_segments,
    restore,
    span_counts,
    span_mask,
    split_at_sentinels,
)

V, END = 200, 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs_of(mask) -> list[tuple[bool, int]]:
    return [(flag, len(list(group))) for flag, group in itertools.groupby(mask)]


def test_the_figure_of_the_paper():
    """Raffel et al. 2020, fig. 2, word for word; <X>, <Y> and <Z> are the top three ids."""
    words = "Thank you for inviting me to your party last week . <Z> <Y> <X>".split()
    ids = {word: i + 2 for i, word in enumerate(words)}
    text = "Thank you for inviting me to your party last week .".split()
    removed = [word in ("for", "inviting", "last") for word in text]
    source, target = corrupt_spans([ids[word] for word in text], removed, len(words) + 2, END)
    names = {i: word for word, i in ids.items()} | {END: "</s>"}
    assert " ".join(names[i] for i in source) == "Thank you <X> me to your party <Y> week . </s>"
    assert " ".join(names[i] for i in target) == "<X> for inviting <Y> last <Z> </s>"


def test_restore_undoes_corrupt_spans():
    """10,000 texts, short and long, some only of padding and </s>, with all kinds of masks."""
    rng, g = random.Random(1), generator(1)
    for trial in range(10_000):
        n = rng.choice([1, 1, 2, 3, rng.randint(4, 30), rng.randint(31, 120)])
        text = [rng.randrange(2 if trial % 4 == 0 else V - 64) for _ in range(n)]
        if trial % 2:
            mask = span_mask(n, g, noise_density=rng.choice([0.15, 0.15, 0.5, 0.9]),
                             mean_span_length=rng.choice([1.0, 3.0, 10.0]))
        else:
            mask = [rng.random() < 0.3 for _ in range(n)]
        source, target = corrupt_spans(text, mask, V, END)
        assert restore(source, target, V, END) == text, (text, mask)
        if any(mask):                                       # no removed token is in the input
            kept = [token for token, noise in zip(text, mask) if not noise]
            assert [token for token in source[:-1] if token < V - 64] == kept


def test_counts_by_exact_fractions():
    for n in range(2, 700):
        noise = round(Fraction(15, 100) * n)            # halves go to the even neighbour, as there
        noise = min(max(noise, 1), n - 1)
        assert span_counts(n) == (noise, max(1, round(Fraction(noise, 3)))), n
    assert span_counts(1) == (0, 0)
    assert span_counts(2) == (1, 1)
    assert span_counts(10, noise_density=0.99) == (9, 1)    # one kept token cannot separate spans
    assert span_counts(20, noise_density=0.8, mean_span_length=1) == (16, 4)


def test_density_and_span_length_of_long_texts():
    """The 568 tokens that fill the paper's inputs: in every draw 85 are noise, in 28 spans."""
    masks = [span_mask(568, generator(seed)) for seed in range(50)]
    lengths = [length for mask in masks for noise, length in runs_of(mask) if noise]
    assert {sum(mask) for mask in masks} == {85} and abs(85 / 568 - 0.15) < 0.001
    assert len(lengths) == 50 * 28 and abs(sum(lengths) / len(lengths) - 3) < 0.05
    assert min(lengths) == 1 and max(lengths) > 8                       # 3 on average, not 3 always


def test_every_mask_is_as_likely_as_every_other():
    """33 tokens, 5 of them noise in 2 spans: 4 · 27 masks with two kept and two removed runs."""
    n, noise, spans = 33, 5, 2
    possible = set()
    for a, b, c in itertools.product(range(1, n), repeat=3):
        if a + b + c < n and b + (n - a - b - c) == noise:
            possible.add((False,) * a + (True,) * b + (False,) * c + (True,) * (n - a - b - c))
    assert len(possible) == 108 and span_counts(n) == (noise, spans)
    g, draws = generator(2), 21_600
    seen = Counter(tuple(span_mask(n, g)) for _ in range(draws))
    assert set(seen) == possible
    chi_squared = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert chi_squared < 107 + 5 * (2 * 107) ** 0.5         # mean 107, standard deviation √214


def test_segments_are_never_empty_and_add_up():
    g = generator(3)
    for n_items, n_segments in ((1, 1), (5, 5), (9, 2), (12, 7)):
        seen = set()
        for _ in range(3000):
            segments = random_segments(n_items, n_segments, g)
            assert len(segments) == n_segments and sum(segments) == n_items and min(segments) >= 1
            seen.add(tuple(segments))
        cuts = itertools.combinations(range(1, n_items), n_segments - 1)
        assert len(seen) == len(list(cuts))


def test_a_kept_run_is_first_and_a_removed_one_last():
    g = generator(4)
    for n in range(2, 120):
        mask = span_mask(n, g)
        runs = runs_of(mask)
        assert not mask[0] and mask[-1] and len(mask) == n
        assert (sum(mask), len(runs) / 2) == span_counts(n)
    assert span_mask(1, g) == [False]
    assert span_mask(30, g) == [False] * 26 + [True] * 4    # up to 30 tokens: one span, at the end
    assert len({tuple(span_mask(31, g)) for _ in range(50)}) > 10


def test_sentinels_descend_from_the_top_and_one_closes():
    text = list(range(10, 110))
    mask = span_mask(100, generator(5))
    _, spans = span_counts(100)
    assert spans == 5
    source, target = corrupt_spans(text, mask, V, END)
    assert [token for token in source if token >= 150] == [199, 198, 197, 196, 195]
    assert [token for token in target if token >= 150] == [199, 198, 197, 196, 195, 194]
    assert source[-1] == END and target[-2:] == [194, END]
    # A span of the target is what the input lacks between the neighbours of its sentinel.
    for k, sentinel in enumerate([199, 198, 197, 196, 195]):
        at = source.index(sentinel)
        span = target[target.index(sentinel) + 1:target.index(sentinel - 1)]
        assert span == list(range(source[at - 1] + 1, (source[at + 1] if k < 4 else 110)))


def test_lengths_are_what_is_expected():
    g = generator(6)
    for n in [*range(1, 200), 512, 568]:
        for _ in range(3):
            source, target = corrupt_spans([7] * n, span_mask(n, g), V, END)
            assert (len(source), len(target)) == expected_lengths(n), n
    assert expected_lengths(1) == (2, 2)
    # The paper's code takes the longest text whose input fits in 512. Its targets of 114 have no
    # closing sentinel.
    longest = max(n for n in range(1, 1000) if expected_lengths(n)[0] <= 512)
    assert (longest, *expected_lengths(longest)) == (568, 512, 114 + 1)
    assert expected_lengths(100, 0.5, 5.0) == (50 + 10 + 1, 50 + 10 + 1 + 1)


def test_the_generator_decides():
    assert span_mask(90, generator(7)) == span_mask(90, generator(7)) != span_mask(90, generator(8))


def test_a_sentinel_out_of_turn_is_a_token():
    assert split_at_sentinels([8, 199, 5, 197, 6, 198, END], V) == [[8], [5, 197, 6], [END]]
    assert split_at_sentinels([], V) == [[]]


@pytest.mark.parametrize("held", [199, 198, 197])
def test_a_text_that_holds_its_own_sentinels_is_refused(held):
    with pytest.raises(ValueError, match=f"holds id {held}, but 197 to 199 are its sentinels"):
        corrupt_spans([5, held, 6, 7], [True, False, True, False], V, END)


def test_just_below_its_sentinels_a_text_may_be_anything():
    source, target = corrupt_spans([196, 195, 196], [True, False, True], V, END)
    assert (source, target) == ([199, 195, 198, END], [199, 196, 198, 196, 197, END])
    assert restore(source, target, V, END) == [196, 195, 196]


@pytest.mark.parametrize("source, target", [
    ([5, 199, END], [199, 6, END]),                     # no closing sentinel
    ([5, 199, END], [199, 6, 198, 7, 197, END]),        # a span too many
    ([5, 199, 8, 198, END], [199, 6, 198, END]),        # a span too few
    ([5, 199, END], [4, 199, 6, 198, END]),             # something before the first sentinel
    ([5, 199, END], [199, 6, 198, 7, END]),             # something after the closing one
])
def test_what_does_not_belong_together_is_refused(source, target):
    with pytest.raises(ValueError, match="target must have the input's sentinels"):
        restore(source, target, V, END)


@pytest.mark.parametrize("source, target", [
    ([5, 199], [199, 6, 198, END]), ([5, 199, END], [199, 6, 198]), ([], [199, 6, 198, END]),
    ([5, 199, END], []), ([END, 199], [END, 198]),
])
def test_an_input_or_a_target_without_its_end_is_refused(source, target):
    with pytest.raises(ValueError, match="both end with </s>, which is 1"):
        restore(source, target, V, END)


def test_the_last_settings_that_are_allowed():
    assert span_counts(2, 1e-9) == (1, 1) and span_counts(10, 1 - 1e-9) == (9, 1)
    assert span_counts(10, 0.3, 1.0) == (3, 3) and span_counts(10, 0.3, 1e9) == (3, 1)


@pytest.mark.parametrize("arguments", [(0,), (10, 0.0), (10, 1.0), (10, 0.15, 0.99)])
def test_settings_without_a_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match="spans need n_tokens"):
        span_counts(*arguments)


def test_a_mask_of_another_length_is_refused():
    for mask in ([False, True], [False] * 4):
        with pytest.raises(ValueError, match="argument 2 is"):
            corrupt_spans([5, 6, 7], mask, V, END)
