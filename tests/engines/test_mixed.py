"""int8 with a gate: layers by their own errors, put back until it holds, or refused with nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.cli.render import data_lines
from reparam.engines import ExportOptions, export
from reparam.engines.onnx import OnnxRunnable, model_of, quantised
from reparam.engines.onnx.layer_errors import alone, own_errors, quantised_layers
from reparam.errors import InputError, NotEquivalentError
from support.cli_helpers import refuse, succeed
from support.digits import IMAGES, prepare_digits

X = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FACTOR = 400.0  # by which one channel is larger than the others


def net(*loud: int) -> nn.Sequential:
    """Three convolutions and a head. loud: convolutions of which one result is large; the next layer makes it small."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip
    layers = [made[0], made[2], made[4]]
    with torch.no_grad():
        for i in loud:
            first, second = layers[i], layers[i + 1]
            assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
            assert first.bias is not None
            first.weight[0] *= FACTOR
            first.bias[0] *= FACTOR
            second.weight[:, 0] /= FACTOR
    return made.eval()


def programs(*loud: int) -> tuple[Any, Any, list[list[Tensor]]]:
    model = model_of(reparam.convert(net(*loud), X[:2]).program)
    data = [[X[:8]], [X[8:16]]]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return model, quantised(copy, data), data


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    return OnnxRunnable(Path("m.onnx"), model).run([x])[0]


def test_a_layer_alone_is_as_the_quantised_network_has_it() -> None:
    model, whole, _ = programs(1)
    layers = quantised_layers(whole)
    kinds = {n.name: n.op_type for n in model.graph.node}
    assert [[kinds[n] for n in layer] for layer in layers] == [
        ["Conv", "Relu"], ["Conv", "Relu"], ["Conv", "Relu", "Reshape"], ["Gemm"],
    ]  # fmt: skip
    content = model.SerializeToString()
    ends = [run(alone(model, whole, layer), X[:4]) for layer in layers]
    assert model.SerializeToString() == content, "the model itself is left as it is"
    truth, all_of_them = run(model, X[:4]), run(whole, X[:4])
    gaps = [float((y - truth).norm()) for y in ends]
    assert all(g > 0 for g in gaps), "each of them alone changes something"
    assert max(gaps) <= 1.5 * float((all_of_them - truth).norm())
    made = alone(model, whole, layers[3])
    onnx.checker.check_model(made)
    assert [n.op_type for n in made.graph.node].count("DequantizeLinear") == 1, "its weight is rounded in place"


def test_own_errors_name_the_layers_around_the_loud_channel_first() -> None:
    model, whole, data = programs(1)
    found = own_errors(model, data)
    convs = [n.name for n in model.graph.node if n.op_type == "Conv"]
    assert {layer.nodes for layer in found} == set(quantised_layers(whole))
    errors = [layer.error for layer in found]
    assert errors == sorted(errors, reverse=True)
    assert {layer.name for layer in found[:2]} == {convs[1], convs[2]}
    assert errors[1] > 5 * errors[2]


def options(**others: Any) -> ExportOptions:
    with torch.no_grad():
        labels = net()(X).argmax(1)
    given = {"precision": "int8", "calibration": [[X[:16]]], "data": [(X, labels)], "force": True}
    return ExportOptions(**given | others)


def kept(path: Path) -> list[str]:
    found: list[str] = json.loads(path.with_name(f"{path.name}.json").read_text())["kept_in_float"]
    return found


