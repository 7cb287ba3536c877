"""The Lesson helper and the runner: what held is recorded, and what did not hold is not hidden."""
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lessons import __main__ as runner
from lessons import course
from lessons.course import Lesson, difference, read_ledger
from minigpt import plotting

ROOT = Path(__file__).resolve().parents[2]


def lesson(tmp_path, *flags, **options):
    return Lesson("99_test", ["--out", str(tmp_path), *flags], **options)


def ledger(tmp_path):
    return json.loads((tmp_path / "99_test" / "ledger.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("got, expected, gap", [
    ([1.0, 2.0], [1.0, 2.5], 0.5), (torch.tensor([1, 2]), [1, 2], 0), (3, 3.0, 0), (True, True, 0),
    ([math.inf], [math.inf], 0), ([math.inf], [1.0], math.inf), (math.nan, math.nan, math.inf),
    ([1.0], 1.0, math.inf), ([[1.0, 1.0]], [1.0, 1.0], math.inf), ("ab", "ab", 0),
    ("ab", "ac", math.inf), (["a"], ["a"], 0), ([], [], math.inf), ("1", 1, math.inf),
    ([[1], [2, 3]], [[1], [2, 3]], 0), ([[1], [2, 3]], [[1], [2, 4]], math.inf),
])
def test_difference(got, expected, gap):
    assert difference(got, expected) == gap


def test_checks_claims_and_the_tally(tmp_path, capsys):
    one = lesson(tmp_path)
    one.check("one is one", torch.tensor([1.0]), [1.0 + 1e-9], atol=1e-8, source="here")
    one.claim("two beats one", 2 > 1, "2 against 1")
    one.end()
    out = capsys.readouterr().out
    assert "✓ one is one" in out and "★ two beats one" in out and "1 ✓, 1 ★" in out
    saved = ledger(tmp_path)
    assert saved["state"] == "held" and [r["held"] for r in saved["rows"]] == [True, True]
    assert saved["rows"][0]["error"] == pytest.approx(1e-9, rel=0.1)
    assert saved["rows"][0]["source"] == "here" and saved["device"] == "cpu"


@pytest.mark.parametrize("got", [1.1, math.nan, [1.0, 1.0]])
def test_a_check_that_fails_ends_the_lesson_by_name(tmp_path, capsys, got):
    with pytest.raises(SystemExit) as stop:
        lesson(tmp_path).check("E = mc²", got, 1.0, atol=1e-3, source="course Z")
    assert stop.value.code == 1 and "E = mc²" in capsys.readouterr().err
    assert ledger(tmp_path)["state"] == "failed" and ledger(tmp_path)["rows"][0]["held"] is False


def test_a_claim_that_fails_lets_the_lesson_go_on_and_ends_it_with_1(tmp_path, capsys):
    one = lesson(tmp_path)
    one.claim("three beats four", 3 > 4, "3 against 4")
    one.claim("fine", True, "yes")
    with pytest.raises(SystemExit) as stop:
        one.end()
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "three beats four" in captured.err
    assert "0 ✓, 1 ★" in captured.out and ledger(tmp_path)["state"] == "failed"


def test_quick_skips_only_what_needs_the_full_run_and_says_so(tmp_path, capsys):
    one = lesson(tmp_path, "--quick")
    assert one.pick(full=3, quick=1) == 1 and lesson(tmp_path).pick(full=3, quick=1) == 3
    one.claim("large", False, "0.1", full_run=True)
    one.claim("small", True, "0.2")
    one.end()
    assert "skipped" in capsys.readouterr().out
    assert [r["held"] for r in ledger(tmp_path)["rows"]] == [None, True]


@pytest.mark.parametrize("value, quick", [("1", True), ("yes", True), ("0", False), ("", False)])
def test_quick_can_be_asked_for_with_an_environment_variable(tmp_path, monkeypatch, value, quick):
    monkeypatch.setenv("MINIGPT_QUICK", value)
    assert lesson(tmp_path).quick is quick and lesson(tmp_path, "--quick").quick


