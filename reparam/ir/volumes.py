"""Convolutions of volumes in float64, in a fraction of the time and the memory that torch's own take on a CPU.

torch writes out every window of the whole volume, 27 numbers for each one that a 3 x 3 x 3 kernel reads. Here a
convolution is the sum over the taps of its kernel, each of which is a matrix product with a shifted volume:

    y[:, p] = b + sum over t of W[:, :, t] x[:, s p + d t]        p: positions, s: strides, d: dilations

for a slab of positions at a time that stays in the cache. It differs from torch's by rounding alone, as the order of
the sums is another one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .aten import aten, pair

SLAB = 2 << 20  # bytes of the positions that are computed at a time
FEWEST = 512  # positions, below which torch is as quick


def conv3d(  # the arguments are torch's
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """What aten.conv3d gives. input: (N, C, D, H, W). Whatever is not of float64, or small, is left to torch."""
    x = input
    steps, room, spread = pair(stride, 3), pair(padding, 3), pair(dilation, 3)
    size = sizes_of_result(x, weight, bias, steps, room, spread, groups)
    if size is None or x.ndim != 5 or math.prod(size) < FEWEST:
        found: Tensor = aten.conv3d.default(x, weight, bias, stride, padding, dilation, groups)
        return found
    padded = F.pad(x, [p for p in reversed(room) for _ in range(2)]) if any(room) else x
    y = x.new_empty(len(x), len(weight), *size)
    _, high, wide = size
    deep = max(1, SLAB // (x.element_size() * max(len(weight), x.shape[1]) * high * wide))
    for sample, out in zip(padded, y, strict=True):
        for first in range(0, size[0], deep):
            slab = out[:, first : first + deep]
            here = sample[:, first * steps[0] :]
            slab.copy_(_slab(here, weight, bias, (steps, spread), groups, slab.shape[1:]))
    return y


def convolution(*given: Any) -> Tensor:
    """What aten.convolution gives for these arguments, all by their position; by `conv3d` where that is for volumes."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = given
    if not transposed and x.ndim == 5:
        return conv3d(x, weight, bias, stride, padding, dilation, groups)
    found: Tensor = aten.convolution.default(*given)
    return found


def sizes_of_result(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, ...] | None:
    """Height and width (or length, or also depth) of a convolution of (N, C, ...); None where torch has to tell.

    torch has to tell what an odd call is, and computes what is not of float64 on a CPU, or has gradients.
    """
    if x.ndim != weight.ndim or x.ndim < 3 or torch.is_grad_enabled():
        return None
    if any(t is not None and (t.dtype != torch.float64 or t.device.type != "cpu") for t in (x, weight, bias)):
        return None
    fits = groups > 0 and x.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0
    if not fits or min(*stride, *dilation) < 1 or min(padding) < 0 or (bias is not None and len(bias) != len(weight)):
        return None
    each = zip(x.shape[2:], padding, dilation, weight.shape[2:], strict=True)
    spans = (n + 2 * p - d * (k - 1) - 1 for n, p, d, k in each)
    size = tuple(span // s + 1 if span >= 0 else 0 for span, s in zip(spans, stride, strict=True))
    return size if math.prod(size) and len(weight) and len(x) else None


def _slab(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[Sequence[int], Sequence[int]],
    groups: int,
    size: Sequence[int],
) -> Tensor:
    """The first positions (C, *size) of one padded sample. steps: strides and dilations."""
    each = len(weight) // groups
    count = size[0] * size[1] * size[2]
    start = x.new_zeros(len(weight), 1) if bias is None else bias[:, None]
    y = start.expand(len(weight), count).reshape(groups, each, count).contiguous()
    kernels = weight.reshape(groups, each, weight.shape[1], *weight.shape[2:])
    for tap in itertools.product(*map(range, weight.shape[2:])):
        first = [t * d for t, d in zip(tap, steps[1], strict=True)]
        places = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, size, steps[0], strict=True)]
        read = x[:, places[0], places[1], places[2]].reshape(groups, weight.shape[1], count)
        kernel = kernels[:, :, :, tap[0], tap[1], tap[2]]
        if groups == 1:
            y[0].addmm_(kernel[0], read[0])
        elif weight.shape[1] == 1:
            y.addcmul_(kernel, read)
        else:
            y.baddbmm_(kernel, read)
    return y.view(len(weight), *size)
