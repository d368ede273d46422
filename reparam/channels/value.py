"""What is known of the channels of one value: where they lie, which are constants, which are the same.

The channels of a value lie along one axis, or along several (heads and their dimensions): they are numbered row by row
over those axes. Everything is exact arithmetic on the weights, in float64 and on the CPU; inputs are taken as finite.

Source: constant propagation and value numbering (Aho, Lam, Sethi & Ullman, Compilers, 2nd ed., sections 9.4 and 6.1),
here for each channel by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """Facts on the channels of a value.

    axes: the axes that they lie along, ascending. sizes: how many there are along each, C = prod(sizes) in all.
    constant: (C,), float64; the value of a channel that is the same number everywhere, NaN where it varies.
    first: (C,), the first channel that is the same function of the inputs, itself where none before it is.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    constant: Tensor
    first: Tensor

    @property
    def count(self) -> int:
        """C, the number of channels."""
        return math.prod(self.sizes)

    @property
    def known(self) -> Tensor:
        """(C,), bool: the channels that are constants."""
        return ~self.constant.isnan()

    @property
    def trivial(self) -> bool:
        """Whether no channel is a constant and no two are known to be the same."""
        return not bool(self.known.any()) and torch.equal(self.first, torch.arange(self.count))

    @property
    def everything(self) -> Tensor:
        """All channels in their order, in the shape `sizes`."""
        return torch.arange(self.count).reshape(self.sizes)

    def impose(self, value: Tensor) -> Tensor:
        """`value` with every channel made what is known of it."""
        rows = self._rows(value)
        rows = rows[self.first.to(value.device)]
        constant = self.constant.to(value)[:, None]
        return self._value(torch.where(constant.isnan(), rows, constant), self.sizes, value)

    def cut(self, value: Tensor, kept: Tensor) -> Tensor:
        """The channels `kept` of a value, in their order and in the shape of `kept`."""
        return self._value(self._rows(value)[kept.flatten().to(value.device)], kept.shape, value)

    def put(self, value: Tensor, kept: Tensor, held: Tensor) -> Tensor:
        """`value` with its channels `kept` as in `held`, and what is known of the others still true."""
        rows = self._rows(value).clone()
        rows[kept.flatten().to(value.device)] = self._rows(held)
        return self.impose(self._value(rows, self.sizes, value))

    def _order(self, ndim: int) -> list[int]:
        return [*self.axes, *(a for a in range(ndim) if a not in self.axes)]

    def _rows(self, value: Tensor) -> Tensor:
        """(C, rest)"""
        rows = value.permute(self._order(value.dim())).flatten(0, len(self.axes) - 1)
        return rows.reshape(len(rows), -1)

    def _value(self, rows: Tensor, sizes: Sequence[int], like: Tensor) -> Tensor:
        """The inverse of `_rows`, with these sizes along the channels' axes."""
        order = self._order(like.dim())
        shape = [*sizes, *(like.shape[a] for a in order[len(sizes) :])]
        return rows.reshape(shape).permute(sorted(range(like.dim()), key=order.__getitem__))


def unknown(axes: Sequence[int], sizes: Sequence[int]) -> Channels:
    """Channels of which nothing is known but where they lie."""
    count = math.prod(sizes)
    return Channels(tuple(axes), tuple(sizes), torch.full((count,), math.nan, dtype=torch.float64), torch.arange(count))


def spread(entries: Tensor, axes: Sequence[int], sizes: Sequence[int], ndim: int) -> Tensor:
    """`entries`, one for each channel, as a tensor with `ndim` axes that broadcasts against the value."""
    shape = [1] * ndim
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return entries.reshape(shape)


def read_off(full: Tensor, axes: Sequence[int]) -> Tensor | None:
    """(C,): the entries of a tensor along `axes`, None when they vary along another axis as well."""
    if not full.numel():
        return None
    index = tuple(slice(None) if a in axes else slice(0, 1) for a in range(full.dim()))
    entries = full[index]
    return entries.reshape(-1) if bool((full == entries).all()) else None


def varying_axes(full: Tensor) -> tuple[int, ...]:
    """The axes along which the entries of a tensor are not all the same."""
    return tuple(a for a in range(full.dim()) if full.shape[a] > 1 and not bool((full == full.narrow(a, 0, 1)).all()))


SAMPLED = 32  # entries of a row that tell it from most others


