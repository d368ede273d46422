"""Free sizes as the numbers of operators: no rewrite takes them for numbers that it knows, or fails over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam

ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha of a sum": lambda y: torch.add(y.relu(), y.relu(), alpha=-y.shape[2]).relu(),
    "alpha of ELU": lambda y: F.elu(y, alpha=-1 / y.shape[2]).relu(),
    "an upper bound": lambda y: y.relu().clamp(max=-y.shape[2]).relu() + 1,
    "a lower bound": lambda y: (-y.relu()).clamp(min=y.shape[2]).relu(),
    "the steps of a roll": lambda y: y.roll(y.shape[2] // 2, 2).roll(-(y.shape[2] // 2), 2),
    "indices": lambda y: y.index_select(2, torch.arange(y.shape[2] - 1, -1, -1)).relu(),
    "slopes": lambda y: F.leaky_relu(y, y.shape[2] / 8),
    "a factor and a shift": lambda y: (y / y.shape[2] - y.shape[2]) * y.shape[2],
}


class Net(nn.Module):
    def __init__(self, ending: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.ending(self.norm(self.conv(x))))


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_size_is_another_number_at_every_size(ending: Callable[[Tensor], Tensor]) -> None:
    model = Net(ending).eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
    result = reparam.convert(model, torch.randn(2, 3, 8, 6), to="plain", dynamic=("batch", "height"))
    assert not any("fault" in r.message for r in result.report.remarks) and result.report.after.norms == 0
    for height in (2, 5, 8, 17):
        x = torch.randn(3, 3, height, 6)
        wanted = model(x)
        assert torch.allclose(result.module(x), wanted, atol=1e-5 * max(1.0, float(wanted.abs().max()))), height
