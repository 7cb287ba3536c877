"""Lesson 12: fine-tuning, or how a model that has read a lot learns a task from a handful of labels.

You will see    four different tasks poured into one shape, so that nothing in the model has to change; the loss L₃ = L₂ + λ L₁ by hand;
                accuracy against the number of labels, with pre-training and without; and what λ is worth, whatever its sign.
Source          course A, "GPT-1"; Radford, Narasimhan, Salimans and Sutskever 2018, §§3.2 and 3.3, eqs. 3–5, fig. 1 and table 5.
Expect          1.3 minutes on one core (quick: about 8 s); every check passes; pre-training ends 0.1 bits a review above the entropy; then with 32
                labels it is worth 25 to 35 points of accuracy (five seeds) and with 512 hardly any; λ = ½ does not help: over all sizes it costs
                1 to 4 points; the other three tasks reach 74 to 99 %.
Not here        changing only a few of the weights (lesson 14), and none at all (lesson 13).
"""
# %%
import math

import torch

from lessons.course import Lesson
from minigpt import plotting
from minigpt.adaptation.finetuning import (
    FineTuned, SpecialTokens, add_tokens, classification, entailment, finetuning_loss, multiple_choice, pad, similarity,
)
from minigpt.models.gpt import GPT, GPTConfig, count_parameters
from minigpt.text import reviews
from minigpt.text.grammar import Grammar, tokens
from minigpt.text.reviews import AGAINST, FOR, REACTIONS, STANCES
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, causal_loss

lesson = Lesson("12_finetuning")
torch.set_num_threads(1)                                                # narrow layers: a second thread only waits

# %% [markdown]
# ## 1. Much to read, little that is labelled
# Text is cheap: anyone can collect reviews. Labels are dear: someone must read each review and say what it means. GPT-1 takes
# both, one after the other. First the language model of lesson 06 reads everything (L₁). Then it is *fine-tuned*: all of its weights go
# on learning, now from labelled examples, with one new matrix W_y on top.
#
# The texts are lesson 11's reviews, with sixteen words of praise and sixteen of blame instead of four. Whoever is for a film says
# "was superb", "was never dull", or "was dull at first, but superb by the end", in proportions 3 : 1 : ½; whoever is against it,
# the same with praise and blame exchanged. So *superb* alone speaks for the film in (3 + ½) of (3 + ½) + (1 + ½) cases, 70 %. What was done
# to the word decides; and who has met neither *bleak* nor *witty* has nothing to decide on.

# %%
QUALITIES = ("awful bleak boring clumsy coarse crude dreary dull feeble flat hollow lame messy pale stale tedious",
             "bold bright brilliant charming clever delightful fine fresh funny graceful lovely moving splendid superb warm witty")


def review_grammar(stance):
    rules = reviews.rules("<look>. <second look>. <feeling>. <verdict>!", stance)
    del rules["opening"]
    rules["quality"] = [("<right>", 3), ("never <wrong>", 1), ("<wrong> at first, but <right> by the end", 0.5)]
    rules["right"], rules["wrong"] = QUALITIES[stance].split(), QUALITIES[1 - stance].split()
    rules["second look"] = "And the [costumes|songs] were <quality>"
    rules["felt"] = [(REACTIONS[stance], 3), (f"never {REACTIONS[1 - stance]}", 1)]
    return Grammar(rules)


GRAMMARS = review_grammar(AGAINST), review_grammar(FOR)


def draw_reviews(n, generator):
    """n reviews, each a list of its four sentences (of tokens), and their stances."""
    stances = torch.randint(2, (n,), generator=generator).tolist()
    return [sentences(GRAMMARS[stance].sample(generator)) for stance in stances], stances


def sentences(text):
    """A review as its sentences, each a tuple of tokens with its full stop."""
    parts, words = [], tokens(text)
    ends = [at for at, word in enumerate(words, 1) if word in (".", "!")]
    return [words[a:b] for a, b in zip([0, *ends], ends)]


reading, _ = draw_reviews(lesson.pick(full=6_000, quick=600), lesson.generator)         # the labels stay behind
fresh, stances = draw_reviews(200, lesson.generator)
for stance in (FOR, AGAINST):
    print(f"  {STANCES[stance]:<8} {''.join(sum(fresh[stances.index(stance)], ()))}")

