"""Affines carried back: what every operator on the way asks of its operands, by what the layers then compute."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from reparam.algebra import Pair, Route, backward, execute
from reparam.ir import aten, evaluate
from support.by_hand import ByHand
from support.carried_back import (
    BOTH,
    SCALE,
    SHAPE,
    SHIFT,
    UP,
    Way,
    apply_pair,
    asked,
    assert_applied,
    conv,
    gate,
    kernel,
    linear,
    shaped,
    tanh,
    tokens,
)
from support.helpers import EXACT, doubles


def _norm(graph: ByHand, x: fx.Node, *, own: bool, layer: bool) -> fx.Node:
    factors = [graph.weight(doubles(4, seed=s), f"n{s}") if own else None for s in (31, 32)]
    if layer:
        return graph.call(aten.layer_norm.default, graph.call(aten.permute.default, x, [0, 2, 3, 1]), [4], *factors)
    return graph.call(aten.group_norm.default, x, 2, *factors)


def _batch_norm(graph: ByHand, x: fx.Node) -> fx.Node:
    stored = [graph.weight(doubles(4, seed=s).abs(), f"b{s}") for s in range(4)]
    return graph.call(aten.batch_norm.default, x, *stored, False, 0.1, 0.25, False)


def _two_pieces(graph: ByHand, x: fx.Node) -> fx.Node:
    """The pieces of one split, the other way round, each with its own half of the affine; the middle is not read."""
    split = graph.call(aten.split_with_sizes.default, conv(graph, x, channels=6), [2, 2, 2], 1)
    return graph.call(aten.cat.default, [graph.call(operator.getitem, split, i) for i in (2, 0)], 1)


def _every_piece(graph: ByHand, x: fx.Node) -> fx.Node:
    split = graph.call(aten.split_with_sizes.default, conv(graph, x), [1, 3], 1)
    return graph.call(aten.cat.default, [graph.call(operator.getitem, split, i) for i in (1, 0)], 1)


def _bend(graph: ByHand, x: fx.Node) -> fx.Node:
    """A layer that is read on a short and on a long way."""
    y = conv(graph, x)
    long = graph.call(aten.clone.default, graph.call(aten.relu.default, y))
    return graph.call(aten.cat.default, [y, long], 1)


def _kernel_of_each_sample(graph: ByHand, x: fx.Node) -> fx.Node:
    """Samples lie along the channels, in groups of their own (Yang et al., CondConv, 2019)."""
    together = graph.call(aten.reshape.default, x, [1, 8, 5, 6])
    computed = kernel(graph, x, 8, 4, 1, 1, samples=True)
    made = graph.call(aten.conv2d.default, together, computed, None, [1, 1], [0, 0], [1, 1], 2)
    return graph.call(aten.reshape.default, made, list(SHAPE))


EVERYTHING: dict[str, tuple[Way, int, str]] = {
    "conv": (conv, 1, "sink"),
    "transposed conv": (
        lambda g, x: g.call(aten.conv_transpose2d.input, x, g.weight(doubles(4, 4, 2, 2)), None, [1, 1]),
        1,
        "sink",
    ),
    "linear": (tokens, 2, "sink"),
    "layer norm": (lambda g, x: _norm(g, x, own=True, layer=True), 3, "sink"),
    "plain layer norm": (lambda g, x: _norm(g, x, own=False, layer=True), 3, "sink"),
    "group norm": (lambda g, x: _norm(g, x, own=True, layer=False), 1, "sink"),
    "plain group norm": (lambda g, x: _norm(g, x, own=False, layer=False), 1, "sink"),
    "batch norm": (lambda g, x: _batch_norm(g, conv(g, x)), 1, "sink skip"),
    "factor": (lambda g, x: g.call(aten.mul.Tensor, conv(g, x), g.weight(doubles(4, 1, 1))), 1, "sink skip"),
    "concatenation": (
        lambda g, x: g.call(aten.cat.default, [conv(g, x, channels=3), conv(g, x, 2, 1)], 1),
        1,
        "sink sink clone",
    ),
    "concatenation, counted from behind": (
        lambda g, x: g.call(aten.cat.default, [conv(g, x, channels=1), conv(g, x, 2, 3)], -3),
        1,
        "sink sink clone",
    ),
    "concatenation along the map": (
        lambda g, x: g.call(aten.cat.default, [conv(g, x), conv(g, x, 2)], 2),
        1,
        "sink sink clone",
    ),
    "pieces": (_two_pieces, 1, "sink clone clone clone clone"),
    "all pieces": (_every_piece, 1, "sink clone clone clone clone"),
    "selection": (
        lambda g, x: g.call(aten.index_select.default, conv(g, x), 1, g.weight(torch.tensor([2, 0, 3, 1]), "i")),
        1,
        "sink clone",
    ),
    "clone": (lambda g, x: g.call(aten.clone.default, conv(g, x)), 1, "sink clone"),
    "permute": (lambda g, x: g.call(aten.permute.default, conv(g, x), [0, 2, 3, 1]), 3, "sink clone"),
    "repeated rows": (lambda g, x: g.call(aten.repeat.default, conv(g, x), [1, 1, 2, 1]), 1, "sink clone"),
    "average pool": (lambda g, x: g.call(aten.avg_pool2d.default, conv(g, x), [2, 2]), 1, "sink clone"),
    "global pool": (lambda g, x: g.call(aten.adaptive_avg_pool2d.default, conv(g, x), [1, 1]), 1, "sink clone"),
    "upsampled": (
        lambda g, x: g.call(aten.upsample_bilinear2d.vec, conv(g, x), [7, 8], False, None),
        1,
        "sink clone",
    ),
    "mean": (lambda g, x: g.call(aten.mean.dim, conv(g, x), [3, 2]), 1, "sink clone"),
    "mean, from behind": (lambda g, x: g.call(aten.mean.dim, conv(g, x), [-1]), 1, "sink clone"),
    "mean, kept": (lambda g, x: g.call(aten.mean.dim, conv(g, x), [2, 3], True), 1, "sink clone"),
    "mean of the first axis": (lambda g, x: g.call(aten.mean.dim, conv(g, x), [0]), 0, "sink clone"),
}
SCALES: dict[str, tuple[Way, int, str]] = {
    "product": (lambda g, x: g.call(aten.mul.Tensor, conv(g, x), tanh(g, x)), 1, "sink clone"),
    "product, left": (lambda g, x: g.call(aten.mul.Tensor, gate(g, x), conv(g, x)), 1, "sink clone"),
    "product, right": (lambda g, x: g.call(aten.mul.Tensor, conv(g, x), gate(g, x)), 1, "sink clone"),
    "product with a row": (
        lambda g, x: g.call(aten.mul.Tensor, conv(g, x), g.call(aten.mean.dim, x, [0, 1])),
        1,
        "sink clone",
    ),
    "quotient": (lambda g, x: g.call(aten.div.Tensor, conv(g, x), tanh(g, x)), 1, "sink clone"),
    "quotient by a number for each channel": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), gate(g, x)),
        1,
        "sink clone",
    ),
    "quotient by a number for each place": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), g.call(aten.mean.dim, x, [1], True)),
        1,
        "sink clone",
    ),
    "quotient by a row": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), g.call(aten.mean.dim, x, [0, 1])),
        1,
        "sink clone",
    ),
    "quotient by an image": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), g.weight(doubles(4, 5, 6))),
        1,
        "sink clone",
    ),
    "quotient by whole numbers": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), _counts(g, x)),
        1,
        "sink clone",
    ),
    "quotient by a size": (
        lambda g, x: g.call(aten.div.Tensor, conv(g, x), g.call(aten.sym_size.int, x, 2)),
        1,
        "sink clone",
    ),
    "rows of a product": (
        lambda g, x: g.call(
            aten.matmul.default,
            g.call(aten.permute.default, tokens(g, x), [0, 2, 1]),
            tokens(g, x, 2, 3),
        ),
        1,
        "sink clone clone",
    ),
    "rows of two matrices": (
        lambda g, x: g.call(aten.mm.default, g.call(aten.t.default, _matrix(g, x, 4)), _matrix(g, x, 3)),
        0,
        "sink clone clone",
    ),
    "columns of a product": (
        lambda g, x: g.call(aten.bmm.default, g.call(aten.flatten.using_ints, tanh(g, x), 2), _columns(g, x)),
        2,
        "sink clone clone clone",
    ),
    "columns beside a matrix of weights": (
        lambda g, x: g.call(aten.matmul.default, g.weight(doubles(3, 4)), tokens(g, x)),
        2,
        "sink clone",
    ),
    "rows beside a matrix of lower rank": (
        lambda g, x: g.call(
            aten.matmul.default,
            g.call(aten.permute.default, tokens(g, x), [0, 2, 1]),
            g.call(aten.mean.dim, tokens(g, x, 2, 3), [0]),
        ),
        1,
        "sink clone clone",
    ),
    "computed kernel": (
        lambda g, x: g.call(aten.conv2d.default, x, kernel(g, x, 4, 4, 2, 1)),
        1,
        "sink clone clone",
    ),
    "computed kernel and bias": (
        lambda g, x: g.call(
            aten.conv2d.default, x, kernel(g, x, 4, 2, 1, 1), kernel(g, x, 4, seed=2), [1, 1], [0, 0], [1, 1], 2
        ),
        1,
        "sink sink clone clone clone",
    ),
    "computed matrix": (
        lambda g, x: g.call(aten.linear.default, g.call(aten.flatten.using_ints, x, 2), kernel(g, x, 4, 30)),
        2,
        "sink clone clone",
    ),
    "kernel of each sample": (_kernel_of_each_sample, 1, "sink clone clone clone"),
    "prelu": (lambda g, x: g.call(aten.prelu.default, conv(g, x), g.weight(SHIFT.abs())), 1, "sink clone"),
    "clamp": (lambda g, x: g.call(aten.clamp.default, conv(g, x), -0.5, 0.25), 1, "sink clone"),
}
POSITIVE: dict[str, tuple[Way, int, str]] = {
    "rectifier": (lambda g, x: g.call(aten.relu.default, conv(g, x)), 1, "sink clone"),
    "max pool": (lambda g, x: g.call(aten.max_pool2d.default, conv(g, x), [2, 2]), 1, "sink clone"),
}


def _matrix(graph: ByHand, x: fx.Node, channels: int) -> fx.Node:
    """(2, channels)"""
    return linear(graph, graph.call(aten.mean.dim, x, [2, 3]), channels, channels)


def _counts(graph: ByHand, x: fx.Node) -> fx.Node:
    """(2, 1, 1, 1): how many values are below nine, which all are."""
    return graph.call(aten.sum.dim_IntList, graph.call(aten.lt.Scalar, x, 9.0), [1, 2, 3], True)


def _columns(graph: ByHand, x: fx.Node) -> fx.Node:
    """(2, 30, 4), whose columns are the channels of a layer."""
    return graph.call(aten.permute.default, graph.call(aten.flatten.using_ints, conv(graph, x), 2), [0, 2, 1])


def assert_carried(way: Way, axis: int, actions: str, pair: Pair) -> None:
    """What the steps make is the value with the affine applied to it."""
    graph, value, pair, route = asked(way, pair, axis)
    assert isinstance(route, Route), route
    assert sorted(s.action for s in route.steps) == sorted(actions.split())
    assert route.direction == "backward" and route.steps[-1].node is value and route.others == ()
    assert [s.node for s in route.steps] == sorted(s.node for s in route.steps)
    assert_applied(graph, value, route, pair)


@pytest.mark.parametrize("pair", [BOTH, Pair(SCALE), Pair(None, SHIFT), Pair(SCALE[:1], SHIFT[:1])])
@pytest.mark.parametrize("name", EVERYTHING)
def test_an_affine_passes_what_is_linear(name: str, pair: Pair) -> None:
    """A scale, a shift or both, for each channel or one number for all."""
    assert_carried(*EVERYTHING[name], pair=pair)


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_passes_what_is_homogeneous(name: str) -> None:
    assert_carried(*SCALES[name], pair=Pair(SCALE))


@pytest.mark.parametrize("name", POSITIVE)
def test_a_positive_scale_passes_what_keeps_an_order(name: str) -> None:
    assert_carried(*POSITIVE[name], pair=UP)


def test_one_number_for_the_whole_product_goes_into_its_first_factor() -> None:
    way: Way = lambda g, x: g.call(  # noqa: E731
        aten.matmul.default, tokens(g, x), g.call(aten.permute.default, tokens(g, x, 2), [0, 2, 1])
    )
    _, value, _, route = asked(way, Pair(SCALE[:1]))
    assert isinstance(route, Route) and route.sinks == (value.args[0],)


def test_one_number_goes_past_a_matrix_of_weights() -> None:
    way: Way = lambda g, x: g.call(aten.matmul.default, g.weight(doubles(3, 4)), tokens(g, x))  # noqa: E731
    _, value, _, route = asked(way, Pair(SCALE[:1]))
    assert isinstance(route, Route) and route.sinks == (value.args[1],)


def test_a_shift_goes_into_one_operand_of_a_sum_best_a_layer() -> None:
    """The other operand stays as it is, and may be read elsewhere."""
    for first in (True, False):

        def way(graph: ByHand, x: fx.Node, first: bool = first) -> fx.Node:
            operands = [conv(graph, x), tanh(graph, x)]
            graph.call(aten.sin.default, operands[1])
            return graph.call(aten.add.Tensor, *(operands if first else operands[::-1]))

        assert_carried(way, 1, "sink clone", Pair(None, SHIFT))


@pytest.mark.parametrize(("pair", "actions"), [(BOTH, "sink sink clone"), (Pair(None, SHIFT), "sink clone")])
def test_a_scale_goes_into_both_operands_of_a_sum(pair: Pair, actions: str) -> None:
    assert_carried(lambda g, x: g.call(aten.add.Tensor, conv(g, x), conv(g, x, 2)), 1, actions, pair)


def test_a_shift_goes_into_the_first_of_two_layers() -> None:
    _, value, _, route = asked(lambda g, x: g.call(aten.add.Tensor, conv(g, x), conv(g, x, 2)), Pair(None, SHIFT))
    assert isinstance(route, Route) and route.sinks == (value.args[0],)


def test_an_affine_that_all_ask_for_alike() -> None:
    """Both halves of a concatenation are one value."""
    way: Way = lambda g, x: g.call(  # noqa: E731
        aten.cat.default, [y := conv(g, x, channels=2), g.call(aten.clone.default, y)], 1
    )
    assert_carried(way, 1, "sink clone clone", Pair(SCALE[:2].repeat(2), SHIFT[:2].repeat(2)))


def test_channels_that_do_not_reach_the_value_stay_as_they_are() -> None:
    *_, route = asked(lambda g, x: g.call(aten.slice.Tensor, conv(g, x, channels=7), 1, 1, 5), BOTH)
    assert isinstance(route, Route)
    pair = next(s.pair for s in route.steps if s.action == "sink")
    one, none = torch.ones(1).double(), torch.zeros(2).double()
    assert pair.scale is not None and torch.equal(pair.scale, torch.cat([one, SCALE, one, one]))
    assert pair.shift is not None and torch.equal(pair.shift, torch.cat([none[:1], SHIFT, none]))


def test_the_mean_of_everything() -> None:
    graph = ByHand()
    value = graph.call(aten.mean.dim, conv(graph, graph.input(*SHAPE)), None)
    route = backward(graph.program, graph.call(aten.sin.default, value), value, Pair(SCALE[1], SHIFT[2]))
    assert isinstance(route, Route)
    pair = next(s.pair for s in route.steps if s.action == "sink")
    assert pair.scale is not None and pair.shift is not None
    assert pair.scale.tolist() == [-2.0] * 4 and pair.shift.tolist() == [0.5] * 4


def test_pieces_of_free_size() -> None:
    """Rows of a map whose height is not fixed."""
    graph = ByHand()
    x = graph.input(*SHAPE, free=(2,))
    y, rows = conv(graph, x), graph.call(operator.sub, graph.call(aten.sym_size.int, x, 2), 2)
    split = graph.call(aten.split_with_sizes.default, y, [2, rows], 2)
    value = graph.call(aten.cat.default, [graph.call(operator.getitem, split, i) for i in (1, 0)], 2)
    pair = shaped(BOTH, 4, 1)
    route = backward(graph.program, graph.call(aten.sin.default, value), value, pair)
    assert isinstance(route, Route) and route.sinks == (y,)
    found = next(s.pair for s in route.steps if s.action == "sink")
    assert found.scale is not None and torch.equal(found.scale, SCALE)
    assert found.shift is not None and torch.equal(found.shift, SHIFT)


def test_a_layer_on_a_short_and_on_a_long_way_is_taken_last() -> None:
    half = SCALE[[0, 2]].repeat(2).abs()
    assert_carried(_bend, 1, "sink clone clone clone", Pair(torch.cat([half, half])))


def test_pieces_that_nobody_asked_for_keep_their_values() -> None:
    """They are read from the new split, so that the old one is gone."""

    def way(graph: ByHand, x: fx.Node) -> fx.Node:
        split = graph.call(aten.split_with_sizes.default, conv(graph, x, channels=7), [1, 4, 2], 1)
        pieces = [graph.call(operator.getitem, split, i) for i in range(3)]
        graph.call(aten.sin.default, pieces[0])
        graph.call(aten.sin.default, pieces[2])
        return pieces[1]

    graph, value, pair, route = asked(way, BOTH)
    assert isinstance(route, Route) and [o.args[1] for o in route.others] == [0, 2]
    x = doubles(*SHAPE, seed=9)
    before = evaluate(graph.returns(value, *route.others), [x])
    made = execute(graph.program, route, {})
    after = evaluate(graph.returns(*(made[n] for n in (value, *route.others))), [x])
    for old, new in zip((apply_pair(before[0], pair), *before[1:]), after, strict=True):
        assert float((old - new).abs().max()) <= EXACT


# ---- what stops it -----------------------------------------------------------------------------------------------
