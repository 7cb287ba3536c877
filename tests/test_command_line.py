"""What the two command lines share: one-line errors, statuses, streams that take any character."""
import argparse
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from minigpt.command_line import Parser, importing, run_command, use_device, whole_number


def failing(error):
    def work():
        raise error
    return work


@pytest.mark.parametrize("error, line", [
    (ValueError("a text\nof two lines"), "name: a text of two lines"),
    (FileNotFoundError("there is no file x"), "name: there is no file x"),
    (OSError(28, "No space left on device", "/x/y"), "name: No space left on device: /x/y"),
    (PermissionError(13, "Permission denied"), "name: Permission denied: while writing"),
    (FloatingPointError("the loss is nan"), "name: the loss is nan"),
    (MemoryError(), "name: this machine's memory is not enough; take a smaller model, batch or "
                    "context"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: 99 bytes"), None),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), None),
])
def test_an_error_is_one_line_and_status_2(capsys, error, line):
    assert run_command("name", failing(error)) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert found == line + "\n" if line else "memory is not enough" in found


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("size mismatch")])
def test_a_mistake_in_the_program_is_not_hidden(error):
    with pytest.raises(type(error)):
        run_command("name", failing(error))


@pytest.mark.parametrize("result, status", [(None, 0), (0, 0), (1, 1)])
def test_the_status_is_what_the_work_returns(result, status):
    assert run_command("name", lambda: result) == status


def test_ctrl_c_is_130(capsys):
    assert run_command("name", failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_streams_take_any_character(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert run_command("name", lambda: print("a ✓ \ud800")) == 0
    sys.stdout.flush()
    found = raw.getvalue().decode(encoding)
    assert found == ("a ✓ ?\n" if encoding == "utf-8" else "a ? ?\n").replace("\n", os.linesep)


def test_a_missing_stream_becomes_the_null_device(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command("name", lambda: print("x")) == 0
    assert run_command("name", failing(ValueError("x"))) == 2
    assert sys.stdout.name == sys.stderr.name == os.devnull
    sys.stdout.close(), sys.stderr.close()


@pytest.mark.parametrize("text", ["1", " 7 ", "+3", "10"])
def test_whole_numbers(text):
    assert whole_number(1, 10)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.0", "1e1", "", "x", "٣", "1_0", "9" * 9999])
def test_other_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number from 1 to 10, not ") as e:
        whole_number(1, 10)(text)
    assert len(str(e.value)) < 120


@pytest.mark.parametrize("argv, words", [
    (["--colr=1"], ["--colr", "did you mean --color?"]), (["--color=red"], ["--color", "red"]),
    (["rnu"], ["rnu", "did you mean run?"]), (["run", "--fsat"], ["did you mean --fast?"]),
])
def test_parser_errors_are_one_line_with_the_nearest_word(capsys, argv, words):
    parser = Parser(prog="p", allow_abbrev=False)
    parser.add_argument("--color", type=int)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("run", allow_abbrev=False).add_argument("--fast")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_devices():
    assert use_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:99", "", "meta!"):
        with pytest.raises(ValueError, match="is not on this machine; there is cpu"):
            use_device(name)


def test_importing_gives_ctrl_c_back():
    before = signal.getsignal(signal.SIGINT)
    with importing():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("program, status", [
    ("with importing():\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130),
    ("end_script_in_order()\nos.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130),
    ("end_script_in_order()\nraise BrokenPipeError", 141),
    ("signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
     "with importing():\n    os.kill(os.getpid(), signal.SIGINT)", 0),
    ("import atexit\natexit.register(os.kill, os.getpid(), signal.SIGINT)\nleave(3)", 3),
])
def test_ctrl_c_ends_a_program_without_a_traceback(program, status):
    before = "import os, signal, time\nfrom minigpt.command_line import *\n"
    before += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = subprocess.run([sys.executable, "-c", before + program], capture_output=True,
                          encoding="utf-8")
    assert done.returncode == status and done.stderr == "", done.stderr


def test_the_command_line_is_light():
    """No torch before it is needed: help and Ctrl-C act at once."""
    program = "import sys, minigpt.command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
