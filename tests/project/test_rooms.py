"""The house: a handful of modules at the root, rooms with doors, and nobody who climbs in through a window."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = ROOT / "reparam"
ROOMS = sorted(
    str(p.parent.relative_to(LIBRARY)).replace("/", ".")
    for p in LIBRARY.rglob("__init__.py")
    if p.parent != LIBRARY and not {"passes", "models"} & set(p.relative_to(LIBRARY).parts)
)
MOST_LINES = 400


def sources() -> Iterator[tuple[str, Path]]:
    """Every module by its dotted name below reparam, those of passes/ and models/ included."""
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if parts[0] not in ("passes", "models"):
            yield ".".join(parts), path
    for folder in ("passes", "models"):
        for path in sorted((ROOT / folder).glob("*.py")):
            yield f"{folder}.{path.stem}", path


def room_of(module: str) -> str:
    """The innermost room that a module lies in; "" for a module at the root."""
    return next((r for r in sorted(ROOMS, key=len, reverse=True) if module.startswith(f"{r}.")), "")


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports from reparam by absolute names, wherever in it, below reparam."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("reparam."):
            yield str(node.module).removeprefix("reparam.")
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("reparam.") for a in node.names if a.name.startswith("reparam."))


def test_few_modules_stand_at_the_root() -> None:
    assert len(list(LIBRARY.glob("*.py"))) <= 10


def test_rooms_are_entered_through_their_doors() -> None:
    through_windows = []
    for module, path in sources():
        own = room_of(module)
        for target in imported(ast.parse(path.read_text())):
            room = "" if target in ROOMS else room_of(target)  # "" also for modules at the root
            at_home = own == room or own.startswith(f"{room}.")
            slow = target == "utils.torchvision_ops"  # it imports torch, which no door of utils does
            if room and not at_home and not slow:
                through_windows.append(f"{module} imports {target}")
    assert not through_windows


def test_modules_of_one_room_import_each_other_relatively() -> None:
    for module, path in sources():
        own = room_of(module)
        inside = [t for t in imported(ast.parse(path.read_text())) if own and room_of(t) == own]
        assert not inside, f"{module} names its own room: {inside}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_in_two_sentences_and_lists_its_doors(room: str) -> None:
    package = importlib.import_module(f"reparam.{room}")
    sentences = re.split(r"(?<=[.])\s+(?=[A-Z])", (package.__doc__ or "").partition("\n\n")[0].strip())
    assert 1 <= len(sentences) <= 2 and sentences[0].endswith(".")
    doors = getattr(package, "__all__", [n for n in vars(package) if not n.startswith("_")])
    assert doors and all(hasattr(package, name) for name in doors)


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    folders = ("tests", "benchmarks", "docs", "examples")
    beside = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    files = [path for _, path in sources()] + beside
    assert not [f"{p.relative_to(ROOT)}" for p in files if len(p.read_text().splitlines()) > MOST_LINES]


def test_the_first_line_of_an_error_is_taken_in_one_way() -> None:
    """By `first_line`, which errors without a message do not break."""
    own_way = re.compile(r"str\(e(?:rr|rror)?\)\.(?:splitlines\(\)|split\(\S*\))\[0\]")
    assert not [module for module, path in sources() if own_way.search(path.read_text())]


def test_imports_in_functions_are_of_what_is_slow_or_optional() -> None:
    """Rooms that import torch or an optional package may be imported late; the light ones may not."""
    light = ("utils", "errors", "options", "ir.refusal", "ir.scratchpad")
    late = []
    for module, path in sources():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                late += [f"{module}: {t}" for t in imported(function) if t in light]
    assert not late


def test_the_architecture_page_names_every_module_and_none_that_is_not_there() -> None:
    """But for passes, architectures and formats, which are one file each: of those it names the folder."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("| `"))
    named = re.findall(r"`([\w/]+\.py)`", rows)
    named += re.findall(r"^`(conversion\.py)` holds", text, re.MULTILINE)
    folders = ("passes.", "models.", "engines.formats.")
    there = {str(p.relative_to(LIBRARY)) for m, p in sources() if not m.startswith(folders)}
    modules = {m for m in there if not m.endswith("__init__.py")}
    assert sorted(named) == sorted(modules), "each module once"


def held_order() -> list[frozenset[str]]:
    """The rooms from top to bottom, as the linter holds them."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    return [frozenset(re.split(r" [:|] ", layer)) - {"_version"} for layer in contract]


def test_the_architecture_page_gives_the_order_that_the_linter_holds() -> None:
    page = re.search(r"^    (cli > [^\n]*\n        > [^\n]*)$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    assert page is not None
    written = [frozenset(re.split(r", ", layer)) for layer in " ".join(page[1].split()).split(" > ")]
    assert written == held_order()


def test_the_table_of_rooms_in_contributing_lists_each_once_from_top_to_bottom() -> None:
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text().partition("## The rooms")[2], re.M)
    written = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    level = {name: i for i, names in enumerate(held_order()) for name in names}
    assert sorted(written) == sorted(level)
    assert [level[name] for name in written] == sorted(level.values())
