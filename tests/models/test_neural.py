"""Bengio's network against nested loops over single numbers, and sums over every sequence."""
import itertools
import math

import pytest
import torch

from minigpt.generation import generate
from minigpt.models.neural import NeuralLM
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import next_token_loss
from minigpt.training.windows import held_out_loss, make_random_windows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(order: int, vocab_size: int = 7, d_embedding: int = 3, d_hidden: int = 5) -> NeuralLM:
    """A model with weights of order 1, biases included, in float64."""
    model = NeuralLM(order, vocab_size, d_embedding, d_hidden).double()
    generator = seeded(order)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7, generator=generator)
    return model


def by_hand(model: NeuralLM, tokens: list[int]) -> list[float]:
    """y = b + W x + U tanh(d + H x) for the token after `tokens`, one number at a time."""
    C, H, U, W = (layer.weight.tolist() for layer in (model.C, model.H, model.U, model.W))
    d, b = model.H.bias.tolist(), model.U.bias.tolist()
    x = []
    for back in range(1, model.order):                                  # w_{t−1} comes first
        x += C[tokens[-back]] if back <= len(tokens) else C[model.vocab_size]
    hidden = []
    for j in range(len(d)):
        total = d[j]
        for i in range(len(x)):
            total += H[j][i] * x[i]
        hidden.append(math.tanh(total))
    y = []
    for w in range(len(b)):
        total = b[w]
        for i in range(len(x)):
            total += W[w][i] * x[i]
        for j in range(len(hidden)):
            total += U[w][j] * hidden[j]
        y.append(total)
    return y


@pytest.mark.parametrize("order", [2, 3, 6])
def test_equals_nested_loops(order):
    model, tokens = make(order), torch.randint(7, (2, 4), generator=seeded(1))
    wanted = [[by_hand(model, row[:t + 1]) for t in range(4)] for row in tokens.tolist()]
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(model(tokens), wanted, atol=1e-12, rtol=0)


def test_a_prediction_depends_on_the_last_tokens_only():
    order, tokens = 4, torch.randint(7, (1, 9), generator=seeded(2))
    model = make(order)
    before = model(tokens)
    for s in range(9):
        changed = tokens.clone()
        changed[0, s] = (tokens[0, s] + 1) % 7
        moved = (model(changed) - before).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == [s <= t <= s + order - 2 for t in range(9)]


def test_all_sequences_of_a_length_sum_to_one():
    model = make(3, vocab_size=4)
    for length in (1, 2, 3, 4):
        rest = itertools.product(range(4), repeat=length)
        sequences = torch.tensor([(0, *tokens) for tokens in rest])     # all that begin with 0
        logprobs = model(sequences[:, :-1]).log_softmax(-1).gather(2, sequences[:, 1:, None])
        assert logprobs.sum((1, 2)).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_number_of_parameters():
    """|V|(1 + nm + h) + h(1 + (n − 1)m) in Bengio et al. 2003, §2; here m more, for the padding."""
    V, n, m, h = 7, 6, 3, 5
    paper = V * (1 + n * m + h) + h * (1 + (n - 1) * m)
    assert sum(p.numel() for p in make(n).parameters()) == paper + m


def test_a_generator_fixes_the_weights():
    def logits(seed):
        return NeuralLM(3, 7, 4, 5, seeded(seed))(torch.tensor([[0, 1, 2]]))

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))


def test_initialisation():
    model = NeuralLM(5, 400, 30, 50, seeded(0))
    tokens = torch.randint(400, (8, 65), generator=seeded(1))
    x = model.C(tokens.unfold(1, 4, 1)).flatten(2)                      # (8, 62, 4·30)
    parts = ((x, 0.1), (model.H(x), 1), (model.W(x), 0.1), (model.U(torch.ones(1, 50)), 1))
    for part, std in parts:
        assert part.std().item() == pytest.approx(std, rel=0.1)
    assert (model.H.bias == 0).all() and (model.U.bias == 0).all()
    # The predictions of an untrained model are nearly uniform.
    assert next_token_loss(model, tokens).item() == pytest.approx(math.log(400), abs=0.4)


def test_every_parameter_gets_a_gradient():
    model = make(4)
    next_token_loss(model, torch.randint(7, (3, 6), generator=seeded(3))).backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-3, name
    assert model.C.weight.grad[7].abs().max() > 1e-3                    # the padding's vector too


def test_train_and_generate_accept_it():
    text = torch.tensor([0, 1, 0, 2] * 100)             # what follows 0 depends on the one before
    model = NeuralLM(3, 3, 4, 8, seeded(0))
    config = TrainingConfig(max_steps=150, learning_rate=1e-2)
    windows = make_random_windows(text, 8, 17)
    train(model, windows, next_token_loss, config, progress=False)
    assert held_out_loss(model, text[1:])[0] < 0.05
    drawn = generate(model, torch.tensor([[1, 0]]), 5, temperature=0)
    assert drawn.tolist() == [[1, 0, 2, 0, 1, 0, 2]]


def test_sizes_are_refused():
    NeuralLM(2, 1, 1, 1)
    with pytest.raises(ValueError, match="order must be at least 2.*not 1"):
        NeuralLM(1, 7, 3, 5)
    for sizes in ((0, 7, 3, 5), (3, 0, 3, 5), (3, 7, 0, 5), (3, 7, 3, 0)):
        with pytest.raises(ValueError, match="must be a whole number of at least 1, not 0"):
            NeuralLM(*sizes)


def test_tokens_are_refused():
    """Id 7 is a row of the embedding, the padding's, but it is not a token."""
    model = make(3)
    assert model(torch.tensor([[0, 6]])).shape == (1, 2, 7)
    for bad in (-1, 7):
        with pytest.raises(ValueError, match=f"id {bad} is outside a vocabulary of 7"):
            model(torch.tensor([[0, bad]]))
