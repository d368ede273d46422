"""Cuts, borders, reductions, samplers, extremes and products of several values: affines through them, both ways."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from reparam.algebra import Pair, Route, backward, execute, forward, forward_all
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand
from support.carried_back import BOTH, SCALE, SHAPE, SHIFT, UP, asked, assert_applied, conv, linear, shaped
from support.helpers import EXACT, doubles

Call = Callable[[ByHand, fx.Node], fx.Node]
RISING = Pair(SCALE.abs(), SHIFT)


def of(target: Any, *args: Any) -> Call:
    """The call on a value."""
    return lambda g, x: g.call(target, x, *args)


def values(target: Any, *args: Any) -> Call:
    """The values of a call that gives positions as well."""
    return lambda g, x: g.call(operator.getitem, g.call(target, x, *args), 0)


def sampled(padding: int) -> Call:
    """Places inside and outside of the map."""
    places = doubles(2, 3, 3, 2, seed=6) * 1.5
    return lambda g, x: g.call(aten.grid_sampler.default, x, g.weight(places), 0, padding, False)


def picked(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.index_select.default, x, 2, graph.weight(torch.tensor([3, 1]), "i"))


ANY: dict[str, Call] = {
    "a crop": of(aten.slice.Tensor, 2, 1, -1),
    "every other place": of(aten.slice.Tensor, 3, 0, 2**62, 2),
    "some rows": picked,
    "a cutting pad": of(aten.constant_pad_nd.default, [-1, 0, 0, -2]),
    "a reflecting pad": of(aten.pad.default, [1, 2, 0, 1], "reflect"),
    "a repeating pad": of(aten.pad.default, [1, 1, 2, 0], "replicate"),
    "a pad around the circle": of(aten.pad.default, [2, 1, 0, 0], "circular"),
    "patches": of(aten.unfold.default, 3, 2, 2),
    "repeated columns": of(aten.repeat_interleave.self_int, 2, 3),
    "a diagonal": lambda g, x: g.call(aten.permute.default, g.call(aten.diagonal.default, x, 0, 2, 3), [0, 1, 2]),
    "nearest": of(aten._upsample_nearest_exact2d.vec, [7, 9], None),
    "cubic": of(aten.upsample_bicubic2d.vec, [7, 9], False, None),
    "smoothed": of(aten._upsample_bilinear2d_aa.vec, [3, 4], False, None),
    "smoothed, cubic": of(aten._upsample_bicubic2d_aa.vec, [3, 4], True, None),
    "a sum": of(aten.sum.dim_IntList, [3]),
    "a sum, kept": of(aten.sum.dim_IntList, [-1, 2], True),
    "a sampler that repeats the border": sampled(1),
    "a sampler that reflects": sampled(2),
}
SCALES: dict[str, Call] = {
    "a pad with zeros": of(aten.constant_pad_nd.default, [1, 1]),
    "a pad that widens and cuts": of(aten.pad.default, [-1, 2, 1, 0], "constant", 0.0),
    "a sampler": sampled(0),
    "an einsum": lambda g, x: g.call(aten.einsum.default, "hg,bcgw->bchw", [g.weight(doubles(7, 5)), x]),
    "an einsum with data": lambda g, x: g.call(aten.einsum.default, "bchw, bgw -> bchg", [x, place(g)]),
    "an einsum with dots": lambda g, x: g.call(aten.einsum.default, "...hw,vw->...vh", [x, g.weight(doubles(3, 6))]),
    "an einsum without an arrow": lambda g, x: g.call(aten.einsum.default, "bchw,wz", [x, g.weight(doubles(6, 3))]),
    "a layer over places": lambda g, x: linear(g, x, 5, 3),
}
KEEP_ORDER: dict[str, Call] = {
    "the largest": of(aten.amax.default, [2]),
    "the least, kept": of(aten.amin.default, [2, 3], True),
    "the largest and where": values(aten.max.dim, 3),
    "the least and where": values(aten.min.dim, 2, True),
    "the middle": values(aten.median.dim, 3),
    "sorted": values(aten.sort.default, 3, True),
    "sorted, stable": lambda g, x: g.call(operator.getitem, g.call(aten.sort.stable, x, stable=True, dim=2), 0),
    "the two largest": values(aten.topk.default, 2, 3),
    "the second": values(aten.kthvalue.default, 2, 3),
}


def place(graph: ByHand) -> fx.Node:
    """(2, 3, 6), computed from the input."""
    x = graph.program.placeholders[0]
    return graph.call(aten.slice.Tensor, graph.call(aten.select.int, graph.call(aten.tanh.default, x), 1, 0), 1, 0, 3)


def layer(graph: ByHand, x: fx.Node) -> fx.Node:
    """A convolution of size one, or a linear layer, for channels along the second axis."""
    spatial = x.meta["val"].dim() - 2
    weight = graph.weight(doubles(3, 4, *[1] * spatial, seed=2))
    if spatial == 3:
        return graph.call(aten.conv3d.default, x, weight)
    return graph.call((aten.linear.default, aten.conv1d.default, aten.conv2d.default)[spatial], x, weight)


def assert_back(call: Call, given: Pair) -> None:
    """What the steps make is the value with the affine applied to it, and the convolution alone has taken it."""
    graph, value, pair, route = asked(lambda g, x: call(g, conv(g, x)), given)
    assert isinstance(route, Route), route
    assert [s.action for s in route.steps if s.action == "sink"] == ["sink"] and len(route.sinks) == 1
    assert_applied(graph, value, route, pair)


def assert_forth(call: Call, given: Pair) -> None:
    """The layer behind the call takes the affine in front of it."""
    graph = ByHand()
    x = graph.input(*SHAPE)
    pair = shaped(given, 4, 1)
    start = graph.call(aten.mul.Tensor, x, graph.weight(pair.scale))  # type: ignore[arg-type]
    if pair.shift is not None:
        start = graph.call(aten.add.Tensor, start, graph.weight(pair.shift))
    end = layer(graph, call(graph, start))
    graph.returns(end)
    route = forward(graph.program, start, pair)
    assert isinstance(route, Route), route
    assert route.sinks == (end,)
    value = doubles(*SHAPE, seed=9)
    [before] = evaluate(graph.returns(end), [value])
    made = execute(graph.program, route, {start: x})
    [after] = evaluate(graph.returns(made[end]), [value])
    assert float((after - before).abs().max()) <= EXACT * float(before.abs().max())


@pytest.mark.parametrize("name", ANY)
def test_what_takes_values_or_means_of_a_channel_lets_any_affine_through(name: str) -> None:
    assert_back(ANY[name], BOTH)
    assert_forth(ANY[name], BOTH)


@pytest.mark.parametrize("name", SCALES)
def test_what_is_linear_in_each_channel_lets_a_scale_through(name: str) -> None:
    assert_back(SCALES[name], Pair(SCALE))
    assert_forth(SCALES[name], Pair(SCALE))


@pytest.mark.parametrize("name", KEEP_ORDER)
def test_what_puts_values_in_order_lets_a_rising_affine_through(name: str) -> None:
    assert_back(KEEP_ORDER[name], RISING)
    assert_forth(KEEP_ORDER[name], RISING)


def test_the_absolute_value_lets_a_positive_scale_through() -> None:
    assert_back(of(aten.abs.default), UP)
    assert_forth(of(aten.abs.default), UP)


@pytest.mark.parametrize("target", [aten.maximum.default, aten.minimum.default])
def test_the_larger_of_two_layers(target: Any) -> None:
    graph, value, pair, route = asked(lambda g, x: g.call(target, conv(g, x), conv(g, x, 2)), RISING)
    assert isinstance(route, Route) and len(route.sinks) == 2
    assert_applied(graph, value, route, pair)


@pytest.mark.parametrize("target", [aten.maximum.default, aten.minimum.default])
def test_an_affine_that_both_sides_have_passes_forward(target: Any) -> None:
    assert_forth(lambda g, x: g.call(target, x, g.call(aten.flip.default, x, [2])), RISING)


def test_halves_that_are_split_and_compared() -> None:
    """As in max-feature-map networks (Wu et al., 2018)."""

    def way(graph: ByHand, x: fx.Node) -> fx.Node:
        split = graph.call(aten.split.Tensor, conv(graph, x, channels=8), 4, 1)
        return graph.call(aten.maximum.default, *(graph.call(operator.getitem, split, i) for i in (0, 1)))

    graph, value, pair, route = asked(way, RISING)
    assert isinstance(route, Route) and len(route.sinks) == 1
    assert_applied(graph, value, route, pair)


SUMS: dict[str, Callable[[ByHand, fx.Node, fx.Node], fx.Node]] = {
    "difference": lambda g, a, b: g.call(aten.sub.Tensor, a, b),
    "sum with a factor": lambda g, a, b: g.call(aten.add.Tensor, a, b, alpha=-2.5),
    "reversed difference": lambda g, a, b: g.call(aten.rsub.Tensor, a, b, alpha=3),
}


@pytest.mark.parametrize("pair", [BOTH, Pair(SCALE), Pair(None, SHIFT)], ids=["both", "scale", "shift"])
@pytest.mark.parametrize("name", SUMS)
def test_differences_and_sums_with_factors(name: str, pair: Pair) -> None:
    graph, value, shaped_pair, route = asked(lambda g, x: SUMS[name](g, conv(g, x), conv(g, x, 2)), pair)
    assert isinstance(route, Route)
    assert_applied(graph, value, route, shaped_pair)


# ---- what stops it -----------------------------------------------------------------------------------------------


def with_positions(graph: ByHand, x: fx.Node) -> fx.Node:
    found = graph.call(aten.max.dim, x, 3)
    graph.call(operator.getitem, found, 1)
    return graph.call(operator.getitem, found, 0)


ZEROS = "a shift does not pass through zero padding"
NUMBERS = "a scale does not pass through a pad with another number than zero"
STOPPED: dict[str, tuple[Call, Pair, str]] = {
    "zeros": (of(aten.constant_pad_nd.default, [1, 1]), BOTH, ZEROS),
    "other numbers": (of(aten.constant_pad_nd.default, [1, 1], 2.0), Pair(SCALE), NUMBERS),
    "padded channels": (
        lambda g, x: g.call(aten.slice.Tensor, g.call(aten.constant_pad_nd.default, x, [0, 0, 0, 0, 1, 1]), 1, 0, 4),
        Pair(SCALE),
        "the padding adds channels to the axis of the scale",
    ),
    "a sampler": (sampled(0), BOTH, "the shift meets the zeros beyond the border that grid_sampler reads"),
    "falling": (of(aten.amax.default, [2]), BOTH, "amax does not let a negative scale through (1 channels)"),
    "falling values": (
        values(aten.topk.default, 2, 3),
        BOTH,
        "topk does not let a negative scale through (1 channels)",
    ),
    "positions": (with_positions, RISING, "the positions that max gives are used as well"),
    "sorted channels": (values(aten.sort.default, 1), RISING, "the affine varies along an axis that is put in order"),
    "the larger, falling": (
        lambda g, x: g.call(aten.maximum.default, x, conv(g, x, 2)),
        BOTH,
        "maximum does not let a negative scale through (1 channels)",
    ),
    "the larger of a number": (
        lambda g, x: g.call(aten.maximum.default, x, g.weight(doubles(4, 1, 1))),
        RISING,
        "the affine does not pass back through this maximum",
    ),
    "a shift in an einsum": (
        lambda g, x: g.call(aten.einsum.default, "hg,bcgw->bchw", [g.weight(doubles(7, 5)), x]),
        BOTH,
        "a shift does not pass back through an einsum",
    ),
    "the same value twice": (
        lambda g, x: g.call(aten.einsum.default, "bchw,bchw->bchw", [x, x]),
        Pair(SCALE),
        "the scale lies along no one operand of this einsum",
    ),
    "a bias over places": (
        lambda g, x: g.call(aten.linear.default, x, g.weight(doubles(3, 6)), g.weight(doubles(3))),
        Pair(SCALE),
        "the affine does not lie along the channel axis of the layer before it",
    ),
    "a shift over places": (
        lambda g, x: linear(g, x, 5, 3),
        BOTH,
        "the affine does not lie along the channel axis of the layer before it",
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_an_affine_is_named(name: str) -> None:
    call, pair, reason = STOPPED[name]
    *_, refused = asked(lambda g, x: call(g, conv(g, x)), pair)
    assert isinstance(refused, Refusal) and refused.reason == reason


PLACES = doubles(1, 1, 5, 6, seed=4)
BESIDE = "the affine does not lie along the channel axis of the layer before it"
VARIES = "the affine varies over what grid_sampler reads"
APART: dict[str, tuple[Call, Pair, str]] = {
    "a shift alone over places": (lambda g, x: linear(g, x, 5, 6), Pair(None, SHIFT), BESIDE),
    "a scale along two axes": (
        lambda g, x: linear(g, x, 5, 6),
        Pair(SCALE.reshape(1, 4, 1, 1) * doubles(1, 1, 1, 6, seed=3)),
        BESIDE,
    ),
    "a scale that varies where it is sampled": (
        lambda g, x: g.call(aten.grid_sampler.default, x, g.weight(doubles(2, 5, 6, 2)), 0, 1, False),
        Pair(PLACES),
        VARIES,
    ),
    "a shift that varies where it is sampled": (
        lambda g, x: g.call(aten.grid_sampler.default, x, g.weight(doubles(2, 5, 6, 2)), 0, 1, False),
        Pair(None, PLACES),
        VARIES,
    ),
    "a shift into what is no layer, with a factor": (
        lambda g, x: g.call(aten.add.Tensor, g.call(aten.tanh.default, x), conv(g, x, 2), alpha=2),
        Pair(None, SHIFT),
        "tanh does not commute with a channel affine",
    ),
    "a shift into what is no layer, less another": (
        lambda g, x: g.call(aten.sub.Tensor, g.call(aten.tanh.default, x), conv(g, x, 2)),
        Pair(None, SHIFT),
        "tanh does not commute with a channel affine",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_affines_of_other_shapes_are_stopped(name: str) -> None:
    call, pair, reason = APART[name]
    *_, refused = asked(lambda g, x: call(g, conv(g, x)), pair)
    assert isinstance(refused, Refusal) and refused.reason == reason


def test_the_first_piece_of_a_split() -> None:
    assert_back(lambda g, x: g.call(operator.getitem, g.call(aten.split.Tensor, conv(g, x, 3, 8), 4, 1), 0), BOTH)


def test_a_shift_does_not_pass_a_sum_of_a_free_number_of_values() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(3,))
    value = graph.call(aten.sum.dim_IntList, conv(graph, x), [3])
    user = graph.call(aten.sin.default, value)
    refused = backward(graph.program, user, value, shaped(BOTH, 3, 1))
    assert isinstance(refused, Refusal)
    assert refused.reason == "a shift does not pass back through a sum of a free number of values"
    assert isinstance(backward(graph.program, user, value, shaped(Pair(SCALE), 3, 1)), Route)


def beside(scale: float, shift: float) -> tuple[fx.Node, Any]:
    """The larger of a value with an affine and of one with another; the call, and what carrying both forward gives."""
    graph = ByHand()
    x = graph.input(*SHAPE)
    pairs = [shaped(RISING, 4, 1), Pair(scale * SCALE.abs().reshape(1, 4, 1, 1), SHIFT.reshape(1, 4, 1, 1) + shift)]
    starts = []
    for pair in pairs:
        scaled = graph.call(aten.mul.Tensor, x, graph.weight(pair.scale))  # type: ignore[arg-type]
        starts.append(graph.call(aten.add.Tensor, scaled, graph.weight(pair.shift)))  # type: ignore[arg-type]
    value = graph.call(aten.maximum.default, *starts)
    graph.returns(layer(graph, value))
    return value, forward_all(graph.program, dict(zip(starts, pairs, strict=True)))


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1.0, 1.0)])
def test_unlike_affines_do_not_pass_the_larger_of_two_values(scale: float, shift: float) -> None:
    value, refused = beside(scale, shift)
    assert isinstance(refused, Refusal) and refused.node is value
    assert refused.reason == "an affine on one operand only does not pass through maximum"
    assert isinstance(beside(1.0, 0.0)[1], Route)


def test_an_affine_of_one_operand_does_not_pass_the_larger_of_two_values() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    pair = shaped(RISING, 4, 1)
    start = graph.call(aten.mul.Tensor, x, graph.weight(pair.scale))  # type: ignore[arg-type]
    value = graph.call(aten.minimum.default, x, start)
    graph.returns(layer(graph, value))
    refused = forward(graph.program, start, Pair(pair.scale))
    assert isinstance(refused, Refusal) and refused.node is value
    assert refused.reason == "an affine on one operand only does not pass through minimum"


def test_a_falling_affine_does_not_pass_the_larger_of_two_values() -> None:
    graph = ByHand()
    start = graph.call(aten.mul.Tensor, graph.input(*SHAPE), graph.weight(SCALE.reshape(4, 1, 1)))
    value = graph.call(aten.maximum.default, start, start)
    graph.returns(layer(graph, value))
    refused = forward(graph.program, start, shaped(Pair(SCALE), 4, 1))
    assert isinstance(refused, Refusal) and refused.node is value
    assert refused.reason == "maximum does not let a negative scale through (1 channels)"
