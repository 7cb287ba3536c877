"""PPO's parts against loops and exact sums; PPO as a whole against the optimal policy."""
import math

import pytest
import torch

from minigpt.alignment import ppo as module
from minigpt.alignment.exact import Table, answer_logprobs, gradient, kl_divergence, optimal_policy
from minigpt.alignment.logprobs import masked_mean
from minigpt.alignment.ppo import (
    PPOConfig,
    adapt_beta,
    explained_variance,
    gae,
    ppo,
    ppo_metrics,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)
from minigpt.alignment.reinforce import reinforce_loss
from minigpt.alignment.reward_model import ValueModel
from minigpt.alignment.rollouts import Rollout, roll_out, token_rewards
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.losses import token_logprobs

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def ragged(seed=0):
    """Rewards, values and mask of four answers that begin and end at different places."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0],
                         [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=F64)
    return rewards, values, mask


# ---- generalised advantages ----

@pytest.mark.parametrize("gamma, lam", [(1, 0.95), (0.9, 0.5), (1, 1), (1, 0), (0.7, 1)])
def test_advantages_are_the_explicit_sum_of_discounted_errors(gamma, lam):
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(4):
        places = [t for t in range(6) if mask[b, t]]
        r, v = [rewards[b, t].item() for t in places], [values[b, t].item() for t in places] + [0.0]
        errors = [r[k] + gamma * v[k + 1] - v[k] for k in range(len(places))]
        for k, t in enumerate(places):
            wanted = sum((gamma * lam) ** (j - k) * errors[j] for j in range(k, len(places)))
            if lam == 1:                                                # reward to go − V
                wanted = sum(gamma ** (j - k) * r[j] for j in range(k, len(places))) - v[k]
            elif lam == 0:                                              # one step's error
                wanted = errors[k]
            assert advantages[b, t].item() == pytest.approx(wanted, abs=1e-13)
            assert returns[b, t].item() == pytest.approx(wanted + v[k], abs=1e-13)
    assert advantages[~mask].abs().max() == 0 and returns[~mask].abs().max() == 0


def test_the_defaults_are_no_discount_and_lambda_095():
    close(torch.stack(gae(*ragged())), torch.stack(gae(*ragged(), gamma=1.0, lam=0.95)))


def test_advantages_do_not_depend_on_what_is_not_counted():
    rewards, values, mask = ragged()
    base = gae(rewards, values, mask)
    for junk in (5.0, math.nan, math.inf):
        spoilt = gae(rewards.masked_fill(~mask, junk), values.masked_fill(~mask, junk), mask)
        assert all(torch.equal(a, b) for a, b in zip(base, spoilt))
    longer = gae(*(torch.nn.functional.pad(x, (2, 3)) for x in (rewards, values, mask)))
    assert all(torch.equal(a, b[:, 2:-3]) for a, b in zip(base, longer))


def exact_value(world):
    """V of each prefix under the policy: the expected rewards still to come, by recursion."""
    pi, ref = world.steps(world.policy), world.steps(world.reference)
    worth, V = dict(zip(world.answers, world.rewards.tolist())), {}

    def value(answer):
        total = 0.0
        for token, (a, b) in enumerate(zip(pi[world.prompt + answer], ref[world.prompt + answer])):
            child = answer + (token,)
            to_come = worth[child] if child in worth else value(child)
            total += math.exp(a) * (-world.beta * (a - b) + to_come)
        V[answer] = total
        return total

    value(())
    rows = [[V[a[:t]] if t < len(a) else 0.0 for t in range(4)] for a in world.answers]
    return torch.tensor(rows, dtype=F64)


def test_every_lambda_is_right_with_the_exact_value_and_only_lambda_one_with_a_wrong_value(world):
    rollout, ref_logprobs = world.all_answers(), world.listed_logprobs(world.reference)
    rewards = token_rewards(world.rewards, rollout.logprobs, ref_logprobs, rollout.actions,
                            world.beta)
    wanted = world.difference(world.objective, world.policy)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)[:, None]

    def direction(values, lam):
        advantages, _ = gae(rewards, values, world.actions, 1.0, lam)
        return (p[..., None] * advantages[..., None] * world.step_scores(world.policy)).sum((0, 1))

    right = exact_value(world)
    assert right[0, 0].item() == pytest.approx(world.objective(world.policy), abs=1e-12)
    wrong, worth = torch.zeros(31, 4, dtype=F64), {}
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            noise = torch.randn((), generator=world.generator, dtype=F64)
            wrong[i, t] = worth.setdefault(answer[:t], noise)
    exact = direction(right, 0.0)
    close(exact, wanted, atol=1e-8)
    for lam in (0.3, 0.95, 1.0):
        close(direction(right, lam), exact)
    close(direction(wrong, 1.0), exact)
    for lam in (0.0, 0.5, 0.95):
        assert (direction(wrong, lam) - exact).abs().max() > 3e-3


# ---- the clipped loss ----

@pytest.mark.parametrize("ratio, advantage, slope", [
    (0.5, 1, -1), (1.0, 1, -1), (1.19, 1, -1), (1.21, 1, 0), (3.0, 1, 0),
    (0.5, -1, 0), (0.79, -1, 0), (0.81, -1, 1), (1.0, -1, 1), (1.5, -1, 1), (9.0, -1, 1),
])
def test_the_gradient_is_zero_only_where_the_ratio_has_moved_too_far(ratio, advantage, slope):
    r = torch.tensor([[ratio]], dtype=F64, requires_grad=True)
    old = torch.tensor([[-1.3]], dtype=F64)
    A, here = torch.full((1, 1), float(advantage), dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    loss = ppo_policy_loss(r.log() + old, old, A, here)
    wanted = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert loss.item() == pytest.approx(wanted, abs=1e-13)
    assert torch.autograd.grad(loss, r)[0].item() == pytest.approx(slope, abs=1e-12)
    h = 1e-6
    above, below = (ppo_policy_loss(torch.tensor([[x]], dtype=F64).log(), 0 * A, A, here)
                    for x in (ratio + h, ratio - h))
    assert ((above - below) / (2 * h)).item() == pytest.approx(slope, abs=1e-6)


def test_the_loss_is_a_mean_over_counted_actions():
    generator = torch.Generator().manual_seed(1)
    new, old, advantages = torch.randn(3, 4, 6, generator=generator, dtype=F64)
    mask = ragged()[2]
    terms = []
    for b in range(4):
        for t in range(6):
            if mask[b, t]:
                r, A = math.exp(new[b, t] - old[b, t]), advantages[b, t].item()
                terms.append(-min(r * A, min(max(r, 0.7), 1.3) * A))
    for weights in (advantages, advantages.masked_fill(~mask, math.nan)):
        loss = ppo_policy_loss(new, old, weights, mask, clip=0.3)
        assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-13)


def test_at_the_old_policy_the_gradient_is_that_of_reinforce(world):
    rollout, A = world.all_answers(), torch.randn(31, 4, generator=world.generator, dtype=F64)

    def logprobs():
        return token_logprobs(world.policy(rollout.inputs), world.tokens, world.mask)

    got = gradient(world.policy, ppo_policy_loss(logprobs(), rollout.logprobs, A, world.actions))
    count = sum(map(len, world.answers))
    by_hand = -(A[..., None] * world.step_scores(world.policy)).sum((0, 1)) / count
    close(got, by_hand)
    close(got, gradient(world.policy, reinforce_loss(logprobs(), A, world.actions)) * 31 / count)


def test_no_gradient_reaches_the_advantages():
    A = torch.ones(1, 1, requires_grad=True)
    logprobs = torch.zeros(1, 1, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    ppo_policy_loss(logprobs, torch.zeros(1, 1), A * (1 + logprobs), mask).backward()
    assert A.grad is None and logprobs.grad.item() == -1


# ---- value loss, whitening ----

def test_the_value_loss_is_the_larger_of_two_squares():
    generator = torch.Generator().manual_seed(2)
    values, old, returns = torch.randn(3, 4, 6, generator=generator, dtype=F64)
    mask, terms, plain = ragged()[2], [], []
    for b in range(4):
        for t in range(6):
            if mask[b, t]:
                v, o, R = (x[b, t].item() for x in (values, old, returns))
                near = min(max(v, o - 0.4), o + 0.4)
                terms.append(max((v - R) ** 2, (near - R) ** 2) / 2)
                plain.append((v - R) ** 2 / 2)
    got = ppo_value_loss(values, old, returns, mask, clip=0.4).item()
    assert got == pytest.approx(sum(terms) / len(terms), abs=1e-13)
    assert got > sum(plain) / len(plain) + 0.01
    inside = old + 0.39 * torch.tanh(values)
    wanted = ((inside - returns)[mask] ** 2).mean().item() / 2
    got = ppo_value_loss(inside, old, returns, mask, clip=0.4).item()
    assert got == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("value, slope", [
    (0.1, -0.9), (0.19, -0.81), (0.3, 0.0), (-0.1, -1.1), (-0.3, -1.3), (1.5, 0.0), (2.5, 1.5),
])
def test_a_value_that_has_moved_far_towards_the_return_has_no_gradient(value, slope):
    """The old value is 0 and the return 1.

    The gradient is 0 from 0.2 on, until the error is larger than that of the clipped value. A value
    that moved away from the return always has a gradient.
    """
    v = torch.tensor([[value]], dtype=F64, requires_grad=True)
    old, returns = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    loss = ppo_value_loss(v, old, returns, torch.ones(1, 1, dtype=torch.bool))
    assert torch.autograd.grad(loss, v)[0].item() == pytest.approx(slope, abs=1e-13)


def test_whitened_values_have_mean_zero_and_variance_one():
    values, _, mask = ragged(3)
    values = 5 * values + 11
    white = whiten(values, mask)
    counted = white[mask].tolist()
    assert sum(counted) / len(counted) == pytest.approx(0, abs=1e-12)
    assert sum(x * x for x in counted) / len(counted) == pytest.approx(1, abs=1e-8)
    assert white[~mask].abs().max() == 0


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.1, 3.0, 1e8, -1e20, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_equal_values_are_whitened_to_exactly_zero(size, dtype):
    """The mean of a thousand times 0.1 is not 0.1 in floating point."""
    mask = torch.rand(10, 100, generator=torch.Generator().manual_seed(0)) < 0.7
    assert whiten(torch.full((10, 100), size, dtype=dtype), mask).abs().max() == 0


def test_values_far_from_zero_are_whitened_as_well_as_small_ones():
    values, _, mask = ragged(3)
    small = (values * 2**20).round()            # whole numbers, exact also when 2^40 is added
    close(whiten(small + 2**40, mask), whiten(small, mask), atol=1e-9)


def test_nothing_to_whiten_is_refused():
    with pytest.raises(ValueError, match="nothing to average"):
        whiten(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        whiten(torch.zeros(2, 3), torch.ones(2, 3))


def test_whitening_does_not_depend_on_what_is_not_counted():
    values, _, mask = ragged(3)
    white = whiten(values, mask)
    for junk in (1e6, math.nan):
        assert torch.equal(whiten(values.masked_fill(~mask, junk), mask), white)
    longer = torch.nn.functional.pad(values, (1, 4), value=9.0)
    close(whiten(longer, torch.nn.functional.pad(mask, (1, 4)))[:, 1:-4], white)
    naive = (values - values.mean()) / values.std()
    assert (naive - white)[mask].abs().max() > 0.01


# ---- the clipped loss at any log-ratio ----

@pytest.mark.parametrize("log_ratio", [-1e4, -200.0, -1.0, 0.0, 1.0, 89.0, 200.0, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_log_ratio_gives_nan(log_ratio, advantage, dtype):
    """min(ρA, clip(ρ)A) and its slope in log ρ by cases; ρ overflows from log ρ = 89 on."""
    x = torch.tensor([[log_ratio]], dtype=dtype, requires_grad=True)
    loss = ppo_policy_loss(x, torch.zeros(1, 1, dtype=dtype),
                           torch.tensor([[advantage]], dtype=dtype), torch.tensor([[True]]))
    slope = torch.autograd.grad(loss, x)[0].item()
    if advantage == 0:
        assert loss.item() == 0 and slope == 0
    elif advantage > 0:
        ratio = math.exp(min(log_ratio, 5.0))
        assert loss.item() == pytest.approx(-min(ratio, 1.2), rel=1e-6)
        assert slope == pytest.approx(-ratio if ratio < 1.2 else 0, rel=1e-6)
    else:
        ratio = math.exp(log_ratio) if log_ratio < 709 else math.inf
        ratio = ratio if dtype == F64 or log_ratio < 88 else math.inf
        assert loss.item() == pytest.approx(max(ratio, 0.8), rel=1e-6)
        assert slope == pytest.approx(ratio if ratio > 0.8 else 0, rel=1e-6)


def test_the_ratio_is_computed_only_where_the_mask_counts():
    x = torch.tensor([[0.0, 1e4, -math.inf, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False, False, False]])
    loss = ppo_policy_loss(x, torch.zeros(1, 4), torch.tensor([[2.0, 1.0, math.nan, 1.0]]), mask)
    assert loss.item() == -2
    assert torch.autograd.grad(loss, x)[0].tolist() == [[-2, 0, 0, 0]]


@pytest.mark.parametrize("clip", [0.0, 1.0, -0.2, math.nan])
def test_a_clip_that_leaves_no_range_is_refused(clip):
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="clip"):
        ppo_policy_loss(one, one, one, one.bool(), clip)
    for legal in (0.01, 0.99):
        ppo_policy_loss(one, one, one, one.bool(), legal)


# ---- the β that follows a target ----

def test_the_error_of_beta_is_clipped_to_a_fifth():
    for kl, error in ((0.0, -0.2), (1.7, -0.15), (2.0, 0.0), (2.3, 0.15), (2.4, 0.2), (1e9, 0.2),
                      (-5.0, -0.2)):
        got = adapt_beta(0.5, kl, target=2.0, n_answers=100, horizon=1000)
        assert got == pytest.approx(0.5 * (1 + error / 10), abs=1e-12)


@pytest.mark.parametrize("beta, target", [(0.0, 1.0), (0.1, 0.0), (-0.1, 1.0), (0.1, math.nan)])
def test_a_beta_that_cannot_follow_a_target_is_refused(beta, target):
    with pytest.raises(ValueError, match="positive numbers"):
        adapt_beta(beta, 1.0, target, 5, 10)
    with pytest.raises(ValueError, match="beta"):
        PPOConfig(1, 4, 0, beta=beta, kl_target=target)


def test_more_answers_than_the_horizon_are_refused():
    """With six times the horizon the factor is 1 − 0.2 · 6 < 0, and β would become negative."""
    with pytest.raises(ValueError, match="horizon"):
        adapt_beta(0.1, 0.0, 1.0, n_answers=11, horizon=10)
    adapt_beta(0.1, 0.0, 1.0, n_answers=10, horizon=10)
    with pytest.raises(ValueError, match="horizon"):
        adapt_beta(0.1, 0.0, 1.0, n_answers=0, horizon=10)


def test_beta_converges_where_the_exact_kl_is_on_target(world):
    """The policy is the optimal one for each β, so KL(β) is a decreasing function."""
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    for beta in (0.05, 50.0):
        for _ in range(400):
            best, _ = optimal_policy(ref, world.rewards, beta)
            kl, before = kl_divergence(best, ref).item(), beta
            beta = adapt_beta(beta, kl, 0.4, 256, 1000)
            assert abs(beta / before - 1) <= 0.2 * 256 / 1000 + 1e-12
        assert kl == pytest.approx(0.4, abs=1e-6) and beta == pytest.approx(before, rel=1e-6)


# ---- metrics ----

def test_metrics_by_loops(world):
    rollout = world.all_answers()
    with torch.no_grad():
        world.policy.rows.add_(0.2 * torch.randn(world.policy.rows.shape,
                                                 generator=world.generator))
    logits = world.policy(rollout.inputs)
    logprobs = token_logprobs(logits, rollout.tokens, rollout.mask)
    metrics = ppo_metrics(logits, logprobs, rollout, clip=0.15)
    ratios, H = [], []
    new, steps = world.token_logprobs(world.policy), world.steps(world.policy)
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            ratios.append(math.exp(new[i][t] - rollout.logprobs[i, t].item()))
            H.append(-sum(math.exp(x) * x for x in steps[world.prompt + answer[:t]]))
    assert metrics["ratio"] == pytest.approx(max(ratios, key=lambda r: abs(r - 1)))
    wanted = sum(abs(r - 1) > 0.15 for r in ratios) / len(ratios)
    assert metrics["clip_fraction"] == pytest.approx(wanted, abs=1e-6) and 0 < wanted < 1
    assert metrics["entropy"] == pytest.approx(sum(H) / len(H), abs=1e-11)


def test_explained_variance_by_hand():
    values, returns = torch.tensor([[1.0, 2, 9]]), torch.tensor([[2.0, 4, -9]])
    mask = torch.tensor([[True, True, False]])
    assert explained_variance(values, returns, mask) == pytest.approx(1 - 0.25 / 1)
    assert explained_variance(returns + 5, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.zeros(1, 3), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)


# ---- PPO as a whole ----

def value_table(world, noise=1.0):
    table = Table(3, 4).double()
    with torch.no_grad():
        table.rows.normal_(generator=world.generator).mul_(noise)
    return table


def settings(world, **more):
    return PPOConfig(**{"n_iterations": 1, "max_new_tokens": 4, "stop_token": 0, "n_prompts": 8,
                        "n_samples": 4, "beta": world.beta} | more)


def run(world, value, on_row=None, **more):
    def prompts(n, generator):
        return torch.tensor([world.prompt]).expand(n, -1)
    return ppo(world.policy, value, world.reference, prompts, world.score, settings(world, **more),
               on_row)


class Recorder:
    """Records the arguments and results of the loop's functions, which work as usual."""

    def __init__(self, monkeypatch, *names):
        self.calls = {name: [] for name in names}
        for name in names:
            monkeypatch.setattr(module, name, self.keep(name, getattr(module, name)))

    def keep(self, name, function):
        def kept(*arguments, **options):
            result = function(*arguments, **options)
            self.calls[name].append((arguments, result))
            return result
        return kept


