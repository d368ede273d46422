"""Resize, and sampling on a grid.

torch has the common forms: nearest (asymmetric, floor), linear and cubic at half pixels or with aligned corners. All
other forms of nearest and linear are selections and mixtures of positions, axis by axis, where the sizes are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.older import SIMPLE
from reparam.onnx_input.size_floats import SizeFloat, scale_for_torch, size_float

_NAMES = {3: "linear", 4: "bilinear", 5: "trilinear"}
_SAMPLE = 1024  # positions of a free axis on which two forms of nearest are compared


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized. size, wanted: before and after, which may be free. scale: of the file, where it has one.

    for_torch: the scale with which torch makes as many positions; None where there is none.
    """

    axis: int
    size: Any
    wanted: Any
    scale: float | None
    for_torch: float | None = None

    @property
    def fixed(self) -> bool:
        return isinstance(self.size, int) and isinstance(self.wanted, int)


def _resize(call: Call) -> Tensor:
    x = call.tensor(0)
    mode = call.attribute("mode", "nearest")
    where = call.attribute("coordinate_transformation_mode", "half_pixel")
    if where == "tf_crop_and_resize":
        raise call.node.refused("tf_crop_and_resize is not supported")
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.node.refused("a kept aspect ratio is not supported")
    axes = [a for a in _axes(call, x) if not _stays(a)]
    if not axes:
        return x
    if call.attribute("antialias", 0):
        return _without_alias(call, x, axes, where)
    if mode == "nearest":
        return _nearest(call, x, axes, where)
    if mode == "linear":
        return _linear(call, x, axes, where)
    if mode == "cubic":
        return _cubic(call, x, axes, where)
    raise call.node.refused("its mode is unknown")


def _axes(call: Call, x: Tensor) -> list[_Axis]:
    named = call.node.attributes.get("axes")
    axes = [call.axis(a, x.dim()) for a in named] if named is not None else list(range(x.dim()))
    scales = list(call.known(2, "scales").values.reshape(-1)) if call.given(2) else []
    sizes = call.integers(3, "sizes") if call.given(3) else []
    if sizes:
        if len(sizes) != len(axes):
            raise call.node.refused("it has not one size for each axis")
        return [_Axis(a, x.shape[a], s, None) for a, s in zip(axes, sizes, strict=True)]
    if len(scales) != len(axes) or not all(isinstance(s, SizeFloat) or s > 0 for s in scales):
        raise call.node.refused("it has not one positive scale for each axis")
    return [_scaled(call, a, x.shape[a], s) for a, s in zip(axes, scales, strict=True)]


def _scaled(call: Call, axis: int, size: Any, scale: float | SizeFloat) -> _Axis:
    """The axis with size * scale positions, rounded down. A scale that is computed of sizes counts by these alone."""
    try:
        wanted = (size_float(size, torch.float32) * scale).floor()
    except ValueError as error:
        raise call.node.refused(str(error)) from error
    if isinstance(scale, SizeFloat):
        return _Axis(axis, size, wanted, None)
    return _Axis(axis, size, wanted, scale, scale_for_torch(scale, size if isinstance(size, int) else None))


def _stays(axis: _Axis) -> bool:
    if axis.scale is not None:
        return axis.scale == 1.0
    if axis.fixed:
        return bool(axis.size == axis.wanted)
    free = isinstance(axis.size, torch.SymInt) and isinstance(axis.wanted, torch.SymInt)
    return free and axis.size.node.expr == axis.wanted.node.expr  # a comparison would tie the two


def _spatial(x: Tensor, axes: list[_Axis]) -> bool:
    return x.dim() in _NAMES and all(a.axis >= 2 for a in axes)


