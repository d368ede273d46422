"""The whole network in its own dtype, at sizes that need no float64: where smaller images have been compared in that.

float64 costs most at the traced size, and shows little there that smaller images do not show, which have every kind of
border. What is left to see is that both give the same at that size, but for rounding. In its own dtype the converted
network may be off by twice what the original is off by, and four roundings (`emitted_check`), so that

    |new - old| <= |new - truth| + |old - truth| <= 3 |old - truth| + 4 eps

where |old - truth| is measured on smaller images, relative to the outputs there. Where that does not hold, or says too
little, float64 has to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reparam.errors import ReparamError
from reparam.ir import Feed, Program, evaluate, typed

from .evidence import OwnDtypeEvidence
from .judge import Judge
from .values import all_finite, first_shape, largest_difference

COARSEST = 1e-4  # relative, that may be allowed: a network that loses more by rounding is compared in float64
LONGER = 2.0  # times the rounding errors of smaller images, since sums over positions are longer, and inputs few


def in_own_dtype(original: Program, values: Feed, program: Program) -> list[Any] | None:
    """What a program gives in the dtypes that it is emitted in, those of the original; None where it does not run."""
    try:
        return evaluate(program, typed(original, values), None)
    except ReparamError:
        raise
    except Exception:  # of any kind: operators may be those of others
        return None


def same_in_own_dtype(
    original: Program,
    converted: Program,
    judge: Judge,
    path: tuple[str, ...],
    feeds: Sequence[Feed],
    lost: float,
) -> OwnDtypeEvidence | None:
    """The comparison with the judge on feeds; None where float64 has to tell.

    path: the functions that the judge calls at smaller sizes. lost: what the original loses by rounding there.
    """
    allowed = LONGER * 3.0 * lost + 4.0 * torch.finfo(original.dtype).eps
    if not allowed <= COARSEST:
        return None
    largest = 0.0
    for values in feeds:
        theirs = judge.own_where_it_runs(values)
        if theirs is None or judge.path != path or not all_finite(theirs):
            return None
        ours = in_own_dtype(original, values, converted)
        if ours is None:
            return None
        largest = max(largest, largest_difference(theirs, ours))
        if not largest <= allowed:
            return None
    return OwnDtypeEvidence(tuple(first_shape(f) for f in feeds), largest, allowed)
