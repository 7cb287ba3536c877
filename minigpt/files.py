"""Files: read as UTF-8 or refused in one line; written whole or not at all.

A file is written beside its place, forced to the disk, then renamed onto its place: a rename happens or does not. Whoever
is killed between two of these lines leaves the old file whole.
"""
import json
import os
from pathlib import Path


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without its byte order mark; \\r\\n and \\r become \\n, so a text is the same on every system.

    Errors, each one line: FileNotFoundError for a missing file; ValueError for a folder, for bytes that are not UTF-8, and for a
    file that holds no text.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one text file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check its spelling, and the folder you are in: {Path.cwd()}")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start} of {len(raw)} ({error.reason}); "
                         "save it as UTF-8 in your editor") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; there is nothing to read")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_atomic(path: str | Path, data: bytes) -> None:
    """Puts `data` at `path` whole, or raises OSError and leaves `path` as it was."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())                                     # on the disk before the name points to it
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):                                  # a full disk does not say which file it refused
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if os.name == "posix":                                              # the rename itself is a write to the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: str | Path) -> dict:
    """A JSON object from a UTF-8 file; ValueError in one line if it is anything else."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it is damaged or belongs to something else") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__} where an object is expected; it belongs to something else")
    return content
