"""Graphs of models side by side, as `diff`, `verify` and `view` show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError
from reparam.utils import Shapes

from .session import Session
from .work import LoadedSide, shapes_for

if TYPE_CHECKING:
    from reparam.compare import ProgramDiff
    from reparam.engines import ListedCall
    from reparam.page import Shown


def diff_loaded(
    session: Session, a: LoadedSide, b: LoadedSide, given: Shapes | None
) -> tuple[ProgramDiff, tuple[Shown, Shown]]:
    """Captures both models on the same shapes and aligns their graphs, which are returned too.

    Raises InputError for a sealed engine.
    """
    from reparam.compare import diff_calls

    first, second = shown_graphs(session, (a, b), given, "diff")
    with session.working():
        return diff_calls(_listed(first), _listed(second)), (first, second)


def shown_graphs(session: Session, sides: Sequence[LoadedSide], given: Shapes | None, verb: str) -> list[Shown]:
    """The graphs, as `graphs_of` reads them. verb: which shows them. Raises InputError for a sealed engine."""
    found: list[Shown] = []
    for side, graph in zip(sides, graphs_of(session, sides, given), strict=True):
        if graph is None:
            raise InputError(f"{side.name} does not show its graph; {verb} takes checkpoints, .pt2, source and ONNX")
        found.append(graph)
    return found


def graphs_of(session: Session, sides: Sequence[LoadedSide], given: Shapes | None) -> list[Shown | None]:
    """The program of each model on the same shapes, or the calls that an engine lists; None for one that lists none."""
    found: list[Shown | None] = []
    with session.working() as tell:
        from reparam.compare import program_of
        from reparam.engines import Runnable

        shapes = shapes_for([s.model for s in sides], given)
        for i, side in enumerate(sides):
            tell("capture", i, len(sides))
            model = side.model
            found.append(model.calls() if isinstance(model, Runnable) else program_of(model, shapes))
        tell("capture", len(sides), len(sides))
    return found


def _listed(shown: Shown) -> Sequence[ListedCall]:
    from reparam.compare import read_calls
    from reparam.ir import Program

    return read_calls(shown) if isinstance(shown, Program) else shown


def write_diff(
    path: Path, report: Mapping[str, Any], found: ProgramDiff, graphs: tuple[Shown, Shown], *, force: bool
) -> None:
    """The page of `diff`."""
    from reparam.page import diff_page, write_page

    write_page(diff_page(report, found, *graphs), path, force=force)


def write_verdict(
    session: Session,
    path: Path,
    report: Mapping[str, Any],
    sides: tuple[LoadedSide, LoadedSide],
    given: Shapes | None,
    *,
    force: bool,
) -> None:
    """The page of `verify`, which captures both models once more for their graphs."""
    from reparam.page import verify_page, write_page

    first, second = graphs_of(session, sides, given)
    write_page(verify_page(report, first, second), path, force=force)
