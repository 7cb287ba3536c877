"""Lesson 19: DPO: a policy is trained on preferences without a reward model.

You will see    how π* gives the reward as a log-ratio, and why Z cancels; the loss and its
                gradient; log-probabilities of whole answers, and three common errors; course B's
                data set and code; sums, for which π* is the optimum, and means, for which it is
                not; a GPT that DPO brings to π*; a preferred answer that becomes less probable.
Source          course B, "Política óptima", "... retomemos Bradley-Terry" and "¿Cómo calculamos las
                log-probs?"; Rafailov et al. 2023, eqs. 4–7 and §4.
Expect          2 minutes on one core (13 s with --quick); KL(π‖π*) falls from 1.9 to 0.010–0.015
                nats with 460,800 fresh pairs; with means in place of sums the exact optimum is 0.43
                nats from π*; training on the same 200 pairs changes log π(chosen) from −3.6 to −4.3
                nats (the last two: seed 0).
Not here        a comparison of DPO with the other methods at equal KL (lesson 20); one set of
                preferences for a whole assistant (lesson 21).

Shapes: N answers, B pairs, T time, V vocabulary.
"""
# %%
import copy
import math

import torch
from torch import nn

from course import Lesson
from minigpt import plotting
from minigpt.alignment.dpo import (
    dpo_loss,
    dpo_metrics,
    implicit_reward,
    make_dpo_loss,
    score_pairs,
)
from minigpt.alignment.exact import (
    Table,
    answer_logprobs,
    gradient,
    kl_divergence,
    list_answers,
    make_table,
    optimal_policy,
    slopes,
)
from minigpt.alignment.preferences import (
    Pairs,
    accuracy_ceiling,
    compare,
    preference_probability,
)
from minigpt.alignment.reference import all_replies, train_reference
from minigpt.alignment.rollouts import roll_out
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.padding import pad
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import sequence_logprobs
from minigpt.worlds import replies

lesson = Lesson("19_dpo", threads=1)
device = torch.device(lesson.device)

# %% [markdown]
# ## 1. From the best policy back to the reward
# Lesson 18 gave the best policy for a reward: π* = π_ref e^{r/β}/Z, with Z(x) = Σ_y π_ref e^{r/β}.
# Why not compute it and stop? Z(x) is a sum over every possible answer to x, and a real model has
# far too many answers to generate them all. DPO exists because of this problem: its loss does not
# contain Z.
#
# Take the logarithm of π* and solve for r:
#
#     log π*(y|x) = log( π_ref(y|x) e^{r(x, y)/β} / Z(x) )
#                 = log π_ref(y|x) − log Z(x) + log e^{r(x, y)/β}
#                 = log π_ref(y|x) − log Z(x) + r(x, y)/β
#     r(x, y)     = β log( π*(y|x)/π_ref(y|x) ) + β log Z(x)
#
# So π* and π_ref determine the reward, except for a term that depends on the prompt alone. The
# Bradley–Terry model needs only differences of rewards for the same prompt. There the term cancels:
#
#     P(y⁺ ≻ y⁻ | x) = σ( r(x, y⁺) − r(x, y⁻) )
#                    = σ( β log(π*(y⁺|x)/π_ref(y⁺|x)) − β log(π*(y⁻|x)/π_ref(y⁻|x)) )
#
# We check this with two prompts that have different rewards and different Z. Each has 31 answers,
# and all of them are listed.
#
# Items: B26

# %%
BETA, V, L = 0.7, 3, 4
lists = [list_answers(torch.tensor([prompt]), V, L) for prompt in (1, 2)]
tokens, mask = (torch.cat(parts) for parts in zip(*lists))              # (62, 5)
prompt_of = torch.arange(2).repeat_interleave(31)                       # the first 31: prompt 1
reference = Table(V, L, V).double()
with torch.no_grad():
    reference.rows.normal_(generator=lesson.generator)
    ref = answer_logprobs(reference, tokens, mask)                      # (62,)
