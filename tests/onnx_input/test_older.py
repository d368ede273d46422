"""Operators as opsets 7 to 10 wrote them, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import reparam
from reparam.errors import InputError
from support.onnx_graphs import F32, I64, check, differs, draw, imported, ints, model, node, values

IMAGE = (2, 3, 4, 6)
CASES: list[tuple[str, int, Mapping[str, np.ndarray], Mapping[str, Any]]] = [
    ("Clip", 7, {}, {"min": -0.25, "max": 0.5}),
    ("Clip", 10, {}, {"min": 0.0}),
    ("Clip", 9, {}, {"max": 6.0}),
    ("Clip", 9, {}, {}),
    ("Pad", 7, {}, {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 1.5}),
    ("Pad", 10, {}, {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}),
    ("Slice", 9, {}, {"starts": [1, -2], "ends": [3, 99], "axes": [2, 3]}),
    ("Slice", 7, {}, {"starts": [0, 1], "ends": [2, -1]}),
    ("Slice", 10, {"s": ints(1), "e": ints(5), "a": ints(3), "t": ints(2)}, {}),
    ("Upsample", 7, {}, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", 8, {}, {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}),
    ("Upsample", 9, {"s": np.array([1, 1, 2, 2], F32)}, {"mode": "nearest"}),
    ("Resize", 10, {"s": np.array([1, 1, 1.5, 0.5], F32)}, {"mode": "nearest"}),
    ("Resize", 10, {"s": np.array([1, 1, 2, 0.5], F32)}, {"mode": "linear"}),
    ("Resize", 10, {"s": np.array([1, 1, 0.6, 0.7], F32)}, {"mode": "nearest"}),
    ("Resize", 10, {"s": np.array([1, 1, 0.9, 2.0], F32)}, {"mode": "nearest"}),
    ("Scatter", 9, {"i": np.zeros((1, 3, 4, 6), I64), "u": np.ones((1, 3, 4, 6), F32)}, {"axis": 0}),
    ("BatchNormalization", 8, {k: np.array([0.5, 1.0, 2.0], F32) for k in "abcd"}, {}),
    ("Dropout", 9, {}, {"ratio": 0.3}),
    ("Softmax", 9, {}, {"axis": 2}),
    ("AveragePool", 8, {}, {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}),
]


@pytest.mark.parametrize("op, opset, constants, attributes", CASES)
def test_an_operator_of_an_older_opset(
    op: str, opset: int, constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any], tmp_path: Path
) -> None:
    check(tmp_path, op, IMAGE, constants, opset=opset, **attributes)


@pytest.mark.parametrize("opset", [9, 10])
def test_the_largest_of_an_older_opset(opset: int, tmp_path: Path) -> None:
    constants = {"k": ints(2)} if opset == 10 else {}
    more = {} if opset == 10 else {"k": 2}
    proto = model(
        [node("TopK", ["x", *constants], ("v", "i"), axis=3, **more)], {"x": IMAGE}, ("v", "i"), constants, opset=opset
    )
    assert differs(proto, tmp_path, draw([IMAGE])) == ""


def test_constants_of_two_nodes_without_names_are_kept_apart(tmp_path: Path) -> None:
    nodes = [
        node("Clip", ["x"], ["a"], max=0.1),
        node("Clip", ["x"], ["b"], max=0.2),
        node("Clip", ["x"], ["c"], name="a", max=0.3),
        node("Concat", ["a", "b", "c", "a.max"], axis=1),
    ]
    proto = model(nodes, {"x": IMAGE}, constants={"a.max": values(*IMAGE)}, opset=9)
    assert differs(proto, tmp_path, draw([IMAGE])) == ""


def test_a_network_of_opset_8_converts_with_free_sizes(tmp_path: Path) -> None:
    """Like the files of the first model zoos: weights are among the inputs, and norms have no attribute but epsilon."""
    weights = {"w": values(4, 3, 3, 3), "g": values(4) + 2, "s": values(4), "m": values(4), "v": abs(values(4)) + 0.5}
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "s", "m", "v"], ["n"], epsilon=1e-5),
        node("Clip", ["n"], ["r"], min=0.0, max=6.0),
        node("Upsample", ["r"], ["u"], scales=[1.0, 1.0, 2.0, 2.0]),
        node("GlobalAveragePool", ["u"], ["p"]),
        node("Flatten", ["p"]),
    ]
    proto = model(nodes, {"x": ["n", 3, "h", "w_"]}, constants=weights, opset=8)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in weights.items()
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    done = reparam.convert(str(path), torch.rand(2, 3, 10, 8))
    assert (done.report.before.norms, done.report.after.norms) == (1, 0)


def test_statistics_of_positions_are_refused(tmp_path: Path) -> None:
    constants = {k: np.ones((3, 4, 6), F32) for k in "abcd"}
    proto = model(
        [node("BatchNormalization", ["x", *"abcd"], name="n", spatial=0)], {"x": IMAGE}, constants=constants, opset=8
    )
    with pytest.raises(
        InputError, match=r"'n' \(BatchNormalization\) cannot be read: it has statistics for each position"
    ):
        imported(proto, tmp_path)(*draw([IMAGE]))


def test_paddings_that_are_missing_are_told(tmp_path: Path) -> None:
    proto = model([node("Pad", ["x"], name="p")], {"x": IMAGE}, opset=9)
    with pytest.raises(InputError, match=r"the node 'p' \(Pad\) cannot be read: it has no input 1"):
        imported(proto, tmp_path)(*draw([IMAGE]))


@pytest.mark.parametrize("opset, scales", [(9, [1, 1, 1.5, 1.7]), (10, [1, 1, 0.6, 0.6])])
def test_a_network_that_resizes_by_fractions_converts(opset: int, scales: list[float], tmp_path: Path) -> None:
    """Their weights are rounded as onnxruntime rounds them; with more digits they missed its values by a hair."""
    op = "Upsample" if opset == 9 else "Resize"
    nodes = [node(op, ["x", "s"], mode="linear")]
    proto = model(nodes, {"x": ["n", 3, 8, 8]}, constants={"s": np.array(scales, F32)}, opset=opset)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    assert reparam.convert(str(path), *draw([(2, 3, 8, 8)])).report.evidence is not None


@pytest.mark.parametrize("op, more", [("Clip", {"min": "a"}), ("Pad", {"pads": "abc"}), ("Upsample", {"scales": "x"})])
def test_an_attribute_of_another_kind_is_told(op: str, more: dict[str, str], tmp_path: Path) -> None:
    proto = model([node(op, ["x"], **more)], {"x": IMAGE}, opset=9)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError):
        reparam.convert(str(path), *draw([IMAGE]))
