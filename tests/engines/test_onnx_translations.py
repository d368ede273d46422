"""torch's exporter does for a graph what the graph needs, gives the same files as by itself, and is left as it was."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from reparam.conversion import convert
from reparam.engines.onnx import model_of, translations
from reparam.engines.onnx.translations import only_what_is_needed


def network(pool: int) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(4 * pool * pool, 2)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch's exporter does anew, as it does it."""
    done: list[str] = []
    read, decompose = vars(ONNXRegistry)["from_torchlib"].__func__, _fx_passes.decompose_with_registry

    def reading(cls: type, *args: Any, **options: Any) -> Any:
        done.append("read")
        return read(cls, *args, **options)

    def tracing(*args: Any, **options: Any) -> Any:
        done.append("traced")
        return decompose(*args, **options)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(reading))
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", tracing)
    monkeypatch.setattr(translations, "_tables", {})
    return done


def test_the_table_is_read_once_and_only_graphs_with_other_operators_are_traced_again(work: list[str]) -> None:
    plain = convert(network(1), torch.randn(2, 3, 12, 12)).program
    for _ in range(2):
        model_of(plain)
    assert work == ["read"]
    model_of(convert(network(2), torch.randn(2, 3, 12, 12)).program)
    assert work == ["read", "traced"]


def test_the_graph_is_what_torch_writes_by_itself(work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = convert(network(1), torch.randn(2, 3, 12, 12)).program

    x = torch.randn(3, 3, 12, 12).numpy()

    def told(model: onnx.ModelProto) -> list[Any]:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        numbers = [y.tolist() for y in session.run(None, {"input": x})]
        return [numbers, *((n.op_type, n.name) for n in model.graph.node)]

    ours = told(model_of(program))
    monkeypatch.setattr(translations, "_decomposed", lambda exported, table, decompose: decompose(exported, table))
    assert told(model_of(program)) == ours and work == ["read", "traced"]


def test_torch_is_left_as_it_was() -> None:
    def state() -> tuple[Any, Any]:
        return vars(ONNXRegistry)["from_torchlib"], _fx_passes.decompose_with_registry

    before = state()
    with pytest.raises(KeyError), only_what_is_needed():
        assert state() != before
        raise KeyError
    assert state() == before
