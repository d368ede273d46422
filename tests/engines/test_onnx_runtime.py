"""ONNX files as they run: their ports, any batch, inner values, and a twin that is off by a rounding."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

import reparam
from reparam.conversion import convert
from reparam.engines import BuildOptions
from reparam.engines.formats import find_format
from reparam.engines.onnx import OnnxRunnable, model_of, write_model
from reparam.errors import InputError
from support.engine_nets import SHAPE, every, small


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_model(model_of(convert(every(), torch.randn(SHAPE)).program), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_engine_declares_its_ports_and_runs_any_batch(written: Path) -> None:
    engine = find_format("onnx").load(written)
    assert [p.as_dict() for p in engine.inputs] == [{"name": "x", "shape": ["batch", 3, 16, 16], "dtype": "float32"}]
    assert [(p.name, p.shape) for p in engine.outputs] == [("logits", ("batch", 5)), ("map", ("batch", 8, 16, 16))]
    assert engine.runtime == f"onnxruntime {ort.__version__} (CPU)"
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 16, 16)
        logits, middle = engine.run([x])
        wanted = every()(x)
        assert torch.allclose(logits, wanted["logits"], atol=1e-5)
        assert torch.allclose(middle, wanted["map"], atol=1e-5)
    with pytest.raises(InputError, match=r"net\.onnx does not run on these inputs"):
        engine.run([torch.randn(1, 3, 15, 16)])


def test_inner_values_and_twins(written: Path) -> None:
    engine = OnnxRunnable(written)
    x = torch.randn(SHAPE)
    stem = engine.trace([x])
    with torch.no_grad():
        net = every()
        wanted = net.act(net.norm(net.stem(x)))
    assert any(v.shape == wanted.shape and torch.allclose(v, wanted, atol=1e-5) for v in stem)
    twin = engine.twin(1e-3, 0)
    assert twin is not None
    gap = float((twin.run([x])[0] - engine.run([x])[0]).abs().max())
    assert 0.0 < gap < 0.1
    none = engine.twin(0.0, 0)
    assert none is not None
    assert torch.equal(none.run([x])[0], engine.run([x])[0])


def test_the_format_builds_what_it_loads(tmp_path: Path) -> None:
    format = find_format("onnx")
    told: list[tuple[str, int, int]] = []
    program = convert(small(), torch.randn(SHAPE)).program
    built = format.build(program, tmp_path / "n.onnx", BuildOptions(), lambda *step: told.append(step))
    assert built.facts == {"opset": 20, "ir_version": 10}
    assert built.side == ()
    assert told[-1] == ("build", 1, 1)
    x = torch.randn(SHAPE)
    assert torch.allclose(format.load(tmp_path / "n.onnx").run([x])[0], small()(x), atol=1e-5)


def test_the_python_api_is_exported() -> None:
    assert reparam.export.__module__ == "reparam.engines.exporting"
