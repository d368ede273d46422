"""Forms of ONNX nodes that engines run faster: the same values, and only where they are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.parser import parse_model
from torch import nn

from reparam.conversion import convert
from reparam.engines.onnx import model_of
from reparam.engines.onnx.cleanup import pool_globally, resize_by_factors, simplified, strip
from support.helpers import Lambda
from support.onnx_models import HEADER, kinds, rewritten, run


def mean(axes: str, shape: str = "batch,3,5,7", attributes: str = "keepdims=1") -> onnx.ModelProto:
    ones = attributes.endswith("1")
    out = ",".join("1" if ones and str(i) in axes else "n" for i in range(4)) if ones else "n,m"
    count = axes.count(",") + 1
    return parse_model(
        f"{HEADER} g (float[{shape}] x) => (float[{out}] y) <int64[{count}] axes = {{{axes}}}>"
        f"{{ y = ReduceMean<{attributes}>(x, axes) }}"
    )


@pytest.mark.parametrize("axes", ["2,3", "3,2", "-1,-2"])
def test_a_mean_over_a_map_is_a_global_pool(axes: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7), dtype=np.float32)
    before = run(mean(axes), x)
    model = rewritten(mean(axes), pool_globally)
    assert kinds(model) == ["GlobalAveragePool"]
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "model",
    [mean("1,2"), mean("2,3", attributes="keepdims=0"), mean("2"), mean("1,2,3"), mean("2,3", "batch,3,5,7,2")],
    ids=["other axes", "axes dropped", "one axis", "three axes", "five axes"],
)
def test_other_means_stay(model: onnx.ModelProto) -> None:
    assert kinds(rewritten(model, pool_globally)) == ["ReduceMean"]


def test_axes_can_come_from_a_node_and_not_from_the_caller() -> None:
    text = f"{HEADER} g (float[batch,3,5,7] x) => (float[batch,3,1,1] y)"
    inner = parse_model(f"{text} {{ axes = Constant<value = int64[2] {{2,3}}>() y = ReduceMean(x, axes) }}")
    assert "GlobalAveragePool" in kinds(rewritten(inner, pool_globally))
    default = mean("2,3")
    default.graph.input.append(onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [2]))
    assert kinds(rewritten(default, pool_globally)) == ["ReduceMean"]


def upsampled(size: tuple[int, int]) -> onnx.ModelProto:
    """The exporter's form of an interpolation of a free batch, from 3 x 4."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Upsample(size=size), nn.Conv2d(2, 2, 3))
    return model_of(convert(model, torch.rand(2, 2, 3, 4)).program)


def test_a_resize_by_whole_factors_names_them() -> None:
    model = upsampled((6, 12))
    assert kinds(model) == ["Conv", "Resize", "Conv"]
    (factors,) = (t for t in model.graph.initializer if t.name.endswith("_factors"))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(factors), [1, 1, 2, 3])


def test_a_resize_by_other_factors_keeps_its_size() -> None:
    model = upsampled((7, 12))
    assert "Concat" in kinds(model)
    assert not any(t.name.endswith("_factors") for t in model.graph.initializer)


def test_a_resize_of_a_free_size_stays() -> None:
    text = (
        f"{HEADER} g (float[batch,1,height,4] x, int64[4] size) => (float[batch,1,h,8] y)"
        '{ y = Resize<mode="nearest">(x, , , size) }'
    )
    model = rewritten(parse_model(text), resize_by_factors)
    assert list(model.graph.node[0].input) == ["x", "", "", "size"]


def test_a_resize_that_names_its_axes_stays() -> None:
    model = parse_model(
        f"{HEADER} g (float[2,1,3,4] x) => (float[2,1,6,12] y) <int64[2] size = {{6,12}}>"
        '{ y = Resize<mode="nearest", axes=[2,3]>(x, , , size) }'
    )
    assert list(rewritten(model, resize_by_factors).graph.node[0].input) == ["x", "", "", "size"]


