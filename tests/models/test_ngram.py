"""N-grams against counts by a loop in exact fractions, and sums over every sequence."""
import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch

from minigpt.generation import generate
from minigpt.models.ngram import NGram
from minigpt.training.windows import held_out_loss

V = 5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(length: int, seed: int = 0, vocab_size: int = V) -> torch.Tensor:
    """A text (N,) where token 0 is common and token V − 1 never occurs."""
    return (torch.rand(length, generator=seeded(seed)) ** 2 * (vocab_size - 1)).long()


def by_hand(
    corpus: list[int], context: tuple, w: int, smoothing: Fraction, vocab_size: int = V
) -> Fraction:
    """P(w | context), by a scan of the corpus for the context: no codes, tables or tensors."""
    k = len(context)
    places = [i for i in range(len(corpus) - k) if tuple(corpus[i:i + k]) == tuple(context)]
    followers = Counter(corpus[i + k] for i in places)
    shorter = Fraction(1, vocab_size)
    if k > 0:
        shorter = by_hand(corpus, context[1:], w, smoothing, vocab_size)
    if not followers:
        return shorter
    weight = smoothing * len(followers)
    return (followers[w] + weight * shorter) / (sum(followers.values()) + weight)


def context_at(tokens: list[int], t: int, order: int) -> tuple:
    """The last n − 1 of the tokens up to t, or all of them if there are fewer."""
    return tuple(tokens[max(0, t + 1 - (order - 1)):t + 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_conditional_equals_a_count_by_hand(order, smoothing):
    corpus = text(60)
    model = NGram(order, V, smoothing).fit(corpus)
    for k in range(order):
        contexts = list(itertools.product(range(V), repeat=k))          # V^k, seen and unseen
        got = model.next_token_probabilities(torch.tensor(contexts, dtype=torch.long))
        wanted = [
            [float(by_hand(corpus.tolist(), c, w, Fraction(smoothing))) for w in range(V)]
            for c in contexts
        ]
        torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_sequence_is_scored_position_by_position(order):
    """Also at the beginning, and in inputs that are shorter than the context."""
    corpus = text(200, seed=1)
    model = NGram(order, V).fit(corpus)
    for length in (1, 2, 3, 7):
        tokens = torch.randint(V, (3, length), generator=seeded(2))
        logits = model(tokens)
        assert logits.shape == (3, length, V)
        for b, t, w in itertools.product(range(3), range(length), range(V)):
            context = context_at(tokens[b].tolist(), t, order)
            wanted = math.log(by_hand(corpus.tolist(), context, w, Fraction(1)))
            assert logits[b, t, w].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_all_sequences_of_a_length_sum_to_one(order):
    model = NGram(order, 3).fit(text(40, vocab_size=4).clamp(max=2))
    first = model.next_token_probabilities(torch.empty(0, dtype=torch.long))            # (V,) P_1
    for length in (1, 2, 3, 4):
        sequences = torch.tensor(list(itertools.product(range(3), repeat=length)))
        total = first[sequences[:, 0]].log()
        if length > 1:
            logprobs = model(sequences[:, :-1])
            total = total + logprobs.gather(2, sequences[:, 1:, None])[..., 0].sum(1)
        assert total.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_without_smoothing_it_is_the_ratio_of_counts():
    model = NGram(2, 3, smoothing=0.0).fit(torch.tensor([0, 1, 0, 2, 0, 1]))
    after_0, after_1, after_2 = model(torch.tensor([[0, 1, 2]])).exp()[0].tolist()
    assert after_0 == [0, pytest.approx(2 / 3), pytest.approx(1 / 3)]                   # 1, 2, 1
    assert after_1 == after_2 == [1, 0, 0]
    assert held_out_loss(model, torch.tensor([0, 1, 1]))[0] == math.inf


def test_the_ratio_of_counts_is_the_limit_of_little_smoothing():
    corpus, tokens = text(80), text(30, seed=3)[None]
    ratio, nearly = (NGram(3, V, k).fit(corpus)(tokens).exp() for k in (0.0, 1e-6))
    torch.testing.assert_close(ratio, nearly, atol=1e-5, rtol=0)


def test_much_smoothing_gives_the_uniform_distribution_and_overflows_nothing():
    probabilities = NGram(3, V, 1e9).fit(text(80))(text(30, seed=3)[None]).exp()
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / V))


