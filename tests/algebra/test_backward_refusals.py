"""Affines carried back: what stops them, and where."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from reparam.algebra import Pair
from reparam.ir import Refusal, aten
from support.by_hand import ByHand
from support.carried_back import BOTH, SCALE, SHIFT, UP, Way, asked, conv, gate, kernel, tanh, tokens
from support.helpers import doubles


def _also_read(graph: ByHand, x: fx.Node) -> fx.Node:
    y = conv(graph, x)
    graph.call(aten.sin.default, y, module="elsewhere")
    return graph.call(aten.clone.default, y)


def _read_twice(graph: ByHand, x: fx.Node) -> fx.Node:
    """One piece under two names."""
    split = graph.call(aten.split_with_sizes.default, conv(graph, x, channels=8), [4, 4], 1)
    graph.call(aten.sin.default, graph.call(operator.getitem, split, 0), module="elsewhere")
    return graph.call(operator.getitem, split, 0)


def _same_piece(graph: ByHand, x: fx.Node) -> fx.Node:
    split = graph.call(aten.split_with_sizes.default, conv(graph, x), [2, 2], 1)
    return graph.call(aten.cat.default, [graph.call(operator.getitem, split, 0) for _ in range(2)], 1)


def _halves(graph: ByHand, x: fx.Node) -> fx.Node:
    y = conv(graph, x, channels=2)
    return graph.call(aten.cat.default, [y, graph.call(aten.clone.default, y)], 1)


def _times(call: Any, make: Callable[[ByHand, fx.Node], tuple[Any, ...]]) -> Way:
    return lambda g, x: g.call(call, *make(g, x))


def _with(call: Any, **options: Any) -> Way:
    """A call on two layers."""
    return lambda g, x: g.call(call, conv(g, x), conv(g, x, 2), **options)


def _itself(call: Any) -> Way:
    return lambda g, x: g.call(call, y := conv(g, x), y)


SHIFTED = "a shift does not pass back through a product with data"
DIVIDED = "a shift does not pass back through a quotient of data"
STOPPED: dict[str, tuple[Way, Pair, int, str, str]] = {
    "input": (lambda g, x: x, BOTH, 1, "what comes before it is an input of the network", "x0"),
    "weight": (
        lambda g, x: g.call(aten.clone.default, g.weight(doubles(4))),
        BOTH,
        0,
        "what comes before it is a weight",
        "weight",
    ),
    "activation": (lambda g, x: tanh(g, conv(g, x)), BOTH, 1, "tanh does not commute with a channel affine", "tanh"),
    "stack": (lambda g, x: g.call(aten.stack.default, [x, x]), BOTH, 2, "stack does not commute", "stack"),
    "several results": (
        lambda g, x: g.call(operator.getitem, g.call(aten.var_mean.dim, conv(g, x), [2]), 1),
        BOTH,
        1,
        "var_mean does not commute with a channel affine",
        "var_mean_dim",
    ),
    "also read": (_also_read, BOTH, 1, "the value before it is also used by 'elsewhere'", "conv2d"),
    "read twice": (_read_twice, BOTH, 1, "the value before it is also used by 'getitem'", "split_with_sizes"),
    "same piece": (_same_piece, BOTH, 1, "its users ask for different affines", "split_with_sizes"),
    "halves": (_halves, Pair(SCALE), 1, "its users ask for different affines", "conv2d"),
    "shifted halves": (_halves, Pair(None, SHIFT), 1, "its users ask for different affines", "conv2d"),
    "layer, other axis": (
        tokens,
        BOTH,
        1,
        "the affine does not lie along the channel axis of the layer before it",
        "linear",
    ),
    "norm, other axis": (
        lambda g, x: g.call(aten.group_norm.default, g.call(aten.permute.default, x, [0, 2, 1, 3]), 1),
        BOTH,
        2,
        "the affine does not lie along the channel axis of the norm before it",
        "group_norm",
    ),
    "norm over two axes": (
        lambda g, x: g.call(aten.layer_norm.default, x, [5, 6]),
        BOTH,
        1,
        "the norm's affine spans several axes",
        "layer_norm",
    ),
    "norm with factors from data": (
        lambda g, x: g.call(aten.group_norm.default, x, 1, g.call(aten.mean.dim, x, [0, 2, 3])),
        BOTH,
        1,
        "the norm's weights are computed from the data",
        "group_norm",
    ),
    "norm with shifts from data": (
        lambda g, x: g.call(aten.group_norm.default, x, 1, None, g.call(aten.mean.dim, x, [0, 2, 3])),
        BOTH,
        1,
        "the norm's weights are computed from the data",
        "group_norm",
    ),
    "twice the same": (
        lambda g, x: g.call(aten.cat.default, [y := conv(g, x, channels=2), y], 1),
        BOTH,
        1,
        "the same value is concatenated twice",
        "cat",
    ),
    "sum with itself": (_itself(aten.add.Tensor), BOTH, 1, "the affine does not pass back through this add", "add"),
    "sum that broadcasts": (
        _times(aten.add.Tensor, lambda g, x: (conv(g, x), gate(g, x))),
        BOTH,
        1,
        "the affine does not pass back through this add",
        "add",
    ),
    "sum with an image": (
        _times(aten.add.Tensor, lambda g, x: (g.weight(doubles(5, 6)), conv(g, x))),
        BOTH,
        1,
        "the constant that is added would become larger",
        "add",
    ),
    "shift, product": (_with(aten.mul.Tensor), BOTH, 1, SHIFTED, "mul"),
    "square": (_itself(aten.mul.Tensor), Pair(SCALE), 1, SHIFTED, "mul"),
    "product with an image": (
        _times(aten.mul.Tensor, lambda g, x: (conv(g, x), g.weight(doubles(4, 5, 6)))),
        Pair(SCALE),
        1,
        SHIFTED,
        "mul",
    ),
    "shift, quotient": (_with(aten.div.Tensor), BOTH, 1, DIVIDED, "div"),
    "only a shift, quotient": (_with(aten.div.Tensor), Pair(None, SHIFT), 1, DIVIDED, "div"),
    "divisor": (
        _times(aten.div.Tensor, lambda g, x: (g.weight(doubles(2, 4, 5, 6)), conv(g, x))),
        Pair(SCALE),
        1,
        "what is divided takes no scale",
        "div",
    ),
    "one by a value": (
        _times(aten.div.Tensor, lambda g, x: (1.0, conv(g, x))),
        Pair(SCALE),
        1,
        "what is divided takes no scale",
        "div",
    ),
    "whole numbers by a value": (
        _times(aten.div.Tensor, lambda g, x: (g.call(aten.gt.Scalar, x, 0.0), conv(g, x))),
        Pair(SCALE),
        1,
        "what is divided takes no scale",
        "div",
    ),
    "quotient by itself": (_itself(aten.div.Tensor), Pair(SCALE), 1, "what is divided takes no scale", "div"),
    "quotient by what is made of it": (
        lambda g, x: g.call(aten.div.Tensor, y := conv(g, x), g.call(aten.mean.dim, y, [1], True, module="norm")),
        Pair(SCALE),
        1,
        "the value before it is also used by 'norm'",
        "conv2d",
    ),
    "quotient that broadcasts": (
        _times(aten.div.Tensor, lambda g, x: (gate(g, x), conv(g, x))),
        Pair(SCALE),
        1,
        "the scale does not pass back through a quotient that broadcasts",
        "div",
    ),
    "rounded quotient": (
        _with(aten.div.Tensor_mode, rounding_mode="floor"),
        Pair(SCALE),
        1,
        "div does not commute with a channel affine",
        "div",
    ),
    "product that broadcasts": (
        lambda g, x: g.call(
            aten.mul.Tensor,
            g.call(aten.mean.dim, conv(g, x), [2], True),
            g.call(aten.mean.dim, conv(g, x, 2), [3], True),
        ),
        Pair(SCALE),
        1,
        "the scale does not pass back through a product that broadcasts",
        "mul",
    ),
    "shift, matrices": (
        lambda g, x: g.call(aten.matmul.default, tokens(g, x), tokens(g, x, 2)),
        BOTH,
        1,
        SHIFTED,
        "matmul",
    ),
    "matrix with itself": (
        lambda g, x: g.call(aten.matmul.default, y := tokens(g, x), y),
        Pair(SCALE),
        1,
        SHIFTED,
        "m",
    ),
    "shift, matrix of weights": (
        lambda g, x: g.call(aten.matmul.default, g.weight(doubles(3, 4)), tokens(g, x)),
        BOTH,
        2,
        "a shift does not pass back through a product with a matrix",
        "matmul",
    ),
    "matrix of weights": (
        lambda g, x: g.call(aten.matmul.default, g.weight(doubles(4, 4)), tokens(g, x)),
        Pair(SCALE),
        1,
        "what would take the scale of this product is a weight that is no layer",
        "matmul",
    ),
    "matrices of other ranks": (
        lambda g, x: g.call(aten.matmul.default, g.call(aten.mean.dim, tokens(g, x, 2), [0]), tokens(g, x)),
        Pair(SCALE),
        1,
        "the scale does not pass back through a product that broadcasts",
        "matmul",
    ),
    "computed kernel, shift": (
        lambda g, x: g.call(aten.conv2d.default, x, kernel(g, x, 4, 4, 1, 1)),
        BOTH,
        1,
        SHIFTED,
        "conv2d",
    ),
    "computed kernel beside a bias of weights": (
        lambda g, x: g.call(aten.conv2d.default, x, kernel(g, x, 4, 4, 1, 1), g.weight(SHIFT)),
        Pair(SCALE),
        1,
        "the conv2d has weights of its own beside those that are computed",
        "conv2d",
    ),
    "computed bias beside a kernel of weights": (
        lambda g, x: g.call(aten.conv2d.default, x, g.weight(doubles(4, 4, 1, 1)), kernel(g, x, 4)),
        Pair(SCALE),
        1,
        "the conv2d has weights of its own beside those that are computed",
        "conv2d",
    ),
    "computed kernel, of one sample": (
        lambda g, x: g.call(aten.conv2d.default, g.call(aten.select.int, x, 0, 0), kernel(g, x, 4, 4, 1, 1)),
        Pair(SCALE),
        0,
        "the conv2d is of one sample, which has its channels in front",
        "conv2d",
    ),
    "computed kernel, along the map": (
        lambda g, x: g.call(aten.conv2d.default, x, kernel(g, x, 4, 4, 1, 1)),
        Pair(doubles(1, 1, 5, 1)),
        1,
        "the scale does not lie along the channels of conv2d",
        "conv2d",
    ),
    "vectors": (
        lambda g, x: g.call(
            aten.matmul.default, g.call(aten.mean.dim, x, [0, 1, 2]), g.call(aten.mean.dim, conv(g, x), [0, 1, 2])
        ),
        Pair(SCALE[0]),
        1,
        "the scale does not pass back through a product that broadcasts",
        "matmul",
    ),
    "rows and columns": (
        lambda g, x: g.call(aten.matmul.default, tokens(g, x), tokens(g, x, 2)),
        Pair(doubles(1, 4, 4)),
        1,
        "the scale varies along rows and columns of a product with data",
        "matmul",
    ),
    "copies": (
        lambda g, x: g.call(aten.expand.default, conv(g, x, channels=1), [2, 4, 5, 6]),
        BOTH,
        1,
        "expand copies elements that need different factors",
        "expand",
    ),
    "shifted copies": (
        lambda g, x: g.call(aten.expand.default, conv(g, x, channels=1), [2, 4, 5, 6]),
        Pair(None, SHIFT),
        1,
        "expand copies elements that need different factors",
        "expand",
    ),
    "rectifier": (
        lambda g, x: g.call(aten.relu.default, conv(g, x)),
        Pair(SCALE),
        1,
        "relu does not let a negative scale through (1 channels)",
        "relu",
    ),
    "padded pool": (
        lambda g, x: g.call(aten.avg_pool2d.default, conv(g, x), [3, 3], [1, 1], [1, 1]),
        BOTH,
        1,
        "the shift meets the average pool's padding, which counts as zero",
        "avg_pool2d",
    ),
    "slope": (
        lambda g, x: g.call(aten.prelu.default, conv(g, x), g.weight(torch.tensor([-1.0]).double())),
        Pair(SCALE),
        1,
        "prelu lets no negative scale through where its slope is not positive (1)",
        "prelu",
    ),
    "shifted clamp": (
        lambda g, x: g.call(aten.clamp.default, conv(g, x), 0.0, 1.0),
        BOTH,
        1,
        "clamp does not commute with a channel affine",
        "clamp",
    ),
    "an operand by name": (
        lambda g, x: g.call(aten.relu.default, self=conv(g, x)),
        UP,
        1,
        "relu does not commute with a channel affine",
        "relu",
    ),
    "nothing, matrices": (
        lambda g, x: g.call(aten.matmul.default, tokens(g, x), tokens(g, x, 2)),
        Pair(),
        1,
        "the scale does not pass back through a product that broadcasts",
        "matmul",
    ),
    "nothing": (_with(aten.add.Tensor), Pair(), 1, "nothing before it could absorb it", "add"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_an_affine_is_named(name: str) -> None:
    way, pair, axis, reason, place = STOPPED[name]
    *_, refused = asked(way, pair, axis)
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith(reason) and refused.node is not None and refused.node.name.startswith(place)