def first_of(*columns: Tensor) -> Tensor:
    """(C,): for each index the first one at which all `columns`, (C, ...), have the same entries. NaN equals NaN.

    Rows are told apart by some of their entries; only those that agree there are compared as a whole.
    """
    size = len(columns[0])
    flat = [c.detach().reshape(size, -1) for c in columns]
    first, every = torch.arange(size), torch.arange(size)
    for rough in _alike_in(every, [c[:, :: max(1, c.shape[1] // SAMPLED)] for c in flat]):
        for group in _alike_in(rough, [c[rough] for c in flat]):
            left = group
            while len(left) > 1:
                same = torch.stack([_alike(c[left], c[left[:1]]) for c in flat]).all(0)
                first[left[same]] = left[0]
                left = left[~same]
    return first


def _alike_in(ids: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    """Those of `ids`, in groups of several, whose rows have the same sum with random weights: the same rows do."""
    generator = torch.Generator().manual_seed(0)
    key = torch.zeros(len(ids), dtype=torch.float64)
    for c in columns:
        mix = torch.rand(c.shape[1], generator=generator, dtype=torch.float64)
        key = 0.6180339887 * key + (c.double().nan_to_num(nan=0.7) * mix).sum(1)
    _, group, counts = torch.unique(key, return_inverse=True, return_counts=True)
    return [ids[group == i] for i in (counts > 1).nonzero().flatten()]


def has_entries(rows: Tensor) -> Tensor:
    """(C,), bool: the rows of (C, ...) that are not all zeros. Most show that in few of their entries."""
    found = (rows[:, :: max(1, rows.shape[1] // SAMPLED)].flatten(1) != 0).any(1)
    rest = (~found).nonzero().flatten()
    if len(rest):
        found[rest] = (rows[rest].flatten(1) != 0).any(1)
    return found


def _alike(rows: Tensor, row: Tensor) -> Tensor:
    """(C,), bool: the rows that have the entries of one row."""
    return ((rows == row) | (rows.isnan() & row.isnan())).all(1)


def unique(ids: Tensor) -> Tensor:
    """The entries of a vector without repetitions, in the order of their first occurrence."""
    return torch.tensor(list(dict.fromkeys(ids.tolist())), dtype=torch.int64)


def positions(ids: Tensor, among: Tensor) -> Tensor | None:
    """Where each of `ids` stands in the vector `among`, None when one is not there."""
    if not len(among):
        return None if len(ids) else torch.empty(0, dtype=torch.int64)
    place = torch.full((int(max(among.max(), ids.max() if len(ids) else 0)) + 1,), -1, dtype=torch.int64)
    place[among] = torch.arange(len(among))
    found = place[ids]
    return None if bool((found < 0).any()) else found


def structure(ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """The channels `ids` as a block that a tensor can hold: the same number in every row of every axis.

    Along one axis they keep their order. Along several they are sorted, rows that lack some are filled up with
    channels that nobody asked for, and rows without any are left out.
    """
    if len(sizes) == 1:
        return unique(ids)
    asked = ids.unique().tolist()
    if len(asked) == math.prod(sizes):
        return torch.arange(len(asked)).reshape(tuple(sizes))
    counts = [max(len(c) for c in level) for level in _children(asked, sizes)]
    rows = _filled(asked, sizes, counts)
    return torch.tensor(rows, dtype=torch.int64).reshape(counts)


def _children(ids: list[int], sizes: Sequence[int]) -> list[list[set[int]]]:
    """For each axis, the indices in use under every prefix."""
    levels: list[dict[int, set[int]]] = [{} for _ in sizes]
    for i in ids:
        for level in range(len(sizes)):
            inner = math.prod(sizes[level + 1 :])
            levels[level].setdefault(i // (inner * sizes[level]), set()).add(i // inner % sizes[level])
    return [list(level.values()) for level in levels]


def _filled(ids: list[int], sizes: Sequence[int], counts: Sequence[int]) -> list[int]:
    if not sizes:
        return [0]
    inner = math.prod(sizes[1:])
    used = sorted({i // inner for i in ids})
    spare = [i for i in range(sizes[0]) if i not in used]
    found = []
    for child in sorted([*used, *spare[: counts[0] - len(used)]]):
        below = [i % inner for i in ids if i // inner == child]
        found += [child * inner + i for i in _filled(below, sizes[1:], counts[1:])]
    return found
