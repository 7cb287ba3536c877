"""What the two command lines share: `python -m minigpt` and `python -m lessons`.

A parser whose errors are one line, checks of flags, and one place where a command ends: an error is
one line and status 2, Ctrl-C is status 130, and a closed pipe (`| head -1`) is 141; a shell reports
the same two for a program that such a signal ended. A character that the terminal cannot show
becomes "?". PyTorch is imported only where it is needed, so `--help` and Ctrl-C act at once.
"""
import argparse
import difflib
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager

USER_ERROR, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line and suggest the nearest flag or command."""

    def words(self) -> list[str]:
        """All flags and commands of this parser and of its sub-parsers."""
        own = []
        for action in self._actions:
            own += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for name, sub in action.choices.items():
                    own += [name, *sub.words()]
        return own

    def error(self, message: str):
        match = (re.match(r"unrecognized arguments: (\S+)", message)
                 or re.match(r"argument \w+: invalid choice: '(\S+)'", message))
        near = difflib.get_close_matches(match[1].split("=")[0], self.words(), 1) if match else []
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"{self.prog}: {' '.join(message.split())}{hint}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def whole_number(smallest: int, largest: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `smallest` to `largest`.

    >>> whole_number(1)("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: needs a whole number of at least 1, not 0
    """
    span = f"of at least {smallest}" if largest == math.inf else f"from {smallest} to {largest}"

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text) else None
        if value is None or not smallest <= value <= largest:
            shown = text if len(text) < 40 else text[:40] + "…"
            raise argparse.ArgumentTypeError(f"needs a whole number {span}, not {shown}")
        return value

    return parse


seed = whole_number(0, 2**32 - 1)       # numpy takes no larger one


def use_device(name: str):
    """The torch.device of that name; ValueError if this machine does not have it."""
    import torch
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except Exception:                                   # each back end raises errors of its own
        present = ["cpu"] + ["cuda"] * torch.cuda.is_available()
        present += ["mps"] * torch.backends.mps.is_available()
        raise ValueError(f"device {name!r} is not on this machine; there is "
                         f"{', '.join(present)}") from None


def prepare_streams() -> None:
    """Lets stdout and stderr take any character, also where they are closed or a narrow encoding.

    A closed stream becomes the null device. Otherwise the next file to be opened, perhaps a
    checkpoint, would get the stream's number, and messages would be written into it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))     # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def run_command(name: str, work: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status. An error is one line that begins with `name`."""
    prepare_streams()
    try:
        try:
            return work() or 0
        finally:
            sys.stdout.flush()                          # a closed pipe is noticed here
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        close_broken_streams()
        return CLOSED_PIPE
    except (ValueError, FloatingPointError, OSError, MemoryError, RuntimeError) as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        return USER_ERROR


def one_line(error: Exception) -> str | None:
    """The line that reports an error; None for a RuntimeError that is a mistake in the program."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'while writing'}"
    message = " ".join(str(error).split())
    if not isinstance(error, (MemoryError, RuntimeError)):
        return message
    if isinstance(error, RuntimeError) and not re.search("memory|too large|overflow", message):
        return None
    return ("this machine's memory is not enough; take a smaller model, batch or context"
            + (f" ({message[:150]})" if message else ""))


def close_broken_streams() -> None:
    """Points stdout and stderr to the null device, if writing to them fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def end_script_in_order() -> None:
    """Lets a script end as a command does: Ctrl-C and a closed pipe give a status, no traceback."""
    def hook(kind, error, traceback):
        if not issubclass(kind, (KeyboardInterrupt, BrokenPipeError)):
            sys.__excepthook__(kind, error, traceback)
            return
        close_broken_streams()
        os._exit(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else CLOSED_PIPE)

    sys.excepthook = hook


@contextmanager
def importing():
    """For imports that take seconds: inside them, Ctrl-C ends the program at once.

    A KeyboardInterrupt inside an import could be lost, or could leave a module half made.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):                # a shell's background job ignores Ctrl-C
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(status: int) -> None:
    """Ends the program and ignores Ctrl-C, since no work is left that it could stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(status)
