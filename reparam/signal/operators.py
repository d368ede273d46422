"""What each family of operators makes of moments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
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
    RRELUS,
    STACKS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    is_float,
    pair,
)

from .drawing import by_drawing, first_read, part_by_drawing, remarked, unknown, values_read
from .functions import POOLS, is_pointwise
from .gaussian import power_of
from .joint import depends, jointly
from .norms import spelled_at
from .pointwise import LINEAR, linear_pair, pointwise, randomised, together
from .power import Power, Roles, measured, mixed
from .products import over_common_places, product
from .roles import broadcast, moved, usual
from .running import PRODUCTS
from .sources import meet, picker
from .values import Value, affine, of_constant
from .walk import Walk, weigh

_MEANS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
_SAME = IDENTITIES | CASTS


def carry(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """What is known of the result of a call that depends on the inputs."""
    operands = [walk.values[n] for n in node.all_input_nodes]
    if is_call(node, {operator.getitem}):
        whole, index = operands[0], node.args[1]
        if not isinstance(whole, list) or not isinstance(index, int):
            return unknown(walk, node)
        part = whole[index]
        known = not isinstance(part, Value) or part.power is not None or not is_float(node)
        return part if known else jointly(walk, node) or remarked(walk, node, part_by_drawing(walk, node))
    if any(isinstance(v, list) for v in operands):
        return unknown(walk, node)
    if is_call(node, PRODUCTS) and (layer := _matrix(walk, node)) is not None:
        return layer
    for family, special in _SPECIAL:
        if is_call(node, family):
            return special(walk, node)
    if any(isinstance(v, Value) and v.power is None for v in operands):
        return _of_unknown(walk, node)
    exact = together if is_call(node, LINEAR) else pointwise if is_pointwise(node) and not _has_rule(node) else None
    if exact is not None and (found := exact(walk, node)) is not None:
        return found
    if is_call(node, CATS | STACKS | _SAME | DROPOUTS | RRELUS | PADS) or not depends(walk, node, _reduced(walk, node)):
        return _independent(walk, node)
    if is_call(node, PRODUCTS) and over_common_places(walk, node):
        walk.dependent.append(node)
    return jointly(walk, node) or remarked(walk, node, _independent(walk, node))


def _reduced(walk: Walk, node: fx.Node) -> str:
    """What a call reduces, as far as it may: "p" for places, "c" for channels."""
    if is_call(node, _MEANS):
        x, dims = first_read(walk, node), arguments(node)["dim"]
        dims = range(len(x.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
        return "".join({k for d in dims for k in x.roles[d]})
    return "p" if is_call(node, POOLS) else "cp"


def _has_rule(node: fx.Node) -> bool:
    return any(is_call(node, family) for family, _ in _RULES)


def _independent(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """Of operands, and places, that do not depend on one another."""
    for family, rule in _RULES:
        if is_call(node, family):
            return rule(walk, node) or by_drawing(walk, node)
    return by_drawing(walk, node)


def _of_unknown(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """Of an operand of which nothing is known: something where it can be run, as places and truth values are, or where
    the call is the end of a norm that is spelled out."""
    if (found := jointly(walk, node)) is not None:
        return found
    x = spelled_at(walk.program, node, walk.order) if is_call(node, MULS | DIVS) else None
    return (None if x is None else jointly(walk, node, unit=walk.rep(x))) or unknown(walk, node)


# ---- layers, norms, tables ---------------------------------------------------------------------------------------


def _weighted(walk: Walk, node: fx.Node) -> Value | list[Value]:
    args = walk.given(arguments(node))
    x, weight, bias = args["input"], args["weight"], args["bias"]
    plain = isinstance(x, Value) and isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    if not plain or len(x.shape) < 2:
        return unknown(walk, node)
    return weigh(walk, node, x, weight, bias, arguments(node)["weight"])


def _matrix(walk: Walk, node: fx.Node) -> Value | None:
    """x W + b as a product with a constant matrix (n, m); None for another product."""
    given = list(arguments(node).values())[: 3 if is_call(node, {aten.addmm.default}) else 2]
    bias, x, weight = (None, None, None, *walk.given(given))[-3:]
    plain = isinstance(x, Value) and isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    if not plain or weight.dim() != 2 or len(x.shape) < 2:
        return None
    return weigh(walk, node, x, weight.t(), bias, given[-1])


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
    several = not isinstance(node.meta["val"], Tensor)
    values = []
    for i, (shape, roles) in enumerate(zip(shapes, results, strict=True)):
        track = x.track and x.track.moved(picker(run, i if several else None))
        sources = x.sources
        if track and math.prod(shape) < math.prod(x.shape):
            left = track.channels()
            sources = {key: mask & left for key, mask in sources.items()}
        values.append(
            Value(shape, roles, x.power, sources=sources, track=track, woven=x.woven | _repeated(x, roles, shape))
        )
    return values if several else values[0]


def _repeated(x: Value, roles: Roles, shape: Sequence[int]) -> frozenset[str]:
    """Whether channels, or places, are repeated in a result of those roles and that shape: there are more numbers."""

    def entries(roles: Roles, shape: Sequence[int], kinds: str) -> int:
        return math.prod(n for r, n in zip(roles, shape, strict=True) if r & set(kinds))

    if entries(roles, shape, "ncp") <= entries(x.roles, x.shape, "ncp"):
        return frozenset()
    return frozenset(k for k in "cp" if entries(roles, shape, k) > entries(x.roles, x.shape, k))


def _tensors(value: Any) -> Sequence[Tensor]:
    return value if isinstance(value, list | tuple) else [value]


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
    kind = "c" if "c" in roles[axis] else "p"
    return Value(shape, tuple(roles), mixed(parts, channels=kind == "c"), woven=_woven(walk, node, kind))


def _stack(walk: Walk, node: fx.Node) -> Value | None:
    """Of values alone. The new axis counts places, which are not alike: a sum over them is drawn."""
    args = arguments(node)
    held = [walk.values[n] for n in args["tensors"]]
    if not all(isinstance(v, Value) for v in held):
        return None
    shape = walk.shape(node)
    roles = list(broadcast([v.roles for v in held], [v.shape for v in held]))
    roles.insert(int(args["dim"]) % len(shape), frozenset("p"))
    power = mixed([(1 / len(held), v.known) for v in held], channels=False)
    return Value(shape, tuple(roles), power, woven=_woven(walk, node, "p") | {"p"})


def _woven(walk: Walk, node: fx.Node, kind: str) -> frozenset[str]:
    """What depends on one another in values side by side, along an axis of that kind."""
    held = [v for n in arguments(node)["tensors"] if isinstance(v := walk.values[n], Value)]
    known = frozenset().union(*(v.woven for v in held))
    return known | {kind} if any(meet(a.sources, b.sources) for a, b in combinations(held, 2)) else known


def _glu(walk: Walk, node: fx.Node) -> Value | None:
    """a*sigmoid(b), a and b the halves of the channels, which are independent."""
    x, axis = first_read(walk, node), arguments(node)["dim"]
    if "c" not in x.roles[axis] or x.woven:
        return None
    gate = power_of(x.law_at(node).values.to(torch.float64).sigmoid())
    return Value(walk.shape(node), x.roles, x.known.times(gate))


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
    power = x.known.averaged(math.prod(x.shape[i] for i in axes if x.roles[i]))  # along other axes values are repeated
    power = power.scaled(math.prod(x.shape[i] for i in axes)) if is_call(node, {aten.sum.dim_IntList}) else power
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
    (RRELUS, randomised),
    (LINEAR, linear_pair),
    (CATS, _cat),
    (STACKS, _stack),
    (PADS, _pad),
    (frozenset({aten.glu.default}), _glu),
    (_MEANS, _mean),
    (frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default}), product),
    (AVG_POOLS, _avg_pool),
    (
        frozenset(
            {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
        ),
        _adaptive_pool,
    ),
)
