"""Reward models: Bradley–Terry by exponentials, the last token, training to the true rewards."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.exact import Table
from minigpt.alignment.preferences import Pairs, compare, loss_floor, preference_probability
from minigpt.alignment.reward_model import (
    RewardModel,
    ValueModel,
    best_of_k_loss,
    bradley_terry_loss,
    reward_accuracy,
    reward_loss,
)
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def small_gpt():
    """Its weights are large, so that two inputs give clearly different outputs."""
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8)
    body = GPT(config, seeded(0)).double()
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return body


def reward_model():
    values = ValueModel(small_gpt())
    with torch.no_grad():
        values.head.weight.normal_(generator=seeded(1))
        values.head.bias.fill_(0.3)
    return RewardModel(values)


# ---- 9: the loss ----

def test_the_loss_is_minus_the_log_of_the_probability_of_the_choice():
    a, b = [0.4, -1.0, 3.0], [1.2, -1.5, 0.5]
    p = [math.exp(x) / (math.exp(x) + math.exp(y)) for x, y in zip(a, b)]
    expected = -sum(map(math.log, p)) / 3
    a, b = torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)
    assert bradley_terry_loss(a, b).item() == pytest.approx(expected, abs=1e-14)
    shift = torch.tensor([5.0, -80.0, 1.0], dtype=F64)                  # a constant for each prompt
    assert bradley_terry_loss(a + shift, b + shift).item() == pytest.approx(expected, abs=1e-12)
    assert bradley_terry_loss(a, a).item() == pytest.approx(math.log(2))


def test_the_loss_stays_finite_where_the_sigmoid_underflows():
    r = torch.tensor([-1000.0], requires_grad=True)
    loss = bradley_terry_loss(r, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(1000) and r.grad.item() == -1
    assert (-torch.log(torch.sigmoid(torch.tensor(-1000.0)))).isinf()   # the formula as written


@pytest.mark.parametrize("chosen, rejected, loss, slope", [
    (math.inf, 0.0, 0.0, 0.0),
    (0.0, -math.inf, 0.0, 0.0),
    (-math.inf, 0.0, math.inf, -1.0),
    (0.0, math.inf, math.inf, -1.0),
    (math.inf, -math.inf, 0.0, 0.0),
    (-math.inf, math.inf, math.inf, -1.0),
])
def test_an_infinite_reward_gives_the_limits_of_loss_and_gradient(chosen, rejected, loss, slope):
    r = torch.tensor([[chosen], [rejected]], requires_grad=True)
    value = bradley_terry_loss(*r)
    (slopes,) = torch.autograd.grad(value, r)
    assert value.item() == loss and slopes.flatten().tolist() == [slope, -slope]


@pytest.mark.parametrize("both", [math.inf, -math.inf])
def test_a_margin_without_a_limit_is_refused(both):
    r = torch.tensor([1.0, both])
    with pytest.raises(ValueError, match="1 of 2 pairs is ∞ − ∞"):
        bradley_terry_loss(r, r)
    nan = torch.tensor([math.nan])
    assert bradley_terry_loss(nan, nan).isnan()                         # `train` reports this one


@pytest.mark.parametrize("chosen, rejected", [((0,), (0,)), ((2,), (3,)), ((2, 1), (2,))])
def test_no_pair_and_different_shapes_are_refused(chosen, rejected):
    bradley_terry_loss(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="one reward for each answer of at least one pair"):
        bradley_terry_loss(torch.zeros(chosen), torch.zeros(rejected))


def test_the_gradients_of_the_two_answers_sum_to_zero():
    r = torch.randn(2, 6, generator=seeded(0), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(bradley_terry_loss(r[0], r[1]), r)
    p = [math.exp(x) / (math.exp(x) + math.exp(y)) for x, y in zip(*r.tolist())]
    assert slope[0].tolist() == pytest.approx([-(1 - q) / 6 for q in p], abs=1e-14)
    assert slope.sum(0).abs().max() < 1e-15


def test_the_floor_is_reached_at_the_true_rewards_and_nowhere_else():
    """The expected loss over all 21 pairs of 7 answers has its minimum at r plus any constant."""
    r = torch.randn(7, generator=seeded(2), dtype=F64)
    i, j = torch.tensor(list(itertools.combinations(range(7), 2))).T
    p = preference_probability(r[i], r[j])

    def expected_loss(learned):
        a, b = learned[i][:, None], learned[j][:, None]                 # (21, 1) each
        terms = [q * bradley_terry_loss(x, y) + (1 - q) * bradley_terry_loss(y, x)
                 for q, x, y in zip(p, a, b)]
        return torch.stack(terms).mean()

    shifted = (r + 3).requires_grad_()
    loss = expected_loss(shifted)
    (slope,) = torch.autograd.grad(loss, shifted)
    assert slope.abs().max() < 1e-15 and loss.item() == pytest.approx(loss_floor(p), abs=1e-13)
    for step, seed in itertools.product((0.01, 0.5), range(5)):
        away = torch.randn(7, generator=seeded(seed), dtype=F64)
        assert expected_loss(r + step * (away - away.mean())).item() > loss_floor(p)


def test_the_best_of_two_is_the_loss_of_pairs_and_the_best_of_k_a_softmax():
    r = torch.randn(4, 5, generator=seeded(3), dtype=F64)
    best = torch.tensor([0, 3, 3, 4])
    p = [math.exp(row[b]) / sum(map(math.exp, row)) for row, b in zip(r.tolist(), best.tolist())]
    expected = -sum(map(math.log, p)) / 4
    assert best_of_k_loss(r, best).item() == pytest.approx(expected, abs=1e-14)
    shift = torch.tensor([[9.0], [-4.0], [0.5], [70.0]])
    assert best_of_k_loss(r + shift, best).item() == pytest.approx(expected, abs=1e-12)
    first = torch.zeros(4, dtype=torch.long)
    of_pairs = bradley_terry_loss(r[:, 0], r[:, 1]).item()
    assert best_of_k_loss(r[:, :2], first).item() == pytest.approx(of_pairs, abs=1e-14)


def test_the_best_of_k_gives_limits_and_refuses_what_has_none():
    zero = torch.tensor([0])
    assert best_of_k_loss(torch.tensor([[2.0, -math.inf]]), zero).item() == 0
    assert best_of_k_loss(torch.tensor([[-math.inf, 2.0]]), zero).item() == math.inf
    for row in ([math.inf, 0.0], [-math.inf, -math.inf], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="highest reward of each prompt must be finite"):
            best_of_k_loss(torch.tensor([row]), zero)
    best_of_k_loss(torch.zeros(1, 2), zero)
    for shape in ((1, 1), (0, 2), (2,)):
        with pytest.raises(ValueError, match="at least 1 prompt with at least 2 answers"):
            best_of_k_loss(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))


# ---- the model ----

def test_the_reward_is_read_at_the_last_token_of_the_answer():
    model = reward_model()
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 4, 0, 2, 3, 3]])     # row 2: a 0 in the prompt
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
    got = model(tokens, mask)
    expected = [model.values(tokens[:1, :4])[0, 3].item(), model.values(tokens[1:])[0, 5].item()]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    at_padding = model.values(tokens)[0, 4:]
    assert ((at_padding - expected[0]).abs() > 0.01).all()
    changed = tokens.clone()
    changed[0, 3] = 4
    assert abs(model(changed, mask)[0].item() - expected[0]) > 0.01


def test_padding_does_not_change_a_reward():
    model = reward_model()
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 4, 3, 2, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]).bool()
    is_padding = torch.arange(6) >= torch.tensor([[4], [5]])
    base = model(tokens, mask)
    for value in (0, 3):
        padded = tokens.masked_fill(is_padding, value)
        longer = torch.nn.functional.pad(padded, (0, 4), value=value)
        longer_mask = torch.nn.functional.pad(mask, (0, 4))
        torch.testing.assert_close(model(longer, longer_mask), base, atol=1e-12, rtol=0)


def test_a_mask_that_is_not_bool_or_has_another_shape_is_refused():
    model, tokens = reward_model(), torch.zeros(2, 3, dtype=torch.long)
    mask = torch.ones(2, 3, dtype=torch.bool)
    model(tokens, mask)
    for bad in (mask.int(), mask[:, 1:], mask[:1]):
        with pytest.raises(ValueError, match="mask"):
            model(tokens, bad)


def test_a_row_without_an_answer_is_refused():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="no answer"):
        reward_model()(tokens, torch.tensor([[True, False, False], [False, False, False]]))


def test_a_value_model_is_linear_in_the_hidden_vectors_and_starts_at_zero():
    body = small_gpt()
    values = ValueModel(body)
    tokens = torch.tensor([[1, 2, 3], [4, 0, 0]])
    assert values(tokens).shape == (2, 3) and values(tokens).abs().max() == 0
    assert values.head.weight.dtype == F64
    with torch.no_grad():
        values.head.weight.copy_(torch.arange(8.0)[None])
        values.head.bias.fill_(2)
    h = body.hidden(tokens)[1, 2].tolist()
    expected = 2 + sum(i * x for i, x in enumerate(h))
    assert values(tokens)[1, 2].item() == pytest.approx(expected)
    assert "body.token_embedding.weight" in dict(values.named_parameters())


def test_normalised_rewards_have_mean_zero_and_the_same_differences():
    model = reward_model()
    tokens = torch.randint(5, (9, 6), generator=seeded(4))
    mask = torch.ones(9, 6, dtype=torch.bool)
    before = model(tokens, mask)
    assert before.mean().abs() > 0.01
    for _ in range(2):                                                  # twice changes nothing
        model.normalise(tokens, mask)
        after = model(tokens, mask)
        assert after.mean().abs() < 1e-12
        torch.testing.assert_close(after - after[0], before - before[0], atol=1e-12, rtol=0)
    other = reward_model()
    other.load_state_dict(model.state_dict())                           # the offset is saved
    assert torch.equal(other(tokens, mask), after)
    assert model.offset.dtype == F64 and not model.offset.requires_grad


def test_normalising_on_no_answer_is_refused():
    model, tokens = reward_model(), torch.zeros(1, 3, dtype=torch.long)
    mask = torch.ones(1, 3, dtype=torch.bool)
    model.normalise(tokens, mask)
    assert model(tokens, mask).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no answer to average over"):
        model.normalise(tokens[:0], mask[:0])


# ---- pairs ----

def table_and_rewards(world):
    """A reward model with a number for every answer, and these numbers by lists."""
    model = RewardModel(Table(3, 5).double())                           # T = 5: answers of length 4
    with torch.no_grad():
        model.values.rows.normal_(generator=world.generator)
    rewards = model(world.tokens, world.mask).tolist()
    return model, rewards


def pairs_of(world, i, j):
    return Pairs(world.tokens[i], world.mask[i], world.tokens[j], world.mask[j])


def test_the_loss_of_pairs_by_hand(world):
    model, r = table_and_rewards(world)
    i, j = [0, 4, 9, 30, 17], [8, 3, 21, 2, 11]
    expected = sum(math.log(1 + math.exp(r[b] - r[a])) for a, b in zip(i, j)) / 5
    assert reward_loss(model, pairs_of(world, i, j)).item() == pytest.approx(expected, abs=1e-13)
    with pytest.raises(ValueError, match="at least one pair"):
        reward_loss(model, pairs_of(world, [], []))


def test_accuracy_is_the_share_of_pairs_whose_chosen_answer_has_the_higher_reward(world):
    """All pairs of a sorted list: chosen above rejected is right, the exchanged pair is wrong."""
    model, r = table_and_rewards(world)
    ranking = sorted(range(31), key=lambda i: r[i])
    below, above = zip(*itertools.combinations(ranking, 2))
    below, above = list(below), list(above)
    assert reward_accuracy(model, pairs_of(world, above, below)) == 1
    assert reward_accuracy(model, pairs_of(world, below, above)) == 0
    three_right = pairs_of(world, above[:3] + below[3:4], below[:3] + above[3:4])
    assert reward_accuracy(model, three_right) == 0.75


def test_the_accuracy_of_no_pair_is_refused(world):
    model, _ = table_and_rewards(world)
    with pytest.raises(ValueError, match="no pair to average over"):
        reward_accuracy(model, pairs_of(world, [], []))


def test_a_model_that_sees_no_difference_is_right_half_the_time(world):
    pairs = pairs_of(world, [0, 1, 2, 3], [0, 1, 9, 8])
    model = RewardModel(Table(3, 5).double())
    assert reward_accuracy(model, pairs) == 0.5
    with torch.no_grad():
        last = model.values.numbers(world.tokens[2:3])[0, world.mask[2].nonzero()[-1]]
        model.values.rows[last] = 1.0                                   # only answer 2 has a reward
    assert reward_accuracy(model, pairs) == (0.5 + 0.5 + 1 + 0.5) / 4


def test_comparisons_teach_the_true_rewards_up_to_a_constant(world):
    """A number for each of 31 answers and new labels: it ends at the centred true rewards."""
    model = RewardModel(Table(3, 5).double())
    answers = world.all_answers()
    before = model.values.rows.detach().clone()

    def next_batch(generator):
        rows = torch.randint(31, (2048,), generator=generator)
        return compare(answers[rows], world.rewards[rows], generator)

    config = TrainingConfig(max_steps=250, learning_rate=0.1, weight_decay=0, evaluate_every=250)
    train(model, next_batch, reward_loss, config, progress=False)
    with torch.no_grad():
        model.normalise(world.tokens, world.mask)
        learned = model(world.tokens, world.mask)
    truth = world.rewards - world.rewards.mean()
    assert (learned - truth).abs().max() < 0.15 and truth.abs().max() > 1.5
    # Nothing is learned at prompts, at inner tokens, or at padding.
    last = world.mask.int().cumsum(1).argmax(1)[:, None]
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[model.values.numbers(world.tokens).gather(1, last)] = False
    assert torch.equal(model.values.rows[untouched], before[untouched])
