"""Lesson 12: fine-tuning: a pre-trained model learns a task from a small number of labels.

You will see    four different tasks written as sequences of tokens, so that the model itself does
                not change; the combined objective L₃ = L₂ + λ L₁ computed by hand; accuracy
                against the number of labels, with and without pre-training; the effect of λ.
Source          course A, "GPT 1"; course C, "GPT-1: Decoder-only transformer (2018)"; Radford,
                Narasimhan, Salimans and Sutskever 2018, §§3.2 and 3.3, eqs. 3–5, fig. 1, table 5.
Expect          2.2 minutes on one core (quick: about 8 s); every check passes. Over five seeds,
                pre-training ends 0.06 to 0.16 bits per review above the entropy. It adds 24 to 29
                points of accuracy with 32 labels, and less than one with 512. λ = ½ costs 1 to 11
                points with 8 labels and changes almost nothing from 128 labels on. On the other
                three tasks the accuracy is 87 to 100 %, where ½ is possible without the looks.
Not here        training only a few weights (lesson 14), or none at all (lesson 13).

Shapes: B examples, K sequences per example, T time, C = d_model, V vocabulary, Y classes.
"""
# %%
import math

import torch

from course import Lesson
from minigpt import plotting
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
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.text.tokenizers import WordTokenizer
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, causal_loss
from minigpt.worlds import reviews
from minigpt.worlds.grammar import Grammar, tokens
from minigpt.worlds.reviews import AGAINST, FOR, REACTIONS, STANCES

lesson = Lesson("12_finetuning", threads=1)

# %% [markdown]
# ## 1. Much text, few labels
# Text is cheap: anyone can collect reviews. Labels are expensive: a person must read each review
# and say what it means. GPT-1 uses both, in two stages. First it is *pre-trained*: the language
# model of lesson 06 reads all the text (objective L₁). Then it is *fine-tuned*: training continues
# on labelled examples, with one new matrix W_y on top. All weights change, the old ones too.
#
# Pre-training is useful if the vectors that predict the next word also represent what a whole text
# means. Then one pre-trained model serves for many tasks, and each task needs few labels. When a
# model is to become an assistant, supervised fine-tuning is also the middle stage: it comes after
# pre-training, and before the alignment of lessons 17 to 19.
#
# The texts are lesson 11's reviews, but with sixteen words of praise and sixteen of blame instead
# of four. A reviewer who is *for* a film writes "was superb", "was never dull" or "was dull at
# first, but superb by the end", in proportions 3 : 1 : ½. A reviewer who is *against* it writes the
# same with praise and blame exchanged. Now count where *superb* occurs: 3 + ½ times in reviews for
# the film, and 1 + ½ times in reviews against it. So the word alone shows the stance in
# 3½ / 5 = 70 % of cases. The words around it decide the rest ("never", "at first"). A model that
# has never met *bleak* or *witty* cannot use them at all.
#
# Items: B05, C05, C32

# %%
QUALITIES = (
    "awful bleak boring clumsy coarse crude dreary dull feeble flat hollow lame messy pale stale "
    "tedious",
    "bold bright brilliant charming clever delightful fine fresh funny graceful lovely moving "
    "splendid superb warm witty")


def review_grammar(stance):
    rules = reviews.rules("<look>. <second look>. <feeling>. <verdict>!", stance)
    del rules["opening"]
    rules["quality"] = [("<right>", 3), ("never <wrong>", 1),
                        ("<wrong> at first, but <right> by the end", 0.5)]
    rules["right"], rules["wrong"] = QUALITIES[stance].split(), QUALITIES[1 - stance].split()
    rules["second look"] = "And the [costumes|songs] were <quality>"
    rules["felt"] = [(REACTIONS[stance], 3), (f"never {REACTIONS[1 - stance]}", 1)]
    return Grammar(rules)


GRAMMARS = review_grammar(AGAINST), review_grammar(FOR)


