"""The translator against loops, against itself alone, step by step and padded, and its beam against every translation there is."""
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


def build(attention, seed=0, source_words=11, target_words=13):
    config = Seq2SeqConfig(source_words, target_words, d_embedding=E, d_hidden=H, attention=attention)
    model = Seq2Seq(config, torch.Generator().manual_seed(seed)).double()
    for parameter in model.parameters():                                # nothing at 0, so that nothing can be left out unseen
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(3, 11, (B, S), generator=generator)
    target = torch.randint(3, 13, (B, T), generator=generator)
    return source, torch.tensor([7, 2, 5]), target


# ── Additive attention ─────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def additive():
    generator = torch.Generator().manual_seed(0)
    attention = AdditiveAttention(d_query=4, d_key=6, d_attention=5, generator=generator).double()
    s = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    h = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    return attention, s, h


def test_score_in_loops(additive):
    attention, s, h = additive
    W = torch.cat([attention.query.weight, attention.key.weight], dim=1).tolist()
    scores = attention.score(s, attention.project(h))
    assert scores.shape == (2, 3, 7)
    for b, t, i in itertools.product(range(2), range(3), range(7)):
        both = s[b, t].tolist() + h[b, i].tolist()
        expected = sum(v * math.tanh(sum(w * x for w, x in zip(row, both))) for v, row in zip(attention.v.tolist(), W))
        assert scores[b, t, i].item() == pytest.approx(expected, abs=1e-12)


def test_weights_are_a_softmax_over_words_only(additive):
    attention, s, h = additive
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    context, weights = attention(s, h, mask)
    scores = attention.score(s, attention.project(h)).tolist()
    for b, t in itertools.product(range(2), range(3)):
        n = (7, 4)[b]
        e = [math.exp(x) for x in scores[b][t][:n]]
        expected = [x / sum(e) for x in e] + [0.0] * (7 - n)
        assert weights[b, t].tolist() == pytest.approx(expected, abs=1e-12)
        assert sum(weights[b, t].tolist()) == pytest.approx(1, abs=1e-12)
        assert weights[b, t, n:].tolist() == [0.0] * (7 - n)
        average = [sum(w * h[b, i, d].item() for i, w in enumerate(expected)) for d in range(6)]
        assert context[b, t].tolist() == pytest.approx(average, abs=1e-12)


def test_without_a_mask_and_with_the_keys_projected_before(additive):
    attention, s, h = additive
    plain = attention(s, h)
    everything = attention(s, h, torch.ones(2, 7, dtype=torch.bool), attention.project(h))
    for got, expected in zip(everything, plain):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_attention_starts_with_scores_of_order_one():
    generator = torch.Generator().manual_seed(0)
    attention = AdditiveAttention(80, 160, 120, generator)
    s, h = torch.randn(90, 10, 80, generator=generator), torch.randn(90, 11, 160, generator=generator)
    assert attention.query(s).std().item() == pytest.approx(1, abs=0.05)
    assert attention.project(h).std().item() == pytest.approx(1, abs=0.05)
    assert 0.4 < attention.score(s, attention.project(h)).std() < 1
    again = AdditiveAttention(80, 160, 120, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(attention.parameters(), again.parameters()))


# ── The model against one written out with torch.nn ────────────────────────────────────────────────────────────────────

def as_torch(ours, cls=nn.LSTMCell, **options):
    """torch's own LSTM with our weights."""
    suffix = "_l0" if cls is nn.LSTM else ""
    theirs = cls(ours.d_in, ours.d_hidden, **options).double()
    with torch.no_grad():
        getattr(theirs, "weight_ih" + suffix).copy_(ours.W)
        getattr(theirs, "weight_hh" + suffix).copy_(ours.U)
        getattr(theirs, "bias_ih" + suffix).copy_(ours.b)
        getattr(theirs, "bias_hh" + suffix).zero_()
    return theirs