def test_an_iteration_uses_each_answer_once_per_epoch(world, monkeypatch):
    seen = Recorder(monkeypatch, "roll_out", "ppo_policy_loss", "gae", "whiten", "gradient_step")
    run(world, value_table(world), n_epochs=3, n_minibatches=4, gradient_clip=9.0)
    ((_, rollout),) = seen.calls["roll_out"]
    ((_, (advantages, _)),), ((_, whitened),) = seen.calls["gae"], seen.calls["whiten"]
    losses = [arguments for arguments, _ in seen.calls["ppo_policy_loss"]]
    assert len(losses) == 12 and {len(a[0]) for a in losses} == {8}

    def rows(*parts):
        return sorted(tuple(row) for row in torch.cat(parts, dim=1).tolist())

    everything = rows(rollout.logprobs, whitened, rollout.actions)
    epochs = []
    for epoch in range(3):
        parts = [torch.cat(column) for column in zip(*(a[1:4] for a in losses[4 * epoch:][:4]))]
        assert rows(*parts) == everything
        epochs.append(torch.cat(parts, dim=1).tolist())
    assert epochs[0] != epochs[1] != epochs[2]                          # a new order each time
    close(whitened, whiten(advantages, rollout.actions))
    scales = [arguments[3] for arguments, _ in seen.calls["gradient_step"]]
    assert scales == pytest.approx([min((i + 1) / 20, (12 - i) / 6) for i in range(12)])
    assert {arguments[4] for arguments, _ in seen.calls["gradient_step"]} == {9.0}


