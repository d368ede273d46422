"""What ONNX has for fixed sizes alone: another exact form for free ones, or a refusal that names the layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from support.choice import mostly_in_sweeps

onnxruntime = pytest.importorskip("onnxruntime")
FREE = ("batch", "height", "width")


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


@pytest.mark.parametrize(("size",), mostly_in_sweeps([(3,), ((2, 5),), ((None, 4),)], ((2, 5),)))
def test_adaptive_average_of_free_sizes(size: object, tmp_path: Path) -> None:
    model = Pooled(nn.AdaptiveAvgPool2d(size)).eval()  # type: ignore[arg-type]
    path = tmp_path / "net.onnx"
    reparam.export(model, torch.rand(2, 3, 12, 11), path=path, dynamic=FREE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for shape in ((1, 3, 9, 17), (3, 3, 14, 8)):
        x = torch.rand(shape)
        (got,) = session.run(None, {name: x.numpy()})
        np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [nn.AdaptiveMaxPool2d(3), nn.AdaptiveMaxPool2d((4, None)), nn.AdaptiveMaxPool2d(1)])
def test_adaptive_max_pool_of_a_fixed_size(pool: nn.Module, tmp_path: Path) -> None:
    model, path = Pooled(pool).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.rand(2, 3, 12, 11), path=path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 12, 11)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [nn.AdaptiveMaxPool2d(3), nn.AdaptiveMaxPool2d((1, 5)), nn.AdaptiveMaxPool2d(1)])
def test_adaptive_max_pool_of_free_sizes(pool: nn.Module, tmp_path: Path) -> None:
    model, path = Pooled(pool).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.rand(2, 3, 12, 11), path=path, dynamic=FREE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 3, 4), (2, 3, 12, 11), (3, 3, 20, 9), (1, 3, 8, 33)):
        x = torch.randn(shape)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class Parted(nn.Module):
    """Two inputs as one batch, which is taken apart again, as networks for optical flow do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3, padding=1), how

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y = self.conv(torch.cat([a, b]))
        if self.how == "split":
            first, second = y.split(a.shape[0])
        elif self.how == "height":
            first, second = y.chunk(2, -2)
        else:
            first, second = y.chunk(2)
        return first * second


@pytest.mark.parametrize("how", ["batch", "height", "split"])
def test_parts_of_a_free_axis(how: str, tmp_path: Path) -> None:
    model, path = Parted(how).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.rand(4, 3, 8, 6), torch.rand(4, 3, 8, 6), path=path, dynamic=FREE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 8, 7), (5, 3, 12, 4)):
        pair = torch.rand(2, *shape)
        (got,) = session.run(None, {p.name: x.numpy() for p, x in zip(session.get_inputs(), pair, strict=True)})
        np.testing.assert_allclose(got, model(*pair).detach().numpy(), rtol=1e-4, atol=1e-5)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(torch.relu(self.down(x)), output_size=x.shape[-2:]))


def test_transposed_convolution_to_the_size_of_the_input() -> None:
    model = Decoder().eval()
    done = reparam.convert(model, torch.rand(2, 3, 9, 12), dynamic=FREE)
    assert done.report.after.norms == 0
    for shape in ((1, 3, 8, 8), (2, 3, 7, 12)):
        x = torch.rand(shape)
        torch.testing.assert_close(done.module(x), model(x))


class OwnKernels(nn.Module):
    """A convolution whose kernel is another for each sample: all of them in one call, a group each."""

    def __init__(self, function: Any, taps: Sequence[int], *, bias: bool = False, groups: int = 1, **how: Any) -> None:
        super().__init__()
        self.function, self.taps, self.groups, self.how = function, taps, groups, how
        self.kernels = nn.Linear(4, 6 * (4 // groups) * math.prod(taps))
        self.biases = nn.Linear(4, 6) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(2)
        weight = self.kernels(means).reshape(x.shape[0] * 6, 4 // self.groups, *self.taps)
        bias = None if self.biases is None else self.biases(means).reshape(-1)
        together = x.reshape(1, -1, *x.shape[2:])
        y: Tensor = self.function(together, weight, bias, groups=x.shape[0] * self.groups, **self.how)
        return y.reshape(x.shape[0], 6, *y.shape[2:])


class OwnTransposedKernels(nn.Module):
    """ONNX has no form of this one in a free number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Linear(3, 3 * 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernels(x.mean((2, 3))).view(-1, 4, 1, 1)
        return F.conv_transpose2d(x.reshape(1, -1, *x.shape[2:]), weight, groups=x.shape[0]).unflatten(1, (-1, 4))[0]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (OwnKernels(F.conv2d, (3, 3), padding=1), (4, 9, 11)),
        (OwnKernels(F.conv2d, (2, 3), stride=(2, 3), padding=(0, 2), dilation=(3, 1), bias=True), (4, 9, 11)),
        (OwnKernels(F.conv2d, (1, 1), groups=2, bias=True), (4, 9, 11)),
        (OwnKernels(F.conv1d, (4,), stride=3, dilation=2, groups=2), (4, 17)),
        (OwnKernels(F.conv3d, (1, 2, 2), padding=1, stride=2), (4, 4, 5, 6)),
    ],
    ids=["padded", "strides and dilations", "groups", "1-D", "3-D"],
)
def test_kernels_of_each_sample_are_products(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    dynamic = (*(f"x:{i}=s{i}" for i in range(2, len(shape) + 1)), "batch")
    found = reparam.export(model.eval(), torch.rand(2, *shape), path=tmp_path / "net.onnx", dynamic=dynamic)
    assert found.check.verdict == "equivalent" and len(found.check.shapes) > 5
    assert "Conv" not in {n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            OwnTransposedKernels(),
            r"of the conv_transpose2d of .*, whose number of groups .*; fix the sizes \(dynamic none\)",
        ),
        (Decoder(), r"ONNX has no form of the conv_transpose2d of 'up', whose output_padding depends on a free size"),
        (
            Pooled(nn.AdaptiveMaxPool2d(3, return_indices=True)),
            r"ONNX has no form of the adaptive_max_pool2d to 3x3 of 'pool' with its positions for free sizes",
        ),
    ],
    ids=["groups", "output size", "adaptive maximum"],
)
def test_layer_without_a_form_is_named(model: nn.Module, told: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(InputError, match=told):
        reparam.export(model.eval(), torch.rand(2, 3, 12, 11), path=path, dynamic=FREE)
    assert not path.exists()