@torch.no_grad()
def by_hand(model, source, target):
    """Logits (T, V) and weights (T, S) of one unpadded pair, (S,) and (T,): torch's LSTMs and the equations word by word."""
    x = model.source_embedding.weight[source]
    right = as_torch(model.encoder.rightwards, nn.LSTM)(x)[0]           # (S, H)
    left = as_torch(model.encoder.leftwards, nn.LSTM)(x.flip(0))[0].flip(0)
    annotations, summary = torch.cat([right, left], 1), torch.cat([right[-1], left[0]])
    cell = as_torch(model.decoder)
    s = torch.tanh(model.start.weight @ summary + model.start.bias)
    c = torch.zeros_like(s)
    logits, weights = [], []
    for word in target:
        context = summary
        if model.attention:
            a = model.attention
            scores = torch.stack([a.v @ torch.tanh(a.query.weight @ s + a.key.weight @ h) for h in annotations])
            alpha = scores.exp() / scores.exp().sum()
            context = sum(alpha[i] * annotations[i] for i in range(len(source)))
            weights.append(alpha)
        s, c = (v[0] for v in cell(torch.cat([model.target_embedding.weight[word], context])[None], (s[None], c[None])))
        hidden = torch.tanh(model.hidden.weight @ torch.cat([s, context]) + model.hidden.bias)
        logits.append(model.out_embedding.weight @ hidden + model.out_embedding.bias)
    return torch.stack(logits), torch.stack(weights) if weights else None


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_a_padded_batch_is_every_row_by_hand(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    logits, weights = model.decode(target, model.encode(source, lengths))
    assert logits.shape == (B, T, 13) and torch.equal(model(source, lengths, target), logits)
    for b, n in enumerate(lengths.tolist()):
        expected, alpha = by_hand(model, source[b, :n], target[b])
        torch.testing.assert_close(logits[b], expected, rtol=0, atol=1e-12)
        if attention:
            torch.testing.assert_close(weights[b, :, :n], alpha, rtol=0, atol=1e-12)
            assert (weights[b, :, n:] == 0).all()
        else:
            assert weights is None


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_what_stands_in_the_padding_is_never_seen(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    before = model(source, lengths, target)
    mask = torch.arange(S) < lengths[:, None]
    other = torch.where(mask, source, (source + 1) % 11)
    assert torch.equal(model(other, lengths, target), before)
    wider = torch.cat([source, torch.full((B, 2), 4)], 1)
    torch.testing.assert_close(model(wider, lengths, target), before, rtol=0, atol=1e-12)
    inside = source.clone()
    inside[1, 1] = (inside[1, 1] + 1) % 11                              # the last real word of the shortest row
    changed = (model(inside, lengths, target) - before).abs().amax((1, 2))
    assert changed[1] > 1e-3 and changed[0] == 0 and changed[2] == 0


@torch.no_grad()
def test_no_word_depends_on_a_later_one(batch):
    source, lengths, target = batch
    model = build(True)
    later = target.clone()
    later[:, 3] = (later[:, 3] + 1) % 13
    moved = (model(source, lengths, later) - model(source, lengths, target)).abs().amax((0, 2))
    assert (moved[:3] == 0).all() and (moved[3:] > 1e-4).all()


@torch.no_grad()
def test_without_attention_only_the_summary_passes(batch):
    source, lengths, target = batch
    model = build(False)
    state = model.encode(source, lengths)
    blind = replace(state, annotations=torch.zeros_like(state.annotations), mask=~state.mask)
    torch.testing.assert_close(model.decode(target, blind)[0], model(source, lengths, target), rtol=0, atol=0)
    assert "attention" not in " ".join(name for name, _ in model.named_parameters())


def test_every_parameter_learns(batch):
    for attention in (True, False):
        model = build(attention)
        source, lengths, target = batch
        cross_entropy(model(source, lengths, target[:, :-1]), target[:, 1:]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_one_seed_one_model():
    config = Seq2SeqConfig(11, 13, E, H)
    torch.manual_seed(5)
    one = Seq2Seq(config, torch.Generator().manual_seed(0))
    torch.manual_seed(6)
    two = Seq2Seq(config, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_initial_weights():
    """Embeddings of order 1, and linear layers whose outputs vary as much as their inputs: std 1/√inputs, here 2H, 3H and H."""
    model = Seq2Seq(Seq2SeqConfig(90, 70, d_embedding=40, d_hidden=60), torch.Generator().manual_seed(0))
    for layer, std in ((model.source_embedding, 1), (model.target_embedding, 1),
                       (model.start, 120**-0.5), (model.hidden, 180**-0.5), (model.out_embedding, 60**-0.5)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    assert all((layer.bias == 0).all() for layer in (model.start, model.hidden, model.out_embedding))


@pytest.mark.parametrize("lengths", [[7, 0, 5], [7, 8, 5], [7, 2]])
def test_lengths_that_do_not_fit_are_refused(lengths, batch):
    with pytest.raises(ValueError, match="lengths must be 3 numbers from 1 to 7"):
        build(True).encode(batch[0], torch.tensor(lengths))


# ── Writing ────────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_teacher_forcing_is_step_by_step(attention, batch):
    source, lengths, target = batch
    model = build(attention)
    decoder = model.decoder_for(source, lengths)
    forced = model(source, lengths, target)
    for chunks in ([1] * T, [2, 3], [T]):
        cache = decoder.new_cache()
        pieces = torch.cat([decoder(chunk, cache) for chunk in target.split(chunks, dim=1)], dim=1)
        torch.testing.assert_close(pieces, forced, rtol=0, atol=1e-12)
    torch.testing.assert_close(decoder(target), forced, rtol=0, atol=0)              # no cache, and nothing left of earlier calls


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_greedy_writes_the_likeliest_word_of_its_own_sentence(attention, batch):
    source, lengths, _ = batch
    model = build(attention)
    start = torch.full((B, 1), START)
    written = generate(model.decoder_for(source, lengths), start, 6, temperature=0)
    assert torch.equal(written, generate(model.decoder_for(source, lengths), start, 6, temperature=0, use_cache=False))
    for b, n in enumerate(lengths.tolist()):
        sentence = [START]
        for _ in range(6):
            sentence.append(int(by_hand(model, source[b, :n], torch.tensor(sentence))[0][-1].argmax()))
        assert written[b].tolist() == sentence


def every_translation(model, source, words, longest):
    """{sequence: log P} of all translations that end with END, or are cut at `longest` words; by hand."""
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


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_beam_against_every_translation(attention):
    words, longest = 4, 3
    for seed in range(3):
        model = build(attention, seed, target_words=words)
        for parameter in (model.out_embedding.weight, model.hidden.weight):
            parameter *= 3                                              # far from uniform, so that greedy can go wrong
        source = torch.tensor([5, 9, 3, 7])
        tree = every_translation(model, source, words, longest)
        assert sum(math.exp(p) for p in tree.values()) == pytest.approx(1)
        ranked = sorted(tree.items(), key=lambda item: -item[1])
        decoder = model.decoder_for(source[None], torch.tensor([4]))
        start = torch.tensor([[START]])

        tokens, logprobs = beam_search(decoder, start, longest, n_beams=words**longest, stop_token=END)
        assert len(tokens) == len(tree)
        for row, logprob, (expected, p) in zip(tokens.tolist(), logprobs.tolist(), ranked):
            row = row[:row.index(END) + 1] if END in row else row
            assert logprob == pytest.approx(tree[tuple(row)], abs=1e-9) and logprob == pytest.approx(p, abs=1e-9)

        greedy = generate(decoder, start, longest, temperature=0, stop_token=END)[0].tolist()
        greedy = tuple(greedy[:greedy.index(END) + 1] if END in greedy else greedy)
        for n_beams in (1, 2, 3):
            tokens, logprobs = beam_search(decoder, start, longest, n_beams, stop_token=END)
            assert logprobs[0].item() >= tree[greedy] - 1e-9
            if n_beams == 1:
                assert logprobs[0].item() == pytest.approx(tree[greedy], abs=1e-9)

