"""Networks that are read with free sizes, at many sizes against onnxruntime on the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import reparam
from reparam.errors import CaptureError
from support.onnx_graphs import F32, ints, model, node, theirs, values

FREE = ("batch", "height", "width")
SIZES = (2, 3, 7, 10, 12, 20, 31, 70, 90)


def different(proto: onnx.ModelProto, folder: Path, sizes: Sequence[int] = SIZES) -> list[int]:
    """The heights for which what is read from the file is another function, converted with free height and width."""
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    net = reparam.convert(folder / "net.onnx", torch.zeros(2, 3, 12, 16), dynamic=FREE).module
    found = []
    for size in sizes:
        x = torch.from_numpy(values(2, 3, size, size + 1, seed=size))
        [other] = theirs(proto, [x])
        mine = net(x)["y"].detach().numpy()
        if mine.shape != other.shape or not np.allclose(
            mine, other, atol=2e-4 * max(1.0, float(abs(other).max(initial=0.0)))
        ):
            found.append(size)
    return found


def computed(steps: Sequence[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """x up to the row that the steps compute of its height: they read `h` and make `e`."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"]), *steps]
    nodes += [node("Slice", ["x", "zero", "e", "two"], ["y"])]
    return model(nodes, {"x": ["n", 3, "h", "w"]}, constants={"two": ints(2), "zero": ints(0), **constants})


def in_floats(kind: int, *steps: onnx.NodeProto, rounding: str | None = "Floor") -> list[onnx.NodeProto]:
    """Steps from `a` to `b`, which are floats of a kind, and a rounding back to whole numbers."""
    last = [node(rounding, ["b"], ["c"])] if rounding else [node("Identity", ["b"], ["c"])]
    return [node("Cast", ["h"], ["a"], to=kind), *steps, *last, node("Cast", ["c"], ["e"], to=onnx.TensorProto.INT64)]


@pytest.mark.parametrize("rounding", ["Floor", "Ceil", None])
@pytest.mark.parametrize("factor", [0.7, 0.1, 0.123456, 0.5])
def test_a_share_of_a_size_is_rounded_as_the_file_rounds_it(
    factor: float, rounding: str | None, tmp_path: Path
) -> None:
    """float32(0.7) * 10 is 7 in float32, and 6.99 as a real number."""
    steps = in_floats(onnx.TensorProto.FLOAT, node("Mul", ["a", "k"], ["b"]), rounding=rounding)
    proto = computed(steps, k=np.array([factor], F32))
    assert different(proto, tmp_path) == []


def test_a_share_that_is_rounded_unevenly_is_refused(tmp_path: Path) -> None:
    """float32(1.3) * 90 is 116.99999 in float32, and float32(1.3) * 10 is 13."""
    steps = in_floats(onnx.TensorProto.FLOAT, node("Mul", ["a", "k"], ["b"]))
    with pytest.raises(
        CaptureError, match=r"the node 'c' \(Floor\) cannot be read: it rounds what it computes of sizes to"
    ):
        different(computed(steps, k=np.array([1.3], F32)), tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        [node("Div", ["a", "k"], ["b"])],
        [node("Sub", ["a", "k"], ["d"]), node("Div", ["d", "k"], ["b"])],
        [node("Add", ["k", "a"], ["d"]), node("Div", ["d", "k"], ["b"])],
        [node("Neg", ["a"], ["d"]), node("Div", ["d", "k"], ["f"]), node("Neg", ["f"], ["b"])],
        [node("Sqrt", ["a"], ["b"])],
        [node("Max", ["a", "k"], ["d"]), node("Div", ["d", "k"], ["b"])],
        [node("Min", ["k", "a"], ["b"])],
        [node("Cast", ["a"], ["d"], to=onnx.TensorProto.DOUBLE), node("Cast", ["d"], ["b"], to=onnx.TensorProto.FLOAT)],
    ],
    ids=lambda steps: "-".join(n.op_type for n in steps),
)
def test_every_step_of_arithmetic_on_sizes(steps: list[onnx.NodeProto], tmp_path: Path) -> None:
    proto = computed(in_floats(onnx.TensorProto.FLOAT, *steps), k=np.array([3.0], F32))
    assert different(proto, tmp_path, SIZES[2:]) == []


