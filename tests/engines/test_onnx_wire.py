"""ONNX files without their weights in memory: the bytes that protobuf writes, the checks of a file read whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from reparam import convert
from reparam.engines.onnx import OnnxRunnable, cleanup, stamp_model, storage, write_model
from reparam.engines.onnx.graph import graph_of, model_of
from reparam.engines.onnx.values import untyped
from reparam.errors import InputError
from reparam.onnx_input import read_file, read_model, reading, wire
from support.choice import mostly_in_sweeps

KIB = 1024


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 24), nn.Linear(24, 5)).eval()


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one KiB are large, and so is every file."""
    monkeypatch.setattr(wire, "LARGE", KIB)
    monkeypatch.setattr(storage, "LARGE_FILE", 1)
    monkeypatch.setattr(reading, "LARGE_FILE", 1)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return graph_of(convert(network(), torch.randn(2, 3, 8, 8)).program)


def written(found: ir.Model) -> bytes:
    file = io.BytesIO()
    wire.write_from_where_it_lies(found, file)
    return file.getvalue()


@pytest.mark.usefixtures("low")
def test_the_bytes_are_those_of_protobuf(model: ir.Model, tmp_path: Path) -> None:
    whole = ir.to_proto(untyped(model)).SerializeToString(deterministic=True)
    assert written(model) == whole
    assert written(model) == whole  # the model is as it was
    write_model(model, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == whole


@pytest.mark.usefixtures("low")
def test_an_outline_has_all_but_the_values_of_large_weights(model: ir.Model, tmp_path: Path) -> None:
    write_model(model, tmp_path / "a.onnx")
    found = read_file(tmp_path / "a.onnx", weights=False)
    whole = read_model(tmp_path / "a.onnx")
    assert found.content is None
    assert found.model.graph.node == whole.graph.node
    assert found.model.graph.input == whole.graph.input
    large = [t for t in whole.graph.initializer if len(t.raw_data) >= KIB]
    left = {t.name: t for t in found.model.graph.initializer}
    assert len(large) >= 2
    for tensor in whole.graph.initializer:
        other = left[tensor.name]
        assert (list(other.dims), other.data_type) == (list(tensor.dims), tensor.data_type)
        assert other.raw_data == (b"" if tensor in large else tensor.raw_data)


@pytest.mark.usefixtures("low")
def test_a_large_file_runs_as_it_does_when_it_is_read_whole(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(model, tmp_path / "a.onnx")
    x = torch.randn(3, 3, 8, 8)
    mapped = OnnxRunnable(tmp_path / "a.onnx")
    monkeypatch.setattr(reading, "LARGE_FILE", 1 << 30)
    whole = OnnxRunnable(tmp_path / "a.onnx")
    assert (mapped.inputs, mapped.outputs, mapped.precision) == (whole.inputs, whole.outputs, whole.precision)
    assert torch.equal(mapped.run([x])[0], whole.run([x])[0])
    assert len(mapped.trace([x])) == len(whole.trace([x]))


@pytest.mark.usefixtures("low")
def test_a_file_that_changes_while_it_is_loaded_is_refused(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reparam.engines.onnx import runtime

    path = tmp_path / "a.onnx"
    write_model(model, path)
    read = runtime.read_file

    def replaced(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return found

    monkeypatch.setattr(runtime, "read_file", replaced)
    with pytest.raises(InputError, match="has changed while it was loaded"):
        OnnxRunnable(path)


def one_weight(values: np.ndarray[Any, Any], **changed: Any) -> bytes:
    """A model of one product; `changed` are fields of its weight."""
    weight = numpy_helper.from_array(values, "w")
    for name, value in changed.items():
        if name == "dims":
            del weight.dims[:]
            weight.dims.extend(value)
        else:
            setattr(weight, name, value)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 32]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    found: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return found


SQUARE = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("dims", [[32, 33], [31, 32], [-32, -32], [2**62, 2**62]])
def test_a_shape_that_has_not_as_many_values_is_refused(dims: list[int], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(one_weight(SQUARE, dims=dims))
    with pytest.raises(InputError, match="'w' holds 4096 of"):
        OnnxRunnable(tmp_path / "a.onnx")


@pytest.mark.usefixtures("low")
def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    whole = one_weight(SQUARE)
    for length in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.onnx").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged or no ONNX model"):
            OnnxRunnable(tmp_path / "a.onnx")


@pytest.mark.usefixtures("low")
def test_the_last_of_several_values_is_the_one_that_counts(tmp_path: Path) -> None:
    """As it is for protobuf: a first row of the right length does not hide a second of another."""
    weight = numpy_helper.from_array(SQUARE, "w").SerializeToString()
    twice = weight + wire._head(wire.RAW, 2048) + bytes(2048)
    assert len(TensorProto.FromString(twice).raw_data) == 2048
    graph = wire._head(wire.WEIGHT, len(twice)) + twice
    content = one_weight(SQUARE[:1]) + wire._head(wire.GRAPH, len(graph)) + graph
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match="'w' holds 2048 of 4096"):
        read_file(tmp_path / "a.onnx", weights=False)


@pytest.mark.parametrize("content", [b"\x3b", b"\x38" + b"\xff" * 11, b"\x00\x01", b"\x3a\x05\x00"])
def test_what_is_no_message_is_told(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"form|long|ends"):
        list(wire._fields(io.BytesIO(content), len(content)))


@pytest.mark.usefixtures("low")
def test_metadata_is_put_behind_the_model(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are those of a model that was read and written whole."""
    facts = {"format": "onnx", "inputs": [{"name": "x"}]}
    for name in ("short", "long"):
        write_model(model, tmp_path / name)
    stamp_model(tmp_path / "short", facts)
    monkeypatch.setattr(reading, "LARGE_FILE", 1 << 30)
    stamp_model(tmp_path / "long", facts)
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()
    assert {p.key for p in onnx.load(tmp_path / "short").metadata_props} == {"reparam.format", "reparam.inputs"}
    monkeypatch.setattr(storage, "LARGE_FILE", 1)
    monkeypatch.setattr(reading, "LARGE_FILE", 1)
    stamp_model(tmp_path / "short", {"format": "other"})  # where there is metadata already it is replaced
    assert [p.value for p in onnx.load(tmp_path / "short").metadata_props] == ["other"]


# ---- simplified without weights ----------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Linear layers on tokens, whose products and sums become layers of their own only where weights are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(nn.functional.gelu(self.norm(self.first(x))))
        return found


@pytest.mark.parametrize(
    ("net", "shape"), mostly_in_sweeps([(network, (2, 3, 8, 8)), (Tokens, (2, 5, 16))], (Tokens, (2, 5, 16)))
)
def test_without_its_weights_a_graph_becomes_as_simple(
    net: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    program = convert(net().eval(), torch.randn(shape)).program
    usual = model_of(program)
    apart: list[int] = []
    elsewhere = cleanup._simpler_elsewhere

    def watched(found: ir.Model) -> ir.Model | None:
        apart.append(sum(isinstance(v.const_value, ir.ExternalTensor) for v in found.graph.initializers.values()))
        return elsewhere(found)

    def never(*args: Any) -> None:
        raise AssertionError("the weights were simplified as well")

    monkeypatch.setattr(cleanup, "HEAVY", 0)
    monkeypatch.setattr(cleanup, "LARGE", 256)
    monkeypatch.setattr(cleanup, "_simpler_elsewhere", watched)
    monkeypatch.setattr(cleanup, "_simpler", never)
    other = model_of(program)
    assert apart and apart[0] >= 2
    assert [n.op_type for n in other.graph.node] == [n.op_type for n in usual.graph.node]
    large = {t.name: t.raw_data for t in usual.graph.initializer if len(t.raw_data) >= 256}
    assert {t.name: t.raw_data for t in other.graph.initializer if len(t.raw_data) >= 256} == large


def test_a_weight_that_something_can_become_of_stays_in_the_graph() -> None:
    """A transposed weight is computed, a batch norm behind a layer is folded into it, and a sum is no layer."""
    rng = np.random.default_rng(0)
    shapes = {"w": (640, 640), "t": (640, 640), "a": (640, 640), "b": (640, 640), "c": (640, 640, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    norm = [numpy_helper.from_array(np.ones(640, np.float32), f"n{i}") for i in range(4)]
    nodes = [
        helper.make_node("Transpose", ["t"], ["u"]),
        helper.make_node("MatMul", ["x", "w"], ["x1"]),
        helper.make_node("MatMul", ["x1", "u"], ["x2"]),
        helper.make_node("Add", ["x2", "a"], ["x3"]),
        helper.make_node("MatMul", ["b", "w"], ["bw"]),
        helper.make_node("Conv", ["m", "c"], ["m1"]),
        helper.make_node("BatchNormalization", ["m1", *(t.name for t in norm)], ["m2"]),
    ]
    inputs = [("x", [640, 640]), ("m", [1, 640, 2, 2])]
    outputs = [("x3", [640, 640]), ("bw", [640, 640]), ("m2", [1, 640, 2, 2])]
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in row] for row in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ports, [*weights, *norm])
    found = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert cleanup._set_apart(found) == {}


def test_where_no_other_process_runs_weights_are_simplified_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    program = convert(network(), torch.randn(2, 3, 8, 8)).program
    usual = model_of(program).SerializeToString(deterministic=True)
    monkeypatch.setattr(cleanup, "HEAVY", 0)
    monkeypatch.setattr(cleanup, "LARGE", KIB)
    monkeypatch.setattr(cleanup.sys, "executable", "")
    assert model_of(program).SerializeToString(deterministic=True) == usual
