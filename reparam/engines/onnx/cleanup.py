"""The clean-up of an ONNX graph: onnxsim, onnxslim, and forms that engines run faster than those that exporters write.

    ReduceMean over height and width  ->  GlobalAveragePool
    Resize to a size that is computed ->  Resize by whole factors, where both sizes are known

Engines keep their own memory layout through the forms on the right, and leave it for those on the left. Both are exact:
the same sum over the same values, and the same places that the values are read from. The first is done for maps, that
is values of four axes, whose last two the mean leaves as axes of size one; the second where each factor is whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from .depthwise import split_depthwise
from .fourier import multiply_out
from .reshapes import keep_rows
from .values import sizes_of, untyped

if TYPE_CHECKING:
    import onnx

IN_MEMORY = 1_500_000_000  # bytes; larger models are not simplified, since that takes one message of at most 2 GiB
HEAVY = 1 << 28  # bytes of weights; above, large ones are left out of that message where nothing can become of them
LARGE = 1 << 20  # bytes of one weight
ZEROS = "zeros"  # the name of a file
_BY_VALUES = ("eliminate_duplicate_initializer",)  # what takes two weights that are not there for the same
_WIDE_PADS = ("fuse_pad_into_pool",)  # also where a pad is as wide as the kernel, which is no pool of ONNX then
# What onnxslim folds along the output channels whichever axis the factors lie on; onnxsim folds those that lie there.
_BY_LENGTH = ("FusionConvMul", "FusionConvTransposeMul", "FusionGemmMul")
_OF_LAYERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}  # where a layer reads its weight
RESIZE_INPUTS = 4  # values, region, scales, sizes


def simplified(model: ir.Model) -> ir.Model:
    """Cleaned by onnxsim, and by onnxslim where it is installed and leaves fewer nodes; names of ports are kept.

    Nothing is taken on trust: the file that is written is compared with the network afterwards. `model` is changed.
    """
    pool_globally(model)
    resize_by_factors(model)
    simple = _simpler_without_weights(model) if _bytes_of(model) > HEAVY else _simpler_in_memory(model)
    multiply_out(simple)
    keep_rows(simple)
    split_depthwise(simple)
    return simple


def _bytes_of(model: ir.Model) -> int:
    """Of its weights."""
    return sum(t.nbytes for t in model.graph.initializers.tensors())


def _simpler_in_memory(model: ir.Model) -> ir.Model:
    """`_simpler`; of a model that is too large for one message, itself."""
    if _bytes_of(model) > IN_MEMORY:
        return model
    try:
        return _simpler(model)
    except Exception:  # of onnxsim, which does not take every model that is one, such as one whose output is a weight
        return _slimmer(ir.to_proto(untyped(model)))


def _simpler_without_weights(model: ir.Model) -> ir.Model:
    """`_simpler`, which sees nothing of the large weights but their names, types and shapes.

    They are said to lie in a file of zeros. Names of files are taken from the working folder, so that this is done by
    another process. Where it comes to nothing, the weights are seen.
    """
    taken = _set_apart(model)
    try:
        simple = _simpler_elsewhere(model)
    finally:
        _put_back(model, taken)
    if simple is None or _heavy(simple) - _heavy(model) or taken.keys() - simple.graph.initializers.keys():
        return _simpler_in_memory(model)
    _put_back(simple, taken)
    return simple


def _heavy(model: ir.Model) -> set[str]:
    """The names of its large weights."""
    large = (
        name
        for name, v in model.graph.initializers.items()
        if v.const_value is not None and v.const_value.nbytes >= LARGE
    )
    return set(large)


def _set_apart(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Puts large weights into the file of zeros, where layers alone read them, and something that depends on inputs.

    Nothing can be computed of such a weight beforehand, but by a batch norm behind the layer, which would be folded.
    """
    constants = set(model.graph.initializers.values())
    for node in model.graph:
        if all(v is None or v in constants for v in node.inputs):
            constants.update(node.outputs)
    taken: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LARGE or value.is_graph_input() or value.is_graph_output():
            continue
        if all(_is_weight_of(node, place, constants) for node, place in value.uses()):
            at = sum(t.nbytes for t in taken.values())
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(ZEROS, at, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            taken[name] = tensor
    return taken


def _put_back(model: ir.Model, taken: Mapping[str, ir.TensorProtocol]) -> None:
    for name, tensor in taken.items():
        model.graph.initializers[name].const_value = tensor


def _is_weight_of(node: ir.Node, place: int, constants: Set[ir.Value]) -> bool:
    if _OF_LAYERS.get(node.op_type) != place or any(v in constants for v in node.outputs):
        return False
    return not any(n.op_type == "BatchNormalization" for v in node.outputs for n, _ in v.uses())


def _simpler_elsewhere(model: ir.Model) -> ir.Model | None:
    """What another process makes of the model, which is small without its weights; None where that fails."""
    if not sys.executable:
        return None
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        before, after = (Path(folder) / n for n in ("before.onnx", "after.onnx"))
        before.write_bytes(ir.to_proto(untyped(model)).SerializeToString())
        with (Path(folder) / ZEROS).open("wb") as zeros:
            zeros.truncate(sum(t.nbytes for t in model.graph.initializers.tensors()))
        code = f"from {__name__} import simplify_file; simplify_file({str(before)!r}, {str(after)!r})"
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=paths, check=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode or not after.is_file():
            return None
        return ir.from_proto(_parsed(after))


def simplify_file(before: str, after: str) -> None:
    """What `_simpler` makes of the model in one file, in another."""
    simple = ir.to_proto(_simpler(ir.from_proto(_parsed(Path(before))), _BY_VALUES))
    Path(after).write_bytes(simple.SerializeToString())


def _parsed(path: Path) -> onnx.ModelProto:
    import onnx

    model: onnx.ModelProto = onnx.load(str(path), load_external_data=False)
    return model


def _has_wide_pads(model: ir.Model) -> bool:
    """Whether a pool reads what is padded by as much as its kernel spans, or by what is not known."""
    for pool in model.graph:
        pad = pool.inputs[0].producer() if pool.op_type in ("AveragePool", "MaxPool") and pool.inputs[0] else None
        if pad is None or pad.op_type != "Pad":
            continue
        widths = pad.inputs[1].const_value if pad.inputs[1] is not None else None
        if widths is None or int(widths.numpy().max()) >= min(pool.attributes["kernel_shape"].as_ints()):
            return True
    return False


def _simpler(model: ir.Model, skipped: Sequence[str] = ()) -> ir.Model:
    """What onnxsim makes of the model, or onnxslim of that. Both take messages: it becomes one, and comes from one.

    skipped: what onnxsim is not to do. Raises what onnxsim raises.
    """
    import onnxsim

    before = ir.to_proto(untyped(model))
    skipped = (*skipped, *(_WIDE_PADS if _has_wide_pads(model) else ()))
    choice = {"skipped_optimizers": list(skipped)} if skipped else {}
    return _slimmer(_if_alike(before, onnxsim.simplify(before, **choice)[0]))


def _slimmer(simple: onnx.ModelProto) -> ir.Model:
    """What onnxslim makes of the model, where that is installed and leaves fewer nodes; nothing tells its origin."""
    try:
        import onnxslim

        slim = _if_alike(simple, onnxslim.slim(_copy(simple), skip_fusion_patterns=list(_BY_LENGTH)))
    except Exception:  # of onnxslim, as where a rank depends on a size; it is left out
        slim = simple
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
