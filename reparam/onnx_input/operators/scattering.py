"""Values that are written to places, or added to what is there."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}  # torch's own words


def _scatter_points(call: Call) -> Tensor:
    """An index is a point on the first axes; what is written is all that lies behind it."""
    x, index, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    reduction = call.attribute("reduction", "none")
    if reduction in ("none", "add"):
        return torch.index_put(x, tuple(index.unbind(-1)), updates, accumulate=reduction == "add")
    sizes = x.shape[: index.shape[-1]]
    parts = [
        _from_front(i, s) * math.prod(sizes[k + 1 :])
        for k, (i, s) in enumerate(zip(index.unbind(-1), sizes, strict=True))
    ]
    rows = functools.reduce(torch.add, parts).reshape(-1, 1)
    flat = x.reshape(math.prod(sizes), math.prod(x.shape[len(sizes) :]))
    values = updates.reshape(rows.shape[0], flat.shape[1])
    return flat.scatter_reduce(0, rows.expand_as(values), values, _torchs(call)).reshape(x.shape)


def _scatter_elements(call: Call) -> Tensor:
    x, index, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    axis = call.axis(call.attribute("axis", 0), x.dim())
    index = _from_front(index, x.shape[axis])
    if call.attribute("reduction", "none") == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _torchs(call))


def _from_front(index: Tensor, size: int) -> Tensor:
    """Indices counted from the front."""
    return torch.where(index < 0, index + size, index)


def _torchs(call: Call) -> str:
    found = _REDUCTIONS.get(call.attribute("reduction", "none"))
    if found is None:
        raise call.node.refused("its reduction is unknown")
    return found


def _patches(call: Call) -> Tensor:
    """Patches that are put where they came from, and added where they overlap: torch's fold."""
    sizes = call.integers(1, "image_shape")
    kernel = call.integers(2, "block_shape")
    if len(sizes) != 2 or len(kernel) != 2:
        raise call.node.refused("its patches are of no image")
    pads = call.attribute("pads", (0, 0, 0, 0))
    before, behind = pads[:2], pads[2:]
    whole = [s + b + e for s, b, e in zip(sizes, before, behind, strict=True)]
    steps, dilation = call.attribute("strides", (1, 1)), call.attribute("dilations", (1, 1))
    made = F.fold(call.tensor(0), tuple(whole), tuple(kernel), dilation, 0, steps)
    return F.pad(made, [-before[1], -behind[1], -before[0], -behind[0]]) if any(pads) else made


OPERATORS = {"ScatterND": _scatter_points, "ScatterElements": _scatter_elements, "Col2Im": _patches}
