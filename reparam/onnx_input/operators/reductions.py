"""Sums, means and extremes over axes, and their positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import Value, known

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduce, since: int = 18) -> Callable[[Call], Tensor]:
    """since: the opset from which on the axes are an input."""

    def compute(call: Call) -> Tensor:
        x = call.tensor(0)
        axes = call.axes("axes", 1, since)
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return x if function not in _OF_EACH else function(x.unsqueeze(-1), [x.dim()], False)
            axes = list(range(x.dim()))
        return function(x, sorted(set(axes)), bool(call.attribute("keepdims", 1)))

    return compute


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amax(x, axes, keepdim=keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amin(x, axes, keepdim=keep)


def _absolute(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep).sqrt()


def _squares(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


_OF_EACH = (_absolute, _length, _squares, _log_sum, _log_sum_exp)  # which change single numbers as well


def _position(function: Any) -> Callable[[Call], Tensor]:
    def compute(call: Call) -> Tensor:
        x = call.tensor(0)
        axis = call.axis(call.attribute("axis", 0), x.dim())
        keep, last = bool(call.attribute("keepdims", 1)), bool(call.attribute("select_last_index", 0))
        found: Tensor = function(x.flip(axis) if last else x, axis, keepdim=keep)
        return x.shape[axis] - 1 - found if last else found

    return compute


def _top(call: Call) -> tuple[Tensor, Tensor]:
    x = call.tensor(0)
    axis = call.axis(call.attribute("axis", -1), x.dim())
    count, largest = call.number(1, "count"), bool(call.attribute("largest", 1))
    if not call.is_read(1):
        found = torch.topk(x, count, axis, largest)
        return found.values, found.indices
    ordered, places = torch.sort(x, dim=axis, descending=largest, stable=True)  # of equal ones the first comes first
    return ordered.narrow(axis, 0, count), places.narrow(axis, 0, count)


OPERATORS: dict[str, Callable[[Call], Any]] = {
    "ReduceSum": _reduction(_sum, 13),
    "ReduceMean": _reduction(_mean),
    "ReduceProd": _reduction(_product),
    "ReduceMax": _reduction(_largest),
    "ReduceMin": _reduction(_smallest),
    "ReduceL1": _reduction(_absolute),
    "ReduceL2": _reduction(_length),
    "ReduceSumSquare": _reduction(_squares),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ArgMax": _position(torch.argmax),
    "ArgMin": _position(torch.argmin),
    "TopK": _top,
}


def _known_reduction(combine: Callable[[Any, Any], Any]) -> Callable[[Call], Value]:
    """Of a vector as a whole, which is all that sizes are reduced by. Other known numbers are reduced as tensors."""

    def compute(call: Call) -> Value:
        value = call.known(0, "operand")
        numbers = value.list()
        if value.values.ndim != 1 or not numbers:
            if value.symbolic:
                raise call.node.refused("sizes are reduced that are no vector")
            reduced: Tensor = OPERATORS[call.node.op](call)
            return reduced
        found = numbers[0]
        for number in numbers[1:]:
            found = combine(found, number)
        return known([found] if call.attribute("keepdims", 1) else found, value.dtype)

    return compute


KNOWN = {
    "ReduceProd": _known_reduction(lambda a, b: a * b),
    "ReduceSum": _known_reduction(lambda a, b: a + b),
    "ReduceMax": _known_reduction(torch.sym_max),
    "ReduceMin": _known_reduction(torch.sym_min),
}
