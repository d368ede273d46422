"""The page of `bench`: models side by side, how good they are against how long they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reparam.utils import one_line

from .charts import Scattered, scatter_chart
from .parts import Page, Section, Table
from .words import bytes_told, figure, footer_of, shapes_told, share

Row = Mapping[str, Any]
TEXTS = ("model", "run by", "precision", "worst input")  # columns that hold no numbers
TIMES = (
    ("median_ms", "median ms"),
    ("low_ms", "from"),
    ("high_ms", "to"),
    ("host_ms", "host ms"),
    ("device_ms", "device ms"),
    ("throughput", "samples/s"),
    ("speed", "speed"),
)


def bench_page(report: Row) -> Page:
    """The page of a benchmark. report: as its JSON has it.

    `rows` has the times: a row for each model and batch, with `model`, `runtime`, `by`, `batch`, `median_ms` and the
    other keys of `measure.Timing`. `models`, where it is there, has what does not depend on the batch: `model`,
    `precision`, `bytes`, `peak_bytes`, `drop`, `score` (its `name` and `value`, `more` shares by their names, `own` for
    a metric in units of its own) and `agreement` with the first model (`share`, `error`, `worst`: its `input` and
    `error`). `choice` has the `model` that was picked and `why`; `data` the `source` and the number of `samples`.
    """
    choice, machine, data = report.get("choice"), report.get("machine") or {}, report.get("data")
    chosen = choice and choice.get("model")
    facts = [(_titled(one_line(str(key))), one_line(str(v))) for key, v in machine.items() if v is not None]
    if report.get("shapes"):
        facts.append(("Inputs", shapes_told(report["shapes"])))
    if report.get("rounds"):
        facts.append(("Rounds", f"{report['rounds']}, interleaved; times are medians"))
    if data:
        facts = [*_samples(data, report), *facts]
    names = list(dict.fromkeys(str(r["model"]) for r in report["rows"]))
    page = Page(
        title=f"{len(names)} models side by side" if len(names) > 1 else one_line(names[0]),
        verb="bench",
        verdict=f"{one_line(str(chosen))} was picked." if chosen else "None was picked." if choice else "Measured.",
        tone="good" if chosen else "warn" if choice else "plain",
        lead=f"{_titled(one_line(str(choice['why'])))}." if choice else "On the machine that is described below.",
        facts=facts,
        footer=footer_of(report),
    )
    page.sections.append(bench_section(report))
    return page


def _samples(data: Row, report: Row) -> list[tuple[str, str]]:
    """What the figures on samples rest on."""
    first = one_line(str((report.get("models") or report["rows"])[0]["model"]))
    facts = [
        ("Samples", f"{data['samples']:,} of {one_line(str(data['source']))}"),
        ("Labels", one_line(str(data.get("labels") or "none"))),
        ("Images", one_line(str(data.get("images") or ""))),
        ("Drops, decisions and errors", f"against {first}"),
        ("Note", one_line(str(data.get("note") or ""))),
    ]
    return [fact for fact in facts if fact[1]]


def bench_section(report: Row) -> Section:
    """The picture and the table of a benchmark; see `bench_page` for what is read."""
    facts = {f["model"]: f for f in report.get("models") or ()}
    rows = [(facts.get(r["model"], {}), r) for r in report["rows"]]
    measure, chosen = _measure(rows), (report.get("choice") or {}).get("model")
    texts = ["No accuracy was measured, so there is nothing to set the times against."]
    if measure is not None:
        texts = [f"Up is better, left is faster.{' The model with a ring was picked.' if chosen else ''}"]
    points = [
        Scattered(_name(timing, report["rows"]), timing["median_ms"], value, timing["model"] == chosen)
        for row, timing in rows
        if measure is not None and (value := measure.of(row)) is not None and timing["median_ms"] > 0
    ]
    chart = None if measure is None else scatter_chart(points, measure.name, percent=measure.percent)
    first = {timing["model"]: (row, timing) for row, timing in reversed(rows)}  # one row of each model
    tables = [
        _table("How good they are", [_quality(*first[name]) for name in dict.fromkeys(t["model"] for _, t in rows)]),
        _table("How fast they are", [_speed(row, timing) for row, timing in rows]),
    ]
    return Section("benchmark", "Benchmark", texts, chart=chart, tables=[t for t in tables if len(t.head) > 1])


def _table(caption: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Columns that nobody fills are left out."""
    head = tuple(n for n in dict.fromkeys(name for row in rows for name in row) if any(row.get(n) for row in rows))
    body = [tuple(row.get(n, "") for n in head) for row in rows]
    numbers = frozenset(i for i, n in enumerate(head) if n not in TEXTS)
    return Table(caption, head, body, numbers, shown_caption=True)


def _titled(text: str) -> str:
    return text.upper() if text in ("cpu", "gpu", "cuda") else f"{text[:1].upper()}{text[1:]}"


@dataclass(frozen=True)
class _Measure:
    """What the height of a point is. percent: whether it is a share."""

    name: str
    percent: bool
    agreement: bool = False

    def of(self, row: Row) -> float | None:
        found = (row.get("agreement") or {}).get("share") if self.agreement else (row.get("score") or {}).get("value")
        return float(found) if found is not None and _known(found) else None


def _measure(rows: Sequence[tuple[Row, Row]]) -> _Measure | None:
    """The score where there is one, else the share of decisions that are those of the first model."""
    score = next((row["score"] for row, _ in rows if row.get("score")), None)
    if score is not None:
        return _Measure(one_line(str(score["name"])), not score.get("own", False))
    found = _Measure("decisions equal to the first model's", percent=True, agreement=True)
    return found if any(found.of(row) is not None for row, _ in rows) else None


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The model, with its runtime and its batch where one model has several."""
    own = [r for r in rows if r["model"] == row["model"]]
    parts = [str(row["model"])]
    for key, form in (("by", "{}"), ("batch", "batch {}")):
        if len({r.get(key) for r in own}) > 1:
            parts.append(form.format(row.get(key)))
    return one_line(", ".join(parts))


def _quality(row: Row, timing: Row) -> dict[str, str]:
    """The texts of a model's figures that no batch changes, by the names of their columns."""
    score, agreement = row.get("score") or {}, row.get("agreement") or {}
    worst = agreement.get("worst") or {}
    value = score.get("value")
    return {
        "model": one_line(str(timing["model"])),
        "precision": one_line(str(row.get("precision") or "")),
        one_line(str(score.get("name", "score"))): figure(value) if score.get("own") else share(value),
        **{one_line(str(name)): share(more) for name, more in (score.get("more") or {}).items()},
        "drop": figure(row.get("drop")),
        "equal": share(agreement.get("share")),
        "error": share(agreement.get("error")),
        "worst input": one_line(str(worst.get("input", ""))),
        "its error": share(worst.get("error")),
    }


def _speed(row: Row, timing: Row) -> dict[str, str]:
    """The texts of one row of times."""
    return {
        "model": one_line(str(timing["model"])),
        "run by": one_line(str(timing.get("runtime") or "")),
        "batch": str(timing.get("batch", "")),
        **{name: figure(timing.get(key)) for key, name in TIMES},
        "size": bytes_told(row.get("bytes")),
        "memory": bytes_told(row.get("peak_bytes")),
    }
