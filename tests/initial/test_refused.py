"""Scales that no number holds, and labels of classes that are not there, are refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import InputError, init


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for a, b in ((0, 1), (2, 3)):
            x = x + self.layers[b](self.layers[a](x).relu())
        return x


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("depth-scale", {"beta": 1e6}, r"beta is 1e\+06: branches times 2\^-1e\+06 are zero or infinite in float64"),
        ("depth-scale", {"beta": -1e6}, r"beta is -1e\+06"),
        ("depth-scale", {"beta": 400.0}, "beyond the numbers of float32"),
        ("autoinit", {"variance": 1e-90}, "beyond the numbers of float32"),
        ("autoinit", {"variance": 1e90}, "beyond the numbers of float32"),
        (
            "residual-scale",
            {"factor": 1e-90},
            "the factor 1e-90 behind the sum of .* numbers of float32",
        ),
        ("residual-scale", {"factor": 1e90, "scale": "learned"}, "zero or infinite"),
    ],
)
def test_a_scale_that_no_number_holds_is_refused(method: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        init(Residual(), torch.randn(2, 8), method=method, **options)


def test_scales_at_the_edge_of_what_is_held_are_set() -> None:
    x = torch.randn(2, 8)
    last = next(w for w in init(Residual(), x, method="depth-scale", beta=30.0).weights if w.name == "layers.1.weight")
    assert last.deviation == pytest.approx(2**-30 / 8**0.5, rel=0.3)
    first = next(w for w in init(Residual(), x, method="autoinit", variance=1e-30).weights if "0.weight" in w.name)
    assert first.deviation == pytest.approx(1e-15 / 8**0.5, rel=0.3)


def test_labels_of_classes_that_are_not_there_are_told_with_the_classes() -> None:
    x = torch.randn(16, 8)
    with pytest.raises(InputError, match="a label is 15, and the network has 4 classes, counted from 0 to 3"):
        init(nn.Linear(8, 4), x[:2], method="gradinit", data=[(x, torch.arange(16))], steps=1)
