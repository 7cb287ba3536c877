"""Exact expectations against lists by `itertools`, sums by loops, and finite differences."""
import itertools
import math

import pytest
import torch

from minigpt.alignment import exact
from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    best_of_n,
    expectation,
    gradient,
    kl_divergence,
    list_answers,
    make_table,
    objective,
    optimal_policy,
    slopes,
)
from minigpt.models.gpt import GPT, GPTConfig

F64 = torch.float64
INF = math.inf


def f64(values):
    return torch.as_tensor(values, dtype=F64)


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(f64(got), f64(expected), atol=atol, rtol=0)


def listed_logprobs(world, table):
    """log π(y) of the 31 answers, from Python's lists."""
    return f64(world.logprobs(table))


# ---- the tree of answers ----

@pytest.mark.parametrize("vocab_size, length, stop, prompt, count", [
    (3, 4, 0, [0], 31), (3, 4, 2, [1, 2], 31), (2, 5, 1, [0, 1, 1], 6), (4, 1, 3, [2], 4),
])
def test_answers_are_the_strings_that_stop_once_or_reach_the_length(
    vocab_size, length, stop, prompt, count
):
    strings = (s for n in range(1, length + 1)
               for s in itertools.product(range(vocab_size), repeat=n))
    expected = {s for s in strings if stop not in s[:-1] and (s[-1] == stop or len(s) == length)}
    tokens, mask = list_answers(torch.tensor(prompt), vocab_size, length, stop)
    assert tokens.shape == mask.shape == (count, len(prompt) + length)
    assert mask.dtype == torch.bool and tokens.dtype == torch.long
    assert {tuple(row[m].tolist()) for row, m in zip(tokens, mask)} == expected
    assert len(expected) == count
    for row, m in zip(tokens.tolist(), mask.tolist()):
        n, n_prompt = sum(m), len(prompt)
        assert m == [False] * n_prompt + [True] * n + [False] * (length - n)
        assert row[:n_prompt] == prompt and row[n_prompt + n:] == [stop] * (length - n)
    before_last = sum((vocab_size - 1) ** t for t in range(length - 1))
    assert count == before_last + vocab_size * (vocab_size - 1) ** (length - 1)
    assert not any(a != b and b[:len(a)] == a for a in expected for b in expected)


@pytest.mark.parametrize("prompt, length, stop", [
    ([0], 4, 3), ([0], 0, 0), ([[0]], 2, 0), ([0], 2, -1),
])
def test_a_tree_that_cannot_be_listed_is_refused(prompt, length, stop):
    for good_stop in (0, 2):
        list_answers(torch.tensor([0]), 3, 1, good_stop)
    with pytest.raises(ValueError, match="needs a prompt"):
        list_answers(torch.tensor(prompt), 3, length, stop)


def test_a_tree_too_large_to_list_is_refused_before_it_fills_the_memory(monkeypatch):
    with pytest.raises(ValueError, match="more than 2,000,000 answers"):
        list_answers(torch.tensor([0]), 50, 6)
    monkeypatch.setattr(exact, "MOST_ROWS", 1 + 2 + 4 + 8)              # 3 tokens, length 4
    list_answers(torch.tensor([0]), 3, 4)
    with pytest.raises(ValueError, match="more than 15 answers"):
        list_answers(torch.tensor([0]), 3, 5)


# ---- tables ----

def test_a_table_has_one_row_for_every_prefix():
    prefixes = [p for n in range(1, 4) for p in itertools.product(range(3), repeat=n)]
    table = Table(3, 3, 5)
    assert table.rows.shape == (len(prefixes), 5) and table.rows.abs().max() == 0
    for sequence in itertools.product(range(3), repeat=3):
        numbers = [prefixes.index(sequence[:t]) for t in (1, 2, 3)]
        assert table.numbers(torch.tensor([sequence])).tolist() == [numbers]
    values = Table(3, 3)
    with torch.no_grad():
        values.rows.copy_(torch.arange(len(prefixes)))
    expected = [[prefixes.index((2,)), prefixes.index((2, 0))],
                [prefixes.index((1,)), prefixes.index((1, 1))]]
    assert values(torch.tensor([[2, 0], [1, 1]])).tolist() == expected


