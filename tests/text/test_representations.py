import pytest
import torch
from torch.nn import functional as F

from minigpt.text.representations import bag_of_words, one_hot


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_one_hot_equals_pytorch(shape, dtype):
    tokens = torch.randint(7, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = one_hot(tokens, vocab_size=7)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, F.one_hot(tokens.long(), 7).float())


def test_bag_of_words_is_the_sum_of_one_hots():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, (3, 11), generator=generator)
    hots = F.one_hot(tokens, 6).float()
    assert bag_of_words(tokens, 6).dtype == torch.float32
    assert torch.equal(bag_of_words(tokens, 6), hots.sum(1))
    assert torch.equal(bag_of_words(tokens, 6, binary=True), hots.amax(1))
    assert bag_of_words(tokens, 6).max() > 1            # else counts would equal occurrences


def test_bag_of_words_by_hand_and_without_order():
    tokens = torch.tensor([[2, 0, 2, 4], [1, 1, 1, 3]])
    counts = [[1.0, 0.0, 2.0, 0.0, 1.0], [0.0, 3.0, 0.0, 1.0, 0.0]]
    assert bag_of_words(tokens, 5).tolist() == bag_of_words(tokens.flip(1), 5).tolist() == counts
    assert bag_of_words(torch.zeros(2, 0, dtype=torch.long), 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("function", [one_hot, bag_of_words])
def test_ids_outside_the_vocabulary_are_refused(function):
    with pytest.raises(ValueError, match=r"id 5 is outside a vocabulary of 5 \(0 to 4\)"):
        function(torch.tensor([[4, 5, 0]]), 5)
    with pytest.raises(ValueError, match="id -1 is outside"):
        function(torch.tensor([[0, -1, 2]]), 5)
    for tokens in (torch.tensor([[0.0, 1.0]]), torch.tensor([[True, False]])):
        with pytest.raises(ValueError, match="give an integer tensor"):
            function(tokens, 5)
