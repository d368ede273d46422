"""Rounding bounds: how large the difference of two equal float64 expressions may be.

The standard bound for a sum of n products computed in any order is |fl(s) - s| <= gamma_n * sum|w||x| with
gamma_n = n*eps / (1 - n*eps) (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3). So each region is run
once more on absolute values: a convolution on |x|, |w|, |b|; a sum adds where the original subtracts. The result, M,
bounds every sum|w||x| inside, and the bound is n * eps * M with n the accumulation lengths added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .evaluate import weight_value
from .ops import (
    ACTIVATIONS,
    ADDS,
    DIVS,
    LINEARS,
    MATMULS,
    MULS,
    NORMS,
    PADS,
    SUBS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    op_name,
)
from .program import Program, is_float, shape_of

Values = Mapping[fx.Node, Any]
_OFFSETS = frozenset({aten.sigmoid.default, aten.hardsigmoid.default, aten.softplus.default, aten.softmax.int})


def _abs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.abs() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return [_abs(v) for v in value]
    return value


def _substitute(node: fx.Node, env: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
    return args, dict(kwargs)


def _same_op(node: fx.Node, env: Values, actual: Values) -> Any:
    args, kwargs = _substitute(node, env)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _sum(node: fx.Node, env: Values, actual: Values) -> Tensor:
    args = arguments(node)
    alpha = args.get("alpha", 1)
    left, right = (_abs(env[a]) if isinstance(a, fx.Node) else abs(a) for a in (args["self"], args["other"]))
    return torch.as_tensor(left + right * (abs(alpha) if isinstance(alpha, (int, float)) else 1))


def _product(node: fx.Node, env: Values, actual: Values) -> Tensor:
    args = arguments(node)
    left, right = (_abs(env[a]) if isinstance(a, fx.Node) else abs(a) for a in (args["self"], args["other"]))
    return torch.as_tensor(left * right)


def _quotient(node: fx.Node, env: Values, actual: Values) -> Tensor:
    args = arguments(node)
    other = args["other"]
    divisor = _abs(actual[other]) if isinstance(other, fx.Node) else abs(other)
    return torch.as_tensor(env[args["self"]] / divisor)


def _activation(node: fx.Node, env: Values, actual: Values) -> Tensor:
    operand = next(i for i in node.all_input_nodes if is_float(i))
    grown: Tensor = env[operand] * ACTIVATIONS[node.target]
    return grown + 1.0 if node.target in _OFFSETS else grown


def _norm(node: fx.Node, env: Values, actual: Values) -> Tensor:
    """|gamma|*(M + mean M)/std + |beta| with the value's own std; batch statistics that are weights count as such."""
    args = arguments(node)
    x = args["input"]
    magnitude: Tensor = env[x]
    if node.target is aten.batch_norm.default and not args["training"]:
        shape = [1, -1] + [1] * (magnitude.dim() - 2)
        scale = (actual[args["running_var"]] + args["eps"]).rsqrt()
        scale = scale * (_abs(actual[args["weight"]]) if args["weight"] is not None else 1.0)
        shift = _abs(actual[args["running_mean"]]) * scale
        shift = shift + (_abs(actual[args["bias"]]) if args["bias"] is not None else 0.0)
        bound: Tensor = magnitude * scale.reshape(shape) + shift.reshape(shape)
        return bound
    out: Tensor = actual[node]
    return out.abs() + _spread(magnitude, actual[x], out)


def _spread(magnitude: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """A bound for what normalising amplifies: the largest output for each unit of input, times the magnitude."""
    gain = (out.abs().amax() + 1.0) / value.std().clamp_min(1e-30)
    return (magnitude.amax() * gain).expand_as(out)


def _fallback(node: fx.Node, env: Values, actual: Values) -> Any:
    """For an unknown operator: the largest operand magnitude everywhere, on top of the value itself."""
    out = actual[node]
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    tops = [float(env[i].max()) for i in node.all_input_nodes if is_float(i) and env[i].numel()]
    return out.abs() + max(tops, default=1.0)


_SAME = WEIGHTED | (MATMULS - {aten.scaled_dot_product_attention.default})


def _rule(node: fx.Node) -> Callable[[fx.Node, Values, Values], Any]:
    if node.target in _SAME or node.target in PADS:
        return _same_op
    if node.target in ADDS or node.target in SUBS:
        return _sum
    if node.target in MULS:
        return _product
    if node.target in DIVS:
        return _quotient
    if node.target in ACTIVATIONS:
        return _activation
    if node.target in NORMS:
        return _norm
    if op_name(node).startswith(_MONOTONE):
        return _same_op
    return _fallback


_MONOTONE = (
    "avg_pool",
    "adaptive_avg_pool",
    "max_pool",
    "mean",
    "sum",
    "cat",
    "permute",
    "transpose",
    "reshape",
    "view",
    "flatten",
    "unflatten",
    "slice",
    "select",
    "split",
    "chunk",
    "unbind",
    "getitem",
    "expand",
    "repeat",
    "roll",
    "flip",
    "squeeze",
    "unsqueeze",
    "upsample_nearest",
    "upsample_bilinear",
    "contiguous",
    "clone",
    "to",
    "narrow",
    "index_select",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "sym_size",
)


def magnitudes(program: Program, region: Sequence[fx.Node], actual: Values) -> dict[fx.Node, Any]:
    """M for every node of `region` (in execution order); `actual` holds all values, those it reads included."""
    env: dict[fx.Node, Any] = {}
    for node, value in actual.items():
        if node not in region:
            env[node] = _abs(value)
    for node in region:
        if node.op == "get_attr":
            env[node] = _abs(weight_value(program, node, torch.float64))
        else:
            env[node] = _rule(node)(node, env, actual)
    return env


def accumulation_length(region: Sequence[fx.Node]) -> int:
    """The n of the bound: fan-ins of the weighted operators added up, and a few roundings for every other one."""
    total = 0
    for node in region:
        if is_call(node, WEIGHTED):
            weight = shape_of(arguments(node)["weight"])
            fan_in = weight[1] if is_call(node, LINEARS) else math.prod(weight[1:])
            total += max(fan_in, weight[0]) + 8
        elif is_call(node, MATMULS):
            total += max((s for i in node.all_input_nodes if is_float(i) for s in shape_of(i)), default=1)
        elif node.op == "call_function":
            total += 16
    return total
