"""What was rollout is what is written down: log-probabilities, ends, padding, and the place of the reward."""
import copy
import math
from collections import Counter

import pytest
import torch

from minigpt.alignment.exact import answer_logprobs, gradient
from minigpt.alignment.rollouts import (
    Rollout,
    RolloutConfig,
    last_action,
    roll_out,
    rollout_metrics,
    token_rewards,
)
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.losses import sequence_logprobs, token_logprobs

F64 = torch.float64
STOP = 0


def tiny_gpt(seed=0, **options):
    """Weights ten times their usual size: otherwise every token is as likely as every other, and no mistake shows."""
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8, **options)
    gpt = GPT(config, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return gpt


def many(world, n, temperature=1.0, seed=1):
    prompts = torch.tensor([world.prompt]).expand(n, -1)
    return roll_out(world.policy, prompts, 4, STOP, temperature, torch.Generator().manual_seed(seed))


# ---- ends and padding ----

def test_an_answer_ends_at_its_first_stop_token_which_counts(world):
    """The prompt is a stop token, too, and padding looks like one: only the place tells them apart."""
    rollout = many(world, 3000)
    seen = set()
    assert rollout.tokens.shape == rollout.mask.shape == (3000, 5) and rollout.logprobs.shape == rollout.actions.shape == (3000, 4)
    for tokens, mask, logprobs in zip(rollout.tokens.tolist(), rollout.mask.tolist(), rollout.logprobs.tolist()):
        answer = tuple(tokens[1:1 + sum(mask)])
        assert answer in world.answers and tokens == [STOP, *answer] + [STOP] * (4 - len(answer))
        assert mask == [False] + [True] * len(answer) + [False] * (4 - len(answer))
        assert all(x < 0 for x in logprobs[:len(answer)]) and all(x == 0 for x in logprobs[len(answer):])
        seen.add(answer)
    assert len(seen) >= 25


def test_stopping_at_the_last_moment_and_not_stopping_are_told_apart(world):
    rollout = many(world, 3000)
    full = [tokens for tokens, mask in zip(rollout.tokens.tolist(), rollout.mask.tolist()) if all(mask[1:])]
    assert {row[-1] for row in full} == {0, 1, 2}                       # all four tokens count whether the last one is the stop or not


def test_answers_come_as_often_as_their_probability_says(world):
    n = 40_000
    rollout = many(world, n)
    counts = Counter(tuple(t[m].tolist()) for t, m in zip(rollout.tokens, rollout.mask))
    p = world.probabilities(world.policy)
    chi2 = sum((counts[a] - n * q) ** 2 / (n * q) for a, q in zip(world.answers, p))
    assert chi2 < 70                                                    # 30 degrees of freedom: more than 70 in 5 of 100,000 seeds


def test_recorded_log_probabilities_are_those_of_the_list(world):
    rollout, listed = many(world, 200), dict(zip(world.answers, world.token_logprobs(world.policy)))
    for tokens, mask, logprobs in zip(rollout.tokens, rollout.mask, rollout.logprobs):
        torch.testing.assert_close(logprobs[mask[1:]], torch.tensor(listed[tuple(tokens[mask].tolist())], dtype=F64), atol=1e-12, rtol=0)
    assert rollout.logprobs.dtype == F64 and not rollout.logprobs.requires_grad


def test_a_policy_that_always_stops_and_one_that_never_does(world):
    with torch.no_grad():
        world.policy.rows[:, STOP] = 50
    assert many(world, 8).mask.sum(1).tolist() == [1] * 8
    with torch.no_grad():
        world.policy.rows[:, STOP] = -50
    rollout = many(world, 8)
    assert rollout.mask.sum(1).tolist() == [4] * 8 and (rollout.tokens[:, 1:] != STOP).all()


# ---- sampling = scoring ----

@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.7])
def test_the_mean_of_one_over_p_is_the_number_of_answers(world, temperature):
    """E[1/p(y)] = Σ p/p = 31, if p is what was sampled from. Scored at temperature 1 instead, it is far off."""
    n = 40_000
    with torch.no_grad():
        world.policy.rows.mul_(0.5)                                     # milder: 1/p of a rare answer is a noisy number
    rollout = many(world, n, temperature)
    with torch.no_grad():
        world.policy.rows.div_(temperature)
    p = world.probabilities(world.policy)
    error = math.sqrt((sum(1 / x for x in p) - 31**2) / n)              # of the mean of 1/p
    assert abs((-rollout.logprobs.sum(1)).exp().mean().item() - 31) < 5 * error
    torch.testing.assert_close(rollout.logprobs, token_logprobs(world.policy(rollout.tokens[:, :-1]), rollout.tokens, rollout.mask), atol=1e-12, rtol=0)
    if temperature != 1:
        with torch.no_grad():
            world.policy.rows.mul_(temperature)
        naive = (-sequence_logprobs(world.policy(rollout.tokens[:, :-1]), rollout.tokens, rollout.mask)).exp().mean().item()
        assert abs(naive - 31) > max(10 * error, 3)