def draw_reviews(n, generator):
    """n reviews and their stances. A review is a list of four sentences of tokens."""
    stances = torch.randint(2, (n,), generator=generator).tolist()
    return [sentences(GRAMMARS[stance].sample(generator)) for stance in stances], stances


def sentences(text):
    """A review as its sentences, each a tuple of tokens with its full stop."""
    words = tokens(text)
    ends = [at for at, word in enumerate(words, 1) if word in (".", "!")]
    return [words[a:b] for a, b in zip([0, *ends], ends)]


reading, _ = draw_reviews(lesson.pick(full=6_000, quick=600), lesson.generator)     # no labels
fresh, stances = draw_reviews(200, lesson.generator)
for stance in (FOR, AGAINST):
    print(f"  {STANCES[stance]:<8} {''.join(sum(fresh[stances.index(stance)], ()))}")

# %% [markdown]
# A token is a word here, so that sequences are short. The vocabulary for pre-training has the words
# and one mark, ∎, which stands before and after each review. It has no token for a task.

# %%
words = [word for review in reading for sentence in review for word in sentence]
tokenizer = WordTokenizer.train(words, special_tokens=["∎"], keep_spaces=True)
MARK, V = tokenizer.special_tokens["∎"], tokenizer.vocab_size
SPECIAL = SpecialTokens(start=V, delimiter=V + 1, extract=V + 2)    # W_e has no such rows yet
NAMES = [*tokenizer.vocabulary, "[start]", "[delimiter]", "[extract]"]


def encode(*parts):
    return tokenizer.encode([word for part in parts for word in part])


# %% [markdown]
# ## 2. Four tasks, one shape
# A language model reads one sequence. But a question may come with four answers, and two texts that
# are compared have no order. One could build a new network on top for each task; a large part of
# the model would then not be pre-trained. GPT-1 changes the *input* instead (fig. 1). Three new
# tokens, *start*, *delimiter* and *extract*, join the parts of an example into a sequence. The task
# reads one vector only: the last layer at *extract*. That position may look at the whole sequence.
#
# The functions below only join lists. So we can compare them with the boxes of the figure, box by
# box. (`entailment` asks whether a hypothesis follows from a premise. `similarity` makes two
# sequences, one for each order. `multiple_choice` makes one sequence per answer.)
#
# Items: C41

# %%
FIGURE = SpecialTokens("Start", "Delim", "Extract")


def boxes(sequences):
    return [" | ".join(sequence) for sequence in sequences]


FIG_1 = 'A: "GPT 1", Supervised fine-tuning; Radford et al. 2018, fig. 1'
lesson.check("fig. 1: classification", boxes(classification(["Text"], FIGURE)),
             ["Start | Text | Extract"], atol=0, source=FIG_1, items=("A14",))
lesson.check("fig. 1: entailment", boxes(entailment(["Premise"], ["Hypothesis"], FIGURE)),
             ["Start | Premise | Delim | Hypothesis | Extract"],
             atol=0, source=FIG_1, items=("A14",))
lesson.check("fig. 1: similarity, both orders", boxes(similarity(["Text 1"], ["Text 2"], FIGURE)),
             ["Start | Text 1 | Delim | Text 2 | Extract",
              "Start | Text 2 | Delim | Text 1 | Extract"],
             atol=0, source=FIG_1, items=("A14",))
choices = multiple_choice(["Context"], [["Answer 1"], ["Answer 2"], ["Answer N"]], FIGURE)
lesson.check("fig. 1: multiple choice", boxes(choices),
             ["Start | Context | Delim | Answer 1 | Extract",
              "Start | Context | Delim | Answer 2 | Extract",
              "Start | Context | Delim | Answer N | Extract"],
             atol=0, source=FIG_1, items=("A14",))

