"""Rounding bounds: how large the difference of two equal float64 expressions may be.

The standard bound for a sum of n products computed in any order is |fl(s) - s| <= gamma_n * sum|w||x| with
gamma_n = n*eps / (1 - n*eps) (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3). So each region is run
once more on absolute values: a convolution on |x|, |w|, |b|; a sum adds where the original subtracts. The result, M,
bounds every sum|w||x| inside, and the bound is n * eps * M with n the accumulation lengths added up.

Where two computed values are multiplied, and behind a gate, M follows the values themselves, since its own square would
soon be larger than any number:

    x * y                      |x| M(y) + |y| M(x) + n eps M(x) M(y)
    sigmoid, tanh, erf, ... f  f'(max(|x| - n eps M(x), 0)) M(x) + |f(x)|, where f' is even and falls with |x|
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ACTIVATIONS,
    ADDS,
    DIVS,
    MATMULS,
    MULS,
    NORMS,
    PADS,
    SMALL_MAPS,
    SUBS,
    WEIGHTED,
    Program,
    Values,
    arguments,
    aten,
    is_call,
    is_float,
    is_float_cast,
    is_tensor,
    op_name,
    shape_of,
)

from .values import is_number

_OFFSETS = frozenset({aten.softplus.default, aten.softmax.int})
_BELLS: Mapping[Any, Callable[[Tensor], Tensor]] = {  # f'(x) for x >= 0 of those f whose f' is even and falls with |x|
    aten.sigmoid.default: lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
    aten.hardsigmoid.default: lambda x: (x <= HARD_END).to(x) / 6,
    aten.tanh.default: lambda x: 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x),
    aten.erf.default: lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square()),
}
EPS = torch.finfo(torch.float64).eps
MANY = 1 << 18  # products of magnitudes, which are then added up in float32
HARD_END = 3.0  # where a hardsigmoid ends to grow


def _abs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.abs() if is_number(value) else value
    if isinstance(value, (list, tuple)):
        return [_abs(v) for v in value]
    return value


def _size(value: Any) -> Any:
    """|value| of an operand of a sum or product, which may be of integers."""
    return value.abs() if isinstance(value, Tensor) and value.dtype != torch.bool else value


def _substitute(node: fx.Node, env: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
    return args, dict(kwargs)


def _same_op(node: fx.Node, env: _Magnitudes, actual: Values) -> Any:
    args, kwargs = _substitute(node, env)
    if is_float_cast(node):
        return args[0]  # in float64, whatever the dtype
    function = SMALL_MAPS.get(node.target, node.target)
    assert callable(function)
    return function(*args, **kwargs)


def _products(node: fx.Node, env: _Magnitudes, actual: Values) -> Any:
    """Sums of |w||x|. Many of them are taken in float32, and rounded up by what that may lose.

    Of k products, each may lose 2**-6 of itself at the lowest precision that torch may be told to compute in, their sum
    k * 2**-23 in float32, and each that is too small for float32 gets lost, with what it is made of.
    """
    args = arguments(node)
    shape = shape_of(args["weight"])
    count = max(math.prod(shape[1:]), shape[0])  # the latter where the convolution is transposed
    if math.prod(actual[node].shape) * count < MANY:
        return _same_op(node, env, actual)
    given = {n: env.narrow(n) for n in node.all_input_nodes}
    found: Tensor = node.target(*fx.node.map_arg(node.args, given.get), **fx.node.map_arg(node.kwargs, given.get))  # type: ignore[operator]
    largest = sum(float(v.max()) for v in given.values() if isinstance(v, Tensor))
    if not bool(torch.isfinite(found).all()):  # larger than a number of float32
        return _same_op(node, env, actual)
    return found.double() * (1 + 2**-6 + count * 2**-23) + count * 2**-124 * (1 + largest)


def _frame(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """A pad, whose constant may be negative."""
    padded: Tensor = _same_op(node, env, actual)
    return padded.abs()


def _parts(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """Neither part of a complex number is larger than the number."""
    size: Tensor = env[arguments(node)["self"]]
    return torch.stack([size, size], -1)


def _sum(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    args = arguments(node)
    given = (args[k] for k in ("self", "other", "alpha"))
    left, right, alpha = (_size(env[a]) if isinstance(a, fx.Node) else abs(a) for a in given)
    return torch.as_tensor(left + right * alpha)


def _product(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """The second-order term counts too: with M as large as here it may be the larger one."""
    given = [arguments(node)[k] for k in ("self", "other")]
    left, right = (_size(env[a]) if isinstance(a, fx.Node) else abs(a) for a in given)
    if not all(isinstance(a, fx.Node) and a in env.computed for a in given):  # one is exact
        return torch.as_tensor(left * right)
    x, y = (_size(actual[a]) for a in given)
    return torch.as_tensor(x * right + y * left + env.unit * left * right)


def _quotient(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    args = arguments(node)
    other = args["other"]
    divisor = _abs(actual[other]) if isinstance(other, fx.Node) else abs(other)
    return torch.as_tensor(env[args["self"]] / divisor)


def _activation(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    operand = next(i for i in node.all_input_nodes if is_float(i))
    if node.target in _BELLS:
        nearest = (_abs(actual[operand]) - env.unit * env[operand]).clamp_min(0.0)
        bell: Tensor = _BELLS[node.target](nearest) * env[operand] + _abs(actual[node])
        return bell
    grown: Tensor = env[operand] * ACTIVATIONS[node.target]
    return grown + 1.0 if node.target in _OFFSETS else grown


def _gated(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """glu(x) is the product of the first half of x and the sigmoid of the second."""
    args = arguments(node)
    x, gate = actual[args["self"]].chunk(2, args["dim"])
    left, right = env[args["self"]].chunk(2, args["dim"])
    opened = torch.sigmoid(gate)
    right = _BELLS[aten.sigmoid.default]((gate.abs() - env.unit * right).clamp_min(0.0)) * right + opened
    bound: Tensor = x.abs() * right + opened * left + env.unit * left * right
    return bound


def _slopes(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """|prelu(x)| <= max(1, |a|)*|x| with a slope for each channel (axis 1)."""
    args = arguments(node)
    slope: Tensor = _abs(actual[args["weight"]]).clamp_min(1.0)
    x: Tensor = env[args["self"]]
    return x * slope.reshape([-1] + [1] * max(x.dim() - 2, 0))


def _bounds(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """A clamp moves no two values apart; its result may be larger than its operand."""
    out: Tensor = actual[node]
    return torch.maximum(env[arguments(node)["self"]], out.abs())


def _norm(node: fx.Node, env: _Magnitudes, actual: Values) -> Tensor:
    """|gamma|*(M + |mu|)/sqrt(var + eps) + |beta| for statistics that are weights; see `_own_statistics` for others."""
    args = arguments(node)
    x, magnitude = actual[args["input"]], env[args["input"]]
    along = [1, -1] + [1] * (x.dim() - 2)
    if args.get("training", True) and args.get("use_input_stats", True):
        bound = _own_statistics(node, magnitude, x)
    else:
        scale = (actual[args["running_var"]] + args["eps"]).rsqrt()
        bound = (magnitude + _abs(actual[args["running_mean"]]).reshape(along)) * scale.reshape(along)
    trailing = node.target in _TRAILING
    gamma, beta = (_abs(actual[args[k]]) if args.get(k) is not None else None for k in ("weight", "bias"))
    bound = bound if gamma is None else bound * (gamma if trailing else gamma.reshape(along))
    return bound if beta is None else bound + (beta if trailing else beta.reshape(along))


_TRAILING = frozenset({aten.layer_norm.default, aten.rms_norm.default})


def _own_statistics(node: fx.Node, magnitude: Tensor, value: Tensor) -> Tensor:
    """The bound of z = (x - mean x) / s with s = sqrt(var x + eps): (M + mean M + |z| * mean |z|M) / s.

    It is the derivative, dz = (dx - mean dx - z * mean(z dx)) / s, taken on absolute values. A root mean square norm
    lacks the means. s belongs to each row (layer norm) or group: a nearly constant one amplifies rounding the most.
    """
    args = arguments(node)
    rows = _rows(node, value.shape)
    x, m = rows(value), rows(magnitude)
    if node.target is not aten.rms_norm.default:
        x, m = x - x.mean(-1, keepdim=True), m + m.mean(-1, keepdim=True)
    eps = args["eps"] if args["eps"] is not None else torch.finfo(value.dtype).eps
    s = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    z = x.abs() / s
    bound: Tensor = (m + z * (z * rows(magnitude)).mean(-1, keepdim=True)) / s
    if node.target is aten.batch_norm.default:
        return bound.reshape(value.transpose(0, 1).shape).transpose(0, 1)
    return bound.reshape(value.shape)


def _rows(node: fx.Node, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Brings the values that are normalised together onto the last axis."""
    args = arguments(node)
    if node.target in _TRAILING:
        return lambda v: v.flatten(v.dim() - len(args["normalized_shape"]))
    if node.target is aten.batch_norm.default:
        return lambda v: v.transpose(0, 1).flatten(1)
    groups = args["num_groups"] if node.target is aten.group_norm.default else shape[1]
    return lambda v: v.reshape(shape[0], groups, -1)


