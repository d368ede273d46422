"""The page of `analyze`: what values and gradients do by depth, of one model or of two side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reparam.signal import Analysis
from reparam.signal import Table as Found
from reparam.utils import one_line

from .charts import Chart, depth_chart
from .parts import Page, Section, Table
from .words import figure, footer_of

FORMS = ("before", "after")  # of the first model's lines and of the second's


def analysis_page(report: Mapping[str, Any], found: Mapping[str, Analysis]) -> Page:
    """The page of one or two analyses. report: as its JSON has it. found: by the names of the models, in order."""
    names = [one_line(name) for name in found]
    kinds = list(dict.fromkeys(table.what for analysis in found.values() for table in analysis.tables))
    page = Page(
        title=names[0],
        verb="analyze",
        verdict="Measured.",
        into=names[1] if len(names) > 1 else "",
        between="\N{RIGHTWARDS ARROW}" if len(names) < 2 else "|",
        relation="stands beside",
        lead="Nothing was changed.",
        footer=footer_of(report),
    )
    for name, analysis in found.items():
        head = f"{one_line(name)}: " if len(found) > 1 else ""
        page.facts += [(f"{head}{what} was left out", one_line(why)) for what, why in analysis.refused.items()]
        page.facts += [(f"{head}note", one_line(text)) for text in analysis.notes]
    page.sections = [
        _section(what, {n: t for n, a in found.items() for t in a.tables if t.what == what}) for what in kinds
    ]
    return page


def _section(what: str, tables: Mapping[str, Found]) -> Section:
    """One analysis: what it is, a picture of each series, figures and rows."""
    several = len(tables) > 1
    texts = [f"{_titled(next(iter(tables.values())).title)}."]
    for name, table in tables.items():
        told = [f"{one_line(k)} {_cell_text(v)}" for k, v in table.facts.items()] + [
            one_line(note) for note in table.notes
        ]
        if told:
            texts.append(f"{one_line(name)}: {'; '.join(told)}." if several else f"{_titled('; '.join(told))}.")
    listed = [_table(one_line(name) if several else what, table) for name, table in tables.items() if table.rows]
    return Section(f"analysis-{what}", _titled(what), texts, charts=_charts(what, tables), tables=listed)


def _charts(what: str, tables: Mapping[str, Found]) -> list[Chart]:
    """A picture of each series, with a line of each model."""
    drawn = []
    for series in dict.fromkeys(name for table in tables.values() for name in table.series):
        lines = [(one_line(name), table.series[series]) for name, table in tables.items() if series in table.series]
        forms = FORMS[-len(lines) :]
        log = any(table.log for table in tables.values())
        drawn.append(
            depth_chart(f"{what}: {series}", series, [(*x, f) for x, f in zip(lines, forms, strict=True)], log=log)
        )
    return [chart for chart in drawn if chart is not None]


def _table(caption: str, found: Found) -> Table:
    numbers = frozenset(i for i in range(1, len(found.columns)) if any(_is_number(row[i]) for row in found.rows))
    rows: Sequence[Sequence[str]] = [[_cell_text(cell) for cell in row] for row in found.rows]
    return Table(caption, tuple(found.columns), rows, numbers, shown_caption=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_text(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "not a number"
    return figure(value) if isinstance(value, float) else "" if value is None else one_line(str(value))


def _titled(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
