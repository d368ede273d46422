"""Affines pass casts between floating dtypes, and none that truncates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from support.helpers import Lambda, healthy

TRUNCATE = (torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


def network(cast: torch.dtype, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    body = Lambda(
        lambda m, x: m.norm(m.conv(x).relu().to(cast).float()), conv=nn.Conv2d(2, 3, 1), norm=nn.BatchNorm2d(3)
    )
    return healthy(body).float()


@pytest.mark.parametrize("cast", TRUNCATE)
def test_no_norm_is_folded_over_a_cast_that_truncates(cast: torch.dtype) -> None:
    """With some weights, a few samples of few positions would not show it."""
    for seed in range(4):
        net = network(cast, seed)
        found = convert(net, torch.randn(2, 2, 5, 5))
        weight = next(p for p in found.module.parameters() if p.dim() == 4)
        assert torch.equal(weight, net.conv.weight)  # type: ignore[union-attr, arg-type]
        x = 20 * torch.randn(5, 2, 5, 5)
        torch.testing.assert_close(found.module(x), net(x))


@pytest.mark.parametrize("cast", [torch.float32, torch.float64])
def test_a_norm_is_folded_over_a_cast_that_keeps_the_digits(cast: torch.dtype) -> None:
    net = network(cast, 0)
    with torch.no_grad():
        net.norm.weight.abs_()  # type: ignore[union-attr, operator]
    assert convert(net, torch.randn(2, 2, 5, 5)).report.after.norms == 0


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 300, 1), nn.Linear(32, 4200)])
def test_a_layer_behind_a_cast_that_is_checked_with_it(layer: nn.Module) -> None:
    """With so many products that the bound is added up in float32."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.layer((x * 1.5).half().float())

    x = torch.randn(2, 2, 32, 32)
    found = convert(Lambda(forward, layer=layer).float(), x)
    assert found.report.equivalent and found.report.after.macs <= found.report.before.macs
