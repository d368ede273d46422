"""What sums, means and extremes along axes let through of an affine, in both directions.

sum_i (s x_i + t) = s sum_i x_i + n t        mean_i (s x_i + t) = s mean_i x_i + t
max_i (s x_i + t) = s max_i x_i + t          for s >= 0; the same of minima, medians, sorted and largest values
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, fx

from reparam.ir import MEANS, SUMS, Refusal, arguments, aten, is_call, op_name, shape_of, static_shape

from .channel_affine import Pair

WITH_POSITIONS = frozenset(
    {
        *(aten.max.dim, aten.min.dim, aten.median.dim, aten.kthvalue.default),
        *(aten.sort.default, aten.sort.stable, aten.topk.default),
    }
)
ORDERED = WITH_POSITIONS | {aten.amax.default, aten.amin.default}
REDUCTIONS = MEANS | SUMS | ORDERED


def reduced_forward(node: fx.Node, x: fx.Node, carried: Pair) -> Pair | Refusal:
    """The affine of the call's result, of its values where it gives positions too, for one of its operand."""
    axes = _axes(node, x)
    refusal = _refused(node, carried, axes)
    if refusal is not None:
        return refusal
    count = _added_up(node, x, axes)
    if count is None and carried.shift is not None:
        return Refusal("a shift does not pass through a sum of a free number of values", node)
    scale, shift = (v if v is None or _keeps_axes(node) else _without(v, axes) for v in (carried.scale, carried.shift))
    return Pair(scale, None if shift is None or count is None else shift * count)


def reduced_backward(node: fx.Node, x: fx.Node, wanted: Pair) -> Pair | Refusal:
    """The affine of the operand that makes `wanted` of the result, of its values where it gives positions too."""
    axes = _axes(node, x)
    scale, shift = (v if v is None or _keeps_axes(node) else _with(v, axes) for v in (wanted.scale, wanted.shift))
    refusal = _refused(node, Pair(scale, shift), axes)
    if refusal is not None:
        return refusal
    count = _added_up(node, x, axes)
    if not count and shift is not None:
        return Refusal("a shift does not pass back through a sum of a free number of values", node)
    return Pair(scale, None if shift is None or not count else shift / count)


def _refused(node: fx.Node, pair: Pair, axes: Sequence[int]) -> Refusal | None:
    """pair: at the rank of the operand."""
    if any(v is not None and any(v.shape[a] != 1 for a in axes) for v in (pair.scale, pair.shift)):
        verb = "averaged away" if is_call(node, MEANS) else "added up" if is_call(node, SUMS) else "put in order"
        return Refusal(f"the affine varies along an axis that is {verb}", node)
    if not is_call(node, ORDERED):
        return None
    if is_call(node, WITH_POSITIONS) and any(u.args[1] != 0 for u in node.users):
        return Refusal(f"the positions that {op_name(node)} gives are used as well", node)
    negative = 0 if pair.scale is None else int((pair.scale < 0).sum())
    if negative:
        return Refusal(f"{op_name(node)} does not let a negative scale through ({negative} channels)", node)
    return None


def _axes(node: fx.Node, x: fx.Node) -> list[int]:
    """The axes along which values are added up or put in order, ascending."""
    rank, given = len(shape_of(x)), arguments(node)["dim"]
    listed = [given] if isinstance(given, int) else list(given or range(rank))
    return sorted(d % rank for d in listed)


def _keeps_axes(node: fx.Node) -> bool:
    """Whether the result has the rank of the operand."""
    return bool(arguments(node).get("keepdim", True))


def _added_up(node: fx.Node, x: fx.Node, axes: Sequence[int]) -> int | None:
    """How many times a shift is added to itself; None where that depends on free sizes."""
    if not is_call(node, SUMS):
        return 1
    sizes = [static_shape(x)[a] for a in axes]
    return None if any(s is None for s in sizes) else math.prod(s for s in sizes if s is not None)


def _without(value: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in reversed(axes):
        value = value.squeeze(axis)
    return value


def _with(value: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        value = value.unsqueeze(axis)
    return value
