"""Operators that move values and compute nothing, and concatenation: channels are followed by moving their numbers.

A tensor that holds at every place the number of its channel goes through the very operator; read off on the other side
it says which channel each new one is. Where only channels are picked, the result is picked from what is left of the
operand; otherwise the same call is made with its sizes changed, and its numbers have to come out as expected.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import CATS, MOVEMENTS, arguments, aten, is_call, is_float, shape_of, size_hint, static_shape
from reparam.utils import foreign_code

from .family import Ask, Builder, Conflict, Known, Request
from .value import Channels, first_of, read_off, spread, structure, unique, unknown, varying_axes

LARGEST = 2**26  # elements of a tensor of numbers
_SIZES: dict[Any, str] = {
    aten.view.default: "size",
    aten.reshape.default: "shape",
    aten.expand.default: "size",
    aten.unflatten.int: "sizes",
}


def is_movement(node: fx.Node) -> bool:
    """Whether the call, or the call whose results it picks from, only moves values."""
    if not is_float(node) or not is_call(node, MOVEMENTS):
        return False
    base = _base(node)
    return base is node or is_call(base, MOVEMENTS)


def _base(node: fx.Node) -> fx.Node:
    """The call that makes several results, of which the node picks one; else the node itself."""
    base = node.args[0] if node.target is operator.getitem else node
    assert isinstance(base, fx.Node)
    return base


def moved(node: fx.Node) -> fx.Node:
    """The operand whose values move."""
    x = _base(node).args[0]
    assert isinstance(x, fx.Node)
    return x


def _numbers(entries: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A tensor of this shape with the number of its channel at every place. entries: one for each channel."""
    sizes = [shape[a] for a in axes]
    return spread(entries, axes, sizes, len(shape)).expand(list(shape))


