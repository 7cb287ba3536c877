"""Instruction tuning: supervised fine-tuning (SFT) on dialogues, with a loss on the answer's tokens only.

    L_SFT = −mean log P(yₜ | request, y_<t)  over the answer's tokens y₁ … y_n and the <end> after them

Source: Ouyang et al. 2022 (InstructGPT), §3 and its first step. The world of requests and answers: `worlds/assistant.py`.

Shapes: B batch, T time.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.generation import generate, left_pad
from minigpt.training.losses import causal_loss
from minigpt.worlds.assistant import END, NUMBER, Instruction, decode, encode


def dialogues(instructions: Sequence[Instruction]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T), padded with <end>, and the mask (B, T): True on the answer's tokens and on the <end> that closes it."""
    if not instructions:
        raise ValueError("there is no instruction; give at least one")
    rows = [(prompt(i), encode(i.answer) + [NUMBER[END]]) for i in instructions]
    length = max(len(before) + len(answer) for before, answer in rows)
    ids = torch.full((len(rows), length), NUMBER[END])                  # (B, T)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)             # (B, T)
    for row, counted, (before, answer) in zip(ids, mask, rows):
        row[:len(before) + len(answer)] = torch.tensor(before + answer)
        counted[len(before):len(before) + len(answer)] = True
    return ids, mask


def prompt(instruction: Instruction) -> list[int]:
    """What the model reads before it answers: <end> opens every text, then the user speaks."""
    return [NUMBER[END], *encode(f"user: {instruction.request} assistant:")]


def sft_loss(model, ids: Tensor, mask: Tensor) -> Tensor:
    """L_SFT: nats for each token that counts, (B, T), (B, T) -> scalar."""
    return causal_loss(model(ids), ids, mask)


def answers(model, instructions: Sequence[Instruction], max_new_tokens: int = 16) -> list[tuple[str, bool]]:
    """What the model answers, greedily, and whether it stopped by itself."""
    device = next(model.parameters()).device
    tokens, mask = (x.to(device) for x in left_pad([prompt(i) for i in instructions], NUMBER[END]))
    written = generate(model, tokens, max_new_tokens, temperature=0, stop_token=NUMBER[END], mask=mask)[:, tokens.size(1):]
    return [(decode(ids[:(*ids, NUMBER[END]).index(NUMBER[END])]), NUMBER[END] in ids) for ids in written.tolist()]
