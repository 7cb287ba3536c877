"""What several tests share: the look-up of large public files, which the project does not carry."""
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_file():
    """shared_file("gpt2/vocab.bpe") -> its path; where no folder holds it, the test skips and says so."""
    def find(name: str) -> Path:
        folders = [ROOT / "data", ROOT.parent / "shared" / "data"]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is in none of {', '.join(map(str, folders))}")
    return find