def test_a_table_refuses_what_does_not_fit(monkeypatch):
    table = Table(3, 2, 3)
    assert table(torch.tensor([[0, 2]])).shape == (1, 2, 3)
    with pytest.raises(ValueError, match="3 tokens do not fit the table's context of 2"):
        table(torch.zeros(1, 3, dtype=torch.long))
    for tokens in ([[0, 3]], [[-1, 0]]):
        with pytest.raises(ValueError, match="the table knows the tokens 0 to 2, not"):
            table(torch.tensor(tokens))
    with pytest.raises(ValueError, match="needs 101,010,100 rows"):
        Table(100, 4, 1)
    monkeypatch.setattr(exact, "MOST_ROWS", 12)
    Table(3, 2)                                                         # 3 + 9 rows
    with pytest.raises(ValueError, match="needs 39 rows"):
        Table(3, 3)


def test_a_table_made_from_log_probabilities_has_them(world):
    target = torch.randn(31, generator=world.generator, dtype=F64).log_softmax(0)
    table = make_table(world.tokens, world.mask, target, 3)
    close(world.logprobs(table), target)
    close(answer_logprobs(table, world.tokens, world.mask).detach(), target)
    target[[0, 7, 30]] = -INF               # stop at once, an answer in the middle, a last token
    target = target.log_softmax(0)
    table = make_table(world.tokens, world.mask, target, 3)
    close(answer_logprobs(table, world.tokens, world.mask).detach(), target)


def test_rows_of_a_table_that_no_answer_uses_stay_uniform(world):
    target = torch.full((31,), -INF, dtype=F64)
    target[0] = 0.0                                                     # only "stop at once"
    rows = make_table(world.tokens, world.mask, target, 3).rows
    assert rows[0].tolist() == [0, -INF, -INF] and (rows[1:] == 0).all()


@pytest.mark.parametrize("wrong", ["dtype", "length", "rows"])
def test_masks_that_are_not_bool_or_have_another_shape_are_refused(world, wrong):
    mask = {"dtype": world.mask.int(), "length": world.mask[:, 1:], "rows": world.mask[1:]}[wrong]
    with pytest.raises(ValueError, match="mask"):
        answer_logprobs(world.policy, world.tokens, mask)
    with pytest.raises(ValueError, match="mask"):
        make_table(world.tokens, mask, torch.zeros(31, dtype=F64), 3)


# ---- 1: probabilities, and the mean of the score ----

def test_probabilities_are_products_along_the_path_and_sum_to_one(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    close(logp.detach(), world.logprobs(world.policy))
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    for size in (1, 7, 30, 31):
        got = answer_logprobs(world.policy, world.tokens, world.mask, batch_size=size)
        close(got.detach(), logp.detach(), atol=0)


def test_with_padding_counted_or_the_mask_shifted_the_sum_is_not_one(world):
    for wrong in (torch.ones_like(world.mask), world.mask.roll(-1, dims=1)):
        total = answer_logprobs(world.policy, world.tokens, wrong).exp().sum()
        assert abs(total.item() - 1) > 0.05


def test_the_probabilities_of_a_gpts_answers_sum_to_one():
    config = GPTConfig(vocab_size=3, context_length=6, n_layers=1, n_heads=2, d_model=8)
    gpt = GPT(config, torch.Generator().manual_seed(0)).double()
    tokens, mask = list_answers(torch.tensor([2, 0]), 3, 4)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(10)
        logp = answer_logprobs(gpt, tokens, mask)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert logp.exp().max() > 2 / 31                                    # far from uniform


def test_the_score_of_an_answer_is_by_hand_and_has_mean_zero(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    close(gradient(world.policy, logp[17]), world.scores(world.policy)[17])
    mean = gradient(world.policy, (logp.detach().exp() * logp).sum())
    assert mean.abs().max() < 1e-14


def test_the_gradient_is_a_difference_quotient(world):
    logp = answer_logprobs(world.policy, world.tokens, world.mask)
    got = gradient(world.policy, expectation(logp, world.rewards))
    quotient = world.difference(lambda t: world.expectation(t, world.rewards), world.policy)
    close(got, quotient, atol=1e-9)
    assert got.abs().max() > 0.01


def test_the_gradient_lists_trainable_parameters_in_order_and_unused_ones_as_zero():
    model = torch.nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)})
    model["c"].requires_grad_(False)
    scalar = (model["a"] * torch.tensor([4.0, 5.0])).sum()
    assert gradient(model, scalar).tolist() == [4, 5, 0, 0, 0]