def test_rewards_carry_the_price_and_the_score_at_the_last_action(world, monkeypatch):
    seen = Recorder(monkeypatch, "roll_out", "gae")
    value = value_table(world)
    before = value.rows.detach().tolist()
    started = dict(zip(world.answers, world.token_logprobs(world.policy)))
    (row,) = run(world, value, gamma=0.9, lam=0.8)
    ((_, rollout),) = seen.calls["roll_out"]
    ((arguments, (advantages, returns)),) = seen.calls["gae"]
    rewards, values, actions, gamma, lam = arguments
    assert (gamma, lam) == (0.9, 0.8) and torch.equal(actions, rollout.actions)
    ref = dict(zip(world.answers, world.token_logprobs(world.reference)))
    worth = dict(zip(world.answers, world.rewards.tolist()))
    numbers = value.numbers(rollout.inputs)
    for i in range(len(rollout)):
        answer = tuple(rollout.tokens[i][rollout.mask[i]].tolist())
        wanted = [-world.beta * (a - b) for a, b in zip(started[answer], ref[answer])]
        wanted[-1] += worth[answer]
        n = len(answer)
        assert rewards[i].tolist() == pytest.approx(wanted + [0.0] * (4 - n), abs=1e-12)
        assert values[i].tolist() == pytest.approx([before[k] for k in numbers[i]], abs=1e-12)
    assert not advantages.requires_grad and not returns.requires_grad
    assert row["explained_variance"] == pytest.approx(explained_variance(values, returns, actions))
    assert row["beta"] == world.beta


