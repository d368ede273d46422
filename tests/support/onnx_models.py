"""Small ONNX models as text, rewritten, run and listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


def rewritten(model: onnx.ModelProto, rewrite: Callable[[ir.Model], Any]) -> onnx.ModelProto:
    """What a rewrite, which changes a model in place or returns another, makes of a copy of `model`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    changed = ir.from_proto(twin)
    other = rewrite(changed)
    return ir.to_proto(other if isinstance(other, ir.Model) else changed)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def kinds(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]