noise = torch.randn(62, dtype=torch.float64, generator=lesson.generator)
reward = 1.5 * noise + 2.0 * prompt_of                                  # (62,)
solved = [optimal_policy(ref[prompt_of == x], reward[prompt_of == x], BETA) for x in (0, 1)]
best = torch.cat([logp for logp, _ in solved])                          # (62,) log π*
log_z = torch.tensor([                                                  # (2,) summed by hand
    math.log(sum(math.exp(ref[i] + reward[i] / BETA) for i in range(62) if prompt_of[i] == x))
    for x in (0, 1)], dtype=torch.float64)
from_policy = implicit_reward(best, ref, BETA) + BETA * log_z[prompt_of]        # (62,)
lesson.check("r = β log(π*/π_ref) + β log Z, Z summed by hand", from_policy, reward, atol=1e-10,
             source="B: Política óptima; Rafailov et al. 2023, eq. 5", items=("B27",))

same = prompt_of[:, None] == prompt_of[None, :]                         # (62, 62) same prompt
with_z = preference_probability(reward[:, None], reward[None, :])       # (62, 62)
r_hat = implicit_reward(best, ref, BETA)                                # (62,)
without_z = preference_probability(r_hat[:, None], r_hat[None, :])
lesson.check("Z cancels: the same preferences from log-ratios alone", without_z[same],
             with_z[same], atol=1e-12, source="B: ... retomemos Bradley-Terry", items=("B28",))
off = (without_z - with_z)[~same].abs().max()
print(f"    log Z is {log_z[0]:.3f} and {log_z[1]:.3f}. Between answers to different prompts it "
      f"does not cancel:\n    the preferences would be wrong by up to {off:.2f}.")

# %% [markdown]
# ## 2. The loss and its gradient
# Now put a policy π in the place of π*, and train it so that the labels become probable (Rafailov
# et al. 2023, eq. 7). The margin of a pair is
# m = β log(π(y⁺|x)/π_ref(y⁺|x)) − β log(π(y⁻|x)/π_ref(y⁻|x)). Then
#
#     L = −E log σ(m)
#
# Lesson 17 derived that the slope of −log σ(m) is −σ(−m). With the chain rule, and since π_ref is
# fixed,
#
#     ∇L = −E[ σ(−m) ∇m ] = −β E[ σ(−m) · ( ∇ log π(y⁺|x) − ∇ log π(y⁻|x) ) ]
#
# σ(−m) is the probability of the opposite label under the policy's own reward. So pairs that the
# policy already explains well have small gradients. At the start π = π_ref, so m = 0, and
# L = log 2 = 0.693 for any labels. This is the loss of guessing, but the gradient is not 0, since
# σ(0) = ½.

# %%
policy = copy.deepcopy(reference)
with torch.no_grad():
    policy.rows += torch.randn(policy.rows.shape, dtype=torch.float64,
                               generator=lesson.generator) * 0.5
won, lost = torch.tensor([3, 40, 17]), torch.tensor([9, 55, 2])         # y⁺ and y⁻ of 3 pairs


def pair_loss(table):
    now = answer_logprobs(table, tokens, mask)
    return dpo_loss(now[won], now[lost], ref[won], ref[lost], BETA)


now = answer_logprobs(policy, tokens, mask)
m = (BETA * ((now[won] - ref[won]) - (now[lost] - ref[lost]))).detach()         # (3,)
by_hand = sum(math.log(1 + math.exp(-margin)) for margin in m.tolist()) / 3
lesson.check("L = −mean log σ(m), three pairs by hand", pair_loss(policy), by_hand, atol=1e-12,
             source="B: ... retomemos Bradley-Terry; Rafailov et al. 2023, eq. 7", items=("B29",))
directions = torch.stack([gradient(policy, now[a] - now[b]) for a, b in zip(won, lost)])
formula = -(BETA / (1 + m.exp()) / 3)[:, None] * directions             # (3, parameters)
lesson.check("∇L = −β σ(−m) (∇log π(y⁺) − ∇log π(y⁻))", formula.sum(0), slopes(pair_loss, policy),
             atol=1e-8, source="Rafailov et al. 2023, §4")
