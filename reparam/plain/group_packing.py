"""Groups: which channels of neighbouring layers belong together, and how they are packed into equal bins.

The channels of a register and the blocks of a layer form a graph. Its connected components do not talk to each other,
so a layer may run with g groups when the components fit into g equal bins; what does not fill a bin is padded with zero
channels. Layers that touch and are both grouped use the same bins (a segment), because they share the order of the
channels between them. A shortest path over dense layers and segments gives the cheapest arrangement, padding included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reparam.errors import RuleError

from .bins import Kinds, distribute
from .channel_order import Labels, SegmentOrders, images_of, natural, width
from .grouped_layer import GroupedLayer, group_layer
from .stage import Schedule, Stage

LONGEST = 3
MOST = 6


@dataclass(frozen=True)
class Segment:
    """Layers [start, stop) with common bins. widths: of their registers, padding included. groups: of each layer.

    slots: gives, for each register, the natural channel at each slot, -1 for padding.
    """

    start: int
    stop: int
    macs: int
    widths: tuple[int, ...]
    groups: tuple[int, ...]
    slots: SegmentOrders = field(compare=False)


@dataclass(frozen=True)
class Packing:
    """Every layer's groups and every register's slots (natural channel or -1), with what it all costs."""

    macs: int
    groups: tuple[int, ...]
    orders: tuple[np.ndarray, ...]

    def wires(self, stages: Sequence[Stage]) -> list[GroupedLayer | None]:
        """How each layer is wired; None for a pool or a gate."""
        each = zip(stages, self.groups, self.orders, self.orders[1:], strict=False)
        return [None if _keeps_order(s) else group_layer(s, g, a, b) for s, g, a, b in each]


class Packer:
    """Finds layouts of one planner's schedules; what was found for a run of stages is kept."""

    def __init__(self, carry: str, longest: int = LONGEST) -> None:
        self.carry, self.longest = carry, longest
        self._segments: dict[tuple[object, ...], list[Segment]] = {}
        self._depthwise: dict[int, int] = {}

    def price(self, schedule: Schedule) -> float:
        """Multiply-accumulates of the cheapest layout."""
        return float(self._path(schedule).macs)

    def lay(self, schedule: Schedule) -> Packing:
        """The cheapest layout."""
        stages = schedule.stages
        return _trace(self._path(schedule), stages)

    def _path(self, schedule: Schedule) -> _Path:
        """A shortest path over the registers, along dense layers and segments."""
        stages = schedule.stages
        last = len(stages)
        naturals = [width(s.before) for s in stages] + [width(stages[-1].after)]
        arrived: list[dict[int, _Path]] = [{} for _ in range(last + 1)]  # by width, whatever came before
        entered: list[dict[int, _Path]] = [{} for _ in range(last + 1)]  # by the width that a segment starts with
        free: list[_Path | None] = [None] * (last + 1)  # in natural order
        free[0] = entered[0][naturals[0]] = _Path(0, None, None)
        for i, stage in enumerate(stages):
            segments = self._from(stages, i)
            for s in segments:
                path = entered[i].get(s.widths[0])
                if path is not None:
                    _keep(arrived[s.stop], s.widths[-1], _Path(path.macs + s.macs, path, s))
            here = dict(arrived[i])
            natural_path = free[i]
            if natural_path is not None:
                _keep(here, naturals[i], natural_path)
            if _keeps_order(stage):
                for paths, behind, fixed in ((here, arrived, i + 1 == last), (entered[i], entered, i == 0)):
                    for w, path in paths.items() if not fixed else ():
                        _keep(behind[i + 1], w, _past(stage, w, path))
                if natural_path is not None:
                    free[i + 1] = _past(stage, naturals[i], natural_path)
                continue
            wanted = self._wanted(stages, i + 1)
            for w, path in here.items():
                unit = stage_macs(stage, w, 1, 1)
                through = free[i + 1]
                if through is None or path.macs + unit * naturals[i + 1] < through.macs:
                    free[i + 1] = _Path(path.macs + unit * naturals[i + 1], path, None)
                for v in wanted:
                    _keep(entered[i + 1], v, _Path(path.macs + unit * v, path, None))
        ends = list(arrived[last].values()) + [p for p in (free[last],) if p is not None]
        return min(ends, key=lambda p: p.macs)

    def _wanted(self, stages: Sequence[Stage], start: int) -> set[int]:
        """The widths that grouped layers ask of a register, past pools and gates, which keep its order."""
        while start < len(stages) and _keeps_order(stages[start]):
            start += 1
        return {s.widths[0] for s in self._from(stages, start)}

    def alone(self, stage: Stage) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(groups, order before, order after) of one layer whose registers may have any order."""
        found = self._pack([stage], (False, False))
        orders = [(s, s.slots.orders()) for s in found]
        return [(s.groups[0], before, after) for s, (before, after) in orders]

    # ---- segments ----------------------------------------------------------------------------------------------------

    def _from(self, stages: Sequence[Stage], start: int) -> list[Segment]:
        found: list[Segment] = []
        if self.carry == "dense":
            return found
        for stop in range(start + 1, min(len(stages), start + self.longest) + 1):
            run = stages[start:stop]
            ends = (start == 0, stop == len(stages))
            key = (*(s.serial for s in run), *ends)
            if key not in self._segments:
                self._segments[key] = self._pack(run, ends)
            if not self._segments[key]:
                break
            found += [Segment(start, stop, s.macs, s.widths, s.groups, s.slots) for s in self._segments[key]]
        return found

    def _pack(self, run: Sequence[Stage], ends: tuple[bool, bool]) -> list[Segment]:
        labels = _components(run)
        names, counts = _count(labels)
        if len(names) < 2:
            return []
        fine = [self._multiple(s) for s in run]
        kinds = np.unique(counts, axis=0, return_inverse=True)
        found: dict[tuple[int, int], Segment] = {}
        limit = sum(stage_macs(s, width(s.before), width(s.after), 1) for s in run)
        for g in _candidates(counts):
            if _price(run, np.maximum(-(-counts.sum(0) // g), counts.max(0)), g, fine).macs >= limit:
                continue  # not even perfect bins would pay
            home = _homes(labels, names, counts, kinds, g, ends)
            if home is None:
                continue
            segment = _segment(run, labels, names, counts, home, g, fine)
            if not _keeps_ends(segment, labels, ends):
                continue
            key = (segment.widths[0], segment.widths[-1])
            if key not in found or segment.macs < found[key].macs:
                found[key] = segment
        return sorted(found.values(), key=lambda s: s.macs)[:MOST]

    def _multiple(self, stage: Stage) -> int:
        """How many results each channel of a depthwise layer has; 0 for any other layer."""
        if stage.serial not in self._depthwise:
            images = images_of(stage)
            self._depthwise[stage.serial] = 0 if images is None else max(len(i) for i in images)
        return self._depthwise[stage.serial]


@dataclass(frozen=True)
class _Path:
    """The cheapest way to a register: its cost, the path before it, and the segment that it ends in (if any)."""

    macs: int
    before: _Path | None
    segment: Segment | None


def _keep(paths: dict[int, _Path], key: int, path: _Path) -> None:
    if key not in paths or path.macs < paths[key].macs:
        paths[key] = path


def _past(stage: Stage, w: int, path: _Path) -> _Path:
    """The path behind a pool or a gate of a register of width w, which keep the order that they find."""
    return _Path(path.macs + stage_macs(stage, w, w, 1), path, None)


def _keeps_order(stage: Stage) -> bool:
    return stage.kind in ("pool", "gate")


def _trace(path: _Path, stages: Sequence[Stage]) -> Packing:
    naturals = [width(s.before) for s in stages] + [width(stages[-1].after)]
    orders: list[np.ndarray | None] = [None] * len(naturals)
    groups = [1] * len(stages)
    macs, at = path.macs, path
    while at is not None:
        s = at.segment
        if s is not None:
            groups[s.start : s.stop] = s.groups
            orders[s.start : s.stop + 1] = s.slots.orders()
        at = at.before  # type: ignore[assignment]
    keeping = [i for i, stage in enumerate(stages) if _keeps_order(stage)]
    for i in keeping:
        orders[i + 1] = orders[i] if orders[i + 1] is None else orders[i + 1]
    for i in reversed(keeping):
        orders[i] = orders[i + 1] if orders[i] is None else orders[i]
    known = (np.arange(n) if order is None else order for n, order in zip(naturals, orders, strict=True))
    return Packing(macs, tuple(groups), tuple(known))


def _components(run: Sequence[Stage]) -> Labels:
    """For each register of the run the component of each channel (natural order), the smallest label spread."""
    sizes = [width(run[0].before)] + [width(s.after) for s in run]
    labels, at = [], 0
    for n in sizes:
        labels.append(np.arange(at, at + n))
        at += n
    edges = []
    for i, stage in enumerate(run):
        into, out = natural(stage.before), natural(stage.after)
        for v, u, m in stage.blocks():
            edges.append(
                (
                    i,
                    slice(into[u] + m.cols, into[u] + m.cols + m.n_in),
                    slice(out[v] + m.rows, out[v] + m.rows + m.n_out),
                    m.groups,
                )
            )
    _spread(labels, edges)
    return labels


def _spread(labels: Labels, edges: Sequence[tuple[int, slice, slice, int]]) -> None:
    """Gives all channels that edges connect, in place, the smallest label among them.

    An edge (i, cols, rows, g) connects, group by group, channels of register i with channels of register i + 1. A label
    gets one edge further in every sweep, so that as many sweeps as there are channels are enough for any graph.
    """
    for _ in range(sum(len(row) for row in labels)):
        changed = False
        for i, cols, rows, g in edges:
            a, b = labels[i][cols].reshape(g, -1), labels[i + 1][rows].reshape(g, -1)
            low = np.minimum(a.min(1), b.min(1))[:, None]
            if (a != low).any() or (b != low).any():
                a[:], b[:] = low, low
                changed = True
        if not changed:
            return
    raise RuleError(
        "the labels of the channels do not settle: they have to be numbers, in arrays that can be written to"
    )


def _count(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """The components' names, and how many channels each has in each register."""
    names = np.unique(np.concatenate(labels))
    counts = np.stack([np.bincount(np.searchsorted(names, row), minlength=len(names)) for row in labels], axis=1)
    return names, counts


