"""A piece of a split: where it starts along the axis, and how long it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from .aten import SPLITS, arguments, is_call
from .program import fixed_size, shape_of


@dataclass(frozen=True)
class Piece:
    """The values `start` to `start + size` along `axis` of `x`."""

    x: fx.Node
    axis: int
    start: int
    size: int


def piece_of(node: fx.Node) -> Piece | None:
    """One of the results of a split or chunk whose place is fixed; None for anything else.

    All pieces but the last one are as long as the first, unless their sizes are told: no need to add up those before.
    """
    if node.target is not operator.getitem:
        return None
    split, which = node.args
    if not isinstance(split, fx.Node) or not is_call(split, SPLITS) or not isinstance(which, int):
        return None
    args, parts = arguments(split), split.meta["val"]
    axis, which = args["dim"] % len(shape_of(node)), which % len(parts)
    start, size = _start(args.get("split_sizes"), parts[0].shape[axis], which), fixed_size(parts[which].shape[axis])
    return None if start is None or size is None else Piece(args["self"], axis, start, size)


def _start(told: Sequence[Any] | None, first: Any, which: int) -> int | None:
    if told is not None:
        return sum(told[:which]) if all(isinstance(s, int) for s in told[:which]) else None
    if which == 0:
        return 0
    each = fixed_size(first)
    return None if each is None else each * which
