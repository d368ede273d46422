"""Whole numbers that a model reads of an input: what it says of them with torch._check bounds what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.capture import capture
from reparam.ir import feed


class Repeated(nn.Module):
    """Rows, as often as an input says; `low` and `high` are what it may say."""

    def __init__(self, low: int | None, high: int | None) -> None:
        super().__init__()
        self.linear, self.low, self.high = nn.Linear(4, 5), low, high

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        count = n.item()
        if self.low is not None:
            torch._check(count >= self.low)
        if self.high is not None:
            torch._check(count <= self.high)
        return self.linear(x).repeat(count, 1)


@pytest.mark.parametrize(("low", "high", "drawn"), [(2, 6, {2, 3, 4, 5, 6}), (3, None, {3, 4}), (1, 2, {1, 2})])
def test_what_is_checked_is_drawn(low: int, high: int | None, drawn: set[int]) -> None:
    inputs = (torch.randn(6, 4), torch.tensor(3 if high is None else high))
    model = Repeated(low, high).eval()
    program = capture(model, inputs).program
    assert (program.inputs[1].low, program.inputs[1].high) == (low, math.inf if high is None else high)
    generator = torch.Generator().manual_seed(0)
    assert {int(feed(program, program.traced_sizes, generator)[1]) for _ in range(60)} == drawn
    assert convert(model, *inputs).report.equivalent


def test_of_several_entries_one_says_nothing_of_the_others() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            count = n[0].item()
            torch._check(count >= 3)
            return x.repeat(1, count)

    program = capture(First(), (torch.randn(6, 4), torch.tensor([4, 5]))).program
    assert (program.inputs[1].low, program.inputs[1].high) == (-math.inf, math.inf)
