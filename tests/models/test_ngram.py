"""N-grams against dictionaries filled by a loop, exact fractions, and sums over every sequence that there is."""
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


def text(length: int, seed: int = 0, vocab_size: int = V) -> torch.Tensor:
    """Uneven on purpose: token 0 is common, token V − 1 is never written."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(length, generator=generator) ** 2 * (vocab_size - 1)).long()


def by_hand(corpus: list[int], context: tuple, w: int, smoothing: Fraction, vocab_size: int = V) -> Fraction:
    """P(w | context) by scanning the corpus for the context, in exact fractions: no codes, no tables, no tensors."""
    k = len(context)
    followers = Counter(corpus[i + k] for i in range(len(corpus) - k) if tuple(corpus[i:i + k]) == tuple(context))
    shorter = Fraction(1, vocab_size) if k == 0 else by_hand(corpus, context[1:], w, smoothing, vocab_size)
    if not followers:
        return shorter
    weight = smoothing * len(followers)
    return (followers[w] + weight * shorter) / (sum(followers.values()) + weight)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_conditional_equals_a_count_by_hand(order, smoothing):
    corpus = text(60)
    model = NGram(order, V, smoothing).fit(corpus)
    for k in range(order):
        contexts = torch.tensor(list(itertools.product(range(V), repeat=k)), dtype=torch.long)     # (V^k, k) seen and unseen ones
        got = model.next_token_probabilities(contexts)
        wanted = [[float(by_hand(corpus.tolist(), tuple(c), w, Fraction(smoothing))) for w in range(V)] for c in contexts.tolist()]
        torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_sequence_is_scored_position_by_position(order):
    """Each position looks at itself and the n − 2 before it, or at what there is; also in inputs shorter than the context."""
    corpus = text(200, seed=1)
    model = NGram(order, V).fit(corpus)
    for length in (1, 2, 3, 7):
        tokens = torch.randint(V, (3, length), generator=torch.Generator().manual_seed(2))
        logits = model(tokens)
        assert logits.shape == (3, length, V)
        for b, t, w in itertools.product(range(3), range(length), range(V)):
            context = tuple(tokens[b, max(0, t + 1 - (order - 1)):t + 1].tolist())
            assert logits[b, t, w].item() == pytest.approx(math.log(by_hand(corpus.tolist(), context, w, Fraction(1))), abs=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_all_sequences_of_a_length_sum_to_one(order):
    model = NGram(order, 3).fit(text(40, vocab_size=4).clamp(max=2))
    first = model.next_token_probabilities(torch.empty(0, dtype=torch.long))                   # (V,) P_1
    for length in (1, 2, 3, 4):
        sequences = torch.tensor(list(itertools.product(range(3), repeat=length)))              # (3^length, length)
        total = first[sequences[:, 0]].log()
        if length > 1:
            logprobs = model(sequences[:, :-1])
            total = total + logprobs.gather(2, sequences[:, 1:, None])[..., 0].sum(1)
        assert total.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_without_smoothing_it_is_the_ratio_of_counts_and_says_impossible():
    model = NGram(2, 3, smoothing=0.0).fit(torch.tensor([0, 1, 0, 2, 0, 1]))                    # 0 → 1, 2, 1; 1 → 0; 2 → 0
    assert model(torch.tensor([[0, 1, 2]])).exp()[0].tolist() == [[0, pytest.approx(2 / 3), pytest.approx(1 / 3)], [1, 0, 0], [1, 0, 0]]
    assert held_out_loss(model, torch.tensor([0, 1, 1]))[0] == math.inf


def test_the_ratio_of_counts_is_the_limit_of_little_smoothing():
    corpus, tokens = text(80), text(30, seed=3)[None]
    ratio, nearly = (NGram(3, V, k).fit(corpus)(tokens).exp() for k in (0.0, 1e-6))
    torch.testing.assert_close(ratio, nearly, atol=1e-5, rtol=0)


def test_seen_says_whether_the_context_was_counted():
    corpus, tokens = text(50), torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(4))
    for order in (1, 2, 3, 4):
        followed = {tuple(corpus.tolist()[i:i + k]) for k in range(order) for i in range(len(corpus) - k)}      # a token stands after each
        wanted = [[tuple(row[max(0, t + 1 - (order - 1)):t + 1]) in followed for t in range(9)] for row in tokens.tolist()]
        assert NGram(order, V).fit(corpus).seen(tokens).tolist() == wanted


def test_a_second_fit_forgets_the_first():
    first, second, tokens = text(40, seed=5), text(40, seed=6), text(11, seed=7)[None]
    assert torch.equal(NGram(3, V).fit(first).fit(second)(tokens), NGram(3, V).fit(second)(tokens))


def test_held_out_loss_and_generate_take_it_as_it_is():
    corpus = torch.tensor([0, 1, 2, 3] * 50)
    model = NGram(3, 4, smoothing=0.0).fit(corpus)
    drawn = generate(model, torch.tensor([[1], [3]]), 6, generator=torch.Generator().manual_seed(0))
    assert drawn.tolist() == [[1, 2, 3, 0, 1, 2, 3], [3, 0, 1, 2, 3, 0, 1]]
    assert held_out_loss(model, corpus)[0] == pytest.approx(0, abs=1e-6)                        # 0 nats: nothing is left to guess
    model.context_length = 4
    assert generate(model, torch.tensor([[1]]), 9).tolist() == [[1, 2, 3, 0, 1, 2, 3, 0, 1, 2]]         # past the context length


def test_samples_come_as_often_as_the_conditionals_say():
    model = NGram(2, V).fit(text(30))
    drawn = generate(model, torch.zeros(20_000, 1, dtype=torch.long), 1, generator=torch.Generator().manual_seed(8))[:, 1]
    wanted = torch.tensor([float(by_hand(text(30).tolist(), (0,), w, Fraction(1))) for w in range(V)])
    torch.testing.assert_close(drawn.bincount(minlength=V) / 20_000, wanted, atol=0.015, rtol=0)        # 4 standard errors


def test_bad_input_is_told_what_to_do():
    with pytest.raises(ValueError, match="order and vocab_size must be at least 1, not 0 and 5"):
        NGram(0, 5)
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"smoothing must be a number, 0 or more, not {bad}"):
            NGram(2, 5, smoothing=bad)
    with pytest.raises(ValueError, match="take order 6 or less"):                               # 1000^6 < 2^63 < 1000^7
        NGram(7, 1000)
    with pytest.raises(ValueError, match="take order 63 or less"):
        NGram(64, 2)
    with pytest.raises(ValueError, match="has 1000\\^200 n-grams"):
        NGram(200, 1000)
    NGram(6, 1000), NGram(63, 2)
    with pytest.raises(ValueError, match="at least 3, the order"):
        NGram(3, 5).fit(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(N,\)"):
        NGram(3, 5).fit(torch.zeros(2, 9, dtype=torch.long))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=f"id {bad} is outside a vocabulary of 5"):
            NGram(2, 5).fit(torch.tensor([0, bad, 1]))
        with pytest.raises(ValueError, match=f"id {bad} is outside a vocabulary of 5"):
            NGram(2, 5).fit(torch.tensor([0, 1]))(torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match="whole numbers"):
        NGram(2, 5).fit(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="call fit"):
        NGram(2, 5)(torch.tensor([[0]]))
    with pytest.raises(ValueError, match="looks at 1 tokens at most, not 2"):
        NGram(2, 5).fit(text(9)).next_token_probabilities(torch.tensor([0, 1]))
    for bad in (torch.zeros(3, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="at least one token"):
            NGram(2, 5).fit(text(9))(bad)
