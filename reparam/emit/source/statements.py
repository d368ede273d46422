"""The statements of the written `forward` and the variables that they use.

A value that one call reads takes over that call's variable, so that a chain reads x = ..., x = ... A second value that
is alive at the same time gets a short name: from its module path where that tells it apart, else y, z, ...
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ACTIVATIONS,
    ADDS,
    IDENTITIES,
    MOVEMENTS,
    MULS,
    SUBS,
    WEIGHTED,
    Program,
    aten,
    is_call,
    module_of,
    op_name,
)

from .expressions import is_name
from .naming import Naming, leaves, operands
from .signature import results

MAIN = "x"
_VAGUE = frozenset(
    {"l", "o", "i", "layers", "layer", "blocks", "conv", "net", "body", "module", "features", "stages", "model"}
)
POOL = ("y", "z", "u", "v", "w", "a", "b", "c", "d")
RESERVED = frozenset(
    {"self", "torch", "nn", "F", "Tensor", "Block", "block", "math", "operator", "load", "read_weights", "Path", "json"}
    | {"float", "complex", "OrderedDict", "super", "getattr", "setattr", "str", "int", "tuple", "list", "dict", "bool"}
    | {"round"}
)
_VIEWS = (MOVEMENTS | IDENTITIES) - {operator.getitem, aten.roll.default, aten.reshape_as.default}
_DEPTH = 4  # calls nested in one statement
_UNPACKED = 6  # pieces of a split named at once
_NUMBERS = 3  # nested arithmetic on sizes before it gets a name


@dataclass
class Line:
    """One statement: `targets = expression of node`. A target of None is a piece that nobody reads.

    reads: the variables' values in it. depth: calls nested in it. nested: the value that was last written inside it.
    """

    node: fx.Node
    targets: list[fx.Node | None]
    stage: str
    reads: dict[fx.Node, None]
    depth: int = 1
    nested: fx.Node | None = None


@dataclass
class Flow:
    """lines in order. names: value -> variable. inline: values written where they are read. alias: equal values."""

    lines: list[Line] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)
    inline: set[fx.Node] = field(default_factory=set)
    alias: dict[fx.Node, fx.Node] = field(default_factory=dict)
    returns: dict[fx.Node, None] = field(default_factory=dict)

    def canonical(self, node: fx.Node) -> fx.Node:
        return self.alias.get(node, node)

    def reads(self, node: fx.Node) -> dict[fx.Node, None]:
        """The variables' values that the written call of `node` reads, in order."""
        found: dict[fx.Node, None] = {}
        for operand in operands(node):
            if operand in self.inline:
                found |= self.reads(operand)
            elif operand.op != "get_attr":
                found[self.canonical(operand)] = None
        return found


def plan_flow(
    program: Program,
    live: Sequence[fx.Node],
    naming: Naming,
    params: dict[fx.Node, str],
    apart: Collection[fx.Node] = (),
) -> Flow:
    """The statements and the variables of `forward`.

    params: the placeholders' variables. apart: values that get their own statements (nested, the line is too long).
    """
    flow = Flow(names=dict(params))
    stages = _Stages(live)
    _write_lines(flow, live, stages)
    outputs = [o for o in results(program) if isinstance(o, fx.Node) and o.op != "get_attr"]
    for output in outputs:
        flow.returns |= flow.reads(output) if output in flow.inline else {flow.canonical(output): None}
    _nest(flow, naming, apart)
    _name_values(flow, params)
    return flow


# ---- statements --------------------------------------------------------------------------------------------------


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _index(node: fx.Node) -> int | None:
    """The position that a getitem reads from a sequence of values."""
    if op_name(node) != "getitem" or not isinstance(node.args[1], int) or not isinstance(node.args[0], fx.Node):
        return None
    val = node.args[0].meta.get("val")
    return node.args[1] % len(val) if isinstance(val, (list, tuple)) else None


