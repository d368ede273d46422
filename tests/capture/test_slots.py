"""Modules of classes with slots: what these hold is a part of the model."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.capture import fresh_copy, own_copy


class Scaled(nn.Module):
    """Has a slot, as its base class has, and one that nothing is written to."""

    __slots__ = ("empty", "factor")

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor


class ScaledTwice(Scaled):
    __slots__ = ("__hidden", "lock", "table")

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lock, self.__hidden = {"by": [3.0]}, threading.Lock(), 4.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.table["by"][0] * self.__hidden


@pytest.mark.parametrize("kind", [Scaled, ScaledTwice])
def test_what_slots_hold_is_copied(kind: type[Scaled]) -> None:
    net = nn.Sequential(kind(), nn.ReLU())
    for copied in (fresh_copy(net)[0], own_copy(net)[0]):
        assert copied.factor == 2.0 and not hasattr(copied, "empty")
        if isinstance(copied, ScaledTwice):
            assert copied.table == net[0].table and copied.table is not net[0].table and copied.lock is net[0].lock
    assert own_copy(net)[0].layer.weight is not net[0].layer.weight
    x = torch.randn(2, 4)
    torch.testing.assert_close(convert(net, x).module(x), net(x))
