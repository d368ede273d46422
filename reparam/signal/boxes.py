"""Boxes of places: which places of a value another one depends on, as an interval for each axis.

An axis that was made of several, such as tokens of rows and columns, keeps an interval for each of them, so that a
square of places stays one. Intervals do not end at the border of the value: what lies beyond it is padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import fx


@dataclass(frozen=True)
class Extent:
    """Places low to high of `size`, both included; infinite where all are reached, however many there were. by: the
    call that reaches all. closed: whether there is nothing beyond the border, as of channels."""

    size: int
    low: float
    high: float
    by: fx.Node | None = None
    closed: bool = False

    @property
    def whole(self) -> bool:
        """Whether all places are reached, however many there were."""
        return math.isinf(self.low)

    @property
    def complete(self) -> bool:
        """Whether it is all of a closed axis."""
        return self.closed and self.size > 1 and self.low <= 0 and self.high >= self.size - 1

    @property
    def count(self) -> float:
        """How many places."""
        return self.high - self.low + 1


Axis = tuple[Extent, ...]  # the most significant first
Box = tuple[Axis, ...]


def one(size: int, at: int = 0, *, closed: bool = False) -> Axis:
    """A single place of an axis."""
    return (Extent(size, at, at, closed=closed),)


def whole(size: int, by: fx.Node | None = None) -> Axis:
    """All places of an axis, however many it had."""
    return (Extent(size, -math.inf, math.inf, by),) if size > 1 else one(1)


def complete(size: int, by: fx.Node | None = None) -> Axis:
    """All of an axis with nothing beyond it, such as one of channels; parts of it are parts."""
    return (Extent(size, 0, size - 1, by, closed=True),) if size > 1 else one(1)


def opened(axis: Axis) -> Extent:
    """One interval of an axis that counts places: all of a closed one is all, however many there were."""
    span = joined(axis)
    if span.complete:
        return replace(span, low=-math.inf, high=math.inf, closed=False)
    return span


def groups_of(axis: Axis, groups: int, size: int, by: fx.Node) -> Axis:
    """The channels of an operand of `size` that channels of a result read, in so many groups."""
    span = joined(axis)
    if groups == 1 or span.whole or size == 1:
        return complete(size, by)
    wide, read = span.size // groups, size // groups
    low, high = max(0.0, span.low) // wide, min(span.size - 1.0, span.high) // wide
    return (Extent(size, low * read, high * read + read - 1, by, closed=True),)


def joined(axis: Axis) -> Extent:
    """One interval that holds the places of an axis."""
    if not axis:
        return Extent(1, 0, 0)
    made, *rest = axis
    for span in rest:
        low, high = max(0.0, span.low), min(span.size - 1.0, span.high)
        low, high = (low, high) if low <= high else (0.0, span.size - 1.0)
        ends = made.low * span.size + low, made.high * span.size + high
        made = Extent(made.size * span.size, *ends, made.by, closed=made.closed and span.closed)
    return made


def united(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    return tuple(_united(x, y) for x, y in zip(a, b, strict=True))


def _united(a: Axis, b: Axis) -> Axis:
    if [s.size for s in a] != [s.size for s in b]:
        a, b = (joined(a),), (joined(b),)
    return tuple(_hull(x, y) for x, y in zip(a, b, strict=True))


def _hull(x: Extent, y: Extent) -> Extent:
    full = next((s for s in (x, y) if s.complete), None)
    if full is not None and not (x.whole or y.whole):
        return full
    ends = min(x.low, y.low), max(x.high, y.high)
    return Extent(x.size, *ends, x.by if x.whole else y.by, closed=x.closed and y.closed)


def regrouped(axes: Iterable[Axis], sizes: Sequence[int]) -> Box | None:
    """The same places under other axes of `sizes`, as views make them; None where the axes do not fit each other.

    Where factors do not fit, such as 3 x 2 that is split into 2 x 3, their axis is taken as one interval.
    """
    given = list(axes)
    found = _regrouped(given, sizes)
    if found is None:
        alike = [len({span.whole for span in axis}) <= 1 for axis in given]
        found = _regrouped([(joined(axis),) if same else axis for axis, same in zip(given, alike, strict=True)], sizes)
    return found


def _regrouped(axes: Iterable[Axis], sizes: Sequence[int]) -> Box | None:
    left = [span for axis in axes for span in axis if span.size != 1]
    made: list[Axis] = []
    for size in sizes:
        taken: list[Extent] = []
        missing = size
        while missing > 1:
            if not left:
                return None
            span = left.pop(0)
            if missing % span.size == 0:
                taken.append(span)
                missing //= span.size
            elif span.size % missing == 0:
                high, low = _split(span, span.size // missing)
                taken.append(high)
                left.insert(0, low)
                missing = 1
            else:
                return None
        made.append(tuple(taken) or one(1))
    return None if left else tuple(made)


def _split(span: Extent, size: int) -> tuple[Extent, Extent]:
    """A span as one of groups of `size` places, and one inside of them."""
    count = span.size // size
    if span.whole:
        return replace(span, size=count), replace(span, size=size)
    first, last = span.low // size, span.high // size
    alike = first == last
    inner = (span.low % size, span.high % size) if alike else (0.0, size - 1.0)
    return (
        Extent(count, first, last, span.by, closed=span.closed),
        Extent(size, *inner, span.by, closed=span.closed),
    )
