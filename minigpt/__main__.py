"""python -m minigpt train | sample | evaluate: a GPT on any UTF-8 text, from the shell.

    python -m minigpt train --text FILE --out DIR        about two minutes on two cores; no FILE: this project's own prose
    python -m minigpt train --out DIR --resume           goes on where a killed or interrupted run was, to the same bytes
    python -m minigpt sample DIR --prompt "Once"
    python -m minigpt evaluate DIR --text FILE

Every failure is one line on standard error and exit status 2; Ctrl-C is 130.
"""
import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from minigpt.command_line import Parser, use_device
from minigpt.files import read_json, read_text, write_json
from minigpt.generation import stream
from minigpt.models.counting import count_parameters
from minigpt.models.gpt import GPT, GPTConfig
from minigpt.text.corpora import prose
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer, load_tokenizer
from minigpt.training.checkpoints import load_checkpoint, load_weights
from minigpt.training.loop import TrainingConfig, train
from minigpt.training.losses import bits_per_byte, next_token_loss, perplexity
from minigpt.training.windows import held_out_loss, make_random_windows

HELD_OUT = 0.1                          # the last tenth of a text is never trained on
TRAIN_FLAGS = (                         # flag, kind, default, help: the configuration's names
    ("--tokenizer", str, "char", "char or bpe: what a token is"),
    ("--vocab-size", int, 512, "tokens of the BPE tokenizer (char: the text decides)"),
    ("--architecture", str, "modern", "modern (rotary, RMS norm, ReLU², QK-norm) or gpt2 (the 2019 form)"),
    ("--n-layers", int, 4, "blocks"),
    ("--n-heads", int, 4, "attention heads a block"),
    ("--d-model", int, 128, "width of the residual stream"),
    ("--context-length", int, 128, "tokens the model can look back on"),
    ("--batch-size", int, 16, "windows an optimizer step"),
    ("--max-steps", int, 1000, "optimizer steps"),
    ("--optimizer", str, "muon", "muon or adamw"),
    ("--learning-rate", float, 2e-3, "peak step size of AdamW; Muon's matrices take 10 times it"),
    ("--evaluate-every", int, 100, "steps between evaluations (and checkpoints)"),
    ("--seed", int, 0, "fixes weights, batches and samples"),
)
DEFAULTS = {flag[2:].replace("-", "_"): default for flag, _, default, _ in TRAIN_FLAGS}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m minigpt", allow_abbrev=False, description="Train, sample and evaluate a GPT.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> Parser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False)

    p = command("train", "train a GPT on a text")
    p.add_argument("--text", help="a UTF-8 file (default: the prose that comes with this project)")
    p.add_argument("--out", required=True, help="folder for checkpoints, metrics.csv and the loss curve; made if missing")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out, exactly as if it had never stopped")
    for flag, kind, default, help in TRAIN_FLAGS:                       # SUPPRESS: a flag that was not given is not there
        p.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=f"{help} (default {default})")

    p = command("sample", "continue a prompt")
    p.add_argument("run", help="a folder that train wrote")
    p.add_argument("--prompt", default="\n", help="the text to continue (default: a new line)")
    p.add_argument("--max-new-tokens", type=int, default=500, help="tokens to write (default 500)")
    p.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token; 1 samples what the model believes (default 0.8)")
    p.add_argument("--top-k", type=int, help="sample among the k likeliest tokens only")
    p.add_argument("--top-p", type=float, help="sample among the likeliest tokens that together hold probability p")
    p.add_argument("--seed", type=int, default=0, help="fixes the sample (default 0)")

    p = command("evaluate", "loss, perplexity and bits per byte on a text")
    p.add_argument("run", help="a folder that train wrote")
    p.add_argument("--text", required=True, help="a UTF-8 file")
    for p in commands.choices.values():
        p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, … (default cpu)")
    return parser.parse_args(argv)


