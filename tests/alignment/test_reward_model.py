"""Rewards known by differences only: Bradley–Terry's loss by exponentials, read at the last real token, taught to its floor."""
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


def gpt():
    body = GPT(GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return body


def reward_model():
    values = ValueModel(gpt())
    with torch.no_grad():
        values.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        values.head.bias.fill_(0.3)
    return RewardModel(values)


# ---- 9: the loss ----

def test_the_loss_is_minus_log_of_the_choices_probability():
    a, b = [0.4, -1.0, 3.0], [1.2, -1.5, 0.5]
    wanted = -sum(math.log(math.exp(x) / (math.exp(x) + math.exp(y))) for x, y in zip(a, b)) / 3
    a, b = torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)
    assert bradley_terry_loss(a, b).item() == pytest.approx(wanted, abs=1e-14)
    shift = torch.tensor([5.0, -80.0, 1.0], dtype=F64)                  # a constant for each prompt
    assert bradley_terry_loss(a + shift, b + shift).item() == pytest.approx(wanted, abs=1e-12)
    assert bradley_terry_loss(a, a).item() == pytest.approx(math.log(2))


def test_the_loss_stays_finite_where_the_sigmoid_is_zero():
    r = torch.tensor([-1000.0], requires_grad=True)
    loss = bradley_terry_loss(r, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(1000) and r.grad.item() == -1
    assert (-torch.log(torch.sigmoid(torch.tensor(-1000.0)))).isinf()   # as the formula is written


def test_what_one_answer_gains_the_other_loses():
    r = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(bradley_terry_loss(r[0], r[1]), r)
    by_hand = [-(1 - math.exp(x) / (math.exp(x) + math.exp(y))) / 6 for x, y in zip(*r.tolist())]
    assert slope[0].tolist() == pytest.approx(by_hand, abs=1e-14) and slope.sum(0).abs().max() < 1e-15


def test_the_floor_is_reached_at_the_true_rewards_and_nowhere_below():
    """Over all 21 pairs of 7 answers with their true label probabilities, the expected loss has its minimum, H, at R + any constant."""
    R = torch.randn(7, generator=torch.Generator().manual_seed(2), dtype=F64)
    i, j = torch.tensor(list(itertools.combinations(range(7), 2))).T
    p = preference_probability(R[i], R[j])

    def expected_loss(r):
        return sum(q * bradley_terry_loss(r[a:a + 1], r[b:b + 1]) + (1 - q) * bradley_terry_loss(r[b:b + 1], r[a:a + 1])
                   for q, a, b in zip(p, i.tolist(), j.tolist())) / len(p)

    r = (R + 3).requires_grad_()
    (slope,) = torch.autograd.grad(expected_loss(r), r)
    assert slope.abs().max() < 1e-15 and expected_loss(r).item() == pytest.approx(loss_floor(p), abs=1e-13)
    for step in (0.01, 0.5):
        for _ in range(5):
            away = torch.randn(7, generator=torch.Generator().manual_seed(_), dtype=F64)
            assert expected_loss(R + step * (away - away.mean())).item() > loss_floor(p)


def test_the_best_of_two_is_the_pair_loss_and_the_best_of_k_is_a_product_of_odds():
    r = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
    best = torch.tensor([0, 3, 3, 4])
    wanted = -sum(math.log(math.exp(row[b]) / sum(map(math.exp, row))) for row, b in zip(r.tolist(), best.tolist())) / 4
    assert best_of_k_loss(r, best).item() == pytest.approx(wanted, abs=1e-14)
    pair = torch.stack([r[:, 0], r[:, 1]], dim=1)
    assert best_of_k_loss(pair, torch.zeros(4, dtype=torch.long)).item() == pytest.approx(bradley_terry_loss(r[:, 0], r[:, 1]).item(), abs=1e-14)
    assert best_of_k_loss(r + torch.tensor([[9.0], [-4.0], [0.5], [70.0]]), best).item() == pytest.approx(wanted, abs=1e-12)


# ---- the model ----

def test_the_number_is_read_at_the_last_real_token():
    model = reward_model()
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 4, 0, 2, 3, 3]])     # the second holds a stop token in its prompt
    mask = torch.tensor([[False, False, True, True, False, False], [False, False, False, True, True, True]])
    got = model(tokens, mask)
    by_hand = [model.values(tokens[:1, :4])[0, 3].item(), model.values(tokens[1:])[0, 5].item()]
    assert got.tolist() == pytest.approx(by_hand, abs=1e-12)
    everywhere = model.values(tokens)
    assert abs(everywhere[0, 5].item() - by_hand[0]) > 0.01 and abs(everywhere[0, 4].item() - by_hand[0]) > 0.01     # the pads say other things
    changed = tokens.clone()
    changed[0, 3] = 4
    assert abs(model(changed, mask)[0].item() - by_hand[0]) > 0.01


