"""OpenVINO models: converted from the ONNX model, run on the CPU.

Here, the CPU plugin is told to compute in the precision of the weights where it has kernels for it, else in float32. A
model cannot carry that wish: who compiles it elsewhere is told by the manifest. The name of the runtime says in which
precision the kernels of the layers really compute.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, MachineError
from reparam.ir import Program
from reparam.onnx_input import read_model
from reparam.utils import memory_told

from .format import BuildOptions, Built, Port, Runnable, Tell
from .onnx.source import write_source
from .ports import named_axes

NAME = "reparam"  # under which the facts stand in a model's runtime information
XML, WEIGHTS = ".xml", ".bin"
_TYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "boolean": "bool",
}
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
WARNING = (
    "by default, OpenVINO computes floating-point layers in bfloat16 on CPUs with AMX; compile this model with "
    "INFERENCE_PRECISION_HINT {INFERENCE_PRECISION_HINT}, as it was checked"
)
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "DeformableConvolution", "RNNCell", "RNNSeq")
_NARROW = {"bf16": "BF16", "f16": "FP16"}  # type -> what the CPU plugin calls it among what it can do


def weights_of(path: Path) -> Path:
    """`net.xml` -> `net.bin`, where its weights are."""
    return path.with_suffix(WEIGHTS)


def build_openvino(program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
    """Writes the model to `path` and its weights beside it.

    Raises InputError for another suffix than .xml, and naming the operator and its layer for what OpenVINO lacks.
    """
    if path.suffix != XML:
        raise InputError(f"OpenVINO reads its models from {XML} files; name the file {path.stem}{XML}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        facts = write_source(program, options, source, tell)
        convert_onnx(source, path)
    hint = {"INFERENCE_PRECISION_HINT": _HINTS[options.precision]}
    facts |= {"openvino": version(), "compile_with": hint, "warning": WARNING.format(**hint)}
    return Built(facts, (weights_of(path),), (facts["warning"],))


@functools.cache
def _core() -> Any:
    """The one core of this process.

    Each core gives the thread a stack for signals and takes it back at its end. Where two overlap, the thread is left
    with a stack that is gone, and the next Ctrl-C ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def convert_onnx(source: Path, path: Path) -> None:
    """Writes the ONNX model in `source` as one of OpenVINO. Raises InputError for what OpenVINO lacks."""
    import openvino

    try:
        model = _core().read_model(source)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise _not_taken(error, source) from error
    openvino.save_model(model, path, compress_to_fp16=False)


def _not_taken(error: Exception, source: Path) -> InputError:
    """OpenVINO names the operators; the ONNX model knows their layers."""
    found = re.search(r"No conversion rule found for operations: (\w+)", str(error))
    nodes = read_model(source, weights=False).graph.node
    node = next((n for n in nodes if found is not None and n.op_type == found[1]), None)
    if node is None:
        return InputError(f"OpenVINO does not take the network: {reason(error)}")
    return InputError(f"OpenVINO has no form of {node.op_type}, which '{node.name.rpartition('/')[0]}' uses")


def reason(error: BaseException) -> str:
    """OpenVINO's own message without the places in its sources."""
    quoted = error.object if isinstance(error, UnicodeDecodeError) else b""  # it quotes files that are no text
    lines = [line.strip() for line in (quoted.decode("utf-8", "replace") or str(error)).splitlines()]
    told = [t for t in lines if t and not t.startswith("Exception from ") and " failed at src/" not in t]
    return told[0].rstrip(". ") if told else type(error).__name__


def version() -> str:
    """Such as "2026.4.1"."""
    import openvino

    return str(openvino.__version__).partition("-")[0]


