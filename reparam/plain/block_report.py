"""What a chain costs against the span that it replaces, and what was assumed of the values that it carries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from reparam.ir import Interval, Program, batch_one, module_of, node_macs, op_name, ranges_of

from .linear_form import RegisterValue
from .lowering import PlainChain
from .partial_sums import Split
from .span import carries_data

_WAYS = {"slopes": "by slopes", "bounds": "by bounds", "gates": "by gates"}


@dataclass(frozen=True)
class Block:
    """The price of one span. Multiply-accumulates are for one sample; parameters are those that it reads.

    module: the longest module path that its calls share. groups: of each layer. carry: "split" when layers are cut
    into partial sums, "grouped" when any layer runs in groups, else "dense". carried: how values pass activations:
    unchanged, by slopes, bounds or gates, in pairs. milliseconds: of each way to carry that was measured here.
    """

    module: str
    layers: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    groups: tuple[int, ...]
    carry: str
    carried: tuple[str, ...]
    milliseconds: tuple[tuple[str, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        rows = {"groups": list(self.groups), "carried": list(self.carried), "milliseconds": dict(self.milliseconds)}
        return asdict(self) | rows

    def __str__(self) -> str:
        grouped = ", ".join(str(g) for g in self.groups if g > 1)
        ratio = f", {self.macs_after / self.macs_before:.2f} x the multiply-accumulates" if self.macs_before else ""
        count = f"a chain of {self.layers} layer{'s' if self.layers != 1 else ''}"
        clock = " against ".join(f"{way} {ms:.2f} ms" for way, ms in self.milliseconds)
        return f"{count}{ratio}{f', grouped {grouped}' if grouped else ''}{f'; measured {clock}' if clock else ''}"


def price(program: Program, chain: PlainChain, made: fx.Node) -> Block:
    """Of a chain whose result is the new node `made`."""
    span, groups = chain.span_values.span, chain.layout.groups
    new = _back_to(span.entry, made)
    env = batch_one(program)
    return Block(
        module=_path(span.nodes),
        layers=len(groups),
        macs_before=sum(node_macs(n, env) for n in span.nodes),
        macs_after=sum(node_macs(n, env) for n in new),
        params_before=_parameters(program, span.nodes),
        params_after=_parameters(program, new),
        groups=groups,
        carry="split" if isinstance(chain.layout, Split) else "grouped" if any(g > 1 for g in groups) else "dense",
        carried=tuple(dict.fromkeys(way for ways in _ways(chain).values() for way in ways)),
        milliseconds=tuple((way, 1e3 * seconds) for way, seconds in chain.seconds),
    )


def _path(nodes: Sequence[fx.Node]) -> str:
    """Of the calls up to the last merge: what follows it is another block's."""
    merges = [i for i, n in enumerate(nodes) if len([o for o in n.all_input_nodes if carries_data(o)]) > 1]
    own = nodes[: merges[-1] + 1] if merges else nodes
    return shared_path(module_of(n) for n in own)


def shared_path(paths: Iterable[str]) -> str:
    """The longest module path that begins all of `paths`; those without a path do not count."""
    split = [p.split(".") for p in paths if p]
    if not split:
        return ""
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def facts_of(program: Program, chain: PlainChain) -> tuple[str, ...]:
    """One sentence for each value of the input and each carried one: its range, and how it passes activations."""
    ranges = ranges_of(program)
    ways = _ways(chain)
    told = dict.fromkeys((*chain.span_values.inputs, *ways))
    rows: dict[str, None] = {}
    for value in told:
        place = _called(value.node)
        low, high = ranges.of(value.node)
        interval = _interval((max(low, value.low), high))
        how = ways.get(value)
        text = f"carried past activations {' and '.join(how)}" if how else "not carried past an activation"
        name = f"the input ({place})" if value.kind == "input" else place
        rows[f"{name} lies in {interval}; it is {text}"] = None
    return tuple(rows)


def _called(node: fx.Node) -> str:
    """`relu at 'layer1.0'`; the node's own name where no module made it."""
    if node.op != "call_function" or not module_of(node):
        return f"'{node.name}'"
    return f"{op_name(node)} at '{node.meta['module']}'"


def _ways(chain: PlainChain) -> dict[RegisterValue, tuple[str, ...]]:
    """For each value that passes an activation which is not its own: how it does so."""
    values = chain.span_values.values
    found: dict[RegisterValue, dict[str, None]] = {}
    for stage in chain.schedule.stages:
        if stage.joint.family == "linear":
            continue
        own = {v for v, _ in stage.forms if v.act.family != "linear"}
        for v in stage.after:
            if v in own:
                continue
            pair = v.index >= len(values)  # a twin, see `signed_pairs`
            way = "in pairs" if pair else _WAYS[stage.joint.family] if stage.joint.parametric else "unchanged"
            found.setdefault(values[v.index - len(values)] if pair else v, {})[way] = None
    return {v: tuple(ways) for v, ways in found.items()}


def _interval(ends: Interval) -> str:
    low, high = ends
    left = f"[{low:g}" if math.isfinite(low) else "(-inf"
    return f"{left}, {high:g}]" if math.isfinite(high) else f"{left}, inf)"


def _back_to(entry: fx.Node, made: fx.Node) -> list[fx.Node]:
    """The calls between `entry` and `made`."""
    found: dict[fx.Node, None] = {}
    stack = [made]
    while stack:
        n = stack.pop()
        if n is entry or n in found or not carries_data(n):
            continue
        found[n] = None
        stack.extend(n.all_input_nodes)
    return list(found)


def _parameters(program: Program, nodes: Sequence[fx.Node]) -> int:
    """Of the floating constants that `nodes` read, each counted once."""
    seen: set[fx.Node] = set()
    stack = [i for n in nodes for i in n.all_input_nodes if not carries_data(i)]
    names = set()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        stack.extend(i for i in n.all_input_nodes if not carries_data(i))
        if program.constant(n) is not None:
            names.add(str(n.target))
    values = [program.constants[name].value for name in names]
    return sum(v.numel() for v in values if v.is_floating_point())
