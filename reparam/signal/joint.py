"""Operators on values that depend on one another: sums exactly, others on random tensors of what they have in common.

The calls between an operator and independent values are run together: x/(1 + mean |x|) is drawn from x alone.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx

from .drawing import drawn_often, run_call, values_read
from .functions import is_pointwise
from .gaussian import power_of
from .power import Power, Roles, drawn
from .sources import meet
from .values import Law, Mix, Value, of_constant
from .walk import Walk

MOST_CALLS = 64
MOST_NUMBERS = 1 << 26  # of all values between
OVERHEAD = 2000  # numbers that could be computed in the time that a call takes


# ---- sums --------------------------------------------------------------------------------------------------------


def mix_of(walk: Walk, operand: Any, shape: tuple[int, ...]) -> Mix | None:
    """An operand of a sum as a sum; None for one that is broadcast over places or channels."""
    if isinstance(operand, int | float):
        return Mix({}, float(operand))
    if not isinstance(operand, fx.Node):
        return None
    node = walk.rep(operand)
    value = walk.values[node]
    if isinstance(value, Tensor):
        return Mix({node: 1.0})
    if not isinstance(value, Value):
        return Mix({}, float(value)) if isinstance(value, int | float) else None
    if value.shape != shape or value.power is None:
        return None
    return value.mix or Mix({node: 1.0})


def sum_of(walk: Walk, mix: Mix, shape: tuple[int, ...], roles: Roles) -> Value | None:
    """The value of a sum. Terms that are functions of one normal value are taken together, by quadrature; None where
    others depend on one another."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in mix.terms:
        value = walk.values[node]
        groups.setdefault(value.root_at(node) if isinstance(value, Value) else node, []).append(node)
    seen: dict[fx.Node | str, int] = {}
    total, law = Power(mix.offset), None
    for root, nodes in groups.items():
        value = walk.values[root]
        if isinstance(value, Tensor):
            total = total.plus(of_constant(value, roles).scaled(mix.terms[root]))
            continue
        own = value.sources
        if meet(seen, own):
            return None
        seen |= {key: mask | seen.get(key, 0) for key, mask in own.items()}
        if len(nodes) == 1:
            held = walk.values[nodes[0]]
            total = total.plus(held.known.scaled(mix.terms[nodes[0]]))
            if len(groups) > 1:
                continue
        values = sum(mix.terms[n] * _at_points(walk, n) for n in nodes)
        assert isinstance(values, Tensor)
        if len(nodes) > 1:
            total = total.plus(power_of(values))
        law = Law(root, values + mix.offset) if len(groups) == 1 else None
    return Value(shape, roles, total, law, mix)


def _at_points(walk: Walk, node: fx.Node) -> Tensor:
    found: Tensor = walk.values[node].law_at(node).values
    return found


# ---- others ------------------------------------------------------------------------------------------------------


def depends(walk: Walk, node: fx.Node, over: str) -> bool:
    """Whether operands of a call have sources in common, or it reduces one whose elements depend on one another.

    over: what it reduces, "p" for places, "c" for channels.
    """
    held = values_read(walk, node)
    if any(v.woven & set(over) for _, v in held) and not is_pointwise(node):
        return True
    return any(meet(a.sources, b.sources) for (_, a), (_, b) in combinations(held, 2))


def jointly(walk: Walk, node: fx.Node, unit: fx.Node | None = None) -> Value | None:
    """A call on random tensors for the independent values that its operands are made of; None where there are none that
    are known, as where layers with the same weights give both.

    unit: a value that is taken to be from N(0, 1), and as what its operands are made of.
    """
    found = _region(walk, node, unit)
    if found is None:
        return None
    calls, bases = found
    numbers = sum(math.prod(v.shape) for n in (*calls, *bases) if isinstance(v := walk.values.get(n), Value))
    if numbers > MOST_NUMBERS:
        return None

    def once() -> Any:
        made: dict[fx.Node, Any] = {}
        for base in bases:
            value: Value = walk.values[base]
            power = Power(place=1.0) if base is unit else value.known
            made[base] = drawn(power, value.roles, value.shape, walk.generator, sign=walk.sign)
        for call in calls:
            made[call] = run_call(walk, call, made)
        return made[node]

    with torch.no_grad():
        return drawn_often(walk, node, once, numbers + OVERHEAD * len(calls))


def _region(walk: Walk, node: fx.Node, unit: fx.Node | None) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """The calls between a call and independent values, in order, and these."""
    region = [node]
    front: set[fx.Node] = set()

    def open_(call: fx.Node) -> None:
        for operand in walk.read(call):
            value = walk.values[operand]
            if isinstance(value, list) and operand not in region:
                region.append(operand)
                open_(operand)
            elif isinstance(value, Value):
                front.add(operand)

    open_(node)
    while True:
        tangled = [n for n in front if n is not unit and _is_tangled(walk, n, front)]
        if not tangled:
            return sorted(region, key=walk.order.__getitem__), sorted(front, key=walk.order.__getitem__)
        latest = max(tangled, key=walk.order.__getitem__)
        if not _opens(walk, latest) or len(region) > MOST_CALLS:
            return None
        front.discard(latest)
        region.append(latest)
        open_(latest)


def _is_tangled(walk: Walk, node: fx.Node, front: set[fx.Node]) -> bool:
    value: Value = walk.values[node]
    if value.power is None or value.woven or value.root_at(node) is not node:
        return True
    return any(meet(value.sources, walk.values[other].sources) for other in front if other is not node)


def _opens(walk: Walk, node: fx.Node) -> bool:
    """Whether a value can be run from its operands: it is no input, and no result of a layer of random weights."""
    value: Value = walk.values[node]
    return node.op == "call_function" and node not in value.sources
