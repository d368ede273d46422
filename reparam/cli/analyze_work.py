"""What `analyze` does, once its options are read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import RenderableType

from reparam._version import __version__
from reparam.data import Preprocessing
from reparam.errors import InputError
from reparam.loading import LoadedModel
from reparam.signal import Analysis, Table, analyze, different_units, draw_pictures
from reparam.utils import Shapes, one_line, refuse_existing, write_atomically

from .examples import Drawing, on_examples
from .options import Side
from .render import line, table
from .session import Session
from .work import file_of, load, shapes_for

if TYPE_CHECKING:
    from torch import Tensor

BARS = "▁▂▃▄▅▆▇█"
WIDE = 60  # columns of a sparkline
MOST_ROWS = 60


@dataclass(frozen=True)
class AnalyzeOptions:
    """What `analyze` is asked for beside the models; see `reparam.analyze`. pictures: the folder of --svg."""

    what: str
    data: Path | None
    batch: int
    batches: int
    unit: str | None
    training: bool
    shapes: Shapes | None
    dynamic: tuple[str, ...]
    preprocessing: Preprocessing | None
    seed: int
    pictures: Path | None
    force: bool


@dataclass(frozen=True)
class Found:
    """analyses: of each model, by its name. report: for JSON. names: of the models."""

    names: Sequence[str]
    analyses: Sequence[Analysis]
    report: Mapping[str, Any]


def second(session: Session, side: Side, *, trust: bool, seed: int) -> tuple[str, LoadedModel]:
    """B, its name and the model, read as the first one is. Raises InputError for what has no graph."""
    loaded = load(
        session, file_of(side), side.arch, side.arch_args, side.weights, trust=trust, seed=seed, option="--arch-b"
    )
    return loaded.name, loaded.model


def analyze_loaded(session: Session, models: Sequence[tuple[str, LoadedModel]], wanted: AnalyzeOptions) -> Found:
    """Analyses each model, and writes the pictures."""
    shapes = shapes_for([m for _, m in models], wanted.shapes)
    start = time.perf_counter()
    names = [name for name, _ in models]
    names = names if len(set(names)) == len(names) else [f"{name} ({'AB'[i]})" for i, name in enumerate(names)]
    found = []
    for name, (_, model) in zip(names, models, strict=True):
        try:
            found.append(_analyze(session, model, shapes, wanted))
        except InputError as error:
            raise InputError(f"{name}: {error}" if len(models) > 1 else str(error)) from error
    seconds = time.perf_counter() - start
    found = _with_note_on_units(names, found)
    files = _write_pictures(dict(zip(names, found, strict=True)), wanted) if wanted.pictures is not None else []
    sides = {letter: f.as_dict() | {"input": n} for letter, f, n in zip("ab", found, names, strict=False)}
    report = {"schema": 1, "reparam": __version__, "outputs": files, **sides, "seconds": {"analyze": round(seconds, 3)}}
    return Found(names, found, report)


def _with_note_on_units(names: Sequence[str], found: Sequence[Analysis]) -> list[Analysis]:
    """The analyses, with a note on fields of units that are not the same in both models."""
    fields = [t for analysis in found for t in analysis.tables if t.what == "erf"]
    note = different_units(names, fields) if len(fields) == len(names) else None
    if note is None:
        return list(found)
    noted = [tuple(replace(t, notes=(*t.notes, note)) if t.what == "erf" else t for t in a.tables) for a in found]
    return [replace(analysis, tables=tables) for analysis, tables in zip(found, noted, strict=True)]


def _analyze(session: Session, model: LoadedModel, shapes: Shapes | None, wanted: AnalyzeOptions) -> Analysis:
    given = shapes if model.exported is None else None

    def work(inputs: tuple[Tensor, ...]) -> Analysis:
        with session.working() as tell:
            return analyze(
                model.exported or model.module,
                *inputs,
                what=wanted.what,
                data=wanted.data,
                batch=wanted.batch,
                batches=wanted.batches,
                unit=wanted.unit,
                training=wanted.training,
                dynamic=wanted.dynamic,
                preprocessing=wanted.preprocessing,
                seed=wanted.seed,
                progress=tell,
            )

    batch = 2 if "batch" in wanted.dynamic else wanted.batch
    return on_examples(session, model, Drawing(given, wanted.dynamic, batch, wanted.seed), work)


def _write_pictures(found: Mapping[str, Analysis], wanted: AnalyzeOptions) -> list[str]:
    folder = wanted.pictures
    assert folder is not None
    made = list(draw_pictures({name: analysis.tables for name, analysis in found.items()}))
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in made:
        refuse_existing(folder / name, force=wanted.force)
    written = []
    for name, text in made:
        write_atomically(folder / name, partial(_put, text.encode()), force=wanted.force)
        written.append(str(folder / name))
    return written


def _put(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def save_page(found: Found, path: Path, *, force: bool) -> None:
    """Stages or writes the analyses as a page."""
    from reparam.page import analysis_page, write_page

    write_page(analysis_page(found.report, dict(zip(found.names, found.analyses, strict=True))), path, force=force)


# ---- for people --------------------------------------------------------------------------------------------------


def describe(found: Found) -> list[RenderableType]:
    """What `analyze` prints: for each analysis its lines by depth, its figures, and its table."""
    parts: list[RenderableType] = []
    kinds = dict.fromkeys(t.what for a in found.analyses for t in a.tables)
    for what in kinds:
        own = [(n, t) for n, a in zip(found.names, found.analyses, strict=True) for t in a.tables if t.what == what]
        parts.append(line(f"{what}: {own[0][1].title}", "bold"))
        for name, made in own:
            prefix = f"{name}: " if len(found.names) > 1 else ""
            parts += [line(f"{prefix}{text}", indent=2) for text in _lines(made)]
        if len(own) > 1 and _alike(own):
            parts.append(_side_by_side([t for _, t in own]))
            continue
        for name, made in own:
            parts += [*([line(name, "bold")] if len(own) > 1 else []), _one(made)]
    for name, analysis in zip(found.names, found.analyses, strict=True):
        parts += [line(f"{name}: {what} was left out: {why}") for what, why in analysis.refused.items()]
        parts += [line(f"note: {text}") for text in analysis.notes]
    if found.report["outputs"]:
        parts.append(line(f"pictures: {', '.join(found.report['outputs'])}"))
    return parts


def _alike(own: Sequence[tuple[str, Table]]) -> bool:
    """Whether two tables have the same places."""
    return own[0][1].columns == own[1][1].columns and [r[0] for r in own[0][1].rows] == [r[0] for r in own[1][1].rows]


def _lines(made: Table) -> list[str]:
    width = max((len(name) for name in made.series), default=0)
    lines = [f"{name:{width}}  {sparkline(values, log=made.log)}" for name, values in made.series.items()]
    facts = ", ".join(f"{name} {_text(value)}" for name, value in made.facts.items())
    return [*lines, *([facts] if facts else []), *made.notes]


def sparkline(values: Sequence[float], *, log: bool = False) -> str:
    """Numbers as bars of eight heights, with the first, the last and the span beside them."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return "nothing that is finite"
    scaled = log and min(known) > 0 and max(known) / min(known) > 10
    points = [_point(v, scaled) for v in _sampled(values)]
    heights = [p for p in points if p is not None]
    low, high = min(heights), max(heights)
    span = high - low
    bars = "".join(" " if p is None else BARS[round(7 * (p - low) / span) if span > 0 else 3] for p in points)
    first, last = (_text(v if v is not None and math.isfinite(v) else None) for v in (values[0], values[-1]))
    return f"{bars}  {first} to {last}, {_text(min(known))} .. {_text(max(known))}"


