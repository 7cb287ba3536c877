"""Log-probabilities, KL estimates and masked means against loops; KL estimates as losses."""
import copy
import math

import pytest
import torch

from minigpt.alignment.exact import answer_logprobs
from minigpt.alignment.logprobs import check_reference, entropy, kl_estimates, masked_mean
from minigpt.training.losses import sequence_logprobs, token_logprobs

F64 = torch.float64


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


def exact_logprobs(world):
    ref_logprobs = torch.tensor(world.logprobs(world.reference), dtype=F64)
    return answer_logprobs(world.policy, world.tokens, world.mask), ref_logprobs


# ---- which logits predict which token ----

def test_logits_predict_the_token_after_them():
    """The model is certain that i + 1 follows i, so only the right shift gives log P = 0."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    logits = 50.0 * torch.nn.functional.one_hot((tokens + 1) % 6, 6)
    assert token_logprobs(logits, tokens).abs().max() < 1e-6
    assert sequence_logprobs(logits, tokens).item() == pytest.approx(0, abs=1e-6)
    logprobs = logits.log_softmax(-1)
    assert logprobs.gather(-1, tokens[..., None]).max() < -40                   # no shift
    assert logprobs[:, 1:].gather(-1, tokens[:, :-1, None]).max() < -40         # the wrong shift


def test_the_mask_counts_tokens_and_not_the_logits_that_predict_them(world):
    logits = world.policy(world.tokens[:, :-1])
    per_token = token_logprobs(logits, world.tokens, world.mask)
    for i, row in enumerate(world.token_logprobs(world.policy)):
        n = len(world.prompt) - 1
        wanted = [0.0] * n + row + [0.0] * (per_token.size(1) - n - len(row))
        close(per_token[i], torch.tensor(wanted, dtype=F64))
    # A mask without the shift loses the first token of each answer.
    unshifted = token_logprobs(logits, world.tokens) * world.mask[:, :-1]
    assert (unshifted.sum(1).exp().sum() - 1).abs() > 0.1


# ---- k1, k2, k3 ----

def test_estimates_by_hand():
    """For π = 1/2 and π_ref = 1/8, u is 1/4; for π = 1/8 and π_ref = 1/2, u is 4."""
    pi, ref = torch.tensor([[[0.5, 0.125]], [[0.125, 0.5]]], dtype=F64).log()
    log4 = math.log(4)
    by_hand = ([log4, -log4], [log4 ** 2 / 2] * 2, [0.25 - 1 + log4, 4 - 1 - log4])
    for got, wanted in zip(kl_estimates(pi, ref), by_hand):
        assert got.shape == (1, 2) and got[0].tolist() == pytest.approx(wanted, abs=1e-14)


def test_k1_and_k3_have_kl_as_their_mean_and_k3_is_never_negative(world):
    logp, ref = exact_logprobs(world)
    p = world.probabilities(world.policy)
    k1, k2, k3 = (k.detach() for k in kl_estimates(logp, ref))
    kl = world.kl(world.policy, world.reference)

    def mean(k):
        return math.fsum(a * b for a, b in zip(p, k.tolist()))

    assert mean(k1) == pytest.approx(kl, abs=1e-12) and mean(k3) == pytest.approx(kl, abs=1e-12)
    assert k1.min() < -0.1 and k3.min() >= 0 and abs(mean(k2) - kl) > 0.01
    # With the inverted ratio w = π/π_ref, k1 has the mean −KL, and k3 = w − 1 − log w has χ² − KL.
    q = world.probabilities(world.reference)
    chi2 = math.fsum(b * (a / b - 1) ** 2 for a, b in zip(p, q))
    k1, _, k3 = kl_estimates(ref, logp.detach())
    assert mean(k3) == pytest.approx(chi2 - kl, abs=1e-11) and abs(chi2 - 2 * kl) > 0.1
    assert mean(k1) == pytest.approx(-kl, abs=1e-12)


def test_sums_over_tokens_have_kl_as_their_mean_too(world):
    """By the chain rule, the sums of k1 and of k3 over an answer's tokens have the mean KL."""
    k1, _, k3 = kl_estimates(*(world.listed_logprobs(t) for t in (world.policy, world.reference)))
    p, kl = world.probabilities(world.policy), world.kl(world.policy, world.reference)
    assert math.fsum(a * b for a, b in zip(p, k1.sum(1).tolist())) == pytest.approx(kl, abs=1e-12)
    assert math.fsum(a * b for a, b in zip(p, k3.sum(1).tolist())) == pytest.approx(kl, abs=1e-12)


