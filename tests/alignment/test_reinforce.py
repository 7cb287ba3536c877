"""REINFORCE against sums over all answers: its gradient, its baselines, and where it converges."""
import math

import pytest
import torch

from minigpt.alignment import reinforce as module
from minigpt.alignment.exact import Table, answer_logprobs, gradient, kl_divergence, optimal_policy
from minigpt.alignment.reinforce import (
    ReinforceConfig,
    reinforce,
    reinforce_loss,
    subtract_baseline,
)
from minigpt.alignment.rollouts import roll_out
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.losses import token_logprobs

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def policy_gradient(world, weights):
    """−∇ of the library's loss with each answer weighted by its probability.

    `weights` are the advantages, (31,) or (31, T − 1).
    """
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)
    p = p.view(-1, *[1] * (weights.dim() - 1))
    logprobs = token_logprobs(world.policy(world.tokens[:, :-1]), world.tokens, world.mask)
    return -gradient(world.policy, reinforce_loss(logprobs, 31 * p * weights, world.actions))


def prompts_of(world):
    def prompts(n, generator):
        return torch.tensor([world.prompt]).expand(n, -1)
    return prompts


def settings(world, **more):
    return ReinforceConfig(**{"n_iterations": 1, "max_new_tokens": 4, "stop_token": 0,
                              "beta": world.beta, "n_prompts": 4, "n_samples": 3} | more)


# ---- the gradient, with and without baselines ----

def test_the_gradient_of_the_loss_is_that_of_the_objective(world):
    wanted = world.difference(lambda t: world.expectation(t, world.rewards), world.policy)
    close(policy_gradient(world, world.rewards), world.gradient(world.policy, world.rewards))
    close(policy_gradient(world, world.rewards), wanted, atol=1e-8)
    assert wanted.abs().max() > 0.05


def test_a_baseline_may_depend_on_the_state_but_not_on_the_action(world):
    plain = policy_gradient(world, world.rewards)
    close(policy_gradient(world, world.rewards - 3.7), plain, atol=1e-11)
    state, action = torch.zeros(2, 31, 4, dtype=F64)
    worth = {}
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            noise = torch.randn((), generator=world.generator, dtype=F64)
            state[i, t] = worth.setdefault(answer[:t], noise)
            action[i, t] = answer[t]
    close(policy_gradient(world, world.rewards[:, None] - state), plain)
    biased = policy_gradient(world, world.rewards[:, None] - action)
    assert (biased - plain).abs().max() > 0.05
    assert cosine(biased, plain) < 0.99


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
    loss = reinforce_loss(logprobs, torch.tensor([2.0, -1.0]), mask).item()
    assert loss == pytest.approx(-(2 * -3 + -1 * -5.5) / 2)
    per_token = torch.tensor([[1.0, 2.0, 100.0], [-1.0, 0.0, 3.0]])
    loss = reinforce_loss(logprobs, per_token, mask).item()
    assert loss == pytest.approx(-((-1 - 4) + (0.5 - 3)) / 2)


# ---- reward to go, groups ----

def test_rewards_still_to_come_are_enough(world):
    """An action cannot change the rewards before it. Here each step has its own reward."""
    paid, worth = torch.zeros(31, 4, dtype=F64), {}
    for i, answer in enumerate(world.answers):
        for t in range(len(answer)):
            noise = torch.randn((), generator=world.generator, dtype=F64)
            paid[i, t] = worth.setdefault(answer[:t + 1], noise)
    rows = paid.tolist()
    to_go = torch.tensor([[sum(row[t:]) for t in range(4)] for row in rows], dtype=F64)
    close(policy_gradient(world, to_go), policy_gradient(world, paid.sum(1)))
    from_before = torch.tensor([[sum(row[:t]) for t in range(4)] for row in rows], dtype=F64)
    assert policy_gradient(world, from_before).abs().max() < 1e-12
    shifted = policy_gradient(world, to_go.roll(1, dims=1))
    assert (shifted - policy_gradient(world, to_go)).abs().max() > 0.05


def test_dividing_by_the_length_changes_the_direction_of_the_gradient(world):
    lengths = world.actions.sum(1)
    divided = policy_gradient(world, world.rewards / lengths)
    assert cosine(divided, policy_gradient(world, world.rewards)) < 0.99


def test_advantages_by_loops():
    returns = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    rows = returns.tolist()
    close(subtract_baseline(returns, "none"), returns)
    centred = [[r - sum(row) / 4 for r in row] for row in rows]
    close(subtract_baseline(returns, "mean"), torch.tensor(centred, dtype=F64))
    others = [[r - (sum(row[:i]) + sum(row[i + 1:])) / 3 for i, r in enumerate(row)]
              for row in rows]
    close(subtract_baseline(returns, "leave_one_out"), torch.tensor(others, dtype=F64))


