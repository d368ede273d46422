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
from reparam.engines import ExportOptions, Runnable, card_of, export, fitted, read_calibration, save_arrays
from reparam.engines.formats import recognise
from reparam.errors import InputError
from reparam.ir import Program
from reparam.load import LoadedModel
from reparam.measure import Where, bench
from reparam.utils import Shapes, write_atomically

from .session import Session
from .work import ConvertOptions, Loaded, completed, describe_load, example_inputs, explained_misfit


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
    force: bool = False


def export_loaded(session: Session, loaded: Loaded, options: ConvertOptions, wanted: Wanted, path: Path) -> Conversion:
    """Converts, builds, checks and writes; returns what was built from, with the whole report of the export."""
    model = loaded.model
    card = card_of(model)

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
        settings=wanted.settings,
        card=card,
        source=model.source,
        stamp=model.stamp,
        force=wanted.force,
    )
    details.check()
    inputs = example_inputs(session, model, options.shapes, options.batch, options.seed)
    with session.working() as tell, explained_misfit(model, inputs):
        exported = export(
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
    if not exported.check.ran:
        session.warn(f"{path} was built, not run: {exported.check.why}")
    report = completed(exported.report, loaded, [str(p) for p in exported.outputs])
    return replace(exported.conversion, report=report)


def run_model(
    session: Session,
    model: str,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    named: Sequence[tuple[str | None, Path]],
    output: Path,
    *,
    trust: bool,
    force: bool,
) -> dict[str, Any]:
    """Runs the model on the arrays of files, writes its outputs; returns the report."""
    arrays: list[tuple[str | None, Tensor]] = []
    for name, path in named:
        array = load_array(path)
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path} holds several arrays; give one .npy for each input")
        arrays.append((name, torch.from_numpy(array)))
    with session.working():
        opened = open_model(model, arch=arch, arch_args=arch_args, trust=trust)
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


@dataclass(frozen=True)
class BenchOptions:
    """What `bench` is asked for beside the models."""

    arch: str | None
    arch_args: Mapping[str, Any] | None
    shapes: Shapes | None
    batches: Sequence[int]
    rounds: int
    threads: int | None
    where: Where
    seed: int
    trust: bool


def bench_models(session: Session, models: Sequence[str], options: BenchOptions) -> dict[str, Any]:
    """Opens and times the models; returns the report."""
    if len(set(models)) != len(models):
        raise InputError("a model is named twice; each is timed once")
    opened: dict[str, LoadedModel | Runnable] = {}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or before)
        for name in models:
            arch = options.arch if recognise(Path(name)) is None and not is_program(name) else None
            with session.working():
                model = open_model(
                    name,
                    arch=arch,
                    arch_args=options.arch_args if arch else None,
                    trust=options.trust,
                    seed=options.seed,
                )
            if isinstance(model, LoadedModel):
                describe_load(session, model, name, "--arch")
            opened[name] = model
        with session.working() as tell:
            found = bench(
                opened,
                input_shapes=options.shapes,
                batches=options.batches,
                rounds=options.rounds,
                where=options.where,
                seed=options.seed,
                progress=tell,
            )
    finally:
        torch.set_num_threads(before)
    return found.as_dict()


def is_program(name: str) -> bool:
    """Whether a name is that of a .pt2 or of a folder of source, which hold their architecture."""
    return name.endswith(".pt2") or Path(name).is_dir()
