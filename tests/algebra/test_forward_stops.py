"""What stops an affine on its way forward, by the node and with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from reparam.algebra import Pair, forward, forward_all
from reparam.ir import Refusal, aten
from support.by_hand import ByHand, Make, call
from support.carried_by_hand import SCALE, SHAPE, SHIFT, assert_same, conv, started, two


def stacked(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.stack.default, [x, graph.program.placeholders[0]], 1)


def by_name(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.sin.default, self=x)


def whole_split(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.stack.default, graph.call(aten.split.Tensor, x, 2, 1), 1)


def sized(graph: ByHand, x: fx.Node) -> fx.Node:
    size = graph.call(aten.sym_size.int, graph.input(*SHAPE, free=(0,)), 0)
    return graph.call(aten.add.Tensor, x, graph.program.placeholders[0], alpha=size)


WAYS = "uses the value in a way that an affine cannot follow"
STOPS: dict[str, tuple[Make, str]] = {
    "a list of values": (stacked, f"stack {WAYS}"),
    "a value by name": (by_name, f"sin {WAYS}"),
    "a list of pieces": (whole_split, "stack does not commute with a channel affine"),
    "a factor that is a size": (sized, "add does not commute with a channel affine"),
    "a border of zeros": (call(aten.constant_pad_nd.default, [1, 1]), "a shift does not pass through zero padding"),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_an_affine_is_named_with_its_reason(name: str) -> None:
    make, reason = STOPS[name]
    graph, _, start, pair = started(None, SHIFT)
    node = make(graph, start)
    graph.returns(node)
    refused = forward_all(graph.program, {start: pair})
    assert isinstance(refused, Refusal) and refused.node is node
    assert refused.reason == reason


def test_a_value_whose_shape_is_taken_from_another_that_is_carried_is_not_followed() -> None:
    graph, _, starts, pairs = two()
    node = graph.call(aten.expand_as.default, *starts)
    graph.returns(node)
    refused = forward_all(graph.program, dict(zip(starts, pairs, strict=True)))
    assert isinstance(refused, Refusal) and refused.node is node and refused.reason == f"expand_as {WAYS}"


def test_a_scale_passes_a_border_of_zeros() -> None:
    graph, x, start, pair = started(SCALE, None)
    graph.returns(conv(graph, call(aten.constant_pad_nd.default, [1, 1])(graph, start)))
    assert_same(graph, forward(graph.program, start, pair), {start: x})


def test_slopes_along_another_axis_than_the_scale_are_refused() -> None:
    graph = ByHand()
    pair = Pair(torch.tensor([1.0, -2.0, 3.0]).double().reshape(1, 1, 3, 1))
    start = graph.call(aten.mul.Tensor, graph.input(*SHAPE), graph.weight(pair.scale))  # type: ignore[arg-type]
    activation = call(aten.prelu.default, torch.tensor([0.25, 0.5, -1.0, 2.0]).double())(graph, start)
    graph.returns(conv(graph, activation))
    refused = forward(graph.program, start, pair)
    assert isinstance(refused, Refusal) and refused.node is activation
