"""Where the channels of a register lie: in natural order, or as the bins of grouped layers ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .linear_form import RegisterValue
from .stage import Stage

Labels = list[np.ndarray]


def natural(values: Sequence[RegisterValue]) -> dict[RegisterValue, int]:
    """Where each value's channels start when a register holds its values one after the other."""
    starts, at = {}, 0
    for v in values:
        starts[v] = at
        at += v.channels
    return starts


def width(values: Sequence[RegisterValue]) -> int:
    """The channels of a register in natural order."""
    return sum(v.channels for v in values)


@dataclass(eq=False)
class SegmentOrders:
    """The orders of a segment's registers, worked out when they are asked for."""

    run: tuple[Stage, ...]
    labels: Labels
    names: np.ndarray
    home: np.ndarray
    g: int
    caps: tuple[int, ...]

    def orders(self) -> tuple[np.ndarray, ...]:
        found = [self._by_bin(0)]
        for i, stage in enumerate(self.run):
            images = images_of(stage)
            found.append(self._by_bin(i + 1) if images is None else follow(found[-1], images))
        return tuple(found)

    def _by_bin(self, i: int) -> np.ndarray:
        where = self.home[np.searchsorted(self.names, self.labels[i])]
        order = np.argsort(where, kind="stable")
        starts = np.searchsorted(where[order], np.arange(self.g))
        out = np.full(self.g * self.caps[i], -1)
        place = where[order] * self.caps[i] + np.arange(len(order)) - starts[where[order]]
        out[place] = order
        return out


def images_of(stage: Stage) -> list[list[int]] | None:
    """For each channel the results it alone goes to; None when some result has several sources."""
    into, out = natural(stage.before), natural(stage.after)
    n_out = width(stage.after)
    images: list[list[int]] = [[] for _ in range(width(stage.before))]
    total = 0
    for v, u, m in stage.blocks():
        if m.n_in != m.groups:
            return None
        total += m.n_out
        if total > n_out:
            return None
        per = m.n_out // m.groups
        for c in range(m.n_in):
            images[into[u] + m.cols + c] += range(out[v] + m.rows + c * per, out[v] + m.rows + (c + 1) * per)
    return images if len({c for i in images for c in i}) == n_out else None


def follow(order: np.ndarray, images: list[list[int]]) -> np.ndarray:
    """The order of the results of a depthwise layer, padded to equally many for each channel."""
    multiple = max(len(i) for i in images)
    result: list[int] = []
    for c in order:
        own = images[c] if c >= 0 else []
        result += own + [-1] * (multiple - len(own))
    return np.array(result)
