"""Channels that `analyze --what dead` names are those that `prune` lets go first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam import analyze, prune

DATA = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    """32 neurons: 6 never fire, 10 are at the end of their range whatever goes in."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 32), nn.ReLU6(), nn.Linear(32, 5))
    with torch.no_grad():
        made[0].bias[:6] -= 100
        made[0].bias[6:16] += 100
        made[0].bias[16:] += 1
    return made


def pruned(**options: float | str | bool) -> tuple[float, dict[str, int]]:
    report = prune(net(), DATA[:2], DATA, form="residual", joint=0, **options).report
    return report.final.error, report.as_dict()["idle"]


def test_what_analyze_finds_goes_first_and_costs_nothing() -> None:
    units = analyze(net(), DATA[:2], what="dead", data=[DATA], batch=100)["dead"].detail["units"]["1"]
    assert (units["never fires"], units["constant"]) == ([*range(6)], [*range(6, 16)])
    for score in ("fisher", "magnitude"):  # large weights make these neurons, and are no reason to keep them
        error, idle = pruned(macs=0.5, score=score)
        assert error < 1e-4 and idle == {"0": 16}


def test_what_is_constant_is_kept_where_no_bias_is_refitted() -> None:
    error, idle = pruned(macs=0.82, refit=False)
    assert error == pytest.approx(0, abs=1e-6) and idle == {"0": 6}


def test_a_network_without_such_channels_has_none_named() -> None:
    torch.manual_seed(1)
    data: Tensor = torch.randn(60, 8)
    busy = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    assert not prune(busy, data[:2], data, macs=0.7, form="residual", joint=0).report.idle
