"""What each axis of a value counts: samples, channels or places. Movement is followed by moving labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .power import CHANNEL, PLACE, SAMPLE, Roles


def usual(rank: int, *, channels_last: bool) -> Roles:
    """Of an input (N, C, ...) or (N, ..., C)."""
    if rank == 0:
        return ()
    at = rank - 1 if channels_last else 1
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


def broadcast(roles: Sequence[Roles], shapes: Sequence[Sequence[int]]) -> Roles:
    """The roles of a pointwise result of values of these roles and shapes."""
    rank = max(len(s) for s in shapes)
    result: list[frozenset[str]] = []
    for axis in range(-rank, 0):
        kept = [r[axis] for r, s in zip(roles, shapes, strict=True) if len(s) >= -axis and s[axis] > 1]
        result.append(frozenset().union(*kept))
    return tuple(result)


def has_places(roles: Roles, shape: Sequence[int]) -> bool:
    """Whether some axis counts more than one place."""
    return any("p" in r and s > 1 for r, s in zip(roles, shape, strict=True))
