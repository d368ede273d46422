"""What `recalibrate` does, once its options are read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam._version import __version__
from reparam.data import Preprocessing
from reparam.emit import save_checkpoint
from reparam.errors import InputError
from reparam.training import recalibrate
from reparam.utils import Shapes, counted, is_batch

from .examples import Drawing, example_inputs, explained_misfit
from .session import Session
from .work import Loaded


@dataclass(frozen=True)
class RecalibrateOptions:
    """What `recalibrate` is asked for beside the model; see `reparam.recalibrate`."""

    data: Path
    shapes: Shapes | None
    dynamic: tuple[str, ...]
    batch: int
    preprocessing: Preprocessing | None
    seed: int


def recalibrate_loaded(
    session: Session, loaded: Loaded, options: RecalibrateOptions, path: Path, *, force: bool
) -> dict[str, Any]:
    """Measures and writes; returns the report."""
    model = loaded.model
    if model.exported is not None:
        raise InputError(f"{loaded.name} is an exported program, whose norms are fixed; give the checkpoint it is from")
    rows = 2 if any(map(is_batch, options.dynamic)) else options.batch
    inputs, called = example_inputs(session, model, Drawing(options.shapes, options.dynamic, rows, options.seed))
    with session.working() as tell:
        start = time.perf_counter()
        with explained_misfit(model, inputs, called):
            found = recalibrate(
                model.module,
                *inputs,
                data=options.data,
                dynamic=options.dynamic,
                batch=options.batch,
                preprocessing=options.preprocessing,
                progress=tell,
            )
        seconds = time.perf_counter() - start
        save_checkpoint(found.module, path, force=force)
    return {
        "schema": 1,
        "reparam": __version__,
        "input": loaded.name,
        "outputs": [str(path)],
        "arch": model.spec,
        "arch_inferred": model.arch_inferred,
        **found.as_dict(),
        "seconds": {"load": round(loaded.seconds, 3), "measure": round(seconds, 3)},
    }


def describe(report: Mapping[str, Any], arch: str) -> list[str]:
    """What `recalibrate` prints."""
    norms, most = report["norms"], max(report["norms"], key=lambda n: n["largest"], default=None)
    name = f"{report['input']} ({arch})" if arch else report["input"]
    lines = [
        f"{name} -> {', '.join(report['outputs'])}",
        f"{counted(len(norms), 'batch norm')} measured on {counted(report['samples'], 'sample')} "
        f"in {report['batches']} batch{'es' if report['batches'] != 1 else ''}",
    ]
    if most is not None:
        lines.append(
            f"means moved by {report['moved']:.3g} old standard deviations on average, "
            f"at most by {most['largest']:.3g} in '{most['name']}'"
        )
        apart = max(norms, key=lambda n: max(n["deviation"], 1 / n["deviation"]))
        lines.append(f"standard deviations are up to {apart['deviation']:.3g} times the old ones, in '{apart['name']}'")
    if report["unused"]:
        lines.append(f"not reached by the samples, and left as they were: {', '.join(report['unused'])}")
    return lines
