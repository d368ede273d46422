"""The clean-up of an ONNX graph: onnxsim, onnxslim, and forms that engines run faster than those that exporters write.

    ReduceMean over height and width  ->  GlobalAveragePool
    Resize to a size that is computed ->  Resize by whole factors, where both sizes are known

Engines keep their own memory layout through the forms on the right, and leave it for those on the left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .depthwise import split_depthwise
from .reshapes import keep_rows

if TYPE_CHECKING:
    import onnx

IN_MEMORY = 1_500_000_000  # bytes; larger models are not simplified, since that takes one message of at most 2 GiB
RESIZE_INPUTS = 4  # values, region, scales, sizes


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cleaned by onnxsim, and by onnxslim where it is installed and leaves fewer nodes; names of ports are kept.

    Nothing is taken on trust: the file that is written is compared with the network afterwards.
    """
    pool_globally(model)
    resize_by_factors(model)
    simple = model if model.ByteSize() > IN_MEMORY else _simpler(model)
    keep_rows(simple)
    split_depthwise(simple)
    return simple


def _simpler(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simple, _ = onnxsim.simplify(model)
    simple = _if_alike(model, simple)
    try:
        import onnxslim
    except ImportError:
        return simple
    slim = onnxslim.slim(_copy(simple))
    return _if_alike(simple, slim) if len(slim.graph.node) < len(simple.graph.node) else simple


def strip(model: onnx.ModelProto) -> None:
    """Removes what tells of the machine and of the exporter's insides: stack traces, graph listings, versions."""
    graph = model.graph
    for item in (model, graph, *graph.node, *all_values(graph), *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")  # an empty text that is set would make ports look changed
    model.producer_name = "reparam"
    model.ClearField("producer_version")


def all_values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs, the outputs and what is known of the values between them."""
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def pool_globally(model: onnx.ModelProto) -> None:
    """Means over the last two of four axes, which stay as axes of size one, become GlobalAveragePool nodes."""
    known = _constants(model.graph)
    sizes = {v.name: _dims(v) for v in all_values(model.graph)}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(sizes.get(node.input[0], ())) != 4 or len(node.input) < 2:
            continue
        axes = known.get(node.input[1])
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes is None or not kept or sorted(int(a) % 4 for a in axes) != [2, 3]:
            continue
        node.op_type = "GlobalAveragePool"
        node.name = node.name.replace("ReduceMean", "GlobalAveragePool")
        del node.input[1:]
        del node.attribute[:]


def resize_by_factors(model: onnx.ModelProto) -> None:
    """Resizes of images by whole factors get these in place of the size, which a free batch makes a computed one."""
    import onnx

    sizes = {v.name: _dims(v) for v in all_values(model.graph)}
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) != RESIZE_INPUTS or not node.input[3]:
            continue
        before, after = sizes.get(node.input[0], ()), sizes.get(node.output[0], ())
        if len(before) != 4 or len(after) != 4 or not all((*before[2:], *after[2:])):
            continue
        if any(a % b for b, a in zip(before[2:], after[2:], strict=True)):
            continue
        factors = [1.0, 1.0, *(float(a // b) for b, a in zip(before[2:], after[2:], strict=True))]
        name = f"{node.output[0]}_factors"
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [4], factors))
        del node.input[1:]
        node.input.extend(["", name])


def _constants(graph: onnx.GraphProto) -> dict[str, Any]:
    """The small integer tensors that nodes read as axes, by name."""
    import onnx

    whole = onnx.TensorProto.INT64
    found = {t.name: t for t in graph.initializer if t.data_type == whole}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is not None and value.data_type == whole:
            found[node.output[0]] = value
    return {name: onnx.numpy_helper.to_array(t).reshape(-1).tolist() for name, t in found.items()}


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape, zero where a size is free."""
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = type(model)()
    twin.CopyFrom(model)
    return twin


def _if_alike(before: onnx.ModelProto, after: Any) -> onnx.ModelProto:
    """`after`, when it takes and gives the same as `before`."""
    same = after is not None and all(
        [v.SerializeToString() for v in a] == [v.SerializeToString() for v in b]
        for a, b in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output))
    )
    if not same:
        return before
    strip(after)
    found: onnx.ModelProto = after
    return found