def _candidates(counts: np.ndarray) -> list[int]:
    """Numbers of bins worth trying: those in which the largest components just fit, and small ones."""
    total = counts.sum(0)
    found = {2, 3, 4, len(counts)}
    for column in range(counts.shape[1]):
        for size in np.unique(counts[:, column])[-3:]:
            if size > 0:
                ideal = total[column] / size
                found |= {math.floor(ideal), math.ceil(ideal), math.ceil(ideal) + 1}
    return sorted(g for g in found if 1 < g <= max(len(counts), 2))


def _homes(
    labels: Labels, names: np.ndarray, counts: np.ndarray, kinds: Kinds, g: int, ends: tuple[bool, bool]
) -> np.ndarray | None:
    """The bin of each component. None when a register whose order is fixed from outside does not allow it."""
    home = np.full(len(names), -1)
    for fixed, row in ((ends[0], labels[0]), (ends[1], labels[-1])):
        if not fixed:
            continue
        if len(row) % g:
            return None
        chunk = np.arange(len(row)) // (len(row) // g)
        which = np.searchsorted(names, row)
        first, last = np.full(len(names), g), np.full(len(names), -1)
        np.minimum.at(first, which, chunk)
        np.maximum.at(last, which, chunk)
        present = last >= 0
        if (first[present] != last[present]).any() or ((home >= 0) & present & (home != last)).any():
            return None
        home = np.where(present, last, home)
    distribute(counts, kinds, home, g)
    return home