# %% [markdown]
# The three tokens are new: they do not occur in pre-training. `add_tokens` copies the model and
# gives its embedding matrix W_e three more rows, small and random. Only these rows and W_y are new.
#
# ## 3. The equations, by hand
# Let C be the labelled examples (x, y), where x = x¹ … x^m is a sequence of m tokens and y its
# label. h_l^m is the vector of the last layer l at the last token m, which is *extract*.
#
#     P(y | x¹ … x^m) = softmax(h_l^m W_y)             eq. 3;  h_l^m (C), W_y (C, Y)
#     L₂(C) = Σ_(x,y) log P(y | x¹ … x^m)              eq. 4:  learn the labels
#     L₁(C) = Σ_(x,y) Σᵢ log P(xⁱ | x¹ … xⁱ⁻¹)         eq. 1:  stay a language model of the texts
#     L₃(C) = L₂(C) + λ L₁(C)                          eq. 5:  both at once
#
# **The sign.** L₁, L₂ and L₃ are sums of log-probabilities. They are at most 0, and larger is
# better: they are objectives to *maximise*. Course A calls L₃ "the combined loss", but a loss is
# minimised. The loss is **−L₃**. From here on we also divide, as the paper's code does: L₂ is a
# mean over the examples, L₁ a mean over the tokens. So
#
#     loss = −L₃ = mean(−log P(y | x)) + λ · mean(−log P(xⁱ | x^<i))
#
# Below is a tiny model with large weights, in double precision. By hand means: each text is read
# alone, without padding, and every product is a loop.

# %%
def tiny(n_classes):
    gpt = GPT(GPTConfig(V, 64, n_layers=2, n_heads=3, d_model=12)).double()
    model = FineTuned(add_tokens(gpt), n_classes)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.6, generator=lesson.generator)
    return model


def softmax(scores):
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


def probabilities(model, sequences):
    """Eq. 3 for one example in plain Python: P(y | x) for each y.

    With several classes, the vectors of the sequences are added. With one column in W_y (multiple
    choice), each sequence has one score.
    """
    with torch.no_grad():
        vectors = [model.gpt.hidden(torch.tensor([s]))[0, -1].tolist() for s in sequences]
    columns = model.head.weight.tolist()                            # the columns of W_y
    if len(columns) == 1:
        return softmax([sum(h * w for h, w in zip(vector, columns[0])) for vector in vectors])
    total = [sum(hs) for hs in zip(*vectors)]
    return softmax([sum(h * w for h, w in zip(total, column)) for column in columns])


looks = [encode(*review[:2]) for review in fresh[:3]]               # three texts, three lengths
firsts = [encode(review[0]) for review in fresh[:3]]
feelings = [encode(review[2]) for review in fresh[:3]]
examples = {
    "classification": (2, [classification(x, SPECIAL) for x in looks]),
    "entailment": (3, [entailment(x, y, SPECIAL) for x, y in zip(looks, feelings)]),
    "similarity": (2, [similarity(x, y, SPECIAL) for x, y in zip(firsts, feelings)]),
    "multiple choice": (1, [multiple_choice(x, feelings, SPECIAL) for x in looks]),
}
for task, (n_classes, batch) in examples.items():
    model = tiny(n_classes)
    with torch.no_grad():
        got = model(*pad_examples(batch)).softmax(-1)
    by_hand = [probabilities(model, sequences) for sequences in batch]
    lesson.check(f"P(y|x) = softmax(h W_y), {task}", got, by_hand, atol=1e-9,
                 source='A: "GPT 1"; Radford et al. 2018, eq. 3', items=("A11",))

# %% [markdown]
# Texts of different lengths share a batch: padding stands on the *right*, and a causal model never
# looks to the right. In `similarity` there is no first text. If we swap the two texts, we swap the
# two sequences, and their sum stays the same. One sequence alone would depend on the order.

