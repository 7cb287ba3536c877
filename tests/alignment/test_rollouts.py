"""Rollouts: log-probabilities, ends of answers, padding, and the place of the reward."""
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
    """A GPT with weights ten times their usual size, so that its tokens differ in probability."""
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8, **options)
    gpt = GPT(config, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return gpt


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def score(policy, rollout):
    """log π of each action, from one pass over the whole texts."""
    return token_logprobs(policy(rollout.inputs), rollout.tokens, rollout.mask).detach()


def many(world, n, temperature=1.0, seed=1):
    prompts = torch.tensor([world.prompt]).expand(n, -1)
    generator = torch.Generator().manual_seed(seed)
    return roll_out(world.policy, prompts, 4, STOP, temperature, generator)


# ---- ends and padding ----

def test_an_answer_ends_at_its_first_stop_token_which_counts(world):
    """The prompt and the padding are stop tokens too; only their places differ."""
    rollout = many(world, 3000)
    seen = set()
    assert rollout.tokens.shape == rollout.mask.shape == (3000, 5)
    assert rollout.logprobs.shape == rollout.actions.shape == (3000, 4)
    columns = (rollout.tokens.tolist(), rollout.mask.tolist(), rollout.logprobs.tolist())
    for tokens, mask, logprobs in zip(*columns):
        answer = tuple(tokens[1:1 + sum(mask)])
        n = len(answer)
        assert answer in world.answers and tokens == [STOP, *answer] + [STOP] * (4 - n)
        assert mask == [False] + [True] * n + [False] * (4 - n)
        assert all(x < 0 for x in logprobs[:n]) and all(x == 0 for x in logprobs[n:])
        seen.add(answer)
    assert len(seen) >= 25


def test_all_four_tokens_count_whether_or_not_the_last_one_is_the_stop_token(world):
    rollout = many(world, 3000)
    full = rollout.tokens[rollout.actions.all(1)]
    assert set(full[:, -1].tolist()) == {0, 1, 2}


def test_answers_are_as_frequent_as_their_probability_says(world):
    n = 40_000
    rollout = many(world, n)
    counts = Counter(tuple(t[m].tolist()) for t, m in zip(rollout.tokens, rollout.mask))
    p = world.probabilities(world.policy)
    chi2 = sum((counts[a] - n * q) ** 2 / (n * q) for a, q in zip(world.answers, p))
    assert chi2 < 70                                # with 30 degrees of freedom: p = 0.00005


def test_recorded_log_probabilities_are_those_of_the_list(world):
    rollout = many(world, 200)
    listed = dict(zip(world.answers, world.token_logprobs(world.policy)))
    for tokens, mask, logprobs in zip(rollout.tokens, rollout.mask, rollout.logprobs):
        answer = tuple(tokens[mask].tolist())
        close(logprobs[mask[1:]], torch.tensor(listed[answer], dtype=F64))
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
    """E[1/p(y)] = Σ p/p = 31 if answers were sampled from p, with the same temperature."""
    n = 40_000
    with torch.no_grad():
        world.policy.rows.mul_(0.5)                 # no rare answers: their 1/p is noisy
    rollout = many(world, n, temperature)
    with torch.no_grad():
        world.policy.rows.div_(temperature)
    p = world.probabilities(world.policy)
    error = math.sqrt((sum(1 / x for x in p) - 31**2) / n)              # of the mean of 1/p
    assert abs((-rollout.logprobs.sum(1)).exp().mean().item() - 31) < 5 * error
    close(rollout.logprobs, score(world.policy, rollout))
    if temperature != 1:
        with torch.no_grad():
            world.policy.rows.mul_(temperature)
        naive = (-score(world.policy, rollout).sum(1)).exp().mean().item()
        assert abs(naive - 31) > max(10 * error, 3)


def test_a_kl_scored_at_another_temperature_is_negative(world):
    """Samples at τ = 2 scored at τ = 2 have KL 0 to the policy at τ = 2.

    Scored at τ = 1 they give −KL(π₂‖π₁) < 0.
    """
    rollout = many(world, 5000, temperature=2.0)
    hot = copy.deepcopy(world.policy)
    with torch.no_grad():
        hot.rows.div_(2)
    ref_logprobs = score(hot, rollout)
    assert (rollout.logprobs - ref_logprobs).abs().max() < 1e-12
    wrong = (score(world.policy, rollout) - ref_logprobs).sum(1).mean().item()
    kl = world.kl(hot, world.policy)
    assert wrong == pytest.approx(-kl, abs=0.03) and kl > 0.1


ROTARY = {"positions": "rotary", "norm": "rms", "qk_norm": True, "bias": False}


@pytest.mark.parametrize("options", [{}, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("training", [True, False])
def test_log_probabilities_from_the_cache_are_those_of_one_pass(options, training):
    """They are in both modes; otherwise PPO's first ratio would not be 1."""
    gpt = tiny_gpt(**options).train(training)
    prompts = torch.tensor([[1, 0, 3], [2, 2, 4], [0, 0, 0], [4, 1, 2]]).repeat(25, 1)
    rollout = roll_out(gpt, prompts, 7, STOP, generator=torch.Generator().manual_seed(2))
    lengths = set(rollout.actions.sum(1).tolist())
    assert len(lengths) >= 4 and rollout.tokens.shape == (100, 10) and gpt.training is training
    close(rollout.logprobs, score(gpt, rollout))
    close(rollout.logprobs, score(gpt.train(not training), rollout))
    for row in range(8):                                                # one answer, no padding
        end = int(rollout.mask[row].nonzero().max()) + 1
        alone = gpt(rollout.tokens[row:row + 1, :end]).log_softmax(-1)
        by_hand = [alone[0, t - 1, rollout.tokens[row, t]].item() for t in range(3, end)]
        assert rollout.logprobs[row, 2:end - 1].tolist() == pytest.approx(by_hand, abs=1e-12)


def test_each_prompt_of_several_lengths_is_answered_at_its_own_end():
    gpt = tiny_gpt(1)
    prompts = [[1], [2, 0, 4, 3], [3, 1], [0, 0, 0, 0], [4], [1, 2]] * 20
    rollout = roll_out(gpt, prompts, 6, STOP, generator=torch.Generator().manual_seed(3))
    assert rollout.tokens.shape == (120, 10)
    for row, prompt in enumerate(prompts):
        P, n = len(prompt), int(rollout.mask[row].sum())
        answer = rollout.tokens[row, P:P + n].tolist()
        assert rollout.tokens[row].tolist() == prompt + answer + [STOP] * (10 - P - n)
        assert rollout.mask[row].nonzero()[:, 0].tolist() == list(range(P, P + n)) and 1 <= n <= 6
        assert STOP not in answer[:-1] and (answer[-1] == STOP or n == 6)
        alone = gpt(torch.tensor([prompt + answer])).log_softmax(-1)[0]
        by_hand = [alone[P - 1 + i, token].item() for i, token in enumerate(answer)]
        wanted = [0.0] * (P - 1) + by_hand + [0.0] * (10 - P - n)
        assert rollout.logprobs[row].tolist() == pytest.approx(wanted, abs=1e-12)
    # Equal prompts have independent answers.
    assert len({tuple(row) for row in rollout.tokens[0::6].tolist()}) > 5


def test_a_tensor_of_prompts_and_a_list_of_them_are_the_same():
    gpt = tiny_gpt()
    prompts = torch.tensor([[1, 2], [3, 0], [4, 4]])
    a, b, c = (roll_out(gpt, given, 5, STOP, generator=torch.Generator().manual_seed(seed))
               for given, seed in ((prompts, 4), (prompts.tolist(), 4), (prompts, 5)))
    for name in ("tokens", "mask", "logprobs"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert not torch.equal(a.tokens, c.tokens)


@pytest.mark.parametrize("options", [{}, ROTARY, {"positions": "none"}],
                         ids=["learned", "rotary", "none"])
def test_padding_on_either_side_changes_neither_log_probabilities_nor_their_gradient(options):
    gpt = tiny_gpt(2, **options)
    texts = [[1, 2, 3, 4, 0], [3, 1, 4], [2, 2], [4, 0, 0, 1, 3, 2, 1]]

    def padded(text, left):
        n = 7 - len(text)
        sides = (n, 0) if left else (0, n)
        row, real = torch.tensor(text), torch.ones(len(text), dtype=torch.bool)
        return torch.nn.functional.pad(row, sides), torch.nn.functional.pad(real, sides)

    def batch(left):
        return (torch.stack(x) for x in zip(*(padded(text, left) for text in texts)))

    def alone(text):
        logprobs = gpt(torch.tensor([text])).log_softmax(-1)[0]
        return sum(logprobs[t, token] for t, token in enumerate(text[1:]))

    wanted = torch.stack([alone(text) for text in texts])
    tokens, real = batch(left=False)
    close(sequence_logprobs(gpt(tokens[:, :-1]), tokens, real), wanted)     # it needs no mask
    tokens, real = batch(left=True)
    counted = real.clone()
    counted[:, 1:] &= real[:, :-1]                      # the first token of a text is not predicted
    left = sequence_logprobs(gpt(tokens[:, :-1], mask=real[:, :-1]), tokens, counted)
    close(left, wanted)
    close(gradient(gpt, left.sum()), gradient(gpt, wanted.sum()), atol=1e-10)
    without_mask = sequence_logprobs(gpt(tokens[:, :-1]), tokens, counted)
    assert (without_mask - wanted)[:3].abs().min() > 0.01
    assert (without_mask - wanted)[3].abs() < 1e-12                     # this row has no padding


def test_more_padding_changes_no_log_probability():
    gpt = tiny_gpt()
    generator = torch.Generator().manual_seed(6)
    rollout = roll_out(gpt, torch.tensor([[1, 2]] * 6), 4, STOP, generator=generator)
    for pad in (STOP, 3):
        longer = torch.nn.functional.pad(rollout.tokens, (0, 3), value=pad)
        mask = torch.nn.functional.pad(rollout.mask, (0, 3), value=False)
        again = token_logprobs(gpt(longer[:, :-1]), longer, mask)
        close(again[:, :5].detach(), rollout.logprobs)
        assert again[:, 5:].abs().max() == 0


@pytest.mark.parametrize("prompts, new", [
    ([[1] * 8], 6), ([[]], 3), ([[1], []], 3), ([], 3), (torch.ones(2, 10, dtype=torch.long), 4),
])
def test_prompts_that_cannot_be_answered_are_refused(prompts, new):
    with pytest.raises(ValueError, match="not fit the context|has no token|no row"):
        roll_out(tiny_gpt(), prompts, new, STOP)


def test_the_context_can_be_used_to_its_end():
    gpt = tiny_gpt()
    rollout = roll_out(gpt, [[1] * 8], 5, STOP, generator=torch.Generator().manual_seed(0))
    close(rollout.logprobs, score(gpt, rollout))


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
    {"gradient_clip": math.nan}, {"beta": -0.1}, {"beta": math.nan},
])
def test_settings_under_which_nothing_is_learned_are_refused(wrong):
    settings = {"n_iterations": 1, "max_new_tokens": 1, "stop_token": 0, "n_prompts": 1,
                "n_samples": 1, "beta": 0.0}
    RolloutConfig(**settings)                                           # all of them are legal
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RolloutConfig(**settings | wrong)


# ---- the place of the reward ----

def test_the_last_action_is_found_by_place():
    actions = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    assert last_action(actions).tolist() == [2, 0, 3, 3]
    with pytest.raises(ValueError, match="1 of 2 rows have no answer"):
        last_action(torch.tensor([[True, False], [False, False]]))


def test_the_score_is_paid_at_the_stop_token_and_the_price_at_every_token():
    """Three answers after a prompt of two tokens: one stops early, one at once, one never."""
    actions = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()
    logprobs = torch.tensor([[0, -1, -2, 0, 0], [0, -0.5, 0, 0, 0], [0, -1, -1, -1, -1]])
    ref = torch.tensor([[0, -1.5, -1, 0, 0], [0, -2.5, 0, 0, 0], [0, -2, 0, -1, -3]])
    got = token_rewards(torch.tensor([10.0, 20.0, 30.0]), logprobs, ref, actions, beta=0.5)
    wanted = [[0, -0.25, 10.5, 0, 0], [0, 19.0, 0, 0, 0], [0, -0.5, 0.5, 0, 29.0]]
    close(got, torch.tensor(wanted), atol=1e-6)         # scores are not all in the last column


def test_padding_has_no_reward():
    actions = torch.tensor([[True, False]])
    logprobs, ref_logprobs = torch.tensor([[-1.0, math.nan]]), torch.tensor([[-1.0, -math.inf]])
    got = token_rewards(torch.tensor([3.0]), logprobs, ref_logprobs, actions, beta=1.0)
    assert got.tolist() == [[3.0, 0.0]]


def test_an_answers_rewards_sum_to_its_score_minus_its_price(world):
    rollout = world.all_answers()
    rewards = token_rewards(world.rewards, rollout.logprobs, world.listed_logprobs(world.reference),
                            rollout.actions, world.beta)
    assert torch.equal(rewards != 0, rollout.actions)
    pairs = zip(world.logprobs(world.policy), world.logprobs(world.reference))
    for i, (a, b) in enumerate(pairs):
        wanted = world.rewards[i].item() - world.beta * (a - b)
        assert rewards[i].sum().item() == pytest.approx(wanted, abs=1e-12)
    mean = world.expectation(world.policy, rewards.sum(1))
    assert mean == pytest.approx(world.objective(world.policy), abs=1e-12)


@pytest.mark.parametrize("to_go", [False, True], ids=["whole return", "reward to go"])
def test_rewards_with_a_price_have_the_gradient_of_the_objective_with_a_price(world, to_go):
    """E[Σₜ R ∇log πₜ] = ∇( E[r] − β·KL ); R is the sum of all rewards, or of those from t on."""
    rollout = world.all_answers()
    rewards = token_rewards(world.rewards, rollout.logprobs, world.listed_logprobs(world.reference),
                            rollout.actions, world.beta)
    weights = rewards.flip(1).cumsum(1).flip(1) if to_go else rewards.sum(1, keepdim=True)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)[:, None]
    logprobs = token_logprobs(world.policy(rollout.inputs), world.tokens, world.mask)
    got = gradient(world.policy, (p * weights * logprobs).sum())
    close(got, world.difference(world.objective, world.policy), atol=1e-8)
    without_price = world.gradient(world.policy, world.rewards)
    assert (got - without_price).abs().max() > 0.01
    p1 = answer_logprobs(world.policy, world.tokens, world.mask).detach()
    assert p1.exp().sum().item() == pytest.approx(1)