def test_a_minibatchs_loss_is_policy_and_value_and_each_has_its_own_gradient(world, monkeypatch):
    value, losses = value_table(world), []
    monkeypatch.setattr(module, "gradient_step", lambda models, loss, *_: losses.append(
        (loss, gradient(world.policy, loss), gradient(value, loss))))
    seen = Recorder(monkeypatch, "ppo_policy_loss", "ppo_value_loss")
    run(world, value, clip=0.15, value_clip=0.3, n_minibatches=3)
    for (loss, slope, value_slope), (_, a), ((new, old, *_, clip), b) in zip(
            losses, seen.calls["ppo_policy_loss"], seen.calls["ppo_value_loss"]):
        assert loss.item() == pytest.approx((a + b).item()) and clip == 0.3
        close(slope, gradient(world.policy, a))
        close(value_slope, gradient(value, b))
        assert slope.abs().max() > 0.001 and value_slope.abs().max() > 0.001
        close(new.detach(), old)                                        # no step was taken
    assert {arguments[4] for arguments, _ in seen.calls["ppo_policy_loss"]} == {0.15}


def test_the_first_ratio_is_one_and_the_last_is_not(world):
    rows = run(world, value_table(world), n_iterations=3, learning_rate=0.3, n_epochs=4)
    for row in rows:
        assert abs(row["ratio_first"] - 1) < 1e-12
    assert rows[1]["clip_fraction"] > 0.05


