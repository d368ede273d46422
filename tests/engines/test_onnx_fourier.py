"""Fourier transforms as products: the matrices against numpy, the nodes against transforms, and whole networks."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.engines.onnx.fourier import multiply_out, spectrum
from support.onnx_graphs import F32, model, node, theirs
from support.onnx_models import rewritten

DRAW = np.random.default_rng(0)
LENGTHS = (1, 2, 3, 8, 9)


def applied(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x: (given,) of complex numbers, or of real ones where the matrix has one part."""
    parts = np.stack([x.real, x.imag], -1)[:, : matrix.shape[1]]
    return np.einsum("gp,gprc->rc", parts, matrix)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("given", LENGTHS)
def test_the_matrices_are_those_of_the_transforms(length: int, given: int) -> None:
    x = DRAW.standard_normal(given) + 1j * DRAW.standard_normal(given)
    for parts, values in ((1, x.real), (2, x)):
        for inverse, expected in ((False, np.fft.fft(values, length)), (True, np.fft.ifft(values, length))):
            got = applied(spectrum(length, given, parts, inverse=inverse, half=False), values)
            np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], expected, atol=1e-13)
    got = applied(spectrum(length, given, 1, inverse=False, half=True), x.real)
    np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], np.fft.rfft(x.real, length), atol=1e-13)
    for parts, values in ((1, x.real), (2, x)):
        got = applied(spectrum(length, given, parts, inverse=True, half=True), values)
        np.testing.assert_allclose(got[:, 0], np.fft.irfft(values, length), atol=1e-13)


def typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the types that a writer of files notes, which is where sizes are read."""
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


@pytest.mark.parametrize(
    "parts, axis, more", [(1, 1, {}), (2, -2, {"inverse": 1}), (2, 2, {}), (1, -2, {"onesided": 1})]
)
@pytest.mark.parametrize("length", [None, 5, 9])
def test_a_transform_becomes_a_product(parts: int, axis: int, more: dict[str, int], length: int | None) -> None:
    constants = {"n": np.array(length or 0), "a": np.array(axis)}
    nodes = [node("DFT", ["x", "n" if length else "", "a"], **more)]
    proto = typed(model(nodes, {"x": ["batch", 6, 7, parts]}, constants=constants, opset=20))
    x = torch.from_numpy(DRAW.standard_normal((3, 6, 7, parts)).astype(F32))
    made = rewritten(proto, multiply_out)
    assert collections.Counter(n.op_type for n in made.graph.node)["DFT"] == 0
    np.testing.assert_allclose(theirs(made, [x])[0], theirs(proto, [x])[0], atol=2e-5)


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("half", [0, 1])
def test_frames_become_a_convolution(window: bool, half: int) -> None:
    constants = {"s": np.array(3), "w": DRAW.standard_normal(10).astype(F32), "n": np.array(10)}
    nodes = [node("STFT", ["x", "s", "w" if window else "", "n"], onesided=half)]
    proto = typed(model(nodes, {"x": ["batch", "time", 1]}, constants=constants, opset=17))
    x = torch.from_numpy(DRAW.standard_normal((2, 41, 1)).astype(F32))
    made = rewritten(proto, multiply_out)
    assert [n.op_type for n in made.graph.node] == ["Transpose", "Conv", "Transpose", "Reshape"]
    np.testing.assert_allclose(theirs(made, [x])[0], theirs(proto, [x])[0], atol=2e-5)


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("told", [False, True])
def test_a_transform_of_a_free_length_becomes_a_product(
    inverse: int, half: int, parts: int, axis: int, told: bool
) -> None:
    """told: whether the length is an input, else it follows from the size."""
    ports: dict[str, Any] = {"x": ["batch", "time", "more", parts]}
    if told:
        ports["n"] = (onnx.TensorProto.INT64, [])
    nodes = [node("DFT", ["x", "n" if told else "", "a"], inverse=inverse, onesided=half)]
    proto = typed(model(nodes, ports, constants={"a": np.array(axis)}, opset=20))
    made = rewritten(proto, multiply_out)
    assert not [n for n in made.graph.node if n.op_type == "DFT"]
    for sizes in ((2, 6, 7), (1, 1, 2), (3, 2, 13), (2, 16, 5)):
        x = DRAW.standard_normal((*sizes, parts)).astype(F32)
        values = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0.0)
        for length in (5, 8, sizes[axis]) if told else (None,):
            given = [torch.from_numpy(x), *([torch.tensor(length)] if told else [])]
            expected = _transformed(values, length, axis, inverse=bool(inverse), half=bool(half))
            if 0 not in expected.shape:
                np.testing.assert_allclose(theirs(made, given)[0], expected, atol=2e-6)


def _transformed(x: Any, length: int | None, axis: int, *, inverse: bool, half: bool) -> Any:
    """What numpy gives for (N, A, B), with the parts behind."""
    if inverse and half:
        wanted = 2 * (x.shape[axis] - 1) if length is None else length
        return np.fft.irfft(x, wanted, axis)[..., None] if wanted else np.zeros(0)
    if half:
        found = (
            np.fft.rfft(x.real, length, axis) if not x.imag.any() else _first_half(np.fft.fft(x, length, axis), axis)
        )
    else:
        found = (np.fft.ifft if inverse else np.fft.fft)(x, length, axis)
    return np.stack([found.real, found.imag], -1)


def _first_half(x: Any, axis: int) -> Any:
    return np.take(x, range(x.shape[axis] // 2 + 1), axis)


def test_the_matrix_of_a_free_length_is_as_exact_as_that_of_a_fixed_one() -> None:
    proto = typed(model([node("DFT", ["x"], axis=1)], {"x": ["batch", "time", 1]}, opset=17))
    x = DRAW.standard_normal((2, 1000, 1)).astype(F32)
    found = theirs(rewritten(proto, multiply_out), [torch.from_numpy(x)])[0]
    expected = np.fft.fft(x[..., 0].astype(np.float64))
    error = np.abs(found[..., 0] + 1j * found[..., 1] - expected)
    assert np.sqrt((error**2).mean() / (np.abs(expected) ** 2).mean()) < 1e-6


@pytest.mark.parametrize("sizes", [["batch", 256, 1], ["batch", 4099, 1]])
def test_long_transforms_stay(sizes: list[int | str]) -> None:
    proto = typed(model([node("DFT", ["x"], axis=1)], {"x": sizes}, opset=17))
    assert [n.op_type for n in rewritten(proto, multiply_out).graph.node] == ["DFT"]


def test_frames_with_a_window_that_is_computed_stay() -> None:
    ports = {"x": ["batch", 60, 1], "w": [10]}
    proto = typed(model([node("STFT", ["x", "s", "w"])], ports, constants={"s": np.array(3)}, opset=17))
    assert [n.op_type for n in rewritten(proto, multiply_out).graph.node] == ["STFT"]


class Filter(nn.Module):
    """A global filter: a product in the domain of frequencies, on maps of 14 by 14."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(4, 14, 8))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(self.conv(x), norm="ortho") * self.weight
        return torch.fft.irfft2(waves, s=(14, 14), norm="ortho")


