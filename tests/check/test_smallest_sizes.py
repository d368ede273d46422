"""The smallest of a few sizes that the original runs on is compared: less than that it may not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.check import Judge, NetworkEvidence, PathError, check_float64
from reparam.errors import NotEquivalentError
from support.helpers import Lambda, program_of


def compared(forward: Callable[..., Any], converted: Callable[..., Any], steps: int = 64) -> NetworkEvidence:
    models = [Lambda(f).eval() for f in (forward, converted)]
    programs = [program_of(m, torch.zeros(2, 3, steps), dynamic=("inputs_0:2=T",)) for m in models]
    return check_float64(*programs, 0, Judge(models[0], programs[0]))[0]


def first(count: int) -> Callable[[Any, Tensor], Tensor]:
    """The first numbers of all channels in a row, times a factor for each channel; there have to be enough."""
    return lambda m, x: (x * torch.tensor([1.0, 2.0, 3.0])[:, None]).flatten(1)[:, :count].reshape(-1, count) * 1.0


def of_one_channel(count: int) -> Callable[[Any, Tensor], Tensor]:
    """The same where the first channel has them all."""
    return lambda m, x: x.flatten(1)[:, :count].reshape(-1, count) * 1.0


@pytest.mark.parametrize("count", [4, 12, 20, 40])
def test_what_differs_at_small_sizes_alone_is_found(count: int) -> None:
    with pytest.raises(NotEquivalentError, match="differs from the original"):
        compared(first(count), of_one_channel(count))


def test_the_first_that_runs_is_enough() -> None:
    shapes = compared(first(12), first(12)).shapes
    assert (2, 3, 5) in shapes and not {(2, 3, 3), (2, 3, 9), (2, 3, 17)} & set(shapes)
    shapes = compared(first(64), first(64)).shapes
    assert not {(2, 3, n) for n in (3, 5, 9, 17)} & set(shapes)


def test_another_path_is_found_there_too() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x.flatten(1)[:, :20].reshape(-1, 20)
        return y + y if type(x.shape[2]) is int and x.shape[2] == 9 else y * 2  # which no trace sees

    with pytest.raises(PathError, match="2x3x9"):
        compared(forward, forward)
