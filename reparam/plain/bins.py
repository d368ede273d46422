"""Bins of equal size for connected sets of channels, one bin for each group of a convolution."""

from __future__ import annotations

import numpy as np

Kinds = tuple[np.ndarray, np.ndarray]  # the different rows of the counts, and which of them each component has


def distribute(counts: np.ndarray, kinds: Kinds, home: np.ndarray, g: int) -> None:
    """Gives each component without a home a bin, in place: large ones first, each where it raises the bins least.

    counts: of channels, (components, registers). home: each component's bin, -1 for none. g: how many bins there are.
    What the bins cost is the product over the registers of the fullest one's channels; of equal bins the one is taken
    that holds least, and of those the first.
    """
    loads = np.zeros((g, counts.shape[1]), dtype=np.int64)
    settled = home >= 0
    np.add.at(loads, home[settled], counts[settled])
    held, fullest = loads.sum(1), loads.max(0)
    rows, inverse = kinds[0], kinds[1].reshape(-1)
    for kind in np.argsort(-rows.max(1), kind="stable"):
        members = np.flatnonzero((inverse == kind) & (home < 0))
        size = rows[kind]
        if len(members) > 2 * g or (len(members) > 1 and size.max() == 1):
            _pour(loads, home, members, size)
            held, fullest = loads.sum(1), loads.max(0)
            continue
        while len(members):
            bins = _where_there_is_room(loads, held, fullest, size, len(members))
            if not len(bins):
                after = np.maximum(loads + size, fullest).prod(1)
                least = np.flatnonzero(after == after.min())
                bins = least[[held[least].argmin()]]
            home[members[: len(bins)]] = bins
            np.add.at(loads, bins, size)
            np.add.at(held, bins, size.sum())
            fullest = np.maximum(fullest, loads[bins].max(0))
            members = members[len(bins) :]


def _where_there_is_room(
    loads: np.ndarray, held: np.ndarray, fullest: np.ndarray, size: np.ndarray, count: int
) -> np.ndarray:
    """The bins of the first equal components that raise no bin above the fullest, one after the other: each goes to the
    bin with room that holds least, of several to the first. None where a register is empty, of which no bin is raised.
    """
    if not fullest.all():
        return np.empty(0, dtype=np.int64)
    positive = size > 0
    room = ((fullest - loads)[:, positive] // size[positive]).min(1).clip(0, count)
    bins = np.repeat(np.arange(len(room)), room)
    earlier = np.arange(len(bins)) - np.repeat(np.cumsum(room) - room, room)  # components, in the same bin
    return bins[np.lexsort((bins, held[bins] + earlier * size.sum()))[:count]]


def _pour(loads: np.ndarray, home: np.ndarray, members: np.ndarray, size: np.ndarray) -> None:
    """Many equal small components: fill what room there is under the largest load, then raise all bins alike."""
    positive = size > 0
    room = ((loads.max(0) - loads)[:, positive] // size[positive]).min(1)
    missing = len(members) - int(room.sum())
    if missing > 0:
        room = room + -(-missing // len(room))
    order = np.argsort(-room, kind="stable")
    ends = np.minimum(np.cumsum(room[order]), len(members))
    take = np.diff(ends, prepend=0)
    home[members] = np.repeat(order, take)
    loads[order] += take[:, None] * size
