"""Fetch tinyshakespeare, the 1.1 MB of plays on which character models are often compared:  python data/get.py

The bytes go to a file beside the destination, which takes its place only if their sha256 is the expected one, so a broken
download never replaces, or passes for, a good file. Nothing else in this project uses the network.
"""
import hashlib
import os
import sys
from pathlib import Path
from urllib.request import urlopen

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DESTINATION = Path(__file__).resolve().parent / "tinyshakespeare.txt"


def fetch(url: str, destination: Path, sha256: str) -> None:
    """Stream url to destination; OSError if it cannot be had, ValueError if it is not what was expected."""
    beside, digest = destination.with_name(destination.name + ".part"), hashlib.sha256()
    try:
        with urlopen(url, timeout=30) as source, open(beside, "wb") as file:
            while block := source.read(1 << 16):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise ValueError(f"what {url} holds has sha256 {digest.hexdigest()}, not {sha256}; nothing was kept")
        os.replace(beside, destination)
    finally:
        beside.unlink(missing_ok=True)


def main(url: str = URL, destination: Path = DESTINATION, sha256: str = SHA256) -> int:
    """The command: 0 if the file is there in the end, 2 and one line if not."""
    if destination.exists() and hashlib.sha256(destination.read_bytes()).hexdigest() == sha256:
        print(f"{destination} is here already")
        return 0
    try:
        fetch(url, destination, sha256)
    except (OSError, ValueError) as error:
        print(f"get.py: cannot fetch {url}: {error}; are you online? {destination} is as it was", file=sys.stderr)
        return 2
    print(f"{destination}: {destination.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
