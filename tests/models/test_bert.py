"""BERT against PyTorch's encoder layer, plain Python for the rest, published parameter counts and,
where it is installed, the transformers library."""
import math

import pytest
import torch
from torch import nn

from minigpt.models.bert import BERT, BERTConfig
from minigpt.models.counting import count_parameters
from minigpt.training.losses import bert_loss

SIZES = dict(vocab_size=13, context_length=9, n_layers=2, n_heads=3, d_model=12, d_ff=20)
FORMS = {
    "bert": BERTConfig(**SIZES),
    "bert tanh": BERTConfig(**SIZES, activation="gelu_tanh"),
    "albert": BERTConfig(**SIZES | {"n_layers": 3}, d_embedding=5, share_layers=True,
                         activation="gelu_tanh"),
}
TOKENS = torch.tensor([[2, 7, 1, 8, 3, 8, 0], [2, 4, 3, 5, 9, 3, 11]])      # B = 2, T = 7
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
MASK = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])     # the first row ends in two pads


def make(form: str = "bert", seed: int = 0) -> BERT:
    """Weights of order 1, biases and gains too: with the usual 0.02 many mistakes are too small."""
    model, generator = BERT(FORMS[form]).double(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def gelu(form: str, a: float) -> float:
    if form == "bert":
        return 0.5 * a * (1 + math.erf(a / math.sqrt(2)))
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def twin(block, form: str) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the weights of ours."""
    activation = "gelu" if form == "bert" else nn.GELU(approximate="tanh")
    layer = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation=activation, layer_norm_eps=1e-12, batch_first=True,
        norm_first=False).double()
    attention = block.attention
    pairs = [(attention.out, layer.self_attn.out_proj), (block.inner, layer.linear1),
             (block.out, layer.linear2), (block.norm1, layer.norm1), (block.norm2, layer.norm2)]
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
        qkv = attention.query, attention.key, attention.value
        layer.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
    return layer


# The parts around the layers, one number at a time.

def linear(x, layer):
    return [sum(w * a for w, a in zip(row, x)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]


def norm(x, layer):
    mean = sum(x) / len(x)
    size = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + 1e-12)
    return [(a - mean) / size * g + b
            for a, g, b in zip(x, layer.weight.tolist(), layer.bias.tolist())]


def embedded_by_hand(model):
    """h₀ of TOKENS and SEGMENTS, (2, 7, 12)."""
    W_e, W_p, W_s = (table.weight.tolist() for table in (
        model.token_embedding, model.position_embedding, model.segment_embedding))
    batch = []
    for tokens, segments in zip(TOKENS.tolist(), SEGMENTS.tolist()):
        sums = [[a + b + c for a, b, c in zip(W_e[token], W_p[t], W_s[segment])]
                for t, (token, segment) in enumerate(zip(tokens, segments))]
        rows = [norm(x, model.embedding_norm) for x in sums]
        batch.append([linear(x, model.widen) for x in rows] if model.config.d_embedding else rows)
    return torch.tensor(batch, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_the_normalised_sum_of_three(form):
    model = make(form)
    torch.testing.assert_close(
        model.embed(TOKENS, SEGMENTS), embedded_by_hand(model), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_encoder_is_pytorchs(form, masked):
    model = make(form)
    x = embedded_by_hand(model)
    layers = [twin(block, form) for block in model.blocks]
    layers = layers * 3 if form == "albert" else layers         # one layer's weights, three times
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
    logits, pooled = model(TOKENS, SEGMENTS, MASK), model.pool(hidden)
    pair_logits = model.nsp_logits(hidden)
    assert logits.shape == (2, 7, 13) and pooled.shape == (2, 12) and pair_logits.shape == (2, 2)
    for b in range(2):
        for t in range(7):
            x = [gelu(form, a) for a in linear(hidden[b, t].tolist(), model.mlm_dense)]
            x = norm(x, model.mlm_norm)
            expected = [sum(a * e for a, e in zip(x, row)) + c for row, c in zip(W_e, bias)]
            assert logits[b, t].tolist() == pytest.approx(expected, abs=1e-10)
        summary = [math.tanh(a) for a in linear(hidden[b, 0].tolist(), model.pooler)]
        assert pooled[b].tolist() == pytest.approx(summary, abs=1e-10)
        assert pair_logits[b].tolist() == pytest.approx(linear(summary, model.nsp), abs=1e-10)
    # The head gives the same logits when it is asked about some positions only.
    torch.testing.assert_close(model.mlm_logits(hidden[MASK]), logits[MASK], atol=1e-12, rtol=0)


def test_defaults_are_one_segment_and_no_padding():
    model = make()
    explicit = model(TOKENS, torch.zeros_like(TOKENS), torch.ones_like(MASK))
    assert torch.equal(model(TOKENS), explicit)


# What an output depends on.

def test_every_output_depends_on_every_input():
    """∂h_t/∂x_s ≠ 0 for all t and s, by finite differences of the input vectors."""
    model, step = make(), 1e-4
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(12, generator=generator, dtype=torch.float64)

    def encode(x):
        for block in model.blocks:
            x = block(x)
        return x

    with torch.no_grad():
        x = model.embed(TOKENS[1:], SEGMENTS[1:])
        for s in range(7):
            nudge = torch.zeros_like(x)
            nudge[0, s] = step * direction
            change = (encode(x + nudge) - encode(x - nudge))[0]         # (T, C)
            slope = change.norm(dim=-1) / (2 * step)                    # (T,)
            assert slope.min() > 1e-3, (s, slope)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form):
    model = make(form)
    alone = model(TOKENS[:1, :5], SEGMENTS[:1, :5])             # without padding, and alone
    padded = model(TOKENS, SEGMENTS, MASK)
    torch.testing.assert_close(padded[:1, :5], alone, atol=1e-12, rtol=0)
    other = TOKENS.clone()
    other[0, 5:] = torch.tensor([6, 10])                        # other ids at the padding
    torch.testing.assert_close(
        model(other, SEGMENTS, MASK)[MASK], padded[MASK], atol=1e-12, rtol=0)
    assert (model(TOKENS, SEGMENTS)[0, :5] - alone[0]).abs().max() > 1e-3   # without the mask


def test_word_order_and_segment_matter():
    model = make()
    before = model(TOKENS)
    assert (model(TOKENS, SEGMENTS) - before).abs().amax(-1).min() > 1e-3
    swapped = model(TOKENS[:, [0, 2, 1, 3, 4, 5, 6]])
    assert (swapped[:, 0] - before[:, 0]).abs().max() > 1e-3


# The two heads and their loss.

def test_the_decoder_is_tied_to_the_embedding():
    """Finite differences of the loss over W_e, for a token in the input and for one that is not."""
    model, step = make(), 1e-6
    weight, next_labels = model.token_embedding.weight, torch.tensor([1, 0])
    labels = torch.tensor([[4, 7, 1, 8, 10, 6, 0], [2, 4, 3, 5, 9, 3, 11]])
    chosen = torch.zeros(2, 7, dtype=torch.bool)
    chosen[0, [0, 3, 4]] = chosen[1, 4:] = True

    def loss():
        hidden = model.hidden(TOKENS, SEGMENTS, MASK)
        return bert_loss(model.mlm_logits(hidden), labels, model.nsp_logits(hidden), next_labels,
                         chosen)

    loss().backward()
    with torch.no_grad():
        for token in (8, 12):                                           # 12 is in no input
            for j in (0, 4, 11):
                weight[token, j] += step
                above = loss().item()
                weight[token, j] -= 2 * step
                below = loss().item()
                weight[token, j] += step
                slope = (above - below) / (2 * step)
                assert weight.grad[token, j].item() == pytest.approx(slope, abs=1e-7)
    assert weight.grad[12].abs().max() > 1e-4


def test_loss_counts_chosen_tokens_and_every_pair():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pair_logits = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    labels, pair_labels = torch.tensor([[0, 2, 1, 1, 0], [1, 0, 2, 2, 1]]), torch.tensor([1, 0])
    chosen = torch.tensor([[False, True, True, False, False], [False, False, True, False, False]])

    def surprise(row, label):
        return -math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))

    words = [surprise(logits[b, t].tolist(), labels[b, t])
             for b in range(2) for t in range(5) if chosen[b, t]]
    pairs = [surprise(pair_logits[b].tolist(), pair_labels[b]) for b in range(2)]
    loss = bert_loss(logits, labels, pair_logits, pair_labels, chosen)
    assert loss.item() == pytest.approx(sum(words) / 3 + sum(pairs) / 2, abs=1e-12)
    only_chosen = bert_loss(logits[chosen], labels[chosen], pair_logits, pair_labels)
    assert only_chosen.item() == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    assert ((logits.grad != 0).any(-1) == chosen).all()


# Sizes. Without heads, with V words, P = 512 positions, width C and L layers:
#   BERT     (V + P + 2)·C + 2C  +  L·(12C² + 13C)  +  C² + C
#   ALBERT   (V + P + 2)·E + 2E  +  E·C + C  +  12C² + 13C  +  C² + C
# Heads: C·E + E + 2E + V for masked words (E = C in BERT), 2C + 2 for pairs.

@pytest.mark.parametrize("preset, V, C, E, L, encoder", [
    ("base", 30_522, 768, None, 12, 109_482_240),
    ("large", 30_522, 1024, None, 24, 335_141_888),
    ("albert_base", 30_000, 768, 128, 12, 11_683_584),
    ("albert_large", 30_000, 1024, 128, 24, 17_683_968),
])
def test_published_parameter_counts(preset, V, C, E, L, encoder):
    config = getattr(BERTConfig, preset)()
    with torch.device("meta"):
        model = BERT(config)
    width, n_blocks = E or C, 1 if E else L
    factor = E * C + C if E else 0
    embeddings = (V + 512 + 2) * width + 2 * width + factor
    body = embeddings + n_blocks * (12 * C * C + 13 * C) + C * C + C
    heads = (C * width + width + 2 * width + V) + (2 * C + 2)
    assert body == encoder
    assert count_parameters(model) == body + heads
    assert heads == sum(p.numel() for name, p in model.named_parameters()
                        if name.startswith(("mlm", "nsp")))
    assert config.n_layers == L and C == 64 * config.n_heads
    assert config.activation == ("gelu_tanh" if E else "gelu")


@pytest.mark.parametrize("form", FORMS)
def test_n_weights_are_the_layers_matrices_and_two_embeddings(form):
    model = make(form)
    tables = model.token_embedding.weight.numel() + model.position_embedding.weight.numel()
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    assert FORMS[form].n_weights == tables + matrices


def test_shared_layers_are_one_layer_used_every_time():
    shared = make("albert")
    assert len(shared.blocks) == 1
    calls = []
    shared.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    shared.hidden(TOKENS)
    assert len(calls) == 3
    names = [name for name, _ in shared.named_parameters() if name.startswith("blocks")]
    assert len(names) == 16                     # weight and bias of six matrices and two norms
    assert shared.token_embedding.weight.shape == (13, 5) and shared.widen.weight.shape == (12, 5)


def test_initialisation():
    config = BERTConfig(50, 16, n_layers=3, n_heads=4, d_model=64)
    model, again = (BERT(config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    layers = (model.blocks[0].attention.query, model.blocks[2].out, model.pooler,
              model.token_embedding)
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.blocks[0].inner.bias.abs().max() == 0
    assert (model.blocks[0].norm1.weight == 1).all()
    assert all(m.eps == 1e-12 for m in model.modules() if isinstance(m, nn.LayerNorm))


# Refusals: the last legal value and the first illegal one.

@pytest.mark.parametrize("wrong, message", [
    (dict(n_heads=5), "d_model 12 is not a multiple of n_heads 5"),
    (dict(n_layers=0), "n_layers must be a whole number of at least 1, not 0"),
    (dict(d_model=12.0), "d_model must be a whole number of at least 1, not 12.0"),
    (dict(d_ff=0), "d_ff must be a whole number of at least 1, not 0"),
    (dict(d_embedding=0), "d_embedding must be a whole number of at least 1, not 0"),
    (dict(vocab_size=None), "vocab_size must be a whole number of at least 1, not None"),
    (dict(activation="relu"), "activation must be one of gelu, gelu_tanh, not 'relu'"),
    (dict(share_layers=1), "share_layers must be True or False, not 1"),
])
def test_bad_configurations_say_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        BERTConfig(**SIZES | wrong)


def test_the_last_legal_configurations():
    for legal in (dict(n_layers=1), dict(d_ff=1), dict(d_ff=None), dict(n_heads=12),
                  dict(d_embedding=1), dict(d_embedding=None)):
        assert BERT(BERTConfig(**SIZES | legal))(TOKENS).shape == (2, 7, 13)


@pytest.mark.parametrize("size", ["vocab_size", "context_length", "n_layers", "d_model", "d_ff"])
def test_a_model_larger_than_memory_is_refused(size):
    config = BERTConfig(**SIZES | {"n_heads": 2, size: 10**14})
    with pytest.raises(ValueError, match=f"{size}={10**14}.*cannot be allocated"):
        BERT(config)


def test_bad_inputs_say_why():
    model = make()
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model(torch.zeros(1, 10, dtype=torch.long))
    assert model(torch.zeros(1, 9, dtype=torch.long)).shape == (1, 9, 13)
    for outside in (-1, 13):
        with pytest.raises(ValueError, match="token ids lie between 0 and 12"):
            model(torch.tensor([[2, outside]]))
    with pytest.raises(ValueError, match=r"segments \(1, 7\).*\(2, 7\)"):
        model(TOKENS, SEGMENTS[:1])


def test_masks_that_cannot_be_right_are_refused():
    model = make()
    with pytest.raises(ValueError, match="a mask is bool, .* not torch.int64"):
        model(TOKENS, SEGMENTS, MASK.long())
    with pytest.raises(ValueError, match=r"the mask is \(2, 6\) where \(2, 7\) is needed"):
        model(TOKENS, SEGMENTS, MASK[:, :6])
    mask = torch.zeros_like(MASK)
    mask[0, 2] = mask[1, 0] = True
    assert model(TOKENS, SEGMENTS, mask)[mask].isfinite().all()
    mask[0, 2] = False
    with pytest.raises(ValueError, match="row 0 of the mask is False everywhere"):
        model(TOKENS, SEGMENTS, mask)


# The transformers library, with our weights under its names.

LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
HUGGING_FACE = {
    "bert": {
        "token_embedding": "bert.embeddings.word_embeddings",
        "position_embedding": "bert.embeddings.position_embeddings",
        "segment_embedding": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm", "blocks": "bert.encoder.layer",
        "attention.out.": "attention.output.dense.", ".out.": ".output.dense.",
        "attention.query": "attention.self.query", "attention.key": "attention.self.key",
        "attention.value": "attention.self.value", "norm1": "attention.output.LayerNorm",
        "inner": "intermediate.dense", "norm2": "output.LayerNorm", "pooler": "bert.pooler.dense",
        "mlm_dense": "cls.predictions.transform.dense", "mlm_bias": "cls.predictions.bias",
        "mlm_norm": "cls.predictions.transform.LayerNorm", "nsp": "cls.seq_relationship"},
    "albert": {
        "token_embedding": "albert.embeddings.word_embeddings",
        "position_embedding": "albert.embeddings.position_embeddings",
        "segment_embedding": "albert.embeddings.token_type_embeddings",
        "embedding_norm": "albert.embeddings.LayerNorm",
        "widen": "albert.encoder.embedding_hidden_mapping_in", "blocks.0": LAYER,
        "attention.out.": "attention.dense.", ".out.": ".ffn_output.",
        "norm1": "attention.LayerNorm", "inner": "ffn", "norm2": "full_layer_layer_norm",
        "pooler": "albert.pooler", "mlm_dense": "predictions.dense", "mlm_bias": "predictions.bias",
        "mlm_norm": "predictions.LayerNorm", "nsp": "sop_classifier.classifier"},
}


def renamed(state: dict, names: dict) -> dict:
    """The same state dict with each of our names replaced by theirs."""
    theirs = {}
    for name, value in state.items():
        for our_part, their_part in names.items():
            name = name.replace(our_part, their_part)
        theirs[name] = value
    return theirs


def hugging_face(transformers, form: str):
    sizes = dict(vocab_size=13, hidden_size=12, num_attention_heads=3, intermediate_size=20,
                 max_position_embeddings=9, hidden_dropout_prob=0.0, bos_token_id=0, eos_token_id=0,
                 attention_probs_dropout_prob=0.0, attn_implementation="eager",
                 hidden_act="gelu" if form == "bert" else "gelu_new")
    if form == "albert":
        return transformers.AlbertForPreTraining(transformers.AlbertConfig(
            num_hidden_layers=3, embedding_size=5, **sizes))
    return transformers.BertForPreTraining(transformers.BertConfig(num_hidden_layers=2, **sizes))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_as_transformers(form):
    """Both heads. ALBERT's second head scores the order of two sentences; its form is the same."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = make(form), hugging_face(transformers, form).double().eval()
    state = renamed(ours.state_dict(), HUGGING_FACE[form.split()[0]])
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("decoder" in name for name in missing)    # tied to W_e and b_V
    with torch.no_grad():
        expected = theirs(input_ids=TOKENS, token_type_ids=SEGMENTS, attention_mask=MASK.long())
        hidden = ours.hidden(TOKENS, SEGMENTS, MASK)
        logits, pair_logits = ours.mlm_logits(hidden), ours.nsp_logits(hidden)
    pair = expected.sop_logits if form == "albert" else expected.seq_relationship_logits
    torch.testing.assert_close(
        logits[MASK], expected.prediction_logits[MASK], atol=1e-5, rtol=0)
    torch.testing.assert_close(pair_logits, pair, atol=1e-5, rtol=0)
    assert expected.prediction_logits.std() > 0.3                       # values that could differ