@pytest.mark.parametrize("training", [True, False])
def test_the_first_ratio_of_a_gpt_is_one_in_either_mode(training):
    shape = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8)
    policy, reference, body = (GPT(shape, torch.Generator().manual_seed(s)).double().train(training)
                               for s in (0, 0, 1))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    config = PPOConfig(1, max_new_tokens=6, stop_token=0, n_prompts=16, n_samples=2)
    (row,) = ppo(policy, ValueModel(body), reference,
                 lambda n, generator: torch.randint(1, 5, (n, 3), generator=generator),
                 lambda tokens, mask: mask.sum(1), config)
    assert abs(row["ratio_first"] - 1) < 1e-10 and row["kl"] != 0


def test_the_first_ratio_shows_that_sampling_and_scoring_differ(world, monkeypatch):
    """Answers are sampled at temperature 2 and scored at temperature 1."""
    monkeypatch.setattr(module, "roll_out", lambda *arguments, generator: roll_out(
        *arguments, temperature=2.0, generator=generator))
    (row,) = run(world, value_table(world), n_prompts=64)
    assert abs(row["ratio_first"] - 1) > 0.3


def test_more_padding_changes_neither_loss_nor_gradient(world):
    policy, value = Table(3, 7, 3).double(), Table(3, 7).double()
    with torch.no_grad():
        policy.rows.normal_(generator=world.generator)
        value.rows.normal_(generator=world.generator)
    rollout, results = world.all_answers(), []
    A, returns = torch.randn(2, 31, 4, generator=world.generator, dtype=F64)
    for n in (0, 3):
        def longer(x):
            return torch.nn.functional.pad(x, (0, n))   # noqa: B023
        wide = Rollout(longer(rollout.tokens), longer(rollout.mask), longer(rollout.logprobs))
        logprobs = token_logprobs(policy(wide.inputs), wide.tokens, wide.mask)
        loss = ppo_policy_loss(logprobs, wide.logprobs, longer(A), wide.actions)
        loss = loss + ppo_value_loss(value(wide.inputs), longer(returns), longer(A), wide.actions)
        results.append((loss.detach(), gradient(policy, loss), gradient(value, loss)))
    for a, b in zip(*results):
        close(a, b)


