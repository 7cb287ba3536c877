"""The prose that comes with this project, as one text to train on.

Not here: invented stories (`worlds/stories.py`), and tinyshakespeare (`python data/get.py`).
"""
from pathlib import Path

from minigpt.files import read_text

PACKAGE = Path(__file__).parents[1]
IN_A_WHEEL = PACKAGE / "data"           # in a clone, data/ stands beside minigpt/
DATA = IN_A_WHEEL if IN_A_WHEEL.is_dir() else PACKAGE.parent / "data"
PROSE = ("tales.txt", "letters.txt", "howto.txt", "dialogue.txt")


def prose() -> str:
    """Tales, letters, instructions and dialogues, mixed; two empty lines between two pieces.

    The pieces of each file are spread evenly, so the last tenth, which is held out, has every kind.
    """
    placed = []                                             # (place in the whole, piece)
    for name in PROSE:
        pieces = read_text(DATA / name).strip("\n").split("\n\n\n")
        placed += [((i + 0.5) / len(pieces), piece) for i, piece in enumerate(pieces)]
    return "\n\n\n".join(piece for _, piece in sorted(placed)) + "\n"
