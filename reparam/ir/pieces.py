"""Parts of values along an axis: where a piece of a split lies, and whether a slice takes all there is."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .aten import SLICES, SPLITS, arguments, aten, is_call
from .program import fixed_size, free_shape, shape_of, upstream

_END = 2**62  # ends of slices from here on are how x[1:] is written
_SIZES = frozenset({aten.sym_size.int})
_ARITHMETIC = frozenset({operator.add, operator.mul})
_WRITES = frozenset({aten.slice_scatter.default})


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


def may_cut(node: fx.Node) -> bool:
    """Whether a slice, narrow or slice_scatter is of a part of a free axis at some size, whatever was traced.

    torch traces x[:20] as all of x, where fewer than 20 rows were traced.
    """
    args = arguments(node)
    size = args["self"].meta["val"].shape[args["dim"] % len(shape_of(node))]
    if fixed_size(size) is not None:
        return False
    whole = _is_open(args) or (args["start"] in (None, 0) and _reaches(_end_of(args), size))
    return not whole or args.get("step", 1) != 1


def _end_of(args: Mapping[str, Any]) -> Any:
    return args["length"] if "length" in args else args["end"]


def _is_open(args: Mapping[str, Any]) -> bool:
    """Whether a slice goes from the start to the end, without a word on where that is."""
    end = _end_of(args)
    return args["start"] in (None, 0) and (end is None or (isinstance(end, int) and end >= _END))


def is_all_so_far(node: fx.Node) -> bool:
    """Whether it takes, or writes to, all of a free axis at the traced size, and a part of it where that is larger."""
    if not is_call(node, SLICES | _WRITES) or not may_cut(node):
        return False
    args = arguments(node)
    part, whole = args["src"] if is_call(node, _WRITES) else node, args["self"]
    axis = args["dim"] % len(shape_of(node))
    return bool(free_shape(part)[axis] == free_shape(whole)[axis])


def _reaches(end: Any, size: torch.SymInt) -> bool:
    """Whether an end that is computed of sizes lies at this size or behind it, whatever the sizes are."""
    found = _expression(end)
    return found is not None and bool((found - size.node.expr).is_nonnegative)


def _expression(value: Any) -> Any:
    """Sums and products of sizes that hold at every size; None for anything else."""
    if isinstance(value, int):
        return value
    if is_call(value, _SIZES):
        read = value.meta["val"]
        told = any(_ends_somewhere(n) for n in upstream([value.args[0]]))
        return None if told else read if isinstance(read, int) else read.node.expr
    if is_call(value, _ARITHMETIC):
        parts = [_expression(a) for a in value.args]
        return None if any(p is None for p in parts) else value.target(*parts)
    return None


def _ends_somewhere(node: fx.Node) -> bool:
    """Whether it cuts a free axis at a number, so that sizes behind it are those of what was traced."""
    if not is_call(node, SLICES | _WRITES):
        return False
    args = arguments(node)
    free = fixed_size(args["self"].meta["val"].shape[args["dim"] % len(shape_of(node))]) is None
    return free and not _is_open(args)
