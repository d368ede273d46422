"""V ^ x + W ^ x = (V + W) ^ x for transposed convolutions ^ of one value whose taps fall on the same places.

Turns a sum of two transposed convolutions into one.

Tap j of a transposed convolution adds to position s*i - p + d*j for position i of its input. With the same stride s and
dilation d, the kernel of the smaller padding begins (P - p) / d taps later in a kernel of padding P.

Fires on a sum or difference of two transposed convolutions of one value that nothing else reads, with equal strides,
dilations, groups and output sizes, when the one costs no more multiply-accumulates than both.

Refuses kernels that lie between each other's taps, and those that no padding of torch's aligns, with the reason.

Source: linearity.

    deconv4x4(x) + deconv2x2(x)        becomes        deconv4x4'(x)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.algebra import Geometry, Layer, read_layer, weights, write_layer
from reparam.ir import ADDS, SUBS, Program, Refusal, arguments, aten, is_call, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """Both layers with their signs, the geometry of the sum, its kernel's size, and where each kernel begins in it."""

    root: fx.Node
    layers: tuple[Layer, Layer]
    signs: tuple[float, float]
    geometry: Geometry
    kernel: tuple[int, ...]
    begins: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class MergeTransposed:
    """Adds the kernels of two transposed convolutions of one value."""

    name: ClassVar[str] = "merge-transposed"
    pattern: ClassVar[Pattern] = op(ADDS | SUBS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """The kernel of the sum; Refusal where both are of one value and cannot be added."""
        args = arguments(match.root)
        sides, alpha = (args["self"], args["other"]), args.get("alpha", 1)
        if not all(isinstance(s, fx.Node) and len(s.users) == 1 for s in sides) or sides[0] is sides[1]:
            return None
        left, right = (read_layer(program, side) for side in sides)
        if left is None or right is None or left.kind != "transposed" or right.kind != "transposed":
            return None
        alike = shape_of(left.node) == shape_of(right.node) and _dtype(left) == _dtype(right)
        if left.x is not right.x or not isinstance(alpha, int | float) or not alike:
            return None
        found = _united(left, right)
        if isinstance(found, str):
            return Refusal(f"two transposed convolutions stay: {found}", match.root)
        geometry, kernel, begins = found
        if math.prod(kernel) > math.prod(left.kernel) + math.prod(right.kernel):
            return Refusal("two transposed convolutions stay: one kernel for both would cost more", match.root)
        signs = (1.0, float(alpha)) if is_call(match.root, ADDS) else (1.0, -float(alpha))
        if match.root.target is aten.rsub.Tensor:
            signs = (-float(alpha), 1.0)
        return Plan(match.root, (left, right), signs, geometry, kernel, begins)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One transposed convolution with the sum of the kernels and of the biases."""
        first = plan.layers[0]
        kernel = torch.zeros(0)
        bias: Tensor | None = None
        for layer, sign, begin in zip(plan.layers, plan.signs, plan.begins, strict=True):
            weight, own = weights(program, layer)
            if not kernel.numel():
                kernel = weight.new_zeros(*weight.shape[:2], *plan.kernel)
            place = tuple(slice(b, b + k) for b, k in zip(begin, layer.kernel, strict=True))
            kernel[(slice(None), slice(None), *place)] += sign * weight
            bias = bias if own is None else sign * own if bias is None else bias + sign * own
        made = write_layer(program, first, kernel, bias, geometry=plan.geometry, like=plan.root)
        names = " and ".join(f"'{place_of(layer.node)}'" for layer in plan.layers)
        return Rewrite({plan.root: made}, f"{names} became one transposed convolution")


def _dtype(layer: Layer) -> torch.dtype:
    dtype: torch.dtype = layer.node.meta["val"].dtype
    return dtype


def _united(
    left: Layer, right: Layer
) -> tuple[Geometry, tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] | str:
    """The geometry and kernel that hold both, and where each begins; or why there are none."""
    g, h = left.geometry, right.geometry
    if (g.stride, g.groups) != (h.stride, h.groups):
        return "their strides or groups differ"
    if any(
        a != b and min(k, m) > 1 for a, b, k, m in zip(g.dilation, h.dilation, left.kernel, right.kernel, strict=True)
    ):
        return "their dilations differ"
    if not all(isinstance(n, int) for n in (*g.output_padding, *h.output_padding)):
        return "a padding of theirs is computed from a free size"
    dilation, padding, kernel, extra, begins = [], [], [], [], []
    for axis, stride in enumerate(g.stride):
        spans = [(layer.geometry.padding[axis][0], layer.kernel[axis]) for layer in (left, right)]
        steps = [o.dilation[axis] for o in (g, h)]
        step = next((d for d, (_, k) in zip(steps, spans, strict=True) if k > 1), max(steps))
        most = max(p for p, _ in spans)
        if any((most - p) % step for p, _ in spans):
            return "the taps of one lie between those of the other"
        begin = [(most - p) // step for p, _ in spans]
        length = max(b + k for b, (_, k) in zip(begin, spans, strict=True))
        rest = int(g.output_padding[axis]) + 2 * (most - spans[0][0]) - step * (length - spans[0][1])  # type: ignore[arg-type]
        if not 0 <= rest < max(stride, step):
            return "no padding of torch's aligns their kernels"
        dilation.append(step)
        padding.append((most, most))
        kernel.append(length)
        extra.append(rest)
        begins.append(begin)
    geometry = replace(g, padding=tuple(padding), dilation=tuple(dilation), output_padding=tuple(extra))
    first, second = zip(*begins, strict=True)
    return geometry, tuple(kernel), (tuple(first), tuple(second))


PASS = MergeTransposed
PHASE = "fold"
AFTER = "merge_branches"