at_start = slopes(pair_loss, copy.deepcopy(reference))
lesson.check("at π = π_ref: L = log 2", pair_loss(reference), torch.tensor(0.6931471805599453),
             atol=1e-7, source="derived above")
lesson.claim("at π = π_ref the gradient is not 0", at_start.norm() > 0.1,
             f"its length is {at_start.norm():.3f}")
as_labelled, swapped = (
    torch.stack([dpo_loss(now[a], now[b], ref[a], ref[b], BETA) for a, b in zip(*order)]).detach()
    for order in ((won, lost), (lost, won)))                                      # (3,) each
lesson.check("swapping the labels: L(y⁺, y⁻) − L(y⁻, y⁺) = −m", as_labelled - swapped, -m,
             atol=1e-12, source="derived above")

# %% [markdown]
# ## 3. log π(y|x) of a whole answer: shift, gather, mask, sum
# Four steps, on a batch of padded answers:
# - **shift**: the logits at position t predict the token at position t + 1;
# - **gather** the log-probability of each token that is there;
# - **mask** the prompt, and everything after the stop token (the stop token itself counts);
# - **sum** over time.
#
# We compare with a loop that gives the model one prefix at a time. Then we make each of three
# common errors.

# %%
gpt = GPT(GPTConfig(V, 8, n_layers=2, n_heads=3, d_model=12), lesson.generator).double()
with torch.no_grad():
    for parameter in gpt.parameters():
        parameter.mul_(8)                                               # far from uniform
    rows, counts = tokens[[0, 2, 5, 61]], mask[[0, 2, 5, 61]]           # (4, 5): 1, 2, 3, 4 tokens
    logits = gpt(rows)                                                  # (4, 5, V)
    shifted, targets, counted = logits[:, :-1].log_softmax(-1), rows[:, 1:], counts[:, 1:]
    gathered = shifted.gather(2, targets[..., None])[..., 0]            # (4, 4)
    by_steps = (gathered * counted).sum(1)                              # (4,)
    one_by_one = torch.stack([
        sum(gpt(row[None, :t])[0, -1].log_softmax(0)[row[t]] for t in range(1, 5) if count[t])
        for row, count in zip(rows, counts)])                           # (4,)
lesson.check("shift, gather, mask, sum = one prefix at a time", by_steps, one_by_one, atol=1e-10,
             source="B: ¿Cómo calculamos las log-probs?")
lesson.check("the library's sequence_logprobs = one prefix at a time",
             sequence_logprobs(logits, rows, counts), one_by_one, atol=1e-10,
             source="B: ¿Cómo calculamos las log-probs?")
unshifted = logits.log_softmax(-1).gather(2, rows[..., None])[..., 0]   # (4, 5)
results = {"right": by_steps, "without the shift": (unshifted * counts).sum(1),
           "without the mask": gathered.sum(1), "mean, not sum": by_steps / counted.sum(1)}
lengths_shown = "".join(f"{length:9}" for length in counted.sum(1).tolist())
print(f"    {'tokens in the answer':<22}{lengths_shown}")
for name, values in results.items():
    print(f"    {name:<22}" + "".join(f"{value:9.2f}" for value in values.tolist()))

# %% [markdown]
# ## 4. Course B's data and code
# Course B's set of preferences has seven rows, in three parallel lists. Its function
# `get_batch_logps` comes from the library TRL. It takes labels in place of a mask: −100 marks a
# token that does not count. It does the four steps above. Its option `average_log_prob`, off by
# default, divides the sum by the number of tokens that count.

# %%
dpo_dataset_dict = {
    "prompt": ["hello", "how are you", "What is your name?", "What is your name?",
               "Which is the best programming language?", "Which is the best programming language?",
               "Which is the best programming language?"],
    "chosen": ["hi nice to meet you", "I am fine", "My name is Mary", "My name is Mary", "Python",
               "Python", "Java"],
    "rejected": ["leave me alone", "I am not fine", "Whats it to you?", "I dont have a name",
                 "Javascript", "C++", "C++"],
}