def test_seen_says_whether_the_context_was_counted():
    corpus, tokens = text(50).tolist(), torch.randint(V, (2, 9), generator=seeded(4))
    for order in (1, 2, 3, 4):
        # The last tokens of the corpus are no context, because no token follows them.
        counted = {tuple(corpus[i:i + k]) for k in range(order) for i in range(len(corpus) - k)}
        wanted = [
            [context_at(row, t, order) in counted for t in range(9)] for row in tokens.tolist()
        ]
        assert NGram(order, V).fit(torch.tensor(corpus)).seen(tokens).tolist() == wanted


def test_a_second_fit_replaces_the_first():
    first, second, tokens = text(40, seed=5), text(40, seed=6), text(11, seed=7)[None]
    model = NGram(3, V).fit(first).fit(second)
    alone = NGram(3, V).fit(second)(tokens)
    assert torch.equal(model(tokens), alone)
    with pytest.raises(ValueError, match="outside a vocabulary"):
        model.fit(torch.tensor([0, 1, V]))
    assert torch.equal(model(tokens), alone)            # a refused text changes nothing


def test_held_out_loss_and_generate_accept_it():
    corpus = torch.tensor([0, 1, 2, 3] * 50)
    model = NGram(3, 4, smoothing=0.0).fit(corpus)
    drawn = generate(model, torch.tensor([[1], [3]]), 6, generator=seeded(0))
    assert drawn.tolist() == [[1, 2, 3, 0, 1, 2, 3], [3, 0, 1, 2, 3, 0, 1]]
    assert held_out_loss(model, corpus)[0] == pytest.approx(0, abs=1e-6)        # all is certain
    model.context_length = 4                                    # the text grows beyond the context
    assert generate(model, torch.tensor([[1]]), 9).tolist() == [[1, 2, 3, 0, 1, 2, 3, 0, 1, 2]]


def test_the_frequencies_of_samples_are_the_conditionals():
    model = NGram(2, V).fit(text(30))
    zeros = torch.zeros(20_000, 1, dtype=torch.long)
    drawn = generate(model, zeros, 1, generator=seeded(8))[:, 1]
    frequencies = drawn.bincount(minlength=V) / 20_000
    wanted = [float(by_hand(text(30).tolist(), (0,), w, Fraction(1))) for w in range(V)]
    torch.testing.assert_close(frequencies, torch.tensor(wanted), atol=0.015, rtol=0)   # 4 std


def test_sizes_are_refused():
    for order, vocab_size in ((0, 5), (2, 0)):
        with pytest.raises(ValueError, match="must be a whole number of at least 1, not 0"):
            NGram(order, vocab_size)
    NGram(1, 1)


def test_smoothing_is_refused():
    for legal in (0, 1e9):
        NGram(2, 5, smoothing=legal)
    for bad in (-1, -1e-9, 1.1e9, math.nan, math.inf):
        with pytest.raises(ValueError, match="smoothing must be a number from 0 to"):
            NGram(2, 5, smoothing=bad)


def test_more_n_grams_than_int64_can_number_are_refused():
    for order, vocab_size in ((6, 1000), (63, 2)):              # 1000^6 < 2^63 < 1000^7
        NGram(order, vocab_size)
        with pytest.raises(ValueError, match=f"cannot number {vocab_size}\\^{order + 1} n-grams"):
            NGram(order + 1, vocab_size)


def test_texts_to_count_are_refused():
    model = NGram(3, 5)
    model.fit(torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="at least 3, the order"):
        model.fit(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(N,\)"):
        model.fit(torch.zeros(2, 9, dtype=torch.long))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=f"id {bad} is outside a vocabulary of 5"):
            model.fit(torch.tensor([0, bad, 1]))
    with pytest.raises(ValueError, match="give an integer tensor"):
        model.fit(torch.tensor([0.0, 1.0, 2.0]))


def test_inputs_are_refused():
    with pytest.raises(ValueError, match="call fit"):
        NGram(2, 5)(torch.tensor([[0]]))
    model = NGram(2, 5).fit(text(9))
    model.next_token_probabilities(torch.tensor([0]))
    with pytest.raises(ValueError, match="looks at 1 tokens at most, not 2"):
        model.next_token_probabilities(torch.tensor([0, 1]))
    model(torch.tensor([[0, 4]]))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=f"id {bad} is outside a vocabulary of 5"):
            model(torch.tensor([[0, bad]]))