def test_the_worst_layers_are_put_back_until_the_gate_holds(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    mixed = export(net(1), X[:2], path=path, options=options(max_drop=2.0))
    assert mixed.data is not None and mixed.data.drop is not None and mixed.data.drop <= 2.0
    model = onnx.load(path)
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert set(kept(path)) == {convs[1].name, convs[2].name}
    weights = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    assert [weights.get(n.input[1], "INT8") for n in convs] == ["INT8", "FLOAT", "FLOAT"]
    assert any("2 of 4 quantised layers are float32 again" in r.message for r in mixed.report.remarks)
    row = json.loads((tmp_path / "q.onnx.json").read_text())
    assert row["data"]["samples"] == 64 and row["data"]["drop"] == mixed.data.drop and row["precision"] == "int8"
    assert mixed.report.as_dict()["data"]["figure"] == "top-1"
    found = reparam.bench([path], data=[(X, net()(X).argmax(1))], options=reparam.BenchOptions(rounds=3, memory=False))
    assert found.models[0].score == mixed.data.after, "bench finds the same figure"


@pytest.mark.sweep
def test_openvino_gets_the_same_layers(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "q.xml"
    mixed = export(net(1), X[:2], path=path, options=options(format="openvino", max_drop=2.0))
    assert mixed.data is not None and mixed.data.holds and len(kept(path)) == 2


def test_where_every_layer_would_have_to_go_back_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotEquivalentError, match=r"top-1 drops by .* 3 of 4 layers back in float32; calibrate on more"):
        export(net(0, 1), X[:2], path=tmp_path / "q.onnx", options=options(max_drop=0.0, data=hard()))
    assert not list(tmp_path.iterdir())


def hard() -> list[tuple[Tensor, Tensor]]:
    """Samples whose two best classes nearly tie, so that any rounding tells them otherwise."""
    with torch.no_grad():
        x = torch.rand(500, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        top = net()(x).topk(2, 1).values
        x = x[(top[:, 0] - top[:, 1]).argsort()[:20]]
        return [(x, net()(x).argmax(1))]


def test_other_precisions_are_judged_and_not_mixed(tmp_path: Path) -> None:
    given = {"precision": "bf16", "calibration": None}
    with pytest.raises(NotEquivalentError, match=r"top-1 drops by .* points on a list, where 0 is allowed$"):
        export(net(), X[:2], path=tmp_path / "b.onnx", options=options(**given, data=hard(), max_drop=0.0))
    assert not (tmp_path / "b.onnx").exists()


def spread(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """A figure in units of its own: the size of each sample's outputs."""
    return outputs.abs().amax(1)


def test_a_figure_of_the_users_own_is_measured_and_gated(tmp_path: Path) -> None:
    given = {"precision": "bf16", "calibration": None, "data": [X]}
    found = export(net(), X[:2], path=tmp_path / "b.onnx", options=options(**given, metric=spread, max_drop=1.0))
    with torch.no_grad():
        truth = float(spread(net()(X), None).mean())
    assert found.data is not None and found.data.before is not None and found.data.after is not None
    assert found.data.before.own and found.data.before.value == pytest.approx(truth, rel=1e-5)
    assert found.data.drop == found.data.before.value - found.data.after.value
    (row,) = [line for line in data_lines(found.report.as_dict()["data"]) if line.startswith("on 64")]
    assert f"spread {truth:.4g} before" in row and "% before" not in row
    sign = 1.0 if found.data.drop > 0 else -1.0  # bfloat16 moves the outputs one way or the other

    def falls(outputs: Tensor, labels: Tensor | None) -> Tensor:
        return sign * spread(outputs, labels)

    with pytest.raises(NotEquivalentError, match="falls drops by"):
        export(net(), X[:2], path=tmp_path / "c.onnx", options=options(**given, metric=falls, max_drop=0.0))
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": None, "max_drop": 1.0}, "give some with data"),
        ({"data": None, "metric": spread}, "metric is of samples to judge on; give some with data"),
        ({"metric": 3}, "the metric is an int; give a function, or package.module:name"),
        ({"max_drop": -1.0}, "max_drop is -1.0; give points of 0 and more"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(net(), X[:2], path=tmp_path / "q.onnx", options=options(**given))
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_digits(tmp_path, monkeypatch, count=60)
    words = ("export", "base.pt", "--arch", "digit_nets:net", "--format", "onnx", "--precision", "int8", "--calibrate")
    shown = succeed(*words, "digits", *IMAGES, "--data", "digits", "--max-drop", "50", "--json", "r.json").stdout
    found = json.loads(Path("r.json").read_text())
    assert found["data"]["samples"] == 60 and found["data"]["before"]["name"] == "top-1"
    assert f"on 60 samples of digits: top-1 {100 * found['data']['before']['value']:.2f} % before" in shown
    row = json.loads(Path("base-fused-int8.onnx.json").read_text())
    assert row["preprocessing"]["size"] == [8, 8] and "digits" not in json.dumps(row["data"])
    message = "--labels and --max-drop are of samples to judge on; give some with --data"
    assert refuse(2, *words, "calibrate.npy", "--max-drop", "1", "-o", "q.onnx") == message
    assert np.isfinite(row["data"]["drop"])
