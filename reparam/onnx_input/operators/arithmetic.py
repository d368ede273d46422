"""Elementwise arithmetic, comparisons, logic and casts."""

from __future__ import annotations

import functools
import math
import operator as py
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.onnx_input.call import Call, number_of
from reparam.onnx_input.known import MOST_NUMBERS, Known, Value, as_kind, known, truncated
from reparam.onnx_input.size_floats import SizeFloat, size_float

Fn = Callable[..., Any]


def _unary(function: Fn) -> Fn:
    def compute(call: Call) -> Tensor:
        result: Tensor = function(call.tensor(0))
        return result

    return compute


def _binary(function: Fn) -> Fn:
    """A function of two tensors, of which one may be a number that leaves the other's shape as it is."""

    def compute(call: Call) -> Tensor:
        a, b = _operands(call)
        result: Tensor = function(a, b)
        return result

    return compute


def _operands(call: Call) -> tuple[Any, Any]:
    first, second = call.value(0), call.value(1)
    number = number_of(second)
    if number is not None and not isinstance(first, Known) and call.rank(1) <= call.rank(0):
        return first, number
    number = number_of(first)
    if number is not None and not isinstance(second, Known) and call.rank(0) <= call.rank(1):
        return number, second
    return call.tensor(0), call.tensor(1)


def _logical(function: Fn) -> Fn:
    def compute(call: Call) -> Tensor:
        result: Tensor = function(call.tensor(0), call.tensor(1))
        return result

    return compute


def _divide(a: Any, b: Any) -> Any:
    whole = [v for v in (a, b) if isinstance(v, Tensor) and not v.is_floating_point()]
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _power(call: Call) -> Tensor:
    """a^b in the dtype of a."""
    a, b = _operands(call)
    dtype = call.tensor(0).dtype
    result: Tensor = torch.pow(a, b)
    return result if result.dtype == dtype else result.to(dtype)


def _modulo(call: Call) -> Tensor:
    a, b = call.tensor(0), call.tensor(1)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def _extreme(pairwise: Fn, bound: str) -> Fn:
    """Max and Min of any number of operands."""

    def compute(call: Call) -> Tensor:
        if len(call.inputs) == 2:
            a, b = _operands(call)
            a, b = (b, a) if not isinstance(a, Tensor) else (a, b)
            if not isinstance(b, Tensor):
                return torch.clamp(a, **{bound: b})
        result: Tensor = functools.reduce(pairwise, call.tensors())
        return result

    return compute


def _sum(call: Call) -> Tensor:
    return functools.reduce(py.add, call.tensors())


def _mean(call: Call) -> Tensor:
    return _sum(call) / len(call.inputs)


def _where(call: Call) -> Tensor:
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


def _cast(call: Call) -> Value:
    if isinstance(call.value(0), Known):  # like a value of the network, of which only the dtype matters
        return _known_cast(call)
    return call.tensor(0).to(_target(call))


def _target(call: Call) -> torch.dtype:
    if call.node.op == "CastLike":
        value = call.value(1)
        return value.dtype
    return call.dtype("to")


def _is_infinite(call: Call) -> Tensor:
    x = call.tensor(0)
    signs = [(1, x == math.inf)] if call.attribute("detect_positive", 1) else []
    signs += [(-1, x == -math.inf)] if call.attribute("detect_negative", 1) else []
    return functools.reduce(py.or_, [found for _, found in signs], torch.zeros_like(x, dtype=torch.bool))


_UNARY: dict[str, Fn] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "IsNaN": torch.isnan,
}
_BINARY = {
    "Add": py.add,
    "Sub": py.sub,
    "Mul": py.mul,
    "Div": _divide,
    "Equal": py.eq,
    "Greater": py.gt,
    "GreaterOrEqual": py.ge,
    "Less": py.lt,
    "LessOrEqual": py.le,
}
_LOGICAL = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}

OPERATORS = {
    **{name: _unary(f) for name, f in _UNARY.items()},
    **{name: _binary(f) for name, f in _BINARY.items()},
    **{name: _logical(f) for name, f in _LOGICAL.items()},
    "Pow": _power,
    "Mod": _modulo,
    "Max": _extreme(torch.maximum, "min"),
    "Min": _extreme(torch.minimum, "max"),
    "Sum": _sum,
    "Mean": _mean,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast,
    "IsInf": _is_infinite,
}


# ---- on numbers that are known -----------------------------------------------------------------------------------


