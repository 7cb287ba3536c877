"""Sampling against exact probabilities, beams against exhaustive search, caches against none."""
import itertools
import math

import pytest
import torch

from minigpt.alignment.exact import Table
from minigpt.generation import beam_search, generate, sampling_logprobs, stream
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.5], dtype=torch.float64)


def probabilities(logits):
    weights = [math.exp(x) for x in logits.tolist()]
    return [w / sum(weights) for w in weights]


def sharp_gpt(form="modern", context_length=8, seed=0, vocab_size=7) -> GPT:
    """A model whose next-token probabilities are far from uniform."""
    make = GPTConfig.modern if form == "modern" else GPTConfig
    model = GPT(make(vocab_size, context_length, n_layers=2, n_heads=2, d_model=8)).double().eval()
    generator = torch.Generator().manual_seed(seed)
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
    alone = torch.stack([sampling_logprobs(row, temperature=0.7, top_k=4, top_p=0.8)
                         for row in rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("options", [
    {}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7},
    {"temperature": 0.5, "top_k": 4, "top_p": 0.9},
])
def test_frequencies_match_the_stated_distribution(options):
    model, prompt = sharp_gpt(), torch.tensor([[1, 2, 3]])
    n = 20_000
    generator = torch.Generator().manual_seed(5)
    drawn = generate(model, prompt.expand(n, -1), 1, generator=generator, **options)[:, -1]
    exact = sampling_logprobs(model(prompt)[0, -1], **options).exp()
    z = (drawn.bincount(minlength=7) / n - exact) / (exact * (1 - exact) / n).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 4


@pytest.mark.parametrize("form", ["modern", "gpt2"])
@pytest.mark.parametrize("n_new", [3, 7, 25])   # within the context of 8, at its end, far past it
def test_cache_changes_nothing(form, n_new):
    model, prompt = sharp_gpt(form), torch.tensor([[1, 2, 3], [4, 5, 6]])
    runs = []
    for use_cache in (True, False):
        generator = torch.Generator().manual_seed(6)
        steps = list(stream(model, prompt, n_new, generator=generator, use_cache=use_cache))
        runs.append((torch.stack([s[0] for s in steps]), torch.stack([s[1] for s in steps])))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-10, rtol=0)


def test_window_moves_by_half_and_the_logits_are_those_of_the_window():
    model, text = sharp_gpt(), [1, 2, 3]
    start = 0
    generator = torch.Generator().manual_seed(7)
    for new, logprobs in stream(model, torch.tensor([text]), 20, generator=generator):
        if len(text) - start > 8:
            start = len(text) - 4
        expected = model(torch.tensor([text[start:]]))[0, -1].log_softmax(-1)
        torch.testing.assert_close(logprobs[0], expected, atol=1e-10, rtol=0)
        text.append(new.item())


def test_greedy_takes_the_argmax():
    model, tokens = sharp_gpt(), torch.tensor([[1, 2]])
    for _ in range(5):
        best = model(tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    assert torch.equal(generate(model, torch.tensor([[1, 2]]), 5, temperature=0), tokens)


def test_one_seed_one_text():
    model, prompt = sharp_gpt(), torch.tensor([[1]])
    a, b = (generate(model, prompt, 7, generator=torch.Generator().manual_seed(8))
            for _ in range(2))
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
        answers[tail] = sum(logprobs[len(prompt) - 1 + i, token].item()
                            for i, token in enumerate(tail))
    return answers


@pytest.mark.parametrize("stop", [None, 2])
def test_a_full_beam_finds_the_best_of_all(stop):
    for seed in range(3):
        model = sharp_gpt(seed=seed)
        # The prompt ends in the stop token, which must not count as an end.
        answers = listed(model, [2, 1, 2], 3, stop)
        best = sorted(answers.items(), key=lambda item: -item[1])
        prompt = torch.tensor([[2, 1, 2]])
        sequences, scores = beam_search(model, prompt, 3, n_beams=49, stop_token=stop)
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
    assert better > 0                                   # or the claim would be empty


def test_beam_with_and_without_cache_agree():
    class NoCache:
        def __init__(self, model):
            self.model, self.context_length = model, model.context_length

        def __call__(self, tokens):
            return self.model(tokens)

    model = sharp_gpt()
    a, b = (beam_search(m, torch.tensor([[1, 2]]), 6, n_beams=5, stop_token=3)
            for m in (model, NoCache(model)))
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probabilities, top_p, n_kept", [
    ([0.5, 0.3, 0.1, 0.1], 0.8, 2), ([0.25] * 4, 0.5, 2), ([0.4, 0.3, 0.2, 0.1], 0.9, 3),
    ([0.6, 0.2, 0.1, 0.1], 0.8, 2), ([0.5, 0.5], 0.5, 1), ([0.1, 0.2, 0.7], 0.7, 1),
    ([0.5, 0.3, 0.1, 0.1], 0.8001, 3), ([0.5, 0.3, 0.1, 0.1], 0.7999, 2),
])
def test_top_p_keeps_no_token_too_many_where_the_sum_is_exactly_p(
    dtype, probabilities, top_p, n_kept,
):
    logits = torch.tensor(probabilities, dtype=torch.float64).log().to(dtype)
    assert sampling_logprobs(logits, top_p=top_p).isfinite().sum() == n_kept


INFINITY, NAN = math.inf, math.nan


