"""Regions: the parts of a graph that one value enters and one value leaves.

Between two points where a single tensor is alive, nothing else can be seen from outside, so that the part may be
rewritten as a whole. `outermost` cuts the whole graph at such points; `within` finds the smallest region around one
node, for the parts of a region that could not be rewritten as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .program import Program


@dataclass(frozen=True)
class Span:
    """Call nodes in execution order; `entry` is the one value they read from outside, the last node the one read."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def exit(self) -> fx.Node:
        return self.nodes[-1]


def carries_data(node: fx.Node) -> bool:
    """True for a value that depends on the inputs and is no mere size."""
    value = node.meta.get("val")
    return bool(node.meta.get("data")) and not isinstance(value, (int, float, torch.SymInt, torch.SymFloat))


def outermost(program: Program) -> list[Span]:
    """The spans between consecutive nodes at which a single value is alive, in execution order."""
    nodes = [n for n in program.graph.nodes if n.op == "output" or carries_data(n)]
    last = {o: i for i, n in enumerate(nodes) for o in n.all_input_nodes}
    spans: list[Span] = []
    entry: fx.Node | None = None
    since: list[fx.Node] = []
    alive: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        for operand in node.all_input_nodes:
            if last.get(operand) == i:
                alive.discard(operand)
        alive.add(node)
        since.append(node)
        if len(alive) == 1 and isinstance(node.meta["val"], Tensor):
            if entry is not None and all(n.op == "call_function" for n in since):
                spans.append(Span(entry, tuple(since)))
            entry, since = node, []
    return spans


def position_of(program: Program) -> dict[fx.Node, int]:
    """Each node's place in execution order."""
    return {n: i for i, n in enumerate(program.graph.nodes)}


def within(span: Span, node: fx.Node, place: dict[fx.Node, int]) -> Span | None:
    """The smallest span around `node` inside `span`; None when that is `span` itself."""
    inside = set(span.nodes)
    low, high = _operands(node), node
    while True:
        entry = _dominator(low, inside | {span.entry}, place)
        if entry is None:
            return None
        leave = _post_dominator([entry], inside, place)
        if leave is None:
            return None
        if place[leave] < place[high]:
            leave = _post_dominator([entry, high], inside, place)
            if leave is None:
                return None
        body = [n for n in span.nodes if place[entry] < place[n] <= place[leave] and _between(n, entry, place)]
        outside = [o for n in body for o in _operands(n) if o is not entry and o not in set(body)]
        if not outside:
            break
        low, high = [entry, *outside], leave
    if not body or (entry is span.entry and leave is span.exit):
        return None
    tensors = isinstance(entry.meta["val"], Tensor) and isinstance(leave.meta["val"], Tensor)
    return Span(entry, tuple(body)) if tensors and body[-1] is leave else None


def _between(node: fx.Node, entry: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether `node` depends on `entry` (by values that lie behind it)."""
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n is entry:
            return True
        if n in seen or place[n] < place[entry]:
            continue
        seen.add(n)
        stack.extend(_operands(n))
    return False


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if carries_data(n)]


def _dominator(nodes: Sequence[fx.Node], allowed: set[fx.Node], place: dict[fx.Node, int]) -> fx.Node | None:
    """The latest node that every path to `nodes` passes: the frontier is walked back until it is one node."""
    frontier = set(nodes)
    heap = [-place[n] for n in frontier]
    by_place = {place[n]: n for n in frontier}
    heapq.heapify(heap)
    while len(frontier) > 1:
        node = by_place[-heapq.heappop(heap)]
        frontier.discard(node)
        operands = _operands(node)
        if node not in allowed or not operands:
            return None
        for o in operands:
            if o not in frontier:
                frontier.add(o)
                by_place[place[o]] = o
                heapq.heappush(heap, -place[o])
    only = next(iter(frontier), None)
    return only if only in allowed else None


def _post_dominator(nodes: Iterable[fx.Node], allowed: set[fx.Node], place: dict[fx.Node, int]) -> fx.Node | None:
    """The earliest node that every path from `nodes` passes."""
    start = list(nodes)
    frontier = {u for n in start for u in n.users if carries_data(u) or u.op == "output"}
    heap = [place[n] for n in frontier]
    by_place = {place[n]: n for n in frontier}
    heapq.heapify(heap)
    while len(frontier) > 1:
        node = by_place[heapq.heappop(heap)]
        frontier.discard(node)
        if node not in allowed:
            return None
        for u in node.users:
            if u not in frontier and (carries_data(u) or u.op == "output"):
                frontier.add(u)
                by_place[place[u]] = u
                heapq.heappush(heap, place[u])
    only = next(iter(frontier), None)
    return only if only in allowed else None
