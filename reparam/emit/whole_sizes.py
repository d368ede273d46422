"""Sizes that a model computes with fractions, written with whole numbers, which a `.pt2` archive can hold.

ceil(n*p/q) = (n*p + q - 1) // q and floor(n*p/q) = (n*p) // q for whole n, p and q > 0. Nothing on the way is negative,
since engines divide negative numbers in other ways than Python.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import fx

_ROUNDS_UP = (math.ceil,)
_ROUNDS_DOWN = (math.floor, math.trunc)  # sizes are not negative
_LARGEST_DENOMINATOR = 1 << 16  # n*p/q is then exact in float64 for every size that a tensor can have


def spell_whole_sizes(graph: fx.Graph) -> None:
    """Replaces, in place, each size that is rounded from a fraction of another size."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (*_ROUNDS_UP, *_ROUNDS_DOWN):
            continue
        found = _ratio(node.args[0])
        if found is None:
            continue
        size, ratio = found
        up = node.target in _ROUNDS_UP
        with graph.inserting_before(node):
            whole = size
            if ratio.numerator != 1:
                whole = _call(graph, operator.mul, whole, ratio.numerator)
            if up and ratio.denominator != 1:
                whole = _call(graph, operator.add, whole, ratio.denominator - 1)
            if ratio.denominator != 1:
                whole = _call(graph, operator.floordiv, whole, ratio.denominator)
        node.replace_all_uses_with(whole)
        _erase_unused(graph, node)


def _call(graph: fx.Graph, operation: Callable[[Any, int], Any], size: fx.Node, number: int) -> fx.Node:
    node = graph.call_function(operation, (size, number))
    node.meta = {**size.meta, "val": operation(size.meta["val"], number)}
    return node


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erases a call that nobody reads, and what only it read."""
    if node.op != "call_function" or node.users:
        return
    operands = node.all_input_nodes
    graph.erase_node(node)
    for operand in operands:
        _erase_unused(graph, operand)


def _ratio(node: Any) -> tuple[fx.Node, Fraction] | None:
    """A quotient or product of one whole size and a number, as that size and a ratio."""
    if not isinstance(node, fx.Node) or node.target not in (operator.truediv, operator.mul):
        return None
    left, right = node.args
    size, number = (left, right) if isinstance(left, fx.Node) else (right, left)
    if isinstance(size, fx.Node) and size.target is torch.sym_float:
        size = size.args[0]
    if not isinstance(size, fx.Node) or isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if not isinstance(size.meta.get("val"), (int, torch.SymInt)) or not number > 0 or not math.isfinite(number):
        return None
    if node.target is operator.truediv:
        if not isinstance(left, fx.Node):
            return None
        ratio = 1 / Fraction(number)
    else:
        ratio = Fraction(number)
    small = ratio.denominator <= _LARGEST_DENOMINATOR and ratio.numerator <= _LARGEST_DENOMINATOR
    return (size, ratio) if small else None
