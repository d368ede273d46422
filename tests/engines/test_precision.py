"""Networks that are bfloat16 in parts: in ONNX these are float32, with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ExportOptions
from reparam.engines.formats import find_format
from reparam.engines.precision import without_bfloat16_parts
from support.helpers import Lambda

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
LOW = torch.bfloat16


def _last(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.low(m.conv(x).relu().to(LOW))
    return y


def _inside(m: Any, x: Tensor) -> Tensor:
    return _last(m, x).float()


def _first(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.other(m.low(x.to(LOW)).float())
    return y


def _of_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", LOW):
        y: Tensor = m.wide(m.conv(x).relu())
    return y


def _an_input(m: Any, x: Tensor, low: Tensor) -> Tensor:
    y: Tensor = m.conv(x) + m.wide(m.conv(low.float()).relu()).mean()
    return y


def network(forward: Any) -> nn.Module:
    torch.manual_seed(0)
    first = forward is _first
    layers = {"low": nn.Conv2d(3 if first else 8, 4, 1).to(LOW), "wide": nn.Conv2d(8, 4, 1)}
    return Lambda(forward, conv=nn.Conv2d(3, 8, 3, padding=1), other=nn.Conv2d(4, 5, 3), **layers).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("forward", [_last, _inside, _first, _of_autocast])
def test_bfloat16_parts_are_float32_in_onnx(forward: Any, precision: str, tmp_path: Path) -> None:
    path, net = tmp_path / "net.onnx", network(forward)
    made = reparam.export(net, X, path=path, options=ExportOptions(precision=precision))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    kinds = {t.data_type for t in model.graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert onnx.TensorProto.BFLOAT16 not in kinds
    assert kinds == {onnx.TensorProto.FLOAT} or precision == "fp16"
    assert "computed in float32" not in made.check.runtime, "the file itself ran, and not a copy of it"
    manifest = json.loads((tmp_path / "net.onnx.json").read_text())
    assert (manifest["precision"], manifest["outputs"][0]["dtype"]) == (precision, "float32")
    (found,) = find_format("onnx").load(path).run([X])
    torch.testing.assert_close(found, net(X).float(), rtol=0.02, atol=0.02)
    assert reparam.verify(net, path, X).equivalent or precision == "fp16"


def test_weights_stay_what_they_are(tmp_path: Path) -> None:
    net = network(_inside)
    reparam.export(net, X, path=tmp_path / "net.onnx")
    stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in _weights(tmp_path / "net.onnx")}
    assert torch.equal(stored["low.weight"], net.get_parameter("low.weight").float())


def _weights(path: Path) -> Any:
    return onnx.load(path).graph.initializer


def test_an_input_in_bfloat16_beside_one_in_float32(tmp_path: Path) -> None:
    reparam.export(network(_an_input), X, X.to(LOW), path=tmp_path / "net.onnx")
    engine = find_format("onnx").load(tmp_path / "net.onnx")
    assert [p.dtype for p in engine.inputs] == ["float32", "float32"]


def test_a_network_in_bfloat16_and_one_without_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    for dtype in (torch.float32, LOW):
        program = reparam.convert(net, X, dtype=dtype).program
        assert without_bfloat16_parts(program) is program
    mixed = reparam.convert(network(_last), X).program
    before = {n: c.dtype for n, c in mixed.constants.items()}
    wide = without_bfloat16_parts(mixed)
    assert {n: c.dtype for n, c in mixed.constants.items()} == before
    assert {c.dtype for c in wide.constants.values()} == {torch.float32}
    wide.verify()