def test_k3_varies_less_and_k2_is_nearly_unbiased_when_policies_are_close(world):
    with torch.no_grad():
        noise = torch.randn(world.policy.rows.shape, generator=world.generator)
        world.reference.rows.copy_(world.policy.rows + 0.05 * noise)
    logp, ref = exact_logprobs(world)
    k1, k2, k3 = (k.detach() for k in kl_estimates(logp, ref))
    p, kl = logp.detach().exp(), world.kl(world.policy, world.reference)

    def spread(k):
        return (p * (k - kl).square()).sum().sqrt()

    assert spread(k3) < 0.2 * spread(k1) and (p * k2).sum().item() == pytest.approx(kl, rel=0.05)


def test_small_differences_are_exact_in_float32():
    """At log u = 2⁻¹³, k3 is 2⁻²⁷; u − 1 − log u, computed as written, is only a rounding error."""
    _, _, k3 = kl_estimates(torch.tensor(-3.0), torch.tensor(-3.0 + 2**-13))
    assert k3.item() == pytest.approx(2**-27, rel=1e-3)


# ---- the estimates as losses ----

def test_as_losses_the_estimates_have_other_gradients(world):
    """The samples are fixed: their probabilities do not depend on θ, and the estimates do."""
    logp, ref = exact_logprobs(world)

    def mean_gradient(estimate):
        loss = (logp.detach().exp() * estimate).sum()
        return torch.autograd.grad(loss, world.policy.rows, retain_graph=True)[0].flatten()

    k1, k2, k3 = kl_estimates(logp, ref)
    forward = world.difference(lambda table: world.kl(table, world.reference), world.policy)
    backward = world.difference(lambda table: world.kl(world.reference, table), world.policy)
    assert mean_gradient(k1).abs().max() < 1e-14
    close(mean_gradient(k2), forward, atol=1e-8)
    close(mean_gradient(k3), backward, atol=1e-8)                       # the other direction
    close(mean_gradient((logp - logp.detach()).exp() * k3), forward, atol=1e-8)
    close(mean_gradient(logp * k1.detach()), forward, atol=1e-8)        # k1 as a negative reward
    assert (forward - backward).abs().max() > 0.05 and forward.abs().max() > 0.05


# ---- means over masks ----

def test_masked_mean_is_the_mean_of_a_loop_over_the_counted_places():
    values = torch.tensor([[1, 2, math.nan], [math.inf, 4, -9]], dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    got = masked_mean(values, mask)
    assert got.item() == pytest.approx((1 + 2 + 4 - 9) / 4) and got.dim() == 0
    (slope,) = torch.autograd.grad(got, values)
    assert slope.tolist() == [[0.25, 0.25, 0], [0, 0.25, 0.25]]
    with pytest.raises(ValueError, match="counts no place"):
        masked_mean(values, torch.zeros_like(mask))


def test_entropy_is_the_mean_of_a_loop_over_the_tokens_of_the_answers():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    mask = torch.tensor([[False, False, True, True, False], [False, True, False, False, False]])
    H = []
    for b, t in ((0, 1), (0, 2), (1, 0)):               # they predict tokens (0, 2), (0, 3), (1, 1)
        row = logits[b, t].tolist()
        z = sum(math.exp(x) for x in row)
        H.append(-sum(math.exp(x) / z * (x - math.log(z)) for x in row))
    assert entropy(logits, mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)
    cut = logits.clone()
    cut[..., 2] = -torch.inf                                            # one token is impossible
    cut.requires_grad_()
    (slope,) = torch.autograd.grad(entropy(cut, mask), cut)
    (wanted,) = torch.autograd.grad(entropy(cut[..., :2], mask), cut)
    close(slope, wanted, atol=1e-13)
    assert slope[..., :2].abs().max() > 0.01
    assert entropy(logits[:, :-1], mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)
    over_padding = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert abs(over_padding - sum(H) / 3) > 0.01
    junk = logits.clone()
    junk[:, :-1][~mask[:, 1:]] = math.nan
    junk[:, -1] = math.nan
    assert entropy(junk, mask).item() == pytest.approx(sum(H) / 3, abs=1e-13)


def test_entropy_of_equal_and_of_impossible_tokens():
    mask = torch.tensor([[False, True]])
    assert entropy(torch.zeros(1, 2, 7), mask).item() == pytest.approx(math.log(7), rel=1e-6)
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]])
    assert entropy(logits, mask).item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_mask_of_whole_numbers_is_refused():
    """As an index, [1, 0] would select rows 1 and 0."""
    with pytest.raises(ValueError, match="bool"):
        masked_mean(torch.randn(2, 2), torch.tensor([[1, 0], [0, 1]]))


def test_a_policy_that_is_its_own_reference_is_refused(world):
    check_reference(world.policy, world.reference)
    check_reference(world.policy, copy.deepcopy(world.policy))
    with pytest.raises(ValueError, match="share parameters"):
        check_reference(world.policy, world.policy)
    with pytest.raises(ValueError, match="share parameters"):
        check_reference(torch.nn.ModuleList([world.reference, world.policy]), world.policy)
