"""Convolutions of small maps in float64, in a fraction of the time that torch's own take on a CPU.

torch goes through a batch sample by sample and through groups one by one. Here all windows of a batch are the rows of
one matrix, which is multiplied by the kernel's (a matrix for each group):

    y[p, o] = b[o] + sum over c, t of X[p, (c, t)] W[o, (c, t)]        X[p, (c, t)] = x[c, s p + d t]

and a depthwise convolution, in which one channel reads one, is the sum over the taps of its kernel

    y[p, c] = b[c] + sum over t of x[c, s p + d t] W[c, t]             p: positions, s: strides, d: dilations

with the channels last. Both differ from torch's by rounding alone, as the order of the sums is another one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .aten import aten, pair
from .volumes import conv3d, sizes_of_result

ROWS = 64  # windows of a batch, above which torch is as quick
WEIGHTS, PASSES = 1 << 16, 32  # numbers in a kernel, or samples times groups, below which torch is as quick
MAP = 256  # positions of a depthwise map, above which torch is as quick
NUMBERS = 1 << 18  # of a depthwise result, above which it no longer stays in the cache


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor | None:
    """A convolution of x (N, C, ...); None for whatever is not of float64 on a CPU, is large, or is an odd call."""
    ndim = weight.ndim - 2
    steps, room, spread = pair(stride, ndim), pair(padding, ndim), pair(dilation, ndim)
    size = sizes_of_result(x, weight, bias, steps, room, spread, groups)
    if size is None:
        return None
    positions = math.prod(size)
    depthwise = weight.shape[1] == 1 and len(weight) == groups
    many = len(x) * groups >= PASSES
    if depthwise:
        small = many and positions <= MAP and positions * len(x) * len(weight) <= NUMBERS
    else:
        large = weight.numel() >= WEIGHTS and math.prod(weight.shape[2:]) > 1
        small = positions * len(x) <= ROWS and (many or large)
    if not small:
        return None
    padded = F.pad(x, [p for p in reversed(room) for _ in range(2)]) if any(room) else x
    if depthwise:
        return _by_taps(padded, weight, bias, (steps, spread), size)
    return _by_windows(padded, weight, bias, (steps, spread), groups, size)


def _by_taps(
    x: Tensor, weight: Tensor, bias: Tensor | None, steps: tuple[Sequence[int], Sequence[int]], size: Sequence[int]
) -> Tensor:
    """A depthwise convolution of a padded batch. steps: strides and dilations. size: of the result's map."""
    order = (*range(2, x.ndim), 0, 1)
    last = x.permute(order).contiguous()
    kernel = weight[:, 0].permute(*range(1, weight.ndim - 1), 0).contiguous()
    y = x.new_zeros(*size, len(x), len(weight))
    for tap in itertools.product(*map(range, weight.shape[2:])):
        first = [t * d for t, d in zip(tap, steps[1], strict=True)]
        places = tuple(slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, size, steps[0], strict=True))
        y.addcmul_(last[places], kernel[tap])
    if bias is not None:
        y += bias
    return y.permute(-2, -1, *range(len(size))).contiguous()


def _by_windows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[Sequence[int], Sequence[int]],
    groups: int,
    size: Sequence[int],
) -> Tensor:
    """Any convolution of a padded batch. steps: strides and dilations. size: of the result's map."""
    windows = x
    for axis, (kernel, step, spread) in enumerate(zip(weight.shape[2:], *steps, strict=True), 2):
        windows = windows.unfold(axis, spread * (kernel - 1) + 1, step)[..., ::spread]
    count, each = len(x) * math.prod(size), len(weight) // groups
    split = windows.unflatten(1, (groups, weight.shape[1]))  # (N, G, C/G, *size, *kernel)
    positions = range(3, 3 + len(size))
    rows = split.permute(1, 0, *positions, 2, *range(3 + len(size), split.ndim)).reshape(groups, count, -1)
    columns = weight.reshape(groups, each, -1).transpose(1, 2)
    products: Tensor = (rows[0] @ columns[0])[None] if groups == 1 else rows @ columns
    y = products.transpose(0, 1).reshape(len(x), *size, len(weight))
    if bias is not None:
        y += bias
    return y.permute(0, -1, *range(1, 1 + len(size))).contiguous()


def _or_else(others: Callable[..., Any]) -> Callable[..., Tensor]:
    def convolve(  # the arguments are torch's
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
    ) -> Tensor:
        own = _convolution(input, weight, bias, stride, padding, dilation, groups)
        if own is not None:
            return own
        found: Tensor = others(input, weight, bias, stride, padding, dilation, groups)
        return found

    return convolve


SMALL_MAPS: Mapping[Any, Callable[..., Tensor]] = {
    aten.conv1d.default: _or_else(aten.conv1d.default),
    aten.conv2d.default: _or_else(aten.conv2d.default),
    aten.conv3d.default: _or_else(conv3d),
}
