"""The waiter's world: rewards added up by hand, and the chain that usual replies come from."""
import pytest
import torch

from minigpt.worlds import replies

BY_HAND = [                                                             # customer, reply, reward
    ("please", ".", 0.0),                                               # it ends, and has no words
    ("please", "yes .", 3 - 0.4),
    ("now", "yes yes .", 3 - 0.8),                                      # said twice, counted once
    ("please", "no .", -1 - 0.4),
    ("please", "sorry .", 1 - 0.4),
    ("now", "sorry .", 2 - 0.4),
    ("please", "no sorry .", -1 + 2 + 1 - 0.8),
    ("now", "no sorry .", -1 + 2 + 2 - 0.8),
    ("please", "sorry no .", -1 + 1 - 0.8),                             # another order earns no 2
    ("please", "no yes sorry .", -1 + 3 - 4 + 1 - 1.2),                 # nor do words between
    ("please", "yes no .", 3 - 1 - 4 - 0.8),
    ("now", "now please .", -3 + 2 + 1 - 0.8),
    ("please", "please now .", 1 - 3 - 0.8),                            # the prompt does not count
    ("now", "please .", 1 - 0.4),                                       # nor here: no "now please"
    ("please", "now .", -3 - 0.4),
    ("now", "please please please please please", 1 - 2 - 2.0),         # it never ends
]


def tokens_of(customer, reply):
    tokens = [replies.WORDS.index(word) for word in (customer, *reply.split())]
    n_padding = 6 - len(tokens)
    mask = [False] + [True] * (len(tokens) - 1) + [False] * n_padding
    return tokens + [replies.STOP] * n_padding, mask


@pytest.mark.parametrize("customer, reply, expected", BY_HAND)
def test_rewards_added_up_by_hand(customer, reply, expected):
    tokens, mask = tokens_of(customer, reply)
    got = replies.reward(torch.tensor([tokens]), torch.tensor([mask]))
    assert got.item() == pytest.approx(expected, abs=1e-5)
    assert replies.written(torch.tensor(tokens)) == f"{customer} → {reply}"


def test_rewards_of_a_batch_are_those_of_its_rows():
    rows = [tokens_of(customer, reply) for customer, reply, _ in BY_HAND]
    tokens, mask = (torch.tensor(column) for column in zip(*rows))
    expected = torch.tensor([reward for *_, reward in BY_HAND])
    torch.testing.assert_close(replies.reward(tokens, mask), expected, atol=1e-5, rtol=0)


def test_a_mask_that_is_not_bool_or_has_another_shape_is_refused():
    tokens, mask = (torch.tensor([x]) for x in tokens_of("now", "no sorry ."))
    for bad in (mask.int(), mask[:, 1:]):
        with pytest.raises(ValueError, match="mask"):
            replies.reward(tokens, bad)


def test_each_row_of_the_chain_is_a_distribution():
    assert replies.NEXT_WORD.shape == (6, 6) and (replies.NEXT_WORD >= 0).all()
    assert torch.allclose(replies.NEXT_WORD.sum(1), torch.ones(6), atol=1e-6)


def test_usual_replies_follow_the_chain_and_end_with_their_first_stop():
    n = 8000
    tokens, mask = replies.usual_replies(n, torch.Generator().manual_seed(0))
    assert tokens.shape == mask.shape == (n, 6) and mask.dtype == torch.bool
    is_now = tokens[:, 0] == replies.NOW
    assert (is_now | (tokens[:, 0] == replies.PLEASE)).all() and not mask[:, 0].any()
    assert is_now.float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    before, after = tokens[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]]
    for word in (replies.YES, replies.NO, replies.PLEASE, replies.SORRY, replies.NOW):
        next_words = after[before == word]
        p = replies.NEXT_WORD[word]
        five_errors = 5 * (p * (1 - p) / len(next_words)).sqrt()
        frequencies = torch.bincount(next_words, minlength=6) / len(next_words)
        assert ((frequencies - p).abs() <= five_errors).all()
    for row, counted in zip(tokens.tolist(), mask.tolist()):
        reply = row[1:]
        length = reply.index(replies.STOP) + 1 if replies.STOP in reply else 5
        assert counted[1:] == [True] * length + [False] * (5 - length)
        assert set(reply[length:]) <= {replies.STOP}


def test_customers_are_the_two_prompts_with_equal_probability():
    prompts = replies.customers(4000, torch.Generator().manual_seed(1))
    assert prompts.shape == (4000, 1)
    assert set(prompts.flatten().tolist()) == {replies.PLEASE, replies.NOW}
    share = (prompts == replies.NOW).float().mean().item()
    assert share == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
