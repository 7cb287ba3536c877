"""Fine-tuning: eqs. 3 to 5 in loops and by finite differences, input transformations by hand."""
import math

import pytest
import torch
from torch.nn import functional as F

from minigpt.adaptation.finetuning import (
    FineTuned,
    SpecialTokens,
    add_tokens,
    classification,
    entailment,
    finetuning_loss,
    multiple_choice,
    pad_examples,
    similarity,
)
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train

# The pre-trained model has 11 tokens.
SPECIAL = SpecialTokens(start=11, delimiter=12, extract=13)
SIZES = {"n_layers": 2, "n_heads": 3, "d_model": 12}
FORMS = {
    "gpt1": GPTConfig(11, 16, **SIZES, post_norm=True),
    "gpt2": GPTConfig(11, 16, **SIZES),
    "modern": GPTConfig.modern(11, 16, **SIZES),
    "untied": GPTConfig(11, 16, **SIZES, tied=False),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(n_classes: int, form: str = "gpt2", seed: int = 0) -> FineTuned:
    """Matrices of order 1 (gains stay at 1), in double precision. V=14, C=12."""
    generator = seeded(seed)
    gpt = add_tokens(GPT(FORMS[form]).double(), generator=generator)
    model = FineTuned(gpt, n_classes, generator)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.7, generator=generator)
    return model


# B=3 examples of different lengths, so each row has its own padding.
PAIRS = (([1, 2], [3]), ([4, 4, 5], [6, 7]), ([8], [9, 10, 0]))
CHOICES = (([1, 2], [[3], [4, 5]]), ([6], [[7, 8, 9], [10]]), ([0, 1, 2], [[3], [3, 4]]))
EXAMPLES = {
    "classification": [classification(x, SPECIAL) for x in ([1, 2, 3], [4], [5, 6, 7, 8, 9])],
    "entailment": [entailment(*pair, SPECIAL) for pair in PAIRS],
    "similarity": [similarity(*pair, SPECIAL) for pair in PAIRS],
    "multiple choice": [multiple_choice(*choice, SPECIAL) for choice in CHOICES],
}
CLASSES = {"classification": 5, "entailment": 3, "similarity": 2, "multiple choice": 1}
LABELS = torch.tensor([1, 0, 1])


def refused(action, *words):
    with pytest.raises(ValueError) as error:
        action()
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def last_vector(model: FineTuned, sequence: list[int]) -> list[float]:
    """h_l^m of one sequence, without padding, mask or batch."""
    return model.gpt.hidden(torch.tensor([sequence]))[0, -1].tolist()


def scores(model: FineTuned, sequences: list[list[int]]) -> list[float]:
    """h W_y in nested loops, for one example of any task."""
    vectors = [last_vector(model, sequence) for sequence in sequences]
    columns = model.head.weight.tolist()                                # of W_y: Y lists of C
    if len(columns) == 1:
        return [sum(h * w for h, w in zip(vector, columns[0])) for vector in vectors]
    return [sum(sum(vector[c] for vector in vectors) * column[c] for c in range(12))
            for column in columns]


def minus_log_softmax(row: list[float], i: int) -> float:
    return math.log(sum(map(math.exp, row))) - row[i]


def language_loss(model: FineTuned, examples) -> float:
    """L₁ one prefix at a time: all real tokens but the first of each sequence, averaged."""
    each = []
    for sequence in (sequence for sequences in examples for sequence in sequences):
        for t in range(1, len(sequence)):
            row = model.gpt(torch.tensor([sequence[:t]]))[0, -1].tolist()
            each.append(minus_log_softmax(row, sequence[t]))
    return sum(each) / len(each)


# Input transformations