def _keeps_ends(segment: Segment, labels: Labels, ends: tuple[bool, bool]) -> bool:
    """Whether the registers that are fixed from outside kept their natural order, without padding."""
    if not any(ends):
        return True
    orders = segment.slots.orders()
    return all(
        np.array_equal(orders[k], np.arange(len(labels[k]))) for k, fixed in ((0, ends[0]), (-1, ends[1])) if fixed
    )


def _segment(
    run: Sequence[Stage],
    labels: Labels,
    names: np.ndarray,
    counts: np.ndarray,
    home: np.ndarray,
    g: int,
    fine: Sequence[int],
) -> Segment:
    """The layers of a run in these bins. A depthwise layer keeps to single channels inside the bins."""
    loads = np.zeros((g, counts.shape[1]), dtype=np.int64)
    np.add.at(loads, home, counts)
    price = _price(run, loads.max(0), g, fine)
    widths = tuple(g * c for c in price.caps)
    slots = SegmentOrders(tuple(run), labels, names, home, g, price.caps)
    return Segment(0, len(run), price.macs, widths, price.groups, slots)


@dataclass(frozen=True)
class _Price:
    """Of a run in g bins: its multiply-accumulates, each layer's groups, each register's channels in a bin."""

    macs: int
    groups: tuple[int, ...]
    caps: tuple[int, ...]


def _price(run: Sequence[Stage], loads: np.ndarray, g: int, fine: Sequence[int]) -> _Price:
    """loads: the fullest bin of each register. fine: each layer's multiple when it is depthwise, else 0."""
    caps = [max(1, int(c)) for c in loads]
    macs, groups = 0, []
    for i, stage in enumerate(run):
        if fine[i]:
            caps[i + 1] = caps[i] * fine[i]
        groups.append(g * caps[i] if fine[i] else g)
        macs += stage_macs(stage, g * caps[i], g * caps[i + 1], groups[-1])
    return _Price(macs, tuple(groups), tuple(caps))


def stage_macs(stage: Stage, n_in: int, n_out: int, groups: int) -> int:
    """Multiply-accumulates of a layer with these widths; of a gate those of its two pointwise layers."""
    if stage.kind == "pool":
        return 0
    if stage.kind == "gate":
        return n_in * stage.forms[0][0].gate_width * 2
    return stage.positions * math.prod(stage.window.size) * n_in * n_out // groups
