"""The network made of the channels that are kept, call by call."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.check import Claim, Slot
from reparam.ir import op_name

from .families import family_that_knows
from .family import Builder, Known
from .following import is_movement
from .movement import calls_of


@dataclass(frozen=True)
class ChannelPlan:
    """What each value keeps of its channels, in which order.

    known: what is known of the channels. rigid: calls that keep all of them, and need all of their operands'. read: all
    that somebody reads, of whatever kind.
    """

    known: Known
    kept: Mapping[fx.Node, Tensor]
    rigid: Set[fx.Node]
    read: Set[fx.Node]

    @property
    def narrowed(self) -> dict[fx.Node, tuple[int, int]]:
        """The values that lose channels, each with how many it had and how many it has."""
        kept = {n: self.kept[n].numel() if n in self.kept else 0 for n in self.known.facts}
        return {n: (f.count, kept[n]) for n, f in self.known.facts.items() if kept[n] < f.count}

    def reads(self, node: fx.Node) -> dict[fx.Node, Tensor]:
        """The channels that a call needs of its operands for what it keeps; none of one that keeps all."""
        if node in self.rigid or node not in self.kept:
            return {}
        ask = family_that_knows(node).ask(self.known, node, self.kept[node])
        return {x: request.ids for x, request in ask.requests.items()}


def reads_size(node: fx.Node) -> bool:
    """Whether the call only reads a size, which is never one of the channels': those are fixed."""
    return op_name(node).startswith("sym_size")


def make(builder: Builder, node: fx.Node, rigid: Set[fx.Node]) -> Any:
    """The call that takes the place of `node`; `node` itself where nothing changes. Raises Conflict."""
    known = builder.known
    facts = known.of(node)
    if facts is None or node in rigid:
        return _copy(builder, node)
    kept = builder.kept[node]
    if not builder.dry and torch.equal(kept, facts.everything) and _untouched(builder, node):
        return node
    return family_that_knows(node).build(builder, node, kept)


def _untouched(builder: Builder, node: fx.Node) -> bool:
    """Whether all that the call reads stays as it is."""
    calls = _calls(builder.known, node)
    reads = {x for n in calls for x in n.all_input_nodes} - set(calls)
    unread = any(x in builder.known.facts and x not in builder.kept for x in reads)
    return not unread and all(builder.held(x) is x for x in reads)


def _calls(known: Known, node: fx.Node) -> tuple[fx.Node, ...]:
    """The old calls that a new one stands for: the call itself, and the one whose results it picks from.

    Of a movement, all that it is made of in one go.
    """
    if node in known.facts and is_movement(node):
        return calls_of(known, node)
    base = node.args[0] if node.target is operator.getitem else node
    return tuple(dict.fromkeys(n for n in (base, node) if isinstance(n, fx.Node)))


def _copy(builder: Builder, node: fx.Node) -> Any:
    """The same call on all channels of its operands, in their own order."""

    def swap(x: fx.Node) -> Any:
        return builder.held(x) if reads_size(node) else builder.whole(x, like=node)

    args, kwargs = fx.node.map_arg(node.args, swap), fx.node.map_arg(node.kwargs, swap)
    if builder.dry or (args == node.args and kwargs == node.kwargs):
        return node
    return builder.call(node.target, args, kwargs, like=node)


def rebuild(plan: ChannelPlan) -> tuple[dict[fx.Node, fx.Node], tuple[Claim, ...]]:
    """Makes every call anew that changes.

    Returns the new value of each output that changes, and for each call what has to hold: on the channels that are
    kept, it gives what it gave.
    """
    known, program = plan.known, plan.known.program
    builder = Builder(known, plan.kept, dry=False)
    claims: list[Claim] = []
    made: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in [n for n in program.calls() if n in plan.read]:
        last = node.prev
        new = make(builder, node, plan.rigid)
        if new is node:
            continue
        builder.new[node] = new
        made[node] = _between(last, node)
        claims.append(_claim(plan, builder, node, made))
    replaced = {}
    for x in program.output.all_input_nodes:
        last = x.prev
        new = builder.whole(x, like=x)
        if new is not x:
            replaced[x] = new
        if new is not builder.held(x):
            claims.append(Claim((), _between(last, x), (_slot(plan, builder, x),), Slot(x, new)))
    return replaced, tuple(claims)


def _between(last: fx.Node, node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that were made before `node`, behind what was `last` before it."""
    made: list[fx.Node] = []
    while node.prev is not last:
        node = node.prev
        made.append(node)
    return tuple(reversed(made))


def _claim(plan: ChannelPlan, builder: Builder, node: fx.Node, made: Mapping[fx.Node, tuple[fx.Node, ...]]) -> Claim:
    old = _calls(plan.known, node)
    reads = dict.fromkeys(x for n in old for x in n.all_input_nodes if x.op != "get_attr" and x not in old)
    new = made[node]
    base = old[-2] if node.target is operator.getitem else node
    for shared in (builder.held(base), builder.shared.get(base)) if base is not node else ():
        if any(shared in n.all_input_nodes for n in new) and shared not in new:
            first = next(nodes for nodes in made.values() if shared in nodes)
            new = (*first[: first.index(shared) + 1], *new)
    inputs = tuple(_slot(plan, builder, x) for x in reads)
    return Claim(old, new, inputs, _slot(plan, builder, node))


def _slot(plan: ChannelPlan, builder: Builder, x: fx.Node) -> Slot:
    facts, new = plan.known.of(x), builder.held(x)
    if facts is None:
        return Slot(x, new)
    kept = plan.kept.get(x, facts.everything)
    return Slot(
        x,
        new,
        impose=facts.impose,
        cut=lambda value: facts.cut(value, kept),
        put=lambda value, held: facts.put(value, kept, held),
        sizes=dict(zip(facts.axes, facts.sizes, strict=True)),
    )
