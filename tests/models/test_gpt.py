"""GPT against plain Python, its own cache, published parameter counts and, where it is installed,
the transformers library."""
import cmath
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig

SIZES = dict(vocab_size=11, context_length=9, n_layers=2, n_heads=3, d_model=12)
LLAMA = dict(positions="rotary", norm="rms", activation="swiglu", bias=False, tied=False)
FORMS = {
    "gpt2": GPTConfig(**SIZES),
    "gpt1": GPTConfig(**SIZES, post_norm=True),
    "modern": GPTConfig.modern(**SIZES),
    "llama": GPTConfig(**SIZES, **LLAMA, norm_eps=0.25),
    "exact gelu": GPTConfig(**SIZES, activation="gelu", norm_eps=0.25, tied=False),
    "no positions": GPTConfig(**SIZES, positions="none"),
}


@pytest.fixture(autouse=True)
def double_precision():
    """Set before a model is built, so that its rotary tables are exact too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(form: str, seed: int = 0) -> GPT:
    """Weights of order 1, biases and gains too: with the usual 0.02 many mistakes are too small."""
    model, generator = GPT(FORMS[form]), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model


def random_tokens(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


# The model in plain Python, one number at a time. It has no tensor operation in common with the
# library, and it takes what a form is from its name, not from its configuration.

def layer_norm(x, norm, eps):
    mean = sum(x) / len(x)
    size = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + eps)
    return [(a - mean) / size * g + b
            for a, g, b in zip(x, norm.weight.tolist(), norm.bias.tolist())]


def rms_norm(x, norm, eps=0.0):
    size = math.sqrt(sum(a * a for a in x) / len(x) + eps)
    return [a / size * g for a, g in zip(x, norm.weight.tolist())]


def linear(x, layer):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [sum(w * a for w, a in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), bias)]


def gelu_tanh(a):
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def gelu(a):
    return 0.5 * a * (1 + math.erf(a / math.sqrt(2)))


def feed_forward_by_hand(mlp, x, form):
    inner = linear(x, mlp.inner)
    if form == "llama":
        inner = [g / (1 + math.exp(-g)) * a for g, a in zip(linear(x, mlp.gate), inner)]
    elif form == "modern":
        inner = [max(a, 0.0) ** 2 for a in inner]
    else:
        inner = [(gelu if form == "exact gelu" else gelu_tanh)(a) for a in inner]
    return linear(inner, mlp.out)


def turned(x, t):
    """Dimensions i and i + half, as a complex number, turned by t / 10000^(i / half) radians."""
    half = len(x) // 2
    points = [complex(x[i], x[i + half]) * cmath.exp(1j * t / 10_000 ** (i / half))
              for i in range(half)]
    return [p.real for p in points] + [p.imag for p in points]


def attention_by_hand(a, xs, form, width=4):
    """Causal attention of three heads: lists of vectors in and out."""
    whole = [[linear(x, layer) for x in xs] for layer in (a.query, a.key, a.value)]
    q, k, v = ([[y[h:h + width] for h in range(0, 12, width)] for y in ys] for ys in whole)
    if form == "modern":
        q = [[rms_norm(head, a.query_norm) for head in heads] for heads in q]
        k = [[rms_norm(head, a.key_norm) for head in heads] for heads in k]
    if form in ("modern", "llama"):
        q, k = ([[turned(head, t) for head in heads] for t, heads in enumerate(y)] for y in (q, k))
    out = []
    for t in range(len(xs)):
        joined = []
        for h in range(3):
            scores = [sum(x * y for x, y in zip(q[t][h], k[s][h])) / math.sqrt(width)
                      for s in range(t + 1)]
            total = sum(math.exp(score) for score in scores)
            joined += [sum(math.exp(score) / total * v[s][h][d] for s, score in enumerate(scores))
                       for d in range(width)]
        out.append(linear(joined, a.out))
    return out


def add(xs, ys):
    return [[a + b for a, b in zip(x, y)] for x, y in zip(xs, ys)]


def by_hand(model: GPT, form: str, tokens: list[int]) -> list[list[float]]:
    """Token ids -> logits, a list for each position."""
    eps = 0.25 if form in ("llama", "exact gelu") else 0.0 if form == "modern" else 1e-5

    def norm(xs, layer):
        return [(rms_norm if form in ("modern", "llama") else layer_norm)(x, layer, eps)
                for x in xs]

    embedding = model.token_embedding.weight.tolist()
    xs = [embedding[token] for token in tokens]
    if form in ("gpt1", "gpt2", "exact gelu"):
        xs = add(xs, model.position_embedding.weight.tolist())
    for block in model.blocks:
        if form == "gpt1":
            xs = norm(add(xs, attention_by_hand(block.attention, xs, form)), block.norm1)
            ys = [feed_forward_by_hand(block.feed_forward, x, form) for x in xs]
            xs = norm(add(xs, ys), block.norm2)
        else:
            xs = add(xs, attention_by_hand(block.attention, norm(xs, block.norm1), form))
            ys = [feed_forward_by_hand(block.feed_forward, x, form)
                  for x in norm(xs, block.norm2)]
            xs = add(xs, ys)
    xs = xs if form == "gpt1" else norm(xs, model.final_norm)
    if form in ("llama", "exact gelu"):
        embedding = model.output_embedding.weight.tolist()
    return [[sum(x * e for x, e in zip(h, row)) for row in embedding] for h in xs]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_plain_python(form):
    model, tokens = make(form), [3, 1, 4, 1, 5]
    logits = model(torch.tensor([tokens]))[0]
    expected = torch.tensor(by_hand(model, form, tokens))
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


# Prefix, padding, cache.

@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_of_word_embeddings_is_those_words(form):
    """It counts for positions, for attention and for the length of the context."""
    model, words = make(form), torch.tensor([7, 2, 9])
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    both = model(torch.cat([words.expand(2, -1), tokens], 1))
    prefix = model.token_embedding.weight[words]
    torch.testing.assert_close(model.unembed(model.hidden(tokens, prefix=prefix)), both)
    cache = model.new_cache()
    model.hidden(tokens[:, :1], cache, prefix)
    torch.testing.assert_close(model(tokens[:, 1:], cache), both[:, 4:])
    empty = model.hidden(tokens, prefix=prefix[:0])
    torch.testing.assert_close(empty, model.hidden(tokens), rtol=0, atol=0)
    assert model.hidden(torch.zeros(1, 6, dtype=torch.long), prefix=prefix).shape == (1, 9, 12)
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model.hidden(torch.zeros(1, 7, dtype=torch.long), prefix=prefix)


@pytest.mark.parametrize("form", FORMS)
def test_padding_on_the_left_is_not_seen_and_counts_for_no_position(form):
    """With a prefix in front, as a soft prompt has it, and with the rest through the cache."""
    model, text = make(form), torch.tensor([[3, 1, 4, 1]])
    prefix = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    wanted = model.unembed(model.hidden(text, prefix=prefix))[:, 2:]
    padded = torch.cat([torch.tensor([[9, 9, 9]]), text], 1)
    mask = torch.tensor([[True, True, False, False, False, True, True, True, True]])
    whole = model.unembed(model.hidden(padded, prefix=prefix, mask=mask))
    torch.testing.assert_close(whole[:, 5:], wanted, atol=1e-10, rtol=0)
    cache = model.new_cache()
    model.hidden(padded[:, :5], cache, prefix, mask[:, :7])
    rest = model(padded[:, 5:], cache, mask)
    torch.testing.assert_close(rest, wanted[:, 2:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_each_row_has_its_own_padding(form):
    model, tokens = make(form), random_tokens(3, 6)
    mask = torch.arange(6) >= torch.tensor([[0], [5], [2]])     # one row with a single token
    logits = model(tokens, mask=mask)
    for b, n_pads in enumerate([0, 5, 2]):
        alone = model(tokens[b:b + 1, n_pads:])
        torch.testing.assert_close(logits[b:b + 1, n_pads:], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_future_has_no_influence(form):
    model, tokens = make(form), random_tokens(2, 7, seed=1)
    before = model(tokens)
    for t in range(1, 7):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-12, rtol=0)
        assert (after[:, t] - before[:, t]).abs().amax() > 1e-3         # the present has influence


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [4, 1, 2], [2, 5]])
def test_cached_pieces_equal_the_whole(form, pieces):
    model, tokens = make(form), random_tokens(3, 7)
    cache = model.new_cache()
    parts = [model(part, cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-11, rtol=0)


def test_order_matters_only_with_positions():
    """Without positions one layer cannot tell the order of earlier tokens.

    Two layers can: the causal mask lets the first one count the tokens before each.
    """
    tokens = torch.tensor([[1, 2, 3, 4]])
    swapped = tokens[:, [1, 0, 2, 3]]
    for form in FORMS:
        model = make(form)
        assert (model(tokens)[0, -1] - model(swapped)[0, -1]).abs().max() > 1e-9, form
    one_layer = GPT(GPTConfig(**SIZES | {"n_layers": 1}, positions="none"))
    torch.testing.assert_close(one_layer(tokens)[0, -1], one_layer(swapped)[0, -1])


# The unembedding matrix.

def test_tied_gradient_is_the_sum_of_both_uses():
    """Against finite differences of the loss, which cannot forget a use."""
    model, tokens, step = make("gpt2"), torch.tensor([[3, 1, 4, 1, 5]]), 1e-6
    weight = model.token_embedding.weight

    def loss():
        return F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])

    loss().backward()
    with torch.no_grad():
        for i in (1, 3, 5, 7):
            for j in (0, 5, 10):
                weight[i, j] += step
                above = loss().item()
                weight[i, j] -= 2 * step
                below = loss().item()
                weight[i, j] += step
                slope = (above - below) / (2 * step)
                assert weight.grad[i, j].item() == pytest.approx(slope, abs=1e-7)
    assert weight.grad[7].abs().max() > 0       # token 7 is in no input: only the output uses it


def test_untied_matrices_have_one_use_each():
    model, tokens = make("llama"), torch.tensor([[3, 1, 4]])
    assert count_parameters(model) == 11 * 12 + count_parameters(
        GPT(GPTConfig(**SIZES, **LLAMA | {"tied": True})))
    F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).backward()
    read = model.token_embedding.weight.grad.abs().sum(1) > 0
    assert read.nonzero().flatten().tolist() == [1, 3]                  # token 4 is read last
    assert (model.output_embedding.weight.grad.abs().sum(1) > 0).all()


# Sizes.

# GPT-1: 40478·C + 512·C + L(12C² + 13C), without a final norm.
# GPT-2: 50257·C + 1024·C + L(12C² + 13C) + 2C.
# Llama 7B (Touvron et al. 2023, table 2): 2·32000·C + L(4C² + 3·C·d_ff + 2C) + C.
LLAMA_7B = GPTConfig(32_000, 2048, n_layers=32, n_heads=32, d_model=4096, d_ff=11_008, **LLAMA)


@pytest.mark.parametrize("config, count", [
    (GPTConfig.gpt1(), 116_534_784),
    (GPTConfig.gpt2("small"), 124_439_808), (GPTConfig.gpt2("medium"), 354_823_168),
    (GPTConfig.gpt2("large"), 774_030_080), (GPTConfig.gpt2("xl"), 1_557_611_200),
    (LLAMA_7B, 6_738_415_616),
    # Published nowhere: VC + TC + L(4(C² + C) + 2CF + F + C + 4C) + 2C, and without biases
    # VC + L(4C² + 2CF + 2C + 2D) + C.
    (GPTConfig(**SIZES, d_ff=7), 1_982), (FORMS["modern"], 3_664),
])
def test_parameter_counts(config, count):
    with torch.device("meta"):
        assert count_parameters(GPT(config)) == count


@pytest.mark.parametrize("size, heads", [("small", 12), ("medium", 16), ("large", 20), ("xl", 25)])
def test_published_heads(size, heads):
    """A count of parameters does not depend on the number of heads. GPT-2's are all 64 wide."""
    config = GPTConfig.gpt2(size)
    assert config.n_heads == heads and config.d_head == 64


