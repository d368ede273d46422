"""Affines carried forward into other affines, through activations that change, and where several values carry them.

A route is built, and what its ends compute is compared with what they computed before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from reparam.algebra import Pair, Route, forward, forward_all
from reparam.ir import Refusal, aten
from support.by_hand import ByHand, Make, call, then
from support.carried_by_hand import SCALE, SHAPE, SHIFT, actions, assert_same, column, conv, norm, started, two
from support.helpers import Lambda, doubles, program_of

# ---- an affine that takes another ----------------------------------------------------------------------------------

OUT: Make = call(aten.tanh.default)  # stops every affine: nothing behind the join could take it


@pytest.mark.parametrize(
    ("scale", "shift", "taken"),
    [
        (SCALE, SHIFT, norm()),
        (SCALE, None, norm()),
        (None, SHIFT, norm()),
        ([2.0], None, norm()),
        (None, [2.0], norm()),
        (SCALE, None, call(aten.mul.Tensor, column(SHIFT))),
        (None, SHIFT, call(aten.add.Tensor, column(SCALE))),
        (None, SHIFT, call(aten.sub.Tensor, column(SCALE))),
    ],
    ids=[
        "a norm takes both",
        "a norm takes a scale",
        "a norm takes a shift",
        "a norm takes one scale for all channels",
        "a norm takes one shift for all channels",
        "a product takes a scale",
        "a sum takes a shift",
        "a difference takes a shift",
    ],
)
def test_an_affine_takes_one_of_its_kind_where_no_layer_could(
    scale: list[float] | None, shift: list[float] | None, taken: Make
) -> None:
    graph, x, start, pair = started(scale, shift)
    end = taken(graph, start)
    graph.returns(OUT(graph, end))
    route = forward(graph.program, start, pair)
    assert actions(route) == "sink" and route.sinks == (end,)  # type: ignore[union-attr]
    assert_same(graph, route, {start: x})


@pytest.mark.parametrize(
    ("scale", "shift", "other"),
    [
        (SCALE, SHIFT, call(aten.mul.Tensor, column(SHIFT))),
        (SCALE, SHIFT, call(aten.add.Tensor, column(SCALE))),
        (SCALE, None, call(aten.add.Tensor, column(SCALE))),
        (None, SHIFT, call(aten.mul.Tensor, column(SHIFT))),
        ([0.5, 0.0, 1.5, 3.0], None, norm()),
    ],
    ids=["a scale and a shift, to a product", "and to a sum", "a scale to a sum", "a shift to a product", "a zero"],
)
def test_what_an_affine_cannot_take_is_refused_by_what_comes_behind_it(
    scale: list[float] | None, shift: list[float] | None, other: Make
) -> None:
    graph, _, start, pair = started(scale, shift)
    end = OUT(graph, other(graph, start))
    graph.returns(end)
    refused = forward(graph.program, start, pair)
    assert isinstance(refused, Refusal) and refused.node is end
    assert refused.reason == "tanh does not commute with a channel affine"


def test_an_affine_along_another_axis_than_the_channels_is_none_of_a_norms() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    pair = Pair(torch.tensor([1.0, 2.0, 3.0]).double().reshape(1, 1, 3, 1))
    start = graph.call(aten.mul.Tensor, x, graph.weight(pair.scale))  # type: ignore[arg-type]
    end = OUT(graph, norm()(graph, start))
    graph.returns(end)
    refused = forward(graph.program, start, pair)
    assert isinstance(refused, Refusal) and refused.node is end


def test_a_layer_takes_what_an_affine_could_take_on_the_way_to_it() -> None:
    """And the affine goes there too: one product less."""
    graph, x, start, pair = started(SCALE, None)
    end = conv(graph, call(aten.mul.Tensor, column(SHIFT))(graph, start))
    graph.returns(end)
    route = forward(graph.program, start, pair)
    assert actions(route) == "skip sink"
    assert_same(graph, route, {start: x})


def test_where_one_way_ends_in_a_layer_and_one_in_a_norm_both_take_it() -> None:
    graph, x, start, pair = started(SCALE, SHIFT)
    layer, other = conv(graph, start), norm()(graph, start)
    graph.returns(layer, OUT(graph, other))
    route = forward(graph.program, start, pair)
    assert isinstance(route, Route) and set(route.sinks) == {layer, other}
    assert_same(graph, route, {start: x})


def test_without_a_way_through_the_first_obstacle_is_told_and_not_that_of_the_joins() -> None:
    graph, _, start, pair = started(SCALE, None)
    first = OUT(graph, call(aten.mul.Tensor, column(SHIFT))(graph, start))
    second = call(aten.sin.default)(graph, start)
    graph.returns(first, second)
    refused = forward(graph.program, start, pair)
    assert isinstance(refused, Refusal) and refused.node is first


# ---- activations that become others ----------------------------------------------------------------------------------

CLAMP = call(aten.clamp.default, -1.0, 2.0)
SIGNED: dict[str, Make] = {
    "prelu": call(aten.prelu.default, torch.tensor([0.25, 0.5, -1.0, 2.0]).double()),
    "relu6": call(aten.relu6.default),
    "clamp": CLAMP,
}


@pytest.mark.parametrize("name", SIGNED)
def test_a_scale_of_any_sign_passes_an_activation_that_becomes_another(name: str) -> None:
    graph, x, start, pair = started(SCALE, None)
    activation = SIGNED[name](graph, start)
    graph.returns(conv(graph, activation))
    route = forward(graph.program, start, pair)
    assert actions(route) == "clone sink"
    assert_same(graph, route, {start: x})
    assert actions(forward_all(graph.program, {start: pair})) == "clone sink"
    refused = forward_all(graph.program, {start: pair}, swapping=False)
    assert isinstance(refused, Refusal) and refused.node is activation


def test_a_shift_changes_what_an_activation_sees() -> None:
    for make in (SIGNED["relu6"], SIGNED["prelu"], CLAMP):
        graph, _, start, pair = started(SCALE, SHIFT)
        activation = make(graph, start)
        graph.returns(conv(graph, activation))
        refused = forward(graph.program, start, pair)
        assert isinstance(refused, Refusal) and refused.node is activation


# ---- several values, and what is taken care of elsewhere -------------------------------------------------------------


@pytest.mark.parametrize("meet", [aten.add.Tensor, aten.sub.Tensor], ids=["sum", "difference"])
def test_values_that_meet_bring_what_both_carry(meet: Any) -> None:
    graph, inputs, starts, pairs = two()
    graph.returns(conv(graph, graph.call(meet, *starts)))
    route = forward_all(graph.program, dict(zip(starts, pairs, strict=True)))
    assert actions(route) == "clone sink"
    assert_same(graph, route, dict(zip(starts, inputs, strict=True)))


def test_a_start_behind_another_start_is_reached_twice() -> None:
    graph, _, (first, _), pairs = two()
    between = graph.call(aten.permute.default, first, [0, 1, 2, 3])
    later = graph.call(aten.add.Tensor, between, graph.weight(column(SHIFT)))
    graph.returns(conv(graph, later))
    refused = forward_all(graph.program, {first: pairs[0], later: pairs[0]})
    assert isinstance(refused, Refusal) and refused.node is later
    assert refused.reason == "it is reached on more than one way"


def test_a_start_that_reads_another_one_is_no_reader_of_its_affine() -> None:
    graph, inputs, (first, _), pairs = two()
    later = graph.call(aten.add.Tensor, first, graph.weight(column(SHIFT)))
    ends = conv(graph, first), conv(graph, later)
    graph.returns(*ends)
    joint = Pair(None, column(SHIFT) * 2)
    route = forward_all(graph.program, {first: pairs[0], later: joint})
    assert actions(route) == "sink sink"
    assert_same(graph, route, {first: inputs[0], later: inputs[0]})


def test_one_reader_may_be_left_out_and_must_not_be_reached_on_another_way() -> None:
    graph, inputs, (first, _), pairs = two()
    left = call(aten.tanh.default)(graph, first)
    graph.returns(left, conv(graph, first))
    route = forward_all(graph.program, {first: pairs[0]}, leaving=[left])
    assert actions(route) == "sink"
    assert_same(graph, route, {first: inputs[0]})
    again = graph.call(aten.permute.default, first, [0, 1, 2, 3])
    joint = graph.call(aten.add.Tensor, again, first)
    graph.returns(joint)
    refused = forward_all(graph.program, {first: pairs[0]}, leaving=[joint])
    assert isinstance(refused, Refusal)


def test_where_nothing_takes_it_the_start_is_named() -> None:
    graph, _, (first, _), pairs = two()
    left = call(aten.tanh.default)(graph, first)
    graph.returns(left)
    refused = forward_all(graph.program, {first: pairs[0]}, leaving=[left])
    assert isinstance(refused, Refusal) and refused.node is first
    assert refused.reason == "nothing after it could absorb it"


# ---- operators on the way --------------------------------------------------------------------------------------------


def pieces(take: Callable[[ByHand, fx.Node], fx.Node]) -> Make:
    return lambda graph, x: take(graph, graph.call(aten.split.Tensor, x, 2, 1))


@pytest.mark.parametrize(
    ("scale", "shift"), [(SCALE, None), (None, SHIFT), (SCALE, SHIFT)], ids=["scale", "shift", "both"]
)
@pytest.mark.parametrize(
    "way",
    [
        pieces(lambda g, s: g.call(operator.getitem, s, 1)),
        call(aten.mean.dim, [2, 3], True),
        call(aten.mean.dim, [-1], True),
        call(aten.pad.default, [1, 1, 1, 1], "reflect"),
        call(aten.permute.default, [0, 1, 3, 2]),
        call(aten.index_select.default, 1, torch.tensor([2, 0, 1])),
    ],
    ids=["a piece", "mean", "mean of one axis", "reflected border", "permute", "a selection"],
)
def test_an_affine_passes_what_moves_or_averages(
    way: Make, scale: list[float] | None, shift: list[float] | None
) -> None:
    graph, x, start, pair = started(scale, shift)
    graph.returns(conv(graph, way(graph, start)))
    route = forward(graph.program, start, pair)
    assert_same(graph, route, {start: x})
    assert all(isinstance(s.pair, Pair) for s in route.steps)  # type: ignore[union-attr]


def test_a_mean_of_everything_takes_one_factor_for_all() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    pair = Pair(torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64))
    start = graph.call(aten.mul.Tensor, x, graph.weight(pair.scale))  # type: ignore[arg-type]
    mean = graph.call(aten.mean.dim, start, None)
    wide = graph.call(aten.expand.default, graph.call(aten.view.default, mean, [1, 1, 1, 1]), [2, 4, 1, 1])
    graph.returns(conv(graph, wide))
    assert_same(graph, forward(graph.program, start, pair), {start: x})
    varied = Pair(column(SCALE))
    refused = forward_all(graph.program, {start: varied})
    assert isinstance(refused, Refusal) and refused.node is mean
    assert refused.reason == "the affine varies along an axis that is averaged away"


@pytest.mark.parametrize(("scale", "shift"), [(SCALE, None), (None, SHIFT), (SCALE, SHIFT)])
def test_what_stands_beside_an_affine_in_a_concatenation_keeps_one_and_zero(
    scale: list[float] | None, shift: list[float] | None
) -> None:
    graph, x, start, pair = started(scale, shift)
    beside = call(aten.tanh.default)(graph, x)
    for order in ((start, beside), (beside, start)):
        joined = graph.call(aten.cat.default, list(order), 1)
        graph.returns(conv(graph, joined))
        assert_same(graph, forward_all(graph.program, {start: pair}), {start: x})


def test_an_affine_on_the_way_adds_its_shift_to_what_is_carried() -> None:
    graph, x, start, pair = started(SCALE, SHIFT)
    on = then(call(aten.mul.Tensor, column(SHIFT)), call(aten.add.Tensor, column(SCALE)))(graph, start)
    graph.returns(conv(graph, on))
    route = forward(graph.program, start, pair)
    assert actions(route) == "skip skip sink"
    assert_same(graph, route, {start: x})


def test_a_product_of_two_values_that_carry_a_scale_carries_the_product_of_both() -> None:
    graph = ByHand()
    inputs = [graph.input(*SHAPE) for _ in range(2)]
    pairs = [Pair(column(SCALE)), Pair(column(SHIFT))]
    starts = [graph.call(aten.mul.Tensor, x, graph.weight(p.scale)) for x, p in zip(inputs, pairs, strict=True)]  # type: ignore[arg-type]
    graph.returns(conv(graph, graph.call(aten.mul.Tensor, *starts)))
    for chosen in ([0], [1], [0, 1]):
        route = forward_all(graph.program, {starts[i]: pairs[i] for i in chosen})
        assert_same(graph, route, {starts[i]: inputs[i] for i in chosen})


def test_a_value_that_is_reached_on_two_ways_is_computed_once() -> None:
    graph, x, start, pair = started(SCALE, SHIFT)
    ways = [call(aten.permute.default, [0, 1, 3, 2])(graph, start) for _ in range(2)]
    graph.returns(conv(graph, graph.call(aten.add.Tensor, *ways)))
    route = forward(graph.program, start, pair)
    assert actions(route) == "clone clone clone sink"
    assert_same(graph, route, {start: x})


@pytest.mark.parametrize("divisor", [None, False, True])
def test_shifts_that_cancel_pass_a_product_with_data_and_a_quotient(divisor: bool | None) -> None:
    graph, inputs, starts, pairs = two()
    other = graph.call(aten.tanh.default, inputs[0])
    gone = graph.call(aten.sub.Tensor, *starts)
    sides = (other, gone) if divisor else (gone, other)
    graph.returns(conv(graph, graph.call(aten.mul.Tensor if divisor is None else aten.div.Tensor, *sides)))
    route = forward_all(graph.program, dict.fromkeys(starts, pairs[0]))
    assert actions(route) == "clone clone sink"
    assert route.steps[0].pair == Pair()  # type: ignore[union-attr]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_factor_for_all_channels_is_that_of_each_channel_of_a_layer(groups: int) -> None:
    graph, x, start, pair = started([2.0], [0.5])
    weight = graph.weight(doubles(4, 4 // groups, 2, 2, seed=2))
    graph.returns(graph.call(aten.conv2d.default, start, weight, None, [1, 1], [0, 0], [1, 1], groups))
    route = forward(graph.program, start, pair)
    assert_same(graph, route, {start: x})
    assert [tuple(t.shape) for t in (sink_of(route).scale, sink_of(route).shift) if t is not None] == [(4,), (4,)]


def sink_of(route: Route | Refusal) -> Pair:
    assert isinstance(route, Route)
    return route.steps[-1].pair


def test_parts_of_a_free_size_carry_one_scale_between_them() -> None:
    """Where the sizes are free, no scale knows which places are those of its part."""
    layers = {n: nn.Conv2d(3, 3, 1).double() for n in ("first", "second", "after")}
    joined = Lambda(lambda m, x: m.after(torch.cat([m.first(x), m.second(x)], 2)), **layers)
    program = program_of(joined, doubles(2, 3, 6, 6), dynamic=("height",))
    first, second, _ = (n for n in program.calls() if "conv" in n.name)
    scale = Pair(torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64))
    refused = forward(program, first, scale)
    assert isinstance(refused, Refusal)
    assert refused.reason == "the scale differs between the parts of a concatenation, whose sizes are free"
    assert isinstance(forward_all(program, {first: scale, second: scale}), Route)
