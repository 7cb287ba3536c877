"""Masking against the binomial distribution; pairs against ids that say where they are from."""
import itertools
import math

import pytest
import torch

from minigpt.text.masking import mask_tokens, sentence_pairs

CLS, SEP, PAD, MASK = 30, 31, 32, 33                            # V = 34; 0 to 29 are ordinary
SPECIAL, V = (CLS, SEP, PAD, MASK), 34


def rows(n: int, words: int = 43, seed: int = 1) -> torch.Tensor:
    """[CLS] … [SEP] … [SEP] [PAD] [PAD] with `words` ordinary tokens: (n, words + 5)."""
    drawn = torch.randint(30, (n, words), generator=torch.Generator().manual_seed(seed))
    column = torch.ones(n, 1, dtype=torch.long)
    return torch.cat([CLS * column, drawn[:, :20], SEP * column, drawn[:, 20:], SEP * column,
                      PAD * column, PAD * column], 1)


def corrupt(tokens, seed=0, **options):
    return mask_tokens(tokens, SPECIAL, MASK, V, torch.Generator().manual_seed(seed), **options)


def z_score(count, n, p):
    """How many standard deviations a count of n draws is from n·p."""
    return (float(count) - n * p) / math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("variant", ["exact", "bernoulli"])
def test_fates_are_80_10_10(variant):
    tokens = rows(3000)
    corrupted, labels, chosen = corrupt(tokens, variant=variant)
    n = int(chosen.sum())
    masked, same = (corrupted == MASK) & chosen, (corrupted == labels) & chosen
    assert abs(z_score(masked.sum(), n, 0.8)) < 3
    # One random token in 30 is the token itself by chance.
    assert abs(z_score(same.sum(), n, 0.1 + 0.1 / 30)) < 3
    assert abs(z_score((chosen & ~masked & ~same).sum(), n, 0.1 * 29 / 30)) < 3
    drawn = corrupted[chosen & ~masked & ~same]
    for token in range(30):                             # every ordinary token, equally often
        assert abs(z_score((drawn == token).sum(), len(drawn), 1 / 30)) < 4
    assert torch.equal(corrupted[~chosen], tokens[~chosen])


def test_exact_counts():
    for words in (21, 26, 30, 43, 70):                          # 0.15·30 = 4.5 is rounded to 4
        for rate in (0.15, 0.4, 1.0):
            *_, chosen = corrupt(rows(50, words), rate=rate)
            assert (chosen.sum(1) == round(rate * words)).all(), (words, rate)
    short = torch.tensor([[CLS, 5, 7, SEP, PAD, PAD], [CLS, SEP, SEP, PAD, PAD, PAD]])
    *_, chosen = corrupt(short)
    assert chosen.sum(1).tolist() == [1, 0]                     # at least one, if there is one


def test_exact_count_is_per_row_and_by_ordinary_tokens():
    tokens = rows(4, words=40)
    tokens[2, 11:] = PAD                                        # [CLS] and 10 words: round(1.5) = 2
    *_, chosen = corrupt(tokens)
    assert chosen.sum(1).tolist() == [6, 6, 2, 6]


def test_bernoulli_counts_are_binomial():
    *_, chosen = corrupt(rows(3000), variant="bernoulli")
    counts = chosen.sum(1).double()
    assert abs(z_score(chosen.sum(), 3000 * 43, 0.15)) < 3
    variance = 43 * 0.15 * 0.85
    # The variance of a sample variance of n near-normal draws is 2σ⁴/n.
    assert abs(counts.var().item() - variance) / (variance * math.sqrt(2 / 3000)) < 3


@pytest.mark.parametrize("variant", ["exact", "bernoulli"])
def test_ordinary_places_are_chosen_equally_often_and_special_ones_never(variant):
    tokens = rows(3000)
    corrupted, _, chosen = corrupt(tokens, variant=variant)
    special = torch.isin(tokens, torch.tensor(SPECIAL))
    assert not (chosen & special).any() and torch.equal(corrupted[special], tokens[special])
    assert not torch.isin(corrupted[~special], torch.tensor([CLS, SEP, PAD])).any()     # none drawn
    share = 6 / 43 if variant == "exact" else 0.15
    for place in (~special[0]).nonzero()[:, 0]:
        assert abs(z_score(chosen[:, place].sum(), 3000, share)) < 4


