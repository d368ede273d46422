"""A depthwise convolution with m results per channel, as m depthwise convolutions.

With c channels, y[m*i + j] = w[m*i + j] * x[i] for i < c and j < m. Let w_j be the filters w[j], w[m + j], w[2m + j]:

    z = concat(w_0 * x, ..., w_(m-1) * x),    z[j*c + i] = y[m*i + j]

Engines have fast kernels for depthwise convolutions with one result per channel, and the slow ones of grouped
convolutions for more. The results come in another order, which what reads them is brought into: operations on each
element and on each channel keep it, a convolution or a linear layer takes its columns in the new order, and a layer
whose results are added to them or multiplied with them has its rows in it. Where that cannot be done, as before an
output of the network or where a node has branches, the convolution stays whole. All values are the same; only a layer
that takes its columns in the new order adds the same products in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .reshapes import PAIRWISE, POINTWISE
from .values import Dims, constant_of, has_branches, sizes_of

FEWEST = 8  # channels: with fewer than a vector holds, a depthwise kernel gains nothing
BY_CHANNEL = POINTWISE | {"AveragePool", "Clip", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
BROADCAST = PAIRWISE | {"Div", "PRelu"}
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze"})
MATRIX = 2  # axes of (N, C)


class _Stays(Exception):
    """The new order meets something that has an order of its own."""


@dataclass
class _Order:
    """Brings all values that go with one value into a new order of channels.

    order: the old channel at each new place. moved: the values that have it. turned: (constant, axis) to be put in it.
    """

    order: np.ndarray
    moved: set[ir.Value] = field(default_factory=set)
    turned: set[tuple[ir.Value, int]] = field(default_factory=set)
    waiting: list[ir.Value] = field(default_factory=list)

    def spread(self, value: ir.Value) -> None:
        """Gives the new order to a value that comes in it, and to all that go with it. Raises _Stays."""
        self.moved.add(value)
        self._readers(value)
        while self.waiting:
            other = self.waiting.pop()
            node = other.producer()
            if node is None:
                raise _Stays
            self._made(node)
            self._readers(other)

    def _readers(self, value: ir.Value) -> None:
        if value.is_graph_output():
            raise _Stays
        for node, place in value.uses():
            self._read(node, place)

    def _move(self, value: ir.Value | None) -> None:
        if value is not None and value not in self.moved:
            self.moved.add(value)
            self.waiting.append(value)

    def _made(self, node: ir.Node) -> None:
        """The node gives its results in the new order."""
        if len(node.outputs) != 1:
            raise _Stays
        if node.op_type == "Conv":
            if _groups(node) != 1:
                self._depthwise(node)
                self._move(node.inputs[0])
            self._rows(node)
        elif node.op_type in BY_CHANNEL:
            self._move(node.inputs[0])
        elif node.op_type in BROADCAST:
            self._pair(node)
        elif node.op_type in VIEWS:
            self._view(node)
            self._move(node.inputs[0])
        else:
            raise _Stays

    def _read(self, node: ir.Node, place: int) -> None:
        """The node takes a value in the new order, and gives results in it unless it sums over the channels."""
        kind = node.op_type
        if place and kind not in BROADCAST:
            raise _Stays
        if kind == "Conv" and _groups(node) == 1:
            self._turn(node.inputs[1], 1)
        elif kind == "Gemm" and not node.attributes.get_int("transA", 0):
            self._turn(node.inputs[1], node.attributes.get_int("transB", 0))
        elif kind == "Conv" or kind in BY_CHANNEL or kind in BROADCAST or kind in VIEWS:
            self._move(node.outputs[0])
        else:
            raise _Stays

    def _pair(self, node: ir.Node) -> None:
        out = _shape(node.outputs[0])
        for value in node.inputs:
            constant = constant_of(value)
            shape = _shape(value) if constant is None else _dims(constant)
            axis = 1 + len(shape) - len(out)  # of the channels, from the right
            if axis < 0 or shape[axis] == 1:
                continue
            if constant is None:
                self._move(value)
            else:
                self._turn(value, axis)

    def _view(self, node: ir.Node) -> None:
        """Axes of size one are dropped or added behind the channels."""
        before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
        if {before[1:2], after[1:2]} != {(len(self.order),)} or {*before[2:], *after[2:]} - {1}:
            raise _Stays

    def _depthwise(self, node: ir.Node) -> None:
        weight = constant_of(node.inputs[1])
        if weight is None or not _groups(node) == weight.shape[0] == len(self.order):
            raise _Stays

    def _rows(self, node: ir.Node) -> None:
        for value in node.inputs[1:]:
            self._turn(value, 0)

    def _turn(self, value: ir.Value | None, axis: int) -> None:
        constant = _own(value)
        if value is None or constant is None or constant.shape[axis] != len(self.order):
            raise _Stays
        self.turned.add((value, axis))


def split_depthwise(model: ir.Model) -> None:
    """Splits the depthwise convolutions with several results per channel whose readers can take the new order."""
    if has_branches(model.graph):
        return
    for node in list(model.graph):
        times = _times(node)
        if times > 1:
            _split(model.graph, node, times)


def _times(node: ir.Node) -> int:
    """How many results a depthwise convolution has per channel; 0 where it is none, or has few channels."""
    constants = [_own(value) for value in node.inputs[1:]] if node.op_type == "Conv" else []
    if not constants or constants[0] is None or None in constants[1:]:
        return 0
    rows, columns = _dims(constants[0])[:2]
    groups = _groups(node)
    return rows // groups if columns == 1 and groups >= FEWEST else 0


def _split(graph: ir.Graph, node: ir.Node, times: int) -> None:
    groups, out = _groups(node), node.outputs[0]
    order = _Order(np.arange(times * groups).reshape(groups, times).T.reshape(-1))
    try:
        order.spread(out)
    except _Stays:
        return
    for value, axis in order.turned:
        value.const_value = _tensor(_array(value).take(order.order, axis), value.name)
    constants = [v for v in node.inputs[1:] if v is not None]
    parts = [_part(graph, node, j, times) for j in range(times)]
    joined = ir.node("Concat", [p.outputs[0] for p in parts], {"axis": 1}, name=f"{node.name}_parts")
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*parts, joined], [out], joined.outputs)
    for value in constants:
        del graph.initializers[str(value.name)]


def _part(graph: ir.Graph, node: ir.Node, j: int, times: int) -> ir.Node:
    """The convolution that gives the results j, m + j, 2m + j, ... of `node`, with constants of its own."""
    constants = []
    for value in node.inputs[1:]:
        if value is not None:
            name = f"{value.name}_part{j}"
            constants.append(ir.Value(name=name, const_value=_tensor(_array(value)[j::times], name)))
            graph.register_initializer(constants[-1])
    inputs, out = [node.inputs[0], *constants], ir.Value(name=f"{node.outputs[0].name}_part{j}")
    attributes = list(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=[out], name=f"{node.name}_part{j}")


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1)


def _own(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant that is read once."""
    alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
    return constant_of(value) if alone else None


def _shape(value: ir.Value | None) -> Dims:
    shape = sizes_of(value) if value is not None else ()
    if len(shape) < MATRIX:
        raise _Stays
    return shape


def _dims(constant: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(constant.shape.numpy())


def _array(value: ir.Value) -> np.ndarray:
    return np.asarray(value.const_value)


def _tensor(values: np.ndarray, name: str | None) -> ir.TensorProtocol:
    return ir.tensor(np.ascontiguousarray(values), name=name)
