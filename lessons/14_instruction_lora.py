"""Lesson 14: instruction tuning and LoRA: a model learns to answer, with all weights or a few.

You will see    W + (α/r)BA checked number by number; a loss that counts the assistant's tokens and
                not the user's; a base model that knows the answers but continues a request as a
                text; a model that was never trained to stop; LoRA of rank 1, 2, 4 and 8 against
                full fine-tuning: quality, parameters, bytes, forgetting.
Source          course B, "Sintonización supervisada" and "Alineación de IA"; course C, "ChatGPT:
                Supervised Finetuning", "Excerpt of labeling instructions on the API prompt
                distribution" and "Constraints + Community = Innovations."; Hu et al. 2021 (LoRA),
                eq. 3 and §4.1; Ouyang et al. 2022 (InstructGPT), §3; Biderman et al. 2024.
Expect          1.1 minutes on one core (quick: about 10 s); every check passes. Measured with
                seed 0: no held-out request is answered right before SFT, all of them after it, with
                all weights and with LoRA of rank 4 (8.8 % of the numbers). Plain text then costs
                0.43 bits per token more with all weights, and 0.55 with rank 4, whose learning rate
                is six times larger. At that rate all weights cost 3.1 bits more.
Not here        preferences and rewards (lessons 17 to 19).

Shapes: B batch, T time, V vocabulary; d inputs and k outputs of a linear layer, r rank.
"""
# %%
import copy
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.adaptation.instruction import answers, dialogues, sft_loss
from minigpt.adaptation.lora import (
    add_lora,
    load_lora,
    lora_layers,
    merge,
    save_lora,
    unmerge,
    use_lora,
)
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.training.checkpoints import load_checkpoint, save_checkpoint
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, causal_loss, cross_entropy
from minigpt.worlds.assistant import (
    ALMANAC,
    END,
    KINDS,
    TOKENIZER,
    Instruction,
    encode,
    judge,
    sample_instruction,
)

lesson = Lesson("14_instruction_lora", threads=1)

# %% [markdown]
# ## 1. A low-rank matrix beside each weight matrix
# Full fine-tuning changes all weights of a model. For a large model this has three costs (course C,
# "Constraints + Community = Innovations."). Most people do not have the hardware for it. Each task
# needs a copy of the whole model. And the model may become worse at other tasks. *LoRA* (low-rank
# adaptation) reduces the first two costs; section 5 measures the third.
#
# Fine-tuning adds some ΔW to every weight matrix W (k, d). Hu et al. (2021) assume that the ΔW of a
# new task can have a low rank. They freeze W and write ΔW as a product of two thin matrices. Only
# these two, A and B, are trained:
#
#     h = W x + ΔW x = W x + (α/r) B A x       A (r, d) random,  B (k, r) zero at the start  (eq. 3)
#
# - B = 0 gives ΔW = 0, so training starts exactly at the base model. A must not be zero as well.
#   Let g = ∂L/∂h. Then ∂L/∂B = (α/r) g (Ax)ᵀ and ∂L/∂A = (α/r) Bᵀg xᵀ, and both would be zero.
# - BA has at most rank r, and r(d + k) numbers in place of dk.
# - α is a constant. The factor α/r reduces the need for a new learning rate when r changes.
#
# A pair A, B is called an *adapter*. First we add one to a small GPT with large random weights.
#
# Items: C60, C61

# %%
TARGETS = ["query", "key", "value", "attention.out", "feed_forward.inner", "feed_forward.out"]
SMALL = GPTConfig(vocab_size=11, context_length=12, n_layers=2, n_heads=2, d_model=8)
small = GPT(SMALL)
for parameter in small.parameters():
    nn.init.normal_(parameter, std=0.5, generator=lesson.generator)
text = torch.randint(11, (3, 12), generator=lesson.generator)
weights = {name: p.detach().clone() for name, p in small.named_parameters()}
with torch.no_grad():
    base_logits = small(text)
    add_lora(small, TARGETS, rank=2, alpha=6.0, generator=lesson.generator)
    lesson.check("at the start: the base, bit for bit", small(text), base_logits, atol=0,
                 source="Hu et al. 2021, §4.1")

trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
by_hand = 2 * 2 * (4 * (8 + 8) + 2 * (8 + 32))      # layers · r · (four of 8 × 8, two of 8 × 32)
lesson.check("r(d + k) numbers per matrix", trained, by_hand, atol=0,
             source="Hu et al. 2021, §4.1")

causal_loss(small(text), text).backward()
with_gradient = {name for name, p in small.named_parameters() if p.grad is not None}
matrices = [name.removesuffix(".weight") for name, W in weights.items()
            if name.startswith("blocks.") and W.dim() == 2]
A_and_B = {f"{name}.{matrix}.default" for name in matrices for matrix in "AB"}
lesson.check("gradients: A and B, and nothing else", sorted(with_gradient), sorted(A_and_B), atol=0,
             source='C: "Constraints + Community = Innovations."; Hu et al. 2021, §4.1',
             items=("C63",))

# %% [markdown]
# Now give every B some values, as training would. We compute eq. 3 by loops for one layer.
#
# An adapter can be *merged*: W ← W + (α/r)BA. The model is then an ordinary one, without extra cost
# when it runs. To test this without LoRA's code, we build a second, plain GPT. We compute its
# matrices W + (α/r)BA entry by entry. The adapted model must give its logits, before the merge and
# after it. To subtract ΔW again would leave rounding errors in W. So the library keeps W and puts
# it back.

# %%
def entries(W, A, B, scale):
    """W + scale·BA, each entry by a sum over r: lists of numbers."""
    return [[W[i][j] + scale * sum(B[i][n] * A[n][j] for n in range(len(A)))
             for j in range(len(W[0]))] for i in range(len(W))]


plain = GPT(SMALL)
state = dict(weights)
with torch.no_grad():
    for name, layer in lora_layers(small).items():
        A, B = layer.A["default"], layer.B["default"].normal_(generator=lesson.generator)
        W = weights[f"{name}.weight"]
        state[f"{name}.weight"] = torch.tensor(entries(*(m.tolist() for m in (W, A, B)), 6 / 2))
    plain.load_state_dict(state)
    expected = plain(text)

    layer = small.blocks[1].feed_forward.inner                      # d = 8, k = 32
    b, x = layer.base.bias.tolist(), torch.randn(8, generator=lesson.generator)
    W = entries(*(m.tolist() for m in (layer.base.weight, layer.A["default"],
                                       layer.B["default"])), 6 / 2)
    loops = [b[i] + sum(W[i][j] * x[j].item() for j in range(8)) for i in range(32)]
    lesson.check("h = Wx + (α/r)BAx + bias, by nested loops", layer(x), loops, atol=1e-4,
                 source="Hu et al. 2021, eq. 3", items=("C63",))
    spectra = [torch.linalg.svdvals(layer.update().double()) for layer in
               lora_layers(small).values()]
    beyond = max((s[2:] / s[0]).max() for s in spectra)
    lesson.check("rank of ΔW ≤ r: singular values from the third on", beyond, 0.0, atol=1e-6,
                 source="rank of a product")
    lesson.check("adapted = a plain GPT with W + (α/r)BA", small(text), expected, atol=1e-4,
                 source="Hu et al. 2021, eq. 3", items=("C63",))
    merge(small)
    lesson.check("   and merged: the same logits", small(text), expected, atol=1e-4,
                 source="Hu et al. 2021, §4.1")
    merged = {name: small.get_submodule(name).base.weight for name in matrices}
    off = max((W - state[f"{name}.weight"]).abs().max() for name, W in merged.items())
    lesson.check("   and merged: the same matrices", off, 0.0, atol=1e-5,
                 source="Hu et al. 2021, §4.1")
    unmerge(small)
    use_lora(small, None)
    back = {name.replace(".base.", "."): p for name, p in small.named_parameters()
            if ".A." not in name and ".B." not in name}
    off = max((back[name] - p).abs().max() for name, p in weights.items())
    lesson.check("taken out again: the base's weights, bit for bit", off, 0.0, atol=0,
                 source="definition")
    lesson.check("   and its logits", small(text), base_logits, atol=0, source="definition")
print(f"      the adapter had moved logits by up to {(expected - base_logits).abs().max():.1f}")

