"""Texts to train on: the prose that comes with this project.

Not here: invented stories (`worlds/stories.py`), tokens (`tokenizers.py`), and tinyshakespeare, which `python data/get.py` fetches.
"""
from pathlib import Path

from minigpt.files import read_text

DATA = Path(__file__).parents[2] / "data"
PROSE = ("tales.txt", "letters.txt", "howto.txt", "dialogue.txt")


def prose() -> str:
    """The project's own tales, letters, instructions and dialogues, shuffled together like cards, two empty lines between pieces.

    Each file's pieces keep their order and are spread evenly over the whole, so that the last tenth, which training holds out,
    has some of every kind.
    """
    pieces = []
    for name in PROSE:
        ours = read_text(DATA / name).strip("\n").split("\n\n\n")
        pieces += [((i + 0.5) / len(ours), piece) for i, piece in enumerate(ours)]
    return "\n\n\n".join(piece for _, piece in sorted(pieces)) + "\n"
