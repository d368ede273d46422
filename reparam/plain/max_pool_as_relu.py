"""max(a, b) = a + relu(b - a): a max-pool as depthwise layers, so that other values can be carried beside it.

A window of k taps along an axis takes k - 1 steps: m_0 = x at the base tap, r_t = relu(x shifted to tap t - m), m <- m
+ r_t. The base tap is the one that lies on the map for every output position (tap p of a pool with padding p), so no
step reads an intermediate value beyond the border. Steps run at full resolution; the last one takes the stride.

Padding of a max-pool never wins; here it reads as zero. That is the same where the input is at least zero, or where no
window reaches the border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from reparam.algebra import Window
from reparam.ir import arguments, pair, static_shape

from .activation import Activation
from .linear_form import LinearForm, Map, RegisterValue, add_forms, apply_map, reference, scale_form, unit
from .register_value import Refused, ValueBuilder

_RELU = Activation("slopes", "relu", None, slope=0.0, low=0.0)


@dataclass(frozen=True)
class _Pool:
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def slack(self, axis: int) -> int:
        return 2 * self.padding[axis] - self.kernel[axis]


def spell_max_pool(holder: ValueBuilder, node: fx.Node, x: RegisterValue) -> LinearForm:
    """The max-pool `node` of `x` as a form over new ReLU values. Raises Refused where padding would be seen."""
    pool = _read(holder, node, x)
    steps = [(axis, t) for axis, k in enumerate(pool.kernel) for t in range(k) if t != pool.padding[axis]]
    total = reference(x)
    base = x
    done: list[LinearForm] = []
    for i, (axis, tap) in enumerate(steps):
        if i and axis != steps[i - 1][0]:  # the next axis starts from the largest of the axis before
            base = holder.new(node, "layer", total, optional=True, low=x.low)
            base.channels, base.space, base.positions = x.channels, x.space, x.positions
            total = reference(base)
        last = i == len(steps) - 1
        shifted = _tap(base, pool, axis, tap - pool.padding[axis], strided=last)
        here = _decimated(holder, node, total, pool, x) if last else total
        step = holder.new(node, "layer", add_forms(shifted, _negated(here, x)), act=_RELU, low=0.0)
        step.channels = x.channels
        if not last:
            step.space, step.positions = x.space, x.positions
        done.append(reference(step))
        total = add_forms(here, done[-1])
    return total


def _read(holder: ValueBuilder, node: fx.Node, x: RegisterValue) -> _Pool:
    args = arguments(node)
    n = holder.ndim
    kernel = pair(args["kernel_size"], n)
    stride = pair(args["stride"], n) if args["stride"] else kernel
    pool = _Pool(kernel, stride, pair(args["padding"], n))
    if any(d != 1 for d in pair(args["dilation"], n)) or math.prod(kernel) == 1:
        raise Refused(node, "only a max-pool without dilation is spelled with ReLUs")
    if any(2 * p >= k for p, k in zip(pool.padding, kernel, strict=True)):
        raise Refused(node, "the padding of its max-pool reaches the middle of the window")
    if any(pool.padding) and x.low < 0.0:
        raise Refused(node, "its max-pool is padded and its input may be negative, so that a zero would win")
    if args["ceil_mode"]:
        sizes = zip(x.space, static_shape(node)[2:], range(n), strict=True)
        if any(h is None or o != (h + pool.slack(a)) // stride[a] + 1 for h, o, a in sizes):
            raise Refused(node, "ceil_mode cuts windows off at the border of an odd or free size")
    return pool


def _window(pool: _Pool, axis: int, offset: int, *, strided: bool) -> Window:
    n = len(pool.kernel)
    one = (1,) * n
    first = tuple(offset if a == axis else 0 for a in range(n))
    if not strided:
        return Window(one, one, one, first, (-1,) * n)
    return Window(pool.stride, one, one, first, tuple(pool.slack(a) for a in range(n)))


def _tap(base: RegisterValue, pool: _Pool, axis: int, offset: int, *, strided: bool) -> LinearForm:
    c = base.channels
    window = _window(pool, axis, offset, strided=strided)
    return LinearForm(c, ((base, Map(window, c, 0, c, 0, c, unit)),))


def _decimated(holder: ValueBuilder, node: fx.Node, form: LinearForm, pool: _Pool, x: RegisterValue) -> LinearForm:
    """The form at the positions that the pool keeps, as a value that a register may hold."""
    c = form.channels
    made = apply_map(Map(_window(pool, 0, 0, strided=True), c, 0, c, 0, c, unit), form)
    assert isinstance(made, LinearForm)
    return reference(holder.new(node, "layer", made, optional=True, low=x.low))


def _negated(form: LinearForm, x: RegisterValue) -> LinearForm:
    return scale_form(form, torch.tensor([-1.0], dtype=torch.float64), None, len(x.space))
