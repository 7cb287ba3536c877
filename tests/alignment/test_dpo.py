"""DPO against its derivation by sums over lists, against means in place of sums, against trl."""
import copy
import itertools
import math
import warnings
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from minigpt.alignment.dpo import (
    dpo_loss,
    dpo_metrics,
    implicit_reward,
    make_dpo_loss,
    score_pairs,
)
from minigpt.alignment.exact import (
    answer_logprobs,
    gradient,
    kl_divergence,
    make_table,
    optimal_policy,
)
from minigpt.alignment.ppo import ppo_policy_loss
from minigpt.alignment.preferences import Pairs, compare, preference_probability
from minigpt.alignment.reward_model import bradley_terry_loss
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import token_logprobs

F64 = torch.float64
INF = math.inf


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def f64(*values):
    return torch.tensor(values, dtype=F64)


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def four(seed=0, n=6):
    """The log-probabilities of n pairs: policy chosen, rejected, reference chosen, rejected."""
    return -3 * torch.rand(4, n, generator=seeded(seed), dtype=F64)


def pairs_of(world, i, j):
    return Pairs(world.tokens[i], world.mask[i], world.tokens[j], world.mask[j])


def logprobs_of(world):
    return world.logprobs(world.policy), world.logprobs(world.reference)


# ---- 8: the loss ----

def test_the_loss_by_hand():
    """β = ½. The log-ratios 0.7 and −0.5 make the margin 0.6; the second pair's margin is −1."""
    logprobs = f64(-1.0, -4.0), f64(-3.0, -1.0), f64(-1.7, -3.0), f64(-2.5, -2.0)
    right = [-math.log(sigmoid(0.6)), -math.log(sigmoid(-1.0))]
    wrong = [-math.log(sigmoid(-0.6)), -math.log(sigmoid(1.0))]
    assert dpo_loss(*logprobs, 0.5).item() == pytest.approx(sum(right) / 2, abs=1e-14)
    smooth = sum(0.9 * a + 0.1 * b for a, b in zip(right, wrong)) / 2
    got = dpo_loss(*logprobs, 0.5, label_smoothing=0.1).item()
    assert got == pytest.approx(smooth, abs=1e-14)
    ipo = ((1.2 - 1) ** 2 + (-2 - 1) ** 2) / 2
    assert dpo_loss(*logprobs, 0.5, kind="ipo").item() == pytest.approx(ipo, abs=1e-14)


def test_exchanging_the_answers_changes_the_loss_by_the_margin():
    pc, pr, rc, rr = four(1, 1)
    margin = 0.3 * ((pc - rc) - (pr - rr)).item()
    change = dpo_loss(pc, pr, rc, rr, 0.3) - dpo_loss(pr, pc, rr, rc, 0.3)
    assert change.item() == pytest.approx(-margin, abs=1e-14) and abs(margin) > 0.05


def test_the_gradient_is_that_of_both_answers_weighted_by_the_error(world):
    """∇L = −β σ(−m) (∇log π(y⁺) − ∇log π(y⁻)), with the scores by hand."""
    i, j, beta = 5, 20, 0.8
    (pi, ref), scores = logprobs_of(world), world.scores(world.policy)
    margin = beta * ((pi[i] - ref[i]) - (pi[j] - ref[j]))
    loss = make_dpo_loss(world.reference, beta)(world.policy, pairs_of(world, [i], [j]))
    loss.backward(retain_graph=True)
    close(gradient(world.policy, loss), -beta * sigmoid(-margin) * (scores[i] - scores[j]))
    assert world.reference.rows.grad is None


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"kind": "ipo"}])
def test_the_loss_for_training_has_the_settings_of_dpo_loss(world, settings):
    i, j = [0, 4, 9], [30, 3, 21]
    pi, ref = logprobs_of(world)
    logprobs = (f64(*(logp[k] for k in rows)) for logp in (pi, ref) for rows in (i, j))
    got = make_dpo_loss(world.reference, 0.4, **settings)(world.policy, pairs_of(world, i, j))
    assert got.item() == pytest.approx(dpo_loss(*logprobs, 0.4, **settings).item(), abs=1e-12)


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_is_not_zero(world):
    pairs, i, j = pairs_of(world, [3, 9, 14], [22, 1, 30]), [3, 9, 14], [22, 1, 30]
    loss = make_dpo_loss(copy.deepcopy(world.policy), 0.8)(world.policy, pairs)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-14)
    scores = world.scores(world.policy)
    got = gradient(world.policy, loss)
    close(got, -0.8 / 2 * (scores[i] - scores[j]).mean(0))
    assert got.abs().max() > 0.05
    elsewhere = make_dpo_loss(world.reference, 0.8)(world.policy, pairs)
    assert (gradient(world.policy, elsewhere) - got).abs().max() > 0.01


