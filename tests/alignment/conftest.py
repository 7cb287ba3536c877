"""A world of 31 answers, in which every expectation is a finite sum that plain Python computes.

There are three tokens, an answer has at most four, and token 0 stops it. The prompt *is* the stop
token, so code that finds the end of an answer by its value and not by its place fails. Everything
here is computed with lists, loops and `math`, and the library's tensors are compared with it.
"""
import itertools
import math

import pytest
import torch

from minigpt.alignment.exact import Table
from minigpt.alignment.rollouts import Rollout

V, L, STOP = 3, 4, 0
PREFIXES = [p for n in range(1, L + 1) for p in itertools.product(range(V), repeat=n)]
ROWS = {prefix: i for i, prefix in enumerate(PREFIXES)}


def listed(vocab_size, longest, stop):
    """Every string that is an answer."""
    strings = [s for n in range(1, longest + 1)
               for s in itertools.product(range(vocab_size), repeat=n)]
    return [s for s in strings if stop not in s[:-1] and (s[-1] == stop or len(s) == longest)]


class World:
    """One prompt and its answers, a reward for each answer, a policy and a reference."""

    def __init__(self, seed=0, prompt=(STOP,)):
        self.generator = torch.Generator().manual_seed(seed)
        self.prompt, self.answers, self.beta = prompt, listed(V, L, STOP), 0.7
        length = len(prompt) + L
        padded = [list(prompt) + list(a) + [STOP] * (L - len(a)) for a in self.answers]
        self.tokens = torch.tensor(padded)                              # (31, T)
        self.mask = torch.tensor([[len(prompt) <= t < len(prompt) + len(a) for t in range(length)]
                                  for a in self.answers])
        self.actions = self.mask[:, 1:]
        self.policy, self.reference = self.table(), self.table()
        self.rewards = torch.randn(31, generator=self.generator, dtype=torch.float64)

    def table(self, n_outputs=V):
        table = Table(V, L, n_outputs).double()
        with torch.no_grad():
            table.rows.normal_(generator=self.generator)
        return table

    def steps(self, table):
        """prefix -> [log π(token | prefix)], by exp and log."""
        rows = table.rows.detach().tolist()
        log_sums = [math.log(math.fsum(map(math.exp, row))) for row in rows]
        return {p: [x - log_sums[i] for x in rows[i]] for p, i in ROWS.items()}

    def token_logprobs(self, table):
        """answer -> the log-probabilities of its tokens."""
        steps = self.steps(table)
        return [[steps[self.prompt + a[:t]][a[t]] for t in range(len(a))] for a in self.answers]

    def logprobs(self, table):
        return [math.fsum(row) for row in self.token_logprobs(table)]

    def probabilities(self, table):
        return [math.exp(x) for x in self.logprobs(table)]

    def expectation(self, table, values):
        return math.fsum(p * float(v) for p, v in zip(self.probabilities(table), values))

    def kl(self, table, other):
        pairs = zip(self.logprobs(table), self.logprobs(other))
        return self.expectation(table, [a - b for a, b in pairs])

    def objective(self, table):
        """J = E[r] − β·KL(table‖reference)."""
        return self.expectation(table, self.rewards) - self.beta * self.kl(table, self.reference)

    def log_z(self, beta=None):
        beta = beta or self.beta
        pairs = zip(self.probabilities(self.reference), self.rewards.tolist())
        return math.log(math.fsum(p * math.exp(r / beta) for p, r in pairs))

    def best(self, beta=None):
        """π*(y) of each answer."""
        beta, z = beta or self.beta, math.exp(self.log_z(beta))
        pairs = zip(self.probabilities(self.reference), self.rewards.tolist())
        return [p * math.exp(r / beta) / z for p, r in pairs]

    def scores(self, table):
        """∇ log π(y) by hand, (31, parameters): 1[token taken] − π(token) in each visited row."""
        return self.step_scores(table).sum(1)

    def step_scores(self, table):
        """The same with one term for each step: (31, L, parameters)."""
        steps = self.steps(table)
        result = torch.zeros(len(self.answers), L, len(ROWS), V, dtype=torch.float64)
        for i, a in enumerate(self.answers):
            for t in range(len(a)):
                prefix = self.prompt + a[:t]
                for token in range(V):
                    slope = (a[t] == token) - math.exp(steps[prefix][token])
                    result[i, t, ROWS[prefix], token] = slope
        return result.flatten(2)

    def gradient(self, table, weights):
        """Σ_y π(y) w(y) ∇ log π(y) for weights (31,)."""
        terms = zip(self.probabilities(table), weights, self.scores(table))
        return sum(p * float(w) * s for p, w, s in terms)

    def difference(self, function, table, h=1e-5):
        """∇ of `function(table)` -> float by central differences of each parameter that matters."""
        result = torch.zeros(len(ROWS), V, dtype=torch.float64)
        met = {self.prompt + a[:t] for a in self.answers for t in range(len(a))}
        with torch.no_grad():
            for prefix in met:
                for token in range(V):
                    here = table.rows[ROWS[prefix], token].item()
                    ends = []
                    for step in (h, -h):
                        table.rows[ROWS[prefix], token] = here + step
                        ends.append(float(function(table)))
                    table.rows[ROWS[prefix], token] = here
                    result[ROWS[prefix], token] = (ends[0] - ends[1]) / (2 * h)
        return result.flatten()

    def listed_logprobs(self, table):
        """(31, T − 1): log π of each action of each answer, from Python's lists; 0 elsewhere."""
        logprobs = torch.zeros(self.actions.shape, dtype=torch.float64)
        for i, row in enumerate(self.token_logprobs(table)):
            for t, x in enumerate(row):
                logprobs[i, len(self.prompt) - 1 + t] = x
        return logprobs

    def all_answers(self, table=None):
        """Each answer once, as if the table (the policy) had sampled it."""
        return Rollout(self.tokens, self.mask, self.listed_logprobs(table or self.policy))

    def score(self, tokens, mask):
        """The rewards of given answers, which are found by their tokens."""
        worth = dict(zip(self.answers, self.rewards.tolist()))
        rewards = [worth[tuple(row[m].tolist())] for row, m in zip(tokens, mask)]
        return torch.tensor(rewards, dtype=torch.float64)


@pytest.fixture
def world():
    torch.manual_seed(0)
    return World()
