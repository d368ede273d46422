"""ONNX export: plain operators, names of layers, the same bytes every time, one file or two, nothing from elsewhere."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import Conversion, convert
from reparam.engines.formats import find_format
from reparam.engines.onnx import (
    OnnxRunnable,
    cleanup,
    model_of,
    quantised,
    stamp_model,
    storage,
    write_model,
)
from reparam.engines.onnx.runtime import precision_of
from reparam.engines.precision import with_wide_ports
from reparam.errors import InputError, MachineError, UnsafeFileError
from reparam.onnx_input import read_model, side_files, tensors_in
from support.engine_nets import SHAPE, every, small

STANDARD = {
    "Conv",
    "PRelu",
    "Max",
    "Min",
    "ReduceMean",
    "Relu",
    "Sigmoid",
    "Mul",
    "HardSwish",
    "Gelu",
    "Add",
    "Gemm",
    "GlobalAveragePool",
}


def converted(net: nn.Module | None = None, **options: Any) -> Conversion:
    return convert(net, torch.randn(SHAPE), **options) if net is not None else _every(**options)


@functools.cache
def _every(**options: Any) -> Conversion:
    return convert(every(), torch.randn(SHAPE), **options)


@pytest.fixture(scope="module")
def plain_model() -> onnx.ModelProto:
    torch.manual_seed(0)
    return model_of(converted().program)


@pytest.fixture
def written(plain_model: onnx.ModelProto, tmp_path: Path) -> Path:
    write_model(plain_model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


# ---- the graph ---------------------------------------------------------------------------------------------------


def test_prelu_clamp_and_gates_are_standard_operators(plain_model: onnx.ModelProto) -> None:
    onnx.checker.check_model(plain_model, full_check=True)
    assert {n.op_type for n in plain_model.graph.node} == STANDARD
    assert {n.domain for n in plain_model.graph.node} == {""}
    assert not plain_model.functions
    assert [(o.domain, o.version) for o in plain_model.opset_import] == [("", 20)]


def test_nodes_are_named_after_layers_and_ports_after_the_network(plain_model: onnx.ModelProto) -> None:
    graph = plain_model.graph
    names = [n.name for n in graph.node]
    assert {"stem/Conv", "act/PRelu", "body/Conv", "squeeze/Conv", "head/Gemm"} <= set(names)
    assert len(set(names)) == len(names)
    assert [v.name for v in graph.input] == ["x"]
    assert [v.name for v in graph.output] == ["logits", "map"]
    assert {"stem.weight", "body.bias", "head.weight"} <= {t.name for t in graph.initializer}


def test_constants_are_noted_once(plain_model: onnx.ModelProto) -> None:
    graph = plain_model.graph
    constants = {t.name for t in graph.initializer}
    assert constants and not constants & {v.name for v in graph.value_info}
    assert {name for node in graph.node for name in node.input if name} >= constants


def test_inner_layers_keep_their_path() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()), every()

        def forward(self, x: Tensor) -> Any:
            return self.block(self.first(x))

    names = {n.name for n in model_of(converted(Outer().eval()).program).graph.node}
    assert {"first.0/Conv", "first.1/Sigmoid", "first.1/Mul", "block.stem/Conv", "block/Max"} <= names


@pytest.mark.parametrize(
    ("dynamic", "shape"),
    [
        (("batch",), ["batch", 3, 16, 16]),
        ((), [2, 3, 16, 16]),
        (("batch", "height", "width"), ["batch", 3, "height", "width"]),
    ],
)
def test_free_sizes_are_called_by_their_axes(dynamic: tuple[str, ...], shape: list[int | str]) -> None:
    graph = model_of(converted(small(), dynamic=dynamic).program).graph
    (given,), (result,) = graph.input, graph.output
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == shape
    assert [d.dim_param or d.dim_value for d in result.type.tensor_type.shape.dim] == [shape[0], 5]
    assert result.name == "output"


def test_nothing_tells_of_the_machine(written: Path, plain_model: onnx.ModelProto) -> None:
    content = written.read_bytes()
    for word in (b"/home", b"/root", b"site-packages", b".py", b"stack_trace", b"pkg.torch", os.getcwd().encode()):
        assert word not in content
    assert (plain_model.producer_name, plain_model.producer_version) == ("reparam", "")


def test_two_exports_are_the_same_bytes(tmp_path: Path, plain_model: onnx.ModelProto) -> None:
    again = model_of(converted(every()).program)
    for name, model in (("a", plain_model), ("b", again)):
        write_model(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    other = every()
    with torch.no_grad():
        other.body.weight[0, 0, 0, 0] += 1e-6
    write_model(model_of(converted(other).program), tmp_path / "c.onnx")
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()


def test_what_onnx_lacks_is_named() -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1e(x)

    net = nn.Sequential(nn.Conv2d(3, 3, 1), Bessel()).eval()
    with pytest.raises(InputError, match=r"ONNX has no form of .*bessel_i1e"):
        model_of(converted(net).program)


def test_a_result_that_is_an_input_or_twice_the_same_keeps_its_names() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(x)
            return y, y

    model = model_of(converted(Twice()).program)
    onnx.checker.check_model(model, full_check=True)
    x = torch.randn(SHAPE)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for value in session.run(None, {"x": x.numpy()}):
        assert np.array_equal(value, torch.relu(x).numpy())


def test_large_models_are_not_simplified_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "IN_MEMORY", 100)
    monkeypatch.setattr("onnxsim.simplify", lambda model: pytest.fail("it is too large for that"))
    onnx.checker.check_model(model_of(converted(small()).program), full_check=True)


def test_a_clean_up_that_changes_the_ports_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        wrong.graph.output[0].name = "other"
        return wrong, True

    monkeypatch.setattr("onnxsim.simplify", broken)
    assert [o.name for o in model_of(converted(small()).program).graph.output] == ["output"]


# ---- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "opset"), [(torch.float16, 20), (torch.bfloat16, 22)])
def test_low_precision_keeps_float32_ports_and_is_valid(dtype: torch.dtype, opset: int) -> None:
    program = with_wide_ports(converted(dtype=dtype).program)
    model = model_of(program)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    ports = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    assert ports == [onnx.TensorProto.FLOAT] * 3
    kinds = {t.data_type for t in model.graph.initializer if t.name.endswith("weight")}
    assert kinds == {onnx.TensorProto.FLOAT16 if dtype == torch.float16 else onnx.TensorProto.BFLOAT16}
    assert precision_of(model) == str(dtype).removeprefix("torch.")


def test_ports_can_have_the_precision_of_the_weights() -> None:
    model = model_of(converted(dtype=torch.float16).program)
    ports = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    assert ports == [onnx.TensorProto.FLOAT16] * 3


def test_a_wide_program_is_left_alone() -> None:
    program = converted(small()).program
    assert with_wide_ports(program) is program


def test_wide_ports_leave_the_program_and_integers_alone() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(self.table(i) + x), i + 1

    inputs = (torch.tensor([[1, 2], [3, 4]]), torch.randn(2, 2, 4))
    program = convert(Table().eval(), *inputs, dtype=torch.float16).program
    wide = with_wide_ports(program)
    assert [s.dtype for s in program.inputs] == [torch.int64, torch.float16]
    assert [s.dtype for s in wide.inputs] == [torch.int64, torch.float32]
    kinds = [o.type.tensor_type.elem_type for o in model_of(wide).graph.output]
    assert kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]


def test_bfloat16_is_computed_in_float32_with_the_rounded_weights(tmp_path: Path) -> None:
    program = with_wide_ports(converted(small(), dtype=torch.bfloat16).program)
    write_model(model_of(program), tmp_path / "b.onnx")
    engine = OnnxRunnable(tmp_path / "b.onnx")
    assert "bfloat16 weights, computed in float32" in engine.runtime
    assert engine.precision == "bfloat16"
    x = torch.randn(SHAPE)
    rounded = small().to(torch.bfloat16).float()
    (got,) = engine.run([x])
    assert float((got - rounded(x)).detach().abs().max()) < 0.05
    assert float((got - small()(x)).detach().abs().max()) > 1e-6


def test_int8_has_symmetric_scales_for_each_channel_and_float_biases() -> None:
    model = model_of(converted(small()).program)
    result = quantised(model, [(torch.randn(4, 3, 16, 16),) for _ in range(2)])
    onnx.checker.check_model(result)
    assert precision_of(result) == "int8"
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    points = [v for n, v in weights.items() if "zero_point" in n]
    assert points and all(not v.any() and v.dtype == np.int8 for v in points)
    scales = [v for n, v in weights.items() if n.endswith("weight_scale")]
    assert sorted(v.shape for v in scales if v.ndim) == [(5,), (8,), (8,)]
    assert not [n for n, v in weights.items() if "bias" in n and v.dtype != np.float32]


def test_int8_without_data_or_with_unfit_data_is_refused() -> None:
    model = model_of(converted(small()).program)
    with pytest.raises(InputError, match="int8 needs calibration data"):
        quantised(model, ())
    with pytest.raises(InputError, match="cannot be quantised with this calibration data"):
        quantised(model, [(torch.randn(4, 3, 9, 9),)])


# ---- files -------------------------------------------------------------------------------------------------------


def test_large_weights_lie_beside_and_run(
    plain_model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ONE_FILE", 100)
    model = onnx.ModelProto()
    model.CopyFrom(plain_model)
    (side,) = write_model(model, tmp_path / "net.onnx")
    assert side == tmp_path / "net.onnx.data"
    assert side_files(read_model(tmp_path / "net.onnx", weights=False)) == ["net.onnx.data"]
    before = side.read_bytes()
    stamp_model(tmp_path / "net.onnx", {"precision": "fp32"})
    assert side.read_bytes() == before
    x = torch.randn(SHAPE)
    (logits, _) = OnnxRunnable(tmp_path / "net.onnx").run([x])
    assert torch.allclose(logits, every()(x)["logits"], atol=1e-5)
    side.unlink()
    with pytest.raises(InputError, match=r"has its weights in net\.onnx\.data, which is not beside it"):
        OnnxRunnable(tmp_path / "net.onnx")


def test_large_models_are_the_same_bytes_every_time_and_stay_as_they_are(
    plain_model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ONE_FILE", 100)
    before = plain_model.SerializeToString(deterministic=True)
    files: list[bytes] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (side,) = write_model(plain_model, folder / "net.onnx")
        files += [(folder / "net.onnx").read_bytes(), side.read_bytes()]
    assert files[:2] == files[2:]
    assert plain_model.SerializeToString(deterministic=True) == before
    again = read_model(tmp_path / "a" / "net.onnx")
    onnx.external_data_helper.convert_model_from_external_data(again)
    for tensor in again.graph.initializer:
        tensor.ClearField("data_location")
    assert again.SerializeToString(deterministic=True) == before
    stored = read_model(tmp_path / "a" / "net.onnx", weights=False).graph.initializer
    outside = {t.name for t in stored if t.data_location == onnx.TensorProto.EXTERNAL}
    sizes = {t.name: len(t.raw_data) for t in plain_model.graph.initializer}
    assert outside == {n for n, size in sizes.items() if size > storage.SMALL} != set(sizes)


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "a/../../secret", "C:\\secret", "..\\secret", "link"])
def test_weights_from_elsewhere_are_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ONE_FILE", 100)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 100_000)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "a").mkdir()
    write_model(model_of(converted(small(400)).program), folder / "net.onnx")
    model = onnx.load(str(folder / "net.onnx"), load_external_data=False)
    external = [t for t in tensors_in(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    assert external
    for entry in external[0].external_data:
        if entry.key == "location":
            entry.value = place
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFileError, match="outside of its own folder"):
        find_format("onnx").load(folder / "net.onnx")


def test_weights_inside_of_attributes_and_branches_are_seen(tmp_path: Path) -> None:
    place = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    place.data_location = onnx.TensorProto.EXTERNAL
    place.external_data.add(key="location", value="../w")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=place)], "g", [], [value])
    node = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    given = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    result = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "outer", [given], [result])
    (tmp_path / "if.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsafeFileError, match=r"takes weights from '\.\./w'"):
        read_model(tmp_path / "if.onnx")


@pytest.mark.parametrize("content", [b"", b"\x08\x0a\x12\xff\xff", b"\x08\x0a", b"hello"])
def test_a_damaged_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no ONNX model"):
        find_format("onnx").load(tmp_path / "a.onnx")


def test_an_unknown_operator_is_one_sentence(tmp_path: Path) -> None:
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], domain="strange")
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("strange", 1)]
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph, opset_imports=opsets).SerializeToString())
    with pytest.raises(InputError, match=r"onnxruntime does not take .*Mystery"):
        OnnxRunnable(tmp_path / "m.onnx")


def test_without_the_packages_the_command_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MachineError, match=r"needs onnxruntime; pip install 'reparam\[onnx\]'"):
        find_format("onnx").load(written)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MachineError, match=r"needs onnx; pip install 'reparam\[onnx\]'"):
        find_format("onnx").load(written)


def test_metadata_is_written_into_the_file_and_changes_nothing_else(written: Path) -> None:
    before = read_model(written)
    assert find_format("onnx").stamp(written, {"precision": "fp32", "labels": ["cat", "dog"], "a": None})
    after = read_model(written)
    props = {p.key: p.value for p in after.metadata_props}
    assert props == {"reparam.precision": "fp32", "reparam.labels": '["cat", "dog"]', "reparam.a": "null"}
    assert after.graph == before.graph
