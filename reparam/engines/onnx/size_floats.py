"""Sizes that a network computes in floats: Python does so in double precision, and ONNX files in single precision.

floor(100 * 0.29) is 28 in the first and 29 in the second. A network is refused where a free size up to `LARGEST` comes
out otherwise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from reparam.errors import InputError
from reparam.ir import Program, arguments, aten, fixed_size, is_call, place_of

LARGEST = 4096  # of the sizes that are tried
SHOWN = 3
_CUBIC = frozenset({aten.upsample_bicubic2d.vec})
_RESIZES = _CUBIC | frozenset(
    {aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec}
    | {aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec}
)
_Array = np.ndarray[Any, Any]
_ARITHMETIC: Mapping[Any, Callable[..., Any]] = {
    operator.add: np.add,
    operator.sub: np.subtract,
    operator.mul: np.multiply,
    operator.truediv: np.divide,
    operator.floordiv: np.floor_divide,
    operator.mod: np.mod,
    operator.neg: np.negative,
    torch.sym_max: np.maximum,
    torch.sym_min: np.minimum,
}
_ROUNDINGS: Mapping[Any, Callable[[Any], Any]] = {
    math.floor: np.floor,
    math.ceil: np.ceil,
    math.trunc: np.trunc,
    torch.sym_int: np.trunc,
    round: np.round,
}


def refuse_uneven_sizes(program: Program) -> None:
    """Raises InputError naming the layer where a free size is rounded to another whole number in single precision."""
    for node in program.calls():
        if node.target in _ROUNDINGS:
            exact, single = (_rounded(node, kind) for kind in (np.float64, np.float32))
            _compare(node, exact, single, "rounds a free size that it computes in floats")
        elif is_call(node, _RESIZES):
            for size, scale in _scaled(node):
                if fixed_size(size) is None:
                    exact, single = (np.floor(_sizes(kind) * kind(scale)) for kind in (np.float64, np.float32))
                    what = f"resizes a free size by {scale:g}"
                    _compare(node, exact, single, what)
                    if scale != 1 and not is_call(node, _CUBIC):
                        left = (exact == _sizes(np.float64)) & (exact > 1)
                        _refuse_at(node, left, f"{what}, which onnxruntime leaves out where it adds no position,")


def _compare(node: fx.Node, exact: _Array | None, single: _Array | None, what: str) -> None:
    if exact is not None and single is not None:
        _refuse_at(node, exact != single, f"{what}, which ONNX files round in single precision, and so otherwise")


def _refuse_at(node: fx.Node, apart: _Array, what: str) -> None:
    """apart: for each size that is tried, whether something else comes of it."""
    sizes = [int(i) + 1 for i in np.flatnonzero(apart)]
    if sizes:
        told = ", ".join(map(str, sizes[:SHOWN])) + (" and others" if len(sizes) > SHOWN else "")
        raise InputError(
            f"'{place_of(node)}' {what} at a size of {told}; write it with whole numbers, or fix the size (--dynamic "
            "batch)"
        )


def _sizes(kind: Any) -> _Array:
    return np.arange(1, LARGEST + 1).astype(kind)


def _scaled(node: fx.Node) -> list[tuple[Any, float]]:
    """The sizes that a resize scales, with their scales; none where it is told its sizes."""
    args = arguments(node)
    scales = args.get("scale_factors")
    if scales is None:
        return []
    shape = args["input"].meta["val"].shape
    return list(zip(shape[len(shape) - len(scales) :], scales, strict=True))


def _rounded(node: fx.Node, kind: Any) -> _Array | None:
    value = _value(node.args[0], kind)
    return None if value is None else _ROUNDINGS[node.target](value)


def _value(node: Any, kind: Any) -> Any:
    """What a number is for every size that is tried, where all floats are of a kind; None for what is not known."""
    if isinstance(node, int | float):
        return kind(node)
    if not isinstance(node, fx.Node) or isinstance(node.meta.get("val"), torch.Tensor):
        return None
    if node.target is aten.sym_size.int:
        return _sizes(kind)
    if node.target is torch.sym_float:
        return _value(node.args[0], kind)
    if node.target in _ROUNDINGS:
        return _rounded(node, kind)
    function = _ARITHMETIC.get(node.target)
    values = [_value(a, kind) for a in node.args]
    if function is None or any(v is None for v in values):
        return None
    with np.errstate(all="ignore"):
        return function(*values)
