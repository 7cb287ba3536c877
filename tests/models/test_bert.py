"""BERT against PyTorch's own encoder layer, plain arithmetic for what is around it, and the parameter counts of the published models."""
import math

import pytest
import torch
from torch import nn

from minigpt.models.bert import BERT, BERTConfig
from minigpt.models.counting import count_parameters
from minigpt.training.losses import bert_loss

FORMS = {
    "bert": BERTConfig(13, 9, n_layers=2, n_heads=3, d_model=12, d_ff=20),
    "albert": BERTConfig(13, 9, n_layers=3, n_heads=3, d_model=12, d_ff=20, d_embedding=5, share_layers=True),
}
TOKENS = torch.tensor([[2, 7, 1, 8, 3, 8, 0], [2, 4, 3, 5, 9, 3, 11]])                  # B = 2, T = 7
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
MASK = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])                             # the first row ends in two pads


def make(form: str = "bert", seed: int = 0) -> BERT:
    """Weights of order 1, biases and gains included: at the usual 0.02 many mistakes hide below the tolerance."""
    model, generator = BERT(FORMS[form]).double(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def twin(block, config: BERTConfig) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the weights of ours."""
    layer = nn.TransformerEncoderLayer(config.d_model, config.n_heads, config.d_ff, dropout=0.0, activation="gelu",
                                       layer_norm_eps=1e-12, batch_first=True, norm_first=False).double()
    attention = block.attention
    with torch.no_grad():
        for ours, theirs in ((attention.out, layer.self_attn.out_proj), (block.inner, layer.linear1), (block.out, layer.linear2),
                             (block.norm1, layer.norm1), (block.norm2, layer.norm2)):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
        layer.self_attn.in_proj_weight.copy_(torch.cat([f.weight for f in (attention.query, attention.key, attention.value)]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([f.bias for f in (attention.query, attention.key, attention.value)]))
    return layer


# The parts around the layers, one number at a time.

def linear(x, layer):
    return [sum(w * a for w, a in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]


def norm(x, layer):
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return [(a - mean) / math.sqrt(variance + 1e-12) * g + b for a, g, b in zip(x, layer.weight.tolist(), layer.bias.tolist())]


def gelu(x):
    return [0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in x]


def embedded_by_hand(model, tokens, segments):
    W_e, W_p, W_s = (table.weight.tolist() for table in (model.token_embedding, model.position_embedding, model.segment_embedding))
    rows = [norm([a + b + c for a, b, c in zip(W_e[token], W_p[t], W_s[segment])], model.embedding_norm)
            for t, (token, segment) in enumerate(zip(tokens, segments))]
    return [linear(row, model.widen) for row in rows] if model.config.d_embedding else rows


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_the_normalised_sum_of_three(form):
    model = make(form)
    expected = [embedded_by_hand(model, *rows) for rows in zip(TOKENS.tolist(), SEGMENTS.tolist())]
    torch.testing.assert_close(model.embed(TOKENS, SEGMENTS), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_encoder_is_pytorchs(form, masked):
    model = make(form)
    x = torch.tensor([embedded_by_hand(model, *rows) for rows in zip(TOKENS.tolist(), SEGMENTS.tolist())], dtype=torch.float64)
    layers = [twin(block, model.config) for block in model.blocks]
    layers = layers * 3 if form == "albert" else layers                                 # ALBERT: one layer's weights, three times
    for layer in layers:
        x = layer(x, src_key_padding_mask=~MASK if masked else None)
    ours = model.hidden(TOKENS, SEGMENTS, MASK if masked else None)
    where = MASK if masked else torch.ones_like(MASK)
    torch.testing.assert_close(ours[where], x[where], atol=1e-11, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_heads_by_hand(form):
    model = make(form)
    hidden = model.hidden(TOKENS, SEGMENTS, MASK)
    W_e, bias = model.token_embedding.weight.tolist(), model.mlm_bias.tolist()
    logits, pooled, next_logits = model(TOKENS, SEGMENTS, MASK), model.pool(hidden), model.nsp_logits(hidden)
    assert logits.shape == (2, 7, 13) and pooled.shape == (2, 12) and next_logits.shape == (2, 2)
    for b in range(2):
        for t in range(7):
            x = norm(gelu(linear(hidden[b, t].tolist(), model.mlm_dense)), model.mlm_norm)
            expected = [sum(a * e for a, e in zip(x, row)) + c for row, c in zip(W_e, bias)]
            assert logits[b, t].tolist() == pytest.approx(expected, abs=1e-10)
        summary = [math.tanh(a) for a in linear(hidden[b, 0].tolist(), model.pooler)]
        assert pooled[b].tolist() == pytest.approx(summary, abs=1e-10)
        assert next_logits[b].tolist() == pytest.approx(linear(summary, model.nsp), abs=1e-10)
    # The head asked about some positions only says the same about them.
    torch.testing.assert_close(model.mlm_logits(hidden[MASK]), logits[MASK], atol=1e-12, rtol=0)


def test_defaults_are_one_segment_and_no_padding():
    model = make()
    assert torch.equal(model(TOKENS), model(TOKENS, torch.zeros_like(TOKENS), torch.ones_like(MASK)))


def test_every_output_depends_on_every_input():
    """∂h_t/∂x_s ≠ 0 for every t and s, by finite differences of the input vectors: left, right, and itself."""
    model, step = make(), 1e-4
    with torch.no_grad():
        def encode(x):
            for block in model.blocks:
                x = block(x)
            return x

        x = model.embed(TOKENS[1:], SEGMENTS[1:])
        direction = torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for s in range(7):
            nudge = torch.zeros_like(x)
            nudge[0, s] = step * direction
            slope = (encode(x + nudge) - encode(x - nudge))[0].norm(dim=-1) / (2 * step)         # (T)
            assert slope.min() > 1e-3, (s, slope)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form):
    model = make(form)
    alone = model(TOKENS[:1, :5], SEGMENTS[:1, :5])                                     # without its pads and without a neighbour
    padded = model(TOKENS, SEGMENTS, MASK)
    torch.testing.assert_close(padded[:1, :5], alone, atol=1e-12, rtol=0)
    other = TOKENS.clone()
    other[0, 5:] = torch.tensor([6, 10])                                                # whatever stands under the padding
    torch.testing.assert_close(model(other, SEGMENTS, MASK)[MASK], padded[MASK], atol=1e-12, rtol=0)
    assert (model(TOKENS, SEGMENTS)[0, :5] - alone[0]).abs().max() > 1e-3               # unmasked, it would matter


def test_word_order_and_segment_matter():
    model = make()
    before = model(TOKENS)
    assert (model(TOKENS, SEGMENTS) - before).abs().amax(-1).min() > 1e-3
    assert (model(TOKENS[:, [0, 2, 1, 3, 4, 5, 6]])[:, 0] - before[:, 0]).abs().max() > 1e-3


def test_decoder_is_tied_to_the_embedding():
    """Finite differences of the loss over W_e: for a token read, and for one that is only scored."""
    model, step = make(), 1e-6
    labels, next_labels = torch.tensor([[4, 7, 1, 8, 10, 6, 0], [2, 4, 3, 5, 9, 3, 11]]), torch.tensor([1, 0])
    chosen = torch.tensor([[True, False, False, True, True, False, False], [False] * 4 + [True] * 3])

    def loss():
        hidden = model.hidden(TOKENS, SEGMENTS, MASK)
        return bert_loss(model.mlm_logits(hidden), labels, model.nsp_logits(hidden), next_labels, chosen)

    loss().backward()
    with torch.no_grad():
        for token in (8, 12):                                                           # 12 is in no input
            for j in (0, 4, 11):
                ends = []
                for sign in (1, -1):
                    model.token_embedding.weight[token, j] += sign * step
                    ends.append(loss().item())
                    model.token_embedding.weight[token, j] -= sign * step
                assert model.token_embedding.weight.grad[token, j].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)
    assert model.token_embedding.weight.grad[12].abs().max() > 1e-4


def test_loss_counts_chosen_tokens_and_every_pair():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pair_logits = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    labels, pair_labels = torch.tensor([[0, 2, 1, 1, 0], [1, 0, 2, 2, 1]]), torch.tensor([1, 0])
    chosen = torch.tensor([[False, True, True, False, False], [False, False, True, False, False]])

    def surprise(row, label):
        return -math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))

    words = [surprise(logits[b, t].tolist(), labels[b, t]) for b in range(2) for t in range(5) if chosen[b, t]]
    pairs = [surprise(pair_logits[b].tolist(), pair_labels[b]) for b in range(2)]
    loss = bert_loss(logits, labels, pair_logits, pair_labels, chosen)
    assert loss.item() == pytest.approx(sum(words) / 3 + sum(pairs) / 2, abs=1e-12)
    assert bert_loss(logits[chosen], labels[chosen], pair_logits, pair_labels).item() == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    assert ((logits.grad != 0).any(-1) == chosen).all()


# The published models. Without heads, with V words, P = 512 positions, width C and L layers:
#   BERT     (V + P + 2)·C + 2C  +  L·(12C² + 13C)  +  C² + C
#   ALBERT   (V + P + 2)·E + 2E  +  E·C + C  +  12C² + 13C  +  C² + C
# Heads: C·E + E + 2E + V for masked words (E = C in BERT), 2C + 2 for pairs.
@pytest.mark.parametrize("preset, V, C, E, L, encoder", [
    ("base", 30_522, 768, None, 12, 109_482_240), ("large", 30_522, 1024, None, 24, 335_141_888),
    ("albert_base", 30_000, 768, 128, 12, 11_683_584), ("albert_large", 30_000, 1024, 128, 24, 17_683_968),
])
def test_published_parameter_counts(preset, V, C, E, L, encoder):
    with torch.device("meta"):
        model = BERT(getattr(BERTConfig, preset)())
    width, runs = E or C, 1 if E else L
    body = (V + 512 + 2) * width + 2 * width + (E * C + C if E else 0) + runs * (12 * C * C + 13 * C) + C * C + C
    heads = (C * width + width + 2 * width + V) + (2 * C + 2)
    assert body == encoder
    assert count_parameters(model) == body + heads
    assert sum(p.numel() for name, p in model.named_parameters() if name.startswith(("mlm", "nsp"))) == heads
    assert model.config.n_layers == L and C % model.config.n_heads == 0 and C // model.config.n_heads == 64


def test_shared_layers_are_one_and_work_every_time():
    shared = make("albert")
    assert len(shared.blocks) == 1
    calls = []
    shared.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    shared.hidden(TOKENS)
    assert len(calls) == 3
    assert sum(name.startswith("blocks") for name, _ in shared.named_parameters()) == 16         # 4 linears and 2 norms for attention … once
    assert shared.token_embedding.weight.shape == (13, 5) and shared.widen.weight.shape == (12, 5)


def test_initialisation():
    config = BERTConfig(50, 16, n_layers=3, n_heads=4, d_model=64)
    model, again = (BERT(config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    for layer in (model.blocks[0].attention.query, model.blocks[2].out, model.pooler, model.token_embedding):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.blocks[0].inner.bias.abs().max() == 0 and (model.blocks[0].norm1.weight == 1).all()
    assert all(layer.eps == 1e-12 for layer in model.modules() if isinstance(layer, nn.LayerNorm))


@pytest.mark.parametrize("wrong, word", [
    (dict(n_heads=5), "d_model 12 is not a multiple of n_heads 5"), (dict(n_layers=0), "n_layers"), (dict(d_model=12.0), "d_model"),
    (dict(d_embedding=0), "d_embedding"), (dict(vocab_size=None), "vocab_size"),
])
def test_bad_configurations_say_why(wrong, word):
    with pytest.raises(ValueError, match=word):
        BERT(BERTConfig(**{**dict(vocab_size=13, context_length=9, n_layers=2, n_heads=3, d_model=12), **wrong}))


def test_bad_inputs_say_why():
    model = make()
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model(torch.zeros(1, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="a mask is bool, .* not torch.int64"):
        model(TOKENS, SEGMENTS, MASK.long())                                            # 1 and 0 would be added to the scores
    with pytest.raises(ValueError, match=r"the mask is \(2, 6\) where \(2, 7\) is needed"):
        model(TOKENS, SEGMENTS, MASK[:, :6])
    with pytest.raises(ValueError, match=r"segments \(1, 7\).*\(2, 7\)"):
        model(TOKENS, SEGMENTS[:1])
