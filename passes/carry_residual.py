"""relu(B relu(A x) + x) = relu([B I] relu([A; I] x)) for x >= 0: a skip connection rides along as extra channels.

A plain network is a machine with one wide register. Between two points where a single tensor is alive, every layer
holds the concatenation of the tensors that are still needed: real weights for what it computes, dirac rows for what it
carries, and sums and concatenations in the columns of the layer that reads them.

Fires on the last merge of a span of the graph that one value enters and one value leaves, when every value in it can be
held in one register: basic and bottleneck blocks, strided and pooled shortcuts, pre-activation, inverted residuals,
dense concatenation, branches of unequal depth, two-stream recurrences. Carried channels pass an activation unchanged
(ReLU of what is never negative), by a slope, bound or gate of their own, or in pairs, x = relu(x) - relu(-x).

Refuses (Missed), naming the layer, when something in the span acts on all channels or positions at once (softmax,
normalisation by statistics of the data, a max-pool that the skip does not take), when resolutions differ and cannot be
met exactly, or when an activation lets nothing through.

Options. carry: auto (fewest multiply-accumulates: grouped layers where carried channels fill whole groups), grouped,
dense, split=G (partial sums over G slices, see `reparam.splitting`) or measured (auto or dense, whichever is faster
here). max_pool: keep, or relu to spell max-pools in blocks as max(a, b) = a + relu(b - a). signed: prelu, or relu to
carry signed channels past ReLUs in pairs, at twice the channels and without PReLU.

Source: Meng et al., "RMNet: Equivalently Removing Residual Connection from Networks" (2021), generalised to liveness.

    relu(conv(relu(conv(x))) + x)        becomes        relu(conv(relu(conv(x))))
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from reparam.ir.aten import ACTIVATIONS, ADDS, BATCH_NORMS, CATS, CONVS, LINEARS, MULS, SUBS, aten, is_call, op_name
from reparam.ir.cost import spelled_out
from reparam.ir.program import Program, is_float
from reparam.plain.block_report import facts_of, price
from reparam.plain.lowering import Chain, lower
from reparam.plain.plan import plan_chain
from reparam.plain.read_span import read_network
from reparam.plain.register_value import Refusal, why_not
from reparam.plain.span import Span, alive_beside, around, carries_data, outermost, position_of
from reparam.plain.squeeze_excite import read_gate
from reparam.plain.stage import Broken
from reparam.rewrite.rule import ANY, Match, Missed, Pattern, Rewrite

NAMED = 3  # of the values that stay alive beside a merge

_POINTWISE = frozenset(ACTIVATIONS) | {aten.prelu.default}
_FOLLOWS = _POINTWISE | CONVS | LINEARS | BATCH_NORMS
_LINEAR = ADDS | SUBS | CATS


@dataclass(frozen=True)
class CarryResidual:
    """Turns spans with merges into chains of layers.

    carry: auto (fewest multiply-accumulates), dense, grouped, split=G or measured. max_pool: keep, or relu to spell
    them with ReLUs where something has to be carried past them. signed: prelu, or relu to carry signed channels past
    ReLUs as pairs, x = relu(x) - relu(-x).
    """

    carry: str = "auto"
    max_pool: str = "keep"
    signed: str = "prelu"
    name: ClassVar[str] = "carry-residual"
    pattern: ClassVar[Pattern] = ANY

    def check(self, program: Program, match: Match) -> Chain | Missed | None:
        """Plans the span around this merge; Missed with the first thing in it that cannot be carried."""
        root = match.root
        if not _is_merge(root):
            return None
        graph = _survey(program, root)
        if root in graph.spelled:
            return None
        span = graph.spans.get(root)
        if is_call(root, MULS) and read_gate(program, root) is not None:
            return Missed(root, "a squeeze-excite gate multiplies a value by a function of its means; it stays a gate")
        plan = self._plan(program, span) if span is not None else Refusal(root, _alive(program, root))
        if isinstance(plan, Refusal):
            inner = around(root, position_of(program))
            found = self._plan(program, inner) if inner is not None and inner != span else plan
            plan = found if inner is not None else plan
        if not isinstance(plan, Refusal):
            return plan
        return Missed(root, _told(plan, root) if root.target in _LINEAR else why_not(root))

    def rewrite(self, program: Program, plan: Chain) -> Rewrite:
        """The layers of the chain."""
        made = lower(program, plan)
        block = price(program, plan, made)
        return Rewrite({plan.network.span.exit: made}, str(block), block.as_dict(), facts_of(program, plan))

    def _plan(self, program: Program, span: Span) -> Chain | Refusal:
        refused: dict[object, Refusal] = program.cache.setdefault("refused", {})
        known: dict[object, Any] = program.cache.setdefault("schedules", {})
        place = (span.entry, span.exit)
        if place in refused:
            return refused[place]
        network = read_network(program, span, self.max_pool)
        if isinstance(network, Refusal):
            refused[place] = network
            return network
        chain = plan_chain(program, network, self.carry, self.signed, known)
        if isinstance(chain, Broken):
            refused[place] = Refusal(None, chain.reason)
            return refused[place]
        return chain


def _told(refusal: Refusal, root: fx.Node) -> str:
    """The reason, with the place of the call that it speaks of when that is not the merge itself."""
    node = refusal.node
    if node is None or node is root:
        return refusal.reason
    name, place = op_name(node), node.meta.get("module")
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
    place = node.meta.get("module")
    return f"{op_name(node)} at '{place}'" if place else f"'{node.name}'"


@dataclass(frozen=True)
class _Survey:
    """The graph's merges, the span around each (if any), and the calls inside activations spelled by several calls."""

    merges: frozenset[fx.Node]
    spans: dict[fx.Node, Span]
    spelled: dict[fx.Node, fx.Node]


def _survey(program: Program, node: fx.Node) -> _Survey:
    """The survey, made again when `node` is newer, or when what it says about `node` is out of date."""
    survey: _Survey | None = program.cache.get("survey")
    if survey is not None and node in survey.merges:
        span = survey.spans.get(node)
        if span is None or not any(n._erased for n in span.nodes):
            if span is not None and span.entry._erased:
                survey.spans[node] = Span(_entry(span), span.nodes)
            return survey
    program.cache["survey"] = made = _make_survey(program)
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
