"""Bengio's network against nested loops over single numbers, its window of n − 1 tokens, and the sum over every sequence."""
import itertools
import math

import pytest
import torch

from minigpt.generation import generate
from minigpt.models.neural import NeuralLM
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import next_token_loss
from minigpt.training.windows import held_out_loss, make_random_windows


def make(order: int, vocab_size: int = 7, d_embedding: int = 3, d_hidden: int = 5) -> NeuralLM:
    """Weights of order 1, biases included, in float64."""
    model, generator = NeuralLM(order, vocab_size, d_embedding, d_hidden).double(), torch.Generator().manual_seed(order)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7, generator=generator)
    return model


def by_hand(model: NeuralLM, tokens: list[int]) -> list[float]:
    """y = b + Wx + U tanh(d + Hx) for the token after `tokens`, a number at a time."""
    C, H, d, U, b, W = (p.tolist() for p in (model.C.weight, model.H.weight, model.H.bias, model.U.weight, model.U.bias, model.W.weight))
    x = []
    for back in range(1, model.order):                                  # w_{t−1} first, as in the paper
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
    model, tokens = make(order), torch.randint(7, (2, 4), generator=torch.Generator().manual_seed(1))
    wanted = [[by_hand(model, row[:t + 1]) for t in range(4)] for row in tokens.tolist()]
    torch.testing.assert_close(model(tokens), torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_prediction_moves_with_the_last_tokens_only():
    order, tokens = 4, torch.randint(7, (1, 9), generator=torch.Generator().manual_seed(2))
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
        sequences = torch.tensor([(0, *rest) for rest in itertools.product(range(4), repeat=length)])           # all that go on from token 0
        logprobs = model(sequences[:, :-1]).log_softmax(-1).gather(2, sequences[:, 1:, None])
        assert logprobs.sum((1, 2)).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_count_of_its_numbers():
    V, n, m, h = 7, 6, 3, 5                                             # Bengio et al. 2003, §2: |V|(1 + nm + h) + h(1 + (n − 1)m)
    paper = V * (1 + n * m + h) + h * (1 + (n - 1) * m)
    assert sum(p.numel() for p in make(n).parameters()) == paper + m   # and m more, for the beginning


def test_a_generator_fixes_the_weights():
    def logits(seed):
        return NeuralLM(3, 7, 4, 5, torch.Generator().manual_seed(seed))(torch.tensor([[0, 1, 2]]))

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))


def test_initialisation():
    model = NeuralLM(5, 400, 30, 50, torch.Generator().manual_seed(0))
    tokens = torch.randint(400, (8, 65), generator=torch.Generator().manual_seed(1))
    x = model.C(tokens.unfold(1, 4, 1)).flatten(2)                      # (8, 62, 4·30)
    for part, std in ((x, 0.1), (model.H(x), 1), (model.W(x), 0.1), (model.U(torch.ones(1, 50)), 1)):
        assert part.std().item() == pytest.approx(std, rel=0.1)
    assert next_token_loss(model, tokens).item() == pytest.approx(math.log(400), abs=0.4)       # an untrained model knows nothing


def test_every_parameter_learns():
    model = make(4)
    next_token_loss(model, torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(3))).backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-3, name
    assert model.C.weight.grad[7].abs().max() > 1e-3                    # the vector of the beginning too


def test_the_loop_trains_it_and_generate_samples_it():
    text = torch.tensor([0, 1, 0, 2] * 100)                             # what follows 0 depends on the token before it
    model = NeuralLM(3, 3, 4, 8, torch.Generator().manual_seed(0))
    for row in train(model, make_random_windows(text, 8, 17), next_token_loss, TrainingConfig(max_steps=150, learning_rate=1e-2), progress=False):
        pass
    assert held_out_loss(model, text[1:])[0] < 0.05
    assert generate(model, torch.tensor([[1, 0]]), 5, temperature=0).tolist() == [[1, 0, 2, 0, 1, 0, 2]]


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="order must be at least 2"):
        NeuralLM(1, 7, 3, 5)
    with pytest.raises(ValueError, match="got order 3, vocab_size 7, d_embedding 0"):
        NeuralLM(3, 7, 0, 5)