def test_sizes_in_half_precision_are_rounded_to_it(tmp_path: Path) -> None:
    """2049 is no number of float16."""
    steps = in_floats(onnx.TensorProto.FLOAT16, node("Mul", ["a", "k"], ["b"]))
    with pytest.raises(CaptureError, match="it rounds what it computes of sizes to float16, so that it is "):
        different(computed(steps, k=np.array([1.0], np.float16)), tmp_path)
    steps = in_floats(onnx.TensorProto.BFLOAT16, rounding=None)
    steps[1] = node("Identity", ["a"], ["c"])
    with pytest.raises(CaptureError, match="it computes sizes in bfloat16"):
        different(computed(steps), tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        [node("Sub", ["one", "h"], ["d"]), node("Div", ["d", "k"], ["f"]), node("Neg", ["f"], ["e"])],
        [node("Neg", ["k"], ["d"]), node("Div", ["h", "d"], ["f"]), node("Neg", ["f"], ["e"])],
        [node("Neg", ["h"], ["d"]), node("Div", ["d", "k"], ["f"]), node("Neg", ["f"], ["e"])],
        [node("Sub", ["h", "one"], ["d"]), node("Div", ["d", "k"], ["e"])],
    ],
)
def test_whole_numbers_are_divided_towards_zero(steps: list[onnx.NodeProto], tmp_path: Path) -> None:
    assert different(computed(steps, one=ints(1), k=ints(2)), tmp_path) == []


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [0.7, 2.0, 1.5, 0.1234])
def test_resizing_by_a_scale(mode: str, scale: float, tmp_path: Path) -> None:
    more = {} if mode != "nearest" else {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [node("Resize", ["x", "", "k"], mode=mode, **more)]
    proto = model(nodes, {"x": ["n", 3, "h", "w"]}, constants={"k": np.array([1, 1, scale, 1], F32)})
    assert different(proto, tmp_path, [n for n in SIZES if n * scale >= 1]) == []


def test_a_scale_that_gives_no_such_number_of_positions_is_refused(tmp_path: Path) -> None:
    """1.3 in float32 gives 116 for 90, and 117 for real numbers, but 13 for 10, as these do."""
    nodes = [node("Resize", ["x", "", "k"], mode="linear")]
    proto = model(nodes, {"x": ["n", 3, "h", "w"]}, constants={"k": np.array([1, 1, 1.3, 1], F32)})
    with pytest.raises(CaptureError, match="so that it is 116 for a size of 90; no arithmetic on whole numbers gives"):
        different(proto, tmp_path)


@pytest.mark.parametrize("where", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op, step", [("Conv", 2), ("Conv", 3), ("MaxPool", 2), ("MaxPool", 3), ("AveragePool", 2)])
def test_paddings_that_follow_free_sizes(op: str, step: int, where: str, tmp_path: Path) -> None:
    weight = {"w": values(4, 3, 3, 3)} if op == "Conv" else {}
    more = {} if weight else {"kernel_shape": [3, 3] if op == "MaxPool" else [2, 2]}
    nodes = [node(op, ["x", *weight], auto_pad=where, strides=[step, step], **more)]
    assert different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=weight), tmp_path) == []


def test_steps_of_a_transposed_convolution_that_are_longer_than_its_window(tmp_path: Path) -> None:
    weight = {"w": values(3, 4, 2, 2)}
    nodes = [node("ConvTranspose", ["x", "w"], auto_pad="SAME_UPPER", strides=[3, 3])]
    assert different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=weight), tmp_path) == []


def test_pads_that_are_none_at_the_traced_size_are_kept(tmp_path: Path) -> None:
    """Up to a multiple of four: 12 rows need none, and 10 rows two."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"]), node("Neg", ["h"], ["n"])]
    nodes += [node("Mod", ["n", "four"], ["m"]), node("Concat", ["zeros", "m", "zero"], ["p"], axis=0)]
    nodes += [node("Pad", ["x", "p"], ["y"])]
    constants = {"two": ints(2), "four": ints(4), "zero": ints(0), "zeros": ints(0, 0, 0, 0, 0, 0)}
    assert different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=constants), tmp_path) == []


def test_parts_of_a_table_that_are_as_long_as_the_input(tmp_path: Path) -> None:
    """Small tables of whole numbers are known, and their parts of free length are not."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"])]
    nodes += [
        node("Slice", ["table", "zero", "h", "one"], ["places"]),
        node("Gather", ["rows", "places"], ["r"], axis=0),
    ]
    nodes += [node("Unsqueeze", ["r", "last"], ["u"]), node("Mul", ["x", "u"], ["y"])]
    constants = {"two": ints(2), "zero": ints(0), "one": ints(1), "last": ints(2)}
    constants |= {"table": np.arange(100)[None, ::-1].copy(), "rows": values(100)}
    assert different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=constants), tmp_path) == []


def test_a_table_that_is_split_at_free_sizes(tmp_path: Path) -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"]), node("Sub", ["all", "h"], ["rest"])]
    nodes += [node("Concat", ["h", "rest"], ["sizes"], axis=0), node("Split", ["table", "sizes"], ["a", "b"], axis=0)]
    nodes += [
        node("Gather", ["rows", "a"], ["r"], axis=0),
        node("Unsqueeze", ["r", "last"], ["u"]),
        node("Mul", ["x", "u"], ["y"]),
    ]
    constants = {"two": ints(2), "all": ints(100), "last": ints(1)}
    constants |= {"table": np.arange(100)[::-1].copy(), "rows": values(100)}
    assert (
        different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=constants), tmp_path, [n for n in SIZES if n < 98])
        == []
    )


