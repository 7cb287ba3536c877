"""PPO's parts against loops, hand arithmetic and exact sums; PPO as a whole against the best policy there is."""
import math

import pytest
import torch

from minigpt.alignment.exact import Table, answer_logprobs, gradient, kl_divergence, optimal_policy
from minigpt.alignment.logprobs import masked_mean
from minigpt.training.losses import token_logprobs
from minigpt.alignment.ppo import (
    PPO,
    AdaptiveKL,
    Minibatch,
    gae,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)
from minigpt.alignment.reinforce import ActorCritic, Task, reinforce_loss
from minigpt.alignment.reward_model import ValueModel
from minigpt.alignment.rollouts import Rollout, token_rewards
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def ragged(seed=0):
    """Rewards, values and masks of four rows: two prompt places at most, ends at several places, junk where nothing counts."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=F64)
    return rewards, values, mask


# ---- 10: generalised advantages ----

@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0), (0.7, 1.0)])
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


def test_advantages_are_blind_to_what_is_not_counted():
    rewards, values, mask = ragged()
    base = gae(rewards, values, mask)
    for junk in (5.0, math.nan, math.inf):
        spoilt = gae(rewards.masked_fill(~mask, junk), values.masked_fill(~mask, junk), mask)
        assert all(torch.equal(a, b) for a, b in zip(base, spoilt))
    longer = gae(*(torch.nn.functional.pad(x, (2, 3)) for x in (rewards, values, mask)))
    assert all(torch.equal(a, b[:, 2:-3]) for a, b in zip(base, longer))


def exact_value(world):
    """V(prefix) of the policy itself: what is still to come, by recursion. State prefix -> value."""
    pi, ref = world.steps(world.policy), world.steps(world.reference)
    worth, V = dict(zip(world.answers, world.rewards.tolist())), {}

    def value(answer):
        total = 0.0
        for token, (a, b) in enumerate(zip(pi[world.prompt + answer], ref[world.prompt + answer])):
            child = answer + (token,)
            total += math.exp(a) * (-world.beta * (a - b) + (worth[child] if child in worth else value(child)))
        V[answer] = total
        return total

    value(())
    return torch.tensor([[V[a[:t]] if t < len(a) else 0.0 for t in range(4)] for a in world.answers], dtype=F64)


def test_with_the_exact_value_every_lambda_is_right_and_with_a_wrong_one_only_one(world):
    done = world.all_answers()
    rewards = token_rewards(done.scores, done.logprobs, done.ref_logprobs, done.actions, world.beta)
    wanted = world.difference(lambda t: world.expectation(t, world.rewards) - world.beta * world.kl(t, world.reference), world.policy)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)[:, None]

    def direction(values, lam):
        advantages, _ = gae(rewards, values, world.actions, 1.0, lam)
        return (p[..., None] * advantages[..., None] * world.step_scores(world.policy)).sum((0, 1))

    right = exact_value(world)
    J = world.expectation(world.policy, world.rewards) - world.beta * world.kl(world.policy, world.reference)
    assert right[0, 0].item() == pytest.approx(J, abs=1e-12)
    wrong, worth = torch.zeros(31, 4, dtype=F64), {}
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            wrong[i, t] = worth.setdefault(answer[:t], torch.randn((), generator=world.generator, dtype=F64))
    exact = direction(right, 0.0)
    close(exact, wanted, atol=1e-8)
    for lam in (0.3, 0.95, 1.0):
        close(direction(right, lam), exact)
    close(direction(wrong, 1.0), exact)
    for lam in (0.0, 0.5, 0.95):
        assert (direction(wrong, lam) - exact).abs().max() > 3e-3


# ---- 11: the clipped loss ----

@pytest.mark.parametrize("ratio, advantage, slope", [
    (0.5, 1, -1), (1.0, 1, -1), (1.19, 1, -1), (1.21, 1, 0), (3.0, 1, 0),
    (0.5, -1, 0), (0.79, -1, 0), (0.81, -1, 1), (1.0, -1, 1), (1.5, -1, 1), (9.0, -1, 1),
])
def test_the_push_ends_only_where_it_has_gone_too_far(ratio, advantage, slope):
    r = torch.tensor([[ratio]], dtype=F64, requires_grad=True)
    old = torch.tensor([[-1.3]], dtype=F64)
    A, here = torch.full((1, 1), float(advantage), dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    loss = ppo_policy_loss(r.log() + old, old, A, here)
    wanted = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert loss.item() == pytest.approx(wanted, abs=1e-13)
    assert torch.autograd.grad(loss, r)[0].item() == pytest.approx(slope, abs=1e-12)
    h = 1e-6
    ends = [ppo_policy_loss(torch.tensor([[x]], dtype=F64).log(), torch.zeros(1, 1), A, here) for x in (ratio + h, ratio - h)]
    assert ((ends[0] - ends[1]) / (2 * h)).item() == pytest.approx(slope, abs=1e-6)


def test_the_loss_is_a_mean_over_counted_actions():
    new, old, advantages = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    mask = ragged()[2]
    terms = []
    for b in range(4):
        for t in range(6):
            if mask[b, t]:
                r, A = math.exp(new[b, t] - old[b, t]), advantages[b, t].item()
                terms.append(-min(r * A, min(max(r, 0.7), 1.3) * A))
    assert ppo_policy_loss(new, old, advantages, mask, clip=0.3).item() == pytest.approx(sum(terms) / len(terms), abs=1e-13)
    spoilt = advantages.masked_fill(~mask, math.nan)
    assert ppo_policy_loss(new, old, spoilt, mask, clip=0.3).item() == pytest.approx(sum(terms) / len(terms), abs=1e-13)


def test_at_the_old_policy_the_gradient_is_reinforces(world):
    done, A = world.all_answers(), torch.randn(31, 4, generator=world.generator, dtype=F64)
    logprobs = lambda: token_logprobs(world.policy(world.tokens[:, :-1]), world.tokens, world.mask)     # noqa: E731
    got = gradient(world.policy, ppo_policy_loss(logprobs(), done.logprobs, A, world.actions))
    count = sum(map(len, world.answers))
    by_hand = -(A[..., None] * world.step_scores(world.policy)).sum((0, 1)) / count
    close(got, by_hand)
    close(got, gradient(world.policy, reinforce_loss(logprobs(), A, world.actions)) * 31 / count)


def test_no_gradient_reaches_the_advantages():
    A = torch.ones(1, 1, requires_grad=True)
    logprobs = torch.zeros(1, 1, requires_grad=True)
    ppo_policy_loss(logprobs, torch.zeros(1, 1), A * (1 + logprobs), torch.ones(1, 1, dtype=torch.bool)).backward()
    assert A.grad is None and logprobs.grad.item() == -1


# ---- 12: value clip, whitening ----

def test_the_value_loss_is_the_larger_of_two_squares():
    values, old, returns = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
    mask, terms, plain = ragged()[2], [], []
    for b in range(4):
        for t in range(6):
            if mask[b, t]:
                v, o, R = (x[b, t].item() for x in (values, old, returns))
                near = min(max(v, o - 0.4), o + 0.4)
                terms.append(max((v - R) ** 2, (near - R) ** 2) / 2)
                plain.append((v - R) ** 2 / 2)
    got = ppo_value_loss(values, old, returns, mask, clip=0.4).item()
    assert got == pytest.approx(sum(terms) / len(terms), abs=1e-13) and got > sum(plain) / len(plain) + 0.01
    inside = old + 0.39 * torch.tanh(values)
    assert ppo_value_loss(inside, old, returns, mask, clip=0.4).item() == pytest.approx(((inside - returns)[mask] ** 2).mean().item() / 2, abs=1e-13)


@pytest.mark.parametrize("value, slope", [(0.1, -0.9), (0.19, -0.81), (0.3, 0.0), (-0.1, -1.1), (-0.3, -1.3), (1.5, 0.0), (2.5, 1.5)])
def test_a_value_that_has_moved_far_towards_its_goal_gets_no_push(value, slope):
    """Old value 0, return 1: pushed until 0.2, then not; from the wrong side always; beyond the return, pushed back once it is worse."""
    v = torch.tensor([[value]], dtype=F64, requires_grad=True)
    loss = ppo_value_loss(v, torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=torch.bool))
    assert torch.autograd.grad(loss, v)[0].item() == pytest.approx(slope, abs=1e-13)


def test_whitened_values_have_mean_zero_and_variance_one():
    values, _, mask = ragged(3)
    values = 5 * values + 11
    white = whiten(values, mask)
    counted = white[mask].tolist()
    assert sum(counted) / len(counted) == pytest.approx(0, abs=1e-12) and sum(x * x for x in counted) / len(counted) == pytest.approx(1, abs=1e-8)
    assert white[~mask].abs().max() == 0
    kept = whiten(values, mask, shift_mean=False)[mask]
    assert kept.mean().item() == pytest.approx(values[mask].mean().item(), abs=1e-12) and kept.var(correction=0).item() == pytest.approx(1, abs=1e-8)
    assert whiten(values, mask, shift_mean=False)[~mask].abs().max() == 0


def test_whitening_is_blind_to_what_is_not_counted_and_to_more_of_it():
    values, _, mask = ragged(3)
    white = whiten(values, mask)
    for junk in (1e6, math.nan):
        assert torch.equal(whiten(values.masked_fill(~mask, junk), mask), white)
    close(whiten(torch.nn.functional.pad(values, (1, 4), value=9.0), torch.nn.functional.pad(mask, (1, 4)))[:, 1:-4], white)
    naive = (values - values.mean()) / values.std()
    assert (naive - white)[mask].abs().max() > 0.01
    assert whiten(torch.full((1, 3), 2.0), torch.ones(1, 3, dtype=torch.bool)).abs().max() < 1e-3       # no spread: no division by 0


# ---- 14: the price that steers ----

def test_the_price_moves_by_a_fifth_at_most_and_the_right_way():
    for kl, error in ((0.0, -0.2), (1.7, -0.15), (2.0, 0.0), (2.3, 0.15), (2.4, 0.2), (1e9, 0.2), (-5.0, -0.2)):
        control = AdaptiveKL(0.5, target=2.0, horizon=1000)
        assert control.update(kl, 100) == pytest.approx(0.5 * (1 + error / 10), abs=1e-12) == control.beta


@pytest.mark.parametrize("settings", [(0.0, 1.0, 10), (0.1, 0.0, 10), (0.1, 1.0, 0), (-0.1, 1.0, 10)])
def test_a_price_that_cannot_be_steered_is_refused(settings):
    with pytest.raises(ValueError, match="greater than 0"):
        AdaptiveKL(*settings)


def test_a_collection_larger_than_the_horizon_is_refused():
    """0.2 · 6 horizons below 1 is −0.2: the price would turn into a prize."""
    with pytest.raises(ValueError, match="longer horizon"):
        AdaptiveKL(0.1, target=1.0, horizon=10).update(0.0, 60)


def test_the_price_settles_where_the_exact_kl_is_on_target(world):
    """The policy is always the best one for the present β, so KL(β) is a falling curve; found from both sides, and it stays."""
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    for start in (0.05, 50.0):
        control = AdaptiveKL(start, target=0.4, horizon=1000)
        for _ in range(400):
            best, _ = optimal_policy(ref, world.rewards, control.beta)
            before = control.beta
            kl = kl_divergence(best, ref).item()
            assert 1 - 0.2 * 256 / 1000 - 1e-12 <= control.update(kl, 256) / before <= 1 + 0.2 * 256 / 1000 + 1e-12
        assert kl == pytest.approx(0.4, abs=1e-6) and control.beta == pytest.approx(before, rel=1e-6)


# ---- PPO as a whole ----

def ppo(world, context=4, **options):
    value = Table(3, context).double()
    with torch.no_grad():
        value.rows.normal_(generator=world.generator)
    policy, reference = world.policy, world.reference
    if context > 4:
        policy, reference = Table(3, context, 3).double(), Table(3, context, 3).double()
        with torch.no_grad():
            policy.rows.normal_(generator=world.generator)
            reference.rows.normal_(generator=world.generator)
    task = Task(lambda n, generator: torch.tensor([world.prompt]).expand(n, -1), world.score, reference, 4, 0, world.beta)
    return PPO(ActorCritic(policy, value), task, **options)


def test_what_is_collected_is_the_rollout_its_values_and_their_advantages(world):
    job = ppo(world, n_prompts=5, n_samples=3, lam=0.8, whitened=False)
    full = job.collect(torch.Generator().manual_seed(0))
    done = full.done
    assert done.tokens.shape == (15, 5) and full.values.shape == full.advantages.shape == full.returns.shape == (15, 4)
    rows, numbers = job.model.value.rows.tolist(), job.model.value.numbers(done.tokens[:, :-1])
    pi, ref = (dict(zip(world.answers, world.token_logprobs(t))) for t in (world.policy, world.reference))
    for i in range(15):
        answer = tuple(done.tokens[i][done.mask[i]].tolist())
        n = len(answer)
        v = [rows[numbers[i, t]] for t in range(n)] + [0.0]
        r = [-world.beta * (a - b) for a, b in zip(pi[answer], ref[answer])]
        r[-1] += world.rewards[world.answers.index(answer)].item()
        errors = [r[t] + v[t + 1] - v[t] for t in range(n)]
        wanted = [sum(0.8 ** (j - t) * errors[j] for j in range(t, n)) for t in range(n)]
        assert full.advantages[i, :n].tolist() == pytest.approx(wanted, abs=1e-11)
        assert full.returns[i, :n].tolist() == pytest.approx([a + b for a, b in zip(wanted, v)], abs=1e-11)
    assert not any(x.requires_grad for x in (full.values, full.advantages, full.returns, done.logprobs))
    white = PPO(job.model, job.task, 5, 3, lam=0.8, whitened=True).collect(torch.Generator().manual_seed(0))
    close(white.advantages, whiten(full.advantages, done.actions))
    close(white.returns, full.returns)                                  # the value model's goal stays in the reward's unit
    explained = 1 - (full.returns - full.values)[done.actions].var(correction=0) / full.returns[done.actions].var(correction=0)
    assert job.seen["explained_variance"] == pytest.approx(explained.item())


def test_each_answer_is_used_once_an_epoch_with_its_own_numbers(world):
    job = ppo(world, n_prompts=4, n_samples=3, n_epochs=3, n_minibatches=2)
    collect, collected = job.collect, []
    job.collect = lambda generator: collected.append(collect(generator)) or collected[-1]
    generator = torch.Generator().manual_seed(5)
    batches = [job.next_batch(generator) for _ in range(7)]
    assert len(collected) == 2                                          # 3 epochs · 2 minibatches, then anew

    def rows(batch):
        parts = (*vars(batch.done).values(), batch.values, batch.advantages, batch.returns)
        return [str([part[i].tolist() for part in parts]) for i in range(len(batch.values))]

    epochs = [rows(batches[2 * i]) + rows(batches[2 * i + 1]) for i in range(3)]
    assert [len(b.values) for b in batches[:6]] == [6] * 6
    assert all(sorted(epoch) == sorted(rows(collected[0])) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]                          # shuffled anew each time


def test_the_first_ratio_is_one_and_nothing_is_clipped(world):
    job = ppo(world, n_prompts=40)
    batch = job.next_batch(torch.Generator().manual_seed(1))
    job.loss(job.model, batch)
    assert abs(job.seen["ratio_first"] - 1) < 1e-12 and job.seen["clip_fraction"] == 0
    # The detector must see a policy that is scored otherwise than sampled. A mean of ratios does not: Σ π_old·(π/π_old) = 1 for any π.
    with torch.no_grad():
        world.policy.rows.mul_(0.7)
    job.loss(job.model, batch)
    assert abs(job.seen["ratio_first"] - 1) < 1e-12                     # later losses leave it alone
    del job.seen["ratio_first"]
    job.loss(job.model, batch)
    assert abs(job.seen["ratio_first"] - 1) > 0.3 and job.seen["clip_fraction"] > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_the_first_ratio_of_a_gpt_is_one_in_either_mode(training):
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8)
    policy, reference, body = (GPT(config, torch.Generator().manual_seed(s)).double() for s in (0, 0, 1))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    task = Task(lambda n, g: torch.randint(1, 5, (n, 3), generator=g), lambda tokens, mask: mask.sum(1), reference, 6, 0, 0.1)
    model = ActorCritic(policy, ValueModel(body)).train(training)
    job = PPO(model, task, n_prompts=16, n_samples=2)
    job.loss(model, job.next_batch(torch.Generator().manual_seed(2)))
    assert abs(job.seen["ratio_first"] - 1) < 1e-10 and job.seen["clip_fraction"] == 0 and job.seen["kl"] != 0


def test_a_minibatchs_loss_is_policy_and_value_and_each_teaches_its_own(world):
    job = ppo(world, n_prompts=6, clip=0.15, value_clip=0.3)
    batch = job.next_batch(torch.Generator().manual_seed(3))
    with torch.no_grad():
        world.policy.rows.add_(0.4 * torch.randn(world.policy.rows.shape, generator=world.generator))
        job.model.value.rows.add_(0.4 * torch.randn(job.model.value.rows.shape, generator=world.generator))
    loss = job.loss(job.model, batch)
    pi, terms, clipped = dict(zip(world.answers, world.token_logprobs(world.policy))), [], 0
    numbers, rows = job.model.value.numbers(batch.done.tokens[:, :-1]), job.model.value.rows.tolist()
    for i in range(len(batch.values)):
        answer = tuple(batch.done.tokens[i][batch.done.mask[i]].tolist())
        for t in range(len(answer)):
            r, A = math.exp(pi[answer][t] - batch.done.logprobs[i, t].item()), batch.advantages[i, t].item()
            v, o, R = rows[numbers[i, t]], batch.values[i, t].item(), batch.returns[i, t].item()
            near = min(max(v, o - 0.3), o + 0.3)
            terms.append(-min(r * A, min(max(r, 0.85), 1.15) * A) + max((v - R) ** 2, (near - R) ** 2) / 2)
            clipped += abs(r - 1) > 0.15
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-11)
    assert job.seen["clip_fraction"] == pytest.approx(clipped / len(terms), abs=1e-6) and 0 < clipped < len(terms)
    policy_only = torch.autograd.grad(ppo_policy_loss(token_logprobs(world.policy(batch.done.tokens[:, :-1]), batch.done.tokens, batch.done.mask),
                                                      batch.done.logprobs, batch.advantages, batch.done.actions, 0.15), world.policy.rows)[0]
    close(torch.autograd.grad(loss, world.policy.rows)[0], policy_only)


def test_watched_entropy_is_not_over_padding(world):
    job = ppo(world, n_prompts=8)
    batch = job.next_batch(torch.Generator().manual_seed(4))
    with torch.no_grad():
        for i in range(len(batch.values)):                              # rows that only padding reads: made certain
            n = int(batch.done.mask[i].sum())
            after = world.policy.numbers(batch.done.tokens[:, :-1])[i, n:]
            world.policy.rows[after] = torch.tensor([60.0, 0, 0], dtype=F64)
    job.loss(job.model, batch)
    steps, H = world.steps(world.policy), []
    for tokens, mask in zip(batch.done.tokens, batch.done.mask):
        answer = tuple(tokens[mask].tolist())
        H += [-sum(math.exp(x) * x for x in steps[world.prompt + answer[:t]]) for t in range(len(answer))]
    assert job.seen["entropy"] == pytest.approx(sum(H) / len(H), abs=1e-11)
    assert abs(job.seen["entropy"] - sum(H) / batch.done.actions.numel()) > 0.01


def test_more_padding_changes_neither_loss_nor_gradient(world):
    job = ppo(world, context=7, n_prompts=6, whitened=True)
    batch = job.next_batch(torch.Generator().manual_seed(6))
    with torch.no_grad():
        job.model.policy.rows.add_(0.3 * torch.randn(job.model.policy.rows.shape, generator=world.generator))
    longer = lambda x: torch.nn.functional.pad(x, (0, 3))               # noqa: E731
    done = batch.done
    wider = Rollout(longer(done.tokens), longer(done.mask), longer(done.logprobs), longer(done.ref_logprobs), done.scores)
    wide = Minibatch(wider, longer(batch.values), longer(batch.advantages), longer(batch.returns))
    a, b = job.loss(job.model, batch), job.loss(job.model, wide)
    close(a.detach(), b.detach())
    close(gradient(job.model, a), gradient(job.model, b))


def test_the_price_is_steered_by_what_was_measured(world):
    job = ppo(world, n_prompts=8, adaptive=AdaptiveKL(0.7, target=1e-6, horizon=64))
    full = job.collect(torch.Generator().manual_seed(7))
    paid = token_rewards(full.done.scores, full.done.logprobs, full.done.ref_logprobs, full.done.actions, 0.7)
    advantages, _ = gae(paid, full.values, full.done.actions)
    torch.testing.assert_close(full.advantages, whiten(advantages, full.done.actions))
    assert job.seen["kl"] > 1e-5 and job.seen["beta"] == 0.7            # these answers are paid for at the price they were given under,
    assert job.adaptive.beta == pytest.approx(0.7 * (1 + 0.2 * 32 / 64))        # and what they cost sets the next one's
    assert job.seen["kl"] == pytest.approx((full.done.logprobs - full.done.ref_logprobs).sum(1).mean().item())
    job.collect(torch.Generator().manual_seed(8))
    assert job.seen["beta"] == pytest.approx(0.77)


@pytest.mark.parametrize("name", ["n_prompts", "n_samples", "n_epochs", "n_minibatches"])
def test_numbers_of_nothing_are_refused(world, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        ppo(world, **{name: 0})


@pytest.mark.parametrize("whitened, gap", [(False, 1e-3), (True, 5e-3)])
def test_training_ends_at_the_best_policy_and_the_reference_stays(world, whitened, gap):
    """Whitened advantages have variance 1 even where nothing is left to learn, so their noise does not end with the learning."""
    with torch.no_grad():
        world.policy.rows.copy_(world.reference.rows)
    job = ppo(world, n_prompts=256, n_samples=1, n_epochs=2, n_minibatches=1, value_clip=1.0, whitened=whitened)
    before = world.reference.rows.detach().clone()
    best, _ = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    config = TrainingConfig(max_steps=150, learning_rate=0.1, weight_decay=0, gradient_clip=1e9, evaluate_every=150)
    start = world.kl_to(best)
    list(train(job.model, job.next_batch, job.loss, config, progress=False))
    assert start > 0.3 and world.kl_to(best) <= gap
    assert torch.equal(world.reference.rows, before) and world.reference.rows.grad is None
    assert abs(job.seen["ratio_first"] - 1) < 1e-12


@pytest.fixture
def world(world):
    world.kl_to = lambda best: kl_divergence(answer_logprobs(world.policy, world.tokens, world.mask).detach(), best).item()
    return world


def test_masked_means_are_over_the_minibatch_not_row_by_row():
    """Said in the header: a long answer weighs more than a short one."""
    values, mask = torch.tensor([[1.0, 1, 1], [5, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(8 / 4)
