"""Moments of pointwise functions, sums and products: exactly where operands are functions of one value, or sums of
such; else as if they were independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import ADDS, DIVS, MULS, SUBS, arguments, aten, is_call

from .drawing import values_read
from .functions import first_of
from .gaussian import power_of
from .joint import mix_of, sum_of
from .power import Power, Roles
from .roles import broadcast
from .sources import meet
from .values import Law, Mix, Value, by_groups, of_constant, of_law
from .walk import Walk

LINEAR = ADDS | SUBS | MULS | DIVS


def pointwise(walk: Walk, node: fx.Node) -> Value | None:
    """A function of one normal value; None for what reads several, or varies otherwise than by channels."""
    held = values_read(walk, node)
    laws = {n: v.law_at(n) for n, v in held}
    roots = {law.root for law in laws.values()}
    shape = walk.shape(node)
    kind = node.meta["val"].dtype
    known = kind.is_floating_point or kind == torch.bool
    if len(roots) != 1 or any(v.shape != shape for _, v in held) or not known:
        return None
    roles = held[0][1].roles

    def point(a: Any) -> Any:
        if not isinstance(a, fx.Node):
            return torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a
        if walk.rep(a) in laws:
            return laws[walk.rep(a)].values
        return by_groups(beside) if isinstance(beside := walk.values[a], Tensor) else beside

    args: Any = fx.node.map_aggregate(node.args, point)
    kwargs: Any = fx.node.map_aggregate(node.kwargs, point)
    if is_call(node, {aten.prelu.default}):
        x, slope = args
        values = torch.where(x > 0, x, slope * x)
    else:
        assert callable(node.target)
        values = node.target(*(_as_tensor(a, node, i) for i, a in enumerate(args)), **kwargs)
    return of_law(Law(next(iter(roots)), values), shape, roles)


def randomised(walk: Walk, node: fx.Node) -> Value | None:
    """An RReLU: that with the mean of the slopes s and, in training, Var(s) E min(x, 0)^2 more at each place."""
    mean = pointwise(walk, node)
    if mean is None or not walk.training:
        return mean
    args, x = arguments(node), values_read(walk, node)[0][1]
    below = power_of(x.law_at(node).values.to(torch.float64).clamp(max=0)).second
    more = (float(args["upper"]) - float(args["lower"])) ** 2 / 12 * below
    return Value(mean.shape, mean.roles, mean.known.plus(Power(place=more)))


def _as_tensor(value: Any, node: fx.Node, place: int) -> Any:
    """A number where the operator wants a tensor."""
    original = node.args[place]
    wants = isinstance(original, fx.Node) and isinstance(original.meta.get("val"), Tensor)
    return torch.tensor(value, dtype=torch.float64) if wants and not isinstance(value, Tensor) else value


def together(walk: Walk, node: fx.Node) -> Value | None:
    """x + y, x - y, x*y and x/y of functions of one normal value, and sums of sums, exactly; None for others."""
    first, second = _pair(node)
    operands = [walk.values[a] if isinstance(a, fx.Node) else a for a in (first, second)]
    alone = sum(isinstance(v, Value) for v in operands) == 1 and all(
        isinstance(v, Value) or not isinstance(v, Tensor) or bool((v == v.flatten()[0]).all()) for v in operands
    )
    same = len({v.root_at(n) for n, v in values_read(walk, node)}) == 1
    found = None
    if alone or (same and all(isinstance(v, Value) for v in operands)):
        found = pointwise(walk, node)
    shape = walk.shape(node)
    if is_call(node, MULS | DIVS):
        return None if found is None else replace(found, mix=_scaled_mix(walk, node))
    if found is None and is_call(node, ADDS) and (other := _beside_zero(walk, node, shape)) is not None:
        return other
    mixes = [mix_of(walk, a, shape) for a in (first, second)]
    if mixes[0] is None or mixes[1] is None:
        return found
    left, right = _signs(node)
    mix = mixes[0].scaled(left).plus(mixes[1].scaled(right))
    if found is not None:
        return replace(found, mix=mix)
    held = [v for v in operands if isinstance(v, Value)]
    if len(held) == 2 and not meet(held[0].sources, held[1].sources) and (apart := linear_pair(walk, node)):
        return replace(apart, mix=mix)
    return sum_of(walk, mix, shape, _roles_beside(held, operands, len(shape)))


def _pair(node: fx.Node) -> tuple[Any, Any]:
    args = arguments(node)
    return first_of(args), args["other"]


def _signs(node: fx.Node) -> tuple[float, float]:
    """The factors of the two operands of a sum or difference."""
    alpha = float(arguments(node).get("alpha", 1))
    if node.target in (aten.rsub.Scalar, aten.rsub.Tensor):
        return -alpha, 1.0
    return 1.0, -alpha if is_call(node, SUBS) else alpha


def _scaled_mix(walk: Walk, node: fx.Node) -> Mix | None:
    """Of a sum times a number."""
    first, second = _pair(node)
    numbers = [walk.values[a] if isinstance(a, fx.Node) else a for a in (first, second)]
    if is_call(node, DIVS):
        numbers[1] = None if isinstance(numbers[1], Value) else 1 / numbers[1]
    sums = [v.mix for v in numbers if isinstance(v, Value)]
    factors = [float(v.flatten()[0]) if isinstance(v, Tensor) else v for v in numbers if not isinstance(v, Value)]
    if len(sums) != 1 or len(factors) != 1 or sums[0] is None or not isinstance(factors[0], int | float):
        return None
    return sums[0].scaled(float(factors[0]))


def _roles_beside(held: Sequence[Value], operands: Sequence[Any], rank: int) -> Roles:
    """The roles of a pointwise result; axes along which constants alone vary count places."""
    roles = list(broadcast([v.roles for v in held], [v.shape for v in held], rank))
    for value in operands:
        if isinstance(value, Tensor):
            for back in range(1, value.dim() + 1):
                if value.shape[-back] > 1:
                    roles[-back] = roles[-back] or frozenset("p")
    return tuple(roles)


def linear_pair(walk: Walk, node: fx.Node) -> Value | None:
    """x + y, x - y and x*y, uncorrelated or independent."""
    operands = [walk.values[a] if isinstance(a, fx.Node) else a for a in _pair(node)]
    shape = walk.shape(node)
    roles = _roles_beside([v for v in operands if isinstance(v, Value)], operands, len(shape))
    powers = [_power(v, roles, reciprocal=is_call(node, DIVS) and i == 1) for i, v in enumerate(operands)]
    if powers[0] is None or powers[1] is None:
        return None
    if is_call(node, MULS | DIVS):
        return Value(shape, roles, powers[0].times(powers[1]))
    left, right = _signs(node)
    return Value(shape, roles, powers[0].scaled(left).plus(powers[1].scaled(right)))


def _beside_zero(walk: Walk, node: fx.Node, shape: tuple[int, ...]) -> Value | None:
    """x + 0 is x, with its law: as behind a branch that starts at zero."""
    held = values_read(walk, node)
    if len(held) != 2 or float(arguments(node).get("alpha", 1)) != 1:
        return None
    (a, x), (b, y) = held
    for source, value, other in ((a, x, y), (b, y, x)):
        if other.known.second == 0 and value.shape == shape:
            return Value(shape, value.roles, value.power, value.law_at(source))
    return None


def _power(value: Any, roles: Roles, *, reciprocal: bool) -> Power | None:
    if isinstance(value, Value):
        return None if reciprocal else value.power
    if isinstance(value, Tensor):
        return of_constant(1 / value if reciprocal else value, roles)
    return Power(1 / float(value) if reciprocal else float(value))
