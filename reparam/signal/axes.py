"""The axis of the channels of every value, followed from layers through what moves and joins axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from reparam.ir import (
    CONVS,
    LINEARS,
    MOVEMENTS,
    TRANSPOSED_CONVS,
    Program,
    arguments,
    aten,
    is_call,
    is_float,
    shape_of,
)

from .boxes import Axis, Box, one, regrouped, whole
from .roles import channels_read, order_of

_MIXERS = frozenset(  # the order in memory changes: these are no views
    {aten.channel_shuffle.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default}
)


@dataclass(frozen=True)
class _Layout:
    """Of one value. axis: of its channels. parts: what each axis is made of, the factors that count channels whole.

    gone: whether one channel was picked, or all were reduced to one, so that no axis is left that counts them.
    """

    axis: int
    parts: Box
    gone: bool = False


def channel_axes(program: Program) -> dict[fx.Node, int]:
    """The axis of the channels of every value (N, ...): 1 behind a convolution, the last behind a linear layer.

    It is followed through permutations, and through views: axes are split into factors and joined again, of which it is
    known which count channels. Where several axes do, it is the one that stays, or the last. Where that ends nowhere,
    it is 1 of values of four axes and the last of others.
    """
    found: dict[fx.Node, _Layout] = {}
    for node in program.graph.nodes:
        if node.op != "output" and node.meta["data"] and is_float(node):
            found[node] = _layout(node, found)
    return {node: layout.axis for node, layout in found.items()}


def _layout(node: fx.Node, found: Mapping[fx.Node, _Layout]) -> _Layout:
    """found: of the values before it."""
    after = shape_of(node)
    rank = len(after)
    if is_call(node, CONVS | TRANSPOSED_CONVS):
        return _plain(after, 1)
    if is_call(node, LINEARS):
        return _plain(after, rank - 1)
    known = [i for i in _operands(node) if i in found]
    if rank == 0:
        return _Layout(0, ())
    if node.op != "call_function" or not known:
        return _plain(after, channels_read(node) if node.op == "placeholder" else _usual(rank))
    above = max(known, key=lambda i: (len(shape_of(i)) == rank, shape_of(i) == after))
    return _followed(node, shape_of(above), found[above])


def _followed(node: fx.Node, before: tuple[int, ...], layout: _Layout) -> _Layout:
    """Of a call's result. before, layout: of the operand that it takes after."""
    after = shape_of(node)
    rank = len(after)
    order = order_of(node)
    if order is not None:
        return _Layout(order.index(layout.axis), tuple(layout.parts[i] for i in order), layout.gone)
    if is_call(node, MOVEMENTS - _MIXERS):
        parts = regrouped(layout.parts, after)
        if parts is not None and layout.gone:
            return _Layout(_single(after), parts, gone=True)
        if parts is not None:
            return _Layout(_chosen(before, layout.axis, after, parts), parts)
    dims = _dropped(node, len(before) - rank, len(before))
    if dims:
        return _without(layout, dims, after)
    if len(before) == rank:
        if before == after:
            return layout
        sized = enumerate(zip(layout.parts, before, after, strict=True))
        return _Layout(layout.axis, tuple(_resized(*of, channels=i == layout.axis) for i, of in sized))
    kept = _kept(before, layout.axis, after)
    return _plain(after, _usual(rank) if kept is None else kept)


def _dropped(node: fx.Node, count: int, rank: int) -> list[int]:
    """The axes of an operand of `rank` that a pick or a reduction leaves out; none where they are not `count`."""
    parent = node.args[0] if node.args else None
    several = isinstance(parent, fx.Node) and isinstance(parent.meta.get("val"), list | tuple)
    dims = arguments(parent if several and isinstance(parent, fx.Node) else node).get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if count < 1 or not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return []
    return [d % rank for d in dims] if len(dims) == count else []


def _without(layout: _Layout, dims: list[int], after: tuple[int, ...]) -> _Layout:
    left = [i for i in range(len(layout.parts)) if i not in dims]
    parts = tuple(layout.parts[i] for i in left)
    if layout.axis in left and not layout.gone:
        return _Layout(left.index(layout.axis), parts)
    found = [i for i, part in enumerate(parts) if _counts(part)]
    return _Layout(found[-1], parts) if found else _Layout(_single(after), parts, gone=True)


def _single(shape: tuple[int, ...]) -> int:
    """The axis that takes the place of that of channels where there is one channel: of one, if any is."""
    alone = [i for i, n in enumerate(shape) if n == 1 and i]
    return _usual(len(shape)) if not alone or shape[_usual(len(shape))] == 1 else alone[0]


def _operands(node: fx.Node) -> Iterator[fx.Node]:
    """What a call reads: of a part of a result, what that was made of."""
    for operand in node.all_input_nodes:
        yield from operand.all_input_nodes if isinstance(operand.meta.get("val"), list | tuple) else (operand,)


def _usual(rank: int) -> int:
    return 1 if rank == 4 else rank - 1


def _plain(shape: tuple[int, ...], axis: int) -> _Layout:
    return _Layout(axis, tuple(whole(n) if i == axis else one(n) for i, n in enumerate(shape)))


def _resized(axis: Axis, before: int, after: int, *, channels: bool) -> Axis:
    """Of an axis that an operator made longer or shorter, or that was broadcast."""
    if before == after:
        return axis
    return whole(after) if channels or (_counts(axis) and _pure(axis)) else one(after)


def _pure(axis: Axis) -> bool:
    return all(span.whole for span in axis if span.size > 1)


def _counts(axis: Axis) -> bool:
    return any(span.whole for span in axis)


def _kept(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Where an axis is that a view leaves with all in front of it, or with all behind it."""
    if before[: axis + 1] == after[: axis + 1]:
        return axis
    tail = len(before) - axis
    return len(after) - tail if tail <= len(after) and before[axis:] == after[-tail:] else None


def _chosen(before: tuple[int, ...], axis: int, after: tuple[int, ...], parts: Box) -> int:
    """The axis of the channels behind a view."""
    kept = _kept(before, axis, after)
    if kept is not None:
        return kept
    found = [i for i, part in enumerate(parts) if _counts(part)]
    alone = [i for i in found if _pure(parts[i])]
    return (alone or found or [_usual(len(after))])[-1]