def test_beta_follows_the_measured_kl_from_the_next_iteration_on(world, monkeypatch):
    seen = Recorder(monkeypatch, "token_rewards")
    rows = run(world, value_table(world), n_iterations=3, beta=0.7, kl_target=1e-6, kl_horizon=64,
               learning_rate=1e-6)
    assert all(row["kl"] > 1e-5 for row in rows)                        # far above the target
    wanted = [0.7, 0.7 * 1.1, 0.7 * 1.1 * 1.1]                          # 1 + 0.2 · 32/64
    assert [row["beta"] for row in rows] == pytest.approx(wanted)
    assert [arguments[4] for arguments, _ in seen.calls["token_rewards"]] == pytest.approx(wanted)


def test_on_row_can_add_and_stop(world):
    def on_row(row):
        row["added"] = True
        return row["iteration"] == 1

    rows = run(world, value_table(world), on_row, n_iterations=5)
    assert [row["iteration"] for row in rows] == [0, 1] and all(row["added"] for row in rows)


@pytest.mark.parametrize("wrong", [
    {"n_epochs": 0}, {"n_minibatches": 0}, {"n_minibatches": 33}, {"clip": 0.0}, {"clip": 1.0},
    {"value_clip": 0.0}, {"gamma": 1.1}, {"gamma": -0.1}, {"lam": 1.1}, {"lam": -0.1},
])
def test_settings_under_which_nothing_is_learned_are_refused(world, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(world, **wrong)
    settings(world, n_epochs=1, n_minibatches=32, gamma=1.0, lam=0.0)
    settings(world, n_minibatches=1, gamma=0.0, lam=1.0)


def test_a_policy_that_is_its_own_reference_is_refused(world):
    world.reference = world.policy
    with pytest.raises(ValueError, match="share parameters"):
        run(world, value_table(world))


def test_training_ends_at_the_best_policy_and_the_reference_stays(world):
    """Advantages have variance 1 even where nothing is left to learn, so some noise stays."""
    with torch.no_grad():
        world.policy.rows.copy_(world.reference.rows)
    before = world.reference.rows.detach().clone()
    ref_logprobs = torch.tensor(world.logprobs(world.reference), dtype=F64)
    best, _ = optimal_policy(ref_logprobs, world.rewards, world.beta)

    def gap():
        logprobs = answer_logprobs(world.policy, world.tokens, world.mask).detach()
        return kl_divergence(logprobs, best).item()

    start = gap()
    run(world, value_table(world), n_iterations=75, n_prompts=256, n_samples=1, n_epochs=2,
        n_minibatches=1, value_clip=1.0, learning_rate=0.1, gradient_clip=1e9)
    assert start > 0.3 and gap() <= 5e-3
    assert torch.equal(world.reference.rows, before) and world.reference.rows.grad is None


def test_masked_means_are_over_the_whole_minibatch():
    """A long answer weighs more than a short one."""
    values = torch.tensor([[1.0, 1, 1], [5, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert masked_mean(values, mask).item() == pytest.approx(8 / 4)