def _each(function: Fn, dtype: torch.dtype | None = None) -> Fn:
    """A function of single numbers, on arrays that are broadcast. dtype: of the result, where it is no operand's.

    What is computed of numbers alone is rounded to the dtype. A sum, product, quotient or root that was computed in
    float64 is then the one of a narrower dtype, since float64 has more than twice as many digits.
    """

    def compute(call: Call) -> Known:
        values = [call.known(i, "operand") for i in range(len(call.inputs))]
        arrays = np.broadcast_arrays(*(v.values for v in values)) if len(values) > 1 else [values[0].values]
        if arrays[0].size > MOST_NUMBERS:
            raise call.node.refused(f"it computes {arrays[0].size} numbers of sizes")
        found = np.empty(arrays[0].shape, dtype=object)
        flat = found.reshape(-1)
        for i, numbers in enumerate(zip(*(a.reshape(-1) for a in arrays), strict=True)):
            try:
                flat[i] = _in_dtype(function(*numbers), dtype or values[-1].dtype)
            except ValueError as error:  # of a number of sizes
                raise call.node.refused(str(error)) from error
        return Known(flat.reshape(arrays[0].shape), dtype or values[-1].dtype)

    return compute


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A number as the dtype holds it. What depends on sizes rounds by itself; 64 bits are checked elsewhere."""
    if isinstance(value, float) and dtype.is_floating_point:
        return float(torch.tensor(value, dtype=torch.float64).to(dtype))
    whole = isinstance(value, int) and not isinstance(value, bool) and dtype not in (torch.int64, torch.bool)
    return as_kind(value, dtype) if whole and not dtype.is_floating_point else value


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, float) and isinstance(b, float):
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b))
    whole = not isinstance(a, float | SizeFloat) and not isinstance(b, float | SizeFloat)
    return truncated(a, b) if whole else a / b


def _root(value: Any) -> Any:
    if isinstance(value, SizeFloat):
        return value.root()
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.float64(value)))


def _known_cast(call: Call) -> Known:
    value, dtype = call.known(0, "operand"), _target(call)
    result: Known = _each(lambda v: as_kind(v, dtype), dtype)(Call(call.node, [value]))
    return result


def _largest(*numbers: Any) -> Any:
    return functools.reduce(lambda a, b: _of_floats(SizeFloat.larger, torch.sym_max, a, b), numbers)


def _smallest(*numbers: Any) -> Any:
    return functools.reduce(lambda a, b: _of_floats(SizeFloat.smaller, torch.sym_min, a, b), numbers)


def _of_floats(on_floats: Fn, on_whole: Fn, a: Any, b: Any) -> Any:
    a, b = (a, b) if isinstance(a, SizeFloat) else (b, a)
    return on_floats(a, b) if isinstance(a, SizeFloat) else on_whole(a, b)


def _compared(function: Fn) -> Fn:
    return _each(lambda a, b: function(_number(a), _number(b)), torch.bool)


def _number(value: Any) -> Any:
    return value.number if isinstance(value, SizeFloat) else value


def _known_modulo(call: Call) -> Value:
    if call.attribute("fmod", 0):
        if any(call.known(i, "operand").symbolic for i in range(2)):
            raise call.node.refused("the remainder of floats is taken of sizes")
        return _modulo(call)
    result: Known = _each(lambda a, b: a % b)(call)
    return result


def _rounded(on_sizes: Fn, function: Fn) -> Fn:
    def compute(value: Any) -> Any:
        if isinstance(value, SizeFloat):
            return size_float(on_sizes(value), value.dtype)
        return float(function(value)) if isinstance(value, float) and math.isfinite(value) else value

    return _each(compute)


KNOWN = {
    "Add": _each(py.add),
    "Sub": _each(py.sub),
    "Mul": _each(py.mul),
    "Div": _each(_quotient),
    "Mod": _known_modulo,
    "Neg": _each(py.neg),
    "Floor": _rounded(SizeFloat.floor, math.floor),
    "Ceil": _rounded(SizeFloat.ceil, math.ceil),
    "Sqrt": _each(_root),
    "Max": _each(_largest),
    "Min": _each(_smallest),
    "Equal": _compared(py.eq),
    "Greater": _compared(py.gt),
    "GreaterOrEqual": _compared(py.ge),
    "Less": _compared(py.lt),
    "LessOrEqual": _compared(py.le),
    "Not": _each(py.not_, torch.bool),
    "And": _each(lambda a, b: bool(a) and bool(b), torch.bool),
    "Or": _each(lambda a, b: bool(a) or bool(b), torch.bool),
    "Where": _each(lambda c, a, b: a if c else b),
    "Cast": _known_cast,
    "CastLike": _known_cast,
    "Identity": lambda call: call.known(0, "operand"),
    "Size": lambda call: known(int(call.known(0, "operand").values.size)),
}