def test_the_loss_depends_on_the_margin_only():
    """Both answers may become less likely: the loss falls if the rejected one falls further."""
    pc, pr, rc, rr = four(3)
    for kind in ("dpo", "ipo"):
        loss = dpo_loss(pc, pr, rc, rr, 0.5, kind=kind).item()
        shifted = dpo_loss(pc - 5, pr - 5, rc, rr, 0.5, kind=kind).item()
        assert shifted == pytest.approx(loss, abs=1e-12)
    loss = dpo_loss(pc, pr, rc, rr, 0.5)
    assert dpo_loss(pc - 5, pr - 6, rc, rr, 0.5) < loss < dpo_loss(pc + 5, pr + 6, rc, rr, 0.5)


def lowest(losses):
    return min(losses, key=losses.get)


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_with_label_smoothing_there_is_a_best_margin(epsilon):
    """If no label is wrong, the best margin is still log((1−ε)/ε)."""
    zero = f64(0.0)
    losses = {m: dpo_loss(f64(m / 2), zero, zero, zero, 2.0, epsilon).item()
              for m in torch.linspace(-4, 4, 4001, dtype=F64).tolist()}
    assert lowest(losses) == pytest.approx(math.log((1 - epsilon) / epsilon), abs=2e-3)


def test_the_best_difference_of_ipo_is_one_half_of_one_over_beta():
    zero = f64(0.0)
    losses = {d: dpo_loss(f64(d), zero, zero, zero, 0.4, kind="ipo").item()
              for d in torch.linspace(-3, 3, 1201, dtype=F64).tolist()}
    assert lowest(losses) == pytest.approx(1.25, abs=5e-3)


def test_without_smoothing_there_is_no_best_margin():
    zero = f64(0.0)
    losses = [dpo_loss(f64(m), zero, zero, zero, 1.0).item() for m in (1.0, 5.0, 20.0, 600.0)]
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0


# ---- infinite margins ----

def value_and_slopes(logprobs, **settings):
    logprobs = torch.tensor(logprobs, dtype=F64)[:, None].requires_grad_()              # (4, 1)
    loss = dpo_loss(*logprobs, 0.1, **settings)
    (slopes,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), slopes.flatten().tolist()


UP = [(-1, -INF, -1, -2), (-1, -2, -INF, -2), (-1, -INF, -INF, -2)]     # the margin is +∞
DOWN = [(-INF, -1, -1, -2), (-1, -2, -1, -INF), (-INF, -1, -1, -INF)]   # the margin is −∞
SIGNS = [1, -1, -1, 1]                                                  # of ∂margin/∂ each of four


@pytest.mark.parametrize("logprobs", UP)
def test_at_an_infinite_margin_loss_and_gradient_are_zero(logprobs):
    loss, slopes = value_and_slopes(logprobs)
    assert loss == 0 and slopes == [0, 0, 0, 0]


@pytest.mark.parametrize("logprobs", DOWN)
def test_at_a_margin_of_minus_infinity_the_loss_is_infinite_with_slope_beta(logprobs):
    loss, slopes = value_and_slopes(logprobs)
    assert loss == INF and slopes == pytest.approx([-0.1 * sign for sign in SIGNS])


