"""The Lesson helper of every lesson: `check` an equation, `claim` a finding, save a `figure`.

    lesson = Lesson("06_gpt")
    lesson.check("L₁ = −Σ log P", got, expected, atol=1e-6, source="A: eq. 1")
        prints ✓ or ✗ with the measured error
    lesson.claim("attention beats none", a > b, f"{a:.2f} against {b:.2f}")
        prints ★ or ✗ with the numbers
    lesson.figure(fig, "loss")
        saves out/06_gpt/loss.png
    lesson.end()
        prints the tally; the last line of a lesson

A lesson gives its name, because a notebook has no __file__. Options come from the command line when
the lesson is run as a script (--quick --seed --device --out), and are the defaults in a notebook.
There, the environment variable MINIGPT_QUICK=1 asks for --quick.
"""
import json
import math
import os
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:           # a clone that was not installed
    sys.path.insert(1, str(ROOT))

from minigpt import plotting
from minigpt.command_line import (
    Parser,
    end_script_in_order,
    prepare_streams,
    seed,
    use_device,
)
from minigpt.files import write_json

INSTALLED = not (ROOT / "pyproject.toml").exists()                      # from a wheel
OUT = (Path.cwd() if INSTALLED else ROOT) / "out"
THREADS = torch.get_num_threads()       # at most: OMP_NUM_THREADS, or the number of cores


class Lesson:
    """One run of one lesson: its options, its folder of figures, and its ledger."""

    def __init__(
        self, name: str, arguments: list[str] | None = None, *, threads: int | None = None,
    ):
        """`threads`: at most so many; with small matrices, a second thread would only wait.

        Status 2 and one line if an option cannot be used. `arguments` replaces the command line.
        """
        is_script = Path(sys.argv[0]).stem == name      # in a notebook, argv belongs to the kernel
        if is_script:
            prepare_streams()
            end_script_in_order()
        if arguments is None:
            arguments = sys.argv[1:] if is_script else []
        p = parser(prog=f"lessons/{name}.py")
        options = p.parse_args(arguments)
        self.name, self.quick, self.seed = name, options.quick, options.seed
        self.device = options.device
        self.folder = Path(options.out) / name
        self.rows: list[dict] = []
        self.start = time.monotonic()
        try:
            use_device(self.device)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("running")
        except (OSError, ValueError) as error:
            p.error(f"cannot write in {self.folder}: {error.strerror}"
                    if isinstance(error, OSError) else str(error))
        torch.set_num_threads(min(threads or THREADS, THREADS))
        torch.manual_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    def pick(self, full, quick):
        """The size of an experiment: `full`, or `quick` with --quick."""
        return quick if self.quick else full

    def check(
        self, name: str, got, expected, atol: float, source: str, items: tuple[str, ...] = (),
    ) -> None:
        """An equation: `got` and `expected` agree within `atol` everywhere.

        The two are computed in independent ways. A failure ends the lesson. `items`: the items of
        the courses that the check settles, by their ids in courses.toml.
        """
        check_items(items)
        error = difference(got, expected)
        held = error <= atol
        self._record("check", name, held, items, source=source, error=error, tolerance=atol)
        if held:
            print(f"  ✓ {name:<68} error {error:.1e} ≤ {atol:.1e}", flush=True)
            return
        print(f"  ✗ {name}: error {error:.3g} > {atol:.1e}", flush=True)
        self._write("failed")
        print(f"\n{self.name}: the equation “{name}” ({source}) does not hold: error {error:.3g}, "
              f"tolerance {atol:.0e}.", file=sys.stderr)
        raise SystemExit(1)

    def claim(
        self, name: str, holds, detail: str, full_run: bool = False, items: tuple[str, ...] = (),
    ) -> None:
        """A finding with its numbers.

        `full_run`: it needs the full training, so --quick leaves it out and says so. `items`: as in
        `check`.
        """
        check_items(items)
        if full_run and self.quick:
            print(f"  – {name}: needs the full run, skipped by --quick (here: {detail})",
                  flush=True)
            self._record("claim", name, None, items, detail=detail)
            return
        self._record("claim", name, bool(holds), items, detail=detail)
        print(f"  {'★' if holds else '✗'} {name}\n      {detail}", flush=True)

    def figure(self, fig, name: str) -> None:
        """Saves a matplotlib Figure as out/<lesson>/<name>.png, and shows it in a notebook."""
        path = plotting.save(fig, self.folder / f"{name}.png")
        print(f"  ▣ {path}", flush=True)
        if "ipykernel" in sys.modules:
            from IPython.display import Image, display  # installed wherever ipykernel is
            display(Image(filename=str(path)))

    def end(self) -> None:
        """Prints the tally. A script with a claim that did not hold ends with status 1."""
        checks = [row for row in self.rows if row["kind"] == "check"]
        held = [row for row in self.rows if row["kind"] == "claim" and row["held"]]
        failed = [row["name"] for row in self.rows if row["held"] is False]
        skipped = sum(row["held"] is None for row in self.rows)
        self._write("failed" if failed else "held")
        tally = f"{len(checks)} ✓, {len(held)} ★"
        tally += f", {skipped} left to the full run" if skipped else ""
        print(f"\n{self.name}: {tally}, in {time.monotonic() - self.start:.0f} s", flush=True)
        if failed:
            print(f"{self.name}: did not hold: {'; '.join(failed)}", file=sys.stderr)
            raise SystemExit(1)

    def _record(
        self, kind: str, name: str, held: bool | None, items: tuple[str, ...], **more,
    ) -> None:
        details = {key: finite(value) for key, value in more.items()}
        self.rows.append({"kind": kind, "name": name, "held": held, "items": list(items),
                          **details})
        self._write("running")

    def _write(self, state: str) -> None:
        write_json(self.folder / "ledger.json", {
            "lesson": self.name, "state": state, "quick": self.quick, "seed": self.seed,
            "device": self.device, "seconds": round(time.monotonic() - self.start, 1),
            "rows": self.rows,
        })


