"""What makes values of sizes and numbers alone, and what marks positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import MOST, Known, Value, known


def _filled(call: Call) -> Value:
    """A tensor of one number. A small one of integers stays known."""
    sizes = call.known(0, "shape")
    stored = call.node.attributes.get("value", known(0.0, torch.float32))
    if not isinstance(stored, Known) or stored.values.size != 1:
        raise call.node.refused("its value is no single number")
    number, dtype = stored.list()[0], stored.dtype
    numbers = sizes.list()
    if not sizes.symbolic and math.prod(numbers) <= MOST and not dtype.is_floating_point:
        count = math.prod(numbers)
        return Known(known([number] * count, dtype).values.reshape([int(n) for n in numbers]), dtype)
    return torch.full(numbers, number, dtype=dtype)


def _range(call: Call) -> Value:
    start, end, step = (call.number(i, "bound") for i in range(3))
    dtype = call.value(0).dtype
    whole = all(isinstance(v, int) for v in (start, end, step))
    if whole and step != 0 and len(range(start, end, step)) <= MOST:
        return known(list(range(start, end, step)), dtype)
    if step == 0:
        raise call.node.refused("its step is zero")
    return torch.arange(start, end, step, dtype=dtype)


def _one_hot(call: Call) -> Tensor:
    indices, depth = call.tensor(0), call.number(1, "depth")
    off, on = call.tensor(2).reshape(-1).unbind(0)
    axis = call.axis(call.attribute("axis", -1), indices.dim() + 1)
    depth = int(depth) if isinstance(depth, float) else depth
    index = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    places = torch.arange(depth, dtype=index.dtype).reshape([-1] + [1] * (indices.dim() - axis))
    return torch.where(index == places, on, off)


def _triangle(call: Call) -> Tensor:
    x = call.tensor(0)
    diagonal = call.number(1, "diagonal") if call.given(1) else 0
    return torch.triu(x, diagonal) if call.attribute("upper", 1) else torch.tril(x, diagonal)


def _diagonal(call: Call) -> Tensor:
    """A matrix of the operand's size, with ones on one of its diagonals."""
    x = call.tensor(0)
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1])
    dtype = call.dtype("dtype") if "dtype" in call.node.attributes else x.dtype
    ones: Tensor = columns - rows == call.attribute("k", 0)
    return ones.to(dtype)


def _running_sum(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.axis(call.number(1, "axis"), x.dim())
    if call.attribute("reverse", 0):
        x = x.flip(axis)
    if call.attribute("exclusive", 0):  # each is the sum of those before it
        start = torch.zeros_like(x.narrow(axis, 0, 1))
        x = torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    total = x.cumsum(axis, dtype=x.dtype)
    return total.flip(axis) if call.attribute("reverse", 0) else total


OPERATORS = {
    "ConstantOfShape": _filled,
    "Range": _range,
    "OneHot": _one_hot,
    "EyeLike": _diagonal,
    "Trilu": _triangle,
    "CumSum": _running_sum,
}
KNOWN = {"ConstantOfShape": _filled, "Range": _range}
