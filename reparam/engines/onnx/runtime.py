"""Runs ONNX models with onnxruntime on the CPU.

What this runtime has no kernels for in bfloat16 it computes in float32 with the same, rounded, weights; the name of the
runtime says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from reparam.engines.format import Port, Runnable
from reparam.errors import InputError
from reparam.onnx_input import (
    RunSizes,
    external_size,
    has_bfloat16,
    has_loops,
    open_session,
    read_file,
    read_model,
    run_session,
    runtime_version,
    side_files,
    widen,
)
from reparam.utils import Stamp

from .storage import ONE_FILE

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
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"})


class OnnxRunnable(Runnable):
    """A session of onnxruntime. path: of the file. model: what runs in place of the file's own content, if anything."""

    by = "onnxruntime"

    def __init__(self, path: Path, model: onnx.ModelProto | None = None) -> None:
        self.path = path
        content: bytes | None = None
        stamp: Stamp | None = None
        if model is None:
            stored, content, stamp, _ = read_file(path, weights=False)
            widened = has_bfloat16(stored)
            if widened or 0 < external_size(stored, path) < ONE_FILE:  # what was checked runs, not what is there later
                model = read_model(path)
            if widened:
                assert model is not None
                widen(model)
        else:
            stored, widened = model, False
        self.precision, self._limited, self._sizes = precision_of(stored), has_loops(stored), RunSizes(stored)
        large = model is None and bool(side_files(stored))
        self.model = model if widened or stamp is None else None
        del stored
        self.session = open_session(path, model, content=None if large else content, stamp=None if large else stamp)
        self.copied = widened
        note = ", bfloat16 weights, computed in float32" if widened else ""
        self.runtime = f"onnxruntime {runtime_version()} (CPU{note})"
        self.inputs = tuple(_port(v) for v in self.session.get_inputs())
        self.outputs = tuple(_port(v) for v in self.session.get_outputs())

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Runnable.run`."""
        return self._run(self.session, values)

    def trace(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Every floating value of the graph, computed without fusions."""
        model = type(self._proto())()
        model.CopyFrom(self._proto())
        given = {o.name for o in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name and name not in given]
        model.graph.output.extend(type(model.graph.output[0])(name=n) for n in names)
        session = open_session(self.path, model, fuse=False)
        found = self._run(session, values)
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

    def _run(self, session: Any, values: Sequence[Tensor]) -> list[Tensor]:
        feed = {p.name: v for p, v in zip(self.inputs, values, strict=True)}
        return run_session(session, feed, self.path.name, limited=self._limited, sizes=self._sizes)

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


def _port(value: Any) -> Port:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        raise InputError(f"'{value.name}' is of the type {value.type}, which is not run here; only tensors are")
    shape = tuple(s if isinstance(s, int) else str(s or f"{value.name}_{i}") for i, s in enumerate(value.shape))
    return Port(value.name, shape, dtype)
