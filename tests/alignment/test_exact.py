"""The referee is refereed: lists made by `itertools`, sums made by loops, maxima that no perturbation beats."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    best_of_n,
    expectation,
    gradient,
    kl_divergence,
    list_answers,
    objective,
    optimal_policy,
    slopes,
    tabulate,
)
from minigpt.models.gpt import GPT, GPTConfig

F64 = torch.float64


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(torch.as_tensor(got, dtype=F64), torch.as_tensor(expected, dtype=F64), atol=atol, rtol=0)


# ---- the tree ----

@pytest.mark.parametrize("vocab_size, longest, stop, prompt, count", [
    (3, 4, 0, [0], 31), (3, 4, 2, [1, 2], 31), (2, 5, 1, [0, 1, 1], 6), (4, 1, 3, [2], 4),
])
def test_answers_are_the_strings_that_stop_once_or_run_out(vocab_size, longest, stop, prompt, count):
    strings = (s for n in range(1, longest + 1) for s in itertools.product(range(vocab_size), repeat=n))
    wanted = {s for s in strings if stop not in s[:-1] and (s[-1] == stop or len(s) == longest)}
    tokens, mask = list_answers(torch.tensor(prompt), vocab_size, longest, stop)
    assert tokens.shape == mask.shape == (count, len(prompt) + longest) and mask.dtype == torch.bool and tokens.dtype == torch.long
    assert {tuple(row[m].tolist()) for row, m in zip(tokens, mask)} == wanted and len(wanted) == count
    for row, m in zip(tokens.tolist(), mask.tolist()):
        n = sum(m)
        assert row[:len(prompt)] == prompt and m == [False] * len(prompt) + [True] * n + [False] * (longest - n)
        assert row[len(prompt) + n:] == [stop] * (longest - n)
    assert count == sum((vocab_size - 1) ** t for t in range(longest - 1)) + vocab_size * (vocab_size - 1) ** (longest - 1)
    assert not any(a != b and b[:len(a)] == a for a in wanted for b in wanted)


@pytest.mark.parametrize("prompt, vocab_size, longest, stop", [([0], 3, 4, 3), ([0], 3, 0, 0), ([[0]], 3, 2, 0), ([0], 3, 2, -1)])
def test_trees_that_cannot_be_listed_are_refused(prompt, vocab_size, longest, stop):
    with pytest.raises(ValueError, match="needs a prompt"):
        list_answers(torch.tensor(prompt), vocab_size, longest, stop)


def test_a_tree_too_large_to_list_is_refused_before_the_memory_is_taken():
    with pytest.raises(ValueError, match="more than 2,000,000 answers"):
        list_answers(torch.tensor([0]), 50, 6)


# ---- tables ----

def test_a_table_has_one_row_for_every_prefix():
    prefixes = [p for n in range(1, 4) for p in itertools.product(range(3), repeat=n)]
    table = Table(3, 3, 5)
    assert table.rows.shape == (len(prefixes), 5) and table.rows.abs().max() == 0
    for sequence in itertools.product(range(3), repeat=3):
        assert table.numbers(torch.tensor([sequence])).tolist() == [[prefixes.index(sequence[:t]) for t in (1, 2, 3)]]
    values = Table(3, 3)
    with torch.no_grad():
        values.rows.copy_(torch.arange(len(prefixes)))
    wanted = [[prefixes.index((2,)), prefixes.index((2, 0))], [prefixes.index((1,)), prefixes.index((1, 1))]]
    assert values(torch.tensor([[2, 0], [1, 1]])).tolist() == wanted


def test_a_table_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        Table(3, 2, 3)(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="rows"):
        Table(100, 4, 1)


def test_a_table_from_log_probabilities_has_them(world):
    target = torch.randn(31, generator=world.generator, dtype=F64).log_softmax(0)
    table = tabulate(world.tokens, world.mask, target, 3)
    close(world.logprobs(table), target)
    close(answer_logprobs(table, world.tokens, world.mask).detach(), target)
    target[[0, 7, 30]] = -torch.inf                                     # the stop at once, one in the middle, a last token
    target = target.log_softmax(0)
    close(answer_logprobs(tabulate(world.tokens, world.mask, target, 3), world.tokens, world.mask).detach(), target)


# ---- 1: probabilities, and the score's mean ----

def test_probabilities_are_products_along_the_path_and_sum_to_one(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    close(logp.detach(), world.logprobs(world.policy))
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    for size in (1, 7, 30, 31):
        close(answer_logprobs(world.policy, world.tokens, world.mask, batch_size=size).detach(), logp.detach(), atol=0)
    # With the padding counted, or the prompt's last place for the answer's first, the masses are no distribution.
    everything, early = torch.ones_like(world.mask), world.mask.roll(-1, dims=1)
    assert all(abs(answer_logprobs(world.policy, world.tokens, m).exp().sum().item() - 1) > 0.05 for m in (everything, early))


def test_a_gpts_answers_sum_to_one_too():
    gpt = GPT(GPTConfig(vocab_size=3, context_length=6, n_layers=1, n_heads=2, d_model=8), torch.Generator().manual_seed(0)).double()
    tokens, mask = list_answers(torch.tensor([2, 0]), 3, 4)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(10)
        logp = answer_logprobs(gpt, tokens, mask)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12) and logp.exp().max() > 2 / 31


def test_the_score_has_mean_zero_and_is_one_minus_pi(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    close(gradient(world.policy, logp[17]), world.scores(world.policy)[17])
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    mean = gradient(world.policy, (logp.detach().exp() * logp).sum())
    assert mean.abs().max() < 1e-14


def test_gradient_is_a_difference_quotient(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    got = gradient(world.policy, expectation(logp, world.rewards))
    close(got, world.difference(lambda t: world.expectation(t, world.rewards), world.policy), atol=1e-9)
    assert got.abs().max() > 0.01


def test_gradient_lists_free_parameters_in_order_and_unused_ones_as_zero():
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones(n)) for name, n in (("a", 2), ("b", 3), ("c", 1))})
    model["c"].requires_grad_(False)
    assert gradient(model, (model["a"] * torch.tensor([4.0, 5.0])).sum()).tolist() == [4, 5, 0, 0, 0]


# ---- 4: KL ----

def test_kl_is_not_negative_and_zero_at_home(world):
    p, q = (answer_logprobs(t, world.tokens, world.mask).detach() for t in (world.policy, world.reference))
    close(kl_divergence(p, q), world.kl(world.policy, world.reference))
    close(kl_divergence(p, q), torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
    assert kl_divergence(p, q) > 0.1 and kl_divergence(q, p) > 0.1 and kl_divergence(p, p) == 0
    assert torch.nn.functional.kl_div(q, p, reduction="sum").isnan()    # without log_target=True: log of a log


def test_kl_is_the_sum_of_the_steps_expected_kl(world):
    """KL = Σ_t E[ KL(π(·|s_t) ‖ ref(·|s_t)) ], over states reached: a state's mass is that of the answers through it."""
    pi, ref, mass = world.steps(world.policy), world.steps(world.reference), {}
    for answer, p in zip(world.answers, world.probabilities(world.policy)):
        for t in range(len(answer)):
            mass[world.prompt + answer[:t]] = mass.get(world.prompt + answer[:t], 0) + p
    total = math.fsum(m * math.exp(a) * (a - b) for state, m in mass.items() for a, b in zip(pi[state], ref[state]))
    p, q = (answer_logprobs(t, world.tokens, world.mask).detach() for t in (world.policy, world.reference))
    assert kl_divergence(p, q).item() == pytest.approx(total, abs=1e-12) and len(mass) == 15


