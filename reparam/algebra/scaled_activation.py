"""A scale passes through PReLU and through clamps, which change their slopes and bounds for it.

prelu_a(s x) = s prelu_a(x) for s > 0, and = (a s) prelu_{1/a}(x) for s < 0 and a != 0
s prelu_a(x) = prelu_a(s x) for s > 0, and = prelu_{1/a}(a s x) for s < 0 and a > 0
clamp(s x, l, h) = s clamp(x, l/s, h/s), and s clamp(x, l, h) = clamp(s x, s l, s h); for s < 0 the ends change places
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import FOLD_DTYPE, Program, Refusal, arguments, aten, is_call, op_name, place_of

from .channel_affine import along

CLAMPS = frozenset({aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor})
_AXIS = 1  # of the channels


@dataclass(frozen=True)
class Swap:
    """What an activation becomes. parameters: by name, one value or one for each channel."""

    target: Any
    parameters: tuple[tuple[str, Tensor], ...]


def takes_scale(program: Program, node: fx.Node) -> bool:
    """Whether the call is one of these activations, with constant slopes or bounds."""
    if node.target is aten.prelu.default:
        return program.constant(node.args[1]) is not None
    return is_call(node, CLAMPS) and _bounds(program, node) is not None


def scale_before(program: Program, node: fx.Node, scale: Tensor) -> tuple[Tensor, Swap] | Refusal:
    """f(scale*x) as scale'*f'(x): the scale that comes out, and f'."""
    if node.target is aten.prelu.default:
        slopes = _slopes(program, node)
        s, a = _paired(node, scale, slopes)
        if isinstance(s, Refusal):
            return s
        turned = s < 0
        if bool((turned & (a == 0)).any()):
            return _no_slope(node, turned & (a == 0))
        out = torch.where(turned, a * s, s)
        return _shaped(out, scale), Swap(node.target, (("slopes", torch.where(turned, 1 / a, a)),))
    return _through_clamp(program, node, scale, forwards=True)


def scale_behind(program: Program, node: fx.Node, scale: Tensor) -> tuple[Tensor, Swap] | Refusal:
    """scale*f(x) as f'(scale'*x): the scale that the operand gets, and f'."""
    if node.target is aten.prelu.default:
        s, a = _paired(node, scale, _slopes(program, node))
        if isinstance(s, Refusal):
            return s
        turned = s < 0
        if bool((turned & (a <= 0)).any()):
            return _no_slope(node, turned & (a <= 0))
        before = torch.where(turned, a * s, s)
        return _shaped(before, scale), Swap(node.target, (("slopes", torch.where(turned, 1 / a, a)),))
    return _through_clamp(program, node, scale, forwards=False)


def emit_swap(program: Program, swap: Swap, x: fx.Node, node: fx.Node) -> fx.Node:
    """The call of `swap` on `x` in the place of `node`. Bounds that are the same for all channels are numbers."""
    rank = x.meta["val"].dim()
    if swap.target is aten.prelu.default:
        (name, slopes), *_ = swap.parameters
        weight = program.weight(slopes, f"{place_of(node)}.{name}", like=node)
        return program.call(aten.prelu.default, (x, weight), like=node)
    ends = [v for _, v in swap.parameters]
    if all(bool((v == v[0]).all()) for v in ends):
        low, high = (None if math.isinf(float(v[0])) else float(v[0]) for v in ends)
        return program.call(aten.clamp.default, (x, low, high), like=node)
    made = []
    for name, value in swap.parameters:
        shaped = value.reshape([-1] + [1] * (rank - 1 - _AXIS))
        made.append(program.weight(shaped, f"{place_of(node)}.{name}", trainable=False, like=node))
    return program.call(aten.clamp.Tensor, (x, *made), like=node)


def _slopes(program: Program, node: fx.Node) -> Tensor:
    slopes = program.tensor(node.args[1])
    assert slopes is not None
    return slopes.reshape(-1)


def _bounds(program: Program, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Both ends of a clamp, each with one value or one for each channel."""
    if node.target is aten.relu6.default:
        return torch.zeros(1, dtype=FOLD_DTYPE), torch.full((1,), 6.0, dtype=FOLD_DTYPE)
    args = arguments(node)
    ends = []
    for names, default in ((("min", "min_val"), -math.inf), (("max", "max_val"), math.inf)):
        value = next(args[n] for n in names if n in args)
        if value is None or isinstance(value, (int, float)):
            ends.append(torch.full((1,), default if value is None else float(value), dtype=FOLD_DTYPE))
            continue
        tensor = program.tensor(value)
        if tensor is None or tensor.dim() > node.meta["val"].dim():
            return None
        lifted = tensor.reshape([1] * (node.meta["val"].dim() - tensor.dim()) + list(tensor.shape))
        try:
            vector = along(lifted, _AXIS)
        except ValueError:
            return None
        assert vector is not None
        ends.append(vector)
    low, high = torch.broadcast_tensors(*ends)
    return (low, high) if bool((low <= high).all()) else None


def _paired(node: fx.Node, scale: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor] | tuple[Refusal, Tensor]:
    """Scale and parameter as vectors of one length; a zero in the scale has no way back."""
    try:
        s = along(scale, _AXIS)
    except ValueError:
        return Refusal(f"the scale varies along other axes than the channels of {op_name(node)}", node), parameter
    assert s is not None
    if bool((s == 0).any()):
        return Refusal(f"{op_name(node)} does not let a scale of zero through", node), parameter
    both: tuple[Tensor, Tensor] = tuple(torch.broadcast_tensors(s, parameter.to(s.device)))
    return both


def _no_slope(node: fx.Node, where: Tensor) -> Refusal:
    count = int(where.sum())
    return Refusal(f"{op_name(node)} lets no negative scale through where its slope is not positive ({count})", node)


def _shaped(vector: Tensor, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[_AXIS] = vector.numel()
    return vector.reshape(shape)


def _through_clamp(program: Program, node: fx.Node, scale: Tensor, *, forwards: bool) -> tuple[Tensor, Swap] | Refusal:
    bounds = _bounds(program, node)
    assert bounds is not None
    low, high = bounds
    s, low = _paired(node, scale, low)
    if isinstance(s, Refusal):
        return s
    factor = 1 / s if forwards else s
    ends = (factor * low, factor * high.to(s.device).expand(low.shape))
    lower, upper = torch.minimum(*ends), torch.maximum(*ends)
    return scale, Swap(aten.clamp.Tensor, (("low", lower), ("high", upper)))
