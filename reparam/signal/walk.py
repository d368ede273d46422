"""A walk through a program: what is known on the way, and what a layer with independent weights makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import TRANSPOSED_CONVS, Program, arguments, is_call, pair, size_hint

from .power import Power, Roles
from .roles import TURNS
from .sources import WHOLE, Sources, Track
from .values import Value


@dataclass(frozen=True)
class Weighed:
    """A weighted call on its way. fan: the numbers that are summed in one result, on average over places.

    weight, bias: as they are now. power: of its input.
    """

    node: fx.Node
    weight: Tensor
    bias: Tensor | None
    fan: float
    power: Power


@dataclass(frozen=True)
class Scale:
    """Of the weights of a call: square is E w^2. own: whether they are those that the program has, whose sums count;
    else they are independent, of mean zero. bias: its power."""

    square: float
    own: bool = False
    bias: Power = field(default_factory=Power)


LEAST = 4  # numbers of which a mean tells something
COHERENT = 0.5  # share of the power
FAR = 6.0  # standard deviations

Policy = Callable[[Weighed], Scale]
_Window = tuple[int, int, int, int, Any]  # of an axis: the kernel, the places, stride, dilation, padding


def as_it_is(layer: Weighed) -> Scale:
    """The weights and the bias that the program has."""
    bias = Power()
    if layer.bias is not None:
        bias = Power(float(layer.bias.mean()), float(layer.bias.var(correction=0)))
    w = layer.weight
    if is_call(layer.node, TRANSPOSED_CONVS):
        return Scale(float(w.square().mean()), bias=bias)
    return Scale(float(w.square().mean()), own=True, bias=bias)


@dataclass
class Walk:
    """One walk through a program. training: whether norms take the statistics of the batch and dropouts drop.

    values: what is known of each node. drawn: calls that were run on random tensors, with the standard error of E y^2
    over itself. dependent: calls whose operands depend on one another and were taken as independent. same: for calls
    that give what an earlier one gives, that one. order: of the nodes. sign: of the random numbers that are drawn.
    """

    program: Program
    policy: Policy
    training: bool
    generator: torch.Generator
    sizes: dict[Any, int]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    drawn: dict[fx.Node, float] = field(default_factory=dict)
    dependent: list[fx.Node] = field(default_factory=list)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    order: dict[fx.Node, int] = field(default_factory=dict)
    sign: float = 1.0

    def rep(self, node: fx.Node) -> fx.Node:
        """The node that stands for those that have the same value: the first of them."""
        return self.same.get(node, node)

    def read(self, node: fx.Node) -> list[fx.Node]:
        """The operands of a call, each value once."""
        return list(dict.fromkeys(map(self.rep, node.all_input_nodes)))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(size_hint(s, self.sizes) for s in node.meta["val"].shape)

    def given(self, tree: Any) -> Any:
        """Arguments, with what is known of each node in its place."""
        return fx.node.map_aggregate(tree, lambda a: self.values[a] if isinstance(a, fx.Node) else a)


# ---- layers ------------------------------------------------------------------------------------------------------


def fan_of(node: fx.Node, weight: Tensor, shape: Sequence[int]) -> float:
    """The products that are summed in one result, on average over places: less than fan_in at a zero-padded border.

    shape: of the input.
    """
    if weight.dim() == 2:
        return float(weight.shape[1])
    args = arguments(node)
    channels = weight.shape[0] // args["groups"] if is_call(node, TRANSPOSED_CONVS) else weight.shape[1]
    return float(channels) * _taps(node, tuple(weight.shape[2:]), tuple(shape[2:]))


def _taps(node: fx.Node, kernel: tuple[int, ...], places: tuple[int, ...]) -> float:
    """The taps that lie inside of the input, on average over the results: the axes are independent."""
    extra = pair(arguments(node).get("output_padding", 0), len(kernel))
    total = 1.0
    for i, window in enumerate(_windows(node, kernel, places)):
        total *= _taps_along(*window, extra[i] if is_call(node, TRANSPOSED_CONVS) else None)
    return total


def _windows(node: fx.Node, kernel: tuple[int, ...], places: tuple[int, ...]) -> list[_Window]:
    args, rank = arguments(node), len(kernel)
    padding = (args["padding"],) * rank if isinstance(args["padding"], str) else pair(args["padding"], rank)
    return list(zip(kernel, places, pair(args["stride"], rank), pair(args["dilation"], rank), padding, strict=True))


@functools.cache
def _taps_along(k: int, size: int, stride: int, dilation: int, padding: Any, extra: int | None) -> float:
    x, w = torch.ones(1, 1, size, dtype=torch.float64), torch.ones(1, 1, k, dtype=torch.float64)
    if extra is None:
        return float(torch.nn.functional.conv1d(x, w, None, stride, padding, dilation).mean())
    return float(torch.nn.functional.conv_transpose1d(x, w, None, stride, padding, extra, 1, dilation).mean())


@functools.cache
def _inside(k: int, size: int, stride: int, dilation: int, padding: Any) -> tuple[Tensor, Tensor]:
    """Which taps lie inside of the input (kinds, k), of each kind of result along an axis, and its share (kinds)."""
    one, taps = torch.ones(1, 1, size, dtype=torch.float64), torch.eye(k, dtype=torch.float64).unsqueeze(1)
    inside = torch.nn.functional.conv1d(one, taps, None, stride, padding, dilation)[0]
    kinds, counts = torch.unique(inside, dim=1, return_counts=True)
    return kinds.t(), counts.double() / counts.sum()


def _of_one(node: fx.Node, weight: Tensor, shape: Sequence[int]) -> Power:
    """What a layer makes of ones: the sums of its weights, of those that lie inside of the input, exactly."""
    sums, share = weight.sum(1), weight.new_ones(())
    for window in _windows(node, tuple(weight.shape[2:]), tuple(shape[2:])) if weight.dim() > 2 else ():
        kinds, shares = _inside(*window)
        sums, share = torch.tensordot(sums, kinds, dims=([1], [1])), share.unsqueeze(-1) * shares
    means = (sums * share).flatten(1).sum(1) if weight.dim() > 2 else sums
    apart = sums - means.view(-1, *(1 for _ in weight.shape[2:]))
    place = float((apart.square() * share).sum()) / len(means)
    return Power(float(means.mean()), float(means.var(correction=0)), place=place)


def weigh(walk: Walk, node: fx.Node, x: Value, weight: Tensor, bias: Tensor | None, read: fx.Node) -> Value:
    """The result of a convolution, transposed convolution or linear layer. read: the node of the weight."""
    shape, linear = walk.shape(node), weight.dim() == 2
    axis = len(x.shape) - 1 if linear else 1
    roles = _behind(x.roles, axis, linear=linear)
    held = f"weight of {_held(walk, read)}"
    own: Sources = {node: WHOLE, held: WHOLE}
    track = Track(node, shape, axis) if roles[axis] == frozenset("c") else None
    nothing = Value(shape, roles, None, sources=own, track=track, woven=x.woven - {"c"})
    if x.power is None:
        return nothing
    over = x.roles[axis]
    power = x.power.without_places() if linear and over >= frozenset("cp") else x.power
    if held in x.sources:
        walk.dependent.append(node)
    layer = Weighed(node, weight, bias, fan_of(node, weight, x.shape), power)
    scale = walk.policy(layer)
    made = power.weighed(layer.fan * scale.square)
    if scale.own:
        if is_filter(weight):
            nothing = replace(nothing, sources=x.sources, track=None)
        ones = _of_one(node, weight, x.shape).scaled(power.mean)
        channel = ones.channel + layer.fan * scale.square * power.channel
        made = replace(made, mean=ones.mean, channel=channel, place=made.place + ones.place)
    if linear and over == frozenset("p"):  # over places: each result has weights of its own
        made = Power(place=made.second)
    return replace(nothing, power=made.plus(scale.bias))


def _held(walk: Walk, read: fx.Node) -> fx.Node:
    """The weight whose axes a layer reads in another order."""
    while is_call(read, TURNS) and isinstance(read.args[0], fx.Node):
        read = read.args[0]
    return walk.rep(read)


def is_filter(weight: Tensor) -> bool:
    """Whether a weight (out, in, ...) is so far from random numbers of mean zero that its results depend on what it
    reads at the same place: where most of its power is in the means of rows, as that of a blur, or in a diagonal, as
    that of an identity."""
    size = float(weight.square().mean())
    rows = weight.flatten(1)
    if rows.shape[1] >= LEAST and float(rows.mean(1).square().mean()) > COHERENT * size:
        return True
    at: tuple[slice | int, ...] = (slice(None), slice(None), *(k // 2 for k in weight.shape[2:]))
    centre = weight[at]
    diagonal = centre.flatten() if centre.shape[1] == 1 else torch.diagonal(centre)
    square = centre.shape[1] in (1, centre.shape[0]) and len(diagonal) >= LEAST
    return square and float(diagonal.mean()) ** 2 * len(diagonal) > FAR * FAR * size


def _behind(roles: Roles, axis: int, *, linear: bool) -> Roles:
    if linear and roles[axis] == frozenset("p"):
        return roles
    return (*roles[:axis], frozenset("c"), *(r - {"c"} for r in roles[axis + 1 :]))
