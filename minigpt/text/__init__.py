"""Words to numbers: representations, tokenizers, and the grammars and readers that supply text."""
