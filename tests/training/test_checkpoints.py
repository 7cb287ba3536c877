"""Checkpoints come back bit for bit; a damaged, foreign or hostile one gives one line."""
import os

import pytest
import torch

from minigpt.training.checkpoints import load_checkpoint, load_weights, save_checkpoint


def test_round_trip_and_same_bytes(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "rows": [{"loss": 0.1}]}
    save_checkpoint(tmp_path / "a.pt", state)
    save_checkpoint(tmp_path / "other name.pt", state)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other name.pt").read_bytes()
    back = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(back["model"]["w"], state["model"]["w"]) and back["rows"] == state["rows"]


def damaged(tmp_path):
    save_checkpoint(tmp_path / "good.pt", {"model": {"w": torch.randn(50, 50)}})
    good = (tmp_path / "good.pt").read_bytes()
    yield "empty", b""
    yield "truncated", good[: len(good) // 2]
    yield "text", b"not a checkpoint"
    flipped = bytearray(good)
    for i in range(0, 400):
        flipped[i] ^= 0xFF
    yield "corrupt", bytes(flipped)


def test_damaged_checkpoints_give_one_line(tmp_path):
    for name, content in damaged(tmp_path):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match="not a readable checkpoint") as error:
            load_checkpoint(tmp_path / "bad.pt")
        assert "\n" not in str(error.value), name
    torch.save([1, 2], tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="no 'model' entry"):
        load_checkpoint(tmp_path / "bad.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"model": Trap()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_model_are_refused():
    model = torch.nn.Linear(3, 2)
    good = model.state_dict()
    with pytest.raises(ValueError, match="'weight' is \\(2, 4\\) there and \\(2, 3\\) here"):
        load_weights(model, {**good, "weight": torch.zeros(2, 4)}, "x.pt")
    with pytest.raises(ValueError, match="'bias' is missing there"):
        load_weights(model, {"weight": good["weight"]}, "x.pt")
    with pytest.raises(ValueError, match="'extra' is .* there and missing here"):
        load_weights(model, {**good, "extra": torch.zeros(1)}, "x.pt")