def test_input_transformations_are_those_of_figure_1():
    a, b, s = [1, 2], [3], SPECIAL
    assert classification(a, s) == [[11, 1, 2, 13]]
    assert entailment(a, b, s) == [[11, 1, 2, 12, 3, 13]]
    assert similarity(a, b, s) == [[11, 1, 2, 12, 3, 13], [11, 3, 12, 1, 2, 13]]
    assert multiple_choice(a, [[3], [4, 5], [6]], s) == \
        [[11, 1, 2, 12, 3, 13], [11, 1, 2, 12, 4, 5, 13], [11, 1, 2, 12, 6, 13]]


def test_pad_examples():
    tokens, mask = pad_examples([[[1], [2, 3]], [[4, 5, 6], [7, 8]], [[9], [1]]])
    assert tokens.dtype == torch.long and mask.dtype == torch.bool
    assert tokens.tolist() == \
        [[[1, 0, 0], [2, 3, 0]], [[4, 5, 6], [7, 8, 0]], [[9, 0, 0], [1, 0, 0]]]
    assert mask.int().tolist() == \
        [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("examples, words", [
    ([[[1]], [[1], [2]]], "[1, 2]"), ([], "[]"), ([[], []], "[0]"), ([[[1]], [[]]], "no token"),
])
def test_pad_examples_refuses_what_is_no_batch(examples, words):
    refused(lambda: pad_examples(examples), words)


# More tokens

@pytest.mark.parametrize("form", FORMS)
def test_add_tokens_changes_nothing_but_the_vocabulary(form):
    old = GPT(FORMS[form], seeded(1))
    before = {name: p.clone() for name, p in old.state_dict().items()}
    new = add_tokens(old, 2, seeded(2))
    tokens = torch.tensor([[1, 10, 0, 4]])
    assert new.config.vocab_size == 13 and old.config.vocab_size == 11
    assert new.token_embedding.weight.shape == (13, 12)
    torch.testing.assert_close(new(tokens)[..., :11], old(tokens))
    with torch.no_grad():                           # a copy: the old model must not change with it
        new.token_embedding.weight.add_(1)
        new.blocks[0].feed_forward.out.weight.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in old.state_dict().items())


def test_new_rows_are_small_and_follow_the_generator():
    old = GPT(GPTConfig(5, 4, n_layers=1, n_heads=2, d_model=64)).double()
    one, same, other = (add_tokens(old, 40, seeded(seed)).token_embedding.weight
                        for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.float64
    assert one[5:].std().item() == pytest.approx(0.02, rel=0.1)
    assert len(one[5:].unique(dim=0)) == 40


def test_at_least_one_token_is_added():
    assert add_tokens(GPT(FORMS["gpt2"]), 1).config.vocab_size == 12
    refused(lambda: add_tokens(GPT(FORMS["gpt2"]), 0), "not 0")


# P(y | x) = softmax(h_l^m W_y)

@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", EXAMPLES)
def test_logits_against_loops_without_padding(task, form):
    model, examples = make_model(CLASSES[task], form), EXAMPLES[task]
    logits = model(*pad_examples(examples))
    assert logits.shape == (3, 2 if task == "multiple choice" else CLASSES[task])
    expected = [scores(model, sequences) for sequences in examples]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_padding_and_what_stands_in_it_change_nothing():
    model, (tokens, mask) = make_model(3), pad_examples(EXAMPLES["entailment"])
    longer = F.pad(tokens, (0, 4), value=7)
    longer_mask = F.pad(mask, (0, 4), value=False)
    other = tokens.masked_fill(~mask, 9)
    expected = model(tokens, mask)
    expected_loss = finetuning_loss(model, tokens, mask, LABELS)
    for t, m in ((longer, longer_mask), (other, mask)):
        torch.testing.assert_close(model(t, m), expected, atol=1e-12, rtol=0)
        loss = finetuning_loss(model, t, m, LABELS)
        torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=0)


