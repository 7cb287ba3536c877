"""Losses against sums over lists, and perplexity's three definitions against each other."""
import math

import pytest
import torch

from minigpt.training.losses import (
    bits,
    bits_per_byte,
    causal_loss,
    cross_entropy,
    perplexity,
    sequence_logprobs,
    token_logprobs,
)

B, T, V = 2, 5, 3
LOGITS = torch.randn(B, T, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOGITS.requires_grad_()
TOKENS = torch.tensor([[0, 2, 1, 1, 0], [1, 0, 2, 2, 1]])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


def close(got, wanted):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


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
    counted = [surprise(b, t, TOKENS[b, t + 1]) for b in range(2) for t in range(4)
               if MASK[b, t + 1]]
    assert causal_loss(LOGITS, TOKENS, MASK).item() == pytest.approx(sum(counted) / 6)
    (gradient,) = torch.autograd.grad(causal_loss(LOGITS, TOKENS, MASK), LOGITS)
    # The logits have no gradient where no counted token follows.
    assert gradient[:, -1].abs().max() == 0 and gradient[0, 2:].abs().max() == 0


def test_logprobs_of_tokens_and_of_sequences_are_a_nested_loop():
    ahead = [[-surprise(b, t, TOKENS[b, t + 1]) for t in range(4)] for b in range(2)]
    close(token_logprobs(LOGITS, TOKENS), ahead)
    close(token_logprobs(LOGITS[:, :-1], TOKENS), ahead)
    close(sequence_logprobs(LOGITS, TOKENS), [sum(row) for row in ahead])
    counted = [[x * bool(MASK[b, t + 1]) for t, x in enumerate(row)] for b, row in enumerate(ahead)]
    close(token_logprobs(LOGITS, TOKENS, MASK), counted)
    close(sequence_logprobs(LOGITS, TOKENS, MASK), [sum(row) for row in counted])


def test_padding_changes_no_logprob_and_gets_no_gradient():
    """A prefix of two tokens, an answer of one, padding of two, with NaN in the padding."""
    mask = torch.tensor([[False, False, True, False, False]])
    junk = LOGITS[:1].detach().clone()
    junk[:, 2:] = math.nan                                  # logits that predict padding
    junk.requires_grad_()
    total = sequence_logprobs(junk, torch.tensor([[0, 2, 1, 2, 2]]), mask)
    assert total.item() == pytest.approx(-surprise(0, 1, 1))            # the answer alone
    (gradient,) = torch.autograd.grad(sequence_logprobs(LOGITS, TOKENS, MASK).sum(), LOGITS)
    assert gradient[:, -1].abs().max() == 0 and gradient[0, 2:].abs().max() == 0
    assert gradient[0, :2].abs().min() > 0


@pytest.mark.parametrize("shapes", [
    ((2, 5, 3), (2, 4), (2, 4)), ((2, 5, 3), (2, 5), (2, 4)), ((5, 3), (2, 5), (2, 5)),
    ((2, 3, 3), (2, 5), (2, 5)),
])
def test_logprobs_refuse_shapes_that_do_not_go_together(shapes):
    logits, tokens, mask = shapes
    with pytest.raises(ValueError, match="not |needed"):
        token_logprobs(torch.zeros(logits), torch.zeros(tokens, dtype=torch.long),
                       torch.ones(mask, dtype=torch.bool))


def test_perplexity():
    uniform = cross_entropy(torch.zeros(4, 50), torch.arange(4)).item()
    assert perplexity(uniform) == pytest.approx(50, rel=1e-6)
    probabilities = [0.5, 0.1, 0.25]
    nats = -sum(math.log(p) for p in probabilities) / 3
    in_bits = -sum(math.log2(p) for p in probabilities) / 3
    assert perplexity(nats) == pytest.approx(2**in_bits)
    assert perplexity(nats) == pytest.approx((0.5 * 0.1 * 0.25) ** (-1 / 3))
    assert 2 ** bits(nats) == pytest.approx(perplexity(nats))
    assert perplexity(1e9) == math.inf


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    # A text of 12 bytes has probability 2^-24: 12 tokens of 2 bits, or 3 tokens of 8 bits.
    assert bits_per_byte(2 * math.log(2), 12, 12) == pytest.approx(2)
    assert bits_per_byte(8 * math.log(2), 3, 12) == pytest.approx(2)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="no position to average"):
        cross_entropy(LOGITS, TOKENS, torch.zeros(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.long, torch.float, torch.uint8])
def test_a_mask_that_is_not_bool_is_refused(dtype):
    """logits[mask] with zeros and ones would pick rows 0 and 1 instead of places."""
    mask = MASK.to(dtype)
    for function in (cross_entropy, causal_loss, token_logprobs, sequence_logprobs):
        with pytest.raises(ValueError, match="bool"):
            function(LOGITS, TOKENS, mask)
        function(LOGITS, TOKENS, mask.bool())


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="no position"):
        causal_loss(torch.zeros(3, 1, 4), torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="no position"):
        cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    causal_loss(torch.zeros(3, 2, 4), torch.zeros(3, 2, dtype=torch.long))