@pytest.mark.parametrize("name, legal, illegal", [
    ("temperature", [0, 1e-6, 3, 1e6], [-1e-9, -1, NAN, INFINITY, -INFINITY, "1", None, True]),
    ("top_k", [None, 1, 7, 10**9], [0, -3, 2.0, NAN, INFINITY, "2", True]),
    ("top_p", [None, 1e-9, 0.5, 1, 1.0], [0, -0.1, 1.0001, NAN, INFINITY, "0.5", False]),
])
def test_options_that_have_no_meaning_are_refused_in_one_line(name, legal, illegal):
    model, prompt = sharp_gpt(), torch.tensor([[1]])
    for value in legal:
        assert generate(model, prompt, 2, **{name: value}).shape == (1, 3)
    for value in illegal:
        with pytest.raises(ValueError, match=rf"^{name} must .*, not {value!r}$"):
            generate(model, prompt, 2, **{name: value})


def test_bad_prompts_say_why():
    model = sharp_gpt()
    with pytest.raises(ValueError, match="prompt has 9 tokens and the context holds 8"):
        generate(model, torch.zeros(1, 9, dtype=torch.long), 1)
    assert generate(model, torch.zeros(1, 8, dtype=torch.long), 1).shape == (1, 9)
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="max_new_tokens must be 0 or more, not -1"):
        generate(model, torch.zeros(1, 3, dtype=torch.long), -1)
    assert generate(model, torch.zeros(1, 3, dtype=torch.long), 0).shape == (1, 3)
    with pytest.raises(ValueError, match="one prompt"):
        beam_search(model, torch.zeros(2, 3, dtype=torch.long), 1, 2)
    with pytest.raises(ValueError, match="n_beams must be at least 1, not 0"):
        beam_search(model, torch.zeros(1, 3, dtype=torch.long), 1, 0)
    assert beam_search(model, torch.zeros(1, 3, dtype=torch.long), 6, 1)[0].shape == (1, 9)
    with pytest.raises(ValueError, match="3 prompt tokens and 7 new ones do not fit"):
        beam_search(model, torch.zeros(1, 3, dtype=torch.long), 7, 2)


# ---- prompts of several lengths ----

@pytest.mark.parametrize("form", ["gpt2", "modern"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_padded_on_the_left_are_continued_as_each_would_be_alone(form, use_cache):
    model, prompts = sharp_gpt(form), [[3], [1, 5, 2, 6], [4, 4], [0, 6, 1]]
    tokens, mask = pad(prompts, side="left", value=0)
    options = {"mask": mask, "use_cache": use_cache}
    together = generate(model, tokens, 4, temperature=0, **options)
    alone = [generate(model, torch.tensor([p]), 4, temperature=0)[0, len(p):] for p in prompts]
    assert together[:, 4:].tolist() == [row.tolist() for row in alone]

    steps = list(stream(model, tokens, 4, 0.9, generator=torch.Generator().manual_seed(1),
                        **options))
    for row, prompt in enumerate(prompts):
        text = torch.tensor([prompt + [new[row].item() for new, _ in steps]])
        by_hand = (model(text)[0, len(prompt) - 1:-1] / 0.9).log_softmax(-1).detach()
        found = torch.stack([logprobs[row] for _, logprobs in steps])
        torch.testing.assert_close(found, by_hand, atol=1e-10, rtol=0)

    # Without the mask the padded rows differ, and the longest row does not.
    _, unmasked = next(stream(model, tokens, 1, 0.9, use_cache=use_cache))
    error = (unmasked - steps[0][1]).abs().amax(1)
    assert error[[0, 2, 3]].min() > 0.01 and error[1] < 1e-10


def test_padding_is_forgotten_when_the_context_slides_past_it():
    model = sharp_gpt(context_length=8)
    tokens, mask = pad([[3], [1, 5, 2, 6, 0]], side="left", value=0)
    cached, plain = (generate(model, tokens, 20, temperature=0, mask=mask, use_cache=use_cache)
                     for use_cache in (True, False))
    assert torch.equal(cached, plain)
    alone = generate(model, tokens[1:], 20, temperature=0)
    assert torch.equal(cached[1], alone[0])             # its window is that of the batch
    start, row = 0, cached[0].tolist()                  # [pad, pad, pad, pad, 3, …]
    for end in range(5, 25):
        start = end - 4 if end - start > 8 else start   # half of the context is kept
        seen = torch.tensor([row[max(start, 4):end]])
        assert row[end] == model(seen)[0, -1].argmax().item()


@pytest.mark.parametrize("mask", [[[True, False]], [[False, False]]])
def test_a_mask_that_is_not_padding_on_the_left_is_refused(mask):
    with pytest.raises(ValueError, match="False only for padding on the left"):
        generate(sharp_gpt(), torch.tensor([[1, 2]]), 1, mask=torch.tensor(mask))


@pytest.mark.parametrize("mask", [[[True, True, True]], [[True], [True]], [[1, 1]], [[0.0, 1.0]]])
def test_a_mask_of_another_shape_or_type_is_refused(mask):
    with pytest.raises(ValueError, match="mask is"):
        generate(sharp_gpt(), torch.tensor([[1, 2]]), 1, mask=torch.tensor(mask))


def test_a_model_without_masks_takes_prompts_of_one_length_only():
    table = Table(3, 6, 3)
    tokens, mask = pad([[1], [2, 1]], side="left", value=0)
    with pytest.raises(ValueError, match="Table takes no mask"):
        generate(table, tokens, 2, mask=mask)
    tokens, mask = pad([[1, 2], [2, 1]], side="left", value=0)          # nothing is padded
    assert generate(table, tokens, 2, mask=mask).shape == (2, 4)
