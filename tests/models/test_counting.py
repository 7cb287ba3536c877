"""Parameters counted by hand; bytes that autograd keeps, against the operations' known needs."""
import torch
from torch import nn

from minigpt.models.counting import count_parameters, saved_bytes


def ones(*shape):
    return torch.ones(shape, dtype=torch.float64, requires_grad=True)


def test_parameters_by_hand():
    assert count_parameters(nn.Linear(5, 3)) == 5 * 3 + 3
    assert count_parameters(nn.LSTM(4, 3)) == 4 * (3 * 4 + 3 * 3 + 3 + 3)


def test_a_tied_matrix_counts_once():
    embedding, output = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    assert count_parameters(nn.ModuleList([embedding, output])) == 2 * 28
    output.weight = embedding.weight
    assert count_parameters(nn.ModuleList([embedding, output])) == 28


def test_a_frozen_parameter_counts_and_a_buffer_does_not():
    model = nn.BatchNorm1d(6)               # 6 gains, 6 biases, and running averages as buffers
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 12


def test_a_kept_tensor_counts_once():
    x = ones(10, 3)
    assert saved_bytes(lambda: x.exp()) == 240                          # exp keeps its result
    assert saved_bytes(lambda: x * x) == 240                            # both factors, stored once
    assert saved_bytes(lambda: x.exp().exp()) == 480
    assert saved_bytes(lambda: x + 1) == 0                              # a sum needs neither term


def test_parameters_and_views_of_them_do_not_count():
    x, w = ones(5, 10), ones(10, 3)
    assert saved_bytes(lambda: x @ w) == 8 * (50 + 30)
    assert saved_bytes(lambda: x @ w, [w]) == 8 * 50
    assert saved_bytes(lambda: x @ w[:, 1:], [w]) == 8 * 50
    assert saved_bytes(lambda: x @ w, iter([w, x])) == 0
