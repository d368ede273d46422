"""What functions keep that a model holds is what it was before the model was captured and checked."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import CaptureError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def _cached() -> Any:
    return functools.lru_cache(None)(lambda width: torch.linspace(0, 1, width))


def _closed_over() -> Any:
    made: dict[int, Tensor] = {}
    last: Tensor | None = None

    def ramp(width: int) -> Tensor:
        nonlocal last
        if last is None or len(last) != width:
            last = made.setdefault(width, torch.linspace(0, 1, width))
        return last

    return ramp


def _with_a_default() -> Any:
    def ramp(width: int, made: list[Tensor] = []) -> Tensor:  # noqa: B006  # as such models do
        if not made or len(made[-1]) != width:
            made.append(torch.linspace(0, 1, width))
        return made[-1]

    return ramp


def _counts_in_a_closure() -> Any:
    runs = 0

    def ramp(width: int) -> Tensor:
        nonlocal runs
        runs += 1
        return torch.linspace(0, 1, width) * runs

    return ramp


def _counts_in_a_default() -> Any:
    def ramp(width: int, made: list[Tensor] = []) -> Tensor:  # noqa: B006  # as such models do
        made.append(torch.linspace(0, 1, width))
        return made[-1] * len(made)

    return ramp


def _partial() -> Any:
    return functools.partial(lambda made, width: made.setdefault(width, torch.linspace(0, 1, width)), {})


def _partial_of_a_cached_one() -> Any:
    return functools.partial(_cached())


class Holding(nn.Module):
    """Has its ramp from a function that it holds, which a copy has in common with it."""

    alone: ClassVar[bool] = False

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.ramp = held

    def forward(self, x: Tensor) -> Tensor:
        if self.alone:
            return torch.cat([self.conv(x[i : i + 1]) for i in range(x.shape[0])]) * self.ramp(x.shape[3])
        return self.conv(x) * self.ramp(x.shape[3])


class HoldingAlone(Holding):
    """Fixes its batch, so that it is traced twice."""

    alone: ClassVar[bool] = True


@pytest.mark.parametrize("kind", [Holding, HoldingAlone])
@pytest.mark.parametrize("held", [_cached, _closed_over, _with_a_default, _partial, _partial_of_a_cached_one])
def test_what_functions_keep_that_a_model_holds_is_left_as_it_is(kind: type[Holding], held: Any) -> None:
    net = kind(held()).eval()
    result = reparam.convert(net, X)
    truth = net.conv(X) * torch.linspace(0, 1, 8)
    for module in (result.module, net):
        torch.testing.assert_close(module(X), truth)
    assert net(torch.randn(2, 3, 65, 65)).dtype == torch.float32


@pytest.mark.parametrize("kind", [Holding, HoldingAlone])
@pytest.mark.parametrize("held", [_counts_in_a_closure, _counts_in_a_default])
def test_what_functions_count_is_left_as_it_is_when_a_model_is_refused_for_that(kind: Any, held: Any) -> None:
    net = kind(held()).eval()
    with pytest.raises(CaptureError, match="writes to something outside of it"):
        reparam.convert(net, X)
    torch.testing.assert_close(net(X), net.conv(X) * torch.linspace(0, 1, 8))
    torch.testing.assert_close(net(X), net.conv(X) * torch.linspace(0, 1, 8) * 2)
