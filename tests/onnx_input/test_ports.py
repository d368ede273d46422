"""The inputs of a file: those whose shape it does not tell, and sizes that it leaves free or fixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import reparam
from reparam.errors import InputError
from reparam.onnx_input import import_onnx, reason_of
from support.cli_helpers import prepare_folder, refuse, succeed
from support.onnx_graphs import model, node, theirs, values


def write(folder: Path, sizes: Sequence[int | str] | None, more: Sequence[int | str] | None = None) -> Path:
    """A ReLU of x, or the sum of x and z. sizes: None where the file is not to tell the shape."""
    inputs = {"x": sizes or ["a"], **({} if more is None else {"z": more})}
    made = model([node("Relu", ["x"], ["y"]) if more is None else node("Add", ["x", "z"], ["y"])], inputs)
    if sizes is None:
        made.graph.input[0].type.tensor_type.ClearField("shape")
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_without_a_shape_the_example_tells_it(tmp_path: Path) -> None:
    path = write(tmp_path, None)
    found = reparam.convert(path, torch.randn(2, 3, 8, 9), dynamic="batch,height,x:3=w")
    x = torch.from_numpy(values(4, 3, 5, 7))
    np.testing.assert_array_equal(found.module(x)["y"], theirs(onnx.load(path), [x])[0])
    assert found.report.evidence is not None and found.report.evidence.file is not None
    assert import_onnx(path).input_shapes is None


def test_without_a_shape_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    write(Path(), None)
    succeed("convert", "net.onnx", "--input-shape", "3,8,8", "--dynamic", "batch,height,width", "-o", "a.pt2")
    module = torch.export.load("a.pt2").module()
    assert module(torch.randn(1, 3, 5, 6))["y"].shape == (1, 3, 5, 6)
    said = refuse(2, "convert", "net.onnx", "-o", "b.pt2")
    assert "the file does not tell the shape of its input 'x'; pass one with --input-shape" in said


def test_a_shape_beside_one_that_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, None, ["n", 3, "h", 8])
    inputs = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    found = reparam.convert(path, *inputs, dynamic=("batch", "x:2=h", "z:2=h"))
    more = torch.randn(4, 3, 5, 8), torch.randn(4, 3, 5, 8)
    torch.testing.assert_close(found.module(*more)["y"], more[0] + more[1])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (["n", "c", "h", "w"], "the file leaves axis 1, height and width of its input 'x' free; pass a shape"),
        (["n", 3, "h", "w"], "the file leaves height and width of its input 'x' free"),
        (["n", "t"], "the file leaves axis 1 of its input 'x' free"),
        ([0, 3, 8, 8], "the file fixes the batch of its input 'x' at 0, so that there is nothing to compute"),
        (["n", 3, 0, 8], "the file fixes the height of its input 'x' at 0"),
        (["n", 0], "the file fixes axis 1 of its input 'x' at 0"),
    ],
)
def test_sizes_that_are_missing(tmp_path: Path, sizes: list[int | str], said: str) -> None:
    with pytest.raises(InputError) as told:
        reparam.convert(write(tmp_path, sizes))
    assert said in str(told.value)


def test_an_axis_of_a_name_that_is_fixed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file fixes axis 'seq' of 'x' at 8, so that it cannot stay free"):
        reparam.convert(write(tmp_path, ["n", 8]), torch.randn(2, 8), dynamic="x:1=seq")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from net.onnx failed:/src/core/graph/model.cc:256 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&) Unsupported version: 99",
            "Load model from net.onnx failed: Unsupported version: 99",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/a.h:12 void onnxruntime::f(std::function<void(int)>) const "
            "[with T = float] x (of two) was false.",
            "x (of two) was false.",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : /src/a.cc:12 strange", "/src/a.cc:12 strange"),
        ("[ONNXRuntimeError] : 2 : INVALID : no place at all", "no place at all"),
    ],
)
def test_the_message_of_onnxruntime_without_its_source(text: str, told: str) -> None:
    assert reason_of(RuntimeError(text)) == told


def test_a_version_that_onnxruntime_does_not_know(tmp_path: Path) -> None:
    path = write(tmp_path, ["n", 8])
    made = onnx.load(path)
    made.ir_version = 99
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InputError) as said:
        reparam.convert(path, torch.randn(2, 8))
    assert "Unsupported model IR version: 99" in str(said.value) and ".cc:" not in str(said.value)
