"""Masks and whole numbers keep their kind where channels are computed of constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from support.helpers import Lambda

MASK = torch.tensor([True, False, True, False]).view(4, 1, 1)
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": lambda y: y.masked_fill(y > 0, 0.5),
    "chosen": lambda y: torch.where(y > 0, y, -y),
    "multiplied": lambda y: y * (y > 0),
    "both": lambda y: (y > 0) & (y < 1),
    "not": lambda y: torch.logical_not(y > 0),
    "whole": lambda y: y.to(torch.int32) // 3,
    "constant mask": lambda y: y.masked_fill(MASK, 0.0),
    "constant choice": lambda y: torch.where(MASK, y, 0.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("to", ["fused", "plain"])
def test_a_mask_is_no_number(way: str, to: str) -> None:
    torch.manual_seed(0)
    net = Lambda(lambda net, x: WAYS[way](net.conv(x)), conv=nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(convert(net, x, to=to).module(x), net(x))
