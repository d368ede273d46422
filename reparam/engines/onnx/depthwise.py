"""A depthwise convolution with m results per channel, as m depthwise convolutions.

With c channels, y[m*i + j] = w[m*i + j] * x[i] for i < c and j < m. Let w_j be the filters w[j], w[m + j], w[2m + j]:

    z = concat(w_0 * x, ..., w_(m-1) * x),    z[j*c + i] = y[m*i + j]

Engines have fast kernels for depthwise convolutions with one result per channel, and the slow ones of grouped
convolutions for more. The results come in another order, which what reads them is brought into: operations on each
element and on each channel keep it, a convolution or a linear layer takes its columns in the new order, and a layer
whose results are added to them or multiplied with them has its rows in it. Where that cannot be done, as before an
output of the network, the convolution stays whole.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .reshapes import PAIRWISE, POINTWISE, replace_nodes

if TYPE_CHECKING:
    import onnx

FEWEST = 8  # channels: with fewer than a vector holds, a depthwise kernel gains nothing
BY_CHANNEL = POINTWISE | {"AveragePool", "Clip", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
BROADCAST = PAIRWISE | {"Div", "PRelu"}
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze"})
MATRIX = 2  # axes of (N, C)


class _Stays(Exception):
    """The new order meets something that has an order of its own."""


@dataclass
class _Graph:
    """What reads and what makes each value, by name; constants, how often each is read, and the values' shapes."""

    graph: onnx.GraphProto
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.node:
            self.reads.update(node.input)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.makers[name] = node
        self.constants = {t.name: t for t in self.graph.initializer}
        for v in (*self.graph.input, *self.graph.output, *self.graph.value_info):
            self.sizes[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        self.reads.update(v.name for v in self.graph.output)


@dataclass
class _Order:
    """Brings all values that go with one value into a new order of channels.

    order: the old channel at each new place. moved: the values that have it. turned: (constant, axis) to be put in it.
    """

    known: _Graph
    order: np.ndarray
    moved: set[str] = field(default_factory=set)
    turned: set[tuple[str, int]] = field(default_factory=set)
    waiting: list[str] = field(default_factory=list)

    def spread(self, name: str) -> None:
        """Gives the new order to a value that comes in it, and to all that go with it. Raises _Stays."""
        self.moved.add(name)
        self._readers(name)
        while self.waiting:
            other = self.waiting.pop()
            if other not in self.known.makers:
                raise _Stays
            self._made(self.known.makers[other])
            self._readers(other)

    def _readers(self, name: str) -> None:
        if any(v.name == name for v in self.known.graph.output):
            raise _Stays
        for node in self.known.readers.get(name, ()):
            self._read(node, name)

    def _move(self, name: str) -> None:
        if name not in self.moved:
            self.moved.add(name)
            self.waiting.append(name)

    def _made(self, node: onnx.NodeProto) -> None:
        """The node gives its results in the new order."""
        if len(node.output) != 1:
            raise _Stays
        if node.op_type == "Conv":
            if _groups(node) != 1:
                self._depthwise(node)
                self._move(node.input[0])
            self._rows(node)
        elif node.op_type in BY_CHANNEL:
            self._move(node.input[0])
        elif node.op_type in BROADCAST:
            self._pair(node)
        elif node.op_type in VIEWS:
            self._view(node)
            self._move(node.input[0])
        else:
            raise _Stays

    def _read(self, node: onnx.NodeProto, name: str) -> None:
        """The node takes a value in the new order, and gives results in it unless it sums over the channels."""
        kind = node.op_type
        if name in node.input[1:] and kind not in BROADCAST:
            raise _Stays
        if kind == "Conv" and _groups(node) == 1:
            self._turn(node.input[1], 1)
        elif kind == "Gemm" and not any(a.name == "transA" and a.i for a in node.attribute):
            self._turn(node.input[1], int(any(a.name == "transB" and a.i for a in node.attribute)))
        elif kind == "Conv" or kind in BY_CHANNEL or kind in BROADCAST or kind in VIEWS:
            self._move(node.output[0])
        else:
            raise _Stays

    def _pair(self, node: onnx.NodeProto) -> None:
        out = self._shape(node.output[0])
        for name in node.input:
            constant = self.known.constants.get(name)
            shape = self._shape(name) if constant is None else tuple(constant.dims)
            axis = 1 + len(shape) - len(out)  # of the channels, from the right
            if axis < 0 or shape[axis] == 1:
                continue
            if constant is None:
                self._move(name)
            else:
                self._turn(name, axis)

    def _view(self, node: onnx.NodeProto) -> None:
        """Axes of size one are dropped or added behind the channels."""
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        if {before[1:2], after[1:2]} != {(len(self.order),)} or {*before[2:], *after[2:]} - {1}:
            raise _Stays

    def _depthwise(self, node: onnx.NodeProto) -> None:
        weight = self.known.constants.get(node.input[1])
        if weight is None or not _groups(node) == weight.dims[0] == len(self.order):
            raise _Stays

    def _rows(self, node: onnx.NodeProto) -> None:
        for name in node.input[1:]:
            self._turn(name, 0)

    def _turn(self, name: str, axis: int) -> None:
        constant = self.known.constants.get(name)
        if constant is None or self.known.reads[name] != 1 or constant.dims[axis] != len(self.order):
            raise _Stays
        self.turned.add((name, axis))

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.known.sizes.get(name, ())
        if len(shape) < MATRIX:
            raise _Stays
        return shape


def split_depthwise(model: onnx.ModelProto) -> None:
    """Splits the depthwise convolutions with several results per channel whose readers can take the new order."""
    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return  # branches may read any value
    tried: set[str] = set()
    while True:
        known = _Graph(graph)
        found = next((n for n in graph.node if n.output[0] not in tried and _times(known, n) > 1), None)
        if found is None:
            return
        tried.add(found.output[0])
        _split(known, found, _times(known, found))


def _times(known: _Graph, node: onnx.NodeProto) -> int:
    """How many results a depthwise convolution has per channel; 0 where it is none, or has few channels."""
    if node.op_type != "Conv":
        return 0
    weight, groups = known.constants.get(node.input[1]), _groups(node)
    constants = all(name in known.constants and known.reads[name] == 1 for name in node.input[1:])
    if weight is None or not constants or weight.dims[1] != 1 or groups < FEWEST:
        return 0
    return int(weight.dims[0]) // groups


def _split(known: _Graph, node: onnx.NodeProto, times: int) -> None:
    import onnx

    groups, out = _groups(node), node.output[0]
    order = _Order(known, np.arange(times * groups).reshape(groups, times).T.reshape(-1))
    try:
        order.spread(out)
    except _Stays:
        return
    for name, axis in order.turned:
        _store(known.constants[name], _array(known.constants[name]).take(order.order, axis))
    parts = []
    for j in range(times):
        part = onnx.NodeProto()
        part.CopyFrom(node)
        part.name, part.output[0] = f"{node.name}_part{j}", f"{out}_part{j}"
        for i, name in enumerate(node.input[1:], 1):
            part.input[i] = f"{name}_part{j}"
            made = onnx.numpy_helper.from_array(np.ascontiguousarray(_array(known.constants[name])[j::times]))
            made.name = part.input[i]
            known.graph.initializer.append(made)
        parts.append(part)
    joined = onnx.helper.make_node("Concat", [p.output[0] for p in parts], [out], name=f"{node.name}_parts", axis=1)
    nodes = list(known.graph.node)
    at = next(i for i, n in enumerate(nodes) if n.output[0] == out)
    replace_nodes(known.graph, [*nodes[:at], *parts, joined, *nodes[at + 1 :]])


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _array(constant: onnx.TensorProto) -> np.ndarray:
    import onnx

    found: np.ndarray = onnx.numpy_helper.to_array(constant)
    return found


def _store(constant: onnx.TensorProto, values: np.ndarray) -> None:
    import onnx

    name = constant.name
    constant.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
