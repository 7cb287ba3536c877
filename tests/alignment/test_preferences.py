"""Labels against their own probabilities: by exponentials, by counting, and by trying every judge there is."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.preferences import (
    Pairs,
    accuracy_ceiling,
    compare,
    loss_floor,
    preference_probability,
)
from minigpt.alignment.rollouts import Rollout

F64 = torch.float64


def test_a_choice_is_made_in_proportion_to_e_to_the_reward():
    a, b = torch.tensor([0.3, -2.0, 4.0, 1.0], dtype=F64), torch.tensor([1.1, -2.5, 1.0, 1.0], dtype=F64)
    for flip in (0.0, 0.1, 0.5):
        right = [math.exp(x) / (math.exp(x) + math.exp(y)) for x, y in zip(a.tolist(), b.tolist())]
        wanted = [p * (1 - flip) + (1 - p) * flip for p in right]       # the slip of the hand, case by case
        assert preference_probability(a, b, flip).tolist() == pytest.approx(wanted, abs=1e-14)
        assert (preference_probability(a, b, flip) + preference_probability(b, a, flip)).tolist() == pytest.approx([1] * 4, abs=1e-14)
    assert preference_probability(torch.tensor(2000.0), torch.tensor(0.0)) == 1 and preference_probability(a + 7, b + 7).tolist() == pytest.approx(right)


@pytest.mark.parametrize("flip", [-0.01, 0.51, math.nan])
def test_a_flip_that_is_no_slip_is_refused(flip):
    with pytest.raises(ValueError, match="flip"):
        preference_probability(torch.zeros(1), torch.zeros(1), flip)


def some_answers(n):
    """n answers that can be told apart by any of their tokens; masks of different lengths."""
    tokens = torch.arange(n)[:, None] * 10 + torch.arange(4)            # (n, 4)
    mask = torch.arange(4) < 1 + torch.arange(n)[:, None] % 4
    return Rollout(tokens, mask, torch.zeros(n, 3))


def test_pairs_are_neighbours_whole_and_with_their_own_masks():
    answers = some_answers(12)
    rewards = torch.tensor([50.0, -50, -50, 50, 0, 90, 70, 0, -9, -99, 0, 60])
    pairs = compare(answers, rewards, torch.Generator().manual_seed(0))
    better = [0, 3, 5, 6, 8, 11]
    worse = [1, 2, 4, 7, 9, 10]
    assert torch.equal(pairs.chosen, answers.tokens[better]) and torch.equal(pairs.rejected, answers.tokens[worse])
    assert torch.equal(pairs.chosen_mask, answers.mask[better]) and torch.equal(pairs.rejected_mask, answers.mask[worse])
    assert len(pairs) == 6
    part = pairs[torch.tensor([4, 1])]
    assert len(part) == 2 and part.chosen[0, 0] == 80 and part.rejected[0, 0] == 90 and torch.equal(part.chosen_mask[1], answers.mask[3])
    assert isinstance(part, Pairs)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_labels_come_as_often_as_they_should(flip):
    n = 20_000
    a, b = 0.8, -0.1
    pairs = compare(some_answers(2)[torch.tensor([0, 1] * n)], torch.tensor([a, b] * n), torch.Generator().manual_seed(1), flip)
    p = math.exp(a) / (math.exp(a) + math.exp(b))
    wanted = (1 - flip) * p + flip * (1 - p)
    assert (pairs.chosen[:, 0] == 0).float().mean().item() == pytest.approx(wanted, abs=5 * math.sqrt(wanted * (1 - wanted) / n))
    assert ((pairs.chosen[:, 0] == 0) != (pairs.rejected[:, 0] == 0)).all()


def test_labels_repeat_with_their_generator():
    draw = lambda seed: compare(some_answers(200), torch.zeros(200), torch.Generator().manual_seed(seed)).chosen   # noqa: E731
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))


def test_an_odd_one_out_is_refused():
    with pytest.raises(ValueError, match="two by two"):
        compare(some_answers(3), torch.zeros(3), torch.Generator())


def test_the_ceiling_is_the_best_of_all_judges_and_the_floor_the_best_of_all_margins():
    p = torch.tensor([0.9, 0.35, 0.5, 0.62], dtype=F64)
    judges = (sum(q if says else 1 - q for q, says in zip(p.tolist(), verdict)) / 4 for verdict in itertools.product((0, 1), repeat=4))
    assert accuracy_ceiling(p) == pytest.approx(max(judges), abs=1e-14)
    margins = torch.linspace(-4, 4, 80_001, dtype=F64)[:, None]         # (M, 1): each pair takes the best margin of its own
    losses = -p * torch.log(1 / (1 + torch.exp(-margins))) - (1 - p) * torch.log(1 / (1 + torch.exp(margins)))
    assert loss_floor(p) == pytest.approx(losses.min(0).values.mean().item(), abs=1e-8)
    assert loss_floor(torch.tensor([0.0, 1.0])) == 0 and accuracy_ceiling(torch.tensor([0.0, 1.0])) == 1
    assert loss_floor(torch.tensor([0.5])) == pytest.approx(math.log(2))
