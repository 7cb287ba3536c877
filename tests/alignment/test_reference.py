"""The waiter's π_ref and its list of replies, against all strings of five words and the chain."""
import itertools
import math

import pytest
import torch

from minigpt.alignment import reference
from minigpt.alignment.exact import answer_logprobs
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.worlds import replies


def test_there_are_3906_replies_to_each_customer_and_none_twice():
    tokens, mask = all_replies()
    assert tokens.shape == mask.shape == (2, 3906, 6)
    strings = itertools.product(range(6), repeat=5)
    expected = {s[:s.index(0) + 1] if 0 in s else s for s in strings}
    for customer, rows, rows_mask in zip(replies.CUSTOMERS, tokens, mask):
        assert {tuple(row[m].tolist()) for row, m in zip(rows, rows_mask)} == expected
        assert (rows[:, 0] == customer).all()


def test_the_chain_of_usual_replies_gives_all_replies_the_probability_one():
    for tokens, mask in zip(*all_replies()):
        logprobs = answer_logprobs(lambda tokens: replies.NEXT_WORD.log()[tokens], tokens, mask)
        assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_the_reference_learns_the_chain_and_is_frozen():
    model = train_reference(seed=3, steps=60)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    with torch.no_grad():
        after_yes = model(torch.tensor([[replies.PLEASE, replies.YES]]))[0, -1].softmax(0)
    assert (after_yes - replies.NEXT_WORD[replies.YES]).abs().max() < 0.15


def what_is_trained(monkeypatch, seed):
    """The arguments that `train` gets, in place of training."""
    calls = []
    monkeypatch.setattr(reference, "train", lambda *arguments: calls.append(arguments))
    train_reference(seed, steps=7)
    return calls[0]


def test_the_loss_counts_the_tokens_of_the_replies_only(monkeypatch):
    model, next_batch, loss, config = what_is_trained(monkeypatch, seed=1)
    tokens, mask = next_batch(torch.Generator().manual_seed(0))
    assert tokens.shape == (256, 6) and config.max_steps == 7
    logits, losses = model(tokens).tolist(), []
    for row, row_mask, row_logits in zip(tokens.tolist(), mask.tolist(), logits):
        for t in range(1, 6):
            if row_mask[t]:
                log_z = math.log(math.fsum(map(math.exp, row_logits[t - 1])))
                losses.append(log_z - row_logits[t - 1][row[t]])
    assert loss(model, (tokens, mask)).item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_seed_fixes_initial_weights_and_batches(monkeypatch):
    (one, _, _, config), (two, _, _, other) = (what_is_trained(monkeypatch, s) for s in (1, 2))
    assert (config.seed, other.seed) == (1, 2)
    assert not torch.equal(one.token_embedding.weight, two.token_embedding.weight)


def test_the_same_seed_gives_the_same_reference():
    once, again = (train_reference(seed=1, steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
