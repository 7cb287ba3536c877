"""python -m lessons: the course from the shell.

    python -m lessons                         lists the lessons: title, time, and what the last run found
    python -m lessons run 06 | gpt | --all    runs lessons; --quick --seed --device --out
    python -m lessons ledger [06 …]           every check and claim of the last run
    python -m lessons seeds 5 06 07           runs lessons with seeds 0..4 and tabulates how often each claim held

Each lesson runs in a process of its own, so none can lean on another's leftovers.
"""
import argparse
import ast
import difflib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from lessons.course import ROOT, parser
from minigpt.command_line import Parser

FOLDER = Path(__file__).resolve().parent


def all_lessons() -> list[Path]:
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def find_lesson(word: str) -> Path:
    """By number (6, 06), name (gpt) or both (06_gpt); ValueError names the nearest."""
    names = {}
    for path in all_lessons():
        number, name = path.stem.split("_", 1)
        names |= {number: path, str(int(number)): path, name: path, path.stem: path}
    if word not in names:
        near = difflib.get_close_matches(word, [n for n in names if not n.isdigit()], 1, cutoff=0.4)
        raise ValueError(f"no lesson {word!r}" + (f"; did you mean {near[0]}?" if near else "") + " `python -m lessons` lists them")
    return names[word]


def header(path: Path) -> tuple[str, str]:
    """(title, time): the first line of a lesson's docstring after "Lesson 06:", and its Expect line up to the first full stop or semicolon."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title = re.sub(r"^Lesson \d+: ", "", doc.splitlines()[0])
    expect = re.search(r"^Expect\s+(.+?)(?:;|\.\s|\.$|\n)", doc, re.M)
    return title, expect[1] if expect else "?"


def read_ledger(name: str, out: Path) -> dict | None:
    path = out / name / "ledger.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def state(ledger: dict | None) -> str:
    if ledger is None:
        return "not run"
    if ledger["state"] == "running":
        return "not finished"
    held, skipped = sum(r["held"] is True for r in ledger["rows"]), sum(r["held"] is None for r in ledger["rows"])
    words = f"{held} held" if ledger["state"] == "held" else f"FAILED: {next(r['name'] for r in ledger['rows'] if r['held'] is False)}"
    return words + (f", {skipped} need the full run" if skipped else "") + (" (quick)" if ledger["quick"] else "")


def list_lessons(out: Path) -> None:
    for path in all_lessons():
        title, minutes = header(path)
        print(f"{path.stem:<22} {title}\n{'':<22} {minutes} · {state(read_ledger(path.stem, out))}")


def run(paths: list[Path], options: argparse.Namespace) -> int:
    """Runs lessons one after the other; returns how many failed."""
    failed, start = [], time.monotonic()
    flags = ["--seed", str(options.seed), "--device", options.device, "--out", options.out] + ["--quick"] * options.quick
    for path in paths:
        print(f"\n── {path.stem} " + "─" * (90 - len(path.stem)), flush=True)
        if subprocess.run([sys.executable, str(path), *flags]).returncode:
            failed.append(path.stem)
    print(f"\n{len(paths) - len(failed)} of {len(paths)} lessons held, in {time.monotonic() - start:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


def print_ledger(paths: list[Path], out: Path) -> None:
    for path in paths:
        ledger = read_ledger(path.stem, out)
        print(f"\n{path.stem}: {state(ledger)}" + (f", seed {ledger['seed']}, {ledger['seconds']:.0f} s" if ledger else ""))
        for row in ledger["rows"] if ledger else []:
            mark = {True: "held", False: "FAILED", None: "not run"}[row["held"]]
            if row["kind"] == "check":
                print(f"  ✓ {mark:<8}{row['name']:<66} error {float(row['error']):.1e}  tolerance {row['tolerance']:.0e}  [{row['source']}]")
            else:
                print(f"  ★ {mark:<8}{row['name']}: {row['detail']}")


def seeds(count: int, paths: list[Path], options: argparse.Namespace) -> int:
    """Runs each lesson with seeds 0..count−1; prints, for each claim, in how many it held and what it measured in each."""
    out, worst = Path(options.out) / "seeds", 0
    for path in paths:
        ledgers = []
        for seed in range(count):
            options.seed, options.out = seed, str(out / str(seed))
            run([path], options)
            ledgers.append(read_ledger(path.stem, out / str(seed)))
        names = list(dict.fromkeys((r["kind"], r["name"]) for ledger in ledgers for r in ledger["rows"]))
        print(f"\n{path.stem}, seeds 0 to {count - 1}")
        for kind, name in names:
            rows = [next((r for r in ledger["rows"] if r["name"] == name), {"held": False, "detail": "not reached"}) for ledger in ledgers]
            held = sum(r["held"] is True for r in rows)
            worst += held < count and any(r["held"] is False for r in rows)
            if kind == "check":
                print(f"  ✓ {held}/{count}  {name}: largest error {max(float(r.get('error', 'inf')) for r in rows):.1e}")
            else:
                print(f"  ★ {held}/{count}  {name}")
                print(spread([r.get("detail", "") for r in rows]))
    return worst


NUMBER = re.compile(r"[-−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def spread(details: list[str]) -> str:
    """Details of one claim over seeds: where they share their words, one line with lowest..highest in each number's place.

    >>> spread(["0.91 against 0.20", "0.95 against 0.18"])
    '      0.91..0.95 against 0.18..0.20'
    """
    if len({NUMBER.sub("#", d) for d in details}) > 1:
        return "\n".join(f"      seed {i}: {d}" for i, d in enumerate(details))
    columns = list(zip(*(NUMBER.findall(d) for d in details)))

    def value(text):
        return float(text.replace(",", "").replace("−", "-"))

    ranges = iter([c[0] if len(set(c)) == 1 else f"{min(c, key=value)}..{max(c, key=value)}" for c in columns])
    return "      " + NUMBER.sub(lambda _: next(ranges), details[0])


def main(argv: list[str] | None = None) -> int:
    p = Parser(prog="python -m lessons", allow_abbrev=False, description="The course: list, run, and read what held.")
    commands = p.add_subparsers(dest="command")
    shared_flags = parser(add_help=False)
    r = commands.add_parser("run", parents=[shared_flags], allow_abbrev=False, help="run lessons")
    r.add_argument("lessons", nargs="*", help="numbers or names")
    r.add_argument("--all", action="store_true", help="every lesson")
    l = commands.add_parser("ledger", parents=[shared_flags], allow_abbrev=False, help="print every check of the last run")
    l.add_argument("lessons", nargs="*", help="numbers or names (default all)")
    s = commands.add_parser("seeds", parents=[shared_flags], allow_abbrev=False, help="run lessons with several seeds")
    s.add_argument("count", type=int, help="how many seeds")
    s.add_argument("lessons", nargs="+", help="numbers or names")
    args = p.parse_args(argv)
    try:
        if args.command is None:
            list_lessons(ROOT / "out")
            return 0
        paths = [find_lesson(word) for word in args.lessons] or (all_lessons() if args.command == "ledger" or args.all else [])
        if args.command == "run" and (args.all or not paths):
            if not args.all:
                raise ValueError("run which lessons? give numbers or names, or --all")
            paths = all_lessons()
        if args.command == "ledger":
            print_ledger(paths, Path(args.out))
            return 0
        if args.command == "seeds":
            if args.count < 1:
                raise ValueError(f"seeds must be at least 1, not {args.count}")
            return 1 if seeds(args.count, paths, args) else 0
        return 1 if run(paths, args) else 0
    except ValueError as error:
        print(f"lessons: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