def test_similarity_has_no_order_but_each_of_its_sequences_has():
    model = make_model(2)
    there, back = similarity([1, 2], [3], SPECIAL), similarity([3], [1, 2], SPECIAL)
    both = [model(*pad_examples([sequences])) for sequences in (there, back)]
    torch.testing.assert_close(*both, atol=1e-12, rtol=0)
    one = [model(*pad_examples([sequences[:1]])) for sequences in (there, back)]
    assert (one[0] - one[1]).abs().max() > 0.1


def test_each_answer_is_scored_without_the_others():
    model = make_model(1)
    one, other = (model(*pad_examples([multiple_choice([1, 2], answers, SPECIAL)]))
                  for answers in ([[3], [4, 5]], [[3], [9, 9, 9]]))
    torch.testing.assert_close(one[:, 0], other[:, 0], atol=1e-12, rtol=0)
    assert (one[:, 1] - other[:, 1]).abs().item() > 0.1


def test_head_is_small_has_no_bias_and_follows_the_generator():
    gpt = add_tokens(GPT(GPTConfig(5, 4, n_layers=1, n_heads=2, d_model=64)))
    one, same = (FineTuned(gpt, 30, seeded(3)).head for _ in range(2))
    assert one.bias is None and torch.equal(one.weight, same.weight)
    assert one.weight.std().item() == pytest.approx(0.02, rel=0.1)


# L₃ = L₂ + λ L₁

@pytest.mark.parametrize("task", EXAMPLES)
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_loss_against_loops(task, weight):
    model, examples = make_model(CLASSES[task]), EXAMPLES[task]
    l2 = sum(minus_log_softmax(scores(model, sequences), label)
             for sequences, label in zip(examples, LABELS.tolist())) / 3
    got = finetuning_loss(model, *pad_examples(examples), LABELS, weight).item()
    assert got == pytest.approx(l2 + weight * language_loss(model, examples), abs=1e-9)


def test_the_default_lambda_is_the_papers():
    model, batch = make_model(5), pad_examples(EXAMPLES["classification"])
    default, half = (finetuning_loss(model, *batch, LABELS, *weight) for weight in ((), (0.5,)))
    assert torch.equal(default, half)


@pytest.mark.parametrize("task", EXAMPLES)
def test_gradient_by_finite_differences(task):
    """Steps to both sides on two numbers of each parameter, and on the new rows of W_e."""
    model, batch = make_model(CLASSES[task]), pad_examples(EXAMPLES[task])
    finetuning_loss(model, *batch, LABELS, 0.7).backward()
    new_rows = (11 * 12, 12 * 12 + 3, 13 * 12 + 5, 3 * 12 + 7)
    for name, p in model.named_parameters():
        flat = p.data.view(-1)
        for i in new_rows if "token_embedding" in name else (0, 1):
            value, sides = flat[i].item(), []
            for step in (1e-5, -1e-5):
                flat[i] = value + step
                with torch.no_grad():
                    sides.append(finetuning_loss(model, *batch, LABELS, 0.7).item())
            flat[i] = value
            slope = (sides[0] - sides[1]) / 2e-5
            assert p.grad.view(-1)[i].item() == pytest.approx(slope, abs=1e-7), (name, i)


def test_without_the_language_loss_unused_words_get_no_gradient():
    """Token 10 is in no text, so only the softmax of L₁ can give its row of W_e a gradient."""
    model, batch = make_model(5), pad_examples(EXAMPLES["classification"])
    for weight, has_gradient in ((0.0, False), (0.5, True)):
        model.zero_grad()
        finetuning_loss(model, *batch, LABELS, weight).backward()
        assert bool(model.gpt.token_embedding.weight.grad[10].any()) is has_gradient


# What is refused

def test_tokens_and_classes_that_do_not_fit_are_refused():
    gpt, batch = GPT(FORMS["gpt2"]), pad_examples(EXAMPLES["classification"])
    refused(lambda: FineTuned(gpt, 2)(*batch), "token 13", "vocabulary of 11", "add_tokens")
    refused(lambda: FineTuned(gpt, 0), "not 0")
    too_long = pad_examples([classification([1] * 15, SPECIAL)])
    refused(lambda: make_model(2)(*too_long), "do not fit the context of 16")
    assert make_model(2)(*pad_examples([classification([1] * 14, SPECIAL)])).shape == (1, 2)


