"""What is not read is told in one sentence that names the node, and nothing is computed or written on the way."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import reparam
from reparam.errors import CaptureError, InputError, UnsafeFileError
from reparam.onnx_input import import_onnx
from support.cli_helpers import refuse
from support.onnx_graphs import model, node

IMAGE = {"x": ["n", 3, 8, 8]}
ONES = np.ones(3, np.float32)


def write(folder: Path, nodes: Sequence[onnx.NodeProto], inputs: Any = None, **more: Any) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model(nodes, inputs or IMAGE, **more).SerializeToString())
    return path


def turns() -> onnx.NodeProto:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])
    count, again = (
        helper.make_tensor_value_info(n, k, []) for n, k in (("i", TensorProto.INT64), ("a", TensorProto.BOOL))
    )
    body = helper.make_graph(
        [node("Identity", ["a"], ["o"]), node("Relu", ["v"], ["b"])],
        "body",
        [count, again, helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("o", TensorProto.BOOL, []), value],
    )
    return node("Loop", ["n", "", "x"], ["y"], name="turns", body=body)


REFUSED: list[tuple[list[onnx.NodeProto], dict[str, Any], str]] = [
    (
        [node("NonMaxSuppression", ["x", "x"], name="nms")],
        {},
        r"the node 'nms' \(NonMaxSuppression\) cannot be read: how",
    ),
    (
        [node("RoiAlign", ["x", "r", "i"], name="crops")],
        {"constants": {"r": np.ones((1, 4), np.float32), "i": np.zeros(1, np.int64)}},
        r"the node 'crops' \(RoiAlign\) cannot be read: this operator is not among",
    ),
    ([node("Hardmax", ["x"])], {}, r"the node 'y' \(Hardmax\) cannot be read"),
    (
        [node("QuantizeLinear", ["x", "s"], name="q")],
        {"constants": {"s": ONES[0]}},
        r"'q' .* quantised networks are left",
    ),
    ([node("Relu", ["x"], domain="com.shop", name="own")], {}, r"'own' \(Relu\) .* is of the domain 'com.shop'"),
    ([turns()], {"constants": {"n": np.array(3)}}, r"'turns' \(Loop\) holds a graph of its own"),
    ([node("Relu", ["x"])], {"opset": 6}, "uses opset 6, where 7 to 25 are read; convert it"),
    ([node("Relu", ["x"])], {"opset": 26}, "uses opset 26, where 7 to 25 are read"),
    ([node("Relu", ["h"]), node("Relu", ["x"], ["h"])], {}, "is damaged: the node 'y' reads 'h' too early"),
    ([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])], {}, "is damaged or no ONNX model"),
    ([node("Relu", ["x"], ["z"])], {}, "is damaged or no ONNX model"),
    ([node("Cast", ["x"], to=TensorProto.STRING)], {}, "casts to a type that networks are not computed in"),
    ([node("Relu", ["x"])], {"inputs": {"x": (TensorProto.STRING, [2])}}, "the input 'x' is of the type string"),
]


@pytest.mark.parametrize("nodes, more, message", REFUSED)
def test_what_is_not_read_is_told(
    nodes: list[onnx.NodeProto], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        reparam.explain(write(tmp_path, nodes, **more))


BROKEN: list[tuple[onnx.NodeProto, dict[str, Any], str]] = [
    (
        node("Conv", ["x", "w"], name="stem"),
        {"w": np.ones((4, 5, 3, 3), np.float32)},
        r"'stem' \(Conv\) does not run: ",
    ),
    (node("AveragePool", ["x"], kernel_shape=[2, 2], dilations=[2, 2]), {}, "an average over spaced positions"),
    (node("Reshape", ["x", "s"], name="shaping"), {"s": np.array([-1, -1])}, "'shaping' .* more than one size open"),
    (node("Reshape", ["x", "x"], name="shaping"), {}, "'shaping' .* its shape is computed by the network"),
    (node("Softmax", ["x"], axis=7, name="s"), {}, "'s' .* is about axis 7 of a value with 4 axes"),
    (node("Softmax", ["x"], axis="one", name="s"), {}, "'s' .* attribute axis is of another kind"),
    (
        node("Resize", ["x", "", "s"], antialias=1, mode="linear"),
        {"s": np.float32([1, 1, 2, 2])},
        "this form of antialiasing is not",
    ),
    (
        node("BatchNormalization", ["x", *"aaaa"], training_mode=1),
        {"a": ONES},
        "normalises by its batch, as in training",
    ),
    (
        node("Expand", ["x", "s"], name="grow"),
        {"s": np.array([10**9, 2, 3, 8, 8])},
        "'grow' .* more than this machine",
    ),
    (node("Gather", ["x", "i"], name="pick"), {"i": np.array(9)}, "'pick'|index 9"),
    (
        node("MaxPool", ["x"], ["z", "y"], kernel_shape=[2, 2], storage_order=1, name="pool"),
        {},
        "'pool' .* positions of its maxima are counted along columns",
    ),
    (
        node("ScatterElements", ["x", "i", "x"], reduction="mean", name="into"),
        {"i": np.zeros((2, 3, 8, 8), np.int64)},
        "'into' .* its reduction is unknown",
    ),
    (
        node("LpPool", ["x"], kernel_shape=[2, 2], dilations=[2, 2]),
        {},
        "a sum over spaced positions",
    ),
    (
        node("Col2Im", ["f", "s", "k"], name="patches"),
        {"f": np.ones((1, 4, 6), np.float32), "s": np.array([7]), "k": np.array([2])},
        "'patches' .* of no image",
    ),
]


@pytest.mark.parametrize("operator, constants, message", BROKEN)
def test_what_does_not_run_is_told(
    operator: onnx.NodeProto, constants: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, [operator], {"x": [2, 3, 8, 8]}, constants=constants, opset=19)
    assert re.search(message, refuse(2, "convert", str(path), "-o", str(tmp_path / "out.pt2")))
    assert not (tmp_path / "out.pt2").exists()


@pytest.mark.parametrize("content", [b"", bytes(range(200)), b"\x08\x0a\x12"])
def test_what_is_no_model_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"is empty|is damaged or no ONNX model"):
        import_onnx(tmp_path / "net.onnx")


def test_two_outputs_of_one_name_are_told(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"]), node("Neg", ["x"], ["z"])], {"x": [2, 3]}, ("y", "z"))
    proto.graph.output[1].name = "y"
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"net\.onnx has two outputs of the name 'y'"):
        import_onnx(tmp_path / "net.onnx")


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    weight = {"w": np.ones((8, 3, 3, 3), np.float32)}
    path = write(tmp_path, [node("Conv", ["x", "w"])], constants=weight)
    whole = path.read_bytes()
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            import_onnx(path)


def test_weights_are_taken_from_the_folder_of_the_file_alone(tmp_path: Path) -> None:
    weight = np.ones((4, 3, 1, 1), np.float32)
    (tmp_path / "inside").mkdir()
    path = write(tmp_path / "inside", [node("Conv", ["x", "w"])], constants={"w": weight})
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for place, error in (("w.bin", None), ("../w.bin", UnsafeFileError), (str(tmp_path / "w.bin"), UnsafeFileError)):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=place)
        (tmp_path / "w.bin").write_bytes(weight.tobytes())
        (tmp_path / "inside" / "w.bin").write_bytes(weight.tobytes())
        path.write_bytes(proto.SerializeToString())
        if error is None:
            found = reparam.convert(path).module(torch.ones(1, 3, 8, 8))
            assert isinstance(found, dict) and bool((found["y"] == 3.0).all())
            continue
        with pytest.raises(error, match="outside of its own folder"):
            import_onnx(path)


def test_names_from_files_become_plain_ones(tmp_path: Path) -> None:
    constants = {"self.to/forward": np.ones((4, 3, 1, 1), np.float32), "a": ONES, "a.b": ONES, "class": ONES[:2]}
    nodes = [
        node("Conv", ["x", "self.to/forward"], ["h"], name="lambda: 0"),
        node("Slice", ["h", "s", "e", "one"], ["i"]),
        node("Mul", ["a", "a.b"], ["ab"]),
        node("BatchNormalization", ["i", "a", "a.b", "ab", "a"], ["y"], name="training"),
    ]
    numbers = {"s": np.array([0]), "e": np.array([3]), "one": np.array([1])}
    net = import_onnx(write(tmp_path, nodes, constants=constants | numbers))
    assert net(torch.zeros(1, 3, 8, 8))["y"].shape == (1, 3, 8, 8)
    assert {n for n, _ in (*net.named_parameters(), *net.named_buffers())} >= {"self_.to_forward", "a", "a_.b", "ab"}


def tower(operator: str, **attributes: Any) -> list[onnx.NodeProto]:
    """The size of an input, forty times with itself."""
    nodes = [node("Shape", ["x"], ["s0"])]
    for i in range(40):
        nodes.append(node(operator, [f"s{i}", f"s{i}"], [f"s{i + 1}"], **attributes))
    return [
        *nodes,
        node("Cast", ["s40"], ["f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["f"], ["r"]),
        node("Add", ["x", "r"]),
    ]


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize(
    ("operator", "attributes", "why"),
    [
        ("Mul", {}, "no number of 64 bits"),
        ("Concat", {"axis": 0}, "it computes [0-9]+ numbers of sizes|would become [0-9,]+ while it is opened"),
    ],
)
def test_sizes_that_grow_without_bound_are_refused_soon(
    operator: str, attributes: dict[str, Any], why: str, batch: Any, tmp_path: Path
) -> None:
    path = write(tmp_path, tower(operator, **attributes), {"x": (batch, 3)})
    start = time.perf_counter()
    with pytest.raises(InputError, match=why):
        reparam.convert(path)
    assert time.perf_counter() - start < 10


def test_what_cannot_be_captured_is_called_the_file(tmp_path: Path) -> None:
    """The class of the module that it becomes says nothing."""
    factors = {"f": np.array([1.0, 1.0, 2.0, 2.0], np.float32)}
    path = write(
        tmp_path,
        [node("Resize", ["x", "f"], mode="linear")],
        {"x": ["n", 3, "h", "w"]},
        constants=factors,
        opset=10,
    )
    with pytest.raises(CaptureError) as told:
        reparam.convert(path, torch.randn(2, 3, 8, 9), dynamic="batch,height,width")
    assert str(told.value).startswith("the ONNX file cannot be captured as one graph: the node 'y' (Resize)")
    assert "GraphModule" not in str(told.value)
