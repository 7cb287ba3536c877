"""The house's own rules: lines of 100 columns, imports that only point down, short functions.

Each rule is a function from source text to the places that break it, tested on small strings first
and then applied to the project.
"""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["minigpt", "lessons", "tests"]
COLUMNS, LINES, DEPTH = 100, 60, 4

# A module may import from its own floor and from those before it.
FLOORS = [
    {"files", "command_line"}, {"text", "plotting"}, {"worlds"}, {"models"},
    {"training", "generation", "pretrained"}, {"adaptation"}, {"alignment"},
    {"run_folder", "commands", "__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def sources(folder: str) -> dict[str, str]:
    """Path -> text of every Python file in a folder of the project."""
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted((ROOT / folder).rglob("*.py"))}


# ---- width ----

def too_wide(text: str) -> list[int]:
    """The numbers of the lines that have more than 100 characters."""
    return [number for number, line in enumerate(text.splitlines(), 1) if len(line) > COLUMNS]


def test_too_wide_counts_characters():
    assert too_wide("x" * 100 + "\n" + "y" * 101 + "\nz") == [2]
    assert too_wide("é" * 100) == []                                    # 200 bytes, 100 columns
    assert too_wide("") == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_lines_have_at_most_100_columns(folder):
    found = {path: lines for path, text in sources(folder).items() if (lines := too_wide(text))}
    assert not found


def test_a_lesson_has_at_most_800_lines():
    lines = {path: text.count("\n") for path, text in sources("lessons").items()}
    assert {path: n for path, n in lines.items() if n > 800} == {}


# ---- imports ----

def imported(module: str, text: str, modules: set[str]) -> set[str]:
    """The names that a module imports, also inside functions; in full, as "minigpt.text.spans"."""
    package, found = module.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[:len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:    # `from minigpt import plotting` imports a module
                name = f"{base}.{alias.name}"
                found.add(name if name in modules else base)
    return found


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """module -> the modules of the project that it imports, from path -> text."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
             for path in texts}
    return {name: imported(name, texts[path], set(names)) for name, path in names.items()}


def wrong_imports(imports: dict[str, set[str]]) -> list[str]:
    """The imports of `minigpt` that point up, leave the library, or reach a room that is closed."""
    found = []
    for module, names in imports.items():
        room = (module.split(".") + [""])[1]
        for name in sorted(names):
            there, *rest = name.split(".")
            target = rest[0] if rest else ""
            if there in ("lessons", "tests", "course"):
                found.append(f"{module} imports {name}")
            elif there != "minigpt" or not room:
                continue
            elif room not in FLOOR or target not in FLOOR:
                found.append(f"{module} imports {name}, which has no floor")
            elif FLOOR[target] > FLOOR[room]:
                found.append(f"{module} imports {name}, which is above it")
            elif room == "worlds" and target not in ("files", "text", "worlds"):
                found.append(f"{module} imports {name}; a world knows only files and text")
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The circles of imports, each once, as the modules on the way."""
    found, done = [], set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append(way[way.index(module):])
        elif module not in done:
            for name in sorted(imports.get(module, ())):
                walk(name, [*way, module])
            done.add(module)

    for module in imports:
        walk(module, [])
    return found


def project(**texts: str) -> dict[str, set[str]]:
    """The imports of a small project: text__spans="…" is minigpt/text/spans.py."""
    paths = {f"minigpt/{name.replace('__', '/')}.py": text for name, text in texts.items()}
    return graph({"minigpt/__init__.py": "", **paths})


@pytest.mark.parametrize("texts, words", [
    ({"text__spans": "from minigpt.models.gpt import GPT"}, "above it"),
    ({"text__spans": "import minigpt.models.gpt"}, "above it"),
    ({"files": "def late():\n    from minigpt import plotting", "plotting": ""}, "above it"),
    ({"models__gpt": "from ..training import loop", "training__loop": ""}, "above it"),
    ({"models__gpt": "from ..training.loop import train"}, "above it"),
    ({"models__gpt": "from lessons.course import Lesson"}, "imports lessons.course"),
    ({"generation": "import tests.conftest"}, "imports tests.conftest"),
    ({"worlds__digits": "from minigpt.plotting import figure"}, "a world knows only"),
    ({"worlds__digits": "from minigpt.models.gpt import GPT"}, "above it"),
    ({"attic": "import minigpt.files"}, "no floor"),
])
def test_wrong_imports_finds_planted_ones(texts, words):
    found = wrong_imports(project(**texts))
    assert len(found) == 1 and words in found[0], found


def test_wrong_imports_accepts_imports_that_point_down():
    assert wrong_imports(project(
        files="import os", text__spans="import torch\nfrom minigpt.files import read_text",
        worlds__digits="import matplotlib\nfrom minigpt.text.spans import x",
        models__gpt="from minigpt.models.attention import y", models__attention="",
        training__loop="from .losses import z", training__losses="",
        alignment__ppo="from minigpt.generation import g", generation="from minigpt import files",
    )) == []


def test_circles_finds_planted_ones():
    assert circles(project(a="from minigpt import b", b="from minigpt.c import x",
                           c="def f():\n    import minigpt.a")) == [
        ["minigpt.a", "minigpt.b", "minigpt.c"]]
    assert circles(project(a="from minigpt import b, c", b="import minigpt.c", c="")) == []
    assert circles(project(a="import minigpt.a")) == [["minigpt.a"]]


def test_imports_only_point_down_and_never_in_a_circle():
    imports = graph(sources("minigpt"))
    assert len(imports) > 30 and not wrong_imports(imports) and not circles(imports)


# ---- functions ----

BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match,
          ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def depth(node: ast.AST, inside: int = 0) -> int:
    """How many blocks stand one inside another below a node. `elif` is as deep as its `if`."""
    deepest = inside
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            is_elif = (isinstance(node, ast.If) and name == "orelse" and len(node.orelse) == 1
                       and isinstance(child, ast.If))
            deeper = isinstance(child, BLOCKS) and not is_elif
            deepest = max(deepest, depth(child, inside + deeper))
    return deepest


def too_large(text: str) -> list[str]:
    """The functions that are longer than 60 lines or nested deeper than 4 blocks."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > LINES:
                found.append(f"{node.name} has {lines} lines")
            if depth(node) > DEPTH:
                found.append(f"{node.name} is {depth(node)} blocks deep")
    return found


def test_too_large_counts_lines_and_blocks():
    assert too_large("def f():\n" + "    x = 1\n" * 59) == []
    assert too_large("def f():\n" + "    x = 1\n" * 60) == ["f has 61 lines"]
    assert too_large("class A:\n    def f(self):\n" + "        x = 1\n" * 60) == ["f has 61 lines"]

    def nested(*lines: str) -> str:
        return "\n".join("    " * i + line for i, line in enumerate(lines))

    four = ("def f():", "for a in b:", "while a:", "with a:", "if a:")
    assert too_large(nested(*four, "pass")) == []
    assert too_large(nested(*four, "try:", "pass") + "\n" + "    " * 5 + "finally:\n"
                     + "    " * 6 + "pass") == ["f is 5 blocks deep"]
    chain = "def f(a):\n    if a == 0:\n        pass\n" + "".join(
        f"    elif a == {i}:\n        pass\n" for i in range(1, 9))
    assert too_large(chain) == []


def test_functions_fit_a_screen():
    found = {path: places for path, text in sources("minigpt").items()
             if (places := too_large(text))}
    assert not found


# ---- lessons ----

def test_every_lesson_takes_its_helper_from_the_file_beside_it():
    """So it also runs in a clone that was never installed."""
    lessons = {path: text for path, text in sources("lessons").items() if path[8].isdigit()}
    assert len(lessons) >= 19
    for path, text in lessons.items():
        assert "\nfrom course import Lesson\n" in text, path
        assert "set_num_threads" not in text, path


def test_every_package_is_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in (ROOT / "minigpt").rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        assert f'"{name}"' in text, name
