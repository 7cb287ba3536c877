"""Instruction tuning: supervised fine-tuning (SFT) on dialogues; the loss counts only the answers.

    <end> user: what colour is the crow? assistant: gladly, the crow is white. <end>
                                                    └────── these tokens count ────┘

    L_SFT = −mean log P(yₜ | request, y_<t)      over the answer's tokens and the <end> after them

A base model continues a request as it would continue any text. Fine-tuning on dialogues teaches it
to answer as the assistant does, and to stop.

Source: course C, "ChatGPT: Supervised Finetuning"; Ouyang et al. 2022 (InstructGPT), §3, which does
not say which tokens the loss counts. The dialogues are those of `worlds/assistant.py`.

Shapes: B dialogues, T tokens of the longest one.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.generation import generate
from minigpt.text.padding import pad
from minigpt.training.losses import causal_loss
from minigpt.worlds.assistant import END, Instruction, decode, encode


def prompt(instruction: Instruction) -> list[int]:
    """The tokens that the model reads before it answers: <end>, then the user's request."""
    return [END, *encode(f"user: {instruction.request} assistant:")]


def dialogues(instructions: Sequence[Instruction]) -> tuple[Tensor, Tensor]:
    """Whole dialogues as tokens (B, T), padded with <end>, and the mask (B, T) of the loss.

    The mask is True at the answer's tokens and at the <end> after them.
    """
    prompts = [prompt(i) for i in instructions]
    rows = [before + encode(i.answer) + [END] for before, i in zip(prompts, instructions)]
    tokens, is_token = pad(rows, side="right", value=END)               # (B, T) both
    lengths = torch.tensor([len(before) for before in prompts])         # (B,)
    return tokens, is_token & (torch.arange(tokens.size(1)) >= lengths[:, None])


def sft_loss(model, tokens: Tensor, mask: Tensor) -> Tensor:
    """L_SFT in nats per counted token: (B, T), (B, T) -> scalar."""
    return causal_loss(model(tokens), tokens, mask)


def answers(model, instructions: Sequence[Instruction],
            max_new_tokens: int = 16) -> list[tuple[str, bool]]:
    """The model's greedy answers. The bool says whether the answer ended with <end>."""
    tokens, mask = pad([prompt(i) for i in instructions], side="left", value=END)       # (B, T)
    device = next(model.parameters()).device
    tokens, mask = tokens.to(device), mask.to(device)
    texts = generate(model, tokens, max_new_tokens, temperature=0, stop_token=END, mask=mask)
    new_tokens = texts[:, tokens.size(1):].tolist()
    return [(decode(ids[:[*ids, END].index(END)]), END in ids) for ids in new_tokens]
