"""Replies: a conversation small enough to list. A customer says "please" or "now", and a waiter replies in at most five words out of six.

    a reply is a string of . yes no please sorry now that ends with "." or after five words: 3,906 of them to each customer

What people usually reply is a chain (each word depends on the one before). How good a reply is, R(x, y), is a rule that can be read below;
it looks at the whole reply and at the customer, so no single word decides it. A language model that has learned what is usual is
π_ref; with R and β the best policy π* follows by listing (exact.py), and every method of this folder can be held against it.

Source: invented for this course. Lessons 17 to 19 share it.
Shapes: B replies, T = 1 + 5: the customer's word, then the reply.
"""
import torch
from torch import Tensor

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


def customers(n: int, generator: torch.Generator) -> Tensor:
    """n prompts of one word each, either customer equally likely: (n, 1)."""
    return torch.tensor(CUSTOMERS)[torch.randint(len(CUSTOMERS), (n, 1), generator=generator)]


def usual_replies(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What waiters usually say: tokens (n, T) and which of them are the reply's (n, T)."""
    tokens = torch.full((n, 1 + LONGEST), STOP)                         # (n, T)
    mask = torch.zeros(n, 1 + LONGEST, dtype=torch.bool)                # (n, T)
    tokens[:, :1] = customers(n, generator)
    talking = torch.ones(n, dtype=torch.bool)
    for t in range(1, 1 + LONGEST):
        word = torch.multinomial(HABITS[tokens[:, t - 1]], 1, generator=generator)[:, 0]        # (n,)
        tokens[:, t] = torch.where(talking, word, STOP)
        mask[:, t] = talking
        talking = talking & (word != STOP)
    return tokens, mask


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


def written(tokens: Tensor) -> str:
    """One row as text.

    >>> written(torch.tensor([5, 2, 4, 0, 0, 0]))
    'now → no sorry .'
    """
    words = [WORDS[token] for token in tokens.tolist()]
    end = words.index(".", 1) + 1 if "." in words[1:] else len(words)
    return f"{words[0]} → {' '.join(words[1:end])}"
