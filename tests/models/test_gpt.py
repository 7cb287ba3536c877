"""GPT against a plain-Python forward pass, its own cache, the chain rule, and the parameter counts others published."""
import cmath
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig

FORMS = {
    "gpt2": GPTConfig(11, 9, n_layers=2, n_heads=3, d_model=12),
    "modern": GPTConfig.modern(11, 9, n_layers=2, n_heads=3, d_model=12),
    "gpt1": GPTConfig(11, 9, n_layers=2, n_heads=3, d_model=12, post_norm=True),
    "no positions": GPTConfig(11, 9, n_layers=2, n_heads=3, d_model=12, positions="none"),
}


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)                              # before the model is built: rotary tables too are to be exact
    yield
    torch.set_default_dtype(torch.float32)


def make(form: str, seed: int = 0) -> GPT:
    """Weights of order 1, biases and gains included: at the usual 0.02 many mistakes hide below the tolerance."""
    model, generator = GPT(FORMS[form]), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model


def layer_norm(x, norm):
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return [(a - mean) / math.sqrt(variance + 1e-5) * g + b for a, g, b in zip(x, norm.weight.tolist(), norm.bias.tolist())]


def rms_norm(x, norm):
    size = math.sqrt(sum(a * a for a in x) / len(x))
    return [a / size * g for a, g in zip(x, norm.weight.tolist())]


def linear(x, layer):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [sum(w * a for w, a in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), bias)]


def gelu(a):
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def turned(x, t):
    """Dimensions i and i + half are a point in the plane, turned by t / 10000^(i / half) radians: a complex product."""
    half = len(x) // 2
    points = [complex(x[i], x[i + half]) * cmath.exp(1j * t / 10_000 ** (i / half)) for i in range(half)]
    return [p.real for p in points] + [p.imag for p in points]


def add(xs, ys):
    return [[a + b for a, b in zip(x, y)] for x, y in zip(xs, ys)]


