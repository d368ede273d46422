"""The calls of an ONNX graph as `diff` shows those of a program, so that both can stand side by side.

Layers, pools and operators that torch has too are spelled as torch spells them; others have their own name in small
letters, and their rows are marked as changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reparam.engines.listing import ListedCall
from reparam.utils import one_line

if TYPE_CHECKING:
    import onnx

_NAMES = {
    "AveragePool": "avg_pool",
    "Clip": "clamp",
    "Concat": "cat",
    "GlobalAveragePool": "mean",
    "LayerNormalization": "layer_norm",
    "LeakyRelu": "leaky_relu",
    "MaxPool": "max_pool",
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "Transpose": "permute",
}
_POOLS = ("AveragePool", "MaxPool")
_WITH_A_NUMBER = ("Add", "Sub", "Mul", "Div", "Pow")
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
    sizes: set[str] = set()
    calls: list[ListedCall] = []
    for node in model.graph.node:
        operands = tuple(n for n in node.input if n in data)
        if node.op_type in ("Shape", "Size") or (not operands and any(n in sizes for n in node.input)):
            sizes.update(node.output)
        if node.op_type == "Expand" and node.input[1] in sizes:  # a weight for each sample
            operands = operands or (node.input[0],)
        if not operands or node.op_type in ("Shape", "Size"):
            continue
        data.update(node.output)
        calls.append(_call(node, weights, shapes, operands))
    return _with_biases(calls)


def _with_biases(calls: Sequence[ListedCall]) -> list[ListedCall]:
    """A product with a weight and the sum with a vector that follows it are one linear layer with a bias."""
    readers = Counter(name for call in calls for name in call.operands)
    result: list[ListedCall] = []
    for call in calls:
        last = result[-1] if result else None
        if last is not None and _is_bias(last, call) and readers[last.results[0]] == 1:
            op = f"{last.op[:-1]}, bias)"
            result[-1] = replace(last, op=op, weights=(*last.weights, *call.weights), results=call.results)
        else:
            result.append(call)
    return result


def _is_bias(product: ListedCall, call: ListedCall) -> bool:
    alone = product.op.startswith("linear(") and len(product.weights) == 1 and call.operands == product.results
    return alone and call.op.startswith("add(") and [w.shape for w in call.weights] == [product.weights[0].shape[:1]]


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
    module = node.name.rpartition("/")[0]
    first = weights[names[0]].name if names else ""
    layer = node.op_type in ("Conv", "ConvTranspose", "Gemm", "PRelu", "LayerNormalization")
    if node.op_type in ("Conv", "ConvTranspose"):
        rank = arrays[0].dim() - 2 if arrays else 2
        name, settings = f"conv{'_transpose' if 'Trans' in node.op_type else ''}{rank}d", _geometry(attributes)
    elif _is_linear(node.op_type, attributes) and names[:1] == [node.input[1]] and arrays[0].dim() == 2:
        turned = not attributes.get("transB")
        name, settings, layer = "linear", [], True
        arrays = [arrays[0].T if turned else arrays[0], *arrays[1:]]
        first = f"{module}.weight" if turned and module else first
    else:
        name, settings = _NAMES.get(node.op_type, node.op_type.lower()), _settings(node.op_type, attributes, arrays)
        name += f"{len(attributes['kernel_shape'])}d" if node.op_type in _POOLS else ""
    told = layer or node.op_type not in ("Reshape", "ReduceMean", "ReduceSum")  # there an operand holds settings
    sizes = ["x".join(map(str, a.shape)) for a in arrays if a.dim() and told]
    inside = ", ".join([*sizes[:1], *(["bias"] if layer and len(sizes) == 2 else []), *settings])
    first = first if layer else ""
    owner = first.rpartition(".")[0] if first else module
    return ListedCall(
        module=one_line(module or owner),
        op=one_line(f"{name}({inside})" if inside else name),
        shape=one_line(shapes.get(node.output[0], "?")),
        anchor=one_line(f"{name} {first}") if first else "",
        weights=tuple(a for a in arrays if layer or (told and a.dim() and a.is_floating_point())),
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


def _is_linear(operator: str, attributes: Mapping[str, Any]) -> bool:
    scaled = not attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    return operator in ("Gemm", "MatMul") and not scaled and not attributes.get("transA")


def _settings(operator: str, attributes: Mapping[str, Any], arrays: Sequence[torch.Tensor]) -> list[str]:
    """What the result depends on beside the operands, in torch's words where they are known."""
    numbers = [f"{a.item():g}" for a in arrays if a.numel() == 1]
    if operator in _POOLS:
        return _pool(attributes, average=operator == "AveragePool")
    if operator == "LayerNormalization" and arrays:
        eps = float(f"{attributes.get('epsilon', 1e-5):.6g}")
        return [f"normalized_shape=[{','.join(map(str, arrays[0].shape))}]", *([] if eps == 1e-5 else [f"eps={eps}"])]
    if operator == "HardSigmoid" and abs(attributes.get("alpha", 0.2) - 1 / 6) < 1e-6:
        return []
    if operator in ("Concat", "Softmax", "LogSoftmax"):
        return [f"dim={attributes.get('axis', -1)}"]
    if operator == "Transpose":
        return [f"dims={_compact(list(attributes['perm']))}"] if "perm" in attributes else []
    if operator == "Clip" and len(numbers) == 2:
        return [f"min={numbers[0]}", f"max={numbers[1]}"]
    if operator in _WITH_A_NUMBER and len(numbers) == 1:
        return [f"{'exponent' if operator == 'Pow' else 'other'}={numbers[0]}"]
    if operator in ("ReduceMean", "ReduceSum"):
        axes = attributes.get("axes") or (arrays[0].reshape(-1).tolist() if arrays else [])
        return [f"dim=[{','.join(map(str, axes))}]", *(["keepdim=True"] if attributes.get("keepdims", 1) else [])]
    return [f"{name}={_plain(value)}" for name, value in sorted(attributes.items()) if name != "allowzero"]


def _pool(attributes: Mapping[str, Any], *, average: bool) -> list[str]:
    """The window, and what is not by default, as torch writes it."""
    kernel = list(attributes["kernel_shape"])
    stride = list(attributes.get("strides") or [1] * len(kernel))
    settings = [f"kernel_size={_compact(kernel)}", *([] if stride == kernel else [f"stride={_compact(stride)}"])]
    around = {k: v for k, v in attributes.items() if k in ("pads", "dilations")}
    settings += [s.replace("pads=", "padding=") for s in _geometry(around)]
    settings += ["ceil_mode=True"] if attributes.get("ceil_mode") else []
    inside_alone = average and any(attributes.get("pads", ())) and not attributes.get("count_include_pad")
    return settings + (["count_include_pad=False"] if inside_alone else [])


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
