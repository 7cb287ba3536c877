"""python -m minigpt: what it writes, what it refuses, and what survives a kill at any moment."""
import csv
import io
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minigpt import commands, run_folder
from minigpt.__main__ import main
from minigpt.commands import load_run
from minigpt.generation import generate
from minigpt.training.checkpoints import load_checkpoint

TEXT = "".join(f"{a} sees {b} in the {c}.\n" for a in ("Ana", "Ben", "Cleo", "Dan")
               for b in ("a fox", "an owl", "the sea") for c in ("fog", "sun", "rain", "wind"))
SMALL = ["--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--context-length", "12",
         "--batch-size", "4", "--max-steps", "24", "--evaluate-every", "4"]
FILES = ["best.pt", "config.json", "last.pt", "loss.png", "metrics.csv", "tokenizer.json",
         "tokens.bin"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of 24 steps, and its text; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    argv = ["train", "--text", str(folder / "text.txt"), "--out", str(folder / "run"), *SMALL]
    assert main(argv) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, text, capsys):
    """A finished run of 24 steps on `text`."""
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    change(folder, text=str(Path(text).resolve()))
    capsys.readouterr()
    return str(folder)


def change(folder, **settings):
    """Changes entries of config.json; ... removes one."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | settings
    config = {name: value for name, value in config.items() if value is not ...}
    path.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def refused(capsys, argv, *words):
    """The command ends with status 2 and one line that holds these words."""
    try:
        status = main(argv)
    except SystemExit as stop:                          # argparse leaves in this way
        status = stop.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines()
             if line.strip() and "step/s" not in line and "s/step" not in line]
    assert status == 2 and len(lines) == 1, error
    for word in words:
        assert word in lines[0], lines[0]


def shell(*argv, **options):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "minigpt", *argv], capture_output=True,
                          encoding="utf-8", errors="replace", timeout=120, **options)


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **more}


def test_train_writes_what_it_says(run):
    assert sorted(os.listdir(run)) == FILES
    with open(os.path.join(run, "metrics.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [0, 4, 8, 12, 16, 20, 24]
    assert list(rows[0]) == ["step", "train_loss", "val_loss", "val_perplexity",
                             "val_bits_per_byte"]
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) - 0.2
    assert set(load_checkpoint(os.path.join(run, "best.pt"))) == {"model", "step"}


def test_evaluate_agrees_with_counting_by_hand(run, text, capsys):
    model, tokenizer = load_run(run, torch.device("cpu"))
    tokens = tokenizer.encode(TEXT)
    with torch.no_grad():               # windows of 12, each read from its own start
        total, count = 0.0, 0
        for start in range(0, len(tokens) - 12, 12):
            for i in range(start, start + 12):
                logits = model(torch.tensor([tokens[start:i + 1]]))[0, -1]
                total -= logits.log_softmax(-1)[tokens[i + 1]].item()
                count += 1
    assert main(["evaluate", run, "--text", text]) == 0
    loss, perplexity, bits, predicted = re.search(
        r"loss ([\d.]+) .*perplexity ([\d.]+), ([\d.]+) bits.*\(([\d,]+) tokens",
        capsys.readouterr().out).groups()
    assert int(predicted.replace(",", "")) == count
    assert float(loss) == pytest.approx(total / count, abs=1e-3)
    assert float(perplexity) == pytest.approx(2.718281828 ** float(loss), rel=1e-3)
    assert float(bits) == pytest.approx(float(loss) / 0.693147, abs=1e-3)   # one byte per token


@pytest.mark.parametrize("windows, part", [
    ("3", "on 3 of 11 windows"), ("11", "on all held-out text"), ("all", "on all held-out text"),
])
def test_the_last_evaluation_reads_as_many_windows_as_asked(run, capsys, windows, part):
    assert main(["train", "--out", run, "--resume", "--evaluate-windows", windows]) == 0
    assert part in capsys.readouterr().out
    refused(capsys, ["train", "--out", run, "--resume", "--evaluate-windows", "0"],
            "--evaluate-windows")


def test_sample_continues_the_prompt_as_generate_does(run, capsys):
    argv = ["sample", run, "--prompt", "Ana sees", "--max-new-tokens", "30", "--seed"]
    assert main([*argv, "3"]) == 0
    first = capsys.readouterr().out
    model, tokenizer = load_run(run, torch.device("cpu"))
    prompt = torch.tensor([tokenizer.encode("Ana sees")])
    generator = torch.Generator().manual_seed(3)
    out = generate(model, prompt, 30, temperature=0.8, generator=generator)
    assert first == tokenizer.decode(out[0].tolist()) + "\n" and len(first) == 39
    main([*argv, "4"])
    assert capsys.readouterr().out != first


UNICODE = "el niño comió la piña. 日本語 🙂 " * 60


def test_bpe_streams_the_text_that_decoding_all_tokens_at_once_gives(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(UNICODE, encoding="utf-8")
    folder = str(tmp_path / "run")
    assert main(["train", "--text", str(path), "--out", folder, "--tokenizer", "bpe",
                 "--vocab-size", "280", *SMALL]) == 0
    capsys.readouterr()
    model, tokenizer = load_run(folder, torch.device("cpu"))
    for seed in range(4):
        argv = ["sample", folder, "--prompt", "Ж is", "--max-new-tokens", "40", "--temperature",
                "1.5", "--seed", str(seed)]
        assert main(argv) == 0
        prompt = torch.tensor([tokenizer.encode("Ж is")])
        out = generate(model, prompt, 40, temperature=1.5,
                       generator=torch.Generator().manual_seed(seed))
        assert capsys.readouterr().out == tokenizer.decode(out[0].tolist()) + "\n"


def test_the_default_text_is_the_projects_own(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL, "--max-steps", "1"]) == 0
    assert "tokens to train on" in capsys.readouterr().out


# ---- resume ----

def without_picture(files):
    return {name: content for name, content in files.items() if name != "loss.png"}


def test_resume_needs_no_flags_and_refuses_other_ones(run, text, capsys):
    before = contents(run)
    assert main(["train", "--out", run, "--resume"]) == 0       # finished: nothing changes
    assert without_picture(before) == without_picture(contents(run))
    assert "to train further: --resume --max-steps 48" in capsys.readouterr().out
    resume = ["train", "--out", run, "--resume"]
    refused(capsys, [*resume, "--d-model", "32"], "d_model 16", "32")
    refused(capsys, [*resume, "--max-steps", "23"], "max_steps 24", "23", "can only grow")
    refused(capsys, ["train", "--out", run, "--text", text], "already holds a run", "--resume")
    Path(text).write_text(TEXT + "one more line\n", encoding="utf-8")
    refused(capsys, resume, "not the text that this run began with")
    assert without_picture(before) == without_picture(contents(run))


@pytest.mark.parametrize("name", ["nothing", "empty", "other"])
def test_resume_never_starts_a_new_run(tmp_path, capsys, name):
    """A folder that is misspelt, empty, or holds other things is refused, and stays as it was."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    refused(capsys, ["train", "--out", str(tmp_path / name), "--resume", *SMALL], "holds no run")
    assert sorted(os.listdir(tmp_path)) == ["empty", "other"]
    assert os.listdir(tmp_path / "empty") == [] and os.listdir(tmp_path / "other") == ["notes.txt"]


