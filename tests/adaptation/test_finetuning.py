"""Fine-tuning: eq. 3 to 5 in loops of plain Python and by finite differences, and the input transformations letter by letter."""
import math

import pytest
import torch

from minigpt.adaptation.finetuning import (
    FineTuned,
    SpecialTokens,
    add_tokens,
    classification,
    entailment,
    finetuning_loss,
    multiple_choice,
    pad,
    similarity,
)
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train

SPECIAL = SpecialTokens(start=11, delimiter=12, extract=13)             # after the 11 tokens of the pre-trained model
FORMS = {"gpt1": GPTConfig(11, 16, n_layers=2, n_heads=3, d_model=12, post_norm=True), "gpt2": GPTConfig(11, 16, n_layers=2, n_heads=3, d_model=12),
         "modern": GPTConfig.modern(11, 16, n_layers=2, n_heads=3, d_model=12)}


def make(n_classes: int, form: str = "gpt2", seed: int = 0) -> FineTuned:
    """Matrices of order 1 (gains stay at 1), in double precision. V=14, C=12."""
    generator = torch.Generator().manual_seed(seed)
    model = FineTuned(add_tokens(GPT(FORMS[form]).double(), generator=generator), n_classes, generator)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.7, generator=generator)
    return model


EXAMPLES = {                                                            # B=3 with different lengths: the padding differs from row to row
    "classification": [classification(text, SPECIAL) for text in ([1, 2, 3], [4], [5, 6, 7, 8, 9])],
    "entailment": [entailment(*pair, SPECIAL) for pair in (([1, 2], [3]), ([4, 4, 5], [6, 7]), ([8], [9, 10, 0]))],
    "similarity": [similarity(*pair, SPECIAL) for pair in (([1, 2], [3]), ([4, 4, 5], [6, 7]), ([8], [9, 10, 0]))],
    "multiple choice": [multiple_choice(c, answers, SPECIAL) for c, answers in
                        (([1, 2], [[3], [4, 5]]), ([6], [[7, 8, 9], [10]]), ([0, 1, 2], [[3], [3, 4]]))],
}
CLASSES = {"classification": 5, "entailment": 3, "similarity": 2, "multiple choice": 1}
LABELS = torch.tensor([1, 0, 1])


def alone(model: FineTuned, sequence: list[int]) -> list[float]:
    """h_l^m of one sequence, without padding, mask or batch."""
    return model.gpt.hidden(torch.tensor([sequence]))[0, -1].tolist()


def scores(model: FineTuned, sequences: list[list[int]]) -> list[float]:
    """h W_y in nested loops, for one example of any task."""
    vectors, w = [alone(model, sequence) for sequence in sequences], model.head.weight.tolist()     # W_yᵀ (Y, C)
    if len(w) == 1:
        return [sum(h * x for h, x in zip(vector, w[0])) for vector in vectors]
    return [sum(sum(vector[c] for vector in vectors) * row[c] for c in range(12)) for row in w]


def language_loss(model: FineTuned, examples) -> float:
    """L₁: −log P of each token after its predecessors, one prefix at a time, mean over all real tokens but the first of each sequence."""
    each = []
    for sequence in (sequence for sequences in examples for sequence in sequences):
        for t in range(1, len(sequence)):
            row = model.gpt(torch.tensor([sequence[:t]]))[0, -1].tolist()
            each.append(math.log(sum(map(math.exp, row))) - row[sequence[t]])
    return sum(each) / len(each)


# Input transformations

def test_input_transformations_are_those_of_figure_1():
    a, b, s = [1, 2], [3], SPECIAL
    assert classification(a, s) == [[11, 1, 2, 13]]
    assert entailment(a, b, s) == [[11, 1, 2, 12, 3, 13]]
    assert similarity(a, b, s) == [[11, 1, 2, 12, 3, 13], [11, 3, 12, 1, 2, 13]]
    assert multiple_choice(a, [[3], [4, 5], [6]], s) == [[11, 1, 2, 12, 3, 13], [11, 1, 2, 12, 4, 5, 13], [11, 1, 2, 12, 6, 13]]


