"""The folder of a training run: its files, its settings, and the lock against a second training.

    config.json     settings, checksums and the model's shape  write_run
    run.lock        exists while a training runs               locked
    tokenizer.json  the tokenizer                              Tokenizer.save, text/tokenizers.py
    tokens.bin      the tokens of the text                     write_tokens, text/token_file.py
    last.pt         the state for an exact resume              save_run, training/checkpoints.py
    best.pt         the weights with the lowest held-out loss  save_best, the same file
    metrics.csv     one row per evaluation                     write_metrics, the same file
    loss.png        the rows as a figure                       draw_loss_curve, commands.py

One program at a time writes in a folder (`locked`). Before a run is used, its files are read and
compared with each other (`read_run`): a run with a file of another run is refused.
"""
import argparse
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from minigpt.command_line import seed, whole_number
from minigpt.files import read_bytes, read_json, write_json
from minigpt.models.gpt import GPTConfig
from minigpt.text.tokenizers import Tokenizer, load_tokenizer


def one_of(*words: str) -> Callable[[str], str]:
    """A type for argparse: one of these words."""
    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"is {' or '.join(words)}, not {text!r}")
        return text

    return parse


def positive(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"needs a number above 0, not {text}")


size = whole_number(1, 10**9)
SETTINGS = {                            # name: (type, default, help); a flag has the same name
    "tokenizer": (one_of("char", "bpe"), "char", "char or bpe: what a token is"),
    "vocab_size": (size, 512, "tokens of the BPE tokenizer; char takes those of the text"),
    "architecture": (one_of("modern", "gpt2"), "modern",
                     "modern (rotary, RMS norm, ReLU², QK-norm) or gpt2 (the form of 2019)"),
    "n_layers": (size, 4, "transformer blocks"),
    "n_heads": (size, 4, "attention heads per block"),
    "d_model": (size, 128, "width of the residual stream"),
    "context_length": (size, 128, "tokens that the model can look back on"),
    "batch_size": (size, 16, "windows per optimizer step"),
    "max_steps": (size, 1000, "optimizer steps"),
    "optimizer": (one_of("muon", "adamw"), "muon", "muon or adamw"),
    "learning_rate": (positive, 2e-3,
                      "highest learning rate of AdamW; Muon's matrices take 10 times as much"),
    "evaluate_every": (size, 100, "steps between evaluations, each with a checkpoint"),
    "seed": (seed, 0, "fixes weights, batches and samples"),
}
DEFAULTS = {name: default for name, (_, default, _) in SETTINGS.items()}


def check_settings(settings: dict, source: Path) -> None:
    """ValueError unless these are all settings of a run, and of the right types."""
    expected = {*DEFAULTS, "text", "text_sha256", "tokenizer_sha256", "model"}
    if settings.keys() != expected:
        names = ", ".join(sorted(expected ^ settings.keys())[:3])
        raise ValueError(f"{source} was not written by this version of train: it has too few or "
                         f"too many entries ({names}); choose another folder")
    for name, (parse, default, _) in SETTINGS.items():
        value = settings[name]
        right = type(value) is type(default) or type(default) is float and type(value) is int
        with suppress(argparse.ArgumentTypeError):
            if right and parse(str(value)) == value:
                continue
        raise ValueError(f"{source} is damaged: {name} is {value!r}")
    if not isinstance(settings["text"], str | None):
        raise ValueError(f"{source} is damaged: text is {settings['text']!r}")


def model_config(settings: dict, vocab_size: int) -> GPTConfig:
    """The shape of the model that these settings name."""
    form = GPTConfig.modern if settings["architecture"] == "modern" else GPTConfig
    return form(vocab_size, settings["context_length"], settings["n_layers"],
                settings["n_heads"], settings["d_model"])


def start_settings(folder: Path, given: dict) -> dict:
    """The settings of a new run: those given, and defaults.

    ValueError if the folder holds a run, or other files than a start leaves that was killed before
    config.json was written.
    """
    here = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    if "config.json" in here:
        raise ValueError(f"{folder} already holds a run; add --resume to continue it, or choose "
                         "another folder")
    if others := sorted(here - {"tokenizer.json", "tokens.bin", "run.lock"}):
        raise ValueError(f"{folder} holds other files ({others[0]}, …); choose a new or empty "
                         "folder")
    return DEFAULTS | given


def read_run(folder: Path) -> tuple[dict, Tokenizer, GPTConfig]:
    """The settings, tokenizer and model shape of a run, after a check that they belong together."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it. Check the "
                                f"name, or train a run: python -m minigpt train --out {folder}")
    settings = read_json(path)
    check_settings(settings, path)
    if tokenizer_checksum(folder) != settings["tokenizer_sha256"]:
        raise ValueError(f"{folder / 'tokenizer.json'} is damaged or of another run; put the file "
                         "of this run back")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    config = model_config(settings, tokenizer.vocab_size)
    if settings["model"] != asdict(config):
        raise ValueError(f"{path} is damaged: its model is not the one that its settings name")
    return settings, tokenizer, config


def resume_settings(settings: dict, given: dict, folder: Path) -> dict:
    """The settings of a resumed run: a flag may repeat a setting, or raise `max_steps`."""
    for name, value in given.items():
        grows = name == "max_steps" and value > settings[name]
        if settings[name] != value and not grows:
            hint = "max_steps can only grow" if name == "max_steps" else "leave the flag out"
            raise ValueError(f"the run in {folder} has {name} {settings[name]!r}, not {value!r}; "
                             f"{hint}, or start a new run in another folder")
    return settings | given


def write_run(folder: Path, settings: dict, config: GPTConfig) -> None:
    """Writes config.json. From now on the folder holds a run."""
    write_json(folder / "config.json", settings | {"model": asdict(config)})


def tokenizer_checksum(folder: Path) -> str:
    """The SHA-256 of tokenizer.json."""
    return hashlib.sha256(read_bytes(folder / "tokenizer.json")).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other trainings out of it; ValueError if one is in it already.

    The operating system's lock on run.lock ends with the process that holds it, so the file of a
    killed training locks nothing. A folder that was made here and is empty at the end is removed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --out needs a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    try:
        descriptor = take_lock(path)
        try:
            yield
        finally:
            if os.name != "nt":
                path.unlink(missing_ok=True)
            os.close(descriptor)
            with suppress(OSError):
                if os.name == "nt":                     # which removes no file that is open
                    path.unlink()
    finally:
        with suppress(OSError):                         # one that is not empty stays
            for empty in made:
                empty.rmdir()


def take_lock(path: Path) -> int:
    """Locks a file and writes into it which process holds it; returns the open file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(descriptor)
        except BaseException as error:
            holder = os.read(descriptor, 200).decode("utf-8", errors="replace")
            os.close(descriptor)
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise
            raise ValueError(f"{path.parent} is in use by another training ({holder or 'starting'})"
                             "; wait for its end, or choose another folder") from None
        # The holder before may have removed the file after it was opened here: then try again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(descriptor, f"process {os.getpid()}, since {now}".encode())
    return descriptor


def lock_file(descriptor: int) -> None:
    """Takes an exclusive lock without waiting: BlockingIOError or PermissionError if it is held."""
    if os.name == "nt":
        import msvcrt
        os.lseek(descriptor, 2**30, os.SEEK_SET)        # far from the text, which others then read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def available_memory() -> int | None:
    """The memory that this process may use, in bytes; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):                             # a container's own limit
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if re.fullmatch(r"\d+", limit):
            memory = min(memory, int(limit))
    return memory