def train_command(args: argparse.Namespace) -> None:
    device = use_device(args.device)
    out = Path(args.out)
    given = {k: v for k, v in vars(args).items() if k in DEFAULTS}
    settings = start_run(out, args.text, given) if not (args.resume and (out / "config.json").exists()) else reopen_run(out, args.text, given)
    text = prose() if settings["text"] is None else read_text(settings["text"])
    checksum = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if settings.setdefault("sha256", checksum) != checksum:
        raise ValueError(f"{settings['text']} has changed since this run began, so it cannot be resumed exactly; "
                         "put the old text back or start anew")

    training = TrainingConfig(**{k: settings[k] for k in ("max_steps", "learning_rate", "optimizer", "evaluate_every", "seed")})
    if settings["batch_size"] < 1:
        raise ValueError(f"batch_size must be at least 1, not {settings['batch_size']}")
    if settings["tokenizer"] not in ("char", "bpe"):
        raise ValueError(f"tokenizer is char or bpe, not {settings['tokenizer']!r}")
    if settings["architecture"] not in ("modern", "gpt2"):
        raise ValueError(f"architecture is modern or gpt2, not {settings['architecture']!r}")
    if (out / "config.json").exists():
        tokenizer = load_tokenizer(out / "tokenizer.json")
    else:
        tokenizer = CharTokenizer.train(text) if settings["tokenizer"] == "char" else BPETokenizer.train(text, settings["vocab_size"])
    form = GPTConfig.modern if settings["architecture"] == "modern" else GPTConfig
    config = form(tokenizer.vocab_size, settings["context_length"], settings["n_layers"], settings["n_heads"], settings["d_model"])
    model = GPT(config, torch.Generator().manual_seed(training.seed)).to(device)
    tokens = torch.tensor(tokenizer.encode(text), device=device)
    cut = int(len(tokens) * (1 - HELD_OUT))
    training_tokens, held_out = tokens[:cut], tokens[cut:]
    bytes_of = len(text.encode("utf-8")) / len(tokens)                  # bytes a token, the text's average
    next_batch = make_random_windows(training_tokens, settings["batch_size"], config.context_length + 1)
    held_out_loss(model, held_out, 1)                                   # raises now if the text is too short

    if not (out / "config.json").exists():                              # the folder is touched only once nothing can be wrong
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out / "tokenizer.json")
        write_json(out / "config.json", {**settings, "model": asdict(config)})
    print(f"{count_parameters(model):,} parameters; {len(training_tokens):,} tokens to learn from, {len(held_out):,} held out; "
          f"{tokenizer.vocab_size} kinds of token")

    def measure(model: GPT, windows: int | None = 200) -> dict:
        nats, _ = held_out_loss(model, held_out, windows)
        return {"val_loss": nats, "val_perplexity": perplexity(nats), "val_bits_per_byte": bits_per_byte(nats, 1, bytes_of)}

    try:
        for row in train(model, next_batch, next_token_loss, training, measure, out, resume=args.resume):
            print(f"step {row['step']:5d}  train {row['train_loss']:.3f}  held-out {row['val_loss']:.3f} nats, "
                  f"perplexity {row['val_perplexity']:.2f}, {row['val_bits_per_byte']:.3f} bits/byte", flush=True)
            if row["step"]:
                sample = "".join(continue_text(model, tokenizer, held_out[:8][None], 70, seed=training.seed))
                print("            ", repr(tokenizer.decode(held_out[:8].tolist()) + sample), flush=True)
    except KeyboardInterrupt:
        draw_loss_curve(out)
        print(f"\nstopped and saved; go on with: python -m minigpt train --out {args.out} --resume", file=sys.stderr)
        raise
    draw_loss_curve(out)
    load_weights(model, load_checkpoint(out / "best.pt", str(device))["model"], out / "best.pt")
    final = measure(model, None)
    print(f"best weights on all held-out text: {final['val_loss']:.4f} nats a token, perplexity {final['val_perplexity']:.2f}, "
          f"{final['val_bits_per_byte']:.3f} bits a byte. In {args.out}: best.pt, last.pt, metrics.csv, loss.png")


