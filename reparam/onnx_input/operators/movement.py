"""What moves values: shapes, axes, parts, copies and borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import Known, Results, Value, known

FAR = 2**31 - 1  # a bound that files write for "to the end"


# ---- shapes ------------------------------------------------------------------------------------------------------


def _reshape(call: Call) -> Tensor:
    """A size of 0 stays as it was, unless `allowzero`."""
    x, sizes = call.tensor(0), call.integers(1, "shape")
    keep = not call.attribute("allowzero", 0)
    if sizes.count(-1) > 1:
        raise call.node.refused("it leaves more than one size open")
    wanted = [_size(call, x, i) if keep and _is_zero(s) else s for i, s in enumerate(sizes)]
    if len(wanted) == 2 and x.dim() > 1 and wanted[1] == -1 and keep and _is_zero(sizes[0]):
        return x.flatten(1)
    return x.reshape(wanted)


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


def _size(call: Call, x: Tensor, axis: int) -> Any:
    if axis >= x.dim():
        raise call.node.refused(f"it keeps the size of axis {axis}, of a value with {x.dim()} axes")
    return x.shape[axis]


def _flatten(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attribute("axis", 1)
    axis = x.dim() if axis == x.dim() else call.axis(axis, x.dim())
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1) if axis else x.reshape(1, -1)


def _squeezed_axes(call: Call) -> list[int] | None:
    axes = call.node.attributes.get("axes") if call.node.version < 13 else None
    if call.node.version >= 13 and call.given(1):
        axes = call.integers(1, "axes")
    return None if axes is None else list(axes)


def _squeeze(call: Call) -> Value:
    value = call.value(0)
    shape = list(value.values.shape if isinstance(value, Known) else value.shape)
    axes = _squeezed_axes(call)
    found = [call.axis(a, len(shape)) for a in axes] if axes is not None else []
    if axes is None:
        found = [i for i, n in enumerate(shape) if isinstance(n, int) and n == 1]
    if isinstance(value, Known):
        return Known(np.squeeze(value.values, tuple(found)), value.dtype)
    return value.squeeze(found)


def _unsqueeze(call: Call) -> Value:
    value = call.value(0)
    axes = _squeezed_axes(call)
    if axes is None:
        raise call.node.refused("it has no axes")
    rank = call.rank() + len(axes)
    found = sorted(call.axis(a, rank) for a in axes)
    if isinstance(value, Known):
        return Known(np.expand_dims(value.values, tuple(found)), value.dtype)
    for axis in found:
        value = value.unsqueeze(axis)
    return value


def _transpose(call: Call) -> Value:
    value = call.value(0)
    order = call.attribute("perm", tuple(reversed(range(call.rank()))))
    if sorted(order) != list(range(call.rank())):
        raise call.node.refused("its perm is no order of the axes")
    return Known(value.values.transpose(order), value.dtype) if isinstance(value, Known) else value.permute(order)


def _expand(call: Call) -> Tensor:
    x, sizes = call.tensor(0), call.integers(1, "shape")
    ahead = len(sizes) - x.dim()
    wanted = [1] * -ahead + list(sizes) if ahead < 0 else list(sizes)
    new = max(ahead, 0)
    return x.expand([s if i < new or not (isinstance(s, int) and s == 1) else -1 for i, s in enumerate(wanted)])


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat(call.integers(1, "repeats"))


def _shape(call: Call) -> Known:
    value = call.value(0)
    sizes = list(value.values.shape if isinstance(value, Known) else value.shape)
    end = call.node.attributes.get("end", len(sizes))
    return known(sizes[call.attribute("start", 0) : end])


def _count(call: Call) -> Known:
    return known(math.prod(call.tensor(0).shape))


# ---- parts -------------------------------------------------------------------------------------------------------


def _bounds(call: Call) -> list[tuple[int, Any, Any, int]]:
    """Axis, start, end and step of each axis that is cut."""
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    axes = call.integers(3, "axes") if call.given(3) else list(range(len(starts)))
    steps = call.integers(4, "steps") if call.given(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise call.node.refused("it has not as many starts as ends, axes and steps")
    if not all(isinstance(s, int) and s != 0 for s in steps):
        raise call.node.refused("its steps are not whole numbers other than zero")
    return [(call.axis(a, call.rank()), s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]


def _slice(call: Call) -> Value:
    value, bounds = call.value(0), _bounds(call)
    if isinstance(value, Known) and all(isinstance(n, int) for _, start, end, _ in bounds for n in (start, end)):
        cut = [slice(None)] * value.values.ndim
        for axis, start, end, step in bounds:
            cut[axis] = slice(start, end, step)
        return Known(value.values[tuple(cut)], value.dtype)
    part = call.tensor(0)  # how long a part of a free size is, only torch can leave open
    for axis, start, end, step in bounds:
        part = _cut(call, part, axis, slice(start, end, step))
    return part


def _cut(call: Call, x: Tensor, axis: int, part: slice) -> Tensor:
    if part.step > 0:
        end = None if isinstance(part.stop, int) and part.stop >= FAR else part.stop
        return x[(slice(None),) * axis + (slice(part.start, end, part.step),)]
    size = x.shape[axis]
    if not isinstance(size, int):
        whole = part.step == -1 and (part.start == -1 or part.start >= FAR) and part.stop <= -FAR
        if not whole:
            raise call.node.refused("it walks backwards through a part of a free axis, which is not supported")
        return x.flip(axis)
    places = range(*part.indices(size))
    forward = slice(places[-1], places[0] + 1, -part.step) if places else slice(0, 0)
    return x[(slice(None),) * axis + (forward,)].flip(axis)


def _gather(call: Call) -> Value:
    value, indices = call.value(0), call.value(1)
    axis = call.axis(call.attribute("axis", 0), call.rank())
    if isinstance(value, Known) and isinstance(indices, Known) and not indices.symbolic:
        found = np.take(value.values, indices.values.astype(np.int64), axis)
        return Known(np.asarray(found, dtype=object), value.dtype)
    x = call.tensor(0)
    if isinstance(indices, Known) and indices.values.ndim == 0:
        return x.select(axis, indices.list()[0])
    if axis == 0 and x.dim() == 2 and call.is_weight(0) and not call.is_weight(1):
        return F.embedding(call.tensor(1), x)
    return x[(slice(None),) * axis + (call.tensor(1),)]


def _elements(call: Call) -> Tensor:
    x, index = call.tensor(0), call.tensor(1)
    axis = call.axis(call.attribute("axis", 0), x.dim())
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _gather_points(call: Call) -> Tensor:
    """Indices along the leading axes, as the last axis of the second input."""
    x, index = call.tensor(0), call.tensor(1)
    if call.attribute("batch_dims", 0):
        raise call.node.refused("batch_dims is not supported")
    return x[tuple(index.unbind(-1))]


def _split(call: Call) -> Results:
    value = call.value(0)
    axis = call.axis(call.attribute("axis", 0), call.rank())
    count = call.node.results
    sizes: Sequence[Any] | None
    if call.node.version < 13:
        sizes = call.node.attributes.get("split")
    else:
        sizes = call.integers(1, "split") if call.given(1) else None
    whole: Any = value.values.shape[axis] if isinstance(value, Known) else value.shape[axis]
    if sizes is None:
        each = -(whole // -count)
        sizes = [each] * (count - 1) + [whole - each * (count - 1)]
    if len(sizes) != count:
        raise call.node.refused(f"it has {len(sizes)} sizes for {count} results")
    if isinstance(value, Known) and all(isinstance(s, int) for s in sizes):
        ends = np.cumsum(sizes)[:-1]
        return tuple(Known(part, value.dtype) for part in np.split(value.values, ends, axis))
    return tuple(torch.split(call.tensor(0), list(sizes), axis))


def _concat(call: Call) -> Value:
    axis = call.axis(call.required("axis"), call.rank())
    values = [v for v in call.inputs if v is not None]
    parts = [v for v in values if isinstance(v, Known)]
    if len(parts) == len(values):
        return Known(np.concatenate([p.values for p in parts], axis), parts[0].dtype)
    return torch.cat(call.tensors(), axis)


# ---- borders and blocks ------------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(call: Call) -> Tensor:
    x, pads = call.tensor(0), call.integers(1, "pads")
    mode = _MODES.get(call.attribute("mode", "constant"))
    if mode is None:
        raise call.node.refused("its mode is unknown")
    axes = [call.axis(a, x.dim()) for a in call.integers(3, "axes")] if call.given(3) else list(range(x.dim()))
    if len(pads) != 2 * len(axes):
        raise call.node.refused("its pads are not two numbers for each axis")
    pairs: list[tuple[Any, Any]] = [(0, 0)] * x.dim()
    for k, axis in enumerate(axes):
        pairs[axis] = (pads[k], pads[len(axes) + k])
    first = next((i for i, pair in enumerate(pairs) if any(not isinstance(n, int) or n != 0 for n in pair)), None)
    if first is None:
        return x
    flat = [n for pair in reversed(pairs[first:]) for n in pair]
    if mode == "constant":
        return F.pad(x, flat, value=call.number(2, "value") if call.given(2) else 0.0)
    behind = x.dim() - first
    if any(isinstance(n, int) and n < 0 for n in flat) or behind > 3 or first == 0:
        raise call.node.refused(f"{call.attribute('mode', '')} padding of these axes is not supported")
    if x.dim() - behind == 2:
        return F.pad(x, flat, mode=mode)
    lead = x.dim() - behind  # torch pads behind two axes alone
    wide = x.unsqueeze(0) if lead == 1 else x.flatten(0, lead - 2)
    padded = F.pad(wide, flat, mode=mode)
    return padded.squeeze(0) if lead == 1 else padded.unflatten(0, x.shape[: lead - 1])


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.tensor(0), call.required("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.tensor(0), call.required("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


OPERATORS = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Shape": _shape,
    "Size": _count,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _elements,
    "GatherND": _gather_points,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}


# ---- on numbers that are known -----------------------------------------------------------------------------------


def _known_reshape(call: Call) -> Value:
    value, sizes = call.known(0, "operand"), call.known(1, "shape")
    if sizes.symbolic:
        return _reshape(call)
    shape = [
        value.values.shape[i] if s == 0 and not call.attribute("allowzero", 0) else s
        for i, s in enumerate(sizes.list())
    ]
    return Known(value.values.reshape(shape), value.dtype)


def _known_expand(call: Call) -> Value:
    value, sizes = call.known(0, "operand"), call.known(1, "shape")
    if sizes.symbolic or math.prod(sizes.list()) > MOST_EXPANDED:
        return _expand(call)
    shape = np.broadcast_shapes(value.values.shape, tuple(sizes.list()))
    return Known(np.broadcast_to(value.values, shape).copy(), value.dtype)


MOST_EXPANDED = 4096

KNOWN = {
    "Reshape": _known_reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _known_expand,
    "Shape": _shape,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Concat": _concat,
}
