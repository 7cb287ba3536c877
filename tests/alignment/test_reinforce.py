"""REINFORCE against sums over all answers: which baselines change nothing, which do, and where the learning ends."""

import pytest
import torch

from minigpt.alignment.exact import Table, answer_logprobs, gradient, kl_divergence, optimal_policy
from minigpt.training.losses import token_logprobs
from minigpt.alignment.reinforce import (
    ActorCritic,
    Reinforce,
    Task,
    advantages_over,
    reinforce_loss,
    watch,
)
from minigpt.alignment.rollouts import Rollout, rollout
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def policy_gradient(world, weights):
    """−∇ of the library's loss where answer i stands in the batch in proportion to its probability; weights (31,) or (31, T − 1)."""
    p = torch.tensor(world.probabilities(world.policy), dtype=F64).view(-1, *[1] * (weights.dim() - 1))
    logprobs = token_logprobs(world.policy(world.tokens[:, :-1]), world.tokens, world.mask)
    return -gradient(world.policy, reinforce_loss(logprobs, 31 * p * weights, world.actions))


def task(world, score=None):
    prompts = lambda n, generator: torch.tensor([world.prompt]).expand(n, -1)   # noqa: E731
    return Task(prompts, score or world.score, world.reference, max_new_tokens=4, stop_token=0, beta=world.beta)


# ---- 2: the gradient, with and without baselines ----

def test_the_losss_gradient_is_the_objectives(world):
    wanted = world.difference(lambda t: world.expectation(t, world.rewards), world.policy)
    close(policy_gradient(world, world.rewards), world.gradient(world.policy, world.rewards))
    close(policy_gradient(world, world.rewards), wanted, atol=1e-8)
    assert wanted.abs().max() > 0.05


def test_a_baseline_that_knows_the_state_changes_nothing_and_one_that_knows_the_action_does(world):
    plain = policy_gradient(world, world.rewards)
    close(policy_gradient(world, world.rewards - 3.7), plain, atol=1e-11)
    state, action = torch.zeros(2, 31, 4, dtype=F64)
    worth = {}
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            state[i, t] = worth.setdefault(answer[:t], torch.randn((), generator=world.generator, dtype=F64))
            action[i, t] = answer[t]
    close(policy_gradient(world, world.rewards[:, None] - state), plain)
    assert (policy_gradient(world, world.rewards[:, None] - action) - plain).abs().max() > 0.05
    assert cosine(policy_gradient(world, world.rewards[:, None] - action), plain) < 0.99