def test_slopes_are_the_known_derivatives_and_leave_the_model_as_it_was():
    model = torch.nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -2.0]]))
        model.bias.fill_(3.0)
    before = [p.clone() for p in model.parameters()]
    got = slopes(lambda m: m.weight[0, 0] ** 3 + m.weight[0, 1] * m.bias[0], model)
    close(got, [3 * 0.5**2, 3.0, -2.0], atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


# ---- expectations ----

def test_an_impossible_answer_adds_nothing_to_an_expectation():
    logprobs = f64([0.25, 0.75, 0.0]).log()
    assert expectation(logprobs, f64([4.0, 8.0, INF])).item() == pytest.approx(7)
    assert expectation(logprobs, f64([4.0, 8.0, math.nan])).item() == pytest.approx(7)


def test_a_log_probability_that_is_no_number_is_not_taken_for_an_impossible_answer():
    broken = f64([math.nan, math.log(0.5)])
    assert expectation(broken, f64([1.0, 1.0])).isnan()
    assert kl_divergence(broken, f64([0.5, 0.5]).log()).isnan()


@pytest.mark.parametrize("logprobs", [[], [-INF, -INF]])
def test_an_expectation_over_no_answer_is_refused(logprobs):
    logprobs = f64(logprobs)
    for call in (expectation, kl_divergence):
        with pytest.raises(ValueError, match="nothing to average"):
            call(logprobs, torch.zeros_like(logprobs))


def test_an_impossible_answer_adds_nothing_to_the_gradient():
    """Three logits, the third −∞: the slopes are those of the two answers that are left."""
    rewards, q = f64([4.0, -8.0, INF]), f64([0.5, 0.2, 0.3]).log()

    def mean(logits):
        return expectation(logits.log_softmax(0), rewards[:len(logits)])

    def kl(logits):
        return kl_divergence(logits.log_softmax(0), q[:len(logits)])

    two = f64([0.3, -0.4])
    for function in (mean, kl):
        quotients = torch.stack([(function(two + h) - function(two - h)) / 2e-6
                                 for h in torch.eye(2, dtype=F64) * 1e-6])
        three = f64([0.3, -0.4, -INF]).requires_grad_()
        (slope,) = torch.autograd.grad(function(three), three)
        close(slope, torch.cat([quotients, torch.zeros(1, dtype=F64)]), atol=1e-8)


# ---- 4: KL ----

def test_kl_is_positive_between_two_policies_and_zero_from_one_to_itself(world):
    p, q = listed_logprobs(world, world.policy), listed_logprobs(world, world.reference)
    close(kl_divergence(p, q), world.kl(world.policy, world.reference))
    close(kl_divergence(p, q),
          torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
    assert kl_divergence(p, q) > 0.1 and kl_divergence(q, p) > 0.1 and kl_divergence(p, p) == 0
    without_log_target = torch.nn.functional.kl_div(q, p, reduction="sum")
    assert without_log_target.isnan()                                   # the log of a log


def test_kl_is_the_sum_of_the_expected_kl_of_each_step(world):
    """KL = Σ_t E[ KL(π(·|s_t) ‖ ref(·|s_t)) ]; the weight of a state is that of its answers."""
    pi, ref = world.steps(world.policy), world.steps(world.reference)
    mass = {}
    for answer, p in zip(world.answers, world.probabilities(world.policy)):
        for t in range(len(answer)):
            state = world.prompt + answer[:t]
            mass[state] = mass.get(state, 0) + p
    total = math.fsum(weight * math.exp(a) * (a - b)
                      for state, weight in mass.items() for a, b in zip(pi[state], ref[state]))
    p, q = listed_logprobs(world, world.policy), listed_logprobs(world, world.reference)
    assert kl_divergence(p, q).item() == pytest.approx(total, abs=1e-12) and len(mass) == 15


def test_kl_with_impossible_answers():
    p = f64([0.25, 0.75, 0.0]).log()
    assert kl_divergence(p, f64([0.5, 0.0, 0.5]).log()) == INF
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    for q in ([0.5, 0.5, 0.0], [0.5, 0.5, 0.1]):
        assert kl_divergence(p, f64(q).log()).item() == pytest.approx(expected)


# ---- 7: the best policy ----

def test_the_best_policy_is_the_reference_times_e_to_the_reward(world):
    ref = listed_logprobs(world, world.reference)
    best, log_z = optimal_policy(ref, world.rewards, world.beta)
    close(best.exp(), world.best())
    assert log_z.item() == pytest.approx(world.log_z(), abs=1e-12)
    shifted, _ = optimal_policy(ref, world.rewards + 5, world.beta)
    close(shifted, best)                                                # r + c has the same π*


def test_another_policy_loses_beta_times_its_kl_to_the_best(world):
    ref = listed_logprobs(world, world.reference)
    best, log_z = optimal_policy(ref, world.rewards, world.beta)
    highest = world.beta * log_z.item()
    J_best = objective(best, ref, world.rewards, world.beta).item()
    assert J_best == pytest.approx(highest, abs=1e-12)
    for step in (1e-3, 0.1, 1.0, 3.0):
        noise = torch.randn(31, generator=world.generator, dtype=F64)
        other = (best + step * noise).log_softmax(0)
        rows = zip(other.tolist(), ref.tolist(), world.rewards.tolist())
        by_hand = math.fsum(math.exp(a) * (r - world.beta * (a - b)) for a, b, r in rows)
        J = objective(other, ref, world.rewards, world.beta).item()
        assert J == pytest.approx(by_hand, abs=1e-12) and J < highest
        kl = math.fsum(math.exp(a) * (a - b) for a, b in zip(other.tolist(), best.tolist()))
        assert highest - J == pytest.approx(world.beta * kl, abs=1e-12)


def test_the_gradient_of_j_is_zero_at_the_best_policy(world):
    ref = listed_logprobs(world, world.reference)
    best, _ = optimal_policy(ref, world.rewards, world.beta)

    def slope(table):
        logp = answer_logprobs(table, world.tokens, world.mask)
        return gradient(table, objective(logp, ref, world.rewards, world.beta)).abs().max()

    assert slope(make_table(world.tokens, world.mask, best, 3)) < 1e-14
    assert slope(world.policy) > 0.01


def test_the_kl_of_the_best_policy_and_the_growth_of_its_reward(world):
    """KL(π*‖ref) = E*[r]/β − log Z, and dE*[r]/d(1/β) = Var*(r)."""
    ref, r, beta = listed_logprobs(world, world.reference), world.rewards, world.beta

    def mean(inverse_beta):
        return expectation(optimal_policy(ref, r, 1 / inverse_beta)[0], r).item()

    best, log_z = optimal_policy(ref, r, beta)
    expected = mean(1 / beta) / beta - log_z.item()
    assert kl_divergence(best, ref).item() == pytest.approx(expected, abs=1e-12)
    variance = math.fsum(p * (x - mean(1 / beta)) ** 2 for p, x in zip(world.best(), r.tolist()))
    slope = (mean(1 / beta + 1e-5) - mean(1 / beta - 1e-5)) / 2e-5
    assert slope == pytest.approx(variance, abs=1e-8) and variance > 0.1


def test_a_large_beta_gives_the_reference_and_a_small_one_the_best_answer(world):
    ref = listed_logprobs(world, world.reference)
    close(optimal_policy(ref, world.rewards, 1e9)[0], ref, atol=1e-7)
    greedy = optimal_policy(ref, world.rewards, 1e-3)[0].exp()
    assert greedy.argmax() == world.rewards.argmax() and greedy.max() > 1 - 1e-9


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, INF])
def test_a_beta_that_is_not_positive_and_finite_is_refused(beta):
    with pytest.raises(ValueError, match="β must be greater than 0 and finite"):
        optimal_policy(f64([0.0]), f64([1.0]), beta)