# %% [markdown]
# A token is a word here, so that sequences are short. The pre-trained vocabulary has the words and one mark, ∎, that stands between
# reviews. It knows nothing of tasks.

# %%
WORDS = ["∎", *sorted({word for review in reading for sentence in review for word in sentence})]
NUMBER = {word: i for i, word in enumerate(WORDS)}
V = len(WORDS)
SPECIAL = SpecialTokens(start=V, delimiter=V + 1, extract=V + 2)        # rows that W_e does not have yet
NAMES = [*WORDS, "[start]", "[delimiter]", "[extract]"]


def encode(*parts):
    return [NUMBER[word] for part in parts for word in part]


# %% [markdown]
# ## 2. Four tasks, one shape
# A language model reads one sequence. But a question may come with four answers, and two texts that are to be compared have no
# order. One could build a new model on top for each task; then most of what is on top would not be pre-trained. GPT-1 changes the
# *input* instead (fig. 1): three new tokens, *start*, *delimiter* and *extract*, tie the parts together, and the last layer's vector at
# *extract*, which has seen everything, is all that the task reads.
#
# The functions only put lists together, so we can hold them against the boxes of the figure, letter by letter.

# %%
FIGURE = SpecialTokens("Start", "Delim", "Extract")


def boxes(sequences):
    return [" | ".join(sequence) for sequence in sequences]


lesson.check("fig. 1: classification", boxes(classification(["Text"], FIGURE)), ["Start | Text | Extract"], atol=0, source="A; Radford 2018, fig. 1")
lesson.check("fig. 1: entailment", boxes(entailment(["Premise"], ["Hypothesis"], FIGURE)),
             ["Start | Premise | Delim | Hypothesis | Extract"], atol=0, source="A; Radford 2018, fig. 1")
lesson.check("fig. 1: similarity, both orders", boxes(similarity(["Text 1"], ["Text 2"], FIGURE)),
             ["Start | Text 1 | Delim | Text 2 | Extract", "Start | Text 2 | Delim | Text 1 | Extract"], atol=0, source="A; Radford 2018, fig. 1")
lesson.check("fig. 1: multiple choice", boxes(multiple_choice(["Context"], [["Answer 1"], ["Answer 2"], ["Answer N"]], FIGURE)),
             [f"Start | Context | Delim | Answer {k} | Extract" for k in ("1", "2", "N")], atol=0, source="A; Radford 2018, fig. 1")

# %% [markdown]
# The three tokens are new: pre-training never saw them. `add_tokens` copies the model and gives W_e three more rows, small and random;
# they and W_y are all that is new. (One could also reserve three rows before pre-training. They would get no text to learn from, only
# the softmax of L₁ pushing them away, so nothing is won.)
#
# ## 3. The equations, by hand
#     P(y | x) = softmax(h_l^m W_y)          eq. 3: h_l^m is the last layer at extract
#     L₂ = mean −log P(y | x)                eq. 4
#     L₃ = L₂ + λ L₁                         eq. 5: and go on being a language model, on the labelled texts
#
# A tiny model with large weights, in double precision. Each text is read alone, without padding; every product is a loop.

# %%
def tiny(n_classes):
    model = FineTuned(add_tokens(GPT(GPTConfig(V, 64, n_layers=2, n_heads=3, d_model=12)).double()), n_classes)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.6, generator=lesson.generator)
    return model


def softmax(scores):
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


def probabilities(model, sequences):
    """Eq. 3 for one example, in plain Python: a matrix W_y and a sum of vectors, or one number for each sequence."""
    with torch.no_grad():
        vectors = [model.gpt.hidden(torch.tensor([sequence]))[0, -1].tolist() for sequence in sequences]
    columns = model.head.weight.tolist()                                # the columns of W_y
    if len(columns) == 1:
        return softmax([sum(h * w for h, w in zip(vector, columns[0])) for vector in vectors])
    return softmax([sum(sum(hs) * w for hs, w in zip(zip(*vectors), column)) for column in columns])


