"""What several tests share: programs started by a test find this clone, and large public files."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def clone_first():
    """Programs that a test starts import this clone, also if it was never installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT)] + ([before] if before else []))
    yield
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def shared_file():
    """shared_file("gpt2/vocab.bpe") -> its path; the test skips if no folder holds the file."""
    def find(name: str) -> Path:
        folders = [ROOT / "data", ROOT.parent / "shared" / "data"]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is in none of {', '.join(map(str, folders))}")
    return find