def _write_lines(flow: Flow, live: Sequence[fx.Node], stages: _Stages) -> None:
    alive, done = set(live), set()
    sizes: dict[fx.Node, int] = {}
    for node in live:
        if node.op != "call_function" or node in done:
            continue
        if _is_number(node) and all(_is_number(i) for i in node.all_input_nodes):
            sizes[node] = 1 + sum(sizes.get(i, 0) for i in node.all_input_nodes if i in flow.inline)
            if sizes[node] <= _NUMBERS:
                flow.inline.add(node)
                continue
        pieces = _pieces(node, alive)
        stage = stages.of(node)
        if not pieces:
            flow.lines.append(Line(node, [node], stage, flow.reads(node)))
            continue
        done.update(pieces)
        count = len(node.meta["val"])
        first: dict[int, fx.Node] = {}
        for piece in pieces:
            kept = first.setdefault(_index(piece) or 0, piece)
            if kept is not piece:
                flow.alias[piece] = kept
        if len(first) == 1:
            flow.inline.add(node)
            kept = next(iter(first.values()))
            flow.lines.append(Line(kept, [kept], stage, flow.reads(kept)))
        else:
            flow.lines.append(Line(node, [first.get(i) for i in range(count)], stage, flow.reads(node)))


def _pieces(node: fx.Node, alive: set[fx.Node]) -> list[fx.Node]:
    """The getitems that take the value of `node` apart; empty when it is used whole or has too many pieces."""
    val = node.meta.get("val")
    users = [u for u in node.users if u in alive or u.op == "output"]
    if not isinstance(val, (list, tuple)) or any(u.op == "output" or _index(u) is None for u in users):
        return []
    used = {_index(u) for u in users}
    return users if len(used) == 1 or len(val) <= _UNPACKED else []


def _nest(flow: Flow, naming: Naming, apart: Collection[fx.Node]) -> None:
    """Writes a value inside the statement right after it, when that is the only one to read it: relu(bn(conv(x)))."""
    readers: dict[fx.Node, int] = {}
    for line in flow.lines:
        for value in line.reads:
            readers[value] = readers.get(value, 0) + 1
    for value in flow.returns:
        readers[value] = readers.get(value, 0) + 2
    kept: list[Line] = []
    for line in flow.lines:
        before = kept[-1] if kept else None
        single = before is not None and readers.get(before.node) == 1 and before.node not in apart
        if before is not None and single and _nests(before, line, naming):
            kept.pop()
            flow.inline.add(before.node)
            line.reads = before.reads | {n: None for n in line.reads if n is not before.node}
            line.depth += before.depth
            line.nested = before.node
        kept.append(line)
    flow.lines = kept


def _nests(inner: Line, outer: Line, naming: Naming) -> bool:
    node = outer.node
    if inner.targets != [inner.node] or inner.node not in outer.reads or inner.stage != outer.stage:
        return False
    if inner.depth + outer.depth > _DEPTH or sum(a is inner.node for a in leaves((node.args, node.kwargs))) != 1:
        return False
    if is_call(node, WEIGHTED):  # a line starts at a convolution: relu(bn(conv(x)))
        return False
    if is_call(inner.node, _VIEWS) and is_call(node, _VIEWS):  # x.reshape(...).permute(...)
        return True
    sums = ADDS | SUBS | MULS
    return (_light(inner.node, naming) or is_call(inner.node, sums)) and (_light(node, naming) or is_call(node, sums))


def _light(node: fx.Node, naming: Naming) -> bool:
    """A call of a module or of an activation: short enough to stand inside another call."""
    return node in naming.modules or is_call(node, ACTIVATIONS)


# ---- stages ------------------------------------------------------------------------------------------------------


class _Stages:
    """Which block of the network a call belongs to: layer1.0, blocks.3, features."""

    def __init__(self, live: Sequence[fx.Node]) -> None:
        self._count: dict[str, int] = {}
        self._inner: set[str] = set()
        self._known: dict[str, str] = {}
        for node in live:
            if node.op != "call_function":
                continue
            for prefix in self._paths(node):
                self._count[prefix] = self._count.get(prefix, 0) + 1
            self._inner.update(self._paths(node)[:-1])

    @staticmethod
    def _paths(node: fx.Node) -> list[str]:
        parts = module_of(node).split(".")
        return [".".join(parts[: i + 1]) for i in range(len(parts))] if parts != [""] else []

    def of(self, node: fx.Node) -> str:
        """The deepest numbered module that holds a few calls, else the first one of the path."""
        module = module_of(node)
        if module not in self._known:
            paths = [p for p in self._paths(node) if p in self._inner and self._count[p] > 2]
            named = [p for p in paths if p[-1].isdecimal() and not p.rpartition(".")[2].startswith("branch")]
            deep = [p for p in named if self._count[p] >= 4]
            numbered = [p for p in paths if p.rpartition(".")[2].isdecimal()]
            self._known[module] = (deep[-1:] or numbered[:1] or paths[:1] or [""])[0]
        return self._known[module]


