"""python -m minigpt, as a user meets it: what it writes, what it refuses, and what survives a kill at any moment."""
import csv
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minigpt.__main__ import main
from minigpt.generation import generate
from minigpt.training.checkpoints import load_checkpoint

TEXT = "".join(f"{a} sees {b} in the {c}.\n" for a in ("Ana", "Ben", "Cleo", "Dan") for b in ("a fox", "an owl", "the sea") for c in ("fog", "sun", "rain", "wind"))
SMALL = ["--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--context-length", "12", "--batch-size", "4", "--max-steps", "24", "--evaluate-every", "4"]


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


@pytest.fixture
def run(tmp_path, text, capsys):
    """A finished run of 24 steps."""
    folder = str(tmp_path / "run")
    assert main(["train", "--text", text, "--out", folder, *SMALL]) == 0
    capsys.readouterr()
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def refused(capsys, argv, *words):
    """The command ends with status 2 and one line that holds these words."""
    try:
        status = main(argv)
    except SystemExit as stop:                                          # argparse leaves this way
        status = stop.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.strip() and "step/s" not in line and "s/step" not in line]
    assert status == 2 and len(lines) == 1, error
    for word in words:
        assert word in lines[0], lines[0]


def test_train_writes_what_it_says(run, text, capsys):
    assert sorted(os.listdir(run)) == ["best.pt", "config.json", "last.pt", "loss.png", "metrics.csv", "tokenizer.json"]
    with open(os.path.join(run, "metrics.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [0, 4, 8, 12, 16, 20, 24]
    assert list(rows[0]) == ["step", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte"]
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) - 0.2
    assert set(load_checkpoint(os.path.join(run, "best.pt"))) == {"model", "step"}


def test_evaluate_agrees_with_counting_by_hand(run, text, capsys):
    from minigpt.__main__ import open_run
    model, tokenizer = open_run(run, torch.device("cpu"))
    tokens = tokenizer.encode(TEXT)
    with torch.no_grad():                                               # windows of 12, each judged from its own start
        total, count = 0.0, 0
        for start in range(0, len(tokens) - 12, 12):
            for i in range(start, start + 12):
                total -= model(torch.tensor([tokens[start:i + 1]])).log_softmax(-1)[0, -1, tokens[i + 1]].item()
                count += 1
    assert main(["evaluate", run, "--text", text]) == 0
    loss, perplexity, bits, judged = re.search(r"loss ([\d.]+) .*perplexity ([\d.]+), ([\d.]+) bits.*\(([\d,]+) tokens", capsys.readouterr().out).groups()
    assert int(judged.replace(",", "")) == count and float(loss) == pytest.approx(total / count, abs=1e-3)
    assert float(perplexity) == pytest.approx(2.718281828 ** float(loss), rel=1e-3)
    assert float(bits) == pytest.approx(float(loss) / 0.693147, abs=1e-3)          # one byte a token: every character is ASCII


def test_sample_continues_the_prompt_as_generate_does(run, capsys):
    from minigpt.__main__ import open_run
    assert main(["sample", run, "--prompt", "Ana sees", "--max-new-tokens", "30", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    model, tokenizer = open_run(run, torch.device("cpu"))
    out = generate(model, torch.tensor([tokenizer.encode("Ana sees")]), 30, temperature=0.8, generator=torch.Generator().manual_seed(3))
    assert first == tokenizer.decode(out[0].tolist()) + "\n" and len(first) == 39
    main(["sample", run, "--prompt", "Ana sees", "--max-new-tokens", "30", "--seed", "4"])
    assert capsys.readouterr().out != first


def test_bpe_run_samples_any_unicode(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("el niño comió la piña. 日本語 🙂 " * 60, encoding="utf-8")
    assert main(["train", "--text", str(path), "--out", str(tmp_path / "run"), "--tokenizer", "bpe", "--vocab-size", "280", *SMALL]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "--prompt", "Ж is new", "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith("Ж is new")


def test_the_default_text_is_the_projects_own(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL, "--max-steps", "1"]) == 0
    assert "tokens to learn from" in capsys.readouterr().out


def test_resume_needs_no_flags_and_refuses_other_ones(run, text, capsys):
    before = contents(run)
    assert main(["train", "--out", run, "--resume"]) == 0               # finished already: nothing to do, nothing changes
    after = contents(run)
    assert {n: v for n, v in before.items() if n != "loss.png"} == {n: v for n, v in after.items() if n != "loss.png"}
    capsys.readouterr()
    refused(capsys, ["train", "--out", run, "--resume", "--d-model", "32"], "d_model 16", "32")
    refused(capsys, ["train", "--out", run, "--text", text], "already holds a run", "--resume")
    Path(text).write_text(TEXT + "one more line\n", encoding="utf-8")
    refused(capsys, ["train", "--out", run, "--resume"], "has changed")
    assert before["last.pt"] == contents(run)["last.pt"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bytes(tmp_path, text, monkeypatch):
    """At least 12 kills, anywhere from the first instruction to the last rename, spread over runs that each end complete."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")                 # one process imports torch, and is copied for each try
    context.set_forkserver_preload(["minigpt.__main__"])
    chance = random.Random(0)

    def attempt(folder, patience):
        """Starts or resumes the run; kills it after `patience` seconds. Returns the seconds it took, or None if it was killed."""
        argv = ["train", "--text", text, "--out", folder, "--resume", *SMALL, "--max-steps", "60", "--evaluate-every", "2"]
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
        for name in ("best.pt", "metrics.csv", "tokenizer.json", "config.json"):
            assert found[name] == expected[name], f"{name} after {kills} kills"
        a, b = (load_checkpoint(f"{f}/last.pt") for f in (folder, tmp_path / "whole"))
        assert all(torch.equal(a["model"][k].view(torch.uint8), b["model"][k].view(torch.uint8)) for k in b["model"])


def quietly(argv):
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1), os.dup2(devnull, 2)
    torch.set_num_threads(1)
    raise SystemExit(main(argv))


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on(tmp_path, text):
    folder = str(tmp_path / "run")
    command = [sys.executable, "-m", "minigpt", "train", "--text", text, "--out", folder, *SMALL, "--max-steps", "100000", "--evaluate-every", "50000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                               env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"})
    while not process.stdout.readline().startswith("step "):
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"python -m minigpt train --out {folder} --resume" in err and "Traceback" not in err
    assert load_checkpoint(os.path.join(folder, "last.pt"))["step"] > 0


class TestBadInput:
    """Each named case: one line, status 2, and the disk as it was."""

    def test_texts(self, tmp_path, capsys):
        cases = {"empty.txt": (b"", "empty"), "latin.txt": ("café".encode("latin-1") * 50, "UTF-8"), "short.txt": (b"ab" * 60, "context")}
        for name, (content, word) in cases.items():
            (tmp_path / name).write_bytes(content)
            refused(capsys, ["train", "--text", str(tmp_path / name), "--out", str(tmp_path / "run")], word)
        refused(capsys, ["train", "--text", str(tmp_path / "none.txt"), "--out", str(tmp_path / "run")], "none.txt")
        refused(capsys, ["train", "--text", str(tmp_path), "--out", str(tmp_path / "run")], str(tmp_path))
        assert not (tmp_path / "run").exists()

    def test_a_character_never_seen(self, run, capsys, tmp_path):
        before = contents(run)
        refused(capsys, ["sample", run, "--prompt", "Ana €"], "'€'", "4")
        (tmp_path / "other.txt").write_text("Ana sees Ж" * 20, encoding="utf-8")
        refused(capsys, ["evaluate", run, "--text", str(tmp_path / "other.txt")], "'Ж'", "9")
        assert before == contents(run)

    def test_a_prompt_that_is_too_long_or_empty(self, run, capsys):
        refused(capsys, ["sample", run, "--prompt", "A" * 13], "13 tokens", "12")
        refused(capsys, ["sample", run, "--prompt", ""], "empty")
        refused(capsys, ["sample", run, "--prompt", "A", "--temperature", "-1"], "temperature")

    def test_checkpoints(self, run, capsys, tmp_path, text):
        best = Path(run) / "best.pt"
        good = best.read_bytes()
        torch.save({"weights": 1}, tmp_path / "foreign.pt")
        torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
        for content, word in ((good[:500], "truncated"), (b"", "truncated"), (b"hello" * 99, "truncated"),
                              ((tmp_path / "foreign.pt").read_bytes(), "no 'model'"), ((tmp_path / "other.pt").read_bytes(), "another model")):
            best.write_bytes(content)
            refused(capsys, ["sample", run, "--prompt", "A"], "best.pt", word)
        best.write_bytes(good)
        last = Path(run) / "last.pt"
        last.write_bytes(last.read_bytes()[:1000])
        before = contents(run)
        refused(capsys, ["train", "--out", run, "--resume"], "last.pt", "truncated")
        assert {k: v for k, v in before.items() if k != "loss.png"} == {k: v for k, v in contents(run).items() if k != "loss.png"}

    def test_folders(self, run, capsys, tmp_path, text):
        refused(capsys, ["sample", str(tmp_path / "nothing")], "nothing")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "config.json").write_text('{"mine": 1}', encoding="utf-8")
        refused(capsys, ["train", "--text", text, "--out", str(tmp_path / "mine")], "other files")
        refused(capsys, ["train", "--text", text, "--out", str(tmp_path / "mine"), "--resume"], "not written by train")
        refused(capsys, ["sample", str(tmp_path / "mine")], "not written by train")
        refused(capsys, ["train", "--text", text, "--out", text], "is a file")
        assert os.listdir(tmp_path / "mine") == ["config.json"]

    @pytest.mark.skipif(os.name != "posix", reason="a file-size limit stands in for a full disk, and only POSIX has one")
    def test_a_full_disk(self, tmp_path, text):
        """Checkpoints do not fit any more: one line, and the checkpoint before is whole. Then there is room, and the run goes on."""
        folder = str(tmp_path / "run")
        train = ["train", "--text", text, "--out", folder, *SMALL]
        program = ("import resource, signal, sys, torch; torch.set_num_threads(1); from minigpt import __main__ as m; from minigpt.training import loop\n"
                   "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                   "write, calls = loop.write_metrics, []\n"
                   "def fill(*a):\n"
                   "    calls.append(1)\n"
                   "    if len(calls) == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
                   "    write(*a)\n"
                   "loop.write_metrics = fill\n"
                   "sys.exit(m.main(sys.argv[1:]))")
        done = subprocess.run([sys.executable, "-c", program, *train], capture_output=True, encoding="utf-8")
        errors = [line for line in done.stderr.splitlines() if line.strip() and "step" not in line]
        assert done.returncode == 2 and len(errors) == 1 and "last.pt" in errors[0] and "Traceback" not in done.stderr, done.stderr
        assert load_checkpoint(os.path.join(folder, "last.pt"))["step"] == 4 and not [n for n in os.listdir(folder) if n.endswith(".tmp")]
        assert main([*train, "--resume"]) == 0

    def test_a_loss_that_turns_nan(self, tmp_path, text, capsys):
        refused(capsys, ["train", "--text", text, "--out", str(tmp_path / "run"), *SMALL, "--learning-rate", "1e30", "--optimizer", "adamw"], "at step", "learning rate")
        state = load_checkpoint(str(tmp_path / "run" / "last.pt"))
        assert all(v.isfinite().all() for v in state["model"].values())

    def test_flags(self, text, tmp_path, capsys):
        out = ["--out", str(tmp_path / "run")]
        refused(capsys, ["train", *out, "--lerning-rate", "1"], "--lerning-rate", "did you mean --learning-rate?")
        refused(capsys, ["trian", *out], "trian", "did you mean train?")
        refused(capsys, ["train", *out, "--max-steps", "many"], "--max-steps", "many")
        refused(capsys, ["train"], "--out")
        refused(capsys, ["train", "--text", text, *out, "--n-heads", "3"], "d_model 128", "3 heads")
        refused(capsys, ["train", "--text", text, *out, "--tokenizer", "words"], "char or bpe")
        refused(capsys, ["train", "--text", text, *out, "--architecture", "lstm"], "modern or gpt2")
        refused(capsys, ["train", "--text", text, *out, "--optimizer", "sgd"], "adamw")
        refused(capsys, ["train", "--text", text, *out, "--batch-size", "0"], "batch_size")
        refused(capsys, ["train", "--text", text, *out, "--context-length", "0"], "context_length")
        refused(capsys, ["train", "--text", text, *out, "--device", "cuda:99"], "cuda:99", "there is cpu")
        refused(capsys, ["train", "--text", text, *out, "--device", "gpu"], "'gpu'")
        assert not (tmp_path / "run").exists()
