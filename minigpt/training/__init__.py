"""Probabilities to parameters: losses, the one training loop, optimizers, checkpoints."""
