"""The loop does what its formula says, resumes exactly, and stops at NaN and at Ctrl-C."""
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.checkpoints import load_checkpoint
from minigpt.training.loop import TrainingConfig, gradient_step, schedule, train
from minigpt.training.losses import next_token_loss
from minigpt.training.windows import held_out_loss, make_random_windows

TEXT = torch.randint(7, (500,), generator=torch.Generator().manual_seed(0))


def small_gpt() -> GPT:
    shape = GPTConfig.modern(7, 6, n_layers=1, n_heads=2, d_model=8)
    return GPT(shape, torch.Generator().manual_seed(1))


def run(folder=None, resume=False, on_row=None, loss=next_token_loss, evaluate=None, **options):
    """Trains the small GPT; returns it and its rows."""
    torch.manual_seed(2)            # layers draw initial weights from the global generator
    model = small_gpt()
    settings = dict(max_steps=23, evaluate_every=5, learning_rate=1e-2, optimizer="muon") | options
    if evaluate is None:
        def evaluate(model):
            return {"val_loss": held_out_loss(model, TEXT[400:])[0]}
    rows = train(model, make_random_windows(TEXT[:400], 3, 7), loss, TrainingConfig(**settings),
                 evaluate, folder, resume, progress=False, on_row=on_row)
    return model, rows


def minimise(model, loss, config, evaluate=None, **more):
    """Training without data: `loss(model)` depends on the weights alone."""
    return train(model, lambda generator: None, lambda m, _: loss(m), config, evaluate,
                 progress=False, **more)


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---- one step ----

def test_a_bare_call_trains_and_returns_its_rows():
    """L = ½θ² from θ = 5. AdamW's first steps are as long as the scheduled learning rate."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    config = TrainingConfig(max_steps=4, warmup_steps=2, learning_rate=0.1, weight_decay=0.0,
                            evaluate_every=1)
    rows = minimise(model, lambda m: (m.weight**2).sum() / 2, config,
                    lambda m: {"w": m.weight.item()})
    steps = [a["w"] - b["w"] for a, b in zip(rows, rows[1:])]
    assert steps == pytest.approx([0.05, 0.1, 0.1, 0.05], rel=0.03)     # ½, 1, 1, ½ of 0.1
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert math.isnan(rows[0]["train_loss"]) and rows[1]["train_loss"] == pytest.approx(12.5)


def test_optimizers_from_elsewhere_keep_their_own_rates_under_the_schedule():
    """Plain gradient descent on L = θ: each step is the rate itself."""
    model = nn.Linear(1, 1)
    config = TrainingConfig(max_steps=4, warmup_steps=2, learning_rate=77.0, evaluate_every=1,
                            gradient_clip=9.0)
    rates = {"w": 0.2, "b": 0.5}
    optimizers = [torch.optim.SGD([model.weight], lr=rates["w"]),
                  torch.optim.SGD([model.bias], lr=rates["b"])]
    rows = minimise(model, lambda m: m.weight.sum() + m.bias.sum(), config,
                    lambda m: {"w": m.weight.item(), "b": m.bias.item()}, optimizers=optimizers)
    for name, rate in rates.items():
        steps = [a[name] - b[name] for a, b in zip(rows, rows[1:])]
        assert steps == pytest.approx([rate / 2, rate, rate, rate / 2], abs=1e-6)


def test_schedule():
    rates = [schedule(step, 1000, warmup_steps=10) for step in range(1000)]
    assert rates[0] == 0.1 and rates[9:500] == [1.0] * 491 and rates[750] == 0.5
    assert 0 < rates[999] <= 0.002 and all(a >= b for a, b in zip(rates[9:], rates[10:]))
    assert schedule(0, 1, 0) == 1.0 and schedule(18, 100) == 0.95 and schedule(19, 100) == 1.0


def test_a_step_clips_scales_and_returns_the_length_of_the_gradient():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5)]
    moved = []
    for clip, scale in ((1.0, 1.0), (1e9, 1.0), (1.0, 0.25)):
        before = model.weight.detach().clone()
        loss = model(torch.tensor([[300.0, 400.0]])).sum()
        assert gradient_step(model, loss, optimizers, scale, clip) == pytest.approx(500)
        moved.append((before - model.weight).norm().item())
    assert moved == pytest.approx([0.5, 250, 0.125], rel=1e-4)


def test_a_gradient_from_before_is_not_part_of_a_step():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    (-100 * model.weight.sum()).backward()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5)]
    gradient_step(model, model.weight.sum(), optimizers, gradient_clip=1e9)
    assert model.weight.item() == 4.5


def test_a_gradient_that_no_optimizer_uses_does_not_accumulate_in_the_length():
    """L = θ + 10φ, φ not trained: the length is √101 at every step, so θ moves by 1/√101."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    config = TrainingConfig(max_steps=3, warmup_steps=1, evaluate_every=1, gradient_clip=1.0)
    rows = minimise(model, lambda m: m.weight.sum() + 10 * m.bias.sum(), config,
                    lambda m: {"w": m.weight.item()},
                    optimizers=[torch.optim.SGD([model.weight], lr=1.0)])
    steps = [a["w"] - b["w"] for a, b in zip(rows, rows[1:])]
    unit = 101**-0.5
    assert steps == pytest.approx([unit, unit, unit * 2 / 3], rel=1e-3)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_no_weight(factor):
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    with pytest.raises(FloatingPointError, match="learning rate"):
        gradient_step(model, model.weight.sum() * factor,
                      [torch.optim.SGD(model.parameters(), lr=0.5)])
    assert model.weight.item() == before


