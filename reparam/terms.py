"""Linear terms: a chain of convolutions, affines and average pools as one kernel on one source.

A `Window` says where a kernel's taps lie, independent of its weights, so that geometry is decided before any tensor is
touched. Tap i of an axis reads the input at position stride*p + first + i*step for output position p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from .channels import Affine, Pair, along, read_affine
from .kernels import average_kernel, compose, dilate, dirac, embed, expand_groups, scale_inputs, scale_outputs
from .layers import Geometry, Layer, read_layer, weights
from .ops import AVG_POOLS, PADS, arguments, is_call, pair
from .program import Program, shape_of, static_shape


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


@dataclass(frozen=True)
class Link:
    """One linear operator of a chain. pool: the window of an average pool or of a zero pad (one tap)."""

    node: fx.Node
    layer: Layer | None = None
    pool: Window | None = None
    affine: Affine | None = None


@dataclass(frozen=True)
class Chain:
    """The operators from `source` to a value, nearest the source first. macs: what they cost together."""

    source: fx.Node
    links: tuple[Link, ...]

    @property
    def layers(self) -> list[Layer]:
        return [link.layer for link in self.links if link.layer is not None]


@dataclass(frozen=True)
class Term:
    """weight * source + bias as one kernel: (C_out, C_in/groups, *window.size) float64 and (C_out,)."""

    window: Window
    groups: int
    weight: Tensor
    bias: Tensor | None

    @property
    def diagonal(self) -> bool:
        """True when it only scales and shifts each channel."""
        plain = all(s == 1 for s in (*self.window.stride, *self.window.size)) and not is_padded(self.window)
        return plain and self.groups == self.weight.shape[0] and self.weight.shape[1] == 1


def read_link(program: Program, node: fx.Node) -> tuple[Link, fx.Node] | None:
    """`node` as a link of a chain and its operand, or None when it is not such a linear operator."""
    layer = read_layer(program, node)
    if layer is not None:
        return (Link(node, layer=layer), layer.x) if layer.kind != "transposed" else None
    if is_call(node, AVG_POOLS):
        window = pool_window(node)
        return (Link(node, pool=window), arguments(node)["self"]) if window is not None else None
    if is_call(node, PADS):
        padding = zero_padding(node)
        return (Link(node, pool=pad_window(padding)), arguments(node)["self"]) if padding is not None else None
    affine = read_affine(program, node)
    if isinstance(affine, Affine):
        return Link(node, affine=affine), affine.x
    return None


def zero_padding(node: fx.Node) -> tuple[tuple[int, int], ...] | None:
    """(low, high) of each spatial axis of a zero pad; None for another mode or value, or a pad of other axes."""
    args = arguments(node)
    flat, rank = list(args["pad"]), len(shape_of(node))
    if args.get("mode", "constant") != "constant" or args.get("value"):
        return None
    if rank < 3 or len(flat) > 2 * (rank - 2) or not all(isinstance(p, int) and p >= 0 for p in flat):
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


def chains(program: Program, value: fx.Node, user: fx.Node, depth: int = 6) -> list[Chain]:
    """All chains that end in `value`, which `user` reads: the value itself first, then ever earlier sources.

    Every node inside a chain is used only by the next, so that replacing the chain removes it.
    """
    found = [Chain(value, ())]
    links: list[Link] = []
    reader = user
    for _ in range(depth):
        if value.op != "call_function" or any(u is not reader for u in value.users):
            break
        step = read_link(program, value)
        if step is None:
            break
        link, operand = step
        links.insert(0, link)
        found.append(Chain(operand, tuple(links)))
        reader, value = value, operand
    return found


def build_term(program: Program, chain: Chain, ndim: int, axis: int, sign: float = 1.0) -> Term | str:
    """The chain as one term (ndim 0: linear layers), or the reason why it is none."""
    channels = shape_of(chain.source)[axis]
    weight = dirac(channels, channels, ndim).to(program.device)
    term = Term(identity_window(ndim), channels, weight, None)
    for link in chain.links:
        result = _extend(program, term, link, ndim, axis)
        if isinstance(result, str):
            return result
        term = result
    if sign != 1.0:
        bias = None if term.bias is None else sign * term.bias
        term = replace(term, weight=sign * term.weight, bias=bias)
    return term


def _extend(program: Program, term: Term, link: Link, ndim: int, axis: int) -> Term | str:
    if link.affine is not None:
        return _after_affine(term, link.affine.pair, axis, link.node)
    if link.pool is not None:
        channels = term.weight.shape[0]
        kernel = average_kernel(channels, link.pool.size, arguments(link.node).get("divisor_override"))  # 1 for a pad
        return after_window(term, link.pool, channels, kernel.to(term.weight.device), None)
    assert link.layer is not None
    if (ndim == 0) != (link.layer.kind == "linear"):
        return "a linear layer and a convolution do not combine"
    weight, bias = weights(program, link.layer)
    return after_window(term, layer_window(link.layer), link.layer.geometry.groups, weight, bias)


def _after_affine(term: Term, own: Pair, axis: int, node: fx.Node) -> Term | str:
    try:
        scale, shift = along(own.scale, axis), along(own.shift, axis)
    except ValueError:
        return f"the constant of '{node.name}' does not lie along the channel axis"
    c = term.weight.shape[0]
    parts = (v if v is None else v.expand(c) for v in (scale, shift))
    weight, bias = scale_outputs("conv", term.weight, term.bias, term.groups, *parts)
    return replace(term, weight=weight, bias=bias)


def is_padded(window: Window) -> bool:
    """True when the window reads beyond either end of the input."""
    high = [c + 1 + last for c, last in zip(window.slack, window.last, strict=True)]
    return any(window.first) or any(high)


def compose_windows(a: Window, b: Window) -> Window | str:
    """The window of b after a, or why it is not exact at the border.

    The sizes compose since floor((floor((H + c_a)/s_a) + 1 + c_b)/s_b) = floor((H + c_a + s_a(1 + c_b))/(s_a s_b)).
    """
    pointwise = all(n == 1 for n in a.size) and not is_padded(a)
    if is_padded(b) and not pointwise:
        return "a padded window after another window sees the wrong border"
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


def after_window(term: Term, window: Window, groups: int, weight: Tensor, bias: Tensor | None) -> Term | str:
    """The term followed by a convolution with `weight` over `window`."""
    joint = compose_windows(term.window, window)
    if isinstance(joint, str):
        return joint
    shifted = term.bias is not None and bool((term.bias != 0).any())
    if shifted and is_padded(window):
        return "its bias would meet the zero padding that follows, which is wrong on the border"
    if term.diagonal:
        return Term(window, groups, *scale_inputs("conv", weight, bias, groups, term.weight.reshape(-1), term.bias))
    ndim = len(window.size)
    spread = [s * d for s, d in zip(term.window.stride, window.step, strict=True)]
    inner = dilate(term.weight, _ratios(term.window.step, joint.step, term.window.size))
    outer = dilate(weight, _ratios(spread, joint.step, window.size))
    mixed = compose(inner, term.groups, outer, groups, (1,) * ndim)
    total = scale_inputs("conv", weight, bias, groups, None, term.bias)[1] if shifted else bias
    return Term(joint, math.gcd(term.groups, groups), mixed, total)


def _ratios(steps: Sequence[int], units: Sequence[int], sizes: Sequence[int]) -> list[int]:
    return [s // u if n > 1 else 1 for s, u, n in zip(steps, units, sizes, strict=True)]


def unite(a: Window, b: Window, sizes: Sequence[int | None]) -> Window | str:
    """The smallest window that holds the taps of both, or why there is none.

    sizes: the input's spatial sizes, None where dynamic; windows with unequal slack agree only on known sizes.
    """
    if a.stride != b.stride:
        return f"strides {a.stride} and {b.stride} differ"
    size, step, first, slack = [], [], [], []
    for i, h in enumerate(sizes):
        low, high = min(a.first[i], b.first[i], 0), max(a.last[i], b.last[i])
        gaps = [w.step[i] if w.size[i] > 1 else 0 for w in (a, b)]
        unit = math.gcd(*gaps, a.first[i] - low, b.first[i] - low) or 1
        size.append((high - low) // unit + 1)
        step.append(unit if high > low else 1)
        first.append(low)
        fitted = _fit_slack(a.slack[i], b.slack[i], a.stride[i], h, low, high)
        if fitted is None:
            return (
                "the outputs have different sizes"
                if h is not None
                else "the outputs agree in size only for some inputs"
            )
        slack.append(fitted)
    return Window(a.stride, tuple(size), tuple(step), tuple(first), tuple(slack))


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


def fit(weight: Tensor, own: Window, joint: Window) -> Tensor:
    """A kernel over window `own` spread out over `joint`, which contains it."""
    ndim = len(own.size)
    wide = dilate(weight, _ratios(own.step, joint.step, own.size))
    before = [(own.first[i] - joint.first[i]) // joint.step[i] for i in range(ndim)]
    return embed(wide, before, joint.size)


def add_terms(a: Term, b: Term, joint: Window) -> Term:
    """The sum of two terms of one source over a window that holds both."""
    groups = math.gcd(a.groups, b.groups)
    parts = [fit(expand_groups(t.weight, t.groups, groups), t.window, joint) for t in (a, b)]
    bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
    return Term(joint, groups, parts[0] + parts[1], bias)
