"""Forms of ONNX nodes that engines run faster: the same values, and only where they are the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from torch import nn

from reparam.conversion import convert
from reparam.engines.onnx import model_of
from reparam.engines.onnx.cleanup import pool_globally, resize_by_factors, simplified
from support.onnx_models import HEADER, kinds, run


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
    model = mean(axes)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7), dtype=np.float32)
    before = run(model, x)
    pool_globally(model)
    assert kinds(model) == ["GlobalAveragePool"]
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "model",
    [mean("1,2"), mean("2,3", attributes="keepdims=0"), mean("2"), mean("1,2,3"), mean("2,3", "batch,3,5,7,2")],
    ids=["other axes", "axes dropped", "one axis", "three axes", "five axes"],
)
def test_other_means_stay(model: onnx.ModelProto) -> None:
    pool_globally(model)
    assert kinds(model) == ["ReduceMean"]


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
    model = parse_model(text)
    resize_by_factors(model)
    assert list(model.graph.node[0].input) == ["x", "", "", "size"]


def test_onnxslim_is_used_where_it_leaves_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxslim")
    monkeypatch.setattr("onnxsim.simplify", lambda model: (model, True))
    text = f"{HEADER} g (float[batch,5,4] x) => (float[batch,5,4] y) {{ a = Relu(x) b = Relu(x) y = Add(a, b) }}"
    assert kinds(simplified(parse_model(text))) == ["Relu", "Add"]


def test_the_result_is_that_of_the_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = model_of(convert(net, torch.rand(2, 2, 6, 6)).program)
    assert {"GlobalAveragePool", "Resize"} <= set(kinds(model)) and "Shape" not in kinds(model)[:-1]
    x = torch.rand(3, 2, 6, 6)
    with torch.no_grad():
        np.testing.assert_allclose(run(simplified(model), x.numpy()), net(x).numpy(), rtol=1e-5, atol=1e-6)
