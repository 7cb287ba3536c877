"""DPO against its own derivation, sum by sum: where it is 0, which way it pulls, what a mean in place of a sum does, and trl."""
import itertools
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from minigpt.alignment.dpo import DPO, dpo_loss, implicit_reward, score_pairs
from minigpt.alignment.exact import (
    answer_logprobs,
    gradient,
    kl_divergence,
    optimal_policy,
    tabulate,
)
from minigpt.alignment.ppo import ppo_policy_loss
from minigpt.alignment.preferences import Pairs, compare, preference_probability
from minigpt.alignment.reinforce import advantages_over
from minigpt.alignment.reward_model import bradley_terry_loss
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import token_logprobs

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def four(seed=0, n=6):
    return -3 * torch.rand(4, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pairs_of(world, i, j):
    return Pairs(world.tokens[i], world.mask[i], world.tokens[j], world.mask[j])


# ---- 8: the loss ----

def test_the_loss_by_hand():
    """β = ½, log-ratios +0.7 and −0.5, so the margin is 0.6; and a second pair whose margin is −1."""
    pc, pr = torch.tensor([-1.0, -4.0], dtype=F64), torch.tensor([-3.0, -1.0], dtype=F64)
    rc, rr = torch.tensor([-1.7, -3.0], dtype=F64), torch.tensor([-2.5, -2.0], dtype=F64)
    wanted = (-math.log(sigmoid(0.6)) - math.log(sigmoid(-1.0))) / 2
    assert dpo_loss(pc, pr, rc, rr, beta=0.5).item() == pytest.approx(wanted, abs=1e-14)
    smooth = (-0.9 * math.log(sigmoid(0.6)) - 0.1 * math.log(sigmoid(-0.6)) - 0.9 * math.log(sigmoid(-1.0)) - 0.1 * math.log(sigmoid(1.0))) / 2
    assert dpo_loss(pc, pr, rc, rr, beta=0.5, label_smoothing=0.1).item() == pytest.approx(smooth, abs=1e-14)
    assert dpo_loss(pc, pr, rc, rr, beta=0.5, kind="ipo").item() == pytest.approx(((1.2 - 1) ** 2 + (-2 - 1) ** 2) / 2, abs=1e-14)


def test_the_loss_stays_finite_at_any_margin():
    far = torch.tensor([-3000.0], requires_grad=True)
    loss = dpo_loss(far, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=1.0)
    loss.backward()
    assert loss.item() == 3000 and far.grad.item() == -1


def test_swapping_the_pair_changes_the_loss_by_the_margin():
    pc, pr, rc, rr = four(1, 1)
    margin = 0.3 * ((pc - rc) - (pr - rr)).item()
    assert (dpo_loss(pc, pr, rc, rr, 0.3) - dpo_loss(pr, pc, rr, rc, 0.3)).item() == pytest.approx(-margin, abs=1e-14) and abs(margin) > 0.05


def test_the_gradient_pulls_both_answers_with_the_weight_of_the_error(world):
    """∇L = −β σ(−m) (∇log π(y⁺) − ∇log π(y⁻)), scores by hand."""
    i, j, beta = 5, 20, 0.8
    pi, ref, scores = world.logprobs(world.policy), world.logprobs(world.reference), world.scores(world.policy)
    margin = beta * ((pi[i] - ref[i]) - (pi[j] - ref[j]))
    job = DPO(world.reference, beta)
    got = gradient(world.policy, job.loss(world.policy, pairs_of(world, [i], [j])))
    close(got, -beta * sigmoid(-margin) * (scores[i] - scores[j]))
    assert world.reference.rows.grad is None


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_is_not_zero(world):
    job, i, j = DPO(world.policy, 0.8), [3, 9, 14], [22, 1, 30]
    loss = job.loss(world.policy, pairs_of(world, i, j))
    scores = world.scores(world.policy)
    got = gradient(world.policy, loss)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-14)
    close(got, -0.8 / 2 * (scores[i] - scores[j]).mean(0))
    assert got.abs().max() > 0.05 and job.seen["accuracy"] == 0.5 and job.seen["margin"] == 0
    by_difference = world.difference(lambda t: DPO(world.reference, 0.8).loss(t, pairs_of(world, i, j)), world.policy)
    world.reference.rows.data.copy_(world.policy.rows)
    close(gradient(world.policy, DPO(world.reference, 0.8).loss(world.policy, pairs_of(world, i, j))), got)
    assert (by_difference - got).abs().max() > 0.01                     # at another reference it is another gradient


