"""Words to numbers: representations, tokenizers, padding, masking, and the prose in data/."""
