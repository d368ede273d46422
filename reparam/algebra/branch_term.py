"""Linear terms: a chain of convolutions, affines and average pools as one kernel on one source.

A `Window` says where a kernel's taps lie, independent of its weights, so that geometry is decided before any tensor is
touched. Tap i of an axis reads the input at position stride*p + first + i*step for output position p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from reparam.ir import (
    AVG_POOLS,
    PADS,
    Program,
    Refusal,
    arguments,
    is_call,
    shape_of,
)

from .channel_affine import Affine, Pair, along, read_affine
from .kernels import average_kernel, dirac, embed, expand_groups, scale_inputs, scale_outputs
from .layer import Layer, read_layer, weights
from .picks import read_cut, read_picks
from .window import (
    Window,
    compose_over,
    compose_windows,
    identity_window,
    is_aligned,
    is_padded,
    layer_window,
    pad_window,
    pool_window,
    spatial_padding,
    spread_over,
    zero_padding,
)


@dataclass(frozen=True)
class Link:
    """One linear operator of a chain.

    pool: the window of an average pool, of a zero pad or of a cut (one tap). picks: the axis along which it takes
    positions, and which.
    """

    node: fx.Node
    layer: Layer | None = None
    pool: Window | None = None
    affine: Affine | None = None
    picks: tuple[int, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Branch:
    """The operators from `source` to a value, nearest the source first. macs: what they cost together."""

    source: fx.Node
    links: tuple[Link, ...]

    @property
    def layers(self) -> list[Layer]:
        return [link.layer for link in self.links if link.layer is not None]

    @property
    def picks(self) -> bool:
        """Whether it takes some of the channels."""
        return any(link.picks is not None for link in self.links)


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
        plain = all(s == 1 for s in (*self.window.stride, *self.window.size)) and is_aligned(self.window)
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
        padding = zero_padding(node) or _cropping(node)
        return (Link(node, pool=pad_window(padding)), arguments(node)["self"]) if padding is not None else None
    found = read_picks(program, node)
    if found is not None:
        return Link(node, picks=(found.axis, found.positions)), found.x
    cut = read_cut(node)
    if cut is not None:
        return Link(node, pool=cut), node.args[0]  # type: ignore[return-value]
    affine = read_affine(program, node)
    if isinstance(affine, Affine):
        return Link(node, affine=affine), affine.x
    return None


def _cropping(node: fx.Node) -> tuple[tuple[int, int], ...] | None:
    """The spatial padding of a pad that only takes away, whatever its mode."""
    padding = spatial_padding(node)
    return padding if padding is not None and all(p <= 0 for ends in padding for p in ends) else None


def branches_to(program: Program, value: fx.Node, user: fx.Node, depth: int = 6) -> list[Branch]:
    """All chains that end in `value`, which `user` reads: the value itself first, then ever earlier sources.

    Every node inside a chain is used only by the next, so that replacing the chain removes it.
    """
    found = [Branch(value, ())]
    links: list[Link] = []
    reader = user
    for _ in range(depth):
        step = read_link(program, value) if all(u is reader for u in value.users) else None
        if step is None:
            break
        link, operand = step
        links.insert(0, link)
        found.append(Branch(operand, tuple(links)))
        reader, value = value, operand
    return found


def build_term(program: Program, chain: Branch, ndim: int, axis: int, sign: float = 1.0) -> Term | Refusal:
    """The chain as one term (ndim 0: linear layers), or the reason why it is none."""
    channels = shape_of(chain.source)[axis]
    weight = dirac(channels, channels, ndim)
    term = Term(identity_window(ndim), channels, weight, None)
    for link in chain.links:
        result = _extend(program, term, link, ndim, axis)
        if isinstance(result, Refusal):
            return result
        term = result
    bias = None if term.bias is None else sign * term.bias
    return replace(term, weight=sign * term.weight, bias=bias)


def _extend(program: Program, term: Term, link: Link, ndim: int, axis: int) -> Term | Refusal:
    if link.affine is not None:
        return _after_affine(term, link.affine.pair, axis, link.node)
    if link.picks is not None:
        return _after_picks(term, link, axis)
    if link.pool is not None and not ndim:
        return Refusal("a cut along the map and a linear layer do not combine")
    if link.pool is not None:
        channels = term.weight.shape[0]
        kernel = average_kernel(channels, link.pool.size, arguments(link.node).get("divisor_override"))  # 1 for a pad
        return after_window(term, link.pool, channels, kernel.to(term.weight.device), None)
    assert link.layer is not None
    if (ndim == 0) != (link.layer.kind == "linear"):
        return Refusal("a linear layer and a convolution do not combine")
    weight, bias = weights(program, link.layer)
    return after_window(term, layer_window(link.layer), link.layer.geometry.groups, weight, bias)


def _after_affine(term: Term, own: Pair, axis: int, node: fx.Node) -> Term | Refusal:
    try:
        scale, shift = along(own.scale, axis), along(own.shift, axis)
    except ValueError:
        return Refusal(f"the constant of '{node.name}' does not lie along the channel axis")
    c = term.weight.shape[0]
    parts = (v if v is None else v.expand(c) for v in (scale, shift))
    weight, bias = scale_outputs("conv", term.weight, term.bias, term.groups, *parts)
    return replace(term, weight=weight, bias=bias)


def _after_picks(term: Term, link: Link, axis: int) -> Term | Refusal:
    assert link.picks is not None
    along_axis, positions = link.picks
    if along_axis != axis:
        return Refusal(f"'{link.node.name}' takes a part along another axis than the channels", link.node)
    index = torch.tensor(positions, dtype=torch.int64, device=term.weight.device)
    dense = expand_groups(term.weight, term.groups, 1)
    bias = None if term.bias is None else term.bias[index]
    return replace(term, groups=1, weight=dense[index], bias=bias)


def after_window(term: Term, window: Window, groups: int, weight: Tensor, bias: Tensor | None) -> Term | Refusal:
    """The term followed by a convolution with `weight` over `window`."""
    joint = compose_windows(term.window, window)
    if isinstance(joint, Refusal):
        return joint
    shifted = term.bias is not None and bool((term.bias != 0).any())
    if shifted and is_padded(window):
        return Refusal("its bias would meet the zero padding that follows, which is wrong on the border")
    if term.diagonal:
        return Term(window, groups, *scale_inputs("conv", weight, bias, groups, term.weight.reshape(-1), term.bias))
    mixed = compose_over(joint, term.window, term.weight, term.groups, window, weight, groups)
    total = scale_inputs("conv", weight, bias, groups, None, term.bias)[1] if shifted else bias
    return Term(joint, math.gcd(term.groups, groups), mixed, total)


def fit(weight: Tensor, own: Window, joint: Window) -> Tensor:
    """A kernel over window `own` spread out over `joint`, which contains it."""
    ndim = len(own.size)
    wide = spread_over(weight, own, joint)
    before = [(own.first[i] - joint.first[i]) // joint.step[i] for i in range(ndim)]
    return embed(wide, before, joint.size)


def add_terms(a: Term, b: Term, joint: Window) -> Term:
    """The sum of two terms of one source over a window that holds both."""
    groups = math.gcd(a.groups, b.groups)
    parts = [fit(expand_groups(t.weight, t.groups, groups), t.window, joint) for t in (a, b)]
    bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
    return Term(joint, groups, parts[0] + parts[1], bias)
