"""Which channels of each value are needed, in which order, and the network made of those alone.

Facts are found from the inputs on. Then every value is asked, from the outputs back, what its readers need of it: the
union is what it keeps, in the order that spares most gathers. Where a call cannot be made from what its operands keep,
it keeps more, and the question is put again; the sets only grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from reparam.ir import WEIGHTED, Program, is_call

from .concatenation import is_concatenation
from .families import family_of, family_that_knows
from .family import PAYS, Builder, Conflict, Known, Request
from .movement import go_direct
from .pointwise import sum_parts
from .rebuild import ChannelPlan, make, reads_size
from .value import unique

_PATIENCE = 50


def facts_of(program: Program, pays: float = PAYS) -> Known:
    """What is known of the channels of every value of a program."""
    known = Known(program, pays)
    for node in program.calls():
        family = family_of(node)
        found = family.channels(known, node) if family is not None else None
        program.give_back(node)
        if found is not None:
            known.facts[node] = found
    return known


@dataclass
class _Wishes:
    """What readers need of one value: those in a fixed order first."""

    ordered: list[Tensor] = field(default_factory=list)
    free: list[Tensor] = field(default_factory=list)

    def add(self, request: Request) -> None:
        (self.ordered if request.ordered else self.free).append(request.ids)

    @property
    def ids(self) -> Tensor:
        rest = torch.cat(self.free).sort().values if self.free else torch.empty(0, dtype=torch.int64)
        return unique(torch.cat([*self.ordered, rest]))


def plan_channels(program: Program, pays: float = PAYS) -> ChannelPlan:
    """The smallest sets of channels from which the whole network can be made, see above.

    pays: how many multiply-accumulates have to be spared for each element of a sum that is made in parts.
    """
    known = facts_of(program, pays)
    more: dict[fx.Node, Tensor] = {}
    rigid: set[fx.Node] = set()
    for _ in range(_PATIENCE):
        plan = _needed(known, more, rigid)
        builder = Builder(known, plan.kept, dry=True)
        conflicts = [c for n in program.calls() if n in plan.read and (c := _conflict(builder, n, rigid)) is not None]
        if not conflicts:
            return plan
        for conflict in conflicts:
            _give_in(known, plan.kept, conflict, more, rigid)
    return ChannelPlan(known, {n: f.everything for n, f in known.facts.items()}, set(known.facts), set(program.calls()))


def _give_in(
    known: Known, kept: Mapping[fx.Node, Tensor], conflict: Conflict, more: dict[fx.Node, Tensor], rigid: set[fx.Node]
) -> None:
    """Lets a movement be made directly of a value further up, or a value keep what it has to.

    A call that would be asked for nothing new keeps all, and needs all.
    """
    value, ids = conflict.value, conflict.ids
    if go_direct(known, value):
        return
    if value in known.facts and ids is not None and not bool(torch.isin(ids, kept[value]).all()):
        more[value] = unique(torch.cat([more[value], ids])) if value in more else ids
    else:
        rigid.add(value)


def _conflict(builder: Builder, node: fx.Node, rigid: set[fx.Node]) -> Conflict | None:
    try:
        make(builder, node, rigid)
    except Conflict as conflict:
        value, ids = conflict.value, conflict.ids
        if ids is None or value not in builder.kept or not bool(torch.isin(ids, builder.kept[value]).all()):
            return conflict
        return Conflict(node)
    return None


def _needed(known: Known, more: Mapping[fx.Node, Tensor], rigid: Set[fx.Node]) -> ChannelPlan:
    """What each value keeps when every call is asked once, from the outputs back. What nobody reads has no entry."""
    wishes: dict[fx.Node, _Wishes] = {}
    kept: dict[fx.Node, Tensor] = {}
    for node in reversed(list(known.program.graph.nodes)):
        facts, wish = known.of(node), wishes.get(node)
        if wish is None and node.op != "output":
            continue
        requests: Mapping[fx.Node, Request] = {}
        unread: frozenset[fx.Node] = frozenset()
        if facts is not None and (wish is None or node in rigid):
            kept[node] = facts.everything
        elif facts is not None and wish is not None:
            if node in more:
                wish.add(Request(more[node]))
            wanted = wish.ids if len(wish.ids) else torch.zeros(1, dtype=torch.int64)
            if len(wanted) == facts.count and not is_call(node, WEIGHTED):
                wanted = wanted.sort().values  # nothing is gained by another order, and others would have to follow it
            elif not wish.ordered:
                wanted = _as_made(known, node, wanted)
            ask = family_that_knows(node).ask(known, node, wanted)
            kept[node], requests, unread = ask.kept, ask.requests, ask.unread
        for x in node.all_input_nodes:
            request = requests.get(x) or Request(_everything(known, x, node), ordered=True)
            if x not in known.facts and x not in unread:
                wishes.setdefault(x, _Wishes())
            elif x in known.facts and len(request.ids):
                wishes.setdefault(x, _Wishes()).add(request)
        for x, request in requests.items():  # a value that is picked from, behind the call that makes several
            if x not in node.all_input_nodes and len(request.ids):
                wishes.setdefault(x, _Wishes()).add(request)
    return ChannelPlan(known, kept, frozenset(rigid), wishes.keys())


def _everything(known: Known, x: fx.Node, reader: fx.Node) -> Tensor:
    """All channels of an operand; the first, if only a size is read."""
    facts = known.of(x)
    if facts is None:
        return torch.empty(0, dtype=torch.int64)
    return torch.zeros(1, dtype=torch.int64) if reads_size(reader) else facts.everything.flatten()


def _as_made(known: Known, node: fx.Node, wanted: Tensor) -> Tensor:
    """Channels that may come in any order, in the order in which the sum or concatenation that makes them has them."""
    while True:
        operands = [x for x in node.all_input_nodes if x in known.facts]
        if is_concatenation(node) or len(known.facts[node].axes) > 1:
            return wanted
        parts = sum_parts(known, node, wanted)
        if parts is not None:
            return torch.cat(parts)
        if not operands or is_call(node, WEIGHTED) or known.facts[operands[0]].sizes != known.facts[node].sizes:
            return wanted
        node = operands[0]
