"""What each axis of a value counts: samples, channels or places. Movement is followed by moving labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import CONVS, LINEARS, TRANSPOSED_CONVS, arguments, aten, is_call, is_float, shape_of

from .power import CHANNEL, PLACE, SAMPLE, Roles

TURNS = frozenset(  # permutations of axes
    {
        *(aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default),
        *(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist),
        *(aten.swapaxes.default, aten.swapdims.default, aten.mT.default),
    }
)


def usual(rank: int, *, channels_last: bool) -> Roles:
    """Of an input (N, C, ...) or (N, ..., C)."""
    if rank == 0:
        return ()
    at = rank - 1 if channels_last else 1
    return tuple(SAMPLE if i == 0 else CHANNEL if i == at else PLACE for i in range(rank))


def channels_read(node: fx.Node) -> int:
    """The axis of an input (N, ...) that counts channels: the one that the first layer behind it reads.

    1 for images and volumes and the last one for sequences where no layer tells.
    """
    rank = len(shape_of(node))
    stack, seen = [(node, list(range(rank)))], {node}
    while stack:
        value, axes = stack.pop(0)  # axes: those of the input that the axes of the value are
        for user in value.users:
            if is_call(user, CONVS | TRANSPOSED_CONVS | {aten.batch_norm.default, aten.group_norm.default}):
                return axes[1]
            if is_call(user, LINEARS | {aten.layer_norm.default}):
                return axes[-1]
            if user in seen or user.op != "call_function" or not is_float(user):
                continue
            seen.add(user)
            order = order_of(user)
            if order is not None:
                stack.append((user, [axes[d] for d in order]))
            elif len(shape_of(user)) == rank:
                stack.append((user, axes))
    return 1 if rank >= 4 else rank - 1


def order_of(node: fx.Node) -> list[int] | None:
    """For each axis of a permutation's result the axis of its operand, None for other calls."""
    if not is_call(node, TURNS):
        return None
    args = list(arguments(node).values())
    counted = torch.empty(tuple(range(2, len(shape_of(args[0])) + 2)), device="meta")  # axes that differ in size
    assert callable(node.target)
    return [n - 2 for n in node.target(counted, *args[1:]).shape]


def of_input(node: fx.Node, rank: int) -> Roles:
    """Of an input of the network, or of a value that stands for it."""
    at = channels_read(node) if rank > 1 else rank
    return tuple(SAMPLE if i == 0 else CHANNEL if i == at else PLACE for i in range(rank))


def moved(operation: Callable[[Tensor], Any], roles: Roles, shape: Sequence[int]) -> list[Roles]:
    """The roles of the axes of each result of an operation that only moves elements.

    operation: takes a tensor of `shape`, gives a tensor or several.
    """
    found: list[list[set[str]]] = []
    for role in "ncp":
        label = _label([role in r for r in roles], shape)
        given = operation(label)
        results = list(given) if isinstance(given, list | tuple) else [given]
        found = found or [[set() for _ in r.shape] for r in results]
        for axes, result in zip(found, results, strict=True):
            for axis, names in enumerate(axes):
                if result.shape[axis] > 1 and not torch.equal(result, result.narrow(axis, 0, 1).expand_as(result)):
                    names.add(role)
    return [tuple(frozenset(names) for names in axes) for axes in found]


def _label(held: Sequence[bool], shape: Sequence[int]) -> Tensor:
    """A number for each position along the axes that are held, the same along the others."""
    sizes = [s if h else 1 for s, h in zip(shape, held, strict=True)]
    label = torch.arange(torch.Size(sizes).numel(), dtype=torch.float64).reshape(sizes)
    return label.expand(tuple(shape))


def broadcast(roles: Sequence[Roles], shapes: Sequence[Sequence[int]], rank: int = 0) -> Roles:
    """The roles of a pointwise result of values of these roles and shapes; it has `rank` axes, or as many as they."""
    rank = max(rank, *(len(s) for s in shapes))
    result: list[frozenset[str]] = []
    for axis in range(-rank, 0):
        kept = [r[axis] for r, s in zip(roles, shapes, strict=True) if len(s) >= -axis and s[axis] > 1]
        result.append(frozenset().union(*kept))
    return tuple(result)


def has_places(roles: Roles, shape: Sequence[int]) -> bool:
    """Whether some axis counts more than one place."""
    return any("p" in r and s > 1 for r, s in zip(roles, shape, strict=True))
