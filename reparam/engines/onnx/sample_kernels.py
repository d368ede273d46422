"""Convolutions whose kernels are computed for each sample: samples lie along the channels, as so many groups.

ONNX has the number of groups as an attribute, which is no size that is free. The same is a sum over the taps t of a
kernel of products of matrices, one for each group g:

    y[g, o, p] = sum over t, i of K[g, o, i, t] x[g, i, s p + d t]          p: positions, s: strides, d: dilations
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch import fx

from reparam.ir import CONVS, Program, arguments, aten, fixed_size, is_call, pair

from .speaker import Speaker

TO_THE_END = 2**63 - 1


def has_free_groups(node: fx.Node) -> bool:
    """Whether it is a convolution of that kind, whose channels in a group and kernel are of fixed size."""
    args = arguments(node) if is_call(node, CONVS) else {}
    if not isinstance(args.get("groups"), fx.Node) or isinstance(args["padding"], str):
        return False
    fixed = all(fixed_size(n) is not None for n in args["weight"].meta["val"].shape[1:])
    numbers = (n for name in ("stride", "padding", "dilation") for n in args[name])
    return fixed and all(isinstance(n, int) for n in numbers) and _outputs_of_group(node) is not None


def _outputs_of_group(node: fx.Node) -> int | None:
    """C_out / groups; None where that depends on a size."""
    args = arguments(node)
    return fixed_size(args["weight"].meta["val"].shape[0] // args["groups"].meta["val"])


def as_products(program: Program, node: fx.Node) -> fx.Node:
    """What takes the place of such a call."""
    say = Speaker(program, node)
    args, groups = say.args, say.args["groups"]
    kernel = args["weight"].meta["val"].shape
    inputs, taps, outputs = int(kernel[1]), [int(k) for k in kernel[2:]], _outputs_of_group(node)
    n = len(taps)
    stride, padding, dilation = (pair(args[name], n) for name in ("stride", "padding", "dilation"))
    x = args["input"]
    if any(padding):
        x = say(aten.constant_pad_nd.default, x, [p for p in reversed(padding) for _ in range(2)], 0.0)
    x = say(aten.reshape.default, x, [groups, inputs, *_sizes(say, x, n)])
    kernels = say(aten.reshape.default, args["weight"], [groups, outputs, inputs, -1])
    total: fx.Node | None = None
    part = x
    for number, tap in enumerate(itertools.product(*map(range, taps))):
        part = x
        for axis, (t, k, s, d) in enumerate(zip(tap, taps, stride, dilation, strict=True), 2):
            end = -(k - 1 - t) * d or TO_THE_END
            part = say(aten.slice.Tensor, part, axis, t * d, end, s)
        product = say(
            aten.matmul.default,
            say(aten.select.int, kernels, 3, number),
            say(aten.flatten.using_ints, part, 2) if n > 1 else part,
        )
        total = product if total is None else say(aten.add.Tensor, total, product)
    assert total is not None
    channels = say(operator.mul, groups, outputs)
    y = say(aten.reshape.default, total, [1, channels, *_sizes(say, part, n)])
    if args["bias"] is None:
        return y
    return say(aten.add.Tensor, y, say(aten.reshape.default, args["bias"], [1, channels, *[1] * n]))


def _sizes(say: Speaker, x: fx.Node, n: int) -> list[Any]:
    """The last n sizes of a value: numbers, or calls that read them."""
    rank = x.meta["val"].dim()
    found = ((axis, fixed_size(x.meta["val"].shape[axis])) for axis in range(rank - n, rank))
    return [say(aten.sym_size.int, x, axis) if size is None else size for axis, size in found]
