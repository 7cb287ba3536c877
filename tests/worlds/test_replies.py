"""The waiter's world: rewards added up by hand, replies counted by hand, and the chain that people's replies come from."""
import itertools

import pytest
import torch

from minigpt.alignment.exact import answer_logprobs
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.worlds import replies

BY_HAND = [                                                             # customer, reply, reward
    ("please", ".", 0.0),                                               # ends, no words
    ("please", "yes .", 3 - 0.4),
    ("now", "yes yes .", 3 - 0.8),                                      # said twice, counted once
    ("please", "no .", -1 - 0.4),
    ("please", "no sorry .", -1 + 2 + 1 - 0.8),
    ("now", "no sorry .", -1 + 2 + 2 - 0.8),                            # the impatient like an apology
    ("please", "sorry no .", -1 + 1 - 0.8),                             # the wrong way around: nothing extra
    ("please", "yes no .", 3 - 1 - 4 - 0.8),
    ("now", "now please .", -3 + 2 + 1 - 0.8),
    ("please", "please now .", 1 - 3 - 0.8),                            # the customer's own word is no part of the reply
    ("please", "now .", -3 - 0.4),
    ("now", "please please please please please", 1 - 2 - 2.0),         # never ends
]


def tokens_of(customer, reply):
    words = [customer, *reply.split()]
    tokens = [replies.WORDS.index(word) for word in words]
    return tokens + [replies.STOP] * (6 - len(tokens)), [False] + [True] * (len(tokens) - 1) + [False] * (6 - len(tokens))


@pytest.mark.parametrize("customer, reply, expected", BY_HAND)
def test_rewards_added_up_by_hand(customer, reply, expected):
    tokens, mask = tokens_of(customer, reply)
    assert replies.reward(torch.tensor([tokens]), torch.tensor([mask])).item() == pytest.approx(expected, abs=1e-5)
    assert replies.written(torch.tensor(tokens)) == f"{customer} → {reply}"


def test_there_are_3906_replies_to_each_customer_and_none_twice():
    tokens, mask = all_replies()
    assert tokens.shape == mask.shape == (2, 3906, 6)
    expected = {words[:words.index(0) + 1] if 0 in words else words for words in itertools.product(range(6), repeat=5)}
    for customer, rows, belongs in zip(replies.CUSTOMERS, tokens, mask):
        assert {tuple(row[m].tolist()) for row, m in zip(rows, belongs)} == expected and (rows[:, 0] == customer).all()


def test_habits_are_a_chain_and_usual_replies_follow_it():
    assert torch.allclose(replies.HABITS.sum(1), torch.ones(6), atol=1e-6)
    tokens, mask = all_replies()
    for rows, belongs in zip(tokens, mask):
        assert answer_logprobs(lambda tokens: replies.HABITS.log()[tokens], rows, belongs).exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    said, counts = replies.usual_replies(4000, torch.Generator().manual_seed(0))
    start = said[:, 0] == replies.NOW
    assert start.float().mean().item() == pytest.approx(0.5, abs=0.04)
    first = torch.bincount(said[start, 1], minlength=6) / start.sum()
    assert torch.allclose(first, replies.HABITS[replies.NOW], atol=0.04)                # five standard errors at most
    assert counts[:, 1].all() and not counts[:, 0].any()


def test_the_reference_learns_the_chain_and_is_frozen():
    model = train_reference(seed=3, steps=60)
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        after_yes = model(torch.tensor([[replies.PLEASE, replies.YES]]))[0, -1].softmax(0)
    assert (after_yes - replies.HABITS[replies.YES]).abs().max() < 0.15
