"""Convolutions and transposed convolutions of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.windows import Windows, windows

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _conv(call: Call) -> Tensor:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    w = windows(call, x, weight.shape[2:])
    groups = call.attribute("group", 1)
    function = _CONVS[x.dim() - 2]
    if w.even:
        return function(x, weight, bias, w.stride, w.before, w.dilation, groups)
    return function(w.padded(x), weight, bias, w.stride, 0, w.dilation, groups)


def _transposed(call: Call) -> Tensor:
    """Its paddings take away what they add to a convolution."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = x.dim() - 2
    groups = call.attribute("group", 1)
    more = call.attribute("output_padding", (0,) * rank)
    if len(more) != rank or not all(isinstance(n, int) and n >= 0 for n in more):
        raise call.node.refused("its output_padding is not one whole number for each axis")
    w, before, behind = _crops(call, x, weight, more)
    function = _TRANSPOSED[rank]
    small = all(m < max(s, d) for m, s, d in zip(more, w.stride, w.dilation, strict=True))
    if before == behind and all(isinstance(n, int) and n >= 0 for n in before) and small:
        return function(x, weight, bias, w.stride, tuple(before), tuple(more), groups, w.dilation)
    whole = function(x, weight, None, w.stride, 0, 0, groups, w.dilation)
    pads = [(-b, m - a) for b, a, m in zip(before, behind, more, strict=True)]
    cut = F.pad(whole, [n for pair in reversed(pads) for n in pair])
    return cut if bias is None else cut + bias.reshape(-1, *[1] * rank)


def _crops(call: Call, x: Tensor, weight: Tensor, more: Sequence[int]) -> tuple[Windows, list[Any], list[Any]]:
    """The windows, and what is cut off before and behind."""
    rank = x.dim() - 2
    kind, wanted = call.attribute("auto_pad", "NOTSET"), call.node.attributes.get("output_shape")
    bare = Call(call.node, call.inputs)
    w = windows(bare, x, weight.shape[2:])
    if kind == "NOTSET" and wanted is None:
        return w, list(w.before), list(w.behind)
    if kind == "VALID" and wanted is None:
        return w, [0] * rank, [0] * rank
    before: list[Any] = []
    behind: list[Any] = []
    for i in range(rank):
        size = x.shape[i + 2]
        target = wanted[len(wanted) - rank + i] if wanted is not None else size * w.stride[i]
        total = w.stride[i] * (size - 1) + more[i] + w.span(i) - target
        if wanted is None:  # a step over more than a window leaves no position to add
            total = torch.sym_max(total, 0)
        less, rest = total // 2, total - total // 2
        first, last = (less, rest) if kind == "SAME_UPPER" else (rest, less)
        before.append(first)
        behind.append(last)
    return w, before, behind


OPERATORS = {"Conv": _conv, "ConvTranspose": _transposed}
