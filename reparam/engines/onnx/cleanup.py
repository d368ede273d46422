"""The clean-up of an ONNX graph: onnxsim, onnxslim, and forms that engines run faster than those that exporters write.

    ReduceMean over height and width  ->  GlobalAveragePool
    Resize to a size that is computed ->  Resize by whole factors, where both sizes are known

Engines keep their own memory layout through the forms on the right, and leave it for those on the left. Both are exact:
the same sum over the same values, and the same places that the values are read from. The first is done for maps, that
is values of four axes, whose last two the mean leaves as axes of size one; the second where each factor is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from .depthwise import split_depthwise
from .reshapes import keep_rows
from .values import sizes_of, untyped

if TYPE_CHECKING:
    import onnx

IN_MEMORY = 1_500_000_000  # bytes; larger models are not simplified, since that takes one message of at most 2 GiB
RESIZE_INPUTS = 4  # values, region, scales, sizes


def simplified(model: ir.Model) -> ir.Model:
    """Cleaned by onnxsim, and by onnxslim where it is installed and leaves fewer nodes; names of ports are kept.

    Nothing is taken on trust: the file that is written is compared with the network afterwards. `model` is changed.
    """
    pool_globally(model)
    resize_by_factors(model)
    weights = sum(t.nbytes for t in model.graph.initializers.tensors())
    simple = model if weights > IN_MEMORY else _simpler(model)
    keep_rows(simple)
    split_depthwise(simple)
    return simple


def _simpler(model: ir.Model) -> ir.Model:
    """What onnxsim makes of the model, or onnxslim of that. Both take messages: it becomes one, and comes from one."""
    import onnxsim

    before = ir.to_proto(untyped(model))
    simple = _if_alike(before, onnxsim.simplify(before)[0])
    try:
        import onnxslim
    except ImportError:
        slim = simple
    else:
        slim = _if_alike(simple, onnxslim.slim(_copy(simple)))
    found = ir.from_proto(slim if len(slim.graph.node) < len(simple.graph.node) else simple)
    strip(found)
    return found


def strip(model: ir.Model) -> None:
    """Removes what tells of the machine and of the exporter's insides: stack traces, graph listings, versions."""
    ClearMetadataAndDocStringPass()(model)
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
        value.doc_string = None
    for tensor in model.graph.initializers.tensors():
        tensor.metadata_props.clear()
        if isinstance(tensor, ir.TensorProtoTensor):  # writes what it was read from
            del tensor.raw.metadata_props[:]
            tensor.raw.ClearField("doc_string")
        else:
            tensor.doc_string = None
    model.metadata_props.clear()
    model.doc_string, model.producer_name, model.producer_version = None, "reparam", None


def pool_globally(model: ir.Model) -> None:
    """Means over the last two of four axes, which stay as axes of size one, become GlobalAveragePool nodes."""
    for node in model.graph:
        if node.op_type != "ReduceMean" or _axes(node) != [2, 3] or not node.attributes.get_int("keepdims", 1):
            continue
        node.op_type = "GlobalAveragePool"
        node.name = (node.name or "").replace("ReduceMean", "GlobalAveragePool")
        node.resize_inputs(1)
        node.attributes.clear()


def _axes(node: ir.Node) -> list[int] | None:
    """Those of a map that a node names in its second input, where that is a constant."""
    values, axes = (*node.inputs, None)[:2]
    if values is None or axes is None or len(sizes_of(values)) != 4 or axes.is_graph_input():
        return None
    known = ir.convenience.get_const_tensor(axes)
    return None if known is None else sorted(int(a) % 4 for a in known.numpy().reshape(-1))


def resize_by_factors(model: ir.Model) -> None:
    """Resizes of images by whole factors get these in place of the size, which a free batch makes a computed one."""
    for node in model.graph:
        if node.op_type != "Resize" or len(node.inputs) != RESIZE_INPUTS or "axes" in node.attributes:
            continue
        factors = _factors(node)
        if factors is None:
            continue
        name = f"{node.outputs[0].name}_factors"
        value = ir.Value(name=name, const_value=ir.tensor(np.array(factors, np.float32), name=name))
        model.graph.register_initializer(value)
        node.replace_input_with(1, None)
        node.replace_input_with(2, value)
        node.resize_inputs(3)


def _factors(node: ir.Node) -> list[int] | None:
    """By how much a Resize node that names a size enlarges each axis of a map, where that is a whole number."""
    values, size = node.inputs[0], node.inputs[3]
    before, after = sizes_of(values) if values is not None else (), sizes_of(node.outputs[0])
    if size is None or len(before) != 4 or len(after) != 4:
        return None
    factors = [1, 1]
    for old, new in zip(before[2:], after[2:], strict=True):
        if not isinstance(old, int) or not isinstance(new, int) or not old or not new or new % old:
            return None
        factors.append(new // old)
    return factors


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
    found: onnx.ModelProto = after if same else before
    return found
