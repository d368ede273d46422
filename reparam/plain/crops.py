"""Crops of the map in a span: x[2:-2] = (x[1:-1])[1:-1], a piece for every size that a register has on the way.

Values share a register only where their maps have one size. Beside convolutions without padding, whose maps shrink, a
skip that is cropped at its end alone would be too large for every layer but the last. So it is cropped a little by each
of them: the layer carries it by kernels whose single tap lies off their middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import fx

from reparam.algebra import Window
from reparam.ir import CONVS, fixed_size, is_call

from .linear_form import LinearForm, Map, RegisterValue, reference, unit
from .register_value import ValueBuilder

Ends = tuple[tuple[int, int], ...]


def cropped(builder: ValueBuilder, node: fx.Node, x: RegisterValue, window: Window) -> LinearForm:
    """The form of `node`, which is `x` at the positions of `window`: a value of its own, over those of sizes between.

    window: one tap along each axis, no stride and no padding.
    """
    ends = tuple((f, -c - 1 - f) for f, c in zip(window.first, window.slack, strict=True))
    for place, part in zip(*_between(builder, x, ends), strict=True):
        made = builder.new(place, "layer", LinearForm(x.channels, ((x, _map(x, part)),)), optional=True, low=x.low)
        made.channels = x.channels
        ends = tuple((low - a, high - b) for (low, high), (a, b) in zip(ends, part, strict=True))
        x = made
    return reference(builder.hold(node, LinearForm(x.channels, ((x, _map(x, ends)),))))


def _map(x: RegisterValue, ends: Ends) -> Map:
    first = tuple(low for low, _ in ends)
    slack = tuple(-low - high - 1 for low, high in ends)
    one, c = (1,) * len(ends), x.channels
    return Map(Window(one, one, one, first, slack), c, 0, c, 0, c, unit)


def _between(builder: ValueBuilder, x: RegisterValue, ends: Ends) -> tuple[list[fx.Node], list[Ends]]:
    """The convolutions whose maps are as large as `x` after a part of a crop, and what is cut from one to the next."""
    whole = x.node.meta["val"].shape[2:]
    most = [low + high for low, high in ends]
    found: dict[tuple[int, ...], fx.Node] = {}
    for node in builder.span.nodes:
        if not is_call(node, CONVS):
            continue
        sizes = node.meta["val"].shape[2:]
        less = [fixed_size(a - b) for a, b in zip(whole, sizes, strict=True)]
        if all(n is not None and 0 <= n <= m for n, m in zip(less, most, strict=True)):
            found.setdefault(tuple(n or 0 for n in less), node)
    kept = _rising([n for n in sorted(found) if any(n) and list(n) != most])
    shares = [tuple(_share(n, low, high) for n, (low, high) in zip(less, ends, strict=True)) for less in kept]
    nothing: Ends = ((0, 0),) * len(ends)
    steps = [
        tuple((c - a, d - b) for (a, b), (c, d) in zip(before, after, strict=True))
        for before, after in pairwise([nothing, *shares])
    ]
    return [found[n] for n in kept], steps


def _rising(amounts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that are no smaller than the ones kept before them along any axis."""
    kept: list[tuple[int, ...]] = []
    for amount in amounts:
        if not kept or all(a <= b for a, b in zip(kept[-1], amount, strict=True)):
            kept.append(amount)
    return kept


def _share(count: int, low: int, high: int) -> tuple[int, int]:
    """How many of `count` positions are cut at either end, in proportion to what is cut there in all."""
    first = count * low // (low + high) if count else 0
    return first, count - first