# %%
model = tiny(2)
there = pad_examples([similarity(x, y, SPECIAL) for x, y in zip(firsts, feelings)])
back = pad_examples([similarity(y, x, SPECIAL) for x, y in zip(firsts, feelings)])
pair, mask = there
longer = (torch.nn.functional.pad(pair, (0, 5), value=V),
          torch.nn.functional.pad(mask, (0, 5), value=False))
with torch.no_grad():
    lesson.check("consistency: similarity(A, B) = similarity(B, A)", model(*there), model(*back),
                 atol=1e-12, source="Radford et al. 2018, §3.3")
    lesson.check("consistency: five more columns of padding change nothing", model(*longer),
                 model(*there), atol=1e-12, source="causal mask")
    one_order = [model(pair[:, k:k + 1], mask[:, k:k + 1]) for k in (0, 1)]
apart = (one_order[0] - one_order[1]).abs().max().item()
lesson.claim("one sequence alone depends on the order of the two texts", apart > 0.01,
             f"the logits of A, B and of B, A differ by up to {apart:.2f}")

# %% [markdown]
# Now the loss. L₂ is the mean log of the probabilities above. L₁ predicts each token after *start*
# from the tokens before it; *delimiter* and *extract* are predicted too, as in the paper's code.
# Then the gradient. Take a random direction d in the space of *all* parameters θ, and move a small
# step h along it, to both sides. The difference quotient must be the slope ∇(−L₃)·d.

# %%
n_classes, batch = examples["entailment"]
model, labels, λ = tiny(n_classes), [2, 0, 1], 0.5
chosen = [probabilities(model, sequences)[y] for sequences, y in zip(batch, labels)]
L2 = sum(map(math.log, chosen)) / len(chosen)
logs = []
for sequence in (sequence for sequences in batch for sequence in sequences):
    for i in range(1, len(sequence)):
        with torch.no_grad():
            scores = model.gpt(torch.tensor([sequence[:i]]))[0, -1].tolist()
        logs.append(math.log(softmax(scores)[sequence[i]]))
L1 = sum(logs) / len(logs)
padded = (*pad_examples(batch), torch.tensor(labels))
lesson.check("loss at λ = 0: −L₂, example by example",
             finetuning_loss(model, *padded, language_weight=0.0), -L2, atol=1e-9,
             source='A: "GPT 1"; Radford et al. 2018, eq. 4', items=("A12",))
loss = finetuning_loss(model, *padded, language_weight=λ)
lesson.check("loss = −L₃ = −(L₂ + λ L₁), token by token", loss, -(L2 + λ * L1), atol=1e-9,
             source='A: "GPT 1", corrected in sign; Radford et al. 2018, eq. 5',
             items=("A09", "A13"))
loss.backward()
parameters = list(model.parameters())
direction = [torch.randn(p.shape, generator=lesson.generator, dtype=torch.float64)
             for p in parameters]
along = sum((p.grad * d).sum() for p, d in zip(parameters, direction)).item()
sides, h = [], 1e-6
with torch.no_grad():
    for step in (h, -2 * h):                        # to θ + hd, and from there to θ − hd
        for p, d in zip(parameters, direction):
            p.add_(d, alpha=step)
        sides.append(finetuning_loss(model, *padded, language_weight=λ).item())
lesson.check("∇(−L₃)·d = (−L₃(θ + hd) + L₃(θ − hd)) / 2h", along, (sides[0] - sides[1]) / (2 * h),
             atol=1e-5, source="finite differences", items=("A13",))

# %% [markdown]
# ## 4. Pre-training
# A GPT reads the reviews without labels, as in lesson 06. The grammar tells us the exact entropy of
# the reviews, and no model can have a smaller expected loss.

# %%
def reading_loss(model, batch):
    rows, present = (x.to(lesson.device) for x in batch)            # (B, T) each
    return causal_loss(model(rows), rows, present)


