"""`verify` takes all that can be opened, and tells in one sentence what it cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam import InputError

X = torch.randn(2, 3, 8, 8)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_conversions_programs_and_files_are_compared(tmp_path: Path) -> None:
    model = net()
    made = reparam.convert(model, X)
    made.save(tmp_path / "net.pt2")
    sides = (made, made.module, made.program, tmp_path / "net.pt2", str(tmp_path / "net.pt2"))
    for side in sides:
        assert reparam.verify(model, side, X, adversarial=False).equivalent
        assert not reparam.verify(net(1), side, X, adversarial=False).equivalent
    assert reparam.verify(made, made.program, adversarial=False).equivalent


@pytest.mark.parametrize(
    ("a", "b", "inputs", "options", "message"),
    [
        (None, net(), (X,), {}, "a is None; give a module"),
        (net(), 3, (X,), {}, "b is an int; give a module"),
        (net(), net().state_dict(), (X,), {}, "b is a collections.OrderedDict"),
        (net(), "", (X,), {}, "the file b has no name"),
        (net(), "a\0b", (X,), {}, "has a NUL in its name"),
        (net(), "\ud800", (X,), {}, "has characters that file names cannot have"),
        (net(), "a" * 300, (X,), {}, "has a name of more than 255 bytes"),
        (net(), "none.pt2", (X,), {}, r"there is no file none\.pt2"),
        (net(), net(), (X.to_sparse(),), {}, "an example input is a sparse tensor"),
        (net(), net(), (torch.nested.nested_tensor([X[0]]),), {}, "an example input is a nested tensor"),
        (net(), net(), (), {}, "the shapes of the models' inputs are not known"),
        (net(), net(), (), {"input_shapes": "3,8,8"}, "is not a shape; give one for each input"),
        (net(), net(), (), {"input_shapes": 3}, "is not a shape"),
        (net(), net(), (), {"input_shapes": [3, 8, 8]}, "is not a shape"),
        (net(), net(), (), {"input_shapes": [(3, -8, 8)]}, "is not a shape"),
        (net(), net(), (), {"input_shapes": [(3, 8.0, 8)]}, "is not a shape"),
        (net(), net(), (), {"input_shapes": [(3, 10**9, 10**9)]}, "is too large for this machine"),
        (net(), net(), (X,), {"trials": 0}, "0 random inputs prove nothing"),
        (net(), net(), (X,), {"trials": 2.5}, r"2\.5 random inputs"),
        (net(), net(), (X,), {"seed": -1}, "the seed -1"),
        (net(), net(), (X,), {"progress": 1}, "progress is an int, not a function"),
        (net(), net(), (X,), {"x": X}, "the keywords that it takes are"),
        (net(), net(), (X, X), {}, "cannot be called with 2 example inputs"),
        (net(), net(), ("x",), {}, "example inputs are tensors"),
    ],
)
def test_what_cannot_be_compared_is_told(
    a: Any, b: Any, inputs: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reparam.verify(a, b, *inputs, **options)