def test_seed_decides_both_generators(tmp_path):
    draws = []
    for seed in ("3", "3", "4"):
        one = lesson(tmp_path, "--seed", seed)
        draws.append((torch.rand(1).item(), torch.rand(1, generator=one.generator).item()))
    assert draws[0] == draws[1] != draws[2]


def test_threads_are_as_many_as_the_lesson_needs_and_the_machine_has(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    for available, needed, threads in ((2, None, 2), (2, 1, 1), (1, 2, 1), (2, 2, 2)):
        monkeypatch.setattr(course, "THREADS", available)
        lesson(tmp_path, threads=needed)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("flags, word", [
    (["--device", "gpu"], "'gpu'"), (["--device", "cuda:99"], "cuda:99"),
    (["--seed", "-1"], "seed"), (["--seed", "1.5"], "seed"),
    (["--out", os.path.join(__file__, "x")], "test_course.py"),
    (["--out", __file__], "test_course.py"), (["--quik"], "did you mean --quick?"),
])
def test_options_that_cannot_be_used_are_refused_in_one_line(tmp_path, capsys, flags, word):
    with pytest.raises(SystemExit) as stop:
        lesson(tmp_path, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and word in error and error.count("\n") == 1, error


def test_figure_is_a_png(tmp_path):
    fig, axes = plotting.figure()
    axes.plot([1, 2], [3, 4], label="x")
    lesson(tmp_path).figure(fig, "line")
    assert (tmp_path / "99_test" / "line.png").read_bytes()[:4] == b"\x89PNG"


# ---- the runner ----

FAKE = '''"""Lesson {number}: a fake one.

Expect          about 1 s; nothing else.
"""
from course import Lesson
lesson = Lesson("{number}_{name}")
lesson.check("1 = 1", 1, 1, atol=0, source="arithmetic")
{line}
lesson.claim("seeds are small", lesson.seed < {limit}, f"seed {{lesson.seed}} and 2.5 units")
lesson.claim("large", False, "0.1", full_run=True) if lesson.quick else None
lesson.end()
'''


# What the runner sees of a Lesson, without PyTorch: a process then starts in a tenth of the time.
STUB = '''
import argparse, pathlib
from minigpt.files import write_json
p = argparse.ArgumentParser()
p.add_argument("--quick", action="store_true")
for name in ("--seed", "--device", "--out"):
    p.add_argument(name)
class Lesson:
    def __init__(self, name):
        options = p.parse_args()
        self.quick, self.seed, self.rows = options.quick, int(options.seed), []
        self.ledger = {"lesson": name, "quick": self.quick, "seed": self.seed, "seconds": 1.0,
                       "device": options.device, "rows": self.rows}
        self.folder = pathlib.Path(options.out) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write("running")
    def write(self, state):
        write_json(self.folder / "ledger.json", self.ledger | {"state": state})
    def check(self, name, got, expected, atol, source):
        self.rows.append({"kind": "check", "name": name, "held": True, "error": 0.0,
                          "tolerance": atol, "source": source})
    def claim(self, name, holds, detail, full_run=False):
        held = None if full_run and self.quick else bool(holds)
        self.rows.append({"kind": "claim", "name": name, "held": held, "detail": detail})
    def end(self):
        failed = any(row["held"] is False for row in self.rows)
        self.write("failed" if failed else "held")
        raise SystemExit(int(failed))
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Three lessons: 01 always holds, 02 holds with seed 0 only, 03 crashes with odd seeds."""
    folder = tmp_path / "lessons"
    folder.mkdir()
    crash = "assert lesson.seed % 2 == 0"
    for number, name, limit, line in (("01", "alpha", 99, ""), ("02", "beta", 1, ""),
                                      ("03", "gamma", 99, crash)):
        text = FAKE.format(number=number, name=name, limit=limit, line=line)
        (folder / f"{number}_{name}.py").write_text(text, encoding="utf-8")
    (folder / "course.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setattr(runner, "FOLDER", folder)
    monkeypatch.setattr(runner, "TABLE", folder / "seeds.md")
    return ["--out", str(tmp_path / "out")]


def test_run_by_number_name_or_all(fakes, capfd):
    assert runner.main(["run", "2", "alpha", *fakes]) == 0
    assert runner.main(["run", "--all", "--seed", "5", *fakes]) == 1    # 02 and 03 do not hold
    captured = capfd.readouterr()
    assert "1 of 3 lessons held" in captured.out and "failed: 02_beta, 03_gamma" in captured.out
    assert runner.main(["ledger", *fakes]) == 0
    out = capfd.readouterr().out
    assert re.search(r"✓ held\s+1 = 1 .*error 0.0e\+00", out)
    assert re.search(r"★ FAILED\s+seeds are small: seed 5", out) and "not finished" in out


def test_seeds_tabulates_how_often_each_claim_held(fakes, capfd):
    assert runner.main(["seeds", "3", "02", *fakes]) == 1
    out = capfd.readouterr().out
    assert "★ 1/3  seeds are small" in out and "seed 0..2 and 2.5 units" in out
    assert "✓ 3/3  1 = 1" in out and "seeds 0 to 2" in out
    assert runner.main(["seeds", "2", "02", "--from", "7", *fakes]) == 1
    assert "★ 0/2  seeds are small" in (out := capfd.readouterr().out) and "seed 7..8" in out


def test_a_crashed_run_counts_as_failed_also_where_an_older_ledger_lies(fakes, capfd, tmp_path):
    assert runner.main(["seeds", "2", "03", *fakes]) == 1
    out = capfd.readouterr().out
    assert "crashed with seed 1" in out and "★ 1/2  seeds are small" in out
    assert "AssertionError" in (tmp_path / "out/seeds/1/03_gamma/log.txt").read_text("utf-8")
    # Seed 0 held. Now the lesson crashes before it begins: the old result is not taken for new.
    (tmp_path / "lessons" / "03_gamma.py").write_text('raise SystemExit("no")', encoding="utf-8")
    assert runner.main(["seeds", "1", "03", *fakes]) == 1
    assert "crashed with seed 0" in capfd.readouterr().out
    assert runner.main(["run", "03", *fakes]) == 1


@pytest.mark.parametrize("command", [["run", "01"], ["seeds", "2", "01"]])
@pytest.mark.parametrize("flags, word", [
    (["--device", "cuda:99"], "cuda:99"), (["--device", "tpu"], "'tpu'"),
    (["--out", __file__], "is a file"), (["--out", os.path.join(__file__, "x")], "test_course.py"),
    (["--seed", "-1"], "--seed"),
])
def test_options_are_checked_before_a_lesson_starts(fakes, capfd, command, flags, word):
    try:
        status = runner.main([*command, *fakes, *flags])
    except SystemExit as stop:
        status = stop.code
    captured = capfd.readouterr()
    assert status == 2 and word in captured.err and captured.err.count("\n") == 1, captured.err
    assert captured.out == ""


def test_what_quick_leaves_to_the_full_run_is_no_failure(fakes, capfd):
    assert runner.main(["seeds", "2", "01", "--quick", *fakes]) == 0
    out = capfd.readouterr().out
    assert "★ left to the full run  large" in out and "0/2" not in out


def test_seeds_that_are_there_for_the_same_source_are_not_run_again(fakes, capfd, tmp_path):
    ledgers = [tmp_path / f"out/seeds/{seed}/01_alpha/ledger.json" for seed in range(3)]

    def times():
        return [path.stat().st_mtime_ns for path in ledgers if path.exists()]

    assert runner.main(["seeds", "2", "01", *fakes]) == 0
    before = times()
    assert runner.main(["seeds", "3", "01", *fakes]) == 0
    assert times()[:2] == before and len(times()) == 3
    assert "2 of 3 seeds are there" in capfd.readouterr().out
    assert runner.main(["seeds", "1", "01", "--quick", *fakes]) == 0    # another kind of run
    assert times()[0] != before[0]
    before = times()
    path = tmp_path / "lessons" / "01_alpha.py"
    path.write_text(path.read_text(encoding="utf-8") + "# new\n", encoding="utf-8")
    assert runner.main(["seeds", "2", "01", *fakes]) == 0               # another source
    assert all(a != b for a, b in zip(times()[:2], before))


def test_several_seeds_run_at_the_same_time(fakes, tmp_path):
    """Each run waits until the other one has begun, so with one at a time both would crash."""
    wait = ("import time, pathlib\n"
            "here = pathlib.Path(lesson.folder)\n"
            "others = [here.parents[1] / str(1 - lesson.seed) / here.name / 'ledger.json']\n"
            "end = time.monotonic() + 60\n"
            "while not all(p.exists() for p in others) and time.monotonic() < end:\n"
            "    time.sleep(0.05)\n"
            "assert all(p.exists() for p in others)")
    (tmp_path / "lessons" / "01_alpha.py").write_text(
        FAKE.format(number="01", name="alpha", limit=99, line=wait), encoding="utf-8")
    assert runner.main(["seeds", "2", "01", "--jobs", "2", *fakes]) == 0


def test_table_collects_results(fakes, capfd, tmp_path):
    table = tmp_path / "lessons" / "seeds.md"
    assert runner.main(["seeds", "2", "02", "--table", *fakes]) == 1
    assert runner.main(["seeds", "1", "01", "--table", "--from", "9", *fakes]) == 0
    once = table.read_text(encoding="utf-8")
    assert runner.main(["seeds", "2", "02", "--table", *fakes]) == 1    # replaces its own lines
    assert table.read_text(encoding="utf-8") == once
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in once.splitlines()]
    assert rows[0] == ["lesson", "commit", "seeds", "what", "held", "spread"]
    assert ["02_beta", rows[-1][1], "0 to 1", "★ seeds are small", "1/2",
            "seed 0..1 and 2.5 units"] in rows
    assert [row[0] for row in rows[2:]] == ["01_alpha"] * 2 + ["02_beta"] * 2
    capfd.readouterr()
    assert runner.main(["seeds", "1", "01", "--table", "--quick", *fakes]) == 2
    assert "--table is for full runs" in capfd.readouterr().err


GOOD = {"lesson": "01_alpha", "state": "held", "quick": False, "seed": 0, "seconds": 1.0, "rows": [
    {"kind": "check", "name": "n", "held": True, "error": "inf", "tolerance": 1, "source": "s"},
    {"kind": "claim", "name": "c", "held": None, "detail": "d"}]}


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", "\0", '{"rows": []}', json.dumps(GOOD | {"state": "odd"}),
    json.dumps(GOOD | {"rows": [1]}), json.dumps(GOOD | {"rows": [{"kind": "check"}]}),
    json.dumps(GOOD | {"rows": [GOOD["rows"][0] | {"error": "large"}]}),
    json.dumps(GOOD | {"rows": [GOOD["rows"][1] | {"detail": 3}]}),
    json.dumps(GOOD | {"quick": "no"}), json.dumps(GOOD | {"seconds": None}), b"\xff\xfe",
])
def test_a_damaged_ledger_costs_only_its_own_line(fakes, capfd, tmp_path, monkeypatch, content):
    for name in ("01_alpha", "02_beta"):
        (tmp_path / "out" / name).mkdir(parents=True)
        good = json.dumps(GOOD | {"lesson": name}).encode()
        (tmp_path / "out" / name / "ledger.json").write_bytes(good)
    bad = tmp_path / "out" / "01_alpha" / "ledger.json"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(runner, "OUT", tmp_path / "out")
    with pytest.raises(ValueError, match="is damaged; run the lesson again"):
        read_ledger(bad)
    assert runner.main([]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 6 and "is damaged" in lines[1] and "1 held, 1 need the full" in lines[3]
    assert runner.main(["ledger", *fakes]) == 0
    out = capfd.readouterr().out
    assert out.count("is damaged") == 1 and "★ not run c: d" in out


def test_unknown_lessons_and_flags_suggest_the_nearest(fakes, capsys):
    for argv, words in (
        (["run", "alfa"], "did you mean alpha?"), (["run", "--quik", "01"], "mean --quick?"),
        (["rum", "01"], "did you mean run?"), (["run"], "--all"), (["run", "17"], "lesson '17'"),
        (["seeds", "0", "01"], "from 1"), (["seeds", "1", "01", "--jobs", "0"], "--jobs"),
        (["seeds", "1", "01", "--from", "-1"], "--from"),
    ):
        try:
            status = runner.main(argv)
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and words in error and error.count("\n") == 1, (argv, error)


def test_spread_gives_the_range_of_each_number():
    assert runner.spread({3: "a 1.5, b −2", 4: "a 1,000, b 7e-3"}) == ["a 1.5..1,000, b −2..7e-3"]
    assert runner.spread({3: "a 1", 4: "b 1"}) == ["seed 3: a 1", "seed 4: b 1"]


SLOW = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_the_runner_and_its_lesson_quietly(fakes, tmp_path):
    (tmp_path / "lessons" / "01_alpha.py").write_text(
        FAKE.format(number="01", name="alpha", limit=99, line=SLOW), encoding="utf-8")
    program = ("import sys; from pathlib import Path; from lessons import __main__ as runner\n"
               f"runner.FOLDER = Path({str(tmp_path / 'lessons')!r})\n"
               f"runner.leave(runner.main(['run', '01', *{fakes!r}]))")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    while "begun" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)           # as a terminal does: to all of the group
        time.sleep(0.02)
    _, err = process.communicate(timeout=30)            # the lesson has ended: its pipe is closed
    assert process.returncode == 130 and err == "", err


# ---- the lessons ----

def real_lessons():
    return sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", real_lessons(), ids=lambda p: p.stem)
def test_headers_and_cells(path):
    """Every lesson has the header's lines, its own name, a tally at the end, and cells."""
    source = path.read_text(encoding="utf-8")
    title, minutes = runner.header(path)
    assert title and re.match(r".*\d", minutes), "the Expect line begins with a time"
    for word in ("You will see", "Source", "Expect", "Not here"):
        assert re.search(rf"^{word}", source, re.M), word
    assert f'Lesson("{path.stem}"' in source and source.rstrip().endswith("lesson.end()")
    assert source.count("\n# %%\n") >= 4 and source.count("\n# %% [markdown]\n") >= 3
    assert "lesson.figure(" in source and "lesson.check(" in source
    assert "__file__" not in source                     # a notebook has none


def test_a_lesson_runs_from_any_directory_and_in_a_notebook_without_installation(tmp_path):
    """As a script from elsewhere, in a terminal that shows ASCII only; and as cells in a notebook.

    A notebook's kernel runs in lessons/, with arguments that belong to the kernel and no __file__.
    A program on standard input has no file either, so it stands for a notebook.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    script = ROOT / "lessons" / "01_representations.py"
    narrow = environment | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, str(script), "--quick", "--out", str(tmp_path)],
                          cwd=tmp_path, env=narrow, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    before = f"""
import pathlib, sys
sys.argv = ["kernel.py", "-f", "kernel.json", "--seed", "x"]
import course
course.OUT = pathlib.Path({str(tmp_path / "notebook")!r})
globals().pop("__file__", None)
"""
    notebook = environment | {"PYTHONUTF8": "1", "MINIGPT_QUICK": "1"}
    done = subprocess.run([sys.executable, "-"], input=before + script.read_text(encoding="utf-8"),
                          cwd=ROOT / "lessons", env=notebook, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 0, done.stderr
    ledger = read_ledger(tmp_path / "notebook" / "01_representations" / "ledger.json")
    assert ledger["state"] == "held" and ledger["quick"]
