"""`export`: from a module to a verified file of another format."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from reparam._version import __version__
from reparam.conversion import Conversion, convert
from reparam.emit import finalize, to_module
from reparam.errors import InputError, MachineError, NotEquivalentError
from reparam.ir import Program, Range, Room, filled, make_room
from reparam.loading import FileOrModel, LoadedModel
from reparam.passes import equalize_phases
from reparam.passes.equalize import measure
from reparam.report import Remark, Report
from reparam.rewrite import Driver, Progress
from reparam.utils import (
    DEFAULT_AXES,
    Facts,
    Reported,
    Stamp,
    as_path,
    check_kind,
    checked_call,
    describe_type,
    refuse_existing,
    together,
    writing,
)

from .calibration import hold_out
from .data_check import DataCheck, HeldOut, check_metric, check_on_data, check_points
from .engine_check import EngineCheck, check_engine
from .far_check import check_far
from .format import BuildOptions, Format, Runnable
from .formats import find_format
from .manifest import manifest_path, sha256_of, sha256_of_state, write_manifest
from .mixed import Mixed, search
from .model_card import fitted
from .ports import ports_of
from .precision import DTYPES, with_wide_ports

_log = logging.getLogger(__name__)
IO_PRECISIONS = ("fp32", "same")
Calibration = Callable[[Program], Sequence[Sequence[torch.Tensor]]]


@dataclass(frozen=True, repr=False)
class Exported(Reported):
    """A verified export.

    path: the file. outputs: all files, the manifest last. check: what was measured on it. conversion: what it was built
    from. data: what was found on the samples of `ExportOptions.data`.
    """

    path: Path
    outputs: tuple[Path, ...]
    check: EngineCheck
    report: Report
    conversion: Conversion
    data: DataCheck | None = None

    def summary(self) -> tuple[str, Facts]:
        """The file, and what the report says first."""
        head, facts = self.report.summary()
        return f"{self.path.name}, {head}", facts


@dataclass(frozen=True)
class ExportOptions:
    """How to export, beside how to convert.

    precision: fp32, fp16, bf16 or int8. io_precision: fp32, or same for inputs and outputs of that precision.
    calibration: for int8, batches of tensors for the inputs, or what reads them for a program. Every fifth sample is
    held out, and the file is measured on those.
    min_sqnr: dB; less is refused. equalize: for int8, whether powers of two are moved between layers first, so that
    the ranges of their channels become alike (see `passes/equalize.py`).
    data: samples that the file is judged on, with their labels, as `reparam.data.open_samples` takes them. metric: in
    place of top-1 and mIoU, as `bench` takes it. max_drop: the points that may be lost: hundredths of top-1 or of mIoU,
    of equal decisions without labels; of a metric, its own units. An int8 file that misses it gets its worst layers
    back in float32, as many as it takes.
    settings: the format's own options. card: what is known of inputs and outputs (`model_card.card_of`). source, stamp:
    the file that the network came from, as it was read. force: whether files are overwritten.
    """

    format: str = "onnx"
    precision: str = "fp32"
    io_precision: str = "fp32"
    calibration: Calibration | Sequence[Sequence[torch.Tensor]] | None = None
    min_sqnr: float | None = None
    equalize: bool = False
    data: Any = None
    labels: Any = None
    metric: Any = None
    max_drop: float | None = None
    settings: Mapping[str, str] | None = None
    card: Mapping[str, Any] | None = None
    source: Path | None = None
    stamp: Stamp | None = None
    force: bool = False

    def check(self) -> Format:
        """The format. Raises InputError for what does not go together, MachineError for what is not installed."""
        format = find_format(self.format)
        if not isinstance(self.settings or {}, Mapping):
            raise InputError(f"settings is {describe_type(self.settings)}; give names with texts, or None")
        format.check(self.precision, self.settings or {})
        if self.min_sqnr is not None and not _is_number(self.min_sqnr):
            raise InputError(f"the least ratio of signal to noise is no number of dB: {str(self.min_sqnr)[:40]}")
        if self.io_precision not in IO_PRECISIONS:
            raise InputError(f"unknown io_precision '{self.io_precision}'; choose from {', '.join(IO_PRECISIONS)}")
        if self.precision == "int8" and self.calibration is None:
            raise InputError("int8 needs calibration data; give some with --calibrate")
        if self.precision != "int8" and self.equalize:
            raise InputError(f"equalising is for int8; {self.precision} gains nothing from it")
        if self.precision != "int8" and self.calibration is not None:
            raise InputError(f"calibration data is for int8; {self.precision} needs none")
        check_points(self.max_drop, "max_drop")
        check_metric(self.metric)
        if self.data is None and (self.labels is not None or self.max_drop is not None):
            raise InputError("--labels and --max-drop are of samples to judge on; give some with --data")
        if self.data is None and self.metric is not None:
            raise InputError("--metric is of samples to judge on; give some with --data")
        format.require()
        return format


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@checked_call
def export(  # noqa: PLR0913  # the keywords are the options
    model: FileOrModel,
    *example_inputs: Any,
    path: str | Path,
    options: ExportOptions | None = None,
    to: str = "fused",
    dynamic: Sequence[str] = DEFAULT_AXES,
    seed: int = 0,
    progress: Progress | None = None,
    input_ranges: Sequence[Range] | None = None,
    outputs: Sequence[str] | None = None,
    **plain: Any,
) -> Exported:
    """Converts `model`, writes it in another format, loads that and checks that it is the same function.

    example_inputs: tensors are (N, ...) where the batch stays free. to: fused, plain, or as-is, which only captures.
    path: of the file. options: the format and the precision (default: ONNX in fp32). The other arguments are those of
    `convert`, the options of `plain` among them; weights are cast once, after folding.

    Nothing is written unless the file was run and agreed, or cannot be run on this machine, which the manifest beside
    it then says.

    Raises what `convert` raises; InputError for what the format cannot express; MachineError for a missing package;
    NotEquivalentError when the file computes something else, or when `min_sqnr` (dB) is missed.

    >>> import tempfile, torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = reparam.export(block, torch.randn(1, 3, 16, 16), path=f"{folder}/block.onnx")
    ...     [path.name for path in exported.outputs]
    ['block.onnx', 'block.onnx.json']
    """
    _check_keywords(plain)
    check_kind(options, ExportOptions, "options")
    options = options or ExportOptions()
    if not isinstance(options, ExportOptions):
        raise InputError(f"options is {describe_type(options)}; give reparam.ExportOptions(format=..., precision=...)")
    path = as_path(path, "the output")
    format = options.check()
    for target in (path, manifest_path(path)):
        refuse_existing(target, force=options.force)
    conversion = _light(
        convert(
            model,
            *example_inputs,
            to=to,
            dynamic=dynamic,
            dtype=DTYPES[options.precision],
            seed=seed,
            progress=progress,
            input_ranges=input_ranges,
            outputs=outputs,
            **plain,
        )
    )
    return export_conversion(conversion, path, format, options, seed=seed, progress=progress)


def _check_keywords(plain: Iterable[str]) -> None:
    """Raises InputError for a keyword that neither `export` nor `convert` has."""
    own, of_convert = (inspect.signature(f).parameters.values() for f in (export, convert))
    names = {p.name for p in (*own, *of_convert) if p.kind is p.KEYWORD_ONLY} - {"dtype"}
    options = {**{f.name: f.name for f in fields(ExportOptions)}, "dtype": "precision"}
    for name in set(plain) - names:
        known = f"inputs are given by position; the keywords that it takes are {', '.join(sorted(names))}"
        how = f"give options=reparam.ExportOptions({options[name]}=...)" if name in options else known
        raise InputError(f"export() got an unexpected keyword argument {name!r}; {how}")


def _light(conversion: Conversion) -> Conversion:
    """The conversion with its own large weights in files: an engine needs the memory for its copy of them."""
    theirs = {c.value.untyped_storage().data_ptr() for c in conversion.original.constants.values()}
    constants, room = dict(conversion.program.constants), Room()
    own = {n: c for n, c in constants.items() if c.value.untyped_storage().data_ptr() not in theirs}
    if sum(c.value.numel() * c.value.element_size() for c in own.values()) > room.left:
        room.left = 0
    for name, c in own.items():
        constants[name] = replace(c, value=room.take(c.value))
    program = replace(conversion.program, constants=constants)
    return replace(conversion, module=to_module(program), program=program)


def export_conversion(
    conversion: Conversion,
    path: Path,
    format: Format,
    options: ExportOptions,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Builds, checks and writes what `convert` made in the dtype of the precision. See `export`."""
    tell = progress or (lambda stage, done, total: None)
    program = conversion.program
    program = format.fitting(program if options.io_precision == "same" else with_wide_ports(program))
    data = options.calibration if options.calibration is not None else ()
    calibration, held_out = hold_out(program, data(program) if callable(data) else data)
    program, equalised = _equalised(program, calibration) if options.equalize else (program, ())
    build = BuildOptions(options.precision, calibration, held_out, settings=options.settings or {})
    with together() as outputs, writing(path):
        start = time.perf_counter()
        staged = outputs.stage(path, force=options.force)
        built = format.build(program, staged, build, tell)
        seconds = {"emit": time.perf_counter() - start}
        start = time.perf_counter()
        tell("check", 0, 1)
        engine, check = _checked(conversion, program, staged, format, build, seed)
        tell("check", 1, 1)
        _log.info("checked %s: %s", path.name, check.verdict)
        judged, mixed = _on_data(conversion, engine, check, options, tell), None
        if judged is not None and not judged.holds and options.precision == "int8":
            judge = functools.partial(_judged, conversion, options, tell)
            mixed = search(program, build, judge, judged, tell)
            while mixed is not None:
                for file in (staged, *built.side):
                    file.unlink()
                build = replace(build, floats=mixed.floats)
                built = format.build(program, staged, build, tell)
                engine, check = _checked(conversion, program, staged, format, build, seed)
                judged = _on_data(conversion, engine, check, options, tell)
                if judged is None or judged.holds:
                    break
                mixed = mixed.one_more(judged)
                _log.debug("%d layers back in float32: %s", len(build.floats), judged.complaint)
        if judged is not None and not judged.holds:
            raise NotEquivalentError(judged.complaint)
        seconds["verify"] = time.perf_counter() - start
        _gate(check, options.min_sqnr)
        facts = _facts(conversion, options, format, program, engine, check, built.facts)
        facts |= _data_facts(judged, mixed, in_report=False)
        format.stamp(staged, facts)
        files = [staged, *built.side, write_manifest(staged, built.side, facts)]
        _log.info("written %s: %s in %s, %d bytes", path, format.name, options.precision, staged.stat().st_size)
        for file in files[1:]:
            outputs.stage(path.with_name(file.name), force=options.force)
    told = (*built.remarks, *([mixed.describe()] if mixed is not None else ()))
    notes = tuple(Remark("analysis", format.name, "", "", note) for note in told)
    names = tuple(path.with_name(f.name) for f in files)
    remarks = conversion.report.remarks + equalised + notes
    texts = tuple(str(p) for p in names)
    report = conversion.report.with_(
        engine=_keys(options, check) | _data_facts(judged, mixed, in_report=True),
        equivalent=not check.quantised,
        remarks=remarks,
        outputs=texts,
        seconds=seconds,
    )
    return Exported(path, names, check, report, conversion, judged)


