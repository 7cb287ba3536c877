"""Prompting: scores by a loop over prefixes, soft prompts against hard prompts, refusals."""
import math

import pytest
import torch

from minigpt.adaptation.prompting import (
    SoftPrompt,
    few_shot_prompt,
    resolve_pronoun,
    score_candidates,
    substitute,
)
from minigpt.generation import generate, stream
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(form: str = "gpt2", seed: int = 0) -> GPT:
    """Weights of order 1, so that no two answers are nearly alike. V=11, context 16, C=12."""
    make_config = {"gpt2": GPTConfig, "modern": GPTConfig.modern}[form]
    config = make_config(11, 16, n_layers=2, n_heads=3, d_model=12)
    model, generator = GPT(config).double(), seeded(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model


def logprob(model, prompt: list[int], answer: list[int]) -> list[float]:
    """log P of each token of the answer, one prefix at a time: no padding, no mask, no batch."""
    each = []
    for i, token in enumerate(answer):
        row = model(torch.tensor([prompt + answer[:i]]))[0, -1].tolist()
        each.append(row[token] - math.log(sum(map(math.exp, row))))
    return each


# Templates

def test_zero_one_and_few_shots():
    assert few_shot_prompt("cat") == "cat =>"
    assert few_shot_prompt("cat", instruction="To Italian:") == "To Italian:\ncat =>"
    assert few_shot_prompt("cat", [("dog", "cane")]) == "dog => cane\ncat =>"
    worked = [("1 + 1", "2"), ("0 + 3", "3")]
    sums = few_shot_prompt("2 + 2", worked, "Add.", between=" =", separator="; ")
    assert sums == "Add.; 1 + 1 = 2; 0 + 3 = 3; 2 + 2 ="


# Candidates

CANDIDATES = [[4], [5, 1, 3], [7, 7]]


@pytest.mark.parametrize("form", ["gpt2", "modern"])
@pytest.mark.parametrize("prompt", [[2], [3, 9, 0, 1]])
def test_scores_are_a_loop_over_prefixes(form, prompt):
    model = make_model(form)
    expected = [logprob(model, prompt, candidate) for candidate in CANDIDATES]
    sums = torch.tensor([sum(e) for e in expected], dtype=torch.float64)
    means = torch.tensor([sum(e) / len(e) for e in expected], dtype=torch.float64)
    torch.testing.assert_close(score_candidates(model, prompt, CANDIDATES), sums)
    torch.testing.assert_close(score_candidates(model, prompt, CANDIDATES, per_token=True), means)


def test_scores_are_probabilities_and_their_mean_can_choose_another_candidate():
    """The probabilities of all 11 one-token answers add up to 1; so do those of 121 pairs."""
    model = make_model()
    ones, twos = [[a] for a in range(11)], [[a, b] for a in range(11) for b in range(11)]
    for answers in (ones, twos):
        assert score_candidates(model, [3, 1], answers).exp().sum().item() == pytest.approx(1)

    scores = score_candidates(Coin(), [0], [[0], [1, 1]])
    assert scores.exp().tolist() == pytest.approx([0.6, 0.4])
    scores = score_candidates(Coin(), [0], [[0], [1, 1]], per_token=True)
    assert scores.exp().tolist() == pytest.approx([0.6, math.sqrt(0.4)])


class Coin:
    """Token 0 has probability 0.6; but after a 1, another 1 is certain."""

    context_length = 3

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, tokens):
        logits = torch.tensor([0.6, 0.4]).log().expand(*tokens.shape, 2).clone()
        logits[tokens == 1] = torch.tensor([1e-9, 1.0]).log()
        return logits