def test_what_is_stripped() -> None:
    model = parse_model(
        f"{HEADER} g (float[2] x) => (float[2] y) <float[2] w = {{1, 2}}> {{ z = Add(x, w) y = Relu(z) }}"
    )
    graph = model.graph
    graph.value_info.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2]))
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.metadata_props.add(key="place", value="/home")
        item.doc_string = "/home"
    model.producer_version = "/home"
    assert b"/home" not in rewritten(model, strip).SerializeToString()


def test_onnxslim_is_used_where_it_leaves_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxslim")
    monkeypatch.setattr("onnxsim.simplify", lambda model: (model, True))
    text = f"{HEADER} g (float[batch,5,4] x) => (float[batch,5,4] y) {{ a = Relu(x) b = Relu(x) y = Add(a, b) }}"
    assert kinds(rewritten(parse_model(text), simplified)) == ["Relu", "Add"]


def test_a_model_that_onnxslim_does_not_take_is_left_to_onnxsim(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxslim = pytest.importorskip("onnxslim")

    def slim(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(onnxslim, "slim", slim)
    text = f"{HEADER} g (float[batch,5,4] x) => (float[batch,5,4] y) {{ a = Relu(x) b = Relu(x) y = Add(a, b) }}"
    assert kinds(rewritten(parse_model(text), simplified))[-1] == "Add"


def test_the_result_is_that_of_the_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = model_of(convert(net, torch.rand(2, 2, 6, 6)).program)
    assert {"GlobalAveragePool", "Resize"} <= set(kinds(model)) and "Shape" not in kinds(model)[:-1]
    x = torch.rand(3, 2, 6, 6)
    with torch.no_grad():
        np.testing.assert_allclose(run(rewritten(model, simplified), x.numpy()), net(x).numpy(), rtol=1e-5, atol=1e-6)


def test_the_weights_of_a_model_that_is_too_large_are_not_read() -> None:
    shape = ir.Shape([40_000, 20_000])  # more than one message can hold
    weight = ir.LazyTensor(lambda: pytest.fail("it is too large for that"), ir.DataType.FLOAT, shape, name="w")
    x, y = ir.val("x", ir.DataType.FLOAT, ["batch", 40_000]), ir.val("y", ir.DataType.FLOAT, ["batch", 20_000])
    w = ir.Value(name="w", const_value=weight)
    node = ir.node("MatMul", [x, w], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    assert simplified(model) is model
    assert list(model.graph.initializers) == ["w"]


@pytest.mark.parametrize("factors", ["8", "8,1", "1,1,8", "8,1,1"])
def test_factors_are_folded_into_a_layer_along_its_channels_alone(factors: str) -> None:
    rng = np.random.default_rng(0)
    model = parse_model(
        f"{HEADER} g (float[batch,4,8,8] x) => (float[batch,8,8,8] y) <float[8,4,1,1] w, float[{factors}] f>"
        "{ h = Conv(x, w) y = Mul(h, f) }"
    )
    for name, shape in (("w", (8, 4, 1, 1)), ("f", tuple(map(int, factors.split(","))))):
        values = rng.standard_normal(shape, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    x = rng.standard_normal((2, 4, 8, 8), dtype=np.float32)
    before = run(model, x)
    simple = ir.to_proto(simplified(ir.from_proto(model)))
    assert kinds(simple) == (["Conv"] if factors == "8,1,1" else ["Conv", "Mul"])
    np.testing.assert_allclose(run(simple, x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pad", "kernel"), [((1, 0, 1, 0), 1), ((2, 2, 2, 2), 2), ((0, 0, 3, 0), 3), ((1, 1, 1, 1), 2)]
)
def test_a_pad_as_wide_as_the_kernel_of_a_pool_stays_in_front_of_it(pad: tuple[int, ...], kernel: int) -> None:
    """No pool of ONNX has such pads."""

    def forward(m: Lambda, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(nn.functional.pad(m.c(x), pad), kernel, 2)

    torch.manual_seed(0)
    net = Lambda(forward, c=nn.Conv2d(3, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    found = run(model_of(convert(net, x).program), x.numpy())
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)
