"""Losses against sums over lists, and perplexity's three definitions against each other."""
import math

import pytest
import torch

from minigpt.training.losses import bits, bits_per_byte, causal_loss, cross_entropy, perplexity

LOGITS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)     # B=2 T=5 V=3
TOKENS = torch.tensor([[0, 2, 1, 1, 0], [1, 0, 2, 2, 1]])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


def surprise(b, t, token):
    """−log softmax, written out."""
    row = LOGITS[b, t].tolist()
    return -math.log(math.exp(row[token]) / sum(math.exp(x) for x in row))


def test_cross_entropy_is_the_mean_over_counted_positions():
    everywhere = [surprise(b, t, TOKENS[b, t]) for b in range(2) for t in range(5)]
    assert cross_entropy(LOGITS, TOKENS).item() == pytest.approx(sum(everywhere) / 10)
    counted = [surprise(b, t, TOKENS[b, t]) for b in range(2) for t in range(5) if MASK[b, t]]
    assert cross_entropy(LOGITS, TOKENS, MASK).item() == pytest.approx(sum(counted) / 8)


def test_causal_loss_looks_one_ahead():
    ahead = [surprise(b, t, TOKENS[b, t + 1]) for b in range(2) for t in range(4)]
    assert causal_loss(LOGITS, TOKENS).item() == pytest.approx(sum(ahead) / 8)
    counted = [surprise(b, t, TOKENS[b, t + 1]) for b in range(2) for t in range(4) if MASK[b, t + 1]]
    assert causal_loss(LOGITS, TOKENS, MASK).item() == pytest.approx(sum(counted) / 6)
    (gradient,) = torch.autograd.grad(causal_loss(LOGITS, TOKENS, MASK), LOGITS)
    assert gradient[:, -1].abs().max() == 0 and gradient[0, 2:].abs().max() == 0    # nothing is asked where nothing follows


def test_perplexity():
    assert perplexity(cross_entropy(torch.zeros(4, 50), torch.arange(4)).item()) == pytest.approx(50, rel=1e-6)
    probabilities = [0.5, 0.1, 0.25]
    nats = -sum(math.log(p) for p in probabilities) / 3
    assert perplexity(nats) == pytest.approx(2 ** (-sum(math.log2(p) for p in probabilities) / 3)) == pytest.approx((0.5 * 0.1 * 0.25) ** (-1 / 3))
    assert 2 ** bits(nats) == pytest.approx(perplexity(nats))
    assert perplexity(1e9) == math.inf


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    # One text of 12 bytes with probability 2^-24, seen as 12 tokens of 2 bits or 3 tokens of 8 bits.
    assert bits_per_byte(2 * math.log(2), 12, 12) == pytest.approx(2) == pytest.approx(bits_per_byte(8 * math.log(2), 3, 12))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="counts no position"):
        cross_entropy(LOGITS, TOKENS, torch.zeros(2, 5, dtype=torch.bool))
