"""LoRA: the formula by nested loops and by NumPy, what starts equal and what comes back bit for bit, what trains, and what is refused."""
import copy

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


def make(seed: int = 0, d_model: int = 6) -> GPT:
    """V=7, C=6, d_ff=24, two layers; weights of order 1."""
    model, generator = GPT(GPTConfig(7, 5, n_layers=2, n_heads=3, d_model=d_model)), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def stir(model: nn.Module, seed: int = 1) -> None:
    """Gives every B values of order 1, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        if layer.active is not None:
            nn.init.normal_(layer.B[layer.active].data, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_layer_is_the_formula_by_nested_loops():
    """d=4, k=3, r=2, α=5; W and the bias too."""
    layer = LoRALinear(nn.Linear(4, 3).double())
    layer.add("one", 2, 5.0, seeded(0))
    layer.active = "one"
    nn.init.normal_(layer.B["one"].data, generator=seeded(1))
    x = torch.randn(6, 4, dtype=torch.float64, generator=seeded(2))
    W, b, A, B = (t.tolist() for t in (layer.base.weight, layer.base.bias, layer.A["one"], layer.B["one"]))
    expected = [[b[k] + sum((W[k][d] + 5 / 2 * sum(B[k][r] * A[r][d] for r in range(2))) * row[d] for d in range(4)) for k in range(3)] for row in x.tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(layer.update(), torch.tensor(5 / 2 * np.array(B) @ np.array(A)))


def test_A_has_variance_one_over_d_and_comes_from_the_generator():
    layer = LoRALinear(nn.Linear(400, 3))
    for name, seed in (("a", 4), ("same", 4), ("other", 5)):
        layer.add(name, 50, 1.0, seeded(seed))
    assert layer.A["a"].var().item() * 400 == pytest.approx(1, abs=0.05) and abs(layer.A["a"].mean().item()) < 0.002
    assert torch.equal(layer.A["a"], layer.A["same"]) and not torch.equal(layer.A["a"], layer.A["other"])


def test_starts_as_the_base_bit_for_bit_and_adds_r_times_d_plus_k_parameters():
    base = make()
    adapted = copy.deepcopy(base)
    names = add_lora(adapted, ["query", "inner"], rank=2, alpha=3.0, generator=seeded(0))
    assert names == ["blocks.0.attention.query", "blocks.0.feed_forward.inner", "blocks.1.attention.query", "blocks.1.feed_forward.inner"]
    assert torch.equal(adapted(TOKENS), base(TOKENS))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 2 * 2 * ((6 + 6) + (6 + 24))


def test_merged_equals_unmerged_and_the_base_comes_back_bit_for_bit():
    model = make()
    before = {n: layer.weight.clone() for n, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    base_logits = model(TOKENS)
    add_lora(model, ["*"], rank=2, alpha=3.0, generator=seeded(0))
    stir(model)
    adapted = model(TOKENS)
    assert (adapted - base_logits).abs().max() > 0.1
    merge(model)
    merge(model)                                                        # once merged, merging adds nothing
    layer = model.blocks[1].feed_forward.out
    expected = before["blocks.1.feed_forward.out"] + 1.5 * layer.B["default"] @ layer.A["default"]
    torch.testing.assert_close(layer.base.weight, expected)
    assert not torch.equal(layer.base.weight, before["blocks.1.feed_forward.out"])
    torch.testing.assert_close(model(TOKENS), adapted, atol=1e-5, rtol=1e-5)
    unmerge(model)
    unmerge(model)
    assert len(before) == 12 and all(torch.equal(model.get_submodule(n).base.weight, W) for n, W in before.items())
    assert torch.equal(model(TOKENS), adapted)
    use_lora(model, None)
    assert torch.equal(model(TOKENS), base_logits)


def test_the_update_has_rank_r():
    model = make()
    add_lora(model, ["key", "feed_forward.out"], rank=3, alpha=3.0, generator=seeded(0))
    stir(model)
    for layer in lora_layers(model).values():
        values = torch.linalg.svdvals(layer.update().detach().double())
        assert (values > 1e-5 * values[0]).sum() == 3


def test_only_A_and_B_have_gradients_and_B_learns_first():
    model = make()
    add_lora(model, ["value"], rank=2, alpha=2.0, generator=seeded(0))
    causal_loss(model(TOKENS), TOKENS).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {f"blocks.{i}.attention.value.{kind}.default" for i in (0, 1) for kind in "AB"}
    for layer in lora_layers(model).values():                           # ∂L/∂A = Bᵀ…, and B = 0
        assert layer.A["default"].grad.abs().max() == 0 < layer.B["default"].grad.abs().max()


def test_training_moves_nothing_else():
    model = make()
    add_lora(model, ["query", "out"], rank=2, alpha=2.0, generator=seeded(0))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = causal_loss(model(TOKENS), TOKENS).item()
    list(train(model, lambda g: TOKENS, lambda m, t: causal_loss(m(t), t), TrainingConfig(max_steps=50, learning_rate=3e-2), progress=False))
    assert causal_loss(model(TOKENS), TOKENS).item() < start - 0.2
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (not n.endswith((".A.default", ".B.default"))), n


def test_several_adapters_share_a_base():
    model = make()
    base = model(TOKENS)
    add_lora(model, ["query", "key"], rank=2, alpha=2.0, generator=seeded(0), name="one")
    stir(model, 1)
    one = model(TOKENS)
    add_lora(model, ["key", "out"], rank=1, alpha=4.0, generator=seeded(1), name="two")
    assert torch.equal(model(TOKENS), base)                             # the new one is in use, and is still nothing
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if n.endswith(".two")}
    stir(model, 2)
    two = model(TOKENS)
    use_lora(model, "one")
    assert torch.equal(model(TOKENS), one) and not torch.allclose(one, two)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if n.endswith(".one")}
    merge(model)
    use_lora(model, "two")                                              # takes the merged one out first
    assert torch.equal(model(TOKENS), two)
    merge(model)
    add_lora(model, ["value"], rank=1, alpha=1.0, name="three")
    assert torch.equal(model(TOKENS), base)
    use_lora(model, None)
    assert torch.equal(model(TOKENS), base) and not any(p.requires_grad for p in model.parameters())


def test_a_file_holds_the_adapter_alone_and_fits_the_same_base(tmp_path):
    model = make()
    add_lora(model, ["query", "feed_forward.out"], rank=2, alpha=3.0, generator=seeded(0))
    stir(model)
    save_lora(model, tmp_path / "a.pt")
    other = make()
    add_lora(other, ["key"], rank=1, alpha=1.0, name="mine")
    torch.manual_seed(9)
    expected_next = torch.rand(1)
    torch.manual_seed(9)
    assert load_lora(other, tmp_path / "a.pt", "theirs") == sorted(n for n, layer in lora_layers(model).items())
    assert torch.equal(torch.rand(1), expected_next)                    # no draw of the global generator is used up
    assert torch.equal(other(TOKENS), model(TOKENS))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert sum(t.numel() for t in state["model"].values()) == 2 * 2 * ((6 + 6) + (24 + 6)) and state["alpha"] == 3.0
    merge(model)                                                        # merged or not, the file is the same
    save_lora(model, tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("targets, expected", [
    (["query"], ["blocks.0.attention.query", "blocks.1.attention.query"]),
    (["blocks.1.attention.key"], ["blocks.1.attention.key"]),
    (["attention.out"], ["blocks.0.attention.out", "blocks.1.attention.out"]),
    (["blocks.0.feed*", "inner"], ["blocks.0.feed_forward.inner", "blocks.0.feed_forward.out", "blocks.1.feed_forward.inner"]),
])
def test_names_are_whole_ends_or_patterns(targets, expected):
    model = make()
    assert find_linears(model, targets) == expected
    add_lora(model, ["query", "inner"], rank=1, alpha=1.0)
    assert sorted(find_linears(model, targets)) == expected


def refused(action, *words):
    with pytest.raises(ValueError) as error:
        action()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value


def test_what_is_refused_and_how(tmp_path):
    model = make()
    refused(lambda: add_lora(model, ["querry"], 2, 1.0), "'querry'", "nearest: query")
    refused(lambda: add_lora(model, ["query", "ery"], 2, 1.0), "'ery'")
    refused(lambda: add_lora(model, "query", 2, 1.0), "a list", "not 'query'")
    refused(lambda: add_lora(model, [], 2, 1.0), "a list", "not []")
    refused(lambda: add_lora(model, ["query"], 2, 1.0, name="a.b"), "'a.b'", "no dot")
    refused(lambda: add_lora(model, ["query"], 0, 1.0), "rank", "0")
    refused(lambda: save_lora(model, tmp_path / "x.pt"), "'default'", "nothing to save")
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())
    add_lora(model, ["query"], 2, 1.0)
    refused(lambda: add_lora(model, ["key"], 2, 1.0), "taken already", "'default'")
    refused(lambda: use_lora(model, "defualt"), "'defualt'", "has default")
    save_lora(model, tmp_path / "a.pt")
    wide = make(d_model=9)
    refused(lambda: load_lora(wide, tmp_path / "a.pt"), "another model", "(2, 6)", "(2, 9)")
    assert not lora_layers(wide)
    inside = nn.ModuleDict({"gpt": make()})                             # its layers end alike, and are others
    refused(lambda: load_lora(inside, tmp_path / "a.pt"), "another model", "'blocks.0.attention.query'")
    assert not lora_layers(inside)
    refused(lambda: load_lora(nn.Sequential(nn.Linear(6, 6)), tmp_path / "a.pt"), "blocks.0.attention.query")
    save_checkpoint(tmp_path / "model.pt", {"model": make().state_dict()})
    refused(lambda: load_lora(make(), tmp_path / "model.pt"), "no LoRA adapter")
    with pytest.raises(FileNotFoundError):
        load_lora(make(), tmp_path / "nowhere.pt")