def test_what_is_never_said_adds_nothing_and_what_the_other_never_says_is_infinite():
    p = torch.tensor([0.25, 0.75, 0.0], dtype=F64).log()
    q = torch.tensor([0.5, 0.0, 0.5], dtype=F64).log()
    assert expectation(p, torch.tensor([4.0, 8.0, torch.inf], dtype=F64)).item() == pytest.approx(7)
    assert kl_divergence(p, q) == torch.inf
    assert kl_divergence(p, torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_what_is_never_said_adds_nothing_to_the_gradient_either():
    """Three logits, the third −∞: the slopes of E[R] and of KL are those of the two answers that are left."""
    def measured(logits, function):
        return torch.stack([(function(logits + h) - function(logits - h)) / 2e-6 for h in torch.eye(2, dtype=F64) * 1e-6])

    two, rewards = torch.tensor([0.3, -0.4], dtype=F64), torch.tensor([4.0, -8.0, torch.inf], dtype=F64)
    q = torch.tensor([0.5, 0.2, 0.3], dtype=F64).log()
    for function in (lambda logits: expectation(logits.log_softmax(0), rewards[:len(logits)]),
                     lambda logits: kl_divergence(logits.log_softmax(0), q[:len(logits)])):
        three = torch.tensor([0.3, -0.4, -torch.inf], dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(function(three), three)
        torch.testing.assert_close(slope, torch.cat([measured(two, function), torch.zeros(1, dtype=F64)]), atol=1e-8, rtol=0)


# ---- 7: the best policy ----

def test_the_best_policy_is_the_tilt(world):
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    best, log_z = optimal_policy(ref, world.rewards, world.beta)
    close(best.exp(), world.best())
    assert log_z.item() == pytest.approx(world.log_z(), abs=1e-12)
    shifted, _ = optimal_policy(ref, world.rewards + 5, world.beta)
    close(shifted, best)                                                # R + c leaves π* alone


def test_what_leaves_the_optimum_costs_beta_times_its_kl(world):
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    best, log_z = optimal_policy(ref, world.rewards, world.beta)
    assert objective(best, ref, world.rewards, world.beta).item() == pytest.approx(world.beta * log_z.item(), abs=1e-12)
    for step in (1e-3, 0.1, 1.0, 3.0):
        other = (best + step * torch.randn(31, generator=world.generator, dtype=F64)).log_softmax(0)
        by_hand = sum(math.exp(a) * (r - world.beta * (a - b)) for a, b, r in zip(other.tolist(), ref.tolist(), world.rewards.tolist()))
        worth = objective(other, ref, world.rewards, world.beta).item()
        assert worth == pytest.approx(by_hand, abs=1e-12) and worth < world.beta * log_z.item()
        kl_to_best = math.fsum(math.exp(a) * (a - b) for a, b in zip(other.tolist(), best.tolist()))
        assert world.beta * log_z.item() - worth == pytest.approx(world.beta * kl_to_best, abs=1e-12)


def test_no_parameter_wants_to_move_at_the_best_policy(world):
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    best, _ = optimal_policy(ref, world.rewards, world.beta)
    table = tabulate(world.tokens, world.mask, best, 3)
    at = lambda t: gradient(t, objective(answer_logprobs(t, world.tokens, world.mask), ref, world.rewards, world.beta))  # noqa: E731
    assert at(table).abs().max() < 1e-14 < 0.01 < at(world.policy).abs().max()


def test_how_far_the_best_policy_is_and_how_its_reward_grows(world):
    """KL(π*‖ref) = E*[R]/β − log Z, and dE*[R]/d(1/β) = Var*(R)."""
    ref, R = torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards

    def mean(inverse):
        return expectation(optimal_policy(ref, R, 1 / inverse)[0], R).item()

    best, log_z = optimal_policy(ref, R, world.beta)
    assert kl_divergence(best, ref).item() == pytest.approx(mean(1 / world.beta) / world.beta - log_z.item(), abs=1e-12)
    variance = math.fsum(p * (r - mean(1 / world.beta)) ** 2 for p, r in zip(world.best(), R.tolist()))
    slope = (mean(1 / world.beta + 1e-5) - mean(1 / world.beta - 1e-5)) / 2e-5
    assert slope == pytest.approx(variance, abs=1e-8) and variance > 0.1


def test_a_high_price_keeps_the_reference_and_a_low_one_leaves_the_argmax(world):
    ref = torch.tensor(world.logprobs(world.reference), dtype=F64)
    close(optimal_policy(ref, world.rewards, 1e9)[0], ref, atol=1e-7)
    greedy = optimal_policy(ref, world.rewards, 1e-3)[0].exp()
    assert greedy.argmax() == world.rewards.argmax() and greedy.max() > 1 - 1e-9
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="greater than 0"):
            optimal_policy(ref, world.rewards, beta)


def test_token_by_token_the_value_is_a_soft_maximum(world):
    """V*(s) = β log Σ_a ref(a|s) e^{Q(s,a)/β}, Q = V of the child, or R at a leaf; π*(a|s) = ref e^{(Q−V)/β}; V*(prompt) = β log Z."""
    ref, reward = world.steps(world.reference), dict(zip(world.answers, world.rewards.tolist()))
    best = torch.tensor(world.best(), dtype=F64).log()
    steps = world.steps(tabulate(world.tokens, world.mask, best, 3))

    def value(answer):
        q = [reward[answer + (a,)] if answer + (a,) in reward else value(answer + (a,)) for a in range(3)]
        v = world.beta * math.log(math.fsum(math.exp(lp + x / world.beta) for lp, x in zip(ref[world.prompt + answer], q)))
        close(steps[world.prompt + answer], [lp + (x - v) / world.beta for lp, x in zip(ref[world.prompt + answer], q)])
        return v

    _, log_z = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    assert value(()) == pytest.approx(world.beta * log_z.item(), abs=1e-12)


# ---- 14: best of n ----

def brute_force(p, rewards, n):
    """All n-tuples; among the best of a tuple each draw is equally likely to be kept."""
    kept = [0.0] * len(p)
    for draw in itertools.product(range(len(p)), repeat=n):
        chance, top = math.prod(p[i] for i in draw), max(rewards[i] for i in draw)
        winners = [i for i in draw if rewards[i] == top]
        for i in winners:
            kept[i] += chance / len(winners)
    return kept


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("rewards", [[0.3, -1.0, 2.0, 0.7, 1.1], [1.0, 0.0, 1.0, 2.0, 2.0], [3.0] * 5], ids=["all different", "ties", "all equal"])
def test_best_of_n_is_what_all_tuples_say(n, rewards):
    p = [0.1, 0.35, 0.05, 0.3, 0.2]
    got = best_of_n(torch.tensor(p, dtype=F64).log(), torch.tensor(rewards, dtype=F64), n)
    close(got.exp(), brute_force(p, rewards, n))


def test_best_of_n_of_the_31_answers(world):
    p = world.probabilities(world.policy)
    logp = torch.tensor(p, dtype=F64).log()
    close(best_of_n(logp, world.rewards, 2).exp(), brute_force(p, world.rewards.tolist(), 2))
    coarse = world.rewards.round()                                      # many ties
    close(best_of_n(logp, coarse, 2).exp(), brute_force(p, coarse.tolist(), 2))
    close(best_of_n(logp, world.rewards, 1), logp)


def test_best_of_n_costs_no_more_than_its_bound(world):
    """KL ≤ log n − (n−1)/n (Beirami et al. 2024), nearly reached where answers are many and none is likely."""
    logp = torch.tensor(world.logprobs(world.policy), dtype=F64)
    for n in (1, 2, 4, 16, 256):
        bound = math.log(n) - (n - 1) / n
        many = torch.full((20_000,), -math.log(20_000), dtype=F64)
        fine = kl_divergence(best_of_n(many, torch.arange(20_000.0), n), many).item()
        for rewards in (world.rewards, world.rewards.round(), torch.zeros(31)):
            got = best_of_n(logp, rewards, n)
            assert -1e-12 <= kl_divergence(got, logp).item() <= bound + 1e-12 and got.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert bound * 0.98 - 1e-9 <= fine <= bound + 1e-9


def test_best_of_n_never_keeps_what_is_never_drawn():
    p = torch.tensor([0.25, 0.0, 0.75], dtype=F64)
    close(best_of_n(p.log(), torch.tensor([1.0, 5.0, 0.0]), 3).exp(), [1 - 0.75**3, 0, 0.75**3])


def test_best_of_no_answer_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n(torch.zeros(1), torch.zeros(1), 0)


def test_slopes_of_a_function_whose_derivative_is_known_and_the_model_is_left_as_it_was():
    model = torch.nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -2.0]]))
        model.bias.fill_(3.0)
    before = [p.clone() for p in model.parameters()]
    got = slopes(lambda m: m.weight[0, 0] ** 3 + m.weight[0, 1] * m.bias[0], model)
    assert torch.allclose(got, torch.tensor([3 * 0.5**2, 3.0, -2.0], dtype=torch.float64), atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
