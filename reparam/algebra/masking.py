"""What becomes of a channel affine where elements are masked: a fill of zeros, a choice by a condition, a triangle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from reparam.ir import Program, Refusal, arguments, aten, is_float, op_name, shape_of

from .channel_affine import Pair, same

FILLED = frozenset({aten.masked_fill.Scalar, aten.tril.default, aten.triu.default})
RUNNING_SUMS = frozenset({aten.cumsum.default})
CHOICES = frozenset({aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf})


def filled(node: fx.Node, carried: Pair) -> Refusal | None:
    """s x where a mask lets it through and zero elsewhere is s times the same of x; a shift would be lost there."""
    if arguments(node).get("value", 0) != 0:
        return Refusal(f"an affine does not pass {op_name(node)}, which fills in another number than zero", node)
    if carried.shift is not None:
        return Refusal(f"a shift does not pass {op_name(node)}, which fills in zeros", node)
    if shape_of(node) != shape_of(arguments(node)["self"]):
        return Refusal(f"the scale does not pass {op_name(node)}, which broadcasts", node)
    return None


def running_sum(node: fx.Node, carried: Pair) -> Refusal | None:
    """The running sum of s x is s times that of x, for an s that does not vary along it."""
    if carried.shift is not None:
        return Refusal("a shift adds up in a running sum", node)
    axis = int(arguments(node)["dim"])
    if carried.scale is not None and carried.scale.shape[axis] != 1:
        return Refusal("the scale varies along a running sum", node)
    return None


def value_and_mask(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """What is multiplied by a mask of truth values or whole numbers."""
    sides = [s for s in arguments(node).values() if isinstance(s, fx.Node)]
    values = tuple(s for s in sides if is_float(s))
    return values if len(sides) == 2 and len(values) == 1 else None


def choice_backward(program: Program, node: fx.Node, wanted: Pair) -> Sequence[tuple[fx.Node, Pair]] | Refusal:
    """s (m ? x : y) + t = m ? s x + t : s y + t. A side of zeros takes a scale as it is.

    What each side has to take; Refusal where one of them cannot.
    """
    args = arguments(node)
    asked: list[tuple[fx.Node, Pair]] = []
    for side in (args["self"], args["other"]):
        if _is_zero(program, side):
            if wanted.shift is not None:
                return Refusal(f"a shift does not pass {op_name(node)}, which fills in zeros", node)
            continue
        if not isinstance(side, fx.Node) or program.constant(side) is not None:
            return Refusal(f"a side of {op_name(node)} is a constant that does not take the affine", node)
        if not is_float(side) or shape_of(side) != shape_of(node):
            return Refusal(f"the affine does not pass back through this {op_name(node)}", node)
        asked.append((side, wanted))
    return asked or Refusal(f"nothing is chosen by this {op_name(node)}", node)


def choice_forward(program: Program, node: fx.Node, known: Mapping[fx.Node, Any]) -> Pair | Refusal:
    """The affine of both sides, or the scale of one where the other is of zeros."""
    args = arguments(node)
    sides = (args["self"], args["other"])
    pairs: list[Pair] = [known.get(side, Pair()) if isinstance(side, fx.Node) else Pair() for side in sides]
    if args["condition"] in known or any(
        p.trivial and not _is_zero(program, s) for p, s in zip(pairs, sides, strict=True)
    ):
        return Refusal(f"an affine on one operand only does not pass through {op_name(node)}", node)
    carried = [(s, p) for p, s in zip(pairs, sides, strict=True) if not p.trivial]
    first = carried[0][1]
    if len(carried) < len(sides) and first.shift is not None:
        return Refusal(f"a shift does not pass {op_name(node)}, which fills in zeros", node)
    if not all(same(first.scale, p.scale) and same(first.shift, p.shift) for _, p in carried):
        return Refusal(f"its operands carry different affines into {op_name(node)}", node)
    if any(shape_of(s) != shape_of(node) for s, _ in carried):
        return Refusal(f"the affine does not pass {op_name(node)}, which broadcasts", node)
    return first


def _is_zero(program: Program, side: Any) -> bool:
    if isinstance(side, bool | int | float):
        return side == 0
    constant = program.constant(side)
    return constant is not None and not bool(constant.value.any())
