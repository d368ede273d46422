"""What an ONNX file may ask for before anything runs it: names that are plain, and an end in time and memory.

onnxruntime computes what depends on constants alone while it opens a file, expands sparse weights, and writes out
functions where they are called. A small file can so ask for endless work; it is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError
from reparam.utils import name_complaint, one_line

from .folding import check_folding

if TYPE_CHECKING:
    import onnx

MOST_NODES = 1_000_000  # with functions written out
MOST_TURNS = 10_000  # of a loop
DEEPEST = 16  # graphs within graphs
LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})


def check_limits(model: onnx.ModelProto, name: str) -> None:
    """Raises InputError for a model whose names are not plain or that may take endless time or memory."""
    graphs = [model.graph, *model.functions]
    bodies = [body for graph in graphs for body in _bodies(graph, name, 0)]
    for body in bodies:
        _check_names(body, name)
        for node in body.node:
            if not node.output:
                raise _refused(name, f"the node '{one_line(node.name)[:60]}' gives nothing")
    _check_functions(model, name)
    constants = _constants(model)
    for body in bodies:
        for node in body.node:
            if node.op_type == "Loop":
                _check_loop(node, constants, name)
    for tensor in tensors_in(model):
        _check_tensor(tensor, name)
    check_folding(model, name)


def has_loops(model: onnx.ModelProto) -> bool:
    """Whether how long a run takes depends on more than the size of the graph."""
    graphs = [model.graph, *model.functions]
    return any(n.op_type in LOOPS for g in graphs for body in _bodies(g, "", 0) for n in body.node)


def _refused(name: str, what: str) -> InputError:
    return InputError(f"{name} is refused: {what}")


# ---- graphs and names --------------------------------------------------------------------------------------------


def _bodies(graph: Any, name: str, depth: int) -> Iterator[Any]:
    """A graph or function, and all graphs within it."""
    if depth > DEEPEST:
        raise _refused(name, f"its graphs nest deeper than {DEEPEST}")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _bodies(inner, name, depth + 1)


def _check_names(body: Any, name: str) -> None:
    """Names of nodes, values, weights, sizes and attributes: they go into reports, tables and other formats."""
    for text in _names(body):
        if not isinstance(text, str):  # how protobuf gives what is not UTF-8
            raise _refused(name, f"it holds a name that is no text: {text[:60]!r}")
        if complaint := name_complaint(text):
            raise _refused(name, f"it holds a name that {complaint}: {text[:60]!r}")


def _names(body: Any) -> Iterator[Any]:
    yield body.name
    for node in body.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (a.name for a in node.attribute)
    for value in (*getattr(body, "initializer", ()), *getattr(body, "value_info", ())):
        yield value.name
    for value in (*body.input, *body.output, *getattr(body, "value_info", ())):
        if isinstance(value, str):  # of a function
            yield value
            continue
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _check_functions(model: onnx.ModelProto, name: str) -> None:
    """Functions end, and written out they are no more than so many nodes."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(graph: Any, above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for body in _bodies(graph, name, 0):
            for node in body.node:
                key = (node.domain, node.op_type)
                if key in above:
                    raise _refused(name, f"its function {one_line(node.op_type)[:60]} calls itself")
                if key in functions and key not in sizes:
                    if len(above) > DEEPEST:
                        raise _refused(name, f"its functions nest deeper than {DEEPEST}")
                    sizes[key] = size(functions[key], (*above, key))
                total += sizes.get(key, 1)
        if total > MOST_NODES:
            raise _refused(name, f"it has more than {MOST_NODES} nodes when its functions are written out")
        return total

    size(model.graph, ())


def _constants(model: onnx.ModelProto) -> dict[str, Any]:
    """Small whole numbers that stand in the file, by their names."""
    import onnx

    found: dict[str, Any] = {}
    for body in (b for g in (model.graph, *model.functions) for b in _bodies(g, "", 0)):
        tensors = {t.name: t for t in getattr(body, "initializer", ())}
        for node in body.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                tensors[node.output[0]] = value
        for key, tensor in tensors.items():
            whole = tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) == 1
            if whole and tensor.data_location != onnx.TensorProto.EXTERNAL:
                raw = tensor.raw_data or b"".join(int(v).to_bytes(8, "little", signed=True) for v in tensor.int64_data)
                found[key] = int.from_bytes(raw[:8], "little", signed=True)
    return found


def _check_loop(node: onnx.NodeProto, constants: Mapping[str, Any], name: str) -> None:
    turns = constants.get(node.input[0]) if node.input and node.input[0] else None
    if turns is None or turns > MOST_TURNS:
        told = "a number of turns that is not known" if turns is None else f"{turns} turns"
        raise _refused(name, f"the loop '{one_line(node.name)[:60]}' has {told}; at most {MOST_TURNS} are run")


# ---- tensors -----------------------------------------------------------------------------------------------------


def tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, those in attributes, in sub-graphs and in functions."""
    import onnx

    stack = [message]
    while stack:
        item = stack.pop()
        if isinstance(item, onnx.TensorProto):
            yield item
            continue
        for field, value in item.ListFields():
            if field.message_type is not None:
                stack.extend(value if field.is_repeated else [value])


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    """The numbers that a tensor holds are as many as its shape says."""
    import onnx

    shown = one_line(tensor.name)[:60]
    if any(d < 0 for d in tensor.dims) or len(tensor.dims) > 64:
        raise _refused(name, f"'{shown}' has an impossible shape")
    if tensor.HasField("segment"):
        raise _refused(name, f"'{shown}' is a part of a tensor, which nothing reads")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    count, bits = math.prod(tensor.dims), bits_of(tensor.data_type)
    if bits is None:
        raise _refused(name, f"'{shown}' is of an unknown type")
    kind = tensor.data_type
    if kind == onnx.TensorProto.STRING:
        held, wanted = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        held, wanted = len(tensor.raw_data), -(-count * bits // 8)
    else:
        field = onnx.helper.tensor_dtype_to_field(kind)
        held = len(getattr(tensor, field))
        pairs = kind in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
        wanted = 2 * count if pairs else -(-count * bits // 8) if bits < 8 else count
    if held != wanted:
        raise _refused(name, f"it is damaged: '{shown}' holds {held} of {wanted} values")


def bits_of(kind: int) -> int | None:
    """The bits of one element; None for an unknown type."""
    import onnx

    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "STRING": 8}
    try:
        label = onnx.TensorProto.DataType.Name(kind)
        return small.get(label) or int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8)
    except (ValueError, KeyError, TypeError):
        return None
