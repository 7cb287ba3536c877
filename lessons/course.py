"""What every lesson holds in its hand: `check` an equation, `claim` a finding, save a `figure`.

    lesson = Lesson("06_gpt")
    lesson.check("L₁ = −Σ log P", got, expected, atol=1e-6, source="A: eq. 1")      ✓ or ✗ with the measured error
    lesson.claim("attention beats none", a > b, f"{a:.2f} against {b:.2f}")          ★ or ✗ with its numbers
    lesson.figure(fig, "loss")                                                       a PNG in out/06_gpt/
    lesson.end()                                                                     the last line: the tally

A lesson is known by name and not by __file__, because a notebook has none. Options come from the command line when the
lesson is run as a script (--quick --seed --device --out) and are the defaults in a notebook.
"""
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from minigpt import plotting
from minigpt.command_line import Parser
from minigpt.files import write_json

ROOT = Path(__file__).resolve().parents[1]


class Lesson:
    """One run of one lesson: its options, its folder of figures, and its ledger of checks and claims."""

    def __init__(self, name: str, arguments: list[str] | None = None):
        script = Path(sys.argv[0]).stem == name                         # in a notebook argv belongs to the kernel
        options = parser(prog=f"lessons/{name}.py").parse_args(arguments if arguments is not None else sys.argv[1:] if script else [])
        self.name, self.quick, self.seed, self.device = name, options.quick, options.seed, options.device
        self.folder = Path(options.out) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict] = []
        self.start = time.monotonic()
        torch.manual_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self._write("running")

    def pick(self, full, quick):
        """The size of an experiment: `full`, or `quick` under --quick."""
        return quick if self.quick else full

    def check(self, name: str, got, expected, atol: float, source: str) -> None:
        """An equation: got and expected, computed two independent ways, agree to `atol` everywhere. A failure ends the lesson."""
        error = difference(got, expected)
        held = error <= atol
        self._record("check", name, held, source=source, error=error, tolerance=atol)
        print(f"  {'✓' if held else '✗'} {name:<68} error {error:.1e} ≤ {atol:.1e}" if held else f"  ✗ {name}: error {error:.3g} > {atol:.1e}", flush=True)
        if not held:
            self._write("failed")
            print(f"\n{self.name}: the equation “{name}” ({source}) does not hold: error {error:.3g}, tolerance {atol:.0e}.", file=sys.stderr)
            raise SystemExit(1)

    def claim(self, name: str, holds, detail: str, full_run: bool = False) -> None:
        """A finding with its numbers. `full_run`: it needs the full training, and --quick skips it, saying so."""
        if full_run and self.quick:
            print(f"  – {name}: needs the full run, skipped by --quick (here: {detail})", flush=True)
            self._record("claim", name, None, detail=detail)
            return
        self._record("claim", name, bool(holds), detail=detail)
        print(f"  {'★' if holds else '✗'} {name}\n      {detail}", flush=True)

    def figure(self, fig, name: str) -> None:
        """Saves a matplotlib Figure as out/<lesson>/<name>.png, and shows it if this is a notebook."""
        path = plotting.save(fig, self.folder / f"{name}.png")
        print(f"  ▣ {path}", flush=True)
        if "ipykernel" in sys.modules:
            from IPython.display import Image, display  # there whenever ipykernel is
            display(Image(filename=str(path)))

    def end(self) -> None:
        """The tally. A script whose claims did not all hold ends with status 1."""
        checks = [r for r in self.rows if r["kind"] == "check"]
        claims = [r for r in self.rows if r["kind"] == "claim" and r["held"] is not None]
        failed = [r["name"] for r in self.rows if r["held"] is False]
        skipped = sum(r["held"] is None for r in self.rows)
        self._write("failed" if failed else "held")
        print(f"\n{self.name}: {len(checks)} ✓, {len(claims) - len(failed)} ★" + (f", {skipped} left to the full run" if skipped else "")
              + f", in {time.monotonic() - self.start:.0f} s")
        if failed:
            print(f"{self.name}: did not hold: {'; '.join(failed)}", file=sys.stderr)
            raise SystemExit(1)

    def _record(self, kind: str, name: str, held: bool | None, **more) -> None:
        self.rows.append({"kind": kind, "name": name, "held": held, **{k: finite(v) for k, v in more.items()}})
        self._write("running")

    def _write(self, state: str) -> None:
        write_json(self.folder / "ledger.json", {
            "lesson": self.name, "state": state, "quick": self.quick, "seed": self.seed,
            "seconds": round(time.monotonic() - self.start, 1), "rows": self.rows,
        })


def finite(value):
    """JSON has no NaN or infinity: they travel as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def difference(got, expected) -> float:
    """The largest |got − expected| over all entries; infinite if the shapes differ or something is not a number.

    Text, lists of text and the like count as 0 (equal) or infinity.

    >>> difference([1.0, 2.0], [1.0, 2.5]), difference("a", "b"), difference(1.0, [1.0]), difference(float("nan"), 1.0)
    (0.5, inf, inf, inf)
    """
    def array(x):
        return np.asarray(x.detach().cpu().double() if isinstance(x, torch.Tensor) else x)

    try:
        got, expected = array(got), array(expected)
    except ValueError:                                                  # a ragged list is no array
        return 0.0 if got == expected else math.inf
    if got.shape != expected.shape:
        return math.inf
    if got.dtype.kind not in "biuf" or expected.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(got, expected) else math.inf
    if got.size == 0:
        return math.inf                                                 # nothing compared is nothing shown
    with np.errstate(invalid="ignore"):
        gap = np.where(got == expected, 0.0, np.abs(got.astype(float) - expected.astype(float)))
    return float(gap.max()) if not np.isnan(gap).any() else math.inf


def parser(**options) -> Parser:
    """The options that a lesson and the runner share."""
    p = Parser(allow_abbrev=False, **options)
    p.add_argument("--quick", action="store_true", help="shrink the training to seconds; claims that need the full run are skipped and said so")
    p.add_argument("--seed", type=int, default=0, help="fixes data, weights and samples (default 0)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps, … (default cpu)")
    p.add_argument("--out", default=str(ROOT / "out"), help="folder for figures and ledgers (default out/)")
    return p