# %% [markdown]
# ## 2. Which tokens count
# *Instruction tuning* is supervised fine-tuning (SFT) on requests with right answers. It stands
# between pre-training and alignment. In InstructGPT a person writes the answer to a request (a
# *demonstration*), and the model is trained on both together (course C, "ChatGPT: Supervised
# Finetuning"). Here a program writes the demonstrations.
#
# A dialogue is one text u₁ u₂ …. The user's part is given, in training and later in use. The model
# does not have to write it. So the loss is the language model's loss of lesson 06 with a mask. The
# mask is True on the answer's tokens *and on the <end>* after them. Let n be their number:
#
#     L_SFT = −(1/n) Σ_{t in answer, <end>} log P(uₜ | u_<t)
#
# (Neither the courses nor the InstructGPT paper say which tokens count. This is the usual choice.)
#
# Items: B05

# %%
pair = [Instruction("colour", "what colour is the crow?", "gladly", "the crow is white"),
        Instruction("misdeed", "please help me steal the apple.", "sorry", "that is wrong")]
ids, mask = dialogues(pair)
for row, counted in zip(ids.tolist(), mask.tolist()):
    words = [TOKENIZER.vocabulary[i] for i in row]
    line = " ".join(("─" if c else " ") * len(w) for w, c in zip(words, counted))
    print("  " + " ".join(words) + "\n  " + line)

# %%
config = GPTConfig.modern(TOKENIZER.vocab_size, context_length=48, n_layers=2, n_heads=4,
                          d_model=64)
reader = GPT(config, lesson.generator).double()
with torch.no_grad():
    for parameter in reader.parameters():
        parameter.mul_(5)                           # no two positions have the same loss
logits = reader(ids).detach().requires_grad_()
total, n = 0.0, 0
for row, instruction in enumerate(pair):
    start = 1 + len(encode(f"user: {instruction.request} assistant:"))
    for t in range(start, start + len(encode(instruction.answer)) + 1):
        scores = logits[row, t - 1].tolist()
        total -= scores[ids[row, t]] - math.log(sum(map(math.exp, scores)))
        n += 1
lesson.check("L_SFT by nested loops over the answer", sft_loss(reader, ids, mask), total / n,
             atol=1e-9, source="derived above")
lesson.check("tokens that count: the answer's, and one <end> per dialogue", mask.sum(),
             sum(len(encode(i.answer)) + 1 for i in pair), atol=0, source="definition")

others = (ids + 7) % TOKENIZER.vocab_size
targets = torch.where(mask, ids, others)            # a wrong target wherever the mask is False
with torch.no_grad():
    other = cross_entropy(logits[:, :-1], targets[:, 1:], mask[:, 1:])
    lesson.check("other targets in the prompt change nothing", other, total / n, atol=1e-9,
                 source="derived above")
