"""Files: a text is read as UTF-8 or refused in one line; a file is written whole or not at all.

A file is written under another name, forced to the disk, and then renamed. A rename is one step for
the file system, so a program that is killed at any moment leaves the old file or the new one.
"""
import json
import os
from pathlib import Path


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file without its byte order mark; \\r\\n and \\r become \\n.

    FileNotFoundError for a missing file. ValueError for a folder, a pipe or a device, for bytes
    that are not UTF-8, and for a file without text.
    """
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start} of "
                         f"{len(raw)} ({error.reason}); save it as UTF-8 in your editor") from None
    del raw                                             # a large text is not held twice
    if not text or text.isspace():
        raise ValueError(f"{path} is empty; there is nothing to read")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file; ValueError for a folder, a pipe or a device."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check its spelling, and the folder you "
                                f"are in: {Path.cwd()}")
    if not path.is_file():                              # reading a pipe could wait for ever
        raise ValueError(f"{path} is a pipe or a device, not a file; save its content in a file, "
                         "and name that")
    return path.read_bytes()


def write_atomic(path: str | Path, data: bytes) -> None:
    """Puts `data` at `path` whole, or raises OSError and leaves `path` as it was."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):                  # a full disk does not say for which file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if os.name == "posix":                              # the rename changes the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | Path, content: dict) -> None:
    """Writes a JSON object in UTF-8, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: str | Path) -> dict:
    """A JSON object from a UTF-8 file; ValueError in one line if it is anything else."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it is damaged, or it belongs to "
                         "something else") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__} where an object is "
                         "expected; it belongs to something else")
    return content