@pytest.mark.parametrize("logprobs, weight", [(x, 0.2) for x in UP] + [(x, -0.8) for x in DOWN])
def test_label_smoothing_makes_both_infinite_margins_infinitely_bad(logprobs, weight):
    loss, slopes = value_and_slopes(logprobs, label_smoothing=0.2)
    assert loss == INF and slopes == pytest.approx([0.1 * weight * sign for sign in SIGNS])


@pytest.mark.parametrize("logprobs, towards", [(x, 1) for x in UP] + [(x, -1) for x in DOWN])
def test_ipo_is_infinite_at_infinite_margins(logprobs, towards):
    loss, slopes = value_and_slopes(logprobs, kind="ipo")
    assert loss == INF and slopes == [towards * sign * INF for sign in SIGNS]


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"kind": "ipo"}])
@pytest.mark.parametrize("logprobs", [
    (-INF, -1, -INF, -1), (-1, -INF, -1, -INF), (-INF, -INF, -1, -1), (-1, -1, -INF, -INF),
])
def test_a_margin_without_a_limit_is_refused(logprobs, settings):
    with pytest.raises(ValueError, match="the margin of 1 of 1 pairs is ∞ − ∞"):
        value_and_slopes(logprobs, **settings)


def test_a_policy_that_cannot_give_an_answer_gets_a_gradient_without_nan(world):
    """The prompt is token 0, and answer 0 is "stop at once": its only token has the logit −∞."""
    assert world.answers[0] == (0,) and world.answers[4][0] != 0
    with torch.no_grad():
        world.policy.rows[0, 0] = -INF
    for i, j, expected in ((0, 4, INF), (4, 0, 0.0)):
        loss = make_dpo_loss(world.reference, 0.5)(world.policy, pairs_of(world, [i], [j]))
        assert loss.item() == expected and gradient(world.policy, loss).isfinite().all()


def test_one_margin_without_a_limit_among_others_is_refused():
    logprobs = four()
    logprobs[0, 4] = logprobs[2, 4] = -INF
    with pytest.raises(ValueError, match="the margin of 1 of 6 pairs"):
        dpo_loss(*logprobs, 0.1)


def test_a_model_that_broke_gives_nan_for_the_training_loop_to_report():
    assert math.isnan(value_and_slopes((math.nan, -1, -1, -1))[0])


def test_the_loss_stays_finite_where_the_sigmoid_underflows():
    far = torch.tensor([-3000.0], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(far, zero, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == 3000 and far.grad.item() == -1


# ---- refusals ----

@pytest.mark.parametrize("epsilon", [-0.01, 0.5, math.nan])
def test_a_label_smoothing_out_of_range_is_refused(epsilon):
    dpo_loss(*four(), 1.0, 0.49)
    for call in (lambda: dpo_loss(*four(), 1.0, epsilon),
                 lambda: make_dpo_loss(nn.Linear(1, 1), 1.0, epsilon)):
        with pytest.raises(ValueError, match="label_smoothing"):
            call()


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, INF])
def test_a_beta_that_is_not_positive_and_finite_is_refused(beta, kind):
    for call in (lambda: dpo_loss(*four(), beta, kind=kind),
                 lambda: make_dpo_loss(nn.Linear(1, 1), beta, kind=kind)):
        with pytest.raises(ValueError, match="β must be greater than 0 and finite"):
            call()


def test_an_unknown_kind_and_ipo_with_smoothing_are_refused():
    with pytest.raises(ValueError, match="hinge"):
        dpo_loss(*four(), 1.0, kind="hinge")
    with pytest.raises(ValueError, match="belongs to kind dpo"):
        dpo_loss(*four(), 1.0, 0.1, kind="ipo")


def test_no_pair_and_different_shapes_are_refused():
    dpo_loss(*four(n=1), 1.0)
    with pytest.raises(ValueError, match="at least one pair"):
        dpo_loss(*four(n=0), 1.0)
    for i in range(4):
        logprobs = list(four())
        logprobs[i] = logprobs[i][:, None]                              # (6, 1) would broadcast
        with pytest.raises(ValueError, match="four log-probabilities"):
            dpo_loss(*logprobs, 1.0)