corpus, unread = ([[MARK, *encode(*review), MARK] for review in part] for part in (reading, fresh))
judged = pad(unread, side="right", value=MARK)                      # (reviews, longest) each
# The stance is drawn with probability ½ each, so it adds one bit to a review's surprisal.
exact_bits = 1 + sum(GRAMMARS[stance].surprisal("".join(sum(review, ())))
                     for review, stance in zip(fresh, stances)) / len(fresh)
CONFIG = GPTConfig.modern(V, context_length=96, n_layers=2, n_heads=4, d_model=64)
gpt = GPT(CONFIG, lesson.generator).to(lesson.device)
config = TrainingConfig(max_steps=lesson.pick(full=650, quick=30), learning_rate=5e-3,
                        weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=130, quick=15), seed=lesson.seed)
print(f"  {count_parameters(gpt):,} parameters, {len(reading):,} reviews, "
      f"{config.max_steps} steps of 32")


def next_reviews(generator):
    drawn = torch.randint(len(corpus), (32,), generator=generator).tolist()
    return pad([corpus[i] for i in drawn], side="right", value=MARK)


def review_bits(model):
    nats = reading_loss(model, judged).item()
    return {"val_loss": bits(nats) * int(judged[1][:, 1:].sum()) / len(fresh)}


def on_row(row):
    print(f"  step {row['step']:5d}   {row['val_loss']:7.2f} bits per review, "
          f"{row['val_loss'] - exact_bits:7.2f} above the entropy", flush=True)


rows = train(gpt, next_reviews, reading_loss, config, review_bits, on_row=on_row)
history = [row["val_loss"] - exact_bits for row in rows]
lesson.claim("pre-training ends within one bit per review of the exact entropy, on fresh reviews",
             history[-1] < 1, f"{history[-1]:.2f} bits above the entropy of these reviews, "
             f"{exact_bits:.2f} bits", full_run=True)

# %% [markdown]
# ## 5. What is a label worth?
# The task: read the first two sentences of a review ("The plot was never bleak. And the songs were
# dull at first, but witty by the end."), and say whether the reviewer is for or against the film.
# The other two sentences, feeling and advice, are removed. We compare three ways to learn it:
#
#     from scratch            the same GPT with new weights; it learns from the labels only
#     pre-trained, λ = 0      the pre-trained GPT; it learns from the labels
#     pre-trained, λ = ½      the same, and it also predicts each next word of the labelled texts
#
# All three have the same optimizer, the same learning rate and, in each draw, the same labelled
# reviews. Training from scratch has three times the steps, because it starts further away. With
# eight labels, much depends on which reviews were drawn. So we draw several times for each size.
# The bars in the figure go from the worst draw to the best.

# %%
def learn(base, n_classes, batch, steps, language_weight, seed):
    """Fine-tune a copy of `base` on tokens (N, K, T), mask (N, K, T), labels (N)."""
    generator = torch.Generator().manual_seed(seed)
    model = FineTuned(add_tokens(base, generator=generator), n_classes, generator)
    n = len(batch[2])

    def next_batch(generator):
        rows = torch.randperm(n, generator=generator)[:16]
        tokens, mask, labels = (part[rows].to(lesson.device) for part in batch)
        longest = int(mask.sum(-1).max())
        return tokens[..., :longest], mask[..., :longest], labels

    def loss(model, batch):
        return finetuning_loss(model, *batch, language_weight)

    config = TrainingConfig(max_steps=steps, learning_rate=3e-3, warmup_steps=5, weight_decay=0.0,
                            optimizer="muon", evaluate_every=steps, seed=seed)
    train(model, next_batch, loss, config, progress=False)
    return model


@torch.no_grad()
def accuracy(model, batch):
    tokens, mask, labels = (part.to(lesson.device) for part in batch)
    return (model(tokens, mask).argmax(-1) == labels).float().mean().item()


def judged_reviews(n, generator):
    """The first two sentences of n reviews, as a batch for classification."""
    drawn, labels = draw_reviews(n, generator)
    examples = [classification(encode(*review[:2]), SPECIAL) for review in drawn]
    return *pad_examples(examples), torch.tensor(labels)


