"""Analyses of networks whose weights are huge, tiny, zero or broken: a finite figure, or one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import InputError, analyze
from reparam.signal import KINDS, measured
from reparam.signal.by_layer import normal_distance
from support.choice import crossed
from support.tables import check_finite


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm, self.groups, self.head = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        x = x + self.third(F.gelu(self.groups(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 3))


def plain() -> nn.Module:
    return nn.Sequential(*(part for _ in range(12) for part in (nn.Linear(8, 8), nn.ReLU())))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Convolutions, (3, 8, 8)),
    "transformer": (transformer, (5, 8)),
    "plain": (plain, (8,)),
}


def times(factor: float, name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net, torch.randn(2, *shape)


@pytest.mark.parametrize("name, factor", crossed(NETS, [1e30, 1e-30, 0.0]))
def test_every_analysis_gives_finite_figures_or_one_sentence(factor: float, name: str) -> None:
    net, x = times(factor, name)
    found = analyze(net, x, what=list(KINDS))
    assert {t.what for t in found.tables} | set(found.refused) == set(KINDS)
    for table in found.tables:
        check_finite(table)
    assert all("\n" not in why and len(why) > 20 for why in found.refused.values())


def test_what_overflows_is_named() -> None:
    net, x = times(1e30, "plain")
    for kind in ("moments", "gradients", "rank", "gaussianity", "dead", "sensitivity"):
        with pytest.raises(InputError, match=r"what '20' gives on these inputs is not finite, in float64 too"):
            analyze(net, x, what=kind)
    net, x = times(1e30, "convolutions")
    cells = analyze(net, x, what="sensitivity")["sensitivity"].column("fp16")
    assert cells == ["overflows"] * 4  # 1e30 is no number of fp16


def test_zero_weights_leave_nothing_to_compare() -> None:
    net, x = times(0.0, "convolutions")
    for kind, words in (
        ("erf", "the gradient of the central unit of 'add' by the input is zero everywhere"),
        ("rank", "the values of the network are zero"),
        ("sensitivity", "the result of the network is zero"),
    ):
        with pytest.raises(InputError, match=words):
            analyze(net, x, what=kind)
    depth = analyze(net, x, what="depth")["depth"]
    assert depth.rows[0][1:3] == (None, None) and depth.facts["beta"] is None
    assert depth.notes[1].startswith("2 figures have no finite value: a division by zero")
    assert math.isnan(depth.series["|f|/|h|"][0])


def test_one_weight_that_is_no_number_is_named() -> None:
    net, x = times(1.0, "convolutions")
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] = math.nan
    for kind in KINDS:
        with pytest.raises(InputError, match=r"weight 'first.weight' holds NaN"):
            analyze(net, x, what=kind)


def test_a_scale_changes_no_ratio() -> None:
    """Cosines, ranks, distances and ratios do not depend on the scale of values, whose squares may not be numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU()).double()
    x = torch.randn(6, 8, dtype=torch.float64)
    wanted = {k: analyze(net, x, what=k, data=x)[k] for k in ("rank", "gaussianity", "sensitivity")}
    with torch.no_grad():
        net[0].weight.mul_(1e-200)
    for kind, table in wanted.items():
        found = analyze(net, x, what=kind, data=x)[kind]
        for row, other in zip(found.rows, table.rows, strict=True):
            same = row[:-1] + other[-1:] if kind == "sensitivity" else row
            kept = [v for v, column in zip(same, table.columns, strict=True) if column not in ("fp16", "bf16")]
            known = [v for v, column in zip(other, table.columns, strict=True) if column not in ("fp16", "bf16")]
            assert kept == [v if isinstance(v, str) else pytest.approx(v, rel=1e-9) for v in known]


def test_powers_and_distances_of_huge_and_tiny_values() -> None:
    torch.manual_seed(0)
    y, roles = torch.randn(16, 64, dtype=torch.float64), tuple(map(frozenset, "nc"))
    for scale in (1e150, 1e-150):
        power = measured(y * scale, roles)
        assert power.variance == pytest.approx(measured(y, roles).variance * scale**2, rel=1e-12)
        assert normal_distance(y.flatten() * scale) == pytest.approx(normal_distance(y.flatten()), abs=1e-9)
    assert not measured(y * 1e200, roles).finite and not measured(torch.full_like(y, 1e200), roles).finite
    assert normal_distance(torch.ones(5)) == 1.0


def test_rank_needs_two_of_what_it_compares() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 8)
    with pytest.raises(InputError, match="rank compares the samples of a batch with each other, and here there is one"):
        analyze(net, x, what="rank", batch=1)
    with pytest.raises(InputError, match="one alone"):
        analyze(net, x, what="rank", data=x[:1])
    with pytest.raises(InputError, match="rank compares the tokens of a sample"):
        analyze(transformer(), torch.randn(2, 1, 8), what="rank")
    assert math.isfinite(analyze(transformer(), torch.randn(2, 5, 8), what="rank", batch=1)["rank"].rows[0][2])
    assert "rank" in analyze(net, x, what="rank,moments", batch=1).refused


def test_units_of_attention_lie_along_the_features() -> None:
    table = analyze(transformer(), torch.randn(2, 5, 8), what="dead")["dead"]
    assert table.column("units") == [32]