def test_an_infinite_gradient_of_a_finite_loss_stops_too():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(FloatingPointError):
        minimise(model, lambda m: m.weight.sum().sqrt(), TrainingConfig(max_steps=2))
    assert model.weight.item() == 0


def test_a_loss_that_depends_on_nothing_trained_is_refused():
    with pytest.raises(ValueError, match="does not depend on any trainable"):
        minimise(nn.Linear(2, 2), lambda m: torch.zeros(()), TrainingConfig(max_steps=1))


# ---- rows ----

def test_it_learns_and_the_seed_decides_everything():
    model, rows = run(max_steps=60)
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 60
    same, other = run(max_steps=60)[0], run(max_steps=60, seed=1)[0]
    assert same_weights(model, same) and not same_weights(model, other)
    pattern = torch.arange(500) % 7                                     # nothing to guess
    model = small_gpt()
    train(model, make_random_windows(pattern, 8, 7), next_token_loss,
          TrainingConfig(max_steps=60, learning_rate=1e-2), progress=False)
    assert held_out_loss(model, pattern)[0] < 0.6       # a window's first token cannot be known


def test_on_row_sees_each_new_row_and_stops_by_returning_true():
    seen = []

    def on_row(row):
        seen.append(row["step"])
        return row["step"] == 15

    _, rows = run(on_row=on_row)
    assert seen == [row["step"] for row in rows] == [0, 5, 10, 15]


def test_evaluation_is_without_gradients_and_training_with_training_mode():
    modes = []

    def loss(model, tokens):
        modes.append(("loss", model.training, torch.is_grad_enabled()))
        return next_token_loss(model, tokens)

    def evaluate(model):
        modes.append(("evaluate", model.training, torch.is_grad_enabled()))
        return {}

    model, _ = run(loss=loss, evaluate=evaluate, max_steps=2, evaluate_every=1)
    assert set(modes) == {("loss", True, True), ("evaluate", False, False)}
    assert not model.training


# ---- resume ----

@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, optimizer):
    model, rows = run(tmp_path / "whole", optimizer=optimizer)
    for stop in (0, 5, 15):
        folder = tmp_path / str(stop)
        run(folder, on_row=lambda row: row["step"] == stop, optimizer=optimizer)    # noqa: B023
        resumed, again = run(folder, resume=True, optimizer=optimizer)
        assert same_weights(model, resumed) and repr(rows) == repr(again)
        for name in ("best.pt", "metrics.csv"):
            whole = (tmp_path / "whole" / name).read_bytes()
            assert (folder / name).read_bytes() == whole, name
        a, b = (load_checkpoint(f / "last.pt") for f in (folder, tmp_path / "whole"))
        assert flat(a) == flat(b)


