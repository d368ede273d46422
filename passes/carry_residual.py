"""relu(B relu(A x) + x) = relu([B I] relu([A; I] x)) for x >= 0: a skip connection rides along as extra channels.

Turns residual sums, concatenations and branches of unequal depth between two points where one tensor is alive into a
chain of layers that carry the skip as extra channels.

A plain network is a machine with one wide register. Between two points where a single tensor is alive, every layer
holds the concatenation of the tensors that are still needed: real weights for what it computes, dirac rows for what it
carries, and sums and concatenations in the columns of the layer that reads them.

Fires on the last merge of a span of the graph that one value enters and one value leaves, when every value in it can be
held in one register: basic and bottleneck blocks, strided and pooled shortcuts, pre-activation, inverted residuals,
dense concatenation, branches of unequal depth, two-stream recurrences. Carried channels pass an activation unchanged
(ReLU of what is never negative), by a slope, bound or gate of their own, or in pairs, x = relu(x) - relu(-x).

Refuses, naming the layer, when something in the span acts on all channels or positions at once (softmax,
normalisation by statistics of the data, a max-pool that the skip does not take), when resolutions differ and cannot be
met exactly, when an activation lets nothing through, or when the chain would cost more than `max_cost` times the
block, with the price.

Options. carry: auto (fewest multiply-accumulates: grouped layers where carried channels fill whole groups), grouped,
dense, split=G (partial sums over G slices, see `plain/partial_sums.py`) or measured (auto or dense, whichever is faster
here). max_pool: keep, or relu to spell max-pools in blocks as max(a, b) = a + relu(b - a). signed: prelu, or relu to
carry signed channels past ReLUs in pairs, at twice the channels and without PReLU. max_cost: of a chain, in
multiply-accumulates of its block.

Source: Meng et al., "RMNet: Equivalently Removing Residual Connection from Networks" (2021), generalised to liveness.

    relu(conv(relu(conv(x))) + x)        becomes        relu(conv(relu(conv(x))))
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from reparam.ir import (
    ACTIVATIONS,
    ADDS,
    BATCH_NORMS,
    CATS,
    CONVS,
    LINEARS,
    MULS,
    SUBS,
    Program,
    Refusal,
    aten,
    batch_one,
    is_call,
    is_float,
    module_of,
    node_macs,
    op_name,
    spelled_out,
)
from reparam.options import PlainOptions
from reparam.plain import (
    PlainChain,
    Span,
    alive_beside,
    around,
    carries_data,
    facts_of,
    lower,
    outermost,
    plan_chain,
    position_of,
    price,
    read_gate,
    read_span,
    why_not,
)
from reparam.rewrite import ANY, Match, Pattern, Rewrite

NAMED = 3  # of the values that stay alive beside a merge

_POINTWISE = frozenset(ACTIVATIONS) | {aten.prelu.default}
_FOLLOWS = _POINTWISE | CONVS | LINEARS | BATCH_NORMS
_LINEAR = ADDS | SUBS | CATS


@dataclass(frozen=True)
class CarryResidual(PlainOptions):
    """Turns spans with merges into chains of layers. Its options are those of the target `plain`."""

    name: ClassVar[str] = "carry-residual"
    pattern: ClassVar[Pattern] = ANY

    def check(self, program: Program, match: Match) -> PlainChain | Refusal | None:
        """Plans the span around this merge; Refusal with the first thing in it that cannot be carried."""
        root = match.root
        if not _is_merge(root):
            return None
        graph = _survey(program, root)
        if root in graph.spelled:
            return None
        span = graph.spans.get(root)
        if is_call(root, MULS) and read_gate(program, root) is not None:
            return Refusal("a squeeze-excite gate multiplies a value by a function of its means; it stays a gate", root)
        plan = self._plan(program, span) if span is not None else Refusal(_alive(program, root))
        if isinstance(plan, Refusal):
            inner = around(root, position_of(program))
            plan = self._plan(program, inner) if inner is not None and inner != span else plan
        if not isinstance(plan, Refusal):
            return plan
        return Refusal(_reason_with_place(plan, root) if root.target in _LINEAR else why_not(root), root)

    def rewrite(self, program: Program, plan: PlainChain) -> Rewrite:
        """The layers of the chain."""
        made = lower(program, plan)
        block = price(program, plan, made)
        return Rewrite({plan.span_values.span.exit: made}, str(block), block.as_dict(), facts_of(program, plan))

    def _plan(self, program: Program, span: Span) -> PlainChain | Refusal:
        refused = program.notes.get(_Refused, _Refused).spans
        place = (span.entry, span.exit)
        if place in refused:
            return refused[place]
        span_values = read_span(program, span, self.max_pool)
        if isinstance(span_values, Refusal):
            refused[place] = span_values
            return span_values
        chain = plan_chain(program, span_values, self)
        chain = self._dear(program, chain) or chain if isinstance(chain, PlainChain) else chain
        if isinstance(chain, Refusal):
            refused[place] = chain
        return chain

    def _dear(self, program: Program, chain: PlainChain) -> Refusal | None:
        """The price of a chain that costs more than it may."""
        env = batch_one(program)
        span = chain.span_values.span
        before, after = sum(node_macs(n, env) for n in span.nodes), chain.layout.macs
        if not before or after <= self.max_cost * before:
            return None
        times = after / before
        return Refusal(
            f"the chain would cost {after:,} multiply-accumulates instead of {before:,}, {times:.0f} times as many; "
            f"--max-cost {math.ceil(times)} takes it",
            span.exit,
        )


def _reason_with_place(refusal: Refusal, root: fx.Node) -> str:
    """The reason, with the place of the call that it speaks of when that is not the merge itself."""
    node = refusal.node
    if node is None or node is root:
        return refusal.reason
    name, place = op_name(node), module_of(node)
    if not place:
        return refusal.reason
    if refusal.reason.startswith(f"{name} "):
        return f"{name} at '{place}'{refusal.reason[len(name) :]}"
    return f"{refusal.reason} ({name} at '{place}')"


def _is_merge(node: fx.Node) -> bool:
    operands = [i for i in node.all_input_nodes if carries_data(i) and is_float(i)]
    return node.op == "call_function" and len(operands) > 1


def _alive(program: Program, root: fx.Node) -> str:
    """What keeps a merge from lying between two points where one value is alive."""
    beside = alive_beside(program, root) or [i for i in root.all_input_nodes if i.op == "placeholder"]
    found = [_place_of(n) for n in beside]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    names = f" ({', '.join(found[:NAMED])}{more})" if found else ""
    return f"other values stay alive beside it{names}, so no one register holds all"


def _place_of(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input '{node.name}'"
    place = module_of(node)
    return f"{op_name(node)} at '{place}'" if place else f"'{node.name}'"


@dataclass
class _Refused:
    """Why spans, by their first and last node, do not become chains."""

    spans: dict[tuple[fx.Node, fx.Node], Refusal] = field(default_factory=dict)


@dataclass(frozen=True)
class _Survey:
    """The graph's merges, the span around each (if any), and the calls inside activations spelled by several calls."""

    merges: frozenset[fx.Node]
    spans: dict[fx.Node, Span]
    spelled: dict[fx.Node, fx.Node]


