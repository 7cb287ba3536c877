"""The shared checks: for each, the last value that is legal and the first that is not."""
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from minigpt.models.checks import (
    TokenEmbedding,
    check_fields,
    check_heads,
    check_memory,
    check_rows,
    check_sizes,
)


@dataclass(frozen=True)
class Config:
    """One field of each kind."""

    size: int = 1
    optional_size: int | None = None
    share: float | None = None
    flag: bool = True
    kind: Literal["first", "second"] = "first"


def test_sizes_are_whole_numbers_of_at_least_one():
    check_sizes(width=1, height=10**30)
    check_sizes()
    for illegal in (0, -1, 1.0, True, None, "1"):
        with pytest.raises(ValueError) as error:
            check_sizes(width=1, height=illegal)
        assert str(error.value) == f"height must be a whole number of at least 1, not {illegal!r}"


def test_heads_divide_the_model():
    assert check_heads(12, 1) == 12 and check_heads(12, 4) == 3 and check_heads(12, 12) == 1
    for n_heads, nearest in ((5, 15), (24, 24)):
        message = f"d_model 12 is not a multiple of n_heads {n_heads}; try d_model {nearest}"
        with pytest.raises(ValueError, match=message):
            check_heads(12, n_heads)
    with pytest.raises(ValueError, match="n_heads must be a whole number of at least 1, not 0"):
        check_heads(12, 0)


@pytest.mark.parametrize("legal", [
    dict(size=1), dict(size=10**30), dict(optional_size=1), dict(optional_size=None),
    dict(share=1e-12), dict(share=1), dict(share=None), dict(flag=False), dict(kind="second"),
])
def test_legal_fields(legal):
    check_fields(Config(**legal))


@pytest.mark.parametrize("field, values, wanted", [
    ("size", (0, -1, 2.0, True, "3", None), "a whole number of at least 1"),
    ("optional_size", (0, -1, 2.0, True), "a whole number of at least 1"),
    ("share", (0, 0.0, -1e-5, float("nan"), True, "1"), "a positive number"),
    ("flag", (0, 1, None, "no"), "True or False"),
    ("kind", ("third", None, 1), "one of first, second"),
])
def test_illegal_fields(field, values, wanted):
    for value in values:
        with pytest.raises(ValueError) as error:
            check_fields(Config(**{field: value}))
        assert str(error.value) == f"{field} must be {wanted}, not {value!r}"


def test_what_cannot_be_allocated_is_refused_in_one_line():
    check_memory(Config(), 1000)
    for n in (10**15, 10**30):                  # 4 PB, and more than 64 bits can count
        with pytest.raises(ValueError, match="cannot be allocated here") as error:
            check_memory(Config(size=12_345), n)
        assert "\n" not in str(error.value)
        assert "size=12345" in str(error.value) and f"{n:,} weights" in str(error.value)
    with pytest.raises(ValueError, match="their 4,000,000 GB"):
        check_memory(Config(), 10**15)


def test_the_meta_device_has_room():
    with torch.device("meta"):
        check_memory(Config(), 10**15)


def test_each_row_of_a_mask_needs_a_token():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 0] = mask[1, 3] = mask[2, 1] = True
    check_rows(mask)
    mask[1, 3] = False
    with pytest.raises(ValueError, match="row 1 of the mask is False everywhere"):
        check_rows(mask)
    check_rows(mask[:0])                        # no row, so none that is wrong


def test_a_token_embedding_is_torchs_with_a_clear_error():
    ours = TokenEmbedding(7, 3)
    theirs = nn.Embedding.from_pretrained(ours.weight.detach())
    tokens = torch.tensor([[0, 6], [3, 3]])
    assert torch.equal(ours(tokens), theirs(tokens))
    for outside in (7, -1):
        with pytest.raises(ValueError) as error:
            ours(torch.tensor([[2, outside]]))
        low, high = sorted((2, outside))
        assert "between 0 and 6" in str(error.value)
        assert f"these between {low} and {high}" in str(error.value)
