"""ONNX models written by hand, and what onnxruntime gives for them beside what the importer makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from reparam.onnx_input import ImportedModel, import_onnx

F32, I64 = np.float32, np.int64
Arrays = Mapping[str, np.ndarray]


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str] | tuple[int, Sequence[int | str]]],
    outputs: Sequence[str] = ("y",),
    constants: Arrays | None = None,
    *,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """inputs: shapes by name, as pairs with their type where they are not float."""
    ports = []
    for name, shape in inputs.items():
        typed = isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[1], list | tuple)
        kind, sizes = shape if typed else (onnx.TensorProto.FLOAT, shape)
        ports.append(helper.make_tensor_value_info(name, kind, list(sizes)))
    graph = helper.make_graph(
        list(nodes),
        "graph",
        ports,
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9)


def imported(proto: onnx.ModelProto, folder: Path) -> ImportedModel:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return import_onnx(path)


def theirs(proto: onnx.ModelProto, values: Sequence[Tensor]) -> list[np.ndarray]:
    """What onnxruntime computes, without fusions."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {p.name: v.numpy() for p, v in zip(session.get_inputs(), values, strict=True)}
    found: list[np.ndarray] = session.run(None, feed)
    return found


def differs(proto: onnx.ModelProto, folder: Path, values: Sequence[Tensor], bound: float = 2e-6) -> str:
    """How the import differs from onnxruntime, by shape, dtype or a relative error; empty where it does not."""
    with torch.no_grad():
        found = imported(proto, folder)(*values)
    for (name, mine), other in zip(found.items(), theirs(proto, values), strict=True):
        if tuple(mine.shape) != other.shape or str(mine.numpy().dtype) != str(other.dtype):
            return f"{name}: {tuple(mine.shape)} {mine.dtype}, onnxruntime gives {other.shape} {other.dtype}"
        if not other.size:
            continue
        a, b = mine.numpy().astype(np.float64), other.astype(np.float64)
        gap = float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), 1e-30)
        if not gap <= bound:
            return f"{name}: off by {gap:.3g}"
    return ""


def draw(shapes: Sequence[Sequence[int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(s), generator=generator) for s in shapes]


def values(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=I64)


def check(
    folder: Path,
    op: str,
    shape: tuple[int, ...],
    constants: dict[str, Any] | None = None,
    *,
    opset: int = 17,
    **more: Any,
) -> None:
    """One node on one input, `x`, and constants in the order of its other inputs; one called "" is left out."""
    names = ["x", *(constants or {})]
    kept = {n: v for n, v in (constants or {}).items() if not n.startswith("_")}
    names = ["" if n.startswith("_") else n for n in names]
    proto = model([node(op, names, **more)], {"x": shape}, constants=kept, opset=opset)
    assert differs(proto, folder, draw([shape])) == "", f"{op} {opset} {more}"