def test_no_gradient_passes_through_advantages():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[3.0, 4.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    (slope,) = torch.autograd.grad(reinforce_loss(logprobs, advantages, mask), logprobs)
    assert slope.tolist() == [[-3, -4]]
    reinforce_loss(logprobs, 2 * logprobs + advantages, mask).backward()
    assert logprobs.grad.tolist() == [[-1, 0]] and advantages.grad is None


def test_the_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -4.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert reinforce_loss(logprobs, torch.tensor([2.0, -1.0]), mask).item() == pytest.approx(-(2 * -3 + -1 * -5.5) / 2)
    per_token = torch.tensor([[1.0, 2.0, 100.0], [-1.0, 0.0, 3.0]])
    assert reinforce_loss(logprobs, per_token, mask).item() == pytest.approx(-((-1 - 4) + (0.5 - 3)) / 2)


# ---- 3: reward to go, groups ----

def test_rewards_still_to_come_are_enough(world):
    """What was paid before an action cannot be changed by it."""
    paid, worth = torch.zeros(31, 4, dtype=F64), {}                     # a reward for each step, the same for all answers that take it
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            paid[i, t] = worth.setdefault(answer[:t + 1], torch.randn((), generator=world.generator, dtype=F64))
    to_go = torch.tensor([[sum(row[t:]) for t in range(4)] for row in paid.tolist()], dtype=F64)
    close(policy_gradient(world, to_go), policy_gradient(world, paid.sum(1)))
    from_before = torch.tensor([[sum(row[:t]) for t in range(4)] for row in paid.tolist()], dtype=F64)
    assert policy_gradient(world, from_before).abs().max() < 1e-12
    assert (policy_gradient(world, to_go.roll(1, dims=1)) - policy_gradient(world, to_go)).abs().max() > 0.05


def test_dividing_by_the_length_turns_the_gradient(world):
    lengths = world.actions.sum(1)
    assert cosine(policy_gradient(world, world.rewards / lengths), policy_gradient(world, world.rewards)) < 0.99


def test_advantages_by_loops():
    returns = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    rows = returns.tolist()
    close(advantages_over(returns, "none"), returns)
    close(advantages_over(returns, "mean"), torch.tensor([[r - sum(row) / 4 for r in row] for row in rows], dtype=F64))
    others = [[r - (sum(row[:i]) + sum(row[i + 1:])) / 3 for i, r in enumerate(row)] for row in rows]
    close(advantages_over(returns, "leave_one_out"), torch.tensor(others, dtype=F64))


@pytest.mark.parametrize("n_samples", [2, 3])
def test_over_all_groups_leave_one_out_is_right_and_the_mean_too_short(world, n_samples):
    """Every group of G answers, each with its probability: exactly E[ 1/G Σ A ∇log π ]."""
    groups = torch.cartesian_prod(*[torch.arange(31)] * n_samples)      # (31^G, G)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)
    weight = p[groups].prod(1)                                          # (31^G)
    returns = world.rewards[groups]

    def expected(advantages):
        mass = torch.zeros(31, dtype=F64).index_add(0, groups.flatten(), (weight[:, None] * advantages / n_samples).flatten())
        return mass @ world.scores(world.policy)

    wanted = world.gradient(world.policy, world.rewards)
    close(expected(advantages_over(returns, "none")), wanted)
    close(expected(advantages_over(returns, "leave_one_out")), wanted)
    close(expected(advantages_over(returns, "mean")), wanted * (n_samples - 1) / n_samples)
    scaled = advantages_over(returns, "mean") / (returns.std(1, keepdim=True) + 1e-6)
    assert cosine(expected(scaled), wanted) < 0.995                     # by the group's deviation: another direction


def test_groups_that_are_none_are_refused():
    with pytest.raises(ValueError, match="leave_one_out"):
        advantages_over(torch.zeros(3, 1), "leave_one_out")
    with pytest.raises(ValueError, match="median"):
        advantages_over(torch.zeros(3, 2), "median")


# ---- the two functions for the loop ----

def test_attempts_are_scored_answers_with_groups_side_by_side(world):
    asked = []

    def prompts(n, generator):
        asked.append(n)
        return torch.arange(n)[:, None] % 3                             # (n, 1): prompts 0 1 2 0 1

    job = task(world)
    job.prompts = prompts
    done = job.attempt(world.policy, 5, 3, torch.Generator().manual_seed(0))
    assert asked == [5] and done.tokens[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1]
    close(done.scores, world.score(done.tokens, done.mask))
    close(done.ref_logprobs, token_logprobs(world.reference(done.tokens[:, :-1]), done.tokens, done.mask).detach())


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_a_batchs_advantages_are_priced_returns_against_their_own_group(world, baseline):
    job = Reinforce(world.policy, task(world), n_prompts=4, n_samples=3, baseline=baseline)
    done, advantages = job.next_batch(torch.Generator().manual_seed(1))
    assert done.tokens.shape == (12, 5) and advantages.shape == (12,) and not advantages.requires_grad
    pi, ref = (dict(zip(world.answers, world.logprobs(t))) for t in (world.policy, world.reference))
    R = []
    for tokens, mask, score in zip(done.tokens, done.mask, world.score(done.tokens, done.mask).tolist()):
        answer = tuple(tokens[mask].tolist())
        R.append(score - world.beta * (pi[answer] - ref[answer]))
    wanted = []
    for i, r in enumerate(R):
        group = R[i // 3 * 3:i // 3 * 3 + 3]
        wanted.append(r - {"none": 0, "mean": sum(group) / 3, "leave_one_out": (sum(group) - r) / 2}[baseline])
    assert advantages.tolist() == pytest.approx(wanted, abs=1e-11)
    loss = job.loss(world.policy, (done, advantages))
    logp = [pi[tuple(t[m].tolist())] for t, m in zip(done.tokens, done.mask)]
    assert loss.item() == pytest.approx(-sum(a * b for a, b in zip(wanted, logp)) / 12, abs=1e-11)


def test_with_a_learned_baseline_each_action_answers_for_what_comes_after_it(world):
    both = ActorCritic(world.policy, world.table(None))
    job = Reinforce(both, task(world), n_prompts=3, n_samples=2, baseline="learned")
    done, to_go = job.next_batch(torch.Generator().manual_seed(2))
    loss = job.loss(both, (done, to_go))
    values, rows = both.value(done.tokens[:, :-1]).detach(), both.value.numbers(done.tokens[:, :-1])
    total, wrong, count = 0.0, 0.0, int(done.actions.sum())
    value_slope = torch.zeros_like(both.value.rows)
    for i in range(6):
        last = int(done.actions[i].nonzero().max())
        rewards = [-world.beta * (done.logprobs[i, t] - done.ref_logprobs[i, t]).item() for t in range(last + 1)]
        rewards[-1] += done.scores[i].item()
        for t in range(last + 1):
            assert to_go[i, t].item() == pytest.approx(sum(rewards[t:]), abs=1e-11)
            error = sum(rewards[t:]) - values[i, t].item()
            total -= error * done.logprobs[i, t].item() / 6
            wrong += error**2 / 2 / count
            value_slope[rows[i, t]] -= error / count                    # of the squared error alone: the policy's loss sees numbers
    assert loss.item() == pytest.approx(total + wrong, abs=1e-11)
    (slope,) = torch.autograd.grad(loss, both.value.rows)
    close(slope, value_slope)


def test_watched_numbers_are_means_over_answers(world):
    done = world.all_answers()
    seen = watch(done)
    pi, ref = world.logprobs(world.policy), world.logprobs(world.reference)
    assert seen["score"] == pytest.approx(world.rewards.mean().item()) and seen["length"] == pytest.approx(sum(map(len, world.answers)) / 31, rel=1e-6)
    assert seen["kl"] == pytest.approx(sum(a - b for a, b in zip(pi, ref)) / 31)


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out", "learned"])
def test_more_padding_changes_neither_loss_nor_gradient(world, baseline):
    policy, value = Table(3, 7, 3).double(), Table(3, 7).double()
    with torch.no_grad():
        policy.rows.normal_(generator=world.generator)
        value.rows.normal_(generator=world.generator)
    model = ActorCritic(policy, value) if baseline == "learned" else policy
    job = Reinforce(model, task(world), n_prompts=8, n_samples=2, baseline=baseline)
    world.reference = Table(3, 7, 3).double()
    job.task.reference = world.reference
    done, advantages = job.next_batch(torch.Generator().manual_seed(3))

    def longer(x, value=0):
        return torch.nn.functional.pad(x, (0, 3), value=value)

    wider = Rollout(longer(done.tokens), longer(done.mask, False), longer(done.logprobs), longer(done.ref_logprobs), done.scores)
    a = gradient(model, job.loss(model, (done, advantages)))
    b = gradient(model, job.loss(model, (wider, longer(advantages) if baseline == "learned" else advantages)))
    assert a.abs().max() > 0.01
    close(a, b)


def test_misspelt_and_mismatched_baselines_are_refused(world):
    both = ActorCritic(world.policy, world.table(None))
    for policy, baseline, word in ((world.policy, "median", "median"), (world.policy, "learned", "ActorCritic"), (both, "mean", "ActorCritic")):
        with pytest.raises(ValueError, match=word):
            Reinforce(policy, task(world), baseline=baseline)


def test_the_mean_of_many_batches_is_the_exact_gradient(world):
    """Sampled by the library from end to end, against the sum over the list: ∇( E[R] − β·KL )."""
    job = Reinforce(world.policy, task(world), n_prompts=4000, n_samples=2)
    sampled = -gradient(world.policy, job.loss(world.policy, job.next_batch(torch.Generator().manual_seed(4))))
    pi, ref = world.logprobs(world.policy), world.logprobs(world.reference)
    priced = world.rewards - world.beta * torch.tensor([a - b for a, b in zip(pi, ref)], dtype=F64)
    wanted = world.gradient(world.policy, priced)
    mean = sum(p * r for p, r in zip(world.probabilities(world.policy), priced.tolist()))
    spread = sum(p * (r - mean) ** 2 * s.square() for p, r, s in zip(world.probabilities(world.policy), priced.tolist(), world.scores(world.policy)))
    assert ((sampled - wanted).abs() <= 6 * (spread / 8000).sqrt() + 1e-4).all()       # leave-one-out with G = 2 at most doubles the variance
    assert (world.gradient(world.policy, world.rewards) - wanted).abs().max() > 6 * (spread / 8000).sqrt().max()


# ---- training ----

@pytest.mark.parametrize("baseline, n_samples", [("leave_one_out", 4), ("learned", 1)])
def test_training_ends_at_the_best_policy(world, baseline, n_samples):
    policy = world.policy
    with torch.no_grad():
        policy.rows.copy_(world.reference.rows)
    model = ActorCritic(policy, Table(3, 4).double()) if baseline == "learned" else policy
    reference_before = world.reference.rows.detach().clone()
    job = Reinforce(model, task(world), n_prompts=128 // n_samples, n_samples=n_samples, baseline=baseline)
    config = TrainingConfig(max_steps=150, learning_rate=0.1, weight_decay=0, gradient_clip=1e9, evaluate_every=150)
    best, _ = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    gap = lambda: kl_divergence(answer_logprobs(policy, world.tokens, world.mask).detach(), best).item()    # noqa: E731
    start = gap()
    list(train(model, job.next_batch, job.loss, config, progress=False))
    assert start > 0.3 and gap() <= 1e-3
    assert torch.equal(world.reference.rows, reference_before) and world.reference.rows.grad is None


def test_a_tiny_gpt_learns_to_stop_when_stopping_pays():
    """The stop token is in the loss: a policy paid for short answers ends with short ones; the reference stays bit for bit."""
    config = GPTConfig(vocab_size=4, context_length=8, n_layers=1, n_heads=2, d_model=16)
    policy, reference = (GPT(config, torch.Generator().manual_seed(0)) for _ in range(2))
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    job = Reinforce(policy, Task(lambda n, g: torch.full((n, 2), 3), lambda tokens, mask: -mask.sum(1), reference, 6, 0, beta=0.1), n_prompts=8)
    schedule = TrainingConfig(max_steps=60, learning_rate=1e-2, weight_decay=0, evaluate_every=60)
    rows = train(policy, job.next_batch, job.loss, schedule, progress=False)
    next(rows)
    start = rollout(policy, torch.full((200, 2), 3), 6, 0, generator=torch.Generator().manual_seed(1)).actions.sum(1).float().mean()
    list(rows)
    end = rollout(policy, torch.full((200, 2), 3), 6, 0, generator=torch.Generator().manual_seed(1)).actions.sum(1).float().mean()
    assert start > 2.5 and end < 1.1
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert all(parameter.grad is None for parameter in reference.parameters())