def test_a_finished_run_is_trained_further(run, capsys):
    assert main(["train", "--out", run, "--resume", "--max-steps", "32"]) == 0
    assert load_checkpoint(os.path.join(run, "last.pt"))["step"] == 32
    with open(os.path.join(run, "metrics.csv"), encoding="utf-8") as file:
        assert [line.split(",")[0] for line in file][1:] == "0 4 8 12 16 20 24 28 32".split()
    capsys.readouterr()
    assert main(["train", "--out", run, "--resume"]) == 0       # the new number is remembered
    assert "32 of 32 steps" in capsys.readouterr().out


def test_a_text_that_has_moved_is_named_with_text(run, text, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere" / "renamed.txt"
    elsewhere.parent.mkdir()
    shutil.move(text, elsewhere)
    resume = ["train", "--out", run, "--resume"]
    refused(capsys, resume, "no longer at", text, "--text")
    (tmp_path / "wrong.txt").write_text(TEXT[:-5], encoding="utf-8")
    refused(capsys, [*resume, "--text", str(tmp_path / "wrong.txt")], "wrong.txt", "is not the")
    refused(capsys, [*resume, "--text", str(tmp_path / "none.txt")], "there is no file", "none.txt")
    assert main([*resume, "--text", str(elsewhere)]) == 0
    assert main(resume) == 0                                    # the new place is remembered


def test_lost_or_damaged_tokens_are_made_again(run):
    before = contents(run)
    for content in (None, b"", before["tokens.bin"][:-1], b"x" * len(before["tokens.bin"])):
        path = Path(run) / "tokens.bin"
        path.unlink() if content is None else path.write_bytes(content)
        assert main(["train", "--out", run, "--resume"]) == 0
        assert path.read_bytes() == before["tokens.bin"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bytes(
    tmp_path, text, monkeypatch,
):
    """At least 12 kills, from the first instruction to the last rename, over several runs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")         # imports torch once, for all
    context.set_forkserver_preload(["minigpt.commands", "minigpt.plotting", "torch._dynamo"])
    chance = random.Random(0)

    def attempt(folder, patience):
        """Starts or resumes the run and kills it after `patience` seconds.

        Returns the seconds that it took, or None if it was killed.
        """
        argv = ["train", "--text", text, "--out", folder, *SMALL, "--max-steps", "48",
                "--evaluate-every", "3"]
        argv += ["--resume"] if os.path.exists(os.path.join(folder, "config.json")) else []
        process, start = context.Process(target=quietly, args=(argv,)), time.monotonic()
        process.start()
        process.join(patience)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return None
        assert process.exitcode == 0
        return time.monotonic() - start

    attempt(str(tmp_path / "warm"), 60)
    whole = attempt(str(tmp_path / "whole"), 60)
    expected = contents(tmp_path / "whole")
    kills = runs = 0
    while kills < 12:
        runs += 1
        folder = str(tmp_path / f"run{runs}")
        while attempt(folder, chance.uniform(0.05, 0.9) * whole) is None:
            kills += 1
        found = contents(folder)
        assert found.keys() == expected.keys()
        for name in ("best.pt", "metrics.csv", "tokenizer.json", "config.json", "tokens.bin"):
            assert found[name] == expected[name], f"{name} after {kills} kills"
        a, b = (load_checkpoint(f"{f}/last.pt")["model"] for f in (folder, tmp_path / "whole"))
        assert all(torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in b)


def quietly(argv):
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1), os.dup2(devnull, 2)
    torch.set_num_threads(1)
    raise SystemExit(main(argv))


# ---- Ctrl-C, closed pipes, narrow terminals ----

ENDLESS = [*SMALL, "--max-steps", "100000", "--evaluate-every", "50000"]


def start(*argv, **options):
    return subprocess.Popen([sys.executable, "-m", "minigpt", *argv], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, encoding="utf-8",
                            env=environment(PYTHONUTF8="1"), **options)


@posix_only
def test_ctrl_c_says_how_to_go_on(tmp_path, text):
    folder = str(tmp_path / "my run")
    process = start("train", "--text", text, "--out", folder, *ENDLESS)
    while not process.stdout.readline().startswith("step "):
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"python -m minigpt train --out '{folder}' --resume" in err
    assert load_checkpoint(os.path.join(folder, "last.pt"))["step"] > 0
    assert "run.lock" not in os.listdir(folder)


@posix_only
@pytest.mark.parametrize("seconds", [0.15, 0.8, 1.6, 2.5])
def test_ctrl_c_at_any_moment_even_twice_gives_130_and_no_traceback(run, text, tmp_path, seconds):
    """While Python starts it is the interpreter's own; from the first import on it is ours."""
    argv = {0.15: ["evaluate", run, "--text", text]}.get(
        seconds, ["train", "--text", text, "--out", str(tmp_path / "new"), *ENDLESS])
    process = start(*argv)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if seconds > 0.15:
        # A shell reports both as 130: an exit with 130, and an end by the signal itself (−2).
        assert process.returncode in (130, -2) and "Traceback" not in err, err
    else:
        assert process.returncode in (130, -signal.SIGINT), err


@posix_only
@pytest.mark.parametrize("argv", [["--help"], ["sample", "{run}", "--max-new-tokens", "300"]])
def test_a_closed_pipe_ends_quietly(run, argv):
    with start(*[word.format(run=run) for word in argv]) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 141 and err == "", err


@posix_only
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_stop_no_training(text, tmp_path, closed):
    folder = tmp_path / "run"
    words = ["train", "--text", text, "--out", str(folder), *SMALL]
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "minigpt", *words]))
    assert subprocess.run(["sh", "-c", f"{command} {closed}"], env=environment()).returncode == 0
    assert sorted(os.listdir(folder)) == FILES
    assert load_checkpoint(folder / "last.pt")["step"] == 24


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437"])
def test_text_that_the_terminal_cannot_show_stops_nothing(tmp_path, monkeypatch, encoding):
    (tmp_path / "text.txt").write_text(UNICODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    screens = {}
    for name in ("stdout", "stderr"):
        screens[name] = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(screens[name], encoding=encoding))
    assert main(["train", "--text", "text.txt", "--out", "ru\u0308n", *SMALL, "--tokenizer", "bpe",
                 "--vocab-size", "280"]) == 0
    screens["stdout"].truncate(0)
    assert main(["sample", "ru\u0308n", "--prompt", "日本", "--max-new-tokens", "9"]) == 0
    assert screens["stdout"].getvalue().lstrip(b"\0").startswith(b"??")
    assert main(["sample", "日本"]) == 2
    sys.stderr.flush()
    assert b"?? holds no run" in screens["stderr"].getvalue()