# ---- variables ---------------------------------------------------------------------------------------------------


@dataclass
class _Web:
    """Values that follow each other in one variable, from the statement `start` to the last read at `end`."""

    values: list[fx.Node]
    start: int
    end: int
    name: str = ""
    wanted: str = ""


def _name_values(flow: Flow, params: dict[fx.Node, str]) -> None:
    end = len(flow.lines)
    last: dict[fx.Node, int] = {}
    for i, line in enumerate(flow.lines):
        last.update(dict.fromkeys(line.reads, i))
    last.update(dict.fromkeys(flow.returns, end))
    taken = set(params.values()) | RESERVED | {MAIN}
    _name_numbers(flow, taken)
    webs = _webs(flow, last, params)
    active: list[_Web] = []
    for web in webs:
        active = [w for w in active if w.end > web.start]
        if not web.name:
            busy = taken | {w.name for w in active}
            web.name = next(n for n in _candidates(flow, web) if n not in busy)
        active.append(web)
        flow.names.update(dict.fromkeys(web.values, web.name))


def _name_numbers(flow: Flow, taken: set[str]) -> None:
    """Sizes keep one name each, since expressions on them are written wherever they are read."""
    for line in flow.lines:
        node = line.node
        if line.targets != [node] or not _is_number(node):
            continue
        wanted = "size"
        if op_name(node) == "sym_size" and isinstance(node.args[1], int) and isinstance(node.args[0], fx.Node):
            rank = len(node.args[0].meta["val"].shape)
            letters = {4: "nchw", 3: "nlc", 5: "ncdhw"}.get(rank, "n")
            axis = node.args[1] % rank
            wanted = letters[axis] if axis < len(letters) else "size"
        name, serial = wanted, 1
        while name in taken:
            serial += 1
            name = f"{wanted}{serial}"
        taken.add(name)
        flow.names[node] = name


def _webs(flow: Flow, last: dict[fx.Node, int], params: dict[fx.Node, str]) -> list[_Web]:
    webs: list[_Web] = []
    of: dict[fx.Node, _Web] = {}
    main = next((_Web([n], -1, last.get(n, -1), MAIN) for n, name in params.items() if name == MAIN), None)
    if main is not None:
        of[main.values[0]] = main
    else:
        main = _Web([], -1, -1, MAIN)
    for i, line in enumerate(flow.lines):
        ended = {id(w): w for v in line.reads if (w := of.get(v)) and w.end <= i and w.name != MAIN}
        dying = sorted(ended.values(), key=lambda w: w.start)
        if len(dying) > 1 and dying[0].wanted:
            dying = []  # what attention makes of q, k and v is none of them
        triple = _attention(line)
        for target in (t for t in line.targets if t is not None and t not in flow.names):
            single = isinstance(target.meta.get("val"), Tensor) and not triple
            if single and main.end <= i:
                web = main = _Web([], i, i, MAIN)
                webs.append(web)
            elif single and dying:
                web = dying.pop(0)
            else:
                web = _Web([], i, i, wanted=triple.pop(0) if triple else "")
                webs.append(web)
            web.values.append(target)
            web.end = max(i, last.get(target, i))
            of[target] = web
    return webs


def _attention(line: Line) -> list[str]:
    """Names for the three pieces of an attention's projection."""
    inside = "att" in module_of(line.node).lower()
    return ["q", "k", "v"] if inside and len(line.targets) == 3 and None not in line.targets else []


def _candidates(flow: Flow, web: _Web) -> Iterator[str]:
    """Names for a web, the best first: what sets its module path apart from that of its reader, then the pool."""
    if web.wanted:
        yield web.wanted
    path = _common([module_of(v) for v in web.values])
    if web.end < len(flow.lines):
        outer = _common([".".join(path), str(module_of(flow.lines[web.end].node))])
        name = path[len(outer)].lower() if len(path) > len(outer) else ""
        holds = any(i.op == "get_attr" for v in web.values for i in v.all_input_nodes)  # and is not just an activation
        if holds and is_name(name) and len(name) <= 16 and not hasattr(builtins, name) and name not in _VAGUE:
            yield name
    yield from POOL
    serial = 1
    while True:
        serial += 1
        yield from (f"{name}{serial}" for name in POOL)


def _common(paths: Sequence[str]) -> list[str]:
    """The common start of dotted paths."""
    split = [p.split(".") if p else [] for p in paths]
    result: list[Any] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        result.append(parts[0])
    return result
