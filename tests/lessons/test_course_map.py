"""The course map: every item of the four courses is settled by a lesson, as far as lessons exist.

The lessons' scripts are read, and not run. What a check found is the ledger's business.
"""
import re
from pathlib import Path

import pytest

from lessons import __main__ as runner
from lessons import course_map
from lessons.course import Lesson, read_items, read_ledger
from lessons.course_map import Place, places_in, report, result, settling, state_of, unknown

ROOT = Path(__file__).resolve().parents[2]
ITEMS = read_items()
SCRIPTS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
LESSONS = {script.name[:2] for script in SCRIPTS}


@pytest.fixture(scope="module")
def places():
    return [place for script in SCRIPTS for place in places_in(script)]


# ---- the project ----

def test_every_item_that_a_lesson_names_exists(places):
    assert unknown(places, ITEMS) == []


def test_every_item_of_a_lesson_that_exists_is_settled(places):
    missing = [item for item, about in ITEMS.items()
               if state_of(item, about, places, LESSONS) == "missing"]
    assert missing == [], "a lesson has to settle these"


def test_no_item_of_the_scripts_is_overlooked(places):
    """The same by regular expressions, which know nothing of syntax trees or cells."""
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        named = re.findall(r"[A-D]\d\d", " ".join(
            re.findall(r"items=\(([^()]*)\)", text) + re.findall(r"^# Items: .*", text, re.M)))
        found = [place.item for place in places if place.lesson == script.name[:2]]
        assert sorted(named) == sorted(found), script.name


def test_the_list_of_items_is_whole_and_in_order():
    counts = {"A": 23, "B": 36, "C": 68, "D": 51}
    assert list(ITEMS) == [f"{letter}{number:02}" for letter, n in counts.items()
                           for number in range(1, n + 1)]
    kinds = {"definition", "equation", "derivation", "algorithm", "numbers", "example", "statement",
             "figure", "model"}
    for item, about in ITEMS.items():
        assert about.keys() == {"title", "kind", "lessons"}, item
        assert about["kind"] in kinds and 0 < len(about["title"]) <= 90, item
        assert about["lessons"] and set(about["lessons"]) <= {f"{n:02}" for n in range(1, 24)}, item
    assert len({about["title"] for about in ITEMS.values()}) == len(ITEMS)
    text = (ROOT / "lessons" / "courses.toml").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100


# ---- reading a script ----

SCRIPT = '''"""Lesson 07: a small one."""
# %% [markdown]
# ## 1. What it is
# A sentence.
#
# Items: C13, D02

# %%
for n in (1, 2):
    lesson.check(f"{n} layers: {n + 1:,} numbers", 1, 1, atol=0, source="x", items=("D05",))
lesson.claim("A" if n else "B", True, "…", items=("D07", "D09"))
lesson.check("of no course", 1, 1, atol=0, source="x")
other.figure(fig, items=("A01",))
# %% [markdown]
# ## 2. What it costs
# Items: C36
# %%
'''


