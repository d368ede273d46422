"""What `init` does, once its options are read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from reparam._version import __version__
from reparam.data import Preprocessing
from reparam.errors import InputError
from reparam.initial import Initialised, init
from reparam.utils import Shapes, one_line, together

from .examples import Drawing, on_examples
from .render import line, table
from .session import Session
from .work import Loaded

if TYPE_CHECKING:
    from torch import Tensor

MOST_ROWS = 40


@dataclass(frozen=True)
class InitRequest:
    """What `init` is asked for beside the model; see `reparam.init`. options: those of the method, from JSON. share:
    which process this is, of how many."""

    method: str
    options: Mapping[str, Any]
    data: Path | None
    labels: str | None
    shapes: Shapes | None
    dynamic: tuple[str, ...]
    preprocessing: Preprocessing | None
    seed: int
    share: tuple[int, int] = (0, 1)


def _made(session: Session, loaded: Loaded, wanted: InitRequest) -> Initialised:
    model = loaded.model
    if model.exported is not None:
        raise InputError(f"{loaded.name} is an exported program; weights are set in a model: give its checkpoint")

    def work(inputs: tuple[Tensor, ...]) -> Initialised:
        with session.working() as tell:
            return init(
                model.module,
                *inputs,
                method=wanted.method,
                data=wanted.data,
                labels=wanted.labels,
                share=wanted.share,
                dynamic=wanted.dynamic,
                preprocessing=wanted.preprocessing,
                progress=tell,
                **{"seed": wanted.seed, **wanted.options},
            )

    return on_examples(session, model, Drawing(wanted.shapes, wanted.dynamic, 2, wanted.seed), work)


def join_in(session: Session, loaded: Loaded, wanted: InitRequest) -> None:
    """The work of a process that writes nothing."""
    _made(session, loaded, wanted)


def init_loaded(
    session: Session, loaded: Loaded, wanted: InitRequest, path: Path, source: Path | None, *, force: bool
) -> dict[str, Any]:
    """Sets the weights and writes; returns the report."""
    model = loaded.model
    start = time.perf_counter()
    made = _made(session, loaded, wanted)
    seconds = time.perf_counter() - start
    with session.working(), together():
        made.save(path, force=force)
        if source is not None:
            made.save_source(source, force=force)
    return {
        "schema": 1,
        "reparam": __version__,
        "input": loaded.name,
        "outputs": [str(p) for p in (path, source) if p is not None],
        "arch": model.spec,
        "arch_inferred": model.arch_inferred,
        **made.as_dict(),
        "seconds": {"load": round(loaded.seconds, 3), "init": round(seconds, 3)},
    }


def describe(report: Mapping[str, Any], arch: str) -> list[RenderableType]:
    """What `init` prints."""
    name = f"{report['input']} ({arch})" if arch else report["input"]
    weights = report["weights"]
    made = table("weight", "shape", "deviation", "before", "what", right=("deviation", "before"))
    for w in weights[:MOST_ROWS]:
        shape = "x".join(map(str, w["shape"]))
        figures = (f"{w['deviation']:.4g}", f"{w['before']:.4g}")
        made.add_row(one_line(w["name"]), shape, *figures, one_line(w["what"]))
    parts: list[RenderableType] = [
        line(f"{name} -> {', '.join(report['outputs'])}", "bold"),
        line(f"{report['method']}: {len(weights)} weights set, {len(report['left'])} left"),
        made,
    ]
    if len(weights) > MOST_ROWS:
        parts.append(line(f"and {len(weights) - MOST_ROWS} more; --json has them all"))
    parts += [line(f"put in: {text}") for text in report["inserted"][:MOST_ROWS]]
    if len(report["inserted"]) > MOST_ROWS:
        parts.append(line(f"put in: {len(report['inserted']) - MOST_ROWS} more parts; --json has them all"))
    reasons: dict[str, list[str]] = {}
    for left in report["left"]:
        reasons.setdefault(left["why"], []).append(left["name"])
    for why, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(line(f"left: {', '.join(names[:3])}{more}: {why}"))
    if report["frozen"]:
        parts.append(line(f"frozen, not to be trained: {', '.join(report['frozen'])}"))
    for group in report["groups"]:
        parts.append(
            line(
                f"optimiser: {len(group['params'])} parameters at {group['rate']:g} x rate, {group['decay']:g} x decay"
            )
        )
    return parts