POSITIONS = {
    "equal ones are counted": [
        node("Equal", ["rows", "columns"], ["same"]),
        node("Cast", ["same"], ["ones"], to=onnx.TensorProto.FLOAT),
        node("ReduceSum", ["ones", "last"], ["sums"], keepdims=1),
    ],
    "remainders as of C": [
        node("Sub", ["rows", "columns"], ["gaps"]),
        node("Mod", ["gaps", "three"], ["rest"], fmod=1),
        node("Cast", ["rest"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("ReduceSum", ["floats", "last"], ["sums"], keepdims=1),
    ],
    "bytes": [
        node("Mul", ["rows", "hundred"], ["large"]),
        node("Cast", ["large"], ["bytes"], to=onnx.TensorProto.UINT8),
        node("Cast", ["bytes"], ["sums"], to=onnx.TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_computed_with_as_values_are(name: str, tmp_path: Path) -> None:
    """They are known numbers where the size is fixed, and none where it is free."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"]), node("Squeeze", ["h"], ["count"])]
    nodes += [node("Range", ["from", "count", "step"], ["places"]), node("Unsqueeze", ["places", "last"], ["rows"])]
    nodes += [node("Unsqueeze", ["places", "zero"], ["columns"]), *POSITIONS[name], node("Add", ["x", "sums"], ["y"])]
    constants = {"two": ints(2), "last": ints(1), "zero": ints(0), "three": ints(3), "hundred": ints(100)}
    constants |= {"from": np.array(0), "step": np.array(1)}
    assert different(model(nodes, {"x": ["n", 3, "h", "w"]}, constants=constants), tmp_path) == []


def test_a_border_as_torchs_older_exporter_writes_it(tmp_path: Path) -> None:
    """Its pads are put together with zeros, whose number depends on how many pads are given."""
    zeros = onnx.numpy_helper.from_array(ints(0))
    pads = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "two"], ["h"]),
        node("Mod", ["h", "four"], ["m"]),
        node("Shape", ["m"], ["c"]),
        node("Sub", ["seven", "c"], ["z"]),
        node("ConstantOfShape", ["z"], ["o"], value=zeros),
        node("Slice", ["o", "zero", "six", "zero"], ["before"]),
        node("Slice", ["o", "six", "seven", "zero"], ["behind"]),
        node("Concat", ["before", "m", "behind"], ["p"], axis=0),
        node("Pad", ["x", "p"], ["y"]),
    ]
    numbers = {"two": ints(2), "four": ints(4), "six": ints(6), "seven": ints(8), "zero": ints(0)}
    proto = model(pads, {"x": ["n", 3, "h", "w"]}, constants=numbers)
    assert different(proto, tmp_path) == []


def test_a_choice_by_a_batch_far_from_the_example_is_seen(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "first"], ["n"]),
        node("Greater", ["n", "limit"], ["c"]),
        node("Where", ["c", "two", "three"], ["end"]),
        node("Slice", ["x", "zero", "end", "one"]),
    ]
    numbers = {"zero": ints(0), "one": ints(1), "two": ints(2), "three": ints(3)}
    constants = numbers | {"first": np.array(0), "limit": np.array(200)}
    path = tmp_path / "net.onnx"
    path.write_bytes(model(nodes, {"x": ["n", 9]}, constants=constants).SerializeToString())
    done = reparam.convert(str(path), torch.rand(2, 9))
    assert any("the batch is fixed at 2" in r.message for r in done.report.remarks)
    with pytest.raises(CaptureError, match="batch"):
        reparam.convert(str(path), torch.rand(2, 9), dynamic=("batch",))


def test_attention_over_keys_of_free_length(tmp_path: Path) -> None:
    shapes = {"q": ["n", 2, 5, 4], "k": ["n", 2, "length", 4], "v": ["n", 2, "length", 4]}
    path = tmp_path / "net.onnx"
    path.write_bytes(model([node("Attention", ["q", "k", "v"])], shapes, opset=23).SerializeToString())
    free = ("batch", "k:2=length", "v:2=length")
    done = reparam.convert(
        str(path), torch.rand(2, 2, 5, 4), torch.rand(2, 2, 7, 4), torch.rand(2, 2, 7, 4), dynamic=free
    )
    assert done.program.inputs[1].shape == done.program.inputs[2].shape


def test_a_norm_over_a_free_height_and_width(tmp_path: Path) -> None:
    """onnxruntime adds the squares in order, which loses more than torch does."""
    proto = model([node("GlobalLpPool", ["x"], ["y"], p=2)], {"x": ["n", 3, "h", "w"]})
    assert different(proto, tmp_path) == []
