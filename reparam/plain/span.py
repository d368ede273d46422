"""Spans: the parts of a graph that one value enters and one value leaves.

Between two points where a single tensor is alive, nothing else can be seen from outside, so that the part may be
rewritten as a whole. `outermost` cuts the whole graph at such points; `around` finds the smallest region about one
merge, for what could not be rewritten as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.ir import Program


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


def alive_beside(program: Program, node: fx.Node) -> list[fx.Node]:
    """Values that exist before `node` and are still read after it, in execution order."""
    place = position_of(program)
    here = place[node]
    before = (n for n, at in place.items() if at < here and carries_data(n))
    return [n for n in before if any(place[u] > here for u in n.users)]


def position_of(program: Program) -> dict[fx.Node, int]:
    """Each node's place in execution order."""
    return {n: i for i, n in enumerate(program.graph.nodes)}


def around(node: fx.Node, place: dict[fx.Node, int], limit: int = 400) -> Span | None:
    """The smallest span that holds the merge `node`; None when there is none of at most `limit` calls.

    Its input may be read elsewhere as well: only what lies inside must not be seen from outside.
    """
    sources, leave = _operands(node), node
    for _ in range(limit):
        entry = _dominator(sources, place)
        if entry is None or place[entry] >= place[leave]:
            return None
        body = _between(entry, leave, place, limit)
        if body is None:
            return None
        inside = set(body)
        outside = [o for n in body for o in _operands(n) if o is not entry and o not in inside]
        seen = [n for n in body if n is not leave and any(u not in inside for u in n.users if _matters(u))]
        if not outside and not seen:
            tensors = isinstance(entry.meta["val"], Tensor) and isinstance(leave.meta["val"], Tensor)
            return Span(entry, tuple(body)) if tensors else None
        sources = [entry, *outside]
        if seen:
            later = _post_dominator([*seen, leave], place)
            if later is None or later is leave:
                return None
            leave = later
    return None


def _matters(user: fx.Node) -> bool:
    return user.op == "output" or carries_data(user)


def _between(entry: fx.Node, leave: fx.Node, place: dict[fx.Node, int], limit: int) -> list[fx.Node] | None:
    """The calls that `leave` needs and that lie behind `entry`, in execution order; None when they are too many."""
    found: set[fx.Node] = set()
    stack = [leave]
    while stack:
        n = stack.pop()
        if n in found or n is entry or place[n] <= place[entry]:
            continue
        if n.op != "call_function" or len(found) >= limit:
            return None
        found.add(n)
        stack.extend(_operands(n))
    return sorted(found, key=place.__getitem__)


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if carries_data(n)]


def _dominator(nodes: Sequence[fx.Node], place: dict[fx.Node, int]) -> fx.Node | None:
    """The latest node that every path to `nodes` passes: the frontier is walked back until it is one node."""
    return _meet({n: -place[n] for n in nodes}, lambda n: {o: -place[o] for o in _operands(n)})


def _post_dominator(nodes: Sequence[fx.Node], place: dict[fx.Node, int]) -> fx.Node | None:
    """The earliest call that every path from `nodes` passes."""
    found = _meet({n: place[n] for n in nodes}, lambda n: {u: place[u] for u in n.users if _matters(u)})
    return found if found is not None and found.op == "call_function" else None


def _meet(frontier: dict[fx.Node, int], ahead: Callable[[fx.Node], dict[fx.Node, int]]) -> fx.Node | None:
    """Replaces the first node of the frontier by those ahead of it until one is left; None when a path ends."""
    heap = [(at, i, n) for i, (n, at) in enumerate(frontier.items())]
    heapq.heapify(heap)
    known = set(frontier)
    while len(heap) > 1:
        _, _, node = heapq.heappop(heap)
        following = ahead(node)
        if not following:
            return None
        for n, at in following.items():
            if n not in known:
                known.add(n)
                heapq.heappush(heap, (at, len(known), n))
    return heap[0][2] if heap else None