# ---- 8: the reward in it ----

def test_the_best_policys_implicit_reward_is_the_reward_but_for_log_z(world):
    best, log_z = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    implicit = implicit_reward(best, torch.tensor(world.logprobs(world.reference), dtype=F64), world.beta)
    close(implicit, world.rewards - world.beta * world.log_z())
    close(implicit - implicit[0], world.rewards - world.rewards[0])
    assert log_z.item() == pytest.approx(world.log_z())


def expected_gradient(world, table, beta, mean_over_tokens=False):
    """∇ of the loss over *all* pairs with their true label probabilities, at a table; with sums, or with the means of teaching codes."""
    logp, ref = (answer_logprobs(t, world.tokens, world.mask) for t in (table, world.reference))
    if mean_over_tokens:
        logp, ref = logp / world.actions.sum(1), ref / world.actions.sum(1)
    i, j = torch.tensor(list(itertools.combinations(range(31), 2))).T
    p = preference_probability(world.rewards[i], world.rewards[j])

    def each(a, b):
        return torch.stack([dpo_loss(logp[x:x + 1], logp[y:y + 1], ref[x:x + 1], ref[y:y + 1], beta) for x, y in zip(a.tolist(), b.tolist())])

    return gradient(table, (p * each(i, j) + (1 - p) * each(j, i)).mean())


def test_the_best_policy_is_where_the_gradient_is_zero_with_sums_and_not_with_means(world):
    best, _ = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    table = tabulate(world.tokens, world.mask, best, 3)
    assert expected_gradient(world, table, world.beta).abs().max() < 1e-15
    assert expected_gradient(world, table, world.beta, mean_over_tokens=True).abs().max() > 1e-3
    assert expected_gradient(world, table, 2 * world.beta).abs().max() > 1e-3          # another β has another best policy
    assert expected_gradient(world, world.policy, world.beta).abs().max() > 1e-3


def test_label_smoothing_has_a_best_margin(world):
    """Where nobody is wrong, ε still says so: the margin stops at log((1−ε)/ε), and IPO's log-ratios at 1/(2β)."""
    zero = torch.zeros(1, dtype=F64)
    for epsilon in (0.1, 0.3):
        margins = torch.linspace(-4, 4, 4001, dtype=F64).tolist()
        losses = {m: dpo_loss(torch.tensor([m / 2], dtype=F64), zero, zero, zero, 2.0, epsilon).item() for m in margins}
        assert min(losses, key=losses.get) == pytest.approx(math.log((1 - epsilon) / epsilon), abs=2e-3)
    differences = torch.linspace(-3, 3, 1201, dtype=F64).tolist()
    losses = [dpo_loss(torch.tensor([d], dtype=F64), zero, zero, zero, 0.4, kind="ipo").item() for d in differences]
    assert differences[losses.index(min(losses))] == pytest.approx(1.25, abs=5e-3)
    plain = [dpo_loss(torch.tensor([m]), zero, zero, zero, 1.0).item() for m in (1.0, 5.0, 20.0)]
    assert plain[0] > plain[1] > plain[2]                               # without either there is no best margin