def by_hand(model: GPT, form: str, tokens: list[int]) -> list[list[float]]:
    """GPT in lists of floats, one number at a time: no tensor operation in common with the library.

    What a form is stands here once more and is not read off its configuration.
    """
    modern, post_norm = form == "modern", form == "gpt1"
    norm, activation = (rms_norm, lambda a: max(a, 0.0) ** 2) if modern else (layer_norm, gelu)
    embedding, width = model.token_embedding.weight.tolist(), 12 // 3
    xs = [embedding[token] for token in tokens]
    if form in ("gpt1", "gpt2"):
        xs = add(xs, model.position_embedding.weight.tolist())
    for block in model.blocks:
        a, mlp = block.attention, block.feed_forward
        read = xs if post_norm else [norm(x, block.norm1) for x in xs]
        whole = [[linear(x, layer) for x in read] for layer in (a.query, a.key, a.value)]
        q, k, v = ([[y[h:h + width] for h in range(0, 12, width)] for y in ys] for ys in whole)     # [time][head][dimension]
        if modern:
            q, k = ([[turned(rms_norm(head, gain), t) for head in heads] for t, heads in enumerate(ys)]
                    for ys, gain in ((q, a.query_norm), (k, a.key_norm)))
        attended = []
        for t in range(len(xs)):
            joined = []
            for h in range(3):
                scores = [sum(x * y for x, y in zip(q[t][h], k[s][h])) / math.sqrt(width) for s in range(t + 1)]
                weights = [math.exp(s) / sum(math.exp(r) for r in scores) for s in scores]
                joined += [sum(w * v[s][h][d] for s, w in enumerate(weights)) for d in range(width)]
            attended.append(linear(joined, a.out))
        xs = add(xs, attended)
        if post_norm:
            xs = [norm(x, block.norm1) for x in xs]
        read = xs if post_norm else [norm(x, block.norm2) for x in xs]
        xs = add(xs, [linear([activation(y) for y in linear(x, mlp.inner)], mlp.out) for x in read])
        if post_norm:
            xs = [norm(x, block.norm2) for x in xs]
    final = xs if post_norm else [norm(x, model.final_norm) for x in xs]
    return [[sum(x * e for x, e in zip(h, row)) for row in embedding] for h in final]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_plain_python(form):
    model, tokens = make(form), [3, 1, 4, 1, 5]
    torch.testing.assert_close(model(torch.tensor([tokens]))[0], torch.tensor(by_hand(model, form, tokens)), atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_of_word_embeddings_is_those_words(form):
    """What stands in front counts for positions, attention and the context's length; without it nothing is different."""
    model, words, tokens = make(form), torch.tensor([7, 2, 9]), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    both = model(torch.cat([words.expand(2, -1), tokens], 1))
    prefix = model.token_embedding.weight[words]
    torch.testing.assert_close(model.unembed(model.hidden(tokens, prefix=prefix)), both)
    cache = model.new_cache()
    model.hidden(tokens[:, :1], cache, prefix)
    torch.testing.assert_close(model(tokens[:, 1:], cache), both[:, 4:])
    torch.testing.assert_close(model.hidden(tokens, prefix=prefix[:0]), model.hidden(tokens), rtol=0, atol=0)
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model.hidden(torch.zeros(1, 7, dtype=torch.long), prefix=prefix)


@pytest.mark.parametrize("form", FORMS)
def test_padding_on_the_left_is_not_seen_and_counts_for_no_position(form):
    """With a prefix in front, as a soft prompt has it, and the rest through the cache."""
    model, text = make(form), torch.tensor([[3, 1, 4, 1]])
    prefix = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    wanted = model.unembed(model.hidden(text, prefix=prefix))[:, 2:]
    padded = torch.cat([torch.tensor([[9, 9, 9]]), text], 1)
    mask = torch.tensor([[True, True, False, False, False, True, True, True, True]])
    torch.testing.assert_close(model.unembed(model.hidden(padded, prefix=prefix, mask=mask))[:, 5:], wanted, atol=1e-10, rtol=0)
    cache = model.new_cache()
    model.hidden(padded[:, :5], cache, prefix, mask[:, :7])
    torch.testing.assert_close(model(padded[:, 5:], cache, mask), wanted[:, 2:], atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match=r"the mask is \(1, 9\) where \(1, 7\)"):
        model(padded, mask=mask)


@pytest.mark.parametrize("form", FORMS)
def test_the_future_has_no_influence(form):
    model, generator = make(form), torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (2, 7), generator=generator)
    before = model(tokens)
    for t in range(1, 7):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-12, rtol=0)
        assert (after[:, t] - before[:, t]).abs().amax() > 1e-3         # and the present has


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [4, 1, 2], [2, 5]])
def test_cached_pieces_equal_the_whole(form, pieces):
    model = make(form)
    tokens = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache()
    parts = [model(part, cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-11, rtol=0)


def test_order_matters_only_with_positions():
    tokens = torch.tensor([[1, 2, 3, 4]])
    swapped = tokens[:, [1, 0, 2, 3]]
    for form in FORMS:
        same = torch.allclose(make(form)(tokens)[0, -1], make(form)(swapped)[0, -1], atol=1e-9)
        # Without positions one layer cannot tell; two can, because the causal mask itself lets layer 1 count its predecessors.
        assert not same, form
    one_layer = GPT(GPTConfig(11, 9, n_layers=1, n_heads=3, d_model=12, positions="none"))
    torch.testing.assert_close(one_layer(tokens)[0, -1], one_layer(swapped)[0, -1])


def test_tied_gradient_is_the_sum_of_both_uses():
    model = make("gpt2")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).backward()
    tied = model.token_embedding.weight.grad.clone()
    step, measured = 1e-6, torch.zeros_like(tied)                       # finite differences of the whole: they cannot forget a use
    with torch.no_grad():
        for i in [1, 3, 5, 7]:
            for j in range(0, 12, 5):
                losses = []
                for sign in (1, -1):
                    model.token_embedding.weight[i, j] += sign * step
                    losses.append(F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).item())
                    model.token_embedding.weight[i, j] -= sign * step
                measured[i, j] = (losses[0] - losses[1]) / (2 * step)
                assert tied[i, j].item() == pytest.approx(measured[i, j].item(), abs=1e-7)
    assert tied[7].abs().max() > 0                                      # token 7 is not in the input: this comes from the output alone


