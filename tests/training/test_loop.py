"""The loop does what its formula says, resumes exactly, stops at NaN, and measures every token once."""
import math
import os
import signal

import pytest
import torch
from torch import nn

from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.checkpoints import load_checkpoint
from minigpt.training.loop import TrainingConfig, schedule, train
from minigpt.training.losses import next_token_loss
from minigpt.training.windows import held_out_loss, make_random_windows

TEXT = torch.randint(7, (500,), generator=torch.Generator().manual_seed(0))


def small_gpt() -> GPT:
    return GPT(GPTConfig.modern(7, 6, n_layers=1, n_heads=2, d_model=8), torch.Generator().manual_seed(1))


def run(folder=None, resume=False, stop_after=None, **options):
    """Trains the small GPT; returns it and its rows, the last ones if it is stopped after so many."""
    torch.manual_seed(2)                                                # layers draw initial weights from the global generator
    model, rows = small_gpt(), []
    config = TrainingConfig(**{**dict(max_steps=23, evaluate_every=5, learning_rate=1e-2, optimizer="muon"), **options})
    for row in train(model, make_random_windows(TEXT[:400], 3, 7), next_token_loss, config, lambda m: {"val_loss": held_out_loss(m, TEXT[400:])[0]},
                     folder, resume, progress=False):
        rows.append(row)
        if len(rows) == stop_after:
            break
    return model, rows


def test_one_step_of_plain_gradient_descent_is_what_the_formula_says():
    """A quadratic whose gradient is known: L = ½‖θ − a‖², AdamW's first steps are the learning rate long, scheduled."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    config = TrainingConfig(max_steps=4, warmup_steps=2, learning_rate=0.1, weight_decay=0.0, evaluate_every=1)
    rows = list(train(model, lambda generator: None, lambda m, _: (m.weight**2).sum() / 2, config, lambda m: {"w": m.weight.item()}, progress=False))
    moves = [a["w"] - b["w"] for a, b in zip(rows, rows[1:])]
    assert moves == pytest.approx([0.05, 0.1, 0.1, 0.05], rel=0.03)     # Adam's unit steps times warm-up ½, 1, then 1, ½
    assert rows[1]["train_loss"] == pytest.approx(12.5)


def test_optimizers_from_elsewhere_keep_their_own_rates_under_the_schedule():
    """Plain gradient descent on L = θ: each step is the rate itself, whatever the configuration's learning rate."""
    model = nn.Linear(1, 1)
    config = TrainingConfig(max_steps=4, warmup_steps=2, learning_rate=77.0, evaluate_every=1, gradient_clip=9.0)
    optimizers = [torch.optim.SGD([model.weight], lr=0.2), torch.optim.SGD([model.bias], lr=0.5)]
    rows = list(train(model, lambda generator: None, lambda m, _: m.weight.sum() + m.bias.sum(), config,
                      lambda m: {"w": m.weight.item(), "b": m.bias.item()}, progress=False, optimizers=optimizers))
    for name, rate in (("w", 0.2), ("b", 0.5)):
        assert [a[name] - b[name] for a, b in zip(rows, rows[1:])] == pytest.approx([rate / 2, rate, rate, rate / 2], abs=1e-6)


def test_schedule():
    config = TrainingConfig(max_steps=1000, warmup_steps=10)
    rates = [schedule(step, config) for step in range(1000)]
    assert rates[0] == 0.1 and rates[9:500] == [1.0] * 491 and rates[750] == 0.5 and 0 < rates[999] <= 0.002
    assert all(a >= b for a, b in zip(rates[9:], rates[10:]))


def test_gradients_are_clipped():
    model = nn.Linear(2, 1, bias=False)
    seen = []
    model.weight.register_hook(lambda g: seen.append(g.norm().item()))
    clipped = []
    config = TrainingConfig(max_steps=1, gradient_clip=1.0)
    from torch.optim import AdamW
    step = AdamW.step
    AdamW.step = lambda self, *a: (clipped.append(model.weight.grad.norm().item()), step(self, *a))[1]
    try:
        list(train(model, lambda g: torch.tensor([[300.0, 400.0]]), lambda m, x: m(x).sum(), config, progress=False))
    finally:
        AdamW.step = step
    assert seen == [pytest.approx(500)] and clipped == [pytest.approx(1.0, rel=1e-4)]


