"""[A*x + D*x; B*x] = [A + D; B] * x: sums and concatenations of parts of linear maps of one value are one layer.

Turns a convolution that is added to some channels of another one, layers side by side, and one channel that is added to
all channels of a layer into one layer.

Fires on a sum, difference or concatenation behind which lie only layers, sums, concatenations, splits, slices, average
pools and channel affines, down to one value that all of them come from, when nothing in between is read elsewhere, and
when the one layer costs no more multiply-accumulates than those that it replaces.

Refuses such parts whose kernels together would cost more, with the numbers; whose strides or output sizes differ; whose
bias would meet the zero padding of a layer behind it.

Source: linearity; block matrices. Branches of whole sums are those of `merge_branches`.

    y = conv3x3(x); y[:, :2] += conv1x1(x)        becomes        y = conv3x3'(x)
"""

from __future__ import annotations

import heapq
import operator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.algebra import Affine, read_affine, read_layer, read_picks
from reparam.ir import (
    ADDS,
    AVG_POOLS,
    CATS,
    PADS,
    SLICES,
    SPLITS,
    SUBS,
    Program,
    Refusal,
    batch_one,
    is_call,
    is_float,
    is_tensor,
    node_macs,
)
from reparam.plain import PlainChain, Span, carries_data, lower, plan_layer, read_span
from reparam.rewrite import Match, Pattern, Rewrite, op

MOST = 200  # calls in a span

_STRUCTURE = ADDS | SUBS | CATS | SLICES | SPLITS | AVG_POOLS | PADS | {operator.getitem}


@dataclass(frozen=True)
class MergeParts:
    """Writes linear maps of parts of the channels of one value as one layer."""

    name: ClassVar[str] = "merge-parts"
    pattern: ClassVar[Pattern] = op(ADDS | SUBS | CATS)

    def check(self, program: Program, match: Match) -> PlainChain | Refusal | None:
        """The smallest span that ends here; Refusal where its layers do not become one."""
        span = _span(program, match.root)
        if span is None:
            return None
        env = batch_one(program)
        before = sum(node_macs(n, env) for n in span.nodes)
        if not before:
            return None
        made = _layer(program, span)
        if isinstance(made, Refusal):
            return Refusal(f"its parts do not become one layer: {made.reason}", match.root)
        if made.layout.macs > before:
            cost = f"{made.layout.macs:,} multiply-accumulates instead of {before:,}"
            return Refusal(f"its parts as one layer would cost {cost}", match.root)
        return made

    def rewrite(self, program: Program, plan: PlainChain) -> Rewrite:
        """The layer in place of the span."""
        span = plan.span_values.span
        layers = sum(read_layer(program, n) is not None for n in span.nodes)
        parts = f"{layers} layers and their parts" if layers > 1 else "a layer and what is added to it"
        return Rewrite({span.exit: lower(program, plan)}, f"{parts} became one layer")


def _layer(program: Program, span: Span) -> PlainChain | Refusal:
    """The span as one layer, with the channels that its only reader takes of it, in their order, where there is one."""
    for whole in (_with_picks(program, span), span):
        values = read_span(program, whole)
        made = values if isinstance(values, Refusal) else plan_layer(values)
        if isinstance(made, PlainChain):
            break
    return made


def _with_picks(program: Program, span: Span) -> Span:
    readers = list(span.exit.users)
    picked = len(readers) == 1 and read_picks(program, readers[0]) is not None
    return Span(span.entry, (*span.nodes, readers[0])) if picked else span


def _span(program: Program, root: fx.Node) -> Span | None:
    """What lies between a merge and the nearest value that all of its operands come from by linear calls alone."""
    if not is_float(root) or len(_operands(root)) < 2:
        return None
    inside = {root}
    ahead: set[fx.Node] = set()
    heap: list[_Later] = []
    ends: set[fx.Node] = set()  # not linear in others; of several, none comes from another one by linear calls

    def add(operands: list[fx.Node]) -> None:
        for o in operands:
            if o not in ahead:
                ahead.add(o)
                heapq.heappush(heap, _Later(o))
                if not _is_linear(program, o):
                    ends.add(o)

    add(_operands(root))
    while len(heap) > 1 or not is_tensor(heap[0].node):  # a list of pieces is no value by itself
        node = heapq.heappop(heap).node
        if len(ends) > 1 or node in ends or len(inside) == MOST or any(u not in inside for u in node.users):
            return None
        inside.add(node)
        add(_operands(node))
    return Span(heap[0].node, tuple(sorted(inside)))


@dataclass(frozen=True)
class _Later:
    """A node of which the last in the graph comes first."""

    node: fx.Node

    def __lt__(self, other: _Later) -> bool:
        return other.node < self.node


def _is_linear(program: Program, node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if is_call(node, _STRUCTURE) or read_layer(program, node) is not None or read_picks(program, node) is not None:
        return True
    return isinstance(read_affine(program, node), Affine)


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if carries_data(n)]


PASS = MergeParts
PHASE = "rest"