@pytest.mark.parametrize("kind", ["the same", "sharing"])
def test_a_policy_that_is_its_own_reference_is_refused(world, kind):
    policy, pairs = world.policy, pairs_of(world, [0], [1])
    reference = policy if kind == "the same" else copy.copy(policy)
    assert reference.rows is policy.rows
    with pytest.raises(ValueError, match="share parameters"):
        make_dpo_loss(reference, 0.5)(policy, pairs)
    with pytest.raises(ValueError, match="share parameters"):
        dpo_metrics(policy, reference, pairs, 0.5)


# ---- 8: the reward in the policy ----

def test_the_implicit_reward_of_the_best_policy_is_the_reward_minus_beta_log_z(world):
    ref = f64(*world.logprobs(world.reference))
    best, log_z = optimal_policy(ref, world.rewards, world.beta)
    implicit = implicit_reward(best, ref, world.beta)
    close(implicit, world.rewards - world.beta * world.log_z())
    close(implicit - implicit[0], world.rewards - world.rewards[0])
    assert log_z.item() == pytest.approx(world.log_z())


def expected_gradient(world, table, beta, means=False):
    """∇ of the expected loss over all pairs, with their true label probabilities, at a table."""
    logp, ref = (answer_logprobs(t, world.tokens, world.mask) for t in (table, world.reference))
    if means:
        lengths = world.actions.sum(1)
        logp, ref = logp / lengths, ref / lengths
    i, j = torch.tensor(list(itertools.combinations(range(31), 2))).T
    p = preference_probability(world.rewards[i], world.rewards[j])

    def losses(a, b):
        columns = (x[:, None] for x in (logp[a], logp[b], ref[a], ref[b]))              # (465, 1)
        return torch.stack([dpo_loss(*four, beta) for four in zip(*columns)])

    return gradient(table, (p * losses(i, j) + (1 - p) * losses(j, i)).mean())


def test_at_the_best_policy_the_gradient_is_zero_with_sums_and_not_with_means(world):
    best, _ = optimal_policy(f64(*world.logprobs(world.reference)), world.rewards, world.beta)
    table = make_table(world.tokens, world.mask, best, 3)
    assert expected_gradient(world, table, world.beta).abs().max() < 1e-15
    assert expected_gradient(world, table, world.beta, means=True).abs().max() > 1e-3
    assert expected_gradient(world, table, 2 * world.beta).abs().max() > 1e-3
    assert expected_gradient(world, world.policy, world.beta).abs().max() > 1e-3


def small_gpts(scale=1):
    """A policy and a reference. With a larger scale, inputs differ more in their outputs."""
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8)
    gpts = [GPT(config, seeded(seed)).double() for seed in (0, 1)]
    with torch.no_grad():
        for parameter in itertools.chain(*(gpt.parameters() for gpt in gpts)):
            parameter.mul_(scale)
    return gpts


