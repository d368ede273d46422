"""f(x) = x: operators that do nothing in evaluation mode are removed.

Turns dropout, no-op casts, reshapes, slices, pads; clamps proven to do nothing into nothing.

Fires on dropout and its kin, contiguous, clone, detach, casts to the same dtype, reshapes, expands, slices, permutes,
rolls and pads that change nothing, products by one and sums with zero, pools over windows of one, a concatenation of
one value, and on ReLU and clamps whose input is proven to lie inside their range. Leaky ReLU and its kin go where their
slope is one or their input is never negative. A permute that undoes the permute before it goes with it.

Refuses nothing: whatever is not provably the identity is left alone in silence, since it was never meant to be one. A
copy whose reader counts in memory, as as_strided does, is left too.

Source: each operator's definition.

    relu -> dropout -> conv        becomes        relu -> conv
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from reparam.algebra import Affine, read_affine
from reparam.ir import (
    ADDS,
    AVG_POOLS,
    CASTS,
    CATS,
    DIVS,
    DROPOUTS,
    IDENTITIES,
    LAYOUT_READERS,
    MAX_POOLS,
    MOVEMENTS,
    MULS,
    PADS,
    SLICES,
    SUBS,
    ZEROS,
    Program,
    arguments,
    aten,
    is_call,
    is_tensor,
    may_cut,
    op_name,
    ranges_of,
    shape_of,
    static_shape,
)
from reparam.rewrite import Match, Pattern, Rewrite, op

_SQUEEZES = frozenset({aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims})
_RESHAPES = _SQUEEZES | frozenset(
    {
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.expand.default,
        aten.expand_as.default,
        aten.slice.Tensor,
        aten.narrow.default,
    }
)
_PERMUTES = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
_CLAMPS = frozenset(
    {
        aten.relu.default,
        aten.relu6.default,
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
    }
)
_RECTIFIERS = frozenset(
    {
        aten.leaky_relu.default,
        aten.prelu.default,
        aten.threshold.default,
        aten.elu.default,
        aten.celu.default,
    }
)
_UNMARKS = frozenset({aten.clone.default, aten.resolve_conj.default})
_COPIES = frozenset({aten.copy.default})
_POOLS = AVG_POOLS | MAX_POOLS
_TENSOR_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_ARITHMETIC = ADDS | SUBS | MULS | DIVS
_ALL = (
    (DROPOUTS | IDENTITIES | CASTS | MOVEMENTS | PADS | CATS | _ARITHMETIC | _POOLS | _CLAMPS)
    | (_RECTIFIERS | _COPIES)
    | {aten.abs.default, aten.rrelu.default}
)


@dataclass(frozen=True)
class Plan:
    """The call, the value that it equals, and values that it reads and that do not matter to it."""

    node: fx.Node
    same: fx.Node
    unread: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class DropIdentity:
    """Removes calls that return their operand."""

    name: ClassVar[str] = "drop-identity"
    pattern: ClassVar[Pattern] = op(_ALL)

    def check(self, program: Program, match: Match) -> Plan | None:
        """The value that the call equals, if that is proven."""
        same = equal_value(program, match.root)
        if same is None or not _same_type(same, match.root) or _is_read_in_memory(match.root):
            return None
        unread = match.root.args[:1] if is_call(match.root, _COPIES) and match.root.args[0] is not same else ()
        return Plan(match.root, same, unread)  # type: ignore[arg-type]

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """Nothing new: the operand takes the call's place."""
        return Rewrite({plan.node: plan.same}, f"{op_name(plan.node)} does nothing here", unread=plan.unread)


def _is_read_in_memory(node: fx.Node) -> bool:
    """Whether its result differs from an equal value in what lies in memory, and that is or may be read.

    A copy of conjugated values is conjugated there, where these are only marked so.
    """
    val = node.meta["val"]
    marked = is_call(node, _UNMARKS) and isinstance(val, Tensor) and val.is_complex()
    return marked or any(is_call(user, LAYOUT_READERS) for user in node.users)


def _same_type(a: fx.Node, b: fx.Node) -> bool:
    p, q = a.meta["val"], b.meta["val"]
    if p.dtype != q.dtype or p.device != q.device or p.dim() != q.dim():
        return False
    return all(_equal_size(s, t) for s, t in zip(p.shape, q.shape, strict=True))


def _equal_size(a: Any, b: Any) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return bool(a.node.expr == b.node.expr)


def equal_value(program: Program, node: fx.Node) -> fx.Node | None:
    """The node whose value `node` repeats, or None. The caller still compares shape and dtype."""
    first = node.args[0] if node.args else None
    if not is_tensor(node):
        return None
    if is_call(node, CATS):
        tensors = arguments(node)["tensors"]
        return tensors[0] if len(tensors) == 1 else None
    if is_call(node, _ARITHMETIC):
        affine = read_affine(program, node)
        return affine.x if isinstance(affine, Affine) and _neutral(affine) else _beside_zero(node)
    if not is_tensor(first):
        return None
    assert isinstance(first, fx.Node)
    if is_call(node, _COPIES):
        return arguments(node)["src"]  # type: ignore[no-any-return]
    if is_call(node, DROPOUTS):
        return None if node.args[2:] and node.args[2] else first
    if (is_call(node, _SQUEEZES) and _may_lose_an_axis(node, first)) or (is_call(node, SLICES) and may_cut(node)):
        return None
    if is_call(node, IDENTITIES | CASTS | _RESHAPES):
        return first
    if is_call(node, _PERMUTES):
        return _undone(node, first)
    check = _CHECKS.get(node.target) or next((c for ts, c in _GROUP_CHECKS if is_call(node, ts)), None)
    return first if check is not None and check(program, node, first) else None


