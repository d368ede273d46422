"""Chains of movement from a value whose channels lie along one axis, each as one selection, split and permutation.

    y = permute(unflatten(x[ids], axis, sizes), order)

So queries, keys and values that one layer makes can differ in width, although they are reshaped together; and heads can
be followed where a chain lays them along the same axis as the batch for a while.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.algebra import other_sizes
from reparam.ir import IDENTITIES, aten, is_call, shape_of, static_shape

from .family import Builder, Known
from .following import LARGEST, base_of, is_movement, move, moved, numbers
from .value import Channels, first_of, read_off, varying_axes

LONGEST = 16  # calls


@dataclass(frozen=True)
class Direct:
    """A value that is made of another in one go.

    root: where the chain starts. chain: its calls. axis: of the channels of the root. source: (C,), which of them each
    channel of the value is. order: how the axes are permuted once the root's axis is split.
    """

    root: fx.Node
    chain: tuple[fx.Node, ...]
    axis: int
    source: Tensor
    order: tuple[int, ...]
    channels: Channels


def chain_to(known: Known, node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The nearest value before a movement whose channels lie along one axis, and the calls from there on."""
    chain: list[fx.Node] = []
    while len(chain) < LONGEST and (is_movement(node) or is_call(node, IDENTITIES)):
        chain.append(node)
        node = moved(node)
        facts = known.of(node)
        if facts is not None and len(facts.axes) == 1:
            return node, tuple(reversed(chain))
    return None


def direct(known: Known, node: fx.Node) -> Direct | None:
    """The value in one go; None where the chain does more than select, split and permute."""
    found = chain_to(known, node)
    if found is None:
        return None
    root, chain = found
    facts, shape = known.facts[root], shape_of(root)
    (axis,) = facts.axes
    if math.prod(shape) > LARGEST:
        return None
    entries = [numbers(torch.arange(size), (a,), shape) for a, size in enumerate(shape)]
    ends = [_along(known, chain, e) for e in entries]
    new = ends[axis]
    axes = varying_axes(new) if new is not None else ()
    source = read_off(new, axes) if new is not None and axes else None
    if (
        new is None
        or source is None
        or any(e is None for e in ends)
        or any(static_shape(node)[a] is None for a in axes)
    ):
        return None
    sizes = tuple(new.shape[a] for a in axes)
    order = _order([e for e in ends if e is not None], axis, axes)
    if order is None:
        return None
    channels = Channels(axes, sizes, facts.constant[source], first_of(facts.first[source]))
    way = Direct(root, chain, axis, source, order, channels)
    if not _does_that(known, way, shape, {}):
        return None
    others = (_does_that(known, way, shape_of(root, env), env) for env in other_sizes(chain[-1], root))
    return way if all(found is not False for found in others) else None


def _does_that(known: Known, way: Direct, shape: Sequence[int], env: Mapping[str, int]) -> bool | None:
    """Whether the chain does what the way says to a root of this shape; None where it cannot be made."""
    for a, size in enumerate(shape):
        entry = numbers(torch.arange(size), (a,), shape)
        end = _along(known, way.chain, entry, env)
        if end is None or not end.numel():
            return None
        split = entry.index_select(way.axis, way.source).unflatten(way.axis, way.channels.sizes)
        again = split.permute(way.order) if split.dim() == len(way.order) else split
        if again.shape != end.shape or not torch.equal(again, end):
            return False
    return True


def _along(
    known: Known, chain: Sequence[fx.Node], value: Tensor, env: Mapping[str, int] | None = None
) -> Tensor | None:
    """What a chain makes of a value in place of its root."""
    out: Tensor | None = value
    for node in chain:
        out = None if out is None else move(known, node, out, env=env)
    return out


def _order(ends: Sequence[Tensor], axis: int, axes: Sequence[int]) -> tuple[int, ...] | None:
    """Which axis of the split root each axis of the value is. ends: the indices along each of the root's axes."""
    found = {to: axis + level for level, to in enumerate(axes)}
    for a, end in enumerate(ends):
        if a == axis:
            continue
        varying = [to for to in varying_axes(end) if to not in found]
        if len(varying) != 1:
            return None
        found[varying[0]] = a if a < axis else a + len(axes) - 1
    return tuple(found[to] for to in range(len(found))) if set(found) == set(range(len(found))) else None


def old_calls(way: Direct) -> tuple[fx.Node, ...]:
    """The calls of the chain, with those that make several results of which one is picked."""
    return tuple(dict.fromkeys(n for node in way.chain for n in (base_of(node), node)))


def make_direct(builder: Builder, node: fx.Node, way: Direct, kept: Tensor) -> fx.Node:
    """The value on the channels `kept`. Raises Conflict."""
    value = builder.take(way.root, way.source[kept.flatten()], like=node)
    if kept.dim() > 1:
        value = builder.call(aten.unflatten.int, (value, way.axis, list(kept.shape)), like=node)
    if way.order != tuple(range(len(way.order))):
        value = builder.call(aten.permute.default, (value, list(way.order)), like=node)
    made: fx.Node = value
    return made
