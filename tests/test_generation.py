"""Sampling against exact probabilities, beams against exhaustive search, the cache against recomputation."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.exact import Table
from minigpt.generation import beam_search, generate, left_pad, sampling_logprobs, stream
from minigpt.models.gpt import GPT, GPTConfig

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.5], dtype=torch.float64)


def probabilities(logits):
    weights = [math.exp(x) for x in logits.tolist()]
    return [w / sum(weights) for w in weights]


def sharp_gpt(form="modern", context_length=8, seed=0, vocab_size=7) -> GPT:
    make = GPTConfig.modern if form == "modern" else GPTConfig
    model, generator = GPT(make(vocab_size, context_length, n_layers=2, n_heads=2, d_model=8)).double().eval(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.6, generator=generator)
    return model


def test_temperature_by_hand():
    for t in (0.5, 1.0, 3.0):
        expected = probabilities(LOGITS / t)
        assert sampling_logprobs(LOGITS, temperature=t).exp().tolist() == pytest.approx(expected)
    assert sampling_logprobs(LOGITS, temperature=0).exp().tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 9])
def test_top_k_by_sorting(k):
    p = probabilities(LOGITS)
    kept = sorted(range(5), key=lambda i: -p[i])[:k]
    expected = [p[i] / sum(p[j] for j in kept) if i in kept else 0 for i in range(5)]
    assert sampling_logprobs(LOGITS, top_k=k).exp().tolist() == pytest.approx(expected)


def test_top_k_keeps_exactly_k_among_ties():
    assert (sampling_logprobs(torch.zeros(3, 6), top_k=2).exp() > 0).sum(-1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("p_limit", [0.01, 0.3, 0.5, 0.62, 0.8, 0.95, 0.999, 1.0])
def test_top_p_is_the_smallest_set_that_reaches_p(p_limit):
    p = probabilities(LOGITS)
    kept, mass = [], 0.0
    for i in sorted(range(5), key=lambda i: -p[i]):
        if mass >= p_limit:
            break
        kept.append(i)
        mass += p[i]
    expected = [p[i] / mass if i in kept else 0 for i in range(5)]
    assert sampling_logprobs(LOGITS, top_p=p_limit).exp().tolist() == pytest.approx(expected)


def test_rows_are_cut_each_by_itself():
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS.roll(2)])
    together = sampling_logprobs(rows, temperature=0.7, top_k=4, top_p=0.8)
    alone = torch.stack([sampling_logprobs(row, temperature=0.7, top_k=4, top_p=0.8) for row in rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.5, "top_k": 4, "top_p": 0.9}])
def test_frequencies_match_the_stated_distribution(options):
    model, prompt = sharp_gpt(), torch.tensor([[1, 2, 3]])
    n = 20_000
    drawn = generate(model, prompt.expand(n, -1), 1, generator=torch.Generator().manual_seed(5), **options)[:, -1]
    exact = sampling_logprobs(model(prompt)[0, -1], **options).exp()
    z = (drawn.bincount(minlength=7) / n - exact) / (exact * (1 - exact) / n).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 4


@pytest.mark.parametrize("form", ["modern", "gpt2"])
@pytest.mark.parametrize("n_new", [3, 7, 25])                           # within the context of 8, at its end, and far past it
def test_cache_changes_nothing(form, n_new):
    model, prompt = sharp_gpt(form), torch.tensor([[1, 2, 3], [4, 5, 6]])
    runs = []
    for use_cache in (True, False):
        steps = list(stream(model, prompt, n_new, generator=torch.Generator().manual_seed(6), use_cache=use_cache))
        runs.append((torch.stack([s[0] for s in steps]), torch.stack([s[1] for s in steps])))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-10, rtol=0)


def test_window_moves_by_half_and_the_logits_are_those_of_the_window():
    model, text = sharp_gpt(), [1, 2, 3]
    start = 0
    for new, logprobs in stream(model, torch.tensor([text]), 20, generator=torch.Generator().manual_seed(7)):
        if len(text) - start > 8:
            start = len(text) - 4
        torch.testing.assert_close(logprobs[0], model(torch.tensor([text[start:]]))[0, -1].log_softmax(-1), atol=1e-10, rtol=0)
        text.append(new.item())


def test_greedy_takes_the_argmax():
    model, tokens = sharp_gpt(), torch.tensor([[1, 2]])
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, torch.tensor([[1, 2]]), 5, temperature=0), tokens)


def test_one_seed_one_text():
    model, prompt = sharp_gpt(), torch.tensor([[1]])
    a, b = (generate(model, prompt, 7, generator=torch.Generator().manual_seed(8)) for _ in range(2))
    assert torch.equal(a, b)


def test_stop_token_ends_each_row():
    model, prompt = sharp_gpt(context_length=40), torch.tensor([[1, 2]]).expand(20, -1)
    out = generate(model, prompt, 30, generator=torch.Generator().manual_seed(9), stop_token=3)
    free = generate(model, prompt, 30, generator=torch.Generator().manual_seed(9))
    lengths = []
    for row, other in zip(out[:, 2:].tolist(), free[:, 2:].tolist()):
        end = row.index(3) if 3 in row else len(row)
        lengths.append(end + 1)
        assert row[:end + 1] == other[:end + 1] and set(row[end:]) <= {3}
    assert len(set(lengths)) > 3 and out.size(1) - 2 == min(30, max(lengths))


def listed(model, prompt, n, stop=None):
    """Every continuation with its exact log P, by listing them."""
    answers = {}
    for tail in itertools.product(range(7), repeat=n):
        if stop in tail:
            tail = tail[:tail.index(stop) + 1]
        tokens = torch.tensor([prompt + list(tail)])
        logprobs = model(tokens)[0].log_softmax(-1)
        answers[tail] = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(tail))
    return answers


@pytest.mark.parametrize("stop", [None, 2])
def test_a_full_beam_finds_the_best_of_all(stop):
    for seed in range(3):
        model = sharp_gpt(seed=seed)
        answers = listed(model, [2, 1, 2], 3, stop)                     # the prompt ends in the stop token: that must not count as an end
        best = sorted(answers.items(), key=lambda item: -item[1])
        sequences, scores = beam_search(model, torch.tensor([[2, 1, 2]]), 3, n_beams=49, stop_token=stop)
        assert scores[0].item() == pytest.approx(best[0][1], abs=1e-9)
        assert tuple(sequences[0, 3:].tolist())[:len(best[0][0])] == best[0][0]
        for sequence, score in zip(sequences[:10, 3:].tolist(), scores):
            tail = tuple(sequence[:sequence.index(stop) + 1] if stop in sequence else sequence)
            assert answers[tail] == pytest.approx(score.item(), abs=1e-9)


def test_beam_one_is_greedy_and_wider_is_no_worse():
    better = 0
    for seed in range(20):
        model, prompt = sharp_gpt(seed=seed), torch.tensor([[1, 2]])
        greedy, one = beam_search(model, prompt, 5, n_beams=1)
        assert torch.equal(greedy, generate(model, prompt, 5, temperature=0))
        _, five = beam_search(model, prompt, 5, n_beams=40)
        assert five[0] >= one[0] - 1e-9
        better += (five[0] > one[0] + 1e-6).item()
    assert better > 0                                                   # or the claim would be empty


def test_beam_with_and_without_cache_agree():
    class NoCache:
        def __init__(self, model):
            self.model, self.context_length = model, model.context_length

        def __call__(self, tokens):
            return self.model(tokens)

    model = sharp_gpt()
    a, b = (beam_search(m, torch.tensor([[1, 2]]), 6, n_beams=5, stop_token=3) for m in (model, NoCache(model)))
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("options, message", [
    ({"temperature": -1}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"),
])
def test_bad_options_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        generate(sharp_gpt(), torch.tensor([[1]]), 1, **options)


def test_bad_prompts_say_why():
    with pytest.raises(ValueError, match="prompt has 9 tokens and the context holds 8"):
        generate(sharp_gpt(), torch.zeros(1, 9, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="at least one token"):
        generate(sharp_gpt(), torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="one prompt"):
        beam_search(sharp_gpt(), torch.zeros(2, 3, dtype=torch.long), 1, 2)
    with pytest.raises(ValueError, match="do not fit"):
        beam_search(sharp_gpt(), torch.zeros(1, 3, dtype=torch.long), 9, 2)


# ---- prompts of several lengths ----

@pytest.mark.parametrize("form", ["gpt2", "modern"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_padded_on_the_left_are_continued_as_each_would_be_alone(form, use_cache):
    model, prompts = sharp_gpt(form), [[3], [1, 5, 2, 6], [4, 4], [0, 6, 1]]
    tokens, mask = left_pad(prompts, pad_token=0)
    together = generate(model, tokens, 4, temperature=0, mask=mask, use_cache=use_cache)
    alone = [generate(model, torch.tensor([p]), 4, temperature=0)[0, len(p):].tolist() for p in prompts]
    assert together[:, 4:].tolist() == alone
    steps = [logprobs for _, logprobs in stream(model, tokens, 4, temperature=0.9, generator=torch.Generator().manual_seed(1), mask=mask, use_cache=use_cache)]
    drawn = generate(model, tokens, 4, temperature=0.9, generator=torch.Generator().manual_seed(1), mask=mask, use_cache=use_cache)[:, 4:]
    for row, prompt in enumerate(prompts):
        text = prompt + drawn[row].tolist()
        by_hand = (model(torch.tensor([text]))[0, len(prompt) - 1:-1] / 0.9).log_softmax(-1)
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), by_hand.detach(), atol=1e-10, rtol=0)
    _, unmasked = next(stream(model, tokens, 1, temperature=0.9, use_cache=use_cache))
    error = (unmasked - steps[0]).abs().amax(1)
    assert error[[0, 2, 3]].min() > 0.01 and error[1] < 1e-10           # there was something to hide, but not from the longest


def test_padding_is_forgotten_when_the_context_slides_past_it():
    model = sharp_gpt(context_length=8)
    tokens, mask = left_pad([[3], [1, 5, 2, 6, 0]], pad_token=0)
    cached, plain = (generate(model, tokens, 20, temperature=0, mask=mask, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)
    alone = generate(model, tokens[1:], 20, temperature=0)
    assert torch.equal(cached[1], alone[0])                             # its window is the batch's
    start, row = 0, cached[0].tolist()                                  # [pad, pad, pad, pad, 3, …]
    for end in range(5, 25):
        start = end - 4 if end - start > 8 else start                   # half of the context is kept
        assert row[end] == model(torch.tensor([row[max(start, 4):end]]))[0, -1].argmax().item()


@pytest.mark.parametrize("mask", [[[True, False]], [[False, False]], [[True, True, True]], [[True], [True]]])
def test_a_mask_that_is_not_padding_on_the_left_is_refused(mask):
    with pytest.raises(ValueError, match="left_pad makes both"):
        generate(sharp_gpt(), torch.tensor([[1, 2]]), 1, mask=torch.tensor(mask))


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_an_empty_prompt_cannot_be_padded(prompts):
    with pytest.raises(ValueError, match="at least one"):
        left_pad(prompts, 0)


def test_a_model_without_masks_takes_prompts_of_one_length_only():
    table = Table(3, 6, 3)
    tokens, mask = left_pad([[1], [2, 1]], 0)
    with pytest.raises(ValueError, match="Table takes no mask"):
        generate(table, tokens, 2, mask=mask)
    tokens, mask = left_pad([[1, 2], [2, 1]], 0)                        # nothing is padded
    assert generate(table, tokens, 2, mask=mask).shape == (2, 4)
