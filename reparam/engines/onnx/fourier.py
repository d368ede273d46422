"""Fourier transforms as products with matrices of cosines and sines.

    y_k = sum_n x_n e^(-2 pi i k n / N)  ->  Re y = C Re x + S Im x,  Im y = C Im x - S Re x,
    C_kn = cos(2 pi k n / N), S_kn = sin(2 pi k n / N)

The inverse has the sign of S turned, and 1 / N. A transform of frames is a convolution whose kernels are the rows of
such a matrix times the window. onnxruntime's own transform is exact to 3e-7 to 5e-7 where N is a power of two; of other
lengths it loses more, the longer they are (1e-6 at 7, 1e-5 at 100, 1e-4 at 1,000), while the products stay at 3e-7.
Engines without an operator for transforms run the products as well. The matrix of a fixed length is a weight. That of
a free one is made of the size in every run, since it may become any length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from reparam.utils import unused_name

from .values import constant_of, has_branches, sizes_of

LONGEST = 2048  # of a length that is no power of two
FASTER = 128  # up to which a product is no slower than the transform of a power of two, on one thread

_TURN = np.array(2.0 * np.pi)

PRODUCT = "_as_product"  # what marks such products in their names

Numbers = np.ndarray[tuple[int, ...], np.dtype[Any]]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def multiply_out(model: ir.Model) -> None:
    """Writes the transforms of fixed length for which that pays as products, in place."""
    if has_branches(model.graph):
        return
    names = _Names(model.graph)
    for node in list(model.graph):
        if node.op_type == "DFT":
            _transform(names, node)
        elif node.op_type == "STFT":
            _frames(names, node)


def products(names: Iterable[str]) -> set[str]:
    """Of the names of nodes, those of transforms, which eight bits do not hold."""
    return {name for name in names if PRODUCT in name}


def _pays(length: int) -> bool:
    power_of_two = length & (length - 1) == 0
    return 0 < length <= (FASTER if power_of_two else LONGEST)


def _number(node: ir.Node, place: int, default: int | None) -> int | None:
    """The whole number that an input is; the default where it is left out, None where it is no constant."""
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None:
        return default
    constant = constant_of(value)
    return None if constant is None or constant.size != 1 else int(constant.numpy().reshape(-1)[0])


# ---- the matrices ------------------------------------------------------------------------------------------------


def spectrum(length: int, given: int, parts: int, *, inverse: bool, half: bool) -> Numbers:
    """The matrix (given, parts, results, 2) of a transform; (given, parts, length, 1) of the inverse of half of one.

    length: N. given: how many numbers there are, of which those from N on count for nothing. parts: 1 of real numbers,
    2 with imaginary parts.
    """
    whole_inverse = inverse and not half
    results = length // 2 + 1 if half and not inverse else length
    used = min(given, length // 2 + 1 if half and inverse else length)
    turns = np.outer(np.arange(used), np.arange(results)) % length
    cos, sin = np.cos(2.0 * np.pi * turns / length), np.sin(2.0 * np.pi * turns / length)
    made = np.zeros((given, parts, results, 1 if half and inverse else 2))
    if half and inverse:  # a frequency stands for its conjugate as well, but for those that are their own
        places = np.arange(used)
        times = np.where((places == 0) | (2 * places == length), 1.0, 2.0)[:, None] / length
        made[:used, 0, :, 0] = times * cos
        if parts == 2:
            made[:used, 1, :, 0] = -times * sin
        return made
    sign = -1.0 if inverse else 1.0
    made[:used, 0, :, 0], made[:used, 0, :, 1] = cos, -sign * sin
    if parts == 2:
        made[:used, 1, :, 0], made[:used, 1, :, 1] = sign * sin, cos
    return made / length if whole_inverse else made


# ---- the nodes ---------------------------------------------------------------------------------------------------


def _transform(names: _Names, node: ir.Node) -> None:
    x = node.inputs[0]
    sizes = sizes_of(x) if x is not None else ()
    axis = _number(node, 2, -2)
    if x is None or not sizes or axis is None or x.dtype not in _FLOATS:
        return
    axis %= len(sizes)
    given, parts = sizes[axis], sizes[-1]
    inverse, half = (bool(node.attributes.get_int(n, 0)) for n in ("inverse", "onesided"))
    if parts not in (1, 2):
        return
    length = None if isinstance(given, str) else _number(node, 1, 2 * (given - 1) if inverse and half else given)
    if length is not None and not _pays(length):
        return
    chain = _Chain(names, node, x)
    if length is None:
        matrix = _matrix_of_free(chain, x, axis, parts, inverse=inverse, half=half)
    else:
        numbers = spectrum(length, int(given), parts, inverse=inverse, half=half)
        matrix = chain.constant("matrix", numbers.reshape(int(given) * parts, -1), x.dtype)
    rest = [0] * (len(sizes) - 2)  # sizes that stay
    order = [*(i for i in range(len(sizes) - 1) if i != axis), axis, len(sizes) - 1]
    chain.turn(order)
    chain.reshape([*rest, -1])
    chain.add("MatMul", matrix)
    chain.reshape([*rest, -1, 1 if inverse and half else 2])
    chain.turn([int(i) for i in np.argsort(order)])
    chain.close()


def _matrix_of_free(chain: _Chain, x: ir.Value, axis: int, parts: int, *, inverse: bool, half: bool) -> ir.Value:
    """The matrix of `spectrum`, made of the sizes whenever the network runs: (given * parts, results * 2 or 1).

    k n is taken modulo N while it is a whole number, from -N / 2 on, so that the angles are as exact as their dtype.
    """
    make, whole = chain.beside, functools.partial(chain.constant, dtype=ir.DataType.INT64)
    zero, one, two, last, scalar = (whole("whole", np.array(v)) for v in (0, 1, 2, [-1], np.zeros(0)))
    given = make("Reshape", make("Shape", x, start=axis, end=axis + 1), scalar)
    told = chain.node.inputs[1] if len(chain.node.inputs) > 1 else None
    if told is not None:
        length = make("Reshape", told, scalar)
    else:
        length = make("Mul", make("Sub", given, one), two) if inverse and half else given
    middle = make("Div", length, two)
    ones = make("Add", middle, one)  # frequencies of a half
    row = make("Unsqueeze", make("Range", zero, given, one), last)  # (given, 1)
    column = make("Range", zero, ones if half and not inverse else length, one)
    turns = make("Sub", make("Mod", make("Add", make("Mul", row, column), middle), length), middle)
    wide = functools.partial(chain.constant, dtype=ir.DataType.DOUBLE)
    count = make("Cast", length, to=ir.DataType.DOUBLE.value)
    angles = make("Div", make("Mul", make("Cast", turns, to=ir.DataType.DOUBLE.value), wide("turn", _TURN)), count)
    used = make("Cast", make("Less", row, ones if half and inverse else length), to=ir.DataType.DOUBLE.value)
    if half and inverse:  # a frequency stands for its conjugate as well, but for those that are their own
        own = make("Or", make("Equal", row, zero), make("Equal", make("Mul", row, two), length))
        used = make("Mul", used, make("Where", own, wide("once", np.array(1.0)), wide("twice", np.array(2.0))))
    if inverse:
        used = make("Div", used, count)
    cos, sin = (make("Unsqueeze", make("Mul", make(op, angles), used), last) for op in ("Cos", "Sin"))
    turned = make("Neg", sin)
    if half and inverse:
        found = [cos, turned]
    else:
        real, imaginary = (sin, turned) if inverse else (turned, sin)
        found = [make("Concat", cos, real, axis=-1), make("Concat", imaginary, cos, axis=-1)]
    each = [make("Unsqueeze", m, whole("second", np.array([1]))) for m in found[:parts]]  # (given, 1, results, 2 or 1)
    both = make("Concat", *each, axis=1) if parts == 2 else each[0]
    dtype = x.dtype or ir.DataType.FLOAT
    return make("Flatten", make("Cast", both, to=dtype.value), axis=2)


def _frames(names: _Names, node: ir.Node) -> None:
    """Of real signals (N, L, 1), with a window that is a constant."""
    x, step = node.inputs[0], _number(node, 1, None)
    window = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    length = _number(node, 3, None if window is None else window.size)
    sizes = sizes_of(x) if x is not None else ()
    unknown = len(node.inputs) > 2 and node.inputs[2] is not None and window is None
    if x is None or sizes[2:] != (1,) or x.dtype not in _FLOATS or step is None or length is None or unknown:
        return
    if not _pays(length):
        return
    matrix = spectrum(length, length, 1, inverse=False, half=bool(node.attributes.get_int("onesided", 1)))
    if window is not None:
        matrix = matrix * window.numpy().astype(np.float64).reshape(-1, 1, 1, 1)
    kernels = matrix.reshape(length, -1).T[:, None]
    chain = _Chain(names, node, x)
    chain.turn([0, 2, 1])
    chain.add("Conv", chain.constant("kernels", kernels, x.dtype), strides=[step])
    chain.turn([0, 2, 1])
    chain.reshape([0, 0, *matrix.shape[2:]])
    chain.close()


class _Names:
    """The names of a graph's nodes and values, which stand for one thing each."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = {str(node.name) for node in graph}
        self.values = set(ir.convenience.create_value_mapping(graph))

    def node(self, wanted: str) -> str:
        """A name for a node that no other has."""
        name = unused_name(wanted, self.nodes)
        self.nodes.add(name)
        return name

    def value(self, wanted: str) -> str:
        """A name for a value that no other has."""
        name = unused_name(wanted, self.values)
        self.values.add(name)
        return name


