"""Prompting: candidate scores by a loop over prefixes, the pronoun by listing, and soft prompts by what may not change."""
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


def make(form: str = "gpt2", seed: int = 0) -> GPT:
    """Weights of order 1, so that no two answers are nearly alike. V=11, context 16, C=12."""
    config = {"gpt2": GPTConfig, "modern": GPTConfig.modern}[form](11, 16, n_layers=2, n_heads=3, d_model=12)
    model, generator = GPT(config).double(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model


def logprob(model, prompt: list[int], answer: list[int]) -> list[float]:
    """log P of each token of the answer, one prefix at a time, softmax in plain Python: no padding, no mask, no batch."""
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
    sums = few_shot_prompt("2 + 2", [("1 + 1", "2"), ("0 + 3", "3")], "Add.", between=" =", separator="; ")
    assert sums == "Add.; 1 + 1 = 2; 0 + 3 = 3; 2 + 2 ="


# Candidates

CANDIDATES = [[4], [5, 1, 3], [7, 7]]


@pytest.mark.parametrize("form", ["gpt2", "modern"])
@pytest.mark.parametrize("prompt", [[2], [3, 9, 0, 1]])
def test_scores_are_a_loop_over_prefixes(form, prompt):
    model = make(form)
    expected = [logprob(model, prompt, candidate) for candidate in CANDIDATES]
    sums, means = torch.tensor([[sum(e), sum(e) / len(e)] for e in expected], dtype=torch.float64).T
    torch.testing.assert_close(score_candidates(model, prompt, CANDIDATES), sums)
    torch.testing.assert_close(score_candidates(model, prompt, CANDIDATES, per_token=True), means)


def test_without_normalisation_scores_are_probabilities_and_the_mean_can_choose_otherwise():
    """All 11 + 121 answers of up to two tokens: those of each length have probability 1 together."""
    model = make()
    ones, twos = [[a] for a in range(11)], [[a, b] for a in range(11) for b in range(11)]
    for answers in (ones, twos):
        assert score_candidates(model, [3, 1], answers).exp().sum().item() == pytest.approx(1)

    class Coin:
        """Says token 0 with probability 0.6 at first, and after a 1 is certain of another."""
        def parameters(self):
            return iter([torch.zeros(1)])

        def __call__(self, tokens):
            heads = torch.tensor([0.6, 0.4]).log().expand(*tokens.shape, 2).clone()
            heads[tokens == 1] = torch.tensor([1e-9, 1.0]).log()
            return heads

    assert score_candidates(Coin(), [0], [[0], [1, 1]]).exp().tolist() == pytest.approx([0.6, 0.4])
    assert score_candidates(Coin(), [0], [[0], [1, 1]], per_token=True).exp().tolist() == pytest.approx([0.6, math.sqrt(0.4)])


@pytest.mark.parametrize("prompt, candidates", [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_nothing_to_score_is_refused(prompt, candidates):
    with pytest.raises(ValueError, match="at least one token"):
        score_candidates(make(), prompt, candidates)


# Coreference

def test_substitute_takes_the_pronoun_as_a_word():
    assert substitute("The kit did not fit because it was big.", ["the kit", r"a\1"]) == \
        ["The kit did not fit because the kit was big.", r"The kit did not fit because a\1 was big."]
    assert substitute("she saw her", ["Ann"], pronoun="her") == ["she saw Ann"]
    assert substitute("s.he saw sshe", ["Ann"], pronoun="s.he") == ["Ann saw sshe"]         # its dot is a dot, not any character
    for bad in ("The kit fits.", "it was it"):
        with pytest.raises(ValueError, match="must stand once"):
            substitute(bad, ["x"])


def test_resolve_pronoun_scores_whole_sentences_from_start_to_end():
    model = make("modern")
    words = ["<end>", "it", "ball", "pit", "fell", "into", "because", "was", "deep", "big", "the"]
    def encode(text):
        return [words.index(w) for w in text.split()]
    got = resolve_pronoun(model, encode, "ball fell into pit because it was deep", ["the ball", "pit"], start_token=0)
    sentences = ["ball fell into pit because the ball was deep", "ball fell into pit because pit was deep"]
    expected = [sum(logprob(model, [0], encode(s) + [0])) for s in sentences]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


# Soft prompts

@pytest.mark.parametrize("form", ["gpt2", "modern"])
def test_a_soft_prompt_of_words_is_the_hard_prompt(form):
    model, generator = make(form), torch.Generator().manual_seed(1)
    words, tokens = torch.tensor([7, 2, 9]), torch.randint(11, (4, 5), generator=generator)
    soft = SoftPrompt.from_words(model, words)
    hard = model(torch.cat([words.expand(4, -1), tokens], 1))
    torch.testing.assert_close(soft(tokens), hard[:, 3:])
    assert (soft(tokens) - model(tokens)).abs().max() > 0.1             # and it is not nothing
    assert soft.context_length == 13


def test_only_the_prompt_is_learned():
    model = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    soft = SoftPrompt.random(model, 3, torch.Generator().manual_seed(2))
    start = soft.embeddings.detach().clone()
    tokens = torch.tensor([[0, 1, 2, 3]])
    causal_loss(soft(tokens), tokens).backward()
    assert [name for name, p in soft.named_parameters() if p.grad is not None] == ["embeddings"]
    assert (soft.embeddings.grad.abs().sum(1) > 0).all()
    config = TrainingConfig(max_steps=60, learning_rate=0.3, optimizer="muon", evaluate_every=60)
    first, *_, last = train(soft, lambda generator: tokens, lambda m, b: causal_loss(m(b), b), config,
                            lambda m: {"loss": causal_loss(m(tokens), tokens).item()}, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (soft.embeddings - start).norm(dim=1).min() > 0.1 and last["loss"] < first["loss"] - 0.2


def test_a_prompt_cut_from_the_embedding_does_not_share_its_memory():
    model = make()
    soft = SoftPrompt(model, model.token_embedding.weight[2:5])
    before = model.token_embedding.weight.clone()
    with torch.no_grad():
        soft.embeddings += 1
    assert torch.equal(model.token_embedding.weight, before)


def test_the_gradient_of_the_prompt_is_the_slope():
    soft = SoftPrompt.random(make("modern"), 2, torch.Generator().manual_seed(3))
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
    """Greedy, so any difference between cached and not would show; and more new tokens than the context holds."""
    soft = SoftPrompt.random(make(form), 4, torch.Generator().manual_seed(4))
    soft.embeddings.data *= 3
    prompt = torch.tensor([[1, 2], [3, 4]])
    cached, plain = (generate(soft, prompt, 15, temperature=0, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain) and cached.shape == (2, 17)
    step = torch.cat([prompt, soft(prompt)[:, -1:].argmax(-1)], 1)      # the first token by hand
    assert torch.equal(cached[:, :3], step)


def test_prompts_of_several_lengths_behind_a_soft_prompt():
    """Padding stands between the soft prompt and the words, and nobody sees it."""
    gpt = make("modern")
    soft = SoftPrompt(gpt, gpt.token_embedding.weight[:2])
    tokens, mask = pad([[3], [1, 4, 2]], side="left", value=0)
    for use_cache in (True, False):
        written = generate(soft, tokens, 3, temperature=0, mask=mask, use_cache=use_cache)[:, 3:].tolist()
        assert written == [generate(soft, torch.tensor([p]), 3, temperature=0)[0, len(p):].tolist() for p in ([3], [1, 4, 2])]
    _, together = next(stream(soft, tokens, 1, mask=mask))
    _, alone = next(stream(soft, torch.tensor([[3]]), 1))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


def test_random_prompts_are_as_large_as_words_and_come_from_the_generator():
    model = make()
    a, b = (SoftPrompt.random(model, 15, torch.Generator().manual_seed(5)).embeddings for _ in range(2))
    assert torch.equal(a, b) and a.std().item() == pytest.approx(model.token_embedding.weight.std().item(), rel=0.2)


@pytest.mark.parametrize("shape", [(3, 11), (16, 12), (0, 12), (12,)])
def test_a_prompt_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="a soft prompt is"):
        SoftPrompt(make(), torch.zeros(shape))
