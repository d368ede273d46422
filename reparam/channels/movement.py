"""Operators that move values and compute nothing.

A tensor that holds at every place the number of its channel goes through the very operator; read off on the other side
it says which channel each new one is. Where only channels are picked, the result is picked from what is left of the
operand; otherwise the same call is made with its sizes changed, and its numbers have to come out as expected. Where
that cannot be, the value is made directly of one further up.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import other_sizes
from reparam.ir import SLICES, SPLITS, arguments, aten, is_call, shape_of, size_hint, static_shape

from .direct import Direct, direct, make_direct, old_calls
from .family import Ask, Builder, Conflict, Known, Request
from .following import (
    LARGEST,
    SIZES,
    base_of,
    call_arguments,
    move,
    move_all,
    moved,
    numbers,
    picked,
    places,
    same_elsewhere,
    signature_of,
)
from .value import Channels, first_of, read_off, structure, unique, varying_axes

_NOTHING = Request(torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class _Followed:
    """Where the channels of a movement come from.

    source: (C,), which channel of the operand each one is. place: (C,), the number of the place, beside the channels'
    axes of the operand, that its first entry comes from. picks: whether the call only picks channels.
    """

    channels: Channels
    source: Tensor
    place: Tensor
    picks: bool


@dataclass(frozen=True)
class _Trace:
    """What a movement does to any operand of one shape with channels along these axes.

    axes, sizes: of the channels of its result. source, place, picks: as in `_Followed`. key: (C, 2), random sums over
    the numbers of all places that the entries of each channel come from; the same for two that come from the same.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    source: Tensor
    place: Tensor
    key: Tensor
    picks: bool


def _follow(known: Known, node: fx.Node) -> _Followed | Direct | None:
    if node not in known.memo:
        straight = node in known.direct or moved(node) not in known.facts
        known.memo[node] = direct(known, node) if straight else _followed(known, node)
    found: _Followed | Direct | None = known.memo[node]
    return found


def go_direct(known: Known, node: fx.Node) -> bool:
    """Has the value made directly of one further up from now on; false where it cannot be, or is already."""
    if node in known.direct or not isinstance(known.memo.get(node), _Followed) or direct(known, node) is None:
        return False
    known.direct.add(node)
    del known.memo[node]
    return True


def calls_of(known: Known, node: fx.Node) -> tuple[fx.Node, ...]:
    """The calls that a movement stands for, with those that make several results of which one is picked."""
    found = _follow(known, node)
    return old_calls(found) if isinstance(found, Direct) else tuple(dict.fromkeys((base_of(node), node)))


def _followed(known: Known, node: fx.Node) -> _Followed | None:
    x = moved(node)
    facts = known.facts[x]
    signature = signature_of(node, facts.axes)
    if signature is None:
        trace = _traced(known, node, facts)
    elif signature in known.traces:
        trace = known.traces[signature]
    else:
        trace = known.traces[signature] = _traced(known, node, facts)
    if trace is None or any(static_shape(node)[a] is None for a in trace.axes):
        return None
    first = first_of(facts.first[trace.source], trace.key)
    constant = facts.constant[trace.source]
    return _Followed(Channels(trace.axes, trace.sizes, constant, first), trace.source, trace.place, trace.picks)