class _Chain:
    """Nodes that take the place of one, each reading the one before."""

    def __init__(self, names: _Names, node: ir.Node, value: ir.Value) -> None:
        self.names, self.graph, self.node, self.value = names, names.graph, node, value

    def constant(self, label: str, numbers: Numbers, dtype: ir.DataType) -> ir.Value:
        """A weight of the graph."""
        name = self.names.value(f"{self.node.outputs[0].name}_{label}")
        value = ir.Value(name=name, const_value=ir.tensor(numbers.astype(dtype.numpy()), name=name))
        self.graph.register_initializer(value)
        return value

    def beside(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The value of a node that the chain does not run through."""
        out = ir.Value(name=self.names.value(f"{self.node.outputs[0].name}_{op}"))
        name = self.names.node(f"{self.node.name}_{op}")
        self.graph.insert_before(self.node, ir.node(op, inputs, attributes, outputs=[out], name=name))
        return out

    def add(self, op: str, *more: ir.Value, **attributes: list[int]) -> None:
        """A node that reads the value, and constants behind it."""
        name = self.names.node(f"{self.node.name}{PRODUCT if op in ('MatMul', 'Conv') else '_' + op}")
        out = ir.Value(name=self.names.value(f"{self.node.outputs[0].name}_{op}"), type=self.node.outputs[0].type)
        made = ir.node(op, [self.value, *more], attributes, outputs=[out], name=name)
        self.graph.insert_before(self.node, made)
        self.value = out

    def turn(self, order: list[int]) -> None:
        """Another order of the axes, unless it is the one there is."""
        if order != sorted(order):
            self.add("Transpose", perm=order)

    def reshape(self, sizes: list[int]) -> None:
        """Other sizes; 0 for one that stays."""
        self.add("Reshape", self.constant("shape", np.array(sizes), ir.DataType.INT64))

    def close(self) -> None:
        """The last value takes the place of the node's result, and its name."""
        old, new = self.node.outputs[0], self.value
        name, new.shape = old.name, old.shape
        old.name = self.names.value(str(name))
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
        self.graph.remove(self.node, safe=True)