@pytest.mark.parametrize("C", [12, 64, 100, 128, 4096])
def test_swiglu_has_as_many_weights_as_the_others(C):
    """Its width 8/3·C is rounded, so the three matrices differ by 3·C/2 weights at most."""
    one_layer = dict(vocab_size=2, context_length=2, n_layers=1, n_heads=1, d_model=C)
    swiglu, plain = (GPTConfig(**one_layer, activation=a) for a in ("swiglu", "gelu"))
    assert plain.width_ff == 4 * C and abs(swiglu.width_ff - 8 * C / 3) <= 0.5
    assert abs(swiglu.n_weights - plain.n_weights) <= 3 * C / 2
    assert GPTConfig(**one_layer, activation="swiglu", d_ff=5).width_ff == 5


@pytest.mark.parametrize("form", FORMS)
def test_n_weights_are_the_matrices_and_the_rotary_tables(form):
    model = GPT(FORMS[form])
    tables = sum(buffer.numel() for buffer in model.buffers())
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert FORMS[form].n_weights == matrices + tables


# Initial weights.

@pytest.mark.parametrize("options, shrink", [
    ({}, 1 / 4), (dict(post_norm=True), 1), (dict(activation="swiglu", tied=False), 1 / 4),
])
def test_initialisation(options, shrink):
    """N(0, 0.02), and 1/√(2·8) of it for GPT-2's output projections; GPT-1 does not shrink them.

    A matrix has at least 1024 numbers, so its standard deviation is known to 2 percent or so.
    """
    config = GPTConfig(50, 16, n_layers=8, n_heads=4, d_model=64, **options)
    model, again = (GPT(config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            gain = "norm" in name and name.endswith("weight")
            assert (p == (1 if gain else 0)).all(), name
        else:
            adds = name.endswith(("attention.out.weight", "feed_forward.out.weight"))
            std = 0.02 * shrink if adds else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.1), name


def test_an_untrained_model_is_uniform():
    model = GPT(GPTConfig(50, 16, n_layers=8, n_heads=4, d_model=64),
                torch.Generator().manual_seed(3))
    loss = F.cross_entropy(model(torch.arange(16)[None])[0], torch.arange(1, 17))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


# Refusals: the last legal value and the first illegal one.

@pytest.mark.parametrize("wrong, message", [
    (dict(n_layers=0), "n_layers must be a whole number of at least 1, not 0"),
    (dict(d_model=12.0), "d_model must be a whole number of at least 1, not 12.0"),
    (dict(d_ff=0), "d_ff must be a whole number of at least 1, not 0"),
    (dict(n_heads=5), "d_model 12 is not a multiple of n_heads 5; try d_model 15"),
    (dict(n_heads=4, positions="rotary"), "width of a head must be even, not d_model 12 / n_heads"),
    (dict(positions="absolute"), "positions must be one of learned, rotary, none, not 'absolute'"),
    (dict(norm="batch"), "norm must be one of layer, rms, not 'batch'"),
    (dict(activation="tanh"), "activation must be one of gelu, gelu_tanh, relu2, swiglu"),
    (dict(norm_eps=0.0), "norm_eps must be a positive number, not 0.0"),
    (dict(tied="no"), "tied must be True or False, not 'no'"),
])
def test_bad_configurations_say_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**SIZES | wrong)