def test_mask_id_is_special_even_if_unnamed():
    tokens = torch.full((500, 9), 3)
    tokens[:, 4] = MASK
    generator = torch.Generator().manual_seed(0)
    corrupted, _, chosen = mask_tokens(tokens, (), MASK, V, generator, rate=1.0, shares=(0, 1, 0))
    assert not chosen[:, 4].any() and (corrupted[:, [0, 1, 2, 3, 5, 6, 7, 8]] != MASK).all()


def test_labels_are_the_original_tokens_which_are_not_changed():
    tokens = rows(40)
    before = tokens.clone()
    corrupted, labels, _ = corrupt(tokens)
    assert torch.equal(labels, before) and torch.equal(tokens, before)
    assert not torch.equal(corrupted, before)
    corrupted.fill_(0)                                          # the three tensors share no memory
    labels.fill_(1)
    assert torch.equal(tokens, before)


def test_each_call_draws_afresh_and_a_seed_repeats():
    tokens, generator = rows(40), torch.Generator().manual_seed(0)
    first, second = (mask_tokens(tokens, SPECIAL, MASK, V, generator) for _ in range(2))
    assert not torch.equal(first[2], second[2])
    assert all(torch.equal(a, b) for a, b in zip(first, corrupt(tokens)))


@pytest.mark.parametrize("shares, masked, same", [
    ((1, 0, 0), 1, 0), ((0, 0, 1), 0, 1), ((0, 1, 0), 0, 1 / 30),
    ((0.5, 0.2, 0.3), 0.5, 0.3 + 0.2 / 30),
])
def test_shares(shares, masked, same):
    corrupted, labels, chosen = corrupt(rows(1500), shares=shares)
    n = int(chosen.sum())
    is_masked, is_same = (corrupted == MASK) & chosen, (corrupted == labels) & chosen
    for count, p in ((is_masked, masked), (is_same, same)):
        if p in (0, 1):
            assert count.sum() == n * p
        else:
            assert abs(z_score(count.sum(), n, p)) < 3


@pytest.mark.parametrize("options, message", [
    (dict(rate=0), "rate is the share"), (dict(rate=1.001), "rate is the share"),
    (dict(rate=math.nan), "rate is the share"),
    (dict(variant="poisson"), "exact or bernoulli, not 'poisson'"),
    (dict(shares=(0.8, 0.1, 0.2)), "add up to 1"), (dict(shares=(1.2, -0.2, 0)), "0 or more"),
])
def test_bad_options_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(rows(2), **options)


def test_bad_special_tokens_say_why():
    generator = torch.Generator()
    for special in (range(V), (-1,), (V,)):
        with pytest.raises(ValueError, match="special must be ids from 0 to 33, and not all; got"):
            mask_tokens(torch.tensor([[1]]), special, MASK, V, generator)
    mask_tokens(torch.tensor([[1]]), range(1, V), MASK, V, generator)


# Sentence pairs. A token is 100·document + 10·sentence + place, so it says where it is from.

DOCUMENTS = [[[100 * d + 10 * s + i for i in range(1 + (d + s) % 3)] for s in range(2 + d % 4)]
             for d in range(1, 8)]
C_, S_, P_ = 1000, 1001, 1002


def pairs(n, context_length=64, seed=0, documents=DOCUMENTS):
    generator = torch.Generator().manual_seed(seed)
    return sentence_pairs(documents, n, C_, S_, P_, context_length, generator)


def split(row, mask):
    """[CLS] S₁ [SEP] S₂ [SEP] [PAD] … taken apart token by token."""
    row, n = row.tolist(), int(mask.sum())
    assert mask.tolist() == [True] * n + [False] * (len(row) - n) and set(row[n:]) <= {P_}
    assert row[0] == C_ and row[n - 1] == S_ and row[:n].count(S_) == 2 and P_ not in row[:n]
    middle = row.index(S_)
    return row[1:middle], row[middle + 1:n - 1]


def flat(sentences):
    return list(itertools.chain(*sentences))