def _equalised(program: Program, data: Sequence[Sequence[torch.Tensor]]) -> tuple[Program, tuple[Remark, ...]]:
    """The emitted program with the results of its channels evened out on data; powers of two round nothing."""
    copy = program.copy()
    measured = measure(copy, (filled(copy, values) for values in data))
    outcome = Driver(copy, allow_cost=False).run(equalize_phases(measured))
    return finalize(copy), tuple(outcome.remarks)


def _checked(
    conversion: Conversion, program: Program, staged: Path, format: Format, build: BuildOptions, seed: int
) -> tuple[Runnable | None, EngineCheck]:
    """Loads what was built and measures it; a machine that cannot run it is no reason to refuse it."""
    quantised = build.precision == "int8"
    make_room(c.value for p in (conversion.original, program) for c in p.constants.values())
    try:
        engine = format.load(staged)
    except MachineError as error:
        return None, EngineCheck(False, why=str(error), seed=seed, quantised=quantised)
    check = check_engine(conversion.original, program, engine, seed=seed, quantised=quantised, data=build.held_out)
    if not quantised:
        check_far(conversion.original, program, engine, seed=seed)
    return engine, check


def _on_data(
    conversion: Conversion, engine: Runnable | None, check: EngineCheck, options: ExportOptions, tell: Progress
) -> DataCheck | None:
    """What the file is worth on the samples; None without any. Raises MachineError where it cannot be run here."""
    if options.data is None:
        return None
    if engine is None:
        raise MachineError(f"the file cannot be judged on --data: {check.why}")
    return _judged(conversion, options, tell, engine)