def test_pad():
    tokens, mask = pad([[[1], [2, 3]], [[4, 5, 6], [7, 8]]])
    assert tokens.tolist() == [[[1, 0, 0], [2, 3, 0]], [[4, 5, 6], [7, 8, 0]]] and tokens.dtype == torch.long
    assert mask.int().tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]]] and mask.dtype == torch.bool


@pytest.mark.parametrize("examples, words", [([[[1]], [[1], [2]]], "[1, 2]"), ([], "[]"), ([[], []], "[0]"), ([[[1]], [[]]], "empty")])
def test_pad_refuses_what_is_no_batch(examples, words):
    with pytest.raises(ValueError) as error:
        pad(examples)
    assert words in str(error.value) and "\n" not in str(error.value)


# More tokens

@pytest.mark.parametrize("form", FORMS)
def test_add_tokens_changes_nothing_but_the_vocabulary(form):
    old = GPT(FORMS[form], torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in old.state_dict().items()}
    new = add_tokens(old, 2, torch.Generator().manual_seed(2))
    tokens = torch.tensor([[1, 10, 0, 4]])
    assert new.config.vocab_size == 13 and old.config.vocab_size == 11 and new.token_embedding.weight.shape == (13, 12)
    torch.testing.assert_close(new(tokens)[..., :11], old(tokens))
    with torch.no_grad():
        new.token_embedding.weight.add_(1)                              # a copy: the old one must not move along
        new.blocks[0].feed_forward.out.weight.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in old.state_dict().items())


