"""T5 against plain Python, its own cache, its published sizes, a list of every answer and, where it
is installed, the transformers library."""
import itertools
import math

import pytest
import torch

from minigpt.generation import beam_search, generate
from minigpt.models.counting import count_parameters
from minigpt.models.t5 import START, T5, T5Config, decoder_inputs
from minigpt.training.losses import causal_loss, cross_entropy, next_token_loss

# H·D = 10 is not C = 6.
CONFIG = dict(vocab_size=11, n_layers=2, n_heads=2, d_model=6, d_ff=7, d_head=5, context_length=9)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_model(gated: bool = False, seed: int = 0, **changes) -> T5:
    """Every parameter away from its initial value, gains and position biases too.

    None of them can then be left out unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    model = T5(T5Config(**CONFIG | changes, gated=gated), generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.5, generator=generator)
    return model.eval()


def random_tokens(*shape: int, seed: int = 1, below: int = 11) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


# The model in plain Python, one number at a time.

def times(x, weight):
    """Wx for a list x."""
    return [sum(w * a for w, a in zip(row, x)) for row in weight.tolist()]


def add(x, y):
    return [a + b for a, b in zip(x, y)]


def rms(x, gain):
    size = math.sqrt(sum(a * a for a in x) / len(x) + 1e-6)
    return [a / size * g for a, g in zip(x, gain.tolist())]


def bucket(offset, bidirectional):
    """The rule for |offset| < 16.

    The encoder's buckets are exact below 8; the next two hold 8 to 11 and 12 to 15.
    """
    assert abs(offset) < 16
    if not bidirectional:
        return max(-offset, 0)
    near = abs(offset) if abs(offset) < 8 else 8 if abs(offset) < 12 else 9
    return near + (16 if offset > 0 else 0)


def attend(layer, x, memory, n_heads, may_look, bias):
    """One query, one head and one key at a time; no scale."""
    D, out = layer.query.weight.size(0) // n_heads, []
    keys = [times(m, layer.key.weight) for m in memory]
    values = [times(m, layer.value.weight) for m in memory]
    for t, query in enumerate(times(a, layer.query.weight) for a in x):
        heads = []
        for h in range(n_heads):
            part = slice(h * D, (h + 1) * D)
            seen = [s for s in range(len(memory)) if may_look(t, s)]
            exponentials = [
                math.exp(sum(a * b for a, b in zip(query[part], keys[s][part])) + bias(t, s, h))
                for s in seen]
            heads += [sum(e * values[s][part][i] for e, s in zip(exponentials, seen))
                      / sum(exponentials) for i in range(D)]
        out.append(times(heads, layer.out.weight))
    return out


def feed_forward(layer, x):
    inner = times(x, layer.inner.weight)
    if layer.gate is None:
        return times([max(a, 0.0) for a in inner], layer.out.weight)
    gelu = [0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
            for g in times(x, layer.gate.weight)]
    return times([g * a for g, a in zip(gelu, inner)], layer.out.weight)


def t5_by_scalars(model, source, target_in, counts):
    """Lists of tokens, and which source tokens count -> logits, a list for each target position."""
    H, E = model.config.n_heads, model.token_embedding.weight.tolist()

    def bias_of(stack):
        table = stack.relative_embedding.weight.tolist()
        return lambda t, s, h: table[bucket(s - t, stack is model.encoder)][h]

    def everywhere(layer, norm, x):
        return [add(a, feed_forward(layer, rms(a, norm.weight))) for a in x]

    def sublayer(layer, norm, x, memory, may_look, bias):
        queries = [rms(a, norm.weight) for a in x]
        out = attend(layer, queries, queries if memory is None else memory, H, may_look, bias)
        return [add(*pair) for pair in zip(x, out)]

    x = [E[i] for i in source]
    for block in model.encoder.blocks:
        x = sublayer(block.attention, block.norm1, x, None, lambda t, s: counts[s],
                     bias_of(model.encoder))
        x = everywhere(block.feed_forward, block.norm2, x)
    memory = [rms(a, model.encoder.final_norm.weight) for a in x]

    y = [E[i] for i in target_in]
    for block in model.decoder.blocks:
        y = sublayer(block.attention, block.norm1, y, None, lambda t, s: s <= t,
                     bias_of(model.decoder))
        y = sublayer(block.cross_attention, block.norm2, y, memory, lambda t, s: counts[s],
                     lambda t, s, h: 0.0)
        y = everywhere(block.feed_forward, block.norm3, y)
    y = [rms(a, model.decoder.final_norm.weight) for a in y]
    if model.config.gated:
        return [times(a, model.output_embedding.weight) for a in y]
    return [times([v / math.sqrt(len(a)) for v in a], model.token_embedding.weight) for a in y]


@pytest.mark.parametrize("gated", [False, True])
def test_the_model_by_scalars(gated):
    B, S, T = 2, 13, 11                         # beyond 8 the two stacks' buckets differ
    model, source = random_model(gated), random_tokens(B, S)
    target_in = random_tokens(B, T, seed=2)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[1, 9:] = mask[1, 2] = False
    logits = model(source, target_in, mask)
    assert logits.shape == (B, T, 11)
    for b in range(B):
        rows = (rows[b].tolist() for rows in (source, target_in, mask))
        expected = torch.tensor(t5_by_scalars(model, *rows))
        torch.testing.assert_close(logits[b], expected, atol=1e-10, rtol=0)
    assert 0.3 < logits.std() < 30              # values that could differ
    unmasked = model(source[:1], target_in[:1])
    torch.testing.assert_close(unmasked, logits[:1], atol=1e-12, rtol=0)


# Sizes, by arithmetic from the paper's tables.

PUBLISHED = {       # size, gated: (d_model, d_ff, heads, head width, layers), parameters
    ("small", False): ((512, 2048, 8, 64, 6), 60_506_624),
    ("small", True): ((512, 1024, 6, 64, 8), 76_961_152),
    ("base", False): ((768, 3072, 12, 64, 12), 222_903_552),
    ("base", True): ((768, 2048, 12, 64, 12), 247_577_856),
    ("large", False): ((1024, 4096, 16, 64, 24), 737_668_096),
    ("large", True): ((1024, 2816, 16, 64, 24), 783_150_080),
    ("xl", False): ((1024, 16_384, 32, 128, 24), 2_851_598_336),
    ("xl", True): ((2048, 5120, 32, 64, 24), 2_849_757_184),
    ("xxl", False): ((1024, 65_536, 128, 128, 24), 11_307_321_344),
    ("xxl", True): ((4096, 10_240, 64, 64, 24), 11_135_332_352),
}


@pytest.mark.parametrize("size, gated", PUBLISHED)
def test_parameter_counts(size, gated):
    (C, d_ff, H, D, n_layers), published = PUBLISHED[size, gated]
    attention, feed_forward = 4 * C * H * D, (3 if gated else 2) * C * d_ff
    buckets, V = 32 * H, 32_128
    encoder = n_layers * (attention + feed_forward + 2 * C) + buckets + C
    decoder = n_layers * (2 * attention + feed_forward + 3 * C) + buckets + C
    by_hand = encoder + decoder + (2 if gated else 1) * V * C
    config = getattr(T5Config, size)(gated=gated)
    with torch.device("meta"):
        model = T5(config)
    assert count_parameters(model) == by_hand == published
    assert config.n_weights == by_hand - n_layers * 5 * C - 2 * (buckets + C)


def test_no_bias_anywhere_and_one_embedding():
    names = [name for name, _ in random_model().named_parameters()]
    assert not [name for name in names if name.endswith("bias")]
    embeddings = [name for name in names if "token" in name or "output" in name]
    assert embeddings == ["token_embedding.weight"]
    assert sum("relative" in name for name in names) == 2       # one table for each stack


# What the decoder may see.

def test_padding_changes_nothing():
    model, source, target_in = random_model(), random_tokens(1, 6), random_tokens(1, 4, seed=2)
    alone = model(source, target_in)
    for pad in (0, 7):
        padded = torch.cat([source, torch.full((1, 5), pad)], dim=1)
        batch = torch.cat([padded, random_tokens(1, 11, seed=3)])       # next to a longer source
        mask = torch.ones(2, 11, dtype=torch.bool)
        mask[0, 6:] = False
        logits = model(batch, target_in.expand(2, -1), mask)
        torch.testing.assert_close(logits[:1], alone, atol=1e-12, rtol=0)
    assert (model(padded, target_in) - alone).abs().max() > 1e-3        # without the mask


def test_no_logit_depends_on_a_later_target_token_and_all_on_every_source_token():
    model = random_model()
    x, y = (model.token_embedding(random_tokens(1, n, seed=n)).detach().requires_grad_()
            for n in (5, 4))
    embeddings = iter([x, y])
    model.token_embedding.register_forward_hook(lambda *_: next(embeddings))
    logits = model(random_tokens(1, 5), random_tokens(1, 4))
    for t in range(4):
        of_source, of_target = torch.autograd.grad(logits[0, t, 3], (x, y), retain_graph=True)
        assert (of_source[0].abs().sum(-1) > 1e-6).all()
        seen = of_target[0].abs().sum(-1)
        assert (seen[:t + 1] > 1e-6).all() and (seen[t + 1:] == 0).all()


def test_the_decoder_reads_the_target_one_step_late():
    target = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    assert decoder_inputs(target).tolist() == [[0, 5, 6, 7], [0, 8, 1, 0]]
    assert START == 0


# The loss is a language model's, given the source.

def test_teacher_forcing_is_the_loss_of_a_language_model():
    model, source, target = random_model(), random_tokens(3, 5), random_tokens(3, 4, seed=2)
    teacher_forced = cross_entropy(model(source, decoder_inputs(target)), target)
    decoder = model.decoder_for(source)
    answer = torch.cat([torch.full((3, 1), START), target], dim=1)
    for loss in (next_token_loss(decoder, answer), causal_loss(decoder(answer), answer)):
        torch.testing.assert_close(loss, teacher_forced, atol=1e-12, rtol=0)
    total = 0.0                                 # prefix by prefix, without any later token
    for b, t in itertools.product(range(3), range(4)):
        scores = model(source[b:b + 1], answer[b:b + 1, :t + 1])[0, -1].tolist()
        total -= math.log(math.exp(scores[target[b, t]]) / sum(map(math.exp, scores)))
    assert teacher_forced.item() == pytest.approx(total / 12, abs=1e-10)


def test_probabilities_of_all_answers_sum_to_one():
    model = random_model(vocab_size=3)
    answers = torch.tensor(list(itertools.product(range(3), repeat=4)))
    source = random_tokens(1, 5, below=3).expand(81, -1)
    logprobs = model(source, decoder_inputs(answers)).log_softmax(-1)
    logprobs = logprobs.gather(-1, answers[..., None])[..., 0].sum(1)
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    decoder = model.decoder_for(source[:1])
    found, score = beam_search(decoder, torch.tensor([[START]]), 4, n_beams=81)
    assert found[0, 1:].tolist() == answers[logprobs.argmax()].tolist()
    torch.testing.assert_close(score, logprobs.sort(descending=True).values, atol=1e-10, rtol=0)


# Generation.

@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("pieces", [[1] * 8, [3, 1, 4], [8]])
def test_cached_is_recomputed_logit_for_logit(gated, pieces):
    model, source = random_model(gated), random_tokens(2, 7)
    target_in = random_tokens(2, 8, seed=2)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    whole = model(source, target_in, mask)
    decoder = model.decoder_for(source, mask)
    cache = decoder.new_cache()
    stepwise = [decoder(piece, cache) for piece in target_in.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(stepwise, dim=1), whole, atol=1e-11, rtol=0)
    torch.testing.assert_close(decoder(target_in), whole, atol=1e-12, rtol=0)   # decoder unchanged


def test_the_sources_keys_are_computed_once():
    model, calls = random_model(), []
    key = model.decoder.blocks[1].cross_attention.key
    key.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].size(1)))
    generate(model.decoder_for(random_tokens(2, 7)), torch.full((2, 1), START), 4, temperature=0)
    assert calls == [7, 0, 0, 0]


def test_generate_with_and_without_cache_and_by_hand():
    model, source = random_model(seed=4), random_tokens(3, 6, seed=5)
    start = torch.full((3, 1), START)
    cached, plain = (generate(model.decoder_for(source), start, 7, temperature=0, use_cache=c)
                     for c in (True, False))
    tokens = start
    for _ in range(7):
        tokens = torch.cat([tokens, model(source, tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, tokens) and torch.equal(plain, tokens)
    assert len({tuple(row) for row in tokens.tolist()}) > 1     # the answers depend on the source


def test_selected_rows_keep_their_source_and_their_target():
    """Rows of two sources, exchanged and repeated half way, as beam search does."""
    model, source, target_in = random_model(), random_tokens(2, 5), random_tokens(3, 6, seed=2)
    rows = torch.tensor([1, 0, 1])
    decoder, earlier = model.decoder_for(source), random_tokens(2, 3, seed=3)
    cache = decoder.new_cache()
    decoder(earlier, cache)
    cache[0].select(rows)
    stepwise = decoder(target_in, cache)
    whole = model(source[rows], torch.cat([earlier[rows], target_in], dim=1))[:, 3:]
    torch.testing.assert_close(stepwise, whole, atol=1e-11, rtol=0)


# Initial weights.

def test_unscaled_scores_start_with_variance_one():
    torch.set_default_dtype(torch.float32)
    config = T5Config(100, n_layers=1, n_heads=8, d_model=128, d_ff=64, d_head=32)
    layer = T5(config, torch.Generator().manual_seed(0)).encoder.blocks[0].attention
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(1))
    q, k = (f(x).unflatten(-1, (8, 32)).transpose(0, 1) for f in (layer.query, layer.key))
    assert (q @ k.mT).var().item() == pytest.approx(1, abs=0.15)
    assert layer.scale == 1


@pytest.mark.parametrize("gated", [False, True])
def test_initial_weights(gated):
    """1/√inputs, with C = 100, H·D = 36·9 = 324 and d_ff = 1600; √D less for queries.

    The position biases and version 1.1's unembedding matrix have 1/√C. A matrix has at least 1152
    numbers.
    """
    config = T5Config(120, n_layers=1, n_heads=36, d_model=100, d_ff=1600, d_head=9, gated=gated)
    model = T5(config, torch.Generator().manual_seed(0))
    stds = {"token_embedding": 1, "attention.query": 1 / 30, "attention.out": 1 / 18,
            "feed_forward.out": 1 / 40}
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert "norm" in name and (p == 1).all(), name
        else:
            found = [std for end, std in stds.items() if name.endswith(f"{end}.weight")]
            expected = found[0] if found else 1 / 10
            assert p.std().item() == pytest.approx(expected, rel=0.1), name


def test_a_generator_fixes_the_weights():
    first, again, other = (
        T5(T5Config(**CONFIG), torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


# Refusals: the last legal value and the first illegal one.

@pytest.mark.parametrize("wrong, message", [
    (dict(d_head=0), "d_head must be a whole number of at least 1, not 0"),
    (dict(n_layers=0), "n_layers must be a whole number of at least 1, not 0"),
    (dict(d_ff=None), "d_ff must be a whole number of at least 1, not None"),
    (dict(context_length=0), "context_length must be a whole number of at least 1, not 0"),
    (dict(gated=1), "gated must be True or False, not 1"),
])
def test_bad_configurations_say_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        T5Config(**CONFIG | wrong)


def test_the_last_legal_configurations():
    for legal in (dict(d_head=1), dict(n_layers=1), dict(d_ff=1), dict(n_heads=1)):
        model = T5(T5Config(**CONFIG | legal))
        assert model(random_tokens(1, 5), random_tokens(1, 3)).isfinite().all()


@pytest.mark.parametrize("size", ["vocab_size", "n_layers", "n_heads", "d_model", "d_ff", "d_head"])
def test_a_model_larger_than_memory_is_refused(size):
    config = T5Config(**CONFIG | {size: 10**14})
    with pytest.raises(ValueError, match=f"{size}={10**14}.*cannot be allocated"):
        T5(config)


def test_masks_that_cannot_be_right_are_refused():
    model, source, target_in = random_model(), random_tokens(2, 5), random_tokens(2, 3)
    with pytest.raises(ValueError, match=r"the mask is \(2, 4\) where \(2, 5\) is needed"):
        model(source, target_in, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="a mask is bool"):
        model(source, target_in, torch.ones(2, 5))
    mask = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="row 1 of the mask is False everywhere"):
        model(source, target_in, mask)
    mask[1, 3] = True
    assert model(source, target_in, mask).isfinite().all()


def test_tokens_outside_the_vocabulary_are_refused():
    model, fine = random_model(), torch.tensor([[0, 10]])
    assert model(fine, fine).shape == (1, 2, 11)
    for outside in (torch.tensor([[0, 11]]), torch.tensor([[-1, 3]])):
        for pair in ((outside, fine), (fine, outside)):
            with pytest.raises(ValueError, match="token ids lie between 0 and 10"):
                model(*pair)


def test_a_full_cache_is_refused():
    decoder = random_model().decoder_for(random_tokens(1, 5))
    assert decoder(random_tokens(1, 9), decoder.new_cache()).shape == (1, 9, 11)
    with pytest.raises(ValueError, match="the cache holds 9 positions"):
        decoder(random_tokens(1, 10), decoder.new_cache())


# The transformers library, with our weights under its names.

PARTS = {"SelfAttention": "attention", "EncDecAttention": "cross_attention",
         "DenseReluDense": "feed_forward"}
LAYERS = {"q": "query", "k": "key", "v": "value", "o": "out", "wi": "inner", "wi_0": "gate",
          "wi_1": "inner", "wo": "out"}


def our_name(name: str, gated: bool) -> str:
    """Our name for a parameter of transformers' T5."""
    words = name.split(".")
    if "relative_attention_bias" in name:
        return f"{words[0]}.relative_embedding.weight"
    if name == "lm_head.weight" and gated:
        return "output_embedding.weight"
    if words[1] == "final_layer_norm":
        return f"{words[0]}.final_norm.weight"
    if words[1] != "block":                     # shared, embed_tokens, and the tied lm_head
        return "token_embedding.weight"
    if words[5] == "layer_norm":
        return f"{words[0]}.blocks.{words[2]}.norm{int(words[4]) + 1}.weight"
    return f"{words[0]}.blocks.{words[2]}.{PARTS[words[5]]}.{LAYERS[words[6]]}.weight"


@pytest.mark.parametrize("gated", [False, True])
def test_the_same_as_transformers(gated):
    transformers = pytest.importorskip("transformers")
    ours, weights = random_model(gated), random_model(gated).state_dict()
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=11, d_model=6, d_kv=5, d_ff=7, num_layers=2, num_heads=2, dropout_rate=0.0,
        pad_token_id=0, decoder_start_token_id=0, tie_word_embeddings=not gated,
        feed_forward_proj="gated-gelu" if gated else "relu")).double().eval()
    state = {name: weights[our_name(name, gated)] for name in theirs.state_dict()}
    if gated:                   # some versions tie it when they build, and untie it when they load
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(state["lm_head.weight"]))
    theirs.load_state_dict(state)
    source, target_in = random_tokens(2, 150), random_tokens(2, 140, seed=2)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[1, 90:] = False
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target_in)
        logits = ours(source, target_in, mask)
    # Its norm squares in float32.
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    assert logits.std() > 0.3                                           # values that could differ
