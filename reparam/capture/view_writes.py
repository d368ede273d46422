"""Writes through views: y[:, 0].add_(1) becomes y' = select_scatter(y, y[:, 0] + 1), and what views y views y' then.

A view that only picks or moves elements (slice, select, transpose, reshape, ...) has an inverse, which puts values back
to where they were picked. What is written to a view goes back through the inverses of its whole chain, up to the value
that owns the storage. Each view that is read later is made again, of the new value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from torch import fx

from reparam.ir import SPLITS, arguments, aten, fixed_size, piece_of

# A call that makes the operand of a view with other values: of the view, and the arguments (operand, values).
_Inverse = Callable[[fx.Node], tuple[Any, tuple[Any, ...]] | None]


def _slice(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    args = arguments(view)
    return aten.slice_scatter.default, tuple(args[name] for name in ("dim", "start", "end", "step"))


def _select(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    args = arguments(view)
    return aten.select_scatter.default, (args["dim"], args["index"])


def _transpose(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    args = arguments(view)
    return aten.transpose.int, (args["dim0"], args["dim1"])


def _permute(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    dims = [d % len(arguments(view)["dims"]) for d in arguments(view)["dims"]]
    return aten.permute.default, (sorted(range(len(dims)), key=dims.__getitem__),)


def _reshape(view: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    """Back to the shape of the operand, of which at most one size is free."""
    sizes = [fixed_size(s) for s in operand(view).meta["val"].shape]
    if sizes.count(None) > 1 or (None in sizes and 0 in sizes):
        return None
    return aten.reshape.default, ([-1 if s is None else s for s in sizes],)


INVERSES: dict[Any, _Inverse] = {
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.view.default: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.default: _reshape,
}
"""The calls that pick or move elements, and are views whatever the memory looks like."""

_END = 2**63 - 1  # how x[1:] is written
_PICKS = frozenset({aten.slice.Tensor, aten.select.int})
_PIECES = frozenset({*SPLITS, aten.unbind.int})
_VIEWS = frozenset({*INVERSES, *_PIECES, aten.alias.default, aten.expand.default})


def is_view(node: fx.Node) -> bool:
    """Whether the call gives a view of its operand, or views, whatever the memory looks like."""
    return node.target in _VIEWS or _piece(node) is not None


def above(view: fx.Node) -> fx.Node:
    """What a view is a view of; of a piece, the call that makes all pieces."""
    found = view.args[0]
    assert isinstance(found, fx.Node)
    return found


def operand(view: fx.Node) -> fx.Node:
    """The tensor that a view is a view of."""
    found = above(view)
    return found if view.target is not operator.getitem else above(found)


def chain_of(node: fx.Node, owners: Container[fx.Node]) -> list[fx.Node]:
    """The views from `node` up to the value that owns the storage, which comes last: no view, or one of `owners`."""
    chain = [node]
    while chain[-1].op == "call_function" and chain[-1] not in owners and is_view(chain[-1]):
        chain.append(operand(chain[-1]))
    return chain


def _piece(node: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    """One of the results of a split, chunk or unbind, as a slice or a selection; None for anything else."""
    piece = piece_of(node)
    if piece is not None:
        return aten.slice.Tensor, (piece.axis, piece.start, piece.start + piece.size, 1)
    if node.target is not operator.getitem:
        return None
    base, which = node.args
    if not isinstance(base, fx.Node) or not isinstance(which, int) or base.target is not aten.unbind.int:
        return None
    return aten.select.int, (arguments(base)["dim"], which % len(base.meta["val"]))


def _spelled(view: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """A view as a call on its operand: the operator, and the arguments behind the operand."""
    return _piece(view) or (view.target, view.args[1:])


def picks(view: fx.Node) -> bool:
    """Whether the view leaves elements out, so that what is written to it goes into a value with others."""
    return _spelled(view)[0] in _PICKS and not _is_whole(view)


def put_back(graph: fx.Graph, chain: Sequence[fx.Node], value: fx.Node, meta: Mapping[str, Any]) -> fx.Node | None:
    """The value that owns the storage after `value` was written to the first view of the chain.

    `meta` is that of the write. None where a view of the chain has no inverse that is written down here.
    """
    for view in chain[:-1]:
        if _plain(view) is not view:
            continue
        found = _inverse(view)
        if found is None:
            return None
        target, args = found
        made = graph.call_function(target, (_plain(operand(view)), value, *args) if picks(view) else (value, *args))
        made.meta = {**meta, "val": operand(view).meta["val"]}
        value = made
    return value


def _inverse(view: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    piece = _piece(view)
    if piece is not None:
        scatter = aten.slice_scatter if piece[0] is aten.slice.Tensor else aten.select_scatter
        return scatter.default, piece[1]
    inverse = INVERSES.get(view.target)
    return None if inverse is None else inverse(view)


def _is_whole(view: fx.Node) -> bool:
    """x[:], of any size: all values of the operand are those of the view."""
    args = arguments(view)
    return view.target is aten.slice.Tensor and args["start"] in (None, 0) and args["end"] == _END and args["step"] == 1


def _plain(view: fx.Node) -> fx.Node:
    """The view, or the first value above it that this one is all of."""
    while view.op == "call_function" and (view.target is aten.alias.default or _is_whole(view)):
        view = operand(view)
    return view


def view_again(graph: fx.Graph, view: fx.Node, new: fx.Node) -> fx.Node:
    """The same view of `new`, which its operand has become."""
    if _plain(view) is not view:
        return new
    target, args = _spelled(view)
    made = graph.call_function(target, (new, *args), {} if _piece(view) else view.kwargs)
    made.meta = dict(view.meta)
    return made
