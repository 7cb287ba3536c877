"""Log-probabilities, the three KL estimates and means over masks, against loops; and what the estimates are as losses."""
import copy
import math

import pytest
import torch

from minigpt.alignment.exact import answer_logprobs, gradient
from minigpt.alignment.logprobs import check_reference, entropy, kl_estimates, masked_mean
from minigpt.training.losses import sequence_logprobs, token_logprobs

F64 = torch.float64


def exact_logprobs(world):
    return answer_logprobs(world.policy, world.tokens, world.mask), torch.tensor(world.logprobs(world.reference), dtype=F64)


# ---- which logits judge which token ----

def test_logits_judge_the_token_after_them():
    """A model that knows "after i comes i + 1" and nothing else: only the right shift finds it sure of itself."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    logits = 50.0 * torch.nn.functional.one_hot((tokens + 1) % 6, 6)
    assert token_logprobs(logits, tokens).abs().max() < 1e-6 and sequence_logprobs(logits, tokens).item() == pytest.approx(0, abs=1e-6)
    for naive in (logits.log_softmax(-1).gather(-1, tokens[..., None]), logits[:, 1:].log_softmax(-1).gather(-1, tokens[:, :-1, None])):
        assert naive.max() < -40                                        # no shift; the shift the other way


def test_the_mask_counts_tokens_not_the_logits_that_judge_them(world):
    logits = world.policy(world.tokens[:, :-1])
    per_token = token_logprobs(logits, world.tokens, world.mask)
    for i, row in enumerate(world.token_logprobs(world.policy)):
        n = len(world.prompt) - 1
        wanted = [0.0] * n + row + [0.0] * (per_token.size(1) - n - len(row))
        torch.testing.assert_close(per_token[i], torch.tensor(wanted, dtype=F64), atol=1e-12, rtol=0)
    unshifted = token_logprobs(logits, world.tokens) * world.mask[:, :-1]       # the mask moved the other way loses each answer's first token
    assert (unshifted.sum(1).exp().sum() - 1).abs() > 0.1


# ---- k1, k2, k3 ----

def test_estimates_by_hand():
    """π = 1/2, ref = 1/8: ρ = 1/4. π = 1/8, ref = 1/2: ρ = 4."""
    pi, ref = torch.tensor([[0.5, 0.125]], dtype=F64).log(), torch.tensor([[0.125, 0.5]], dtype=F64).log()
    k1, k2, k3 = kl_estimates(pi, ref)
    for got, wanted in ((k1, [math.log(4), -math.log(4)]), (k2, [math.log(4) ** 2 / 2] * 2), (k3, [0.25 - 1 + math.log(4), 4 - 1 - math.log(4)])):
        assert got.shape == (1, 2) and got[0].tolist() == pytest.approx(wanted, abs=1e-14)


def test_k1_and_k3_have_kl_as_their_mean_and_k3_is_never_negative(world):
    logp, ref = exact_logprobs(world)
    p = world.probabilities(world.policy)
    k1, k2, k3 = (k.detach() for k in kl_estimates(logp, ref))
    kl = world.kl(world.policy, world.reference)
    mean = lambda k: math.fsum(a * b for a, b in zip(p, k.tolist()))    # noqa: E731
    assert mean(k1) == pytest.approx(kl, abs=1e-12) and mean(k3) == pytest.approx(kl, abs=1e-12)
    assert k1.min() < -0.1 and k3.min() >= 0 and abs(mean(k2) - kl) > 0.01
    # Signs and ratios got wrong: −k1 has mean −KL; k3 of the inverted ratio, w − 1 − log w with w = π/ref, has mean χ² − KL.
    w = [a / b for a, b in zip(p, world.probabilities(world.reference))]
    chi2 = math.fsum(q * (x - 1) ** 2 for q, x in zip(world.probabilities(world.reference), w))
    inverted = kl_estimates(ref, logp.detach())[2]
    assert mean(inverted) == pytest.approx(chi2 - kl, abs=1e-11) and abs(chi2 - 2 * kl) > 0.1
    assert mean(kl_estimates(ref, logp.detach())[0]) == pytest.approx(-kl, abs=1e-12)


def test_token_by_token_the_means_are_kl_too(world):
    """Chain rule, sampled: the sum over an answer's tokens of k1, and of k3, has KL as its mean."""
    k1, _, k3 = kl_estimates(*(world.listed_logprobs(t) for t in (world.policy, world.reference)))
    p, kl = world.probabilities(world.policy), world.kl(world.policy, world.reference)
    assert math.fsum(a * b for a, b in zip(p, k1.sum(1).tolist())) == pytest.approx(kl, abs=1e-12)
    assert math.fsum(a * b for a, b in zip(p, k3.sum(1).tolist())) == pytest.approx(kl, abs=1e-12)