def get_batch_logps(logits, labels, average_log_prob=False, label_pad_token_id=-100,
                    is_encoder_decoder=False):
    """As course B prints it: logits (B, T, V), labels (B, T) -> (B,)."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError("Logits (batch and sequence length dim) and labels must have the same "
                         "shape.")
    if not is_encoder_decoder:
        labels = labels[:, 1:].clone()
        logits = logits[:, :-1, :]
    loss_mask = labels != label_pad_token_id
    labels[labels == label_pad_token_id] = 0
    per_token_logps = torch.gather(logits.log_softmax(-1), dim=2,
                                   index=labels.unsqueeze(2)).squeeze(2)
    if average_log_prob:
        return (per_token_logps * loss_mask).sum(-1) / loss_mask.sum(-1)
    return (per_token_logps * loss_mask).sum(-1)


def encode(questions, answers, width=64):
    """Question, answer and newline (the stop token) as bytes: tokens (B, 64), answers' mask."""
    rows = [list(f"{x} {y}\n".encode()) for x, y in zip(questions, answers)]
    text, real = pad([*rows, [0] * width], side="right", value=0)       # the last row sets T = 64
    starts = torch.tensor([len(x.encode()) + 1 for x in questions])[:, None]            # (B, 1)
    return text[:-1], real[:-1] & (torch.arange(width) >= starts)


x, y_w, y_l = (dpo_dataset_dict[name] for name in ("prompt", "chosen", "rejected"))
seven = Pairs(*encode(x, y_w), *encode(x, y_l))
text_ref = GPT(GPTConfig(256, 64, n_layers=1, n_heads=2, d_model=16), lesson.generator).double()
text_ref.requires_grad_(False)
text_policy = copy.deepcopy(text_ref).requires_grad_(True)

# %% [markdown]
# Course B trains with TRL. Each argument has its place in our loop:
#
# | course B | here |
# |---|---|
# | `DPOConfig(beta=0.1)` | `make_dpo_loss(…, beta=0.1)` |
# | `DPOTrainer(model, ref_model, …)` | `train(text_policy, …)`, `make_dpo_loss(text_ref, …)` |
# | `train_dataset`, `tokenizer` | `seven`, a batch of `Pairs`; `encode`, the bytes of the text |
# | `dpo_trainer.train()` | `train` |

# %%
config = TrainingConfig(max_steps=40, learning_rate=3e-3, weight_decay=0.0, evaluate_every=40,
                        seed=lesson.seed)
train(text_policy, lambda generator: seven, make_dpo_loss(text_ref, beta=0.1), config)


def course_logps(model, tokens, mask, average=False):
    """Course B's function on a batch of ours: (B,)."""
    with torch.no_grad():
        return get_batch_logps(model(tokens), tokens.masked_fill(~mask, -100), average)


chosen_and_rejected = ((seven.chosen, seven.chosen_mask), (seven.rejected, seven.rejected_mask))
theirs = torch.stack([course_logps(text_policy, *part) for part in chosen_and_rejected])  # (2, 7)
ours = torch.stack(score_pairs(text_policy, seven)).detach()            # by sequence_logprobs
lesson.check("sequence_logprobs = get_batch_logps, on the seven rows", ours, theirs, atol=1e-9,
             source="B: ¿Cómo calculamos las log-probs?", items=("B32",))
n_bytes = [[len(y.encode()) + 1 for y in answers] for answers in (y_w, y_l)]    # with the newline
lesson.check("average_log_prob=True: the sum divided by the answer's length",
             ours / torch.tensor(n_bytes),
             torch.stack([course_logps(text_policy, *part, average=True)
                          for part in chosen_and_rejected]), atol=1e-9,
             source="B: ¿Cómo calculamos las log-probs?", items=("B33",))
theirs_ref = torch.stack([course_logps(text_ref, *part) for part in chosen_and_rejected])
ratios = (theirs - theirs_ref).tolist()                                 # log(π/π_ref): two of 7
margins = [0.1 * (good - bad) for good, bad in zip(*ratios)]
lesson.check("the loss of the seven rows by hand", make_dpo_loss(text_ref, 0.1)(text_policy, seven),
             sum(math.log(1 + math.exp(-margin)) for margin in margins) / 7, atol=1e-9,
             source="B: ¿Cómo calculamos las log-probs?", items=("B30",))
