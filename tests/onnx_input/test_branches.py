"""Networks with branches: the one that a constant or a size chooses is read, and no other is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import reparam
from reparam.check import PathError
from reparam.errors import CaptureError, InputError
from reparam.onnx_input import import_onnx
from support.onnx_graphs import F32, differs, draw, ints, model, node, theirs, values

IMAGE = {"x": ["n", 3, "h", "w"]}
HEIGHT = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["h"]), node("Greater", ["h", "four"], ["c"])]
NUMBERS = {"two": np.array(2), "four": np.array(4)}


def branch(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("b",), constants: Mapping[str, Any] | None = None
) -> onnx.GraphProto:
    """A graph without inputs, as branches are."""
    own = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    return helper.make_graph(list(nodes), "branch", [], [onnx.ValueInfoProto(name=o) for o in outputs], own)


def choice(then: onnx.GraphProto, other: onnx.GraphProto, outputs: Sequence[str] = ("y",)) -> onnx.NodeProto:
    return node("If", ["c"], outputs, name="choice", then_branch=then, else_branch=other)


def twice_or_more(opset: int = 17) -> onnx.ModelProto:
    """2 x where there are more than four rows, else x + 1. The branches call what they make by the same names."""
    then = branch([node("Mul", ["x", "k"], ["b"])], constants={"k": np.array(2.0, F32)})
    one = numpy_helper.from_array(np.array(1.0, F32))
    other = branch([node("Constant", [], ["k"], value=one), node("Add", ["x", "k"], ["b"])])
    return model([*HEIGHT, choice(then, other)], IMAGE, constants=NUMBERS, opset=opset)


@pytest.mark.parametrize("opset", [11, 17, 22])
@pytest.mark.parametrize("height", [3, 8])
def test_a_size_chooses(opset: int, height: int, tmp_path: Path) -> None:
    assert differs(twice_or_more(opset), tmp_path, draw([(2, 3, height, 5)])) == ""


@pytest.mark.parametrize("holds", [True, False])
def test_a_constant_chooses(holds: bool, tmp_path: Path) -> None:
    proto = model([choice(branch([node("Relu", ["x"], ["b"])]), branch([node("Neg", ["x"], ["b"])]))], IMAGE)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(holds), "c"))
    assert differs(proto, tmp_path, draw([(2, 3, 4, 5)])) == ""


def test_branches_within_branches(tmp_path: Path) -> None:
    inner = choice(branch([node("Relu", ["a"], ["b"])]), branch([node("Neg", ["a"], ["b"])]), ["d"])
    inner.input[0] = "e"
    compare = node("Less", ["h", "most"], ["e"])
    then = branch([node("Abs", ["x"], ["a"]), compare, inner], ["d"], {"most": np.array(7)})
    proto = model([*HEIGHT, choice(then, branch([node("Exp", ["x"], ["b"])]))], IMAGE, constants=NUMBERS)
    for height in (3, 6, 9):
        assert differs(proto, tmp_path, draw([(2, 3, height, 5)])) == "", height


def test_several_results_and_one_from_outside(tmp_path: Path) -> None:
    pool = node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2])
    then = branch([pool, node("Identity", ["x"], ["o"])], ["p", "o"])
    other = branch([node("Relu", ["x"], ["p"]), node("Neg", ["w"], ["o"])], ["p", "o"])
    proto = model(
        [*HEIGHT, choice(then, other, ["y", "z"])],
        IMAGE,
        ("y", "z"),
        {**NUMBERS, "w": values(1, 3, 2, 2)},
    )
    for height in (3, 6):
        assert differs(proto, tmp_path, draw([(2, 3, height, 5)])) == "", height


def norm_in_a_branch() -> onnx.ModelProto:
    c = 4
    numbers = {"g": values(c), "b": values(c, seed=2), "m": values(c, seed=3), "v": np.abs(values(c, seed=4)) + 0.5}
    then = branch([node("BatchNormalization", ["a", "g", "b", "m", "v"], ["o"])], ["o"], numbers)
    other = branch([node("Identity", ["a"], ["o"])], ["o"])
    nodes = [node("Conv", ["x", "w"], ["a"]), *HEIGHT, choice(then, other)]
    return model(nodes, IMAGE, constants={**NUMBERS, "w": values(4, 3, 3, 3)})


def test_what_lies_in_a_branch_is_rewritten(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(norm_in_a_branch().SerializeToString())
    result = reparam.convert(tmp_path / "net.onnx", torch.zeros(2, 3, 8, 8))
    assert (result.report.before.norms, result.report.after.norms) == (1, 0)
    [x] = draw([(3, 3, 8, 8)])
    [wanted] = theirs(norm_in_a_branch(), [x])
    assert np.allclose(result.module(x)["y"].detach().numpy(), wanted, atol=1e-5)


def test_a_free_size_that_chooses_is_refused_with_the_node(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(twice_or_more().SerializeToString())
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(PathError, match=r"leave height out of the free axes"):
        reparam.convert(tmp_path / "net.onnx", x, dynamic=("batch", "height", "width"))
    wide = reparam.convert(tmp_path / "net.onnx", x, dynamic=("batch", "width")).module
    assert torch.equal(wide(torch.ones(1, 3, 8, 5))["y"], torch.full((1, 3, 8, 5), 2.0))


def test_values_do_not_choose(tmp_path: Path) -> None:
    steps = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "k"], ["c"])]
    then, other = branch([node("Relu", ["x"], ["b"])]), branch([node("Neg", ["x"], ["b"])])
    proto = model([*steps, choice(then, other)], {"x": [2, 3]}, constants={"k": np.array(0.0, F32)})
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CaptureError, match=r"'choice' \(If\) cannot be read: its condition is computed by the network"):
        reparam.convert(tmp_path / "net.onnx")


UNREAD = {
    "values": node("NonZero", ["x"], ["b"]),
    "domain": node("Gelu", ["x"], ["b"], domain="com.microsoft"),
    "loop": node("SequenceMap", ["x"], ["b"], body=branch([node("Relu", ["x"], ["b"])])),
}


@pytest.mark.parametrize("unread", UNREAD.values(), ids=UNREAD)
def test_what_is_not_chosen_need_not_be_read(unread: onnx.NodeProto, tmp_path: Path) -> None:
    proto = model([*HEIGHT, choice(branch([node("Relu", ["x"], ["b"])]), branch([unread]))], IMAGE, constants=NUMBERS)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    net = import_onnx(tmp_path / "net.onnx")
    [x] = draw([(2, 3, 6, 5)])
    assert torch.equal(net(x)["y"], x.relu())
    with pytest.raises(InputError, match=rf"'b' \({unread.op_type}\) (cannot be read|holds a graph of its own)"):
        net(x[:, :, :3])


def test_thousands_of_branches_may_call_what_they_make_by_the_same_name(tmp_path: Path) -> None:
    nodes, count = list(HEIGHT), 3000
    for i in range(count):
        one = numpy_helper.from_array(np.array(1.0, F32))
        then = branch([node("Constant", [], ["k"], value=one), node("Add", [f"x{i}" if i else "x", "k"], ["b"])])
        nodes.append(choice(then, branch([node("Relu", ["x"], ["b"])]), [f"x{i + 1}"]))
    proto = model(nodes, IMAGE, (f"x{count}",), NUMBERS)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    found = import_onnx(tmp_path / "net.onnx")
    assert len(found.graph.nodes) > count and max(len(str(n.target)) for n in found.graph.nodes) < 40
    x = torch.zeros(1, 3, 5, 1)
    assert float(found(x)[f"x{count}"].max()) == count


DAMAGED: list[tuple[onnx.GraphProto, onnx.GraphProto | None, str]] = [
    (branch([node("Relu", ["q"], ["b"])]), branch([node("Relu", ["x"], ["b"])]), "'b' reads 'q' too early"),
    (
        branch([node("Relu", ["x"], ["b"])], ["q"]),
        branch([node("Relu", ["x"], ["b"])]),
        "nothing gives 'q' of a branch",
    ),
    (branch([node("Relu", ["x"], ["b"])]), None, "the branches of 'choice' are not those of an If"),
    (branch([node("Relu", ["x"], ["b"])]), branch([], []), "the branches of 'choice' are not those of an If"),
]


@pytest.mark.parametrize("then, other, message", DAMAGED)
def test_damaged_branches_are_told(
    then: onnx.GraphProto, other: onnx.GraphProto | None, message: str, tmp_path: Path
) -> None:
    chosen = choice(then, other or then)
    if other is None:
        del chosen.attribute[1]
    (tmp_path / "net.onnx").write_bytes(
        model([*HEIGHT, chosen], IMAGE, constants=NUMBERS | {"k": ints(1)}).SerializeToString()
    )
    with pytest.raises(InputError, match=message):
        import_onnx(tmp_path / "net.onnx")


def test_a_condition_that_is_no_truth_value_is_told(tmp_path: Path) -> None:
    proto = twice_or_more()
    proto.graph.input.append(helper.make_tensor_value_info("t", TensorProto.BOOL, [2]))
    proto.graph.node[-1].input[0] = "t"
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CaptureError, match=r"'choice' \(If\) cannot be read: its condition is computed"):
        reparam.convert(tmp_path / "net.onnx", torch.zeros(2, 3, 8, 8), torch.tensor([True, False]))
