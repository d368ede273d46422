"""What each family of operators makes of moments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    AVG_POOLS,
    CASTS,
    CATS,
    DIVS,
    DROPOUTS,
    IDENTITIES,
    MOVEMENTS,
    MULS,
    NORMS,
    PADS,
    SUBS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    pair,
)

from .drawing import by_drawing, first_read, unknown, values_read
from .functions import is_pointwise
from .power import Power, Roles, measured, mixed
from .roles import broadcast, moved, usual
from .running import PRODUCTS
from .values import Law, Value, affine, by_groups, of_constant, of_law
from .walk import Walk, weigh

_MEANS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
_SAME = IDENTITIES | CASTS


def carry(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """What is known of the result of a call that depends on the inputs."""
    operands = [walk.values[n] for n in node.all_input_nodes]
    if is_call(node, {operator.getitem}):
        whole, index = operands[0], node.args[1]
        return whole[index] if isinstance(whole, list) and isinstance(index, int) else unknown(walk, node)
    if any(isinstance(v, list) for v in operands):
        return unknown(walk, node)
    if is_call(node, PRODUCTS) and (product := _matrix(walk, node)) is not None:
        return product
    for family, special in _SPECIAL:
        if is_call(node, family):
            return special(walk, node)
    if any(isinstance(v, Value) and v.power is None for v in operands):
        return unknown(walk, node)
    for family, rule in _RULES:
        if is_call(node, family):
            return rule(walk, node) or by_drawing(walk, node)
    return (_pointwise(walk, node) if is_pointwise(node) else None) or by_drawing(walk, node)


# ---- layers, norms, tables ---------------------------------------------------------------------------------------


def _weighted(walk: Walk, node: fx.Node) -> Value | list[Value]:
    args = walk.given(arguments(node))
    x, weight, bias = args["input"], args["weight"], args["bias"]
    plain = isinstance(x, Value) and isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    if not plain or len(x.shape) < 2:
        return unknown(walk, node)
    return weigh(walk, node, x, weight, bias)


def _matrix(walk: Walk, node: fx.Node) -> Value | None:
    """x W + b as a product with a constant matrix (n, m); None for another product."""
    args = list(walk.given(arguments(node)).values())
    bias, x, weight = args[:3] if is_call(node, {aten.addmm.default}) else (None, *args[:2])
    plain = isinstance(x, Value) and isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    if not plain or weight.dim() != 2 or len(x.shape) < 2:
        return None
    return weigh(walk, node, x, weight.t(), bias)


def _embedding(walk: Walk, node: fx.Node) -> Value:
    args, shape = walk.given(arguments(node)), walk.shape(node)
    table, roles = args["weight"], usual(len(shape), channels_last=True)
    if not isinstance(table, Tensor):
        return Value(shape, roles, None)
    return Value(shape, roles, measured(table, (frozenset("p"), frozenset("c"))))


def _norm(walk: Walk, node: fx.Node) -> Value | list[Value]:
    args = walk.given(arguments(node))
    x, weight, bias = args["input"], args.get("weight"), args.get("bias")
    if not isinstance(x, Value):
        return unknown(walk, node)
    if is_call(node, {aten.batch_norm.default}) and not walk.training:
        return Value(x.shape, x.roles, _with_statistics(args, x.power))
    made = _normalised(node, args, x)
    if made is None:
        return Value(x.shape, x.roles, None)
    one = torch.ones(1, dtype=torch.float64)
    scale = weight if isinstance(weight, Tensor) else one
    shift = bias if isinstance(bias, Tensor) else torch.zeros_like(scale)
    return Value(x.shape, x.roles, affine(made, scale, shift))


def _with_statistics(args: dict[str, Any], power: Power | None) -> Power | None:
    """A batch norm in evaluation mode."""
    mean, variance = args["running_mean"], args["running_var"]
    if power is None or not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    factor = (variance + float(args["eps"])).rsqrt()
    factor = factor if args["weight"] is None else factor * args["weight"]
    shift = -mean * factor
    return affine(power, factor, shift if args["bias"] is None else shift + args["bias"])


def _normalised(node: fx.Node, args: dict[str, Any], x: Value) -> Power | None:
    """Without the affine behind it. Of an unknown value, all that is known is a variance of one."""
    eps = float(args.get("eps") or 0.0)
    if x.power is None:
        return Power(place=1.0)
    p = x.power
    if is_call(node, {aten.rms_norm.default}):
        return p.scaled(1 / math.sqrt(p.second + eps))
    if is_call(node, {aten.batch_norm.default}):
        kept = Power(0.0, 0.0, p.sample, p.place)
    elif is_call(node, {aten.instance_norm.default}):
        kept = Power(0.0, 0.0, 0.0, p.place)
    elif is_call(node, {aten.group_norm.default}):
        share = 1 - args["num_groups"] / x.shape[1]  # of a group's channels about their own mean
        kept = Power(0.0, p.channel * share, p.sample * share, p.place)
    elif "c" not in x.roles[-1]:  # over places alone
        kept = Power(0.0, 0.0, 0.0, p.place)
    else:
        kept = Power(0.0, p.channel, p.sample, p.place)
    return kept.scaled(1 / math.sqrt(kept.variance + eps)) if kept.variance + eps > 0 else None


# ---- movement ----------------------------------------------------------------------------------------------------


def _movement(walk: Walk, node: fx.Node) -> Value | list[Value]:
    held = values_read(walk, node)
    if len(held) != 1:
        return unknown(walk, node)
    x = held[0][1]
    args, kwargs = walk.given(node.args), walk.given(node.kwargs)

    def run(label: Tensor) -> Any:
        swapped = torch.utils._pytree.tree_map(lambda a: label if a is x else a, (args, kwargs))
        assert callable(node.target)
        return node.target(*swapped[0], **swapped[1])

    try:
        results = moved(run, x.roles, x.shape)
        shapes = [tuple(r.shape) for r in _tensors(run(torch.empty(()).expand(x.shape)))]
    except Exception:
        return unknown(walk, node)
    values = [Value(s, r, x.power) for s, r in zip(shapes, results, strict=True)]
    return values[0] if isinstance(node.meta["val"], Tensor) else values


def _tensors(value: Any) -> Sequence[Tensor]:
    return value if isinstance(value, list | tuple) else [value]


# ---- pointwise ---------------------------------------------------------------------------------------------------


def _pointwise(walk: Walk, node: fx.Node) -> Value | None:
    """A function of one normal value; None for what reads several, or varies otherwise than by channels."""
    held = values_read(walk, node)
    laws = {n: v.law_at(n) for n, v in held}
    roots = {law.root for law in laws.values()}
    shape = walk.shape(node)
    if len(roots) != 1 or any(v.shape != shape for _, v in held) or not node.meta["val"].is_floating_point():
        return None
    roles = held[0][1].roles

    def point(a: Any) -> Any:
        if not isinstance(a, fx.Node):
            return torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a
        if a in laws:
            return laws[a].values
        return by_groups(known) if isinstance(known := walk.values[a], Tensor) else known

    args: Any = fx.node.map_aggregate(node.args, point)
    kwargs: Any = fx.node.map_aggregate(node.kwargs, point)
    if is_call(node, {aten.prelu.default}):
        x, slope = args
        values = torch.where(x > 0, x, slope * x)
    else:
        assert callable(node.target)
        values = node.target(*(_as_tensor(a, node, i) for i, a in enumerate(args)), **kwargs)
    return of_law(Law(next(iter(roots)), values), shape, roles)


def _as_tensor(value: Any, node: fx.Node, place: int) -> Any:
    """A number where the operator wants a tensor."""
    original = node.args[place]
    wants = isinstance(original, fx.Node) and isinstance(original.meta.get("val"), Tensor)
    return torch.tensor(value, dtype=torch.float64) if wants and not isinstance(value, Tensor) else value


def _linear_pair(walk: Walk, node: fx.Node) -> Value | None:
    """x + y, x - y and x*y; of functions of one value exactly, of others as uncorrelated or independent."""
    args = arguments(node)
    first, second = args.get("self", args.get("input")), args["other"]
    operands = [walk.values[a] if isinstance(a, fx.Node) else a for a in (first, second)]
    alone = sum(isinstance(v, Value) for v in operands) == 1 and all(
        isinstance(v, Value) or not isinstance(v, Tensor) or bool((v == v.flatten()[0]).all()) for v in operands
    )
    same = len({v.law.root if v.law else n for n, v in values_read(walk, node)}) == 1
    if alone or (same and all(isinstance(v, Value) for v in operands)):
        return _pointwise(walk, node)
    shape = walk.shape(node)
    held = [v for v in operands if isinstance(v, Value)]
    if is_call(node, ADDS) and (other := _beside_zero(walk, node, shape)) is not None:
        return other
    roles = broadcast([v.roles for v in held], [v.shape for v in held])
    powers = [_power(v, roles, reciprocal=is_call(node, DIVS) and i == 1) for i, v in enumerate(operands)]
    if powers[0] is None or powers[1] is None:
        return None
    if is_call(node, MULS | DIVS):
        return Value(shape, roles, powers[0].times(powers[1]))
    alpha = float(args.get("alpha") or 1)
    reverse = node.target in (aten.rsub.Scalar, aten.rsub.Tensor)
    factors = (-alpha, 1.0) if reverse else (1.0, -alpha if is_call(node, SUBS) else alpha)
    return Value(shape, roles, powers[0].scaled(factors[0]).plus(powers[1].scaled(factors[1])))


def _beside_zero(walk: Walk, node: fx.Node, shape: tuple[int, ...]) -> Value | None:
    """x + 0 is x, with its law: as behind a branch that starts at zero."""
    held = values_read(walk, node)
    if len(held) != 2 or float(arguments(node).get("alpha") or 1) != 1:
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


# ---- several places ----------------------------------------------------------------------------------------------


def _cat(walk: Walk, node: fx.Node) -> Value | None:
    args = arguments(node)
    operands = [walk.values[n] for n in args["tensors"]]
    held = [v for v in operands if isinstance(v, Value)]
    shape, axis = walk.shape(node), int(args["dim"])
    roles = list(broadcast([v.roles for v in held], [v.shape for v in held]))
    sizes = [v.shape[axis] for v in operands]
    parts = [
        (size / shape[axis], v.known if isinstance(v, Value) else of_constant(v, tuple(roles)))
        for size, v in zip(sizes, operands, strict=True)
    ]
    axis %= len(shape)
    roles[axis] = roles[axis] or (frozenset("c") if axis == 1 else frozenset("p"))
    return Value(shape, tuple(roles), mixed(parts, channels="c" in roles[axis]))


def _dropout(walk: Walk, node: fx.Node) -> Value:
    x = first_read(walk, node)
    rate = float(arguments(node).get("p") or 0.0)
    if not walk.training or not 0 < rate < 1:
        return x
    more = x.known.second * rate / (1 - rate)
    return Value(x.shape, x.roles, x.known.plus(Power(place=more)))


def _pad(walk: Walk, node: fx.Node) -> Value | None:
    args, x, shape = walk.given(arguments(node)), first_read(walk, node), walk.shape(node)
    if args.get("mode", "constant") != "constant" or float(args["value"] or 0) != 0 or min(args["pad"], default=0) < 0:
        return None
    roles = list(x.roles)
    power = x.known
    for axis, (before, after) in enumerate(zip(x.shape, shape, strict=True)):
        if before != after:
            share, channels = before / after, "c" in roles[axis]
            power = mixed([(share, power), (1 - share, Power())], channels=channels)
            roles[axis] = roles[axis] or frozenset("p")
    return Value(shape, tuple(roles), power)


def _mean(walk: Walk, node: fx.Node) -> Value | None:
    args, x, shape = arguments(node), first_read(walk, node), walk.shape(node)
    dims = args["dim"]
    axes = (
        {d % len(x.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])} if dims is not None else None
    )
    if axes is None or any(x.roles[i] - {"p"} for i in axes) or not node.meta["val"].is_floating_point():
        return None
    places = math.prod(x.shape[i] for i in axes)
    power = x.known.averaged(places)
    power = power.scaled(places) if is_call(node, {aten.sum.dim_IntList}) else power
    keep = bool(args.get("keepdim"))
    roles = [frozenset() if i in axes else r for i, r in enumerate(x.roles) if keep or i not in axes]
    return Value(shape, tuple(roles), power)


def _avg_pool(walk: Walk, node: fx.Node) -> Value | None:
    args, x, shape = arguments(node), first_read(walk, node), walk.shape(node)
    rank = len(shape) - 2
    if any(pair(args["padding"], rank)) or args.get("divisor_override") or args.get("ceil_mode") or rank < 1:
        return None
    return Value(shape, x.roles, x.known.averaged(math.prod(pair(args["kernel_size"], rank))))


def _adaptive_pool(walk: Walk, node: fx.Node) -> Value | None:
    x, shape = first_read(walk, node), walk.shape(node)
    if len(shape) < 3 or any(a % b for a, b in zip(x.shape[2:], shape[2:], strict=True)):
        return None
    places = math.prod(x.shape[2:]) / math.prod(shape[2:])
    return Value(shape, x.roles, x.known.averaged(places))


Rule = Callable[[Walk, fx.Node], Value | None]
_SPECIAL: tuple[tuple[Container[Any], Callable[[Walk, fx.Node], Value | list[Value]]], ...] = (
    (NORMS, _norm),
    (WEIGHTED, _weighted),
    ({aten.embedding.default}, _embedding),
    (MOVEMENTS, _movement),
)
_RULES: tuple[tuple[Container[Any], Rule], ...] = (
    (_SAME, first_read),
    (DROPOUTS, _dropout),
    (ADDS | SUBS | MULS | DIVS, _linear_pair),
    (CATS, _cat),
    (PADS, _pad),
    (_MEANS, _mean),
    (AVG_POOLS, _avg_pool),
    (
        frozenset(
            {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
        ),
        _adaptive_pool,
    ),
)
