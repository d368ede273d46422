"""Small ONNX models as text, run and listed."""

from __future__ import annotations

import numpy as np
import onnx

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def kinds(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]