def test_layout_segments_and_labels():
    tokens, segments, mask, labels = pairs(4000)
    assert tokens.dtype == segments.dtype == labels.dtype == torch.long and mask.dtype == torch.bool
    assert tokens.size(1) == mask.sum(1).max() and not mask.all()
    seen = set()
    for row, segment, m, label in zip(tokens, segments, mask, labels):
        first, second = split(row, m)
        padding = len(row) - len(first) - len(second) - 3
        ones = len(second) + 1
        assert segment.tolist() == [0] * (len(first) + 2) + [1] * ones + [0] * padding
        home, other = first[0] // 100, second[0] // 100
        cut, resume = 1 + first[-1] // 10 % 10, second[0] // 10 % 10
        assert first == flat(DOCUMENTS[home - 1][:cut])
        assert second == flat(DOCUMENTS[other - 1][resume:])
        assert first and second
        if label == 0:
            assert other == home and resume == cut
        else:
            assert other != home
        seen.add((int(label), home, other, cut, resume))
    others = {other for label, _, other, _, _ in seen if label}
    assert {home for _, home, _, _, _ in seen} == others == set(range(1, 8))
    cuts = {(d, cut) for d, document in enumerate(DOCUMENTS, 1) for cut in range(1, len(document))}
    assert {(home, cut) for _, home, _, cut, _ in seen} == cuts
    # The cut of the other document does not depend on the cut of this one (document 4 has one cut).
    resumed = {(other, resume) for _, home, other, _, resume in seen if home == 4 != other}
    assert resumed == {(d, cut) for d, cut in cuts if d != 4}


def test_half_follow_and_documents_are_equally_likely():
    tokens, _, mask, labels = pairs(6000)
    assert abs(z_score(labels.sum(), 6000, 0.5)) < 3
    homes = tokens[:, 1] // 100
    others = torch.stack([row[(row == S_).nonzero()[0, 0] + 1] for row in tokens]) // 100
    for d in range(1, 8):
        assert abs(z_score((homes == d).sum(), 6000, 1 / 7)) < 3.5
        away = others[(labels == 1) & (homes == d)]
        for e in set(range(1, 8)) - {d}:
            assert abs(z_score((away == e).sum(), len(away), 1 / 6)) < 3.5


def test_a_pair_that_is_too_long_keeps_the_tokens_around_the_cut():
    lengths = [(4, 20), (20, 4), (20, 20), (3, 4)]
    documents = [[[100 * d + i for i in range(a)], [100 * d + 50 + i for i in range(b)]]
                 for d, (a, b) in enumerate(lengths, 1)]
    wanted = {1: (4, 7), 2: (7, 4), 3: (5, 6), 4: (3, 4)}   # 14 tokens are 3 special ones and 11
    found = {}
    for row, m, label in zip(*(pairs(200, 14, documents=documents)[i] for i in (0, 2, 3))):
        first, second = split(row, m)
        if label == 0:
            d = first[0] // 100
            found[d] = (len(first), len(second))
            assert first == documents[d - 1][0][-len(first):]
            assert second == documents[d - 1][1][:len(second)]
        assert m.sum() <= 14
    assert found == wanted


def test_pairs_repeat_with_a_seed_and_differ_without():
    assert all(torch.equal(a, b) for a, b in zip(pairs(9), pairs(9)))
    generator = torch.Generator().manual_seed(0)
    first, second = (sentence_pairs(DOCUMENTS, 9, C_, S_, P_, 64, generator)[3] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("documents", [
    DOCUMENTS[:1], [[[1], [2]], [[3]]], [], [[[1], []], [[2], [3]]],
])
def test_too_few_documents_and_empty_sentences_say_why(documents):
    with pytest.raises(ValueError, match=f"at least 2 documents.*; got {len(documents)} documents"):
        pairs(3, documents=documents)


def test_the_shortest_context():
    tokens, segments, mask, _ = pairs(50, context_length=5)
    assert tokens.shape == (50, 5) and mask.all()
    assert (tokens[:, [0, 2, 4]] == torch.tensor([C_, S_, S_])).all()
    assert (segments == torch.tensor([0, 0, 0, 1, 1])).all()
    with pytest.raises(ValueError, match="context_length is 4"):
        pairs(3, context_length=4)


def test_no_pair_says_why():
    assert len(pairs(1)[3]) == 1
    with pytest.raises(ValueError, match="there is no row to pad"):
        pairs(0)
