"""The waiter's π_ref and its list of replies, against all strings of five words and the chain."""
import itertools

import pytest
import torch

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


def test_a_seed_fixes_the_reference():
    once, again, other = (train_reference(seed, steps=2).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not all(torch.equal(once[name], other[name]) for name in once)