def _places(axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A tensor of this shape with the number of every place beside the channels' axes."""
    rest = [1 if a in axes else s for a, s in enumerate(shape)]
    return torch.arange(math.prod(rest)).reshape(rest).expand(list(shape))


@foreign_code("following channels")
def _moved(known: Known, node: fx.Node, value: Tensor, sizes: Sequence[int] | None = None) -> Tensor | None:
    """What the call makes of `value` in place of its operand, with `sizes` in place of its own; None if it cannot."""
    base, x = _base(node), moved(node)

    def swap(n: fx.Node) -> Any:
        if n is x:
            return value
        found = n.meta["val"]
        if isinstance(found, Tensor):
            weight = known.program.tensor(n)
            return found if weight is None else weight.cpu()
        return size_hint(found)

    try:
        args, kwargs = _call_arguments(base, sizes)
        assert callable(base.target)
        out = base.target(*fx.node.map_arg(args, swap), **fx.node.map_arg(kwargs, swap))
        return out if base is node else out[node.args[1]]  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def _call_arguments(base: fx.Node, sizes: Sequence[int] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if sizes is None:
        return base.args, dict(base.kwargs)
    given = arguments(base)
    given[_SIZES[base.target]] = list(sizes)
    return tuple(given.values()), {}


@dataclass(frozen=True)
class _Followed:
    """source: (C,), which channel of the operand each one is. picks: whether the call only picks channels."""

    channels: Channels
    source: Tensor
    picks: bool


def _follow(known: Known, node: fx.Node) -> _Followed | None:
    if node not in known.memo:
        known.memo[node] = _followed(known, node)
    found: _Followed | None = known.memo[node]
    return found


def _followed(known: Known, node: fx.Node) -> _Followed | None:
    x = moved(node)
    facts, shape = known.of(x), shape_of(x)
    if facts is None or math.prod(shape) > LARGEST:
        return None
    numbers = _numbers(torch.arange(facts.count), facts.axes, shape)
    places = _places(facts.axes, shape)
    new, where = _moved(known, node, numbers), _moved(known, node, places)
    if new is None or where is None or tuple(new.shape) != shape_of(node):
        return None
    axes = varying_axes(new)
    source = read_off(new, axes) if axes else None
    if source is None or any(static_shape(node)[a] is None for a in axes):
        return None
    sizes = tuple(new.shape[a] for a in axes)
    rest = [a for a in range(new.dim()) if a not in axes]
    rows = where.permute(*axes, *rest).reshape(math.prod(sizes), -1).double()
    mix = torch.rand(rows.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = first_of(facts.first[source], rows @ mix)
    picks = False
    if len(axes) == len(facts.axes) == 1 and axes == facts.axes:
        again = places.index_select(axes[0], source)
        picks = again.shape == where.shape and torch.equal(again, where)
    return _Followed(Channels(axes, sizes, facts.constant[source], first), source, picks)


class Movement:
    """Reshapes, permutations, slices, splits and what picks from them."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        found = _follow(known, node)
        return None if found is None else found.channels

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        found, x = _follow(known, node), moved(node)
        assert found is not None
        kept, theirs = structure(wanted, found.channels.sizes), known.facts[x]
        unread = frozenset({_base(node)} - {node})  # each result is made by a call of its own
        if found.picks:
            return Ask(kept, {x: Request(unique(found.source[kept]), ordered=True)}, unread)
        ids = unique(found.source[kept.flatten()])
        while True:
            block = structure(ids, theirs.sizes)
            covered = torch.isin(found.source, block).nonzero().flatten()
            if len(theirs.sizes) == 1 and len(found.channels.sizes) == 1:
                covered = torch.cat([kept.flatten(), covered])
            kept = structure(covered, found.channels.sizes)
            more = unique(found.source[kept.flatten()])
            if len(more) == block.numel():
                return Ask(kept, {x: Request(more, ordered=True)}, unread)
            ids = more

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        known, x = builder.known, moved(node)
        found, theirs = _follow(known, node), builder.known.facts[x]
        assert found is not None
        if found.picks:
            return builder.take(x, found.source[kept], like=node)
        block = builder.kept[x]
        if len(theirs.axes) == 1:
            block = unique(found.source[kept.flatten()])
        sizes = _new_sizes(node, found.channels, kept)
        shape = list(shape_of(x))
        for axis, size in zip(theirs.axes, block.shape, strict=True):
            shape[axis] = size
        hinted = None if sizes is None else [s if isinstance(s, int) else size_hint(s.meta["val"]) for s in sizes]
        new = _moved(known, node, _numbers(block.flatten(), theirs.axes, shape), hinted)
        axes = found.channels.axes
        ids = None if new is None else read_off(new, axes)
        if new is None or ids is None:
            raise Conflict(node)
        if tuple(new.shape[a] for a in axes) != tuple(kept.shape) or not torch.equal(ids, found.source[kept.flatten()]):
            # The operand keeps more than was asked for: so does the result.
            raise Conflict(node, torch.isin(found.source, block).nonzero().flatten())
        base = _base(node)
        made = None if base is node or block is not builder.kept[x] else builder.shared.get(base)
        if made is None:
            value = builder.take(x, block, like=node)
            args, kwargs = _call_arguments(base, sizes)
            args = fx.node.map_arg(args, lambda n: value if n is x else builder.whole(n, like=node))
            made = builder.call(
                base.target, args, fx.node.map_arg(kwargs, lambda n: builder.whole(n, like=node)), like=node
            )
        if base is node:
            return made
        builder.shared[base] = made
        return builder.call(operator.getitem, (made, node.args[1]), like=node)


def _new_sizes(node: fx.Node, channels: Channels, kept: Tensor) -> list[Any] | None:
    """The sizes that a reshape is asked for, the channels' axes as large as what is kept of them."""
    if node.target not in _SIZES:
        return None
    given = arguments(node)
    sizes = list(given[_SIZES[node.target]])
    start = int(given["dim"]) % len(shape_of(moved(node))) if "dim" in given else 0
    for axis, size in zip(channels.axes, kept.shape, strict=True):
        if 0 <= axis - start < len(sizes) and sizes[axis - start] != -1:
            sizes[axis - start] = size
    return sizes


class Concatenation:
    """Values beside each other, along the channels or along another axis."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        parts, axis = _parts(node)
        facts = [known.of(p) for p in parts]
        found = {f.axes for f in facts if f is not None}
        if len(found) != 1 or any(static_shape(p)[axis] is None for p in parts if found == {(axis,)}):
            return None
        axes = found.pop()
        if axes == (axis,):
            return _beside(parts, [f or unknown(axes, (shape_of(p)[axis],)) for f, p in zip(facts, parts, strict=True)])
        if axis in axes:
            return None
        sizes = tuple(shape_of(node)[a] for a in axes)
        full = [f or unknown(axes, sizes) for f in facts]
        if any(f.sizes != sizes for f in full):
            return None
        values = torch.stack([f.constant for f in full])
        constant = torch.where((values == values[0]).all(0), values[0], math.nan)
        return Channels(axes, sizes, constant, first_of(*(f.first for f in full)))

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        parts, axis = _parts(node)
        facts = known.facts[node]
        requests: dict[fx.Node, Request] = {}
        if facts.axes != (axis,):
            kept = structure(wanted, facts.sizes)
            return Ask(kept, {p: Request(kept.flatten(), ordered=True) for p in parts if known.of(p) is not None})
        kept = torch.cat([ids for _, ids in _segments(node, unique(wanted))])
        segments = _segments(node, kept)
        read = {part for part, ids in segments if len(ids)}
        for part, ids in segments:
            if known.of(part) is not None:
                start = ids - _start(node, part, ids)
                before = requests[part].ids if part in requests else start[:0]
                requests[part] = Request(unique(torch.cat([before, start])), ordered=True)
        return Ask(kept, requests, frozenset(p for p in parts if p not in read))

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        parts, axis = _parts(node)
        facts = builder.known.facts[node]
        made = []
        if facts.axes == (axis,):
            for part, ids in _segments(node, kept):
                if len(ids):
                    made.append(_cut(builder, node, part, (axis,), ids - _start(node, part, ids)))
        else:
            made = [_cut(builder, node, part, facts.axes, kept) for part in parts]
        return made[0] if len(made) == 1 else builder.call(aten.cat.default, (made, axis), like=node)


def is_concatenation(node: fx.Node) -> bool:
    """Whether the call sets floating values beside each other."""
    return is_float(node) and is_call(node, CATS)


def _parts(node: fx.Node) -> tuple[Sequence[fx.Node], int]:
    given = arguments(node)
    return given["tensors"], int(given["dim"]) % len(shape_of(node))


def _segments(node: fx.Node, ids: Tensor) -> list[tuple[fx.Node, Tensor]]:
    """Each part with those of `ids` that lie in it."""
    parts, axis = _parts(node)
    found, start = [], 0
    for part in parts:
        end = start + shape_of(part)[axis]
        found.append((part, ids[(ids >= start) & (ids < end)]))
        start = end
    return found


def _start(node: fx.Node, part: fx.Node, ids: Tensor) -> int:
    """Where the part that holds `ids` begins; a value can be there several times."""
    parts, axis = _parts(node)
    start = 0
    for p in parts:
        size = shape_of(p)[axis]
        if p is part and len(ids) and start <= int(ids[0]) < start + size:
            return start
        start += size
    return start


def _beside(parts: Sequence[fx.Node], facts: Sequence[Channels]) -> Channels:
    constants, firsts, start = [], [], 0
    starts: dict[fx.Node, int] = {}
    for part, f in zip(parts, facts, strict=True):
        constants.append(f.constant)
        firsts.append(f.first + starts.setdefault(part, start))
        start += f.count
    return Channels(facts[0].axes, (start,), torch.cat(constants), torch.cat(firsts))


def _cut(builder: Builder, node: fx.Node, part: fx.Node, axes: Sequence[int], ids: Tensor) -> Any:
    """A part on some of its channels. Of a part without channels, the entries along the axis."""
    if builder.known.of(part) is not None:
        return builder.take(part, ids, like=node)
    if len(axes) > 1:
        raise Conflict(node)
    return builder.pick(builder.held(part), axes[0], ids, shape_of(part)[axes[0]], like=node)
