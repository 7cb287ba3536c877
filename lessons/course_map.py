"""The course map: which check, claim or section of a lesson settles each item of the four courses.

    lesson.check(…, items=("D42", "D43"))       a check or a claim that settles two items
    # Items: C33, C34                           the last line of a markdown cell that treats two

The map is read from the lessons' scripts without running them. What a check or claim found is read
from the ledger of the last run. `courses.toml` lists the items.
"""
import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lessons.course import read_items

NEED_A_NUMBER = {"equation", "derivation", "algorithm", "numbers", "example"}
ITEMS_LINE = re.compile(r"# Items: (.*)")
MARK = {"check": "✓", "claim": "★", "section": "§"}


class Place(NamedTuple):
    """Where a lesson settles an item."""

    item: str
    lesson: str                         # "06"
    kind: str                           # check, claim or section
    name: str                           # a section's heading; "…" stands for what a run fills in


# ---- reading the scripts ----

def places_in(script: Path) -> list[Place]:
    """What a lesson's script settles, from its first line to its last.

    ValueError for items that cannot be read without a run, and for an items line out of its place.
    """
    text, number = script.read_text(encoding="utf-8"), script.name[:2]
    found = numbers_in(text, script.name) + sections_in(text, script.name)
    return [Place(item, number, kind, name)
            for _, kind, name, items in sorted(found) for item in items]


def numbers_in(text: str, script: str) -> list[tuple[int, str, str, tuple[str, ...]]]:
    """(line, kind, name, items) of each `lesson.check` and `lesson.claim` with `items=`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("check", "claim")):
            continue
        for keyword in node.keywords:
            if keyword.arg == "items":
                items = literal_items(keyword.value, f"{script}, line {node.lineno}")
                found.append((node.lineno, node.func.attr, name_of(node.args[0]), items))
    return found


def literal_items(node: ast.expr, where: str) -> tuple[str, ...]:
    try:
        items = ast.literal_eval(node)
    except ValueError:
        items = None
    if not isinstance(items, tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{where}: write items as a tuple of texts, such as items=(\"D42\",)")
    return items


def name_of(node: ast.expr) -> str:
    """The name of a check as it stands in the script, with … for what is known in a run only.

    >>> name_of(ast.parse("f'{n} layers'", mode="eval").body)
    '… layers'
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(name_of(part) for part in node.values)
    return "…"


def sections_in(text: str, script: str) -> list[tuple[int, str, str, tuple[str, ...]]]:
    """(line, "section", heading, items) of each line `# Items: …`."""
    found, heading, in_markdown = [], "", False
    lines = text.splitlines() + [""]
    for number, line in enumerate(lines[:-1], 1):
        if line.startswith("# %%"):
            in_markdown = "[markdown]" in line
        elif in_markdown and line.startswith("# ## "):
            heading = line.removeprefix("# ## ")
        elif match := ITEMS_LINE.fullmatch(line):
            after = lines[number]
            if not in_markdown or (after.startswith("#") and not after.startswith("# %%")):
                raise ValueError(f"{script}, line {number}: “# Items:” is the last line of a "
                                 "markdown cell")
            found.append((number, "section", heading, tuple(match[1].split(", "))))
    return found


# ---- judging ----

def unknown(places: Iterable[Place], items: dict[str, dict]) -> list[str]:
    """The ids that lessons name and `courses.toml` does not have."""
    return sorted({place.item for place in places} - items.keys())


def settling(item: str, about: dict, places: Iterable[Place]) -> list[Place]:
    """The places that count: in one of the item's lessons, with a number where one is needed."""
    return [place for place in places if place.item == item and place.lesson in about["lessons"]
            and (place.kind != "section" or about["kind"] not in NEED_A_NUMBER)]


def state_of(item: str, about: dict, places: Iterable[Place], lessons: set[str]) -> str:
    """settled, missing, or to come: none of the item's lessons exists yet."""
    if settling(item, about, places):
        return "settled"
    return "missing" if lessons & set(about["lessons"]) else "to come"


def result(place: Place, ledger: dict | None) -> str:
    """What the last run found at this place: held, FAILED, not run, or needs the full run."""
    pattern = ".*".join(map(re.escape, place.name.split("…")))
    held = [row["held"] for row in (ledger or {"rows": []})["rows"]
            if place.item in row.get("items", []) and row["kind"] == place.kind
            and re.fullmatch(pattern, row["name"], re.DOTALL)]
    if False in held:
        return "FAILED"
    if not held:
        return "not run"
    return "needs the full run" if None in held else "held"


# ---- printing ----

def report(course: str | None, ledgers: dict[Path, dict | None]) -> None:
    """Prints one course or all four, item by item; `ledgers` has one entry per lesson's script."""
    items = read_items()
    places = [place for script in ledgers for place in places_in(script)]
    if unknown(places, items):
        raise ValueError(f"courses.toml has no item {unknown(places, items)[0]!r}; "
                         "correct the lesson that names it")
    by_number = {script.name[:2]: ledger for script, ledger in ledgers.items()}
    for letter in course or "ABCD":
        print(f"\nCourse {letter}")
        chosen = {item: about for item, about in items.items() if item[0] == letter}
        for item, about in chosen.items():
            print(f"\n{item}  {about['title']}")
            for line in lines_about(item, about, places, by_number):
                print(f"     {line}")
        states = [state_of(item, about, places, set(by_number)) for item, about in chosen.items()]
        print(f"\n{letter}: {len(chosen)} items, " + ", ".join(
            f"{states.count(state)} {state}" for state in ("settled", "missing", "to come")))


def lines_about(
    item: str, about: dict, places: list[Place], ledgers: dict[str, dict | None],
) -> list[str]:
    """Where an item is settled and with what result; what is missing; which lessons are to come."""
    lines = []
    for place in places:
        if place.item == item:
            found = "" if place.kind == "section" else result(place, ledgers[place.lesson])
            lines.append(f"lesson {place.lesson}  {MARK[place.kind]} {found:<19}{place.name}")
    if state_of(item, about, places, set(ledgers)) == "missing":
        here = " or ".join(number for number in about["lessons"] if number in ledgers)
        need = "a check or claim" if about["kind"] in NEED_A_NUMBER else "a check, claim or section"
        lines.append(f"lesson {here}: {need} is missing ({about['kind']})")
    return lines + [f"lesson {number}, to come" for number in about["lessons"]
                    if number not in ledgers]