def _arguments(call: Call, x: Tensor, axes: list[_Axis]) -> dict[str, Any]:
    """Sizes or scales of all spatial axes, as interpolate takes them."""
    by_axis = {a.axis: a for a in axes}
    scales = [by_axis[i].for_torch if i in by_axis else 1.0 for i in range(2, x.dim())]
    if all(isinstance(s, float) for s in scales):
        return {"scale_factor": scales, "recompute_scale_factor": False}
    if any(a.scale is not None for a in axes):  # positions that the sizes alone do not tell
        raise call.node.refused("torch has no such scale for all of its axes")
    return {"size": [by_axis[i].wanted if i in by_axis else x.shape[i] for i in range(2, x.dim())]}


# ---- where a position of the result lies in the operand ----------------------------------------------------------


def _places(axis: _Axis, where: str, size: int, wanted: int) -> np.ndarray[Any, Any]:
    """The coordinate of each position, by ONNX's formulas.

    In float32, as the runtimes do: what lies halfway there is no tie otherwise, and weights are rounded alike.
    """
    scale = np.float32(axis.scale if axis.scale is not None else wanted / size)
    at = np.arange(wanted, dtype=np.float32)
    found: np.ndarray[Any, Any] = (at + np.float32(0.5)) / scale
    if where == "asymmetric":
        found = at / scale
    elif where == "align_corners":
        found = at * (size - 1) / max(wanted - 1, 1)
    elif where == "pytorch_half_pixel" and wanted == 1:
        found = np.zeros(1)
    elif where != "tf_half_pixel_for_nn":
        found = found - np.float32(0.5)
    if where == "half_pixel_symmetric":
        found = found + size / 2.0 * (1.0 - wanted / (scale * size))
    return found


_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_WHERE = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def _rounding_of(call: Call, axis: _Axis) -> str:
    """The name of the rounding along an axis."""
    mode: str = call.attribute("nearest_mode", "round_prefer_floor")
    if mode != SIMPLE:
        return mode
    shrinks = axis.scale is not None and axis.scale < 1.0
    return "ceil" if shrinks else "floor"


def _selection(call: Call, axis: _Axis, where: str, size: int, wanted: int) -> np.ndarray[Any, Any]:
    rounding = _ROUNDINGS.get(_rounding_of(call, axis))
    if rounding is None or where not in (*_WHERE, "tf_half_pixel_for_nn"):
        raise call.node.refused("its nearest_mode or its coordinates are unknown")
    found = np.clip(rounding(_places(axis, where, size, wanted)), 0, size - 1)
    return np.asarray(found, dtype=np.int64)


def _nearest(call: Call, x: Tensor, axes: list[_Axis], where: str) -> Tensor:
    if _spatial(x, axes) and all(_is_torchs(call, a, where) for a in axes):
        result: Tensor = F.interpolate(x, **_arguments(call, x, axes), mode="nearest")
        return result
    for axis in axes:
        if not axis.fixed:
            raise call.node.refused("this form of nearest is not supported for free sizes")
        places = _selection(call, axis, where, axis.size, axis.wanted)
        x = x.index_select(axis.axis, torch.from_numpy(places))
    return x


def _is_torchs(call: Call, axis: _Axis, where: str) -> bool:
    """Whether the selection is floor(position * size / wanted), as torch's is."""
    if axis.fixed:
        size, wanted = axis.size, axis.wanted
    elif axis.scale is None:
        return where == "asymmetric" and _rounding_of(call, axis) == "floor"
    else:
        size, wanted = _SAMPLE, math.floor(_SAMPLE * axis.scale)
    ratio = 1.0 / (axis.for_torch or axis.scale) if axis.scale is not None else size / wanted
    theirs = np.minimum(np.floor(np.arange(wanted) * np.float32(ratio)), size - 1)
    return bool((theirs == _selection(call, axis, where, size, wanted)).all())


def _aligned(axes: list[_Axis], where: str) -> bool | None:
    """What torch calls align_corners; None where it has no such form."""
    if where == "align_corners":
        return True
    single = any(not isinstance(a.wanted, int) or a.wanted == 1 for a in axes)
    if where == "pytorch_half_pixel" and any(isinstance(a.wanted, int) and a.wanted == 1 for a in axes):
        return None
    same = where in ("half_pixel", "pytorch_half_pixel") or (where == "half_pixel_symmetric" and not single)
    return False if same else None


