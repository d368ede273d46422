"""Movements that torch has several names for, by the name that rules know.

swapaxes, swapdims, mT, adjoint    transpose        fliplr, flipud               flip
movedim, moveaxis, x.T             permute          tile                         repeat
narrow_copy                        narrow           hsplit, vsplit, dsplit,      split_with_sizes
atleast_1d, atleast_2d, atleast_3d reshape          tensor_split
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from reparam.ir import arguments, aten, fixed_size, op_name

Named = tuple[Any, tuple[Any, ...]]


def name_movements(graph: fx.Graph) -> None:
    """Gives such calls their other names, in place. Those whose sizes are free where a number is needed stay."""
    for node in graph.nodes:
        other = _OTHERS.get(node.target) if node.op == "call_function" else None
        found = None if other is None else other(node)
        if found is not None:
            node.target, node.args, node.kwargs = *found, {}


def _swap(node: fx.Node) -> Named:
    x, first, second = arguments(node).values()
    return aten.transpose.int, (x, first, second)


def _transpose(node: fx.Node) -> Named | None:
    """The last two axes; a complex number's conjugate is no movement."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    value = x.meta["val"]
    return (aten.transpose.int, (x, -2, -1)) if value.dim() >= 2 and not value.is_complex() else None


def _reverse(node: fx.Node) -> Named:
    return aten.permute.default, (node.args[0], list(reversed(range(node.meta["val"].dim()))))


def _move(node: fx.Node) -> Named:
    """The axes that move to their places, and the others in their order between them."""
    rank = node.meta["val"].dim()
    args = arguments(node)
    sources, targets = ([d % rank for d in _listed(args[name])] for name in ("source", "destination"))
    order: list[int | None] = [None] * rank
    for source, target in zip(sources, targets, strict=True):
        order[target] = source
    rest = iter(d for d in range(rank) if d not in sources)
    return aten.permute.default, (args["self"], [next(rest) if d is None else d for d in order])


def _listed(value: int | Sequence[int]) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


def _flip(axis: int) -> Callable[[fx.Node], Named]:
    return lambda node: (aten.flip.default, (node.args[0], [axis]))


def _repeat(node: fx.Node) -> Named:
    args = arguments(node)
    x, times = args["self"], list(args["dims"])
    return aten.repeat.default, (x, [*[1] * (x.meta["val"].dim() - len(times)), *times])


def _narrow(node: fx.Node) -> Named:
    return aten.narrow.default, tuple(arguments(node).values())


def _reshape(node: fx.Node) -> Named | None:
    sizes = [-1 if (size := fixed_size(s)) is None else size for s in node.meta["val"].shape]
    return (aten.reshape.default, (node.args[0], sizes)) if sizes.count(-1) <= 1 else None


def _split(node: fx.Node) -> Named | None:
    """Into pieces of these sizes. hsplit and its kin split along one axis each; the first has the columns of a row."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rank = x.meta["val"].dim()
    axes = {"vsplit": 0, "hsplit": min(1, rank - 1), "dsplit": 2}
    axis = axes[op_name(node)] if op_name(node) in axes else arguments(node)["dim"]
    sizes = [fixed_size(piece.shape[axis]) for piece in node.meta["val"]]
    return None if None in sizes else (aten.split_with_sizes.default, (x, sizes, axis))


_OTHERS: Mapping[Any, Callable[[fx.Node], Named | None]] = {
    aten.swapaxes.default: _swap,
    aten.swapdims.default: _swap,
    aten.mT.default: _transpose,
    aten.adjoint.default: _transpose,
    aten.mH.default: _transpose,
    aten.numpy_T.default: _reverse,
    aten.movedim.int: _move,
    aten.movedim.intlist: _move,
    aten.moveaxis.int: _move,
    aten.moveaxis.intlist: _move,
    aten.fliplr.default: _flip(1),
    aten.flipud.default: _flip(0),
    aten.tile.default: _repeat,
    aten.narrow_copy.default: _narrow,
    aten.atleast_1d.default: _reshape,
    aten.atleast_2d.default: _reshape,
    aten.atleast_3d.default: _reshape,
    **dict.fromkeys(
        (
            *(aten.tensor_split.sections, aten.tensor_split.indices),
            *(aten.hsplit.int, aten.hsplit.array, aten.vsplit.int, aten.vsplit.array),
            *(aten.dsplit.int, aten.dsplit.array),
        ),
        _split,
    ),
}
