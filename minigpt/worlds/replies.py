"""Replies: a world of short conversations, so small that every reply can be listed.

A customer says "please" or "now", and a waiter replies with at most five of the words
. yes no please sorry now. The reply ends with "." or after five words: there are 3,906 of them.

    π(y | x) = Πₜ P(yₜ | yₜ₋₁),  y₀ = x          the usual replies are a Markov chain
    r(x, y)                                      the reward is a rule, written in `reward` below

The reward depends on the whole reply and on the customer, so no single word decides it. A language
model that has learnt the usual replies is π_ref. Since every reply can be listed, the best policy
π* for r and any β is known exactly (alignment/exact.py), and each method is compared with it.

Source: invented for this course. Lessons 17 to 19 use it.

Shapes: B replies, T = 1 + 5: the customer's word, then the reply.
"""
import torch
from torch import Generator, Tensor

from minigpt.text.padding import check_mask

WORDS = (".", "yes", "no", "please", "sorry", "now")
STOP, YES, NO, PLEASE, SORRY, NOW = range(6)
CUSTOMERS = (PLEASE, NOW)
LONGEST = 5

# P(next word | word) of a usual reply: one row for each word, columns as in WORDS.
# The first word of a reply follows the customer's word.
NEXT_WORD = torch.tensor([
    [1000, 0, 0, 0, 0, 0], [450, 120, 60, 220, 30, 120], [380, 60, 150, 60, 250, 100],
    [250, 330, 200, 60, 100, 60], [420, 100, 180, 150, 60, 90], [300, 150, 280, 60, 90, 120],
]) / 1000


def customers(n: int, generator: Generator) -> Tensor:
    """Samples n prompts of one word, both customers with the same probability: (n, 1)."""
    return torch.tensor(CUSTOMERS)[torch.randint(len(CUSTOMERS), (n, 1), generator=generator)]


def usual_replies(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Samples n customers with a usual reply: tokens (n, T), and the reply's mask (n, T)."""
    tokens = torch.full((n, 1 + LONGEST), STOP)                         # (n, T)
    mask = torch.zeros(n, 1 + LONGEST, dtype=torch.bool)                # (n, T)
    tokens[:, :1] = customers(n, generator)
    running = torch.ones(n, dtype=torch.bool)                           # replies without their "."
    for t in range(1, 1 + LONGEST):
        probabilities = NEXT_WORD[tokens[:, t - 1]]                     # (n, 6)
        words = torch.multinomial(probabilities, 1, generator=generator)[:, 0]          # (n,)
        tokens[:, t] = torch.where(running, words, STOP)
        mask[:, t] = running
        running = running & (words != STOP)
    return tokens, mask


def reward(tokens: Tensor, mask: Tensor) -> Tensor:
    """r(x, y), how good each reply is: tokens (B, T), mask (B, T) -> (B,).

        yes                 +3          no, with sorry right after it        −1 + 2
        no                  −1          now, with please right after it      −3 + 2
        yes and no          −4 more     sorry to the customer who said now   +2
        please              +1          no "." at the end                    −2
        sorry               +1          each word but "."                    −0.4
        now                 −3

    Except for the price of each word, a word counts once, however often it is said.
    """
    check_mask(mask, tokens.shape)
    here = [(tokens == word) & mask for word in range(len(WORDS))]      # six of (B, T)
    said = [where.any(1).float() for where in here]                     # six of (B,)

    def followed(first: int, second: int) -> Tensor:                    # (B,), 1 where it is so
        return (here[first][:, :-1] & here[second][:, 1:]).any(1).float()

    impatient = (tokens[:, 0] == NOW).float()
    n_words = (mask & (tokens != STOP)).sum(1)
    return (3.0 * said[YES] - said[NO] + 2.0 * followed(NO, SORRY) - 4.0 * said[YES] * said[NO]
            + said[PLEASE] + (1.0 + impatient) * said[SORRY]
            - 3.0 * said[NOW] + 2.0 * followed(NOW, PLEASE)
            - 2.0 * (1 - said[STOP]) - 0.4 * n_words)


def written(tokens: Tensor) -> str:
    """A customer and the reply as text, such as "now → no sorry .": (T,) -> str."""
    words = [WORDS[token] for token in tokens.tolist()]
    end = words.index(".", 1) + 1 if "." in words[1:] else len(words)
    return f"{words[0]} → {' '.join(words[1:end])}"
