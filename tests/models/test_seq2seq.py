"""The translator against torch.nn's LSTMs and loops, and its beam against every translation."""
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from minigpt.generation import beam_search, generate
from minigpt.models.attention import AdditiveAttention
from minigpt.models.seq2seq import Seq2Seq, Seq2SeqConfig
from minigpt.training.losses import cross_entropy

START, END = 1, 2
B, S, T, E, H = 3, 7, 5, 4, 6
SOURCE_WORDS, TARGET_WORDS = 11, 13
EXACT = {"atol": 1e-12, "rtol": 0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(attention: bool, seed: int = 0, target_words: int = TARGET_WORDS) -> Seq2Seq:
    """A model in float64. No parameter is 0, so that none can be left out unnoticed."""
    config = Seq2SeqConfig(SOURCE_WORDS, target_words, E, H, attention)
    model = Seq2Seq(config, seeded(seed)).double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=seeded(seed + 1), dtype=torch.float64)
    return model


@pytest.fixture
def batch():
    generator = seeded(3)
    source = torch.randint(3, SOURCE_WORDS, (B, S), generator=generator)
    target = torch.randint(3, TARGET_WORDS, (B, T), generator=generator)
    return source, torch.tensor([7, 2, 5]), target


# ── Additive attention ──────────────────────────────────────────────────────────────────────────

@pytest.fixture
def additive():
    generator = seeded(0)
    attention = AdditiveAttention(d_query=4, d_key=6, d_attention=5, generator=generator).double()
    s = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    h = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    return attention, s, h


def test_score_in_loops(additive):
    attention, s, h = additive
    W = torch.cat([attention.query.weight, attention.key.weight], dim=1).tolist()
    v = attention.v.tolist()
    scores = attention.score(s, attention.project(h))
    assert scores.shape == (2, 3, 7)
    for b, t, i in itertools.product(range(2), range(3), range(7)):
        both = s[b, t].tolist() + h[b, i].tolist()
        hidden = [math.tanh(sum(w * x for w, x in zip(row, both))) for row in W]
        expected = sum(a * x for a, x in zip(v, hidden))
        assert scores[b, t, i].item() == pytest.approx(expected, abs=1e-12)


def test_weights_are_a_softmax_over_words_only(additive):
    attention, s, h = additive
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    context, weights = attention(s, h, mask)
    scores = attention.score(s, attention.project(h)).tolist()
    for b, t in itertools.product(range(2), range(3)):
        n = (7, 4)[b]
        e = [math.exp(x) for x in scores[b][t][:n]]
        expected = [x / sum(e) for x in e]
        assert weights[b, t, :n].tolist() == pytest.approx(expected, abs=1e-12)
        assert weights[b, t, n:].tolist() == [0.0] * (7 - n)
        average = [sum(w * h[b, i, d].item() for i, w in enumerate(expected)) for d in range(6)]
        assert context[b, t].tolist() == pytest.approx(average, abs=1e-12)


def test_no_mask_and_keys_projected_before(additive):
    attention, s, h = additive
    plain = attention(s, h)
    everything = attention(s, h, torch.ones(2, 7, dtype=torch.bool), attention.project(h))
    for got, expected in zip(everything, plain):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_scores_start_with_order_one():
    generator = seeded(0)
    attention = AdditiveAttention(80, 160, 120, generator)
    s = torch.randn(90, 10, 80, generator=generator)
    h = torch.randn(90, 11, 160, generator=generator)
    assert attention.query(s).std().item() == pytest.approx(1, abs=0.05)
    assert attention.project(h).std().item() == pytest.approx(1, abs=0.05)
    assert 0.4 < attention.score(s, attention.project(h)).std() < 1
    again = AdditiveAttention(80, 160, 120, seeded(0))
    assert all(torch.equal(a, b) for a, b in zip(attention.parameters(), again.parameters()))


# ── The model against one written with torch.nn ─────────────────────────────────────────────────

def as_torch(ours, cls=nn.LSTMCell):
    """torch's LSTM with our weights."""
    suffix = "_l0" if cls is nn.LSTM else ""
    theirs = cls(ours.d_in, ours.d_hidden).double()
    with torch.no_grad():
        getattr(theirs, "weight_ih" + suffix).copy_(ours.W)
        getattr(theirs, "weight_hh" + suffix).copy_(ours.U)
        getattr(theirs, "bias_ih" + suffix).copy_(ours.b)
        getattr(theirs, "bias_hh" + suffix).zero_()
    return theirs


def attention_by_hand(attention, s, annotations):
    """The context (2H,) and the weights (S,) of one decoder state."""
    scores = torch.stack([
        attention.v @ torch.tanh(attention.query.weight @ s + attention.key.weight @ h)
        for h in annotations
    ])
    alpha = scores.exp() / scores.exp().sum()
    return sum(alpha[i] * annotations[i] for i in range(len(annotations))), alpha