@pytest.mark.parametrize("n_samples", [2, 3])
def test_leave_one_out_is_unbiased_and_the_mean_makes_the_gradient_too_short(world, n_samples):
    """The exact E[ 1/G Σ A ∇log π ], as a sum over all groups of G answers."""
    groups = torch.cartesian_prod(*[torch.arange(31)] * n_samples)      # (31^G, G)
    p = torch.tensor(world.probabilities(world.policy), dtype=F64)
    weight = p[groups].prod(1)                                          # (31^G)
    returns = world.rewards[groups]

    def expected(advantages):
        terms = (weight[:, None] * advantages / n_samples).flatten()
        mass = torch.zeros(31, dtype=F64).index_add(0, groups.flatten(), terms)
        return mass @ world.scores(world.policy)

    wanted = world.gradient(world.policy, world.rewards)
    close(expected(subtract_baseline(returns, "none")), wanted)
    close(expected(subtract_baseline(returns, "leave_one_out")), wanted)
    close(expected(subtract_baseline(returns, "mean")), wanted * (n_samples - 1) / n_samples)
    scaled = subtract_baseline(returns, "mean") / (returns.std(1, keepdim=True) + 1e-6)
    assert cosine(expected(scaled), wanted) < 0.995     # GRPO's division changes the direction


def test_a_group_of_one_and_an_unknown_baseline_are_refused():
    with pytest.raises(ValueError, match="leave_one_out"):
        subtract_baseline(torch.zeros(3, 1), "leave_one_out")
    with pytest.raises(ValueError, match="median"):
        subtract_baseline(torch.zeros(3, 2), "median")


# ---- one iteration of the algorithm ----

