"""merge-branches on sums built by hand: which branches become one layer, with which weights, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from reparam.ir import Refusal, aten
from reparam.passes.merge_branches import MergeBranches
from reparam.rewrite import Match, Rewrite
from support.by_hand import ByHand, rewritten
from support.helpers import doubles, graph_text

RULE = MergeBranches()
SHAPE = (2, 4, 5, 6)
Make = Callable[[ByHand, fx.Node], fx.Node]


def conv(
    graph: ByHand, x: fx.Node, k: int = 3, seed: int = 1, *, bias: bool = True, name: str = "", **how: Any
) -> fx.Node:
    """Of as many channels as it finds, and so padded that the map keeps its size unless told otherwise."""
    dilation, groups = how.get("dilation", 1), how.get("groups", 1)
    padding, stride = how.get("padding", dilation * (k // 2)), how.get("stride", 1)
    ndim, channels = x.meta["val"].dim() - 2, x.meta["val"].shape[1]
    w = graph.weight(doubles(4, channels // groups, *[k] * ndim, seed=seed), f"{name or f'conv{k}'}.weight")
    b = graph.weight(doubles(4, seed=seed + 50), f"{name or f'conv{k}'}.bias") if bias else None
    target = {1: aten.conv1d.default, 2: aten.conv2d.default}[ndim]
    return graph.call(target, x, w, b, *([v] * ndim for v in (stride, padding, dilation)), groups)


def linear(graph: ByHand, x: fx.Node, seed: int = 1, c_out: int = 0) -> fx.Node:
    width = x.meta["val"].shape[-1]
    weight, bias = doubles(c_out or width, width, seed=seed), doubles(c_out or width, seed=seed + 50)
    return graph.call(aten.linear.default, x, graph.weight(weight), graph.weight(bias))


def slim(graph: ByHand, x: fx.Node, kernel: tuple[int, int], seed: int) -> fx.Node:
    w = graph.weight(doubles(4, 4, *kernel, seed=seed))
    return graph.call(aten.conv2d.default, x, w, None, [1, 1], [k // 2 for k in kernel])


def slims(graph: ByHand, x: fx.Node, seed: int) -> fx.Node:
    """Two rows of five taps."""
    return add(graph, slim(graph, x, (1, 5), seed), slim(graph, x, (1, 5), seed + 1))


def scaled(graph: ByHand, x: fx.Node, *shape: int) -> fx.Node:
    return graph.call(aten.mul.Tensor, x, graph.weight(doubles(*shape)))


def add(graph: ByHand, a: fx.Node, b: fx.Node, **options: Any) -> fx.Node:
    return graph.call(aten.add.Tensor, a, b, **options)


def sub(graph: ByHand, a: fx.Node, b: fx.Node, **options: Any) -> fx.Node:
    return graph.call(aten.sub.Tensor, a, b, **options)


def times(graph: ByHand, a: fx.Node, b: fx.Node) -> fx.Node:
    return graph.call(aten.mul.Tensor, a, b)


def tanh(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.tanh.default, x)


def norm(graph: ByHand, x: fx.Node, seed: int = 5) -> fx.Node:
    stored = [graph.weight(doubles(4, seed=seed + s).abs() + 0.1, f"norm{s}") for s in range(4)]
    return graph.call(aten.batch_norm.default, x, *stored, False, 0.1, 0.25, False)


def padded(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.pad.default, x, [1, 1, 1, 1], "reflect")


def _pads(graph: ByHand, x: fx.Node) -> fx.Node:
    narrow = graph.call(aten.pad.default, x, [1, 1, 1, 1], "reflect")
    wide = graph.call(aten.pad.default, x, [2, 2, 2, 2], "reflect")
    return add(graph, conv(graph, narrow, padding=0), conv(graph, wide, 5, padding=0))


def _picked(graph: ByHand, x: fx.Node) -> fx.Node:
    part = graph.call(aten.slice.Tensor, x, 1, 1, 3)
    return add(graph, conv(graph, part, 1, 2), conv(graph, x))


def _nearest(graph: ByHand, x: fx.Node) -> fx.Node:
    """Both are linear in x too, but that would be a wider kernel."""
    y = conv(graph, x, 1, seed=9, bias=False)
    return add(graph, conv(graph, y), conv(graph, y, 1))


MERGED: dict[str, tuple[Make, tuple[int, ...], str]] = {
    "two convs": (lambda g, x: add(g, conv(g, x), conv(g, x, 1, 2)), SHAPE, "conv3x3(x)"),
    "a conv and its input": (lambda g, x: add(g, conv(g, x), x), SHAPE, "conv3x3(x)"),
    "input minus a conv": (lambda g, x: sub(g, x, conv(g, x)), SHAPE, "conv3x3(x)"),
    "conv minus twice a conv": (lambda g, x: sub(g, conv(g, x, 1), conv(g, x, seed=2), alpha=2), SHAPE, "conv3x3(x)"),
    "a difference written the other way": (
        lambda g, x: g.call(aten.rsub.Tensor, conv(g, x, 1), conv(g, x, seed=2), alpha=3),
        SHAPE,
        "conv3x3(x)",
    ),
    "plus nothing of another": (lambda g, x: add(g, conv(g, x), conv(g, x, 1, 2), alpha=0), SHAPE, "conv3x3(x)"),
    "three": (
        lambda g, x: sub(g, add(g, conv(g, x, 1), x), sub(g, conv(g, x, seed=2), conv(g, x, 1, 3), alpha=2)),
        SHAPE,
        "conv3x3(x)",
    ),
    "pool": (
        lambda g, x: add(g, conv(g, x), g.call(aten.avg_pool2d.default, x, [3, 3], [1, 1], [1, 1])),
        SHAPE,
        "conv3x3(x)",
    ),
    "norms": (lambda g, x: add(g, norm(g, conv(g, x)), norm(g, x, 9)), SHAPE, "conv3x3(x)"),
    "norms alone": (lambda g, x: add(g, norm(g, x), norm(g, x, 9)), SHAPE, "add(mul(x, w), w)"),
    "a factor alone": (
        lambda g, x: add(g, g.call(aten.mul.Tensor, x, g.weight(doubles(4, 1, 1))), x),
        SHAPE,
        "mul(x, w)",
    ),
    "a factor of features": (
        lambda g, x: add(g, g.call(aten.mul.Tensor, x, g.weight(doubles(4))), x),
        (2, 4),
        "mul(x, w)",
    ),
    "depthwise": (
        lambda g, x: add(g, conv(g, x, groups=4), conv(g, x, 1, 2, groups=4)),
        SHAPE,
        "conv3x3g4(x)",
    ),
    "groups of two and of one": (lambda g, x: add(g, conv(g, x, groups=2), conv(g, x, 3, 2)), SHAPE, "conv3x3(x)"),
    "dilated inside": (
        lambda g, x: add(g, conv(g, x, 5), conv(g, x, 3, 2, dilation=2)),
        SHAPE,
        "conv5x5(x)",
    ),
    "one axis": (lambda g, x: add(g, conv(g, x), conv(g, x, 1, 2)), (2, 4, 6), "conv3(x)"),
    "linear": (lambda g, x: add(g, linear(g, x), linear(g, x, 2)), (2, 4), "linear(x)"),
    "linear with its input": (lambda g, x: add(g, linear(g, x), x), (2, 3, 4), "linear(x)"),
    "two linear layers after each other": (
        lambda g, x: add(g, linear(g, linear(g, x, 1, 5), 2, 4), linear(g, x, 3)),
        (2, 3, 4),
        "linear(x)",
    ),
    "beside others": (
        lambda g, x: sub(g, sub(g, add(g, tanh(g, x), conv(g, x)), tanh(g, x), alpha=3), sub(g, tanh(g, x), x)),
        SHAPE,
        "sub(add(add(conv3x3(x), tanh(x)), tanh(x), alpha=-3.0), tanh(x))",
    ),
    "beside a sum that is read elsewhere": (
        lambda g, x: add(g, (y := add(g, conv(g, x), conv(g, x, seed=2))), add(g, tanh(g, y), tanh(g, y))),
        SHAPE,
        "",
    ),
    "two linear layers and a convolution": (
        lambda g, x: add(g, add(g, linear(g, x), conv(g, x)), linear(g, x, 2)),
        SHAPE,
        "add(linear(x), conv3x3(x))",
    ),
    "one whose bias meets a border, and two others": (
        lambda g, x: add(g, add(g, conv(g, conv(g, x, 1, 8)), conv(g, x)), conv(g, x, 1)),
        SHAPE,
        "add(conv3x3(x), conv3x3(conv1x1(x)))",
    ),
    "one whose factor lies along another axis, and two others": (
        lambda g, x: add(g, add(g, scaled(g, linear(g, x), 3, 1), scaled(g, x, 4)), x),
        (2, 3, 4),
        "add(mul(x, w), mul(linear(x), w))",
    ),
    "a small kernel before a large one": (
        lambda g, x: add(g, conv(g, conv(g, x, 1, 8, bias=False)), conv(g, x, seed=2)),
        SHAPE,
        "conv3x3(x)",
    ),
    "a factor before a linear layer": (lambda g, x: add(g, linear(g, scaled(g, x, 4)), x), (2, 4), "linear(x)"),
    "a shift of the value's own shape": (
        lambda g, x: add(g, linear(g, x), add(g, x, g.weight(doubles(1, 4)))),
        (1, 4),
        "linear(x)",
    ),
    "kernels of one for each channel": (
        lambda g, x: add(g, conv(g, x, 1, groups=4), conv(g, x, 1, 2, groups=4)),
        SHAPE,
        "conv1x1g4(x)",
    ),
    "a kernel that pays when three others are one": (
        lambda g, x: add(
            g, add(g, slim(g, x, (1, 5), 1), slim(g, x, (5, 1), 2)), add(g, slims(g, x, 3), slim(g, x, (1, 5), 5))
        ),
        (2, 4, 7, 7),
        "conv5x5(x)",
    ),
    "pads": (_pads, SHAPE, "conv5x5(pad(x, [2, 2, 2, 2], reflect))"),
    "channels": (_picked, SHAPE, "conv3x3(x)"),
    "nearest source": (_nearest, SHAPE, "conv3x3(conv1x1(x))"),
}


@pytest.mark.parametrize("name", MERGED)
def test_branches_become_one_layer(name: str) -> None:
    make, shape, text = MERGED[name]
    graph = ByHand()
    made = rewritten(RULE, graph, make(graph, graph.input(*shape)), doubles(*shape, seed=9))
    if not text:
        assert made is None
        return
    assert isinstance(made, Rewrite) and graph_text(graph.program) == text
    assert made.message.endswith("' became 1 layer(s)")


def test_the_source_and_the_number_of_branches_are_told() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    made = rewritten(RULE, graph, add(graph, add(graph, conv(graph, x), x), conv(graph, x, 1)), doubles(*SHAPE))
    assert isinstance(made, Rewrite) and made.message == "3 branches of 'x0' became 1 layer(s)"


def test_branches_that_do_not_merge_with_some_merge_with_others() -> None:
    """A kernel of five taps a row would cost more with one of five taps a column than both do."""
    graph = ByHand()
    x = graph.input(2, 4, 7, 7)

    kernels = [slim(graph, x, k, seed) for seed, k in enumerate(((1, 5), (5, 1), (1, 3), (3, 1)))]
    value = add(graph, add(graph, *kernels[:2]), add(graph, *kernels[2:]))
    made = rewritten(RULE, graph, value, doubles(2, 4, 7, 7))
    assert isinstance(made, Rewrite) and made.message == "4 branches of 'x0' became 2 layer(s)"
    assert graph_text(graph.program) in ("add(conv5x1(x), conv1x5(x))", "add(conv1x5(x), conv5x1(x))")


def test_the_new_weights_are_named_after_the_largest_kernel() -> None:
    """Of the first layer with it."""
    graph = ByHand()
    x = graph.input(*SHAPE)
    parts = [conv(graph, x, 1, name="small"), conv(graph, x, 3, name="first"), conv(graph, x, 3, name="second")]
    made = rewritten(RULE, graph, add(graph, add(graph, parts[2], parts[0]), parts[1]), doubles(*SHAPE))
    assert isinstance(made, Rewrite)
    [new] = made.replace.values()
    assert [graph.program.constants[str(n.target)].origin for n in new.all_input_nodes[1:]] == [
        "first.weight",
        "first.bias",
    ]


def test_the_new_layer_stands_where_the_sum_did() -> None:
    for make, shape in ((conv, SHAPE), (linear, (2, 4))):
        graph = ByHand()
        x = graph.input(*shape)
        parts = [make(graph, x), make(graph, x, seed=2)]
        place = tanh(graph, x)
        graph.returns(root := add(graph, *parts))
        plan = RULE.check(graph.program, Match(root, {}))
        assert plan is not None and not isinstance(plan, Refusal)
        [new] = RULE.rewrite(graph.program, plan).replace.values()
        assert place < new < root


def test_branches_of_pads_read_a_pad_of_their_own() -> None:
    """So that what is replaced starts at the value before all pads."""
    graph = ByHand()
    graph.returns(root := _pads(graph, graph.input(*SHAPE)))
    old = set(graph.program.graph.nodes)
    plan = RULE.check(graph.program, Match(root, {}))
    assert plan is not None and not isinstance(plan, Refusal)
    [new] = RULE.rewrite(graph.program, plan).replace.values()
    assert new.args[0] not in old and new.args[0].args == plan.source.args  # type: ignore[union-attr]


def test_the_nearest_source_comes_first() -> None:
    """By the calls between it and the sum, on the mean over its branches."""

    def source(lengths: dict[str, list[int]]) -> str:
        graph = ByHand()
        values = {"x": (x := graph.input(*SHAPE)), "y": tanh(graph, x)}
        total: fx.Node | None = None
        for name, counts in lengths.items():
            for seed, count in enumerate(counts):
                value = conv(graph, values[name], 1, seed)
                for _ in range(count - 1):
                    value = scaled(graph, value, 4, 1, 1)
                total = value if total is None else add(graph, total, value)
        assert total is not None
        graph.returns(total)
        plan = RULE.check(graph.program, Match(total, {}))
        assert plan is not None and not isinstance(plan, Refusal)
        return next(n for n, v in values.items() if v is plan.source)

    assert source({"x": [2, 2], "y": [1, 1]}) == "y"
    assert source({"y": [2, 2], "x": [1, 1]}) == "x"
    assert source({"y": [1, 2], "x": [1, 1, 1]}) == "x"


def test_a_factor_is_named_after_the_sum() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    value = graph.call(aten.add.Tensor, norm(graph, x), norm(graph, x, 9), module="block")
    assert isinstance(rewritten(RULE, graph, value, doubles(*SHAPE)), Rewrite)
    used = [str(n.target) for n in graph.program.graph.nodes if n.op == "get_attr"]
    assert sorted(used) == ["block.scale", "block.shift"]


DIFFERENT = "branches of one source do not merge: "
REFUSED: dict[str, tuple[Make, tuple[int, ...], str]] = {
    "strides": (
        lambda g, x: add(g, conv(g, x, 1, stride=2), conv(g, x, padding=0)),
        (2, 4, 5, 5),
        DIFFERENT + "strides (1, 1) and (2, 2) differ",
    ),
    "cost": (
        lambda g, x: add(g, conv(g, x, dilation=2), conv(g, x, dilation=3)),
        (2, 4, 7, 7),
        "merging branches of one source would cost 38,416 multiply-accumulates instead of 14,112",
    ),
    "cost of groups": (
        lambda g, x: add(g, conv(g, x, groups=4), conv(g, x, 1, 2)),
        SHAPE,
        "merging branches of one source would cost 4,320 multiply-accumulates instead of 1,560",
    ),
    "cost of one that is dense and one that is not": (
        lambda g, x: add(g, conv(g, x, 5, groups=4), conv(g, x, seed=2)),
        SHAPE,
        "merging branches of one source would cost 12,000 multiply-accumulates instead of 7,320",
    ),
    "a linear layer beside a convolution": (
        lambda g, x: add(g, conv(g, x), linear(g, x)),
        SHAPE,
        "a linear layer and a convolution do not combine",
    ),
    "a border": (
        lambda g, x: add(g, conv(g, conv(g, x, 1, 8), 3), conv(g, x, 3, 2)),
        SHAPE,
        "its bias would meet the zero padding that follows, which is wrong on the border",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_why_branches_do_not_merge(name: str) -> None:
    """What they cost is told for one sample."""
    make, shape, reason = REFUSED[name]
    graph = ByHand()
    root = make(graph, graph.input(*shape, free=(0,)))
    refused = rewritten(RULE, graph, root, doubles(*shape))
    assert refused == Refusal(reason, root)


NOTHING: dict[str, tuple[Make, tuple[int, ...]]] = {
    "no common source": (lambda g, x: add(g, tanh(g, x), conv(g, x)), SHAPE),
    "a value and itself": (lambda g, x: add(g, x, x), SHAPE),
    "one branch that is no kernel": (lambda g, x: add(g, tanh(g, x), conv(g, conv(g, x, 1))), SHAPE),
    "one branch behind a pad that is no kernel": (
        lambda g, x: add(g, tanh(g, x), g.call(aten.pad.default, conv(g, conv(g, padded(g, x), 1)), [-1] * 4)),
        SHAPE,
    ),
    "features without a batch": (lambda g, x: add(g, g.call(aten.mul.Tensor, x, 2.0), x), (4,)),
    "channels alone": (
        lambda g, x: add(g, g.call(aten.slice.Tensor, x, 1, 0, 2), g.call(aten.slice.Tensor, x, 1, 2, 4)),
        SHAPE,
    ),
    "a weight": (lambda g, x: add(g, g.weight(doubles(*SHAPE)), conv(g, x)), SHAPE),
    "whole numbers": (
        lambda g, x: add(g, y := g.call(aten.to.dtype, x, torch.int64), g.call(aten.clone.default, y)),
        SHAPE,
    ),
    "broadcast": (lambda g, x: add(g, conv(g, x), g.call(aten.mean.dim, conv(g, x, 1), [2], True)), SHAPE),
    "a number": (lambda g, x: g.call(aten.add.Scalar, conv(g, x), 1.0), SHAPE),
    "a factor from the data": (
        lambda g, x: add(g, conv(g, x), conv(g, x, 1), alpha=g.call(aten.sym_size.int, x, 0)),
        SHAPE,
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_sums_without_branches_are_left_alone(name: str) -> None:
    make, shape = NOTHING[name]
    graph = ByHand()
    root = make(graph, graph.input(*shape, free=(0,)))
    assert rewritten(RULE, graph, root, doubles(*shape)) is None


def test_an_inner_sum_is_left_to_the_outer_one() -> None:
    """Unless the outer one is none, or it is read elsewhere as well."""
    for outer, read, left in ((add, 1, True), (add, 2, False), (times, 1, False)):
        graph = ByHand()
        x = graph.input(*SHAPE)
        inner = add(graph, conv(graph, x), conv(graph, x, 1))
        ends = [outer(graph, inner, tanh(graph, x)), *(tanh(graph, inner) for _ in range(read - 1))]
        graph.returns(*ends)
        assert (RULE.check(graph.program, Match(inner, {})) is None) == left
