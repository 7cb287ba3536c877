"""The command line of the library: `python -m minigpt --help` (see `commands.py`)."""
from minigpt.command_line import importing, leave

with importing():
    from minigpt.commands import main

if __name__ == "__main__":
    leave(main())
