"""Operators that treat every channel by itself, all in the same way: pools, resizing, means, padding, norms.

y_c = f(x_c):   equal channels give equal ones; a constant stays the constant where f is an average, a maximum or a
                resizing, and everywhere where f normalises it away
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import batch_norm_affine
from reparam.ir import AVG_POOLS, MAX_POOLS, PADS, arguments, aten, is_call, is_float, op_name, pair, shape_of

from .family import SPARED, Ask, Builder, Conflict, Known, Request
from .following import base_of
from .value import Channels, first_of, structure

_SPREADS = frozenset({aten.std.correction, aten.std.dim, aten.var.correction, aten.var.dim})
_REDUCTIONS = _SPREADS | {
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.amin.default,
    aten.logsumexp.default,
    aten.linalg_vector_norm.default,
}
_STARTS = ("adaptive_avg_pool", "upsample_", "_upsample_")
_EXTREMES = frozenset(  # with their places
    {
        *(aten.max.dim, aten.min.dim, aten.median.dim, aten.kthvalue.default),
        *(aten.sort.default, aten.sort.stable, aten.topk.default),
    }
)
_PLACED = ("adaptive_max_pool", "max_pool1d_with", "max_pool2d_with", "max_pool3d_with")
_ALONG = frozenset({aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default})
_KEEPS = frozenset({aten.mean.dim, aten.amax.default, aten.amin.default})


def _x(node: fx.Node) -> fx.Node:
    given = arguments(base_of(node))
    x = given["input"] if "input" in given else given["self"]
    assert isinstance(x, fx.Node)
    return x


class Apart:
    """Pools, resizing, reductions and padding that leave the channels alone; of those with two results the values."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        facts = known.of(_x(node))
        axes = None if facts is None else _kept_axes(node, facts)
        if facts is None or axes is None:
            return None
        constant = torch.where(_holds(node, facts), facts.constant, math.nan)
        return Channels(axes, facts.sizes, constant, facts.first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        kept = structure(wanted, known.facts[node].sizes)
        unread = frozenset({base_of(node)} - {node})  # the values are made by a call of their own
        return Ask(kept, {_x(node): Request(kept.flatten(), ordered=True)}, unread)

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        base = base_of(node)
        x = builder.take(_x(node), kept, like=node, bound=SPARED)
        args = fx.node.map_arg(base.args, lambda n: x if n is _x(node) else builder.whole(n, like=node))
        kwargs = fx.node.map_arg(base.kwargs, lambda n: builder.whole(n, like=node))
        made = builder.call(base.target, args, kwargs, like=node)
        return made if base is node else builder.call(operator.getitem, (made, node.args[1]), like=node)


def is_apart(node: fx.Node) -> bool:
    """Whether the call belongs to the family, if its operand's channels lie along other axes than it works on."""
    if not is_float(node):
        return False
    if node.target is operator.getitem:
        return bool(node.args[1] == 0) and _is_extreme(base_of(node))
    name = op_name(node)
    return is_call(node, AVG_POOLS | MAX_POOLS | PADS | _REDUCTIONS | _ALONG) or name.startswith(_STARTS)


def _is_extreme(node: fx.Node) -> bool:
    """Whether the call gives values in their order, or some of them, and their places."""
    return is_call(node, _EXTREMES) or op_name(node).startswith(_PLACED)


def _kept_axes(node: fx.Node, facts: Channels) -> tuple[int, ...] | None:
    """Where the channels lie in the result, None when the call mixes them or leaves them out."""
    ndim, node = len(shape_of(_x(node))), base_of(node)
    given = arguments(node)
    if is_call(node, _REDUCTIONS | _EXTREMES):
        dims = given["dim"] if given["dim"] is not None else []
        gone = {d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])} or set(range(ndim))
        if gone & set(facts.axes):
            return None
        return facts.axes if given.get("keepdim", True) else tuple(a - sum(g < a for g in gone) for a in facts.axes)
    if is_call(node, _ALONG):
        return None if given["dim"] % ndim in facts.axes else facts.axes
    if is_call(node, PADS):
        pads = list(given["pad"])
        padded = {ndim - 1 - i // 2 for i, p in enumerate(pads) if not isinstance(p, int) or p}
        return None if padded & set(facts.axes) else facts.axes
    return facts.axes if ndim >= 3 and max(facts.axes) <= 1 and 0 not in facts.axes else None


def _holds(node: fx.Node, facts: Channels) -> Tensor:
    """(C,), bool: the constants that stay what they are."""
    if _is_extreme(base_of(node)):
        return facts.known
    given, zero = arguments(node), facts.constant == 0
    if is_call(node, AVG_POOLS):
        counted = given["count_include_pad"] and any(pair(given["padding"], len(shape_of(node)) - 2))
        plain = not counted and given.get("divisor_override") is None and not given["ceil_mode"]
        return facts.known if plain else zero
    if is_call(node, PADS):
        cuts = all(isinstance(p, int) and p <= 0 for p in given["pad"])
        if cuts or given.get("mode", "constant") != "constant":
            return facts.known
        return facts.constant == float(given.get("value") or 0)
    if is_call(node, MAX_POOLS | _KEEPS) or op_name(node).startswith(_STARTS):
        return facts.known
    if is_call(node, _SPREADS | {aten.sum.dim_IntList, aten.cumsum.default}):
        return zero
    return torch.zeros_like(zero)


class BatchNorm:
    """y_c = a_c x_c + t_c, with statistics that are weights."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        pair_ = _affine(known, node)
        facts = known.along(_x(node), 1)
        if pair_ is None or facts is None:
            return None
        scale, shift = pair_
        constant = torch.where(scale == 0, shift, scale * facts.constant + shift)
        first = first_of(torch.where(constant.isnan(), facts.first, -1), scale, shift, constant)
        return Channels((1,), facts.sizes, constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        kept = structure(wanted, known.facts[node].sizes)
        return Ask(kept, {_x(node): Request(kept, ordered=True)})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        return _cut_norm(builder, node, kept, {})


def _affine(known: Known, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    given = arguments(node)
    if given["training"]:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    values = {n: known.program.tensor(given[n]) for n in names}
    if any(given[n] is not None and values[n] is None for n in names):
        return None
    mean, var = values["running_mean"], values["running_var"]
    if mean is None or var is None:
        return None
    scale, shift = batch_norm_affine(values["weight"], values["bias"], mean, var, float(given["eps"]))
    return scale.cpu(), shift.cpu()


def _cut_norm(builder: Builder, node: fx.Node, kept: Tensor, changed: dict[str, Any]) -> Any:
    """The norm on some channels: its weights are cut to them, the arguments `changed` replaced."""
    known, given = builder.known, arguments(node)
    x = builder.take(_x(node), kept, like=node, bound=SPARED)
    args: dict[str, Any] = {**given, "input": x, **changed}
    for name in ("weight", "bias", "running_mean", "running_var"):
        operand = given.get(name)
        value = known.program.tensor(operand)
        if operand is not None and value is not None:
            origin = known.program.constants[str(operand.target)].origin
            index = kept.flatten().to(value.device)
            args[name] = builder.weight(value[index], origin, like=node, source=operand)
        elif operand is not None:
            raise Conflict(node)
    return builder.call(node.target, tuple(args.values()), like=node)


class GroupNorm:
    """Each group is normalised by itself; groups stay whole."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        given, facts = arguments(node), known.along(_x(node), 1)
        values = [known.program.tensor(given[n]) for n in ("weight", "bias")]
        if facts is None or not given.get("use_input_stats", True):
            return None
        if any(v is None and given[n] is not None for v, n in zip(values, ("weight", "bias"), strict=True)):
            return None
        one, count = torch.ones(facts.count, dtype=torch.float64), facts.count // _groups(node)
        gamma, beta = (
            (one if values[0] is None else values[0].cpu()),
            (0 * one if values[1] is None else values[1].cpu()),
        )
        lone = count == 1 and node.target is aten.instance_norm.default
        constant = torch.where((gamma == 0) | (facts.known if lone else gamma == 0), beta, math.nan)
        group = torch.arange(facts.count) // count if count > 1 else torch.zeros(facts.count)
        first = first_of(torch.where(constant.isnan(), facts.first, -1), group, gamma, beta, constant)
        return Channels((1,), facts.sizes, constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        facts = known.facts[node]
        size = facts.count // _groups(node)
        groups = structure(wanted // size, (_groups(node),))
        kept = (groups[:, None] * size + torch.arange(size)).flatten()
        return Ask(kept, {_x(node): Request(kept, ordered=True)})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        given = arguments(node)
        if "num_groups" not in given:
            return _cut_norm(builder, node, kept, {})
        groups = len(kept) * _groups(node) // builder.known.facts[node].count
        return _cut_norm(builder, node, kept, {"num_groups": groups})


def _groups(node: fx.Node) -> int:
    given = arguments(node)
    return int(given["num_groups"]) if "num_groups" in given else shape_of(node)[1]


class LayerNorm:
    """All channels are normalised together, so all are read; which of the results are read is free."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        given, facts = arguments(node), known.of(_x(node))
        axis = len(shape_of(node)) - 1
        gamma, beta = (known.program.tensor(given.get(n)) for n in ("weight", "bias"))
        if facts is None or facts.axes != (axis,) or len(given["normalized_shape"]) != 1:
            return None
        if any(v is None and given.get(n) is not None for v, n in ((gamma, "weight"), (beta, "bias"))):
            return None
        one = torch.ones(facts.count, dtype=torch.float64)
        gamma, beta = (one if gamma is None else gamma.cpu()), (0 * one if beta is None else beta.cpu())
        constant = torch.where(gamma == 0, beta, math.nan)
        first = first_of(torch.where(constant.isnan(), facts.first, -1), gamma, beta, constant)
        return Channels((axis,), facts.sizes, constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        every = torch.arange(known.facts[node].count)
        return Ask(every, {_x(node): Request(every, ordered=True)})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        x = builder.take(_x(node), torch.arange(len(kept)), like=node)
        args = fx.node.map_arg(node.args, lambda n: x if n is _x(node) else n)
        return builder.call(node.target, args, node.kwargs, like=node)
