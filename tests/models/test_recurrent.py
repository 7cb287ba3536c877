"""Recurrence against torch.nn's RNN and LSTM, padded rows against the same rows alone."""
import itertools
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from minigpt.generation import beam_search, generate
from minigpt.models.recurrent import LSTM, RNN, BiLSTM, RecurrentLM
from minigpt.training.windows import held_out_loss

B, T, D, H, V = 3, 7, 5, 4, 3
LENGTHS = [7, 2, 5]
CLOSE = {"atol": 1e-12, "rtol": 0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of order 1 in float64, biases included, so that no gate has its default value."""
    generator = seeded(seed)
    for p in module.double().parameters():
        nn.init.normal_(p, std=0.7, generator=generator)
    return module


def inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def some_tokens() -> torch.Tensor:
    return torch.randint(V, (B, T), generator=seeded(6))


def mask() -> torch.Tensor:
    """(B, T), with the real tokens on the left."""
    return torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def copy_into(reference: nn.Module, layer: RNN | LSTM, suffix: str = "l0") -> None:
    """torch.nn adds two biases. Ours is their sum, and is split unevenly here."""
    weights = {"weight_ih": layer.W, "weight_hh": layer.U,
               "bias_ih": 0.3 * layer.b, "bias_hh": 0.7 * layer.b}
    with torch.no_grad():
        for name, value in weights.items():
            getattr(reference, f"{name}_{suffix}").copy_(value)


# ── One layer ───────────────────────────────────────────────────────────────────────────────────

def test_rnn_equals_torch():
    layer, reference = randomise(RNN(D, H)), nn.RNN(D, H, batch_first=True).double()
    copy_into(reference, layer)
    x, h0 = inputs(B, T, D), inputs(1, B, H, seed=2)
    states, (output, last) = layer(x, h0), reference(x, h0)
    assert states.shape == (1, B, T, H)
    torch.testing.assert_close(states[0], output, **CLOSE)
    torch.testing.assert_close(states[:, :, -1], last, **CLOSE)
    torch.testing.assert_close(layer(x)[0], reference(x)[0], **CLOSE)   # from zeros


def test_lstm_equals_torch_with_its_gradients():
    layer, reference = randomise(LSTM(D, H)), nn.LSTM(D, H, batch_first=True).double()
    copy_into(reference, layer)
    x = inputs(B, T, D)
    ours, theirs = (inputs(2, B, H, seed=2).requires_grad_() for _ in range(2))
    h, c = layer(x, ours)
    output, (h_last, c_last) = reference(x, (theirs[:1], theirs[1:]))
    torch.testing.assert_close(h, output, **CLOSE)
    torch.testing.assert_close(c[:, -1], c_last[0], **CLOSE)
    torch.testing.assert_close(h[:, -1], h_last[0], **CLOSE)
    torch.testing.assert_close(layer(x)[0], reference(x)[0], **CLOSE)
    weight = inputs(B, T, H, seed=3)
    (h * weight).sum().backward()
    (output * weight).sum().backward()
    pairs = ((layer.W, "weight_ih_l0"), (layer.U, "weight_hh_l0"), (layer.b, "bias_ih_l0"))
    for parameter, name in pairs:
        torch.testing.assert_close(parameter.grad, getattr(reference, name).grad, **CLOSE)
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize("padded", [False, True])
def test_bilstm_equals_torch(padded):
    layer = randomise(BiLSTM(D, H))
    reference = nn.LSTM(D, H, batch_first=True, bidirectional=True).double()
    copy_into(reference, layer.rightwards)
    copy_into(reference, layer.leftwards, "l0_reverse")
    n_parameters = sum(p.numel() for p in layer.parameters())
    assert n_parameters == 2 * 4 * H * (D + H + 1)              # the directions share no weights
    x = inputs(B, T, D)
    if padded:
        lengths = torch.tensor(LENGTHS)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        expected, _ = pad_packed_sequence(reference(packed)[0], batch_first=True)
        torch.testing.assert_close(layer(x, mask())[mask()], expected[mask()], **CLOSE)
    else:
        torch.testing.assert_close(layer(x), reference(x)[0], **CLOSE)


@pytest.mark.parametrize("kind", [RNN, LSTM])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_row_ends_as_the_row_alone(kind, side):
    layer, x, state = randomise(kind(D, H)), inputs(B, T, D), inputs(kind.n_states, B, H, seed=2)
    real = mask() if side == "right" else mask().flip(1)
    states = layer(x, state, real)
    for row in range(B):
        alone = layer(x[row:row + 1, real[row]], state[:, row:row + 1])
        torch.testing.assert_close(states[:, row, real[row]], alone[:, 0], **CLOSE)
        torch.testing.assert_close(states[:, row, -1], alone[:, 0, -1], **CLOSE)


@pytest.mark.parametrize("kind", [RNN, LSTM, BiLSTM])
def test_padding_gets_no_gradient_and_gives_none(kind):
    layer, x = randomise(kind(D, H)), inputs(B, T, D).requires_grad_()
    layer(x, mask=mask()).sum().backward()
    assert (x.grad[~mask()] == 0).all()
    assert (x.grad[mask()].abs().amax(-1) > 1e-6).all()
    first = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with torch.no_grad():
        x[~mask()] = 100.0
    layer(x, mask=mask()).sum().backward()
    for p, before in zip(layer.parameters(), first):
        torch.testing.assert_close(p.grad, before, **CLOSE)


@pytest.mark.parametrize("kind", [RNN, LSTM])
def test_reading_in_two_parts_equals_reading_at_once(kind):
    layer, x = randomise(kind(D, H)), inputs(B, T, D)
    whole = layer(x)
    for cut in range(1, T):
        start = layer(x[:, :cut])
        rest = layer(x[:, cut:], start[:, :, -1])
        torch.testing.assert_close(torch.cat([start, rest], dim=2), whole, **CLOSE)


@pytest.mark.parametrize("kind", [RNN, LSTM])
def test_initial_weights(kind):
    layer = kind(D, H, seeded(5))
    for U in layer.U.detach().chunk(kind.n_gates):
        torch.testing.assert_close(U @ U.T, torch.eye(H), atol=1e-6, rtol=0)
    b = {RNN: [0] * H, LSTM: [0] * H + [1] * H + [0] * 2 * H}           # i, f, g, o: f starts open
    assert layer.b.tolist() == b[kind]
    wide = kind(400, 30, seeded(5))
    assert wide.W.std().item() == pytest.approx(1 / 20, rel=0.05)
    again = kind(D, H, seeded(5))
    assert torch.equal(layer.W, again.W) and torch.equal(layer.U, again.U)


def test_forget_bias_is_a_view_of_the_forget_gate():
    layer, x = randomise(LSTM(D, H)), inputs(1, T, D)
    layer.forget_bias.fill_(1000.0)                             # f = 1: nothing is forgotten
    state = torch.stack([torch.zeros(1, H), torch.full((1, H), 50.0)]).double()
    assert (layer(x, state)[1] > 50.0 - T).all()                # |i⊙g| ≤ 1 at each step
    layer.forget_bias.fill_(-1000.0)
    assert (layer(x, state)[1].abs() <= 1.0).all()


def test_clamp_overwrites_the_memory_of_a_unit_before_every_step():
    layer, x = randomise(LSTM(D, H)), inputs(B, T, D)
    free = layer(x)
    state, expected = torch.zeros(2, B, H, dtype=torch.float64), []
    for t in range(T):                                          # by hand, for the cell of unit 2
        state = state.clone()
        state[1, :, 2] = 1.5
        state = layer(x[:, t:t + 1], state)[:, :, 0]
        expected.append(state)
    layer.clamp = {2: 1.5}
    torch.testing.assert_close(layer(x), torch.stack(expected, dim=2), **CLOSE)
    assert (layer(x) - free).abs().max() > 0.1
    given = inputs(2, B, H, seed=4)
    before = given.clone()
    layer(x, given)
    assert torch.equal(given, before)                           # the caller's state is unchanged
    layer.clamp = {}
    torch.testing.assert_close(layer(x), free, **CLOSE)


# ── The language model ──────────────────────────────────────────────────────────────────────────

def language_model(cell: type = LSTM) -> RecurrentLM:
    return randomise(RecurrentLM(V, D, H, n_layers=2, cell=cell)).eval()


@pytest.mark.parametrize("cell, reference", [(RNN, nn.RNN), (LSTM, nn.LSTM)])
def test_language_model_equals_torch_layers(cell, reference):
    model = language_model(cell)
    stack = reference(D, H, num_layers=2, batch_first=True).double()
    for i, layer in enumerate(model.layers):
        copy_into(stack, layer, f"l{i}")
    tokens = some_tokens()
    h, _ = stack(model.token_embedding.weight[tokens])
    logits = h @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(model(tokens), logits, **CLOSE)
    assert [s.shape for s in model.states(tokens)] == [(cell.n_states, B, T, H)] * 2
    torch.testing.assert_close(model.states(tokens)[-1][0], h, **CLOSE)


@pytest.mark.parametrize("cell", [RNN, LSTM])
def test_cached_steps_equal_the_whole(cell):
    model = language_model(cell)
    tokens = some_tokens()
    cache, pieces = model.new_cache(), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        pieces.append(model(tokens[:, start:end], cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), **CLOSE)
    with_cache, without = (
        generate(model, tokens[:, :2], 30, generator=seeded(7), use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_beam_search_finds_the_best_of_all_continuations():
    model, prompt = language_model(), torch.tensor([[1, 2]])
    answers = torch.tensor(list(itertools.product(range(V), repeat=3)))         # (27, 3)
    whole = torch.cat([prompt.expand(27, 2), answers], dim=1)
    logprobs = model(whole).log_softmax(-1)[:, 1:-1].gather(-1, answers[..., None])
    best, order = logprobs.sum((1, 2)).sort(descending=True)
    found, scores = beam_search(model, prompt, 3, n_beams=9)    # 9 beams keep all pairs of tokens
    assert torch.equal(found, whole[order[:9]])
    torch.testing.assert_close(scores, best[:9], **CLOSE)


def test_held_out_loss_reads_a_whole_text_or_windows():
    text = torch.randint(V, (20,), generator=seeded(8))
    model = language_model()

    def nats(piece):                                            # of each token but the first
        logprobs = model(piece[None, :-1]).log_softmax(-1)[0]
        return [-logprobs[t, piece[t + 1]].item() for t in range(len(piece) - 1)]

    assert model.context_length == sys.maxsize
    loss, n_tokens = held_out_loss(model, text)
    assert n_tokens == 19 and loss == pytest.approx(sum(nats(text)) / 19, abs=1e-12)
    model.context_length = 6
    loss, n_tokens = held_out_loss(model, text)
    total = sum(sum(nats(text[i:i + 7])) for i in (0, 6, 12))
    assert n_tokens == 18 and loss == pytest.approx(total / 18, abs=1e-12)


def test_a_clamped_model_writes_another_text():
    model, prompt = language_model(), torch.tensor([[1]])
    free = generate(model, prompt, 40, temperature=0)
    model.layers[-1].clamp = {0: 8.0, 3: -8.0}
    assert not torch.equal(generate(model, prompt, 40, temperature=0), free)


def test_initial_language_model():
    model, again = (RecurrentLM(V, D, H, generator=seeded(9)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert (model(some_tokens()).softmax(-1) - 1 / V).abs().max() < 0.05        # nearly uniform
    wide = RecurrentLM(90, 30, 40, generator=seeded(9))
    assert wide.token_embedding.weight.std().item() == pytest.approx(1, rel=0.1)
    assert wide.out.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (wide.out.bias == 0).all()


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────

BOOL = torch.ones(B, T, dtype=torch.bool)
X = torch.zeros(B, T, D)


@pytest.mark.parametrize("wrong, words", [
    (lambda: RNN(0, H), "d_in must be a whole number of at least 1, not 0"),
    (lambda: LSTM(D, 0), "d_hidden must be a whole number of at least 1, not 0"),
    (lambda: LSTM(D, H)(X, mask=BOOL.float()), "a mask is bool"),
    (lambda: BiLSTM(D, H)(X, mask=BOOL.long()), "a mask is bool"),
    (lambda: RNN(D, H)(X, mask=BOOL[:, 1:]), r"\(3, 6\) where \(3, 7\) is needed"),
    (lambda: RecurrentLM(0, D, H), "vocab_size must be a whole number of at least 1, not 0"),
    (lambda: RecurrentLM(V, 0, H), "d_embedding must be a whole number of at least 1, not 0"),
    (lambda: RecurrentLM(V, D, H, n_layers=0), "n_layers must be a whole number of at least 1"),
    (lambda: RecurrentLM(V, D, H)(torch.tensor([[0, V]])), "between 0 and 2"),
    (lambda: RecurrentLM(V, D, H)(torch.tensor([[0, -1]])), "between 0 and 2"),
])
def test_refusals(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def test_the_smallest_sizes_are_legal():
    assert RecurrentLM(1, 1, 1, n_layers=1, cell=RNN)(torch.tensor([[0]])).shape == (1, 1, 1)
