"""A graph laid out in layers: every call below what it reads, branches side by side, long edges straight.

1. A call's layer is one more than the deepest of those that it reads (longest path). What depends on no input lies as
   low as its readers allow.
2. An edge that passes layers has a waypoint in each; edges of one source share them, so that a value that is read often
   is one line with branches.
3. Within layers, each item goes to the mean position of its neighbours, layer by layer, down and up (barycentres).
4. Across, each layer takes the places nearest to its neighbours' that keep a distance: least squares under order
   constraints, which pooling of adjacent violators solves exactly. What lies on the longest paths goes first.
5. Waypoints of one source then go onto one line, as far down as there is room for it.

The work grows with the calls and the waypoints; of the latter there are only so many, and edges beyond have none.
The same graph gives the same places.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 216, 42  # pixels of a call
GAP, ROW_GAP, LANE = 22, 28, 14  # between calls of a layer; between layers; what a passing edge takes
ROUNDS = 4  # of ordering, down and up
SWEEPS = 8  # of placing
WAYPOINTS = 30  # for each call, at most
SPINE, TRUNK = 1e6, 1e3  # what edges on longest paths and of passing edges weigh, where any other weighs one

Segment = tuple[int, int, int, int, int, int]  # source, target or -1 where it leads on, x1, y1, x2, y2


@dataclass(frozen=True)
class Layout:
    """Where calls lie. x, y: of the upper left corner of each; segments: of the edges, see `Segment`. In pixels."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    segments: tuple[Segment, ...]
    width: int
    height: int
    layers: int


@dataclass
class _Item:
    """A call, or a waypoint of the edges that leave one. up, down: neighbours in the layers about it, with weights."""

    source: int
    layer: int
    real: bool
    up: list[tuple[_Item, float]]
    down: list[tuple[_Item, float]]
    order: float = 0.0
    x: float = 0.0  # of its middle

    @property
    def room(self) -> float:
        return WIDTH + GAP if self.real else LANE


def lay_out(count: int, edges: Sequence[tuple[int, int]], inputs: Collection[int] = ()) -> Layout:
    """Places `count` calls, which are numbered in execution order.

    edges: (read, reader), of which the second comes later; others are left out. inputs: calls that others depend on.
    """
    wanted = sorted({(u, v) for u, v in edges if 0 <= u < v < count})
    readers: list[list[int]] = [[] for _ in range(count)]
    reads: list[list[int]] = [[] for _ in range(count)]
    for u, v in wanted:
        readers[u].append(v)
        reads[v].append(u)
    layer = _layers(reads, readers, inputs)
    items, trunks = _items(layer, reads, readers)
    rows: list[list[_Item]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for item in [*items, *(w for trunk in trunks for w in trunk)]:
        rows[item.layer].append(item)
    _order(rows)
    _place(rows)
    _straighten(trunks, rows)
    return _drawn(items, trunks, readers, rows)


def _layers(reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]], inputs: Collection[int]) -> list[int]:
    layer: list[int] = []
    fixed: list[bool] = []  # whether a call depends on an input
    for i, operands in enumerate(reads):
        layer.append(1 + max((layer[u] for u in operands), default=-1))
        fixed.append(i in inputs or any(fixed[u] for u in operands))
    for u in reversed(range(len(layer))):
        if readers[u] and not fixed[u]:
            layer[u] = min(layer[v] for v in readers[u]) - 1
    return layer


def _items(
    layer: Sequence[int], reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]]
) -> tuple[list[_Item], list[list[_Item]]]:
    """The calls, and for each the waypoints of the edges that leave it; none where they would be too many."""
    items = [_Item(i, at, True, [], []) for i, at in enumerate(layer)]
    trunks: list[list[_Item]] = [[] for _ in items]
    spans = {u: max(layer[v] for v in found) - layer[u] - 1 for u, found in enumerate(readers) if found}
    left = WAYPOINTS * len(items)
    for u, span in sorted(spans.items(), key=lambda s: (s[1], s[0])):
        left -= span
        if left >= 0:
            trunks[u] = [_Item(u, layer[u] + k, False, [], []) for k in range(1, span + 1)]
    spine = _spine(layer, reads, readers)
    for u, trunk in enumerate(trunks):
        for above, below in zip([items[u], *trunk], trunk, strict=False):
            _join(above, below, TRUNK if not above.real else 1.0)
        for v in readers[u]:
            steps = layer[v] - layer[u] - 1
            if steps <= len(trunk):
                above = trunk[steps - 1] if steps else items[u]
                _join(above, items[v], SPINE if (u, v) in spine else 1.0)
    return items, trunks


def _join(above: _Item, below: _Item, weight: float) -> None:
    above.down.append((below, weight))
    below.up.append((above, weight))


def _spine(
    layer: Sequence[int], reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]]
) -> set[tuple[int, int]]:
    """Edges of longest paths, at most one into each call and one out of it: they are drawn straight."""
    height = [0] * len(layer)
    for u in reversed(range(len(layer))):
        height[u] = 1 + max((height[v] for v in readers[u]), default=-1)
    onward = {u: max(found, key=lambda v: (height[v], -v)) for u, found in enumerate(readers) if found}
    found: set[tuple[int, int]] = set()
    for v, operands in enumerate(reads):
        near = [u for u in operands if layer[u] == layer[v] - 1 and onward[u] == v]
        if near:
            found.add((near[0], v))
    return found


