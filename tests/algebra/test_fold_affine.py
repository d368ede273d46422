"""Folding one affine: into which layers it went, in words, and both reasons where it goes nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.fold_batch_norm import FoldBatchNorm
from support.helpers import EXACT, Fused, Lambda, apply_exactly, doubles, healthy, program_of, run_rules

IMAGES = (2, 4, 5, 5)


def into(count: int) -> nn.Module:
    """A norm that so many convolutions read."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(torch.tanh(x))
        total: Tensor = sum(m.get_submodule(f"layer{i}")(y) for i in range(count))  # type: ignore[assignment]
        return total

    return healthy(Lambda(forward, norm=nn.BatchNorm2d(4), **_layers(count)))


def out_of(count: int) -> nn.Module:
    """A norm that reads the sum of so many convolutions."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(m.norm(sum(m.get_submodule(f"layer{i}")(x) for i in range(count))))

    return healthy(Lambda(forward, norm=nn.BatchNorm2d(5), **_layers(count)))


def _layers(count: int) -> dict[str, nn.Module]:
    return {f"layer{i}": nn.Conv2d(4, 5, 1) for i in range(count)}


def message(done: Fused) -> str:
    """Of the only remark."""
    (remark,) = done.outcome.remarks
    assert remark.module in ("norm", "1")
    return remark.message


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "'layer0'"),
        (3, "'layer0', 'layer1', 'layer2'"),
        (4, "'layer0', 'layer1', 'layer2' and 1 more"),
        (5, "'layer0', 'layer1', 'layer2' and 2 more"),
    ],
)
def test_three_layers_are_named_and_the_others_counted(count: int, named: str) -> None:
    ahead = apply_exactly(into(count), doubles(*IMAGES), rules=[FoldBatchNorm()], bound=EXACT)
    assert message(ahead) == f"folded into the input of {named}"
    behind = apply_exactly(out_of(count), doubles(*IMAGES), rules=[FoldBatchNorm()], bound=EXACT)
    assert message(behind) == f"folded into the output of {named}"


def test_what_can_go_nowhere_says_why_on_both_sides() -> None:
    net = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Sigmoid()))
    assert message(run_rules(program_of(net, doubles(*IMAGES)), FoldBatchNorm())) == (
        "before it: tanh does not commute with a channel affine (at '0'); "
        "after it: sigmoid does not commute with a channel affine (at '2')"
    )