def _linear(call: Call, x: Tensor, axes: list[_Axis], where: str) -> Tensor:
    aligned = _aligned(axes, where) if where != "half_pixel_symmetric" else None
    if _spatial(x, axes) and aligned is not None:
        sizes = _sized(x, axes) if aligned else _arguments(call, x, axes)
        result: Tensor = F.interpolate(x, **sizes, mode=_NAMES[x.dim()], align_corners=aligned)
        return result
    if where not in _WHERE:
        raise call.node.refused("linear resizing does not go with its coordinates")
    for axis in axes:
        if not axis.fixed:
            raise call.node.refused("this form of linear is not supported for free sizes")
        places = np.clip(_places(axis, where, axis.size, axis.wanted), 0, axis.size - 1)
        low = np.floor(places).astype(np.int64)
        high = np.minimum(low + 1, axis.size - 1)
        shape = [-1] + [1] * (x.dim() - 1 - axis.axis)
        part = torch.from_numpy(places - low).to(x.dtype).reshape(shape)
        lower, upper = (x.index_select(axis.axis, torch.from_numpy(p)) for p in (low, high))
        x = lower * (1.0 - part) + upper * part
    return x


def _without_alias(call: Call, x: Tensor, axes: list[_Axis], where: str) -> Tensor:
    """Over as many places as a position of the result covers, as torch weighs them."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.attribute("mode", "nearest"))
    halves = where in ("half_pixel", "pytorch_half_pixel")
    plain = call.attribute("exclude_outside", 0) and (
        mode == "bilinear" or call.attribute("cubic_coeff_a", -0.75) == -0.5
    )
    if mode is None or x.dim() != 4 or not _spatial(x, axes) or not halves or not plain:
        raise call.node.refused("this form of antialiasing is not supported")
    result: Tensor = F.interpolate(x, **_arguments(call, x, axes), mode=mode, antialias=True)
    return result


def _sized(x: Tensor, axes: list[_Axis]) -> dict[str, Any]:
    by_axis = {a.axis: a.wanted for a in axes}
    return {"size": [by_axis.get(i, x.shape[i]) for i in range(2, x.dim())]}


def _cubic(call: Call, x: Tensor, axes: list[_Axis], where: str) -> Tensor:
    aligned = _aligned(axes, where)
    plain = call.attribute("cubic_coeff_a", -0.75) == -0.75 and not call.attribute("exclude_outside", 0)
    if x.dim() != 4 or not _spatial(x, axes) or aligned is None or not plain or where == "half_pixel_symmetric":
        raise call.node.refused("this form of cubic resizing is not supported")
    if where == "pytorch_half_pixel" and any(not a.fixed and a.scale is not None and a.scale < 1.0 for a in axes):
        raise call.node.refused("a free size that shrinks may become one, which its coordinates treat otherwise")
    sizes = _sized(x, axes) if aligned else _arguments(call, x, axes)
    result: Tensor = F.interpolate(x, **sizes, mode="bicubic", align_corners=aligned)
    return result


def _grid_sample(call: Call) -> Tensor:
    names = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    mode, border = names.get(call.attribute("mode", "linear")), call.attribute("padding_mode", "zeros")
    if mode is None or border not in ("zeros", "border", "reflection"):
        raise call.node.refused("its mode is unknown")
    aligned = bool(call.attribute("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), mode, border, aligned)


def _affine_grid(call: Call) -> Tensor:
    """theta (N, 2, 3) or (N, 3, 4) to the places that `GridSample` reads, of a size N, C, (D,) H, W."""
    return F.affine_grid(call.tensor(0), call.integers(1, "size"), bool(call.attribute("align_corners", 0)))


OPERATORS = {"Resize": _resize, "GridSample": _grid_sample, "AffineGrid": _affine_grid}