def test_what_both_answers_share_cancels_in_sums_and_not_in_means():
    """A mask that counts the prompt too gives the same loss. Means divide it by two lengths."""
    gpt, reference = small_gpts(scale=10)
    tokens = torch.tensor([[2, 3, 1, 4, 0, 0, 0], [2, 3, 1, 1, 2, 4, 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]).bool()
    with_prompt = mask | (torch.arange(7) < 3)

    def by_hand(m, means):
        lengths = m[:, 1:].sum(1) if means else torch.ones(2)
        pi, ref = (token_logprobs(model(tokens), tokens, m).sum(1) / lengths
                   for model in (gpt, reference))                       # (2,) each
        return dpo_loss(pi[:1], pi[1:], ref[:1], ref[1:], 0.5).item()

    assert by_hand(mask, False) == pytest.approx(by_hand(with_prompt, False), abs=1e-12)
    assert abs(by_hand(mask, True) - by_hand(with_prompt, True)) > 1e-3
    pairs = Pairs(tokens[:1], mask[:1], tokens[1:], mask[1:])
    got = make_dpo_loss(reference, 0.5)(gpt, pairs).item()
    assert got == pytest.approx(by_hand(mask, False), abs=1e-12)


# ---- pairs ----

def test_scores_of_pairs_are_those_of_the_lists(world):
    i, j = [0, 4, 9], [30, 3, 21]
    chosen, rejected = score_pairs(world.policy, pairs_of(world, i, j))
    pi, _ = logprobs_of(world)
    assert chosen.tolist() == pytest.approx([pi[k] for k in i], abs=1e-12)
    assert rejected.tolist() == pytest.approx([pi[k] for k in j], abs=1e-12)


def test_pairs_of_two_widths_are_refused(world):
    short = Pairs(world.tokens, world.mask, world.tokens[:, :4], world.mask[:, :4])
    with pytest.raises(ValueError, match="padded to 5 and 4 tokens; pad both"):
        score_pairs(world.policy, short)


@pytest.mark.parametrize("side", ["chosen_mask", "rejected_mask"])
def test_an_answer_of_no_tokens_is_refused(world, side):
    """A mask at column 0 does not help: nothing predicts the first token."""
    pairs = pairs_of(world, [0, 4], [30, 3])
    mask = getattr(pairs, side)
    mask[1] = torch.tensor([0, 0, 0, 0, 1]).bool()
    score_pairs(world.policy, pairs)
    for nothing in ([0, 0, 0, 0, 0], [1, 0, 0, 0, 0]):
        mask[1] = torch.tensor(nothing).bool()
        with pytest.raises(ValueError, match="1 of 4 answers have no token"):
            score_pairs(world.policy, pairs)


def test_more_padding_changes_neither_loss_nor_gradient():
    gpt, reference = small_gpts()
    tokens = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 0, 0, 0], [1, 2, 4, 4, 3], [1, 2, 1, 0, 0]])
    mask = torch.tensor(
        [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    results = []
    for extra, value in ((0, 0), (4, 0), (4, 3)):
        t = nn.functional.pad(tokens, (0, extra), value=value)
        m = nn.functional.pad(mask, (0, extra))
        loss = make_dpo_loss(reference, 0.5)(gpt, Pairs(t[:2], m[:2], t[2:], m[2:]))
        results.append(torch.cat([loss[None], gradient(gpt, loss)]))
    assert results[0][1:].abs().max() > 1e-3
    close(results[1], results[0])
    close(results[2], results[0])


def test_metrics_are_means_over_the_pairs(world):
    i, j = [0, 4, 9, 12, 17], [30, 3, 21, 8, 17]                        # the last pair is a tie
    got = dpo_metrics(world.policy, world.reference, pairs_of(world, i, j), world.beta)
    pi, ref = logprobs_of(world)
    margins = [world.beta * ((pi[a] - ref[a]) - (pi[b] - ref[b])) for a, b in zip(i, j)]
    right = sum(m > 0 for m in margins[:4]) + 0.5
    assert 0 < right < 4 and got == pytest.approx({
        "accuracy": right / 5, "margin": sum(margins) / 5,
        "chosen": sum(pi[k] for k in i) / 5, "rejected": sum(pi[k] for k in j) / 5,
    })
    exchanged = dpo_metrics(world.policy, world.reference, pairs_of(world, j, i), world.beta)
    assert exchanged["accuracy"] == pytest.approx(1 - right / 5)
    assert exchanged["margin"] == pytest.approx(-got["margin"])


def test_metrics_at_the_reference_and_of_no_pair(world):
    reference = copy.deepcopy(world.policy)
    pairs = pairs_of(world, [3, 9, 14], [22, 1, 30])
    got = dpo_metrics(world.policy, reference, pairs, 0.8)
    assert got["accuracy"] == 0.5 and got["margin"] == 0
    with pytest.raises(ValueError, match="no pair to average over"):
        dpo_metrics(world.policy, reference, pairs[:0], 0.8)


# ---- training ----

def test_training_on_new_labels_ends_at_the_best_policy(world):
    """Pairs from the reference, labelled by the true r. The loss never sees r, and finds π*."""
    with torch.no_grad():
        world.policy.rows.copy_(world.reference.rows)
    answers = world.all_answers()
    weights = f64(*world.probabilities(world.reference)).sqrt()

    def next_batch(generator):
        rows = torch.multinomial(weights, 8192, replacement=True, generator=generator)
        return compare(answers[rows], world.rewards[rows], generator)

    before = world.reference.rows.detach().clone()
    best, _ = optimal_policy(f64(*world.logprobs(world.reference)), world.rewards, world.beta)

    def gap(policy):
        logprobs = answer_logprobs(policy, world.tokens, world.mask)
        return {"gap": kl_divergence(logprobs, best).item()}

    config = TrainingConfig(max_steps=200, learning_rate=0.2, weight_decay=0, evaluate_every=200)
    loss = make_dpo_loss(world.reference, world.beta)
    rows = train(world.policy, next_batch, loss, config, gap, progress=False)
    assert rows[0]["gap"] > 0.3 and rows[-1]["gap"] <= 1e-3
    assert torch.equal(world.reference.rows, before) and world.reference.rows.grad is None


# ---- against trl ----
# Its own loss methods, with a stand-in for the trainer around them (read and run with trl 1.16.0).

def stand_in(**settings):
    """What trl's loss methods read from `self`. Whatever only feeds its logs accepts any call."""
    trainer = MagicMock()
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.accelerator.device, trainer.accelerator.num_processes = "cpu", 1
    trainer._tp_size, trainer._total_train_tokens = 1, 0
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


@pytest.fixture
def trl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # of its own imports
        module = pytest.importorskip("trl", exc_type=ImportError)
        if tuple(map(int, module.__version__.split(".")[:2])) < (1, 16):
            pytest.skip(f"trl {module.__version__} keeps its losses in other methods than 1.16")
        for name in ("DPOTrainer", "RewardTrainer", "GRPOTrainer"):     # imported lazily
            getattr(module, name)
    return module


def trl_dpo(trl, logits, ref_logits, tokens, mask, beta, loss_type, label_smoothing=0.0):
    def model(which):
        def forward(labels, **_):
            logp = which[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
            logp = logp.masked_fill(labels[:, 1:] == -100, 0)
            zeros = torch.zeros_like(logp)
            return SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros,
                                   is_top1=zeros.bool())
        return forward

    trainer = stand_in(
        beta=beta, loss_types=[loss_type], loss_weights=[1.0], label_smoothing=label_smoothing,
        ld_alpha=None, use_weighting=False, precompute_ref_logps=False, aux_loss_enabled=False,
        f_divergence_type="reverse_kl", ref_model=model(ref_logits))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens),
              "completion_mask": mask.long()}
    return trl.DPOTrainer._compute_loss(trainer, model(logits), inputs, False)


