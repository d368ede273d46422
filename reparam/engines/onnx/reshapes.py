"""Rows stay rows: between linear layers, an ONNX graph keeps the matrix that they compute on.

A linear layer on (N, T, C) is written as Reshape to (N*T, C), Gemm, Reshape back. With R such a reshape, f an operation
on each element or on each row, and * one on pairs of elements,

    f(R(x)) = R(f(x)),    R(x) * R(y) = R(x * y),    R'(R(x)) = R'(x),    R'(R(x)) = x where the shapes agree

so that what lies between two linear layers is computed on the matrix, and the reshapes between them fall away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

POINTWISE = frozenset(
    {
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)
BY_ROWS = "LayerNormalization"
PAIRWISE = frozenset({"Add", "Sub", "Mul"})
Dims = tuple[int | str, ...]


@dataclass
class _Rows:
    """What is known of the values of one graph.

    sizes: the shape of a value, where it is known. targets: the shape that a constant names. views: a value -> the
    matrix that it is a reshape of, and the name of the shape. flat: a value -> the matrix of its rows, where there is
    one. same: a value that is gone -> the one that is equal.
    """

    sizes: dict[str, Dims]
    targets: dict[str, list[int]]
    views: dict[str, tuple[str, str]] = field(default_factory=dict)
    flat: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)

    def reshaped(self, node: onnx.NodeProto, kept: bool) -> bool:
        """Takes note of a Reshape; False when what reads it can read a matrix that is there. kept: it is an output."""
        source, out, target = node.input[0], node.output[0], self.targets.get(node.input[1])
        if target is None or 0 in target:
            return True
        node.input[0] = source = self.views[source][0] if source in self.views else source
        width = self.sizes.get(source, ("",))[-1]
        if not isinstance(width, int) or target[-1] != width:
            return True
        matrix = len(self.sizes[source]) == 2
        if len(target) == 2 and matrix and not kept:
            self.same[out] = source
            return False
        if len(target) == 2:
            self.flat.setdefault(source, out)
        elif matrix:
            self.views[out] = (source, node.input[1])
        return True

    def matrices(self, names: Iterable[str]) -> tuple[list[str], str] | None:
        """The matrices of values of one shape, of which at least one is a reshape, and the name of that shape."""
        found = list(names)
        shape = next((self.views[n][1] for n in found if n in self.views), None)
        sizes = {self.sizes.get(n) for n in found}
        if shape is None or len(sizes) != 1 or None in sizes:
            return None
        rows = [self.views[n][0] if n in self.views else self.flat.get(n) for n in found]
        whole = [r for r in rows if r is not None]
        return (whole, shape) if len(whole) == len(rows) else None


def keep_rows(model: onnx.ModelProto) -> None:
    """Moves reshapes behind what they commute with, and drops those that nothing reads then."""
    import onnx

    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return  # branches may read any value
    outputs = {v.name for v in graph.output}
    known = _Rows(_sizes(graph), _targets(graph))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = known.same.get(name, name)
        if node.op_type == "Reshape":
            if known.reshaped(node, node.output[0] in outputs):
                nodes.append(node)
            continue
        count = 2 if node.op_type in PAIRWISE else int(node.op_type in POINTWISE or _by_rows(node))
        found = known.matrices(node.input[:count]) if count else None
        if found is None or len(node.output) != 1:
            nodes.append(node)
            continue
        rows, shape = found
        out, made = node.output[0], f"{node.output[0]}_rows"
        node.input[:count] = rows
        node.output[0] = made
        known.sizes[made] = known.sizes.get(rows[0], ())
        known.views[out] = (made, shape)
        nodes += [node, onnx.helper.make_node("Reshape", [made, shape], [out], name=f"{node.name}_shape")]
    replace_nodes(graph, _alive(nodes, outputs))


def _by_rows(node: onnx.NodeProto) -> bool:
    """A layer norm of the last axis alone; its other inputs are vectors then."""
    return node.op_type == BY_ROWS and all(a.i == -1 for a in node.attribute if a.name == "axis")


def _alive(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes that an output depends on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def replace_nodes(graph: onnx.GraphProto, nodes: list[Any]) -> None:
    """The graph with these nodes, and of its constants and notes on values those that they still use."""
    used = {name for node in nodes for name in (*node.input, *node.output)} | {v.name for v in graph.output}
    copies = [type(n).FromString(n.SerializeToString()) for n in nodes]  # they belong to the list that is emptied
    del graph.node[:]
    graph.node.extend(copies)
    for values in (graph.initializer, graph.value_info):
        for i in reversed(range(len(values))):
            if values[i].name not in used:
                del values[i]


def _sizes(graph: onnx.GraphProto) -> dict[str, Dims]:
    """The shapes of the values all of whose sizes have a number or a name."""
    values = (*graph.input, *graph.output, *graph.value_info)
    sizes = {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    return {name: dims for name, dims in sizes.items() if dims and all(dims)}


def _targets(graph: onnx.GraphProto) -> dict[str, list[int]]:
    import onnx

    whole = (t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64 and len(t.dims) == 1)
    return {t.name: onnx.numpy_helper.to_array(t).tolist() for t in whole if t.dims[0] <= 8}
