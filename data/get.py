"""Fetches tinyshakespeare, 1.1 MB of plays on which character models are often compared.

    python data/get.py

The bytes go to a file beside the destination. The file takes the destination's name only if its
SHA-256 is the expected one, so a broken download never replaces a good file. Nothing else in this
project uses the network.
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
    """Copies what is at `url` to `destination`.

    OSError if it cannot be fetched, ValueError if its checksum is not the expected one.
    """
    beside = destination.with_name(destination.name + ".part")
    digest = hashlib.sha256()
    try:
        with urlopen(url, timeout=30) as source, open(beside, "wb") as file:
            while block := source.read(1 << 16):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise ValueError(f"its sha256 is {digest.hexdigest()}, not {sha256}; nothing was kept")
        os.replace(beside, destination)
    finally:
        beside.unlink(missing_ok=True)


def main(url: str = URL, destination: Path = DESTINATION, sha256: str = SHA256) -> int:
    """Status 0 if the file is there in the end; 2, and one line, if it is not; 130 for Ctrl-C."""
    try:
        if (destination.is_file()
                and hashlib.sha256(destination.read_bytes()).hexdigest() == sha256):
            print(f"{destination} is here already")
            return 0
        fetch(url, destination, sha256)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"get.py: cannot fetch {url}: {' '.join(str(error).split())}; are you online? "
              f"{destination} is as it was", file=sys.stderr)
        return 2
    print(f"{destination}: {destination.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