def run_one_iteration(world, monkeypatch, **more):
    """The sampled rollout and the gradient of one iteration; the policy stays as it is."""
    seen = {}

    def keep_rollout(*arguments, **options):
        seen["rollout"] = roll_out(*arguments, **options)
        return seen["rollout"]

    def keep_gradient(model, loss, optimizers, scale, gradient_clip):
        seen["loss"], seen["scale"], seen["clip"] = loss.item(), scale, gradient_clip
        seen["gradient"] = gradient(model, loss)

    monkeypatch.setattr(module, "roll_out", keep_rollout)
    monkeypatch.setattr(module, "gradient_step", keep_gradient)
    (row,) = reinforce(world.policy, world.reference, prompts_of(world), world.score,
                       settings(world, **more))
    return seen, row


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_one_iteration_compares_returns_with_their_own_group(world, monkeypatch, baseline):
    seen, row = run_one_iteration(world, monkeypatch, baseline=baseline, seed=1, gradient_clip=7.0)
    rollout = seen["rollout"]
    assert rollout.tokens.shape == (12, 5)
    pi, ref = (dict(zip(world.answers, world.logprobs(t))) for t in (world.policy, world.reference))
    answers = [tuple(t[m].tolist()) for t, m in zip(rollout.tokens, rollout.mask)]
    scores = world.score(rollout.tokens, rollout.mask).tolist()
    R = [score - world.beta * (pi[y] - ref[y]) for y, score in zip(answers, scores)]
    advantages = []
    for i, r in enumerate(R):
        group = R[i // 3 * 3:i // 3 * 3 + 3]
        b = {"none": 0, "mean": sum(group) / 3, "leave_one_out": (sum(group) - r) / 2}[baseline]
        advantages.append(r - b)
    wanted = -sum(a * pi[y] for a, y in zip(advantages, answers)) / 12
    assert seen["loss"] == pytest.approx(wanted, abs=1e-11)
    by_hand = -sum(a * world.scores(world.policy)[world.answers.index(y)]
                   for a, y in zip(advantages, answers)) / 12
    close(seen["gradient"], by_hand, atol=1e-11)        # no gradient passes through R
    assert seen["scale"] == pytest.approx(1 / 20) and seen["clip"] == 7.0
    assert row["iteration"] == 0 and row["score"] == pytest.approx(sum(scores) / 12)
    assert row["kl"] == pytest.approx(sum(pi[y] - ref[y] for y in answers) / 12)


def test_the_answers_to_one_prompt_are_next_to_each_other(world, monkeypatch):
    asked = []

    def prompts(n, generator):
        asked.append(n)
        return torch.arange(n)[:, None] % 3                             # prompts 0 1 2 0 1

    rollouts = []

    def keep(*arguments, **options):
        rollouts.append(roll_out(*arguments, **options))
        return rollouts[-1]

    monkeypatch.setattr(module, "roll_out", keep)
    reinforce(world.policy, world.reference, prompts, lambda t, m: m.sum(1).double(),
              settings(world, n_prompts=5))
    assert asked == [5]
    assert rollouts[0].tokens[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1]


def test_the_mean_of_many_answers_is_the_exact_gradient(world, monkeypatch):
    """The library's estimate from samples against ∇( E[r] − β·KL ), a sum over all answers."""
    seen, _ = run_one_iteration(world, monkeypatch, n_prompts=4000, n_samples=2, seed=4)
    sampled = -seen["gradient"]
    pi, ref = world.logprobs(world.policy), world.logprobs(world.reference)
    R = world.rewards - world.beta * torch.tensor([a - b for a, b in zip(pi, ref)], dtype=F64)
    wanted = world.gradient(world.policy, R)
    p = world.probabilities(world.policy)
    mean = sum(q * r for q, r in zip(p, R.tolist()))
    variance = sum(q * (r - mean) ** 2 * s.square()
                   for q, r, s in zip(p, R.tolist(), world.scores(world.policy)))
    error = (variance / 8000).sqrt()        # leave-one-out with G = 2 at most doubles the variance
    assert ((sampled - wanted).abs() <= 6 * error + 1e-4).all()
    without_price = world.gradient(world.policy, world.rewards)
    assert (without_price - wanted).abs().max() > 6 * error.max()


def test_each_iteration_follows_the_schedule_and_on_row_can_add_and_stop(world, monkeypatch):
    scales, calls = [], []

    def keep_scale(model, loss, optimizers, scale, clip):
        scales.append(scale)

    monkeypatch.setattr(module, "gradient_step", keep_scale)

    def on_row(row):
        row["added"] = len(calls)
        calls.append(row["iteration"])
        return len(calls) == 31

    rows = reinforce(world.policy, world.reference, prompts_of(world), world.score,
                     settings(world, n_iterations=40), on_row)
    assert calls == list(range(31)) and [row["added"] for row in rows] == calls
    assert scales[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert scales[20:] == pytest.approx([(40 - i) / 20 for i in range(20, 31)])


@pytest.mark.parametrize("baseline, n_samples", [("median", 4), ("mean", 1), ("leave_one_out", 1)])
def test_baselines_that_cannot_be_computed_are_refused(baseline, n_samples):
    with pytest.raises(ValueError, match=baseline):
        ReinforceConfig(1, 4, 0, baseline=baseline, n_samples=n_samples)
    ReinforceConfig(1, 4, 0, baseline="none", n_samples=1)
    ReinforceConfig(1, 4, 0, baseline="leave_one_out", n_samples=2)


def test_a_policy_that_is_its_own_reference_is_refused(world):
    with pytest.raises(ValueError, match="share parameters"):
        reinforce(world.policy, world.policy, prompts_of(world), world.score, settings(world))


def test_more_padding_changes_neither_loss_nor_gradient(world):
    policy = Table(3, 7, 3).double()
    with torch.no_grad():
        policy.rows.normal_(generator=world.generator)
    tokens = torch.nn.functional.pad(world.tokens, (0, 3))
    mask = torch.nn.functional.pad(world.mask, (0, 3))
    losses = [reinforce_loss(token_logprobs(policy(t[:, :-1]), t, m), world.rewards, m[:, 1:])
              for t, m in ((world.tokens, world.mask), (tokens, mask))]
    a, b = (gradient(policy, loss) for loss in losses)
    assert a.abs().max() > 0.01
    close(a, b)


def test_padding_does_not_count_and_a_mask_of_numbers_is_refused():
    logprobs, mask = torch.tensor([[-1.0, math.nan]]), torch.tensor([[True, False]])
    assert reinforce_loss(logprobs, torch.tensor([[2.0, math.nan]]), mask).item() == 2.0
    with pytest.raises(ValueError, match="bool"):
        reinforce_loss(logprobs, torch.tensor([2.0]), mask.long())
    with pytest.raises(ValueError, match="no answer"):
        reinforce_loss(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 2, dtype=torch.bool))


# ---- training ----

def test_training_ends_at_the_best_policy(world):
    with torch.no_grad():
        world.policy.rows.copy_(world.reference.rows)
    before = world.reference.rows.detach().clone()
    ref_logprobs = torch.tensor(world.logprobs(world.reference), dtype=F64)
    best, _ = optimal_policy(ref_logprobs, world.rewards, world.beta)

    def gap():
        logprobs = answer_logprobs(world.policy, world.tokens, world.mask).detach()
        return kl_divergence(logprobs, best).item()

    start = gap()
    config = settings(world, n_iterations=150, n_prompts=32, n_samples=4, learning_rate=0.1,
                      gradient_clip=1e9)
    reinforce(world.policy, world.reference, prompts_of(world), world.score, config)
    assert start > 0.3 and gap() <= 1e-3
    assert torch.equal(world.reference.rows, before) and world.reference.rows.grad is None


def test_a_tiny_gpt_learns_to_stop_when_stopping_pays():
    """The stop token is in the loss, so a reward for short answers makes answers short."""
    shape = GPTConfig(vocab_size=4, context_length=8, n_layers=1, n_heads=2, d_model=16)
    policy, reference = (GPT(shape, torch.Generator().manual_seed(0)) for _ in range(2))
    before = {name: value.clone() for name, value in reference.state_dict().items()}

    def mean_length():
        rollout = roll_out(policy, torch.full((200, 2), 3), 6, 0,
                           generator=torch.Generator().manual_seed(1))
        return rollout.actions.sum(1).float().mean()

    start = mean_length()
    config = ReinforceConfig(60, max_new_tokens=6, stop_token=0, n_prompts=8, learning_rate=1e-2)
    reinforce(policy, reference, lambda n, generator: torch.full((n, 2), 3),
              lambda tokens, mask: -mask.sum(1), config)
    assert start > 2.5 and mean_length() < 1.1
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert all(parameter.grad is None for parameter in reference.parameters())
