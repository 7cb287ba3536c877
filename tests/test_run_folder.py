"""The folder of a run: one training at a time, stale locks, settings that belong together."""
import multiprocessing
import os
import time

import pytest

from minigpt.run_folder import (
    DEFAULTS,
    SETTINGS,
    available_memory,
    check_settings,
    locked,
    resume_settings,
    start_settings,
)


def hold(folder, ready, end):
    with locked(folder):
        ready.set()
        end.wait(30)


@pytest.fixture
def holder(tmp_path):
    """A process that trains in tmp_path/run; `stop()` kills it."""
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready, end))
    process.start()
    assert ready.wait(30)
    yield process, end
    process.kill()
    process.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_folder_in_use_is_refused_until_its_holder_ends(tmp_path, holder):
    process, end = holder
    for _ in range(2):                                  # the refusal itself changes nothing
        with pytest.raises(ValueError, match=rf"in use .*\(process {process.pid}, since 20"):
            with locked(tmp_path / "run"):
                raise AssertionError
    end.set()
    process.join(30)
    with locked(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == ["run.lock"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_whose_holder_was_killed_holds_nobody_up(tmp_path, holder):
    process, _ = holder
    process.kill()
    process.join()
    assert (tmp_path / "run" / "run.lock").exists()
    with locked(tmp_path / "run"):
        text = (tmp_path / "run" / "run.lock").read_text(encoding="utf-8")
        assert text.startswith(f"process {os.getpid()}, since ")


@pytest.mark.parametrize("content", ["", "process 1, since 2020-01-01 00:00:00", "\0\xff",
                                     f"process {os.getpid()}, since 2020-01-01 00:00:00"])
def test_a_lock_file_that_nobody_holds_is_stale_also_if_its_number_is_in_use(tmp_path, content):
    """Process 1 always exists, and so does this one: a number that was given out again."""
    (tmp_path / "run.lock").write_text(content, encoding="latin-1")
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_was_removed_and_made_again_is_locked_again(tmp_path, monkeypatch):
    """Between opening and locking, the holder before removes the file: the second try is right."""
    from minigpt import run_folder
    lock, removed = run_folder.lock_file, []

    def lock_after_removal(descriptor):
        lock(descriptor)
        if not removed:
            removed.append(os.unlink(tmp_path / "run.lock"))

    monkeypatch.setattr(run_folder, "lock_file", lock_after_removal)
    with locked(tmp_path):
        assert (tmp_path / "run.lock").exists() and removed == [None]


def test_only_empty_folders_that_were_made_are_removed(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / "run.lock").exists()
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        pass
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "b" / "c"):
        (tmp_path / "b" / "mine").write_text("x", encoding="utf-8")
        print(1 / 0)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"] and os.listdir(tmp_path / "b") == ["mine"]


def test_a_folder_that_is_a_file_or_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"), locked(tmp_path / "file"):
        pass
    with pytest.raises(OSError), locked(tmp_path / "file" / "run"):
        pass
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


GOOD = {**DEFAULTS, "text": None, "text_sha256": "0", "tokenizer_sha256": "1", "model": {}}


def test_default_settings_are_legal(tmp_path):
    check_settings(GOOD, tmp_path)
    check_settings(GOOD | {"learning_rate": 1, "text": "a.txt"}, tmp_path)
    for name, (parse, default, _) in SETTINGS.items():
        assert parse(str(default)) == default, name


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_or_unknown_setting_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"too few or too many entries \({name}\)"):
        check_settings({k: v for k, v in GOOD.items() if k != name}, tmp_path)
    with pytest.raises(ValueError, match=rf"too few or too many entries \({name}2\)"):
        check_settings(GOOD | {f"{name}2": 1}, tmp_path)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize("wrong", [None, [], {}, True, "", "-1", -1, float("nan"), 10**30])
def test_a_setting_of_a_wrong_type_or_value_is_named(tmp_path, name, wrong):
    if name == "learning_rate" and wrong == 10**30:
        return                                          # large, but a number
    with pytest.raises(ValueError, match=f"is damaged: {name} is "):
        check_settings(GOOD | {name: wrong}, tmp_path)


@pytest.mark.parametrize("given, legal", [
    ({}, True), ({"d_model": 128}, True), ({"max_steps": 1000}, True), ({"max_steps": 1001}, True),
    ({"max_steps": 999}, False), ({"d_model": 129}, False), ({"seed": 1}, False),
])
def test_what_may_change_when_a_run_is_resumed(tmp_path, given, legal):
    if legal:
        assert resume_settings(GOOD, given, tmp_path) == GOOD | given
    else:
        with pytest.raises(ValueError, match="start a new run"):
            resume_settings(GOOD, given, tmp_path)


@pytest.mark.parametrize("names, word", [
    ([], None), (["run.lock", "tokens.bin", "tokenizer.json", ".x.tmp"], None),
    (["config.json"], "--resume"), (["last.pt"], "other files"), (["notes.txt"], "notes.txt"),
])
def test_where_a_run_may_start(tmp_path, names, word):
    for name in names:
        (tmp_path / name).write_text("x", encoding="utf-8")
    if word is None:
        assert start_settings(tmp_path, {"seed": 3}) == DEFAULTS | {"seed": 3}
    else:
        with pytest.raises(ValueError, match=word):
            start_settings(tmp_path, {})


def test_available_memory_is_plausible():
    memory = available_memory()
    assert memory is None or 2**28 < memory < 2**50


def test_the_lock_says_when_it_was_taken(tmp_path):
    with locked(tmp_path):
        text = (tmp_path / "run.lock").read_text(encoding="utf-8")
    taken = time.mktime(time.strptime(text.partition("since ")[2], "%Y-%m-%d %H:%M:%S"))
    assert abs(time.time() - taken) < 60