for question, good, bad, margin in zip(x, y_w, y_l, margins):
    print(f"    {question:<42}{good:<22}≻ {bad:<20} margin {margin:5.2f}")
lesson.claim("after 40 steps all seven margins are positive", min(margins) > 0,
             f"from {min(margins):.2f} to {max(margins):.2f}", items=("B31",))

# %% [markdown]
# Must the mask leave out the prompt? With sums it makes no difference to the loss: the prompt's
# tokens have the same log-probabilities in both rows of a pair, so they cancel in m. With means
# they do not cancel, because the two rows are divided by different lengths.

# %%
with_prompt = [(t, m | (m.int().cumsum(1) == 0)) for t, m in chosen_and_rejected]


def margins_of(parts, average):
    """β × the difference of log-ratios for the seven rows: (7,)."""
    ratio_w, ratio_l = (course_logps(text_policy, *part, average)
                        - course_logps(text_ref, *part, average) for part in parts)
    return 0.1 * (ratio_w - ratio_l)


lesson.check("with sums, counting the prompt changes no margin", margins_of(with_prompt, False),
             torch.tensor(margins, dtype=torch.float64), atol=1e-9, source="derived above")
averaged = margins_of(chosen_and_rejected, True)
change = ((margins_of(with_prompt, True) - averaged).abs() / averaged.abs()).max().item()
lesson.claim("with means, counting the prompt changes the margins", change > 0.1,
             f"by up to {change:.0%}")

# %% [markdown]
# ## 5. Sums, not means
# Some published teaching code takes means, next to an equation with sums. Means give the loss of
# another problem. The test: suppose that a person with reward r labels all pairs, without end.
# Then the loss is a finite sum over all pairs, with the exact probability of each label. Section 1
# says that π* explains these labels exactly, so **the gradient at π* must be 0**. With sums it
# is. With means it is not: there the implicit reward is β·log-ratio/length, which does not equal
# r + constant.

# %%
lengths = mask.sum(1)                                                   # (62,)
pair_weight = same.double() / same.sum()                                # (62, 62)


def population_loss(table, mean):
    """DPO's loss over all pairs with the same prompt; both labels, weighted by probability."""
    ratio = (answer_logprobs(table, tokens, mask) - ref) / (lengths if mean else 1)
    margin = BETA * (ratio[:, None] - ratio[None, :])                   # (62, 62)
    right, wrong = nn.functional.logsigmoid(margin), nn.functional.logsigmoid(-margin)
    return -(pair_weight * (with_z * right + (1 - with_z) * wrong)).sum()


optimum = make_table(tokens, mask, best, V)
lesson.check("consistency: the table that holds π*",
             answer_logprobs(optimum, tokens, mask).detach(), best, atol=1e-10,
             source="make_table and answer_logprobs are inverse")
at_rest = gradient(optimum, population_loss(optimum, mean=False))
lesson.check("at π*, with sums: the gradient is 0", at_rest, torch.zeros_like(at_rest), atol=1e-12,
             source="derived above")
length_of_gradient = gradient(optimum, population_loss(optimum, mean=True)).norm().item()


def mean_kl(logp):
    """KL(π‖π*) in nats, the mean of both prompts: (62,) -> a number."""
    return sum(kl_divergence(logp[prompt_of == x], best[prompt_of == x]).item() for x in (0, 1)) / 2


