"""Split sums: W x + shift as partial sums over slices of x, which a pointwise layer adds up.

With x cut into G slices and the results into H, group (g, h) of a convolution with G*H groups computes W[h, g] x[g] and
carries its own share of what must be carried: carried channels then cost 1/G and 1/H of what they cost beside a dense
layer. A pointwise layer adds the G parts of each channel and activates them; what several groups read is copied by the
selection of channels between layers, which multiplies nothing.

    y = act(sum_g W[:, g] x[g] + b)          exactly, whatever the slices are
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .channel_order import natural, width
from .group_packing import Packer, Packing, stage_macs
from .grouped_layer import PAD, GroupedLayer, PartialSums, ends, group_layer, is_link
from .linear_form import Map, RegisterValue
from .stage import Schedule, Stage

_Pairs = tuple[np.ndarray, np.ndarray]  # (group, channel)


@dataclass(frozen=True)
class Split:
    """How every layer is wired (None: a pool or a gate, which keep the order that they find), and what it costs."""

    macs: int
    found: tuple[GroupedLayer | None, ...]

    def wires(self, stages: Sequence[Stage]) -> list[GroupedLayer | None]:
        """How each layer is wired."""
        return list(self.found)

    @property
    def groups(self) -> tuple[int, ...]:
        """Of each layer, those that add up parts included."""
        each: list[int] = []
        for w in self.found:
            each.append(1 if w is None else w.groups)
            if w is not None and w.sums is not None:
                each.append(len(w.sums.results))
        return tuple(each)


@dataclass
class Splitter:
    """Finds the cheapest layout of a planner's schedules, every layer cut or not cut into `parts` slices on each side.

    Where cutting gains nothing, the layout is the one that `Packer` finds.
    """

    parts: int
    packer: Packer = field(default_factory=lambda: Packer("auto"))
    _wires: dict[int, tuple[int, GroupedLayer | None]] = field(default_factory=dict)

    def price(self, schedule: Schedule) -> float:
        """Multiply-accumulates of the cheapest layout."""
        return min(self.packer.price(schedule), float(self._split(schedule).macs))

    def lay(self, schedule: Schedule) -> Packing | Split:
        """The cheapest layout."""
        whole = self.packer.lay(schedule)
        split = self._split(schedule)
        return split if split.macs < whole.macs else whole

    def _split(self, schedule: Schedule) -> Split:
        found = [self._cheapest(stage) for stage in schedule.stages]
        return Split(sum(macs for macs, _ in found), tuple(w for _, w in found))

    def _cheapest(self, stage: Stage) -> tuple[int, GroupedLayer | None]:
        if stage.serial not in self._wires:
            self._wires[stage.serial] = self._wire(stage)
        return self._wires[stage.serial]

    def _wire(self, stage: Stage) -> tuple[int, GroupedLayer | None]:
        n_in, n_out = width(stage.before), width(stage.after)
        if stage.kind in ("pool", "gate"):
            return stage_macs(stage, n_in, n_out, 1), None
        cuts = [(1, 1), (self.parts, 1), (1, self.parts), (self.parts, self.parts)]
        found = [_cut(stage, *cut) for cut in cuts]
        found += [group_layer(stage, groups, before, after) for groups, before, after in self.packer.alone(stage)]
        return min(((_macs(stage, w), w) for w in found), key=lambda f: f[0])


def _macs(stage: Stage, w: GroupedLayer) -> int:
    groups, n_in = w.inputs.shape
    total: int = stage.positions * math.prod(stage.window.size) * groups * n_in * w.outputs.shape[1]
    if w.sums is not None:
        total += stage.positions * w.sums.picks.size * w.sums.results.shape[1]
    return total


def _cut(stage: Stage, n_g: int, n_h: int) -> GroupedLayer:
    """The layer in n_g slices of what it reads times n_h slices of what it computes; group g*n_h + h."""
    into, out = natural(stage.before), natural(stage.after)
    blocks = stage.blocks()
    dense = {u for _, u, m in blocks if not is_link(m)}
    read: list[_Pairs] = []
    made: list[_Pairs] = []
    for u in dense:
        j = np.arange(u.channels)
        read += [(_slice(j, n_g, u.channels) * n_h + h, into[u] + j) for h in range(n_h)]
    links: list[np.ndarray | None] = []
    homes: dict[RegisterValue, np.ndarray] = {}
    for v, u, m in blocks:
        if not is_link(m):
            rows = m.rows + np.arange(m.n_out)
            made += [(g * n_h + _slice(rows, n_h, v.channels), out[v] + rows) for g in range(n_g)]
            links.append(None)
            continue
        rows, cols = ends(m)
        if v is not u:
            at = _linked(v, u, m, u in dense, n_g, n_h)
            if m.n_in == u.channels == m.n_out:
                homes.setdefault(u, at)
        elif u in dense:
            at = _slice(cols, n_g, u.channels) * n_h + _within(cols, n_g, n_h, u.channels)
        else:
            at = homes[u] if u in homes else _slice(cols, n_g * n_h, u.channels)
        read.append((at, into[u] + cols))
        made.append((at, out[v] + rows))
        links.append(at)
    outputs = _table(made, n_g * n_h, width(stage.after))
    return GroupedLayer(_table(read, n_g * n_h), outputs, tuple(links), _sums(outputs))


def _linked(v: RegisterValue, u: RegisterValue, m: Map, dense: bool, n_g: int, n_h: int) -> np.ndarray:
    """The group of each entry of a link from u into v: where v's slice is computed; u's slice when it lies in one."""
    rows, cols = ends(m)
    g = _slice(cols, n_g, u.channels) if dense else _within(rows, n_h, n_g, v.channels)
    groups: np.ndarray = g * n_h + _slice(rows, n_h, v.channels)
    return groups


def _slice(j: np.ndarray, parts: int, n: int) -> np.ndarray:
    """The slice of each of n channels that are cut into nearly equal parts."""
    k: np.ndarray = np.floor_divide(j * parts, n)
    return k


def _within(j: np.ndarray, parts: int, finer: int, n: int) -> np.ndarray:
    """The finer slice of each channel within its slice."""
    k = _slice(j, parts, n)
    start, stop = -(-k * n // parts), -(-(k + 1) * n // parts)
    found: np.ndarray = np.floor_divide((j - start) * finer, stop - start)
    return found


def _table(pairs: list[_Pairs], groups: int, n: int = 0) -> np.ndarray:
    """(groups, most) the channels of each group. n: channels below it that nobody has are put into the first group."""
    at, channels = (np.concatenate(p) for p in zip(*pairs, strict=True))
    missing = np.setdiff1d(np.arange(n), channels)
    at, channels = np.append(np.zeros_like(missing), at), np.append(missing, channels)
    keys = np.unique(at * (int(channels.max()) + 1) + channels)
    at, channels = np.divmod(keys, int(channels.max()) + 1)
    starts = np.searchsorted(at, np.arange(groups))
    places = np.arange(len(at)) - starts[at]
    table = np.full((groups, int(places.max()) + 1), PAD)
    table[at, places] = channels
    return table


def _sums(outputs: np.ndarray) -> PartialSums | None:
    """The cheapest layer that adds up the parts of each channel; None when every channel is in one part.

    Channels with equally many parts are dealt out evenly over the groups, in their order.
    """
    flat = outputs.reshape(-1)
    counts = np.bincount(flat[flat >= 0])
    if counts.max() == 1:
        return None
    kinds, sizes = np.unique(counts, return_counts=True)
    groups = np.arange(1, len(counts) + 1)
    each = -(-sizes[:, None] // groups)
    n = int(np.argmin(groups * (each * kinds[:, None]).sum(0) * each.sum(0)))
    per, g = each[:, n], int(groups[n])
    home, place = np.empty(len(counts), dtype=np.int64), np.empty(len(counts), dtype=np.int64)
    for k, (kind, most, before) in enumerate(zip(kinds, per, np.cumsum(per) - per, strict=True)):
        members = np.flatnonzero(counts == kind)
        home[members], place[members] = np.divmod(np.arange(len(members)), most)
        place[members] += before
        assert home[members].max() < g, (k, g)
    results = np.full((g, int(per.sum())), PAD)
    results[home, place] = np.arange(len(counts))
    parts = np.flatnonzero(flat >= 0)
    parts = parts[np.lexsort((parts, place[flat[parts]], home[flat[parts]]))]
    at = home[flat[parts]]
    picks = np.full((g, int((per * kinds).sum())), PAD)
    picks[at, np.arange(len(at)) - np.searchsorted(at, np.arange(g))[at]] = parts
    return PartialSums(picks, results)
