"""Windows: where the taps of a kernel lie, whatever its weights are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from reparam.ir import Refusal, arguments, pair, shape_of, static_shape

from .kernels import compose, dilate
from .layer import Geometry, Layer


@dataclass(frozen=True)
class Window:
    """Taps along each spatial axis.

    size: taps; step: their distance; first: the offset of the first one; slack: c in the output size
    floor((H + c) / stride) + 1, which holds what padding adds behind.
    """

    stride: tuple[int, ...]
    size: tuple[int, ...]
    step: tuple[int, ...]
    first: tuple[int, ...]
    slack: tuple[int, ...]

    @property
    def last(self) -> tuple[int, ...]:
        return tuple(f + (n - 1) * d for f, n, d in zip(self.first, self.size, self.step, strict=True))

    def geometry(self, groups: int) -> Geometry:
        """The convolution geometry of this window. Negative padding cannot occur: see `unite`."""
        low = [-f for f in self.first]
        high = [c + 1 + last for c, last in zip(self.slack, self.last, strict=True)]
        return Geometry(self.stride, tuple(zip(low, high, strict=True)), self.step, groups)


def identity_window(ndim: int) -> Window:
    one, zero = (1,) * ndim, (0,) * ndim
    return Window(one, one, one, zero, (-1,) * ndim)


def layer_window(layer: Layer) -> Window:
    """The window of a convolution (or the empty one of a linear layer)."""
    g = layer.geometry
    kernel = layer.kernel
    reach = [d * (k - 1) for k, d in zip(kernel, g.dilation, strict=True)]
    slack = tuple(low + high - r - 1 for (low, high), r in zip(g.padding, reach, strict=True))
    step = tuple(d if k > 1 else 1 for k, d in zip(kernel, g.dilation, strict=True))
    return Window(g.stride, tuple(kernel), step, tuple(-low for low, _ in g.padding), slack)


def zero_padding(node: fx.Node) -> tuple[tuple[int, int], ...] | None:
    """(low, high) of each spatial axis of a zero pad; None for another mode or value, or a pad of other axes."""
    args = arguments(node)
    if args.get("mode", "constant") != "constant" or args.get("value"):
        return None
    padding = spatial_padding(node)
    return padding if padding is not None and all(p >= 0 for ends in padding for p in ends) else None


def spatial_padding(node: fx.Node) -> tuple[tuple[int, int], ...] | None:
    """(low, high) of each spatial axis of a pad, negative where it crops; None for a pad of other axes."""
    flat, rank = list(arguments(node)["pad"]), len(shape_of(node))
    if rank < 3 or len(flat) > 2 * (rank - 2) or not all(isinstance(p, int) for p in flat):
        return None
    flat += [0] * (2 * (rank - 2) - len(flat))
    return tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))


def pad_window(padding: Sequence[tuple[int, int]]) -> Window:
    one = (1,) * len(padding)
    return Window(one, one, one, tuple(-low for low, _ in padding), tuple(low + high - 1 for low, high in padding))


def pool_window(node: fx.Node) -> Window | None:
    """An average pool that is a constant depthwise kernel; None where its divisor changes at the border."""
    args = arguments(node)
    x = args["self"]
    ndim = len(shape_of(node)) - 2
    kernel = pair(args["kernel_size"], ndim)
    stride = pair(args["stride"], ndim) if args["stride"] else kernel
    padding = pair(args["padding"], ndim)
    if any(padding) and not args["count_include_pad"]:
        return None
    slack = tuple(2 * p - k for p, k in zip(padding, kernel, strict=True))
    sizes = static_shape(x)[2:]
    if args["ceil_mode"]:
        floor = [None if h is None else (h + c) // s + 1 for h, c, s in zip(sizes, slack, stride, strict=True)]
        if list(static_shape(node)[2:]) != floor or None in floor:
            return None
    return Window(stride, kernel, (1,) * ndim, tuple(-p for p in padding), slack)


def is_padded(window: Window) -> bool:
    """True when the window reads beyond either end of the input."""
    return any(f < 0 for f in window.first) or any(h > 0 for h in _beyond(window))


def is_aligned(window: Window) -> bool:
    """True when the window starts and ends with the input: it neither pads nor crops."""
    return not any(window.first) and not any(_beyond(window))


def _beyond(window: Window) -> list[int]:
    """How far the window reads behind the end of the input; negative where it stops before that."""
    return [c + 1 + last for c, last in zip(window.slack, window.last, strict=True)]


def cut_window(ndim: int, axis: int, start: int, behind: int, step: int) -> Window:
    """Every step-th position along spatial axis `axis`, from `start` on and without the last `behind`."""
    flat = identity_window(ndim)
    return replace(
        flat,
        stride=tuple(step if a == axis else 1 for a in range(ndim)),
        first=tuple(start if a == axis else 0 for a in range(ndim)),
        slack=tuple(-start - behind - 1 if a == axis else -1 for a in range(ndim)),
    )


def compose_windows(a: Window, b: Window) -> Window | Refusal:
    """The window of b after a, or why it is not exact at the border.

    The sizes compose since floor((floor((H + c_a)/s_a) + 1 + c_b)/s_b) = floor((H + c_a + s_a(1 + c_b))/(s_a s_b)).
    """
    pointwise = all(n == 1 for n in a.size) and is_aligned(a)
    if is_padded(b) and not pointwise:
        return Refusal("a padded window after another window sees the wrong border")
    spread = [s * d for s, d in zip(a.stride, b.step, strict=True)]
    size, step = [], []
    for i in range(len(a.size)):
        unit = math.gcd(a.step[i] if a.size[i] > 1 else 0, spread[i] if b.size[i] > 1 else 0) or 1
        size.append((a.step[i] * (a.size[i] - 1) + spread[i] * (b.size[i] - 1)) // unit + 1)
        step.append(unit)
    stride = tuple(p * q for p, q in zip(a.stride, b.stride, strict=True))
    first = tuple(f + s * g for f, s, g in zip(a.first, a.stride, b.first, strict=True))
    slack = tuple(c + s * (1 + e) for c, s, e in zip(a.slack, a.stride, b.slack, strict=True))
    return Window(stride, tuple(size), tuple(step), first, slack)


def _ratios(steps: Sequence[int], units: Sequence[int], sizes: Sequence[int]) -> list[int]:
    return [s // u if n > 1 else 1 for s, u, n in zip(steps, units, sizes, strict=True)]


def unite(a: Window, b: Window, sizes: Sequence[int | None]) -> Window | Refusal:
    """The smallest window that holds the taps of both, or why there is none.

    sizes: the input's spatial sizes, None where dynamic; windows with unequal slack agree only on known sizes.
    """
    if a.stride != b.stride:
        return Refusal(f"strides {a.stride} and {b.stride} differ")
    size, step, first, slack = [], [], [], []
    for i, h in enumerate(sizes):
        low, high = min(a.first[i], b.first[i], 0), max(a.last[i], b.last[i])
        gaps = [w.step[i] if w.size[i] > 1 else 0 for w in (a, b)]
        unit = math.gcd(*gaps, a.first[i] - low, b.first[i] - low) or 1
        size.append((high - low) // unit + 1)
        step.append(unit)
        first.append(low)
        fitted = _fit_slack(a.slack[i], b.slack[i], a.stride[i], h, low, high)
        if fitted is None:
            return Refusal(
                "the outputs have different sizes"
                if h is not None
                else "the outputs agree in size only for some inputs"
            )
        slack.append(fitted)
    return uncropped(Window(a.stride, tuple(size), tuple(step), tuple(first), tuple(slack)))


def _fit_slack(a: int, b: int, stride: int, size: int | None, low: int, high: int) -> int | None:
    """A slack that gives both output sizes, with symmetric padding if that is possible."""
    symmetric = -low - high - 1
    if size is None:
        return a if a == b else None
    out = (size + a) // stride
    if out != (size + b) // stride:
        return None
    if (size + symmetric) // stride == out:
        return symmetric
    return max(a, b)


def uncropped(window: Window) -> Window:
    """The window with taps added, whose weights are zero, until it needs no negative padding at either end."""
    size, first = list(window.size), list(window.first)
    for i, step in enumerate(window.step):
        while first[i] > 0:
            first[i] -= step
            size[i] += 1
        while window.slack[i] + 1 + first[i] + (size[i] - 1) * step < 0:
            size[i] += 1
    return replace(window, size=tuple(size), first=tuple(first))


def spread_over(weight: Tensor, own: Window, joint: Window) -> Tensor:
    """The kernel over window `own`, with zeros between its taps so that they lie as far apart as those of `joint`."""
    return dilate(weight, _ratios(own.step, joint.step, own.size))


def compose_over(
    joint: Window, a: Window, first: Tensor, groups_first: int, b: Window, second: Tensor, groups_second: int
) -> Tensor:
    """The kernel of `second` (over b) after `first` (over a), with gcd(groups) groups, over `joint`, their composition.

    first: (C_mid, C_in/groups, *a.size). second: (C_out, C_mid/groups, *b.size). Float64, like the result.
    """
    step = tuple(s * d for s, d in zip(a.stride, b.step, strict=True))
    inner, outer = spread_over(first, a, joint), spread_over(second, replace(b, step=step), joint)
    return compose(inner, groups_first, outer, groups_second, (1,) * len(joint.size))
