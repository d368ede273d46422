"""What `bench` found, as one table: for people, for notebooks, for JSON and for CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reparam.scoring import Agreement, Score
from reparam.utils import one_line, three_digits

from .choice import IN_POINTS, Choice
from .latency import BenchResult, Timing

WIDEST = 44  # characters of the name of an input in the table
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    precision: of its weights. bytes: of its files. peak: bytes of memory that it takes at most, None where that was not
    measured. score, agreement: on the samples, None without any. drop: points by which it is worse than the first
    model in the figure that `BenchTable.figure` names.
    """

    model: str
    precision: str
    bytes: int
    peak: int | None = None
    score: Score | None = None
    agreement: Agreement | None = None
    drop: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "model": self.model,
            "precision": self.precision,
            "bytes": self.bytes,
            "peak_bytes": self.peak,
            "score": None if self.score is None else self.score.as_dict(),
            "agreement": None if self.agreement is None else self.agreement.as_dict(),
            "drop": self.drop,
        }


@dataclass(frozen=True)
class DataFacts:
    """The samples: where they came from, how many, which labels they had, and what the user should know of them.

    images: how they went in, and who says so; "" for others.
    """

    source: str
    samples: int
    labels: str = ""
    note: str = ""
    images: str = ""


@dataclass(frozen=True, repr=False)
class BenchTable:
    """All models side by side; the first is what the others are compared with.

    timing: their times at every batch. data: None where there were no samples. figure: what drops are of. choice: None
    where none was asked for.
    """

    models: tuple[ModelFacts, ...]
    timing: BenchResult
    data: DataFacts | None = None
    figure: str = ""
    choice: Choice | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return self.timing.as_dict() | {
            "models": [m.as_dict() for m in self.models],
            "data": None if self.data is None else dict(vars(self.data)),
            "figure": self.figure,
            "choice": None if self.choice is None else self.choice.as_dict(),
        }

    def to_csv(self) -> str:
        """The same as CSV: a row for each model and batch."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(_flat(self.models[0], self.timing.rows[0])), lineterminator="\n")
        writer.writeheader()
        facts = {m.model: m for m in self.models}
        writer.writerows(_flat(facts[r.model], r) for r in self.timing.rows)
        return file.getvalue()

    def __repr__(self) -> str:
        columns, rows = cells(self.to_dict())
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in [columns, *rows]
        ]
        return "\n".join([*lines, *sentences(self.to_dict())])

    def _repr_html_(self) -> str:
        columns, rows = cells(self.to_dict())
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        told = "".join(f"<p>{html.escape(text)}</p>" for text in sentences(self.to_dict()))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{told}"


def _flat(facts: ModelFacts, timing: Timing) -> dict[str, Any]:
    """One row of the CSV."""
    score, agreement = facts.score, facts.agreement
    worst = None if agreement is None else agreement.worst
    more = {} if score is None else {n.replace("-", "").replace(" ", "_"): v for n, v in score.more.items()}
    return {
        "model": facts.model,
        "precision": facts.precision,
        "runtime": timing.runtime,
        "batch": timing.batch,
        "metric": "" if score is None else score.name,
        "score": "" if score is None else score.value,
        **more,
        "drop": _blank(facts.drop),
        "agreement": "" if agreement is None else _blank(agreement.share),
        "error": "" if agreement is None else agreement.error,
        "worst_input": "" if worst is None else worst.input,
        "worst_error": "" if worst is None else worst.error,
        "median_ms": timing.median_ms,
        "low_ms": timing.low_ms,
        "high_ms": timing.high_ms,
        "throughput": timing.throughput,
        "speed": timing.speed,
        "bytes": facts.bytes,
        "peak_bytes": _blank(facts.peak),
    }


def _blank(value: Any) -> Any:
    return "" if value is None else value


# ---- for people --------------------------------------------------------------------------------------------------

Row = Mapping[str, Any]


def cells(report: Row) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the texts of the rows, from the JSON form, without columns that nobody fills."""
    facts = {m["model"]: m for m in report["models"]}
    first_batch = report["rows"][0]["batch"]
    named = [_cells(facts[r["model"]], r, again=r["batch"] != first_batch) for r in report["rows"]]
    many = len({r["batch"] for r in report["rows"]}) > 1
    hidden = {"run by"} if report["data"] is not None else set()
    kept = [n for n in named[0] if n not in hidden and any(row[n] for row in named) and (many or n != "batch")]
    return kept, [[row[n] for n in kept] for row in named]