looks = [encode(*review[:2]) for review in fresh[:3]]                   # three texts of different lengths
firsts, feelings = [encode(review[0]) for review in fresh[:3]], [encode(review[2]) for review in fresh[:3]]
examples = {
    "classification": (2, [classification(x, SPECIAL) for x in looks]),
    "entailment": (3, [entailment(x, y, SPECIAL) for x, y in zip(looks, feelings)]),
    "similarity": (2, [similarity(x, y, SPECIAL) for x, y in zip(firsts, feelings)]),
    "multiple choice": (1, [multiple_choice(x, feelings, SPECIAL) for x in looks]),
}
for task, (n_classes, batch) in examples.items():
    model = tiny(n_classes)
    with torch.no_grad():
        got = model(*pad(batch)).softmax(-1)
    lesson.check(f"P(y|x) = softmax(h W_y), {task}", got, [probabilities(model, sequences) for sequences in batch], atol=1e-9, source="A; Radford 2018, eq. 3")

# %% [markdown]
# Texts of different lengths share a batch because padding stands on the *right*: a causal model never looks there. And similarity has no first
# text: swapping the two swaps the two sequences, and a sum does not care. With one order only, it would.

# %%
model = tiny(2)
there, back = (pad([similarity(x, y, SPECIAL) for x, y in pairs]) for pairs in (list(zip(firsts, feelings)), list(zip(feelings, firsts))))
pair, mask = there
with torch.no_grad():
    lesson.check("similarity(A, B) = similarity(B, A)", model(*there), model(*back), atol=1e-12, source="A; Radford 2018, §3.3")
    one_order = [model(pair[:, k:k + 1], mask[:, k:k + 1]) for k in (0, 1)]
    longer = torch.nn.functional.pad(pair, (0, 5), value=V), torch.nn.functional.pad(mask, (0, 5), value=False)
    lesson.check("five more columns of padding change nothing", model(*longer), model(*there), atol=1e-12, source="causal mask")
apart = (one_order[0] - one_order[1]).abs().max().item()
lesson.claim("one order alone depends on who comes first", apart > 0.01, f"the logits of A, B and of B, A differ by up to {apart:.2f}")

# %% [markdown]
# Now L₃. L₂ is the mean of −log of the probabilities above; L₁ asks for each token after *start*, given those before it, *delimiter* and
# *extract* too, as the paper's code does. And the gradient: a small step along a random direction of *all* parameters, to both sides, tells
# how steep L₃ is there.

# %%
n_classes, batch = examples["entailment"]
model, labels, λ = tiny(n_classes), [2, 0, 1], 0.5
L2 = sum(-math.log(probabilities(model, sequences)[y]) for sequences, y in zip(batch, labels)) / 3
costs = []
for sequence in (sequence for sequences in batch for sequence in sequences):
    for t in range(1, len(sequence)):
        with torch.no_grad():
            costs.append(-math.log(softmax(model.gpt(torch.tensor([sequence[:t]]))[0, -1].tolist())[sequence[t]]))
L1 = sum(costs) / len(costs)
padded = (*pad(batch), torch.tensor(labels))
L3 = finetuning_loss(model, *padded, language_weight=λ)
lesson.check("L₃ = L₂ + λ L₁, token by token", L3, L2 + λ * L1, atol=1e-9, source="A; Radford 2018, eq. 5")
L3.backward()
parameters = list(model.parameters())
direction = [torch.randn(p.shape, generator=lesson.generator, dtype=torch.float64) for p in parameters]
along = sum((p.grad * d).sum() for p, d in zip(parameters, direction)).item()
sides, h = [], 1e-6
with torch.no_grad():
    for step in (h, -2 * h):                                            # one step forward, then two back: one to the other side
        for p, d in zip(parameters, direction):
            p.add_(d, alpha=step)
        sides.append(finetuning_loss(model, *padded, language_weight=λ).item())
lesson.check("∇L₃ along a random direction = (L₃(θ + hd) − L₃(θ − hd)) / 2h", along, (sides[0] - sides[1]) / (2 * h), atol=1e-5, source="finite differences")

# %% [markdown]
# ## 4. Pre-training
# A GPT reads the reviews, without labels, as in lesson 06. The grammar's entropy is the floor again.

# %%
def with_marks(review):
    return torch.tensor([NUMBER["∎"], *encode(*review), NUMBER["∎"]])


def reading_loss(model, rows):
    rows = rows[:, :int((rows >= 0).sum(1).max())].to(lesson.device)    # −1 pads
    return causal_loss(model(rows.clamp(min=0)), rows.clamp(min=0), rows >= 0)


corpus, judged = (torch.nn.utils.rnn.pad_sequence([with_marks(review) for review in part], batch_first=True, padding_value=-1)
                  for part in (reading, fresh))                         # (reviews, longest)