def test_k3_scatters_less_and_k2_is_nearly_right_when_policies_are_close(world):
    with torch.no_grad():
        world.reference.rows.copy_(world.policy.rows + 0.05 * torch.randn(world.policy.rows.shape, generator=world.generator))
    logp, ref = exact_logprobs(world)
    k1, k2, k3 = (k.detach() for k in kl_estimates(logp, ref))
    p, kl = logp.detach().exp(), world.kl(world.policy, world.reference)
    spread = lambda k: (p * (k - kl).square()).sum().sqrt()             # noqa: E731
    assert spread(k3) < 0.2 * spread(k1) and (p * k2).sum().item() == pytest.approx(kl, rel=0.05)


def test_small_differences_do_not_drown_in_float32():
    """At log ρ = 1e-4, k3 = 5e-9: e^u − 1 − u computed as written is rounding noise."""
    assert kl_estimates(torch.tensor(-3.0), torch.tensor(-3.0 + 2**-13))[2].item() == pytest.approx(2**-27, rel=1e-3)


# ---- 5: the estimates as losses ----

def test_as_losses_the_estimates_have_other_gradients(world):
    """Samples of π are held fixed: weights p do not depend on θ, the estimates do."""
    def of(pick):
        logp, ref = exact_logprobs(world)
        return gradient(world.policy, (logp.detach().exp() * pick(logp, ref)).sum())

    def difference(function):
        return world.difference(function, world.policy)

    forward = difference(lambda t: world.kl(t, world.reference))
    backward = difference(lambda t: world.kl_from_reference(t))
    close = lambda got, wanted: torch.testing.assert_close(got, wanted, atol=1e-8, rtol=0)      # noqa: E731
    assert of(lambda a, b: kl_estimates(a, b)[0]).abs().max() < 1e-14   # a sampled k1 teaches nothing
    close(of(lambda a, b: kl_estimates(a, b)[1]), forward)
    close(of(lambda a, b: kl_estimates(a, b)[2]), backward)             # k3: the other direction
    close(of(lambda a, b: (a - a.detach()).exp() * kl_estimates(a, b)[2]), forward)
    close(of(lambda a, b: a * kl_estimates(a.detach(), b)[0]), forward)                         # k1 as a (negative) reward
    assert (forward - backward).abs().max() > 0.05 and forward.abs().max() > 0.05


@pytest.fixture
def world(world):
    def kl_from_reference(table):
        return math.fsum(math.exp(b) * (b - a) for a, b in zip(world.logprobs(table), world.logprobs(world.reference)))
    world.kl_from_reference = kl_from_reference
    return world


# ---- means over masks ----

def test_masked_mean_is_a_loop_and_blind_elsewhere():
    values = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 4.0, -9.0]], dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    got = masked_mean(values, mask)
    assert got.item() == pytest.approx((1 + 2 + 4 - 9) / 4) and got.dim() == 0
    (slope,) = torch.autograd.grad(got, values)
    assert slope.tolist() == [[0.25, 0.25, 0], [0, 0.25, 0.25]]
    with pytest.raises(ValueError, match="counts no place"):
        masked_mean(values, torch.zeros_like(mask))


def test_entropy_is_a_loop_over_the_answers_own_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    mask = torch.tensor([[False, False, True, True, False], [False, True, False, False, False]])
    H = []
    for b, t in ((0, 1), (0, 2), (1, 0)):                               # the logits before tokens (0, 2), (0, 3) and (1, 1)
        z = sum(math.exp(x) for x in logits[b, t].tolist())
        H.append(-sum(math.exp(x) / z * (x - math.log(z)) for x in logits[b, t].tolist()))
    assert entropy(logits, mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)
    cut = logits.clone().index_fill(-1, torch.tensor([2]), -torch.inf).requires_grad_()             # one token is impossible
    (slope,) = torch.autograd.grad(entropy(cut, mask), cut)
    (wanted,) = torch.autograd.grad(entropy(cut[..., :2], mask), cut)
    torch.testing.assert_close(slope, wanted, atol=1e-13, rtol=0)
    assert slope[..., :2].abs().max() > 0.01
    assert entropy(logits[:, :-1], mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)
    over_padding = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert abs(over_padding - sum(H) / 3) > 0.01
    junk = logits.clone()
    for b, t in ((0, 0), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)):
        junk[b, t] = math.nan
    assert entropy(junk, mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)


def test_entropy_at_its_ends():
    mask = torch.tensor([[False, True]])
    assert entropy(torch.zeros(1, 2, 7), mask).item() == pytest.approx(math.log(7), rel=1e-6)
    assert entropy(torch.tensor([[[0.0, -math.inf, 0.0]]]), mask).item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_mask_of_whole_numbers_is_refused():
    """values[[1, 0]] would pick rows 1 and 0."""
    with pytest.raises(ValueError, match="bool"):
        masked_mean(torch.randn(2, 2), torch.tensor([[1, 0], [0, 1]]))


def test_a_policy_that_is_its_own_reference_is_refused(world):
    check_reference(world.policy, world.reference)
    check_reference(world.policy, copy.deepcopy(world.policy))
    with pytest.raises(ValueError, match="share parameters"):
        check_reference(world.policy, world.policy)
    with pytest.raises(ValueError, match="share parameters"):
        check_reference(torch.nn.ModuleList([world.reference, world.policy]), world.policy)