def read_items() -> dict[str, dict]:
    """What the four courses teach, by id and in their own order: title, kind, lessons."""
    return tomllib.loads(Path(__file__).with_name("courses.toml").read_text(encoding="utf-8"))


def check_items(items: tuple[str, ...]) -> None:
    """ValueError if `items` is not a tuple of ids in courses.toml."""
    if isinstance(items, str):
        raise ValueError(f"items is a tuple of ids, such as (\"D42\",), not the text {items!r}")
    unknown = sorted(set(items) - read_items().keys()) if items else []
    if unknown:
        raise ValueError(f"courses.toml has no item {unknown[0]!r}; `python -m lessons courses` "
                         "lists those that there are")


def finite(value):
    """JSON has no NaN or infinity: they are written as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def difference(got, expected) -> float:
    """The largest |got − expected| over all entries.

    Infinite if the shapes differ or a value is not a number. Text, and lists of text, differ by 0
    or infinity.

    >>> difference([1.0, 2.0], [1.0, 2.5]), difference("a", "b"), difference(1.0, [1.0])
    (0.5, inf, inf)
    """
    def array(x):
        return np.asarray(x.detach().cpu().double() if isinstance(x, torch.Tensor) else x)

    try:
        got, expected = array(got), array(expected)
    except ValueError:                                  # lists of several lengths are no array
        return 0.0 if got == expected else math.inf
    if got.shape != expected.shape:
        return math.inf
    if got.dtype.kind not in "biuf" or expected.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(got, expected) else math.inf
    if got.size == 0:
        return math.inf                                 # nothing was compared
    with np.errstate(invalid="ignore"):
        gap = np.abs(got.astype(float) - expected.astype(float))
        gap = np.where(got == expected, 0.0, gap)       # also where both are infinite
    return float(gap.max()) if not np.isnan(gap).any() else math.inf


def read_ledger(path: Path) -> dict | None:
    """What a run of a lesson found; None if there was none. ValueError if the file is damaged."""
    if not path.exists():
        return None
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        for row in ledger["rows"]:
            assert isinstance(row["name"], str) and row["held"] in (True, False, None)
            assert all(isinstance(item, str) for item in row.get("items", []))
            if row["kind"] == "check":
                float(row["error"]), float(row["tolerance"]), str(row["source"])
            else:
                assert row["kind"] == "claim" and isinstance(row["detail"], str)
        assert ledger["state"] in ("running", "held", "failed") and type(ledger["quick"]) is bool
        float(ledger["seconds"]), int(ledger["seed"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise ValueError(f"{path} is damaged; run the lesson again") from None
    return ledger


def parser(**options) -> Parser:
    """The options that a lesson and the runner share."""
    quick = os.environ.get("MINIGPT_QUICK", "0") not in ("", "0")
    p = Parser(allow_abbrev=False, **options)
    p.add_argument("--quick", action="store_true", default=quick,
                   help="shrink the training to seconds, and leave out the claims that need more "
                        "(default without this flag: what MINIGPT_QUICK says, 0 or 1)")
    p.add_argument("--seed", type=seed, default=0, help="fixes data, weights and samples "
                                                        "(default 0)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps, … (default cpu)")
    p.add_argument("--out", default=str(OUT), help="folder for figures and ledgers (default out/)")
    return p