def _cells(facts: Row, timing: Row, *, again: bool) -> dict[str, str]:
    """again: whether what does not depend on the batch stands in a row above already."""
    score, agreement = facts["score"] or {}, facts["agreement"] or {}
    worst = agreement.get("worst")
    input, apart = ("", "") if worst is None else (_short(worst["input"]), f"{100 * worst['error']:.3g}")
    own = score.get("own", False)
    name = f"{score.get('name', 'score')}{'' if own else ' %'}"
    quality = {
        "precision": facts["precision"],
        name: "" if not score else f"{score['value']:.4g}" if own else _percent(score["value"]),
        **{f"{n} %": _percent(value) for n, value in score.get("more", {}).items()},
        "drop": "" if facts["drop"] is None else f"{facts['drop']:.3g}",
        "equal %": "" if agreement.get("share") is None else _percent(agreement["share"]),
        "error %": "" if not agreement else f"{100 * agreement['error']:.3g}",
        "worst input": input,
        "its %": apart,
    }
    size = {
        "size": _bytes(facts["bytes"]) if facts["bytes"] else "",
        "memory": "" if facts["peak_bytes"] is None else _bytes(facts["peak_bytes"]),
    }
    hidden = dict.fromkeys((*quality, *size), "") if again else {}
    parts = timing["host_ms"], timing["device_ms"]
    host, device = ("" if v is None else three_digits(v) for v in parts)
    return {
        "model": one_line(timing["model"]),
        "run by": one_line(timing["runtime"]),
        **{k: hidden.get(k, v) for k, v in quality.items()},
        "batch": str(timing["batch"]),
        "median ms": three_digits(timing["median_ms"]),
        "middle half": f"{three_digits(timing['low_ms'])}-{three_digits(timing['high_ms'])}",
        "host ms": host,
        "device ms": device,
        "samples/s": _rate(timing["throughput"]),
        "speed": f"{timing['speed']:.2f}",
        **{k: hidden.get(k, v) for k, v in size.items()},
    }


def sentences(report: Row) -> list[str]:
    """What stands below the table: the samples, how times were taken, and the choice."""
    found = []
    if report["data"] is not None:
        data = report["data"]
        labels = f", labels: {data['labels']}" if data["labels"] else ", without labels"
        first = one_line(report["models"][0]["model"])
        found.append(f"{data['samples']} samples of {one_line(data['source'])}{labels}")
        if data.get("images"):
            found.append(f"images {data['images']}")
        own = report["figure"] not in (*IN_POINTS, "")
        units = f"in units of {one_line(report['figure'])}" if own else "in points"
        found.append(f"drops ({units}), equal decisions and errors (RMS) are against {first}")
        if data["note"]:
            found.append(f"note: {data['note']}")
    shapes = ", ".join("x".join(map(str, s)) for s in report["shapes"])
    found.append(f"inputs {shapes}, medians of {report['rounds']} interleaved rounds")
    m = report["machine"]
    if "gpu" in m:
        found.append(f"{m['gpu']}, CUDA {m['cuda']}")
    found.append(f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['platform']}, torch {m['torch']}")
    if report["choice"] is not None:
        choice = report["choice"]
        found.append(one_line(f"ship {choice['model']}: {choice['why']}" if choice["model"] else choice["why"]))
    return found


def right_columns(columns: Sequence[str]) -> list[str]:
    """The columns of numbers."""
    return [c for c in columns if c not in ("model", "run by", "precision", "worst input")]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _short(name: str) -> str:
    text = one_line(name)
    return text if len(text) <= WIDEST else f"…{text[1 - WIDEST :]}"


def _bytes(count: int) -> str:
    size, unit = next(((s, u) for s, u in UNITS if count >= s), (1, "B"))
    return f"{three_digits(count / size)} {unit}" if size > 1 else f"{count} B"
