"""Squeeze-excite gates: x * g(x), where g comes from the means of x over space.

Beside carried channels a gate is widened: the carried ones get no weight in the first layer and a bias of 40 in the
last, and sigmoid(40) = 1 in float64 and below (hardsigmoid: exactly).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.algebra import read_layer, weights, write_layer
from reparam.ir import FOLD_DTYPE, MULS, Program, aten, is_call, is_float, shape_of

from .linear_form import RegisterValue
from .span import Span, carries_data

OPEN = 40.0
_SQUASH = frozenset({aten.sigmoid.default, aten.hardsigmoid.default})
_MEANS = frozenset({aten.mean.dim, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default})


@dataclass(frozen=True)
class Gate:
    """x: the gated value. body: the calls from the mean over space to the squashing function, in order."""

    x: fx.Node
    body: tuple[fx.Node, ...]

    @property
    def width(self) -> int:
        """Channels between the first and the last layer."""
        return int(shape_of(self.body[1])[1])


def find_gates(program: Program, span: Span) -> dict[fx.Node, Gate]:
    """The products of the span that are gates which can be widened."""
    found = {}
    for node in span.nodes:
        gate = read_gate(program, node) if is_call(node, MULS) else None
        if gate is not None:
            found[node] = gate
    return found


def read_gate(program: Program, node: fx.Node) -> Gate | None:
    """`node` as x * g(x); None when its factor is made in another way."""
    operands = [i for i in node.all_input_nodes if is_float(i) and carries_data(i)]
    if len(operands) != 2:
        return None
    for x, factor in (operands, operands[::-1]):
        body = _body(program, x, factor)
        if body is not None and shape_of(x) == shape_of(node):
            return Gate(x, body)
    return None


def _body(program: Program, x: fx.Node, factor: fx.Node) -> tuple[fx.Node, ...] | None:
    body: list[fx.Node] = []
    node = factor
    while node is not x:
        data = [i for i in node.all_input_nodes if carries_data(i)]
        if node.op != "call_function" or len(data) != 1 or len(node.users) != 1 or not is_float(node):
            return None
        body.append(node)
        node = data[0]
    body.reverse()
    if len(body) < 3 or not is_call(body[0], _MEANS) or not is_call(body[-1], _SQUASH):
        return None
    layers = [n for n in body if (found := read_layer(program, n)) is not None and found.pointwise]
    if not layers or layers[0] is not body[1] or layers[-1] is not body[-2]:
        return None
    if any(s != 1 for n in body for s in shape_of(n)[2:]) or len(shape_of(body[0])) != len(shape_of(x)):
        return None
    geometries = [read_layer(program, n) for n in (layers[0], layers[-1])]
    return tuple(body) if all(g is not None and g.geometry.groups == 1 for g in geometries) else None


def emit_gate(
    program: Program, value: RegisterValue, register: fx.Node, positions: Tensor, *, like: fx.Node
) -> fx.Node:
    """The register with the channels at `positions` gated as `value` says and all others multiplied by one."""
    width = shape_of(register)[1]
    current = register
    body = value.body
    for node in body:
        layer = read_layer(program, node)
        if layer is None:
            data = next(i for i in node.all_input_nodes if carries_data(i))
            current = program.clone(node, {data: current}, like=like)
            continue
        weight, bias = weights(program, layer)
        if node is body[1]:
            weight = _spread(weight, positions, width, 1)
        if node is body[-2]:
            bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
            weight = _spread(weight, positions, width, 0)
            wide = torch.full((width,), OPEN, dtype=FOLD_DTYPE)
            wide[positions] = bias
            bias = wide
        current = write_layer(program, layer, weight, bias, x=current, like=like)
    return program.call(aten.mul.Tensor, (register, current), like=like)


def _spread(weight: Tensor, positions: Tensor, width: int, axis: int) -> Tensor:
    shape = list(weight.shape)
    shape[axis] = width
    return weight.new_zeros(shape).index_copy(axis, positions, weight)