SIZES = lesson.pick(full=(8, 32, 128, 512), quick=(8, 32))
DRAWS, STEPS = lesson.pick(full=5, quick=2), lesson.pick(full=60, quick=5)
ARMS = {"from scratch": (False, 0.0), "pre-trained, λ = 0": (True, 0.0),
        "pre-trained, λ = ½": (True, 0.5)}
test = judged_reviews(400, lesson.generator)
right = {arm: torch.zeros(len(SIZES), DRAWS) for arm in ARMS}   # accuracy on 400 fresh reviews
own = torch.zeros(len(SIZES), DRAWS)                # from scratch: accuracy on its own labels
for i, size in enumerate(SIZES):
    for draw in range(DRAWS):
        batch = judged_reviews(size, lesson.generator)
        seed = 1_000 * lesson.seed + 10 * i + draw
        for arm, (pretrained, λ) in ARMS.items():
            new = torch.Generator().manual_seed(seed)
            base = gpt if pretrained else GPT(CONFIG, new).to(lesson.device)
            model = learn(base, 2, batch, STEPS if pretrained else 3 * STEPS, λ, seed)
            right[arm][i, draw] = accuracy(model, test)
            if not pretrained:
                own[i, draw] = accuracy(model, batch)
    print(f"  {size} labels")
    for arm, shares in right.items():
        print(f"      {arm:<20}{shares[i].mean():6.1%} (from {shares[i].min():.0%} to "
              f"{shares[i].max():.0%})", flush=True)
    print(f"      from scratch, on its own labels {own[i].mean():.0%}")

scratch, plain, helped = right.values()
gaps = (plain - scratch).mean(1).tolist()                           # one per size
widest = max(range(len(SIZES)), key=gaps.__getitem__)
lesson.claim("with 32 labels, pre-training adds 15 points of accuracy or more",
             gaps[SIZES.index(32)] > 0.15, "pre-trained minus from scratch, λ = 0: "
             + ", ".join(f"{gap:+.1%} with {size}" for gap, size in zip(gaps, SIZES))
             + f"; the largest difference is with {SIZES[widest]}", full_run=True)

# %% [markdown]
# The model from scratch was trained long enough: the last line of each size shows that it gives
# nearly all of its own labels correctly. Its problem is the words. With 32 labels it has met each
# adjective a few times at most. It has little evidence that *never* reverses every adjective. The
# pre-trained model has learned both, because both help to predict the next word. It only has to
# learn which of the two groups of words is called *for*. With hundreds of labels the difference
# disappears: this grammar is small, and so many labels contain all of it.
#
# What is the effect of λ? The paper adds L₁ for better generalisation and faster convergence
# (§3.2). When it leaves L₁ out (table 5), larger data sets lose and smaller ones do not. Here each
# draw is run with λ = 0 and with λ = ½, from the same weights and with the same order of batches.
# So we can subtract pair by pair. We look at each size separately, because with few labels much can
# change, and with many labels almost nothing can.
#
# With 8 labels, λ = ½ costs accuracy. With seed 0 all five draws lose. Over five seeds, the mean
# difference lies between −11 and −1 points, but three of the five intervals contain 0. (With five
# draws, an interval of 2 standard errors contains the true mean in about 88 % of cases.) With 32
# labels the means lie between −8 and +3 points. From 128 labels on they are within one point of 0.
# These numbers do not tell the reason. Eight texts may be too little language to learn from, or the
# steps may be too few for two objectives. More steps for the smallest size would show which.

# %%
def interval(x):
    """The mean of some numbers, and 2 standard errors of that mean."""
    return x.mean().item(), 2 * x.std().item() / len(x) ** 0.5


