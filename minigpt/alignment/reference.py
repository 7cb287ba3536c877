"""The waiter's reference policy π_ref, and a list of all its replies.

    π_ref = a GPT trained on usual replies:  L = −mean log π_ref(yₜ | x, y_<t)

Source: invented for this course; the world is worlds/replies.py. Lessons 17 to 19 use both.

Shapes: B replies, T = 1 + 5: the customer's word, then the reply.
"""
import torch
from torch import Generator, Tensor

from minigpt.alignment.exact import list_answers
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import causal_loss
from minigpt.worlds import replies


def train_reference(seed: int = 0, steps: int = 200) -> GPT:
    """π_ref: a GPT of two layers, trained on 256 new usual replies per step.

    Its parameters are frozen. To train a policy, unfreeze a copy of it.
    """
    n_tokens = 1 + replies.LONGEST
    gpt_config = GPTConfig.modern(len(replies.WORDS), n_tokens, n_layers=2, n_heads=4, d_model=32)
    model = GPT(gpt_config, Generator().manual_seed(seed))
    config = TrainingConfig(max_steps=steps, learning_rate=5e-3, weight_decay=0.0,
                            optimizer="muon", evaluate_every=steps, seed=seed)

    def next_batch(generator: Generator) -> tuple[Tensor, Tensor]:
        return replies.usual_replies(256, generator)

    def loss(model: GPT, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, mask = batch
        return causal_loss(model(tokens), tokens, mask)

    train(model, next_batch, loss, config)
    return model.requires_grad_(False)


def all_replies() -> tuple[Tensor, Tensor]:
    """All replies to each customer: tokens (2, 3906, T), and the replies' mask (2, 3906, T)."""
    lists = [
        list_answers(torch.tensor([customer]), len(replies.WORDS), replies.LONGEST, replies.STOP)
        for customer in replies.CUSTOMERS
    ]
    tokens, mask = zip(*lists)
    return torch.stack(tokens), torch.stack(mask)
