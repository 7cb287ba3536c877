"""Padding against PyTorch's pad_sequence; every refusal with the last value that is allowed."""
import random

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from minigpt.text.padding import check_mask, pad


def test_padding_equals_pytorch_on_both_sides():
    rng = random.Random(0)
    for _ in range(100):
        rows = [[rng.randrange(50) for _ in range(rng.randint(1, 9))]
                for _ in range(rng.randint(1, 6))]
        for side in ("left", "right"):
            tokens, mask = pad(rows, side, 7)
            tensors = [torch.tensor(row) for row in rows]
            ones = [torch.ones(len(row), dtype=torch.bool) for row in rows]
            wanted = pad_sequence(tensors, batch_first=True, padding_value=7, padding_side=side)
            assert torch.equal(tokens, wanted) and tokens.dtype == torch.long
            assert torch.equal(mask, pad_sequence(ones, batch_first=True, padding_side=side))
            check_mask(mask, tokens.shape)
            assert [row[m].tolist() for row, m in zip(tokens, mask)] == rows


def test_padding_by_hand():
    tokens, mask = pad([[5], [6, 7]], side="right", value=-1)
    assert tokens.tolist() == [[5, -1], [6, 7]] and mask.tolist() == [[True, False], [True, True]]
    tokens, mask = pad(((5,), (6, 7)), side="left", value=6)            # a token may equal it
    assert tokens.tolist() == [[6, 5], [6, 7]] and mask.tolist() == [[False, True], [True, True]]
    tokens, mask = pad([[3, 4]], side="left", value=0)                  # nothing to pad
    assert tokens.tolist() == [[3, 4]] and mask.all()


@pytest.mark.parametrize("rows, side, complaint", [
    ([], "left", "no row to pad"), ([[1], [], [2]], "right", "row 1 of 3 has no token"),
    ([[]], "left", "row 0 of 1 has no token"), ([[1]], "both", "side is left or right, not 'both'"),
])
def test_what_cannot_be_padded_is_refused(rows, side, complaint):
    with pytest.raises(ValueError, match=complaint):
        pad(rows, side, 0)


def test_a_mask_is_bool_and_of_the_right_shape():
    mask = torch.tensor([[True, False, True]])
    check_mask(mask, (1, 3))
    check_mask(mask, [1, 3])
    check_mask(mask[:, :0], torch.Size([1, 0]))
    for wrong in (mask.int(), mask.float(), mask.to(torch.uint8)):
        with pytest.raises(ValueError, match=f"a mask is bool, .* not {wrong.dtype}; use mask"):
            check_mask(wrong, (1, 3))
    for shape in ((3,), (1, 4), (2, 3), (1, 3, 1)):
        with pytest.raises(ValueError, match=r"the mask is \(1, 3\) where .* is needed"):
            check_mask(mask, shape)