def test_where_z_is_zero_or_infinite_there_is_no_best_policy():
    ref = f64([0.5, 0.5, 0.0]).log()
    best, _ = optimal_policy(ref, f64([-INF, 1.0, 1.0]), 1.0)
    assert best.exp().tolist() == [0, 1, 0]                             # never the answer of −∞
    for rewards in ([INF, 1.0, 1.0], [-INF, -INF, 1.0], [1.0, 1.0, INF], [math.nan, 1.0, 1.0]):
        with pytest.raises(ValueError, match="there is no π"):
            optimal_policy(ref, f64(rewards), 1.0)
    with pytest.raises(ValueError, match="there is no π"):
        optimal_policy(ref, f64([1.0, 1.0, 1.0]), 1e-320)               # 1/β overflows


def test_token_by_token_the_best_value_is_a_soft_maximum(world):
    """V*(s) = β log Σ_a ref(a|s) e^{Q(s,a)/β} and π*(a|s) = ref(a|s) e^{(Q−V*)/β}.

    Q is V* of the child, or r at the end of an answer. V* of the prompt is β log Z.
    """
    ref, beta = world.steps(world.reference), world.beta
    reward = dict(zip(world.answers, world.rewards.tolist()))
    steps = world.steps(make_table(world.tokens, world.mask, f64(world.best()).log(), 3))

    def value(answer):
        children = [answer + (a,) for a in range(3)]
        q = [reward[child] if child in reward else value(child) for child in children]
        logp = ref[world.prompt + answer]
        v = beta * math.log(math.fsum(math.exp(lp + x / beta) for lp, x in zip(logp, q)))
        close(steps[world.prompt + answer], [lp + (x - v) / beta for lp, x in zip(logp, q)])
        return v

    _, log_z = optimal_policy(listed_logprobs(world, world.reference), world.rewards, beta)
    assert value(()) == pytest.approx(beta * log_z.item(), abs=1e-12)


