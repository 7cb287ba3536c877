"""minigpt: language models and their alignment, written from scratch in PyTorch.

The folders follow the order of the data. A module imports only from folders before its own:
text (words to numbers), worlds (invented data whose probabilities are known exactly), models
(numbers to probabilities), training (probabilities to parameters), generation (probabilities to
text), adaptation (one model, many tasks), alignment (from likely answers to preferred ones).
"""
