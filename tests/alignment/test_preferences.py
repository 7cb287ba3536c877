"""Labels against their probabilities: by exponentials, by counting, and by trying all judges."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.preferences import (
    Pairs,
    accuracy_ceiling,
    check_margins,
    compare,
    loss_floor,
    pair_accuracy,
    preference_probability,
)
from minigpt.alignment.rollouts import Rollout

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- probabilities ----

def test_a_choice_has_a_probability_in_proportion_to_e_to_the_reward():
    a = torch.tensor([0.3, -2.0, 4.0, 1.0], dtype=F64)
    b = torch.tensor([1.1, -2.5, 1.0, 1.0], dtype=F64)
    right = [math.exp(x) / (math.exp(x) + math.exp(y)) for x, y in zip(a.tolist(), b.tolist())]
    for flip in (0.0, 0.1, 0.49):
        expected = [p * (1 - flip) + (1 - p) * flip for p in right]     # label right, or exchanged
        got = preference_probability(a, b, flip)
        assert got.tolist() == pytest.approx(expected, abs=1e-14)
        both = got + preference_probability(b, a, flip)
        assert both.tolist() == pytest.approx([1] * 4, abs=1e-14)
    assert preference_probability(a + 7, b + 7).tolist() == pytest.approx(right)


def test_large_and_infinite_rewards_give_the_limit():
    far = torch.tensor([2000.0, torch.inf, 0.0])
    near = torch.tensor([0.0, 0.0, torch.inf])
    assert preference_probability(far, near).tolist() == [1, 1, 0]


@pytest.mark.parametrize("flip", [-0.01, 0.5, math.nan])
def test_a_flip_that_leaves_nothing_to_learn_is_refused(flip):
    with pytest.raises(ValueError, match="flip is the probability of a wrong label"):
        preference_probability(torch.zeros(1), torch.zeros(1), flip)


@pytest.mark.parametrize("reward", [math.inf, -math.inf, math.nan])
def test_rewards_without_a_difference_are_refused(reward):
    both = torch.tensor([0.0, reward])
    with pytest.raises(ValueError, match="difference of two rewards is not a number"):
        preference_probability(both, both)


# ---- labels ----

def some_answers(n):
    """n answers that differ in every token, with masks of different lengths from column 0 on."""
    tokens = torch.arange(n)[:, None] * 10 + torch.arange(4)            # (n, 4)
    mask = torch.arange(4) < 1 + torch.arange(n)[:, None] % 4
    return Rollout(tokens, mask, torch.zeros(n, 3))


def test_a_pair_is_two_neighbours_with_their_own_masks():
    answers = some_answers(12)
    rewards = torch.tensor([50.0, -50, -50, 50, 0, 90, 70, 0, -9, -99, 0, 60])
    pairs = compare(answers, rewards, seeded(0))
    better, worse = [0, 3, 5, 6, 8, 11], [1, 2, 4, 7, 9, 10]
    assert torch.equal(pairs.chosen, answers.tokens[better])
    assert torch.equal(pairs.rejected, answers.tokens[worse])
    assert torch.equal(pairs.chosen_mask, answers.mask[better])
    assert torch.equal(pairs.rejected_mask, answers.mask[worse])
    assert len(pairs) == 6


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_labels_are_as_frequent_as_they_should_be(flip):
    n, a, b = 20_000, 0.8, -0.1
    answers = some_answers(2)[torch.tensor([0, 1] * n)]
    pairs = compare(answers, torch.tensor([a, b] * n), seeded(1), flip)
    p = math.exp(a) / (math.exp(a) + math.exp(b))
    expected = (1 - flip) * p + flip * (1 - p)
    frequency = (pairs.chosen[:, 0] == 0).float().mean().item()
    five_errors = 5 * math.sqrt(expected * (1 - expected) / n)
    assert frequency == pytest.approx(expected, abs=five_errors)
    assert ((pairs.chosen[:, 0] == 0) != (pairs.rejected[:, 0] == 0)).all()


def test_a_generator_fixes_the_labels():
    def chosen(seed):
        return compare(some_answers(200), torch.zeros(200), seeded(seed)).chosen

    assert torch.equal(chosen(3), chosen(3)) and not torch.equal(chosen(3), chosen(4))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_answers_that_do_not_make_pairs_are_refused(n):
    assert len(compare(some_answers(2), torch.zeros(2), seeded(0))) == 1
    with pytest.raises(ValueError, match=f"an even number of at least 2, not {n}"):
        compare(some_answers(n), torch.zeros(n), seeded(0))


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_another_number_of_rewards_is_refused(shape):
    compare(some_answers(4), torch.zeros(4), seeded(0))
    with pytest.raises(ValueError, match="each of 4 answers needs one reward"):
        compare(some_answers(4), torch.zeros(shape), seeded(0))


def rollout_of(rows, mask):
    tokens = torch.tensor(rows)
    return Rollout(tokens, torch.tensor(mask).bool(), torch.zeros(len(rows), tokens.size(1) - 1))


PROMPT = [[1, 2, 5, 5], [1, 2, 6, 0]]                                   # two answers to "1 2"
PROMPT_MASK = [[0, 0, 1, 1], [0, 0, 1, 0]]


def test_two_answers_to_the_same_prompt_are_compared():
    pairs = compare(rollout_of(PROMPT, PROMPT_MASK), torch.tensor([9.0, -90]), seeded(0))
    assert pairs.chosen.tolist() == PROMPT[:1] and pairs.rejected.tolist() == PROMPT[1:]


@pytest.mark.parametrize("rows, mask", [
    ([[1, 2, 5, 5], [1, 3, 6, 0]], PROMPT_MASK),                        # another prompt
    ([[3, 2, 5, 5], [1, 2, 6, 0]], PROMPT_MASK),                        # in its first token
    (PROMPT, [[0, 0, 1, 1], [0, 1, 1, 0]]),                             # a shorter prompt
    (PROMPT, [[0, 1, 1, 1], [0, 0, 1, 0]]),
    (PROMPT, [[0, 0, 1, 1], [0, 0, 0, 0]]),                             # no answer
    (PROMPT, [[0, 0, 0, 0], [0, 0, 1, 0]]),
    ([PROMPT[0], PROMPT[0]], [[0, 0, 0, 0], [0, 0, 0, 0]]),
    (PROMPT, [[1, 1, 1, 1], [0, 0, 0, 0]]),
    (PROMPT, [[0, 0, 0, 0], [1, 1, 1, 1]]),
])
def test_two_answers_to_different_prompts_are_refused(rows, mask):
    """They stand in rows 2 and 3, after a pair that is in order; the message names them."""
    answers = rollout_of(PROMPT + rows, PROMPT_MASK + mask)
    with pytest.raises(ValueError, match="rows 2 and 3 do not answer the same prompt"):
        compare(answers, torch.zeros(4), seeded(0))


# ---- pairs ----

def five_pairs():
    tokens, mask = torch.arange(40).view(10, 4), torch.rand(10, 4, generator=seeded(2)) < 0.5
    return Pairs(tokens[:5], mask[:5], tokens[5:], mask[5:])


@pytest.mark.parametrize("rows, expected", [
    (torch.tensor([4, 1]), [4, 1]),
    (slice(1, 4), [1, 2, 3]),
    (torch.tensor([True, False, False, True, False]), [0, 3]),
    (2, [2]),
    (-1, [4]),
])
def test_some_of_the_pairs_can_be_taken(rows, expected):
    pairs = five_pairs()
    part = pairs[rows]
    assert isinstance(part, Pairs) and len(part) == len(expected)
    for name in ("chosen", "chosen_mask", "rejected", "rejected_mask"):
        assert torch.equal(getattr(part, name), getattr(pairs, name)[expected])


def test_a_loop_over_pairs_gives_each_and_ends():
    pairs = five_pairs()
    assert [pair.chosen[0, 0].item() for pair in pairs] == pairs.chosen[:, 0].tolist()
    with pytest.raises(IndexError):
        pairs[5]


def test_pairs_whose_parts_do_not_fit_are_refused():
    p = five_pairs()
    for bad in ((p.chosen, p.chosen_mask.int(), p.rejected, p.rejected_mask),
                (p.chosen, p.chosen_mask, p.rejected, p.rejected_mask[:, 1:]),
                (p.chosen, p.chosen_mask[1:], p.rejected, p.rejected_mask),
                (p.chosen, p.chosen_mask, p.rejected, p.rejected_mask.float())):
        with pytest.raises(ValueError, match="mask"):
            Pairs(*bad)
    with pytest.raises(ValueError, match="5 chosen answers came with 4 rejected"):
        Pairs(p.chosen, p.chosen_mask, p.rejected[1:], p.rejected_mask[1:])


# ---- what the best learner reaches ----

def test_the_ceiling_is_the_best_of_all_judges():
    p = torch.tensor([0.9, 0.35, 0.5, 0.62], dtype=F64)
    judges = [
        sum(q if says_a else 1 - q for q, says_a in zip(p.tolist(), verdict)) / 4
        for verdict in itertools.product((False, True), repeat=4)
    ]
    assert accuracy_ceiling(p) == pytest.approx(max(judges), abs=1e-14)
    assert accuracy_ceiling(torch.tensor([0.0, 1.0])) == 1


def test_the_floor_is_the_least_expected_loss_over_all_margins():
    p = torch.tensor([0.9, 0.35, 0.5, 0.62], dtype=F64)
    margins = torch.linspace(-4, 4, 80_001, dtype=F64)[:, None]         # (M, 1)
    log_a, log_b = -torch.log1p(torch.exp(-margins)), -torch.log1p(torch.exp(margins))
    losses = -p * log_a - (1 - p) * log_b                               # (M, 4)
    assert loss_floor(p) == pytest.approx(losses.min(0).values.mean().item(), abs=1e-8)
    assert loss_floor(torch.tensor([0.0, 1.0])) == 0
    assert loss_floor(torch.tensor([0.5])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("function", [accuracy_ceiling, loss_floor])
def test_an_average_needs_at_least_one_probability_and_only_probabilities(function):
    assert function(torch.tensor([0.0])) == function(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="no pair to average over"):
        function(torch.tensor([]))
    for bad in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"a probability lies in \[0, 1\]"):
            function(torch.tensor([0.5, bad]))


@pytest.mark.parametrize("margins, expected", [
    ([3.0], 1.0), ([-3.0], 0.0), ([0.0], 0.5), ([-0.0], 0.5),
    ([1.1e-5], 1.0), ([-1.1e-5], 0.0), ([0.9e-5], 0.5), ([-0.9e-5], 0.5),
    ([math.inf], 1.0), ([-math.inf], 0.0),
    ([1.0, 2.0, 3.0, -4.0, 0.0], 0.7),
])
def test_accuracy_counts_positive_margins_and_half_of_the_ties(margins, expected):
    assert pair_accuracy(torch.tensor(margins)) == pytest.approx(expected)


def test_the_accuracy_of_no_margin_and_of_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no pair to average over"):
        pair_accuracy(torch.tensor([]))
    with pytest.raises(ValueError, match="1 of 2 margins are not a number"):
        pair_accuracy(torch.tensor([1.0, math.nan]))


def test_a_margin_of_infinity_minus_infinity_is_refused_and_a_nan_score_passes():
    inf = torch.tensor([0.0, math.inf])
    check_margins(inf - 0, inf)
    nan = torch.tensor([0.0, math.nan])
    check_margins(nan - nan, nan, nan)
    with pytest.raises(ValueError, match="the margin of 1 of 2 pairs is ∞ − ∞"):
        check_margins(inf - inf, inf, inf)