def test_new_rows_are_small_and_follow_the_generator():
    old = GPT(GPTConfig(5, 4, n_layers=1, n_heads=2, d_model=64)).double()
    one, same, other = (add_tokens(old, 40, torch.Generator().manual_seed(seed)).token_embedding.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.float64
    assert one[5:].std().item() == pytest.approx(0.02, rel=0.1) and len(one[5:].unique(dim=0)) == 40


# P(y | x) = softmax(h_l^m W_y)

@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", EXAMPLES)
def test_logits_against_loops_without_padding(task, form):
    model, examples = make(CLASSES[task], form), EXAMPLES[task]
    got = model(*pad(examples))
    assert got.shape == (3, 2 if task == "multiple choice" else CLASSES[task])
    torch.testing.assert_close(got, torch.tensor([scores(model, sequences) for sequences in examples], dtype=torch.float64), atol=1e-10, rtol=0)


def test_padding_and_what_stands_in_it_change_nothing():
    model, (tokens, mask) = make(3), pad(EXAMPLES["entailment"])
    longer = torch.nn.functional.pad(tokens, (0, 4), value=7)
    wider = torch.nn.functional.pad(mask, (0, 4), value=False)
    other = tokens.masked_fill(~mask, 9)
    expected, loss = model(tokens, mask), finetuning_loss(model, tokens, mask, LABELS)
    for t, m in ((longer, wider), (other, mask)):
        torch.testing.assert_close(model(t, m), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(finetuning_loss(model, t, m, LABELS), loss, atol=1e-12, rtol=0)


def test_similarity_has_no_first_text_but_one_order_has():
    model = make(2)
    there, back = similarity([1, 2], [3], SPECIAL), similarity([3], [1, 2], SPECIAL)
    torch.testing.assert_close(model(*pad([there])), model(*pad([back])), atol=1e-12, rtol=0)
    assert (model(*pad([there[:1]])) - model(*pad([back[:1]]))).abs().max() > 0.1


def test_each_answer_is_scored_without_the_others():
    model = make(1)
    both = model(*pad([multiple_choice([1, 2], [[3], [4, 5]], SPECIAL)]))
    other = model(*pad([multiple_choice([1, 2], [[3], [9, 9, 9]], SPECIAL)]))
    torch.testing.assert_close(both[:, 0], other[:, 0], atol=1e-12, rtol=0)
    assert (both[:, 1] - other[:, 1]).abs().item() > 0.1


# L₃ = L₂ + λ L₁

@pytest.mark.parametrize("task", EXAMPLES)
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_loss_against_loops(task, weight):
    model, examples = make(CLASSES[task]), EXAMPLES[task]
    l2 = 0.0
    for sequences, label in zip(examples, LABELS.tolist()):
        row = scores(model, sequences)
        l2 += (math.log(sum(map(math.exp, row))) - row[label]) / len(examples)
    got = finetuning_loss(model, *pad(examples), LABELS, weight).item()
    assert got == pytest.approx(l2 + weight * language_loss(model, examples), abs=1e-9)


def test_the_paper_weighs_the_language_model_by_a_half():
    model, batch = make(5), pad(EXAMPLES["classification"])
    assert torch.equal(finetuning_loss(model, *batch, LABELS), finetuning_loss(model, *batch, LABELS, 0.5))


@pytest.mark.parametrize("task", EXAMPLES)
def test_gradient_by_finite_differences(task):
    """Steps to both sides on the first numbers of every parameter, and on the rows of W_e that the new tokens own."""
    model, batch = make(CLASSES[task]), pad(EXAMPLES[task])
    finetuning_loss(model, *batch, LABELS, 0.7).backward()
    for name, p in model.named_parameters():
        flat = p.data.view(-1)
        for i in (0, 1) if "token_embedding" not in name else (11 * 12, 12 * 12 + 3, 13 * 12 + 5, 3 * 12 + 7):
            value, sides = flat[i].item(), []
            for step in (1e-5, -1e-5):
                flat[i] = value + step
                with torch.no_grad():
                    sides.append(finetuning_loss(model, *batch, LABELS, 0.7).item())
            flat[i] = value
            assert p.grad.view(-1)[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-7), (name, i)


def test_without_the_language_model_its_words_get_no_gradient():
    """λ = 0: a word that is in no text is used by L₁'s softmax alone, so its row of W_e must stay."""
    model, batch = make(5), pad(EXAMPLES["classification"])
    for weight, moves in ((0.0, False), (0.5, True)):
        model.zero_grad()
        finetuning_loss(model, *batch, LABELS, weight).backward()
        assert bool(model.gpt.token_embedding.weight.grad[10].any()) is moves


# What goes wrong

def test_errors_are_one_line():
    gpt = GPT(FORMS["gpt2"])
    batch = pad(EXAMPLES["classification"])
    for act, words in ((lambda: FineTuned(gpt, 2)(*batch), "add_tokens"), (lambda: FineTuned(gpt, 0), "not 0"),
                       (lambda: make(2)(*pad([classification([1] * 15, SPECIAL)])), "do not fit the context of 16")):
        with pytest.raises(ValueError) as error:
            act()
        assert words in str(error.value) and "\n" not in str(error.value)


def test_head_is_small_has_no_bias_and_follows_the_generator():
    gpt = add_tokens(GPT(GPTConfig(5, 4, n_layers=1, n_heads=2, d_model=64)))
    one, same = (FineTuned(gpt, 30, torch.Generator().manual_seed(3)).head for _ in range(2))
    assert one.bias is None and torch.equal(one.weight, same.weight) and one.weight.std().item() == pytest.approx(0.02, rel=0.1)


# It learns

@pytest.mark.parametrize("task", EXAMPLES)
def test_learns_three_examples_by_heart(task):
    torch.manual_seed(0)
    model = FineTuned(add_tokens(GPT(FORMS["modern"])), CLASSES[task])
    batch = (*pad(EXAMPLES[task]), LABELS)
    config = TrainingConfig(max_steps=60, learning_rate=5e-3, weight_decay=0.0, evaluate_every=60)
    rows = list(train(model, lambda generator: batch, lambda model, batch: finetuning_loss(model, *batch), config, progress=False))
    assert rows[-1]["train_loss"] > 0 and torch.equal(model(*batch[:2]).argmax(-1), LABELS)
    assert math.exp(-finetuning_loss(model, *batch, 0.0).item()) > 0.8
