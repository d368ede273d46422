"""Layers: what is read off a call, and the call that is written back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from reparam.algebra import Layer, conv_call, read_layer, weights, write_layer
from reparam.algebra.layer import Geometry, same_padding
from reparam.ir import aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, doubles

SIZES = (7, 8, 9)
CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
NAMED = {1: aten.conv1d.padding, 2: aten.conv2d.padding, 3: aten.conv3d.padding}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def read(graph: ByHand, node: fx.Node) -> Layer:
    layer = read_layer(graph.program, node)
    assert layer is not None
    return layer


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_is_read_axis_by_axis(rank: int) -> None:
    stride, padding, dilation, kernel = ([1, 2, 3][:rank], [2, 0, 1][:rank], [2, 1, 3][:rank], [3, 2, 1][:rank])
    graph = ByHand()
    x = graph.input(2, 4, *SIZES[:rank])
    weight, bias = graph.weight(doubles(6, 2, *kernel)), graph.weight(doubles(6), "bias")
    node = graph.call(CONV[rank], x, weight, bias, stride, padding, dilation, 2)
    layer = read(graph, node)
    geometry = Geometry(tuple(stride), tuple((p, p) for p in padding), tuple(dilation), 2)
    assert layer == Layer(node, "conv", x, weight, bias, geometry)
    assert layer.kernel == tuple(kernel)
    assert (layer.axis, layer.in_axis, layer.in_channels, layer.out_channels) == (1, 1, 4, 6)
    assert geometry.padded and not layer.pointwise


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_number_stands_for_every_axis(rank: int) -> None:
    """Also for the padding that is added to the result of a transposed convolution."""
    graph = ByHand()
    x, weight = graph.input(2, 4, *SIZES[:rank]), graph.weight(doubles(4, 4, *[2] * rank))
    found = read(graph, graph.call(CONV[rank], x, weight, None, [2], [1], [3]))
    assert found.geometry == Geometry((2,) * rank, ((1, 1),) * rank, (3,) * rank, 1) and found.bias is None
    found = read(graph, graph.call(TRANSPOSED[rank], x, weight, None, [2], [1], [1], 1, [3]))
    assert found.geometry == Geometry((2,) * rank, ((1, 1),) * rank, (3,) * rank, 1, (1,) * rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_transposed_convolution_is_read_axis_by_axis(rank: int) -> None:
    stride, padding, extra, dilation = ([2, 3, 2][:rank], [1, 0, 2][:rank], [1, 2, 0][:rank], [1, 1, 2][:rank])
    graph = ByHand()
    x = graph.input(2, 4, *SIZES[:rank])
    weight, bias = graph.weight(doubles(4, 3, *[3] * rank)), graph.weight(doubles(6), "bias")
    node = graph.call(TRANSPOSED[rank], x, weight, bias, stride, padding, extra, 2, dilation)
    layer = read(graph, node)
    geometry = Geometry(tuple(stride), tuple((p, p) for p in padding), tuple(dilation), 2, tuple(extra))
    assert layer == Layer(node, "transposed", x, weight, bias, geometry)
    assert (layer.kernel, layer.axis, layer.in_axis) == ((3,) * rank, 1, 1)
    assert (layer.in_channels, layer.out_channels) == (4, 6)


def test_an_output_padding_may_be_computed_from_a_free_size() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, 7, 8, free=(2,)), graph.weight(doubles(4, 3, 3, 3))
    size = graph.call(aten.sym_size.int, x, 2)
    layer = read(graph, graph.call(aten.conv_transpose2d.input, x, weight, None, [9, 9], [0, 0], [size, 1]))
    assert layer.geometry.output_padding == (size, 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_padding_by_name(rank: int) -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, *SIZES[:rank]), graph.weight(doubles(4, 4, *[4, 3, 2][:rank]))
    same = read(graph, graph.call(NAMED[rank], x, weight, None, [1] * rank, "same", [1, 2, 3][:rank]))
    assert same.geometry.padding == ((1, 2), (2, 2), (1, 2))[:rank] and same.geometry.padded
    valid = read(graph, graph.call(NAMED[rank], x, weight, None, [1] * rank, "valid"))
    assert valid.geometry.padding == ((0, 0),) * rank and not valid.geometry.padded


@given(kernel=st.integers(1, 5), dilation=st.integers(1, 3))
def test_the_smaller_half_of_a_padding_that_keeps_the_size_goes_first(kernel: int, dilation: int) -> None:
    x, weight = doubles(1, 1, 9), doubles(1, 1, kernel)
    [ends] = same_padding((kernel,), (dilation,))
    padded = F.conv1d(F.pad(x, ends), weight, dilation=dilation)
    assert padded.shape == x.shape
    assert torch.allclose(padded, F.conv1d(x, weight, padding="same", dilation=dilation), rtol=0, atol=EXACT)


def test_a_linear_layer_has_its_channels_last_and_no_spatial_axes() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 4)
    weight, bias = graph.weight(doubles(5, 4)), graph.weight(doubles(5), "bias")
    node = graph.call(aten.linear.default, x, weight, bias)
    layer = read(graph, node)
    assert layer == Layer(node, "linear", x, weight, bias, Geometry((), (), (), 1))
    assert (layer.kernel, layer.axis, layer.in_axis) == ((), 2, 2)
    assert (layer.in_channels, layer.out_channels, layer.pointwise) == (4, 5, True)
    alone = graph.call(aten.linear.default, x, weight)
    assert read(graph, alone) == Layer(alone, "linear", x, weight, None, Geometry((), (), (), 1))


@pytest.mark.parametrize(
    ("kernel", "padding", "pointwise"),
    [((1, 1), [0, 0], True), ((1, 1), [0, 1], False), ((1, 2), [0, 0], False), ((2, 1), [0, 0], False)],
)
def test_pointwise_is_a_kernel_of_one_without_padding(kernel: Any, padding: list[int], pointwise: bool) -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, 7, 8), graph.weight(doubles(4, 4, *kernel))
    assert read(graph, graph.call(aten.conv2d.default, x, weight, None, [1, 1], padding)).pointwise == pointwise
    assert not read(graph, graph.call(aten.conv_transpose2d.input, x, weight, None, [1, 1], padding)).pointwise


def test_what_is_no_layer() -> None:
    """Another call, no batch, or weights that are computed from data."""
    graph = ByHand()
    x, flat = graph.input(2, 4, 7, 8), graph.input(3, 4)
    weight, bias, matrix = (graph.weight(doubles(4, 4, 3, 3)), graph.weight(doubles(4)), graph.weight(doubles(4, 4)))
    drawn, row = graph.input(4, 4, 3, 3), graph.input(4)
    single, line = graph.input(4, 7, 8), graph.weight(doubles(4))
    for call in (aten.conv2d.default, aten.conv_transpose2d.input):
        assert read_layer(graph.program, graph.call(call, x, weight, bias)) is not None
        assert read_layer(graph.program, graph.call(call, x, drawn, bias)) is None
        assert read_layer(graph.program, graph.call(call, x, weight, row)) is None
        assert read_layer(graph.program, graph.call(call, single, weight, bias)) is None
    call = aten.linear.default
    assert read_layer(graph.program, graph.call(call, flat, matrix, bias)) is not None
    assert read_layer(graph.program, graph.call(call, flat, flat, None)) is None
    assert read_layer(graph.program, graph.call(call, flat, matrix, row)) is None
    assert read_layer(graph.program, graph.call(call, flat, line)) is None
    assert read_layer(graph.program, graph.call(aten.relu.default, x)) is None
    assert read_layer(graph.program, weight) is None and read_layer(graph.program, 1.0) is None


def test_weights_are_given_in_double_precision() -> None:
    graph = ByHand(torch.float32)
    x = graph.input(2, 4)
    layer = read(graph, graph.call(aten.linear.default, x, graph.weight(doubles(3, 4).float())))
    weight, bias = weights(graph.program, layer)
    assert weight.dtype == torch.float64 and torch.equal(weight, doubles(3, 4).float().double()) and bias is None
    one = graph.weight(doubles(3, seed=1).float(), "bias")
    both = weights(graph.program, read(graph, graph.call(aten.linear.default, x, layer.weight, one)))
    assert both[1] is not None and torch.equal(both[1], doubles(3, seed=1).float().double())


# ---- writing -----------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any, list[Any]]] = {
    "conv1d": ((2, 4, 7), (6, 2, 3), aten.conv1d.default, [[2], [1], [2], 2]),
    "conv2d": ((2, 4, 7, 8), (6, 2, 3, 2), aten.conv2d.default, [[2, 1], [1, 2], [1, 2], 2]),
    "conv3d": ((2, 4, 4, 5, 6), (6, 2, 3, 2, 1), aten.conv3d.default, [[1, 2, 3], [1, 0, 2], [1, 2, 1], 2]),
    "same": ((2, 4, 7, 8), (6, 2, 2, 4), aten.conv2d.padding, [[1, 1], "same", [1, 1], 2]),
    "same, one axis uneven": ((2, 4, 7, 8), (6, 2, 3, 4), aten.conv2d.padding, [[1, 1], "same", [2, 1], 2]),
    "conv_transpose1d": ((2, 4, 5), (4, 3, 3), aten.conv_transpose1d.default, [[2], [1], [1], 2, [2]]),
    "conv_transpose2d": (
        (2, 4, 5, 4),
        (4, 3, 3, 2),
        aten.conv_transpose2d.input,
        [[2, 3], [1, 0], [0, 1], 2, [2, 1]],
    ),
    "conv_transpose3d": (
        (2, 4, 2, 3, 4),
        (4, 3, 1, 2, 3),
        aten.conv_transpose3d.input,
        [[2, 1, 3], [0, 1, 2], [1, 0, 2], 2, [1, 3, 1]],
    ),
    "linear": ((2, 3, 4), (6, 4), aten.linear.default, []),
}


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", CALLS)
def test_a_layer_written_back_with_other_weights_computes_with_these(name: str, with_bias: bool) -> None:
    shape, kernel, target, options = CALLS[name]
    other, bias = doubles(*kernel, seed=1), doubles(6, seed=2) if with_bias else None
    graph = ByHand()
    node = graph.call(target, graph.input(*shape), graph.weight(doubles(*kernel)), None, *options)
    new = write_layer(graph.program, read(graph, node), other, bias)
    x = doubles(*shape, seed=3)
    [made] = evaluate(graph.returns(new), [x])
    truth = target(x, other, bias, *options)
    assert made.shape == truth.shape and float((made - truth).abs().max()) <= EXACT
    again = read(graph, new)
    assert again.kind == read(graph, node).kind and (again.bias is not None) == with_bias
    assert new.meta["val"] is node.meta["val"], "what is known of the result is not inferred again"


@pytest.mark.parametrize("change", ["weight", "input", "geometry"])
def test_the_shape_of_a_result_is_inferred_where_anything_else_changes(change: str) -> None:
    graph = ByHand()
    x, y = graph.input(2, 4, 7, 8), graph.input(2, 4, 5, 9)
    layer = read(graph, graph.call(aten.conv2d.default, x, graph.weight(doubles(3, 4, 2, 2))))
    weight = doubles(6, 4, 2, 2) if change == "weight" else doubles(3, 4, 2, 2)
    geometry = Geometry((2, 1), ((0, 0), (0, 0)), (1, 1), 1) if change == "geometry" else None
    new = write_layer(graph.program, layer, weight, None, x=y if change == "input" else None, geometry=geometry)
    shapes = {"weight": (2, 6, 6, 7), "input": (2, 3, 4, 8), "geometry": (2, 3, 3, 7)}
    assert tuple(new.meta["val"].shape) == shapes[change]


def test_a_layer_may_get_another_input_and_another_geometry() -> None:
    graph = ByHand()
    x, y = graph.input(2, 4, 7, 8), graph.input(2, 4, 7, 8)
    layer = read(graph, graph.call(aten.conv2d.default, x, graph.weight(doubles(3, 4, 2, 2))))
    geometry = Geometry((2, 1), ((1, 1), (0, 0)), (1, 2), 1)
    new = write_layer(graph.program, layer, doubles(3, 4, 2, 2), None, x=y, geometry=geometry)
    assert read(graph, new).x is y and read(graph, new).geometry == geometry
    same = write_layer(graph.program, layer, doubles(3, 4, 2, 2), None)
    assert read(graph, same).x is x and read(graph, same).geometry == layer.geometry


@pytest.mark.parametrize(
    ("module", "weight", "bias", "expected"),
    [
        ("net.conv", "net.conv.weight", "net.conv.bias", ("net.conv.weight", "net.conv.bias")),
        ("net.conv", "net.conv.weight", None, ("net.conv.weight", "net.conv.bias")),
        ("", "net.conv.weight", None, ("net.conv.weight", "net.conv.bias")),
        ("", "kernel", None, ("kernel", "conv.bias")),
        ("net", "kernel", "shift", ("kernel", "shift")),
        ("net", "kernel", None, ("kernel", "net.bias")),
    ],
)
def test_new_weights_are_named_after_the_old_ones(
    module: str, weight: str, bias: str | None, expected: tuple[str, str]
) -> None:
    graph = ByHand(torch.float64)
    x, old = graph.input(2, 4), graph.weight(doubles(3, 4).float(), weight)
    shift = graph.weight(doubles(3).float(), bias) if bias else None
    node = graph.call(aten.linear.default, x, old, shift, module=module)
    new = write_layer(graph.program, read(graph, node), doubles(3, 4), doubles(3))
    made = [graph.program.constant(n) for n in new.args[1:3]]
    assert tuple(c.origin for c in made if c) == expected
    assert [c.dtype for c in made if c] == [torch.float32] * 2, "they are emitted as the old weight was"
    assert [c.value.dtype for c in made if c] == [torch.float64] * 2


def test_a_layer_goes_where_it_is_told_and_keeps_its_module() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4), graph.weight(doubles(3, 4))
    node = graph.call(aten.linear.default, x, weight, module="here")
    place = graph.call(aten.relu.default, node, module="there")
    layer = read(graph, node)
    far = write_layer(graph.program, layer, doubles(3, 4), doubles(3), like=place)
    assert node < far < place and far.meta["module"] == "here"
    assert all(node < n < far and n.meta["module"] == "there" for n in far.all_input_nodes if n is not x)
    near = write_layer(graph.program, layer, doubles(3, 4), doubles(3))
    assert near < node and near.meta["module"] == "here"
    assert all(n < node and n.meta["module"] == "here" for n in near.all_input_nodes if n is not x)


def test_uneven_padding_is_a_pad_in_front() -> None:
    graph = ByHand()
    x, weight, bias = (graph.input(2, 4, 7, 8), graph.weight(doubles(3, 4, 2, 3)), graph.weight(doubles(3), "bias"))
    place = graph.call(aten.relu.default, x, module="there")
    uneven = Geometry((2, 1), ((2, 1), (0, 3)), (1, 2), 1)
    node = conv_call(graph.program, x, weight, bias, uneven, like=place)
    pad = node.args[0]
    assert isinstance(pad, fx.Node) and (pad.target, pad.args) == (aten.pad.default, (x, [0, 3, 2, 1]))
    assert node.args[1:] == (weight, bias, [2, 1], [0, 0], [1, 2], 1)
    assert pad < node < place and node.meta["module"] == pad.meta["module"] == "there"
    even = conv_call(graph.program, x, weight, None, Geometry((1, 1), ((1, 1), (2, 2)), (1, 1), 1), like=place)
    assert even.args == (x, weight, None, [1, 1], [1, 2], [1, 1], 1)
