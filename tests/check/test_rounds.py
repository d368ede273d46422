"""What rounds of a comparison say: whether the outputs that were compared depend on what was drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam.check import Round, all_samples_alike
from reparam.check.input_plan import Plan
from reparam.conversion import convert


def rounds(*truths: list[Tensor]) -> list[Round]:
    return [Round([], truth, Plan({}, 1), 1e-10) for truth in truths]


SAME = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("truths", "alike"),
    [
        ([[SAME]], True),
        ([[SAME], [2 * SAME]], True),
        ([[SAME, 2 * SAME]], True),
        ([[SAME, torch.arange(6.0).reshape(3, 2)]], False),
        ([[SAME], [torch.arange(6.0).reshape(3, 2)]], False),
        ([[torch.tensor([[1.0, 2.0], [1.0, 2.0]])]], True),  # one row for each sample
        ([[torch.tensor([[1.0, 2.0], [1.0, 3.0]])]], False),
        ([[torch.ones(1, 2)]], False),  # a single sample has none beside it
        ([[torch.tensor(1.0)]], False),
        ([[torch.ones(3, dtype=torch.int64)]], False),  # the class may well be one for all
        ([[SAME, torch.arange(3), torch.rand(1, 2)]], True),
        ([[3, None]], False),
        ([], False),
    ],
)
def test_outputs_that_are_alike(truths: list[list[Tensor]], alike: bool) -> None:
    assert all_samples_alike(rounds(*truths)) is alike


@pytest.mark.parametrize("mean, told", [(0.0, False), (1e4, True)])
def test_a_network_that_random_inputs_do_not_move_is_told(mean: float, told: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    net[1].running_mean.fill_(mean)  # type: ignore[union-attr,operator]
    remarks = [r.message for r in convert(net, torch.rand(2, 3, 8, 8)).report.remarks]
    assert any("all random samples gave the same outputs" in r for r in remarks) is told