class Fixed(nn.Module):
    """A model whose logits are its parameters, whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, tokens):
        return self.logits[:, :tokens.size(1)]


class Case:
    """Random tokens and logits for pairs with answers of these lengths."""

    def __init__(self, lengths_chosen, lengths_rejected):
        generator = seeded(9)
        B, T = len(lengths_chosen), 7
        self.tokens = torch.randint(5, (2 * B, T), generator=generator)
        self.tokens[B:, :2] = self.tokens[:B, :2]                       # the prompts
        place, lengths = torch.arange(T), torch.tensor(lengths_chosen + lengths_rejected)
        self.mask = (place >= 2) & (place < 2 + lengths[:, None])       # (2B, T)
        logits, ref_logits = torch.randn(2, 2 * B, T, 5, generator=generator, dtype=F64)
        self.policy, self.reference = Fixed(logits), Fixed(ref_logits)
        self.pairs = Pairs(self.tokens[:B], self.mask[:B], self.tokens[B:], self.mask[B:])

    def ours(self, beta, **settings):
        return make_dpo_loss(self.reference, beta, **settings)(self.policy, self.pairs)

    def theirs(self, trl, *settings):
        logits, ref_logits = self.policy.logits, self.reference.logits.detach()
        return trl_dpo(trl, logits, ref_logits, self.tokens, self.mask, *settings)

    def means(self, model):
        """Mean log-probabilities of chosen and rejected answers, in place of sums."""
        logp = token_logprobs(model(self.tokens), self.tokens, self.mask)
        return (logp.sum(1) / self.mask.sum(1)).chunk(2)


def test_dpo_is_that_of_trl(trl):
    case = Case([3, 5, 1], [4, 2, 5])
    ours, theirs = case.ours(0.3), case.theirs(trl, 0.3, "sigmoid")
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
    close(*(torch.autograd.grad(loss, case.policy.logits)[0] for loss in (ours, theirs)))
    # "sigmoid_norm" is trl's name for means in place of sums.
    normed = case.theirs(trl, 0.3, "sigmoid_norm").item()
    with_means = dpo_loss(*case.means(case.policy), *case.means(case.reference), 0.3).item()
    assert with_means == pytest.approx(normed, abs=1e-12)
    assert with_means != pytest.approx(ours.item(), abs=1e-3)


def test_label_smoothing_is_a_mixture_of_the_losses_of_trl(trl):
    """trl 1.16 has no conservative DPO. Its "robust" loss is ((1−ε)L − εL′)/(1−2ε).

    L′ is the loss of the exchanged pair. Solved for L′, it gives ours: (1−ε)L + εL′.
    """
    case = Case([3, 5, 1], [4, 2, 5])
    robust = case.theirs(trl, 0.3, "robust", 0.2).item()
    plain = case.theirs(trl, 0.3, "sigmoid").item()
    exchanged = (0.8 * plain - 0.6 * robust) / 0.2
    expected = 0.8 * plain + 0.2 * exchanged
    assert case.ours(0.3, label_smoothing=0.2).item() == pytest.approx(expected, abs=1e-12)


def test_ipo_is_that_of_trl_for_answers_of_one_length(trl):
    """trl divides IPO's log-ratios by the length (its comment says why); ours are sums.

    Where every answer has n tokens, β_trl = n·β, and our loss is n² times theirs.
    """
    for n, lengths in ((4, [4, 4, 4]), (1, [1, 1])):
        case = Case(lengths, lengths)
        ours, theirs = case.ours(0.3, kind="ipo"), case.theirs(trl, n * 0.3, "ipo")
        assert ours.item() == pytest.approx(n**2 * theirs.item(), abs=1e-11)


def test_bradley_terry_is_that_of_trl(trl):
    rewards = torch.randn(8, 1, generator=seeded(3), dtype=F64)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=None))

    def model(**_):
        return SimpleNamespace(logits=rewards)

    inputs = {"attention_mask": torch.ones(8, 1)}
    theirs = trl.RewardTrainer.compute_loss(trainer, model, inputs)
    ours = bradley_terry_loss(rewards[:4, 0], rewards[4:, 0])
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)


def test_the_clipped_loss_is_that_of_trl(trl):
    """GRPO with loss_type "bnpo" and β = 0 is PPO's clipped loss, a mean over the tokens."""
    new, old, advantages = torch.randn(3, 4, 6, generator=seeded(4), dtype=F64)
    mask = torch.arange(6) < torch.tensor([[6], [2], [1], [4]])         # (4, 6)
    new = (old + 0.4 * new).requires_grad_()
    trainer = stand_in(
        loss_type="bnpo", beta=0.0, epsilon_low=0.2, epsilon_high=0.2, use_vllm=False,
        importance_sampling_level="token", top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False))
    trainer._get_per_token_logps_and_entropies.return_value = (new, torch.zeros(4, 6), None)
    inputs = {
        "prompt_ids": torch.zeros(4, 2), "prompt_mask": torch.ones(4, 2),
        "completion_ids": torch.zeros(4, 6), "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    ours = ppo_policy_loss(new, old, advantages, mask)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)
    close(*(torch.autograd.grad(loss, new)[0] for loss in (ours, theirs)))
