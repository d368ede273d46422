"""Figures of analyses do not depend on how samples are split, or on what the caller wants of torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from reparam import analyze


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("what, columns", [("moments", (2, 3, 5)), ("norm", (2, 3, 4))])
def test_figures_are_those_of_all_samples_however_they_are_split(what: str, columns: tuple[int, ...]) -> None:
    """Samples in order of their size, so that batches differ from one another."""
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
    x = torch.randn(64, 2, 5, 5) + torch.arange(64.0)[:, None, None, None] / 8
    whole = analyze(net, x[:2], what=what, data=x, batch=64)[what].rows
    for size in (16, 1):
        parts = analyze(net, x[:2], what=what, data=x, batch=size, batches=64 // size)[what].rows
        for row, other in zip(whole, parts, strict=True):
            assert [other[i] for i in columns] == pytest.approx([row[i] for i in columns], rel=1e-9)


def test_figures_of_several_batches_of_large_numbers_are_finite() -> None:
    layer = nn.Linear(4, 3).double()
    layer.weight.data *= 1e150
    (row,) = analyze(layer, torch.randn(2, 4).double(), what="moments", batch=16, batches=4)["moments"].rows
    assert 1e298 < row[3] < 1e302


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_who_wants_no_derivatives_gets_the_same_figures(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)).double()
    x = torch.randn(16, 2, 5, 5, dtype=torch.float64)
    kinds = ("gradients", "sensitivity", "erf")
    found = analyze(net, x[:2], what=kinds, data=x)
    with mode():
        again = analyze(net, x[:2].clone(), what=kinds, data=x.clone())
    assert [found[k].rows for k in kinds] == [again[k].rows for k in kinds]
