"""Rows stay rows: between linear layers, an ONNX graph keeps the matrix that they compute on.

A linear layer on (N, T, C) is written as Reshape to (N*T, C), Gemm, Reshape back. With R such a reshape, f an operation
on each element or on each row, and * one on pairs of elements,

    f(R(x)) = R(f(x)),    R(x) * R(y) = R(x * y),    R'(R(x)) = R'(x),    R'(R(x)) = x where the shapes agree

so that what lies between two linear layers is computed on the matrix, and the reshapes between them fall away. That is
exact, since each element is computed from the same ones. It is done where every size has a number or a name, the shape
of a reshape is a constant that keeps the width of the rows, both sides of a pair have one shape, and no node has
branches. Outputs of the graph keep their shapes and their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .values import constant_of, has_branches, sizes_of

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


@dataclass
class _Rows:
    """The matrices behind the values of one graph.

    views: a value -> the matrix that it is a reshape of, and the constant that names its shape. flat: a value -> the
    matrix of its rows, where there is one.
    """

    views: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    flat: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def reshaped(self, node: ir.Node) -> None:
        """Takes note of a Reshape, and leaves none to read it where the matrix that it makes is there already."""
        (source, shape), out = node.inputs[:2], node.outputs[0]
        target = _target(shape)
        if source is None or shape is None or not target or 0 in target:
            return
        if source in self.views:
            source = self.views[source][0]
            node.replace_input_with(0, source)
        sizes = sizes_of(source)
        if not sizes or not all(sizes) or target[-1] != sizes[-1]:
            return
        if len(target) == len(sizes) == 2 and not out.is_graph_output():
            out.replace_all_uses_with(source)
        elif len(target) == 2:
            self.flat.setdefault(source, out)
        elif len(sizes) == 2:
            self.views[out] = (source, shape)

    def matrices(self, values: Sequence[ir.Value | None]) -> tuple[list[ir.Value], ir.Value] | None:
        """The matrices of values of one shape, of which at least one is a reshape, and the constant of that shape."""
        given = [v for v in values if v is not None]
        shape = next((self.views[v][1] for v in given if v in self.views), None)
        sizes = {sizes_of(v) for v in given}
        if shape is None or len(sizes) != 1 or not all(sizes.pop()):
            return None
        rows = [self.views[v][0] if v in self.views else self.flat.get(v) for v in given]
        whole = [r for r in rows if r is not None]
        return (whole, shape) if len(whole) == len(values) else None

    def move(self, node: ir.Node, rows: Sequence[ir.Value], shape: ir.Value) -> None:
        """The node computes on the rows; a reshape behind it gives what it gave."""
        out = node.outputs[0]
        back = ir.Value(name=out.name, type=out.type, shape=out.shape)
        out.replace_all_uses_with(back, replace_graph_outputs=True)
        out.name, out.shape = f"{out.name}_rows", rows[0].shape
        for i, matrix in enumerate(rows):
            node.replace_input_with(i, matrix)
        node.append(ir.node("Reshape", [out, shape], outputs=[back], name=f"{node.name}_shape"))
        self.views[back] = (out, shape)


def keep_rows(model: ir.Model) -> None:
    """Moves reshapes behind what they commute with, and drops those that nothing reads then."""
    if has_branches(model.graph):
        return
    known = _Rows()
    for node in list(model.graph):
        if node.op_type == "Reshape":
            known.reshaped(node)
            continue
        count = 2 if node.op_type in PAIRWISE else int(node.op_type in POINTWISE or _by_rows(node))
        found = known.matrices(node.inputs[:count]) if count and len(node.outputs) == 1 else None
        if found is not None:
            known.move(node, *found)
    RemoveUnusedNodesPass()(model)


def _by_rows(node: ir.Node) -> bool:
    """A layer norm of the last axis alone; its other inputs are vectors then."""
    return node.op_type == BY_ROWS and node.attributes.get_int("axis", -1) == -1


def _target(shape: ir.Value | None) -> list[int] | None:
    """The sizes that a constant names."""
    constant = constant_of(shape)
    return None if constant is None else [int(s) for s in constant.numpy().reshape(-1)]