def test_what_both_answers_share_cancels_in_a_sum_and_not_in_a_mean(world):
    """Prompt tokens counted by mistake, or not: the same loss, since both answers have the same prompt. Means divide them by two lengths."""
    gpt, reference = (GPT(GPTConfig(5, 12, n_layers=1, n_heads=2, d_model=8), torch.Generator().manual_seed(s)).double() for s in (0, 1))
    with torch.no_grad():
        for model in (gpt, reference):
            for parameter in model.parameters():
                parameter.mul_(10)
    tokens = torch.tensor([[2, 3, 1, 4, 0, 0, 0], [2, 3, 1, 1, 2, 4, 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    with_prompt = mask | (torch.arange(7) < 3)

    def loss(m, mean):
        lengths = m.sum(1) - m[:, 0] * 1 if mean else torch.ones(2)     # the first token is never scored
        (pc, pr), (rc, rr) = (token_logprobs(model(tokens), tokens, m).sum(1) / lengths for model in (gpt, reference))
        return dpo_loss(pc[None], pr[None], rc[None], rr[None], 0.5).item()

    assert loss(mask, False) == pytest.approx(loss(with_prompt, False), abs=1e-12)
    assert abs(loss(mask, True) - loss(with_prompt, True)) > 1e-3
    pairs = Pairs(tokens[:1], mask[:1], tokens[1:], mask[1:])
    assert DPO(reference, 0.5).loss(gpt, pairs).item() == pytest.approx(loss(mask, False), abs=1e-12)


@pytest.mark.parametrize("epsilon", [-0.1, 0.5, math.nan])
def test_a_share_of_wrong_labels_that_is_none_is_refused(epsilon):
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(*four(), 1.0, epsilon)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_price_that_is_none_is_refused(beta):
    for kind in ("dpo", "ipo"):
        with pytest.raises(ValueError, match="β must be greater than 0"):
            dpo_loss(*four(), beta, kind=kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="hinge"):
        dpo_loss(*four(), 1.0, kind="hinge")
    with pytest.raises(ValueError, match="belongs to kind dpo"):
        dpo_loss(*four(), 1.0, 0.1, kind="ipo")


# ---- pairs ----

def test_pairs_are_scored_like_lists(world):
    i, j = [0, 4, 9], [30, 3, 21]
    chosen, rejected = score_pairs(world.policy, pairs_of(world, i, j))
    pi = world.logprobs(world.policy)
    assert chosen.tolist() == pytest.approx([pi[k] for k in i], abs=1e-12) and rejected.tolist() == pytest.approx([pi[k] for k in j], abs=1e-12)
    means = lambda logits, tokens, mask: token_logprobs(logits, tokens, mask).sum(1) / mask.sum(1)      # noqa: E731
    chosen, _ = score_pairs(world.policy, pairs_of(world, i, j), means)
    assert chosen.tolist() == pytest.approx([pi[k] / len(world.answers[k]) for k in i], abs=1e-12)


def test_pairs_of_two_widths_are_refused(world):
    with pytest.raises(ValueError, match="pad both"):
        score_pairs(world.policy, Pairs(world.tokens, world.mask, world.tokens[:, :4], world.mask[:, :4]))


def test_more_padding_changes_neither_loss_nor_gradient():
    config = GPTConfig(vocab_size=5, context_length=12, n_layers=2, n_heads=2, d_model=8)
    gpt, reference = (GPT(config, torch.Generator().manual_seed(s)).double() for s in (0, 1))
    tokens = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 0, 0, 0], [1, 2, 4, 4, 3], [1, 2, 1, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)
    results = []
    for extra, pad in ((0, 0), (4, 0), (4, 3)):
        t, m = torch.nn.functional.pad(tokens, (0, extra), value=pad), torch.nn.functional.pad(mask, (0, extra))
        results.append(gradient(gpt, DPO(reference, 0.5).loss(gpt, Pairs(t[:2], m[:2], t[2:], m[2:]))))
    assert results[0].abs().max() > 1e-3
    close(results[1], results[0])
    close(results[2], results[0])


def test_watched_numbers_are_those_of_the_batch(world):
    i, j = [0, 4, 9, 12], [30, 3, 21, 8]
    job = DPO(world.reference, world.beta)
    job.loss(world.policy, pairs_of(world, i, j))
    pi, ref = world.logprobs(world.policy), world.logprobs(world.reference)
    margins = [world.beta * ((pi[a] - ref[a]) - (pi[b] - ref[b])) for a, b in zip(i, j)]
    assert job.seen["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 4) and job.seen["margin"] == pytest.approx(sum(margins) / 4)
    assert job.seen["chosen"] == pytest.approx(sum(pi[k] for k in i) / 4) and job.seen["rejected"] == pytest.approx(sum(pi[k] for k in j) / 4)


# ---- training ----

def test_training_on_fresh_labels_ends_at_the_best_policy(world):
    """Pairs from the reference, labelled by the true reward: the loss never sees R, and finds π* all the same."""
    with torch.no_grad():
        world.policy.rows.copy_(world.reference.rows)
    answers, p = world.all_answers(scored=False), torch.tensor(world.probabilities(world.reference), dtype=F64).sqrt()

    def next_batch(generator):
        rows = torch.multinomial(p, 8192, replacement=True, generator=generator)
        return compare(answers[rows], world.rewards[rows], generator)

    job, before = DPO(world.reference, world.beta), world.reference.rows.detach().clone()
    best, _ = optimal_policy(torch.tensor(world.logprobs(world.reference), dtype=F64), world.rewards, world.beta)
    gap = lambda: kl_divergence(answer_logprobs(world.policy, world.tokens, world.mask).detach(), best).item()      # noqa: E731
    start = gap()
    config = TrainingConfig(max_steps=200, learning_rate=0.2, weight_decay=0, evaluate_every=200)
    list(train(world.policy, next_batch, job.loss, config, progress=False))
    assert start > 0.3 and gap() <= 1e-3
    assert torch.equal(world.reference.rows, before) and world.reference.rows.grad is None


def test_only_the_margin_is_in_the_loss():
    """Both answers may become rarer, the chosen one too: as long as the rejected one falls further, the loss falls."""
    pc, pr, rc, rr = four(3)
    for kind in ("dpo", "ipo"):
        loss = dpo_loss(pc, pr, rc, rr, 0.5, kind=kind).item()
        assert dpo_loss(pc - 5, pr - 5, rc, rr, 0.5, kind=kind).item() == pytest.approx(loss, abs=1e-12)
    assert dpo_loss(pc - 5, pr - 6, rc, rr, 0.5) < dpo_loss(pc, pr, rc, rr, 0.5) < dpo_loss(pc + 5, pr + 6, rc, rr, 0.5)


# ---- against trl: its own loss methods, given a stand-in for the trainer around them (read and run with trl 1.16.0) ----

def stand_in(**settings):
    """What trl's loss methods read from `self`. Everything that only feeds its logs answers to any call."""
    trainer = MagicMock()
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.accelerator.device, trainer.accelerator.num_processes, trainer._tp_size, trainer._total_train_tokens = "cpu", 1, 1, 0
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


@pytest.fixture
def trl():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # its own imports' deprecations are not ours
        module = pytest.importorskip("trl", exc_type=ImportError)
        if tuple(map(int, module.__version__.split(".")[:2])) < (1, 16):
            pytest.skip(f"trl {module.__version__} keeps its losses in other methods than 1.16")
        module.DPOTrainer, module.RewardTrainer, module.GRPOTrainer     # imported lazily, so here
    return module


def trl_dpo(trl, logits, ref_logits, tokens, mask, beta, loss_type, label_smoothing=0.0):
    def model(which):
        def forward(labels, **_):
            logp = which[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].masked_fill(labels[:, 1:] == -100, 0)
            nothing = torch.zeros_like(logp)
            return SimpleNamespace(log_probs=logp, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        return forward
    trainer = stand_in(beta=beta, loss_types=[loss_type], loss_weights=[1.0], label_smoothing=label_smoothing, ld_alpha=None, use_weighting=False,
                       precompute_ref_logps=False, f_divergence_type="reverse_kl", aux_loss_enabled=False, ref_model=model(ref_logits))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "completion_mask": mask.long()}
    return trl.DPOTrainer._compute_loss(trainer, model(logits), inputs, False)


def logits_and_pairs(lengths_chosen, lengths_rejected):
    generator = torch.Generator().manual_seed(9)
    B, T = len(lengths_chosen), 7
    tokens = torch.randint(5, (2 * B, T), generator=generator)
    tokens[B:, :2] = tokens[:B, :2]
    mask = torch.stack([(torch.arange(T) >= 2) & (torch.arange(T) < 2 + n) for n in lengths_chosen + lengths_rejected])
    logits, ref = torch.randn(2, 2 * B, T, 5, generator=generator, dtype=F64)
    pairs = Pairs(tokens[:B], mask[:B], tokens[B:], mask[B:])
    table = lambda which: (lambda inputs: which[:, :inputs.size(1)])    # noqa: E731
    return tokens, mask, logits.requires_grad_(), ref, pairs, table


def test_dpo_is_trls(trl):
    tokens, mask, logits, ref, pairs, table = logits_and_pairs([3, 5, 1], [4, 2, 5])
    ours = DPO(table(ref), 0.3).loss(table(logits), pairs)
    theirs = trl_dpo(trl, logits, ref, tokens, mask, 0.3, "sigmoid")
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
    close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    normed = trl_dpo(trl, logits, ref, tokens, mask, 0.3, "sigmoid_norm")       # trl's name for means instead of sums
    means = [score_pairs(table(w), pairs, lambda lo, t, m: token_logprobs(lo, t, m).sum(1) / m.sum(1)) for w in (logits, ref)]
    assert dpo_loss(*means[0], *means[1], 0.3).item() == pytest.approx(normed.item(), abs=1e-12) != pytest.approx(ours.item(), abs=1e-3)


def test_label_smoothing_is_a_mixture_of_trls_losses(trl):
    """trl 1.16 has no conservative DPO any more; its "robust" loss is ((1−ε)L − εL′)/(1−2ε), L′ the swapped pair's. Both come from L and L′."""
    tokens, mask, logits, ref, pairs, table = logits_and_pairs([3, 5, 1], [4, 2, 5])
    robust = trl_dpo(trl, logits, ref, tokens, mask, 0.3, "robust", 0.2).item()
    plain = trl_dpo(trl, logits, ref, tokens, mask, 0.3, "sigmoid").item()
    swapped = (0.8 * plain - 0.6 * robust) / 0.2
    assert DPO(table(ref), 0.3, label_smoothing=0.2).loss(table(logits), pairs).item() == pytest.approx(0.8 * plain + 0.2 * swapped, abs=1e-12)


def test_ipo_is_trls_for_answers_of_one_length_with_beta_per_token(trl):
    """trl divides IPO's log-ratios by the answer's length (its comment says why); ours are the paper's sums.

    Where every answer has n tokens: β_trl = n·β, and our loss is n² times theirs.
    """
    tokens, mask, logits, ref, pairs, table = logits_and_pairs([4, 4, 4], [4, 4, 4])
    ours = DPO(table(ref), 0.3, kind="ipo").loss(table(logits), pairs)
    theirs = trl_dpo(trl, logits, ref, tokens, mask, 4 * 0.3, "ipo")
    assert ours.item() == pytest.approx(16 * theirs.item(), abs=1e-11)
    tokens, mask, logits, ref, pairs, table = logits_and_pairs([1, 1], [1, 1])
    ours = DPO(table(ref), 0.3, kind="ipo").loss(table(logits), pairs)
    assert ours.item() == pytest.approx(trl_dpo(trl, logits, ref, tokens, mask, 0.3, "ipo").item(), abs=1e-12)


def test_bradley_terry_is_trls(trl):
    rewards = torch.randn(8, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=None))
    theirs = trl.RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards), {"attention_mask": torch.ones(8, 1)})
    assert bradley_terry_loss(rewards[:4, 0], rewards[4:, 0]).item() == pytest.approx(theirs.item(), abs=1e-13)


def test_the_clipped_loss_is_trls(trl):
    """trl's GRPO with loss_type "bnpo" and no price: PPO's clipped loss, meaned over the batch's tokens."""
    new, old, advantages = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(4), dtype=F64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    new = (old + 0.4 * new).requires_grad_()
    trainer = stand_in(loss_type="bnpo", beta=0.0, epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token", top_entropy_quantile=1.0,
                       off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False, _entropy_bonus_enabled=False,
                       current_gradient_accumulation_steps=1,
                       args=SimpleNamespace(delta=None, use_bias_correction_kl=False))
    trainer._get_per_token_logps_and_entropies.return_value = (new, torch.zeros(4, 6), None)
    inputs = {"prompt_ids": torch.zeros(4, 2), "prompt_mask": torch.ones(4, 2), "completion_ids": torch.zeros(4, 6), "completion_mask": mask.long(),
              "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum()}
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    ours = ppo_policy_loss(new, old, advantages, mask)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)
    close(*(torch.autograd.grad(loss, new)[0] for loss in (ours, theirs)))
    assert advantages_over(torch.tensor([[1.0, 2.0]]), "mean").tolist() == [[-0.5, 0.5]]
