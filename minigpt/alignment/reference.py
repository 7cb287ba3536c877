"""The waiter's reference policy π_ref, and every reply that it could give.

Source: invented for this course; the world is `worlds/replies.py`. Lessons 17 to 19 share both.
"""
import torch
from torch import Tensor

from minigpt.alignment.exact import list_answers
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss
from minigpt.worlds import replies


def train_reference(seed: int = 0, steps: int = 200) -> GPT:
    """π_ref: a GPT of two layers that has read what people say, 256 new replies a step. Frozen: a copy of it is what gets trained."""
    model = GPT(GPTConfig.modern(len(replies.WORDS), 1 + replies.LONGEST, n_layers=2, n_heads=4, d_model=32), torch.Generator().manual_seed(seed))
    config = TrainingConfig(max_steps=steps, learning_rate=5e-3, weight_decay=0.0, optimizer="muon", evaluate_every=steps, seed=seed)
    for _ in train(model, lambda generator: replies.usual_replies(256, generator), lambda m, batch: causal_loss(m(batch[0]), *batch), config):
        pass
    return model.requires_grad_(False)


def all_replies() -> tuple[Tensor, Tensor]:
    """Every reply to each customer: tokens (2, 3906, T) and which of them are the reply's."""
    lists = [list_answers(torch.tensor([customer]), len(replies.WORDS), replies.LONGEST, replies.STOP) for customer in replies.CUSTOMERS]
    return torch.stack([tokens for tokens, _ in lists]), torch.stack([mask for _, mask in lists])
