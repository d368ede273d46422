"""Runs ONNX models with onnxruntime on the CPU.

What this runtime has no kernels for in bfloat16 it computes in float32 with the same, rounded, weights; the name of the
runtime says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reparam.engines.format import Port, Runnable
from reparam.errors import InputError, MachineError, ReparamError
from reparam.utils import Stamp, first_line, memory_told, opened, path_of, stamp_of

from .limits import has_loops, tensors_in
from .storage import ONE_FILE, external_size, read_file, read_model, side_files

if TYPE_CHECKING:
    import onnx

    from reparam.engines.listing import ListedCall

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
LONGEST = 8  # seconds for one run of a graph with loops
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"})


class OnnxRunnable(Runnable):
    """A session of onnxruntime. path: of the file. model: what runs in place of the file's own content, if anything."""

    by = "onnxruntime"

    def __init__(self, path: Path, model: onnx.ModelProto | None = None) -> None:
        self.path = path
        content: bytes | None = None
        stamp: Stamp | None = None
        if model is None:
            stored, content, stamp = read_file(path, weights=False)
            widened = _has_bfloat16(stored)
            if widened or 0 < external_size(stored, path) < ONE_FILE:  # what was checked runs, not what is there later
                model = read_model(path)
            if widened:
                assert model is not None
                widen(model)
        else:
            stored, widened = model, False
        self.precision, self._limited = precision_of(stored), has_loops(stored)
        large = model is None and bool(side_files(stored))
        self.model = model if widened or stamp is None else None
        del stored
        self.session = _session(path, model, content=None if large else content, stamp=None if large else stamp)
        note = ", bfloat16 weights, computed in float32" if widened else ""
        self.runtime = f"onnxruntime {_version()} (CPU{note})"
        self.inputs = tuple(_port(v) for v in self.session.get_inputs())
        self.outputs = tuple(_port(v) for v in self.session.get_outputs())

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Runnable.run`."""
        return _run(self.session, self.inputs, values, self.path.name, limited=self._limited)

    def trace(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Every floating value of the graph, computed without fusions."""
        model = type(self._proto())()
        model.CopyFrom(self._proto())
        given = {o.name for o in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name and name not in given]
        model.graph.output.extend(type(model.graph.output[0])(name=n) for n in names)
        session = _session(self.path, model, fuse=False)
        found = _run(session, self.inputs, values, self.path.name, limited=self._limited)
        return [v for v in found if v.is_floating_point()]

    def calls(self) -> list[ListedCall] | None:
        """The nodes of the graph, see `listing`."""
        from .listing import onnx_calls

        return onnx_calls(self._proto())

    def twin(self, eps: float, seed: int) -> Runnable | None:
        """The same graph with every floating weight off by a relative `eps`."""
        import onnx

        model = type(self._proto())()
        model.CopyFrom(self._proto())
        generator = np.random.default_rng(seed)
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor)
            if np.issubdtype(value.dtype, np.floating):
                noise = 1.0 + eps * generator.uniform(-1.0, 1.0, value.shape)
                tensor.CopyFrom(onnx.numpy_helper.from_array((value * noise).astype(value.dtype), tensor.name))
        return OnnxRunnable(self.path, model)

    def _proto(self) -> onnx.ModelProto:
        return self.model if self.model is not None else read_model(self.path)


def precision_of(model: onnx.ModelProto) -> str:
    """`int8` for a quantised model, else the coarsest dtype of its weights."""
    import onnx

    if any(n.op_type in _QUANTISERS for n in model.graph.node):
        return "int8"
    found = {t.data_type for t in model.graph.initializer}
    kinds = (("bfloat16", onnx.TensorProto.BFLOAT16), ("float16", onnx.TensorProto.FLOAT16))
    known = next((name for name, kind in kinds if kind in found), None)
    only_double = onnx.TensorProto.DOUBLE in found and onnx.TensorProto.FLOAT not in found
    return known or ("float64" if only_double else "float32")


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every bfloat16 of the model becomes float32, in place; the values of the weights stay."""
    import onnx

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for tensor in tensors_in(model):
        if tensor.data_type == narrow:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == narrow:
                attribute.i = wide
    return model


def _has_bfloat16(model: onnx.ModelProto) -> bool:
    import onnx

    narrow = onnx.TensorProto.BFLOAT16
    ports = (*model.graph.input, *model.graph.output)
    return any(v.type.tensor_type.elem_type == narrow for v in ports) or any(
        t.data_type == narrow for t in tensors_in(model)
    )


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _session(
    path: Path,
    model: onnx.ModelProto | None,
    *,
    fuse: bool = True,
    content: bytes | None = None,
    stamp: Stamp | None = None,
) -> Any:
    """A session on one thread for each of torch's, which then compute the same sums in the same order every time.

    Of the model, where there is one, else of the content of the file, which a large one is mapped for; by its path only
    where weights lie beside it. stamp: of the file as it was looked at; another one is refused.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError("running ONNX needs onnxruntime; pip install 'reparam[onnx]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised; what is only worth knowing stays away from the terminal
    if not fuse:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if model is not None or content is not None:
            source = model.SerializeToString() if model is not None else content
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        if stamp is None:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with opened(path) as file:
            before = stamp_of(file)
            session = ort.InferenceSession(path_of(file), options, providers=["CPUExecutionProvider"])
            if not before == stamp == stamp_of(file):
                raise InputError(f"{path} has changed while it was loaded; load it again")
        return session
    except InputError:
        raise
    except Exception as error:
        text = reason_of(error)
        if "NOT_IMPLEMENTED" in str(error):
            raise MachineError(f"onnxruntime on this machine cannot run {path.name}: {text}") from error
        raise InputError(f"onnxruntime does not take {path}: {text}") from error


def reason_of(error: BaseException) -> str:
    """onnxruntime's message without its codes."""
    first = first_line(error)
    return first.rpartition(" : ")[2] if first.startswith("[ONNXRuntimeError]") else first


def _port(value: Any) -> Port:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        raise InputError(f"'{value.name}' is of the type {value.type}, which is not run here; only tensors are")
    shape = tuple(s if isinstance(s, int) else str(s or f"{value.name}_{i}") for i, s in enumerate(value.shape))
    return Port(value.name, shape, dtype)


def _run(
    session: Any, ports: Sequence[Port], values: Sequence[Tensor], name: str, *, limited: bool = False
) -> list[Tensor]:
    """The outputs. limited: whether the run is given up after LONGEST seconds."""
    import onnxruntime as ort

    feed = {p.name: v.detach().cpu().contiguous().numpy() for p, v in zip(ports, values, strict=True)}
    options = ort.RunOptions()
    options.log_severity_level = 4
    clock = threading.Timer(LONGEST, setattr, (options, "terminate", True)) if limited else None
    try:
        if clock is not None:
            clock.daemon = True
            clock.start()
        with memory_told(f"running {name}"):
            found = session.run(None, feed, options)
    except ReparamError:
        raise
    except Exception as error:
        if options.terminate:
            raise InputError(f"{name} has a loop that does not end within {LONGEST} seconds") from error
        raise InputError(f"{name} does not run on these inputs: {reason_of(error)}") from error
    finally:
        if clock is not None:
            clock.cancel()
    return [torch.from_numpy(np.ascontiguousarray(v)) for v in found if isinstance(v, np.ndarray)]