def _order(rows: Sequence[list[_Item]]) -> None:
    """Sorts each layer by the mean places of neighbours, down and up in turns."""
    for row in rows:
        row.sort(key=lambda i: (i.source, i.real))
        _number(row)
    for turn in range(2 * ROUNDS):
        down = turn % 2 == 0
        for row in rows if down else reversed(rows):
            if len(row) > 1:
                means = {id(i): _mean_order(i, i.up if down else i.down) for i in row}
                row.sort(key=lambda i: (means[id(i)], i.order))
                _number(row)


def _number(row: Sequence[_Item]) -> None:
    """Places between 0 and 1, so that narrow layers and wide ones are alike."""
    for k, item in enumerate(row):
        item.order = (k + 0.5) / len(row)


def _mean_order(item: _Item, near: Sequence[tuple[_Item, float]]) -> float:
    return sum(i.order for i, _ in near) / len(near) if near else item.order


def _place(rows: Sequence[list[_Item]]) -> None:
    """Gives every item its x; see the head of this file."""
    for row in rows:
        total, at = sum(i.room for i in row), 0.0
        for item in row:
            item.x = at + item.room / 2 - total / 2
            at += item.room
    for turn in range(SWEEPS):
        down = turn % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = [_wanted(i, i.up if down else i.down, both=turn >= SWEEPS - 2) for i in row]
            for item, x in zip(row, _apart(row, wanted), strict=True):
                item.x = x


def _wanted(item: _Item, near: Sequence[tuple[_Item, float]], *, both: bool) -> tuple[float, float]:
    """Where an item would be best, and how much that weighs."""
    near = [*item.up, *item.down] if both else near
    most = max((w for _, w in near), default=0.0)
    if not near:
        return item.x, 0.1
    heavy = [
        i.x for i, w in near if w == most
    ]  # a mean with lighter ones would bend long paths a little in every layer
    return sum(heavy) / len(heavy), most


def _apart(row: Sequence[_Item], wanted: Sequence[tuple[float, float]]) -> list[float]:
    """The places nearest to the wanted ones (weighted least squares) that keep the order and the room of each."""
    offsets, at = [], 0.0
    for k, item in enumerate(row):
        at += (row[k - 1].room + item.room) / 2 if k else 0.0
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many items
    for (x, own), offset in zip(wanted, offsets, strict=True):
        mean, weight, count = x - offset, own, 1
        while pools and pools[-1][0] >= mean:
            before, heavy, many = pools.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, count = weight + heavy, count + many
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [m + o for m, o in zip(means, offsets, strict=True)]


def _straighten(trunks: Sequence[Sequence[_Item]], rows: Sequence[Sequence[_Item]]) -> None:
    """Gives waypoints of a trunk that follow each other one x, where their neighbours leave room for one."""
    place = {id(item): k for row in rows for k, item in enumerate(row)}
    for trunk in trunks:
        run: list[_Item] = []
        low, high = -math.inf, math.inf
        for item in trunk:
            row, k = rows[item.layer], place[id(item)]
            left = row[k - 1].x + (row[k - 1].room + item.room) / 2 if k else -math.inf
            right = row[k + 1].x - (row[k + 1].room + item.room) / 2 if k + 1 < len(row) else math.inf
            if run and max(low, left) > min(high, right):
                _align(run, low, high)
                run, low, high = [], -math.inf, math.inf
            run.append(item)
            low, high = max(low, left), min(high, right)
        _align(run, low, high)


def _align(run: Sequence[_Item], low: float, high: float) -> None:
    wanted = sorted(i.x for i in run)[len(run) // 2] if run else 0.0
    for item in run:
        item.x = max(low, min(wanted, high))


def _drawn(
    items: Sequence[_Item], trunks: Sequence[Sequence[_Item]], readers: Sequence[Sequence[int]], rows: Sequence[object]
) -> Layout:
    """In whole pixels, from the upper left corner."""
    every = [*items, *(w for trunk in trunks for w in trunk)]
    left = min((i.x - (WIDTH / 2 if i.real else 0) for i in every), default=0.0)
    right = max((i.x + (WIDTH / 2 if i.real else 0) for i in every), default=0.0)
    step = HEIGHT + ROW_GAP
    middle = {id(i): round(i.x - left) for i in every}
    segments: list[Segment] = []
    for u, trunk in enumerate(trunks):
        way = [(middle[id(items[u])], items[u].layer * step + HEIGHT)]
        ends = [way[0]]
        for item in trunk:
            at, top = middle[id(item)], item.layer * step
            way += [(at, top), (at, top + HEIGHT)]
            ends.append((at, top + HEIGHT))
        segments += [(u, -1, *a, *b) for a, b in _straightened(way)]
        for v in readers[u]:
            steps = items[v].layer - items[u].layer - 1
            start = ends[steps] if steps < len(ends) else ends[0]
            segments.append((u, v, *start, middle[id(items[v])], items[v].layer * step))
    x = tuple(middle[id(i)] - WIDTH // 2 for i in items)
    y = tuple(i.layer * step for i in items)
    height = max(len(rows) * step - ROW_GAP, 0)
    return Layout(x, y, tuple(segments), round(right - left), height, len(rows))


def _straightened(way: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The pieces of a way, runs straight down made one."""
    found: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for a, b in pairwise(way):
        straight = a[0] == b[0]
        if straight and found and found[-1][0][0] == found[-1][1][0] == a[0]:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return found