def start_run(out: Path, text: str | None, given: dict) -> dict:
    """Settings of a new run. The folder must be new, empty, or left by a run that died before its first checkpoint."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out needs a folder")
    here = [f.name for f in out.iterdir() if not f.name.endswith(".tmp")] if out.exists() else []
    if "config.json" in here and "last.pt" in here:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another folder")
    if here and here != ["tokenizer.json"]:
        raise ValueError(f"{out} holds other files ({sorted(here)[0]}, …); choose a new or empty folder")
    return {"text": None if text is None else str(Path(text).resolve()), **DEFAULTS, **given}


def reopen_run(out: Path, text: str | None, given: dict) -> dict:
    """Settings of the run in `out`; a flag may repeat what was chosen then, and not contradict it."""
    settings = read_json(out / "config.json")
    if not {"text", "sha256", "model", *DEFAULTS} <= settings.keys():
        raise ValueError(f"{out / 'config.json'} was not written by train; choose another folder")
    if text is not None:
        given = {"text": str(Path(text).resolve()), **given}
    for name, value in given.items():
        if settings[name] != value:
            raise ValueError(f"the run in {out} was started with {name} {settings[name]!r}, not {value!r}; "
                             "leave the flag out, or start a new run")
    settings.pop("model")
    return settings


def draw_loss_curve(out: Path) -> None:
    import csv

    from minigpt import plotting  # matplotlib takes half a second: only when drawing
    with open(out / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [{k: int(v) if k == "step" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    plotting.save(plotting.loss_curve(rows), out / "loss.png")


def open_run(folder: str, device: torch.device):
    """The model with its best weights, in eval mode, and its tokenizer."""
    out = Path(folder)
    if not (out / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json; train one with: python -m minigpt train --out {folder}")
    config = read_json(out / "config.json")
    try:
        model = GPT(GPTConfig(**config["model"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / 'config.json'} was not written by train ({error})") from None
    load_weights(model, load_checkpoint(out / "best.pt")["model"], out / "best.pt")
    return model.to(device).eval(), load_tokenizer(out / "tokenizer.json")


def continue_text(model: GPT, tokenizer, prompt: torch.Tensor, max_new_tokens: int, seed: int, **options):
    """Yields text as it is written. A character whose bytes are not all there yet waits for them."""
    generator = torch.Generator(device=prompt.device).manual_seed(seed)
    waiting: list[int] = []
    for token, _ in stream(model, prompt, max_new_tokens, generator=generator, **options):
        waiting.append(token.item())
        piece = tokenizer.decode(waiting)
        if not piece.endswith("\ufffd") or len(waiting) > 4:
            yield piece
            waiting = []
    yield tokenizer.decode(waiting)


def sample_command(args: argparse.Namespace) -> None:
    device = use_device(args.device)
    model, tokenizer = open_run(args.run, device)
    if not args.prompt:
        raise ValueError("the prompt is empty; give at least one character to continue")
    prompt = torch.tensor([tokenizer.encode(args.prompt)], device=device)
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    pieces = continue_text(model, tokenizer, prompt, args.max_new_tokens, args.seed, **options)
    first = next(pieces, "")                                            # a bad option speaks before the prompt is echoed
    print(args.prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def evaluate_command(args: argparse.Namespace) -> None:
    device = use_device(args.device)
    model, tokenizer = open_run(args.run, device)
    text = read_text(args.text)
    tokens = torch.tensor(tokenizer.encode(text), device=device)
    nats, judged = held_out_loss(model, tokens)
    print(f"loss {nats:.4f} nats a token, perplexity {perplexity(nats):.3f}, {bits_per_byte(nats, len(tokens), len(text.encode('utf-8'))):.4f} bits a byte "
          f"({judged:,} tokens judged, in windows of {model.context_length})")


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        {"train": train_command, "sample": sample_command, "evaluate": evaluate_command}[args.command](args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, FloatingPointError, OSError) as error:
        message = f"{error.strerror}: {error.filename or 'while writing'}" if isinstance(error, OSError) and error.strerror else str(error)
        print(f"minigpt {args.command}: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
