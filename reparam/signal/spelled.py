"""Sums in one spelling, so that residual blocks are found however they are written.

x - f  =  x + (-1)*f        x.add(f, alpha=a)  =  x + a*f        lerp(x, f, w)  =  (1 - w)*x + w*f
stack([x, f]).sum(0)  =  x + f
"""

from __future__ import annotations

from typing import Any

from torch import fx

from reparam.ir import ADDS, STACKS, SUBS, Program, arguments, aten, is_call, is_float
from reparam.passes import every_rule
from reparam.rewrite import Driver, Phase

_LERPS = frozenset({aten.lerp.Scalar, aten.lerp.Tensor})


def spell_sums(program: Program) -> None:
    """Writes sums of two floating values of one shape that depend on the inputs as additions of products, in place."""
    if any(is_call(n, STACKS) for n in program.calls()):
        stacks = Phase("stacks", (every_rule()["sum-of-stack"],))
        Driver(program, allow_cost=False).run([stacks])
    for node in list(program.calls()):
        parts = _parts(node)
        if parts is None:
            continue
        after = node.next
        left, right = (_times(program, value, factor, node, after) for value, factor in parts)
        made = _call(program, aten.add.Tensor, (left, right), node, after)
        node.replace_all_uses_with(made)
        program.erase([node])


def _parts(node: fx.Node) -> tuple[tuple[fx.Node, Any], tuple[fx.Node, Any]] | None:
    """The two values of a sum with their factors, where the sum is spelled in another way."""
    if not is_call(node, ADDS | SUBS | _LERPS):
        return None
    args = arguments(node)
    first, second = args.get("self", args.get("input")), args.get("end" if is_call(node, _LERPS) else "other")
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    if not all(n.meta.get("data") and is_float(n) for n in (first, second)):
        return None
    if first.meta["val"].shape != second.meta["val"].shape or first.meta["val"].dtype != second.meta["val"].dtype:
        return None
    if is_call(node, _LERPS):
        weight = args["weight"]
        if isinstance(weight, fx.Node) and weight.meta.get("data"):
            return None
        return (first, _Rest(weight)), (second, weight)
    alpha = args.get("alpha") or 1
    if not isinstance(alpha, int | float) or (is_call(node, ADDS) and alpha == 1):
        return None
    if is_call(node, ADDS):
        return (first, 1), (second, alpha)
    if is_call(node, {aten.rsub.Tensor}):
        return (first, -alpha), (second, 1)
    return (first, 1), (second, -alpha)


class _Rest:
    """One minus a weight."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight


def _times(program: Program, value: fx.Node, factor: Any, node: fx.Node, after: fx.Node) -> fx.Node:
    if isinstance(factor, _Rest):
        w = factor.weight
        factor = _call(program, aten.rsub.Scalar, (w, 1), node, after) if isinstance(w, fx.Node) else 1 - w
    if not isinstance(factor, fx.Node) and factor == 1:
        return value
    return _call(program, aten.mul.Tensor, (value, factor), node, after)


def _call(program: Program, target: Any, args: tuple[Any, ...], node: fx.Node, after: fx.Node) -> fx.Node:
    made = program.call(target, args, like=after)
    made.meta["module"] = node.meta.get("module", "")
    return made
