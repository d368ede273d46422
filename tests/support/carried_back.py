"""Values made of layers by hand, and an affine carried back to these."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from reparam.algebra import Pair, Route, backward, execute
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, doubles

SCALE, SHIFT = torch.tensor([0.5, -2.0, 1.5, 3.0]).double(), torch.tensor([1.0, -1.0, 0.5, 2.0]).double()
SHAPE = (2, 4, 5, 6)
Way = Callable[[ByHand, fx.Node], fx.Node]  # what it makes of the input
BOTH = Pair(SCALE, SHIFT)
UP = Pair(SCALE.abs())


def conv(graph: ByHand, x: fx.Node, seed: int = 1, channels: int = 4) -> fx.Node:
    weight = graph.weight(doubles(channels, 4, 1, 1, seed=seed), f"conv{seed}")
    return graph.call(aten.conv2d.default, x, weight, graph.weight(doubles(channels, seed=seed + 20), "bias"))


def linear(graph: ByHand, x: fx.Node, seed: int = 1, channels: int = 4) -> fx.Node:
    width = x.meta["val"].shape[-1]
    return graph.call(aten.linear.default, x, graph.weight(doubles(channels, width, seed=seed), f"linear{seed}"))


def tokens(graph: ByHand, x: fx.Node, seed: int = 1, channels: int = 4) -> fx.Node:
    """(2, 4, 30) -> (2, 4, channels)"""
    return linear(graph, graph.call(aten.flatten.using_ints, x, 2), seed, channels)


def kernel(graph: ByHand, x: fx.Node, *sizes: int, seed: int = 1, samples: bool = False) -> fx.Node:
    """Weights of this shape, computed from the whole input by a layer; samples: some of them by each sample."""
    flat = graph.call(aten.flatten.using_ints, x, 1)
    flat = flat if samples else graph.call(aten.mean.dim, flat, [0], True)
    count = math.prod(sizes) // flat.meta["val"].shape[0]
    return graph.call(aten.reshape.default, linear(graph, flat, seed, count), [*sizes])


def gate(graph: ByHand, x: fx.Node) -> fx.Node:
    """(2, 4, 1, 1)"""
    return tanh(graph, graph.call(aten.adaptive_avg_pool2d.default, x, [1, 1]))


def tanh(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.tanh.default, x)


def shaped(pair: Pair, rank: int, axis: int) -> Pair:
    """A pair of vectors, along `axis` of a value of this rank; what is shaped already stays so."""
    sizes = [-1 if i == axis % rank else 1 for i in range(rank)]
    return Pair(*(v.reshape(sizes) if v is not None and v.dim() == 1 else v for v in (pair.scale, pair.shift)))


def apply_pair(x: Tensor, pair: Pair) -> Tensor:
    y = x if pair.scale is None else x * pair.scale
    return y if pair.shift is None else y + pair.shift


def assert_applied(graph: ByHand, value: fx.Node, route: Route, pair: Pair) -> None:
    """What the steps of the route make is the value with the affine applied to it."""
    x = doubles(*SHAPE, seed=9)
    [before] = evaluate(graph.returns(value), [x])
    made = execute(graph.program, route, {})
    [after] = evaluate(graph.returns(made[value]), [x])
    truth = apply_pair(before, pair)
    assert float((after - truth).abs().max()) <= EXACT * float(truth.abs().max())


def asked(way: Way, pair: Pair, axis: int = 1) -> tuple[ByHand, fx.Node, Pair, Route | Refusal]:
    """way(x), and the route back from a call that applies the pair to it."""
    graph = ByHand()
    value = way(graph, graph.input(*SHAPE))
    user = graph.call(aten.sin.default, value)
    pair = shaped(pair, value.meta["val"].dim(), axis)
    return graph, value, pair, backward(graph.program, user, value, pair)


# ---- what lets it through ----------------------------------------------------------------------------------------