exact_bits = 1 + sum(GRAMMARS[stance].surprisal("".join(sum(review, ()))) for review, stance in zip(fresh, stances)) / len(fresh)
CONFIG = GPTConfig.modern(V, context_length=96, n_layers=2, n_heads=4, d_model=64)
gpt = GPT(CONFIG, lesson.generator).to(lesson.device)
config = TrainingConfig(max_steps=lesson.pick(full=650, quick=30), learning_rate=5e-3, weight_decay=0.0, optimizer="muon",
                        evaluate_every=lesson.pick(full=130, quick=15), seed=lesson.seed)
print(f"  {count_parameters(gpt):,} parameters, {len(reading):,} reviews, {config.max_steps} steps of 32")
history = []
for row in train(gpt, lambda generator: corpus[torch.randint(len(corpus), (32,), generator=generator)], reading_loss, config,
                 lambda model: {"val_loss": bits(reading_loss(model, judged).item()) * int((judged[:, 1:] >= 0).sum()) / len(fresh)}):
    history.append(row["val_loss"] - exact_bits)
    print(f"  step {row['step']:5d}   {row['val_loss']:7.2f} bits a review, {history[-1]:7.2f} above the entropy", flush=True)
lesson.claim("pre-trained to within one bit a review of the exact entropy, on fresh reviews", history[-1] < 1,
             f"{history[-1]:.2f} bits above the {exact_bits:.2f} that these reviews hold", full_run=True)

# %% [markdown]
# ## 5. What is a label worth?
# The task: read the two looks ("The plot was never bleak. And the songs were dull at first, but witty by the end."), and say whether the
# reviewer is for or against. Feeling and advice are cut off. Three ways to learn it:
#
#     from scratch            the same GPT with new weights, and the labels
#     pre-trained, λ = 0      the model above, and the labels
#     pre-trained, λ = ½      the same, still asked for each next word of the labelled texts
#
# All get the same optimizer and learning rate, and in each draw the same labelled reviews; from scratch gets three times the steps, for it
# has further to go. Which reviews were drawn is luck, and with eight of them a lot of it, so each size is drawn several times, and the
# bars of the figure go from the worst to the best draw.

# %%
def learn(base, n_classes, batch, steps, language_weight, seed):
    """Fine-tune a copy of `base` on tokens (N, K, T), mask (N, K, T), labels (N)."""
    generator = torch.Generator().manual_seed(seed)
    model = FineTuned(add_tokens(base, generator=generator), n_classes, generator)
    n = len(batch[2])

    def next_batch(generator):
        rows = torch.randperm(n, generator=generator)[:16]
        tokens, mask, labels = (part[rows] for part in batch)
        longest = int(mask.sum(-1).max())
        return tokens[..., :longest].to(lesson.device), mask[..., :longest].to(lesson.device), labels.to(lesson.device)

    config = TrainingConfig(max_steps=steps, learning_rate=3e-3, warmup_steps=5, weight_decay=0.0, optimizer="muon", evaluate_every=steps, seed=seed)
    list(train(model, next_batch, lambda model, batch: finetuning_loss(model, *batch, language_weight), config, progress=False))
    return model


@torch.no_grad()
def accuracy(model, batch):
    tokens, mask, labels = (part.to(lesson.device) for part in batch)
    return (model(tokens, mask).argmax(-1) == labels).float().mean().item()


def judged_reviews(n, generator):
    """n reviewers' two looks, as a batch for classification."""
    drawn, labels = draw_reviews(n, generator)
    return *pad([classification(encode(*review[:2]), SPECIAL) for review in drawn]), torch.tensor(labels)