@torch.no_grad()
def by_hand(model, source, target):
    """Logits (T, V) and weights (T, S) of one unpadded pair (S,) and (T,), word by word."""
    x = model.source_embedding.weight[source]
    right = as_torch(model.encoder.rightwards, nn.LSTM)(x)[0]                   # (S, H)
    left = as_torch(model.encoder.leftwards, nn.LSTM)(x.flip(0))[0].flip(0)
    annotations, summary = torch.cat([right, left], 1), torch.cat([right[-1], left[0]])
    cell = as_torch(model.decoder)
    s = torch.tanh(model.start.weight @ summary + model.start.bias)
    c = torch.zeros_like(s)
    logits, weights = [], []
    for word in target:
        context = summary
        if model.attention:
            context, alpha = attention_by_hand(model.attention, s, annotations)
            weights.append(alpha)
        x = torch.cat([model.target_embedding.weight[word], context])
        s, c = (v[0] for v in cell(x[None], (s[None], c[None])))
        hidden = model.hidden.weight @ torch.cat([s, context]) + model.hidden.bias
        logits.append(model.out_embedding.weight @ torch.tanh(hidden) + model.out_embedding.bias)
    return torch.stack(logits), torch.stack(weights) if weights else None


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_a_padded_batch_equals_each_row_by_hand(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    logits, weights = model.decode(target, model.encode(source, lengths))
    assert logits.shape == (B, T, TARGET_WORDS)
    assert torch.equal(model(source, lengths, target), logits)
    for b, n in enumerate(lengths.tolist()):
        expected, alpha = by_hand(model, source[b, :n], target[b])
        torch.testing.assert_close(logits[b], expected, **EXACT)
        if attention:
            torch.testing.assert_close(weights[b, :, :n], alpha, **EXACT)
            assert (weights[b, :, n:] == 0).all()
        else:
            assert weights is None


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_padding_is_never_read(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    before = model(source, lengths, target)
    mask = torch.arange(S) < lengths[:, None]
    other = torch.where(mask, source, (source + 1) % SOURCE_WORDS)
    assert torch.equal(model(other, lengths, target), before)
    wider = torch.cat([source, torch.full((B, 2), 4)], 1)
    torch.testing.assert_close(model(wider, lengths, target), before, **EXACT)
    inside = source.clone()
    inside[1, 1] = (inside[1, 1] + 1) % SOURCE_WORDS            # the last word of the shortest row
    changed = (model(inside, lengths, target) - before).abs().amax((1, 2))
    assert changed[1] > 1e-3 and changed[0] == 0 and changed[2] == 0


@torch.no_grad()
def test_no_word_depends_on_a_later_one(batch):
    source, lengths, target = batch
    model = build(True)
    later = target.clone()
    later[:, 3] = (later[:, 3] + 1) % TARGET_WORDS
    difference = model(source, lengths, later) - model(source, lengths, target)
    moved = difference.abs().amax((0, 2))
    assert (moved[:3] == 0).all() and (moved[3:] > 1e-4).all()


@torch.no_grad()
def test_without_attention_the_decoder_reads_only_the_summary(batch):
    source, lengths, target = batch
    model = build(False)
    state = model.encode(source, lengths)
    blind = replace(state, annotations=0 * state.annotations, mask=~state.mask)
    assert torch.equal(model.decode(target, blind)[0], model(source, lengths, target))
    assert "attention" not in " ".join(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("attention", [True, False])
def test_every_parameter_gets_a_gradient(attention, batch):
    model = build(attention)
    source, lengths, target = batch
    cross_entropy(model(source, lengths, target[:, :-1]), target[:, 1:]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 1e-6, name


def test_a_generator_fixes_the_weights():
    config = Seq2SeqConfig(SOURCE_WORDS, TARGET_WORDS, E, H)
    models = []
    for seed in (5, 6):                                         # of torch's global generator
        torch.manual_seed(seed)
        models.append(Seq2Seq(config, seeded(0)))
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models)))


def test_initial_weights():
    """Embeddings have std 1, and linear layers 1/√inputs, where the inputs are 2H, 3H and H."""
    model = Seq2Seq(Seq2SeqConfig(90, 70, d_embedding=40, d_hidden=60), seeded(0))
    stds = {"source_embedding": 1, "target_embedding": 1,
            "start": 120**-0.5, "hidden": 180**-0.5, "out_embedding": 60**-0.5}
    for name, std in stds.items():
        assert getattr(model, name).weight.std().item() == pytest.approx(std, rel=0.1)
    assert all((getattr(model, name).bias == 0).all() for name in list(stds)[2:])


# ── Generation ──────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_teacher_forcing_equals_step_by_step(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    decoder = model.decoder_for(source, lengths)
    forced = model(source, lengths, target)
    for chunks in ([1] * T, [2, 3], [T]):
        cache = decoder.new_cache()
        pieces = [decoder(chunk, cache) for chunk in target.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), forced, **EXACT)
    assert torch.equal(decoder(target), forced)                 # earlier calls have changed nothing


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_greedy_writes_the_likeliest_words_for_each_row(attention, batch):
    source, lengths, _ = batch
    model = build(attention)
    start = torch.full((B, 1), START)
    written, without_cache = (
        generate(model.decoder_for(source, lengths), start, 6, temperature=0, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(written, without_cache)
    for b, n in enumerate(lengths.tolist()):
        sentence = [START]
        for _ in range(6):
            logits, _ = by_hand(model, source[b, :n], torch.tensor(sentence))
            sentence.append(int(logits[-1].argmax()))
        assert written[b].tolist() == sentence


def every_translation(model, source, words, longest):
    """{sequence: log P} of all translations that end with END, or are cut at `longest` words."""
    found = {}

    def grow(sequence, logprob):
        if sequence[-1] == END or len(sequence) == longest + 1:
            found[tuple(sequence)] = logprob
            return
        logprobs = by_hand(model, source, torch.tensor(sequence))[0][-1].log_softmax(-1)
        for word in range(words):
            grow(sequence + [word], logprob + logprobs[word].item())

    grow([START], 0.0)
    return found


def until_end(sentence: list[int]) -> tuple:
    """The words up to the first END, or all of them."""
    return tuple(sentence[:sentence.index(END) + 1] if END in sentence else sentence)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_beam_against_every_translation(attention, seed):
    words, longest = 4, 3
    model = build(attention, seed, target_words=words)
    for parameter in (model.out_embedding.weight, model.hidden.weight):
        parameter *= 3                                          # far from uniform
    source, start = torch.tensor([5, 9, 3, 7]), torch.tensor([[START]])
    tree = every_translation(model, source, words, longest)
    assert sum(math.exp(p) for p in tree.values()) == pytest.approx(1)
    decoder = model.decoder_for(source[None], torch.tensor([4]))

    n_all = words**longest                                      # a beam that keeps everything
    tokens, logprobs = beam_search(decoder, start, longest, n_beams=n_all, stop_token=END)
    assert len(tokens) == len(tree)
    best_first = sorted(tree.values(), reverse=True)
    for row, logprob, p in zip(tokens.tolist(), logprobs.tolist(), best_first):
        assert logprob == pytest.approx(tree[until_end(row)], abs=1e-9)
        assert logprob == pytest.approx(p, abs=1e-9)

    greedy = generate(decoder, start, longest, temperature=0, stop_token=END)[0].tolist()
    greedy_logprob = tree[until_end(greedy)]
    for n_beams in (1, 2, 3):
        _, logprobs = beam_search(decoder, start, longest, n_beams, stop_token=END)
        assert logprobs[0].item() >= greedy_logprob - 1e-9
        if n_beams == 1:
            assert logprobs[0].item() == pytest.approx(greedy_logprob, abs=1e-9)


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("field", [
    "source_vocab_size", "target_vocab_size", "d_embedding", "d_hidden"
])
def test_sizes_are_refused(field):
    config, zero = Seq2SeqConfig(1, 1, 1, 1), torch.tensor([[0]])
    assert Seq2Seq(config)(zero, torch.tensor([1]), zero).shape == (1, 1, 1)
    with pytest.raises(ValueError, match=f"{field} must be a whole number of at least 1, not 0"):
        replace(config, **{field: 0})


@pytest.mark.parametrize("lengths", [[7, 0, 5], [7, 8, 5], [7, 2]])
def test_lengths_are_refused(lengths, batch):
    build(True).encode(batch[0], torch.tensor([7, 1, 5]))
    with pytest.raises(ValueError, match="lengths must be 3 numbers from 1 to 7"):
        build(True).encode(batch[0], torch.tensor(lengths))


@pytest.mark.parametrize("shape", [(B, 0), (B - 1, T), (1, T), (B,)])
def test_targets_are_refused(shape, batch):
    model = build(True)
    state = model.encode(*batch[:2])
    with pytest.raises(ValueError, match=r"target is \(3, words\)"):
        model.decode(torch.zeros(shape, dtype=torch.long), state)


def test_unknown_words_are_refused(batch):
    source, lengths, target = batch
    model = build(True)
    for bad in (-1, SOURCE_WORDS):
        with pytest.raises(ValueError, match="between 0 and 10"):
            model(torch.full_like(source, bad), lengths, target)
    for bad in (-1, TARGET_WORDS):
        with pytest.raises(ValueError, match="between 0 and 12"):
            model(source, lengths, torch.full_like(target, bad))
