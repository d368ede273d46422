"""Sizes that a model computes with fractions, written with whole numbers, which a `.pt2` archive can hold.

ceil(n*p/q) = (n*p + q - 1) // q and floor(n*p/q) = (n*p) // q for whole n, p and q > 0. Nothing on the way is negative,
since engines divide negative numbers in other ways than Python. Python rounds halves to even numbers: with m = 2*n*p
+ q, a = m // (2*q) and b = (m - 1) // (2*q), which are one but for a half, round(n*p/q) = a - (a % 2) * (a - b). The
same holds of any number x with a = floor(x + 0.5) and b = ceil(x - 0.5).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx

from reparam.ir import Program

_ROUNDS_UP = (math.ceil,)
_ROUNDS_DOWN = (math.floor, math.trunc)  # sizes are not negative
_PARTS = 1000  # of a ratio that is not exactly the number
_SIZES = 1 << 22  # that such a ratio is tried for
_LARGEST_DENOMINATOR = 1 << 16  # n*p/q is then exact in float64 for every size that a tensor can have


def with_whole_sizes(program: Program) -> Program:
    """The program with such sizes written with whole numbers; itself where it has none."""
    if not any(n.target in (*_ROUNDS_UP, *_ROUNDS_DOWN, round) for n in program.calls()):
        return program
    made = program.copy()
    spell_whole_sizes(made.graph)
    return made


def spell_whole_sizes(graph: fx.Graph) -> None:
    """Replaces, in place, each size that is rounded from a fraction of another size."""
    for node in list(graph.nodes):
        if (
            node.op == "call_function"
            and node.target is round
            and len(node.args) <= 2
            and node.args[1:] in ((), (None,))
        ):
            _to_nearest(graph, node)
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (*_ROUNDS_UP, *_ROUNDS_DOWN):
            continue
        found = _ratio(node.args[0], node.target)
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


def _to_nearest(graph: fx.Graph, node: fx.Node) -> None:
    """Writes a rounding to the nearest whole number, of halves to the even one, by others."""
    found = _ratio(node.args[0], round)
    with graph.inserting_before(node):
        if found is not None:
            (size, ratio), halves = found, 2 * found[1].denominator
            double = _call(graph, operator.mul, size, 2 * ratio.numerator)
            upper = _call(graph, operator.floordiv, _call(graph, operator.add, double, halves // 2), halves)
            lower = _call(graph, operator.floordiv, _call(graph, operator.add, double, halves // 2 - 1), halves)
        else:
            upper = _call(graph, math.floor, _call(graph, operator.add, node.args[0], 0.5))
            lower = _call(graph, math.ceil, _call(graph, operator.sub, node.args[0], 0.5))
        odd, half = _call(graph, operator.mod, upper, 2), _call(graph, operator.sub, upper, lower)
        whole = _call(graph, operator.sub, upper, _call(graph, operator.mul, odd, half))
    node.replace_all_uses_with(whole)
    _erase_unused(graph, node)


def _call(graph: fx.Graph, operation: Callable[..., Any], size: Any, *numbers: Any) -> fx.Node:
    node = graph.call_function(operation, (size, *numbers))
    values = [n.meta["val"] if isinstance(n, fx.Node) else n for n in (size, *numbers)]
    node.meta = {**size.meta, "val": operation(*values)}
    return node


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erases a call that nobody reads, and what only it read."""
    if node.op != "call_function" or node.users:
        return
    operands = node.all_input_nodes
    graph.erase_node(node)
    for operand in operands:
        _erase_unused(graph, operand)


def _ratio(node: Any, rounding: Any) -> tuple[fx.Node, Fraction] | None:
    """A quotient or product of one whole size and a number, as that size and a ratio that is rounded alike."""
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
    if ratio.denominator <= _LARGEST_DENOMINATOR and ratio.numerator <= _LARGEST_DENOMINATOR:
        return size, ratio
    near = _near(float(number), node.target is operator.truediv, rounding)
    return None if near is None else (size, near)


@functools.cache
def _near(number: float, divides: bool, rounding: Any) -> Fraction | None:
    """p/q, 3/10 for 0.3, where n*p/q is rounded like the product or quotient in floats for n up to `_SIZES`."""
    exact = Fraction(number)
    ratio = (1 / exact if divides else exact).limit_denominator(_PARTS)
    if not 0 < ratio.numerator <= _PARTS:
        return None
    sizes = np.arange(_SIZES)
    floats = sizes / number if divides else sizes * number
    p, q = ratio.numerator, ratio.denominator
    if rounding is round:
        upper, lower = (2 * p * sizes + q) // (2 * q), (2 * p * sizes + q - 1) // (2 * q)
        same = np.rint(floats) == upper - upper % 2 * (upper - lower)
    elif rounding in _ROUNDS_UP:
        same = np.ceil(floats) == (p * sizes + q - 1) // q
    else:
        same = np.floor(floats) == p * sizes // q
    return ratio if bool(same.all()) else None
