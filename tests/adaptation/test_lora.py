"""LoRA: the formula by nested loops and NumPy, exact recovery of the base, training, refusals."""
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from minigpt.adaptation.lora import (
    LoRALinear,
    add_lora,
    find_linears,
    load_lora,
    lora_layers,
    merge,
    save_lora,
    unmerge,
    use_lora,
)
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.checkpoints import save_checkpoint
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss

TOKENS = torch.tensor([[3, 0, 5, 1], [2, 6, 6, 4]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(seed: int = 0, d_model: int = 6) -> GPT:
    """V=7, C=6, d_ff=24, two layers; weights of order 1."""
    model, generator = GPT(GPTConfig(7, 5, n_layers=2, n_heads=3, d_model=d_model)), seeded(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def fill_B(model: nn.Module, seed: int = 1) -> None:
    """Gives every active B values of order 1, as training would."""
    generator = seeded(seed)
    for layer in lora_layers(model).values():
        if layer.active is not None:
            nn.init.normal_(layer.B[layer.active].data, generator=generator)


def trainable(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def fingerprint(model: nn.Module) -> tuple:
    """All that a refusal must leave alone: modules, parameters, what trains, and what is active."""
    active = {n: (layer.active, layer.original is None) for n, layer in lora_layers(model).items()}
    modules = [(n, id(m)) for n, m in model.named_modules()]
    parameters = [(n, p.requires_grad, p.tolist()) for n, p in model.named_parameters()]
    return modules, parameters, active


def refused(action, *words):
    with pytest.raises(ValueError) as error:
        action()
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


# The formula

def test_the_layer_is_the_formula_by_nested_loops():
    """d=4, k=3, r=2, α=5; W and the bias too."""
    layer = LoRALinear(nn.Linear(4, 3).double())
    layer.add("one", torch.randn(2, 4, generator=seeded(0)), torch.zeros(3, 2), 5.0)
    layer.active = "one"
    nn.init.normal_(layer.B["one"].data, generator=seeded(1))
    x = torch.randn(6, 4, dtype=torch.float64, generator=seeded(2))
    W, b, A, B = (t.tolist() for t in (layer.base.weight, layer.base.bias,
                                       layer.A["one"], layer.B["one"]))

    def entry(k, d):
        return W[k][d] + 5 / 2 * sum(B[k][r] * A[r][d] for r in range(2))

    expected = [[b[k] + sum(entry(k, d) * row[d] for d in range(4)) for k in range(3)]
                for row in x.tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(layer.update(), torch.tensor(5 / 2 * np.array(B) @ np.array(A)))


def test_A_has_variance_one_over_d_and_comes_from_the_generator():
    model = nn.ModuleDict({"layer": nn.Linear(400, 60)})
    for name, seed in (("a", 4), ("same", 4), ("other", 5)):
        add_lora(model, ["layer"], rank=50, alpha=1.0, generator=seeded(seed), name=name)
    A = model["layer"].A
    assert A["a"].var().item() * 400 == pytest.approx(1, abs=0.05)
    assert abs(A["a"].mean().item()) < 0.002
    assert torch.equal(A["a"], A["same"]) and not torch.equal(A["a"], A["other"])


def test_starts_as_the_base_bit_for_bit_and_adds_r_times_d_plus_k_parameters():
    base = make_model()
    adapted = copy.deepcopy(base)
    names = add_lora(adapted, ["query", "inner"], rank=2, alpha=3.0, generator=seeded(0))
    assert names == ["blocks.0.attention.query", "blocks.0.feed_forward.inner",
                     "blocks.1.attention.query", "blocks.1.feed_forward.inner"]
    assert torch.equal(adapted(TOKENS), base(TOKENS))
    n_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert n_trained == 2 * 2 * ((6 + 6) + (6 + 24))


def test_the_update_has_rank_r():
    model = make_model()
    add_lora(model, ["key", "feed_forward.out"], rank=3, alpha=3.0, generator=seeded(0))
    fill_B(model)
    for layer in lora_layers(model).values():
        values = torch.linalg.svdvals(layer.update().detach().double())
        assert (values > 1e-5 * values[0]).sum() == 3


def test_an_adapter_has_the_precision_of_its_base():
    model = make_model().double()
    add_lora(model, ["query"], rank=2, alpha=1.0)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


# Merging

def test_merged_equals_unmerged_and_the_base_comes_back_bit_for_bit():
    model = make_model()
    before = {n: layer.weight.clone() for n, layer in model.named_modules()
              if isinstance(layer, nn.Linear)}
    base_logits = model(TOKENS)
    add_lora(model, ["*"], rank=2, alpha=3.0, generator=seeded(0))
    fill_B(model)
    adapted = model(TOKENS)
    assert (adapted - base_logits).abs().max() > 0.1
    unmerge(model)                                  # nothing is merged, so nothing changes
    assert torch.equal(model(TOKENS), adapted)
    merge(model)
    merge(model)                                    # once merged, merging adds nothing
    layer = model.blocks[1].feed_forward.out
    expected = before["blocks.1.feed_forward.out"] + 1.5 * layer.B["default"] @ layer.A["default"]
    torch.testing.assert_close(layer.base.weight, expected)
    assert not torch.equal(layer.base.weight, before["blocks.1.feed_forward.out"])
    torch.testing.assert_close(model(TOKENS), adapted, atol=1e-5, rtol=1e-5)
    unmerge(model)
    unmerge(model)
    assert len(before) == 12
    assert all(torch.equal(model.get_submodule(n).base.weight, W) for n, W in before.items())
    assert torch.equal(model(TOKENS), adapted)
    use_lora(model, None)
    assert torch.equal(model(TOKENS), base_logits)


def test_merging_and_unmerging_without_an_adapter_change_nothing():
    model = make_model()
    expected = model(TOKENS)
    merge(model)
    unmerge(model)
    add_lora(model, ["query"], rank=2, alpha=3.0, generator=seeded(0))
    fill_B(model)
    use_lora(model, None)                           # there is an adapter, but none is active
    merge(model)
    assert torch.equal(model(TOKENS), expected)


# Training

def test_only_A_and_B_have_gradients_and_B_learns_first():
    model = make_model()
    add_lora(model, ["value"], rank=2, alpha=2.0, generator=seeded(0))
    causal_loss(model(TOKENS), TOKENS).backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"blocks.{i}.attention.value.{kind}.default"
                             for i in (0, 1) for kind in "AB"}
    for layer in lora_layers(model).values():       # ∂L/∂A contains B as a factor, and B = 0
        assert layer.A["default"].grad.abs().max() == 0 < layer.B["default"].grad.abs().max()


def test_training_moves_nothing_else():
    model = make_model()
    add_lora(model, ["query", "out"], rank=2, alpha=2.0, generator=seeded(0))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = causal_loss(model(TOKENS), TOKENS).item()
    config = TrainingConfig(max_steps=50, learning_rate=3e-2)
    train(model, lambda g: TOKENS, lambda m, t: causal_loss(m(t), t), config, progress=False)
    assert causal_loss(model(TOKENS), TOKENS).item() < start - 0.2
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (not n.endswith((".A.default", ".B.default"))), n


# Several adapters

def test_several_adapters_share_a_base():
    model = make_model()
    base = model(TOKENS)
    add_lora(model, ["query", "key"], rank=2, alpha=2.0, generator=seeded(0), name="one")
    fill_B(model, 1)
    one = model(TOKENS)
    add_lora(model, ["key", "out"], rank=1, alpha=4.0, generator=seeded(1), name="two")
    assert torch.equal(model(TOKENS), base)         # "two" is active, and still adds nothing
    ends = {name: {n for n, _ in model.named_parameters() if n.endswith(f".{name}")}
            for name in ("one", "two")}
    assert trainable(model) == ends["two"]
    fill_B(model, 2)
    two = model(TOKENS)
    use_lora(model, "one")
    assert torch.equal(model(TOKENS), one) and not torch.allclose(one, two)
    assert trainable(model) == ends["one"]
    merge(model)
    use_lora(model, "two")                          # unmerges "one" first
    assert torch.equal(model(TOKENS), two)
    merge(model)
    add_lora(model, ["value"], rank=1, alpha=1.0, name="three")
    assert torch.equal(model(TOKENS), base)
    use_lora(model, None)
    assert torch.equal(model(TOKENS), base) and not trainable(model)


@pytest.mark.parametrize("targets, expected", [
    (["query"], ["blocks.0.attention.query", "blocks.1.attention.query"]),
    (["blocks.1.attention.key"], ["blocks.1.attention.key"]),
    (["attention.out"], ["blocks.0.attention.out", "blocks.1.attention.out"]),
    (["blocks.0.feed*", "inner"], ["blocks.0.feed_forward.inner", "blocks.0.feed_forward.out",
                                   "blocks.1.feed_forward.inner"]),
])
def test_targets_are_names_ends_of_names_or_patterns(targets, expected):
    model = make_model()
    assert find_linears(model, targets) == expected
    add_lora(model, ["query", "inner"], rank=1, alpha=1.0)
    assert find_linears(model, targets) == expected     # adapted layers keep their names and places


# Files

def test_a_file_holds_the_adapter_alone_and_fits_the_same_base(tmp_path):
    model = make_model()
    add_lora(model, ["query", "feed_forward.out"], rank=2, alpha=3.0, generator=seeded(0))
    fill_B(model)
    save_lora(model, tmp_path / "a.pt")
    other = make_model()
    add_lora(other, ["key"], rank=1, alpha=1.0, name="mine")
    torch.manual_seed(9)
    expected_next = torch.rand(1)
    torch.manual_seed(9)
    assert load_lora(other, tmp_path / "a.pt", "theirs") == sorted(lora_layers(model))
    assert torch.equal(torch.rand(1), expected_next)    # loading draws nothing at random
    assert torch.equal(other(TOKENS), model(TOKENS))
    assert trainable(other) == {f"{n}.{kind}.theirs" for n in lora_layers(model) for kind in "AB"}
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    n_numbers = sum(t.numel() for t in state["model"].values())
    assert n_numbers == 2 * 2 * ((6 + 6) + (24 + 6)) and state["alpha"] == 3.0
    merge(model)                                        # merged or not, the file is the same
    save_lora(model, tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_loading_adapts_the_layers_of_the_file_and_no_layer_whose_name_ends_alike(tmp_path):
    model = nn.ModuleDict({"query": nn.Linear(6, 6)})
    add_lora(model, ["query"], rank=2, alpha=1.0)
    save_lora(model, tmp_path / "a.pt")
    nested = nn.ModuleDict({"query": nn.Linear(6, 6),
                            "inner": nn.ModuleDict({"query": nn.Linear(6, 6)})})
    assert load_lora(nested, tmp_path / "a.pt") == ["query"] == list(lora_layers(nested))


# What is refused

@pytest.mark.parametrize("arguments, words", [
    ({"targets": ["querry"]}, ["'querry'", "query, value"]),
    ({"targets": ["query", "ery"]}, ["'ery'"]),
    ({"targets": ["blocks.0"]}, ["'blocks.0'"]),                # a pattern is needed: blocks.0.*
    ({"targets": "query"}, ["a list", "not 'query'"]),
    ({"targets": []}, ["a list", "not []"]),
    ({"rank": 0}, ["rank", "not 0"]),
    ({"rank": 1.5}, ["rank", "not 1.5"]),
    ({"rank": 7}, ["(6, 6)", "1 to 6", "not 7"]),
    ({"targets": ["inner"], "rank": 7}, ["(24, 6)", "1 to 6", "not 7"]),
    ({"targets": ["feed_forward.out"], "rank": 7}, ["(6, 24)", "1 to 6", "not 7"]),
    ({"alpha": 0.0}, ["alpha", "not 0.0"]),
    ({"alpha": -1.0}, ["alpha", "not -1.0"]),
    ({"alpha": math.inf}, ["alpha", "not inf"]),
    ({"alpha": math.nan}, ["alpha", "not nan"]),
    ({"alpha": "8"}, ["alpha", "not '8'"]),
    ({"name": ""}, ["''", "identifier"]),
    ({"name": "a.b"}, ["'a.b'", "identifier"]),
    ({"name": "my task"}, ["'my task'", "identifier"]),
    ({"name": "keys"}, ["'keys'", "ParameterDict"]),            # a method
    ({"name": "training"}, ["'training'", "ParameterDict"]),    # an attribute
    ({"name": None}, ["None", "identifier"]),
    ({"name": "first"}, ["'first' already"]),
])
@pytest.mark.parametrize("merged", [False, True])
def test_add_lora_refuses_and_leaves_the_model_as_it_was(arguments, words, merged):
    model = make_model()
    add_lora(model, ["value"], rank=2, alpha=1.0, generator=seeded(0), name="first")
    fill_B(model)
    if merged:
        merge(model)
    before = fingerprint(model)
    settings = {"targets": ["query"], "rank": 2, "alpha": 1.0, "name": "second"} | arguments
    refused(lambda: add_lora(model, **settings), *words)
    assert fingerprint(model) == before


def test_the_last_legal_values_are_accepted():
    model = make_model()
    add_lora(model, ["query"], rank=6, alpha=1e-300, name="_x1")        # r = min(d, k)
    add_lora(model, ["inner"], rank=1, alpha=1, name="é")
    assert model.blocks[0].attention.query.A["_x1"].shape == (6, 6)


def test_a_generator_of_another_device_leaves_the_model_as_it_was():
    model = make_model()
    before = fingerprint(model)
    with pytest.raises(RuntimeError):
        add_lora(model, ["query"], 2, 1.0, generator=torch.Generator("meta"))
    assert fingerprint(model) == before


def test_unknown_adapters_are_refused(tmp_path):
    model = make_model()
    refused(lambda: save_lora(model, tmp_path / "x.pt"), "'default'", "nothing to save")
    refused(lambda: use_lora(model, "default"), "'default'", "has none")
    add_lora(model, ["query"], 2, 1.0)
    before = fingerprint(model)
    refused(lambda: use_lora(model, "defualt"), "'defualt'", "has default")
    refused(lambda: save_lora(model, tmp_path / "x.pt", "other"), "'other'", "nothing to save")
    assert fingerprint(model) == before and not list(tmp_path.iterdir())


def test_a_model_without_linear_layers_is_refused():
    refused(lambda: add_lora(nn.Embedding(3, 2), ["query"], 1, 1.0), "'query'", "has none")


def refused_by_load(model, path, *words, name="default"):
    before = fingerprint(model)
    refused(lambda: load_lora(model, path, name), *words)
    assert fingerprint(model) == before


def test_load_lora_refuses_other_models_and_names_and_leaves_the_model_as_it_was(tmp_path):
    model = make_model()
    add_lora(model, ["query", "value"], 2, 1.0)
    path = tmp_path / "a.pt"
    save_lora(model, path)
    refused_by_load(make_model(d_model=9), path, "another model", "(6, 6)", "(9, 9)")
    inside = nn.ModuleDict({"gpt": make_model()})       # other layers, whose names end alike
    refused_by_load(inside, path, "another model", "'blocks.0.attention.query'")
    refused_by_load(nn.Sequential(nn.Linear(6, 6)), path, "blocks.0.attention.query")
    refused_by_load(nn.Embedding(3, 2), path, "blocks.0.attention.query")
    refused_by_load(model, path, "'default' already")
    refused_by_load(make_model(), path, "'a.b'", name="a.b")
    for n_inputs, n_outputs in ((5, 6), (6, 5)):        # only the last layer does not fit
        last_differs = make_model()
        last_differs.blocks[1].attention.value = nn.Linear(n_inputs, n_outputs)
        refused_by_load(last_differs, path, "'blocks.1.attention.value'", "(6, 6)",
                        f"({n_outputs}, {n_inputs})")
    with pytest.raises(FileNotFoundError):
        load_lora(make_model(), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("state", [
    {"model": GPT(GPTConfig(7, 5, 1, 1, 6)).state_dict(), "alpha": 1.0},
    {"model": {}, "alpha": 1.0},
    {"model": {"q.A": torch.ones(2, 6), "q.B": torch.ones(6, 2)}},             # no alpha
    {"model": {"q.A": torch.ones(2, 6)}, "alpha": 1.0},
])
def test_load_lora_refuses_files_without_an_adapter(state, tmp_path):
    save_checkpoint(tmp_path / "x.pt", state)
    model = nn.ModuleDict({"q": nn.Linear(6, 6)})
    refused_by_load(model, tmp_path / "x.pt", "x.pt", "no LoRA adapter")


@pytest.mark.parametrize("alpha", [0.0, math.nan, math.inf, "8"])
def test_load_lora_refuses_a_file_with_an_impossible_alpha(alpha, tmp_path):
    matrices = {"q.A": torch.ones(2, 6), "q.B": torch.ones(6, 2)}
    save_checkpoint(tmp_path / "x.pt", {"model": matrices, "alpha": alpha})
    refused_by_load(nn.ModuleDict({"q": nn.Linear(6, 6)}), tmp_path / "x.pt", "alpha")
    save_checkpoint(tmp_path / "y.pt", {"model": matrices, "alpha": 1.0})
    assert load_lora(nn.ModuleDict({"q": nn.Linear(6, 6)}), tmp_path / "y.pt") == ["q"]
