"""What the verbs `export` and `run` do, once their options are read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam._version import __version__
from reparam.compare import open_model, run_loaded
from reparam.conversion import Conversion
from reparam.data import load_array
from reparam.engines import Exported, ExportOptions, Runnable, card_of, export, fitted, read_calibration, save_arrays
from reparam.errors import InputError
from reparam.ir import Program
from reparam.loading import LoadedModel
from reparam.utils import write_atomically

from .examples import on_examples
from .options import ImageOptions, read_preprocessing
from .session import Session
from .work import ConvertOptions, Loaded, completed, describe_load


@dataclass(frozen=True)
class JudgeOptions:
    """Samples that the file is judged on, and how images go in, for the calibration too."""

    data: str | None = None
    labels: str | None = None
    metric: str | None = None
    max_drop: float | None = None
    images: ImageOptions = (None, None, None, None, None)


@dataclass(frozen=True)
class Wanted:
    """What `export` is asked for beside how to convert; see `ExportOptions`."""

    format: str
    precision: str
    io_precision: str
    calibrate: Path | None
    min_sqnr: float | None
    equalize: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    judging: JudgeOptions = field(default_factory=JudgeOptions)
    force: bool = False


def export_loaded(session: Session, loaded: Loaded, options: ConvertOptions, wanted: Wanted, path: Path) -> Conversion:
    """Converts, builds, checks and writes; returns what was built from, with the whole report of the export."""
    model = loaded.model
    card = _card(model, wanted.judging.images)

    def calibration(program: Program) -> Sequence[Sequence[Tensor]]:
        assert wanted.calibrate is not None
        return read_calibration(wanted.calibrate, program, fitted(card, program).get("preprocessing"))

    details = ExportOptions(
        format=wanted.format,
        precision=wanted.precision,
        io_precision=wanted.io_precision,
        calibration=calibration if wanted.calibrate is not None else None,
        min_sqnr=wanted.min_sqnr,
        equalize=wanted.equalize,
        data=wanted.judging.data,
        labels=wanted.judging.labels,
        metric=wanted.judging.metric,
        max_drop=wanted.judging.max_drop,
        settings=wanted.settings,
        card=card,
        source=model.source if model.stamp is not None else None,  # of several files: the hash of the weights
        stamp=model.stamp,
        force=wanted.force,
    )
    details.check()

    def work(inputs: tuple[Tensor, ...]) -> Exported:
        with session.working() as tell:
            return export(
                model.exported or model.module,
                *inputs,
                path=path,
                options=details,
                to=options.to,
                dynamic=options.dynamic,
                seed=options.seed,
                progress=tell,
                outputs=options.outputs,
                **asdict(options.plain),
            )

    exported = on_examples(session, model, options.drawing, work)
    if not exported.check.ran:
        session.warn(f"{path} was built, not run: {exported.check.why}")
    report = completed(exported.report, loaded, [str(p) for p in exported.outputs])
    return replace(exported.conversion, report=report)


def _card(model: LoadedModel, images: ImageOptions) -> dict[str, Any]:
    """What is known of the model, with how images go in as the options say; the manifest tells it on.

    The architecture is told too, so that `bench` knows it of the file that the export was made of.
    """
    card = card_of(model)
    if model.spec is not None:
        card["architecture"] = {"spec": model.spec, "arch_args": dict(model.arch_args)}
    how = read_preprocessing(card, *images) if any(text is not None for text in images) else None
    if how is None:
        return card
    told = asdict(how) | {"resize": how.resize or min(how.size), "of": "the command line"}
    return card | {"preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}}


def run_model(
    session: Session,
    model: str,
    how: Mapping[str, Any],
    named: Sequence[tuple[str | None, Path]],
    output: Path,
    *,
    force: bool,
) -> dict[str, Any]:
    """Runs the model on the arrays of files, writes its outputs; returns the report.

    how: it is opened: the keywords of `open_model`.
    """
    arrays: list[tuple[str | None, Tensor]] = []
    for name, path in named:
        array = load_array(path)
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path} holds several arrays; give one .npy for each input")
        arrays.append((name, torch.from_numpy(array)))
    with session.working():
        opened = open_model(model, **how)
    if isinstance(opened, LoadedModel):
        describe_load(session, opened, model, "--arch")
    with session.working():
        start = time.perf_counter()
        values = run_loaded(opened, arrays)
        seconds = time.perf_counter() - start
    _save(output, values, force=force)
    return {
        "schema": 1,
        "reparam": __version__,
        "input": model,
        "outputs": [str(output)],
        "runtime": opened.runtime if isinstance(opened, Runnable) else f"torch {torch.__version__} (CPU)",
        "values": [{"name": n, "shape": list(v.shape), "dtype": str(v.dtype)} for n, v in values.items()],
        "seconds": {"run": round(seconds, 4)},
    }


def _save(path: Path, values: Mapping[str, Any], *, force: bool) -> None:
    if path.suffix == ".npz":
        write_atomically(path, lambda file: save_arrays(file, values), force=force)
        return
    if path.suffix != ".npy":
        raise InputError(f"{path} is neither .npy nor .npz; name it {path.stem}.npy")
    if len(values) != 1:
        raise InputError(f"the model gives {len(values)} outputs ({', '.join(values)}); name a .npz for them")
    (value,) = values.values()
    write_atomically(path, lambda file: np.save(file, value), force=force)


def describe_run(report: Mapping[str, Any]) -> list[str]:
    """What `run` prints."""
    rows = [f"{v['name']}: {v['dtype']} {'x'.join(map(str, v['shape'])) or 'a number'}" for v in report["values"]]
    return [f"{report['input']} -> {', '.join(report['outputs'])}", *rows, f"run by {report['runtime']}"]
