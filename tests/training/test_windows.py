"""Windows: each start is drawn, each token is predicted once."""
import pytest
import torch

from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.windows import held_out_loss, make_random_windows

TEXT = torch.randint(7, (44,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    shape = GPTConfig.modern(7, 6, n_layers=1, n_heads=2, d_model=8)
    return GPT(shape, torch.Generator().manual_seed(1))


def test_random_windows_are_windows_and_reach_every_start():
    tokens = torch.arange(10) * 3
    next_batch = make_random_windows(tokens, 200, 4)
    batch = next_batch(torch.Generator().manual_seed(0))
    assert batch.shape == (200, 4) and (batch.diff(dim=1) == 3).all()
    assert sorted(set((batch[:, 0] // 3).tolist())) == list(range(7))
    with pytest.raises(ValueError, match="10 tokens and a window needs 11"):
        make_random_windows(tokens, 1, 11)
    make_random_windows(tokens, 1, 10)
    for sizes in ((0, 4), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            make_random_windows(tokens, *sizes)


def test_held_out_loss_predicts_each_token_once(model):
    """Context 6: windows start at 0, 6, …, 36; tokens 1 to 42 are predicted."""
    nats = []
    for i in range(42):
        with torch.no_grad():
            logits = model(TEXT[None, i // 6 * 6:i + 1])[0, -1]
        nats.append(-logits.log_softmax(-1)[TEXT[i + 1]].item())
    loss, predicted = held_out_loss(model, TEXT, batch_size=3)
    assert predicted == 42 and loss == pytest.approx(sum(nats) / 42, rel=1e-5)
    loss, predicted = held_out_loss(model, TEXT, max_windows=2)         # the first and the last
    assert predicted == 12 and loss == pytest.approx(sum(nats[:6] + nats[36:]) / 12, rel=1e-5)
    loss, predicted = held_out_loss(model, TEXT[:2])
    assert predicted == 1 and loss == pytest.approx(nats[0], rel=1e-5)


def test_nothing_to_measure_is_refused(model):
    with pytest.raises(ValueError, match="at least 2"):
        held_out_loss(model, TEXT[:1])
    with pytest.raises(ValueError, match="max_windows"):
        held_out_loss(model, TEXT, max_windows=0)
