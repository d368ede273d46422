"""Pools over windows, and over all positions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import Results
from reparam.onnx_input.windows import Windows, windows

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GLOBAL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _max_pool(call: Call) -> Results:
    x = call.tensor(0)
    w = windows(call, x, call.required("kernel_shape"))
    inside, pads, ceil = x, w.before, bool(call.attribute("ceil_mode", 0))
    if not w.even or any(2 * b > w.kernel[i] for i, b in enumerate(w.before)):
        inside, pads, ceil = w.padded(x, -math.inf, _ends(w, x, ceil)), (0,) * len(w.kernel), False
    function: Any = _MAX[x.dim() - 2]
    if call.is_read(1):
        largest, places = function(inside, w.kernel, w.stride, pads, w.dilation, ceil, True)
        return largest, _positions(call, places if inside is x else _without_padding(places, w, x, inside), x)
    result: Tensor = function(inside, w.kernel, w.stride, pads, w.dilation, ceil)
    return result


def _without_padding(places: Tensor, w: Windows, x: Tensor, padded: Tensor) -> Tensor:
    """Positions in each channel of what is padded as those in x."""
    found = torch.zeros_like(places)
    for i in reversed(range(len(w.kernel))):
        along = places % padded.shape[i + 2] - w.before[i]
        found = found + along * math.prod(x.shape[i + 3 :])
        places = places // padded.shape[i + 2]
    return found


def _positions(call: Call, places: Tensor, x: Tensor) -> Tensor:
    """Positions in each channel of x as those in all of it, channel by channel and sample by sample."""
    if call.attribute("storage_order", 0):
        raise call.node.refused("the positions of its maxima are counted along columns, which is not supported")
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))
    return places + planes * math.prod(x.shape[2:])


def _ends(w: Windows, x: Tensor, ceil: bool) -> list[Any]:
    """What is added behind, so that the windows end where the last one does; it may be negative."""
    if not ceil:
        return list(w.behind)
    found = []
    for i, stride in enumerate(w.stride):
        size = x.shape[i + 2]
        count = -((size + w.before[i] + w.behind[i] - w.span(i)) // -stride) + 1
        count = torch.sym_min(count, (size + w.before[i] - 1) // stride + 1)  # none starts in the padding behind
        found.append((count - 1) * stride + w.span(i) - size - w.before[i])
    return found


def _average_pool(call: Call) -> Tensor:
    x = call.tensor(0)
    w = windows(call, x, call.required("kernel_shape"))
    if any(d != 1 for d in w.dilation):
        raise call.node.refused("an average over spaced positions is not supported")
    ceil, counted = bool(call.attribute("ceil_mode", 0)), bool(call.attribute("count_include_pad", 0))
    function: Any = _AVERAGE[x.dim() - 2]
    halves = all(2 * b <= w.kernel[i] for i, b in enumerate(w.before)) if w.even else False
    if halves:
        result: Tensor = function(x, w.kernel, w.stride, w.before, ceil, counted)
        return result
    ends = _ends(w, x, ceil)
    if counted and not ceil:
        result = function(w.padded(x), w.kernel, w.stride)
        return result
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    if counted:  # windows that reach beyond the padding are averages of what lies within
        ones = F.pad(ones, [n for p in reversed(list(zip(w.before, w.behind, strict=True))) for n in p], value=1.0)
        rest = [e - b for e, b in zip(ends, w.behind, strict=True)]
        ones = F.pad(ones, [n for e in reversed(rest) for n in (0, e)])
    else:
        ones = w.padded(ones, 0.0, ends)
    result = function(w.padded(x, 0.0, ends), w.kernel, w.stride) / function(ones, w.kernel, w.stride)
    return result


def _power_pool(call: Call) -> Tensor:
    """(sum |x|^p)^(1/p) over windows."""
    x, p = call.tensor(0), call.attribute("p", 2)
    w = windows(call, x, call.required("kernel_shape"))
    if any(d != 1 for d in w.dilation):
        raise call.node.refused("a sum over spaced positions is not supported")
    function: Any = _AVERAGE[x.dim() - 2]
    whole = w.padded(x.abs() ** p, 0.0, _ends(w, x, bool(call.attribute("ceil_mode", 0))))
    result: Tensor = (function(whole, w.kernel, w.stride) * math.prod(w.kernel)) ** (1 / p)
    return result


def _global_power(call: Call) -> Tensor:
    x = call.tensor(0)
    result: Tensor = torch.linalg.vector_norm(x, call.attribute("p", 2), list(range(2, x.dim())), keepdim=True)
    return result


def _global_average(call: Call) -> Tensor:
    x = call.tensor(0)
    rank = x.dim() - 2
    if rank in _GLOBAL:
        pooled: Tensor = _GLOBAL[rank](x, 1)
        return pooled
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _global_max(call: Call) -> Tensor:
    x = call.tensor(0)
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


OPERATORS = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _power_pool,
    "GlobalLpPool": _global_power,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
}