def flat(x):
    """Nested dicts and lists with tensors as bytes: equal only if every bit is."""
    if isinstance(x, dict):
        return {k: flat(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [flat(v) for v in x]
    return x.numpy().tobytes() if isinstance(x, torch.Tensor) else repr(x)      # NaN ≠ NaN


def test_a_finished_run_is_trained_further_with_more_steps(tmp_path):
    run(tmp_path)
    _, rows = run(tmp_path, resume=True, max_steps=31)
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20, 23, 25, 30, 31]


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    run(tmp_path)
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path)
    assert before == {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}


@pytest.mark.parametrize("name", ["optimizers", "generator", "global_generator", "step", "rows"])
@pytest.mark.parametrize("damage", ["missing", "text", "number"])
def test_a_damaged_last_checkpoint_is_refused_in_one_line(tmp_path, name, damage):
    run(tmp_path)
    state = load_checkpoint(tmp_path / "last.pt")
    state.pop(name)
    state |= {"missing": {}, "text": {name: "damaged"}, "number": {name: 1.5}}[damage]
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        run(tmp_path, resume=True)
    assert "\n" not in str(error.value)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    calls = []

    def loss(model, tokens):
        calls.append(tokens)
        return next_token_loss(model, tokens) * (math.nan if len(calls) == 14 else 1.0)

    with pytest.raises(FloatingPointError, match="at step 13"):
        run(tmp_path, loss=loss)
    state = load_checkpoint(tmp_path / "last.pt")
    assert state["step"] == 10 and all(v.isfinite().all() for v in state["model"].values())


# ---- Ctrl-C ----

def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def listening():
    """Ctrl-C as in a terminal, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["loss", "evaluate", "on_row"])
@pytest.mark.parametrize("nth", [1, 3])
def test_ctrl_c_saves_and_resumes_exactly(tmp_path, listening, where, nth):
    whole, rows = run(tmp_path / "whole")
    counts = {"loss": 0, "evaluate": 0, "on_row": 0}

    def visit(place):
        counts[place] += 1
        if place == where and counts[place] == (nth if place != "loss" else 4 * nth + 1):
            press()

    def loss(model, tokens):
        visit("loss")
        return next_token_loss(model, tokens)

    def evaluate(model):
        visit("evaluate")
        return {"val_loss": held_out_loss(model, TEXT[400:])[0]}

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(folder, loss=loss, evaluate=evaluate, on_row=lambda row: visit("on_row"))
    if where == "loss":                                     # the step was finished
        assert load_checkpoint(folder / "last.pt")["step"] == 4 * nth + 1
    resumed, again = run(folder, resume=True)
    assert same_weights(whole, resumed) and repr(rows) == repr(again)
    metrics = [(f / "metrics.csv").read_bytes() for f in (folder, tmp_path / "whole")]
    assert metrics[0] == metrics[1]


def test_a_second_ctrl_c_acts_at_once_and_half_a_step_is_not_saved(tmp_path, listening):
    calls = []

    def loss(model, tokens):
        calls.append(tokens)
        if len(calls) == 8:
            with torch.no_grad():
                next(model.parameters()).add_(1.0)          # half a step
            press()
            press()
        return next_token_loss(model, tokens)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loss=loss)
    assert len(calls) == 8 and load_checkpoint(tmp_path / "last.pt")["step"] == 5


def test_a_training_inside_a_training_leaves_ctrl_c_as_it_was(listening):
    inside = []

    def loss(model, tokens):
        if not inside:
            before = signal.getsignal(signal.SIGINT)
            inside.append(run(max_steps=3))
            assert signal.getsignal(signal.SIGINT) is before
        return next_token_loss(model, tokens)

    run(loss=loss, max_steps=3)
    assert inside


def test_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        def loss(model, tokens):
            press()
            return next_token_loss(model, tokens)

        assert run(loss=loss, max_steps=2)[1][-1]["step"] == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(max_steps=2)))
    thread.start()
    thread.join()
    assert results[0][1][-1]["step"] == 2


# ---- settings ----

@pytest.mark.parametrize("wrong", [
    {"max_steps": 0}, {"evaluate_every": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
    {"learning_rate": math.inf}, {"gradient_clip": 0.0}, {"gradient_clip": -1.0},
    {"warmup_steps": -1}, {"weight_decay": -0.1}, {"weight_decay": math.nan},
])
def test_bad_settings_say_why(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)
    TrainingConfig(max_steps=1, evaluate_every=1, warmup_steps=0, weight_decay=0.0)
