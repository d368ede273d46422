"""What the steps of a route make of the nodes on it, and what pools and rectifiers let through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.algebra import Pair, Route, execute, forward_all, read_layer
from reparam.algebra.route import Step, is_transparent, passes_beside
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, doubles

SCALE, SHIFT = torch.tensor([0.5, -2.0, 1.5, 3.0]).double(), torch.tensor([1.0, -1.0, 0.5, 2.0]).double()
PARTS = [(SCALE, None), (None, SHIFT), (SCALE, SHIFT)]
IDS = ["scale", "shift", "both"]


@pytest.mark.parametrize(
    ("call", "passes"),
    [
        ((aten.clone.default,), True),
        ((aten.to.dtype, torch.float16), True),
        ((aten._to_copy.default,), True),
        ((aten.to.dtype, torch.int64), False),
        ((aten.to.dtype, torch.bool), False),
        ((aten.to.dtype, torch.float8_e4m3fn), False),
        ((aten.relu.default,), False),
    ],
)
def test_copies_and_casts_between_floats_let_any_affine_through(call: tuple[Any, ...], passes: bool) -> None:
    graph = ByHand()
    target, *options = call
    assert is_transparent(graph.call(target, graph.input(2, 4), *options)) == passes


def test_whole_numbers_that_become_floats_are_no_copy() -> None:
    graph = ByHand()
    assert not is_transparent(graph.call(aten.to.dtype, graph.input(2, 4, dtype=torch.int64), torch.float32))


def column(vector: Tensor | None, rank: int = 4, axis: int = 1) -> Tensor | None:
    return None if vector is None else vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def apply(x: Tensor, scale: Tensor | None, shift: Tensor | None, axis: int = 1) -> Tensor:
    scale, shift = column(scale, x.dim(), axis), column(shift, x.dim(), axis)
    y = x if scale is None else x * scale
    return y if shift is None else y + shift


def sink(graph: ByHand, node: fx.Node, parts: Any, direction: Any, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """What `node` becomes as the only step of a route; it is then the only output."""
    made = execute(graph.program, Route((Step(node, "sink", Pair(*parts)),), direction), known)
    graph.returns(made[node])
    return made[node]


def assert_equal(graph: ByHand, inputs: list[Tensor], truth: Tensor) -> None:
    [made] = evaluate(graph.program, inputs)
    assert made.shape == truth.shape and float((made - truth).abs().max()) <= EXACT * float(truth.abs().max())


# ---- steps -------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], list[Any], int]] = {
    "conv": (aten.conv2d.default, (2, 4, 5, 6), (4, 2, 2, 3), [[1, 2], [0, 0], [1, 1], 2], 1),
    "linear": (aten.linear.default, (2, 3, 4), (4, 4), [], 2),
}


@pytest.mark.parametrize("parts", PARTS, ids=IDS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_layer_takes_what_comes_before_or_behind_it(name: str, direction: str, parts: Any) -> None:
    target, shape, kernel, options, axis = LAYERS[name]
    graph = ByHand()
    x = graph.input(*shape)
    before = graph.call(aten.tanh.default, x)
    node = graph.call(target, before, graph.weight(doubles(*kernel)), graph.weight(doubles(4, seed=1), "b"), *options)
    values, w, b = doubles(*shape, seed=2), doubles(*kernel), doubles(4, seed=1)
    if direction == "forward":
        new = sink(graph, node, parts, direction, {before: x})
        truth = target(apply(values, *parts, axis=axis), w, b, *options)
    else:
        new = sink(graph, node, parts, direction, {})
        truth = apply(target(values.tanh(), w, b, *options), *parts, axis=axis)
    assert new.args[0] is (x if direction == "forward" else before)
    assert_equal(graph, [values], truth)


def test_a_transposed_layer_takes_what_comes_behind_it() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, 3, 3), doubles(4, 2, 2, 2)
    node = graph.call(
        aten.conv_transpose2d.input, x, graph.weight(weight), None, [1, 1], [0, 0], [0, 0], 2, module="up"
    )
    new = sink(graph, node, (SCALE, SHIFT), "backward", {})
    values = doubles(2, 4, 3, 3, seed=2)
    truth = apply(torch.conv_transpose2d(values, weight, groups=2), SCALE, SHIFT)
    assert_equal(graph, [values], truth)
    assert new.target is aten.conv_transpose2d.input and new.meta["module"] == "up"


@pytest.mark.parametrize("parts", PARTS, ids=IDS)
@pytest.mark.parametrize("own", [True, False], ids=["own factors", "no factors"])
def test_a_batch_norm_takes_what_comes_before_it_as_factors_and_means(own: bool, parts: Any) -> None:
    graph = ByHand()
    x = graph.input(2, 4, 5, 6)
    before = graph.call(aten.tanh.default, x)
    g, b, mean, var = doubles(4), doubles(4, seed=1), doubles(4, seed=2), doubles(4, seed=3).abs()
    stored = [graph.weight(v, name) for v, name in ((g, "g"), (b, "b"), (mean, "mean"), (var, "var"))]
    factors = stored[:2] if own else [None, stored[1]]
    node = graph.call(aten.batch_norm.default, before, *factors, *stored[2:], False, 0.1, 0.25, True, module="norm")
    new = sink(graph, node, parts, "forward", {before: x})
    values = doubles(2, 4, 5, 6, seed=4)
    truth = torch.batch_norm(apply(values, *parts), g if own else None, b, mean, var, False, 0.1, 0.25, False)
    assert_equal(graph, [values], truth)
    assert (new.target, new.args[0], new.args[2], new.args[4]) == (node.target, x, stored[1], stored[3])
    assert new.meta["module"] == "norm" and new < node
    made = [graph.program.constant(new.args[i]) for i in (1, 3)]
    assert [(c.origin, c.trainable) for c in made if c] == [("norm.weight", True), ("norm.running_mean", False)]
    assert all(i.meta["module"] == "norm" for i in (new.args[1], new.args[3]))  # type: ignore[union-attr]


@pytest.mark.parametrize("parts", PARTS, ids=IDS)
def test_a_product_and_a_sum_take_what_comes_before_them(parts: Any) -> None:
    for target in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor):
        graph = ByHand()
        x = graph.input(2, 4, 5, 6)
        before, other = graph.call(aten.tanh.default, x), doubles(4, 1, 1)
        node = graph.call(target, before, graph.weight(other), module="own")
        new = sink(graph, node, tuple(column(p) for p in parts), "forward", {before: x})
        values = doubles(2, 4, 5, 6, seed=1)
        assert_equal(graph, [values], target(apply(values, *parts), other))
        assert new < node and new.meta["module"] == "own"
        names = [c.origin for n in graph.program.graph.nodes if (c := graph.program.constant(n))]
        assert {"own.scale", "own.shift"} >= set(names) - {"weight"} and len(names) > 1


NORMS: dict[str, tuple[Any, Any, tuple[int, ...], int]] = {
    "layer norm": (aten.layer_norm.default, [4], (2, 3, 4), 2),
    "group norm": (aten.group_norm.default, 2, (2, 4, 3), 1),
}


@pytest.mark.parametrize("parts", PARTS, ids=IDS)
@pytest.mark.parametrize("own", [(True, True), (True, False), (False, False)], ids=["both", "factors", "none"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_what_comes_behind_it_into_its_own_affine(name: str, own: tuple[bool, bool], parts: Any) -> None:
    target, second, shape, axis = NORMS[name]
    graph = ByHand()
    x = graph.input(*shape)
    g, b = (v if there else None for v, there in zip((doubles(4), doubles(4, seed=1)), own, strict=True))
    stored = [None if v is None else graph.weight(v) for v in (g, b)]
    node = graph.call(target, x, second, *stored, 0.25, module="norm")
    new = sink(graph, node, parts, "backward", {})
    values = doubles(*shape, seed=2)
    assert_equal(graph, [values], apply(target(values, second, g, b, 0.25), *parts, axis=axis))
    made = [graph.program.constant(i) for i in new.args[2:4]]
    assert [c.origin for c in made if c] == ["norm.weight", "norm.bias"]
    assert new < node and all(n.meta["module"] == "norm" for n in (new, *new.all_input_nodes) if n is not x)


def test_skipped_and_cloned_nodes() -> None:
    """An affine on the way is left out; what is not on the way is read as it is."""
    graph = ByHand()
    x, y = graph.input(2, 4), graph.input(2, 4)
    first = graph.call(aten.tanh.default, x)
    factor = graph.call(aten.mul.Tensor, first, 3.0)
    total = graph.call(aten.add.Tensor, y, factor, module="here")
    route = Route((Step(factor, "skip"), Step(total, "clone")), "forward")
    made = execute(graph.program, route, {first: x})
    assert made == {first: x, factor: x, total: made[total]}
    new = made[total]
    assert (new.target, new.args, new.meta["module"]) == (aten.add.Tensor, (y, x), "here") and new < total
    assert route.sinks == () and Route((Step(total, "clone"), Step(new, "sink")), "forward").sinks == (new,)


def test_an_activation_on_the_way_becomes_another() -> None:
    graph = ByHand()
    x = graph.input(2, 4)
    first, slopes = graph.call(aten.tanh.default, x), torch.tensor([0.5]).double()
    act = graph.call(aten.prelu.default, first, graph.weight(slopes))
    node = graph.call(aten.linear.default, act, graph.weight(doubles(3, 4)))
    route = forward_all(graph.program, {first: Pair(column(SCALE, 2))})
    assert isinstance(route, Route)
    graph.returns(execute(graph.program, route, {first: x})[node])
    values = doubles(2, 4, seed=1)
    assert_equal(graph, [values], torch.prelu(values * SCALE, slopes) @ doubles(3, 4).T)


# ---- what pools and rectifiers let through -----------------------------------------------------------------------

POOLS: dict[str, tuple[Any, list[Any], bool]] = {  # whether a shift passes
    "avg_pool1d": (aten.avg_pool1d.default, [[2]], True),
    "avg_pool2d": (aten.avg_pool2d.default, [[2, 2]], True),
    "avg_pool3d": (aten.avg_pool3d.default, [[1, 2, 2]], True),
    "padded": (aten.avg_pool2d.default, [[3, 3], [1, 1], [1, 1]], False),
    "padded along one axis": (aten.avg_pool2d.default, [[3, 3], [1, 1], [0, 1]], False),
    "padding not counted": (aten.avg_pool2d.default, [[3, 3], [1, 1], [1, 1], False, False], True),
    "nothing to count": (aten.avg_pool2d.default, [[3, 3], [1, 1], [0, 0], False, False], True),
    "cut off": (aten.avg_pool2d.default, [[3, 3], [2, 2], [0, 0], True], True),
    "another divisor": (aten.avg_pool2d.default, [[2, 2], [1, 1], [0, 0], False, False, 3], False),
    "global": (aten.adaptive_avg_pool2d.default, [[1, 1]], True),
    "bilinear": (aten.upsample_bilinear2d.vec, [[10, 12], False, None], True),
    "max": (aten.max_pool2d.default, [[3, 3], [1, 1], [1, 1]], True),
    "max 1d": (aten.max_pool1d.default, [[2]], True),
}
SHAPES = {1: (2, 4, 6), 3: (2, 4, 2, 5, 6)}


def behind(graph: ByHand, target: Any, options: list[Any], pair: Pair, *shape: int) -> Any:
    """The route of an affine of this pair into a layer behind the call, and the call."""
    first = graph.call(aten.tanh.default, graph.input(*shape))
    node = graph.call(target, first, *options)
    ndim = len(shape) - 2
    conv = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[ndim]
    graph.call(conv, node, graph.weight(doubles(3, 4, *[1] * ndim)))
    return forward_all(graph.program, {first: pair}), first, node


@pytest.mark.parametrize("part", ["scale", "shift"])
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_lets_through_what_it_keeps(name: str, part: str) -> None:
    """pool(s*x + t) = s*pool(x) + t, which is tried on numbers for what is let through and what is not."""
    target, options, shift_passes = POOLS[name]
    shape = next((s for n, s in SHAPES.items() if f"{n}d" in str(target)), (2, 4, 5, 6))
    parts = (column(SCALE.abs(), len(shape)), None) if part == "scale" else (None, column(SHIFT, len(shape)))
    graph = ByHand()
    route, _, node = behind(graph, target, options, Pair(*parts), *shape)
    passes = part == "scale" or shift_passes
    x = doubles(*shape, seed=1)
    one, other = target(apply(x, *parts), *options), apply(target(x, *options), *parts)
    assert bool((one - other).abs().max() <= EXACT) == passes
    if passes:
        assert isinstance(route, Route) and [s.action for s in route.steps] == ["clone", "sink"]
    else:
        assert isinstance(route, Refusal) and route.node is node
        assert route.reason == "the shift meets the average pool's padding, which counts as zero"


@pytest.mark.parametrize("parts", [(0, None), (None, 0), (1, None), (None, 1)])
def test_a_pool_of_an_affine_that_varies_over_its_window(parts: Any) -> None:
    """Along either spatial axis, as a scale or as a shift."""
    graph = ByHand()
    factors = [None if i is None else doubles(*((1, 1, 5, 1) if i == 0 else (1, 1, 1, 6))) for i in parts]
    refused, _, node = behind(graph, aten.avg_pool2d.default, [[2, 2]], Pair(*factors), 2, 4, 5, 6)
    assert refused == Refusal("the affine varies over the window of avg_pool2d", node)


@pytest.mark.parametrize(
    ("target", "options", "pair", "reason"),
    [
        (aten.max_pool2d.default, [[2, 2]], Pair(-SCALE.abs()), "max-pool does not let a negative scale through (4"),
        (aten.max_pool2d.default, [[2, 2]], Pair(SCALE, SHIFT), "max-pool does not let a negative scale through (1"),
        (aten.max_pool2d.default, [[2, 2]], Pair(SCALE.relu(), SHIFT), None),
        (aten.relu.default, [], Pair(SCALE.relu()), None),
        (aten.relu.default, [], Pair(SCALE), "relu does not let a negative scale through (1 channels)"),
        (aten.relu.default, [], Pair(SCALE.abs(), SHIFT), "relu does not let a shift through"),
        (aten.leaky_relu.default, [0.2], Pair(SCALE.abs()), None),
        (aten.leaky_relu.default, [0.2], Pair(None, SHIFT), "leaky_relu does not let a shift through"),
        (aten.leaky_relu.default, [0.2], Pair(), None),
    ],
)
def test_what_keeps_an_order_takes_no_negative_scale(target: Any, options: Any, pair: Pair, reason: str | None) -> None:
    """A scale of zero passes: what follows it is zero on both ways."""
    pair = Pair(column(pair.scale), column(pair.shift))
    refused, _, node = behind(ByHand(), target, options, pair, 2, 4, 5, 6)
    if reason is None:
        assert isinstance(refused, Route)
    else:
        assert isinstance(refused, Refusal) and refused.node is node and refused.reason.startswith(reason)


def test_what_passes_a_linear_layer_beside_its_channels() -> None:
    """A scale of each token, whether or not it varies along the axes before; nothing with a shift or past a bias."""
    graph = ByHand()
    x = graph.input(2, 5, 4)
    plain = graph.call(aten.linear.default, x, graph.weight(doubles(3, 4)))
    biased = graph.call(aten.linear.default, x, graph.weight(doubles(3, 4)), graph.weight(doubles(3)))
    layer, with_bias = read_layer(graph.program, plain), read_layer(graph.program, biased)
    assert layer is not None and with_bias is not None
    tokens, channels, batch = doubles(1, 5, 1), doubles(1, 1, 4), doubles(2, 1, 1)
    assert passes_beside(layer, Pair(tokens)) and passes_beside(layer, Pair(batch))
    assert not passes_beside(layer, Pair(channels)) and not passes_beside(layer, Pair(doubles(1, 5, 4)))
    assert not passes_beside(layer, Pair()) and not passes_beside(layer, Pair(tokens, tokens))
    assert not passes_beside(with_bias, Pair(tokens))


@pytest.mark.parametrize(
    ("kernel", "options", "passes"),
    [
        ((4, 4, 1), {}, True),
        ((4, 4, 1), {"bias": True}, False),
        ((4, 4, 2), {}, False),
        ((4, 4, 1), {"stride": [2]}, False),
        ((4, 4, 1), {"padding": [1]}, False),
    ],
)
def test_what_passes_a_convolution_beside_its_channels(
    kernel: tuple[int, ...], options: dict[str, Any], passes: bool
) -> None:
    """A scale of each position, where it reads one for each that it makes."""
    graph = ByHand()
    bias = graph.weight(doubles(4)) if options.get("bias") else None
    geometry = (options.get("stride", [1]), options.get("padding", [0]))
    conv = graph.call(aten.conv1d.default, graph.input(2, 4, 5), graph.weight(doubles(*kernel)), bias, *geometry)
    layer = read_layer(graph.program, conv)
    assert layer is not None and passes_beside(layer, Pair(doubles(1, 1, 5))) is passes
    assert not passes_beside(layer, Pair(doubles(1, 4, 1)))
