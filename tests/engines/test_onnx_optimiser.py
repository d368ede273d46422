"""Graphs on which the optimiser of torch's exporter fails, or of which it loses values: written without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes import PassError
from torch import Tensor, nn

import reparam
from reparam.conversion import convert
from reparam.engines.onnx import model_of


class Bounded(nn.Module):
    """Layers that read one value, each within bounds of its own: the exporter's optimiser gives all bounds one name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.low, self.high = (nn.Parameter(torch.tensor([0.5, 1.0, 1.5]) * s) for s in (-1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        bounded = [torch.minimum(torch.maximum(x, a), b) for a, b in zip(self.low, self.high, strict=True)]
        return [layer(y) for layer, y in zip(self.layers, bounded, strict=True)]


def test_a_graph_of_which_the_optimiser_loses_values_is_written(tmp_path: Path) -> None:
    net, x = Bounded().eval(), torch.randn(3, 4)
    reparam.export(net, x, path=tmp_path / "net.onnx")
    session = ort.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(None, {"x": x.numpy()}), net(x), strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-6)


class Nearly(nn.Module):
    """Divides by what may be zero, but for a number that is nearly zero; multiplies by one that is nearly one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.eps = kind, nn.Parameter(torch.tensor(1e-15))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        if self.kind == "one":
            return torch.relu(x - 0.5) * 1.000004
        return x / (x.sum(1, keepdim=True) + (self.eps if self.kind == "weight" else 1e-15))


@pytest.mark.parametrize("kind", ["number", "weight", "one"])
def test_what_is_nearly_nothing_stays(kind: str, tmp_path: Path) -> None:
    net = Nearly(kind).eval()
    reparam.export(net, torch.randn(3, 4), path=tmp_path / "net.onnx")
    session = ort.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    x = torch.tensor([[-1.0, -2.0, -1.0, -3.0], [1.0, 2.0, 0.0, 5.0]])
    (got,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, net(x).detach().numpy(), rtol=1e-6, atol=0)


def test_a_graph_on_which_the_optimiser_fails_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    export = torch.onnx.export

    def failing(*args: Any, optimize: bool, **options: Any) -> Any:
        tried.append(optimize)
        if optimize:
            raise PassError("An error occurred when running a pass")
        return export(*args, optimize=optimize, **options)

    monkeypatch.setattr(torch.onnx, "export", failing)
    model = model_of(convert(nn.Linear(4, 2), torch.randn(3, 4)).program)
    assert tried == [True, False] and [n.op_type for n in model.graph.node] == ["Gemm"]