def test_a_kl_scored_at_another_temperature_goes_negative(world):
    """Sampled at τ = 2 and held against itself, KL is 0. Scored at τ = 1 against the same samples it "is" −KL(π₂‖π₁) < 0."""
    rollout = many(world, 5000, temperature=2.0)
    hot = copy.deepcopy(world.policy)
    with torch.no_grad():
        hot.rows.div_(2)
    ref_logprobs = token_logprobs(hot(rollout.inputs), rollout.tokens, rollout.mask).detach()
    assert (rollout.logprobs - ref_logprobs).abs().max() < 1e-12
    scored = token_logprobs(world.policy(rollout.tokens[:, :-1]), rollout.tokens, rollout.mask).sum(1)
    wrong = (scored - ref_logprobs.sum(1)).mean().item()
    assert wrong == pytest.approx(-world.kl(hot, world.policy), abs=0.03) and world.kl(hot, world.policy) > 0.1


@pytest.mark.parametrize("options", [{}, {"positions": "rotary", "norm": "rms", "qk_norm": True, "bias": False}], ids=["learned", "rotary"])
@pytest.mark.parametrize("training", [True, False])
def test_log_probabilities_from_the_cache_are_those_of_one_pass(options, training):
    """In either mode: with dropout on in one of them, PPO's first ratio would not be 1."""
    gpt = tiny_gpt(**options).train(training)
    prompts = torch.tensor([[1, 0, 3], [2, 2, 4], [0, 0, 0], [4, 1, 2]]).repeat(25, 1)
    rollout = roll_out(gpt, prompts, 7, STOP, generator=torch.Generator().manual_seed(2))
    lengths = set(rollout.actions.sum(1).tolist())
    assert len(lengths) >= 4 and rollout.tokens.shape == (100, 10) and gpt.training is training
    again = token_logprobs(gpt(rollout.tokens[:, :-1]), rollout.tokens, rollout.mask)
    torch.testing.assert_close(rollout.logprobs, again.detach(), atol=1e-12, rtol=0)
    other = token_logprobs(gpt.train(not training)(rollout.tokens), rollout.tokens, rollout.mask)
    torch.testing.assert_close(rollout.logprobs, other.detach(), atol=1e-12, rtol=0)
    for row in range(8):                                                # each answer alone, with no padding at all
        end = int(rollout.mask[row].nonzero().max()) + 1
        alone = gpt(rollout.tokens[row:row + 1, :end]).log_softmax(-1)
        by_hand = [alone[0, t - 1, rollout.tokens[row, t]].item() for t in range(3, end)]
        assert rollout.logprobs[row, 2:end - 1].tolist() == pytest.approx(by_hand, abs=1e-12)


def test_prompts_of_several_lengths_are_each_answered_at_their_own_end():
    gpt = tiny_gpt(1)
    prompts = [[1], [2, 0, 4, 3], [3, 1], [0, 0, 0, 0], [4], [1, 2]] * 20
    rollout = roll_out(gpt, prompts, 6, STOP, generator=torch.Generator().manual_seed(3))
    assert rollout.tokens.shape == (120, 10)
    for row, prompt in enumerate(prompts):
        n = int(rollout.mask[row].sum())
        answer = rollout.tokens[row, len(prompt):len(prompt) + n].tolist()
        assert rollout.tokens[row].tolist() == prompt + answer + [STOP] * (10 - len(prompt) - n)
        assert rollout.mask[row].nonzero()[:, 0].tolist() == list(range(len(prompt), len(prompt) + n)) and 1 <= n <= 6
        assert STOP not in answer[:-1] and (answer[-1] == STOP or n == 6)
        lone = gpt(torch.tensor([prompt + answer])).log_softmax(-1)[0]
        by_hand = [0.0] * (len(prompt) - 1) + [lone[len(prompt) - 1 + i, a].item() for i, a in enumerate(answer)]
        assert rollout.logprobs[row].tolist() == pytest.approx(by_hand + [0.0] * (9 - len(by_hand)), abs=1e-12)
    assert len({tuple(row) for row in rollout.tokens[0::6].tolist()}) > 5  # equal prompts are answered independently


def test_a_tensor_of_prompts_and_a_list_of_them_are_the_same():
    gpt = tiny_gpt()
    prompts = torch.tensor([[1, 2], [3, 0], [4, 4]])
    draws = ((prompts, 4), (prompts.tolist(), 4), (prompts, 5))
    a, b, c = (roll_out(gpt, p, 5, STOP, generator=torch.Generator().manual_seed(seed)) for p, seed in draws)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.logprobs, b.logprobs)
    assert not torch.equal(a.tokens, c.tokens)


