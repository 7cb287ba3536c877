"""python -m minigpt train | sample | evaluate: a GPT on any UTF-8 text, from the shell.

    python -m minigpt train --text FILE --out DIR    minutes on two cores; without --text: own prose
    python -m minigpt train --out DIR --resume       continues a run, as if it had not stopped
    python -m minigpt sample DIR --prompt "Once"
    python -m minigpt evaluate DIR --text FILE

Each failure is one line on standard error and exit status 2; Ctrl-C is status 130.
"""
import argparse
import csv
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from minigpt import run_folder
from minigpt.command_line import (
    Parser,
    importing,
    run_command,
    seed,
    use_device,
    whole_number,
)
from minigpt.files import read_text
from minigpt.generation import check_sampling, stream
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.corpora import prose
from minigpt.text.token_file import checksum_of, encode, open_tokens, write_tokens
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from minigpt.training.checkpoints import load_checkpoint, load_weights
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits_per_byte, next_token_loss, perplexity
from minigpt.training.windows import held_out_loss, make_random_windows

HELD_OUT = 0.1                          # the last tenth of a text is never trained on
WINDOWS_DURING_TRAINING = 200           # of held-out text, at each evaluation


def parse(argv: list[str]) -> argparse.Namespace:
    """The command and its flags; status 2 and one line for a mistake."""
    parser = Parser(prog="python -m minigpt", allow_abbrev=False,
                    description="Train, sample and evaluate a GPT.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> Parser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False)

    p = command("train", "train a GPT on a text")
    p.add_argument("--text", help="a UTF-8 file (default: the prose that comes with this project; "
                                  "with --resume: the text of the run)")
    p.add_argument("--out", required=True, help="folder of the run; it is made if it is missing")
    p.add_argument("--resume", action="store_true", help="continue the run in --out as if it had "
                   "never stopped; with a larger --max-steps a finished run is trained further")
    p.add_argument("--evaluate-windows", default=4000, metavar="N",
                   type=lambda text: None if text == "all" else whole_number(1)(text),
                   help="windows of held-out text that the last evaluation reads, evenly spaced, "
                        "or all (default 4000)")
    for name, (kind, default, help) in run_folder.SETTINGS.items():
        p.add_argument("--" + name.replace("_", "-"), type=kind, default=argparse.SUPPRESS,
                       help=f"{help} (default {default})")      # SUPPRESS: absent unless given

    p = command("sample", "continue a prompt")
    p.add_argument("run", help="a folder that train wrote")
    p.add_argument("--prompt", default="\n", help="the text to continue (default: a new line)")
    p.add_argument("--max-new-tokens", type=whole_number(0), default=500,
                   help="tokens to generate (default 500)")
    p.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token; "
                   "1 samples the model's own distribution (default 0.8)")
    p.add_argument("--top-k", type=whole_number(1), help="sample among the k likeliest tokens only")
    p.add_argument("--top-p", type=float,
                   help="sample among the likeliest tokens that together have probability p")
    p.add_argument("--seed", type=seed, default=0, help="fixes the sample (default 0)")

    p = command("evaluate", "loss, perplexity and bits per byte of a model on a text")
    p.add_argument("run", help="a folder that train wrote")
    p.add_argument("--text", required=True, help="a UTF-8 file")
    for p in commands.choices.values():
        p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, … (default cpu)")
    return parser.parse_args(argv)


def train_command(args: argparse.Namespace) -> None:
    """Trains a new run, or continues one."""
    device, out = use_device(args.device), Path(args.out)
    if args.resume:
        run_folder.read_run(out)                        # refused before the folder is touched
    with run_folder.locked(out):
        train_in(out, args, *open_or_start(out, args, device))