print(f"  mean of {DRAWS} pairs ± 2 standard errors:")
effects, gains = [], []
for size, by_λ, by_pretraining in zip(SIZES, helped - plain, plain - scratch):
    (effect, error), (gain, gain_error) = interval(by_λ), interval(by_pretraining)
    effects.append(effect)
    gains.append(gain)
    print(f"  {size:4d} labels   pre-trained minus from scratch {gain:+6.1%} ± {gain_error:4.1%}\n"
          f"                λ = ½ minus λ = 0              {effect:+6.1%} ± {error:4.1%}   ("
          + ", ".join(f"{x:+.1%}" for x in by_λ.tolist()) + ")")
lesson.claim("λ changes less than pre-training does, with 8, 32 and 128 labels",
             all(abs(effect) < gain for effect, gain in zip(effects[:3], gains)),
             "λ = ½ in place of 0, and pre-training in place of none: "
             + "; ".join(f"{effect:+.1%}, {gain:+.1%} with {size}"
                         for effect, gain, size in zip(effects, gains, SIZES)), full_run=True)

fig, axes = plotting.figure(7.5, 4.2)
shifts = (0.96, 1.0, 1.04)                          # move the bars apart, so that none is hidden
for (arm, shares), marker, shift in zip(right.items(), "so^", shifts):
    mean = shares.mean(1)
    spread = torch.stack([mean - shares.min(1).values, shares.max(1).values - mean])  # (2, sizes)
    axes.errorbar([size * shift for size in SIZES], mean, spread, marker=marker, markersize=5,
                  capsize=3, label=arm)
axes.axhline(0.5, color="black", linestyle=":", linewidth=1, label="guessing at random")
axes.set_xscale("log", base=2)
axes.set_xticks(SIZES, map(str, SIZES))
axes.minorticks_off()
axes.set(xlabel="labelled reviews", ylabel="accuracy on 400 fresh reviews", ylim=(0.4, 1.02))
axes.set_title(f"Accuracy against labels (mean, best and worst of {DRAWS} draws)")
axes.legend(loc="lower right", bbox_to_anchor=(1, 0.2))
lesson.figure(fig, "labels")

# %% [markdown]
# ## 6. The other three tasks
# The model and the training loop stay the same. W_y is new, and only the input changes. Call the
# first two sentences of a review its *looks*. We know the right answers, because we know the stance
# of each reviewer.
#
#     entailment         premise: two looks. hypothesis: a feeling. Does it follow from the premise?
#     similarity         one look of each of two reviewers. Do they have the same stance?
#     multiple choice    two looks and four endings (feeling and advice). One ending has the stance
#                        of the looks, three have the other stance. Which one?
#
# What accuracy is possible *without* reading the looks? In the first two tasks, ½. In the third, a
# random guess among four is right in ¼ of cases, but a constant preference is better. Suppose that
# we always choose a positive ending. If the reviewer is for the film, there is only one, and it is
# right; if not, we are wrong. That gives ½. So the model must beat ½ in all three tasks. (A reader
# who sees all four endings side by side needs no looks: the right ending is the one that differs
# from the other three. Our model cannot do so, because it scores each sequence alone (fig. 1). If
# you design a test, look for such shortcuts first.)
#
# The paper's entailment data have a third class, neutral. Our reviewers write nothing that leaves
# the stance open, so we have two classes. λ = ½, and the pre-trained model and the one from scratch
# have the same number of steps.
#
# Over five seeds, the model from scratch reaches 44 to 56 % in entailment and 50 to 75 % in
# similarity. The number in brackets below is its accuracy on its own labels. If it is much higher,
# the model has learned those examples by heart. In multiple choice it reaches 58 to 99 %: there an
# example has four sequences, and its label says something about each of them.

# %%
def entailment_task(n, generator):
    premises, stances = draw_reviews(n, generator)
    hypotheses, others = draw_reviews(n, generator)
    examples = [entailment(encode(*a[:2]), encode(b[2]), SPECIAL)
                for a, b in zip(premises, hypotheses)]
    return examples, [int(s == o) for s, o in zip(stances, others)]


