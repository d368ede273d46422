"""Calls that take positions along one axis of a value: slices, splits, selections, shuffles and copies."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam.ir import (
    SLICES,
    Program,
    arguments,
    aten,
    fixed_size,
    is_call,
    piece_of,
    shape_of,
    size_hint,
    static_shape,
)

from .window import Window, cut_window

_REPEATS = frozenset({aten.repeat.default, aten.expand.default})


@dataclass(frozen=True)
class Picks:
    """Along `axis` of `x`, which position each position of the result is a copy of."""

    x: fx.Node
    axis: int
    positions: tuple[int, ...]


def read_picks(program: Program, node: fx.Node) -> Picks | None:
    """The call as positions along one axis of its operand, whose size is fixed; None for anything else."""
    if node.target is operator.getitem:
        return _piece(node)
    args = arguments(node)
    if node.target is aten.index_select.default:
        index = program.tensor(args["index"])
        if index is None:
            return None
        return Picks(args["self"], args["dim"] % len(shape_of(node)), tuple(index.reshape(-1).tolist()))
    if node.target is aten.channel_shuffle.default:
        channels = static_shape(node)[1]
        if channels is None:
            return None
        return Picks(args["self"], 1, tuple(torch.arange(channels).view(args["groups"], -1).t().reshape(-1).tolist()))
    if node.target is aten.repeat_interleave.self_int:
        return _interleaved(node)
    if is_call(node, _REPEATS):
        return _copies(node)
    found = _range(node) if is_call(node, SLICES) else None
    if found is None or found[1] is None:
        return None
    rank = len(shape_of(node))
    if args["dim"] % rank > 1 and rank >= 4:  # a cut of the map
        return None
    return Picks(args["self"], args["dim"] % rank, tuple(found[1]))


def read_cut(node: fx.Node) -> Window | None:
    """A slice along a spatial axis, of a fixed or a free size, as a window; None for anything else."""
    return cut_of_map(node) if is_call(node, SLICES) and len(shape_of(node)) >= 4 else None


def cut_of_map(node: fx.Node) -> Window | None:
    """A slice along an axis from the third on as a window, of any rank; None along others, or where it is free."""
    rank, found = len(shape_of(node)), _range(node)
    axis = arguments(node)["dim"] % rank - 2
    if found is None or axis < 0:
        return None
    (start, behind, step), _ = found
    if start is None or behind is None:
        return None
    return cut_window(rank - 2, axis, start, behind, step)


def _piece(node: fx.Node) -> Picks | None:
    piece = piece_of(node)
    if piece is None or piece.size == 0:
        return None
    return Picks(piece.x, piece.axis, tuple(range(piece.start, piece.start + piece.size)))


def _range(node: fx.Node) -> tuple[tuple[int | None, int | None, int], range | None] | None:
    """Of a slice: where it starts, what it leaves out behind, its step; and its positions, where the size is fixed.

    Start and rest are None where they depend on a free size.
    """
    args = arguments(node)
    size = static_shape(args["self"])[args["dim"] % len(shape_of(node))]
    start, end, step = args["start"] or 0, args.get("end"), args.get("step", 1)
    length = args.get("length")
    if not all(v is None or isinstance(v, int) for v in (start, end, step, length)):
        return _range_of_sizes(node, start, step)
    if length is not None:
        end = start + length
    if size is not None:
        where = range(*slice(start, end, step).indices(size))
        return ((where.start, size - where.stop, step), where) if where else None
    behind = 0 if end is None or end >= 2**62 else -end if end < 0 else None
    return (start if start >= 0 else None, behind, step), None


def _range_of_sizes(node: fx.Node, start: Any, step: int) -> tuple[tuple[int | None, int | None, int], None] | None:
    """`_range` of a slice whose bounds are made of sizes: what it leaves out may still be a number."""
    args = arguments(node)
    axis = args["dim"] % len(shape_of(node))
    whole, part = args["self"].meta["val"].shape[axis], node.meta["val"].shape[axis]
    first = start.meta["val"] if isinstance(start, fx.Node) else start
    ahead = fixed_size(whole + first if size_hint(first) < 0 else first)
    if step != 1 or ahead is None:
        return None
    return (ahead, fixed_size(whole - ahead - part), 1), None


def _interleaved(node: fx.Node) -> Picks | None:
    args = arguments(node)
    times, axis = args["repeats"], args["dim"]
    size = None if axis is None else static_shape(args["self"])[axis]
    if size is None or not isinstance(times, int):
        return None
    return Picks(args["self"], axis % len(shape_of(node)), tuple(i for i in range(size) for _ in range(times)))


def _copies(node: fx.Node) -> Picks | None:
    """An expand or a repeat along one axis alone."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    before, after = x.meta["val"].shape, node.meta["val"].shape
    if len(before) != len(after):
        return None
    axes = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if str(a) != str(b)]
    if len(axes) != 1:
        return None
    old, new = fixed_size(before[axes[0]]), fixed_size(after[axes[0]])
    if not old or new is None or new % old:
        return None
    return Picks(x, axes[0], tuple(range(old)) * (new // old))


def broadcast_channels(shapes: Sequence[Sequence[object]], axis: int) -> bool:
    """Whether two values differ in that one of them has one channel, along `axis`, where the other has several."""
    left, right = ([str(s) for s in shape] for shape in shapes)
    if len(left) != len(right) or left[axis] == right[axis] or "1" not in (left[axis], right[axis]):
        return False
    return all(a == b for i, (a, b) in enumerate(zip(left, right, strict=True)) if i != axis)