@pytest.mark.parametrize("options", [{}, {"positions": "rotary", "norm": "rms", "qk_norm": True, "bias": False}, {"positions": "none"}],
                         ids=["learned", "rotary", "none"])
def test_padded_on_the_left_on_the_right_or_not_at_all_the_log_probabilities_and_their_gradient_are_the_same(options):
    gpt = tiny_gpt(2, **options)
    texts = [[1, 2, 3, 4, 0], [3, 1, 4], [2, 2], [4, 0, 0, 1, 3, 2, 1]]

    def padded(text, left):
        pads = [0] * (7 - len(text))
        row, real = ([*pads, *text], [False] * len(pads) + [True] * len(text)) if left else ([*text, *pads], [True] * len(text) + [False] * len(pads))
        return torch.tensor(row), torch.tensor(real)

    def batch(left):
        return (torch.stack(x) for x in zip(*(padded(text, left) for text in texts)))

    alone = [sum(gpt(torch.tensor([text])).log_softmax(-1)[0, t, text[t + 1]] for t in range(len(text) - 1)) for text in texts]
    wanted = torch.stack(alone)
    tokens, real = batch(left=False)
    right = sequence_logprobs(gpt(tokens[:, :-1]), tokens, real)        # a causal model needs no mask for padding to come
    tokens, real = batch(left=True)
    counted = real & real.roll(1, 1).index_fill(1, torch.tensor(0), False)          # a row's first token is given, not predicted
    left = sequence_logprobs(gpt(tokens[:, :-1], mask=real[:, :-1]), tokens, counted)
    torch.testing.assert_close(right, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(left, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(gpt, left.sum()), gradient(gpt, wanted.sum()), atol=1e-10, rtol=0)
    naive = sequence_logprobs(gpt(tokens[:, :-1]), tokens, counted)     # nobody told the model which tokens are padding
    assert (naive - wanted)[:3].abs().min() > 0.01 and (naive - wanted)[3].abs() < 1e-12        # the longest row has none


def test_more_padding_changes_no_log_probability():
    gpt = tiny_gpt()
    rollout = roll_out(gpt, torch.tensor([[1, 2]] * 6), 4, STOP, generator=torch.Generator().manual_seed(6))
    for pad in (STOP, 3):
        longer = torch.nn.functional.pad(rollout.tokens, (0, 3), value=pad)
        mask = torch.nn.functional.pad(rollout.mask, (0, 3), value=False)
        again = token_logprobs(gpt(longer[:, :-1]), longer, mask)
        torch.testing.assert_close(again[:, :5].detach(), rollout.logprobs, atol=1e-12, rtol=0)
        assert again[:, 5:].abs().max() == 0


@pytest.mark.parametrize("prompts, new", [([[1] * 8], 6), ([[]], 3), ([[1], []], 3), ([], 3), (torch.ones(2, 10, dtype=torch.long), 4)])
def test_prompts_that_cannot_be_answered_are_refused(prompts, new):
    with pytest.raises(ValueError, match="not fit the context|has no token|no row"):
        roll_out(tiny_gpt(), prompts, new, STOP)


def test_the_context_can_be_used_to_its_end():
    gpt = tiny_gpt()
    rollout = roll_out(gpt, [[1] * 8], 5, STOP, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rollout.logprobs, token_logprobs(gpt(rollout.tokens[:, :-1]), rollout.tokens, rollout.mask).detach(), atol=1e-12, rtol=0)


# ---- rows and metrics ----

def test_rows_are_selected_with_an_index(world):
    rollout = many(world, 6)
    part = rollout[torch.tensor([4, 0])]
    for name in ("tokens", "mask", "logprobs", "actions", "inputs"):
        whole = getattr(rollout, name)
        assert torch.equal(getattr(part, name), torch.stack([whole[4], whole[0]]))
    assert isinstance(rollout[1:3], Rollout) and len(rollout[1:3]) == 2
    assert torch.equal(rollout.inputs, rollout.tokens[:, :4])


def test_metrics_are_means_over_answers(world):
    ref_logprobs = world.listed_logprobs(world.reference)
    metrics = rollout_metrics(world.all_answers(), world.rewards, ref_logprobs)
    pi, ref = world.logprobs(world.policy), world.logprobs(world.reference)
    assert metrics["score"] == pytest.approx(world.rewards.mean().item())
    assert metrics["length"] == pytest.approx(sum(map(len, world.answers)) / 31, rel=1e-6)
    assert metrics["kl"] == pytest.approx(sum(a - b for a, b in zip(pi, ref)) / 31)


@pytest.mark.parametrize("wrong", [
    {"n_iterations": 0}, {"max_new_tokens": 0}, {"n_prompts": 0}, {"n_samples": 0},
    {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"gradient_clip": 0.0},
    {"gradient_clip": math.nan}, {"beta": -0.1}, {"beta": math.nan}, {"optimizer": "sgd"},
])
def test_settings_under_which_nothing_is_learned_are_refused(wrong):
    settings = {"n_iterations": 1, "max_new_tokens": 1, "stop_token": 0, "n_prompts": 1,
                "n_samples": 1, "beta": 0.0}
    RolloutConfig(**settings)                                           # all of them are legal
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RolloutConfig(**settings | wrong)


# ---- 6: the reward's place ----

def test_the_last_action_is_found_by_place():
    actions = torch.tensor([[False, True, True, False], [True, False, False, False], [False, False, False, True], [True, True, True, True]])
    assert last_action(actions).tolist() == [2, 0, 3, 3]
    with pytest.raises(ValueError, match="1 of 2 rows have no answer"):
        last_action(torch.tensor([[True, False], [False, False]]))


def test_the_score_is_paid_at_the_stop_token_and_the_price_at_every_token():
    """Three answers after a prompt of two: stopped early, stopped at once, never stopped. By hand."""
    actions = torch.tensor([[False, True, True, False, False], [False, True, False, False, False], [False, True, True, True, True]])
    logprobs = torch.tensor([[0, -1.0, -2.0, 0, 0], [0, -0.5, 0, 0, 0], [0, -1.0, -1.0, -1.0, -1.0]])
    ref = torch.tensor([[0, -1.5, -1.0, 0, 0], [0, -2.5, 0, 0, 0], [0, -2.0, 0.0, -1.0, -3.0]])
    got = token_rewards(torch.tensor([10.0, 20.0, 30.0]), logprobs, ref, actions, beta=0.5)
    wanted = [[0, -0.25, 10.5, 0, 0], [0, 19.0, 0, 0, 0], [0, -0.5, 0.5, 0, 29.0]]
    torch.testing.assert_close(got, torch.tensor(wanted))
    at_the_end = torch.tensor([[0, 0, 0, 0, 10.0]])
    assert (got[0] - at_the_end[0]).abs().max() > 9                     # the widely made mistake: the reward at the last column


def test_junk_in_the_padding_costs_nothing():
    actions = torch.tensor([[True, False]])
    got = token_rewards(torch.tensor([3.0]), torch.tensor([[-1.0, math.nan]]), torch.tensor([[-1.0, -math.inf]]), actions, beta=1.0)
    assert got.tolist() == [[3.0, 0.0]]


def test_an_answers_rewards_sum_to_its_score_minus_its_price(world):
    rollout = world.all_answers()
    rewards = token_rewards(world.rewards, rollout.logprobs, world.listed_logprobs(world.reference),
                            rollout.actions, world.beta)
    for i, (a, b) in enumerate(zip(world.logprobs(world.policy), world.logprobs(world.reference))):
        assert rewards[i].sum().item() == pytest.approx(world.rewards[i].item() - world.beta * (a - b), abs=1e-12)
        assert (rewards[i] != 0).tolist() == rollout.actions[i].tolist()
    assert world.expectation(world.policy, rewards.sum(1)) == pytest.approx(
        world.expectation(world.policy, world.rewards) - world.beta * world.kl(world.policy, world.reference), abs=1e-12)


@pytest.mark.parametrize("to_go", [False, True], ids=["whole return", "reward to go"])
def test_rewards_with_a_price_have_the_gradient_of_the_priced_objective(world, to_go):
    """E[Σ_t R̂_t ∇log π_t] = ∇( E[R] − β·KL ), with every reward of the answer or only those still to come."""
    rollout = world.all_answers()
    rewards = token_rewards(world.rewards, rollout.logprobs, world.listed_logprobs(world.reference),
                            rollout.actions, world.beta)
    weights = torch.tensor([[sum(row[t if to_go else 0:]) for t in range(4)] for row in rewards.tolist()], dtype=F64)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)[:, None]
    got = gradient(world.policy, (p * weights * token_logprobs(world.policy(world.tokens[:, :-1]), world.tokens, world.mask)).sum())
    wanted = world.difference(lambda t: world.expectation(t, world.rewards) - world.beta * world.kl(t, world.reference), world.policy)
    torch.testing.assert_close(got, wanted, atol=1e-8, rtol=0)
    scored_only = world.gradient(world.policy, world.rewards)           # the price forgotten
    assert (got - scored_only).abs().max() > 0.01
    p1 = answer_logprobs(world.policy, world.tokens, world.mask).detach()
    assert p1.exp().sum().item() == pytest.approx(1)
