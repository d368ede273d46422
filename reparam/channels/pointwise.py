"""Elementwise operators: every channel of the result is a function of one channel of each operand.

    y_c = f(a_c, b_c, ...):   constants give a constant; 0 * b_c = 0; equal channels give equal ones

Where a sum meets channels that only one side varies in, it adds on those that both have and passes on the others:

    a + b = (a_I + b_I,  a_A + k_A,  b_B + k_B)        I: both vary;  A, B: the other side is the constant k
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ACTIVATIONS,
    CASTS,
    DROPOUTS,
    IDENTITIES,
    MULS,
    SUBS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    is_float,
    shape_of,
    static_shape,
)
from reparam.utils import foreign_code

from .family import SPARED, Ask, Builder, Conflict, Known, Request, size_along
from .value import Channels, first_of, read_off, spread, structure

_PASSED = IDENTITIES | CASTS | DROPOUTS
_ALSO = _PASSED | frozenset(ACTIVATIONS) | {aten.prelu.default, aten.log_sigmoid.default}


def is_pointwise(node: fx.Node) -> bool:
    """Whether the call works on every element by itself, operands broadcast."""
    if not is_float(node):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or is_call(node, _ALSO)


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def _viewed(node: fx.Node, operand: fx.Node) -> tuple[int, ...]:
    """The axis of the result that each axis of an operand is aligned with; a slope of PReLU lies along axis 1."""
    if node.target is aten.prelu.default and operand is arguments(node)["weight"]:
        return (1,) if len(shape_of(node)) > 1 else (0,)
    shift = len(shape_of(node)) - len(shape_of(operand))
    return tuple(a + shift for a in range(len(shape_of(operand))))


def _axes(known: Known, node: fx.Node) -> tuple[int, ...]:
    """The axes of the result that channels of an operand lie along."""
    found: set[int] = set()
    for operand in _operands(node):
        facts, view = known.of(operand), _viewed(node, operand)
        if facts is not None:
            found |= {view[a] for a in facts.axes}
    return () if any(static_shape(node)[a] is None for a in found) else tuple(sorted(found))


def _sources(known: Known, node: fx.Node, operand: fx.Node, axes: Sequence[int]) -> Tensor | None:
    """(C,): which channel of an operand each channel of the result is made from; None without channels there."""
    facts, view = known.of(operand), _viewed(node, operand)
    if facts is None:
        return None
    ndim, sizes = len(shape_of(node)), size_along(node, axes)
    ids = spread(torch.arange(facts.count), [view[a] for a in facts.axes], facts.sizes, ndim)
    return ids.expand([s if a in axes else 1 for a, s in zip(range(ndim), shape_of(node), strict=True)]).reshape(
        math.prod(sizes)
    )


def _rows(known: Known, node: fx.Node, operand: fx.Node, axes: Sequence[int]) -> Tensor | None:
    """(C, rest): a weight by the channels of the result, None where it is no weight."""
    value = known.program.tensor(operand)
    if value is None:
        return None
    ndim, view = len(shape_of(node)), _viewed(node, operand)
    shape = [1] * ndim
    for axis, size in zip(view, value.shape, strict=True):
        shape[axis] = size
    sizes = size_along(node, axes)
    full = value.cpu().reshape(shape)
    full = full.expand([s if a in axes else -1 for a, s in enumerate(shape_of(node))])
    rest = [a for a in range(ndim) if a not in axes]
    return full.permute(*axes, *rest).reshape(math.prod(sizes), -1)


class Pointwise:
    """Elementwise operators of one operand and of several."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        axes = _axes(known, node)
        if not axes:
            return None
        sizes = size_along(node, axes)
        count = math.prod(sizes)
        values: dict[fx.Node, Tensor] = {}
        labels: list[Tensor] = []
        for operand in _operands(node):
            source, rows = _sources(known, node, operand, axes), _rows(known, node, operand, axes)
            if rows is not None:
                same = (rows == rows[:, :1]).all(1)
                values[operand] = torch.where(same, rows[:, 0].double(), math.nan)
                labels.append(first_of(rows))
            elif source is not None:
                facts = known.facts[operand]
                values[operand] = facts.constant[source]
                labels.append(facts.first[source])
            else:
                view = _viewed(node, operand)
                own = [a for a, s in zip(view, shape_of(operand), strict=True) if a in axes and s > 1]
                values[operand] = torch.full((count,), math.nan, dtype=torch.float64)
                labels.append(torch.arange(count) if own else torch.zeros(count))
        constant = _computed(node, values)
        fixed = ~constant.isnan()
        first = first_of(*(torch.where(fixed, 0, label) for label in labels), constant)
        return Channels(axes, sizes, constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        facts = known.facts[node]
        parts = sum_parts(known, node, wanted)
        kept = structure(torch.cat(parts) if parts is not None else wanted, facts.sizes)
        requests = {}
        for i, operand in enumerate(_operands(node)):
            source = _sources(known, node, operand, facts.axes)
            if source is not None:
                ids = kept.flatten() if parts is None else torch.cat([parts[0], parts[i + 1]])
                requests[operand] = Request(source[ids], ordered=True)
        return Ask(kept, requests)

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        parts = sum_parts(builder.known, node, kept.flatten())
        if parts is None:
            return _call(builder, node, kept)
        both, *only = parts
        left, right = _operands(node)
        sides = [
            _side(builder, node, x, y, both, ids) for x, y, ids in ((left, right, only[0]), (right, left, only[1]))
        ]
        made = []
        if len(both):
            args = [side(both) for side in sides]
            made.append(builder.call(node.target, tuple(args), node.kwargs, like=node))
        made += [side(ids) for side, ids in zip(sides, only, strict=True) if len(ids)]
        axis = builder.known.facts[node].axes[0]
        return made[0] if len(made) == 1 else builder.call(aten.cat.default, (made, axis), like=node)


@foreign_code("computing constants")
def _computed(node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """(C,): what the call gives for constant operands, NaN where one of them varies."""
    missing = torch.stack([v.isnan() for v in values.values()]).any(0)

    def swap(n: fx.Node) -> Any:
        if n not in values:
            return n.meta["val"]
        dtype = n.meta["val"].dtype  # of a mask, or of indices
        return values[n].nan_to_num().to(torch.float64 if dtype.is_floating_point else dtype)

    if any(n not in values for n in node.all_input_nodes):
        return torch.full(missing.shape, math.nan, dtype=torch.float64)
    if is_call(node, _PASSED):
        out = next(iter(values.values()))
    elif node.target is aten.prelu.default:
        x, slope = (values[n].nan_to_num() for n in _operands(node))
        out = torch.where(x >= 0, x, slope * x)
    else:
        assert callable(node.target)
        out = node.target(*fx.node.map_arg(node.args, swap), **fx.node.map_arg(node.kwargs, swap)).double()
    constant = torch.where(missing | ~out.isfinite(), math.nan, out)
    if is_call(node, MULS):
        zero = torch.stack([v == 0 for v in values.values()]).any(0)
        constant = torch.where(zero, 0.0, constant)
    return constant


def sum_parts(known: Known, node: fx.Node, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The wanted channels of a sum of two: those that both sides are read for, only the left, only the right.

    None when the operands are simply added on all of them.
    """
    facts = known.facts[node]
    operands = _operands(node)
    if len(operands) != 2 or len(facts.axes) != 1 or not len(wanted):
        return None
    if arguments(node).get("alpha", 1) != 1 or node.target not in (aten.add.Tensor, aten.sub.Tensor):
        return None
    fixed = []
    for operand in operands:
        source, other = _sources(known, node, operand, facts.axes), known.of(operand)
        if other is None or source is None or shape_of(operand) != shape_of(node):
            return None
        fixed.append(other.known[source][wanted])
    left, right = fixed[1] & ~fixed[0], fixed[0] & ~fixed[1]
    if not _pays(known, operands[1], int(left.sum()), len(wanted)):
        left = torch.zeros_like(left)
    if not _pays(known, operands[0], int(right.sum()), len(wanted)):
        right = torch.zeros_like(right)
    if not bool((left | right).any()):
        return None
    return wanted[~left & ~right], wanted[left], wanted[right]


def _pays(known: Known, operand: fx.Node, spared: int, count: int) -> bool:
    """Whether a sum of `count` channels is worth making in parts, if an operand need not make `spared` of them."""
    while is_pointwise(operand) and len(made := [x for x in operand.all_input_nodes if x.meta["data"]]) == 1:
        (operand,) = made
    weight = known.program.constant(arguments(operand).get("weight")) if is_call(operand, WEIGHTED) else None
    if weight is None:
        return spared >= SPARED * count
    return spared > 0 and spared * weight.value[0].numel() >= known.pays * count


def _side(
    builder: Builder, node: fx.Node, x: fx.Node, other: fx.Node, both: Tensor, only: Tensor
) -> Callable[[Tensor], Any]:
    """One side of a sum: makes parts of it. The part that it has to itself has the constants of the other side added.

    They are added before the value is cut into parts where nobody else reads it: then a layer takes them as its bias.
    """
    known, axis = builder.known, builder.known.facts[node].axes[0]
    ids = torch.cat([both, only])
    shift = torch.cat([torch.zeros(len(both), dtype=torch.float64), known.facts[other].constant[only]])
    left = x is _operands(node)[0]
    negated = not left and is_call(node, SUBS)
    shifted = negated or bool((shift != 0).any())
    early = len(ids) > 0 and shifted and not negated and len(x.users) == 1

    def add(value: Any, shift: Tensor) -> Any:
        column = spread(shift, (axis,), (len(shift),), len(shape_of(node)))
        weight = builder.weight(column, f"{node.name}.shift", like=node)
        return builder.call(node.target, (value, weight) if left else (weight, value), like=node)

    value = builder.take(x, ids, like=node) if early else None
    if early:
        value = add(value, shift)

    def part(wanted: Tensor) -> Any:
        if value is not None:
            start = 0 if wanted is both else len(both)
            return builder.pick(value, axis, torch.arange(start, start + len(wanted)), len(ids), like=node)
        taken = builder.take(x, wanted, like=node)
        return add(taken, shift[len(both) :]) if shifted and wanted is only else taken

    return part


def _call(builder: Builder, node: fx.Node, kept: Tensor) -> Any:
    """The same call on the channels `kept` of every operand."""
    known = builder.known
    facts = known.facts[node]
    swapped: dict[fx.Node, Any] = {}
    for operand in _operands(node):
        source, rows = _sources(known, node, operand, facts.axes), known.program.tensor(operand)
        if rows is not None:
            swapped[operand] = _cut_weight(builder, node, operand, kept)
        elif source is not None:
            swapped[operand] = _taken(builder, node, operand, source, kept)
        else:
            swapped[operand] = _cut_data(builder, node, operand, kept)
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: swapped[n] if n in swapped else builder.whole(n, like=node)
    )
    return builder.call(node.target, args, kwargs, like=node)


def _own_axes(known: Known, node: fx.Node, operand: fx.Node) -> list[int]:
    """The axes of the operand that the channels of the result vary along."""
    axes = known.facts[node].axes
    view = _viewed(node, operand)
    return [a for a, (to, s) in enumerate(zip(view, shape_of(operand), strict=True)) if to in axes and s > 1]


def _taken(builder: Builder, node: fx.Node, operand: fx.Node, source: Tensor, kept: Tensor) -> Any:
    """An operand on the channels that it gives to those `kept`; where it has fewer axes, each once."""
    known, facts = builder.known, builder.known.facts[node]
    theirs = known.facts[operand]
    if theirs.count == 1:
        return builder.held(operand)
    ids = source[kept]
    view = _viewed(node, operand)
    used = [facts.axes.index(view[a]) for a in theirs.axes if view[a] in facts.axes]
    if len(used) != len(theirs.axes):
        raise Conflict(node)
    block = ids
    for axis in reversed(range(ids.dim())):
        if axis not in used:
            block = block.select(axis, 0)
            if not bool((ids == ids.narrow(axis, 0, 1)).all()):
                raise Conflict(node)
    bound = _bound(known, node, operand) if theirs.axes == facts.axes else 0.0
    return builder.take(operand, block, like=node, source=source, bound=bound)


def _bound(known: Known, node: fx.Node, operand: fx.Node) -> float:
    """The share of an operand that has to be left out to be worth picking what is wanted.

    All of it beside a gate, which is small: more products cost as much as picking, and the gate stays one.
    """
    others = [x for x in _operands(node) if x is not operand and x in known.facts]
    if not others:
        return SPARED
    small = all(math.prod(shape_of(x)) < math.prod(shape_of(node)) for x in others)
    return 1.0 if small and is_call(node, MULS) else 0.0


def _cut_weight(builder: Builder, node: fx.Node, operand: fx.Node, kept: Tensor) -> Any:
    known, facts = builder.known, builder.known.facts[node]
    value = known.program.tensor(operand)
    assert value is not None
    axes = _own_axes(known, node, operand)
    if not axes:
        return operand
    value = _blocks(value, axes, [_viewed(node, operand)[a] for a in axes], facts, kept, node)
    return builder.weight(value, known.program.constants[str(operand.target)].origin, like=node, source=operand)


def _blocks(
    value: Tensor, axes: Sequence[int], to: Sequence[int], facts: Channels, kept: Tensor, node: fx.Node
) -> Tensor:
    """A tensor on the channels `kept`; along several axes each index of one has to go with each of the others."""
    for axis, target in zip(axes, to, strict=True):
        value = value.index_select(axis, _along(facts, target, kept, node).to(value.device))
    return value


def _along(facts: Channels, target: int, kept: Tensor, node: fx.Node) -> Tensor:
    """The indices along one axis of the result that `kept` holds. Raises Conflict when they differ between rows."""
    level = facts.axes.index(target)
    index = kept // math.prod(facts.sizes[level + 1 :]) % facts.sizes[level]
    found = read_off(index, (level,))
    if found is None:
        raise Conflict(node)
    return found


def _cut_data(builder: Builder, node: fx.Node, operand: fx.Node, kept: Tensor) -> Any:
    """An operand of whose channels nothing is known, cut to those that are kept."""
    known, facts = builder.known, builder.known.facts[node]
    x = builder.held(operand)
    for axis in _own_axes(known, node, operand):
        target = _viewed(node, operand)[axis]
        x = builder.pick(x, axis, _along(facts, target, kept, node), shape_of(operand)[axis], like=node)
    return x