def similarity_task(n, generator):
    firsts, stances = draw_reviews(n, generator)
    seconds, others = draw_reviews(n, generator)
    examples = [similarity(encode(a[0]), encode(b[0]), SPECIAL) for a, b in zip(firsts, seconds)]
    return examples, [int(s == o) for s, o in zip(stances, others)]


def multiple_choice_task(n, generator):
    contexts, stances = draw_reviews(n, generator)
    answers = torch.randint(4, (n,), generator=generator).tolist()
    examples = []
    for context, stance, answer in zip(contexts, stances, answers):
        endings = [sentences(GRAMMARS[stance if k == answer else 1 - stance].sample(generator))[2:]
                   for k in range(4)]
        examples.append(multiple_choice(encode(*context[:2]),
                                        [encode(*ending) for ending in endings], SPECIAL))
    return examples, answers


LABELLED, TRIED = lesson.pick(full=256, quick=16), lesson.pick(full=300, quick=40)
TASK_STEPS = lesson.pick(full=240, quick=3)
TASKS = {"entailment": (entailment_task, 2), "similarity": (similarity_task, 2),
         "multiple choice": (multiple_choice_task, 1)}
BLIND = 1 / 2                                       # accuracy without the looks, in each task
noise = 4 * (BLIND * (1 - BLIND) / TRIED) ** 0.5    # four standard errors
results = {}
for task, (draw_task, n_classes) in TASKS.items():
    drawn, answers = draw_task(LABELLED, lesson.generator)
    tried, truths = draw_task(TRIED, lesson.generator)
    print(f"\n  {task}, answer {answers[0]}:")
    for sequence in drawn[0]:
        print("    " + "".join(NAMES[token] for token in sequence))
    batch = *pad_examples(drawn), torch.tensor(answers)
    test = *pad_examples(tried), torch.tensor(truths)
    results[task], on_own = [], []
    for base in (gpt, GPT(CONFIG, torch.Generator().manual_seed(lesson.seed)).to(lesson.device)):
        model = learn(base, n_classes, batch, TASK_STEPS, 0.5, lesson.seed)
        results[task].append(accuracy(model, test))
        on_own.append(accuracy(model, batch))
    pretrained, untrained = results[task]
    lesson.claim(f"{task}: the pre-trained model beats what is possible without the looks",
                 pretrained > BLIND + noise,
                 f"{pretrained:.1%} of {TRIED} fresh examples with {LABELLED} labels; from scratch "
                 f"{untrained:.1%} ({on_own[1]:.0%} on its own labels); without the looks "
                 f"{BLIND:.0%} ± {noise:.0%}", full_run=True)
above = [results[task][0] - results[task][1] for task in ("entailment", "similarity")]
lesson.claim("entailment and similarity: at least 10 points above training from scratch",
             min(above) > 0.1, f"entailment {above[0]:+.0%}, similarity {above[1]:+.0%}",
             full_run=True)

# %%
fig, axes = plotting.figure(7, 3.4)
bars = ((-0.2, 1, plotting.COLOURS[4], "from scratch"),
        (0.2, 0, plotting.COLOURS[0], "pre-trained"))
for shift, which, colour, name in bars:
    heights = [results[task][which] for task in TASKS]
    drawn = axes.bar([i + shift for i in range(3)], heights, 0.38, color=colour,
                     label=f"{name}, {LABELLED} labels")
    axes.bar_label(drawn, fmt=lambda x: f"{x:.0%}", padding=2)
axes.axhline(BLIND, color="black", linestyle=":", label="without the looks")
axes.set_xticks(range(3), list(TASKS))
axes.set(ylabel=f"accuracy on {TRIED} fresh examples", ylim=(0, 1.27),
         yticks=[0, 0.25, 0.5, 0.75, 1], title="The same model on three more tasks")
axes.legend(ncols=3, loc="upper center")
lesson.figure(fig, "tasks")

# %%
lesson.end()