SIZES = lesson.pick(full=(8, 32, 128, 512), quick=(8, 32))
DRAWS, STEPS = lesson.pick(full=3, quick=2), lesson.pick(full=60, quick=5)
ARMS = {"from scratch": (False, 0.0), "pre-trained, λ = 0": (True, 0.0), "pre-trained, λ = ½": (True, 0.5)}
test = judged_reviews(400, lesson.generator)
right = {arm: torch.zeros(len(SIZES), DRAWS) for arm in ARMS}           # accuracy on the 400 fresh reviews
own = torch.zeros(len(SIZES), DRAWS)                                    # what the model from scratch gets right of its own labels
for i, size in enumerate(SIZES):
    for draw in range(DRAWS):
        batch = judged_reviews(size, lesson.generator)
        seed = 1_000 * lesson.seed + 10 * i + draw
        for arm, (pretrained, λ) in ARMS.items():
            base = gpt if pretrained else GPT(CONFIG, torch.Generator().manual_seed(seed)).to(lesson.device)
            model = learn(base, 2, batch, STEPS if pretrained else 3 * STEPS, λ, seed)
            right[arm][i, draw] = accuracy(model, test)
            if not pretrained:
                own[i, draw] = accuracy(model, batch)
    print(f"  {size:4d} labels   " + "   ".join(f"{arm} {a[i].mean():5.1%} ({a[i].min():.0%} to {a[i].max():.0%})" for arm, a in right.items())
          + f"   from scratch, on its own labels {own[i].mean():.0%}", flush=True)

scratch, plain, helped = right.values()
gaps = (plain - scratch).mean(1)                                        # (sizes)
widest = int(gaps.argmax())
lesson.claim("pre-training pays: with 32 labels it is worth 15 points of accuracy or more", gaps[SIZES.index(32)] > 0.15,
             "pre-trained minus from scratch, λ = 0: " + ", ".join(f"{gap:+.1%} with {size}" for gap, size in zip(gaps.tolist(), SIZES))
             + f"; widest with {SIZES[widest]}", full_run=True)

# %% [markdown]
# The model from scratch is not short of training: the last column says that it has its own labels by heart. What it lacks is words. With
# 32 labels it has met each adjective a few times at most, and cannot know that *never* turns every one of them round. The pre-trained
# model knows both, because both help to guess what comes next, and has only to be told which of the two stances is called *for*. With
# hundreds of labels the difference goes away: this grammar is small, and then the labels alone say it all.
#
# And λ? The paper adds L₁ for better generalisation and faster convergence (§3.2), and its ablation (table 5) finds that larger data sets
# gain from it and smaller ones do not. Here each draw is run with λ = 0 and with λ = ½, from the same weights and in the same order of
# batches, so that the differences can be paired. Look at the smallest size first, where there is most to lose: with seed 0 all three draws
# lose. From 128 labels on there is nothing left to gain. Whether eight texts are too little language to model, or the few steps too few
# for two aims at once, these numbers do not tell; more steps for the smallest size would.

# %%
def interval(x):
    """Mean and 2 standard errors of some numbers."""
    return x.mean().item(), 2 * x.std().item() / len(x) ** 0.5


effect, pretraining = (helped - plain).flatten(), (plain - scratch).flatten()           # (sizes · draws) each
for size, row in zip(SIZES, helped - plain):
    print(f"  {size:4d} labels   λ = ½ minus λ = 0: " + ", ".join(f"{x:+.1%}" for x in row.tolist()))
(mean, error), (gain, gain_error) = interval(effect), interval(pretraining)
lesson.claim("λ matters less than pre-training", abs(mean) < gain / 2,
             f"λ = ½ instead of 0: {mean:+.1%} ± {error:.1%}; pre-training instead of none: {gain:+.1%} ± {gain_error:.1%} "
             f"(mean of {len(effect)} pairs ± 2 standard errors)", full_run=True)

fig, axes = plotting.figure(7.5, 4.2)
for (arm, a), marker, shift in zip(right.items(), "so^", (0.96, 1.0, 1.04)):            # a little apart, so that bars do not hide each other
    mean = a.mean(1)
    spread = torch.stack([mean - a.min(1).values, a.max(1).values - mean])              # (2, sizes)
    axes.errorbar([size * shift for size in SIZES], mean, spread, marker=marker, markersize=5, capsize=3, label=arm)
axes.axhline(0.5, color="black", linestyle=":", linewidth=1, label="a coin")
axes.set_xscale("log", base=2)
axes.set_xticks(SIZES, map(str, SIZES))
axes.minorticks_off()
axes.set(xlabel="labelled reviews", ylabel="accuracy on 400 fresh reviews", ylim=(0.4, 1.02), title=f"What a label is worth (mean, best and worst of {DRAWS} draws)")
axes.legend(loc="lower right", bbox_to_anchor=(1, 0.2))
lesson.figure(fig, "labels")