def _judged(conversion: Conversion, options: ExportOptions, tell: Progress, engine: Runnable) -> DataCheck:
    how = fitted(options.card or {}, conversion.program).get("preprocessing")
    data = HeldOut(options.data, options.labels, how, options.max_drop, options.metric)
    return check_on_data(LoadedModel(to_module(conversion.original)), engine, data, tell)


def _data_facts(judged: DataCheck | None, mixed: Mixed | None, *, in_report: bool) -> dict[str, Any]:
    """What samples add to the report, or to the manifest."""
    if judged is None:
        return {}
    data = judged.as_dict() if in_report else judged.facts()
    return {"data": data, "kept_in_float": [] if mixed is None else [layer.name for layer in mixed.kept]}


def _gate(check: EngineCheck, least: float | None) -> None:
    if least is None:
        return
    if check.ran and check.sqnr is None:
        raise InputError("--min-sqnr needs an output of real numbers; all outputs of this network are integers")
    if check.sqnr is None:
        raise MachineError(f"--min-sqnr cannot be judged: {check.why}")
    if not check.sqnr >= least:
        raise NotEquivalentError(
            f"the signal-to-noise ratio is {check.sqnr:.1f} dB, where at least {least:g} dB is asked for"
        )


def _facts(
    conversion: Conversion,
    options: ExportOptions,
    format: Format,
    program: Program,
    engine: Runnable | None,
    check: EngineCheck,
    built: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest holds, and the file itself where it can."""
    if options.source is not None:
        source = {"file": options.source.name, "sha256": sha256_of(options.source, options.stamp)}
    else:
        state = to_module(conversion.original).state_dict()
        source = {"state_sha256": sha256_of_state(state)}
    inputs, outputs = (engine.inputs, engine.outputs) if engine is not None else ports_of(program)
    return {
        "reparam": __version__,
        "format": format.name,
        "source": source,
        "target": conversion.report.target,
        "precision": options.precision,
        "io_precision": options.io_precision,
        "inputs": [p.as_dict() for p in inputs],
        "outputs": [p.as_dict() for p in outputs],
        "build": {"torch": str(torch.__version__), **built},
        "verification": check.as_dict(),
        "verdict": check.verdict,
        **fitted(options.card or {}, program),
    }


def _keys(options: ExportOptions, check: EngineCheck) -> dict[str, Any]:
    """What an export adds to the report."""
    return {
        "format": options.format,
        "precision": options.precision,
        "io_precision": options.io_precision,
        "sqnr": check.as_dict()["sqnr"],
        "top1_agreement": check.top1,
        "engine": check.as_dict(),
        "verdict": check.verdict,
    }
