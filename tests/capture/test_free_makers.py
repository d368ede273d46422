"""Ranges, grids and tensors that are made of free sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture import capture
from reparam.ir import evaluate
from support.helpers import Lambda

SIZES = ((1, 1), (1, 5), (2, 3), (7, 2), (31, 8), (64, 65))
THETA = torch.tensor([[0.8, 0.3, -0.1], [-0.2, 1.1, 0.4]])


def grid(x: Tensor, aligned: bool) -> Tensor:
    return F.affine_grid(THETA[None].expand(x.shape[0], 2, 3).to(x.dtype), list(x.shape), align_corners=aligned)


MADE: dict[str, Callable[[Any, Tensor], Any]] = {
    "range": lambda m, x: x + torch.linspace(-1, 1, x.shape[3]),
    "downwards": lambda m, x: x + torch.linspace(3.5, -1.25, x.shape[3]),
    "of sizes": lambda m, x: x + torch.linspace(0, x.shape[3] - 1, x.shape[3], dtype=x.dtype, device=x.device),
    "by name": lambda m, x: x + torch.linspace(start=0.5, end=x.shape[2], steps=x.shape[3]),
    "longer": lambda m, x: x.sum(3, keepdim=True) * torch.linspace(0, 1, 2 * x.shape[3] + 1),
    "cells": lambda m, x: grid(x, False),
    "corners": lambda m, x: grid(x, True),
    "a size": lambda m, x: x / torch.as_tensor(x.shape[2]),
    "sizes": lambda m, x: x * torch.as_tensor([x.shape[2], x.shape[3]]).sum(),
    "a share": lambda m, x: x * torch.as_tensor([x.shape[2] * 0.5, 2.0])[0],
    "of its kind": lambda m, x: x / x.new_tensor([x.shape[2] * 0.5, x.shape[3]]).sum(),
    "of a kind": lambda m, x: x * x.new_tensor((x.shape[2], 2.5 * x.shape[3]), dtype=torch.int64)[1],
    "maxima": lambda m, x: F.max_pool1d(x[:, 0], 2),
    "maxima in steps": lambda m, x: nn.MaxPool1d(3, 1, 1, ceil_mode=True)(x[:, 0]),
    "maxima apart": lambda m, x: torch.max_pool1d(x[0], [3], [2], 1, 2, True) if x.shape[3] else x,
    "the largest of windows": lambda m, x: F.adaptive_max_pool2d(x, (x.shape[2] // 2 + 1, x.shape[3] // 3 + 1)),
    "the largest of more windows": lambda m, x: F.adaptive_max_pool2d(x[0], (2 * x.shape[2], x.shape[3])),
    "the largest of rows": lambda m, x: nn.AdaptiveMaxPool2d((None, 5))(x),
    "the largest of a row": lambda m, x: F.adaptive_max_pool1d(x[:, 0], x.shape[3] // 2 + 1),
    "the largest of a volume": lambda m, x: nn.AdaptiveMaxPool3d((1, None, x.shape[3] // 4 + 1))(x[:, None]),
    "their dtype": lambda m, x: x * torch.as_tensor(x.shape[2:], dtype=x.dtype).sum(),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_free_sizes_is_what_torch_makes(name: str) -> None:
    model = Lambda(MADE[name]).eval()
    program = capture(model, (torch.zeros(2, 3, 8, 9),), dynamic=("batch", "height", "width")).program
    assert [isinstance(n, str) for n in program.inputs[0].shape] == [True, False, True, True]
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        if width < 5 and "maxima" in name:
            continue  # which torch does not pool
        [found] = evaluate(program, [x], None)
        torch.testing.assert_close(found, model(x), rtol=2e-6, atol=1e-6)


def test_the_grids_of_volumes_are_those_of_torch() -> None:
    theta = torch.randn(2, 3, 4)
    model = Lambda(lambda m, x: F.affine_grid(theta, list(x.shape), align_corners=False)).eval()
    free = ("inputs_0:2=depth", "height", "width")
    program = capture(model, (torch.zeros(2, 1, 4, 5, 6),), dynamic=free).program
    for sides in ((4, 5, 6), (1, 3, 7), (2, 2, 2)):
        x = torch.zeros(2, 1, *sides)
        torch.testing.assert_close(evaluate(program, [x], None)[0], model(x), rtol=2e-6, atol=1e-6)


def test_what_is_made_of_known_sizes_is_made_by_torch() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        whole = torch.linspace(0, x.shape[2], 9, dtype=torch.int64)
        return x + torch.linspace(0, 1, 9) + whole + grid(x[:, :, :3, :3], True).sum()

    model = Lambda(forward).eval()
    program = capture(model, (torch.zeros(2, 3, 8, 9),), dynamic=("batch",)).program
    names = [str(n.target) for n in program.calls()]
    assert sum("linspace" in n for n in names) == 2 and any("affine_grid" in n for n in names)
    x = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(evaluate(program, [x], None)[0], model(x))


def test_the_largest_of_a_known_number_of_windows_is_found_by_torch() -> None:
    model = Lambda(lambda m, x: F.adaptive_max_pool2d(x, (2, 5))).eval()
    program = capture(model, (torch.zeros(2, 3, 8, 9),), dynamic=("batch", "height", "width")).program
    assert any("adaptive_max_pool2d" in str(n.target) for n in program.calls())
