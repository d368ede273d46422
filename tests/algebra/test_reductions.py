"""What sums, means and extremes make of a scale and a shift, by their numbers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from reparam.algebra import Pair
from reparam.algebra.reductions import reduced_backward, reduced_forward
from reparam.ir import Refusal, aten
from support.by_hand import ByHand
from support.carried_back import SCALE, SHAPE, SHIFT

UP = SCALE.abs()


def call(target: Any, *args: Any, free: tuple[int, ...] = ()) -> tuple[fx.Node, fx.Node]:
    """The call on an input of (2, 4, 5, 6), and that input."""
    graph = ByHand()
    x = graph.input(*SHAPE, free=free)
    return graph.call(target, x, *args), x


def column(*shape: int, pair: tuple[Any, Any] = (UP, SHIFT)) -> Pair:
    return Pair(*(None if v is None else v.reshape(shape) for v in pair))


def assert_pair(found: Pair | Refusal, scale: Any, shift: Any, shape: tuple[int, ...]) -> None:
    assert isinstance(found, Pair), found
    for value, wanted in ((found.scale, scale), (found.shift, shift)):
        if wanted is None:
            assert value is None
        else:
            assert value is not None and value.shape == shape and torch.equal(value.flatten(), wanted)


REDUCED: dict[str, tuple[tuple[Any, ...], tuple[int, ...], float]] = {  # the call, the result's shape, what adds up
    "sum": ((aten.sum.dim_IntList, [2]), (1, 4, 1), 5.0),
    "sum, kept": ((aten.sum.dim_IntList, [-1, 2], True), (1, 4, 1, 1), 30.0),
    "sum of the first axis": ((aten.sum.dim_IntList, [0, 3]), (4, 1), 12.0),
    "mean": ((aten.mean.dim, [3, 0]), (4, 1), 1.0),
    "mean, kept": ((aten.mean.dim, [0], True), (1, 4, 1, 1), 1.0),
    "largest": ((aten.amax.default, [0, 2, 3]), (4,), 1.0),
    "least, kept": ((aten.amin.default, [2], True), (1, 4, 1, 1), 1.0),
    "largest and where": ((aten.max.dim, 0), (4, 1, 1), 1.0),
    "least and where": ((aten.min.dim, -1, True), (1, 4, 1, 1), 1.0),
    "sorted": ((aten.sort.default, 2), (1, 4, 1, 1), 1.0),
    "two largest": ((aten.topk.default, 2, 3), (1, 4, 1, 1), 1.0),
    "second": ((aten.kthvalue.default, 2, 0), (4, 1, 1), 1.0),
}


@pytest.mark.parametrize("parts", [(UP, SHIFT), (UP, None), (None, SHIFT)], ids=["both", "scale", "shift"])
@pytest.mark.parametrize("name", REDUCED)
def test_there_and_back(name: str, parts: tuple[Any, Any]) -> None:
    given, shape, count = REDUCED[name]
    node, x = call(*given)
    more = None if parts[1] is None else parts[1] * count
    assert_pair(reduced_forward(node, x, column(1, 4, 1, 1, pair=parts)), parts[0], more, shape)
    less = None if parts[1] is None else parts[1] / count
    assert_pair(reduced_backward(node, x, column(*shape, pair=parts)), parts[0], less, (1, 4, 1, 1))


@pytest.mark.parametrize(
    ("target", "verb"),
    [
        (aten.mean.dim, "averaged away"),
        (aten.sum.dim_IntList, "added up"),
        (aten.amax.default, "put in order"),
    ],
)
@pytest.mark.parametrize("parts", [(UP, None), (None, SHIFT)], ids=["scale", "shift"])
def test_along_the_channels_nothing_passes(target: Any, verb: str, parts: tuple[Any, Any]) -> None:
    node, x = call(target, [1], True)
    found = reduced_forward(node, x, column(1, 4, 1, 1, pair=parts))
    assert isinstance(found, Refusal) and found.node is node
    assert found.reason == f"the affine varies along an axis that is {verb}"


@pytest.mark.parametrize("parts", [(UP, None), (None, SHIFT)], ids=["scale", "shift"])
def test_sorted_channels_take_no_affine_of_their_own(parts: tuple[Any, Any]) -> None:
    node, x = call(aten.sort.default, 1)
    found = reduced_backward(node, x, column(1, 4, 1, 1, pair=parts))
    assert isinstance(found, Refusal) and found.reason == "the affine varies along an axis that is put in order"


def test_of_everything() -> None:
    for target, dim, count in ((aten.sum.dim_IntList, None, 240.0), (aten.amax.default, [], 1.0)):
        node, x = call(target, dim)
        pair = Pair(torch.tensor(2.0).double(), torch.tensor(3.0).double())
        found = reduced_backward(node, x, pair)
        assert isinstance(found, Pair) and found.scale is not None and found.shift is not None
        assert found.scale.shape == found.shift.shape == (1, 1, 1, 1)
        assert float(found.scale) == 2.0 and float(found.shift) == 3.0 / count


def test_a_free_number_of_values_takes_a_scale_alone() -> None:
    node, x = call(aten.sum.dim_IntList, [3], free=(3,))
    assert_pair(reduced_forward(node, x, column(1, 4, 1, 1, pair=(SCALE, None))), SCALE, None, (1, 4, 1))
    assert_pair(reduced_backward(node, x, column(1, 4, 1, pair=(SCALE, None))), SCALE, None, (1, 4, 1, 1))
    there = reduced_forward(node, x, column(1, 4, 1, 1))
    assert isinstance(there, Refusal) and there.node is node
    assert there.reason == "a shift does not pass through a sum of a free number of values"
    back = reduced_backward(node, x, column(1, 4, 1))
    assert isinstance(back, Refusal) and back.node is node
    assert back.reason == "a shift does not pass back through a sum of a free number of values"
    node, x = call(aten.sum.dim_IntList, [3], free=(2,))
    assert_pair(reduced_forward(node, x, column(1, 4, 1, 1)), UP, SHIFT * 6, (1, 4, 1))


def test_an_order_holds_for_a_scale_that_is_nowhere_negative() -> None:
    node, x = call(aten.amin.default, [2])
    flat = torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    assert_pair(reduced_forward(node, x, column(1, 4, 1, 1, pair=(flat, None))), flat, None, (1, 4, 1))
    found = reduced_forward(node, x, column(1, 4, 1, 1, pair=(SCALE, None)))
    assert isinstance(found, Refusal) and found.node is node
    assert found.reason == "amin does not let a negative scale through (1 channels)"
    mean, x = call(aten.mean.dim, [2])
    assert_pair(reduced_forward(mean, x, column(1, 4, 1, 1, pair=(SCALE, None))), SCALE, None, (1, 4, 1))


def test_positions_that_are_read_stop_it() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    node = graph.call(aten.max.dim, x, 3)
    graph.call(operator.getitem, node, 0)
    assert isinstance(reduced_forward(node, x, column(1, 4, 1, 1)), Pair)
    graph.call(operator.getitem, node, 1)
    found = reduced_forward(node, x, column(1, 4, 1, 1))
    assert isinstance(found, Refusal) and found.node is node
    assert found.reason == "the positions that max gives are used as well"
