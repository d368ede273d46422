"""x + expand(c) = x + c: an operand of arithmetic that only repeats a smaller one gives way to the smaller one.

Turns constants that are expanded, repeated or filled to the shape of a value into constants that broadcast by
themselves.

Fires on a sum, difference, product or quotient one of whose operands does not depend on the input's values and is made
by expanding a weight, by a fill with a number, or by arithmetic between such.

Refuses nothing. An operand that decides the shape of the result stays.

Source: the rules of broadcasting.

    x - mean.expand_as(x)        becomes        x - mean
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from reparam.ir import FILLS, Program, arguments, aten, free_shape, is_call, is_float, op_name, shape_of, static_shape
from reparam.rewrite import Match, Pattern, Rewrite, op

_EXPANDS = frozenset({aten.expand.default, aten.expand_as.default})
_FULL = frozenset({aten.full.default, aten.zeros.default, aten.ones.default})
_NUMBERS: dict[Any, Callable[[Any, Any], Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
}
_TENSORS = frozenset(_NUMBERS)
_MOST_DEEP = 8  # calls between a constant and its expansion


@dataclass(frozen=True)
class Small:
    """What an operand repeats. value: a weight, or a number; target, left, right: arithmetic between two of them."""

    value: fx.Node | float | None = None
    target: Any = None
    left: Small | None = None
    right: Small | None = None


@dataclass(frozen=True)
class Plan:
    """The arithmetic, and for one of its operands what stands in its place."""

    node: fx.Node
    index: int
    small: Small


@dataclass(frozen=True)
class NarrowOperand:
    """Lets constants broadcast by themselves."""

    name: ClassVar[str] = "narrow-operand"
    pattern: ClassVar[Pattern] = op(_TENSORS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """The first operand that repeats a smaller one while the other has the shape of the result already."""
        node = match.root
        for index in (1, 0):
            operand: Any = node.args[index]
            other = node.args[1 - index]
            if not is_float(operand) or not _same_shape(other, node):
                continue
            small = _small(program, operand, node, _MOST_DEEP)
            if small is None or (isinstance(small.value, float) and index == 0):
                continue
            if isinstance(small.value, float) or _shape(small) != static_shape(operand):
                return Plan(node, index, small)
        return None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The same arithmetic with the small operand."""
        args = list(plan.node.args)
        told = op_name(args[plan.index])  # type: ignore[arg-type]
        args[plan.index] = _emit(program, plan.small, plan.node)
        made = program.call(plan.node.target, args, plan.node.kwargs, like=plan.node)
        return Rewrite({plan.node: made}, f"its operand broadcasts without {told}")


def _same_shape(a: Any, b: fx.Node) -> bool:
    return is_float(a) and free_shape(a) == free_shape(b)


def _shape(small: Small) -> tuple[int, ...]:
    if isinstance(small.value, fx.Node):
        return shape_of(small.value)
    parts = (_shape(s) for s in (small.left, small.right) if s is not None)
    return tuple(torch.broadcast_shapes(*parts))


def _small(program: Program, node: Any, user: fx.Node, depth: int) -> Small | None:
    """What the value repeats by broadcasting alone, or None when it is something else."""
    if isinstance(node, (int, float)):
        return Small(float(node))
    if not is_float(node) or depth == 0 or node.meta["val"].dtype != user.meta["val"].dtype:
        return None
    if program.constant(node) is not None:
        return Small(node)
    if is_call(node, _EXPANDS):
        return _small(program, node.args[0], user, depth - 1)
    if is_call(node, FILLS) or is_call(node, _FULL):
        number = _fill(node)
        return None if number is None else Small(number)
    return _small_arithmetic(program, node, user, depth) if is_call(node, _TENSORS) else None


def _small_arithmetic(program: Program, node: fx.Node, user: fx.Node, depth: int) -> Small | None:
    if node.kwargs.get("alpha", 1) != 1:
        return None
    left, right = (_small(program, a, user, depth - 1) for a in node.args)
    if left is None or right is None:
        return None
    if isinstance(left.value, float) and isinstance(right.value, float):
        if node.target is aten.div.Tensor and right.value == 0.0:
            return None
        return Small(float(_NUMBERS[node.target](left.value, right.value)))
    if isinstance(left.value, float):
        return _swapped(node.target, left, right)
    return Small(target=node.target, left=left, right=right)


def _swapped(target: Any, left: Small, right: Small) -> Small | None:
    """A number goes behind the tensor, where the operator lets it."""
    if target in (aten.add.Tensor, aten.mul.Tensor):
        return Small(target=target, left=right, right=left)
    return None


def _fill(node: fx.Node) -> float | None:
    known: dict[Any, float | None] = {aten.zeros.default: 0.0, aten.ones.default: 1.0, **FILLS}
    value: Any = known.get(node.target)
    if value is None:
        value = arguments(node).get("fill_value")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _emit(program: Program, small: Small, like: fx.Node) -> Any:
    if small.target is None:
        return small.value
    left, right = (_emit(program, s, like) for s in (small.left, small.right) if s is not None)
    return program.call(small.target, (left, right), like=like)


PASS = NarrowOperand
PHASE = "clean"
AFTER = "drop_identity"
