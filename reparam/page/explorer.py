"""The graphs as Google's Model Explorer reads them: JSON of nodes in namespaces, and overlays that colour the nodes.

A node's namespace is the path of its layer. Identifiers are made here and hold nothing that came from a file: where a
call of the one graph became one of the other, the two have the same one, which Model Explorer follows between panes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reparam.compare import diff_calls
from reparam.ir import Program
from reparam.report import Remark
from reparam.utils import one_line

from .comparisons import Shown, calls_of, graph_of, names_of_calls
from .graph import Call, Graph, by_module, prefixes, read_program
from .links import Links, links_of_diff, links_of_remarks
from .stages import figures
from .view import DIFFERENT, REWRITTEN, shortened
from .words import figure

Json = dict[str, Any]
Rewrites = Mapping[str, Sequence[Remark]]  # by the name of a call

# Colours of a difference in float64, up to which each goes; what is larger than the last has the last.
DECADES = (
    (0.0, "#e6f4ea"),
    (1e-16, "#ceead6"),
    (1e-14, "#fef7e0"),
    (1e-12, "#fde293"),
    (1e-9, "#fcad70"),
    (1e300, "#ee675c"),
)
SHADES = ((0.0, "#ffffff"), (1.0, "#669df6"))
STATUS_COLOURS = {"same": "#ffffff", "weights": "#d2e3fc", "changed": "#aecbfa", "gone": "#fdd663", "new": "#a8dab5"}
MOST = 20  # remarks of one node


@dataclass(frozen=True)
class Exploration:
    """What Model Explorer is given.

    label: of the collection of graphs. graphs: one or two, in its JSON. overlays: by their names, of which each holds
    the figures of some nodes by the identifiers of graph and node.
    """

    label: str
    graphs: tuple[Json, ...]
    overlays: Mapping[str, Json] = field(default_factory=dict)

    @property
    def collection(self) -> Json:
        """What a file of graphs holds."""
        return {"label": self.label, "graphs": list(self.graphs)}


@dataclass(frozen=True)
class _Side:
    """A graph, what it is called, its nodes' identifiers by the names of the calls, and what became of each of them.

    rewrites: remarks on the rewrites that are about a call. words: for what became of a call.
    """

    title: str
    graph: Graph
    ids: Mapping[str, str]
    statuses: Mapping[str, str] = field(default_factory=dict)
    rewrites: Rewrites = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def status(self, call: Call) -> tuple[str, str] | None:
        """What became of a call, and the colour of that."""
        found = self.statuses.get(call.name)
        return None if found is None else (self.words.get(found, "unchanged"), STATUS_COLOURS[found])


def explore(name: str, shown: Shown) -> Exploration:
    """One model. shown: its program, or the calls that its file lists."""
    graph = graph_of(shown)
    side = _Side(_title(name), graph, {c.name: f"call{i}" for i, c in enumerate(graph.calls)})
    return _exploration(side.title, (side,))


def explore_two(names: tuple[str, str], a: Shown, b: Shown) -> Exploration:
    """Two models, aligned as `diff` aligns them."""
    links = links_of_diff(diff_calls(calls_of(a), calls_of(b)), names_of_calls(a), names_of_calls(b))
    first, second = map(_title, names)
    sides = _sides((f"A: {first}", f"B: {second}"), (graph_of(a), graph_of(b)), links, dict(DIFFERENT))
    return _exploration(f"{first} and {second}", sides)


def explore_rewrites(name: str, before: Program, after: Program, remarks: Sequence[Remark]) -> Exploration:
    """A model and what it was rewritten into, with the measured error of every rewrite.

    remarks: of the conversion or the dry run; programs and remarks call nodes by the same names.
    """
    left, right = read_program(before), read_program(after)
    links = links_of_remarks(left, right, remarks)
    sides = _sides(("before", "after"), (left, right), links, dict(REWRITTEN))
    numbers = (links.before, links.after)
    told = [replace(s, rewrites=_rewrites(s.graph, n, links, remarks)) for s, n in zip(sides, numbers, strict=True)]
    return _exploration(_title(name), told)


# ---- which rewrites made or replaced a call -----------------------------------------------------------------------


def _rewrites(graph: Graph, numbers: Mapping[str, int], links: Links, remarks: Sequence[Remark]) -> Rewrites:
    """The remarks on accepted rewrites by the names of the calls of one graph that they are about.

    numbers: of the graph's calls, which calls belong together. A rewrite of one region is about all of that region.
    """
    names = {c.name for c in graph.calls}
    regions: dict[int, list[str]] = {}
    for name, number in numbers.items():
        regions.setdefault(number, []).append(name)
    found: dict[str, list[Remark]] = {}
    for remark, region in zip(remarks, links.remarks, strict=True):
        if remark.kind == "passed":
            own = [n for old, new in remark.links for n in (*old, *new) if n in names]
            for name in dict.fromkeys([*own, *(regions.get(region, ()) if region is not None else ())]):
                found.setdefault(name, []).append(remark)
    return found


# ---- graphs ------------------------------------------------------------------------------------------------------


def _title(name: str) -> str:
    return shortened(one_line(Path(name).name or name))


def _sides(
    titles: tuple[str, str], graphs: tuple[Graph, Graph], links: Links, words: Mapping[str, str]
) -> tuple[_Side, _Side]:
    """The first call of each link has the link's identifier on both sides; the others have one of their own."""
    made = []
    for letter, title, graph, numbers, statuses in zip(
        "ab",
        titles,
        graphs,
        (links.before, links.after),
        (links.status_before, links.status_after),
        strict=True,
    ):
        ids: dict[str, str] = {}
        taken: set[int] = set()
        for i, call in enumerate(graph.calls):
            number = numbers.get(call.name)
            ids[call.name] = f"{letter}{i}" if number is None or number in taken else f"link{number}"
            if number is not None:
                taken.add(number)
        made.append(_Side(title, graph, ids, statuses, words=words))
    return made[0], made[1]


