"""A failed write leaves the old file; what is not UTF-8 or JSON gives one line."""
import os
import subprocess
import sys

import pytest

from minigpt.files import read_json, read_text, write_atomic, write_json


def test_read_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffcafé\r\nline\n".encode("utf-8"))
    assert read_text(path) == "café\r\nline\n"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="byte 0xe9 at position 3"):
        read_text(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        read_text(path)
    with pytest.raises(ValueError, match="folder"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_text(tmp_path / "b.txt")


@pytest.mark.skipif(os.name != "posix", reason="a file-size limit stands in for a full disk, and only POSIX has one")
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_atomic(tmp_path / "a", b"old")
    program = f"""
import resource, signal
from minigpt.files import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic({str(tmp_path / 'a')!r}, b"x" * 5000)
except OSError:
    print("refused")
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.stdout == "refused\n", out.stderr
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_an_exception_between_write_and_rename_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, "日本"]})
    assert read_json(tmp_path / "a.json") == {"é": [1, "日本"]}
    for content, words in ((b"{", "not JSON"), (b"\xff\xfe", "not UTF-8"), (b"", "empty")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"[1]")
    with pytest.raises(ValueError, match="list where an object"):
        read_json(tmp_path / "a.json")