def test_a_narrow_terminal_stops_no_command_from_the_shell(run, text):
    narrow = environment(PYTHONIOENCODING="ascii:strict")
    done = shell("evaluate", "日本", "--text", text, env=narrow)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


# ---- two trainings in one folder ----

@posix_only
def test_of_two_trainings_in_one_folder_one_goes_on(tmp_path, text):
    folder = str(tmp_path / "run")
    both = [start("train", "--text", text, "--out", folder, *ENDLESS) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.05)
    lost, won = sorted(both, key=lambda process: process.poll() is None)
    _, err = lost.communicate(timeout=60)
    assert lost.returncode == 2 and err.count("\n") == 1, err
    assert f"is in use by another training (process {won.pid}, since 20" in err, err
    while not won.stdout.readline().startswith("step "):
        assert won.poll() is None
    won.send_signal(signal.SIGINT)
    won.communicate(timeout=60)
    assert won.returncode == 130
    assert main(["sample", folder, "--max-new-tokens", "3"]) == 0       # its files are whole


# ---- bad input ----

class TestBadInput:
    """Each named case: one line, status 2, and the disk as it was."""

    def test_texts(self, tmp_path, capsys):
        cases = {"empty.txt": (b"", "empty"), "latin.txt": ("café".encode("latin-1") * 50, "UTF-8"),
                 "short.txt": (b"ab" * 60, "context"), "tiny.txt": (b"a", "at least")}
        out = ["--out", str(tmp_path / "run")]
        for name, (content, word) in cases.items():
            (tmp_path / name).write_bytes(content)
            size = ["--context-length", "1"] if name == "tiny.txt" else []
            refused(capsys, ["train", "--text", str(tmp_path / name), *out, *size], "")
            refused(capsys, ["train", "--text", str(tmp_path / name), *out], word)
        refused(capsys, ["train", "--text", str(tmp_path / "none.txt"), *out], "none.txt")
        refused(capsys, ["train", "--text", str(tmp_path), *out], str(tmp_path), "folder")
        refused(capsys, ["train", "--text", "", *out])
        assert not (tmp_path / "run").exists()

    @posix_only
    def test_files_that_are_no_files(self, run, tmp_path, capsys):
        os.mkfifo(tmp_path / "pipe")
        secret = tmp_path / "secret.txt"
        secret.write_text(TEXT, encoding="utf-8")
        secret.chmod(0)
        cases = {str(tmp_path / "pipe"): "pipe", "/dev/null": "device", "/dev/zero": "device",
                 str(tmp_path): "folder", str(tmp_path / "text.txt" / "x"): "",
                 "a" * 300: "name too long"}
        if os.geteuid():                                # root may read any file
            cases[str(secret)] = "ermission"
        for path, word in cases.items():
            refused(capsys, ["train", "--text", path, "--out", str(tmp_path / "new")], word)
            refused(capsys, ["evaluate", run, "--text", path], word)
        assert not (tmp_path / "new").exists()

    def test_a_character_never_seen(self, run, capsys, tmp_path):
        before = contents(run)
        refused(capsys, ["sample", run, "--prompt", "Ana €"], "'€'", "4")
        (tmp_path / "other.txt").write_text("Ana sees Ж" * 20, encoding="utf-8")
        refused(capsys, ["evaluate", run, "--text", str(tmp_path / "other.txt")], "'Ж'", "9")
        assert before == contents(run)

    def test_a_prompt_that_is_too_long_or_empty(self, run, capsys):
        refused(capsys, ["sample", run, "--prompt", "A" * 13], "13 tokens", "12")
        assert main(["sample", run, "--prompt", "A" * 12, "--max-new-tokens", "3"]) == 0
        refused(capsys, ["sample", run, "--prompt", ""], "empty")

    @pytest.mark.parametrize("flag, name, values", [
        ("--temperature", "temperature", ["-1", "nan", "inf", "-inf", "hot"]),
        ("--top-p", "top.p", ["0", "-0.5", "1.1", "nan", "inf", "most"]),
        ("--top-k", "top.k", ["0", "-2", "1.5", "nan", "many"]),
        ("--seed", "seed", ["-1", str(2**32), "1e3", "one", "9" * 5000]),
        ("--max-new-tokens", "max.new.tokens", ["-1", "1.0", "all"]),
    ])
    def test_options_of_sample(self, run, capsys, flag, name, values):
        for value in values:
            with pytest.raises(AssertionError, match=name):     # the line names the flag
                refused(capsys, ["sample", run, "--prompt", "A", f"{flag}={value}"], "no such word")

    def test_checkpoints(self, run, capsys, tmp_path):
        best = Path(run) / "best.pt"
        good = best.read_bytes()
        torch.save({"weights": 1}, tmp_path / "foreign.pt")
        torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
        before = without_picture(contents(run))
        for content, word in (
            (good[:500], "truncated"), (b"", "truncated"), (b"hello" * 99, "truncated"),
            ((tmp_path / "foreign.pt").read_bytes(), "no 'model'"),
            ((tmp_path / "other.pt").read_bytes(), "another model"),
        ):
            best.write_bytes(content)
            refused(capsys, ["sample", run, "--prompt", "A"], "best.pt", word)
            refused(capsys, ["train", "--out", run, "--resume"], "best.pt", word)
        best.write_bytes(good)
        assert before == without_picture(contents(run))
        last = Path(run) / "last.pt"
        last.write_bytes(last.read_bytes()[:1000])
        before = without_picture(contents(run))
        refused(capsys, ["train", "--out", run, "--resume"], "last.pt", "truncated")
        assert before == without_picture(contents(run))

    @pytest.mark.parametrize("settings, word", [
        ({"max_steps": "24"}, "max_steps"), ({"max_steps": 24.0}, "max_steps"),
        ({"n_layers": True}, "n_layers"), ({"d_model": 0}, "d_model"), ({"seed": -1}, "seed"),
        ({"learning_rate": "fast"}, "learning_rate"), ({"learning_rate": -1.0}, "learning_rate"),
        ({"tokenizer": "words"}, "tokenizer"), ({"text": 3}, "text"), ({"optimizer": None}, "opt"),
        ({"batch_size": ...}, "batch_size"), ({"colour": "red"}, "colour"),
        ({"model": {}}, "model"), ({"model": []}, "model"), ({"n_layers": 2}, "model"),
        ({"architecture": "gpt2"}, "model"),
        ({"tokenizer_sha256": "0" * 64}, "tokenizer.json"), ({"text_sha256": None}, ""),
    ])
    def test_a_damaged_config(self, run, capsys, settings, word):
        change(run, **settings)
        before = contents(run)
        if settings != {"text_sha256": None}:           # sample and evaluate read no text
            refused(capsys, ["sample", run, "--prompt", "A"], word)
        refused(capsys, ["train", "--out", run, "--resume"], word)
        assert before == contents(run)

    def test_a_tokenizer_of_another_run(self, run, capsys):
        path = Path(run) / "tokenizer.json"
        good = path.read_text(encoding="utf-8")
        swapped = good.replace("AB", "BA")              # as many characters, in another order
        assert swapped != good
        for content in (swapped, "{}", good[:-9], ""):
            path.write_text(content, encoding="utf-8")
            refused(capsys, ["sample", run, "--prompt", "A"], "tokenizer.json")
            refused(capsys, ["train", "--out", run, "--resume"], "tokenizer.json")
        path.unlink()
        refused(capsys, ["sample", run, "--prompt", "A"], "tokenizer.json")

    def test_folders(self, run, capsys, tmp_path, text):
        refused(capsys, ["sample", str(tmp_path / "nothing")], "nothing", "holds no run")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
        new = ["train", "--text", text, "--out"]
        refused(capsys, [*new, str(tmp_path / "mine")], "other files", "notes.txt")
        (tmp_path / "mine" / "config.json").write_text('{"mine": 1}', encoding="utf-8")
        refused(capsys, [*new, str(tmp_path / "mine"), "--resume"], "was not written by this")
        refused(capsys, ["sample", str(tmp_path / "mine")], "was not written by this")
        refused(capsys, [*new, text], "is a file")
        refused(capsys, [*new, os.path.join(text, "run")], "")
        assert sorted(os.listdir(tmp_path / "mine")) == ["config.json", "notes.txt"]

    def test_a_start_that_was_killed_can_be_started_again(self, tmp_path, text, capsys):
        (tmp_path / "run").mkdir()
        for name in ("tokenizer.json", "tokens.bin", "run.lock", ".tokens.bin.99.tmp"):
            (tmp_path / "run" / name).write_text("half", encoding="utf-8")
        assert main(["train", "--text", text, "--out", str(tmp_path / "run"), *SMALL]) == 0
        assert sorted(os.listdir(tmp_path / "run")) == FILES

    @posix_only                         # a limit on the size of files stands for a full disk
    def test_a_full_disk(self, tmp_path, text):
        """A checkpoint does not fit: one line, and the one before is whole. The run can go on."""
        folder = str(tmp_path / "run")
        train = ["train", "--text", text, "--out", folder, *SMALL]
        program = """
import resource, signal, sys, torch
torch.set_num_threads(1)
from minigpt import commands, run_folder
from minigpt.training import loop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write, calls = loop.write_metrics, []
def fill(*a):
    calls.append(1)
    if len(calls) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    write(*a)
loop.write_metrics = fill
sys.exit(commands.main(sys.argv[1:]))"""
        done = subprocess.run([sys.executable, "-c", program, *train], capture_output=True,
                              encoding="utf-8")
        errors = [line for line in done.stderr.splitlines() if line.strip() and "step" not in line]
        assert done.returncode == 2 and len(errors) == 1 and "last.pt" in errors[0], done.stderr
        assert load_checkpoint(os.path.join(folder, "last.pt"))["step"] == 4
        assert not [n for n in os.listdir(folder) if n.endswith((".tmp", ".lock"))]
        assert main([*train, "--resume"]) == 0

    def test_a_loss_that_turns_nan(self, tmp_path, text, capsys):
        refused(capsys, ["train", "--text", text, "--out", str(tmp_path / "run"), *SMALL,
                         "--learning-rate", "1e30", "--optimizer", "adamw"],
                "at step", "learning rate")
        state = load_checkpoint(str(tmp_path / "run" / "last.pt"))
        assert all(v.isfinite().all() for v in state["model"].values())

    @pytest.mark.parametrize("sizes", [
        ["--d-model", "100000"], ["--d-model", "1000000000"], ["--n-layers", "1000000000"],
        ["--batch-size", "1000000000"], ["--d-model", "100000", "--architecture", "gpt2"],
        ["--n-layers", "1000000000", "--d-model", "1000000000", "--batch-size", "1000000000"],
    ])
    def test_sizes_that_no_memory_holds(self, text, tmp_path, capsys, sizes):
        refused(capsys, ["train", "--text", text, "--out", str(tmp_path / "run"), *sizes],
                "GB of memory", "--batch-size")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("argv, words", [
        (["train", "{out}", "--lerning-rate", "1"], ["did you mean --learning-rate?"]),
        (["trian", "{out}"], ["trian", "did you mean train?"]),
        (["train", "{out}", "--max-steps", "many"], ["--max-steps", "many"]),
        (["train", "{out}", "--max-steps", "0"], ["--max-steps", "from 1", "not 0"]),
        (["train"], ["--out"]),
        (["train", "{out}", "--n-heads", "3"], ["d_model 128", "n_heads 3"]),
        (["train", "{out}", "--tokenizer", "words"], ["char or bpe", "'words'"]),
        (["train", "{out}", "--architecture", "lstm"], ["modern or gpt2"]),
        (["train", "{out}", "--optimizer", "sgd"], ["muon or adamw"]),
        (["train", "{out}", "--batch-size", "0"], ["--batch-size"]),
        (["train", "{out}", "--context-length", "0"], ["--context-length"]),
        (["train", "{out}", "--learning-rate", "nan"], ["--learning-rate"]),
        (["train", "{out}", "--learning-rate", "0"], ["--learning-rate"]),
        (["train", "{out}", "--seed", "-1"], ["--seed"]),
        (["train", "{out}", "--seed", "4294967296"], ["--seed", "4294967295"]),
        (["train", "{out}", "--device", "cuda:99"], ["cuda:99", "there is cpu"]),
        (["train", "{out}", "--device", "gpu"], ["'gpu'"]),
        (["train", "{out}", "--tokenizer", "bpe", "--vocab-size", "200"], ["vocab_size 200"]),
    ])
    def test_flags(self, text, tmp_path, capsys, argv, words):
        argv = [word.format(out=f"--out={tmp_path / 'run'}") for word in argv]
        argv += ["--text", text] if argv[0] == "train" and len(argv) > 1 else []
        refused(capsys, argv, *words)
        assert not (tmp_path / "run").exists()


def test_the_memory_that_is_needed_is_compared_with_the_memory_there_is(monkeypatch):
    config = run_folder.model_config({"architecture": "modern", "context_length": 12, "n_layers": 1,
                                    "n_heads": 2, "d_model": 16}, vocab_size=23)
    needed = 16 * config.n_weights + 4 * 4 * 12 * (12 * 16 + 2 * 23)
    monkeypatch.setattr(run_folder, "available_memory", lambda: needed)
    commands.check_training_memory(config, batch_size=4)
    monkeypatch.setattr(run_folder, "available_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match="GB of memory"):
        commands.check_training_memory(config, batch_size=4)
    monkeypatch.setattr(run_folder, "available_memory", lambda: None)
    commands.check_training_memory(config, batch_size=4)
