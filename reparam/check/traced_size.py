"""The whole network at the traced size in its own dtype, where smaller images have been compared in float64.

float64 costs most at the traced size, and shows little there that smaller images do not show, which have every kind of
border. What is left to see is that both give the same at that size, but for rounding. In its own dtype the converted
network may be off by twice what the original is off by, and four roundings (`emitted_check`), so that

    |new - old| <= |new - truth| + |old - truth| <= 3 |old - truth| + 4 eps

where |old - truth| is measured on smaller images, relative to the outputs there. Where that does not hold, float64 has
to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.ir import Feed, Program, evaluate, feed, typed

from .judge import Judge
from .values import all_finite, first_shape, largest_difference

LONGER = 2.0  # times the rounding errors of smaller images, since sums over positions are longer, and inputs few


@dataclass(frozen=True)
class TracedEvidence:
    """The comparison at the traced size where it was made in the original's own dtype alone.

    difference: the largest of any output, relative to its largest magnitude. allowed: the most that it may be.
    """

    shape: tuple[int, ...]
    difference: float
    allowed: float


class Known(Protocol):
    """A feed, and what the judge gives for it in float64."""

    @property
    def values(self) -> Feed: ...
    @property
    def truth(self) -> list[Any]: ...


def shrinks_much(program: Program, sizes: dict[str, int], small: int) -> bool:
    """Whether images that shrink to `small` have less than half as many values as those of the traced sizes."""
    traced, smaller = (feed(program, sizes, torch.Generator(), side) for side in (None, small))
    return 2 * _count(smaller) < _count(traced)


def _count(values: Feed) -> int:
    return sum(v.numel() for v in values if isinstance(v, Tensor))


def same_as_traced(
    original: Program,
    converted: Program,
    judge: Judge,
    values: Feed,
    path: tuple[str, ...],
    smaller: Known,
) -> TracedEvidence | None:
    """The comparison with the judge on a feed of the traced size; None where float64 has to tell.

    path: the functions that the judge calls at smaller sizes. smaller: a feed of such a size, and the truth.
    """
    theirs = judge.own_where_it_runs(values)
    if theirs is None or judge.path != path or not all_finite(theirs):
        return None
    try:
        gap = largest_difference(theirs, _in_own_dtype(original, converted, values))
        lost = largest_difference(smaller.truth, _in_own_dtype(original, original, smaller.values))
    except ReparamError:
        raise
    except Exception:  # of any kind: operators may be those of others, and float64 tells what it is
        return None
    allowed = LONGER * 3.0 * lost + 4.0 * torch.finfo(original.dtype).eps
    return TracedEvidence(first_shape(values), gap, allowed) if gap <= allowed else None


def _in_own_dtype(original: Program, program: Program, values: Feed) -> list[Any]:
    return evaluate(program, typed(original, values), None)
