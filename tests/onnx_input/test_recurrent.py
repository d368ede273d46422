"""Recurrent layers against onnxruntime, and through both ways: out of a torch network, and in again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import reparam
from reparam.errors import CaptureError
from support.choice import mostly_in_sweeps
from support.onnx_graphs import differs, draw, imported, ints, model, node, theirs, values

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INSIDE, HIDDEN = 7, 2, 5, 3
NORMAL: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {"linear_before_reset": 1}, "RNN": {}}


def layer(op: str, *left_out: int, opset: int = 17, **more: Any) -> onnx.ModelProto:
    """One layer with all that it can take and give. left_out: its inputs that are not there, by their places."""
    directions = 2 if more.get("direction") == "bidirectional" else 1
    first = more.get("layout", 0)
    state = (BATCH, directions, HIDDEN) if first else (directions, BATCH, HIDDEN)
    names = ["x", "w", "r", "b", "", "h", *(["c"] if op == "LSTM" else [])]
    rows = GATES[op] * HIDDEN
    constants = {
        "w": values(directions, rows, INSIDE, seed=1),
        "r": values(directions, rows, HIDDEN, seed=2),
        "b": values(directions, 2 * rows, seed=3),
        "h": values(*state, seed=4),
        "c": values(*state, seed=5),
    }
    read = ["" if i in left_out else n for i, n in enumerate(names)]
    results = ["y", "last", *(["memory"] if op == "LSTM" else [])]
    made = node(op, read, results, hidden_size=HIDDEN, **(NORMAL[op] | more))
    return model([made], {"x": x_shape(first)}, results, {n: constants[n] for n in read if n in constants}, opset=opset)


def x_shape(layout: int = 0) -> tuple[int, ...]:
    return (BATCH, STEPS, INSIDE) if layout else (STEPS, BATCH, INSIDE)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(tmp_path, op, direction):
    for left_out in ((), (3,), (5, 6)):
        assert differs(layer(op, *left_out, direction=direction), tmp_path, draw([x_shape()])) == ""


@pytest.mark.parametrize("op", GATES)
def test_a_batch_that_comes_first(tmp_path, op):
    """onnxruntime does not run it, so the same layer with the steps first tells what is right."""
    x = draw([x_shape(1)])[0]
    for left_out in ((), (5, 6)):
        found = imported(layer(op, *left_out, layout=1), tmp_path)(x)
        other = layer(op, *left_out)
        for port in other.graph.initializer:
            if port.name in ("h", "c"):
                turned = onnx.numpy_helper.to_array(port).reshape(BATCH, 1, HIDDEN).transpose(1, 0, 2)
                port.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), port.name))
        y, *last = theirs(other, [x.transpose(0, 1).contiguous()])
        wanted = [y.transpose(2, 0, 1, 3), *(s.transpose(1, 0, 2) for s in last)]
        for mine, right in zip(found.values(), wanted, strict=True):
            np.testing.assert_allclose(mine.detach().numpy(), right, rtol=1e-5, atol=1e-6)


def test_functions(tmp_path):
    assert differs(layer("RNN", activations=["Relu"]), tmp_path, draw([x_shape()])) == ""
    both = layer("RNN", direction="bidirectional", activations=["Relu", "Relu"])
    assert differs(both, tmp_path, draw([x_shape()])) == ""
    assert differs(layer("GRU", activations=["Sigmoid", "Tanh"]), tmp_path, draw([x_shape()])) == ""


REFUSED = [
    ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "its functions are sigmoid, relu, tanh"),
    ("LSTM", {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Tanh"] * 2, "clip": 1.0}, "clips"),
    ("LSTM", {"input_forget": 1}, "coupled"),
    ("GRU", {"linear_before_reset": 0}, "linear_before_reset=0"),
    ("RNN", {"activations": ["Sigmoid"]}, "its functions are sigmoid"),
    ("RNN", {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "its functions are tanh, relu"),
]


@pytest.mark.parametrize("op, more, why", REFUSED)
def test_what_torch_does_not_compute_is_refused(tmp_path, op, more, why):
    path = tmp_path / "net.onnx"
    path.write_bytes(layer(op, **more).SerializeToString())
    with pytest.raises(reparam.InputError, match=why):
        reparam.convert(path)


def test_lengths_and_peepholes_are_refused(tmp_path):
    proto = layer("LSTM")
    proto.graph.node[0].input[4] = "lengths"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(ints(STEPS, 3).astype(np.int32), "lengths"))
    peeping = layer("LSTM")
    peeping.graph.node[0].input.append("p")
    peeping.graph.initializer.append(onnx.numpy_helper.from_array(values(1, 3 * HIDDEN), "p"))
    for made, why in ((proto, "lengths of the sequences"), (peeping, "peepholes")):
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        with pytest.raises(reparam.InputError, match=why):
            reparam.convert(path)


class Speech(nn.Module):
    """A convolution with a norm, a recurrent layer of two levels and both directions, and a head."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.recurrent = kind(6, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.head(self.recurrent(y.transpose(1, 2))[0])


@pytest.mark.parametrize("kind", mostly_in_sweeps([nn.LSTM, nn.GRU], nn.LSTM))
def test_a_network_comes_back_from_its_own_file(tmp_path, kind):
    net = Speech(kind).eval()
    nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    path = tmp_path / "net.onnx"
    reparam.export(net, torch.randn(2, 4, 9), path=path, to="as-is")
    result = reparam.convert(path)
    assert result.report.equivalent and result.report.after.norms == 0
    x = torch.randn(2, 4, 9)
    with torch.no_grad():
        (found,) = result.module(x).values()
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-5)
    names = [str(n.target) for n in result.program.calls()]
    assert sum(n in ("aten.lstm.input", "aten.gru.input") for n in names) == 2
    assert not any("slice" in n or "cat" in n for n in names), "the gates are put in order once, when the file is read"


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", GATES)
def test_steps_that_are_to_stay_free_are_refused_by_the_name_of_the_layer(tmp_path, op, layout):
    free = layer(op, 5, 6, layout=layout)
    free.graph.node[0].name = "/block/rnn"
    for axis, size in enumerate(free.graph.input[0].type.tensor_type.shape.dim):
        if axis < 2:
            size.dim_param = "abc"[axis]
    path = tmp_path / "free.onnx"
    onnx.save(free, path)
    steps = 1 if layout else 0
    with pytest.raises(CaptureError) as told:
        reparam.convert(path, torch.randn(x_shape(layout)), dynamic=f"x:{steps}=t")
    assert "a recurrent layer ('/block/rnn') is captured for one number of steps" in str(told.value)