def script_of(tmp_path, text, name="07_small.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_checks_claims_and_sections_are_found_in_order(tmp_path):
    assert places_in(script_of(tmp_path, SCRIPT)) == [
        Place("C13", "07", "section", "1. What it is"),
        Place("D02", "07", "section", "1. What it is"),
        Place("D05", "07", "check", "… layers: … numbers"),
        Place("D07", "07", "claim", "…"),
        Place("D09", "07", "claim", "…"),
        Place("C36", "07", "section", "2. What it costs"),
    ]


@pytest.mark.parametrize("text, words", [
    ('lesson.check("a", 1, 1, 0, "x", items=("D42"))', "^07_small.py, line 1: write items as a"),
    ('\nlesson.claim("a", 1, "b", items=ids)', "line 2: write items as a tuple"),
    ('lesson.claim("a", 1, "b", items=("D42", 7))', "write items as a tuple"),
    ('lesson.claim("a", 1, "b", items=["D42"])', "write items as a tuple"),
    ("# %%\n# Items: C33", "line 2: “# Items:” is the last line"),
    ("# Items: C33", "line 1: “# Items:” is the last line"),
    ("# %% [markdown]\n# Items: C33\n# And a word more.", "line 2: “# Items:” is the last line"),
])
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        places_in(script_of(tmp_path, text))


def test_ids_that_are_written_wrongly_are_unknown(tmp_path):
    script = script_of(tmp_path, "# %% [markdown]\n# Items: C33,C34\n# %% [markdown]\n# Items: D1")
    assert unknown(places_in(script), ITEMS) == ["C33,C34", "D1"]


# ---- what counts ----

EQUATION = {"title": "x = x", "kind": "equation", "lessons": ["07", "22"]}
MODEL = EQUATION | {"kind": "model"}


def test_a_number_is_needed_for_an_equation_and_a_section_is_enough_for_a_model():
    section, check = (Place("D04", "07", kind, "…") for kind in ("section", "check"))
    assert settling("D04", EQUATION, [section]) == []
    assert settling("D04", MODEL, [section]) == [section]
    assert settling("D04", EQUATION, [section, check]) == [check]
    for kind in ("derivation", "algorithm", "numbers", "example"):
        assert settling("D04", EQUATION | {"kind": kind}, [section]) == []
    assert settling("D03", MODEL, [section]) == []                      # another item


def test_a_place_in_a_lesson_of_another_subject_does_not_count():
    elsewhere = Place("D04", "08", "check", "…")
    assert settling("D04", EQUATION, [elsewhere]) == []
    assert state_of("D04", EQUATION, [elsewhere], {"07", "08"}) == "missing"


def test_an_item_is_missing_as_soon_as_one_of_its_lessons_exists():
    assert state_of("D04", EQUATION, [], {"08"}) == "to come"
    assert state_of("D04", EQUATION, [], {"08", "22"}) == "missing"
    assert state_of("D04", EQUATION, [Place("D04", "07", "claim", "…")], {"07"}) == "settled"


# ---- what the last run found ----

def row(name, held, items=("D04",), kind="check"):
    return {"kind": kind, "name": name, "held": held, "items": list(items)}


@pytest.mark.parametrize("rows, found", [
    ([], "not run"),
    ([row("2 of 3 (rounded)", True)], "held"),
    ([row("2 of 3 (rounded)", True), row("3 of 3 (rounded)", False)], "FAILED"),
    ([row("2 of 3 (rounded)", True), row("3 of 3 (rounded)", None)], "needs the full run"),
    ([row("2 of 3 (rounded)", False, items=("D05",))], "not run"),      # another item
    ([row("2 of 3 (rounded)", False, kind="claim")], "not run"),
    ([row("2 of 3 rounded", False)], "not run"),                        # another check
])
def test_the_result_is_that_of_the_rows_with_this_name_and_item(rows, found):
    assert result(Place("D04", "07", "check", "… of 3 (rounded)"), {"rows": rows}) == found


def test_a_lesson_without_a_ledger_was_not_run():
    assert result(Place("D04", "07", "check", "a"), None) == "not run"


def test_the_report_names_every_item_with_its_places_and_its_result(tmp_path, capsys, monkeypatch):
    items = {"A01": MODEL | {"title": "One"}, "A02": EQUATION | {"title": "Two"},
             "A03": EQUATION | {"title": "Three", "lessons": ["22"]}, "B01": MODEL}
    monkeypatch.setattr(course_map, "read_items", lambda: items)
    script = script_of(tmp_path, '# %% [markdown]\n# ## 1. Here\n# Items: A01, A02\n\n# %%\n'
                                 'lesson.check("two", 2, 2, 0, "x", items=("A01",))')
    report("A", {script: {"rows": [row("two", True, items=("A01",))]}})
    assert capsys.readouterr().out.splitlines() == [
        "", "Course A", "",
        "A01  One",
        "     lesson 07  §                    1. Here",
        "     lesson 07  ✓ held               two",
        "     lesson 22, to come", "",
        "A02  Two",
        "     lesson 07  §                    1. Here",
        "     lesson 07: a check or claim is missing (equation)",
        "     lesson 22, to come", "",
        "A03  Three",
        "     lesson 22, to come", "",
        "A: 3 items, 1 settled, 1 missing, 1 to come"]
    report(None, {})
    assert "B: 1 items, 0 settled, 0 missing, 1 to come" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no item 'A09'"):
        report("A", {script_of(tmp_path, "# %% [markdown]\n# Items: A09"): None})


def test_the_command_prints_one_course_or_all(tmp_path, capsys):
    assert runner.main(["courses", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{item}  {about['title']}\n" in out for item, about in ITEMS.items())
    assert runner.main(["courses", "B", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "B36  " in out and "C01  " not in out and "\nB: 36 items, " in out
    with pytest.raises(SystemExit):
        runner.main(["courses", "E"])


# ---- in a lesson ----

def test_the_ledger_holds_the_items_of_each_check_and_claim(tmp_path):
    lesson = Lesson("99_test", ["--quick", "--out", str(tmp_path)])
    lesson.check("one", 1, 1, atol=0, source="here", items=("D42", "D43"))
    lesson.claim("two", True, "yes", items=("C33",))
    lesson.claim("three", True, "yes", full_run=True, items=("C34",))
    lesson.check("four", 1, 1, atol=0, source="here")
    rows = read_ledger(tmp_path / "99_test" / "ledger.json")["rows"]
    assert [row["items"] for row in rows] == [["D42", "D43"], ["C33"], ["C34"], []]


@pytest.mark.parametrize("items, words", [
    (("D51", "D52"), "no item 'D52'"), (("D00",), "no item 'D00'"), ("D42", "not the text 'D42'"),
])
def test_a_lesson_refuses_items_that_do_not_exist(tmp_path, items, words):
    lesson = Lesson("99_test", ["--out", str(tmp_path)])
    with pytest.raises(ValueError, match=words):
        lesson.check("one", 1, 1, atol=0, source="here", items=items)
    with pytest.raises(ValueError, match=words):
        lesson.claim("two", True, "yes", items=items)
    assert lesson.rows == []
