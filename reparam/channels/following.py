"""Channels followed through operators that move values: a tensor of their numbers goes through the very operator."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import other_sizes
from reparam.ir import MOVEMENTS, arguments, aten, is_call, is_float, is_tensor, shape_of, size_hint
from reparam.utils import foreign_code

from .family import Known
from .value import read_off, spread, varying_axes

LARGEST = 2**26  # elements of a tensor of numbers
SIZES: dict[Any, str] = {
    aten.view.default: "size",
    aten.reshape.default: "shape",
    aten.expand.default: "size",
    aten.unflatten.int: "sizes",
}


def is_movement(node: fx.Node) -> bool:
    """Whether the call, or the call whose results it picks from, only moves values."""
    if not is_float(node) or not is_call(node, MOVEMENTS):
        return False
    base = base_of(node)
    return base is node or is_call(base, MOVEMENTS)


def base_of(node: fx.Node) -> fx.Node:
    """The call that makes several results, of which the node picks one; else the node itself."""
    base = node.args[0] if node.target is operator.getitem else node
    assert isinstance(base, fx.Node)
    return base


def moved(node: fx.Node) -> fx.Node:
    """The operand whose values move."""
    x = base_of(node).args[0]
    assert isinstance(x, fx.Node)
    return x


def numbers(entries: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A tensor of this shape with the number of its channel at every place. entries: one for each channel."""
    sizes = [shape[a] for a in axes]
    return spread(entries, axes, sizes, len(shape)).expand(list(shape))


def places(axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A tensor of this shape with the number of every place beside the channels' axes."""
    rest = [1 if a in axes else s for a, s in enumerate(shape)]
    return torch.arange(math.prod(rest)).reshape(rest).expand(list(shape))


@foreign_code("following channels")
def move(
    known: Known,
    node: fx.Node,
    value: Tensor,
    sizes: Sequence[int] | None = None,
    env: Mapping[str, int] | None = None,
) -> Tensor | None:
    """What the call makes of `value` in place of its operand, with `sizes` in place of its own; None if it cannot.

    env: sizes in place of free ones that were traced.
    """
    try:
        return picked(node, _outcome(known, node, value, sizes, env))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def same_elsewhere(known: Known, node: fx.Node, axes: Sequence[int], into: Sequence[int], source: Tensor) -> bool:
    """Whether a call moves the same channels at other free sizes too, those that it can be made at.

    axes: of the channels of what it moves. into: of those of its result. source: (C,), which of the former each of the
    latter is at the traced sizes.
    """
    x = moved(node)
    for env in other_sizes(node, x):
        shape = shape_of(x, env)
        given = numbers(torch.arange(math.prod(shape[a] for a in axes)), axes, shape)
        new = move(known, node, given, env=env)
        if new is None or not new.numel():
            continue
        again = read_off(new, into) if set(varying_axes(new)) <= set(into) else None
        if again is None or not torch.equal(again, source):
            return False
    return True


@foreign_code("following channels")
def move_all(known: Known, node: fx.Node, value: Tensor) -> Any:
    """All results of a call that has several, of which the node picks one; None if the call cannot be made."""
    try:
        return _outcome(known, node, value, None)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def picked(node: fx.Node, results: Any) -> Tensor:
    """The result of a call that the node is, or picks."""
    found = results if base_of(node) is node else results[node.args[1]]
    assert isinstance(found, Tensor)
    return found


def _outcome(
    known: Known, node: fx.Node, value: Tensor, sizes: Sequence[int] | None, env: Mapping[str, int] | None = None
) -> Any:
    base, x = base_of(node), moved(node)

    def swap(n: fx.Node) -> Any:
        if n is x:
            return value
        found = n.meta["val"]
        if isinstance(found, Tensor):
            weight = known.program.tensor(n)
            return found if weight is None else weight.cpu()
        return size_hint(found, env)

    args, kwargs = call_arguments(base, sizes)
    assert callable(base.target)
    return base.target(*fx.node.map_arg(args, swap), **fx.node.map_arg(kwargs, swap))


def signature_of(node: fx.Node, axes: Sequence[int]) -> Hashable | None:
    """What decides which values the call moves where; None where that includes the values of other tensors.

    axes: of its operand's channels.
    """
    base, x = base_of(node), moved(node)

    def swap(n: fx.Node) -> Any:
        return "operand" if n is x else size_hint(n.meta["val"])

    if any(n is not x and is_tensor(n) for n in base.all_input_nodes):
        return None
    given = fx.node.map_arg((base.args, base.kwargs), swap)
    picked = () if base is node else node.args[1:]
    return str(base.target), repr(given), repr(picked), shape_of(x), shape_of(node), tuple(axes)


def call_arguments(base: fx.Node, sizes: Sequence[int] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if sizes is None:
        return base.args, dict(base.kwargs)
    given = arguments(base)
    given[SIZES[base.target]] = list(sizes)
    return tuple(given.values()), {}
