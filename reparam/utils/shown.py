"""How results show themselves: one line in a console, a table in a notebook, a dictionary for everything else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from .text import one_line

Facts = Sequence[tuple[str, str]]  # names with texts


class Shown:
    """What results have in common. A dataclass that is one leaves its own `repr` out.

    Two methods are to be written: `as_dict`, and `summary`, which gives a head of a few words and facts.
    """

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        raise NotImplementedError  # each result writes its own

    def summary(self) -> tuple[str, Facts]:
        """What is worth knowing at first sight."""
        raise NotImplementedError  # each result writes its own

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values, as the command line writes them with `--json`."""
        return self.as_dict()

    def __repr__(self) -> str:
        head, facts = self.summary()
        told = ", ".join(f"{name} {text}" for name, text in facts)
        return one_line(f"<{type(self).__name__}: {head}{f'; {told}' if told else ''}>")

    def _repr_html_(self) -> str:
        """A table, for notebooks. Every text is escaped."""
        head, facts = self.summary()
        rows = "".join(f"<tr><th>{_escaped(name)}</th><td>{_escaped(text)}</td></tr>" for name, text in facts)
        return f"<table><caption>{_escaped(f'{type(self).__name__}: {head}')}</caption><tbody>{rows}</tbody></table>"


class Reported(Shown):
    """A result that shows itself as its report does."""

    report: Any  # a `Shown`

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        found: dict[str, Any] = self.report.as_dict()
        return found

    def summary(self) -> tuple[str, Facts]:
        """That of the report."""
        found: tuple[str, Facts] = self.report.summary()
        return found


def counts_told(before: Any, after: Any) -> list[tuple[str, str]]:
    """`nodes 175 -> 122` for every count of two dataclasses of counts; one number where it stayed."""
    found = []
    for name, a in vars(before).items():
        b = getattr(after, name)
        found.append((name, f"{a:,}" if a == b else f"{a:,} -> {b:,}"))
    return found


def _escaped(text: str) -> str:
    return html.escape(one_line(text))
