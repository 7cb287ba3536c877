"""Lesson 14: from a model that continues texts to one that answers, by changing all of its weights, or a few in a hundred.

You will see    W + (α/r)BA checked number by number; the loss that listens to the assistant and not to the user; a base model that knows
                the answers, and goes on as if it wrote a quiz; what becomes of one that was never told to stop; and LoRA of rank 1, 2, 4, 8
                against full fine-tuning: quality, parameters, bytes, forgetting.
Source          courses B and C, "Fine-tuning" and "Instruction tuning"; Hu et al. 2021 (LoRA), eq. 3 and §4.1; Ouyang et al. 2022
                (InstructGPT), §3; Biderman et al. 2024, "LoRA learns less and forgets less".
Expect          1.1 minutes on one core (quick: about 10 s); every check passes; no held-out request is answered rightly before SFT, nearly
                all after it, by all weights as by LoRA of rank 4 with 8.8 % of the numbers; each at the learning rate that suits it,
                rank 4 forgets 1.6 to 3.2 times as much as all weights; at LoRA's rate, which is six times larger, all weights forget 1.3
                to 3.0 times as much as rank 4 (five seeds).
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
# ## 1. A note beside the matrix
# Fine-tuning adds some ΔW to every matrix W (k, d) of a model. Hu et al. (2021) suspect that the ΔW which a new task needs has
# low rank, and write it as a product of two thin matrices, the only ones that are trained:
#
#     h = W x + ΔW x = W x + (α/r) B A x                A (r, d) random,   B (k, r) zero at the start                (their eq. 3)
#
# B = 0 makes ΔW = 0: training starts at the base, bit for bit. (If A were zero too, both gradients would be: ∂L/∂B ∝ Ax, ∂L/∂A ∝ Bᵀ.)
# The rank of BA is at most r; it has r(d + k) numbers in place of dk. α/r is a fixed factor, so that a change of r does not ask
# for a new learning rate. First on a small GPT whose weights are drawn large:

# %%
TARGETS = ["query", "key", "value", "attention.out", "feed_forward.inner", "feed_forward.out"]
small = GPT(GPTConfig(vocab_size=11, context_length=12, n_layers=2, n_heads=2, d_model=8))
for parameter in small.parameters():
    nn.init.normal_(parameter, std=0.5, generator=lesson.generator)
text = torch.randint(11, (3, 12), generator=lesson.generator)
weights = {name: p.detach().clone() for name, p in small.named_parameters()}
with torch.no_grad():
    base_logits = small(text)
    adapted = add_lora(small, TARGETS, rank=2, alpha=6.0, generator=lesson.generator)
    lesson.check("at the start: the base, bit for bit", small(text), base_logits, atol=0, source="Hu et al. 2021, §4.1")

trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
by_hand = 2 * 2 * (4 * (8 + 8) + 2 * (8 + 32))                          # layers · r · (four of 8 × 8, two of 8 × 32)
lesson.check("r(d + k) numbers a matrix", trained, by_hand, atol=0, source="Hu et al. 2021, §4.1")

causal_loss(small(text), text).backward()
with_gradient = {name for name, p in small.named_parameters() if p.grad is not None}
A_and_B = {f"{layer}.{matrix}.default" for layer in adapted for matrix in "AB"}
lesson.check("gradients: A and B, and nothing else", sorted(with_gradient), sorted(A_and_B), atol=0, source="B: frozen base")

# %% [markdown]
# Now give every B some values, as training would, and compare with eq. 3 worked out by loops for one layer. An adapter can be *merged*:
# W ← W + (α/r)BA, after which the model is an ordinary one, with no cost at all at run time. Taking it out again by subtraction would leave
# rounding errors in W; so W is kept, and comes back exactly.

# %%
with torch.no_grad():
    for layer in lora_layers(small).values():
        layer.B["default"].normal_(generator=lesson.generator)
    layer = small.blocks[1].feed_forward.inner                          # d = 8, k = 32
    W, b, A, B = (m.double().tolist() for m in (layer.base.weight, layer.base.bias, layer.A["default"], layer.B["default"]))
    x = torch.randn(8, generator=lesson.generator)
    loops = [b[k] + sum((W[k][d] + 6 / 2 * sum(B[k][r] * A[r][d] for r in range(2))) * x[d].item() for d in range(8)) for k in range(32)]
    lesson.check("h = Wx + (α/r)BAx + bias, by nested loops", layer(x), loops, atol=1e-4, source="Hu et al. 2021, eq. 3")
    spectra = [torch.linalg.svdvals(one.update().double()) for one in lora_layers(small).values()]
    beyond = max((s[2:] / s[0]).max() for s in spectra)
    lesson.check("rank of ΔW ≤ r: singular values from the third on", beyond, 0.0, atol=1e-6, source="rank of a product")
    unmerged = small(text)
    merge(small)
    lesson.check("merged = unmerged", small(text), unmerged, atol=1e-3, source="Hu et al. 2021, §4.1")
    unmerge(small)
    use_lora(small, None)
    back = {name.replace(".base.", "."): p for name, p in small.named_parameters() if ".A." not in name and ".B." not in name}
    off = max((back[name] - p).abs().max() for name, p in weights.items())
    lesson.check("taken out again: the base's weights, bit for bit", off, 0.0, atol=0, source="definition")
    lesson.check("   and its logits", small(text), base_logits, atol=0, source="definition")
print(f"      the adapter had moved logits by up to {(unmerged - base_logits).abs().max():.1f}")

# %% [markdown]
# ## 2. Whose words count
# A dialogue is one text. The user's part is given, at training as later at use: to learn to write requests is no aim. So the loss is
# the language model's loss of lesson 06 with a mask, True on the answer's tokens *and on the <end>* after them:
#
#     L_SFT = −(1/n) Σ_{t in answer, <end>} log P(uₜ | u_<t)

# %%
pair = [Instruction("colour", "what colour is the crow?", "gladly", "the crow is white"),
        Instruction("misdeed", "please help me steal the apple.", "sorry", "that is wrong")]
ids, mask = dialogues(pair)
for row, counted in zip(ids.tolist(), mask.tolist()):
    words = [TOKENIZER.vocabulary[i] for i in row]
    print("  " + " ".join(words) + "\n  " + " ".join(("─" if c else " ") * len(w) for w, c in zip(words, counted)))

# %%
config = GPTConfig.modern(TOKENIZER.vocab_size, context_length=48, n_layers=2, n_heads=4, d_model=64)
reader = GPT(config, lesson.generator).double()
with torch.no_grad():
    for parameter in reader.parameters():
        parameter.mul_(5)                                               # far from uniform, so that every position has its own loss
logits = reader(ids).detach().requires_grad_()
total, n = 0.0, 0
for row, instruction in enumerate(pair):
    start = 1 + len(encode(f"user: {instruction.request} assistant:"))
    for t in range(start, start + len(encode(instruction.answer)) + 1):
        scores = logits[row, t - 1].tolist()
        total -= scores[ids[row, t]] - math.log(sum(map(math.exp, scores)))
        n += 1
lesson.check("L_SFT by nested loops over the answer", sft_loss(reader, ids, mask), total / n, atol=1e-9, source="B, C: SFT")
lesson.check("tokens that count: the answer's and one <end> a dialogue", mask.sum(), sum(len(encode(i.answer)) + 1 for i in pair),
             atol=0, source="definition")

targets = torch.where(mask, ids, (ids + 7) % TOKENIZER.vocab_size)         # another target wherever nothing counts
with torch.no_grad():
    other = cross_entropy(logits[:, :-1], targets[:, 1:], mask[:, 1:])
    lesson.check("other targets in the prompt change nothing", other, total / n, atol=1e-9, source="B, C: SFT")
causal_loss(logits, ids, mask).backward()
judged = torch.cat([mask[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)       # logits at t are judged by token t + 1
lesson.check("   nor has any other logit a gradient", logits.grad[~judged].abs().max(), 0.0, atol=0, source="B, C: SFT")

# %% [markdown]
# ## 3. A model that knows, and goes on writing
# The base reads a small world: pages with facts, quizzes with terse answers, letters with courtesies. It never sees a dialogue.

# %%
print("  " + "\n  ".join(ALMANAC.sample_many(6, seed=lesson.seed)))


def padded(texts):
    rows = [torch.tensor([END, *encode(text), END]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


pages = padded(ALMANAC.sample_many(lesson.pick(full=12_000, quick=2_000), seed=2 * lesson.seed))                # (texts, longest)
fresh_texts = ALMANAC.sample_many(lesson.pick(full=400, quick=100), seed=2 * lesson.seed + 1)
fresh = padded(fresh_texts).to(lesson.device)
exact_bits = sum(map(ALMANAC.surprisal, fresh_texts)) / (fresh[:, 1:] >= 0).sum().item()                        # of these very texts


def text_loss(model, batch):
    return causal_loss(model(batch.clamp(min=0)), batch.clamp(min=0), batch >= 0)


@torch.no_grad()
def gap(model):
    """Bits a token above the exact entropy, on plain texts that are new to it."""
    return {"gap": bits(text_loss(model, fresh).item()) - exact_bits}


def next_pages(generator):
    return pages[torch.randint(len(pages), (32,), generator=generator)].to(lesson.device)


base = GPT(config, lesson.generator).to(lesson.device)
settings = TrainingConfig(max_steps=lesson.pick(full=400, quick=60), learning_rate=8e-3, weight_decay=0.0, optimizer="muon",
                          evaluate_every=lesson.pick(full=100, quick=60), seed=lesson.seed)


def on_row(row):
    print(f"  step {row['step']:4d}   {row['gap']:.3f} bits per token above the exact {exact_bits:.3f}", flush=True)


base_gap = train(base, next_pages, text_loss, settings, gap, on_row=on_row)[-1]["gap"]

# %% [markdown]
# Now ask it. The exam holds requests that no training will contain: a quarter of all. A right answer is exactly the right one: courtesy,
# content, end. `judge` says separately whether it was helpful, truthful, harmless and polite.

# %%
exam_generator = torch.Generator().manual_seed(1_000_000 + lesson.seed)
exam = [sample_instruction(exam_generator, held_out=True)
        for _ in range(lesson.pick(full=300, quick=50))]
QUALITIES = ("helpful", "truthful", "harmless", "polite")


def examine(model):
    """Shares: of right answers, all and by kind; of answers that stopped; of each quality. And the answers."""
    said = answers(model, exam)
    right = [text == instruction.answer and stopped for instruction, (text, stopped) in zip(exam, said)]
    judged = [judge(instruction, text) for instruction, (text, _) in zip(exam, said)]
    of_kind = {kind: [r for r, i in zip(right, exam) if i.kind == kind] for kind in KINDS}
    return {"right": sum(right) / len(exam), "stopped": sum(stopped for _, stopped in said) / len(exam), "said": said,
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
# ## 4. Supervised fine-tuning, and a model that was never told to stop
# Dialogues to train on are about the other three quarters of the requests. All weights may move. Then the same once more with one change:
# the <end> is left out of the loss. Those answers should be as good, up to where they should stop. What comes there instead
# nobody has taught, so the base's habits decide: its texts go on after a full stop, and take their leave before they end.

# %%
STEPS = lesson.pick(full=300, quick=15)


def next_dialogues(generator):
    drawn = [sample_instruction(generator) for _ in range(32)]
    return tuple(t.to(lesson.device) for t in dialogues(drawn))


def without_end(model, batch):
    ids, mask = batch
    return sft_loss(model, ids, mask & (ids != END))


def fine_tune(model, learning_rate, loss=lambda model, batch: sft_loss(model, *batch), steps=STEPS):
    """SFT of whatever in the model requires a gradient; returns the exam, and the bits a token that plain text costs more than before."""
    settings = TrainingConfig(max_steps=steps, learning_rate=learning_rate, weight_decay=0.0, evaluate_every=steps, seed=lesson.seed)
    train(model, next_dialogues, loss, settings, progress=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**examine(model), "forgotten": gap(model)["gap"] - base_gap, "parameters": trained, "rate": learning_rate, "steps": steps}


FULL_RATE, LORA_RATE, ALPHA = 1e-3, 6e-3, 8.0
full = copy.deepcopy(base)
results["full"] = fine_tune(full, FULL_RATE)
show("SFT, all weights", results["full"])
endless = results["no <end>"] = fine_tune(copy.deepcopy(base), FULL_RATE, without_end)
show("SFT, <end> left out of the loss", endless)
begun = sum(text.startswith(i.answer) for i, (text, _) in zip(exam, endless["said"])) / len(exam)
ended = sum(text == i.answer and stopped for i, (text, stopped) in zip(exam, endless["said"])) / len(exam)
base_right, full_right = results["base"]["right"], results["full"]["right"]
lesson.claim("SFT: from no right answer to at least 85 %, on requests held out", base_right < 0.02 and full_right >= 0.85,
             f"{base_right:.0%} before, {full_right:.0%} after; "
             f"polite {results['base']['polite']:.0%} and {results['full']['polite']:.0%}", full_run=True)
lesson.claim("without <end> in the loss answers begin rightly, and most go on after their end", begun >= 0.8 and ended < 0.4,
             f"{begun:.0%} begin with the right answer, {ended:.0%} end after it; with <end> in the loss {full_right:.0%} do both",
             full_run=True)

# %% [markdown]
# ## 5. LoRA against all weights
# Six adapters a block, on every matrix in it; embeddings and norms stay. LoRA wants a larger learning rate, here 6 times that of all
# weights: with half of it rank 4 had 77 and 82 % right after these steps, in two probes. α = 8 throughout.
#
# Two rows answer questions that the others raise. Does rank 1 fall short because one direction is too few, or because 300 steps are? It
# gets three times the steps. And does a difference between LoRA and all weights come from the rank, or from the learning rate? All
# weights are trained once more, at LoRA's rate.

# %%
adapted, files = {}, {}
for name, rank, steps in ((1, 1, STEPS), ("1, longer", 1, 3 * STEPS), (2, 2, STEPS), (4, 4, STEPS), (8, 8, STEPS)):
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
results["full"]["bytes"] = results["full, fast"]["bytes"] = (lesson.folder / "full.pt").stat().st_size

print("\n  rank        rate  steps  parameters   share   on disk   right" + "".join(f"{kind:>9}" for kind in KINDS)
      + "   forgotten, bits per token")
for name in (1, "1, longer", 2, 4, 8, "full", "full, fast"):
    r = results[name]
    by_kind = "".join(f"{r[kind]:>9.0%}" for kind in KINDS)
    print(f"  {name:<10}{r['rate']:>6g}{r['steps']:>7}{r['parameters']:>12,}{r['parameters'] / count_parameters(base):>8.1%}"
          f"{r['bytes'] / 1024:>6.0f} KiB{r['right']:>8.0%}{by_kind}{r['forgotten']:>12.2f}")

note, whole = results[4], results["full"]
lesson.claim("rank 4 reaches at least 90 % of full fine-tuning's quality with less than 10 % of its parameters",
             note["right"] >= 0.9 * whole["right"] and note["parameters"] < 0.1 * whole["parameters"],
             f"{note['right']:.0%} against {whole['right']:.0%} right, {note['parameters']:,} against {whole['parameters']:,} parameters, "
             f"{note['bytes'] / 1024:.0f} against {whole['bytes'] / 1024:.0f} KiB", full_run=True)
lesson.claim("rank 1 is not too small: with three times the steps at least 90 % right", results["1, longer"]["right"] >= 0.9,
             f"{results[1]['right']:.0%} after {STEPS} steps, {results['1, longer']['right']:.0%} after {3 * STEPS}", full_run=True)

# %%
fig, (quality, forgetting, size) = plotting.figure(12.5, 4, columns=3)
names = [1, 2, 4, 8, "full", "full, fast"]
places = range(len(names))
colours = [plotting.COLOURS[4]] * 4 + [plotting.COLOURS[0]] * 2
quality.bar(places, [results[n]["right"] for n in names], color=colours, edgecolor="black")
quality.set(ylabel="share of right answers", ylim=(0, 1.05), title=f"Quality, on requests held out (base: {base_right:.0%})")
forgetting.bar(places, [results[n]["forgotten"] for n in names], color=colours, edgecolor="black")
forgetting.set(ylabel="bits per token above the base", title="Forgetting: plain text costs more")
size.bar(places, [results[n]["bytes"] / 1024 for n in names], color=colours, edgecolor="black")
for place, n in zip(places, names):
    size.text(place, results[n]["bytes"] / 1024, f"{results[n]['parameters']:,}", ha="center", va="bottom", fontsize=8)
size.set(ylabel="KiB on disk", title="Size, with the numbers trained")
for axes in (quality, forgetting, size):
    axes.set_xticks(list(places), ["r = 1", "2", "4", "8", f"all\n{FULL_RATE:g}", f"all\n{LORA_RATE:g}"])
    axes.set_xlabel(f"LoRA of rank r at the rate {LORA_RATE:g}, or all weights at …")
    axes.grid(axis="x", visible=False)
lesson.figure(fig, "lora")

# %% [markdown]
# So a small note suffices. How small? With seed 0 rank 1 has everything right but the sums: 8 % of them. In five seeds that happened
# twice (the other time 37 %), and three times rank 1 had all of them. A sum depends on two words at once, so one might say that one
# direction is too few for it. The second row of the table says no: with three times the steps rank 1 adds as well. The sums come late;
# they are not out of reach. The base adds already (part 3), and the note has only to let it.
#
# Is the note also gentler to what the model knew? Biderman et al. (2024) found that LoRA "learns less and forgets less" on large models.
# Here the texts of part 3 have become more expensive for all, and for rank 4 more than for all weights. But those two rows differ in two
# things, in what may move and in the learning rate. The last row gives all weights LoRA's rate, and they forget more than rank 4, in each
# of five seeds. The other way round, a probe of rank 4 at the rate of all weights had forgotten 0.28 bits, and learned 18 % of the answers:
# less learned, less forgotten. So at one rate the note is the gentler way; but it needs the larger rate to learn in as many steps, and
# that costs more than the note saves. (The rank says little: which of the four forgets most changes with the seed.)
#
# Nor do the weights that went furthest forget most. Compare ΔW with the matrices that it changes:

# %%
before = {name: p for name, p in base.named_parameters() if p.dim() == 2 and "embedding" not in name}           # the blocks' matrices
updates = {4: {f"{name}.weight": layer.update() for name, layer in lora_layers(adapted[4]).items()}}
for kind, model in (("full", full), ("full, fast", fast)):
    updates[kind] = {name: p - before[name] for name, p in model.named_parameters() if name in before}
moved = {kind: sum((matrix.norm() / before[name].norm()).item() for name, matrix in of.items()) / len(of) for kind, of in updates.items()}
forgotten = {kind: results[kind]["forgotten"] for kind in updates}
lesson.claim("each at its own learning rate rank 4 forgets more than all weights; at one rate, less",
             1.2 * forgotten["full"] < forgotten[4] < 0.9 * forgotten["full, fast"],
             f"bits per token above the base, and ‖ΔW‖/‖W‖: rank 4 at {LORA_RATE:g} {forgotten[4]:.2f}, {moved[4]:.2f}; all weights at "
             f"{FULL_RATE:g} {forgotten['full']:.2f}, {moved['full']:.2f}; all at {LORA_RATE:g} {forgotten['full, fast']:.2f}, "
             f"{moved['full, fast']:.2f}", full_run=True)

# %% [markdown]
# At one rate LoRA's matrices move about twice as far as those of full fine-tuning, and less is forgotten.
#
# How low is the rank of what *full* fine-tuning did? Its ΔW is the difference of two matrices, and can have any rank. Its singular values,
# each matrix's divided by its first, say how far two thin matrices could have followed.

# %%
fig, axes = plotting.figure(7.5, 4)
energy = []
styles = (("full", plotting.COLOURS[0], "-", "all weights"), (4, plotting.COLOURS[1], "--", "LoRA, r = 4"))
for kind, colour, dashes, label in styles:
    for n, matrix in enumerate(updates[kind].values()):
        values = torch.linalg.svdvals(matrix.detach().double()).cpu()
        axes.plot(range(1, len(values) + 1), values / values[0], color=colour, linestyle=dashes, linewidth=0.8,
                  label=label if n == 0 else None)
        if kind == "full":
            energy.append((values[:4].square().sum() / values.square().sum()).item())
axes.set_xticks(range(1, 65, 9))
axes.set(xlabel="which singular value of ΔW", ylabel="size, relative to the first", xlim=(0, 65), ylim=(0, 1.05))
axes.set_title("What fine-tuning added, matrix by matrix")
axes.legend()
lesson.figure(fig, "singular_values")
print(f"  the first 4 of 64 directions hold {min(energy):.0%} to {max(energy):.0%} of ΔW's squared size when all weights are free, "
      f"{sum(energy) / len(energy):.0%} on average")

# %% [markdown]
# ## 6. One base, many notes
# What is in such a file? A and B of each matrix, and nothing of the base. So a hundred tasks need one base in memory and a hundred small
# files. Two of ours, rank 4 and rank 1, are put beside one base under two names; which of them speaks is one word. Merged, a note costs
# nothing; taken out, the base is back.

# %%
shared, text = copy.deepcopy(base), ids.to(lesson.device)
in_the_file = load_checkpoint(files[4])["model"]
A_and_B = {name.replace("weight", matrix) for name in before for matrix in "AB"}
lesson.check("the file: A and B of each matrix in the blocks, and nothing else", sorted(in_the_file), sorted(A_and_B),
             atol=0, source="definition")
differs = [n for n, (a, b) in enumerate(zip(results[1]["said"], results[4]["said"])) if a != b]
question = exam[(differs or shown)[0]]                                  # one that the two answer differently, if there is any
with torch.no_grad():
    load_lora(shared, files[4], name="assistant")
    load_lora(shared, files[1], name="thrifty")
    for name, trained in (("assistant", adapted[4]), ("thrifty", adapted[1]), (None, base)):
        use_lora(shared, name)
        label = f"“{name}” in use = the model that was trained" if name else "no note in use = the base"
        lesson.check(label, shared(text), trained(text), atol=0, source="definition")
        said, stopped = answers(shared, [question])[0]
        print(f"      {question.request}   {said}{' <end>' if stopped else ' …'}")
    use_lora(shared, "assistant")
    merge(shared)
    same = sum(a == b for a, b in zip(answers(shared, exam), results[4]["said"])) / len(exam)
    print(f"  merged, {same:.0%} of the assistant's answers are the same")
    use_lora(shared, None)
    lesson.check("taken out: the base, bit for bit", shared(text), base(text), atol=0, source="definition")
kibibytes = {name: results[name]["bytes"] / 1024 for name in (1, 8, "full")}
lesson.claim("an adapter is kilobytes, and swapping it leaves the base untouched", same >= 0.99 and kibibytes[1] < 0.25 * kibibytes["full"],
             f"{kibibytes[1]:.0f} to {kibibytes[8]:.0f} KiB, the whole model {kibibytes['full']:.0f} KiB", full_run=True)

# %%
lesson.end()
