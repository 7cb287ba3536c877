"""The Lesson helper and the runner: what holds is recorded, what does not ends with status 1 and its name, notebooks work."""
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lessons import __main__ as runner
from lessons.course import Lesson, difference
from minigpt import plotting

ROOT = Path(__file__).resolve().parents[2]


def lesson(tmp_path, *flags):
    return Lesson("99_test", ["--out", str(tmp_path), *flags])


def ledger(tmp_path):
    return json.loads((tmp_path / "99_test" / "ledger.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("got, expected, gap", [
    ([1.0, 2.0], [1.0, 2.5], 0.5), (torch.tensor([1, 2]), [1, 2], 0), (3, 3.0, 0), (True, True, 0),
    ([math.inf], [math.inf], 0), ([math.inf], [1.0], math.inf), (math.nan, math.nan, math.inf), ([1.0], 1.0, math.inf),
    ([[1.0, 1.0]], [1.0, 1.0], math.inf), ("ab", "ab", 0), ("ab", "ac", math.inf), (["a"], ["a"], 0), ([], [], math.inf),
    ([[1], [2, 3]], [[1], [2, 3]], 0), ([[1], [2, 3]], [[1], [2, 4]], math.inf), ("1", 1, math.inf),
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
    assert saved["rows"][0]["error"] == pytest.approx(1e-9, rel=0.1) and saved["rows"][0]["source"] == "here"


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
    assert stop.value.code == 1 and "three beats four" in capsys.readouterr().err and ledger(tmp_path)["state"] == "failed"


def test_quick_skips_only_what_needs_the_full_run_and_says_so(tmp_path, capsys):
    one = lesson(tmp_path, "--quick")
    assert one.pick(full=3, quick=1) == 1 and lesson(tmp_path).pick(full=3, quick=1) == 3
    one.claim("large", False, "0.1", full_run=True)
    one.claim("small", True, "0.2")
    one.end()
    assert "skipped" in capsys.readouterr().out and [r["held"] for r in ledger(tmp_path)["rows"]] == [None, True]


def test_seed_decides_both_generators(tmp_path):
    draws = []
    for seed in ("3", "3", "4"):
        one = lesson(tmp_path, "--seed", seed)
        draws.append((torch.rand(1).item(), torch.rand(1, generator=one.generator).item()))
    assert draws[0] == draws[1] != draws[2]


def test_figure_is_a_png(tmp_path):
    fig, axes = plotting.figure()
    axes.plot([1, 2], [3, 4], label="x")
    lesson(tmp_path).figure(fig, "line")
    assert (tmp_path / "99_test" / "line.png").read_bytes()[:4] == b"\x89PNG"


FAKE = '''"""Lesson {number}: a fake one.

Expect          about 1 s; nothing else.
"""
from lessons.course import Lesson
lesson = Lesson("{number}_{name}")
lesson.check("1 = 1", 1, 1, atol=0, source="arithmetic")
lesson.claim("seeds are small", lesson.seed < {limit}, f"seed {{lesson.seed}} and 2.5 units")
lesson.end()
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "lessons"
    folder.mkdir()
    for number, name, limit in (("01", "alpha", 99), ("02", "beta", 1)):
        (folder / f"{number}_{name}.py").write_text(FAKE.format(number=number, name=name, limit=limit), encoding="utf-8")
    monkeypatch.setattr(runner, "FOLDER", folder)
    return ["--out", str(tmp_path / "out")]


def test_run_by_number_name_or_all(fakes, capfd):
    assert runner.main(["run", "2", "alpha", *fakes]) == 0
    assert runner.main(["run", "--all", "--seed", "5", *fakes]) == 1    # beta's claim fails at seed 5
    assert "1 of 2 lessons held" in capfd.readouterr().out
    assert runner.main(["ledger", *fakes]) == 0
    out = capfd.readouterr().out
    assert re.search(r"✓ held\s+1 = 1 .*error 0.0e\+00", out) and re.search(r"★ FAILED\s+seeds are small: seed 5", out)


def test_seeds_tabulates_how_often_each_claim_held(fakes, capfd):
    assert runner.main(["seeds", "3", "02", *fakes]) == 1
    out = capfd.readouterr().out
    assert "★ 1/3  seeds are small" in out and "seed 0..2 and 2.5 units" in out and "✓ 3/3  1 = 1" in out


def test_unknown_lessons_and_flags_suggest_the_nearest(fakes, capsys):
    for argv, words in ((["run", "alfa"], "did you mean alpha?"), (["run", "--quik", "01"], "did you mean --quick?"),
                        (["rum", "01"], "did you mean run?"), (["run"], "--all"), (["run", "17"], "no lesson '17'"), (["seeds", "0", "01"], "at least 1")):
        try:
            status = runner.main(argv)
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and words in error and len(error.strip().splitlines()) == 1, (argv, error)


def real_lessons():
    return sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", real_lessons(), ids=lambda p: p.stem)
def test_headers_and_cells(path):
    """Every lesson has the header's lines, names itself rightly, ends with the tally, and is made of cells."""
    source = path.read_text(encoding="utf-8")
    title, minutes = runner.header(path)
    assert title and re.match(r".*\d", minutes), "the Expect line begins with a time"
    for word in ("You will see", "Source", "Expect", "Not here"):
        assert re.search(rf"^{word}", source, re.M), word
    assert f'Lesson("{path.stem}")' in source and source.rstrip().endswith("lesson.end()")
    assert source.count("\n# %%\n") >= 4 and source.count("\n# %% [markdown]\n") >= 3 and "lesson.figure(" in source and "lesson.check(" in source
    assert "__file__" not in source                                     # a notebook has none


def test_a_lesson_runs_from_any_directory_and_in_a_notebook(tmp_path):
    """As a script from elsewhere; and as a kernel runs its cells, in lessons/, with argv that belongs to the kernel and no __file__.

    A program on standard input is nowhere on the disk either, so that is how the lesson gets there.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    script = ROOT / "lessons" / "01_representations.py"
    done = subprocess.run([sys.executable, str(script), "--quick", "--out", str(tmp_path)], cwd=tmp_path, env=env, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 0, done.stderr
    before = f"""
import pathlib, sys
sys.argv = ["kernel.py", "-f", "kernel.json", "--seed", "x"]
from lessons import course
course.ROOT = pathlib.Path({str(tmp_path / "notebook")!r})
course.Lesson.pick = lambda self, full, quick: quick
course.Lesson.claim = lambda self, *a, **k: None
globals().pop("__file__", None)
"""
    done = subprocess.run([sys.executable, "-"], input=before + script.read_text(encoding="utf-8"), cwd=ROOT / "lessons", env=env,
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notebook" / "out" / "01_representations" / "ledger.json").exists()