def _point(value: float, scaled: bool) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return math.log10(value) if scaled else value


def _sampled(values: Sequence[float]) -> list[float]:
    if len(values) <= WIDE:
        return list(values)
    return [values[round(i * (len(values) - 1) / (WIDE - 1))] for i in range(WIDE)]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def _one(made: Table) -> RenderableType:
    shown = table(*made.columns, right=made.columns[1:])
    for row in _few(made.rows):
        shown.add_row(*map(_text, row))
    return shown


def _side_by_side(pair: Sequence[Table]) -> RenderableType:
    first, second_ = pair
    numbers = [i for i in range(1, len(first.columns)) if any(isinstance(r[i], float | int) for r in first.rows)]
    heads = [f"{first.columns[i]} {letter}" for i in numbers for letter in "AB"]
    shown = table(first.columns[0], *heads, right=heads)
    for one, other in zip(_few(first.rows), _few(second_.rows), strict=True):
        shown.add_row(_text(one[0]), *(_text(row[i]) for i in numbers for row in (one, other)))
    return shown


def _few(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """All rows, or some of the first and the last of many; --json has them all."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    half = MOST_ROWS // 2
    gap = (f"… {len(rows) - 2 * half} more in --json", *(None for _ in rows[0][1:]))
    return [*rows[:half], gap, *rows[-half:]]
