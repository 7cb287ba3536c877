"""Replies: a conversation small enough to list. A customer says "please" or "now", and a waiter replies in at most five words out of six.

    a reply is a string of . yes no please sorry now that ends with "." or after five words: 3,906 of them to each customer

What people usually reply is a chain (each word depends on the one before). How good a reply is, R(x, y), is a rule that can be read below;
it looks at the whole reply and at the customer, so no single word decides it. A language model that has learned what is usual is
π_ref; with R and β the best policy π* follows by listing (exact.py), and every method of this folder can be held against it.

Source: invented for this course. Lessons 17 to 19 share it.
Shapes: B replies, T = 1 + 5: the customer's word, then the reply.
"""
import torch
from torch import Tensor, nn

from minigpt.alignment.exact import list_answers
from minigpt.alignment.rollouts import rollout
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss

WORDS = (".", "yes", "no", "please", "sorry", "now")
STOP, YES, NO, PLEASE, SORRY, NOW = range(6)
CUSTOMERS = (PLEASE, NOW)
LONGEST = 5

# What people say after each word, in tenths of a percent: rows and columns as in WORDS. After a customer's word the reply begins.
HABITS = torch.tensor([
    [1000, 0, 0, 0, 0, 0],
    [450, 120, 60, 220, 30, 120],
    [380, 60, 150, 60, 250, 100],
    [250, 330, 200, 60, 100, 60],
    [420, 100, 180, 150, 60, 90],
    [300, 150, 280, 60, 90, 120],
]) / 1000


class Habits(nn.Module):
    """The chain as a model: tokens (B, T) -> log-probabilities of the next word (B, T, 6)."""

    context_length = 1 + LONGEST

    def __init__(self):
        super().__init__()
        self.logprobs = nn.Parameter(HABITS.log(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logprobs[tokens]


def customers(n: int, generator: torch.Generator) -> Tensor:
    """n prompts of one word each, either customer equally likely: (n, 1)."""
    return torch.tensor(CUSTOMERS)[torch.randint(len(CUSTOMERS), (n, 1), generator=generator)]


def usual_replies(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What people say: tokens (n, T) and which of them are the reply's (n, T)."""
    said = rollout(Habits(), customers(n, generator), LONGEST, STOP, generator=generator)
    return said.tokens, said.mask


def reference(seed: int = 0, steps: int = 200) -> GPT:
    """π_ref: a GPT of two layers that has read what people say, 256 new replies a step. Frozen: a copy of it is what gets trained."""
    model = GPT(GPTConfig.modern(len(WORDS), 1 + LONGEST, n_layers=2, n_heads=4, d_model=32), torch.Generator().manual_seed(seed))
    config = TrainingConfig(max_steps=steps, learning_rate=5e-3, weight_decay=0.0, optimizer="muon", evaluate_every=steps, seed=seed)
    for _ in train(model, lambda generator: usual_replies(256, generator), lambda m, batch: causal_loss(m(batch[0]), *batch), config):
        pass
    return model.requires_grad_(False)


def reward(tokens: Tensor, mask: Tensor) -> Tensor:
    """R(x, y), how good a reply is: (B, T), (B, T) -> (B,). A word counts once, however often it is said.

        yes +3    no −1, with "sorry" right after it +1    yes and no together −4    "please" +1
        "sorry" +1, to an impatient customer +2    "now" −3, with "please" right after it −1    no end −2    each word −0.4
    """
    here = [(tokens == word) & mask for word in range(len(WORDS))]      # (B, T) each
    said = [at.any(1).float() for at in here]                           # (B,) each

    def followed(first, second):
        return (here[first][:, :-1] & here[second][:, 1:]).any(1).float()

    impatient = (tokens[:, 0] == NOW).float()
    return (3.0 * said[YES] - said[NO] + 2.0 * followed(NO, SORRY) - 4.0 * said[YES] * said[NO] + said[PLEASE]
            + (1.0 + impatient) * said[SORRY] - 3.0 * said[NOW] + 2.0 * followed(NOW, PLEASE)
            - 2.0 * (1 - said[STOP]) - 0.4 * (mask & (tokens != STOP)).sum(1))


def all_replies() -> tuple[Tensor, Tensor]:
    """Every reply to each customer: tokens (2, 3906, T) and which of them are the reply's."""
    lists = [list_answers(torch.tensor([customer]), len(WORDS), LONGEST, STOP) for customer in CUSTOMERS]
    return torch.stack([tokens for tokens, _ in lists]), torch.stack([mask for _, mask in lists])


def written(tokens: Tensor) -> str:
    """One row as text.

    >>> written(torch.tensor([5, 2, 4, 0, 0, 0]))
    'now → no sorry .'
    """
    words = [WORDS[token] for token in tokens.tolist()]
    end = words.index(".", 1) + 1 if "." in words[1:] else len(words)
    return f"{words[0]} → {' '.join(words[1:end])}"
