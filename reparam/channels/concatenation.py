"""Concatenation: values beside each other, along the channels or along another axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import CATS, arguments, aten, is_call, is_float, shape_of, static_shape

from .family import Ask, Builder, Conflict, Known, Request
from .value import Channels, first_of, structure, unique, unknown


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
        kept = torch.cat([ids for _, ids, _ in _segments(node, unique(wanted))])
        segments = _segments(node, kept)
        read = {part for part, ids, _ in segments if len(ids)}
        for part, _, own in segments:
            if known.of(part) is not None:
                before = requests[part].ids if part in requests else own[:0]
                requests[part] = Request(unique(torch.cat([before, own])), ordered=True)
        return Ask(kept, requests, frozenset(p for p in parts if p not in read))

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        parts, axis = _parts(node)
        facts = builder.known.facts[node]
        made = []
        if facts.axes == (axis,):
            for part, ids, own in _segments(node, kept):
                if len(ids):
                    made.append(_cut(builder, node, part, (axis,), own))
        else:
            made = [_cut(builder, node, part, facts.axes, kept) for part in parts]
        return made[0] if len(made) == 1 else builder.call(aten.cat.default, (made, axis), like=node)


def is_concatenation(node: fx.Node) -> bool:
    """Whether the call sets floating values beside each other."""
    return is_float(node) and is_call(node, CATS)


def _parts(node: fx.Node) -> tuple[Sequence[fx.Node], int]:
    given = arguments(node)
    return given["tensors"], int(given["dim"]) % len(shape_of(node))


def _segments(node: fx.Node, ids: Tensor) -> list[tuple[fx.Node, Tensor, Tensor]]:
    """Each part with those of `ids` that lie in it, as they are and counted from where it begins."""
    parts, axis = _parts(node)
    found, start = [], 0
    for part in parts:
        end = start + shape_of(part)[axis]
        inside = ids[(ids >= start) & (ids < end)]
        found.append((part, inside, inside - start))
        start = end
    return found


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