@pytest.mark.parametrize("shape", [(3, 7), (0, 1, 7), (3, 0, 7), (3, 1, 0), (1, 3, 1, 7)])
def test_tokens_have_three_dimensions_and_none_is_empty(shape):
    tokens, mask = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    refused(lambda: make_model(5)(tokens, mask), "(examples, sequences, time)", str(shape))


def test_masks_are_bool_of_the_tokens_shape_and_padded_on_the_right():
    model, (tokens, mask) = make_model(5), pad_examples(EXAMPLES["classification"])
    nowhere = mask.clone()
    nowhere[1] = False
    hole = mask.clone()
    hole[2, 0, 3] = False
    for bad, words in ((mask.long(), "bool"), (mask[:, :, 1:], "(3, 1, 7) is needed"),
                       (mask[:, 0], "(3, 1, 7) is needed"), (nowhere, "at least one token"),
                       (mask.flip(-1), "on the right"), (hole, "on the right")):
        refused(lambda bad=bad: model(tokens, bad), words)
        refused(lambda bad=bad: finetuning_loss(model, tokens, bad, LABELS), words)
    first_only = torch.zeros_like(mask)
    first_only[..., 0] = True                       # one token per sequence is the least
    assert model(tokens, first_only).shape == (3, 5)
    loss = finetuning_loss(model, tokens, first_only, LABELS, language_weight=0.0)
    assert loss.isfinite()
    refused(lambda: finetuning_loss(model, tokens, first_only, LABELS), "average")


@pytest.mark.parametrize("task", EXAMPLES)
def test_labels_are_one_per_example_and_name_a_class_or_answer(task):
    model, batch = make_model(CLASSES[task]), pad_examples(EXAMPLES[task])
    n_labels = 2 if task == "multiple choice" else CLASSES[task]
    for labels in ([0, 0, n_labels - 1], [n_labels - 1] * 3):
        assert finetuning_loss(model, *batch, torch.tensor(labels)).isfinite()
    for labels in ([0, 0, n_labels], [-1, 0, 0], [-100] * 3, [0, 0], [0] * 4, [[0, 0, 0]]):
        refused(lambda labels=labels: finetuning_loss(model, *batch, torch.tensor(labels)),
                f"from 0 to {n_labels - 1}")


@pytest.mark.parametrize("weight", [-1e-9, math.inf, math.nan])
def test_an_impossible_language_weight_is_refused(weight):
    model, batch = make_model(5), pad_examples(EXAMPLES["classification"])
    refused(lambda: finetuning_loss(model, *batch, LABELS, weight), "language_weight")


def test_one_class_and_one_sequence_leave_nothing_to_learn():
    model = make_model(1)
    refused(lambda: model(*pad_examples(EXAMPLES["classification"])), "nothing to choose")
    two = [multiple_choice([1], [[2], [3]], SPECIAL)]
    assert model(*pad_examples(two)).shape == (1, 2)


# It learns

@pytest.mark.parametrize("task", EXAMPLES)
def test_learns_three_examples_by_heart(task):
    torch.manual_seed(0)
    model = FineTuned(add_tokens(GPT(FORMS["modern"])), CLASSES[task])
    batch = (*pad_examples(EXAMPLES[task]), LABELS)
    config = TrainingConfig(max_steps=60, learning_rate=5e-3, weight_decay=0.0, evaluate_every=60)
    rows = train(model, lambda generator: batch, lambda m, b: finetuning_loss(m, *b), config,
                 progress=False)
    assert rows[-1]["train_loss"] > 0 and torch.equal(model(*batch[:2]).argmax(-1), LABELS)
    assert math.exp(-finetuning_loss(model, *batch, 0.0).item()) > 0.8
