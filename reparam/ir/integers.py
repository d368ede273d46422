"""Which whole numbers are drawn for an input: what its graph does with them tells which ones it takes.

An input that is looked up in a table has the rows of the table. One of 8 or 16 bits whose values are used as numbers,
as those of images are, has all numbers of its dtype, unless 1 - x is taken of it, as of masks. One that is compared
with positions is a length, from 1 to their number, or a position, from 0 to the last. One that divides begins at 1. All
others are 0 and 1, which are indices, classes and truth values nearly everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import UnknownSizeError

from .aten import CASTS, CATS, FILLS, IDENTITIES, MOVEMENTS, PADS, STACKS, aten, is_call, op_name
from .program import InputSpec, Program, shape_of

_NARROW = frozenset({torch.uint8, torch.int8, torch.int16})
FEW = 0.25

_TABLES = frozenset({aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx})
_PLAIN = IDENTITIES | MOVEMENTS | CASTS  # the numbers of the first operand, maybe in another dtype
_JOINED = CATS | STACKS
_NO_VALUES = frozenset(FILLS) | {aten.sym_size.int, aten._assert_tensor_metadata.default, aten.empty_like.default}
_COMPARISONS = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or", "logical_xor", "isnan", "isinf"}
)
_ORDERS = frozenset({"lt", "le", "gt", "ge"})
_DIVISIONS = frozenset({"div", "floor_divide", "remainder", "fmod"})
_NUMBERS = _DIVISIONS | {
    "add", "sub", "rsub", "mul", "neg", "abs", "sign", "square", "clamp", "clamp_min", "clamp_max", "relu",
    "minimum", "maximum", "sum", "amax", "amin", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not",
    "__and__", "__or__", "__xor__",
}  # fmt: skip
_BY_FIRST = frozenset(  # the second operand has to be small
    {"pow", "bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__"}
)


def drawn_inputs(program: Program) -> tuple[InputSpec, ...]:
    """The inputs of a program with the bounds of what is drawn for those of integers."""
    nodes = {str(n.target): n for n in program.placeholders}
    return tuple(with_integers(s, nodes[s.name]) for s in program.inputs)


def with_integers(spec: InputSpec, node: fx.Node, sizes: Mapping[str, int] | None = None) -> InputSpec:
    """The spec of an input with the bounds of what is drawn, where it is of integers and has no range of its own.

    sizes: of the free axes, the traced ones if None.
    """
    if spec.dtype.is_floating_point or spec.dtype.is_complex or spec.dtype == torch.bool or math.isfinite(spec.high):
        return spec
    rows = largest_index(node)
    numbers, divides = _use_of(node)
    if divides and not math.isfinite(spec.low):
        spec = replace(spec, low=min(1.0, rows))
    if math.isfinite(rows):
        return replace(spec, high=rows)
    if length := _length(node, sizes):
        return replace(spec, low=max(spec.low, length[0]), high=min(length[1], torch.iinfo(spec.dtype).max))
    return whole_range(spec) if numbers else spec


def whole_range(spec: InputSpec) -> InputSpec:
    """The spec of an input of 8 or 16 bits with the bounds of its dtype, where it has none of its own."""
    if spec.dtype not in _NARROW or spec.few:
        return spec
    limits = torch.iinfo(spec.dtype)
    return replace(spec, low=max(spec.low, limits.min), high=min(spec.high, limits.max))


def is_whole(spec: InputSpec) -> bool:
    """Whether all numbers of a narrow dtype are drawn, or all from 1 on."""
    return spec.dtype in _NARROW and spec.low <= 1 and spec.high == torch.iinfo(spec.dtype).max


def random_integers(spec: InputSpec, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers from the lowest to the highest; without a highest, the lowest (0, if there is none) and the next.

    Of whole ranges a quarter is 0 or 1, so that what is computed where a number is 0, as of masks, is seen as well.
    """
    low = int(spec.low) if math.isfinite(spec.low) else int(min(0, spec.high))
    high = low + 1 if spec.dtype == torch.bool or not math.isfinite(spec.high) else int(spec.high)
    drawn = torch.randint(low, high + 1, tuple(shape), generator=generator)
    if is_whole(spec):
        first = torch.randint(max(low, 0), max(low, 0) + 2, tuple(shape), generator=generator)
        drawn = torch.where(torch.rand(tuple(shape), generator=generator) < FEW, first, drawn)
    return drawn.to(spec.dtype)


def largest_index(node: fx.Node) -> float:
    """The largest entry of integers that are looked up in a table; infinite where they are used otherwise."""
    rows = [math.inf]
    stack = [(node, user) for user in node.users]
    while stack:
        read, user = stack.pop()
        if is_call(user, _TABLES) and user.args[1] is read:
            rows.append(shape_of(user.args[0])[0] - 1)  # type: ignore[arg-type]
        elif is_call(user, _PLAIN):
            stack.extend((user, following) for following in user.users)
    return min(rows)