class Spectrogram(nn.Module):
    """Powers of frames of 400 values, as speech models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(201, 4, 3, padding=1)
        self.register_buffer("window", torch.hann_window(400))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.stft(x, 400, 160, window=self.window, return_complex=True)
        return self.conv(waves.abs() ** 2)


@pytest.mark.parametrize("net, x", [(Filter(), torch.rand(2, 3, 14, 14)), (Spectrogram(), torch.rand(2, 1600))])
def test_networks_with_transforms_are_exported_and_read_back(net: nn.Module, x: Tensor, tmp_path: Path) -> None:
    """Both were refused before: onnxruntime's own transforms of 14 and of 400 values lose too much."""
    path = tmp_path / "net.onnx"
    reparam.export(net.eval(), x, path=path)
    assert not {"DFT", "STFT"} & {n.op_type for n in onnx.load(path).graph.node}
    assert reparam.convert(str(path)).report.evidence is not None


def test_int8_leaves_transforms_in_floats(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.manual_seed(0)
    data = [[torch.rand(2, 1600)] for _ in range(4)]
    options = reparam.ExportOptions(precision="int8", calibration=data)
    reparam.export(Spectrogram().eval(), *data[0], path=path, options=options)
    made = {o: n for n in onnx.load(path).graph.node for o in n.output}
    convs = [n for n in made.values() if n.op_type == "Conv"]
    weights = [made[n.input[1]].op_type if n.input[1] in made else "float" for n in convs]
    assert sorted(weights) == ["DequantizeLinear", "float"]


class Correlation(nn.Module):
    """Several transforms, of which each has a name and a number behind it."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.fft.rfft(x), torch.fft.rfft(x.flip(-1))
        return torch.fft.irfft(a * b, n=10) + a.abs().sum(-1, keepdim=True)


def test_transforms_beside_each_other_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    reparam.export(Correlation(), torch.rand(2, 10), path=path)
    assert [n.op_type for n in onnx.load(path).graph.node].count("MatMul") == 3


class Waves(nn.Module):
    """A product in the domain of frequencies, on maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(4, 1, 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


class Lines(nn.Module):
    """Spectra of lines of any length."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).abs() + torch.fft.ifft(torch.fft.fft(x, norm="ortho"), norm="ortho").real


@pytest.mark.parametrize(
    "net, x, dynamic",
    [
        (Waves(), torch.rand(2, 3, 14, 18), "batch,height,width"),
        (Lines(), torch.rand(2, 3, 14), "x:0=batch,x:2=length"),
    ],
)
def test_networks_with_transforms_of_free_lengths(net: nn.Module, x: Tensor, dynamic: str, tmp_path: Path) -> None:
    """Both were refused, since onnxruntime's own transforms lose too much at most lengths."""
    path = tmp_path / "net.onnx"
    reparam.export(net.eval(), x, path=path, dynamic=dynamic)
    assert "DFT" not in {n.op_type for n in onnx.load(path).graph.node}
    assert reparam.convert(str(path), x, dynamic=dynamic).report.evidence is not None