def open_or_start(out: Path, args: argparse.Namespace, device: torch.device,
                  ) -> tuple[dict, Tokenizer, GPTConfig, Tensor, float]:
    """The settings, tokenizer, model shape, tokens (N,) and bytes per token of the run in `out`.

    config.json, which makes the folder a run, is written after everything that can be refused.
    """
    given = {name: value for name, value in vars(args).items() if name in run_folder.SETTINGS}
    if args.resume:
        settings, tokenizer, config = run_folder.read_run(out)
        settings = run_folder.resume_settings(settings, given, out)
    else:
        settings = run_folder.start_settings(out, given) | {"text": None}
    source = settings["text"] if args.text is None else str(Path(args.text).resolve())
    if args.text is None and source is not None and not Path(source).exists():
        raise FileNotFoundError(f"the text of this run is no longer at {source}; if it has moved, "
                                "name its place with --text")
    text = prose() if source is None else read_text(source)
    checksum, n_bytes = checksum_of(text)
    if args.resume and settings["text_sha256"] != checksum:
        raise ValueError(f"{source or 'the prose of this project'} is not the text that this run "
                         "began with, so it cannot be resumed exactly; name the old text with "
                         "--text, or start a new run")
    settings |= {"text": source, "text_sha256": checksum}
    try:
        if not args.resume:
            tokenizer = (CharTokenizer.train(text) if settings["tokenizer"] == "char"
                         else BPETokenizer.train(text, settings["vocab_size"]))
            tokenizer.save(out / "tokenizer.json")
            settings["tokenizer_sha256"] = run_folder.tokenizer_checksum(out)
            config = run_folder.model_config(settings, tokenizer.vocab_size)
        check_training_memory(config, settings["batch_size"])
        tokens = tokens_of(out, settings, tokenizer, text)
        make_random_windows(split(tokens)[0], 1, config.context_length + 1)  # refuses a short text
        run_folder.write_run(out, settings, config)
    except BaseException:
        if not args.resume:                             # no half-made file stays
            for name in ("tokenizer.json", "tokens.bin"):
                (out / name).unlink(missing_ok=True)
        raise
    return settings, tokenizer, config, tokens.to(device), n_bytes / len(tokens)


def tokens_of(out: Path, settings: dict, tokenizer: Tokenizer, text: str) -> Tensor:
    """The tokens of the text (N,), mapped from tokens.bin, which is written if it is not there."""
    path = out / "tokens.bin"
    origin = {name: settings[name] for name in ("text_sha256", "tokenizer_sha256")}
    tokens = open_tokens(path, tokenizer, origin)
    if tokens is None:
        write_tokens(path, tokenizer, text, origin)
        tokens = open_tokens(path, tokenizer, origin)
    return tokens