def minimise(mean):
    """KL(π‖π*) of the policy that minimises the loss over all pairs."""
    table = copy.deepcopy(reference)
    optimizer = torch.optim.LBFGS(table.parameters(), max_iter=3000, max_eval=4000,
                                  tolerance_grad=1e-11, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = population_loss(table, mean)
        loss.backward()
        return loss

    optimizer.step(closure)
    return mean_kl(answer_logprobs(table, tokens, mask).detach())


with_sums, with_means = minimise(mean=False), minimise(mean=True)
lesson.check("minimised over all pairs, with sums: KL(π‖π*) = 0", with_sums, 0.0, atol=1e-6,
             source="derived above")
lesson.claim("with means the gradient at π* is not 0, and training ends at another policy",
             length_of_gradient > 1e-3 and with_means > 0.05,
             f"its length is {length_of_gradient:.4f}; minimised over all pairs, KL(π‖π*) ends at "
             f"{with_means:.3f} nats (π_ref: {mean_kl(ref):.3f})")

# %% [markdown]
# ## 6. A GPT trained on pairs
# The waiter of lessons 17 and 18 again, and the same π*. π* depends on r/β only, so r and β may
# both be doubled: with rewards 2R and β = 2 the goal is the same. The labels are then less noisy,
# so each label says more. Each step: new prompts, two replies of the present policy to each, one
# label for each pair from the true reward (Bradley–Terry), one step on DPO's loss. There is no
# reward model and no value model. The loop is `train`, the one that trained the GPT of lesson 06.
# (The replies may come from any policy, since section 5 holds for any set of pairs. Those of the
# present policy give the most information about the replies that it gives often.)
#
# This has a cost. 900 steps of 512 pairs are 921,600 replies: 7 times REINFORCE's 128,000 and 9
# times PPO's 102,400 in lesson 18. A label is one bit at most; REINFORCE and PPO receive the
# reward itself.
#
# What to look for in a log of DPO, where π* is not known:
# - `accuracy`: the share of pairs whose margin has the sign of the label. Compare it with the
#   ceiling of the labels (lesson 17), not with 1.
# - `margin`: the mean of m. It must rise from 0. Here, on the policy's own replies, it then stays
#   level.
# - `chosen` and `rejected`: mean log π in nats per reply. The loss does not require that `chosen`
#   rises. In section 7 it falls.

# %%
BETA = 2.0
waiter = train_reference(lesson.seed, lesson.pick(200, 100)).to(device)
everything, belongs = (part.to(device) for part in all_replies())       # (2, 3906, T)


def judged(tokens, mask):
    """2R, the reward of each reply for these customers: (B, T), (B, T) -> (B,)."""
    return 2 * replies.reward(tokens, mask)


with torch.no_grad():
    usual = [answer_logprobs(waiter, t, m) for t, m in zip(everything, belongs)]        # 2 (3906,)
goal = [optimal_policy(u, judged(t, m), BETA)[0] for u, t, m in zip(usual, everything, belongs)]
PAIRS = 512


@torch.no_grad()
def to_goal(policy):
    """KL(π‖π*) by listing, the mean of both customers."""
    each = [kl_divergence(answer_logprobs(policy, t, m), g)
            for t, m, g in zip(everything, belongs, goal)]
    return {"to_goal": sum(each).item() / 2}


labels = {}                                                             # of the newest pairs


def fresh_pairs(source, n):
    """A function that samples n labelled pairs of replies from the model `source`."""
    def next_batch(generator):
        prompts = replies.customers(n, generator).repeat_interleave(2, 0).to(device)    # (2n, 1)
        said = roll_out(source, prompts, replies.LONGEST, replies.STOP, generator=generator)
        worth = judged(said.tokens, said.mask)                          # (2n,)
        labels["ceiling"] = accuracy_ceiling(preference_probability(worth[0::2], worth[1::2]))
        return compare(said, worth, generator)
    return next_batch


policy = copy.deepcopy(waiter).requires_grad_(True)
watched = torch.Generator().manual_seed(2000 + lesson.seed)


def watch(policy):
    """KL(π‖π*), and DPO's metrics on new pairs that no step uses."""
    pairs = fresh_pairs(policy, PAIRS)(watched)
    return to_goal(policy) | dpo_metrics(policy, waiter, pairs, BETA) | labels


config = TrainingConfig(max_steps=lesson.pick(900, 40), learning_rate=7e-3, weight_decay=0.0,
                        optimizer="muon", evaluate_every=20, seed=lesson.seed)
online = train(policy, fresh_pairs(policy, PAIRS), make_dpo_loss(waiter, BETA), config, watch)
n_pairs = online[-1]["step"] * PAIRS
way = " → ".join(f"{row['to_goal']:.3f}" for row in online[::max(1, len(online) // 8)])
print(f"    KL(π‖π*): {way}, after {n_pairs:,} pairs ({2 * n_pairs:,} replies)")
lesson.claim("DPO reaches the π* of REINFORCE and PPO", online[-1]["to_goal"] <= 0.02,
             f"KL(π‖π*) = {online[-1]['to_goal']:.4f} nats; at the start "
             f"{online[0]['to_goal']:.2f}", full_run=True)
names = ("accuracy", "ceiling", "margin", "chosen", "rejected")
print("    " + f"{'replies':>9}" + "".join(f"{name:>10}" for name in names))
for row in (*online[1:-1:9], online[-1]):
    print(f"    {2 * row['step'] * PAIRS:9,}" + "".join(f"{row[name]:10.3f}" for name in names))

# %% [markdown]
# ## 7. The preferred answer can become less probable
# It seems that DPO must make the preferred answer more probable. It need not: the loss contains
# only the margin. Take three answers, each described by one number φ, and a policy π(y) ∝ e^{θφ(y)}
# with one parameter: *good* has φ = 1, *bad* has 0, and *superb*, which is in no pair, has 2. One
# pair: good ≻ bad. Its margin grows only if θ grows. And
#
#     d log π(good)/dθ = φ(good) − E[φ] = 1 − E[φ]
#
# This is negative as soon as E[φ] > 1: probability moves from *good* to *superb*. A table with a
# free number for each answer does not show this effect. A network does, because its answers share
# parameters. First the three answers, with gradient descent on L.

# %%
features = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)           # good, bad, superb
theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
even = torch.full((3,), -math.log(3), dtype=torch.float64)              # log π_ref
walk = []
for _ in range(40):
    logp = (theta * features).log_softmax(0)                            # (3,)
    walk.append((theta.item(), (logp[0] - logp[1]).item(), *logp.tolist()))
    loss = dpo_loss(logp[:1], logp[1:2], even[:1], even[1:2], 1.0)
    (slope,) = torch.autograd.grad(loss, theta)
    theta.data -= slope
walk = torch.tensor(walk, dtype=torch.float64)                          # (40, 5)
thetas, margins, good = walk[:, 0].tolist(), walk[:, 1], walk[:, 2]
mean_features = walk[:, 2:].exp() @ features                            # (40,) E[φ]


def log_good(t):
    """log π(good) at θ = t."""
    return math.log(math.exp(t) / (math.exp(t) + 1 + math.exp(2 * t)))


step = 1e-5
finite = torch.tensor([(log_good(t + step) - log_good(t - step)) / (2 * step) for t in thetas])
lesson.check("d log π(good)/dθ = 1 − E[φ]", 1 - mean_features, finite, atol=1e-6,
             source="derived above")
begin, end = walk[0, 2:].exp().tolist(), walk[-1, 2:].exp().tolist()
lesson.claim("three answers: the margin rises at each step, the preferred answer's probability "
             "falls",
             bool((margins[1:] > margins[:-1]).all() and (good[2:] < good[1:-1]).all()),
             f"margin {margins[0]:.2f} → {margins[-1]:.2f}; π(good) {begin[0]:.2f} → {end[0]:.2f}, "
             f"π(bad) {begin[1]:.2f} → {end[1]:.3f}, π(superb) {begin[2]:.2f} → {end[2]:.2f}")

# %% [markdown]
# Then the waiter, on a fixed set of pairs: 200 pairs of π_ref's replies, used again in every step.

# %%
fixed = fresh_pairs(waiter, 200)(torch.Generator().manual_seed(1000 + lesson.seed))
offline_policy = copy.deepcopy(waiter).requires_grad_(True)
config = TrainingConfig(max_steps=lesson.pick(200, 40), learning_rate=1e-3, weight_decay=0.0,
                        evaluate_every=5, seed=lesson.seed)


def on_the_set(model):
    chosen, rejected = score_pairs(model, fixed)
    return {"chosen": chosen.mean().item(), "rejected": rejected.mean().item()} | to_goal(model)


offline = train(offline_policy, lambda generator: fixed, make_dpo_loss(waiter, BETA), config,
                on_the_set)
fig, (left, right) = plotting.figure(11, 4.2, columns=2)
left.plot([2 * row["step"] * PAIRS for row in online], [row["to_goal"] for row in online],
          label="DPO, fresh pairs")
left.axhline(0.02, color="black", linestyle=":", linewidth=1.2, label="0.02 nats")
left.xaxis.set_major_formatter("{x:,.0f}")
left.set(yscale="log", xlabel="replies sampled (two for each label)",
         ylabel="KL(π‖π*), nats per reply (exact)", title="Distance from the best policy")
left.legend()
for name in ("chosen", "rejected"):
    right.plot([row["step"] for row in offline], [row[name] for row in offline],
               label=f"{name} replies")
right.set(xlabel="optimizer steps on the same 200 pairs", ylabel="mean log π(y|x), nats per reply")
right.set_title("Both fall; the loss contains only their difference")
right.legend()
lesson.figure(fig, "dpo")
first, final = offline[0], offline[-1]
nearest = min(row["to_goal"] for row in offline)
lesson.claim("the same 200 pairs in every step: the margin grows, the preferred replies become "
             "less probable",
             final["chosen"] < first["chosen"]
             and final["chosen"] - final["rejected"] > first["chosen"] - first["rejected"] + 1,
             f"log π(chosen) {first['chosen']:.2f} → {final['chosen']:.2f}, log π(rejected) "
             f"{first['rejected']:.2f} → {final['rejected']:.2f}; KL(π‖π*) "
             f"{first['to_goal']:.2f} → {nearest:.2f} (lowest) → {final['to_goal']:.2f}",
             full_run=True)

# %% [markdown]
# ## 8. A best margin: label smoothing
# With a fixed set of pairs, all margins can keep growing after every label is explained. Parameters
# are shared, so this also changes other answers: KL(π‖π*) first falls and then rises. Label
# smoothing (Mitchell 2023) assumes that a share ε of the labels is wrong:
#
#     L(m) = −(1 − ε) log σ(m) − ε log σ(−m)
#     L′(m) = −(1 − ε) σ(−m) + ε σ(m) = σ(m) − (1 − ε)         since σ(−m) = 1 − σ(m)
#
# L′ = 0 at σ(m) = 1 − ε, so the best margin is log((1 − ε)/ε), not ∞. IPO (Azar et al. 2024) also
# has a finite best margin. Both are options of `dpo_loss`. We search the minimum of `dpo_loss` by
# repeatedly cutting an interval of margins.

# %%
def best_margin(epsilon):
    """The margin with the lowest loss, between −10 and 10, by ternary search."""
    def loss_at(margin):
        logps = torch.tensor([[margin], [0.0], [0.0], [0.0]], dtype=torch.float64)
        return dpo_loss(*logps, beta=1.0, label_smoothing=epsilon)

    low, high = -10.0, 10.0
    for _ in range(60):
        third = (high - low) / 3
        if loss_at(low + third) < loss_at(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


lesson.check("label smoothing ε = 0.1, 0.2, 0.4: best margin log 9, log 4, log 1.5",
             [best_margin(epsilon) for epsilon in (0.1, 0.2, 0.4)],
             [math.log(9), math.log(4), math.log(1.5)], atol=1e-5, source="Mitchell 2023")

# %% [markdown]
# ## 9. What remains
# - **DPO has no reward model.** Course B introduces −E log σ(r_w − r_l) as the reward model's
#   expression "en DPO". Correction: it is Bradley–Terry's loss, of RLHF's reward model (lesson
#   17). In DPO the policy's log-ratios take the place of r.
# - **Means or sums** is a choice of the objective, as section 5 measured. Some later methods take
#   means on purpose (SimPO, Meng et al. 2024), and derive another objective for them.

# %%
lesson.end()
