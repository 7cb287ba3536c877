"""The command line that `python -m minigpt` and `python -m lessons` share: a parser with one-line errors, and the device check."""
import argparse
import difflib
import re
import sys

import torch


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and names the nearest flag or command."""

    def words(self) -> list[str]:
        """Every flag and command this parser and its sub-parsers know."""
        own = []
        for action in self._actions:
            own += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                own += [word for name, sub in action.choices.items() for word in [name, *sub.words()]]
        return own

    def error(self, message: str):
        match = re.match(r"unrecognized arguments: (\S+)", message) or re.match(r"argument \w+: invalid choice: '(\S+)'", message)
        near = difflib.get_close_matches(match[1].split("=")[0], self.words(), 1) if match else []
        print(f"{self.prog}: {message}" + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
        raise SystemExit(2)


def use_device(name: str) -> torch.device:
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except Exception:                                                   # one kind of error for each back end
        present = ["cpu"] + (["cuda"] if torch.cuda.is_available() else []) + (["mps"] if torch.backends.mps.is_available() else [])
        raise ValueError(f"device {name!r} is not on this machine; there is {', '.join(present)}") from None
