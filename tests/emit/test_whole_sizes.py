"""Sizes that a model rounds from fractions are written with whole numbers, and give the same sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import convert

FORMS: dict[str, Callable[[int], int]] = {
    "ceil of a quotient": lambda n: math.ceil(n / 2),
    "floor of a quotient": lambda n: math.floor(n / 3),
    "ceil of a product": lambda n: math.ceil(n * 0.75),
    "trunc": lambda n: math.trunc(n / 2),
    "floor of tenths": lambda n: math.floor(n * 0.3),
    "ceil of tenths": lambda n: math.ceil(n * 0.7),
    "a rounded half": lambda n: round(n / 2),
    "a rounded third": lambda n: round(n / 3),
    "rounded tenths": lambda n: round(n * 0.3),
    "rounded halves": lambda n: round(n * 1.5),
}


class Padded(nn.Module):
    def __init__(self, form: Callable[[int], int]) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        more = self.form(x.shape[-1])
        return self.conv(F.pad(x, [more, 1, 0, self.form(x.shape[-2])]))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_archive_opens_with_torch_alone_and_gives_the_same_sizes(form: Callable[[int], int], tmp_path: Path) -> None:
    model = Padded(form).eval()
    convert(model, torch.rand(2, 3, 9, 12), dynamic=("batch", "height", "width")).save(tmp_path / "net.pt2")
    opened = torch.export.load(tmp_path / "net.pt2").module()
    for shape in ((1, 3, 8, 15), (3, 3, 13, 7), (2, 3, 10, 10)):
        x = torch.rand(shape)
        torch.testing.assert_close(opened(x), model(x))
