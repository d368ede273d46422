"""Any axis may be free, under a name of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import convert, export
from reparam.capture import capture, frees_batch, read_axes, without_batch
from reparam.errors import CaptureError, InputError
from support.helpers import Lambda


class Tagger(nn.Module):
    """Tokens (N, L) to scores (N, L, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        x = self.norm(self.mix(self.embed(ids).transpose(1, 2)))
        return self.head(x.transpose(1, 2)) * weights[..., None]


def tokens(n: int, length: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    return torch.randint(0, 50, (n, length), generator=g), torch.rand(n, length, generator=g)


FREE = ("batch", "ids:1=sequence", "weights:1=sequence")


def test_sequence_of_any_length(tmp_path: Path) -> None:
    model = Tagger().eval()
    done = convert(model, *tokens(2, 7), dynamic=FREE)
    assert done.report.after.norms == 0
    done.save(tmp_path / "net.pt2")
    opened = torch.export.load(tmp_path / "net.pt2").module()
    for n, length in ((1, 9), (3, 4), (2, 30)):
        for module in (done.module, opened):
            torch.testing.assert_close(module(*tokens(n, length)), model(*tokens(n, length)))


def test_lengths_are_free_in_onnx_too(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Tagger().eval()
    export(model, *tokens(2, 7), path=tmp_path / "net.onnx", dynamic=FREE)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    ids, weights = tokens(3, 12)
    names = [i.name for i in session.get_inputs()]
    (got,) = session.run(None, dict(zip(names, (ids.numpy(), weights.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(got), model(ids, weights).detach(), rtol=1e-4, atol=1e-5)


def test_mapping_says_the_same() -> None:
    assert read_axes({"ids": {0: "batch", 1: "sequence"}}) == ("ids:0=batch", "ids:1=sequence")
    assert frees_batch(("ids:0=batch",)) and not frees_batch(("ids:1=batch",))
    assert without_batch(("batch", "ids:0=batch", "x:1=n")) == ("x:1=n",)


@pytest.mark.parametrize(
    ("dynamic", "told"),
    [
        (("sequence",), "unknown dynamic axis 'sequence'; choose from batch, height, width, or write input:axis=name"),
        (("ids:1=a", "ids:1=a", "ids:1=b"), "axis 1 of 'ids' is given two names, 'a' and 'b'"),
        (("tokens:1=n",), "no input is called 'tokens'; the model's inputs are ids, weights"),
        (("ids:2=n",), "'ids' has 2 axes, so that axis 2 is none of them"),
    ],
)
def test_axis_that_is_not_there(dynamic: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        capture(Tagger().eval(), tokens(2, 7), dynamic=dynamic)


def test_example_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="axis 1 of an example input, the n, has size 1"):
        capture(Tagger().eval(), tokens(2, 1), dynamic=("ids:1=n",))


def test_axis_that_the_model_asks_for_is_named_with_its_line() -> None:
    model = Lambda(lambda _, x: x * 2 if x.shape[1] % 2 == 0 else x)
    with pytest.raises(CaptureError, match=r"axis 'length' cannot stay free: the model asks whether length % 2"):
        capture(model, (torch.rand(2, 6),), dynamic=("inputs_0:1=length",))


def test_equal_sizes_under_other_names_are_refused() -> None:
    model = Lambda(lambda _, x, y: x + y)
    inputs = (torch.rand(2, 6), torch.rand(2, 6))
    with pytest.raises(CaptureError, match="equal to the a of"):
        capture(model, inputs, dynamic=("inputs_0:1=a", "inputs_1:1=b"))
    capture(model, inputs, dynamic=("inputs_0:1=a", "inputs_1:1=a"))


def test_axes_of_one_name_are_of_one_size() -> None:
    """Attention does not ask whether there are as many values as keys, and reads beyond the shorter ones."""
    attend = Lambda(lambda _, q, k, v: nn.functional.scaled_dot_product_attention(q, k, v))
    inputs = (torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7, 4), torch.rand(2, 3, 7, 4))
    program = capture(attend, inputs, dynamic=("batch", "inputs_1:2=length", "inputs_2:2=length")).program
    _, keys, values = (spec.shape for spec in program.inputs)
    assert keys == values and isinstance(keys[2], str)


def test_axes_of_one_name_that_differ_in_the_example_are_left_as_they_are() -> None:
    model = Lambda(lambda _, x, y: x.sum(1) + y.sum(1))
    inputs = (torch.rand(2, 6), torch.rand(2, 7))
    program = capture(model, inputs, dynamic=("inputs_0:1=a", "inputs_1:1=a")).program
    assert len({spec.shape[1] for spec in program.inputs}) == 2
