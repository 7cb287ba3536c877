"""minigpt: language models and their alignment, from one-hot vectors to DPO, small enough to read and exact enough to check.

Folders are in the order data flows; an import only ever points up this list:
text (words to numbers), models (numbers to probabilities), training (probabilities to parameters), generation,
adaptation (one model, many tasks), alignment (from likely to preferred).
"""
