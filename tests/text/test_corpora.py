"""The prose in data/ is read in a fixed order; data/get.py fetches the right file or none."""
import hashlib
import importlib.util
import re
from pathlib import Path

import pytest

from minigpt.text import corpora
from minigpt.text.corpora import prose

ROOT = Path(corpora.__file__).parents[2]


def test_the_sizes_of_the_prose_that_the_data_card_states():
    """data/README.md quotes these sizes; a change of the files changes the card."""
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    sizes = dict(re.findall(r"\| `(\w+\.txt)` \| ([\d.]+) kB \|", card))
    for name in corpora.PROSE:
        assert float(sizes[name]) == round((ROOT / "data" / name).stat().st_size / 1000), name


def test_prose_holds_every_piece_once_and_ends_with_a_mixture():
    text = prose()
    pieces = text.rstrip("\n").split("\n\n\n")
    by_file = {}
    for name in corpora.PROSE:
        whole = (ROOT / "data" / name).read_text(encoding="utf-8")
        by_file[name] = whole.strip("\n").split("\n\n\n")
    assert sorted(pieces) == sorted(piece for ours in by_file.values() for piece in ours)
    for name, ours in by_file.items():
        assert [piece for piece in pieces if piece in ours] == ours, name  # in their own order
    last_tenth = text[-len(text) // 10:]
    assert all(any(piece[-200:] in last_tenth for piece in ours) for ours in by_file.values())
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_the_pieces_of_a_file_are_spread_evenly(monkeypatch, tmp_path):
    """Piece i of n is at (i + 1/2) / n of the whole: 1/2; 1/4, 3/4; 1/8, 3/8, 5/8, 7/8."""
    for name, pieces in (("a", ["a1"]), ("b", ["b1", "b2"]), ("c", ["c1", "c2", "c3", "c4"])):
        (tmp_path / name).write_text("\n\n\n".join(pieces) + "\n", encoding="utf-8")
    monkeypatch.setattr(corpora, "DATA", tmp_path)
    monkeypatch.setattr(corpora, "PROSE", ("a", "b", "c"))
    assert prose().split() == "c1 b1 c2 a1 c3 b2 c4".split()


# data/get.py

@pytest.fixture
def get():
    spec = importlib.util.spec_from_file_location("get", ROOT / "data" / "get.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000   # several blocks


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "source" / "play.txt"
    path.parent.mkdir()
    path.write_bytes(PLAY)
    return path.as_uri()


def test_fetch_writes_the_file_with_the_right_checksum(get, play, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    get.fetch(play, there / "play.txt", hashlib.sha256(PLAY).hexdigest())
    assert (there / "play.txt").read_bytes() == PLAY
    assert [path.name for path in there.iterdir()] == ["play.txt"]


def test_fetch_keeps_what_is_there_when_the_checksum_differs(get, play, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "play.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="sha256"):
        get.fetch(play, there / "play.txt", "0" * 64)
    assert (there / "play.txt").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in there.iterdir()] == ["play.txt"]


@pytest.mark.parametrize("good_source", [False, True])
def test_the_command_ends_with_2_and_one_line(get, play, tmp_path, capsys, good_source):
    """Either the source is not there, as without a network, or it holds other bytes."""
    url = play if good_source else (tmp_path / "nowhere.txt").as_uri()
    assert get.main(url, tmp_path / "play.txt", "0" * 64) == 2
    assert not list(tmp_path.glob("play*"))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("get.py: ")


def test_the_command_says_what_it_wrote(get, play, tmp_path, capsys):
    checksum = hashlib.sha256(PLAY).hexdigest()
    assert get.main(play, tmp_path / "play.txt", checksum) == 0
    assert "play.txt" in capsys.readouterr().out
    (tmp_path / "source" / "play.txt").unlink()
    assert get.main(play, tmp_path / "play.txt", checksum) == 0  # the file is already there


def test_the_published_text_has_the_checksum(get, shared_file):
    assert hashlib.sha256(shared_file("tinyshakespeare.txt").read_bytes()).hexdigest() == get.SHA256
