"""Lesson 14: from a model that continues texts to one that answers, by changing all of its weights, or a few in a hundred.

You will see    W + (α/r)BA checked number by number; the loss that listens to the assistant and not to the user; a base model that knows
                the answers, and goes on as if it wrote a quiz; what becomes of one that was never told to stop; and LoRA of rank 1, 2, 4, 8
                against full fine-tuning: quality, parameters, bytes, forgetting.
Source          courses B and C, "Fine-tuning" and "Instruction tuning"; Hu et al. 2021 (LoRA), eq. 3 and §4.1; Ouyang et al. 2022
                (InstructGPT), §3; Biderman et al. 2024, "LoRA learns less and forgets less".
Expect          about 1 min on two cores (quick: about 10 s); every check passes; no held-out request is answered rightly before SFT, nearly
                all after it, by all weights as by LoRA of rank 4 with 8.8 % of the numbers; LoRA forgets more here, 1.6 to 3.2 times as much.
Not here        preferences and rewards (lessons 17 to 21).

Shapes: B batch, T time, V vocabulary; d inputs and k outputs of a linear layer, r rank.
"""
# %%
import copy
import math

import torch
from torch import nn

from lessons.course import Lesson
from minigpt import plotting
from minigpt.adaptation.instruction import ALMANAC, END, KINDS, NUMBER, VOCABULARY, Instruction, answers, dialogues, encode, judge, sample, sft_loss
from minigpt.adaptation.lora import add_lora, lora_layers, load_lora, merge, save_lora, unmerge, use_lora
from minigpt.models.gpt import GPT, GPTConfig, count_parameters
from minigpt.training.checkpoints import save_checkpoint
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits, causal_loss, cross_entropy

lesson = Lesson("14_instruction_lora")
torch.set_num_threads(1)                                                # matrices so small that threads would mostly wait

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
lesson.check("gradients: A and B, and nothing else", sorted(with_gradient), sorted(f"{layer}.{matrix}.default" for layer in adapted for matrix in "AB"),
             atol=0, source="B: frozen base")

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
    lesson.check("rank of ΔW ≤ r: singular values from the third on", max((s[2:] / s[0]).max() for s in spectra), 0.0, atol=1e-6, source="rank of a product")
    unmerged = small(text)
    merge(small)
    lesson.check("merged = unmerged", small(text), unmerged, atol=1e-3, source="Hu et al. 2021, §4.1")
    unmerge(small)
    use_lora(small, None)
    back = {name.replace(".base.", "."): p for name, p in small.named_parameters() if ".A." not in name and ".B." not in name}
    lesson.check("taken out again: the base's weights, bit for bit", max((back[name] - p).abs().max() for name, p in weights.items()), 0.0, atol=0, source="definition")
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
    words = [VOCABULARY[i] for i in row]
    print("  " + " ".join(words) + "\n  " + " ".join(("─" if c else " ") * len(w) for w, c in zip(words, counted)))

# %%
config = GPTConfig.modern(len(VOCABULARY), context_length=48, n_layers=2, n_heads=4, d_model=64)
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
lesson.check("tokens that count: the answer's and one <end> a dialogue", mask.sum(), sum(len(encode(i.answer)) + 1 for i in pair), atol=0, source="definition")

targets = torch.where(mask, ids, (ids + 7) % len(VOCABULARY))           # another target wherever nothing counts
with torch.no_grad():
    lesson.check("other targets in the prompt change nothing", cross_entropy(logits[:, :-1], targets[:, 1:], mask[:, 1:]), total / n, atol=1e-9, source="B, C: SFT")