def test_it_learns_and_the_seed_decides_everything(tmp_path):
    model, rows = run(max_steps=60)
    assert rows[0]["step"] == 0 and math.isnan(rows[0]["train_loss"]) and rows[-1]["step"] == 60
    same, other = run(max_steps=60)[0], run(max_steps=60, seed=1)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    pattern = torch.arange(500) % 7                                     # a text with nothing to guess
    model = small_gpt()
    list(train(model, make_random_windows(pattern, 8, 7), next_token_loss, TrainingConfig(max_steps=60, learning_rate=1e-2), progress=False))
    assert held_out_loss(model, pattern)[0] < 0.6                       # the first of each window cannot know, the rest can


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, optimizer):
    model, _ = run(tmp_path / "whole", optimizer=optimizer)
    for stop in (1, 2, 4):
        folder = tmp_path / str(stop)
        run(folder, stop_after=stop, optimizer=optimizer)
        resumed, _ = run(folder, resume=True, optimizer=optimizer)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))
        for name in ("best.pt", "metrics.csv"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        a, b = (load_checkpoint(f / "last.pt") for f in (folder, tmp_path / "whole"))
        assert flat(a) == flat(b)


def flat(x):
    """Nested dicts and lists with tensors as bytes: equal only if every bit is. (NaN becomes a word, or it would differ from itself.)"""
    if isinstance(x, dict):
        return {k: flat(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [flat(v) for v in x]
    return x.numpy().tobytes() if isinstance(x, torch.Tensor) else repr(x)


def test_best_holds_the_lowest_held_out_loss(tmp_path):
    values = iter([3.0, 2.0, 1.0, 1.5, 2.5, 2.6])
    model = small_gpt()
    weights = {}
    config = TrainingConfig(max_steps=23, evaluate_every=5)
    for row in train(model, make_random_windows(TEXT, 3, 7), next_token_loss, config, lambda m: {"val_loss": next(values)}, tmp_path, progress=False):
        weights[row["step"]] = {k: v.clone() for k, v in model.state_dict().items()}
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["step"] == 10 and all(torch.equal(v, weights[10][k]) for k, v in best["model"].items())


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    run(tmp_path)
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path)
    assert before == {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    def loss(model, tokens):
        loss.calls += 1
        return next_token_loss(model, tokens) * (float("nan") if loss.calls == 14 else 1.0)

    loss.calls = 0
    model = small_gpt()
    with pytest.raises(FloatingPointError, match="at step 13"):
        list(train(model, make_random_windows(TEXT, 3, 7), loss, TrainingConfig(max_steps=23, evaluate_every=5), folder=tmp_path, progress=False))
    state = load_checkpoint(tmp_path / "last.pt")
    assert state["step"] == 10 and all(v.isfinite().all() for v in state["model"].values())


def test_an_infinite_gradient_stops_too():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(FloatingPointError):
        list(train(model, lambda g: None, lambda m, _: m.weight.sum().sqrt(), TrainingConfig(max_steps=2), progress=False))
    assert model.weight.item() == 0


def test_ctrl_c_saves_at_the_end_of_the_step_and_resumes_exactly(tmp_path):
    before = signal.getsignal(signal.SIGINT)                            # ignored, where the tests run in the background
    whole, _ = run(tmp_path / "whole")

    def loss(model, tokens):
        loss.calls += 1
        if loss.calls == 13:
            os.kill(os.getpid(), signal.SIGINT)                         # in the middle of step 12
        return next_token_loss(model, tokens)

    loss.calls = 0
    model, folder = small_gpt(), tmp_path / "stopped"
    config = TrainingConfig(max_steps=23, evaluate_every=5, learning_rate=1e-2, optimizer="muon")
    with pytest.raises(KeyboardInterrupt):
        list(train(model, make_random_windows(TEXT[:400], 3, 7), loss, config, lambda m: {"val_loss": held_out_loss(m, TEXT[400:])[0]}, folder, progress=False))
    assert load_checkpoint(folder / "last.pt")["step"] == 13
    resumed, _ = run(folder, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert signal.getsignal(signal.SIGINT) is before


def test_random_windows_are_windows_and_reach_every_start():
    tokens = torch.arange(10) * 3
    batch = torch.cat([make_random_windows(tokens, 50, 4)(torch.Generator().manual_seed(s)) for s in range(4)])
    assert (batch.diff(dim=1) == 3).all() and sorted(set((batch[:, 0] // 3).tolist())) == list(range(7))
    with pytest.raises(ValueError, match="10 tokens and a window needs 11"):
        make_random_windows(tokens, 1, 11)


def test_held_out_loss_judges_each_token_once():
    model, tokens = small_gpt(), TEXT[:44]                              # context 6: windows start at 0, 6, …, 36; tokens 1..42 are judged
    with torch.no_grad():
        nats = [-model(tokens[None, i // 6 * 6:i + 1]).log_softmax(-1)[0, -1, tokens[i + 1]].item() for i in range(42)]
    loss, judged = held_out_loss(model, tokens, batch_size=3)
    assert judged == 42 and loss == pytest.approx(sum(nats) / 42, rel=1e-5)
    some, judged = held_out_loss(model, tokens, max_windows=2)          # the first and the last
    assert judged == 12 and some == pytest.approx(sum(nats[:6] + nats[36:]) / 12, rel=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        held_out_loss(model, tokens[:1])


@pytest.mark.parametrize("wrong", [dict(max_steps=0), dict(evaluate_every=0), dict(learning_rate=0.0), dict(learning_rate=float("nan"))])
def test_bad_settings_say_why(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


def test_what_was_measured_before_is_no_part_of_the_first_step():
    moved = []
    for stray in (False, True):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 5.0)
        if stray:
            (-100 * model.weight.sum()).backward()
        config = TrainingConfig(max_steps=1, warmup_steps=1, evaluate_every=1, gradient_clip=1e9)
        list(train(model, lambda generator: None, lambda m, _: m.weight.sum(), config, progress=False,
                   optimizers=[torch.optim.SGD(model.parameters(), lr=0.5)]))
        moved.append(model.weight.item())
    assert moved == [4.5, 4.5]


def test_a_gradient_that_no_optimizer_takes_does_not_pile_up_in_the_norm():
    """L = θ + 10 φ, φ not trained: the norm is √101 at every step, so each of θ's steps is clipped to 1/√101."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    config = TrainingConfig(max_steps=3, warmup_steps=1, evaluate_every=1, gradient_clip=1.0)
    rows = list(train(model, lambda generator: None, lambda m, _: m.weight.sum() + 10 * m.bias.sum(), config, lambda m: {"w": m.weight.item()},
                      progress=False, optimizers=[torch.optim.SGD([model.weight], lr=1.0)]))
    assert [a["w"] - b["w"] for a, b in zip(rows, rows[1:])] == pytest.approx([101**-0.5, 101**-0.5, 101**-0.5 * 2 / 3], rel=1e-3)


def test_a_loss_that_depends_on_nothing_trained_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="depends on nothing"):
        list(train(model, lambda generator: None, lambda m, _: torch.zeros(()), TrainingConfig(max_steps=1), progress=False))


def test_the_best_weights_are_kept_even_if_the_first_measurement_was_none(tmp_path):
    model, measured = nn.Linear(1, 1), iter([float("nan"), 3.0, 1.0, float("nan"), 2.0])
    config = TrainingConfig(max_steps=4, evaluate_every=1)
    list(train(model, lambda generator: None, lambda m, _: m.weight.sum(), config, lambda m: {"val_loss": next(measured)}, tmp_path, progress=False))
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_no_window_is_no_measurement():
    with pytest.raises(ValueError, match="max_windows"):
        held_out_loss(small_gpt(), TEXT, max_windows=0)