def test_the_last_legal_configurations():
    for legal in (dict(n_layers=1), dict(d_ff=1), dict(n_heads=12), dict(n_heads=6),
                  dict(n_heads=4), dict(norm_eps=1e-12), dict(vocab_size=1, context_length=1)):
        model = GPT(GPTConfig(**SIZES | legal))
        assert model(torch.zeros(1, 1, dtype=torch.long)).isfinite().all()
    GPT(GPTConfig(**SIZES | dict(n_heads=6), positions="rotary"))       # heads of width 2


@pytest.mark.parametrize("size", ["vocab_size", "context_length", "n_layers", "d_model", "d_ff"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_model_larger_than_memory_is_refused_in_one_line(size, positions):
    config = GPTConfig(**SIZES | {"n_heads": 2, "d_ff": 8, size: 10**14}, positions=positions)
    with pytest.raises(ValueError, match=f"{size}={10**14}.*cannot be allocated") as error:
        GPT(config)
    assert "\n" not in str(error.value)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="small, medium, large, xl, not 'huge'"):
        GPTConfig.gpt2("huge")


def test_too_long_an_input_is_refused():
    model = GPT(FORMS["gpt2"])
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model(torch.zeros(1, 10, dtype=torch.long))
    cache = model.new_cache()
    model(torch.zeros(1, 9, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="10 tokens do not fit"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


def test_a_token_outside_the_vocabulary_is_refused():
    model = GPT(FORMS["gpt2"])
    assert model(torch.tensor([[0, 10]])).shape == (1, 2, 11)
    for outside in (-1, 11):
        with pytest.raises(ValueError, match="token ids lie between 0 and 10"):
            model(torch.tensor([[0, outside]]))


def test_masks_that_cannot_be_right_are_refused():
    model, tokens = make("gpt2"), torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="a mask is bool"):
        model(tokens, mask=torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"the mask is \(2, 3\) where \(2, 2\) is needed"):
        model(tokens, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 1 of the mask is False everywhere"):
        model(tokens, mask=torch.tensor([[False, True], [False, False]]))
    cache = model.new_cache()
    model(tokens, cache)
    with pytest.raises(ValueError, match=r"the mask is \(2, 1\) where \(2, 3\) is needed"):
        model(tokens[:, :1], cache, torch.ones(2, 1, dtype=torch.bool))     # not the cached tokens


# The transformers library, with our weights under its names.

HUGGING_FACE = {
    "gpt2": {
        "token_embedding": "transformer.wte", "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f", "blocks": "transformer.h", "norm1": "ln_1",
        "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward.inner": "mlp.c_fc", "feed_forward.out": "mlp.c_proj"},
    "llama": {
        "token_embedding": "model.embed_tokens", "output_embedding": "lm_head",
        "final_norm": "model.norm", "blocks": "model.layers", "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm", "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj", "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.inner": "mlp.up_proj", "feed_forward.out": "mlp.down_proj"},
}
HUGGING_FACE["gpt1"] = HUGGING_FACE["gpt2"] | {
    "token_embedding": "transformer.tokens_embed",
    "position_embedding": "transformer.positions_embed"}


def as_conv1d(state: dict) -> dict:
    """q, k and v as one matrix, and the matrices of blocks transposed: GPT-1's and 2's format."""
    state = dict(state)
    for i, kind in itertools.product(range(2), ("weight", "bias")):
        parts = [state.pop(f"blocks.{i}.attention.{part}.{kind}")
                 for part in ("query", "key", "value")]
        state[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return {name: value.T if name.startswith("blocks") and value.dim() == 2 else value
            for name, value in state.items()}


def renamed(state: dict, names: dict) -> dict:
    """The same state dict with each of our names replaced by theirs."""
    theirs = {}
    for name, value in state.items():
        for our_part, their_part in names.items():
            name = name.replace(our_part, their_part)
        theirs[name] = value
    return theirs


def hugging_face(transformers, form: str):
    special = dict(bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    gpt = dict(vocab_size=11, n_positions=9, n_embd=12, n_layer=2, n_head=3, embd_pdrop=0.0,
               attn_pdrop=0.0, resid_pdrop=0.0, **special)
    if form == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt))
    if form == "gpt1":
        return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**gpt))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=32, max_position_embeddings=9, rms_norm_eps=0.25, **special))


@pytest.mark.parametrize("form", HUGGING_FACE)
def test_the_same_as_transformers(form):
    transformers = pytest.importorskip("transformers")
    ours, theirs = make(form), hugging_face(transformers, form).double().eval()
    state = ours.state_dict() if form == "llama" else as_conv1d(ours.state_dict())
    missing, unexpected = theirs.load_state_dict(renamed(state, HUGGING_FACE[form]), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected        # tied to the embedding
    tokens = random_tokens(3, 9)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
        torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.3                                         # values that could differ
