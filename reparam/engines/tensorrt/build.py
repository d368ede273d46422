"""Builds TensorRT engines from ONNX models. Networks are strongly typed: the precision is that of the graph.

TF32 is off: it rounds the operands of float32 products to 10 bits of mantissa, and the engine is to be the network.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.engines.engine_check import declared_sizes
from reparam.engines.format import BuildOptions, Built, Tell
from reparam.engines.onnx import check_source, write_source
from reparam.errors import InputError, MachineError
from reparam.ir import Program, shape_of
from reparam.onnx_input import read_model

from .bindings import (
    NAME,
    TITLES,
    capabilities,
    check_targets,
    choose_module,
    import_module,
    read_targets,
    reason,
    start_log,
)

if TYPE_CHECKING:
    import onnx

LARGEST_BATCH = 32
STEPS = 1000  # of the progress of a build, which TensorRT reports as phases within phases
MACHINE_ERRORS = ("Cuda Runtime", "Cuda Driver", "OutOfMemory", "out of memory")


@dataclass(frozen=True)
class Range:
    """What an engine takes along a free axis, and the size that it is tuned for."""

    least: int
    best: int
    most: int

    def as_list(self) -> list[int]:
        """Least, best, most."""
        return [self.least, self.best, self.most]


def read_profile(text: str | None) -> dict[str, Range]:
    """`"batch=1:8:32,height=64:224:448"` -> a range for each axis. Raises InputError."""
    found: dict[str, Range] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*([\w.]+)=(\d+):(\d+):(\d+)\s*", part)
        least, best, most = (int(match[i]) for i in (2, 3, 4)) if match else (0, 0, 0)
        if match is None or not 1 <= least <= best <= most:
            raise InputError(f"'{part}' is not a range of sizes; write batch=LEAST:BEST:MOST, such as batch=1:8:32")
        found[match[1]] = Range(least, best, most)
    return found


def build_engine(program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
    """Writes the engine to `path`.

    Raises InputError naming the operator and its layer for what TensorRT does not take, NotEquivalentError when the
    ONNX model is not the program, MachineError when the GPU or the memory fails.
    """
    name = choose_module(options.settings.get("runtime"))
    targets = read_targets(options.settings.get("gpu"))
    check_targets(name, targets)
    trt, log = import_module(name), start_log(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        facts = write_source(program, options, source, tell)
        ranges = axis_ranges(program, read_model(source, weights=False), read_profile(options.settings.get("profile")))
        builder = trt.Builder(log)
        network, parser = parsed(trt, builder, log, source)
        facts |= check_source(program, options, source)
        network.name = f"{NAME} {options.precision}"
        config = _config(trt, builder, targets)
        if any(ranges.values()):
            config.add_optimization_profile(_profile(builder, network, ranges))
        monitor = _monitor(trt, tell)
        config.progress_monitor = monitor
        tell("engine", 0, STEPS)
        blob = builder.build_serialized_network(network, config)
        del parser  # the weights that it read had to live until here
    if monitor.stopped is not None:
        raise monitor.stopped
    if blob is None:
        raise _refused(name, targets, log.errors)
    path.write_bytes(memoryview(blob))
    tell("engine", STEPS, STEPS)
    axes = {axis: r.as_list() for row in ranges.values() for axis, r in row.values()}
    facts |= {
        "runtime": name,
        name: str(trt.__version__),
        "gpus": list(targets or ("this machine's",)),
        "profile": axes,
    }
    return Built(facts, remarks=tuple(dict.fromkeys(log.warnings)))


def _config(trt: Any, builder: Any, targets: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    known = capabilities(trt)
    if targets:
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(known[target], i)
    return config


def parsed(trt: Any, builder: Any, log: Any, source: Path) -> tuple[Any, Any]:
    """The network in an ONNX file and its parser, which has to live as long as the network.

    Raises InputError naming the first operator that TensorRT does not take.
    """
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(source)):
        return network, parser
    title = TITLES[trt.__name__]
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    first = next((e for e in errors if e.node_operator()), None)
    if first is None:
        raise InputError(f"{title} does not take the network: {reason([e.desc() for e in errors])}")
    why = re.sub(r"^Assertion failed: \(.*?\): ", "", reason([first.desc()]))
    told = f": {why}" if " " in why else ""  # a bare condition tells nothing
    raise InputError(f"{title} has no form of {first.node_operator()}, which '{layer_of(first)}' uses{told}")


def layer_of(error: Any) -> str:
    """The layer of a parser's error: `layer1.0.conv1` of the node `layer1.0.conv1/Conv`, else the node's own name."""
    node = str(error.node_name())
    return node.rpartition("/")[0] or node


def _refused(name: str, targets: Sequence[str], errors: list[str]) -> InputError | MachineError:
    kind = MachineError if any(m in e for e in errors for m in MACHINE_ERRORS) else InputError
    where = f" for {', '.join(targets)}" if targets else ""
    return kind(f"{TITLES[name]} does not build this network{where}: {reason(errors)}")


# ---- free sizes --------------------------------------------------------------------------------------------------

Ranges = dict[str, dict[int, tuple[str, Range]]]


def axis_ranges(program: Program, model: onnx.ModelProto, asked: Mapping[str, Range]) -> Ranges:
    """For each input, its free axes: position -> (name, range).

    Where nothing is asked, a batch goes from 1 to 32 and another axis from half to twice its traced size; what is
    checked lies inside. Raises InputError for a range of an axis that is not free.
    """
    checked = declared_sizes(program, low=True)
    nodes = {str(n.target): n for n in program.placeholders}
    specs = {s.name: s for s in program.inputs}
    found: Ranges = {}
    for value in model.graph.input:
        spec, hints = specs[value.name], shape_of(nodes[value.name])
        dims = value.type.tensor_type.shape.dim
        row = found.setdefault(value.name, {})
        for i, (symbol, hint) in enumerate(zip(spec.shape, hints, strict=True)):
            if isinstance(symbol, str):
                axis = dims[i].dim_param
                tried = [sizes.get(symbol, hint) for sizes in checked]
                row[i] = (axis, asked.get(axis) or _default(hint, tried, batch=i == 0))
    free = {axis for row in found.values() for axis, _ in row.values()}
    for axis in asked:
        if axis not in free:
            raise InputError(
                f"--profile names '{axis}', which is not free; free are: {', '.join(sorted(free)) or 'none'}"
            )
    return found


def _default(hint: int, tried: Sequence[int], *, batch: bool) -> Range:
    if batch:
        return Range(1, 8, max(LARGEST_BATCH, *tried))
    return Range(max(min(hint // 2, *tried), 1), hint, max(2 * hint, *tried))


def _profile(builder: Any, network: Any, ranges: Ranges) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        row = ranges.get(tensor.name, {})
        sizes = [row[j][1].as_list() if j in row else [s] * 3 for j, s in enumerate(tensor.shape)]
        least, best, most = (tuple(s[k] for s in sizes) for k in range(3))
        profile.set_shape(tensor.name, least, best, most)
    return profile


# ---- progress ----------------------------------------------------------------------------------------------------


class Phases:
    """The share of a build that is done, from phases that lie in each other."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside of `parent`."""
        self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, index: int) -> float:
        """A phase has done its steps up to `index`; returns the share of all that is done, which never falls."""
        if name in self._phases:
            parent, steps, _ = self._phases[name]
            self._phases[name] = (parent, steps, min(index + 1, steps))
        top = next((n for n, (parent, _, _) in self._phases.items() if parent is None), None)
        self._best = max(self._best, self._share(top)) if top is not None else self._best
        return self._best

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._phases.pop(name, None)

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inner = sum(self._share(n) for n, (parent, _, _) in self._phases.items() if parent == name)
        return min((done + inner) / steps, 1.0)


def _monitor(trt: Any, tell: Tell) -> Any:
    """Passes progress on to `tell`, and stops the build when that raises, such as on an interruption."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is not typed
        def __init__(self) -> None:
            super().__init__()
            self.phases = Phases()
            self.stopped: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)

        def step_complete(self, name: str, index: int) -> bool:
            try:
                tell("engine", int(STEPS * self.phases.step(name, index)), STEPS)
            except BaseException as error:  # it must not travel through TensorRT
                self.stopped = error
            return self.stopped is None

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

    return Monitor()
