"""The calls of an ONNX graph as `diff` shows those of a program, so that both can stand side by side.

Layers with weights are spelled as torch spells them; where ONNX has another operator for the same thing, its own name
in small letters stands in the row, and the row is marked as changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reparam.engines.listing import ListedCall
from reparam.utils import one_line

if TYPE_CHECKING:
    import onnx

_NAMES = {"Relu": "relu", "PRelu": "prelu", "ReduceMean": "mean", "MaxPool": "max_pool2d", "HardSwish": "hardswish"}
QUANTISED = "_quantized"  # what onnxruntime puts behind the name of a weight


def onnx_calls(model: onnx.ModelProto) -> list[ListedCall]:
    """The nodes of the graph in order, those that compute with weights or sizes alone left out."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # operators that onnx does not know: what the file says of its values is all there is
        inferred = model
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    shapes = {v.name: _shape(v) for v in values}
    weights = {t.name: t for t in model.graph.initializer}
    weights.update(_dequantised(model.graph, weights))
    data = {v.name for v in model.graph.input} - set(weights)
    calls: list[ListedCall] = []
    for node in model.graph.node:
        operands = tuple(n for n in node.input if n in data)
        if not operands:
            continue
        data.update(node.output)
        calls.append(_call(node, weights, shapes, operands))
    return calls


def _dequantised(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto]) -> dict[str, onnx.TensorProto]:
    """The weights that are kept as integers, by what the graph calls them: (q - zero) * scale under its own name."""
    import onnx

    found = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not all(n in weights for n in node.input):
            continue
        q, scale, *zero = (onnx.numpy_helper.to_array(weights[n]) for n in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.ndim else 0
        along = [-1 if i == axis else 1 for i in range(q.ndim)] if scale.size > 1 else [1] * q.ndim
        shift = zero[0].astype(np.float32).reshape(along) if zero else 0.0
        value = (q.astype(np.float32) - shift) * scale.astype(np.float32).reshape(along)
        found[node.output[0]] = onnx.numpy_helper.from_array(value, weights[node.input[0]].name.removesuffix(QUANTISED))
    return found


def _call(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, str],
    operands: tuple[str, ...],
) -> ListedCall:
    import onnx

    names = [n for n in node.input if n in weights]
    arrays = [_tensor(onnx.numpy_helper.to_array(weights[n])) for n in names]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "PRelu":
        arrays = [a.reshape(-1) for a in arrays]
    layer = node.op_type in ("Conv", "ConvTranspose", "Gemm", "PRelu")
    if node.op_type in ("Conv", "ConvTranspose"):
        rank = arrays[0].dim() - 2 if arrays else 2
        name, settings = f"conv{'_transpose' if 'Trans' in node.op_type else ''}{rank}d", _geometry(attributes)
    elif node.op_type == "Gemm" and attributes.get("transB") and attributes.get("alpha", 1.0) == 1.0:
        name, settings = "linear", []
    else:
        name, settings = _NAMES.get(node.op_type, node.op_type.lower()), _settings(attributes)
    sizes = ["x".join(map(str, a.shape)) for a in arrays if a.dim()]
    inside = ", ".join([*sizes[:1], *(["bias"] if layer and len(sizes) == 2 else []), *settings])
    module = node.name.rpartition("/")[0]
    first = weights[names[0]].name if names and layer else ""
    owner = first.rpartition(".")[0] if first else module
    return ListedCall(
        module=one_line(module or owner),
        op=one_line(f"{name}({inside})" if inside else name),
        shape=one_line(shapes.get(node.output[0], "?")),
        anchor=one_line(f"{name} {first}") if first else "",
        weights=tuple(arrays) if layer else (),
        results=tuple(node.output),
        operands=operands,
    )


def _tensor(array: Any) -> torch.Tensor:
    """As torch has it; what numpy borrows (bfloat16) goes through float32."""
    value = np.asarray(array)
    return torch.from_numpy(np.array(value.astype(np.float32) if value.dtype.kind == "V" else value, order="C"))


def _geometry(attributes: Mapping[str, Any]) -> list[str]:
    """Stride, padding, dilation and groups where they are not what they are by default, as torch writes them."""
    pads = list(attributes.get("pads", ()))
    half = len(pads) // 2
    symmetric = pads[:half] == pads[half:]
    rows = (
        ("stride", list(attributes.get("strides", ())), 1),
        ("padding" if symmetric else "pads", pads[:half] if symmetric else pads, 0),
        ("dilation", list(attributes.get("dilations", ())), 1),
        ("groups", [attributes.get("group", 1)], 1),
    )
    return [f"{name}={_compact(values)}" for name, values, default in rows if any(v != default for v in values)]


def _settings(attributes: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_plain(value)}" for name, value in sorted(attributes.items())]


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return _compact(list(value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)[:40]


def _compact(values: list[Any]) -> str:
    return str(values[0]) if len(set(map(str, values))) == 1 else "[" + ",".join(map(str, values)) + "]"


def _shape(value: onnx.ValueInfoProto) -> str:
    """`Nx8x16x16`: N for a free batch, other free sizes by their names."""
    dims = value.type.tensor_type.shape.dim
    sizes = [d.dim_param or str(d.dim_value) for d in dims]
    return "x".join("N" if s == "batch" else s for s in sizes)