@pytest.mark.parametrize("prompt, candidates", [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_nothing_to_score_is_refused(prompt, candidates):
    with pytest.raises(ValueError, match="at least one token"):
        score_candidates(make_model(), prompt, candidates)


def test_a_candidate_may_fill_the_context_and_no_more():
    model = make_model()
    soft = SoftPrompt(model, torch.zeros(3, 12))                # leaves 13 of the 16 places
    for scorer, n_free in ((model, 16), (soft, 13)):
        candidate = [1] * (n_free - 2)
        assert score_candidates(scorer, [5, 6], [candidate, [2]]).isfinite().all()
        with pytest.raises(ValueError, match=f"2 tokens and a candidate of {n_free - 1} do not fit "
                                             f"the context of {n_free}"):
            score_candidates(scorer, [5, 6], [[2], [*candidate, 1]])


# Coreference

def test_substitute_takes_the_pronoun_as_a_word():
    texts = substitute("The kit did not fit because it was big.", ["the kit", r"a\1"])
    assert texts == ["The kit did not fit because the kit was big.",
                     r"The kit did not fit because a\1 was big."]
    assert substitute("she saw her", ["Ann"], pronoun="her") == ["she saw Ann"]
    # The dot of a pronoun is a dot, not any character.
    assert substitute("s.he saw sshe", ["Ann"], pronoun="s.he") == ["Ann saw sshe"]
    for bad, times in (("The kit fits.", 0), ("it was it", 2)):
        with pytest.raises(ValueError, match=f"once as a word, not {times} times"):
            substitute(bad, ["x"])


def test_resolve_pronoun_scores_whole_sentences_from_start_to_end():
    model = make_model("modern")
    words = "<end> it ball pit fell into because was deep big the".split()

    def encode(text):
        return [words.index(w) for w in text.split()]

    sentence = "ball fell into pit because it was deep"
    scores = resolve_pronoun(model, encode, sentence, ["the ball", "pit"], start_token=0)
    expected = [sum(logprob(model, [0], encode(sentence.replace("it was", f"{c} was")) + [0]))
                for c in ("the ball", "pit")]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


# Soft prompts

@pytest.mark.parametrize("form", ["gpt2", "modern"])
def test_a_soft_prompt_of_words_is_the_hard_prompt(form):
    model, generator = make_model(form), seeded(1)
    words, tokens = torch.tensor([7, 2, 9]), torch.randint(11, (4, 5), generator=generator)
    soft = SoftPrompt.from_words(model, words)
    hard = model(torch.cat([words.expand(4, -1), tokens], 1))
    torch.testing.assert_close(soft(tokens), hard[:, 3:])
    assert (soft(tokens) - model(tokens)).abs().max() > 0.1             # it changes the logits
    assert soft.context_length == 13


def test_only_the_prompt_is_learned():
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    soft = SoftPrompt.random(model, 3, seeded(2))
    start = soft.embeddings.detach().clone()
    tokens = torch.tensor([[0, 1, 2, 3]])
    causal_loss(soft(tokens), tokens).backward()
    assert [name for name, p in soft.named_parameters() if p.grad is not None] == ["embeddings"]
    assert (soft.embeddings.grad.abs().sum(1) > 0).all()
    config = TrainingConfig(max_steps=60, learning_rate=0.3, optimizer="muon", evaluate_every=60)
    first, *_, last = train(
        soft, lambda generator: tokens, lambda m, b: causal_loss(m(b), b), config,
        lambda m: {"loss": causal_loss(m(tokens), tokens).item()}, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (soft.embeddings - start).norm(dim=1).min() > 0.1
    assert last["loss"] < first["loss"] - 0.2


def test_a_prompt_cut_from_the_embedding_does_not_share_its_memory():
    model = make_model()
    soft = SoftPrompt(model, model.token_embedding.weight[2:5])
    before = model.token_embedding.weight.clone()
    with torch.no_grad():
        soft.embeddings += 1
    assert torch.equal(model.token_embedding.weight, before)


def test_the_gradient_of_the_prompt_by_finite_differences():
    soft = SoftPrompt.random(make_model("modern"), 2, seeded(3))
    tokens, h = torch.tensor([[4, 1, 8, 8], [2, 0, 3, 5]]), 1e-6
    (gradient,) = torch.autograd.grad(causal_loss(soft(tokens), tokens), soft.embeddings)
    measured = torch.zeros_like(gradient)
    with torch.no_grad():
        for i in range(2):
            for j in range(12):
                ends = []
                for step in (h, -h):
                    soft.embeddings[i, j] += step
                    ends.append(causal_loss(soft(tokens), tokens).item())
                    soft.embeddings[i, j] -= step
                measured[i, j] = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(gradient, measured, atol=1e-7, rtol=0)


@pytest.mark.parametrize("form", ["gpt2", "modern"])
def test_generation_with_a_soft_prompt_and_a_cache(form):
    """Greedy, with more new tokens than the context holds; with and without a cache."""
    soft = SoftPrompt.random(make_model(form), 4, seeded(4))
    soft.embeddings.data *= 3
    prompt = torch.tensor([[1, 2], [3, 4]])
    cached, plain = (generate(soft, prompt, 15, temperature=0, use_cache=use)
                     for use in (True, False))
    assert torch.equal(cached, plain) and cached.shape == (2, 17)
    step = torch.cat([prompt, soft(prompt)[:, -1:].argmax(-1)], 1)      # the first token by hand
    assert torch.equal(cached[:, :3], step)


def test_prompts_of_several_lengths_behind_a_soft_prompt():
    """Padding stands between the soft prompt and the words, and no token looks at it."""
    gpt = make_model("modern")
    soft = SoftPrompt(gpt, gpt.token_embedding.weight[:2])
    prompts = [[3], [1, 4, 2]]
    tokens, mask = pad(prompts, side="left", value=0)
    alone = [generate(soft, torch.tensor([p]), 3, temperature=0)[0, len(p):].tolist()
             for p in prompts]
    for use_cache in (True, False):
        written = generate(soft, tokens, 3, temperature=0, mask=mask, use_cache=use_cache)
        assert written[:, 3:].tolist() == alone
    _, together = next(stream(soft, tokens, 1, mask=mask))
    _, first = next(stream(soft, torch.tensor([[3]]), 1))
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=0)


def test_a_mask_is_bool_and_covers_the_tokens_so_far_without_the_prompt():
    soft = SoftPrompt(make_model(), torch.ones(2, 12))
    tokens, mask = pad([[3], [1, 4, 2]], side="left", value=0)
    cache = soft.new_cache()
    soft(tokens, cache, mask)
    new, longer = torch.tensor([[5], [6]]), torch.cat([mask, mask[:, -1:]], 1)
    for bad, words in ((longer.long(), "bool"), (mask, r"\(2, 4\) is needed"),
                       (longer[:1], r"\(2, 4\) is needed")):
        with pytest.raises(ValueError, match=words):
            soft(new, cache, bad)
    expected = soft(torch.cat([tokens, new], 1), mask=longer)[:, -1:]
    torch.testing.assert_close(soft(new, cache, longer), expected)
    for bad, words in ((mask.long(), "bool"), (longer, r"\(2, 3\) is needed")):
        with pytest.raises(ValueError, match=words):
            soft(tokens, mask=bad)


def test_random_prompts_are_as_large_as_words_and_come_from_the_generator():
    model = make_model()
    a, b = (SoftPrompt.random(model, 15, seeded(5)).embeddings for _ in range(2))
    expected = model.token_embedding.weight.std().item()
    assert torch.equal(a, b) and a.std().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("shape", [(3, 11), (16, 12), (0, 12), (12,), (1, 3, 12)])
def test_a_prompt_of_the_wrong_shape_is_refused_and_freezes_nothing(shape):
    model = make_model()
    with pytest.raises(ValueError, match="a soft prompt is"):
        SoftPrompt(model, torch.zeros(shape))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("n_vectors", [1, 15])
def test_a_prompt_leaves_room_for_at_least_one_token(n_vectors):
    soft = SoftPrompt(make_model(), torch.zeros(n_vectors, 12))
    assert soft.context_length == 16 - n_vectors
    longest = torch.zeros(1, soft.context_length, dtype=torch.long)
    assert soft(longest).shape == (1, soft.context_length, 11)
    with pytest.raises(ValueError, match="context of 16"):
        soft(torch.cat([longest, longest[:, :1]], 1))
