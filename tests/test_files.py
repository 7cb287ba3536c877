"""A failed write leaves the old file; what is not UTF-8 or JSON gives one line."""
import os
import re
import subprocess
import sys

import pytest

from minigpt.files import read_json, read_text, write_atomic, write_json


@pytest.mark.parametrize("raw, text", [
    (b"plain\n", "plain\n"),
    (b"\xef\xbb\xbfwith a mark", "with a mark"),
    ("ñandú Ωmega 🦊".encode(), "ñandú Ωmega 🦊"),
    (b"one\r\ntwo\rthree\n\r\n", "one\ntwo\nthree\n\n"),
    (b" x ", " x "),
])
def test_read_text(tmp_path, raw, text):
    path = tmp_path / "a text.txt"
    path.write_bytes(raw)
    assert read_text(path) == read_text(str(path)) == text


@pytest.mark.parametrize("raw, complaint", [
    (b"caf\xe9 au lait", "is not UTF-8: byte 0xe9 at 3 of 12"),
    (b"\xef\xbb\xbfab\xff", "is not UTF-8: byte 0xff at 5 of 6"),
    ("Olé".encode("utf-16"), "is not UTF-8: byte 0xff at 0 of 8"),
    (b"", "is empty"),
    (b"\xef\xbb\xbf", "is empty"),
    (b" \r\n\n", "is empty"),
])
def test_read_text_refuses(tmp_path, raw, complaint):
    path = tmp_path / "bad.txt"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(complaint)) as refusal:
        read_text(path)
    assert "bad.txt" in str(refusal.value) and "\n" not in str(refusal.value)


def test_read_text_needs_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*missing.txt"):
        read_text(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match="is a pipe or a device"):
        read_text(os.devnull)


@pytest.mark.skipif(os.name != "posix", reason="named pipes are of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        read_text(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can limit the size of files")
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
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8")
    assert out.stdout == "refused\n", out.stderr
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_an_exception_between_write_and_rename_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", b"old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
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
