"""How a scale passes a gated linear unit, which is linear in its first half: a (u sigmoid(g)) = (a u) sigmoid(g)."""

from __future__ import annotations

import torch
from torch import fx

from reparam.ir import Refusal, arguments, aten, shape_of, static_shape

from .channel_affine import Pair, compress

GLUS = frozenset({aten.glu.default})


def glu_backward(node: fx.Node, wanted: Pair) -> Pair | Refusal:
    """The scale of the operand, one on the gate, that makes `wanted` of the result."""
    axis = _axis(node)
    if wanted.shift is not None:
        return Refusal("glu does not let a shift through", node)
    size = static_shape(node)[axis]
    if size is None:
        return Refusal("the halves of this glu are of a free size", node)
    if wanted.scale is None:
        return wanted
    shape = list(wanted.scale.shape)
    shape[axis] = size
    first = wanted.scale.expand(shape)
    return Pair(compress(torch.cat([first, torch.ones_like(first)], axis)))


def glu_forward(node: fx.Node, carried: Pair) -> Pair | Refusal:
    """The scale of the result, which is that of the first half; the gate may have none."""
    axis = _axis(node)
    if carried.shift is not None:
        return Refusal("glu does not let a shift through", node)
    if carried.scale is None:
        return carried
    if carried.scale.shape[axis] == 1:  # which the gate has too
        first, gate = carried.scale, carried.scale
    else:
        first, gate = carried.scale.chunk(2, axis)
    if bool((gate != 1).any()):
        return Refusal("glu does not let a scale of its gate through", node)
    return Pair(compress(first))


def _axis(node: fx.Node) -> int:
    return int(arguments(node)["dim"]) % len(shape_of(node))
