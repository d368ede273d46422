"""The pages of the site, as the tests read them: their blocks in order, and what the blocks of a page start from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.warm_process import Done, WarmProcess

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
FIRST = DOCS / "first-conversion.md"
PAGES = sorted(p for p in DOCS.rglob("*.md"))

_FENCE = re.compile(r"^```([\w{}]*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"`([\w/.-]+\.\w+)`:$")


@dataclass(frozen=True)
class Block:
    """One fenced block. file: the name under which the sentence before it says to save it, "" to run it."""

    kind: str
    text: str
    file: str


@dataclass(frozen=True)
class Command:
    """One line of a console block, and the exit code that its comment names."""

    words: tuple[str, ...]
    exit: int

    def run(self, warm: WarmProcess) -> Done:
        """In the current folder."""
        program, *rest = self.words
        assert program in ("reparam", "python"), f"a page runs {program}"
        return (
            warm.module("reparam", *rest) if program == "reparam" else warm.script(Path(rest[0]).resolve(), *rest[1:])
        )


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        named = _FILE.search(text[: match.start()].rstrip())
        found.append(Block(match[1], match[2], named[1] if named else ""))
    return found


def commands(block: Block) -> Iterator[Command]:
    """The `$ ` lines of a console block."""
    for line in block.text.splitlines():
        match = re.fullmatch(r"\$ (.*?)(?:\s+# exit (\d+))?", line)
        assert match is not None, f"not a command: {line}"
        yield Command(tuple(shlex.split(match[1])), int(match[2] or 0))


def run_page(page: Path, warm: WarmProcess) -> list[str]:
    """Saves the files of a page and runs its commands and its Python, in the current folder, as they stand.

    What each block of Python printed.
    """
    printed = []
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            done = warm.run(block.text)
            assert done.returncode == 0, f"{page.name}\n{block.text}\n{done.stderr}"
            printed.append(done.stdout)
        elif block.kind == "console":
            for command in commands(block):
                done = command.run(warm)
                assert done.returncode == command.exit, f"{page.name}: {command.words}\n{done.stdout}\n{done.stderr}"
                assert "Traceback" not in done.stderr
    return printed


def prepare(warm: WarmProcess) -> None:
    """What other pages start from, in the current folder: the files of the first conversion, and two arrays."""
    start = blocks(FIRST)
    source = next(b for b in start if b.file == "digits.py")
    Path(source.file).write_text(source.text, encoding="utf-8")
    made = [c for b in start if b.kind == "console" for c in commands(b) if c.words[1] in ("digits.py", "convert")]
    for command in made:
        assert command.run(warm).returncode == 0
    (arrays,) = (b for b in blocks(DOCS / "index.md") if b.kind == "python")
    assert warm.run(arrays.text).returncode == 0


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the hosts of repositories make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#{1,4} (.+)$", text, re.M)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", t).lower() for t in titles]
    return {re.sub(r"[^\w\- ]", "", t).replace(" ", "-") for t in plain}
