"""Writes the README's table of rewrites from the docstrings of the passes: `make docs`.

A docstring says "Turns A into B." in its second paragraph; a pass that does not is left out of the table.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from reparam.passes import EXPORT, PLAIN, all_passes

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- rewrites: made by `make docs` from the docstrings of passes/ -->", "<!-- end of rewrites -->"
_TURNS = re.compile(r"Turns (.+) into (.+)\.")


def rows() -> dict[str, str]:
    """The table's row of each pass, by the name of its rule, in the order in which they run."""
    found = {}
    for phase, modules in all_passes().items():
        for module in modules:
            paragraphs = (inspect.getdoc(module) or "").split("\n\n")
            turns = _TURNS.fullmatch(" ".join(paragraphs[1].split())) if len(paragraphs) > 1 else None
            if turns is not None:
                before, after = turns.groups()
                found[module.PASS.name] = f"| {module.PASS.name} | {_where(phase)}{before} | {after} |"
    return found


def _where(phase: str) -> str:
    if phase in PLAIN:
        return "(`--to plain` only) "
    return "(`export --precision int8 --equalize` only) " if phase in EXPORT else ""


def table() -> str:
    """The whole table."""
    return "\n".join(["| rewrite | turns | into |", "|---|---|---|", *rows().values()])


def main() -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{START}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