# %% [markdown]
# ## 6. The other three tasks
# The same model, a new W_y and the same loop; only the input changes. The answers are known because we know who wrote what.
#
#     entailment         premise: two looks.  hypothesis: a feeling.  Does it follow, or is it contradicted?            (chance ½)
#     similarity         two reviewers, one look each.  Are they of one mind?                                           (chance ½)
#     multiple choice    two looks, and four endings, feeling and advice.  Only one could be the same reviewer's.       (chance ¼)
#
# (The paper's entailment data have a third class, neutral. Our reviewers say nothing that the stance leaves open.) Both models get the
# same few steps here, so "from scratch" shows how far that is from enough, and not what it could reach in the end.

# %%
def entailment_task(n, generator):
    premises, stances = draw_reviews(n, generator)
    hypotheses, others = draw_reviews(n, generator)
    return ([entailment(encode(*a[:2]), encode(b[2]), SPECIAL) for a, b in zip(premises, hypotheses)], [int(s == o) for s, o in zip(stances, others)])


def similarity_task(n, generator):
    firsts, stances = draw_reviews(n, generator)
    seconds, others = draw_reviews(n, generator)
    return ([similarity(encode(a[0]), encode(b[0]), SPECIAL) for a, b in zip(firsts, seconds)], [int(s == o) for s, o in zip(stances, others)])


def multiple_choice_task(n, generator):
    contexts, stances = draw_reviews(n, generator)
    answers = torch.randint(4, (n,), generator=generator).tolist()
    examples = []
    for context, stance, answer in zip(contexts, stances, answers):
        endings = [sentences(GRAMMARS[stance if k == answer else 1 - stance].sample(generator)) for k in range(4)]
        examples.append(multiple_choice(encode(*context[:2]), [encode(*ending[2:]) for ending in endings], SPECIAL))
    return examples, answers


LABELLED, TRIED = lesson.pick(full=256, quick=16), lesson.pick(full=300, quick=40)
TASKS = {"entailment": (entailment_task, 2, 1 / 2), "similarity": (similarity_task, 2, 1 / 2), "multiple choice": (multiple_choice_task, 1, 1 / 4)}
results = {}
for task, (draw_task, n_classes, chance) in TASKS.items():
    drawn, answers = draw_task(LABELLED, lesson.generator)
    tried, truths = draw_task(TRIED, lesson.generator)
    print(f"\n  {task}, answer {answers[0]}:")
    for sequence in drawn[0]:
        print("    " + "".join(NAMES[token] for token in sequence))
    batch, test = (*pad(drawn), torch.tensor(answers)), (*pad(tried), torch.tensor(truths))
    results[task] = [accuracy(learn(base, n_classes, batch, lesson.pick(full=80, quick=3), 0.5, lesson.seed), test)
                     for base in (gpt, GPT(CONFIG, torch.Generator().manual_seed(lesson.seed)).to(lesson.device))]
    noise = 4 * (chance * (1 - chance) / TRIED) ** 0.5
    lesson.claim(f"{task}: pre-trained, above chance and above from scratch", results[task][0] > chance + noise and results[task][0] > results[task][1],
                 f"{results[task][0]:.1%} of {TRIED} fresh examples with {LABELLED} labels; from scratch {results[task][1]:.1%}; "
                 f"chance {chance:.0%} ± {noise:.0%}", full_run=True)

# %%
fig, axes = plotting.figure(7, 3.4)
for shift, which, colour, name in ((-0.2, 1, plotting.COLOURS[4], "from scratch"), (0.2, 0, plotting.COLOURS[0], "pre-trained")):
    bars = axes.bar([i + shift for i in range(3)], [results[task][which] for task in TASKS], 0.38, color=colour, label=f"{name}, {LABELLED} labels")
    axes.bar_label(bars, fmt=lambda x: f"{x:.0%}", label_type="center", color="black" if which else "white")
for i, (_, _, chance) in enumerate(TASKS.values()):
    axes.plot([i - 0.42, i + 0.42], [chance, chance], color="black", linestyle=":", label="chance" if i == 0 else None)
axes.set_xticks(range(3), list(TASKS))
axes.set(ylabel=f"accuracy on {TRIED} fresh examples", ylim=(0, 1.2), yticks=[0, 0.25, 0.5, 0.75, 1], title="One model, three more tasks")
axes.legend(ncols=3, loc="upper center")
lesson.figure(fig, "tasks")

# %%
lesson.end()