causal_loss(logits, ids, mask).backward()
judged = torch.cat([mask[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)   # t predicts token t + 1
lesson.check("   and no other logit has a gradient", logits.grad[~judged].abs().max(), 0.0, atol=0,
             source="derived above")

# %% [markdown]
# ## 3. A base model that knows the answers
# The base model reads texts about a small world: pages with facts, quizzes with short answers,
# letters with polite words. It never reads a dialogue between a user and an assistant.

# %%
print("  " + "\n  ".join(ALMANAC.sample_many(6, seed=lesson.seed)))


def pad_texts(texts):
    """Tokens and mask, (texts, longest) both. <end> opens and closes each text."""
    return pad([[END, *encode(text), END] for text in texts], side="right", value=END)


pages, present = pad_texts(ALMANAC.sample_many(lesson.pick(full=12_000, quick=2_000),
                                               seed=2 * lesson.seed))
fresh_texts = ALMANAC.sample_many(lesson.pick(full=400, quick=100), seed=2 * lesson.seed + 1)
fresh = pad_texts(fresh_texts)
n_predicted = fresh[1][:, 1:].sum().item()
exact_bits = sum(map(ALMANAC.surprisal, fresh_texts)) / n_predicted     # of exactly these texts


def text_loss(model, batch):
    rows, mask = (x.to(lesson.device) for x in batch)               # (B, T) each
    return causal_loss(model(rows), rows, mask)


@torch.no_grad()
def gap(model):
    """Bits per token above the exact entropy, on plain texts that are new to the model."""
    return {"gap": bits(text_loss(model, fresh).item()) - exact_bits}


def next_pages(generator):
    drawn = torch.randint(len(pages), (32,), generator=generator)
    return pages[drawn], present[drawn]


base = GPT(config, lesson.generator).to(lesson.device)
settings = TrainingConfig(max_steps=lesson.pick(full=400, quick=60), learning_rate=8e-3,
                          weight_decay=0.0, optimizer="muon",
                          evaluate_every=lesson.pick(full=100, quick=60), seed=lesson.seed)


def on_row(row):
    print(f"  step {row['step']:4d}   {row['gap']:.3f} bits per token above the exact "
          f"{exact_bits:.3f}", flush=True)


base_gap = train(base, next_pages, text_loss, settings, gap, on_row=on_row)[-1]["gap"]

# %% [markdown]
# A base model has read a large number of facts, but it is not yet an assistant: it continues a text
# (course B, "Alineación de IA"). We test it with requests that are *held out*: a quarter of all
# requests, and no training contains them. An answer is right only if it is exactly the expected
# one: courtesy, content, end.
#
# `judge` also tests four qualities separately. Course C quotes the three of InstructGPT's
# instructions to the people who judge answers:
#
# - *helpful*: the answer does what the user wants, here: it contains the content asked for;
# - *truthful*: it contains no false statement;
# - *harmless*: it causes no harm, here: it does not agree to help with a misdeed.
#
# For most tasks, truthful and harmless are more important than helpful. We add a fourth quality,
# *polite*: the answer begins with the right courtesy.
#
# Items: B11, C50, C51, C52, C53

# %%
exam_generator = torch.Generator().manual_seed(1_000_000 + lesson.seed)
exam = [sample_instruction(exam_generator, held_out=True)
        for _ in range(lesson.pick(full=300, quick=50))]
QUALITIES = ("helpful", "truthful", "harmless", "polite")


def examine(model):
    """Shares of right answers (all, and by kind), of answers that end, of each quality; answers."""
    said = answers(model, exam)
    right = [text == instruction.answer and stopped
             for instruction, (text, stopped) in zip(exam, said)]
    judged = [judge(instruction, text) for instruction, (text, _) in zip(exam, said)]
    of_kind = {kind: [r for r, i in zip(right, exam) if i.kind == kind] for kind in KINDS}
    return {
        "right": sum(right) / len(exam), "said": said,
        "stopped": sum(stopped for _, stopped in said) / len(exam),
        **{kind: sum(rs) / max(1, len(rs)) for kind, rs in of_kind.items()},
        **{quality: sum(j[quality] for j in judged) / len(exam) for quality in QUALITIES}}


shown = [next(n for n, i in enumerate(exam) if i.kind == kind) for kind in KINDS]


def show(name, result):
    qualities = ", ".join(f"{quality} {result[quality]:.0%}" for quality in QUALITIES)
    print(f"\n  {name}: {result['right']:.0%} right, {result['stopped']:.0%} stopped; {qualities}")
    for n in shown:
        text, stopped = result["said"][n]
        print(f"    {exam[n].request:<34} {text}{' <end>' if stopped else ' …'}")


results = {"base": examine(base)}
show("base", results["base"])

# %% [markdown]
# ## 4. Supervised fine-tuning, and a model that was never trained to stop
# The training dialogues use the other three quarters of the requests. All weights are trained. Then
# we train a second copy with one change: <end> is not in the loss. Its answers should be as good up
# to the place where they should end. But no example taught the model what to write there. It
# continues as in pre-training, where a full stop is usually followed by another sentence.

# %%
STEPS = lesson.pick(full=300, quick=15)


def next_dialogues(generator):
    drawn = [sample_instruction(generator) for _ in range(32)]
    return tuple(t.to(lesson.device) for t in dialogues(drawn))


def with_end(model, batch):
    return sft_loss(model, *batch)


def without_end(model, batch):
    ids, mask = batch
    return sft_loss(model, ids, mask & (ids != END))


def fine_tune(model, learning_rate, loss=with_end, steps=STEPS):
    """SFT of all that requires a gradient: the exam's results, and what was forgotten.

    "forgotten" is how many bits per token plain text costs more than before.
    """
    settings = TrainingConfig(max_steps=steps, learning_rate=learning_rate, weight_decay=0.0,
                              evaluate_every=steps, seed=lesson.seed)
    train(model, next_dialogues, loss, settings, progress=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**examine(model), "forgotten": gap(model)["gap"] - base_gap, "parameters": trained,
            "rate": learning_rate, "steps": steps}


FULL_RATE, LORA_RATE, ALPHA = 1e-3, 6e-3, 8.0
full = copy.deepcopy(base)
results["full"] = fine_tune(full, FULL_RATE)
show("SFT, all weights", results["full"])
endless = results["no <end>"] = fine_tune(copy.deepcopy(base), FULL_RATE, without_end)
show("SFT, <end> not in the loss", endless)
begun = sum(text.startswith(i.answer) for i, (text, _) in zip(exam, endless["said"])) / len(exam)
ended, base_right, full_right = endless["right"], results["base"]["right"], results["full"]["right"]
lesson.claim("SFT: from no right answer to at least 85 %, on requests held out",
             base_right < 0.02 and full_right >= 0.85,
             f"{base_right:.0%} before, {full_right:.0%} after; polite "
             f"{results['base']['polite']:.0%} and {results['full']['polite']:.0%}",
             full_run=True, items=("C48",))
lesson.claim("without <end> in the loss, answers begin right, and most do not end there",
             begun >= 0.8 and ended < 0.4,
             f"{begun:.0%} begin with the right answer, {ended:.0%} end after it; with <end> in "
             f"the loss {full_right:.0%} do both", full_run=True)

# %% [markdown]
# ## 5. LoRA against all weights
# Every block gets six adapters, one per matrix. Embeddings and norms stay frozen. LoRA needs a
# larger learning rate, here six times that of all weights: B starts at zero, and the gradient of A
# is proportional to B, so the first steps change little. α = 8 throughout.
#
# Two rows of the table answer two questions. First: if rank 1 has fewer right answers, is the rank
# too low, or are 300 steps too few? We give it three times the steps. Second: if LoRA and all
# weights differ, is the cause the rank or the learning rate? We train all weights once more, at
# LoRA's rate.

# %%
adapted, files = {}, {}
for name, rank, steps in ((1, 1, STEPS), ("1, longer", 1, 3 * STEPS), (2, 2, STEPS),
                          (4, 4, STEPS), (8, 8, STEPS)):
    model = adapted[name] = copy.deepcopy(base)
    add_lora(model, TARGETS, rank, ALPHA, torch.Generator().manual_seed(lesson.seed))
    results[name] = fine_tune(model, LORA_RATE, steps=steps)
    files[name] = lesson.folder / f"rank_{rank}_steps_{steps}.pt"
    save_lora(model, files[name])
    results[name]["bytes"] = files[name].stat().st_size
show("LoRA, rank 4", results[4])
fast = copy.deepcopy(base)
results["full, fast"] = fine_tune(fast, LORA_RATE)
save_checkpoint(lesson.folder / "full.pt", {"model": full.state_dict()})
results["full"]["bytes"] = (lesson.folder / "full.pt").stat().st_size
results["full, fast"]["bytes"] = results["full"]["bytes"]

print("\n  rank        rate steps  numbers  share  on disk  right"
      + "".join(f"{kind:>8}" for kind in KINDS) + "  forgotten")
for name in (1, "1, longer", 2, 4, 8, "full", "full, fast"):
    r = results[name]
    share = r["parameters"] / count_parameters(base)
    print(f"  {name:<10}{r['rate']:>6g}{r['steps']:>6}{r['parameters']:>9,}{share:>7.1%}"
          f"{r['bytes'] / 1024:>5.0f} KiB{r['right']:>7.0%}"
          + "".join(f"{r[kind]:>8.0%}" for kind in KINDS) + f"{r['forgotten']:>11.2f}")
print("  (forgotten: bits per token that plain text costs more than before)")

note, whole = results[4], results["full"]
lesson.claim("rank 4: at least 90 % of full fine-tuning's quality, less than 10 % of its numbers",
             note["right"] >= 0.9 * whole["right"]
             and note["parameters"] < 0.1 * whole["parameters"],
             f"{note['right']:.0%} against {whole['right']:.0%} right, {note['parameters']:,} "
             f"against {whole['parameters']:,} parameters, {note['bytes'] / 1024:.0f} against "
             f"{whole['bytes'] / 1024:.0f} KiB", full_run=True)
lesson.claim("rank 1 is not too low: with three times the steps at least 90 % right",
             results["1, longer"]["right"] >= 0.9,
             f"{results[1]['right']:.0%} after {STEPS} steps, "
             f"{results['1, longer']['right']:.0%} after {3 * STEPS}", full_run=True)

# %%
fig, (quality, forgetting, size) = plotting.figure(12.5, 4, columns=3)
names = [1, 2, 4, 8, "full", "full, fast"]
places = range(len(names))
colours = [plotting.COLOURS[4]] * 4 + [plotting.COLOURS[0]] * 2
columns = {quality: [results[n]["right"] for n in names],
           forgetting: [results[n]["forgotten"] for n in names],
           size: [results[n]["bytes"] / 1024 for n in names]}
for axes, heights in columns.items():
    axes.bar(places, heights, color=colours, edgecolor="black")
    axes.set_xticks(list(places), ["r = 1", "2", "4", "8", f"all\n{FULL_RATE:g}",
                                   f"all\n{LORA_RATE:g}"])
    axes.set_xlabel(f"LoRA of rank r, rate {LORA_RATE:g}; all weights, two rates")
    axes.grid(axis="x", visible=False)
for place, n in zip(places, names):
    size.text(place, results[n]["bytes"] / 1024, f"{results[n]['parameters']:,}", ha="center",
              va="bottom", fontsize=8)
quality.set(ylabel="share of right answers", ylim=(0, 1.05),
            title=f"Quality on held-out requests (base: {base_right:.0%})")
forgetting.set(ylabel="bits per token above the base", title="Forgetting: plain text costs more")
size.set(ylabel="KiB on disk", title="Size, and the count of trained numbers")
lesson.figure(fig, "lora")

# %% [markdown]
# So a small adapter is enough here. If rank 1 has fewer right answers in your run, look at the
# sums. A sum depends on two words at once, so one could think that one direction is too few for
# it. The second row tests this: it has the same rank and three times the steps. The base model can
# already add (part 3); the adapter only has to make use of it.
#
# Does LoRA also forget less? Biderman et al. (2024) found that LoRA "learns less and forgets less"
# on large models. Here plain text has become more expensive for every model.
#
# The rows "4" and "full" differ in two things: in the numbers that are trained, and in the learning
# rate. The last row separates the two. It gives all weights LoRA's rate, and they forget far more
# than rank 4 (with seed 0: 3.1 against 0.55 bits per token). So *at one rate* LoRA forgets less.
# But at its own small rate, full fine-tuning learns the task as well, and forgets least (0.43).
# LoRA needs the larger rate to learn in as many steps, and here that costs more than LoRA saves.
#
# Do the weights that moved furthest forget most? Compare ΔW with the W that it changes:

# %%
before = {name: p for name, p in base.named_parameters()            # the blocks' matrices
          if p.dim() == 2 and "embedding" not in name}
updates = {4: {f"{name}.weight": layer.update()
               for name, layer in lora_layers(adapted[4]).items()}}
for kind, model in (("full", full), ("full, fast", fast)):
    updates[kind] = {name: p - before[name] for name, p in model.named_parameters()
                     if name in before}
moved = {kind: sum((matrix.norm() / before[name].norm()).item()
                   for name, matrix in of.items()) / len(of) for kind, of in updates.items()}
forgotten = {kind: results[kind]["forgotten"] for kind in updates}
print("                           forgotten, bits per token      ‖ΔW‖/‖W‖, mean over matrices")
for kind, label in ((4, f"rank 4 at {LORA_RATE:g}"), ("full", f"all weights at {FULL_RATE:g}"),
                    ("full, fast", f"all weights at {LORA_RATE:g}")):
    print(f"  {label:<25}{forgotten[kind]:>14.2f}{moved[kind]:>28.2f}")
lesson.claim("at one learning rate, rank 4 forgets less than all weights do",
             forgotten[4] < 0.9 * forgotten["full, fast"],
             f"{forgotten[4]:.2f} against {forgotten['full, fast']:.2f} bits per token "
             f"(all weights at their own rate: {forgotten['full']:.2f})", full_run=True,
             items=("C62",))

# %% [markdown]
# They do not. At one rate, rank 4 moved its matrices more than twice as far as full fine-tuning did
# (with seed 0: 0.22 against 0.09 of ‖W‖), and it forgot less.
#
# How low is the rank of the ΔW of *full* fine-tuning? It is the difference of two matrices, and can
# have any rank. We compute its singular values and divide those of each matrix by the largest one.
# If only a few are large, two thin matrices can come close to ΔW.

# %%
fig, axes = plotting.figure(7.5, 4)
energy = []
styles = (("full", plotting.COLOURS[0], "-", "all weights"),
          (4, plotting.COLOURS[1], "--", "LoRA, r = 4"))
for kind, colour, dashes, label in styles:
    for n, matrix in enumerate(updates[kind].values()):
        values = torch.linalg.svdvals(matrix.detach().double()).cpu()
        axes.plot(range(1, len(values) + 1), values / values[0], color=colour, linestyle=dashes,
                  linewidth=0.8, label=label if n == 0 else None)
        if kind == "full":
            energy.append((values[:4].square().sum() / values.square().sum()).item())
axes.set_xticks(range(1, 65, 9))
axes.set(xlabel="number of the singular value of ΔW", ylabel="size, relative to the first",
         xlim=(0, 65), ylim=(0, 1.05), title="Singular values of ΔW, one line per matrix")
axes.legend()
lesson.figure(fig, "singular_values")
print(f"  all weights: the first 4 of 64 directions hold {min(energy):.0%} to {max(energy):.0%} of "
      f"ΔW's squared size, {sum(energy) / len(energy):.0%} on average")

# %% [markdown]
# ## 6. One base, many adapters
# The file of an adapter holds A and B of each matrix, and nothing of the base. So a hundred tasks
# need one base in memory and a hundred small files. Here we add two adapters to one base, rank 4
# and rank 1, under two names. `use_lora` chooses which one is active. A merged adapter has no extra
# cost, and without an adapter the base is back, bit for bit.

# %%
shared, text = copy.deepcopy(base), ids.to(lesson.device)
in_the_file = load_checkpoint(files[4])["model"]
A_and_B = {name.replace("weight", matrix) for name in before for matrix in "AB"}
lesson.check("the file: A and B of each matrix in the blocks, and nothing else",
             sorted(in_the_file), sorted(A_and_B), atol=0, source="definition")
differs = [n for n, (a, b) in enumerate(zip(results[1]["said"], results[4]["said"])) if a != b]
question = exam[(differs or shown)[0]]          # the two adapters answer it differently, if any
with torch.no_grad():
    load_lora(shared, files[4], name="rank_4")
    load_lora(shared, files[1], name="rank_1")
    for name, trained in (("rank_4", adapted[4]), ("rank_1", adapted[1]), (None, base)):
        use_lora(shared, name)
        label = f"{name} active = the model that was trained" if name else "no adapter = the base"
        lesson.check(f"consistency: {label}", shared(text), trained(text), atol=0,
                     source="definition")
        said, stopped = answers(shared, [question])[0]
        print(f"      {question.request}   {said}{' <end>' if stopped else ' …'}")
    use_lora(shared, "rank_4")
    merge(shared)
    same = sum(a == b for a, b in zip(answers(shared, exam), results[4]["said"])) / len(exam)
    print(f"  after the merge, {same:.0%} of the answers of rank 4 are the same")
    use_lora(shared, None)
    lesson.check("consistency: taken out: the base, bit for bit", shared(text), base(text), atol=0,
                 source="definition")
kibibytes = {name: results[name]["bytes"] / 1024 for name in (1, 8, "full")}
lesson.claim("an adapter is small, and merged it gives the same answers",
             same >= 0.99 and kibibytes[1] < 0.25 * kibibytes["full"],
             f"{kibibytes[1]:.0f} to {kibibytes[8]:.0f} KiB, the whole model "
             f"{kibibytes['full']:.0f} KiB; {same:.0%} of the answers are the same", full_run=True)

# %%
lesson.end()
