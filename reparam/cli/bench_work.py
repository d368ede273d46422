"""What the verb `bench` does, once its options are read, and how it shows what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from reparam.compare import open_model
from reparam.engines.formats import recognise
from reparam.errors import InputError, UnsafeFileError
from reparam.loading import LoadedModel
from reparam.measure import (
    BenchOptions,
    BenchTable,
    Entry,
    Judging,
    Told,
    bench_entries,
    cells,
    right_columns,
    sentences,
    told_architectures,
)
from reparam.utils import SOURCE_FILES, Shapes, write_atomically

from .options import ImageOptions
from .render import line, table
from .session import Session
from .which_weights import ANY, Weights
from .work import describe_load, preprocessing_for, sized_for

GAP = 3  # columns of a terminal between those of a table
HEADS = ("model", "run by", "batch")  # columns that every part of a table has
FIRST_TIME = "median ms"


@dataclass(frozen=True)
class Opening:
    """How the models are opened. images: the options that say how images go in, as texts: `read_preprocessing`."""

    arch: str | None
    arch_args: Mapping[str, Any] | None
    trust: bool
    seed: int
    images: ImageOptions = (None, None, None, None, None)
    weights: Weights = ANY


def bench_models(
    session: Session,
    models: Sequence[str],
    opening: Opening,
    judging: Judging,
    options: BenchOptions,
    shapes: Shapes | None = None,
) -> BenchTable:
    """Opens and measures the models. shapes: of the inputs, where they are given."""
    if len(set(models)) != len(models):
        raise InputError("a model is named twice; each is timed once")
    judging.check(options)
    own = opening.arch is None and opening.arch_args is None
    told = told_architectures([Path(name) for name in models]) if own else {}
    entries = [_open(session, name, opening, told.get(Path(name))) for name in models]
    if judging.data is not None:
        opened = {e.name: e.model for e in entries}
        how = _preprocessing(entries, opening, judging.data)
        shapes = sized_for(opened, shapes, how, opening.images)
        options = replace(options, preprocessing=how)
    options = replace(options, input_shapes=shapes)
    with session.working() as tell:
        return bench_entries(entries, judging, options, progress=tell)


def _open(session: Session, name: str, opening: Opening, told: Told | None) -> Entry:
    """told: the architecture of a checkpoint, as the manifest of an engine that was made of it says."""
    checkpoint = recognise(Path(name)) is None and not is_program(name)
    arch, which = (opening.arch, asdict(opening.weights)) if checkpoint else (None, {})
    args = opening.arch_args if arch else None
    if checkpoint and told is not None and (opening.trust or not told.is_code):
        arch, args = told.spec, told.arch_args
        session.note(f"{name} is taken as {arch}, as {told.by} says")
    try:
        with session.working():
            model = open_model(name, arch=arch, arch_args=args, trust=opening.trust, seed=opening.seed, **which)
    except UnsafeFileError:
        raise
    except InputError as error:
        if told is None or arch is not None:
            raise
        raise InputError(
            f"the architecture of {name} is {told.spec}, as {told.by} says, which is Python of your own and is not run "
            f"because a file names it; give --arch {told.spec}"
        ) from error
    if not isinstance(model, LoadedModel):
        return Entry(name, model, Path(name), trust=opening.trust)
    describe_load(session, model, name, "--arch")
    return Entry(name, model, Path(name), model.spec, model.arch_args, opening.trust, which)


def _preprocessing(entries: Sequence[Entry], opening: Opening, data: Any) -> Any:
    """How images go in, as the options say, with the rest from the first card or manifest that says anything.

    None without such options.
    """
    if not any(value is not None for value in opening.images):
        return None
    return preprocessing_for({e.name: e.model for e in entries}, opening.images, data)


def is_program(name: str) -> bool:
    """Whether a name is that of a .pt2 or of a folder of source, which hold their architecture."""
    return name.endswith(".pt2") or (Path(name) / SOURCE_FILES[0]).is_file()


def save_csv(found: BenchTable, path: Path) -> None:
    """Stages or writes the table as CSV; whether it may be overwritten was asked before."""
    content = found.to_csv().encode()
    write_atomically(path, lambda file: file.write(content), force=True)


def save_page(report: Mapping[str, Any], path: Path, *, force: bool) -> None:
    """Stages or writes the report as a page."""
    from reparam.page import bench_page, write_page

    write_page(bench_page(dict(report)), path, force=force)


def render_bench(report: Mapping[str, Any], width: int) -> list[RenderableType]:
    """What `bench` prints: a row for each model and batch, and what it was measured on.

    width: columns of the terminal. A table that is wider goes on in others below it, each with the models' names.
    """
    columns, rows = cells(report)
    parts: list[RenderableType] = []
    for chosen in _fitting(columns, rows, width):
        made = table(*(columns[i] for i in chosen), right=right_columns(columns))
        for row in rows:
            made.add_row(*(row[i] for i in chosen))
        parts += [made] if not parts else [line(""), made]
    told = sentences(report)
    parts += [line(text) for text in told]
    if report["choice"] is not None:
        parts[-1] = line(told[-1], "bold")
    return parts


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Which columns stand in each table: all in one where that fits, else first the accuracy, and then the times."""
    widths = [max(len(row[i]) for row in [columns, *rows]) + GAP for i in range(len(columns))]
    if sum(widths) - GAP <= width:
        return [list(range(len(columns)))]
    heads = [i for i, name in enumerate(columns) if name in HEADS]
    found: list[list[int]] = []
    for i, name in enumerate(columns):
        if i in heads:
            continue
        full = found and sum(widths[k] for k in found[-1]) + widths[i] - GAP > width
        if not found or full or name == FIRST_TIME:
            found.append([*heads])
        found[-1].append(i)
    return found