def test_padding_does_not_change_a_reward():
    model = reward_model()
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 4, 3, 2, 0, 0]])
    mask = torch.tensor([[False, False, True, True, False, False], [False, False, True, True, True, False]])
    base = model(tokens, mask)
    for pad in (0, 3):
        longer = torch.nn.functional.pad(tokens.masked_fill(torch.arange(6) >= torch.tensor([[4], [5]]), pad), (0, 4), value=pad)
        torch.testing.assert_close(model(longer, torch.nn.functional.pad(mask, (0, 4))), base, atol=1e-12, rtol=0)


def test_a_value_model_is_a_line_over_the_hidden_vectors_and_starts_at_zero():
    body = gpt()
    values = ValueModel(body)
    tokens = torch.tensor([[1, 2, 3], [4, 0, 0]])
    assert values(tokens).shape == (2, 3) and values(tokens).abs().max() == 0 and values.head.weight.dtype == F64
    with torch.no_grad():
        values.head.weight.copy_(torch.arange(8.0)[None])
        values.head.bias.fill_(2)
    h = body.hidden(tokens)
    assert values(tokens)[1, 2].item() == pytest.approx(2 + sum(i * h[1, 2, i].item() for i in range(8)))
    assert "body.token_embedding.weight" in dict(values.named_parameters())


def test_normalised_rewards_have_mean_zero_and_the_same_differences():
    model = reward_model()
    tokens, mask = torch.randint(5, (9, 6), generator=torch.Generator().manual_seed(4)), torch.ones(9, 6, dtype=torch.bool)
    before = model(tokens, mask)
    for _ in range(2):                                                  # twice is once
        model.normalise(tokens, mask)
        after = model(tokens, mask)
        assert after.mean().abs() < 1e-12 and before.mean().abs() > 0.01
        torch.testing.assert_close(after - after[0], before - before[0], atol=1e-12, rtol=0)
    assert model.offset.dtype == F64 and "offset" in model.state_dict() and not model.offset.requires_grad
    other = reward_model()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens, mask), after)


def test_a_row_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="no answer"):
        reward_model()(torch.zeros(2, 3, dtype=torch.long), torch.tensor([[True, False, False], [False, False, False]]))


def test_loss_and_accuracy_of_pairs_by_hand(world):
    values = Table(3, 5).double()                                       # the reward is read *at* the last token: a row for every answer
    with torch.no_grad():
        values.rows.normal_(generator=world.generator)
    model = RewardModel(values)
    r = model(world.tokens, world.mask).tolist()
    i, j = torch.tensor([0, 4, 9, 30, 17]), torch.tensor([8, 3, 21, 2, 11])
    pairs = Pairs(world.tokens[i], world.mask[i], world.tokens[j], world.mask[j])
    gaps = [r[a] - r[b] for a, b in zip(i.tolist(), j.tolist())]
    assert reward_loss(model, pairs).item() == pytest.approx(sum(math.log(1 + math.exp(-g)) for g in gaps) / 5, abs=1e-13)
    assert reward_accuracy(model, pairs) == pytest.approx(sum(g > 0 for g in gaps) / 5) and 0 < reward_accuracy(model, pairs) < 1


def test_a_judge_who_sees_no_difference_is_right_half_the_time(world):
    pairs = Pairs(world.tokens[:4], world.mask[:4], world.tokens[[0, 1, 9, 8]], world.mask[[0, 1, 9, 8]])
    values = Table(3, 5).double()
    assert reward_accuracy(RewardModel(values), pairs) == 0.5
    with torch.no_grad():
        values.rows[values.numbers(world.tokens[2:3])[0, 1]] = 1.0      # the answer (2, stop) or a beginning of others
        r = RewardModel(values)(world.tokens, world.mask).tolist()
    wanted = [(r[a] > r[b]) + (r[a] == r[b]) / 2 for a, b in zip(range(4), (0, 1, 9, 8))]
    assert reward_accuracy(RewardModel(values), pairs) == pytest.approx(sum(wanted) / 4)


def test_comparisons_teach_the_true_rewards_but_for_a_constant(world):
    """A table of 31 free numbers and fresh labels: it ends at the floor, and centred at the centred truth."""
    model = RewardModel(Table(3, 5).double())
    answers = world.all_answers()
    before = model.values.rows.detach().clone()

    def next_batch(generator):
        rows = torch.randint(31, (2048,), generator=generator)
        return compare(answers[rows], world.rewards[rows], generator)

    config = TrainingConfig(max_steps=250, learning_rate=0.1, weight_decay=0, evaluate_every=250)
    list(train(model, next_batch, reward_loss, config, progress=False))
    with torch.no_grad():
        model.normalise(world.tokens, world.mask)
        learned, truth = model(world.tokens, world.mask), world.rewards - world.rewards.mean()
    assert (learned - truth).abs().max() < 0.15 and truth.abs().max() > 1.5
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[model.values.numbers(world.tokens).gather(1, world.mask.int().cumsum(1).argmax(1)[:, None])] = False
    assert torch.equal(model.values.rows[untouched], before[untouched])  # nothing is learned at prompts, inner tokens or padding
