"""The shared checks: for each, the last value that is legal and the first that is not."""
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from minigpt.models.checks import TokenEmbedding, check_fields, check_memory


@dataclass(frozen=True)
class Config:
    """One field of each kind."""

    size: int = 1
    optional_size: int | None = None
    share: float | None = None
    flag: bool = True
    kind: Literal["first", "second"] = "first"


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
