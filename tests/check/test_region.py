"""Regions: what belongs to one, and the smallest inputs on which it can be checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.check.region import Region, RegionShapes, find_region, small_shapes, whole_region
from reparam.errors import RuleError
from reparam.ir import Program, aten
from support.helpers import Lambda, doubles, program_of, vector

Replacement = Callable[[Program, fx.Node], fx.Node]
IMAGE = (3, 4, 20, 22)


def again(program: Program, root: fx.Node) -> fx.Node:
    """All calls of the network once more."""
    made: dict[fx.Node, fx.Node] = {}
    for node in list(program.calls()):
        made[node] = program.clone(node, made, like=root)
    return made[root]


def region_of(
    model: nn.Module, *inputs: Any, build: Replacement = again, dynamic: tuple[str, ...] = ()
) -> tuple[Program, Region]:
    """The region of replacing the last call by what `build` makes."""
    program = program_of(model.double(), *inputs, dynamic=dynamic)
    root = list(program.calls())[-1]
    with program.recording() as created:
        new = build(program, root)
    return program, find_region({root: new}, created)


def shapes_of(model: nn.Module, *inputs: Any, **options: Any) -> RegionShapes:
    return small_shapes(region_of(model, *inputs, **options)[1])


def fixed(*sizes: tuple[int, ...]) -> RegionShapes:
    return RegionShapes(sizes, False)


# ---- the smallest map --------------------------------------------------------------------------------------------


conv, deconv = partial(nn.Conv2d, 4, 4), partial(nn.ConvTranspose2d, 4, 4)


@pytest.mark.parametrize(
    "model, size",
    [
        (conv(1), (1, 1)),
        (conv(3), (4, 4)),
        (conv(3, padding=1), (4, 4)),
        (conv((3, 1)), (4, 1)),
        (conv((1, 4)), (1, 5)),
        (conv(3, dilation=(1, 2)), (4, 6)),
        (conv(3, stride=(1, 2)), (4, 5)),
        (conv(1, stride=(3, 1)), (4, 1)),
        (conv(3, padding="same"), (4, 4)),
        (nn.Sequential(conv(3), conv((3, 2))), (6, 5)),
        (nn.Sequential(conv(3, stride=(2, 1)), conv(3)), (9, 6)),
        (nn.Sequential(conv(3), conv(3, stride=2)), (7, 7)),
        (nn.Sequential(conv(2, stride=3), conv(2, stride=2)), (11, 11)),
        (nn.Sequential(conv(3), nn.ReLU(), conv(1)), (4, 4)),
        (Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(3)), (4, 4)),
        (Lambda(lambda m, x: m.a(x) + m.b(x), a=conv((5, 1), padding=(1, 0)), b=conv((3, 1))), (6, 1)),
        (Lambda(lambda m, x: m.a(m.b(x) + m.c(x)), a=conv(2), b=conv(1, stride=2), c=conv(3, 2, 1)), (7, 7)),
        (nn.AvgPool2d(2), (4, 4)),
        (nn.AvgPool2d((3, 2), 1), (4, 3)),
        (Lambda(lambda m, x: F.avg_pool2d(x, (2, 3))), (4, 6)),
        (nn.MaxPool2d(3, 2), (5, 5)),
        (nn.MaxPool2d(2, 1, dilation=(1, 3)), (3, 5)),
        (deconv(3), (6, 6)),
        (deconv(3, stride=(1, 2)), (6, 4)),
        (deconv(3, stride=2, padding=1), (6, 6)),
        (deconv(2, dilation=(1, 3)), (4, 8)),
        (deconv(2, stride=2), (4, 4)),
        (nn.Sequential(conv(1, stride=2), deconv(3)), (11, 11)),
        (Lambda(lambda m, x: F.pad(x, [1, 2, 3, 4])), (1, 1)),
        (Lambda(lambda m, x: F.pad(x, [-1, -2])), (1, 5)),
        (Lambda(lambda m, x: F.pad(x, [-1, -2, 0, -3])), (5, 5)),
        (Lambda(lambda m, x: F.pad(x, [1, -2, -4, 1])), (6, 4)),
        (Lambda(lambda m, x: m.conv(F.pad(x, [-1, -1])), conv=conv(3)), (4, 6)),
        (nn.BatchNorm2d(4).eval(), (1, 1)),
        (nn.Dropout(0.4).eval(), (1, 1)),
        (Lambda(lambda m, x: x.clone().half().float()), (1, 1)),
        (Lambda(lambda m, x: F.conv2d(x, m.k * m.k), k=vector(4, 4, 1, 1)), (1, 1)),
    ],
)
def test_a_map_shows_the_interior_and_every_border_and_no_more(model: nn.Module, size: tuple[int, int]) -> None:
    """What one value reads through all windows of a path, and a step more; of one position alone three samples."""
    batch = 3 if size == (1, 1) else 2
    assert shapes_of(model, doubles(*IMAGE)) == RegionShapes(((batch, 4, *size),), True)


def test_where_nothing_is_left_one_side_decides() -> None:
    found = shapes_of(conv(3, padding=1), doubles(*IMAGE), build=lambda program, node: node.all_input_nodes[0])
    assert found == RegionShapes(((2, 4, 4, 4),), True)


def test_no_map_is_larger_than_the_traced_one() -> None:
    assert shapes_of(conv(3, padding=1), doubles(3, 4, 20, 3)) == RegionShapes(((2, 4, 4, 3),), True)
    assert shapes_of(conv(3, padding=1), doubles(3, 4, 3, 20)) == RegionShapes(((2, 4, 3, 4),), True)


@pytest.mark.parametrize("old, new", [(3, 5), (5, 3)])
def test_the_larger_of_both_sides_decides(old: int, new: int) -> None:
    def build(program: Program, node: fx.Node) -> fx.Node:
        weight = program.weight(doubles(4, 4, new, new), "w", like=node)
        return program.call(aten.conv2d.default, (node.args[0], weight, None, [1, 1], [new // 2] * 2), like=node)

    found = shapes_of(conv(old, padding=old // 2), doubles(*IMAGE), build=build)
    assert found == RegionShapes(((2, 4, 6, 6),), True)


@pytest.mark.parametrize("rank, size", [(1, (4,)), (3, (4, 4, 4))])
def test_any_number_of_axes(rank: int, size: tuple[int, ...]) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[rank](4, 4, 3)
    assert shapes_of(layer, doubles(3, 4, *[9] * rank)) == RegionShapes(((2, 4, *size),), True)


@pytest.mark.parametrize(
    "model, size",
    [
        (nn.ConvTranspose1d(4, 4, 3, 2, 1), 6),
        (nn.AvgPool1d(2), 4),
        (Lambda(lambda m, x: F.avg_pool1d(x, 2)), 4),
        (Lambda(lambda m, x: F.avg_pool1d(x, 2, ceil_mode=True)), 5),
        (nn.MaxPool1d(3, 2), 5),
    ],
)
def test_one_axis_has_one_number_for_each_argument(model: nn.Module, size: int) -> None:
    assert shapes_of(model, doubles(3, 4, 21)).sizes == ((2, 4, size),)


def test_every_input_keeps_its_channels() -> None:
    model = Lambda(lambda m, x, y: torch.cat([x, y], 1) * 2)
    found = shapes_of(model, doubles(*IMAGE), doubles(3, 2, 20, 22))
    assert found == RegionShapes(((3, 4, 1, 1), (3, 2, 1, 1)), True)


# ---- parity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, size", [(20, 4), (21, 5), (3, 3)])
def test_a_pool_that_is_cut_off_keeps_the_remainder_of_the_traced_size(height: int, size: int) -> None:
    pool = nn.AvgPool2d(2, ceil_mode=True)
    assert shapes_of(pool, doubles(3, 4, height, 20)) == RegionShapes(((2, 4, size, 4),), True, parity=True)


def test_the_remainder_is_that_of_all_strides_multiplied() -> None:
    """Windows of 3*2 positions, of which 10 are needed: 22 leaves 4, and so does 10; 25 leaves 1, and so does 13."""
    model = nn.Sequential(conv(1, stride=3), nn.AvgPool2d(2, 2, ceil_mode=True))
    assert shapes_of(model, doubles(3, 4, 22, 25)) == RegionShapes(((2, 4, 10, 13),), True, parity=True)


def test_without_a_pool_that_is_cut_off_there_is_no_remainder() -> None:
    for model in (conv(3, stride=2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True)):
        assert not shapes_of(model, doubles(*IMAGE)).parity


# ---- regions whose sizes are fixed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.softmax(x, 1) * 2,
        lambda m, x: x + m.map,
        lambda m, x: x + m.tall,
        lambda m, x: x * m.rows,
        lambda m, x: x * m.map,
        lambda m, x: x / m.map,
        lambda m, x: x - m.map,
        lambda m, x: torch.cat([x, m.maps], 1),
        lambda m, x: x.clamp(min=m.map),
        lambda m, x: torch.cat([x, x], 0),
        lambda m, x: torch.cat([x, x], -4),
        lambda m, x: x.flatten(1) * 2,
        lambda m, x: x.int().double() * 2,
        lambda m, x: m.layer(m.conv(x)),
        lambda m, x: F.layer_norm(m.conv(x), [6]),
        lambda m, x: F.layer_norm(m.layer(x), [5, 6]),
    ],
    ids=[
        "softmax", "sum", "sum with a column", "a number for each sample", "product", "quotient", "difference",
        "concatenation", "limit", "batches behind one another", "the same, counted from the end", "flatten",
        "whole numbers", "two kinds", "a norm of rows of maps", "a norm of two axes",
    ],
)  # fmt: skip
def test_what_depends_on_the_traced_size_is_checked_there(forward: Any) -> None:
    model = Lambda(
        forward,
        map=vector(1, 4, 5, 6),
        maps=vector(3, 4, 5, 6),
        tall=vector(1, 4, 5, 1),
        rows=vector(3, 1, 1, 1),
        layer=nn.Linear(6, 6),
        conv=nn.Conv2d(4, 4, 1),
    )
    assert shapes_of(model, doubles(3, 4, 5, 6)) == fixed((3, 4, 5, 6))


def test_two_positions_are_a_map_already() -> None:
    model = Lambda(lambda m, x: x + m.map, map=vector(1, 4, 2, 1))
    assert shapes_of(model, doubles(3, 4, 2, 1)) == fixed((3, 4, 2, 1))


def test_a_constant_along_the_channels_ties_nothing_to_a_size() -> None:
    model = Lambda(lambda m, x: x * m.w + m.w, w=vector(1, 4, 1, 1))
    assert shapes_of(model, doubles(*IMAGE)) == RegionShapes(((3, 4, 1, 1),), True)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 6)])
def test_a_number_for_each_sample_ties_the_batch_of_maps(shape: tuple[int, ...]) -> None:
    model = Lambda(lambda m, x: x * m.w, w=vector(2, *[1] * (len(shape) - 1)))
    assert shapes_of(model, doubles(*shape)) == RegionShapes((shape,), len(shape) == 2)


@pytest.mark.parametrize("other", [(3, 4, 5, 1), (3, 4, 5), (1, 4, 1, 1)])
def test_inputs_of_different_sizes_are_checked_as_they_are(other: tuple[int, ...]) -> None:
    model = Lambda(lambda m, x, y: x + y.reshape(3, 4, 5, 1) if y.dim() == 3 else x + y)
    _, region = region_of(model, doubles(3, 4, 5, 6), doubles(*other))
    assert {n.name for n in region.inputs} == {"inputs_0", "inputs_1"}
    assert small_shapes(region) == fixed(*((3, 4, 5, 6) if n.name == "inputs_0" else other for n in region.inputs))


def test_an_input_of_integers_is_checked_as_it_is() -> None:
    model = Lambda(lambda m, x, k: x * k)
    found = shapes_of(model, doubles(3, 4, 5, 6), torch.ones(3, 4, 5, 6, dtype=torch.int64))
    assert found == fixed((3, 4, 5, 6), (3, 4, 5, 6))


# ---- vectors and rows --------------------------------------------------------------------------------------------


def test_a_matrix_is_free_and_keeps_its_size_and_a_vector_is_not_free() -> None:
    double = Lambda(lambda m, x: x * 2)
    assert shapes_of(double, doubles(3, 4)) == RegionShapes(((3, 4),), True)
    assert shapes_of(double, doubles(4)) == fixed((4,))


@pytest.mark.parametrize("lead", [(3,), (2, 5), (2, 3, 5)])
def test_linear_layers_are_checked_on_two_rows(lead: tuple[int, ...]) -> None:
    model = Lambda(
        lambda m, x: F.relu(m.a(F.dropout(x, 0.3, False))) * m.w - m.a(x).half() / 2 + 1, a=nn.Linear(4, 5), w=vector(5)
    )
    assert shapes_of(model, doubles(*lead, 4)) == RegionShapes(((2, 4),), True)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False)])
@pytest.mark.parametrize("linear", [True, False])
def test_norms_of_rows_are_checked_on_more_of_them(norm: nn.Module, linear: bool) -> None:
    model = nn.Sequential(norm, nn.Linear(4, 5)) if linear else norm
    assert shapes_of(model, doubles(2, 3, 5, 4)) == RegionShapes(((64, 4),), True)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x) * m.table,
        lambda m, x: torch.cat([m.a(x), m.a(x)], 0),
        lambda m, x: F.batch_norm(m.a(x), m.w, m.w * m.w),
    ],
    ids=["a constant of rows", "rows side by side", "columns of channels"],
)
def test_what_tells_rows_apart_is_checked_as_it_is(forward: Any) -> None:
    model = Lambda(forward, a=nn.Linear(4, 5), table=vector(3, 5), w=vector(5))
    assert shapes_of(model, doubles(3, 4)) == fixed((3, 4))


# ---- what belongs to a region ------------------------------------------------------------------------------------


def names(nodes: Any) -> list[str]:
    return [n.name for n in nodes]


def test_a_region_reaches_from_what_is_read_to_what_is_replaced() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()

    def build(program: Program, node: fx.Node) -> fx.Node:
        [tanh] = [n for n in program.calls() if n.target is aten.tanh.default]
        weight = program.weight(doubles(4, 4, 1, 1), "w", like=node)
        return program.call(aten.conv2d.default, (tanh, weight), like=node)

    program, region = region_of(model, doubles(*IMAGE), build=build)
    assert names(region.inputs) == ["tanh"]
    assert [n.op for n in region.old].count("get_attr") == 6
    assert [n.name for n in region.old if n.op != "get_attr"] == ["conv2d", "batch_norm"]
    assert [n.op for n in region.new] == ["get_attr", "call_function"]
    assert region.outputs == ((region.old[-1], region.new[-1]),)
    assert region.old[-1] is next(n for n in program.calls() if n.target is aten.batch_norm.default)


def test_a_value_that_takes_the_place_of_another_is_an_input() -> None:
    _, region = region_of(nn.Sequential(nn.Tanh(), nn.ReLU()), doubles(3, 4), build=lambda p, n: n.all_input_nodes[0])
    assert names(region.inputs) == ["tanh"] and not region.new
    assert names(region.old) == ["relu"]


def test_a_weight_that_takes_the_place_of_a_value_is_no_input() -> None:
    model = Lambda(lambda m, x: torch.tanh(m.w), w=vector(4))
    program, region = region_of(model, doubles(3, 4), build=lambda p, n: p.weight(doubles(4), "t", like=n))
    assert not region.inputs and [n.op for n in region.new] == ["get_attr"]
    assert len(list(program.calls())) == 1


def test_a_weight_of_the_network_that_takes_the_place_of_a_value_is_no_input() -> None:
    model = Lambda(lambda m, x: torch.tanh(m.w) + 0 * m.w, w=vector(4))
    program = program_of(model.double(), doubles(3, 4))
    [tanh] = [n for n in program.calls() if n.target is aten.tanh.default]
    region = find_region({tanh: tanh.all_input_nodes[0]}, [])
    assert not region.inputs and [n.op for n in region.new] == ["get_attr"]


def test_a_fill_before_the_region_is_none_of_its_business() -> None:
    model = Lambda(lambda m, x, y: F.relu(torch.tanh(x + torch.zeros_like(torch.sin(y)))))
    _, region = region_of(
        model,
        doubles(3, 4),
        doubles(3, 4, seed=2),
        build=lambda p, n: p.call(aten.clamp_min.default, (n.args[0], 0.0), like=n),
        dynamic=("batch",),
    )
    assert names(region.inputs) == ["tanh"]


def test_sizes_are_inputs_behind_all_others() -> None:
    model = Lambda(lambda m, x, y: (x + y).reshape(x.shape[0] * 4, 5))
    program, region = region_of(model, doubles(3, 4, 5), doubles(3, 4, 5, seed=2), dynamic=("batch",))
    tensors = [n for n in region.inputs if isinstance(n.meta["val"], Tensor)]
    sizes = [n for n in region.inputs if n not in tensors]
    assert sizes and list(region.inputs) == tensors + sizes
    assert tensors == program.placeholders
    assert small_shapes(region) == fixed((3, 4, 5), (3, 4, 5), *[()] * len(sizes))


def test_dropping_an_input_is_named() -> None:
    model = Lambda(lambda m, x, y: torch.tanh(x) + y)

    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.clone.default, (node.args[0],), like=node)

    message = r"the old value depends on 'inputs_1', the new one does not"
    with pytest.raises(RuleError, match=message):
        region_of(model, doubles(3, 4), doubles(3, 4, seed=2), build=build)


@pytest.mark.parametrize("fill", [torch.zeros_like, torch.ones_like], ids=["zeros", "ones"])
def test_of_what_a_fill_is_like_only_the_shape_is_read(fill: Any) -> None:
    """So dropping it drops no input: the value that it is like becomes one, whatever it was computed from."""
    model = Lambda(lambda m, x, y: x * 2 + fill(torch.tanh(y)))

    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.mul.Tensor, (program.placeholders[0], 2), like=node)

    program, region = region_of(model, doubles(3, 4), doubles(3, 4, seed=2), build=build, dynamic=("batch",))
    assert names(region.inputs) == [program.placeholders[0].name, "tanh"]
    assert "tanh" not in names(region.old)


def test_a_fill_like_a_value_of_the_region_itself_adds_no_input() -> None:
    model = Lambda(lambda m, x: x * 2 + torch.zeros_like(torch.tanh(x)))

    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.mul.Tensor, (program.placeholders[0], 2), like=node)

    program, region = region_of(model, doubles(3, 4), build=build, dynamic=("batch",))
    assert region.inputs == (program.placeholders[0],)
    assert "tanh" in names(region.old)


def test_a_whole_region_does_without_inputs_and_prices_what_only_they_need() -> None:
    """Sizes and fills are part of what goes; inputs of the network, what stays in use and weights are not."""
    model = Lambda(lambda m, x, y: torch.tanh(x) + y.sin().reshape(y.shape[0], 4) + torch.zeros_like(y.cos()))
    program = program_of(model, doubles(3, 4), doubles(3, 4, seed=2), dynamic=("batch",))
    root = list(program.calls())[-1]
    [tanh] = [n for n in program.calls() if n.target is aten.tanh.default]
    weight = program.weight(torch.ones(1, 4), "weight", dtype=torch.float64, trainable=False, like=root)
    with program.recording() as created:
        new = program.call(aten.add.Tensor, (tanh, weight), like=root)
    region = whole_region({root: new}, created)
    assert region.inputs == (tanh,)
    assert region.new == (weight, new)
    assert {"sin", "cos", "zeros_like"} <= set(names(region.old))
    assert any("sym_size" in n for n in names(region.old))
    assert not {tanh, *program.placeholders} & set(region.old)
    assert region.outputs == ((root, new),)