# ---- 14: best of n ----

def kept_by_brute_force(p, rewards, n):
    """All n-tuples of draws; of the best in a tuple, each draw is kept with the same chance."""
    kept = [0.0] * len(p)
    for draws in itertools.product(range(len(p)), repeat=n):
        probability = math.prod(p[i] for i in draws)
        highest = max(rewards[i] for i in draws)
        winners = [i for i in draws if rewards[i] == highest]
        for i in winners:
            kept[i] += probability / len(winners)
    return kept


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("rewards", [
    [0.3, -1.0, 2.0, 0.7, 1.1], [1.0, 0.0, 1.0, 2.0, 2.0], [3.0] * 5,
], ids=["all different", "ties", "all equal"])
def test_best_of_n_is_that_of_all_tuples(n, rewards):
    p = [0.1, 0.35, 0.05, 0.3, 0.2]
    got = best_of_n(f64(p).log(), f64(rewards), n)
    close(got.exp(), kept_by_brute_force(p, rewards, n))


def test_best_of_n_of_the_31_answers(world):
    p = world.probabilities(world.policy)
    logp = f64(p).log()
    with_ties = world.rewards.round()
    for rewards in (world.rewards, with_ties):
        expected = kept_by_brute_force(p, rewards.tolist(), 2)
        close(best_of_n(logp, rewards, 2).exp(), expected)
    close(best_of_n(logp, world.rewards, 1), logp)


def test_the_kl_of_best_of_n_is_at_most_its_bound(world):
    """KL ≤ log n − (n−1)/n (Beirami et al. 2024), nearly reached with many unlikely answers."""
    logp = listed_logprobs(world, world.policy)
    many = torch.full((20_000,), -math.log(20_000), dtype=F64)
    for n in (1, 2, 4, 16, 256):
        bound = math.log(n) - (n - 1) / n
        for rewards in (world.rewards, world.rewards.round(), torch.zeros(31)):
            got = best_of_n(logp, rewards, n)
            assert got.exp().sum().item() == pytest.approx(1, abs=1e-12)
            assert -1e-12 <= kl_divergence(got, logp).item() <= bound + 1e-12
        nearly = kl_divergence(best_of_n(many, torch.arange(20_000.0), n), many).item()
        assert bound * 0.98 - 1e-9 <= nearly <= bound + 1e-9


def test_best_of_n_never_keeps_an_impossible_answer():
    p = f64([0.25, 0.0, 0.75])
    got = best_of_n(p.log(), torch.tensor([1.0, 5.0, 0.0]), 3)
    close(got.exp(), [1 - 0.75**3, 0, 0.75**3])


def test_the_best_of_no_answer_is_refused():
    assert best_of_n(torch.zeros(1), torch.zeros(1), 1).tolist() == [0]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        best_of_n(torch.zeros(1), torch.zeros(1), 0)
