"""The page of `bench`: models against each other, accuracy against latency where accuracy is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reparam.utils import one_line

from .charts import Scattered, scatter_chart
from .parts import Page, Section, Table
from .words import count, figure, footer_of, share

Row = Mapping[str, Any]
MEASURES = (  # what the height of a point may be, the first that all rows have
    ("accuracy", "accuracy"),
    ("top1", "top-1 accuracy"),
    ("miou", "mean IoU"),
    ("agreement", "agreement with the first model"),
)
COLUMNS = (  # keys of a row, what they are called, and how they are written
    ("batch", "batch", "whole"),
    ("median_ms", "median ms", "figure"),
    ("low_ms", "from", "figure"),
    ("high_ms", "to", "figure"),
    ("host_ms", "host ms", "figure"),
    ("device_ms", "device ms", "figure"),
    ("throughput", "samples/s", "figure"),
    ("speed", "speed", "figure"),
    ("accuracy", "accuracy", "share"),
    ("top1", "top-1", "share"),
    ("top5", "top-5", "share"),
    ("miou", "mean IoU", "share"),
    ("metric", "metric", "figure"),
    ("agreement", "agreement", "share"),
    ("worst", "worst input", "figure"),
    ("size", "bytes", "count"),
    ("memory", "peak bytes", "count"),
)


def bench_page(report: Mapping[str, Any]) -> Page:
    """The page of a benchmark. report: as its JSON has it.

    Needed are the keys `reparam` and `rows`, and of each row `model` and `median_ms`. Of a row every key of COLUMNS
    that it has is shown; accuracies and agreements are shares, sizes bytes. `chosen`: the name of the model that was
    picked, `reason`: why. `machine` and `rounds` are told where they are there.
    """
    rows: Sequence[Row] = report["rows"]
    chosen, machine = report.get("chosen"), report.get("machine") or {}
    facts = [(str(k).capitalize(), one_line(str(v))) for k, v in machine.items() if v is not None]
    if report.get("rounds"):
        facts.append(("Rounds", f"{report['rounds']}, interleaved; figures are medians"))
    page = Page(
        title=f"{len({r['model'] for r in rows})} models side by side",
        verb="bench",
        verdict=f"{one_line(str(chosen))} was picked." if chosen else "Measured on this machine.",
        tone="good" if chosen else "plain",
        lead=one_line(str(report.get("reason") or "")),
        facts=facts,
        footer=footer_of(report),
    )
    page.sections.append(bench_section(rows, chosen=chosen))
    return page


def bench_section(rows: Sequence[Row], *, chosen: str | None = None) -> Section:
    """The picture and the table of a benchmark's rows; see `bench_page` for their keys."""
    measure = next(((k, name) for k, name in MEASURES if rows and all(_known(r.get(k)) for r in rows)), None)
    timed = [r for r in rows if _known(r.get("median_ms")) and r["median_ms"] > 0]
    key, what = measure or ("", "")
    points = [
        Scattered(_name(r, rows), float(r["median_ms"]), float(r[key]), r["model"] == chosen)
        for r in (timed if measure else ())
    ]
    texts = [] if measure else ["No accuracy was measured, so there is nothing to set the latencies against."]
    shown = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in rows)]
    runtime = any(r.get("runtime") for r in rows)
    head = ("model", *(("run by",) if runtime else ()), *(name for _, name, _ in shown))
    body = [
        (
            one_line(str(r["model"])),
            *((one_line(str(r.get("runtime") or "")),) if runtime else ()),
            *(_written(r.get(key), how) for key, _, how in shown),
        )
        for r in rows
    ]
    table = Table("All that was measured", head, body, frozenset(range(1 + runtime, len(head))))
    chart = scatter_chart(points, what)
    return Section("benchmark", "Benchmark", texts, chart=chart, tables=[table])


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The model, with its runtime and batch where they differ among the rows."""
    parts = [str(row["model"])]
    for key, form in (("by", "{}"), ("batch", "batch {}")):
        if len({r.get(key) for r in rows}) > 1:
            parts.append(form.format(row.get(key)))
    return one_line(", ".join(parts))


def _written(value: Any, how: str) -> str:
    if not _known(value):
        return "" if value is None else one_line(str(value))
    if how == "share":
        return share(float(value))
    return figure(float(value)) if how == "figure" else count(int(value))
