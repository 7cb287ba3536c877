"""python -m lessons: the course from the shell.

    python -m lessons                    lists the lessons: title, time, what the last run found
    python -m lessons run 06, gpt, --all  runs lessons; --quick --seed --device --out
    python -m lessons ledger [06 …]      prints each check and claim of the last run
    python -m lessons seeds 5 06 07      runs lessons with seeds 0 to 4, and tabulates how often
                                         each claim held; --from 1000 begins with seed 1000
    python -m lessons courses [A]        prints what the four courses teach, and what settles it

Each lesson runs in a process of its own, so that none depends on what another one left behind.
"""
import argparse
import ast
import difflib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from minigpt.command_line import (
    CLOSED_PIPE,
    Parser,
    importing,
    leave,
    run_command,
    use_device,
    whole_number,
)
from minigpt.files import write_atomic, write_json
from minigpt.text.corpora import DATA

with importing():
    from lessons.course import OUT, ROOT, parser, read_ledger
    from lessons.course_map import report

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "seeds.md"
TABLE_HEAD = ("| lesson | commit | seeds | what | held | spread |\n"
              "|---|---|---|---|---|---|\n")


def all_lessons() -> list[Path]:
    """The lessons' scripts, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def find_lesson(word: str) -> Path:
    """By number (6, 06), name (gpt) or both (06_gpt); ValueError names the nearest."""
    names = {}
    for path in all_lessons():
        number, name = path.stem.split("_", 1)
        names |= {number: path, str(int(number)): path, name: path, path.stem: path}
    if word not in names:
        words = [name for name in names if not name.isdigit()]
        near = difflib.get_close_matches(word, words, 1, cutoff=0.4)
        raise ValueError(f"there is no lesson {word!r}"
                         + (f"; did you mean {near[0]}?" if near else ";")
                         + " `python -m lessons` lists them")
    return names[word]


def header(path: Path) -> tuple[str, str]:
    """(title, time) of a lesson, from its docstring.

    The title follows "Lesson 06:" in the first line. The time follows "Expect", up to the first
    full stop or semicolon.
    """
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title = re.sub(r"^Lesson \d+: ", "", doc.splitlines()[0])
    expect = re.search(r"^Expect\s+(.+?)(?:;|\.\s|\.$|\n)", doc, re.M)
    return title, expect[1] if expect else "?"


def ledger_path(lesson: Path, out: Path) -> Path:
    return out / lesson.stem / "ledger.json"


def state(ledger: dict | None) -> str:
    """In a few words, what a run found."""
    if ledger is None:
        return "not run"
    if ledger["state"] == "running":
        return "not finished"
    held = sum(row["held"] is True for row in ledger["rows"])
    skipped = sum(row["held"] is None for row in ledger["rows"])
    failed = [row["name"] for row in ledger["rows"] if row["held"] is False]
    words = f"FAILED: {failed[0]}" if failed else f"{held} held"
    words += f", {skipped} need the full run" if skipped else ""
    return words + (" (quick)" if ledger["quick"] else "")


def list_lessons(out: Path) -> None:
    for path in all_lessons():
        title, minutes = header(path)
        try:
            found = state(read_ledger(ledger_path(path, out)))
        except ValueError as error:
            found = str(error)
        print(f"{path.stem:<22} {title}\n{'':<22} {minutes} · {found}")


# ---- run ----

def start(lesson: Path, options: argparse.Namespace, seed: int, out: Path, **pipes):
    """Starts a lesson in a process of its own.

    The ledger of the run before is removed, so that it is never taken for the new one. Ctrl-C is
    ignored there: the runner receives it too, and ends the lesson.
    """
    ledger_path(lesson, out).unlink(missing_ok=True)
    flags = ["--seed", str(seed), "--device", options.device, "--out", str(out)]
    flags += ["--quick"] if options.quick else []
    environment = {**os.environ, "MINIGPT_QUICK": "0"}                  # the flag decides
    return subprocess.Popen([sys.executable, str(lesson), *flags], env=environment,
                            preexec_fn=ignore_ctrl_c if os.name == "posix" else None, **pipes)


def ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(paths: list[Path], options: argparse.Namespace) -> int:
    """Runs lessons one after the other; returns how many failed."""
    failed, began, out = [], time.monotonic(), Path(options.out)
    for path in paths:
        print(f"\n── {path.stem} " + "─" * (90 - len(path.stem)), flush=True)
        with start(path, options, options.seed, out) as process:
            try:
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        if status == CLOSED_PIPE:
            raise BrokenPipeError
        if status or not finished(path, out):
            failed.append(path.stem)
    print(f"\n{len(paths) - len(failed)} of {len(paths)} lessons held, in "
          f"{time.monotonic() - began:.0f} s"
          + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


def finished(lesson: Path, out: Path) -> dict | None:
    """The ledger of a lesson, if its run came to an end."""
    try:
        ledger = read_ledger(ledger_path(lesson, out))
    except ValueError:
        return None
    return ledger if ledger and ledger["state"] != "running" else None


def check_options(options: argparse.Namespace) -> None:
    """ValueError or OSError, before any lesson starts, if device or folder cannot be used."""
    use_device(options.device)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; it needs a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written to; choose another folder")


# ---- ledger ----

def print_ledger(paths: list[Path], out: Path) -> None:
    """Each check and claim of the last run of some lessons."""
    for path in paths:
        try:
            ledger = read_ledger(ledger_path(path, out))
        except ValueError as error:
            print(f"\n{path.stem}: {error}")
            continue
        print(f"\n{path.stem}: {state(ledger)}"
              + (f", seed {ledger['seed']}, {ledger['seconds']:.0f} s" if ledger else ""))
        for row in ledger["rows"] if ledger else []:
            mark = {True: "held", False: "FAILED", None: "not run"}[row["held"]]
            if row["kind"] == "check":
                print(f"  ✓ {mark:<8}{row['name']:<66} error {float(row['error']):.1e}  "
                      f"tolerance {row['tolerance']:.0e}  [{row['source']}]")
            else:
                print(f"  ★ {mark:<8}{row['name']}: {row['detail']}")


# ---- seeds ----

def source_of(lesson: Path) -> str:
    """A checksum of all that a lesson's result depends on: its script, the library, the data."""
    digest = hashlib.sha256(lesson.read_bytes())
    files = [FOLDER / "course.py", *sorted((ROOT / "minigpt").rglob("*.py")),
             *sorted(DATA.glob("*.txt"))]
    for path in files:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def already_there(lesson: Path, out: Path, options: argparse.Namespace, source: str) -> bool:
    """Whether a finished run of the same source, kind and device is in `out`."""
    ledger = finished(lesson, out)
    return ledger is not None and (ledger.get("source"), ledger["quick"], ledger.get("device")) == (
        source, options.quick, options.device)


