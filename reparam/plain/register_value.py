"""Values of a span of the graph: what a register would have to hold, and the reasons why something cannot be held."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from reparam.algebra import Window
from reparam.ir import (
    BATCH_NORMS,
    LINEARS,
    MATMULS,
    MOVEMENTS,
    NORMS,
    SLICES,
    SPLITS,
    Program,
    Refusal,
    arguments,
    aten,
    fixed_size,
    is_call,
    is_float,
    op_name,
    ranges_of,
    shape_of,
)

from .activation import Activation
from .linear_form import LinearForm, RegisterValue, cat_forms, reference, slice_form
from .span import Span, carries_data

_ACROSS = (NORMS - BATCH_NORMS) | MATMULS | {aten.softmax.int}


class Refused(Exception):
    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, node)


@dataclass(frozen=True)
class SpanValues:
    """The values of a span: first the pieces of its input, last its result. axis: where the channels lie."""

    span: Span
    values: tuple[RegisterValue, ...]
    axis: int

    @property
    def ndim(self) -> int:
        return len(self.values[0].space)

    @property
    def inputs(self) -> tuple[RegisterValue, ...]:
        return tuple(v for v in self.values if v.kind == "input")

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for two spans that have the same schedules."""
        rows: list[tuple[Any, ...]] = [(self.axis, self.ndim)]
        for v in self.values:
            form = v.form
            maps = tuple((u.index, m) for u, m in form.maps) if form is not None else ()
            shifts = tuple((s.rows, s.n) for s in form.shifts) if form is not None else ()
            own = (v.kind, v.channels, v.space, v.positions, v.low >= 0.0, v.optional, v.gate_width)
            call = str(v.node.args[1:]) if v.kind == "pool" else ""
            rows.append((own, v.act.signature, not v.act.alike, maps, shifts, call))
        return tuple(rows)

    @property
    def result(self) -> RegisterValue:
        return self.values[-1]


class ValueBuilder:
    """Makes the values of one span, and remembers the form of each node read so far."""

    def __init__(self, program: Program, span: Span) -> None:
        self.program, self.span = program, span
        self.ranges = ranges_of(program)
        self.values: list[RegisterValue] = []
        self.forms: dict[fx.Node, LinearForm] = {}
        self.pieces: dict[fx.Node, list[LinearForm]] = {}
        self.held: dict[fx.Node, RegisterValue] = {}
        self.decimations: dict[tuple[int, Window], RegisterValue] = {}
        self.inside = set(span.nodes)
        linear = any(is_call(n, LINEARS) for n in span.nodes)
        rank = len(shape_of(span.entry))
        self.axis = rank - 1 if linear else 1
        self.ndim = 0 if linear or rank < 3 else rank - 2
        self.rank = rank

    def inputs(self) -> LinearForm:
        """The span's input, in the pieces that it is cut into."""
        entry = self.span.entry
        cuts = self.cuts(entry)
        width = shape_of(entry)[self.axis]
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, width], strict=True):
            value = self.new(entry, "input")
            value.channels = stop - start
            parts.append(reference(value))
        return cat_forms(parts)

    def new(self, node: fx.Node, kind: Any, form: LinearForm | None = None, **more: Any) -> RegisterValue:
        shape = shape_of(node)
        if len(shape) != self.rank:
            raise Refused(node, f"{op_name(node)} changes the rank")
        sizes = node.meta["val"].shape
        if fixed_size(sizes[self.axis]) is None:
            raise Refused(node, f"the size of axis {self.axis}, which would be its channels, is free")
        if self.ndim:
            space = tuple(fixed_size(s) for s in sizes[2:])
            positions = math.prod(shape[2:])
        else:
            space, positions = (), math.prod(s for i, s in enumerate(shape[1:], 1) if i != self.axis)
        more.setdefault("low", self.ranges.of(node)[0])
        value = RegisterValue(len(self.values), node, kind, shape[self.axis], space, positions, form=form, **more)
        self.values.append(value)
        return value

    def hold(self, node: fx.Node, form: LinearForm) -> RegisterValue:
        """An optional value for `node`, made once."""
        if node not in self.held:
            self.held[node] = self.new(node, "layer", form, optional=True)
        return self.held[node]

    def value_of(self, node: fx.Node) -> RegisterValue:
        form = self.of(node)
        return form.bare or self.hold(node, form)

    def of(self, node: Any) -> LinearForm:
        if not isinstance(node, fx.Node) or node not in self.forms:
            where = node if isinstance(node, fx.Node) else self.span.exit
            raise Refused(where, f"{op_name(where)} is read by a call that has no place for it in a register")
        return self.forms[node]

    def finish(self, node: fx.Node, form: LinearForm) -> None:
        """The result comes last in the list, and is never optional. Pools and gates follow their operands.

        They keep the order of the register that they act on as a whole, and registers are ordered like the list.
        """
        for whole in [v for v in self.values if v.kind in ("pool", "gate")]:
            self.values.remove(whole)
            self.values.insert(self.values.index(whole.operands[0]) + 1, whole)
        value = form.bare
        if value is None or value.node is not node:
            self.new(node, "layer", form)
        else:
            self.values.remove(value)
            self.values.append(value)
            value.optional = False
        for i, v in enumerate(self.values):
            v.index = i

    def activated(self, node: fx.Node, form: LinearForm, act: Activation) -> LinearForm:
        """One value; or one for each piece that it is cut into, since some may be needed longer than others."""
        cuts = self.cuts(node) if act.alike else []
        if not cuts:
            return reference(self.new(node, "layer", form, act=act))
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, form.channels], strict=True):
            value = self.new(node, "layer", slice_form(form, start, stop - start), act=act)
            value.channels = stop - start
            parts.append(reference(value))
        return cat_forms(parts)

    def cuts(self, node: fx.Node) -> list[int]:
        """Where the channels of `node` are cut, when that is all that is done with them."""
        found: set[int] = set()
        for user in node.users:
            whole = shape_of(node)[self.axis]
            if user not in self.inside or not is_call(user, SPLITS | SLICES):
                return []
            args = arguments(user)
            if int(args["dim"]) % self.rank != self.axis:
                return []
            if is_call(user, SPLITS):
                sizes = [int(p.shape[self.axis]) for p in user.meta["val"]]
                found |= set(itertools.accumulate(sizes))
            else:
                start = int(args["start"] or 0) % whole
                found |= {start, start + shape_of(user)[self.axis]}
        return sorted(c for c in found if 0 < c < shape_of(node)[self.axis])


def why_not(node: fx.Node) -> str:
    data = [i for i in node.all_input_nodes if carries_data(i)]
    if len(data) > 1:
        return f"{op_name(node)} combines {len(data)} values that depend on the input, and is not linear in them"
    name = op_name(node)
    if not any(is_float(i) for i in data):
        return f"{name} makes a value that depends on the sizes of the input alone, which is no channel of a register"
    if is_call(node, NORMS):
        return f"{name} divides by statistics of all channels or positions, so that nothing can be carried past it"
    if is_call(node, MOVEMENTS):
        return f"{name} changes the shape or the order of the axes, and a register keeps its channels on one axis"
    return f"{name} acts on all channels or positions of a value at once, so that nothing can be carried past it"


def first_blocking_call(span: Span) -> fx.Node | None:
    """The first call of the span that no change of layout would let anything past."""
    return next((n for n in span.nodes if is_call(n, _ACROSS)), None)