def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens to train on, and those held out; ValueError if there are too few to hold out."""
    cut = int(len(tokens) * (1 - HELD_OUT))
    if len(tokens) - cut < 2:
        raise ValueError(f"the text has {len(tokens)} tokens, and its last tenth is held out; "
                         "use a text of at least 20")
    return tokens[:cut], tokens[cut:]


def check_training_memory(config: GPTConfig, batch_size: int) -> None:
    """ValueError if a training step surely needs more memory than there is.

    A weight needs 16 bytes: itself, its gradient and two moments of the optimizer. A token of a
    batch needs at least 12 vectors of d_model per layer, and the logits with their gradient.
    """
    per_token = 12 * config.n_layers * config.d_model + 2 * config.vocab_size
    needed = 16 * config.n_weights + 4 * batch_size * config.context_length * per_token
    memory = run_folder.available_memory()
    if memory is not None and needed > memory:
        raise ValueError(f"training {config.n_weights:,} weights with these sizes needs at least "
                         f"{needed / 1e9:,.1f} GB of memory, and this machine has "
                         f"{memory / 1e9:,.1f} GB; take a smaller --d-model, --n-layers, "
                         "--batch-size or --context-length")


def train_in(out: Path, args: argparse.Namespace, settings: dict, tokenizer: Tokenizer,
             config: GPTConfig, tokens: Tensor, bytes_per_token: float) -> None:
    """Trains; prints each row of metrics and, at the end, the result of the best weights."""
    names = ("max_steps", "learning_rate", "optimizer", "evaluate_every", "seed")
    training, best = TrainingConfig(**{name: settings[name] for name in names}), out / "best.pt"
    model = GPT(config, torch.Generator().manual_seed(training.seed)).to(tokens.device)
    if (out / "last.pt").exists():
        load_weights(model, load_checkpoint(best)["model"], best)       # refused before training
    training_tokens, held_out = split(tokens)
    next_batch = make_random_windows(training_tokens, settings["batch_size"],
                                     config.context_length + 1)
    print(f"{count_parameters(model):,} parameters; {len(training_tokens):,} tokens to train on, "
          f"{len(held_out):,} held out; a vocabulary of {tokenizer.vocab_size}", flush=True)

    def evaluate(model: GPT, windows: int | None = WINDOWS_DURING_TRAINING, **options) -> dict:
        nats, _ = held_out_loss(model, held_out, windows, **options)
        return {"val_loss": nats, "val_perplexity": perplexity(nats),
                "val_bits_per_byte": bits_per_byte(nats, 1, bytes_per_token)}

    def print_row(row: dict) -> None:
        print(f"step {row['step']:5d}  train {row['train_loss']:.3f}  "
              f"held-out {row['val_loss']:.3f} nats, perplexity {row['val_perplexity']:.2f}, "
              f"{row['val_bits_per_byte']:.3f} bits/byte", flush=True)
        if row["step"]:
            start = held_out[:8].long()
            sample = "".join(continue_text(model, tokenizer, start[None], 70, training.seed))
            print("            ", repr(tokenizer.decode(start.tolist()) + sample), flush=True)

    try:
        rows = train(model, next_batch, next_token_loss, training, evaluate, out,
                     resume=args.resume, on_row=print_row)
    except KeyboardInterrupt:
        print("\nstopped; to continue from the last step that was saved: python -m minigpt train "
              f"--out {shlex.quote(args.out)} --resume", file=sys.stderr, flush=True)
        with importing():                               # a second Ctrl-C ends here at once
            draw_loss_curve(out)
        raise
    draw_loss_curve(out)
    load_weights(model, load_checkpoint(best)["model"], best)
    n_windows = (len(held_out) - 1) // config.context_length
    n_read = min(n_windows, args.evaluate_windows or n_windows)
    part = ("all held-out text" if n_read == n_windows else
            f"{n_read:,} of {n_windows:,} windows of held-out text (--evaluate-windows all: all)")
    final = evaluate(model, args.evaluate_windows, progress=True)
    print(f"best weights on {part}: {final['val_loss']:.4f} nats per token, "
          f"perplexity {final['val_perplexity']:.2f}, {final['val_bits_per_byte']:.3f} bits per "
          f"byte. In {args.out}: best.pt, last.pt, metrics.csv, loss.png")
    print(f"{rows[-1]['step']} of {training.max_steps} steps are done; to train further: "
          f"--resume --max-steps {2 * training.max_steps}")


def draw_loss_curve(out: Path) -> None:
    """Writes loss.png from metrics.csv, if there is one yet."""
    if not (out / "metrics.csv").exists():
        return
    with importing():               # matplotlib takes half a second, so only for drawing
        from minigpt import plotting
    with open(out / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    plotting.save(plotting.loss_curve(rows), out / "loss.png")


def load_run(folder: str, device: torch.device) -> tuple[GPT, Tokenizer]:
    """The model of a run with its best weights, in evaluation mode, and its tokenizer."""
    _, tokenizer, config = run_folder.read_run(Path(folder))
    best = Path(folder) / "best.pt"
    model = GPT(config)
    load_weights(model, load_checkpoint(best)["model"], best)
    return model.to(device).eval(), tokenizer


def continue_text(model: GPT, tokenizer: Tokenizer, prompt: Tensor, max_new_tokens: int, seed: int,
                  **options):
    """Yields the continuation of a prompt (1, T) in pieces of text, as they are generated."""
    generator = torch.Generator(device=prompt.device).manual_seed(seed)
    tokens = stream(model, prompt, max_new_tokens, generator=generator, **options)
    yield from tokenizer.decode_stream(token.item() for token, _ in tokens)


def sample_command(args: argparse.Namespace) -> None:
    """Prints a prompt and its continuation."""
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    check_sampling(**options)
    device = use_device(args.device)
    if not args.prompt:
        raise ValueError("--prompt is empty; give at least one character to continue")
    model, tokenizer = load_run(args.run, device)
    prompt = torch.tensor([tokenizer.encode(args.prompt)], device=device)
    pieces = continue_text(model, tokenizer, prompt, args.max_new_tokens, args.seed, **options)
    first = next(pieces, "")            # a prompt that is refused is refused before it is printed
    print(args.prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def evaluate_command(args: argparse.Namespace) -> None:
    """Prints the loss, perplexity and bits per byte of a model on a text."""
    device = use_device(args.device)
    model, tokenizer = load_run(args.run, device)
    text = read_text(args.text)
    tokens, n_bytes = encode(tokenizer, text).to(device), checksum_of(text)[1]
    nats, n_predicted = held_out_loss(model, tokens, progress=True)
    bits = bits_per_byte(nats, len(tokens), n_bytes)
    print(f"loss {nats:.4f} nats per token, perplexity {perplexity(nats):.3f}, {bits:.4f} bits per "
          f"byte ({n_predicted:,} tokens predicted, in windows of {model.context_length})")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    def work() -> None:
        args = parse(sys.argv[1:] if argv is None else argv)
        commands = {"train": train_command, "sample": sample_command, "evaluate": evaluate_command}
        commands[args.command](args)

    return run_command("minigpt", work)