def _survey(program: Program, node: fx.Node) -> _Survey:
    """The survey, made again when `node` is newer, or when what it says about `node` is out of date."""
    survey = program.notes.find(_Survey)
    if survey is not None and node in survey.merges:
        span = survey.spans.get(node)
        if span is None or not any(program.erased(n) for n in span.nodes):
            if span is not None and program.erased(span.entry):
                survey.spans[node] = Span(_entry(span), span.nodes)
            return survey
    made = _make_survey(program)
    program.notes.put(made)
    return made


def _entry(span: Span) -> fx.Node:
    """The value that enters a span, which may have been rewritten since."""
    inside = set(span.nodes)
    return next(o for n in span.nodes for o in n.all_input_nodes if carries_data(o) and o not in inside)


def _make_survey(program: Program) -> _Survey:
    """A span whose result is linear takes the layer behind it along, see `_tail`."""
    spelled = spelled_out(program)
    merges = {n for n in program.calls() if _is_merge(n)}
    found: dict[fx.Node, Span] = {}
    spans = outermost(program)
    for i, span in enumerate(spans):
        own = [n for n in span.nodes if n in merges and n not in spelled]
        if own:
            found.update(dict.fromkeys(own, Span(span.entry, (*span.nodes, *_tail(spans, i)))))
    return _Survey(frozenset(merges), found, spelled)


def _tail(spans: list[Span], i: int) -> list[fx.Node]:
    """What follows span i up to the next activation, when it is a chain: a layer that could read the parts of a sum."""
    tail: list[fx.Node] = []
    for before, span in itertools.pairwise(spans[i:]):
        if is_call(before.exit, _POINTWISE):
            return tail
        if len(span.nodes) > 1 or span.entry is not before.exit or not is_call(span.exit, _FOLLOWS):
            return []
        tail.append(span.exit)
    return tail if tail and is_call(tail[-1], _POINTWISE) else []


PASS = CarryResidual
PHASE = "plain"
