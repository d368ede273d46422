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
class Span:
    """Places low to high of `size`, both included; infinite where all are reached, however many there were. by: the
    call that reaches all."""

    size: int
    low: float
    high: float
    by: fx.Node | None = None

    @property
    def whole(self) -> bool:
        """Whether all places are reached, however many there were."""
        return math.isinf(self.low)

    @property
    def count(self) -> float:
        """How many places."""
        return self.high - self.low + 1


Axis = tuple[Span, ...]  # the most significant first
Box = tuple[Axis, ...]


def one(size: int, at: int = 0) -> Axis:
    """A single place of an axis."""
    return (Span(size, at, at),)


def whole(size: int, by: fx.Node | None = None) -> Axis:
    """All places of an axis, however many it had."""
    return (Span(size, -math.inf, math.inf, by),) if size > 1 else one(1)


def joined(axis: Axis) -> Span:
    """One interval that holds the places of an axis."""
    if not axis:
        return Span(1, 0, 0)
    made, *rest = axis
    for span in rest:
        low, high = max(0.0, span.low), min(span.size - 1.0, span.high)
        low, high = (low, high) if low <= high else (0.0, span.size - 1.0)
        made = Span(made.size * span.size, made.low * span.size + low, made.high * span.size + high, made.by)
    return made


def united(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    return tuple(_united(x, y) for x, y in zip(a, b, strict=True))


def _united(a: Axis, b: Axis) -> Axis:
    if [s.size for s in a] != [s.size for s in b]:
        a, b = (joined(a),), (joined(b),)
    return tuple(
        replace(x, low=min(x.low, y.low), high=max(x.high, y.high), by=x.by if x.whole else y.by)
        for x, y in zip(a, b, strict=True)
    )


def regrouped(axes: Iterable[Axis], sizes: Sequence[int]) -> Box | None:
    """The same places under other axes of `sizes`, as views make them; None where the axes do not fit each other."""
    left = [span for axis in axes for span in axis if span.size != 1]
    made: list[Axis] = []
    for size in sizes:
        taken: list[Span] = []
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


def _split(span: Span, size: int) -> tuple[Span, Span]:
    """A span as one of groups of `size` places, and one inside of them."""
    count = span.size // size
    if span.whole:
        return replace(span, size=count), replace(span, size=size)
    first, last = span.low // size, span.high // size
    alike = first == last
    inner = (span.low % size, span.high % size) if alike else (0.0, size - 1.0)
    return Span(count, first, last), Span(size, *inner)