def stamp_openvino(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes `facts` into the model's runtime information: texts as they are, all else as JSON."""
    import openvino

    model = _read(path)
    for key, value in sorted(facts.items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        model.set_rt_info(text, [NAME, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def _read(path: Path) -> Any:
    """The model, its weights read and not mapped: the file may be written again."""
    try:
        core = _core()
    except ImportError as error:
        raise MachineError("running OpenVINO models needs openvino; pip install 'reparam[openvino]'") from error
    weights = weights_of(path)
    if not weights.is_file():
        raise InputError(f"{path} has its weights in {weights.name}, which is not beside it; copy both files")
    try:
        return core.read_model(path, weights, {"ENABLE_MMAP": False})
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged or no model of OpenVINO {version()}: {reason(error)}") from error


class OpenVinoRunnable(Runnable):
    """A model compiled for the CPU, on as many threads as torch has."""

    by = "openvino"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = _read(path)
        narrow = _weight_types(self.model)
        self.precision = next((_TYPES[t] for t in ("i8", *_NARROW) if t in narrow), "float32")
        able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._hint = next((t for t, name in _NARROW.items() if t in narrow and name in able), "f32")
        self._compiled = self._compile(self.model)
        self.runtime = f"openvino {version()} (CPU, computed in {self._computed_in()})"
        self.inputs = tuple(self._port(v) for v in self.model.inputs)
        self.outputs = tuple(self._port(v) for v in self.model.outputs)

    def _compile(self, model: Any) -> Any:
        how = {"INFERENCE_PRECISION_HINT": self._hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            return _core().compile_model(model, "CPU", how)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise MachineError(f"OpenVINO cannot run {self.path.name} on this machine: {reason(error)}") from error

    def _computed_in(self) -> str:
        """What the kernels of the layers with weights compute in, the most frequent first: `int8 and float32`."""
        found: Counter[str] = Counter()
        for op in self._compiled.get_runtime_model().get_ops():
            facts = op.get_rt_info()
            layer, kind = (_text(facts, name) for name in ("layerType", "runtimePrecision"))
            if layer in _LAYERS:
                found["int8" if kind in ("i8", "u8") else _TYPES.get(kind, kind)] += 1
        return " and ".join(kind for kind, _ in found.most_common()) or _TYPES[self._hint]

    def _port(self, value: Any) -> Port:
        name = sorted(value.get_names())[0] if value.get_names() else value.node.get_friendly_name()
        kind = value.element_type.get_type_name()
        if kind not in _TYPES:
            raise InputError(f"'{name}' of {self.path.name} is of the type {kind}, which torch has no tensors of")
        shape = [-1 if d.is_dynamic else d.get_length() for d in value.partial_shape]
        return Port(name, named_axes(shape), _TYPES[kind])

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Runnable.run`."""
        return self._run(self._compiled, values)

    def _run(self, compiled: Any, values: Sequence[Tensor]) -> list[Tensor]:
        import openvino

        feed = [_to_openvino(openvino, v) for v in values]
        try:
            with memory_told(f"running {self.path.name}"):
                found = compiled(feed)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path.name} does not run on these inputs: {reason(error)}") from error
        return [_to_torch(found[i], v) for i, v in enumerate(compiled.outputs)]

    def trace(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Every floating value that a constant is not."""
        model = self.model.clone()
        known = [v for op in model.get_ordered_ops() for v in op.outputs() if _is_value(op, v)]
        model.add_outputs(known)
        return [v for v in self._run(self._compile(model), values) if v.is_floating_point()]


def _is_value(op: Any, value: Any) -> bool:
    kinds = ("Parameter", "Constant", "Result")
    return op.get_type_name() not in kinds and value.element_type.get_type_name() in ("f32", *_NARROW)


def _text(facts: Any, name: str) -> str:
    return str(facts[name].astype(str)) if name in facts else ""


def _weight_types(model: Any) -> set[str]:
    constants = (op for op in model.get_ops() if op.get_type_name() == "Constant")
    return {op.get_element_type().get_type_name() for op in constants}


def _to_openvino(openvino: Any, value: Tensor) -> Any:
    value = value.detach().cpu().contiguous()
    if value.dtype != torch.bfloat16:  # numpy has no bfloat16: the bits are handed over under its name
        return openvino.Tensor(value.numpy())
    return openvino.Tensor(value.view(torch.int16).numpy(), list(value.shape), openvino.Type.bf16)


def _to_torch(value: Any, port: Any) -> Tensor:
    array = np.array(value)  # OpenVINO reuses its own memory
    if port.element_type.get_type_name() == "bf16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