causal_loss(logits, ids, mask).backward()
judged = torch.cat([mask[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)       # logits at t are judged by token t + 1
lesson.check("   nor has any other logit a gradient", logits.grad[~judged].abs().max(), 0.0, atol=0, source="B, C: SFT")

# %% [markdown]
# ## 3. A model that knows, and goes on writing
# The base reads a small world: pages with facts, quizzes with terse answers, letters with courtesies. It never sees a dialogue.

# %%
print("  " + "\n  ".join(ALMANAC.sample_many(6, seed=lesson.seed)))


def padded(texts):
    return nn.utils.rnn.pad_sequence([torch.tensor([NUMBER[END], *encode(t), NUMBER[END]]) for t in texts], batch_first=True, padding_value=-1)


pages = padded(ALMANAC.sample_many(lesson.pick(full=12_000, quick=2_000), seed=2 * lesson.seed))                # (texts, longest)
fresh_texts = ALMANAC.sample_many(lesson.pick(full=400, quick=100), seed=2 * lesson.seed + 1)
fresh = padded(fresh_texts).to(lesson.device)
exact_bits = sum(map(ALMANAC.surprisal, fresh_texts)) / (fresh[:, 1:] >= 0).sum().item()                        # what these very texts cost, exactly


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
for row in train(base, next_pages, text_loss, settings, gap):
    print(f"  step {row['step']:4d}   {row['gap']:.3f} bits per token above the exact {exact_bits:.3f}", flush=True)
base_gap = row["gap"]

# %% [markdown]
# Now ask it. The exam holds requests that no training will contain: a quarter of all. A right answer is exactly the right one: the courtesy, the
# content, the end. `judge` says separately whether it was helpful, truthful, harmless and polite.

# %%
exam_generator = torch.Generator().manual_seed(1_000_000 + lesson.seed)
exam = [sample(exam_generator, held_out=True) for _ in range(lesson.pick(full=300, quick=50))]
QUALITIES = ("helpful", "truthful", "harmless", "polite")


def examine(model):
    """Shares: of right answers, all and by kind; of answers that stopped; of each quality. And the answers."""
    said = answers(model, exam)
    right = [text == instruction.answer and stopped for instruction, (text, stopped) in zip(exam, said)]
    judged = [judge(instruction, text) for instruction, (text, _) in zip(exam, said)]
    share = {kind: [r for r, i in zip(right, exam) if i.kind == kind] for kind in KINDS}
    return {"right": sum(right) / len(exam), "stopped": sum(stopped for _, stopped in said) / len(exam), "said": said,
            **{kind: sum(rs) / max(1, len(rs)) for kind, rs in share.items()}, **{q: sum(j[q] for j in judged) / len(exam) for q in QUALITIES}}


shown = [next(n for n, i in enumerate(exam) if i.kind == kind) for kind in KINDS]


def show(name, result):
    print(f"\n  {name}: {result['right']:.0%} right, {result['stopped']:.0%} stopped; " + ", ".join(f"{q} {result[q]:.0%}" for q in QUALITIES))
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
STEPS = lesson.pick(full=300, quick=25)


def next_dialogues(generator):
    return tuple(t.to(lesson.device) for t in dialogues([sample(generator) for _ in range(32)]))


def without_end(model, batch):
    ids, mask = batch
    return sft_loss(model, ids, mask & (ids != NUMBER[END]))


def fine_tune(model, learning_rate, loss=lambda model, batch: sft_loss(model, *batch)):
    """SFT of whatever in the model requires a gradient; returns the exam, and the bits a token that plain text costs more than before."""
    settings = TrainingConfig(max_steps=STEPS, learning_rate=learning_rate, weight_decay=0.0, evaluate_every=STEPS, seed=lesson.seed)
    list(train(model, next_dialogues, loss, settings, progress=False))
    return {**examine(model), "forgotten": gap(model)["gap"] - base_gap, "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


FULL_RATE, LORA_RATE, ALPHA = 1e-3, 6e-3, 8.0
full = copy.deepcopy(base)
results["full"] = fine_tune(full, FULL_RATE)
show("SFT, all weights", results["full"])
endless = results["no <end>"] = fine_tune(copy.deepcopy(base), FULL_RATE, without_end)
show("SFT, <end> left out of the loss", endless)
begun = sum(text.startswith(i.answer) for i, (text, _) in zip(exam, endless["said"])) / len(exam)
ended = sum(text == i.answer and stopped for i, (text, stopped) in zip(exam, endless["said"])) / len(exam)
lesson.claim("SFT: from no right answer to at least 85 %, on requests held out", results["base"]["right"] < 0.02 and results["full"]["right"] >= 0.85,
             f"{results['base']['right']:.0%} before, {results['full']['right']:.0%} after; polite {results['base']['polite']:.0%} and {results['full']['polite']:.0%}", full_run=True)
lesson.claim("without <end> in the loss answers begin rightly, and most go on after their end", begun >= 0.8 and ended < 0.4,
             f"{begun:.0%} begin with the right answer, {ended:.0%} end after it; with <end> in the loss {results['full']['right']:.0%} do both", full_run=True)

# %% [markdown]
# ## 5. LoRA against all weights
# Six adapters a block, on every matrix in it; embeddings and norms stay. LoRA wants a larger learning rate, here 6 times that of all
# weights: probes of rank 4 at 3e-3 had not learned to decline by the time that those at 6e-3 had, and at 1e-2 more was forgotten; all weights
# at 2e-3 were no better than at 1e-3, and forgot twice as much. α = 8 throughout.

# %%
for rank in (1, 2, 4, 8):
    model = copy.deepcopy(base)
    add_lora(model, TARGETS, rank, ALPHA, torch.Generator().manual_seed(lesson.seed))
    results[rank] = fine_tune(model, LORA_RATE)
    save_lora(model, lesson.folder / f"rank_{rank}.pt")
    results[rank]["bytes"] = (lesson.folder / f"rank_{rank}.pt").stat().st_size
    if rank == 4:
        rank4 = model
show("LoRA, rank 4", results[4])
save_checkpoint(lesson.folder / "full.pt", {"model": full.state_dict()})
results["full"]["bytes"] = (lesson.folder / "full.pt").stat().st_size

print(f"\n  {'':>5}   parameters   share    on disk   right   " + "   ".join(f"{kind:>7}" for kind in KINDS) + "   forgotten, bits per token")
for name in (1, 2, 4, 8, "full"):
    r = results[name]
    print(f"  {name:>5}   {r['parameters']:>10,}   {r['parameters'] / count_parameters(base):>5.1%}   {r['bytes'] / 1024:>4.0f} KiB   {r['right']:>5.0%}   "
          + "   ".join(f"{r[kind]:>7.0%}" for kind in KINDS) + f"   {r['forgotten']:.2f}")

ratio = results[4]["right"] / max(results["full"]["right"], 1e-9)
lesson.claim("rank 4 reaches at least 90 % of full fine-tuning's quality with less than 10 % of its parameters",
             ratio >= 0.9 and results[4]["parameters"] < 0.1 * results["full"]["parameters"],
             f"{results[4]['right']:.0%} against {results['full']['right']:.0%} right, {results[4]['parameters']:,} against {results['full']['parameters']:,} parameters, "
             f"{results[4]['bytes'] / 1024:.0f} against {results['full']['bytes'] / 1024:.0f} KiB", full_run=True)

# %%
fig, (quality, forgetting, size) = plotting.figure(12, 3.8, columns=3)
names = [1, 2, 4, 8, "full"]
places = range(len(names))
colours = [plotting.COLOURS[4]] * 4 + [plotting.COLOURS[0]]
quality.bar(places, [results[n]["right"] for n in names], color=colours, edgecolor="black")
quality.set(ylabel="share of right answers", ylim=(0, 1.05), title=f"Quality, on requests held out (base: {results['base']['right']:.0%})")
forgetting.bar(places, [results[n]["forgotten"] for n in names], color=colours, edgecolor="black")
forgetting.set(ylabel="bits per token above the base", title="Forgetting: plain text costs more")
size.bar(places, [results[n]["bytes"] / 1024 for n in names], color=colours, edgecolor="black")
for place, n in zip(places, names):
    size.text(place, results[n]["bytes"] / 1024, f"{results[n]['parameters']:,}", ha="center", va="bottom", fontsize=9)
size.set(ylabel="KiB on disk", title="Size, with the numbers trained")
for axes in (quality, forgetting, size):
    axes.set_xticks(list(places), [f"r = {n}" if n != "full" else "all weights" for n in names])
    axes.grid(axis="x", visible=False)
lesson.figure(fig, "lora")

# %% [markdown]
# So a small note suffices. Is it also gentler to what the model knew? Biderman et al. (2024) found that LoRA "learns less and forgets less" on large
# models. Here it does not: the texts of part 3 have become more expensive for all, and more so for rank 4 than for all weights. Look at
# how large the updates are, beside the matrices that they change: who may move in four directions only, moves further in them.

# %%
before = dict(base.named_parameters())
updates = {"full": {name: p - before[name] for name, p in full.named_parameters() if p.dim() == 2 and "embedding" not in name},
           4: {f"{name}.weight": layer.update() for name, layer in lora_layers(rank4).items()}}
lengths = {kind: sum((matrix.norm() / before[name].norm()).item() for name, matrix in of.items()) / len(of) for kind, of in updates.items()}
lesson.claim("rank 4 does not forget less here: plain text costs it more than it costs full fine-tuning", results[4]["forgotten"] > 1.2 * results["full"]["forgotten"],
             f"{results[4]['forgotten']:.2f} against {results['full']['forgotten']:.2f} bits per token above the base; ‖ΔW‖/‖W‖ is {lengths[4]:.2f} against {lengths['full']:.2f}", full_run=True)

# %% [markdown]
# How low is the rank of what *full* fine-tuning did? Its ΔW is the difference of two matrices, and can have any rank. Its singular values,
# each matrix's divided by its first, say how far two thin matrices could have followed.

# %%
fig, axes = plotting.figure(7.5, 4)
energy = []
for kind, colour, dashes, label in (("full", plotting.COLOURS[0], "-", "all weights"), (4, plotting.COLOURS[1], "--", "LoRA, r = 4")):
    for n, matrix in enumerate(updates[kind].values()):
        values = torch.linalg.svdvals(matrix.detach().double()).cpu()
        axes.plot(range(1, len(values) + 1), values / values[0], color=colour, linestyle=dashes, linewidth=0.8, label=label if n == 0 else None)
        if kind == "full":
            energy.append((values[:4].square().sum() / values.square().sum()).item())
axes.set_xticks(range(1, 65, 9))
axes.set(xlabel="which singular value of ΔW", ylabel="size, relative to the first", xlim=(0, 65), ylim=(0, 1.05), title="What fine-tuning added, matrix by matrix")
axes.legend()
lesson.figure(fig, "singular_values")
print(f"  the first 4 of 64 directions hold {min(energy):.0%} to {max(energy):.0%} of ΔW's squared size when all weights are free, {sum(energy) / len(energy):.0%} on average")

# %% [markdown]
# ## 6. One base, many notes
# The file of rank 4, put beside the untouched base, is the assistant; merged, it is one at no cost; taken out, the base is back.

# %%
assistant = copy.deepcopy(base)
with torch.no_grad():
    load_lora(assistant, lesson.folder / "rank_4.pt", name="assistant")
    lesson.check("base + file = the model that was trained", assistant(ids.to(lesson.device)), rank4(ids.to(lesson.device)), atol=0, source="definition")
    load_lora(assistant, lesson.folder / "rank_1.pt", name="thrifty")
    use_lora(assistant, "assistant")
    merge(assistant)
    merged = answers(assistant, exam)
    same = sum(a == b for a, b in zip(merged, results[4]["said"])) / len(exam)
    print(f"  merged, {same:.0%} of its answers are the same")
    use_lora(assistant, None)
    lesson.check("taken out: the base, bit for bit", assistant(ids.to(lesson.device)), base(ids.to(lesson.device)), atol=0, source="definition")
lesson.claim("an adapter is kilobytes, and swapping it leaves the base untouched", same >= 0.99 and results[1]["bytes"] < 0.25 * results["full"]["bytes"],
             f"{results[1]['bytes'] / 1024:.0f} to {results[8]['bytes'] / 1024:.0f} KiB, the whole model {results['full']['bytes'] / 1024:.0f} KiB", full_run=True)

# %%
lesson.end()
