"""dense-beside-conv on sums built by hand: when a convolution becomes a part of a dense layer beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from reparam.ir import aten
from reparam.passes import dense_beside_conv
from reparam.passes.dense_beside_conv import DenseBesideConv
from reparam.rewrite import Match, Rewrite
from support.by_hand import ByHand, rewritten
from support.helpers import doubles, graph_text

RULE = DenseBesideConv()
SHAPE = (2, 2, 3, 3)
Make = Callable[[ByHand, fx.Node], fx.Node]


def conv(graph: ByHand, x: fx.Node, k: int = 3, seed: int = 1, *, groups: int = 1, bias: bool = True) -> fx.Node:
    channels = x.meta["val"].shape[1]
    w = graph.weight(doubles(channels, channels // groups, k, k, seed=seed), "conv.weight")
    b = graph.weight(doubles(channels, seed=seed + 9), "conv.bias") if bias else None
    return graph.call(aten.conv2d.default, x, w, b, [1, 1], [k // 2, k // 2], [1, 1], groups)


def dense(graph: ByHand, x: fx.Node, seed: int = 2, *, bias: bool = True) -> fx.Node:
    """A linear layer over the whole map, and back to a map of its shape."""
    flat = graph.call(aten.flatten.using_ints, x, 1)
    size = flat.meta["val"].shape[1]
    w = graph.weight(doubles(size, size, seed=seed), "dense.weight")
    b = graph.weight(doubles(size, seed=seed + 9), "dense.bias") if bias else None
    return graph.call(aten.unflatten.int, graph.call(aten.linear.default, flat, w, b), 1, list(x.meta["val"].shape[1:]))


def grouped(graph: ByHand, x: fx.Node, groups: int = 2) -> fx.Node:
    """The same with a layer for each group of channels, as a convolution of a map of one position."""
    flat = graph.call(aten.unflatten.int, graph.call(aten.flatten.using_ints, x, 1), 1, [18, 1, 1])
    w = graph.weight(doubles(18, 18 // groups, 1, 1), "grouped.weight")
    made = graph.call(aten.conv2d.default, flat, w, None, [1, 1], [0, 0], [1, 1], groups)
    return graph.call(aten.unflatten.int, graph.call(aten.flatten.using_ints, made, 1), 1, [2, 3, 3])


def add(graph: ByHand, a: fx.Node, b: fx.Node, **options: Any) -> fx.Node:
    return graph.call(aten.add.Tensor, a, b, **options)


def relu(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.relu.default, x)


DENSE = "unflatten(linear(flatten(x, 1)), 1, [2, 3, 3])"
MERGED: dict[str, tuple[Make, str, int]] = {
    "a dense layer and a convolution": (lambda g, x: add(g, dense(g, x), conv(g, x)), DENSE, 2),
    "a convolution and a dense layer": (lambda g, x: add(g, conv(g, x, 1), dense(g, x, bias=False)), DENSE, 2),
    "without biases": (lambda g, x: add(g, conv(g, x, bias=False), dense(g, x, bias=False)), DENSE, 2),
    "two convolutions in a row": (lambda g, x: add(g, conv(g, conv(g, x), 3, 5), dense(g, x)), DENSE, 3),
    "two dense layers": (lambda g, x: add(g, dense(g, x), dense(g, x, 7)), DENSE, 2),
    "arithmetic on the way": (
        lambda g, x: add(g, g.call(aten.mul.Tensor, conv(g, x), 2.0), g.call(aten.add.Tensor, dense(g, x), 1.0)),
        DENSE,
        2,
    ),
    "behind an activation": (
        lambda g, x: add(g, dense(g, y := relu(g, x)), conv(g, y)),
        DENSE.replace("(x, 1)", "(relu(x), 1)"),
        2,
    ),
    "groups of both": (
        lambda g, x: add(g, grouped(g, x), conv(g, x, groups=2)),
        "unflatten(flatten(conv1x1g2(unflatten(flatten(x, 1), 1, [18, 1, 1])), 1), 1, [2, 3, 3])",
        2,
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_layers_over_one_patch_become_one(name: str) -> None:
    make, text, count = MERGED[name]
    graph = ByHand()
    root = make(graph, graph.input(*SHAPE, free=(0,)))
    made = rewritten(RULE, graph, root, doubles(*SHAPE, seed=4))
    assert isinstance(made, Rewrite) and graph_text(graph.program) == text
    assert made.message == f"{count} layers over one patch became one dense layer"
    left = [c.origin for n in graph.program.graph.nodes if (c := graph.program.constant(n))]
    assert len(left) == (1 if name == "without biases" else 2) and left[-1].endswith(".bias") == (len(left) == 2)
    assert left[0] in ("conv.weight", "dense.weight", "grouped.weight")


def conv1d(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.conv1d.default, x, graph.weight(doubles(2, 2, 3)), None, [1], [1])


@pytest.mark.parametrize(
    ("shape", "layer"), [((2, 2, 2, 1), conv), ((2, 2, 1, 2), conv), ((2, 2, 6), conv1d)], ids=["column", "row", "line"]
)
def test_small_and_narrow_maps_are_patches_too(shape: tuple[int, ...], layer: Any) -> None:
    graph = ByHand()
    x = graph.input(*shape, free=(0,))
    made = rewritten(RULE, graph, add(graph, dense(graph, x), layer(graph, x)), doubles(*shape, seed=4))
    assert isinstance(made, Rewrite) and graph_text(graph.program).startswith("unflatten(linear(flatten(x, 1)), 1")


def test_convolutions_of_a_column_are_not_dense() -> None:
    graph = ByHand()
    x = graph.input(2, 2, 3, 1, free=(0,))
    root = add(graph, conv(graph, x), conv(graph, x, seed=3))
    assert RULE.check(graph.program, Match(root, {})) is None


def test_groups_with_more_channels_behind_than_before() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(0,))
    flat = graph.call(aten.unflatten.int, graph.call(aten.flatten.using_ints, x, 1), 1, [18, 1, 1])
    wide = graph.call(aten.conv2d.default, flat, graph.weight(doubles(36, 9, 1, 1)), None, [1, 1], [0, 0], [1, 1], 2)
    side = graph.call(aten.unflatten.int, graph.call(aten.flatten.using_ints, wide, 1), 1, [4, 3, 3])
    kernel = graph.weight(doubles(4, 1, 3, 3))
    root = add(graph, side, graph.call(aten.conv2d.default, x, kernel, None, [1, 1], [1, 1], [1, 1], 2))
    assert isinstance(rewritten(RULE, graph, root, doubles(*SHAPE, seed=4)), Rewrite)
    assert "conv1x1g2" in graph_text(graph.program)


def test_a_layer_without_groups_stays_one_whatever_its_numbers() -> None:
    """Here zeros, which could be left out for other reasons."""
    graph = ByHand()
    x = graph.input(*SHAPE, free=(0,))
    weight = torch.block_diag(doubles(9, 9), doubles(9, 9))
    kernel = torch.eye(2).double()[:, :, None, None]
    flat = graph.call(aten.linear.default, graph.call(aten.flatten.using_ints, x, 1), graph.weight(weight))
    side = graph.call(aten.conv2d.default, x, graph.weight(kernel))
    root = add(graph, graph.call(aten.unflatten.int, flat, 1, [2, 3, 3]), side)
    assert isinstance(rewritten(RULE, graph, root, doubles(*SHAPE, seed=4)), Rewrite)
    assert graph_text(graph.program) == DENSE


@pytest.mark.parametrize(
    ("sizes", "most", "groups"),
    [
        ([(2, 3), (2, 3)], 4, 2),
        ([(2, 3), (2, 3)], 3, 2),
        ([(3, 2), (3, 2)], 4, 2),
        ([(2, 2)] * 3, 3, 3),
        ([(2, 2)] * 3, 2, 1),
        ([(2, 2)] * 4, 3, 2),
        ([(1, 3), (3, 1)], 2, 1),
        ([(4, 4)], 1, 1),
    ],
)
def test_equal_blocks_that_hold_all_of_a_matrix(sizes: list[tuple[int, int]], most: int, groups: int) -> None:
    matrix = torch.block_diag(*(doubles(*s, seed=i) for i, s in enumerate(sizes)))
    assert dense_beside_conv._blocks(matrix, most) == groups


def test_a_grouped_layer_with_a_bias() -> None:
    graph = ByHand()
    root = add(graph, grouped(graph, x := graph.input(*SHAPE, free=(0,))), conv(graph, x, groups=2, bias=True))
    rewritten(RULE, graph, root, doubles(*SHAPE, seed=4))
    [made] = [n for n in graph.program.calls() if n.target is aten.conv2d.default]
    names = [graph.program.constants[str(n.target)].origin for n in made.args[1:3]]  # type: ignore[union-attr]
    assert names == ["grouped.weight", "grouped.weight.bias"]
    graph = ByHand()
    root = add(graph, grouped(graph, x := graph.input(*SHAPE, free=(0,))), conv(graph, x, groups=2, bias=False))
    assert isinstance(rewritten(RULE, graph, root, doubles(*SHAPE, seed=4)), Rewrite)
    [made] = [n for n in graph.program.calls() if n.target is aten.conv2d.default]
    assert made.args[2] is None


def _read_twice(graph: ByHand, x: fx.Node) -> fx.Node:
    y = conv(graph, x)
    graph.call(aten.sin.default, y)
    return add(graph, y, dense(graph, x))


OTHERS: dict[str, Make] = {
    "two convolutions": lambda g, x: add(g, conv(g, x), conv(g, x, 1)),
    "a dense layer and its input": lambda g, x: add(g, dense(g, x), x),
    "no common value": lambda g, x: add(g, dense(g, x), conv(g, relu(g, x))),
    "an activation on the way": lambda g, x: add(g, dense(g, x), relu(g, conv(g, x))),
    "twice one of them": lambda g, x: add(g, dense(g, x), conv(g, x), alpha=2),
    "a number": lambda g, x: add(g, dense(g, x), g.weight(doubles(1))),
    "a broadcast": lambda g, x: add(g, dense(g, x), g.call(aten.slice.Tensor, conv(g, x), 1, 0, 1)),
    "a sum of one channel and two": lambda g, x: add(
        g,
        dense(g, x),
        g.call(aten.conv2d.default, x, g.weight(doubles(1, 2, 3, 3)), None, [1, 1], [1, 1]),
    ),
    "a sum of features": lambda g, x: add(
        g, g.call(aten.flatten.using_ints, dense(g, x), 1), g.call(aten.flatten.using_ints, conv(g, x), 1)
    ),
    "one read elsewhere": _read_twice,
    "a grouped layer and a full convolution": lambda g, x: add(g, grouped(g, x), conv(g, x, 1)),
    "a layer of three groups beside a convolution of two": lambda g, x: add(g, grouped(g, x, 3), conv(g, x, groups=2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_sums_stay(name: str) -> None:
    graph = ByHand()
    root = OTHERS[name](graph, graph.input(*SHAPE, free=(0,)))
    graph.returns(root)
    assert RULE.check(graph.program, Match(root, {})) is None


def test_it_is_merged_where_that_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a map of 3 x 3 a bottleneck of n beside a kernel of size k costs 36n + 36k^2, and the full matrix 324."""
    for narrow, k, merged in ((4, 3, True), (8, 1, True), (7, 1, False), (2, 1, False)):
        graph = ByHand()
        x = graph.input(*SHAPE, free=(0,))
        flat = graph.call(aten.flatten.using_ints, x, 1)
        inner = graph.call(aten.linear.default, flat, graph.weight(doubles(narrow, 18), "a"))
        outer = graph.call(aten.linear.default, inner, graph.weight(doubles(18, narrow), "b"))
        root = add(graph, graph.call(aten.unflatten.int, outer, 1, [2, 3, 3]), conv(graph, x, k))
        assert 36 * narrow + 36 * k * k >= 324 or not merged
        graph.returns(root)
        assert (RULE.check(graph.program, Match(root, {})) is not None) == merged
        monkeypatch.setattr(dense_beside_conv, "_MOST_VALUES", 323)
        assert RULE.check(graph.program, Match(root, {})) is None
        monkeypatch.setattr(dense_beside_conv, "_MOST_VALUES", 324)
        assert (RULE.check(graph.program, Match(root, {})) is not None) == merged


def test_features_and_free_maps_stay() -> None:
    """A map of one position is no patch; over a map of free size a convolution is no one matrix."""
    graph = ByHand()
    point = graph.input(2, 18, 1, 1, free=(0,))
    flat = graph.call(aten.flatten.using_ints, point, 1)
    layer = graph.call(aten.linear.default, flat, graph.weight(doubles(18, 18)))
    root = add(graph, graph.call(aten.unflatten.int, layer, 1, [18, 1, 1]), conv(graph, point, 1))
    assert RULE.check(graph.program, Match(root, {})) is None
    for free in ((), (0, 2)):
        graph = ByHand()
        x = graph.input(*SHAPE, free=free)
        root = add(graph, conv(graph, x), conv(graph, x, 1))
        assert RULE.check(graph.program, Match(root, {})) is None


def test_matrices_of_whole_numbers_stay() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(0,), dtype=torch.int64)
    assert RULE.check(graph.program, Match(add(graph, x, x), {})) is None
