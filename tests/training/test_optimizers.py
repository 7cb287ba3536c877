"""AdamW's groups, and Muon against a singular value decomposition and a step written out."""
import pytest
import torch
from torch import nn

from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.optimizers import Muon, make_optimizers, orthogonalize


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 5, 11), (4, 11, 5)])
def test_orthogonalize_keeps_the_directions_and_levels_the_singular_values(shape):
    m = matrices(*shape)
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    out = orthogonalize(m)
    inner = u.mT @ out @ vt.mT          # diagonal if U and V are kept
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-4
    # The quintic applied to each singular value by itself, as a scalar.
    expected = s / m.norm(dim=(1, 2))[:, None]
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(inner.diagonal(dim1=1, dim2=2), expected, atol=1e-4, rtol=1e-4)
    clearly = s / m.norm(dim=(1, 2))[:, None] > 0.05
    assert expected[clearly].min() > 0.65 and expected.max() < 1.25


def test_two_muon_steps_by_hand():
    """Nesterov momentum and the shape factor; one matrix at a time is orthogonalized."""
    weights = [matrices(6, 3, seed=1), matrices(6, 3, seed=2), matrices(3, 6, seed=3)]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Muon(parameters, lr=0.1, momentum=0.9)
    momenta = [torch.zeros_like(w) for w in weights]
    for step in range(2):
        gradients = [matrices(*w.shape, seed=10 * step + i + 20) for i, w in enumerate(weights)]
        for p, g in zip(parameters, gradients):
            p.grad = g.clone()
        optimizer.step()
        for i, g in enumerate(gradients):
            momenta[i] = 0.9 * momenta[i] + g
            update = orthogonalize((g + 0.9 * momenta[i])[None])[0]
            factor = 2**0.5 if weights[i].shape == (6, 3) else 1
            weights[i] = weights[i] - 0.1 * factor * update
    for p, w in zip(parameters, weights):
        torch.testing.assert_close(p.data, w, atol=1e-5, rtol=1e-4)


def test_adamw_first_step_by_hand_and_decay_only_on_matrices():
    model = nn.Linear(3, 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    (optimizer,) = make_optimizers(model, "adamw", learning_rate=0.01, weight_decay=0.5)
    for p in model.parameters():
        p.grad = matrices(*p.shape, seed=4)
    optimizer.step()
    for name, p in model.named_parameters():        # at the first step m̂ = g, v̂ = g²: sign(g)
        decay = 0.01 * 0.5 * before[name] if name == "weight" else 0
        wanted = before[name] - decay - 0.01 * p.grad.sign()
        torch.testing.assert_close(p.data, wanted, atol=1e-5, rtol=0)


def test_every_parameter_has_one_optimizer_and_muon_gets_the_hidden_matrices():
    model = GPT(GPTConfig(11, 9, n_layers=2, n_heads=3, d_model=12))
    names = {id(p): n for n, p in model.named_parameters()}
    adam, muon = make_optimizers(model, "muon", 1e-3, 0.1)
    inside = [[names[id(p)] for group in o.param_groups for p in group["params"]]
              for o in (adam, muon)]
    assert sorted(inside[0] + inside[1]) == sorted(names.values())
    assert len(inside[1]) == 2 * 6
    assert all(n.startswith("blocks") and n.endswith("weight") for n in inside[1])
    assert muon.param_groups[0]["lr"] == 10 * adam.param_groups[0]["lr"]


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="adamw or muon"):
        make_optimizers(nn.Linear(2, 2), "sgd", 1e-3, 0)


def test_nothing_left_for_one_of_the_two_and_nothing_left_at_all():
    lone = nn.Linear(3, 2, bias=False)
    (muon,) = make_optimizers(lone, "muon", 1e-3, 0.1)
    assert isinstance(muon, Muon) and muon.param_groups[0]["params"][0] is lone.weight
    both = nn.Linear(3, 2)
    both.weight.requires_grad_(False)
    (rest,) = make_optimizers(both, "muon", 1e-3, 0.1)
    assert isinstance(rest, torch.optim.AdamW)
    assert [p for g in rest.param_groups for p in g["params"]] == [both.bias]
    both.bias.requires_grad_(False)
    for name in ("adamw", "muon"):
        with pytest.raises(ValueError, match="nothing can be trained"):
            make_optimizers(both, name, 1e-3, 0.1)