def _fallback(node: fx.Node, env: _Magnitudes, actual: Values) -> Any:
    """For an unknown operator: the largest operand magnitude everywhere, on top of each value itself."""
    tops = [float(env[i].max()) for i in node.all_input_nodes if is_number(env[i]) and env[i].numel()]
    return _grown(actual[node], max(tops, default=1.0))


def _grown(value: Any, by: float) -> Any:
    """|value| + by, of each piece where there are several; what is no number stays."""
    if isinstance(value, (list, tuple)):
        return [_grown(v, by) for v in value]
    return value.abs() + by if isinstance(value, Tensor) and is_number(value) else value


_CLAMPS = frozenset(
    {
        aten.clamp.Tensor,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        aten.hardtanh.default,
    }
)
_SAME = MATMULS - {aten.scaled_dot_product_attention.default}


_Rule = Callable[[fx.Node, "_Magnitudes", Values], Any]
_RULES: tuple[tuple[Container[Any], _Rule], ...] = (
    (WEIGHTED, _products),
    (_SAME, _same_op),
    (PADS, _frame),
    ({aten.view_as_real.default}, _parts),
    (ADDS | SUBS, _sum),
    (MULS, _product),
    (DIVS, _quotient),
    (_CLAMPS, _bounds),
    (ACTIVATIONS, _activation),
    ({aten.glu.default}, _gated),
    ({aten.prelu.default}, _slopes),
    (NORMS, _norm),
)