# GPT-2 as released: 50257·C + 1024·C + L(12C² + 13C) + 2C. GPT-1: 40478·C + 512·C + L(12C² + 13C), no final norm.
@pytest.mark.parametrize("config, count", [
    (GPTConfig.gpt1(), 116_534_784),
    (GPTConfig.gpt2("small"), 124_439_808), (GPTConfig.gpt2("medium"), 354_823_168),
    (GPTConfig.gpt2("large"), 774_030_080), (GPTConfig.gpt2("xl"), 1_557_611_200),
    # And, published nowhere, VC + TC + L(4(C² + C) + 2CF + F + C + 4C) + 2C; without biases VC + L(4C² + 2CF + 2C + 2D) + C.
    (GPTConfig(11, 9, n_layers=2, n_heads=3, d_model=12, d_ff=7), 1_982), (FORMS["modern"], 3_664),
])
def test_parameter_counts(config, count):
    with torch.device("meta"):
        assert count_parameters(GPT(config)) == count


def test_initialisation():
    model = GPT(GPTConfig(50, 16, n_layers=8, n_heads=4, d_model=64), torch.Generator().manual_seed(3))
    again = GPT(GPTConfig(50, 16, n_layers=8, n_heads=4, d_model=64), torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name
        else:                                                           # at least 1024 numbers: the error of a std is at most 2 percent
            adds = name.endswith(("attention.out.weight", "feed_forward.out.weight"))       # to the residual stream, 2 × 8 of them
            assert p.std().item() == pytest.approx(0.02 / 4 if adds else 0.02, rel=0.1), name
    loss = F.cross_entropy(model(torch.arange(16)[None])[0], torch.arange(1, 17))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)          # an untrained model knows nothing


@pytest.mark.parametrize("wrong, word", [
    (dict(n_heads=5), "d_model"), (dict(n_layers=0), "n_layers"), (dict(positions="absolute"), "positions"),
    (dict(norm="batch"), "norm"), (dict(activation="tanh"), "activation"), (dict(d_model=12.0), "d_model"),
])
def test_bad_configurations_say_why(wrong, word):
    with pytest.raises(ValueError, match=word):
        GPT(GPTConfig(**{**dict(vocab_size=11, context_length=9, n_layers=2, n_heads=3, d_model=12), **wrong}))


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        GPT(FORMS["gpt2"])(torch.zeros(1, 10, dtype=torch.long))
    model = GPT(FORMS["gpt2"])
    cache = model.new_cache()
    model(torch.zeros(1, 9, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="10 tokens"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("size, heads", [("small", 12), ("medium", 16), ("large", 20), ("xl", 25)])
def test_published_heads(size, heads):
    """No count of parameters would notice another number of heads. GPT-2's are all 64 wide."""
    assert GPTConfig.gpt2(size).n_heads == heads == GPTConfig.gpt2(size).d_model // 64


def test_an_unknown_size_and_a_mask_that_is_none_are_refused():
    with pytest.raises(ValueError, match="small, medium, large, xl, not 'huge'"):
        GPTConfig.gpt2("huge")
    with pytest.raises(ValueError, match="bool"):
        make("gpt2")(torch.tensor([[1, 2]]), mask=torch.ones(1, 2))
    for d_ff in (0, -1, 2.0):
        with pytest.raises(ValueError, match="d_ff"):
            GPTConfig(11, 9, 2, 3, 12, d_ff=d_ff)