def _exploration(label: str, sides: Sequence[_Side]) -> Exploration:
    return Exploration(label, tuple(map(_graph, sides)), _overlays(sides))


def _graph(side: _Side) -> Json:
    groups = {_namespace(path): _totals(calls, side.graph) for path, calls in by_module(side.graph).items()}
    nodes = [_node(call, side) for call in side.graph.calls]
    return {"id": side.title, "nodes": nodes, "groupNodeAttributes": groups}


def _totals(calls: list[Call], graph: Graph) -> dict[str, str]:
    found = figures(calls)
    told = {"calls": found.calls, "merges": found.merges, "gates": found.gates, "parameters": found.params}
    return {k: f"{v:,}" for k, v in (told | ({"MACs": found.macs} if graph.costs else {})).items()}


def _node(call: Call, side: _Side) -> Json:
    reads = [side.ids[r] for r in call.reads if r in side.ids]
    node: Json = {
        "id": side.ids[call.name],
        "label": shortened(call.op) or "call",
        "namespace": _namespace(call.module),
        "attrs": [{"key": k, "value": v} for k, v in _attributes(call, side)],
        "incomingEdges": [
            {"sourceNodeId": r, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)} for i, r in enumerate(reads)
        ],
    }
    if call.shape:
        value = shortened(f"{call.dtype}[{call.shape}]" if call.dtype else f"[{call.shape}]")
        node["outputsMetadata"] = [{"id": "0", "attrs": [{"key": "tensor_shape", "value": value}]}]
    return node


def _attributes(call: Call, side: _Side) -> list[tuple[str, str]]:
    status = side.status(call)
    found = [
        ("layer", shortened(call.module)),
        ("kind", call.kind),
        ("settings", shortened(call.settings)),
        ("shape", shortened(call.shape)),
        ("dtype", shortened(call.dtype)),
        ("MACs", f"{call.macs:,}" if call.macs else ""),
        ("parameters", f"{call.params:,}" if call.params else ""),
        ("status", status[0] if status else ""),
    ]
    for weight in call.weights:
        ends = "" if weight.low is None or weight.high is None else f", from {weight.low:.4g} to {weight.high:.4g}"
        found.append((shortened(f"weight {weight.name}"), f"{weight.shape} {weight.dtype}{ends}"))
    for number, remark in enumerate(side.rewrites.get(call.name, ())[:MOST], 1):
        bound = "" if remark.bound is None else f", bound {figure(remark.bound)}"
        told = f"{remark.rule}: {remark.message} (error {figure(remark.max_abs)}{bound})"
        found.append((f"rewrite {number}", shortened(one_line(told))))
    return [(k, v) for k, v in found if v]


def _namespace(module: str) -> str:
    """`stage.0.conv1` -> `stage/0/conv1`; empty parts are left out, and what would start a new part is replaced."""
    path = (prefixes(module) or [""])[-1]
    return "/".join(shortened(p.replace("/", "\N{DIVISION SLASH}").replace(";", ",")) for p in path.split(".") if p)


# ---- overlays ----------------------------------------------------------------------------------------------------


def _overlays(sides: Sequence[_Side]) -> dict[str, Json]:
    """By their names, those that say anything; Model Explorer shows the last one first."""
    shaded: Json = {"gradient": [{"stop": stop, "bgColor": colour} for stop, colour in SHADES]}
    steps: Json = {"thresholds": [{"value": value, "bgColor": colour} for value, colour in DECADES]}
    apart: Json = {"hideAggregatedStats": ["sum", "avg"]}  # of errors neither means anything
    made: dict[str, tuple[list[dict[str, Json]], Json]] = {
        "parameters": ([_counts(s, lambda c: c.params) for s in sides], shaded),
        "MACs": ([_counts(s, lambda c: c.macs) for s in sides], shaded),
        "change": ([_changes(s) for s in sides], {}),
        "share of bound": ([_worst(s, _share) for s in sides], shaded | apart),
        "error": ([_worst(s, lambda r: r.max_abs) for s in sides], steps | apart),
    }
    found = {name: _overlay(name, sides, values, style) for name, (values, style) in made.items()}
    return {name: overlay for name, overlay in found.items() if overlay}


def _overlay(name: str, sides: Sequence[_Side], values: Sequence[Mapping[str, Json]], style: Json) -> Json:
    return {s.title: {"name": name, "results": v, **style} for s, v in zip(sides, values, strict=True) if v}


def _counts(side: _Side, of: Callable[[Call], int]) -> dict[str, Json]:
    return {side.ids[c.name]: {"value": of(c)} for c in side.graph.calls if of(c)}


def _changes(side: _Side) -> dict[str, Json]:
    told = {side.ids[c.name]: side.status(c) for c in side.graph.calls}
    return {i: {"value": found[0], "bgColor": found[1]} for i, found in told.items() if found is not None}


def _worst(side: _Side, of: Callable[[Remark], float | None]) -> dict[str, Json]:
    """For each node the largest figure of the rewrites that it is about."""
    found = {}
    for name, remarks in side.rewrites.items():
        known = [v for v in map(of, remarks) if v is not None and math.isfinite(v)]
        if known:
            found[side.ids[name]] = {"value": float(f"{max(known):.3g}")}
    return found


def _share(remark: Remark) -> float | None:
    return remark.max_abs / remark.bound if remark.bound and remark.max_abs is not None else None
