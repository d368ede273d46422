"""What an analysis gives: tables with a row for each place in the network, figures by depth, maps, facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reparam.utils import Facts, Shown

Cell = str | int | float | None
UNDEFINED = "a division by zero, as of values that are all zero, or what lies beyond the numbers of float64"


@dataclass(frozen=True)
class Table:
    """One analysis. what: its name. title: one sentence. columns: names; the first column is a place in the network.

    series: numbers by depth, which can be drawn as lines, NaN where there is none. log: whether their size matters in
    powers of ten. maps: rows of numbers that can be drawn as pictures. facts: single figures. detail: more of it, for
    JSON alone. notes: what the reader should know. A cell or a figure is None where there is no finite number.
    """

    what: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    log: bool = False
    maps: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    facts: Mapping[str, Cell] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "series": {name: list(values) for name, values in self.series.items()},
            "maps": {name: [list(row) for row in rows] for name, rows in self.maps.items()},
            "facts": dict(self.facts),
            "detail": dict(self.detail),
            "notes": list(self.notes),
        }

    def finite(self) -> Table:
        """The same with None in place of numbers that are not finite, NaN in series, and a note that tells of them."""
        missing = sum(_broken(cell) for row in self.rows for cell in row)
        rows = tuple(tuple(None if _broken(cell) else cell for cell in row) for row in self.rows)
        series = {
            name: tuple(v if math.isfinite(v) else math.nan for v in values) for name, values in self.series.items()
        }
        facts = {name: None if _broken(value) else value for name, value in self.facts.items()}
        lost = sum(v is None and self.facts[n] is not None for n, v in facts.items())
        count = missing + lost
        note = f"{count} figure{' has' if count == 1 else 's have'} no finite value: {UNDEFINED}"
        notes = (*self.notes, note) if count else self.notes
        return replace(self, rows=rows, series=series, facts=facts, detail=_without(self.detail), notes=notes)

    def column(self, name: str) -> list[Any]:
        """The entries of a column."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


@dataclass(frozen=True, repr=False)
class Analysis(Shown):
    """What `analyze` found. tables: one for each of `what`. refused: analyses that do not fit the network, and why."""

    tables: tuple[Table, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, what: str) -> Table:
        """The table of one analysis. Raises KeyError for one that was not asked for, or was refused."""
        for table in self.tables:
            if table.what == what:
                return table
        raise KeyError(what)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            **{table.what: table.as_dict() for table in self.tables},
            "refused": dict(self.refused),
            "notes": list(self.notes),
        }

    def summary(self) -> tuple[str, Facts]:
        """What was analysed; the facts of each table, and what does not fit the network."""
        facts = [(t.title, "; ".join(f"{k} {_cell(v)}" for k, v in t.facts.items())) for t in self.tables]
        return ", ".join(t.what for t in self.tables), [*facts, *self.refused.items()]


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _without(tree: Any) -> Any:
    """Details with None in place of numbers that are not finite."""
    if isinstance(tree, Mapping):
        return {name: _without(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without(value) for value in tree]
    return None if _broken(tree) else tree


def _cell(value: Cell) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def ratio(a: float, b: float) -> float:
    """a/b; infinite or NaN where b is zero."""
    if b:
        return a / b
    return math.nan if not a else math.inf