def _rule(node: fx.Node) -> _Rule:
    own = next((rule for targets, rule in _RULES if node.target in targets), None)
    name = op_name(node)
    return own or (_same_op if name == "to" or name.startswith(_MONOTONE) else _fallback)


_MONOTONE = (
    "avg_pool",
    "adaptive_avg_pool",
    "adaptive_max_pool",
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
    "narrow",
    "index_select",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "sym_size",
)


class _Magnitudes(Values):
    """Magnitudes of nodes; those of weights are computed whenever they are read.

    computed: the nodes that carry errors of rounding. unit: n * eps of the region.
    """

    computed: Set[fx.Node] = frozenset()
    unit: float = 0.0

    def __missing__(self, node: fx.Node) -> Any:
        value = super().__missing__(node)
        if not is_number(value):
            return value
        own = self.program.constants[str(node.target)].value.untyped_storage().data_ptr()
        shared = value.untyped_storage().data_ptr() == own
        return value.abs() if shared or value.is_complex() else value.abs_()

    def narrow(self, node: fx.Node) -> Any:
        """The magnitudes in float32, those of weights without a detour over float64; a size as it is."""
        if node.op != "get_attr":
            return self[node].float() if isinstance(self[node], Tensor) else self[node]
        own = self.program.constants[str(node.target)].value.detach()
        return own.float().abs_() if own.dtype == torch.float64 else own.abs().float()


def magnitudes(program: Program, region: Sequence[fx.Node], actual: Values) -> Values:
    """M for every node of `region` (in execution order); `actual` holds all values, those it reads included."""
    inside = set(region)
    known = {node: _abs(value) for node, value in actual.items() if node not in inside}
    env = _Magnitudes(program, torch.float64, known)
    env.computed = {n for n in region if n.op != "get_attr"}
    env.unit = EPS * accumulation_length(region)
    for node in region:
        if node.op == "get_attr":
            continue
        own = actual[node]
        exact = isinstance(own, Tensor) and not is_number(own)  # integers and decisions are what they are
        env[node] = own if exact else _real(_rule(node)(node, env, actual), any(map(_is_signed, node.all_input_nodes)))
        program.give_back(node)
    return env


def _is_signed(node: fx.Node) -> bool:
    return is_tensor(node) and not is_float(node)


def _real(value: Any, signed: bool) -> Any:
    """Magnitudes are real; a complex view of them is not. Integers that became numbers bring their signs."""
    if isinstance(value, (list, tuple)):
        return [_real(v, signed) for v in value]
    return value.abs() if isinstance(value, Tensor) and (signed or value.is_complex()) else value


def accumulation_length(region: Sequence[fx.Node]) -> int:
    """The n of the bound: fan-ins of the weighted operators added up, and a few roundings for every other one."""
    total = 0
    for node in region:
        if is_call(node, WEIGHTED):
            weight = shape_of(arguments(node)["weight"])
            total += max(math.prod(weight[1:]), weight[0]) + 8
        elif is_call(node, MATMULS):
            total += max((s for i in node.all_input_nodes if is_float(i) for s in shape_of(i)), default=1)
        elif node.op == "call_function":
            total += 16
    return total