def _length(node: fx.Node, sizes: Mapping[str, int] | None) -> tuple[int, int] | None:
    """The least and the largest number of an integer input that is compared with positions 0, 1, 2, ..., p - 1.

    From 1 to p where the positions below it count, from 0 to p - 1 where its own counts as well, which may be an index.
    """
    least, seen = 0, {node}
    most: int | None = None
    stack = [(node, user) for user in node.users]
    while stack:
        read, user = stack.pop()
        if _is_aten(user) and op_name(user) in _ORDERS:
            first, second = user.args[:2]
            other, below = (second, ("gt", "le")) if first is read else (first, ("lt", "ge"))
            if isinstance(other, fx.Node) and _count_of(other, None) > 1:
                own, count = op_name(user) not in below, _count_of(other, sizes)
                least, most = max(least, 1 - own), min(count if most is None else most, count - own)
        elif is_call(user, _PLAIN) and user.args[0] is read and user not in seen:
            seen.add(user)
            stack.extend((user, following) for following in user.users)
    return None if most is None else (least, max(least, most))


def _count_of(node: fx.Node, sizes: Mapping[str, int] | None) -> int:
    """How many positions a value holds along one axis: 0, 1, 2, ..., or whole numbers that the network keeps.

    0 where it holds something else, or where their number depends on the values of the inputs.
    """
    first = node
    while is_call(first, _PLAIN):
        first = first.args[0]  # type: ignore[assignment]
    kept = first.op == "get_attr" and _is_integer(first.meta.get("val"))
    if not kept and not (_is_aten(first) and op_name(first) == "arange"):
        return 0
    try:
        return min(math.prod(shape_of(first, sizes)), max(shape_of(node, sizes), default=1))
    except UnknownSizeError:
        return 0


def _is_mask(node: fx.Node) -> bool:
    """Whether 1 - x is taken of an input, which makes what is masked of what is not."""
    stack = [(node, user) for user in node.users]
    while stack:
        read, user = stack.pop()
        if _is_aten(user) and op_name(user) in ("rsub", "sub"):
            first, second = user.args[:2] if op_name(user) == "sub" else user.args[1::-1]
            if second is read and isinstance(first, int | float) and first == 1:
                return True
        elif is_call(user, _PLAIN):
            stack.extend((user, following) for following in user.users)
    return False


def _use_of(node: fx.Node) -> tuple[bool, bool]:
    """Whether an input takes all numbers of its dtype, and whether it divides, so that it takes no 0."""
    numbers, divides = not _is_mask(node), False
    seen: set[tuple[fx.Node, fx.Node]] = set()
    stack = [(node, user, True, True) for user in node.users]
    while stack:
        read, user, same, kept = stack.pop()  # same: the input's numbers; kept: none of them was made 0
        if (read, user) in seen:
            continue
        seen.add((read, user))
        if _is_aten(user) and op_name(user) in _DIVISIONS and user.args[1] is read:
            divides = divides or same
            numbers = numbers and same and kept
        following = _following(read, user)
        numbers = numbers and following is not None
        if following:
            same, kept = same and is_call(user, _PLAIN), kept and _keeps_zero_away(read, user)
            stack.extend((user, after, same, kept) for after in user.users)
    return numbers, divides


def _keeps_zero_away(read: fx.Node, user: fx.Node) -> bool:
    """Whether a cast makes no 0 of another number, as one of 256 to 8 bits does."""
    own, got = read.meta.get("val"), user.meta.get("val")
    if not (isinstance(own, Tensor) and isinstance(got, Tensor)) or own.dtype == got.dtype:
        return True
    return torch.iinfo(got.dtype).bits >= torch.iinfo(own.dtype).bits


def _following(read: fx.Node, user: fx.Node) -> bool | None:
    """Whether the result of a call has whole numbers that matter; None where a call may not take all numbers."""
    if user.op == "output" or is_call(user, _NO_VALUES):
        return False
    value = user.meta.get("val")
    if is_call(user, _PLAIN | PADS):
        others = [a for a in (*user.args[1:], *user.kwargs.values()) if a is read]
        return None if others or user.args[0] is not read else _is_integer(value)
    if is_call(user, _JOINED):
        return _is_integer(value)
    if is_call(user, {aten.where.self}):
        return None if user.args[0] is read else _is_integer(value)
    if is_call(user, {aten.masked_fill.Scalar, aten.masked_fill.Tensor}):
        return _is_integer(value) if user.args[0] is read else None
    if not _is_aten(user) or not isinstance(value, Tensor):
        return None
    name = op_name(user)
    if name in _COMPARISONS:
        return False
    if name in _BY_FIRST:
        return _is_integer(value) if user.args[0] is read and user.args[1] is not read else None
    return _is_integer(value) if name in _NUMBERS else None


def _is_aten(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def _is_integer(value: Any) -> bool:
    """Whether a value, or one of several, is a tensor of whole numbers other than truth values."""
    values = value if isinstance(value, list | tuple) else [value]
    tensors = [v for v in values if isinstance(v, Tensor)]
    return any(not (v.is_floating_point() or v.is_complex() or v.dtype == torch.bool) for v in tensors)