def _traced(known: Known, node: fx.Node, facts: Channels) -> _Trace | None:
    shape = shape_of(moved(node))
    if math.prod(shape) > LARGEST:
        return None
    new, where = _moved_numbers(known, node, facts)
    if new is None or where is None or not all(isinstance(n, int) for n in new.shape):  # by indices of a free axis
        return None
    if tuple(new.shape) != shape_of(node):
        return None
    axes = varying_axes(new) or _of_one_channel(node, new, facts)
    source = read_off(new, axes) if axes else None
    if source is None:
        return None
    if not same_elsewhere(known, node, facts.axes, axes, source):
        return None
    sizes = tuple(new.shape[a] for a in axes)
    rest = [a for a in range(new.dim()) if a not in axes]
    rows = where.permute(*axes, *rest).reshape(math.prod(sizes), -1).double()
    mix = torch.rand(rows.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picks = False
    if len(axes) == len(facts.axes) == 1 and axes == facts.axes:
        again = places(axes, [len(source) if a == axes[0] else s for a, s in enumerate(shape)])
        picks = again.shape == where.shape and torch.equal(again, where) and _picks_elsewhere(known, node, axes)
    return _Trace(axes, sizes, source, rows[:, 0].long(), rows @ mix, picks)


def _picks_elsewhere(known: Known, node: fx.Node, axes: tuple[int, ...]) -> bool:
    """Whether the call leaves all places beside the channels where they are at other free sizes too.

    A slice of eight places does nothing to six.
    """
    x = moved(node)
    for env in other_sizes(node, x):
        shape = list(shape_of(x, env))
        where = move(known, node, places(axes, shape), env=env)
        if where is None or not where.numel():
            continue
        shape[axes[0]] = where.shape[axes[0]]
        if list(where.shape) != shape or not torch.equal(where, places(axes, shape)):
            return False
    return True


def _of_one_channel(node: fx.Node, new: Tensor, facts: Channels) -> tuple[int, ...]:
    """The axis of a single channel, which no number tells: in a part of the operand it is the operand's."""
    part = len(facts.axes) == 1 and is_call(base_of(node), SLICES | SPLITS | {aten.index_select.default})
    return facts.axes if part and new.shape[facts.axes[0]] == 1 else ()


def _moved_numbers(known: Known, node: fx.Node, facts: Channels) -> tuple[Tensor | None, Tensor | None]:
    """What the call makes of the numbers of its operand's channels, and of those of the places beside them.

    A call with several results is made once for all that pick from them: there can be thousands.
    """
    base, shape = base_of(node), shape_of(moved(node))
    given = (numbers(torch.arange(facts.count), facts.axes, shape), places(facts.axes, shape))
    if base is node:
        return move(known, node, given[0]), move(known, node, given[1])
    if base not in known.results:
        known.results[base] = tuple(move_all(known, node, value) for value in given)
    new, where = (None if all_of is None else picked(node, all_of) for all_of in known.results[base])
    return new, where


class Movement:
    """Reshapes, permutations, slices, splits and what picks from them."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        found = _follow(known, node)
        return None if found is None else found.channels

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        found, x = _follow(known, node), moved(node)
        assert found is not None
        kept = structure(wanted, found.channels.sizes)
        unread = frozenset({base_of(node)} - {node})  # each result is made by a call of its own
        if isinstance(found, Direct):
            part = Request(unique(found.source[kept.flatten()]), ordered=True)
            return Ask(kept, {x: _NOTHING, found.root: part}, unread | {x})
        theirs = known.facts[x]
        if found.picks:
            return Ask(kept, {x: Request(unique(found.source[kept]), ordered=True)}, unread)
        ids = unique(found.source[kept.flatten()])
        while True:
            block = structure(ids, theirs.sizes)
            covered = torch.isin(found.source, block).nonzero().flatten()
            kept = structure(covered, found.channels.sizes)
            if len(theirs.sizes) == 1 and len(found.channels.sizes) == 1:
                kept = _in_made_order(known, node, found, block, kept)
            more = unique(found.source[kept.flatten()])
            if len(more) == block.numel():
                return Ask(kept, {x: Request(more, ordered=True)}, unread)
            ids = more

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        known, x = builder.known, moved(node)
        found = _follow(known, node)
        assert found is not None
        if isinstance(found, Direct):
            return make_direct(builder, node, found, kept)
        theirs = known.facts[x]
        if found.picks:
            return builder.take(x, found.source[kept], like=node)
        block = builder.kept[x]
        if len(theirs.axes) == 1:
            block = unique(found.source[kept.flatten()])
        sizes = _new_sizes(node, found.channels, kept)
        made_of = _made_of(known, node, found, block, kept)
        if made_of is None:
            raise Conflict(node)
        ids, place, shape = made_of
        flat = kept.flatten()
        if shape != kept.shape or not torch.equal(ids, found.source[flat]) or not torch.equal(place, found.place[flat]):
            # The operand keeps more than was asked for: so does the result.
            raise Conflict(node, torch.isin(found.source, block).nonzero().flatten())
        base = base_of(node)
        made = None if base is node or block is not builder.kept[x] else builder.shared.get(base)
        if made is None:
            value = builder.take(x, block, like=node)
            args, kwargs = fx.node.map_arg(
                call_arguments(base, sizes), lambda n: value if n is x else builder.whole(n, like=node)
            )
            made = builder.call(base.target, args, kwargs, like=node)
        if base is node:
            return made
        builder.shared[base] = made
        return builder.call(operator.getitem, (made, node.args[1]), like=node)


def _made_of(
    known: Known, node: fx.Node, found: _Followed, block: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
    """What the call makes of the operand's channels `block`: their `source`, their `place`, and how many lie along
    each axis. None where the call cannot be made, or does not keep channels apart."""
    x, axes = moved(node), found.channels.axes
    theirs, shape = known.facts[x], list(shape_of(x))
    if tuple(kept.shape) == found.channels.sizes and torch.equal(block.flatten(), theirs.everything.flatten()):
        return found.source, found.place, found.channels.sizes
    for axis, size in zip(theirs.axes, block.shape, strict=True):
        shape[axis] = size
    sizes = _new_sizes(node, found.channels, kept)
    hinted = None if sizes is None else [s if isinstance(s, int) else size_hint(s.meta["val"]) for s in sizes]
    bits = math.prod(s for a, s in enumerate(shape) if a not in theirs.axes).bit_length()
    every = (numbers(block.flatten(), theirs.axes, shape) << bits) | places(theirs.axes, shape)
    new = move(known, node, every, hinted)
    ids = None if new is None else read_off(new >> bits, axes)
    if new is None or ids is None:
        return None
    first = new[tuple(slice(None) if a in axes else 0 for a in range(new.dim()))].flatten()
    return ids, first & ((1 << bits) - 1), tuple(new.shape[a] for a in axes)


def _in_made_order(known: Known, node: fx.Node, found: _Followed, block: Tensor, kept: Tensor) -> Tensor:
    """The channels `kept` in the order in which the call makes them of the operand's channels `block`."""
    made_of = _made_of(known, node, found, block, kept)
    if made_of is None:
        return kept
    numbered = {pair: i for i, pair in enumerate(zip(found.source.tolist(), found.place.tolist(), strict=True))}
    order = [numbered.get(pair) for pair in zip(made_of[0].tolist(), made_of[1].tolist(), strict=True)]
    new = torch.tensor([i for i in order if i is not None], dtype=torch.int64)
    return new if torch.equal(new.sort().values, kept.sort().values) else kept


def _new_sizes(node: fx.Node, channels: Channels, kept: Tensor) -> list[Any] | None:
    """The sizes that a reshape is asked for, the channels' axes as large as what is kept of them."""
    if node.target not in SIZES:
        return None
    given = arguments(node)
    sizes = list(given[SIZES[node.target]])
    start = int(given["dim"]) % len(shape_of(moved(node))) if "dim" in given else 0
    for axis, size in zip(channels.axes, kept.shape, strict=True):
        if 0 <= axis - start < len(sizes) and sizes[axis - start] != -1:
            sizes[axis - start] = size
    return sizes