def run_seeds(lesson: Path, numbers: list[int], options: argparse.Namespace) -> list[dict | None]:
    """Runs a lesson with each seed, `options.jobs` at a time; returns the ledgers, None = crashed.

    A seed whose result for the same source is there already is not run again. What a lesson prints
    goes to a file beside its ledger.
    """
    source, folder = source_of(lesson), Path(options.out) / "seeds"
    outs = {seed: folder / str(seed) for seed in numbers}
    waiting = [seed for seed in numbers
               if not already_there(lesson, outs[seed], options, source)]
    if len(waiting) < len(numbers):
        print(f"{lesson.stem}: {len(numbers) - len(waiting)} of {len(numbers)} seeds are there")
    running: dict[int, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                seed = waiting.pop(0)
                running[seed] = start_logged(lesson, options, seed, outs[seed])
            time.sleep(0.05)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                del running[seed]
                print(f"{lesson.stem}, seed {seed}: {note_source(lesson, outs[seed], source)}",
                      flush=True)
    finally:
        for process in running.values():
            process.kill()
    return [finished(lesson, outs[seed]) for seed in numbers]


def start_logged(lesson: Path, options: argparse.Namespace, seed: int, out: Path):
    """Starts a lesson whose output goes to a file beside its ledger."""
    log = out / lesson.stem / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        return start(lesson, options, seed, out, stdout=file, stderr=subprocess.STDOUT)


def note_source(lesson: Path, out: Path, source: str) -> str:
    """Writes into the ledger which source it is of, and says how the run ended."""
    ledger = finished(lesson, out)
    if ledger is None:
        return f"CRASHED; see {out / lesson.stem / 'log.txt'}"
    write_json(ledger_path(lesson, out), ledger | {"source": source})
    return f"{state(ledger)}, {ledger['seconds']:.0f} s"


def seeds(paths: list[Path], options: argparse.Namespace) -> int:
    """Runs lessons with several seeds, and prints how often each check and claim held.

    Returns how many did not hold with every seed. A crashed run counts as a failure of each.
    """
    numbers, n_failed = list(range(options.first, options.first + options.count)), 0
    for path in paths:
        ledgers = run_seeds(path, numbers, options)
        crashed = [seed for seed, ledger in zip(numbers, ledgers) if ledger is None]
        results = tabulate(ledgers, numbers)
        print(f"\n{path.stem}, seeds {numbers[0]} to {numbers[-1]}")
        if crashed:
            print(f"  ✗ crashed with seed {', '.join(map(str, crashed))}")
        for kind, name, held, measured in results:
            share = "left to the full run" if held is None else f"{held}/{len(numbers)}"
            print(f"  {'✓' if kind == 'check' else '★'} {share}  {name}")
            print("\n".join(f"      {line}" for line in measured))
        n_failed += bool(crashed) + sum(held is not None and held < len(numbers)
                                        for _, _, held, _ in results)
        if options.table:
            add_to_table(path.stem, numbers, results)
    return n_failed


def tabulate(ledgers: list[dict | None], numbers: list[int]) -> list[tuple]:
    """For each check and claim: its kind, its name, in how many runs it held, and what it measured.

    The number is None for a claim that --quick left to the full run.
    """
    runs = [ledger["rows"] if ledger else [] for ledger in ledgers]
    names = dict.fromkeys((row["kind"], row["name"]) for rows in runs for row in rows)
    results = []
    for kind, name in names:
        rows = [next((row for row in rows if row["name"] == name), None) for rows in runs]
        reached = [row for row in rows if row is not None]
        held = sum(row["held"] is True for row in reached)
        if all(row["held"] is None for row in reached):
            held = None
        if kind == "check":
            measured = [f"largest error {max(float(row['error']) for row in reached):.1e}"]
        else:
            measured = spread({seed: row["detail"] if row else "not reached"
                               for seed, row in zip(numbers, rows)})
        results.append((kind, name, held, measured))
    return results


NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")


def spread(details: dict[int, str]) -> list[str]:
    """The details of one claim over seeds: one line with the lowest and highest of each number.

    If the words differ, one line per seed.

    >>> spread({0: "0.91 against 0.20", 1: "0.95 against 0.18"})
    ['0.91..0.95 against 0.18..0.20']
    """
    if len({NUMBER.sub("#", detail) for detail in details.values()}) > 1:
        return [f"seed {seed}: {detail}" for seed, detail in details.items()]

    def value(text: str) -> float:
        return float(text.replace(",", "").replace("−", "-"))

    columns = zip(*(NUMBER.findall(detail) for detail in details.values()))
    ranges = iter([found[0] if len(set(found)) == 1
                   else f"{min(found, key=value)}..{max(found, key=value)}" for found in columns])
    return [NUMBER.sub(lambda _: next(ranges), next(iter(details.values())))]


def add_to_table(lesson: str, numbers: list[int], results: list[tuple]) -> None:
    """Adds a lesson's results to lessons/seeds.md; those of the same seeds are replaced."""
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    span = f"{numbers[0]} to {numbers[-1]}"
    lines = TABLE.read_text(encoding="utf-8").splitlines(True) if TABLE.exists() else []
    kept = [line for line in lines if line.startswith("| ") and not line.startswith("| lesson |")
            and not re.match(rf"\| {re.escape(lesson)} \| \S+ \| {span} \|", line)]
    for kind, name, held, measured in results:
        what = f"{'✓' if kind == 'check' else '★'} {name}"
        kept.append(f"| {lesson} | {commit()} | {span} | {cell(what)} | "
                    f"{0 if held is None else held}/{len(numbers)} | "
                    f"{cell('; '.join(measured))} |\n")
    write_atomic(TABLE, (TABLE_HEAD + "".join(sorted(kept))).encode("utf-8"))


def commit() -> str:
    """The commit of this clone, with a + if files differ from it; "unknown" outside of one."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("diff", "HEAD", "--", "minigpt",
                                                                 "lessons/*.py", "data") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- the command line ----

def make_parser() -> Parser:
    p = Parser(prog="python -m lessons", allow_abbrev=False,
               description="The course: list the lessons, run them, read what held.")
    commands = p.add_subparsers(dest="command")

    def command(name: str, help: str) -> Parser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False,
                                   parents=[parser(add_help=False)])

    c = command("run", "run lessons")
    c.add_argument("lessons", nargs="*", help="numbers or names")
    c.add_argument("--all", action="store_true", help="every lesson")
    c = command("ledger", "print each check and claim of the last run")
    c.add_argument("lessons", nargs="*", help="numbers or names (default all)")
    c = command("courses", "print what the four courses teach, and what settles each item")
    c.add_argument("course", nargs="?", choices=list("ABCD"), help="one course (default all four)")
    c = command("seeds", "run lessons with several seeds, and tabulate how often each claim held")
    c.add_argument("count", type=whole_number(1, 10_000), help="how many seeds")
    c.add_argument("lessons", nargs="+", help="numbers or names")
    c.add_argument("--from", type=whole_number(0, 10**9), default=0, dest="first", metavar="SEED",
                   help="the first seed (default 0)")
    c.add_argument("--jobs", type=whole_number(1, 64), default=1,
                   help="how many seeds run at the same time (default 1)")
    c.add_argument("--table", action="store_true",
                   help="add the result to the table in lessons/seeds.md")
    return p


def work(argv: list[str] | None) -> int:
    args = make_parser().parse_args(argv)
    if args.command is None:
        list_lessons(OUT)
        return 0
    if args.command == "courses":
        out = Path(args.out)
        report(args.course, {path: read_ledger(ledger_path(path, out)) for path in all_lessons()})
        return 0
    paths = [find_lesson(word) for word in args.lessons]
    if args.command == "ledger":
        print_ledger(paths or all_lessons(), Path(args.out))
        return 0
    if args.command == "run" and not (paths or args.all):
        raise ValueError("run which lessons? give numbers or names, or --all")
    if args.command == "seeds" and args.table and args.quick:
        raise ValueError("--table is for full runs; leave out --quick or --table")
    check_options(args)
    if args.command == "seeds":
        return 1 if seeds(paths, args) else 0
    return 1 if run(all_lessons() if args.all else paths, args) else 0


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 1 if something did not hold."""
    return run_command("lessons", lambda: work(argv))


if __name__ == "__main__":
    leave(main())