def _may_lose_an_axis(node: fx.Node, x: fx.Node) -> bool:
    """Whether an axis that a squeeze takes away where it has one entry is of a free size."""
    sizes, dims = static_shape(x), arguments(node).get("dim", range(len(shape_of(x))))
    return any(sizes[d] is None for d in ([dims] if isinstance(dims, int) else dims))


def _neutral(affine: Affine) -> bool:
    scale, shift = affine.pair.scale, affine.pair.shift
    return (scale is None or bool((scale == 1).all())) and (shift is None or bool((shift == 0).all()))


def _beside_zero(node: fx.Node) -> fx.Node | None:
    """The other operand of a sum or difference with a fill of zeros."""
    if not is_call(node, _TENSOR_SUMS):
        return None
    args = arguments(node)
    if _is_zero(args["other"]):
        return args["self"]  # type: ignore[no-any-return]
    plus = is_call(node, ADDS) and args["alpha"] == 1
    return args["other"] if plus and _is_zero(args["self"]) else None


def _is_zero(value: Any) -> bool:
    """Whether it is a fill of zeros, or one times a number."""
    while isinstance(value, fx.Node) and is_call(value, MULS | DIVS):
        if not isinstance(arguments(value)["other"], (int, float)):
            return False
        value = value.args[0]
    return isinstance(value, fx.Node) and is_call(value, ZEROS)


def _permutation(node: fx.Node) -> list[int]:
    rank = len(shape_of(node))
    if node.target is aten.permute.default:
        return [d % rank for d in arguments(node)["dims"]]
    order = list(range(rank))
    if rank > 1:
        a, b = (
            (0, 1)
            if node.target is aten.t.default
            else (arguments(node)["dim0"] % rank, arguments(node)["dim1"] % rank)
        )
        order[a], order[b] = order[b], order[a]
    return order


def _undone(node: fx.Node, x: fx.Node) -> fx.Node | None:
    order = _permutation(node)
    if order == sorted(order):
        return x
    before = x.args[0] if is_call(x, _PERMUTES) else None
    if not isinstance(before, fx.Node):
        return None
    inner = _permutation(x)
    return before if [inner[i] for i in order] == sorted(order) else None


def _pad_is_empty(program: Program, node: fx.Node, x: fx.Node) -> bool:
    return not any(arguments(node)["pad"])


def _roll_is_whole(program: Program, node: fx.Node, x: fx.Node) -> bool:
    args = arguments(node)
    sizes = x.meta["val"].shape
    if not args["dims"]:  # of all elements in a row
        return not any(args["shifts"])
    if any(isinstance(shift, fx.Node) for shift in args["shifts"]):  # by a free size
        return False
    turned: dict[int, int] = {}
    for shift, dim in zip(args["shifts"], args["dims"], strict=True):
        turned[dim % len(sizes)] = turned.get(dim % len(sizes), 0) + shift
    return all(t == 0 or (isinstance(sizes[d], int) and t % sizes[d] == 0) for d, t in turned.items())


def _repeat_is_one(program: Program, node: fx.Node, x: fx.Node) -> bool:
    return all(r == 1 for r in arguments(node)["repeats"])


def _pool_is_one(program: Program, node: fx.Node, x: fx.Node) -> bool:
    args = arguments(node)
    ones = all(v == 1 for v in (*args["kernel_size"], *args["stride"]))
    return ones and not any(args["padding"]) and args.get("divisor_override") in (None, 1)


def _inside_range(program: Program, node: fx.Node, x: fx.Node) -> bool:
    low, high = ranges_of(program).of(x)
    if node.target in (aten.relu.default, aten.abs.default):
        return low >= 0
    if node.target is aten.relu6.default:
        return low >= 0 and high <= 6
    args = arguments(node)
    floor = args.get("min", args.get("min_val"))
    ceiling = args.get("max", args.get("max_val"))
    if not all(v is None or isinstance(v, (int, float)) for v in (floor, ceiling)):
        return False
    return low >= (-math.inf if floor is None else floor) and high <= (math.inf if ceiling is None else ceiling)


def _is_straight(program: Program, node: fx.Node, x: fx.Node) -> bool:
    """Rectifiers whose two pieces are the identity, or of which only the piece that is comes to be used."""
    args = arguments(node)
    low = ranges_of(program).of(x)[0]
    if node.target is aten.threshold.default:
        return bool(args["threshold"] == -math.inf or low > args["threshold"])
    if node.target is aten.elu.default and (args["scale"] != 1 or low < 0):
        return False
    return low >= 0 or _has_slope_one(program, node, args)


def _has_slope_one(program: Program, node: fx.Node, args: dict[str, Any]) -> bool:
    if node.target is aten.leaky_relu.default:
        return bool(args["negative_slope"] == 1)
    slopes = program.tensor(args["weight"]) if node.target is aten.prelu.default else None
    return slopes is not None and bool((slopes == 1).all())


def _rrelu_is_straight(program: Program, node: fx.Node, x: fx.Node) -> bool:
    args = arguments(node)
    return not args["training"] and bool(args["lower"] + args["upper"] == 2 or ranges_of(program).nonnegative(x))


Check = Callable[[Program, fx.Node, fx.Node], bool]
_CHECKS: dict[Any, Check] = {
    aten.roll.default: _roll_is_whole,
    aten.repeat.default: _repeat_is_one,
    aten.abs.default: _inside_range,
    aten.rrelu.default: _rrelu_is_straight,
}
_GROUP_CHECKS: tuple[tuple[frozenset[Any], Check], ...] = (
    (PADS, _pad_is_empty),
    (_POOLS, _pool_is_one),
    (_CLAMPS, _inside_range),
    (_RECTIFIERS, _is_straight),
)


PASS = DropIdentity
PHASE = "clean"
AFTER = "fold_constants"
